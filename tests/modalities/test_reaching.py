"""A population along a given hand trajectory: tuning, lags and noise correlations are what its truth says."""

from pathlib import Path

import numpy as np
import pytest

from brainfm.datasets import macaque_m1
from brainfm.modalities import reaching, spikes
from brainfm.recording import Series

MACAQUE = Path(__file__).resolve().parents[2] / "../shared/data/macaque-m1"


def hand(seconds: float = 120.0, sfreq: float = 50.0) -> np.ndarray:
    return spikes.reach_kinematics(np.random.default_rng(5), seconds, sfreq)[1]


def counts(recording, bin_s: float) -> np.ndarray:
    """`(time, neuron)` spikes per bin."""
    edges = np.arange(round(recording.duration / bin_s) + 1) * bin_s
    return np.stack(
        [
            np.histogram(recording.spike_time[recording.spike_neuron == n], edges)[0]
            for n in range(len(recording.channels))
        ],
        axis=1,
    )


@pytest.fixture(scope="module")
def recording():
    return reaching.follow(np.random.default_rng(0), hand(), 50.0, neurons=40)


def test_preferred_directions_are_in_the_spikes(recording) -> None:
    assert recording.simulated
    assert np.array_equal(recording.aligned["velocity"].values, hand())
    fired, lead = counts(recording, 0.02), round(float(recording.truth["lag_s"].mean()) * 50)
    design = np.column_stack([hand()[lead:], np.ones(len(hand()) - lead)])
    slope = np.linalg.lstsq(design, fired[: len(design)], rcond=None)[0]
    off = np.abs(np.angle(np.exp(1j * (np.arctan2(slope[1], slope[0]) - recording.truth["preferred"]))))
    strong = recording.truth["depth"] > np.median(recording.truth["depth"])
    assert np.degrees(np.median(off[strong])) < 20


def test_neurons_lead_by_their_own_times() -> None:
    tuning = spikes.Tuning(np.full(6, 20.0), np.full(6, 150.0), np.linspace(-np.pi, np.pi, 7)[:6], 0.15)
    still = reaching.Fluctuations(size=0.0)
    made = reaching.follow(
        np.random.default_rng(1), hand(200), 50.0, tuning=tuning, lag_spread_s=0.08, fluctuations=still
    )
    fired, towards = counts(made, 0.02), hand(200) @ np.stack([np.cos(tuning.preferred), np.sin(tuning.preferred)])
    shifts = range(0, 20)
    found = [
        max(shifts, key=lambda k, n=n: np.corrcoef(fired[: len(fired) - k, n], towards[k:, n])[0, 1]) * 0.02
        for n in range(6)
    ]
    assert made.truth["lag_s"].std() > 0.03
    assert np.corrcoef(found, made.truth["lag_s"])[0, 1] > 0.8
    assert np.abs(found - made.truth["lag_s"]).max() < 0.06


def test_noise_is_shared_by_neurons_that_are_tuned_alike() -> None:
    rest = np.zeros((50 * 300, 2))
    tuning = spikes.Tuning(np.full(8, 30.0), np.zeros(8), np.repeat([0.0, np.pi], 4), 0.1)
    slow = reaching.Fluctuations(size=0.5, time_s=0.2, shared=0.9)
    made = reaching.follow(np.random.default_rng(2), rest, 50.0, tuning=tuning, fluctuations=slow)
    alike = np.repeat([0, 1], 4)[:, None] == np.repeat([0, 1], 4)
    pair = ~np.eye(8, dtype=bool)
    np.testing.assert_allclose(made.truth["noise_correlation"][pair & alike], 0.9)
    found = np.corrcoef(counts(made, 0.2).T)
    assert found[pair & alike].mean() > 0.3
    assert abs(found[~alike].mean()) < 0.1
    rates = counts(made, 0.2).mean(0) / 0.2
    assert rates == pytest.approx(np.full(8, 30.0), rel=0.1), "fluctuations leave mean rates as they are"
    poisson = reaching.follow(
        np.random.default_rng(2), rest, 50.0, tuning=tuning, fluctuations=reaching.Fluctuations(size=0.0)
    )
    assert abs(np.corrcoef(counts(poisson, 0.2).T)[pair].mean()) < 0.05


def test_the_hand_of_a_recording_in_any_unit(recording) -> None:
    other = spikes.reaching(np.random.default_rng(3), neurons=4, duration_s=30.0, subject="m", session="s")
    pixels = other.aligned["velocity"].values * 4000
    pixels[100:120] = np.nan
    other.aligned["velocity"] = Series(pixels, 50.0, "px/s")
    made = reaching.follow_recorded(np.random.default_rng(0), other, neurons=10)
    values = made.aligned["velocity"].values
    assert np.sqrt(np.nanmean(values**2)) == pytest.approx(0.1)
    assert np.isnan(values[100:120]).all(), "what was not tracked is not made up"
    assert (made.subject, made.session, made.simulated) == ("m", "s-simulated", True)
    assert made.events.label == other.events.label
    assert [s["step"] for s in made.provenance["steps"]] == ["simulate following hand", "trajectory of a recording"]
    with pytest.raises(KeyError, match="no covariate 'gaze'"):
        reaching.follow_recorded(np.random.default_rng(0), other, name="gaze")
    other.aligned["velocity"] = Series(np.zeros((100, 2)), 50.0, "m/s")
    with pytest.raises(ValueError, match="never moves"):
        reaching.follow_recorded(np.random.default_rng(0), other)


@pytest.mark.skipif(not MACAQUE.is_dir(), reason="no macaque M1 recording in ../shared/data")
def test_along_the_hand_of_a_macaque(tmp_path: Path) -> None:
    macaque_m1.fetch(tmp_path, MACAQUE)
    recorded = next(macaque_m1.recordings(tmp_path))
    moves = recorded.aligned["velocity"]
    recorded.aligned["velocity"] = Series(moves.values[: round(60 * moves.sfreq)], moves.sfreq, moves.unit)
    made = reaching.follow_recorded(np.random.default_rng(0), recorded, neurons=20)
    assert made.duration == pytest.approx(60)
    towards = np.stack([np.cos(made.truth["preferred"]), np.sin(made.truth["preferred"])])
    drive = np.nan_to_num(made.aligned["velocity"].values) @ towards
    fired = counts(made, 1 / moves.sfreq)
    lead = round(made.truth["lag_s"].mean() * moves.sfreq)
    each = [np.corrcoef(fired[: len(fired) - lead, n], drive[lead:, n])[0, 1] for n in range(20)]
    assert np.median(each) > 0.15


def test_it_is_seeded_and_refuses_other_trajectories() -> None:
    one, same, other = (reaching.follow(np.random.default_rng(s), hand(5), 50.0, neurons=5) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.spike_time, same.spike_time)
    assert not np.array_equal(one.spike_time, other.spike_time)
    for wrong in (np.zeros(100), np.zeros((100, 3)), np.zeros((10, 2))):
        with pytest.raises(ValueError, match=r"expected \(time, 2\) in m/s of one second or more"):
            reaching.follow(np.random.default_rng(0), wrong, 50.0)
