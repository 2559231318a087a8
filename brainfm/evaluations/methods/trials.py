"""What every method of a comparison is given: labelled windows, in each form made once, and who is on which side.

A method is fitted on one `Side` and answers for rows that it has not seen. What it may look at is said by the side and
nothing else: labels of `fit` and `val`, signals without labels of `unlabelled`, and, by `adapted`, labels of a few
trials of one new person.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from brainfm.evaluations import baselines, protocol
from brainfm.evaluations.protocol import Unfit
from brainfm.recording import NO_LABEL, Channels
from brainfm.shards.read import Windows
from brainfm.training.batches import WindowDataset
from brainfm.training.checkpoint import Pretrained
from brainfm.training.finetuning import Tokenized

#: What may be tried of a method: names of its own keywords with their values.
Setting = dict[str, Any]
NO_ROWS = np.zeros(0, np.int64)


class Side(NamedTuple):
    """Rows of the windows by what a method may do with them.

    Attributes:
        fit: labels train. val: of training people; labels decide when to stop and which setting is best.
        test: scored, by a method that has not seen them.
        unlabelled: signals may be used to calibrate a person, labels may not. Never scored; of training people they may
            also be among `fit`.
        shots: of the tested people; labels may be used by that person's own adaptation. Never scored.
    """

    fit: np.ndarray
    val: np.ndarray
    test: np.ndarray
    unlabelled: np.ndarray = NO_ROWS
    shots: np.ndarray = NO_ROWS

    @property
    def taught(self) -> np.ndarray:
        """`fit` and `val` together, in order: what a method that does not stop early trains on."""
        return np.sort(np.concatenate([self.fit, self.val]))


@dataclass(frozen=True)
class Signals:
    """Windows of the channels that all recordings share.

    Attributes:
        values: `(window, channel, time)` float32 in typical amplitudes (`recording.TYPICAL`), of one length.
        sfreq: samples per second. channels: their table, where all recordings have these channels; else regions.
        note: a sentence on what the channels are.
    """

    values: np.ndarray
    sfreq: float
    channels: Channels
    note: str


@dataclass
class Trials:
    """Labelled windows of a comparison.

    Attributes:
        windows: all of them, both sides. seed: of whatever is drawn.
        classes: names, sorted. labels: `(window,)` class number. people: `(window,)` `dataset/subject`.
        whole: windows whose recordings decide which channels are shared; these and, of a `part`, the others.
    """

    windows: Windows
    seed: int = 0
    whole: Windows = field(init=False, repr=False)
    classes: list[str] = field(init=False)
    labels: np.ndarray = field(init=False)
    people: np.ndarray = field(init=False)
    _signals: list[Signals] = field(default_factory=list, repr=False)
    _features: dict[int, tuple[Pretrained, np.ndarray]] = field(default_factory=dict, repr=False)
    _batches: dict[int, tuple[Pretrained, Any]] = field(default_factory=dict, repr=False)
    _once: dict[Hashable, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        words = self.windows.label.astype(str)
        none = sum(word.lower() in NO_LABEL for word in words.tolist())
        if not len(words) or none:
            raise ValueError(
                f"{none} of {len(words)} windows have no label; use labelled trials (`labels:` names them)"
            )
        self.classes = sorted(set(words.tolist()))
        if len(self.classes) < 2:
            raise ValueError(f"all windows have the label {self.classes[0]!r}; a comparison needs two classes or more")
        self.labels = np.searchsorted(self.classes, words)
        self.people = self.windows.of("person")
        self.whole = self.windows

    def __len__(self) -> int:
        return len(self.windows)

    def permuted(self, rng: np.random.Generator) -> Trials:
        """The same windows with labels permuted among those of each person; whatever is made of either is shared."""
        other = copy(self)
        other.labels = protocol.permuted_within(self.labels, self.people, rng)
        return other

    def part(self, rows: np.ndarray) -> Trials:
        """Some of the windows, in the channels and classes of all, as if nothing had been made of them yet."""
        other = copy(self)
        other.windows, other.labels, other.people = self.windows.take(rows), self.labels[rows], self.people[rows]
        other._signals, other._features, other._batches, other._once = [], {}, {}, {}
        return other

    def signals(self) -> Signals:
        """The shared channels of every window, cut to the shortest; made once.

        Raises:
            Unfit: for windows at several rates, or a recording without a good channel.
        """
        if not self._signals:
            baselines.one_rate(self.windows)
            samples, values = int(self.whole.samples.min()), None
            for rows, weights, signal in baselines.shared_signals(self.windows, like=self.whole):
                found = (weights.astype(np.float32) @ signal)[..., :samples]
                if values is None:
                    values = np.zeros((len(self.windows), *found.shape[1:]), np.float32)
                values[rows] = found
            if values is None:
                raise Unfit("no windows to compare on; choose a shorter window or other recordings")
            montage, note = baselines.montage(self.whole)
            number, first = next(iter(montage.items()))
            stored = self.windows.recordings[number]
            if np.all(np.sort(first, axis=1)[:, :-1] == 0):  # rows that pick one channel each
                table = stored.channels.pick(first.argmax(axis=1).tolist())
            else:
                table = Channels.make([f"region {i}" for i in range(len(first))], stored.channels.kind[0])
            self._signals.append(Signals(values, stored.sfreq, table, note))
        return self._signals[0]

    def once(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What `make` gives without looking at labels; made once under this key, and kept."""
        if key not in self._once:
            self._once[key] = make()
        return self._once[key]

    def batches(self, model: Pretrained) -> Any:
        """All windows as a dataset of the model's batches; codes of a frozen tokenizer are made once."""
        if id(model) not in self._batches:
            own = WindowDataset(self.windows, model.batcher())
            made = Tokenized(model.model, own) if Tokenized.fits(model.model) else own
            self._batches[id(model)] = (model, made)
        return self._batches[id(model)][1]

    def features(self, model: Pretrained) -> np.ndarray:
        """`(window, feature)` pooled encodings of the network as it stands; made once."""
        if id(model) not in self._features:
            self._features[id(model)] = (model, model.pooled(self.batches(model)))
        return self._features[id(model)][1]


class Fitted(Protocol):
    """A method after it was fitted."""

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """`(row, class)` probabilities for rows of the trials."""

    def adapted(self, rows: np.ndarray, seed: int) -> Fitted:
        """A copy that has also learnt labelled rows of one new person; this one is not changed."""

    # A comparison says what decoding costs where there are, besides, `on(trials) -> Fitted`, the same for other trials,
    # and `trained`, how many numbers were fitted to labels.


class Method(Protocol):
    """A way to decode.

    Attributes:
        name: as it stands in a result.
        settings: what may be tried, the default first; every method is given the same number of tries.
        stops_early: whether it needs `val` while it is fitted; else it trains on `taught`.
    """

    name: str
    settings: Sequence[Setting]
    stops_early: bool

    def fit(self, trials: Trials, side: Side, setting: Setting, seed: int) -> Fitted:
        """Fit on a side; `side.test` is not looked at."""


def choose(method: Method, trials: Trials, side: Side, tries: int, seed: int) -> tuple[Setting, list[float]]:
    """The setting with the lowest cross-entropy on `side.val`, each class counting equally, and those of all tried.

    A method that does not stop early is fitted on `side.fit` alone here. A setting that diverged, whose loss is not
    finite, is never chosen.

    Raises:
        Unfit: where all settings diverged.
    """
    tried = list(method.settings)[: max(1, tries)]
    if len(tried) == 1:
        return tried[0], []
    inner = Side(side.fit, side.val if method.stops_early else NO_ROWS, NO_ROWS, side.unlabelled)
    losses = [
        protocol.cross_entropy(trials.labels[side.val], method.fit(trials, inner, s, seed).predict_proba(side.val))
        for s in tried
    ]
    known = np.where(np.isfinite(losses), losses, np.inf)
    if np.isinf(known).all():
        raise Unfit(
            f"{method.name} diverged: none of {len(tried)} settings has a finite loss on validation windows; try "
            "smaller learning rates, or look at the signals for values far from typical"
        )
    return tried[int(np.argmin(known))], losses


def finite(chances: np.ndarray) -> np.ndarray:
    """The probabilities `(row, class)` as they are.

    Raises:
        Unfit: where some are not finite, as of a network that diverged.
    """
    bad = int(np.sum(~np.isfinite(chances).all(axis=1)))
    if bad:
        raise Unfit(f"diverged: probabilities of {bad} of {len(chances)} windows are not finite numbers")
    return chances
