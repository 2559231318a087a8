"""The masked autoencoder of regions: what it must not depend on, and that it learns what regions say of each other."""

from dataclasses import replace

import pytest
import torch

from brainfm.models import roi_mae
from brainfm.objectives.masked_regions import MaskedRegions, hidden_channels
from brainfm.recording import KINDS
from brainfm.tokens import Facts, TokenBatch

REGIONS = 10
FACTS = Facts(("fmri",), ("region",), 0.5, 64.0, REGIONS, (), tuple(f"region {i}" for i in range(REGIONS)))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def windows(n=3, regions=REGIONS, patches=8, patch=4, seed=0):
    """Windows of three networks that mix linearly into regions, as smooth functions of place."""
    draw = torch.Generator().manual_seed(seed)
    place = torch.randn(regions, 3, generator=torch.Generator().manual_seed(9)) * 0.05
    mixing = torch.cat((place / 0.05, torch.ones(regions, 1)), dim=1)[:, -3:]
    signal = mixing @ torch.randn(n, 3, patches * patch, generator=draw)
    signal = signal + 0.3 * torch.randn(signal.shape, generator=draw)
    return TokenBatch(
        signal.reshape(n, regions * patches, patch),
        (torch.arange(patches) * patch * 2.0).repeat(regions).expand(n, -1),
        torch.arange(regions).repeat_interleave(patches).expand(n, -1),
        place.expand(n, -1, -1).clone(),
        torch.zeros(n, regions, 3),
        torch.full((n, regions), KINDS.index("region")),
        torch.ones(n, regions * patches, dtype=torch.bool),
        (regions, patches),
        0.5,
    )


def hide(batch, regions):
    hidden = torch.zeros(len(batch), *batch.grid, dtype=torch.bool)
    hidden[:, regions] = True
    return hidden.flatten(1)


@pytest.fixture
def model():
    torch.manual_seed(1)
    built = roi_mae.build(FACTS, **roi_mae.SIZES["test"]).eval()
    torch.nn.init.normal_(built.correct.weight, std=0.1)  # starts at zero, where it would hide a leak
    return built


def padded(batch, regions, patches):
    n, (r, p), v = len(batch), batch.grid, batch.values.shape[-1]
    values, mask = torch.full((n, regions, patches, v), 7.0), torch.zeros(n, regions, patches, dtype=torch.bool)
    values[:, :r, :p], mask[:, :r, :p] = batch.values.unflatten(1, (r, p)), True
    place, kind = torch.full((n, regions, 3), torch.nan), torch.full((n, regions), -1)
    place[:, :r], kind[:, :r] = batch.place, batch.kind
    time = (torch.arange(patches) * v * 2.0).repeat(regions).expand(n, -1)
    channel = torch.arange(regions).repeat_interleave(patches).expand(n, -1)
    return TokenBatch(
        values.flatten(1, 2), time, channel, place, torch.zeros(n, regions, 3), kind, mask.flatten(1),
        (regions, patches), 0.5,
    )  # fmt: skip


def test_shapes(model):
    encoding = model.encode(windows())
    assert encoding.tokens.shape == (3, 80, model.dim)
    assert torch.equal(encoding.mask, windows().mask)
    assert encoding.pooled.shape == (3, 6 * 7 // 2 + model.dim)
    assert model.encode(windows(regions=5, patches=3)).pooled.shape == encoding.pooled.shape
    assert torch.equal(model.encode(windows()).pooled, encoding.pooled)


def test_padding_and_batch_mates(model):
    a, b = windows(2), windows(2, 7, 5, seed=3)
    parts = [padded(x, 12, 9) for x in (a, b)]
    names = ("values", "time", "channel", "place", "orientation", "kind", "mask")
    mixed = replace(parts[0], **{k: torch.cat([getattr(x, k) for x in parts]) for k in names})
    encoding, prediction = model.encode(mixed), model.reconstruct(mixed, hide(mixed, [1, 4])).unflatten(1, (12, 9))
    for rows, alone in ((slice(0, 2), a), (slice(2, 4), b)):
        r, p = alone.grid
        by_itself = model.encode(alone)
        torch.testing.assert_close(encoding.pooled[rows], by_itself.pooled, atol=1e-5, rtol=1e-5)
        tokens = encoding.tokens.unflatten(1, (12, 9))[rows, :r, :p].flatten(1, 2)
        torch.testing.assert_close(tokens, by_itself.tokens, atol=1e-5, rtol=1e-5)
        expected = model.reconstruct(alone, hide(alone, [1, 4])).unflatten(1, (r, p))
        torch.testing.assert_close(prediction[rows, :r, :p], expected, atol=1e-5, rtol=1e-5)


def test_order_of_regions(model):
    """Places identify regions; the row does only where the place is unknown."""
    batch, order = windows(), torch.randperm(REGIONS)
    values = batch.values.unflatten(1, batch.grid)[:, order].flatten(1, 2)
    shuffled = replace(batch, values=values, place=batch.place[:, order])
    torch.testing.assert_close(model.encode(shuffled).pooled, model.encode(batch).pooled, atol=1e-5, rtol=1e-5)
    nowhere = torch.full_like(batch.place, torch.nan)
    a, b = replace(batch, place=nowhere), replace(shuffled, place=nowhere)
    assert not torch.allclose(model.encode(a).pooled, model.encode(b).pooled, atol=1e-3)


def test_units(model):
    batch = windows()
    raw = replace(batch, values=batch.values * 1000 + 2000)
    torch.testing.assert_close(model.encode(raw).pooled, model.encode(batch).pooled, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(
        model.encode(replace(batch, values=batch.values * 1000)).pooled,
        model.encode(batch).pooled,
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("case", ["one region", "no place", "flat", "empty row"])
def test_finite(model, case):
    batch = windows(regions=1) if case == "one region" else windows()
    if case == "no place":
        batch.place[0] = torch.nan
        batch.place[1, 2, 1] = torch.nan
    if case == "flat":
        batch.values[:, :8] = 1e4 + 0.1
    if case == "empty row":
        batch.mask[1] = False
        batch.kind[1] = -1
    encoding = model.encode(batch)
    assert encoding.tokens.isfinite().all()
    assert encoding.pooled.isfinite().all()
    parts = MaskedRegions()(model.train(), batch)
    assert all(v.isfinite() for v in parts.values())
    parts["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.reconstruct(batch, batch.mask).isfinite().all()


def test_flat_region_says_nothing(model):
    """A bad region, which is zero, counts as hidden and pulls nothing towards zero."""
    batch = windows()
    flat = replace(batch, values=batch.values.masked_fill(hide(batch, [3]).unsqueeze(-1), 0.0))
    hidden = hide(batch, [3, 5])
    assert torch.equal(model.reconstruct(flat, hide(batch, [5])), model.reconstruct(batch, hidden))


def test_hidden_regions_do_not_leak(model):
    batch = windows()
    hidden = hide(batch, [2, 7]) | (torch.rand(batch.mask.shape) < 0.2)
    other = replace(batch, values=torch.where(hidden.unsqueeze(-1), batch.values * 50 + 9, batch.values))
    assert torch.equal(model.reconstruct(other, hidden), model.reconstruct(batch, hidden))
    assert not torch.allclose(model.reconstruct(other, ~hidden), model.reconstruct(batch, ~hidden))


def test_linear_path_is_the_posterior_mean(model):
    """Against factor analysis with a dense covariance: E[h | v] = S_hv S_vv^-1 v."""
    batch, gone = windows(1), [1, 6]
    with torch.no_grad():
        x, visible = model._standardised(batch, hide(batch, gone))
        who = model._who(batch)
        _, got = model._linear(x, visible, who)
        loading = model.loading(who)[0]
        noise = 1 / torch.nn.functional.softplus(model.precision(who))[0, :, 0]
    seen = [i for i in range(REGIONS) if i not in gone]
    covariance = loading @ loading.T + torch.diag(noise)
    gain = covariance[gone][:, seen] @ torch.linalg.inv(covariance[seen][:, seen])
    torch.testing.assert_close(got[0, gone].flatten(1), gain @ x[0, seen].flatten(1), atol=1e-4, rtol=1e-4)


def test_learns_and_transfers(model):
    """Trained on some windows, it explains hidden regions of others, and does not where regions are independent."""
    batch, objective = windows(16), MaskedRegions(0.2, 0.4)
    optimiser = torch.optim.AdamW(model.train().parameters(), 5e-3)
    for _ in range(150):
        loss = objective(model, batch)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        assert objective(model, windows(16, seed=4))["metric_r2"] > 0.5
        unrelated = replace(windows(16), values=torch.randn(16, 80, 4))
        assert objective(model, unrelated)["metric_r2"] < 0.05


def test_hidden_channels():
    real = torch.ones(200, 10, dtype=torch.bool)
    real[:, 8:] = False
    real[0] = False
    real[1, 1:] = False
    hidden = hidden_channels(real, torch.full((200,), 0.5))
    assert not hidden[:2].any()
    assert not (hidden & ~real).any()
    assert (hidden[2:].sum(1) == 4).all()
    assert len(torch.unique(hidden[2:], dim=0)) > 30
    assert (hidden_channels(real, torch.zeros(200))[2:].sum(1) == 1).all()
    assert (hidden_channels(real, torch.full((200,), 0.99))[2:].sum(1) == 7).all()
    with pytest.raises(ValueError, match="low"):
        MaskedRegions(0.5, 0.2)


def test_other_patch_lengths(model):
    batch = windows(patches=3, patch=12)
    torch.testing.assert_close(model.encode(batch).pooled, model.encode(batch.repatch(4)).pooled)
    assert MaskedRegions()(model, batch)["loss"].isfinite()
    with pytest.raises(ValueError, match="repatch"):
        model.reconstruct(batch, batch.mask)


def test_state_survives(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "regions.pt")
    other = roi_mae.build(FACTS, **roi_mae.SIZES["test"]).eval()
    other.load_state_dict(torch.load(tmp_path / "regions.pt"), strict=True)
    assert torch.equal(other.encode(windows()).pooled, model.encode(windows()).pooled)
