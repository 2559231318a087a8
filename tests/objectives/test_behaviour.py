"""Behaviour against a slow loop; gaps, weights, classes, and which neurons stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from brainfm.layers.tables import Standard
from brainfm.objectives.behaviour import Behaviour, moments, triangular
from brainfm.tokens import TokenBatch

torch.set_num_threads(1)


class Says(nn.Module):
    """Gives fixed answers, and keeps the batch that it was asked with."""

    def __init__(self, weight: str | None = None, classes: tuple[str, ...] = (), **said: Tensor) -> None:
        super().__init__()
        self.said, self.weight, self.classes, self.targets = said, weight, classes, dict.fromkeys(said)
        self.window_s = 1.0
        self.standard = nn.ModuleDict({n: Standard(2, x.shape[-1]) for n, x in said.items() if n not in classes})

    def forward(self, batch: TokenBatch) -> dict[str, Tensor]:
        self.asked = batch
        return {name: x for name, x in self.said.items() if name in batch.aligned}


def windows(samples: int, channels: int = 50, **aligned: Tensor) -> TokenBatch:
    one = torch.ones(samples, 1)
    aligned = {
        "neuron": torch.arange(channels).repeat(samples, 1), "session": torch.arange(samples) % 2, **aligned,
    }  # fmt: skip
    return TokenBatch(
        one[..., None], one * 0.1, torch.zeros(samples, 1, dtype=torch.int64), torch.zeros(samples, channels, 3),
        torch.zeros(samples, channels, 3), torch.full((samples, channels), 7), one.bool(), aligned=aligned,
    )  # fmt: skip


def test_error_equals_a_slow_loop_and_leaves_gaps_out() -> None:
    make = torch.Generator().manual_seed(0)
    said, truth = torch.randn(4, 6, 2, generator=make), torch.randn(4, 6, 2, generator=make) * 0.1 + 3
    truth[0, :4, 0] = torch.nan
    truth[2] = torch.nan
    weight = torch.rand(4, 3, 1, generator=make)
    weight[1, 0] = torch.nan
    model = Says("worth", velocity=said.requires_grad_())
    parts = Behaviour().train()(model, windows(4, velocity=truth, worth=weight))
    total = count = 0.0
    values = truth.numpy()
    for b in range(4):
        for c in range(2):
            own = values[b % 2 :: 2, :, c]  # of the session
            mean, spread = np.nanmean(own), np.nanstd(own)
            for t in range(6):
                w = float(weight[b, t // 2, 0])
                if np.isfinite(values[b, t, c]) and np.isfinite(w):
                    total += w * (said[b, t, c].item() - (values[b, t, c] - mean) / spread) ** 2
                    count += w
    assert parts["velocity"].item() == pytest.approx(total / count, rel=1e-4)
    parts["velocity"].backward()
    assert float(said.grad[2].abs().sum()) == 0
    assert torch.isfinite(said.grad).all()


def test_behaviour_that_is_missing_costs_nothing() -> None:
    model = Says(velocity=torch.ones(2, 3, 2, requires_grad=True))
    for gap in (torch.full((2, 3, 2), torch.nan), torch.full((2, 1, 1), torch.nan)):
        said = Says(velocity=torch.ones(2, gap.shape[1], 2, requires_grad=True))
        parts = Behaviour().train()(said, windows(2, velocity=gap))
        assert float(parts["velocity"]) == 0
    with pytest.raises(ValueError, match="1 features; the model reads out 2"):
        Behaviour()(model, windows(2, velocity=torch.zeros(2, 3, 1)))
    with pytest.raises(ValueError, match="reads out"):
        Behaviour()(model, windows(2))


def test_moments_gather_in_training_alone_and_by_session() -> None:
    truth = torch.stack((torch.arange(6.0), torch.arange(6.0) * 10 + 100))[..., None]
    model = Says(velocity=torch.zeros(2, 6, 1))
    standard = model.standard["velocity"]
    Behaviour().eval()(model, windows(2, velocity=truth))
    assert float(standard.count.sum()) == 0
    for _ in range(3):
        Behaviour().train()(model, windows(2, velocity=truth))
    mean, spread = standard.moments(torch.tensor([0, 1]))
    torch.testing.assert_close(mean[:, 0, 0], torch.tensor([2.5, 125.0]))
    torch.testing.assert_close(spread[:, 0, 0], truth[..., 0].std(1, correction=0))
    standard.add(1)
    assert standard.moments(torch.tensor([2]))[1].item() == 1


def test_moments_of_a_constant_have_deviation_one() -> None:
    standard = Standard(1, 1)
    standard.observe(moments(torch.full((4, 5, 1), 0.1), torch.zeros(4, dtype=torch.int64), 1))
    mean, spread = standard.moments(torch.tensor([0]))
    assert mean.item() == pytest.approx(0.1)
    assert spread.item() == 1


def test_explained_variance() -> None:
    truth = torch.randn(2, 50, 1, generator=torch.Generator().manual_seed(0))
    model = Says(velocity=truth.clone())
    model.standard["velocity"].observe(torch.tensor([1.0, 0.0, 1.0])[:, None, None].expand(3, 2, 1))
    assert float(Behaviour().eval()(model, windows(2, velocity=truth))["metric_r2_velocity"]) == pytest.approx(1.0)
    model.said["velocity"] = truth.mean().expand(2, 50, 1)
    assert float(Behaviour().eval()(model, windows(2, velocity=truth))["metric_r2_velocity"]) == pytest.approx(
        0.0, abs=1e-5
    )


def test_classes_by_cross_entropy() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([[0.0, 3.0, torch.nan], [1.0, torch.nan, 2.0]])[..., None]
    parts = Behaviour()(Says(classes=("reach",), reach=logits), windows(2, reach=label))
    known = [(b, t) for b in range(2) for t in range(3) if label[b, t].isfinite()]
    slow = [-logits[b, t].log_softmax(0)[int(label[b, t])] for b, t in known]
    assert float(parts["reach"]) == pytest.approx(float(sum(slow)) / 4, rel=1e-5)
    right = sum(int(logits[b, t].argmax() == int(label[b, t])) for b, t in known)
    assert float(parts["metric_accuracy_reach"]) == pytest.approx(right / 4)
    with pytest.raises(ValueError, match="class 0 to 4; the model was built for 0 to 3"):
        Behaviour()(Says(classes=("reach",), reach=logits), windows(2, reach=label + 1))


def test_neurons_stay_at_random_as_the_samples_seed_says() -> None:
    batch = windows(400, channels=60, velocity=torch.zeros(400, 1, 1))
    batch.aligned["neuron"][:, 50:] = -1
    batch.aligned["draw"] = torch.arange(400)
    model = Says(velocity=torch.zeros(400, 1, 1))
    objective = Behaviour((10, 20, 40)).train()
    objective(model, batch)
    kept = model.asked.aligned["neuron"] >= 0
    count = kept.sum(1)
    assert 10 <= int(count.min()) < int(count.max()) <= 40
    assert float(count.float().mean()) == pytest.approx(70 / 3, abs=1.5)
    assert not kept[:, 50:].any()
    assert float(kept[:, :50].float().mean(0).std()) < 0.05  # none is favoured
    again = Says(velocity=torch.zeros(5, 1, 1))
    objective(again, batch.rows(torch.tensor([7, 3, 300, 2, 9])))
    assert torch.equal(again.asked.aligned["neuron"][0], model.asked.aligned["neuron"][7])
    objective.eval()(model, batch)
    assert torch.equal(model.asked.aligned["neuron"], batch.aligned["neuron"])
    for keep in (None, (50, 60, 70)):
        Behaviour(keep).train()(model, batch)
        assert torch.equal(model.asked.aligned["neuron"], batch.aligned["neuron"])
    with pytest.raises(ValueError, match="do not fall"):
        Behaviour((10, 5, 20))


def test_triangular_has_its_mean_and_ends() -> None:
    drawn = torch.linspace(0, 1 - 1e-6, 10_001)
    count = triangular(drawn, 30, 100, 300)
    assert (int(count.min()), int(count.max())) == (30, 300)
    assert float(count.float().mean()) == pytest.approx(430 / 3, abs=0.5)
    assert int(count.mode().values) == pytest.approx(100, abs=3)
    assert triangular(drawn, 5, 5, 5).unique().tolist() == [5]
