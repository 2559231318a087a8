"""Bring windows of two modalities together: the contrastive objective of Neuroformer, pooled before fusion.

Papers: Antoniades et al., "Neuroformer", ICLR 2024, https://arxiv.org/abs/2311.00136 (pairs of modalities, weight 1/4);
Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
https://arxiv.org/abs/2103.00020 (both directions, learnable temperature).
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainfm.layers import ranks
from brainfm.tokens import TokenBatch


class Contrastive(nn.Module):
    """Symmetric InfoNCE between every two modalities of `model.alignment_features`, mean over pairs.

    A sample takes part in a pair where both modalities are there. Two windows whose content is the same in one of the
    modalities (one stimulus shown twice, a hand at rest) are not each other's negatives. With several ranks every
    sample meets those of all, as in one process.

    Args:
        weight: of the loss.
        temperature: at the start; it is learned, and its inverse is held at 100 or below.
    """

    def __init__(self, weight: float = 0.25, temperature: float = 0.07) -> None:
        super().__init__()
        self.weight = weight
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    def forward(self, model: nn.Module, batch: TokenBatch) -> dict[str, Tensor]:
        """Part "contrastive", 0 where no two samples have two modalities; "metric_matched" is top-1 both ways."""
        features = {k: (_of_all(x), ranks.together(there)) for k, (x, there) in model.alignment_features(batch).items()}
        same = {name: _same(batch, name) for name in features}
        scale = self.log_scale.clamp(max=math.log(100.0)).exp()
        losses, hits = [], []
        for (a, (x, x_there)), (b, (y, y_there)) in itertools.combinations(features.items(), 2):
            both = (x_there & y_there).nonzero()[:, 0]
            if len(both) > 1:
                score = functional.normalize(x[both], dim=-1) @ functional.normalize(y[both], dim=-1).T
                twin = (same[a] | same[b])[both][:, both]
                twin.fill_diagonal_(False)
                score = (scale * score).masked_fill(twin, -torch.inf)
                truth = torch.arange(len(both), device=score.device)
                losses.append((functional.cross_entropy(score, truth) + functional.cross_entropy(score.T, truth)) / 2)
                hits += [(score.argmax(1) == truth).float().mean(), (score.argmax(0) == truth).float().mean()]
        if not losses:
            nothing = sum((x.sum() * 0 for x, _ in features.values()), self.log_scale * 0)
            return {"contrastive": nothing}
        loss = self.weight * torch.stack(losses).mean()
        return {"contrastive": loss, "metric_matched": torch.stack(hits).mean().detach()}


def _of_all(x: Tensor) -> Tensor:
    """The rows of all ranks; gradients reach this rank's rows, so large that DDP's mean over ranks is their sum."""
    world = ranks.world()
    if world == 1:
        return x
    everyone = ranks.together(x.detach())
    own = everyone.view(-1, world, *x.shape[1:])[: len(x), ranks.rank()]
    place = torch.arange(len(x), device=x.device) * world + ranks.rank()
    return everyone.index_add(0, place, world * (x - own))


def _same(batch: TokenBatch, name: str) -> Tensor:
    """`(batch, batch)` whether two windows, of all ranks, hold the very same values in a modality."""
    if name in batch.aligned:
        rows = ranks.together(batch.aligned[name].flatten(1).nan_to_num(torch.finfo(torch.float32).max))
    else:
        real = batch.mask.to(batch.time.dtype)
        number = batch.aligned["neuron"].gather(1, batch.channel) + 1.0
        rows = torch.cat((ranks.together(batch.time * real), ranks.together(number * real)), dim=1)
    return torch.stack([(rows == row).all(dim=1) for row in rows])
