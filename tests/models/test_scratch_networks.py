"""ShallowFBCSPNet, Deep4Net and EEG Conformer: published counts, slow references, what they must not depend on."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from brainfm.evaluations.methods import scratch
from brainfm.layers.montage_signal import covered
from brainfm.layers.time_space import TimeSpace
from brainfm.models import deep4
from brainfm.objectives.supervised import Bounded, Supervised
from brainfm.recording import Channels
from brainfm.tokens import Facts, TokenBatch
from brainfm.training.batches import Batcher

NAMES = ("shallow_fbcsp", "deep4", "eeg_conformer")
FACTS = Facts(modality=("eeg",), kinds=("eeg",), sfreq=128.0, window_s=1.0, channels=5)

pytestmark = pytest.mark.usefixtures("one_thread")


def batch_of(signal: np.ndarray, sfreq: float = 128.0) -> TokenBatch:
    """`(window, channel, time)` as a batch."""
    table = Channels.make([f"c{i}" for i in range(signal.shape[1])], "misc")
    return Batcher(patch=1).trials(signal.astype(np.float32), table, sfreq)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def built(name: str, facts: Facts = FACTS, **keywords: object) -> nn.Module:
    """The test size, away from its start: norms that have seen data."""
    module = import_module(f"brainfm.models.{name}")
    torch.manual_seed(0)
    samples = round(facts.window_s * facts.sfreq)
    model = module.build(facts, **{**module.SIZES["test"], "momentum": 0.5, **keywords})
    for seed in range(3):
        model.train().encode(batch_of(noise(6, facts.channels, samples, seed=seed), facts.sfreq))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "parameters", "features"),
    [("shallow_fbcsp", 46_084, 40 * 61), ("deep4", 282_879, 200 * 7), ("eeg_conformer", 789_572, 40 * 61)],
)
def test_counts_of_the_published_sizes(name: str, parameters: int, features: int) -> None:
    """With 22 channels, 1000 samples at 250 Hz and 4 classes, as the table of braindecode's models counts them."""
    module = import_module(f"brainfm.models.{name}")
    model = module.build(module.FACTS, **module.SIZES["published"]).eval()
    with torch.inference_mode():
        width = model.encode(batch_of(noise(1, 22, 1000), 250.0)).pooled.shape[1]
    assert width == features
    readout = scratch.readout(name, width, 4)
    assert sum(p.numel() for p in [*model.parameters(), *readout.parameters()]) == parameters


@pytest.mark.parametrize("bias", [False, True])
def test_two_convolutions_as_one(bias: bool) -> None:
    torch.manual_seed(0)
    layer = TimeSpace(5, 4, 9, bias=bias)
    x = torch.randn(3, 5, 60, requires_grad=True)
    slow = layer.across_channels(layer.along_time(x.unsqueeze(1))).squeeze(2)
    torch.testing.assert_close(layer(x), slow, rtol=1e-4, atol=1e-5)
    weights = [*layer.parameters(), x]
    own = torch.autograd.grad(layer(x).square().sum(), weights)
    for found, expected in zip(own, torch.autograd.grad(slow.square().sum(), weights), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_steps_that_are_covered() -> None:
    real = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 1, 1, 1]], dtype=torch.bool)
    expected = [[bool(real[0, i : i + 3].all()) for i in range(0, 8, 2)]]
    assert covered(real, 3, 2).tolist() == expected


def test_deep4_is_four_blocks() -> None:
    model = built("deep4", pool=3, kernel_s=0.016, filters=3)
    x = torch.from_numpy(noise(2, 5, 128, seed=9))
    y = model.filters.across_channels(model.filters.along_time(x[:, None])).squeeze(2)
    for i, norm in enumerate(model.norms):
        y = model.later[i - 1](y) if i else y
        y = functional.elu((y - norm.running_mean[:, None]) / (norm.running_var[:, None] + 1e-5).sqrt())
        y = torch.stack([y[..., j : j + 3].amax(-1) for j in range(0, y.shape[-1] - 2, 3)], -1)
    torch.testing.assert_close(model.encode(batch_of(x.numpy())).pooled, y.flatten(1), rtol=1e-4, atol=1e-4)


def test_shallow_is_log_power() -> None:
    model = built("shallow_fbcsp")
    x = torch.from_numpy(noise(2, 5, 128, seed=9))
    y = model.filters.across_channels(model.filters.along_time(x[:, None])).squeeze(2)
    y = (y - model.norm.running_mean[:, None]) / (model.norm.running_var[:, None] + 1e-5).sqrt()
    power = torch.stack([(y[..., j : j + 19] ** 2).mean(-1) for j in range(0, y.shape[-1] - 18, 8)], -1)
    torch.testing.assert_close(model.encode(batch_of(x.numpy())).pooled, power.log().flatten(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_shorter_windows_and_fewer_channels_beside_whole_ones(name: str) -> None:
    model = built(name)
    whole, short = noise(2, 5, 128, seed=1), noise(2, 3, 90, seed=2)
    one, other = model.encode(batch_of(whole)), model.encode(batch_of(short))
    filled = np.concatenate([whole, np.pad(short, ((0, 0), (0, 2), (0, 38)), constant_values=5.0)])
    mixed = batch_of(filled)
    mask = torch.ones(4, 5, 128, dtype=torch.bool)
    mask[2:, 3:], mask[2:, :, 90:] = False, False
    both = model.encode(replace(mixed, mask=mask.flatten(1)))
    torch.testing.assert_close(both.pooled, torch.cat((one.pooled, other.pooled)), rtol=1e-4, atol=1e-5)
    assert torch.equal(both.mask, torch.cat((one.mask, other.mask)))
    assert other.mask.any(dim=1).all()
    assert not other.mask.all()
    assert not other.tokens[~other.mask].any()


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_is_real_sees_no_sample_that_is_not(name: str) -> None:
    model = built(name)
    x = noise(1, 5, 128)
    short = model.encode(batch_of(x[..., :90]))
    whole = model.encode(batch_of(x))
    if name != "eeg_conformer":  # there every token attends to all
        torch.testing.assert_close(short.tokens[short.mask], whole.tokens[short.mask], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(short.pooled, whole.pooled, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_another_montage_or_window_is_refused(name: str) -> None:
    model = built(name)
    for channels, samples in ((6, 128), (5, 129)):
        with pytest.raises(ValueError, match=rf"{channels} channels and windows of {samples} .*built for 5 and 128"):
            model.encode(batch_of(noise(1, channels, samples)))


@pytest.mark.parametrize(("name", "samples"), [("shallow_fbcsp", 50), ("eeg_conformer", 50), ("deep4", 76)])
def test_a_window_that_is_too_short_names_the_shortest(name: str, samples: int) -> None:
    """At 128 Hz: 13 and 38 samples; kernels of 5 and pooling by 2."""
    module = import_module(f"brainfm.models.{name}")
    module.build(replace(FACTS, window_s=samples / 128))
    with pytest.raises(ValueError, match=rf"windows of {samples - 1} samples; .* one channel and {samples} samples"):
        module.build(replace(FACTS, window_s=(samples - 1) / 128))


def test_deep4_pools_less_where_the_window_is_short() -> None:
    assert deep4.build(replace(FACTS, window_s=241 / 128)).pool == 3
    short = deep4.build(replace(FACTS, window_s=240 / 128))
    assert short.pool == 2
    assert short.encode(batch_of(noise(1, 5, 240))).mask.all()
    assert deep4.shortest(10, 3) == 441


@pytest.mark.parametrize("name", ["shallow_fbcsp", "deep4"])
def test_norms_are_held(name: str) -> None:
    """In training the parameters, in evaluation what is computed: the same result either way."""
    model = built(name, dropout=0.0, momentum=0.0)
    with torch.no_grad():
        model.filters.across_channels.weight.mul_(50)
    batch = batch_of(noise(3, 5, 128, seed=4))
    loose = model.encode(batch).pooled
    assert model.filters.across_channels.weight.flatten(1).norm(dim=1).max() > 2.1
    model.train().encode(batch)
    assert model.filters.across_channels.weight.flatten(1).norm(dim=1).max() <= 2.0 + 1e-5
    torch.testing.assert_close(model.eval().encode(batch).pooled, loose, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_learns_a_rhythm_in_one_channel(name: str) -> None:
    """Against chance, and against the same labels when the rhythm is gone."""
    found = {}
    for gain in (0.0, 1.5):
        rng = np.random.default_rng(1)

        def made(n: int, gain: float = gain, rng: np.random.Generator = rng) -> TokenBatch:
            label, x = np.arange(n) % 2, rng.normal(size=(n, 5, 128))
            phase = rng.uniform(0, 6.28, (n, 1))
            x[:, 2] += gain * label[:, None] * np.sin(2 * np.pi * 10 * np.arange(128) / 128 + phase)
            return replace(batch_of(x), aligned={"label": torch.from_numpy(label)})

        torch.manual_seed(0)
        net = built(name, dropout=0.1, momentum=0.1).train()
        width = net.encode(made(2)).pooled.shape[1]
        head = Supervised(width, 2, readout=Bounded(width, 2, 0.5))
        step = torch.optim.Adam([*net.parameters(), *head.parameters()], 1e-2)
        for _ in range(60):
            step.zero_grad()
            head.train()(net, made(32))["cross_entropy"].backward()
            step.step()
        with torch.inference_mode():
            found[gain] = float(head.eval()(net.eval(), made(200))["metric_accuracy"])
    assert found[1.5] > 0.85
    assert abs(found[0.0] - 0.5) < 0.15


# Against the same networks of braindecode, with our weights.


def braindecode() -> object:
    return pytest.importorskip(
        "braindecode.models", reason="braindecode is no dependency: its networks are an oracle", exc_type=ImportError
    )


def ours(name: str) -> tuple[nn.Module, nn.Module, TokenBatch, torch.Tensor]:
    module = import_module(f"brainfm.models.{name}")
    torch.manual_seed(0)
    model = module.build(module.FACTS, **module.SIZES["published"])
    x = noise(3, 22, 1000)
    batch = batch_of(x, 250.0)
    for p in model.parameters():  # away from zero biases and unit gains, inside of the bounds
        nn.init.uniform_(p, -0.06, 0.06) if p.ndim == 1 else None
    model.train().encode(batch)  # now norms have seen data, and weights that are held are as long as they may be
    pooled = model.eval().encode(batch).pooled
    readout = scratch.readout(name, pooled.shape[1], 4)
    readout.train()(pooled)
    return model, readout.eval(), batch, torch.from_numpy(x)


def agree(model: nn.Module, readout: nn.Module, batch: TokenBatch, theirs: nn.Module, x: torch.Tensor) -> None:
    with torch.inference_mode():
        own, other = readout(model.encode(batch).pooled), theirs.eval()(x)
    assert other.std() > 1e-3
    torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


def norm_of(prefix: str, norm: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{k}": v for k, v in norm.state_dict().items()}


@pytest.mark.parametrize("name", ["shallow_fbcsp", "deep4"])
def test_braindecode_says_the_same_of_the_convnets(name: str) -> None:
    theirs = {"shallow_fbcsp": "ShallowFBCSPNet", "deep4": "Deep4Net"}[name]
    net = getattr(braindecode(), theirs)(n_chans=22, n_outputs=4, n_times=1000)
    model, readout, batch, x = ours(name)
    steps = net.final_layer.conv_classifier.weight.shape[2]
    weights = {
        "conv_time_spat.conv_time.weight": model.filters.along_time.weight.transpose(2, 3),
        "conv_time_spat.conv_time.bias": model.filters.along_time.bias,
        "conv_time_spat.conv_spat.weight": model.filters.across_channels.weight.transpose(2, 3),
        "final_layer.conv_classifier.weight": readout.weight.view(4, model.dim, steps, 1),
        "final_layer.conv_classifier.bias": readout.bias,
        **norm_of("bnorm", model.norm if name == "shallow_fbcsp" else model.norms[0]),
    }
    if name == "deep4":
        for i, layer in enumerate(model.later):
            weights[f"conv_{i + 2}.weight"] = layer.weight.unsqueeze(-1)
            weights |= norm_of(f"bnorm_{i + 2}", model.norms[i + 1])
    net.load_state_dict(weights)
    agree(model, readout, batch, net, x)


def test_braindecode_says_the_same_of_the_conformer() -> None:
    net = braindecode().EEGConformer(n_chans=22, n_outputs=4, n_times=1000)  # type: ignore[attr-defined]
    model, readout, batch, x = ours("eeg_conformer")
    stem = "patch_embedding.shallownet"
    weights = {
        **{f"{stem}.0.{k}": v for k, v in model.filters.along_time.state_dict().items()},
        **{f"{stem}.1.{k}": v for k, v in model.filters.across_channels.state_dict().items()},
        **norm_of(f"{stem}.2", model.norm),
        "patch_embedding.projection.0.weight": model.mixing.weight[..., None, None],
        "patch_embedding.projection.0.bias": model.mixing.bias,
    }
    for i, block in enumerate(model.blocks):
        half = [f"transformer.{i}.{j}.fn" for j in (0, 1)]
        key, value = block.attention.key_value, block.attention
        parts = {
            f"{half[0]}.0": block.norm_attention, f"{half[0]}.1.queries": value.query,
            f"{half[0]}.1.projection": value.out, f"{half[1]}.0": block.norm_mlp, f"{half[1]}.1.0": block.mlp[0],
            f"{half[1]}.1.3": block.mlp[3],
        }  # fmt: skip
        for prefix, layer in parts.items():
            weights |= norm_of(prefix, layer)
        for j, word in enumerate(("keys", "values")):
            weights[f"{half[0]}.1.{word}.weight"] = key.weight.chunk(2)[j]
            weights[f"{half[0]}.1.{word}.bias"] = key.bias.chunk(2)[j]
    for number, prefix in ((0, "fc.fc.0"), (3, "fc.fc.3"), (6, "final_layer")):
        weights |= norm_of(prefix, readout[number])
    net.load_state_dict(weights)
    agree(model, readout, batch, net, x)
