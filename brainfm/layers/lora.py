"""Low-rank adapters on linear layers: a frozen weight and a trained product of two thin matrices.

"LoRA: Low-Rank Adaptation of Large Language Models", Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3.

    W x + (alpha / r) B A x        W (out, in) frozen, A (r, in) at random, B (out, r) zero at the start

A network with adapters gives what it gave before, until they are trained; `merged` folds them into the weights.
"""

from __future__ import annotations

import math
import re
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainfm.layers.trunk import trunk


class LowRank(nn.Linear):
    """A linear layer with an adapter; weight and bias are those of the layer it stands for, and frozen.

    Args:
        linear: the layer. rank: of the adapter, at most its smaller side. alpha: the adapter counts alpha / rank.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        rank = min(rank, self.in_features, self.out_features)
        self.scale = alpha / rank
        self.down = nn.Parameter(linear.weight.new_empty(rank, self.in_features))
        self.up = nn.Parameter(linear.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` → `(..., out)`."""
        return super().forward(x) + self.scale * functional.linear(functional.linear(x, self.down), self.up)

    def folded(self) -> nn.Linear:
        """A plain layer that gives the same."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        with torch.no_grad():
            plain.weight = nn.Parameter(self.weight + self.scale * self.up @ self.down)
        plain.bias = self.bias
        return plain.train(self.training)


def targets(model: nn.Module, pattern: str = "") -> list[str]:
    """Names of the plain linear layers that get an adapter.

    Args:
        model: any network.
        pattern: a regular expression that is looked for in the names; empty: those of the trunk's blocks.

    Raises:
        ValueError: where there is none.
    """
    plain = [name for name, part in model.named_modules() if type(part) is nn.Linear and part.weight.requires_grad]
    blocks = tuple(f"{name}." for depth in trunk(model) for name in depth)
    found = [n for n in plain if (re.search(pattern, n) if pattern else n.startswith(blocks))]
    if not found:
        mend = "give another `pattern`, or " if pattern else ""
        asked = f"whose name matches {pattern!r}" if pattern else "inside its blocks"
        raise ValueError(
            f"{type(model).__name__} has no trained linear layer {asked}; its linear layers are "
            f"{', '.join(plain[:5]) or 'none'}: {mend}adapt by 'finetune'"
        )
    return found


def adapt(model: nn.Module, rank: int, alpha: float, pattern: str = "") -> nn.Module:
    """Freeze the network and give its layers `targets(model, pattern)` adapters, in place.

    Raises:
        ValueError: for a rank below 1, or where no layer is a target.
    """
    if rank < 1:
        raise ValueError(f"rank={rank}; an adapter has rank 1 or more")
    names = targets(model, pattern)
    model.requires_grad_(False)
    for name in names:
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, LowRank(model.get_submodule(name), rank, alpha))  # type: ignore[arg-type]
    return model


def merged(model: nn.Module) -> nn.Module:
    """A copy with plain linear layers, whose state dict has the names that it had without adapters."""
    model = deepcopy(model)
    for name, part in list(model.named_modules()):
        if isinstance(part, LowRank):
            owner, _, own = name.rpartition(".")
            setattr(model.get_submodule(owner), own, part.folded())
    return model


def described(model: nn.Module) -> dict[str, int | float | str]:
    """Keywords of `adapt` by which the folded network gets adapters in the same places; empty where it has none."""
    found = {name: part for name, part in model.named_modules() if isinstance(part, LowRank)}
    if not found:
        return {}
    # one rank for all: a narrow layer's is cut to its width again
    rank = max(len(part.down) for part in found.values())
    part = next(part for part in found.values() if len(part.down) == rank)
    return {"rank": rank, "alpha": part.scale * rank, "pattern": f"^({'|'.join(map(re.escape, found))})$"}
