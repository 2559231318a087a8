"""Blocks in stages, over a whole sequence or one token at a time with keys and values kept: the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn

from brainfm.layers.attention import Block, attend


@dataclass(frozen=True)
class Stage:
    """Blocks that all attend to the same: a context, or causally the sequence itself.

    Attributes:
        blocks: of `layers.attention.Block`.
        context: `(batch, key, dim)`; None for causal self-attention.
        there: `(batch, key)` keys of the context that are there.
        when: `(key,)` or `(batch, key)` seconds from which on a token may see a key; None where every token may.
    """

    blocks: nn.ModuleList
    context: Tensor | None = None
    there: Tensor | None = None
    when: Tensor | None = None

    def visible(self, time: Tensor) -> Tensor:
        """`(batch, key)`, or `(batch, token, key)`, which keys of the context tokens at `time` `(batch, token)` see."""
        if self.there is None:
            raise ValueError("a stage without a context has no keys to be seen; it attends to the sequence itself")
        if self.when is None:
            return self.there
        return (self.when.unsqueeze(-2) <= time[..., None] + 1e-6) & self.there[:, None]


class Cached:
    """Stages that take one token after the other; earlier tokens and all contexts are kept as keys and values.

    Args:
        stages: in order; with dropout off. most: tokens that will come at most.
    """

    def __init__(self, stages: Sequence[Stage], most: int) -> None:
        self.stages, self.most, self.done = list(stages), most, 0
        self.kept: dict[Block, tuple[Tensor, Tensor]] = {}
        for stage in self.stages:
            if stage.context is not None:
                for block in stage.blocks:
                    self.kept[block] = _keys(block, stage.context)

    def step(self, x: Tensor, time: Tensor) -> Tensor:
        """The next token `(batch, 1, dim)` at `time` `(batch, 1)` after all stages."""
        for stage in self.stages:
            mask = None
            if stage.context is not None:
                seen = stage.visible(time)
                mask = None if bool(seen.all()) else seen
            for block in stage.blocks:
                y = block.norm_attention(x)
                k, v = self.kept[block] if stage.context is not None else self._grown(block, y)
                x = x + _attend(block, y, k, v, mask)
                x = x + block.mlp(block.norm_mlp(x))
        self.done += 1
        return x

    def _grown(self, block: Block, y: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens so far, this one written behind the others."""
        k, v = _keys(block, y)
        if block not in self.kept:
            shape = (*k.shape[:2], self.most, k.shape[3])
            self.kept[block] = k.new_empty(shape), v.new_empty(shape)
        keys, values = self.kept[block]
        keys[:, :, self.done], values[:, :, self.done] = k[:, :, 0], v[:, :, 0]
        return keys[:, :, : self.done + 1], values[:, :, : self.done + 1]


def _keys(block: Block, context: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values `(batch, head, key, feature)`."""
    k, v = rearrange(block.attention.key_value(context), "b t (two h d) -> two b h t d", two=2, h=block.attention.heads)
    return k.contiguous(), v.contiguous()


def _attend(block: Block, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q = rearrange(block.attention.query(x), "b t (h d) -> b h t d", h=block.attention.heads)
    return block.attention.out(rearrange(attend(q, k, v, mask), "b h t d -> b t (h d)"))


def run(stages: Sequence[Stage], x: Tensor, time: Tensor, causal: Tensor) -> Tensor:
    """The same for a whole sequence `(batch, token, dim)` at once.

    Args:
        time: `(batch, token)` seconds. causal: `(batch, token, token)` where self-attention may look.
    """
    for stage in stages:
        mask = causal if stage.context is None else stage.visible(time)
        for block in stage.blocks:
            x = block(x, stage.context, mask)
    return x
