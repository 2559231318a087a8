"""Filters along time, then over the channels, with nothing between: one convolution over both."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainfm.layers.norms import held


class TimeSpace(nn.Module):
    """`(batch, channel, time)` → `(batch, filter, time - kernel + 1)`.

    Two convolutions in a row are one (both are linear), so the product of their weights is convolved with the signal
    once. That gives the same numbers and the same gradients without the `(batch, filter, channel, time)` between them.

    Args:
        channels: of the montage. filters: along time, and as many over the channels. kernel: samples along time.
        bias: whether the filters over the channels have one; those along time always do.
        bound: largest norm of each filter; None for no bound.
    """

    def __init__(
        self, channels: int, filters: int, kernel: int, bias: bool = False, bound: float | None = None
    ) -> None:
        super().__init__()
        self.along_time = nn.Conv2d(1, filters, (1, kernel))
        self.across_channels = nn.Conv2d(filters, filters, (channels, 1), bias=bias)
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        """Filtered; steps at the edges that would need samples outside of the window are left out."""
        time, space = self.along_time.weight, self.across_channels.weight
        if self.bound is not None:
            time, space = held(time, self.bound, self.training), held(space, self.bound, self.training)
        time, space = time[:, 0, 0], space[..., 0]
        level = torch.einsum("ofc,f->o", space, self.along_time.bias)  # type: ignore[arg-type]
        if self.across_channels.bias is not None:
            level = level + self.across_channels.bias
        return functional.conv1d(x, torch.einsum("ofc,fk->ock", space, time), level)
