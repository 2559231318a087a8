"""BrainVision: a header (.vhdr), markers (.vmrk) and samples (.eeg), read piece by piece without MNE."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brainfm.modalities.units import factor
from brainfm.readers.electrophysiology import MOST_MARKS, Mark, asked, assemble, distinct, fill, span, table
from brainfm.readers.request import Request
from brainfm.recording import Recording

if TYPE_CHECKING:
    import mne

#: Formats of a sample: numpy's, and the precision that keeps it.
FORMATS = {"INT_16": ("i2", "float32"), "INT_32": ("i4", "float64"), "IEEE_FLOAT_32": ("f4", "float32")}

#: No header or marker file is larger.
LARGEST = 1 << 26

#: Bytes of a file's name that file systems take.
LONGEST_NAME = 255

#: Bytes decoded at a time.
CHUNK = 1 << 19

#: Seconds that a marker may lie behind the last sample; further out, samples are missing.
LATEST_S = 1.0

#: Metres; radius of the sphere that idealised coordinates lie on, as MNE takes it.
HEAD_M = 0.095


@dataclass(frozen=True)
class BrainVisionSignal:
    """`(channel, time)` in volt out of a file of samples; only what is asked for is read.

    Attributes:
        path: the file. sample: numpy's format of a number in it.
        width, samples: channels and time points of the file.
        vectorized: True where each channel's samples stand together, False where each time point's do.
        columns, gain: of each channel, its place in the file and the volts of one step.
        dtype: of the result; `dataclasses.replace(signal, dtype="float64")` decodes in double precision.
    """

    path: Path
    sample: str
    width: int
    samples: int
    vectorized: bool
    columns: tuple[int, ...]
    gain: tuple[float, ...]
    dtype: str

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.columns), self.samples

    @property
    def block(self) -> int:
        """Samples that are cheap to ask for at a time."""
        return 8 * self._step

    @property
    def _step(self) -> int:
        return max(1, CHUNK // (self.width * np.dtype(self.sample).itemsize))

    def __len__(self) -> int:
        return len(self.columns)

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        rows, start, stop = span(key, self.shape)
        out = np.empty((len(rows), stop - start), self.dtype)
        gain = np.array(self.gain, self.dtype)[rows, None]
        columns = np.array(self.columns, int)[rows]
        every = np.array_equal(columns, np.arange(self.width))
        with self.path.open("rb", buffering=0) as file:
            if self.vectorized:
                for row, column in enumerate(columns):
                    out[row] = self._numbers(file.fileno(), column * self.samples + start, stop - start)
                out *= gain
                return out
            for low in range(start, stop, self._step):
                high = min(stop, low + self._step)
                values = self._numbers(file.fileno(), low * self.width, (high - low) * self.width)
                values = values.reshape(high - low, self.width)
                target = out[:, low - start : high - start]
                target[...] = (values if every else values[:, columns]).T
                target *= gain
        return out

    def _numbers(self, file: int, at: int, count: int) -> np.ndarray:
        data = np.empty(count, self.sample)
        fill(self.path, file, at * data.itemsize, data)
        return data


def read(path: Path, request: Request) -> Recording:
    """Read a BrainVision recording lazily from its header; markers become events named "type/description", as in MNE.

    Raises:
        ValueError: for a header that is damaged, names files outside its folder or announces other data than there are.
        FileNotFoundError: where the file of samples or markers that it names is missing.
    """
    import mne

    path = Path(path)
    head = sections(path, "header")
    common = _need(path, head, "common infos")
    width = int(_number(path, common, "numberofchannels", 1, 4096))
    sfreq = 1e6 / _number(path, common, "samplinginterval", 0.1, 1e9)
    sample, dtype, vectorized = _layout(path, common, _need(path, head, "binary infos"))
    data = _beside(path, common.get("datafile", ""), "DataFile")
    samples = _samples(path, data, common, width, np.dtype(sample).itemsize)
    names, references, resolutions, units = _channels(path, _need(path, head, "channel infos"), width)
    volts = [_volts(unit) for unit in units]
    info = mne.create_info(names, sfreq, ["misc" if v is None else "eeg" for v in volts], verbose="error")
    if "coordinates" in head:
        info.set_montage(_montage(path, _need(path, head, "coordinates"), names), on_missing="ignore", verbose="error")
    channels, picks, log = table(path, info, request)
    gain = [resolutions[p] * (asked(path, request.unit) or volts[p] or 1.0) for p in picks]
    if not request.reference:
        channels.reference = [references[p] or said for p, said in zip(picks, channels.reference, strict=True)]
    signal = BrainVisionSignal(
        data, sample, width, samples, vectorized, tuple(int(p) for p in picks), tuple(gain), dtype
    )
    files, marks = [path, data], []
    if common.get("markerfile"):
        files.append(_beside(path, common["markerfile"], "MarkerFile"))
        marks = markers(files[-1], sfreq)
        late = max((onset for onset, _, _ in marks), default=0.0) - samples / sfreq
        if late > LATEST_S:
            raise ValueError(
                f"{data} has {samples} samples, and a marker in {files[-1].name} lies {late:g} s behind the last: the "
                "samples are cut short or belong to another recording, get them again"
            )
    return assemble(path, files, request, signal=signal, sfreq=sfreq, channels=channels, log=log, marks=marks)


def sections(path: Path, kind: str) -> dict[str, list[tuple[str, str]]]:
    """Section → keys and values of a header or marker file, names in lower case; what follows [Comment] is left out.

    Raises:
        ValueError: where the first line does not say that it is a BrainVision file of that kind.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; expected a {kind} file of text under {LARGEST}")
    data = path.read_bytes()
    first = data.split(b"\n", 1)[0].decode("ascii", "ignore").strip()
    if not re.fullmatch(rf"brain ?vision .*{kind} file.*", first, re.IGNORECASE):
        raise ValueError(f"{path} begins with {first[:80]!r}; expected 'BrainVision Data Exchange {kind.title()} File'")
    found: dict[str, list[tuple[str, str]]] = {}
    section: list[tuple[str, str]] = []
    for line in re.split(r"\r?\n|\r", _decoded(data))[1:]:
        line = line.strip()
        if match := re.fullmatch(r"\[(.+)\]", line):
            if match[1].lower() == "comment":
                break
            section = found.setdefault(match[1].lower(), [])
        elif line and not line.startswith(";") and "=" in line:
            key, value = line.split("=", 1)
            section.append((key.strip().lower(), value.strip()))
    return found


def markers(path: Path, sfreq: float) -> list[Mark]:
    """The markers of a .vmrk file; the first is left out where it only says when the recording began.

    Raises:
        ValueError: for a marker without a position, or too many of them.
    """
    marks: list[Mark] = []
    listed = sections(path, "marker").get("marker infos", [])
    if len(listed) > MOST_MARKS:
        raise ValueError(f"{path} holds {len(listed)} markers; expected at most {MOST_MARKS}")
    for number, (key, value) in enumerate(listed):
        fields = value.split(",")
        if not re.fullmatch(r"mk\d+", key) or len(fields) < 3 or not re.fullmatch(r"\d{1,15}", fields[2].strip()):
            raise ValueError(
                f"{path}: marker {key}={value[:80]!r}; expected type, description, position, size, channel"
            )
        kind, text = (x.replace(r"\1", ",") for x in fields[:2])
        if number == 0 and kind == "New Segment":
            continue
        size = fields[3].strip() if len(fields) > 3 else ""
        length = int(size) if re.fullmatch(r"\d{1,15}", size) else 0
        marks.append(((int(fields[2]) - 1) / sfreq, length / sfreq, f"{kind}/{text}"))
    return marks


def _decoded(data: bytes) -> str:
    """Text in the code page that it names (UTF-8 where it names none), Latin-1 where that fails."""
    named = re.search(rb"^codepage=\s*([\w-]+)", data[:10_000], re.IGNORECASE | re.MULTILINE)
    page = named[1].decode().lower() if named else "utf-8"
    try:
        return data.decode({"ansi": "cp1252"}.get(page, "utf-8"))
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _need(path: Path, head: dict[str, list[tuple[str, str]]], name: str) -> dict[str, str]:
    """A section in which every key stands once."""
    if name not in head:
        raise ValueError(f"{path} has the sections {', '.join(head) or 'none'}; expected [{name.title()}] among them")
    section = dict(head[name])
    if len(section) < len(head[name]):
        twice = next(k for k, times in Counter(k for k, _ in head[name]).items() if times > 1)
        raise ValueError(f"{path}: {twice} stands more than once in [{name.title()}]; take the wrong line out")
    return section


def _volts(unit: str) -> float | None:
    """What one `unit` is in volt; None where it is no unit of a potential."""
    try:
        return factor(unit, "eeg")
    except ValueError:
        return None


def _number(path: Path, section: dict[str, str], key: str, least: float, most: float) -> float:
    word = section.get(key, "")
    if not re.fullmatch(r"\d{1,15}([.,]\d{0,15})?", word) or not least <= float(word.replace(",", ".")) <= most:
        raise ValueError(f"{path}: {key} is {word[:40]!r}; expected a number from {least:g} to {most:g}")
    return float(word.replace(",", "."))


def _layout(path: Path, common: dict[str, str], binary: dict[str, str]) -> tuple[str, str, bool]:
    """Numpy's format of a number in the file, that of the result, and whether channels stand one after another."""
    got = {
        "DataFormat": common.get("dataformat", "BINARY").upper(),
        "DataType": common.get("datatype", "TIMEDOMAIN").upper(),
        "DataOrientation": common.get("dataorientation", "MULTIPLEXED").upper(),
        "BinaryFormat": binary.get("binaryformat", "").upper(),
        "DataOffset": binary.get("dataoffset", "0"),
    }
    wanted = {
        "DataFormat": ("BINARY",), "DataType": ("TIMEDOMAIN",), "DataOrientation": ("MULTIPLEXED", "VECTORIZED"),
        "BinaryFormat": tuple(FORMATS), "DataOffset": ("0",),
    }  # fmt: skip
    for key, words in wanted.items():
        if got[key] not in words:
            raise ValueError(f"{path}: {key} is {got[key]!r}; expected {' or '.join(words)}: export it like that")
    sample, dtype = FORMATS[got["BinaryFormat"]]
    big = binary.get("usebigendianorder", "NO").upper() == "YES"
    return (">" if big else "<") + sample, dtype, got["DataOrientation"] == "VECTORIZED"


def _beside(path: Path, name: str, key: str) -> Path:
    """A file that the header names, which has to lie in or under the header's folder."""
    name = name.replace("$b", path.stem)
    normal = os.path.normpath(name)
    climbs = normal.startswith("..") or os.path.isabs(normal) or re.search(r"[\\\0]|^\w:", name)
    if not name or climbs or max(map(len, os.fsencode(name).split(b"/"))) > LONGEST_NAME:
        raise ValueError(
            f"{path}: {key} is {name[:80]!r}; expected the name of a file in the same folder: correct that line"
        )
    file = path.parent / normal
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}, the {key} of {path.name}, is not there; put it there, or correct the line {key}= after renaming"
        )
    return file


def _samples(path: Path, data: Path, common: dict[str, str], width: int, size: int) -> int:
    """Time points in the file of samples, which has to hold what the header announces."""
    got, point = data.stat().st_size, width * size
    said = int(_number(path, common, "datapoints", 1, 1e12)) if common.get("datapoints") else None
    if got < point or (got % point if said is None else got != said * point):
        expected = f"a multiple of {point}" if said is None else f"{said * point} ({said} points of {point} bytes)"
        raise ValueError(f"{data} has {got} bytes; its header announces {expected}: they do not belong together")
    return got // point


def _channels(path: Path, listed: dict[str, str], width: int) -> tuple[list[str], list[str], list[float], list[str]]:
    """Name, reference, resolution and unit of each channel; µV where the unit is not said."""
    names, references, resolutions, units = [], [], [], []
    more = [key for key in listed if (match := re.fullmatch(r"ch(\d{1,9})", key)) and int(match[1]) > width]
    if more:
        raise ValueError(f"{path}: NumberOfChannels is {width}, and {more[0].title()} is listed; correct the header")
    for i in range(width):
        said = listed.get(f"ch{i + 1}", "missing")
        fields = [x.strip() for x in said.split(",")] + ["", "", ""]
        number = re.fullmatch(r"(\d{1,15}(\.\d{0,15})?([eE][+-]?\d{1,2})?)?", fields[2])
        if said == "missing" or number is None or float(fields[2] or 1) == 0:
            raise ValueError(
                f"{path}: channel {i + 1} of {width} is {said[:60]!r}; expected Ch<n>=<name>,<reference>,<step>,<unit>"
            )
        names.append(fields[0].replace(r"\1", ",") or f"Ch{i + 1}")
        references.append(fields[1].replace(r"\1", ","))
        resolutions.append(float(fields[2] or 1.0))
        units.append(fields[3].replace("\xc2", "").replace("μ", "µ") or "µV")
    return distinct(names), references, resolutions, units


def _montage(path: Path, listed: dict[str, str], names: list[str]) -> mne.channels.DigMontage:
    """Positions in metres from radius (mm; 1 stands for an idealised sphere), theta and phi (degrees)."""
    import mne

    place = {}
    for key, value in listed.items():
        match, fields = re.fullmatch(r"ch(\d{1,4})", key), value.split(",")
        if (
            not match
            or not 1 <= int(match[1]) <= len(names)
            or not all(re.fullmatch(r"\s*[+-]?\d{1,9}(\.\d{0,12})?\s*", x) for x in fields)
            or len(fields) != 3
        ):
            raise ValueError(f"{path}: coordinates {key}={value!r}; expected Ch<n>=<radius>,<theta>,<phi>")
        radius, theta, phi = (float(x) for x in fields)
        if radius:
            polar, azimuth = np.deg2rad([theta, phi])
            direction = np.array([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)])
            place[names[int(match[1]) - 1]] = direction * (HEAD_M if radius == 1 else radius / 1e3)
    return mne.channels.make_dig_montage(place, coord_frame="head")
