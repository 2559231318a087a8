"""Many ways to decode under one protocol: adapted pretrained networks, baselines, and what sets them apart.

Every method is fitted on the same sides (`protocols.py`), is given as many settings to try, chosen by the same
validation windows, and answers for the same test windows once. Scores are kept per person; differences between methods
are paired within people, with Holm's correction within each of two families of pairs (`method_scores.pairs`).

Settings are chosen on the training people alone where people are held out, once for all folds; within a person, where
what trains one side is scored by another, anew for each side.

Which method is the result's `score` is said by the configuration before anything is fitted: the first of `adapt`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from rich.progress import track

from brainfm.evaluations import chance, method_scores, protocols
from brainfm.evaluations import protocol as shared
from brainfm.evaluations.methods import adaptation, classical, defaults, scratch
from brainfm.evaluations.methods.trials import Method, Setting, Side, Trials, choose, finite
from brainfm.evaluations.methods.tuned import rates
from brainfm.evaluations.protocol import Unfit
from brainfm.evaluations.protocols import Calibration
from brainfm.evaluations.shots import SHOTS, Drawn, after_shots, drawn_shots, possible_shots
from brainfm.metrics import confusion
from brainfm.shards.read import Windows
from brainfm.training import checkpoint
from brainfm.training.checkpoint import Pretrained
from brainfm.training.finetuning import Tokenized, Tuning

PERMUTED = "permuted labels"
#: Learning rates of the whole network untrained.
FRESH_RATES = rates(1e-3, 3e-4, 3e-3, 1e-4, 1e-2)
#: Modes whose network stays as it is, so that its encodings are made once for all sides.
FROZEN = (*adaptation.LINEAR, "attentive")


@dataclass
class Entry:
    """A method of the comparison and what came of it.

    Attributes:
        method: how it decodes. adapt: its word, or "".
        kind: "pretrained", "untrained", "baseline" or "control" (majority, permuted labels).
        trials: what it is given; for the control with labels permuted within each person.
        curved: whether it goes through the shots.
        settings, losses: what was chosen, and the validation losses of all that were tried; once, or for each side.
        chances: `(scored row, class)`, side after side. repeats: the same after further permutations of the control.
        curve: shots → draws of class numbers `(scored row,)`.
        seconds: of fitting, a side on average. decode_ms: of a window, from its signals on. trained: parameters.
            None where the method does not say.
    """

    method: Method
    kind: str
    adapt: str
    trials: Trials
    curved: bool = False
    settings: list[Setting] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    chances: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    repeats: list[np.ndarray] = field(default_factory=list)
    curve: dict[int, list[np.ndarray]] = field(default_factory=dict)
    seconds: float = 0.0
    decode_ms: float | None = None
    trained: int | None = None

    def of_side(self, number: int) -> Setting:
        """The setting of a side."""
        return self.settings[number if len(self.settings) > 1 else 0]


def run(
    model: Pretrained,
    train: Windows,
    test: Windows,
    *,
    seed: int,
    protocol: str = "cross-subject",
    folds: int = 0,
    blocks: int = 5,
    calibration: dict[str, Any] | None = None,
    adapt: Sequence[str] = ("probe", "finetune"),
    untrained: Sequence[str] | None = None,
    baselines: Sequence[str] | None = None,
    networks: Sequence[str] | None = None,
    shots: Sequence[int] = (),
    curves: Sequence[str] = (),
    draws: int = 3,
    permutations: int = 5,
    tries: int = 3,
    steps: int = 100,
    batch_size: int = 16,
    validations: int = 5,
    patience: int = 3,
) -> dict:
    """Score every method on windows that nothing of it has seen.

    Args:
        model: a pretrained network; not changed.
        train, test: labelled windows of the two sides, see `protocols.sides`.
        seed: of folds, spared people, fresh weights, steps, draws and bootstrap.
        protocol: a name of `protocols.PROTOCOLS`. folds, blocks, calibration: see `protocols.sides`.
        adapt: adaptation modes (`adaptation.ADAPT`) of the pretrained network; the first is the result's score.
        untrained: modes that the same network with fresh weights goes through; those of `adapt` where None.
        baselines: methods on the signals, see `classical.classical`. networks: models that are trained from scratch on
            the channels that all recordings share, see `scratch`. All that fit the data where None, see `defaults`.
        shots: trials per class of a new person, for `few-shot`; 0 is always among them. `shots.SHOTS` where none is
            named, as far as everyone has so many.
        curves: names of the methods that go through the shots; all but controls where empty.
        draws: random choices of those trials, averaged; the same for every method.
        permutations: of the labels for the control, averaged: where classes lie far apart one permutation finds nearly
            all or nearly none.
        tries: settings that each method may try.
        steps, batch_size, validations, patience: of everything that is trained by gradient, see `finetuning.Tuning`.

    A method that cannot be fitted here, or diverged in all its settings (`protocol.Unfit`), is not in the table:
    `failed` says why. The score's own failure ends the comparison, and so does any other error of a method.

    Raises:
        ValueError: where people, sessions or labels do not allow the protocol, a tested person was pretrained on, or
            the method whose score it is cannot be fitted.
        KeyError: for an unknown method, with the nearest name.
    """
    _counts(draws=draws, permutations=permutations, tries=tries, steps=steps, batch_size=batch_size,
            validations=validations, patience=patience)  # fmt: skip
    if shots and protocol != "few-shot":
        raise ValueError(f"shots: {list(shots)} go with the protocol few-shot; got {protocol}")
    trials, parts, first = protocols.sides(
        protocol, train, test, seed=seed, folds=folds, blocks=blocks, calibration=Calibration.given(calibration)
    )
    parts, note = protocols.scorable(trials, parts)
    note += _strangers(model, trials, parts, protocol)
    untrained = adapt if untrained is None else untrained
    baselines = defaults.baselines(trials, protocol) if baselines is None else baselines
    networks, short = defaults.networks(trials) if networks is None else (networks, "")
    aligned = [word for word in dict.fromkeys((*adapt, *untrained)) if word in adaptation.ALIGNED]
    looking = aligned + [name for name in baselines if "recentred" in name]
    if looking and protocol == "zero-shot":
        raise ValueError(
            f"{', '.join(looking)} look at a new person's windows, and zero-shot uses none; leave them out"
        )
    tuning = Tuning(steps, batch_size, weight_decay=0.05, beta2=0.99, validations=validations, patience=patience)
    entries = _entries(model, trials, adapt, untrained, baselines, networks, tuning, seed)
    unknown = set(curves) - set(entries)
    if unknown:
        raise ValueError(f"curves: {sorted(unknown)} are not compared; there are {', '.join(entries)}")
    for name, entry in entries.items():
        entry.curved = name in curves if curves else entry.kind != "control"
    kept, fewer = possible_shots(trials, parts, shots or (SHOTS if protocol == "few-shot" else ()))
    note += short + fewer
    if looking and protocol not in ("unlabelled-calibration", *protocols.OWN_PAST):
        note += f" Transductive, for they look at all windows of a tested person without labels: {', '.join(looking)}."
    drawn = [drawn_shots(trials, side, kept, draws, seed) for side in parts]
    choosing, failed = parts if protocol in protocols.OWN_PAST else [first], dict[str, str]()
    for name, entry in track(entries.items(), "Methods", total=len(entries), transient=True):
        started = time.perf_counter()
        try:
            for side in choosing:
                setting, losses = choose(entry.method, entry.trials, side, tries, seed)
                entry.settings.append(setting)
                entry.losses.append(losses)
            _fit(entry, parts, drawn, seed)
            if name == PERMUTED:
                entry.repeats = [_again(entry, trials, parts, seed + n) for n in range(1, permutations)]
        except Unfit as error:
            if name == next(iter(entries)):
                raise ValueError(f"{name}, whose score this is, cannot be fitted: {error}") from error
            failed[name] = str(error)
            note += f" {name} is not in the table: {error}."
        except (RuntimeError, ValueError) as error:  # of shapes or linear algebra: nothing that a table should hide
            print(f"  {name}: failed, and ends the comparison: {error}")
            error.add_note(f"in the method {name!r} of the comparison")
            raise
        print(f"  {name}: {time.perf_counter() - started:.0f} s{' failed: ' * (name in failed)}{failed.get(name, '')}")
    entries = {name: entry for name, entry in entries.items() if name not in failed}
    budget = {"tries": tries, "steps": steps, "batch_size": batch_size, "validations": validations,
              "patience": patience}  # fmt: skip
    found = _result(entries, trials, parts, drawn, seed, protocol, budget, note)
    return {**found, "failed": failed} if failed else found


def _strangers(model: Pretrained, trials: Trials, parts: Sequence[Side], protocol: str) -> str:
    """Check that pretraining saw no scored person, or within a person none of the scored seconds.

    Returns:
        A sentence where the network's card does not say what it saw, so that nothing can be checked; "" elsewhere.

    Raises:
        ValueError: naming whom it saw.
    """
    scored = trials.windows.take(np.concatenate([p.test for p in parts]))
    if protocol in protocols.OWN_PAST:
        shared.unseen(scored, model.card)
        seen = any(shared.seen_windows(model.card))
    else:
        people = set(shared.seen_people(model.card))
        seen = bool(people)
        if both := sorted(people & set(scored.of("person").tolist())):
            raise ValueError(
                f"pretraining saw {', '.join(both[:3])}, which {protocol} is to score; pretrain without them, or "
                "choose others for test:"
            )
    blank = not seen and not model.card.get("untrained")
    return " Nothing proves whom the network saw in pretraining: its card names nobody." if blank else ""


def _entries(
    model: Pretrained, trials: Trials, adapt: Sequence[str], untrained: Sequence[str], baselines: Sequence[str],
    networks: Sequence[str], tuning: Tuning, seed: int,
) -> dict[str, Entry]:  # fmt: skip
    """The methods by name, the one whose score is the result's first."""
    if not adapt:
        raise ValueError(f"adapt: names no mode; choose of {', '.join(adaptation.ADAPT)}")
    found = {word: Entry(adaptation.method(word, model, tuning), "pretrained", word, trials) for word in adapt}
    fresh = model.untrained(seed)
    for word in untrained:
        found[f"untrained {word}"] = Entry(_from_scratch(word, fresh, tuning), "untrained", word, trials)
    if untrained and Tokenized.fits(model.model):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            second = checkpoint.build(model.config, model.facts, deepcopy(model.model.codebook))
        over = replace(model, model=second.eval())
        for word in untrained:
            name = f"untrained over the tokenizer, {word}"
            found[name] = Entry(_from_scratch(word, over, tuning), "untrained", word, trials)
    for made in (*classical.classical(baselines), *scratch.methods(trials, networks, tuning, seed)):
        if made.name in found:
            raise ValueError(f"{made.name!r} names two methods of the comparison; leave one out")
        found[made.name] = Entry(made, "control" if made.name == "majority" else "baseline", "", trials)
    first = next(iter(found.values()))
    permuted = trials.permuted(np.random.default_rng(seed))
    found[PERMUTED] = Entry(adaptation.method(first.adapt, model, tuning), "control", first.adapt, permuted)
    return found


def _from_scratch(word: str, fresh: Pretrained, tuning: Tuning) -> Method:
    """A mode of a network with fresh weights.

    Where all of it is trained, rates go from those of a pretrained network to ten times as high, the same in every
    layer: at ten times a transformer may die, and at the lowest it learns little.
    """
    made = adaptation.method(word, fresh, tuning)
    return replace(made, settings=FRESH_RATES, decay=1.0) if word == "finetune" else made


def _counts(**given: int) -> None:
    """Check that the numbers of a configuration are one or more."""
    for word, number in given.items():
        if number < 1:
            raise ValueError(f"{word}: {number}; expected 1 or more")


def _fit(entry: Entry, parts: Sequence[Side], drawn: Sequence[Drawn], seed: int) -> None:
    """Fit and ask a method on every side, and after every draw of shots."""
    chances = []
    draws: dict[int, list[list[np.ndarray]]] = {}
    for number, (side, shots) in enumerate(zip(parts, drawn, strict=True)):
        started = time.perf_counter()
        fitted = entry.method.fit(entry.trials, side, entry.of_side(number), seed)
        entry.seconds += (time.perf_counter() - started) / len(parts)
        chances.append(finite(fitted.predict_proba(side.test)))
        if not number:
            entry.trained = getattr(fitted, "trained", None)
            entry.decode_ms = _decode_ms(entry, fitted, side)
        for k, sets in shots.items() if entry.curved else ():
            draws.setdefault(k, [[] for _ in sets])
            for draw, rows in enumerate(sets):
                draws[k][draw].append(after_shots(fitted, entry.trials, side, rows, chances[-1], seed + draw))
    if entry.adapt in FROZEN or not entry.method.stops_early:  # features were there already; others make theirs in fit
        entry.seconds += 1e-3 * (entry.decode_ms or 0.0) * float(np.mean([len(p.taught) for p in parts]))
    entry.chances = np.concatenate(chances)
    entry.curve = {k: [np.concatenate(guesses) for guesses in sets] for k, sets in draws.items()}


def _decode_ms(entry: Entry, fitted: Any, side: Side, most: int = 32) -> float | None:
    """Milliseconds that a window takes from its signals to its class, of up to `most` windows of each class.

    What was made of them before is not used. None where the fitted method cannot be asked for other trials (`on`).
    """
    trials = entry.trials
    labels = trials.labels[side.test]
    rows = side.test[np.sort(np.concatenate([np.flatnonzero(labels == c)[:most] for c in np.unique(labels)]))]
    if getattr(entry.method, "batches", None) is not None:  # in memory, as batches
        started = time.perf_counter()
        fitted.predict_proba(rows)
    elif hasattr(fitted, "on"):
        alone = trials.part(rows)
        started = time.perf_counter()
        fitted.on(alone).predict_proba(np.arange(len(rows)))
    else:
        return None
    return 1e3 * (time.perf_counter() - started) / len(rows)


def _again(entry: Entry, trials: Trials, parts: Sequence[Side], seed: int) -> np.ndarray:
    """`(scored row, class)` of the control after another permutation of the labels."""
    permuted = trials.permuted(np.random.default_rng(seed))
    fits = [entry.method.fit(permuted, side, entry.of_side(i), seed) for i, side in enumerate(parts)]
    return np.concatenate([finite(f.predict_proba(side.test)) for f, side in zip(fits, parts, strict=True)])


def _result(
    entries: dict[str, Entry], trials: Trials, parts: Sequence[Side], drawn: Sequence[Drawn], seed: int, protocol: str,
    budget: dict[str, int], note: str,
) -> dict:  # fmt: skip
    """The result file's fields (docs/results.md)."""
    rows = np.concatenate([p.test for p in parts])
    windows = trials.windows
    truth = trials.labels[rows]
    own_past = protocol in protocols.OWN_PAST
    trained = windows.take([] if own_past else np.unique(np.concatenate([p.taught for p in parts])))
    if not own_past and len(parts) > 1:  # people of the test side train in one another's folds: the folds say so
        tested = np.unique(trials.people[rows])
        trained = trained.take(~np.isin(trained.of("person"), tested))
    kinds = {name: (e.kind, e.adapt) for name, e in entries.items()}
    guesses = {name: e.chances.argmax(axis=1) for name, e in entries.items()}
    scored = {name: method_scores.scored(trials, rows, guess, seed) for name, guess in guesses.items()}
    for name, e in entries.items():
        if e.repeats:
            more = [method_scores.scored(trials, rows, x.argmax(axis=1), seed) for x in e.repeats]
            scored[name] = shared.mean_scored([scored[name], *more], seed)
    table = [
        {
            "name": name, "kind": e.kind, "adapt": e.adapt,
            **method_scores.of(trials, rows, [e.chances, *e.repeats], scored[name], seed),
            "setting": e.settings[0] if len(e.settings) == 1 else {"by side": e.settings},
            "tried": max(1, len(e.losses[0])), "losses": e.losses[0] if len(e.losses) == 1 else e.losses,
        }
        for name, e in entries.items()
    ]  # fmt: skip
    main = next(iter(entries))
    folds = [] if own_past else [np.unique(trials.people[p.test]).tolist() for p in parts]
    n_train = float(np.mean([len(np.unique(trials.people[p.taught])) for p in parts]))
    names = trials.classes
    said = (
        f"{main} of the pretrained network is the score. Each method had {budget['tries']} settings to try, chosen by "
        f"validation windows of the training side; what is trained by gradient took at most {budget['steps']} steps of "
        f"{budget['batch_size']} windows. {trials.signals().note}{note}"
        f"{chance.few_orders(table[0]['p_least'], table[0]['p_over'])}"
    )
    alone = [p.unlabelled[~np.isin(p.unlabelled, p.taught)] for p in parts]
    held = np.concatenate(alone + [x for d in drawn for sets in d.values() for x in sets])
    others = {name: s for name, s in scored.items() if name != main}
    result = shared.result(
        "comparison", "balanced accuracy", scored[main], 1 / len(names), others, trained, windows.take(rows), seed, said
    )
    if len(held):
        result["windows"]["calibration"] = windows.take(np.unique(held)).intervals()
    word = np.array(names)
    return {
        **result,
        "protocol": protocol,
        "methods": table,
        "pairs": method_scores.pairs(kinds, scored, folds, n_train, seed),
        "budget": budget,
        "split_id": protocols.split_id(trials, parts),
        "confusion": {"labels": names, "counts": confusion(word[truth], word[guesses[main]], names).tolist()},
        "folds": [
            {k: windows.take(r).intervals() for k, r in (("train", p.fit), ("val", p.val), ("test", p.test))}
            for p in parts
        ],
        **({"within_session": True} if protocol == "within-session" else {}),
        **({"same_people": True} if own_past else {}),
        **method_scores.curves(kinds, {n: e.curve for n, e in entries.items()}, trials, rows, seed),
        "cost": {
            name: {"seconds": e.seconds, "decode_ms": e.decode_ms, "trained": e.trained} for name, e in entries.items()
        },
    }  # fmt: skip
