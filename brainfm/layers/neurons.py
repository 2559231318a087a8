"""A row of learned numbers for each neuron, named by its id, that new animals can be added to; what neurons give."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainfm.layers import ranks
from brainfm.layers.tables import grown, joined, load_in_parts, save_as_one
from brainfm.tokens import Facts, TokenBatch

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


def numbered_spikes(batch: TokenBatch, model: str) -> Tensor:
    """The number `(batch, token)` of each spike's neuron.

    Args:
        model: what errors call the model.

    Raises:
        ValueError: for a signal, and where the batch does not number its neurons.
    """
    if batch.grid is not None:
        raise ValueError(f"{model} reads spikes; this batch is a grid of a signal or of counts: ingest events")
    if "neuron" not in batch.aligned:
        raise ValueError(f"{model} needs aligned['neuron'] (batch, channel); give the batcher `model.neurons`")
    return batch.aligned["neuron"].gather(1, batch.channel)


def needs_spikes(facts: Facts, model: str) -> None:
    """Check that a corpus can be read as events, each a neuron and a time.

    Raises:
        ValueError: naming the model, for a corpus without neurons, or one of a sampled signal, whose values no spike
            carries.
    """
    if not facts.neurons:
        raise ValueError(f"{model} needs neurons; this corpus has {facts.modality or 'none'}: choose one of spikes")
    if facts.sfreq:
        raise ValueError(
            f"{model} reads spikes, neuron and time; this corpus ({', '.join(facts.modality)}) is a signal of "
            f"{facts.sfreq:g} samples per second, whose values it would not see: infer events first and ingest those, "
            "or take a model of signals of neurons, such as v1t (images) or ndt (activity from 0 up)"
        )


def bins_of(facts: Facts, bin_s: float) -> None:
    """Check that bins of `bin_s` seconds can be had of a corpus: of a signal each sample is one.

    Raises:
        ValueError: for a signal of another rate.
    """
    if facts.sfreq and abs(bin_s * facts.sfreq - 1) > 1e-6:
        raise ValueError(
            f"bin_s {bin_s:g} for a signal of {facts.sfreq:g} samples per second; each sample is a bin: set bin_s to "
            f"{1 / facts.sfreq:g}, or ingest it at another `sfreq_hz`"
        )


def counts_of(batch: TokenBatch) -> Tensor:
    """`(batch, channel, bin)` spikes of neurons, or any activity that stands for them; 0 for padding.

    Raises:
        ValueError: for activity below 0, such as dF/F, of which there is no root and no Poisson likelihood.
    """
    real = batch.mask.unflatten(1, batch.grid)  # type: ignore[arg-type]
    counts = torch.where(real, batch.signal(), 0.0)
    if bool((counts < 0).any()):
        raise ValueError(
            f"activity down to {float(counts.min()):.3g}; counts are 0 or more: bin spikes, or ingest events that were "
            "inferred from fluorescence (deconvolved activity) and not dF/F"
        )
    return counts


def segment_rates(batch: TokenBatch, rows: Tensor, segments: int, width_s: float) -> Tensor:
    """`(batch, segment * dim)`: spikes of every neuron in each segment of the window, times its unit vector.

    Args:
        rows: `(neuron, dim)` of the model's table. segments: of the window of `width_s` seconds.
    """
    neuron = batch.aligned["neuron"]
    channels = neuron.shape[1]
    part = (batch.time / width_s * segments).long().clamp(0, segments - 1)
    real = batch.mask & (neuron.gather(1, batch.channel) >= 0)
    counts = rows.new_zeros(len(batch), segments * channels)
    counts.scatter_add_(1, part * channels + batch.channel, real.to(counts.dtype))
    unit = functional.normalize(rows, dim=-1)[neuron.clamp_min(0)]
    return (counts.view(len(batch), segments, channels) @ unit).flatten(1)


def train_only(model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Freeze everything of the model but these, gradients already there included."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    for parameter in parameters:
        parameter.requires_grad_(True)
