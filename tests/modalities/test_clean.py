"""Cleaning equals MNE and scipy, works on each segment by itself and says what it did."""

import mne
import numpy as np
import pytest
from scipy.signal import detrend, resample_poly

from brainfm.modalities import eeg, fmri, meg
from brainfm.recording import Channels, Recording


def recording(signal, sfreq, kind="eeg", modality="eeg", **more):
    names = [f"c{i}" for i in range(len(signal))]
    return Recording("toy", "1", modality, Channels.make(names, kind), sfreq=sfreq, signal=signal, **more)


@pytest.fixture
def noise():
    return 1e-5 * np.random.default_rng(0).normal(size=(3, 5000))


@pytest.mark.parametrize("modality", [eeg, meg])
def test_equals_mne(noise, modality):
    done = modality.clean(recording(noise, 250.0), sfreq_hz=100, highpass_hz=1, lowpass_hz=40, notch_hz=50)
    expected = mne.filter.notch_filter(noise, 250.0, [50, 100], verbose="error")
    expected = mne.filter.filter_data(expected, 250.0, 1, 40, verbose="error")
    expected = mne.filter.resample(expected, up=100.0, down=250.0, npad=5000, verbose="error")
    np.testing.assert_allclose(done.signal[:, 100:-100], expected[:, 100:-100], atol=1e-8)
    assert done.sfreq == 100
    assert done.duration == pytest.approx(20)
    assert [s["step"] for s in done.provenance["steps"]] == ["notch", "band", "resample"]


def test_input_is_left_alone(noise):
    rec = recording(noise.copy(), 250.0)
    eeg.clean(rec, highpass_hz=1)
    np.testing.assert_array_equal(rec.signal, noise)
    assert rec.provenance["steps"] == []


def test_nothing_crosses_a_break(noise):
    segments = np.array([[0, 2000], [2000, 5000]])
    first = eeg.clean(recording(noise, 250.0, segments=segments), sfreq_hz=125, highpass_hz=1, lowpass_hz=40)
    changed = noise.copy()
    changed[:, 2000:] = 1.0
    second = eeg.clean(recording(changed, 250.0, segments=segments), sfreq_hz=125, highpass_hz=1, lowpass_hz=40)
    np.testing.assert_array_equal(first.segments, [[0, 1000], [1000, 2500]])
    np.testing.assert_array_equal(first.signal[:, :1000], second.signal[:, :1000])


def test_a_resampled_sine_keeps_its_shape():
    time = np.arange(5000) / 500
    done = eeg.clean(recording(np.sin(2 * np.pi * 10 * time)[None], 500.0), sfreq_hz=128)
    expected = np.sin(2 * np.pi * 10 * np.arange(done.signal.shape[1]) / 128)
    np.testing.assert_allclose(done.signal[0, 64:-64], expected[64:-64], atol=0.01)


def test_short_segments(noise):
    segments = np.array([[0, 4500], [4600, 4700]])
    done = eeg.clean(recording(noise, 250.0, segments=segments), highpass_hz=0.5)
    np.testing.assert_array_equal(done.segments, [[0, 4500]])
    assert not done.signal[:, 4500:].any()
    assert done.provenance["steps"][-1]["count"] == 1
    with pytest.raises(ValueError, match=r"need segments of 6\.60 s.*0\.40 s"):
        eeg.clean(recording(noise, 250.0, segments=segments[1:]), highpass_hz=0.5)


@pytest.mark.parametrize(
    "wrong", [{"highpass_hz": 130}, {"lowpass_hz": 60, "sfreq_hz": 100}, {"highpass_hz": 30, "lowpass_hz": 20}]
)
def test_edges_outside_the_band(noise, wrong):
    with pytest.raises(ValueError, match=r"highpass_hz|lowpass_hz"):
        eeg.clean(recording(noise, 250.0), **wrong)


class TestFmri:
    def series(self):
        rng = np.random.default_rng(1)
        return 9000 + 30 * rng.normal(size=(4, 300)).cumsum(1) + np.arange(300)

    def test_equals_scipy(self):
        values = self.series()
        done = fmri.clean(recording(values, 1 / 0.72, "region", "fmri"), tr_s=2.0)
        expected = resample_poly(detrend(values, axis=1), 9, 25, axis=1, padtype="line")
        expected = (expected - expected.mean(1, keepdims=True)) / expected.std(1, keepdims=True)
        np.testing.assert_allclose(done.signal, expected, atol=1e-9)
        assert done.sfreq == 0.5

    def test_unit_spread_and_no_trend(self):
        done = fmri.clean(recording(self.series(), 0.5, "region", "fmri"))
        np.testing.assert_allclose(done.signal.mean(1), 0, atol=1e-9)
        np.testing.assert_allclose(done.signal.std(1), 1, atol=1e-9)
        assert [s["step"] for s in done.provenance["steps"]] == ["detrend", "standardise"]

    def test_band(self):
        rng = np.random.default_rng(2)
        done = fmri.clean(
            recording(rng.normal(size=(3, 1000)), 0.5, "region", "fmri"), highpass_hz=0.01, lowpass_hz=0.1
        )
        power, frequency = np.abs(np.fft.rfft(done.signal)) ** 2, np.fft.rfftfreq(1000, 2)
        assert power[:, frequency > 0.15].sum() < 0.01 * power.sum()

    def test_flat_region_is_bad_and_nan_is_refused(self):
        values = self.series()
        values[2] = 7.0
        done = fmri.clean(recording(values, 0.5, "region", "fmri"))
        assert done.channels.bad.tolist() == [False, False, True, False]
        assert not done.signal[2].any()
        values[1, 5] = np.nan
        with pytest.raises(ValueError, match="c1"):
            fmri.clean(recording(values, 0.5, "region", "fmri"))

    def test_simulated_people_differ_and_stay_themselves(self):
        def connectivity(subject, seed):
            made = fmri.simulate(np.random.default_rng(seed), subject=subject, regions=30)
            assert made.simulated
            return np.corrcoef(made.signal)[np.triu_indices(30, 1)], made

        people = ["00", "01", "02", "03"]
        first = [connectivity(p, i)[0] for i, p in enumerate(people)]
        second = [connectivity(p, 100 + i)[0] for i, p in enumerate(people)]
        alike = np.corrcoef(first, second)[:4, 4:]
        assert (alike.argmax(1) == np.arange(4)).all()
        values, made = connectivity("00", 5)
        assert np.corrcoef(values, made.truth["connectivity"][np.triu_indices(30, 1)])[0, 1] > 0.7
