"""Attention as every model here uses it: masked, rotary if times are given, dropout only in training."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional


def rotary(x: Tensor, time: Tensor, longest: float = 10_000.0) -> Tensor:
    """Rotate pairs of features by angles that grow with time (Su et al. 2021, RoFormer, eq. 34).

    Nothing is cached, so nothing can be lost in a checkpoint.

    Args:
        x: `(batch, head, token, feature)`, an even number of features.
        time: `(batch, token)` or `(token,)`; positions or seconds, any real numbers.
        longest: the slowest pair turns once in 2 pi `longest` units of time.
    """
    half = x.shape[-1] // 2
    rate = longest ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = time.float().unsqueeze(-1) * rate
    if time.dim() == 2:  # one row of times per sample: broadcast over heads
        angle = angle.unsqueeze(1)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Attention `(batch, head, token, feature)` of projected queries; 0 for a query that may look nowhere.

    Args:
        q, k, v: `(batch, head, token or key, feature)`.
        mask: True where attention may look; `(batch, key)` or `(batch, token or 1, key)`; everywhere if None.
        dropout: share of the weights dropped.
    """
    if mask is None:
        return functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    allowed = mask[:, None, None] if mask.dim() == 2 else mask[:, None]
    blind = ~allowed.any(dim=-1, keepdim=True)
    y = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed | blind, dropout_p=dropout)
    return y.masked_fill(blind, 0.0)


class Attention(nn.Module):
    """Multi-head attention of `(batch, token, dim)` to itself or to a context.

    Args:
        dim: width of the queries and of the output.
        heads: number of heads.
        dropout: share of attention weights dropped in training.
        bias: whether the projections have one.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"attention width {dim} does not divide into {heads} heads; choose a multiple")
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key_value = nn.Linear(dim, 2 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        time: Tensor | None = None,
        context_time: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: `(batch, token, dim)`.
            context: `(batch, key, dim)` to attend to; x itself if None.
            mask: True where attention may look; `(batch, key)` or `(batch, token, key)`. A row that may look nowhere
                gives 0.
            time, context_time: `(batch, token)` and `(batch, key)` for rotary positions.

        Returns:
            `(batch, token, dim)`.
        """
        q, k, v = self.project(x, context, time, context_time)
        y = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.out(rearrange(y, "b h t d -> b t (h d)"))

    def weights(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        time: Tensor | None = None,
        context_time: Tensor | None = None,
    ) -> Tensor:
        """The attention weights `(batch, head, token, key)` that `forward` would use, without dropout."""
        q, k, _ = self.project(x, context, time, context_time)
        score = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if mask is None:
            return score.softmax(dim=-1)
        allowed = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
        return score.masked_fill(~allowed, -torch.inf).softmax(dim=-1).nan_to_num(0.0)

    def project(
        self, x: Tensor, context: Tensor | None, time: Tensor | None, context_time: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `(batch, head, token, feature)`, rotated where times are given."""
        context = x if context is None else context
        q = rearrange(self.query(x), "b t (h d) -> b h t d", h=self.heads)
        k, v = rearrange(self.key_value(context), "b t (two h d) -> two b h t d", two=2, h=self.heads)
        if time is not None:
            q, k = rotary(q, time), rotary(k, time if context_time is None else context_time)
        return q, k, v


class MLP(nn.Sequential):
    """Two linear layers with GELU between: `(..., dim)` → `(..., out)`."""

    def __init__(self, dim: int, hidden: int, out: int | None = None, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, out or dim), nn.Dropout(dropout)
        )


class Block(nn.Module):
    """A pre-norm transformer block: attention, then an MLP of four times the width, each added to its input.

    With a context it attends to that instead of itself. Arguments as in `Attention`.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout)
        self.mlp = MLP(dim, 4 * dim, dropout=dropout)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        time: Tensor | None = None,
        context_time: Tensor | None = None,
    ) -> Tensor:
        """`(batch, token, dim)` → the same shape; arguments as in `Attention.forward`."""
        x = x + self.attention(self.norm_attention(x), context, mask, time, context_time)
        return x + self.mlp(self.norm_mlp(x))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over tokens that are real: `(batch, token, dim)` and `(batch, token)` → `(batch, dim)`; 0 where none is."""
    weight = mask.unsqueeze(-1).to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp_min(1.0)
