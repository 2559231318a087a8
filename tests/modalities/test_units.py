"""Units become SI, and a recording whose numbers cannot be in its unit is refused with the factor."""

import numpy as np
import pytest

from brainfm.modalities import eeg, meg, units
from brainfm.recording import TYPICAL, UNITS, Channels, Recording


def recording(signal, kinds="eeg", sfreq=250.0, **more):
    table = Channels.make([f"c{i}" for i in range(len(signal))], kinds)
    return Recording("toy", "1", "eeg", table, sfreq=sfreq, signal=signal, **more)


class Lazy:
    """A long signal that counts what is read of it."""

    def __init__(self, channels, samples):
        self.shape, self.read = (channels, samples), 0

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        first, last = key[1].start, key[1].stop
        self.read += last - first
        return 1e-5 * np.random.default_rng(first).standard_normal((self.shape[0], last - first))


@pytest.mark.parametrize(
    ("unit", "kind", "expected"),
    [
        ("uV", "eeg", 1e-6), ("µV", "seeg", 1e-6), ("μV", "ecog", 1e-6), ("microvolts", "eeg", 1e-6),
        ("UV", "eeg", 1e-6), ("mV", "eeg", 1e-3),
        ("nV", "eeg", 1e-9), (" V ", "eeg", 1.0), ("Volt", "eeg", 1.0), ("fT", "mag", 1e-15),
        ("pT", "axial", 1e-12), ("T", "mag", 1.0), ("tesla", "mag", 1.0), ("T/m", "grad", 1.0),
        ("fT/cm", "grad", 1e-13), ("1", "region", 1.0), ("spikes", "neuron", 1.0),
    ],
)  # fmt: skip
def test_factor(unit, kind, expected):
    assert units.factor(unit, kind) == pytest.approx(expected, rel=1e-12)


def test_units_of_another_kind_are_refused():
    with pytest.raises(
        ValueError, match=r"unit 'fT' for eeg channels, which are kept in V; expected one of V, mV, uV, nV"
    ):
        units.factor("fT", "eeg")
    with pytest.raises(ValueError, match=r"did you mean 'fT/cm'\?"):
        units.factor("FT cm", "grad")
    with pytest.raises(ValueError, match=r"unknown channel kind 'meg'"):
        units.factor("T", "meg")


def test_ranges_hold_the_typical_amplitudes():
    for kind, (low, high) in units.RANGES.items():
        assert 10 * low < TYPICAL[kind] < high / 10
        assert UNITS[kind] in units.SCALES


def test_simulated_recordings_are_plausible():
    rng = np.random.default_rng(0)
    assert set(units.plausible(eeg.simulate(rng, trials=4))) == {"eeg"}
    for array, kind in (("magnetometers", "mag"), ("planar", "grad"), ("axial", "axial")):
        assert set(units.plausible(meg.simulate(rng, array=array, trials=4))) == {kind}


def test_amplitude_is_the_standard_deviation_and_offsets_do_not_matter():
    signal = 2e-5 * np.random.default_rng(0).standard_normal((5, 20_000)) + 0.1
    assert units.plausible(recording(signal))["eeg"] == pytest.approx(2e-5, rel=0.02)


@pytest.mark.parametrize(
    ("kind", "size", "words"),
    [
        ("eeg", 1e6, r"microvolt read as volt \(factor 1e-6\); give unit='uV'"),
        ("eeg", 1e3, r"millivolt read as volt \(factor 1e-3\); give unit='mV'"),
        ("eeg", 1e-6, r"volt read as microvolt \(factor 1e6\); .*unit='V'"),
        ("seeg", 1e6, r"sEEG channels, which have between .*microvolt read as volt"),
        ("mag", 1e15, r"femtotesla read as tesla \(factor 1e-15\); give unit='fT'"),
        ("mag", 1e12, r"picotesla read as tesla \(factor 1e-12\); give unit='pT'"),
        ("grad", 1e13, r"fT/cm read as T/m \(factor 1e-13\); give unit='fT/cm'"),
        ("eeg", 1e14, r"no other unit explains it"),
    ],
)
def test_wrong_units_are_refused_with_the_factor(kind, size, words):
    signal = size * TYPICAL[kind] * np.random.default_rng(0).standard_normal((4, 5000))
    with pytest.raises(ValueError, match=rf"^toy/1//: signal of .*{words}"):
        units.plausible(recording(signal, kind))


def test_each_kind_is_checked_by_itself():
    signal = np.random.default_rng(0).standard_normal((4, 5000)) * [[1e-5], [1e-5], [50.0], [50.0]]
    with pytest.raises(ValueError, match="magnetometer"):
        units.plausible(recording(signal, ["eeg", "eeg", "mag", "mag"]))
    assert set(units.plausible(recording(signal, ["eeg", "eeg", "misc", "region"]))) == {"eeg"}


def test_flat_and_broken_recordings():
    with pytest.raises(ValueError, match=r"all 3 EEG channels are constant in all of the 20 stretches"):
        units.plausible(recording(np.full((3, 50_000), 0.1)))
    with pytest.raises(ValueError, match="no EEG channel has only finite values"):
        units.plausible(recording(np.full((3, 5000), np.nan)))


def test_flat_channels_and_padding_do_not_hide_the_unit():
    signal = 10 * np.random.default_rng(0).standard_normal((10, 20_000))
    signal[:6] = 0
    signal[:, 5000:] = 0
    signal[9, 10] = np.nan
    with pytest.raises(ValueError, match="microvolt read as volt"):
        units.plausible(recording(signal))
    assert units.plausible(recording(signal * 1e-6))["eeg"] == pytest.approx(1e-5, rel=0.05)


def test_coarse_steps_are_not_flat():
    signal = np.zeros((2, 5000))
    signal[:, ::10] = 1e-4
    assert 1e-5 < units.plausible(recording(signal))["eeg"] < 1e-4


def test_bad_channels_are_not_asked():
    rec = recording(np.random.default_rng(0).standard_normal((5, 5000)) * [[1e-5], [1e-5], [1], [1], [1]])
    with pytest.raises(ValueError, match="read as volt"):
        units.plausible(rec)
    rec.channels.bad[2:] = True
    units.plausible(rec)


def test_little_is_read_of_a_long_signal():
    lazy = Lazy(3, 24 * 3600 * 250)
    units.plausible(recording(lazy))
    assert lazy.read == 20 * 2 * 250


def test_windows_are_spread_and_cross_no_break():
    parts = units.spread(1000, 100, 5)
    assert parts[0] == (0, 100)
    assert parts[-1] == (900, 1000)
    assert len(parts) == 5
    segments = np.array([[0, 250], [250, 300], [600, 2000]])
    parts = units.spread(1000, 100, 100, segments)
    assert parts == [(0, 100), (100, 200), (250, 300), (600, 700), (700, 800), (800, 900), (900, 1000)]
    assert units.spread(0, 100, 5) == []


def test_trials_in_memory():
    """Said as of a recording; the median of many trials counts, flat and bad channels do not."""
    table = Channels.make(["a", "b", "c"], "eeg")
    signal = 1e-5 * np.random.default_rng(0).standard_normal((50, 3, 64))
    assert units.implausible(signal, table) == ""
    assert units.implausible(np.zeros((5, 3, 64)), table) == ""
    signal[:5] *= 1e6
    assert units.implausible(signal, table) == ""
    said = units.implausible(1e6 * signal[5:], table, "take {unit}, {factor}")
    assert said.endswith("microvolt read as volt (factor 1e-6); take uV, 1e-6")
    assert units.implausible(300 * signal[5:], table) != units.implausible(300 * signal[5:], table, beyond=10.0) == ""
    signal[5:, 0] *= 1e6
    table.bad[0] = True
    assert units.implausible(signal, table) == ""
