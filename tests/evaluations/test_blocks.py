"""Blocks of time: what is scored never lies near what trains, and the score is the truth's where it can be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfm import audit, catalog
from brainfm.evaluations import blocks, continuous, place_decoder, protocol, regression
from brainfm.metrics import r2
from brainfm.modalities import spikes
from brainfm.objectives.next_spike import NextSpike
from brainfm.objectives.time_contrastive import TimeContrastive
from brainfm.recording import Channels, Recording, Series
from brainfm.shards.read import Corpus, open_shards
from brainfm.shards.write import write_shard
from brainfm.training import checkpoint
from brainfm.training.batches import facts_of
from brainfm.training.checkpoint import Pretrained

KEYWORDS = {"bin_s": 0.05, "dim": 16, "depth": 1, "heads": 2, "hidden": 32, "dropout": 0.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two sessions of a small motor population and one of another."""
    folder = tmp_path_factory.mktemp("shards")
    tuning = spikes.draw_tuning(np.random.default_rng(0), 15)
    sessions = [
        spikes.reaching(np.random.default_rng(i), duration_s=20.0, tuning=tuning, subject="a1", session=f"reach{i}")
        for i in (1, 2)
    ]
    write_shard(folder / "sub-a1.h5", sessions, {})
    write_shard(
        folder / "sub-a2.h5", [spikes.simulate(np.random.default_rng(3), neurons=9, duration_s=20.0, subject="a2")], {}
    )
    return open_shards(folder)


def network(corpus: Corpus, card: dict | None = None) -> Pretrained:
    config, facts = {"kind": "models", "name": "ndt", "keywords": KEYWORDS}, facts_of(corpus, 0.5)
    torch.manual_seed(0)
    return Pretrained(checkpoint.build(config, facts).eval(), config, facts, card or {})


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 6), st.sampled_from([0.1, 0.25, 0.5]), st.sampled_from([0.05, 0.1, 0.4]),
    st.sampled_from([None, 0.0, 0.7]),
)  # fmt: skip
def test_every_training_window_keeps_its_gap_and_each_test_window_has_one_block(
    corpus: Corpus, count: int, length: float, stride: float, gap: float | None
) -> None:
    windows = corpus.windows(length, stride)
    cuts = blocks.folds(windows, windows, count, gap)
    scored = np.concatenate([rows for _, rows in cuts])
    assert len(scored) == len(set(scored.tolist())) >= len(windows) - count * len(corpus) * (length // stride + 2)
    least = 1000 * (length if gap is None else gap)
    for fit, rows in cuts:
        for r in np.unique(windows.recording):
            a, b = (windows.take(x[windows.recording[x] == r]) for x in (fit, rows))
            low, high = b.start.min(), (b.start + b.samples).max()
            apart = np.maximum(low - (a.start + a.samples), a.start - high)
            assert apart.min() >= least - 1e-6


def test_folds_that_cannot_be_are_refused(corpus: Corpus) -> None:
    windows, one = corpus.windows(0.5), corpus.where(subject="a2").windows(0.5)
    with pytest.raises(ValueError, match="give two or more"):
        blocks.folds(windows, windows, 1)
    with pytest.raises(ValueError, match="has test windows and none to train on"):
        blocks.folds(one, windows, 3)
    with pytest.raises(ValueError, match=r"block 1 of 2 has .* 0 training windows"):
        blocks.folds(one, one, 2, gap_s=30.0)


def test_a_network_that_has_seen_a_tested_second_is_refused(corpus: Corpus) -> None:
    windows = corpus.where(session="reach1", subject="a1").windows(0.5)
    seen = network(corpus, {"windows": {"train": {"simulated/a1/reach1/": [[19.0, 19.2]]}, "val": {}}})
    with pytest.raises(ValueError, match="has simulated/a1/reach1/ among the windows of its training"):
        blocks.run(seen, windows, windows, seed=0)
    inside = network(corpus, {"windows": {"train": {}}, "tokenizer": seen.card})
    with pytest.raises(ValueError, match="or its tokenizer has simulated/a1/reach1/"):
        protocol.unseen(windows, inside.card)
    protocol.unseen(windows, {"windows": {"train": {"simulated/a1/reach2/": [[0.0, 19.2]]}}})


@pytest.mark.parametrize("beside", [False, True])
def test_what_an_objective_learnt_does_not_go_on_to_the_next_fit(corpus: Corpus, beside: bool) -> None:
    own, target = regression.with_target(corpus.where(session="reach1", subject="a1").windows(0.5), "velocity")
    objective, how = TimeContrastive(temperature=1.0), continuous.Fitting(3, 8, 1e-1)
    unlabelled = continuous.Unlabelled(own, [objective])
    fitted = [network(corpus.where(subject="a1")) for _ in range(2)]
    for model in fitted:
        if beside:
            continuous.tuned(model, own, target, how, 0, name="velocity", beside=unlabelled)
        else:
            continuous.pretext(model, unlabelled, how, 0)
    assert objective.log_temperature.item() == 0, "logarithm of the temperature given"
    first, second = (m.model.state_dict() for m in fitted)
    assert all(torch.equal(v, second[k]) for k, v in first.items())


@pytest.mark.slow
def test_the_result_has_what_the_audit_asks_and_beats_chance(corpus: Corpus, tmp_path: Path) -> None:
    own = corpus.where(subject="a2").windows(0.5, 0.1)
    model = network(corpus.where(subject="a1"))
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    said = blocks.run(
        model, own, own, seed=0, blocks=3, objectives={"masked_poisson": None}, unlabelled_steps=10, steps=80,
        batch_size=32, learning_rate=5e-3,
    )  # fmt: skip
    assert len(model.model.neurons) == 15, "the model itself is left alone"
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())
    names = {"encodings", "from scratch", "untrained", "mean", "ridge", "Wiener", "time-shifted"}
    assert set(said["baselines"]) == names
    assert said["score"] > 0.15 > said["baselines"]["time-shifted"]["score"]
    assert said["baselines"]["mean"]["score"] == pytest.approx(0, abs=0.02)
    assert said["ci"][0] < said["score"] < said["ci"][1]
    assert np.shape(said["per_block"]["pretrained"]) == (3, 2)
    assert said["n_trials"] == sum(
        round((b - a - 0.5) / 0.1) + 1 for f in said["folds"] for a, b in f["test"].popitem()[1]
    )
    assert said["traces"]


def test_the_audit_takes_blocks_of_one_session_and_still_sees_an_overlap(corpus: Corpus) -> None:
    windows = corpus.where(subject="a2").windows(0.5)
    sides = [tuple(windows.take(x).intervals() for x in cut) for cut in blocks.folds(windows, windows, 2)]
    result = {"stage": "decode", "key": "k", "model": "m", "windows": {"train": {}, "test": windows.intervals()}}
    folds = [{"train": a, "val": {}, "test": b} for a, b in sides]
    within = {**result, "folds": folds, "within_session": True}
    apart = {s.apart for s in audit._of_results({"k": within}, {}) if "fold" in s.name and "test" in s.name}
    assert apart == {"windows"}
    assert "sessions" in {s.apart for s in audit._of_results({"k": {**result, "folds": folds}}, {})}
    stored = {r.id: r for r in corpus.recordings}
    clean, _ = audit._windows(list(audit._of_results({"k": within}, {})), stored)
    assert not clean.leaks
    folds[0]["train"] = folds[0]["test"]
    dirty, _ = audit._windows(list(audit._of_results({"k": within}, {})), stored)
    assert dirty.leaks


def test_windows_that_do_not_move_are_left_out(tmp_path: Path) -> None:
    place = np.concatenate([np.zeros(100), np.arange(100) * 2.0])[:, None]
    table = Channels.make(["u"], "neuron")
    recording = Recording(
        "d", "1", "spikes", table, spike_time=np.array([0.5]), spike_neuron=np.zeros(1, int), duration=20.0,
        aligned={"position": Series(place, 10.0, "px")},
    )  # fmt: skip
    write_shard(tmp_path / "sub-1.h5", [recording], {})
    windows, target = open_shards(tmp_path).windows(0.5), None
    target = np.zeros((len(windows), 1))
    kept, _ = blocks.moving_only(windows, target, "position", 10.0)
    assert kept.start.min() == 10_000
    assert len(kept) == 20
    with pytest.raises(ValueError, match="lower `moving`"):
        blocks.moving_only(windows, target, "position", 100.0)


class TestPlaceDecoder:
    def test_two_neurons_on_a_track_against_bayes_by_hand(self) -> None:
        """Cells 0 and 1; neuron A fires 4 a window in cell 0, neuron B in cell 1."""
        position = np.array([[0.0], [0.0], [1.0], [1.0]])
        counts = np.array([[4, 0], [4, 0], [0, 4], [0, 4]])
        found = place_decoder.fit(counts, position, cell=0.5, smooth=0.01)
        assert found.centre[:, 0].tolist() == [0.25, 1.25]
        assert found.predict(np.array([[3, 1], [1, 3]]))[:, 0].tolist() == [0.25, 1.25]
        np.testing.assert_allclose(np.exp(found.log_prior), [0.5, 0.5])

    def test_a_population_of_place_cells_is_read_and_a_shuffled_one_is_not(self) -> None:
        rng = np.random.default_rng(0)
        place = rng.uniform(0, 1, (2000, 2))
        centre = rng.uniform(0, 1, (40, 2))
        counts = rng.poisson(4 * np.exp(-((place[:, None] - centre) ** 2).sum(2) / 2 / 0.15**2))
        guess = place_decoder.fit(counts[:1500], place[:1500]).predict(counts[1500:])
        error = np.median(np.linalg.norm(guess - place[1500:], axis=1))
        mixed = np.median(np.linalg.norm(rng.permutation(guess) - place[1500:], axis=1))
        assert error < 0.12 < 0.3 < mixed

    def test_what_cannot_be_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"positions \(5, 3\)"):
            place_decoder.fit(np.zeros((5, 2)), np.zeros((5, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["neuroformer", "population_encoder", "poyo"])
def test_any_model_that_encodes_is_taught_and_scored(corpus: Corpus, name: str) -> None:
    own = corpus.where(subject="a2").windows(0.5, 0.25)
    config = {"kind": "models", "name": name, "keywords": catalog.load("models", name).SIZES["test"]}
    facts = facts_of(corpus.where(subject="a1"), 0.5)
    torch.manual_seed(0)
    model = Pretrained(checkpoint.build(config, facts).eval(), config, facts, {})
    said = blocks.run(model, own, own, seed=0, blocks=2, steps=2, batch_size=8)
    assert np.isfinite([said["score"], *(b["score"] for b in said["baselines"].values())]).all()
    if name == "poyo":
        assert set(said["baselines"]) == {"from scratch", "mean", "ridge", "Wiener", "time-shifted"}
    else:
        assert said["baselines"]["encodings"]["score"] != said["score"]


READING = {
    "poyo": {"predict": ["velocity"], "dim": 16, "depth": 1, "head_dim": 8, "cross_heads": 1, "self_heads": 2,
             "latents": 2, "branch_dropout": 0.0},
    "neuroformer": {"predict": ["velocity"], "dim": 16, "heads": 2},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(READING))
def test_a_network_that_reads_behaviour_out_is_asked_itself(corpus: Corpus, name: str) -> None:
    """Its own answers at the window's end: better than the mean, and in the covariate's unit."""
    own = corpus.where(subject="a2").windows(0.5, 0.1)
    windows, target = regression.with_target(own, "velocity")
    config = {"kind": "models", "name": name, "keywords": READING[name]}
    torch.manual_seed(0)
    facts = facts_of(corpus.where(subject="a1"), 0.5)
    model = continuous.knowing(Pretrained(checkpoint.build(config, facts).eval(), config, facts, {}), windows, 0)
    assert windows.used[0].id in model.model.sessions
    how = continuous.Fitting(150, 32, 1e-2)
    readout = continuous.tuned(model, windows, target, how, 0, name="velocity")
    assert isinstance(readout, continuous.Asked)
    said = continuous.predicted(model, readout, windows)
    assert r2(target, said) > 0.15
    assert continuous.reads_out(model, "velocity", "centre") == (name == "poyo")
    if name == "neuroformer":
        return
    centre = regression.with_target(own, "velocity", "centre")[1]
    readout.at = "centre"
    assert r2(centre, continuous.predicted(model, readout, windows)) > 0.15


@pytest.mark.slow
def test_blocks_ask_a_neuroformer_that_predicts(corpus: Corpus) -> None:
    own = corpus.where(subject="a2").windows(0.5, 0.1)
    config = {"kind": "models", "name": "neuroformer", "keywords": READING["neuroformer"]}
    torch.manual_seed(0)
    facts = facts_of(corpus.where(subject="a1"), 0.5)
    model = Pretrained(checkpoint.build(config, facts).eval(), config, facts, {})
    said = blocks.run(
        model, own, own, seed=0, blocks=2, steps=100, batch_size=32, learning_rate=1e-2,
        objectives={"next_spike": None}, unlabelled_steps=3, from_scratch=False,
    )  # fmt: skip
    assert set(said["baselines"]) == {"mean", "ridge", "Wiener", "time-shifted"}
    assert said["score"] > 0.1 > said["baselines"]["time-shifted"]["score"]


def test_spikes_alone_teach_no_head(corpus: Corpus) -> None:
    """Labels that a network answers for are withheld while it learns spikes: its head stays, its trunk moves."""
    own = corpus.where(subject="a1").windows(0.5)
    config = {"kind": "models", "name": "neuroformer", "keywords": READING["neuroformer"]}
    torch.manual_seed(0)
    facts = facts_of(corpus.where(subject="a1"), 0.5)
    model = Pretrained(checkpoint.build(config, facts).eval(), config, facts, {})
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    continuous.pretext(model, continuous.Unlabelled(own, [NextSpike()]), continuous.Fitting(2, 8), 0)
    moved = {k for k, v in model.model.state_dict().items() if not torch.equal(v, before[k])}
    assert "table" in moved
    assert not [k for k in moved if k.startswith(("to_behaviour", "standard"))]


def test_classes_are_no_numbers(corpus: Corpus) -> None:
    config = {
        "kind": "models",
        "name": "neuroformer",
        "keywords": READING["neuroformer"] | {"classes": {"velocity": 3}},
    }
    facts = facts_of(corpus.where(subject="a1"), 0.5)
    model = Pretrained(checkpoint.build(config, facts).eval(), config, facts, {})
    with pytest.raises(ValueError, match="velocity is a class to this network"):
        continuous.reads_out(model, "velocity")
