"""Protocols by name: who trains, who decides when to stop, and who is scored. Each has one definition, here.

| name | fitted on | scored on |
|---|---|---|
| `within-session` | other blocks of time of the same session, a gap away | every block of each session |
| `cross-session` | the same person's other sessions | each session of each person |
| `cross-subject` | the training side, and the tested people of the other folds | people that nothing was fitted on |
| `zero-shot` | the training side alone | people that nothing was fitted on; nothing of theirs may be used |
| `cross-dataset` | the training side | other datasets |
| `cross-device` | the training side, less whoever used the device | other caps, arrays or implants |
| `few-shot` | as `cross-subject`; then k trials per class of the earlier half of each person's own | the later half |
| `unlabelled-calibration` | as `cross-subject`; then the new person's first seconds without labels | what comes after |

Settings are chosen, and training is stopped, by people (or, within a person, by later time) of the fitted side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from brainfm import splits
from brainfm.catalog import nearest
from brainfm.evaluations import few_shot, protocol
from brainfm.evaluations.methods.trials import NO_ROWS, Side, Trials
from brainfm.evaluations.protocol import recordings_in_time
from brainfm.shards.read import Windows
from brainfm.shards.stored import rate
from brainfm.splits import order
from brainfm.training.runs import cut_in_time

#: Share of the training people, or of their time where they are fewer than `FEW`, that is spared for validation.
SPARED, FEW = 0.2, 4
ACROSS_PEOPLE = ("cross-subject", "zero-shot", "few-shot", "unlabelled-calibration")
FOLDED = ("cross-subject", "few-shot", "unlabelled-calibration")
OWN_PAST = ("within-session", "cross-session")
PROTOCOLS = (*OWN_PAST, *ACROSS_PEOPLE, "cross-dataset", "cross-device")


@dataclass(frozen=True)
class Calibration:
    """What of a new person may be looked at without labels, for `unlabelled-calibration`.

    Training people are calibrated on the same part of their recordings, so that both are alike.

    Attributes:
        seconds: of every recording, from its start. label: only windows of this condition, such as rest; all where
            empty.
    """

    seconds: float = 30.0
    label: str = ""

    @staticmethod
    def given(words: dict[str, Any] | None) -> Calibration | None:
        """That of a configuration.

        Raises:
            ValueError: for an unknown word.
        """
        if unknown := set(words or {}) - {"seconds", "label"}:
            raise ValueError(f"calibration: {sorted(unknown)} are not known; expected seconds and label")
        return None if words is None else Calibration(**words)


def sides(
    name: str,
    train: Windows,
    test: Windows,
    *,
    seed: int,
    folds: int = 0,
    blocks: int = 5,
    calibration: Calibration | None = None,
) -> tuple[Trials, list[Side], Side]:
    """The trials of a protocol, its sides, and the side that settings are chosen on.

    The side for settings is the first one; across people with folds it is made of the training windows alone, so that
    no tested person helps to choose. Within a person each side should choose by itself, for what trains one is scored
    by another.

    Args:
        name: one of `PROTOCOLS`.
        train, test: labelled windows. Within a person both are the same recordings, and those of `test` are used.
        seed: of who is in which fold and who is spared.
        folds: groups of the tested people, each scored by what is also fitted on the others; -1 leaves one person out;
            0 fits once. For `cross-subject`, `few-shot` and `unlabelled-calibration`.
        blocks: of each session, within sessions.
        calibration: for `unlabelled-calibration`.

    Raises:
        ValueError: for an unknown name, where people, sessions, datasets or devices do not allow the protocol, and
            where a class is not taught, or none of it is left to score.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"no protocol {name!r}; {nearest(name, list(PROTOCOLS))}")
    if folds and name not in FOLDED:
        raise ValueError(f"folds: {folds} go with {', '.join(FOLDED)}; {name} has sides of its own: remove it")
    if calibration is not None and name != "unlabelled-calibration":
        raise ValueError(f"calibration: goes with the protocol unlabelled-calibration; got {name}")
    if name in OWN_PAST:
        trials = Trials(test, seed)
        found = list(_within(trials, blocks) if name == "within-session" else _sessions(trials))
        return trials, found, found[0]
    protocol.classes_of(train, test)
    trials = Trials(Windows.join([train, test]), seed)
    known, asked = np.arange(len(train)), np.arange(len(train), len(trials))
    if name in ACROSS_PEOPLE:
        _apart(trials, "person", known, asked, "split by subject")
        parts = list(_people(trials, known, asked, folds, seed))
        first = parts[0] if not folds else Side(*spared(trials, known, seed), NO_ROWS)
        found = [_reserved(name, trials, part, calibration) for part in parts]
        if name == "unlabelled-calibration":
            rows = first.taught
            first = first._replace(unlabelled=rows[_early(trials, calibration)[rows]])
        _whole(name, trials, found)
        return trials, found, first
    word = "dataset" if name == "cross-dataset" else "device"
    _apart(trials, word, known, asked, f"choose the sides by {word}")
    people = trials.people
    known = known[~np.isin(people[known], np.unique(people[asked]))]
    if not len(known):
        raise ValueError(f"everyone who trains is also scored; {name} needs training people of their own")
    side = Side(*spared(trials, known, seed), asked)
    _whole(name, trials, [side])
    return trials, [side], side


def scorable(trials: Trials, parts: Sequence[Side]) -> tuple[list[Side], str]:
    """The sides without the people who lack windows of some class to score, and a sentence that names them.

    With someone who has one class only, whatever always says that class scores 1: no longer what chance is.

    Raises:
        ValueError: where nobody is left.
    """
    rows, people = np.concatenate([p.test for p in parts]), trials.people
    held = {name: set(trials.labels[rows[people[rows] == name]].tolist()) for name in np.unique(people[rows]).tolist()}
    lacking = [name for name, classes in held.items() if len(classes) < len(trials.classes)]
    if not lacking:
        return list(parts), ""
    if len(lacking) == len(held):
        raise ValueError(
            f"none of {len(held)} tested people has windows of all classes ({', '.join(trials.classes)}) to score; "
            "choose classes with `labels`, or take longer recordings"
        )
    found = []
    for part in parts:
        left = np.intersect1d(lacking, people[part.test])
        rest = {
            k: rows[~np.isin(people[rows], left)]
            for k in ("test", "unlabelled", "shots")
            for rows in [getattr(part, k)]
        }
        found += [part._replace(**rest)] if len(rest["test"]) else []
    one = "has" if len(lacking) == 1 else "have"
    return found, f" Not scored, for not all classes are there: {', '.join(lacking)} {one} no window of some."


def spared(trials: Trials, rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit and rows for validation: of other people, or later in time where there are few people.

    Raises:
        ValueError: where neither leaves every class on both sides.
    """
    people, labels = trials.people, trials.labels
    names, classes = order(people[rows].tolist(), seed), set(labels[rows].tolist())
    held = names[: max(1, round(SPARED * len(names)))]
    if len(names) >= FEW:
        out = np.isin(people[rows], held)
        if set(labels[rows[out]].tolist()) == classes == set(labels[rows[~out]].tolist()):
            return rows[~out], rows[out]
    numbered = replace(trials.windows.take(rows), stimulus=rows)  # carries the row numbers through the cut
    fit, val = (part.stimulus.astype(np.int64) for part in cut_in_time(numbered, SPARED))
    if not set(labels[fit].tolist()) == classes == set(labels[val].tolist()):
        raise ValueError(
            f"{len(names)} training people and {len(rows)} windows leave no validation side with classes "
            f"{', '.join(trials.classes[c] for c in sorted(classes))}; take more people or longer recordings"
        )
    return fit, val


def seconds(windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """`(window,)` start and `(window,)` end in seconds of each window's own recording."""
    per_s = np.array([rate(r) for r in windows.recordings])[windows.recording]
    return windows.start / per_s, (windows.start + windows.samples) / per_s


def _apart(trials: Trials, word: str, known: np.ndarray, asked: np.ndarray, mend: str) -> None:
    """Check that no value of a header's word is on both sides."""
    values = trials.windows.of(word)
    both = sorted(set(values[known].tolist()) & set(values[asked].tolist()))
    if both or not len(known) or not len(asked):
        said = f"{word} {both[0]} is on both sides" if both else "one of the sides has no window"
        raise ValueError(f"{said}; {mend}")


def _whole(name: str, trials: Trials, parts: Sequence[Side]) -> None:
    """Check that every class is taught in each side, and scored in some: else chance is not one over their number.

    Raises:
        ValueError: naming a class that is not.
    """
    every = set(range(len(trials.classes)))
    scored = {c for part in parts for c in trials.labels[part.test].tolist()}
    for said, there in (("scored", scored), *(("taught", set(trials.labels[p.taught].tolist())) for p in parts)):
        if missing := sorted(every - there):
            raise ValueError(
                f"no window of {trials.classes[missing[0]]!r} is left to be {said} in {name}, once those are set aside "
                "that it may not use; choose classes with `labels`, or other people, devices or calibration"
            )


def _people(trials: Trials, known: np.ndarray, asked: np.ndarray, folds: int, seed: int) -> Iterator[Side]:
    """The tested people at once, or in groups that are each also taught by the others."""
    if not folds:
        yield Side(*spared(trials, known, seed), asked)
        return
    names = trials.people[asked]
    count = len(set(names.tolist()))
    if not 2 <= (count if folds == -1 else folds) <= count:
        raise ValueError(
            f"folds: {folds} of {count} tested people ({', '.join(sorted(set(names.tolist()))[:3])}); expected two "
            "people or more, and no more folds than people: hold out more with `brainfm ingest --test-subjects`, give "
            "fewer folds, or take protocol: zero-shot, which has none"
        )
    for group in splits.groups(names.tolist(), count if folds == -1 else folds, seed):
        out = np.isin(names, group)
        yield Side(*spared(trials, np.concatenate([known, asked[~out]]), seed), asked[out])


def _reserved(name: str, trials: Trials, side: Side, calibration: Calibration | None) -> Side:
    """What of the tested people's windows is set aside for their own adaptation."""
    if name == "few-shot":
        own = trials.windows.take(side.test)
        pool, held = few_shot.halves(own, trials.classes)
        return side._replace(test=side.test[held], shots=side.test[pool])
    if name == "unlabelled-calibration":
        given, early = calibration or Calibration(), _early(trials, calibration)
        own, early_own = trials.windows.take(side.test), early[side.test]
        everyone = np.concatenate([side.taught, side.test])
        lacking = sorted(set(trials.people[everyone].tolist()) - set(trials.people[everyone[early[everyone]]].tolist()))
        if lacking:
            raise ValueError(
                f"{lacking[0]} has no window of {given.label or 'any condition'} in the first {given.seconds:g} s to "
                "calibrate on; give more `calibration` seconds or another label"
            )
        kept = ~early_own & ~few_shot.sharing(own, early_own)
        return side._replace(test=side.test[kept], unlabelled=everyone[early[everyone]])
    return side


def _early(trials: Trials, calibration: Calibration | None) -> np.ndarray:
    """`(window,)` True for windows that calibrate."""
    given = calibration or Calibration()
    early = seconds(trials.windows)[1] <= given.seconds + 1e-9
    return early & (trials.windows.label == given.label) if given.label else early


def _within(trials: Trials, blocks: int) -> Iterator[Side]:
    """Each block of time of each session, taught by its other blocks, twice the filters' reach away."""
    start, stop = seconds(trials.windows)
    people, session = trials.people, trials.windows.of("session")
    reach = np.array([r.reach_s for r in trials.windows.recordings])[trials.windows.recording]
    keys = np.array([f"{a}/{b}" for a, b in zip(people, session, strict=True)])
    for key in np.unique(keys):
        rows = np.flatnonzero(keys == key)
        begin, end = _one_clock(trials.windows, rows, start, stop)
        gap = float(2 * reach[rows].max())
        cuts = splits.blocks_of_time(list(zip(begin.tolist(), end.tolist(), strict=True)), blocks, gap)
        for number, (fit, scored) in enumerate(cuts, 1):
            yield _own(trials, rows[fit], rows[scored], f"block {number} of {blocks} of {key}")


def _one_clock(
    windows: Windows, rows: np.ndarray, start: np.ndarray, stop: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of a session's rows in seconds, its runs one after the other."""
    begin, end, offset = start[rows].copy(), stop[rows].copy(), 0.0
    for r in recordings_in_time(windows.take(rows)):
        own = windows.recording[rows] == r
        begin[own] += offset
        end[own] += offset
        offset += windows.recordings[r].duration
    return begin, end


def _sessions(trials: Trials) -> Iterator[Side]:
    """Each session of each person, taught by that person's other sessions."""
    people, session = trials.people, trials.windows.of("session")
    for person in np.unique(people):
        rows = np.flatnonzero(people == person)
        names = np.unique(session[rows])
        if len(names) < 2:
            raise ValueError(f"{person} has one session ({names[0]!r}); cross-session needs two or more of each person")
        for name in names:
            out = session[rows] == name
            yield _own(trials, rows[~out], rows[out], f"session {name} of {person}")


def _own(trials: Trials, known: np.ndarray, scored: np.ndarray, what: str) -> Side:
    """A side within one person: the later part of the taught windows decides when to stop.

    Raises:
        ValueError: where a class that is scored was never taught.
    """
    missing = set(trials.labels[scored].tolist()) - set(trials.labels[known].tolist())
    if missing:
        raise ValueError(
            f"{what}: condition {trials.classes[missing.pop()]!r} is not among the windows that it would be fitted on; "
            "take fewer blocks, or sessions that hold every condition"
        )
    return Side(*_later(trials, known, what), scored)


def _later(trials: Trials, rows: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Of one person: rows to fit, and the last of their time for validation, more of it where a class would be missing.

    Raises:
        ValueError: where no cut leaves every class on both sides.
    """
    start, stop = seconds(trials.windows)
    begin, end = _one_clock(trials.windows, rows, start, stop)
    gap = 2 * max(r.reach_s for r in trials.windows.take(rows).used)
    classes = set(trials.labels[rows].tolist())
    for share in (SPARED, 0.3, 0.4, 0.5):
        val = begin >= np.quantile(end, 1 - share)
        fit = end <= begin[val].min(initial=np.inf) - gap
        if set(trials.labels[rows[fit]].tolist()) == classes == set(trials.labels[rows[val]].tolist()):
            return rows[fit], rows[val]
    raise ValueError(
        f"{what}: no time cuts the {len(rows)} windows that it would be fitted on so that every condition lies on both "
        "sides; take fewer blocks or longer recordings"
    )


def split_id(trials: Trials, parts: Sequence[Side]) -> str:
    """A hash of who was fitted, spared and scored: results with the same one may be put side by side."""
    keys = [
        (trials.windows.recordings[r].id, int(a), int(n), str(label))
        for r, a, n, label in zip(
            trials.windows.recording, trials.windows.start, trials.windows.samples, trials.windows.label, strict=True
        )
    ]
    described = [[sorted(keys[i] for i in rows) for rows in side] for side in parts]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
