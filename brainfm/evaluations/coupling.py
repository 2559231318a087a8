"""Who leads whom, from spike counts alone: the baselines that attention is held against.

All take stretches of counts `(time, neuron)` in equal bins and give a matrix `(target, source)`. A lag never reaches
across the end of a stretch. Transfer entropy: Schreiber 2000, "Measuring information transfer", Physical Review Letters
85:461-464. Coupled Poisson model: Truccolo et al. 2005, "A point process framework for relating neural spiking activity
to spiking history, neural ensemble, and extrinsic covariate effects", Journal of Neurophysiology 93:1074-1089.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import xlogy

#: Largest log rate that the Poisson model may reach on its way, so that a step too far stays finite.
LARGEST = 20.0


def history(stretches: Sequence[np.ndarray], lags: int) -> tuple[np.ndarray, np.ndarray]:
    """Each bin with the bins before it.

    Args:
        stretches: `(time, neuron)` counts; those that are not longer than `lags` give nothing.
        lags: how many bins back.

    Returns:
        `(row, neuron)` counts, and `(lag, row, neuron)` those 1 to `lags` bins earlier.

    Raises:
        ValueError: for no lag, or where no stretch is longer than the lags.
    """
    long = [x for x in stretches if len(x) > lags]
    if lags < 1 or not long:
        longest = max(map(len, stretches), default=0)
        raise ValueError(
            f"{lags} lags, and the longest of {len(stretches)} stretches has {longest} bins; expected at least one lag "
            "and a stretch that is longer: give longer windows or a smaller bin_s"
        )
    now = np.concatenate([x[lags:] for x in long])
    before = np.stack([np.concatenate([x[lags - k : len(x) - k] for x in long]) for k in range(1, lags + 1)])
    return now.astype(float), before.astype(float)


def correlation(stretches: Sequence[np.ndarray]) -> np.ndarray:
    """Correlation of counts in the same bin; it has no direction. 0 for silent neurons."""
    scaled = _standardised(np.concatenate(list(stretches)).astype(float))
    return scaled.T @ scaled / len(scaled)


def lagged_correlation(stretches: Sequence[np.ndarray], lags: int = 3) -> np.ndarray:
    """Correlation of each neuron with every other one some bins earlier, mean over lags 1 to `lags`.

    Returns:
        `(target, source)`; 0 for silent neurons.
    """
    now, before = history(stretches, lags)
    target = _standardised(now)
    return np.mean([target.T @ _standardised(x) for x in before], axis=0) / len(now)


def transfer_entropy(stretches: Sequence[np.ndarray], lags: int = 3) -> np.ndarray:
    """Bits that a source's bin tells of a target's, given the target's last bin; the largest over lags 1 to `lags`.

    Bins are taken as spike or none. T = sum p(a, b, c) log2 p(a | b, c) / p(a | b), where a is the target now, b the
    target one bin earlier and c the source k bins earlier. All joint counts of a lag are four matrix products.

    Returns:
        `(target, source)` bits per bin, not corrected for their bias of about 1 / (rows ln 2), which all pairs share;
        the diagonal is 0.
    """
    now, before = history([x > 0 for x in stretches], lags)
    own = before[0]
    rows = len(now)
    states = {(a, b): (now == a) * (own == b) for a in (0, 1) for b in (0, 1)}
    best = np.full((now.shape[1], now.shape[1]), -np.inf)
    for source in before:
        joint = np.empty((2, 2, 2, *best.shape))  # a, b, c, target, source
        for (a, b), state in states.items():
            joint[a, b, 1] = state.T.astype(float) @ source
            joint[a, b, 0] = state.sum(0)[:, None] - joint[a, b, 1]
        joint /= rows
        with_source, without, last = joint.sum(0), joint.sum(2), joint.sum((0, 2))
        bits = (
            xlogy(joint, joint).sum((0, 1, 2)) - xlogy(with_source, with_source).sum((0, 1))
            - xlogy(without, without).sum((0, 1)) + xlogy(last, last).sum(0)
        ) / np.log(2)  # fmt: skip
        best = np.maximum(best, bits)
    np.fill_diagonal(best, 0.0)
    return np.maximum(best, 0.0)


def poisson_weights(
    stretches: Sequence[np.ndarray], lags: int = 3, penalty: float = 10.0, iterations: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """Poisson models of every neuron at once, each from the history of all neurons, its own included.

    log rate of i = bias_i + sum over lags k and neurons j of w_ijk times the count of j k bins ago, with penalty / 2
    times the sum of squared w. All targets share the history, so that one sparse product serves all.

    Returns:
        weights `(lag, target, source)` in log rate per spike, and biases `(target,)`; 0 and -inf for silent targets.
    """
    now, before = history(stretches, lags)
    neurons = now.shape[1]
    past = sparse.csr_matrix(np.concatenate(list(before), axis=1))
    turned = past.T.tocsr()
    alive = np.flatnonzero(now.sum(0) > 0)
    counts = now[:, alive]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        both = flat.reshape(-1, len(alive))
        weight, bias = both[:-1], both[-1]
        log_rate = np.minimum(past @ weight + bias, LARGEST)
        rate = np.exp(log_rate)
        error = rate - counts
        gradient = np.concatenate([turned @ error + penalty * weight, error.sum(0)[None]])
        return float(rate.sum() - (counts * log_rate).sum() + penalty / 2 * (weight**2).sum()), gradient.ravel()

    weights, bias = np.zeros((lags, neurons, neurons)), np.full(neurons, -np.inf)
    if len(alive):
        start = np.zeros((lags * neurons + 1, len(alive)))
        start[-1] = np.log(counts.mean(0))
        # The bias meets every row and a weight few: in units of the square root of spikes both curve alike.
        unit = np.concatenate(
            [np.sqrt(before.sum(1).ravel() * counts.mean() + penalty), [np.sqrt(counts.sum(0).mean())]]
        )
        scale = np.broadcast_to(unit[:, None], start.shape).ravel()

        def scaled(x: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = loss(x / scale)
            return value, gradient / scale

        options = {"maxiter": iterations, "ftol": 1e-9, "gtol": 1e-5}
        found = minimize(scaled, start.ravel() * scale, jac=True, method="L-BFGS-B", options=options)
        both = (found.x / scale).reshape(-1, len(alive))
        weights[:, alive] = both[:-1].reshape(lags, neurons, -1).transpose(0, 2, 1)
        bias[alive] = both[-1]
    return weights, bias


def glm_coupling(stretches: Sequence[np.ndarray], lags: int = 3, penalty: float = 10.0) -> np.ndarray:
    """`(target, source)` sum of the history filter over lags: change of the target's log rate after a spike."""
    return poisson_weights(stretches, lags, penalty)[0].sum(0)


def _standardised(counts: np.ndarray) -> np.ndarray:
    spread = counts.std(0)
    return (counts - counts.mean(0)) / np.where(spread > 0, spread, 1.0)
