"""Which windows a training step sees: seeded by the step itself, so that a resumed run sees what the first would.

A step's batch is drawn as a whole and then dealt out over the ranks, so that two ranks take the steps of one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from brainfm.catalog import nearest
from brainfm.shards.read import Windows
from brainfm.tokens import TokenBatch
from brainfm.training.augment import Augmentation

#: What `balance` may be: what has equal chances. "subject" and "class" hold within each dataset.
BALANCES = ("dataset", "subject", "class", "none")


def parts(windows: Windows, balance: str) -> np.ndarray | None:
    """`(window,)` the subject or class of each window, for a balance that needs it; None for the others."""
    return {"subject": windows.of("person"), "class": windows.label}.get(balance)


class StepSampler(Sampler[list[int]]):
    """Rows of each step's batch, a pure function of seed and step: deterministic, and resumable at any step.

    Args:
        groups: `(window,)` the dataset of each window; datasets are drawn with equal weight unless `weights` says else,
            so that a large one does not drown a small one.
        batch_size: windows per step, over all ranks. steps: steps in all. seed: changes every draw.
        weights: dataset → relative weight.
        balance: "dataset"; "subject" or "class" for equal chances of the `parts` of each dataset as well; "none" for
            equal chances of all windows, or by weight.
        parts: `(window,)` the subject or class of each window; a window with "" is not drawn.

    Raises:
        ValueError: for an unknown balance, a weight without its dataset, or a dataset without a part.
    """

    def __init__(
        self,
        groups: Sequence[str],
        batch_size: int,
        steps: int,
        seed: int,
        weights: dict[str, float] | None = None,
        balance: str = "dataset",
        parts: Sequence[str] | np.ndarray | None = None,
    ) -> None:
        if balance not in BALANCES:
            raise ValueError(f"no balance {balance!r}; {nearest(balance, list(BALANCES))}")
        found, number = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        names = found.tolist()
        unknown = sorted(set(weights or {}) - set(names))
        if unknown:
            raise ValueError(
                f"a weight names dataset {unknown[0]!r}; the training windows come from {', '.join(names)}"
            )
        share = np.array([(weights or {}).get(name, 1.0) for name in names])
        if balance == "none":
            share = share * np.bincount(number)
        self.share = share / share.sum()
        self.rows = [[rows] for rows in _by_value(number)]
        if balance in ("subject", "class"):
            if parts is None:
                raise ValueError(f"balance {balance!r} needs the `parts` of the windows; got none")
            self.rows = [_by_part(rows[0], np.asarray(parts, dtype=str)) for rows in self.rows]
        bare = [name for name, rows in zip(names, self.rows, strict=True) if not rows]
        if bare:
            raise ValueError(
                f"balance {balance!r}: no window of dataset {bare[0]!r} has a {balance}; choose another balance or "
                "train without the dataset"
            )
        self.batch_size, self.steps, self.seed, self.start = batch_size, steps, seed, 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.steps):
            rng = np.random.default_rng((self.seed, step))
            counts = rng.multinomial(self.batch_size, self.share)
            batch: list[int] = []
            for within, count in zip(self.rows, counts, strict=True):
                split = [count] if len(within) == 1 else rng.multinomial(count, np.full(len(within), 1 / len(within)))
                for part in np.flatnonzero(split):
                    rows, n = within[part], split[part]
                    batch += rng.choice(rows, n, replace=n > len(rows)).tolist()
            yield batch


class PassSampler(Sampler[list[int]]):
    """All windows in an order that follows from seed and pass, each once per pass: resumable at any step.

    Args:
        windows: how many there are.
        batch_size: windows per step at most; those of a pass are spread evenly over its steps.
        passes: how often all windows are seen. seed: changes every order.

    Raises:
        ValueError: for no pass.
    """

    def __init__(self, windows: int, batch_size: int, passes: int, seed: int) -> None:
        if passes < 1:
            raise ValueError(f"passes is {passes}; expected 1 or more")
        self.windows, self.seed, self.start = windows, seed, 0
        self.each = -(-windows // batch_size)
        self.steps = passes * self.each

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        order, now = np.zeros(0, np.int64), -1
        for step in range(self.start, self.steps):
            number, place = divmod(step, self.each)
            if number != now:
                order, now = np.random.default_rng((self.seed, number)).permutation(self.windows), number
            yield order[self.windows * place // self.each : self.windows * (place + 1) // self.each].tolist()


class Part(list[int]):
    """A rank's rows of a batch; `of` is the number of the batch and of the rank, for what is drawn along with them."""

    def __init__(self, rows: list[int], of: tuple[int, int]) -> None:
        super().__init__(rows)
        self.of = of


class RankSampler(Sampler[list[int]]):
    """One rank's part of every batch: over all ranks each row comes once, and no rank comes away empty.

    Args:
        batches: of all ranks together, the same on each. rank, world: which part, of how many.
        batch_size: what the batches were made with.

    Raises:
        ValueError: where the batches are too small or do not divide.
    """

    def __init__(self, batches: StepSampler | PassSampler, rank: int, world: int, batch_size: int) -> None:
        if batch_size % world:
            below, above = batch_size // world * world, -(-batch_size // world) * world
            raise ValueError(
                f"batch_size {batch_size} counts the windows of a step on all ranks and does not divide by {world}; "
                f"set it to {f'{below} or ' if below else ''}{above}"
            )
        if isinstance(batches, PassSampler) and batches.windows // batches.each < world:
            raise ValueError(
                f"{batches.windows} windows in batches of {batch_size} leave a rank of {world} without one; raise "
                "batch_size or train on fewer ranks"
            )
        self.batches, self.rank, self.world = batches, rank, world

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for number, rows in enumerate(self.batches, self.batches.start):
            yield Part(rows[self.rank :: self.world], (number, self.rank))


class Augmented(Dataset):
    """Training windows, augmented by what follows from seed, batch and rank: a resumed run draws the same.

    Args:
        data: whose `__getitems__(rows)` gives a `TokenBatch`. augmentations: applied in this order. seed: of all draws.
    """

    def __init__(self, data: Dataset, augmentations: Sequence[Augmentation], seed: int) -> None:
        self.data, self.augmentations, self.seed = data, augmentations, seed

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitems__(self, rows: Part) -> TokenBatch:
        drawn = np.random.SeedSequence((self.seed, *rows.of)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(drawn))
        batch = self.data.__getitems__(rows)  # type: ignore[attr-defined]
        for augmentation in self.augmentations:
            batch = augmentation(batch, generator)
        return batch


def _by_value(values: np.ndarray) -> list[np.ndarray]:
    """The places of each value, ascending; values in order."""
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1)


def _by_part(rows: np.ndarray, parts: np.ndarray) -> list[np.ndarray]:
    """The rows of each part, without those that have none."""
    rows = rows[parts[rows] != ""]
    found, number = np.unique(parts[rows], return_inverse=True)
    return [rows[places] for places in _by_value(number)] if len(found) else []


def _whole(batch: Any) -> Any:
    """The dataset makes a whole `TokenBatch`; there is nothing to collate."""
    return batch


class ShardData(pl.LightningDataModule):
    """Training and validation batches for Lightning; the trainer needs `use_distributed_sampler=False`.

    Args:
        train, val: datasets whose `__getitems__(rows)` gives a `TokenBatch`.
        groups: dataset name of each training window, for the balance.
        batch_size, steps, seed, weights, balance, parts: as in `StepSampler`; `batch_size` counts all ranks.
        val_windows: at most so many validation windows, drawn once.
        passes: go through all training windows so many times, in place of `steps` drawn ones; see `PassSampler`.
        augment: changes training batches, never validation ones.
        workers: processes that make the batches of each side; their order stays. 0 makes them in this process.
        start_method: how workers start, "fork" or "spawn"; as Python does if None.

    Raises:
        ValueError: as in `StepSampler`; for passes with a balance or weights; where there is no training window.
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
        *,
        balance: str = "dataset",
        parts: Sequence[str] | np.ndarray | None = None,
        passes: int | None = None,
        augment: Sequence[Augmentation] = (),
        workers: int = 0,
        start_method: str | None = None,
    ) -> None:
        super().__init__()
        if not len(groups):
            raise ValueError("there is no window to train on; take shorter windows or more recordings")
        self.train, self.val, self.batch_size = train, val, batch_size
        self.workers, self.start_method = workers, start_method
        if augment:
            self.train = Augmented(train, augment, seed)
        self.sampler: StepSampler | PassSampler
        if passes is None:
            self.sampler = StepSampler(groups, batch_size, steps, seed, weights, balance, parts)
        elif weights or balance != "dataset":
            raise ValueError("passes take every window equally often; leave out weights and balance, or passes")
        else:
            self.sampler = PassSampler(len(groups), batch_size, passes, seed)
        n = len(val)  # type: ignore[arg-type]
        rows = np.random.default_rng(seed).permutation(n)[:val_windows]
        self.val_rows = [sorted(map(int, rows[i : i + batch_size])) for i in range(0, len(rows), batch_size)]

    def train_dataloader(self) -> DataLoader:
        """This rank's batches, from where the run stands; an optimiser step takes as many as are accumulated.

        Raises:
            ValueError: where `batch_size` does not divide by the number of ranks.
        """
        self.sampler.start = self.trainer.global_step * self.trainer.accumulate_grad_batches if self.trainer else 0
        return self._loader(self.train, RankSampler(self.sampler, *self._rank(), self.batch_size))

    def val_dataloader(self) -> DataLoader:
        """The same validation windows every time, in the same batches; this rank's part of each.

        Raises:
            ValueError: for fewer windows than ranks.
        """
        rank, world = self._rank()
        batches = self.val_rows
        if len(batches) > 1 and len(batches[-1]) < world:
            batches = [*batches[:-2], batches[-2] + batches[-1]]  # ranks wait for each other: all need as many batches
        if batches and len(batches[-1]) < world:
            raise ValueError(f"{len(batches[-1])} validation windows for {world} ranks; give each one at least")
        return self._loader(self.val, [rows[rank::world] for rows in batches])

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, data: Dataset, batches: Sampler[list[int]] | list[list[int]]) -> DataLoader:
        return DataLoader(
            data,
            batch_sampler=batches,
            collate_fn=_whole,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            multiprocessing_context=self.start_method if self.workers else None,
        )
