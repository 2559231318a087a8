"""POYO: equal to a plain restatement and to torch_brain, blind to padding, bounded in memory, open to new animals."""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from brainfm.models import poyo
from brainfm.models.poyo_weights import converted
from brainfm.objectives.behaviour import Behaviour
from brainfm.recording import KINDS
from brainfm.tokens import Facts, TokenBatch

torch.set_num_threads(1)

NEURONS = tuple(f"sim/a/{i:02d}" for i in range(12))
FACTS = Facts(
    modality=("spikes",), kinds=("neuron",), window_s=1.0, channels=12, subjects=("sim/a",), neurons=NEURONS,
    sessions=("sim/a/1", "sim/a/2"), aligned={"velocity": 2},
)  # fmt: skip


def build(facts: Facts = FACTS, **keywords: object) -> poyo.Poyo:
    torch.manual_seed(0)
    return poyo.build(facts, **{**poyo.SIZES["test"], "head_dim": 16, **keywords}).eval()


def spikes(samples: int = 3, most: int = 40, channels: int = 12, seed: int = 0, least: int | None = None) -> TokenBatch:
    """Random windows of 1 s with different numbers of spikes."""
    make = torch.Generator().manual_seed(seed)
    count = torch.randint(most // 2 if least is None else least, most + 1, (samples,), generator=make)
    count[0] = most
    mask = torch.arange(most) < count[:, None]
    time = torch.where(mask, torch.rand(samples, most, generator=make), 9.0).sort(dim=1).values.masked_fill(~mask, 0)
    return TokenBatch(
        mask.float()[..., None], time, torch.randint(channels, (samples, most), generator=make) * mask,
        torch.full((samples, channels, 3), torch.nan), torch.zeros(samples, channels, 3),
        torch.full((samples, channels), KINDS.index("neuron")), mask,
        aligned={
            "neuron": torch.arange(channels).repeat(samples, 1),
            "session": torch.arange(samples) % 2,
            "velocity": torch.randn(samples, 20, 2, generator=make),
        },
    )  # fmt: skip


def with_aligned(batch: TokenBatch, **changed: Tensor) -> TokenBatch:
    return replace(batch, aligned={**batch.aligned, **changed})


@pytest.mark.parametrize(("size", "count"), [("1.3M", 1_267_074), ("11.8M", 11_743_490)])
def test_published_sizes_have_the_published_number_of_parameters(size: str, count: int) -> None:
    with torch.device("meta"):
        model = poyo.build(poyo.FACTS, **poyo.SIZES[size])
    assert sum(p.numel() for p in model.parameters()) == count


def padded(batch: TokenBatch, tokens: int = 7, channels: int = 4) -> TokenBatch:
    """The same windows with padding whose content is rubbish."""
    n = len(batch)
    return replace(
        batch, values=torch.cat((batch.values, torch.ones(n, tokens, 1)), 1),
        time=torch.cat((batch.time, torch.full((n, tokens), 0.4)), 1),
        channel=torch.cat((batch.channel, torch.full((n, tokens), 2)), 1),
        mask=torch.cat((batch.mask, torch.zeros(n, tokens, dtype=torch.bool)), 1),
        kind=torch.cat((batch.kind, torch.full((n, channels), -1)), 1),
        aligned={**batch.aligned, "neuron": torch.cat((batch.aligned["neuron"], torch.full((n, channels), -1)), 1)},
    )  # fmt: skip


def test_padding_the_rest_of_the_batch_and_the_order_of_spikes_do_not_matter() -> None:
    model, batch = build(), spikes()
    whole = model(batch)["velocity"]
    torch.testing.assert_close(model(padded(batch))["velocity"], whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(batch.rows(torch.tensor([1])))["velocity"], whole[1:2], rtol=1e-5, atol=1e-6)
    order = torch.randperm(batch.time.shape[1])
    mixed = replace(
        batch, values=batch.values[:, order], time=batch.time[:, order], channel=batch.channel[:, order],
        mask=batch.mask[:, order],
    )  # fmt: skip
    torch.testing.assert_close(model(mixed)["velocity"], whole, rtol=1e-5, atol=1e-6)


def test_the_order_of_channels_with_their_numbers_does_not_matter() -> None:
    model, batch = build(), spikes()
    order = torch.randperm(12)
    other = replace(batch, channel=order.argsort()[batch.channel])
    other = with_aligned(other, neuron=batch.aligned["neuron"][:, order])
    torch.testing.assert_close(model(other)["velocity"], model(batch)["velocity"], rtol=1e-5, atol=1e-6)


def test_samples_of_equal_and_of_different_length_agree() -> None:
    model, equal = build(), spikes(least=40)
    ragged = spikes(4, most=60, seed=3, least=0)
    ragged = replace(ragged, mask=ragged.mask & (torch.arange(4) > 0)[:, None])  # the first one is silent
    for batch in (equal, ragged):
        each = torch.cat([model(batch.rows(torch.tensor([i])))["velocity"] for i in range(len(batch))])
        torch.testing.assert_close(model(batch)["velocity"], each, rtol=1e-5, atol=1e-6)


def test_silent_neurons_are_seen_and_absent_ones_are_not() -> None:
    model, batch = build(), spikes(1)
    batch = replace(batch, mask=batch.mask & (batch.channel != 3))
    absent = with_aligned(batch, neuron=batch.aligned["neuron"].masked_fill(torch.arange(12) == 3, -1))
    assert not torch.allclose(model.encode(absent).pooled, model.encode(batch).pooled, atol=1e-7)
    with torch.no_grad():
        model.neuron_table.weight[4] += 10.0  # neuron 3
    moved = model.encode(absent).pooled
    assert torch.equal(build().encode(absent).pooled, moved)


def test_nothing_is_asked_of_a_window_without_neurons() -> None:
    model, batch = build(), spikes()
    empty = with_aligned(batch, neuron=torch.full_like(batch.aligned["neuron"], -1))
    assert torch.isfinite(model(empty)["velocity"]).all()


def test_reads_out_at_any_time_and_in_the_covariates_unit() -> None:
    model, batch = build(), spikes()
    at = model.times(batch)["velocity"]
    torch.testing.assert_close(at, torch.arange(20) / 20)
    whole = model(batch)["velocity"]
    some = model(batch, {"velocity": at[[3, 11]]})["velocity"]
    torch.testing.assert_close(some, whole[:, [3, 11]])
    own = model(batch, {"velocity": torch.stack([at[[3]], at[[5]], at[[7]]])})["velocity"]
    torch.testing.assert_close(own[:, 0], whole[torch.arange(3), torch.tensor([3, 5, 7])])
    scaled = with_aligned(batch, velocity=batch.aligned["velocity"] * 0.1 + 5)
    Behaviour(None).train()(model, scaled)
    truth = scaled.aligned["velocity"][[0, 2]].flatten(0, 1)  # session 0
    mean, spread = truth.mean(0), truth.std(0, correction=0)
    torch.testing.assert_close(model.predict(batch)["velocity"][0], whole[0] * spread + mean, rtol=1e-4, atol=1e-4)


def test_windows_that_start_between_samples_are_asked_at_the_true_times() -> None:
    model, batch = build(), spikes()
    when = torch.arange(20) * 0.05 + torch.tensor([[0.0], [0.02], [0.049]])
    said = model(with_aligned(batch, **{"velocity/time": when}))["velocity"]
    torch.testing.assert_close(said, model(batch, {"velocity": when})["velocity"])
    assert (said - model(batch)["velocity"]).abs()[1:].max() > 1e-4
    even = with_aligned(batch, **{"velocity/time": when[:1].expand(3, -1)})
    assert torch.equal(model(even)["velocity"], model(batch)["velocity"])


def test_several_targets_are_asked_by_different_queries() -> None:
    facts = replace(FACTS, aligned={"velocity": 2, "reach": 1, "stimulus": 3})
    model = build(facts, classes={"reach": 4})
    assert model.aligned == ("reach", "velocity")
    batch = with_aligned(spikes(), reach=torch.randint(4, (3, 5, 1)).float())
    said = model(batch)
    assert said["velocity"].shape == (3, 20, 2)
    assert said["reach"].shape == (3, 5, 4)
    assert set(model.task) == {"reach", "velocity"}


def test_a_hundred_thousand_spikes_cost_what_they_are_and_no_padding() -> None:
    """What a training step keeps for its gradient grows with the spikes, not with samples times the longest."""
    model, long = build(max_events=200_000).train(), spikes(1, most=100_000)
    batch = replace(padded(spikes(8, most=50), tokens=99_950), aligned=spikes(8, most=50).aligned, kind=spikes(8).kind)
    for name in ("time", "channel", "mask"):
        getattr(batch, name)[:1] = getattr(long, name)

    def held(batch: TokenBatch) -> int:
        seen: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            said = model(batch)["velocity"]
        said.sum().backward()
        assert torch.isfinite(said).all()
        return sum(seen.values())

    assert held(batch) < 1.2 * held(batch.rows(torch.tensor([0]))) + 1e6


def test_more_spikes_than_the_cap_are_thinned_evenly_with_a_warning() -> None:
    model, batch = build(max_events=50), spikes(2, most=400, least=30)
    with pytest.warns(UserWarning, match=r"400 spikes; 50 of them"):
        row, time, lengths = model.pack(batch)
    assert lengths[0] == 24 + 50
    taken = time[24:74]
    assert float((taken.sort().values - torch.linspace(0, 1, 50)).abs().max()) < 0.1
    assert row.max() < 3 * 13
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(max_events=400)(batch)


def test_unit_identification_moves_new_vectors_and_latents_and_then_everything_moves() -> None:
    model, batch = build(), spikes()
    assert model.add_neurons(["sim/b/0", "sim/a/03", "sim/b/1"]) == [12, 3, 13]
    assert model.add_sessions(["sim/b/1"]) == [2]
    batch = with_aligned(batch, neuron=batch.aligned["neuron"] % 2 + 12, session=torch.full((3,), 2))
    model.freeze_but_neurons()
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)

    def moved() -> set[str]:
        before = {k: v.detach().clone() for k, v in model.named_parameters()}
        Behaviour(None).train()(model, batch)["velocity"].backward()
        optimiser.step()
        optimiser.zero_grad()
        return {k for k, v in model.named_parameters() if not torch.equal(v, before[k])}

    assert moved() == {"neuron_table.added", "session_table.added", "latents"}
    model.unfreeze()
    assert moved() == {k for k, _ in model.named_parameters()}


def test_added_rows_are_saved_in_one_table() -> None:
    model = build()
    model.add_neurons(["sim/b/0"])
    model.add_sessions(["sim/b/1"])
    state = model.state_dict()
    assert "neuron_table.added" not in state
    facts = replace(FACTS, neurons=tuple(model.neurons), sessions=tuple(model.sessions))
    other = build(facts)
    other.load_state_dict(state, strict=True)
    batch = with_aligned(spikes(), session=torch.full((3,), 2))
    assert torch.equal(other.predict(batch)["velocity"], model.predict(batch)["velocity"])
    again = deepcopy(model)
    again.load_state_dict(state, strict=True)
    assert torch.equal(again.neuron_table.added, model.neuron_table.added)


def test_errors_say_what_to_do() -> None:
    batch = spikes()
    with pytest.raises(ValueError, match=r"needs aligned\['neuron'\]"):
        build().encode(replace(batch, aligned={}))
    with pytest.raises(ValueError, match="POYO reads spikes; this batch is a grid"):
        build().encode(replace(batch, grid=(12, 4)))
    with pytest.raises(ValueError, match="model's last 1 s: cut such"):
        build().encode(replace(batch, time=batch.time * 3))
    with pytest.raises(ValueError, match="from -"):
        build().encode(replace(batch, time=batch.time - 0.5))
    with pytest.raises(ValueError, match="add_sessions"):
        build()(with_aligned(batch, session=torch.tensor([0, -1, 0])))
    with pytest.raises(ValueError, match=r"no aligned\['session'\]"):
        build()(replace(batch, aligned={"neuron": batch.aligned["neuron"]}))
    with pytest.raises(ValueError, match="needs neurons"):
        poyo.build(Facts(modality=("eeg",)))
    with pytest.raises(ValueError, match=r"\(calcium\) is a signal of 30 samples per second.*infer events first"):
        poyo.build(replace(FACTS, modality=("calcium",), sfreq=30.0))
    with pytest.raises(ValueError, match="speed"):
        build(predict=("speed",))
    with pytest.raises(ValueError, match="does not divide"):
        build(latent_step_s=0.3)
    with pytest.raises(ValueError, match="multiple of 4"):
        build(head_dim=6)


@pytest.mark.slow
def test_learns_which_neuron_fires() -> None:
    """Velocity is a weighted count of the spikes of the last tenth of a second: nothing but neurons and times tells."""
    torch.manual_seed(0)
    facts = replace(FACTS, window_s=0.4, aligned={"speed": 1})
    model = poyo.build(
        facts, dim=24, depth=1, head_dim=16, cross_heads=2, self_heads=2, latents=4, mlp_dropout=0.0,
        branch_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    sign = torch.linspace(-1, 1, 12)

    def windows(seed: int) -> TokenBatch:
        batch = spikes(64, most=20, seed=seed, least=8)
        batch = replace(batch, time=batch.time * 0.4)
        steps = (torch.arange(4) + 1) * 0.1
        close = (batch.time[:, None] < steps[:, None]) & (batch.time[:, None] > steps[:, None] - 0.1)
        drive = (close * batch.mask[:, None] * sign[batch.channel][:, None]).sum(-1, keepdim=True)
        return with_aligned(batch, speed=drive)

    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    objective, model = Behaviour(None).train(), model.train()
    for step in range(150):
        loss = objective(model, windows(step))["speed"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        score = Behaviour(None).eval()(model.eval(), windows(10_000))["metric_r2_speed"]
    assert float(score) > 0.4


def reference() -> object:
    """torch_brain's POYO."""
    return pytest.importorskip("torch_brain.models.poyo", reason="torch_brain is no dependency: make reference")


@pytest.mark.reference
@pytest.mark.parametrize("lengths", ["equal", "ragged"])
def test_equals_torch_brain(lengths: str) -> None:
    theirs = reference()
    torch.manual_seed(0)
    sizes = poyo.SIZES["1.3M"]
    other = theirs.POYO(
        sequence_length=1.0, latent_step=0.125, num_latents_per_step=16, dim_out=2, dim=64, depth=6, dim_head=64,
        cross_heads=2, self_heads=8,
    ).eval()  # fmt: skip
    other.unit_emb.initialize_vocab(list(FACTS.neurons))
    other.session_emb.initialize_vocab(list(FACTS.sessions))
    with torch.no_grad():
        for parameter in other.parameters():  # so that what adds up is not all near 0
            parameter += 0.05 * torch.randn_like(parameter)
    ours = poyo.build(FACTS, **sizes).eval()
    weights = converted(other.state_dict(), 64)
    assert weights.keys() == dict(ours.named_parameters()).keys()
    ours.load_state_dict({**ours.state_dict(), **weights})
    batch = spikes(3, most=60, least=60 if lengths == "equal" else 20)
    there = batch.aligned["neuron"] + 1
    latent, when = theirs.create_linspace_latent_tokens(0, 1, 0.125, 16)
    edge = torch.zeros(3, 12)
    said = other(
        input_unit_index=torch.cat((there, there, batch.channel + 1), 1),
        input_timestamps=torch.cat((edge, edge + 1, batch.time), 1),
        input_token_type=torch.cat((edge.long() + 1, edge.long() + 2, torch.zeros(3, 60, dtype=torch.long)), 1),
        input_mask=torch.cat((edge > -1, edge > -1, batch.mask), 1),
        latent_index=torch.from_numpy(latent).expand(3, -1),
        latent_timestamps=torch.from_numpy(when.astype(np.float32)).expand(3, -1),
        session_index=batch.aligned["session"] + 1,
        output_timestamps=ours.times(batch)["velocity"].expand(3, -1),
    )
    mine = ours(batch)["velocity"]
    torch.testing.assert_close(mine, said, rtol=1e-4, atol=1e-4)
    found, wanted = (
        torch.autograd.grad(x.square().sum(), m.parameters(), allow_unused=True)
        for x, m in ((mine, ours), (said, other))
    )
    ours_norm, their_norm = (sum(float(g.square().sum()) for g in x if g is not None) ** 0.5 for x in (found, wanted))
    assert ours_norm == pytest.approx(their_norm, rel=1e-3)


def test_a_name_of_another_program_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'enc_cross\.weight' is no parameter"):
        converted({"enc_cross.weight": torch.zeros(1)}, 64)


def test_functional_gelu_is_exact() -> None:
    """The gate is the error function's GELU, as published, not its tanh approximation."""
    x = torch.linspace(-3, 3, 8).repeat(1, 2)
    gated = build().gather_mlp[2](x)
    torch.testing.assert_close(gated, x[:, :8] * functional.gelu(x[:, 8:], approximate="none"))
