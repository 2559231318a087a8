"""Write one subject's recordings as a shard: to a temporary name, checked, synced, then renamed in one step."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from brainfm.recording import Recording
from brainfm.shards import schema

STRINGS = h5py.string_dtype()


def write_shard(path: Path, recordings: Iterable[Recording], card: dict, recipe: str = "") -> Path:
    """Write `recordings` of one subject to `path`. A half-written file never carries that name.

    Args:
        path: where the shard goes; its folder is made.
        recordings: of one dataset and one subject; read one at a time, so that memory holds one of them.
        card: `licence` and `citation` of the dataset.
        recipe: a hash of everything that the content follows from; a shard with the same one need not be made again.

    Raises:
        ValueError: where the recordings mix subjects, repeat a session and run, or hold a value that is not finite.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with h5py.File(part, "w", libver="latest", **schema.ALIGNMENT) as file:
            first: Recording | None = None
            for recording in recordings:
                if first is None:
                    first = recording
                    _write_header(file, recording, card, recipe)
                if (recording.dataset, recording.subject) != (first.dataset, first.subject):
                    raise ValueError(f"{path.name}: a shard holds one subject; got {first.id} and {recording.id}")
                _write_recording(file, recording)
            if first is None:
                raise ValueError(f"{path.name}: no recording to write")
            file.flush()
        with part.open("rb") as done:
            os.fsync(done.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


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


def _write_recording(file: h5py.File, recording: Recording) -> None:
    """One group of the file, through `create_dataset` alone: assignment would stamp new groups with the time of day."""
    name = schema.group_name(recording.session, recording.run)
    if f"recordings/{name}" in file:
        raise ValueError(f"{recording.id}: this session and run stand twice; give one of them another run id")
    group = file.create_group(f"recordings/{name}")
    group.attrs.update(
        id=recording.id,
        session=recording.session,
        run=recording.run,
        device=recording.device,
        sfreq=recording.sfreq or 0.0,
        samples=0 if recording.signal is None else recording.signal.shape[1],
        duration=recording.duration,
        provenance=json.dumps(recording.provenance, sort_keys=True, default=str),
    )
    if recording.signal is not None:
        _write_signal(group, recording)
    if recording.spike_time is not None:
        _write_spikes(group, recording)
    table = recording.channels
    for key in ("name", "kind", "area"):
        group.create_dataset(f"channels/{key}", data=getattr(table, key), dtype=STRINGS)
    for key in ("position", "orientation", "bad"):
        group.create_dataset(f"channels/{key}", data=getattr(table, key))
    for key in ("onset", "duration"):
        group.create_dataset(f"events/{key}", data=np.asarray(getattr(recording.events, key), float))
    for key in ("label", "stimulus"):
        group.create_dataset(f"events/{key}", data=getattr(recording.events, key), dtype=STRINGS)
    for key, series in recording.aligned.items():
        values = group.create_dataset(f"aligned/{key}", data=np.asarray(series.values, np.float32))
        values.attrs.update(sfreq=series.sfreq, start=series.start, unit=series.unit, axes="time feature")
    for key, truth in recording.truth.items():
        group.create_dataset(f"truth/{key}", data=truth)
    group.attrs["checksum"] = schema.checksum(group)


def _write_signal(group: h5py.Group, recording: Recording) -> None:
    """Lay the signal out as frames; the tail of the last frame is zero and lies outside every segment."""
    signal, sfreq = recording.signal, recording.sfreq
    if signal is None or sfreq is None:
        return
    broken = np.flatnonzero(~np.isfinite(signal).all(axis=1))
    if len(broken):
        names = ", ".join(recording.channels.name[i] for i in broken[:5])
        raise ValueError(
            f"{recording.id}: values that are not finite in {len(broken)} channels ({names}); interpolate or drop them"
        )
    per_frame = schema.frame_samples(sfreq)
    channels, samples = signal.shape
    frames = -(-samples // per_frame)
    data = group.create_dataset("signal", (frames, channels, per_frame), np.float32)
    data.attrs["axes"] = "frame channel sample"
    padded = np.zeros((channels, frames * per_frame), np.float32)
    padded[:, :samples] = signal
    data[...] = padded.reshape(channels, frames, per_frame).transpose(1, 0, 2)
    group["segments"] = np.asarray(recording.segments, np.int64)


def _write_spikes(group: h5py.Group, recording: Recording) -> None:
    time = np.asarray(recording.spike_time, np.float64)
    first = np.searchsorted(time, np.arange(int(np.ceil(recording.duration)) + 1))
    group.create_dataset("spikes/time", data=time)
    group.create_dataset("spikes/neuron", data=np.asarray(recording.spike_neuron, np.uint32))
    group.create_dataset("spikes/frame_index", data=first.astype(np.int64))
