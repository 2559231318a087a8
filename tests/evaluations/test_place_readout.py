"""Place as a cell: the most likely one where a mean would lie between, and near enough where the encoding says it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from brainfm.evaluations.continuous import Readout
from brainfm.evaluations.place_readout import Places


class Said(nn.Module):
    """A network whose pooled encodings are given in place of a batch."""

    def encode(self, batch: Tensor) -> SimpleNamespace:
        return SimpleNamespace(pooled=batch)


def taught(readout: Places | Readout, encoded: Tensor, place: np.ndarray, steps: int = 300) -> np.ndarray:
    truth = torch.tensor(place, dtype=torch.float32)
    optimiser = torch.optim.Adam(readout.parameters(), 0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        readout.loss(encoded, truth).backward()
        optimiser.step()
    return readout(encoded).detach().numpy()


def test_without_a_clue_it_says_where_the_animal_mostly_is_and_a_mean_does_not() -> None:
    place = np.r_[np.full(70, 0.0), np.full(30, 100.0)][:, None]
    nothing = torch.ones(100, 3)
    torch.manual_seed(0)
    cell = taught(Places(Said(), place, 3, cells=10), nothing, place)
    mean = taught(Readout(Said(), place, 3), nothing, place)
    assert np.median(np.abs(cell - place)) <= 5.0 + 1e-4
    assert np.median(np.abs(mean - place)) == pytest.approx(30.0, abs=1.0)


def test_what_the_encoding_tells_is_found_within_a_cell_in_two_axes() -> None:
    rng = np.random.default_rng(0)
    place = rng.uniform((-20.0, 5.0), (60.0, 25.0), size=(400, 2))
    bumps = torch.tensor(rng.uniform((-20.0, 5.0), (60.0, 25.0), size=(60, 2)))
    encoded = torch.exp(-torch.cdist(torch.tensor(place), bumps).square() / 2 / 8.0**2).float()
    torch.manual_seed(0)
    found = taught(Places(Said(), place, 60, cells=8), encoded, place, 600)
    assert np.median(np.linalg.norm(found - place, axis=1)) < 10.0, "cells are 10 wide"
    assert len(np.unique(found, axis=0)) > 8


def test_gradients_reach_the_network() -> None:
    place = np.linspace(0, 10, 20)[:, None]
    encoded = torch.randn(20, 4, requires_grad=True)
    Places(Said(), place, 4, cells=5).loss(encoded, torch.tensor(place).float()).backward()
    assert encoded.grad is not None
    assert encoded.grad.abs().sum() > 0


@pytest.mark.parametrize(("columns", "cells"), [(3, 10), (1, 1)])
def test_cells_of_what_is_no_place_are_refused(columns: int, cells: int) -> None:
    with pytest.raises(ValueError, match="leave `cells` out"):
        Places(Said(), np.zeros((5, columns)), 4, cells=cells)
