"""Intervals and p-values by resampling. The unit that is resampled is the unit that a claim generalises over."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Metric = Callable[[np.ndarray, np.ndarray], float]


def bootstrap_ci(values: np.ndarray, n: int = 2000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean over units (Efron 1979, Bootstrap methods: another look at the jackknife).

    With fewer than about ten units it is somewhat narrow: five normal units cover the mean in about 84 % of cases.

    Args:
        values: `(unit,)` one score per subject.
        n: resamples.
        seed: of the resampling.
        level: coverage aimed at.

    Raises:
        ValueError: for fewer than two units, whose spread nothing can tell; use `bootstrap_trials`.
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(
            f"an interval over subjects needs two or more scores; got {values.size}: use `bootstrap_trials`"
        )
    means = values[np.random.default_rng(seed).integers(len(values), size=(n, len(values)))].mean(axis=1)
    return _percentiles(means, level)


def bootstrap_trials(
    true: np.ndarray,
    predicted: np.ndarray,
    metric: Metric,
    n: int = 2000,
    seed: int = 0,
    block: int = 1,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a metric over the trials of one subject.

    Args:
        true, predicted: `(trial, ...)`, in order of time.
        metric: of resampled truth and prediction.
        n: resamples.
        seed: of the resampling.
        block: trials that stay together; more than 1 where neighbours are alike, as windows of a time series are
            (circular block bootstrap: Politis & Romano 1992).
        level: coverage aimed at.
    """
    rng, trials = np.random.default_rng(seed), len(true)
    block = min(max(1, block), trials)
    starts = rng.integers(trials, size=(n, -(-trials // block)))
    rows = ((starts[:, :, None] + np.arange(block)) % trials).reshape(n, -1)[:, :trials]
    return _percentiles(np.array([metric(true[r], predicted[r]) for r in rows]), level)


def interval(
    values: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,
    metric: Metric,
    n: int = 2000,
    seed: int = 0,
    block: int = 1,
) -> tuple[tuple[float, float], str]:
    """Interval of the mean over subjects, or over the trials of the only subject, and which of the two it is.

    Returns:
        `(low, high)` and "subjects" or "trials".
    """
    if len(values) >= 2:
        return bootstrap_ci(values, n, seed), "subjects"
    return bootstrap_trials(true, predicted, metric, n, seed, block), "trials"


def permutation_p(observed: float, null: np.ndarray) -> float:
    """One-sided p-value: how often chance does as well, counting the observation itself (Phipson & Smyth 2010).

    Args:
        observed: the score.
        null: `(permutation,)` scores under permuted labels.
    """
    null = np.asarray(null, float)
    return float((1 + np.sum(null >= observed)) / (1 + null.size))


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.percentile(values, (50 * (1 - level), 50 * (1 + level)))
    return float(low), float(high)
