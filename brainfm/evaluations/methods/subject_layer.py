"""Reset-tuning: a layer on the input for each person under a network that all share; a new person learns that alone.

Subject layers of Défossez et al. 2023 (arXiv:2208.12266, section 2.3) in front of a frozen pretrained network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from brainfm.evaluations.methods.trials import Setting, Side
from brainfm.evaluations.methods.tuned import TUNING, FittedNetwork, few, rates, trained
from brainfm.evaluations.methods.views import Batches, Shown, in_memory
from brainfm.evaluations.protocol import Unfit
from brainfm.layers import mixing
from brainfm.tokens import TokenBatch
from brainfm.training.checkpoint import Pretrained
from brainfm.training.finetuning import Labelled, Tuning, finetune

#: Steps in which a new person's layer is trained on their shots.
FRESH_STEPS = 40


@dataclass(frozen=True)
class FittedSubjectLayer:
    """A frozen network behind a layer for each training person; strangers get the mean of these layers.

    Attributes:
        network: what is common. names: whose layers there are, in order.
    """

    network: FittedNetwork
    names: tuple[str, ...]

    @property
    def trained(self) -> int:
        """Numbers that a gradient reached."""
        return self.network.trained

    @property
    def seconds(self) -> float:
        """Of fitting."""
        return self.network.seconds

    @property
    def note(self) -> str:
        """What strangers get."""
        return "People without a trial of their own get the mean of the training people's input layers."

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """`(row, class)`; 0 for a class that was not trained."""
        return self.network.predict_proba(rows)

    def adapted(self, rows: np.ndarray, seed: int) -> FittedSubjectLayer:
        """A fresh layer for whose rows these are, the only thing that is trained; it starts as a stranger's.

        The readout stays as it was fitted, so a class that these rows are the first to have keeps probability 0.

        Raises:
            ValueError: for rows of several people.
        """
        if not len(rows):
            return self
        inner = self.network
        who = sorted(set(inner.trials.people[rows].tolist()))
        if len(who) > 1:
            raise ValueError(f"trials of {len(who)} people ({', '.join(who[:3])}); a new layer is fitted to one person")
        old = inner.model.mixing
        fresh = mixing.Mixing(1, old.weight.shape[1])
        with torch.no_grad():
            fresh.weight.copy_(old.mean().unsqueeze(0))
        model, objective = mixing.Mixed(inner.model.network, fresh), deepcopy(inner.objective).requires_grad_(False)
        for part in objective.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0  # what is not trained has nothing to gain from it
        data = partial(by_person, inner.encoder, (who[0],))
        labelled = Labelled(data(inner.trials), rows, inner.trials.labels[rows])
        tuning = replace(few(inner.tuning, len(rows)), steps=FRESH_STEPS, learning_rate=inner.tuning.learning_rate)
        finetune(model, objective, labelled, None, tuning, seed)
        return FittedSubjectLayer(replace(inner, model=model, objective=objective, batches=data), (who[0],))

    def on(self, trials: Shown) -> FittedSubjectLayer:
        """The same for other trials."""
        return replace(self, network=self.network.on(trials))


@dataclass
class SubjectLayer:
    """A square matrix over the input for each training person, and a readout that they share; the network is frozen.

    The input is the channels of the shared montage, or the sources of a network's frozen tokenizer, see
    `layers/mixing.py`.
    """

    encoder: Pretrained
    name: str = "subject_layer"
    tuning: Tuning = TUNING
    factor: float = 1.0
    readout_factor: float = 1.0
    readout: Callable[[int, int], nn.Module] | None = None
    standardised: bool = True
    decay: float = 1.0
    settings: Sequence[Setting] = rates(3e-3, 1e-3, 1e-2, 3e-4, 3e-2)
    stops_early: bool = True

    def fit(self, trials: Shown, side: Side, setting: Setting, seed: int) -> FittedSubjectLayer:
        """As `Finetune.fit`; also Unfit for a network through which no gradient comes to its input."""
        names = tuple(sorted(set(trials.people[side.fit].tolist())))
        channels = mixing.inputs(self.encoder.model, self.data(trials).__getitems__([0]))
        model = mixing.Mixed(deepcopy(self.encoder.model), mixing.Mixing(len(names), channels))
        own = replace(self, tuning=replace(self.tuning, weight_decay=0.0))
        found = trained(own, model, trials, side, setting, seed, partial(by_person, self.encoder, names))
        if found.trained <= sum(p.numel() for p in found.objective.parameters()):
            raise Unfit(
                f"no gradient comes to the input of {type(self.encoder.model).__name__}, so a layer there cannot be "
                "trained; take adapt='finetune' or 'lora'"
            )
        return FittedSubjectLayer(found, names)

    def data(self, trials: Shown) -> Batches:
        """The network's batches of the shared montage, or of its tokenizer's codes."""
        return _input(self.encoder, trials)

    def first(self, trials: Shown, rows: np.ndarray) -> np.ndarray:
        """`(row, feature)` encodings before the first step."""
        return self.encoder.pooled(Labelled(self.data(trials), rows, trials.labels[rows]))


class ByPerson(Dataset):
    """A dataset of whole batches with the number of each window's person, as `aligned["subject"]`.

    Args:
        trials: the batches. numbers: `(window,)`, -1 for strangers.
    """

    def __init__(self, trials: Batches, numbers: np.ndarray) -> None:
        self.trials, self.numbers = trials, np.asarray(numbers, np.int64)

    def __len__(self) -> int:
        return len(self.trials)

    def __getitems__(self, rows: list[int]) -> TokenBatch:
        batch = self.trials.__getitems__(rows)
        return replace(batch, aligned={**batch.aligned, "subject": torch.from_numpy(self.numbers[rows])})


def _input(encoder: Pretrained, trials: Shown) -> Batches:
    if mixing.over_sources(encoder.model):
        return trials.batches(encoder)
    signals = trials.signals()
    return in_memory(signals.values, signals, encoder)


def by_person(encoder: Pretrained, names: Sequence[str], trials: Shown) -> ByPerson:
    """The input of trials with the number of each window's person among `names`, -1 for strangers."""
    number = {name: i for i, name in enumerate(names)}
    return ByPerson(_input(encoder, trials), np.array([number.get(p, -1) for p in trials.people], np.int64))
