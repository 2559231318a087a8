"""Read shards: a corpus of recordings, windows over them as an index, and memory-mapped access to any stretch.

Windows are never copied: they are a recording, a first sample and a length. A stretch of a signal is read straight
from the file's pages to where it is wanted. Files are mapped when they are first needed, and no page is pickled.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from brainfm.shards import schema
from brainfm.shards.stored import MEND, Stored, facts, header_of, rate

#: Sides that a split may put a recording on.
SIDES = ("train", "val", "test")

#: Words of a recording's header that `Corpus.where` chooses by.
HEADER = ("dataset", "subject", "person", "session", "run", "device", "modality", "simulated", "split", "id")


#: Labels or datasets that a representation names.
SHOWN = 5


@dataclass(frozen=True, repr=False)
class Windows:
    """An index of windows: row i is `samples[i]` samples of `recordings[recording[i]]` from sample `start[i]`.

    For spikes alone samples count milliseconds, see `rate`.

    Attributes:
        recordings: what the rows point into.
        recording, start, samples: `(window,)` integers.
        label: `(window,)` condition of a trial, "" where there is none.
        stimulus: `(window,)` stimulus ids.
    """

    recordings: tuple[Stored, ...]
    recording: np.ndarray
    start: np.ndarray
    samples: np.ndarray
    label: np.ndarray
    stimulus: np.ndarray

    def __len__(self) -> int:
        return len(self.recording)

    def __repr__(self) -> str:
        words, count = np.unique(self.label.astype(str), return_counts=True)
        labels = ", ".join(f"{word or 'no label'} {n}" for word, n in zip(words[:SHOWN], count, strict=False))
        more = f", and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
        people = len({self.recordings[r].person for r in np.unique(self.recording)})
        return f"<{len(self)} windows of {people} people{': ' if len(words) else ''}{labels}{more}>"

    def take(self, index: np.ndarray | Sequence[int]) -> Windows:
        """The rows `index` (integers or a boolean mask)."""
        index = np.asarray(index)
        if index.size == 0:
            index = index.astype(np.int64)
        return replace(
            self, **{k: getattr(self, k)[index] for k in ("recording", "start", "samples", "label", "stimulus")}
        )

    @property
    def used(self) -> list[Stored]:
        """The recordings that have a window, in order."""
        return [self.recordings[r] for r in np.unique(self.recording)]

    def of(self, attribute: str) -> np.ndarray:
        """An attribute of each row's recording, for example "person", "session", "device" or "split"."""
        values = np.array([getattr(r, attribute) for r in self.recordings])
        return values[self.recording] if len(self.recordings) else values

    def intervals(self) -> dict[str, list[list[float]]]:
        """Seconds covered in each recording, merged and sorted: what a result or a model says that it saw."""
        seen: dict[str, list[list[float]]] = {}
        for r in np.unique(self.recording):
            stored, rows = self.recordings[r], self.recording == r
            spans = sorted(zip(self.start[rows], self.start[rows] + self.samples[rows], strict=True))
            merged: list[list[int]] = []
            for a, b in spans:
                if merged and a <= merged[-1][1]:
                    merged[-1][1] = max(merged[-1][1], int(b))
                else:
                    merged.append([int(a), int(b)])
            seen[stored.id] = [[a / rate(stored), b / rate(stored)] for a, b in merged]
        return seen

    @staticmethod
    def join(parts: Sequence[Windows]) -> Windows:
        """All rows of `parts`, in order."""
        recordings = {r.id: r for part in parts for r in part.recordings}
        number = {key: i for i, key in enumerate(recordings)}
        rows = [np.array([number[p.recordings[r].id] for r in p.recording], np.int64) for p in parts]
        return Windows(
            tuple(recordings.values()),
            np.concatenate([*rows, np.zeros(0, np.int64)]),
            *(
                np.concatenate([getattr(p, k) for p in parts]) if parts else np.zeros(0, np.int64)
                for k in ("start", "samples", "label", "stimulus")
            ),
        )


@dataclass(frozen=True, repr=False)
class Corpus:
    """Recordings of one or more datasets; subsets by subject, split or any other word of their headers."""

    recordings: tuple[Stored, ...]
    root: Path = field(default=Path())

    def __len__(self) -> int:
        return len(self.recordings)

    def __repr__(self) -> str:
        datasets = sorted({r.dataset for r in self.recordings})
        more = f", and {len(datasets) - SHOWN} more" if len(datasets) > SHOWN else ""
        return (
            f"<{len(self)} recordings of {len(self.people)} people in {self.root}: {', '.join(datasets[:SHOWN])}{more}>"
        )

    def where(self, **words: str | Sequence[str]) -> Corpus:
        """Recordings whose header says so: `where(split="train", dataset=["scp1", "sim_eeg"])`.

        Raises:
            ValueError: where none is left, with the values that exist; for a word that no header has, with the nearest.
        """
        kept = self.recordings
        for word, wanted in words.items():
            if word not in HEADER:
                close = difflib.get_close_matches(word, HEADER, 1, 0.5)
                hint = f"did you mean {close[0]!r}?" if close else f"they have {', '.join(HEADER)}"
                raise ValueError(f"recordings have no {word!r}; {hint}")
            values = {wanted} if isinstance(wanted, str) else set(wanted)
            have = {getattr(r, word) for r in kept}
            kept = tuple(r for r in kept if getattr(r, word) in values)
            if not kept:
                raise ValueError(f"no recording with {word} {sorted(values)} in {self.root}; there are {sorted(have)}")
        return replace(self, recordings=kept)

    def subject(self, subject: str) -> Corpus:
        """One person's recordings, by subject id or `dataset/subject`."""
        return self.where(**{"person" if "/" in subject else "subject": subject})

    @property
    def people(self) -> list[str]:
        """`dataset/subject` of everyone, sorted."""
        return sorted({r.person for r in self.recordings})

    def windows(self, length_s: float, stride_s: float | None = None, shortest_s: float | None = None) -> Windows:
        """Windows of `length_s` every `stride_s` seconds (without overlap unless told), none across a break.

        The last window that fits exactly is kept. A stretch shorter than the window gives none, unless it has
        `shortest_s`: then it is one window by itself, and the batch's mask covers what is missing.
        A window that lies inside an event (a block of rest or task) carries its label and stimulus; inside several,
        those of the last that has such.

        Raises:
            ValueError: for a length below one sample.
        """
        rows: list[tuple[int, int, int]] = []
        for i, stored in enumerate(self.recordings):
            n = round(length_s * rate(stored))
            step = max(1, round((stride_s or length_s) * rate(stored)))
            if n < 1:
                raise ValueError(
                    f"length_s {length_s} is less than a sample of {stored.id} ({rate(stored):g} per second)"
                )
            for a, b in _stretches(stored):
                if b - a >= n:
                    rows += [(i, s, n) for s in range(a, b - n + 1, step)]
                elif shortest_s is not None and b - a >= round(shortest_s * rate(stored)):
                    rows.append((i, a, b - a))
        table = np.array(rows, np.int64).reshape(-1, 3)
        label, stimulus = (np.full(len(table), "", dtype=object) for _ in range(2))
        for i, stored in enumerate(self.recordings):
            events, own = stored.events, np.flatnonzero(table[:, 0] == i)
            begin, end = table[own, 1] / rate(stored), (table[own, 1] + table[own, 2]) / rate(stored)
            for e in np.flatnonzero(events.duration >= length_s):
                inside = own[(begin >= events.onset[e]) & (end <= events.onset[e] + events.duration[e] + 1e-9)]
                label[inside] = events.label[e] or label[inside]  # an event without a label takes none away
                stimulus[inside] = events.stimulus[e] or stimulus[inside]
        return Windows(self.recordings, table[:, 0], table[:, 1], table[:, 2], label, stimulus)

    def trials(
        self, tmin: float, tmax: float, labels: Sequence[str] | None = None, align: str | None = None
    ) -> Windows:
        """Event-locked windows from `tmin` to `tmax` seconds around each onset; may start at any sample.

        Trials that would leave their stretch are left out, and those that lack the moment `align`.

        Args:
            align: column of the events with the moment to lock to, such as "move_onset_time"; their onset where None.

        Raises:
            ValueError: where no trial is left, with the labels that exist; where `tmax` is not after `tmin`; for events
                without the column, with those that exist.
        """
        if tmax <= tmin:
            raise ValueError(f"a trial from {tmin} to {tmax} s has no length; expected tmax after tmin")
        rows: list[tuple[int, int, int, str, str]] = []
        for i, stored in enumerate(self.recordings):
            n = round((tmax - tmin) * rate(stored))
            stretches, events = _stretches(stored), stored.events
            for onset, word, shown in zip(_moments(stored, align), events.label, events.stimulus, strict=True):
                if not np.isfinite(onset):
                    continue
                start = round((onset + tmin) * rate(stored))
                inside = any(a <= start and start + n <= b for a, b in stretches)
                if inside and (labels is None or word in labels):
                    rows.append((i, start, n, word, shown))
        if not rows:
            known = sorted({word for r in self.recordings for word in r.events.label})
            raise ValueError(
                f"no trial of {tmin} to {tmax} s with labels {labels or 'any'}; the events are {known or 'none'}"
            )
        table = np.array(rows, dtype=object)
        recording, start, samples = table[:, :3].astype(np.int64).T
        return Windows(self.recordings, recording, start, samples, table[:, 3], table[:, 4])


def open_shards(path: str | Path) -> Corpus:
    """Open a shard, a dataset's folder of shards, or a corpus folder of datasets.

    >>> corpus = open_shards("data/shards/meeg")  # doctest: +SKIP
    >>> corpus.where(split="train").windows(2.0)  # doctest: +SKIP

    Raises:
        FileNotFoundError: where there is no shard.
        ShardError: for a file that is not a whole shard of this schema version.
    """
    files = schema.shard_files(Path(path), "no shard under {}; make them with `brainfm ingest DATASET`")
    return Corpus(tuple(r for f in files for r in _headers(f)), Path(path))


def _headers(path: Path) -> list[Stored]:
    """Every recording of a shard, without its data."""
    header, split = header_of(path, schema.SCHEMA, schema.VERSION, MEND), read_split(path.parent)
    return [Stored(**facts(path, header, name, split)) for name in header["recordings"]]


def read_split(folder: Path) -> dict[str, str]:
    """Recording id → "train", "val" or "test", as ingest decided it for the dataset in `folder`.

    Raises:
        ShardError: for a damaged file.
    """
    path = folder / schema.SPLIT_FILE
    if not path.exists():
        return {}
    try:
        sides = json.loads(path.read_text(encoding="utf-8"))["recordings"]
        wrong = sorted(f"{key}: {side}" for key, side in sides.items() if side not in SIDES)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise schema.ShardError(f"{path} is no split of a dataset ({error}); remove it and {MEND}") from error
    if wrong:
        raise schema.ShardError(f"{path} says {wrong[0]!r}; expected {', '.join(SIDES)}: remove it and {MEND}")
    return sides


def _moments(stored: Stored, align: str | None) -> np.ndarray:
    """`(event,)` seconds that trials are locked to."""
    events = stored.events
    if align is None:
        return events.onset
    known = sorted(name for name, column in events.columns.items() if isinstance(column, np.ndarray))
    if align not in known:
        raise ValueError(f"events of {stored.id} have no moment {align!r}; they have {', '.join(known) or 'none'}")
    return np.asarray(events.columns[align], float)


def _stretches(stored: Stored) -> list[tuple[int, int]]:
    if stored.sfreq or len(stored.segments):
        return [(int(a), int(b)) for a, b in stored.segments]
    return [(0, int(stored.duration * rate(stored)))]
