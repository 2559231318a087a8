"""Video as tokens: a 3-D convolution over frames, each token with its time and place, and attention that looks back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from brainfm.layers.attention import Attention, Block, attend
from brainfm.layers.positions import sinusoid


class Frames(nn.Module):
    """Frames `(batch, frame, pixel)` → tokens `(batch, step, patch, dim)`, with where each patch lies in the image.

    A token covers `kernel[0]` frames. Where frames do not fill the last step, the EARLIEST are left out, since the
    latest matter most.

    Args:
        pixels: of a frame, row by row. height: rows of pixels. dim: width of the tokens.
        kernel, stride: `(frame, row, column)` of the convolution.

    Attributes:
        in_features: `pixels`, by the name that a linear layer has for it.
    """

    def __init__(self, pixels: int, height: int, dim: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        if height < 1 or pixels % height:
            raise ValueError(f"a frame of {pixels} pixels has no {height} equal rows; give the frame's height")
        self.in_features, self.shape = pixels, (height, pixels // height)
        self.kernel, self.stride = tuple(map(int, kernel)), tuple(map(int, stride))
        if len(self.kernel) != 3 or len(self.stride) != 3 or min(*self.kernel, *self.stride) < 1:
            raise ValueError(
                f"kernel {kernel} and stride {stride}; expected three positive numbers: frame, row, column"
            )
        if self.shape[0] < self.kernel[1] or self.shape[1] < self.kernel[2]:
            raise ValueError(f"frames of {self.shape} pixels are smaller than the kernel {self.kernel[1:]}; take less")
        self.convolution = nn.Conv3d(1, dim, self.kernel, self.stride)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(dim)
        self.place = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, frame, pixel)` → `(batch, step, patch, dim)`; frames as `times` orders them."""
        y = self.convolution(rearrange(self._whole(x), "b f (r c) -> b 1 f r c", r=self.shape[0]))
        rows, columns = y.shape[-2:]
        half = y.shape[1] // 2
        row, column = (sinusoid(torch.arange(n, device=y.device), half, longest=1000.0) for n in (rows, columns))
        where = torch.cat((row[:, None].expand(-1, columns, -1), column[None].expand(rows, -1, -1)), dim=-1)
        tokens = functional.relu(self.norm(rearrange(y, "b d f r c -> b f (r c) d")))
        return tokens + self.place(where.flatten(0, 1).to(tokens.dtype))

    def times(self, time: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Seconds of each token's last frame, and `(batch, step)` whether all of its frames are there.

        Args:
            time: of the frames, `(frame,)` or `(batch, frame)`; the answer has as many axes. there: `(batch, frame)`.
        """
        deep, every = self.kernel[0], self.stride[0]
        if time.shape[-1] < deep:
            return time[..., -1:], torch.zeros_like(there[:, :1])
        first = (time.shape[-1] - deep) % every
        return time[..., first + deep - 1 :: every], there[:, first:].unfold(1, deep, every).all(dim=2)

    def _whole(self, x: Tensor) -> Tensor:
        short = self.kernel[0] - x.shape[1]
        if short > 0:  # too few for one token: they count as absent
            return functional.pad(x, (0, 0, short, 0))
        return x[:, (x.shape[1] - self.kernel[0]) % self.stride[0] :]


class LookingBack(nn.ModuleList):
    """Self-attention of a covariate's tokens to those of the same and earlier steps, so that none knows what comes.

    Args:
        layers: number of blocks. dim, heads, dropout: as in `Block`; attention weights are not dropped, which would
            hold them all in memory.
    """

    def __init__(self, layers: int, dim: int, heads: int, dropout: float) -> None:
        super().__init__(Block(dim, heads, dropout) for _ in range(layers))

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """`(batch, step, patch, dim)` → the same shape; `there` `(batch, step)`, False for what is not attended to."""
        for block in self:
            x = x + self._attend(block.attention, block.norm_attention(x), there)
            x = x + block.mlp(block.norm_mlp(x))
        return x

    def _attend(self, attention: Attention, x: Tensor, there: Tensor) -> Tensor:
        """Step by step over the keys so far: half the work of a mask over all pairs, and none of its memory."""
        steps, patches = x.shape[1:3]
        q, k, v = attention.project(x.flatten(1, 2), None, None, None)
        whole = bool(there.all())
        if patches == 1:
            back = torch.ones(steps, steps, dtype=torch.bool, device=x.device).tril() & there[:, None]
            y = attend(q, k, v, back)
        else:
            parts = []
            for step in range(steps):
                own, seen = slice(step * patches, (step + 1) * patches), slice((step + 1) * patches)
                keys = None if whole else there[:, : step + 1].repeat_interleave(patches, dim=1)
                parts.append(attend(q[:, :, own], k[:, :, seen], v[:, :, seen], keys))
            y = torch.cat(parts, dim=2)
        y = attention.out(rearrange(y, "b h t d -> b t (h d)"))
        return y.view_as(x)
