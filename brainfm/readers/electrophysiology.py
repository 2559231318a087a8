"""What the readers of electrophysiology share: from channels, samples and marks of a file to a `Recording`."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brainfm.checksums import sha256
from brainfm.modalities import electrodes, units
from brainfm.readers.request import Request
from brainfm.recording import ChannelNote, Channels, Events, Recording, Signal

if TYPE_CHECKING:
    import mne

#: More marks than this in one file are noise that was taken for marks.
MOST_MARKS = 1_000_000

#: A mark of a file: onset and duration in seconds from the first sample, label.
Mark = tuple[float, float, str]


def assemble(
    path: Path,
    files: Sequence[Path],
    request: Request,
    *,
    signal: Signal,
    sfreq: float,
    channels: Channels,
    log: list[ChannelNote],
    marks: list[Mark],
    breaks: Sequence[int] = (),
) -> Recording:
    """The recording of what a reader found: events inside it in order, good segments, hashes, ids of the request.

    Args:
        path: the file that names the format.
        files: all files that were read; they are named in the provenance relative to the folder of `path`.
        request: ids, device, label.
        signal, sfreq, channels, log: of the recording.
        marks: the marks of the file; those wholly outside the signal are left out and counted in the provenance.
        breaks: samples before which the recording was interrupted.
    """
    length = signal.shape[1] / sfreq
    inside = sorted(
        (max(onset, 0.0), min(onset + duration, length) - max(onset, 0.0), label)
        for onset, duration, label in marks
        if onset < length and (onset >= 0 or onset + duration > 0)
    )
    events = Events(np.array([m[0] for m in inside]), np.array([m[1] for m in inside]), [m[2] for m in inside])
    segments = good_segments(signal.shape[1], sfreq, events, breaks)
    if request.label:
        events = Events(
            np.append(events.onset, 0.0), np.append(events.duration, length), [*events.label, request.label]
        )
    kinds = set(channels.kind)
    modality = "meg" if kinds & {"mag", "grad", "axial"} else "ieeg" if kinds & {"ecog", "seeg"} else "eeg"
    provenance: dict = {"files": {}, "steps": []}
    for file in files:
        provenance["files"][os.path.relpath(file, path.parent)] = sha256(file)
    if request.participant:
        provenance["participant"] = dict(request.participant)
    done = Recording(
        dataset=request.dataset,
        subject=request.subject,
        session=request.session,
        run=request.run,
        modality=request.modality or modality,
        device=request.device or f"{path.suffix.lstrip('.').lower() or 'bti'}-{len(channels)}",
        channels=channels,
        sfreq=sfreq,
        signal=signal,
        segments=segments,
        events=events,
        provenance=provenance,
        channel_log=log,
    )
    if len(inside) < len(marks):
        done.note("events_outside", count=len(marks) - len(inside), signal_s=length)
    if request.unit:
        done.note("unit", unit=request.unit, why="request")
    return done


def table(path: Path, info: mne.Info, request: Request) -> tuple[Channels, np.ndarray, list[ChannelNote]]:
    """The channel table of an MNE measurement, its picks and the channel log, with the reference that was asked for.

    Raises:
        ValueError: naming the file, where it has no channel of a brain.
    """
    try:
        channels, picks, log = electrodes.from_info(info, montage=request.montage, modality=request.modality)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: its table of channels cannot be used: {error}") from error
    if request.reference:
        potential = ("eeg", "ecog", "seeg")
        channels.reference = [
            request.reference if kind in potential else said
            for kind, said in zip(channels.kind, channels.reference, strict=True)
        ]
    return channels, picks, log


def good_segments(n_samples: int, sfreq: float, events: Events, breaks: Sequence[int] = ()) -> np.ndarray:
    """Stretches `(segment, 2)` of samples without a break and without what is marked bad.

    Events whose label begins with "bad" (any case) are cut out. Boundaries split: "boundary" (EEGLAB), "BAD boundary"
    and "EDGE boundary" (MNE), and "New Segment" (BrainVision).

    Args:
        n_samples, sfreq: of the recording.
        events: its events.
        breaks: further samples before which the recording was interrupted.
    """
    cuts, bad = {int(b) for b in breaks}, []
    for onset, length, label in zip(events.onset, events.duration, events.label, strict=True):
        word = label.strip().lower()
        if word.startswith(("edge", "boundary", "new segment")) or word == "bad boundary":
            cuts.add(round(float(onset) * sfreq))
        elif word.startswith("bad"):
            first, stop = np.floor(onset * sfreq + 1e-6), np.ceil((onset + length) * sfreq - 1e-6)
            bad.append((min(max(int(first), 0), n_samples), min(max(int(stop), 0), n_samples)))
    points, found, at = np.array(sorted(cuts), np.int64), [], 0
    for first, stop in [*sorted(bad), (n_samples, n_samples)]:
        if first > at:
            found += list(itertools.pairwise([at, *points[(points > at) & (points < first)].tolist(), first]))
        at = max(at, stop)
    return np.array(found, np.int64).reshape(-1, 2)


def triggers(signal: Signal, sfreq: float, bits: int = -1) -> list[Mark]:
    """Codes of a trigger channel `(1, time)`: a mark wherever the masked value changes to another that is not 0.

    The value before the first sample is unknown, so a code that stands there from the start is no mark.

    Raises:
        ValueError: where so many changes are found that this is no trigger channel.
    """
    marks: list[Mark] = []
    total, step, last = signal.shape[1], getattr(signal, "block", 1 << 20), None
    for start in range(0, total, step):
        values = np.nan_to_num(signal[:, start : min(start + step, total)][0])
        codes = np.rint(values).astype(np.int64) & bits
        before = np.concatenate([codes[:1] if last is None else [last], codes[:-1]])
        last = codes[-1]
        found = np.flatnonzero((codes != before) & (codes != 0))
        if len(marks) + len(found) > MOST_MARKS:
            raise ValueError(f"a trigger channel changes over {MOST_MARKS} times; rename it, it is no trigger channel")
        marks += [((start + int(i)) / sfreq, 0.0, str(codes[i])) for i in found]
    return marks


def span(key: tuple, shape: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """Rows, first and one-past-last sample that `signal[rows, a:b]` asks for.

    Raises:
        TypeError: for anything but a pair whose second is a slice of step 1.
    """
    if not (isinstance(key, tuple) and len(key) == 2 and isinstance(key[1], slice) and key[1].step in (None, 1)):
        raise TypeError(f"a signal that lies in a file is sliced as signal[:, a:b]; got [{key!r}]")
    start, stop, _ = key[1].indices(shape[1])
    return np.atleast_1d(np.arange(shape[0])[key[0]]), start, max(start, stop)


def fill(path: Path, file: int, place: int, out: np.ndarray) -> None:
    """Fill an array with the bytes of an open file from `place` on.

    Raises:
        ValueError: where the file ends before the array is full.
    """
    left, view = out.nbytes, out.view(np.uint8).data
    while left:
        got = os.preadv(file, [view[-left:]], place + out.nbytes - left)
        if not got:
            raise ValueError(f"{path} ends {left} bytes early; it was changed after it was opened: get it again")
        left -= got


def distinct(names: list[str]) -> list[str]:
    """The same names, those that stand more than once with "-0", "-1" ... behind them, as MNE numbers them."""
    names = [name or f"channel {i + 1}" for i, name in enumerate(names)]
    taken, number = set(names), Counter[str]()
    repeated = {name for name, times in Counter(names).items() if times > 1}
    for i, name in enumerate(names):
        if name in repeated:
            while (new := f"{name}-{number[name]}") in taken:
                number[name] += 1
            taken.add(new)
            names[i] = new
    return names


def asked(path: Path, unit: str | None) -> float | None:
    """What one `unit` of a request is in volt; None where it names none.

    Raises:
        ValueError: for a word that is no unit of potentials.
    """
    try:
        return units.factor(unit, "eeg") if unit else None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
