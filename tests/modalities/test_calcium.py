"""Calcium: the baseline against a slow loop, cleaning, and a simulator whose transients follow its spikes."""

import numpy as np
import pytest

from brainfm.modalities import calcium, spikes
from brainfm.recording import Recording


def test_df_over_f_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    time = np.arange(3000) / 10
    slow = 100 + 20 * np.sin(2 * np.pi * time / 600)
    fluorescence = slow * (1 + 0.02 * rng.standard_normal((3, 3000)))
    fluorescence[:, 500:510] *= 2
    found = calcium.dff(fluorescence, 10.0, window_s=60.0, percentile=8.0)
    loop = np.empty_like(fluorescence)
    for row in range(3):
        for i in range(3000):
            base = np.percentile(fluorescence[row, max(0, i - 300) : i + 301], 8)
            loop[row, i] = fluorescence[row, i] / base - 1
    np.testing.assert_allclose(found, loop, atol=0.01)
    assert found[:, 500:510].mean() == pytest.approx(1.0, abs=0.15)


def test_a_constant_is_zero_and_a_baseline_that_is_not_positive_is_nan() -> None:
    found = calcium.dff(np.array([[5.0] * 100, [0.0] * 100, [-3.0] * 100]), 10.0)
    np.testing.assert_array_equal(found[0], 0)
    assert np.isnan(found[1:]).all()


@pytest.mark.parametrize("wrong", [{"sfreq": 0.0}, {"window_s": -1.0}, {"percentile": 101.0}])
def test_impossible_parameters_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected a rate and a window above 0"):
        calcium.dff(np.ones((2, 10)), **{"sfreq": 10.0, **wrong})
    with pytest.raises(ValueError, match=r"shape \(10,\); expected \(neuron, time\)"):
        calcium.dff(np.ones(10), 10.0)


def small(**changed: object) -> Recording:
    return calcium.simulate(np.random.default_rng(3), neurons=12, duration_s=40.0, **changed)


def test_the_simulator_shows_its_spikes() -> None:
    found = small()
    assert (found.modality, found.simulated, found.channels.unit[0]) == ("calcium", True, calcium.UNIT)
    assert found.signal.shape == (12, 400)
    assert {"position", "velocity"} == set(found.aligned)
    assert len(found.events)
    time, neuron = found.truth["spike_time"], found.truth["spike_neuron"]
    counts = np.stack([np.histogram(time[neuron == i], np.arange(401) / 10)[0] for i in range(12)])
    kernel = np.exp(-np.arange(40) / 6)
    trace = np.stack([np.convolve(c, kernel)[:400] for c in counts])
    own = [np.corrcoef(a, b)[0, 1] for a, b in zip(trace, found.signal, strict=True)]
    other = [np.corrcoef(a, b)[0, 1] for a, b in zip(trace, np.roll(found.signal, 1, 0), strict=True)]
    assert min(own) > 0.8
    assert np.mean(other) < np.mean(own) - 0.3


def test_one_spike_leaves_one_transient_of_its_height() -> None:
    firing = spikes.simulate(np.random.default_rng(0), neurons=1, duration_s=20.0)
    firing.spike_time, firing.spike_neuron = np.array([10.0]), np.array([0])
    found = calcium.observe(np.random.default_rng(0), firing, sfreq_hz=50.0, noise=0.0)
    trace = found.signal[0]
    np.testing.assert_allclose(trace[:500], 0, atol=1e-12)
    assert trace.max() == pytest.approx(found.truth["amplitude"][0], rel=0.01)
    assert 10.0 < trace.argmax() / 50 < 10.4
    assert trace[(13 * 50)] == pytest.approx(0, abs=0.02)


def test_a_saturating_indicator_shows_less_of_more() -> None:
    firing = spikes.simulate(np.random.default_rng(0), neurons=1, duration_s=20.0)
    firing.spike_time, firing.spike_neuron = np.array([5.0, *[15.0] * 8]), np.zeros(9, int)

    def peaks(saturation: float | None) -> tuple[float, float]:
        made = calcium.observe(np.random.default_rng(0), firing, sfreq_hz=50.0, noise=0.0, saturation=saturation)
        return made.signal[0, :500].max(), made.signal[0, 500:].max()

    one, eight = peaks(None)
    assert eight == pytest.approx(8 * one, rel=1e-6)
    low, high = peaks(2.0)
    assert low == pytest.approx(one / (1 + one / 2), rel=0.01)
    assert high == pytest.approx(eight / (1 + eight / 2), rel=0.01)
    assert peaks(1e9) == pytest.approx((one, eight))
    for wrong in ({"saturation": 0.0}, {"rise_s": 0.7}, {"rise_s": 0.0}):
        with pytest.raises(ValueError, match="expected a rise above 0 and shorter than the decay"):
            calcium.observe(np.random.default_rng(0), firing, **wrong)


def test_simulation_is_repeatable_and_differs_between_seeds() -> None:
    np.testing.assert_array_equal(small().signal, small().signal)
    other = calcium.simulate(np.random.default_rng(4), neurons=12, duration_s=40.0)
    assert not np.allclose(other.signal, small().signal)


def test_cleaning_resamples_and_says_so() -> None:
    found = small()
    cleaned = calcium.clean(found, sfreq_hz=5.0)
    assert np.shape(cleaned.signal) == (12, 200)
    assert cleaned.sfreq == 5.0
    assert [s["step"] for s in cleaned.provenance["steps"]][-1] == "resample"
    assert len(found.provenance["steps"]) == 2
    mean = np.asarray(cleaned.signal[:, 5:195]).mean(1)
    np.testing.assert_allclose(mean, found.signal[:, 10:390].mean(1), rtol=0.05)
    with pytest.raises(ValueError, match="of modality spikes; expected calcium"):
        calcium.clean(spikes.simulate(np.random.default_rng(0), neurons=2, duration_s=5.0))


def test_only_simulated_spikes_are_observed() -> None:
    with pytest.raises(ValueError, match="expected simulated spikes"):
        calcium.observe(np.random.default_rng(0), small())
