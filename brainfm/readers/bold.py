"""What fMRI runs of all formats share: repetition time, means over regions, fMRIPrep's confounds."""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from brainfm.checksums import sha256
from brainfm.readers.request import Request
from brainfm.recording import ChannelNote, Channels, Events, Recording, Series

#: Seconds between volumes that a scanner can be set to; a header that says otherwise is not believed.
SHORTEST_TR_S, LONGEST_TR_S = 0.05, 20.0
#: Regions (or voxels or vertices that are regions of their own) of a recording; above the second number, in float32.
MOST_REGIONS, MANY_REGIONS = 50_000, 5_000
#: Motion of the head between two volumes in mm above which a volume is censored (framewise displacement).
CENSOR_MM = 0.5
#: Columns of fMRIPrep's table that are regressed out where they are there; the global signal is not among them.
MOTION = tuple(
    f"{kind}_{axis}{form}"
    for form in ("", "_derivative1", "_power2", "_derivative1_power2")
    for kind in ("trans", "rot")
    for axis in "xyz"
)
CONFOUNDS = (*MOTION, "csf", "white_matter")
#: No compressor of the formats that are read here makes data more than this many times smaller.
DENSEST = 1040
#: No extension of a NIfTI header has more bytes; the largest are the XML of CIFTI.
LONGEST_EXTENSION = 1 << 28
#: Numbers of a file that are held at a time.
SLAB = 2**22


@dataclass(frozen=True)
class Regions:
    """Which voxels or vertices make up which region.

    Attributes:
        label: `(point,)` number of the region that a voxel or vertex belongs to, -1 outside all.
        name, area: of each region.
        position: `(region, 3)` centres in metres, NaN where unknown.
        dropped: regions of the atlas that no point belongs to.
        steps: what was done to the atlas, for the provenance.
    """

    label: np.ndarray
    name: list[str]
    area: list[str]
    position: np.ndarray
    dropped: list[ChannelNote] = field(default_factory=list)
    steps: list[dict] = field(default_factory=list)


def stem(path: Path) -> str:
    """A file's name without the endings of the formats read here (`.nii.gz`, `.func.gii`, `.dtseries.nii` ...)."""
    return re.sub(r"(\.(func|label|shape|dtseries|ptseries|dlabel))?\.(nii\.gz|nii|gii)$", "", path.name)


def extensions(path: Path, file: IO[bytes] | gzip.GzipFile) -> list[bytes]:
    """What stands between the header of a NIfTI-1 or -2 file and its data, after checking that it fits there.

    Raises:
        ValueError: for an extension that says that it is longer.
    """
    head = file.read(544)
    order = "<" if head[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
    size = int.from_bytes(head[:4], "little" if order == "<" else "big")
    if size not in (348, 540) or len(head) < size + 4 or not head[size]:
        return []
    start = struct.unpack_from(order + ("f" if size == 348 else "q"), head, 108 if size == 348 else 168)[0]
    found, at = [], size + 4
    while at + 8 <= start:
        file.seek(at)
        length = int.from_bytes(file.read(8)[:4], "little" if order == "<" else "big")
        body = file.read(length - 8) if 8 <= length <= start - at and length < LONGEST_EXTENSION else b""
        if not body or len(body) < length - 8:
            raise ValueError(f"{path}: an extension of its header at byte {at} says that it has {length} bytes")
        found.append(body)
        at += length
    return found


def only_fmri(path: Path, request: Request) -> None:
    """Refuse a request for another modality."""
    if request.modality not in (None, "fmri"):
        raise ValueError(f"{path} is read as fMRI; got modality {request.modality!r}: leave it out or make it 'fmri'")


def seconds_per_volume(path: Path, found: float | None, request: Request) -> float:
    """The repetition time: from the request, else from the file or from the JSON beside it.

    Args:
        path: the run.
        found: seconds that the file says; None where it says nothing.

    Raises:
        ValueError: where neither says a plausible time, or the two say different ones.
    """
    if request.sfreq_hz is not None:
        if not (math.isfinite(request.sfreq_hz) and request.sfreq_hz > 0):
            raise ValueError(f"{path}: sfreq_hz is {request.sfreq_hz}; expected volumes per second, 1 / TR, above 0")
        return 1 / request.sfreq_hz
    side = path.with_name(stem(path) + ".json")
    said = _json_tr(side)
    told = [round(t, 6) for t in (found, said) if t is not None and SHORTEST_TR_S <= t <= LONGEST_TR_S]
    if not told:
        raise ValueError(
            f"{path}: its repetition time is {found if said is None else said} s; expected {SHORTEST_TR_S:g} to "
            f"{LONGEST_TR_S:g} s: give sfreq_hz = 1 / TR"
        )
    if abs(told[0] - told[-1]) > 0.01 * told[0]:
        raise ValueError(
            f"{path}: its header says {told[0]:g} s between volumes, {side.name} says {told[-1]:g} s: "
            "give sfreq_hz = 1 / TR"
        )
    return told[-1]


def _json_tr(path: Path) -> float | None:
    """`RepetitionTime` of the BIDS JSON file beside a run, in seconds; None where there is none."""
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); mend or remove it") from error
    value = told.get("RepetitionTime") if isinstance(told, dict) else None
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def means(path: Path, slabs: Iterable[np.ndarray], regions: Regions) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the points of each region, from slabs `(point, time)` that follow each other in time.

    A point that is not finite in the first volume lies outside the field of view and is left out of all.

    Returns:
        `(region, time)` as float64 (float32 for many regions); a region of no points is all NaN. And `(region,)` how
        many points were left out of each.

    Raises:
        ValueError: for too many regions, or where a point is not finite in a later volume.
    """
    n = len(regions.name)
    if n > MOST_REGIONS:
        raise ValueError(
            f"{path}: {n} regions, voxels or vertices; expected at most {MOST_REGIONS}: give an atlas (labels) or a "
            "smaller mask"
        )
    order = np.flatnonzero(regions.label >= 0)
    order = order[np.argsort(regions.label[order], kind="stable")]
    pieces: list[np.ndarray] = []
    left_out, done = np.zeros(n, int), 0
    for slab in slabs:
        if not pieces:
            there = np.isfinite(slab[order, 0])
            left_out = np.bincount(regions.label[order[~there]], minlength=n)
            order = order[there]
            present, starts, counts = np.unique(regions.label[order], return_index=True, return_counts=True)
        piece = np.full((n, slab.shape[1]), np.nan)
        if len(order):
            piece[present] = np.add.reduceat(slab[order].astype(np.float64, copy=False), starts) / counts[:, None]
            broken = np.argwhere(~np.isfinite(piece[present]))
            if len(broken):
                region, volume = broken[0]
                raise ValueError(
                    f"{path}: volume {done + volume} has voxels or vertices that are not finite in region "
                    f"{regions.name[present[region]]!r}; mend the run, or leave these out with a mask"
                )
        pieces.append(piece if n <= MANY_REGIONS else piece.astype(np.float32))
        done += slab.shape[1]
    return np.concatenate(pieces, axis=1), left_out


def recording(
    path: Path, request: Request, regions: Regions, signal: np.ndarray, left_out: np.ndarray,
    *, tr_s: float, reader: str, beside: tuple[Path | None, ...] = (), facts: dict[str, str] | None = None,
) -> Recording:  # fmt: skip
    """The recording of one run: regions without a point dropped, confounds and censored volumes beside it.

    Args:
        path: the run. beside: further files that were read; None for those that were not there.
        signal, left_out: as `means` gives them.
        tr_s: seconds between volumes.
        reader: library and version. facts: further provenance.

    Raises:
        ValueError: where no region is left, or the confounds do not fit the run.
    """
    if len(set(regions.name)) < len(regions.name):
        twice = next(n for n, k in Counter(regions.name).items() if k > 1)
        raise ValueError(f"{path}: {twice!r} names two regions; rename one of them")
    points = np.bincount(regions.label[regions.label >= 0], minlength=len(regions.name))
    kept = np.flatnonzero(points > left_out)
    if not len(kept):
        raise ValueError(f"{path}: no region has a finite voxel or vertex; take another atlas or mask")
    log = []
    for i, name in enumerate(regions.name):
        said = [f"mean of {points[i]} points"] if points[i] > 1 else []
        said += [f"{left_out[i]} not finite in the first volume and left out"] if left_out[i] else []
        fate = "kept" if points[i] > left_out[i] else "dropped"
        log.append(ChannelNote(name, name if fate == "kept" else "", fate, ", ".join(said)))
    table = Channels.make(regions.name, "region", regions.position, area=regions.area).pick(kept)
    volumes = signal.shape[1]
    confounds = request.confounds or _confounds_beside(path)
    files = {p.name: sha256(p) for p in (path, *beside, confounds) if p is not None}
    made = Recording(
        dataset=request.dataset,
        subject=request.subject,
        session=request.session,
        run=request.run,
        modality="fmri",
        device=request.device or "mri",
        channels=table,
        sfreq=request.sfreq_hz or 1 / tr_s,
        signal=signal[kept] if len(kept) < len(signal) else signal,
        events=labelled(request, volumes * tr_s),
        provenance={"files": files, "steps": list(regions.steps), "reader": reader, "tr_s": tr_s, **(facts or {})},
        channel_log=log + regions.dropped,
    )
    if request.participant:
        made.provenance["participant"] = dict(request.participant)
    if confounds is not None:
        made.aligned, chosen, censored = read_confounds(confounds, volumes, float(made.sfreq or 0))
        made.provenance["confounds"] = chosen
        made.note("read_confounds", columns=len(chosen), censored=censored, censor_mm=CENSOR_MM)
    return made


def labelled(request: Request, duration: float) -> Events:
    """One event over the whole recording where the request names its condition."""
    return Events(np.zeros(1), np.array([duration]), [request.label]) if request.label else Events()


def read_confounds(path: Path, volumes: int, sfreq: float) -> tuple[dict[str, Series], list[str], int]:
    """Motion, white matter and CSF of fMRIPrep's table, and which volumes to censor.

    Censored are volumes after a motion of more than `CENSOR_MM`, and those that fMRIPrep names outliers or not steady.

    Returns:
        "confounds" `(time, confound)` and "censored" `(time, 1)` 0 or 1; the columns taken; the number censored.

    Raises:
        ValueError: for a table of another length, without a known column, or with gaps after the first volumes.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file, delimiter="\t")
        table = np.array([[np.nan if cell in ("n/a", "") else float(cell) for cell in row] for row in rows])
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is no table of numbers separated by tabs ({error}); make it anew") from error
    if table.shape != (volumes, len(header)):
        raise ValueError(
            f"{path} has {len(rows)} rows of {len(header)} columns; the run has {volumes} volumes: "
            "give the confounds of this run"
        )
    column = {name: table[:, i] for i, name in enumerate(header)}
    chosen = [name for name in CONFOUNDS if name in column]
    if not chosen:
        raise ValueError(f"{path} has columns {', '.join(header[:5])} ...; expected fMRIPrep's, such as trans_x or csf")
    values = np.stack([column[name] for name in chosen], axis=1)
    gaps = ~np.isfinite(values)
    leading = np.logical_and.accumulate(gaps, axis=0)
    late = [name for name, wrong in zip(chosen, (gaps & ~leading).any(0) | leading.all(0), strict=True) if wrong]
    if late:
        raise ValueError(f"{path}: column {late[0]!r} has gaps after its first values; make the table anew")
    values[gaps] = 0.0
    censored = np.nan_to_num(column.get("framewise_displacement", np.zeros(volumes))) > CENSOR_MM
    for name, spike in column.items():
        if name.startswith(("non_steady_state_outlier", "motion_outlier")):
            censored |= spike > 0
    aligned = {"confounds": Series(values, sfreq, "1"), "censored": Series(censored[:, None].astype(float), sfreq, "1")}
    return aligned, chosen, int(censored.sum())


def _confounds_beside(path: Path) -> Path | None:
    """fMRIPrep's table for a run, whatever space the run was taken to; None where there is none."""
    if "_bold." not in path.name:
        return None
    spaces = ("space", "res", "den", "hemi", "cohort", "desc")
    named = [beside(path, f"desc-confounds_{word}.tsv", spaces) for word in ("timeseries", "regressors")]
    return next((p for p in named if p.is_file()), None)


def beside(path: Path, ending: str, without: tuple[str, ...]) -> Path:
    """The BIDS file beside `path` that ends in `ending` and shares all entities but `without`."""
    parts = [p for p in stem(path).split("_")[:-1] if p.split("-")[0] not in without]
    return path.with_name("_".join([*parts, ending]))
