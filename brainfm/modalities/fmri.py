"""fMRI as regional series: dimensionless signal of each region of an atlas, one sample per volume."""

from __future__ import annotations

import copy
import zlib
from dataclasses import replace

import numpy as np
import scipy
from scipy.signal import butter, detrend, sosfiltfilt
from scipy.stats import gamma

from brainfm.modalities.filters import rational, resample
from brainfm.recording import Channels, Recording

UNIT = "1"


def clean(
    recording: Recording,
    *,
    tr_s: float | None = None,
    highpass_hz: float | None = None,
    lowpass_hz: float | None = None,
    standardise: bool = True,
) -> Recording:
    """Remove the linear trend, band-pass, resample to another repetition time and standardise, each region by itself.

    All four look at one recording only, so nothing passes between people. Segments are treated each by itself; the
    mean and spread of a region are taken over all of them. A region that never changes is marked bad and set to zero.

    Args:
        recording: `(region, volume)` in any unit; it is left as it is.
        tr_s: seconds between volumes of the result; None keeps the rate.
        highpass_hz, lowpass_hz: edges of a zero-phase Butterworth filter of order 4; None leaves that side open.
        standardise: divide each region by its standard deviation.

    Raises:
        ValueError: for values that are not finite, band edges outside the band, or segments under 16 volumes.
    """
    signal, sfreq = recording.signal, recording.sfreq
    if signal is None or sfreq is None or recording.segments is None:
        raise ValueError(f"{recording.id}: no regional series to clean; a recording of modality 'fmri' needs a signal")
    broken = [recording.channels.name[i] for i in np.flatnonzero(~np.isfinite(signal).all(axis=1))]
    if broken:
        raise ValueError(
            f"{recording.id}: values that are not finite in regions {', '.join(broken[:5])}; drop or mend them"
        )
    new = 1 / tr_s if tr_s else sfreq
    ratio = rational(new, sfreq)
    band = _band(recording, sfreq, highpass_hz, lowpass_hz)
    out = np.zeros((len(signal), round(signal.shape[1] * ratio)))
    segments = []
    for start, stop in recording.segments:
        if stop - start < 16:
            raise ValueError(
                f"{recording.id}: a segment has {stop - start} volumes; expected at least 16: leave it out"
            )
        piece = detrend(np.asarray(signal[:, start:stop], np.float64), axis=1)
        if band is not None:
            piece = sosfiltfilt(band, piece, axis=1, padlen=min(piece.shape[1] - 1, 3 * (2 * len(band) + 1)))
        piece = resample(piece, ratio)
        first = round(start * ratio)
        last = min(first + piece.shape[1], round(stop * ratio), out.shape[1])
        out[:, first:last] = piece[:, : last - first]
        segments.append((first, last))
    inside = np.concatenate([out[:, a:b] for a, b in segments], axis=1)
    mean, spread = inside.mean(1, keepdims=True), inside.std(1, keepdims=True)
    flat = (spread <= 1e-12 * max(1.0, float(np.abs(signal).max())))[:, 0]
    for a, b in segments:
        out[:, a:b] = np.where(
            flat[:, None], 0.0, (out[:, a:b] - mean) / (np.where(spread == 0, 1, spread) if standardise else 1)
        )
    table = recording.channels.pick(list(range(len(signal))))
    table.bad |= flat
    done = replace(
        recording,
        channels=table,
        signal=out,
        sfreq=new,
        segments=np.array(segments),
        duration=0.0,
        provenance=copy.deepcopy(recording.provenance),
    )
    done.note("detrend", order=1, scipy=scipy.__version__)
    if band is not None:
        done.note("band", highpass_hz=highpass_hz, lowpass_hz=lowpass_hz, filter="butterworth", order=4, phase="zero")
    if ratio != 1:
        done.note("resample", from_tr_s=1 / sfreq, to_tr_s=tr_s, up=ratio.numerator, down=ratio.denominator)
    done.note("standardise" if standardise else "centre", per="region and recording", flat_regions=int(flat.sum()))
    return done


def _band(recording: Recording, sfreq: float, highpass: float | None, lowpass: float | None) -> np.ndarray | None:
    edges = [e for e in (highpass, lowpass) if e is not None]
    if not edges:
        return None
    if not (all(0 < e < sfreq / 2 for e in edges) and edges == sorted(edges)):
        raise ValueError(
            f"{recording.id}: band edges {edges} Hz; expected ascending, above 0 and below {sfreq / 2:g} Hz, half of "
            "the volumes per second: change highpass_hz or lowpass_hz"
        )
    kind = "bandpass" if len(edges) == 2 else ("highpass" if highpass is not None else "lowpass")
    return butter(4, edges if len(edges) == 2 else edges[0], kind, fs=sfreq, output="sos")


def haemodynamic_response(tr_s: float, duration_s: float = 32.0) -> np.ndarray:
    """`(time,)` response to a brief event: a gamma peak at 5 s less a sixth of one at 15 s, of unit sum.

    Source: Glover, "Deconvolution of impulse response in event-related BOLD fMRI", NeuroImage 1999; the double-gamma
    shape with the usual delays of 6 s and 16 s.
    """
    time = np.arange(0, duration_s, tr_s)
    response = gamma.pdf(time, 6) - gamma.pdf(time, 16) / 6
    return response / response.sum()


def simulate(
    rng: np.random.Generator,
    *,
    subject: str = "00",
    session: str = "",
    regions: int = 60,
    states: int = 5,
    duration_s: float = 480.0,
    tr_s: float = 2.0,
    individual: float = 0.6,
    noise: float = 0.7,
    population: int = 0,
) -> Recording:
    """A resting session of one simulated person: latent states come and go, seen through the haemodynamic response.

    The region table and each state's map over regions belong to the population. A person's own maps, delay and noise
    follow from the population and the subject id alone, so that two sessions of one person share them: this is what a
    fingerprint finds. Only the course of the states and the noise come from `rng`.

    Args:
        rng: source of this session's course of states and noise.
        subject, session: ids of the recording.
        regions: number of regions, spread evenly over a sphere of 70 mm.
        states: number of latent states.
        duration_s, tr_s: length of the session and time between volumes.
        individual: strength of a person's own part of the maps; 0 makes all people alike.
        noise: standard deviation of the regions' own noise against that of their signal.
        population: number of the population.

    Returns:
        A recording labelled simulated, with `truth` "state" `(time, state)` before the response, "maps"
        `(region, state)` of this person and "connectivity" `(region, region)`, the correlation that the maps imply.
    """
    group = np.random.default_rng([population, 7])
    person = np.random.default_rng([population, zlib.crc32(subject.encode())])
    index = np.arange(regions) + 0.5
    polar, azimuth = np.arccos(1 - 2 * index / regions), np.pi * (1 + 5**0.5) * index
    place = 0.07 * np.stack([np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)], axis=1)
    centres = group.normal(size=(states, 3))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    maps = np.exp(4 * (place / 0.07 @ centres.T - 1)) + 0.3 * group.normal(size=(regions, states))
    maps = maps + individual * maps.std() * person.normal(size=maps.shape)
    delay_s = person.uniform(-1.0, 1.0)

    volumes, lead = round(duration_s / tr_s), round(40 / tr_s)
    state = np.zeros((volumes + lead, states))
    active = rng.integers(states)
    for t in range(len(state)):
        if rng.random() < tr_s / 12:
            active = rng.integers(states)
        state[t, active] = 1.0
    state = state - 1 / states + 0.3 * rng.normal(size=state.shape)
    response = np.interp(np.arange(0, 32, tr_s) - delay_s, np.arange(0, 32, tr_s), haemodynamic_response(tr_s))
    bold = np.stack([np.convolve(s, response)[: len(state)] for s in state.T])[:, lead:]
    clean_signal = maps @ bold
    own = rng.normal(size=(regions, volumes + 1))
    own = 0.5 * own[:, 1:] + 0.5 * own[:, :-1]
    signal = clean_signal + noise * person.uniform(0.8, 1.25) * clean_signal.std() * own / own.std()

    covariance = maps @ np.cov(bold) @ maps.T
    scale = np.sqrt(np.diag(covariance))
    names = [f"region {i:03d}" for i in range(regions)]
    recording = Recording(
        dataset="simulated_fmri",
        subject=subject,
        session=session,
        modality="fmri",
        device="simulated",
        channels=Channels.make(names, "region", place),
        sfreq=1 / tr_s,
        signal=signal / signal.std(1, keepdims=True),
        truth={"state": state[lead:], "maps": maps, "connectivity": covariance / np.outer(scale, scale)},
        simulated=True,
    )
    recording.note(
        "simulate", population=population, states=states, individual=individual, noise=noise, delay_s=delay_s
    )
    return recording
