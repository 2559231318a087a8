"""Simulated calcium imaging of three animals that reach: a motor population through an indicator, or what it tells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from brainfm.datasets import simulated
from brainfm.modalities import calcium, cleaning, spikes
from brainfm.recording import Recording

SUBJECTS = ["c1", "c2", "c3"]

CARD = {
    "title": "Simulated calcium imaging: cosine-tuned reaching through a fast indicator",
    "modality": "calcium",
    "licence": "CC0-1.0",
    "citation": "brainfm, simulated by brainfm.modalities.calcium",
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
    neurons: int = 60,
    duration_s: float = 300.0,
    behaviour_hz: float = 50.0,
    sfreq_hz: float = 30.0,
    rise_s: float = 0.05,
    decay_s: float = 0.25,
    noise: float = 0.1,
    clean: Sequence[cleaning.Step] = (),
) -> Iterator[Recording]:
    """One session of each animal, which follows from `seed` and its number alone.

    Args:
        root: the folder of `fetch`; not read.
        seed: of the whole dataset.
        subjects: which animals to simulate; all where None.
        neurons, duration_s, behaviour_hz: as in `brainfm.modalities.spikes.reaching`.
        sfreq_hz, rise_s, decay_s, noise: as in `brainfm.modalities.calcium.observe`.
        clean: steps of `brainfm.modalities.cleaning`; with `infer_events` the recordings are events.

    Raises:
        KeyError: for an unknown subject.
    """
    for number, subject in simulated.numbered(SUBJECTS, subjects, "sim_calcium"):
        firing = spikes.reaching(
            np.random.default_rng([seed, number]),
            neurons=neurons,
            duration_s=duration_s,
            behaviour_hz=behaviour_hz,
            dataset="sim_calcium",
            subject=subject,
        )
        seen = calcium.observe(
            np.random.default_rng([seed, number, 1]), firing, sfreq_hz=sfreq_hz, rise_s=rise_s, decay_s=decay_s,
            noise=noise,
        )  # fmt: skip
        yield cleaning.clean(seen, clean)
