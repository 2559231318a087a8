"""Augmentations: what each changes, what it must keep, and that padding is never touched."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfm.config import ConfigError
from brainfm.models import luna
from brainfm.objectives.masked_patches import MaskedPatches
from brainfm.tokens import Facts, TokenBatch
from brainfm.training import augment
from brainfm.training.augment import AmplitudeScale, BandStop, ChannelDrop, PlaceDrop, SurrogatePhase, TimeShift

QUICK = settings(max_examples=30, deadline=None)
SFREQ = 64.0
ALL = [ChannelDrop(0.4), PlaceDrop(0.5), TimeShift(1.0), AmplitudeScale(1.0), BandStop(1.0), SurrogatePhase(1.0)]
IN_TIME = [a for a in ALL if not isinstance(a, ChannelDrop | PlaceDrop)]


def batch(channels: list[int], patches: list[int], patch: int = 8, seed: int = 0, padding: float = 0.0) -> TokenBatch:
    """Windows of as many channels and patches as told, in one grid; `padding` fills what is not real."""
    rng = torch.Generator().manual_seed(seed)
    n, c, p = len(channels), max(channels), max(patches)
    real = torch.zeros(n, c, p, dtype=torch.bool)
    kind = torch.full((n, c), -1)
    for i, (have, long) in enumerate(zip(channels, patches, strict=True)):
        real[i, :have, :long], kind[i, :have] = True, 0
    values = torch.where(real[..., None], torch.randn(n, c, p, patch, generator=rng), padding)
    place = torch.randn(n, c, 3, generator=rng).masked_fill((kind < 0)[..., None], torch.nan)
    return TokenBatch(
        values.flatten(1, 2), (torch.arange(p) * (patch / SFREQ)).repeat(c).expand(n, -1),
        torch.arange(c).repeat_interleave(p).expand(n, -1), place, torch.zeros(n, c, 3), kind, real.flatten(1), (c, p),
        SFREQ, {"label": torch.arange(n)},
    )  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spectrum(made: TokenBatch) -> torch.Tensor:
    return torch.fft.rfft(made.signal().double())


@st.composite
def batches(draw: st.DrawFn) -> TokenBatch:
    """Mixed montages and lengths; padding holds rubbish that nothing may touch."""
    n = draw(st.integers(1, 5))
    sizes = [[draw(st.integers(1, 6)) for _ in range(n)] for _ in range(2)]
    return batch(sizes[0], sizes[1], draw(st.integers(4, 9)), draw(st.integers(0, 99)), padding=7e3)


@QUICK
@given(batches(), st.sampled_from(ALL), st.integers(0, 2**40))
def test_padding_and_the_batch_itself_stay(made: TokenBatch, change: augment.Augmentation, seed: int) -> None:
    before = made.values.clone()
    got = change(made, generator(seed))
    assert torch.equal(made.values, before), "the batch that came in was changed"
    dropped = (made.channel_mask() & ~got.channel_mask()).repeat_interleave(made.grid[1], dim=1)
    padding = ~made.mask & ~dropped
    assert torch.equal(got.values[padding], before[padding])
    assert got.values.isfinite().all()
    assert got.values.dtype == before.dtype
    assert got.values.shape == before.shape
    assert (got.mask & ~made.mask).sum() == 0
    for name in ("time", "channel", "grid", "sfreq", "aligned"):
        assert getattr(got, name) is getattr(made, name)
    again = change(made, generator(seed))
    assert torch.equal(got.values, again.values)
    assert torch.equal(got.mask, again.mask)


@QUICK
@given(batches(), st.sampled_from(IN_TIME), st.integers(0, 99))
def test_a_window_fares_as_it_would_without_padding(made: TokenBatch, change: augment.Augmentation, seed: int) -> None:
    """A window in the grid of a larger one, and in a grid of its own size."""
    channels, patches = int(made.channel_mask()[0].sum()), int(made.mask[0].view(made.grid).sum(1).max())
    one = made.rows(slice(0, 1))
    tight = replace(
        one, values=one.values.unflatten(1, one.grid)[:, :channels, :patches].flatten(1, 2),
        mask=torch.ones(1, channels * patches, dtype=torch.bool), kind=one.kind[:, :channels], grid=(channels, patches),
    )  # fmt: skip
    loose = change(one, generator(seed)).values.unflatten(1, one.grid)[:, :channels, :patches].flatten(1, 2)
    torch.testing.assert_close(loose, change(tight, generator(seed)).values, atol=1e-5, rtol=1e-5)


@QUICK
@given(batches(), st.floats(0, 1), st.integers(0, 99))
def test_a_channel_always_stays(made: TokenBatch, p: float, seed: int) -> None:
    got = ChannelDrop(p)(made, generator(seed))
    tokens = got.mask.view(-1, *got.grid)
    assert tokens.any(dim=2).any(dim=1).all()
    assert torch.equal(tokens.any(dim=2), got.channel_mask())
    gone = made.channel_mask() & ~got.channel_mask()
    assert (got.signal()[gone] == 0).all()
    assert got.place[gone].isnan().all()
    stays = got.channel_mask()
    assert torch.equal(tokens[stays], made.mask.view(-1, *made.grid)[stays])
    assert torch.equal(got.signal()[stays], made.signal()[stays])
    assert torch.equal(got.place[stays], made.place[stays])
    if p == 1:
        assert (stays.sum(dim=1) == 1).all()


def test_channels_are_dropped_as_often_as_told() -> None:
    made = batch([20] * 400, [1] * 400)
    dropped = ~ChannelDrop(0.25)(made, generator()).channel_mask()
    share = dropped.double().mean()
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / dropped.numel())


def test_places_are_forgotten_with_their_orientation_and_nothing_else() -> None:
    made = batch([6] * 400, [2] * 400)
    made.orientation[:] = 1.0
    got = PlaceDrop(0.5)(made, generator())
    lost = got.place.isnan().any(dim=2)
    assert abs((lost.any(dim=1)).double().mean() - 0.5 * (1 - 1 / 7)) < 0.08  # 1 in 7 shares takes none of six
    assert set(lost.sum(dim=1).tolist()) == set(range(7))
    assert torch.equal(got.place[~lost], made.place[~lost])
    assert not got.orientation[lost].any()
    assert torch.equal(got.kind, made.kind)
    assert torch.equal(got.values, made.values)


def test_a_model_sees_dropped_channels_as_absent() -> None:
    torch.manual_seed(0)
    model = luna.build(Facts(("eeg",), ("eeg",), SFREQ, 0.5), **{**luna.SIZES["test"], "patch": 8}).eval()
    made = batch([6, 6], [4, 4])
    got = ChannelDrop(0.5)(made, generator(3))
    left = got.channel_mask()[0]
    assert 0 < left.sum() < 6
    without = replace(
        made.rows(slice(0, 1)), values=made.signal()[:1, left].unflatten(2, (4, 8)).flatten(1, 2),
        mask=torch.ones(1, int(left.sum()) * 4, dtype=torch.bool), place=made.place[:1, left],
        orientation=made.orientation[:1, left], kind=made.kind[:1, left], grid=(int(left.sum()), 4),
        channel=torch.arange(int(left.sum())).repeat_interleave(4)[None],
    )  # fmt: skip
    with torch.inference_mode():
        seen, expected = model.encode(got).pooled[:1], model.encode(without).pooled
        assert all(v.isfinite() for v in MaskedPatches()(model, got).values())
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-4)


def test_shift_goes_round_by_whole_samples_within_its_range() -> None:
    made = batch([3] * 300, [4] * 300)
    made.values.copy_(torch.arange(32.0).repeat(3).view(1, 12, 8).expand(300, -1, -1))
    got = TimeShift(1.0, max_s=3 / SFREQ)(made, generator()).signal()
    by = -got[:, 0, 0].long()
    by = torch.where(by < -16, by + 32, by)
    assert set(by.tolist()) == set(range(-3, 4))
    for i in range(300):
        assert torch.equal(got[i], made.signal()[i].roll(int(by[i]), dims=-1))


def test_scale_is_one_factor_for_all_channels_of_a_window() -> None:
    made = batch([4] * 500, [2] * 500)
    ratio = AmplitudeScale(1.0, 0.25, 4.0)(made, generator()).signal() / made.signal()
    factor = ratio.mean(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(ratio, factor.expand_as(ratio), rtol=1e-4, atol=0)
    assert 0.25 <= factor.min() < 0.3
    assert 3.4 < factor.max() <= 4.0
    assert abs(factor.log().mean()) < 4 * math.log(4) / math.sqrt(3 * 500)


def test_band_stop_removes_a_band_and_nothing_else() -> None:
    made = batch([3] * 40, [16] * 40)
    before, after = spectrum(made), spectrum(BandStop(1.0, width_hz=6.0)(made, generator()))
    frequency = torch.fft.rfftfreq(128, 1 / SFREQ)
    gone = (after.abs() < 1e-4 * before.abs()).all(dim=1)
    for i in range(40):
        width = frequency[gone[i]].max() - frequency[gone[i]].min()
        assert gone[i].sum() in (12, 13), "6 Hz in bins of half a hertz"
        assert width <= 6.0
        torch.testing.assert_close(after[i][:, ~gone[i]], before[i][:, ~gone[i]], atol=1e-4, rtol=1e-4)
    assert len({tuple(g.tolist()) for g in gone}) > 20
    assert frequency[gone.any(dim=0)].max() > 28
    assert not gone[:, 0].any(), "the mean stays"
    below = spectrum(BandStop(1.0, width_hz=6.0, max_hz=10.0)(made, generator()))
    assert (below.abs() > 1e-4 * before.abs())[..., frequency > 10].all()


def test_a_narrow_band_takes_a_bin_of_a_short_window() -> None:
    made = batch([2] * 30, [1] * 30)
    gone = spectrum(BandStop(1.0, width_hz=0.1)(made, generator())).abs() < 1e-5
    assert gone.all(dim=1).any(dim=1).all()


@pytest.mark.parametrize("patch", [8, 9])
@pytest.mark.parametrize("patches", [1, 5])
def test_surrogates_keep_amplitudes_and_cross_spectra(patch: int, patches: int) -> None:
    made = batch([4] * 20, [patches] * 20, patch)
    got = SurrogatePhase(1.0)(made, generator())
    before, after = spectrum(made), spectrum(got)
    torch.testing.assert_close(after.abs(), before.abs(), atol=1e-4, rtol=1e-4)
    cross = [x[:, :, None] * x[:, None].conj() for x in (before, after)]
    torch.testing.assert_close(cross[1], cross[0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(got.signal().mean(2), made.signal().mean(2), atol=1e-5, rtol=1e-4)
    assert (got.signal() - made.signal()).abs().mean() > 0.3
    turned = (after / before)[:, 0, 1:-1].angle()
    assert turned.std() > 1


def test_surrogates_of_no_strength_are_the_signal() -> None:
    made = batch([3], [4])
    torch.testing.assert_close(SurrogatePhase(1.0, 0.0)(made, generator()).values, made.values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("change", [TimeShift(0.3), AmplitudeScale(0.3), BandStop(0.3), SurrogatePhase(0.3)])
def test_windows_are_changed_as_often_as_told(change: augment.Augmentation) -> None:
    made = batch([2] * 600, [4] * 600)
    same = (change(made, generator()).values == made.values).flatten(1).all(dim=1)
    expected = 0.3 * (32 / 33 if isinstance(change, TimeShift) else 1.0)  # one shift in 33 is by nothing
    assert abs((~same).double().mean() - expected) < 4 * math.sqrt(0.21 / 600)


@pytest.mark.parametrize("name", augment.KNOWN)
def test_events_and_codes_are_refused_by_name(name: str) -> None:
    made = batch([2], [3])
    with pytest.raises(ValueError, match=f"{name} changes sampled signals; this batch holds events: take {name} out"):
        augment.KNOWN[name]()(replace(made, grid=None, sfreq=None), generator())
    with pytest.raises(ValueError, match=f"{name} changes sampled signals; this batch holds codes"):
        augment.KNOWN[name]()(replace(made, sfreq=None), generator())


def test_covariates_hold_time_fast() -> None:
    made = replace(batch([2], [3]), aligned={"velocity": torch.zeros(1, 10, 2), "label": torch.zeros(1)})
    for change in (TimeShift(), SurrogatePhase()):
        with pytest.raises(ValueError, match="against its aligned 'velocity'"):
            change(made, generator())
    for change in (ChannelDrop(), AmplitudeScale(), BandStop()):
        change(made, generator())


def test_bounds_that_a_signal_cannot_meet() -> None:
    with pytest.raises(ValueError, match=r"max_s 0\.001 is less than a sample at 64 Hz; set it to 0\.015625"):
        TimeShift(max_s=0.001)(batch([2], [3]), generator())
    with pytest.raises(ValueError, match="width_hz 40 leaves nothing of the 32 Hz"):
        BandStop(width_hz=40)(batch([2], [3]), generator())


def test_a_configuration_names_them_in_its_order() -> None:
    made = augment.build({"band_stop": None, "channel_drop": {"p": 0.3}}, "here")
    assert made == [BandStop(), ChannelDrop(0.3)]
    assert augment.build({}, "here") == []


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"chanel_drop": {}}, "here: unknown block 'chanel_drop'; did you mean 'channel_drop'?"),
        ({"channel_drop": {"prob": 0.1}}, "here: channel_drop: unknown keyword 'prob'; .*p"),
        ({"band_stop": {"widht_hz": 2}}, "unknown keyword 'widht_hz'; did you mean 'width_hz'?"),
        ({"time_shift": {"p": 2}}, "here: time_shift: p is 2; expected a number from 0 to 1"),
        ({"time_shift": {"max_s": "long"}}, "max_s is 'long'; expected a number from 0"),
        ({"amplitude_scale": {"low": 3}}, "high is 2.0; expected a number from 3"),
        ({"time_shift": 3}, "time_shift: got 3; expected keywords"),
        (["time_shift"], "here: got .'time_shift'.; expected keywords"),
    ],
)
def test_a_wrong_configuration_is_an_error_that_helps(given_: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
        augment.build(given_, "here")


def test_numpy_is_not_the_source_of_chance() -> None:
    """Only the generator decides: a resumed run draws the same, whatever was drawn elsewhere."""
    made = batch([4] * 6, [4] * 6)
    first = [change(made, generator(5)) for change in ALL]
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    for one, change in zip(first, ALL, strict=True):
        assert torch.equal(one.values, change(made, generator(5)).values)
