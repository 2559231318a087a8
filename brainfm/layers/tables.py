"""What grows when a model meets new neurons or sessions: tables of vectors by name, and moments of behaviour."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from brainfm.tokens import TokenBatch

INITIAL = 0.02  # standard deviation of fresh vectors


# A table that grows is two parameters, the rows from the start and those added later (or None), and is saved as one.


def joined(first: Tensor, added: Tensor | None) -> Tensor:
    """All rows, added ones last."""
    return first if added is None else torch.cat((first, added))


def grown(
    names: list[str], more: Sequence[str], first: Tensor, added: Tensor | None, std: float
) -> tuple[nn.Parameter | None, list[int]]:
    """Take in names that are not there yet, each with a fresh row; make the optimiser after this.

    Args:
        names: of the rows; new ones are appended in place. more: names to know. first, added: the rows so far.
        std: of fresh rows, drawn from a normal distribution.

    Returns:
        All added rows, and the number of each of `more`.
    """
    known = set(names)
    new = [x for x in dict.fromkeys(more) if x not in known]
    if new:
        fresh = torch.randn(len(new), first.shape[1]).to(first) * std
        added = nn.Parameter(fresh if added is None else torch.cat((added.detach(), fresh)))
        names += new
    number = {x: i for i, x in enumerate(names)}
    return added, [number[x] for x in more]  # type: ignore[return-value]


def save_as_one(destination: dict, prefix: str, name: str) -> None:
    """In a state that was just written, put the rows `added` behind those of `name`."""
    added = destination.pop(prefix + "added", None)
    if added is not None:
        destination[prefix + name] = torch.cat((destination[prefix + name], added))


def load_in_parts(state: dict, prefix: str, name: str, first: Tensor, added: Tensor | None) -> dict:
    """The state with the one saved table cut into the rows of `name` and those of `added`, where there are any."""
    whole, n = state.get(prefix + name), len(first)
    if added is None or whole is None:
        return state
    return {**state, prefix + name: whole[:n], prefix + "added": whole[n:]}


class Table(nn.Module):
    """Named rows, `(1 + name, dim)`. Row 0 stands for none; name i has row i + 1.

    Attributes:
        names: of the rows, in order. weight: rows from the start. added: rows that came later, or None.
    """

    def __init__(self, names: Sequence[str], dim: int) -> None:
        super().__init__()
        self.names = list(names)
        self.weight = nn.Parameter(torch.randn(1 + len(self.names), dim) * INITIAL)
        self.register_parameter("added", None)

    def rows(self) -> Tensor:
        """All rows, added ones included."""
        return joined(self.weight, self.added)

    def add(self, names: Sequence[str]) -> list[int]:
        """Append fresh rows for new names; the numbers of all `names`."""
        self.added, numbers = grown(self.names, names, self.weight, self.added, INITIAL)
        return numbers

    def newest(self) -> nn.Parameter:
        """Added rows, or all of them where none was added."""
        return self.weight if self.added is None else self.added

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        save_as_one(destination, prefix, "weight")

    def _load_from_state_dict(self, state: dict, prefix: str, *rest: object) -> None:
        super()._load_from_state_dict(load_in_parts(state, prefix, "weight", self.weight, self.added), prefix, *rest)


class Standard(nn.Module):
    """Mean and deviation of a covariate in each session, gathered while training.

    A session of which nothing was seen has mean 0 and deviation 1.
    """

    def __init__(self, sessions: int, features: int) -> None:
        super().__init__()
        for name in ("count", "total", "square"):
            self.register_buffer(name, torch.zeros(sessions, features, dtype=torch.float64))

    def add(self, sessions: int) -> None:
        """Room for so many more sessions."""
        for name, old in self.named_buffers():
            setattr(self, name, torch.cat((old, old.new_zeros(sessions, old.shape[1]))))

    def observe(self, moments: Tensor) -> None:
        """Add counts, sums and sums of squares `(3, session, feature)`."""
        for name, more in zip(("count", "total", "square"), moments, strict=True):
            getattr(self, name).add_(more)

    def moments(self, session: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation `(batch, 1, feature)` for session numbers `(batch,)`."""
        n = self.count.clamp_min(1)
        mean = self.total / n
        spread = (self.square / n - mean.square()).clamp_min(0).sqrt()
        spread = torch.where(spread > 1e-9 * mean.abs(), spread, 1.0)
        return mean[session, None].float(), spread[session, None].float()


def known_sessions(batch: TokenBatch) -> Tensor:
    """The number `(batch,)` of each sample's recording.

    Raises:
        ValueError: where the batch does not number its recordings, or the model does not know one of them.
    """
    session = batch.aligned.get("session")
    if session is None or bool((session < 0).any()):
        what = "no aligned['session']" if session is None else "a recording that this model does not know"
        raise ValueError(f"{what}; make the batch with `model.sessions`, after `model.add_sessions` for new ones")
    return session


def in_own_unit(said: dict[str, Tensor], standards: nn.ModuleDict, batch: TokenBatch) -> dict[str, Tensor]:
    """Standardised answers `(batch, query, feature)` in the unit that each covariate has in its session.

    Answers without a `Standard`, logits of classes, stay as they are.
    """
    found = dict(said)
    for name in said.keys() & set(standards):
        mean, spread = standards[name].moments(known_sessions(batch))
        found[name] = said[name] * spread + mean
    return found
