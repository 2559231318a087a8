"""What every evaluation shares: who may be on which side, linear readouts, scores per subject, and the result.

Readouts see the training side only: scaling, penalty and weights are fitted there. Penalties are chosen by
cross-validation that keeps a person whole where three or more people train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import ThreadpoolController

from brainfm.metrics import balanced_accuracy
from brainfm.shards.read import Windows
from brainfm.shards.stored import Stored
from brainfm.splits import natural
from brainfm.statistics import Metric, bootstrap_ci, interval

#: Inverse penalties that logistic regression chooses from, on standardised features.
CLASSIFIER_C = tuple(np.logspace(-4, 0, 5))
#: Ridge penalties to choose from, as multiples of the number of training rows, on standardised features.
RIDGE_ALPHA = tuple(np.logspace(-5, 1, 7))

Folds = list[tuple[np.ndarray, np.ndarray]]


class Unfit(ValueError):
    """These data cannot be given to a method, or it diverged on them; no fault of its code."""


@dataclass(frozen=True)
class Scored:
    """A score with what it was averaged over.

    Attributes:
        score: mean over subjects. ci: its 95 % interval. ci_over: "subjects" or "trials".
        per_subject: `dataset/subject` → score. n_trials: predictions that were scored.
    """

    score: float
    ci: tuple[float, float]
    ci_over: str
    per_subject: dict[str, float]
    n_trials: int

    def entry(self) -> dict:
        """The score and its interval, as they stand in a result's `baselines`."""
        return {"score": self.score, "ci": list(self.ci)}


def scored(
    metric: Metric, people: np.ndarray, true: np.ndarray, predicted: np.ndarray, seed: int, block: int = 1
) -> Scored:
    """Score each person's predictions by `metric`; the mean over people with an interval over them, or over trials.

    Args:
        metric: of `(trial, ...)` truth and prediction.
        people: `(trial,)` whom each prediction is of.
        true, predicted: `(trial, ...)`, in order of time within a person.
        seed: of the bootstrap.
        block: neighbouring trials that are resampled together where one person is all there is.
    """
    names = sorted(set(people.tolist()))
    each = {name: float(metric(true[people == name], predicted[people == name])) for name in names}
    values = np.array(list(each.values()))
    ci, over = interval(values, true, predicted, metric, seed=seed, block=block)
    return Scored(float(values.mean()), ci, over, each, len(true))


def scored_mean(people: np.ndarray, values: np.ndarray, seed: int) -> Scored:
    """Scores that each window has already, averaged within a person; as `scored`."""
    return scored(lambda x, _: float(np.mean(x)), people, values, values, seed)


def mean_scored(parts: Sequence[Scored], seed: int) -> Scored:
    """The mean of repeated scores of the same people (draws, masks, permutations); people stay the unit."""
    each = {name: float(np.mean([p.per_subject[name] for p in parts])) for name in parts[0].per_subject}
    values = np.array(list(each.values()))
    ends = np.mean([p.ci for p in parts], axis=0)
    ci = bootstrap_ci(values, seed=seed) if len(values) >= 2 else (float(ends[0]), float(ends[1]))
    return Scored(float(values.mean()), ci, parts[0].ci_over, each, parts[0].n_trials)


def result(
    evaluation: str, metric: str, main: Scored, chance: float, baselines: dict[str, Scored],
    train: Windows, test: Windows, seed: int, note: str = "",
) -> dict:  # fmt: skip
    """The fields of a result file (docs/results.md) that every evaluation has; the stage adds its key and names."""
    used = test.used
    return {
        "evaluation": evaluation,
        "dataset": ", ".join(sorted({s.dataset for s in used})),
        "simulated": any(s.simulated for s in used),
        "seed": seed,
        "metric": metric,
        "score": main.score,
        "ci": list(main.ci),
        "ci_over": main.ci_over,
        "n_subjects": len(main.per_subject),
        "n_trials": main.n_trials,
        "chance": chance,
        "baselines": {name: b.entry() for name, b in baselines.items()},
        "per_subject": main.per_subject,
        "windows": {"train": train.intervals(), "test": test.intervals()},
        "note": note.strip(),
    }


def recordings_in_time(windows: Windows) -> list[int]:
    """Numbers of the recordings that have a window, in order of time as far as their names tell it.

    That is by dataset, subject, session and run, with numbers in names as numbers: run 2 comes before run 10. Shards
    keep no time of day, so of several tasks in one session the first by name is taken for the earlier.
    """
    return sorted(np.unique(windows.recording).tolist(), key=lambda r: natural(windows.recordings[r].id))


def rows_in_time(windows: Windows) -> np.ndarray:
    """`(window,)` row numbers in the order of `recordings_in_time`, and by start inside a recording."""
    place = np.zeros(len(windows.recordings), np.int64)
    used = recordings_in_time(windows)
    place[used] = np.arange(len(used))
    return np.lexsort((windows.start, place[windows.recording]))


def segment(stored: Stored, start: np.ndarray) -> np.ndarray:
    """`(window,)` number of the segment of a recording that each first sample `(window,)` lies in."""
    return np.searchsorted(np.sort(stored.segments[:, 0]), start, "right")


def confounded(recording: np.ndarray, label: np.ndarray) -> bool:
    """Whether every recording has one label, so that whatever differs by recording looks like it.

    Args:
        recording: `(window,)` numbers. label: `(window,)` classes.
    """
    return all(len(np.unique(label[recording == r])) == 1 for r in np.unique(recording))


def classes_of(train: Windows, test: Windows) -> list[str]:
    """The classes, sorted; the same on both sides.

    Raises:
        ValueError: where a window has no label, a class stands on one side only, or there are fewer than two.
    """
    left, right = set(train.label), set(test.label)
    if "" in left | right or not left or not right:
        raise ValueError(
            f"{len(train)} training and {len(test)} test windows, some without a label; use labelled trials"
        )
    if left != right or len(left) < 2:
        raise ValueError(
            f"training has classes {sorted(left)} and test has {sorted(right)}; expected the same two or more on both "
            "sides: choose them with `labels`, or move subjects between the sides"
        )
    return sorted(left)


def seen_people(card: dict) -> list[str]:
    """People that a model, or the tokenizer inside it, was trained or validated on."""
    own = [person for side in (card.get("subjects") or {}).values() for person in side]
    return own + (seen_people(card["tokenizer"]) if card.get("tokenizer") else [])


def seen_windows(card: dict) -> list[dict[str, list]]:
    """Intervals by recording that a model, or its tokenizer, was trained, fine-tuned or validated on, side by side."""
    own = list((card.get("windows") or {}).values())
    return own + (seen_windows(card["tokenizer"]) if card.get("tokenizer") else [])


def strangers(train: Windows, test: Windows, card: dict) -> None:
    """Check that no test person is in training, nor among the `subjects` that a model's card says pretraining used.

    Args:
        train, test: the two sides.
        card: its `subjects` are lists of `dataset/subject` by side, validation included.

    Raises:
        ValueError: naming the people on both sides.
    """
    people = set(test.of("person").tolist())
    known = {"training windows": set(train.of("person").tolist()), "pretraining": set(seen_people(card))}
    for where, seen in known.items():
        both = sorted(people & seen)
        if both:
            raise ValueError(f"{len(both)} test people ({', '.join(both[:3])}) are in {where}; split by subject")


def unseen(test: Windows, card: dict) -> None:
    """Check that no tested second is among those that a network, or its tokenizer, was trained or validated on.

    Args:
        test: what is to be scored.
        card: its `windows` are intervals by recording for each side, fine-tuning included.

    Raises:
        ValueError: naming a recording that is.
    """
    asked = test.intervals()
    for seen in seen_windows(card):
        for key in sorted(asked.keys() & seen.keys()):
            if any(a < stop and start < b for a, b in asked[key] for start, stop in seen[key]):
                raise ValueError(
                    f"the network or its tokenizer has {key} among the windows of its training or validation, and the "
                    "same seconds are to be scored; score recordings that it never saw, or train it on others"
                )


def cross_entropy(labels: np.ndarray, chances: np.ndarray) -> float:
    """Mean negative log probability of the true class, averaged within each class and then over the classes.

    Args:
        labels: `(window,)` class numbers. chances: `(window, class)` probabilities.
    """
    each = -np.log(np.maximum(chances[np.arange(len(labels)), labels], 1e-12))
    return float(np.mean([each[labels == c].mean() for c in np.unique(labels)]))


def permuted_within(labels: np.ndarray, people: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The labels permuted among the windows of each person, so that everyone keeps their class balance."""
    out = labels.copy()
    for name in np.unique(people):
        rows = np.flatnonzero(people == name)
        out[rows] = labels[rng.permutation(rows)]
    return out


def fit_linear(
    features: np.ndarray, labels: np.ndarray, people: np.ndarray, seed: int, penalty: float | None = None
) -> Pipeline:
    """Standardise and fit logistic regression, classes weighted to count equally.

    The penalty is the best of `CLASSIFIER_C` by balanced accuracy in cross-validation: grouped by person where there
    are three or more people, else stratified by class.

    Args:
        features: `(window, feature)`. labels: `(window,)`. people: `(window,)`. All of the training side.
        seed: of the folds.
        penalty: an inverse penalty that was chosen before; None chooses it.
    """
    classifier = LogisticRegression(C=penalty or 0.01, class_weight="balanced", max_iter=2000)
    model = make_pipeline(StandardScaler(), classifier)
    folds = _class_folds(labels, people, seed) if penalty is None else []
    if folds:
        grid = {"logisticregression__C": CLASSIFIER_C}
        search = GridSearchCV(model, grid, scoring=make_scorer(balanced_accuracy), cv=folds, refit=False)
        with threads().limit(limits=1):
            model.set_params(**search.fit(features, labels).best_params_)
    with threads().limit(limits=1):
        return model.fit(features, labels)


@cache
def threads() -> ThreadpoolController:
    """Limits threads of linear algebra: the many small fits of an evaluation are far slower with several."""
    return ThreadpoolController()


def _class_folds(labels: np.ndarray, people: np.ndarray, seed: int) -> Folds:
    """Folds whose training part holds every class; none where that cannot be."""
    n_people, rarest = len(set(people.tolist())), int(np.unique(labels, return_counts=True)[1].min())
    if n_people >= 3 and rarest >= 2:
        splitter = StratifiedGroupKFold(min(5, n_people, rarest), shuffle=True, random_state=seed)
        folds = list(splitter.split(labels, labels, people))
    elif rarest >= 2:
        folds = list(StratifiedKFold(min(5, rarest), shuffle=True, random_state=seed).split(labels, labels))
    else:
        folds = []
    whole = set(labels.tolist())
    return [(a, b) for a, b in folds if len(b) and set(labels[a].tolist()) == whole]


@dataclass(frozen=True)
class Ridge:
    """A fitted ridge regression.

    Attributes:
        mean, scale: `(feature,)` of the training rows. coefficients: `(feature, column)` for standardised features.
        intercept: `(column,)`. alpha: the chosen penalty, a multiple of the number of rows.
    """

    mean: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    intercept: np.ndarray
    alpha: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """`(row, feature)` → `(row, column)`."""
        return (features - self.mean) / self.scale @ self.coefficients + self.intercept


def fit_ridge(features: np.ndarray, target: np.ndarray, people: np.ndarray | None = None) -> Ridge:
    """Ridge on standardised features; the penalty is the best of `RIDGE_ALPHA` by squared error in cross-validation.

    Folds are whole people where `people` names three or more, else contiguous blocks of rows, which must be in order
    of time. One eigendecomposition per fold serves all penalties.

    Args:
        features: `(row, feature)`. target: `(row, column)`. people: `(row,)`.
    """
    x, y = np.asarray(features, float), np.asarray(target, float)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    x = (x - mean) / scale
    worth = 1 / np.maximum(y.var(axis=0), np.finfo(float).tiny)
    error = np.zeros(len(RIDGE_ALPHA))
    with threads().limit(limits=1):
        for a, b in _row_folds(len(x), people):
            x_mean, y_mean = x[a].mean(axis=0), y[a].mean(axis=0)
            path = _ridge_path(x[a] - x_mean, y[a] - y_mean, RIDGE_ALPHA)
            error += [np.sum((y[b] - y_mean - (x[b] - x_mean) @ c) ** 2 * worth) for c in path]
        alpha = RIDGE_ALPHA[int(np.argmin(error))] if error.any() else RIDGE_ALPHA[len(RIDGE_ALPHA) // 2]
        intercept = y.mean(axis=0)
        return Ridge(mean, scale, _ridge_path(x, y - intercept, (alpha,))[0], intercept, alpha)


def _row_folds(rows: int, people: np.ndarray | None) -> Folds:
    n_people = 0 if people is None else len(set(people.tolist()))
    if n_people >= 3:
        return list(GroupKFold(min(5, n_people)).split(np.zeros(rows), groups=people))
    return list(KFold(min(5, rows // 2)).split(np.zeros(rows))) if rows >= 4 else []


def _ridge_path(x: np.ndarray, y: np.ndarray, alphas: Sequence[float]) -> list[np.ndarray]:
    """Coefficients `(feature, column)` at each penalty, of centred data, from the smaller of the two Gram matrices."""
    rows, features = x.shape
    if features <= rows:
        power, basis = np.linalg.eigh(x.T @ x)
        inside, back = basis.T @ (x.T @ y), basis
    else:
        power, basis = np.linalg.eigh(x @ x.T)
        inside, back = basis.T @ y, x.T @ basis
    power = np.maximum(power, 0)[:, None]
    return [back @ (inside / (power + alpha * rows)) for alpha in alphas]
