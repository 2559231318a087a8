"""Simulated spikes of four animals: a motor population that reaches, twice, and a network that a few hubs drive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from brainfm.datasets import simulated
from brainfm.modalities import spikes
from brainfm.recording import Recording

SUBJECTS = ["a1", "a2", "a3", "a4"]

CARD = {
    "title": "Simulated spikes: cosine-tuned reaching and a hub network",
    "modality": "spikes",
    "licence": "CC0-1.0",
    "citation": "brainfm, simulated by brainfm.modalities.spikes",
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
    reach_neurons: int = 60,
    reach_s: float = 150.0,
    behaviour_hz: float = 50.0,
    hub_neurons: int = 60,
    hubs: int = 3,
    hub_s: float = 240.0,
    rate_hz: float = 5.0,
    coupling: float = 0.8,
) -> Iterator[Recording]:
    """Sessions "reach1" and "reach2" of one population and "hub1" and "hub2" of one network, of each animal.

    Each session follows from `seed`, the animal's number and its own number alone.

    Args:
        root: the folder of `fetch`; not read.
        seed: of the whole dataset.
        subjects: which animals to simulate; all where None.
        reach_neurons, reach_s, behaviour_hz: as in `brainfm.modalities.spikes.reaching`.
        hub_neurons, hubs, hub_s, rate_hz, coupling: as in `brainfm.modalities.spikes.hub_network`.

    Raises:
        KeyError: for an unknown subject.
    """
    for number, subject in simulated.numbered(SUBJECTS, subjects, "sim_spikes"):
        tuning = spikes.draw_tuning(np.random.default_rng([seed, number]), reach_neurons)
        for session in (1, 2):
            yield spikes.reaching(
                np.random.default_rng([seed, number, session]),
                duration_s=reach_s,
                behaviour_hz=behaviour_hz,
                tuning=tuning,
                dataset="sim_spikes",
                subject=subject,
                session=f"reach{session}",
            )
        for session in (1, 2):
            yield spikes.hub_network(
                np.random.default_rng([seed, number, 2 + session]),
                neurons=hub_neurons,
                hubs=hubs,
                duration_s=hub_s,
                rate_hz=rate_hz,
                coupling=coupling,
                dataset="sim_spikes",
                subject=subject,
                session=f"hub{session}",
                network=np.random.default_rng([seed, number, 5]),
            )
