"""Metrics against scikit-learn and closed forms."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter
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


def chances_of(rng: np.random.Generator, trials: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers, all of them present, and made-up probabilities with ties."""
    true = np.r_[np.arange(classes), rng.integers(classes, size=trials)]
    raw = rng.integers(1, 6, size=(len(true), classes)).astype(float)
    return true, raw / raw.sum(axis=1, keepdims=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 40))
def test_agreement_equals_scikit_learn(seed, classes, trials):
    rng = np.random.default_rng(seed)
    true, predicted = rng.integers(classes, size=(2, trials))
    labels = sorted({*true.tolist(), *predicted.tolist()})
    expected = reference.f1_score(true, predicted, average="macro", labels=labels, zero_division=0)
    assert metrics.macro_f1(true, predicted) == pytest.approx(expected)
    if len(labels) > 1:
        assert metrics.kappa(true, predicted) == pytest.approx(reference.cohen_kappa_score(true, predicted))
    else:
        assert metrics.kappa(true, predicted) == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 40))
def test_scores_of_probabilities_equal_scikit_learn(seed, classes, trials):
    true, chances = chances_of(np.random.default_rng(seed), trials, classes)
    labels = list(range(classes))
    assert metrics.log_loss(true, chances) == pytest.approx(reference.log_loss(true, chances, labels=labels))
    expected = reference.brier_score_loss(true, chances, labels=labels, scale_by_half=False)
    assert metrics.brier(true, chances) == pytest.approx(expected)
    if classes == 2:
        assert metrics.multiclass_auroc(true, chances) == pytest.approx(metrics.auroc(true, chances[:, 1]))
    else:
        expected = reference.roc_auc_score(true, chances, multi_class="ovr", labels=labels)
        assert metrics.multiclass_auroc(true, chances) == pytest.approx(expected)


def slow_ece(true: np.ndarray, chances: np.ndarray, bins: int) -> float:
    """Equation 3 of Guo et al. 2017, bin by bin."""
    confidence, hit, total = chances.max(axis=1), chances.argmax(axis=1) == true, 0.0
    edges = np.linspace(0, 1, bins + 1)
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.sum() / len(true) * abs(hit[inside].mean() - confidence[inside].mean())
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 20))
def test_calibration_error_is_that_of_the_paper(seed, bins):
    true, chances = chances_of(np.random.default_rng(seed), 60, 3)
    assert metrics.ece(true, chances, bins) == pytest.approx(slow_ece(true, chances, bins))


def test_calibration_by_hand():
    sure = np.array([[1.0, 0.0]] * 4)
    assert metrics.ece(np.array([0, 0, 0, 1]), sure) == pytest.approx(0.25)
    assert metrics.brier(np.array([0, 0, 0, 1]), sure) == pytest.approx(0.5)
    assert metrics.ece(np.zeros(4, int), sure) == 0
    assert metrics.log_loss(np.zeros(4, int), np.full((4, 4), 0.25)) == pytest.approx(np.log(4))
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 1, 40_000)
    true = (rng.uniform(size=40_000) < p).astype(int)
    assert metrics.ece(true, np.column_stack([1 - p, p])) < 0.015
    over = np.where(p > 0.5, 0.99, 0.01)
    assert metrics.ece(true, np.column_stack([1 - over, over])) == pytest.approx(0.24, abs=0.01)


def test_chance_is_zero_and_no_error_is_one():
    assert metrics.chance_corrected(0.25, 0.25) == 0
    assert metrics.chance_corrected(1.0, 0.25) == 1
    assert metrics.chance_corrected(0.625, 0.25) == 0.5
    assert metrics.chance_corrected(0.0, 0.5) == -1
    balanced = np.repeat(np.arange(4), 5)
    always = np.zeros(20, int)
    assert metrics.kappa(balanced, always) == pytest.approx(metrics.chance_corrected(0.25, 0.25))
    with pytest.raises(ValueError, match="below 1"):
        metrics.chance_corrected(1.0, 1.0)


@pytest.mark.parametrize(
    ("true", "chances", "message"),
    [
        ([0, 1], [[0.5, 0.5]], r"\(2,\).*\(1, 2\)"),
        ([0, 2], [[0.5, 0.5]] * 2, "class numbers from 0 to 1"),
        ([0.0, 1.0], [[0.5, 0.5]] * 2, "class numbers"),
        ([0, 1], [[2.0, -1.0]] * 2, "softmax"),
        ([0, 1], [[float("nan"), 1.0]] * 2, "softmax"),
        ([0, 1], [[0.9, 0.9]] * 2, "softmax"),
    ],
)
def test_probabilities_that_are_none(true, chances, message):
    for metric in (metrics.log_loss, metrics.brier, metrics.ece, metrics.multiclass_auroc):
        with pytest.raises(ValueError, match=message):
            metric(np.array(true), np.array(chances))


def test_two_way_identification_is_that_of_a_loop():
    rng = np.random.default_rng(1)
    true = rng.normal(size=(7, 4, 3))
    predicted = true + 1.5 * rng.normal(size=true.shape)
    r = [[np.corrcoef(t.ravel(), p.ravel())[0, 1] for p in predicted] for t in true]
    wins = [r[i][j] < r[j][j] for j in range(7) for i in range(7) if i != j]
    assert metrics.two_way_identification(true, predicted) == pytest.approx(np.mean(wins))
    assert metrics.two_way_identification(true, true) == 1
    assert metrics.two_way_identification(true, np.ones_like(true)) == 0  # ties fail
    noise = rng.normal(size=(300, 20))
    assert metrics.two_way_identification(noise, rng.normal(size=(300, 20))) == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match="two or more"):
        metrics.two_way_identification(true[:1], predicted[:1])


def test_images():
    rng = np.random.default_rng(2)
    true = rng.uniform(size=(3, 16, 18))
    noisy = np.clip(true + 0.2 * rng.normal(size=true.shape), 0, 1)
    expected = np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(true, noisy, strict=True)])
    assert metrics.pixcorr(true, noisy) == pytest.approx(expected)
    assert metrics.pixcorr(true, np.ones_like(true)) == 0
    assert metrics.ssim(true, true) == pytest.approx(1)
    assert metrics.ssim(np.full((1, 12, 12), 0.2), np.full((1, 12, 12), 0.6)) == pytest.approx(
        (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    )
    assert metrics.ssim(true, 1 - true) < 0 < metrics.ssim(true, noisy) < 1
    with pytest.raises(ValueError, match="11 or more"):
        metrics.ssim(np.zeros((1, 8, 8)), np.zeros((1, 8, 8)))


@pytest.mark.reference
def test_ssim_equals_scikit_image():
    compared = pytest.importorskip("skimage.metrics", reason="scikit-image is no dependency: make reference")
    rng = np.random.default_rng(3)
    a, b = rng.uniform(size=(2, 24, 30))
    expected = compared.structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
    )
    assert metrics.ssim(a[None], b[None]) == pytest.approx(expected)


def test_noise_ceiling_finds_the_simulated_share():
    rng = np.random.default_rng(4)
    signal = rng.normal(0, 1, (4000, 1, 2))
    repeats = signal + rng.normal(0, [1.0, 2.0], (4000, 3, 2))
    assert metrics.noise_ceiling(repeats) == pytest.approx([1 / 2, 1 / 5], abs=0.03)
    assert metrics.noise_ceiling(repeats, 3) == pytest.approx([3 / 4, 3 / 7], abs=0.04)
    best = np.mean([metrics.pearson(signal[:, 0, 0], repeats[:, i, 0]) for i in range(3)])
    assert best == pytest.approx(np.sqrt(metrics.noise_ceiling(repeats)[0]), abs=0.02)
    assert metrics.noise_ceiling(np.ones((3, 2))) == 0
    with pytest.raises(ValueError, match="two or more of each"):
        metrics.noise_ceiling(np.ones((3, 1)))


def test_reliability_of_halves_is_that_of_the_whole():
    rng = np.random.default_rng(5)
    signal = rng.normal(size=20_000)
    halves = signal + rng.normal(size=(4, 20_000))
    whole = metrics.pearson(halves[:2].mean(axis=0), halves[2:].mean(axis=0))
    assert metrics.split_half_reliability(halves[0], halves[1]) == pytest.approx(whole, abs=0.02)
    assert metrics.mean_correlation([0.5, 0.5]) == pytest.approx(0.5)
    assert metrics.mean_correlation([0.0, 0.8]) == pytest.approx(np.tanh(np.arctanh(0.8) / 2))
    assert metrics.mean_correlation([1.0, -1.0]) == 0


def slow_series(rng, n=400, a=0.8):
    """`(time,)` noise whose neighbours correlate by `a`, after it has settled."""
    return lfilter([1], [1, -a], rng.normal(size=n + 50))[50:]


def test_slow_series_are_worth_fewer_samples():
    rng = np.random.default_rng(7)
    drawn = [(slow_series(rng), slow_series(rng)) for _ in range(300)]
    found = np.mean([metrics.effective_samples(x, y, lags=30) for x, y in drawn])
    assert found == pytest.approx(400 * (1 - 0.64) / (1 + 0.64), rel=0.2)
    spread = np.std([np.corrcoef(x, y)[0, 1] for x, y in drawn])
    assert spread == pytest.approx(1 / np.sqrt(found), rel=0.15)
    white = rng.normal(size=(2, 400))
    assert metrics.effective_samples(*white) == pytest.approx(400, rel=0.3)
    assert metrics.effective_samples(np.ones(50), np.arange(50.0)) == 50
    with pytest.raises(ValueError, match="as many in both"):
        metrics.effective_samples(np.ones(9), np.ones(8))
