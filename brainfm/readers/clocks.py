"""Times in files: spikes in one order, series on an even grid, rates as round numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from brainfm.recording import Series

#: A recording longer than this (two weeks) is taken for times in another unit.
LONGEST_S = 14 * 86400.0


def pool(where: Path, trains: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
    """All spikes in the order of time, their neurons' rows, and how many neurons' own spikes were out of order.

    Raises:
        ValueError: for times that are not finite, negative, or later than two weeks.
    """
    time = np.concatenate([np.asarray(t, float) for t in trains]) if trains else np.zeros(0)
    if broken := int((~np.isfinite(time)).sum()):
        raise ValueError(f"{where}: {broken} of {len(time)} spike times are not finite; remove them from the file")
    if len(time) and time.min() < 0:
        raise ValueError(
            f"{where}: {int((time < 0).sum())} spike times are negative, down to {time.min():g} s; expected seconds "
            "from the start of the recording: add an offset to the file's times"
        )
    if len(time) and time.max() > LONGEST_S:
        raise ValueError(
            f"{where}: the last spike comes after {time.max():g} s, more than two weeks; the times are not in seconds: "
            "say what they are with unit (ms, us), or with sfreq_hz for sample numbers"
        )
    order = np.argsort(time, kind="stable")
    neuron = np.repeat(np.arange(len(trains)), [len(t) for t in trains])
    return time[order], neuron[order], sum(bool(np.any(np.diff(t) < 0)) for t in trains)


def regular(time: np.ndarray, values: np.ndarray, unit: str) -> tuple[Series, dict[str, Any]]:
    """A series whose samples came at `time` `(time,)` s, and what had to be done to make it evenly sampled ({} if so).

    It keeps its samples where they lie within half a step of an even grid at the median rate. Otherwise it is
    interpolated linearly onto that grid; gaps of more than 2.5 steps become NaN.

    Raises:
        ValueError: for times that are not finite or go back, or fewer than two of them, or gaps so long that nearly
            all of the series would be gaps.
    """
    time, values = np.asarray(time, float), np.asarray(values, float).reshape(len(values), -1)
    if len(time) != len(values) or len(time) < 2 or not np.isfinite(time).all() or np.any(np.diff(time) < 0):
        raise ValueError(f"{len(time)} times for {len(values)} samples, or times that go back or are not finite")
    new = np.concatenate([[True], np.diff(time) > 0])
    repeated = int((~new).sum())
    time, values = time[new], values[new]
    if len(time) < 2:
        raise ValueError("all samples have the same time")
    step = float(np.median(np.diff(time)))
    rate = snapped(1 / step)
    even = time[0] + np.arange(len(time)) / rate
    if np.abs(time - even).max() < 0.5 / rate:
        return Series(values, rate, unit, float(time[0])), {"repeated_times_dropped": repeated} if repeated else {}
    samples = int((time[-1] - time[0]) * rate + 1e-3) + 1
    if samples > 100 * len(time) + 1000:
        raise ValueError(f"{len(time)} samples {step:g} s apart over {time[-1] - time[0]:g} s: nearly all are missing")
    grid = time[0] + np.arange(samples) / rate
    after = np.clip(np.searchsorted(time, grid), 1, len(time) - 1)
    inside = (grid > time[after - 1] + 0.01 * step) & (grid < time[after] - 0.01 * step)
    gap = (time[after] - time[after - 1] > 2.5 * step) & inside
    out = np.stack([np.interp(grid, time, column) for column in values.T], axis=1)
    out[gap] = np.nan
    how = {"resampled_hz": rate, "interpolation": "linear", "gap_samples": int(gap.sum())}
    return Series(out, rate, unit, float(time[0])), {**how, "repeated_times_dropped": repeated}


def snapped(rate: float) -> float:
    """A rate that was measured, rounded to the nearest number of few digits where one lies within 0.01 percent."""
    near = (round(rate, digits) for digits in range(4))
    return float(next((x for x in near if x and abs(x / rate - 1) < 1e-4), rate))
