"""Scores of predictions, in numpy. Every function takes the truth first.

Arrays of continuous values are `(time,)` or `(time, column)`; columns count equally. Class probabilities are
`(trial, class)` with class numbers `(trial,)` as truth.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
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


def chance_corrected(score: float, chance: float) -> float:
    """`(score - chance) / (1 - chance)`: 0 for guessing, 1 for no error, below 0 for worse than guessing.

    Raises:
        ValueError: for a chance level that is not below 1.
    """
    if not chance < 1:
        raise ValueError(f"chance is {chance}; expected a level below 1, as 1 over the number of classes")
    return (score - chance) / (1 - chance)


def kappa(true: np.ndarray, predicted: np.ndarray) -> float:
    """Cohen's kappa: agreement beyond what the two margins give (Cohen 1960, Educ. Psychol. Measurement 20).

    0 where both hold one and the same class, for then agreement tells nothing.
    """
    true, predicted = _paired(true, predicted)
    labels = sorted({*true.tolist(), *predicted.tolist()})
    counts = confusion(true, predicted, labels)
    expected = float(counts.sum(axis=0) @ counts.sum(axis=1)) / counts.sum() ** 2
    return 0.0 if expected == 1 else chance_corrected(float(np.trace(counts) / counts.sum()), expected)


def macro_f1(true: np.ndarray, predicted: np.ndarray) -> float:
    """F1 of each class that occurs in truth or prediction, each counting equally; a class never hit counts 0."""
    true, predicted = _paired(true, predicted)
    counts = confusion(true, predicted, sorted({*true.tolist(), *predicted.tolist()}))
    return float(np.mean(2 * np.diag(counts) / (counts.sum(axis=0) + counts.sum(axis=1))))


def log_loss(true: np.ndarray, chances: np.ndarray, least: float = 1e-15) -> float:
    """Mean negative log probability of the true class, in nats; log of the number of classes is guessing.

    Args:
        true: `(trial,)` class numbers. chances: `(trial, class)` probabilities.
        least: what a probability of 0 counts as, for its log is infinite.
    """
    true, chances = _probable(true, chances)
    return float(-np.mean(np.log(np.maximum(chances[np.arange(len(true)), true], least))))


def brier(true: np.ndarray, chances: np.ndarray) -> float:
    """Mean over trials of the squared error summed over all classes, 0 to 2 (Brier 1950, Monthly Weather Review 78).

    With two classes it is twice what is often called so, which sums over one class only.

    Args:
        true, chances: as in `log_loss`.
    """
    true, chances = _probable(true, chances)
    return float(np.mean(np.sum((chances - np.eye(chances.shape[1])[true]) ** 2, axis=1)))


def ece(true: np.ndarray, chances: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: how far confidence is from accuracy, mean over trials (Guo et al. 2017, ICML, eq. 3).

    Trials are put into `bins` equally wide bins of confidence, the probability of the likeliest class; each bin is open
    below and closed above. With few trials it is above 0 for a calibrated decoder too, more so with more bins.

    Args:
        true, chances: as in `log_loss`. bins: Guo et al. take 15.
    """
    true, chances = _probable(true, chances)
    confidence = chances.max(axis=1)
    surplus = (chances.argmax(axis=1) == true) - confidence
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    return float(np.abs(np.bincount(place, surplus, bins)).sum() / len(true))


def multiclass_auroc(true: np.ndarray, chances: np.ndarray) -> float:
    """Area under the ROC curve of each class against the rest, the mean over the classes that occur in `true`.

    With two classes whose probabilities sum to 1 it equals `auroc`.

    Args:
        true, chances: as in `log_loss`.

    Raises:
        ValueError: where all trials are of one class.
    """
    true, chances = _probable(true, chances)
    return float(np.mean([auroc(true == c, chances[:, c]) for c in np.unique(true)]))


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


def two_way_identification(true: np.ndarray, predicted: np.ndarray) -> float:
    """Share of distractors that are less like a prediction than its own truth is, by Pearson correlation; chance 0.5.

    As MindEye has it (Scotti et al. 2023, https://arxiv.org/abs/2305.18274): the other true items are the distractors,
    and a tie is a failure.

    Args:
        true, predicted: `(item, ...)` features or images, two items or more.
    """
    true, predicted = _paired(np.asarray(true, float), np.asarray(predicted, float))
    if len(true) < 2:
        raise ValueError(f"got {len(true)} item; two-way identification needs two or more")
    r = _unit_rows(true) @ _unit_rows(predicted).T  # (true, predicted)
    return float(np.sum(r < np.diag(r)) / (len(r) * (len(r) - 1)))


def pixcorr(true: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson correlation of all pixels of an image with its reconstruction, the mean over images; 0 for a flat image.

    Published numbers are of images of 425 x 425 pixels; resize before.

    Args:
        true, predicted: `(image, ...)`, pixels and colours.
    """
    true, predicted = _paired(np.asarray(true, float), np.asarray(predicted, float))
    return float(np.mean(np.sum(_unit_rows(true) * _unit_rows(predicted), axis=1)))


def ssim(true: np.ndarray, predicted: np.ndarray) -> float:
    """Structural similarity of grey images, the mean over images (Wang et al. 2004, IEEE Trans. Image Processing 13).

    Gaussian weights of 1.5 pixels cut at 5, population covariance, range 0 to 1, a border of 5 pixels left out.

    Args:
        true, predicted: `(image, row, column)` between 0 and 1, 11 pixels or more to a side.
    """
    true, predicted = _paired(np.asarray(true, float), np.asarray(predicted, float))
    if true.ndim != 3 or min(true.shape[1:]) < 11:
        raise ValueError(f"images have shape {true.shape}; expected (image, row, column) of 11 or more pixels a side")

    def blurred(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, sigma=(0, 1.5, 1.5), radius=(0, 5, 5), mode="reflect")

    a, b = blurred(true), blurred(predicted)
    a_var, b_var = blurred(true**2) - a**2, blurred(predicted**2) - b**2
    both = blurred(true * predicted) - a * b
    c1, c2 = 0.01**2, 0.03**2
    each = (2 * a * b + c1) * (2 * both + c2) / ((a**2 + b**2 + c1) * (a_var + b_var + c2))
    return float(each[:, 5:-5, 5:-5].mean())


def noise_ceiling(repeats: np.ndarray, n_test: int = 1) -> np.ndarray:
    """Share of the variance of a mean over `n_test` repeats that the stimulus explains, so that no model exceeds it.

    Signal variance is that of the means over repeats less what noise adds to it; noise variance is that within a
    stimulus (Allen et al. 2022, Nature Neuroscience 25, "noise ceiling"). Its root is the largest correlation.

    Args:
        repeats: `(stimulus, repeat, ...)`, two or more of each.
        n_test: repeats that the scored response averages.

    Returns:
        `(...)` between 0 and 1; 0 where nothing varies.
    """
    repeats = np.asarray(repeats, float)
    if repeats.ndim < 2 or min(repeats.shape[:2]) < 2:
        raise ValueError(f"repeats have shape {repeats.shape}; expected (stimulus, repeat, ...), two or more of each")
    noise = repeats.var(axis=1, ddof=1).mean(axis=0)
    signal = np.maximum(repeats.mean(axis=1).var(axis=0, ddof=1) - noise / repeats.shape[1], 0)
    whole = signal + noise / n_test
    return np.divide(signal, whole, out=np.zeros_like(whole), where=whole > 0)


def split_half_reliability(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two halves, stepped up to the whole: `2r / (1 + r)` (Spearman 1910, Brown 1910).

    Args:
        first, second: `(time,)` or `(time, column)`, for example the functional connectivity of two halves of a scan.
    """
    r = pearson(first, second)
    return 2 * r / (1 + r) if r > -1 else float("-inf")


def mean_correlation(r: np.ndarray) -> float:
    """Mean of correlations by Fisher's z, as over scans; 1 or -1 count as 0.999999 of it."""
    return float(np.tanh(np.mean(np.arctanh(np.clip(np.asarray(r, float), -0.999999, 0.999999)))))


def effective_samples(first: np.ndarray, second: np.ndarray, lags: int | None = None) -> float:
    """How many independent samples two slow series are worth in a test of their correlation.

    `n / (1 + 2 sum_k (1 - k / n) r1(k) r2(k))`, r the autocorrelations (Bartlett 1946; Bretherton et al. 1999, Journal
    of Climate 12, eq. 31). Their correlation then has about this many less two degrees of freedom. Between 1 and n.

    Args:
        first, second: `(time,)`, stationary.
        lags: how many enter; a fifth of the series if not given, for later ones are noise.
    """
    n = len(first)
    if n != len(second) or n < 5:
        raise ValueError(f"got series of {n} and {len(second)} samples; expected as many in both, five or more")
    k = np.arange(1, (n // 5 if lags is None else lags) + 1)
    product = _autocorrelation(first)[k] * _autocorrelation(second)[k]
    return float(np.clip(n / max(1 + 2 * np.sum((1 - k / n) * product), 1 / n), 1, n))


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


def _probable(true: np.ndarray, chances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers and their probabilities, checked."""
    true, chances = np.asarray(true), np.asarray(chances, float)
    if true.ndim != 1 or not len(true) or chances.ndim != 2 or len(chances) != len(true):
        raise ValueError(
            f"truth has shape {true.shape}, probabilities {chances.shape}; expected (trial,), (trial, class)"
        )
    if not np.issubdtype(true.dtype, np.integer) or true.min() < 0 or true.max() >= chances.shape[1]:
        raise ValueError(
            f"truth holds {sorted(set(true.tolist()))[:5]}; expected class numbers from 0 to {chances.shape[1] - 1}, "
            "the columns of the probabilities"
        )
    if not (np.all(chances >= 0) and np.allclose(chances.sum(axis=1), 1, atol=1e-3)):
        raise ValueError("probabilities are negative, NaN or do not sum to 1 over classes; pass logits through softmax")
    return true, chances


def _autocorrelation(x: np.ndarray) -> np.ndarray:
    """`(lag,)` from 0, biased: 1 at lag 0, and zeros throughout for a constant."""
    x = np.asarray(x, float) - np.mean(x)
    power = np.abs(np.fft.rfft(x, 2 * len(x))) ** 2
    found = np.fft.irfft(power)[: len(x)]
    return found / found[0] if found[0] > 0 else np.zeros(len(x))


def _unit_rows(x: np.ndarray) -> np.ndarray:
    """`(item, value)` with mean 0 and length 1, so that products are correlations; zeros where an item is constant."""
    flat = x.reshape(len(x), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, length, out=np.zeros_like(flat), where=length > 0)
