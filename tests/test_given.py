"""What a decoder is given: who is spared to stop early, and labels as one type."""

from __future__ import annotations

import numpy as np
import pytest

from brainfm.given import Given, labels_of
from brainfm.recording import Channels
from brainfm.training.batches import ArrayDataset, Batcher


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
    assert "8 of 40 trials, those of 2 people" in said
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
