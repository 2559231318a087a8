"""A row of learned numbers for each neuron, named "dataset/subject/neuron", that new animals can be added to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from brainfm.layers import ranks
from brainfm.layers.tables import grown, joined, load_in_parts, save_as_one

#: Share of the old averages that a batch replaces, once there are many.
MOMENTUM = 0.01


class NeuronTable(nn.Module):
    """The rows of all neurons that a model knows. A saved one is a single table, whatever was added when.

    Args:
        ids: of the neurons, in order. width: numbers in a row. std: of fresh rows, drawn from a normal distribution.
    """

    def __init__(self, ids: Sequence[str], width: int, std: float) -> None:
        super().__init__()
        self.ids, self.std = list(ids), std
        self.known = nn.Parameter(torch.randn(len(self.ids), width) * std)
        self.register_parameter("added", None)

    def rows(self) -> Tensor:
        """`(neuron, width)` all rows, added ones last."""
        return joined(self.known, self.added)

    def of(self, number: Tensor) -> Tensor:
        """`(batch, channel)` numbers, negative for padding → `(batch, channel, width)`, 0 for padding.

        Where all samples have the same neurons, as those of one recording do, the first axis is 1: it broadcasts.
        """
        if len(number) > 1 and bool((number == number[:1]).all()):
            number = number[:1]
        return self.rows()[number.clamp_min(0)] * (number >= 0).unsqueeze(-1)

    def add(self, ids: Sequence[str]) -> list[int]:
        """Append fresh rows for ids that are not there yet; make the optimiser after this call.

        Returns:
            The number of each of `ids` in the table.
        """
        self.added, numbers = grown(self.ids, ids, self.known, self.added, self.std)
        return numbers

    def newest(self) -> nn.Parameter:
        """What unit identification trains: added rows, or the whole table where none was added."""
        return self.known if self.added is None else self.added

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        save_as_one(destination, prefix, "known")

    def _load_from_state_dict(self, state: dict, prefix: str, *rest: object) -> None:
        super()._load_from_state_dict(load_in_parts(state, prefix, "known", self.known, self.added), prefix, *rest)


class UsualCounts(nn.Module):
    """Roots of counts in units of what is usual for their neuron: its mean and spread in the batches of training.

    Neurons fire at very different rates; without this the sum over a population is all but constant. A neuron that was
    in no training batch yet keeps its roots as they are. Evaluation changes nothing, so a sample stands by itself.

    Args:
        neurons: how many there are.
    """

    known: Tensor

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.register_buffer("known", torch.zeros(neurons, 3))  # batches so far, mean root, mean count

    def add(self, neurons: int) -> None:
        """Make room for more neurons, up to so many in all."""
        more = self.known.new_zeros(max(0, neurons - len(self.known)), 3)
        self.known = torch.cat((self.known, more))

    def forward(self, counts: Tensor, real: Tensor, number: Tensor) -> Tensor:
        """Standardised roots `(batch, channel, bin)`.

        Args:
            counts: `(batch, channel, bin)`. real: the same shape, False for padding. number: `(batch, channel)` of the
                neurons, negative for padding.
        """
        root, which = counts.sqrt(), number.clamp_min(0)
        if self.training:
            self._update(counts, root, real, which)
        seen, mean, square = self.known[which].unbind(dim=-1)
        spread = torch.where(seen > 0, (square - mean.square()).clamp_min(1e-2).sqrt(), 1.0)
        return (root - mean[..., None]) / spread[..., None]

    @torch.no_grad()
    def _update(self, counts: Tensor, root: Tensor, real: Tensor, which: Tensor) -> None:
        sums = self.known.new_zeros(len(self.known), 3)
        weight = real.to(root.dtype)
        found = torch.stack((weight.sum(2), (root * weight).sum(2), (counts * weight).sum(2)), dim=-1)
        sums = ranks.total(sums.index_add_(0, which.flatten(), found.flatten(0, 1).to(sums.dtype)))
        there = sums[:, :1] > 0
        batches = self.known[:, :1] + there
        share = torch.where(there, (1 / batches.clamp_min(1)).clamp_min(MOMENTUM), 0.0)
        now = sums[:, 1:] / sums[:, :1].clamp_min(1)
        self.known = torch.cat((batches, self.known[:, 1:] + share * (now - self.known[:, 1:])), dim=1)


def train_only(model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Freeze everything of the model but these, gradients already there included."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    for parameter in parameters:
        parameter.requires_grad_(True)
