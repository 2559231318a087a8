"""Masked codes: the loss sees masked tokens and their labels alone, and it falls."""

from __future__ import annotations

import math

import pytest
import torch

from brainfm.codebooks import braintokenizer
from brainfm.layers import draws
from brainfm.models import brainomni
from brainfm.objectives.masked_codes import MaskedCodes, score
from brainfm.tokens import Facts, TokenBatch

FACTS = Facts(sfreq=64.0)


def make_model() -> brainomni.BrainOmni:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    codebook = braintokenizer.build(FACTS, **braintokenizer.SIZES["test"])
    return brainomni.build(FACTS, codebook, **brainomni.SIZES["test"], dropout=0.0)


def make_batch(model: brainomni.BrainOmni, time: int = 8, batch: int = 4) -> TokenBatch:
    """Codes that follow from the time alone, so that neighbours and other sources tell them."""
    sources, depth = model.codebook.sources, model.codebook.depth
    phase = torch.arange(batch)[:, None, None, None] + torch.arange(time)[None, None, :, None]
    codes = (phase % 4 + torch.arange(depth)).expand(batch, sources, time, depth)
    return TokenBatch(
        codes.flatten(1, 2),
        torch.arange(time).float().repeat(sources).expand(batch, -1),
        torch.arange(sources).repeat_interleave(time).expand(batch, -1),
        torch.full((batch, sources, 3), torch.nan),
        torch.zeros(batch, sources, 3),
        torch.full((batch, sources), 8),
        torch.ones(batch, sources * time, dtype=torch.bool),
        (sources, time),
    )


def test_only_masked_labels_count() -> None:
    torch.manual_seed(0)
    logits, codes = torch.randn(2, 3, 4, 2, 16), torch.randint(16, (2, 3, 4, 2))
    hidden = torch.rand(2, 3, 4) < 0.5
    loss, accuracy = score(logits, codes, hidden)
    elsewhere = torch.where(hidden[..., None], codes, (codes + 1) % 16)
    assert torch.equal(score(logits, elsewhere, hidden)[0], loss)
    there = torch.where(hidden[..., None], (codes + 1) % 16, codes)
    assert not torch.equal(score(logits, there, hidden)[0], loss)
    expected = -torch.log_softmax(logits, -1).gather(-1, codes[..., None])[..., 0][hidden].mean()
    torch.testing.assert_close(loss, expected)
    perfect = torch.nn.functional.one_hot(codes, 16) * 50.0
    assert score(perfect, codes, hidden)[1] == 1.0
    assert 0.0 <= accuracy <= 1.0


def test_corruption_leaves_the_rest_and_uses_real_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model().train()
    batch = make_batch(model, batch=40)
    batch.mask[:, ::5] = False
    batch.aligned["draw"] = torch.arange(40)
    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    monkeypatch.setattr(
        model, "predict", lambda x, mask: given.append((x, mask)) or type(model).predict(model, x, mask)
    )
    MaskedCodes()(model, batch)
    corrupted, real = given[0]
    features = model.sources_of(batch).features
    changed = (corrupted != features).any(dim=-1)
    assert not (changed & ~real).any()
    blank = (corrupted == model.mask_vector).all(dim=-1)
    assert abs(blank[real].float().mean() - 0.4) < 0.05
    assert abs(changed[real].float().mean() - 0.5) < 0.07  # a stray token may be the same by chance
    pool = features[real]
    strays = corrupted[changed & ~blank].detach()
    assert (torch.cdist(strays, pool).amin(dim=1) < 1e-6).all()


def test_a_sample_is_masked_alike_whatever_shares_its_batch() -> None:
    seeds = torch.tensor([5, 9])
    both, alone, wide = (draws.uniform(s, (3, t), 0) for s, t in ((seeds, 8), (seeds[1:], 8), (seeds, 11)))
    assert torch.equal(both[1:], alone)
    assert torch.equal(both, wide[:, :, :8])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(both, draws.uniform(seeds, (3, 8), 1))
    many = draws.uniform(torch.arange(64), (16, 160), 3)
    assert abs(many.mean() - 0.5) < 0.005
    assert torch.histc(many, 16, 0, 1).sub(len(many.flatten()) / 16).abs().max() < 500
    noise = draws.normal(torch.arange(64), (16, 160), 4)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert noise.isfinite().all()


def test_loss_starts_at_chance_and_falls() -> None:
    model = make_model().train()
    batch, objective = make_batch(model), MaskedCodes()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    first = objective(model, batch)["masked_codes"].item()
    assert abs(first - math.log(16)) < 0.5
    for _ in range(200):
        parts = objective(model, batch)
        optimiser.zero_grad()
        parts["masked_codes"].backward()
        optimiser.step()
    last = objective(model, batch)
    assert last["masked_codes"] < first / 2
    assert last["metric_accuracy"] > 0.5
    assert model.mask_vector.grad is not None


def test_nothing_masked_is_no_error() -> None:
    model = make_model().train()
    batch = make_batch(model)
    parts = MaskedCodes(ratio=0.0)(model, batch)
    parts["masked_codes"].backward()
    assert parts["masked_codes"] == 0.0
    assert parts["metric_accuracy"] == 0.0
    batch.mask[:] = False
    assert MaskedCodes()(model, batch)["masked_codes"] == 0.0
