"""Adaptation that trains by gradient: the whole network, low-rank adapters in it, or a layer after it.

All stop early by the validation rows of a side and keep the best weights; without such rows all steps are taken. The
readout's input is standardised by the training rows as the network encodes them before the first step, for unit vectors
of neighbouring windows may differ by a thousandth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from brainfm.evaluations.methods.probing import enough
from brainfm.evaluations.methods.trials import Setting, Side
from brainfm.evaluations.methods.views import Batches, Shown
from brainfm.evaluations.protocol import Unfit
from brainfm.layers import lora
from brainfm.layers.attentive import Attentive
from brainfm.objectives.supervised import Hidden, Standardised, Supervised
from brainfm.tokens import TokenBatch
from brainfm.training.checkpoint import Pretrained, evaluating, in_order
from brainfm.training.finetuning import Labelled, Tuning, finetune, predict

#: What all of these train by, where a configuration says nothing else.
TUNING = Tuning(100, 32, weight_decay=0.05, beta2=0.99, validations=10, patience=5)
#: Of the few steps on a new person's trials: how many, and their rate as a share of the one that was chosen.
SHOT_STEPS, SHOT_RATE = 20, 0.3


def rates(*values: float) -> tuple[Setting, ...]:
    """Learning rates to try, the default first."""
    return tuple({"learning_rate": value} for value in values)


@dataclass(frozen=True)
class FittedNetwork:
    """A network and its readout.

    Attributes:
        trials: whose rows it answers for. encoder: what the method was given.
        model, objective: as they were trained. tuning: how. batches: of the model, from trials.
        seen: `(class,)` True for classes that were trained. trained: numbers that a gradient reached.
        seconds: of fitting. step: whose weights were kept.
    """

    trials: Shown
    encoder: Pretrained
    model: Any
    objective: Supervised
    tuning: Tuning
    batches: Callable[[Shown], Batches]
    seen: np.ndarray
    trained: int = 0
    seconds: float = 0.0
    step: int = 0
    note: str = ""

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """`(row, class)`; 0 for a class that was not trained."""
        if not len(rows):
            return np.zeros((0, len(self.seen)))
        return masked(predict(self.model, self.objective, self.batches(self.trials), np.asarray(rows)), self.seen)

    def adapted(self, rows: np.ndarray, seed: int) -> FittedNetwork:
        """A copy after `SHOT_STEPS` further small steps on these rows; batch norms keep their statistics."""
        if not len(rows):
            return self
        model, objective = deepcopy(self.model), deepcopy(self.objective)
        labels = self.trials.labels[rows]
        finetune(
            model, objective, Labelled(self.batches(self.trials), rows, labels), None, few(self.tuning, len(rows)), seed
        )
        seen = self.seen | np.isin(np.arange(len(self.seen)), labels)
        return replace(self, model=model, objective=objective, seen=seen)

    def on(self, trials: Shown) -> FittedNetwork:
        """The same for other trials."""
        return replace(self, trials=trials)


@dataclass
class Finetune:
    """The whole network, rates falling towards the input; parameters that the network has frozen stay as they are.

    Attributes:
        encoder: where it starts; not changed. name: as in a result. tuning: steps, batches, patience.
        decay: the rate of each block is so many times that of the block after it.
        factor: all rates are so many times those of the setting. readout_factor: the readout's, times more.
        readout: width of the pooled encoding and number of classes → what gives logits; None for `Hidden`.
        standardised: whether its input is. batches: all windows as batches of the network; those of the trials if None.
    """

    encoder: Pretrained
    name: str = "finetune"
    tuning: Tuning = TUNING
    decay: float = 0.8
    factor: float = 1.0
    readout_factor: float = 10.0
    readout: Callable[[int, int], nn.Module] | None = None
    standardised: bool = True
    batches: Batches | None = None
    settings: Sequence[Setting] = rates(3e-4, 1e-4, 1e-3, 3e-5, 3e-3)
    stops_early: bool = True

    def fit(self, trials: Shown, side: Side, setting: Setting, seed: int) -> FittedNetwork:
        """Train on `side.fit`, stop by `side.val`.

        Args:
            trials, side: as in `Method`. setting: `learning_rate`. seed: of the readout, draws and dropout.

        Raises:
            Unfit: where fewer than two classes train.
        """
        return trained(self, deepcopy(self.encoder.model), trials, side, setting, seed)

    def data(self, trials: Shown) -> Batches:
        """The network's batches."""
        return trials.batches(self.encoder) if self.batches is None else self.batches

    def first(self, trials: Shown, rows: np.ndarray) -> np.ndarray:
        """`(row, feature)` encodings before the first step."""
        if self.batches is None:
            return trials.features(self.encoder)[rows]
        return self.encoder.pooled(Labelled(self.batches, rows, trials.labels[rows]))


@dataclass
class LowRankTuning:
    """Low-rank adapters on linear layers of the network, and the readout, see `layers/lora.py`.

    Attributes:
        rank, alpha: of the adapters. pattern: whose names get one; empty: all in the trunk's blocks.
    """

    encoder: Pretrained
    name: str = "lora"
    tuning: Tuning = TUNING
    rank: int = 4
    alpha: float = 8.0
    pattern: str = ""
    factor: float = 1.0
    readout_factor: float = 3.0
    readout: Callable[[int, int], nn.Module] | None = None
    standardised: bool = True
    decay: float = 1.0
    settings: Sequence[Setting] = rates(1e-3, 3e-3, 3e-4, 1e-4, 1e-2)
    stops_early: bool = True

    def fit(self, trials: Shown, side: Side, setting: Setting, seed: int) -> FittedNetwork:
        """As `Finetune.fit`; also Unfit for a network without a linear layer to adapt."""
        try:
            lora.targets(self.encoder.model, self.pattern)
        except ValueError as error:
            raise Unfit(str(error)) from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = lora.adapt(deepcopy(self.encoder.model), self.rank, self.alpha, self.pattern)
        return trained(self, model, trials, side, setting, seed)

    def data(self, trials: Shown) -> Batches:
        """The network's batches."""
        return trials.batches(self.encoder)

    def first(self, trials: Shown, rows: np.ndarray) -> np.ndarray:
        """`(row, feature)` encodings before the first step, which the adapters do not change."""
        return trials.features(self.encoder)[rows]


@dataclass
class Attend:
    """A query that attends over the frozen network's tokens, see `layers/attentive.py`; tokens are made once.

    Attributes:
        made: tokens of trials that were made. heads: of the attention, fewer where tokens are narrow.
    """

    encoder: Pretrained
    name: str = "attentive"
    tuning: Tuning = TUNING
    heads: int = 4
    factor: float = 1.0
    readout_factor: float = 1.0
    decay: float = 1.0
    standardised: bool = False
    readout: Callable[[int, int], nn.Module] | None = nn.Linear
    made: dict[int, tuple[Shown, Tokens]] = field(default_factory=dict, repr=False)
    settings: Sequence[Setting] = rates(3e-3, 1e-3, 1e-2, 3e-4, 3e-2)
    stops_early: bool = True

    def fit(self, trials: Shown, side: Side, setting: Setting, seed: int) -> FittedNetwork:
        """As `Finetune.fit`."""
        self.made.setdefault(id(trials), (trials, Tokens(self.encoder, trials.batches(self.encoder))))
        mean, scale = self.made[id(trials)][1].statistics(side.fit)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Attentive(mean, scale, heads=min(self.heads, len(mean)))
        return trained(self, model, trials, side, setting, seed)

    def data(self, trials: Shown) -> Batches:
        """Tokens of the frozen network."""
        kept = self.made.get(id(trials))
        return kept[1] if kept is not None else Tokens(self.encoder, trials.batches(self.encoder))

    def first(self, trials: Shown, rows: np.ndarray) -> np.ndarray:
        """`(row, feature)` zeros, of the width that is attended to; nothing is standardised by them."""
        return np.zeros((1, self.made[id(trials)][1].width), np.float32)


class Tokens(Dataset):
    """Tokens of a frozen network, made once and kept in memory: `values (batch, token, dim)`.

    Args:
        encoder: the network. trials: its batches. size: windows that are encoded together.
    """

    def __init__(self, encoder: Pretrained, trials: Batches, size: int = 64) -> None:
        self.runs: list[Tensor] = []
        self.real: list[Tensor] = []
        device = next(encoder.model.parameters()).device
        with torch.no_grad(), evaluating(encoder.model):
            for batch in in_order(trials, size):
                found = encoder.model.encode(batch.to(device))
                for tokens, mask in zip(found.tokens.float().cpu(), found.mask.cpu(), strict=True):
                    length = int(mask.nonzero().max()) + 1 if mask.any() else 1
                    self.runs.append(tokens[:length].clone())
                    self.real.append(mask[:length].clone())

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.runs[0].shape[1]

    def statistics(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """`(dim,)` mean and deviation of the real tokens of these windows."""
        real = torch.cat([self.runs[row][self.real[row]] for row in np.asarray(rows).tolist()])
        return real.mean(dim=0), real.std(dim=0, correction=0)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitems__(self, rows: list[int]) -> TokenBatch:
        """Shorter windows are filled with zeros and masked."""
        n, longest = len(rows), max(len(self.runs[row]) for row in rows)
        values, mask = torch.zeros(n, longest, self.width), torch.zeros(n, longest, dtype=torch.bool)
        for i, row in enumerate(rows):
            values[i, : len(self.runs[row])], mask[i, : len(self.runs[row])] = self.runs[row], self.real[row]
        none = torch.zeros(n, longest)
        place = torch.full((n, 1, 3), torch.nan)
        return TokenBatch(values, none, none.long(), place, torch.zeros(n, 1, 3), torch.zeros(n, 1).long(), mask)


def masked(chances: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Probabilities `(row, class)` with 0 for classes that were not seen; rows sum to one."""
    chances = np.where(seen, np.maximum(chances.astype(float), 1e-12), 0.0)
    return chances / chances.sum(axis=1, keepdims=True)


def few(tuning: Tuning, trials: int) -> Tuning:
    """The few small steps on a new person's trials."""
    return replace(
        tuning, steps=SHOT_STEPS, learning_rate=SHOT_RATE * tuning.learning_rate, batch_size=min(16, trials),
        keep_statistics=True,
    )  # fmt: skip


def trained(
    method: Any, model: nn.Module, trials: Shown, side: Side, setting: Setting, seed: int,
    batches: Callable[[Shown], Batches] | None = None,
) -> FittedNetwork:  # fmt: skip
    """Train a model of one of the methods above, in place, under a fresh readout."""
    begun = time.perf_counter()
    enough(trials, side.fit)
    batches = method.data if batches is None else batches
    data, classes = batches(trials), len(trials.classes)
    rows = side.fit if method.standardised else side.fit[:1]  # one tells the width
    encoded = torch.from_numpy(np.array(method.first(trials, rows), np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if method.readout is None:
            hidden = int(getattr(method.encoder.model, "dim", encoded.shape[1]))
            readout: nn.Module = Hidden(encoded.shape[1], classes, hidden)
        else:
            readout = method.readout(encoded.shape[1], classes)
    if method.standardised:
        readout = Standardised(readout, encoded)
    objective = Supervised(encoded.shape[1], classes, readout=readout)
    tuning = replace(
        method.tuning,
        learning_rate=setting["learning_rate"] * method.factor,
        readout_factor=method.readout_factor,
        decay=method.decay,
        batch_size=min(method.tuning.batch_size, len(side.fit)),
    )
    sides = [Labelled(data, rows, trials.labels[rows]) if len(rows) else None for rows in (side.fit, side.val)]
    done = finetune(model, objective, sides[0], sides[1], tuning, seed)  # type: ignore[arg-type]
    seen = np.isin(np.arange(classes), trials.labels[side.fit])
    seconds = time.perf_counter() - begun
    return FittedNetwork(
        trials, method.encoder, model, objective, tuning, batches, seen, done.trained, seconds, done.step
    )
