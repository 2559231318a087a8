"""Neural Data Transformer: binned counts of a population, each time bin a token, from which firing rates are predicted.

Paper: Joel Ye, Chethan Pandarinath. "Representation learning for neural population activity with Neural Data
Transformers". Neurons, Behavior, Data analysis, and Theory 5(3), 2021. https://arxiv.org/abs/2108.01210

A window is a grid of spike counts. A token is what all neurons did in one bin. Counts are hidden, tokens attend to each
other over the whole window, and log rates of every neuron in every bin are read out; a Poisson likelihood of what was
hidden trains it (`objectives/masked_poisson.py`). Hiding time teaches dynamics, hiding neurons co-smoothing, hiding the
end forward prediction.

Differences from the paper and its published code:
- a neuron enters and leaves through a row of a table named by its id, so that animals share a network
  and a new one has a path (`add_neurons`, `freeze_but_neurons`). `fixed=True` is the published form instead: as many
  features as neurons, one linear read-out, learned positions; it stays with one recording;
- the root of a count enters, less its neuron's usual one and over its spread, both gathered in training; and a bin
  whose neurons are partly hidden is scaled up to all of them. The published form takes counts times the root of dim;
- plain initialisation instead of T-Fixup; log rates start at 5 spikes per second;
- a window of another length than in training is allowed where positions are not learned.

Tensor walk of `encode`:
    counts `(batch, channel, bin)` → standardised roots times rows of the table, summed over channels, + position
    → `(batch, bin, dim)`
    → depth x (attention over bins, MLP) → norm → tokens `(batch, bin, dim)`
    → pooled `(batch, 2 dim)`: the last token, which has seen all the window, and the mean of all
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from brainfm.layers.attention import MLP, Attention, masked_mean
from brainfm.layers.neurons import NeuronTable, UsualCounts, bins_of, counts_of, train_only
from brainfm.layers.positions import sinusoid
from brainfm.tokens import Encoding, Facts, TokenBatch

PAPER = "Ye & Pandarinath 2021, Neural Data Transformers, arXiv:2108.01210"

#: MC_Maze of the Neural Latents Benchmark: 182 neurons, 140 bins of 5 ms.
FACTS = Facts(
    modality=("spikes",), kinds=("neuron",), window_s=0.7, channels=182, subjects=("mc_maze/jenkins",),
    neurons=tuple(f"mc_maze/jenkins/{i:03d}" for i in range(182)),
)  # fmt: skip

SIZES: dict[str, dict] = {
    "test": {"bin_s": 0.02, "dim": 16, "depth": 1, "heads": 2, "hidden": 32, "dropout": 0.0},
    "local": {"bin_s": 0.05, "dim": 64, "depth": 2, "heads": 4, "hidden": 128, "dropout": 0.1},
    "published": {"bin_s": 0.005, "dim": 182, "depth": 4, "heads": 2, "hidden": 128, "dropout": 0.1, "fixed": True},
}

#: Spikes per second that a fresh read-out predicts.
FIRST_HZ = 5.0


class Layer(nn.Module):
    """A pre-norm layer: attention, then an MLP of width `hidden`, each added to its input."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout)
        self.mlp = MLP(dim, hidden, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`(batch, bin, dim)` → the same shape; `mask (batch, bin)` is True for real bins."""
        x = x + self.dropout(self.attention(self.norm_attention(x), mask=mask))
        return x + self.mlp(self.norm_mlp(x))


class NDT(nn.Module):
    """The network; keywords as in `build`.

    Attributes:
        counts_s: seconds of a bin; makes the batcher count spikes.
        patch: 1, a count per token of the batch.
        aligned: none; behaviour is never read.
    """

    patch = 1
    aligned: tuple[str, ...] = ()

    def __init__(
        self, neurons: Sequence[str], bins: int, *, bin_s: float, dim: int, depth: int, heads: int, hidden: int,
        dropout: float, neuron_dropout: float, fixed: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.neuron_dropout = neuron_dropout
        self.dim, self.counts_s, self.bins, self.fixed = dim, bin_s, bins, fixed
        if fixed:
            self.fixed_ids = list(neurons)
            self.place = nn.Parameter(torch.randn(bins, dim) * 0.02)
            self.to_rate = nn.Linear(dim, dim)
        else:
            self.table = NeuronTable(neurons, 2 * dim + 1, std=len(neurons) ** -0.5)
            self.usual = UsualCounts(len(neurons))
            self.base = nn.Parameter(torch.tensor(math.log(FIRST_HZ * bin_s)))
            self.when = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(dim, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    @property
    def neurons(self) -> list[str]:
        """Ids of the neurons that it knows, in the order of their numbers."""
        return self.fixed_ids if self.fixed else self.table.ids

    def add_neurons(self, ids: Sequence[str]) -> list[int]:
        """Append fresh rows for neurons that are not known yet, and give the number of each of `ids`.

        Raises:
            ValueError: for the published form, whose layers are as wide as its neurons are many.
        """
        if self.fixed:
            raise ValueError(f"a fixed NDT stays with its {len(self.neurons)} neurons; build it with fixed=False")
        numbers = self.table.add(ids)
        self.usual.add(len(self.neurons))
        return numbers

    def freeze_but_neurons(self) -> None:
        """Freeze everything but the rows of added neurons, or of all where none was added."""
        if self.fixed:
            raise ValueError("a fixed NDT has no rows of neurons; build it with fixed=False")
        train_only(self, [self.table.newest()])

    def _tokens(self, batch: TokenBatch, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """`(batch, bin, dim)` and which bins are real `(batch, bin)`; `hidden (batch, channel, bin)` counts enter as 0.

        Raises:
            ValueError: for a batch of events, or without numbers of neurons, or of another form than learned, and for
                activity below 0.
        """
        if batch.grid is None or "neuron" not in batch.aligned:
            raise ValueError(
                "NDT needs counts on a grid with aligned['neuron']; make batches by `Pretrained.batcher()`"
            )
        number = batch.aligned["neuron"]
        known = counts_of(batch)
        real = batch.mask.unflatten(1, batch.grid) & (number >= 0).unsqueeze(2)
        visible = real if hidden is None else real & ~hidden
        if self.training and self.neuron_dropout:
            kept = torch.rand(visible.shape[:2], device=visible.device) >= self.neuron_dropout
            visible = visible & kept.unsqueeze(2)
        there = real.any(dim=1)
        if self.fixed:
            counts = torch.where(visible, known, 0.0)
            x = self._in_order(counts, number) * self.dim**0.5 + self._learned_place(batch.grid[1])
        else:
            share = visible.sum(1) / real.sum(1).clamp_min(1)  # (batch, bin)
            whole = self.usual(torch.where(real, known, 0.0), real, number) * visible
            whole = whole / torch.where(share > 0, share, 1.0).unsqueeze(1)
            x = whole.transpose(1, 2) @ self.table.of(number)[..., : self.dim]
            x = x + self.when(sinusoid(torch.arange(batch.grid[1], device=x.device), self.dim))
        x, mask = self.dropout(x), None if bool(there.all()) else there
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x), there

    def _in_order(self, counts: Tensor, number: Tensor) -> Tensor:
        """Counts `(batch, channel, bin)` in the order of the model's neurons, `(batch, bin, dim)`; 0 where absent."""
        out = counts.new_zeros(len(counts), self.dim + 1, counts.shape[2])
        place = torch.where(number >= 0, number, self.dim)[..., None].expand_as(counts)
        return out.scatter(1, place, counts)[:, : self.dim].transpose(1, 2)

    def _learned_place(self, bins: int) -> Tensor:
        if bins > self.bins:
            raise ValueError(f"a window of {bins} bins; this NDT learned positions of {self.bins}: cut shorter windows")
        return self.place[:bins]

    def encode(self, batch: TokenBatch) -> Encoding:
        """A token for each bin; pooled: the last real one beside the mean of all."""
        x, there = self._tokens(batch, None)
        last = (there * torch.arange(1, there.shape[1] + 1, device=x.device)).argmax(dim=1)
        return Encoding(x, torch.cat((x[torch.arange(len(x)), last], masked_mean(x, there)), dim=1), there)

    def log_rates(self, batch: TokenBatch, hidden: Tensor | None = None) -> Tensor:
        """Logarithms of expected counts `(batch, channel, bin)`, from the counts that are not `hidden` (same shape)."""
        x, _ = self._tokens(batch, hidden)
        number = batch.aligned["neuron"]
        if self.fixed:
            rates = self.to_rate(x).transpose(1, 2)  # (batch, neuron, bin)
            return rates.gather(1, number.clamp_min(0)[..., None].expand(-1, -1, rates.shape[2]))
        row = self.table.of(number)[..., self.dim :]
        return row[..., :-1] @ x.transpose(1, 2) + row[..., -1:] + self.base


def build(
    facts: Facts, *, bin_s: float = 0.05, dim: int = 64, depth: int = 2, heads: int = 4, hidden: int = 128,
    dropout: float = 0.1, neuron_dropout: float = 0.0, fixed: bool = False,
) -> NDT:  # fmt: skip
    """Build the network for the neurons of a corpus.

    Args:
        bin_s: seconds of a bin.
        dim, depth, heads, hidden, dropout: the transformer; `hidden` is the width inside its MLPs.
        neuron_dropout: share of neurons that a training sample does not show (the unit dropout of POYO).
        fixed: the published form, without a path for new neurons; `dim` must be the number of neurons.

    Raises:
        ValueError: for a corpus without neurons, a signal whose samples are no bins, or a width that does not fit the
            published form.
    """
    if not facts.neurons:
        raise ValueError(f"NDT needs neurons; this corpus has {facts.modality or 'none'}: choose one of spikes")
    if fixed and dim != len(facts.neurons):
        raise ValueError(f"a fixed NDT is as wide as its neurons are many; got dim {dim} for {len(facts.neurons)}")
    bins_of(facts, bin_s)
    bins = max(1, round((facts.window_s or 1.0) / bin_s))
    return NDT(
        facts.neurons, bins, bin_s=bin_s, dim=dim, depth=depth, heads=heads, hidden=hidden, dropout=dropout,
        neuron_dropout=neuron_dropout, fixed=fixed,
    )  # fmt: skip
