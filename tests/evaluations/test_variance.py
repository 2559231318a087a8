"""Parts of the variance and directions of classes: planted ones are found, and chance is told from them."""

import numpy as np
import pytest

from brainfm.evaluations.variance import PARTS, consistency, shares


def planted(seed, *, subject=1.0, label=0.0, own=0.0, session=0.0, people=12, sessions=1, features=40, equal=False):
    """Features whose parts have these deviations, all features alike, in designs with unequal cells."""
    rng = np.random.default_rng(seed)
    sign = label * rng.choice([-1.0, 1.0], features)
    rows, found = [], []
    for p in range(people):
        base, private = subject * rng.normal(size=features), own * rng.normal(size=features)
        for s in range(sessions):
            drift = session * rng.normal(size=features)
            for word, side in (("rest", -1), ("task", 1)):
                n = 12 if equal else int(rng.integers(4, 24))
                found.append(base + drift + side * (sign + private) + rng.normal(size=(n, features)))
                rows += [(f"p{p:02d}", word, f"s{s}")] * n
    people_, labels, sessions_ = np.array(rows).T
    return np.concatenate(found), people_, labels, sessions_


def test_shares_recover_the_planted_parts_in_an_unbalanced_design():
    sizes = {"subject": 1.2, "label": 0.6, "own": 0.5, "session": 0.7}
    x, *design = planted(0, **sizes, people=30, sessions=2, features=40)
    found = shares(x, *design, seed=0, permutations=9)
    total = sum(v**2 for v in sizes.values()) + 1
    for part, key in zip(PARTS[:4], ("subject", "label", "own", "session"), strict=True):
        assert found[part]["share"] == pytest.approx(sizes[key] ** 2 / total, abs=0.04), part
        assert found[part]["ci"][0] <= found[part]["share"] <= found[part]["ci"][1]
        assert all(null["p"] == pytest.approx(0.1) for null in found[part]["nulls"].values()), part
        assert abs(found[part]["nulls"]["permuted"]["mean"]) < 0.01, part
    assert sum(entry["share"] for entry in found.values()) == pytest.approx(1)
    assert set(found["label"]["nulls"]) == {"permuted", "shifted", "exchanged"}


def test_shares_equal_the_closed_form_of_a_balanced_design():
    """Two-way layout with one feature: mean squares by hand."""
    x, people, labels, sessions = planted(1, label=0.5, own=0.5, features=1, people=6, equal=True)
    found = shares(x, people, labels, sessions, seed=0, permutations=1)
    cube = x.reshape(6, 2, 12)
    cell, person, word, n = cube.mean(2), cube.mean((1, 2)), cube.mean((0, 2)), 12
    error = ((cube - cell[..., None]) ** 2).sum() / (12 * 11)
    both = n * ((cell - person[:, None] - word + cube.mean()) ** 2).sum() / 5
    people_ms, word_ms = 24 * person.var() * 6 / 5, 72 * word.var() * 2
    own, label = (both - error) / n, (word_ms - both) / 72
    subject = (people_ms - both) / 24
    truth = np.array([subject + own / 2, label / 2, own / 2, error])
    got = [found[k]["share"] for k in ("subject", "label", "label by subject", "rest")]
    assert got == pytest.approx(truth / truth.sum())


def test_a_private_label_is_no_shared_one_and_exchanging_classes_says_so():
    x, people, labels, sessions = planted(2, own=0.8)
    found = shares(x, people, labels, sessions, seed=0, permutations=49)
    assert found["label by subject"]["share"] > 0.15
    assert found["label by subject"]["nulls"]["permuted"]["p"] < 0.05
    assert abs(found["label"]["share"]) < 0.02
    assert found["label"]["nulls"]["exchanged"]["p"] > 0.05


def test_parts_that_a_design_cannot_tell_are_absent():
    x, people, labels, _ = planted(3)
    assert "session" not in shares(x, people, labels, labels, seed=0, permutations=1), "one class for each session"
    diagnosis = np.where(people < "p06", "ill", "well")
    found = shares(x, people, diagnosis, np.full(len(x), ""), seed=0, permutations=1)
    assert set(found) == {"subject", "label", "rest"}
    assert abs(found["label"]["share"]) < 0.1
    with pytest.raises(ValueError, match="two people or more, got 1"):
        shares(x[:9], people[:9], labels[:9], labels[:9], seed=0)
    with pytest.raises(ValueError, match="cut several windows"):
        shares(x, people, labels, np.arange(len(x)).astype(str), seed=0)
    with pytest.raises(ValueError, match="no variance"):
        shares(np.ones((len(x), 3)), people, labels, labels, seed=0)


@pytest.mark.parametrize(("label", "own", "shared"), [(0.7, 0.0, True), (0.0, 0.7, False)])
def test_consistency_tells_a_shared_direction_from_private_ones(label, own, shared):
    x, people, labels, _ = planted(4, label=label, own=own)
    found = consistency(x, people, labels, np.arange(len(x)) % 2 == 0, seed=0, permutations=49)
    assert found["own"] > 0.6
    assert (found["score"] > 0.7) is shared
    assert (found["nulls"]["exchanged"]["p"] < 0.05) is shared
    assert found["ci"][0] < found["score"] < found["ci"][1]
    assert len(found["per_subject"]) == 12


def test_consistency_is_at_chance_for_labels_that_mean_nothing():
    x, people, labels, _ = planted(5)
    found = consistency(x, people, labels, np.arange(len(x)) % 2 == 0, seed=0, permutations=99)
    assert abs(found["score"]) < 0.15
    assert found["nulls"]["permuted"]["p"] > 0.05
    only = (people == "p00") | (labels == "rest")
    with pytest.raises(ValueError, match="1 of 12 people have all of 2 classes"):
        consistency(x[only], people[only], labels[only], labels[only] == "rest", seed=0)


def test_exchanges_that_make_the_same_design_again_are_as_large():
    """Of eight exchanges of two classes in three people two keep the design, so no p is below a quarter, roughly."""
    for seed in range(8):
        x, people, labels, sessions = planted(seed, label=seed % 2, people=3, features=7)
        found = shares(x, people, labels, sessions, seed=seed)["label"]["nulls"]["exchanged"]["p"]
        same = consistency(x, people, labels, np.arange(len(x)) % 2 == 0, seed=seed)["nulls"]["exchanged"]["p"]
        assert min(found, same) > 0.15, seed


@pytest.mark.slow
def test_nulls_reject_as_often_as_they_should():
    """What people share is asked where they share nothing and each has a class difference of their own."""
    rejected = np.zeros((60, 3))
    for seed in range(60):
        x, people, labels, sessions = planted(1000 + seed, own=0.6, people=10, features=8)
        nulls = shares(x, people, labels, sessions, seed=seed, permutations=19)["label"]["nulls"]
        same = consistency(x, people, labels, np.arange(len(x)) % 2 == 0, seed=seed, permutations=19)["nulls"]
        each = nulls["exchanged"], same["exchanged"], nulls["permuted"]
        rejected[seed] = [null["p"] <= 0.05 for null in each]
    rate = rejected.mean(axis=0)
    assert (rate[:2] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)).all()
    assert rate[2] > 0.15, "permuted labels forget that each person's classes differ"
