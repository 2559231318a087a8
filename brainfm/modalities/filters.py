"""Filters that sampled signals share: notch, band and resampling, each segment by itself; `clean` of EEG and MEG."""

from __future__ import annotations

import copy
from dataclasses import replace
from fractions import Fraction

import numpy as np
from scipy.signal import resample_poly

from brainfm.recording import Recording


def rational(new: float, old: float) -> Fraction:
    """The ratio `new / old` of two sampling rates as whole numbers.

    Raises:
        ValueError: where no ratio of numbers up to 1000 is within one part in a million of it.
    """
    ratio = Fraction(new / old).limit_denominator(1000)
    if new <= 0 or ratio == 0 or abs(float(ratio) * old / new - 1) > 1e-6:
        raise ValueError(
            f"cannot resample from {old:g} Hz to {new:g} Hz by a ratio of whole numbers; choose a rounder rate"
        )
    return ratio


def resample(signal: np.ndarray, ratio: Fraction) -> np.ndarray:
    """Band-limited resampling of `(channel, time)` to `ceil(time * ratio)` samples; the trend is kept at the edges."""
    if ratio == 1:
        return signal
    return resample_poly(signal, ratio.numerator, ratio.denominator, axis=-1, padtype="line")


def shortest(sfreq: float, highpass: float | None, lowpass: float | None, notch: float | None) -> int:
    """Samples that a segment needs, so that the longest of the filters fits into it (Hamming window design of MNE)."""
    widths = []
    if highpass:
        widths.append(min(max(0.25 * highpass, 2.0), highpass))
    if lowpass:
        widths.append(min(max(0.25 * lowpass, 2.0), sfreq / 2 - lowpass))
    if notch:
        widths.append(0.5)
    return int(np.ceil(3.3 / min(widths) * sfreq)) + 1 if widths else 2


def _check(rec: Recording, sfreq: float, new: float | None, highpass: float | None, lowpass: float | None) -> None:
    top = min(sfreq, new or sfreq) / 2
    for name, value in (("highpass_hz", highpass), ("lowpass_hz", lowpass)):
        if value is not None and not 0 < value < top:
            raise ValueError(
                f"{rec.id}: {name} is {value:g}; expected above 0 and below {top:g} Hz, half of the sampling rate: "
                f"change {name} or sfreq_hz"
            )
    if highpass and lowpass and highpass >= lowpass:
        raise ValueError(f"{rec.id}: highpass_hz {highpass:g} is not below lowpass_hz {lowpass:g}; swap or change them")


def condition(
    recording: Recording,
    *,
    sfreq_hz: float | None = None,
    highpass_hz: float | None = None,
    lowpass_hz: float | None = None,
    notch_hz: float | None = None,
) -> Recording:
    """Notch, band-pass and resample, in that order, every channel and each segment by itself: nothing crosses a break.

    Filters are MNE's zero-phase windowed-sinc ones. Where some segments are shorter than the longest filter, these are
    dropped from `segments` (time goes on, samples outside segments are zero) and counted in the provenance.

    Args:
        recording: with a signal; it is left as it is.
        sfreq_hz: new samples per second; None keeps the rate.
        highpass_hz, lowpass_hz: half-amplitude band edges; None leaves that side open.
        notch_hz: power line frequency; it and its multiples are removed. None for no notch.

    Returns:
        A new recording whose provenance names every step with its parameters.

    Raises:
        ValueError: for edges outside the band, or where no segment is long enough for the filters.
    """
    import mne

    signal, sfreq = recording.signal, recording.sfreq
    if signal is None or sfreq is None or recording.segments is None:
        raise ValueError(f"{recording.id}: no signal to filter; this cleaning is for sampled signals")
    _check(recording, sfreq, sfreq_hz, highpass_hz, lowpass_hz)
    need = shortest(sfreq, highpass_hz, lowpass_hz, notch_hz)
    ratio = rational(sfreq_hz or sfreq, sfreq)
    kept = [(int(a), int(b)) for a, b in recording.segments if b - a >= need]
    if not kept:
        longest = max((int(b - a) for a, b in recording.segments), default=0)
        raise ValueError(
            f"{recording.id}: the filters need segments of {need / sfreq:.2f} s; the longest has "
            f"{longest / sfreq:.2f} s: raise highpass_hz, or set it and notch_hz to null"
        )
    out = np.zeros((len(signal), round(signal.shape[1] * ratio)))
    segments = []
    for start, stop in kept:
        piece = np.array(signal[:, start:stop], np.float64)
        if notch_hz:
            lines = np.arange(notch_hz, sfreq / 2 - 1, notch_hz)
            piece = mne.filter.notch_filter(piece, sfreq, lines, verbose="error")
        if highpass_hz or lowpass_hz:
            piece = mne.filter.filter_data(piece, sfreq, highpass_hz, lowpass_hz, verbose="error")
        piece = resample(piece, ratio)
        first = round(start * ratio)
        last = min(first + piece.shape[1], round(stop * ratio), out.shape[1])
        out[:, first:last] = piece[:, : last - first]
        segments.append((first, last))
    done = replace(
        recording,
        signal=out,
        sfreq=float(sfreq_hz or sfreq),
        segments=np.array(segments),
        duration=recording.duration if recording.spike_time is not None else 0.0,
        provenance=copy.deepcopy(recording.provenance),
    )
    dropped = len(recording.segments) - len(kept)
    if notch_hz:
        done.note("notch", frequency_hz=notch_hz, harmonics=True, mne=mne.__version__)
    if highpass_hz or lowpass_hz:
        done.note("band", highpass_hz=highpass_hz, lowpass_hz=lowpass_hz, phase="zero", mne=mne.__version__)
    if ratio != 1:
        done.note("resample", from_hz=sfreq, to_hz=done.sfreq, up=ratio.numerator, down=ratio.denominator)
    if dropped:
        done.note("drop_segments", count=dropped, shorter_than_s=need / sfreq)
    return done
