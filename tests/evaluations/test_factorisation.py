"""Non-negative components: planted ones come back with missing entries, the error falls, halves choose the rank."""

from __future__ import annotations

import numpy as np
import pytest

from brainfm.evaluations import factorisation
from brainfm.evaluations.factorisation import Components


def planted(noise: float, missing: float, seed: int = 0, shape: tuple[int, ...] = (30, 4, 190)) -> tuple:
    """A tensor of three components with noise and missing entries, and the components."""
    rng = np.random.default_rng(seed)
    factors = [rng.gamma(1.0, 1.0, (n, 3)) * (rng.random((n, 3)) < 0.5) for n in shape]
    factors[1] += 0.1
    whole = np.einsum("ir,jr,kr->ijk", *factors)
    tensor = np.maximum(whole + noise * whole.std() * rng.standard_normal(shape), 0)
    tensor[rng.random(shape) < missing] = np.nan
    tensor[:, 0, :30] = np.nan  # neurons that one animal has not
    norms = [np.linalg.norm(f, axis=0) for f in factors]
    truth = Components(
        np.prod(norms, axis=0), tuple(f / n for f, n in zip(factors, norms, strict=True)), np.ones(3), 1.0
    )
    return tensor, truth, whole


@pytest.mark.parametrize("seed", range(3))
def test_planted_components_come_back(seed: int) -> None:
    tensor, truth, whole = planted(noise=0.3, missing=0.2, seed=seed)
    found = factorisation.factorise(tensor, 3, seed=seed)
    assert factorisation.match(found, truth) > 0.95
    assert all((f >= 0).all() for f in found.factors)
    there = ~np.isnan(tensor)
    for r in range(3):
        one = found.weights[r] * np.einsum("i,j,k->ijk", *(f[:, r] for f in found.factors))
        assert found.sizes[r] == pytest.approx(np.linalg.norm(one[there]))
    assert np.all(np.diff(found.sizes) <= 0)
    # What was missing is told as well as what was there, which a zero in its place would not.
    gone = np.isnan(tensor)
    gone[:, 0, :30] = False
    error = ((found.tensor() - whole)[gone] ** 2).sum() / (whole[gone] ** 2).sum()
    assert error < 0.02
    zeros = factorisation.factorise(np.nan_to_num(tensor), 3, seed=seed)
    assert ((zeros.tensor() - whole)[gone] ** 2).sum() / (whole[gone] ** 2).sum() > 5 * error


def test_explained_is_the_error_over_what_is_there_and_grows() -> None:
    tensor, _, _ = planted(noise=0.2, missing=0.3)
    there = ~np.isnan(tensor)
    shares = []
    for iterations in (1, 5, 50):
        found = factorisation.factorise(tensor, 3, iterations=iterations, tolerance=0.0, starts=1)
        slow = 1 - ((found.tensor() - tensor)[there] ** 2).sum() / (tensor[there] ** 2).sum()
        assert found.explained == pytest.approx(slow, abs=1e-9)
        shares.append(found.explained)
    assert shares == sorted(shares)
    for f in found.factors:
        np.testing.assert_allclose(np.linalg.norm(f, axis=0), 1.0)


def test_a_row_without_data_is_zero_and_an_empty_tensor_explains_nothing() -> None:
    tensor, _, _ = planted(noise=0.1, missing=0.0, shape=(12, 3, 40))
    tensor[4] = np.nan
    found = factorisation.factorise(tensor, 3)
    assert not found.factors[0][4].any()
    assert np.isfinite(found.tensor()).all()
    nothing = factorisation.factorise(np.zeros((4, 2, 6)), 2)
    assert nothing.explained == 0
    assert not nothing.tensor().any()


def test_halves_choose_the_planted_rank() -> None:
    tensor, _, _ = planted(noise=0.1, missing=0.1, shape=(20, 3, 100))
    rank, agreement = factorisation.choose_rank(tensor, largest=4)
    assert rank == 3
    assert len(agreement) == 4
    assert agreement[2] > 0.9 > max(agreement[3:])


def test_match_ignores_order_and_counts_a_component_without_a_partner() -> None:
    _, truth, _ = planted(noise=0.0, missing=0.0)
    turned = Components(truth.weights[::-1], tuple(f[:, ::-1] for f in truth.factors), truth.sizes, 1.0)
    assert factorisation.match(truth, turned) == pytest.approx(1.0)
    fewer = Components(truth.weights[:2], tuple(f[:, :2] for f in truth.factors), truth.sizes, 1.0)
    assert factorisation.match(truth, fewer) == pytest.approx(2 / 3)
    number, alike = factorisation.paired(truth, fewer)
    assert number.tolist() == [0, 1, -1]
    assert alike[2] == 0


def test_what_cannot_be_factorised_is_told() -> None:
    fine = np.ones((4, 2, 3))
    for tensor, rank in ((fine[0], 1), (-fine, 1), (fine, 0), (fine * np.nan, 1), (fine * np.inf, 1)):
        with pytest.raises(ValueError, match="expected three modes"):
            factorisation.factorise(tensor, rank)
    with pytest.raises(ValueError, match="two or more can be split"):
        factorisation.choose_rank(fine[:1])
