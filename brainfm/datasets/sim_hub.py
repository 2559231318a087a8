"""Simulated spikes of two animals, 300 neurons each that three hubs drive: the network of the Neuroformer paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from brainfm.datasets import simulated
from brainfm.modalities import spikes
from brainfm.recording import Recording

SUBJECTS = ["h1", "h2"]

CARD = {
    "title": "Simulated spikes: a network of 300 neurons that three hubs drive",
    "modality": "spikes",
    "licence": "CC0-1.0",
    "citation": "brainfm, simulated by brainfm.modalities.spikes after Antoniades et al. 2024",
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
    root: Path, *, seed: int = 0, subjects: list[str] | None = None, neurons: int = 300, hubs: int = 3,
    duration_s: float = 240.0, rate_hz: float = 5.0, coupling: float = 0.8,
) -> Iterator[Recording]:  # fmt: skip
    """Sessions "hub1" and "hub2" of one network, of each animal.

    Each session follows from `seed`, the animal's number and its own number alone.

    Args:
        root: the folder of `fetch`; not read.
        seed: of the whole dataset.
        subjects: which animals to simulate; all where None.
        neurons, hubs, duration_s, rate_hz, coupling: as in `brainfm.modalities.spikes.hub_network`.

    Raises:
        KeyError: for an unknown subject.
    """
    for number, subject in simulated.numbered(SUBJECTS, subjects, "sim_hub"):
        for session in (1, 2):
            yield spikes.hub_network(
                np.random.default_rng([seed, number, session]),
                neurons=neurons,
                hubs=hubs,
                duration_s=duration_s,
                rate_hz=rate_hz,
                coupling=coupling,
                dataset="sim_hub",
                subject=subject,
                session=f"hub{session}",
                network=np.random.default_rng([seed, number, 0]),
            )
