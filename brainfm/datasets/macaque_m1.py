"""Motor cortex of a macaque that reaches: 171 neurons in bins of 50 ms with the hand's movement (Stevenson et al.)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from brainfm.datasets import download
from brainfm.readers import sorted_spikes
from brainfm.readers.request import Request
from brainfm.recording import Recording

FILE = "m1_stevenson_2011.mat"
FILES = {FILE: "cb1af830e34f5094e5c542ad4adfaca66dea05514680940016173b35fa6aad94"}
SUBJECTS = ("1",)
#: Bins of the file per second.
BINS_HZ = 20.0
#: The series of the file, and the unit that their magnitudes speak for.
UNITS = {"velocity": "m/s", "position": "m"}

CARD = {
    "title": "Primary motor cortex of a macaque during reaching, counts of sorted neurons in bins of 50 ms",
    "modality": "spikes",
    "licence": "MIT (the repository that carries it); cite the paper",
    "citation": (
        "Stevenson IH, Cherian A, London BM, Sachs NA, Lindberg E, Reimer J, Slutzky MW, Hatsopoulos NG, Miller LE, "
        "Kording KP, Statistical assessment of the stability of neural movement representations, Journal of "
        "Neurophysiology 106:764-774, 2011; the file as in KordingLab/spykesML"
    ),
    "url": "https://github.com/KordingLab/spykesML",
    "simulated": False,
    "subjects": 1,
    "neurons": 171,
    "spikes": {"1": 2352815},
    "units": (
        "the file states none: position and velocity are taken as m and m/s by their magnitude (velocity is the "
        "central difference of position), the file's times as those at which bins begin"
    ),
    "units_source": "the numbers themselves",
    "caution": (
        "spikes are counts of 50 ms: they are spread evenly inside their bin, so nothing finer than a bin is real. A "
        "session of 777 s of one animal: cut it into blocks of time with gaps between them"
    ),
}


def fetch(root: Path, local: Path | None = None) -> str:
    """Have the file in `root`; it can only come from a folder.

    Args:
        root: the dataset's folder in data/raw.
        local: the folder that holds `m1_stevenson_2011.mat`.

    Raises:
        FileNotFoundError: without a folder, or for one without the file.
    """
    return f"171 neurons, {download.from_folder(str(CARD['url']), FILES, Path(root), local, 'macaque_m1')}"


def sources(root: Path) -> dict[str, list[Path]]:
    """Subject → its file, without reading it."""
    return {"1": [Path(root) / FILE]}


def recordings(root: Path, *, subjects: list[str] | None = None) -> Iterator[Recording]:
    """The session: spikes, and the hand's "velocity" and "position" at 20 Hz, `(time, 2)`.

    The file's third axis of the hand never moves and is left out.

    Raises:
        ValueError: for a truncated file, or one with other variables.
    """
    for subject in download.chosen(SUBJECTS, subjects, "macaque_m1"):
        path, _ = download.checked(Path(root), FILE)
        request = Request(
            "macaque_m1", subject, device="motor cortex array", variable="spikes", sfreq_hz=BINS_HZ,
            names=tuple(f"n{i:03d}" for i in range(171)),
        )  # fmt: skip
        recording = sorted_spikes.read(path, request)
        recording.channels.area = ["M1"] * len(recording.channels)
        if set(recording.aligned) != set(UNITS):
            raise ValueError(
                f"{path} has the series {', '.join(recording.aligned) or 'none'} beside the spikes; expected "
                f"{', '.join(UNITS)}: delete it and fetch again"
            )
        for name, series in recording.aligned.items():
            moves = np.ptp(series.values, axis=0) > 0
            recording.aligned[name] = replace(series, values=series.values[:, moves], unit=UNITS[name])
            recording.note("leave out axes that never move", what=name, axes=np.flatnonzero(~moves).tolist())
        yield recording
