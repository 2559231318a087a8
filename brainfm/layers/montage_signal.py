"""The signal of a batch for networks that know a channel by its row: one montage in a fixed order, one length."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from brainfm.tokens import TokenBatch


def montage_signal(batch: TokenBatch, channels: int, samples: int, patch: int, name: str) -> tuple[Tensor, Tensor]:
    """`(batch, channel, time)` of the built size, zero where there is nothing, and `(batch, patch)` what is real.

    Args:
        batch: windows. channels, samples: of the result. patch: samples that are real or lacking together.
        name: of the network, for the error.

    Raises:
        ValueError: for events, or more channels or samples than the network was built for.
    """
    batch = batch if batch.values.shape[-1] == patch else batch.repatch(patch)
    x, grid = batch.signal(), batch.mask.unflatten(1, batch.grid)  # type: ignore[arg-type]
    rows, length = int(batch.channel_mask().any(dim=0).sum()), int(grid.any(dim=1).any(dim=0).sum()) * patch
    if rows > channels or length > samples:
        raise ValueError(
            f"{rows} channels and windows of {length} samples; this {name} was built for {channels} and {samples}: "
            "build one for this montage and window"
        )
    x = torch.where(grid.repeat_interleave(patch, dim=2), x, 0.0)[:, :rows, :length]
    x = functional.pad(x, (0, samples - length, 0, channels - rows))
    real = grid.any(dim=1)[:, : length // patch]
    return x, functional.pad(real, (0, (samples - length) // patch))


def covered(real: Tensor, field: int, stride: int) -> Tensor:
    """`(batch, step)` whether all inputs of each step of a filter or a pooling are real; `real` is `(batch, time)`."""
    return -functional.max_pool1d(-real.float().unsqueeze(1), field, stride).squeeze(1) > 0.5
