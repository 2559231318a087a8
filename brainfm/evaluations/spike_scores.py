"""Scores of predicted firing rates as the Neural Latents Benchmark defines them, in numpy.

Paper: Pei et al. 2021, "Neural Latents Benchmark '21: Evaluating latent variable models of neural population activity",
NeurIPS Datasets and Benchmarks, https://arxiv.org/abs/2109.04463. Rates are expected counts per bin, not Hz. NaN counts
or behaviour are moments that do not count. No argument is changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV

from brainfm.metrics import pearson, r2

#: Penalties that `velocity_r2` chooses from.
ALPHA = tuple(np.logspace(-4, 0, 9))
#: What a rate of exactly 0 counts as.
LEAST = 1e-9


def poisson_nll(counts: np.ndarray, rates: np.ndarray) -> float:
    """Negative log-likelihood of counts in nats, summed; NaN counts are left out and rates of 0 count as 1e-9.

    Args:
        counts: `(..., neuron)` spikes per bin; NaN where unknown. rates: the same shape, expected counts per bin.

    Raises:
        ValueError: for other shapes, and for negative or missing rates where there is a count.
    """
    counts, rates = np.asarray(counts, float), np.asarray(rates, float)
    if counts.shape != rates.shape:
        raise ValueError(f"counts {counts.shape} and rates {rates.shape}; expected one rate for each count")
    known = ~np.isnan(counts)
    n, r = counts[known], rates[known]
    wrong = int((~(r >= 0)).sum())
    if wrong:
        raise ValueError(
            f"{wrong} of {r.size} rates are negative or NaN; expected counts per bin of 0 or more: take the "
            "exponential of log rates"
        )
    r = np.where(r == 0, LEAST, r)
    return float(np.sum(r - n * np.log(r) + gammaln(n + 1)))


def bits_per_spike(counts: np.ndarray, rates: np.ndarray) -> float:
    """Bits per spike that rates gain over each neuron's mean in these very counts; 0 for that mean itself.

    On held-out neurons this is co-bps, on bins after the window of all neurons fp-bps.

    Args:
        counts, rates: as in `poisson_nll`.

    Raises:
        ValueError: as in `poisson_nll`, and where there is no spike.
    """
    counts = np.asarray(counts, float)
    spikes = float(np.nansum(counts))
    if not spikes > 0:
        raise ValueError(f"{counts.size} counts without a spike; bits per spike need one: take more trials or neurons")
    over = tuple(range(counts.ndim - 1))
    known = (~np.isnan(counts)).sum(axis=over)
    null = np.broadcast_to(np.nansum(counts, axis=over) / np.maximum(known, 1), counts.shape)
    return (poisson_nll(counts, null) - poisson_nll(counts, rates)) / spikes / math.log(2)


def velocity_r2(
    train_rates: np.ndarray, train_velocity: np.ndarray, rates: np.ndarray, velocity: np.ndarray,
    train_groups: np.ndarray | None = None, groups: np.ndarray | None = None,
) -> float:  # fmt: skip
    """R2 of velocity from rates at the same time by ridge, its penalty chosen over five blocks of the training trials.

    Args:
        train_rates, rates: `(trial, time, neuron)` of the two sides. train_velocity, velocity: `(trial, time, axis)`;
            a moment whose first axis is NaN is left out.
        train_groups, groups: `(trial, group)` True where a trial belongs to a group with a decoder of its own, over
            which the score is averaged; one group of all where None.

    Raises:
        ValueError: where a rate is NaN at a moment that counts.
    """
    sides = []
    for x, y, member in ((train_rates, train_velocity, train_groups), (rates, velocity, groups)):
        x, y = np.asarray(x, float), np.asarray(y, float)
        member = np.ones((len(x), 1), bool) if member is None else np.asarray(member, bool)
        sides.append((x, y, member))
    scores = []
    for group in range(sides[0][2].shape[1]):
        (x, y), (x_test, y_test) = (_moments(x[member[:, group]], y[member[:, group]]) for x, y, member in sides)
        search = GridSearchCV(Ridge(), {"alpha": ALPHA}).fit(x, y)
        scores.append(r2(y_test, search.predict(x_test)))
    return float(np.mean(scores))


def _moments(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(moment, feature)` of both, without those where behaviour is unknown."""
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    known = ~np.isnan(y[:, 0])
    if np.isnan(x[known]).any():
        raise ValueError(
            f"{int(np.isnan(x[known]).any(axis=1).sum())} moments with behaviour have NaN rates; mend them"
        )
    return x[known], y[known]


def psth_r2(
    psth: np.ndarray, rates: np.ndarray, trials: Sequence[np.ndarray], jitter: np.ndarray | None = None
) -> float:
    """R2 of trial-averaged predicted rates against measured averages, over all conditions, the mean over neurons.

    Args:
        psth: `(condition, time, neuron)`; NaN at times that do not count.
        rates: `(trial, time, neuron)`. trials: of each condition, the numbers of its trials; none leaves it out.
        jitter: `(trial,)` bins by which each trial's rates are moved later before averaging; 0 where None.

    Raises:
        ValueError: where averages are NaN at a time that counts.
    """
    psth, rates = np.asarray(psth, float), np.asarray(rates, float)
    shift = np.zeros(len(rates), int) if jitter is None else np.asarray(jitter, int)
    true, predicted = [], []
    for measured, rows in zip(psth, trials, strict=True):
        if len(rows) == 0:
            continue
        mean = np.mean([_moved(rates[i], int(shift[i])) for i in rows], axis=0)
        known = ~np.isnan(measured[:, 0])
        if np.isnan(mean[known]).any():
            raise ValueError("predicted averages are NaN at times that count; predict longer windows for the jitter")
        true.append(measured[known])
        predicted.append(mean[known])
    return r2(np.concatenate(true), np.concatenate(predicted))


def _moved(x: np.ndarray, bins: int) -> np.ndarray:
    """`(time, neuron)` moved later by `bins`, earlier where negative; NaN where nothing comes from."""
    out = np.full(x.shape, np.nan)
    if bins >= 0:
        out[bins:] = x[: len(x) - bins]
    else:
        out[:bins] = x[-bins:]
    return out


def tp_correlation(counts: np.ndarray, rates: np.ndarray, behaviour: np.ndarray) -> float:
    """Correlation of neural speed with the interval that an animal then produces, the mean over conditions.

    Args:
        counts: `(trial, time, neuron)`; NaN outside the time between the two events that bound the interval.
        rates: `(trial, time, neuron)`. behaviour: `(trial, column)`: three columns that name the condition, and last
            the produced interval; trials whose condition is all NaN are left out.
    """
    inside = ~np.isnan(np.asarray(counts, float)[..., 0])
    speed = np.array([np.linalg.norm(np.diff(x[m], axis=0), axis=1).mean() for x, m in zip(rates, inside, strict=True)])
    condition, produced = np.asarray(behaviour, float)[:, :3], np.asarray(behaviour, float)[:, -1]
    found = [
        pearson(produced[own], speed[own])
        for word in np.unique(condition[~np.isnan(condition).all(axis=1)], axis=0)
        if (own := (condition == word).all(axis=1)).any()
    ]
    if not found:
        raise ValueError(f"none of {len(condition)} trials has a condition; expected three columns that name it")
    return float(np.mean(found))
