"""NextSpike and Contrastive against slow loops, and their edges."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from brainfm.layers.tables import Standard
from brainfm.objectives.contrastive import Contrastive
from brainfm.objectives.next_spike import NextSpike, bits_per_spike
from brainfm.tokens import TokenBatch

torch.set_num_threads(1)


class Says(nn.Module):
    """Gives fixed predictions or fixed features; "speed" is a number and "reach" one of three classes."""

    def __init__(self, **said: object) -> None:
        super().__init__()
        self.said, self.classes, self.weight, self.window_s = said, ("reach",), None, 1.0
        self.standard = nn.ModuleDict({"speed": Standard(2, 1)})

    def forward(self, batch: TokenBatch) -> SimpleNamespace:
        return SimpleNamespace(**self.said)

    def alignment_features(self, batch: TokenBatch) -> dict[str, tuple[Tensor, Tensor]]:
        return self.said  # type: ignore[return-value]


def windows(samples: int, **aligned: Tensor) -> TokenBatch:
    time = torch.arange(samples, dtype=torch.float32)[:, None] * 0.01
    ones = torch.ones(samples, 1)
    aligned = {"neuron": torch.arange(3).expand(samples, -1), **aligned}
    return TokenBatch(
        ones[..., None], time, torch.zeros(samples, 1, dtype=torch.int64), torch.full((samples, 3, 3), torch.nan),
        torch.zeros(samples, 3, 3), torch.full((samples, 3), 7), ones.bool(), aligned=aligned,
    )  # fmt: skip


def test_loss_equals_a_slow_loop_and_ignores_padding() -> None:
    make = torch.Generator().manual_seed(0)
    neuron, bins = torch.randn(2, 4, 4, generator=make), torch.randn(2, 4, 6, generator=make)
    neuron_target = torch.tensor([[0, 2, 3, -100], [1, 3, -100, -100]])
    bin_target = torch.tensor([[0, 1, 5, -100], [4, 5, -100, -100]])
    model = Says(neuron=neuron, bin=bins, neuron_target=neuron_target, bin_target=bin_target, behaviour={})
    parts = NextSpike()(model, windows(2))
    for name, weight, logits, target in (("neuron", 0.6, neuron, neuron_target), ("bin", 0.4, bins, bin_target)):
        losses = [
            -logits[b, t].log_softmax(0)[target[b, t]] for b in range(2) for t in range(4) if target[b, t] >= 0
        ]  # fmt: skip
        assert float(parts[name]) == pytest.approx(weight * float(sum(losses)) / 5, rel=1e-5)
    right = sum(int(neuron[b, t].argmax() == neuron_target[b, t]) for b in range(2) for t in range(4))
    assert float(parts["metric_accuracy"]) == pytest.approx(right / 5)


def reading(**behaviour: Tensor) -> Says:
    """Says this behaviour of the last sample of each window, and nothing of spikes."""
    logits, target = torch.zeros(4, 1, 4), torch.full((4, 1), 3)
    return Says(neuron=logits, bin=logits, neuron_target=target, bin_target=target, behaviour=behaviour)


def test_behaviour_is_the_last_sample_in_units_of_its_session_where_it_is_there() -> None:
    model = reading(speed=torch.tensor([1.0, 0.5, 2.0, 7.0])[:, None, None], reach=torch.zeros(4, 1, 3))
    last = torch.tensor([30.0, 5.0, 10.0, torch.nan])
    batch = windows(
        4, speed=torch.stack((torch.full((4,), 99.0), last), 1)[..., None], session=torch.tensor([0, 1, 0, 1]),
        reach=torch.tensor([0.0, 2.0, torch.nan, 1.0])[:, None, None],
    )  # fmt: skip
    parts = NextSpike(behaviour_weight=0.5).train()(model, batch)
    # session 0 has mean 20 and deviation 10; session 1 a single sample, so 5 and 1
    assert float(parts["behaviour_speed"]) == pytest.approx(0.5 * ((1 - 1) ** 2 + (2 + 1) ** 2 + 0.5**2) / 3)
    assert float(parts["behaviour_reach"]) == pytest.approx(0.5 * math.log(3))
    assert float(parts["metric_accuracy_reach"]) == pytest.approx(1 / 3)
    before = model.standard["speed"].count.clone()
    NextSpike().eval()(model, batch)
    assert torch.equal(model.standard["speed"].count, before)


def test_behaviour_that_is_away_or_of_a_strange_recording() -> None:
    model = reading(speed=torch.zeros(4, 1, 1))
    assert not [k for k in NextSpike()(model, windows(4)) if "speed" in k]
    gap = NextSpike().train()(model, windows(4, speed=torch.full((4, 1, 1), torch.nan), session=torch.zeros(4).long()))
    assert float(gap["behaviour_speed"]) == 0
    for session in ({}, {"session": torch.tensor([0, 0, -1, 0])}):
        with pytest.raises(ValueError, match="add_sessions"):
            NextSpike()(model, windows(4, speed=torch.zeros(4, 2, 1), **session))


def test_bits_per_spike() -> None:
    target = torch.tensor([[0, 0, 1, 2, 4], [1, 2, 0, 4, -100]])
    neuron = torch.tensor([[0, 1, 2, -1], [0, 1, 2, -1]])
    counts = torch.tensor([3.0, 2.0, 2.0])
    rates = torch.cat((counts.log(), torch.tensor([-torch.inf, 0.0]))).expand(2, 5, -1)
    assert float(bits_per_spike(rates, target, neuron)) == pytest.approx(math.log2(9 / 7), rel=1e-5)
    sure = torch.full((2, 5, 5), -20.0).scatter(2, target.clamp_min(0)[..., None], 20.0)
    sure[..., 3] = -torch.inf
    bits = -(counts / 7 * (counts / 9).log2()).sum()  # counts of the other spikes plus one, of 6 others and 3 neurons
    assert float(bits_per_spike(sure, target, neuron)) == pytest.approx(float(bits), rel=1e-4)


def features(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 8, generator=make).requires_grad_(), torch.ones(samples, dtype=torch.bool)


def test_contrastive_equals_a_slow_loop_and_is_symmetric() -> None:
    (x, here), (y, _) = features(5), features(5, seed=1)
    batch = windows(5, speed=torch.randn(5, 2, 1))
    objective = Contrastive()
    loss = objective(Says(spikes=(x, here), speed=(y, here)), batch)["contrastive"]
    a, b = nn.functional.normalize(x, dim=1), nn.functional.normalize(y, dim=1)
    slow = 0.0
    for i in range(5):
        for p, q in ((a, b), (b, a)):
            slow -= (q @ p[i] / 0.07).log_softmax(0)[i].item()
    assert float(loss) == pytest.approx(0.25 * slow / 10, rel=1e-4)
    swapped = objective(Says(speed=(y, here), spikes=(x, here)), batch)["contrastive"]
    assert float(swapped) == pytest.approx(float(loss), rel=1e-6)
    loss.backward()
    assert objective.log_scale.grad is not None


def test_contrastive_is_zero_and_finite_where_it_has_nothing_to_say() -> None:
    (x, here), (y, _) = features(4), features(4, seed=1)
    objective, batch = Contrastive(), windows(4, speed=torch.zeros(4, 1, 1))
    cases = (
        {},
        {"spikes": (x, here)},
        {"spikes": (x, here), "speed": (y, ~here)},
        {"spikes": (x, here), "speed": (y, torch.tensor([True, False, False, False]))},
    )
    for said in cases:
        loss = objective(Says(**said), batch)["contrastive"]
        assert float(loss) == 0
        loss.backward()
    alone = objective(Says(spikes=(x[:1], here[:1]), speed=(y[:1], here[:1])), windows(1, speed=torch.zeros(1, 1, 1)))
    assert float(alone["contrastive"]) == 0


def test_absent_samples_do_not_count() -> None:
    (x, here), (y, _) = features(4), features(4, seed=1)
    speed = torch.randn(4, 2, 1, generator=torch.Generator().manual_seed(2))
    some = torch.tensor([True, True, True, False])
    broken = torch.where(some[:, None], y, torch.nan)
    objective = Contrastive()
    part = objective(Says(spikes=(x, here), speed=(broken, some)), windows(4, speed=speed))["contrastive"]
    few = objective(Says(spikes=(x[:3], here[:3]), speed=(y[:3], here[:3])), windows(3, speed=speed[:3]))["contrastive"]
    assert float(part) == pytest.approx(float(few), rel=1e-5)


def test_the_same_content_is_not_a_negative() -> None:
    (x, here), (y, _) = features(3), features(3, seed=1)
    speed = torch.tensor([1.0, 1.0, 2.0])[:, None, None]
    loss = Contrastive()(Says(spikes=(x, here), speed=(y, here)), windows(3, speed=speed))["contrastive"]
    score = nn.functional.normalize(x, dim=1) @ nn.functional.normalize(y, dim=1).T / 0.07
    score = score.detach().clone()
    score[0, 1] = score[1, 0] = -torch.inf
    slow = -(score.log_softmax(1).diagonal() + score.log_softmax(0).diagonal()).mean() / 2
    assert float(loss) == pytest.approx(0.25 * float(slow), rel=1e-4)


def test_temperature_is_held() -> None:
    (x, here), objective = features(3), Contrastive()
    objective.log_scale.data.fill_(50.0)
    loss = objective(Says(spikes=(x, here), speed=(x, here)), windows(3, speed=torch.randn(3, 1, 1)))["contrastive"]
    held = Contrastive(temperature=0.01)
    assert held.log_scale.item() == pytest.approx(math.log(100))
    same = held(Says(spikes=(x, here), speed=(x, here)), windows(3, speed=torch.randn(3, 1, 1)))["contrastive"]
    assert float(loss) == pytest.approx(float(same), abs=1e-6)


RANKS = """
import sys, torch
from torch import distributed
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_neuroformer import build, spikes
from brainfm.objectives.contrastive import Contrastive
from brainfm.objectives.next_spike import NextSpike

def gradients(batch):
    model, objectives = build(predict=(), modality_dropout=0.5).train(), (NextSpike(), Contrastive())
    parts = {k: v for objective in objectives for k, v in objective(model, batch).items() if "metric" not in k}
    sum(parts.values()).backward()
    found = dict(model.named_parameters()) | dict(objectives[1].named_parameters())
    return parts, {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in found.items()}

batch, rank = spikes(5), int(sys.argv[3])
batch.aligned["draw"] = torch.arange(5)
batch.aligned["velocity"][1] = batch.aligned["velocity"][0]  # twins on different ranks
batch.aligned["stimulus"][3] = torch.nan
parts, whole = gradients(batch)
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
shared, own = gradients(batch.rows(torch.arange(rank, 5, 2)))
for name, value in parts.items():
    torch.testing.assert_close(shared[name], value, rtol=1e-4, atol=1e-5)
for name, value in whole.items():
    distributed.all_reduce(own[name])
    torch.testing.assert_close(own[name] / 2, value, rtol=1e-3, atol=1e-5, msg=lambda m: name + m)
"""


@pytest.mark.slow
def test_two_ranks_have_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    models = str(Path(__file__).parents[1] / "models")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, models, str(tmp_path / "meet"), str(rank)],
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for one in ranks:
        _, said = one.communicate(timeout=120)
        assert one.returncode == 0, said[-2000:]
