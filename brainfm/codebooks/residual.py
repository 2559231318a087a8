"""Residual vector quantisation without gradients for the codebook: moving averages, k-means start, restarts.

Papers: residual quantisation and its training as in EnCodec (Defossez et al. 2022, arXiv:2210.13438, section 3.2); the
rotation of gradients from Fifty et al. 2024, arXiv:2410.06424. Restarted vectors also restart their moving sums, so
that the next average does not undo the restart. Rows are drawn by the keys that come with them, in training only. Where
several ranks train, averages, starts and restarts are those of all rows together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainfm.layers import draws, ranks

#: Rows whose distances to the whole codebook are held at a time: 4096 x 512 float32 are 8 MB.
ROWS = 4096
#: Rows that the k-means of a codebook starts from.
STARTING = 4096


def nearest(x: Tensor, vectors: Tensor) -> Tensor:
    """Number of the nearest vector of each row by Euclidean distance, `ROWS` rows at a time.

    Args:
        x: `(row, dim)`.
        vectors: `(code, dim)`.

    Returns:
        `(row,)` int64.
    """
    length = vectors.square().sum(dim=1)
    parts = [torch.addmm(length, part, vectors.T, alpha=-2.0).min(dim=1).indices for part in x.split(ROWS)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=x.device)


def gather_sums(x: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Rows per code `(code,)` and their sums `(code, dim)`."""
    count = torch.bincount(codes, minlength=size).to(x.dtype)
    return count, x.new_zeros(size, x.shape[1]).index_add_(0, codes, x)


def k_means(x: Tensor, size: int, iterations: int = 10) -> tuple[Tensor, Tensor]:
    """Centres `(code, dim)` and rows per centre `(code,)` of `x` (Lloyd's iterations, from the first rows on).

    A centre that loses all its rows stays where it is. Memory is that of `nearest`: never (row, code, dim).

    Args:
        x: `(row, dim)` in random order, at least one row.
        size: number of centres; with fewer rows some are the same.
    """
    centres = x[torch.arange(size, device=x.device) % len(x)].clone()
    count = x.new_ones(size)
    for _ in range(iterations):
        count, total = gather_sums(x, nearest(x, centres), size)
        centres = torch.where(count[:, None] > 0, total / count[:, None].clamp_min(1.0), centres)
    return centres, count


def rotate(source: Tensor, target: Tensor) -> Tensor:
    """`target`, written as a rotation and scaling of `source` that gradients take for a constant (Fifty et al., eq. 4).

    Args:
        source, target: `(row, dim)`; the gradient reaches `source` turned from the target's direction to its own.
    """
    with torch.no_grad():
        e, q = functional.normalize(source, dim=-1), functional.normalize(target, dim=-1)
        middle = functional.normalize(e + q, dim=-1)
        scale = target.norm(dim=-1, keepdim=True) / source.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    reflected = 2 * (source * middle).sum(-1, keepdim=True) * middle
    return scale * (source - reflected + 2 * (source * e).sum(-1, keepdim=True) * q)


class Quantised(NamedTuple):
    """Rows after quantisation.

    Attributes:
        values: `(row, dim)` sum of the chosen vectors.
        codes: `(row, depth)` int64.
        commitment: mean squared distance of what each stage got from what it chose, mean over the stages.
    """

    values: Tensor
    codes: Tensor
    commitment: Tensor


class Codebook(nn.Module):
    """One stage: `size` vectors that follow the mean of the rows that chose them.

    Args:
        size, dim: of the codebook.
        decay: of the moving averages.
        threshold: a code whose moving count falls below is restarted from a random row; at most a tenth of the
            rows per code of the step, so that small batches do not restart everything.
    """

    vectors: Tensor
    sums: Tensor
    counts: Tensor
    started: Tensor

    def __init__(self, size: int, dim: int, decay: float = 0.99, threshold: float = 2.0) -> None:
        super().__init__()
        self.size, self.decay, self.threshold = size, decay, threshold
        vectors = nn.init.kaiming_uniform_(torch.empty(size, dim))
        self.register_buffer("vectors", vectors)
        self.register_buffer("sums", vectors.clone())
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        """`(row, dim)` → `(row,)` codes."""
        return nearest(x, self.vectors)

    @torch.no_grad()
    def start(self, x: Tensor, keys: Tensor) -> None:
        """Take the centres of a k-means of the first rows ever seen in training, at most `STARTING` of them.

        Args:
            x: `(row, dim)`. keys: `(row,)` int64 that say which rows are drawn.
        """
        if self.started:
            return
        sample = ranks.drawn(x, keys, STARTING)
        if len(sample) == 0:
            return
        centres, count = k_means(sample, self.size)
        self.vectors.copy_(centres)
        self.counts.copy_(count.clamp_min(1.0))
        self.sums.copy_(centres * self.counts[:, None])
        self.started.fill_(True)

    @torch.no_grad()
    def follow(self, x: Tensor, codes: Tensor, keys: Tensor, epsilon: float = 1e-6) -> None:
        """Move the averages by the rows of a training step and restart the codes that fell out of use.

        Args:
            x: `(row, dim)`. codes: `(row,)` what they chose. keys: as in `start`.
        """
        count, total = (ranks.total(part) for part in gather_sums(x, codes, self.size))
        rows = float(count.sum())
        if rows == 0:
            return
        self.counts.lerp_(count, 1 - self.decay)
        self.sums.lerp_(total, 1 - self.decay)
        weight = self.counts.sum()
        smoothed = (self.counts + epsilon) / (weight + self.size * epsilon) * weight
        self.vectors.copy_(self.sums / smoothed[:, None])
        least = min(self.threshold, 0.1 * rows / self.size)
        dead = self.counts < least
        if dead.any():
            wanted = int(dead.sum())
            fresh = ranks.drawn(x, keys, wanted)
            fresh = fresh[torch.arange(wanted, device=x.device) % len(fresh)]
            self.vectors[dead], self.sums[dead], self.counts[dead] = fresh, fresh * least, least


class ResidualQuantiser(nn.Module):
    """`depth` codebooks, each quantising what the ones before it left over.

    Args:
        depth, size, dim: number of codebooks, vectors in each, width.
        decay, threshold: as in `Codebook`.
    """

    def __init__(self, depth: int, size: int, dim: int, decay: float = 0.99, threshold: float = 2.0) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Codebook(size, dim, decay, threshold) for _ in range(depth))

    def books(self) -> list[Codebook]:
        """The codebooks, coarse to fine."""
        return list(self.stages)  # type: ignore[arg-type]

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Quantised:
        """Quantise `(row, dim)`; in training also start, move and restart the codebooks.

        Always in float32: in bfloat16 other codes would be nearest.

        Args:
            x: real rows only.
            keys: `(row,)` int64 that say which rows are drawn in training; random if None.
        """
        with torch.autocast(x.device.type, enabled=False):
            return self._quantise(x.float(), keys)

    def _quantise(self, x: Tensor, keys: Tensor | None) -> Quantised:
        rest, rotated, exact, codes, losses = x, torch.zeros_like(x), torch.zeros_like(x), [], []
        if self.training and keys is None:
            keys = torch.randint(1 << 62, (len(x),), device=x.device)
        for depth, stage in enumerate(self.books()):
            own = None if keys is None else draws.mix(keys + depth)
            if self.training and own is not None:
                stage.start(rest.detach(), own)
            chosen = stage(rest.detach())
            vector = stage.vectors[chosen]
            losses.append(ranks.mean((rest - vector).square().sum(), rest.numel()))
            exact = exact + vector
            if x.requires_grad:
                rotated = rotated + rotate(rest, vector)
            if self.training and own is not None:
                stage.follow(rest.detach(), chosen, own)
            rest = rest - vector
            codes.append(chosen)
        # the value of the codes to the last bit, the gradient of the rotation
        values = exact + (rotated - rotated.detach()) if x.requires_grad else exact
        return Quantised(values, torch.stack(codes, dim=1), torch.stack(losses).mean())

    def vectors_of(self, codes: Tensor) -> Tensor:
        """Sum of the chosen vectors: `(..., depth)` int64 → `(..., dim)`, added in the order of `forward`."""
        total = torch.zeros((*codes.shape[:-1], self.books()[0].vectors.shape[1]), device=codes.device)
        for depth, stage in enumerate(self.books()):
            total = total + stage.vectors[codes[..., depth]]
        return total


def usage(codes: Tensor, size: int) -> Tensor:
    """How often each code was used: `(row, depth)` → `(depth, code)`."""
    return torch.stack([torch.bincount(column, minlength=size) for column in codes.T]).float()


def perplexity_of_counts(count: Tensor) -> Tensor:
    """Exponential of the entropy of the codes' frequencies, from 1 to their number: `(depth, code)` → `(depth,)`."""
    share = count / count.sum(dim=1, keepdim=True).clamp_min(1.0)
    return torch.special.entr(share).sum(dim=1).exp()
