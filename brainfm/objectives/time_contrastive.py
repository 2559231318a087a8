"""Draw together what lies close in time, or in behaviour, and push all else apart: InfoNCE in the manner of CEBRA.

Paper: Schneider, Lee & Mathis 2023, "Learnable latent embeddings for joint behavioural and neural analysis", Nature
617:360-368, https://arxiv.org/abs/2204.00673.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from brainfm.layers import draws, ranks
from brainfm.tokens import Encoding, TokenBatch


class TimeContrastive(nn.Module):
    """InfoNCE with one reference, positive and negative per window; the negatives of a step serve all references.

    - "time": the positive is a point 1 to `offset` bins after the reference, in the same window.
    - "behaviour": it is the point of the batch whose behaviour is nearest to the reference's plus a change that
      behaviour really makes within `offset` bins, taken from another window of the batch.
    - "hybrid": both, each counting half.

    A reference without known behaviour takes no part in the second. With several ranks each has the negatives of its
    own windows.

    Args:
        positives: "time", "behaviour" or "hybrid".
        behaviour: name of the covariate, which the model must bring along; none for "time".
        offset: bins at most between reference and positive.
        temperature: at the start; it is learned unless `learned` is False, and stays at `floor` or above.

    Raises:
        ValueError: for other positives, or a behaviour missing or too much.
    """

    def __init__(
        self, positives: str = "time", behaviour: str = "", offset: int = 5, temperature: float = 0.3,
        learned: bool = True, floor: float = 0.05,
    ) -> None:  # fmt: skip
        super().__init__()
        if positives not in ("time", "behaviour", "hybrid"):
            raise ValueError(f"positives {positives!r}; expected 'time', 'behaviour' or 'hybrid'")
        if bool(behaviour) != (positives != "time"):
            raise ValueError(f"positives by {positives!r} with behaviour {behaviour!r}; name it unless they go by time")
        self.positives, self.behaviour, self.offset, self.floor = positives, behaviour, offset, floor
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)), requires_grad=learned)

    def forward(self, model: nn.Module, batch: TokenBatch) -> dict[str, Tensor]:
        """Parts "time" and "behaviour", as asked for; "metric_nearest": how often the positive is nearer than all.

        Raises:
            ValueError: for windows of a single point.
        """
        said = model.encode(batch)
        points, count = said.tokens, said.mask.sum(dim=1)
        if points.shape[1] < 2:
            raise ValueError(
                "windows hold one point each; a positive in time needs two: take longer windows, for example by "
                f"{self.offset} bins"
            )
        rows, seed = torch.arange(len(points), device=points.device), draws.seeds(batch)
        drawn = draws.uniform(seed, (4,), 1)
        step = (1 + (drawn[:, 0] * self.offset).long()).minimum(count - 1).clamp_min(0)
        reference = (drawn[:, 1] * (count - step)).long()
        negative = points[rows, (drawn[:, 2] * count).long()]
        there = count > 1
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        if self.positives != "behaviour":
            pairs["time"] = points[rows, reference + step], there
        if self.positives != "time":
            chosen, known = self._alike(batch, said, reference, step)
            pairs["behaviour"] = points.flatten(0, 1)[chosen], known & there
        scale = 1 / self.log_temperature.exp().clamp_min(self.floor)
        anchor = points[rows, reference]
        against = scale * anchor @ negative.T
        parts: dict[str, Tensor] = {}
        for name, (positive, counts) in pairs.items():
            near = scale * (anchor * positive).sum(dim=1)
            each = torch.where(counts, against.logsumexp(dim=1) - near, 0.0)
            parts[name] = ranks.mean(each.sum(), int(counts.sum())) / len(pairs)
            parts["metric_nearest"] = ((near > against.amax(dim=1)) & counts).sum() / counts.sum().clamp_min(1)
        return parts

    def _alike(self, batch: TokenBatch, said: Encoding, reference: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Number of each reference's positive among the points of the batch, and whether behaviour is known there.

        Raises:
            ValueError: where the batch does not bring the behaviour along.
        """
        if self.behaviour not in batch.aligned:
            raise ValueError(f"the batch has no {self.behaviour!r}; name it in the model's `behaviour`")
        series = self._at_points(batch, said.tokens.shape[1])
        known = series.isfinite().all(dim=2) & said.mask
        value = torch.where(known[..., None], series, 0.0)
        spread = value[known].std(dim=0).clamp_min(1e-6) if int(known.sum()) > 1 else 1.0
        value = value / spread
        rows = torch.arange(len(value), device=value.device)
        change = value[rows, reference + step] - value[rows, reference]
        real = known[rows, reference + step] & known[rows, reference]
        other = rows.roll(1)
        wanted = value[rows, reference] + torch.where(real[other], 1.0, 0.0)[:, None] * change[other]
        distance = torch.cdist(wanted, value.flatten(0, 1)).masked_fill(~known.flatten(), torch.inf)
        distance[rows, rows * known.shape[1] + reference] = torch.inf
        return distance.argmin(dim=1), known[rows, reference] & distance.isfinite().any(dim=1)

    def _at_points(self, batch: TokenBatch, points: int) -> Tensor:
        """`(batch, point, feature)` the behaviour in the last bin of each point."""
        bins, rate = batch.grid[1], batch.sfreq or 1.0  # type: ignore[index]
        middle = torch.arange(bins - points, bins, device=batch.time.device) + 0.5
        return batch.at(self.behaviour, middle / rate, bins / rate)
