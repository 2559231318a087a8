"""Hippocampus of a rat that runs on a linear track: 31 sorted neurons with its position in the video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from brainfm.datasets import download
from brainfm.readers import sorted_spikes
from brainfm.readers.request import Request
from brainfm.recording import Recording

SPIKES, TRACK = "spikes.mat", "trajectory.videoPositionTracking"
FILES = {
    SPIKES: "615b05a9228a5eaea7f99d5fc5b11848a4d94fc154104612410c887875b65bc7",
    TRACK: "10a883302c50e26d5f659ac4ee08d8901f7881c71f6800cd56d999a620b31cb5",
}
SUBJECTS = ("1",)

CARD = {
    "title": "Hippocampal neurons of a rat on a linear track",
    "modality": "spikes",
    "licence": "MIT (the repository that carries it)",
    "citation": "nelpy/example-data, linear-track; recorded with Trodes, sorted with MatClust",
    "url": "https://github.com/nelpy/example-data",
    "simulated": False,
    "subjects": 1,
    "neurons": 31,
    "spikes": {"1": 28829},
    "units": (
        "spike times in seconds on the file's clock, of which 4397 s are taken off; position in pixels of a video of "
        "640 x 480, whose header gives no scale"
    ),
    "units_source": "the README beside the files and the header of the track",
    "caution": "one animal and one session of 33 min: cut it into blocks of time with gaps between them",
}


def fetch(root: Path, local: Path | None = None) -> str:
    """Have both files in `root`; they can only come from a folder.

    Args:
        root: the dataset's folder in data/raw.
        local: the folder that holds `spikes.mat` and `trajectory.videoPositionTracking`.

    Raises:
        FileNotFoundError: without a folder, or for one that lacks a file.
    """
    return f"31 neurons, {download.from_folder(str(CARD['url']), FILES, Path(root), local, 'rat_linear_track')}"


def sources(root: Path) -> dict[str, list[Path]]:
    """Subject → its files, without reading them."""
    return {"1": [Path(root) / name for name in FILES]}


def recordings(root: Path, *, subjects: list[str] | None = None) -> Iterator[Recording]:
    """The session: spikes, and "position" in pixels at 60 Hz, `(time, 2)`; NaN where the video lost the animal.

    Raises:
        ValueError: for a truncated file, or one with other variables.
        FileNotFoundError: where one of the two is missing.
    """
    root = Path(root)
    for subject in download.chosen(SUBJECTS, subjects, "rat_linear_track"):
        path, _ = download.checked(root, SPIKES)
        download.checked(root, TRACK)
        request = Request("rat_linear_track", subject, device="tetrodes", variable="spikes")
        recording = sorted_spikes.read(path, request)
        recording.channels.area = ["hippocampus"] * len(recording.channels)
        yield recording
