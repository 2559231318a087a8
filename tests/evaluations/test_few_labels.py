"""Few labels: what is labelled is a stretch and nothing else, everyone has the same, and scores are the truth's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brainfm.evaluations import continuous, few_labels
from brainfm.metrics import r2
from brainfm.modalities import gabor_population, spikes
from brainfm.objectives.masked_poisson import MaskedPoisson
from brainfm.shards.read import Corpus, open_shards
from brainfm.shards.write import write_shard
from brainfm.training import checkpoint
from brainfm.training.batches import facts_of
from brainfm.training.checkpoint import Pretrained

KEYWORDS = {"bin_s": 0.05, "dim": 16, "depth": 1, "heads": 2, "hidden": 32, "dropout": 0.0}
OBJECTIVES = {"masked_poisson": {"neurons": 0.4}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two sessions of each of two motor populations."""
    folder = tmp_path_factory.mktemp("shards")
    for number, animal in enumerate(("a1", "a2")):
        tuning = spikes.draw_tuning(np.random.default_rng(number), 20)
        sessions = [
            spikes.reaching(
                np.random.default_rng([number, i]), duration_s=40.0, tuning=tuning, subject=animal, session=f"reach{i}"
            )
            for i in (1, 2)
        ]
        write_shard(folder / f"sub-{animal}.h5", sessions, {})
    return open_shards(folder)


def network(corpus: Corpus, window_s: float = 0.5, card: dict | None = None, **keywords: float) -> Pretrained:
    config = {"kind": "models", "name": "ndt", "keywords": KEYWORDS | keywords}
    torch.manual_seed(0)
    facts = facts_of(corpus, window_s)
    return Pretrained(checkpoint.build(config, facts).eval(), config, facts, card or {})


def sessions(corpus: Corpus, *subjects: str) -> tuple:
    return tuple(corpus.where(session=f"reach{i}", subject=list(subjects)).windows(0.5, 0.1) for i in (1, 2))


@given(st.integers(2, 500), st.sampled_from([0.1, 1, 5, 10, 50, 100]), st.integers(0, 99))
def test_a_stretch_goes_on_without_holes_and_holds_its_share(windows: int, percent: float, seed: int) -> None:
    rows = few_labels.stretch(windows, percent, np.random.default_rng(seed))
    assert len(rows) == len(set(rows.tolist())) == min(windows, max(2, round(windows * percent / 100)))
    holes = np.diff(np.r_[rows, rows[0] + windows]) > 1
    assert holes.sum() <= 1, "one stretch, seen around the end"


def test_shares_of_a_draw_are_nested() -> None:
    few, more = (set(few_labels.stretch(200, p, np.random.default_rng([3, 1, 0])).tolist()) for p in (5, 20))
    assert few < more


def test_scores_are_means_over_draws_and_gains_are_paired() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(50, 2))
    said = true[..., None] + rng.normal(size=(50, 2, 3)) * np.array([0.1, 0.5, 1.0])
    assert few_labels.over_draws(true, said) == pytest.approx(np.mean([r2(true, said[..., d]) for d in range(3)]))
    pair = np.stack([said, np.zeros_like(said)], axis=-1)
    assert few_labels.gain(true, pair) == pytest.approx(
        few_labels.over_draws(true, said) - few_labels.over_draws(true, np.zeros_like(said))
    )
    there = np.array([[[1.0, 5.0]], [[2.0, 5.0]], [[4.0, 5.0]]])  # (window, column, draw): medians 2 and 5
    assert few_labels.median_error(np.zeros((3, 1)), there) == pytest.approx(3.5)


def test_what_cannot_be_is_refused(corpus: Corpus) -> None:
    train, test = sessions(corpus, "a1")
    model = network(corpus.where(session="reach1"))
    with pytest.raises(ValueError, match="give percent above 0, up to 100"):
        few_labels.run(model, train, test, seed=0, labelled={0: 10})
    with pytest.raises(ValueError, match="is on both sides; choose other sessions"):
        few_labels.run(model, train, train, seed=0)
    with pytest.raises(ValueError, match="simulated/a2 is on one side only"):
        few_labels.run(model, train, sessions(corpus, "a1", "a2")[1], seed=0)
    with pytest.raises(ValueError, match="joint_steps 5 without `objectives`"):
        few_labels.run(model, train, test, seed=0, joint_steps=5)
    seen = network(corpus, card={"windows": {"train": {"simulated/a1/reach2/": [[0.0, 30.0]]}}})
    with pytest.raises(ValueError, match="has simulated/a1/reach2/ among the windows of its training"):
        few_labels.run(seen, train, test, seed=0)


def test_joint_training_learns_spikes_and_behaviour_in_the_same_steps(corpus: Corpus) -> None:
    """Joint training lowers the Poisson loss where labels alone do not, and the read-out learns as well."""
    train, _ = few_labels.with_target(sessions(corpus, "a1")[0], "velocity")
    target = few_labels.with_target(train, "velocity")[1]
    unlabelled = continuous.Unlabelled(train, [MaskedPoisson(neurons=0.4)])
    how = continuous.Fitting(40, 32, 1e-2)
    poisson, error = {}, {}
    for name, beside in (("alone", None), ("joint", unlabelled)):
        model = network(corpus.where(session="reach1"))
        readout = continuous.tuned(model, train, target, how, 0, name="velocity", beside=beside)
        with torch.no_grad():
            poisson[name] = float(unlabelled.loss(model, 256)(np.random.default_rng(1)))
        error[name] = 1 - r2(target, continuous.predicted(model, readout, train))
    assert poisson["joint"] < poisson["alone"] - 0.02
    assert max(error.values()) < 0.9


@pytest.mark.slow
def test_the_curve_has_every_method_and_the_network_is_left_alone(corpus: Corpus) -> None:
    train, test = sessions(corpus, "a1", "a2")
    model = network(corpus.where(session="reach1"))
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    said = few_labels.run(
        model, train, test, seed=0, labelled={10: 20, 100: 60}, draws=2, objectives=OBJECTIVES, unlabelled_steps=30,
        joint_steps=30, learning_rate=1e-2,
    )  # fmt: skip
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())
    names = ("pretrained", "from scratch", "joint", "encodings", "ridge")
    assert [(c["model"], c["shots"]) for c in said["curve"]] == [(n, p) for n in names for p in (10, 100)]
    assert [len(c["draws"]) for c in said["curve"]] == [2, 1, 2, 1, 1, 1, 2, 1, 2, 1], "joint training once"
    ridge = {c["shots"]: c["score"] for c in said["curve"] if c["model"] == "ridge"}
    assert ridge[100] > max(0.3, ridge[10])
    assert said["score"] > 0.2 > said["baselines"]["mean"]["score"] + 0.1
    assert set(said["baselines"]) == {*names[1:], "mean"}
    scores = {(c["model"], c["shots"]): c["score"] for c in said["curve"]}
    for field, one, than in (("effect_of_transfer", "pretrained", "from scratch"),
                             ("joint_minus_separate", "joint", "pretrained")):  # fmt: skip
        for point in said[field]:
            if one == "pretrained":
                expected = scores[one, point["shots"]] - scores[than, point["shots"]]
                assert point["score"] == pytest.approx(expected)
            assert point["ci"][0] <= point["score"] <= point["ci"][1]
    assert said["n_subjects"] == 2
    assert "folds" not in said


@pytest.mark.slow
def test_over_blocks_of_one_session_of_a_new_animal(corpus: Corpus) -> None:
    own = corpus.where(subject="a2", session="reach1").windows(0.5, 0.1)
    model = network(corpus.where(subject="a1"))
    said = few_labels.run(
        model, own, own, seed=0, blocks_of_time=2, labelled={20: 5}, draws=1, target="position", objectives=OBJECTIVES,
        unlabelled_steps=5, moving=0.05,
    )  # fmt: skip
    assert said["within_session"]
    windows, target = few_labels.with_target(own, "position")
    moving = few_labels.blocks.moving_only(windows, target, "position", 0.05)[0]
    cuts = few_labels.blocks.folds(moving, moving, 2)
    for fold, (fit, _) in zip(said["folds"], cuts, strict=True):
        shown, labelled = (
            sum(b - a for spans in x.values() for a, b in spans) for x in (fold["train"], moving.take(fit).intervals())
        )
        assert shown > labelled + 1, "responses are shown where the hand rests, too"
    assert len(said["folds"]) == 2
    assert said["windows"]["train"] == {}
    place = {c["model"]: c["median_error"] for c in said["curve"]}
    assert set(place) == {"pretrained", "from scratch", "encodings", "ridge", "naive Bayes"}
    assert all(0 < e < 1 for e in place.values()), "metres"


@pytest.mark.slow
def test_sampled_responses_are_read_too(tmp_path: Path) -> None:
    population = gabor_population.draw_population(np.random.default_rng(0), 12)
    for i in (1, 2):
        made = gabor_population.simulate(
            np.random.default_rng(i), population=population, trials=60, session=f"s{i}", subject="m1"
        )
        write_shard(tmp_path / f"{i}.h5", [made], {})
    corpus = open_shards(tmp_path)
    train, test = (corpus.where(session=f"s{i}").windows(3.0, 1.0) for i in (1, 2))
    model = network(corpus.where(session="s1"), 3.0, bin_s=1.0)
    said = few_labels.run(model, train, test, seed=0, target="behaviour", labelled={100: 10}, draws=1)
    assert few_labels.history(train, test, 0.05, 6)[0].shape == (len(train), 36)
    assert np.isfinite(said["score"])
    assert "the window" in said["note"]
