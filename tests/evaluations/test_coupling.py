"""Baselines of connectivity: against slow loops, a closed form, scikit-learn and numpy."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import PoissonRegressor

from brainfm.evaluations import coupling


def driven(time: int = 2000, neurons: int = 5, seed: int = 0) -> np.ndarray:
    """Counts of which neuron 1 follows neuron 0 two bins later."""
    counts = np.random.default_rng(seed).poisson(0.2, (time, neurons)).astype(float)
    counts[2:, 1] += counts[:-2, 0]
    return counts


def test_history_stays_inside_a_stretch() -> None:
    parts = [np.arange(5.0)[:, None], np.arange(10.0, 14.0)[:, None], np.zeros((2, 1))]
    now, before = coupling.history(parts, 2)
    assert now[:, 0].tolist() == [2, 3, 4, 12, 13]
    assert before[:, :, 0].tolist() == [[1, 2, 3, 11, 12], [0, 1, 2, 10, 11]]
    for stretches, lags in ((parts, 0), ([np.zeros((3, 2))], 3), ([], 1)):
        with pytest.raises(ValueError, match="expected at least one lag"):
            coupling.history(stretches, lags)


def test_correlation_is_that_of_numpy_and_has_no_direction() -> None:
    counts = np.column_stack([driven(), np.zeros(2000)])
    found = coupling.correlation([counts[:700], counts[700:]])
    np.testing.assert_allclose(found[:5, :5], np.corrcoef(counts[:, :5].T), atol=1e-12)
    assert not found[5].any()
    assert np.array_equal(found, found.T)


def test_lagged_correlation_sees_who_leads() -> None:
    counts = driven(4000, 4)
    found = coupling.lagged_correlation([np.column_stack([counts, np.zeros(4000)])])
    assert found.shape == (5, 5)
    assert found[1, 0] == found[~np.eye(5, dtype=bool)].max()
    assert found[1, 0] > 5 * abs(found[0, 1])
    rows = [np.corrcoef(counts[3:, 1], counts[3 - k : -k, 0])[0, 1] for k in (1, 2, 3)]
    assert found[1, 0] == pytest.approx(np.mean(rows), rel=1e-9)


def slow_entropy(target: np.ndarray, source: np.ndarray, lag: int, lags: int) -> float:
    """Transfer entropy by counting one row after the other."""
    joint: dict[tuple[int, int, int], int] = {}
    for t in range(lags, len(target)):
        state = (int(target[t] > 0), int(target[t - 1] > 0), int(source[t - lag] > 0))
        joint[state] = joint.get(state, 0) + 1
    rows, bits = sum(joint.values()), 0.0
    for (a, b, c), n in joint.items():
        with_source = sum(v for k, v in joint.items() if k[1:] == (b, c))
        without = sum(v for k, v in joint.items() if k[:2] == (a, b))
        last = sum(v for k, v in joint.items() if k[1] == b)
        bits += n / rows * np.log2((n / with_source) / (without / last))
    return bits


def test_transfer_entropy_equals_a_slow_loop() -> None:
    counts = driven(400, 4)
    found = coupling.transfer_entropy([counts], 3)
    for i in range(4):
        for j in range(4):
            slow = 0.0 if i == j else max(slow_entropy(counts[:, i], counts[:, j], k, 3) for k in (1, 2, 3))
            assert found[i, j] == pytest.approx(slow, abs=1e-12)


def test_transfer_entropy_of_a_noisy_copy_is_its_closed_form() -> None:
    """A copy of a fair coin, one bin later and wrong one time in ten, gets 1 - h(0.1) bits from it."""
    rng = np.random.default_rng(0)
    source = rng.random(200_000) < 0.5
    target = np.roll(source, 1) ^ (rng.random(200_000) < 0.1)
    found = coupling.transfer_entropy([np.column_stack([source, target])], 2)
    assert found[1, 0] == pytest.approx(1 + 0.1 * np.log2(0.1) + 0.9 * np.log2(0.9), abs=0.005)
    assert found[0, 1] < 1e-4
    assert not found.diagonal().any()


def test_poisson_weights_are_those_of_one_neuron_after_the_other() -> None:
    counts = np.column_stack([driven(), np.zeros(2000)])
    weights, bias = coupling.poisson_weights([counts], 3, penalty=10.0)
    now, before = coupling.history([counts], 3)
    for i in range(5):
        one = PoissonRegressor(alpha=10 / len(now), max_iter=1000, tol=1e-9)
        one.fit(np.concatenate(list(before), axis=1), now[:, i])
        np.testing.assert_allclose(weights[:, i], one.coef_.reshape(3, 6), atol=1e-3)
        assert bias[i] == pytest.approx(one.intercept_, abs=1e-3)
    assert not weights[:, 5].any()
    assert bias[5] == -np.inf


def test_glm_coupling_tells_a_driver_from_a_common_cause() -> None:
    """Neuron 0 drives 1 after one bin and 2 after two: lagged correlation takes 1 for a driver of 2, the model not."""
    rng = np.random.default_rng(0)
    counts = (rng.random((8000, 3)) < 0.1).astype(float)
    counts[1:, 1] = np.maximum(counts[1:, 1], counts[:-1, 0])
    counts[2:, 2] = np.maximum(counts[2:, 2], counts[:-2, 0])
    by_model, by_lag = coupling.glm_coupling([counts], 2), coupling.lagged_correlation([counts], 2)
    assert by_model[2, 0] > 5 * abs(by_model[2, 1])
    assert by_lag[2, 1] > 0.3 * by_lag[2, 0]
    assert by_model[1, 0] > 5 * abs(by_model[0, 1])
