"""The fused filter equals MNE's steps in the interior, gives the same samples however it is sliced, and stays lazy."""

from __future__ import annotations

import pickle
from fractions import Fraction

import mne
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfm.modalities import filters
from brainfm.recording import Channels, Recording


class Counted:
    """A signal that lies elsewhere: it says how much of it was asked for at once."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.most, self.shape = values, 0, values.shape

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key):
        got = self.values[key]
        self.most = max(self.most, got.shape[1])
        return got


def recording(signal, sfreq, **more):
    return Recording(
        "toy",
        "1",
        "eeg",
        Channels.make([f"c{i}" for i in range(len(signal))], "eeg"),
        sfreq=sfreq,
        signal=signal,
        **more,
    )


def like_eeg(rng, channels, samples):
    """Noise that falls off with frequency as EEG does, 20 uV, on an offset of its own for each channel."""
    spectrum = rng.standard_normal((channels, samples // 2 + 1, 2)) @ np.array([1, 1j])
    signal = np.fft.irfft(spectrum / np.maximum(np.arange(samples // 2 + 1), 30), samples)
    return 2e-5 * signal / signal.std() + 1e-3 * rng.standard_normal((channels, 1))


def by_mne(signal, sfreq, new, highpass, lowpass, notch, turns=3):
    """Notch, band-pass and resampling as three calls of MNE, each over the whole signal in float64.

    The padding of the last is a number that leaves whole samples at the new rate: MNE's default does not.
    """
    if notch:
        signal = mne.filter.notch_filter(signal, sfreq, np.arange(notch, sfreq / 2 - 1, notch), verbose="error")
    if highpass or lowpass:
        signal = mne.filter.filter_data(signal, sfreq, highpass, lowpass, verbose="error")
    if new:
        down = filters.rational(new, sfreq).denominator
        whole = (n for n in range(turns * 6000, 10**6) if n % down == 0 and (signal.shape[1] + 2 * n) % down == 0)
        signal = mne.filter.resample(signal, up=new, down=sfreq, npad=next(whole), verbose="error")
    return signal


def rms(values):
    return np.sqrt(np.mean(values**2))


CHAINS = {
    "the benchmark's": (512.0, 256.0, 0.5, 100.0, 50.0),
    "eegmat": (500.0, 128.0, 0.5, 45.0, None),
    "up": (100.0, 250.0, 0.5, 30.0, None),
    "odd ratio": (360.0, 200.0, 1.0, 60.0, 60.0),
    "high-pass alone": (250.0, None, 1.0, None, None),
    "notch alone": (250.0, None, None, None, 50.0),
}


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("chain", CHAINS)
def test_equals_mne_in_the_interior(chain: str, where: str) -> None:
    sfreq, new, *edges = CHAINS[chain]
    signal = like_eeg(np.random.default_rng(0), 11, round(150 * sfreq))
    given = signal if where == "memory" else Counted(signal)
    done = filters.condition(
        recording(given, sfreq), sfreq_hz=new, highpass_hz=edges[0], lowpass_hz=edges[1], notch_hz=edges[2]
    )
    expected = by_mne(signal, sfreq, new, *edges)
    got = done.signal[:, 0 : done.signal.shape[1]]
    assert got.shape == expected.shape
    inside = slice(round(done.reach_s * done.sfreq), -round(done.reach_s * done.sfreq))
    spread = (expected - expected.mean(1)[:, None])[:, inside].std()
    other = by_mne(signal, sfreq, new, *edges, turns=1)
    assert rms((got - expected)[:, inside]) < max(1e-5 * spread, rms((other - expected)[:, inside]))
    assert rms(got - expected) < 2e-5 * spread
    assert got.dtype == (np.float64 if where == "memory" else np.float32)


def test_white_noise_differs_from_mne_as_mne_does_from_itself() -> None:
    """What stands just below the new Nyquist frequency depends on the padding, with MNE as with us."""
    signal = 2e-5 * np.random.default_rng(0).standard_normal((4, 150 * 512))
    chain = {"sfreq_hz": 256, "highpass_hz": 0.5, "lowpass_hz": 100, "notch_hz": 50}
    done = filters.condition(recording(signal, 512.0), **chain)
    one, other = (by_mne(signal, 512.0, 256, 0.5, 100, 50, turns) for turns in (0, 3))
    inside = slice(round(done.reach_s * 256), -round(done.reach_s * 256))
    assert rms((done.signal - one)[:, inside]) < 1.5 * rms((other - one)[:, inside])
    assert rms((done.signal - one)[:, inside]) < 5e-5 * one.std()


def test_an_offset_of_a_thousand_times_the_signal_does_no_harm() -> None:
    rng = np.random.default_rng(1)
    signal = 1e-5 * rng.standard_normal((2, 60_000))
    plain = filters.condition(recording(Counted(signal), 500.0), highpass_hz=1).signal[:, 0:60_000]
    shifted = filters.condition(recording(Counted(signal + 0.25), 500.0), highpass_hz=1).signal[:, 0:60_000]
    assert np.sqrt(np.mean((plain - shifted) ** 2)) < 1e-5 * 1e-5


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 12_000), st.integers(1, 6000), st.sampled_from([(500, 128), (512, 256), (200, 500), (250, None)]))
def test_a_slice_is_part_of_the_whole(start: int, length: int, rates: tuple[int, int | None]) -> None:
    signal = 1e-5 * np.random.default_rng(2).standard_normal((9, 40_000))
    segments = np.array([[0, 17_000], [17_100, 40_000]])
    rec = recording(Counted(signal), float(rates[0]), segments=segments)
    lazy = filters.condition(rec, sfreq_hz=rates[1], highpass_hz=1, lowpass_hz=40).signal
    whole = lazy[:, 0 : lazy.shape[1]]
    stop = min(start + length, lazy.shape[1])
    got = pickle.loads(pickle.dumps(lazy))[:, start:stop] if length % 7 == 0 else lazy[:, start:stop]
    np.testing.assert_allclose(got, whole[:, start:stop], atol=1e-4 * 1e-5)


def test_nothing_is_read_but_a_block() -> None:
    signal = Counted(np.random.default_rng(3).standard_normal((2, 1_000_000)).astype(np.float32))
    lazy = filters.condition(recording(signal, 500.0), sfreq_hz=125, highpass_hz=0.5, lowpass_hz=40).signal
    for start in range(0, lazy.shape[1], lazy.block):
        lazy[:, start : start + lazy.block]
    assert signal.most <= 2 * filters.BLOCK


def test_segments_are_filtered_each_by_itself() -> None:
    signal = 1e-5 * np.random.default_rng(4).standard_normal((2, 9000))
    segments = np.array([[0, 4000], [4000, 9000]])
    whole = filters.condition(recording(signal, 250.0, segments=segments), highpass_hz=1, sfreq_hz=125).signal
    alone = filters.condition(recording(signal[:, 4000:], 250.0), highpass_hz=1, sfreq_hz=125).signal
    np.testing.assert_allclose(whole[:, 2000:], alone, atol=1e-18)


def test_ends_of_segments_are_those_of_mne_too() -> None:
    signal = 1e-5 * np.random.default_rng(5).standard_normal((3, 50_000))
    done = filters.condition(recording(signal, 250.0), highpass_hz=1, lowpass_hz=40, notch_hz=50)
    np.testing.assert_allclose(done.signal, by_mne(signal, 250.0, None, 1, 40, 50), atol=1e-17)


def test_a_low_pass_against_aliasing_is_added_where_it_is_needed() -> None:
    def names(**asked: float) -> list[str]:
        return [s["step"] for s in filters.design(500.0, **asked).steps]

    assert names(sfreq_hz=128) == ["antialias", "resample"]
    assert names(sfreq_hz=128, lowpass_hz=60) == ["band", "antialias", "resample"]
    assert names(sfreq_hz=128, lowpass_hz=45) == ["band", "resample"]
    time = np.arange(20_000) / 500
    done = filters.condition(recording(np.sin(2 * np.pi * 100 * time)[None], 500.0), sfreq_hz=128)
    assert np.abs(done.signal[:, 200:-200]).max() < 3e-3  # the Hamming window's stop band, and no alias at 28 Hz


def test_ratios() -> None:
    assert filters.rational(128, 500) == Fraction(32, 125)
    with pytest.raises(ValueError, match="rounder rate"):
        filters.rational(128.0123, 500)


def test_a_rate_without_a_ratio_is_left_to_mne() -> None:
    signal = like_eeg(np.random.default_rng(6), 3, 25_000)
    done = filters.condition(recording(Counted(signal), 250.0), sfreq_hz=128.0123, highpass_hz=1)
    expected = mne.filter.filter_data(signal, 250.0, 1, None, verbose="error")
    expected = mne.filter.resample(expected, up=128.0123, down=250.0, verbose="error")
    np.testing.assert_allclose(done.signal, expected, atol=1e-10)
    assert done.sfreq == 128.0123
    assert done.provenance["steps"][-1]["method"] == "mne.filter.resample"
    assert done.reach_s == 100  # every sample of the FFT of a whole depends on every other
