"""Layout and version of a shard: the one page that reader and writer agree on.

One HDF5 file holds one subject of one dataset:

    /                          attrs: schema, schema_version
    /header                    JSON as bytes; attrs: sha256 of them
    /recordings/<session>_<run>
        signal                 (frame, channel, sample) float32, or int16 with a scale; in each channel's unit
        signal_scale           (frame, channel) what one step of an int16 signal stands for; absent for float32
        frame_hash             (frame, 16) first bytes of the sha256 of each frame as stored; zero where it is constant
        spikes/                time (spike,) seconds, neuron (spike,), frame_index (frame + 1,) first of each second
        aligned/<name>         (time, feature)
        truth/<name>           ground truth of simulated data

The header holds everything else, so that a file is opened with one read:

    dataset, subject, modality, simulated, licence, citation, recipe
    recordings: <session>_<run>:
        id, session, run, device, sfreq, samples, duration, reach_s, recipe, checksum, provenance
        tracked                whether names of neurons are the same in all sessions; false where it is missing
        segments               [[first, one past last sample]] of stretches without a break; milliseconds where there
                               is no signal, and there none stands for the whole
        channels               name, kind, unit, position, orientation, bad, area, reference, placed; held_out, or null
        channel_log            [[name in the file, name, fate, detail]]
        events                 onset, duration, label, stimulus; columns: <name>: numbers or words
        normaliser             centre, scale, statistic, fitted_on; null where none was fitted
        aligned                <name>: features, sfreq, start, unit
        arrays                 <name>: offset in the file, shape, dtype, sha256 (that of a signal is in frame_hash)

A frame is one second of a sampled signal, or one volume. Arrays are contiguous, so a window of whole frames is one byte
range that is read from the file's pages. The checksum of a recording covers its entry of the header, hashes of all its
arrays among it, but not where they lie. A number that is unknown (NaN) is null.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SCHEMA = "brainfm-shard"
VERSION = 2
SPLIT_FILE = "split.json"

#: Large arrays start on a page, so that a memory map of the signal is aligned.
ALIGNMENT = {"alignment_threshold": 1 << 20, "alignment_interval": 4096}

#: Bytes of a frame's hash that are kept.
HASH_BYTES = 16

#: Files that a process keeps mapped; each holds a file descriptor, of which there are often no more than 1024.
MAPS = 256

#: Types of number that an array may hold.
DTYPES = "biuf"

#: Words of an entry that its checksum leaves out: they say where data lie and whether to make them again.
UNCHECKED = ("checksum", "recipe")


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


@dataclass(frozen=True)
class Array:
    """Where an array lies in its file.

    Attributes:
        offset: its first byte; None for an array without elements.
        shape, dtype: as in numpy. sha256: of its bytes; "" for a signal, whose frames have hashes of their own.
    """

    offset: int | None
    shape: tuple[int, ...]
    dtype: str
    sha256: str

    @property
    def end(self) -> int:
        """One past its last byte."""
        return 0 if self.offset is None else self.offset + math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def of(self, path: Path) -> np.ndarray:
        """The array as a view of the file's pages: nothing is read before it is used.

        Raises:
            ShardError: where the file has become shorter since it was opened.
        """
        if self.offset is None:
            return np.zeros(self.shape, self.dtype)
        # a file that was replaced meanwhile is mapped anew, and one that was cut short is not touched
        now = os.stat(path)
        if self.end > now.st_size:
            raise ShardError(f"{path} has {now.st_size} bytes; its header announces {self.end}: make it again")
        pages = _map(str(path), now.st_ino, now.st_mtime_ns, now.st_size)
        return np.frombuffer(pages, self.dtype, math.prod(self.shape), self.offset).reshape(self.shape)


@lru_cache(MAPS)
def _map(path: str, *identity: int) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def put(group: h5py.Group, name: str, values: np.ndarray) -> dict[str, Any]:
    """Write an array and give back its line of the header, to which `finish` adds the offset."""
    values = np.asarray(values, order="C")
    group.create_dataset(name, data=values)
    return line(values.shape, values.dtype, values.tobytes())


def line(shape: tuple[int, ...], dtype: np.dtype, data: bytes | None) -> dict[str, Any]:
    """A line of the header for an array; `data` None for a signal."""
    digest = "" if data is None else hashlib.sha256(data).hexdigest()
    return {"shape": list(shape), "dtype": str(dtype), "sha256": digest}


def finish(file: h5py.File, kind: str, version: int, header: dict[str, Any]) -> None:
    """Write the header, after all arrays: where each lies, and the checksum of each recording."""
    for name, entry in header["recordings"].items():
        for array, said in entry["arrays"].items():
            said["offset"] = file[f"recordings/{name}/{array}"].id.get_offset()
        entry["checksum"] = checksum(entry)
    data = json.dumps(plain(header), sort_keys=True, ensure_ascii=False, allow_nan=False, default=str).encode()
    file.attrs.update(schema=np.bytes_(kind), schema_version=version)
    made = file.create_dataset("header", data=np.frombuffer(data, np.uint8))
    made.attrs["sha256"] = np.bytes_(hashlib.sha256(data).hexdigest())


def plain(value: Any) -> Any:
    """Values as JSON has them: arrays as lists, unknown numbers as null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def numbers(values: Any, *shape: int) -> np.ndarray:
    """Numbers of the header as float64, unknown ones as NaN."""
    return np.array(values, np.float64).reshape(shape)


def checksum(entry: dict[str, Any]) -> str:
    """sha256 over an entry of the header, with the hashes of its arrays but not their places."""
    arrays = {name: {k: v for k, v in said.items() if k != "offset"} for name, said in entry["arrays"].items()}
    known = {**{k: v for k, v in entry.items() if k not in UNCHECKED}, "arrays": arrays}
    data = json.dumps(plain(known), sort_keys=True, ensure_ascii=False, allow_nan=False, default=str)
    return hashlib.sha256(data.encode()).hexdigest()


def kind_of(path: Path) -> str:
    """What a file says that it is: the schema of shards, of code shards, or "" for neither."""
    try:
        with h5py.File(path, "r") as file:
            return word(file, "schema")
    except OSError:  # what opens it in earnest says what is wrong
        return ""


def word(item: h5py.HLObject, name: str) -> str:
    """An attribute that is a word of fixed length; "" for another: HDF5 can hang on damaged words of any length."""
    if name not in item.attrs or item.attrs.get_id(name).dtype.kind != "S":
        return ""
    return bytes(item.attrs[name]).decode("utf-8", "replace")


def read_header(path: Path, kind: str, version: int, mend: str) -> dict[str, Any]:
    """The header of a file of ours, checked to be whole and to describe this file.

    Raises:
        ShardError: for another kind of file or another version, and for a damaged one, with what mends it.
    """
    try:
        with h5py.File(path, "r") as file:
            number = file.attrs.get("schema_version")
            if word(file, "schema") != kind or number != version or "header" not in set(file):
                found = f"schema {word(file, 'schema')!r} version {number}"
                raise ShardError(f"{path} has {found}; this brainfm reads {kind!r} version {version}: {mend}")
            data = _bytes_of(path, own(file, "header"), mend)
            if hashlib.sha256(data).hexdigest() != word(file["header"], "sha256"):
                raise ShardError(f"{path}: the header is damaged; remove the file and {mend}")
            header = json.loads(data)
            _check_places(path, file, header, mend)
    except ShardError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ShardError(f"{path} is not a readable shard ({error}); remove it and {mend}") from error
    return header


def own(file: h5py.File, name: str) -> h5py.HLObject:
    """An object of the file by its path, which no link to another place or file stands in.

    Raises:
        ValueError: where one does. KeyError: where there is no such object.
    """
    group: h5py.HLObject = file
    for part in name.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is a link, which is not followed")
        group = group[part]
    return group


def _bytes_of(path: Path, data: h5py.Dataset, mend: str) -> bytes:
    if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual or data.nbytes > path.stat().st_size:
        raise ShardError(f"{path}: the header does not lie in the file; remove it and {mend}")
    return data[()].tobytes()


def _check_places(path: Path, file: h5py.File, header: dict[str, Any], mend: str) -> None:
    """The arrays lie where the header says: all inside the file, and the last of them where HDF5 finds it."""
    size = path.stat().st_size
    places = [
        (array_of(said).end, f"recordings/{name}/{array}", said["offset"])
        for name, entry in header["recordings"].items()
        for array, said in entry["arrays"].items()
        if said["offset"] is not None
    ]
    end, last, offset = max(places, default=(0, "", 0))
    if end > size:
        raise ShardError(f"{path} has {size} bytes; its header announces {end}: remove it and {mend}")
    data = own(file, last) if last else None
    if data is not None and (data.chunks is not None or data.id.get_offset() != offset):
        raise ShardError(f"{path} was rewritten by another tool, and its arrays were moved; remove it and {mend}")


def array_of(said: dict[str, Any]) -> Array:
    """A line of the header as an array's place.

    Raises:
        ValueError: for a place, a shape or a type that no array has.
    """
    offset, shape, dtype = said["offset"], tuple(said["shape"]), np.dtype(said["dtype"])
    possible = isinstance(said["dtype"], str) and all(isinstance(n, int) and n >= 0 for n in (*shape, offset or 0))
    if not possible or dtype.kind not in DTYPES or (offset is None and math.prod(shape)):
        raise ValueError(f"an array of {shape} {dtype} at byte {offset}")
    return Array(offset, shape, said["dtype"], said["sha256"])


def hashes(block: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """`(frame, 16)` hashes of the frames `(frame, channel, sample)` of a block; zero for frames that are constant."""
    out = np.zeros((len(block), HASH_BYTES), np.uint8)
    for i, frame in enumerate(block):
        flat = np.ascontiguousarray(frame).reshape(-1)
        if flat[0] == flat[-1] and (flat == flat[0]).all():
            continue
        digest = hashlib.sha256(flat.view(np.uint8).data)
        if scales is not None:
            digest.update(np.ascontiguousarray(scales[i]).tobytes())
        out[i] = np.frombuffer(digest.digest()[:HASH_BYTES], np.uint8)
    return out


def is_whole(path: Path, entry: dict[str, Any]) -> bool:
    """Whether a recording's data are those that were written: every frame and array against its hash."""
    arrays = {name: array_of(said) for name, said in entry["arrays"].items()}
    if checksum(entry) != entry["checksum"]:
        return False
    for name, array in arrays.items():
        values = array.of(path)
        if name == "signal":
            scale = arrays["signal_scale"].of(path) if "signal_scale" in arrays else None
            if not np.array_equal(hashes(values, scale), arrays["frame_hash"].of(path)):
                return False
        elif hashlib.sha256(np.ascontiguousarray(values).view(np.uint8).data).hexdigest() != array.sha256:
            return False
    return True
