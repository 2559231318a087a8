"""Simulated MEG of twelve people imagining their left or right hand, in three kinds of sensor array."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from brainfm.datasets import simulated
from brainfm.modalities import head, meg
from brainfm.recording import Recording

SUBJECTS = [f"s{number:02d}" for number in range(1, 13)]

CARD = {
    "title": "Simulated motor imagery MEG: dipoles in a spherical head, three arrays",
    "modality": "meg",
    "licence": "CC0-1.0",
    "citation": "brainfm, simulated by brainfm.modalities.meg.simulate",
    "url": "",
    "simulated": True,
    "subjects": len(SUBJECTS),
}


def fetch(root: Path, local: Path | None = None) -> str:
    """Make the folder `root` with a manifest that says that nothing was recorded; `local` is not needed."""
    return simulated.fetch(root, str(CARD["title"]))


def sources(root: Path) -> dict[str, list[Path]]:
    """The files of each subject: none."""
    return {subject: [] for subject in SUBJECTS}


def recordings(
    root: Path,
    *,
    seed: int = 0,
    subjects: list[str] | None = None,
    trials: int = 60,
    trial_s: float = 2.0,
    pause_s: float = 1.0,
    sfreq_hz: float = 128.0,
    effect: float = 1.0,
    blinks_per_min: float = 3.0,
) -> Iterator[Recording]:
    """One recording of each person; each follows from `seed` and the person's number alone.

    Args:
        root: the folder of `fetch`; not read.
        seed: of the whole dataset.
        subjects: whom to simulate; all where None.
        trials, trial_s, pause_s, sfreq_hz, effect, blinks_per_min: as in `brainfm.modalities.meg.simulate`.

    Raises:
        KeyError: for an unknown subject.
    """
    for number, subject in simulated.numbered(SUBJECTS, subjects, "sim_meg"):
        yield meg.simulate(
            np.random.default_rng([seed, number]),
            array=list(head.ARRAYS)[number % len(head.ARRAYS)],
            dataset="sim_meg",
            subject=subject,
            trials=trials,
            trial_s=trial_s,
            pause_s=pause_s,
            sfreq_hz=sfreq_hz,
            effect=effect,
            blinks_per_min=blinks_per_min,
        )
