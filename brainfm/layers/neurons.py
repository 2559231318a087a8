"""A row of learned numbers for each neuron, named "dataset/subject/neuron", that new animals can be added to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


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
        return self.known if self.added is None else torch.cat((self.known, self.added))

    def of(self, number: Tensor) -> Tensor:
        """`(batch, channel)` numbers, negative for padding → `(batch, channel, width)`, 0 for padding."""
        return self.rows()[number.clamp_min(0)] * (number >= 0).unsqueeze(-1)

    def add(self, ids: Sequence[str]) -> list[int]:
        """Append fresh rows for ids that are not there yet; make the optimiser after this call.

        Returns:
            The number of each of `ids` in the table.
        """
        new = [x for x in dict.fromkeys(ids) if x not in set(self.ids)]
        if new:
            fresh = torch.randn(len(new), self.known.shape[1]).to(self.known) * self.std
            self.added = nn.Parameter(fresh if self.added is None else torch.cat((self.added.detach(), fresh)))
            self.ids += new
        number = {x: i for i, x in enumerate(self.ids)}
        return [number[x] for x in ids]

    def newest(self) -> nn.Parameter:
        """What unit identification trains: added rows, or the whole table where none was added."""
        return self.known if self.added is None else self.added

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        added = destination.pop(prefix + "added", None)
        if added is not None:
            destination[prefix + "known"] = torch.cat((destination[prefix + "known"], added))

    def _load_from_state_dict(self, state: dict, prefix: str, *rest: object) -> None:
        whole = state.get(prefix + "known")
        if self.added is not None and whole is not None:
            n = len(self.known)
            state = {**state, prefix + "known": whole[:n], prefix + "added": whole[n:]}
        super()._load_from_state_dict(state, prefix, *rest)


def train_only(model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Freeze everything of the model but these, gradients already there included."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    for parameter in parameters:
        parameter.requires_grad_(True)
