"""Poisson loss over real responses, penalties that do not grow with neurons, and a correlation per neuron."""

import numpy as np
import pytest
import torch
from torch import nn

from brainfm.objectives.poisson_response import PoissonResponse, correlation
from brainfm.tokens import TokenBatch


class Told(nn.Module):
    """Expects what it is told; its read-out and core are weights of one."""

    def __init__(self, expected, response, real, neurons=4, frozen=False):
        super().__init__()
        self.expected, self.said = expected, (response, real)
        self.readout = nn.Module()
        self.readout.weight = nn.Parameter(torch.ones(neurons, 3))
        self.core = nn.Parameter(-torch.ones(5), requires_grad=not frozen)

    def core_weights(self):
        return (p for p in [self.core] if p.requires_grad)

    def forward(self, batch):
        return self.expected

    def target(self, batch):
        return self.said


def batch(neuron):
    n, c = neuron.shape
    return TokenBatch(
        torch.zeros(n, c, 1), torch.zeros(n, c), torch.arange(c).expand(n, -1), torch.zeros(n, c, 3),
        torch.zeros(n, c, 3), torch.zeros(n, c, dtype=torch.int64), torch.ones(n, c, dtype=torch.bool), (c, 1), 1.0,
        {"neuron": neuron},
    )  # fmt: skip


def drawn(seed=0):
    torch.manual_seed(seed)
    expected, response = torch.rand(6, 4, 2) + 0.1, torch.randint(0, 4, (6, 4, 2)).float()
    real = torch.rand(6, 4, 2) > 0.3
    return expected, response, real, torch.arange(4).expand(6, -1)


def test_the_loss_against_a_loop_with_padding_left_out():
    expected, response, real, neuron = drawn()
    x, y = expected.numpy(), response.numpy()
    total = [x[i] - y[i] * np.log(x[i]) for i in np.ndindex(6, 4, 2) if real[i]]
    found = PoissonResponse()(Told(expected, response, real), batch(neuron))
    assert float(found["poisson"]) == pytest.approx(np.mean(total), rel=1e-5)
    garbage = expected.clone(), response.clone()
    for x in garbage:
        x[~real] = torch.rand(int((~real).sum())) * 100
    again = PoissonResponse()(Told(*garbage, real), batch(neuron))
    assert torch.equal(found["poisson"], again["poisson"])
    assert torch.equal(found["metric_correlation"], again["metric_correlation"])


def test_the_true_rate_has_the_smallest_loss():
    _, _, _, neuron = drawn()
    rate = torch.rand(6, 4, 2) * 3 + 0.2
    real = torch.ones_like(rate, dtype=torch.bool)
    best = PoissonResponse()(Told(rate, rate, real), batch(neuron))["poisson"]
    for factor in (0.8, 1.25):
        assert PoissonResponse()(Told(factor * rate, rate, real), batch(neuron))["poisson"] > best


def test_penalties_count_absolute_weights_and_not_neurons():
    expected, response, real, neuron = drawn()
    few, many = (
        PoissonResponse(core_l1=0.1, readout_l1=0.01)(Told(expected, response, real, n), batch(neuron)) for n in (4, 40)
    )
    assert few["core_l1"].item() == pytest.approx(0.5)
    assert few["readout_l1"].item() == many["readout_l1"].item() == pytest.approx(0.03)
    assert "core_l1" not in PoissonResponse()(Told(expected, response, real, frozen=True), batch(neuron))


def test_the_correlation_is_each_neurons_own_over_mixed_animals():
    expected, response, real, _ = drawn(1)
    neuron = torch.tensor([[0, 1, 2, 3]] * 3 + [[4, 5, -1, -1]] * 3)
    real[3:, 2:] = False
    found = correlation(expected, response, real, neuron)
    each = []
    for n in range(6):
        here = real & (neuron == n)[..., None]
        x, y = expected[here].numpy(), response[here].numpy()
        if len(x) > 1 and x.std() > 0 and y.std() > 0:
            each.append(np.corrcoef(x, y)[0, 1])
    assert float(found) == pytest.approx(np.mean(each), abs=1e-5)
    offset = expected + 10.0 * neuron.clamp_min(0)[..., None]
    assert float(correlation(offset, response, real, neuron)) == pytest.approx(float(found), abs=1e-4)


def test_negative_responses_are_refused():
    expected, response, real, neuron = drawn()
    response[tuple(real.nonzero()[0])] = -0.5
    with pytest.raises(ValueError, match=r"a response of -0\.5; a Poisson loss needs counts or activity from 0 up"):
        PoissonResponse()(Told(expected, response, real), batch(neuron))
