"""Decode behaviour from few labelled seconds: a network that learnt the responses first, against one from scratch.

Every window of the training side shows its responses, also where behaviour is not known or is left out. Of a share of
the others behaviour is known too, one stretch that starts anywhere. On the same labelled windows are taught: the
network that learnt responses before ("separate" in the words of the Neuroformer paper, Antoniades et al. 2024,
arXiv:2311.00136), the same from fresh weights, one from fresh weights that learns responses and behaviour together
("joint"), and a ridge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from brainfm import catalog
from brainfm.evaluations import baselines, blocks, continuous, place_decoder, protocol
from brainfm.evaluations.continuous import Fitting, Unlabelled
from brainfm.evaluations.regression import block_of, traces, with_target
from brainfm.metrics import r2
from brainfm.shards.read import Windows
from brainfm.shards.stored import rate
from brainfm.training.batches import Batcher
from brainfm.training.checkpoint import Pretrained

#: Percent of the labelled time → steps of teaching.
STEPS: Mapping[float, int] = {1: 100, 5: 200, 10: 200, 100: 600}


def run(
    model: Pretrained,
    train: Windows,
    test: Windows,
    *,
    seed: int,
    target: str = "velocity",
    at: str = "end",
    blocks_of_time: int = 0,
    gap_s: float | None = None,
    moving: float = 0.0,
    labelled: Mapping[float, int] = STEPS,
    draws: int = 3,
    test_every: int = 1,
    objectives: dict[str, dict[str, Any] | None] | None = None,
    unlabelled_steps: int = 0,
    joint_steps: int = 0,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.01,
    linear_bins: int = 6,
    bin_s: float = 0.05,
) -> dict:
    """R2 of the covariate over the share of the training time in which it is known.

    `score` and `baselines` are at the largest share; `curve` has all. "encodings" is a ridge on what the network that
    learnt responses encodes before it is taught. `effect_of_transfer` is "pretrained" minus "from scratch", `joint`
    "joint" minus "pretrained", paired within windows and draws.

    Args:
        model: the network, not changed; neurons that it does not know get fresh rows.
        train, test: windows of the same people; those of `test` are scored.
        seed: of draws, fresh weights, batches and bootstrap.
        target: name of the covariate. at: "end" or "centre" of the window: when it is to be known.
        blocks_of_time: cut each recording as the evaluation `blocks` does, score each block and train on the others;
            0 where the two sides are different recordings.
        gap_s, moving: as in `blocks`.
        labelled: percent of the training windows, in order of time, that are labelled → steps of teaching the network.
        draws: of the labelled stretch, each nested over the shares; scores are averaged over them. One at 100 %.
        test_every: score one of so many test windows in a row: windows that overlap tell little more.
        objectives: name → keywords of what teaches responses, for `unlabelled_steps` before the labels.
        joint_steps: steps of joint training on top of those with labels, as many as the other network had on
            responses; 0 leaves it out. It costs most, so it is done for the first draw alone.
        batch_size, learning_rate, weight_decay: of all fits.
        linear_bins, bin_s: spike history of the ridge; of a sampled signal it sees the whole window.

    Raises:
        ValueError: for shares outside 0 to 100, a recording on both sides without blocks, people who are on one side
            only, or a network that has seen what is to be scored.
        KeyError: for a covariate that the recordings do not have.
    """
    if not labelled or not all(0 < p <= 100 for p in labelled):
        raise ValueError(f"labelled {dict(labelled)}; give percent above 0, up to 100, with steps for each")
    responses = train
    train, taught = with_target(train, target, at)
    responses = responses.take(np.isin(responses.of("id"), train.of("id")))
    test, truth = with_target(test, target, at)
    if moving:
        train, taught = blocks.moving_only(train, taught, target, moving)
        test, truth = blocks.moving_only(test, truth, target, moving)
    test, truth = test.take(np.arange(0, len(test), test_every)), truth[::test_every]
    protocol.unseen(test, model.card)
    cuts, shown = (
        blocks.folds(x, test, blocks_of_time, gap_s) if blocks_of_time else whole(x, test) for x in (train, responses)
    )
    made = [catalog.load_class("objectives", n)(**(k or {})) for n, k in (objectives or {}).items()]
    if joint_steps and not made:
        raise ValueError(f"joint_steps {joint_steps} without `objectives`; name those that teach the responses")
    how = Fitting(0, batch_size, learning_rate, weight_decay)
    people, other, all_people = train.of("person"), test.of("person"), responses.of("person")
    fresh = model.untrained(seed)
    is_place = target == "position" and truth.shape[1] <= 2
    guesses = Guesses(truth.shape)

    for number, ((fit, scored), (seen, _)) in enumerate(zip(cuts, shown, strict=True)):
        for person in np.unique(other[scored]):
            a, b = fit[people[fit] == person], scored[other[scored] == person]
            here, there = train.take(a), test.take(b)
            spikes, once = Unlabelled(responses.take(seen[all_people[seen] == person]), made), seed + number
            starts = {
                name: continuous.knowing(net, here, seed)
                for name, net in (("pretrained", model), ("from scratch", fresh))
            }
            if made and unlabelled_steps:
                continuous.pretext(starts["pretrained"], spikes, replace(how, steps=unlabelled_steps), once)
            linear = {
                "encodings": (starts["pretrained"].features(here), starts["pretrained"].features(there)),
                "ridge": history(here, there, bin_s, linear_bins),
            }
            counts = history(here, there, float(here.samples[0]) / rate(here.used[0]), 1)
            for percent, steps in labelled.items():
                for draw in range(1 if percent == 100 else draws):
                    rows = stretch(len(a), percent, np.random.default_rng([seed, number, draw]))
                    own, y, key = here.take(rows), taught[a[rows]], (percent, draw)
                    for name in (*starts, *(["joint"] if joint_steps and draw == 0 else [])):
                        together = name == "joint"
                        copy = starts["from scratch" if together else name].copy()
                        many = replace(how, steps=steps + joint_steps * together)
                        beside = spikes if together else None
                        readout = continuous.tuned(copy, own, y, many, once, name=target, at=at, beside=beside)
                        guesses.say(name, *key, b, continuous.predicted(copy, readout, there))
                    for name, (x, x_test) in linear.items():
                        guesses.say(name, *key, b, protocol.fit_ridge(x[rows], y).predict(x_test))
                    guesses.say("mean", *key, b, np.broadcast_to(y.mean(axis=0), (len(b), y.shape[1])))
                    if is_place:
                        guesses.say("naive Bayes", *key, b, place_decoder.fit(counts[0][rows], y).predict(counts[1]))

    inside = np.sort(np.concatenate([rows for _, rows in cuts]))
    who, right = other[inside], truth[inside]
    found = {k: guesses.stacked(*k, inside) for k in guesses.said()}
    size = block_of(len(inside))
    curves = {k: protocol.scored(over_draws, who, right, g, seed, size) for k, g in found.items()}
    most = max(labelled)
    compared = {name: s for (name, percent), s in curves.items() if percent == most}
    main = compared.pop("pretrained")

    def less(one: str, than: str) -> list[dict]:
        draws_of = {p: min(found[n, p].shape[2] for n in (one, than)) for p in labelled}
        pairs = {p: np.stack([found[n, p][..., :d] for n in (one, than)], axis=-1) for p, d in draws_of.items()}
        return [{"shots": p, **protocol.scored(gain, who, right, g, seed, size).entry()} for p, g in pairs.items()]

    each = [np.sum(people[fit] == p) for fit, _ in cuts for p in np.unique(other)]
    seconds = float(np.mean(each)) * spacing(train)
    taken = ", ".join(f"{n} at {p:g} %" for p, n in labelled.items())
    sight = "the window" if any(s.sfreq for s in train.used) else f"the last {linear_bins * bin_s:g} s"
    joint = f"; joint training has {joint_steps} more, and the first stretch alone" if joint_steps else ""
    note = (
        f"100 % are {seconds:.0f} s of behaviour, one value every {spacing(train):g} s; random stretches of "
        f"less: {draws}. Steps on responses alone: {unlabelled_steps * bool(made)} beside those of the model's own "
        f"training. Steps with labels: {taken}{joint}. The ridge sees {sight}."
    )
    sides = [(responses.take(a), test.take(b)) for a, b in shown]
    known = train.take([]) if blocks_of_time else responses
    return {
        **protocol.result("few_labels", "R2", main, 0.0, compared, known, test.take(inside), seed, note),
        "curve": [
            {"shots": p, "model": name, **s.entry(), "draws": by_draw(right, found[name, p]),
             **({"median_error": median_error(right, found[name, p])} if is_place else {})}
            for (name, p), s in curves.items() if name != "mean"
        ],
        "curve_axis": f"percent of {seconds:.0f} s whose {target} is known",
        "effect_of_transfer": less("pretrained", "from scratch"),
        **({"joint_minus_separate": less("joint", "pretrained")} if joint_steps else {}),
        "same_people": True,
        **({"median_error": {n: median_error(right, found[n, most]) for n in ("pretrained", *compared)}}
           if is_place else {}),
        **({"folds": [{"train": a.intervals(), "val": {}, "test": b.intervals()} for a, b in sides],
            "within_session": True} if blocks_of_time else {}),
        "traces": traces(test.take(inside), right, found["pretrained", most][..., 0], target, at),
    }  # fmt: skip


@dataclass
class Guesses:
    """Predictions by method, percent and draw, gathered over folds and people.

    Attributes:
        shape: `(window, column)` of the test side.
    """

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        self.found: dict[tuple[str, float], dict[int, np.ndarray]] = {}

    def say(self, name: str, percent: float, draw: int, rows: np.ndarray, guess: np.ndarray) -> None:
        """Keep what a method says of these test windows."""
        draws = self.found.setdefault((name, percent), {})
        draws.setdefault(draw, np.full(self.shape, np.nan))[rows] = guess

    def said(self) -> list[tuple[str, float]]:
        """Method and percent of all that was said, by method."""
        names = dict.fromkeys(name for name, _ in self.found)
        return sorted(self.found, key=lambda k: (list(names).index(k[0]), k[1]))

    def stacked(self, name: str, percent: float, rows: np.ndarray) -> np.ndarray:
        """`(row, column, draw)`."""
        return np.stack([g[rows] for g in self.found[name, percent].values()], axis=-1)


def whole(train: Windows, test: Windows) -> list[blocks.Cut]:
    """One cut: all of the training side, all of the test side, which are different recordings of the same people.

    Raises:
        ValueError: for a recording on both sides, or people on one side only.
    """
    both = {s.id for s in train.used} & {s.id for s in test.used}
    if both:
        raise ValueError(f"{min(both)} is on both sides; choose other sessions to test, or give `blocks_of_time`")
    lone = set(test.of("person").tolist()) ^ set(train.of("person").tolist())
    if lone:
        raise ValueError(f"{min(lone)} is on one side only; each person needs labelled and test sessions")
    return [(np.arange(len(train)), np.arange(len(test)))]


def stretch(windows: int, percent: float, rng: np.random.Generator) -> np.ndarray:
    """Rows of one stretch of `percent` of the windows, two at least, that starts anywhere and goes on at the start."""
    count = min(windows, max(2, round(windows * percent / 100)))
    return np.sort((int(rng.integers(windows)) + np.arange(count)) % windows)


def history(train: Windows, test: Windows, bin_s: float, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Binned counts of the end of each window of both sides, of one person; of a sampled signal all its samples."""
    both = Windows.join([train, test])
    if any(s.sfreq for s in both.used):
        found = Batcher()(both).signal().flatten(1).numpy()
    else:
        found = baselines.binned_counts(both, bin_s, bins)
    return found[: len(train)], found[len(train) :]


def spacing(windows: Windows) -> float:
    """Seconds from one window to the next, as most are."""
    stored, rows = windows.used[0], windows.recording == windows.recording[0]
    return float(np.median(np.diff(np.sort(windows.start[rows])))) / rate(stored)


def over_draws(true: np.ndarray, predicted: np.ndarray) -> float:
    """Mean R2 over draws of `(row, column)` truth and `(row, column, draw)` predictions."""
    return float(np.mean(by_draw(true, predicted)))


def by_draw(true: np.ndarray, predicted: np.ndarray) -> list[float]:
    """R2 of each draw."""
    return [r2(true, predicted[..., d]) for d in range(predicted.shape[2])]


def gain(true: np.ndarray, pair: np.ndarray) -> float:
    """How much higher the mean R2 of the first of two is, `(row, column, draw, 2)`."""
    return over_draws(true, pair[..., 0]) - over_draws(true, pair[..., 1])


def median_error(true: np.ndarray, predicted: np.ndarray) -> float:
    """Median distance of predicted and true place over windows, in the covariate's unit, the mean over draws."""
    return float(np.median(np.linalg.norm(predicted - true[..., None], axis=1), axis=0).mean())
