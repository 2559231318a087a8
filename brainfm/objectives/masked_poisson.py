"""Predict hidden spike counts from the others: time bins, whole neurons, or the end of the window.

Papers: Ye & Pandarinath 2021, "Neural Data Transformers", https://arxiv.org/abs/2108.01210 (Poisson likelihood of
hidden bins alone); Pei et al. 2021, "Neural Latents Benchmark '21", https://arxiv.org/abs/2109.04463 (held-out
neurons and forward prediction).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainfm.layers import draws, ranks
from brainfm.tokens import TokenBatch


class MaskedPoisson(nn.Module):
    """Poisson negative log-likelihood of hidden counts, the mean over all that are hidden.

    Each sample hides one of three things: spans of bins over all neurons, some neurons over all bins, or the last bins
    of all neurons.

    Args:
        share: of bins, or of neurons, to hide.
        span: bins that are hidden together.
        neurons, forward: shares of the samples that hide neurons and the end; the others hide spans.

    Raises:
        ValueError: for shares outside 0 to 1, or a span below 1.
    """

    def __init__(self, share: float = 0.25, span: int = 1, neurons: float = 0.0, forward: float = 0.0) -> None:
        super().__init__()
        if not (0 < share < 1 and min(neurons, forward) >= 0 and neurons + forward <= 1 and span >= 1):
            raise ValueError(
                f"share {share}, span {span}, neurons {neurons}, forward {forward}; expected a share inside 0 to 1, a "
                "span of 1 or more, and neurons and forward that sum to at most 1"
            )
        self.share, self.span, self.neurons, self.forward_share = share, span, neurons, forward

    def hidden(self, batch: TokenBatch) -> Tensor:
        """`(batch, channel, bin)` True for real counts that are hidden; drawn from each sample's own seed."""
        if batch.grid is None:
            raise ValueError("a batch of events has no counts to hide; take a model with `counts_s`, such as ndt")
        channels, bins = batch.grid
        real, seed = batch.mask.unflatten(1, batch.grid), draws.seeds(batch)
        started = draws.uniform(seed, (bins,), 1) < 1 - (1 - self.share) ** (1 / self.span)
        spans = started.clone()
        for later in range(1, self.span):
            spans[:, later:] |= started[:, :-later]
        some = draws.uniform(seed, (channels,), 2) < self.share
        length = real.any(dim=1).sum(dim=1, keepdim=True)
        end = torch.arange(bins, device=real.device) >= length - (self.share * length).round().clamp_min(1)
        kind = draws.uniform(seed, (1, 1), 3)
        chosen = torch.where(
            kind < self.neurons,
            some.unsqueeze(2),
            torch.where(kind < self.neurons + self.forward_share, end.unsqueeze(1), spans.unsqueeze(1)),
        )
        return chosen & real

    def forward(self, model: nn.Module, batch: TokenBatch) -> dict[str, Tensor]:
        """Part "poisson"; "metric_bits_per_spike" is the gain over each neuron's mean in the batch."""
        hidden = self.hidden(batch)
        counts, logs = batch.signal()[hidden], model.log_rates(batch, hidden)[hidden]
        loss = functional.poisson_nll_loss(logs, counts, log_input=True, reduction="sum")
        with torch.no_grad():
            null = self._means(batch)[hidden]
            gained = (null - counts * null.clamp_min(1e-9).log()).sum() - loss
            bits = gained / counts.sum().clamp_min(1) / math.log(2)
        return {"poisson": ranks.mean(loss, int(hidden.sum())), "metric_bits_per_spike": bits}

    @staticmethod
    def _means(batch: TokenBatch) -> Tensor:
        """`(batch, channel, bin)` mean count of each neuron over the batch."""
        number = batch.aligned["neuron"].clamp_min(0)
        real = batch.mask.unflatten(1, batch.grid).to(batch.values.dtype)  # type: ignore[arg-type]
        size = int(number.max()) + 1
        total, bins = (
            real.new_zeros(size).index_add_(0, number.flatten(), x.sum(2).flatten()) for x in (batch.signal(), real)
        )
        return (total / bins.clamp_min(1))[number][..., None].expand_as(real)
