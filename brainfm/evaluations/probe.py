"""Linear probe: a classifier on frozen pooled encodings of labelled windows, balanced accuracy per subject."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from brainfm.evaluations import baselines, chance, protocol
from brainfm.evaluations.protocol import Scored
from brainfm.metrics import balanced_accuracy, confusion
from brainfm.shards.read import Windows
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
    the network's encodings with training labels permuted within each person. `p` says how easily chance does as well
    with the same predictions, `p_over` what it exchanges of the test labels, and `p_least` how small p could be at
    best, see `chance.py`.

    Args:
        model: the network, not changed.
        train, test: labelled windows; the two sides share no recording.
        seed: of folds, untrained weights, permutations and bootstrap.
        linear: features of the signals, see `baselines.of_signals`.
        permutations: of the training labels, averaged, at the penalty of the true ones: where classes lie far apart one
            permutation finds nearly all or nearly none.

    Raises:
        ValueError: where the classes of the two sides differ, or the network was trained on what is to be scored.
    """
    classes = protocol.classes_of(train, test)
    protocol.unseen(test, model.card)
    people = train.of("person")
    labels, truth = train.label.astype(str), test.label.astype(str)

    def score(
        features: tuple[np.ndarray, np.ndarray], taught: np.ndarray = labels, penalty: float | None = None
    ) -> tuple[Scored, np.ndarray, float]:
        fitted = protocol.fit_linear(features[0], taught, people, seed, penalty)
        guess = fitted.predict(features[1])
        return chance.scored(balanced_accuracy, test, truth, guess, seed), guess, fitted[-1].C

    encoded = (model.features(train), model.features(test))
    main, guess, penalty = score(encoded)
    signals, note = baselines.of_signals(linear, train, test)
    fresh = model.untrained(seed)
    majority = max(classes, key=lambda c: int(np.sum(labels == c)))
    rng = np.random.default_rng(seed)
    permuted = [score(encoded, protocol.permuted_within(labels, people, rng), penalty)[0] for _ in range(permutations)]
    compared = {
        "majority": chance.scored(balanced_accuracy, test, truth, np.full(truth.shape, majority), seed),
        **{name: score(features)[0] for name, features in signals.items()},
        "untrained": score((fresh.features(train), fresh.features(test)))[0],
        "permuted labels": protocol.mean_scored(permuted, seed),
    }
    right, said = (np.searchsorted(classes, words) for words in (truth, guess))
    by_chance = chance.by_chance(test, right, said, len(classes), seed)
    return {
        **protocol.result(
            "probe", "balanced accuracy", main, 1 / len(classes), compared, train, test, seed,
            note + by_chance.note(),
        ),
        **by_chance.entry(),
        "confusion": {"labels": classes, "counts": confusion(truth, guess, classes).tolist()},
    }  # fmt: skip
