"""Scores of rates: closed forms, and nlb_tools where it is installed (`make reference`)."""

from __future__ import annotations

import numpy as np
import pytest

from brainfm.evaluations import spike_scores


@pytest.fixture(scope="module")
def oracle():
    return pytest.importorskip("nlb_tools.evaluation", reason="nlb_tools is no dependency: make reference")


def drawn(seed: int = 0, trials: int = 30, time: int = 20, neurons: int = 6):
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (trials, 1, neurons))
    rates = np.exp(0.8 * np.sin(np.linspace(0, 4, time)[None, :, None] + phase) - 0.5)
    return rng, rates, rng.poisson(rates).astype(float)


def test_the_null_model_gains_exactly_nothing_and_the_truth_something() -> None:
    _, rates, counts = drawn()
    null = np.broadcast_to(counts.mean(axis=(0, 1)), counts.shape)
    assert spike_scores.bits_per_spike(counts, null) == 0.0
    gain = spike_scores.bits_per_spike(counts, rates)
    assert gain > 0.1
    assert spike_scores.bits_per_spike(counts, 1.5 * rates) < gain


def test_bits_of_two_known_bins() -> None:
    """Counts 2 and 0 with rates 2 and 1 against the mean 1: nll 3 - 2 ln 2 and 2, each plus ln 2!."""
    gain = spike_scores.bits_per_spike(np.array([[2.0], [0.0]]), np.array([[2.0], [1.0]]))
    assert gain == pytest.approx((2 - (3 - 2 * np.log(2))) / 2 / np.log(2), abs=1e-12)


def test_unknown_counts_do_not_matter_and_arguments_stay() -> None:
    rng, rates, counts = drawn()
    hole = counts.copy()
    hole[:, 5:9] = np.nan
    wrong = rates.copy()
    wrong[:, 5:9] = np.nan
    kept = [0, 1, 2, 3, 4, *range(9, 20)]
    assert spike_scores.bits_per_spike(hole, wrong) == pytest.approx(
        spike_scores.bits_per_spike(counts[:, kept], rates[:, kept]), abs=1e-12
    )
    zero = np.where(rng.random(rates.shape) < 0.01, 0.0, rates)
    before = zero.copy()
    assert np.isfinite(spike_scores.bits_per_spike(counts, zero))
    np.testing.assert_array_equal(zero, before)


@pytest.mark.parametrize("bad", [-0.1, np.nan])
def test_a_rate_that_is_none_is_refused(bad: float) -> None:
    _, rates, counts = drawn()
    rates[3, 2, 1] = bad
    with pytest.raises(ValueError, match=r"1 of 3600 rates are negative or NaN"):
        spike_scores.bits_per_spike(counts, rates)


def test_no_spike_and_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="without a spike"):
        spike_scores.bits_per_spike(np.zeros((3, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"counts \(3, 2\) and rates \(2, 3\)"):
        spike_scores.poisson_nll(np.zeros((3, 2)), np.ones((2, 3)))


def test_velocity_is_read_from_rates_that_carry_it() -> None:
    rng, rates, _ = drawn()
    velocity = rates @ rng.normal(size=(6, 2))
    velocity[2, 4] = np.nan
    assert spike_scores.velocity_r2(rates[:20], velocity[:20], rates[20:], velocity[20:]) > 0.999
    assert spike_scores.velocity_r2(rates[:20], velocity[:20], rates[20:], velocity[20:][::-1]) < 0.5


def test_psth_of_the_rates_themselves_is_one_and_jitter_moves_them() -> None:
    _, rates, _ = drawn()
    trials = [np.arange(10), np.arange(10, 30), np.array([], int)]
    psth = np.stack([rates[:10].mean(0), rates[10:].mean(0), np.full(rates.shape[1:], 7.0)])
    assert spike_scores.psth_r2(psth, rates, trials) == pytest.approx(1)
    psth[:, [0, 1, -1]] = np.nan
    early = np.roll(rates, -2, axis=1)
    assert spike_scores.psth_r2(psth, early, trials, np.full(30, 2)) == pytest.approx(1)
    assert spike_scores.psth_r2(psth, early, trials) < 0.9
    with pytest.raises(ValueError, match="NaN at times that count"):
        spike_scores.psth_r2(psth, early, trials, np.full(30, 5))


def test_speed_follows_the_produced_interval() -> None:
    rng = np.random.default_rng(0)
    produced = rng.uniform(0.5, 1.5, 24)
    rates = np.cumsum(np.ones((24, 10, 3)), axis=1) * (2 - produced)[:, None, None]
    behaviour = np.column_stack([np.arange(24) % 2, np.zeros(24), np.zeros(24), produced])
    assert spike_scores.tp_correlation(np.ones((24, 10, 3)), rates, behaviour) == pytest.approx(-1)
    with pytest.raises(ValueError, match="none of 24 trials"):
        spike_scores.tp_correlation(np.ones((24, 10, 3)), rates, np.full((24, 4), np.nan))


@pytest.mark.reference
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_nlb_tools(oracle, seed: int) -> None:
    rng, rates, counts = drawn(seed)
    counts[:3, 15:] = np.nan
    guess = rates * rng.lognormal(0, 0.3, rates.shape)
    guess[4, 3, 2] = 0.0
    close = {"rel": 0, "abs": 1e-9}
    assert spike_scores.bits_per_spike(counts, guess) == pytest.approx(
        oracle.bits_per_spike(guess.copy(), counts), **close
    )
    velocity = rates @ rng.normal(size=(6, 2)) + rng.normal(size=(30, 20, 2))
    velocity[5, :4] = np.nan
    groups = np.stack([np.arange(20) % 2 == 0, np.arange(20) % 3 > 0], axis=1)
    sides = (guess[:20], velocity[:20], groups), (guess[20:], velocity[20:], groups[:10])
    expected = oracle.velocity_decoding(*sides[0], *sides[1])
    mine = spike_scores.velocity_r2(*sides[0][:2], *sides[1][:2], groups, groups[:10])
    assert mine == pytest.approx(expected, **close)
    trials = [np.arange(0, 12), np.arange(12, 30), np.array([], int)]
    psth = np.stack([counts[3:12].mean(0), counts[12:].mean(0), counts[5]])
    psth[:, [0, 1, 18, 19]] = np.nan
    jitter = rng.integers(-2, 3, 30)
    expected = oracle.eval_psth(psth, guess, trials, jitter=jitter)
    assert spike_scores.psth_r2(psth, guess, trials, jitter) == pytest.approx(expected, **close)
    behaviour = np.column_stack([rng.integers(0, 2, (30, 3)), rng.random((30, 2))]).astype(float)
    behaviour[0, :3] = np.nan
    behaviour[1:9, :3], behaviour[9:, :3] = [0, 0, 1], [1, 0, 1]
    expected = oracle.speed_tp_correlation(counts, guess, behaviour)
    assert spike_scores.tp_correlation(counts, guess, behaviour) == pytest.approx(expected, **close)
