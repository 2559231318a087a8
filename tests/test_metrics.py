"""Metrics against scikit-learn and closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from brainfm import metrics


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(5, 60))
def test_classification_equals_scikit_learn(seed, classes, trials):
    rng = np.random.default_rng(seed)
    true, predicted = rng.integers(classes, size=(2, trials))
    predicted = np.where(np.isin(predicted, true), predicted, true[0])
    labels = list(range(classes))
    assert metrics.accuracy(true, predicted) == pytest.approx(reference.accuracy_score(true, predicted))
    assert metrics.balanced_accuracy(true, predicted) == pytest.approx(
        reference.balanced_accuracy_score(true, predicted)
    )
    assert np.array_equal(
        metrics.confusion(true, predicted, labels), reference.confusion_matrix(true, predicted, labels=labels)
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(3, 60))
def test_regression_equals_scikit_learn(seed, columns, time):
    rng = np.random.default_rng(seed)
    true, predicted = rng.normal(size=(2, time, columns))
    predicted += true + 0.3
    assert metrics.r2(true, predicted) == pytest.approx(reference.r2_score(true, predicted))
    expected = reference.explained_variance_score(true, predicted)
    assert metrics.explained_variance(true, predicted) == pytest.approx(expected)
    r = np.mean([np.corrcoef(true[:, i], predicted[:, i])[0, 1] for i in range(columns)])
    assert metrics.pearson(true, predicted) == pytest.approx(r)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_auroc_equals_scikit_learn_with_ties(seed):
    rng = np.random.default_rng(seed)
    true = np.r_[0, 1, rng.integers(2, size=30)]
    score = rng.integers(5, size=32)
    assert metrics.auroc(true, score) == pytest.approx(reference.roc_auc_score(true, score))


def test_explained_variance_forgives_bias_and_r2_does_not():
    true = np.arange(10.0)
    assert metrics.explained_variance(true, true + 5) == 1
    assert metrics.r2(true, true + 5) < 0
    assert metrics.pearson(true, np.ones(10)) == 0
    assert metrics.r2(np.ones(4), np.ones(4)) == 1
    assert metrics.r2(np.ones(4), np.zeros(4)) == 0


def test_retrieval_breaks_no_ties_in_our_favour():
    constant = np.zeros((4, 4))
    assert metrics.top_k_retrieval(constant, np.arange(4), 1) == 0
    assert np.array_equal(metrics.retrieval_ranks(constant, np.arange(4)), np.full(4, 2.5))
    similarity = np.array([[0.9, 0.1, 0.5], [0.9, 0.2, 0.1]])
    assert np.array_equal(metrics.retrieval_ranks(similarity, np.array([0, 1])), [1, 2])
    assert metrics.top_k_retrieval(similarity, np.array([0, 1]), 1) == 0.5
    assert metrics.top_k_retrieval(similarity, np.array([0, 1]), 2) == 1


def test_random_retrieval_is_at_chance():
    rng = np.random.default_rng(0)
    hits = metrics.top_k_retrieval(rng.normal(size=(4000, 10)), rng.integers(10, size=4000), 2)
    assert hits == pytest.approx(0.2, abs=0.02)


def test_errors_say_what_was_got():
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        metrics.accuracy(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="both classes"):
        metrics.auroc(np.ones(3), np.arange(3))
    with pytest.raises(ValueError, match="not among"):
        metrics.confusion(np.array(["a"]), np.array(["b"]), ["a"])
