"""LUNA: a transformer that unifies any montage into a few latent sources before it looks along time.

"LUNA: Efficient and Topology-Agnostic Foundation Model for EEG Signal Analysis", Döner et al., NeurIPS 2025,
https://arxiv.org/abs/2510.22257.

Every patch of every channel becomes a token with its sensor's location. At each patch, learned queries gather the
channels by cross-attention, so that what follows costs the same for 8 sensors as for 300. A rotary transformer runs
along time over the queries side by side. For pretraining, a decoder asks the queries for each sensor's patch by the
sensor's location, and is scored on the cells that were hidden.

Differences from the paper and its published code:
- A sensor is described by scale-keeping Fourier features of its place in metres (up to six octaves from 40 cm), the
  coil's orientation, its kind and whether the place is known, instead of a min-max of the montage: one channel and
  unknown places work, head size and MEG are kept. Six octaves, not ten to twenty-one: finer ones are below a mm.
- The decoder asks by that description. The fixed vocabulary of 90 names is optional (`channel_names`, with
  `aligned["channel_name"]` `(batch, channel)`, -1 where unknown); published sizes keep its table, none needs it.
- Locations and names belong to their own sample in encoder and decoder; the code mixed them between samples.
- Channels are standardised by visible samples only, so that hidden ones cannot leak; group norms of the patch
  embedding see one patch, where the code's see all channels of a sample, hidden and padded ones too.
- A phase is damped where its amplitude vanishes: there its value is rounding noise.
- Attention reads real channels only; the cross-attention's temperature multiplies the queries.
- Linear layers start as PyTorch starts them: with Glorot weights the first hundred steps at 128 Hz learnt nothing.
- Jitter of locations is 4 mm in place of 0.02 of the montage's extent, in training only.

Tensor walk of `encode`:
    values (batch, channel x patch, sample) → standardised (batch, channel, patch, sample)
    → convolutions + spectrum + location (batch, channel, patch, embed)
    → queries over channels (batch x patch, query, embed) → self-attention among queries
    → (batch, patch, query x embed) → depth x rotary block, norm → tokens (batch, patch, dim)
    → pooled (batch, 5 dim): mean over time, and over four quarters of the window
"""

from __future__ import annotations

import math

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional

from brainfm.layers.attention import MLP, Attention, Block
from brainfm.layers.positions import fourier
from brainfm.recording import KINDS
from brainfm.tokens import Encoding, Facts, TokenBatch

PAPER = "Döner et al. 2025, LUNA, NeurIPS, arXiv 2510.22257"
FACTS = Facts(modality=("eeg",), kinds=("eeg",), sfreq=256.0, window_s=5.0, channels=22)
SIZES: dict[str, dict] = {
    "base": {"embed": 64, "heads": 2, "depth": 8, "queries": 4, "patch": 40, "channel_names": 90},
    "large": {"embed": 96, "heads": 2, "depth": 10, "queries": 6, "patch": 40, "channel_names": 90},
    "huge": {"embed": 128, "heads": 2, "depth": 24, "queries": 8, "patch": 40, "channel_names": 90},
    "local": {"embed": 32, "heads": 2, "depth": 2, "queries": 4, "patch": 32, "mixing": 1},
    "test": {"embed": 16, "heads": 2, "depth": 1, "queries": 2, "patch": 16, "mixing": 1},
}

#: Doublings of the place's Fourier features: wavelengths from 40 cm down to 12.5 mm.
OCTAVES = 6
#: Standard deviation of the jitter of places in training, metres.
JITTER = 0.004


class PatchEmbedding(nn.Module):
    """Three small convolutions over the samples of a patch, plus its spectrum: `(..., sample)` → `(..., embed)`.

    The first convolution takes four steps of a quarter of the patch, the others keep them.
    """

    def __init__(self, embed: int, patch: int) -> None:
        super().__init__()
        filters, step = embed // 4, patch // 4
        self.step, self.filters = step, filters
        self.first = nn.Conv1d(1, filters, 2 * step - 1, step, padding=step - 1)
        self.second = nn.Conv1d(filters, filters, 3, padding=1)
        self.third = nn.Conv1d(filters, filters, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(4, filters) for _ in range(3))
        bins = 2 * (patch // 2 + 1)
        self.spectrum = MLP(bins, 4 * bins, embed)

    def forward(self, x: Tensor) -> Tensor:
        y = x.reshape(-1, 1, x.shape[-1])
        for convolve, norm in zip((self.first, self.second, self.third), self.norms, strict=True):
            y = functional.gelu(norm(convolve(y)))
        bins = torch.fft.rfft(x, norm="ortho")
        amplitude = bins.abs()
        phase = bins.angle() * amplitude.square() / (amplitude.square() + 1e-4)
        return y.reshape(*x.shape[:-1], -1) + self.spectrum(torch.cat((amplitude, phase), dim=-1))


class Unification(nn.Module):
    """Learned queries gather the channels of one patch: `(row, channel, embed)` → `(row, query, embed)`."""

    def __init__(self, embed: int, heads: int, queries: int, mixing: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.queries = nn.Parameter(nn.init.orthogonal_(torch.empty(queries, embed)))
        self.temperature = nn.Parameter(torch.ones(()))
        self.norm_queries, self.norm_keys, self.norm_values = (nn.LayerNorm(embed) for _ in range(3))
        self.query, self.key, self.value, self.out = (nn.Linear(embed, embed) for _ in range(4))
        self.feed = NormedMLP(embed)
        self.mixing = nn.ModuleList(Block(embed, heads, dropout) for _ in range(mixing))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The latent sources, and the attention `(row, query, channel)` by which they came about, mean over heads."""
        query = rearrange(
            self.query(self.norm_queries(self.queries)) * self.temperature, "q (h d) -> h q d", h=self.heads
        )
        key = rearrange(self.key(self.norm_keys(x)), "r c (h d) -> r h d c", h=self.heads)
        value = rearrange(self.value(self.norm_values(x)), "r c (h d) -> r h c d", h=self.heads)
        score = (query @ key) / math.sqrt(query.shape[-1])
        blind = ~mask.any(dim=1)[:, None, None, None]
        weight = score.masked_fill(~(mask[:, None, None] | blind), -torch.inf).softmax(dim=-1).masked_fill(blind, 0.0)
        gathered = functional.dropout(weight, self.dropout, self.training) @ value
        y = self.out(rearrange(gathered, "r h q d -> r q (h d)"))
        y = y + self.feed(y)
        for block in self.mixing:
            y = block(y)
        return y, weight.mean(dim=1)


class NormedMLP(nn.Module):
    """Two linear layers with GELU and a layer norm of the hidden units between; four times the width inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(dim, 4 * dim), nn.LayerNorm(4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., dim)` → the same shape."""
        return self.second(self.norm(functional.gelu(self.first(x))))


class TemporalBlock(nn.Module):
    """Rotary self-attention along patches and an MLP, each added to its input.

    The rates of rotation are kept as a parameter that is not trained, as in the published state dict.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.mlp = Attention(dim, heads), NormedMLP(dim)
        half = dim // heads // 2
        self.rate = nn.Parameter(10_000.0 ** (-torch.arange(half) / half), requires_grad=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`(batch, patch, dim)` with real patches in `mask (batch, patch)` → the same shape."""
        q, k, v = self.attention.project(self.norm_attention(x), None, None, None)
        angle = torch.arange(x.shape[1], device=x.device).unsqueeze(1) * self.rate
        allowed = mask[:, None, None, :] | ~mask.any(dim=1)[:, None, None, None]
        y = functional.scaled_dot_product_attention(turn(q, angle), turn(k, angle), v, attn_mask=allowed)
        x = x + self.attention.out(rearrange(y, "b h p d -> b p (h d)"))
        return x + self.mlp(self.norm_mlp(x))


def turn(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate pairs of features `(..., patch, feature)` by `angle (patch, feature / 2)`."""
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Decoder(nn.Module):
    """Asks the latent sources of a patch for each channel: one layer of self- and cross-attention, then an MLP."""

    def __init__(self, embed: int, heads: int, patch: int) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(embed)
        self.among = Attention(embed, heads)
        self.cross = Block(embed, heads)
        self.norm = nn.LayerNorm(embed)
        self.head = MLP(embed, 4 * embed, patch)

    def forward(self, asked: Tensor, sources: Tensor, mask: Tensor) -> Tensor:
        """`(batch, channel, embed)` and `(batch, patch, query, embed)` → `(batch, channel, patch, sample)`."""
        patches = sources.shape[1]
        asked = asked + self.among(self.norm_self(asked), mask=mask)  # the same at every patch: computed once
        asked = repeat(asked, "b c e -> (b p) c e", p=patches)
        y = self.cross(asked, rearrange(sources, "b p q e -> (b p) q e"))
        return rearrange(self.head(self.norm(y)), "(b p) c s -> b c p s", p=patches)


class Luna(nn.Module):
    """Encoder and decoder.

    Args:
        patch: samples per token, a multiple of 4.
        embed: width of a token, a multiple of 16.
        heads: heads over channels; the temporal transformer has `heads * queries`.
        depth: temporal blocks.
        queries: latent sources.
        mixing: blocks of self-attention among the queries.
        dropout: in the unification, in training only.
        channel_names: size of the decoder's optional table of names.
    """

    def __init__(
        self,
        patch: int,
        embed: int,
        heads: int,
        depth: int,
        queries: int,
        mixing: int = 3,
        dropout: float = 0.1,
        channel_names: int = 0,
    ) -> None:
        super().__init__()
        if patch % 4 or embed % 16:
            raise ValueError(f"patch {patch} must be a multiple of 4 samples and embed {embed} of 16; change them")
        self.patch, self.queries, self.dim = patch, queries, queries * embed
        self.patch_embedding = PatchEmbedding(embed, patch)
        self.hidden = nn.Parameter(nn.init.normal_(torch.empty(embed), std=0.02))
        features = max(embed, 6 * OCTAVES + 4 + len(KINDS))
        self.location = nn.Sequential(
            nn.Linear(features, 2 * embed), nn.GELU(), nn.LayerNorm(2 * embed), nn.Linear(2 * embed, embed)
        )
        self.unification = Unification(embed, heads, queries, mixing, dropout)
        self.blocks = nn.ModuleList(TemporalBlock(self.dim, heads * queries) for _ in range(depth))
        self.norm = nn.LayerNorm(self.dim)
        self.decoder = Decoder(embed, heads, patch)
        self.names = nn.Embedding(channel_names, embed) if channel_names else None
        self._initialise()

    def _initialise(self) -> None:
        """What a deep block adds starts smaller, by the square root of twice its depth."""
        with torch.no_grad():
            for layer, block in enumerate(self.blocks, start=1):
                block.attention.out.weight.div_(math.sqrt(2 * layer))
                block.mlp.second.weight.div_(math.sqrt(2 * layer))

    def encode(self, batch: TokenBatch) -> Encoding:
        """`(batch, patch, query x embed)`; windows are cut into patches of `patch` where they are not."""
        batch = batch if batch.values.shape[-1] == self.patch else batch.repatch(self.patch)
        latent, _, _ = self._encode(batch, None)
        real = batch.mask.unflatten(1, batch.grid).any(dim=1)
        return Encoding(latent, quarters(latent, real), real)

    def target(self, batch: TokenBatch) -> Tensor:
        """What `reconstruct` predicts: every channel standardised over the window, `(batch, token, patch)`."""
        return self._standardised(batch, batch.mask).flatten(1, 2)

    def reconstruct(self, batch: TokenBatch, hidden: Tensor) -> Tensor:
        """Prediction `(batch, token, patch)` of all tokens from those that are not `hidden (batch, token)`.

        Raises:
            ValueError: for tokens of another length than `patch`.
        """
        return self.reconstruct_with_attention(batch, hidden)[0]

    def reconstruct_with_attention(self, batch: TokenBatch, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """As `reconstruct`, and the attention `(batch, patch, query, channel)` of the same pass."""
        latent, attention, where = self._encode(batch, hidden)
        if self.names is not None and "channel_name" in batch.aligned:
            name = batch.aligned["channel_name"]
            where = where + self.names(name.clamp_min(0)) * (name >= 0).unsqueeze(-1)
        sources = latent.unflatten(2, (self.queries, -1))
        return self.decoder(where, sources, batch.channel_mask()).flatten(1, 2), attention

    def query_channel_attention(self, batch: TokenBatch) -> Tensor:
        """How much each latent source looks at each channel, `(batch, query, channel)`, mean over real patches."""
        batch = batch if batch.values.shape[-1] == self.patch else batch.repatch(self.patch)
        _, attention, _ = self._encode(batch, None)
        real = batch.mask.unflatten(1, batch.grid).any(dim=1).sum(dim=1).clamp_min(1)
        return attention.sum(dim=1) / real[:, None, None]

    def _encode(self, batch: TokenBatch, hidden: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Latent sources, attention of the unification `(batch, patch, query, channel)`, and locations."""
        x = self._standardised(batch, batch.mask if hidden is None else batch.mask & ~hidden)
        real = batch.mask.unflatten(1, batch.grid)
        where = self._locate(batch, jitter=self.training and hidden is not None)
        tokens = self.patch_embedding(x)
        if hidden is not None:
            tokens = torch.where(hidden.unflatten(1, batch.grid).unsqueeze(-1), self.hidden, tokens)
        tokens = rearrange(tokens + where.unsqueeze(2), "b c p e -> (b p) c e")
        sources, attention = self.unification(tokens, rearrange(real, "b c p -> (b p) c"))
        latent = rearrange(sources, "(b p) q e -> b p (q e)", b=len(batch))
        for block in self.blocks:
            latent = block(latent, real.any(dim=1))
        return self.norm(latent), attention.unflatten(0, (len(batch), -1)), where

    def _standardised(self, batch: TokenBatch, seen: Tensor) -> Tensor:
        """`(batch, channel, patch, sample)` by mean and spread of the tokens `seen`; 0 outside them and if flat."""
        if batch.grid is None or batch.values.shape[-1] != self.patch:
            raise ValueError(
                f"tokens hold {batch.values.shape[-1]} samples of a signal; this model wants {self.patch}: call "
                f"batch.repatch({self.patch}) first"
            )
        weight = seen.unflatten(1, batch.grid).unsqueeze(-1).to(batch.values.dtype)
        x = batch.values.unflatten(1, batch.grid)
        count = (weight.sum((2, 3), keepdim=True) * self.patch).clamp_min(1.0)
        mean = (x * weight).sum((2, 3), keepdim=True) / count
        x = (x - mean) * weight
        spread = (x.square().sum((2, 3), keepdim=True) / count).sqrt()
        scale = torch.where(spread > 1e-5 * mean.abs(), 1 / spread, 0.0)
        return x * scale

    def _locate(self, batch: TokenBatch, jitter: bool) -> Tensor:
        """`(batch, channel, embed)` from place, orientation and kind."""
        place = batch.place + torch.randn_like(batch.place) * JITTER if jitter else batch.place
        known = place.isfinite().all(dim=-1, keepdim=True).to(place.dtype)
        kind = functional.one_hot(batch.kind.clamp_min(0), len(KINDS)).to(place.dtype)
        features = torch.cat((fourier(place, OCTAVES), batch.orientation, kind, known), dim=-1)
        return self.location(functional.pad(features, (0, self.location[0].in_features - features.shape[-1])))


def quarters(x: Tensor, real: Tensor) -> Tensor:
    """Mean over real patches, and over each quarter of them: `(batch, patch, dim)` → `(batch, 5 dim)`.

    A patch that lies across two quarters counts in both by its overlap, so that any number of patches will do.
    """
    count = real.sum(dim=1, keepdim=True).clamp_min(1)
    end = real.cumsum(dim=1) / count * 4
    start = end - 4 / count
    quarter = torch.arange(4, device=x.device).view(4, 1, 1)
    overlap = (torch.minimum(end, quarter + 1) - torch.maximum(start, quarter)).clamp_min(0) * real
    weight = rearrange(overlap, "k b p -> b k p").to(x.dtype)
    parts = weight @ x
    return torch.cat((parts.mean(dim=1, keepdim=True), parts), dim=1).flatten(1)


def build(
    facts: Facts,
    patch: int = 32,
    embed: int = 32,
    heads: int = 2,
    depth: int = 2,
    queries: int = 4,
    mixing: int = 3,
    dropout: float = 0.1,
    channel_names: int = 0,
) -> Luna:
    """The model; any montage of any kind of sensor will do, so nothing of `facts` but the window's length matters.

    Raises:
        ValueError: where a window holds less than one patch.
    """
    samples = facts.sfreq * facts.window_s
    if samples and samples < patch:
        raise ValueError(
            f"a window of {facts.window_s} s has {samples:g} samples; one patch needs {patch}: use a longer one"
        )
    return Luna(patch, embed, heads, depth, queries, mixing, dropout, channel_names)
