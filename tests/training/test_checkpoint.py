"""Evaluation mode inside a block, and what it was afterwards."""

from __future__ import annotations

import pytest
from torch import nn

from brainfm.training.checkpoint import evaluating


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_restores_the_mode(training: bool) -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train(training)
    with evaluating(model) as inside:
        assert inside is model
        assert not any(part.training for part in model.modules())
    assert all(part.training is training for part in model.modules())


def test_a_part_in_training_mode_is_switched_too() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).eval()
    model[0].train()
    with evaluating(model):
        assert not model[0].training


def test_nothing_is_switched_where_all_evaluates(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).eval()
    monkeypatch.setattr(model, "train", lambda mode=True: pytest.fail("switching every part costs time"))
    with evaluating(model):
        pass
