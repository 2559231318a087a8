"""Numbers of a comparison: one row per method, one per pair of methods, one per method and number of shots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def of(trials: Trials, rows: np.ndarray, asked: Sequence[np.ndarray], main: Scored, seed: int) -> dict[str, Any]:
    """What a method's probabilities score on rows of the trials, as a result file has it.

    Balanced accuracy, chance-corrected accuracy, AUROC, Brier and log loss are means over people; the calibration error
    is of all windows together, for a person has too few to fill its bins.

    Args:
        rows: `(scored row,)`. asked: `(scored row, class)`, several of a control whose permutations are averaged.
        main: its balanced accuracy, that of `scored` or a mean. seed: of the permutations.
    """
    who, truth, chance = trials.people[rows], trials.labels[rows], 1 / len(trials.classes)
    own = [who == name for name in main.per_subject]
    both = [mine for mine in own if len(set(truth[mine].tolist())) > 1]

    def averaged(score: Callable[[np.ndarray], float]) -> float:
        return float(np.mean([score(chances) for chances in asked]))

    p, p_over = by_chance(trials, rows, asked[0].argmax(axis=1), main, seed) if len(asked) == 1 else (None, "")
    return {
        **main.entry(),
        "per_subject": main.per_subject,
        "kappa": chance_corrected(main.score, chance),
        "auroc": averaged(lambda x: _mean(multiclass_auroc, both, truth, x)) if both else None,
        "ece": averaged(lambda x: ece(truth, x)),
        "brier": averaged(lambda x: _mean(brier, own, truth, x)),
        "log_loss": averaged(lambda x: _mean(log_loss, own, truth, x)),
        "p": p,
        "p_over": p_over,
        "worst": list(statistics.worst(main.per_subject)),
        "groups": {
            word: statistics.by_group(main.per_subject, group, seed) for word, group in groups_of(trials, rows).items()
        },
    }


def by_chance(trials: Trials, rows: np.ndarray, guess: np.ndarray, main: Scored, seed: int) -> tuple[float, str]:
    """How easily chance does as well, and over what: "trials" or "people".

    Where conditions alternate within a recording, true labels are permuted within each recording (one-sided). Where a
    recording is a condition as a whole, as rest or task, its windows are no independent trials: signs of people's
    scores above chance are flipped instead (two-sided), which few people cannot make small.
    """
    who, truth, recording = trials.people[rows], trials.labels[rows], trials.windows.recording[rows]
    if all(len(np.unique(truth[recording == r])) == 1 for r in np.unique(recording)):
        above = np.array(list(main.per_subject.values())) - 1 / len(trials.classes)
        return statistics.sign_flip_p(above, seed=seed), "people"
    rng, own = np.random.default_rng(seed), [who == name for name in main.per_subject]
    null = [
        _mean(balanced_accuracy, own, protocol.permuted_within(truth, recording, rng), guess)
        for _ in range(PERMUTATIONS)
    ]
    return statistics.permutation_p(main.score - 1e-9, np.array(null)), "trials"


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
    return [
        {"family": family, **row}
        for family, wanted in families.items()
        for row in statistics.contrasts(each, n_train=n_train, n_test=n_test, seed=seed, pairs=wanted)
    ]


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
