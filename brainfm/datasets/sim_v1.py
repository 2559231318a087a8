"""Simulated primary visual cortex of four mice that see still images; each mouse its own, and the same ones to test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from brainfm.datasets import simulated
from brainfm.modalities import gabor_population
from brainfm.recording import Recording

SUBJECTS = ["m1", "m2", "m3", "m4"]

CARD = {
    "title": "Simulated visual cortex: Gabor neurons under still images, running and gaze",
    "modality": "calcium",
    "licence": "CC0-1.0",
    "citation": "brainfm, simulated by brainfm.modalities.gabor_population",
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
    neurons: int = 80,
    energy: float = 0.5,
    images: int = 1200,
    test_images: int = 40,
    repeats: int = 10,
    height: int = 36,
    width: int = 64,
) -> Iterator[Recording]:
    """Sessions "single" (every image once) and "repeats" (the images to test, several times each) of each mouse.

    The images of "single" are the mouse's own, those of "repeats" are the same for all mice and stand in no "single".
    A mouse follows from `seed` and its number alone.

    Args:
        root: the folder of `fetch`; not read.
        seed: of the whole dataset.
        subjects: which mice to simulate; all where None.
        neurons, energy: as in `brainfm.modalities.gabor_population.draw_population`.
        images: how many each mouse sees once. test_images, repeats: how many it sees how often.
        height, width: pixels of an image.

    Raises:
        KeyError: for an unknown subject.
    """
    shared = gabor_population.dead_leaves(np.random.default_rng([seed, 1000]), test_images, height, width)
    shared_ids = [f"test{i:04d}" for i in range(test_images)]
    for number, subject in simulated.numbered(SUBJECTS, subjects, "sim_v1"):
        population = gabor_population.draw_population(np.random.default_rng([seed, number]), neurons, energy)
        own = gabor_population.dead_leaves(np.random.default_rng([seed, number, 1]), images, height, width)
        sessions = {"single": (own, [f"{subject}-{i:05d}" for i in range(images)], 1)}
        sessions["repeats"] = (shared, shared_ids, repeats)
        for part, (session, (shown, ids, often)) in enumerate(sessions.items()):
            yield gabor_population.simulate(
                np.random.default_rng([seed, number, 2 + part]),
                images=shown,
                stimulus=ids,
                repeats=often,
                population=population,
                dataset="sim_v1",
                subject=subject,
                session=session,
            )
