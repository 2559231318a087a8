"""Residual vector quantisation without gradients for the codebook: moving averages, k-means start, restarts.

Papers: residual quantisation and its training as in EnCodec (Defossez et al. 2022, arXiv:2210.13438, section 3.2); the
rotation of gradients from Fifty et al. 2024, arXiv:2410.06424. Restarted vectors also restart their moving sums, so
that the next average does not undo the restart. Randomness comes from torch's global generator, in training only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Rows whose distances to the whole codebook are held at a time: 4096 x 512 float32 are 8 MB.
ROWS = 4096


def nearest(x: Tensor, vectors: Tensor) -> Tensor:
    """Number of the nearest vector of each row by Euclidean distance, `ROWS` rows at a time.

    Args:
        x: `(row, dim)`.
        vectors: `(code, dim)`.

    Returns:
        `(row,)` int64.
    """
    length = vectors.square().sum(dim=1)
    parts = [torch.addmm(length, part, vectors.T, alpha=-2.0).argmin(dim=1) for part in x.split(ROWS)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=x.device)


def gather_sums(x: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Rows per code `(code,)` and their sums `(code, dim)`."""
    count = torch.bincount(codes, minlength=size).to(x.dtype)
    return count, x.new_zeros(size, x.shape[1]).index_add_(0, codes, x)


def k_means(x: Tensor, size: int, iterations: int = 10, samples: int = 4096) -> tuple[Tensor, Tensor]:
    """Centres `(code, dim)` and rows per centre `(code,)` of at most `samples` random rows of `x` (Lloyd's iterations).

    A centre that loses all its rows stays where it is.
    """
    x = x[torch.randperm(len(x), device=x.device)[:samples]]
    spare = torch.randint(len(x), (max(0, size - len(x)),), device=x.device)
    centres = torch.cat((x, x[spare]))[:size].clone()
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
    def start(self, x: Tensor) -> None:
        """Take the centres of a k-means of the first rows ever seen in training."""
        if self.started or len(x) == 0:
            return
        centres, count = k_means(x, self.size)
        self.vectors.copy_(centres)
        self.counts.copy_(count.clamp_min(1.0))
        self.sums.copy_(centres * self.counts[:, None])
        self.started.fill_(True)

    @torch.no_grad()
    def follow(self, x: Tensor, codes: Tensor, epsilon: float = 1e-6) -> None:
        """Move the averages by the rows of a training step and restart the codes that fell out of use."""
        if len(x) == 0:
            return
        count, total = gather_sums(x, codes, self.size)
        self.counts.lerp_(count, 1 - self.decay)
        self.sums.lerp_(total, 1 - self.decay)
        weight = self.counts.sum()
        smoothed = (self.counts + epsilon) / (weight + self.size * epsilon) * weight
        self.vectors.copy_(self.sums / smoothed[:, None])
        least = min(self.threshold, 0.1 * len(x) / self.size)
        dead = self.counts < least
        if dead.any():
            fresh = x[torch.randint(len(x), (int(dead.sum()),), device=x.device)]
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

    def forward(self, x: Tensor) -> Quantised:
        """Quantise `(row, dim)`; in training also start, move and restart the codebooks. Pass real rows only."""
        rest, rotated, exact, codes, losses = x, torch.zeros_like(x), torch.zeros_like(x), [], []
        for stage in self.books():
            if self.training:
                stage.start(rest.detach())
            chosen = stage(rest.detach())
            vector = stage.vectors[chosen]
            losses.append(functional.mse_loss(rest, vector) if len(x) else x.sum())
            rotated, exact = rotated + rotate(rest, vector), exact + vector
            if self.training:
                stage.follow(rest.detach(), chosen)
            rest = rest - vector
            codes.append(chosen)
        values = exact + (
            rotated - rotated.detach()
        )  # the value of the codes to the last bit, the gradient of the rotation
        return Quantised(values, torch.stack(codes, dim=1), torch.stack(losses).mean())

    def vectors_of(self, codes: Tensor) -> Tensor:
        """Sum of the chosen vectors: `(..., depth)` int64 → `(..., dim)`, added in the order of `forward`."""
        total = torch.zeros((*codes.shape[:-1], self.books()[0].vectors.shape[1]), device=codes.device)
        for depth, stage in enumerate(self.books()):
            total = total + stage.vectors[codes[..., depth]]
        return total


def perplexity(codes: Tensor, size: int) -> Tensor:
    """Exponential of the entropy of the codes' frequencies: `(row, depth)` → `(depth,)`; between 1 and `size`."""
    return perplexity_of_counts(torch.stack([torch.bincount(column, minlength=size) for column in codes.T]).float())


def perplexity_of_counts(count: Tensor) -> Tensor:
    """The same from how often each code was used: `(depth, code)` → `(depth,)`."""
    share = count / count.sum(dim=1, keepdim=True).clamp_min(1.0)
    return torch.special.entr(share).sum(dim=1).exp()
