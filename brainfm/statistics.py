"""Intervals, paired tests and effect sizes. The unit is what a claim generalises over: mostly a person.

With few people no paired test can reject, whatever the data: the smallest two-sided p of `wilcoxon` and `sign_flip_p`
is `smallest_p(n)`, 0.0625 with five people and 0.031 with six. Holm's correction makes it larger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

#: Up to so many people the signed-rank and sign-flip tests count every assignment of signs.
EXACT_RANKS, EXACT_FLIPS = 200, 16
#: Scores that differ by less than this share of the largest are equal: sums in another order differ a little.
TIE = 1e-9

Metric = Callable[[np.ndarray, np.ndarray], float]


def bootstrap_ci(values: np.ndarray, n: int = 2000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean over units (Efron 1979, Bootstrap methods: another look at the jackknife).

    With fewer than about ten units it is somewhat narrow: five normal units cover the mean in about 84 % of cases.

    Args:
        values: `(unit,)` one score per subject.
        n: resamples.
        seed: of the resampling.
        level: coverage aimed at.

    Raises:
        ValueError: for fewer than two units, whose spread nothing can tell; use `bootstrap_trials`.
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(
            f"an interval over subjects needs two or more scores; got {values.size}: use `bootstrap_trials`"
        )
    means = values[np.random.default_rng(seed).integers(len(values), size=(n, len(values)))].mean(axis=1)
    return _percentiles(means, level)


def bootstrap_trials(
    true: np.ndarray,
    predicted: np.ndarray,
    metric: Metric,
    n: int = 2000,
    seed: int = 0,
    block: int = 1,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a metric over the trials of one subject.

    Args:
        true, predicted: `(trial, ...)`, in order of time.
        metric: of resampled truth and prediction.
        n: resamples.
        seed: of the resampling.
        block: trials that stay together; more than 1 where neighbours are alike, as windows of a time series are
            (circular block bootstrap: Politis & Romano 1992).
        level: coverage aimed at.
    """
    rng, trials = np.random.default_rng(seed), len(true)
    block = min(max(1, block), trials)
    starts = rng.integers(trials, size=(n, -(-trials // block)))
    rows = ((starts[:, :, None] + np.arange(block)) % trials).reshape(n, -1)[:, :trials]
    return _percentiles(np.array([metric(true[r], predicted[r]) for r in rows]), level)


def interval(
    values: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,
    metric: Metric,
    n: int = 2000,
    seed: int = 0,
    block: int = 1,
) -> tuple[tuple[float, float], str]:
    """Interval of the mean over subjects, or over the trials of the only subject, and which of the two it is.

    Returns:
        `(low, high)` and "subjects" or "trials".
    """
    if len(values) >= 2:
        return bootstrap_ci(values, n, seed), "subjects"
    return bootstrap_trials(true, predicted, metric, n, seed, block), "trials"


def permutation_p(observed: float, null: np.ndarray) -> float:
    """One-sided p-value: how often chance does as well, counting the observation itself (Phipson & Smyth 2010).

    Equal up to rounding counts, as where a permutation makes the same design again; so does NaN.

    Args:
        observed: the score. null: `(permutation,)` scores under permuted labels.
    """
    null = np.asarray(null, float)
    known = np.abs(np.append(null, observed))
    close = TIE * known[np.isfinite(known)].max(initial=0.0)
    return float((1 + np.sum(~(null < observed - close))) / (1 + null.size))


class Tested(NamedTuple):
    """A statistic and its p-value; the p-value is NaN where there is nothing to test."""

    statistic: float
    p: float


def smallest_p(n: int) -> float:
    """The smallest two-sided p that `n` pairs can give in a test of signs or signed ranks: `2 / 2**n`."""
    return min(1.0, 2.0 ** (1 - n))


def wilcoxon(differences: np.ndarray) -> Tested:
    """Signed-rank test, two-sided (Wilcoxon 1945, Biometrics Bulletin 1).

    Assumes that people are independent and, under the null, a difference as likely above zero as below by as much.
    Zeros are left out. Exact up to 200 people, ties included: every assignment of signs is counted. Above that the
    normal approximation of scipy. Differences are rounded to 12 decimals, see `_to_rank`.

    Args:
        differences: `(person,)`.

    Returns:
        The smaller of the two rank sums, and p; `(0, 1)` where all differences are zero.
    """
    d = _to_rank(differences)
    if not len(d):
        return Tested(0.0, 1.0)
    if len(d) > EXACT_RANKS:
        found = stats.wilcoxon(d, method="approx")
        return Tested(float(found.statistic), float(found.pvalue))
    ranks = np.round(2 * stats.rankdata(np.abs(d))).astype(int)  # whole numbers, also for ties
    share = np.zeros(ranks.sum() + 1)  # of sign assignments whose positive ranks sum to the index
    share[0] = 1.0
    for r in ranks:
        share[r:] = (share[r:] + share[: len(share) - r]) / 2
        share[:r] /= 2
    smaller = min(ranks[d > 0].sum(), ranks[d < 0].sum())
    return Tested(smaller / 2, min(1.0, 2 * float(share[: smaller + 1].sum())))


def corrected_t(differences: np.ndarray, n_train: float, n_test: float) -> Tested:
    """Corrected resampled t-test, two-sided (Nadeau & Bengio 2003, Machine Learning 52, sections 3 and 4).

    For scores of a model that was fitted several times on overlapping training sets. Their variance is taken as
    `(1 / k + n_test / n_train) * var`, for the plain t-test takes them as independent and rejects too often. Assumes
    normal differences; it is on the safe side, and with one test person per fold close to the plain one. The unit is a
    fold: people within one are averaged, and of one fit it says nothing.

    Args:
        differences: `(fold,)` score of one model minus another's in each resampling.
        n_train, n_test: units in the training and the test part of a fold, on average.

    Returns:
        t with `k - 1` degrees of freedom, and p; NaN for one fold, p = 1 where all differences are zero.
    """
    d = _sample(differences)
    if n_train < 1 or n_test < 1:
        raise ValueError(f"n_train = {n_train}, n_test = {n_test}; expected the sizes of a fold's two parts, 1 or more")
    if len(d) < 2:
        return Tested(float("nan"), float("nan"))
    spread = np.sqrt((1 / len(d) + n_test / n_train) * d.var(ddof=1))
    if spread <= np.finfo(float).eps * np.abs(d).max():
        return Tested(0.0, 1.0) if not d.any() else Tested(float(np.copysign(np.inf, d.mean())), 0.0)
    t = float(d.mean() / spread)
    return Tested(t, float(2 * stats.t.sf(abs(t), len(d) - 1)))


def sign_flip_p(differences: np.ndarray, n: int = 10_000, seed: int = 0) -> float:
    """Permutation test of the mean difference, two-sided: signs of people's differences are flipped.

    Assumes what `wilcoxon` does. Exact up to 16 people; above that `n` draws, the observation counted among them
    (Phipson & Smyth 2010).

    Args:
        differences: `(person,)`. n: draws. seed: of the draws.
    """
    d = _sample(differences)
    observed = abs(d.sum()) - TIE * np.abs(d).sum()
    if len(d) <= EXACT_FLIPS:
        signs = 1 - 2 * ((np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1)
        return float(np.mean(np.abs(signs @ d) >= observed))
    rng, hits = np.random.default_rng(seed), 0
    for start in range(0, n, 1000):
        signs = rng.choice((-1.0, 1.0), size=(min(1000, n - start), len(d)))
        hits += int(np.sum(np.abs(signs @ d) >= observed))
    return (1 + hits) / (1 + n)


def holm(p: Sequence[float]) -> np.ndarray:
    """Adjusted p-values of a family of tests (Holm 1979, Scandinavian Journal of Statistics 6).

    The chance of any false rejection stays below the level, however the tests depend on each other. NaN stays NaN and
    does not count as a test.

    Args:
        p: `(test,)`.
    """
    raw = np.asarray(p, float)
    out = np.full(raw.shape, np.nan)
    rows = np.flatnonzero(~np.isnan(raw))
    rows = rows[np.argsort(raw[rows], kind="stable")]
    out[rows] = np.minimum(1, np.maximum.accumulate(raw[rows] * np.arange(len(rows), 0, -1)))
    return out


def cohen_dz(differences: np.ndarray) -> float:
    """Mean difference in units of its standard deviation over people (Cohen 1988); NaN where that is 0 or unknown."""
    d = _sample(differences)
    spread = d.std(ddof=1) if len(d) > 1 else 0.0
    return float(d.mean() / spread) if spread > 0 else float("nan")


def rank_biserial(differences: np.ndarray) -> float:
    """Matched-pairs rank-biserial correlation, -1 to 1: favourable less unfavourable share of ranks (Kerby 2014).

    0 where all differences are zero. Differences are rounded to 12 decimals, see `_to_rank`.
    """
    d = _to_rank(differences)
    ranks = stats.rankdata(np.abs(d))
    return float(np.sum(np.sign(d) * ranks) / ranks.sum()) if len(d) else 0.0


def differences(first: Mapping[str, float], second: Mapping[str, float]) -> np.ndarray:
    """`(person,)` first minus second, people in the order of the first.

    Raises:
        ValueError: where the people differ, for then nothing is paired.
    """
    if set(first) != set(second):
        odd = sorted(set(first) ^ set(second))
        raise ValueError(
            f"{len(first)} and {len(second)} people, {len(odd)} of them in one only ({', '.join(odd[:3])}); "
            "a paired test needs the same people: score both on one split"
        )
    return np.array([first[person] - second[person] for person in first])


def contrast(
    first: Mapping[str, float], second: Mapping[str, float], folds: Sequence[Sequence[str]] = (), n_train: float = 0,
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Two methods on the same people: mean difference with its interval, two tests and two effect sizes.

    Args:
        first, second: person → score.
        folds: people that each fit was scored on, for `corrected_t` of the folds' means; below two no `t_p`.
        n_train: people that a fold was fitted on, on average. seed: of the bootstrap.

    Returns:
        `difference`, `ci` (None for one person), `wilcoxon_p`, `t_p`, `dz`, `rank_biserial`, `n`.
    """
    d = differences(first, second)
    means = np.array([np.mean([first[person] - second[person] for person in fold]) for fold in folds])
    return {
        "difference": float(d.mean()),
        "ci": list(bootstrap_ci(d, seed=seed)) if len(d) > 1 else None,
        "wilcoxon_p": wilcoxon(d).p if len(d) > 1 else float("nan"),
        "t_p": corrected_t(means, n_train, len(d) / len(means)).p if len(means) > 1 else float("nan"),
        "dz": cohen_dz(d),
        "rank_biserial": rank_biserial(d),
        "n": len(d),
    }


def contrasts(
    scores: Mapping[str, Mapping[str, float]],
    against: str | None = None,
    folds: Sequence[Sequence[str]] = (),
    n_train: float = 0,
    seed: int = 0,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """Paired comparisons of methods, with Holm's correction of the Wilcoxon p-values over all of them.

    Args:
        scores: method → person → score.
        against: compare all others with this one; None compares every two.
        folds, n_train, seed: as in `contrast`.
        pairs: compare these methods alone.

    Returns:
        For each pair `a`, `b`, what `contrast` gives of a minus b, and `holm_p`.

    Raises:
        KeyError: where there are no scores of `against`.
        ValueError: where the people of two methods differ.
    """
    if against is not None and against not in scores:
        raise KeyError(f"no scores of {against!r}; there are {', '.join(scores)}")
    if pairs is None:
        pairs = list(combinations(scores, 2)) if against is None else [(against, b) for b in scores if b != against]
    found = [{"a": a, "b": b, **contrast(scores[a], scores[b], folds, n_train, seed)} for a, b in pairs]
    for row, p in zip(found, holm([row["wilcoxon_p"] for row in found]), strict=True):
        row["holm_p"] = float(p)
    return found


def transfer_effect(
    pretrained: Mapping[int, Mapping[str, float]], scratch: Mapping[int, Mapping[str, float]], seed: int = 0
) -> list[dict[str, Any]]:
    """What pretraining adds at each number of labelled examples: pretrained minus scratch, paired within people.

    Above 0 it helped, below 0 it harmed.

    Args:
        pretrained, scratch: shots → person → score; shots that only one of them has are left out.
        seed: of the bootstrap.

    Returns:
        `shots`, `score`, `ci`, `per_subject`, `wilcoxon_p` for each number of shots, fewest first.
    """
    found = []
    for shots in sorted(set(pretrained) & set(scratch)):
        row = contrast(pretrained[shots], scratch[shots], seed=seed)
        each = dict(zip(pretrained[shots], differences(pretrained[shots], scratch[shots]).tolist(), strict=True))
        found.append(
            {"shots": shots, "score": row["difference"], "ci": row["ci"], "per_subject": each,
             "wilcoxon_p": row["wilcoxon_p"]}
        )  # fmt: skip
    return found


def worst(per_person: Mapping[str, float]) -> tuple[str, float]:
    """The person with the lowest score; the first by name where several have it."""
    if not per_person:
        raise ValueError("no scores of people; the worst of none is not defined")
    person = min(sorted(per_person), key=lambda p: per_person[p])
    return person, per_person[person]


def by_group(per_person: Mapping[str, float], group: Mapping[str, str], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Scores by sex, age or anything else that people are grouped by.

    Args:
        per_person: person → score. group: person → group; people without one are left out.
        seed: of the bootstrap.

    Returns:
        Group → `score` (mean over its people), `ci` (None for one person), `n`.
    """
    found = {}
    for name in sorted(set(group.values())):
        values = np.array([score for person, score in per_person.items() if group.get(person) == name])
        if len(values):
            ci = list(bootstrap_ci(values, seed=seed)) if len(values) > 1 else None
            found[name] = {"score": float(values.mean()), "ci": ci, "n": len(values)}
    return found


def at_median(values: Mapping[str, float]) -> dict[str, str]:
    """Person → "up to M" or "above M", M the median over people, as for ages; people with NaN have no group."""
    known = {person: v for person, v in values.items() if v == v}
    if not known:
        return {}
    middle = float(np.median(list(known.values())))
    return {person: f"{'up to' if v <= middle else 'above'} {middle:g}" for person, v in known.items()}


def phase_randomised(signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A surrogate with the same spectrum and nothing else: random phases, the same ones in all columns.

    So the columns keep their correlations with each other (Prichard & Theiler 1994, Physical Review Letters 73), and
    lose those with anything else: scores of 200 or more surrogates are the null of `permutation_p`.

    Args:
        signal: `(time,)` or `(time, column)`. rng: of the phases.
    """
    signal = np.asarray(signal, float)
    spectrum = np.fft.rfft(signal, axis=0)
    turn = np.exp(2j * np.pi * rng.random(len(spectrum)))
    turn[0] = 1
    if len(signal) % 2 == 0:
        turn[-1] = 1
    turned = spectrum * (turn if signal.ndim == 1 else turn[:, None])
    return np.fft.irfft(turned, len(signal), axis=0)


def _sample(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"got differences of shape {values.shape}; expected (person,), finite, one or more")
    return values


def _to_rank(differences: np.ndarray) -> np.ndarray:
    """Differences that are not zero, to 12 decimals: 0.55 - 0.5 and 0.6 - 0.55 differ in their last digit alone."""
    d = _sample(differences).round(12)
    return d[d != 0]


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.percentile(values, (50 * (1 - level), 50 * (1 + level)))
    return float(low), float(high)
