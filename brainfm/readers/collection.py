"""The recordings at a path: one file, a folder of loose files, or a BIDS dataset. No Python is needed to say so.

found = find(Path("eegmat"))
print(*found.notes, sep="\\n")
for item in found.items:
    for recording in recordings(item): ...
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from brainfm.readers import bids, detect
from brainfm.readers.request import Request
from brainfm.readers.subjects import assign, clean, rows, some
from brainfm.recording import Recording

#: Tables of subjects that are found without being named.
TABLES = ("participants.tsv", "subjects.csv", "subjects.tsv", "subject-info.csv")

#: Files beside recordings that are no recordings and need no mention.
BESIDE = (".json", ".txt", ".md", ".rst", ".html", ".pdf", ".py", ".m", ".sha256", ".url")
NAMES = ("readme", "license", "licence", "copying", "sha256sums", "md5sums", "changes", "citation.cff", "makefile")

#: Endings of images.
IMAGES = (".nii", ".nii.gz", ".gii")

#: Endings of FIF files that hold something else than a recording.
FIF_OTHERS = tuple(
    f"{dash}{word}"
    for dash in "-_"
    for word in ("epo", "ave", "evk", "cov", "fwd", "inv", "trans", "eve", "proj", "ica", "src", "bem", "sol", "morph")
)


@dataclass(frozen=True)
class Item:
    """One recording that can be read, anywhere and by itself.

    Attributes:
        key: "subject/session/run", unique among the items. path: of the file or folder that is read.
        files: everything that it is read from, sidecars and companions too; what a shard holds follows from these and
            from `request`.
        request: what its reader is told. bids_root: the BIDS dataset that it belongs to; None for loose files.
    """

    key: str
    path: Path
    files: tuple[Path, ...]
    request: Request
    bids_root: Path | None = None


@dataclass(frozen=True)
class Found:
    """What is at a path.

    Attributes:
        dataset: its name. items: the recordings, in the order of their keys.
        notes: in words, what was derived from names and what was left out.
        table: rows of the table of subjects, column → text.
    """

    dataset: str
    items: list[Item]
    notes: list[str] = field(default_factory=list)
    table: list[dict[str, str]] = field(default_factory=list)


def find(
    path: Path,
    *,
    dataset: str | None = None,
    subject: str | None = None,
    table: Path | None = None,
    modality: str | None = None,
    device: str = "",
    montage: str | None = None,
    unit: str | None = None,
    reference: str = "",
    sfreq_hz: float | None = None,
    label: str = "",
    names: tuple[str, ...] = (),
    atlas: Path | None = None,
    mask: Path | None = None,
    confounds: Path | None = None,
    variable: str | None = None,
    tracked: bool = False,
) -> Found:
    """List the recordings at `path` without reading them.

    Args:
        path: a recording, a folder of recordings at any depth, or a BIDS dataset or a part of one.
        dataset: name of the result; that of the folder where None.
        subject: where the subject stands in names of loose files ("Subject{subject}_{session}", also {run}, {label} and
            * for anything), or the id of all of them.
        table: CSV or TSV with a column that names the file or the subject, and session, run, label, age, sex ...; one
            of `TABLES` in the folder where None.
        modality: as in `Request`; files that cannot hold it are left out.
        label: condition of all recordings; in BIDS datasets {task} and {session} become those of each.
        device, montage, unit, reference, sfreq_hz, names, atlas, mask, confounds, variable, tracked: as in `Request`,
            for all recordings.

    Raises:
        FileNotFoundError: where there is nothing at `path`, or no recording.
        ValueError: where names do not say who was recorded, two recordings get the same ids, or a table does not fit.
    """
    path = Path(path)
    if not path.exists() and not path.is_symlink():
        raise FileNotFoundError(f"{path}: no such file or folder; check the path")
    if modality is not None and modality not in {m for known in detect.MODALITIES.values() for m in known}:
        raise ValueError(f"modality {modality!r}; expected eeg, meg, ieeg, fmri, spikes or calcium")
    for what, file in (("atlas", atlas), ("mask", mask), ("confounds", confounds), ("table", table)):
        if file is not None and not Path(file).is_file():
            raise FileNotFoundError(f"{what} {file}: no such file; check the path")
    single = not path.is_dir() or bool(detect.folder_reader(path))
    root = bids.root_of(path)
    home = root or (path.parent if single else path)
    key = clean(dataset or home.resolve().name) or "recordings"
    base = Request(
        dataset=key, subject="", device=device, modality=modality, montage=montage, unit=unit, reference=reference,
        sfreq_hz=sfreq_hz, label=label, names=tuple(names), atlas=atlas, mask=mask, confounds=confounds,
        variable=variable, tracked=tracked,
    )  # fmt: skip
    if root is not None and subject is None and table is None:
        runs, notes = bids.find(root, base, path)
        items = [Item(_key(request), run, files, request, root) for run, request, files in runs]
        people = root / "participants.tsv"
        about = list(rows(people).values()) if people.is_file() else []
    else:
        given, near = table is not None, (home / name for name in TABLES)
        table = table or next((file for file in near if file.is_file()), None)
        items, notes = _loose(path, home, base, subject, table, given)
        about = list(rows(table).values()) if table else []
    if not items:
        why = "; ".join(notes) or f"expected files of {', '.join(detect.FORMATS)}"
        raise FileNotFoundError(f"{path} holds no recording: {why}")
    return Found(key, sorted(items, key=lambda item: item.key), notes, about)


def recordings(item: Item) -> Iterator[Recording]:
    """Read an item: one `Recording`, as it was recorded and not cleaned.

    Raises:
        ValueError, OSError: naming the file, what was found, what was expected and what mends it.
    """
    if item.bids_root is not None:
        recording = bids.read(item.path, item.request, item.bids_root)
    else:
        recording = detect.read(item.path, item.request)
    if item.request.participant:
        recording.provenance["participant"] = dict(item.request.participant)
    recording.tracked = item.request.tracked
    yield recording


def _key(request: Request) -> str:
    return f"{request.subject}/{request.session}/{request.run}"


def _loose(
    path: Path, home: Path, base: Request, subject: str | None, table: Path | None, given: bool
) -> tuple[list[Item], list[str]]:
    """Items of files that follow no standard, and notes; `given` is whether the table was named."""
    single = home != path or bool(detect.folder_reader(path))
    extra = [p for p in (base.atlas, base.mask, base.confounds) if p is not None]
    notes: list[str] = []
    if single:
        detect.reader(path, base.modality)
        files = {path: detect.files(path)}
    else:
        apart = {p.absolute() for p in (table, *extra) if p is not None}
        files = _chosen([p for p in _walk(path, set()) if p.absolute() not in apart], base, notes)
    if not files:
        return [], notes
    stems = [p.relative_to(home).with_name(detect.stem(p)).as_posix() if p != home else p.resolve().name for p in files]
    found, said = assign(stems, subject, table, strict=given)
    items = []
    for (file, parts), ids in zip(files.items(), found, strict=True):
        request = replace(
            base, subject=ids.subject, session=ids.session, run=ids.run, label=ids.label or base.label,
            participant=ids.participant,
        )  # fmt: skip
        if base.modality in (None, "fmri") and base.confounds is None and detect.suffix(file).endswith(IMAGES):
            request = replace(request, confounds=bids.confounds(file))
        beside = [p for p in (*extra, request.confounds) if p is not None]
        items.append(Item(_key(request), file, tuple(dict.fromkeys([*parts, *beside])), request))
    return items, [*(said[:1] if single else said), *notes]


def _walk(folder: Path, seen: set[Path]) -> list[Path]:
    """Files and folders that are one recording or one other thing, at any depth; hidden ones are left out."""
    if folder.resolve() in seen:
        return []
    seen.add(folder.resolve())
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        found += _walk(path, seen) if path.is_dir() and not detect.folder_reader(path) else [path]
    return found


def _chosen(paths: list[Path], base: Request, notes: list[str]) -> dict[Path, tuple[Path, ...]]:
    """Recordings among files → all files of each. What is left out and is no sidecar is noted."""
    files = {p: detect.files(p) for p in paths if detect.known(p)}
    companions = {part for p, parts in files.items() for part in parts if part != p}
    unknown = [p for p in paths if p not in files and p not in companions and not _beside(p)]
    kept: dict[Path, tuple[Path, ...]] = {}
    left: dict[str, list[Path]] = {}
    plain = [p for p in files if p not in companions and (p.is_dir() or detect.FORMATS[detect.suffix(p)][0])]
    for path, parts in files.items():
        if path in companions or (detect.suffix(path) == ".tsv" and (plain or base.modality != "fmri")):
            continue
        if why := _not_wanted(path, base, bool(plain)):
            left.setdefault(why, []).append(path)
        else:
            kept[path] = parts
    for why, group in left.items():
        notes.append(f"left out {len(group)} {why}: {some([p.name for p in group], 8)}")
    if unknown:
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(p.suffix or p.name for p in unknown).items()))
        notes.append(f"left out {len(unknown)} of unknown format ({kinds}): {some([p.name for p in unknown], 8)}")
    if not kept and any(detect.FORMATS[detect.suffix(p)][0] == "" for p in left.get(_AMBIGUOUS, [])):
        raise ValueError(f"{some([p.name for p in left[_AMBIGUOUS]])}: {_AMBIGUOUS}")
    return kept


_AMBIGUOUS = "that may hold regions or spikes; give --modality fmri or --modality spikes to read them"


def _not_wanted(path: Path, base: Request, others: bool) -> str:
    """Why a file of a known format is no recording that was asked for, or ""."""
    module = detect.folder_reader(path) or detect.FORMATS[detect.suffix(path)][0]
    if not module and base.modality not in detect.BY_MODALITY:
        return _AMBIGUOUS if base.modality is None else f"that cannot be {base.modality}"
    module = module or detect.BY_MODALITY[base.modality or ""]
    if base.modality and base.modality not in detect.MODALITIES[module]:
        return f"that cannot be {base.modality}"
    if detect.suffix(path).startswith(".fif") and detect.stem(path).endswith(FIF_OTHERS):
        return "FIF files of epochs, averages or models, which are no recordings"
    if module == "volumes" and _still(path):
        return "images of one time"
    return ""


def _still(path: Path) -> bool:
    """Whether an image has no time axis; a broken one is left for its reader to refuse."""
    import nibabel

    broken = (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError, zlib.error, struct.error)
    try:
        image: Any = nibabel.load(path)
    except (OSError, ValueError, EOFError, OverflowError, *broken):
        return False
    return len(image.shape) < 4 or image.shape[3] == 1


def _beside(path: Path) -> bool:
    """Whether a file is the usual company of recordings."""
    name = path.name.lower()
    return path.suffix.lower() in (*BESIDE, ".tsv") or name.split(".")[0] in NAMES or name in NAMES
