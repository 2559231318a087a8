"""Tables of regions over time (.mat, .npy, .npz, .csv, .tsv, .h5) → `Recording`."""

from __future__ import annotations

import csv
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from brainfm.hdf import HostileFile, objects, open_hdf5, plausible
from brainfm.readers import matlab
from brainfm.readers.bold import DENSEST, Regions, only_fmri, recording, seconds_per_volume
from brainfm.readers.request import Request
from brainfm.readers.variables import npy_header
from brainfm.recording import ChannelNote, Recording

MEND = "copy or make it again"
ENDINGS = (".mat", ".npy", ".npz", ".csv", ".tsv", ".h5", ".hdf5")
#: What numpy, scipy and h5py raise on damaged files.
FAULTS = (
    ValueError, TypeError, KeyError, IndexError, OSError, EOFError, NotImplementedError, OverflowError, SyntaxError,
    RuntimeError, tokenize.TokenError, zlib.error, zipfile.BadZipFile, struct.error, csv.Error,
)  # fmt: skip
#: MATLAB's words for real numbers.
MATLAB = ("double", "single", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def read(path: Path, request: Request) -> Recording:
    """One table as a run; `request.sfreq_hz` is 1 / TR, and `request.variable` names the array where there are several.

    Regions are the side that has as many rows as `request.names`, or the columns of a text table with a header; without
    names the longer side is time, and the provenance says so. A region of nothing but NaN is marked bad.

    Raises:
        ValueError: for a damaged file, several arrays to choose from, equal sides, or other values that are not finite.
    """
    path = Path(path)
    only_fmri(path, request)
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path} is no table; expected {', '.join(ENDINGS)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; give the path of a table")
    if request.sfreq_hz is None:
        raise ValueError(f"{path}: a table does not say its repetition time; give sfreq_hz = 1 / TR")
    tr = seconds_per_volume(path, None, request)
    try:
        values, variable, header, dropped = _table(path, request.variable)
    except HostileFile:
        raise
    except FAULTS as error:
        raise ValueError(f"{path} cannot be read as a table ({error}); mend it or {MEND}") from error
    names = list(request.names) or header
    signal, because = _regions_first(path, values, len(names))
    names = names or [f"region {i + 1:03d}" for i in range(len(signal))]
    absent = np.isnan(signal).all(axis=1)
    signal[absent] = 0.0
    broken = np.argwhere(~np.isfinite(signal))
    if len(broken):
        region, volume = broken[0]
        raise ValueError(f"{path}: region {names[region]!r} is not finite at volume {volume}; mend the table")
    regions = Regions(np.arange(len(names)), names, [""] * len(names), np.full((len(names), 3), np.nan), dropped)
    made = recording(path, request, regions, signal, np.zeros(len(names), int), tr_s=tr, reader="brainfm roi_tables")
    made.channels.bad |= absent
    made.channel_log = [
        ChannelNote(note.found, note.name, "bad", "all values are NaN; set to 0") if note.name in gone else note
        for gone in [{n for n, a in zip(names, absent, strict=True) if a}]
        for note in made.channel_log
    ]
    made.note("read_table", variable=variable, found=list(values.shape), regions_are=because)
    return made


def _table(path: Path, wanted: str | None) -> tuple[np.ndarray, str, list[str], list[ChannelNote]]:
    """The array as it stands in the file, its variable, the names of its columns, and columns that were dropped."""
    if path.suffix in (".csv", ".tsv"):
        values, header, dropped = _text(path)
        return values, "", header, dropped
    if path.suffix == ".npy":
        with path.open("rb") as file:
            found = {"array": npy_header(file, path.stat().st_size)}
        _choose(path, found, None)
        return np.load(path, allow_pickle=False), "", [], []
    if path.suffix == ".npz":
        return *_npz(path, wanted), [], []
    with path.open("rb") as file:
        modern = b"\x89HDF" in file.read(520)  # MATLAB 7.3 puts 512 bytes before HDF5
    return *(_hdf5(path, wanted) if path.suffix != ".mat" or modern else _mat(path, wanted)), [], []


def _choose(path: Path, arrays: dict[str, tuple[tuple[int, ...], bool]], wanted: str | None) -> str:
    """The variable that is wanted, or the only table of real numbers among `name → (shape, numeric)`.

    Raises:
        ValueError: for none or several, or one that is larger than any compression of the file allows.
    """
    tables = {n: s for n, (s, numeric) in arrays.items() if numeric and len(s) == 2 and min(s) > 1}
    if wanted is None and len(tables) == 1:
        wanted = next(iter(tables))
    if wanted not in tables:
        said = ", ".join(f"{n} {s}" for n, s in tables.items()) or "none"
        what = "several" if wanted is None and tables else f"no {wanted!r}" if wanted else "no table"
        raise ValueError(
            f"{what} among its arrays (region, time) of real numbers: {said}; "
            f"{'name one as variable' if tables else 'found ' + (', '.join(arrays) or 'nothing')}"
        )
    if math.prod(tables[wanted]) > path.stat().st_size * DENSEST:
        raise ValueError(f"{wanted} is said to be {tables[wanted]}, more than {path.stat().st_size} bytes can hold")
    return wanted


def _mat(path: Path, wanted: str | None) -> tuple[np.ndarray, str]:
    """A variable of a MATLAB file up to version 7."""
    from scipy.io import loadmat, whosmat
    from scipy.io.matlab import MatReadError

    matlab.checked(path.read_bytes())  # scipy can crash on a damaged file
    try:
        name = _choose(path, {n: (s, kind in MATLAB) for n, s, kind in whosmat(path)}, wanted)
        return np.asarray(loadmat(path, variable_names=[name])[name]), name
    except MatReadError as error:
        raise ValueError(str(error)) from error


def _npz(path: Path, wanted: str | None) -> tuple[np.ndarray, str]:
    """An array of an .npz file, chosen by the headers of all."""
    arrays: dict[str, tuple[tuple[int, ...], bool]] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                arrays[member.filename.removesuffix(".npy")] = npy_header(file, member.file_size)
    name = _choose(path, arrays, wanted)
    with np.load(path, allow_pickle=False) as archive:
        return archive[name], name


def _hdf5(path: Path, wanted: str | None) -> tuple[np.ndarray, str]:
    """A dataset of an HDF5 file; those of MATLAB 7.3 lie transposed and are turned back."""
    import h5py

    with open_hdf5(path) as file:
        arrays = {
            name[1:]: (item.shape, item.dtype.kind in "iuf" and "MATLAB_char" not in item.attrs)
            for name, item in objects(file)
            if isinstance(item, h5py.Dataset) and item.shape is not None
        }
        name = _choose(path, arrays, wanted.strip("/") if wanted else None)
        if not file[name].id.get_storage_size():
            raise ValueError(f"{name} was never written")
        plausible(path, file[name])
        values = file[name][()]
        return (values.T if "MATLAB_class" in file[name].attrs else values), name


def _text(path: Path) -> tuple[np.ndarray, list[str], list[ChannelNote]]:
    """`(row, column)` of a text table, the names of its columns or [], and a column of row numbers that was dropped."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        delimiter = "\t" if path.suffix == ".tsv" else max(",;\t", key=first.count)
        cells = [c.strip() for c in next(csv.reader([first], delimiter=delimiter), [])]
        header = cells if _are_names(cells) else []
        if not header:
            file.seek(0)
        lines = [line for line in file if line.strip()]
    if not lines:
        raise ValueError("it has no rows")
    values = np.loadtxt(lines, delimiter=delimiter, ndmin=2, comments=None, converters=_number)
    if header and len(header) != values.shape[1]:
        raise ValueError(f"{len(header)} names stand above {values.shape[1]} columns")
    if header and not header[0]:  # pandas writes row numbers under an empty name
        note = ChannelNote("", "", "dropped", "first column without a name: row numbers")
        return values[:, 1:], header[1:], [note]
    _choose(path, {"table": (values.shape, True)}, None)
    return values, header, []


def _number(cell: str) -> float:
    """A number; gaps are NaN."""
    return math.nan if cell.strip() in ("", "n/a", "NA") else float(cell)


def _are_names(cells: list[str]) -> bool:
    """Whether the first line of a table is a header: words, or column numbers counted from 0 or 1."""
    if len(cells) > 2 and any(cells == [str(i + k) for i in range(len(cells))] for k in (0, 1)):
        return True
    try:
        [_number(c) for c in cells]
    except ValueError:
        return True
    return cells[:1] == [""]


def _regions_first(path: Path, values: np.ndarray, named: int) -> tuple[np.ndarray, str]:
    """`(region, time)` as float64 of its own, and how the sides were told apart."""
    rows, columns = values.shape
    sides = [i for i, n in enumerate((rows, columns)) if n == named]
    if named and len(sides) != 1:
        raise ValueError(f"{path} has shape {values.shape} for {named} names; expected one side of that length")
    if not named and rows == columns:
        raise ValueError(f"{path} has shape {values.shape}, so that neither side is longer; give names of the regions")
    region = sides[0] if named else int(columns < rows)
    because = f"{('rows', 'columns')[region]}, " + ("by the number of names" if named else "the shorter side")
    return np.array(values if region == 0 else values.T, np.float64, order="C"), because
