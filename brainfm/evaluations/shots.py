"""Shots of a comparison: how many labelled trials every new person can give, which, and what is said after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from brainfm.evaluations import few_shot
from brainfm.evaluations.methods.trials import Side, Trials, finite

#: Trials per class of a new person where the configuration names none.
SHOTS = (0, 1, 2, 5, 10, 20, 50)
#: Shots → draws → rows of all people of a side.
Drawn = dict[int, list[np.ndarray]]


def possible_shots(trials: Trials, parts: Sequence[Side], shots: Sequence[int]) -> tuple[list[int], str]:
    """The numbers of shots that every person can give, and a sentence on those that are left out."""
    if not shots:
        return [], ""
    rows = np.concatenate([p.shots for p in parts])
    people = {p for part in parts for p in trials.people[part.test].tolist()}
    most = min(
        int(np.sum((trials.people[rows] == p) & (trials.labels[rows] == c)))
        for p in people
        for c in range(len(trials.classes))
    )
    asked = sorted({0, *shots})
    kept = [k for k in asked if k <= most]
    return kept, "" if kept == asked else (
        f" Shots {sorted(set(asked) - set(kept))} are left out: someone can give only {most} trials of a class."
    )


def drawn_shots(trials: Trials, side: Side, shots: Sequence[int], draws: int, seed: int) -> Drawn:
    """For each number of shots, draws of that many rows per class and person of the side."""
    pool = np.zeros(len(trials), bool)
    pool[side.shots] = True
    return {
        k: [few_shot.drawn(trials.labels, trials.people, pool, k, seed + d) for d in range(draws if k else 1)]
        for k in shots
    }


def after_shots(fitted: Any, trials: Trials, side: Side, rows: np.ndarray, before: np.ndarray, seed: int) -> np.ndarray:
    """Class numbers of the side's test rows, each person's from a copy that has learnt that person's shots."""
    guess = before.argmax(axis=1)
    for person in np.unique(trials.people[rows]) if len(rows) else ():
        asked = trials.people[side.test] == person
        own = fitted.adapted(rows[trials.people[rows] == person], seed)
        guess[asked] = finite(own.predict_proba(side.test[asked])).argmax(axis=1)
    return guess
