"""What grows when a model meets new neurons or sessions: tables of vectors by name, and moments of behaviour."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

INITIAL = 0.02  # standard deviation of fresh vectors


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
        return self.weight if self.added is None else torch.cat((self.weight, self.added))

    def add(self, names: Sequence[str]) -> list[int]:
        """Append fresh rows for new names; the numbers of all `names`."""
        known = set(self.names)
        new = [x for x in dict.fromkeys(names) if x not in known]
        if new:
            fresh = torch.randn(len(new), self.weight.shape[1]).to(self.weight) * INITIAL
            self.added = nn.Parameter(fresh if self.added is None else torch.cat((self.added.detach(), fresh)))
            self.names += new
        number = {x: i for i, x in enumerate(self.names)}
        return [number[x] for x in names]

    def newest(self) -> nn.Parameter:
        """Added rows, or all of them where none was added."""
        return self.weight if self.added is None else self.added

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        added = destination.pop(prefix + "added", None)
        if added is not None:
            destination[prefix + "weight"] = torch.cat((destination[prefix + "weight"], added))

    def _load_from_state_dict(self, state: dict, prefix: str, *rest: object) -> None:
        whole, n = state.get(prefix + "weight"), len(self.weight)
        if self.added is not None and whole is not None:
            state = {**state, prefix + "weight": whole[:n], prefix + "added": whole[n:]}
        super()._load_from_state_dict(state, prefix, *rest)


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
