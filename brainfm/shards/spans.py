"""Spans of time as rows `(start, stop)`: which lie close to each other, and what a break between them does."""

from __future__ import annotations

import numpy as np


def near(left: np.ndarray, right: np.ndarray, gap: float) -> list[tuple[int, int]]:
    """For each row of `right` that lies less than `gap` from a row of `left`: that row and its own; both are merged."""
    low = np.searchsorted(left[:, 1], right[:, 0] - gap, "right")
    high = np.searchsorted(left[:, 0], right[:, 1] + gap, "left")
    return [(int(low[j]), int(j)) for j in np.flatnonzero(high > low)]


def segmented(spans: np.ndarray, segments: np.ndarray, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """The spans cut at breaks, those of later segments moved later so that every break is at least `gap` long.

    Without segments, as of events whose recording names none, there is no break.

    Returns:
        `(span, 2)` the moved pieces, and `(span,)` how far each was moved.
    """
    segments = segments[np.argsort(segments[:, 0])] if len(segments) else np.array([[-np.inf, np.inf]])
    first = np.searchsorted(segments[:, 1], spans[:, 0], "right")
    count = np.maximum(np.searchsorted(segments[:, 0], spans[:, 1], "left") - first, 0)
    row = np.repeat(np.arange(len(spans)), count)
    segment = first[row] + np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    moved = segment * gap
    start = np.maximum(spans[row, 0], segments[segment, 0])
    return np.stack([start, np.minimum(spans[row, 1], segments[segment, 1])], axis=1) + moved[:, None], moved
