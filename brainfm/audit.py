"""Leakage: does anything that a score was measured on stand anywhere on the training side?

Models and results carry a record of the windows they saw. The audit compares the records pairwise, and the data behind
them, frame by frame, so that the same session under two names is found as well. It trusts no split: it checks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from brainfm.shards.read import Corpus, Stored, open_shards

Intervals = dict[str, list[list[float]]]

#: Frames with fewer spikes than this are too common to say that two recordings are the same.
FEW_SPIKES = 8


@dataclass
class Check:
    """One kind of check: how many pairs were compared, and every leak found, in words."""

    what: str
    pairs: int = 0
    leaks: list[str] = field(default_factory=list)


def audit(shards: Path, models: list[Path], results: list[Path]) -> list[Check]:
    """Check every result against its own training windows and against all that its model was pretrained on.

    Args:
        shards: corpus folder that holds every recording named. models: model folders. results: result files.
    """
    corpus = open_shards(shards)
    stored = {r.id: r for r in corpus.recordings}
    cards = {p.name: json.loads((p / "card.json").read_text()) for p in models}
    checks = {
        word: Check(word)
        for word in (
            "training and test windows do not overlap in time",
            "training and test people differ, or at least their sessions",
            "pretraining never saw a test window",
            "transfer: pretraining never saw a test person",
            "windows lie on the side that the split gave their recording",
            "no stimulus is on both sides",
            "no frame of data is on both sides, under whatever name",
            "the shards are those that the model and the result were made from",
        )
    }
    overlap, people, pretraining, persons, sides, stimuli, frames, same = checks.values()
    hashes = _Hashes(stored)
    for name, card in cards.items():
        for side in ("train", "val"):
            seen = card["windows"][side]
            _on_side(sides, name, seen, stored, {"train", "val"})
        _same_data(same, name, card["checksums"], stored)
    for path in results:
        result = json.loads(path.read_text())
        name = f"{result['stage']} {result['key']}"
        train, test = result["windows"]["train"], result["windows"]["test"]
        _overlap(overlap, name, train, test)
        _sessions(people, name, train, test)
        _on_side(sides, name, test, stored, {"test"})
        _same_data(same, name, result["checksums"], stored)
        card = cards.get(result["model"])
        if card is None:
            pretraining.leaks.append(f"{name}: its model {result['model']} has no card, so nothing proves what it saw")
            continue
        for label, seen in _seen_by(result["model"], card):
            _overlap(pretraining, f"{name} and {label}", seen, test)
            if result["stage"] == "transfer":
                _persons(persons, f"{name} and {label}", seen, test)
            _stimuli(stimuli, f"{name} and {label}", seen, test, stored)
            _frames(frames, f"{name} and {label}", seen, test, hashes)
        _stimuli(stimuli, name, train, test, stored)
        _frames(frames, name, train, test, hashes)
    return list(checks.values())


def _seen_by(name: str, card: dict[str, Any]) -> Iterator[tuple[str, Intervals]]:
    """What a model was trained and validated on, and what the tokenizer inside it was."""
    for side in ("train", "val"):
        yield f"{name}'s {side} windows", card["windows"][side]
    if card.get("tokenizer"):
        yield from _seen_by(f"{name}'s tokenizer", card["tokenizer"])


def _overlap(check: Check, name: str, train: Intervals, test: Intervals) -> None:
    check.pairs += len(train) * len(test)
    for key in sorted(set(train) & set(test)):
        for a, b in train[key]:
            for c, d in test[key]:
                if min(b, d) - max(a, c) > 1e-9:
                    check.leaks.append(f"{name}: {key} from {max(a, c):.3f} to {min(b, d):.3f} s is on both sides")


def _sessions(check: Check, name: str, train: Intervals, test: Intervals) -> None:
    """A person on both sides is allowed only with other sessions, and it is said."""
    check.pairs += len(train) * len(test)
    both = sorted({k.rsplit("/", 1)[0] for k in train} & {k.rsplit("/", 1)[0] for k in test})
    check.leaks += [f"{name}: session {x} is on both sides" for x in both]


def _persons(check: Check, name: str, seen: Intervals, test: Intervals) -> None:
    check.pairs += len(seen) * len(test)
    both = sorted({_person(k) for k in seen} & {_person(k) for k in test})
    check.leaks += [f"{name}: {x} was seen in pretraining" for x in both]


def _person(recording: str) -> str:
    return "/".join(recording.split("/")[:2])


def _on_side(check: Check, name: str, seen: Intervals, stored: dict[str, Stored], sides: set[str]) -> None:
    check.pairs += len(seen)
    for key in seen:
        if key not in stored:
            check.leaks.append(f"{name}: recording {key} is not in the shards any more; run the pipeline again")
        elif stored[key].split not in sides:
            check.leaks.append(
                f"{name}: {key} is on the {stored[key].split!r} side; expected {' or '.join(sorted(sides))}"
            )


def _same_data(check: Check, name: str, checksums: dict[str, str], stored: dict[str, Stored]) -> None:
    check.pairs += len(checksums)
    changed = [k for k, v in checksums.items() if k not in stored or stored[k].checksum != v]
    check.leaks += [f"{name}: {key} has changed since; run the pipeline again" for key in changed]


def _stimuli(check: Check, name: str, seen: Intervals, test: Intervals, stored: dict[str, Stored]) -> None:
    check.pairs += len(seen) * len(test)
    both = _shown(seen, stored) & _shown(test, stored)
    check.leaks += [f"{name}: stimulus {x!r} is on both sides" for x in sorted(both)]


def _shown(intervals: Intervals, stored: dict[str, Stored]) -> set[str]:
    """`dataset:stimulus` of every event inside the intervals."""
    shown = set()
    for key, spans in intervals.items():
        if key in stored:
            events = stored[key].events
            for onset, stimulus in zip(events.onset, events.stimulus, strict=True):
                if stimulus and any(a <= onset < b for a, b in spans):
                    shown.add(f"{stored[key].dataset}:{stimulus}")
    return shown


def _frames(check: Check, name: str, seen: Intervals, test: Intervals, hashes: _Hashes) -> None:
    check.pairs += len(seen) * len(test)
    known = {h: key for key in seen for h in hashes.of(key, seen[key])}
    for key in test:
        twins = {known[h] for h in hashes.of(key, test[key]) if h in known} - {key}
        check.leaks += [f"{name}: {key} holds the same data as {twin}" for twin in sorted(twins)]


class _Hashes:
    """Hashes of the whole seconds (or volumes) of each recording, made once."""

    def __init__(self, stored: dict[str, Stored]) -> None:
        self.stored = stored
        self.made: dict[str, list[tuple[float, float, bytes]]] = {}

    def of(self, key: str, spans: list[list[float]]) -> set[bytes]:
        """Hashes of the frames that touch the spans."""
        if key not in self.stored:
            return set()
        if key not in self.made:
            self.made[key] = list(_hashed(self.stored[key]))
        return {h for a, b, h in self.made[key] if any(a < d and b > c for c, d in spans)}


def _hashed(stored: Stored) -> Iterator[tuple[float, float, bytes]]:
    """Start, stop (s) and hash of each frame that says something; constant frames are left out."""
    if not stored.sfreq:
        for second in range(int(stored.duration)):
            time, neuron = stored.spikes(second, second + 1)
            if len(time) >= FEW_SPIKES:
                data = np.round((time - second) * 1e4).astype(np.int64).tobytes() + neuron.astype(np.int64).tobytes()
                yield second, second + 1, hashlib.blake2b(data, digest_size=16).digest()
        return
    step = max(1, round(stored.sfreq)) if stored.sfreq >= 4 else 1
    for start in range(0, stored.samples - step + 1, step):
        frame = stored.signal(start, start + step)
        if frame.size > 8 and np.ptp(frame) > 0:
            digest = hashlib.blake2b(frame.tobytes(), digest_size=16).digest()
            yield start / stored.sfreq, (start + step) / stored.sfreq, digest


def duplicates(corpus: Corpus) -> list[tuple[str, str]]:
    """Pairs of recordings that share a frame of data: the same session under two names."""
    first: dict[bytes, str] = {}
    found: set[tuple[str, str]] = set()
    for r in corpus.recordings:
        for _, _, h in _hashed(r):
            if first.setdefault(h, r.id) != r.id:
                found.add((first[h], r.id))
    return sorted(found)
