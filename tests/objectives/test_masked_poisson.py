"""What the masked Poisson objective hides, and that its loss is that of a slow loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from brainfm.layers import draws
from brainfm.objectives.masked_poisson import MaskedPoisson


class Constant(nn.Module):
    """Says the same log rate of every count."""

    def log_rates(self, batch, hidden):
        return torch.full((len(batch), *batch.grid), 0.3)


def counts(windows: int = 400, neurons: int = 8, bins: int = 20) -> np.ndarray:
    return np.random.default_rng(0).poisson(2.0, (windows, neurons, bins))


@pytest.mark.parametrize("span", [1, 3])
def test_spans_of_time_hide_all_neurons_and_the_share_that_was_asked(span: int, batch_of) -> None:
    torch.manual_seed(0)
    hidden = MaskedPoisson(share=0.25, span=span).hidden(batch_of(counts()))
    assert torch.equal(hidden.any(1), hidden.all(1))
    assert hidden.float()[..., span:].mean() == pytest.approx(0.25, abs=0.03)
    if span > 1:
        runs = torch.diff(hidden[:, 0].int(), dim=1, prepend=torch.zeros(400, 1, dtype=torch.int32)) == 1
        for row, starts in zip(hidden[:, 0], runs, strict=True):
            assert all(row[i : i + span].all() for i in starts.nonzero()[:, 0])


def test_neurons_and_the_end(batch_of) -> None:
    torch.manual_seed(0)
    some = MaskedPoisson(neurons=1.0).hidden(batch_of(counts()))
    assert torch.equal(some.any(2), some.all(2))
    assert some.float().mean() == pytest.approx(0.25, abs=0.03)
    end = MaskedPoisson(forward=1.0).hidden(batch_of(counts()))
    assert end[:, :, 15:].all()
    assert not end[:, :, :15].any()
    mixed = MaskedPoisson(neurons=0.3, forward=0.2).hidden(batch_of(counts()))
    ends = mixed[:, :, 15:].flatten(1).all(1) & ~mixed[:, :, :15].flatten(1).any(1)
    assert ends.float().mean() == pytest.approx(0.2, abs=0.06)


def test_padding_is_never_hidden_and_nothing_depends_on_the_rest_of_the_batch(batch_of) -> None:
    batch, objective = batch_of(counts(6)), MaskedPoisson(neurons=0.5)
    mask = batch.mask.unflatten(1, batch.grid)
    mask[0, 5:] = False
    mask[0, :, 15:] = False
    batch.aligned["draw"] = draws.mix(torch.arange(6))
    hidden = objective.hidden(batch)
    assert not (hidden & ~mask).any()
    alone = objective.hidden(batch.rows(torch.tensor([2, 4])))
    assert torch.equal(alone, hidden[[2, 4]])


def test_the_loss_is_that_of_a_slow_loop(batch_of) -> None:
    torch.manual_seed(0)
    batch, objective = batch_of(counts(5)), MaskedPoisson()
    batch.aligned["draw"] = draws.mix(torch.arange(5))
    hidden, total, n = objective.hidden(batch), 0.0, 0
    signal = batch.signal()
    for place in hidden.nonzero():
        total += np.exp(0.3) - float(signal[tuple(place)]) * 0.3
        n += 1
    said = objective(Constant(), batch)
    assert float(said["poisson"]) == pytest.approx(total / n, rel=1e-5)
    mean = signal.mean(dim=(0, 2))
    null = sum(float(mean[p[1]] - signal[tuple(p)] * mean[p[1]].log()) for p in hidden.nonzero())
    spikes = float(signal[hidden].sum())
    assert float(said["metric_bits_per_spike"]) == pytest.approx((null - total) / spikes / np.log(2), rel=1e-4)


@pytest.mark.parametrize("wrong", [{"share": 0}, {"share": 1.0}, {"span": 0}, {"neurons": 0.7, "forward": 0.4}])
def test_shares_that_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected a share inside 0 to 1"):
        MaskedPoisson(**wrong)
