"""Planted bad channels are found, as PREP finds them, and good ones are left alone."""

import mne
import numpy as np
import pytest

from brainfm.modalities import bad_channels, eeg, meg
from brainfm.recording import Channels

FLAT, NOISY, UNLIKE, HALF, LOST = 3, 7, 11, 20, 25


@pytest.fixture(scope="module")
def clean():
    return eeg.simulate(np.random.default_rng(1), montage="biosemi32", trials=40)


@pytest.fixture(scope="module")
def planted(clean):
    rng, signal = np.random.default_rng(2), clean.signal.copy()
    n = signal.shape[1]
    signal[FLAT] = 1e-3
    signal[NOISY] += 2e-4 * rng.standard_normal(n)
    signal[UNLIKE] = 1e-5 * rng.standard_normal(n)
    signal[HALF, : n // 2] = 0
    return signal


def find(clean, signal, **more):
    return bad_channels.find(signal, clean.channels, clean.sfreq, **more)


def test_planted_bad_channels(clean, planted):
    signal = planted.copy()
    signal[LOST, 1000:1100] = np.nan
    bad = find(clean, signal)
    assert bad[FLAT] == "flat"
    assert bad[NOISY].startswith("louder than the others (robust z")
    assert bad[UNLIKE] == "correlation below 0.4 with the others in 100% of windows"
    assert bad[HALF] == "flat in 50% of windows"
    assert bad[LOST].startswith("values that are not finite in")
    assert len(set(bad) - {FLAT, NOISY, UNLIKE, HALF, LOST} - set(find(clean, clean.signal))) <= 1


def test_as_prep(clean, planted):
    pyprep = pytest.importorskip("pyprep")
    info = mne.create_info(clean.channels.name, clean.sfreq, "eeg", verbose="error")
    for signal in (clean.signal, planted):
        raw = mne.io.RawArray(signal, info, verbose="error")
        with mne.utils.use_log_level("error"):
            prep = pyprep.NoisyChannels(raw, random_state=0, ransac=False)
            prep.find_bad_by_deviation()
            prep.find_bad_by_correlation()
        prep_flat, prep_loud, prep_unlike, prep_dropped = (
            {clean.channels.name.index(c) for c in names}
            for names in (prep.bad_by_flat, prep.bad_by_deviation, prep.bad_by_correlation, prep.bad_by_dropout)
        )
        ours = find(clean, signal, correlation=None)
        assert {row for row, why in ours.items() if "flat" in why} == prep_flat | prep_dropped
        assert {row for row, why in ours.items() if "robust z" in why} == prep_loud
        only = find(clean, signal, deviation=None)
        unlike = {row for row, why in only.items() if "correlation" in why}
        # A channel near the limit may differ: PREP filters the whole recording, here each window is cut by itself.
        assert len(unlike ^ (prep_unlike - prep_dropped)) <= 1
        assert unlike & prep_unlike >= {row for row in (NOISY, UNLIKE) if signal is planted}


def test_deviation_scores_are_those_of_prep(clean, planted):
    pyprep = pytest.importorskip("pyprep")
    info = mne.create_info(clean.channels.name, clean.sfreq, "eeg", verbose="error")
    with mne.utils.use_log_level("error"):
        prep = pyprep.NoisyChannels(mne.io.RawArray(planted, info), random_state=0, ransac=False)
        prep.find_bad_by_deviation()
    expected = prep._extra_info["bad_by_deviation"]["robust_channel_deviations"][NOISY]
    got = float(find(clean, planted, correlation=None)[NOISY].split("robust z ")[1].rstrip(")"))
    assert got == pytest.approx(expected, rel=0.3)


def test_quiet_channels(clean):
    signal = clean.signal.copy()
    signal *= np.linspace(0.95, 1.05, 32)[:, None] * 1e-5 / signal.std(axis=1, keepdims=True)
    signal[5] *= 0.05
    assert "quieter than the others" in find(clean, signal, correlation=None)[5]


def test_channels_marked_bad_are_left_out(clean, planted):
    table = clean.channels.pick(np.arange(32))
    table.bad = np.isin(np.arange(32), [FLAT, NOISY])
    bad = bad_channels.find(planted, table, clean.sfreq)
    assert not {FLAT, NOISY} & set(bad)
    assert {UNLIKE, HALF} <= set(bad)


def test_kinds_are_judged_apart(clean):
    field = meg.simulate(np.random.default_rng(0), trials=40, sfreq_hz=128.0)
    n = min(clean.signal.shape[1], field.signal.shape[1])
    signal = np.concatenate([clean.signal[:, :n], field.signal[:, :n], np.zeros((1, n))])
    signal[35] = 0
    kinds = [*clean.channels.kind, *field.channels.kind, "misc"]
    table = Channels.make([f"c{i}" for i in range(len(kinds))], kinds)
    bad = bad_channels.find(signal, table, 128.0, correlation=None)
    assert bad[35] == "flat"
    assert len(signal) - 1 not in bad
    assert not [row for row, why in bad.items() if row < 32]


def test_no_more_than_a_window_is_read_at_once(clean, planted):
    class Lazy:
        shape, longest, total = planted.shape, 0, 0

        def __len__(self):
            return self.shape[0]

        def __getitem__(self, key):
            got = planted[key]
            self.longest, self.total = max(self.longest, got.shape[1]), self.total + got.shape[1]
            return got

    lazy = Lazy()
    assert {FLAT, NOISY, UNLIKE, HALF} <= set(find(clean, lazy, windows=40))
    assert lazy.longest == 128
    assert lazy.total == 40 * 128


def test_only_segments_are_looked_at(clean, planted):
    later = np.array([[planted.shape[1] // 2 + 200, planted.shape[1]]])
    bad = find(clean, planted, segments=later, share=0.1)
    assert HALF not in bad
    assert FLAT in bad


def test_a_gap_of_the_recording_is_no_fault_of_a_channel(clean):
    signal = clean.signal.copy()
    signal[:, -1280:] = 0
    assert not [why for why in find(clean, signal).values() if "flat" in why]
    signal[:] = 0
    assert set(find(clean, signal).values()) == {"flat"}


def test_few_channels_are_not_compared():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((3, 5000)) * [[1e-5], [1e-5], [1e-3]]
    table = Channels.make(["a", "b", "c"], "eeg")
    assert bad_channels.find(signal, table, 100.0) == {}
    with pytest.raises(ValueError, match=r"got a signal \(2, 5000\) for 3 channels"):
        bad_channels.find(signal[:2], table, 100.0)
    with pytest.raises(ValueError, match="has no window of 1 s"):
        bad_channels.find(signal[:, :2], table, 100.0)
