"""A fitted decoder slid over a continuous recording: probabilities over time, smoothed, and the events that they make.

Windows overlap and none crosses a break. Each is encoded once, and only a few are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

#: Windows that are encoded together.
SIZE = 64


class Places(NamedTuple):
    """Where the windows of a recording lie.

    Attributes:
        start: `(window,)` first sample, ascending. part: `(window,)` number of the stretch that a window lies in.
        length, step: samples of a window, and from one to the next.
    """

    start: np.ndarray
    part: np.ndarray
    length: int
    step: int


class Event(NamedTuple):
    """A run of windows of one class: seconds, the class, and its mean probability."""

    onset: float
    duration: float
    label: str
    probability: float


def places(segments: np.ndarray, length: int, step: int) -> Places:
    """Windows of `length` samples every `step` samples of each stretch `(segment, 2)`; shorter stretches have none.

    Raises:
        ValueError: where no stretch holds a window.
    """
    starts = [np.arange(int(a), int(b) - length + 1, step) for a, b in segments]
    if not sum(map(len, starts)):
        longest = max((int(b - a) for a, b in segments), default=0)
        raise ValueError(
            f"the longest stretch without a break has {longest} samples and a window of the decoder has {length}: "
            "decode a longer recording, or fit a decoder of shorter windows"
        )
    part = [np.full(len(found), i) for i, found in enumerate(starts)]
    return Places(np.concatenate(starts), np.concatenate(part), length, step)


def slide(
    decode: Callable[[np.ndarray], np.ndarray], read: Callable[[int, int], np.ndarray], where: Places, size: int = SIZE
) -> Iterator[np.ndarray]:
    """Probabilities `(window, class)` of the windows in order, `size` windows or fewer at a time.

    Args:
        decode: `(window, channel, time)` → `(window, class)`. read: first and one-past-last sample → `(channel, time)`.
        where: the windows. size: how many together.
    """
    ends = np.flatnonzero(np.diff(where.part)) + 1
    for first, last in zip([0, *ends], [*ends, len(where.start)], strict=True):
        for begin in range(first, last, size):
            start = where.start[begin : min(begin + size, last)]
            signal = read(int(start[0]), int(start[-1]) + where.length)
            windows = sliding_window_view(signal, where.length, axis=1)[:, start - start[0]].transpose(1, 0, 2)
            yield decode(windows)


def smoothed(chances: np.ndarray, part: np.ndarray, windows: float, causal: bool = False) -> np.ndarray:
    """Moving mean of probabilities, within each stretch; at its ends over the windows that there are.

    Args:
        chances: `(window, class)`. part: `(window,)` as in `Places`.
        windows: width of the mean in steps, rounded, at least 1. Half of the others lie to each side, the odd one
            after; with `causal` all of them before.
        causal: use a window and those before it alone.
    """
    width = max(1, round(windows))
    before, after = (width - 1, 0) if causal else ((width - 1) // 2, width // 2)
    out = np.empty(chances.shape)
    for number in np.unique(part):
        rows = np.flatnonzero(part == number)
        total = np.concatenate([np.zeros((1, chances.shape[1])), np.cumsum(chances[rows], axis=0, dtype=np.float64)])
        at = np.arange(len(rows))
        low, high = np.maximum(at - before, 0), np.minimum(at + after + 1, len(rows))
        out[rows] = (total[high] - total[low]) / (high - low)[:, None]
    return out


def times(where: Places, sfreq: float, causal: bool = False, reach_s: float = 0.0) -> np.ndarray:
    """`(window,)` seconds that each window speaks of: its middle, or with `causal` when it could be known.

    That is its end, and as much later as the filters of cleaning look ahead (`reach_s`).
    """
    middle = (where.start + where.length / 2) / sfreq
    return middle + where.length / 2 / sfreq + reach_s if causal else middle


def limits(segments: np.ndarray, sfreq: float, causal: bool = False, reach_s: float = 0.0) -> np.ndarray:
    """`(stretch, 2)` seconds in which the windows of each stretch may speak: the stretch.

    With `causal` it is later by `reach_s`, as `times` are, and ends with the recording at the latest.
    """
    ends = np.asarray(segments, float) / sfreq
    return np.minimum(ends + reach_s, ends.max()) if causal else ends


def events(
    chances: np.ndarray, time: np.ndarray, part: np.ndarray, classes: list[str], threshold: float, step_s: float,
    bounds: np.ndarray, causal: bool = False,
) -> list[Event]:  # fmt: skip
    """Neighbouring windows of the same most likely class, joined; windows below `threshold` belong to no event.

    A window stands for one step around its time, with `causal` for the step that follows it; what passes the bounds
    of its stretch is cut off, and an event of which nothing is left is none.

    Args:
        chances: `(window, class)`, smoothed. time, part: `(window,)`. classes: names of the columns.
        threshold: lowest probability of an event's windows. step_s: seconds from window to window.
        bounds: `(stretch, 2)` seconds, from `limits`.
        causal: as in `times`.
    """
    best = chances.argmax(axis=1)
    best = np.where(chances[np.arange(len(best)), best] >= threshold, best, -1)
    edges = np.flatnonzero((np.diff(best) != 0) | (np.diff(part) != 0)) + 1
    found = []
    for rows in np.split(np.arange(len(best)), edges):
        if len(rows) and (word := best[rows[0]]) >= 0:
            first, last = bounds[part[rows[0]]]
            begin = time[rows[0]] - (0.0 if causal else step_s / 2)
            onset, end = max(float(first), float(begin)), min(float(last), float(begin + len(rows) * step_s))
            if end - onset > 1e-9:
                found.append(Event(onset, end - onset, classes[word], float(chances[rows, word].mean())))
    return found
