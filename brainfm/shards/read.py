"""Read shards: a corpus of recordings, windows over them as an index, and memory-mapped access to any stretch.

Windows are never copied: they are a recording, a first sample and a length. A stretch of a signal is read straight
from the file's pages to where it is wanted. Files are mapped when they are first needed, and no page is pickled.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from brainfm.recording import ChannelNote, Channels, Events, Normaliser, Series
from brainfm.shards import schema

#: What mends a shard that cannot be used.
MEND = "run `brainfm ingest` again"

#: Sides that a split may put a recording on.
SIDES = ("train", "val", "test")

#: Types that a signal may have.
DTYPES = ("float32", "int16")

#: Seconds with fewer spikes than this are too common to say that two recordings are the same.
FEW_SPIKES = 8

#: Words of a recording's header that `Corpus.where` chooses by.
HEADER = ("dataset", "subject", "person", "session", "run", "device", "modality", "simulated", "split", "id")


@dataclass(frozen=True)
class Stored:
    """One recording in a shard: its header, and access to its data.

    Attributes:
        path: the shard. id, dataset, subject, session, run, device, modality, simulated: as in `Recording`.
        sfreq: samples per second; 0 for spikes alone. samples: number of samples. duration: seconds.
        checksum, recipe: of the data, and of everything that they follow from.
        split: "train", "val", "test", or "" where the dataset has no split file.
        reach_s: seconds to either side of a sample that it depends on.
        arrays: where its signal, spikes, covariates and ground truth lie in the file.
    """

    path: Path
    group: str
    id: str
    dataset: str
    subject: str
    session: str
    run: str
    device: str
    modality: str
    simulated: bool
    sfreq: float
    samples: int
    duration: float
    checksum: str
    recipe: str
    split: str
    reach_s: float
    arrays: dict[str, schema.Array]
    channels: Channels
    events: Events
    segments: np.ndarray
    aligned_widths: dict[str, int]

    @property
    def aligned_names(self) -> tuple[str, ...]:
        """Names of the covariates."""
        return tuple(self.aligned_widths)

    @property
    def person(self) -> str:
        """`dataset/subject`: the unit that a split by subject keeps together."""
        return f"{self.dataset}/{self.subject}"

    def signal(self, start: int, stop: int) -> np.ndarray:
        """Samples `start` to `stop` as `(channel, time)` float32, each channel in its unit."""
        out = np.empty((len(self.channels), max(0, stop - start)), np.float32)
        self.fill(out, start, stop)
        return out

    def between(self, start_s: float, stop_s: float) -> np.ndarray:
        """The signal from `start_s` to `stop_s` seconds as `(channel, time)`."""
        return self.signal(round(start_s * self.sfreq), round(stop_s * self.sfreq))

    def fill(self, out: np.ndarray, start: int, stop: int) -> None:
        """Write samples `start` to `stop` into `out` `(channel, time)` float32, with no copy in between.

        Raises:
            ValueError: for samples that there are not.
        """
        self.open()(out, start, stop)

    def open(self) -> Callable[[np.ndarray, int, int], None]:
        """`fill` with the file open: what a loop over many windows calls, to find the file's pages once."""
        frames = self.array("signal")
        scale = self.array("signal_scale") if "signal_scale" in self.arrays else None
        per_frame, samples = frames.shape[2], self.samples

        def fill(out: np.ndarray, start: int, stop: int) -> None:
            if not 0 <= start < stop <= samples:
                raise ValueError(f"{self.id}: samples {start} to {stop} asked of {samples}")
            at = start
            while at < stop:
                frame, offset = divmod(at, per_frame)
                count = (stop - at) // per_frame
                if offset or not count:  # part of a frame
                    end = min((frame + 1) * per_frame, stop)
                    block, target = frames[frame, :, offset : offset + end - at], out[:, at - start : end - start]
                    scales = None if scale is None else scale[frame, :, None]
                else:  # all whole frames at once
                    end = at + count * per_frame
                    block = frames[frame : frame + count].transpose(1, 0, 2)
                    target = out[:, at - start : end - start].reshape(len(out), count, per_frame)
                    scales = None if scale is None else scale[frame : frame + count].T[..., None]
                if scales is None:
                    target[...] = block
                else:
                    np.multiply(block, scales, out=target, casting="same_kind")
                at = end

        return fill

    def frame_hashes(self) -> np.ndarray:
        """`(frame,)` 16-byte hash of each frame (second, volume, or second of spikes); zero where it says nothing.

        The same frame of data has the same hash under any name.
        """
        if "frame_hash" in self.arrays:
            return self.array("frame_hash").view(f"V{schema.HASH_BYTES}").reshape(-1)
        out = np.zeros(int(self.duration), f"V{schema.HASH_BYTES}")
        for second in range(len(out)):
            time, neuron = self.spikes(second, second + 1)
            if len(time) >= FEW_SPIKES:
                data = np.round((time - second) * 1e4).astype(np.int64).tobytes() + neuron.astype(np.int64).tobytes()
                out[second] = np.void(hashlib.sha256(data).digest()[: schema.HASH_BYTES])
        return out

    def spikes(self, start: float, stop: float) -> tuple[np.ndarray, np.ndarray]:
        """Spikes in `[start, stop)` seconds: times `(spike,)` in seconds from the recording's start, and neurons."""
        time, neuron, index = (self.array(f"spikes/{k}") for k in ("time", "neuron", "frame_index"))
        low = index[min(max(int(start), 0), len(index) - 1)]
        high = index[min(int(np.ceil(stop)), len(index) - 1)] if stop < len(index) - 1 else len(time)
        a, b = low + np.searchsorted(time[low:high], (start, stop))
        return time[a:b], neuron[a:b]

    def array(self, name: str) -> np.ndarray:
        """An array of the recording by its name in the file, as a view of the file's pages.

        Raises:
            ValueError: where there is none of that name.
        """
        if name not in self.arrays:
            raise ValueError(f"{self.id} holds no {name.split('/')[0]}; it holds {', '.join(self.arrays) or 'nothing'}")
        return self.arrays[name].of(self.path)

    def aligned(self, name: str) -> Series:
        """A covariate by name, whole.

        Raises:
            KeyError: with the names that exist.
        """
        if name not in self.aligned_names:
            raise KeyError(
                f"{self.id} has no aligned series {name!r}; it has {', '.join(self.aligned_names) or 'none'}"
            )
        with naming(self.path, self.group):
            said = self._entry()["aligned"][name]
            return Series(self.array(f"aligned/{name}"), said["sfreq"], said["unit"], said["start"])

    def truth(self, name: str) -> np.ndarray:
        """Ground truth of simulated data by name.

        Raises:
            KeyError: with the names that exist.
        """
        known = sorted(k.removeprefix("truth/") for k in self.arrays if k.startswith("truth/"))
        if name not in known:
            raise KeyError(f"{self.id} has no ground truth {name!r}; it has {', '.join(known) or 'none'}")
        return self.array(f"truth/{name}")

    def provenance(self) -> dict:
        """Source files with their checksums, the processing steps, and who the participant is where that is known."""
        with naming(self.path, self.group):
            return self._entry()["provenance"]

    def card(self) -> dict[str, str]:
        """Licence and citation of the dataset."""
        header = _header(self.path, *self._kind)
        return {"licence": header["licence"], "citation": header["citation"]}

    def channel_log(self) -> list[ChannelNote]:
        """What became of each channel of the file."""
        with naming(self.path, self.group):
            return [ChannelNote(*line) for line in self._entry()["channel_log"]]

    def normaliser(self) -> Normaliser | None:
        """Centre and scale of each channel, where ingest fitted them."""
        with naming(self.path, self.group):
            said = self._entry()["normaliser"]
            if said is None:
                return None
            centre, scale = (schema.numbers(said[k], -1) for k in ("centre", "scale"))
            return Normaliser(centre, scale, said["statistic"], said["fitted_on"])

    def is_whole(self) -> bool:
        """Whether all data are those that were written, by their hashes."""
        with naming(self.path, self.group):
            return schema.is_whole(self.path, self._entry())

    def _entry(self) -> dict[str, Any]:
        return _header(self.path, *self._kind)["recordings"][self.group]

    @property
    def _kind(self) -> tuple[str, int, str]:
        return schema.SCHEMA, schema.VERSION, MEND


@dataclass(frozen=True)
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

    def take(self, index: np.ndarray | Sequence[int]) -> Windows:
        """The rows `index` (integers or a boolean mask)."""
        index = np.asarray(index)
        if index.size == 0:
            index = index.astype(np.int64)
        return replace(
            self, **{k: getattr(self, k)[index] for k in ("recording", "start", "samples", "label", "stimulus")}
        )

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


def rate(stored: Stored) -> float:
    """Samples per second of a window index: the signal's rate, or 1000 (milliseconds) for spikes alone."""
    return stored.sfreq or 1000.0


@dataclass(frozen=True)
class Corpus:
    """Recordings of one or more datasets; subsets by subject, split or any other word of their headers."""

    recordings: tuple[Stored, ...]
    root: Path = field(default=Path())

    def __len__(self) -> int:
        return len(self.recordings)

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
        A window that lies inside an event (a block of rest or task) carries its label and stimulus.

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
                label[inside], stimulus[inside] = events.label[e], events.stimulus[e]
        return Windows(self.recordings, table[:, 0], table[:, 1], table[:, 2], label, stimulus)

    def trials(self, tmin: float, tmax: float, labels: Sequence[str] | None = None) -> Windows:
        """Event-locked windows from `tmin` to `tmax` seconds around each onset; may start at any sample.

        Trials that would leave their stretch are left out.

        Raises:
            ValueError: where no trial is left, with the labels that exist; where `tmax` is not after `tmin`.
        """
        if tmax <= tmin:
            raise ValueError(f"a trial from {tmin} to {tmax} s has no length; expected tmax after tmin")
        rows: list[tuple[int, int, int, str, str]] = []
        for i, stored in enumerate(self.recordings):
            n = round((tmax - tmin) * rate(stored))
            stretches, events = _stretches(stored), stored.events
            for onset, word, shown in zip(events.onset, events.label, events.stimulus, strict=True):
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
    header, split = _header(path, schema.SCHEMA, schema.VERSION, MEND), read_split(path.parent)
    return [Stored(**facts(path, header, name, split)) for name in header["recordings"]]


def _header(path: Path, kind: str, version: int, mend: str) -> dict[str, Any]:
    now = path.stat()
    return _kept_header(path, kind, version, mend, now.st_ino, now.st_mtime_ns, now.st_size)


@lru_cache(64)
def _kept_header(path: Path, kind: str, version: int, mend: str, *identity: int) -> dict[str, Any]:
    return schema.read_header(path, kind, version, mend)


def facts(path: Path, header: dict[str, Any], name: str, split: dict[str, str]) -> dict[str, Any]:
    """The attributes of a `Stored` from an entry of a header.

    Raises:
        ShardError: where something is missing, or the header and the data do not fit each other.
    """
    with naming(path, name):
        return _facts(path, header, name, split)


@contextmanager
def naming(path: Path, name: str) -> Iterator[None]:
    """Turn what a header of another form than ours leads to into an error that names the file."""
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise schema.ShardError(
            f"{path}: recording {name} is damaged ({error}); remove the file and make it again"
        ) from error


def _facts(path: Path, header: dict[str, Any], name: str, split: dict[str, str]) -> dict[str, Any]:
    entry = header["recordings"][name]
    table, happened, count = entry["channels"], entry["events"], len(entry["channels"]["name"])
    channels = Channels(**{
        **table, "position": schema.numbers(table["position"], count, 3), "bad": np.array(table["bad"], bool),
        "orientation": schema.numbers(table["orientation"], count, 3),
    })  # fmt: skip
    onset, duration = (schema.numbers(happened[k], len(happened["label"])) for k in ("onset", "duration"))
    arrays = {key: schema.array_of(said) for key, said in entry["arrays"].items()}
    segments = np.array(entry["segments"], np.int64).reshape(-1, 2)
    if "signal" in arrays:
        _check_signal(entry, arrays["signal"], segments, count)
    index = arrays.get("spikes/frame_index")
    if not 0 <= entry["duration"] < math.inf or (index and index.shape != (math.ceil(entry["duration"]) + 1,)):
        raise ValueError(f"a duration of {entry['duration']} s, and spikes of other {index and index.shape[0] - 1} s")
    if index and arrays["spikes/time"].shape != arrays["spikes/neuron"].shape:
        raise ValueError("other spike times than neurons of spikes")
    return {
        "path": path, "group": name, "id": entry["id"], "session": entry["session"], "run": entry["run"],
        **{k: header[k] for k in ("dataset", "subject", "modality", "simulated")}, "device": entry["device"],
        **{k: entry[k] for k in ("sfreq", "samples", "duration", "reach_s", "checksum", "recipe")},
        "split": split.get(entry["id"], ""), "channels": channels, "segments": segments, "arrays": arrays,
        "events": Events(onset, duration, happened["label"], happened["stimulus"]),
        "aligned_widths": {k: said["features"] for k, said in entry["aligned"].items()},
    }  # fmt: skip


def _check_signal(entry: dict[str, Any], signal: schema.Array, segments: np.ndarray, channels: int) -> None:
    samples, sfreq = entry["samples"], entry["sfreq"]
    frames, rows, per_frame = signal.shape
    if rows != channels or not samples <= frames * per_frame < samples + per_frame:
        raise ValueError(f"{samples} samples of {channels} channels announced, frames are {signal.shape}")
    if not 0 < sfreq < math.inf or schema.frame_samples(sfreq) != per_frame or signal.dtype not in DTYPES:
        raise ValueError(f"a signal of {signal.dtype} at {sfreq} Hz in frames of {per_frame} samples")
    if segments.size and not 0 <= segments.min() <= segments.max() <= samples:
        raise ValueError(f"segments outside the {samples} samples")


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


def _stretches(stored: Stored) -> list[tuple[int, int]]:
    if stored.sfreq:
        return [(int(a), int(b)) for a, b in stored.segments]
    return [(0, int(stored.duration * rate(stored)))]
