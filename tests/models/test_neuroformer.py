"""Neuroformer: every defect of the published code has its test here, beside the invariances of every model."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from brainfm.layers.frames import Frames
from brainfm.models import neuroformer
from brainfm.objectives.contrastive import Contrastive
from brainfm.objectives.next_spike import NextSpike
from brainfm.recording import KINDS
from brainfm.tokens import Facts, TokenBatch

torch.set_num_threads(1)

NEURONS = tuple(f"sim/a/{i:02d}" for i in range(12))
FACTS = Facts(
    modality=("spikes",), kinds=("neuron",), window_s=0.2, channels=12, subjects=("sim/a",), neurons=NEURONS,
    aligned={"velocity": 2, "stimulus": 3},
)  # fmt: skip


def build(**keywords: object) -> neuroformer.Neuroformer:
    torch.manual_seed(0)
    return neuroformer.build(FACTS, **{**neuroformer.SIZES["test"], "bin_s": 0.01, **keywords}).eval()


def spikes(samples: int = 3, most: int = 30, channels: int = 12, seed: int = 0) -> TokenBatch:
    """Random windows of 0.2 s with different numbers of spikes, behaviour and stimulus."""
    make = torch.Generator().manual_seed(seed)
    count = torch.randint(most // 2, most + 1, (samples,), generator=make)
    count[0] = most
    mask = torch.arange(most) < count[:, None]
    time = (
        torch.where(mask, torch.rand(samples, most, generator=make) * 0.2, 9.0).sort(dim=1).values.masked_fill(~mask, 0)
    )
    channel = torch.randint(channels, (samples, most), generator=make).masked_fill(~mask, 0)
    return TokenBatch(
        mask.float()[..., None], time, channel, torch.full((samples, channels, 3), torch.nan),
        torch.zeros(samples, channels, 3), torch.full((samples, channels), KINDS.index("neuron")), mask,
        aligned={
            "neuron": torch.arange(channels).expand(samples, -1),
            "velocity": torch.randn(samples, 10, 2, generator=make),
            "stimulus": torch.randn(samples, 20, 3, generator=make),
        },
    )  # fmt: skip


def with_aligned(batch: TokenBatch, **changed: torch.Tensor) -> TokenBatch:
    return replace(batch, aligned={**batch.aligned, **changed})


def padded(batch: TokenBatch, tokens: int = 5, channels: int = 4) -> TokenBatch:
    """The same windows with padding whose content is rubbish."""
    n = len(batch)
    more = TokenBatch(
        torch.ones(n, tokens, 1), torch.full((n, tokens), 0.07), torch.full((n, tokens), 2),
        torch.zeros(n, channels, 3), torch.zeros(n, channels, 3), torch.full((n, channels), -1),
        torch.zeros(n, tokens, dtype=torch.bool),
    )  # fmt: skip
    names = ("values", "time", "channel", "place", "orientation", "kind", "mask")
    joined = {k: torch.cat((getattr(batch, k), getattr(more, k)), dim=1) for k in names}
    neuron = torch.cat((batch.aligned["neuron"], torch.full((n, channels), -1)), dim=1)
    return with_aligned(replace(batch, **joined), neuron=neuron)


def test_a_later_spike_does_not_change_an_earlier_prediction() -> None:
    model, batch = build(), spikes(1)
    before = model(batch)
    late = int((batch.time[0] >= 0.15).nonzero()[3])
    channel = batch.channel.clone()
    channel[0, late] = (channel[0, late] + 1) % 12
    after = model(replace(batch, channel=channel))
    torch.testing.assert_close(after.neuron[0, :4], before.neuron[0, :4], rtol=0, atol=0)
    assert not torch.equal(after.neuron[0, 4], before.neuron[0, 4])


def test_padding_changes_nothing() -> None:
    model, batch = build(), spikes()
    more = padded(batch)
    torch.testing.assert_close(model.encode(more).pooled, model.encode(batch).pooled, rtol=0, atol=1e-6)
    for objective in (NextSpike(), Contrastive()):
        plain, rich = objective(model, batch), objective(model, more)
        for name, value in plain.items():
            torch.testing.assert_close(rich[name], value, rtol=0, atol=1e-5)
    assert torch.isneginf(model(more).neuron[..., 12:16]).all()


def test_a_sample_alone_equals_the_sample_in_a_batch() -> None:
    model, batch = build(), spikes()
    whole = model.encode(batch)
    for i in range(3):
        alone = model.encode(batch.rows(torch.tensor([i])))
        torch.testing.assert_close(alone.pooled[0], whole.pooled[i], rtol=0, atol=1e-5)
        n = int(alone.mask.sum())
        torch.testing.assert_close(alone.tokens[0, :n], whole.tokens[i, :n], rtol=0, atol=1e-5)
    assert torch.equal(model.encode(batch).pooled, whole.pooled)


def test_order_of_channels_and_of_simultaneous_spikes_does_not_matter() -> None:
    model, batch = build(), spikes()
    batch = replace(batch, time=(batch.time * 50).floor() / 50)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    moved = replace(batch, channel=order.argsort()[batch.channel])
    moved = with_aligned(moved, neuron=batch.aligned["neuron"][:, order])
    shuffled = moved.rows(torch.arange(3))
    flip = batch.time.argsort(dim=1, descending=True)
    flipped = {k: getattr(shuffled, k).gather(1, flip) for k in ("time", "channel", "mask")}
    torch.testing.assert_close(
        model.encode(replace(shuffled, **flipped)).pooled, model.encode(batch).pooled, rtol=0, atol=1e-5
    )


def test_the_value_of_behaviour_enters_and_encode_never_reads_it() -> None:
    model, batch = build(), spikes()
    other = with_aligned(batch, velocity=batch.aligned["velocity"] + 2)
    assert (model(other).neuron - model(batch).neuron).abs().nan_to_num(0).max() > 1e-4
    assert torch.equal(model.encode(other).pooled, model.encode(batch).pooled)
    gone = {k: v for k, v in batch.aligned.items() if k != "velocity"}
    assert torch.equal(model.encode(replace(batch, aligned=gone)).pooled, model.encode(batch).pooled)
    seen = other.aligned["velocity"].requires_grad_()
    model.alignment_features(with_aligned(batch, velocity=seen))["velocity"][0].sum().backward()
    assert seen.grad is not None
    assert seen.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["stimulus", "velocity"])
def test_no_token_sees_a_covariate_later_than_itself(name: str) -> None:
    model, batch = build(), spikes(1)
    _, current = model.states(batch)
    series = batch.aligned[name].clone()
    step = 0.2 / series.shape[1]
    first = math.ceil((0.15 + 0.025) / step)  # samples from the middle of the current state on
    series[:, first:] += 5
    before, after = model(batch).neuron[0], model(with_aligned(batch, **{name: series})).neuron[0]
    early = torch.cat((torch.zeros(1), current.time[0])) < first * step - 0.15 - 1e-6
    assert 0 < early.sum() < len(early)
    torch.testing.assert_close(after[early], before[early], rtol=0, atol=0)
    assert (after[~early] != before[~early]).any()


@pytest.mark.parametrize("keywords", [{}, {"height": 1, "kernel": (2, 1, 3), "stride": (1, 1, 1)}])
@pytest.mark.parametrize("name", ["stimulus", "velocity"])
def test_no_token_sees_a_later_sample_in_windows_that_start_between_samples(name: str, keywords: dict) -> None:
    model, batch = build(**keywords), spikes(3)
    every = 0.2 / batch.aligned[name].shape[1]
    time = torch.arange(batch.aligned[name].shape[1]) * every + torch.tensor([[0.0], [0.9], [0.5]]) * every
    at_random = with_aligned(batch, **{f"{name}/time": time})
    changed = batch.aligned[name] + 5 * (time >= 0.172)[..., None]
    before, after = model(at_random).neuron, model(with_aligned(at_random, **{name: changed})).neuron
    _, current = model.states(batch)
    asked = torch.cat((torch.zeros(3, 1), current.time), dim=1)
    early = asked < torch.where(time >= 0.172, time, 9.0).amin(1, keepdim=True) - 0.15 - 1e-5
    real = torch.cat((torch.ones(3, 1, dtype=torch.bool), current.mask), dim=1)
    assert (early & real).sum(1).min() > 0
    torch.testing.assert_close(after[early & real], before[early & real], rtol=0, atol=0)
    assert (after[~early & real] != before[~early & real]).any()
    even = time[:1].expand(3, -1)  # times that are said and even ones that are not are the same
    assert torch.equal(model(with_aligned(batch, **{f"{name}/time": even})).neuron, model(batch).neuron)


def test_missing_covariates_are_the_same_as_hidden_ones() -> None:
    model, batch = build(), spikes()
    nothing = with_aligned(batch, velocity=torch.full((3, 1, 1), torch.nan), stimulus=torch.full((3, 20, 3), torch.nan))
    said = model(nothing)
    assert said.bin.isfinite().all()
    assert not model.alignment_features(nothing)["velocity"][1].any()


def test_contrastive_features_come_before_fusion() -> None:
    model, batch = build(), spikes()
    before = model.alignment_features(batch)
    after = model.alignment_features(with_aligned(batch, stimulus=batch.aligned["stimulus"] * 3))
    assert torch.equal(after["spikes"][0], before["spikes"][0])
    assert torch.equal(after["velocity"][0], before["velocity"][0])
    assert not torch.equal(after["stimulus"][0], before["stimulus"][0])


def test_every_parameter_gets_a_gradient() -> None:
    model, batch = build().train(), spikes()
    parts = {**NextSpike()(model, batch), **Contrastive()(model, batch)}
    sum(v for k, v in parts.items() if not k.startswith("metric_")).backward()
    assert [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_first_loss_is_the_logarithm_of_the_vocabulary() -> None:
    part = NextSpike()(build(), spikes(8))["neuron"]
    assert part.item() == pytest.approx(0.6 * math.log(13), rel=0.1)


def test_freezing_leaves_only_the_new_neurons_free() -> None:
    model, batch = build(), spikes()
    assert model.add_neurons(["sim/b/00", NEURONS[3], "sim/b/01"]) == [12, 3, 13]
    NextSpike()(model, batch)["neuron"].backward()
    model.freeze_but_neurons()
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    numbered = with_aligned(batch, neuron=torch.tensor([12, 13]).repeat(6).expand(3, -1))
    sum(v for k, v in NextSpike()(model.train(), numbered).items() if "metric" not in k).backward()
    optimiser.step()
    moved = [k for k, p in model.named_parameters() if not torch.equal(p, before[k])]
    assert moved == ["added"]
    assert model.neuron_parameters() == [model.added]


def test_added_neurons_are_saved_in_one_table_and_load_strictly() -> None:
    model = build()
    model.add_neurons(["sim/b/00", "sim/b/01"])
    numbered = with_aligned(spikes(), neuron=torch.tensor([12, 13]).repeat(6).expand(3, -1))
    fresh = neuroformer.build(replace(FACTS, neurons=tuple(model.neurons)), **neuroformer.SIZES["test"]).eval()
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh.encode(numbered).pooled, model.encode(numbered).pooled)
    other = build()
    other.add_neurons(["sim/b/00", "sim/b/01"])
    other.load_state_dict(fresh.state_dict(), strict=True)
    assert torch.equal(other.rows(), model.rows())


@pytest.mark.filterwarnings("ignore:windows with more than")
def test_a_hundred_thousand_spikes_keep_the_last_past_and_the_first_current() -> None:
    model = build(max_events=50)
    time = torch.linspace(0, 0.1999, 100_000)[None]
    batch = replace(
        spikes(1), time=time, channel=torch.arange(100_000)[None] % 12, mask=torch.ones(1, 100_000, dtype=torch.bool),
        values=torch.ones(1, 100_000, 1),
    )  # fmt: skip
    past, current = model.states(batch)
    assert past.mask.shape == current.mask.shape == (1, 50)
    torch.testing.assert_close(past.time[0], time[0][time[0] < 0.15][-50:] - 0.15)
    torch.testing.assert_close(current.time[0], time[0][time[0] >= 0.15][:50] - 0.15)
    said = model(batch)
    assert (said.neuron_target[0, :50] >= 0).all()
    assert said.neuron_target[0, 50] == neuroformer.IGNORE  # a state that was cut has no end
    assert model.encode(batch).pooled.isfinite().all()


def test_a_cut_warns_and_what_fits_does_not() -> None:
    batch = spikes()
    with pytest.warns(UserWarning, match="more than 5 spikes in a state.*raise the model's max_events"):
        build(max_events=5)(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(max_events=30)(batch)


MEMORY = """
import resource, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_neuroformer import build, replace, spikes
from brainfm.objectives.contrastive import Contrastive
from brainfm.objectives.next_spike import NextSpike
model, small = build(max_events=128).train(), spikes(4)
n = 100_000
NextSpike()(model, small)["neuron"].backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
batch = replace(small, time=torch.rand(4, n) * 0.2, channel=torch.randint(12, (4, n)), values=torch.ones(4, n, 1),
                mask=torch.ones(4, n, dtype=torch.bool))
parts = {**NextSpike()(model, batch), **Contrastive()(model, batch)}
sum(v for k, v in parts.items() if "metric" not in k).backward()
model.eval().encode(batch)
model.generate(batch, most=10)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory_for_a_hundred_thousand_spikes_in_each_window_is_bounded() -> None:
    """All pairs of spikes would need 40 GB for each window; sorting needs a few numbers for each spike."""
    command = [sys.executable, "-W", "ignore", "-c", MEMORY, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 200


def test_an_empty_window_predicts_its_end() -> None:
    model, batch = build(), spikes(2)
    empty = replace(batch, mask=batch.mask & torch.tensor([[True], [False]]))
    said = model(empty)
    assert said.neuron_target[1, 0] == 12
    assert (said.neuron_target[1, 1:] == neuroformer.IGNORE).all()
    assert model.encode(empty).pooled.isfinite().all()
    nobody = replace(batch, mask=torch.zeros_like(batch.mask))
    parts = {**NextSpike()(model, nobody), **Contrastive()(model, nobody)}
    assert all(v.isfinite() for v in parts.values())


def test_bins_and_targets_follow_the_spikes() -> None:
    model, batch = build(), spikes(1, most=4)
    time = torch.tensor([[0.10, 0.151, 0.172, 0.199]])
    batch = replace(batch, time=time, channel=torch.tensor([[5, 3, 1, 2]]), mask=torch.ones(1, 4, dtype=torch.bool))
    said = model(batch)
    assert said.neuron_target.tolist() == [[3, 1, 2, 12]]
    assert said.bin_target.tolist() == [[0, 2, 4, 5]]
    assert model.attention(batch)[1].channel.tolist() == [[5]]


def test_it_learns_eight_windows_by_heart() -> None:
    torch.manual_seed(0)
    model, batch, objective = build(dim=32, modality_dropout=0.0).train(), spikes(8, most=24), NextSpike()
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        parts = objective(model, batch)
        optimiser.zero_grad()
        (parts["neuron"] + parts["bin"]).backward()
        optimiser.step()
    assert parts["neuron"].item() < 0.1
    assert float(parts["metric_accuracy"]) > 0.9


def test_fusion_blocks_of_the_published_size() -> None:
    """The paper's decoder of 6 + 6 + 6 blocks has 14.23 M parameters, its encoder of 6 + 6 has 9.48 M.

    A third LayerNorm per block is among them, which ours has not.
    """
    with torch.device("meta"):
        model = neuroformer.build(neuroformer.FACTS, **neuroformer.SIZES["base"])
    blocks = (*model.past_blocks, *model.stimulus_blocks, *model.self_blocks)
    count = sum(p.numel() for block in blocks for p in block.parameters())
    assert len(blocks) == 18
    assert count + 18 * 512 == pytest.approx(14.23e6, rel=1e-3)
    encoders = (*model.state_encoder, *model.stimulus_encoder)
    count = sum(p.numel() for block in encoders for p in block.parameters())
    assert len(encoders) == 12
    assert count + 12 * 512 == pytest.approx(9.48e6, rel=1e-3)
    assert sum(p.numel() for p in model.parameters()) == 24_633_350  # published: 24,080,384, see docs/spikes.md


def test_frames_of_the_published_size_are_2430_tokens() -> None:
    frames = Frames(64 * 112, 64, 8, (3, 8, 8), (3, 4, 4))
    assert frames(torch.zeros(1, 20, 64 * 112)).shape == (1, 6, 15 * 27, 8)


@pytest.mark.parametrize("size", ["test", "local", "small"])
def test_sizes_build_and_encode_to_a_fixed_length(size: str) -> None:
    model = neuroformer.build(FACTS, **neuroformer.SIZES[size]).eval()
    a, b = model.encode(spikes(2, most=10)), model.encode(spikes(2, most=40))
    assert a.pooled.shape == b.pooled.shape == (2, model.dim * 5)


def test_predicted_behaviour_is_no_input() -> None:
    model, batch = build(predict=("velocity",)), spikes()
    model.add_sessions(["sim/a/1"])
    batch = with_aligned(batch, session=torch.zeros(3, dtype=torch.int64))
    assert model.aligned == ("stimulus", "velocity")
    said = model(batch)
    assert said.behaviour["velocity"].shape == (3, 1, 2)
    other = with_aligned(batch, velocity=batch.aligned["velocity"] + 2)
    assert torch.equal(model(other).neuron, said.neuron)
    parts = [NextSpike().eval()(model, b)["behaviour_velocity"] for b in (other, batch)]
    assert not torch.equal(*parts)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="must be positive and fill"):
        build(past_s=0.3, current_s=0.05)
    with pytest.raises(ValueError, match="speed"):
        build(behaviour=("speed",))
    with pytest.raises(ValueError, match="needs neurons"):
        neuroformer.build(Facts(modality=("eeg",)))
    with pytest.raises(ValueError, match=r"\(calcium\) is a signal of 30 samples per second.*infer events first"):
        neuroformer.build(replace(FACTS, modality=("calcium",), sfreq=30.0))
    batch = spikes()
    with pytest.raises(ValueError, match="Neuroformer reads spikes; this batch is a grid"):
        build().encode(replace(batch, grid=(12, 4)))
    with pytest.raises(ValueError, match="cut"):
        build()(replace(batch, time=batch.time * 3))
    with pytest.raises(ValueError, match="neuron"):
        build().encode(replace(batch, aligned={}))
    with pytest.raises(ValueError, match="features"):
        build()(with_aligned(batch, velocity=torch.zeros(3, 10, 5)))
