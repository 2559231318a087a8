"""Adaptation modes on small real networks: a planted difference is found, and only what a mode names is changed."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from brainfm.evaluations import protocol
from brainfm.evaluations.methods import adaptation, alignment
from brainfm.evaluations.methods.trials import NO_ROWS, Side, Trials, choose
from brainfm.evaluations.methods.tuned import FittedNetwork, Tokens
from brainfm.evaluations.methods.views import in_memory, known
from brainfm.layers.lora import LowRank
from brainfm.models import eegnet
from brainfm.recording import Channels, Events, Recording
from brainfm.shards.read import Corpus, Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.training.batches import facts_of
from brainfm.training.checkpoint import Pretrained, build
from brainfm.training.finetuning import Tuning

SFREQ, TRIALS, NAMES = 64.0, 20, ("C3", "Cz", "C4", "Pz")
TOKENIZER = {"window_s": 0.5, "filters": 4, "ratios": [2, 4], "dim": 16, "heads": 2, "sources": 3, "depth": 2,
             "codes": 16, "lstm_layers": 0}  # fmt: skip
LUNA = {"kind": "models", "name": "luna",
        "keywords": {"patch": 16, "embed": 16, "heads": 2, "depth": 2, "queries": 2, "mixing": 1}}  # fmt: skip
FAST = Tuning(30, 16, weight_decay=0.05, beta2=0.99, validations=3, patience=3)

pytestmark = pytest.mark.usefixtures("one_thread")


def person(name: str, rng: np.random.Generator) -> Recording:
    """Trials of a second; "left" has a rhythm of 10 Hz in all channels; everyone has another gain."""
    label = ["left" if i % 2 else "right" for i in range(TRIALS)]
    time = np.arange(int(TRIALS * SFREQ)) / SFREQ
    signal = rng.normal(size=(len(NAMES), len(time)))
    phase = np.repeat(rng.uniform(0, 6, TRIALS), 64)
    signal += 8 * np.sin(2 * np.pi * 10 * time + phase) * np.repeat(np.array(label) == "left", 64)
    place = np.random.default_rng(3).normal(scale=0.05, size=(len(NAMES), 3))
    return Recording(
        "sim", name, "eeg", Channels.make(list(NAMES), "eeg", place), sfreq=SFREQ,
        signal=signal * 1e-5 * rng.uniform(0.5, 2), simulated=True,
        events=Events(np.arange(TRIALS, dtype=float), np.ones(TRIALS), label),
    )  # fmt: skip


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder, rng = Path(tmp_path_factory.mktemp("people")), np.random.default_rng(0)
    for i in range(6):
        write_shard(folder / f"p{i}.h5", [person(f"p{i}", rng)], {})
    return open_shards(folder)


@pytest.fixture(scope="module")
def luna(people: Corpus) -> Pretrained:
    facts = facts_of(people, 1.0)
    torch.manual_seed(0)
    return Pretrained(build(LUNA, facts).eval(), LUNA, facts)


@pytest.fixture(scope="module")
def brainomni(people: Corpus) -> Pretrained:
    facts = facts_of(people, 1.0)
    inner = {"kind": "codebooks", "name": "braintokenizer", "keywords": TOKENIZER}
    config = {
        "kind": "models", "name": "brainomni", "keywords": {"dim": 16, "heads": 2, "blocks": 2, "dropout": 0.0},
        "codebook": {**inner, "facts": vars(facts)},
    }  # fmt: skip
    torch.manual_seed(0)
    return Pretrained(build(config, facts).eval(), config, facts)


@pytest.fixture(scope="module")
def trials(people: Corpus) -> Trials:
    return Trials(Windows.join([people.subject(f"p{i}").trials(0, 1) for i in range(6)]))


def rows_of(trials: Trials, *names: str) -> np.ndarray:
    return np.flatnonzero(np.isin(trials.people, [f"sim/{n}" for n in names]))


@pytest.fixture(scope="module")
def side(trials: Trials) -> Side:
    return Side(rows_of(trials, "p0", "p1", "p2"), rows_of(trials, "p3"), rows_of(trials, "p4", "p5"))


def balanced(trials: Trials, rows: np.ndarray, chances: np.ndarray) -> float:
    right = chances.argmax(1) == trials.labels[rows]
    return float(np.mean([right[trials.labels[rows] == c].mean() for c in np.unique(trials.labels[rows])]))


@pytest.mark.parametrize("word", adaptation.ADAPT)
def test_every_mode_finds_the_planted_difference(trials: Trials, side: Side, luna: Pretrained, word: str) -> None:
    """In people that it was not fitted on, and leaves the network that it was given as it was."""
    before = {k: v.clone() for k, v in luna.model.state_dict().items()}
    trained = [p.requires_grad for p in luna.model.parameters()]
    state = torch.random.get_rng_state()
    method = adaptation.method(word, luna, FAST)
    fitted = method.fit(trials, side, method.settings[0], 0)
    chances = fitted.predict_proba(side.test)
    assert chances.shape == (len(side.test), 2)
    np.testing.assert_allclose(chances.sum(1), 1)
    assert balanced(trials, side.test, chances) > 0.7
    assert fitted.trained > 0
    assert fitted.seconds > 0
    shots = rows_of(trials, "p4")[:4]
    again = fitted.adapted(shots, 0)
    assert not np.array_equal(again.predict_proba(side.test), chances)
    np.testing.assert_array_equal(fitted.predict_proba(side.test), chances)
    assert balanced(trials, side.test, again.predict_proba(side.test)) > 0.6
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in luna.model.state_dict().items())
    assert [p.requires_grad for p in luna.model.parameters()] == trained


@pytest.mark.parametrize("word", ["attentive", "finetune", "lora", "subject_layer", "euclidean"])
def test_modes_over_a_frozen_tokenizer(trials: Trials, side: Side, brainomni: Pretrained, word: str) -> None:
    method = adaptation.method(word, brainomni, replace(FAST, steps=3))
    fitted = method.fit(trials, side, method.settings[0], 0)
    assert np.isfinite(fitted.predict_proba(side.test)).all()
    if word == "subject_layer":  # over the sources: 3 people x 3 x 3
        assert fitted.network.model.mixing.weight.shape == (3, 3, 3)
        assert not torch.equal(fitted.network.model.mixing.weight[0], torch.eye(3))
    if word in ("finetune", "lora"):
        trained = {n: p.requires_grad for n, p in brainomni.model.named_parameters()}
        assert not all(trained.values())
        kept = adaptation.saved(fitted).encoder.model
        assert {n: p.requires_grad for n, p in kept.named_parameters()} == trained
    if word == "lora":
        assert {n.split(".")[0] for n, p in fitted.model.named_modules() if isinstance(p, LowRank)} == {"blocks"}


def test_labels_of_the_tested_people_decide_nothing(trials: Trials, side: Side, luna: Pretrained) -> None:
    windows = trials.windows
    label = windows.label.copy()
    label[side.test] = np.where(label[side.test] == "left", "right", "left")
    other = Trials(replace(windows, label=label))
    for word in adaptation.ADAPT:
        method = adaptation.method(word, luna, replace(FAST, steps=4))
        one, two = (method.fit(t, side, method.settings[0], 0).predict_proba(side.test) for t in (trials, other))
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("word", ["finetune", "attentive", "subject_layer", "euclidean", "statistics"])
def test_at_chance_on_shuffled_labels(trials: Trials, side: Side, luna: Pretrained, word: str) -> None:
    shuffled = copy(trials)
    rng = np.random.default_rng(1)
    shuffled.labels = protocol.permuted_within(trials.labels, trials.people, rng)
    method = adaptation.method(word, luna, FAST)
    rows = side.test
    assert (
        abs(balanced(shuffled, rows, method.fit(shuffled, side, method.settings[0], 0).predict_proba(rows)) - 0.5)
        < 0.25
    )


def test_only_adapters_and_readout_train(trials: Trials, side: Side, luna: Pretrained) -> None:
    method = adaptation.method("lora", luna, replace(FAST, steps=5))
    fitted = method.fit(trials, side, method.settings[0], 0)
    before, after = luna.model.state_dict(), fitted.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    adapters = [p for p in fitted.model.modules() if isinstance(p, LowRank)]
    inside = sum(p.down.numel() + p.up.numel() for p in adapters)
    assert fitted.trained == inside + sum(p.numel() for p in fitted.objective.parameters())
    kept = adaptation.saved(fitted)
    assert set(kept.encoder.model.state_dict()) == set(before)
    flags = [{n: p.requires_grad for n, p in e.model.named_parameters()} for e in (luna, kept.encoder)]
    assert flags[0] == flags[1]  # a later "finetune" trains what it would train of the network as it was
    again = adaptation.restored("lora", kept, trials, "here")
    np.testing.assert_allclose(again.predict_proba(side.test), fitted.predict_proba(side.test), atol=1e-5)


def test_a_new_person_learns_a_layer_of_their_own_and_nothing_else(
    trials: Trials, side: Side, luna: Pretrained
) -> None:
    method = adaptation.method("subject_layer", luna, replace(FAST, steps=8))
    fitted = method.fit(trials, side, method.settings[0], 0)
    old = fitted.network
    assert fitted.names == ("sim/p0", "sim/p1", "sim/p2")
    readout = sum(p.numel() for p in old.objective.parameters())
    assert fitted.trained == 3 * 4 * 4 + readout
    assert all(torch.equal(v, luna.model.state_dict()[k]) for k, v in old.model.network.state_dict().items())
    new = fitted.adapted(rows_of(trials, "p4")[:6], 0)
    assert new.names == ("sim/p4",)
    assert all(
        torch.equal(v, old.model.network.state_dict()[k]) for k, v in new.network.model.network.state_dict().items()
    )
    assert all(torch.equal(v, old.objective.state_dict()[k]) for k, v in new.network.objective.state_dict().items())
    assert not torch.allclose(new.network.model.mixing.weight[0], old.model.mixing.mean(), atol=1e-3)
    assert fitted.adapted(NO_ROWS, 0) is fitted
    with pytest.raises(ValueError, match=r"trials of 2 people \(sim/p4, sim/p5\); a new layer is fitted to one person"):
        fitted.adapted(side.test, 0)


def test_whose_rows_are_used_without_labels(trials: Trials) -> None:
    """A new person's rest where it is given; rows that train for training people; all rows of others."""
    fit, rest = rows_of(trials, "p0")[:8], rows_of(trials, "p4")[:3]
    side = Side(fit, NO_ROWS, rows_of(trials, "p4", "p5")[3:], unlabelled=rest)
    expected = np.isin(np.arange(len(trials)), np.concatenate([fit, rest, rows_of(trials, "p1", "p2", "p3", "p5")]))
    np.testing.assert_array_equal(known(trials, side), expected)


@pytest.mark.parametrize("word", ["euclidean", "riemannian"])
def test_signals_are_recentred_as_alignment_says(trials: Trials, side: Side, luna: Pretrained, word: str) -> None:
    signals, seen = trials.signals(), known(trials, side)
    align = {"euclidean": alignment.euclidean, "riemannian": alignment.riemannian}[word]
    whole = align(signals.values, trials.people, seen)
    view = adaptation.method(word, luna).view.fit(trials, side)
    for name, matrix in view.maps.items():
        own = trials.people == name
        np.testing.assert_allclose(matrix.astype(np.float32) @ signals.values[own], whole[own], atol=1e-4)
    rows = side.test[[5, 0, 20]]
    moved = replace(signals, values=whole)
    expected = luna.pooled(in_memory(moved.values, moved, luna))[rows]
    np.testing.assert_allclose(view.of(trials, rows), expected, atol=1e-4)


def test_encodings_are_centred_as_alignment_says(trials: Trials, side: Side, luna: Pretrained) -> None:
    view = adaptation.method("statistics", luna).view.fit(trials, side)
    expected = alignment.statistics(trials.features(luna).astype(float), trials.people, known(trials, side))
    np.testing.assert_allclose(view.of(trials, np.arange(len(trials))), expected, atol=1e-5)


def test_erasure_leaves_nothing_that_tells_training_people_apart(trials: Trials, side: Side, luna: Pretrained) -> None:
    from sklearn.linear_model import LogisticRegression

    view, plain = (adaptation.method(w, luna).view.fit(trials, side) for w in ("erase_subject", "probe"))
    x, y = (v.of(trials, side.taught) for v in (view, plain))
    who = trials.people[side.taught]
    before, after = (LogisticRegression(max_iter=500).fit(z / z.std(), who).score(z / z.std(), who) for z in (y, x))
    assert after < before
    with pytest.raises(ValueError, match="two people or more to fit on, got 1"):
        adaptation.method("erase_subject", luna).fit(
            trials, Side(rows_of(trials, "p0"), NO_ROWS, side.test), {"inverse_penalty": 0.01}, 0
        )


@pytest.mark.parametrize("word", ["probe", "finetune", "attentive", "subject_layer"])
def test_a_class_that_nobody_trains_gets_no_probability_until_shots_bring_it(
    people: Corpus, luna: Pretrained, word: str
) -> None:
    windows = Windows.join([people.subject(f"p{i}").trials(0, 1) for i in range(4)])
    label = windows.label.copy()
    label[-4:] = "up"
    trials = Trials(replace(windows, label=label))
    side = Side(rows_of(trials, "p0", "p1"), rows_of(trials, "p2"), rows_of(trials, "p3"))
    method = adaptation.method(word, luna, replace(FAST, steps=3))
    fitted = method.fit(trials, side, method.settings[0], 0)
    chances = fitted.predict_proba(side.test)
    assert chances.shape == (TRIALS, 3)
    assert not chances[:, 2].any()
    np.testing.assert_allclose(chances.sum(1), 1)
    brought = fitted.adapted(side.test[-6:], 0).predict_proba(side.test)[:, 2]
    assert not brought.any() if word == "subject_layer" else brought.all()  # its readout stays as it was fitted
    one = Side(side.fit[trials.labels[side.fit] == 0], NO_ROWS, side.test)
    with pytest.raises(ValueError, match=r"have left alone of left, right, up; take people with two classes or more"):
        method.fit(trials, one, method.settings[0], 0)


def test_settings_are_chosen_by_validation_people(trials: Trials, side: Side, luna: Pretrained) -> None:
    for word in ("probe", "lora"):
        method = adaptation.method(word, luna, replace(FAST, steps=4))
        setting, losses = choose(method, trials, side, 2, 0)
        assert len(losses) == 2
        assert setting == method.settings[int(np.argmin(losses))]


def test_each_method_has_as_many_settings_to_try(luna: Pretrained) -> None:
    methods = [adaptation.method(word, luna) for word in adaptation.ADAPT]
    assert {len({tuple(s.items()) for s in m.settings}) for m in methods} == {5}


def test_no_linear_layer_and_no_gradient(trials: Trials, side: Side, people: Corpus) -> None:
    facts = facts_of(people, 1.0)
    network = Pretrained(eegnet.build(facts, **eegnet.SIZES["test"]).eval(), {}, facts)
    method = adaptation.method("lora", network, replace(FAST, steps=2))
    with pytest.raises(ValueError, match=r"EEGNet has no trained linear layer inside its blocks.*adapt by 'finetune'"):
        method.fit(trials, side, method.settings[0], 0)
    with pytest.raises(ValueError, match=r"adapt='lorra' is not known; did you mean 'lora'\?"):
        adaptation.method("lorra", network)


def test_batch_norms_keep_their_statistics_while_shots_are_learnt(trials: Trials, side: Side, people: Corpus) -> None:
    facts = facts_of(people, 1.0)
    torch.manual_seed(0)
    network = Pretrained(eegnet.build(facts, **eegnet.SIZES["local"]).eval(), {}, facts)
    method = adaptation.method("finetune", network, FAST)
    fitted = method.fit(trials, side, {"learning_rate": 3e-3}, 0)
    assert isinstance(fitted, FittedNetwork)
    mean = fitted.model.norm_time.running_mean.clone()
    assert not torch.equal(mean, network.model.norm_time.running_mean)
    new = fitted.adapted(rows_of(trials, "p4")[:4], 0)
    assert torch.equal(new.model.norm_time.running_mean, mean)
    assert not torch.equal(new.model.along_time.weight, fitted.model.along_time.weight)


def test_tokens_are_those_of_the_network(trials: Trials, luna: Pretrained) -> None:
    made = Tokens(luna, trials.batches(luna), size=7)
    batch = made.__getitems__([9, 2])
    with torch.no_grad():
        expected = luna.model.encode(trials.batches(luna).__getitems__([9, 2]))
    torch.testing.assert_close(batch.values, expected.tokens, atol=1e-5, rtol=1e-4)
    assert torch.equal(batch.mask, expected.mask)


@pytest.mark.parametrize("word", adaptation.ADAPT)
def test_what_is_saved_gives_the_same(trials: Trials, side: Side, luna: Pretrained, word: str) -> None:
    method = adaptation.method(word, luna, replace(FAST, steps=3))
    fitted = method.fit(trials, side, method.settings[0], 0)
    again = adaptation.restored(word, adaptation.saved(fitted), trials, "here")
    np.testing.assert_allclose(again.predict_proba(side.test), fitted.predict_proba(side.test), atol=1e-6)
