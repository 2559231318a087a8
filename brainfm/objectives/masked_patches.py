"""Hide cells of (channel, patch) and predict their samples, as LUNA does (Döner et al. 2025, arXiv 2510.22257).

The mask is drawn for each sample, where the published code draws one for the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainfm.tokens import TokenBatch


def hidden_tokens(mask: Tensor, share: float) -> Tensor:
    """Draw `share` of the real tokens of each sample: `(batch, token)` → `(batch, token)`.

    Args:
        mask: True for real tokens.
        share: rounded to whole tokens in each sample.
    """
    noise = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, 2.0)
    rank = noise.argsort(dim=1).argsort(dim=1)
    return (rank < (mask.sum(dim=1, keepdim=True) * share).round()) & mask


def overlap(attention: Tensor) -> Tensor:
    """How much the queries look at the same channels: mean square of A A' off its diagonal.

    Args:
        attention: `(..., query, channel)`; rows of zeros belong to patches without data and do not count.
    """
    queries = attention.shape[-2]
    gram = (attention @ attention.transpose(-1, -2)).square()
    off = gram.sum((-1, -2)) - gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    real = (attention.sum((-1, -2)) > 0).sum().clamp_min(1)
    return off.sum() / (real * max(1, queries * (queries - 1)))


class MaskedPatches(nn.Module):
    """Smooth L1 on hidden cells, a little of it on visible ones, and different channels for different queries.

    Args:
        share: share of each sample's real tokens that is hidden.
        visible_weight: weight of the loss on visible tokens.
        specialisation: weight of `overlap`, for models that have `reconstruct_with_attention`.

    Raises:
        ValueError: for a share outside [0, 1].
    """

    def __init__(self, share: float = 0.5, visible_weight: float = 0.05, specialisation: float = 0.8) -> None:
        super().__init__()
        if not 0 <= share <= 1:
            raise ValueError(f"the share of hidden tokens lies in [0, 1]; got {share}")
        self.share, self.visible_weight, self.specialisation = share, visible_weight, specialisation

    def forward(self, model: nn.Module, batch: TokenBatch) -> dict[str, Tensor]:
        """`hidden`, `visible` and `specialisation`, and `metric_r`, the correlation over all hidden samples."""
        if batch.values.shape[-1] != model.patch:
            batch = batch.repatch(model.patch)
        hidden = hidden_tokens(batch.mask, self.share)
        visible = batch.mask & ~hidden
        attention = None
        if self.specialisation and hasattr(model, "reconstruct_with_attention"):
            predicted, attention = model.reconstruct_with_attention(batch, hidden)
        else:
            predicted = model.reconstruct(batch, hidden)
        target = model.target(batch)
        error = functional.smooth_l1_loss(predicted, target, reduction="none").mean(dim=-1)
        parts = {
            "hidden": (error * hidden).sum() / hidden.sum().clamp_min(1),
            "visible": self.visible_weight * (error * visible).sum() / visible.sum().clamp_min(1),
        }
        if attention is not None:
            parts["specialisation"] = self.specialisation * overlap(attention)
        return parts | {"metric_r": correlation(predicted.detach()[hidden], target[hidden])}


def correlation(predicted: Tensor, target: Tensor) -> Tensor:
    """Pearson's r over all numbers of both; 0 where one is constant or empty."""
    a, b = predicted.flatten().float(), target.flatten().float()
    if not len(a):
        return a.new_zeros(())
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt().clamp_min(1e-12)
