"""An effect at a known time is found there and not elsewhere, across people and within; shuffled labels give chance."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from brainfm.evaluations import chance, in_time, protocol
from brainfm.models import luna
from brainfm.recording import Channels, Events, Recording
from brainfm.shards.read import Corpus, Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.training.batches import facts_of
from brainfm.training.checkpoint import Pretrained, build

pytestmark = pytest.mark.usefixtures("one_thread")

SFREQ, TRIALS, NAMES = 64.0, 24, ["C3", "Cz", "C4", "Pz"]
CUT = {"length_s": 0.25, "step_s": 0.25, "permutations": 1}


def person(name: str, rng: np.random.Generator) -> Recording:
    """Trials of two seconds; "left" has a rhythm in all channels from 1 s to 1.5 s, whose phase is drawn anew."""
    label = ["left" if x else "right" for x in rng.permutation(TRIALS) % 2]
    time = np.arange(128) / SFREQ
    trials = rng.normal(size=(TRIALS, 4, 128))
    rhythm = 5 * np.sin(2 * np.pi * 8 * time + rng.uniform(0, 6, (TRIALS, 1))) * ((time >= 1) & (time < 1.5))
    trials += (rhythm * (np.array(label) == "left")[:, None])[:, None]
    place = np.random.default_rng(3).normal(scale=0.05, size=(4, 3))
    return Recording(
        "sim", name, "eeg", Channels.make(NAMES, "eeg", place), sfreq=SFREQ,
        signal=1e-5 * np.concatenate(list(trials), axis=1), simulated=True,
        events=Events(2.0 * np.arange(TRIALS), np.full(TRIALS, 2.0), label),
    )  # fmt: skip


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    for i in range(8):
        write_shard(folder / f"p{i}.h5", [person(f"p{i}", rng)], {})
    return open_shards(folder)


@pytest.fixture(scope="module")
def model(people: Corpus) -> Pretrained:
    config = {"kind": "models", "name": "luna", "keywords": luna.SIZES["test"]}
    facts = facts_of(people, 1.0)
    torch.manual_seed(0)
    return Pretrained(build(config, facts).eval(), config, facts)


def sides(people: Corpus) -> tuple[Windows, Windows]:
    return tuple(  # type: ignore[return-value]
        Windows.join([people.subject(f"p{i}").trials(0, 2) for i in who]) for who in (range(4), range(4, 8))
    )


def curve(result: dict, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    (found,) = [c for c in result["in_time"]["curves"] if c["model"] == name]
    return tuple(np.array(found[k]) for k in ("time", "score", "p"))  # type: ignore[return-value]


def test_found_at_its_time_and_at_no_other(people: Corpus, model: Pretrained) -> None:
    found = in_time.run(model, *sides(people), seed=0, tmin_s=-0.5, **CUT)
    json.dumps(found)
    for name in ("pretrained", in_time.POWER):
        time, score, p = curve(found, name)
        np.testing.assert_allclose(time, np.arange(8) * 0.25 + 0.125 - 0.5)
        inside = (time > 0.5) & (time < 1.0)
        assert inside.sum() == 2
        assert score[inside].min() > 0.75, name
        assert np.abs(score[~inside] - 0.5).max() < 0.2
        assert (p[inside] < 0.05).all()
        assert (p[~inside] > 0.05).all()
    assert curve(found, in_time.SIGNALS)[1].max() < 0.75  # a rhythm of any phase has no mean
    maps = {m["title"].split(":")[0]: np.array(m["values"]) for m in found["matrices"]}
    rows = maps[in_time.POWER]
    assert rows.shape == (8, 8)
    np.testing.assert_allclose(np.diag(rows), curve(found, in_time.POWER)[1] - 0.5, atol=1e-6)
    assert rows[4:6, 4:6].min() > 0.3  # the state lasts: what is fitted at one time holds at the other
    assert np.abs(rows[:4, :4]).max() < found["in_time"]["generalisation_threshold"][in_time.POWER] - 0.5 + 0.1
    assert any("whole trial" in c["model"] for c in found["in_time"]["curves"])
    assert found["score"] == pytest.approx(curve(found, "pretrained")[1].mean())
    assert found["ci"][0] < found["score"] < found["ci"][1]
    assert found["n_subjects"] == 4
    assert in_time.TOKENS not in found["baselines"]
    assert {"majority", "untrained", in_time.SIGNALS, in_time.POWER, "permuted labels"} <= set(found["baselines"])


def test_within_people_the_sides_of_a_fold_are_apart(people: Corpus, model: Pretrained) -> None:
    train, test = sides(people)
    test = test.take(test.of("subject") >= "p6")
    cut = {"length_s": 0.5, "step_s": 0.5, "permutations": 0}
    found = in_time.run(model, train, test, seed=0, blocks=2, gap_s=2.0, **cut)
    _, score, p = curve(found, in_time.POWER)
    assert score[2] > 0.9
    assert p[2] < 0.05
    assert (np.delete(p, 2) > 0.05).all()
    assert len(found["folds"]) == 2 * 2
    assert set(found["per_subject"]) == {"sim/p6", "sim/p7"}
    for fold in found["folds"]:
        (key,) = fold["test"]
        assert set(fold["train"]) == {key}
        for a, b in fold["train"][key]:
            assert all(b + 2 <= low or a >= high + 2 for low, high in fold["test"][key])


def test_shuffled_labels_give_chance(people: Corpus, model: Pretrained) -> None:
    train, test = sides(people)
    rng = np.random.default_rng(1)
    train, test = (
        Windows(w.recordings, w.recording, w.start, w.samples,
                protocol.permuted_within(w.label, w.of("person"), rng), w.stimulus)
        for w in (train, test)
    )  # fmt: skip
    found = in_time.run(model, train, test, seed=0, **CUT)
    for name in ("pretrained", in_time.POWER):
        _, score, p = curve(found, name)
        assert np.abs(score - 0.5).max() < 0.2
        assert (p > 0.05).all()


def test_errors_say_what_to_change(people: Corpus, model: Pretrained) -> None:
    train, test = sides(people)
    with pytest.raises(ValueError, match=r"trials of 2 s and short windows of 3 s"):
        in_time.run(model, train, test, seed=0, length_s=3.0)
    order = np.argsort(test.label, kind="stable")
    blocked = Windows(test.recordings, test.recording, test.start, test.samples, test.label[order], test.stimulus)
    with pytest.raises(ValueError, match="leave a class untrained"):
        in_time.within(blocked, 2, 1.0)
    with pytest.raises(ValueError, match="are in training windows; split by subject"):
        in_time.run(model, Windows.join([train, test]), test, seed=0)
    seen = Pretrained(model.model, model.config, model.facts, {"subjects": {"val": ["sim/p5"]}})
    with pytest.raises(ValueError, match=r"sim/p5\) are in pretraining"):
        in_time.run(seen, train, test, seed=0)
    tuned = Pretrained(model.model, model.config, model.facts, {"windows": {"finetuned": {"sim/p5//": [[3.0, 4.0]]}}})
    with pytest.raises(ValueError, match="has sim/p5// among the windows of its training"):
        in_time.run(tuned, train, test, seed=0, blocks=2)


def test_the_gap_within_people_is_at_least_twice_the_reach_of_the_filters(people: Corpus) -> None:
    _, test = sides(people)
    for reach_s, least in ((0.0, 1.0), (3.0, 6.0)):
        stored = [replace(r, reach_s=reach_s) for r in test.recordings]
        windows = replace(test, recordings=stored)
        begin, end = windows.start / SFREQ, (windows.start + windows.samples) / SFREQ
        folds = in_time.within(windows, 3, 1.0)
        assert len(folds) == 3 * 4
        apart = [max(begin[b] - end[a], begin[a] - end[b]) for f in folds for a in f.fit for b in f.test]
        assert least <= min(apart) <= least + 2  # trials of two seconds


def test_p_is_against_the_best_time_of_all(people: Corpus) -> None:
    """Under the null the corrected p is below 5 % at any time in about 5 % of experiments, labels in blocks or not."""
    _, test = sides(people)
    time = np.arange(12.0)
    for length, over in ((1, "trials"), (4, "stretches"), (TRIALS, "people")):
        rng, rejected = np.random.default_rng(0), 0
        for seed in range(60):
            stretches = TRIALS // length
            labels = [(rng.permutation(stretches) + rng.integers(2)) % 2 for _ in range(4)]
            truth = np.repeat(np.concatenate(labels), length)
            guess = np.repeat(rng.integers(0, 2, (4 * stretches, 12)), length, axis=0)
            null = chance.Null.of(test, truth, 2, seed, 199)
            found = in_time._curve("", time, test, truth, guess, null, seed)
            rejected += min(found["p"]) <= 0.05
        assert rejected <= 7, over
        assert null.over == over


def test_where_a_trial_s_recording_is_its_condition_people_are_flipped(people: Corpus, model: Pretrained) -> None:
    """Right in all trials of four people is right four times over, however many trials there are."""
    _, test = sides(people)
    truth = (test.of("subject") < "p6").astype(int)
    null = chance.Null.of(test, truth, 2, 0)
    found = in_time._curve("", np.arange(1.0), test, truth, truth[:, None], null, 0)
    assert found["score"] == [1.0]
    assert found["p"][0] == pytest.approx(2 / 16, abs=0.04), "two-sided"
    wrong = in_time._curve("", np.arange(1.0), test, truth, 1 - truth[:, None], null, 0)
    assert wrong["score"] == [0.0]
    assert wrong["p"] == found["p"]
    assert null.least == 2 / 16
