"""Leakage: does anything on one side of a split stand on the other side too?

Models and results carry a record of the windows they saw. From these records the audit lists every split that a stage
used: training and validation of each model and of the tokenizer inside it, training and test of each result, the
calibration windows of people it transferred to, and all that a model saw against all that it was tested on. It trusts
none of them, and it says what it could not check.

What two windows share. After filtering, a sample at time t depends on raw samples from t - reach to t + reach. So two
windows of a recording share raw samples unless at least 2 * reach lies between them. Each segment is filtered by
itself: windows with a break between them share nothing.

What makes the same data under two names is said in `brainfm/shards/twins.py`.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np

from brainfm.checksums import WEIGHTS, sha256
from brainfm.shards import schema
from brainfm.shards.read import Corpus, open_shards
from brainfm.shards.spans import near, segmented
from brainfm.shards.stored import Stored, rate
from brainfm.shards.twins import Intervals, Twins, find, groups_of, merged, pairs, touched, whole

#: Start and stop (s) and name of each presentation of a stimulus in a recording.
Presented = tuple[np.ndarray, np.ndarray, list[str]]


@dataclass
class Check:
    """One kind of check.

    Attributes:
        what: what is demanded. pairs: how many pairs (or whatever `of` says) were looked at.
        leaks: every leak, in words. warnings: what is odd and leaks nothing. unchecked: what could not be looked at.
    """

    what: str
    pairs: int = 0
    of: str = "pairs of recordings"
    leaks: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Split:
    """Two sides that were kept apart, and by what: "windows", "sessions" or "people"."""

    name: str
    left: Intervals
    right: Intervals
    apart: str = "windows"


@dataclass(frozen=True)
class Audit:
    """The splits that were found, and what became of each check."""

    splits: list[Split]
    checks: list[Check]


def audit(shards: Path, models: list[Path], results: list[Path]) -> Audit:
    """Check every split of these models and results, and the split files of the corpus.

    Args:
        shards: corpus folder that holds every recording named. models: model folders. results: result files.

    Raises:
        ValueError: for a card or a result that does not say what it saw.
    """
    corpus = open_shards(shards)
    stored = {r.id: r for r in corpus.recordings}
    cards = {p.name: _read(p / "card.json", "pretrain") for p in models}
    weights = {p.name: sha256(p / WEIGHTS) if (p / WEIGHTS).exists() else "" for p in models}
    found = {_name(r): r for r in (_read(p, "decode or transfer") for p in results)}
    splits = [*_of_models(cards), *_of_results(found, cards)]
    used = {k for s in splits for side in (s.left, s.right) for k in side}
    overlap, reach = _windows(splits, stored)
    frames, files = find(stored)
    checks = [
        overlap,
        reach,
        _ids("no session is on both sides, where sessions or people are held out", splits, ("sessions", "people")),
        _ids("no person is on both sides, where people are held out", splits, ("people",)),
        _stimuli(splits, stored),
        _twins("no frame of data is on both sides, under whatever name", splits, stored, frames),
        _twins("no raw file is on both sides, under whatever name", splits, stored, files),
        _split_files(shards, stored),
        _on_sides(cards, found, stored),
        _same_data(cards, found, corpus),
        _same_weights(cards, found, weights),
        _complete(cards, found),
    ]
    known = [stored[k] for k in used if k in stored]
    _admit(reach, known, lambda r: not r.reach_s, "no filter of ours in them; one applied before is not known")
    _admit(checks[4], known, lambda r: not any(r.events.stimulus), "no stimulus ids")
    return Audit(splits, checks)


def _read(path: Path, stage: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not whole ({error}); remove it and run {stage} again") from error
    missing = [k for k in ("windows", "checksums") if not isinstance(found.get(k), dict)]
    if missing:
        raise ValueError(f"{path} does not say what it saw ({', '.join(missing)} missing); run {stage} again")
    return found


def _admit(check: Check, known: list[Stored], lacks: Callable[[Stored], bool], why: str) -> None:
    """Say how many of the recordings in use could not be checked."""
    lacking = sum(map(lacks, known))
    if lacking:
        check.unchecked.append(f"{lacking} of {len(known)} recordings in use: {why}")


def _name(result: dict[str, Any]) -> str:
    return f"{result['stage']} {result['key']}"


# Which splits there are.


def _seen_by(name: str, card: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A model's card, and that of the tokenizer inside it."""
    yield name, card
    if card.get("tokenizer"):
        yield from _seen_by(f"{name}'s tokenizer", card["tokenizer"])


def _of_models(cards: dict[str, dict[str, Any]]) -> Iterator[Split]:
    """Training and validation; what a model was fine-tuned on later may be either of them."""
    for name, card in _all_cards(cards):
        windows = card["windows"]
        yield Split(f"{name}, train and val", windows.get("train") or {}, windows.get("val") or {})


def _all_cards(cards: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, card in cards.items():
        yield from _seen_by(name, card)


def _of_results(found: dict[str, dict[str, Any]], cards: dict[str, dict[str, Any]]) -> Iterator[Split]:
    """A result's own sides against each other, and all that its model saw against what is scored or calibrates."""
    for name, result in found.items():
        windows, transfer = result["windows"], result["stage"] == "transfer"
        others = "sessions" if result.get("same_people") or not transfer else "people"
        sides = {k: windows[k] for k in ("test", "calibration") if windows.get(k)}
        for side, held in sides.items():
            yield Split(f"{name}, train and {side}", windows["train"], held, others)
        if "calibration" in sides:
            yield Split(f"{name}, calibration and test", windows["calibration"], windows["test"])
        if windows.get("halves"):
            yield Split(f"{name}, first and second halves", *windows["halves"])
        for i, fold in enumerate(result.get("folds") or (), 1):
            yield Split(f"{name}, fold {i}, train and val", fold["train"], fold["val"])
            apart = "windows" if result.get("within_session") else others
            for side in ("train", "val"):
                yield Split(f"{name}, fold {i}, {side} and test", fold[side], fold["test"], apart)
        for model, card in _seen_by(result["model"], cards[result["model"]]) if result["model"] in cards else ():
            for seen, windows_seen in card["windows"].items():
                for side, held in sides.items():
                    apart = "people" if transfer else "windows"
                    yield Split(f"{name}'s {side} and {model}'s {seen} windows", windows_seen, held, apart)


# Windows in time.


def _windows(splits: list[Split], stored: dict[str, Stored]) -> tuple[Check, Check]:
    """No second twice, and the filters' reach between windows of one recording."""
    overlap = Check("no second is on both sides")
    reach = Check("windows on different sides share no raw sample through the filters", of="recordings on both sides")
    for split in splits:
        overlap.pairs += len(split.left) * len(split.right)
        for key in sorted(split.left.keys() & split.right.keys()):
            one = stored.get(key)
            per_s = rate(one) if one else 1e6
            left, right = (merged(np.round(np.array(x, float).reshape(-1, 2) * per_s)) for x in
                           (split.left[key], split.right[key]))  # fmt: skip
            for i, j in near(left, right, 0):
                a, b = max(left[i, 0], right[j, 0]) / per_s, min(left[i, 1], right[j, 1]) / per_s
                overlap.leaks.append(f"{split.name}: {key} from {a:.3f} to {b:.3f} s is on both sides")
            reach.pairs += 1
            if one is None or not one.reach_s:
                continue
            gap = math.ceil(2 * one.reach_s * per_s - 1e-6)
            (left, _), (right, shift) = (segmented(x, one.segments, gap) for x in (left, right))
            for i, j in near(left, right, gap):
                apart = max(left[i, 0] - right[j, 1], right[j, 0] - left[i, 1])
                if apart >= 0:
                    reach.leaks.append(
                        f"{split.name}: {key}, the windows around {(right[j, 0] - shift[j]) / per_s:.3f} s are "
                        f"{apart / per_s:.3f} s apart; the filters reach {one.reach_s:g} s to either side, so leave "
                        f"{gap / per_s:.3f} s"
                    )
    return overlap, reach


# Sessions, people, stimuli.


def _ids(what: str, splits: list[Split], apart: tuple[str, ...]) -> Check:
    """No session, or no person, on both sides of the splits that promise it."""
    check = Check(what)
    words = 3 if "sessions" in apart else 2
    for split in splits:
        if split.apart in apart:
            check.pairs += len(split.left) * len(split.right)
            sides = [{"/".join(k.split("/")[:words]) for k in x} for x in (split.left, split.right)]
            kind = "session" if words == 3 else "person"
            check.leaks += [f"{split.name}: {kind} {x} is on both sides" for x in sorted(sides[0] & sides[1])]
    if not check.pairs:
        check.unchecked.append(f"no split holds out {apart[-1]}")
    return check


def _stimuli(splits: list[Split], stored: dict[str, Stored]) -> Check:
    """No stimulus on both sides, unless it is one presentation that goes on across a cut in time."""
    check = Check("no stimulus is on both sides")
    presented = {k: _presented(r) for k, r in stored.items() if any(r.events.stimulus)}
    for split in splits:
        shown = [{k: presented[k] for k in side if k in presented} for side in (split.left, split.right)]
        check.pairs += len(shown[0]) * len(shown[1])
        both = set.intersection(*({name for _, _, names in x.values() for name in names} for x in shown))
        left, right = (_shown(x, x_shown, both) for x, x_shown in zip((split.left, split.right), shown, strict=True))
        for name in sorted(left.keys() & right.keys()):
            if len(left[name] | right[name]) > 1:
                check.leaks.append(f"{split.name}: stimulus {name!r} is on both sides")
    return check


def _presented(stored: Stored) -> Presented:
    """Start and stop (s) and `dataset:stimulus` of each presentation; an instant counts as the moment after it."""
    events = stored.events
    rows = [i for i, name in enumerate(events.stimulus) if name]
    onset = np.asarray(events.onset, float)[rows]
    stop = np.maximum(onset + np.asarray(events.duration, float)[rows], np.nextafter(onset, np.inf))
    return onset, stop, [f"{stored.dataset}:{events.stimulus[i]}" for i in rows]


def _shown(side: Intervals, presented: dict[str, Presented], wanted: set[str]) -> dict[str, set[tuple[str, int]]]:
    """Wanted stimulus → its presentations inside the windows of a side."""
    found: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for key, (start, stop, names) in presented.items():
        if not wanted.isdisjoint(names):
            for i in np.flatnonzero(touched(side[key], start, stop)):
                found[names[i]].add((key, int(i)))
    return found


# The same content under two names.


def _twins(what: str, splits: list[Split], stored: dict[str, Stored], twins: Twins) -> Check:
    """Twins across each split, and across the sides of the split files; on one side they are a warning."""
    check = Check(what, unchecked=list(twins.unchecked))
    for split in splits:
        check.pairs += len(split.left) * len(split.right)
        both = pairs(groups_of(twins, split.left), groups_of(twins, split.right))
        check.leaks += [f"{split.name}: {b} holds {twins.shared} as {a}" for a, b in both]
    check.pairs += math.comb(len(stored), 2)
    words = sorted({stored[key].split for key in twins.of})
    groups = {word: groups_of(twins, whole(k for k in twins.of if stored[k].split == word)) for word in words}
    for word, other in combinations_with_replacement(words, 2):
        for a, b in pairs(groups[word], groups[other]):
            same = f"{b} holds {twins.shared} as {a}"
            if word != other and word and other:
                check.leaks.append(f"split files: {same}; they are on the {other!r} and the {word!r} side")
            elif word != other:
                check.warnings.append(f"{same}; one of them is on no side of a split file")
            elif a < b:
                check.warnings.append(f"{same}, on the same side; one of them is enough")
    return check


# What cards, results and split files say of themselves.


def _split_files(shards: Path, stored: dict[str, Stored]) -> Check:
    """A split file keeps sessions whole, and people too unless its rule names sessions to hold out."""
    check = Check("split files keep sessions together, and people where their rule holds out people", of="recordings")
    folder = shards if shards.is_dir() else shards.parent
    for path in sorted(folder.glob(f"**/{schema.SPLIT_FILE}")):
        said = json.loads(path.read_text())
        rule, sides = said.get("rule"), said["recordings"]
        check.pairs += len(sides)
        words = {"session": 3} | ({} if rule is None or _by_session(rule) else {"person": 2})
        if rule is None:
            check.unchecked.append(f"{path} does not say its rule, so whether people may be on two sides is not known")
        for kind, n in words.items():
            found: dict[str, set[str]] = defaultdict(set)
            for key, side in sides.items():
                found["/".join(key.split("/")[:n])].add(side)
            check.leaks += [
                f"{path}: {kind} {x} is on the sides {', '.join(sorted(on))}" for x, on in found.items() if len(on) > 1
            ]
    lost = sum(not r.split for r in stored.values())
    if lost:
        check.unchecked.append(f"{lost} recordings are on no side of a split file")
    return check


def _by_session(rule: dict[str, Any]) -> bool:
    return bool(rule.get("test_sessions") or rule.get("val_sessions"))


def _on_sides(cards: dict[str, dict], found: dict[str, dict], stored: dict[str, Stored]) -> Check:
    """Windows lie on the side that the split file gave their recording; of a held-out device none was trained on."""
    check = Check("windows lie on the side that the split gave their recording", of="recordings")
    known, device = {"train", "val"}, {key: r.device for key, r in stored.items()}
    asked: list[tuple[str, Intervals, set[str]]] = [
        (name, windows, known) for name, card in _all_cards(cards) for windows in card["windows"].values()
    ]
    for name, result in found.items():
        windows, apart = result["windows"], set(result.get("held_out_devices") or ())
        asked.append((name, windows["train"], {"train", "val", "test"} if result.get("same_people") else known))
        asked += [
            (name, {k: v for k, v in (windows.get(side) or {}).items() if device.get(k) not in apart}, {"test"})
            for side in ("calibration", "test")
        ]
        model = result["model"]
        saw = [(f"{name}: its model {m}", c) for m, c in _seen_by(model, cards[model])] if model in cards else []
        own = {"windows": {side: windows.get(side) for side in ("train", "val")}}
        for whose, said in [*saw, (f"{name}: its training", own)]:
            used = [k for side in said["windows"].values() for k in side or () if device.get(k) in apart]
            check.leaks += [f"{whose} saw {k} of the held-out device {device[k]}" for k in used]
    for name, windows, sides in asked:
        check.pairs += len(windows)
        for key in windows:
            if key not in stored:
                check.leaks.append(f"{name}: recording {key} is not in the shards any more; run the pipeline again")
            elif stored[key].split not in sides:
                check.leaks.append(
                    f"{name}: {key} is on the {stored[key].split!r} side; expected {' or '.join(sorted(sides))}"
                )
    return check


def _same_data(cards: dict[str, dict], found: dict[str, dict], corpus: Corpus) -> Check:
    """The shards have not changed since."""
    check = Check("the shards are those that the models and results were made from", of="recordings")
    now = {(r.id, r.checksum) for r in corpus.recordings}
    stands = Counter(r.id for r in corpus.recordings)
    check.warnings += [
        f"{key} stands in {n} shards; only one of them was checked" for key, n in stands.items() if n > 1
    ]
    for name, said in [*_all_cards(cards), *found.items()]:
        checksums = said.get("checksums") or {}
        check.pairs += len(checksums)
        used = {k for side in said["windows"].values() if isinstance(side, dict) for k in side}
        check.leaks += [f"{name}: nothing proves which data {k} were" for k in sorted(used - checksums.keys())]
        changed = [k for k, v in checksums.items() if (k, v) not in now]
        check.leaks += [f"{name}: {key} has changed since; run the pipeline again" for key in changed]
    return check


def _same_weights(cards: dict[str, dict], found: dict[str, dict], weights: dict[str, str]) -> Check:
    """A card is of the weights beside it, and a result was made with the weights that lie there now."""
    check = Check("the models that lie there are those that their cards and the results speak of", of="files")
    said = [(f"the card of {name}", name, card, "pretrain") for name, card in cards.items()]
    said += [(name, r["model"], r, r["stage"]) for name, r in found.items() if r["model"] in cards]
    for name, model, record, stage in said:
        check.pairs += 1
        if "model_checksum" not in record:
            check.leaks.append(f"{name} does not say of which weights of {model} it is; run {stage} again")
        elif record["model_checksum"] != weights[model]:
            now = "others lie there now" if weights[model] else f"{WEIGHTS} is missing"
            check.leaks.append(f"{name} is not of the weights of {model}: {now}; run {stage} again")
    return check


def _complete(cards: dict[str, dict], found: dict[str, dict]) -> Check:
    """Every result's model has a card, and a result that used shots says which."""
    check = Check("every result says what its model and its calibration saw", of="results")
    for name, result in found.items():
        check.pairs += 1
        if result["model"] not in cards:
            check.leaks.append(f"{name}: its model {result['model']} has no card, so nothing proves what it saw")
        shots = any(point.get("shots") for point in result.get("curve") or ())
        if shots and not result.get("same_people") and "calibration" not in result["windows"]:
            check.unchecked.append(f"{name}: its curve used shots that it does not list; run it again")
    return check
