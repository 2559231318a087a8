"""BIDS datasets: which runs there are, and each with what its sidecars say about channels, electrodes and events."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from brainfm.checksums import sha256
from brainfm.readers import detect, sidecars
from brainfm.readers.request import Request
from brainfm.readers.sidecars import KINDS, MODALITIES, POTENTIALS, modality_of, run_name
from brainfm.readers.subjects import clean, entities, participant, rows, run_id, some
from brainfm.recording import Events, Recording

#: Spaces of preprocessed images, the preferred first; "" is the run's own.
SPACES = ("MNI152NLin2009cAsym", "MNI152NLin6Asym", "T1w", "")


def root_of(path: Path) -> Path | None:
    """The BIDS dataset that a path is, or lies in as raw data of a subject; None outside one."""
    path = path.absolute()
    for folder in (path, *path.parents):
        if (folder / "dataset_description.json").is_file():
            inside = path.relative_to(folder).parts
            return folder if not inside or inside[0].startswith("sub-") else None
    return None


def find(root: Path, base: Request, only: Path) -> tuple[list[tuple[Path, Request, tuple[Path, ...]]], list[str]]:
    """Every run of a dataset: its path, what it is to be read with, and all files that it is read from.

    Images need `base.atlas` or `base.mask`. Of a preprocessed run one space is taken; raw images are taken where no
    derivative has preprocessed ones. Runs of the empty room are left out.

    Args:
        root: folder of dataset_description.json. base: ids apart, what holds for all runs; {task} and {session} in its
            label become those of the run. only: a folder or file in the dataset, or the dataset.

    Raises:
        ValueError: for a modality that is not there, several of them, or two files of the same run.
    """
    notes: list[str] = []
    table = root / "participants.tsv"
    people = {row.get("participant_id", ""): row for row in rows(table).values()} if table.is_file() else {}
    chosen, other = _runs(root, base, notes)
    chosen = [p for p in chosen if only.absolute() in (p.absolute(), *p.absolute().parents)]
    kinds = Counter(map(modality_of, chosen))
    if base.modality is None and len(kinds) > 1:
        had = " and ".join(f"{n} {kind} runs" for kind, n in sorted(kinds.items()))
        raise ValueError(f"{root} holds {had}; shards hold one modality: give --modality {' or '.join(sorted(kinds))}")
    found: list[tuple[Path, Request, tuple[Path, ...]]] = []
    first: dict[tuple[str, str, str], Path] = {}
    for path in chosen:
        parts = entities(path.name)
        label = base.label.replace("{task}", parts.get("task", "")).replace("{session}", parts.get("ses", ""))
        request = replace(
            base, subject=clean(parts["sub"]), session=clean(parts.get("ses", "")), run=run_id(parts), label=label,
            modality=modality_of(path), participant=participant(people.get(f"sub-{parts['sub']}", {})),
        )  # fmt: skip
        if (key := (request.subject, request.session, request.run)) in first:
            raise ValueError(f"{first[key]} and {path} are the same run; keep one of them")
        first[key] = path
        beside = [*sidecars.beside(path, root).values(), *sidecars.metadata(path, root)[1]]
        if request.modality == "fmri":
            request = replace(request, confounds=base.confounds or confounds(path))
            beside += [p for p in (request.atlas, request.mask, request.confounds) if p]
        found.append((path, request, tuple(dict.fromkeys([*detect.files(path), *beside]))))
    subjects = {entities(path.name)["sub"] for path in chosen}
    if lost := sorted(f"sub-{who}" for who in subjects if f"sub-{who}" not in people):
        notes.append(f"participants.tsv {'has no row for' if people else 'is not there to describe'} {some(lost)}")
    if other:
        notes.append("no recordings in folders " + ", ".join(f"{name} ({n})" for name, n in sorted(other.items())))
    notes.insert(0, f"{len(subjects)} people and {len(found)} recordings from the BIDS dataset {root.name}")
    return found, list(dict.fromkeys(notes))


def _runs(root: Path, base: Request, notes: list[str]) -> tuple[list[Path], Counter[str]]:
    """The data files of the dataset, and how many folders of other datatypes there are."""
    found: list[Path] = []
    other: Counter[str] = Counter()
    empty = 0
    for folder in _datatypes(root):
        modality = MODALITIES.get(folder.name)
        if modality is None:
            other[folder.name] += 1
        elif base.modality in (None, modality):
            here = [p for p in sorted(folder.iterdir()) if _is_run(p, folder.name)]
            brain = [p for p in here if not {("sub", "emptyroom"), ("task", "noise")} & set(entities(p.name).items())]
            empty += len(here) - len(brain)
            found += map(_inside, brain)
        else:
            notes.append(f"left out: folders {folder.name}, for modality {base.modality} is asked for")
    if empty:
        notes.append(f"left out: {empty} recordings of the empty room")
    return _images(root, found, base, notes), other


def _datatypes(root: Path) -> list[Path]:
    """Folders of datatypes of every subject and session."""
    subjects = [p for p in sorted(root.glob("sub-*")) if p.is_dir()]
    homes = [home for p in subjects for home in (p, *(s for s in sorted(p.glob("ses-*")) if s.is_dir()))]
    return [p for home in homes for p in sorted(home.iterdir()) if p.is_dir() and not p.name.startswith((".", "ses-"))]


def _is_run(path: Path, datatype: str) -> bool:
    """Whether a file or folder is a run's data, and not a sidecar, a later part of a split file or a calibration."""
    parts = entities(path.name)
    word = path.name.split(".")[0].split("_")[-1]
    if "sub" not in parts or path.name.startswith(".") or path.suffix in (".tsv", ".json"):
        return False
    if parts.get("split", "1").lstrip("0") != "1" or parts.get("acq") in ("crosstalk", "calibration"):
        return False
    readable = detect.known(path) or (path.is_dir() and word == "meg")
    return readable and word == ("bold" if datatype == "func" else datatype) and detect.suffix(path) != ".eeg"


def _inside(path: Path) -> Path:
    """The file in a folder that BIDS puts around a KIT recording; other paths as they are."""
    if path.is_dir() and not detect.known(path):
        return next((p for p in sorted(path.iterdir()) if detect.suffix(p) in (".con", ".sqd")), path)
    return path


def _images(root: Path, found: list[Path], base: Request, notes: list[str]) -> list[Path]:
    """The runs with images of one kind: preprocessed ones where a derivative has them, of one space each."""
    images = [p for p in found if modality_of(p) == "fmri"]
    others = [p for p in found if p not in images]
    if base.modality not in (None, "fmri"):
        return others
    homes = [p for p in sorted((root / "derivatives").glob("*")) if p.is_dir()]
    made = [
        p for home in (root, *homes) for folder in _datatypes(home) if folder.name == "func"
        for p in sorted(folder.iterdir()) if _is_run(p, "func") and _preprocessed(p)
    ]  # fmt: skip
    if made:
        if raw := {run_name(p) for p in images} - {run_name(p) for p in made}:
            notes.append(f"left out: {len(raw)} raw runs without preprocessed images, for example {min(raw)}")
        images = []
        for name in sorted({run_name(p) for p in made}):
            spaces = sorted((p for p in made if run_name(p) == name), key=_preference)
            images.append(spaces[0])
            more = [p.name for p in spaces[1:] if p not in detect.files(spaces[0])]
            notes += [f"{name}: took {spaces[0].name}; also there: {', '.join(more)}"] if more else []
    if images and not (base.atlas or base.mask) and any(detect.reader(p) == "volumes" for p in images if p.exists()):
        if not others:
            raise ValueError(f"{root} holds images; give --atlas (regions) or --mask (voxels)")
        notes.append(f"left out: {len(images)} runs of images; give --modality fmri and --atlas or --mask for them")
        images = []
    return sorted(others + images)


def _preprocessed(path: Path) -> bool:
    """fMRIPrep calls images "preproc"; its files on surfaces have a space and no such word."""
    parts = entities(path.name)
    return parts.get("desc") == "preproc" or ("space" in parts and detect.suffix(path) not in (".nii", ".nii.gz"))


def _preference(path: Path) -> tuple[bool, int, bool, str]:
    """Order of a run's images: volumes before surfaces, the spaces as in `SPACES`, full resolution, name."""
    parts = entities(path.name)
    space = parts.get("space", "")
    place = SPACES.index(space) if space in SPACES else 1 if space.startswith("MNI") else len(SPACES)
    return detect.suffix(path) not in (".nii", ".nii.gz"), place, "res" in parts, path.name


def confounds(path: Path) -> Path | None:
    """fMRIPrep's table of confounds beside a run."""
    start = run_name(path).removesuffix("_bold")
    names = (f"{start}_desc-confounds_{word}.tsv" for word in ("timeseries", "regressors"))
    return next((p for p in (path.parent / name for name in names) if p.is_file()), None)


def read(path: Path, request: Request, root: Path) -> Recording:
    """One run with the reader of its format, and what its sidecars say.

    Raises:
        ValueError: for a run that its reader refuses, and where a sidecar contradicts it.
    """
    said, files = sidecars.metadata(path, root)
    beside = sidecars.beside(path, root)
    if request.modality == "fmri":
        recording = detect.read(path, request)
        _same_rate(path, recording, said, "RepetitionTime")
    else:
        request = replace(request, reference=request.reference or sidecars.reference(said))
        recording = detect.read(path, _with_unit(path, request, beside.get("channels.tsv")))
        _same_rate(path, recording, said, "SamplingFrequency")
        if "channels.tsv" in beside:
            sidecars.channels(recording, beside["channels.tsv"])
        if "electrodes.tsv" in beside:
            sidecars.electrodes(recording, beside["electrodes.tsv"], beside.get("coordsystem.json"))
    if "events.tsv" in beside:
        sidecars.put_events(recording, beside["events.tsv"], request.label)
    elif not len(recording.events) and (task := entities(path.name).get("task")):
        recording.events = Events(np.zeros(1), np.array([recording.duration]), [task])
        recording.note("label", label=task, why="no events; the name of the task")
    if isinstance(line := said.get("PowerLineFrequency"), int | float):
        recording.provenance["power_line_hz"] = float(line)
    if request.participant:
        recording.provenance["participant"] = dict(request.participant)
    for file in (*beside.values(), *files):
        recording.provenance["files"][file.name] = sha256(file)
    return recording


def _same_rate(path: Path, recording: Recording, said: dict[str, object], name: str) -> None:
    """Refuse a run whose JSON says another rate than its file, by more than 0.1 %."""
    value = said.get(name)
    if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0 or recording.sfreq is None:
        return
    hz = 1 / value if name == "RepetitionTime" else value
    if abs(recording.sfreq / hz - 1) > 1e-3:
        raise ValueError(
            f"{path}: {name} in its JSON is {value:g} ({hz:g} Hz), the file has {recording.sfreq:g} Hz; "
            "expected the same: mend the JSON, or the file's header"
        )


def _with_unit(path: Path, request: Request, table: Path | None) -> Request:
    """The request with the unit of channels.tsv, for EDF files whose headers give none."""
    if request.unit or table is None or detect.suffix(path) not in (".edf", ".bdf") or not path.is_file():
        return request
    from brainfm.readers import edf

    try:
        head = edf.header(path)
    except ValueError:
        return request  # reading it says what is wrong
    written = {text.strip() for i, text in enumerate(head.dimension) if i not in head.notes}
    brain = [row for row in rows(table).values() if KINDS.get(row.get("type", "").upper()) in POTENTIALS]
    said = {row.get("units", "") for row in brain}
    return replace(request, unit=said.pop()) if written == {""} and len(said) == 1 and "" not in said else request
