"""Numbers of a comparison: one row per method, one per pair of methods, one per method and number of shots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from brainfm import statistics
from brainfm.evaluations import protocol
from brainfm.evaluations.methods.trials import Trials
from brainfm.evaluations.protocol import Scored
from brainfm.metrics import balanced_accuracy, brier, chance_corrected, ece, log_loss, multiclass_auroc

#: Name → its kind ("pretrained", "untrained", "baseline", "control") and adaptation mode.
Kinds = Mapping[str, tuple[str, str]]
PERMUTATIONS = 999


def scored(people: np.ndarray, truth: np.ndarray, guess: np.ndarray, seed: int) -> Scored:
    """Balanced accuracy of each person and its mean."""
    return protocol.scored(balanced_accuracy, people, truth, guess, seed)


def of(trials: Trials, rows: np.ndarray, chances: np.ndarray, main: Scored, seed: int) -> dict[str, Any]:
    """What a method's probabilities score on rows of the trials, as a result file has it.

    Balanced accuracy, chance-corrected accuracy, AUROC, Brier and log loss are means over people; the calibration error
    is of all windows together, for a person has too few to fill its bins. `p` is one-sided, of true labels permuted
    within each person.

    Args:
        rows: `(scored row,)`. chances: `(scored row, class)`. main: its balanced accuracy, that of `scored` or a mean.
        seed: of the permutations.
    """
    who, truth, guess = trials.people[rows], trials.labels[rows], chances.argmax(axis=1)
    chance = 1 / len(trials.classes)
    own = [who == name for name in main.per_subject]
    both = [mine for mine in own if len(set(truth[mine].tolist())) > 1]
    rng = np.random.default_rng(seed)
    null = [
        _mean(balanced_accuracy, own, protocol.permuted_within(truth, who, rng), guess) for _ in range(PERMUTATIONS)
    ]
    return {
        **main.entry(),
        "per_subject": main.per_subject,
        "kappa": chance_corrected(main.score, chance),
        "auroc": _mean(multiclass_auroc, both, truth, chances) if both else None,
        "ece": ece(truth, chances),
        "brier": _mean(brier, own, truth, chances),
        "log_loss": _mean(log_loss, own, truth, chances),
        "p": statistics.permutation_p(main.score, np.array(null)),
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


def pairs(kinds: Kinds, scores: Mapping[str, Scored], n_train: int, n_test: int, seed: int) -> list[dict[str, Any]]:
    """What pretraining adds: each adaptation mode against the same of the untrained network; and the first against all.

    The two are families of their own: Holm's correction is over the pairs of a family, for the first question was asked
    before, and twenty others must not drown it. None for one person, of whom nothing is paired.
    """
    first = next(iter(kinds))
    if len(scores[first].per_subject) < 2:
        return []
    twins = [
        (a, b)
        for a, (kind, adapt) in kinds.items()
        for b, (other, word) in kinds.items()
        if kind == "pretrained" and other == "untrained" and adapt == word
    ]
    families = {
        "pretraining": twins,
        "methods": [(first, name) for name in kinds if name != first and (first, name) not in twins],
    }
    each = {name: s.per_subject for name, s in scores.items()}
    found = []
    for family, wanted in families.items():
        rows = [{"a": a, "b": b, "family": family, **statistics.contrast(each[a], each[b], n_train, n_test, seed)}
                for a, b in wanted]  # fmt: skip
        for row, p in zip(rows, statistics.holm([row["wilcoxon_p"] for row in rows]), strict=True):
            row["holm_p"] = float(p)
        found += rows
    return found


def curves(
    kinds: Kinds, guesses: Mapping[str, Mapping[int, Sequence[np.ndarray]]], people: np.ndarray, truth: np.ndarray,
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """`curve`, `curve_axis` and `effect_of_transfer` of a result; nothing where there were no shots.

    Args:
        guesses: method → shots → draws of class numbers `(scored row,)`; draws are averaged within people.
        people, truth: `(scored row,)`.
    """
    each = {
        name: {
            k: protocol.mean_scored([scored(people, truth, guess, seed) for guess in draws], seed)
            for k, draws in by_shots.items()
        }
        for name, by_shots in guesses.items()
        if by_shots
    }
    if not each:
        return {}
    first = next(iter(each))
    twins = [b for b, (kind, adapt) in kinds.items() if kind == "untrained" and adapt == kinds[first][1] and b in each]
    own = {name: {k: s.per_subject for k, s in each[name].items()} for name in (first, *twins[:1])}
    effect = [statistics.transfer_effect(own[first], own[b], seed) for b in twins[:1]]
    return {
        "curve": [{"shots": k, "model": name, **s.entry()} for name, by in each.items() for k, s in by.items()],
        "curve_axis": "labelled trials per class of the new person",
        **({"effect_of_transfer": rows} if (rows := next(iter(effect), [])) else {}),
    }


def _mean(metric: Any, own: Sequence[np.ndarray], truth: np.ndarray, said: np.ndarray) -> float:
    return float(np.mean([metric(truth[mine], said[mine]) for mine in own]))


def _number(text: Any) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
