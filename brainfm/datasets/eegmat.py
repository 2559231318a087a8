"""EEG at rest and during mental arithmetic, 36 people (PhysioNet EEGMAT 1.0.0)."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from brainfm.datasets import download
from brainfm.modalities import eeg, electrodes
from brainfm.recording import Channels, Events, Recording

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
    return f"{len(sources(root))} of 36 people, {said}"


def sources(root: Path) -> dict[str, list[Path]]:
    """Subject → its files that are there or that the manifest lists, without reading them."""
    root = Path(root)
    names = {p.name for p in root.glob("Subject*_*.edf")} | set(download.listed(root))
    found: dict[str, list[Path]] = {}
    for name in sorted(names):
        if match := re.fullmatch(r"Subject(\d+)_([12])\.edf", name):
            found.setdefault(match[1], []).append(root / name)
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
        subjects: ids to yield, for example "00"; None for all that are there.

    Raises:
        ValueError: for a truncated file or one without the 10-20 channels.
        FileNotFoundError: for a missing file, when its person's turn comes.
    """
    root = Path(root)
    info = subject_info(root)
    people = sources(root)
    if not people:
        raise FileNotFoundError(f"{root} holds no SubjectNN_1.edf; run: brainfm fetch eegmat, or with --from FOLDER")
    for subject in download.chosen(people, subjects, "eegmat"):
        for path in people[subject]:
            recording = _read(root, path.name, subject)
            if subject in info:
                recording.provenance["subject_info"] = info[subject]
            yield eeg.clean(
                recording, sfreq_hz=sfreq_hz, highpass_hz=highpass_hz, lowpass_hz=lowpass_hz, notch_hz=notch_hz
            )


def subject_info(root: Path) -> dict[str, dict]:
    """Subject → age in years and sex, from `subject-info.csv` where it is there."""
    path = Path(root) / INFO
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [r for r in csv.DictReader(file) if (r.get("Subject") or "").startswith("Subject")]
    return {r["Subject"].removeprefix("Subject"): {"age_years": r.get("Age"), "sex": r.get("Gender")} for r in rows}


def _read(root: Path, name: str, subject: str) -> Recording:
    """One EDF file with its 10-20 channels, in volt and as recorded."""
    import mne

    path, digest = download.checked(root, name)
    mend = "delete it and fetch it again"
    _check_length(path, mend)
    try:
        raw = mne.io.read_raw_edf(path, preload=True, verbose="error")
    except (ValueError, RuntimeError, OSError, IndexError, AssertionError) as error:
        raise ValueError(f"{path} cannot be read as EDF ({error}); {mend}") from error
    place = electrodes.template()
    short = {c: c.removeprefix("EEG ").strip() for c in raw.ch_names}
    kept = [c for c in raw.ch_names if short[c] in place and short[c] not in ("A1", "A2")]
    if not kept:
        raise ValueError(
            f"{path} has channels {', '.join(raw.ch_names[:5])} ...; expected 10-20 names such as 'EEG Fp1'"
        )
    signal = raw.get_data(picks=kept)
    session, label = SESSIONS[name.rsplit("_", 1)[1][0]]
    names = [short[c] for c in kept]
    return Recording(
        dataset="eegmat",
        subject=subject,
        session=session,
        modality="eeg",
        device="neurocom-23",
        channels=Channels.make(names, "eeg", np.array([place[n] for n in names])),
        sfreq=float(raw.info["sfreq"]),
        signal=signal,
        events=Events(np.zeros(1), np.array([signal.shape[1] / raw.info["sfreq"]]), [label]),
        provenance={"files": {name: digest}, "steps": [], "reader": f"mne {mne.__version__}"},
    )


def _check_length(path: Path, mend: str) -> None:
    """Compare an EDF file's size with what its header announces; readers pad or cut a truncated file in silence."""
    with path.open("rb") as file:
        head = file.read(256)
        try:
            size, records, signals = int(head[184:192]), int(head[236:244]), int(head[252:256])
            file.seek(256 + 216 * signals)
            samples = sum(int(file.read(8)) for _ in range(signals))
        except ValueError as error:
            raise ValueError(f"{path} has no whole EDF header ({error}); {mend}") from error
    expected, got = size + records * samples * 2, path.stat().st_size
    if records < 1 or got < expected:
        raise ValueError(f"{path} has {got} bytes; its header announces {expected} ({records} records): {mend}")
