"""BrainOmni: signals and codes give the same, what must not matter does not, and the tokenizer stays frozen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from brainfm.codebooks import braintokenizer
from brainfm.models import brainomni
from brainfm.models.brainomni import BrainOmni, turn
from brainfm.tokens import Facts, TokenBatch

FACTS = Facts(modality=("eeg",), kinds=("eeg",), sfreq=64.0, channels=6)
PATCH, WINDOWS = 32, 3


def make_model(**keywords: object) -> BrainOmni:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    codebook = braintokenizer.build(FACTS, **braintokenizer.SIZES["test"]).train()
    with torch.no_grad():
        codebook.autoencode(signals(5, 9))
    return brainomni.build(FACTS, codebook, **(brainomni.SIZES["test"] | keywords)).eval()


def signals(channels: int = 5, seed: int = 0, batch: int = 3, windows: int = WINDOWS) -> TokenBatch:
    random = torch.Generator().manual_seed(seed)
    return TokenBatch(
        values=torch.randn(batch, channels * windows, PATCH, generator=random),
        time=torch.zeros(batch, channels * windows),
        channel=torch.arange(channels).repeat_interleave(windows).expand(batch, -1),
        place=torch.randn(batch, channels, 3, generator=random) * 0.05,
        orientation=torch.zeros(batch, channels, 3),
        kind=torch.zeros(batch, channels, dtype=torch.int64),
        mask=torch.ones(batch, channels * windows, dtype=torch.bool),
        grid=(channels, windows),
        sfreq=64.0,
    )


def coded(codes: torch.Tensor, mask: torch.Tensor | None = None) -> TokenBatch:
    """Codes `(batch, source, time, depth)` as a batch."""
    batch, sources, time, _ = codes.shape
    return TokenBatch(
        values=codes.flatten(1, 2),
        time=torch.arange(time).float().repeat(sources).expand(batch, -1),
        channel=torch.arange(sources).repeat_interleave(time).expand(batch, -1),
        place=torch.full((batch, sources, 3), torch.nan),
        orientation=torch.zeros(batch, sources, 3),
        kind=torch.full((batch, sources), 8),
        mask=torch.ones(batch, sources * time, dtype=torch.bool) if mask is None else mask.flatten(1),
        grid=(sources, time),
    )


@pytest.fixture(scope="module")
def model() -> BrainOmni:
    return make_model()


@pytest.mark.parametrize(
    ("size", "whole", "trained"), [("tiny", 13_475_042, 8_424_704), ("base", 37_757_666, 32_707_328)]
)
def test_published_sizes_have_the_published_numbers_of_parameters(size: str, whole: int, trained: int) -> None:
    with torch.device("meta"):
        codebook = braintokenizer.build(brainomni.FACTS, **braintokenizer.SIZES["published"])
        model = brainomni.build(brainomni.FACTS, codebook, **brainomni.SIZES[size])
    assert sum(p.numel() for p in model.parameters()) == whole
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained


def test_signals_and_their_codes_encode_alike(model: BrainOmni) -> None:
    batch = signals()
    from_codes = model.encode(coded(model.codebook.codes(batch)))
    from_signals = model.encode(batch)
    assert torch.equal(from_codes.tokens, from_signals.tokens)
    assert torch.equal(from_codes.mask, from_signals.mask)
    assert from_codes.pooled.shape == (3, model.codebook.sources * model.dim)
    torch.testing.assert_close(from_codes.tokens.norm(dim=-1), torch.ones(3, from_codes.tokens.shape[1]))
    assert torch.equal(model.encode(batch).tokens, from_signals.tokens)


def test_padding_in_time_is_ignored(model: BrainOmni) -> None:
    codes = model.codebook.codes(signals())
    alone = model.encode(coded(codes))
    longer = torch.cat((codes, torch.full_like(codes, -7)), dim=2)
    mask = (torch.arange(longer.shape[2]) < codes.shape[2]).expand(longer.shape[:3])
    padded = model.encode(coded(longer, mask))
    tokens = padded.tokens.unflatten(1, longer.shape[1:3])[:, :, : codes.shape[2]].flatten(1, 2)
    torch.testing.assert_close(tokens, alone.tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded.pooled, alone.pooled, atol=1e-5, rtol=1e-5)


def test_alone_and_in_a_batch_and_with_nothing_at_all(model: BrainOmni) -> None:
    batch = signals()
    mask = batch.mask.clone()
    mask[2] = False
    whole = model.encode(replace(batch, mask=mask))
    single = model.encode(batch.rows(torch.tensor([1])))
    torch.testing.assert_close(whole.tokens[1:2], single.tokens, atol=1e-5, rtol=1e-5)
    assert whole.tokens.isfinite().all()
    assert whole.pooled[2].abs().max() == 0


def test_overlap_adds_windows_and_keeps_short_signals(model: BrainOmni) -> None:
    overlapping = make_model(overlap=0.25)
    tokens = overlapping.codebook.tokens_per_window
    encoding = overlapping.encode(signals())
    assert encoding.mask.shape[1] == overlapping.codebook.sources * 4 * tokens  # starts 0, 24, 48 and 72 of 96 samples
    longer = signals(windows=5)
    mask = longer.mask.unflatten(1, longer.grid).clone()
    mask[:, :, WINDOWS:] = False
    values = longer.values.unflatten(1, longer.grid)
    short = signals()
    values[:, :, :WINDOWS] = short.values.unflatten(1, short.grid)
    padded = overlapping.encode(replace(longer, values=values.flatten(1, 2), mask=mask.flatten(1), place=short.place))
    torch.testing.assert_close(padded.pooled, encoding.pooled, atol=1e-5, rtol=1e-5)


def test_all_layers_are_within_reach(model: BrainOmni) -> None:
    batch = signals()
    layers = model.layers(batch)
    assert len(layers) == len(model.blocks) + 1
    assert torch.equal(layers[-2].tokens, model.encode(batch).tokens)
    assert not torch.equal(layers[-1].tokens, layers[-2].tokens)


def test_halves_mix_time_and_sources(model: BrainOmni) -> None:
    codes = model.codebook.codes(signals())
    changed = codes.clone()
    changed[:, 0, 0] = (changed[:, 0, 0] + 1) % model.codebook.codes_per_depth
    deep = [model.layers(coded(c))[-1].tokens.unflatten(1, codes.shape[1:3]) for c in (codes, changed)]
    assert ((deep[0] - deep[1]).abs().amax(dim=-1) > 1e-7).all()


def test_rotary_positions_keep_no_state_and_see_differences_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(8), torch.randn(8)
    score = turn(q.expand(1, 12, 8), "regenerated")[0] @ turn(k.expand(1, 12, 8), "regenerated")[0].T
    torch.testing.assert_close(score[3, 1], score[9, 7])
    assert not torch.allclose(score[3, 1], score[9, 2])
    model = make_model()
    assert not any("rot" in name or "freq" in name for name in model.state_dict())
    other = make_model()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other.encode(signals()).tokens, model.encode(signals()).tokens)
    cosines = make_model(rope="as_released")
    cosines.load_state_dict(model.state_dict(), strict=True)
    assert not torch.allclose(cosines.encode(signals()).tokens, model.encode(signals()).tokens)


def test_tokenizer_stays_frozen_and_in_evaluation_mode() -> None:
    model = make_model()
    state = {name: value.clone() for name, value in model.codebook.state_dict().items()}
    model.train()
    assert model.training
    assert not any(module.training for module in model.codebook.modules())
    assert not any(p.requires_grad for p in model.codebook.parameters())
    model.encode(signals()).tokens.sum().backward()
    assert all(torch.equal(value, state[name]) for name, value in model.codebook.state_dict().items())


def test_wrong_input_is_named(model: BrainOmni) -> None:
    codes = model.codebook.codes(signals())
    with pytest.raises(ValueError, match="its own tokenizer"):
        model.encode(coded(codes[..., :1]))
    with pytest.raises(ValueError, match="rope"):
        make_model(rope="cached")
