"""Parts of NWB files: clocks of series, electrical series that stay in the file, responses of ROIs, electrodes' places.

Coordinates of electrodes are micrometres by the standard, yet many files hold millimetres. A unit that the description
of column x names is believed. Else all of at most 0.25 is metres and more than 250 is micrometres, since nothing else
fits into a head; between the two, contacts of human electrodes (ECoG, sEEG) are in millimetres, and other electrodes
stay without a place. The axes are those of the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from brainfm.hdf import open_hdf5, plausible
from brainfm.modalities import calcium
from brainfm.readers.clocks import snapped
from brainfm.readers.request import Request
from brainfm.readers.variables import BROKEN, whole
from brainfm.recording import ChannelNote, Channels, Recording

#: Words in names and descriptions of electrode groups and series that tell the kind of electrode.
ECOG = re.compile(r"ecog|electrocortico|subdural|grid|strip", re.IGNORECASE)
SEEG = re.compile(r"s-?eeg|stereo|depth", re.IGNORECASE)
#: Metres in a unit of length that a description may name.
LENGTHS = (
    (r"\bmm\b|millimet", 1e-3),
    (r"\bum\b|[µμ]m|micron|micromet", 1e-6),
    (r"\bin m\b|\(m\)|\bmet(er|re)s?\b", 1.0),
)
#: Samples of a series without chunks that are cheap to read at a time.
BLOCK = 1 << 15
#: Volts in a unit that a request may say the stored numbers are in.
VOLTS = {"V": 1.0, "mV": 1e-3, "uV": 1e-6, "µV": 1e-6, "nV": 1e-9}


@dataclass(frozen=True)
class Clock:
    """From the session's clock to seconds of the recording: straight lines between knots, slope 1 outside them."""

    session: np.ndarray
    recording: np.ndarray

    def __call__(self, time: np.ndarray) -> np.ndarray:
        time = np.asarray(time, float)
        inside = np.interp(time, self.session, self.recording)
        return inside + np.minimum(time - self.session[0], 0) + np.maximum(time - self.session[-1], 0)


@dataclass
class Stored:
    """Samples `(channel, time)` in V that lie in an HDF5 file as `(time, channel)` and are read slice by slice.

    Attributes:
        path, name: the file and the dataset in it.
        gain: `(channel,)` V per stored number; offset: V.
        shape: `(channel, time)`. block: samples of a chunk of the file.
    """

    path: Path
    name: str
    gain: np.ndarray
    offset: float
    shape: tuple[int, int]
    block: int = BLOCK
    _data: h5py.Dataset | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: tuple[Any, slice]) -> np.ndarray:
        rows, time = key
        start, stop, step = time.indices(self.shape[1])
        try:
            if self._data is None:
                self._data = open_hdf5(self.path)[self.name]
            data = self._data[start:stop:step]
        except BROKEN as error:
            raise ValueError(
                f"{self.path}: samples {start} to {stop} cannot be read ({error}); fetch it again"
            ) from error
        kind = np.float32 if data.dtype.itemsize <= 2 or data.dtype == np.float32 else np.float64
        table = data.reshape(len(data), len(self)).T[rows].astype(kind)
        return (table * self.gain[rows, None] + self.offset).astype(kind, copy=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": None}


def where_is(series: Any) -> str:
    """Path of a series in its file."""
    return str(series.data.name).removesuffix("/data").lstrip("/")


def timing(path: Path, series: Any) -> tuple[float, list[tuple[int, int]], Clock]:
    """Samples per second of a series, its stretches without a break, and the session's clock along it.

    Raises:
        ValueError: for no samples, no rate, or timestamps that go back or have more breaks than one in ten samples.
    """
    samples = int(series.data.shape[0])
    where = f"{path}: {where_is(series)}"
    if samples < 2:
        raise ValueError(f"{where} has {samples} samples; choose another series")
    if series.rate is not None:
        rate, start = float(series.rate), float(series.starting_time or 0.0)
        if not (np.isfinite(rate) and rate > 0 and np.isfinite(start)):
            raise ValueError(f"{where} has a rate of {rate} Hz from {start} s; correct the file")
        return rate, [(0, samples)], Clock(np.array([start, start + samples / rate]), np.array([0.0, samples / rate]))
    stamps = series.timestamps
    if stamps is None or len(stamps) != samples:
        raise ValueError(f"{where} has {0 if stamps is None else len(stamps)} timestamps for {samples} samples")
    if isinstance(stamps, h5py.Dataset):
        plausible(path, stamps)
    step = float(np.median(np.diff(np.asarray(stamps[: min(samples, 100_000)], float))))
    cuts: list[int] = []
    for a in range(0, samples - 1, 1_000_000):
        apart = np.diff(np.asarray(stamps[a : a + 1_000_001], float))
        if not np.isfinite(apart).all() or np.any(apart <= 0):
            raise ValueError(f"{where}: timestamps go back, repeat or are not finite; correct the file")
        cuts += (a + 1 + np.flatnonzero(apart > 1.5 * step)).tolist()
        if len(cuts) > samples / 10:
            raise ValueError(f"{where}: timestamps are uneven ({len(cuts)} gaps in {samples}); resample it first")
    edges = [0, *cuts, samples]
    pieces = list(pairwise(edges))
    first = np.array([float(stamps[a]) for a, _ in pieces])
    last = np.array([float(stamps[b - 1]) for _, b in pieces])
    steps = samples - len(pieces)
    rate = snapped(steps / float((last - first).sum())) if steps else snapped(1 / step)
    session = np.stack([first, last + step * 0.999], axis=1).ravel()
    return rate, pieces, Clock(session, np.array(pieces).ravel() / rate)


def segments(path: Path, nwb: Any, pieces: list[tuple[int, int]], clock: Clock, rate: float) -> np.ndarray:
    """The pieces without the session's invalid times."""
    for start, stop in intervals(path, nwb.invalid_times):
        low, high = clock(np.array([start, stop])) * rate
        a, b = int(np.floor(low)), int(np.ceil(high))
        pieces = [p for x, y in pieces for p in ((x, min(y, a)), (max(x, b), y)) if p[1] > p[0]]
    if not pieces:
        raise ValueError(f"{path}: all of the signal lies in the session's invalid times; choose another series")
    return np.array(pieces, np.int64)


def intervals(path: Path, table: Any) -> np.ndarray:
    """Start and stop `(interval, 2)` s of a table of intervals that may be missing."""
    if table is None or not len(table):
        return np.zeros((0, 2))
    return np.stack([whole(path, table[k].data).astype(float) for k in ("start_time", "stop_time")], axis=1)


def ragged(path: Path, column: Any) -> list[np.ndarray]:
    """The rows of an indexed column of numbers."""
    ends = whole(path, column.data).astype(np.int64)
    values = whole(path, column.target.data)
    if np.any(np.diff(ends, prepend=0) < 0) or (len(ends) and ends[-1] != len(values)):
        raise ValueError(
            f"{path}: the index of {column.target.name} does not fit its {len(values)} values; write it again"
        )
    return np.split(values, ends[:-1]) if len(ends) else []


def words(path: Path, table: Any, column: str) -> list[str]:
    """A column as words, [] where the table has none such."""
    if table is None or column not in table.colnames:
        return []
    values = table[column].data
    values = values[:] if isinstance(values, h5py.Dataset) else np.asarray(values, object)
    return [_word(v) for v in values]


def _word(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def unrepeated(path: Path, names: list[str], what: str) -> None:
    """Check that neurons can be told apart.

    Raises:
        ValueError: naming what stands twice.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(
                f"{path}: id {name!r} stands {names.count(name)} times among {len(names)} {what}; number them anew in "
                "the file (its column id), or give a name for each with `names` of the request"
            )
        seen.add(name)


def device(nwb: Any) -> str:
    return next(iter(sorted(nwb.devices)), "nwb")


def places(path: Path, table: Any, human: bool) -> tuple[np.ndarray, str]:
    """Positions `(electrode, 3)` in m of the electrodes table, and how its numbers were taken."""
    if not {"x", "y", "z"} <= set(table.colnames):
        return np.full((len(table), 3), np.nan), "none"
    place = np.stack([whole(path, table[k].data).astype(float) for k in "xyz"], axis=1)
    place[~np.isfinite(place).all(axis=1) | ~place.any(axis=1)] = np.nan
    largest = np.nanmax(np.abs(place)) if np.isfinite(place).any() else 0.0
    said = str(table["x"].description)
    factor = next((f for pattern, f in LENGTHS if re.search(pattern, said, re.IGNORECASE)), None)
    how = f"as the description says: {said}"
    if factor is None:
        factor, how = (1.0, "metres") if largest <= 0.25 else (1e-6, "micrometres")
        if 0.25 < largest <= 250:
            factor, how = (1e-3, "millimetres") if human else (np.nan, "micrometres or millimetres, so not taken")
    return place * factor, how


def electrical(path: Path, nwb: Any, series: Any, request: Request, modality: str) -> tuple[Recording, Clock]:
    """An electrical series, left in the file."""
    rate, pieces, clock = timing(path, series)
    data = series.data
    if data.ndim > 2 or data.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {where_is(series)} is {data.shape} {data.dtype}; expected (time, channel) numbers")
    plausible(path, data)
    channels = 1 if data.ndim == 1 else data.shape[1]
    rows = whole(path, series.electrodes.data).astype(int)
    table = series.electrodes.table
    if len(rows) != channels or rows.min() < 0 or rows.max() >= len(table):
        raise ValueError(
            f"{path}: {where_is(series)} has {channels} channels and {len(rows)} electrodes of {len(table)}"
        )
    if request.unit is not None and request.unit not in VOLTS:
        raise ValueError(f"{path}: unit {request.unit!r} is no unit of voltage; expected one of {', '.join(VOLTS)}")
    gain, offset = np.full(channels, float(series.conversion)), float(series.offset)
    if series.channel_conversion is not None:
        gain = gain * whole(path, series.channel_conversion)
    if request.unit:
        gain, offset = np.full(channels, VOLTS[request.unit]), 0.0
    if not (np.isfinite(gain).all() and gain.all() and np.isfinite(offset)):
        raise ValueError(f"{path}: {where_is(series)} has conversions to volt that are zero or not finite")
    block = data.chunks[0] if data.chunks else BLOCK
    table_of, log, how = _contacts(path, series, rows, request, modality)
    recording = Recording(
        dataset=request.dataset, subject=request.subject, session=request.session, run=request.run,
        modality=modality, device=request.device or device(nwb), channels=table_of, sfreq=rate,
        signal=Stored(path, data.name, gain, offset, (channels, data.shape[0]), block),
        segments=segments(path, nwb, pieces, clock, rate), channel_log=log,
    )  # fmt: skip
    recording.note(
        "read electrical series", series=where_is(series), start_s=float(clock.session[0]), breaks=len(pieces) - 1,
        to_volt=request.unit or "as the file states", positions=how, filtering=str(series.filtering or ""),
    )  # fmt: skip
    return recording, clock


def _contacts(
    path: Path, series: Any, rows: np.ndarray, request: Request, modality: str
) -> tuple[Channels, list[ChannelNote], str]:
    """Channel table of the electrodes `rows`, their log, and how their coordinates were taken."""
    table = series.electrodes.table
    spoken = f"{series.name} {series.description} {series.comments}"
    groups = {
        g.name: f"{g.name} {g.description} {getattr(g.device, 'description', '')}" for g in table["group"].data[:]
    }
    group = words(path, table, "group_name")
    text = [f"{groups.get(group[r], group[r])} {spoken}" if group else spoken for r in rows]
    kind = ["ecog" if ECOG.search(t) and not SEEG.search(t) else "seeg" for t in text]
    human = any(ECOG.search(t) or SEEG.search(t) for t in text)
    place, how = places(path, table, human)
    columns = (words(path, table, c) for c in ("label", "channel_name", "electrode_name", "name"))
    every = next((c for c in columns if c), [str(i) for i in whole(path, table.id.data)])
    found = [every[r] for r in rows]
    names = list(request.names) or (
        found if len(set(found)) == len(found) else [f"{n}.{r}" for n, r in zip(found, rows)]
    )
    if len(names) != len(rows):
        raise ValueError(f"{path}: got {len(names)} names for {len(rows)} channels; give one for each")
    area, reference = words(path, table, "location"), words(path, table, "reference")
    channels = Channels.make(
        names, "eeg" if modality == "eeg" else kind, place[rows],
        area=["" if not area or area[r].lower() in ("unknown", "none", "n/a") else area[r] for r in rows],
        reference=request.reference or ([reference[r] for r in rows] if reference else ""),
    )  # fmt: skip
    bad = words(path, table, "bad")
    channels.bad = np.array([bool(bad) and bad[r] == "True" for r in rows])
    log = []
    for i, (was, name) in enumerate(zip(found, names)):
        fate = "bad" if channels.bad[i] else "renamed" if was != name else "kept"
        if fate != "bad" and channels.placed[i] == "unknown":
            fate = "unplaced"
        log.append(ChannelNote(was, name, fate, {"bad": "column bad", "unplaced": f"coordinates: {how}"}.get(fate, "")))
    return channels, log, how


def calcium_of(path: Path, nwb: Any, series: Any, request: Request) -> tuple[Recording, Clock]:
    """Responses of ROIs as dF/F: as they are in a container DfOverF, else computed by `calcium.dff`."""
    rate, pieces, clock = timing(path, series)
    values = whole(path, series.data)
    if values.ndim != 2 or values.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {where_is(series)} is {values.shape} {values.dtype}; expected (time, ROI) numbers")
    signal = values.T * float(series.conversion) + float(series.offset)
    rois = series.rois
    rows = whole(path, rois.data).astype(int)
    if len(rows) != len(signal) or rows.min() < 0 or rows.max() >= len(rois.table):
        raise ValueError(f"{path}: {where_is(series)} has {len(signal)} rows for {len(rows)} ROIs; correct the file")
    every = whole(path, rois.table.id.data)
    found = [str(every[r]) for r in rows]
    names = list(request.names) or found
    if len(names) != len(signal):
        raise ValueError(f"{path}: got {len(names)} names for {len(signal)} ROIs; give one for each")
    unrepeated(path, names, "ROIs")
    ready = type(series.parent).__name__ == "DfOverF" or re.search(r"df/?f|df_?over_?f|Δf", series.name, re.IGNORECASE)
    if not ready:
        signal = np.concatenate([calcium.dff(signal[:, a:b], rate) for a, b in pieces], axis=1)
    kept = np.flatnonzero(np.isfinite(signal).all(axis=1))
    if not len(kept):
        raise ValueError(f"{path}: none of {len(signal)} ROIs of {where_is(series)} is finite with a baseline above 0")
    area = str(getattr(rois.table.imaging_plane, "location", "") or "")
    recording = Recording(
        dataset=request.dataset, subject=request.subject, session=request.session, run=request.run,
        modality="calcium", device=request.device or device(nwb),
        channels=Channels.make(
            [names[i] for i in kept], "neuron", area=["" if area == "unknown" else area] * len(kept), unit=calcium.UNIT
        ),
        sfreq=rate, signal=signal[kept], segments=segments(path, nwb, pieces, clock, rate),
        channel_log=[
            ChannelNote(was, name, "kept" if was == name else "renamed")
            if np.isfinite(row).all() else ChannelNote(was, "", "dropped", "not finite, or baseline not above 0")
            for was, name, row in zip(found, names, signal)
        ],
    )  # fmt: skip
    recording.note(
        "read ROI responses", series=where_is(series), start_s=float(clock.session[0]), breaks=len(pieces) - 1
    )
    recording.note("dF/F", computed=not ready, **({} if ready else {"window_s": 60.0, "percentile": 8.0}))
    return recording, clock
