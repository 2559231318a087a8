"""What a representation's variance is made of: subject, session, label, label of each subject, and the rest.

The model of a feature of a window is mean + subject + label + label by subject + session of a subject + rest. The
variances of the parts are estimated from sequential sums of squares by equating them to their expectations (Henderson
1953, Estimation of variance and covariance components, method 3; Searle, Casella and McCulloch 1992, Variance
components, chapter 5), which holds for unbalanced designs and takes from each part what the parts below it put there.
Each feature counts equally; sums of squares are summed over features. Classes are taken as fixed and equally frequent:
what people differ by in all classes is "subject", what one class has more than another in all people is "label".

Nothing is fitted that is scored later: these are descriptions. Estimates may fall a little below 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from brainfm.statistics import permutation_p

#: Parts in the order of a result; all but the last have a null.
PARTS = ("subject", "label", "label by subject", "session", "rest")
#: Nulls of each part. "permuted": people (windows among all), sessions (windows within person and class) or labels
#: (within person) are permuted. "shifted": labels are shifted round in time within each person, for neighbouring
#: windows are alike and a shift keeps that. "exchanged": the names of the classes are permuted within each person,
#: which keeps whatever a person's classes differ by and leaves nothing that people share: where classes differ in each
#: person in a way of their own, it alone rejects as often as it should (a 5 % test of "label" under "permuted": 28 %).
NULLS = {
    "subject": ("permuted",),
    "label": ("permuted", "shifted", "exchanged"),
    "label by subject": ("permuted", "shifted"),
    "session": ("permuted",),
}


@dataclass(frozen=True)
class Design:
    """Who, what and when of each window, as numbers `(window,)` from 0."""

    person: np.ndarray
    label: np.ndarray
    session: np.ndarray

    @classmethod
    def of(cls, people: np.ndarray, labels: np.ndarray, sessions: np.ndarray) -> Design:
        """From names."""
        return cls(*(np.unique(x, return_inverse=True)[1] for x in (people, labels, sessions)))

    def with_labels(self, label: np.ndarray) -> Design:
        """The same people and sessions with other labels."""
        return Design(self.person, label, self.session)

    def with_sessions(self, session: np.ndarray) -> Design:
        """The same people and labels with other sessions."""
        return Design(self.person, self.label, session)


def shares(
    features: np.ndarray,
    people: np.ndarray,
    labels: np.ndarray,
    sessions: np.ndarray,
    *,
    seed: int,
    permutations: int = 199,
) -> dict[str, dict]:
    """Share of each part in the variance of a window, its interval, and what it is by chance.

    The interval is Student's with the jackknife's error over people (Efron and Stein 1981, The jackknife estimate of
    variance).

    Args:
        features: `(window, feature)`, in order of time within a person. people, labels, sessions: `(window,)` names.
        seed: of the permutations. permutations: how many of each kind.

    Returns:
        Part → `{"share", "ci", "nulls": {null: {"mean", "p"}}}`, see `NULLS`; "rest" has none. A part that the design
        cannot tell (one session for each person, or for each person and class; one class for each person) is absent.

    Raises:
        ValueError: for fewer than two people, or where no two windows have person, label and session in common.
    """
    x, design = standardised(features), Design.of(people, labels, sessions)
    n_people = int(design.person.max()) + 1
    if n_people < 2:
        raise ValueError(f"a share of the subject needs two people or more, got {n_people}; add recordings")
    if len(np.unique(_cells(design))) == len(x):
        raise ValueError(f"each of {len(x)} windows has a session of its own; cut several windows from a session")
    found = parts(x, design)
    each = [parts(x, design, without=p) for p in range(n_people)] if n_people > 2 else []
    rng, whole = np.random.default_rng(seed), [np.arange(len(x))]
    own, cells = _groups(design.person), _groups(design.person, design.label)
    drawn: dict[tuple[str, str], np.ndarray] = {}

    def draw(part: str, null: str, change: Callable[[], Design]) -> None:
        several = [parts(x, change()) for _ in range(permutations)]
        for other in ("label", "label by subject") if part == "label" else (part,):
            drawn[other, null] = np.array([one.get(other, np.nan) for one in several])

    def people_permuted() -> Design:
        order = within(whole[0], whole, rng)
        return Design(design.person[order], design.label[order], design.session[order])

    draw("subject", "permuted", people_permuted)
    draw("label", "permuted", lambda: design.with_labels(within(design.label, own, rng)))
    draw("label", "shifted", lambda: design.with_labels(shifted(design.label, own, rng)))
    draw("label", "exchanged", lambda: design.with_labels(exchanged(design.label, own, rng)))
    if "session" in found:
        draw("session", "permuted", lambda: design.with_sessions(within(design.session, cells, rng)))
    return {
        part: {
            "share": found[part],
            "ci": _jackknife(found[part], [e.get(part, np.nan) for e in each]),
            "nulls": {null: against(found[part], drawn[part, null]) for null in NULLS.get(part, ())},
        }
        for part in PARTS
        if part in found
    }


def against(value: float, null: np.ndarray) -> dict[str, float]:
    """Mean of a null, and how often it is as large as the value."""
    return {"mean": float(np.nanmean(null)), "p": permutation_p(value, null)}


def standardised(features: np.ndarray) -> np.ndarray:
    """`(window, feature)` with mean 0 and variance 1 of each feature; constant ones are left out.

    Raises:
        ValueError: where all are constant, or values are not finite.
    """
    x = np.asarray(features, float)
    if not np.isfinite(x).all():
        bad = int(np.sum(~np.isfinite(x).all(axis=1)))
        raise ValueError(f"{bad} of {len(x)} encodings hold values that are not finite; leave these windows out")
    deviation, mean = x.std(axis=0), x.mean(axis=0)
    kept = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-12)
    if not kept.any():
        raise ValueError(f"all {x.shape[1]} features are the same in all {len(x)} windows; there is no variance")
    return (x[:, kept] - mean[kept]) / deviation[kept]


def parts(x: np.ndarray, design: Design, without: int | None = None) -> dict[str, float]:
    """Shares of the parts that the design tells, summing to 1, of standardised `x (window, feature)`.

    Args:
        x: `(window, feature)`. design: of the same windows. without: number of a person to leave out.
    """
    if without is not None:
        kept = design.person != without
        x, design = x[kept], Design(design.person[kept], design.label[kept], design.session[kept])
    _, first, cell = np.unique(_cells(design), return_index=True, return_inverse=True)
    n = np.bincount(cell).astype(float)
    sums = np.add.reduceat(x[np.argsort(cell, kind="stable")], np.cumsum(n).astype(int) - n.astype(int), axis=0)
    y = sums / np.sqrt(n)[:, None]  # cell means times the root of the count
    total = float(np.sum(x**2))
    person, label = design.person[first], design.label[first]
    one = {
        "subject": _dummies(person, n),
        "label": _dummies(label, n),
        "label by subject": _dummies(person * (label.max() + 1) + label, n),
        "session": _dummies(person * (design.session.max() + 1) + design.session[first], n),
    }
    both = np.hstack([one["subject"], one["label"]])
    whole = np.hstack([one["label by subject"], one["session"]])
    spans = {k: _span(v) for k, v in (*one.items(), ("mean", np.sqrt(n)[:, None]), ("both", both), ("whole", whole))}
    between = {  # what each part explains beyond what
        "subject": ("both", "label"),
        "label": ("both", "subject"),
        "label by subject": ("label by subject", "both"),
        "session": ("whole", "label by subject"),
    }
    if spans["both"].shape[1] == spans["subject"].shape[1]:  # one class for each person
        between["label"] = ("label", "mean")
    known = [k for k, (more, less) in between.items() if spans[more].shape[1] > spans[less].shape[1]]
    matrix, squares = np.zeros((len(known) + 1, len(known) + 1)), np.zeros(len(known) + 1)
    for i, k in enumerate(known):
        more, less = (spans[name] for name in between[k])
        squares[i] = np.sum((more.T @ y) ** 2) - np.sum((less.T @ y) ** 2)
        matrix[i, -1] = more.shape[1] - less.shape[1]
        for j, other in enumerate(known):
            z = one[other]
            matrix[i, j] = np.sum((more.T @ z) ** 2) - np.sum((less.T @ z) ** 2)
    squares[-1] = total - np.sum((spans["whole"].T @ y) ** 2)
    matrix[-1, -1] = len(x) - spans["whole"].shape[1]
    solved = dict(zip((*known, "rest"), np.linalg.lstsq(matrix, squares, rcond=None)[0], strict=True))
    classes = int(label.max()) + 1
    found = {k: float(v) for k, v in solved.items()}
    if "label" in found:  # of classes drawn at random → of these, equally frequent
        found["label"] *= (classes - 1) / classes
    if "label by subject" in found:
        found["subject"] = found.get("subject", 0.0) + found["label by subject"] / classes
        found["label by subject"] *= (classes - 1) / classes
    whole_variance = sum(found.values())
    return {k: found[k] / whole_variance for k in PARTS if k in found}


def within(values: np.ndarray, groups: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """`values` permuted within each group of rows."""
    out = values.copy()
    for rows in groups:
        out[rows] = values[rng.permutation(rows)]
    return out


def shifted(values: np.ndarray, groups: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """`values` shifted round within each group of rows, by at least one row."""
    out = values.copy()
    for rows in groups:
        if len(rows) > 1:
            out[rows] = np.roll(values[rows], int(rng.integers(1, len(rows))))
    return out


def exchanged(values: np.ndarray, groups: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The numbers of the classes permuted within each group of rows: who belongs together stays together."""
    out, classes = values.copy(), int(values.max()) + 1
    for rows in groups:
        out[rows] = rng.permutation(classes)[values[rows]]
    return out


def _cells(design: Design) -> np.ndarray:
    return (design.person * (design.label.max() + 1) + design.label) * (design.session.max() + 1) + design.session


def _groups(*numbers: np.ndarray) -> list[np.ndarray]:
    """Rows of the windows that have all numbers in common."""
    key = np.unique(np.stack(numbers, axis=1), axis=0, return_inverse=True)[1].ravel()
    return [np.flatnonzero(key == k) for k in range(int(key.max()) + 1)]


def _dummies(number: np.ndarray, n: np.ndarray) -> np.ndarray:
    """`(cell, level)` root of the cell's count where it has that level."""
    levels, place = np.unique(number, return_inverse=True)
    return np.eye(len(levels))[place] * np.sqrt(n)[:, None]


def _span(columns: np.ndarray) -> np.ndarray:
    """Orthonormal basis `(cell, rank)` of the columns' span."""
    basis, size, _ = np.linalg.svd(columns, full_matrices=False)
    return basis[:, size > size[0] * 1e-9]


def _jackknife(value: float, each: list[float]) -> list[float] | None:
    """95 % interval from the values with one person left out each; None for two people."""
    left = np.array(each)
    n = len(left)
    if n < 3 or not np.isfinite(left).all():
        return None
    half = float(student.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * np.sum((left - left.mean()) ** 2)))
    return [value - half, value + half]


def consistency(
    features: np.ndarray,
    people: np.ndarray,
    labels: np.ndarray,
    halves: np.ndarray,
    *,
    seed: int,
    permutations: int = 199,
) -> dict:
    """Whether classes differ in the same direction in all people: cosines of class differences, one person left out.

    A person's direction of a class is its mean minus the mean over the person's classes, on features in units of their
    deviation within people. `score` is its cosine with the mean direction of the others, averaged over classes and
    people; `own` is the cosine between two halves of the person's own windows. Both are lowered by noise alike, so a
    direction that people share has `score` near `own` or above, a private one has `score` near 0 and `own` above.

    Args:
        features: `(window, feature)`, in order of time within a person. people, labels: `(window,)` names.
        halves: `(window,)` boolean, which half of the person's time a window lies in.
        seed: of the permutations. permutations: of each null of the label, see `NULLS`.

    Returns:
        `score`, `ci` (as in `shares`), `per_subject`, `own`, `own_per_subject`, `nulls`. People who lack a class are
        left out; `own` is over those who have all classes in both halves, NaN for none.

    Raises:
        ValueError: where fewer than two people have all classes.
    """
    x = standardised(features)
    names, who = np.unique(people, return_inverse=True)
    kinds, label = np.unique(labels, return_inverse=True)
    has = np.zeros((len(names), len(kinds)), int)
    np.add.at(has, (who, label), 1)
    usable = np.flatnonzero((has > 0).all(axis=1))
    if len(usable) < 2:
        raise ValueError(
            f"{len(usable)} of {len(names)} people have all of {len(kinds)} classes; two or more are needed"
        )
    kept = np.isin(who, usable)
    x, label, halves = x[kept], label[kept], np.asarray(halves)[kept]
    who = np.searchsorted(usable, who[kept])
    for p in range(len(usable)):
        x[who == p] -= x[who == p].mean(axis=0)
    x /= np.maximum(x.std(axis=0), 1e-12)

    def alike(number: np.ndarray) -> np.ndarray:
        """`(person,)` cosine with the others."""
        return _with_others(_directions(x, who, number, len(usable), len(kinds)))

    rows = [np.flatnonzero(who == p) for p in range(len(usable))]
    found, rng = alike(label), np.random.default_rng(seed)
    own = _own(x, who, label, halves, len(usable), len(kinds))
    d = _directions(x, who, label, len(usable), len(kinds))
    each = [float(_with_others(np.delete(d, p, axis=0)).mean()) for p in range(len(usable))] if len(usable) > 2 else []
    score, who_is = float(found.mean()), [str(n) for n in names[usable]]
    nulls = {
        name: np.array([alike(change(label, rows, rng)).mean() for _ in range(permutations)])
        for name, change in (("permuted", within), ("shifted", shifted), ("exchanged", exchanged))
    }
    return {
        "score": score,
        "ci": _jackknife(score, each),
        "per_subject": dict(zip(who_is, found.tolist(), strict=True)),
        "own": float(np.nanmean(own)) if np.isfinite(own).any() else float("nan"),
        "own_per_subject": dict(zip(who_is, own.tolist(), strict=True)),
        "nulls": {name: against(score, null) for name, null in nulls.items()},
    }


def _with_others(d: np.ndarray) -> np.ndarray:
    """`(person,)` cosine of each person's directions `(person, class, feature)` with those of the others' mean."""
    return _cosines(d, d.sum(axis=0) - d).mean(axis=1)


def _own(x, who, label, halves, n_people: int, n_classes: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    """`(person,)` cosine between the directions of the two halves; NaN where a half lacks a class."""
    counts = np.zeros((2, n_people, n_classes))
    np.add.at(counts, (halves.astype(int), who, label), 1)
    first, second = (_directions(x[h], who[h], label[h], n_people, n_classes) for h in (~halves, halves))
    return np.where((counts > 0).all(axis=(0, 2)), _cosines(first, second).mean(axis=1), np.nan)


def _directions(x: np.ndarray, who: np.ndarray, label: np.ndarray, n_people: int, n_classes: int) -> np.ndarray:
    """`(person, class, feature)` means minus the mean over the person's classes."""
    member = np.zeros((n_people * n_classes, len(x)))
    member[who * n_classes + label, np.arange(len(x))] = 1
    means = member @ x / np.maximum(member.sum(axis=1, keepdims=True), 1)
    means = means.reshape(n_people, n_classes, -1)
    return means - means.mean(axis=1, keepdims=True)


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Over the last axis; 0 where either has no length."""
    size = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.divide(np.sum(a * b, axis=-1), size, out=np.zeros(size.shape), where=size > 0)
