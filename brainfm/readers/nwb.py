"""Neurodata Without Borders → `Recording`: sorted units, electrical series or calcium, with trials and behaviour.

Times in NWB are seconds on one clock of the session. The recording's zero is the first sample of its signal, or for
units the start of the first of their observation intervals. Where there are none it is the clock's own zero. If the
first spike lies further from that than from the last one, as of a clock that counts from 1970, it is the second of the
earliest of spikes, series and trials that overlap. A series beside them that shares no moment with the recording is
left out; where none of them does, they were taken on another clock and the file is refused.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from brainfm.checksums import sha256
from brainfm.hdf import HostileFile, check_heaps, open_hdf5
from brainfm.readers.clocks import pool, regular
from brainfm.readers.nwb_parts import (
    Clock,
    calcium_of,
    device,
    electrical,
    intervals,
    places,
    ragged,
    unrepeated,
    where_is,
    words,
)  # fmt: skip
from brainfm.readers.request import Request, require
from brainfm.readers.variables import BROKEN, whole
from brainfm.recording import ChannelNote, Channels, Events, Recording, Series

#: Columns of the trials table that are taken for the condition and for the stimulus, the first that is there.
LABELS = ("condition", "trial_type", "label")
STIMULI = ("stimulus_id", "stimulus", "stimulus_name", "image_id", "image_name")
#: Columns of units that say which are held out; columns of trials that are not kept beside their label and stimulus.
HELD_OUT = ("heldout", "held_out")
PLAIN = ("start_time", "stop_time", "tags", "timeseries")
#: Share of the spikes' or the signal's time below which a series is doubted, and what is then noted.
LITTLE, DOUBT = 0.1, "series with little in common"


def read(path: Path, request: Request, *, trial_label: str | None = None) -> Recording:
    """One recording of an NWB file.

    Args:
        path: the file; links out of it are refused.
        request: `modality` ("spikes", "ieeg", "eeg", "calcium") chooses among what is there; by default units, else
            electrical series, else calcium. `variable` names one of several series, by its name or its path in the
            file. `unit` wins over the conversion to volt that the file states.
        trial_label: column of the trials table that holds the condition; None for the first of `LABELS`, else all are
            "trial".

    Raises:
        ValueError: for a damaged file, one without what is asked for, several series to choose from, or times that
            cannot be right.
        HostileFile: for a link to another file.
    """
    pynwb = require("pynwb", "nwb")
    from hdmf.build.classgenerator import TypeDoesNotExistError
    from hdmf.build.errors import BuildError, ConstructError, ContainerConfigurationError

    path = Path(path)
    mend = "fetch it again, or look at it with pynwb.validate"
    try:
        check_heaps(path)
        file = open_hdf5(path)
    except (FileNotFoundError, HostileFile):
        raise
    except BROKEN as error:
        raise ValueError(f"{path} is no whole HDF5 file ({error}); {mend}") from error
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            nwb = pynwb.NWBHDF5IO(file=file, mode="r", load_namespaces=True).read()
            recording = _recording(path, nwb, request, trial_label)
        except (*BROKEN, BuildError, ConstructError, ContainerConfigurationError, TypeDoesNotExistError) as error:
            if isinstance(error, ValueError) and str(path) in str(error):
                raise
            why = str(error.args[-1] if error.args else "")[:300]  # the first argument of some is all of the file
            raise ValueError(f"{path} cannot be read as NWB ({type(error).__name__}: {why}); {mend}") from error
    for step in recording.provenance["steps"]:
        if "said" in step:
            warnings.warn(f"{path}: {step['said']}; compare the clocks", stacklevel=2)
    recording.provenance["files"] = {path.name: sha256(path)}
    return recording


def _recording(path: Path, nwb: Any, request: Request, trial_label: str | None) -> Recording:
    from pynwb.ecephys import ElectricalSeries, SpikeEventSeries
    from pynwb.ophys import RoiResponseSeries

    objects = list(nwb.objects.values())
    voltages = [o for o in objects if isinstance(o, ElectricalSeries) and not isinstance(o, SpikeEventSeries)]
    fluorescence = [o for o in objects if isinstance(o, RoiResponseSeries)]
    has_units = nwb.units is not None and "spike_times" in nwb.units.colnames
    there = {
        "spikes": has_units,
        "ieeg": bool(voltages),
        "eeg": bool(voltages),
        "calcium": bool(fluorescence),
    }
    wanted = request.modality or next((m for m, has in there.items() if has), "")
    if not there.get(wanted):
        holds = ", ".join(m for m, has in there.items() if has) or "no units, electrical series or fluorescence"
        raise ValueError(f"{path} holds {holds}; {wanted or 'one of them'} was asked for: give another modality")
    if wanted == "spikes":
        recording, clock = _units(path, nwb, request)
    elif wanted == "calcium":
        recording, clock = calcium_of(path, nwb, _chosen(path, fluorescence, request.variable, "DfOverF"), request)
    else:
        recording, clock = electrical(path, nwb, _chosen(path, voltages, request.variable), request, wanted)
    recording.aligned = _aligned(path, objects, recording, clock)
    spans = _common_times(path, recording, clock)
    if wanted == "spikes" and not recording.provenance["steps"][0]["observed"]:
        clock = _begun(path, nwb, recording, clock, spans)
    recording.events = _events(path, nwb, recording, clock, request, trial_label)
    participant = {k: str(v) for k in ("subject_id", "age", "sex", "species") if (v := getattr(nwb.subject, k, None))}
    if participant or request.participant:
        recording.provenance["participant"] = {**participant, **request.participant}
    return recording


def _common_times(path: Path, recording: Recording, clock: Clock) -> list[tuple[float, float]]:
    """Spans of the series that cover some of the recording, in its seconds; a note for those that hardly do.

    Series without a moment in common with the spikes or the signal are left out, with a note.

    Raises:
        ValueError: where that is all of them.
    """
    low, high = 0.0, recording.duration
    if recording.spike_time is not None and not recording.provenance["steps"][0]["observed"]:
        low, high = float(recording.spike_time[0]), float(recording.spike_time[-1])
    zero, spans, stray = float(clock.session[0] - clock.recording[0]), [], {}
    for name, series in recording.aligned.items():
        begin, end = series.start, series.start + len(series.values) / series.sfreq
        said = (
            f"series {name!r} runs from {begin + zero:.10g} to {end + zero:.10g} s and the {recording.modality} from "
            f"{low + zero:.10g} to {high + zero:.10g} s of the file's clock"
        )
        if begin > high or end <= low:
            stray[name] = said
        elif min(end, high) - max(begin, low) < LITTLE * (high - low):
            recording.note(DOUBT, series=name, said=said)
        else:
            spans.append((begin, end))
    if stray and len(stray) == len(recording.aligned):
        raise ValueError(
            f"{path}: {next(iter(stray.values()))}, so they have no moment in common: correct the timestamps (or "
            "starting_time) of one of them in the file, or remove the series from it"
        )
    for name, said in stray.items():
        del recording.aligned[name]
        recording.note("leave out series", series=name, reason="no moment in common", said=f"{said}, so it is left out")
    return spans


def _begun(path: Path, nwb: Any, recording: Recording, clock: Clock, spans: list[tuple[float, float]]) -> Clock:
    """The clock of spikes that nobody says were observed, which last as long as the series whose spans these are.

    Where zero had moved to the first spike, it goes back to the earliest of what overlaps, trials among it.
    """
    spikes, first = recording.spike_time, float(clock.session[0])
    low, origin = (0.0 if spikes is None else float(spikes[0])), first
    if first:
        trials = clock(intervals(path, nwb.trials))
        real = trials[np.isfinite(trials).all(axis=1) & (trials[:, 0] <= trials[:, 1])]
        for begin, end in sorted([*spans, *real.tolist()], key=lambda span: -span[1]):
            low = min(low, begin) if end > low else low
        origin = max(0.0, float(np.floor(first + low + 1e-6)))
    later = first - origin
    recording.spike_time = None if spikes is None else spikes + later
    for series in recording.aligned.values():
        series.start += later
    recording.duration = max([recording.duration, *(end for _, end in spans)]) + later
    recording.provenance["steps"][0]["origin_s"] = origin
    if origin:
        recording.note("move zero", origin_s=origin, reason="the file's clock starts elsewhere")
    return Clock(np.array([origin]), np.zeros(1))


def _chosen(path: Path, series: list[Any], variable: str | None, container: str = "") -> Any:
    """The one that `variable` names, the only one, or the only one in a container of that type."""
    named = [s for s in series if variable in (None, s.name, where_is(s))]
    if variable is None and len(named) > 1:
        named = [s for s in named if type(s.parent).__name__ == container] or named
    if len(named) != 1:
        known = ", ".join(sorted(where_is(s) for s in series))
        asked = f"no single one is named {variable!r}" if variable else f"{len(named)} to choose from"
        raise ValueError(f"{path}: {asked}; name one with variable: {known}")
    return named[0]


def _units(path: Path, nwb: Any, request: Request) -> tuple[Recording, Clock]:
    """Spikes of the sorted units, but for those that a column `quality` calls noise."""
    units = nwb.units
    trains = ragged(path, units["spike_times"])
    names = list(request.names) or [str(i) for i in whole(path, units.id.data)]
    if len(names) != len(trains):
        raise ValueError(f"{path}: got {len(names)} names for {len(trains)} units; give one for each")
    unrepeated(path, names, "units")
    quality = words(path, units, "quality") or [""] * len(names)
    kept = [i for i, word in enumerate(quality) if word.lower() != "noise"]
    if not kept or not any(len(trains[i]) for i in kept):
        raise ValueError(f"{path}: none of {len(names)} units has a spike and a quality other than noise")
    observed = [ragged(path, units["obs_intervals"])[i] for i in kept] if "obs_intervals" in units.colnames else []
    seen = np.concatenate(observed).reshape(-1, 2).astype(float) if observed else np.zeros((0, 2))
    if not np.isfinite(seen).all():
        raise ValueError(f"{path}: observation intervals of units are not finite; correct the file")
    first, last = (float(end(np.concatenate([trains[i] for i in kept]))) for end in (np.min, np.max))
    if len(seen):
        origin = max(0.0, min(first, float(seen[:, 0].min())))
    else:
        origin = float(np.floor(first)) if first > last - first else 0.0
    time, neuron, unsorted = pool(path, [trains[i] - origin for i in kept])
    area, place, how = _places_of_units(path, nwb)
    channels = Channels.make([names[i] for i in kept], "neuron", place[kept], area=[area[i] for i in kept])
    if column := next((c for c in HELD_OUT if c in units.colnames), None):
        channels.held_out = whole(path, units[column].data)[kept].astype(bool)
    recording = Recording(
        dataset=request.dataset, subject=request.subject, session=request.session, run=request.run,
        modality="spikes", device=request.device or device(nwb), channels=channels,
        spike_time=time, spike_neuron=neuron,
        duration=float(max(time[-1] + 1e-3, seen[:, 1].max() - origin if len(seen) else 0.0)),
        channel_log=[
            ChannelNote(n, n, "kept") if q.lower() != "noise" else ChannelNote(n, "", "dropped", "quality is noise")
            for n, q in zip(names, quality, strict=True)
        ],
    )  # fmt: skip
    recording.note("read units", origin_s=origin, observed=bool(len(seen)), positions=how)
    if unsorted:
        recording.note("sort spikes", neurons=unsorted)
    return recording, Clock(np.array([origin]), np.zeros(1))


def _places_of_units(path: Path, nwb: Any) -> tuple[list[str], np.ndarray, str]:
    """Area and position of each unit: its own column `location`, and the mean of its electrodes."""
    units, table, n = nwb.units, nwb.electrodes, len(nwb.units)
    area = words(path, units, "location") or words(path, units, "brain_area") or [""] * n
    place, how = np.full((n, 3), np.nan), "none"
    if "electrodes" in units.colnames and table is not None:
        column = units["electrodes"]
        indexed = hasattr(column, "target")
        rows = ragged(path, column) if indexed else [np.atleast_1d(r) for r in whole(path, column.data)]
        at, how = places(path, table, False)
        locations = words(path, table, "location")
        for i, row in enumerate(rows):
            if len(row):
                place[i] = at[row].mean(axis=0)
                area[i] = area[i] or (locations[row[0]] if locations else "")
    return ["" if a.lower() in ("unknown", "none", "n/a") else a for a in area], place, how


def _aligned(path: Path, objects: list[Any], recording: Recording, clock: Clock) -> dict[str, Series]:
    """Plain and spatial series of the acquisition and of processing modules; the unreadable ones are noted."""
    out: dict[str, Series] = {}
    for series in objects:
        data = getattr(series, "data", None)
        if type(series).__name__ not in ("TimeSeries", "SpatialSeries") or not isinstance(data, h5py.Dataset):
            continue
        where = where_is(series)
        if not where.startswith(("processing/", "acquisition/")):
            continue
        name = series.name if series.name not in out else where.replace("/", "_")
        try:
            if data.ndim not in (1, 2) or data.dtype.kind not in "iuf":
                raise ValueError(f"holds {data.shape} {data.dtype}")
            values = whole(path, data).astype(float) * float(series.conversion) + float(series.offset)
            values = values.reshape(len(values), -1)
            if series.rate and len(clock.session) <= 2:
                start = float(clock(np.array([series.starting_time or 0.0]))[0])
                out[name] = Series(values, float(series.rate), str(series.unit), start)
                how: dict[str, Any] = {}
            else:
                out[name], how = regular(clock(whole(path, series.get_timestamps())), values, str(series.unit))
        except ValueError as error:
            recording.note("leave out series", series=where, reason=str(error))
            continue
        recording.note("read series", series=where, **how)
    return out


def _events(path: Path, nwb: Any, recording: Recording, clock: Clock, request: Request, label: str | None) -> Events:
    """The trials that start inside the recording; for spikes also the invalid times, as "BAD_invalid"."""
    table = nwb.trials
    columns = list(table.colnames) if table is not None else []
    if label is not None and label not in columns:
        raise ValueError(f"{path}: no column {label!r} of trials; they have {', '.join(columns) or 'no table'}")
    label = label or next((c for c in LABELS if c in columns), None)
    stimulus = next((c for c in STIMULI if c in columns), None)
    times = intervals(path, table)
    condition = words(path, table, label) if label else ["trial"] * len(times)
    shown = words(path, table, stimulus) if stimulus else [""] * len(times)
    if len(condition) != len(times) or len(shown) != len(times):
        raise ValueError(f"{path}: column {label} or {stimulus} of trials is ragged; name another with trial_label")
    onset, stop = clock(times[:, 0]), clock(times[:, 1])
    inside = np.isfinite(onset) & np.isfinite(stop) & (stop >= onset) & (onset >= 0) & (onset < recording.duration)
    if len(times):
        recording.note("trials", label=label or "trial", stimulus=stimulus or "", left_out=int((~inside).sum()))
    rows = [(onset[i], stop[i] - onset[i], condition[i], shown[i], i) for i in np.flatnonzero(inside).tolist()]
    if request.label:
        rows.append((0.0, recording.duration, request.label, "", -1))
    if recording.signal is None:
        bad = clock(intervals(path, nwb.invalid_times))
        rows += [
            (max(a, 0.0), b - max(a, 0.0), "BAD_invalid", "", -1) for a, b in bad if b > 0 and a < recording.duration
        ]
    rows.sort(key=lambda row: row[0])
    return Events(
        np.array([r[0] for r in rows], float), np.array([r[1] for r in rows], float),
        [r[2] for r in rows], [r[3] for r in rows], _columns(path, table, clock, [r[4] for r in rows]),
    )  # fmt: skip


def _columns(path: Path, table: Any, clock: Clock, rows: list[int]) -> dict[str, np.ndarray | list[str]]:
    """Columns of the trials table with a number or a word for each, at `rows`; those of -1 are NaN or "".

    Columns whose name ends in "_time" hold moments on the session's clock.
    """
    out: dict[str, np.ndarray | list[str]] = {}
    for name in table.colnames if table is not None else ():
        column = table[name]
        values: Any = column.data
        if name in PLAIN or hasattr(column, "target") or hasattr(column, "table") or len(values) != len(table):
            continue
        kind = getattr(values, "dtype", np.asarray(values).dtype)
        if kind.kind in "iufb" and np.ndim(values) == 1:
            numbers = np.append(whole(path, values).astype(float), np.nan)  # the last one is that of row -1
            out[name] = (clock(numbers) if name.endswith("_time") else numbers)[rows]
        elif kind.kind in "SUO" and np.ndim(values) == 1:
            said = [*words(path, table, name), ""]
            out[name] = [said[i] for i in rows]
    return out
