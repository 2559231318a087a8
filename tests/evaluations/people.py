"""Simulated people for tests of comparisons: trials of a second, "left" with a rhythm of 10 Hz in the first channel."""

from __future__ import annotations

import numpy as np

from brainfm.recording import Channels, Events, Recording

SFREQ, NAMES = 64.0, ("C3", "Cz", "C4", "Pz")


def person(
    name: str, rng: np.random.Generator, *, trials: int = 24, gain: float = 4.0, session: str = "", device: str = "cap",
    dataset: str = "sim", participant: dict[str, str] | None = None, reach_s: float = 0.0,
) -> Recording:  # fmt: skip
    """One recording; `gain` is the rhythm's amplitude in units of the noise's deviation."""
    label = ["left" if i % 2 else "right" for i in range(trials)]
    time = np.arange(int(trials * SFREQ)) / SFREQ
    signal = rng.normal(size=(len(NAMES), len(time)))
    rhythm = np.sin(2 * np.pi * 10 * time + rng.uniform(0, 6))
    signal[0] += gain * rhythm * np.repeat(np.array(label) == "left", int(SFREQ))
    place = np.random.default_rng(3).normal(scale=0.05, size=(len(NAMES), 3))
    return Recording(
        dataset, name, "eeg", Channels.make(list(NAMES), "eeg", place), session=session, device=device, sfreq=SFREQ,
        signal=signal * 1e-5, events=Events(np.arange(trials, dtype=float), np.ones(trials), label), simulated=True,
        provenance={"participant": participant} if participant else {}, reach_s=reach_s,
    )  # fmt: skip
