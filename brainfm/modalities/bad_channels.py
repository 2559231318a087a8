"""Channels that are no use: not finite, flat, much louder or quieter than the others, or like none of them."""

from __future__ import annotations

import numpy as np
from scipy.signal import detrend

from brainfm.modalities.units import amplitudes, spread
from brainfm.recording import TYPICAL, Channels, Signal

#: Kinds that are compared with each other; one kind at a time.
KINDS = ("eeg", "mag", "grad", "axial", "ecog", "seeg")

#: Channels of a kind below which nothing is said of how one compares with the others.
FEWEST = 4

#: Samples of each channel that are kept to find its amplitude over the whole recording.
POOL = 10_000


def find(
    signal: np.ndarray | Signal,
    channels: Channels,
    sfreq: float,
    *,
    flat: float = 0.01,
    deviation: float | None = 5.0,
    correlation: float | None = 0.4,
    share: float = 0.01,
    window_s: float = 1.0,
    windows: int = 300,
    segments: np.ndarray | None = None,
) -> dict[int, str]:
    """Find bad channels by criteria of the PREP pipeline, each kind of sensor by itself.

    Bigdely-Shamlo N, Mullen T, Kothe C, Su KM, Robbins KA, The PREP pipeline: standardized preprocessing for
    large-scale EEG analysis, Frontiers in Neuroinformatics 9:16, 2015. A channel is bad

    - if a value of it is not finite;
    - if its standard deviation is below `flat` in more than the `share` of windows, not counting gaps of the recording
      in which half of its kind is flat;
    - if its amplitude over the recording is a robust z score of `deviation` away from those of its kind;
    - if in more than the `share` of windows the 98th percentile of its absolute correlations with the others of its
      kind, between 1 and 50 Hz, is below `correlation`.

    Unlike PREP it sees at most `windows` windows, evenly spread, and never more than one of them at a time, so memory
    does not grow with a lazy signal; the straight line through each window is taken off in place of a high-pass filter;
    the band of the correlation is cut from the spectrum. PREP's RANSAC and high-frequency criteria are not here.
    Channels that `channels` marks bad are left out of every comparison and of the result.

    Args:
        signal: `(channel, time)` in SI units; it may be lazy.
        channels: its table. sfreq: samples per second.
        flat: lowest amplitude, as a part of `recording.TYPICAL` of the kind: 0.01 is 0.1 uV of EEG, 10 fT of a
            magnetometer, 1 uV of implanted electrodes.
        deviation: largest robust z score; None leaves the criterion out.
        correlation: lowest correlation; None leaves the criterion out, as for sparse implanted electrodes.
        share: of windows.
        window_s, windows: length and highest number of windows.
        segments: `(segment, 2)` samples of stretches to look at; all of the signal where None.

    Returns:
        Row of the table → why it is bad.

    Raises:
        ValueError: for a signal that does not fit the table, or without a window.
    """
    if len(signal.shape) != 2 or len(signal) != len(channels):
        raise ValueError(f"got a signal {signal.shape} for {len(channels)} channels; expected (channel, time)")
    parts = spread(signal.shape[1], max(3, round(window_s * sfreq)), windows, segments)
    parts = [(a, b) for a, b in parts if b - a > 2]
    if not parts:
        raise ValueError(f"a signal of {signal.shape[1]} samples has no window of {window_s:g} s to look at")
    groups = {k: [i for i in range(len(channels)) if channels.kind[i] == k and not channels.bad[i]] for k in KINDS}
    groups = {kind: rows for kind, rows in groups.items() if rows}
    floor = np.array([flat * TYPICAL[kind] for kind in channels.kind])
    every = -(-sum(b - a for a, b in parts) // POOL)
    width, alike = np.empty((len(parts), len(channels))), np.full((len(parts), len(channels)), np.nan)
    pool = []
    for number, (first, last) in enumerate(parts):
        block = np.array(signal[:, first:last], np.float64)
        broken = np.asarray(~np.isfinite(block).all(axis=1))
        block = detrend(np.where(broken[:, None], 0, block), axis=1)
        width[number] = np.where(broken, np.nan, block.std(axis=1))
        pool.append(block[:, number % every :: every].astype(np.float32))
        for rows in groups.values():
            lively = [i for i in rows if width[number, i] > floor[i]]
            if correlation is not None and len(lively) >= FEWEST:
                alike[number, lively] = _likeness(block[lively], sfreq)
    pooled = np.concatenate(pool, axis=1)
    bad: dict[int, str] = {}
    for rows in groups.values():
        bad |= _broken(rows, width, floor, share)
        rows = [i for i in rows if i not in bad]
        if deviation is not None and len(rows) >= FEWEST:
            bad |= _deviating(rows, pooled[rows], deviation)
        if correlation is not None and len(rows) >= FEWEST:
            for row, reason in _unlike(rows, alike[:, rows], correlation, share).items():
                bad[row] = f"{bad[row]}; {reason}" if row in bad else reason
    return dict(sorted(bad.items()))


def _likeness(block: np.ndarray, sfreq: float) -> np.ndarray:
    """98th percentile of each channel's absolute correlations with the others `(channel,)`, from 1 to 50 Hz."""
    spectrum = np.fft.rfft(block, axis=1)
    frequency = np.fft.rfftfreq(block.shape[1], 1 / sfreq)
    kept = spectrum[:, (frequency >= 1 - 1e-6) & (frequency <= 50) & (frequency > 0)]
    if kept.shape[1] < 3:
        return np.full(len(block), np.nan)
    # The products of two signals over time are those of the real and imaginary parts of their spectra.
    flat = np.concatenate([kept.real, kept.imag], axis=1)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    flat = np.divide(flat, length, out=np.zeros_like(flat), where=length > 0)
    across = np.abs(flat @ flat.T)
    others = across[~np.eye(len(across), dtype=bool)].reshape(len(across), -1)
    return np.percentile(others, 98, axis=1)


def _broken(rows: list[int], width: np.ndarray, floor: np.ndarray, share: float) -> dict[int, str]:
    """Channels with values that are not finite, and those that are flat for long."""
    bad = {}
    flat = width <= floor
    gap = flat[:, rows].mean(axis=1) >= 0.5 if len(rows) >= FEWEST else np.zeros(len(flat), bool)
    flat = flat[~gap] if not gap.all() else flat
    for row in rows:
        missing, still = np.isnan(width[:, row]).mean(), flat[:, row].mean()
        if missing:
            bad[row] = f"values that are not finite in {missing:.0%} of windows"
        elif still > share:
            bad[row] = "flat" if still == 1 else f"flat in {still:.0%} of windows"
    return bad


def _deviating(rows: list[int], pooled: np.ndarray, limit: float) -> dict[int, str]:
    """Channels whose amplitude is far from the median amplitude of their kind."""
    size = amplitudes([pooled])[0]
    low, middle, high = np.percentile(size, [25, 50, 75])
    if high == low:
        return {}
    score = (size - middle) / ((high - low) / 1.349)
    return {
        row: f"{'louder' if z > 0 else 'quieter'} than the others (robust z {z:.1f})"
        for row, z in zip(rows, score, strict=True)
        if abs(z) > limit
    }


def _unlike(rows: list[int], alike: np.ndarray, limit: float, share: float) -> dict[int, str]:
    """Channels that too often resemble no other; windows in which nothing could be compared do not count."""
    bad = {}
    for row, column in zip(rows, alike.T, strict=True):
        seen = column[np.isfinite(column)]
        if len(seen) and (below := (seen < limit).mean()) > share:
            bad[row] = f"correlation below {limit:g} with the others in {below:.0%} of windows"
    return bad
