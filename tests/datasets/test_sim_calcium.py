"""Simulated calcium imaging: the same animals as dF/F and as events, which models of events read as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from brainfm import config
from brainfm.datasets import local_files, sim_calcium
from brainfm.evaluations import blocks
from brainfm.modalities.deconvolution import AMPLITUDE, DFF
from brainfm.readers import collection
from brainfm.recording import ACTIVITY
from brainfm.shards.read import Corpus, open_shards
from brainfm.shards.write import write_shard
from brainfm.training import checkpoint
from brainfm.training.batches import facts_of
from brainfm.training.checkpoint import Pretrained

FOLDER = Path(__file__).parents[2] / "configs" / "ingest"
MADE = {"neurons": 6, "duration_s": 40.0}
EVENTS = [{"infer_events": {"decay_s": 0.25, "rise_s": 0.05, "baseline_s": 3}}]
MODELS = {
    "ndt": {"bin_s": 0.05, "dim": 16, "depth": 1, "heads": 2, "hidden": 32, "dropout": 0.0},
    "poyo": {"predict": ["velocity"], "dim": 16, "depth": 1, "head_dim": 8, "cross_heads": 1, "self_heads": 1},
    "neuroformer": {"past_s": 0.35, "current_s": 0.05, "bin_s": 0.01, "stimulus": False, "dim": 16, "heads": 2,
                    "past_layers": 1, "self_layers": 1},
}  # fmt: skip


def shards(folder: Path, clean: list) -> Corpus:
    for subject in ("c1", "c2"):
        made = sim_calcium.recordings(folder, subjects=[subject], clean=clean, **MADE)
        write_shard(folder / f"sub-{subject}.h5", made, sim_calcium.CARD)
    return open_shards(folder)


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return shards(tmp_path_factory.mktemp("events"), EVENTS)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return shards(tmp_path_factory.mktemp("sampled"), [])


def built(name: str, corpus: Corpus) -> Pretrained:
    settings, facts = {"kind": "models", "name": name, "keywords": MODELS[name]}, facts_of(corpus, 0.4)
    torch.manual_seed(0)
    return Pretrained(checkpoint.build(settings, facts).eval(), settings, facts, {})


def test_a_shard_of_events_keeps_the_signal_beside_them(events: Corpus, sampled: Corpus) -> None:
    one, other = events.recordings[0], sampled.recordings[0]
    assert (one.modality, one.simulated, one.sfreq, one.channels.unit[0]) == ("calcium", True, 0.0, "events")
    assert (other.sfreq, other.samples) == (30.0, 1200)
    np.testing.assert_allclose(one.aligned(DFF).values, other.signal(0, 1200).T)
    assert one.aligned(AMPLITUDE).values.shape == (1200, 6)
    time, neuron = one.spikes(0, 40)
    assert len(time) > 100
    assert set(neuron) == set(range(6))
    assert [s["step"] for s in one.provenance()["steps"]][-1] == "infer_events"
    assert one.channel_ids == other.channel_ids
    true = np.histogram2d(one.truth("spike_time"), one.truth("spike_neuron"), [200, 6])[0]
    found = np.histogram2d(time, neuron, [200, 6])[0]
    assert np.corrcoef(true.ravel(), found.ravel())[0, 1] > 0.4


@pytest.mark.parametrize("name", MODELS)
def test_models_of_events_read_inferred_ones(name: str, events: Corpus, sampled: Corpus) -> None:
    model = built(name, events)
    windows = events.windows(0.4, 0.4)
    batch = model.batcher()(windows, np.arange(4))
    assert torch.isfinite(model.model.encode(batch).pooled).all()
    assert set(model.facts.aligned) == {"velocity", "position"}, "what the events were inferred from is no behaviour"
    assert not set(getattr(model.model, "aligned", ())) & set(ACTIVITY)
    with pytest.raises(ValueError, match="samples per second"):
        built(name, sampled)


def test_a_ridge_reads_the_traces_over_the_same_blocks(events: Corpus) -> None:
    windows = events.subject("c1").windows(0.4, 0.1)
    found = blocks.run(
        built("ndt", events),
        windows,
        windows,
        seed=0,
        blocks=2,
        gap_s=None,
        steps=0,
        from_scratch=False,
        beside=[DFF, "velocity"],
    )
    scores = {name: found["baselines"][name]["score"] for name in ("ridge", "ridge on dff", "ridge on velocity")}
    assert len(set(scores.values())) == 3
    assert scores["ridge on velocity"] > 0.95, "the target itself, up to the sample that is asked for"
    with pytest.raises(KeyError, match="no aligned series 'df'"):
        blocks.run(built("ndt", events), windows, windows, seed=0, blocks=2, steps=0, beside=["df"])


def test_history_holds_no_frame_that_ends_later(events: Corpus) -> None:
    windows = events.subject("c1").windows(0.45, 0.31)
    values = events.recordings[0].aligned(DFF).values
    found = blocks.covariate_history(windows, DFF, 0.3).reshape(len(windows), 9, 6)
    for row, (start, samples) in enumerate(zip(windows.start, windows.samples, strict=True)):
        last = int(np.floor((start + samples) / 1000 * 30 + 1e-6))
        np.testing.assert_array_equal(found[row], values[last - 9 : last])
    early = blocks.covariate_history(windows.take([0]), DFF, 0.6).reshape(18, 6)
    assert np.isnan(early[:5]).all()
    assert np.isfinite(early[5:]).all()
    both = events.windows(0.4, 0.4)
    assert blocks.covariate_history(both, DFF, 0.3).shape == (len(both), 54)
    with pytest.raises(ValueError, match="hold no sample of 'dff' at 30 Hz"):
        blocks.covariate_history(windows, DFF, 0.02)


def test_animals_follow_from_seed_and_number(tmp_path: Path) -> None:
    one, two = sim_calcium.recordings(tmp_path, subjects=["c2", "c3"], **MADE)
    again = next(sim_calcium.recordings(tmp_path, subjects=["c2"], **MADE))
    np.testing.assert_array_equal(one.signal, again.signal)
    assert not np.allclose(one.signal, two.signal)
    assert "nothing to fetch" in sim_calcium.fetch(tmp_path / "raw")
    assert list(sim_calcium.sources(tmp_path)) == sim_calcium.SUBJECTS
    with pytest.raises(KeyError, match="no subject 'c9' in sim_calcium"):
        next(sim_calcium.recordings(tmp_path, subjects=["c9"]))


def test_the_configuration_infers_events(tmp_path: Path) -> None:
    settings = config.read(FOLDER / "sim_calcium.yaml")["recordings"]
    made = next(sim_calcium.recordings(tmp_path, subjects=["c1"], **{**settings, **MADE}))
    assert made.signal is None
    assert len(made.spike_time) > 100


def test_steps_of_a_path_infer_events_too(tmp_path: Path) -> None:
    plane = tmp_path / "sub-a" / "plane0"
    plane.mkdir(parents=True)
    trace = next(sim_calcium.recordings(tmp_path, subjects=["c1"], **MADE)).signal
    np.save(plane / "F.npy", 100 * (1 + trace))
    np.save(plane / "Fneu.npy", np.zeros_like(trace))
    np.save(plane / "spks.npy", np.zeros_like(trace))
    (item,) = collection.find(tmp_path / "sub-a" / "plane0", sfreq_hz=30.0).items
    (found,) = local_files.cleaned(item, {}, EVENTS)
    assert found.sfreq is None
    assert len(found.spike_time) > 100
    (plain,) = local_files.cleaned(item, {})
    assert plain.sfreq == 30.0
