"""Spikes as counts on a grid: every spike once and in its bin, whatever the start, the animal and their number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from brainfm.recording import Channels, Recording, Series
from brainfm.shards.read import Corpus, Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.training.batches import Batcher


def made(subject: str, neurons: int, spikes: int, duration: float = 4.0, **more: object) -> Recording:
    rng = np.random.default_rng(neurons)
    return Recording(
        "made_up", subject, "spikes", Channels.make([f"u{i}" for i in range(neurons)], "neuron"), duration=duration,
        spike_time=np.sort(rng.uniform(0, duration, spikes)), spike_neuron=rng.integers(0, neurons, spikes), **more,
    )  # fmt: skip


def corpus(folder: Path, *recordings: Recording) -> Corpus:
    for recording in recordings:
        write_shard(folder / f"sub-{recording.subject}.h5", [recording], {})
    return open_shards(folder)


def rows(found: Corpus, *starts: tuple[int, int, int]) -> Windows:
    recording, start, samples = np.array(starts).T
    none = np.full(len(starts), "", dtype=object)
    return Windows(found.recordings, recording, start, samples, none, none)


@pytest.mark.parametrize("bin_s", [0.005, 0.01, 0.02, 0.05])
def test_counts_are_those_of_a_histogram(tmp_path: Path, bin_s: float) -> None:
    recording = made("1", 7, 3000)
    batch = Batcher(bin_s=bin_s)(rows(corpus(tmp_path, recording), (0, 0, 300), (0, 1330, 300), (0, 3700, 300)))
    assert batch.sfreq == pytest.approx(1 / bin_s)
    assert batch.grid == (7, round(0.3 / bin_s))
    counts = batch.signal().numpy()
    for found, start in zip(counts, (0.0, 1.33, 3.7), strict=True):
        edges = start + bin_s * np.arange(batch.grid[1] + 1)
        for neuron in range(7):
            own = recording.spike_time[recording.spike_neuron == neuron]
            np.testing.assert_array_equal(found[neuron], np.histogram(own, edges)[0])
    assert batch.mask.all()
    assert counts.sum() > 400


def test_a_spike_on_an_edge_opens_its_bin_and_the_end_is_not_inside(tmp_path: Path) -> None:
    one = made("1", 1, 5)
    one.spike_time = np.array([0.1, 0.15, 0.2, 0.25, 0.3])
    batch = Batcher(bin_s=0.05)(rows(corpus(tmp_path, one), (0, 100, 200)))
    assert batch.signal()[0, 0].tolist() == [1, 1, 1, 1]


def test_two_animals_windows_of_two_lengths_and_an_empty_one_share_a_batch(tmp_path: Path) -> None:
    silent = made("2", 3, 40, duration=10.0)
    silent.spike_time = np.sort(silent.spike_time / 10)
    found = corpus(tmp_path, made("1", 5, 800), silent)
    order = [r.subject for r in found.recordings]
    batch = Batcher(bin_s=0.02)(rows(found, (order.index("1"), 0, 200), (order.index("2"), 5000, 100)))
    assert batch.grid == (5, 10)
    mask = batch.mask.unflatten(1, batch.grid)
    assert mask[0].all()
    assert mask[1, :3, :5].all()
    assert mask[1].sum() == 15
    assert batch.signal()[1].sum() == 0
    assert (batch.kind[1] >= 0).tolist() == [True] * 3 + [False] * 2


def test_memory_follows_neurons_and_bins_and_not_spikes(tmp_path: Path) -> None:
    batch = Batcher(bin_s=0.05)(rows(corpus(tmp_path, made("1", 4, 100_000, duration=1.0)), (0, 0, 1000)))
    assert batch.signal().sum() == 100_000
    assert batch.values.numel() == 4 * 20


@pytest.mark.parametrize(("samples", "bin_s"), [(130, 0.05), (200, 0.3), (200, 0.0), (200, -0.05)])
def test_windows_of_no_whole_number_of_bins_are_refused(tmp_path: Path, samples: int, bin_s: float) -> None:
    with pytest.raises(ValueError, match=r"windows of 0\.\d+ s in bins of .* expected a whole number of bins"):
        Batcher(bin_s=bin_s)(rows(corpus(tmp_path, made("1", 4, 100)), (0, 0, samples)))


def test_a_neuron_that_the_model_does_not_know_is_named(tmp_path: Path) -> None:
    found = corpus(tmp_path, made("1", 4, 100))
    known = {f"made_up/1/u{i}": i for i in range(3)}
    with pytest.raises(ValueError, match=r"1 of 4 neurons are unknown .*made_up/1/u3.*--tracked"):
        Batcher(bin_s=0.05, neurons=known)(rows(found, (0, 0, 200)))


def test_repeated_ids_and_times_out_of_order_or_negative_never_reach_a_batch() -> None:
    with pytest.raises(ValueError, match="'u' stands twice"):
        Channels.make(["u", "u"], "neuron")
    table = Channels.make(["u"], "neuron")
    for wrong in ([0.2, 0.1], [-0.1, 0.1]):
        with pytest.raises(ValueError, match="ascending and not negative"):
            Recording(
                "d", "1", "spikes", table, spike_time=np.array(wrong), spike_neuron=np.zeros(2, int), duration=1.0
            )


@pytest.mark.parametrize("start", [0, 30, 50, 120])
def test_covariates_are_those_inside_the_window_and_say_when_they_were_taken(tmp_path: Path, start: int) -> None:
    clock = Series(np.arange(80.0)[:, None] / 20, 20.0, "s")  # a series whose values are their own times
    found = corpus(tmp_path, made("1", 4, 400, aligned={"clock": clock}))
    batch = Batcher(aligned=("clock",))(rows(found, (0, start, 500)))
    value, time = batch.aligned["clock"][0, :, 0], batch.aligned["clock/time"][0]
    inside = clock.values[(clock.values >= start / 1000 - 1e-9) & (clock.values < (start + 500) / 1000 - 1e-9)]
    np.testing.assert_allclose(value, inside, atol=1e-6)
    np.testing.assert_allclose(time, inside - start / 1000, atol=1e-6)
    if start % 50 == 0:
        assert torch.equal(time, torch.arange(10) * 0.05)


def test_a_window_of_no_whole_number_of_samples_ends_with_its_last_one(tmp_path: Path) -> None:
    clock = Series(np.arange(80.0)[:, None] / 20, 20.0, "s")
    found = corpus(tmp_path, made("1", 4, 400, aligned={"clock": clock}))
    batch = Batcher(aligned=("clock",))(rows(found, (0, 0, 70), (0, 1060, 70), (0, 1090, 70)))
    value, time = batch.aligned["clock"][..., 0], batch.aligned["clock/time"]
    np.testing.assert_allclose(value, [[0.0, 0.05], [np.nan, 1.1], [1.1, 1.15]], atol=1e-6)
    np.testing.assert_allclose(time, [[0.0, 0.05], [-0.01, 0.04], [0.01, 0.06]], atol=1e-6)


@pytest.mark.parametrize("hz", [100.0000001, 100.000001, 99.9999999, 29.97003, 59.94006])
def test_rates_a_hair_off_give_each_sample_that_lies_inside(tmp_path: Path, hz: float) -> None:
    clock = Series(np.arange(round(61 * hz))[:, None] / hz, hz, "s")
    found = corpus(tmp_path, made("1", 4, 400, duration=60.0, aligned={"clock": clock}))
    batch = Batcher(aligned=("clock",))(found.windows(0.6, 0.1))
    for i, seen in enumerate(batch.aligned["clock"][..., 0].double().numpy()):
        first, stop = np.ceil((np.array([i, i + 6]) / 10) * hz - 1e-6).astype(int)
        np.testing.assert_allclose(seen[np.isfinite(seen)], clock.values[first:stop, 0], rtol=1e-6)
        assert np.isfinite(seen[-1])


def test_the_last_slot_is_the_last_sample_whatever_else_is_in_the_batch(tmp_path: Path) -> None:
    """Clocks of 20 and 50 Hz and windows of two lengths: what a row lacks is missing in front."""
    slow, fast = (Series(np.arange(4.0 * hz)[:, None] / hz, hz, "s") for hz in (20.0, 50.0))
    having = (made(name, 4, 400, aligned={"clock": x}) for name, x in (("1", slow), ("2", fast)))
    found = corpus(tmp_path, *having, made("3", 4, 9))
    batcher, asked = Batcher(aligned=("clock",)), [(0, 1000, 400), (0, 1030, 400), (1, 1000, 400), (1, 1010, 200)]
    together = batcher(rows(found, *asked, (2, 1000, 400)))
    value, time = together.aligned["clock"][..., 0], together.aligned["clock/time"]
    assert value.shape == time.shape == (5, 20)
    np.testing.assert_allclose(value[:4, -1], [1.35, 1.4, 1.38, 1.2], atol=1e-6)
    np.testing.assert_allclose(time[:4, -1], [0.35, 0.37, 0.38, 0.19], atol=1e-6)
    moments = torch.tensor([0.0, 0.03, 0.1, 0.399])
    for i, row in enumerate(asked):
        alone = batcher(rows(found, row))
        n = alone.aligned["clock"].shape[1]
        np.testing.assert_array_equal(value[i, -n:], alone.aligned["clock"][0, :, 0])
        np.testing.assert_allclose(time[i, -n:], alone.aligned["clock/time"][0], atol=1e-6)
        assert torch.isnan(value[i, :-n]).all()
        np.testing.assert_array_equal(together.at("clock", moments, 0.4)[i], alone.at("clock", moments, 0.4)[0])


def test_before_any_sample_a_moment_takes_the_first_that_lies_inside(tmp_path: Path) -> None:
    clock = Series(np.arange(80.0)[:, None] / 20, 20.0, "s")
    found = corpus(tmp_path, made("1", 4, 400, aligned={"clock": clock}))
    batch = Batcher(aligned=("clock",))(rows(found, (0, 1060, 70), (0, 1090, 70), (0, 1010, 30)))
    seen = batch.at("clock", torch.tensor([0.0, 0.045]), 0.07)[..., 0]
    np.testing.assert_allclose(seen, [[1.1, 1.1], [1.1, 1.1], [np.nan, np.nan]], atol=1e-6)


def test_a_moment_takes_the_latest_sample_that_is_not_later(tmp_path: Path) -> None:
    clock = Series(np.arange(80.0)[:, None] / 20, 20.0, "s")
    found = corpus(tmp_path, made("1", 4, 400, aligned={"clock": clock}))
    batch = Batcher(aligned=("clock",))(rows(found, (0, 1000, 200), (0, 1030, 200)))
    moments = torch.tensor([0.0, 0.03, 0.05, 0.199])
    seen = batch.at("clock", moments, 0.2)[..., 0]
    np.testing.assert_allclose(seen, [[1.0, 1.0, 1.05, 1.15], [1.05, 1.05, 1.05, 1.2]], atol=1e-6)
    bare = replace(batch, aligned={"clock": batch.aligned["clock"]})
    np.testing.assert_allclose(bare.at("clock", moments, 0.2)[0, :, 0], [1.0, 1.0, 1.05, 1.15], atol=1e-6)


def test_behaviour_keeps_its_rate_and_is_missing_where_its_clock_has_not_begun_or_has_stopped(tmp_path: Path) -> None:
    late = Series(np.arange(20.0)[:, None], 10.0, "m/s", start=1.0)
    found = corpus(tmp_path, made("1", 4, 400, aligned={"velocity": late}))
    batch = Batcher(bin_s=0.05, aligned=("velocity",))(rows(found, (0, 500, 1000), (0, 2500, 1000), (0, 3000, 1000)))
    series = batch.aligned["velocity"][..., 0]
    assert series.shape == (3, 10)
    assert torch.isnan(series[0, :5]).all()
    assert series[0, 5:].tolist() == [0, 1, 2, 3, 4]
    assert series[1, :5].tolist() == [15, 16, 17, 18, 19]
    assert torch.isnan(series[1, 5:]).all()
    assert torch.isnan(series[2]).all()
