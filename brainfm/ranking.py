"""Methods ranked over data sets, as Demsar 2006 recommends (JMLR 7, Statistical comparisons of classifiers).

Data sets must be independent of each other: several tasks or protocols on the same people are not, and their ranking
describes more than it proves. Ranks need no common scale, so accuracies and R2 may stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

Scores = Mapping[str, Mapping[str, float]]


def ranked(scores: np.ndarray) -> np.ndarray:
    """Ranks within each data set, 1 the highest score; ties share the middle.

    Args:
        scores: `(dataset, method)`, higher is better, two or more of each.
    """
    scores = np.asarray(scores, float)
    if scores.ndim != 2 or min(scores.shape) < 2 or not np.isfinite(scores).all():
        raise ValueError(
            f"scores have shape {scores.shape}, all finite: {bool(np.isfinite(scores).all())}; "
            "a ranking needs two or more data sets and methods, each with a score"
        )
    return stats.rankdata(-scores, axis=1)


def friedman(scores: np.ndarray) -> tuple[float, float]:
    """Do the methods differ at all? F of Iman & Davenport 1980 on Friedman's statistic, and its p-value.

    Ties lower the statistic a little. With few data sets the F distribution is rough, and its p too small: p is never
    below that of all `n` data sets ranking all `k` methods alike by chance, `k! ** (1 - n)`.

    Args:
        scores: as in `ranked`.

    Returns:
        F and p; F is infinite where all data sets rank the methods alike.
    """
    ranks = ranked(scores)
    n, k = ranks.shape
    chi2 = 12 * n / (k * (k + 1)) * (np.sum(ranks.mean(axis=0) ** 2) - k * (k + 1) ** 2 / 4)
    rest = n * (k - 1) - chi2
    least = math.exp((1 - n) * math.lgamma(k + 1))
    if rest <= 1e-9:
        return float("inf"), least
    f = float((n - 1) * chi2 / rest)
    return f, max(least, float(stats.f.sf(f, k - 1, (k - 1) * (n - 1))))


def critical_difference(methods: int, datasets: int, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference: methods whose mean ranks are closer than this are not told apart.

    Args:
        methods, datasets: how many were ranked on how many. alpha: level of the whole family of comparisons.
    """
    q = stats.studentized_range.ppf(1 - alpha, methods, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(methods * (methods + 1) / (6 * datasets)))


def common(scores: Scores) -> tuple[list[str], list[str]]:
    """The data sets and methods of the largest whole table, two or more of each; empty lists where there is none.

    Methods are taken in the order of how many data sets have them, so what is left out is scored least often.

    Args:
        scores: data set → method → score.
    """
    methods = list(dict.fromkeys(m for one in scores.values() for m in one))
    methods.sort(key=lambda m: -sum(m in one for one in scores.values()))
    best: tuple[list[str], list[str]] = ([], [])
    for stop in range(2, len(methods) + 1):
        chosen = methods[:stop]
        whole = [name for name, one in scores.items() if all(m in one for m in chosen)]
        if len(whole) >= 2 and len(whole) * stop > len(best[0]) * len(best[1]):
            best = whole, chosen
    return best


def ranking(scores: Scores, alpha: float = 0.05) -> dict[str, Any] | None:
    """Mean ranks of the methods over the data sets that have them all; None without two of each.

    Args:
        scores: data set → method → score, higher is better. alpha: level of the critical difference.

    Returns:
        `datasets`, `ranks` (method → mean rank, best first), `f`, `p`, `critical_difference`, `alike` (groups of
        neighbours that are not told apart) and `left_out` (methods without a score somewhere).
    """
    datasets, methods = common(scores)
    if not datasets:
        return None
    table = np.array([[scores[d][m] for m in methods] for d in datasets])
    mean = ranked(table).mean(axis=0)
    order = np.argsort(mean, kind="stable")
    ranks = {methods[i]: float(mean[i]) for i in order}
    f, p = friedman(table)
    difference = critical_difference(len(methods), len(datasets), alpha)
    every = dict.fromkeys(m for one in scores.values() for m in one)
    return {
        "datasets": datasets, "ranks": ranks, "f": f, "p": p, "critical_difference": difference,
        "alike": alike(ranks, difference), "left_out": [m for m in every if m not in methods],
    }  # fmt: skip


def alike(ranks: Mapping[str, float], difference: float) -> list[list[str]]:
    """Largest groups of two or more methods whose mean ranks lie within `difference`; methods best first."""
    names, found = list(ranks), []
    last = 0
    for i, name in enumerate(names):
        group = [n for n in names[i:] if ranks[n] - ranks[name] < difference]
        if len(group) > 1 and i + len(group) > last:
            found.append(group)
            last = i + len(group)
    return found
