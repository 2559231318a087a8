"""A read-out of place as one of the cells that the animal visited, where a mean over places would lie between them.

Trained by cross-entropy to a Gaussian around the true place, so that neighbouring cells count; the answer is the centre
of the most likely cell, as that of the naive Bayes decoder beside it (`place_decoder.py`). A squared error answers with
the mean of all places that the spikes allow: fewer large errors, and hardly a small one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from brainfm.tokens import TokenBatch


class Places(nn.Module):
    """Pooled encodings → a cell of the place that the animal is at.

    Args:
        model: the network under it. target: `(window, axis)` of the training side, one or two axes.
        width: of the pooled encoding. cells: along the longer side of what was visited. smooth: standard deviation of
            the Gaussian around the true place, in cells.

    Raises:
        ValueError: for more than two axes or fewer than two cells.
    """

    centre: Tensor
    edge: Tensor

    def __init__(self, model: Any, target: np.ndarray, width: int, cells: int, smooth: float = 1.0) -> None:
        super().__init__()
        if target.shape[1] > 2 or cells < 2:
            raise ValueError(
                f"{cells} cells of a covariate with {target.shape[1]} columns: cells are of a place of one or two "
                "axes, and at least two; leave `cells` out for others"
            )
        low, high = target.min(axis=0), target.max(axis=0)
        edge = max(float((high - low).max()) / cells, float(np.finfo(np.float32).tiny))
        visited = np.unique(np.floor((target - low) / edge).astype(int), axis=0)
        self.model, self.norm, self.out = model, nn.LayerNorm(width), nn.Linear(width, len(visited))
        self.smooth = smooth
        self.register_buffer("centre", torch.tensor(low + (visited + 0.5) * edge, dtype=torch.float32))
        self.register_buffer("edge", torch.tensor(edge, dtype=torch.float32))

    def forward(self, batch: TokenBatch) -> Tensor:
        """`(window, axis)` the centre of the most likely cell, in the target's unit."""
        return self.centre[self._cells(batch).argmax(dim=-1)]

    def loss(self, batch: TokenBatch, target: Tensor) -> Tensor:
        """Cross-entropy to cells near the true place; `target (window, axis)` in its own unit."""
        apart = (target[:, None] - self.centre).square().sum(dim=-1) / (self.smooth * self.edge).square()
        return functional.cross_entropy(self._cells(batch), functional.softmax(-apart / 2, dim=-1))

    def _cells(self, batch: TokenBatch) -> Tensor:
        """`(window, cell)` logits."""
        return self.out(self.norm(self.model.encode(batch).pooled))
