"""Steady-state visual evoked potentials with a Muse headband: images that flicker at 30 or at 20 Hz (EEG notebooks)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from brainfm.datasets import muse_files
from brainfm.modalities import eeg
from brainfm.recording import Recording

#: Marker → condition; each lasts so many seconds.
LABELS = {1: "30 Hz", 2: "20 Hz"}
TRIAL_S = 3.0

CARD = {
    "title": "Steady-state visual evoked potentials at 30 and 20 Hz, Muse headband",
    "modality": "eeg",
    "licence": "BSD-3-Clause (the repository that carries it)",
    "citation": "Barachant A, Banville H, et al., EEG notebooks, NeuroTechX, 2017 and 2018",
    "url": muse_files.URL,
    "simulated": False,
    "subjects": 3,
    "sfreq_hz": muse_files.SFREQ,
    "reference": "Fpz, the headband's own",
    "units": "microvolt, clipped at 1000",
    "units_source": "the headband's documentation and the amplitude of the signals",
    "caution": (
        "No electrode of the headband is over the visual cortex, and the response is small: subject 1 has a clear one "
        "behind the ears, subject 4 has none that can be seen. Some recorders plugged an electrode at POz into the "
        "auxiliary socket; it is left out here, because the files do not say who. Published scores may use it."
    ),
}


def fetch(root: Path, local: Path | None = None) -> str:
    """Have the recordings in `root`; they can only come from a folder.

    Args:
        root: the dataset's folder in data/raw.
        local: a folder with `subjectN/sessionN/*.csv` or `.csv.gz`, of any people.

    Raises:
        FileNotFoundError: without a folder, or for one without recordings.
        ValueError: for a known file with other content.
    """
    return muse_files.fetch(root, muse_files.checksums(Path(__file__)), local, "muse_ssvep")


def sources(root: Path) -> dict[str, list[Path]]:
    """`subject/session/run` → its file, without reading it."""
    return muse_files.sources(root)


def recordings(
    root: Path,
    *,
    sfreq_hz: float | None = 128.0,
    highpass_hz: float | None = 1.0,
    lowpass_hz: float | None = 45.0,
    notch_hz: float | None = None,
    subjects: list[str] | None = None,
) -> Iterator[Recording]:
    """Each file as a run of a session, with an event of 3 s for each stimulus.

    Args:
        root: the dataset's folder; any people.
        sfreq_hz: samples per second of the result; None keeps 256.
        highpass_hz, lowpass_hz: band edges; None leaves that side open. notch_hz: power line; None for no notch.
        subjects: recordings to yield, keys of `sources`; None for all that are there.

    Raises:
        ValueError: for a truncated file, or one that is no recording of this kind.
        FileNotFoundError: for a missing file, when its turn comes.
    """
    root = Path(root)
    for key in muse_files.keys(root, subjects, "muse_ssvep"):
        recording = muse_files.read(root, key, "muse_ssvep", LABELS, TRIAL_S)
        yield eeg.clean(recording, sfreq_hz=sfreq_hz, highpass_hz=highpass_hz, lowpass_hz=lowpass_hz, notch_hz=notch_hz)
