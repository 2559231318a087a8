"""BrainTokenizer: what must not matter does not, codes mean what they say, the codebooks start, move and restart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from brainfm.codebooks import braintokenizer, residual, sensors
from brainfm.objectives.reconstruct import Reconstruct, distances, keep_channels, phase_distance
from brainfm.recording import KINDS
from brainfm.tokens import Facts, TokenBatch

SFREQ, PATCH, WINDOWS = 64.0, 32, 2
EEG, MAG, GRAD, AXIAL = (KINDS.index(kind) for kind in ("eeg", "mag", "grad", "axial"))


def make_batch(montages: list[list[int]], seed: int = 0, scale: float = 1.0) -> TokenBatch:
    """Smooth random signals of the given montages (kinds of each sample's channels), padded to the largest."""
    random = torch.Generator().manual_seed(seed)
    batch, channels = len(montages), max(map(len, montages))
    values = torch.randn(batch, channels, WINDOWS * PATCH, generator=random).cumsum(dim=2) * scale
    kind = torch.full((batch, channels), -1)
    for i, montage in enumerate(montages):
        kind[i, : len(montage)] = torch.tensor(montage)
    real = kind >= 0
    values, place = values * real[..., None], torch.randn(batch, channels, 3, generator=random) * 0.05
    place[~real] = torch.nan
    orientation = torch.randn(batch, channels, 3, generator=random) * (kind > 0)[..., None]
    return TokenBatch(
        values=values.view(batch, channels * WINDOWS, PATCH),
        time=(torch.arange(WINDOWS) * PATCH / SFREQ).repeat(channels).expand(batch, -1),
        channel=torch.arange(channels).repeat_interleave(WINDOWS).expand(batch, -1),
        place=place,
        orientation=orientation,
        kind=kind,
        mask=real.repeat_interleave(WINDOWS, dim=1),
        grid=(channels, WINDOWS),
        sfreq=SFREQ,
    )


def make_model(**keywords: object) -> braintokenizer.BrainTokenizer:
    torch.manual_seed(0)
    model = braintokenizer.build(Facts(sfreq=SFREQ), **(braintokenizer.SIZES["test"] | keywords))
    model.train()
    with torch.no_grad():
        Reconstruct()(model, make_batch([[EEG] * 6, [MAG, GRAD] * 3], seed=9))  # starts the codebooks
    return model.eval()


@pytest.fixture(scope="module")
def model() -> braintokenizer.BrainTokenizer:
    torch.set_num_threads(1)
    return make_model()


def same(a: torch.Tensor, b: torch.Tensor, within: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=within, rtol=within)


def pick(batch: TokenBatch, order: list[int]) -> TokenBatch:
    """The channels of a batch in another order, or some of them."""
    rows = torch.tensor(order)
    return replace(
        batch,
        values=batch.values.unflatten(1, batch.grid)[:, rows].flatten(1, 2),
        mask=batch.mask.unflatten(1, batch.grid)[:, rows].flatten(1, 2),
        time=batch.time[:, : len(order) * WINDOWS],
        channel=torch.arange(len(order)).repeat_interleave(WINDOWS).expand(len(batch), -1),
        place=batch.place[:, rows], orientation=batch.orientation[:, rows], kind=batch.kind[:, rows],
        grid=(len(order), WINDOWS),
    )  # fmt: skip


def test_published_sizes_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = braintokenizer.build(braintokenizer.FACTS, **braintokenizer.SIZES["published"])
    assert sum(p.numel() for p in model.parameters()) == 5_050_338
    assert (model.patch, model.tokens_per_window, model.sources) == (512, 8, 16)


def test_kind_codes_are_those_of_the_recordings() -> None:
    assert (
        tuple(
            tuple(KINDS.index(k) for k in group)
            for group in (("eeg",), ("mag", "grad", "axial"), ("ecog", "seeg"), ("region", "neuron", "misc"))
        )
        == sensors.GROUPS
    )
    assert [KINDS[i] for i, row in enumerate(sensors.RELEASED_TYPES) if row == 2] == ["grad", "axial"]


@pytest.mark.parametrize("released", [False, True])
def test_mixed_montages_alone_and_together(released: bool) -> None:
    model = make_model(released=released)
    both = make_batch([[EEG] * 5, [MAG, GRAD, AXIAL, EEG] * 2])
    alone = pick(both.rows(torch.tensor([0])), list(range(5)))
    together, single = model.encode(both), model.encode(alone)
    same(together.tokens[:1], single.tokens)
    same(together.pooled[:1], single.pooled)
    same(model.reconstruct(both)[1][:1, :5], model.reconstruct(alone)[1])
    assert torch.equal(model.codes(both)[:1], model.codes(alone))


@pytest.mark.parametrize("released", [False, True])
def test_padding_in_time_and_channels_is_ignored_whatever_it_holds(released: bool) -> None:
    model = make_model(released=released)
    batch = make_batch([[EEG] * 5, [MAG] * 7])
    mask = batch.mask.unflatten(1, batch.grid).clone()
    mask[:, :, 1] = False
    cut = replace(batch, mask=mask.flatten(1))
    dirty = replace(cut, values=torch.where(cut.mask[..., None], cut.values, torch.full_like(cut.values, torch.nan)))
    clean, spoilt = model.sources_of(cut), model.sources_of(dirty)
    assert torch.equal(clean.codes, spoilt.codes)
    assert torch.equal(clean.features, spoilt.features)
    tokens = model.tokens_per_window
    assert clean.mask[:, :, :tokens].all()
    assert not clean.mask[:, :, tokens:].any()
    if not released:  # a window's codes do not depend on its neighbours
        assert torch.equal(clean.codes[:, :, :tokens], model.codes(batch)[:, :, :tokens])


def test_order_of_channels_does_not_matter(model: braintokenizer.BrainTokenizer) -> None:
    batch, order = make_batch([[EEG, EEG, MAG, GRAD, EEG, MAG]]), [4, 2, 0, 5, 1, 3]
    same(model.encode(batch).tokens, model.encode(pick(batch, order)).tokens)
    same(model.reconstruct(batch)[1][:, order], model.reconstruct(pick(batch, order))[1], 1e-4)


def test_unit_does_not_matter_and_evaluation_repeats(model: braintokenizer.BrainTokenizer) -> None:
    batch = make_batch([[EEG] * 6, [MAG] * 4])
    first = model.encode(batch)
    assert torch.equal(first.tokens, model.encode(batch).tokens)
    for gain in (1000.0, 1e-6, 1e-13):
        same(first.tokens, model.encode(replace(batch, values=batch.values * gain)).tokens)


def test_awkward_input_stays_finite(model: braintokenizer.BrainTokenizer) -> None:
    batch = make_batch([[EEG] * 3, [EEG], [MAG] * 3, [EEG] * 3])
    values = batch.values.clone()
    values[2] = 7.0  # constant
    mask = batch.mask.clone()
    mask[3] = False
    batch = replace(batch, values=values, mask=mask, place=torch.full_like(batch.place, torch.nan))
    encoding = model.encode(batch)
    assert encoding.tokens.isfinite().all()
    assert encoding.pooled.isfinite().all()
    assert encoding.mask.any(dim=1).tolist() == [True, True, False, False]
    assert encoding.pooled.shape == (4, model.sources * model.dim)
    parts = Reconstruct()(make_model().train(), batch.rows(torch.tensor([3])))
    assert all(value.isfinite() for value in parts.values())


def test_unknown_positions_are_a_vector_of_their_own(model: braintokenizer.BrainTokenizer) -> None:
    batch = make_batch([[EEG] * 4])
    place = batch.place.clone()
    place[0, 1] = torch.nan
    before, after = model.geometry(batch), model.geometry(replace(batch, place=place))
    assert after.isfinite().all()
    assert not torch.allclose(before[0, 1], after[0, 1])
    assert model.sensors.unknown is not None


def test_positions_are_scaled_for_gradiometers_too() -> None:
    place = torch.randn(1, 8, 3) * 0.1 + 3.0
    for kinds in ([GRAD] * 8, [AXIAL] * 8, [MAG, GRAD] * 4, [EEG] * 8):
        scaled, known = sensors.centre_places(place, torch.tensor([kinds]))
        assert known.all()
        same(scaled.mean(dim=1), torch.zeros(1, 3))
        same(3 * scaled.square().sum(2).mean(), torch.tensor(1.0), 1e-3)


def test_both_kinds_of_an_emeg_recording_count(model: braintokenizer.BrainTokenizer) -> None:
    batch = make_batch([[EEG] * 4 + [MAG] * 4])
    windows = model.windows(batch)
    for rows in (slice(0, 4), slice(4, 8)):
        assert windows.mask[:, rows].all()
        same(windows.signal[:, rows].mean(dim=1), torch.zeros(1, WINDOWS, PATCH))
        same(windows.signal[:, rows].square().mean(dim=(1, 3)), torch.ones(1, WINDOWS))
    topography = model.source_topography(batch)
    same(topography.sum(dim=2), torch.ones(1, model.sources))
    assert (topography > 0).all()
    silent = batch.values.unflatten(1, batch.grid).index_fill(1, torch.arange(4, 8), 0)
    changed = replace(batch, values=silent.flatten(1, 2))
    windows_changed = model.windows(changed)
    latent = model.compress(windows, model.geometry(batch)) - model.compress(windows_changed, model.geometry(batch))
    assert latent.abs().max() > 1e-3


def test_codes_give_exactly_the_quantised_features(model: braintokenizer.BrainTokenizer) -> None:
    batch = make_batch([[EEG] * 6, [MAG] * 4])
    found = model.sources_of(batch)
    assert found.codes.shape == (2, model.sources, WINDOWS * model.tokens_per_window, model.depth)
    assert torch.equal(model.features_of(found.codes), found.features)
    assert torch.equal(model.codes(batch), found.codes)
    same(model.decode(found.codes, batch), model.reconstruct(batch)[1])
    assert (model.usage(found).sum(dim=1) == found.mask.sum()).all()


def test_overlapping_windows_repeat_the_shared_samples(model: braintokenizer.BrainTokenizer) -> None:
    signal = torch.arange(70.0).view(1, 1, -1)
    cut = model.cut(signal, 0.25)
    assert cut.shape == (1, 1, 3, PATCH)
    assert cut[0, 0, 1, 0] == 24
    assert cut[0, 0, 2, -10:].tolist() == [0.0] * 10
    assert model.cut(signal).shape == (1, 1, 2, PATCH)


def test_training_learns_and_evaluation_changes_nothing() -> None:
    model, batch = make_model(filters=8, codes=32), make_batch([[EEG] * 6, [MAG] * 5] * 2)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    objective, optimiser = Reconstruct(), torch.optim.Adam(model.parameters(), 1e-2)
    before = objective(model, batch)["metric_pcc"]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.train()
    for _ in range(160):
        parts = objective(model, batch)
        optimiser.zero_grad()
        torch.stack([value for name, value in parts.items() if not name.startswith("metric_")]).sum().backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not torch.equal(model.quantiser.stages[0].vectors, state["quantiser.stages.0.vectors"])
    model.eval()
    assert objective(model, batch)["metric_pcc"] > before + 0.1


def test_state_survives_strictly(model: braintokenizer.BrainTokenizer) -> None:
    other = braintokenizer.build(Facts(sfreq=SFREQ), **braintokenizer.SIZES["test"]).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    batch = make_batch([[EEG] * 6])
    assert torch.equal(other.encode(batch).tokens, model.encode(batch).tokens)


def test_padding_never_reaches_the_moving_averages() -> None:
    batch = make_batch([[EEG] * 6, [EEG] * 6])
    mask = batch.mask.clone()
    mask[1] = False
    found = []
    for noise in (1.0, 100.0):
        model = make_model(dropout=0.0).train()
        torch.manual_seed(5)
        other = torch.where(mask[..., None], batch.values, batch.values * noise + noise)
        model.autoencode(replace(batch, values=other, mask=mask))
        found.append(model.quantiser.stages[0].sums.clone())
    assert torch.equal(*found)


def test_released_tokenizer_refuses_what_it_never_knew() -> None:
    model = make_model(released=True)
    with pytest.raises(ValueError, match="released=False"):
        model.encode(make_batch([[KINDS.index("seeg")] * 3]))
    with pytest.raises(ValueError, match="a window of this tokenizer"):
        model.encode(replace(make_batch([[EEG]]), values=torch.zeros(1, WINDOWS, 4)))


def test_nearest_code_is_found_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances exist for `ROWS` rows at a time and never as (row, code, dim)."""
    x, vectors = torch.randn(1000, 6), torch.randn(40, 6)
    shapes: list[tuple[int, ...]] = []
    real = torch.addmm

    def spy(*args: torch.Tensor, **keywords: float) -> torch.Tensor:
        out = real(*args, **keywords)
        shapes.append(tuple(out.shape))
        return out

    monkeypatch.setattr(torch, "addmm", spy)
    monkeypatch.setattr(residual, "ROWS", 64)
    assert torch.equal(residual.nearest(x, vectors), torch.cdist(x, vectors).argmin(dim=1))
    assert max(rows * codes for rows, codes in shapes) == 64 * 40
    residual.k_means(x, 40, iterations=2)
    assert all(len(shape) == 2 and shape[0] <= 64 for shape in shapes)


def test_k_means_finds_clusters_and_takes_fewer_rows_than_codes() -> None:
    torch.manual_seed(0)
    centres = torch.eye(5) * 10
    found, count = residual.k_means(centres.repeat(200, 1) + 0.01 * torch.randn(1000, 5), 40)
    same(torch.cdist(centres, found).amin(dim=1), torch.zeros(5), 0.02)
    assert count.sum() == 1000
    assert residual.k_means(centres, 12)[0].shape == (12, 5)


def test_dead_codes_restart_and_stay_restarted() -> None:
    torch.manual_seed(0)
    book = residual.Codebook(8, 3, threshold=2.0)
    x = torch.randn(400, 3)
    book.start(x, torch.arange(400))
    book.vectors[0], book.sums[0], book.counts[0] = 1e3, 0.0, 0.0
    for _ in range(3):
        book.follow(x, book(x), torch.randint(1000, (400,)))
        assert torch.cdist(book.vectors[:1], x).min() < 1.0


def test_rotation_gives_the_target_and_a_finite_gradient() -> None:
    torch.manual_seed(0)
    source = torch.randn(6, 4)
    target = torch.randn(6, 4)
    source[0], target[1], target[2], source[3] = 0.0, -source[1], source[2], -target[3] * 2
    source.requires_grad_()
    rotated = residual.rotate(source, target)
    same(rotated[[2, 4, 5]], target[[2, 4, 5]])
    gradient = torch.randn(6, 4)
    rotated.backward(gradient)
    assert source.grad is not None
    assert source.grad.isfinite().all()
    scale = (target.norm(dim=1) / source.norm(dim=1)).detach()
    same(source.grad[4:].norm(dim=1), gradient[4:].norm(dim=1) * scale[4:])
    quantiser = residual.ResidualQuantiser(2, 8, 4).train()
    rows = torch.randn(50, 4, requires_grad=True)
    out = quantiser(rows)
    out.values.sum().backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()
    assert rows.grad.abs().sum() > 0


def test_phase_goes_around_the_circle() -> None:
    near = torch.polar(torch.ones(2), torch.tensor([3.1, -3.1]))
    same(phase_distance(near[:1], near[1:]), torch.tensor([2 * torch.pi - 6.2]), 1e-4)
    same(phase_distance(torch.ones(1) + 0j, -torch.ones(1) + 0j), torch.tensor([torch.pi]))
    x = torch.zeros(1, 1, 1, 16, requires_grad=True)
    parts = distances(torch.randn(1, 1, 1, 16), x, torch.ones(1, 1, 1, dtype=torch.bool))
    torch.stack(list(parts.values())).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_dropped_channels_are_real_and_some_stay() -> None:
    torch.manual_seed(0)
    real = torch.arange(12) < torch.tensor([12, 5, 2, 1, 0])[:, None]
    for _ in range(20):
        seen = keep_channels(real, 0.25, torch.rand(real.shape))
        assert not (seen & ~real).any()
        assert (real.sum(1) - seen.sum(1)).tolist() == [3, 1, 1, 0, 0]


def test_loss_ignores_padding() -> None:
    target, guess = torch.randn(2, 3, 1, 16), torch.randn(2, 3, 1, 16)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()[..., None]
    first = distances(target, guess, mask)
    other = torch.where(mask[..., None], guess, guess + 100)
    assert all(torch.equal(first[name], value) for name, value in distances(target, other, mask).items())
