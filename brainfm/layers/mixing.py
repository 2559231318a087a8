"""A linear layer on the input for each person: channels as the next layer would have them from anybody.

Subject layers of Défossez et al. 2023 (arXiv:2208.12266, section 2.3); a new person gets a fresh one, and only that is
trained: reset-tuning.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from brainfm.tokens import Encoding, TokenBatch


class Mixing(nn.Module):
    """A square matrix over channels for each person, the identity at the start.

    Args:
        people: how many have one; 0 is nobody, and everyone is mixed by the identity.
        channels: of the input.
    """

    def __init__(self, people: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(channels).repeat(people, 1, 1))

    def forward(self, x: Tensor, person: Tensor) -> Tensor:
        """`(batch, channel, ...)` of `person (batch,)` → the same shape; -1 is a stranger, with the mean of all.

        Raises:
            ValueError: for other channels than it was made for.
        """
        if x.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"{x.shape[1]} channels; this layer mixes {self.weight.shape[1]}: give the channels it was fitted on"
            )
        mean = self.mean().unsqueeze(0)
        own = torch.cat((self.weight, mean))[person]  # the last row, -1
        return (own @ x.flatten(2)).view_as(x)

    def mean(self) -> Tensor:
        """`(channel, channel)` mean of the people's matrices."""
        if not len(self.weight):
            return torch.eye(self.weight.shape[1], device=self.weight.device)
        return self.weight.mean(dim=0)


class Mixed(nn.Module):
    """A frozen network with a `Mixing` before it; people are told by `aligned["subject"]`.

    A network that reads codes of a frozen tokenizer, through which no gradient comes, gets it over the tokenizer's
    sources (`sources_of`, `encode_sources`), any other over the channels of the signal.
    """

    def __init__(self, network: nn.Module, mixing: Mixing) -> None:
        super().__init__()
        self.network, self.mixing = network.requires_grad_(False).eval(), mixing

    def train(self, mode: bool = True) -> Mixed:
        """Switch all but the network, which stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def encode(self, batch: TokenBatch) -> Encoding:
        """The network's encoding of the mixed input."""
        person = batch.aligned["subject"]
        if over_sources(self.network):
            sources = self.network.sources_of(batch)
            mixed = self.mixing(sources.features, person) * sources.mask[..., None]
            return self.network.encode_sources(sources._replace(features=mixed))
        signal = self.mixing(batch.signal(), person)
        values = signal.reshape(len(batch), -1, batch.values.shape[-1])
        return self.network.encode(replace(batch, values=values))


def over_sources(network: nn.Module) -> bool:
    """Whether the layer lies behind the network's tokenizer."""
    return hasattr(network, "encode_sources")


def inputs(network: nn.Module, batch: TokenBatch) -> int:
    """How many channels, or sources, a `Mixing` before this network has."""
    if over_sources(network):
        return network.codebook.sources  # type: ignore[union-attr, return-value]
    return batch.signal().shape[1]
