"""A readout that looks for what it needs: a learned query attends over a network's tokens.

The attentive probe of Bardes et al. 2024 (V-JEPA, arXiv:2404.08471, section 4) with one attention layer: keys and
values are linear in the tokens, which are standardised first, for those of a network may differ by a thousandth.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from brainfm.layers.attention import attend
from brainfm.tokens import Encoding, TokenBatch


class Attentive(nn.Module):
    """Learned queries attend over frozen tokens.

    Args:
        mean, scale: `(dim,)` of the tokens of the training windows; not trained.
        heads: of the attention; the width of the tokens is cut where it does not divide. queries: how many look.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, heads: int = 4, queries: int = 1) -> None:
        super().__init__()
        dim, self.heads = len(mean), heads
        width = max(1, dim // heads) * heads
        self.query = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.key_value, self.out = nn.Linear(dim, 2 * width), nn.Linear(width, dim)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", torch.where(scale > 0, scale, 1.0))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """`(batch, token, dim)` with real ones in `mask (batch, token)` → `(batch, query x dim)`; 0 + bias for none."""
        k, v = self.key_value((tokens - self.mean) / self.scale).chunk(2, dim=-1)
        k, v = (rearrange(x, "b t (h d) -> b h t d", h=self.heads) for x in (k, v))
        q = rearrange(self.query, "q (h d) -> h q d", h=self.heads).expand(len(tokens), -1, -1, -1)
        return rearrange(self.out(rearrange(attend(q, k, v, mask), "b h q d -> b q (h d)")), "b q d -> b (q d)")

    def encode(self, batch: TokenBatch) -> Encoding:
        """Tokens of a network that were encoded before stand in `values`; what is attended to becomes the pooled."""
        return Encoding(batch.values, self(batch.values, batch.mask), batch.mask)
