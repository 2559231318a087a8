"""Input layers of people: the identity at the start, each person's own, the mean for strangers."""

from __future__ import annotations

import pytest
import torch

from brainfm.layers.mixing import Mixing


def test_identity_then_own_matrices_and_the_mean_for_strangers() -> None:
    torch.manual_seed(0)
    layer, x = Mixing(2, 3), torch.randn(4, 3, 5)
    person = torch.tensor([0, 1, -1, 0])
    torch.testing.assert_close(layer(x, person), x)
    torch.nn.init.normal_(layer.weight)
    found = layer(x, person)
    for i, matrix in enumerate((layer.weight[0], layer.weight[1], layer.weight.mean(0), layer.weight[0])):
        torch.testing.assert_close(found[i], matrix @ x[i])
    deeper = torch.randn(4, 3, 5, 2)
    torch.testing.assert_close(layer(deeper, person)[..., 1], layer(deeper[..., 1], person))
    torch.testing.assert_close(Mixing(0, 3)(x, torch.full((4,), -1)), x)
    with pytest.raises(ValueError, match="4 channels; this layer mixes 3: give the channels it was fitted on"):
        layer(torch.randn(1, 4, 5), person[:1])


def test_only_the_person_at_hand_gets_a_gradient() -> None:
    layer = Mixing(3, 2)
    layer(torch.randn(4, 2, 5), torch.tensor([1, 1, 1, 1])).square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad[1].abs().sum() > 0
    assert not layer.weight.grad[[0, 2]].any()
