"""Transfer to neurons that a real, tiny Neuroformer has never seen."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from brainfm.evaluations import new_neurons
from brainfm.recording import Channels, Recording, Series
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard
from brainfm.training.batches import facts_of
from brainfm.training.checkpoint import Pretrained, build

torch.set_num_threads(1)
CONFIG = {
    "kind": "models", "name": "neuroformer",
    "keywords": {"dim": 16, "heads": 2, "past_layers": 1, "self_layers": 1, "behaviour_layers": 1, "segments": 2},
}  # fmt: skip


def animal(subject, session, seconds=60, neurons=12, rate_hz=100):
    """Neurons tuned to the direction of a slow velocity; an animal's tuning is the same in its sessions."""
    tuning = np.random.default_rng(ord(subject)).uniform(0, 2 * np.pi, neurons)
    rng = np.random.default_rng([ord(subject), int(session)])
    knots = rng.normal(size=(2 * seconds + 2, 2))
    time = np.arange(seconds * rate_hz) / rate_hz
    velocity = np.stack([np.interp(time * 2, np.arange(len(knots)), k) for k in knots.T], axis=1)
    drive = np.exp(1.0 + 1.2 * velocity @ np.stack([np.cos(tuning), np.sin(tuning)]))
    step, neuron = np.nonzero(rng.random(drive.shape) < drive / rate_hz)
    return Recording(
        "sim", subject, "spikes", Channels.make([f"{subject}{i}" for i in range(neurons)], "neuron"), session=session,
        spike_time=(step + 0.5) / rate_hz, spike_neuron=neuron, duration=float(seconds), simulated=True,
        aligned={"velocity": Series(velocity, float(rate_hz), "m/s")}, tracked=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spikes")
    for name in "ab":
        write_shard(folder / f"{name}.h5", [animal(name, s) for s in "12"], {})
    corpus = open_shards(folder)
    facts = facts_of(corpus.subject("a"), 0.4)
    torch.manual_seed(0)
    model = Pretrained(build(CONFIG, facts).eval(), CONFIG, facts)
    train, test = (corpus.subject("b").where(session=s).windows(0.4, 0.2) for s in "12")
    return corpus, model, train, test


def test_curves_over_labelled_seconds(setting):
    _, model, train, test = setting
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    known = list(model.model.neurons)
    found = new_neurons.run(model, train, test, seed=0, unlabelled_steps=8, batch_size=8, label_seconds=[5, 40])
    assert {(c["model"], c["shots"]) for c in found["curve"]} == {
        (m, s) for m in ("pretrained", "untrained", "linear") for s in (5, 40)
    }
    linear = {c["shots"]: c["score"] for c in found["curve"] if c["model"] == "linear"}
    assert linear[40] > 0.3
    assert linear[40] > linear[5]
    assert found["score"] > 0.2
    assert found["baselines"]["mean"]["score"] < 0.05
    assert (found["chance"], found["ci_over"], found["n_subjects"]) == (0.0, "trials", 1)
    assert found["n_trials"] == len(test)
    assert len(found["traces"]) == 2
    assert model.model.neurons == known
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())
    with torch.random.fork_rng():
        torch.manual_seed(99)
        again = new_neurons.run(model, train, test, seed=0, unlabelled_steps=8, batch_size=8, label_seconds=[5, 40])
    assert again["score"] == found["score"]


def test_only_the_new_neurons_are_fitted_and_the_target_is_withheld(setting):
    _, model, train, _ = setting
    assert "velocity" in model.model.aligned
    fitted, (first, last) = new_neurons.with_neurons(model, train, "velocity", 30, 1e-2, 16, seed=0)
    old = dict(model.model.named_parameters())
    changed = [k for k, v in fitted.model.named_parameters() if k not in old or not torch.equal(v, old[k])]
    assert changed == ["added"]
    assert last < first
    other, _ = new_neurons.with_neurons(model, train, "nothing", 30, 1e-2, 16, seed=0)
    assert not torch.equal(other.model.added, fitted.model.added), "velocity is an input unless it is withheld"


def test_labelled_time_counts_from_the_first_window(setting):
    _, _, train, _ = setting
    elapsed = new_neurons.labelled_time(train.take(train.start >= 10_000))
    assert elapsed[:3] == pytest.approx([0.4, 0.6, 0.8])


def test_known_animals_and_other_models_are_refused(setting):
    corpus, model, train, test = setting
    own = corpus.subject("a").windows(0.4)
    with pytest.raises(ValueError, match="knows every neuron of sim/a"):
        new_neurons.run(model, own, own, seed=0, label_seconds=[5])
    strangers = tuple(replace(r, tracked=False, session=f"later{r.session}") for r in corpus.subject("a").recordings)
    later = replace(corpus, recordings=strangers)
    assert not set(later.recordings[0].channel_ids) & set(model.model.neurons)
    first, second = (later.where(session=f"later{s}").windows(0.4) for s in "12")
    with pytest.raises(ValueError, match="was trained on sim/a, in sessions whose neurons have other names"):
        new_neurons.run(model, first, second, seed=0, label_seconds=[5])
    with pytest.raises(ValueError, match="no vectors of neurons"):
        new_neurons.run(Pretrained(torch.nn.Linear(1, 1), {}, model.facts), train, test, seed=0)
