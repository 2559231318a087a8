"""EEG at rest and during mental arithmetic, 36 people (PhysioNet EEGMAT 1.0.0)."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from brainfm.datasets import download
from brainfm.modalities import eeg, units
from brainfm.readers import edf
from brainfm.readers.request import Request
from brainfm.recording import Events, Recording

URL = "https://physionet.org/files/eegmat/1.0.0/"
#: File number → session and label of the whole recording.
SESSIONS = {"1": ("rest", "rest"), "2": ("task", "arithmetic")}
INFO = "subject-info.csv"

CARD = {
    "title": "EEG during mental arithmetic tasks",
    "modality": "eeg",
    "licence": "Open Data Commons Attribution License v1.0",
    "citation": (
        "Zyma I, Tukaev S, Seleznov I, Kiyono K, Popov A, Chernykh M, Shpenkov O, Electroencephalograms during mental "
        "arithmetic task performance, Data 4(1):14, 2019; Goldberger A et al., PhysioNet, Circulation 101:e215, 2000"
    ),
    "url": "https://physionet.org/content/eegmat/1.0.0/",
    "simulated": False,
    "subjects": 36,
    "sfreq_hz": 500.0,
    "reference": "linked ears, as recorded; ECG left out",
    "caution": (
        "a person's rest always precedes the task, so a split inside a person mixes condition with time: "
        "split by person"
    ),
}


def checksums() -> dict[str, str]:
    """File name → sha256 of all 36 people's files."""
    lines = Path(__file__).with_suffix(".sha256").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines if line.strip())}


def fetch(root: Path, local: Path | None = None) -> str:
    """Have the recordings in `root`.

    Args:
        root: the dataset's folder in data/raw.
        local: a folder that holds the EDF files of some or all people, and `subject-info.csv` if it is there.
    """
    root = Path(root)
    said = download.files(URL, checksums(), root, local, key="eegmat")
    if local is not None and (Path(local) / INFO).is_file():
        (root / INFO).write_bytes((Path(local) / INFO).read_bytes())
    return f"{len({key.split('/')[0] for key in sources(root)})} of 36 people, {said}"


def sources(root: Path) -> dict[str, list[Path]]:
    """`subject/session` → its file that is there or that the manifest lists, without reading it."""
    root = Path(root)
    names = {p.name for p in root.glob("Subject*_*.edf")} | set(download.listed(root))
    found: dict[str, list[Path]] = {}
    for name in sorted(names):
        if match := re.fullmatch(r"Subject(\d+)_([12])\.edf", name):
            found[f"{match[1]}/{SESSIONS[match[2]][0]}"] = [root / name]
    return found


def recordings(
    root: Path,
    *,
    sfreq_hz: float | None = 128.0,
    highpass_hz: float | None = 0.5,
    lowpass_hz: float | None = 45.0,
    notch_hz: float | None = None,
    subjects: list[str] | None = None,
) -> Iterator[Recording]:
    """Rest and task of each person as recordings of their own, with one event over the whole of each.

    Args:
        root: the dataset's folder; any subset of the people.
        sfreq_hz: samples per second of the result; None keeps 500.
        highpass_hz, lowpass_hz: band edges; None leaves that side open.
        notch_hz: power line frequency; None for no notch.
        subjects: recordings to yield, keys of `sources` such as "00/rest"; None for all that are there.

    Raises:
        ValueError: for a truncated file or one without the 10-20 channels.
        FileNotFoundError: for a missing file, when its person's turn comes.
    """
    root = Path(root)
    info = subject_info(root)
    known = sources(root)
    if not known:
        raise FileNotFoundError(f"{root} holds no SubjectNN_1.edf; run: brainfm fetch eegmat, or with --from FOLDER")
    for key in download.chosen(known, subjects, "eegmat"):
        subject, session = key.split("/")
        recording = _read(root, known[key][0].name, subject, session, info.get(subject, {}))
        yield eeg.clean(recording, sfreq_hz=sfreq_hz, highpass_hz=highpass_hz, lowpass_hz=lowpass_hz, notch_hz=notch_hz)


def subject_info(root: Path) -> dict[str, dict[str, str]]:
    """Subject → age in years and sex, from `subject-info.csv` where it is there."""
    path = Path(root) / INFO
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [r for r in csv.DictReader(file) if (r.get("Subject") or "").startswith("Subject")]
    about = {"age_years": "Age", "sex": "Gender"}
    return {r["Subject"].removeprefix("Subject"): {k: r.get(column) or "" for k, column in about.items()} for r in rows}


def _read(root: Path, name: str, subject: str, session: str, participant: dict[str, str]) -> Recording:
    """One EDF file with its 10-20 channels, in volt and as recorded."""
    path, _ = download.checked(root, name)
    request = Request(
        "eegmat", subject, session, device="neurocom-23", reference="linked ears", participant=participant
    )
    try:
        recording = edf.read(path, request)
    except ValueError as error:
        raise ValueError(f"{error}; or delete it and fetch it again") from error
    units.plausible(recording)
    if not recording.channels.placed.count("montage"):
        raise ValueError(f"{path} has channels {', '.join(recording.channels.name[:5])} ...; expected 10-20 names")
    label = {word: label for word, label in SESSIONS.values()}[session]
    # the files' own annotations repeat the length of the recording and say nothing of the task
    recording.events = Events(np.zeros(1), np.array([recording.duration]), [label])
    return recording
