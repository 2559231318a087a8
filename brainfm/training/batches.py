"""Windows of shards → token batches: one preallocated batch per step, any mix of montages, any device.

The only place where numpy data becomes tensors.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from brainfm.recording import ACTIVITY, KINDS, TYPICAL, Channels
from brainfm.shards.read import Corpus, Windows
from brainfm.shards.stored import Stored, rate
from brainfm.tokens import Facts, TokenBatch

if TYPE_CHECKING:
    from brainfm.training.input_checks import Expected


@dataclass(frozen=True)
class Batcher:
    """How windows become batches for one model.

    Attributes:
        patch: samples per token of a sampled signal; windows are padded to whole patches.
        neurons: id of a neuron (`Stored.channel_ids`) → number, for models that know neurons; None elsewhere.
        subjects: `dataset/subject` → number, as `aligned["subject"]`.
        sessions: id of a recording → number, as `aligned["session"]`, -1 for others; None for models without sessions.
        labels: condition → class number, as `aligned["label"]`; unlabelled where None.
        normalised: scale by the normaliser that ingest fitted to the recording, not by its kinds' typical amplitudes.
        aligned: names of the covariates to bring along, `(batch, time, feature)`; NaN where a recording has none. When
            the samples were taken is `name/time` `(batch, time)`, seconds from the window's start.
        bin_s: for spikes, seconds of a bin: a batch then holds counts as a grid of neurons and bins; None keeps events.
        expected: what the model was trained to read, where it reads sensors; see `brainfm.training.input_checks`.
    """

    patch: int = 1
    neurons: dict[str, int] | None = None
    subjects: dict[str, int] | None = None
    sessions: dict[str, int] | None = None
    labels: dict[str, int] | None = None
    aligned: tuple[str, ...] = ()
    normalised: bool = False
    bin_s: float | None = None
    expected: Expected | None = None

    def __call__(self, windows: Windows, index: Sequence[int] | np.ndarray | None = None) -> TokenBatch:
        """The rows `index` of `windows` (all by default) as one batch.

        Raises:
            ValueError: where sampling rates are mixed, a neuron is unknown to the model, or a window is not what it
                reads.
        """
        rows = np.arange(len(windows)) if index is None else np.asarray(index)
        stored = [windows.recordings[r] for r in windows.recording[rows]]
        start, samples = windows.start[rows], windows.samples[rows]
        rates = {s.sfreq for s in stored}
        if len(rates) != 1:
            raise ValueError(
                f"one batch needs one sampling rate; got {sorted(rates)} Hz: ingest the datasets at one `sfreq_hz`"
            )
        if self.expected is not None:
            self.expected.check_windows(stored, samples)
        if rates == {0.0}:
            batch = (self._events if self.bin_s is None else self._binned)(stored, start, samples)
        else:
            batch = self._signals(stored, start, samples, rates.pop())
            if self.neurons is not None:
                batch.aligned["neuron"] = self._neuron_numbers(stored, batch.kind.shape[1])
        if self.subjects is not None:
            batch.aligned["subject"] = torch.tensor([self.subjects.get(s.person, -1) for s in stored])
        if self.sessions is not None:
            batch.aligned["session"] = torch.tensor([self.sessions.get(s.id, -1) for s in stored])
        if self.labels is not None:
            batch.aligned["label"] = torch.tensor([self.labels[word] for word in windows.label[rows]])
        for name in self.aligned:
            batch.aligned[name], batch.aligned[f"{name}/time"] = _covariate(name, stored, start, samples)
        return batch

    def trials(self, signal: np.ndarray, channels: Channels, sfreq: float) -> TokenBatch:
        """Trials in memory `(trial, channel, time)`, all in the same channels, as one batch."""
        n, samples = len(signal), np.full(len(signal), signal.shape[-1])
        if self.expected is not None:
            self.expected.check_length("each trial", signal.shape[-1])
            self.expected.check("the trials", channels, sfreq)

        def write(i: int, out: np.ndarray) -> None:
            out[...] = signal[i]

        return self._layout([channels] * n, samples, sfreq, write)

    def _signals(self, stored: list[Stored], start: np.ndarray, samples: np.ndarray, sfreq: float) -> TokenBatch:
        begin, end = start.tolist(), (start + samples).tolist()
        opened = {id(s): s.open() for s in {id(s): s for s in stored}.values()}
        fill = [opened[id(s)] for s in stored]
        fitted = {id(s): _fitted(s) for s in stored} if self.normalised else {}

        def write(i: int, out: np.ndarray) -> None:
            fill[i](out, begin[i], end[i])
            if fitted:
                centre, factor = fitted[id(stored[i])]
                out -= centre
                out *= factor

        return self._layout([s.channels for s in stored], samples, sfreq, write)

    def _layout(
        self, tables: list[Channels], samples: np.ndarray, sfreq: float, write: Callable[[int, np.ndarray], None]
    ) -> TokenBatch:
        """Windows → one grid of tokens, padded with zeros and masked.

        `write(i, out)` puts window i into `out` `(channel, time)`, a part of the batch: the only copy that is made. It
        is scaled there while it is still in the processor's cache.
        """
        channels, patches = max(map(len, tables)), -(-int(samples.max()) // self.patch)
        into = _memory(len(tables), channels, patches * self.patch)
        montages, which = _montages_of(tables)
        rows, length = [len(montages[n].kind) for n in which], samples.tolist()
        even = min(rows) == channels and min(length) == into.shape[2]  # then nothing is padded
        for i, number in enumerate(which):
            window = into[i]
            if not even:
                window[rows[i] :] = 0
                window[:, length[i] :] = 0
                window = window[: rows[i], : length[i]]
            write(i, window)
            window *= montages[number].gain
        if even:
            real = torch.ones(len(tables), channels * patches, dtype=torch.bool)
        else:
            sensor = np.arange(channels) < np.array(rows)[:, None]
            patch = np.arange(patches) < (samples // self.patch)[:, None]
            real = torch.from_numpy(sensor[:, :, None] & patch[:, None]).flatten(1)
        values = torch.from_numpy(into)
        place, orientation, kind = _geometry(tables, channels)
        values = values.view(len(tables), channels * patches, self.patch)
        time, channel = (part.expand(len(tables), -1) for part in _grid(channels, patches, self.patch / sfreq))
        return TokenBatch(values, time, channel, place, orientation, kind, real, (channels, patches), sfreq, {})

    def _events(self, stored: list[Stored], start: np.ndarray, samples: np.ndarray) -> TokenBatch:
        found = [s.spikes(a / rate(s), (a + n) / rate(s)) for s, a, n in zip(stored, start, samples, strict=True)]
        channels, longest = max(len(s.channels) for s in stored), max(1, max(len(t) for t, _ in found))
        time = torch.zeros(len(stored), longest)
        channel = torch.zeros(len(stored), longest, dtype=torch.int64)
        mask = torch.zeros(len(stored), longest, dtype=torch.bool)
        for i, (seconds, neuron) in enumerate(found):
            n = len(seconds)
            time[i, :n] = torch.from_numpy(seconds - start[i] / rate(stored[i]))
            channel[i, :n] = torch.from_numpy(neuron.astype(np.int64))
            mask[i, :n] = True
        aligned = {} if self.neurons is None else {"neuron": self._neuron_numbers(stored, channels)}
        place, orientation, kind = _geometry([s.channels for s in stored], channels)
        return TokenBatch(
            mask.float().unsqueeze(-1), time, channel, place, orientation, kind, mask, None, None, aligned
        )

    def _binned(self, stored: list[Stored], start: np.ndarray, samples: np.ndarray) -> TokenBatch:
        """Counts as a grid, `values (batch, neuron x bin, 1)`: memory follows neurons and bins, not spikes.

        A bin takes what lies from its start to before its end. Shorter windows and fewer neurons are masked.

        Raises:
            ValueError: where a window is no whole number of bins, or `bin_s` is not positive.
        """
        width = self.bin_s or 0.0
        seconds = samples / np.array([rate(s) for s in stored])
        bins = np.round(seconds / width).astype(int) if width > 0 else np.zeros(len(stored), int)
        if (bins < 1).any() or np.abs(bins * width - seconds).max() > 1e-6:
            raise ValueError(
                f"windows of {', '.join(f'{s:g}' for s in np.unique(seconds)[:3])} s in bins of {width:g} s; expected "
                "a whole number of bins: change length_s of the windows or the model's bin_s"
            )
        channels, most = max(len(s.channels) for s in stored), int(bins.max())
        counts = np.zeros((len(stored), channels, most), np.float32)
        mask = np.zeros((len(stored), channels, most), bool)
        for i, s in enumerate(stored):
            begin, end, own = start[i] / rate(s), (start[i] + samples[i]) / rate(s), len(s.channels)
            time, neuron = s.spikes(begin, end)
            bin_ = np.minimum(((time - begin) / width + 1e-6).astype(np.int64), bins[i] - 1)
            flat = np.bincount(neuron.astype(np.int64) * bins[i] + bin_, minlength=own * bins[i])
            counts[i, :own, : bins[i]] = flat.reshape(own, bins[i])
            mask[i, :own, : bins[i]] = True
        aligned = {} if self.neurons is None else {"neuron": self._neuron_numbers(stored, channels)}
        place, orientation, kind = _geometry([s.channels for s in stored], channels)
        when, channel = (part.expand(len(stored), -1) for part in _grid(channels, most, width))
        return TokenBatch(
            torch.from_numpy(counts).flatten(1).unsqueeze(-1), when, channel, place, orientation, kind,
            torch.from_numpy(mask).flatten(1), (channels, most), 1 / width, aligned,
        )  # fmt: skip

    def _neuron_numbers(self, stored: list[Stored], channels: int) -> torch.Tensor:
        number = torch.full((len(stored), channels), -1)
        for i, s in enumerate(stored):
            ids = s.channel_ids
            unknown = [x for x in ids if x not in (self.neurons or {})]
            if unknown:
                raise ValueError(
                    f"{s.id}: {len(unknown)} of {len(ids)} neurons are unknown to this model (first: {unknown[0]}); "
                    "take sessions of tracked neurons only (`brainfm ingest --tracked`), or blocks of time of one "
                    "session (evaluations blocks and few_labels); in Python `model.add_neurons` adds some to be fitted"
                )
            number[i, : len(ids)] = torch.tensor([self.neurons[x] for x in ids])  # type: ignore[index]
        return number


def _fitted(stored: Stored) -> tuple[np.ndarray, np.ndarray]:
    """Centre of each channel, and what makes its scale the typical amplitude of its kind, `(channel, 1)` both."""
    normaliser = stored.normaliser()
    if normaliser is None:
        raise ValueError(f"{stored.id} has no normaliser; ingest it with the cleaning step `scale`")
    typical = np.array([TYPICAL[k] for k in stored.channels.kind])
    return normaliser.centre.astype(np.float32)[:, None], (typical / normaliser.scale).astype(np.float32)[:, None]


class _Montage:
    """What batches need of one channel table, as arrays that are made once.

    Attributes:
        gain: one over the typical amplitude of each channel's kind, 0 for bad channels; a number where all agree.
        place, orientation, kind: as in `TokenBatch`, without padding.
    """

    def __init__(self, table: Channels) -> None:
        gain = np.array([1.0 / TYPICAL[k] for k in table.kind], np.float32)
        gain[table.bad] = 0.0
        self.table = table  # held, so that its identity stays its own
        self.gain = gain[0] if (gain == gain[:1]).all() else gain[:, None]
        self.place = torch.from_numpy(table.position.astype(np.float32))
        self.orientation = torch.from_numpy(table.orientation.astype(np.float32))
        self.kind = torch.tensor([KINDS.index(k) for k in table.kind])


#: Memory of the latest batches, each used again once no tensor refers to it any more.
_buffers: list[np.ndarray] = []
#: How many of them are kept: those of the step, of the next one, and of one that somebody holds.
BUFFERS = 3


def _references(number: int) -> int:
    return sys.getrefcount(_buffers[number])


def _memory(*shape: int) -> np.ndarray:
    """Uninitialised float32 of this shape, in old pages where some are free: fresh ones cost as much as the copy."""
    size = math.prod(shape)
    for number in range(len(_buffers)):
        if size <= _buffers[number].size <= 2 * size and _references(number) == _UNUSED:
            return _buffers[number][:size].reshape(shape)
    _buffers.append(np.empty(size, np.float32))
    del _buffers[:-BUFFERS]
    return _buffers[-1].reshape(shape)


_buffers.append(np.empty(0, np.float32))
#: References to a buffer that nobody uses, as this interpreter counts them.
_UNUSED = _references(0)
_buffers.clear()


@lru_cache(64)
def _grid(channels: int, patches: int, step: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Time in seconds and channel of each token `(token,)` of a grid, channel by channel."""
    time = (torch.arange(patches) * step).repeat(channels)
    return time, torch.arange(channels).repeat_interleave(patches)


_montages: dict[tuple[int, bytes], _Montage] = {}


def _montages_of(tables: list[Channels]) -> tuple[list[_Montage], list[int]]:
    """The different montages of a batch, and which of them each sample has: most batches repeat a few."""
    number: dict[int, int] = {}
    which = [number.setdefault(id(table), len(number)) for table in tables]
    found = []
    for n in range(len(number)):
        table = tables[which.index(n)]
        key = (id(table), table.bad.tobytes())
        if key not in _montages:
            if len(_montages) >= 4096:
                _montages.clear()
            _montages[key] = _Montage(table)
        found.append(_montages[key])
    return found, which


def _geometry(tables: list[Channels], channels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    montages, which = _montages_of(tables)
    if len(montages) == 1 and len(montages[0].kind) == channels:
        one = montages[0]
        return tuple(x.expand(len(tables), *x.shape) for x in (one.place, one.orientation, one.kind))  # type: ignore
    place = torch.full((len(montages), channels, 3), torch.nan)
    orientation = torch.zeros(len(montages), channels, 3)
    kind = torch.full((len(montages), channels), -1)
    for i, montage in enumerate(montages):
        n = len(montage.kind)
        place[i, :n], orientation[i, :n], kind[i, :n] = montage.place, montage.orientation, montage.kind
    rows = torch.tensor(which)
    return place[rows], orientation[rows], kind[rows]


def _covariate(name: str, stored: list[Stored], start: np.ndarray, samples: np.ndarray) -> tuple[torch.Tensor, ...]:
    """The covariate's samples inside each window, `(batch, time, feature)`, and their seconds from its start.

    The last slot is the last sample inside the window; NaN in front where a window has fewer than another of the batch,
    or one less than its length tells, outside the series, and where there is none. A sample at a window's end is the
    next one's.
    """
    series = {s.id: s.aligned(name) for s in stored if name in s.aligned_names}
    if not series:
        return torch.full((len(stored), 1, 1), torch.nan), torch.zeros(len(stored), 1)
    rates = np.array([rate(s) for s in stored])
    begin, seconds, own = start / rates, samples / rates, [series.get(s.id) for s in stored]
    hz, origin = (np.array([0.0 if x is None else getattr(x, k) for x in own]) for k in ("sfreq", "start"))
    first, stop = (np.ceil((edge - origin) * hz - 1e-6).astype(int) for edge in (begin, begin + seconds))
    room = np.ceil(seconds * hz - 1e-6).astype(int)  # up to a whole sample; a rate a hair above it may give one more
    most = max(1, int(np.maximum(room, stop - first).max()))
    out = np.full((len(stored), most, max(x.values.shape[1] for x in series.values())), np.nan, np.float32)
    step = np.arange(most, dtype=np.float32)
    time = step * (seconds / most).astype(np.float32)[:, None]
    for i, x in enumerate(own):
        if x is not None:
            slot, low, high = stop[i] - most, max(first[i], 0), min(stop[i], len(x.values))
            if high > low:
                out[i, low - slot : high - slot, : x.values.shape[1]] = x.values[low:high]
            ahead = slot / x.sfreq + x.start - begin[i]
            time[i] = step * np.float32(1 / x.sfreq) + np.float32(ahead if abs(ahead) > 1e-9 else 0.0)
    return torch.from_numpy(out), torch.from_numpy(time)


def facts_of(corpus: Corpus, window_s: float) -> Facts:
    """What a model is built from, read from the headers of a corpus."""
    recordings = corpus.recordings
    rates = sorted({r.sfreq for r in recordings})
    if len(rates) > 1:
        raise ValueError(
            f"{corpus.root}: sampling rates {rates} Hz in one corpus; ingest its datasets at one `sfreq_hz`"
        )
    regions = [tuple(r.channels.name) for r in recordings if "region" in r.channels.kind]
    neurons = {x for r in recordings if "neuron" in r.channels.kind for x in r.channel_ids}
    return Facts(
        modality=tuple(sorted({r.modality for r in recordings})),
        kinds=tuple(sorted({k for r in recordings for k in r.channels.kind})),
        sfreq=rates[0],
        window_s=window_s,
        channels=max(len(r.channels) for r in recordings),
        subjects=tuple(corpus.people),
        regions=regions[0] if regions else (),
        neurons=tuple(sorted(neurons)),
        sessions=tuple(sorted(r.id for r in recordings if "neuron" in r.channels.kind)),
        aligned={n: width for r in recordings for n, width in r.aligned_widths.items() if n not in ACTIVITY},
    )


class WindowDataset(Dataset):
    """Windows as a torch dataset that hands out whole batches: `__getitems__(rows) -> TokenBatch`."""

    def __init__(self, windows: Windows, batcher: Batcher) -> None:
        self.windows, self.batcher = windows, batcher

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, row: int) -> TokenBatch:
        return self.batcher(self.windows, [row])

    def __getitems__(self, rows: list[int]) -> TokenBatch:
        return self.batcher(self.windows, rows)


class ArrayDataset(Dataset):
    """Trials in memory as a dataset of whole batches.

    Args:
        signal: `(trial, channel, time)` in SI units. channels: their table. sfreq: samples per second.
        batcher: how they become batches.
    """

    def __init__(self, signal: np.ndarray, channels: Channels, sfreq: float, batcher: Batcher) -> None:
        self.signal, self.channels, self.sfreq, self.batcher = signal, channels, sfreq, batcher

    def __len__(self) -> int:
        return len(self.signal)

    def __getitems__(self, rows: list[int]) -> TokenBatch:
        return self.batcher.trials(self.signal[rows], self.channels, self.sfreq)


def batches(windows: Windows, batcher: Batcher, size: int = 64) -> Iterator[TokenBatch]:
    """All windows in order, `size` at a time: for evaluation."""
    for start in range(0, len(windows), size):
        yield batcher(windows, np.arange(start, min(start + size, len(windows))))
