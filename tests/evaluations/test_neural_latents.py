"""Co-smoothing and its fellows: held-out counts stay hidden, a perfect model scores what its rates score."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from brainfm.evaluations import neural_latents, spike_scores
from brainfm.modalities import spikes
from brainfm.shards.read import Corpus, Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.training import checkpoint
from brainfm.training.batches import facts_of
from brainfm.training.checkpoint import Pretrained


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("shards")
    for subject, neurons in (("a1", 12), ("a2", 9)):
        tuning = spikes.draw_tuning(np.random.default_rng(neurons), neurons)
        sessions = [
            spikes.reaching(np.random.default_rng(i), duration_s=25.0, tuning=tuning, subject=subject, session=f"s{i}")
            for i in (1, 2)
        ]
        write_shard(folder / f"sub-{subject}.h5", sessions, {})
    return open_shards(folder)


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> Pretrained:
    keywords = {"bin_s": 0.05, "dim": 16, "depth": 1, "heads": 2, "hidden": 32, "dropout": 0.0}
    config, facts = {"kind": "models", "name": "ndt", "keywords": keywords}, facts_of(corpus, 0.5)
    torch.manual_seed(0)
    return Pretrained(checkpoint.build(config, facts).eval(), config, facts, {})


def sides(corpus: Corpus):
    return corpus.where(session="s1").windows(0.5), corpus.where(session="s2").windows(0.5)


def test_all_scores_are_there_for_both_networks(corpus: Corpus, model: Pretrained) -> None:
    said = neural_latents.run(model, *sides(corpus), seed=0)
    assert set(said["latents"]) == {"pretrained", "untrained"}
    assert set(said["latents"]["pretrained"]) == {"co-bps", "fp-bps", "velocity R2"}
    assert said["score"] == pytest.approx(said["latents"]["pretrained"]["co-bps"])
    assert set(said["baselines"]) == {"mean", "linear", "untrained"}
    assert said["n_subjects"] == 2
    assert said["baselines"]["mean"]["score"] <= 0, "the null knows the mean of the very test trials"
    assert said["baselines"]["linear"]["score"] > said["baselines"]["mean"]["score"]
    trials = corpus.where(session="s2").trials(-0.1, 0.4)
    assert "psth R2" in neural_latents.run(model, sides(corpus)[0], trials, seed=0, target=None)["latents"]["untrained"]


def test_what_is_held_out_is_not_seen_and_true_rates_score_as_themselves(corpus: Corpus, model: Pretrained) -> None:
    _, test = sides(corpus.where(subject="a1"))
    out = neural_latents.chosen(test, 0.25, seed=0)
    assert out.sum() == 3
    counts, rates, velocity = neural_latents.predicted(model, test, out, "velocity")
    assert counts.shape == rates.shape == (len(test), 10, 12)
    assert velocity.shape == (len(test), 10, 2)

    class Oracle(torch.nn.Module):
        """Rates are the counts that it may see, and 1 elsewhere."""

        counts_s, neurons = 0.05, model.model.neurons

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def log_rates(self, batch, hidden):
            return torch.where(hidden, torch.zeros(()), batch.signal()).clamp_min(1e-3).log().masked_fill(hidden, 0.0)

    seen = Pretrained(Oracle(), model.config, model.facts, {})
    _, guess, _ = neural_latents.predicted(seen, test, out, None)
    np.testing.assert_array_equal(guess[..., out], 1.0)
    np.testing.assert_allclose(guess[..., ~out], np.maximum(counts[..., ~out], 1e-3), rtol=1e-5)
    _, end, _ = neural_latents.predicted(seen, test, slice(-4, None), None)
    np.testing.assert_array_equal(end[:, -4:], 1.0)
    assert spike_scores.bits_per_spike(counts[:, :6], end[:, :6]) > 1


def test_the_neurons_that_a_dataset_holds_out_are_taken(corpus: Corpus, model: Pretrained) -> None:
    def saying(mask: list[int]) -> Corpus:
        held = np.isin(np.arange(12), mask)
        return replace(corpus, recordings=tuple(
            replace(r, channels=replace(r.channels, held_out=held)) for r in corpus.subject("a1").recordings
        ))  # fmt: skip

    train, test = sides(saying([1, 5]))
    assert np.flatnonzero(neural_latents.chosen(test, 0.25, seed=0)).tolist() == [1, 5]
    said = neural_latents.run(model, train, test, seed=0, target=None)
    assert "Of simulated/a1 it is the neurons that the dataset names." in said["note"]
    for nothing in ([], list(range(12))):
        assert neural_latents.chosen(sides(saying(nothing))[1], 0.25, seed=0).sum() == 3
    assert "names" not in neural_latents.run(model, *sides(corpus), seed=0, target=None)["note"]


def test_a_share_is_drawn_and_said_where_recordings_hold_out_different_neurons(
    corpus: Corpus, model: Pretrained
) -> None:
    one, two = np.isin(np.arange(12), [1, 5]), np.isin(np.arange(12), [1, 6])
    for first, second in ((one, two), (two, one), (one, None), (None, one)):
        animal = replace(corpus, recordings=tuple(
            replace(r, channels=replace(r.channels, held_out=held))
            for r, held in zip(corpus.subject("a1").recordings, (first, second), strict=True)
        ))  # fmt: skip
        train, test = sides(animal)
        note = neural_latents.run(model, train, test, seed=0, target=None)["note"]
        assert "Recordings of simulated/a1 do not all name the same neurons to hold out" in note
        assert "that the dataset names" not in note
        assert neural_latents.chosen(Windows.join([train, test]), 0.25, seed=0).sum() == 3


def test_sides_of_an_animal_with_different_neurons_are_refused(corpus: Corpus) -> None:
    animal = replace(corpus, recordings=tuple(replace(r, tracked=False) for r in corpus.subject("a1").recordings))
    config, facts = {"kind": "models", "name": "ndt", "keywords": {"bin_s": 0.05, "dim": 16}}, facts_of(animal, 0.5)
    network = Pretrained(checkpoint.build(config, facts).eval(), config, facts, {})
    assert len(facts.neurons) == 24
    with pytest.raises(
        ValueError, match=r"simulated/a1 has 2 tables of neurons, one of 12; .*training and test, share"
    ):
        neural_latents.run(network, *sides(animal), seed=0)


def test_averages_over_trials_of_a_condition(corpus: Corpus) -> None:
    rng = np.random.default_rng(0)
    label = np.array(["left", "right"] * 20)
    rates = np.where((label == "left")[:, None, None], np.linspace(0.2, 4, 10)[:, None], 2.0) * np.ones((40, 10, 5))
    counts = rng.poisson(rates).astype(float)
    assert neural_latents.psth(counts, rates, label, 0.5) > 0.8
    assert neural_latents.psth(counts, rates[::-1], label, 0.5) < 0


def test_what_cannot_be_is_refused(corpus: Corpus, model: Pretrained) -> None:
    train, test = sides(corpus)
    with pytest.raises(ValueError, match="expected the same animals"):
        neural_latents.run(model, corpus.where(subject="a1").windows(0.5), test, seed=0)
    with pytest.raises(ValueError, match="cut all to one length_s"):
        neural_latents.run(model, train, corpus.where(session="s2").windows(0.25), seed=0)
    with pytest.raises(ValueError, match="predicts no firing rates"):
        neural_latents.run(Pretrained(torch.nn.Linear(1, 1), {}, model.facts), train, test, seed=0)
