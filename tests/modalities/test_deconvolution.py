"""Events from calcium: exact without noise, the optimum with it, and near the spikes of a simulator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from brainfm.modalities import calcium, cleaning, deconvolution, spikes
from brainfm.modalities.deconvolution import AMPLITUDE, DFF, Transient, deconvolved, infer_events
from brainfm.recording import Channels, Events, Recording
from brainfm.shards.read import Corpus, open_shards
from brainfm.shards.schema import ShardError
from brainfm.shards.write import write_shard

RISE, DECAY = 0.05, 0.4


def seen(signal: np.ndarray, sfreq: float = 30.0, **fields: object) -> Recording:
    table = Channels.make([f"n{i}" for i in range(len(signal))], "neuron", unit=calcium.UNIT)
    return Recording("x", "a", "calcium", table, sfreq=sfreq, signal=signal, **fields)


def sparse(rate: float = 0.08, sfreq: float = 30.0, seconds: float = 90.0, noise: float = 0.1) -> Recording:
    """A population that fires so seldom that most transients stand alone."""
    drawn = spikes.draw_tuning(np.random.default_rng(2), 12)
    tuning = spikes.Tuning(drawn.baseline * rate, drawn.depth * rate, drawn.preferred, drawn.lag)
    firing = spikes.reaching(np.random.default_rng(3), tuning=tuning, duration_s=seconds)
    return calcium.observe(
        np.random.default_rng(4), firing, sfreq_hz=sfreq, rise_s=RISE, decay_s=DECAY, noise=noise, amplitude=0.5
    )


def impulses(transient: Transient, frames: int) -> np.ndarray:
    """`(frame, jump)` the response in every frame to a jump in every other one."""
    response = np.r_[transient.own, np.zeros(frames)]
    return np.array([[response[i - j] if i >= j else 0.0 for j in range(frames)] for i in range(frames)])


@pytest.mark.parametrize("rise", [None, RISE])
def test_without_noise_the_jumps_are_exact(rise: float | None) -> None:
    rng, transient = np.random.default_rng(0), Transient.of(30.0, DECAY, rise)
    jumps = (rng.random((3, 400)) < 0.05) * rng.uniform(0.3, 2.0, (3, 400))
    jumps[:, 0] = 0
    traces = [np.convolve(x, transient.own)[:400] for x in jumps]
    level, found = deconvolved(traces, transient, np.full(3, 1e-6))
    np.testing.assert_allclose(found, jumps * transient.peak, atol=1e-6)
    np.testing.assert_allclose(level, traces, atol=1e-6)


def test_by_hand() -> None:
    transient = Transient.of(1.0, 1 / np.log(2))  # halves in each frame
    level, jumps = deconvolved([np.array([0, 4, 2, 1, 8.5, 4.25])], transient, np.zeros(1))
    np.testing.assert_allclose(jumps[0], [0, 4, 0, 0, 8, 0], atol=1e-9)
    level, jumps = deconvolved([np.array([0, 4, 2, 1, 8.5, 4.25])], transient, np.array([5.0]))
    assert np.flatnonzero(jumps[0]).tolist() == [4], "a jump of 4 is too small"
    # 0, 4, 2, 1 as one pool: v (1, 1/2, 1/4, 1/8), v = (4/2 + 2/4 + 1/8) / (1 + 1/4 + 1/16 + 1/64)
    np.testing.assert_allclose(level[0][:4], 2.625 / 1.328125 * 0.5 ** np.arange(4))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.floats(0.02, 2.0), st.floats(-0.5, 0.5))
def test_with_noise_it_is_the_optimum(seed: int, frames: int, decay: float, level: float) -> None:
    rng, transient = np.random.default_rng(seed), Transient.of(30.0, decay)
    trace = level + rng.standard_normal(frames) + np.convolve(rng.random(frames) < 0.1, transient.own)[:frames]
    table = impulses(transient, frames)
    best = table @ nnls(table, trace)[0]
    (found, short), (jumps, _) = deconvolved([trace, trace[:1]], transient, np.zeros(2))
    np.testing.assert_allclose(found, best, atol=1e-6)
    assert found.min() >= 0
    assert jumps.min() >= 0
    np.testing.assert_allclose(short, max(trace[0], 0))


def test_with_a_rise_it_is_near_the_optimum() -> None:
    rng, transient = np.random.default_rng(1), Transient.of(30.0, DECAY, RISE)
    trace = np.convolve(rng.random(300) < 0.05, transient.own)[:300] + 0.3 * rng.standard_normal(300)
    table = impulses(transient, 300)
    best = ((table @ nnls(table, trace)[0] - trace) ** 2).sum()
    level, _ = deconvolved([trace], transient, np.zeros(1))
    assert best <= ((level[0] - trace) ** 2).sum() < 1.1 * best


def test_traces_side_by_side_are_as_they_are_alone() -> None:
    rng, transient = np.random.default_rng(5), Transient.of(30.0, DECAY, RISE)
    traces = [rng.standard_normal(n) for n in (40, 200, 1, 0, 200, 90)]
    least = np.linspace(0, 2, 6)
    together, alone = deconvolved(traces, transient, least), [
        deconvolved([x], transient, least[i : i + 1]) for i, x in enumerate(traces)
    ]  # fmt: skip
    for i, (level, jumps) in enumerate(alone):
        np.testing.assert_allclose(together[0][i], level[0])
        np.testing.assert_allclose(together[1][i], jumps[0])


@pytest.mark.parametrize("known", [True, False])
def test_events_lie_at_the_spikes(known: bool) -> None:
    truth = sparse()
    found = infer_events(truth, rise_s=RISE, decay_s=DECAY if known else None)
    precise, recalled, alike = [], [], []
    edges = np.arange(0, 90 + 1e-9, 0.1)
    for neuron in range(12):
        own = truth.truth["spike_time"][truth.truth["spike_neuron"] == neuron]
        events = found.spike_time[found.spike_neuron == neuron]
        far = np.abs(own[:, None] - events)
        precise += list(far.min(axis=0) < 0.05)
        recalled += list(far.min(axis=1) < 0.05)
        amplitude = found.aligned[AMPLITUDE].values[:, neuron].reshape(-1, 3).sum(axis=1)
        alike.append(np.corrcoef(np.histogram(own, edges)[0], amplitude)[0, 1])
    assert np.mean(precise) > 0.95
    assert np.mean(recalled) > 0.85
    assert np.mean(alike) > 0.7
    late = infer_events(truth, decay_s=DECAY)
    worse = [
        np.corrcoef(
            np.histogram(truth.truth["spike_time"][truth.truth["spike_neuron"] == n], edges)[0],
            late.aligned[AMPLITUDE].values[:, n].reshape(-1, 3).sum(axis=1),
        )[0, 1]
        for n in range(12)
    ]
    assert np.mean(alike) > np.mean(worse) + 0.1, "the rise is what puts events in their place"


def test_a_frame_holds_as_many_events_as_its_jump_is_high() -> None:
    transient = Transient.of(30.0, DECAY)
    jumps = np.zeros((1, 900))
    jumps[0, 100::100] = [1, 1, 3, 1, 1, 1, 1, 1]
    signal = np.convolve(jumps[0], transient.own)[None, :900]
    typical = infer_events(seen(signal), decay_s=DECAY, baseline_s=None)
    np.testing.assert_array_equal(np.histogram(typical.spike_time, np.arange(901) / 30)[0], jumps[0])
    twice = infer_events(seen(signal), decay_s=DECAY, baseline_s=None, event_dff=0.5)
    np.testing.assert_array_equal(np.histogram(twice.spike_time, np.arange(901) / 30)[0], 2 * jumps[0])
    assert (np.diff(twice.spike_time) > 0).all(), "those of one frame lie beside each other"


def test_noise_alone_has_hardly_an_event() -> None:
    signal = 0.1 * np.random.default_rng(0).standard_normal((20, 3000))
    found = infer_events(seen(signal), decay_s=DECAY, rise_s=RISE)
    assert len(found.spike_time) < 20 * 3000 / 1000
    with pytest.raises(ValueError, match="no neuron's dF/F shows how fast the indicator decays; give decay_s"):
        infer_events(seen(signal))


@pytest.mark.parametrize("drift", [np.exp(-np.arange(2700) / 900), np.arange(2700) / 2700], ids=["bleaching", "slope"])
def test_drift_makes_no_events_and_takes_none(drift: np.ndarray) -> None:
    truth = sparse()
    kept, moved, lost = (
        infer_events(seen(truth.signal + x), decay_s=DECAY, rise_s=RISE, baseline_s=length)
        for x, length in ((0, 20.0), (drift, 20.0), (drift, None))
    )
    assert len(moved.spike_time) == pytest.approx(len(kept.spike_time), rel=0.03)
    assert len(lost.spike_time) > 1.5 * len(kept.spike_time), "the drift is large enough to matter"
    true = np.histogram2d(truth.truth["spike_time"], truth.truth["spike_neuron"], [450, 12])[0].ravel()
    alike = [
        np.corrcoef(np.histogram2d(x.spike_time, x.spike_neuron, [450, 12])[0].ravel(), true)[0, 1]
        for x in (kept, moved, lost)
    ]
    assert alike[1] > alike[0] - 0.02
    assert alike[2] < alike[0] - 0.1


def test_gaps_are_masked_and_what_is_there_after_one_is_no_event() -> None:
    truth = sparse()
    signal = truth.signal.copy()
    signal[3, 900:1200] = np.nan
    signal[5] = np.nan
    signal[6, 40] = np.inf
    found = infer_events(seen(signal), decay_s=DECAY, rise_s=RISE)
    whole = infer_events(truth, decay_s=DECAY, rise_s=RISE)
    frame = np.floor(found.spike_time * 30 + 1e-6)
    assert not ((found.spike_neuron == 3) & (frame >= 900) & (frame < 1200)).any()
    assert not (found.spike_neuron == 5).any()
    assert np.isnan(found.aligned[DFF].values[900:1200, 3]).all()
    assert np.isnan(found.aligned[AMPLITUDE].values[900:1200, 3]).all()
    for neuron in (0, 1, 2, 4):
        np.testing.assert_array_equal(
            found.spike_time[found.spike_neuron == neuron], whole.spike_time[whole.spike_neuron == neuron]
        )
    transient = Transient.of(30.0, DECAY)
    falling = np.r_[transient.own[:60], np.full(30, np.nan), 2 * transient.own[:60], np.zeros(300)][None]
    assert not len(infer_events(seen(falling), decay_s=DECAY, baseline_s=None).spike_time)
    broken = seen(np.nan_to_num(falling), segments=np.array([[0, 60], [90, 450]]))
    assert not len(infer_events(broken, decay_s=DECAY, baseline_s=None).spike_time)


def test_no_window_of_events_touches_a_break(tmp_path: Path) -> None:
    truth = sparse(rate=1.0, seconds=60.0)
    truth.segments = np.array([[0, 600], [907, 1800]])
    found = infer_events(truth, decay_s=DECAY, rise_s=RISE)
    assert found.segments.tolist() == [[0, 20_000], [30_234, 60_000]], "whole milliseconds inside the segments"
    corpus = open_shards(write_shard(tmp_path / "sub-a.h5", [found], {}))
    windows = corpus.windows(1.0)
    ends = windows.start + windows.samples
    assert len(windows) == 20 + 29
    assert not ((windows.start < 30_233) & (ends > 20_000)).any()
    assert min(len(corpus.recordings[0].spikes(a / 1000, b / 1000)[0]) for a, b in zip(windows.start, ends)) > 0
    found.segments = np.array([[0, 60_001]])
    with pytest.raises(ShardError, match=r"segments from 0 to 60001 ms of events that last 60\.0 s"):
        open_shards(write_shard(tmp_path / "sub-b.h5", [found], {}))
    trials = replace(
        corpus.recordings[0], events=Events(np.array([5.0, 19.8, 25.0, 30.1, 40.0]), np.zeros(5), ["x"] * 5)
    )
    assert Corpus((trials,)).trials(0.0, 0.5).start.tolist() == [5000, 40_000]


def test_segments_are_deconvolved_each_by_itself() -> None:
    truth = sparse(rate=1.0, seconds=60.0)
    truth.segments = np.array([[0, 900], [930, 1800]])
    first = infer_events(truth, decay_s=DECAY, rise_s=RISE, baseline_s=20)
    signal = truth.signal.copy()
    signal[:, 930:] += np.linspace(0, 5, 870)  # a drift that the spectrum of noise hardly sees
    second = infer_events(replace(truth, signal=signal), decay_s=DECAY, rise_s=RISE, baseline_s=20)
    for found in (first, second):
        assert found.provenance["steps"][-1]["least_dff"] > 0
    one, two = (x.aligned[AMPLITUDE].values[:900] for x in (first, second))
    np.testing.assert_allclose(one > 0, two > 0)
    np.testing.assert_allclose(one, two, atol=0.02)
    truth.segments = np.zeros((0, 2), int)
    with pytest.raises(ValueError, match="no stretch of signal to infer events from; its segments are empty"):
        infer_events(truth, decay_s=DECAY)


@pytest.mark.parametrize("baseline_s", [3.0, 10.0])
def test_what_a_change_reaches_is_declared(baseline_s: float) -> None:
    """Brute force: what a short dip changes of the trace without its baseline, and how far that lies from it."""
    sfreq, frames, worst = 10.0, 1200, 0.0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        signal = np.cumsum(rng.normal(size=(1, frames)), axis=1) * 0.02 + 0.1 * rng.normal(size=(1, frames))
        for at in (600, 617, 633, 650):
            dipped = signal.copy()
            dipped[:, at : at + 20] -= 5
            changed = np.flatnonzero(np.abs(flattened(dipped, baseline_s) - flattened(signal, baseline_s))[0] > 1e-9)
            worst = max(worst, (at - changed.min()) / sfreq, (changed.max() - at - 19) / sfreq)
    declared = infer_events(seen(np.ones((1, 400)), sfreq), decay_s=DECAY, baseline_s=baseline_s).reach_s - 5 * DECAY
    assert baseline_s < worst <= declared + 1e-9


def flattened(signal: np.ndarray, baseline_s: float) -> np.ndarray:
    return deconvolution.flat_of(signal, np.array([[0, signal.shape[1]]]), 10.0, baseline_s, 8.0)


@pytest.mark.parametrize("signal", [np.ones((2, 1)), np.full((2, 300), -3.0), np.zeros((2, 300)), np.ones((1, 17))])
def test_traces_with_nothing_to_see_have_no_events(signal: np.ndarray) -> None:
    for baseline in (60.0, None):
        found = infer_events(seen(signal), decay_s=DECAY, baseline_s=baseline)
        assert len(found.spike_time) == 0
        assert found.aligned[DFF].values.shape == signal.T.shape


def test_neurons_in_groups_are_as_they_are_together(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = sparse(seconds=20.0)
    truth.signal[2, 100:200] = np.nan
    whole = infer_events(truth, decay_s=DECAY, rise_s=RISE)
    monkeypatch.setattr(deconvolution, "ROWS", 9)
    apart = infer_events(truth, decay_s=DECAY, rise_s=RISE)
    np.testing.assert_array_equal(apart.spike_time, whole.spike_time)
    np.testing.assert_array_equal(apart.spike_neuron, whole.spike_neuron)


def test_jumps_are_as_large_as_the_residual_allows() -> None:
    transient, rng = Transient.of(30.0, DECAY), np.random.default_rng(0)
    times = np.arange(60, 3000, 60)
    signal = np.zeros((1, 3000))
    signal[0, times] = 12.0  # in units of the noise
    signal = np.array([np.convolve(signal[0], transient.own)[:3000]]) + rng.standard_normal((1, 3000))
    found = infer_events(seen(signal), decay_s=DECAY, baseline_s=None, least_sd=1.0)
    step = found.provenance["steps"][-1]
    assert step["least_dff"] >= 2.9 * step["noise"], "all that is smaller is noise, and the residual says so"
    np.testing.assert_array_equal(np.unique(np.floor(found.spike_time * 30)), times)


def test_negative_traces_still_have_their_jumps() -> None:
    truth = sparse()
    low = infer_events(seen(truth.signal - 5.0), decay_s=DECAY, rise_s=RISE)
    np.testing.assert_array_equal(low.spike_time, infer_events(truth, decay_s=DECAY, rise_s=RISE).spike_time)


def test_the_recording_is_one_of_events_and_says_how() -> None:
    truth = sparse(seconds=20.0)
    found = cleaning.clean(truth, [{"infer_events": {"decay_s": DECAY, "rise_s": RISE, "baseline_s": 10}}])
    assert (found.sfreq, found.signal, found.duration) == (None, None, 20.0)
    assert found.segments.tolist() == [[0, 20_000]], "milliseconds"
    assert (found.modality, found.channels.unit[0], truth.channels.unit[0]) == ("calcium", "events", "1")
    assert set(found.aligned) == {"velocity", "position", DFF, AMPLITUDE}
    np.testing.assert_allclose(found.aligned[DFF].values, truth.signal.T, rtol=1e-6)
    assert found.reach_s == pytest.approx(12 + 5 * DECAY)
    step = found.provenance["steps"][-1]
    assert (step["step"], step["decay_s"], step["decay_from"]) == ("infer_events", DECAY, "given")
    assert step["events"] == len(found.spike_time) > 0
    assert len(truth.provenance["steps"]) == len(found.provenance["steps"]) - 1
    with pytest.raises(ValueError, match="no signal to filter"):
        cleaning.clean(truth, [{"infer_events": {"decay_s": DECAY}}, {"lowpass": {"edge_hz": 5}}])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"decay_s": 0.0}, "decay_s 0; expected a number above 0"),
        ({"decay_s": 0.1, "rise_s": 0.2}, "rise_s 0.2 of a decay of 0.1 s; indicators rise faster"),
        ({"percentile": 100.0}, "percentile 100; expected 0 or more, and between 0 and 100"),
        ({"least_sd": -1.0}, "least_sd -1"),
        ({"baseline_s": -1.0}, "baseline_s -1"),
    ],
)
def test_impossible_parameters_are_refused(wrong: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        infer_events(seen(np.ones((1, 40))), **wrong)


def test_only_df_over_f_is_taken() -> None:
    with pytest.raises(ValueError, match="is without a signal; events are inferred from dF/F"):
        infer_events(spikes.simulate(np.random.default_rng(0), neurons=2, duration_s=5.0))
    other = seen(np.ones((1, 40)))
    other.modality = "fmri"
    with pytest.raises(ValueError, match="is of modality fmri; events are inferred from dF/F"):
        infer_events(other)
