"""Every other electrophysiology format, opened by MNE and read lazily."""

from __future__ import annotations

import configparser
import gzip
import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING
from xml.etree.ElementTree import ParseError

import h5py
import numpy as np

from brainfm.hdf import check_heaps, open_hdf5
from brainfm.modalities import units
from brainfm.readers import matlab
from brainfm.readers.electrophysiology import assemble, good_segments, span, table, triggers
from brainfm.readers.request import Request
from brainfm.recording import Recording

if TYPE_CHECKING:
    import mne

__all__ = ["READERS", "RawSignal", "good_segments", "open_raw", "read"]

#: Suffix → functions of `mne.io` that may read it, tried in this order.
READERS = {
    ".fif": ("read_raw_fif",), ".fif.gz": ("read_raw_fif",), ".set": ("read_raw_eeglab",), ".ds": ("read_raw_ctf",),
    ".sqd": ("read_raw_kit",), ".con": ("read_raw_kit",), ".raw": ("read_raw_egi",), ".mff": ("read_raw_egi",),
    ".gdf": ("read_raw_gdf",), ".cnt": ("read_raw_cnt", "read_raw_ant"), ".eeg": ("read_raw_nihon",),
    ".data": ("read_raw_nicolet",), ".lay": ("read_raw_persyst",), ".dat": ("read_raw_curry",),
    ".dap": ("read_raw_curry",), ".rs3": ("read_raw_curry",), ".cdt": ("read_raw_curry",),
}  # fmt: skip

#: What MNE and the libraries under it raise on files that are not what they seem.
MISREAD = (
    ValueError, OSError, RuntimeError, LookupError, AssertionError, TypeError, AttributeError, ArithmeticError,
    NameError, EOFError, MemoryError, StopIteration, ImportError, struct.error, zlib.error, configparser.Error,
    ParseError,
)  # fmt: skip


#: Bytes of a number of each type of FIF.
FIF_WIDTHS = {2: 2, 3: 4, 4: 4, 5: 8, 7: 2, 8: 4, 9: 8, 11: 8, 16: 2, 20: 8, 21: 16}


@dataclass(frozen=True)
class RawSignal:
    """`(channel, time)` in SI units out of a file that MNE opens when it is first sliced, once in every process."""

    path: Path
    reader: str
    options: tuple[tuple[str, object], ...]
    picks: tuple[int, ...]
    factor: tuple[float, ...]
    samples: int
    _raw: list = field(default_factory=list, compare=False, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.picks), self.samples

    @property
    def block(self) -> int:
        """Samples that are cheap to ask for at a time: about 8 MB."""
        return max(1, (1 << 20) // max(1, len(self.picks)))

    def __len__(self) -> int:
        return len(self.picks)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_raw": []}

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        rows, start, stop = span(key, self.shape)
        if not self._raw or self._raw[0] != os.getpid():
            self._raw[:] = [os.getpid(), _open(self.path, self.reader, self.options)]
        if stop == start or not len(rows):
            return np.zeros((len(rows), stop - start))
        said = f"{self.path}: samples {start} to {stop} of {self.samples} cannot be read"
        with _misread(said, "the file is damaged or was changed: get it again"):
            values = self._raw[1][np.array(self.picks)[rows], start:stop][0]
        factor = np.array(self.factor)[rows]
        return values if (factor == 1).all() else values * factor[:, None]


def read(path: Path, request: Request) -> Recording:
    """Read EEG, MEG or iEEG of any format of `READERS` (or a 4D/BTi folder), lazily where MNE can.

    MNE follows split FIF files and keeps embedded EEGLAB data in memory. Annotations and the codes of trigger channels
    become events; `BAD` annotations stay events and are cut out of `segments`.

    Raises:
        ValueError: for a file that MNE cannot read, that is cut short, or that names data outside its folder.
        FileNotFoundError: where there is nothing at `path`.
    """
    import mne

    path = Path(path)
    raw, opened, reader, options, said = open_raw(path, request.modality)
    sfreq = float(raw.info["sfreq"])
    channels, picks, log = table(path, raw.info, request)
    factor = tuple(_factor(path, reader, channels.kind, request.unit))
    signal = RawSignal(
        opened, reader, options, tuple(int(p) for p in picks), factor, int(raw.n_times), [os.getpid(), raw]
    )
    _ = signal[:, raw.n_times - 1 : raw.n_times]
    start = raw.first_samp / sfreq
    notes = raw.annotations
    marks = [
        (float(onset) - start, float(length), str(label))
        for onset, length, label in zip(notes.onset, notes.duration, notes.description, strict=True)
    ]
    stim = [raw.ch_names[i] for i in mne.pick_types(raw.info, meg=False, stim=True, exclude=[])]
    stim = [] if reader == "read_raw_egi" else next(([x] for x in ("STI101", "STI 014") if x in stim), stim)
    for name in stim:
        one = replace(signal, picks=(raw.ch_names.index(name),), factor=(1.0,))
        found = triggers(one, sfreq)
        marks += found if len(stim) == 1 else [(at, length, f"{name}/{code}") for at, length, code in found]
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    files += [Path(p) for p in raw.filenames if p is not None and Path(p) not in files]
    done = assemble(path, files, request, signal=signal, sfreq=sfreq, channels=channels, log=log, marks=marks)
    done.provenance["reader"] = f"mne {mne.__version__} {reader}"
    if said:
        done.note("open", said=said)
    return done


def open_raw(
    path: Path, modality: str | None
) -> tuple[mne.io.BaseRaw, Path, str, tuple[tuple[str, object], ...], list[str]]:
    """Open a file or folder with the first reader of its suffix that can.

    Returns:
        The raw, the path that was opened, the function of `mne.io` with its options, and what MNE warned of.

    Raises:
        ValueError: where none can, or the data would come from outside the folder of `path`.
        FileNotFoundError: where there is nothing at `path`.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; give the path of a recording")
    path, names, options = _readers(path, modality)
    if names == ("read_raw_gdf",):
        _check_gdf(path)
    if names == ("read_raw_fif",):
        check_fif(path)
    if names == ("read_raw_eeglab",):
        _check_eeglab(path)
    errors = []
    for name in names:
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                raw = _open(path, name, options, verbose="warning")
        except ValueError as error:
            errors.append(str(error))
            continue
        home = os.path.abspath(path.parent)
        for file in raw.filenames:
            if file is not None and os.path.commonpath([home, os.path.abspath(file)]) != home:
                raise ValueError(f"{path} takes its data from {file}; expected a file inside {home}: move it there")
            size = 4 * raw.n_times * len(raw.ch_names)
            if file is not None and Path(file).suffix.lower() == ".fdt" and Path(file).stat().st_size != size:
                raise ValueError(
                    f"{file} has {Path(file).stat().st_size} bytes; {path.name} announces {size}: get both again"
                )
        said = sorted({_line(w.message) for w in caught})
        broken = [x for x in said if re.search("invalid tag|truncat|corrupt", x, re.IGNORECASE)]
        if broken or raw.n_times < 1:
            raise ValueError(f"{path}: {broken[0] if broken else 'it holds no samples'}; it is damaged, get it again")
        return raw, path, name, options, said
    raise ValueError("; ".join(errors))


def _readers(path: Path, modality: str | None) -> tuple[Path, tuple[str, ...], tuple[tuple[str, object], ...]]:
    """What to open, by which functions of `mne.io`, with which options."""
    folder = path if path.is_dir() else path.parent
    if path.suffix.lower() not in READERS and (folder / "config").is_file():
        found = sorted(p for p in folder.iterdir() if "," in p.name and p.is_file()) if path.is_dir() else [path]
        if len(found) != 1:
            raise ValueError(f"{path} holds {len(found)} 4D/BTi data files ('c,rf...'); give the path of one of them")
        shape = folder / "hs_file"
        options = (
            ("config_fname", str(folder / "config")),
            ("head_shape_fname", str(shape) if shape.is_file() else None),
        )
        return found[0], ("read_raw_bti",), options
    suffix = ".fif.gz" if path.name.lower().endswith(".fif.gz") else path.suffix.lower()
    if suffix not in READERS:
        raise ValueError(f"{path}: suffix {suffix!r} is not one of {', '.join(sorted(READERS))} or a 4D/BTi folder")
    if suffix in (".eeg", ".dat") and path.with_suffix(".vhdr").is_file():
        raise ValueError(f"{path} holds the samples of a BrainVision file; give {path.with_suffix('.vhdr')}")
    kind = {None: "eeg", "eeg": "eeg", "ieeg": "seeg"}.get(modality, "eeg")
    return path, READERS[suffix], (("ch_type", kind),) if suffix == ".data" else ()


def _open(path: Path, reader: str, options: Iterable[tuple[str, object]], verbose: str = "error") -> mne.io.BaseRaw:
    import mne

    with _misread(f"{path} cannot be read by mne.io.{reader}", "expected a whole file of that format"):
        return getattr(mne.io, reader)(str(path), preload=False, verbose=verbose, **dict(options))


@contextmanager
def _misread(said: str, expected: str) -> Iterator[None]:
    """Turn what MNE and the libraries under it raise on bad files into ValueError; MNE's own is often `Exception`."""
    from scipy.io.matlab import MatReadError

    try:
        yield
    except BaseException as error:
        if type(error) is Exception or isinstance(error, (*MISREAD, MatReadError)):
            raise ValueError(f"{said} ({_line(error)}); {expected}") from error
        raise


def check_fif(path: Path) -> None:
    """See that the tags of a FIF file follow each other to the last one; MNE stops at a gap and takes what was before.

    Raises:
        ValueError: for a file that is cut short, or has something else in the place of a tag.
    """
    at, type_, size = 0, 0, 0
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        try:
            while at >= 0:
                file.seek(at)
                kind, type_, size, after = struct.unpack(">4i", file.read(16))
                end = at + 16 + size
                if kind <= 0 or size < 0 or (after > 0 and after <= at):
                    raise ValueError(f"no tag at byte {at}")
                _check_matrix(file, type_, size, end)
                at = after or end
            file.seek(end - 1)
            if not file.read(1):
                raise EOFError(f"the last tag ends at byte {end}")
            while path.suffix == ".gz" and file.read(1 << 20):
                pass  # the checksum stands at the end
        except (ValueError, OSError, EOFError, struct.error, zlib.error) as error:
            raise ValueError(f"{path} is no whole FIF file ({_line(error)}); it is damaged, get it again") from error


def _check_matrix(file: IO[bytes] | gzip.GzipFile, type_: int, size: int, end: int) -> None:
    """See that a dense matrix is not larger than its tag."""
    if type_ >> 16 != 0x4000 or size < 8:
        return
    file.seek(end - 4)
    count = struct.unpack(">i", file.read(4))[0]
    if not 1 <= count <= 3 or size < 4 * (count + 1):
        raise ValueError(f"a matrix of {count} dimensions")
    file.seek(end - 4 * (count + 1))
    shape = struct.unpack(f">{count}i", file.read(4 * count))
    if min(shape) < 0 or math.prod(shape) * FIF_WIDTHS.get(type_ & 0xFFFF, 1) > size:
        raise ValueError(f"a matrix of {shape} in {size} bytes")


def _check_eeglab(path: Path) -> None:
    """See that a MATLAB file is sound before scipy, which can crash on a damaged one, reads it under MNE."""
    if h5py.is_hdf5(path):
        check_heaps(path)
        open_hdf5(path).close()
        return
    try:
        matlab.checked(path.read_bytes())
    except (ValueError, zlib.error, struct.error, OverflowError) as error:
        raise ValueError(f"{path} is no whole EEGLAB file ({error}); it is damaged, get it again") from error


def _check_gdf(path: Path) -> None:
    """See that a GDF file holds what its header announces, its events too; MNE takes a table of events cut short."""
    width = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 8, 8: 8, 16: 4, 17: 8, 18: 16}
    got = path.stat().st_size
    try:
        with path.open("rb") as file:
            head = file.read(256)
            old = float(head[4:8]) < 1.9
            size, records, n = (struct.unpack_from(x, head, at)[0] for x, at in (("<q", 184), ("<q", 236), ("<I", 252)))
            size, n = (size, n) if old else ((size & 0xFFFF) * 256, n & 0xFFFF)
            if not 1 <= n <= 4096 or size < 256 * (n + 1):
                raise ValueError(f"{n} channels in {size} bytes of header")
            file.seek(256 + 216 * n)
            samples, kinds = np.frombuffer(file.read(8 * n), "<i4").reshape(2, n).tolist()
            record = sum(s * width.get(kind, (kind % 256 + 1) // 8) for s, kind in zip(samples, kinds, strict=True))
            place = size + records * record
            file.seek(place)
            mode, *start = file.read(8).ljust(8, b"\0")
            count = int.from_bytes(bytes(start[3:] if old else start[:3]), "little")
    except (ValueError, OSError, struct.error, OverflowError) as error:
        raise ValueError(f"{path} has no whole GDF header ({_line(error)}); it is damaged, get it again") from error
    announced = place + (8 + count * (12 if mode & 2 else 6) if got > place else 0)
    if min(samples) < 1 or records < 1 or got < announced:
        raise ValueError(
            f"{path} has {got} bytes; it announces {n} channels in {records} records and {announced} bytes: it is cut "
            "short or damaged, get it again"
        )


def _line(error: object) -> str:
    """The first line of a message, or the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _factor(path: Path, reader: str, kinds: list[str], unit: str | None) -> list[float]:
    """Factor of each channel where `unit`, and not what MNE assumes, is the unit of the numbers in the file."""
    if unit is None:
        return [1.0] * len(kinds)
    assumed = {"read_raw_fif": 1.0, "read_raw_eeglab": 1e-6}.get(reader)
    if assumed is None:
        raise ValueError(
            f"{path}: unit {unit!r} is for FIF and EEGLAB files, other formats say their unit: leave it out"
        )
    found: dict[str, float] = {}
    said = ""
    for kind in set(kinds):
        try:
            found[kind] = units.factor(unit, kind) / assumed
        except ValueError as error:
            said = str(error)
    if not found:
        raise ValueError(f"{path}: {said}")
    return [found.get(kind, 1.0) for kind in kinds]
