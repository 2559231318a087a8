"""Rankings over data sets, against the paper's own example, scipy and simulation."""

import numpy as np
import pytest
from scipy import stats

from brainfm import ranking

#: Table 6 of Demsar 2006: AUC of four variants of C4.5 on fourteen data sets. Voting holds two rounded values of 0.975,
#: which the paper ranks apart.
C45 = np.array(
    [
        [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975], [0.957, 0.978, 0.946, 0.970],
    ]
)  # fmt: skip


def test_the_papers_example():
    assert ranking.ranked(C45).mean(axis=0) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    f, p = ranking.friedman(C45)
    assert f == pytest.approx(3.69, abs=0.01)
    assert p < 0.05
    assert ranking.critical_difference(4, 14) == pytest.approx(1.25, abs=0.01)
    assert ranking.critical_difference(4, 14, 0.1) == pytest.approx(1.12, abs=0.01)


def test_friedman_is_that_of_scipy_without_ties():
    scores = np.random.default_rng(0).normal(size=(9, 5))
    chi2 = stats.friedmanchisquare(*scores.T).statistic
    assert ranking.friedman(scores)[0] == pytest.approx(8 * chi2 / (9 * 4 - chi2))


@pytest.mark.parametrize(
    ("datasets", "methods", "least"), [(2, 2, 1 / 2), (2, 3, 1 / 6), (5, 2, 1 / 16), (3, 4, 1 / 576)]
)
def test_p_is_that_of_chance_where_all_data_sets_rank_alike(datasets, methods, least):
    alike = np.tile(np.arange(methods), (datasets, 1))
    assert ranking.friedman(alike) == pytest.approx((np.inf, least))


def test_p_is_never_below_the_smallest_there_is():
    scores = np.tile(np.arange(5), (2, 1))
    scores[1, :2] = 1, 0  # of the F distribution alone p is 0.007
    assert ranking.friedman(scores)[1] == pytest.approx(1 / 120)


def test_five_percent_under_the_null():
    rng = np.random.default_rng(1)
    p = [ranking.friedman(rng.normal(size=(12, 6)))[1] for _ in range(800)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.02)
    cd = ranking.critical_difference(4, 12)
    spread = [np.ptp(ranking.ranked(rng.normal(size=(12, 4))).mean(axis=0)) for _ in range(800)]
    assert np.mean(np.array(spread) >= cd) == pytest.approx(0.05, abs=0.02)


def test_the_largest_whole_table_is_ranked():
    scores = {
        "t1": {"a": 0.9, "b": 0.8, "c": 0.7, "odd": 0.1},
        "t2": {"a": 0.6, "b": 0.8, "c": 0.5},
        "t3": {"b": 0.6, "c": 0.5, "a": 0.7},
        "t4": {"odd": 1.0},
    }
    found = ranking.ranking(scores)
    assert found["datasets"] == ["t1", "t2", "t3"]
    assert found["ranks"] == pytest.approx({"a": 4 / 3, "b": 5 / 3, "c": 3})
    assert list(found["ranks"]) == ["a", "b", "c"]
    assert found["left_out"] == ["odd"]
    assert found["alike"] == [["a", "b", "c"]]
    assert ranking.ranking({"t1": {"a": 0.9, "b": 0.8}}) is None
    assert ranking.ranking({"t1": {"a": 0.9}, "t2": {"a": 0.8}}) is None
    assert ranking.ranking({}) is None


def test_groups_that_are_not_told_apart_are_the_largest():
    ranks = {"a": 1.0, "b": 1.5, "c": 2.2, "d": 4.0}
    assert ranking.alike(ranks, 1.0) == [["a", "b"], ["b", "c"]]
    assert ranking.alike(ranks, 1.3) == [["a", "b", "c"]]
    assert ranking.alike(ranks, 0.1) == []


def test_scores_that_cannot_be_ranked():
    for bad in (np.ones((1, 3)), np.ones(3), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="two or more data sets"):
            ranking.ranked(bad)
