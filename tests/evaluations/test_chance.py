"""What chance exchanges follows the design of the labels, and a 5 % test rejects about 5 % in each design."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import norm

from brainfm.evaluations import chance, protocol
from brainfm.metrics import balanced_accuracy
from brainfm.shards.read import Windows
from brainfm.statistics import bootstrap_trials

LEVEL, TIMES = 0.05, 200


def windows(labels: list[np.ndarray], people: list[str], single: bool = False) -> tuple[Windows, np.ndarray]:
    """Windows of a second, one recording for each array of class numbers, and the numbers.

    Args:
        single: each window is a segment of its own, as in an archive of single trials.
    """
    stored = tuple(
        SimpleNamespace(
            id=f"{p}/{i}", person=p,
            segments=np.stack([np.arange(len(x)), np.arange(len(x)) + 1], axis=1) if single else np.array([[0, len(x)]])
        )
        for i, (p, x) in enumerate(zip(people, labels, strict=True))
    )  # fmt: skip
    recording = np.repeat(np.arange(len(labels)), [len(x) for x in labels])
    start = np.concatenate([np.arange(len(x)) for x in labels])
    truth = np.concatenate(labels)
    n = np.ones(len(truth), int)
    return Windows(stored, recording, start, n, truth.astype(str), truth.astype(str)), truth  # type: ignore[arg-type]


def drifting(n: int, rng: np.random.Generator, reach: float) -> np.ndarray:
    """Guesses of two classes that know nothing; neighbours correlate by exp(-1 / reach)."""
    keep = np.exp(-1 / reach) if reach else 0.0
    x, step = np.zeros(n), rng.normal(size=n)
    x[0] = step[0]
    for i in range(1, n):
        x[i] = keep * x[i - 1] + np.sqrt(1 - keep**2) * step[i]
    return (x > 0).astype(int)


def trials(rng):
    return rng.permutation(np.repeat([0, 1], 30))


def rare(rng):
    return (rng.permutation(120) < 20).astype(int)


def alternating(rng):
    return np.repeat((np.arange(20) + rng.integers(2)) % 2, 15)


def blocks(rng):
    return np.repeat(rng.permutation(np.arange(20) % 2), 15)


@pytest.mark.parametrize(
    ("design", "reach", "over"),
    [(trials, 0, "trials"), (trials, 15, "trials"), (rare, 5, "trials"), (alternating, 0, "stretches"),
     (alternating, 15, "stretches"), (blocks, 0, "stretches"), (blocks, 15, "stretches")],
)  # fmt: skip
def test_a_five_percent_test_rejects_five_percent(design, reach, over):
    """Half-minute blocks with guesses that drift: permuted windows would call a quarter of them skill."""
    rng, found, kinds = np.random.default_rng(0), [], []
    for seed in range(TIMES):
        asked, truth = windows([design(rng) for _ in range(2)], ["p0", "p1"])
        guess = np.concatenate([drifting(len(truth) // 2, rng, reach) for _ in range(2)])
        p, kind, _ = chance.by_chance(asked, truth, guess, 2, seed, n=99)
        found.append(p <= LEVEL)
        kinds.append(kind)
    assert np.mean(np.array(kinds) == over) > 0.9
    assert np.mean(found) <= LEVEL + 2 * np.sqrt(LEVEL * (1 - LEVEL) / TIMES)


def test_windows_of_a_stretch_permuted_one_by_one_reject_too_often():
    """What the test above guards against."""
    rng, found = np.random.default_rng(0), []
    for seed in range(TIMES):
        asked, truth = windows([blocks(rng)], ["p"])
        guess = drifting(len(truth), rng, 15)
        design = replace(chance.Design.of(asked, truth), over="trials")
        ((rows, drawn),) = design.permuted(truth, 99, np.random.default_rng(seed))
        scores = [balanced_accuracy(labels, guess[rows]) for labels in (truth, *drawn)]
        found.append(np.mean(np.array(scores) >= scores[0] - 1e-9) <= LEVEL)
    assert np.mean(found) > 3 * LEVEL


def test_skill_is_found_in_every_design():
    rng = np.random.default_rng(1)
    for design, people in ((trials, 1), (rare, 2), (alternating, 1), (blocks, 1)):
        asked, truth = windows([design(rng) for _ in range(people)], [f"p{i}" for i in range(people)])
        guess = np.where(rng.random(len(truth)) < 0.25, 1 - truth, truth)
        assert chance.by_chance(asked, truth, guess, 2, 0)[0] < 0.01, design.__name__


def test_runs_stay_whole_and_inside_their_recording():
    first, second = np.repeat([0, 1, 0, 2], [5, 7, 6, 8]), np.repeat([1, 0], [9, 9])
    asked, truth = windows([first, second], ["p", "p"])
    mixed = np.random.default_rng(0).permutation(len(truth))  # rows need not be in order of time
    asked, truth = asked.take(mixed), truth[mixed]
    design = chance.Design.of(asked, truth)
    assert (design.over, design.block) == ("stretches", round(44 / 6))
    for (rows, drawn), own in zip(design.permuted(truth, 50, np.random.default_rng(0)), (first, second), strict=True):
        assert truth[rows].tolist() == own.tolist()
        assert len({tuple(x) for x in drawn.tolist()}) > 1
        for labels in drawn:
            assert np.bincount(labels).tolist() == np.bincount(own).tolist()
            assert np.sum(np.diff(labels) != 0) <= np.sum(np.diff(own) != 0)


def test_scores_are_balanced_accuracy_and_a_guess_of_one_class_ties_with_all():
    rng = np.random.default_rng(2)
    asked, truth = windows([trials(rng), rare(rng)], ["p", "q"])
    guess = np.stack([rng.integers(0, 2, len(truth)), np.zeros(len(truth), int)], axis=1)
    each = chance.Null.of(asked, truth, 2, 0, 99).scores(guess)
    assert each.shape == (2, 100, 2)
    people = asked.of("person")
    for i, name in enumerate("pq"):
        own = people == name
        assert each[i, 0, 0] == balanced_accuracy(truth[own], guess[own, 0])
    assert (each[..., 1] == 0.5).all()
    assert chance.by_chance(asked, truth, guess[:, 1], 2, 0)[:2] == (1.0, "trials")


def test_a_recording_that_is_a_condition_makes_people_the_unit():
    """Six people right throughout: signs of six scores, two-sided, whatever the number of windows."""
    people = [f"p{i // 2}" for i in range(12)]
    asked, truth = windows([np.full(40, i % 2) for i in range(12)], people)
    assert chance.by_chance(asked, truth, truth, 2, 0) == (2 / 64, "people", 2 / 64)
    assert chance.Design.of(asked, truth).block == 40


def test_one_person_s_interval_covers_over_stretches():
    """Guesses that lean to the right class and drift: their known score lies in about nine of ten intervals."""
    rng, inside = np.random.default_rng(3), np.zeros(2)
    for seed in range(60):
        truth = alternating(rng)
        asked, _ = windows([truth], ["p"])
        lean = norm.ppf(np.where(truth == 1, 0.7, 0.3))
        x, step = np.zeros(len(truth)), rng.normal(size=len(truth))
        for i in range(len(truth)):
            x[i] = 0.9 * x[i - 1] + np.sqrt(1 - 0.81) * step[i] if i else step[0]
        guess = (x + lean > 0).astype(int)
        block = chance.Design.of(asked, truth).block
        found = [bootstrap_trials(truth, guess, balanced_accuracy, n=200, seed=seed, block=b) for b in (block, 1)]
        inside += [low <= 0.7 <= high for low, high in found]
    assert inside[0] / 60 >= 0.8
    assert inside[1] / 60 < 0.7
    said = chance.scored(balanced_accuracy, asked, truth, guess, seed)
    assert said.ci == bootstrap_trials(truth, guess, balanced_accuracy, seed=seed, block=block)


def test_one_function_says_that_recordings_are_conditions():
    recording = np.array([0, 0, 1, 1])
    assert protocol.confounded(recording, np.array(["rest", "rest", "task", "task"]))
    assert not protocol.confounded(recording, np.array(["rest", "task", "task", "task"]))


def test_trials_of_an_archive_are_exchanged_though_its_file_is_sorted_by_class():
    """Nothing is known of the time between segments: 74 trials of four classes are no four stretches."""
    sorted_ = np.repeat([0, 1, 2, 3], [20, 18, 18, 18])
    rng = np.random.default_rng(0)
    guess = np.where(rng.random(74) < 0.5, sorted_, rng.integers(0, 4, 74))
    asked, truth = windows([sorted_], ["p"], single=True)
    design = chance.Design.of(asked, truth)
    assert (design.over, design.block) == ("trials", 1)
    p, over, least = chance.by_chance(asked, truth, guess, 4, 0)
    assert (p, over) == (0.001, "trials")
    assert least == pytest.approx(0.001)
    said = chance.scored(balanced_accuracy, asked, truth, guess, 0)
    assert said.ci == bootstrap_trials(truth, guess, balanced_accuracy)
    continuous, _ = windows([sorted_], ["p"])
    assert chance.Design.of(continuous, truth).over == "stretches"
    assert chance.by_chance(continuous, truth, guess, 4, 0).p > 0.02, "one of 24 orders"


def test_single_trials_count_as_runs_beside_recordings_in_stretches():
    """However many they are, they do not say how the labels of the others lie in time."""
    block = np.repeat([0, 1, 0, 1], 15)
    whole, truth = windows([block, np.repeat([0, 1], 200)], ["p", "q"])
    whole.recordings[1].segments = np.stack([np.arange(400), np.arange(400) + 1], axis=1)
    design = chance.Design.of(whole, truth)
    assert design.over == "stretches"
    assert [x.tolist() for x in design.runs] == [[15] * 4, [1] * 400]


def test_the_smallest_p_is_that_of_guesses_that_are_all_right():
    """One rest and one task run in each recording: two orders each, so four people leave it open."""
    for people, orders in ((1, 2), (2, 4), (3, 8), (4, 16), (6, 64)):
        labels = [np.repeat([i % 2, 1 - i % 2], 20) for i in range(people)]
        asked, truth = windows(labels, [f"p{i}" for i in range(people)])
        p, over, least = found = chance.by_chance(asked, truth, truth, 2, 0)
        assert over == "stretches"
        assert least == pytest.approx((1 + 999 / orders) / 1000)
        assert p == pytest.approx(least, abs=4 * np.sqrt(1 / orders / 999))
        assert bool(found.note()) == (orders < 20)
    assert chance.few_orders(0.5, "stretches") == (
        " p cannot fall below 0.500 here, however good the guesses: too few stretches to exchange."
    )
    assert (truth == 0).any(), "names do as well as numbers"
    assert chance.Design.of(asked, truth).least(truth.astype(str), 6, 999) == least


def test_runs_of_one_length_and_label_may_change_places():
    labels = np.repeat([0, 1, 0, 1], 5)
    asked, truth = windows([labels], ["p"])
    assert chance.by_chance(asked, truth, truth, 2, 0, n=99).least == pytest.approx((1 + 99 * 2 * 2 / 24) / 100)


@pytest.mark.parametrize("labels", [np.zeros(10, int), np.repeat([0, 1], [19, 1])])
def test_an_interval_of_few_runs_has_a_width(labels):
    """One block as long as all trials would be the same in every resample."""
    asked, truth = windows([labels], ["p"])
    assert 1 <= chance.Design.of(asked, truth).block <= len(truth) // 2
    low, high = chance.scored(balanced_accuracy, asked, truth, np.arange(len(truth)) % 3 // 2, 0).ci
    assert low < high


def test_one_window_is_a_block_of_one():
    asked, truth = windows([np.zeros(1, int)], ["p"], single=True)
    assert chance.Design.of(asked, truth).block == 1
