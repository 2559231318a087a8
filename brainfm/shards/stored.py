"""One recording in a shard: its header, and access to its data straight from the file's pages."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from brainfm.recording import KINDS, ChannelNote, Channels, Events, Normaliser, Series
from brainfm.shards import schema

#: What mends a shard that cannot be used.
MEND = "run `brainfm ingest` again"

#: Types that a signal may have.
DTYPES = ("float32", "int16")

#: Seconds with fewer spikes than this are too common to say that two recordings are the same.
FEW_SPIKES = 8


@dataclass(frozen=True)
class Stored:
    """One recording in a shard: its header, and access to its data.

    Attributes:
        path: the shard. id, dataset, subject, session, run, device, modality, simulated: as in `Recording`.
        sfreq: samples per second; 0 for spikes alone. samples: number of samples. duration: seconds.
        checksum, recipe: of the data, and of everything that they follow from.
        split: "train", "val", "test", or "" where the dataset has no split file.
        reach_s: seconds to either side of a sample that it depends on.
        tracked: whether a neuron's name means the same neuron in every session of the subject.
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
    tracked: bool
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

    @property
    def channel_ids(self) -> list[str]:
        """`dataset/subject/session/channel` of each channel: what a model knows a neuron by.

        The run stands for a session without a name. `dataset/subject/channel` where neurons are tracked, or there is
        neither.
        """
        session = "" if self.tracked else self.session or self.run
        whose = f"{self.person}/{session}" if session else self.person
        return [f"{whose}/{name}" for name in self.channels.name]

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
        header = header_of(self.path, *self._kind)
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
        return header_of(self.path, *self._kind)["recordings"][self.group]

    @property
    def _kind(self) -> tuple[str, int, str]:
        return schema.SCHEMA, schema.VERSION, MEND


def rate(stored: Stored) -> float:
    """Samples per second of a window index: the signal's rate, or 1000 (milliseconds) for spikes alone."""
    return stored.sfreq or 1000.0


def header_of(path: Path, kind: str, version: int, mend: str) -> dict[str, Any]:
    """The header of a file, read once in a process as long as the file stays as it is; errors as `read_header`."""
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
    columns = [table[k] for k in ("name", "kind", "unit", "area", "reference", "placed")]
    if any(len(column) != count for column in columns) or not set(table["kind"]) <= set(KINDS):
        raise ValueError(f"a table of {count} channels with a column of other length, or kinds that there are not")
    if not all(isinstance(x, str) for column in (*columns, happened["label"], happened["stimulus"]) for x in column):
        raise ValueError("a name, label or other word that is none")
    channels = Channels(**{
        **table, "position": schema.numbers(table["position"], count, 3), "bad": np.array(table["bad"], bool),
        "orientation": schema.numbers(table["orientation"], count, 3),
    })  # fmt: skip
    if (said := table.get("held_out")) is not None:
        channels.held_out = np.array(said, bool).reshape(count)
    onset, duration = (schema.numbers(happened[k], len(happened["label"])) for k in ("onset", "duration"))
    arrays = {key: schema.array_of(said) for key, said in entry["arrays"].items()}
    segments = np.array(entry["segments"], np.int64).reshape(-1, 2)
    if "signal" in arrays:
        _check_signal(entry, arrays, segments, count)
    spikes = {key for key in arrays if key.startswith("spikes/")}
    if len(spikes) not in (0, 3) or not (spikes or {"signal", "codes"} & set(arrays)):
        raise ValueError(f"it holds {', '.join(arrays) or 'nothing'}; expected a signal, codes or spikes")
    if not {"signal", "codes"} & set(arrays) and segments.size:
        ends = segments.min(), segments.max()
        if not 0 <= ends[0] <= ends[1] <= math.ceil(entry["duration"] * 1000):
            raise ValueError(f"segments from {ends[0]} to {ends[1]} ms of events that last {entry['duration']} s")
    if entry["sfreq"] and not {"signal", "codes"} & set(arrays):
        raise ValueError(f"a sampling rate of {entry['sfreq']} Hz and no signal")
    index = arrays.get("spikes/frame_index")
    if not 0 <= entry["duration"] < math.inf or (index and index.shape != (math.ceil(entry["duration"]) + 1,)):
        raise ValueError(f"a duration of {entry['duration']} s, and spikes of other {index and index.shape[0] - 1} s")
    if index and (index.dtype != "int64" or arrays["spikes/time"].shape != arrays["spikes/neuron"].shape):
        raise ValueError("other spike times than neurons of spikes, or an index of them that is none")
    return {
        "path": path, "group": name, "id": entry["id"], "session": entry["session"], "run": entry["run"],
        **{k: header[k] for k in ("dataset", "subject", "modality", "simulated")}, "device": entry["device"],
        **{k: entry[k] for k in ("sfreq", "samples", "duration", "reach_s", "checksum", "recipe")},
        "tracked": entry.get("tracked", False) is True,
        "split": split.get(entry["id"], ""), "channels": channels, "segments": segments, "arrays": arrays,
        "events": Events(onset, duration, happened["label"], happened["stimulus"], _columns(happened)),
        "aligned_widths": {k: said["features"] for k, said in entry["aligned"].items()},
    }  # fmt: skip


def _columns(happened: dict[str, Any]) -> dict[str, np.ndarray | list[str]]:
    """The columns of events, which a shard of before has not."""
    return {
        name: list(values) if values and all(isinstance(x, str) for x in values) else schema.numbers(values, -1)
        for name, values in happened.get("columns", {}).items()
    }


def _check_signal(entry: dict[str, Any], arrays: dict[str, schema.Array], segments: np.ndarray, channels: int) -> None:
    samples, sfreq, signal = entry["samples"], entry["sfreq"], arrays["signal"]
    frames, rows, per_frame = signal.shape
    beside = {"frame_hash": (frames, schema.HASH_BYTES)} | (
        {"signal_scale": (frames, rows)} if signal.dtype == "int16" else {}
    )
    if wrong := [name for name, shape in beside.items() if arrays[name].shape != shape]:
        raise ValueError(f"{wrong[0]} of shape {arrays[wrong[0]].shape} for frames {signal.shape}")
    if rows != channels or not samples <= frames * per_frame < samples + per_frame:
        raise ValueError(f"{samples} samples of {channels} channels announced, frames are {signal.shape}")
    if not 0 < sfreq < math.inf or schema.frame_samples(sfreq) != per_frame or signal.dtype not in DTYPES:
        raise ValueError(f"a signal of {signal.dtype} at {sfreq} Hz in frames of {per_frame} samples")
    if segments.size and not 0 <= segments.min() <= segments.max() <= samples:
        raise ValueError(f"segments outside the {samples} samples")
