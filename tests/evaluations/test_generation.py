"""Generation of real, tiny Neuroformers against what was recorded, and the measures against slow loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from brainfm.evaluations import generation
from brainfm.evaluations.generation import Guess
from brainfm.objectives.next_spike import NextSpike
from brainfm.recording import Channels, Events, Recording, Series
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.training.batches import batches, facts_of
from brainfm.training.checkpoint import Pretrained, build

torch.set_num_threads(1)
CONFIG = {
    "kind": "models", "name": "neuroformer",
    "keywords": {"dim": 16, "heads": 2, "modality_dropout": 0.0, "past_s": 0.15, "current_s": 0.05},
}  # fmt: skip
NEURONS = 6


def session(name: str, subject: str = "a", seconds: int = 40) -> Recording:
    """Neurons that follow a speed, which steps up after each event by its condition."""
    rng = np.random.default_rng([int(name), ord(subject)])
    onset = np.arange(0.5, seconds - 1.5, 1.0)
    label = np.array(["slow", "fast"])[rng.integers(2, size=len(onset))]
    time = np.arange(seconds * 20) / 20
    speed = np.zeros(len(time))
    for t, word in zip(onset, label, strict=True):
        speed[(time >= t) & (time < t + 0.4)] = 2.0 if word == "fast" else 1.0
    sign = np.where(np.arange(NEURONS) % 2 == 0, 1.0, -0.5)
    drive = np.exp(1.5 + speed[:, None] * sign)
    step, neuron = np.nonzero(rng.random((len(time) * 10, NEURONS)) < drive.repeat(10, axis=0) / 200)
    return Recording(
        "sim", subject, "spikes", Channels.make([f"n{i}" for i in range(NEURONS)], "neuron"), session=name,
        spike_time=(step + 0.5) / 200, spike_neuron=neuron, duration=float(seconds), simulated=True,
        events=Events(onset, np.full(len(onset), 0.4), label), aligned={"speed": Series(speed[:, None], 20.0, "m/s")},
        tracked=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Windows, Windows]:
    folder = tmp_path_factory.mktemp("spikes")
    write_shard(folder / "a.h5", [session("1"), session("2")], {})
    corpus = open_shards(folder)
    return tuple(corpus.where(session=s).windows(0.2, 0.05) for s in "12")  # type: ignore[return-value]


@pytest.fixture(scope="module")
def trained(sides: tuple[Windows, Windows]) -> Pretrained:
    torch.manual_seed(0)
    train = sides[0]
    facts = facts_of(open_shards(train.recordings[0].path), 0.2)
    model = Pretrained(build(CONFIG, facts), CONFIG, facts)
    optimiser, objective = torch.optim.Adam(model.model.parameters(), lr=1e-2), NextSpike()
    rows = np.random.default_rng(0).permutation(len(train))
    for batch in batches(train.take(rows), model.batcher(), 16):
        parts = objective(model.model, batch)
        optimiser.zero_grad()
        (parts["neuron"] + parts["bin"]).backward()
        optimiser.step()
    model.model.eval()
    return model


@pytest.fixture(scope="module")
def found(trained: Pretrained, sides: tuple[Windows, Windows]) -> dict:
    return generation.run(trained, *sides, seed=0, draws=2, windows_per_animal=300)


def test_it_beats_chance_and_stands_beside_a_glm(found: dict) -> None:
    assert found["score"] > 0.15
    low, high = found["ci"]
    assert low < found["score"] < high
    assert found["baselines"]["GLM"]["score"] > 0.15
    assert abs(found["baselines"]["shuffled"]["score"]) < 0.1
    assert found["score"] > found["baselines"]["untrained"]["score"]
    assert (found["metric"], found["chance"], found["ci_over"]) == ("rate correlation", 0.0, "trials")
    assert (found["n_subjects"], found["n_trials"]) == (1, 300)
    measures = found["measures"]
    assert measures["PSTH correlation"]["pretrained"]["score"] > 0.3
    assert measures["bits per spike"]["GLM"]["score"] > 0
    assert measures["bits per spike"]["pretrained"]["score"] > measures["bits per spike"]["untrained"]["score"]
    assert measures["rate correlation"]["own past"]["score"] > 0.1
    assert set(measures["Fano factor"]) == {"pretrained", "own past", "untrained", "GLM", "recorded"}
    assert 0.5 < measures["Fano factor"]["pretrained"]["score"] < 2


def test_a_second_run_gives_the_same_in_batches_of_another_size(
    trained: Pretrained, sides: tuple[Windows, Windows]
) -> None:
    before, train = {k: v.clone() for k, v in trained.model.state_dict().items()}, sides[0].take(np.arange(200))
    runs = []
    for size in (64, 13):
        torch.manual_seed(size)
        runs.append(
            generation.run(trained, train, sides[1], seed=0, draws=1, windows_per_animal=60, size=size)["measures"]
        )
    for title, entries in runs[0].items():
        for name, entry in entries.items():
            assert runs[1][title][name]["score"] == pytest.approx(entry["score"], abs=1e-5), (title, name)
    assert all(torch.equal(v, before[k]) for k, v in trained.model.state_dict().items())


def test_the_truth_as_a_guess_is_perfect_and_counts_are_right(sides: tuple[Windows, Windows]) -> None:
    test = sides[1]
    truth = generation.counted(test, 0.15, 0.2)[:, 0]
    stored = test.recordings[test.recording[0]]
    _, neuron = stored.spikes(test.start[7] / 1000 + 0.15, test.start[7] / 1000 + 0.2)
    assert truth[7].tolist() == np.bincount(neuron, minlength=NEURONS).tolist()
    assert truth.sum() > 0
    guess, rows, cell = Guess(truth, truth[None]), np.arange(len(truth)), np.arange(len(truth)) % 5 - 1
    for measure in (generation.rate_correlation, generation.psth_correlation, generation.pairs):
        assert measure(truth, guess, cell, rows) == pytest.approx(1.0)
    ratio = [truth[:, n].var() / truth[:, n].mean() for n in range(NEURONS)]
    assert generation.fano(truth, guess, cell, rows) == pytest.approx(np.mean(ratio))
    means = np.stack([truth[cell == c].mean(axis=0) for c in range(4)])
    other = np.random.default_rng(0).random(truth.shape)
    mine = np.stack([other[cell == c].mean(axis=0) for c in range(4)])
    slow = np.mean([np.corrcoef(means[:, n], mine[:, n])[0, 1] for n in range(NEURONS)])
    assert generation.psth_correlation(truth, Guess(other, other[None]), cell, rows) == pytest.approx(slow)
    flat = Guess(np.broadcast_to(truth.mean(axis=0), truth.shape), truth[None])
    assert generation.bits(truth, flat, cell, rows) == pytest.approx(0)


def test_a_missing_covariate_is_its_training_mean_to_the_glm(trained: Pretrained, tmp_path: Path) -> None:
    said = []
    for shift in (0.0, 64.0):
        both = [session("1"), session("2")]
        for recording in both:
            values = recording.aligned["speed"].values
            values[200:300] = np.nan
            values += shift  # a GLM does not mind where a covariate has its zero, unless gaps are filled with 0
        write_shard(tmp_path / f"{shift}/a.h5", both, {})
        corpus = open_shards(tmp_path / f"{shift}")
        train, test = (corpus.where(session=s).windows(0.2, 0.05) for s in "12")
        (animal,) = generation._animals(trained.model, train, test, 300, 0.6).values()
        said.append(generation.glm(trained.model, animal, 3))
        assert np.isnan(generation._features(trained.model, animal.windows, 3)).any(axis=1).sum() > 80
    np.testing.assert_allclose(said[0], said[1], rtol=1e-3)


def test_what_cannot_be_scored_is_refused(trained: Pretrained, sides: tuple[Windows, Windows]) -> None:
    train, test = sides
    with pytest.raises(ValueError, match="generates no spikes"):
        generation.run(replace(trained, model=torch.nn.Linear(1, 1)), train, test, seed=0)
    with pytest.raises(ValueError, match=r"0\.2 s; cut such"):
        generation.run(trained, train, replace(test, samples=test.samples + 50), seed=0)
    with pytest.raises(ValueError, match=r"set stride_s"):
        generation.run(trained, train, test.take(np.arange(0, len(test), 3)), seed=0)
    with pytest.raises(ValueError, match="overlap training windows"):
        generation.run(trained, test.take(np.arange(50)), test, seed=0)
    with pytest.raises(ValueError, match="has 0 training windows"):
        generation.run(trained, replace(train, recordings=tuple(
            replace(r, subject="z") for r in train.recordings)), test, seed=0)  # fmt: skip
