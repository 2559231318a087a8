"""The class that training has most often: what any decoder has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from brainfm.evaluations.few_shot import SHARES
from brainfm.evaluations.methods.trials import Setting, Side, Trials


@dataclass(frozen=True)
class Prior:
    """How often each class is in training, `chances (class,)`; `trials` are whose rows it answers for."""

    chances: np.ndarray
    trials: Trials
    trained: int = 0

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """`(row, class)`, the same in every row."""
        return np.tile(self.chances, (len(rows), 1))

    def on(self, trials: Trials) -> Prior:
        """The same for other trials."""
        return replace(self, trials=trials)

    def adapted(self, rows: np.ndarray, seed: int) -> Prior:
        """The new person's own shares count `SHARES[0]`."""
        if not len(rows):
            return self
        own = np.bincount(self.trials.labels[rows], minlength=len(self.chances)) / len(rows)
        return replace(self, chances=(1 - SHARES[0]) * self.chances + SHARES[0] * own)


class Majority:
    """The class that training has most often."""

    name, stops_early = "majority", False
    settings: Sequence[Setting] = ({},)

    def fit(self, trials: Trials, side: Side, setting: Setting, seed: int) -> Prior:
        """Count."""
        count = np.bincount(trials.labels[side.taught], minlength=len(trials.classes))
        return Prior(count / max(1, count.sum()), trials)
