"""A naive Bayes decoder of position from spike counts: independent Poisson neurons with measured place fields.

Zhang, Ginzburg, McNaughton & Sejnowski 1998, "Interpreting neuronal population activity by reconstruction", Journal of
Neurophysiology 79:1017-1044, equation 36 with the occupancy as prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter


@dataclass(frozen=True)
class PlaceDecoder:
    """A fitted decoder.

    Attributes:
        centre: `(cell, axis)` of the cells that the animal visited, in the unit of position.
        log_rate: `(cell, neuron)` log of expected counts of a window. expected: `(cell,)` their sum over neurons.
        log_prior: `(cell,)` log of the share of time spent.
    """

    centre: np.ndarray
    log_rate: np.ndarray
    expected: np.ndarray
    log_prior: np.ndarray

    def predict(self, counts: np.ndarray) -> np.ndarray:
        """`(window, neuron)` counts → `(window, axis)` the most likely cell's centre."""
        score = counts @ self.log_rate.T - self.expected + self.log_prior
        return self.centre[score.argmax(axis=1)]


def fit(counts: np.ndarray, position: np.ndarray, *, cell: float | None = None, smooth: float = 1.0) -> PlaceDecoder:
    """Fit place fields on a grid.

    Args:
        counts: `(window, neuron)` spikes in a window. position: `(window, axis)` with one or two axes, finite.
        cell: edge of a cell in the unit of position; a fortieth of the longer side of the track where None.
        smooth: standard deviation of the Gaussian over occupancy and spikes, in cells.

    Raises:
        ValueError: for more than two axes or no window.
    """
    if position.ndim != 2 or position.shape[1] not in (1, 2) or not len(position) == len(counts) > 0:
        raise ValueError(
            f"positions {position.shape} and counts {counts.shape}; expected (window, 1 or 2) and as many windows"
        )
    low, high = position.min(axis=0), position.max(axis=0)
    edge = cell or max(float((high - low).max()) / 40, np.finfo(float).tiny)
    shape = tuple((np.floor((high - low) / edge) + 1).astype(int))
    place = np.ravel_multi_index(tuple(np.floor((position - low) / edge).astype(int).T), shape)
    cells = int(np.prod(shape))
    time = np.bincount(place, minlength=cells).astype(float)
    visited = time > 0
    spikes = np.stack([np.bincount(place, row, cells) for row in counts.T.astype(float)], axis=1)
    wide = gaussian_filter(time.reshape(shape), smooth, mode="constant").ravel()
    blurred = gaussian_filter(spikes.reshape(*shape, -1), (*[smooth] * len(shape), 0), mode="constant")
    blurred = blurred.reshape(cells, -1)
    least = counts.mean(axis=0) * 1e-2 + 1e-4
    rate = np.maximum(blurred[visited] / wide[visited, None], least)
    index = np.stack(np.unravel_index(np.flatnonzero(visited), shape), axis=1)
    share = time[visited] / time.sum()
    return PlaceDecoder(low + (index + 0.5) * edge, np.log(rate), rate.sum(axis=1), np.log(share))
