"""Codes → signals, and how near they come to the signals that they were made from.

The decoder of a tokenizer gives each channel and window in units of its own deviation, after the average reference of
its kind of sensor: z-scores, not volts. With the source at hand they can be put on the source's scale.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from brainfm.codebooks.braintokenizer import BrainTokenizer, z_score
from brainfm.shards.codes import StoredCodes
from brainfm.shards.read import Windows
from brainfm.shards.stored import Stored
from brainfm.tokens import TokenBatch
from brainfm.training.batches import Batcher

#: Windows of single channels that are decoded at once: they decide the memory.
ROWS = 1024
#: Blocks of windows that are kept, for a reader whose pieces end inside one.
KEPT = 3


@dataclass
class Error:
    """Sums of what was compared for one kind of channel; a window of a channel is one row.

    Attributes:
        rows: windows of channels. correlation: sum of their Pearson correlations.
        squared, total: sums over samples of the squared error and of the squared z-scores.
    """

    rows: int = 0
    correlation: float = 0.0
    squared: float = 0.0
    total: float = 0.0

    def add(self, target: np.ndarray, made: np.ndarray) -> None:
        """Compare z-scores `(row, sample)`."""
        target, made = target.astype(np.float64), made.astype(np.float64)
        a, b = (x - x.mean(axis=1, keepdims=True) for x in (target, made))
        scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        self.correlation += float(np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(a)), where=scale > 0).sum())
        self.rows += len(a)
        self.squared += float(((made - target) ** 2).sum())
        self.total += float((target**2).sum())

    def plus(self, other: Error) -> Error:
        """The error over both."""
        return Error(*(getattr(self, k) + getattr(other, k) for k in vars(self)))

    def figures(self) -> dict[str, Any]:
        """channel_windows, pcc (mean Pearson correlation), r2 and nrmse (of z-scores); None without any window."""
        if not self.rows or not self.total:
            return {"channel_windows": self.rows, "pcc": None, "r2": None, "nrmse": None}
        share = self.squared / self.total
        return {
            "channel_windows": self.rows, "pcc": self.correlation / self.rows, "r2": 1 - share, "nrmse": share**0.5,
        }  # fmt: skip


@dataclass
class Decoded:
    """What the codes of a recording give back, decoded when it is read, a block of windows at a time.

    Attributes:
        model: the tokenizer, in evaluation mode. stored: the codes.
        source: the recording that they were made from, to compare with; None to compare with nothing.
        scaled: put the windows on the source's scale, in SI units after the average reference.
        errors: kind of channel → what was compared so far; each window is compared once, when it is first decoded.
    """

    model: BrainTokenizer
    stored: StoredCodes
    source: Stored | None = None
    scaled: bool = False
    errors: dict[str, Error] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scaled and self.source is None:
            raise ValueError(f"{self.stored.id}: without its source there is no scale to put the signal on")
        channels = self.stored.channels
        none = np.zeros((1, len(channels), self.model.patch), np.float32)
        self.batch: TokenBatch = Batcher(patch=self.model.patch).trials(none, channels, self.stored.sfreq)
        self.size = max(1, ROWS // max(1, len(channels)))
        self.kept: dict[int, np.ndarray] = {}
        self.compared = 0
        codes = self.stored.all_codes()
        shape = (self.model.sources, self.model.tokens_per_window, self.model.depth)
        if codes.shape[1:] != shape or self.stored.patch != self.model.patch:
            raise ValueError(
                f"{self.stored.id}: codes (source, token, depth) {codes.shape[1:]} of windows of {self.stored.patch} "
                f"samples; this tokenizer has {shape} and {self.model.patch}: use the tokenizer that made them"
            )

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples `start` to `stop` as `(channel, time)` float32; the mean where windows overlap, 0 where none is."""
        starts, patch = self.stored.starts, self.model.patch
        out = np.zeros((len(self.stored.channels), stop - start), np.float32)
        times = np.zeros(stop - start, np.float32)
        first, last = np.searchsorted(starts, (start - patch + 1, stop))
        for window in range(int(first), int(last)):
            number, row = divmod(window, self.size)
            begin = int(starts[window])
            a, b = max(start, begin), min(stop, begin + patch)
            out[:, a - start : b - start] += self._block(number)[:, row, a - begin : b - begin]
            times[a - start : b - start] += 1
        return out / np.maximum(times, 1)

    def gaps(self) -> list[tuple[int, int]]:
        """First and one-past-last samples of the stretches that no window covers."""
        found, at = [], 0
        for begin in self.stored.starts.tolist():
            if begin > at:
                found.append((at, begin))
            at = begin + self.model.patch
        return found + ([(at, self.stored.samples)] if at < self.stored.samples else [])

    def _block(self, number: int) -> np.ndarray:
        """Windows `number x size` to the next block's as `(channel, window, sample)`."""
        if number not in self.kept:
            while len(self.kept) >= KEPT:
                self.kept.pop(next(iter(self.kept)))
            rows = np.arange(number * self.size, min((number + 1) * self.size, len(self.stored.starts)))
            made = self._decode(rows)
            if self.source is not None:
                if number == self.compared:
                    self._compare(rows, made)
                    self.compared += 1
                if self.scaled:
                    level, scale = self._scale(rows)
                    made = made * scale + level
            self.kept[number] = made
        return self.kept[number]

    @torch.no_grad()
    def _decode(self, rows: np.ndarray) -> np.ndarray:
        codes = torch.from_numpy(self.stored.all_codes()[rows[0] : rows[-1] + 1].astype(np.int64))
        device = next(self.model.parameters()).device
        in_a_row = codes.transpose(0, 1).flatten(1, 2)[None].to(device)
        return self.model.decode(in_a_row, self.batch.to(device))[0].float().cpu().numpy()

    @torch.no_grad()
    def _compare(self, rows: np.ndarray, made: np.ndarray) -> None:
        source, patch = self.source, self.model.patch
        if source is None:
            return
        none = np.full(len(rows), "", dtype=object)
        samples = np.full(len(rows), patch)
        index = Windows((source,), np.zeros(len(rows), np.int64), self.stored.starts[rows], samples, none, none)
        cut = self.model.windows(Batcher(patch=patch)(index))
        target = z_score(cut)[:, :, 0].transpose(0, 1).numpy()
        real, kinds = cut.mask[:, :, 0].T.numpy(), np.array(source.channels.kind)
        for kind in dict.fromkeys(source.channels.kind):
            mine = real & (kinds == kind)[:, None]
            self.errors.setdefault(kind, Error()).add(target[mine], made[mine])

    def _scale(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of the source's windows after the average reference, `(channel, window, 1)`; 0 if bad."""
        if self.source is None:
            raise ValueError(f"{self.stored.id}: without its source there is no scale")
        begins, patch, channels = self.stored.starts[rows].tolist(), self.model.patch, self.source.channels
        x = np.stack([self.source.signal(a, a + patch) for a in begins], axis=1).astype(np.float64)
        real = (np.ptp(x, axis=2) > 0) & ~channels.bad[:, None]
        for kind in set(channels.kind):
            mine = np.array([k == kind for k in channels.kind])[:, None] & real
            count = mine.sum(axis=0)
            mean = np.einsum("cws,cw->ws", x, mine.astype(float)) / np.maximum(count, 1)[:, None]
            x -= np.where((mine & (count > 1))[..., None], mean, 0.0)
        level, scale = x.mean(axis=2) * real, x.std(axis=2, ddof=1) * real
        return level[..., None].astype(np.float32), scale[..., None].astype(np.float32)
