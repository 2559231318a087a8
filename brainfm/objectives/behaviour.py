"""Behaviour from a model that reads it out: at each of its own timestamps (POYO), or the last one (Neuroformer).

Paper: Azabou et al., "A Unified, Scalable Framework for Neural Population Decoding", NeurIPS 2023,
https://arxiv.org/abs/2310.16046. Squared error of the standardised covariate; classes by cross-entropy, as in POYO+
(Azabou et al., ICLR 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainfm.layers import draws, ranks
from brainfm.layers.spike_states import Prediction
from brainfm.layers.tables import known_sessions
from brainfm.tokens import TokenBatch

#: Streams of `draws` for which neurons stay and how many.
WHICH, HOW_MANY = 11, 12


class Behaviour(nn.Module):
    """Error of what a model reads out, over samples that have a value, weighted where the model names a weight.

    In training a random number of each sample's neurons stays; the others are as if they had not been recorded.

    Args:
        keep_neurons: least, most frequent and largest number of neurons that stay, of a triangular distribution; a
            population no larger than the least stays whole. None keeps all.
        share: of the training samples from which neurons are taken at all.
    """

    def __init__(self, keep_neurons: Sequence[int] | None = (30, 100, 300), share: float = 1.0) -> None:
        super().__init__()
        if keep_neurons is not None and not 0 < keep_neurons[0] <= keep_neurons[1] <= keep_neurons[2]:
            raise ValueError(f"keep_neurons {list(keep_neurons)}: give three counts above 0 that do not fall")
        self.keep_neurons, self.share = keep_neurons, share

    def forward(self, model: nn.Module, batch: TokenBatch) -> dict[str, Tensor]:
        """A part for each target of the model that the batch brings.

        "metric_r2_..." is the share of the batch's variance that is explained, "metric_accuracy_..." that of classes.

        Raises:
            ValueError: where the batch brings none of the model's targets.
        """
        if self.training and self.keep_neurons is not None:
            batch = self._fewer(batch)
        said = model(batch)
        parts = errors(model, said.behaviour if isinstance(said, Prediction) else said, batch, self.training)
        if not parts:
            raise ValueError(f"the batch has {sorted(batch.aligned)}; the model reads out {sorted(model.targets)}")
        return parts

    def _fewer(self, batch: TokenBatch) -> TokenBatch:
        """The batch with neurons taken away: their numbers are negative."""
        neuron, seed = batch.aligned["neuron"], draws.seeds(batch)
        there = neuron >= 0
        order = draws.uniform(seed, (neuron.shape[1],), WHICH).masked_fill(~there, 2.0)
        place = order.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
        drawn = draws.uniform(seed, (2,), HOW_MANY)
        count = triangular(drawn[:, 0], *self.keep_neurons)
        whole = (there.sum(1) <= self.keep_neurons[0]) | (drawn[:, 1] >= self.share)
        stays = (place < count[:, None]) | whole[:, None]
        return replace(batch, aligned={**batch.aligned, "neuron": neuron.masked_fill(~stays, -1)})


def errors(model: nn.Module, said: dict[str, Tensor], batch: TokenBatch, gather: bool) -> dict[str, Tensor]:
    """A part for each covariate that the batch brings, and its metric, as in `Behaviour`.

    Args:
        model: with `classes`, `weight` and, for covariates that are numbers, `standard`.
        said: covariate → `(batch, query, width)` standardised, or logits, of so many samples at the window's end.
        gather: whether the samples enter the mean and deviation of their session, as they do in training.

    Raises:
        ValueError: where a number of features or of classes is not the model's, or a recording is unknown to it.
    """
    parts: dict[str, Tensor] = {}
    for name, value in said.items():
        if name not in batch.aligned:
            continue
        whole, asked = batch.aligned[name], slice(-value.shape[1], None)
        truth, weight = whole[:, asked], _weights(batch, model, name)[:, asked]
        if name in model.classes:
            parts |= _classes(name, value, truth[..., 0], weight[..., 0])
        else:
            parts |= _numbers(model.standard[name], name, value, truth, weight, known_sessions(batch), gather)
    return parts


def triangular(drawn: Tensor, least: int, mode: int, most: int) -> Tensor:
    """Whole numbers from `least` to `most`, most often `mode`, for uniform draws."""
    if least == most:
        return torch.full_like(drawn, least).long()
    below = (mode - least) / (most - least)
    rising = least + (drawn * (most - least) * (mode - least)).sqrt()
    falling = most - ((1 - drawn) * (most - least) * (most - mode)).sqrt()
    return torch.where(drawn < below, rising, falling).round().long()


def moments(x: Tensor, session: Tensor, sessions: int) -> Tensor:
    """Counts, sums and sums of squares `(3, session, feature)` of the finite values of x `(batch, time, feature)`."""
    there = x.isfinite()
    value = torch.where(there, x, 0.0).double()
    sums = torch.stack((there.double().sum(1), value.sum(1), value.square().sum(1)))
    return sums.new_zeros(3, sessions, x.shape[-1]).index_add_(1, session, sums)


def _weights(batch: TokenBatch, model: nn.Module, name: str) -> Tensor:
    """`(batch, time, 1)` weights at the samples of a covariate, 0 where the weight is missing; 1 without a weight."""
    if model.weight is None or model.weight not in batch.aligned:
        return torch.ones_like(batch.aligned[name][..., :1])
    moment = batch.times_of(name, model.window_s)
    return batch.at(model.weight, moment, model.window_s)[..., :1].nan_to_num(0.0)


def _numbers(
    standard: nn.Module, name: str, value: Tensor, truth: Tensor, weight: Tensor, session: Tensor, gather: bool
) -> dict[str, Tensor]:
    there = truth.isfinite()
    if truth.shape[-1] != value.shape[-1]:
        if there.any():
            raise ValueError(f"{name} has {truth.shape[-1]} features; the model reads out {value.shape[-1]}")
        truth, there = torch.full_like(value, torch.nan), torch.zeros_like(value, dtype=torch.bool)
        weight = weight[..., :1]
    if gather:
        standard.observe(ranks.total(moments(truth, session, len(standard.count))))
    mean, spread = standard.moments(session)
    wanted = torch.where(there, (torch.where(there, truth, mean.to(truth)) - mean) / spread, 0.0)
    worth = there * weight
    error = (torch.where(there, value, 0.0) - wanted).square() * worth
    loss = ranks.mean(error.sum(), worth.sum())
    with torch.no_grad():
        count = there.sum().clamp_min(1)
        centred = torch.where(there, wanted - wanted.sum() / count, 0.0).square().sum()
        plain = torch.where(there, value - wanted, 0.0).square().sum()
        r2 = 1 - plain / centred.clamp_min(1e-12) if there.any() else plain
    return {name: loss, f"metric_r2_{name}": r2}


def _classes(name: str, logits: Tensor, truth: Tensor, weight: Tensor) -> dict[str, Tensor]:
    there = truth.isfinite()
    label = torch.where(there, truth, 0.0).long()
    if label.amin() < 0 or label.amax() >= logits.shape[-1]:
        raise ValueError(
            f"{name} has class {int(label.amin())} to {int(label.amax())}; the model was built for 0 to "
            f"{logits.shape[-1] - 1}: raise its number in `classes`"
        )
    worth = there * weight
    error = functional.cross_entropy(logits.transpose(1, 2), label, reduction="none") * worth
    right = ((logits.argmax(-1) == label) & there).sum() / there.sum().clamp_min(1)
    return {name: ranks.mean(error.sum(), worth.sum()), f"metric_accuracy_{name}": right}
