"""The same content under two names: recordings that share frames of data, or were made from copies of one raw file.

Frames are compared by the hashes that ingest keeps of each (one second, or one volume), so a copy that starts some
frames later is found too. A copy that was cut within a frame, cleaned or stored in another way, or with its channels in
another order, has other frames; of those, the checksums of the raw files find copied files.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from brainfm.shards import schema
from brainfm.shards.read import Corpus
from brainfm.shards.stored import Stored, rate

Intervals = dict[str, list[list[float]]]
#: Group → variant → recordings, sorted; see `Twin`.
Groups = dict[int, dict[str, list[str]]]

#: Frames with fewer numbers than this are too common to say that two recordings are the same.
FEW_NUMBERS = 9


@dataclass(frozen=True)
class Twin:
    """Stretches of a recording that stand in others too.

    Attributes:
        group: `(stretch,)` stretches of one group are the same. start, stop: `(stretch,)` seconds.
        variant: `stretch` words; a group shows that a thing stands twice only where it has two variants.
    """

    group: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    variant: list[str]


@dataclass(frozen=True)
class Twins:
    """Recording id → what of it stands elsewhere; what that is, in words; and what could not be compared."""

    of: dict[str, Twin]
    shared: str
    unchecked: list[str]


def find(stored: dict[str, Stored]) -> tuple[Twins, Twins]:
    """What stands in several recordings: the same frames, and the same raw files."""
    halves: dict[str, np.ndarray] = {}
    files: dict[str, dict[str, str]] = {}
    for key, one in stored.items():  # shard by shard, so that each is opened once
        if not one.sfreq or len(one.channels) * _frame_samples(one) >= FEW_NUMBERS:
            halves[key] = _digests(one)[:, 0].copy()
        files[key] = one.provenance().get("files") or {}
    return _same_frames(stored, halves), _same_files(stored, files)


def _same_frames(stored: dict[str, Stored], halves: dict[str, np.ndarray]) -> Twins:
    """Frames that stand in several recordings, by the digests in the shards; constant frames say nothing.

    Two passes: the first sorts half of each digest, the second compares whole digests of the few frames found.
    """
    ordered = np.sort(np.concatenate([*halves.values(), np.zeros(0, np.uint64)]))
    again = np.unique(ordered[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)])
    members: dict[bytes, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for key, half in halves.items() if len(again) else ():
        rows = np.flatnonzero(again[np.minimum(np.searchsorted(again, half), len(again) - 1)] == half)
        digests = _digests(stored[key])[rows] if len(rows) else ()
        for row, digest in zip(rows.tolist(), digests, strict=True):
            members[digest.tobytes()][key].append(row)
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for group, (_, where) in enumerate(sorted(members.items())):
        for key in where if len(where) > 1 else ():
            found[key] += [(group, row) for row in where[key]]
    twins = {}
    for key, stretches in found.items():
        group, row = np.array(stretches).T
        length = _frame_samples(stored[key]) / rate(stored[key])
        twins[key] = Twin(group, row * length, (row + 1) * length, [key] * len(group))
    few = [f"{len(stored) - len(halves)} recordings: frames of fewer than {FEW_NUMBERS} numbers say too little"]
    none = sum(not half.any() for half in halves.values())
    silent = [f"{none} recordings: all of their frames are constant or nearly empty"]
    return Twins(twins, "the same data", few * (len(halves) < len(stored)) + silent * (none > 0))


def _frame_samples(stored: Stored) -> int:
    """Samples (milliseconds of spikes alone) that one digest stands for."""
    return schema.frame_samples(stored.sfreq) if stored.sfreq else 1000


def _digests(stored: Stored) -> np.ndarray:
    """`(frame, 2)` the digest of each frame as two whole numbers; zero where it says nothing."""
    return np.frombuffer(stored.frame_hashes().tobytes(), np.uint64).reshape(-1, 2)


def _same_files(stored: dict[str, Stored], files: dict[str, dict[str, str]]) -> Twins:
    """Recordings made from copies of the same raw files: all files of one are among those of the other.

    Files that go by one name in one dataset are no copies: such a file holds several recordings, or an atlas. Whether
    it holds a recording twice, its frames say.
    """
    sets: dict[frozenset[str], list[str]] = defaultdict(list)
    for key, named in files.items():
        if named:
            sets[frozenset(named.values())].append(key)
    holders: dict[str, list[frozenset[str]]] = defaultdict(list)
    for one in sets:
        for digest in one:
            holders[digest].append(one)
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for group, one in enumerate(sets):
        rarest = min(one, key=lambda digest: (len(holders[digest]), digest))
        variants = {}
        for key in (k for other in holders[rarest] if one <= other for k in sets[other]):
            names = sorted(name for name, digest in files[key].items() if digest in one)
            variants[key] = json.dumps([stored[key].dataset, names])
        for key in variants if len(set(variants.values())) > 1 else ():
            found[key].append((group, variants[key]))
    twins = {
        key: Twin(np.array([g for g, _ in rows]), np.full(len(rows), -np.inf), np.full(len(rows), np.inf),
                  [variant for _, variant in rows])
        for key, rows in found.items()
    }  # fmt: skip
    none = sum(not named for named in files.values())
    return Twins(twins, "the same raw files", [f"{none} of {len(files)} recordings name no raw file"] * (none > 0))


def whole(keys: Iterable[str]) -> Intervals:
    """All of these recordings, as the windows of a side."""
    return {key: [[-math.inf, math.inf]] for key in keys}


def groups_of(twins: Twins, side: Intervals) -> Groups:
    """What stands elsewhere too and lies inside the windows of a side."""
    found: Groups = defaultdict(lambda: defaultdict(list))
    for key in sorted(side.keys() & twins.of.keys()):
        twin = twins.of[key]
        inside = np.flatnonzero(touched(side[key], twin.start, twin.stop))
        for group, variant in sorted({(int(twin.group[i]), twin.variant[i]) for i in inside}):
            found[group][variant].append(key)
    return found


def pairs(left: Groups, right: Groups) -> list[tuple[str, str]]:
    """Each recording on the right that has a twin on the left, behind the first such twin."""
    found = set()
    for group in left.keys() & right.keys():
        ours = [(variant, keys[0]) for variant, keys in left[group].items()][:2]
        for variant, keys in right[group].items():
            twin = next((key for other, key in ours if other != variant), None)
            found |= {(twin, key) for key in keys if twin}
    return sorted(found)


def duplicates(corpus: Corpus) -> list[tuple[str, str]]:
    """Pairs of recordings that share a frame of data or their raw files: the same session under two names.

    Of many that share it, each is named with the first.
    """
    stored = {r.id: r for r in corpus.recordings}
    found = set()
    for twins in find(stored):
        groups = groups_of(twins, whole(twins.of))
        found |= {(min(pair), max(pair)) for pair in pairs(groups, groups)}
    return sorted(found)


def touched(spans: list[list[float]], start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Which of the stretches `start` to `stop` touch a span."""
    apart = merged(np.array(spans, float).reshape(-1, 2))
    before = np.searchsorted(apart[:, 0], stop, "left")
    return np.concatenate([[-np.inf], apart[:, 1]])[before] > start


def merged(spans: np.ndarray) -> np.ndarray:
    """`(span, 2)` first and one-past-last sample, sorted, those that touch or overlap made one."""
    if (spans[1:, 0] > spans[:-1, 1]).all():
        return spans
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    ends = np.maximum.accumulate(spans[:, 1])
    first = np.flatnonzero(np.r_[True, spans[1:, 0] > ends[:-1]])
    return np.stack([spans[first, 0], np.r_[ends[first[1:] - 1], ends[-1]]], axis=1)
