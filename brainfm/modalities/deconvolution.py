"""Calcium as events: when each neuron's dF/F jumps, and by how much, by non-negative deconvolution.

Friedrich, Zhou and Paninski, "Fast online deconvolution of calcium imaging data", PLoS Computational Biology 13(3):
e1005423, 2017, https://doi.org/10.1371/journal.pcbi.1005423.

Calcium falls off with a time constant between jumps and is seen with noise. Least squares where no jump is negative is
isotonic regression, which pooling adjacent violators solves in one pass: a pool is a stretch of frames without a jump,
and two neighbours become one where the step between them is too small. With a smallest jump above 0 the same pass gives
a good answer, not surely the best one. All traces go side by side.

Differences from the paper: the noise of a neuron sets its smallest jump, the largest of a few for which the residual is
no larger than the noise; what is there in the first frame of a stretch is no event; one decay serves all neurons; with
a rise (its AR(2)) a pool is not fitted again when the one before it changes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
from scipy.signal import welch
from scipy.stats import norm

from brainfm.modalities.calcium import UNIT, running_percentile
from brainfm.recording import Recording, Series

#: Names, of `recording.ACTIVITY`, of what the events were inferred from and the jumps found, `(time, neuron)` in dF/F.
DFF, AMPLITUDE = "dff", "event_amplitude"
#: Smallest jumps that are tried, in units of the smallest that is allowed.
GRID = np.array([1.0, 1.5, 2.0, 3.0])
#: Frames of the shortest stretch whose spectrum tells the noise, and of a segment of that spectrum.
SHORTEST, SPECTRUM = 16, 256
#: Windows of the baseline that it reaches: half of one and a tenth between places where it is taken, in two passes.
REACH = 1.2
#: Traces that are deconvolved side by side, and samples of all of them, at most.
ROWS, SAMPLES = 512, 1 << 24


@dataclass(frozen=True)
class Transient:
    """The response to a jump of 1, frame by frame, and what pools need of it, by their length.

    Attributes:
        own: `(length,)` what a pool of some length that began at 1 goes on to, from length 0.
        before: the same of a pool that began at 0 after a frame of 1; all zero without a rise.
        own_square, mixed: sums of `own` squared and of `own` times `before` over so many frames.
    """

    own: np.ndarray
    before: np.ndarray
    own_square: np.ndarray
    mixed: np.ndarray

    @classmethod
    def of(cls, sfreq: float, decay_s: float, rise_s: float | None = None) -> Transient:
        """From time constants in s; without a rise a jump is there at once.

        Raises:
            ValueError: for a rise that is not shorter than the decay.
        """
        if rise_s and rise_s >= decay_s:
            raise ValueError(f"rise_s {rise_s:g} of a decay of {decay_s:.3g} s; indicators rise faster than they decay")
        decay, rise = np.exp(-1 / (decay_s * sfreq)), np.exp(-1 / (rise_s * sfreq)) if rise_s else 0.0
        frames = 2 + int(np.ceil(-np.log(1e-9) * decay_s * sfreq))
        k = np.arange(frames)
        own = (decay ** (k + 1) - rise ** (k + 1)) / (decay - rise)
        before = -decay * rise * np.r_[0.0, own[:-1]]
        own[-1] = before[-1] = 0.0  # and so for all longer ones
        square, mixed = (np.r_[0.0, np.cumsum(own * x)] for x in (own, before))
        return cls(own, before, square, mixed)

    @property
    def rises(self) -> bool:
        """Whether it rises over several frames, so that it began a frame before a jump of `own`, which is up by one."""
        return bool(self.before.any())

    @property
    def peak(self) -> float:
        """dF/F at the top of the response to a jump of 1."""
        return float(self.own.max())

    def first(self, length: np.ndarray, own_sum: np.ndarray, earlier: np.ndarray) -> np.ndarray:
        """The value that a pool of `length` frames begins with, by least squares, from its sum of trace times `own`."""
        k = np.minimum(length, len(self.own))
        return (own_sum - self.mixed[k] * earlier) / self.own_square[k]

    def after(self, length: np.ndarray, value: np.ndarray | float, earlier: np.ndarray | float) -> np.ndarray:
        """Calcium `length` frames after a frame of `value` that followed one of `earlier`."""
        k = np.minimum(length, len(self.own) - 1)
        return self.own[k] * value + self.before[k] * earlier


def infer_events(
    recording: Recording, *, decay_s: float | None = None, rise_s: float | None = None, least_sd: float = 2.0,
    baseline_s: float | None = 60.0, percentile: float = 8.0, event_dff: float | None = None,
) -> Recording:  # fmt: skip
    """A recording of dF/F as one of events, each a time and a neuron as spikes are; the dF/F stays beside them.

    A frame holds as many events as its jump of calcium has times the neuron's median jump (or `event_dff`), and at
    least one, evenly over the frame: what a spike adds to dF/F is rarely known, so events are not counts of spikes.

    Args:
        recording: dF/F, gaps NaN or between segments; left as it is. Calcium that is there after a gap is no event.
        decay_s: of the indicator, s; where None from the autocovariance, the median over neurons.
        rise_s: of the indicator, s; None for none, and events then come late by about the rise.
        least_sd: the smallest jump, in standard deviations of a frame's noise; more where the noise allows it.
        baseline_s: window of a running percentile that is taken off first, twice; None for a baseline of 0.
        percentile: that percentile; it is moved up to where it would be of noise alone.
        event_dff: dF/F at the peak of one event, where it is known.

    Returns:
        The events, without a signal; `aligned` has "dff" as it was and "event_amplitude", the peak dF/F of the jump in
        each frame; segments go on in milliseconds. `reach_s` grows by 1.2 times the baseline and five decays, within
        a segment: each is deconvolved by itself.

    Raises:
        ValueError: for another modality, no signal, no segment, numbers out of range, or where no neuron shows a decay.
    """
    dff = _checked(recording, decay_s, rise_s, least_sd, baseline_s, percentile, event_dff)
    sfreq = float(recording.sfreq or 0)
    neurons, frames = dff.shape
    segments = np.zeros((0, 2), int) if recording.segments is None else np.asarray(recording.segments)
    inside = np.zeros(frames, bool)
    for start, stop in segments:
        inside[start:stop] = True
    if not inside.any():
        raise ValueError(f"{recording.id}: no stretch of signal to infer events from; its segments are empty")
    dff[:, ~inside] = np.nan
    dff[~np.isfinite(dff)] = np.nan
    stretches = [(row, a, b) for row in range(neurons) for a, b in _stretches(dff[row], segments)]
    noise = _noise(dff, stretches, sfreq)
    flat = dff
    if baseline_s is not None:
        flat = flat_of(dff, segments, sfreq, baseline_s, percentile) + norm.ppf(percentile / 100) * noise[:, None]
    used = [(row, a, b) for row, a, b in stretches if noise[row] > 0]
    decay = decay_s or _decay([flat[row, a:b] for row, a, b in used], sfreq, recording.id)
    transient = Transient.of(sfreq, decay, rise_s)
    amplitude, least = _amplitudes(flat, used, transient, noise, least_sd)
    time, neuron = _times(amplitude, sfreq, event_dff)
    done = replace(
        recording, sfreq=None, signal=None, normaliser=None, spike_time=time, spike_neuron=neuron,
        segments=_milliseconds(segments, sfreq),
        provenance=copy.deepcopy(recording.provenance), channels=recording.channels.pick(np.arange(neurons)),
        reach_s=recording.reach_s + REACH * (baseline_s or 0.0) + 5 * decay,
        aligned={
            **recording.aligned, DFF: Series(dff.T.astype(np.float32), sfreq, UNIT),
            AMPLITUDE: Series(amplitude.T.astype(np.float32), sfreq, UNIT),
        },
    )  # fmt: skip
    done.channels.unit = ["events"] * neurons
    done.note(
        "infer_events", method="OASIS", decay_s=float(decay), decay_from="given" if decay_s else "autocovariance",
        rise_s=rise_s, least_sd=least_sd, baseline_s=baseline_s, percentile=percentile, event_dff=event_dff,
        events=len(time), silent=neurons - len(np.unique(neuron)), noise=float(np.median(noise)),
        least_dff=float(np.median(least)), fitted_on="this recording alone",
    )  # fmt: skip
    return done


def deconvolved(traces: list[np.ndarray], transient: Transient, least: np.ndarray) -> tuple[list, list]:
    """Calcium and its jumps, of each trace.

    Args:
        traces: each `(time,)`, finite; lengths may differ.
        transient: of the indicator.
        least: `(trace,)` the smallest jump, at its peak, in the unit of the traces; 0 allows all.

    Returns:
        two lists of arrays `(time,)`: calcium, and the peak of the transient that begins in each frame, 0 where none
        does. What is there in the first frame is no jump.
    """
    order = sorted(range(len(traces)), key=lambda i: -len(traces[i]))
    own = _pooled([traces[i] for i in order], transient, np.asarray(least, float)[order] / transient.peak)
    calcium, jumps = [np.zeros(0)] * len(traces), [np.zeros(0)] * len(traces)
    for i, (level, jump) in zip(order, own, strict=True):
        calcium[i], jumps[i] = level, jump * transient.peak
    return calcium, jumps


def flat_of(dff: np.ndarray, segments: np.ndarray, sfreq: float, baseline_s: float, percentile: float) -> np.ndarray:
    """`(neuron, time)` dF/F without its running percentile, each segment by itself; NaN stays, and is outside them.

    It is taken off twice: on a slope the percentile is that of the window's low end, and the rest is constant by then.
    """
    out = np.full(dff.shape, np.nan)
    for start, stop in segments:
        part = dff[:, start:stop]
        for _ in range(2):
            part = part - np.stack(list(running_percentile(part, sfreq, baseline_s, percentile)))
        out[:, start:stop] = part
    return out


def _milliseconds(segments: np.ndarray, sfreq: float) -> np.ndarray:
    """The whole milliseconds, of which windows of events are cut, inside segments of frames."""
    edge = np.asarray(segments, float) / sfreq * 1000
    return np.stack([np.ceil(edge[:, 0] - 1e-6), np.floor(edge[:, 1] + 1e-6)], axis=1).astype(np.int64)


def _pooled(traces: list[np.ndarray], transient: Transient, least: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pool adjacent violators in traces that are sorted by length, longest first: one frame of all of them at a time.

    A pool has a length, its first value, the value of the frame before it, and the sums of the trace times `own` and
    `before`. Those sums of two neighbours give those of both, since what follows a frame follows from it and the one
    before. Pool `p` of row `r` lies at `p * rows + r`.
    """
    rows, lengths = len(traces), np.array([len(x) for x in traces])
    frames = np.zeros((max(lengths, default=0), rows))
    for number, trace in enumerate(traces):
        frames[: len(trace), number] = trace
    top, size = np.zeros(rows, int), np.ones(rows, int)
    own, earlier, before = frames[:1].sum(0), np.zeros(rows), np.zeros(rows)
    value = np.maximum(own, 0.0)
    for t in range(1, len(frames)):
        row = np.arange(np.searchsorted(-lengths, -t))
        at, now = top[row] * rows + row, frames[t, : len(row)]
        jumps = now >= transient.after(size[at], value[at], earlier[at]) + least[row]
        last, new = at[jumps], at[jumps] + rows
        top[row[jumps]] += 1
        if len(new) and new.max() >= len(size):
            size, value, earlier, own, before = (
                np.r_[x, np.zeros_like(x)] for x in (size, value, earlier, own, before)
            )
        earlier[new] = transient.after(size[last] - 1, value[last], earlier[last])
        size[new], before[new] = 1, 0.0
        value[new] = own[new] = now[jumps]
        row, a = row[~jumps], now[~jumps]
        more, b = np.ones(len(row), int), np.zeros(len(row))
        while len(row):
            at = top[row] * rows + row
            long = size[at]
            own[at] += transient.after(long, a, 0.0) + transient.after(long - 1, b, 0.0)
            before[at] += transient.after(long, 0.0, a) + transient.after(long - 1, 0.0, b)
            size[at] += more
            value[at] = transient.first(size[at], own[at], earlier[at])
            first = top[row] == 0
            value[at[first]] = np.maximum(value[at[first]], 0.0)
            row, at = row[~first], at[~first]
            last = at - rows
            close = value[at] < transient.after(size[last], value[last], earlier[last]) + least[row]
            row, at = row[close], at[close]
            a, b, more = own[at], before[at], size[at]
            top[row] -= 1
    out = []
    for number, count in enumerate(lengths):
        at = np.arange(top[number] + 1 if count else 0) * rows + number
        begin = np.cumsum(size[at]) - size[at]
        k = np.arange(count) - np.repeat(begin, size[at])
        jump = np.zeros(count)
        jump[begin[1:]] = value[at[1:]] - transient.after(size[at[:-1]], value[at[:-1]], earlier[at[:-1]])
        out.append((transient.after(k, np.repeat(value[at], size[at]), np.repeat(earlier[at], size[at])), jump))
    return out


def _checked(
    recording: Recording, decay_s: float | None, rise_s: float | None, least_sd: float, baseline_s: float | None,
    percentile: float, event_dff: float | None,
) -> np.ndarray:  # fmt: skip
    """The dF/F in memory `(neuron, time)`, where everything is as it should be."""
    signal = recording.signal
    if recording.modality != "calcium" or signal is None or not signal.shape[1]:
        what = f"of modality {recording.modality}" if signal is not None and signal.shape[1] else "without a signal"
        raise ValueError(f"{recording.id} is {what}; events are inferred from dF/F, a signal of modality calcium")
    positive = {"decay_s": decay_s, "rise_s": rise_s, "baseline_s": baseline_s, "event_dff": event_dff}
    for name, given in positive.items():
        if given is not None and not 0 < given < np.inf:
            raise ValueError(f"{name} {given:g}; expected a number above 0, or none")
    if not least_sd >= 0 or not 0 < percentile < 100:
        raise ValueError(f"least_sd {least_sd:g}, percentile {percentile:g}; expected 0 or more, and between 0 and 100")
    return np.array(signal[:, : signal.shape[1]], np.float64)


def _stretches(trace: np.ndarray, segments: np.ndarray) -> list[tuple[int, int]]:
    """First and one-past-last frame of the runs of values that are finite, within segments."""
    out = []
    for start, stop in segments:
        there = np.r_[False, np.isfinite(trace[start:stop]), False]
        edge = np.flatnonzero(there[1:] != there[:-1]) + start
        out += [(int(a), int(b)) for a, b in edge.reshape(-1, 2)]
    return out


def _noise(dff: np.ndarray, stretches: list[tuple[int, int, int]], sfreq: float) -> np.ndarray:
    """`(neuron,)` standard deviation of a frame's noise, from the upper half of the spectrum; 0 where unknown."""
    total, weight = np.zeros(len(dff)), np.zeros(len(dff))
    for row, a, b in stretches:
        if b - a >= SHORTEST:
            hertz, power = welch(dff[row, a:b], sfreq, nperseg=min(b - a, SPECTRUM))
            total[row] += (b - a) * power[hertz > sfreq / 4].mean() * sfreq / 2
            weight[row] += b - a
    return np.sqrt(total / np.maximum(weight, 1))


def _decay(traces: list[np.ndarray], sfreq: float, name: str) -> float:
    """Seconds, from how autocovariance goes on from lag to lag, where noise has no part; median over traces."""
    found = []
    for trace in traces:
        lags = min(max(3, round(0.5 * sfreq)), len(trace) // 4)
        x = trace - trace.mean()
        own = np.array([x[k:] @ x[: len(x) - k] for k in range(lags + 1)]) / len(x)
        if lags >= 2 and own[1] > 4 * own[0] / np.sqrt(len(x)):
            ratio = own[1:-1] @ own[2:] / (own[1:-1] @ own[1:-1])
            if 0 < ratio < 1:
                found.append(-1 / (sfreq * np.log(ratio)))
    if not found:
        raise ValueError(f"{name}: no neuron's dF/F shows how fast the indicator decays; give decay_s")
    return float(np.median(found))


def _amplitudes(
    flat: np.ndarray, used: list[tuple[int, int, int]], transient: Transient, noise: np.ndarray, least_sd: float
) -> tuple[np.ndarray, np.ndarray]:
    """Peak of the jump in each frame `(neuron, time)`, and the smallest that each neuron was allowed `(neuron,)`.

    Of the sizes of `GRID` that is the largest for which the residual of the neuron is no larger than its noise. With a
    rise a jump stands in the frame before, where the transient began.
    """
    tried = GRID if least_sd else np.zeros(1)
    out, best = np.where(np.isnan(flat), np.nan, 0.0), np.zeros(len(flat), int)
    most = max(1, min(ROWS, SAMPLES // flat.shape[1]) // len(tried))
    early = int(transient.rises)
    for some in np.array_split(np.unique([row for row, _, _ in used]).astype(int), -(-len(flat) // most)):
        part = [(row, a, b) for row, a, b in used if row in some]
        traces, rows = [flat[row, a:b] for row, a, b in part], np.array([row for row, _, _ in part], int)
        least = np.concatenate([times * least_sd * noise[rows] for times in tried])
        calcium, jumps = deconvolved(traces * len(tried), transient, least)
        squares = np.array([((x - c) ** 2).sum() for x, c in zip(traces * len(tried), calcium, strict=True)])
        for row in some:
            own = rows == row
            frames = sum(len(x) for x, mine in zip(traces, own, strict=True) if mine)
            fits = np.flatnonzero(squares.reshape(len(tried), -1)[:, own].sum(axis=1) <= frames * noise[row] ** 2)
            best[row] = fits.max(initial=0)
            for i in np.flatnonzero(own):
                _, a, b = part[i]
                out[row, a : b - early] = jumps[best[row] * len(part) + i][early:]
    return out, tried[best] * least_sd * noise


def _times(amplitude: np.ndarray, sfreq: float, event_dff: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Seconds, ascending, and neuron of the events; those of one frame lie evenly in it."""
    neuron, frame = np.nonzero(amplitude > 0)
    size = amplitude[neuron, frame]
    unit = np.array([np.median(x[x > 0]) if (x > 0).any() else 1.0 for x in amplitude])
    count = np.maximum(1, np.rint(size / (event_dff or unit[neuron]))).astype(int)
    place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    time = (np.repeat(frame, count) + (place + 0.5) / np.repeat(count, count)) / sfreq
    order = np.argsort(time, kind="stable")
    return time[order], np.repeat(neuron, count)[order]
