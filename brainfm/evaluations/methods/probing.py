"""Linear probes of a frozen network: logistic regression on what a view of it gives."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import softmax
from sklearn.pipeline import Pipeline

from brainfm.evaluations import few_shot, protocol
from brainfm.evaluations.methods.trials import Setting, Side
from brainfm.evaluations.methods.views import Shown, View
from brainfm.evaluations.protocol import Unfit

#: Inverse penalties to try, the default first; None: the best by cross-validation within the training side.
PENALTIES: tuple[Setting, ...] = tuple({"inverse_penalty": c} for c in (1e-2, 1e-3, 1e-1, 1e-4, 1.0))
#: Share of the total weight that the trials of a new person get.
SHARE = few_shot.SHARES[0]


@dataclass(frozen=True)
class Readout:
    """Logistic regression as arrays.

    Attributes:
        mean, scale: `(feature,)` of the training rows. weight: `(class, feature)`, one row for two classes.
        bias: `(class,)`. classes: `(class,)` class numbers that were trained. of: how many classes there are.
    """

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    classes: np.ndarray
    of: int

    @classmethod
    def from_pipeline(cls, fitted: Pipeline, of: int) -> Readout:
        """Of `protocol.fit_linear` on class numbers."""
        scaler, linear = fitted[0], fitted[-1]
        return cls(scaler.mean_, scaler.scale_, linear.coef_, linear.intercept_, linear.classes_, of)

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        """`(row, class)`; 0 for a class that was not trained."""
        logits = (features - self.mean) / self.scale @ self.weight.T + self.bias
        if logits.shape[1] == 1:
            logits = np.concatenate([-logits, logits], axis=1) / 2
        out = np.zeros((len(features), self.of))
        out[:, self.classes] = softmax(logits, axis=1)
        return out


@dataclass(frozen=True)
class FittedProbe:
    """A probe on a view of trials.

    Attributes:
        trials: whose rows it answers for. view, readout: fitted.
        source: pipeline, rows' features and labels that `adapted` fits again with new ones; None after loading.
        seconds: of fitting. trained: numbers that were fitted to labels. note: what was done without labels.
    """

    trials: Shown
    view: View
    readout: Readout
    source: tuple[Pipeline, np.ndarray, np.ndarray] | None
    seconds: float = 0.0

    @property
    def trained(self) -> int:
        """Weights and biases of the readout."""
        return self.readout.weight.size + self.readout.bias.size

    @property
    def note(self) -> str:
        """Of the view."""
        return self.view.note

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """`(row, class)`."""
        if not len(rows):
            return np.zeros((0, self.readout.of))
        return self.readout.predict_proba(self.view.of(self.trials, np.asarray(rows)))

    def adapted(self, rows: np.ndarray, seed: int) -> FittedProbe:
        """Fitted again on the source's rows and these, which get `SHARE` of the weight; scaling and penalty stay."""
        if not len(rows):
            return self
        if self.source is None:
            raise ValueError("a probe that was loaded has no training rows to fit again with; fit it again")
        pipeline, x, labels = self.source
        shots = self.view.of(self.trials, rows)
        fitted = few_shot.refit(pipeline, x, labels, shots, self.trials.labels[rows], SHARE)
        return replace(self, readout=Readout.from_pipeline(fitted, self.readout.of))

    def on(self, trials: Shown) -> FittedProbe:
        """The same for other trials."""
        return replace(self, trials=trials)


@dataclass
class Probe:
    """A linear probe.

    Attributes:
        view: what it sees, not fitted yet. name: as in a result.
    """

    view: View
    name: str
    settings: Sequence[Setting] = PENALTIES
    stops_early: bool = False

    def fit(self, trials: Shown, side: Side, setting: Setting, seed: int) -> FittedProbe:
        """Fit on `side.taught`.

        Args:
            trials, side: as in `Method`. setting: `inverse_penalty`, None to choose it by cross-validation.
            seed: of the folds.

        Raises:
            Unfit: where fewer than two classes train.
        """
        begun, rows = time.perf_counter(), side.taught
        enough(trials, rows)
        view = self.view.fit(trials, side)
        x, labels = view.of(trials, rows), trials.labels[rows]
        fitted = protocol.fit_linear(x, labels, trials.people[rows], seed, setting["inverse_penalty"])
        readout = Readout.from_pipeline(fitted, len(trials.classes))
        return FittedProbe(trials, view, readout, (fitted, x, labels), time.perf_counter() - begun)


def enough(trials: Shown, rows: np.ndarray) -> None:
    """Raise Unfit where the training rows have fewer than two classes."""
    there = np.unique(trials.labels[rows])
    if len(there) < 2:
        words = ", ".join(trials.classes[c] for c in there) or "no class"
        raise Unfit(
            f"{len(rows)} training windows of {len(set(trials.people[rows].tolist()))} people have {words} alone of "
            f"{', '.join(trials.classes)}; take people with two classes or more"
        )
