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
from brainfm.recording import Channels, Recording, Series

UNIT = "1"


#: Degrees of freedom that a regression must leave in a segment.
LEAST_FREEDOM = 8


def clean(
    recording: Recording,
    *,
    tr_s: float | None = None,
    highpass_hz: float | None = None,
    lowpass_hz: float | None = None,
    standardise: bool = True,
    confounds: bool = True,
    drift_s: float | None = None,
) -> Recording:
    """Remove trend, drift and confounds, band-pass, resample to another TR and standardise, each region by itself.

    All of it looks at one recording only, so nothing passes between people. Segments are treated each by itself; the
    mean and spread of a region are taken over all of them. A region that never changes is marked bad and set to zero.

    With confounds, drift or censored volumes, trend, drift, confounds and all frequencies outside the band (or above
    half of a lower new rate) are removed in one least-squares fit: filtering and regression one after the other put
    back what the first had removed (Lindquist, Geuter, Wager, Caffo, "Modular preprocessing pipelines can reintroduce
    artifacts into fMRI data", Human Brain Mapping 2019, https://doi.org/10.1002/hbm.24528). Volumes where
    `aligned["censored"]` is above 0 have no part in the fit, in mean and spread, or in a new TR, for which they are
    interpolated; they stay in the series, and the mask stays beside it.

    Args:
        recording: `(region, volume)` in any unit; it is left as it is.
        tr_s: seconds between volumes of the result; None keeps the rate.
        highpass_hz, lowpass_hz: edges of a zero-phase Butterworth filter of order 4, or of the frequencies that the fit
            leaves in; None leaves that side open.
        standardise: divide each region by its standard deviation.
        confounds: regress out `aligned["confounds"]` `(volume, confound)` where it is there.
        drift_s: remove cosines of this period in seconds and longer, for example 128; None for the linear trend alone.

    Raises:
        ValueError: for values that are not finite, band edges outside the band, segments under 16 volumes, confounds
            that do not fit the series, or a fit that leaves no freedom.
    """
    if recording.signal is None or recording.sfreq is None or recording.segments is None:
        raise ValueError(f"{recording.id}: no regional series to clean; a recording of modality 'fmri' needs a signal")
    signal, sfreq = np.asarray(recording.signal[:, 0 : recording.signal.shape[1]]), recording.sfreq
    broken = [recording.channels.name[i] for i in np.flatnonzero(~np.isfinite(signal).all(axis=1))]
    if broken:
        raise ValueError(
            f"{recording.id}: values that are not finite in regions {', '.join(broken[:5])}; drop or mend them"
        )
    if drift_s is not None and not drift_s > 2 / sfreq:
        raise ValueError(f"{recording.id}: drift_s is {drift_s:g} s; expected above {2 / sfreq:g} s, two volumes")
    new = 1 / tr_s if tr_s else sfreq
    ratio = rational(new, sfreq)
    band = _band(recording, sfreq, highpass_hz, lowpass_hz)
    nuisance = _by_volume(recording, "confounds") if confounds else np.zeros((signal.shape[1], 0))
    keep = np.logical_not(_by_volume(recording, "censored").any(axis=1))
    joint = bool(nuisance.shape[1]) or drift_s is not None or not keep.all()
    slow = max(highpass_hz or 0.0, 1 / drift_s if drift_s else 0.0)
    fast = min((f for f in (lowpass_hz, new / 2 if ratio < 1 else None) if f is not None), default=None)
    out = np.zeros((len(signal), round(signal.shape[1] * ratio)))
    skip = np.zeros(out.shape[1], bool)
    segments, freedom = [], []
    for start, stop in recording.segments:
        if stop - start < 16:
            raise ValueError(
                f"{recording.id}: a segment has {stop - start} volumes; expected at least 16: leave it out"
            )
        piece, good = np.asarray(signal[:, start:stop], np.float64), keep[start:stop]
        if joint:
            regressors = np.hstack([_stopped(stop - start, sfreq, slow, fast), nuisance[start:stop]])
            piece, left = _residual(recording, piece, regressors, good)
            freedom.append(left)
            if ratio != 1 and not good.all():
                piece = _bridged(piece, good)
        else:
            piece = detrend(piece, axis=1)
            if band is not None:
                piece = sosfiltfilt(band, piece, axis=1, padlen=min(piece.shape[1] - 1, 3 * (2 * len(band) + 1)))
        piece = resample(piece, ratio)
        first = round(start * ratio)
        last = min(first + piece.shape[1], round(stop * ratio), out.shape[1])
        out[:, first:last] = piece[:, : last - first]
        skip[first:last] = _touched(good, np.arange(last - first) / float(ratio))
        segments.append((first, last))
    inside = np.concatenate([out[:, a:b] for a, b in segments], axis=1)
    inside = inside[:, ~np.concatenate([skip[a:b] for a, b in segments])] if skip.any() else inside
    mean, spread = inside.mean(1, keepdims=True), inside.std(1, keepdims=True)
    flat = (spread <= 1e-12 * max(1.0, float(np.abs(signal).max())))[:, 0]
    for a, b in segments:
        out[:, a:b] = np.where(
            flat[:, None], 0.0, (out[:, a:b] - mean) / (np.where(spread == 0, 1, spread) if standardise else 1)
        )
    table = recording.channels.pick(list(range(len(signal))))
    table.bad |= flat
    aligned = dict(recording.aligned)
    if "censored" in aligned:
        aligned["censored"] = Series(skip[:, None].astype(float), new, "1")
    done = replace(
        recording,
        channels=table,
        signal=out,
        sfreq=new,
        segments=np.array(segments),
        duration=0.0,
        aligned=aligned,
        provenance=copy.deepcopy(recording.provenance),
    )
    if joint:
        done.note(
            "regress", confounds=nuisance.shape[1], trend=1, drift_s=drift_s, highpass_hz=highpass_hz, lowpass_hz=fast,
            censored_volumes=int((~keep).sum()), degrees_of_freedom=freedom, numpy=np.__version__,
        )  # fmt: skip
    else:
        done.note("detrend", order=1, scipy=scipy.__version__)
        if band is not None:
            done.note(
                "band", highpass_hz=highpass_hz, lowpass_hz=lowpass_hz, filter="butterworth", order=4, phase="zero"
            )
    if ratio != 1:
        done.note("resample", from_tr_s=1 / sfreq, to_tr_s=tr_s, up=ratio.numerator, down=ratio.denominator)
    done.note("standardise" if standardise else "centre", per="region and recording", flat_regions=int(flat.sum()))
    return done


def _by_volume(recording: Recording, name: str) -> np.ndarray:
    """`(volume, feature)` of the aligned series, which has one row for each volume; no columns where there is none.

    Raises:
        ValueError: where its rows are not those of the signal, or not finite.
    """
    volumes = 0 if recording.signal is None else recording.signal.shape[1]
    series = recording.aligned.get(name)
    if series is None:
        return np.zeros((volumes, 0))
    values = np.asarray(series.values, np.float64)
    rate = abs(series.sfreq - (recording.sfreq or 0)) <= 1e-6 * series.sfreq
    if values.ndim != 2 or len(values) != volumes or not rate or series.start != 0:
        raise ValueError(
            f"{recording.id}: {name} has shape {values.shape} at {series.sfreq:g} Hz from {series.start:g} s; expected "
            f"one row for each of {volumes} volumes at {recording.sfreq:g} Hz: mend it or take it out of `aligned`"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{recording.id}: {name} is not finite everywhere; mend it or take it out of `aligned`")
    return values


def _stopped(volumes: int, sfreq: float, slow: float, fast: float | None) -> np.ndarray:
    """`(volume, regressor)` of what is removed beside the mean: linear trend, cosines up to `slow` and above `fast` Hz.

    Cosine k of the discrete cosine transform has k half periods in the segment, so that all of them together with the
    mean span every series: those left out are the band.
    """
    time, order = np.arange(volumes), np.arange(1, volumes)
    frequency = order * sfreq / (2 * volumes)
    removed = frequency <= slow * (1 + 1e-9)
    if fast is not None:
        removed |= frequency > fast
    cosines = np.cos(np.pi / volumes * (time[:, None] + 0.5) * order[removed])
    return np.hstack([np.linspace(-1, 1, volumes)[:, None], cosines])


def _residual(
    recording: Recording, piece: np.ndarray, regressors: np.ndarray, good: np.ndarray
) -> tuple[np.ndarray, int]:
    """`(region, volume)` less mean and regressors, fitted over the good volumes and taken away from all.

    Returns:
        The residual, and the degrees of freedom that it has left.

    Raises:
        ValueError: where fewer than `LEAST_FREEDOM` are left.
    """
    count = int(good.sum())
    rank, left = 0, count
    if count > LEAST_FREEDOM:
        piece = piece - piece[:, good].mean(axis=1, keepdims=True)
        centred = regressors - regressors[good].mean(axis=0)
        size = np.linalg.norm(centred[good], axis=0)
        vary = size > 1e-12 * np.linalg.norm(regressors[good], axis=0)
        design = centred[:, vary] / size[vary]
        weights, _, rank, _ = np.linalg.lstsq(design[good], piece[:, good].T, rcond=None)
        piece = piece - (design @ weights).T
        left = count - 1 - int(rank)
    if left < LEAST_FREEDOM or count <= LEAST_FREEDOM:
        raise ValueError(
            f"{recording.id}: {rank} regressors leave {left} degrees of freedom in {count} volumes that are not "
            f"censored; expected at least {LEAST_FREEDOM}: widen the band, raise drift_s or set confounds to false"
        )
    return piece, left


def _bridged(piece: np.ndarray, good: np.ndarray) -> np.ndarray:
    """`(region, volume)` with straight lines over the volumes that are not good."""
    time = np.arange(len(good))
    return np.stack([np.interp(time, time[good], row[good]) for row in piece])


def _touched(good: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Whether a volume just before or after each of the times `at`, in volumes, is not good."""
    near = np.clip([np.floor(at + 1e-9), np.ceil(at - 1e-9)], 0, len(good) - 1).astype(int)
    return ~(good[near[0]] & good[near[1]])


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
