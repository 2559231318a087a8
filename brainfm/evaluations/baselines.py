"""Features of the signals themselves, without a network: what a linear readout of them scores is the bar to clear.

Each window is described by itself; nothing is fitted here. Channels of different recordings are brought together by
`montage`. Bad channels are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.signal import welch

from brainfm.catalog import nearest
from brainfm.evaluations.protocol import Unfit
from brainfm.recording import TYPICAL
from brainfm.shards.read import Windows
from brainfm.shards.stored import Stored, rate

#: Frequency bands in Hz.
BANDS = {"delta": (1, 4), "theta": (4, 8), "alpha": (8, 13), "beta": (13, 30), "low gamma": (30, 45)}
#: A channel is left or right of the midline beyond this, and front or back of the centre beyond that; metres.
MIDLINE_M, CENTRE_M = 0.03, 0.04
#: What the channels of different people share too few of, however often their names agree.
IMPLANTED = {"ecog", "seeg"}


def of_signals(names: str | Sequence[str], train: Windows, test: Windows) -> tuple[dict[str, tuple], str]:
    """Features by name for both sides, on one montage, and a sentence on that montage.

    Args:
        names: one or more of "log_band_power", "log_power_spectrum", "downsampled_signal", "tangent_space" and
            "binned_counts".

    Returns:
        Name → `(train features, test features)`, each `(window, feature)`; and the sentence.

    Raises:
        ValueError: for an unknown name.
    """
    known = {
        f.__name__: f for f in (log_band_power, log_power_spectrum, downsampled_signal, tangent_space, binned_counts)
    }
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in known:
            raise ValueError(f"no linear baseline {name!r}; {nearest(name, list(known))}")
    both = Windows.join([train, test])
    found = {name: known[name](both) for name in names}
    note = "" if names == ["binned_counts"] else montage(both)[1]
    return {name: (f[: len(train)], f[len(train) :]) for name, f in found.items()}, note


def log_band_power(windows: Windows, *, like: Windows | None = None) -> np.ndarray:
    """`(window, channel x band)` log power in the bands that lie under Nyquist, by Welch's method window by window.

    Channels, and the length of segments, are those that all windows `like` share: more than these, or these where None.
    Segments are two seconds, or the shortest window, with a Hann taper and half overlap. Channels of a region are
    averaged after the logarithm.

    Raises:
        ValueError: where no band lies under Nyquist, as for fMRI; take "tangent_space" there.
    """
    sfreq = one_rate(windows)
    segment = min(int((windows if like is None else like).samples.min()), round(2 * sfreq))
    hertz = np.fft.rfftfreq(segment, 1 / sfreq)
    inside = [(hertz >= a) & (hertz < b) for a, b in BANDS.values() if b <= sfreq / 2]
    inside = [band for band in inside if band.any()]
    if not inside:
        raise Unfit(
            f"no band of 1 to 45 Hz can be seen in windows of {segment / sfreq:g} s at {sfreq:g} Hz; "
            "use longer windows, 'tangent_space' or 'downsampled_signal'"
        )

    def describe(signal: np.ndarray) -> np.ndarray:
        power = welch(signal, sfreq, nperseg=segment)[1]
        return np.log(np.stack([power[..., band].mean(axis=-1) for band in inside], axis=-1) + 1e-12)

    return _described(windows, describe, first=True, like=like)


def log_power_spectrum(windows: Windows, most_hz: float = 45.0, *, like: Windows | None = None) -> np.ndarray:
    """`(window, channel x frequency)` log power from 1 to `most_hz` in steps of 1 Hz, for rhythms of known frequency.

    Welch's method with segments of a second, or the shortest window; channels of a region are averaged afterwards.
    `like` as in `log_band_power`.

    Raises:
        ValueError: where windows are shorter than half a second or no frequency lies under Nyquist.
    """
    sfreq = one_rate(windows)
    segment = min(int((windows if like is None else like).samples.min()), round(sfreq))
    hertz = np.fft.rfftfreq(segment, 1 / sfreq)
    inside = (hertz >= 1) & (hertz <= min(most_hz, 0.9 * sfreq / 2))
    if segment < sfreq / 2 or not inside.any():
        raise Unfit(
            f"windows of {segment / sfreq:g} s at {sfreq:g} Hz show no spectrum up to {most_hz:g} Hz; use longer ones"
        )

    def describe(signal: np.ndarray) -> np.ndarray:
        return np.log(welch(signal, sfreq, nperseg=segment)[1][..., inside] + 1e-12)

    return _described(windows, describe, first=True, like=like)


def downsampled_signal(windows: Windows, hz: float = 10.0, *, like: Windows | None = None) -> np.ndarray:
    """`(window, channel x time)` the signal averaged over bins of `1 / hz` seconds: slow potentials, evoked fields.

    `like` as in `log_band_power`.

    Raises:
        ValueError: where windows differ in length or are shorter than a bin.
    """
    sfreq, lengths = one_rate(windows), np.unique(windows.samples)
    size = max(1, round(sfreq / hz))
    bins = int(lengths[0]) // size
    if len(lengths) > 1 or bins == 0:
        raise Unfit(f"windows of {lengths / sfreq} s; expected one length of at least {size / sfreq:g} s")

    def describe(signal: np.ndarray) -> np.ndarray:
        return signal[..., : bins * size].reshape(*signal.shape[:-1], bins, size).mean(axis=-1)

    return _described(windows, describe, like=like)


def tangent_space(windows: Windows, shrinkage: float = 0.1) -> np.ndarray:
    """`(window, pair)` upper triangle of the matrix logarithm of each window's covariance: log-Euclidean tangent space.

    Arsigny et al. 2006, Log-Euclidean metrics. The covariance is shrunk towards its mean variance; off-diagonal
    elements are multiplied by the root of 2, so that distances are those of the matrices.
    """
    one_rate(windows)

    def describe(signal: np.ndarray) -> np.ndarray:
        signal = signal - signal.mean(axis=-1, keepdims=True)
        covariance = signal @ signal.swapaxes(1, 2) / signal.shape[-1]
        n = covariance.shape[-1]
        level = np.trace(covariance, axis1=1, axis2=2)[:, None, None] / n
        power, basis = np.linalg.eigh((1 - shrinkage) * covariance + shrinkage * level * np.eye(n))
        logarithm = (basis * np.log(np.maximum(power, 1e-12))[:, None, :]) @ basis.swapaxes(1, 2)
        row, column = np.triu_indices(n)
        return logarithm[:, row, column] * np.where(row == column, 1.0, np.sqrt(2.0))

    return _described(windows, describe)


def binned_counts(windows: Windows, bin_s: float = 0.05, lags: int = 6) -> np.ndarray:
    """`(window, neuron x lag)` spikes of each neuron in the last `lags` bins of `bin_s` seconds of each window.

    Raises:
        ValueError: where the recordings share no neuron.
    """
    used = windows.used
    shared = sorted(set.intersection(*(set(s.channel_ids) for s in used)))
    if not shared:
        raise Unfit(
            f"{len(used)} recordings share no neuron; decode each animal by itself, and of an animal sessions of "
            "tracked neurons only (`brainfm ingest --tracked`), or blocks of time of one session"
        )
    out = np.zeros((len(windows), len(shared), lags), np.float32)
    for r in np.unique(windows.recording):
        stored, rows = windows.recordings[r], np.flatnonzero(windows.recording == r)
        ids, (time, neuron) = stored.channel_ids, stored.spikes(0, stored.duration + 1)
        end = (windows.start[rows] + windows.samples[rows]) / rate(stored)
        edges = end[:, None] + bin_s * np.arange(-lags, 1)
        for column, name in enumerate(shared):
            own = time[neuron == ids.index(name)]
            out[rows, column] = np.diff(np.searchsorted(own, edges), axis=1)
    return out.reshape(len(windows), -1)


def montage(windows: Windows) -> tuple[dict[int, np.ndarray], str]:
    """How the channels of each recording become one set of channels for all.

    Channels that are good in every recording are matched by name if there are three or more. Otherwise, and for
    implanted electrodes of several people, whose names do not mean the same place, channels are averaged into nine
    regions of the head: left, middle, right by back, centre, front. A region that a recording lacks takes the mean of
    those that it has. Channels without positions count as middle and centre.

    Returns:
        Row of `recordings` → `(shared channel, channel)` weights that sum to one; and a sentence for the result's note.
    """
    used = {int(r): windows.recordings[r] for r in np.unique(windows.recording)}
    good = {r: ~s.channels.bad & (np.array(s.channels.kind) != "misc") for r, s in used.items()}
    silent = [s.id for r, s in used.items() if not good[r].any()]
    if silent:
        raise Unfit(f"{silent[0]} has no good channel; leave the recording out")
    common = set.intersection(
        *({n for n, g in zip(s.channels.name, good[r], strict=True) if g} for r, s in used.items())
    )
    kinds = {k for s in used.values() for k in s.channels.kind}
    people = {s.person for s in used.values()}
    if len(used) == 1 or (len(common) >= 3 and not (kinds & IMPLANTED and len(people) > 1)):
        order = [n for n in next(iter(used.values())).channels.name if n in common]
        rows = {r: [s.channels.name.index(n) for n in order] for r, s in used.items()}
        weights = {r: np.eye(len(s.channels))[rows[r]] for r, s in used.items()}
        return weights, f"Linear baselines of signals use the {len(order)} channels that are good in every recording."
    region = {r: np.where(good[r], _region(s), -1) for r, s in used.items()}
    present = sorted({int(i) for x in region.values() for i in x if i >= 0})
    weights = {}
    for r, x in region.items():
        member = (x == np.array(present)[:, None]).astype(float)
        size = member.sum(axis=1, keepdims=True)
        mean = member / np.maximum(size, 1)
        weights[r] = np.where(size > 0, mean, mean[size[:, 0] > 0].mean(axis=0))
    return weights, (
        f"Linear baselines of signals use means over {len(present)} regions of the head, for the recordings' channels "
        "differ."
    )


def shared_signals(
    windows: Windows, size: int = 256, *, like: Windows | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Row numbers, weights of the recording, and signals `(window, channel, time)` in typical amplitudes, in groups.

    Weights are those of `montage(like)`, windows of the same recordings and more; of these windows where None.
    """
    weights = montage(windows if like is None else like)[0]
    for r in np.unique(windows.recording):
        stored = windows.recordings[r]
        gain = np.array([1 / TYPICAL[k] for k in stored.channels.kind], np.float32)[:, None]
        for n in np.unique(windows.samples[windows.recording == r]):
            rows = np.flatnonzero((windows.recording == r) & (windows.samples == n))
            for part in np.split(rows, range(size, len(rows), size)):
                signal = np.stack([stored.signal(int(a), int(a + n)) for a in windows.start[part]])
                yield part, weights[int(r)], signal * gain


def _described(  # type: ignore[no-untyped-def]
    windows: Windows, describe, first: bool = False, like: Windows | None = None
) -> np.ndarray:
    """`describe` of each window's shared channels, flattened; `first` describes channels, then averages regions."""
    out: np.ndarray | None = None
    for rows, weights, signal in shared_signals(windows, like=like):
        if first:
            found = np.einsum("sc,wcf->wsf", weights, describe(signal))
        else:
            found = describe(weights.astype(np.float32) @ signal)
        if out is None:
            out = np.zeros((len(windows), int(np.prod(found.shape[1:]))), np.float32)
        out[rows] = found.reshape(len(rows), -1)
    if out is None:
        raise Unfit("no windows to describe; choose a shorter window or other recordings")
    return out


def _region(stored: Stored) -> np.ndarray:
    """`(channel,)` number of the region of the head, 0 to 8."""
    x, y = np.nan_to_num(stored.channels.position[:, :2]).T
    return 3 * np.digitize(x, (-MIDLINE_M, MIDLINE_M)) + np.digitize(y, (-CENTRE_M, CENTRE_M))


def one_rate(windows: Windows) -> float:
    """Samples per second of all recordings of the windows.

    Raises:
        ValueError: where they differ, and for spikes.
    """
    rates = {windows.recordings[r].sfreq for r in np.unique(windows.recording)}
    if len(rates) != 1 or rates == {0.0}:
        raise Unfit(f"got sampling rates {sorted(rates)} Hz; signals at one rate are needed (spikes: 'binned_counts')")
    return rates.pop()
