"""Scores of predictions, in numpy. Every function takes the truth first.

Arrays of continuous values are `(time,)` or `(time, column)`; columns count equally.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Share of `(trial,)` labels that are right."""
    true, predicted = _paired(true, predicted)
    return float(np.mean(true == predicted))


def balanced_accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the classes that occur in `true` of the share of their trials that are right."""
    true, predicted = _paired(true, predicted)
    _, number = np.unique(true, return_inverse=True)
    return float(np.mean(np.bincount(number, true == predicted) / np.bincount(number)))


def confusion(true: np.ndarray, predicted: np.ndarray, labels: list) -> np.ndarray:
    """`(class, class)` counts in the order of `labels`; rows are the truth.

    Raises:
        ValueError: for a label that is not in `labels`.
    """
    true, predicted = _paired(true, predicted)
    place = {label: i for i, label in enumerate(labels)}
    unknown = (set(true.tolist()) | set(predicted.tolist())) - set(place)
    if unknown:
        raise ValueError(f"labels {sorted(unknown)} are not among {list(labels)}; name every class")
    flat = [place[t] * len(labels) + place[p] for t, p in zip(true.tolist(), predicted.tolist(), strict=True)]
    return np.bincount(flat, minlength=len(labels) ** 2).reshape(len(labels), len(labels))


def auroc(true: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive trial outranks a negative one, ties counting half.

    Args:
        true: `(trial,)` zeros and ones, both present.
        score: `(trial,)` larger for ones.

    Raises:
        ValueError: where one of the two classes is absent.
    """
    true, score = _paired(true, score)
    positive = true.astype(bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        raise ValueError(f"got {n_positive} positive and {n_negative} negative trials; AUROC needs both classes")
    return float((rankdata(score)[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def r2(true: np.ndarray, predicted: np.ndarray) -> float:
    """1 - SSE / SST, the mean over columns. A constant true column counts 1 if met exactly and 0 otherwise."""
    true, predicted = _columns(true, predicted)
    error = np.sum((true - predicted) ** 2, axis=0)
    total = np.sum((true - true.mean(axis=0)) ** 2, axis=0)
    return _share(error, total)


def explained_variance(true: np.ndarray, predicted: np.ndarray) -> float:
    """1 - Var(error) / Var(true), the mean over columns; unlike `r2` it forgives a constant bias."""
    true, predicted = _columns(true, predicted)
    return _share(np.var(true - predicted, axis=0), np.var(true, axis=0))


def pearson(true: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson correlation over time, the mean over columns; a constant column counts 0."""
    true, predicted = _columns(true, predicted)
    true, predicted = true - true.mean(axis=0), predicted - predicted.mean(axis=0)
    scale = np.linalg.norm(true, axis=0) * np.linalg.norm(predicted, axis=0)
    product = np.sum(true * predicted, axis=0)
    return float(np.mean(np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)))


def retrieval_ranks(similarity: np.ndarray, true: np.ndarray) -> np.ndarray:
    """`(probe,)` rank of each probe's true candidate, 1 the best; ties share the middle of their ranks.

    Args:
        similarity: `(probe, candidate)`, larger is closer.
        true: `(probe,)` index of each probe's candidate.
    """
    own = similarity[np.arange(len(similarity)), true][:, None]
    return 1 + (similarity > own).sum(axis=1) + ((similarity == own).sum(axis=1) - 1) / 2


def top_k_retrieval(similarity: np.ndarray, true: np.ndarray, k: int = 1) -> float:
    """Share of probes whose true candidate ranks among the best `k`; chance is k over the number of candidates."""
    return float(np.mean(retrieval_ranks(similarity, true) <= k))


def _paired(true: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    true, predicted = np.asarray(true), np.asarray(predicted)
    if true.shape != predicted.shape or true.size == 0:
        raise ValueError(f"truth has shape {true.shape} and prediction {predicted.shape}; expected the same, not empty")
    return true, predicted


def _columns(true: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    true, predicted = _paired(np.asarray(true, float), np.asarray(predicted, float))
    return (true[:, None], predicted[:, None]) if true.ndim == 1 else (true, predicted)


def _share(error: np.ndarray, total: np.ndarray) -> float:
    exact = np.where(error == 0, 1.0, 0.0)
    return float(np.mean(np.where(total > 0, 1 - error / np.where(total > 0, total, 1), exact)))
