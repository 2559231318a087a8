"""Fit a network to a continuous covariate: first to the spikes alone by its objectives, then with a linear read-out.

A copy of the network is trained; whatever is fitted sees the training windows only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from brainfm.shards.read import Windows
from brainfm.tokens import TokenBatch
from brainfm.training.batches import batches
from brainfm.training.checkpoint import Pretrained, evaluating
from brainfm.training.optimisers import decaying, summed, warmed_cosine


@dataclass(frozen=True)
class Fitting:
    """How to fit: AdamW with warm-up over a tenth of the steps and a cosine to zero, gradient norm at most 1.

    Attributes:
        steps: of a part. batch_size: windows per step. learning_rate: its peak. weight_decay: on matrices only.
    """

    steps: int = 600
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.01


def knowing(model: Pretrained, windows: Windows) -> Pretrained:
    """A copy of the network that has a row for every neuron of the windows, where it knows neurons.

    Raises:
        ValueError: where neurons are unknown to it and it cannot take new ones.
    """
    copy = model.copy()
    known = getattr(copy.model, "neurons", None)
    if known is not None:
        used = windows.used
        ids = {x for s in used for x in s.channel_ids} - set(known)
        if ids and not hasattr(copy.model, "add_neurons"):
            raise ValueError(
                f"{len(ids)} neurons of {used[0].person} are unknown to {type(copy.model).__name__}, which takes no "
                "new ones; take a model with `add_neurons`"
            )
        if ids:
            copy.model.add_neurons(sorted(ids))
    return copy


def pretext(model: Pretrained, windows: Windows, objectives: Sequence[nn.Module], how: Fitting, seed: int) -> None:
    """Train the network in place by objectives, such as those of its pretraining, on unlabelled windows."""
    batcher, size = model.batcher(), min(how.batch_size, len(windows))
    device = next(model.model.parameters()).device

    def loss(rows: np.ndarray) -> Tensor:
        batch = batcher(windows, rows).to(device)
        parts: dict[str, Tensor] = {}
        for objective in objectives:
            parts |= objective(model.model, batch)
        return summed(parts)

    _fit(nn.ModuleList([model.model, *objectives]), len(windows), size, loss, how, seed, "Spikes alone")


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
        """`(window, column)` standardised predictions."""
        return self.out(self.norm(self.model.encode(batch).pooled))

    def standardised(self, target: np.ndarray) -> Tensor:
        """`(window, column)` of any windows in these units."""
        return (torch.from_numpy(target.astype(np.float32)) - self.mean) / self.spread


def tuned(model: Pretrained, windows: Windows, target: np.ndarray, how: Fitting, seed: int) -> Readout:
    """Train the network in place together with a linear read-out, by squared error.

    Args:
        model: the network. windows: training windows. target: `(window, column)`, finite. how, seed: of the fit.
    """
    batcher, size = model.batcher(), min(how.batch_size, len(windows))
    device = next(model.model.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = model.features(windows.take([0])).shape[1]
        readout = Readout(model.model, target, width).to(device)
    wanted = readout.standardised(target)

    def loss(rows: np.ndarray) -> Tensor:
        said = readout(batcher(windows, rows).to(device))
        return (said - wanted[rows].to(device)).square().mean()

    _fit(readout, len(windows), size, loss, how, seed, "Read-out")
    return readout


def predicted(model: Pretrained, readout: Readout, windows: Windows, size: int = 128) -> np.ndarray:
    """`(window, column)` predictions in the target's unit."""
    device = next(readout.parameters()).device
    with torch.inference_mode(), evaluating(readout):
        parts = [
            readout(batch.to(device)) * readout.spread + readout.mean
            for batch in batches(windows, model.batcher(), size)
        ]
    return torch.cat(parts).double().cpu().numpy()


def _fit(
    module: nn.Module, windows: int, size: int, loss: Callable[[np.ndarray], Tensor], how: Fitting, seed: int, what: str
) -> None:
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
            loss(np.sort(rng.choice(windows, size, replace=False))).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            schedule.step()
    module.eval()
