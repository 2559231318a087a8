"""A Neuroformer that predicts behaviour in the evaluations: its own answers, in sessions that it was not taught too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from brainfm.evaluations import continuous, few_labels, new_neurons, regression
from brainfm.metrics import r2
from brainfm.shards.read import Corpus, open_shards
from brainfm.shards.write import write_shard
from brainfm.training import new_animal
from brainfm.training.batches import facts_of
from brainfm.training.checkpoint import Pretrained, build
from tests.evaluations.test_new_neurons import animal

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = {
    "kind": "models", "name": "neuroformer",
    "keywords": {"dim": 16, "heads": 2, "segments": 2, "predict": ["velocity"], "modality_dropout": 0.0},
}  # fmt: skip
HOW = continuous.Fitting(60, 32, 1e-2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two sessions of each of two animals, whose neurons are tracked."""
    folder = tmp_path_factory.mktemp("spikes")
    for name in "ab":
        write_shard(folder / f"{name}.h5", [animal(name, s) for s in "12"], {})
    return open_shards(folder)


def network(corpus: Corpus) -> Pretrained:
    facts = facts_of(corpus, 0.4)
    torch.manual_seed(0)
    return Pretrained(build(CONFIG, facts).eval(), CONFIG, facts)


@pytest.fixture(scope="module")
def taught(corpus: Corpus) -> Pretrained:
    """Knows both sessions of animal a by name, and was taught the first of them."""
    model = network(corpus.subject("a"))
    first, target = regression.with_target(corpus.where(subject="a", session="1").windows(0.4, 0.2), "velocity")
    continuous.tuned(model, first, target, HOW, 0, name="velocity")
    model.model.eval()
    return model


def test_a_session_of_which_nothing_was_learnt_is_read_as_one_that_was(taught: Pretrained, corpus: Corpus) -> None:
    """The network knows the second session by name and has no mean of it: its answers are in the unit all the same."""
    assert taught.model.sessions == ["sim/a/1/", "sim/a/2/"]
    assert new_animal.taught(taught, "velocity") == {"sim/a/1/": 0}
    second, truth = regression.with_target(corpus.where(subject="a", session="2").windows(0.4, 0.2), "velocity")
    assert r2(truth, new_animal.predicted(taught, second, "velocity")) > 0.2
    with pytest.raises(ValueError, match="of no recording of sim/b"):
        new_animal.reading(taught, corpus.subject("b").windows(0.4), "velocity")


def test_regression_gives_what_the_network_answers_itself(taught: Pretrained, corpus: Corpus) -> None:
    train, test = (corpus.where(subject="a", session=s).windows(0.4, 0.2) for s in "12")
    said = regression.run(taught, train, test, seed=0)
    second, truth = regression.with_target(test, "velocity")
    own = r2(truth, new_animal.predicted(taught, second, "velocity"))
    assert said["baselines"]["own read-out"]["score"] == pytest.approx(own)
    assert "own read-out" not in regression.run(network(corpus.subject("a")), train, test, seed=0)["baselines"]
    assert "own read-out" not in regression.run(taught, train, test, seed=0, at="centre")["baselines"]


def test_few_labels_ask_it_in_another_session_and_joint_training_counts_no_label_twice(corpus: Corpus) -> None:
    train, test = (corpus.where(subject="b", session=s).windows(0.4, 0.2) for s in "12")
    said = few_labels.run(
        network(corpus.subject("a")), train, test, seed=0, labelled={10: 3, 100: 60}, draws=1, batch_size=32,
        objectives={"next_spike": None}, unlabelled_steps=2, joint_steps=2, learning_rate=1e-2,
    )  # fmt: skip
    found = {(c["model"], c["shots"]): c["score"] for c in said["curve"]}
    assert found["pretrained", 100] > max(0.1, found["pretrained", 10])
    assert np.isfinite(found["joint", 100])


def test_new_neurons_are_learnt_without_labels_all_the_same(corpus: Corpus) -> None:
    """Its heads are no reason to adapt it by labels, as POYO is: it has spikes to learn from."""
    train, test = (corpus.where(subject="b", session=s).windows(0.4, 0.2) for s in "12")
    model = network(corpus.subject("a"))
    said = new_neurons.run(model, train, test, seed=0, unlabelled_steps=3, batch_size=8, label_seconds=[20])
    assert "without the target" in said["note"]
    fitted, _ = new_neurons.with_neurons(model, train, "velocity", 2, 1e-2, 8, 0)
    unchanged = (k for k in model.model.state_dict() if k.startswith("to_behaviour"))
    assert all(torch.equal(fitted.model.state_dict()[k], model.model.state_dict()[k]) for k in unchanged)


def test_other_behaviour_that_it_predicts_needs_no_session_of_the_facts(corpus: Corpus) -> None:
    """While new neurons are fitted another covariate may be known; its session is added with the neurons."""
    model = network(corpus.subject("a"))
    train = corpus.where(subject="b", session="1").windows(0.4, 0.2)
    fitted, loss = new_neurons.with_neurons(model, train, "position", 2, 1e-2, 8, 0)
    assert np.isfinite(loss).all()
    assert new_animal.taught(replace(fitted, facts=model.facts), "velocity").keys() == {"sim/b/1/"}
