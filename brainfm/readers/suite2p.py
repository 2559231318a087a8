"""A plane of suite2p → `Recording`: dF/F of the ROIs that are cells.

`F.npy`, `Fneu.npy`, `spks.npy` and `iscell.npy` are plain arrays. `ops.npy` and `stat.npy` are pickles, which can run
any code when they are opened: they are never opened, so the frame rate comes from the request and ROIs have no place.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from brainfm.checksums import sha256
from brainfm.modalities import calcium
from brainfm.readers.request import Request
from brainfm.readers.variables import variables
from brainfm.recording import ChannelNote, Channels, Events, Recording, Series

#: The share of the surrounding neuropil's fluorescence that is taken from a ROI's.
NEUROPIL = 0.7


def read(path: Path, request: Request, *, window_s: float = 60.0, percentile: float = 8.0) -> Recording:
    """dF/F of `F - 0.7 Fneu` for the ROIs that `iscell.npy` calls cells (all, where it is missing).

    suite2p's deconvolved traces come along as `aligned["deconvolved"]` `(time, neuron)`, the same neurons in the same
    order as the channels: they are an estimate of activity in arbitrary units, not spikes.

    Args:
        path: the folder of a plane, or one that holds a single `plane*` folder.
        request: `sfreq_hz` is needed: frames per second of one plane.
        window_s, percentile: of the baseline, as in `calcium.dff`.

    Raises:
        FileNotFoundError: where `F.npy` or `Fneu.npy` is missing.
        ValueError: without a frame rate, for damaged files or shapes that do not fit, or where no cell is left.
    """
    folder = _plane(Path(path))
    if not request.sfreq_hz:
        raise ValueError(
            f"{folder}: the frame rate stands only in ops.npy, a pickle, which is never opened; "
            "give the frames per second of one plane with sfreq_hz"
        )
    there = [n for n in ("F", "Fneu", "spks", "iscell") if (folder / f"{n}.npy").is_file()]
    arrays = {n: _array(folder / f"{n}.npy") for n in there}
    shape = arrays["F"].shape
    if min(shape) < 1:
        raise ValueError(f"{folder}/F.npy has shape {shape}; expected (neuron, time)")
    for name, array in arrays.items():
        fits = array.shape[0] == shape[0] if name == "iscell" else array.shape == shape
        if not fits:
            raise ValueError(f"{folder}/{name}.npy has shape {array.shape}, F.npy {shape}; run suite2p's export again")
    cell = arrays["iscell"][:, 0] == 1 if "iscell" in arrays else np.ones(shape[0], bool)
    names = list(request.names) or [f"roi{i:04d}" for i in range(shape[0])]
    if len(names) != shape[0]:
        raise ValueError(f"{folder}: got {len(names)} names for {shape[0]} ROIs; give one for each row of F.npy")
    roi = np.flatnonzero(cell)
    signal = calcium.dff(arrays["F"][roi] - NEUROPIL * arrays["Fneu"][roi], request.sfreq_hz, window_s, percentile)
    finite = np.isfinite(signal).all(axis=1)
    kept = roi[finite]
    if not len(kept):
        raise ValueError(f"{folder}: of {shape[0]} ROIs {len(roi)} are cells, none with a baseline above 0")
    recording = Recording(
        dataset=request.dataset, subject=request.subject, session=request.session, run=request.run,
        modality="calcium", device=request.device or "suite2p",
        channels=Channels.make([names[i] for i in kept], "neuron", unit=calcium.UNIT),
        sfreq=float(request.sfreq_hz), signal=signal[finite], channel_log=_log(names, roi, kept),
    )  # fmt: skip
    if "spks" in arrays:
        recording.aligned["deconvolved"] = Series(np.asarray(arrays["spks"][kept]).T, float(request.sfreq_hz), "")
    if request.label:
        recording.events = Events(np.zeros(1), np.array([recording.duration]), [request.label])
    recording.provenance["files"] = {f"{n}.npy": sha256(folder / f"{n}.npy") for n in arrays}
    if request.participant:
        recording.provenance["participant"] = dict(request.participant)
    recording.note("cells", of=shape[0], kept=len(roi), by="iscell.npy" if "iscell" in arrays else "all ROIs are kept")
    recording.note("dF/F", neuropil=NEUROPIL, window_s=window_s, percentile=percentile, dropped=len(roi) - len(kept))
    return recording


def _plane(path: Path) -> Path:
    """The folder that holds F.npy: `path`, or the only `plane*` folder in it."""
    planes = [path] if (path / "F.npy").is_file() else sorted(p.parent for p in path.glob("plane*/F.npy"))
    if len(planes) > 1:
        raise ValueError(f"{path} holds {', '.join(p.name for p in planes)}; give one plane's folder, as one recording")
    if not planes or not (planes[0] / "Fneu.npy").is_file():
        raise FileNotFoundError(f"{path} holds no F.npy with Fneu.npy beside it; give the folder of one plane (plane0)")
    return planes[0]


def _array(path: Path) -> np.ndarray:
    """A plain matrix of numbers, mapped and not yet read."""
    array = variables(path)[path.stem]
    if array.ndim != 2 or array.dtype.kind not in "iufb":
        raise ValueError(f"{path} has shape {array.shape} of {array.dtype}; expected a matrix of numbers")
    return array


def _log(names: list[str], roi: np.ndarray, kept: np.ndarray) -> list[ChannelNote]:
    cells, stays = set(roi.tolist()), set(kept.tolist())
    return [
        ChannelNote(name, name, "kept")
        if i in stays
        else ChannelNote(name, "", "dropped", "baseline not above 0 or not finite" if i in cells else "not a cell")
        for i, name in enumerate(names)
    ]
