"""A masked autoencoder over the regions of an atlas for fMRI.

In the manner of "BrainLM: A foundation model for brain activity recordings", Caro et al., ICLR 2024,
https://openreview.net/forum?id=RwI7ZEfR27, and of "Brain-JEPA: Brain Dynamics Foundation Model with Gradient
Positioning and Spatiotemporal Masking", Dong et al., NeurIPS 2024, https://arxiv.org/abs/2409.19407.

A token is a few volumes of one region. Whole regions are hidden for the length of a window, and the model predicts
them from the others: first by a linear latent-factor model whose loadings are functions of where a region lies, then
by a transformer that corrects what the linear model leaves, attending over regions at one time and over time in one
region. Nothing is tied to an atlas: a region is known by its coordinates, or by its row where it has none.

Differences from the papers:
- The prediction is a sum of two paths. The linear one is the posterior mean of factor analysis under the sample's own
  mask, `z = (1 + L' P L)^-1 L' P x` with loadings L and precisions P over visible regions and `x = L z` for hidden
  ones; L and P are learned with everything else. It needs minutes of data where a transformer needs years, and holds
  the place that ridge regression has as the baseline.
- Attention is factorised into regions and time instead of over all tokens; all tokens enter, hidden ones empty.
- A patch is 4 volumes (BrainLM 20, Brain-JEPA 16), and only whole regions need be hidden: time alone is smooth.
- Place is Fourier features of MNI coordinates (BrainLM: linear; Brain-JEPA: a fixed gradient table of one atlas).
- Each region is standardised over its window, not by statistics of a corpus; the sizes are for small corpora.

Tensor walk of `encode`:
    values (batch, region x patch, volume)
    → standardised (batch, region, time) → factor scores (batch, factor, time) → linear view (batch, region, time)
    → [signal, linear view, visible] of each patch (batch, region, patch, 2 volume + 1) → linear + region embedding
      (batch, region, patch, dim)
    → depth x (attention over regions at each patch, attention over patches of each region), norm
    → tokens (batch, region x patch, dim)
    → pooled (batch, factor (factor + 1) / 2 + dim): correlations and sizes of the factor scores over the window, which
      keep the person's connectivity, and the mean token
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from brainfm.layers.attention import MLP, Block, masked_mean
from brainfm.layers.positions import fourier
from brainfm.tokens import Encoding, Facts, TokenBatch

PAPER = "after Caro et al. 2024, BrainLM, ICLR, and Dong et al. 2024, Brain-JEPA, arXiv 2409.19407"
FACTS = Facts(modality=("fmri",), kinds=("region",), sfreq=0.5, window_s=128.0, channels=94)
SIZES: dict[str, dict] = {
    "local": {"dim": 32, "depth": 1, "heads": 4, "factors": 48},
    "test": {"dim": 16, "depth": 1, "heads": 2, "factors": 6},
    "base": {"dim": 256, "depth": 4, "heads": 4, "factors": 64, "patch": 16},
}

#: Doublings of the coordinates' Fourier features: wavelengths from 40 cm to 12 mm, about one region.
OCTAVES = 6


class RegionAutoencoder(nn.Module):
    """Predicts hidden regions from visible ones, linearly and with a correction by attention.

    Args:
        regions: number of rows that have an embedding of their own for the case that their place is unknown.
        patch: volumes per token.
        dim, depth, heads: width, pairs of attention blocks, heads.
        factors: rank of the linear path.
        dropout: in the transformer, in training only.
    """

    def __init__(
        self, regions: int, patch: int, dim: int, depth: int, heads: int, factors: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.patch, self.dim, self.factors = patch, dim, factors
        self.place = MLP(6 * OCTAVES, 4 * dim, 4 * dim)
        self.row = nn.Embedding(regions + 1, 4 * dim)
        self.loading = nn.Linear(4 * dim, factors)
        self.precision = nn.Linear(4 * dim, 1)
        self.region = nn.Linear(4 * dim, dim)
        self.embed = nn.Linear(2 * patch + 1, dim)
        self.over_regions = nn.ModuleList(Block(dim, heads, dropout) for _ in range(depth))
        self.over_time = nn.ModuleList(Block(dim, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.correct = nn.Linear(dim, patch)
        nn.init.zeros_(self.correct.weight)
        nn.init.zeros_(self.correct.bias)

    def encode(self, batch: TokenBatch) -> Encoding:
        """`(batch, region x patch, dim)` with nothing hidden; windows are cut into patches where they are not."""
        batch = self._cut(batch)
        x, visible, who = *self._standardised(batch, None), self._who(batch)
        score, linear = self._linear(x, visible, who)
        tokens = self._attend(batch, x, visible, who, linear).flatten(1, 2)
        pooled = torch.cat(
            (self._correlation(score, visible.any(dim=1)), masked_mean(tokens, visible.flatten(1))), dim=1
        )
        return Encoding(tokens, pooled, batch.mask)

    def target(self, batch: TokenBatch) -> Tensor:
        """What `reconstruct` predicts: each region standardised over the window, `(batch, token, patch)`."""
        return rearrange(self._standardised(batch, None)[0], "b r p v -> b (r p) v")

    def reconstruct(self, batch: TokenBatch, hidden: Tensor) -> Tensor:
        """Prediction of every token from those that are not `hidden (batch, token)`; in the space of `target`.

        Raises:
            ValueError: for tokens of another length than `patch`.
        """
        if batch.values.shape[-1] != self.patch:
            raise ValueError(
                f"tokens hold {batch.values.shape[-1]} volumes; this model wants {self.patch}: call "
                f"batch.repatch({self.patch}) before drawing `hidden`"
            )
        x, visible, who = *self._standardised(batch, hidden), self._who(batch)
        _, linear = self._linear(x, visible, who)
        correction = self.correct(self._attend(batch, x, visible, who, linear))
        return rearrange(linear + correction, "b r p v -> b (r p) v")

    def _cut(self, batch: TokenBatch) -> TokenBatch:
        return batch if batch.values.shape[-1] == self.patch else batch.repatch(self.patch)

    def _standardised(self, batch: TokenBatch, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """`(batch, region, patch, volume)` by mean and spread of visible cells, 0 elsewhere; and which are visible.

        A region that is flat, as bad ones are, counts as hidden.
        """
        if batch.grid is None:
            raise ValueError("the batch holds events; a masked autoencoder of regions wants regional series")
        visible = (batch.mask if hidden is None else batch.mask & ~hidden).unflatten(1, batch.grid)
        x = batch.values.unflatten(1, batch.grid)
        weight = visible.unsqueeze(-1).to(x.dtype)
        count = (weight.sum((2, 3), keepdim=True) * x.shape[-1]).clamp_min(1.0)
        mean = (x * weight).sum((2, 3), keepdim=True) / count
        x = (x - mean) * weight
        spread = (x.square().sum((2, 3), keepdim=True) / count).sqrt()
        varies = spread > 1e-5 * mean.abs()
        return torch.where(varies, x / torch.where(varies, spread, 1.0), 0.0), visible & varies.squeeze(-1)

    def _who(self, batch: TokenBatch) -> Tensor:
        """`(batch, region, 4 dim)` from the place, or from the row where the place is unknown."""
        known = batch.place.isfinite().all(dim=-1, keepdim=True)
        row = torch.arange(batch.kind.shape[1], device=batch.kind.device).clamp_max(self.row.num_embeddings - 1)
        return torch.where(known, self.place(fourier(batch.place, OCTAVES)), self.row(row)).float()

    def _linear(self, x: Tensor, visible: Tensor, who: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean of the factors `(batch, factor, patch, volume)`, and what it says of every region.

        A token that is hidden while others of its region are visible counts as 0, its mean; whole regions that are
        hidden are left out of the posterior.
        """
        with torch.autocast(x.device.type, enabled=False):  # there is no Cholesky factor in half precision
            loading = self.loading(who)
            weight = nn.functional.softplus(self.precision(who).squeeze(-1)) * visible.any(dim=2)
            weighted = loading * weight.unsqueeze(-1)
            posterior = loading.transpose(1, 2) @ weighted + torch.eye(self.factors, device=x.device)
            data = torch.einsum("brf,brpv->bfpv", weighted, x)
            score = torch.cholesky_solve(data.flatten(2), torch.linalg.cholesky(posterior)).view_as(data)
            return score, torch.einsum("brf,bfpv->brpv", loading, score)

    def _attend(self, batch: TokenBatch, x: Tensor, visible: Tensor, who: Tensor, linear: Tensor) -> Tensor:
        """Tokens `(batch, region, patch, dim)` of the transformer, which sees the signal and the linear view of it."""
        features = torch.cat((x, linear, visible.unsqueeze(-1).to(x.dtype)), dim=-1)
        y = self.embed(features) + self.region(who).unsqueeze(2)
        b, r, p, _ = y.shape
        real = batch.mask.unflatten(1, (r, p))
        at_one_time, of_one_region = rearrange(real, "b r p -> (b p) r"), rearrange(real, "b r p -> (b r) p")
        time = torch.arange(p, device=y.device, dtype=y.dtype)
        for space, along in zip(self.over_regions, self.over_time, strict=True):
            y = space(rearrange(y, "b r p d -> (b p) r d"), mask=at_one_time)
            y = rearrange(y, "(b p) r d -> (b r) p d", b=b)
            y = rearrange(along(y, mask=of_one_region, time=time), "(b r) p d -> b r p d", b=b)
        return self.norm(y)

    def _correlation(self, score: Tensor, real: Tensor) -> Tensor:
        """Correlations of the factor scores over the real patches of the window, and their sizes on the diagonal.

        `(batch, factor, patch, volume)` and `(batch, patch)` → `(batch, factor (factor + 1) / 2)`.
        """
        volumes = (real.sum(dim=1) * score.shape[-1]).clamp_min(1)
        score = score.flatten(2)  # zero where there is no data
        moment = score @ score.transpose(1, 2) / volumes[:, None, None]
        size = moment.diagonal(dim1=1, dim2=2).clamp_min(1e-12).sqrt()
        moment = moment / (size.unsqueeze(1) * size.unsqueeze(2))
        moment = moment - torch.diag_embed(moment.diagonal(dim1=1, dim2=2)) + torch.diag_embed(size)
        row, column = torch.triu_indices(self.factors, self.factors, device=score.device)
        return moment[:, row, column]


def build(
    facts: Facts,
    dim: int = 32,
    depth: int = 1,
    heads: int = 4,
    factors: int = 48,
    patch: int = 4,
    dropout: float = 0.0,
) -> RegionAutoencoder:
    """The model for the regions of `facts`.

    Raises:
        ValueError: where a window holds less than one patch.
    """
    volumes = facts.sfreq * facts.window_s
    if volumes and volumes < patch:
        raise ValueError(
            f"a window of {facts.window_s} s has {volumes:g} volumes; one patch needs {patch}: use a longer one"
        )
    return RegionAutoencoder(len(facts.regions) or facts.channels, patch, dim, depth, heads, factors, dropout)
