"""What every training loop does alike: the loss from its parts, what decays, and how the learning rate goes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def summed(parts: Mapping[str, Tensor]) -> Tensor:
    """The loss: the sum of an objective's parts that are not called `metric_...`."""
    return torch.stack([v for k, v in parts.items() if not k.startswith("metric_")]).sum()


def decaying(
    parameters: Iterable[nn.Parameter], weight_decay: float, spared: Iterable[Tensor] = ()
) -> list[dict[str, Any]]:
    """Two groups for an optimiser: matrices, which decay, and all else, which does not; frozen parameters in neither.

    Args:
        parameters: of the network. weight_decay: of matrices. spared: matrices that do not decay either.
    """
    trained, kept = [p for p in parameters if p.requires_grad], {id(p) for p in spared}
    matrix = [p.dim() > 1 and id(p) not in kept for p in trained]
    return [
        {"params": [p for p, yes in zip(trained, matrix, strict=True) if yes == wanted], "weight_decay": decay}
        for wanted, decay in ((True, weight_decay), (False, 0.0))
    ]


def warmed_cosine(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Share of the peak learning rate: up in a line for `warmup` steps, then down a cosine to `floor` at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) / 2 * (1 + math.cos(math.pi * done))
