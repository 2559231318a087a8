"""Decoders without a network: what a pretrained one has to beat.

| name | features | classifier |
|---|---|---|
| `majority` | none | how often each class is in training |
| `log_band_power`, `downsampled_signal`, `log_power_spectrum` | `baselines.py` | logistic regression |
| `csp_lda` | log variance of common spatial patterns, 8 to 30 Hz | linear discriminant analysis, shrunk |
| `tangent_space` | covariances in the tangent space at the training mean | logistic regression |
| `tangent_space recentred` | the same, each person's mean moved to the identity first | logistic regression |
| `xdawn_covariance` | covariances with averages of the classes, see `evoked.py` | logistic regression |
| `pca` | principal components of the window | logistic regression |
| `functional_connectivity` | correlations of channels or regions, Fisher's z | logistic regression |

Classes count equally in every classifier but `majority`. A class that nobody of the training side has gets no
probability. Covariances are float64, one per window, made once for all folds and settings. They are shrunk
(`alignment.oas`), so that flat channels and windows with fewer samples than channels keep full rank.

CSP: Blankertz et al. 2008, Optimizing spatial filters for robust EEG single-trial analysis; for several classes
Grosse-Wentrup and Buss 2008; both by pyRiemann. Tangent space: Barachant et al. 2012, Multiclass brain-computer
interface classification by Riemannian geometry. Recentring: Zanini et al. 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.signal import butter, sosfiltfilt
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from brainfm.catalog import nearest
from brainfm.evaluations import baselines, protocol
from brainfm.evaluations.few_shot import SHARES
from brainfm.evaluations.methods import alignment
from brainfm.evaluations.methods.majority import Majority
from brainfm.evaluations.methods.trials import Method, Setting, Side, Trials
from brainfm.evaluations.methods.views import known
from brainfm.evaluations.protocol import Unfit

#: Trials and some of their rows → `(row, feature)`.
Describe = Callable[[Trials, np.ndarray], np.ndarray]
#: Where rhythms of movement and rest lie, in Hz.
RHYTHM_HZ = (8.0, 30.0)
#: Inverse penalties to try, on standardised features.
PENALTIES: tuple[Setting, ...] = tuple({"C": c} for c in (0.01, 0.1, 0.001, 1.0, 0.0001))
#: A window is averaged to at most so many samples before principal components are taken.
SAMPLES = 32


@dataclass(frozen=True)
class Decoded:
    """A classifier of features that any row can be described by.

    Attributes:
        trials: whose rows it answers for. describe: how. classifier: fitted, a pipeline.
        source: features that it was fitted on, scaled, and their class numbers. trained: numbers that were fitted.
    """

    trials: Trials
    describe: Describe
    classifier: Any
    source: tuple[np.ndarray, np.ndarray]
    trained: int

    @classmethod
    def of(cls, trials: Trials, rows: np.ndarray, describe: Describe, head: Any, more: int = 0) -> Decoded:
        """Standardise and fit `head` on rows; `more` numbers were fitted before.

        Raises:
            Unfit: where the rows are of one class.
        """
        labels = several(trials, rows)
        with protocol.threads().limit(limits=1):
            x = describe(trials, rows)
            scaler = StandardScaler().fit(x)
            x = scaler.transform(x)
            head = _discriminant(x, labels) if head is None else head.fit(x, labels)
        trained = more + int(head.coef_.size + head.intercept_.size)
        return cls(trials, describe, make_pipeline(scaler, head), (x, labels), trained)

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """`(row, class)`."""
        out = np.zeros((len(rows), len(self.trials.classes)))
        if len(rows):
            with protocol.threads().limit(limits=1):
                out[:, self.classifier.classes_] = self.classifier.predict_proba(self.describe(self.trials, rows))
        return out

    def on(self, trials: Trials) -> Decoded:
        """The same for other trials."""
        return replace(self, trials=trials)

    def adapted(self, rows: np.ndarray, seed: int) -> Decoded:
        """The classifier refitted with a new person's rows, which get `SHARES[0]` of the weight; features stay."""
        if not len(rows):
            return self
        scaler, head = self.classifier[0], self.classifier[-1]
        (x, y), own = self.source, self.trials.labels[rows]
        shots = scaler.transform(self.describe(self.trials, rows))
        with protocol.threads().limit(limits=1):
            if isinstance(head, LinearDiscriminantAnalysis):  # knows no weights: rows are repeated instead
                times = max(1, round(SHARES[0] / (1 - SHARES[0]) * len(x) / len(rows)))
                head = _discriminant(np.concatenate([x, np.tile(shots, (times, 1))]), np.r_[y, np.tile(own, times)])
            else:
                weight = np.r_[np.full(len(x), (1 - SHARES[0]) / len(x)), np.full(len(rows), SHARES[0] / len(rows))]
                weight *= len(x) + len(rows)
                head = clone(head).fit(np.concatenate([x, shots]), np.r_[y, own], sample_weight=weight)
        return replace(self, classifier=make_pipeline(scaler, head))


class Features:
    """Logistic regression on features that describe each window by itself.

    Args:
        name: of the method. describe: trials → `(window, feature)`.
    """

    settings: Sequence[Setting] = PENALTIES
    stops_early = False

    def __init__(self, name: str, describe: Callable[[Trials], np.ndarray]) -> None:
        self.name, self.describe = name, describe

    def fit(self, trials: Trials, side: Side, setting: Setting, seed: int) -> Decoded:
        """Fit; `setting` has "C", the inverse penalty."""
        return Decoded.of(trials, side.taught, self._table, logistic(setting["C"]))

    def _table(self, trials: Trials, rows: np.ndarray) -> np.ndarray:
        return trials.once(self.name, lambda: self.describe(trials))[rows]


class CommonSpatialPatterns:
    """Log variance of common spatial patterns, and linear discriminant analysis with Ledoit and Wolf's shrinkage."""

    name, stops_early = "csp_lda", False
    settings: Sequence[Setting] = (
        {"filters": 6, "band_hz": RHYTHM_HZ},
        {"filters": 6, "band_hz": None},
        {"filters": 4, "band_hz": RHYTHM_HZ},
        {"filters": 10, "band_hz": RHYTHM_HZ},
        {"filters": 10, "band_hz": None},
    )

    def fit(self, trials: Trials, side: Side, setting: Setting, seed: int) -> Decoded:
        """Fit; `setting` has "filters", how many patterns, and "band_hz", None for all that the recording has."""
        band, rows = _band(trials, setting["band_hz"]), side.taught
        matrices, labels = covariances_of(trials, band), several(trials, rows)
        with protocol.threads().limit(limits=1):
            filters = spatial_patterns(matrices[rows], labels, setting["filters"])
        return Decoded.of(
            trials, rows, lambda shown, x: log_variance(covariances_of(shown, band), filters, x), None, filters.size
        )


class TangentSpace:
    """Covariances projected to the tangent space at their Riemannian mean, and logistic regression.

    Args:
        recentred: move each person's mean to the identity first, taken over the rows that `views.known` says.
    """

    stops_early = False
    settings: Sequence[Setting] = (
        {"C": 0.01, "band_hz": None},
        {"C": 0.01, "band_hz": RHYTHM_HZ},
        {"C": 0.1, "band_hz": None},
        {"C": 0.001, "band_hz": None},
        {"C": 0.1, "band_hz": RHYTHM_HZ},
    )

    def __init__(self, recentred: bool = False) -> None:
        self.recentred, self.name = recentred, "tangent_space recentred" if recentred else "tangent_space"

    def fit(self, trials: Trials, side: Side, setting: Setting, seed: int) -> Decoded:
        """Fit; `setting` has "C", the inverse penalty, and "band_hz", None for all that the recording has."""
        band, rows = _band(trials, setting["band_hz"]), side.taught
        roots: dict[str, np.ndarray] = {}
        with protocol.threads().limit(limits=1):
            if self.recentred:
                for name, _, seen in alignment.by_person(trials.people, known(trials, side)):
                    roots[name] = alignment.inverse_root(_mean(trials, band, seen))
                reference = alignment.riemannian_mean(_recentred(roots, band, trials, rows))
            else:
                reference = _mean(trials, band, rows)

        def describe(shown: Trials, asked: np.ndarray) -> np.ndarray:
            return tangent_vectors(_recentred(roots, band, shown, asked), reference, np.arange(len(asked)))

        return Decoded.of(trials, rows, describe, logistic(setting["C"]))


def _recentred(
    roots: dict[str, np.ndarray], band: tuple[float, float] | None, trials: Trials, rows: np.ndarray
) -> np.ndarray:
    """`(row, channel, channel)` covariances, recentred by their person's root where there are roots."""
    matrices = covariances_of(trials, band)[rows]
    for name in np.unique(trials.people[rows]) if roots else ():
        own = trials.people[rows] == name
        matrices[own] = roots[name] @ matrices[own] @ roots[name]
    return matrices


class Components:
    """Principal components of the training windows, and logistic regression."""

    name, stops_early = "pca", False
    settings: Sequence[Setting] = tuple(
        {"components": n, "C": c} for n, c in ((20, 0.1), (50, 0.1), (20, 1.0), (50, 0.01), (100, 0.1))
    )

    def fit(self, trials: Trials, side: Side, setting: Setting, seed: int) -> Decoded:
        """Fit; `setting` has "components", at most as many as rows allow, and "C", the inverse penalty."""
        table, rows = _coarse(trials), side.taught
        several(trials, rows)
        count = max(1, min(setting["components"], len(rows) - 1, table.shape[1]))
        with protocol.threads().limit(limits=1):
            components = PCA(count, random_state=seed).fit(table[rows])
        size = components.components_.size
        return Decoded.of(
            trials, rows, lambda shown, x: components.transform(_coarse(shown)[x]), logistic(setting["C"]), size
        )


def covariances_of(trials: Trials, band_hz: tuple[float, float] | None = None) -> np.ndarray:
    """`(window, channel, channel)` covariances of the shared channels, shrunk by `alignment.oas`; made once.

    Args:
        trials: whose.
        band_hz: a Butterworth band-pass of order 4, forwards and backwards inside each window, comes first; what lies
            over .9 of the Nyquist frequency is cut off. None, or a band wholly over it: no filter.
    """
    band = _band(trials, band_hz)

    def make() -> np.ndarray:
        signals = trials.signals()
        if band is None:
            return alignment.covariances(signals.values)
        sections = butter(4, band, "bandpass", fs=signals.sfreq, output="sos")
        padding = min(3 * (2 * len(sections) + 1), signals.values.shape[-1] - 1)
        out = np.empty_like(signals.values)
        for first in range(0, len(out), 64):
            part = signals.values[first : first + 64].astype(float)
            out[first : first + 64] = sosfiltfilt(sections, part, padlen=padding)
        return alignment.covariances(out)

    return trials.once(("covariances", band), make)


def spatial_patterns(matrices: np.ndarray, labels: np.ndarray, filters: int) -> np.ndarray:
    """`(filter, channel)` of the covariances `(window, channel, channel)` of two or more classes."""
    from pyriemann.spatialfilters import CSP

    return CSP(filters, log=True).fit(matrices, labels).filters_


def log_variance(matrices: np.ndarray, filters: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`(row, filter)` logarithm of each filter's variance."""
    return np.log(np.maximum(np.einsum("fc,wcf->wf", filters, matrices[rows] @ filters.T), np.finfo(float).tiny))


def tangent_vectors(matrices: np.ndarray, reference: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`(row, pair)` coordinates in the tangent space at `reference (channel, channel)`."""
    from pyriemann.geometry.tangentspace import tangent_space

    return tangent_space(matrices[rows], reference, metric="riemann")


def functional_connectivity(trials: Trials) -> np.ndarray:
    """`(window, pair)` correlations of the shared channels over each window, Fisher's z; 0 for a flat channel.

    Raises:
        Unfit: where there is one channel only.
    """
    values = trials.signals().values
    if values.shape[1] < 2:
        raise Unfit("functional_connectivity needs two shared channels or regions, got one")
    upper = np.triu_indices(values.shape[1], 1)
    matrices = alignment.covariances(values, shrunk=False)
    out = np.empty((len(matrices), len(upper[0])), np.float32)
    for row, matrix in enumerate(matrices):
        scale = np.sqrt(np.diagonal(matrix))
        scale = np.where(scale > 0, scale, np.inf)
        out[row] = np.arctanh(np.clip((matrix / np.outer(scale, scale))[upper], -0.999999, 0.999999))
    return out


def classical(names: Sequence[str]) -> list[Method]:
    """The methods of these names.

    Raises:
        KeyError: for an unknown name, with the nearest one.
    """
    from brainfm.evaluations.methods.evoked import EvokedCovariances

    there: dict[str, Method] = {m.name: m for m in (
        Majority(),
        Features("log_band_power", lambda trials: baselines.log_band_power(trials.windows, like=trials.whole)),
        Features("downsampled_signal", lambda trials: baselines.downsampled_signal(trials.windows, like=trials.whole)),
        Features("log_power_spectrum", lambda trials: baselines.log_power_spectrum(trials.windows, like=trials.whole)),
        CommonSpatialPatterns(),
        EvokedCovariances(),
        TangentSpace(),
        TangentSpace(recentred=True),
        Components(),
        Features("functional_connectivity", functional_connectivity),
    )}  # fmt: skip
    for name in names:
        if name not in there:
            raise KeyError(f"no baseline {name!r}; {nearest(name, list(there))}")
    return [there[name] for name in names]


def logistic(penalty: float) -> LogisticRegression:
    """Logistic regression with this inverse penalty, classes counting equally."""
    return LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000)


def several(trials: Trials, rows: np.ndarray) -> np.ndarray:
    """Labels of the rows, of two classes or more."""
    labels = trials.labels[rows]
    if len(np.unique(labels)) < 2:
        found = [trials.classes[i] for i in np.unique(labels)]
        raise Unfit(
            f"{len(rows)} training windows of {found or 'no class'}; a classifier needs two classes of "
            f"{trials.classes}: add people or windows to the training side"
        )
    return labels


class _Sphere:
    """Covariance for what has no spread within any class: the nearest mean decides."""

    def fit(self, x: np.ndarray) -> _Sphere:
        self.covariance_ = np.eye(x.shape[1])
        return self


def _discriminant(x: np.ndarray, labels: np.ndarray) -> LinearDiscriminantAnalysis:
    """Linear discriminant analysis; classes count equally, and a class of one trial adds nothing to the covariance."""
    classes, count = np.unique(labels, return_counts=True)
    even = np.full(len(classes), 1 / len(classes))
    lone = np.isin(labels, classes[count == 1])  # twice, for a covariance is not taken of one trial
    x, labels = np.concatenate([x, x[lone]]), np.concatenate([labels, labels[lone]])
    if count.max() < 2:
        made = LinearDiscriminantAnalysis("lsqr", covariance_estimator=_Sphere(), priors=even)
    else:
        made = LinearDiscriminantAnalysis("lsqr", shrinkage="auto", priors=even)
    return made.fit(x, labels)


def _band(trials: Trials, band_hz: tuple[float, float] | None) -> tuple[float, float] | None:
    """The part of the band that the sampling rate shows."""
    if band_hz is None:
        return None
    low, high = band_hz[0], min(band_hz[1], 0.45 * trials.signals().sfreq)
    return (low, high) if low < high else None


def _mean(trials: Trials, band: tuple[float, float] | None, rows: np.ndarray) -> np.ndarray:
    """Riemannian mean of the rows' covariances; made once."""
    key = ("riemannian mean", band, rows.tobytes())
    return trials.once(key, lambda: alignment.riemannian_mean(covariances_of(trials, band)[rows]))


def _coarse(trials: Trials) -> np.ndarray:
    """`(window, channel x time)` the shared channels, averaged to at most `SAMPLES` samples; made once."""

    def make() -> np.ndarray:
        values = trials.signals().values
        windows, channels, samples = values.shape
        size = -(-samples // SAMPLES)
        whole = values[..., : samples // size * size].reshape(windows, channels, samples // size, size)
        return whole.mean(axis=-1).reshape(windows, -1)

    return trials.once("coarse signals", make)
