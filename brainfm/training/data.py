"""Which windows a training step sees: seeded by the step itself, so that a resumed run sees what the first would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset, Sampler


class StepSampler(Sampler[list[int]]):
    """Rows of each step's batch, a pure function of seed and step: deterministic, and resumable at any step.

    Args:
        groups: `(window,)` the dataset of each window; datasets are drawn with equal weight unless `weights` says else,
            so that a large one does not drown a small one.
        batch_size: windows per step. steps: steps in all. seed: changes every draw.
        weights: dataset → relative weight.
    """

    def __init__(
        self, groups: Sequence[str], batch_size: int, steps: int, seed: int, weights: dict[str, float] | None = None
    ) -> None:
        names = sorted(set(groups))
        unknown = sorted(set(weights or {}) - set(names))
        if unknown:
            raise ValueError(
                f"a weight names dataset {unknown[0]!r}; the training windows come from {', '.join(names)}"
            )
        share = np.array([(weights or {}).get(name, 1.0) for name in names])
        self.rows = [np.flatnonzero(np.asarray(groups) == name) for name in names]
        self.share = share / share.sum()
        self.batch_size, self.steps, self.seed, self.start = batch_size, steps, seed, 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.steps):
            rng = np.random.default_rng((self.seed, step))
            counts = rng.multinomial(self.batch_size, self.share)
            yield [
                int(r)
                for rows, n in zip(self.rows, counts, strict=True)
                for r in rng.choice(rows, n, replace=n > len(rows))
            ]


def _whole(batch: Any) -> Any:
    """The dataset makes a whole `TokenBatch`; there is nothing to collate."""
    return batch


class ShardData(pl.LightningDataModule):
    """Training and validation batches for Lightning.

    Args:
        train, val: datasets whose `__getitems__(rows)` gives a `TokenBatch`.
        groups: dataset name of each training window, for the balance.
        batch_size, steps, seed, weights: as in `StepSampler`.
        val_windows: at most so many validation windows, drawn once.
    """

    def __init__(
        self,
        train: Dataset,
        val: Dataset,
        groups: Sequence[str],
        batch_size: int,
        steps: int,
        seed: int,
        weights: dict[str, float] | None = None,
        val_windows: int = 512,
    ) -> None:
        super().__init__()
        self.train, self.val, self.batch_size = train, val, batch_size
        self.sampler = StepSampler(groups, batch_size, steps, seed, weights)
        n = len(val)  # type: ignore[arg-type]
        rows = np.random.default_rng(seed).permutation(n)[:val_windows]
        self.val_rows = [sorted(map(int, rows[i : i + batch_size])) for i in range(0, len(rows), batch_size)]

    def train_dataloader(self) -> DataLoader:
        """One batch after the other, from where the run stands; an optimiser step takes as many as are accumulated."""
        self.sampler.start = self.trainer.global_step * self.trainer.accumulate_grad_batches if self.trainer else 0
        return DataLoader(self.train, batch_sampler=self.sampler, collate_fn=_whole)

    def val_dataloader(self) -> DataLoader:
        """The same validation windows every time, in the same batches."""
        return DataLoader(self.val, batch_sampler=self.val_rows, collate_fn=_whole)
