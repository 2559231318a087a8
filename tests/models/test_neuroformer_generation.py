"""Neuroformer generates: with caches what it does without, each window by itself, in ascending time; and video."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from brainfm.layers.frames import Frames, LookingBack
from brainfm.layers.spike_generation import sample
from brainfm.models import neuroformer
from brainfm.models.neuroformer import Neuroformer
from brainfm.objectives.contrastive import Contrastive
from brainfm.objectives.next_spike import NextSpike
from brainfm.recording import KINDS
from brainfm.tokens import Facts, TokenBatch

torch.set_num_threads(1)

CHANNELS, HEIGHT, WIDTH, FRAMES = 6, 6, 8, 8
FACTS = Facts(
    modality=("spikes",), kinds=("neuron",), window_s=0.2, channels=CHANNELS, subjects=("sim/a",),
    neurons=tuple(f"sim/a/{i}" for i in range(CHANNELS)), aligned={"velocity": 2, "stimulus": HEIGHT * WIDTH},
)  # fmt: skip
VIDEO = {"height": HEIGHT, "kernel": (2, 3, 3), "stride": (2, 3, 2), "state_encoder_layers": 2,
         "stimulus_encoder_layers": 2}  # fmt: skip
FEATURES = {"stimulus_encoder_layers": 1}


def build(**keywords: object) -> Neuroformer:
    """A small network far from its start, so that everything could matter, and whose states do not end at once."""
    torch.manual_seed(0)
    model = neuroformer.build(FACTS, **{**neuroformer.SIZES["test"], "past_layers": 2, "max_events": 40, **keywords})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        model.end.mul_(0.1)
    return model.eval()


def spikes(samples: int = 3, most: int = 24, seed: int = 0) -> TokenBatch:
    make = torch.Generator().manual_seed(seed)
    mask = torch.arange(most) < torch.randint(most // 2, most + 1, (samples, 1), generator=make)
    time = torch.where(mask, torch.rand(samples, most, generator=make) * 0.2, 9.0).sort(dim=1).values
    return TokenBatch(
        mask.float()[..., None], time.masked_fill(~mask, 0),
        torch.randint(CHANNELS, (samples, most), generator=make).masked_fill(~mask, 0),
        torch.full((samples, CHANNELS, 3), torch.nan), torch.zeros(samples, CHANNELS, 3),
        torch.full((samples, CHANNELS), KINDS.index("neuron")), mask,
        aligned={
            "neuron": torch.arange(CHANNELS).expand(samples, -1), "draw": 100 + torch.arange(samples),
            "velocity": torch.randn(samples, 10, 2, generator=make),
            "stimulus": torch.randn(samples, FRAMES, HEIGHT * WIDTH, generator=make),
        },
    )  # fmt: skip


def with_aligned(batch: TokenBatch, **changed: torch.Tensor) -> TokenBatch:
    return replace(batch, aligned={**batch.aligned, **changed})


def assert_same(a: neuroformer.State, b: neuroformer.State) -> None:
    assert torch.equal(a.mask, b.mask)
    assert torch.equal(a.channel, b.channel)
    assert torch.equal(a.cut, b.cut)
    torch.testing.assert_close(a.time, b.time, rtol=0, atol=1e-5)


@pytest.mark.parametrize("monotone", [True, False])
@pytest.mark.parametrize("keywords", [{}, FEATURES, VIDEO], ids=["plain", "features", "video"])
def test_caches_change_nothing(keywords: dict, monotone: bool) -> None:
    model, batch = build(**keywords), spikes(8)
    missing = batch.aligned["stimulus"].clone()
    missing[1, 2:5] = torch.nan
    missing[2] = torch.nan
    every = torch.arange(FRAMES) * 0.025
    batch = with_aligned(batch, **{"stimulus": missing, "stimulus/time": every + torch.rand(8, 1) * 0.025})
    found = model.generate(batch, monotone=monotone)
    assert found.mask.sum() > 20
    assert found.mask.shape[1] > 5
    assert_same(found, model.generate(batch, monotone=monotone, cached=False))


def test_covariates_and_past_steer_what_is_generated() -> None:
    model, batch = build(**VIDEO), spikes()
    found = model.generate(batch)
    for name in ("velocity", "stimulus"):
        other = model.generate(with_aligned(batch, **{name: batch.aligned[name] * 5 + 3}))
        assert other.mask.shape != found.mask.shape or not torch.equal(other.channel, found.channel), name
    empty = model.generate(replace(batch, mask=batch.mask & (batch.time > 0.15)))
    assert empty.mask.shape != found.mask.shape or not torch.equal(empty.channel, found.channel)
    nobody = replace(batch, mask=torch.zeros_like(batch.mask))
    assert_same(model.generate(nobody), empty)
    assert len(model.roll_out([nobody, nobody])) == 2


def test_a_window_alone_gives_what_it_gives_in_a_batch() -> None:
    model, batch = build(**VIDEO), spikes()
    together = model.generate(batch, seed=4)
    for i in range(3):
        alone = model.generate(batch.rows(torch.tensor([i])), seed=4)
        n = int(alone.mask.sum())
        assert int(together.mask[i].sum()) == n
        assert torch.equal(alone.channel[0, :n], together.channel[i, :n])
        torch.testing.assert_close(alone.time[0, :n], together.time[i, :n], rtol=0, atol=1e-5)


def test_the_seed_decides() -> None:
    model, batch = build(), spikes()
    torch.manual_seed(1)
    first = model.generate(batch, seed=1)
    torch.manual_seed(2)
    assert_same(first, model.generate(batch, seed=1))
    other = model.generate(batch, seed=2)
    assert other.mask.shape != first.mask.shape or not torch.equal(other.channel, first.channel)


def test_spikes_to_predict_are_not_read() -> None:
    model, batch = build(), spikes()
    current = batch.time >= 0.15
    other = replace(batch, channel=torch.where(current, (batch.channel + 1) % CHANNELS, batch.channel))
    assert not torch.equal(other.channel, batch.channel)
    assert_same(model.generate(other), model.generate(batch))


def test_time_ascends_inside_the_current_state() -> None:
    model, batch = build(), spikes(8)
    found = model.generate(batch)
    assert (found.time[found.mask] >= 0).all()
    assert (found.time[found.mask] < 0.05).all()
    pairs = found.mask[:, 1:]
    assert (found.time.diff(dim=1)[pairs] >= 0).all()
    free = model.generate(batch, monotone=False)
    assert (free.time.diff(dim=1)[free.mask[:, 1:]] < 0).any()


def test_most_cuts_and_says_so() -> None:
    model, batch = build(), spikes()
    with torch.no_grad():
        model.end.zero_()
    found = model.generate(batch, most=2)
    assert found.mask.shape == (3, 2)
    assert torch.equal(found.cut, found.mask.all(dim=1))
    assert found.cut.any()


def test_sampling_is_a_row_by_row_nucleus_after_the_temperature() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 2
    logits[1, 3] = -torch.inf
    for temperature, top_p in ((1.0, 1.0), (1.0, 0.6), (2.0, 0.6), (0.3, 0.9)):
        u = (torch.arange(2000) + 0.5) / 2000
        for row in logits:
            share = (row / temperature).softmax(0)
            kept, total = [], 0.0
            for i in share.argsort(descending=True).tolist():
                if total < top_p:
                    kept.append(i)
                total += float(share[i])
            wanted = torch.zeros(7)
            wanted[kept] = share[kept] / share[kept].sum()
            drawn = sample(torch.stack([logits[0], row]).repeat(2000, 1), u.repeat_interleave(2), temperature, top_p)
            found = torch.bincount(drawn[1::2], minlength=7) / 2000
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e-3)
    assert torch.equal(sample(logits, torch.full((5,), 0.99), 0.0, 0.5), logits.argmax(1))
    assert (sample(logits, torch.full((5,), 1 - 2.0**-24), 1.0, 1.0) < 7).all()


def test_own_past_is_ascending_and_holds_what_was_generated() -> None:
    model, windows = build(max_events=90), [spikes(seed=i) for i in range(6)]
    pasts = []
    real = model.states

    def spy(batch: TokenBatch) -> tuple[neuroformer.State, neuroformer.State]:
        pasts.append(real(batch)[0])
        return real(batch)

    model.states = spy  # type: ignore[method-assign]
    made = model.roll_out(windows, seed=3)
    assert len(made) == 6
    assert len(pasts) == 6
    for past in pasts:
        assert (past.time.diff(dim=1)[past.mask[:, 1:]] >= 0).all()
    for row in range(3):  # the last past is the three current states before it
        own = torch.cat([made[k].channel[row][made[k].mask[row]] for k in (2, 3, 4)])
        kept = pasts[5].channel[row][pasts[5].mask[row]]
        assert torch.equal(kept.sort().values, own.sort().values)
        assert (kept == own).float().mean() > 0.8  # spikes at the very same time go by number
        when = torch.cat([made[k].time[row][made[k].mask[row]] - 0.05 * (5 - k) for k in (2, 3, 4)])
        torch.testing.assert_close(pasts[5].time[row][pasts[5].mask[row]], when, rtol=0, atol=1e-5)
    other = [windows[0], *(spikes(seed=i + 50) for i in range(5))]
    covariates = [with_aligned(o, **w.aligned) for o, w in zip(other, windows, strict=True)]
    for a, b in zip(made, model.roll_out(covariates, seed=3), strict=True):
        assert_same(a, b)
    with pytest.raises(ValueError, match="2 rows, the one before 3"):
        model.roll_out([windows[0], windows[1].rows(torch.arange(2))])


def test_video_is_encoded_once_for_all_spikes() -> None:
    model, batch = build(**VIDEO), spikes()
    calls = []
    model.value["stimulus"].register_forward_hook(lambda *_: calls.append(1))
    model.stimulus_encoder[0].mlp.register_forward_hook(lambda *_: calls.append(2))
    found = model.generate(batch)
    assert found.mask.shape[1] > 3
    assert calls == [1, 2]


def test_what_was_learned_by_heart_is_generated() -> None:
    torch.manual_seed(0)
    model, batch, objective = build(dim=32, modality_dropout=0.0).train(), spikes(6, most=20), NextSpike()
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(120):
        parts = objective(model, batch)
        optimiser.zero_grad()
        (parts["neuron"] + parts["bin"]).backward()
        optimiser.step()
    _, truth = model.states(batch)
    with pytest.raises(ValueError, match=r"model\.eval"):
        model.generate(batch)
    found = model.eval().generate(batch, temperature=0)
    right = [
        torch.equal(found.channel[i][found.mask[i]], truth.channel[i][truth.mask[i]])
        and torch.equal(model.bin_of(found.time[i][found.mask[i]]), model.bin_of(truth.time[i][truth.mask[i]]))
        for i in range(6)
    ]
    assert sum(right) >= 5


def test_bad_wishes_are_refused() -> None:
    model, batch = build(), spikes()
    for wish in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"most": 0}):
        with pytest.raises(ValueError, match="expected a temperature"):
            model.generate(batch, **wish)
    for wrong, words in (({"height": 5}, "no 5 equal rows"), ({"height": 6}, "smaller than the kernel")):
        with pytest.raises(ValueError, match=words):
            build(**wrong)


# Video.


def test_no_token_sees_a_later_frame_than_itself() -> None:
    model, batch = build(**VIDEO), spikes(1, most=60)
    series = batch.aligned["stimulus"].clone()
    series[:, -1:] += 5  # the last frame begins 25 ms into the current state
    _, current = model.states(batch)
    before, after = model(batch).neuron[0], model(with_aligned(batch, stimulus=series)).neuron[0]
    early = torch.cat((torch.zeros(1), current.time[0])) < 0.025 - 1e-6
    assert 0 < early.sum() < len(early)
    torch.testing.assert_close(after[early], before[early], rtol=0, atol=0)
    assert (after[~early] != before[~early]).any()


def test_where_in_the_image_matters() -> None:
    model, batch = build(**VIDEO), spikes()
    picture = torch.zeros(3, FRAMES, HEIGHT, WIDTH)
    picture[:, :, :3, :3] = 3.0
    moved = picture.roll((3, 4), dims=(2, 3))
    left, right = (model(with_aligned(batch, stimulus=x.flatten(2))).neuron for x in (picture, moved))
    assert (left - right).abs().max() > 1e-4
    blank = Frames(HEIGHT * WIDTH, HEIGHT, 16, (2, 3, 3), (2, 3, 2))(torch.zeros(1, FRAMES, HEIGHT * WIDTH))
    assert torch.pdist(blank[0, 0]).min() > 1e-3  # same content, different places


def test_a_token_has_the_time_of_its_last_frame_and_the_last_frame_is_used() -> None:
    frames = Frames(HEIGHT * WIDTH, HEIGHT, 16, (3, 3, 3), (2, 3, 2))
    time, there = torch.arange(8) * 0.1, torch.ones(1, 8, dtype=torch.bool)
    there[0, 3] = False
    when, here = frames.times(time, there)
    torch.testing.assert_close(when, torch.tensor([0.3, 0.5, 0.7]))
    assert here.tolist() == [[False, False, True]]
    x = torch.randn(1, 8, HEIGHT * WIDTH)
    last = x.clone()
    last[:, 7] += 1
    changed = (frames(x) != frames(last)).any(dim=-1)[0].any(dim=-1)
    assert changed.tolist() == [False, False, True]


@pytest.mark.parametrize("patches", [1, 4])
def test_looking_back_equals_a_mask_over_all_pairs(patches: int) -> None:
    torch.manual_seed(0)
    layers, x = LookingBack(2, 16, 2, 0.0), torch.randn(2, 5, patches, 16)
    there = torch.ones(2, 5, dtype=torch.bool)
    for missing in ((), (0, 2)):
        there[0, list(missing)] = False
        step = torch.arange(5).repeat_interleave(patches)
        mask = (step[:, None] >= step) & there.repeat_interleave(patches, dim=1)[:, None]
        slow = x.flatten(1, 2)
        for block in layers:
            slow = block(slow, mask=mask)
        torch.testing.assert_close(layers(x, there).flatten(1, 2), slow, rtol=0, atol=1e-5)


def test_video_that_is_not_there_is_the_same_as_a_shorter_or_hidden_one() -> None:
    model, batch = build(**VIDEO), spikes()
    gone = [
        with_aligned(batch, stimulus=torch.full(shape, torch.nan))
        for shape in ((3, FRAMES, HEIGHT * WIDTH), (3, 1, HEIGHT * WIDTH), (3, 1, 1))
    ]
    said = [model(b).neuron for b in gone]
    assert said[0].isfinite().all()
    assert all(torch.equal(s, said[0]) for s in said)
    assert not model.alignment_features(gone[0])["stimulus"][1].any()


def test_every_parameter_of_the_video_gets_a_gradient() -> None:
    model, batch = build(**VIDEO, modality_dropout=0.0).train(), spikes()
    parts = {**NextSpike()(model, batch), **Contrastive()(model, batch)}
    sum(v for k, v in parts.items() if not k.startswith("metric_")).backward()
    assert [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
