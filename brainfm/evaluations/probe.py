"""Linear probe: a classifier on frozen pooled encodings of labelled windows, balanced accuracy per subject."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from brainfm.evaluations import baselines, protocol
from brainfm.evaluations.protocol import Scored
from brainfm.metrics import balanced_accuracy, confusion
from brainfm.shards.read import Windows
from brainfm.statistics import permutation_p
from brainfm.training.checkpoint import Pretrained


def run(
    model: Pretrained,
    train: Windows,
    test: Windows,
    *,
    seed: int,
    linear: str | Sequence[str] = "log_band_power",
    permutations: int = 20,
) -> dict:
    """Fit on the training windows, score on the test windows.

    Baselines under the same protocol: the majority class, each linear model of the signals, the network untrained, and
    the network's encodings with training labels permuted within each person. `p` compares the score with that of test
    labels permuted within each person, 999 times, for the same predictions.

    Args:
        model: the network, not changed.
        train, test: labelled windows; the two sides share no recording.
        seed: of folds, untrained weights, permutations and bootstrap.
        linear: features of the signals, see `baselines.of_signals`.
        permutations: of the training labels, averaged, at the penalty of the true ones: where classes lie far apart one
            permutation finds nearly all or nearly none.

    Raises:
        ValueError: where the classes of the two sides differ.
    """
    classes = protocol.classes_of(train, test)
    people, other = train.of("person"), test.of("person")
    labels, truth = train.label.astype(str), test.label.astype(str)

    def score(
        features: tuple[np.ndarray, np.ndarray], taught: np.ndarray = labels, penalty: float | None = None
    ) -> tuple[Scored, np.ndarray, float]:
        fitted = protocol.fit_linear(features[0], taught, people, seed, penalty)
        guess = fitted.predict(features[1])
        return protocol.scored(balanced_accuracy, other, truth, guess, seed), guess, fitted[-1].C

    encoded = (model.features(train), model.features(test))
    main, guess, penalty = score(encoded)
    signals, note = baselines.of_signals(linear, train, test)
    fresh = model.untrained(seed)
    majority = max(classes, key=lambda c: int(np.sum(labels == c)))
    rng = np.random.default_rng(seed)
    permuted = [score(encoded, protocol.permuted_within(labels, people, rng), penalty)[0] for _ in range(permutations)]
    compared = {
        "majority": protocol.scored(balanced_accuracy, other, truth, np.full(truth.shape, majority), seed),
        **{name: score(features)[0] for name, features in signals.items()},
        "untrained": score((fresh.features(train), fresh.features(test)))[0],
        "permuted labels": protocol.mean_scored(permuted, seed),
    }
    null = [_mean_over(other, protocol.permuted_within(truth, other, rng), guess) for _ in range(999)]
    return {
        **protocol.result(
            "probe", "balanced accuracy", main, 1 / len(classes), compared, train, test, seed, note
        ),
        "p": permutation_p(main.score, np.array(null)),
        "confusion": {"labels": classes, "counts": confusion(truth, guess, classes).tolist()},
    }  # fmt: skip


def _mean_over(people: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean([balanced_accuracy(true[people == p], predicted[people == p]) for p in np.unique(people)]))
