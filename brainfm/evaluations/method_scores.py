"""Numbers of a comparison: one row per method, one per pair of methods, one per method and number of shots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from brainfm import statistics
from brainfm.evaluations import chance, protocol
from brainfm.evaluations.methods.trials import Trials
from brainfm.evaluations.protocol import Scored
from brainfm.metrics import balanced_accuracy, brier, chance_corrected, ece, log_loss, multiclass_auroc

#: Name → its kind ("pretrained", "untrained", "baseline", "control") and adaptation mode.
Kinds = Mapping[str, tuple[str, str]]


def scored(trials: Trials, rows: np.ndarray, guess: np.ndarray, seed: int) -> Scored:
    """Balanced accuracy of each person and its mean, of class numbers `(scored row,)`."""
    return chance.scored(balanced_accuracy, trials.windows.take(rows), trials.labels[rows], guess, seed)


def of(trials: Trials, rows: np.ndarray, asked: Sequence[np.ndarray], main: Scored, seed: int) -> dict[str, Any]:
    """What a method's probabilities score on rows of the trials, as a result file has it.

    Balanced accuracy, chance-corrected accuracy, AUROC, Brier and log loss are means over people; the calibration error
    is of all windows together, for a person has too few to fill its bins.

    Args:
        rows: `(scored row,)`. asked: `(scored row, class)`, several of a control whose permutations are averaged.
        main: its balanced accuracy, that of `scored` or a mean. seed: of the permutations.
    """
    who, truth, classes = trials.people[rows], trials.labels[rows], len(trials.classes)
    own = [who == name for name in main.per_subject]
    both = [mine for mine in own if len(set(truth[mine].tolist())) > 1]

    def averaged(score: Callable[[np.ndarray], float]) -> float:
        return float(np.mean([score(chances) for chances in asked]))

    by_chance: dict[str, Any] = {"p": None, "p_over": "", "p_least": None}
    if len(asked) == 1:  # a mean over permutations of the control has no p of its own
        guess = asked[0].argmax(axis=1)
        by_chance = chance.by_chance(trials.windows.take(rows), truth, guess, classes, seed).entry()
    return {
        **main.entry(),
        "per_subject": main.per_subject,
        "chance_corrected": chance_corrected(main.score, 1 / classes),
        "auroc": averaged(lambda x: _mean(multiclass_auroc, both, truth, x)) if both else None,
        "ece": averaged(lambda x: ece(truth, x)),
        "brier": averaged(lambda x: _mean(brier, own, truth, x)),
        "log_loss": averaged(lambda x: _mean(log_loss, own, truth, x)),
        **by_chance,
        "worst": list(statistics.worst(main.per_subject)),
        "groups": {
            word: statistics.by_group(main.per_subject, group, seed) for word, group in groups_of(trials, rows).items()
        },
    }


def groups_of(trials: Trials, rows: np.ndarray) -> dict[str, dict[str, str]]:
    """Word → person → group: sex, and age up to or above the median, of scored people of whom the recordings say it."""
    about: dict[str, dict[str, Any]] = {}
    for stored in trials.windows.take(rows).used:
        about[stored.person] = stored.provenance().get("participant") or {}
    sex = {person: str(x["sex"]) for person, x in about.items() if x.get("sex")}
    ages = {person: _number(next((v for k, v in x.items() if k.startswith("age")), "")) for person, x in about.items()}
    found = {"sex": sex, "age": statistics.at_median(ages)}
    return {word: group for word, group in found.items() if len(set(group.values())) > 1}


def pairs(
    kinds: Kinds, scores: Mapping[str, Scored], folds: Sequence[Sequence[str]], n_train: float, seed: int
) -> list[dict[str, Any]]:
    """What pretraining adds: each adaptation mode against the same of the untrained network; and the first against all.

    The two are families of their own: Holm's correction is over the pairs of a family, for the first question was asked
    before, and twenty others must not drown it. None for one person, of whom nothing is paired.

    Args:
        folds, n_train: people scored in each fold, and how many it was fitted on, see `statistics.contrast`.
    """
    first = next(iter(kinds))
    if len(scores[first].per_subject) < 2:
        return []
    twins = _twins(kinds)
    families = {
        "pretraining": twins,
        "methods": [(first, name) for name in kinds if name != first and (first, name) not in twins],
    }
    each = {name: s.per_subject for name, s in scores.items()}
    return [
        {"family": family, **row}
        for family, wanted in families.items()
        for row in statistics.contrasts(each, folds=folds, n_train=n_train, seed=seed, pairs=wanted)
    ]


def curves(
    kinds: Kinds, guesses: Mapping[str, Mapping[int, Sequence[np.ndarray]]], trials: Trials, rows: np.ndarray, seed: int
) -> dict[str, Any]:
    """`curve`, `curve_axis` and `effect_of_transfer` of a result; nothing where there were no shots.

    Args:
        guesses: method → shots → draws of class numbers `(scored row,)`; draws are averaged within people.
        trials, rows: what is scored. seed: of the bootstrap.
    """
    each = {
        name: {
            k: protocol.mean_scored([scored(trials, rows, guess, seed) for guess in draws], seed)
            for k, draws in by_shots.items()
        }
        for name, by_shots in guesses.items()
        if by_shots
    }
    if not each:
        return {}
    own = {name: {k: s.per_subject for k, s in by_shots.items()} for name, by_shots in each.items()}
    effect = [
        {"model": a, "against": b, **row}
        for a, b in _twins(kinds)
        if a in own and b in own
        for row in statistics.transfer_effect(own[a], own[b], seed)
    ]
    return {
        "curve": [{"shots": k, "model": name, **s.entry()} for name, by in each.items() for k, s in by.items()],
        "curve_axis": "labelled trials per class of the new person",
        **({"effect_of_transfer": effect} if effect else {}),
    }


def _twins(kinds: Kinds) -> list[tuple[str, str]]:
    """Each adaptation mode of the pretrained network with the same of one that was not."""
    return [
        (a, b)
        for a, (kind, adapt) in kinds.items()
        for b, (other, word) in kinds.items()
        if kind == "pretrained" and other == "untrained" and adapt == word
    ]


def _mean(metric: Any, own: Sequence[np.ndarray], truth: np.ndarray, said: np.ndarray) -> float:
    return float(np.mean([metric(truth[mine], said[mine]) for mine in own]))


def _number(text: Any) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
