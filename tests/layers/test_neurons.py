"""Rows of neurons grow and are saved as one table; what is usual for a neuron is gathered in training alone."""

from __future__ import annotations

import pytest
import torch

from brainfm.layers.neurons import NeuronTable, UsualCounts, train_only


def test_padding_has_no_row_and_like_samples_share_theirs() -> None:
    table = NeuronTable(["a", "b", "c"], 4, std=1.0)
    rows = table.of(torch.tensor([[2, -1], [0, 1]]))
    assert torch.equal(rows[0, 0], table.known[2])
    assert not rows[0, 1].any()
    assert torch.equal(rows[1], table.known[:2])
    assert table.of(torch.tensor([[2, 0], [2, 0]])).shape == (1, 2, 4)


def test_a_table_that_grew_saves_and_loads_as_one() -> None:
    table = NeuronTable(["a", "b"], 3, std=0.5)
    assert table.newest() is table.known
    assert table.add(["c", "a", "c", "d"]) == [2, 0, 2, 3]
    assert table.newest() is table.added
    assert table.add(["e"]) == [4]
    state = table.state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == {"known": (5, 3)}
    whole = NeuronTable(table.ids, 3, std=0.5)
    whole.load_state_dict(state)
    assert torch.equal(whole.rows(), table.rows())
    table.load_state_dict(whole.state_dict())
    assert table.added.shape == (3, 3)


def test_train_only_drops_gradients_that_are_there() -> None:
    model = torch.nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    train_only(model, [model.bias])
    assert model.weight.grad is None
    assert not model.weight.requires_grad
    assert model.bias.requires_grad


def test_roots_come_in_units_of_their_neuron() -> None:
    torch.manual_seed(0)
    usual = UsualCounts(3)
    number = torch.tensor([[0, 2]]).expand(50, -1)
    counts = torch.poisson(torch.tensor([0.3, 6.0])[:, None].expand(50, 2, 20))
    real = torch.ones_like(counts, dtype=torch.bool)
    assert torch.equal(usual.eval()(counts, real, number), counts.sqrt()), "nothing is known yet"
    usual.train()(counts, real, number)
    x = usual.eval()(counts, real, number)
    torch.testing.assert_close(x.mean(dim=(0, 2)), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(x.std(dim=(0, 2)), torch.ones(2), atol=1e-2, rtol=0)
    assert usual.known[1].tolist() == [0, 0, 0]
    before = usual.known.clone()
    usual(counts * 2, real, number)
    assert torch.equal(usual.known, before), "evaluation changes nothing"


def test_padding_does_not_count_and_many_batches_average() -> None:
    usual = UsualCounts(2).train()
    number, counts = torch.tensor([[0, -1]]), torch.full((1, 2, 4), 4.0)
    real = torch.zeros(1, 2, 4, dtype=torch.bool)
    real[0, 0, :2] = True
    counts[~real] = 99.0
    usual(counts, real, number)
    assert usual.known[0].tolist() == [1, 2, 4]
    counts[real] = 16.0
    usual(counts, real, number)
    assert usual.known[0].tolist() == pytest.approx([2, 3, 10])
    usual.add(4)
    assert usual.known.shape == (4, 3)
    assert usual.known[0].tolist() == pytest.approx([2, 3, 10])
