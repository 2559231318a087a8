"""Intervals cover what they say, and p-values are uniform under the null."""

import numpy as np
import pytest
from scipy import stats
from scipy.signal import lfilter

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
    assert statistics.permutation_p(0.3, np.array([0.1 + 0.2, 0.1, 0.2])) == 0.5
    assert statistics.permutation_p(0.1 + 0.2, np.array([0.3, 0.1, 0.2])) == 0.5, "equal up to rounding"
    assert statistics.permutation_p(3e-9, np.array([3e-9 * (1 + 1e-12), 2e-9])) == 2 / 3, "at any scale"
    assert statistics.permutation_p(0.3, np.array([np.nan, 0.1, 0.2])) == 0.5, "what cannot be compared counts"
    assert statistics.permutation_p(np.nan, np.zeros(99)) == 1
    rng = np.random.default_rng(5)
    p = [statistics.permutation_p(*(lambda x: (x[0], x[1:]))(rng.normal(size=100))) for _ in range(2000)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("n", [1, 4, 5, 6, 12, 40])
def test_signed_ranks_equal_scipy_without_ties(n):
    d = np.random.default_rng(n).normal(0.4, 1, n)
    expected = stats.wilcoxon(d, method="exact")
    assert statistics.wilcoxon(d) == pytest.approx((expected.statistic, expected.pvalue))


def test_signed_ranks_with_ties_count_every_assignment_of_signs():
    d = np.array([0.1, 0.1, -0.1, 0.3, 0.2, 0.2, 0.4, 0.0])
    ranks = stats.rankdata(np.abs(d[:-1]))
    signs = 2 * np.array(np.meshgrid(*[[0, 1]] * 7)).reshape(7, -1).T - 1
    smaller = np.minimum((signs > 0) @ ranks, (signs < 0) @ ranks)
    observed = min(ranks[d[:-1] > 0].sum(), ranks[d[:-1] < 0].sum())
    assert statistics.wilcoxon(d) == pytest.approx((observed, np.mean(smaller <= observed)))
    assert statistics.wilcoxon(np.zeros(4)) == (0, 1)
    d = np.random.default_rng(0).normal(0.1, 1, 201)
    assert statistics.wilcoxon(d).p == pytest.approx(statistics.wilcoxon(d[:200]).p, abs=0.05)


def test_differences_that_floats_alone_tell_apart_are_ties():
    d = np.array([0.55 - 0.5, 0.5 - 0.55, 0.6 - 0.55, 0.2, 0.1 + 0.2 - 0.3])
    assert len(set(np.abs(d[:3]))) > 1
    exact = np.array([0.05, -0.05, 0.05, 0.2, 0.0])
    assert statistics.wilcoxon(d) == statistics.wilcoxon(exact)
    assert statistics.rank_biserial(d) == pytest.approx(statistics.rank_biserial(exact)) == pytest.approx(0.6)


@pytest.mark.parametrize(("n", "least"), [(2, 0.5), (5, 0.0625), (6, 0.03125)])
def test_few_people_cannot_reach_a_small_p(n, least):
    same_sign = np.arange(1.0, n + 1)
    assert statistics.smallest_p(n) == least
    assert statistics.wilcoxon(same_sign).p == pytest.approx(least)
    assert statistics.sign_flip_p(same_sign) == pytest.approx(least)


def rejected(test, draw, n=400):
    """How often a test of made-up differences has p at or below 5 %."""
    return np.mean([test(draw(np.random.default_rng(i))) <= 0.05 for i in range(n)])


def heavy(rng):
    return rng.standard_t(2, 12)


def test_tests_reject_five_percent_under_the_null_and_more_beside_it():
    for test in (lambda d: statistics.wilcoxon(d).p, statistics.sign_flip_p):
        assert rejected(test, heavy) == pytest.approx(0.05, abs=0.025)
        assert rejected(test, lambda rng: rng.normal(1.2, 1, 12), 100) > 0.8
    drawn = rejected(lambda d: statistics.sign_flip_p(d, n=199), lambda rng: rng.normal(0, 1, 20), 300)
    assert drawn == pytest.approx(0.05, abs=0.03)


def resampled(rng, people=24, folds=15, n_test=6):
    """Mean differences of random test sides of the same few people, whose true difference is 0.

    Two folds correlate by the share of people in a test side, which is what Nadeau and Bengio assume.
    """
    each = rng.normal(size=people)
    return np.array([each[rng.permutation(people)[:n_test]].mean() for _ in range(folds)])


def test_corrected_t_holds_its_level_where_the_plain_one_does_not():
    assert rejected(lambda d: statistics.corrected_t(d, 18, 6).p, resampled) == pytest.approx(0.05, abs=0.025)
    assert rejected(lambda d: stats.ttest_1samp(d, 0).pvalue, resampled) > 0.3


def test_corrected_t_has_its_closed_form():
    d = np.array([0.1, 0.3, 0.2, 0.0])
    t = d.mean() / np.sqrt((1 / 4 + 1 / 9) * d.var(ddof=1))
    assert statistics.corrected_t(d, 9, 1) == pytest.approx((t, 2 * stats.t.sf(t, 3)))
    plain = stats.ttest_1samp(d, 0)
    assert statistics.corrected_t(d, 10**9, 1) == pytest.approx((plain.statistic, plain.pvalue))
    assert np.isnan(statistics.corrected_t(d[:1], 9, 1).p)
    assert statistics.corrected_t(np.zeros(3), 9, 1) == (0, 1)
    with pytest.raises(ValueError, match="n_train = 0"):
        statistics.corrected_t(d, 0, 1)


def test_sign_flips_count_every_assignment():
    assert statistics.sign_flip_p([1.0, 2.0, -0.5]) == 4 / 8
    d = np.random.default_rng(3).normal(0.2, 1, 14)
    many = statistics.sign_flip_p(np.r_[d, np.zeros(4)], n=20_000)  # zeros change nothing, but are drawn
    assert many == pytest.approx(statistics.sign_flip_p(d), abs=0.01)


def test_holm_by_hand_and_its_family():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    found = statistics.holm([0.02, np.nan, 0.9])
    assert found[[0, 2]] == pytest.approx([0.04, 0.9])
    assert np.isnan(found[1])
    rng = np.random.default_rng(4)
    assert np.mean([statistics.holm(rng.uniform(size=8)).min() <= 0.05 for _ in range(2000)]) == pytest.approx(
        0.05, abs=0.015
    )


def test_effect_sizes():
    assert statistics.cohen_dz([1.0, 2.0, 3.0]) == 2
    assert np.isnan(statistics.cohen_dz([1.0, 1.0]))
    assert statistics.rank_biserial([1.0, 2.0, 3.0]) == 1
    assert statistics.rank_biserial([1.0, -2.0, 3.0, 0.0]) == pytest.approx((4 - 2) / 6)
    assert statistics.rank_biserial([0.0, 0.0]) == 0
    d = np.random.default_rng(5).normal(0.3, 1, 15)
    smaller = stats.wilcoxon(d).statistic
    assert abs(statistics.rank_biserial(d)) == pytest.approx(1 - 2 * smaller / (15 * 16 / 2))


def people(values):
    return {f"d/{i}": float(v) for i, v in enumerate(values)}


def test_contrasts_pair_the_people_by_name():
    rng = np.random.default_rng(6)
    a, b, c = rng.uniform(0.4, 0.9, (3, 9))
    backwards = dict(reversed(people(b).items()))
    folds = [[f"d/{i}" for i in fold] for fold in ((0, 3, 8), (1, 2, 7), (4, 5, 6))]
    found = statistics.contrasts({"a": people(a), "b": backwards, "c": people(c)}, folds=folds, n_train=8)
    assert [(r["a"], r["b"]) for r in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found[0]["difference"] == pytest.approx(np.mean(a - b))
    assert found[0]["wilcoxon_p"] == pytest.approx(stats.wilcoxon(a, b).pvalue)
    means = np.array([(a - b)[[0, 3, 8]].mean(), (a - b)[[1, 2, 7]].mean(), (a - b)[[4, 5, 6]].mean()])
    assert found[0]["t_p"] == pytest.approx(statistics.corrected_t(means, 8, 3).p)
    assert [r["holm_p"] for r in found] == pytest.approx(statistics.holm([r["wilcoxon_p"] for r in found]))
    one = statistics.contrasts({"a": people(a), "b": people(b), "c": people(c)}, against="b")
    assert [(r["a"], r["b"]) for r in one] == [("b", "a"), ("b", "c")]
    assert np.isnan(one[0]["t_p"])
    assert np.isnan(statistics.contrast(people(a), people(b), [list(people(a))], 20)["t_p"]), "one fit is no resampling"
    alone = statistics.contrast({"d/1": 0.7}, {"d/1": 0.5})
    assert alone["ci"] is None
    assert alone["n"] == 1
    assert np.isnan(alone["wilcoxon_p"])
    with pytest.raises(ValueError, match="same people"):
        statistics.contrast(people(a), people(b[:-1]))
    with pytest.raises(KeyError, match="no scores of 'z'"):
        statistics.contrasts({"a": people(a)}, against="z")


def test_transfer_effect_is_paired_at_equal_shots():
    mine = {1: people([0.7, 0.8, 0.9]), 5: people([0.9, 0.9, 0.9]), 9: people([1.0])}
    scratch = {5: people([0.9, 0.8, 0.8]), 1: people([0.5, 0.5, 0.6])}
    found = statistics.transfer_effect(mine, scratch)
    assert [r["shots"] for r in found] == [1, 5]
    assert found[0]["score"] == pytest.approx(0.8 / 3)
    assert found[0]["per_subject"] == pytest.approx({"d/0": 0.2, "d/1": 0.3, "d/2": 0.3})
    assert found[0]["ci"][0] > 0


def test_groups_and_the_worst_person():
    scores = {"d/1": 0.9, "d/2": 0.5, "d/3": 0.7, "d/4": 0.6}
    assert statistics.worst(scores) == ("d/2", 0.5)
    found = statistics.by_group(scores, {"d/1": "F", "d/2": "M", "d/3": "F", "x/9": "M"})
    assert {k: (v["score"], v["n"], v["ci"] is None) for k, v in found.items()} == {
        "F": (pytest.approx(0.8), 2, False),
        "M": (0.5, 1, True),
    }
    ages = statistics.at_median({"d/1": 20, "d/2": 31.5, "d/3": 25, "d/4": float("nan")})
    assert ages == {"d/1": "up to 25", "d/2": "above 25", "d/3": "up to 25"}
    assert statistics.at_median({}) == {}
    with pytest.raises(ValueError, match="no scores"):
        statistics.worst({})


@pytest.mark.parametrize("bad", [[], [np.nan, 1.0], [[1.0, 2.0]]])
def test_differences_that_are_none(bad):
    for test in (statistics.wilcoxon, statistics.sign_flip_p, statistics.cohen_dz, statistics.rank_biserial):
        with pytest.raises(ValueError, match="finite, one or more"):
            test(bad)


def slow_series(rng, n=400, a=0.8):
    """`(time,)` noise whose neighbours correlate by `a`, after it has settled."""
    return lfilter([1], [1, -a], rng.normal(size=n + 50))[50:]


@pytest.mark.parametrize("n", [100, 101])
def test_surrogates_keep_the_spectrum_and_lose_the_rest(n):
    rng = np.random.default_rng(8)
    signal = np.column_stack([slow_series(rng, n), slow_series(rng, n)])
    made = statistics.phase_randomised(signal, rng)
    assert np.abs(np.fft.rfft(made, axis=0)) == pytest.approx(np.abs(np.fft.rfft(signal, axis=0)))
    assert np.corrcoef(made.T)[0, 1] == pytest.approx(np.corrcoef(signal.T)[0, 1])
    assert np.abs(made - signal).max() > 0.1
    alone = statistics.phase_randomised(signal[:, 0], np.random.default_rng(9))
    assert alone.std() == pytest.approx(signal[:, 0].std())


def test_surrogates_hold_the_level_of_a_correlation_of_slow_series():
    def p(rng):
        x, y = slow_series(rng, 200), slow_series(rng, 200)
        null = [abs(np.corrcoef(statistics.phase_randomised(x, rng), y)[0, 1]) for _ in range(39)]
        return statistics.permutation_p(abs(np.corrcoef(x, y)[0, 1]), np.array(null))

    assert np.mean([p(np.random.default_rng(i)) <= 0.05 for i in range(200)]) == pytest.approx(0.05, abs=0.04)
