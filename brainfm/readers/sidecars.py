"""What BIDS sidecars say about a run: which files they are, and channels, electrodes and events in a `Recording`."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from brainfm.modalities.electrodes import plain
from brainfm.readers.request import require
from brainfm.readers.subjects import entities, rows
from brainfm.recording import NO_LABEL, ChannelNote, Events, Recording, Signal

#: Folder of a datatype → modality. Other folders (anat, fmap, dwi, beh ...) hold no recordings.
MODALITIES = {"eeg": "eeg", "meg": "meg", "ieeg": "ieeg", "func": "fmri"}

#: Type in channels.tsv → kind of channel; other types (EOG, ECG, TRIG, MISC ...) are no brain signal.
KINDS = {
    "EEG": "eeg", "ECOG": "ecog", "SEEG": "seeg", "DBS": "seeg", "IEEG": "seeg",
    "MEGMAG": "mag", "MEGGRADPLANAR": "grad", "MEGGRADAXIAL": "axial", "MEG": "mag",
}  # fmt: skip
POTENTIALS = ("eeg", "ecog", "seeg")

#: Entities that derivatives add to the name of the run that they were made from.
DERIVED = ("space", "res", "den", "cohort", "hemi", "desc")

#: Sidecars of a run beside its JSON.
ENDINGS = ("events.tsv", "channels.tsv", "electrodes.tsv", "coordsystem.json")

#: Unit of coordsystem.json → metres.
METRES = {"m": 1.0, "cm": 1e-2, "mm": 1e-3}


@dataclass(frozen=True)
class Chosen:
    """Some rows of a signal that may lie in a file."""

    signal: Signal
    row: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.row), self.signal.shape[1]

    @property
    def block(self) -> int:
        """Samples at a time that are cheapest to ask for."""
        return getattr(self.signal, "block", 1 << 18)

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        return self.signal[:, key[1]][list(self.row)[key[0]]]


def modality_of(path: Path) -> str:
    return next(MODALITIES[p.name] for p in path.parents if p.name in MODALITIES)


def run_name(path: Path) -> str:
    """The name of the run that a derivative was made from."""
    return "_".join(p for p in path.name.split(".")[0].split("_") if p.split("-")[0] not in DERIVED)


def raw_path(path: Path, root: Path) -> Path:
    """Where the raw run of a path lies, or would lie, in the dataset."""
    parts = entities(path.name)
    if modality_of(path) != "fmri":
        return path
    if root.parent.name == "derivatives" and (root.parent.parent / "dataset_description.json").is_file():
        root = root.parent.parent
    home = root / f"sub-{parts['sub']}" / (f"ses-{parts['ses']}" if "ses" in parts else "") / "func"
    return home / f"{run_name(path)}.nii.gz"


def inherited(path: Path, root: Path, ending: str) -> list[Path]:
    """Sidecars of a run by BIDS' principle of inheritance, the nearest first: their entities are among its own."""
    own = entities(path.name).items()
    found: list[Path] = []
    for folder in path.parents:
        names = [p for p in folder.glob(f"*{ending}") if p.name == ending or p.name.endswith(f"_{ending}")]
        fits = [p for p in names if entities(p.name).items() <= own]
        found += sorted(fits, key=lambda p: -len(entities(p.name)))
        if folder == root or (folder / "dataset_description.json").is_file():
            break
    return found


def beside(path: Path, root: Path) -> dict[str, Path]:
    """Ending ("events.tsv", "channels.tsv", "electrodes.tsv", "coordsystem.json") → the run's sidecar, where it is."""
    images = modality_of(path) == "fmri"
    found: dict[str, Path] = {}
    for ending in ENDINGS[:1] if images else ENDINGS:
        match = None if images else _matching(path, root, ending)
        near = [match] if match else inherited(raw_path(path, root), root, ending)
        if near:
            found[ending] = near[0]
    return found


def _matching(path: Path, root: Path, ending: str) -> Path | None:
    """The sidecar that mne-bids matches with a run, where it is not one of another run.

    Raises:
        ValueError: where several match, or a name is not BIDS.
    """
    bids = require("mne_bids", "bids")
    suffix, extension = ending.split(".")
    parent = next(p for p in path.parents if p.name in MODALITIES)
    try:
        run = bids.get_bids_path_from_fname(parent / path.name, check=False, verbose="error").update(root=root)
        side = run.find_matching_sidecar(suffix=suffix, extension=f".{extension}", on_error="raise")
    except RuntimeError as error:
        if str(error).startswith("Expected to find a single"):
            raise ValueError(f"{path}: several {ending} fit it; keep the one of its space and run") from error
        return None
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: {error}; rename the file as BIDS says") from error
    own = {name: text for name, text in entities(Path(side).name).items() if name != "space"}
    return Path(side) if own.items() <= entities(path.name).items() else None


def metadata(path: Path, root: Path) -> tuple[dict[str, object], list[Path]]:
    """What the JSON sidecars of a run say, the nearest winning, and these files."""
    raw = raw_path(path, root)
    ending = f"{raw.name.split('.')[0].split('_')[-1]}.json"
    files = inherited(raw, root, ending)
    said: dict[str, object] = {}
    for file in reversed(files):
        said |= read_json(file)
    return said, files


def read_json(path: Path) -> dict[str, object]:
    try:
        said = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); mend it") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path} holds a {type(said).__name__}; expected an object with BIDS' fields: mend it")
    return said


def reference(said: dict[str, object]) -> str:
    """What potentials are measured against, as the JSON says it."""
    word = said.get("EEGReference") or said.get("iEEGReference") or ""
    return word if isinstance(word, str) and word.lower() not in ("n/a", "unknown") else ""


def channels(recording: Recording, path: Path) -> None:
    """Types, bad channels and references of channels.tsv; what is no brain signal by its type is dropped.

    Raises:
        ValueError: where it names none of the channels, or calls one bad that the file does not have.
    """
    table, found = recording.channels, _found(recording)
    about = {row.get("name", ""): (line, row) for line, row in rows(path).items()}
    every = {note.found for note in recording.channel_log} | set(found)
    about = _respelled(about, every)
    if not every & set(about):
        raise ValueError(
            f"{path} names {', '.join(list(about)[:4])} ...; the recording has {', '.join(sorted(every)[:4])} ...: "
            "give the channels of this run"
        )
    keep = []
    for i, name in enumerate(found):
        row = about.get(name, (0, {}))[1]
        kind = KINDS.get(word := row.get("type", "").upper())
        if word and kind is None:
            recording.channel_log.append(ChannelNote(name, "", "dropped", f"{word} in {path.name}"))
            recording.channel_log[:] = [n for n in recording.channel_log if n.name != table.name[i]]
            continue
        keep.append(i)
        if kind in POTENTIALS and table.kind[i] in POTENTIALS:
            table.kind[i] = kind
        if row.get("reference") and not table.reference[i]:
            table.reference[i] = row["reference"]
        if row.get("status", "").lower() == "bad":
            table.bad[i] = True
            why = row.get("status_description") or f"bad in {path.name}"
            recording.channel_log.append(ChannelNote(name, table.name[i], "bad", why))
    for name, (line, row) in about.items():
        if row.get("status", "").lower() == "bad" and name not in every:
            raise ValueError(f"{path} line {line}: bad channel {name!r} is not in the recording; mend its name")
    if not keep:
        raise ValueError(f"{path} calls no channel of the recording EEG, MEG, ECOG or SEEG; mend its types")
    if len(keep) < len(table) and recording.signal is not None:
        recording.signal = Chosen(recording.signal, tuple(keep))
    recording.channels = table.pick(keep)
    absent = sorted(every - set(about))
    recording.note("channels.tsv", dropped=len(table) - len(keep), without_row=absent)


def _respelled(about: dict[str, tuple[int, dict[str, str]]], every: set[str]) -> dict[str, tuple[int, dict[str, str]]]:
    """Rows by the names of the file, also of channels that were renamed on the way to BIDS ("EEG T3" to "T3")."""
    rest = Counter(plain(name) for name in about if name not in every)
    spelling: dict[str, list[str]] = {}
    for name in every - set(about):
        spelling.setdefault(plain(name), []).append(name)
    known = {word: names[0] for word, names in spelling.items() if len(names) == 1 and rest[word] == 1}
    return {(name if name in every else known.get(plain(name), name)): row for name, row in about.items()}


def _found(recording: Recording) -> list[str]:
    """The name in the file of each channel."""
    first: dict[str, str] = {}
    for note in recording.channel_log:
        if note.name:
            first.setdefault(note.name, note.found)
    return [first.get(name, name) for name in recording.channels.name]


def electrodes(recording: Recording, path: Path, system: Path | None) -> None:
    """Positions of electrodes.tsv, in metres; in the head frame where landmarks say where that is.

    Without landmarks, and for implanted electrodes, coordinates stay in the system that coordsystem.json names.
    """
    said = read_json(system) if system else {}
    name, unit = (
        str(said.get(f"EEG{word}") or said.get(f"iEEG{word}") or "") for word in ("CoordinateSystem", "CoordinateUnits")
    )
    if unit not in METRES:
        recording.note("electrodes.tsv", used=0, why=f"coordinates in {unit or 'an unknown unit'}, not m, cm or mm")
        return
    place: dict[str, np.ndarray] = {}
    for line, row in rows(path).items():
        cells = [row.get(axis, "") for axis in "xyz"]
        if all(cells):
            numbers = [_number(path, line, axis, text) for axis, text in zip("xyz", cells, strict=True)]
            place[row.get("name", "")] = METRES[unit] * np.array(numbers)
    move = _to_head(said, name) if set(recording.channels.kind) <= {"eeg"} else None
    table, used = recording.channels, 0
    for i, found in enumerate(_found(recording)):
        if table.kind[i] not in POTENTIALS:
            continue
        at = place.get(found, place.get(table.name[i]))
        ends = [place.get(x.strip()) for x in found.split("-")]
        middle = at is None and len(ends) == 2 and all(end is not None for end in ends)
        if middle:
            at = np.mean([end for end in ends if end is not None], axis=0)
        if at is None:
            continue
        table.position[i] = at if move is None else move[:3, :3] @ at + move[:3, 3]
        table.placed[i] = "midpoint" if middle else "file"
        used += 1
        where = f"{'midpoint' if middle else 'position'} from {path.name}"
        recording.channel_log[:] = [
            replace(note, detail=where) if note.name == table.name[i] and note.fate in ("kept", "renamed") else note
            for note in recording.channel_log
            if not (note.name == table.name[i] and note.fate == "unplaced")
        ]
    recording.provenance["coordinate_system"] = name or "unknown"
    recording.note("electrodes.tsv", used=used, unit=unit, system=name, to_head=move is not None)


def _to_head(said: dict[str, object], system: str) -> np.ndarray | None:
    """`(4, 4)` from the system of the landmarks to the head frame; None where it is that, or is not known."""
    import mne

    marks = said.get("AnatomicalLandmarkCoordinates")
    unit = said.get("AnatomicalLandmarkCoordinateUnits")
    if system == "CapTrak" or not isinstance(marks, dict) or unit not in METRES:
        return None
    if said.get("AnatomicalLandmarkCoordinateSystem", system) != system:
        return None
    points = [marks.get(name) for name in ("NAS", "LPA", "RPA")]
    if not all(isinstance(p, list) and len(p) == 3 and all(isinstance(x, int | float) for x in p) for p in points):
        return None
    nasion, left, right = (METRES[str(unit)] * np.array(p, float) for p in points)
    moved: np.ndarray = mne.transforms.get_ras_to_neuromag_trans(nasion, left, right)
    return moved


def events(path: Path, duration: float) -> tuple[Events, dict[str, object]]:
    """The events of events.tsv inside a recording, and what was left out.

    Labels are those of `trial_type`, or of `value` where no row has a trial type, or "event" where the file has
    neither; a row that says "n/a" there has none. The stimulus is `stim_file`. Rows without an onset and rows outside
    the recording are left out and their lines noted.

    Raises:
        ValueError: for an onset or duration that is no number, or where most events lie behind the end, as they do in
            samples or milliseconds.
    """
    kept: list[tuple[float, float, str, str]] = []
    without, outside, latest = [], [], 0.0
    table = rows(path)
    if table and "onset" not in next(iter(table.values())):
        got = ", ".join(next(iter(table.values())))
        raise ValueError(f"{path} has columns {got}; expected `onset` among them: mend it")
    column = next((c for c in ("trial_type", "value") if any(row.get(c) for row in table.values())), "")
    for line, row in table.items():
        if not row["onset"]:
            without.append(line)
            continue
        onset = _number(path, line, "onset", row["onset"])
        length = _number(path, line, "duration", row.get("duration") or "0")
        latest = max(latest, onset)
        if not 0 <= onset < duration:
            outside.append(line)
            continue
        label = row.get(column, "") if column else "event"
        label = "" if label.lower() in NO_LABEL else label
        kept.append((onset, min(max(length, 0.0), duration - onset), label, row.get("stim_file", "")))
    if len(outside) > len(kept) and latest > duration:
        raise ValueError(
            f"{path} line {outside[0]}: {len(outside)} of {len(table)} events lie outside the recording of "
            f"{duration:g} s, up to {latest:g}; expected seconds from its start: divide samples or milliseconds"
        )
    kept.sort(key=lambda row: row[0])
    onset_s, length_s = np.array([row[0] for row in kept]), np.array([row[1] for row in kept])
    done = Events(onset_s, length_s, [row[2] for row in kept], [row[3] for row in kept])
    left = {name: lines for name, lines in (("no_onset_lines", without), ("outside_lines", outside)) if lines}
    return done, {"file": path.name, "events": len(kept), **left}


def put_events(recording: Recording, path: Path, label: str) -> None:
    """The events of events.tsv in place of the file's own; what they call bad is cut out of the segments too."""
    from brainfm.readers.mne_formats import good_segments

    found, said = events(path, recording.duration)
    segments, sfreq = recording.segments, recording.sfreq
    if segments is not None and sfreq and recording.signal is not None and recording.modality != "fmri":
        total = recording.signal.shape[1]
        gaps = np.diff(np.concatenate([[0], segments.ravel(), [total]]))[::2]
        starts = np.concatenate([[0], segments[:, 1]])
        cut = Events(
            np.concatenate([found.onset, starts / sfreq]), np.concatenate([found.duration, gaps / sfreq]),
            [*found.label, *["bad"] * len(gaps)],
        )  # fmt: skip
        recording.segments = good_segments(total, sfreq, cut, segments.ravel().tolist())
    if label:
        found = Events(
            np.append(found.onset, 0.0), np.append(found.duration, recording.duration), [*found.label, label],
            [*found.stimulus, ""],
        )  # fmt: skip
    recording.note("events.tsv", replaced=len(recording.events), **said)
    recording.events = found


def _number(path: Path, line: int, column: str, text: str) -> float:
    """A cell as a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path} line {line}: {column} is {text!r}; expected a number, or n/a: mend it")
    return value
