"""LUNA: what it must not depend on, that it learns, and the published sizes."""

from dataclasses import replace

import pytest
import torch

from brainfm.models import luna
from brainfm.objectives.masked_patches import MaskedPatches
from brainfm.recording import KINDS
from brainfm.tokens import Facts, TokenBatch

FACTS = Facts(modality=("eeg",), kinds=("eeg",), sfreq=128.0, window_s=1.0, channels=8)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def windows(n=3, channels=6, patches=5, patch=16, kind="eeg", seed=0):
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(n, channels * patches, patch, generator=draw)
    orientation = torch.zeros(n, channels, 3)
    if kind == "mag":
        orientation = torch.nn.functional.normalize(torch.randn(n, channels, 3, generator=draw), dim=-1)
    return TokenBatch(
        values,
        (torch.arange(patches) * patch / 128).repeat(channels).expand(n, -1),
        torch.arange(channels).repeat_interleave(patches).expand(n, -1),
        torch.randn(n, channels, 3, generator=draw) * 0.06,
        orientation,
        torch.full((n, channels), KINDS.index(kind)),
        torch.ones(n, channels * patches, dtype=torch.bool),
        (channels, patches),
        128.0,
    )


def padded(batch, channels, patches):
    """The batch with padding up to a larger grid; padded samples hold rubbish that nothing may read."""
    n, (c, p), s = len(batch), batch.grid, batch.values.shape[-1]
    values, mask = torch.full((n, channels, patches, s), 7.0), torch.zeros(n, channels, patches, dtype=torch.bool)
    values[:, :c, :p], mask[:, :c, :p] = batch.values.unflatten(1, (c, p)), True
    place, orientation = torch.full((n, channels, 3), torch.nan), torch.zeros(n, channels, 3)
    kind = torch.full((n, channels), -1)
    place[:, :c], orientation[:, :c], kind[:, :c] = batch.place, batch.orientation, batch.kind
    time = (torch.arange(patches) * s / 128).repeat(channels).expand(n, -1)
    channel = torch.arange(channels).repeat_interleave(patches).expand(n, -1)
    return TokenBatch(
        values.flatten(1, 2), time, channel, place, orientation, kind, mask.flatten(1), (channels, patches), 128.0
    )


def joined(a, b):
    names = ("values", "time", "channel", "place", "orientation", "kind", "mask")
    return replace(a, **{k: torch.cat((getattr(a, k), getattr(b, k))) for k in names})


@pytest.fixture
def model():
    torch.manual_seed(1)
    return luna.build(FACTS, **luna.SIZES["test"]).eval()


@pytest.mark.parametrize(("size", "parameters"), [("base", 6_672_417), ("large", 40_660_337), ("huge", 303_769_569)])
def test_published_counts(size, parameters):
    with torch.device("meta"):
        built = luna.build(luna.FACTS, **luna.SIZES[size])
    assert sum(p.numel() for p in built.parameters()) == parameters


def test_shapes(model):
    batch = windows()
    encoding = model.encode(batch)
    assert encoding.tokens.shape == (3, 5, model.dim)
    assert encoding.mask.shape == (3, 5)
    assert encoding.pooled.shape == (3, 5 * model.dim)
    assert model.encode(windows(channels=2, patches=3)).pooled.shape == encoding.pooled.shape
    assert torch.equal(model.encode(batch).pooled, encoding.pooled)
    assert model.query_channel_attention(batch).shape == (3, 2, 6)
    torch.testing.assert_close(model.query_channel_attention(batch).sum(-1), torch.ones(3, 2))


def test_padding_and_batch_mates(model):
    """Mixed montages: a sample by itself and among others, for encoder, decoder and attention."""
    eeg, meg = windows(2), windows(2, 9, 7, kind="mag", seed=5)
    mixed = joined(padded(eeg, 9, 7), padded(meg, 9, 7))
    hidden = torch.rand(4, 9, 7) < 0.5
    parts = model.encode(mixed)
    prediction = model.reconstruct(mixed, hidden.flatten(1)).unflatten(1, (9, 7))
    for rows, alone in ((slice(0, 2), eeg), (slice(2, 4), meg)):
        c, p = alone.grid
        by_itself = model.encode(alone)
        torch.testing.assert_close(parts.pooled[rows], by_itself.pooled, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(parts.tokens[rows, :p], by_itself.tokens, atol=1e-5, rtol=1e-5)
        expected = model.reconstruct(alone, hidden[rows, :c, :p].flatten(1)).unflatten(1, (c, p))
        torch.testing.assert_close(prediction[rows, :c, :p], expected, atol=1e-5, rtol=1e-5)
        attention = model.query_channel_attention(mixed)[rows, :, :c]
        torch.testing.assert_close(attention, model.query_channel_attention(alone), atol=1e-5, rtol=1e-5)


def test_names_stay_with_their_sample():
    model = luna.build(FACTS, **(luna.SIZES["test"] | {"channel_names": 12})).eval()
    batch = windows(2)
    batch.aligned["channel_name"] = torch.tensor([[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, -1, -1]])
    hidden = torch.rand(2, 30) < 0.5
    together = model.reconstruct(batch, hidden)
    for i in range(2):
        rows = torch.tensor([i])
        torch.testing.assert_close(
            together[i : i + 1], model.reconstruct(batch.rows(rows), hidden[rows]), atol=1e-5, rtol=1e-5
        )
    batch.aligned["channel_name"] = batch.aligned["channel_name"].flip(0)
    assert not torch.allclose(together, model.reconstruct(batch, hidden), atol=1e-4)


def test_order_of_channels(model):
    batch, order = windows(kind="mag"), torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = replace(
        batch,
        values=batch.values.unflatten(1, batch.grid)[:, order].flatten(1, 2),
        place=batch.place[:, order],
        orientation=batch.orientation[:, order],
    )
    torch.testing.assert_close(model.encode(shuffled).pooled, model.encode(batch).pooled, atol=1e-5, rtol=1e-5)
    elsewhere = replace(batch, place=batch.place[:, order])
    assert not torch.allclose(model.encode(elsewhere).pooled, model.encode(batch).pooled, atol=1e-4)


def test_sensors_are_told_apart(model):
    """The decoder, asked for the same place with another orientation or kind, answers otherwise."""
    batch, hidden = windows(kind="mag"), torch.rand(3, 30) < 0.5
    answer = model.reconstruct(batch, hidden)
    turned = replace(batch, orientation=-batch.orientation)
    planar = replace(batch, kind=torch.full_like(batch.kind, KINDS.index("grad")))
    for other in (turned, planar):
        assert not torch.allclose(model.reconstruct(other, hidden), answer, atol=1e-4)


def test_units(model):
    batch = windows()
    louder = replace(batch, values=batch.values * 1000)
    torch.testing.assert_close(model.encode(louder).pooled, model.encode(batch).pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["one channel", "no place", "flat", "empty row"])
def test_finite(model, case):
    batch = windows(channels=1) if case == "one channel" else windows()
    if case == "no place":
        batch.place[0] = torch.nan
        batch.place[1, 2, 1] = torch.nan
    if case == "flat":
        batch.values[:, :5] = 1000.1
    if case == "empty row":
        batch.mask[1] = False
        batch.kind[1] = -1
    encoding = model.encode(batch)
    hidden = torch.rand(batch.mask.shape) < 0.5
    assert encoding.tokens.isfinite().all()
    assert encoding.pooled.isfinite().all()
    loss = sum(MaskedPatches()(model.train(), batch).values())
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.eval().reconstruct(batch, hidden).isfinite().all()


def test_hidden_samples_do_not_leak(model):
    """Neither by their values nor by the mean and spread of their channel."""
    batch, hidden = windows(), torch.rand(3, 30) < 0.5
    other = replace(batch, values=torch.where(hidden.unsqueeze(-1), batch.values * 50 + 9, batch.values))
    assert torch.equal(model.reconstruct(other, hidden), model.reconstruct(batch, hidden))
    assert not torch.allclose(model.reconstruct(other, ~hidden), model.reconstruct(batch, ~hidden))


def test_other_patch_lengths(model):
    batch = windows(patches=2, patch=40)
    torch.testing.assert_close(model.encode(batch).pooled, model.encode(batch.repatch(16)).pooled)
    with pytest.raises(ValueError, match="repatch"):
        model.reconstruct(batch, batch.mask)


def test_quarters():
    ramp = torch.arange(8.0).view(1, 8, 1)
    real = torch.ones(1, 8, dtype=torch.bool)
    assert luna.quarters(ramp, real).tolist() == [[3.5, 0.5, 2.5, 4.5, 6.5]]
    assert luna.quarters(ramp, real & (torch.arange(8) < 2)).tolist() == [[0.5, 0.0, 0.0, 1.0, 1.0]]


def test_learns(model):
    """Channels that share one source are predicted from each other."""
    torch.manual_seed(0)
    phase = torch.rand(8, 1, 1) * 6.28
    wave = torch.sin(phase + torch.arange(64).view(1, 1, -1) * 0.3) * torch.tensor([1.0, 1, 1, -1]).view(1, 4, 1)
    batch = replace(windows(8, 4, 4), values=wave.reshape(8, 16, 16))
    objective, optimiser = MaskedPatches(share=0.25), torch.optim.AdamW(model.train().parameters(), 5e-3)
    losses, r = [], []
    for _ in range(150):
        parts = objective(model, batch)
        loss = sum(v for k, v in parts.items() if not k.startswith("metric_"))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        r.append(parts["metric_r"].item())
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])
    assert sum(r[-10:]) > 5 > 3 > sum(r[:10])


def test_state_survives(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "luna.pt")
    other = luna.build(FACTS, **luna.SIZES["test"]).eval()
    other.load_state_dict(torch.load(tmp_path / "luna.pt"), strict=True)
    assert torch.equal(other.encode(windows()).pooled, model.encode(windows()).pooled)


def test_short_window_is_refused():
    with pytest.raises(ValueError, match="longer"):
        luna.build(replace(FACTS, window_s=0.1), patch=32)
