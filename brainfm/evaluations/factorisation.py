"""Non-negative factorisation of a tensor with missing entries: what comes and goes together.

A tensor x_ijk is taken as the sum over components r of w_r a_ir b_jr c_kr, all of them zero or more (the CP model:
Carroll & Chang 1970; Harshman 1970). The squared error over the entries that are there falls in turns: one mode's
factors are solved by coordinate descent while the others stay (HALS: Cichocki & Phan 2009, "Fast local algorithms for
large scale nonnegative matrix and tensor factorizations"). Each row of a mode has normal equations of its own, since
other entries are missing in other rows: with m the mask as 0 and 1, and in `(row, rest)` form,
    F = (m x) K and G = m K2,   K `(rest, rank)` the products of the other factors, K2 those of their pairs,
so the mask costs a matrix product and no loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

#: Coordinate sweeps for each solution of a mode.
SWEEPS = 3
TINY = 1e-12


@dataclass(frozen=True)
class Components:
    """A factorisation, the largest component first.

    Attributes:
        weights: `(rank,)` what the products of the factors are to be multiplied with.
        factors: one `(row, rank)` for each mode, columns of unit norm.
        sizes: `(rank,)` norm of each component over the entries that are there; a component that lies where entries are
            missing may have a large weight that nothing tells.
        explained: 1 minus the squared error over the squared entries, both over entries that are there.
    """

    weights: np.ndarray
    factors: tuple[np.ndarray, ...]
    sizes: np.ndarray
    explained: float

    @property
    def rank(self) -> int:
        return len(self.weights)

    def tensor(self) -> np.ndarray:
        """The sum of all components, `(row of mode 1, of mode 2, of mode 3)`."""
        return np.einsum("r,ir,jr,kr->ijk", self.weights, *self.factors, optimize=True)


def factorise(
    tensor: np.ndarray, rank: int, *, seed: int = 0, starts: int = 3, iterations: int = 300, tolerance: float = 1e-7
) -> Components:
    """The best of several starts.

    Args:
        tensor: three modes, zero or more, NaN where missing.
        rank: number of components.
        seed: of the random starts. starts: how many.
        iterations: at most so many rounds over the modes; fewer where `explained` gains less than `tolerance`.

    Raises:
        ValueError: for another number of modes, a negative or infinite entry, nothing there, or a rank below 1.
    """
    there = ~np.isnan(tensor)
    filled = np.where(there, tensor, 0.0)
    if tensor.ndim != 3 or rank < 1 or not there.any() or not np.isfinite(filled).all() or filled.min() < 0:
        raise ValueError(
            f"a tensor {tensor.shape} with {int(there.sum())} entries, the least {filled.min(initial=0.0):g}, and rank "
            f"{rank}; expected three modes, finite entries of zero or more, NaN where missing, and a rank of 1 or more"
        )
    rng = np.random.default_rng(seed)
    found = [_one_start(filled, there.astype(float), rank, rng, iterations, tolerance) for _ in range(max(1, starts))]
    return max(found, key=lambda one: one.explained)


def _one_start(
    filled: np.ndarray, mask: np.ndarray, rank: int, rng: np.random.Generator, iterations: int, tolerance: float
) -> Components:
    total = float((filled**2).sum())
    if total == 0:
        return Components(np.zeros(rank), tuple(np.zeros((n, rank)) for n in filled.shape), np.zeros(rank), 0.0)
    size = (filled.sum() / mask.sum() / rank) ** (1 / 3)
    factors = [size * rng.uniform(0.5, 1.5, (n, rank)) for n in filled.shape]
    unfolded = [(_unfold(filled, mode), _unfold(mask, mode)) for mode in range(3)]
    upper = np.triu_indices(rank)
    place = np.zeros((rank, rank), int)
    place[upper] = np.arange(len(upper[0]))
    place = np.maximum(place, place.T)
    before, explained = -np.inf, 0.0
    for _ in range(iterations):
        for mode in range(3):
            one, other = (factors[m] for m in range(3) if m != mode)
            product = (one[:, None] * other[None]).reshape(-1, rank)
            data, there = unfolded[mode]
            right = data @ product
            normal = (there @ (product[:, upper[0]] * product[:, upper[1]]))[:, place]
            factors[mode] = _descend(factors[mode], right, normal)
        # Right and normal are of the last mode, so the error costs no pass over the tensor.
        last = factors[2]
        error = total - 2 * (right * last).sum() + np.einsum("ir,irs,is->", last, normal, last, optimize=True)
        explained = float(1 - error / total)
        factors = _balanced(factors)
        if explained - before < tolerance:
            break
        before = explained
    norms = [np.linalg.norm(f, axis=0) for f in factors]
    weights = np.prod(norms, axis=0)
    square = [f**2 for f in factors]
    sizes = np.sqrt(((unfolded[2][1] @ (square[0][:, None] * square[1][None]).reshape(-1, rank)) * square[2]).sum(0))
    order = np.argsort(-sizes, kind="stable")
    scaled = tuple((f / np.maximum(n, TINY))[:, order] for f, n in zip(factors, norms, strict=True))
    return Components(weights[order], scaled, sizes[order], explained)


def _descend(factor: np.ndarray, right: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Coordinate descent of `(row, rank)` in `normal @ row = right` with rows of zero or more."""
    factor = factor.copy()
    for _ in range(SWEEPS):
        for r in range(factor.shape[1]):
            own = normal[:, r, r]
            slope = right[:, r] - (normal[:, r] * factor).sum(1)
            # A row of which nothing is there has no equation and becomes 0.
            factor[:, r] = np.where(own > TINY, np.maximum(factor[:, r] + slope / np.maximum(own, TINY), 0.0), 0.0)
    return factor


def _balanced(factors: list[np.ndarray]) -> list[np.ndarray]:
    """The same components with their size shared evenly by the modes."""
    norms = np.stack([np.linalg.norm(f, axis=0) for f in factors])
    even = np.prod(norms, axis=0) ** (1 / 3)
    return [f * (even / np.maximum(n, TINY)) for f, n in zip(factors, norms, strict=True)]


def _unfold(x: np.ndarray, mode: int) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, mode, 0).reshape(x.shape[mode], -1))


def paired(one: Components, other: Components, modes: Sequence[int] = (0, 1, 2)) -> tuple[np.ndarray, np.ndarray]:
    """Which component of `other` is like each of `one`: their numbers, -1 for none, and the likeness of each.

    The likeness is the product over `modes` of the cosines of the factors; pairs are chosen for the largest sum.
    """
    alike = np.ones((one.rank, other.rank))
    for mode in modes:
        alike *= one.factors[mode].T @ other.factors[mode]
    rows, columns = linear_sum_assignment(-alike)
    number, likeness = np.full(one.rank, -1), np.zeros(one.rank)
    number[rows], likeness[rows] = columns, alike[rows, columns]
    return number, likeness


def match(one: Components, other: Components, modes: Sequence[int] = (0, 1, 2)) -> float:
    """Factor match score, 0 to 1: mean likeness of paired components; a component without a partner counts 0."""
    return float(paired(one, other, modes)[1].sum() / max(one.rank, other.rank))


def split_half(tensor: np.ndarray, rank: int, *, seed: int = 0, starts: int = 3) -> float:
    """How like the least reproducible component is to its partner, between odd and even rows of the first mode.

    Likeness is over the second and third mode. It is the least and not the mean, because one component too many hides
    in a mean.
    """
    odd, even = (factorise(tensor[k::2], rank, seed=seed, starts=starts) for k in (0, 1))
    return float(paired(odd, even, modes=(1, 2))[1].min())


def choose_rank(
    tensor: np.ndarray, *, largest: int = 6, at_least: float = 0.9, seed: int = 0, starts: int = 3
) -> tuple[int, list[float]]:
    """The largest rank whose halves agree.

    Args:
        tensor: as in `factorise`; neighbours in the first mode must not share data.
        largest: ranks 1 to this are tried; fewer where the halves have fewer rows.
        at_least: least likeness between halves that a rank needs; where none has it, the rank is 1.

    Returns:
        The rank, and what `split_half` gave for each rank tried.

    Raises:
        ValueError: for fewer than two rows of the first mode.
    """
    if len(tensor) < 2:
        raise ValueError(f"{len(tensor)} rows in the first mode; two or more can be split: give a rank or smaller bins")
    agree = [split_half(tensor, r, seed=seed, starts=starts) for r in range(1, min(largest, len(tensor) // 2) + 1)]
    return max([r for r, m in enumerate(agree, 1) if m >= at_least], default=1), agree
