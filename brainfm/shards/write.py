"""Write one subject's recordings as a shard: to a temporary name, synced, then renamed in one step.

A signal is read and written block by block, so that memory does not grow with the recording.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from brainfm.recording import Recording
from brainfm.shards import schema

#: Types that a signal may be stored in.
DTYPES = ("float32", "int16")
#: Bytes of signal that are asked for at once where it does not say itself.
BLOCK_BYTES = 1 << 23


def write_shard(
    path: Path, recordings: Iterable[Recording], card: dict, recipe: str = "", dtype: str = "float32"
) -> Path:
    """Write `recordings` of one subject to `path`. A half-written file never carries that name.

    Args:
        path: where the shard goes; its folder is made.
        recordings: of one dataset and one subject; read one at a time, and piece by piece where they are lazy.
        card: `licence` and `citation` of the dataset.
        recipe: a hash of everything that the content follows from; a shard with the same one need not be made again.
        dtype: "float32", or "int16" with a scale for each frame and channel: half the size, with an error of at most
            1/65534 of the largest value of that second and channel.

    Raises:
        ValueError: where the recordings mix subjects, repeat a session and run, or hold a value that is not finite.
        OSError: where the disk is full or cannot be written.
    """
    path = Path(path)
    if dtype not in DTYPES:
        raise ValueError(f"a shard cannot hold {dtype!r}; expected {' or '.join(DTYPES)}")
    header: dict[str, Any] = {}
    with part_of(path) as part, h5py.File(part, "w", libver="latest", **schema.ALIGNMENT) as file:
        for recording in recordings:
            header = header or _head(recording, card, recipe)
            if (recording.dataset, recording.subject) != (header["dataset"], header["subject"]):
                raise ValueError(
                    f"{path.name}: a shard holds one subject; got {recording.id} beside those of "
                    f"{header['dataset']}/{header['subject']}"
                )
            name = schema.group_name(recording.session, recording.run)
            if name in header["recordings"]:
                raise ValueError(f"{recording.id}: this session and run stand twice; give one of them another run id")
            header["recordings"][name] = _write_recording(file, name, recording, recipe, dtype)
        if not header:
            raise ValueError(f"{path.name}: no recording to write")
        schema.finish(file, schema.SCHEMA, schema.VERSION, header)
    return path


def join_shards(path: Path, sources: Iterable[tuple[Path, str]], recipe: str) -> Path:
    """Copy recordings of several shards of one subject into one, unchanged, in the given order.

    Args:
        path: where the shard goes. sources: shard and name of the recording's group. recipe: of the whole.
    """
    header: dict[str, Any] = {}
    with part_of(Path(path)) as part, h5py.File(part, "w", libver="latest", **schema.ALIGNMENT) as file:
        file.create_group("recordings")
        for source, group in sources:
            old = schema.read_header(source, schema.SCHEMA, schema.VERSION, "run ingest again")
            header = header or {**old, "recipe": recipe, "recordings": {}}
            header["recordings"][group] = old["recordings"][group]
            with h5py.File(source, "r") as given:
                given.copy(given[f"recordings/{group}"], file["recordings"], group)
        schema.finish(file, schema.SCHEMA, schema.VERSION, header)
    return path


@contextmanager
def part_of(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; the file is synced and renamed where all went well, and removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        with part.open("rb") as done:
            os.fsync(done.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _head(recording: Recording, card: dict, recipe: str) -> dict[str, Any]:
    return {
        "dataset": recording.dataset, "subject": recording.subject, "modality": recording.modality,
        "simulated": bool(recording.simulated), "licence": card.get("licence", "unknown"),
        "citation": card.get("citation", ""), "recipe": recipe, "recordings": {},
    }  # fmt: skip


def _write_recording(file: h5py.File, name: str, recording: Recording, recipe: str, dtype: str) -> dict[str, Any]:
    """Write the arrays of a recording and give back its entry of the header.

    Through `create_dataset` alone: assignment would stamp new groups with the time of day.
    """
    group = file.create_group(f"recordings/{name}")
    arrays: dict[str, dict[str, Any]] = {}
    if recording.signal is not None:
        arrays |= _write_signal(group, recording, dtype)
    if recording.spike_time is not None:
        arrays |= _write_spikes(group, recording)
    for key, series in recording.aligned.items():
        arrays[f"aligned/{key}"] = schema.put(group, f"aligned/{key}", np.asarray(series.values, np.float32))
    for key, truth in recording.truth.items():
        arrays[f"truth/{key}"] = schema.put(group, f"truth/{key}", np.asarray(truth))
    channels, events, fitted = recording.channels, recording.events, recording.normaliser
    return {
        "id": recording.id, "session": recording.session, "run": recording.run, "device": recording.device,
        "sfreq": float(recording.sfreq or 0), "duration": float(recording.duration),
        "reach_s": float(recording.reach_s), "tracked": bool(recording.tracked),
        "samples": 0 if recording.signal is None else int(recording.signal.shape[1]),
        "recipe": recipe, "provenance": recording.provenance, "arrays": arrays,
        "segments": [] if recording.segments is None else np.asarray(recording.segments, np.int64).reshape(-1, 2),
        "channels": vars(channels),
        "channel_log": [[line.found, line.name, line.fate, line.detail] for line in recording.channel_log],
        "events": {
            "onset": np.asarray(events.onset, float), "duration": np.asarray(events.duration, float),
            "label": events.label, "stimulus": events.stimulus, "columns": events.columns,
        },
        "normaliser": None if fitted is None else vars(fitted),
        "aligned": {
            key: {"features": int(x.values.shape[1]), "sfreq": float(x.sfreq), "start": float(x.start), "unit": x.unit}
            for key, x in recording.aligned.items()
        },
    }  # fmt: skip


def _write_signal(group: h5py.Group, recording: Recording, dtype: str) -> dict[str, dict[str, Any]]:
    """Lay the signal out as frames; the tail of the last frame is zero and lies outside every segment."""
    signal, sfreq = recording.signal, recording.sfreq
    if signal is None or sfreq is None:
        return {}
    per_frame = schema.frame_samples(sfreq)
    channels, samples = signal.shape
    frames = -(-samples // per_frame)
    data = group.create_dataset("signal", (frames, channels, per_frame), dtype)
    digests = np.zeros((frames, schema.HASH_BYTES), np.uint8)
    scales = np.zeros((frames, channels), np.float32) if dtype == "int16" else None
    wanted = getattr(signal, "block", BLOCK_BYTES // (4 * max(1, channels)))
    at_once = max(1, wanted // per_frame)
    for first in range(0, frames, at_once):
        block = _frames(recording, first, min(first + at_once, frames), per_frame)
        last = first + len(block)
        if scales is not None:
            block, scales[first:last] = quantise(block)
        data[first:last] = block
        digests[first:last] = schema.hashes(block, None if scales is None else scales[first:last])
    arrays = {"signal": schema.line(data.shape, data.dtype, None)}
    if scales is not None:
        arrays["signal_scale"] = schema.put(group, "signal_scale", scales)
    arrays["frame_hash"] = schema.put(group, "frame_hash", digests)
    return arrays


def _frames(recording: Recording, first: int, last: int, per_frame: int) -> np.ndarray:
    """Frames `first` to `last` as `(frame, channel, sample)` float32."""
    signal = recording.signal
    if signal is None:
        raise ValueError(f"{recording.id}: no signal")
    channels, samples = signal.shape
    start, stop = first * per_frame, min(last * per_frame, samples)
    values = signal[:, start:stop]
    if values.shape != (channels, stop - start):
        raise ValueError(
            f"{recording.id}: samples {start} to {stop} came as {values.shape}; expected {(channels, stop - start)}: "
            "the file is shorter than its header says"
        )
    if not np.isfinite(values.sum()):  # one value that is not finite makes the sum so
        broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
        names = ", ".join(recording.channels.name[i] for i in broken[:5])
        raise ValueError(
            f"{recording.id}: values that are not finite in {len(broken)} channels ({names}) between sample {start} "
            f"and {stop}; interpolate or drop them"
        )
    if stop - start == (last - first) * per_frame:
        return np.ascontiguousarray(values.reshape(channels, last - first, per_frame).swapaxes(0, 1), np.float32)
    block = np.zeros((last - first, channels, per_frame), np.float32)
    for i in range(last - first):
        piece = values[:, i * per_frame : (i + 1) * per_frame]
        block[i, :, : piece.shape[1]] = piece
    return block


def quantise(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames as int16 and the value of one step `(frame, channel)`, from the largest value of each frame's channel."""
    scale = np.abs(block).max(axis=2) / 32767
    steps = np.divide(block, scale[..., None], out=np.zeros_like(block), where=scale[..., None] > 0)
    return np.rint(steps).astype(np.int16), scale.astype(np.float32)


def _write_spikes(group: h5py.Group, recording: Recording) -> dict[str, dict[str, Any]]:
    time = np.asarray(recording.spike_time, np.float64)
    first = np.searchsorted(time, np.arange(int(np.ceil(recording.duration)) + 1))
    neuron = np.asarray(recording.spike_neuron, np.uint32)
    columns: dict[str, np.ndarray] = {"time": time, "neuron": neuron, "frame_index": first.astype(np.int64)}
    return {f"spikes/{key}": schema.put(group, f"spikes/{key}", values) for key, values in columns.items()}
