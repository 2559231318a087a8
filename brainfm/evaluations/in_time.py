"""Time-resolved decoding: a classifier for each short window of the trials, and each tried at all other times.

King & Dehaene 2014, Characterizing the dynamics of mental representations: the temporal generalization method,
https://doi.org/10.1016/j.tics.2014.01.002. A square of high scores is a state that lasts, a diagonal a chain of states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from mne.decoding import GeneralizingEstimator, SlidingEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from brainfm import splits
from brainfm.evaluations import chance, protocol
from brainfm.evaluations.methods.trials import Trials
from brainfm.metrics import balanced_accuracy
from brainfm.shards.read import Windows
from brainfm.statistics import bootstrap_ci, permutation_p
from brainfm.training.batches import WindowDataset
from brainfm.training.checkpoint import Pretrained, evaluating, in_order

#: What is decoded from beside the pooled encodings of short windows.
SIGNALS, POWER, TOKENS = "mean signal (linear)", "log power (linear)", "tokens, which see the whole trial"


class Fold(NamedTuple):
    """Rows of all trials: who is fitted and who is scored."""

    fit: np.ndarray
    test: np.ndarray


def run(
    model: Pretrained,
    train: Windows,
    test: Windows,
    *,
    seed: int,
    length_s: float = 0.5,
    step_s: float = 0.25,
    tmin_s: float = 0.0,
    blocks: int = 0,
    gap_s: float = 1.0,
    penalty: float = 0.01,
    permutations: int = 5,
) -> dict:
    """Decode from short windows of every trial, one classifier for each; the score is the mean over the times.

    Features are pooled encodings of the short windows, so that nothing outside of them can enter. Beside them stand
    the mean and the log power of the signals in the same windows, the network untrained, training labels permuted
    within each person, and, where the network has a token for each time, its tokens: those look at the whole trial.

    Args:
        model: the network, not changed.
        train, test: labelled trials of one length.
        seed: of untrained weights, permutations and bootstrap.
        length_s, step_s: of the short windows. tmin_s: start of the trials relative to their events, to label time.
        blocks: 0 fits on `train` and scores `test`. 2 or more leave `train` aside: each person of `test` is decoded by
            themselves, every block of time by the others.
        gap_s: with blocks, seconds between what is fitted and what is scored; twice the filters' reach where longer.
        penalty: inverse penalty of the logistic regressions on standardised features, the same for all.
        permutations: of the training labels, averaged.

    Raises:
        ValueError: for trials of several lengths, short windows that are longer than they, or unequal classes; without
            blocks, where a test person trains or pretraining saw them, and with blocks, where it saw what is scored.
    """
    classes = protocol.classes_of(train, test)
    if blocks:
        protocol.unseen(test, model.card)
    else:
        protocol.strangers(train, test, model.card)
    both = test if blocks else Windows.join([train, test])
    trials = Trials(both, seed)
    folds = within(both, blocks, gap_s) if blocks else [Fold(np.arange(len(train)), np.arange(len(train), len(both)))]
    rows = np.concatenate([fold.test for fold in folds])
    truth = trials.labels[rows]
    sfreq = trials.signals().sfreq
    start, size = short_windows(both, sfreq, length_s, step_s)
    time = tmin_s + (start + size / 2) / sfreq

    def predicted(features: np.ndarray, labels: np.ndarray = trials.labels, across: bool = True) -> np.ndarray:
        found = [decoded(features, labels, fold, penalty, across) for fold in folds]
        return np.concatenate(found)

    signals = trials.signals().values
    forms = {
        "pretrained": encoded(model, both, start, size),
        "untrained": encoded(model.untrained(seed), both, start, size),
        SIGNALS: sliced(signals, start, size, lambda x: x.mean(axis=-1)),
        POWER: sliced(signals, start, size, lambda x: np.log(x.var(axis=-1) + 1e-12)),
    }
    guessed = {name: predicted(features) for name, features in forms.items()}
    diagonal = {name: np.diagonal(guess, axis1=1, axis2=2) for name, guess in guessed.items()}
    at = {name: (time, guess) for name, guess in diagonal.items()}
    if (tokens := token_steps(model, both)) is not None:
        when = tmin_s + (np.arange(tokens.shape[2]) + 0.5) * both.samples[0] / sfreq / tokens.shape[2]
        at[TOKENS] = (when, predicted(tokens, across=False))
    asked = both.take(rows)
    null = chance.Null.of(asked, truth, len(classes), seed)
    summary = {name: chance.scored(mean_over_time, asked, truth, guess, seed) for name, (_, guess) in at.items()}
    rng = np.random.default_rng(seed)
    shuffled = [
        chance.scored(
            mean_over_time, asked, truth,
            predicted(forms["pretrained"], protocol.permuted_within(trials.labels, trials.people, rng), False), seed,
        )
        for _ in range(permutations)
    ]  # fmt: skip
    majority = [np.full(len(f.test), np.bincount(trials.labels[f.fit]).argmax()) for f in folds]
    baselines = {
        "majority": chance.scored(balanced_accuracy, asked, truth, np.concatenate(majority), seed),
        **{name: one for name, one in summary.items() if name not in ("pretrained", TOKENS)},
        **({"permuted labels": protocol.mean_scored(shuffled, seed)} if shuffled else {}),
    }
    compared = ("pretrained", SIGNALS, POWER)
    maps = {name: _map(guessed[name], null) for name in compared}
    names = [f"{t:.2f} s" for t in time]
    taught = Windows.join([both.take(fold.fit) for fold in folds]) if blocks else train
    said = {
        **protocol.result(
            "in_time", "balanced accuracy", summary["pretrained"], 1 / len(classes), baselines, taught, test, seed,
            f"A classifier for each short window of {length_s:g} s, every {step_s:g} s; the score is their mean. "
            + trials.signals().note + chance.few_orders(null.least, null.over),
        ),
        "in_time": {
            "unit": "s",
            "curves": [
                _curve(name, when, asked, truth, guess, null, seed) for name, (when, guess) in at.items()
            ],
            "p_over": null.over,
            "generalisation_threshold": {name: float(limit + 1 / len(classes)) for name, (_, limit) in maps.items()},
        },
        "matrices": [
            {
                "title": f"{name}: fitted at (row), tried at (column)", "values": values.tolist(), "rows": names,
                "columns": names,
                "note": "Balanced accuracy above chance, which reaches "
                f"{maps['pretrained'][1]:.2f} anywhere in the first matrix in 5 % of cases.",
            }
            for name, (values, _) in maps.items()
        ],
    }  # fmt: skip
    if blocks:
        empty: dict = {}
        sides = [(both.take(f.fit).intervals(), both.take(f.test).intervals()) for f in folds]
        said["folds"] = [{"train": a, "val": empty, "test": b} for a, b in sides]
        said |= {"within_session": True, "same_people": True, "windows": {"train": {}, "test": test.intervals()}}
    return said


def within(windows: Windows, blocks: int, gap_s: float) -> list[Fold]:
    """Folds inside each person: sessions one after the other, cut into `blocks` of time.

    Between what is fitted and what is scored lie `gap_s`, or twice the longest `reach_s` of the person's recordings
    where that is longer.
    """
    folds = []
    people = windows.of("person")
    for person in np.unique(people):
        rows = np.flatnonzero(people == person)
        begin, spans = 0.0, list[tuple[int, float, float]]()
        gap = max(gap_s, *(2 * stored.reach_s for stored in windows.take(rows).used))
        for r in protocol.recordings_in_time(windows.take(rows)):  # they are laid end to end, a gap between them
            stored = windows.recordings[r]
            own = windows.recording[rows] == r
            first = windows.start[rows][own] / stored.sfreq + begin
            spans += zip(rows[own], first, first + windows.samples[rows][own] / stored.sfreq, strict=True)
            begin = first.max() + windows.samples[rows][own].max() / stored.sfreq + gap
        order = np.array([row for row, _, _ in spans])
        cut = splits.blocks_of_time([(float(a), float(b)) for _, a, b in spans], blocks, gap)
        folds += [Fold(order[np.array(fit)], order[np.array(scored)]) for fit, scored in cut]
    lacking = [f for f in folds if len(np.unique(windows.label[f.fit])) < len(np.unique(windows.label))]
    if lacking:
        raise ValueError(
            f"{len(lacking)} of {len(folds)} blocks leave a class untrained: classes follow each other in time; take "
            "fewer blocks, or decode across people (blocks: 0)"
        )
    return folds


def short_windows(windows: Windows, sfreq: float, length_s: float, step_s: float) -> tuple[np.ndarray, int]:
    """First samples `(step,)` of the short windows in a trial, and their length in samples.

    Raises:
        ValueError: for trials of several lengths, or shorter than one short window.
    """
    lengths = np.unique(windows.samples)
    size, step = round(length_s * sfreq), max(1, round(step_s * sfreq))
    if len(lengths) != 1 or not 1 <= size <= lengths[0]:
        raise ValueError(
            f"trials of {', '.join(f'{n / sfreq:g}' for n in lengths[:4])} s and short windows of {length_s:g} s; "
            "expected trials of one length that hold a short window: change trials: or length_s"
        )
    return np.arange(0, int(lengths[0]) - size + 1, step), size


def encoded(model: Pretrained, windows: Windows, start: np.ndarray, size: int) -> np.ndarray:
    """`(trial, feature, step)` pooled encodings of the short windows of each trial, each by itself."""
    n = np.full(len(windows), size)
    parts = [
        Windows(windows.recordings, windows.recording, windows.start + a, n, windows.label, windows.stimulus)
        for a in start
    ]
    return np.stack([model.features(part) for part in parts], axis=2)


def sliced(
    signals: np.ndarray, start: np.ndarray, size: int, describe: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """`(trial, channel, step)`: `describe` of each short window `(trial, channel, time)` of the signals."""
    return np.stack([describe(signals[..., a : a + size]) for a in start], axis=2)


def token_steps(model: Pretrained, windows: Windows, size: int = 64) -> np.ndarray | None:
    """`(trial, feature, step)` of a network with one token for each patch of time; None for other networks."""
    device, found = next(model.model.parameters()).device, []
    with torch.inference_mode(), evaluating(model.model):
        for batch in in_order(WindowDataset(windows, model.batcher()), size):
            tokens = model.model.encode(batch.to(device)).tokens
            if batch.grid is None or tokens.shape[1] != batch.grid[1] or tokens.shape[1] < 2:
                return None
            found.append(tokens.float().cpu().numpy().transpose(0, 2, 1))
    return np.concatenate(found)


def decoded(features: np.ndarray, labels: np.ndarray, fold: Fold, penalty: float, across: bool) -> np.ndarray:
    """Class numbers `(row, fitted at, tried at)` of the scored rows; without `across` `(row, step)`.

    Args:
        features: `(trial, feature, step)`. labels: `(trial,)` class numbers. fold: who is fitted, who is scored.
        penalty: as in `run`. across: try each classifier at all times and not only its own.
    """
    kind = GeneralizingEstimator if across else SlidingEstimator
    estimator = kind(_classifier(penalty), n_jobs=1, verbose="error")
    with protocol.threads().limit(limits=1):
        estimator.fit(features[fold.fit], labels[fold.fit])
        return estimator.predict(features[fold.test])


def _classifier(penalty: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000))


def mean_over_time(truth: np.ndarray, guess: np.ndarray) -> float:
    """Balanced accuracy of `(row,)` against `(row, step)`, the mean over the steps."""
    return float(np.mean([(guess[truth == c] == c).mean() for c in np.unique(truth)]))


def _curve(
    name: str, time: np.ndarray, windows: Windows, truth: np.ndarray, guess: np.ndarray, null: chance.Null, seed: int
) -> dict:
    """Score by time with its interval, and p against the best time of chance: no correction is left to do.

    Where people's signs are flipped p is two-sided: the best time is the one farthest from chance.
    """
    each = null.scores(guess)
    mean = each[:, 0].mean(axis=0)
    strength = each.mean(axis=0) - null.chance
    strength = np.abs(strength) if null.over == "people" else strength
    best = strength[1:].max(axis=1)
    if len(each) > 1:
        ends = [bootstrap_ci(each[:, 0, step], seed=seed) for step in range(len(time))]
    else:
        ends = [chance.scored(balanced_accuracy, windows, truth, guess[:, step], seed).ci for step in range(len(time))]
    return {
        "model": name, "time": time.tolist(), "score": mean.tolist(), "ci": [list(pair) for pair in ends],
        "p": [permutation_p(value, best) for value in strength[0]],
    }  # fmt: skip


def _map(guess: np.ndarray, null: chance.Null) -> tuple[np.ndarray, float]:
    """Score above chance `(fitted at, tried at)`, and what the best cell of chance has in 5 % of cases."""
    each = null.scores(guess.reshape(len(guess), -1)).mean(axis=0) - null.chance
    return each[0].reshape(guess.shape[1:]), float(np.quantile(each[1:].max(axis=1), 0.95))
