"""The channel and the band that carry a planted difference are found, and no other."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from brainfm.evaluations import importance, protocol
from brainfm.evaluations.methods.trials import Signals
from brainfm.models import luna
from brainfm.objectives.supervised import Supervised
from brainfm.recording import Channels, Events, Recording
from brainfm.shards.read import Corpus, Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.tokens import Encoding, Facts, TokenBatch
from brainfm.training.batches import WindowDataset, facts_of
from brainfm.training.checkpoint import Pretrained, build
from brainfm.training.finetuning import Labelled, Tuning, finetune

pytestmark = pytest.mark.usefixtures("one_thread")

SFREQ, NAMES = 64.0, ["C3", "Cz", "C4", "Pz"]
BANDS = {"low": (1.0, 6.0), "planted": (7.0, 11.0), "high": (12.0, 30.0)}


def power(values: np.ndarray) -> np.ndarray:
    """Class 1 where the third channel has much power at 8 to 10 Hz."""
    spectrum = np.abs(np.fft.rfft(values[:, 2], axis=-1)) ** 2
    return (spectrum[:, 8:11].sum(axis=-1) > 1200).astype(int)


@pytest.fixture(scope="module")
def planted() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trials of a second `(trial, 4, 64)`, classes and people: class 1 has 9 Hz in the third channel."""
    rng = np.random.default_rng(0)
    truth, people = np.arange(120) % 2, np.repeat(["a", "b", "c"], 40)
    values = rng.normal(size=(120, 4, 64))
    rhythm = 3 * np.sin(2 * np.pi * 9 * np.arange(64) / SFREQ + rng.uniform(0, 6, (120, 1)))
    values[:, 2] += truth[:, None] * rhythm
    return values, truth, people


def test_the_planted_channel_and_band_are_found(planted: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    values, truth, people = planted
    assert (power(values) == truth).mean() > 0.98
    by_channel = importance.channel_importance(power, values, truth, people, 4, seed=0)
    assert by_channel.shape == (3, 4)
    assert by_channel[:, 2].min() > 0.35  # another trial has the other class half of the time
    np.testing.assert_array_equal(by_channel[:, [0, 1, 3]], 0)
    by_band = importance.band_importance(power, values, SFREQ, BANDS, truth, people, 4, seed=0)
    assert by_band[:, 1].min() > 0.35
    assert np.abs(by_band[:, [0, 2]]).max() < 0.02
    with pytest.raises(ValueError, match=r"windows of 1 s have no frequency in narrow"):
        importance.band_importance(power, values, SFREQ, {"narrow": (3.2, 3.8)}, truth, people, 1, seed=0)


def test_another_trial_is_never_the_same_and_of_the_same_person() -> None:
    people = np.array(list("abcabcabcaab"))
    donor = importance.others(people, np.random.default_rng(0))
    assert (donor != np.arange(12)).all()
    assert (people[donor] == people).all()
    assert sorted(donor.tolist()) == list(range(12))
    with pytest.raises(ValueError, match="b has one window"):
        importance.others(np.array(["a", "a", "b"]), np.random.default_rng(0))


def person(name: str, rng: np.random.Generator) -> Recording:
    label, time = np.arange(24) % 2, np.arange(64) / SFREQ
    trials = rng.normal(size=(24, 4, 64))
    rhythm = np.sin(2 * np.pi * 9 * time + rng.uniform(0, 6, (24, 1)))
    trials[:, 2] += 4 * label[:, None] * rhythm
    place = np.random.default_rng(3).normal(scale=0.05, size=(4, 3))
    return Recording(
        "sim", name, "eeg", Channels.make(NAMES, "eeg", place), sfreq=SFREQ,
        signal=1e-5 * np.concatenate(list(trials), axis=1), simulated=True,
        events=Events(np.arange(24.0), np.ones(24), ["left" if x else "right" for x in label]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    for i in range(6):
        write_shard(folder / f"p{i}.h5", [person(f"p{i}", rng)], {})
    return open_shards(folder)


@pytest.fixture(scope="module")
def model(people: Corpus) -> Pretrained:
    config = {"kind": "models", "name": "luna", "keywords": luna.SIZES["test"]}
    facts = facts_of(people, 1.0)
    torch.manual_seed(0)
    network, readout = build(config, facts), Supervised(5 * 32, 2)
    windows = Windows.join([people.subject(f"p{i}").trials(0, 1) for i in range(3)])
    made = Pretrained(network, config, facts)
    train = Labelled(WindowDataset(windows, made.batcher()), np.arange(72), (windows.label == "left").astype(int))
    finetune(network, readout, train, None, Tuning(steps=80, learning_rate=3e-3), 0)
    return made


def sides(people: Corpus) -> tuple[Windows, Windows]:
    return tuple(  # type: ignore[return-value]
        Windows.join([people.subject(f"p{i}").trials(0, 1) for i in who]) for who in (range(3), range(3, 6))
    )


def test_run_finds_it_through_a_network(people: Corpus, model: Pretrained) -> None:
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    found = importance.run(model, *sides(people), seed=0, bands=BANDS)
    json.dumps(found)
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())
    assert all(p.grad is None for p in model.model.parameters())
    assert found["score"] > 0.8
    channels = {c["name"]: c for c in found["importance"]["channels"]}
    assert max(channels, key=lambda n: channels[n]["score"]) == "C4"
    assert channels["C4"]["ci"][0] > 0.1
    assert max(abs(channels[n]["score"]) for n in ("C3", "Cz", "Pz")) < 0.1
    bands = {b["name"]: b["score"] for b in found["importance"]["bands"]}
    assert bands["planted"] > 0.15 > max(abs(bands["low"]), abs(bands["high"])) + 0.03
    titles = [t["title"] for t in found["topographies"]]
    assert titles == ["drop in balanced accuracy without the channel", "saliency, left", "saliency, right"]
    assert np.argmax(found["topographies"][1]["values"]) == NAMES.index("C4")


def test_tested_people_are_strangers(people: Corpus, model: Pretrained) -> None:
    train, test = sides(people)
    with pytest.raises(ValueError, match="are in training windows; split by subject"):
        importance.run(model, Windows.join([train, test]), test, seed=0)
    seen = Pretrained(model.model, model.config, model.facts, {"subjects": {"train": ["sim/p4"]}})
    with pytest.raises(ValueError, match=r"sim/p4\) are in pretraining"):
        importance.run(seen, train, test, seed=0)


def test_shuffled_labels_need_no_channel(people: Corpus, model: Pretrained) -> None:
    rng = np.random.default_rng(2)
    train, test = (
        Windows(w.recordings, w.recording, w.start, w.samples,
                protocol.permuted_within(w.label, w.of("person"), rng), w.stimulus)
        for w in sides(people)
    )  # fmt: skip
    found = importance.run(model, train, test, seed=0, repeats=2, bands=BANDS)
    assert abs(found["score"] - 0.5) < 0.2
    assert all(abs(c["score"]) < 0.15 for c in found["importance"]["channels"])


class Linear(nn.Module):
    """Two features: weighted sums of all samples."""

    def __init__(self, weight: torch.Tensor, blind: bool = False) -> None:
        super().__init__()
        self.weight, self.blind = nn.Parameter(weight), blind

    def encode(self, batch: TokenBatch) -> Encoding:
        """Blind: as through codes, which have no gradient."""
        signal = batch.signal().detach() if self.blind else batch.signal()
        pooled = torch.einsum("bct,fct->bf", signal, self.weight.detach())
        return Encoding(pooled[:, None], pooled, torch.ones(len(batch), 1, dtype=torch.bool))


@pytest.mark.parametrize("classes", [2, 3])
def test_saliency_is_the_gradient_times_the_input(classes: int) -> None:
    """By hand for a linear network: |weights of the class's logit x input|, the mean over windows and time."""
    rng = np.random.default_rng(0)
    weight, values = rng.normal(size=(2, 4, 32)), rng.normal(size=(40, 4, 32)).astype(np.float32)
    truth = np.arange(40) % classes
    signals = Signals(values, SFREQ, Channels.make(NAMES, "eeg"), "")
    model: Any = Pretrained(Linear(torch.tensor(weight, dtype=torch.float32)), {}, Facts())
    features = importance.features_of(model, signals, values)
    np.testing.assert_allclose(features, np.einsum("nct,fct->nf", values, weight), rtol=1e-4, atol=1e-4)
    fitted = protocol.fit_linear(features, truth, np.full(40, "one"), 0, penalty=1.0)
    coefficients = fitted[-1].coef_ / fitted[0].scale_
    if classes == 2:
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
    found = importance.saliency(model, fitted, signals, values, truth, classes, size=7)
    for c in range(classes):
        gradient = np.einsum("f,fct->ct", coefficients[c], weight)
        np.testing.assert_allclose(found[c], np.abs(gradient * values[truth == c]).mean(axis=(0, 2)), rtol=1e-4)
    model.model.blind = True
    assert importance.saliency(model, fitted, signals, values, truth, classes) is None


def test_saliency_is_computed_where_the_network_is() -> None:
    """On a device that keeps no numbers, everything is done but fetching the result."""
    rng = np.random.default_rng(0)
    values, truth = rng.normal(size=(8, 4, 32)).astype(np.float32), np.arange(8) % 2
    signals = Signals(values, SFREQ, Channels.make(NAMES, "eeg"), "")
    fitted = protocol.fit_linear(rng.normal(size=(8, 2)), truth, np.full(8, "one"), 0, penalty=1.0)
    network = Linear(torch.ones(2, 4, 32)).to("meta")
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        importance.saliency(Pretrained(network, {}, Facts()), fitted, signals, values, truth, 2)


def test_drawn_takes_as_many_of_each_person() -> None:
    people = np.repeat(["a", "b", "c"], [50, 20, 5])
    rows = importance.drawn(people, 30, 0)
    assert [int((people[rows] == p).sum()) for p in "abc"] == [10, 10, 5]
    assert (np.diff(rows) > 0).all()
    assert len(importance.drawn(people, 100, 0)) == 75
