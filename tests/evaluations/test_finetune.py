"""Fine-tuning with small real networks: who may decide what, a planted difference is found, and shuffled it is not."""

import math

import numpy as np
import pytest
import torch

from brainfm.evaluations import autoencoding, finetune, protocol
from brainfm.objectives.supervised import Normed, Supervised
from brainfm.recording import Channels, Events, Recording
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.training.batches import WindowDataset, facts_of
from brainfm.training.checkpoint import Pretrained, build
from brainfm.training.finetuning import Labelled, Tokenized, Tuning, balanced_loss, predict
from brainfm.training.finetuning import finetune as tune

SFREQ, TRIALS, NAMES = 64.0, 24, ("C3", "Cz", "C4", "Pz")
TOKENIZER = {"window_s": 0.5, "filters": 4, "ratios": [2, 4], "dim": 16, "heads": 2, "sources": 3, "depth": 2,
             "codes": 16, "lstm_layers": 0}  # fmt: skip
LUNA = {"kind": "models", "name": "luna",
        "keywords": {"patch": 16, "embed": 16, "heads": 2, "depth": 1, "queries": 2, "mixing": 1}}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def person(name, rng, gain=4.0):
    """Trials of a second; "left" has a rhythm of 10 Hz in the first channel."""
    label = ["left" if i % 2 else "right" for i in range(TRIALS)]
    time = np.arange(int(TRIALS * SFREQ)) / SFREQ
    signal = rng.normal(size=(len(NAMES), len(time)))
    signal[0] += gain * np.sin(2 * np.pi * 10 * time + rng.uniform(0, 6)) * np.repeat(np.array(label) == "left", 64)
    place = np.random.default_rng(3).normal(scale=0.05, size=(len(NAMES), 3))
    return Recording(
        "sim", name, "eeg", Channels.make(list(NAMES), "eeg", place), sfreq=SFREQ, signal=signal * 1e-5,
        events=Events(np.arange(TRIALS, dtype=float), np.ones(TRIALS), label), simulated=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    for i in range(9):
        write_shard(folder / f"p{i}.h5", [person(f"p{i}", rng)], {})
    return open_shards(folder)


@pytest.fixture(scope="module")
def luna(people):
    facts = facts_of(people, 1.0)
    torch.manual_seed(0)
    return Pretrained(build(LUNA, facts).eval(), LUNA, facts, {"subjects": {"train": ["sim/p0", "sim/p1"]}})


@pytest.fixture(scope="module")
def brainomni(people):
    facts = facts_of(people, 1.0)
    inner = {"kind": "codebooks", "name": "braintokenizer", "keywords": TOKENIZER}
    config = {
        "kind": "models", "name": "brainomni", "keywords": {"dim": 16, "heads": 2, "blocks": 2, "dropout": 0.0},
        "codebook": {**inner, "facts": vars(facts)},
    }  # fmt: skip
    torch.manual_seed(0)
    return Pretrained(build(config, facts).eval(), config, facts)


def trials(stored, *names):
    return Windows.join([stored.subject(name).trials(0, 1) for name in names])


SOURCE, TARGET = ("p0", "p1", "p2", "p3", "p4"), ("p5", "p6", "p7", "p8")
FAST = {"steps": 30, "batch_size": 16, "learning_rates": (1e-3,), "validations": 3, "linear": "log_band_power"}
METHODS = {"majority", "log_band_power", "probe", "untrained", "EEGNet", "permuted labels"}


def test_finds_the_planted_difference_and_baselines_are_beside_it(people, luna):
    before = {k: v.clone() for k, v in luna.model.state_dict().items()}
    state = torch.random.get_rng_state()
    found = finetune.run(luna, trials(people, *SOURCE), trials(people, *TARGET), seed=0, **FAST)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in luna.model.state_dict().items())
    assert found["score"] > 0.75
    assert found["ci"][0] <= found["score"] <= found["ci"][1]
    assert (found["ci_over"], found["n_subjects"], found["n_trials"]) == ("subjects", 4, 4 * TRIALS)
    assert set(found["baselines"]) == set(found["differences"]) == METHODS
    assert found["baselines"]["majority"]["score"] == found["chance"] == 0.5
    assert found["baselines"]["log_band_power"]["score"] > 0.9
    assert found["baselines"]["EEGNet"]["score"] > 0.7
    assert abs(found["baselines"]["permuted labels"]["score"] - 0.5) < 0.2
    assert found["differences"]["majority"]["score"] == pytest.approx(found["score"] - 0.5)
    assert np.sum(found["confusion"]["counts"]) == 4 * TRIALS
    assert set(found["per_subject"]) == {f"sim/{s}" for s in TARGET}
    (fold,) = found["folds"]
    sides = {side: {key.split("/")[1] for key in fold[side]} for side in ("train", "val", "test")}
    assert len(sides["val"]) == 1
    assert sides["train"] | sides["val"] == set(SOURCE)
    assert sides["test"] == set(TARGET)
    assert found["learning_rates"] == {"pretrained": 1e-3, "untrained": 1e-3, "EEGNet": pytest.approx(1e-2)}
    assert all(0 < steps[0] <= 30 for steps in found["steps"].values())
    assert "1 tried for each network (0.001; readouts and EEGNet 10 times those)" in found["note"]


def test_at_chance_on_shuffled_labels(people, luna):
    both = trials(people, *SOURCE, *TARGET)
    shuffled = protocol.permuted_within(both.label, both.of("person"), np.random.default_rng(1))
    both = Windows(both.recordings, both.recording, both.start, both.samples, shuffled, both.stimulus)
    cut = len(SOURCE) * TRIALS
    sides = both.take(np.arange(cut)), both.take(np.arange(cut, len(both)))
    found = finetune.run(luna, *sides, seed=0, **{**FAST, "steps": 12})
    assert abs(found["score"] - 0.5) < 0.2


def test_test_labels_decide_nothing(people, luna):
    """Scores change with the labels of the test people; what is fitted, when it stops and at what rate do not."""
    train, test = trials(people, *SOURCE), trials(people, *TARGET)
    swapped = np.where(test.label == "left", "right", "left").astype(object)
    other = Windows(test.recordings, test.recording, test.start, test.samples, swapped, test.stimulus)
    few = {**FAST, "steps": 6, "learning_rates": (3e-4, 1e-3)}
    one, two = (finetune.run(luna, train, side, seed=0, **few) for side in (test, other))
    assert two["score"] == pytest.approx(1 - one["score"])
    assert two["baselines"]["EEGNet"]["score"] == pytest.approx(1 - one["baselines"]["EEGNet"]["score"])
    assert (two["learning_rates"], two["steps"]) == (one["learning_rates"], one["steps"])


def test_folds_score_each_test_person_once_and_train_on_the_others(people, luna):
    train, test = trials(people, *SOURCE), trials(people, *TARGET)
    windows, known = Windows.join([train, test]), np.arange(len(train))
    asked = np.arange(len(train), len(windows))
    folds = finetune.folded(windows, known, asked, 2, 0)
    who = windows.of("person")
    assert sorted(np.concatenate([f.test for f in folds]).tolist()) == asked.tolist()
    for fold in folds:
        sides = [set(who[rows]) for rows in fold]
        assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
        assert len(sides[2]) == 2
        assert set.union(*sides) == set(who)
    found = finetune.run(luna, train, test, seed=0, folds=2, **{**FAST, "steps": 6})
    assert (found["n_subjects"], len(found["folds"]), len(found["steps"]["EEGNet"])) == (4, 2, 2)
    assert {k.split("/")[1] for k in found["windows"]["train"]} == set(SOURCE)
    with pytest.raises(ValueError, match=r"5 folds of 4 test people; expected 2 to 4, or 0"):
        finetune.folded(windows, known, asked, 5, 0)


def test_few_people_are_spared_in_time(people):
    windows = trials(people, "p0", "p1")
    fit, val = finetune.spared(windows, np.arange(len(windows)), 0)
    assert set(windows.of("person")[val]) == set(windows.of("person")[fit]) == {"sim/p0", "sim/p1"}
    for name in ("sim/p0", "sim/p1"):
        own = windows.of("person") == name
        assert windows.start[fit[own[fit]]].max() < windows.start[val[own[val]]].min()
    with pytest.raises(ValueError, match="1 training people and 2 windows leave no validation side"):
        finetune.spared(windows, np.arange(2), 0)


def test_a_person_that_pretraining_saw_is_refused(people, luna):
    with pytest.raises(ValueError, match=r"sim/p0.* in pretraining; split by subject"):
        finetune.run(luna, trials(people, "p2", "p3"), trials(people, "p0", "p5"), seed=0)


def test_brainomni_is_tuned_on_codes_that_are_made_once(people, brainomni):
    """From codes as from signals: the same encoding, and the tokenizer does not change."""
    windows = trials(people, "p0", "p1")
    signals = WindowDataset(windows, brainomni.batcher())
    assert Tokenized.fits(brainomni.model)
    coded = Tokenized(brainomni.model, signals, size=5)
    rows = [3, 40, 7]
    with torch.inference_mode():
        one, two = (brainomni.model.encode(d.__getitems__(rows)) for d in (signals, coded))
    torch.testing.assert_close(one.pooled, two.pooled)
    found = finetune.run(brainomni, trials(people, *SOURCE), trials(people, *TARGET), seed=0, **{**FAST, "steps": 6})
    assert set(found["baselines"]) == METHODS | {"untrained over the trained tokenizer"}


def test_the_best_weights_are_kept(people, luna):
    """Those of the lowest validation loss, not the last; and what the network has frozen stays."""
    windows = trials(people, *SOURCE)
    number = np.searchsorted(["left", "right"], windows.label.astype(str))
    data = WindowDataset(windows, luna.batcher())
    fit, val = (Labelled(data, rows, number[rows]) for rows in finetune.spared(windows, np.arange(len(windows)), 0))
    torch.manual_seed(0)
    network = luna.untrained(1).model
    frozen = network.blocks[0].rate.clone()
    objective = Supervised(160, 2, readout=Normed(160, 2))
    tuned = tune(network, objective, fit, val, Tuning(steps=40, learning_rate=3e-3, validations=8, patience=2), 0)
    logits = torch.from_numpy(predict(network, objective, data, val.rows)).log()
    assert balanced_loss(logits, torch.from_numpy(val.labels)) == pytest.approx(tuned.loss, abs=1e-4)
    assert tuned.step % 5 == 0
    assert torch.equal(network.blocks[0].rate, frozen)
    network, upside = luna.untrained(1).model, Labelled(data, val.rows, 1 - val.labels)  # learning can only harm
    objective = Supervised(160, 2, readout=Normed(160, 2))
    worse = tune(network, objective, fit, upside, Tuning(steps=40, learning_rate=3e-3, validations=8, patience=2), 0)
    assert worse.step <= 15
    assert math.isnan(tune(network, objective, fit, None, Tuning(steps=2), 0).loss)


def test_codes_against_principal_components(people, brainomni):
    train, test = trials(people, *SOURCE), trials(people, *TARGET)
    found = autoencoding.run(brainomni, train, test, seed=0)
    linear = found["baselines"]["principal components, a linear code"]
    assert -0.2 < found["score"] < 0.3 < linear["score"] <= 1
    assert set(found["per_subject"]) == {f"sim/{s}" for s in TARGET}
    assert len(found["perplexity"]) == 2
    assert all(1 <= x <= 16 for x in found["perplexity"])
    assert found["bits_per_second"] == 3 * 4 * 2 * 4 * 2
    assert len(found["traces"]) == 2


def test_as_many_components_as_dimensions_leave_nothing_out():
    rng = np.random.default_rng(0)
    known, asked = ([w for w in rng.normal(size=(n, 2, 8))] for n in (200, 5))
    made = autoencoding.components(known, asked, 16, 16.0)
    np.testing.assert_allclose(made, asked, atol=1e-3)
    coarse = autoencoding.components(known, asked, 16, 2.0)
    assert np.abs(np.array(coarse) - asked).max() > 0.1
