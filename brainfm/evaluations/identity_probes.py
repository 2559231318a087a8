"""Readouts of a representation for what a person does and for who the person is, each with chance and a null.

The label is read in people never seen (fitted on the training people) and in the same people later on. The subject is
read in later windows of the people that it was fitted on, with a gap between: no readout of who someone is exists for
people never seen. All are logistic regression on standardised features.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from sklearn.pipeline import Pipeline

from brainfm.evaluations import chance, protocol
from brainfm.evaluations.chance import ByChance
from brainfm.evaluations.methods.trials import Trials
from brainfm.evaluations.protocol import CLASSIFIER_C, Scored
from brainfm.metrics import accuracy, balanced_accuracy
from brainfm.shards.read import Windows
from brainfm.shards.stored import rate
from brainfm.statistics import bootstrap_ci, permutation_p

#: Share of each recording's time that is fitted where the same people are asked later.
EARLY = 0.6


@dataclass(frozen=True)
class Probed:
    """What a readout scored.

    Attributes:
        scored: mean over people of its balanced accuracy (label) or of the share of right windows (subject).
        chance: what guessing scores.
        by_chance: how easily chance does as well, for the same predictions: for the label see `chance.py`; for the
            subject it exchanges windows among all people.
        predict: the fitted pipeline. guess: `(window,)` of the scored windows.
    """

    scored: Scored
    chance: float
    by_chance: ByChance
    predict: Pipeline = field(repr=False)
    guess: np.ndarray = field(repr=False)

    def entry(self) -> dict:
        """As it stands in a result."""
        return {
            **self.scored.entry(), "chance": self.chance, **self.by_chance.entry(),
            "n_people": len(self.scored.per_subject), "n_windows": self.scored.n_trials,
            "per_subject": self.scored.per_subject,
        }  # fmt: skip

    def minus(self, other: Probed, seed: int) -> dict:
        """Score and interval of the difference to another readout of the same people, paired within people."""
        mine, its = self.scored.per_subject, other.scored.per_subject
        each = np.array([mine[name] - its[name] for name in mine])
        ci = list(bootstrap_ci(each, seed=seed)) if len(each) > 1 else None
        return {"score": float(each.mean()), "ci": ci}


@dataclass(frozen=True)
class Probes:
    """The same windows asked of any representation of them.

    Attributes:
        trials: windows of both sides. known, asked: rows of the training people and of people never seen.
        early, late: `(window,)` masks of `parted`: the first part of each recording, and what lies a gap after it.
        seed: of folds, permutations and bootstrap. penalty: inverse penalty of all label readouts; None chooses each.
    """

    trials: Trials
    known: np.ndarray
    asked: np.ndarray
    early: np.ndarray
    late: np.ndarray
    seed: int
    penalty: float | None = None

    def label(self, features: np.ndarray, penalty: float | None = None, taught: np.ndarray | None = None) -> Probed:
        """Fitted on the training people, scored on people never seen.

        Args:
            features: `(window, feature)` of all windows.
            penalty: an inverse penalty; None: that of all, or by cross-validation over training people.
            taught: `(window,)` labels to fit in place of the true ones.
        """
        return self._label(features, self.known, self.asked, penalty, taught)

    def label_later(self, features: np.ndarray) -> Probed:
        """Fitted, penalty and all, on the early windows of the training people, scored on their late ones."""
        fit, test = (self.known[mask[self.known]] for mask in (self.early, self.late))
        return self._label(features, fit, test, None, None)

    def _label(
        self, features: np.ndarray, fit: np.ndarray, test: np.ndarray, penalty: float | None, taught: np.ndarray | None
    ) -> Probed:
        labels, people = self.trials.labels, self.trials.people
        fitted = protocol.fit_linear(
            features[fit], (labels if taught is None else taught)[fit], people[fit], self.seed, penalty or self.penalty
        )
        guess, truth, asked = fitted.predict(features[test]), labels[test], self.trials.windows.take(test)
        found = chance.scored(balanced_accuracy, asked, truth, guess, self.seed)
        classes = len(self.trials.classes)
        by_chance = chance.by_chance(asked, truth, guess, classes, self.seed)
        return Probed(found, 1 / classes, by_chance, fitted, guess)

    def calibrated(self, features: np.ndarray) -> Pipeline:
        """A readout of the label, fitted on the training people, whose probabilities serve best among themselves.

        Its penalty has the lowest cross-entropy for held-out training people; the most accurate one may give
        probabilities that hardly leave chance.
        """
        labels, people = self.trials.labels, self.trials.people
        names = np.random.default_rng(self.seed).permutation(np.unique(people[self.known]))
        folds = [np.isin(people[self.known], group) for group in np.array_split(names, min(3, len(names)))]
        folds = [out for out in folds if (~out).any() and len(set(labels[self.known[~out]])) > 1]

        def loss(penalty: float) -> float:
            found = []
            for out in folds:
                fit, held = self.known[~out], self.known[out]
                fitted = protocol.fit_linear(features[fit], labels[fit], people[fit], self.seed, penalty)
                if len(fitted.classes_) == len(self.trials.classes):
                    found.append(protocol.cross_entropy(labels[held], fitted.predict_proba(features[held])))
            return float(np.mean(found)) if found else 0.0

        penalty = self.penalty or min(CLASSIFIER_C, key=loss)
        known = self.known
        return protocol.fit_linear(features[known], labels[known], people[known], self.seed, penalty)

    def subject(self, features: np.ndarray, rows: np.ndarray) -> Probed:
        """Who of these people it is: fitted on their early windows, scored on their late ones.

        The penalty is the best of `CLASSIFIER_C` when the first part of the early windows tells the people of the rest.

        Args:
            features: `(window, feature)` of all windows. rows: the windows of the people to tell apart.
        """
        who = self.trials.people
        fit, test = (rows[mask[rows]] for mask in (self.early, self.late))
        inner = parted(self.trials.windows.take(fit), 0.0)  # the filters' reach lies between
        first, rest = fit[inner[0]], fit[inner[1]]

        def right(penalty: float) -> float:
            fitted = protocol.fit_linear(features[first], who[first], who[first], self.seed, penalty)
            return accuracy(who[rest], fitted.predict(features[rest]))

        usable = len(rest) and set(who[first].tolist()) == set(who[fit].tolist())
        penalty = max(CLASSIFIER_C, key=right) if usable else CLASSIFIER_C[-1]
        fitted = protocol.fit_linear(features[fit], who[fit], who[fit], self.seed, penalty)
        guess, truth = fitted.predict(features[test]), who[test]
        found = protocol.scored(accuracy, truth, truth, guess, self.seed)
        rng, names = np.random.default_rng(self.seed), np.unique(truth)
        member = (truth == names[:, None]) / np.sum(truth == names[:, None], axis=1, keepdims=True)
        orders = (rng.permutation(len(guess)) for _ in range(chance.PERMUTATIONS))
        null = np.array([(member @ (guess[order] == truth)).mean() for order in orders])
        least = chance.least_of([member.astype(bool).sum(axis=1)], len(null))
        by_chance = ByChance(permutation_p(found.score, null), "trials", least)
        return Probed(found, 1 / len(set(who[fit].tolist())), by_chance, fitted, guess)


def probes(trials: Trials, known: np.ndarray, gap_s: float, seed: int, penalty: float | None = None) -> Probes:
    """The probes of these windows; rows that are not `known` are of people never seen.

    Args:
        trials: of both sides. known: rows of the training people. gap_s: as in `parted`.
        seed, penalty: as in `Probes`.

    Raises:
        ValueError: for a person without early or without late windows.
    """
    early, late = parted(trials.windows, gap_s)
    for name in np.unique(trials.people):
        own = trials.people == name
        if not (early & own).any() or not (late & own).any():
            reach_s = max(stored.reach_s for stored in trials.windows.take(own).used)
            raise ValueError(
                f"{name} has {int((early & own).sum())} early and {int((late & own).sum())} late windows of "
                f"{int(own.sum())}; who someone is is asked later in a recording, gap_s {gap_s:g} s and at least twice "
                f"the filters' reach ({reach_s:g} s) apart: take shorter windows, a smaller "
                "gap_s, or leave this person out"
            )
    asked = np.setdiff1d(np.arange(len(trials)), known)
    return Probes(trials, known, asked, early, late, seed, penalty)


def parted(windows: Windows, gap_s: float, share: float = EARLY) -> tuple[np.ndarray, np.ndarray]:
    """Masks `(window,)`: windows that end in the first `share` of their recording, and those a gap after it.

    A recording reaches here from its first window to the end of its last.

    Args:
        windows: of any recordings. share: of a recording's time that is early.
        gap_s: seconds between the two; twice the recording's `reach_s` where that is longer, so that filtering has put
            no raw sample into both.
    """
    early, late = np.zeros(len(windows), bool), np.zeros(len(windows), bool)
    for r in np.unique(windows.recording):
        rows, stored = windows.recording == r, windows.recordings[r]
        hertz, gap = rate(stored), max(gap_s, 2 * stored.reach_s)
        begin, end = windows.start[rows] / hertz, (windows.start[rows] + windows.samples[rows]) / hertz
        border = begin.min() + share * (end.max() - begin.min())
        early[rows] = end <= border + 1e-9
        if early[rows].any():
            late[rows] = begin >= end[early[rows]].max() + gap - 1e-9
    return early, late
