"""What every training loop does alike: the loss from its parts, what decays, and how the learning rate goes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from brainfm.layers.trunk import trunk


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


def by_depth(model: nn.Module) -> dict[str, int]:
    """Name of each parameter → its depth: 0 before the trunk's blocks, i + 1 in block i, one more after them.

    Before or after is told by the order in which the network was put together. A network without a trunk is all 0.
    """
    blocks = trunk(model)
    inside = {f"{name}.": depth for depth, names in enumerate(blocks, start=1) for name in names}
    names = [name for name, _ in model.named_parameters()]
    found = {name: depth for name in names for start, depth in inside.items() if name.startswith(start)}
    last = max((i for i, name in enumerate(names) if name in found), default=len(names))
    return {name: found.get(name, len(blocks) + 1 if i > last else 0) for i, name in enumerate(names)}


def layered(model: nn.Module, rate: float, decay: float) -> list[tuple[float, list[nn.Parameter]]]:
    """Learning rate and parameters of each depth: `rate` at the top, times `decay` for each step towards the input.

    As Clark et al. 2020 (ELECTRA, arXiv:2003.10555, appendix B) and Bao et al. 2022 (BEiT, arXiv:2106.08254) fine-tune.
    """
    depths, groups = by_depth(model), {}  # type: ignore[var-annotated]
    top = max(depths.values(), default=0)
    for name, parameter in model.named_parameters():
        groups.setdefault(depths[name], []).append(parameter)
    return [(rate * decay ** (top - depth), groups[depth]) for depth in sorted(groups)]


def warmed_cosine(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Share of the peak learning rate: up in a line for `warmup` steps, then down a cosine to `floor` at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) / 2 * (1 + math.cos(math.pi * done))
