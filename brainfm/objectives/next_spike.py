"""Which neuron fires next, and when: the generative objective of Neuroformer.

Paper: Antoniades et al., "Neuroformer: Multimodal and Multitask Generative Pretraining for Brain Data", ICLR 2024,
https://arxiv.org/abs/2311.00136. Weights 3/5 and 2/5 as published, without the factor 3/4 that its code applies
whether or not there is a contrastive part.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainfm.layers import ranks
from brainfm.objectives.behaviour import errors
from brainfm.tokens import TokenBatch


class NextSpike(nn.Module):
    """Cross-entropy of the next spike's neuron and time bin, the end of the state included, padding left out.

    Every token sees the true spikes before it (teacher forcing). Where the model predicts behaviour, the error of each
    covariate that the batch brings is added as `objectives/behaviour.py` has it: squared, in units of its deviation in
    the session, or cross-entropy of its classes.

    Args:
        neuron_weight, bin_weight, behaviour_weight: of the three parts; the last one of each covariate.
    """

    def __init__(self, neuron_weight: float = 0.6, bin_weight: float = 0.4, behaviour_weight: float = 1.0) -> None:
        super().__init__()
        self.neuron_weight, self.bin_weight, self.behaviour_weight = neuron_weight, bin_weight, behaviour_weight

    def forward(self, model: nn.Module, batch: TokenBatch) -> dict[str, Tensor]:
        """Parts "neuron" and "bin" (and "behaviour_..." of each covariate), already weighted.

        "metric_accuracy" is over spikes and ends; "metric_bits_per_spike" is the gain over mean rates alone.
        """
        said = model(batch)
        parts = {
            "neuron": self.neuron_weight * _cross_entropy(said.neuron, said.neuron_target),
            "bin": self.bin_weight * _cross_entropy(said.bin, said.bin_target),
        }
        for name, value in errors(model, said.behaviour, batch, self.training).items():
            is_metric = name.startswith("metric_")
            parts[name if is_metric else f"behaviour_{name}"] = value if is_metric else self.behaviour_weight * value
        with torch.no_grad():
            asked = said.neuron_target >= 0
            right = (said.neuron.argmax(-1) == said.neuron_target) & asked
            parts["metric_accuracy"] = right.sum() / asked.sum().clamp_min(1)
            parts["metric_bits_per_spike"] = bits_per_spike(said.neuron, said.neuron_target, batch.aligned["neuron"])
        return parts


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over targets that are not negative, of all ranks; 0 where there is none."""
    total = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100, reduction="sum")
    return ranks.mean(total, (target >= 0).sum())


def bits_per_spike(logits: Tensor, target: Tensor, neuron: Tensor) -> Tensor:
    """Bits that the logits gain per spike over the batch's mean rates; which neuron, given that one fires.

    The rates of a recording are the counts of its neurons' other spikes in the batch, plus one.

    Args:
        logits: `(batch, token, channel + 1)`, the last for the end of the state.
        target: `(batch, token)` channels, the end, or negative for padding.
        neuron: `(batch, channel)` numbers of the neurons; negative for padding.
    """
    channels = neuron.shape[1]
    spike = (target >= 0) & (target < channels)
    channel = target.masked_fill(~spike, 0)
    number = neuron.gather(1, channel)
    counts = logits.new_zeros(int(neuron.max().clamp_min(0)) + 1).index_add_(
        0, number[spike], torch.ones_like(number[spike], dtype=logits.dtype)
    )
    own = counts[neuron.clamp_min(0)].masked_fill(neuron < 0, 0.0)
    null = own.gather(1, channel).clamp_min(1).log() - (own.sum(1) - 1 + (neuron >= 0).sum(1))[:, None].log()
    model = logits[..., :-1].log_softmax(-1).gather(2, channel[..., None])[..., 0]
    gain = torch.where(spike, model - null, 0.0)
    return gain.sum() / spike.sum().clamp_min(1) / math.log(2)
