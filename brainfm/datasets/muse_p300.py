"""Visual oddball with a Muse headband: rare target images among common ones evoke a P300 (EEG notebooks)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from brainfm.datasets import muse_files
from brainfm.modalities import eeg
from brainfm.recording import Recording

#: Marker → condition; an image is shown for so many seconds, and the next follows after 0.5 to 0.7 s.
LABELS = {1: "non-target", 2: "target"}
TRIAL_S = 0.3

CARD = {
    "title": "Visual oddball (P300), Muse headband",
    "modality": "eeg",
    "licence": "BSD-3-Clause (the repository that carries it)",
    "citation": "Barachant A, Banville H, et al., EEG notebooks, NeuroTechX, 2017 and 2018",
    "url": muse_files.URL,
    "simulated": False,
    "subjects": 5,
    "sfreq_hz": muse_files.SFREQ,
    "reference": "Fpz, the headband's own",
    "units": "microvolt, clipped at 1000",
    "units_source": "the headband's documentation and the amplitude of the signals",
    "caution": (
        "Stimuli follow each other after 0.5 to 0.7 s, so trials of 0.8 s overlap: neighbours may not be parted by a "
        "split at random. About one stimulus in six is a target. Bad contact drives some channels to 1000 microvolt "
        "for seconds."
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
    return muse_files.fetch(root, muse_files.checksums(Path(__file__)), local, "muse_p300")


def sources(root: Path) -> dict[str, list[Path]]:
    """`subject/session/run` → its file, without reading it."""
    return muse_files.sources(root)


def recordings(
    root: Path,
    *,
    sfreq_hz: float | None = 128.0,
    highpass_hz: float | None = 1.0,
    lowpass_hz: float | None = 30.0,
    notch_hz: float | None = None,
    subjects: list[str] | None = None,
) -> Iterator[Recording]:
    """Each file as a run of a session, with an event for each image.

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
    for key in muse_files.keys(root, subjects, "muse_p300"):
        recording = muse_files.read(root, key, "muse_p300", LABELS, TRIAL_S)
        yield eeg.clean(recording, sfreq_hz=sfreq_hz, highpass_hz=highpass_hz, lowpass_hz=lowpass_hz, notch_hz=notch_hz)
