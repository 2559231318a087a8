"""Every protocol by what it may never do: score what it was fitted on, or look at whom it must not."""

import numpy as np
import pytest

from brainfm.audit import near
from brainfm.evaluations import protocols
from brainfm.evaluations.protocols import Calibration, sides
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard
from tests.evaluations.people import person

REACH = 0.6


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Nine people of one session with a cap, two of another dataset, two with two sessions, one with another cap."""
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    for i in range(9):
        write_shard(folder / f"p{i}.h5", [person(f"p{i}", rng, device="other" if i == 8 else "cap")], {})
    for i in range(2):
        write_shard(folder / f"q{i}.h5", [person(f"q{i}", rng, dataset="elsewhere")], {})
    for i in range(2):
        days = [person(f"r{i}", rng, session=day, reach_s=REACH) for day in ("one", "two")]
        write_shard(folder / f"r{i}.h5", days, {})
    return open_shards(folder)


@pytest.fixture(scope="module")
def two(people):
    """Training and test windows of different people."""
    return (people.where(subject=["p0", "p1", "p2", "p3", "p4"]).trials(0, 1),
            people.where(subject=["p5", "p6", "p7"]).trials(0, 1))  # fmt: skip


@pytest.fixture(scope="module")
def days(people):
    return people.where(subject=["r0", "r1"]).trials(0, 1)


def disjoint(trials, side):
    """The rows of a side, once each."""
    rows = np.concatenate(side)
    assert len(rows) == len(set(rows.tolist()))
    return [set(trials.people[part].tolist()) for part in side]


@pytest.mark.parametrize("folds", [0, 2, -1])
def test_across_people_each_is_scored_once_by_what_never_saw_them(two, folds):
    trials, parts, first = sides("cross-subject", *two, seed=0, folds=folds)
    scored = np.concatenate([p.test for p in parts])
    assert sorted(scored.tolist()) == list(range(len(two[0]), len(trials)))
    assert len(parts) == {0: 1, 2: 2, -1: 3}[folds]
    for part in parts:
        fit, val, test, *_ = disjoint(trials, part)
        assert not (fit | val) & test
        assert not fit & val
    chosen = set(trials.people[np.concatenate([first.fit, first.val])].tolist())
    assert chosen == set(two[0].of("person").tolist())


def test_zero_shot_takes_no_folds(two):
    assert len(sides("zero-shot", *two, seed=0)[1]) == 1
    with pytest.raises(ValueError, match="folds: 2 go with cross-subject"):
        sides("zero-shot", *two, seed=0, folds=2)


def test_shots_are_of_the_earlier_half_and_the_rest_is_scored(two):
    trials, (part,), _ = sides("few-shot", *two, seed=0)
    disjoint(trials, part)
    assert set(trials.people[part.shots].tolist()) == set(trials.people[part.test].tolist())
    for name in np.unique(trials.people[part.test]):
        early, late = (rows[trials.people[rows] == name] for rows in (part.shots, part.test))
        for c in range(2):
            first, last = (trials.windows.start[x[trials.labels[x] == c]] for x in (early, late))
            assert len(first) == len(last) == 6
            assert first.max() < last.min()


def test_calibration_is_early_of_one_condition_and_never_scored(two):
    trials, (part,), _ = sides(
        "unlabelled-calibration", *two, seed=0, calibration=Calibration(seconds=8, label="right")
    )
    assert not set(part.test) & set(np.concatenate([part.unlabelled, part.taught]))
    assert set(trials.people[part.unlabelled]) == set(trials.people)
    assert set(trials.windows.label[part.unlabelled]) == {"right"}
    assert protocols.seconds(trials.windows.take(part.unlabelled))[1].max() <= 8
    with pytest.raises(ValueError, match=r"no window of rest in the first 8 s"):
        sides("unlabelled-calibration", *two, seed=0, calibration=Calibration(seconds=8, label="rest"))


def test_blocks_of_a_session_lie_apart_by_what_filters_reach(days):
    trials, parts, _ = sides("within-session", days, days, seed=0, blocks=4)
    assert len(parts) == 2 * 2 * 4
    start, stop = protocols.seconds(trials.windows)
    for part in parts:
        disjoint(trials, part)
        assert len({trials.windows.recordings[r].id for r in trials.windows.recording[np.concatenate(part)]}) == 1
        spans = [np.stack([start[rows], stop[rows]], axis=1) for rows in (part.taught, part.test)]
        assert not near(*(x[np.argsort(x[:, 0])] for x in spans), 2 * REACH - 1e-9)
    scored = np.concatenate([p.test for p in parts])
    assert len(scored) == len(set(scored.tolist())) == len(trials)


def test_sessions_are_taught_by_the_other_session_of_the_same_person(days, two):
    trials, parts, _ = sides("cross-session", days, days, seed=0)
    assert len(parts) == 4
    session = trials.windows.of("session")
    for part in parts:
        assert len({trials.people[r] for r in np.concatenate(part)}) == 1
        assert set(session[part.taught]).isdisjoint(session[part.test])
        fit, val = (trials.windows.start[rows] for rows in (part.fit, part.val))
        assert fit.max() + 64 + 2 * REACH * 64 <= val.min()
    with pytest.raises(ValueError, match="has one session"):
        sides("cross-session", *two, seed=0)


def test_datasets_and_devices_are_held_out_whole(people, two):
    elsewhere, cap = (people.where(**w).trials(0, 1) for w in ({"dataset": "elsewhere"}, {"device": "other"}))
    trials, (part,), _ = sides("cross-dataset", two[0], elsewhere, seed=0)
    assert set(trials.windows.of("dataset")[part.test]) == {"elsewhere"}
    trials, (part,), _ = sides("cross-device", two[0], cap, seed=0)
    assert set(trials.windows.of("device")[part.taught]) == {"cap"}
    with pytest.raises(ValueError, match="dataset sim is on both sides"):
        sides("cross-dataset", *two, seed=0)
    with pytest.raises(ValueError, match="device cap is on both sides"):
        sides("cross-device", *two, seed=0)


def test_errors_say_what_to_do(people, two):
    with pytest.raises(ValueError, match="did you mean 'cross-subject'"):
        sides("cross-subjects", *two, seed=0)
    with pytest.raises(ValueError, match=r"person sim/p5 is on both sides; split by subject"):
        sides("cross-subject", two[1], two[1].take(np.arange(24)), seed=0)
    with pytest.raises(ValueError, match="4 folds of 3 ids"):
        sides("cross-subject", *two, seed=0, folds=4)
    one = people.where(subject="p6").trials(0, 1, ["left"])
    with pytest.raises(ValueError, match=r"all windows have the label 'left'"):
        sides("within-session", one, one, seed=0)
