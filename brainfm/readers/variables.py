"""Named numbers in .mat (all versions), .npz, .npy, .csv and HDF5 files, without ever opening a pickle."""

from __future__ import annotations

import csv
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from brainfm.hdf import HostileFile, check_heaps, open_hdf5, plausible
from brainfm.readers import matlab

#: What numpy, scipy and h5py raise on files that are damaged.
BROKEN = (
    ValueError, TypeError, KeyError, IndexError, EOFError, AttributeError, NotImplementedError, OverflowError, OSError,
    RuntimeError, MemoryError, UnboundLocalError, SyntaxError, struct.error, zlib.error, zipfile.BadZipFile,
    tokenize.TokenError, csv.Error,
)  # fmt: skip


def variables(path: Path) -> dict[str, Any]:
    """The numbers of a file by name. Cells are arrays of objects, structs are dicts or arrays of dicts.

    Raises:
        ValueError: for a damaged file, another kind of file or one that holds pickles.
    """
    suffix, mend = path.suffix.lower(), "save it again, or fetch it again"
    try:
        if suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    with archive.open(member) as opened:
                        npy_header(opened, member.file_size)
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        if suffix == ".npy":
            return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False)}
        if suffix in (".csv", ".tsv"):
            return _table(path, "," if suffix == ".csv" else "\t")
        if h5py.is_hdf5(path):
            check_heaps(path)
            with open_hdf5(path) as file:
                tops = {k: _from_hdf5(path, file, file[k], {}) for k in file if not k.startswith("#")}
        elif suffix == ".mat":
            tops = matlab.load(path)
        else:
            raise ValueError(f"its name ends in {suffix!r}; expected .mat, .npz, .npy, .csv, .tsv or an HDF5 file")
    except HostileFile:
        raise
    except BROKEN as error:
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise ValueError(
                f"{path} holds Python objects (a pickle), which are never opened; save two plain arrays instead: "
                "np.savez(path, spike_times=np.concatenate(trains), "
                "neuron=np.repeat(np.arange(len(trains)), [len(t) for t in trains]))"
            ) from error
        raise ValueError(f"{path} cannot be read ({error}); {mend}") from error
    return dict(_flat(tops))


def npy_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool]:
    """Shape of an .npy stream of `size` bytes, and whether it holds real numbers.

    Raises:
        ValueError: where the header announces another number of bytes.
    """
    first = np.lib.format.read_magic(file)[0] == 1
    head = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, _, dtype = head(file)
    announced = math.prod(shape) * dtype.itemsize + file.tell()
    if announced != size and not dtype.hasobject:
        raise ValueError(f"it has {size} bytes; its header announces {announced} ({shape} of {dtype})")
    return shape, dtype.kind in "iuf"


def _table(path: Path, delimiter: str) -> dict[str, Any]:
    """The columns of numbers of a table whose first row names them."""
    header, *rows = csv.reader(path.read_text(encoding="utf-8-sig").splitlines(), delimiter=delimiter)
    if wrong := [i for i, row in enumerate(rows, 2) if len(row) != len(header)]:
        raise ValueError(f"line {wrong[0]} has {len(rows[wrong[0] - 2])} fields, the header {len(header)}")
    return {name.strip(): np.array([float(row[i]) for row in rows]) for i, name in enumerate(header)}


def _from_hdf5(path: Path, file: h5py.File, item: Any, done: dict[int, Any], depth: int = 0) -> Any:
    """The same of a MATLAB 7.3 file, whose cells are references and whose axes stand in reverse.

    `done` has the numbers that were read, by their address in the file, and None for cells and structs: one that is
    met twice holds itself, or is meant to keep readers busy for ever.
    """
    here = h5py.h5o.get_info(item.id).addr
    container = isinstance(item, h5py.Group) or item.dtype == h5py.ref_dtype
    if depth > 8 or (container and here in done):
        raise ValueError(
            f"{item.name} is a part of two others or of itself, or lies more than 8 cells and structs deep"
        )
    if container:
        done[here] = None
    if isinstance(item, h5py.Group):
        return {k: _from_hdf5(path, file, item[k], done, depth + 1) for k in item}
    if item.attrs.get("MATLAB_empty", 0):
        return np.zeros((0, 0))
    if not container:
        if here not in done:
            done[here] = whole(path, item).T
        return done[here]
    values = whole(path, item).T
    out = np.empty(values.shape, object)
    for index in np.ndindex(out.shape):
        out[index] = _from_hdf5(path, file, file[values[index]], done, depth + 1)
    return out


def whole(path: Path, data: Any) -> np.ndarray:
    """All values of an HDF5 dataset, unless its header announces far more than the file stores.

    Raises:
        ValueError: where it does.
    """
    if isinstance(data, h5py.Dataset):
        plausible(path, data)
    return np.asarray(data[()] if isinstance(data, h5py.Dataset) else data)


def _flat(tops: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Variables, with the fields of structs as variables of their own, "data.spikes"."""
    out: list[tuple[str, Any]] = []
    for name, value in tops.items():
        out += _flat(value, f"{before}{name}.") if isinstance(value, dict) else [(before + name, value)]
    return out
