"""Fit a network to a continuous covariate: first to the spikes alone by its objectives, then with a read-out.

A copy of the network is trained; whatever is fitted sees the training windows only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from brainfm.evaluations.place_readout import Places
from brainfm.objectives.behaviour import Behaviour
from brainfm.shards.read import Windows
from brainfm.tokens import TokenBatch
from brainfm.training import new_animal
from brainfm.training.batches import batches
from brainfm.training.checkpoint import Pretrained, evaluating
from brainfm.training.optimisers import decaying, summed, warmed_cosine


@dataclass(frozen=True)
class Fitting:
    """How to fit: AdamW with warm-up over a tenth of the steps and a cosine to zero, gradient norm at most 1.

    Attributes:
        steps: of a part. batch_size: windows per step. learning_rate: its peak. weight_decay: on matrices only.
        keep_neurons: for a network that reads behaviour out itself, how many neurons a training sample shows, as in
            `objectives/behaviour.py`; None shows all. Other networks have a dropout of their own.
        cells: of a place, how many along the longer side the linear read-out tells apart (`place_readout.Places`); None
            regresses on it.
    """

    steps: int = 600
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    keep_neurons: Sequence[int] | None = None
    cells: int | None = None


def knowing(model: Pretrained, windows: Windows, seed: int) -> Pretrained:
    """A copy of the network that has a row for every neuron of the windows, and for every session, where it knows such.

    Args:
        model: not changed. windows: whose neurons. seed: of the new rows; torch's generator is left as it was.

    Raises:
        ValueError: where neurons are unknown to it and it cannot take new ones.
    """
    copy = model.copy()
    network, used = copy.model, windows.used
    known = getattr(network, "neurons", None)
    if known is not None:
        ids = {x for s in used for x in s.channel_ids} - set(known)
        if ids and not hasattr(network, "add_neurons"):
            raise ValueError(
                f"{len(ids)} neurons of {used[0].person} are unknown to {type(network).__name__}, which takes no "
                "new ones; take a model with `add_neurons`"
            )
    else:
        ids = set()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if ids:
            network.add_neurons(sorted(ids))
        if hasattr(network, "add_sessions"):
            network.add_sessions(sorted({s.id for s in used}))
    return copy


@dataclass(frozen=True)
class Unlabelled:
    """Spikes without behaviour: windows, and the objectives that are to learn them, such as those of pretraining."""

    windows: Windows
    objectives: Sequence[nn.Module]

    def anew(self) -> Unlabelled:
        """The same with copies of the objectives: their own weights, such as a temperature, are trained as well."""
        return replace(self, objectives=deepcopy(list(self.objectives)))

    def loss(self, model: Pretrained, size: int) -> Callable[[np.random.Generator], Tensor]:
        """The sum of the objectives over `size` windows that the generator draws.

        What the network reads out itself is withheld, or its heads would learn from labels here.
        """
        answered = getattr(model.model, "targets", ())
        aligned = tuple(x for x in getattr(model.model, "aligned", ()) if x not in answered)
        batcher, device = model.batcher(aligned=aligned), next(model.model.parameters()).device

        def drawn(rng: np.random.Generator) -> Tensor:
            batch = batcher(self.windows, _some(rng, len(self.windows), size)).to(device)
            parts: dict[str, Tensor] = {}
            for objective in self.objectives:
                parts |= objective(model.model, batch)
            return summed(parts)

        return drawn


def pretext(model: Pretrained, unlabelled: Unlabelled, how: Fitting, seed: int) -> None:
    """Train the network in place by spikes alone; the objectives are copied and stay as they are."""
    unlabelled = unlabelled.anew()
    trained = nn.ModuleList([model.model, *unlabelled.objectives])
    _fit(trained, unlabelled.loss(model, how.batch_size), how, seed, "Spikes alone")


def reads_out(model: Pretrained, name: str, at: str = "end") -> bool:
    """Whether the network itself answers for this covariate at that moment of a window, "end" or "centre".

    POYO does at any; Neuroformer at the end, for what it was built to `predict`.

    Raises:
        ValueError: for a covariate that it takes as classes: what is scored here are numbers.
    """
    network = model.model
    if name in getattr(network, "classes", ()):
        raise ValueError(f"{name} is a class to this network; R2 is of numbers: take it out of the model's `classes`")
    return name in getattr(network, "targets", ()) and at in network.answers_at


class Readout(nn.Module):
    """A linear read-out of pooled encodings in units of the training target's mean and spread.

    Args:
        model: the network under it. target: `(window, column)` of the training side. width: of the pooled encoding.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, model: Any, target: np.ndarray, width: int) -> None:
        super().__init__()
        self.model, self.norm, self.out = model, nn.LayerNorm(width), nn.Linear(width, target.shape[1])
        spread = target.std(axis=0)
        self.register_buffer("mean", torch.tensor(target.mean(axis=0), dtype=torch.float32))
        self.register_buffer("spread", torch.tensor(np.where(spread > 0, spread, 1.0), dtype=torch.float32))

    def forward(self, batch: TokenBatch) -> Tensor:
        """`(window, column)` in the target's unit."""
        return self._standardised(batch) * self.spread + self.mean

    def loss(self, batch: TokenBatch, target: Tensor) -> Tensor:
        """Mean squared error in units of the training target's spread; `target (window, column)` in its own unit."""
        return (self._standardised(batch) - (target - self.mean) / self.spread).square().mean()

    def _standardised(self, batch: TokenBatch) -> Tensor:
        return self.out(self.norm(self.model.encode(batch).pooled))


class Asked(nn.Module):
    """The answers of a network that reads behaviour out itself, such as POYO.

    It learns from all samples of a window that it answers for (`objectives/behaviour.py`) and is asked for the one that
    counts.

    Args:
        model: with `targets`, `times` and `predict`. name: the covariate. at: "end" or "centre" of the window.
        keep_neurons: as in `Fitting`.
    """

    name: str

    def __init__(self, model: Any, name: str, at: str, keep_neurons: Sequence[int] | None) -> None:
        super().__init__()
        self.model, self.name, self.at = model, name, at
        self.objective = Behaviour(keep_neurons)

    def forward(self, batch: TokenBatch) -> Tensor:
        """`(window, column)` in the target's unit."""
        time = self.model.times(batch)[self.name]
        asked = time[..., -1:]  # the last slot is the last sample; the centre's is as `regression.with_target` takes it
        if self.at == "centre":
            before = (time < self.model.window_s / 2 - 1e-6).sum(-1, keepdim=True)
            asked = time.gather(-1, before.clamp_min(1) - 1)
        return self.model.predict(batch, {self.name: asked})[self.name][:, 0]

    def loss(self, batch: TokenBatch, target: Tensor) -> Tensor:
        """Squared error over all samples of the windows; `target` is one of them and not looked at."""
        return summed(self.objective(self.model, batch))


def tuned(
    model: Pretrained, windows: Windows, target: np.ndarray, how: Fitting, seed: int, *, name: str, at: str = "end",
    beside: Unlabelled | None = None,
) -> Readout | Places | Asked:  # fmt: skip
    """Train the network in place with a read-out: its own where it has one for the covariate, else a linear one.

    Args:
        model: the network. windows: training windows. target: `(window, column)`, finite. how, seed: of the fit.
        name: of the covariate. at: "end" or "centre", when in the window the target is.
        beside: spikes to learn in the same steps (joint training); their loss is added with weight 1. Its objectives
            are copied and stay as they are.

    Raises:
        ValueError: where `how` asks for cells of what is no place, or of a network that answers itself.
    """
    beside = None if beside is None else beside.anew()
    device = next(model.model.parameters()).device
    readout: Readout | Places | Asked
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if reads_out(model, name, at):
            if how.cells:
                raise ValueError(f"the network reads {name} out itself, and not as cells: leave `cells` out")
            readout = Asked(model.model, name, at, how.keep_neurons).to(device)
        else:
            width = model.features(windows.take([0])).shape[1]
            linear = Places(model.model, target, width, how.cells) if how.cells else Readout(model.model, target, width)
            readout = linear.to(device)
    batcher, wanted = model.batcher(), torch.from_numpy(target.astype(np.float32))
    also = None if beside is None else beside.loss(model, how.batch_size)

    def loss(rng: np.random.Generator) -> Tensor:
        rows = _some(rng, len(windows), how.batch_size)
        error = readout.loss(batcher(windows, rows).to(device), wanted[rows].to(device))
        return error if also is None else error + also(rng)

    trained = nn.ModuleList([readout, *(beside.objectives if beside else ())])
    _fit(trained, loss, how, seed, "Read-out")
    return readout


def predicted(model: Pretrained, readout: Readout | Places | Asked, windows: Windows, size: int = 128) -> np.ndarray:
    """`(window, column)` predictions in the target's unit.

    A network that answers itself reads a recording that it was not taught as the latest of the same animal that it was.
    """
    device = next(readout.parameters()).device
    batcher = new_animal.reading(model, windows, readout.name) if isinstance(readout, Asked) else model.batcher()
    with torch.inference_mode(), evaluating(readout):
        parts = [readout(batch.to(device)) for batch in batches(windows, batcher, size)]
    return torch.cat(parts).double().cpu().numpy()


def _some(rng: np.random.Generator, windows: int, size: int) -> np.ndarray:
    """`size` different rows, or all where there are fewer, in order."""
    return np.sort(rng.choice(windows, min(size, windows), replace=False))


def _fit(module: nn.Module, loss: Callable[[np.random.Generator], Tensor], how: Fitting, seed: int, what: str) -> None:
    """Optimise everything of the module that is not frozen; torch's generator is left as it was."""
    trained = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(decaying(trained, how.weight_decay), how.learning_rate)
    rng, warmup = np.random.default_rng(seed), max(1, how.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warmed_cosine(step, how.steps, warmup))
    module.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in track(range(how.steps), what, transient=True):
            optimiser.zero_grad()
            loss(rng).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            schedule.step()
    module.eval()
