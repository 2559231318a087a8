"""A decoder of evoked potentials: covariances of windows with the averages that tell the classes apart beside them.

Barachant and Congedo 2014, A plug and play P300 BCI using information geometry, arXiv:1409.0107, with the spatial
filters of Rivet et al. 2009, xDAWN algorithm to enhance evoked potentials; both by pyRiemann.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from brainfm.evaluations import protocol
from brainfm.evaluations.methods import alignment
from brainfm.evaluations.methods.classical import Decoded, logistic, several, tangent_vectors
from brainfm.evaluations.methods.trials import Setting, Side, Trials
from brainfm.evaluations.protocol import Unfit

#: Windows are averaged to at most this rate (Hz), for slow potentials are all that is looked for.
RATE_HZ = 32.0


class EvokedCovariances:
    """xDAWN covariances projected to the tangent space at their Riemannian mean, and logistic regression."""

    name, stops_early = "xdawn_covariance", False
    settings: Sequence[Setting] = tuple(
        {"filters": n, "C": c} for n, c in ((2, 0.01), (2, 0.1), (4, 0.01), (2, 0.001), (4, 0.1))
    )

    def fit(self, trials: Trials, side: Side, setting: Setting, seed: int) -> Decoded:
        """Fit; `setting` has "filters", for each class, and "C", the inverse penalty.

        Raises:
            Unfit: for windows that are too short, or training rows of one class.
        """
        from pyriemann.estimation import XdawnCovariances

        values, rows = _slow(trials), side.taught
        labels = several(trials, rows)
        filters = min(setting["filters"], values.shape[1])
        with protocol.threads().limit(limits=1):
            made = XdawnCovariances(filters, estimator="oas", xdawn_estimator="oas").fit(values[rows], labels)
            reference = alignment.riemannian_mean(made.transform(values[rows]))
        describe = partial(_vectors, made, reference)
        return Decoded.of(trials, rows, describe, logistic(setting["C"]), filters * values.shape[1])


def _slow(trials: Trials) -> np.ndarray:
    """`(window, channel, time)` float64 means over bins of `1 / RATE_HZ` seconds; made once."""
    signals = trials.signals()
    size = max(1, round(signals.sfreq / RATE_HZ))
    bins = signals.values.shape[-1] // size
    if bins < 2:
        raise Unfit(
            f"windows of {signals.values.shape[-1]} samples at {signals.sfreq:g} Hz are too short for evoked "
            f"potentials; take {2 * size / signals.sfreq:g} s or more"
        )
    shape = (*signals.values.shape[:-1], bins, size)
    return trials.once("slow signals", lambda: signals.values[..., : bins * size].reshape(shape).mean(-1).astype(float))


def _vectors(made: Any, reference: np.ndarray, trials: Trials, rows: np.ndarray) -> np.ndarray:
    found = made.transform(_slow(trials)[rows])
    return tangent_vectors(found, reference, np.arange(len(found)))
