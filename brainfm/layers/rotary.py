"""Attention in which queries, keys and, if wanted, values turn with time.

It goes by blocks of a few samples, whose weights and turned vectors stay in the processor's cache.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

#: Cosine and sine, `(token, pair)` each.
Clock = tuple[Tensor, Tensor]


def turns(time: Tensor, pairs: int, shortest: float, longest: float) -> Clock:
    """Cosine and sine `(..., pair)` of the angles of times `(...,)`.

    Args:
        time: seconds.
        pairs: pairs of features that turn; the first once in `shortest` seconds, the last once in `longest`, the others
            spaced evenly between in logarithm.
    """
    step = torch.linspace(0.0, 1.0, pairs, device=time.device)
    first, last = (torch.tensor(x, device=time.device).log() for x in (shortest, longest))
    period = torch.lerp(first, last, step).exp()  # in float32, whose rounding is seen at the shortest periods
    angle = time.float().unsqueeze(-1) * (2 * math.pi / period)
    return angle.cos(), angle.sin()


def turned(x: Tensor, clock: Clock, back: bool = False) -> Tensor:
    """Swap the axes of tokens and heads, and rotate the first features of each head, feature i with feature pair + i.

    Args:
        x: `(..., token, head, feature)`; the other way round if `back`, which undoes it.
        clock: `(..., token, pair)`, at most half as many pairs as features.

    Returns:
        `(..., head, token, feature)`, or the other way round; contiguous.
    """
    cos, sin = (part.to(x.dtype) for part in clock)
    pairs, swapped = cos.shape[-1], x.transpose(-3, -2)
    wide = torch.ones(*cos.shape[:-1], x.shape[-1], dtype=x.dtype, device=x.device)
    wide[..., :pairs] = wide[..., pairs : 2 * pairs] = cos
    wide, sin = (wide.unsqueeze(-2), -sin.unsqueeze(-2)) if back else (wide.unsqueeze(-3), sin.unsqueeze(-3))
    out = torch.mul(swapped, wide, out=torch.empty(swapped.shape, dtype=x.dtype, device=x.device))
    out[..., :pairs].addcmul_(swapped[..., pairs : 2 * pairs], sin, value=-1)
    out[..., pairs : 2 * pairs].addcmul_(swapped[..., :pairs], sin)
    return out


def turning_attention(
    query: Tensor, key_value: Tensor, when: Clock, key_when: Clock, lengths: Sequence[int], *, values: bool = True,
    dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """Attention of each sample's queries to the sample's own keys.

    Args:
        query: `(batch, token, head, feature)`, or `(1, ...)` where all samples ask the same.
        key_value: `(key, 2 * head, feature)`, keys and values of all samples one after the other.
        when: of the queries, `(token, pair)` or `(batch, token, pair)`. key_when: `(key, pair)`.
        lengths: keys of each sample. One without any gets 0.
        values: whether values turn too; the answer is then turned back by the time of its query.
        dropout: share of attention weights that are set to 0, to within 1 / 65,536.

    Returns:
        `(batch, token, head, feature)`.
    """
    if len(query) == 1 and when[0].dim() == 3:
        query = query.expand(len(lengths), -1, -1, -1)
    clocks = [part.expand(len(lengths), -1, -1) if part.dim() == 2 else part for part in when]
    keep = torch.is_grad_enabled() and (query.requires_grad or key_value.requires_grad)
    return _Attention.apply(query, key_value, *clocks, *key_when, list(lengths), values, dropout, keep)


class _Attention(torch.autograd.Function):
    """The attention weights are kept for the gradient, those that dropout took with a minus sign."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key_value: Tensor, cos: Tensor, sin: Tensor, key_cos: Tensor, key_sin: Tensor,
        lengths: list[int], values: bool, dropout: float, keep: bool,
    ) -> Tensor:  # fmt: skip
        shape = (len(lengths), *query.shape[1:])
        out = torch.zeros(shape, dtype=query.dtype, device=query.device)
        ctx.blocks = blocks(lengths, query.shape[1] * query.shape[2], query.device)
        saved = []
        for block in ctx.blocks:
            q, k, v = block.turned(query, key_value, (cos, sin), (key_cos, key_sin), values)
            weight = q @ k.transpose(-1, -2)
            if block.mask is not None:
                weight = weight.masked_fill_(~block.mask[:, None, None], -torch.inf)
            weight = weight.softmax(dim=-1)
            if dropout:
                weight *= kept(weight, dropout).mul_(2).sub_(1)
            y = (weight.relu() if dropout else weight) @ v
            y = y.mul_(1 / (1 - dropout)) if dropout else y
            when = cos[block.samples], sin[block.samples]
            out[block.samples] = turned(y, when, back=True) if values else y.transpose(-3, -2)
            if keep:
                saved.append(weight)
        ctx.save_for_backward(query, key_value, cos, sin, key_cos, key_sin, *saved)
        ctx.rest = values, dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key_value, cos, sin, key_cos, key_sin, *saved = ctx.saved_tensors
        values, dropout = ctx.rest
        grad_query, grad_key_value = torch.zeros_like(query), torch.empty_like(key_value)
        heads = query.shape[2]
        for block, weight in zip(ctx.blocks, saved, strict=True):
            q, k, v = block.turned(query, key_value, (cos, sin), (key_cos, key_sin), values)
            when = cos[block.samples], sin[block.samples]
            g = turned(grad[block.samples], when) if values else grad[block.samples].transpose(-3, -2)
            g = g * (1 / (1 - dropout)) if dropout else g
            left = weight.relu() if dropout else weight
            by_weight = (g @ v.transpose(-1, -2)).mul_(left)
            total = by_weight.sum(dim=-1, keepdim=True)
            score = by_weight.addcmul_(weight.abs() if dropout else weight, total, value=-1)
            of_query = turned(score @ k, when, back=True)
            if len(query) > 1:
                grad_query[block.samples] = of_query
            else:
                grad_query[0] += of_query.sum(0)
            key_when = block.keys(key_cos), block.keys(key_sin)
            of_value = left.transpose(-1, -2) @ g
            block.put(grad_key_value[:, :heads], turned(score.transpose(-1, -2) @ q, key_when, back=True))
            of_value = turned(of_value, key_when, back=True) if values else of_value.transpose(-3, -2)
            block.put(grad_key_value[:, heads:], of_value)
        grad_query *= query.shape[-1] ** -0.5
        return grad_query, grad_key_value, *(None,) * 8


@dataclass(frozen=True)
class Block:
    """Samples that are computed together, padded to the longest of them.

    Attributes:
        samples: their numbers. rows: of their keys, `(sample, key)`; a slice where these lie one after the other.
        length: keys of the longest. mask: `(sample, key)` real ones; None where nothing is padded.
    """

    samples: slice | Tensor
    rows: slice | Tensor
    length: int
    mask: Tensor | None

    def keys(self, x: Tensor) -> Tensor:
        """Rows of `(key, ...)` as `(sample, key, ...)`."""
        return x[self.rows].unflatten(0, (-1, self.length)) if isinstance(self.rows, slice) else x[self.rows]

    def put(self, into: Tensor, x: Tensor) -> None:
        """Write `(sample, key, ...)` back to the rows of `into`."""
        if isinstance(self.rows, slice):
            into[self.rows] = x.flatten(0, 1)
        else:
            into[self.rows[self.mask]] = x[self.mask]

    def turned(
        self, query: Tensor, key_value: Tensor, when: Clock, key_when: Clock, values: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Turned and scaled queries, keys and values `(sample, head, token, feature)`."""
        heads, scale = query.shape[2], query.shape[-1] ** -0.5
        one = query[self.samples] if len(query) > 1 else query
        own = (when[0][:1], when[1][:1]) if len(query) == 1 else (when[0][self.samples], when[1][self.samples])
        q = turned(one, own).mul_(scale)
        kv, clock = self.keys(key_value), (self.keys(key_when[0]), self.keys(key_when[1]))
        k, v = kv[:, :, :heads], kv[:, :, heads:]
        return q, turned(k, clock), turned(v, clock) if values else v.transpose(-3, -2)


def blocks(lengths: Sequence[int], queries: int, device: torch.device, most: int = 1 << 17) -> list[Block]:
    """Samples by number of keys, as many together as have `most` attention weights, padding included.

    Args:
        lengths: keys of each sample; one without any is in no block. queries: of a sample, times heads.
    """
    start = [0, *itertools.accumulate(lengths)]
    found: list[list[int]] = []
    for i in sorted((i for i, n in enumerate(lengths) if n), key=lengths.__getitem__):
        if found and (len(found[-1]) + 1) * lengths[i] * queries <= most:
            found[-1].append(i)
        else:
            found.append([i])
    out = []
    for group in found:
        longest, after = lengths[group[-1]], group[-1] + 1
        if lengths[group[0]] == longest and group == list(range(group[0], after)):
            out.append(Block(slice(group[0], after), slice(start[group[0]], start[after]), longest, None))
            continue
        step = torch.arange(longest, device=device)
        length = torch.tensor([lengths[i] for i in group], device=device)[:, None]
        first = torch.tensor([start[i] for i in group], device=device)[:, None]
        rows = first + torch.minimum(step, length - 1)
        out.append(Block(torch.tensor(group, device=device), rows, longest, step < length))
    return out


def kept(x: Tensor, share: float) -> Tensor:
    """0 for the entries of x that dropout takes, a share of them to within 1 / 65,536, and 1 for the others.

    Each random number of the generator serves four entries; drawing them one by one takes as long as the attention.
    """
    wide = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(1 << 63), None)
    small = wide.view(torch.int16)[: x.numel()].view(x.shape)
    return torch.ge(small, round(share * 65536) - 32768, out=torch.empty_like(small, dtype=x.dtype))


class Thin(nn.Module):
    """Dropout, drawn as in `kept`.

    Args:
        share: of the entries that are set to 0 in training; the others grow to keep the mean.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        if not self.training or not self.share:
            return x
        return x * kept(x, self.share).mul_(1 / (1 - self.share))


class GatedMLP(nn.Sequential):
    """Layer norm and an MLP of four times the width, gated by GELU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__(nn.LayerNorm(dim), nn.Linear(dim, 8 * dim), _Gated(), Thin(dropout), nn.Linear(4 * dim, dim))


class _Gated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """`(..., 2 * feature)` → `(..., feature)`: the first half times the GELU of the second."""
        value, gate = x.chunk(2, dim=-1)
        return value * functional.gelu(gate)
