"""Decode velocity or position over contiguous blocks of time: one block is scored, the others, less a gap, train.

Neighbouring windows are alike, so a random split would be near interpolation. Each recording is cut into blocks;
between a block and what trains lie at least a window and what filters reach. For every block the network first learns
the spikes of the training blocks without behaviour, then all its weights and a read-out are taught with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from brainfm import catalog
from brainfm.evaluations import baselines, continuous, place_decoder, protocol
from brainfm.evaluations.continuous import Fitting
from brainfm.evaluations.regression import block_of, least_squares, ridge, traces, with_target
from brainfm.metrics import r2
from brainfm.shards.read import Windows
from brainfm.shards.stored import rate
from brainfm.training.checkpoint import Pretrained

#: Rows of the training and of the test windows.
Cut = tuple[np.ndarray, np.ndarray]


def run(
    model: Pretrained,
    train: Windows,
    test: Windows,
    *,
    seed: int,
    target: str = "velocity",
    at: str = "end",
    blocks: int = 5,
    gap_s: float | None = None,
    moving: float = 0.0,
    objectives: dict[str, dict[str, Any] | None] | None = None,
    unlabelled_steps: int = 0,
    steps: int = 600,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.01,
    keep_neurons: Sequence[int] | None = None,
    cells: int | None = None,
    from_scratch: bool = True,
    linear_bins: int = 6,
    bin_s: float = 0.05,
    beside: Sequence[str] = (),
) -> dict:
    """R2 of the covariate over blocks, for the network fine-tuned and for baselines under the same cuts.

    `score` is that of the network as it comes, taught each fold's training blocks; "from scratch" is the same network
    with fresh weights, taught the same; "encodings" is a ridge on what it encodes before it is taught; "untrained"
    is a ridge on a fresh network's encodings. "ridge" and "Wiener" (no penalty) see the history of binned counts,
    "naive Bayes" the counts of the window, where the covariate is a place of one or two axes. "time-shifted" is the
    ridge on encodings with its training target moved round by half. A network that reads the covariate out itself is
    asked, at its own moment, and what it encodes is not looked at; there "time-shifted" is the ridge on counts.

    Args:
        model: the network, not changed; neurons that it does not know get fresh rows.
        train, test: windows of the same recordings; those of `test` are scored, those of `train` fitted.
        seed: of fresh weights, batches and bootstrap.
        target: name of the covariate. at: "end" or "centre" of the window: when it is to be known.
        blocks: of each recording.
        gap_s: seconds between a block and training windows; a window and twice the filters' reach where None.
        moving: leave out windows whose target moves less than this in a second; 0 keeps all.
        objectives: name → keywords of what teaches the network the spikes alone, for `unlabelled_steps`.
        steps: of teaching network and read-out; 0 leaves the ridge on encodings as the score.
        batch_size, learning_rate, weight_decay: of both. keep_neurons, cells: see `continuous.Fitting`.
        from_scratch: whether to train the network with fresh weights as well, which doubles the time.
        linear_bins, bin_s: spike history of the linear decoders.
        beside: covariates that a ridge reads over the same history, each by itself ("ridge on dff"), such as the dF/F
            that events were inferred from.

    Raises:
        ValueError: for fewer than two blocks, people who are on one side only, or a network that has seen what is to be
            scored.
        KeyError: for a covariate that the recordings do not have.
    """
    train, taught = with_target(train, target, at)
    test, truth = with_target(test, target, at)
    if moving:
        (train, taught), (test, truth) = (
            moving_only(w, y, target, moving) for w, y in ((train, taught), (test, truth))
        )
    protocol.unseen(test, model.card)
    cuts = folds(train, test, blocks, gap_s)
    how = Fitting(steps, batch_size, learning_rate, weight_decay, keep_neurons, cells)
    made = [catalog.load_class("objectives", n)(**(k or {})) for n, k in (objectives or {}).items()]
    history = _both(train, test, bin_s, linear_bins)
    others = {name: [covariate_history(w, name, bin_s * linear_bins) for w in (train, test)] for name in beside}
    whole = _both(train, test, float(train.samples[0] / rate(train.recordings[train.recording[0]])), 1)
    is_place = truth.shape[1] <= 2 and target == "position"
    people, other = train.of("person"), test.of("person")
    starts = {"score": model, **({"from scratch": model.untrained(seed)} if from_scratch else {})}
    encodes = not (steps and continuous.reads_out(model, target, at))
    guesses: dict[str, np.ndarray] = {}

    def say(name: str, rows: np.ndarray, guess: np.ndarray) -> None:
        guesses.setdefault(name, np.full(truth.shape, np.nan))[rows] = guess

    for number, (fit, scored) in enumerate(cuts):
        for person in np.unique(other[scored]):
            a, b = fit[people[fit] == person], scored[other[scored] == person]
            y, here, there = taught[a], train.take(a), test.take(b)
            x, x_test, shifted = history[0][a], history[1][b], np.roll(y, len(y) // 2, axis=0)
            for name, start in starts.items():
                copy = continuous.knowing(start, here, seed + number)
                if name == "from scratch" and encodes:
                    say("untrained", b, ridge(copy.features(here), y, copy.features(there)))
                if made and unlabelled_steps:
                    spikes = continuous.Unlabelled(here, made)
                    continuous.pretext(copy, spikes, replace(how, steps=unlabelled_steps), seed + number)
                if name == "score" and encodes:
                    encoded = copy.features(here), copy.features(there)
                    say("encodings", b, ridge(encoded[0], y, encoded[1]))
                    say("time-shifted", b, ridge(encoded[0], shifted, encoded[1]))
                if steps:
                    readout = continuous.tuned(copy, here, y, how, seed + number, name=target, at=at)
                    say(name, b, continuous.predicted(copy, readout, there))
            if not encodes:
                say("time-shifted", b, ridge(x, shifted, x_test))
            say("mean", b, np.broadcast_to(y.mean(axis=0), (len(b), y.shape[1])))
            say("ridge", b, ridge(x, y, x_test))
            say("Wiener", b, least_squares(x, y, x_test))
            for name, (known, asked) in others.items():
                say(f"ridge on {name}", b, ridge(*_filled(known[a], y, asked[b])))
            if is_place:
                say("naive Bayes", b, place_decoder.fit(whole[0][a], y).predict(whole[1][b]))
    every = {"pretrained": guesses.pop("score") if steps else guesses["encodings"], **guesses}
    inside = np.sort(np.concatenate([rows for _, rows in cuts]))
    size = block_of(len(inside))
    found = {n: protocol.scored(r2, other[inside], truth[inside], g[inside], seed, size) for n, g in every.items()}
    main = found.pop("pretrained")
    note = (
        f"{blocks} blocks of time; {len(inside)} of {len(test)} windows lie inside one and are scored, each by "
        f"networks and readouts fitted on the other blocks of its recording ({unlabelled_steps * bool(made)} steps on "
        f"spikes alone, {steps} with the target). Linear decoders see the last {linear_bins * bin_s:g} s."
    )
    sides = [(train.take(a), test.take(b)) for a, b in cuts]
    return {
        **protocol.result("blocks", "R2", main, 0.0, found, train.take([]), test.take(inside), seed, note),
        "folds": [{"train": a.intervals(), "val": {}, "test": b.intervals()} for a, b in sides],
        "within_session": True,
        "per_block": per_block(every, truth, [rows for _, rows in cuts]),
        **({"median_error": _errors(every, truth)} if is_place else {}),
        "traces": traces(test.take(inside), truth[inside], every["pretrained"][inside], target, at),
    }


def folds(train: Windows, test: Windows, blocks: int, gap_s: float | None = None) -> list[Cut]:
    """Rows of training and test windows for each block: block k of every recording is scored together.

    A recording's windows are cut by time, from its first scored sample to its last. A window across a cut is in no
    block. Training windows end a gap before the block or start a gap after it.

    Args:
        gap_s: seconds; the window and twice the recording's `reach_s` where None. At least the latter is kept.

    Raises:
        ValueError: for fewer than two blocks, other recordings on the two sides, or a block that leaves nothing.
    """
    if blocks < 2:
        raise ValueError(f"{blocks} blocks; one is scored while others train, so give two or more")
    ids, tested = (sorted({w.recordings[r].id for r in np.unique(w.recording)}) for w in (train, test))
    if missing := sorted(set(tested) - set(ids)):
        raise ValueError(f"{missing[0]} has test windows and none to train on; choose the same recordings for both")
    of_train, of_test = train.of("id"), test.of("id")
    out = []
    for k in range(blocks):
        fit, scored = np.zeros(len(train), bool), np.zeros(len(test), bool)
        for key in tested:
            rows, own = np.flatnonzero(of_test == key), np.flatnonzero(of_train == key)
            stored = test.recordings[test.recording[rows[0]]]
            start, stop = test.start[rows], test.start[rows] + test.samples[rows]
            edge = np.linspace(start.min(), stop.max(), blocks + 1).round().astype(np.int64)
            inside = (start >= edge[k]) & (stop <= edge[k + 1])
            scored[rows[inside]] = True
            least = 2 * stored.reach_s
            gap_of = max(least, least + test.samples[rows].max() / rate(stored) if gap_s is None else gap_s)
            gap = int(np.ceil(gap_of * rate(stored) - 1e-6))
            begin, end = train.start[own], train.start[own] + train.samples[own]
            fit[own[(end <= edge[k] - gap) | (begin >= edge[k + 1] + gap)]] = True
        if not fit.any() or not scored.any():
            raise ValueError(
                f"block {k + 1} of {blocks} has {int(scored.sum())} test and {int(fit.sum())} training windows; take "
                "fewer blocks, a shorter gap or a longer recording"
            )
        out.append((np.flatnonzero(fit), np.flatnonzero(scored)))
    return out


def per_block(
    guesses: dict[str, np.ndarray], truth: np.ndarray, rows: list[np.ndarray]
) -> dict[str, list[list[float]]]:
    """Method → for each block the R2 of every column."""
    columns = range(truth.shape[1])
    return {
        name: [[r2(truth[part, c], guess[part, c]) for c in columns] for part in rows]
        for name, guess in guesses.items()
    }


def _errors(guesses: dict[str, np.ndarray], truth: np.ndarray) -> dict[str, float]:
    """Median Euclidean error of each method over all scored windows, in the covariate's unit."""
    return {name: float(np.nanmedian(np.linalg.norm(truth - guess, axis=1))) for name, guess in guesses.items()}


def moving_only(windows: Windows, target: np.ndarray, name: str, least: float) -> tuple[Windows, np.ndarray]:
    """Windows over which the covariate goes from start to end by at least `least` a second."""
    kept = np.zeros(len(windows), bool)
    for r in np.unique(windows.recording):
        stored, rows = windows.recordings[r], np.flatnonzero(windows.recording == r)
        series = stored.aligned(name)
        ends = []
        for samples in (windows.start[rows], windows.start[rows] + windows.samples[rows]):
            index = np.floor((samples / rate(stored) - series.start) * series.sfreq).astype(int)
            ends.append(series.values[index.clip(0, len(series.values) - 1)])
        moved = np.linalg.norm(ends[1] - ends[0], axis=1) / (windows.samples[rows] / rate(stored))
        kept[rows] = moved >= least
    if not kept.any():
        raise ValueError(f"no window of {len(windows)} moves by {least:g} a second; lower `moving`")
    return windows.take(kept), target[kept]


def _both(train: Windows, test: Windows, bin_s: float, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Binned counts of the end of each window of both sides."""
    found = baselines.binned_counts(Windows.join([train, test]), bin_s, bins)
    return found[: len(train)], found[len(train) :]


def covariate_history(windows: Windows, name: str, seconds: float) -> np.ndarray:
    """`(window, sample x feature)` of a covariate: its samples that end in the last `seconds` of each window.

    NaN where there is none.

    Raises:
        KeyError: for a covariate that a recording does not have.
        ValueError: where recordings differ in its rate or width, so that columns mean different things, or `seconds`
            hold no sample of it.
    """
    series = {int(r): windows.recordings[r].aligned(name) for r in np.unique(windows.recording)}
    forms = {(x.sfreq, x.values.shape[1]) for x in series.values()}
    if len(forms) != 1:
        said = ", ".join(f"{width} at {sfreq:g} Hz" for sfreq, width in sorted(forms))
        raise ValueError(f"{name!r} has columns and rates that differ between recordings: {said}; decode each alone")
    sfreq, width = forms.pop()
    samples = int(seconds * sfreq + 1e-6)
    if not samples:
        raise ValueError(f"{seconds:g} s of history hold no sample of {name!r} at {sfreq:g} Hz; take more linear_bins")
    out = np.full((len(windows), samples, width), np.nan, np.float32)
    for r, x in series.items():
        rows = np.flatnonzero(windows.recording == r)
        end = (windows.start[rows] + windows.samples[rows]) / rate(windows.recordings[r])
        last = np.floor((end - x.start) * sfreq + 1e-6).astype(int)
        index = last[:, None] + np.arange(-samples, 0)
        there = (index >= 0) & (index < len(x.values))
        out[rows] = np.where(there[:, :, None], x.values[index.clip(0, len(x.values) - 1)], np.nan)
    return out.reshape(len(windows), -1)


def _filled(x: np.ndarray, y: np.ndarray, x_test: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `ridge` takes, with the training mean where a value is missing, 0 where there is none at all."""
    known = np.isfinite(x)
    mean = np.where(known, x, 0.0).sum(axis=0) / known.sum(axis=0).clip(1)
    return np.where(known, x, mean), y, np.where(np.isfinite(x_test), x_test, mean)
