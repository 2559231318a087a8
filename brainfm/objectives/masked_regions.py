"""Predict whole regions that are hidden for the length of a window, from the regions that are not.

The cross-region part of Brain-JEPA's masks (Dong et al. 2024, arXiv 2409.19407, section 3.3) with the reconstruction
loss of BrainLM (Caro et al. 2024, ICLR): hiding stretches of time alone is solved by the slowness of the signal.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brainfm.tokens import TokenBatch


def hidden_channels(real: Tensor, share: Tensor) -> Tensor:
    """Draw which channels are hidden, each sample by itself.

    At least one channel stays visible, and at least one is hidden where a sample has two.

    Args:
        real: `(batch, channel)` True for channels that carry data.
        share: `(batch,)` share of the real channels to hide.
    """
    noise = torch.rand(real.shape, device=real.device).masked_fill(~real, 2.0)
    rank = noise.argsort(dim=1).argsort(dim=1)
    real_count = real.sum(dim=1)
    count = (share * real_count).round().long().clamp_min(1).minimum(real_count - 1).clamp_min(0)
    return (rank < count.unsqueeze(1)) & real


class MaskedRegions(nn.Module):
    """Mean squared error on the tokens of hidden regions.

    Args:
        low, high: the share of regions that is hidden is drawn between these for each sample, so that one model
            serves any number of missing regions.

    Raises:
        ValueError: unless 0 <= low <= high < 1.
    """

    def __init__(self, low: float = 0.1, high: float = 0.5) -> None:
        super().__init__()
        if not 0 <= low <= high < 1:
            raise ValueError(f"shares of hidden regions go from low to high in [0, 1); got low {low} and high {high}")
        self.low, self.high = low, high

    def forward(self, model: nn.Module, batch: TokenBatch) -> dict[str, Tensor]:
        """`loss` on hidden regions, and `metric_r2`, the share of their variance that is explained."""
        if batch.values.shape[-1] != model.patch:
            batch = batch.repatch(model.patch)
        assigned = batch.mask.unflatten(1, batch.grid).any(dim=2)
        share = torch.empty(len(batch), device=batch.values.device).uniform_(self.low, self.high)
        hidden = hidden_channels(assigned, share).repeat_interleave(batch.grid[1], dim=1) & batch.mask
        target = model.target(batch)[hidden]
        error = (model.reconstruct(batch, hidden)[hidden] - target).square().sum()
        with torch.no_grad():
            total = (target - target.mean()).square().sum() if len(target) else error
            r2 = 1 - error.detach() / total.clamp_min(1e-12)
        return {"loss": error / max(1, target.numel()), "metric_r2": r2}
