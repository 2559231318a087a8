"""Intervals cover what they say, and p-values are uniform under the null."""

import numpy as np
import pytest

from brainfm import statistics
from brainfm.metrics import accuracy, r2


def test_interval_of_a_mean_has_its_closed_form():
    values = np.random.default_rng(0).normal(size=200)
    low, high = statistics.bootstrap_ci(values, n=20_000)
    half = 1.96 * values.std() / np.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_interval_covers_the_true_mean():
    rng = np.random.default_rng(1)
    found = [statistics.bootstrap_ci(rng.normal(0.3, 1, 40), n=500, seed=i) for i in range(400)]
    assert np.mean([low <= 0.3 <= high for low, high in found]) == pytest.approx(0.94, abs=0.03)


def test_five_units_cover_as_documented():
    rng = np.random.default_rng(2)
    found = [statistics.bootstrap_ci(rng.normal(0, 1, 5), n=500, seed=i) for i in range(1000)]
    assert np.mean([low <= 0 <= high for low, high in found]) == pytest.approx(0.84, abs=0.04)


def test_trial_interval_is_binomial():
    true = np.zeros(400, int)
    predicted = (np.arange(400) % 4 == 0).astype(int)
    low, high = statistics.bootstrap_trials(true, predicted, accuracy, n=4000)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.006)


def test_blocks_widen_the_interval_of_a_slow_series():
    rng = np.random.default_rng(3)
    slow = np.convolve(rng.normal(size=1050), np.ones(50) / 50, "valid")[:1000]
    error = np.convolve(rng.normal(size=1050), np.ones(50) / 50, "valid")[:1000]
    narrow = np.ptp(statistics.bootstrap_trials(slow, slow + 0.5 * error, r2, n=500))
    assert np.ptp(statistics.bootstrap_trials(slow, slow + 0.5 * error, r2, n=500, block=100)) > 2 * narrow


def test_one_subject_gives_the_interval_over_trials():
    true, predicted = np.zeros(50), np.r_[np.zeros(40), np.ones(10)]
    ci, over = statistics.interval([0.8], true, predicted, accuracy)
    assert over == "trials"
    assert ci == statistics.bootstrap_trials(true, predicted, accuracy)
    ci, over = statistics.interval([0.8, 0.6], true, predicted, accuracy)
    assert over == "subjects"
    assert ci == statistics.bootstrap_ci([0.8, 0.6])
    with pytest.raises(ValueError, match="two or more"):
        statistics.bootstrap_ci(np.array([0.8]))


def test_same_seed_same_interval():
    values = np.random.default_rng(4).normal(size=9)
    assert statistics.bootstrap_ci(values, seed=5) == statistics.bootstrap_ci(values, seed=5)
    assert statistics.bootstrap_ci(values, seed=5) != statistics.bootstrap_ci(values, seed=6)


def test_permutation_p_is_never_zero_and_uniform_under_the_null():
    assert statistics.permutation_p(2.0, np.zeros(99)) == 0.01
    assert statistics.permutation_p(0.0, np.zeros(99)) == 1
    rng = np.random.default_rng(5)
    p = [statistics.permutation_p(*(lambda x: (x[0], x[1:]))(rng.normal(size=100))) for _ in range(2000)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.015)
