"""BrainOmni: masked prediction of BrainTokenizer's codes by attention along time and across latent sources.

Paper: Xiao et al. 2025, "BrainOmni: A Brain Foundation Model for Unified EEG and MEG Signals", NeurIPS 2025,
arXiv:2505.18185, section 3.2.

A frozen tokenizer turns any montage into features of a fixed number of latent sources. A token's features are split
in two halves: one attends along time within a source, the other across sources at one time, and the halves change
places in each block. Trained by `objectives/masked_codes.py`.

Differences from the paper:
- `overlap` of the tokenizer's windows is 0 unless told (published: 0.25): a signal and its stored codes give the same.
- Rotary angles are computed when needed, so no checkpoint can lose them. `rope="as_released"` multiplies by the
  cosines alone, which is what the released files make of the released code.
- The sources' queries are added with unit length, as the features have it, except for released tokenizers: at their
  own length they drown the codes (300 steps at the pipeline's size: loss 4.80 in place of 4.95, chance 5.55).
- Dropout only in training. Absent times are masked.

Tensors of `encode`: signal `(batch, channel, time)` or codes `(batch, source x time, depth)` → features of the codebook
`(batch, source, time, feature)` plus the source's query → linear `(batch, source, time, dim)` → blocks, all but the
last → unit length `(batch, source x time, dim)`.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from brainfm.codebooks import braintokenizer
from brainfm.codebooks.braintokenizer import BrainTokenizer, Sources
from brainfm.layers.attention import masked_mean
from brainfm.tokens import Encoding, Facts, TokenBatch

PAPER = braintokenizer.PAPER
FACTS = braintokenizer.FACTS
SIZES = {
    "tiny": {"dim": 256, "heads": 8, "blocks": 12, "overlap": 0.25},
    "base": {"dim": 512, "heads": 16, "blocks": 12, "overlap": 0.25},
    "local": {"dim": 64, "heads": 4, "blocks": 4},
    "test": {"dim": 24, "heads": 4, "blocks": 2},
}
ROPES = ("regenerated", "as_released")


def turn(x: Tensor, rope: str) -> Tensor:
    """Rotate neighbouring features by angles that grow with the position; frequencies span all heads together.

    Args:
        x: `(row, time, ..., feature)` before the split into heads.
        rope: "regenerated" for the whole rotation, "as_released" for its cosines alone.
    """
    pairs = x.shape[-1] // 2
    rate = 10_000.0 ** (-torch.arange(pairs, device=x.device, dtype=torch.float32) / pairs)
    angle = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)[:, None] * rate
    angle = angle.view(len(angle), *(1,) * (x.dim() - 3), pairs)
    turned = torch.complex(angle.cos(), angle.sin() if rope == "regenerated" else torch.zeros_like(angle))
    whole = torch.view_as_complex(x.float().unflatten(-1, (pairs, 2))) * turned
    return torch.view_as_real(whole).flatten(-2).to(x.dtype)


class HalfAttention(nn.Module):
    """Self-attention over `(row, token, width)` with a mask `(row, token)`; rows without tokens give numbers unused."""

    def __init__(self, width: int, heads: int, dropout: float, rope: str | None) -> None:
        super().__init__()
        self.heads, self.dropout, self.rope = heads, dropout, rope
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The same shape as `x`; no mask where every token is real, which lets torch choose its fastest attention."""
        qkv = self.qkv(x).unflatten(-1, (3, x.shape[-1]))
        q, k, v = qkv.unbind(2)
        if self.rope is not None:
            q, k = turn(qkv[:, :, :2], self.rope).unbind(2)
        q, k, v = (rearrange(y, "r t (h d) -> r h t d", h=self.heads) for y in (q, k, v))
        allowed = None if mask is None else (mask | ~mask.any(dim=1, keepdim=True))[:, None, None]
        dropout = self.dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        return self.out(rearrange(y, "r h t d -> r t (h d)"))


class CrissCross(nn.Module):
    """A block: half of the features attends along time, half across sources; the halves come out exchanged."""

    def __init__(self, dim: int, heads: int, dropout: float, rope: str) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.RMSNorm(dim, eps=1e-6), nn.RMSNorm(dim, eps=1e-6)
        self.along_time = HalfAttention(dim // 2, heads // 2, dropout, rope)
        self.across_sources = HalfAttention(dim // 2, heads // 2, dropout, None)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SELU(), nn.Linear(4 * dim, dim))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`(batch, source, time, dim)` with mask `(batch, source, time)` → the same shape."""
        b, s = x.shape[:2]
        in_time, in_space = (None, None) if mask.all() else (mask.flatten(0, 1), rearrange(mask, "b s t -> (b t) s"))
        first, second = self.norm_attention(x).chunk(2, dim=-1)
        time = self.along_time(first.flatten(0, 1), in_time).unflatten(0, (b, s))
        space = self.across_sources(rearrange(second, "b s t d -> (b t) s d"), in_space)
        space = rearrange(space, "(b t) s d -> b s t d", b=b)
        x = x + self.drop(torch.cat((space, time), dim=-1))
        return x + self.drop(self.mlp(self.norm_mlp(x)))


class BrainOmni(nn.Module):
    """The second stage with its frozen tokenizer inside; keywords as in `build`."""

    def __init__(
        self, codebook: BrainTokenizer, dim: int, heads: int, blocks: int, dropout: float, overlap: float, rope: str,
        predicted: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if dim % heads or dim % 4 or heads % 2 or rope not in ROPES or not 0 <= overlap < 1:
            raise ValueError(
                f"width {dim} with {heads} heads, overlap {overlap}, rope {rope!r}; expected an even number of heads, "
                f"a width that is a multiple of them and of 4, an overlap from 0 to below 1, rope of {', '.join(ROPES)}"
            )
        self.dim, self.patch, self.overlap = dim, codebook.patch, overlap
        self.codebook = codebook.requires_grad_(False).eval()
        self.project = nn.Linear(codebook.dim, dim) if codebook.dim != dim else nn.Identity()
        self.blocks = nn.ModuleList(CrissCross(dim, heads, dropout, rope) for _ in range(blocks))
        self.predicted = codebook.depth if predicted is None else predicted
        if not 1 <= self.predicted <= codebook.depth:
            raise ValueError(f"predicted={predicted} codebooks; expected 1 to {codebook.depth}, those of the tokenizer")
        self.head = nn.Linear(dim, self.predicted * codebook.codes_per_depth)
        for layer in self.modules():
            if isinstance(layer, nn.Linear) and not any(layer is frozen for frozen in codebook.modules()):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.mask_vector = nn.Parameter(torch.randn(codebook.dim) * 0.02)

    def train(self, mode: bool = True) -> BrainOmni:
        """Switch all but the tokenizer, which stays in evaluation mode."""
        super().train(mode)
        self.codebook.eval()
        return self

    @torch.no_grad()
    def sources_of(self, batch: TokenBatch) -> Sources:
        """Quantised sources of a batch of signals (`sfreq` set) or of codes `(batch, source x time, depth)`.

        Raises:
            ValueError: for events, or codes of another tokenizer.
        """
        if batch.grid is None:
            raise ValueError("a batch of events has neither signals nor codes; tokenize its recordings first")
        if batch.sfreq is not None:
            return self.codebook.sources_of(batch, self.overlap)
        sources, depth = self.codebook.sources, self.codebook.depth
        if batch.grid[0] != sources or batch.values.shape[-1] != depth or batch.values.is_floating_point():
            raise ValueError(
                f"codes of {batch.grid[0]} sources and depth {batch.values.shape[-1]} ({batch.values.dtype}); this "
                f"model reads integers of {sources} sources and depth {depth}: use the codes of its own tokenizer"
            )
        mask = batch.mask.view(len(batch), *batch.grid)
        codes = batch.values.long().view(len(batch), *batch.grid, depth).masked_fill(~mask[..., None], 0)
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook.codes_per_depth:
            raise ValueError(
                f"codes from {int(codes.min())} to {int(codes.max())}; this model's codebooks have "
                f"{self.codebook.codes_per_depth}: use the codes of its own tokenizer"
            )
        features = self.codebook.features_of(codes) * mask[..., None]
        return Sources(features, codes, mask, features.new_zeros(()))

    def embed(self, features: Tensor) -> Tensor:
        """Features of the codebook `(batch, source, time, feature)` → the first block's input `(..., dim)`."""
        queries = self.codebook.queries
        if not self.codebook.released:
            queries = functional.normalize(queries, dim=-1)
        return self.project(features + queries[:, None])

    def predict(self, features: Tensor, mask: Tensor) -> Tensor:
        """Logits of all codes from (masked) features: `(batch, source, time, depth, code)`, coarsest depth first."""
        x = self.embed(features)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x).unflatten(-1, (self.predicted, self.codebook.codes_per_depth))

    def encode(self, batch: TokenBatch) -> Encoding:
        """Features of the last block but one, with unit length; pooled is the mean over time of each source."""
        return self.encode_sources(self.sources_of(batch))

    def encode_sources(self, sources: Sources) -> Encoding:
        """As `encode`, of the tokenizer's features, through which a gradient may go."""
        x = self.embed(sources.features)
        for block in self.blocks[:-1]:
            x = block(x, sources.mask)
        return self._encoding(x, sources.mask)

    def layers(self, batch: TokenBatch) -> list[Encoding]:
        """The same after the embedding and after each block, `blocks + 1` in all; `encode` gives the last but one."""
        sources = self.sources_of(batch)
        x = self.embed(sources.features)
        found = [self._encoding(x, sources.mask)]
        for block in self.blocks:
            x = block(x, sources.mask)
            found.append(self._encoding(x, sources.mask))
        return found

    @torch.no_grad()
    def source_attention(self, batch: TokenBatch) -> Tensor:
        """How much each source (row) attends to each (column), `(block, source, source)`; rows sum to 1.

        Mean over heads, and over all times of all samples at which there is data.
        """
        sources = self.sources_of(batch)
        x, real, found = self.embed(sources.features), rearrange(sources.mask, "b s t -> b t s"), []
        for block in self.blocks:
            inner = block.across_sources
            second = rearrange(block.norm_attention(x).chunk(2, dim=-1)[1], "b s t d -> b t s d")
            q, k = (
                rearrange(y, "b t s (h d) -> b t h s d", h=inner.heads) for y in inner.qkv(second).chunk(3, dim=-1)[:2]
            )
            score = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~real[:, :, None, None], -torch.inf)
            weight = score.softmax(dim=-1).mean(dim=2).masked_fill(~real[..., None], 0.0)
            found.append(weight.sum(dim=(0, 1)) / real.sum(dim=(0, 1)).clamp_min(1)[:, None])
            x = block(x, sources.mask)
        return torch.stack(found)

    def _encoding(self, x: Tensor, mask: Tensor) -> Encoding:
        x = functional.normalize(x, dim=-1) * mask[..., None]
        pooled = masked_mean(x.flatten(0, 1), mask.flatten(0, 1)).view(len(x), -1)
        return Encoding(x.flatten(1, 2), pooled, mask.flatten(1))


def build(
    facts: Facts,
    codebook: BrainTokenizer,
    dim: int = 256,
    heads: int = 8,
    blocks: int = 12,
    dropout: float = 0.1,
    overlap: float = 0.0,
    rope: str = "regenerated",
    predicted: int | None = None,
) -> BrainOmni:
    """The second stage over a trained tokenizer; the defaults are the published "tiny" without overlap.

    Args:
        facts: not needed beyond what the tokenizer knows.
        codebook: the tokenizer; frozen from here on.
        dim, heads, blocks: width, heads (half for time, half for sources) and number of blocks.
        dropout: in training.
        overlap: share by which the tokenizer's windows overlap on signals.
        rope: "regenerated" or "as_released", see the differences above.
        predicted: how many codebooks the head predicts, coarse to fine; all if None.
    """
    return BrainOmni(codebook, dim, heads, blocks, dropout, overlap, rope, predicted)
