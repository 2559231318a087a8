"""Cleaning as a declared, ordered list of steps, over signals that stay in their files.

    steps:
      - bad_channels: {deviation: 5}
      - notch: {line_hz: 50}
      - highpass: {edge_hz: 0.5}
      - lowpass: {edge_hz: 45}
      - resample: {sfreq_hz: 128}
      - interpolate
      - reference: {to: average}
      - clamp: {robust_sd: 20}
      - scale: {per: kind}

For calcium there is `infer_events` (`brainfm.modalities.deconvolution`), after which nothing is left to filter.

Steps run in the order given. Neighbouring filters and resampling are one filter (`filters.condition`), since their
order does not matter. Steps that must see data first (bad_channels, detrend, clamp, scale) say in the provenance what
they saw; all of them see this recording alone, so nothing passes between people or sides of a split.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from brainfm.modalities import bad_channels as finder
from brainfm.modalities import spatial
from brainfm.modalities.deconvolution import infer_events
from brainfm.modalities.filters import condition
from brainfm.modalities.units import amplitudes, spread
from brainfm.recording import TYPICAL, ChannelNote, Normaliser, Recording, Signal

#: Filters that are joined where they stand beside each other: step → its word, and that of `condition`.
FILTERS = {
    "notch": ("line_hz", "notch_hz"),
    "highpass": ("edge_hz", "highpass_hz"),
    "lowpass": ("edge_hz", "lowpass_hz"),
    "resample": ("sfreq_hz", "sfreq_hz"),
}

Step = str | dict[str, dict[str, Any] | None]


def clean(recording: Recording, steps: Sequence[Step]) -> Recording:
    """Apply the steps in order; the recording is left as it is.

    Args:
        recording: with a signal, in SI units.
        steps: each a name, or one name with its keywords.

    Raises:
        ValueError: for an unknown step or keyword, with what there is, and where a step cannot be done.
    """
    done = replace(recording, provenance=copy.deepcopy(recording.provenance))
    waiting: dict[str, Any] = {}
    for name, given in map(_parsed, steps):
        if name in FILTERS:
            word, keyword = FILTERS[name]
            if set(given) != {word}:
                raise ValueError(f"the step {name} takes {word} and nothing else; got {', '.join(given) or 'nothing'}")
            if keyword in waiting:  # a second filter of this sort is a filter of its own
                done, waiting = condition(done, **waiting), {}
            waiting[keyword] = given[word]
            continue
        if waiting:
            done, waiting = condition(done, **waiting), {}
        done = _step(name, given)(done, **given)
    return condition(done, **waiting) if waiting else done


def check(steps: Sequence[Step]) -> None:
    """Raise ValueError for an unknown step or keyword, before anything is read."""
    for name, given in map(_parsed, steps):
        if name not in FILTERS:
            _step(name, given)
        elif set(given) != {FILTERS[name][0]}:
            raise ValueError(f"the step {name} takes {FILTERS[name][0]}; got {', '.join(given) or 'nothing'}")


def _parsed(step: Step) -> tuple[str, dict[str, Any]]:
    if isinstance(step, str):
        return step, {}
    if not isinstance(step, dict) or len(step) != 1:
        raise ValueError(f"a cleaning step is a name, or one name with its keywords; got {step!r}")
    name, given = next(iter(step.items()))
    if not isinstance(given or {}, dict):
        raise ValueError(f"the step {name} needs keywords, as in {{{name}: {{word: value}}}}; got {given!r}")
    return name, given or {}


def _step(name: str, given: dict[str, Any]) -> Callable[..., Recording]:
    """The function of a step, with its keywords checked."""
    if name not in STEPS:
        raise ValueError(f"unknown cleaning step {name!r}; there are {', '.join((*FILTERS, *STEPS))}")
    known = [n for n in inspect.signature(STEPS[name]).parameters if n != "recording"]
    for word in given:
        if word not in known:
            raise ValueError(f"the step {name} has no keyword {word!r}; it takes {', '.join(known) or 'none'}")
    return STEPS[name]


def bad_channels(
    recording: Recording, *, deviation: float | None = 5.0, correlation: float | None = 0.4, flat: float = 0.01,
    share: float = 0.1,
) -> Recording:  # fmt: skip
    """Mark channels that are flat, deviate or are like no other; see `brainfm.modalities.bad_channels.find`."""
    signal, sfreq = _signal(recording)
    found = finder.find(
        signal, recording.channels, sfreq, deviation=deviation, correlation=correlation, flat=flat, share=share,
        segments=recording.segments,
    )  # fmt: skip
    table = recording.channels.pick(np.arange(len(recording.channels)))
    table.bad = table.bad.copy()
    table.bad[list(found)] = True
    log = [ChannelNote(table.name[row], table.name[row], "bad", why) for row, why in sorted(found.items())]
    done = _changed(recording, signal, channels=table, channel_log=[*recording.channel_log, *log])
    done.note("bad_channels", found=len(found), deviation=deviation, correlation=correlation, flat=flat, share=share)
    return done


def interpolate(recording: Recording) -> Recording:
    """Put what good channels say in place of bad EEG and MEG channels; those that cannot be stay bad, with a note."""
    signal, _ = _signal(recording)
    matrix, table, log = spatial.interpolation_matrix(recording.channels)
    done = _changed(
        recording,
        _mapped(signal, len(matrix), partial(_mix, matrix)),
        channels=table,
        channel_log=[*recording.channel_log, *log],
    )
    done.note("interpolate", channels=[line.name for line in log if line.fate == "interpolated"])
    return done


def reference(recording: Recording, *, to: str | list[str]) -> Recording:
    """Measure potentials against the average of the good channels, or against channels by name."""
    signal, _ = _signal(recording)
    matrix, table = spatial.reference_matrix(recording.channels, to)
    done = _changed(recording, _mapped(signal, len(matrix), partial(_mix, matrix)), channels=table)
    done.note("reference", to=to)
    return done


def drop_bad(recording: Recording) -> Recording:
    """Leave bad channels out."""
    signal, _ = _signal(recording)
    kept = np.flatnonzero(~recording.channels.bad)
    if not len(kept):
        raise ValueError(f"{recording.id}: every channel is bad; look at the file, or loosen the test")
    names = [recording.channels.name[i] for i in np.flatnonzero(recording.channels.bad)]
    log = [ChannelNote(name, "", "dropped", "bad") for name in names]
    matrix = np.eye(len(recording.channels))[kept]
    done = _changed(
        recording, _mapped(signal, len(matrix), partial(_mix, matrix)), channels=recording.channels.pick(kept),
        channel_log=[*recording.channel_log, *log],
    )  # fmt: skip
    done.note("drop_bad", channels=names)
    return done


def detrend(recording: Recording, *, order: int = 1) -> Recording:
    """Take the mean (`order` 0) or the straight line (1) off each channel of each segment, by least squares."""
    if order not in (0, 1):
        raise ValueError(f"detrend takes order 0 (mean) or 1 (line); got {order!r}")
    signal, _ = _signal(recording)
    lines = tuple((int(a), int(b), *_line(signal, int(a), int(b), order)) for a, b in _segments(recording))
    done = _changed(recording, _mapped(signal, len(signal), partial(_less_lines, lines)))
    done.note("detrend", order=order, per="segment and channel")
    return done


def clamp(recording: Recording, *, robust_sd: float | None = None, typical: float | None = None) -> Recording:
    """Limit values: to `robust_sd` robust deviations around a channel's median, or to `typical` amplitudes of its kind.

    The first is fitted on this recording, the second (multiples of `recording.TYPICAL`) on nothing.
    """
    if (robust_sd is None) == (typical is None):
        raise ValueError("clamp takes one of robust_sd (of the channel) and typical (amplitudes of its kind)")
    signal, _ = _signal(recording)
    if robust_sd is not None:
        centre, width, seen = _fitted(recording)
        low, high = centre - robust_sd * width, centre + robust_sd * width
    else:
        high = np.array([TYPICAL[k] for k in recording.channels.kind]) * float(typical or 0)
        low, seen = -high, "nothing"
    done = _changed(recording, _mapped(signal, len(signal), partial(_limit, low[:, None], high[:, None])))
    done.note("clamp", robust_sd=robust_sd, typical=typical, fitted_on=seen)
    return done


def scale(recording: Recording, *, per: str = "channel") -> Recording:
    """Fit a normaliser and keep it beside the signal, which stays in SI units.

    Args:
        recording: with a signal.
        per: "channel" for each channel's own spread, "kind" for one of each sensor kind (the median over its good
            channels), "recording" for one factor on the typical amplitudes of all kinds.
    """
    centre, width, seen = _fitted(recording)
    table, typical = recording.channels, np.array([TYPICAL[k] for k in recording.channels.kind])
    good = ~table.bad & (width > 0)
    if not good.any():
        raise ValueError(f"{recording.id}: no good channel with a spread above zero, so there is nothing to scale by")
    if per == "kind":
        for kind in set(table.kind):
            own = np.array([k == kind for k in table.kind])
            width = np.where(own, np.median(width[own & good]) if (own & good).any() else typical, width)
    elif per == "recording":
        width = typical * np.median(width[good] / typical[good])
    elif per != "channel":
        raise ValueError(f"scale takes per: channel, kind or recording; got {per!r}")
    width = np.where(width > 0, width, typical)
    fitted = Normaliser(centre, width, f"median and interquartile range / 1.349, per {per}", seen)
    signal, _ = _signal(recording)
    done = _changed(recording, signal, normaliser=fitted)
    done.note("scale", per=per, fitted_on=seen)
    return done


STEPS: dict[str, Callable[..., Recording]] = {
    "bad_channels": bad_channels, "interpolate": interpolate, "drop_bad": drop_bad, "reference": reference,
    "detrend": detrend, "clamp": clamp, "scale": scale, "infer_events": infer_events,
}  # fmt: skip


def _signal(recording: Recording) -> tuple[np.ndarray | Signal, float]:
    if recording.signal is None or not recording.sfreq:
        raise ValueError(f"{recording.id}: no signal to clean; these steps are for sampled signals")
    return recording.signal, recording.sfreq


def _segments(recording: Recording) -> np.ndarray:
    return np.zeros((0, 2), int) if recording.segments is None else recording.segments


def _changed(recording: Recording, signal: np.ndarray | Signal, **fields: Any) -> Recording:
    return replace(recording, signal=signal, provenance=copy.deepcopy(recording.provenance), **fields)


def _mapped(
    signal: np.ndarray | Signal, channels: int, change: Callable[[np.ndarray, int], np.ndarray]
) -> np.ndarray | Signal:
    """The signal changed: an array for an array; what lay in a file goes on lying there."""
    return change(signal, 0) if isinstance(signal, np.ndarray) else Mapped(signal, channels, change)


def _fitted(recording: Recording, windows: int = 120, window_s: float = 2.0) -> tuple[np.ndarray, np.ndarray, str]:
    """Median and robust deviation of each channel over evenly spread windows, and which they were, in words."""
    signal, sfreq = _signal(recording)
    parts = spread(signal.shape[1], max(2, round(window_s * sfreq)), windows, recording.segments)
    if not parts:
        raise ValueError(f"{recording.id}: no stretch of signal to fit anything on; its segments are empty")
    middles, widths = [], []
    for first, last in parts:
        block = signal[:, first:last]
        middles.append(np.median(block, axis=1))
        widths.append(amplitudes([block])[0])
    seen = f"{len(parts)} windows of {window_s:g} s, evenly spread over this recording alone"
    return np.median(middles, axis=0), np.median(widths, axis=0), seen


def _line(signal: np.ndarray | Signal, start: int, stop: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and slope per sample of each channel over a segment, from one pass in pieces."""
    n, middle = stop - start, (stop - start - 1) / 2
    total, moment = np.zeros(len(signal)), np.zeros(len(signal))
    step = max(1, (1 << 20) // max(1, len(signal)))
    for first in range(start, stop, step):
        block = np.asarray(signal[:, first : min(first + step, stop)], np.float64)
        total += block.sum(axis=1)
        moment += block @ (np.arange(block.shape[1]) + first - start - middle)
    slope = moment * 12 / (n * (n**2 - 1)) if order and n > 1 else np.zeros(len(signal))
    return total / n, slope


@dataclass(frozen=True)
class Mapped:
    """A signal changed block by block when it is sliced.

    Attributes:
        source: the signal before. channels: how many the result has.
        change: `(block, first sample) -> block`; picklable.
    """

    source: np.ndarray | Signal
    channels: int
    change: Callable[[np.ndarray, int], np.ndarray]

    @property
    def shape(self) -> tuple[int, int]:
        """`(channels, samples)`."""
        return self.channels, self.source.shape[1]

    @property
    def block(self) -> int:
        """That of the source."""
        return getattr(self.source, "block", max(1, (1 << 21) // len(self.source)))

    def __len__(self) -> int:
        return self.channels

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        start, stop, _ = key[1].indices(self.shape[1])
        return self.change(self.source[:, start : max(start, stop)], start)[key[0]]


def _mix(matrix: np.ndarray, block: np.ndarray, start: int) -> np.ndarray:
    return matrix.astype(block.dtype) @ block


def _limit(low: np.ndarray, high: np.ndarray, block: np.ndarray, start: int) -> np.ndarray:
    return np.clip(block, low.astype(block.dtype), high.astype(block.dtype))


def _less_lines(lines: Sequence[tuple[int, int, np.ndarray, np.ndarray]], block: np.ndarray, start: int) -> np.ndarray:
    """The block less a line in each segment; `lines` are first and last sample, mean and slope `(channel,)`."""
    block, stop = np.array(block), start + block.shape[1]
    for first, last, mean, slope in lines:
        low, high = max(first, start), min(last, stop)
        if low < high:
            time = np.arange(low - first, high - first) - (last - first - 1) / 2
            block[:, low - start : high - start] -= mean[:, None] + slope[:, None] * time
    return block
