"""Every protocol by what it may never do: score what it was fitted on, or look at whom it must not."""

from dataclasses import replace

import numpy as np
import pytest

from brainfm.evaluations import method_scores, protocols
from brainfm.evaluations.protocols import Calibration, sides
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.spans import near
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


def test_who_lacks_a_class_is_left_out_of_what_is_scored(two):
    """Else the class that training has most often would score above chance: 1 with whoever has that class alone."""
    train, test = two
    lone = ~((test.of("subject") == "p6") & (test.label == "right"))
    trials, parts, _ = sides("cross-subject", train, test.take(lone), seed=0, folds=3)
    kept, said = protocols.scorable(trials, parts)
    assert len(kept) == 2, "the fold that scored nobody else is gone"
    assert {trials.people[i] for p in kept for i in p.test} == {"sim/p5", "sim/p7"}
    assert any("sim/p6" in trials.people[p.taught] for p in kept), "the windows still train others"
    assert "not all classes are there: sim/p6 has no window of some" in said
    rows = np.concatenate([p.test for p in kept])
    for always in (0, 1):
        guess = np.full(len(rows), always)
        assert method_scores.scored(trials, rows, guess, 0).score == 0.5
    trials, parts, _ = sides("few-shot", train, test.take(lone), seed=0)
    assert "sim/p6" in trials.people[parts[0].shots]
    (part,), _ = protocols.scorable(trials, parts)
    assert set(trials.people[part.shots]) == set(trials.people[part.test]) == {"sim/p5", "sim/p7"}
    whole = protocols.sides("cross-subject", *two, seed=0)
    assert protocols.scorable(*whole[:2]) == (whole[1], "")
    nobody = test.take((test.of("subject") != "p5") & ((test.of("subject") == "p6") == (test.label == "left")))
    with pytest.raises(ValueError, match="none of 2 tested people has windows of all classes"):
        protocols.scorable(*sides("cross-subject", train, nobody, seed=0)[:2])


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


def test_every_class_is_taught_and_scored(people, two):
    """Else chance is not one over their number."""
    for name in protocols.ACROSS_PEOPLE:
        with pytest.raises(ValueError, match=r"training has classes \['left'\] and test has \['left', 'right'\]"):
            sides(name, two[0].take(two[0].label == "left"), two[1], seed=0)
    whole = Calibration(seconds=24, label="right")
    with pytest.raises(ValueError, match="no window of 'right' is left to be scored in unlabelled-calibration"):
        sides("unlabelled-calibration", *two, seed=0, calibration=whole)
    mixed = Windows.join([people.where(subject=["p0", "p1", "p2", "p3"]).trials(0, 1, ["left"]),
                          people.where(subject="r0").trials(0, 1)])  # fmt: skip
    elsewhere = people.where(subject="p8").trials(0, 1)
    sides("cross-device", mixed, elsewhere, seed=0)
    used_both = [replace(r, subject="p8") if r.subject == "r0" else r for r in mixed.recordings]
    mixed = replace(mixed, recordings=tuple(used_both))
    with pytest.raises(ValueError, match="no window of 'right' is left to be taught in cross-device"):
        sides("cross-device", mixed, elsewhere, seed=0)


def test_errors_say_what_to_do(people, two):
    with pytest.raises(ValueError, match="did you mean 'cross-subject'"):
        sides("cross-subjects", *two, seed=0)
    with pytest.raises(ValueError, match=r"person sim/p5 is on both sides; split by subject"):
        sides("cross-subject", two[1], two[1].take(np.arange(24)), seed=0)
    with pytest.raises(ValueError, match=r"folds: 4 of 3 tested people .*and no more folds than people"):
        sides("cross-subject", *two, seed=0, folds=4)
    one = two[1].take(two[1].of("person") == two[1].of("person")[0])
    for folds in (-1, 2):
        with pytest.raises(ValueError, match=r"hold out more with .*--test-subjects.* or take protocol: zero-shot"):
            sides("cross-subject", two[0], one, seed=0, folds=folds)
    one = people.where(subject="p6").trials(0, 1, ["left"])
    with pytest.raises(ValueError, match=r"all windows have the label 'left'"):
        sides("within-session", one, one, seed=0)
