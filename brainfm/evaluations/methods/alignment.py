"""Bring people onto common ground without labels: whitening, centring, erasing who someone is, removing the 1/f part.

All functions are on arrays. `known` names the rows that may be looked at, without labels: a mask `(row,)` or row
numbers, None for all. Everyone needs at least one. All rows of a person are changed, known or not.

- `euclidean`: He and Wu, "Transfer learning for brain-computer interfaces: a Euclidean space data alignment approach",
  IEEE Trans Biomed Eng 2020, https://arxiv.org/abs/1808.05464, equations 1 and 2.
- `riemannian`, `recentred`: Zanini et al., "Transfer learning: a Riemannian geometry framework with applications to
  brain-computer interfaces", IEEE Trans Biomed Eng 2018, equation 15: the reference is the mean of a person's rows.
- `Erasure`: Belrose et al., "LEACE: perfect linear concept erasure in closed form", NeurIPS 2023,
  https://arxiv.org/abs/2306.03819, theorem 4.3.
- `aperiodic`: the line under the peaks of a log-log spectrum, after Donoghue et al., "Parameterizing neural power
  spectra into periodic and aperiodic components", Nature Neuroscience 2020; fitted more simply, see there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import digamma, polygamma

from brainfm.evaluations.protocol import Unfit

#: Eigenvalues under this share of their mean count as none.
RANK = 1e-6
#: A person's own mean and deviation count fully from so many rows on; with fewer, those of all count for the rest.
ENOUGH = 5
#: Where the 1/f line is fitted, in Hz.
FIT_HZ = (1.0, 45.0)
#: Variance of the natural logarithm of a spectrum about its line that does not come from chance.
MISFIT = 0.05


def euclidean(signals: np.ndarray, people: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Each person's signals times R^(-1/2), with R the mean covariance over the person's known rows.

    Unlike the paper, each window is centred for R. R is shrunk by `oas` where the person has fewer than 2 known rows or
    R lacks full rank (average reference, a flat channel).

    Args:
        signals: `(window, channel, time)`. people: `(window,)` names. known: see above.

    Returns:
        `(window, channel, time)` in the type of `signals`; a person's mean covariance is the identity.

    Raises:
        Unfit: for a person without a known row, without any variance there, or with values that are not finite.
    """
    return _whitened(signals, people, known, _mean_covariance)


def riemannian(signals: np.ndarray, people: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """As `euclidean`, with R the Riemannian mean of the covariances (`oas`) of the person's known rows."""
    return _whitened(signals, people, known, lambda x: riemannian_mean(covariances(x)))


def recentred(matrices: np.ndarray, people: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Covariances `(window, channel, channel)` moved so that each person's Riemannian mean is the identity.

    Raises:
        Unfit: for a person without a known row.
    """
    out = np.empty_like(matrices, dtype=float)
    for name, own, seen in by_person(people, known):
        root = inverse_root(riemannian_mean(_finite(matrices[seen], name)))
        out[own] = root @ matrices[own] @ root
    return out


def statistics(features: np.ndarray, people: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Features minus the mean and over the standard deviation of the person's known rows.

    A person with fewer than `ENOUGH` known rows takes the rest from the averages over people: one row alone would
    become zero. A feature that is constant in the known rows is only centred.

    Args:
        features: `(window, feature)`. people: `(window,)` names. known: see above.

    Raises:
        Unfit: for a person without a known row, or with values that are not finite.
    """
    groups = list(by_person(people, known))
    rows = [_finite(features[seen], name).astype(float) for name, _, seen in groups]
    means = np.stack([x.mean(axis=0) for x in rows])
    several = [x.var(axis=0) for x in rows if len(x) > 1]
    within = np.mean(several, axis=0) if several else np.ones(means.shape[1])
    out = np.empty(features.shape, np.result_type(features.dtype, np.float32))
    for (_, own, _), x, mean in zip(groups, rows, means, strict=True):
        share = min(len(x) / ENOUGH, 1.0)
        middle = share * mean + (1 - share) * means.mean(axis=0)
        variance = share * x.var(axis=0) + (1 - share) * within
        # deviations that are rounding errors of the mean are none
        constant = variance <= (1e-7 * np.abs(middle)) ** 2
        out[own] = (features[own] - middle) / np.sqrt(np.where(constant, 1.0, variance))
    return out


@dataclass(frozen=True)
class Erasure:
    """A linear map after which no linear readout tells the people apart on whom it was fitted; the least such change.

    Attributes:
        mean: `(feature,)`. axes: `(feature, axis)` that read who someone is. back: `(axis, feature)` is taken away.
        strength: `(axis,)` correlation of each axis with the people, 0 to 1; falling.
    """

    mean: np.ndarray
    axes: np.ndarray
    back: np.ndarray
    strength: np.ndarray

    @classmethod
    def fit(
        cls, features: np.ndarray, people: np.ndarray, labels: np.ndarray | None = None, at_most: int | None = None
    ) -> Erasure:
        """Find the subspace of the people's means, whitened.

        Args:
            features: `(window, feature)` of training people.
            people: `(window,)` names.
            labels: `(window,)` where given, means are taken within each class, so that a class that is not spread
                evenly over the people is not erased with them.
            at_most: number of axes; the strongest are taken. None: all, but no more than half the features, for n
                people have n - 1 and would leave nothing of a short encoding.

        Raises:
            Unfit: for fewer than two people, or values that are not finite.
        """
        names, who = np.unique(people, return_inverse=True)
        if len(names) < 2:
            raise Unfit(f"erasing who someone is needs two people or more to fit on, got {len(names)}")
        x = _finite(features, "training").astype(float)
        mean = x.mean(axis=0)
        covariance = oas(np.cov(x.T, bias=True).reshape(x.shape[1], -1)[None], len(x))[0]
        power, basis = np.linalg.eigh(covariance)
        usable = power > max(power[-1], np.finfo(float).tiny) * 1e-12
        scale, basis = np.sqrt(power[usable]), basis[:, usable]
        one_hot, centred = np.eye(len(names))[who], x - mean
        for c in [slice(None)] if labels is None else [labels == value for value in np.unique(labels)]:
            one_hot[c] -= one_hot[c].mean(axis=0)
            centred[c] -= centred[c].mean(axis=0)
        # rows of the one-hot code in units of its own deviation: singular values are canonical correlations
        deviation = np.sqrt(np.maximum(np.bincount(who) / len(who), 1e-12))
        cross = (basis / scale).T @ centred.T @ (one_hot / deviation) / len(x)
        left, strength, _ = np.linalg.svd(cross, full_matrices=False)
        limit = max(1, x.shape[1] // 2) if at_most is None else at_most
        kept = np.flatnonzero(strength > 1e-9)[:limit]
        return cls(mean, basis / scale @ left[:, kept], (basis * scale @ left[:, kept]).T, strength[kept])

    def apply(self, features: np.ndarray) -> np.ndarray:
        """`(window, feature)` without the axes; of anyone."""
        return (features - (features - self.mean) @ self.axes @ self.back).astype(features.dtype)


def aperiodic(signals: np.ndarray, sfreq: float, fit_hz: tuple[float, float] = FIT_HZ) -> np.ndarray:
    """`(window, channel, 2)` offset and exponent of the 1/f part: log10 power density = offset - exponent log10 hertz.

    The line is fitted to means of a Hann-tapered spectrum in equal steps of log frequency, weighted by their certainty.
    Four times over, bands that stand two robust deviations above it (peaks) are left out. Flat channels get (-inf, 0).

    Args:
        signals: `(window, channel, time)`. sfreq: samples per second.
        fit_hz: from, to; keep to what the filters let pass. Ends at .9 of the Nyquist frequency at the latest.

    Raises:
        Unfit: where fewer than five bands can be told apart: windows too short, or a rate too low.
    """
    samples = signals.shape[-1]
    hertz = np.fft.rfftfreq(samples, 1 / sfreq)
    low, high = fit_hz[0], min(fit_hz[1], 0.45 * sfreq)
    inside = (hertz >= low) & (hertz <= high)
    edges = np.geomspace(low, max(high, low * 1.01), 25) * (1 - 1e-9)
    band = np.unique(np.searchsorted(edges, hertz[inside], "right"), return_inverse=True)[1]
    if not inside.any() or band.max() < 4:
        raise Unfit(
            f"windows of {samples / sfreq:g} s at {sfreq:g} Hz do not resolve five bands in {low:g} to {high:g} Hz; "
            "use longer windows of EEG, MEG or LFP"
        )
    member = np.eye(band.max() + 1)[band]
    count = member.sum(axis=0)
    x = member.T @ np.log10(hertz[inside]) / count
    taper = np.hanning(samples + 1)[:-1]
    out = np.empty((*signals.shape[:2], 2))
    for first in range(0, len(signals), 256):
        part = signals[first : first + 256].astype(float)
        part = (part - part.mean(axis=-1, keepdims=True)) * taper
        power = np.abs(np.fft.rfft(part)[..., inside]) ** 2 * (2 / (sfreq * np.sum(taper**2)))
        power = power @ member / count
        flat = power.max(axis=-1) <= 0
        power[flat] = 1.0
        # the logarithm of a mean of few exponentials lies too low on average
        y = np.log10(np.maximum(power, np.finfo(float).tiny)) - (digamma(count) - np.log(count)) / np.log(10)
        line = _line(x, y, np.sqrt(polygamma(1, count) + MISFIT))
        line[flat] = -np.inf, 0.0
        out[first : first + 256] = line
    return out


def without_aperiodic(signals: np.ndarray, sfreq: float, fit_hz: tuple[float, float] = FIT_HZ) -> np.ndarray:
    """Signals without their 1/f part: each spectrum divided by the root of its own fitted law, phases kept.

    What is nothing but 1/f comes out as white noise of variance 1; peaks stay as far above it as they were. The mean is
    removed; flat channels become zero.

    Args:
        signals: `(window, channel, time)` in any unit. sfreq, fit_hz: as for `aperiodic`.

    Returns:
        `(window, channel, time)` float32.
    """
    samples = signals.shape[-1]
    offset, exponent = np.moveaxis(aperiodic(signals, sfreq, fit_hz), -1, 0)
    hertz = np.log10(np.fft.rfftfreq(samples, 1 / sfreq)[1:])
    out = np.zeros(signals.shape, np.float32)
    for first in range(0, len(signals), 256):
        part = slice(first, first + 256)
        spectrum = np.fft.rfft(signals[part].astype(float))
        law = offset[part, :, None] - exponent[part, :, None] * hertz
        spectrum[..., 0] = 0
        spectrum[..., 1:] *= np.where(np.isfinite(law), 10 ** (-law / 2), 0.0)
        out[part] = np.fft.irfft(spectrum, samples) / np.sqrt(sfreq / 2)
    return out


def covariances(signals: np.ndarray, shrunk: bool = True) -> np.ndarray:
    """`(window, channel, channel)` float64 covariance of each window about its mean; `shrunk` by `oas`."""
    window, channel, samples = signals.shape
    out = np.empty((window, channel, channel))
    for first in range(0, window, 64):
        part = signals[first : first + 64].astype(float)
        part -= part.mean(axis=-1, keepdims=True)
        out[first : first + 64] = part @ part.swapaxes(1, 2) / samples
    return oas(out, samples) if shrunk else out


def oas(matrices: np.ndarray, samples: int) -> np.ndarray:
    """Covariances `(window, channel, channel)` shrunk towards their mean variance, so that each has full rank.

    Chen et al. 2010, Shrinkage algorithms for MMSE covariance estimation, with the weight as scikit-learn computes it.
    A window without any variance takes a billionth of the mean one.

    Raises:
        Unfit: where no window has any variance.
    """
    n = matrices.shape[-1]
    level = np.trace(matrices, axis1=1, axis2=2) / n
    if not np.any(level > 0):
        raise Unfit("the signals have no variance in any window; leave flat recordings out")
    square = np.mean(matrices**2, axis=(1, 2))
    below = (samples + 1) * (square - level**2 / n)
    weight = np.where(below > 0, np.minimum((square + level**2) / np.where(below > 0, below, 1.0), 1.0), 1.0)
    level = np.maximum(level, 1e-9 * level.mean())
    return (1 - weight)[:, None, None] * matrices + (weight * level)[:, None, None] * np.eye(n)


def riemannian_mean(matrices: np.ndarray) -> np.ndarray:
    """`(channel, channel)` affine-invariant mean of positive definite `(window, channel, channel)`, by pyRiemann."""
    from pyriemann.geometry.mean import mean_riemann

    return matrices[0] if len(matrices) == 1 else mean_riemann(matrices, tol=1e-8, maxiter=50)


def inverse_root(matrix: np.ndarray) -> np.ndarray:
    """A^(-1/2) of a symmetric positive matrix; directions without power stay without."""
    power, basis = np.linalg.eigh(matrix)
    least = power[-1] * 1e-12
    return (basis * np.where(power > least, 1 / np.sqrt(np.maximum(power, least)), 0.0)) @ basis.T


def by_person(people: np.ndarray, known: np.ndarray | None = None) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, mask of all rows and numbers of the known rows of each person.

    Raises:
        Unfit: for a person without a known row.
    """
    people, seen = np.asarray(people), np.ones(len(people), bool)
    if known is not None:
        known = np.asarray(known)
        if known.dtype == bool and known.shape != people.shape:
            raise ValueError(f"a mask of known rows of shape {known.shape}; expected {people.shape}, one per window")
        seen = np.zeros(len(people), bool)
        seen[known.astype(np.int64) if not len(known) else known] = True
    for name in np.unique(people):
        own = people == name
        rows = np.flatnonzero(own & seen)
        if not len(rows):
            raise Unfit(
                f"no known row of {name}, who has {int(own.sum())} windows; give at least one without labels (a rest), "
                "or leave the person out"
            )
        yield name, own, rows


def _whitened(
    signals: np.ndarray, people: np.ndarray, known: np.ndarray | None, reference: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    out = np.empty(signals.shape, np.result_type(signals.dtype, np.float32))
    for name, own, seen in by_person(people, known):
        part = _finite(signals[seen], name)
        if not np.any(np.ptp(part, axis=-1)):
            raise Unfit(f"{name}: the signals have no variance in {len(seen)} known rows; leave the person out")
        out[own] = inverse_root(reference(part)).astype(out.dtype) @ signals[own]
    return out


def _mean_covariance(signals: np.ndarray) -> np.ndarray:
    mean = covariances(signals, shrunk=False).mean(axis=0)
    power = np.linalg.eigvalsh(mean)
    if len(signals) > 1 and power[0] > RANK * power.mean():
        return mean
    return oas(mean[None], signals.shape[0] * signals.shape[2])[0]


def _finite(values: np.ndarray, name: str) -> np.ndarray:
    if not np.all(np.isfinite(values)):
        bad = int(np.sum(~np.isfinite(values).reshape(len(values), -1).all(axis=1)))
        raise Unfit(f"{name}: {bad} of {len(values)} rows hold values that are not finite; leave them out first")
    return values


def _line(x: np.ndarray, y: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """`(..., 2)` offset and exponent of lines `y (..., band)` over `x (band,)`, without what stands far above.

    `deviation (band,)` is that of `y` by chance, up to a factor.
    """
    every = np.broadcast_to(deviation**-2.0, y.shape)
    weight = every
    for _ in range(5):
        total = weight.sum(axis=-1, keepdims=True)
        x_mean = (weight * x).sum(axis=-1, keepdims=True) / total
        y_mean = (weight * y).sum(axis=-1, keepdims=True) / total
        slope = (weight * (x - x_mean) * (y - y_mean)).sum(axis=-1) / (weight * (x - x_mean) ** 2).sum(axis=-1)
        offset = y_mean[..., 0] - slope * x_mean[..., 0]
        rest = (y - offset[..., None] - slope[..., None] * x) / deviation
        spread = 1.4826 * np.median(np.abs(rest), axis=-1, keepdims=True)
        weight = np.where(rest > 2 * np.maximum(spread, 1e-9), 0.0, every)
    return np.stack([offset, -slope], axis=-1)
