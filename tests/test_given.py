"""What a decoder is given: who is spared to stop early, and labels as one type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from brainfm.given import Given, earlier_and_later, labels_of, met
from brainfm.recording import Channels, Events, Recording
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard
from brainfm.training.batches import ArrayDataset, Batcher, WindowDataset


def given(people: list[str], labels: list[int]) -> Given:
    trials = ArrayDataset(np.zeros((len(people), 1, 8)), Channels.make(["a"], "eeg"), 8.0, Batcher())
    return Given(trials, np.array(people), np.array(labels), ["x", "y"])


def test_the_last_trials_of_each_class_are_spared() -> None:
    labels = [0] * 12 + [1] * 10  # a class after the other: a cut in time alone would leave one class
    fit, val, said = given(["p"] * 22, labels).spared(0)
    assert val.tolist() == [10, 11, 20, 21]
    assert sorted([*fit, *val]) == list(range(22))
    assert said == "4 of 22 trials, the last of each class, say when to stop."


def test_people_are_spared_where_there_are_four() -> None:
    people = [p for p in "abcdefghij" for _ in range(4)]
    one = given(people, [0, 1] * 20)
    fit, val, said = one.spared(0)
    sides = [{people[row] for row in rows} for rows in (fit, val)]
    assert [len(side) for side in sides] == [8, 2]
    assert not sides[0] & sides[1]
    assert said.startswith("8 of 40 trials, those of 2 people (")
    assert said.count("say when to stop") == 1
    assert set(val.tolist()) != set(one.spared(1)[1].tolist())


def test_a_person_without_a_class_is_not_spared_alone() -> None:
    people, labels = list("aaaaaaaaaabbbbbbbbbbcccccccccc"), [0] * 10 + [1] * 10 + [0, 1] * 5
    fit, val, said = given([*people, *["d"] * 10], [*labels, *[1] * 10]).spared(1)
    assert set(np.array([*labels, *[1] * 10])[val]) == {0, 1}
    assert len(fit) + len(val) == 40
    assert said


def test_too_few_to_spare_any() -> None:
    fit, val, said = given(["p"] * 8, [0, 1] * 4).spared(0)
    assert (len(fit), len(val)) == (8, 0)
    assert "8 trials are too few to spare some of each class" in said


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["a", "b"], "U"),
        (np.array(["a", "b"], object), "U"),
        ([1, 2.0], "i"),
        ([True, False], "b"),
        ([np.int8(1), 2], "i"),
    ],
)
def test_labels_become_one_type(labels: object, kind: str) -> None:
    assert labels_of(None, labels).dtype.kind == kind


def run(session: str, name: str, reach_s: float = 0.0, words: Sequence[str] = ("x", "y") * 5) -> Recording:
    """A trial of each word, a second each, one after the other."""
    n = len(words)
    return Recording(
        "made_up", "1", "eeg", Channels.make(["a"], "eeg"), sfreq=8.0, session=session, run=name, reach_s=reach_s,
        signal=np.random.default_rng(0).normal(0, 1e-5, (1, 8 * n)),
        events=Events(np.arange(float(n)), np.zeros(n), list(words)),
    )  # fmt: skip


def test_a_cut_in_time_follows_sessions_and_runs(tmp_path: Path) -> None:
    """Runs start at 0 each: sorted by start within a session, every run would be on both sides."""
    write_shard(tmp_path / "1.h5", [run("2", "a"), run("1", "b"), run("1", "a"), run("2", "b")], {})
    fit, held, said = earlier_and_later(open_shards(tmp_path).trials(0.0, 1.0), 0.25)
    assert fit.intervals() == {f"made_up/1/{r}": [[0.0, 10.0]] for r in ("1/a", "1/b", "2/a")}
    assert held.intervals() == {"made_up/1/2/b": [[0.0, 10.0]]}
    assert said == []


def test_trials_that_reach_over_the_cut_are_left_out(tmp_path: Path) -> None:
    write_shard(tmp_path / "1.h5", [run("1", "a", reach_s=0.75)], {})
    fit, held, said = earlier_and_later(open_shards(tmp_path).trials(0.0, 1.0), 0.3)
    assert (fit.start.tolist(), held.start.tolist()) == ([0, 8, 16, 24, 32], [56, 64, 72])
    assert said == ["2 trials before the cut share raw samples with tested ones and are left out."]


def test_whom_a_model_met() -> None:
    card = {"subjects": {"train": ["d/1"]}, "tokenizer": {"subjects": {"val": ["d/2"]}}}
    assert met("d/3", card) == met("d/1", {}) == []
    assert "d/1 was in this model's pretraining" in met("d/1", card)[0]
    assert "d/2 was in this model's pretraining" in met("d/2", card)[0]
    with pytest.raises(ValueError, match="d/1 has taught this model labelled trials already"):
        met("d/1", {"subjects": {"finetuned": ["d/1"]}})


def test_what_a_card_says_is_kept_when_more_is_seen(tmp_path: Path) -> None:
    write_shard(tmp_path / "1.h5", [run("1", "a"), run("1", "b")], {})
    windows = open_shards(tmp_path).trials(0.0, 1.0)
    windows = windows.take(np.argsort(windows.of("id"), kind="stable"))

    def seen(rows: list[int], card: dict) -> dict:
        own = WindowDataset(windows.take(rows), Batcher())
        return Given(own, np.full(len(rows), "made_up/1"), np.zeros(len(rows), int), ["x"]).seen(card)

    card = seen([4, 5, 12], {"subjects": {"train": ["d/2"], "finetuned": ["d/9"]}, "windows": {"train": {}}})
    assert card["subjects"] == {"train": ["d/2"], "finetuned": ["d/9", "made_up/1"]}
    card = seen([2, 3, 8], card)
    assert card["windows"]["finetuned"] == {
        "made_up/1/1/a": [[2.0, 6.0], [8.0, 9.0]], "made_up/1/1/b": [[2.0, 3.0]]
    }  # fmt: skip
    assert card["windows"]["train"] == {}
    assert card["checksums"] == {r.id: r.checksum for r in windows.recordings}
    assert seen([2, 3], card) == card


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([np.nan, "left"]), "1 of 2 labels are missing"),
        (["n/a", "left", "N/A"], "2 of 3 labels are missing"),
        (np.array(["nan", "left"]), "1 of 2 labels are missing"),
        (np.array([1, "left"]), "two types .numbers and words"),
        (np.array([0.5, "left"]), "two types .numbers and words"),
        ([0.0, np.inf, -np.inf], "2 of 3 labels are infinite"),
    ],
)
def test_labels_that_are_none(labels: object, message: str) -> None:
    """Also those that numpy made words of on the way."""
    with pytest.raises(ValueError, match=message):
        labels_of(None, labels)


@pytest.mark.parametrize("width", [21, 32])
def test_words_that_look_like_numbers_are_words(width: int) -> None:
    """Also where the longest happens to be as wide as what numpy makes of numbers."""
    assert labels_of(None, np.array(["10", "rest"])).tolist() == ["10", "rest"]
    longest = "r" * width
    assert labels_of(None, np.array(["10", longest])).tolist() == ["10", longest]
    assert labels_of(None, np.array([1, 2], "<U21")).tolist() == ["1", "2"]


def test_a_missing_label_of_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match="1 of 2 labels are missing"):
        labels_of(None, pandas.array(["a", pandas.NA]))


def test_each_recording_is_cut_where_it_is_asked(tmp_path: Path) -> None:
    write_shard(tmp_path / "1.h5", [run("1", "a"), run("1", "b")], {})
    fit, held, _ = earlier_and_later(open_shards(tmp_path).trials(0.0, 1.0), 0.3, by_recording=True)
    assert fit.intervals() == {f"made_up/1/1/{r}": [[0.0, 7.0]] for r in "ab"}
    assert held.intervals() == {f"made_up/1/1/{r}": [[7.0, 10.0]] for r in "ab"}


def test_every_class_is_scored_where_labels_come_in_blocks(tmp_path: Path) -> None:
    """One cut of ten trials of each class in a row would score the second alone."""
    write_shard(tmp_path / "1.h5", [run("1", "a", 0.25, ["x"] * 10 + ["y"] * 10)], {})
    fit, held, said = earlier_and_later(open_shards(tmp_path).trials(0.0, 1.0), 0.3)
    assert held.intervals() == {"made_up/1/1/a": [[7.0, 10.0], [17.0, 20.0]]}
    assert fit.intervals() == {"made_up/1/1/a": [[0.0, 6.0], [11.0, 16.0]]}
    assert said == [
        "One cut in time leaves 'x' on one side alone: the last trials of each class are scored.",
        "3 trials before the cut share raw samples with tested ones and are left out.",
    ]


@pytest.mark.parametrize("words", [["x"] * 10 + ["y"], ["y"] + ["x"] * 10])
def test_a_class_that_cannot_be_cut_is_named(words: list[str], tmp_path: Path) -> None:
    write_shard(tmp_path / "1.h5", [run("1", "a", words=words)], {})
    with pytest.raises(ValueError, match=r"^'y' of 11 trials: no cut in time"):
        earlier_and_later(open_shards(tmp_path).trials(0.0, 1.0), 0.3)
