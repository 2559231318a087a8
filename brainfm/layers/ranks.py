"""What several processes that train one network have to agree on; with one process each of these is the plain thing.

Row r of a step's batch lies on rank r modulo the number of ranks, see `training/data.py`. DDP averages gradients over
ranks, so a mean over all samples must be written as one, or ranks with fewer tokens would weigh too much.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def world() -> int:
    """Number of ranks."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this rank."""
    return distributed.get_rank() if world() > 1 else 0


def total(x: Tensor) -> Tensor:
    """Sum over the ranks of tensors of one shape, without gradient."""
    x = x.detach()
    if world() > 1:
        x = x.clone()
        distributed.all_reduce(x)
    return x


def mean(summed: Tensor, count: Tensor | int) -> Tensor:
    """Sum over all ranks divided by the count over all ranks; 0 where nothing counts.

    The value is the same everywhere. The gradient is such that DDP's average over ranks is the gradient of this mean.
    """
    counted = torch.as_tensor(count, device=summed.device, dtype=summed.dtype)
    if world() == 1:
        return summed / counted.clamp_min(1.0)
    both = total(torch.stack((summed.detach(), counted)))
    own = summed * (world() / both[1].clamp_min(1.0))
    return own + (both[0] / both[1].clamp_min(1.0) - own).detach()


def together(x: Tensor) -> Tensor:
    """The rows of all ranks in the order of the whole batch, `(batch, ...)`; shorter axes are filled up with zeros."""
    if world() == 1:
        return x
    shape = torch.tensor(x.shape, device=x.device)
    distributed.all_reduce(shape, distributed.ReduceOp.MAX)
    wide = x.new_zeros(shape.tolist())
    wide[tuple(slice(n) for n in x.shape)] = x
    kind = x.dtype
    wide = wide.to(torch.uint8) if kind is torch.bool else wide
    found = [torch.empty_like(wide) for _ in range(world())]
    distributed.all_gather(found, wide)
    return torch.stack(found, dim=1).flatten(0, 1).to(kind)


def drawn(x: Tensor, keys: Tensor, count: int) -> Tensor:
    """The `count` rows with the least keys of all ranks, in the order of their keys; all, where there are fewer.

    Args:
        x: `(row, dim)`. keys: `(row,)` int64, for example `draws.hashes`.
    """
    own, order = keys.sort()
    own, rows = own[:count], x.detach()[order[:count]]
    if world() == 1:
        return rows
    last = torch.iinfo(torch.int64).max
    padded = torch.full((count,), last, device=keys.device)
    padded[: len(own)] = own
    filled = x.new_zeros(count, x.shape[1])
    filled[: len(rows)] = rows
    own, order = together(padded).sort()
    return together(filled)[order[:count]][own[:count] < last]
