"""Responses of neurons to stimuli, each taken as a Poisson count around what the model expects.

Paper: Li et al., "V1T: large-scale mouse V1 response prediction using a Vision Transformer", TMLR 2023,
https://arxiv.org/abs/2302.03023. It sums the loss over neurons and images, times the root of the number of images over
the batch, and adds the sums of the absolute weights of core and read-out times 0.5379 and 0.0076. Here the loss is a
mean over responses, so that neither the batch nor the number of neurons changes what the penalties weigh; the defaults
are theirs for 8000 neurons, 4500 images and a batch of 16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brainfm.layers import ranks
from brainfm.tokens import TokenBatch


class PoissonResponse(nn.Module):
    """Mean of `expected - response * log(expected)` over real responses, and penalties on absolute weights.

    Args:
        core_l1: of the sum over the core's weights. readout_l1: of the mean over neurons of the sum over their weights.
    """

    def __init__(self, core_l1: float = 2.5e-7, readout_l1: float = 2.8e-5) -> None:
        super().__init__()
        self.core_l1, self.readout_l1 = core_l1, readout_l1

    def forward(self, model: nn.Module, batch: TokenBatch) -> dict[str, Tensor]:
        """Parts "poisson", "core_l1" and "readout_l1"; "metric_correlation" over the batch's images, see there.

        Raises:
            ValueError: for a response below 0, which no Poisson process gives.
        """
        expected = model(batch)
        response, real = model.target(batch)  # type: ignore[operator]
        if bool((real & (response < 0)).any()):
            raise ValueError(
                f"a response of {float(response[real].min()):.3g}; a Poisson loss needs counts or activity from 0 up: "
                "ingest deconvolved activity, or shift each neuron by a fixed offset"
            )
        each = torch.where(real, expected - response * (expected + 1e-8).log(), 0.0)
        weights = list(model.core_weights())  # type: ignore[operator]
        parts = {
            "poisson": ranks.mean(each.sum(), real.sum()),
            "readout_l1": self.readout_l1 * model.readout.weight.abs().sum(1).mean(),  # type: ignore[union-attr, operator]
        }
        if weights:
            parts["core_l1"] = self.core_l1 * torch.stack([w.abs().sum() for w in weights]).sum()
        with torch.no_grad():
            parts["metric_correlation"] = correlation(expected, response, real, batch.aligned["neuron"])
        return parts


def correlation(expected: Tensor, response: Tensor, real: Tensor, neuron: Tensor) -> Tensor:
    """Pearson correlation of each neuron over the images of the batch that it saw, the mean over neurons with two.

    Args:
        expected, response, real: `(batch, channel, time)`. neuron: `(batch, channel)` numbers; negative for padding.
    """
    number = neuron.clamp_min(0)[..., None].expand_as(real)[real]
    x, y = expected[real].double(), response[real].double()
    size = int(number.max()) + 1 if len(number) else 1

    def summed(of: Tensor) -> Tensor:
        return torch.zeros(size, dtype=of.dtype, device=of.device).index_add_(0, number, of)

    count = summed(torch.ones_like(x)).clamp_min(1)
    x, y = x - (summed(x) / count)[number], y - (summed(y) / count)[number]
    spread = (summed(x * x) * summed(y * y)).sqrt()
    valid = (count > 1) & (spread > 1e-12)
    return (summed(x * y)[valid] / spread[valid]).sum().div(valid.sum().clamp_min(1)).float()
