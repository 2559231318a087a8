"""Write one subject's recordings as a shard: to a temporary name, synced, then renamed in one step.

A signal is read and written block by block, so that memory does not grow with the recording.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from brainfm.hdf5 import open_hdf5
from brainfm.recording import Recording
from brainfm.shards import schema

#: Types that a signal may be stored in.
DTYPES = ("float32", "int16")
#: Bytes of signal that are asked for at once where it does not say itself.
BLOCK_BYTES = 1 << 23


def write_shard(path: Path, recordings: Iterable[Recording], card: dict, recipe: str = "", dtype: str = "float32") -> Path:
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
    with _part(path) as part, h5py.File(part, "w", libver="latest", **schema.ALIGNMENT) as file:
        first: Recording | None = None
        for recording in recordings:
            if first is None:
                first = recording
                _write_header(file, recording, card, recipe)
            if (recording.dataset, recording.subject) != (first.dataset, first.subject):
                raise ValueError(f"{path.name}: a shard holds one subject; got {first.id} and {recording.id}")
            _write_recording(file, recording, recipe, dtype)
        if first is None:
            raise ValueError(f"{path.name}: no recording to write")
    return path


def join_shards(path: Path, sources: Iterable[tuple[Path, str]], recipe: str) -> Path:
    """Copy recordings of several shards of one subject into one, unchanged, in the given order.

    Args:
        path: where the shard goes. sources: shard and name of the recording's group. recipe: of the whole.
    """
    sources = list(sources)
    with _part(Path(path)) as part, h5py.File(part, "w", libver="latest", **schema.ALIGNMENT) as file:
        file.create_group("recordings")
        for number, (source, group) in enumerate(sources):
            with open_hdf5(source) as old:
                if number == 0:
                    file.attrs.update({**dict(sorted(old.attrs.items())), "recipe": recipe})
                old.copy(old[f"recordings/{group}"], file["recordings"], group)
    return path


@contextmanager
def _part(path: Path) -> Iterator[Path]:
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


def _write_header(file: h5py.File, recording: Recording, card: dict, recipe: str) -> None:
    file.attrs.update(
        schema=schema.SCHEMA,
        schema_version=schema.VERSION,
        dataset=recording.dataset,
        subject=recording.subject,
        modality=recording.modality,
        simulated=recording.simulated,
        licence=card.get("licence", "unknown"),
        citation=card.get("citation", ""),
        recipe=recipe,
    )


def _write_recording(file: h5py.File, recording: Recording, recipe: str, dtype: str) -> None:
    """One group of the file, through `create_dataset` alone: assignment would stamp new groups with the time of day."""
    name = schema.group_name(recording.session, recording.run)
    if f"recordings/{name}" in file:
        raise ValueError(f"{recording.id}: this session and run stand twice; give one of them another run id")
    group = file.create_group(f"recordings/{name}")
    if recording.signal is not None:
        _write_signal(group, recording, dtype)
    if recording.spike_time is not None:
        _write_spikes(group, recording)
    channels, events, log = recording.channels, recording.events, recording.channel_log
    tables = {
        "channels": {
            k: getattr(channels, k)
            for k in ("name", "kind", "unit", "position", "orientation", "bad", "area", "reference", "placed")
        },
        "channel_log": {k: [getattr(line, k) for line in log] for k in ("found", "name", "fate", "detail")},
        "events": {
            "onset": np.asarray(events.onset, float), "duration": np.asarray(events.duration, float),
            "label": events.label, "stimulus": events.stimulus,
        },
    }  # fmt: skip
    for key, columns in tables.items():
        group.create_dataset(key, data=schema.table(columns))
    if recording.normaliser is not None:
        fitted = recording.normaliser
        made = group.create_dataset("normaliser", data=schema.table({"centre": fitted.centre, "scale": fitted.scale}))
        made.attrs.update(statistic=fitted.statistic, fitted_on=fitted.fitted_on)
    for key, series in recording.aligned.items():
        values = group.create_dataset(f"aligned/{key}", data=np.asarray(series.values, np.float32))
        values.attrs.update(sfreq=series.sfreq, start=series.start, unit=series.unit, axes="time feature")
    for key, truth in recording.truth.items():
        group.create_dataset(f"truth/{key}", data=truth)
    group.attrs.update(
        id=recording.id,
        session=recording.session,
        run=recording.run,
        device=recording.device,
        sfreq=recording.sfreq or 0.0,
        samples=0 if recording.signal is None else recording.signal.shape[1],
        duration=recording.duration,
        reach_s=recording.reach_s,
        recipe=recipe,
        provenance=json.dumps(recording.provenance, sort_keys=True, default=str),
    )
    group.attrs["checksum"] = schema.checksum(group)


def _write_signal(group: h5py.Group, recording: Recording, dtype: str) -> None:
    """Lay the signal out as frames; the tail of the last frame is zero and lies outside every segment."""
    signal, sfreq = recording.signal, recording.sfreq
    if signal is None or sfreq is None:
        return
    per_frame = schema.frame_samples(sfreq)
    channels, samples = signal.shape
    frames = -(-samples // per_frame)
    data = group.create_dataset("signal", (frames, channels, per_frame), dtype)
    data.attrs["axes"] = "frame channel sample"
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
    if scales is not None:
        group.create_dataset("signal_scale", data=scales)
    group.create_dataset("frame_hash", data=digests)
    group.create_dataset("segments", data=np.asarray(recording.segments, np.int64).reshape(-1, 2))


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
    if not np.isfinite(values).all():
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


def _write_spikes(group: h5py.Group, recording: Recording) -> None:
    time = np.asarray(recording.spike_time, np.float64)
    first = np.searchsorted(time, np.arange(int(np.ceil(recording.duration)) + 1))
    group.create_dataset("spikes/time", data=time)
    group.create_dataset("spikes/neuron", data=np.asarray(recording.spike_neuron, np.uint32))
    group.create_dataset("spikes/frame_index", data=first.astype(np.int64))
