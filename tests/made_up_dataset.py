"""A dataset of text files for the tests of ingest: a module, so that worker processes can import its function."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from brainfm.recording import Channels, Recording

SUBJECTS = ["s1", "s2", "s3", "s4"]
CARD = {"licence": "CC0-1.0", "citation": "nobody"}


def fetch(root: Path) -> None:
    """One file of numbers per subject."""
    root.mkdir(parents=True, exist_ok=True)
    for number, subject in enumerate(SUBJECTS):
        values = np.random.default_rng(number).integers(-99, 99, (3, 50))
        np.savetxt(root / f"{subject}.txt", values, fmt="%d")


def sources(root: Path) -> dict[str, list[Path]]:
    """The file of each recording: two sessions of a subject lie in one."""
    return {f"{subject}/{session}": [root / f"{subject}.txt"] for subject in SUBJECTS for session in "12"}


def recordings(
    root: Path, *, gain: float = 1e-6, die_at: str = "", pause_s: float = 0.0, subjects: list[str] | None = None
) -> Iterator[Recording]:
    """Two sessions of each subject, or those named; the process is killed before the second one of `die_at`."""
    for key in subjects or sources(root):
        subject, session = key.split("/")
        time.sleep(pause_s)
        if session == "2" and subject == die_at and not (root / "spared").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        values = np.loadtxt(root / f"{subject}.txt", ndmin=2) * gain * int(session)
        yield Recording(
            dataset="made_up_dataset", subject=subject, session=session, modality="eeg", sfreq=10.0, signal=values,
            channels=Channels.make(["a", "b", "c"], "eeg"),
        )  # fmt: skip
