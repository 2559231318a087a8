"""Splits: people stay whole, and who is held out depends on ids and the seed alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfm.splits import assign, order


def listed(subjects, sessions=("1", "2")):
    return [(f"d/{s}/{n}/", str(s), n) for s in subjects for n in sessions]


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 99), min_size=4, max_size=20), st.integers(0, 2), st.integers(0, 1), st.integers(0, 9))
def test_a_subject_is_on_one_side(subjects, test, val, seed):
    sides = assign(listed(subjects), test_subjects=test, val_subjects=val, seed=seed)
    by_person = {s: {side for key, side in sides.items() if key.split("/")[1] == str(s)} for s in subjects}
    assert all(len(found) == 1 for found in by_person.values())
    counts = [next(iter(found)) for found in by_person.values()]
    assert (counts.count("test"), counts.count("val")) == (test, val)


def test_order_of_the_recordings_does_not_matter():
    rows = listed(range(9))
    assert assign(rows, test_subjects=3, val_subjects=2, seed=4) == assign(
        rows[::-1], test_subjects=3, val_subjects=2, seed=4
    )


def test_another_seed_holds_out_others():
    held = {
        frozenset(k for k, side in assign(listed(range(30)), test_subjects=5, seed=s).items() if side == "test")
        for s in range(5)
    }
    assert len(held) == 5


def test_one_more_person_does_not_reshuffle_the_others():
    before, after = order([str(i) for i in range(20)], 0), order([str(i) for i in range(21)], 0)
    assert [x for x in after if x != "20"] == before


def test_shares_and_sessions():
    sides = assign(listed(range(10)), test_subjects=0.3, val_subjects=0.1, test_sessions=["2"])
    by_side = {s: [k for k, v in sides.items() if v == s] for s in ("train", "val", "test")}
    assert {k.split("/")[2] for k in by_side["train"]} == {"1"}
    assert len(by_side["val"]) == 2
    assert len(by_side["test"]) == 3 * 2 + 6


def test_everyone():
    assert set(assign(listed(range(3)), everyone="test").values()) == {"test"}
    with pytest.raises(ValueError, match="'tset' is not a side"):
        assign(listed(range(3)), everyone="tset")


@pytest.mark.parametrize(
    "rule", [{"test_subjects": 2}, {"test_subjects": 1, "val_subjects": 1}, {"test_sessions": ["1", "2"]}]
)
def test_nothing_to_train_on_is_an_error(rule):
    with pytest.raises(ValueError, match="leaves nothing to train on: 2 subjects"):
        assign(listed(range(2)), **rule)


def test_a_session_that_no_recording_has_is_an_error():
    """A typo would leave the test side empty in silence."""
    with pytest.raises(ValueError, match=r"'tset'.*1, 2"):
        assign(listed(range(3)), test_sessions=["tset"])
