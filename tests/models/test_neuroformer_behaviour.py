"""Neuroformer's behaviour heads: standardised per session, masked, classes too, asked for the last sample alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from brainfm.models import neuroformer
from brainfm.objectives.behaviour import Behaviour
from brainfm.objectives.next_spike import NextSpike
from brainfm.recording import KINDS
from brainfm.tokens import Facts, TokenBatch

torch.set_num_threads(1)

SESSIONS = ("sim/a/1", "sim/a/2")
FACTS = Facts(
    modality=("spikes",), kinds=("neuron",), window_s=0.2, channels=6, subjects=("sim/a",), sessions=SESSIONS,
    neurons=tuple(f"sim/a/{i}" for i in range(6)), aligned={"velocity": 2, "reach": 1, "worth": 1},
)  # fmt: skip


def build(**keywords: object) -> neuroformer.Neuroformer:
    torch.manual_seed(0)
    given = {"predict": ("velocity", "reach"), "classes": {"reach": 3}, "behaviour": (), **keywords}
    return neuroformer.build(FACTS, **{**neuroformer.SIZES["test"], "modality_dropout": 0.0, **given}).eval()


def windows(samples: int = 12, seed: int = 0) -> TokenBatch:
    """Random spikes; the hand's velocity is that of px/s and differs between sessions, as does its mean."""
    make = torch.Generator().manual_seed(seed)
    session = torch.arange(samples) % 2
    velocity = torch.randn(samples, 4, 2, generator=make) * 100 * (1 + session)[:, None, None] + 300
    time = (torch.rand(samples, 15, generator=make) * 0.2).sort(1).values
    return TokenBatch(
        torch.ones(samples, 15, 1), time, torch.randint(6, (samples, 15), generator=make),
        torch.full((samples, 6, 3), torch.nan), torch.zeros(samples, 6, 3),
        torch.full((samples, 6), KINDS.index("neuron")), torch.ones(samples, 15, dtype=torch.bool),
        aligned={
            "neuron": torch.arange(6).expand(samples, -1), "session": session, "velocity": velocity,
            "reach": torch.randint(3, (samples, 4, 1), generator=make).float(),
        },
    )  # fmt: skip


def changed(batch: TokenBatch, **aligned: Tensor) -> TokenBatch:
    return replace(batch, aligned={**batch.aligned, **aligned})


def fitted(model: neuroformer.Neuroformer, batch: TokenBatch, objective: torch.nn.Module, steps: int = 80) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        parts = objective.train()(model.train(), batch)
        optimiser.zero_grad()
        sum(v for k, v in parts.items() if not k.startswith("metric_")).backward()
        optimiser.step()
    model.eval()


@pytest.mark.parametrize("objective", [NextSpike(), Behaviour(None)], ids=["with spikes", "alone"])
def test_a_few_windows_are_learnt_by_heart_in_the_covariates_own_unit(objective: torch.nn.Module) -> None:
    model, batch = build(), windows()
    first = objective.train()(build(), batch)
    assert all(float(v.detach()) < 5 for k, v in first.items() if "velocity" in k), "it must not drown the spikes"
    fitted(model, batch, objective)
    said, truth = model.predict(batch), batch.aligned["velocity"][:, -1]
    assert said["velocity"].shape == (12, 1, 2)
    for session in (0, 1):
        rows = batch.aligned["session"] == session
        mine, own = said["velocity"][rows, 0], truth[rows]
        assert 1 - (mine - own).square().sum() / (own - own.mean(0)).square().sum() > 0.9
    assert (said["reach"][:, 0].argmax(-1) == batch.aligned["reach"][:, -1, 0]).all()


def test_the_unit_of_a_covariate_changes_no_loss() -> None:
    batch = windows()
    found = []
    for unit in (1.0, 100.0):
        model, scaled = build(), changed(batch, velocity=batch.aligned["velocity"] * unit)
        found.append(NextSpike().train()(model, scaled))
        fitted(model, scaled, NextSpike(), 3)
        found[-1]["after"] = NextSpike().eval()(model, scaled)["behaviour_velocity"]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-4)


def test_a_gap_costs_nothing_and_gives_no_gradient() -> None:
    model, batch = build(), windows()
    holed = batch.aligned["velocity"].clone()
    holed[::3, -1] = torch.nan
    some = torch.arange(12) % 3 > 0
    for head in model.standard.values():  # so that moments are the same on both sides
        head.observe(torch.tensor([2.0, 600.0, 2e5])[:, None, None].expand(3, 2, 2))
    parts = NextSpike().eval()(model, changed(batch, velocity=holed))
    few = NextSpike().eval()(model, batch.rows(some.nonzero()[:, 0]))
    torch.testing.assert_close(parts["behaviour_velocity"], few["behaviour_velocity"])
    nothing = NextSpike().train()(model, changed(batch, velocity=torch.full_like(holed, torch.nan)))
    nothing["behaviour_velocity"].backward()
    assert float(nothing["behaviour_velocity"]) == 0
    assert not any(p.grad is not None and p.grad.any() for p in model.to_behaviour["velocity"].parameters())


def test_a_weight_says_which_windows_count() -> None:
    model, batch = build(weight="worth"), windows()
    assert model.aligned == ("velocity", "reach", "worth")
    half = (torch.arange(12) % 3 == 0).float()[:, None, None].repeat(1, 2, 1)
    weighed = Behaviour(None).eval()(model, changed(batch, worth=half))
    few = Behaviour(None).eval()(model, batch.rows(torch.arange(0, 12, 3)))
    for name in ("velocity", "reach"):
        torch.testing.assert_close(weighed[name], few[name])


def test_it_is_asked_for_the_last_sample_and_no_other() -> None:
    model, batch = build(), windows()
    times = model.times(batch)
    torch.testing.assert_close(times["velocity"], torch.tensor([0.15]))
    assert torch.equal(model.predict(batch, times)["velocity"], model.predict(batch)["velocity"])
    assert set(model.predict(batch, {"reach": times["reach"]})) == {"reach"}
    with pytest.raises(ValueError, match="answered at its last sample"):
        model.predict(batch, {"velocity": torch.tensor([0.1])})
    taken = torch.tensor([[0.0, 0.05, 0.1, 0.15], [0.01, 0.06, 0.11, 0.16]]).repeat(6, 1)
    own = model.times(changed(batch, **{"velocity/time": taken}))["velocity"]
    assert torch.equal(own, taken[:, -1:])


def test_neither_encode_nor_an_answer_reads_what_is_to_be_answered() -> None:
    model, batch = build(), windows()
    other = changed(batch, velocity=-batch.aligned["velocity"], reach=2 - batch.aligned["reach"])
    assert torch.equal(model.encode(other).pooled, model.encode(batch).pooled)
    assert torch.equal(model.predict(other)["velocity"], model.predict(batch)["velocity"])
    gone = replace(batch, aligned={k: batch.aligned[k] for k in ("neuron", "session")})
    assert torch.equal(model.predict(gone)["reach"], model.predict(batch)["reach"])


@pytest.mark.parametrize("name", ["worth", "reach"])
def test_an_answer_reads_no_other_behaviour_either(name: str) -> None:
    """An input such as the position would tell the velocity without a spike; the spikes to predict may see it."""
    model, batch = build(predict=("velocity",), classes={}, behaviour=("worth", "reach")), windows()
    batch = changed(batch, worth=batch.aligned["velocity"][..., :1] / 100)
    other = changed(batch, **{name: -batch.aligned[name]})
    assert torch.equal(model.predict(other)["velocity"], model.predict(batch)["velocity"])
    assert not torch.equal(model(other).neuron, model(batch).neuron)
    read = model.to_behaviour["velocity"](model.encode(batch).pooled)
    assert torch.equal(read[:, None], model(batch).behaviour["velocity"])
    Behaviour(None).train()(model.train(), batch)["velocity"].backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.value.parameters())


def test_new_recordings_have_a_mean_and_a_deviation_of_their_own_and_are_saved() -> None:
    model, batch = build(), windows()
    strange = changed(batch, session=torch.where(batch.aligned["session"] == 1, -1, 0))
    with pytest.raises(ValueError, match="does not know"):
        model.predict(strange)
    assert model.add_sessions(["sim/b/1", "sim/a/2"]) == [2, 1]
    assert model.sessions == [*SESSIONS, "sim/b/1"]
    known = changed(batch, session=torch.full((12,), 2))
    NextSpike().train()(model, known)
    mean, spread = model.standard["velocity"].moments(torch.tensor([2]))
    torch.testing.assert_close(mean[0, 0], batch.aligned["velocity"][:, -1].mean(0))
    torch.testing.assert_close(spread[0, 0], batch.aligned["velocity"][:, -1].std(0, correction=0))
    fresh = neuroformer.build(
        replace(FACTS, sessions=tuple(model.sessions)), **neuroformer.SIZES["test"], predict=("velocity", "reach"),
        classes={"reach": 3}, behaviour=(),
    ).eval()  # fmt: skip
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh.predict(known)["velocity"], model.predict(known)["velocity"])


@pytest.mark.parametrize(
    "keywords", [{"classes": {"velocity": 2}, "predict": ("reach",)}, {"weight": "nix"}, {"behaviour": ("velocity",)}]
)
def test_covariates_that_do_not_fit_are_refused(keywords: dict) -> None:
    with pytest.raises(ValueError, match="name each of"):
        build(**keywords)
    with pytest.raises(ValueError, match="class 0 to 2; the model was built for 0 to 1"):
        NextSpike()(build(classes={"reach": 2}), windows())
