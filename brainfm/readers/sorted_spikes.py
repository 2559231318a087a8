"""Sorted spikes in .mat, .npz, .npy, .csv and HDF5 files and in folders of Kilosort and phy → `Recording`.

Three layouts are told apart by what a file holds:

- a vector of spike times beside a vector of neuron numbers of the same length (`spike_times.npy` and
  `spike_clusters.npy` in a folder of phy);
- a cell array, or structs, with one vector of spike times for each neuron (.mat only: in .npz that is a pickle);
- a matrix of counts, `(bin, neuron)` or `(neuron, bin)`. Its spikes are spread evenly inside their bin, the k-th of n
  at (k + 1/2) / n of it, and the provenance says "binned": finer than a bin there is nothing to learn from them.

Times are seconds on the file's clock. Where more lies before the first spike than behind it, the clock is not the
recording's own, and zero is moved to the whole second before the first spike.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from brainfm.checksums import sha256
from brainfm.readers.clocks import pool, regular, snapped
from brainfm.readers.request import Request
from brainfm.readers.variables import variables
from brainfm.recording import ChannelNote, Channels, Recording, Series

#: Names of variables, in lower case without "_", that hold spike times, and those that hold neuron numbers.
TIMES = {"spiketimes", "spiketime", "spikes", "times", "time", "timestamps", "ts"}
NEURONS = {
    "neuron", "neurons", "neuronid", "spikeneuron", "spikeneurons", "unit", "units", "unitid", "unitids", "spikeunits",
    "cluster", "clusters", "clusterid", "spikeclusters", "spiketemplates",
}  # fmt: skip
#: Seconds in a unit of time that spike times may be given in.
CLOCKS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
#: More spikes of one neuron in a second than this are no counts.
FASTEST_HZ = 5000.0


@dataclass
class Found:
    """What a file says: names and spike times of its neurons and what belongs to them.

    Attributes:
        names, trains: of the neurons; seconds on the file's clock.
        origin: second of the file's clock at which the recording starts; None where the file does not say.
        duration: seconds, where the file says so. steps: notes for the provenance.
    """

    names: list[str]
    trains: list[np.ndarray]
    origin: float | None = None
    duration: float = 0.0
    aligned: dict[str, Series] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    log: list[ChannelNote] = field(default_factory=list)


def read(path: Path, request: Request, *, groups: tuple[str, ...] = ("good",)) -> Recording:
    """The spikes of a .mat, .npz, .npy, .csv or .h5 file, or of a folder of Kilosort or phy.

    Args:
        path: the file or folder. One `.videoPositionTracking` file of Trodes beside it becomes the aligned "position".
        request: `variable` names the spikes where there are several candidates; `sfreq_hz` is the rate of sample
            numbers or of bins; `unit` is "ms" or "us" where times are not in seconds; `names` name the neurons.
        groups: quality groups of phy's table that are kept, where the folder has one.

    Raises:
        FileNotFoundError: where `path`, or a part of the folder, is missing.
        ValueError: for a damaged file, one whose variables fit none or several of the layouts, sample numbers or bins
            without a rate, and times that are not finite or negative.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a .mat, .npz or .npy file, or a folder of phy")
    if path.is_dir() or path.name == "spike_times.npy":
        found, files = _phy(path if path.is_dir() else path.parent, request, groups)
    else:
        found, files = _file(path, variables(path), request), [path]
    names, trains, log = _kept(path, found, request)
    origin = found.origin
    if origin is None:
        every = np.concatenate(trains)
        first, last = every.min(), every.max()
        origin = float(np.floor(first)) if first > last - first else 0.0
    time, neuron, unsorted = pool(path, [t - origin for t in trains])
    recording = Recording(
        dataset=request.dataset, subject=request.subject, session=request.session, run=request.run,
        modality="spikes", device=request.device or "sorted spikes", channels=Channels.make(names, "neuron"),
        spike_time=time, spike_neuron=neuron,
        duration=found.duration or float(np.ceil(time[-1] * 1000 + 1e-6) / 1000),
        aligned=found.aligned, channel_log=log,
    )  # fmt: skip
    for step in found.steps:
        recording.note(**step)
    if origin:
        recording.note("move zero", origin_s=origin, reason="the file's clock starts elsewhere")
    if unsorted:
        recording.note("sort spikes", neurons=unsorted)
    tracks = sorted((path if path.is_dir() else path.parent).glob("*.videoPositionTracking"))
    if len(tracks) == 1 and "position" not in recording.aligned:
        recording.aligned["position"], how = _trodes_track(tracks[0], origin)
        recording.note("position", file=tracks[0].name, **how)
        files = [*files, tracks[0]]
    recording.provenance["files"] = {p.name: sha256(p) for p in files}
    if request.participant:
        recording.provenance["participant"] = dict(request.participant)
    return recording


def _bare(name: str) -> str:
    return name.rsplit(".", 1)[-1].lower().replace("_", "")


def _vector(value: Any) -> np.ndarray | None:
    """Numbers along one axis, or None."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and max(value.shape, default=0) == value.size:
        return value.ravel()
    return None if not isinstance(value, np.ndarray) or value.size or value.dtype == object else np.zeros(0)


def _trains(value: Any, name: str = "", in_struct: bool = False) -> list[tuple[str, np.ndarray]] | None:
    """Names and spike times of a cell array of neurons, or None where it is none.

    Cells inside cells are neurons of one tetrode each only where structs name the times: bare ones could be trials.
    """
    if isinstance(value, dict):
        times = [k for k in value if _bare(k) in TIMES]
        return _trains(value[times[0]], name, True) if len(times) == 1 else None
    if isinstance(value, np.ndarray) and value.dtype == object:
        if value.size > 1 and max(value.shape) != value.size:
            return None
        out: list[tuple[str, np.ndarray]] = []
        for i, part in enumerate(value.ravel(), 1):
            found = _trains(part, name if value.size == 1 else f"{name}.{i}".lstrip("."), in_struct)
            if found is None:
                return None
            out += found
        return out
    vector = _vector(value)
    if vector is None or (vector.size and "." in name and not in_struct):
        return None
    return [(name or "1", vector)]


def _is_counts(value: Any) -> bool:
    """Whether an array `(a, b)` holds whole numbers from 0."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf" or value.ndim != 2 or min(value.shape) < 2:
        return False
    return bool(value.dtype.kind == "u" or (np.all(value >= 0) and np.all(value == np.round(value))))


def _file(path: Path, found: dict[str, Any], request: Request) -> Found:
    """Decide which layout a file has."""
    listing = "; ".join(f"{k} {v.shape} {v.dtype}" for k, v in found.items() if isinstance(v, np.ndarray)) or "nothing"
    if request.variable and request.variable not in found:
        raise ValueError(f"{path} has no variable {request.variable!r}; it holds {listing}")
    vectors = {k: v for k, x in found.items() if (v := _vector(x)) is not None and len(v)}
    ids = {k: v for k, v in vectors.items() if _bare(k) in NEURONS}
    candidates: dict[str, str] = {}
    for name, value in found.items():
        if request.variable not in (None, name):
            continue
        if name in vectors and (request.variable or _bare(name) in TIMES):
            if sum(len(v) == len(vectors[name]) for v in ids.values()) == 1:
                candidates[name] = "vectors"
        elif isinstance(value, np.ndarray) and value.dtype == object:
            if any(len(t) for _, t in _trains(value) or []):
                candidates[name] = "cells"
        elif _is_counts(value):
            candidates[name] = "counts"
    if len(candidates) > 1:
        candidates = {k: v for k, v in candidates.items() if "spike" in k.lower()} or candidates
    if len(candidates) != 1:
        raise ValueError(
            f"{path}: {len(candidates)} variables look like sorted spikes ({', '.join(candidates) or 'none'}); "
            f"it holds {listing}. Expected spike times beside neuron numbers of the same length (spike_times, neuron), "
            "a cell array with one vector of times for each neuron, or a matrix of counts; name one with variable"
        )
    ((name, layout),) = candidates.items()
    if layout == "counts":
        return _counts(path, name, found, request)
    if layout == "cells":
        names, trains = zip(*(_trains(found[name]) or []))
        seconds, step = _seconds(path, list(trains), request)
        out = Found(list(names), seconds, steps=[step])
    else:
        number = next(v for v in ids.values() if len(v) == len(vectors[name]))
        out = _by_neuron(path, vectors[name], number, request)
    out.steps.insert(0, {"step": "read spikes", "variable": name, "layout": layout})
    return out


def _by_neuron(path: Path, times: np.ndarray, number: np.ndarray, request: Request) -> Found:
    """Neurons from spike times and the neuron numbers beside them."""
    if not (np.isfinite(number).all() and np.all(number == np.round(number))):
        raise ValueError(f"{path}: neuron numbers are not whole; expected one whole number for each spike")
    known, row = np.unique(number.astype(np.int64), return_inverse=True)
    (seconds,), step = _seconds(path, [times], request)
    order = np.argsort(row, kind="stable")
    trains = np.split(seconds[order], np.cumsum(np.bincount(row, minlength=len(known)))[:-1])
    return Found([str(k) for k in known], trains, steps=[step])


def _seconds(path: Path, trains: list[np.ndarray], request: Request) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Spike times in seconds, and a note of what they were. Whole numbers are sample numbers."""
    every = np.concatenate([t.astype(float) for t in trains])
    if not np.isfinite(every).all():
        raise ValueError(f"{path}: {int((~np.isfinite(every)).sum())} of {len(every)} spike times are not finite")
    if request.unit:
        if request.unit not in CLOCKS:
            raise ValueError(f"{path}: unit of spike times is {request.unit!r}; expected one of {', '.join(CLOCKS)}")
        factor, unit = CLOCKS[request.unit], request.unit
    elif any(t.dtype.kind in "iu" for t in trains if len(t)) or (len(every) > 10 and np.all(every == np.round(every))):
        if not request.sfreq_hz:
            raise ValueError(
                f"{path}: spike times are whole numbers up to {every.max():.0f}, so sample numbers; "
                "say their samples per second with sfreq_hz, or unit (s, ms, us) if they are none"
            )
        factor, unit = 1 / request.sfreq_hz, f"samples at {request.sfreq_hz:g} Hz"
    else:
        factor, unit = 1.0, "s"
    return [t.astype(float) * factor for t in trains], {"step": "spike times", "unit": unit}


def _counts(path: Path, name: str, found: dict[str, Any], request: Request) -> Found:
    """Neurons from a matrix of counts; series with as many samples as there are bins come along."""
    matrix = np.asarray(found[name])
    clocks = {k: v for k, x in found.items() if _bare(k) in TIMES and k != name and (v := _vector(x)) is not None}
    clock = next((v for v in clocks.values() if len(v) in matrix.shape and len(v) > 2), None)
    axis = _bin_axis(path, name, matrix, clock, request)
    matrix = matrix if axis == 0 else matrix.T
    bins, neurons = matrix.shape
    rate, origin = request.sfreq_hz, 0.0
    if clock is not None and len(clock) == bins:
        step = float(np.median(np.diff(clock)))
        if not np.isfinite(clock).all() or step <= 0 or np.abs(np.diff(clock) - step).max() > 0.5 * step:
            raise ValueError(f"{path}: the times of the bins are not evenly spaced; bin the spikes of {name} evenly")
        rate = rate or snapped((bins - 1) / (clock[-1] - clock[0]))
        origin = float(clock[0])
    if not rate:
        raise ValueError(f"{path}: {name} {matrix.shape} holds counts; say the bins per second with sfreq_hz")
    if matrix.max() * rate > FASTEST_HZ:
        raise ValueError(
            f"{path}: {name} holds {matrix.max():g} in one bin of {1 / rate:g} s, which are no spikes of one neuron; "
            "check sfreq_hz and variable"
        )
    bin_, neuron = np.nonzero(matrix)
    number = matrix[bin_, neuron].astype(np.int64)
    within = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
    time = origin + (np.repeat(bin_, number) + (within + 0.5) / np.repeat(number, number)) / rate
    row = np.repeat(neuron, number)
    trains = [time[row == i] for i in range(neurons)]
    note = {"step": "binned", "variable": name, "bins_per_s": rate, "spread": "evenly inside the bin"}
    names, aligned = [str(i + 1) for i in range(neurons)], _covariates(found, name, bins, rate)
    return Found(names, trains, origin, bins / rate, aligned, [note])


def _bin_axis(path: Path, name: str, matrix: np.ndarray, clock: np.ndarray | None, request: Request) -> int:
    """The axis of the bins: that of the neurons' names or of the bins' times, else the longer one if twice as long."""
    shape = matrix.shape
    if request.names and shape.count(len(request.names)) == 1:
        return 1 - shape.index(len(request.names))
    if clock is not None and shape.count(len(clock)) == 1:
        return shape.index(len(clock))
    if max(shape) < 2 * min(shape):
        raise ValueError(
            f"{path}: cannot tell bins from neurons in {name} {shape}; give the neurons' names with names, "
            "or store the bins' times beside it as `time`"
        )
    return int(np.argmax(shape))


def _covariates(found: dict[str, Any], name: str, bins: int, rate: float) -> dict[str, Series]:
    """Numbers with one axis of `bins` and at most 16 along the other, for example `handVel` as "velocity"."""
    out: dict[str, Series] = {}
    for key, x in found.items():
        if key == name or _bare(key) in TIMES or not isinstance(x, np.ndarray) or x.dtype.kind not in "iuf":
            continue
        table = x.reshape(-1, 1) if x.ndim == 1 else x
        if table.ndim == 2 and bins in table.shape and min(table.shape) <= 16:
            values = table if table.shape[0] == bins else table.T
            out[key.replace("/", "_")] = Series(np.asarray(values, float), rate, "")
    for part, word in (("vel", "velocity"), ("pos", "position")):
        named = [k for k in out if part in k.lower()]
        if len(named) == 1:
            out[word] = out.pop(named[0])
    return out


def _kept(path: Path, found: Found, request: Request) -> tuple[list[str], list[np.ndarray], list[ChannelNote]]:
    """Names and spikes of the neurons that have any, and the channel log."""
    names = list(request.names) or found.names
    if len(names) != len(found.names):
        raise ValueError(f"{path}: got {len(names)} names for {len(found.names)} neurons; give one for each")
    log, keep = list(found.log), []
    for i, (was, name, train) in enumerate(zip(found.names, names, found.trains)):
        if len(train):
            keep.append(i)
            log.append(ChannelNote(was, name, "kept" if was == name else "renamed"))
        else:
            log.append(ChannelNote(was, "", "dropped", "no spikes"))
    if not keep:
        raise ValueError(f"{path}: none of {len(names)} neurons has a spike; check variable")
    return [names[i] for i in keep], [found.trains[i] for i in keep], log


def _phy(folder: Path, request: Request, groups: tuple[str, ...]) -> tuple[Found, list[Path]]:
    """A folder of Kilosort or phy; `params.py` is searched for its sample rate as text and never run."""
    times = folder / "spike_times.npy"
    clusters = next((p for n in ("clusters", "templates") if (p := folder / f"spike_{n}.npy").is_file()), None)
    if not times.is_file() or clusters is None:
        raise FileNotFoundError(f"{folder} holds no spike_times.npy with spike_clusters.npy beside it")
    files, rate = [times, clusters], request.sfreq_hz
    params = folder / "params.py"
    if params.is_file() and not rate and not request.unit:
        said = re.search(r"^\s*sample_rate\s*=\s*([\d.]+(?:[eE][+-]?\d+)?)\s*(?:#.*)?$", _text(params), re.MULTILINE)
        rate = float(said[1]) if said else None
        files.append(params)
    time, number = (_vector(next(iter(variables(p).values()))) for p in (times, clusters))
    if time is None or number is None or len(time) != len(number):
        raise ValueError(f"{times} and {clusters.name} are not vectors of one length; export the sorting again")
    found = _by_neuron(times, time, number, replace(request, sfreq_hz=rate))
    table = next((p for n in ("cluster_info", "cluster_group") if (p := folder / f"{n}.tsv").is_file()), None)
    if table is not None:
        files.append(table)
        group = _groups(table)
        kept = [i for i, n in enumerate(found.names) if group.get(n) in groups]
        if not kept:
            raise ValueError(f"{table}: no cluster is {' or '.join(groups)}; it has {sorted(set(group.values()))}")
        found.log = [
            ChannelNote(n, "", "dropped", f"quality group {group.get(n) or 'not given'}")
            for i, n in enumerate(found.names)
            if i not in set(kept)
        ]
        found.names, found.trains = [found.names[i] for i in kept], [found.trains[i] for i in kept]
        found.steps.append({"step": "quality", "groups": list(groups), "dropped": len(found.log)})
    return found, files


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _groups(table: Path) -> dict[str, str]:
    """Cluster number → quality group, phy's own word before Kilosort's."""
    rows = list(csv.DictReader(_text(table).splitlines(), delimiter="\t"))
    key = next((k for k in ("cluster_id", "id") if rows and k in rows[0]), None)
    column = next((k for k in ("group", "KSLabel") if rows and k in rows[0]), None)
    if key is None or column is None:
        raise ValueError(f"{table} has columns {list(rows[0]) if rows else []}; expected cluster_id and group")
    return {r[key]: (r[column] or r.get("KSLabel") or "") for r in rows}


def _trodes_track(path: Path, origin: float) -> tuple[Series, dict[str, Any]]:
    """Position in the video of Trodes, in pixels (in metres where its header has a scale)."""
    raw = path.read_bytes()
    head, end, body = raw.partition(b"<End settings>\n")
    text = head.decode("ascii", "replace")
    clock = re.search(r"^clockrate:\s*(\d+)", text, re.MULTILINE)
    fields = re.findall(r"<(\w+) (uint8|uint16|uint32|int16|int32)>", text)
    names = [n for n, _ in fields]
    if not end or not clock or not int(clock[1]) or not {"time", "xloc", "yloc"} <= set(names):
        raise ValueError(f"{path} has no Trodes header with clockrate, time, xloc and yloc; take it away or mend it")
    record = np.dtype([(n, np.dtype(kind).newbyteorder("<")) for n, kind in fields])
    if len(body) % record.itemsize or not body:
        raise ValueError(f"{path}: {len(body)} bytes are no whole records of {record.itemsize}; copy it again")
    rows = np.frombuffer(body, record)
    columns = [n for n in ("xloc", "yloc", "xloc2", "yloc2") if n in names and (n[-1] != "2" or rows[n].any())]
    scale = re.search(r"^pixel scale:\s*([\d.]+) pix/cm", text, re.MULTILINE)
    metres = 0.01 / float(scale[1]) if scale and float(scale[1]) else 0.0
    values = np.stack([rows[n].astype(float) for n in columns], axis=1) * (metres or 1.0)
    try:
        series, how = regular(rows["time"] / int(clock[1]) - origin, values, "m" if metres else "px")
    except ValueError as error:
        raise ValueError(f"{path}: {error}; take it away or mend it") from error
    return series, {"columns": columns, **how}
