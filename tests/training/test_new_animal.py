"""POYO on a simulated motor population: it learns, and a new animal comes in by its neurons and sessions."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from brainfm.evaluations import continuous, new_neurons
from brainfm.evaluations.blocks import folds
from brainfm.evaluations.regression import with_target
from brainfm.metrics import r2
from brainfm.modalities.spikes import draw_tuning, reaching
from brainfm.objectives.behaviour import Behaviour
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard
from brainfm.training import checkpoint, new_animal
from brainfm.training.batches import facts_of
from brainfm.training.checkpoint import Pretrained

torch.set_num_threads(1)
CONFIG = {
    "kind": "models", "name": "poyo",
    "keywords": {
        "predict": ["velocity"], "dim": 24, "depth": 1, "head_dim": 16, "cross_heads": 2, "self_heads": 2, "latents": 2,
        "latent_step_s": 0.1, "mlp_dropout": 0.0, "branch_dropout": 0.0, "attention_dropout": 0.0,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """An untrained model that knows animal a, and windows of 0.4 s of a (one session) and b (two sessions)."""
    folder = tmp_path_factory.mktemp("spikes")
    for number, (name, sessions) in enumerate({"a": "1", "b": "12"}.items()):
        rng = np.random.default_rng(number)
        tuning = draw_tuning(rng, 20)
        made = [
            reaching(rng, duration_s=60.0, behaviour_hz=20.0, tuning=tuning, dataset="sim", subject=name, session=s)
            for s in sessions
        ]
        write_shard(folder / f"{name}.h5", made, {})
    corpus = open_shards(folder)
    facts = facts_of(corpus.subject("a"), 0.4)
    torch.manual_seed(0)
    model = Pretrained(checkpoint.build(CONFIG, facts).eval(), CONFIG, facts)
    own = corpus.subject("a").windows(0.4, 0.05)
    train, test = (corpus.subject("b").where(session=s).windows(0.4, 0.1) for s in "12")
    return model, own, train, test


def steps(n: int, frozen: int, lr: float = 5e-3) -> dict:
    return {"steps": n, "frozen_steps": frozen, "lr": lr, "batch_size": 24, "seed": 0, "keep_neurons": None}


def test_facts_name_sessions_and_batches_number_them(setting) -> None:
    model, own, train, _ = setting
    assert model.facts.sessions == tuple({own.recordings[0].id})
    batch = model.batcher()(own.take([0, 5]))
    assert batch.aligned["session"].tolist() == [0, 0]
    assert batch.aligned["velocity"].shape == (2, 8, 2)
    with pytest.raises(ValueError, match=r"20 of 20 neurons are unknown .*`model.add_neurons`"):
        model.batcher()(train.take([0]))


@pytest.mark.slow
def test_velocity_of_held_out_blocks(setting) -> None:
    model, own, _, _ = setting
    own, truth = with_target(own, "velocity")
    fit, scored = folds(own, own, 4)[1]
    fitted, (first, last) = new_animal.adapt(model, own.take(fit), **steps(150, 0))
    assert last < 0.7 * first
    found = r2(truth[scored], new_animal.predicted(fitted, own.take(scored), "velocity"))
    assert found > 0.35
    with pytest.raises(ValueError, match="taught velocity of no recording of sim/a"):
        new_animal.predicted(model, own.take(scored), "velocity")


@pytest.mark.parametrize("frozen", [4, 2, 0])
def test_what_moves_in_identification_and_after(setting, frozen: int) -> None:
    model, _, train, _ = setting
    before = {k: v.clone() for k, v in model.model.named_parameters()}
    fitted, _ = new_animal.adapt(model, train, **steps(4, frozen))
    after = dict(fitted.model.named_parameters())
    changed = {k for k, v in after.items() if k not in before or not torch.equal(v, before[k])}
    new = {"neuron_table.added", "session_table.added", "latents"}
    everything = set(after) - {"neuron_table.weight", "session_table.weight"}
    assert changed - {"neuron_table.weight", "session_table.weight"} == (new if frozen == 4 else everything)
    assert all(p.requires_grad for p in fitted.model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.model.named_parameters())
    assert len(fitted.facts.neurons) == 40
    assert len(model.model.neurons) == 20


def test_an_adapted_model_is_saved_and_loads(setting, tmp_path) -> None:
    model, _, train, _ = setting
    fitted, _ = new_animal.adapt(model, train, **steps(2, 1))
    loaded = checkpoint.load(fitted.save(tmp_path / "model"))
    rows = train.take(np.arange(3))
    assert np.array_equal(
        new_animal.predicted(loaded, rows, "velocity"), new_animal.predicted(fitted, rows, "velocity")
    )


def test_a_later_session_is_read_with_the_known_one(setting) -> None:
    model, _, train, test = setting
    fitted, _ = new_animal.adapt(model, train, **steps(2, 2))
    assert np.isfinite(new_animal.predicted(fitted, test.take(np.arange(3)), "velocity")).all()
    with pytest.raises(ValueError, match="taught velocity of no recording of sim/b"):
        new_animal.predicted(model, test.take([0]), "velocity")


def test_the_evaluation_adapts_a_network_that_reads_behaviour(setting) -> None:
    model, own, train, test = setting
    keywords = {"seed": 0, "unlabelled_steps": 6, "batch_size": 8, "label_seconds": [10, 40]}
    found = new_neurons.run(model, train.take(np.arange(0, 590, 3)), test.take(np.arange(0, 590, 6)), **keywords)
    assert {(c["model"], c["shots"]) for c in found["curve"]} == {
        (m, s) for m in ("pretrained", "untrained", "linear") for s in (10, 40)
    }
    assert "train for 3 of 6 steps on the labelled seconds" in found["note"]
    assert model.model.neurons == list(model.facts.neurons)
    with pytest.raises(ValueError, match="knows every neuron of sim/a"):
        new_neurons.run(model, own, own, **keywords)


@pytest.mark.parametrize("name", ["poyo", "neuroformer"])
def test_an_answer_does_not_depend_on_what_else_is_in_the_batch(tmp_path, name: str) -> None:
    """At 20 Hz and a hair above 50 Hz each animal is asked at its own last sample, and Neuroformer learns of both."""
    for number, (subject, hz, hair) in enumerate([("a", 20.0, 0.0), ("b", 50.0, 1e-7)]):
        made = reaching(np.random.default_rng(number), duration_s=20, behaviour_hz=hz, subject=subject)
        made.aligned = {k: replace(x, sfreq=hz + hair) for k, x in made.aligned.items()}
        write_shard(tmp_path / f"{subject}.h5", [made], {})
    windows = open_shards(tmp_path).windows(0.4)
    facts, keywords = facts_of(open_shards(tmp_path), 0.4), {"predict": ["velocity"], "dim": 8}
    config = {"kind": "models", "name": name, "keywords": keywords | ({"heads": 2} if name == "neuroformer" else {})}
    torch.manual_seed(0)
    model = Pretrained(checkpoint.build(config, facts).eval(), config, facts)
    Behaviour(None).train()(model.model, model.batcher()(windows))
    assert list(new_animal.taught(model, "velocity").values()) == [0, 1]
    who = windows.of("subject")
    together = new_animal.predicted(model, windows, "velocity", len(windows))
    asked = continuous.predicted(model, continuous.Asked(model.model, "velocity", "end", None), windows, len(windows))
    for subject in "ab":
        alone = new_animal.predicted(model, windows.take(who == subject), "velocity")
        np.testing.assert_allclose(together[who == subject], alone, atol=1e-5)
    np.testing.assert_allclose(asked, together, atol=1e-5)


def test_the_latest_session_is_that_of_the_largest_number(setting) -> None:
    model = setting[0].copy()
    ids = sorted(f"sim/a/s{n}/" for n in (2, 9, 10))
    numbers = dict(zip(ids, model.model.add_sessions(ids), strict=True))
    known = Pretrained(model.model, model.config, replace(model.facts, sessions=tuple(model.model.sessions)))
    for key in numbers.values():
        model.model.standard["velocity"].count[key] = 2
    stored = SimpleNamespace(id="sim/a/s11/", person="sim/a")
    assert list(new_animal.taught(known, "velocity")) == ["sim/a/s2/", "sim/a/s9/", "sim/a/s10/"]
    read = new_animal.reading(known, SimpleNamespace(used=[stored]), "velocity").sessions
    assert read == {"sim/a/s11/": numbers["sim/a/s10/"]}
