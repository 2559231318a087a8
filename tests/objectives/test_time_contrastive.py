"""Positives of the contrastive objective are those that were asked for, and it finds a planted latent."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import nn

from brainfm.layers import draws
from brainfm.models import population_encoder
from brainfm.objectives.time_contrastive import TimeContrastive
from brainfm.tokens import Encoding, Facts, TokenBatch


class Table(nn.Module):
    """An encoder that gives back the points of the batch."""

    def encode(self, batch: TokenBatch) -> Encoding:
        return Encoding(batch.values, batch.values[:, -1], torch.ones(batch.values.shape[:2], dtype=torch.bool))


def given(windows: int = 16, points: int = 6, bins: int = 15, series: torch.Tensor | None = None) -> TokenBatch:
    torch.manual_seed(0)
    x = nn.functional.normalize(torch.randn(windows, points, 3), dim=-1)
    aligned = {"draw": draws.mix(torch.arange(windows))}
    if series is not None:
        aligned["speed"] = series
    none = torch.zeros(windows, 0)
    return TokenBatch(x, none, none, none, none, none, none, (4, bins), 20.0, aligned)  # what the objective reads


def test_the_loss_in_time_is_that_of_a_slow_loop() -> None:
    batch, objective = given(), TimeContrastive(offset=3, temperature=0.5)
    drawn = draws.uniform(batch.aligned["draw"], (4,), 1)
    steps = [min(5, 1 + int(u * 3)) for u in drawn[:, 0]]
    reference = [int(u * (6 - step)) for u, step in zip(drawn[:, 1], steps, strict=True)]
    negative = [batch.values[i, int(u * 6)] for i, u in enumerate(drawn[:, 2])]
    losses, nearest = [], []
    for i, (r, step) in enumerate(zip(reference, steps, strict=True)):
        anchor = batch.values[i, r]
        near = float(anchor @ batch.values[i, r + step]) / 0.5
        away = [float(anchor @ x) / 0.5 for x in negative]
        losses.append(math.log(sum(map(math.exp, away))) - near)
        nearest.append(near > max(away))
    said = objective(Table(), batch)
    assert set(said) == {"time", "metric_nearest"}
    assert float(said["time"].detach()) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(said["metric_nearest"]) == pytest.approx(np.mean(nearest))
    assert set(steps) == {1, 2, 3}


def test_a_positive_by_behaviour_is_the_nearest_to_where_behaviour_goes() -> None:
    series = torch.arange(16 * 15).reshape(16, 15, 1).float()  # grows by 1 a bin, and no two moments are alike
    batch, objective = given(series=series), TimeContrastive("behaviour", "speed", offset=3)
    reference, step = torch.full((16,), 2), torch.full((16,), 3)
    said = Table().encode(batch)
    chosen, known = objective._alike(batch, said, reference, step)
    assert known.all()
    assert chosen.tolist() == [6 * i + 5 for i in range(16)], "the point three bins later, where behaviour is 3 more"


def test_unknown_behaviour_takes_no_part() -> None:
    series = torch.arange(16 * 15).reshape(16, 15, 1).float()
    series[3] = torch.nan
    series[7, 12:] = torch.nan
    batch, objective = given(series=series), TimeContrastive("behaviour", "speed", offset=3)
    chosen, known = objective._alike(batch, Table().encode(batch), torch.full((16,), 2), torch.full((16,), 3))
    assert known.tolist() == [i != 3 for i in range(16)]
    assert not set(chosen[known].tolist()) & {*range(18, 24), 45, 46, 47}
    nothing = given(series=torch.full((16, 1, 1), torch.nan))
    part = objective(Table(), nothing)["behaviour"]
    assert float(part.detach()) == 0
    hybrid = TimeContrastive("hybrid", "speed")(Table(), nothing)
    assert float(hybrid["time"].detach()) > 0
    assert float(hybrid["behaviour"].detach()) == 0


def test_the_temperature_is_learned_and_held_above_its_floor() -> None:
    batch = given()
    objective = TimeContrastive()
    objective(Table(), batch)["time"].backward()
    assert objective.log_temperature.grad.abs() > 0
    low, floor = (TimeContrastive(temperature=t, floor=0.1)(Table(), batch)["time"] for t in (0.001, 0.1))
    assert float(low.detach()) == pytest.approx(float(floor.detach()))
    assert not TimeContrastive(learned=False).log_temperature.requires_grad


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 'time', 'behaviour' or 'hybrid'"):
        TimeContrastive("space")
    for wrong in ({"positives": "behaviour"}, {"behaviour": "speed"}):
        with pytest.raises(ValueError, match="name it unless they go by time"):
            TimeContrastive(**wrong)
    with pytest.raises(ValueError, match="one point each"):
        TimeContrastive()(Table(), given(points=1))
    with pytest.raises(ValueError, match="the batch has no 'speed'"):
        TimeContrastive("behaviour", "speed")(Table(), given())


def walk(seed: int, bins: int = 6000, neurons: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """A smooth walk in a square `(bin, 2)`, and counts `(neuron, bin)` of neurons with narrow fields in it."""
    rng = np.random.default_rng(seed)
    kernel = np.exp(-0.5 * (np.arange(-60, 61) / 15) ** 2)
    smooth = np.stack([np.convolve(rng.normal(size=bins + 120), kernel, "valid")[:bins] for _ in range(2)], axis=1)
    place = 2 * ndtr(smooth / smooth.std(axis=0)) - 1
    centre = np.random.default_rng(99).uniform(-1.1, 1.1, (neurons, 2))
    rate = np.exp(-((place[:, None] - centre) ** 2).sum(axis=2) / 2 / 0.25**2)
    return place, rng.poisson(rate).T


def linear_r2(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> float:
    one, other = (np.column_stack([part, np.ones(len(part))]) for part in (x, x_test))
    error = y_test - other @ np.linalg.lstsq(one, y, rcond=None)[0]
    return float(np.mean(1 - error.var(axis=0) / y_test.var(axis=0)))


@pytest.mark.slow
def test_a_planted_latent_is_found_in_time_alone_and_not_by_principal_components(batch_of) -> None:
    (place, counts), (later, unseen) = walk(0), walk(1)
    torch.manual_seed(0)
    facts = Facts(modality=("spikes",), neurons=tuple(f"d/1/{i}" for i in range(60)))
    model, objective = population_encoder.build(facts, hidden=32, dim=3), TimeContrastive()
    optimiser = torch.optim.AdamW([*model.parameters(), *objective.parameters()], 3e-3)
    rng = np.random.default_rng(0)
    for _ in range(250):
        batch = batch_of(np.stack([counts[:, s : s + 15] for s in rng.integers(0, 5985, 128)]))
        optimiser.zero_grad()
        objective(model, batch)["time"].backward()
        optimiser.step()
    with torch.inference_mode():
        found = [model.encode(batch_of(x[None])).tokens[0].numpy() for x in (counts, unseen)]
    smooth = [np.stack([np.convolve(row, np.ones(10) / 10, "valid") for row in x], axis=1) for x in (counts, unseen)]
    axes = np.linalg.svd(smooth[0] - smooth[0].mean(axis=0), full_matrices=False)[2][:3].T
    middle = place[4:-5], later[4:-5]
    ours = linear_r2(found[0], middle[0], found[1], middle[1])
    assert ours > 0.8
    assert linear_r2(smooth[0] @ axes, middle[0], smooth[1] @ axes, middle[1]) < 0.65 < ours
