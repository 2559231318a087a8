"""Few-shot transfer to people that the model never saw: a classifier of the source people plus k trials per class.

Each target person's trials are cut once: the earlier half of each class is what shots are drawn from, the later half
is what every method is tested on, at every k. Trials of the earlier half that share raw samples with the later one,
directly or through the filters, are left out. Features are scaled by the source people alone, so that neither labels
nor the class balance of a target person enters its normalisation.

The k trials of a new person would drown among those of the source. So the two parts are given shares of the total
weight. The share of the new person is one of `SHARES`, chosen for each k and method among the source people: each
in turn (up to six) plays the new person, and the share with the best mean score is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from brainfm.evaluations import baselines, protocol
from brainfm.metrics import balanced_accuracy, confusion
from brainfm.shards.read import Windows
from brainfm.shards.stored import rate
from brainfm.splits import order
from brainfm.training.checkpoint import Pretrained

#: Share of the total weight that a new person's trials may get (0: none); the first is taken with no source to tune on.
SHARES = (0.5, 0.0, 0.01, 0.05, 0.2, 0.8, 0.95)


def run(
    model: Pretrained,
    train: Windows,
    test: Windows,
    *,
    seed: int,
    shots: Sequence[int] = (0, 1, 5, 20),
    draws: int = 5,
    linear: str | Sequence[str] = "log_band_power",
    permutations: int = 20,
) -> dict:
    """Curves over k of the network pretrained, untrained, and of linear models of the signals.

    `score` is the pretrained one's without any trial of the new person. `effect_of_transfer` is pretrained minus
    untrained at each k, paired within people.

    Args:
        model: the network, not changed.
        train: labelled windows of the source people.
        test: labelled windows of other people.
        seed: of draws, folds, untrained weights and bootstrap.
        shots: trials per class of the new person; numbers that a person's earlier half cannot give are left out, with
            a note.
        draws: random choices of those trials, averaged; the same for every method.
        linear: features of the signals, see `baselines.of_signals`.
        permutations: of the source labels within each person, averaged, for the baseline at no shot; see `probe.run`.

    Raises:
        ValueError: where a person is on both sides or was pretrained on, or the classes of the two sides differ.
    """
    classes = protocol.classes_of(train, test)
    protocol.strangers(train, test, model.card)
    people, other = train.of("person"), test.of("person")
    labels, truth = train.label.astype(str), test.label.astype(str)
    pool, held = halves(test, classes)
    most = min(int(np.sum((truth == c) & (other == p) & pool)) for c in classes for p in set(other))
    asked = sorted({0, *shots})
    kept = [k for k in asked if k <= most]
    chosen = {k: [drawn(truth, other, pool, k, seed + d) for d in range(draws if k else 1)] for k in kept}

    signals, note = baselines.of_signals(linear, train, test)
    fresh = model.untrained(seed)
    encoded = {
        "pretrained": (model.features(train), model.features(test)),
        "untrained": (fresh.features(train), fresh.features(test)),
        **signals,
    }
    guesses, shares, penalty = {}, {}, {}
    for name, (source, target) in encoded.items():
        shares[name] = tune(source, labels, people, kept, seed)
        fitted = protocol.fit_linear(source, labels, people, seed)
        penalty[name] = fitted[-1].C
        for k in kept:
            guesses[name, k] = [
                _predicted(fitted, source, labels, target, truth, other, held, rows, shares[name].get(k, 0.0))
                for rows in chosen[k]
            ]

    who, right = other[held], truth[held]

    def averaged(found: Sequence[np.ndarray]) -> protocol.Scored:
        return protocol.mean_scored([protocol.scored(balanced_accuracy, who, right, g, seed) for g in found], seed)

    curves = {key: averaged(found) for key, found in guesses.items()}
    source, target = encoded["pretrained"]
    rng = np.random.default_rng(seed)
    permuted = [
        protocol.fit_linear(
            source, protocol.permuted_within(labels, people, rng), people, seed, penalty["pretrained"]
        ).predict(target[held])
        for _ in range(permutations)
    ]
    majority = np.full(right.shape, max(classes, key=lambda c: int(np.sum(labels == c))))
    compared = {
        "majority": averaged([majority]),
        **{name: curves[name, 0] for name in [*signals, "untrained"]},
        "permuted labels": averaged(permuted),
    }
    if kept != asked:
        note += f" Shots {sorted(set(asked) - set(kept))} are left out: someone can give only {most} trials of a class."
    if len(set(people)) < 2 and max(kept):
        note += f" The new person's share of weight is {SHARES[0]}, for one source person cannot tell a better one."
    first = next(iter(signals))
    shown = {"pretrained": "pretrained", "untrained": "untrained"} | {n: "linear" if n == first else n for n in signals}
    return {
        **protocol.result(
            "few_shot",
            "balanced accuracy",
            curves["pretrained", 0],
            1 / len(classes),
            compared,
            train,
            test,
            seed,
            note,
        ),
        "confusion": {"labels": classes, "counts": confusion(right, guesses["pretrained", 0][0], classes).tolist()},
        "curve": [{"shots": k, "model": shown[n], **s.entry()} for (n, k), s in curves.items()],
        "curve_axis": "labelled trials per class of the new person",
        "effect_of_transfer": [{"shots": k, **_effect(who, right, guesses, k, seed).entry()} for k in kept],
        "shares": {shown[name]: {str(k): s for k, s in each.items()} for name, each in shares.items()},
        "windows": {
            "train": train.intervals(),
            "calibration": test.take(np.unique(np.concatenate([rows for k in kept for rows in chosen[k]]))).intervals(),
            "test": test.take(held).intervals(),
        },
    }


def halves(windows: Windows, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """`(window,)` True for the trials that shots come from, and for those that are tested: earlier and later half.

    The cut is made by time (`protocol.rows_in_time`) within each person and class; of an odd number the test half takes
    the middle one. Trials that `sharing` finds are in neither.
    """
    pool = np.zeros(len(windows), bool)
    people, in_time = windows.of("person"), protocol.rows_in_time(windows)
    for person in np.unique(people):
        for label in classes:
            rows = in_time[((people == person) & (windows.label == label))[in_time]]
            pool[rows[: len(rows) // 2]] = True
    return pool & ~sharing(windows, ~pool), ~pool


def sharing(windows: Windows, held: np.ndarray) -> np.ndarray:
    """`(window,)` True where less than twice the filters' reach lies to a `held` window of the same segment."""
    out = np.zeros(len(windows), bool)
    for r in np.unique(windows.recording):
        stored, rows = windows.recordings[r], np.flatnonzero(windows.recording == r)
        gap = np.ceil(2 * stored.reach_s * rate(stored) - 1e-6)
        start, stop = windows.start[rows], windows.start[rows] + windows.samples[rows]
        segment = protocol.segment(stored, start)
        for s in np.unique(segment):
            mine = np.flatnonzero(segment == s)
            kept = mine[held[rows[mine]]]
            order = kept[np.argsort(start[kept], kind="stable")]
            latest = np.r_[-np.inf, np.maximum.accumulate(stop[order])]
            out[rows[mine]] = latest[np.searchsorted(start[order], stop[mine] + gap)] > start[mine] - gap
    return out


def tune(
    features: np.ndarray, labels: np.ndarray, people: np.ndarray, shots: Sequence[int], seed: int, at_most: int = 6
) -> dict[int, float]:
    """The best share of weight for the new person at each k, found among the source people alone."""
    names = order(people.tolist(), seed)
    total = {k: np.zeros(len(SHARES)) for k in shots if k}
    for name in names[:at_most] if len(names) > 1 and total else []:
        inner, outer = people != name, np.flatnonzero(people == name)
        if set(labels[inner]) != set(labels):
            continue
        fitted = protocol.fit_linear(features[inner], labels[inner], people[inner], seed)
        own = labels[outer]
        for k, sums in total.items():
            rows = drawn(own, np.full(own.shape, name), np.ones(own.shape, bool), k, seed)
            rest = np.setdiff1d(np.arange(len(own)), rows)
            if any(np.sum(own == c) < 2 * k for c in set(labels)):
                continue
            shot, test = outer[rows], features[outer[rest]]
            for i, share in enumerate(SHARES):
                model = refit(fitted, features[inner], labels[inner], features[shot], labels[shot], share)
                sums[i] += balanced_accuracy(own[rest], model.predict(test))
    return {k: SHARES[int(np.argmax(t))] for k, t in total.items()}


def refit(
    fitted: Pipeline, source: np.ndarray, labels: np.ndarray, shots: np.ndarray, shot_labels: np.ndarray, share: float
) -> Pipeline:
    """The source's classifier refitted with a new person's trials, which get `share` of the weight.

    Scaling and penalty stay those of the source; the coefficients start from the source's, unless a class is new.
    """
    scaler: StandardScaler = fitted[0]
    classifier = deepcopy(fitted[-1]).set_params(warm_start=bool(np.isin(shot_labels, fitted[-1].classes_).all()))
    rows = len(labels) + len(shot_labels)
    weight = np.r_[
        np.full(len(labels), (1 - share) * rows / len(labels)),
        np.full(len(shot_labels), share * rows / len(shot_labels)),
    ]
    x = scaler.transform(np.concatenate([source, shots]))
    with protocol.threads().limit(limits=1):
        classifier.fit(x, np.concatenate([labels, shot_labels]), sample_weight=weight)
    return make_pipeline(scaler, classifier)


def _predicted(
    fitted: Pipeline, source: np.ndarray, labels: np.ndarray, target: np.ndarray, truth: np.ndarray,
    people: np.ndarray, held: np.ndarray, rows: np.ndarray, share: float,
) -> np.ndarray:  # fmt: skip
    """Labels of the held trials; each person's classifier has seen the trials `rows` of that person and no other's."""
    if not len(rows):
        return fitted.predict(target[held])
    out = np.empty(truth.shape, truth.dtype)
    for person in np.unique(people):
        shot, test = rows[people[rows] == person], held & (people == person)
        out[test] = refit(fitted, source, labels, target[shot], truth[shot], share).predict(target[test])
    return out[held]


def drawn(labels: np.ndarray, people: np.ndarray, pool: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Row numbers of up to `k` trials per class and person, at random from `pool`."""
    rng = np.random.default_rng(seed)
    found = [
        rng.permutation(np.flatnonzero(pool & (people == person) & (labels == label)))[:k]
        for person in np.unique(people)
        for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(found))


def _effect(people: np.ndarray, true: np.ndarray, guesses: dict, k: int, seed: int) -> protocol.Scored:
    """Pretrained minus untrained, on the same trials after the same shots."""

    def gain(truth: np.ndarray, pair: np.ndarray) -> float:
        return balanced_accuracy(truth, pair[:, 0]) - balanced_accuracy(truth, pair[:, 1])

    pairs = zip(guesses["pretrained", k], guesses["untrained", k], strict=True)
    return protocol.mean_scored(
        [protocol.scored(gain, people, true, np.stack(pair, axis=1), seed) for pair in pairs], seed
    )
