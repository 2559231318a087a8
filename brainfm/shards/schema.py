"""Names, version and layout of a shard: the one page that reader and writer agree on.

One HDF5 file holds one subject of one dataset:

    /                          attrs: schema, schema_version, dataset, subject, modality, simulated, licence, citation,
                               recipe
    /recordings/<session>_<run>
        attrs                  id, session, run, device, sfreq, samples, duration, reach_s, recipe, checksum,
                               provenance (JSON)
        signal                 (frame, channel, sample) float32, or int16 with a scale; contiguous; in each channel's unit
        signal_scale           (frame, channel) what one step of an int16 signal stands for; absent for float32
        frame_hash             (frame, 16) first bytes of the sha256 of each frame as stored; zero where it is constant
        segments               (segment, 2) first and one-past-last sample of stretches without a break
        channels               (channel,) table: name, kind, unit, position, orientation, bad, area, reference, placed
        channel_log            (line,) table: found, name, fate, detail of every channel of the file
        events                 (event,) table: onset, duration, label, stimulus
        normaliser             (channel,) table: centre, scale; attrs statistic, fitted_on
        spikes/                time (spike,) seconds, neuron (spike,), frame_index (frame + 1,) first of each second
        aligned/<name>         (time, feature); attrs: sfreq, start, unit
        truth/<name>           ground truth of simulated data

A frame is one second of a sampled signal, or one volume. A window of whole frames is one contiguous byte range. The
checksum of a recording covers its attributes and all its data; that of the signal enters through the frames' hashes.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import h5py
import numpy as np

SCHEMA = "brainfm-shard"
VERSION = 2
SPLIT_FILE = "split.json"

#: Contiguous datasets start on a page, so that a memory map of the signal is aligned.
ALIGNMENT = {"alignment_threshold": 1 << 20, "alignment_interval": 4096}

#: Bytes of a frame's hash that are kept.
HASH_BYTES = 16

#: Attributes that hold for a recording's data and enter its checksum.
CHECKED = ("id", "session", "run", "device", "sfreq", "samples", "duration", "reach_s", "provenance")


class ShardError(ValueError):
    """A file that is not a whole shard of this schema; the message names the file and the mend."""


def frame_samples(sfreq: float) -> int:
    """Samples per frame: one second of a sampled signal, one volume where the rate is under 4 Hz."""
    return 1 if sfreq < 4 else math.ceil(sfreq)


def group_name(session: str, run: str) -> str:
    """Name of a recording's group inside its shard."""
    return f"{session}_{run}"


def shard_name(subject: str) -> str:
    """Name of a subject's shard."""
    return f"sub-{subject}.h5"


def shard_files(path: Path, absent: str) -> list[Path]:
    """The finished files at or under `path`, sorted; FileNotFoundError saying `absent` where there is none."""
    found = [path] if path.is_file() else sorted(path.glob("**/*.h5"))
    files = [f for f in found if not any(part.startswith(".") for part in f.relative_to(path).parts)]
    if not files:
        raise FileNotFoundError(absent.format(path))
    return files


def table(columns: dict[str, list[str] | np.ndarray]) -> np.ndarray:
    """Columns of equal length as a structured array, words as UTF-8 of one width: one dataset, one read."""
    arrays = {k: np.char.encode(np.array(v, str), "utf-8") if isinstance(v, list) else v for k, v in columns.items()}
    widened = {k: a.astype("S1") if a.dtype.kind == "S" and a.dtype.itemsize == 0 else a for k, a in arrays.items()}
    made = np.empty(len(next(iter(widened.values()))), [(k, a.dtype, a.shape[1:]) for k, a in widened.items()])
    for key, values in widened.items():
        made[key] = values
    return made


def words(column: np.ndarray) -> list[str]:
    """A column of words of a table as text."""
    return np.char.decode(column, "utf-8").tolist()


def hash_frame(data: bytes | memoryview) -> bytes:
    """The hash of a frame's bytes as stored."""
    return hashlib.sha256(data).digest()[:HASH_BYTES]


def hash_frames(group: h5py.Group) -> np.ndarray:
    """`(frame, 16)` hashes of a recording's frames, computed from the data; memory holds a few frames."""
    data, scale = group["signal"], group.get("signal_scale")
    out = np.zeros((len(data), HASH_BYTES), np.uint8)
    rows = max(1, (1 << 24) // max(1, data[0:1].nbytes)) if len(data) else 1
    for start in range(0, len(data), rows):
        block = data[start : start + rows]
        scales = None if scale is None else scale[start : start + rows]
        out[start : start + rows] = hashes(block, scales)
    return out


def hashes(block: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """`(frame, 16)` hashes of the frames `(frame, channel, sample)` of a block; zero for frames that are constant."""
    out = np.zeros((len(block), HASH_BYTES), np.uint8)
    for i, frame in enumerate(np.ascontiguousarray(block)):
        flat = frame.reshape(-1)
        if flat[0] == flat[-1] and (flat == flat[0]).all():
            continue
        extra = b"" if scales is None else scales[i].tobytes()
        digest = hashlib.sha256(flat.view(np.uint8).data)
        digest.update(extra)
        out[i] = np.frombuffer(digest.digest()[:HASH_BYTES], np.uint8)
    return out


def checksum(group: h5py.Group) -> str:
    """sha256 over a recording's attributes and data; the signal enters through the stored hashes of its frames."""
    digest = hashlib.sha256()
    for key in CHECKED:
        digest.update(f"{key}={group.attrs.get(key)}\0".encode())

    def add(name: str, item: h5py.HLObject) -> None:
        if not isinstance(item, h5py.Dataset) or name == "signal":
            return
        digest.update(f"{name} {item.shape} {item.dtype}\0".encode())
        if item.size:
            rows = max(1, (1 << 24) // max(1, item[0:1].nbytes))
            for start in range(0, len(item), rows):
                digest.update(np.ascontiguousarray(item[start : start + rows]).tobytes())

    group.visititems(add)
    return digest.hexdigest()


def is_whole(group: h5py.Group) -> bool:
    """Whether a recording's data are those that were written: every frame against its hash, the rest by checksum."""
    if "signal" in group and not np.array_equal(hash_frames(group), group["frame_hash"][()]):
        return False
    return checksum(group) == group.attrs.get("checksum")
