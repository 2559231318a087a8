"""Windows of shards → token batches: one preallocated batch per step, any mix of montages, any device.

The only place where numpy data becomes tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from brainfm.recording import KINDS, TYPICAL, Channels
from brainfm.shards.read import Corpus, Stored, Windows, rate
from brainfm.tokens import Facts, TokenBatch


@dataclass(frozen=True)
class Batcher:
    """How windows become batches for one model.

    Attributes:
        patch: samples per token of a sampled signal; windows are padded to whole patches.
        neurons: `dataset/subject/neuron` → number, for models that know neurons; None elsewhere.
        subjects: `dataset/subject` → number, as `aligned["subject"]`.
        labels: condition → class number, as `aligned["label"]`; unlabelled where None.
        aligned: names of the covariates to bring along, `(batch, time, feature)`; NaN where a recording has none.
    """

    patch: int = 1
    neurons: dict[str, int] | None = None
    subjects: dict[str, int] | None = None
    labels: dict[str, int] | None = None
    aligned: tuple[str, ...] = ()

    def __call__(self, windows: Windows, index: Sequence[int] | np.ndarray | None = None) -> TokenBatch:
        """The rows `index` of `windows` (all by default) as one batch.

        Raises:
            ValueError: where sampling rates are mixed or a neuron is unknown to the model.
        """
        rows = np.arange(len(windows)) if index is None else np.asarray(index)
        stored = [windows.recordings[r] for r in windows.recording[rows]]
        start, samples = windows.start[rows], windows.samples[rows]
        rates = {s.sfreq for s in stored}
        if len(rates) != 1:
            raise ValueError(
                f"one batch needs one sampling rate; got {sorted(rates)} Hz: ingest the datasets at one `sfreq_hz`"
            )
        if rates == {0.0}:
            batch = self._events(stored, start, samples)
        else:
            batch = self._signals(stored, start, samples, rates.pop())
        if self.subjects is not None:
            batch.aligned["subject"] = torch.tensor([self.subjects.get(s.person, -1) for s in stored])
        if self.labels is not None:
            batch.aligned["label"] = torch.tensor([self.labels[word] for word in windows.label[rows]])
        for name in self.aligned:
            batch.aligned[name] = _covariate(name, stored, start, samples)
        return batch

    def trials(self, signal: np.ndarray, channels: Channels, sfreq: float) -> TokenBatch:
        """Trials in memory `(trial, channel, time)`, all in the same channels, as one batch."""
        n = len(signal)
        return self._layout(list(signal), [channels] * n, np.full(n, signal.shape[-1]), sfreq)

    def _signals(self, stored: list[Stored], start: np.ndarray, samples: np.ndarray, sfreq: float) -> TokenBatch:
        found = [s.signal(int(a), int(a + n)) for s, a, n in zip(stored, start, samples, strict=True)]
        return self._layout(found, [s.channels for s in stored], samples, sfreq)

    def _layout(self, found: list[np.ndarray], tables: list[Channels], samples: np.ndarray, sfreq: float) -> TokenBatch:
        """Windows `(channel, time)` → one grid of tokens, padded with zeros and masked."""
        channels, patches = max(map(len, tables)), -(-int(samples.max()) // self.patch)
        values = torch.zeros(len(found), channels, patches * self.patch)
        real = torch.zeros(len(found), channels, patches, dtype=torch.bool)
        into = values.numpy()
        different, which = _distinct(tables)
        gains = [_gain(table)[:, None] for table in different]
        for i, window in enumerate(found):
            np.multiply(window, gains[which[i]], out=into[i, : len(window), : samples[i]], casting="same_kind")
            real[i, : len(window), : int(samples[i]) // self.patch] = True
        place, orientation, kind = _geometry(tables, channels)
        values = values.view(len(found), channels * patches, self.patch)
        time = (torch.arange(patches) * (self.patch / sfreq)).repeat(channels).expand(len(found), -1)
        channel = torch.arange(channels).repeat_interleave(patches).expand(len(found), -1)
        return TokenBatch(
            values, time, channel, place, orientation, kind, real.flatten(1), (channels, patches), sfreq, {}
        )

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

    def _neuron_numbers(self, stored: list[Stored], channels: int) -> torch.Tensor:
        number = torch.full((len(stored), channels), -1)
        for i, s in enumerate(stored):
            ids = [f"{s.person}/{name}" for name in s.channels.name]
            unknown = [x for x in ids if x not in (self.neurons or {})]
            if unknown:
                raise ValueError(
                    f"{s.id}: {len(unknown)} of {len(ids)} neurons are unknown to this model (first: {unknown[0]}); "
                    "add them with `model.add_neurons` and fit them, as transfer to a new animal does"
                )
            number[i, : len(ids)] = torch.tensor([self.neurons[x] for x in ids])  # type: ignore[index]
        return number


def _gain(table: Channels) -> np.ndarray:
    """`(channel,)` one over the typical amplitude of each channel's kind; 0 for bad channels."""
    gain = np.array([1.0 / TYPICAL[k] for k in table.kind], np.float32)
    gain[table.bad] = 0.0
    return gain


def _distinct(tables: list[Channels]) -> tuple[list[Channels], list[int]]:
    """The different tables of a batch, and which of them each sample has: most batches repeat a few."""
    number: dict[int, int] = {}
    which = [number.setdefault(id(table), len(number)) for table in tables]
    return [tables[which.index(n)] for n in range(len(number))], which


def _geometry(tables: list[Channels], channels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    different, which = _distinct(tables)
    place = torch.full((len(different), channels, 3), torch.nan)
    orientation = torch.zeros(len(different), channels, 3)
    kind = torch.full((len(different), channels), -1)
    for i, table in enumerate(different):
        n = len(table)
        place[i, :n] = torch.from_numpy(table.position.astype(np.float32))
        orientation[i, :n] = torch.from_numpy(table.orientation.astype(np.float32))
        kind[i, :n] = torch.tensor([KINDS.index(k) for k in table.kind])
    return place[which], orientation[which], kind[which]


def _covariate(name: str, stored: list[Stored], start: np.ndarray, samples: np.ndarray) -> torch.Tensor:
    """The covariate over each window, `(batch, time, feature)`; NaN outside the series and where there is none."""
    series = {s.id: s.aligned(name) for s in stored if name in s.aligned_names}
    if not series:
        return torch.full((len(stored), 1, 1), torch.nan)
    features = max(x.values.shape[1] for x in series.values())
    length = max(
        round(n / rate(s) * series[s.id].sfreq) for s, n in zip(stored, samples, strict=True) if s.id in series
    )
    out = np.full((len(stored), length, features), np.nan, np.float32)
    for i, s in enumerate(stored):
        if s.id in series:
            x = series[s.id]
            first = round((start[i] / rate(s) - x.start) * x.sfreq)
            last = min(first + round(samples[i] / rate(s) * x.sfreq), len(x.values))
            low = max(first, 0)
            if last > low:
                out[i, low - first : last - first, : x.values.shape[1]] = x.values[low:last]
    return torch.from_numpy(out)


def facts_of(corpus: Corpus, window_s: float) -> Facts:
    """What a model is built from, read from the headers of a corpus."""
    recordings = corpus.recordings
    rates = sorted({r.sfreq for r in recordings})
    if len(rates) > 1:
        raise ValueError(
            f"{corpus.root}: sampling rates {rates} Hz in one corpus; ingest its datasets at one `sfreq_hz`"
        )
    regions = [tuple(r.channels.name) for r in recordings if "region" in r.channels.kind]
    neurons = {f"{r.person}/{n}" for r in recordings if "neuron" in r.channels.kind for n in r.channels.name}
    return Facts(
        modality=tuple(sorted({r.modality for r in recordings})),
        kinds=tuple(sorted({k for r in recordings for k in r.channels.kind})),
        sfreq=rates[0],
        window_s=window_s,
        channels=max(len(r.channels) for r in recordings),
        subjects=tuple(corpus.people),
        regions=regions[0] if regions else (),
        neurons=tuple(sorted(neurons)),
        aligned={n: width for r in recordings for n, width in r.aligned_widths.items()},
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
