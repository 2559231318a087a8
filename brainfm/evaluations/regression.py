"""Decode a continuous covariate, such as the velocity of a hand, from encodings of windows: a ridge per person.

Each person's decoder is fitted on that person's training windows and scored on its test windows by R2, columns equally.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from brainfm.evaluations import baselines, protocol
from brainfm.metrics import r2
from brainfm.shards.read import Windows
from brainfm.shards.stored import rate
from brainfm.training import new_animal
from brainfm.training.checkpoint import Pretrained

#: Training features and target `(row, ...)`, and features to answer for → `(row, column)`.
Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def run(
    model: Pretrained,
    train: Windows,
    test: Windows,
    *,
    seed: int,
    target: str = "velocity",
    at: str = "end",
    linear_bins: int = 6,
    bin_s: float = 0.05,
) -> dict:
    """Fit and score the decoders of everyone who is on both sides.

    Baselines under the same protocol: the training mean; ridge ("binned counts") and the Wiener filter, which has no
    penalty, on the history of binned spike counts; the network untrained; and the network's encodings with the training
    target shifted circularly by half. Where the network reads the covariate out itself, and was taught a recording of
    everyone, "own read-out" is what it answers at the window's end, with nothing fitted.

    Args:
        model: the network, not changed.
        train, test: windows of different sessions of the same people.
        seed: of untrained weights and bootstrap.
        target: name of the covariate.
        at: "end" or "centre" of the window: when the covariate is to be known.
        linear_bins: bins of spike history before the window's end for the linear decoder.
        bin_s: length of these bins in seconds.

    Raises:
        ValueError: where nobody is on both sides, or the network was trained on what is to be scored.
        KeyError: for a covariate that the recordings do not have.
    """
    train, taught = with_target(train, target, at)
    test, truth = with_target(test, target, at)
    people, other = train.of("person"), test.of("person")
    shared = sorted(set(people.tolist()) & set(other.tolist()))
    if not shared or set(other.tolist()) - set(shared):
        raise ValueError(
            f"training has {sorted(set(people.tolist()))} and test {sorted(set(other.tolist()))}; each test person "
            "needs training windows of its own: split by session"
        )
    protocol.unseen(test, model.card)
    fresh = model.untrained(seed)
    block = block_of(len(truth))

    def score(
        features: tuple[np.ndarray, np.ndarray], known: np.ndarray, fit: Fit = ridge
    ) -> tuple[protocol.Scored, np.ndarray]:
        guess = decoded(features, known, people, other, fit)
        return protocol.scored(r2, other, truth, guess, seed, block), guess

    encoded = (model.features(train), model.features(test))
    main, guess = score(encoded, taught)
    shifted = taught.copy()
    for person in shared:
        rows = people == person
        shifted[rows] = np.roll(taught[rows], int(rows.sum()) // 2, axis=0)
    history = _counts(train, test, shared, bin_s, linear_bins)
    flat = (np.zeros((len(train), 1)), np.zeros((len(test), 1)))
    compared = {
        "mean": score(flat, taught)[0],
        "binned counts": score(history, taught)[0],
        "Wiener": score(history, taught, least_squares)[0],
        "untrained": score((fresh.features(train), fresh.features(test)), taught)[0],
        "time-shifted": score(encoded, shifted)[0],
    }
    if at == "end" and target in getattr(model.model, "standard", ()):
        own = {x.rsplit("/", 2)[0] for x in new_animal.taught(model, target)}
        if own >= set(shared):
            guessed = new_animal.predicted(model, test, target)
            compared["own read-out"] = protocol.scored(r2, other, truth, guessed, seed, block)
    note = f"The linear decoders see the last {linear_bins * bin_s:g} s of each window's spikes in {linear_bins} bins."
    return {
        **protocol.result("regression", "R2", main, 0.0, compared, train, test, seed, note),
        "traces": traces(test, truth, guess, target, at),
    }


def with_target(windows: Windows, name: str, at: str = "end") -> tuple[Windows, np.ndarray]:
    """The windows where the covariate is known, in order of time, and its values there, `(window, column)`.

    The value at a window's end is that of the last sample of the covariate inside the window. Recordings without the
    covariate are left out.

    Raises:
        KeyError: where no recording has the covariate, with the names that exist.
        ValueError: for another word than "end" or "centre", or where no window has a value.
    """
    if at not in ("end", "centre"):
        raise ValueError(f"a target is read at 'end' or 'centre' of a window; got {at!r}")
    windows = windows.take(protocol.rows_in_time(windows))
    used = np.unique(windows.recording)
    having = [r for r in used if name in windows.recordings[r].aligned_names] or list(used[:1])
    values: np.ndarray | None = None
    for r in having:
        stored, rows = windows.recordings[r], np.flatnonzero(windows.recording == r)
        series = stored.aligned(name)
        if values is None:
            values = np.full((len(windows), series.values.shape[1]), np.nan)
        part = 1.0 if at == "end" else 0.5
        seconds = (windows.start[rows] + part * windows.samples[rows]) / rate(stored)
        index = np.ceil((seconds - series.start) * series.sfreq - 1e-6).astype(int) - 1
        inside = (index >= 0) & (index < len(series.values))
        values[rows[inside]] = series.values[index[inside]]
    if values is None or not (known := np.isfinite(values).all(axis=1)).any():
        raise ValueError(f"none of {len(windows)} windows has a value of {name!r} at its {at}; choose other windows")
    return windows.take(known), values[known]


def decoded(
    features: tuple[np.ndarray, np.ndarray], known: np.ndarray, people: np.ndarray, other: np.ndarray, fit: Fit
) -> np.ndarray:
    """`(test window, column)` predictions of each person's own linear regression."""
    out = np.zeros((len(features[1]), known.shape[1]))
    for person in np.unique(other):
        rows, tested = people == person, other == person
        out[tested] = fit(features[0][rows], known[rows], features[1][tested])
    return out


def ridge(x: np.ndarray, y: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    """Linear regression, its penalty chosen over contiguous blocks of rows."""
    return protocol.fit_ridge(x, y).predict(x_test)


def least_squares(x: np.ndarray, y: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    """Linear regression without a penalty: on lagged counts the Wiener filter."""
    mean, level = x.mean(axis=0), y.mean(axis=0)
    one = (x - mean).astype(float)
    with protocol.threads().limit(limits=1):
        return (x_test - mean) @ (np.linalg.pinv(one.T @ one, hermitian=True) @ (one.T @ (y - level))) + level


def block_of(windows: int) -> int:
    """Neighbouring windows to resample together: the square root of how many there are."""
    return max(1, round(windows**0.5))


def _counts(train: Windows, test: Windows, people: list[str], bin_s: float, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Binned counts of each person's own neurons; columns that a person does not have are zero."""
    both = Windows.join([train, test])
    who = both.of("person")
    parts = {p: baselines.binned_counts(both.take(who == p), bin_s, bins) for p in people}
    out = np.zeros((len(both), max(x.shape[1] for x in parts.values())), np.float32)
    for person, found in parts.items():
        out[who == person, : found.shape[1]] = found
    return out[: len(train)], out[len(train) :]


def traces(
    test: Windows, truth: np.ndarray, guess: np.ndarray, name: str, at: str, length_s: float = 10.0
) -> list[dict]:
    """The first `length_s` seconds of the first test recording, true and predicted, a trace per column."""
    first = test.recordings[test.recording[0]]
    series = first.aligned(name)
    seconds = (test.start + (1.0 if at == "end" else 0.5) * test.samples) / rate(first)
    rows = np.flatnonzero((test.recording == test.recording[0]) & (seconds < seconds[0] + length_s))
    return [
        {
            "title": f"{name} {column + 1}, {first.person}",
            "time": seconds[rows].tolist(),
            "true": truth[rows, column].tolist(),
            "predicted": guess[rows, column].tolist(),
            "unit": series.unit,
        }
        for column in range(truth.shape[1])
    ]
