"""A convolutional encoder of binned spike counts onto a sphere of few dimensions, for contrastive learning.

In the manner of: Steffen Schneider, Jin Hwa Lee, Mackenzie Weygandt Mathis. "Learnable latent embeddings for joint
behavioural and neural analysis" (CEBRA). Nature 617:360-368, 2023. https://arxiv.org/abs/2204.00673

Ten bins of a population become a point. Points of moments that lie close in time, or at which the animal did the same,
are drawn together and all others pushed apart (`objectives/time_contrastive.py`). The embedding is few-dimensional, so
that it can be looked at, and read linearly.

Differences from the paper and its published code:
- the first layer is a row per neuron named by its id and not a convolution over one recording's neurons:
  several animals share the encoder, and a new one has a path (`add_neurons`, `freeze_but_neurons`);
- the root of a count enters, less its neuron's usual one and over its spread, both gathered in training; similarity
  is the cosine only;
- a point stands for the end of its ten bins and not for their middle, so that nothing later is needed to decode.

Tensor walk of `encode`:
    counts `(batch, channel, bin)` → standardised roots times rows of the table, summed over channels
    → `(batch, hidden, bin)`
    → convolution of 2 bins → three of 3 bins, each added to its cropped input → convolution of 3 bins
      `(batch, dim, bin - 9)` → unit vectors → tokens `(batch, bin - 9, dim)` → pooled `(batch, dim)`: the last of them
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from brainfm.layers.neurons import NeuronTable, UsualCounts, bins_of, counts_of, train_only
from brainfm.tokens import Encoding, Facts, TokenBatch

PAPER = "after Schneider, Lee & Mathis 2023, CEBRA, arXiv:2204.00673"
FACTS = Facts(
    modality=("spikes",), kinds=("neuron",), window_s=1.0, channels=120, subjects=("hippocampus/achilles",),
    neurons=tuple(f"hippocampus/achilles/{i:03d}" for i in range(120)), aligned={"position": 1},
)  # fmt: skip

SIZES: dict[str, dict] = {
    "test": {"bin_s": 0.01, "hidden": 16, "dim": 3},
    "local": {"bin_s": 0.05, "hidden": 32, "dim": 8},
    "base": {"bin_s": 0.025, "hidden": 32, "dim": 3},
}

#: Bins that a point sees: 2, three times 2 more, and 2 more.
REACH = 10


class PopulationEncoder(nn.Module):
    """The network; keywords as in `build`.

    Attributes:
        counts_s: seconds of a bin; makes the batcher count spikes.
        patch: 1, a count per token of the batch.
        aligned: behaviour that batches bring along for the objective; `encode` never reads it.
    """

    patch = 1

    def __init__(self, neurons: Sequence[str], behaviour: Sequence[str], bin_s: float, hidden: int, dim: int) -> None:
        super().__init__()
        self.counts_s, self.dim, self.aligned = bin_s, dim, tuple(behaviour)
        self.table = NeuronTable(neurons, hidden, std=len(neurons) ** -0.5)
        self.usual = UsualCounts(len(neurons))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.first = nn.Conv1d(hidden, hidden, 2)
        self.middle = nn.ModuleList(nn.Conv1d(hidden, hidden, 3) for _ in range(3))
        self.last = nn.Conv1d(hidden, dim, 3)

    @property
    def neurons(self) -> list[str]:
        """Ids of the neurons that it knows, in the order of their numbers."""
        return self.table.ids

    def add_neurons(self, ids: Sequence[str]) -> list[int]:
        """Append fresh rows for neurons that are not known yet, and give the number of each of `ids`."""
        numbers = self.table.add(ids)
        self.usual.add(len(self.neurons))
        return numbers

    def freeze_but_neurons(self) -> None:
        """Freeze everything but the rows of added neurons, or of all where none was added."""
        train_only(self, [self.table.newest()])

    def encode(self, batch: TokenBatch) -> Encoding:
        """A point for every ten bins in a row; pooled: the one at the window's end.

        Raises:
            ValueError: for a batch of events, one without numbers of neurons, windows shorter than ten bins, or
                activity below 0.
        """
        if batch.grid is None or "neuron" not in batch.aligned:
            raise ValueError("this encoder needs counts on a grid with aligned['neuron']; use `Pretrained.batcher()`")
        if batch.grid[1] < REACH:
            raise ValueError(
                f"windows of {batch.grid[1]} bins; a point needs {REACH}: use windows of {REACH * self.counts_s:g} s"
            )
        real = batch.mask.unflatten(1, batch.grid)
        number = batch.aligned["neuron"]
        counts = self.usual(counts_of(batch), real, number) * real
        x = self.table.of(number).transpose(1, 2) @ counts + self.bias[:, None]
        x = functional.gelu(self.first(x))
        for layer in self.middle:
            x = x[..., 1:-1] + functional.gelu(layer(x))
        points = functional.normalize(self.last(x).transpose(1, 2), dim=-1)
        mask = real.any(dim=1)[:, REACH - 1 :]  # a window is real from its start on
        end = (mask * torch.arange(1, mask.shape[1] + 1, device=x.device)).argmax(dim=1)
        return Encoding(points, points[torch.arange(len(points)), end], mask)


def build(
    facts: Facts, *, bin_s: float = 0.05, hidden: int = 32, dim: int = 8, behaviour: Sequence[str] = ()
) -> PopulationEncoder:
    """Build the encoder for the neurons of a corpus.

    Args:
        bin_s: seconds of a bin. hidden: width of the convolutions. dim: of the sphere's space.
        behaviour: covariates that the objective draws positives by.

    Raises:
        ValueError: for a corpus without neurons, a signal whose samples are no bins, or a covariate that it has not.
    """
    if not facts.neurons:
        raise ValueError(f"this encoder needs neurons; the corpus has {facts.modality or 'none'}: choose one of spikes")
    bins_of(facts, bin_s)
    if missing := sorted(set(behaviour) - set(facts.aligned)):
        raise ValueError(f"no covariate {missing[0]!r}; the corpus has {sorted(facts.aligned) or 'none'}")
    return PopulationEncoder(facts.neurons, behaviour, bin_s, hidden, dim)
