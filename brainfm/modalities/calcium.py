"""Calcium imaging: fluorescence of neurons as dF/F, the change relative to a slow baseline; dimensionless."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.signal import fftconvolve

from brainfm.modalities import spikes
from brainfm.modalities.filters import condition
from brainfm.recording import Channels, Recording

UNIT = "1"


def dff(fluorescence: np.ndarray, sfreq: float, window_s: float = 60.0, percentile: float = 8.0) -> np.ndarray:
    """`(F - F0) / F0`, where F0 is a running percentile of F over `window_s` around each sample.

    The percentile is taken at ten places a window, of the samples that the window holds there (fewer at both ends),
    and joined by straight lines; gaps (NaN) are left out and stay. A neuron whose baseline is not positive throughout
    has no dF/F: its row is NaN.

    Args:
        fluorescence: `(neuron, time)`, any unit with a true zero.
        sfreq: samples per second.
        window_s: length of the window; transients must be much shorter.
        percentile: 0 to 100.

    Raises:
        ValueError: for another shape, or a rate, window or percentile out of range.
    """
    fluorescence = np.asarray(fluorescence)
    if fluorescence.ndim != 2 or not fluorescence.shape[1]:
        raise ValueError(f"fluorescence has shape {fluorescence.shape}; expected (neuron, time)")
    if not (sfreq > 0 and window_s > 0 and 0 <= percentile <= 100):
        raise ValueError(
            f"sfreq {sfreq:g}, window_s {window_s:g}, percentile {percentile:g}; expected a rate and a window above 0 "
            "and a percentile of 0 to 100"
        )
    out = np.empty(fluorescence.shape, np.float32)
    baseline = running_percentile(fluorescence, sfreq, window_s, percentile)
    for row, (trace, slow) in enumerate(zip(fluorescence, baseline, strict=True)):
        out[row] = (trace - slow) / slow if (slow > 0).all() else np.nan
    return out


def running_percentile(values: np.ndarray, sfreq: float, window_s: float, percentile: float) -> Iterator[np.ndarray]:
    """For each row of `(neuron, time)` the percentile of `window_s` around each sample; gaps (NaN) are left out.

    It is taken at ten places a window and joined by straight lines. A row without any value stays NaN.
    """
    samples, gaps = values.shape[1], np.isnan(values).any()
    half = max(1, round(window_s * sfreq / 2))
    places = np.unique(np.r_[np.arange(0, samples, max(1, half // 5)), samples - 1])
    parts = [values[:, max(0, i - half) : i + half + 1] for i in places]
    if not gaps:
        found = np.stack([np.percentile(part, percentile, axis=1) for part in parts], axis=1)
    else:
        some = [np.isfinite(part).any(axis=1) for part in parts]
        found = np.full((len(values), len(places)), np.nan)
        for place, (part, rows) in enumerate(zip(parts, some, strict=True)):
            found[rows, place] = np.nanpercentile(part[rows], percentile, axis=1)
    for row in found:
        known = np.isfinite(row)
        yield np.interp(np.arange(samples), places[known], row[known]) if known.any() else np.full(samples, np.nan)


def clean(recording: Recording, *, sfreq_hz: float | None = None, lowpass_hz: float | None = None) -> Recording:
    """Low-pass and resample, each segment by itself; indicators are slow, so both may be None.

    Args:
        recording: dF/F; it is left as it is.
        sfreq_hz: new samples per second; None keeps the rate.
        lowpass_hz: half-amplitude band edge; None leaves all.

    Raises:
        ValueError: where the recording is of another modality, or what `condition` refuses.
    """
    if recording.modality != "calcium":
        raise ValueError(f"{recording.id} is of modality {recording.modality}; expected calcium")
    return condition(recording, sfreq_hz=sfreq_hz, lowpass_hz=lowpass_hz)


def observe(
    rng: np.random.Generator,
    firing: Recording,
    *,
    sfreq_hz: float = 10.0,
    rise_s: float = 0.07,
    decay_s: float = 0.6,
    amplitude: float = 0.3,
    noise: float = 0.1,
    saturation: float | None = None,
) -> Recording:
    """Spikes as an indicator of calcium shows them: each leaves a transient that rises and decays exponentially.

    Args:
        firing: simulated spikes.
        sfreq_hz: frames per second.
        rise_s, decay_s: time constants of the transient.
        amplitude: dF/F at the transient's peak of one spike; neurons differ around it by a quarter.
        noise: standard deviation of the noise of one frame, dF/F.
        saturation: dF/F that an indicator all of whose molecules have bound calcium would show: a transient of height x
            shows as x / (1 + x / saturation), before the noise. None for an indicator without limit.

    Returns:
        dF/F with the events, covariates and truth of `firing`; "spike_time" in s, "spike_neuron" and "amplitude" in
        `truth`.

    Raises:
        ValueError: for a recording without spikes, one that was not simulated, or times and a saturation out of range.
    """
    if not 0 < rise_s < decay_s or (saturation is not None and not saturation > 0):
        raise ValueError(
            f"rise_s {rise_s:g}, decay_s {decay_s:g}, saturation {saturation}; expected a rise above 0 and shorter "
            "than the decay, and a saturation above 0 or None"
        )
    if firing.spike_time is None or firing.spike_neuron is None or not firing.simulated:
        raise ValueError(f"{firing.id}: expected simulated spikes")
    neurons, fine = len(firing.channels), 10
    frames = round(firing.duration * sfreq_hz)
    step = np.minimum((firing.spike_time * sfreq_hz * fine).astype(int), frames * fine - 1)
    counts = np.zeros((neurons, frames * fine))
    np.add.at(counts, (firing.spike_neuron, step), 1.0)
    time = np.arange(round(6 * decay_s * sfreq_hz * fine)) / (sfreq_hz * fine)
    kernel = np.exp(-time / decay_s) - np.exp(-time / rise_s)
    size = amplitude * rng.lognormal(0.0, 0.25, neurons)[:, None]
    shown = fftconvolve(counts, (kernel / kernel.max())[None], axes=1)[:, : frames * fine]
    shown *= size
    if saturation is not None:
        shown = np.maximum(shown, 0)
        shown /= 1 + shown / saturation
    # A frame is the mean over its exposure.
    signal = shown.reshape(neurons, frames, fine).mean(2)
    signal += noise * rng.standard_normal(signal.shape)
    recording = Recording(
        dataset=firing.dataset,
        subject=firing.subject,
        session=firing.session,
        modality="calcium",
        device="simulated indicator",
        channels=Channels.make(firing.channels.name, "neuron", area=firing.channels.area, unit=UNIT),
        sfreq=sfreq_hz,
        signal=signal,
        events=firing.events,
        aligned=firing.aligned,
        truth={
            **firing.truth,
            "spike_time": firing.spike_time,
            "spike_neuron": firing.spike_neuron,
            "amplitude": size[:, 0],
        },
        simulated=True,
        tracked=firing.tracked,
    )
    recording.provenance["steps"] = list(firing.provenance["steps"])
    recording.note(
        "simulate indicator", rise_s=rise_s, decay_s=decay_s, amplitude=amplitude, noise=noise, saturation=saturation
    )
    return recording


def simulate(
    rng: np.random.Generator,
    *,
    neurons: int = 60,
    duration_s: float = 150.0,
    sfreq_hz: float = 10.0,
    subject: str = "a1",
    firing: Recording | None = None,
) -> Recording:
    """A motor population that reaches (`spikes.reaching`), seen through an indicator; or other spikes, `firing`."""
    if firing is None:
        firing = spikes.reaching(rng, neurons=neurons, duration_s=duration_s, subject=subject)
    return observe(rng, firing, sfreq_hz=sfreq_hz)
