"""EEGNet: the paper's counts, its bounds, what it must not depend on, and that it learns."""

from dataclasses import replace

import pytest
import torch

from brainfm.models import eegnet
from brainfm.objectives.supervised import Bounded, Hidden, Supervised
from brainfm.recording import KINDS
from brainfm.tokens import Facts, TokenBatch

FACTS = Facts(modality=("eeg",), kinds=("eeg",), sfreq=128.0, window_s=1.0, channels=6)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def windows(n=3, channels=6, samples=128, patch=32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    patches = samples // patch
    return TokenBatch(
        torch.randn(n, channels * patches, patch, generator=draw),
        (torch.arange(patches) * patch / 128).repeat(channels).expand(n, -1),
        torch.arange(channels).repeat_interleave(patches).expand(n, -1),
        torch.randn(n, channels, 3, generator=draw) * 0.06,
        torch.zeros(n, channels, 3),
        torch.full((n, channels), KINDS.index("eeg")),
        torch.ones(n, channels * patches, dtype=torch.bool),
        (channels, patches),
        128.0,
    )


def padded(batch, channels, patches):
    """The batch with padding up to a larger grid; padded samples hold rubbish that nothing may read."""
    n, (c, p), s = len(batch), batch.grid, batch.values.shape[-1]
    values, mask = torch.full((n, channels, patches, s), 7.0), torch.zeros(n, channels, patches, dtype=torch.bool)
    values[:, :c, :p], mask[:, :c, :p] = batch.values.unflatten(1, (c, p)), True
    place, kind = torch.full((n, channels, 3), torch.nan), torch.full((n, channels), -1)
    place[:, :c], kind[:, :c] = batch.place, batch.kind
    time = (torch.arange(patches) * s / 128).repeat(channels).expand(n, -1)
    channel = torch.arange(channels).repeat_interleave(patches).expand(n, -1)
    return TokenBatch(
        values.flatten(1, 2), time, channel, place, torch.zeros(n, channels, 3), kind, mask.flatten(1),
        (channels, patches), 128.0,
    )  # fmt: skip


def joined(a, b):
    names = ("values", "time", "channel", "place", "orientation", "kind", "mask")
    return replace(a, **{k: torch.cat((getattr(a, k), getattr(b, k))) for k in names})


def learnt(model):
    """Away from the start: norms that have seen data."""
    for seed in range(5):
        model.train().encode(windows(8, seed=seed))
    return model.eval()


@pytest.fixture
def model():
    return learnt(eegnet.build(FACTS, filters=4, momentum=0.5))


@pytest.mark.parametrize(("size", "filters"), [("4,2", 4), ("8,2", 8)])
@pytest.mark.parametrize(("samples", "classes"), [(128, 4), (128, 2), (256, 4)])
def test_the_counts_of_table_2(size, filters, samples, classes):
    """C = 64 channels at 128 Hz: 64 F1, 2 F1 | C D F1, 2 D F1 | 16 D F1, F2 D F1, 2 F2 | N F2 T / 32, and N biases."""
    channels, depth = 64, 2
    later = depth * filters
    expected = 64 * filters + 2 * filters
    expected += channels * depth * filters + 2 * depth * filters
    expected += 16 * depth * filters + later * depth * filters + 2 * later
    dense = classes * later * (samples // 32)
    facts = replace(eegnet.FACTS, window_s=samples / 128)
    built = eegnet.build(facts, **eegnet.SIZES[size])
    own = sum(p.numel() for p in built.parameters())
    assert own == expected
    width = built.eval().encode(windows(1, 64, samples)).pooled.shape[1]
    assert own + sum(p.numel() for p in Bounded(width, classes).parameters()) == expected + dense + classes
    if (size, samples, classes) == ("8,2", 128, 4):
        assert own + dense == 2384


def test_shapes(model):
    encoding = model.encode(windows())
    assert encoding.tokens.shape == (3, 4, model.dim)
    assert encoding.pooled.shape == (3, 4 * model.dim)
    assert encoding.mask.all()
    repatched = model.encode(windows(patch=8))
    assert repatched.pooled.shape == encoding.pooled.shape


def test_padding_and_batch_mates(model):
    small, large = windows(2, 4, 96), windows(2, seed=5)
    mixed = joined(padded(small, 7, 5), padded(large, 7, 5))
    found, one, other = model.encode(mixed), model.encode(small), model.encode(large)
    torch.testing.assert_close(found.pooled, torch.cat((one.pooled, other.pooled)), rtol=1e-5, atol=1e-6)
    assert one.mask.tolist() == [[True, True, True, False]] * 2
    assert torch.equal(found.mask, torch.cat((one.mask, other.mask)))
    assert not one.tokens[~one.mask].any()


def test_a_lacking_channel_is_a_silent_one(model):
    whole = windows()
    silent = whole.values.unflatten(1, whole.grid).clone()
    silent[:, 4:] = 0
    fewer = windows(channels=4)
    fewer = replace(fewer, values=silent[:, :4].flatten(1, 2))
    silent = replace(whole, values=silent.flatten(1, 2))
    torch.testing.assert_close(model.encode(fewer).pooled, model.encode(silent).pooled)


def test_it_tells_channels_by_their_row(model):
    """What sets it apart from the other models, and why `methods/scratch.py` brings montages together first."""
    batch = windows()
    turned = replace(batch, values=batch.values.unflatten(1, batch.grid).flip(1).flatten(1, 2))
    assert not torch.allclose(model.encode(turned).pooled, model.encode(batch).pooled, atol=1e-3)


@pytest.mark.parametrize(("channels", "samples"), [(7, 128), (6, 160)])
def test_another_montage_or_window_is_refused(model, channels, samples):
    with pytest.raises(ValueError, match=rf"{channels} channels and windows of {samples} samples.*built for 6 and 128"):
        model.encode(windows(channels=channels, samples=samples))


def test_a_window_below_one_step_is_refused():
    with pytest.raises(ValueError, match="windows of 16 samples; EEGNet needs one channel and 32 samples"):
        eegnet.build(replace(FACTS, window_s=0.125))


def test_norms_are_held(model):
    """In training the parameters, in evaluation what is computed: the same result either way."""
    readout = Bounded(8, 3)
    with torch.no_grad():
        model.across_channels.weight.mul_(50)
        readout.weight.mul_(50)
    batch, pooled = windows(), torch.randn(4, 8)
    loose, eased = model.encode(batch).pooled, readout.eval()(pooled)
    assert model.across_channels.weight.flatten(1).norm(dim=1).max() > 1.1
    model.train().encode(batch)
    readout.train()(pooled)
    assert model.across_channels.weight.flatten(1).norm(dim=1).max() <= 1.0 + 1e-5
    assert readout.weight.norm(dim=1).max() <= 0.25 + 1e-6
    torch.testing.assert_close(readout.eval()(pooled), eased)
    fresh = eegnet.build(FACTS, filters=4)
    fresh.load_state_dict(model.state_dict())
    assert torch.isfinite(loose).all()
    torch.testing.assert_close(model.eval().encode(batch).pooled, fresh.eval().encode(batch).pooled)


def test_learns_a_rhythm_in_one_channel():
    """Against chance, and against the same labels when the rhythm is gone."""
    draw = torch.Generator().manual_seed(1)

    def made(n, gain):
        batch, label = windows(n, seed=int(torch.randint(1 << 30, (1,), generator=draw))), torch.arange(n) % 2
        wave = torch.sin(2 * torch.pi * 10 * torch.arange(128) / 128 + 6.28 * torch.rand(n, 1, generator=draw))
        values = batch.values.unflatten(1, batch.grid).clone()
        values[:, 2] += gain * (label[:, None] * wave).unflatten(1, (4, 32))
        return replace(batch, values=values.flatten(1, 2), aligned={"label": label})

    found = {}
    for gain in (0.0, 1.5):
        torch.manual_seed(0)
        net = eegnet.build(FACTS, filters=4, dropout=0.25, momentum=0.1)
        head = Supervised(4 * net.dim, 2, readout=Bounded(4 * net.dim, 2))
        step = torch.optim.Adam([*net.parameters(), *head.parameters()], 1e-2)
        for _ in range(40):
            step.zero_grad()
            head.train()(net.train(), made(32, gain))["cross_entropy"].backward()
            step.step()
        with torch.inference_mode():
            found[gain] = float(head.eval()(net.eval(), made(200, gain))["metric_accuracy"])
    assert found[1.5] > 0.9
    assert abs(found[0.0] - 0.5) < 0.15


def test_readout_of_brainomni():
    """Dropout, 16 x 256 to 256, SELU, classes."""
    readout = Hidden(16 * 256, 2, 256)
    assert [type(x).__name__ for x in readout] == ["Dropout", "Linear", "SELU", "Linear"]
    assert sum(p.numel() for p in readout.parameters()) == 16 * 256 * 256 + 256 + 256 * 2 + 2
