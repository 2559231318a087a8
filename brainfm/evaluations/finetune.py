"""Fine-tuning on some people, scored on others: the pretrained network against others that had the same chances.

The whole network is trained; its tokenizer, where it has one, stays frozen. Fitting windows are of the training people;
a few of these people are spared for early stopping and for the choice of the learning rate. Test people decide nothing.
With `folds` each test person is scored by a network that was also fine-tuned on the test people of the other folds.

The readout is the paper's of BrainOmni (`Hidden`), but its input is standardised by the fitted windows as the network
encodes them before the first step: unit vectors of neighbouring windows differ by a thousandth, and a linear layer on
them learns nothing in hundreds of steps. `standardised=False` is the paper's.

Every neural method gets the same training: as many learning rates to choose from, steps, windows per step and
validations. EEGNet and the linear models see the channels that all recordings share, see `baselines.montage`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from brainfm.evaluations import baselines, protocol
from brainfm.metrics import balanced_accuracy, confusion
from brainfm.models import eegnet
from brainfm.objectives.supervised import Bounded, Hidden, Standardised, Supervised
from brainfm.recording import Channels
from brainfm.shards.read import Windows
from brainfm.splits import order
from brainfm.tokens import Facts
from brainfm.training import checkpoint
from brainfm.training.batches import ArrayDataset, Batcher, WindowDataset
from brainfm.training.checkpoint import Pretrained
from brainfm.training.finetuning import Labelled, Tokenized, Tuned, Tuning, finetune, predict
from brainfm.training.runs import cut_in_time

#: Share of the training people, or of their time where they are fewer than `FEW`, that is spared for validation.
SPARED, FEW = 0.2, 4
#: EEGNet has no readout apart: its one rate is so many times that of a pretrained network, as the readout's is.
READOUT_FACTOR = 10.0


class Fold(NamedTuple):
    """Rows of the windows that are fitted, that decide when to stop, and that are scored."""

    fit: np.ndarray
    val: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Method:
    """A network to fine-tune.

    Attributes:
        network: where it starts; not changed. trials: all windows as its batches.
        readout: width of the pooled encoding → what gives logits.
        factor: its learning rates are so many times those that are given. readout_factor: the readout's, times more.
        standardised: whether the readout's input is standardised.
    """

    network: Pretrained
    trials: Any
    readout: Callable[[int], nn.Module]
    factor: float = 1.0
    readout_factor: float = READOUT_FACTOR
    standardised: bool = True


def run(
    model: Pretrained,
    train: Windows,
    test: Windows,
    *,
    seed: int,
    folds: int = 0,
    learning_rates: Sequence[float] = (3e-5, 1e-4, 3e-4),
    steps: int = 120,
    batch_size: int = 32,
    validations: int = 12,
    patience: int = 5,
    weight_decay: float = 0.05,
    standardised: bool = True,
    linear: str | Sequence[str] = ("log_band_power", "tangent_space"),
) -> dict:
    """Fine-tune on the training people, score people that neither this nor pretraining has seen.

    Baselines under the same splits: the network untrained; untrained over the trained tokenizer, where it has one;
    EEGNet; a linear probe of the network as it was pretrained; linear models of the signals; the majority class; and
    the pretrained network fine-tuned on labels permuted within each person.

    Args:
        model: a network of the catalogue with `encode`; not changed.
        train: labelled windows of the training people. test: of other people.
        seed: of who is spared, folds, untrained weights, steps and bootstrap.
        folds: score the test people in so many groups, each by training on the others' too; 0 trains once.
        learning_rates: the network's, to choose from by validation among the training people; the readout's are ten
            times as high, as EEGNet's are.
        steps, batch_size, validations, patience, weight_decay: see `finetuning.Tuning`.
        standardised: standardise what the networks' readouts get; EEGNet has batch norm for it.
        linear: features of the signals, see `baselines.of_signals`.

    Raises:
        ValueError: where a person is on both sides or was pretrained on, the classes of the sides differ, or there are
            fewer test people than folds.
    """
    classes = protocol.classes_of(train, test)
    protocol.strangers(train, test, model.card)
    windows, known = Windows.join([train, test]), np.arange(len(train))
    asked = np.arange(len(train), len(windows))
    parts = folded(windows, known, asked, folds, seed)
    first = parts[0] if not folds else Fold(*spared(windows, known, seed), asked[:0])
    tuning = Tuning(
        steps, batch_size, weight_decay=weight_decay, beta2=0.99, validations=validations, patience=patience
    )
    methods = _methods(model, windows, classes, standardised, seed)
    guesses, rates, kept = _tuned(methods, windows, classes, first, parts, learning_rates, tuning, seed)
    described, note = baselines.of_signals(linear, train, test)
    features = {"probe": model.features(windows), **{k: np.concatenate(pair) for k, pair in described.items()}}
    guesses |= _linear(features, windows, classes, parts, seed)

    who, truth = test.of("person"), test.label.astype(str)
    scored = {k: protocol.scored(balanced_accuracy, who, truth, guess, seed) for k, guess in guesses.items()}
    named = ("majority", *described, "probe", *list(methods)[1:], "permuted labels")
    tried = ", ".join(f"{rate:g}" for rate in learning_rates)
    said = (
        f"Learning rates: {len(learning_rates)} tried for each network ({tried}; readouts and EEGNet "
        f"{READOUT_FACTOR:g} times those), chosen by validation people of the training side; at most {steps} steps of "
        f"{batch_size} windows, stopped early by validation people."
    )
    own = guesses["pretrained"]
    return {
        **protocol.result(
            "finetune", "balanced accuracy", scored["pretrained"], 1 / len(classes), {k: scored[k] for k in named},
            train, test, seed, f"{said} {note}",
        ),
        "confusion": {"labels": classes, "counts": confusion(truth, own, classes).tolist()},
        "differences": {k: _gain(who, truth, own, guesses[k], seed).entry() for k in named},
        "learning_rates": rates,
        "steps": kept,
        "folds": [
            {side: windows.take(rows).intervals() for side, rows in zip(("train", "val", "test"), fold, strict=True)}
            for fold in parts
        ],
    }  # fmt: skip


def _tuned(
    methods: dict[str, Method], windows: Windows, classes: Sequence[str], first: Fold, parts: Sequence[Fold],
    rates: Sequence[float], tuning: Tuning, seed: int,
) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, list[int]]]:  # fmt: skip
    """Every method at the rate that the fold `first` chooses, and the first of them once more on permuted labels.

    Returns:
        By name: classes of all test windows in order; the rates; the steps whose weights were kept, by fold.
    """
    labels = windows.label.astype(str)
    number = np.searchsorted(classes, labels)
    chances: dict[str, list[np.ndarray]] = {}
    chosen: dict[str, float] = {}
    kept: dict[str, list[int]] = {}
    for name, method in methods.items():
        chosen[name], tried = choose(method, first, number, rates, tuning, seed)
        own = replace(tuning, learning_rate=chosen[name])
        done = [tried] if parts[0] is first else [tune(method, fold, number, own, seed) for fold in parts]
        kept[name], chances[name] = [tuned.step for tuned, _ in done], [chance for _, chance in done]
    name = next(iter(methods))
    rng = np.random.default_rng(seed)
    shuffled = np.searchsorted(classes, protocol.permuted_within(labels, windows.of("person"), rng))
    own = replace(tuning, learning_rate=chosen[name])
    chances["permuted labels"] = [tune(methods[name], fold, shuffled, own, seed)[1] for fold in parts]
    words = np.array(classes)
    return {k: _in_order(parts, [words[x.argmax(1)] for x in found]) for k, found in chances.items()}, chosen, kept


def _linear(
    features: dict[str, np.ndarray], windows: Windows, classes: Sequence[str], parts: Sequence[Fold], seed: int
) -> dict[str, np.ndarray]:
    """Classes of all test windows in order: of a linear readout of each `(window, feature)`, and the majority's."""
    people, labels = windows.of("person"), windows.label.astype(str)
    taught = [np.sort(np.concatenate([fold.fit, fold.val])) for fold in parts]
    found = {
        name: [
            protocol.fit_linear(x[rows], labels[rows], people[rows], seed).predict(x[fold.test])
            for rows, fold in zip(taught, parts, strict=True)
        ]
        for name, x in features.items()
    }
    most = [max(classes, key=lambda c, rows=rows: int(np.sum(labels[rows] == c))) for rows in taught]  # type: ignore[misc]
    found["majority"] = [np.full(len(fold.test), word) for fold, word in zip(parts, most, strict=True)]
    return {name: _in_order(parts, guesses) for name, guesses in found.items()}


def _in_order(parts: Sequence[Fold], guesses: Sequence[np.ndarray]) -> np.ndarray:
    """What each fold says of its test windows, in the order of all test windows."""
    return np.concatenate(guesses)[np.argsort(np.concatenate([fold.test for fold in parts]))]


def _gain(people: np.ndarray, truth: np.ndarray, own: np.ndarray, other: np.ndarray, seed: int) -> protocol.Scored:
    """Balanced accuracy minus that of another method, paired within people."""

    def gain(true: np.ndarray, pair: np.ndarray) -> float:
        return balanced_accuracy(true, pair[:, 0]) - balanced_accuracy(true, pair[:, 1])

    return protocol.scored(gain, people, truth, np.stack([own, other], axis=1), seed)


def _methods(
    model: Pretrained, windows: Windows, classes: Sequence[str], standardised: bool, seed: int
) -> dict[str, Method]:
    """What is fine-tuned, by name, the pretrained network first."""
    signals = WindowDataset(windows, model.batcher())
    coded = Tokenized.fits(model.model)

    def readout(width: int) -> nn.Module:
        return Hidden(width, len(classes), model.model.dim)

    def method(network: Pretrained, trials: Any = None) -> Method:
        own = trials or (Tokenized(network.model, signals) if coded else signals)
        return Method(network, own, readout, standardised=standardised)

    found = {"pretrained": method(model), "untrained": method(model.untrained(seed))}
    if coded:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            second = checkpoint.build(model.config, model.facts, deepcopy(model.model.codebook))
        found["untrained over the trained tokenizer"] = method(
            replace(model, model=second.eval()), found["pretrained"].trials
        )
    network, trials = scratch(windows, seed)
    found["EEGNet"] = Method(network, trials, lambda width: Bounded(width, len(classes)), READOUT_FACTOR, 1.0, False)
    return found


def scratch(windows: Windows, seed: int) -> tuple[Pretrained, ArrayDataset]:
    """EEGNet with fresh weights, and the channels that all recordings share as its batches, cut to one length."""
    shared: np.ndarray | None = None
    samples = int(windows.samples.min())
    for rows, weights, signal in baselines.shared_signals(windows):
        found = (weights.astype(np.float32) @ signal)[..., :samples]
        if shared is None:
            shared = np.zeros((len(windows), *found.shape[1:]), np.float32)
        shared[rows] = found
    if shared is None:
        raise ValueError("no windows to train EEGNet on; choose a shorter window or other recordings")
    sfreq = windows.recordings[windows.recording[0]].sfreq
    table = Channels.make([f"shared {i}" for i in range(shared.shape[1])], "misc")  # in typical amplitudes already
    facts = Facts(("eeg",), ("eeg",), sfreq, samples / sfreq, shared.shape[1])
    config = {"kind": "models", "name": "eegnet", "keywords": eegnet.SIZES["local"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = eegnet.build(facts, **eegnet.SIZES["local"]).eval()
    return Pretrained(network, config, facts), ArrayDataset(shared, table, sfreq, Batcher(patch=network.patch))


def choose(
    method: Method, fold: Fold, labels: np.ndarray, rates: Sequence[float], tuning: Tuning, seed: int
) -> tuple[float, tuple[Tuned, np.ndarray]]:
    """The learning rate of the lowest validation loss, and what `tune` gave at it."""
    tried = [
        (rate * method.factor, tune(method, fold, labels, replace(tuning, learning_rate=rate * method.factor), seed))
        for rate in rates
    ]
    return min(tried, key=lambda pair: pair[1][0].loss)


def tune(method: Method, fold: Fold, labels: np.ndarray, tuning: Tuning, seed: int) -> tuple[Tuned, np.ndarray]:
    """Fine-tune a copy on the fold; probabilities of its test windows `(window, class)`."""
    network = deepcopy(method.network.model)
    sides = [Labelled(method.trials, rows, labels[rows]) for rows in (fold.fit, fold.val)]
    encoded = torch.from_numpy(method.network.pooled(sides[0]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        readout = method.readout(encoded.shape[1])
    if method.standardised:
        readout = Standardised(readout, encoded)
    objective = Supervised(encoded.shape[1], int(labels.max()) + 1, readout=readout)
    own = replace(tuning, readout_factor=method.readout_factor)
    tuned = finetune(network, objective, sides[0], sides[1], own, seed)
    return tuned, predict(network, objective, method.trials, fold.test)


def folded(windows: Windows, known: np.ndarray, asked: np.ndarray, folds: int, seed: int) -> list[Fold]:
    """The test people in so many groups, each with the people that it may learn from; one group for no fold.

    Args:
        windows: all of them. known, asked: rows of the training and of the test side.
        folds: how many groups. seed: who is in which, and who is spared.

    Raises:
        ValueError: for one fold, or more folds than test people.
    """
    if not folds:
        return [Fold(*spared(windows, known, seed), asked)]
    people = windows.of("person")
    names = order(people[asked].tolist(), seed)
    if not 2 <= folds <= len(names):
        raise ValueError(f"{folds} folds of {len(names)} test people; expected 2 to {len(names)}, or 0 for none")
    found = []
    for group in np.array_split(np.array(names), folds):
        out = np.isin(people[asked], group)
        found.append(Fold(*spared(windows, np.concatenate([known, asked[~out]]), seed), asked[out]))
    return found


def spared(windows: Windows, rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit and rows for validation: of other people, or later in time where there are few people.

    Raises:
        ValueError: where neither leaves every class on both sides.
    """
    people, labels = windows.of("person"), windows.label
    names, classes = order(people[rows].tolist(), seed), set(labels[rows])
    held = names[: max(1, round(SPARED * len(names)))]
    if len(names) >= FEW:
        out = np.isin(people[rows], held)
        if set(labels[rows[out]]) == classes == set(labels[rows[~out]]):
            return rows[~out], rows[out]
    numbered = replace(windows.take(rows), stimulus=rows)  # carries the row numbers through the cut
    fit, val = (part.stimulus.astype(np.int64) for part in cut_in_time(numbered, SPARED))
    if not set(labels[fit]) == classes == set(labels[val]):
        raise ValueError(
            f"{len(names)} training people and {len(rows)} windows leave no validation side with classes "
            f"{', '.join(sorted(classes))}; take more people or longer recordings"
        )
    return fit, val
