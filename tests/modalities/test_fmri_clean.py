"""Joint regression of fMRI equals nilearn and a plain least squares, and filtering brings no artefact back."""

import numpy as np
import pytest
from scipy.fft import dct
from scipy.signal import butter, sosfiltfilt

from brainfm.modalities import fmri
from brainfm.recording import Channels, Recording, Series

TR = 2.0


def series(signal, **aligned):
    names = [f"r{i}" for i in range(len(signal))]
    made = {name: Series(np.asarray(values, float), 1 / TR, "1") for name, values in aligned.items()}
    return Recording("toy", "1", "fmri", Channels.make(names, "region"), sfreq=1 / TR, signal=signal, aligned=made)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def run(rng):
    """Six regions with a mean and drift, and four confounds of which one drifts."""
    signal = 9000 + 30 * rng.normal(size=(6, 240)).cumsum(1)
    confounds = rng.normal(size=(240, 4))
    confounds[:, 0] = confounds[:, 0].cumsum() + 500
    signal += np.outer(rng.normal(size=6), 10 * confounds[:, 0])
    return signal, confounds


@pytest.mark.parametrize("drift_s", [60.0, 128.0, 400.0])
def test_equals_nilearn(run, drift_s):
    nilearn = pytest.importorskip("nilearn.signal")
    signal, confounds = run
    done = fmri.clean(series(signal, confounds=confounds), drift_s=drift_s, standardise=False)
    expected = nilearn.clean(
        signal.T, confounds=confounds, filter="cosine", high_pass=1 / drift_s, t_r=TR, detrend=True, standardize=None
    )
    np.testing.assert_allclose(done.signal, expected.T, atol=1e-8)
    alone = fmri.clean(series(signal), drift_s=drift_s, standardise=False)
    expected = nilearn.clean(signal.T, filter="cosine", high_pass=1 / drift_s, t_r=TR, detrend=True, standardize=None)
    np.testing.assert_allclose(alone.signal, expected.T, atol=1e-8)


def test_censored_volumes_equal_a_plain_least_squares(run, rng):
    signal, confounds = run
    censored = rng.random(240) < 0.2
    signal[:, censored] += 1e4 * rng.normal(size=(6, censored.sum()))
    done = fmri.clean(series(signal, confounds=confounds, censored=censored[:, None]), drift_s=100.0, standardise=False)
    time = np.arange(240)
    cosines = [np.cos(np.pi * (time + 0.5) * k / 240) for k in range(1, int(2 * 240 * TR / 100.0) + 1)]
    design = np.column_stack([np.ones(240), time, *cosines, confounds])
    weights = np.linalg.lstsq(design[~censored], signal[:, ~censored].T, rcond=None)[0]
    residual = signal - (design @ weights).T
    np.testing.assert_allclose(done.signal, residual, atol=1e-6)
    np.testing.assert_array_equal(done.aligned["censored"].values[:, 0] > 0, censored)
    assert done.signal.shape == signal.shape
    other = signal.copy()
    other[:, censored] = 0.0
    again = fmri.clean(series(other, confounds=confounds, censored=censored[:, None]), drift_s=100.0)
    once = fmri.clean(series(signal, confounds=confounds, censored=censored[:, None]), drift_s=100.0)
    np.testing.assert_allclose(again.signal[:, ~censored], once.signal[:, ~censored], atol=1e-9)
    np.testing.assert_allclose(once.signal[:, ~censored].std(1), 1, atol=1e-9)
    (step,) = [s for s in once.provenance["steps"] if s["step"] == "regress"]
    assert step["censored_volumes"] == censored.sum()
    assert step["degrees_of_freedom"] == [(~censored).sum() - np.linalg.matrix_rank(design[~censored])]


def test_a_planted_confound_is_gone_though_the_band_is_passed(rng):
    """Filtering after a regression brings the confound back; the joint fit does not."""
    drift = np.linspace(-1, 1, 240) ** 2
    planted = drift + 0.3 * rng.normal(size=240)
    censored = np.zeros(240, bool)
    censored[[0, 1, 50, 51, 120]] = True
    signal = rng.normal(size=(6, 240)) + 20 * planted
    band = {"highpass_hz": 0.01, "lowpass_hz": 0.1}
    done = fmri.clean(series(signal, confounds=planted[:, None], censored=censored[:, None]), drift_s=128.0, **band)
    for what in (planted, drift):
        beside = [np.corrcoef(row[~censored], what[~censored])[0, 1] for row in done.signal]
        assert np.abs(beside).max() < (1e-10 if what is planted else 0.05)
    design = np.column_stack([np.ones(240), planted])
    apart = signal - (design @ np.linalg.lstsq(design, signal.T, rcond=None)[0]).T
    apart = sosfiltfilt(butter(4, [0.01, 0.1], "bandpass", fs=1 / TR, output="sos"), apart, axis=1)
    assert max(abs(np.corrcoef(row, planted)[0, 1]) for row in apart) > 1e-4


def test_only_the_band_is_left(rng):
    signal = rng.normal(size=(5, 400))
    done = fmri.clean(series(signal, confounds=rng.normal(size=(400, 3))), highpass_hz=0.02, lowpass_hz=0.1)
    frequency = np.arange(400) / (2 * 400 * TR)
    power = dct(done.signal, axis=1, norm="ortho") ** 2
    outside = (frequency < 0.02) | (frequency > 0.1)
    assert power[:, outside].sum() < 1e-18 * power.sum()


def test_spike_and_constant_confounds_change_nothing(run):
    signal, _ = run
    censored = np.zeros((240, 1))
    censored[17] = 1
    plain = fmri.clean(series(signal, censored=censored))
    more = fmri.clean(series(signal, censored=censored, confounds=np.hstack([censored, np.full((240, 1), 0.1)])))
    np.testing.assert_allclose(more.signal, plain.signal, atol=1e-9)


def test_a_new_tr_takes_the_mask_along_and_no_censored_value(run):
    signal, _ = run
    censored = np.zeros((240, 1))
    censored[100:103] = 1
    wild = signal.copy()
    wild[:, 100:103] += 1e6
    first, second = (fmri.clean(series(s, censored=censored), tr_s=3.0) for s in (signal, wild))
    np.testing.assert_allclose(first.signal, second.signal, atol=1e-6)
    mask = first.aligned["censored"]
    assert mask.sfreq == pytest.approx(1 / 3)
    assert len(mask.values) == first.signal.shape[1] == 160
    # volumes at 3 s lie between those at 2 s: 198 and 207 s touch nothing, 200 to 204 s are censored
    np.testing.assert_array_equal(np.flatnonzero(mask.values[:, 0]) * 3.0, [201.0, 204.0])


def test_without_confounds_nothing_is_regressed(run):
    signal, confounds = run
    plain = fmri.clean(series(signal), highpass_hz=0.01)
    off = fmri.clean(
        series(signal, confounds=confounds, censored=np.zeros((240, 1))), highpass_hz=0.01, confounds=False
    )
    assert plain.signal.tobytes() == off.signal.tobytes()
    assert plain.provenance == off.provenance
    assert [s["step"] for s in plain.provenance["steps"]] == ["detrend", "band", "standardise"]


def test_segments_are_fitted_apart(run):
    signal, confounds = run
    segments = np.array([[0, 100], [120, 240]])
    changed = signal.copy()
    changed[:, 120:] *= 3.0
    done = []
    for values in (signal, changed):
        made = series(values, confounds=confounds)
        made.segments = segments
        done.append(fmri.clean(made, drift_s=128.0, standardise=False))
    inside = [d.signal[:, :100] - d.signal[:, :100].mean(1, keepdims=True) for d in done]
    np.testing.assert_allclose(inside[0], inside[1], atol=1e-9)
    assert not done[0].signal[:, 100:120].any()


@pytest.mark.parametrize(
    ("wrong", "keywords", "said"),
    [
        ({"confounds": np.zeros((239, 2))}, {}, r"confounds has shape \(239, 2\).*240 volumes"),
        ({"confounds": np.full((240, 2), np.nan)}, {}, "confounds is not finite"),
        ({"censored": np.ones((240, 1))}, {}, "0 degrees of freedom in 0 volumes"),
        ({}, {"highpass_hz": 0.1, "lowpass_hz": 0.101, "drift_s": 128.0}, "degrees of freedom.*widen the band"),
        ({}, {"drift_s": 3.0}, "drift_s is 3 s; expected above 4 s"),
    ],
)
def test_what_cannot_be_regressed(run, wrong, keywords, said):
    with pytest.raises(ValueError, match=said):
        fmri.clean(series(run[0], **wrong), **keywords)
