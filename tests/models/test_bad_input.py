"""Awkward and wrong input to BrainTokenizer and BrainOmni: an error that names it, or what the documents say."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from brainfm.api import Decoder
from brainfm.codebooks import braintokenizer
from brainfm.models import brainomni
from brainfm.recording import KINDS, Channels, Recording
from brainfm.shards.read import Corpus, open_shards
from brainfm.shards.write import write_shard
from brainfm.tokens import Encoding, Facts, TokenBatch
from brainfm.training import checkpoint
from brainfm.training.checkpoint import CheckpointError, Pretrained
from brainfm.training.input_checks import InputWarning

SFREQ, PATCH, WINDOWS = 64.0, 32, 3
EEG, MAG, SEEG = (KINDS.index(kind) for kind in ("eeg", "mag", "seeg"))
FACTS = Facts(modality=("eeg",), kinds=("eeg",), sfreq=SFREQ, channels=6)


pytestmark = pytest.mark.usefixtures("one_thread")


def make(name: str, facts: Facts = FACTS, released: bool = False, overlap: float = 0.0) -> Pretrained:
    """A tokenizer, or a model with one inside, whose codebooks have started."""
    torch.manual_seed(0)
    keywords = braintokenizer.SIZES["test"] | {"released": released}
    inner = {"kind": "codebooks", "name": "braintokenizer", "keywords": keywords}
    codebook = checkpoint.build(inner, facts).train()
    with torch.no_grad():
        codebook.autoencode(signals(6, batch=8, seed=9))
    if name == "braintokenizer":
        return Pretrained(codebook.eval(), inner, facts)
    config = {"kind": "models", "name": name, "keywords": brainomni.SIZES["test"] | {"overlap": overlap}}
    config["codebook"] = {**inner, "facts": asdict(facts)}
    return Pretrained(checkpoint.build(config, facts, codebook).eval(), config, facts)


@pytest.fixture(params=["braintokenizer", "brainomni"])
def trained(request: pytest.FixtureRequest) -> Pretrained:
    return make(request.param)


def signals(channels: int, batch: int = 2, windows: int = WINDOWS, seed: int = 0, kind: int = EEG) -> TokenBatch:
    random = torch.Generator().manual_seed(seed)
    return TokenBatch(
        values=torch.randn(batch, channels * windows, PATCH, generator=random),
        time=torch.zeros(batch, channels * windows),
        channel=torch.arange(channels).repeat_interleave(windows).expand(batch, -1),
        place=torch.randn(batch, channels, 3, generator=random) * 0.05,
        orientation=torch.zeros(batch, channels, 3),
        kind=torch.full((batch, channels), kind),
        mask=torch.ones(batch, channels * windows, dtype=torch.bool),
        grid=(channels, windows),
        sfreq=SFREQ,
    )


def samples(batch: TokenBatch, count: int) -> TokenBatch:
    """The first samples of each window, as one patch."""
    cut = batch.signal()[..., :count].contiguous()
    channels = cut.shape[1]
    return replace(
        batch, values=cut, time=batch.time[:, :channels], channel=torch.arange(channels).expand(len(batch), -1),
        mask=torch.ones(len(batch), channels, dtype=torch.bool), grid=(channels, 1),
    )  # fmt: skip


def without(batch: TokenBatch, channel: int, window: slice = slice(None)) -> TokenBatch:
    """The batch with a channel masked in some windows."""
    mask = batch.mask.unflatten(1, batch.grid).clone()
    mask[:, channel, window] = False
    return replace(batch, mask=mask.flatten(1))


def spoilt(batch: TokenBatch, channel: int, window: int, value: float) -> TokenBatch:
    """The batch with one sample of a channel's window set."""
    values = batch.values.unflatten(1, batch.grid).clone()
    values[:, channel, window, 5] = value
    return replace(batch, values=values.flatten(1, 2))


def same(one: Encoding, other: Encoding) -> None:
    assert torch.equal(one.mask, other.mask)
    torch.testing.assert_close(one.tokens, other.tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.pooled, other.pooled, atol=1e-5, rtol=1e-5)


def useful(encoding: Encoding) -> bool:
    finite = encoding.tokens.isfinite().all() and encoding.pooled.isfinite().all()
    return bool(finite and encoding.mask.any() and encoding.pooled.abs().max() > 0)


def corpus(folder: Path, channels: Channels, sfreq: float = SFREQ, seconds: float = 8.0, key: str = "1") -> Corpus:
    random = np.random.default_rng(int(key))
    made = Recording(
        "made_up", key, "eeg", channels, sfreq=sfreq, device="cap",
        signal=1e-5 * random.normal(size=(len(channels), round(seconds * sfreq))).cumsum(axis=1),
    )  # fmt: skip
    write_shard(folder / f"sub-{key}.h5", [made], {})
    return open_shards(folder)


def cap(kind: str | list[str] = "eeg", unknown: int = 0, channels: int = 6) -> Channels:
    place = np.random.default_rng(3).normal(0, 0.05, (channels, 3))
    place[:unknown] = np.nan
    return Channels.make([f"E{i}" for i in range(channels)], kind, place)


# How many channels and how long.


def test_one_channel(trained: Pretrained) -> None:
    encoding = trained.model.encode(signals(1))
    assert useful(encoding)
    assert not torch.equal(encoding.pooled[0], encoding.pooled[1])


class _Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else (out,):
            if isinstance(part, torch.Tensor):
                self.elements = max(self.elements, part.numel())
        return out


def test_four_hundred_channels_take_memory_in_proportion(trained: Pretrained) -> None:
    largest = []
    for channels in (100, 400):
        with _Largest() as spy, torch.inference_mode():
            encoding = trained.model.encode(signals(channels, batch=1))
        assert useful(encoding)
        largest.append(spy.elements)
    assert largest[1] <= 4.05 * largest[0], "some tensor grows faster than the number of channels"


def test_exactly_one_window_and_less_than_one(trained: Pretrained) -> None:
    batch = signals(4, windows=1)
    assert useful(trained.model.encode(batch))
    with pytest.raises(ValueError, match="has 31 samples; a window of this tokenizer needs 32"):
        trained.model.encode(samples(batch, PATCH - 1))


def test_with_overlap_a_short_stretch_is_filled_up_with_zeros() -> None:
    model = make("brainomni", overlap=0.25).model
    short = samples(signals(4), 20)
    assert useful(model.encode(short))
    assert model.encode(short).tokens.shape[1] == model.codebook.sources * model.codebook.tokens_per_window
    windows = model.codebook.windows(short, 0.25)
    assert windows.mask.all()
    assert windows.signal.shape[2:] == (1, PATCH)
    assert not windows.signal[..., 20:].any()
    heard = windows.signal[..., :20]
    torch.testing.assert_close(heard.square().mean(dim=(1, 2, 3)), torch.ones(2))  # the filling is no part of the scale


@pytest.mark.parametrize("way", ["windows", "trials"])
def test_windows_shorter_than_one_token_are_named(trained: Pretrained, tmp_path: Path, way: str) -> None:
    """They would be padding and nothing else: an encoding of zeros for every one."""
    if way == "windows":
        windows = corpus(tmp_path, cap()).windows(0.25)
        with pytest.raises(ValueError, match=r"made_up/1//: 16 samples \(0\.25 s\); a window of this model has 32"):
            trained.features(windows)
    else:
        trials = np.random.default_rng(0).normal(size=(8, 4, 20)) * 1e-5
        with pytest.raises(ValueError, match=r"each trial: 20 samples .* take longer windows"):
            Decoder(trained).fit(trials, ["a", "b"] * 4, channels=["C3", "C4", "O1", "O2"], sfreq=SFREQ)


# Values.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_window_with_a_value_that_is_not_finite_counts_as_absent(trained: Pretrained, value: float) -> None:
    batch = signals(5)
    same(trained.model.encode(spoilt(batch, 2, 1, value)), trained.model.encode(without(batch, 2, slice(1, 2))))
    everywhere = replace(batch, values=torch.full_like(batch.values, value))
    nothing = trained.model.encode(everywhere)
    assert not nothing.mask.any()
    assert nothing.pooled.abs().max() == 0


def test_a_released_tokenizer_drops_the_whole_channel() -> None:
    """Its scale is that of the whole stretch, as in the release."""
    model, batch = make("brainomni", released=True).model, signals(5)
    same(model.encode(spoilt(batch, 2, 1, float("nan"))), model.encode(without(batch, 2)))


def test_constant_channels_count_as_absent(trained: Pretrained) -> None:
    batch = signals(5)
    values = batch.values.unflatten(1, batch.grid).clone()
    values[:, 1] = 3.0
    same(trained.model.encode(replace(batch, values=values.flatten(1, 2))), trained.model.encode(without(batch, 1)))


def test_a_gradient_of_spoilt_input_is_finite() -> None:
    from brainfm.objectives.reconstruct import Reconstruct

    model = make("braintokenizer").model.train()
    parts = Reconstruct()(model, spoilt(signals(5), 2, 1, float("nan")))
    torch.stack([v for k, v in parts.items() if not k.startswith("metric_")]).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_broken_values_are_named_where_channels_have_names(trained: Pretrained, tmp_path: Path) -> None:
    broken = Recording("made_up", "1", "eeg", cap(), sfreq=SFREQ, signal=np.full((6, 128), 1e-5))
    broken.signal[2, 70] = np.nan
    with pytest.raises(ValueError, match=r"made_up/1//: values that are not finite in 1 channels \(E2\)"):
        write_shard(tmp_path / "sub-1.h5", [broken], {})
    trials = np.zeros((4, 2, 64))
    trials[0, 1, 0] = np.inf
    with pytest.raises(ValueError, match=r"not finite in 1 channels \(C4\)"):
        Decoder(trained).fit(trials, ["a", "b"] * 2, channels=["C3", "C4"], sfreq=SFREQ)


# Sampling rates.


def test_another_sampling_rate(trained: Pretrained, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the batch has 128\.0 samples per second; this tokenizer reads 64\.0"):
        trained.model.encode(replace(signals(3), sfreq=128.0))
    windows = corpus(tmp_path, cap(), sfreq=128.0).windows(1.0)
    with pytest.raises(ValueError, match=r"made_up/1// has 128 samples per second; this model reads 64: ingest"):
        trained.features(windows)


def test_arrays_of_another_rate_are_resampled(trained: Pretrained) -> None:
    trials = np.random.default_rng(0).normal(size=(8, 4, 256)).cumsum(axis=2) * 1e-5
    decoder = Decoder(trained).fit(trials, ["a", "b"] * 4, channels=["C3", "C4", "O1", "O2"], sfreq=128.0)
    assert decoder.samples_ == 128


# Positions and kinds.


def test_missing_positions_are_told_once_for_each_montage(trained: Pretrained, tmp_path: Path) -> None:
    windows = corpus(tmp_path, cap(unknown=2)).windows(1.0)
    with pytest.warns(InputWarning, match=r"2 of 6 channels have no position \(E0, E1\)\. They share one vector"):
        assert np.isfinite(trained.features(windows)).all()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            trained.features(windows, size=2)
    assert len([w for w in told if w.category is InputWarning]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained.features(corpus(tmp_path / "whole", cap()).windows(1.0))


def test_a_bad_channel_without_a_position_is_no_matter(trained: Pretrained, tmp_path: Path) -> None:
    channels = cap(unknown=1)
    channels.bad[0] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained.features(corpus(tmp_path, channels).windows(1.0))


def test_channels_without_a_position_cannot_be_told_apart(trained: Pretrained) -> None:
    batch = signals(6)
    place = batch.place.clone()
    place[:, :2] = torch.nan
    tokenizer = getattr(trained.model, "codebook", trained.model)
    sensors = tokenizer.geometry(replace(batch, place=place))
    assert torch.equal(sensors[:, 0], sensors[:, 1])
    assert not torch.allclose(sensors[:, 0], sensors[:, 2])
    made = tokenizer.reconstruct(replace(batch, place=place))[1]
    torch.testing.assert_close(made[:, 0], made[:, 1])


def test_a_released_tokenizer_refuses_channels_without_a_position() -> None:
    batch = signals(4)
    batch.place[1, 2] = torch.nan
    for name in ("braintokenizer", "brainomni"):
        with pytest.raises(ValueError, match="1 channels have no position, and a released tokenizer"):
            make(name, released=True).model.encode(batch)


def test_a_kind_never_seen_is_named(trained: Pretrained, tmp_path: Path) -> None:
    windows = corpus(tmp_path, cap(["eeg"] * 4 + ["mag"] * 2)).windows(1.0)
    with pytest.warns(InputWarning, match=r"2 channels of kind 'mag' \(E4, E5\), which this model never saw.*on eeg"):
        assert np.isfinite(trained.features(windows)).all()


def test_kinds_that_share_a_vector_were_seen(tmp_path: Path) -> None:
    facts = replace(FACTS, kinds=("grad",), modality=("meg",))
    windows = corpus(tmp_path, cap("axial")).windows(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make("braintokenizer", facts, released=True).features(windows)
    with pytest.warns(InputWarning, match=r"kind 'axial'"):
        make("braintokenizer", facts).features(windows)


def test_a_released_tokenizer_refuses_kinds_that_it_has_no_vector_for(tmp_path: Path) -> None:
    windows = corpus(tmp_path, cap("seeg")).windows(1.0)
    with pytest.raises(ValueError, match="none of the released tokenizer's EEG, magnetometer and gradiometer"):
        make("brainomni", released=True).features(windows)


# Codes and checkpoints.


def test_codes_that_the_codebooks_do_not_have() -> None:
    model = make("brainomni").model
    codes = model.codebook.codes(signals(4))
    sources, time = codes.shape[1:3]
    batch = replace(
        signals(4), values=codes.flatten(1, 2), kind=torch.full((2, sources), 8), grid=(sources, time), sfreq=None,
        mask=torch.ones(2, sources * time, dtype=torch.bool),
    )  # fmt: skip
    assert useful(model.encode(batch))
    batch.values[0, 0, 0] = model.codebook.codes_per_depth
    with pytest.raises(ValueError, match=r"codes from \d+ to 16; this model's codebooks have 16: use the codes of its"):
        model.encode(batch)


def test_a_checkpoint_of_another_size(tmp_path: Path) -> None:
    folder = make("brainomni").save(tmp_path / "model")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"dim": 24', '"dim": 32'))
    with pytest.raises(CheckpointError, match=r"\d+ of \d+ weights match; \d+ of another shape \(project\.weight"):
        checkpoint.load(folder)
    (folder / "config.json").write_text(config.replace('"blocks": 2', '"blocks": 3'))
    with pytest.raises(CheckpointError, match=r"\d+ missing \(blocks\.2\..*Use the model's own config\.json"):
        checkpoint.load(folder)
