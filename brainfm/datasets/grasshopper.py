"""Spikes of a grasshopper's auditory receptor with the sound it heard, two stimuli of 10 s."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from brainfm.datasets import download
from brainfm.modalities.filters import rational, resample
from brainfm.recording import Channels, Events, Recording, Series

FOLDER = "nitime/data"
FILES = {
    f"{FOLDER}/grasshopper_spike_times1.txt": "840014ad9a8f591d02ab108bcbd46715badb3459e0ef7eac95fdd661ff134e3d",
    f"{FOLDER}/grasshopper_spike_times2.txt": "389e5dccb709fbe0552589ff2e0b64e15d46665e4d2d4172071f2175c8641541",
    f"{FOLDER}/grasshopper_stimulus1.txt": "4b47a4cbca8c5f694f87dd510db608a868dffbaba96845199c8afa545a4c37fa",
    f"{FOLDER}/grasshopper_stimulus2.txt": "69f257a8e7a5019897111b07f9cd317b136357d256e99682d40c09d5add18e6a",
}
SUBJECTS = ("1",)
#: Samples per second of the stimulus, and the stretch that is played, in seconds.
SFREQ, DURATION_S = 20_000.0, 10.0

CARD = {
    "title": "Auditory receptor neuron of the grasshopper Locusta migratoria",
    "modality": "spikes",
    "licence": "BSD-3-Clause (the package that carries it); cite the paper",
    "citation": (
        "Rokem A, Watzl S, Gollisch T, Stemmler M, Herz AVM, Samengo I, Spike-timing precision underlies the coding "
        "efficiency of auditory receptor neurons, Journal of Neurophysiology 95:2541-2552, 2006; CRCNS ia-1"
    ),
    "url": "https://crcns.org/data-sets/ia/ia-1",
    "simulated": False,
    "subjects": 1,
    "neurons": 1,
    "spikes": {"stimulus1": 929, "stimulus2": 868},
    "units": (
        "spike times and stimulus times in microseconds, stimulus sampled every 50 us: the envelope of a tone at the "
        "cell's best frequency, Gaussian noise in decibels with a cut-off of 200 Hz (stimulus 1) and 800 Hz "
        "(stimulus 2); the loudest sample is the intensity that the spike file's header gives, in dB SPL"
    ),
    "units_source": (
        "nitime's event-related example, the files' headers, and the spacing of the stimulus' own time column"
    ),
}


def fetch(root: Path, local: Path | None = None) -> str:
    """Have the four text files in `root`; the wheel differs by platform, so their own checksums are pinned.

    Args:
        root: the dataset's folder in data/raw.
        local: a folder that holds a wheel of nitime 0.12.1; None to ask pip.
    """
    return f"1 neuron, 2 stimuli, {download.wheel('nitime', '0.12.1', (), FILES, Path(root), local=local)}"


def sources(root: Path) -> dict[str, list[Path]]:
    """Subject → its files, without reading them."""
    return {"1": [Path(root) / name for name in FILES]}


def recordings(root: Path, *, stimulus_hz: float = 1000.0, subjects: list[str] | None = None) -> Iterator[Recording]:
    """One recording per stimulus: the spikes, the loudness as `aligned["stimulus"]`, and one event that names it.

    Args:
        root: the dataset's folder.
        stimulus_hz: samples per second of the loudness, low-pass filtered from 20 kHz.
        subjects: ids to yield; None for all.

    Raises:
        ValueError: for a truncated file, or `stimulus_hz` outside 1 to 20000.
    """
    if not 1 <= stimulus_hz <= SFREQ:
        raise ValueError(f"stimulus_hz is {stimulus_hz:g}; expected 1 to {SFREQ:g}")
    root = Path(root)
    for subject in download.chosen(SUBJECTS, subjects, "grasshopper"):
        for number in ("1", "2"):
            yield _read(root, subject, number, stimulus_hz)


def _read(root: Path, subject: str, number: str, stimulus_hz: float) -> Recording:
    spike_name, sound_name = (f"{FOLDER}/grasshopper_{what}{number}.txt" for what in ("spike_times", "stimulus"))
    spike_path, spike_digest = download.checked(root, spike_name)
    sound_path, sound_digest = download.checked(root, sound_name)
    time = np.sort(_numbers(spike_path, 1)[:, 0]) * 1e-6
    sound = _numbers(sound_path, 2)
    expected = round(DURATION_S * SFREQ)
    if len(sound) != expected or len(time) == 0 or time[-1] >= DURATION_S:
        raise ValueError(
            f"{sound_path}: {len(sound)} samples and {len(time)} spikes; expected {expected} samples and spikes inside "
            f"{DURATION_S:g} s: delete the file and fetch again"
        )
    peak_db = _intensity(spike_path)
    decibel = peak_db + 20 * np.log10(sound[:, 1] / sound[:, 1].max())
    loudness = resample(decibel[None], rational(stimulus_hz, SFREQ))[0]
    recording = Recording(
        dataset="grasshopper",
        subject=subject,
        session=f"stimulus{number}",
        modality="spikes",
        device="sharp electrode",
        channels=Channels.make(["receptor 1"], "neuron", area=["auditory receptor"]),
        spike_time=time,
        spike_neuron=np.zeros(len(time), np.int64),
        duration=DURATION_S,
        events=Events(np.zeros(1), np.array([DURATION_S]), [f"stimulus{number}"], [f"grasshopper-stimulus{number}"]),
        aligned={"stimulus": Series(loudness[:, None], float(stimulus_hz), "dB SPL")},
        tracked=True,  # one cell under both stimuli
        provenance={"files": {spike_name: spike_digest, sound_name: sound_digest}, "steps": []},
    )
    recording.note("amplitude_to_decibel", peak_db=peak_db)
    recording.note("resample", what="stimulus", from_hz=SFREQ, to_hz=stimulus_hz)
    return recording


def _numbers(path: Path, columns: int) -> np.ndarray:
    try:
        values = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise ValueError(
            f"{path} is truncated or not a table of numbers ({error}); delete it and fetch again"
        ) from error
    if values.shape[1] != columns:
        raise ValueError(f"{path} has {values.shape[1]} columns; expected {columns}: delete it and fetch again")
    return values


def _intensity(path: Path) -> float:
    """The loudest level in dB SPL from the header of a file of spike times."""
    for line in path.read_text().splitlines():
        if line.startswith("# intensity (dB):"):
            return float(line.rsplit(":", 1)[1])
    raise ValueError(f"{path} has no header line '# intensity (dB):'; delete it and fetch again")
