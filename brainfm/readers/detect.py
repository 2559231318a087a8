"""Which reader a path is for: by suffix, by what lies in a folder, and by modality where a suffix does not say."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path

from brainfm.readers.request import Request
from brainfm.recording import Recording

#: Suffix → module of `brainfm.readers` ("" where the modality decides) and what the format is.
FORMATS = {
    ".edf": ("edf", "EDF or EDF+"),
    ".bdf": ("edf", "BioSemi BDF"),
    ".vhdr": ("brainvision", "BrainVision header, with .vmrk and .eeg beside it"),
    ".set": ("mne_formats", "EEGLAB, with .fdt beside it"),
    ".fif": ("mne_formats", "Neuromag/MNE FIF, split files too"),
    ".fif.gz": ("mne_formats", "Neuromag/MNE FIF, compressed"),
    ".ds": ("mne_formats", "CTF folder"),
    ".con": ("mne_formats", "KIT/Yokogawa"),
    ".sqd": ("mne_formats", "KIT/Yokogawa"),
    ".mff": ("mne_formats", "EGI/Philips folder"),
    ".gdf": ("mne_formats", "general data format"),
    ".cnt": ("mne_formats", "Neuroscan or ANT continuous"),
    ".raw": ("mne_formats", "EGI simple binary"),
    ".eeg": ("mne_formats", "Nihon Kohden, with .21e, .pnt and .log beside it"),
    ".data": ("mne_formats", "Nicolet, with .head beside it"),
    ".lay": ("mne_formats", "Persyst layout, with .dat beside it"),
    ".cdt": ("mne_formats", "Curry 8, with .cdt.dpa or .cdt.dpo beside it"),
    ".dap": ("mne_formats", "Curry 7, with .dat and .rs3 beside it"),
    ".nxe": ("mne_formats", "Eximia"),
    ".nedf": ("mne_formats", "Neuroelectrics"),
    ".mefd": ("mne_formats", "MEF3 folder"),
    ".nii": ("volumes", "NIfTI images"),
    ".nii.gz": ("volumes", "NIfTI images, compressed"),
    ".func.gii": ("surfaces", "GIFTI time series"),
    ".dtseries.nii": ("surfaces", "CIFTI dense time series"),
    ".ptseries.nii": ("surfaces", "CIFTI parcellated time series"),
    ".nwb": ("nwb", "Neurodata Without Borders"),
    ".mat": ("", "MATLAB: regions or spikes"),
    ".npz": ("", "NumPy arrays: regions or spikes"),
    ".npy": ("", "NumPy array: regions or spikes"),
    ".h5": ("", "HDF5: regions or spikes"),
    ".hdf5": ("", "HDF5: regions or spikes"),
    ".csv": ("", "table: regions or spikes"),
    ".tsv": ("", "table: regions or spikes"),
}

#: Suffix → endings of the files that belong to a recording beside it, under the same stem.
BESIDE = {
    ".set": (".fdt",), ".eeg": (".21e", ".pnt", ".log"), ".data": (".head",), ".lay": (".dat",),
    ".cdt": (".cdt.dpa", ".cdt.dpo", ".cdt.ceo", ".cef", ".ceo"), ".dap": (".dat", ".rs3", ".cef", ".ceo"),
}  # fmt: skip

#: Suffixes of folders that are one recording.
FOLDERS = (".ds", ".mff", ".mefd")

#: Suffixes that end like a known one and hold something else.
OTHERS = (".dscalar.nii", ".dlabel.nii", ".dconn.nii", ".pscalar.nii", ".plabel.nii", ".pconn.nii")

#: Modality → reader of the suffixes that do not say what they hold.
BY_MODALITY = {"fmri": "roi_tables", "spikes": "sorted_spikes"}

#: Reader → modalities that its formats can hold.
MODALITIES = {
    "edf": ("eeg", "ieeg", "meg"), "brainvision": ("eeg", "ieeg", "meg"), "mne_formats": ("eeg", "meg", "ieeg"),
    "volumes": ("fmri",), "surfaces": ("fmri",), "roi_tables": ("fmri",), "sorted_spikes": ("spikes",),
    "nwb": ("eeg", "ieeg", "meg", "spikes", "calcium"), "suite2p": ("calcium",),
}  # fmt: skip

#: A tag at the start of a file: a web page, or XML, which only GIFTI is allowed to be.
_MARKUP = re.compile(rb"\s*<[!?a-z]", re.IGNORECASE)
_PAGE = re.compile(
    rb"\s*(<\?xml[^>]*>\s*)?(<!--(?:(?!-->).)*-->\s*)*<(!doctype\s+html|html|head|body)", re.IGNORECASE | re.DOTALL
)


def suffix(path: Path) -> str:
    """The longest known suffix that the path's name ends in, in lower case, or ""."""
    name = path.name.lower()
    if name.endswith(OTHERS):
        return ""
    return max((known for known in FORMATS if name.endswith(known)), key=len, default="")


def stem(path: Path) -> str:
    """The path's name without its known suffix."""
    return path.name[: -len(suffix(path)) or None]


def folder_reader(path: Path) -> str:
    """The reader of a folder that is one recording, or "" where it is a folder of other things."""
    if not path.is_dir():
        return ""
    if suffix(path) in FOLDERS:
        return "mne_formats"
    inside = {p.name for p in path.iterdir()}
    if {"F.npy", "Fneu.npy"} <= inside:
        return "suite2p"
    if "spike_times.npy" in inside and inside & {"spike_clusters.npy", "spike_templates.npy"}:
        return "sorted_spikes"
    if "config" in inside and any(",rf" in name for name in inside):
        return "mne_formats"
    return ""


def known(path: Path) -> bool:
    """Whether there is a reader for the path, given the modality where its suffix alone does not say."""
    return bool(folder_reader(path)) if path.is_dir() else suffix(path) not in ("", *FOLDERS)


def reader(path: Path, modality: str | None = None) -> str:
    """The module of `brainfm.readers` that reads the path.

    Raises:
        FileNotFoundError: where there is nothing at the path.
        ValueError: for an unknown format, one that does not say what it holds, or one that cannot hold the modality.
    """
    if not path.exists():
        mend = "it is a link to content that is not here; get it, for example with `datalad get`"
        raise FileNotFoundError(f"{path}: {mend if path.is_symlink() else 'no such file or folder; check the path'}")
    if not known(path):
        kinds = ", ".join(FORMATS)
        raise ValueError(
            f"{path}: unknown format; expected one of {kinds}, or a BTi, suite2p plane or Kilosort folder: convert it"
        )
    module = folder_reader(path) or FORMATS[suffix(path)][0] or BY_MODALITY.get(modality or "", "")
    choice = "--modality fmri (a table of regions) or --modality spikes"
    if not module:
        got = f"and modality {modality!r} does not settle it" if modality else "and no modality is given"
        raise ValueError(f"{path}: a {suffix(path)} file may hold regions or spikes, {got}; give {choice}")
    if modality and modality not in MODALITIES[module]:
        raise ValueError(
            f"{path}: modality {modality!r} asked for; this format holds {' or '.join(MODALITIES[module])}: change it"
        )
    return module


def read(path: Path, request: Request) -> Recording:
    """Read one recording with the reader of its format.

    Raises:
        FileNotFoundError: where there is nothing at the path.
        ValueError: for an unknown format, an empty file or a web page in place of data, and what the reader refuses.
    """
    path = Path(path)
    module = reader(path, request.modality)
    for file in files(path):
        if file.is_file():
            _refuse_page(file, strict=file == path and not path.name.lower().endswith(".gii"))
    recording: Recording = importlib.import_module(f"brainfm.readers.{module}").read(path, request)
    return recording


def files(path: Path) -> tuple[Path, ...]:
    """Everything that the recording at `path` is read from: the file itself first, and its companions."""
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        if folder_reader(path) in ("suite2p", "sorted_spikes"):
            inside = [p for p in inside if p.parent == path and p.suffix in (".npy", ".tsv", ".csv", ".py")]
        return tuple(inside)
    ending = suffix(path)
    if ending == ".vhdr":
        return path, *_brainvision_parts(path)
    if ending in BESIDE:
        names = {stem(path).lower() + more for more in BESIDE[ending]}
        return path, *sorted(p for p in path.parent.iterdir() if p.name.lower() in names)
    if ending == ".func.gii":
        return path, *_right_hemisphere(path)
    if FORMATS.get(ending, ("?",))[0] == "":
        tracks = sorted(path.parent.glob("*.videoPositionTracking"))
        return path, *(tracks if len(tracks) == 1 else [])
    if ending in (".fif", ".fif.gz"):
        return path, *_fif_parts(path)
    return (path,)


def _brainvision_parts(path: Path) -> list[Path]:
    """The marker and data files that a BrainVision header names."""
    try:
        text = path.read_bytes()[:65536].decode("latin-1")
    except OSError:
        return []
    named = re.findall(r"^(?:DataFile|MarkerFile)[ \t]*=[ \t]*(\S[^\r\n]*)", text, re.MULTILINE)
    names = [name.strip().replace("$b", path.stem) for name in named]
    return [path.parent / name for name in names if len(os.fsencode(name)) < 256]  # longer ones are no files


def _right_hemisphere(path: Path) -> list[Path]:
    """The right side, which is read with the left one."""
    from brainfm.readers.surfaces import SIDES

    others = [path.with_name(path.name.replace(left, right)) for left, right in SIDES]
    return [other for other in others if other != path and other.is_file()][:1]


def _fif_parts(path: Path) -> list[Path]:
    """The further files of a FIF recording that was split for its size."""
    import mne

    base, ending = stem(path), path.name[len(stem(path)) :]
    next_names = {f"{base}-1{ending}", re.sub(r"_split-(0*)1_", r"_split-\g<1>2_", base) + ending} - {path.name}
    if not any((path.parent / name).exists() for name in next_names):
        return []
    try:
        raw = mne.io.read_raw_fif(path, on_split_missing="ignore", verbose="error")
    except (ValueError, OSError, RuntimeError, IndexError, KeyError, TypeError, AttributeError):
        return []  # a broken file: reading it says what is wrong
    return [path.parent / Path(name).name for name in raw.filenames[1:]]


def _refuse_page(file: Path, strict: bool) -> None:
    """Refuse an empty file, a web page and the pointer that stands for a large file that was not fetched."""
    with file.open("rb") as opened:
        head = opened.read(1024).removeprefix(b"\xef\xbb\xbf")
    if not head and strict:
        raise ValueError(f"{file} is empty (0 bytes): download it again")
    if (_MARKUP if strict else _PAGE).match(head):
        raise ValueError(f"{file}: it is a web page, not data: download it again")
    if head.startswith((b"version https://git-lfs", b"/annex/objects/")):
        raise ValueError(f"{file} is a pointer to data that is not here: get it with `git lfs pull` or `datalad get`")
