"""What a linear readout sees of a frozen network: its encodings, those of recentred signals, or less of them.

A view is fitted on a side without labels of whom is tested, and describes rows of these or of other trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from brainfm.evaluations.methods import alignment
from brainfm.evaluations.methods.trials import Side, Signals
from brainfm.recording import TYPICAL
from brainfm.tokens import TokenBatch
from brainfm.training.batches import ArrayDataset
from brainfm.training.checkpoint import Pretrained


class Batches(Protocol):
    """A dataset of whole batches."""

    def __len__(self) -> int: ...

    def __getitems__(self, rows: list[int]) -> TokenBatch: ...


class Shown(Protocol):
    """What an adaptation mode sees of trials: `trials.Trials`, or what a `Decoder` was given (`brainfm/given.py`)."""

    classes: list[str]
    labels: np.ndarray
    people: np.ndarray

    def __len__(self) -> int: ...

    def signals(self) -> Signals:
        """Windows of shared channels."""

    def batches(self, model: Pretrained) -> Batches:
        """All windows as batches of the model."""

    def features(self, model: Pretrained) -> np.ndarray:
        """`(window, feature)` pooled encodings."""


class View(Protocol):
    """How rows become vectors. `note` says what was done without labels, "" where nothing was."""

    @property
    def encoder(self) -> Pretrained:
        """The network."""

    @property
    def note(self) -> str:
        """A sentence."""

    def fit(self, trials: Shown, side: Side) -> View:
        """Fitted on what the side allows; this one is not changed."""

    def of(self, trials: Shown, rows: np.ndarray) -> np.ndarray:
        """`(row, feature)`."""

    def state(self) -> tuple[dict[str, np.ndarray], list[str]]:
        """What was fitted, as arrays, and names of people that belong to them."""

    def restored(self, arrays: dict[str, np.ndarray], names: Sequence[str]) -> View:
        """As it was when `state` gave these."""


def known(trials: Shown, side: Side) -> np.ndarray:
    """`(window,)` True for rows whose signals may be used without labels.

    Of each person: the side's `unlabelled` rows where there are some; else those that train; else all (transductive).
    """
    unlabelled, taught, out = (np.zeros(len(trials), bool) for _ in range(3))
    unlabelled[side.unlabelled] = True
    taught[side.taught] = True
    for person in np.unique(trials.people):
        own = trials.people == person
        out |= next((own & rows for rows in (unlabelled, taught) if (own & rows).any()), own)
    return out


@dataclass(frozen=True)
class Pooled:
    """Pooled encodings as they are."""

    encoder: Pretrained
    note: str = ""

    def fit(self, trials: Shown, side: Side) -> Pooled:
        """Nothing is fitted."""
        return self

    def of(self, trials: Shown, rows: np.ndarray) -> np.ndarray:
        """`(row, feature)`."""
        return trials.features(self.encoder)[rows]

    def state(self) -> tuple[dict[str, np.ndarray], list[str]]:
        """Nothing."""
        return {}, []

    def restored(self, arrays: dict[str, np.ndarray], names: Sequence[str]) -> Pooled:
        """Itself."""
        return self


@dataclass(frozen=True)
class Erased:
    """Pooled encodings without the axes that tell the training people apart, see `alignment.Erasure`."""

    encoder: Pretrained
    erasure: alignment.Erasure | None = None
    note: str = "What tells the training people apart linearly is erased from encodings (LEACE)."

    def fit(self, trials: Shown, side: Side) -> Erased:
        """Find the axes within each class, so that a class that one person has alone is not erased.

        Raises:
            Unfit: for fewer than two training people.
        """
        rows = side.taught
        x = trials.features(self.encoder)[rows]
        return replace(self, erasure=alignment.Erasure.fit(x, trials.people[rows], trials.labels[rows]))

    def of(self, trials: Shown, rows: np.ndarray) -> np.ndarray:
        """`(row, feature)`."""
        x = trials.features(self.encoder)[rows]
        return x if self.erasure is None else self.erasure.apply(x)

    def state(self) -> tuple[dict[str, np.ndarray], list[str]]:
        """The erasure's arrays."""
        return ({} if self.erasure is None else dict(vars(self.erasure))), []

    def restored(self, arrays: dict[str, np.ndarray], names: Sequence[str]) -> Erased:
        """With these arrays."""
        return replace(self, erasure=alignment.Erasure(**arrays))


@dataclass(frozen=True)
class Centred:
    """Pooled encodings centred and scaled by each person's own rows, see `alignment.statistics`.

    Attributes:
        maps: person → `(2, feature)`, what is subtracted and what the rest is multiplied by.
    """

    encoder: Pretrained
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    note: str = "Each person's encodings are centred and scaled by rows of theirs without labels."

    def fit(self, trials: Shown, side: Side) -> Centred:
        """The maps of everybody."""
        rows = np.flatnonzero(known(trials, side))
        return replace(self, maps=self._maps(trials, rows, {}))

    def knowing(self, trials: Shown) -> Centred:
        """With the maps of the people of these trials, whose labels are not used."""
        return replace(self, maps={**self.maps, **self._maps(trials, np.arange(len(trials)), self.maps)})

    def of(self, trials: Shown, rows: np.ndarray) -> np.ndarray:
        """`(row, feature)`; strangers are centred by all of their rows in these trials."""
        people, x = trials.people[rows], trials.features(self.encoder)[rows].astype(float)
        strange = np.flatnonzero(np.isin(trials.people, sorted(set(people.tolist()) - set(self.maps))))
        maps = {**self.maps, **(self._maps(trials, strange, self.maps) if len(strange) else {})}
        for name in np.unique(people):
            shift, factor = maps[name]
            own = people == name
            x[own] = (x[own] - shift) * factor
        return x

    def _maps(self, trials: Shown, rows: np.ndarray, before: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of the people in `rows`, read off where the map takes zeros and ones.

        People `before` stand in with two rows that have their mean and deviation: few rows of a new person are filled
        up by the averages over people.
        """
        x, people = trials.features(self.encoder)[rows].astype(float), trials.people[rows].astype(str)
        names = np.unique(people)
        ends = np.stack([np.zeros(x.shape[1]), np.ones(x.shape[1])])
        others = [shift + sign / factor for n, (shift, factor) in before.items() if n not in names for sign in (-1, 1)]
        stand_in = np.repeat([f"before {n}" for n in before if n not in names], 2)
        values = np.concatenate([x, np.tile(ends, (len(names), 1)), np.reshape(others, (-1, x.shape[1]))])
        who = np.concatenate([people, np.repeat(names, 2), stand_in.astype(str)])
        seen = np.r_[np.arange(len(x)), np.arange(len(x) + 2 * len(names), len(values))]
        moved = alignment.statistics(values, who, seen)[len(x) :]
        found = {}
        for i, name in enumerate(names.tolist()):
            zero, one = moved[2 * i], moved[2 * i + 1]
            factor = one - zero
            found[name] = np.stack([-zero / factor, factor])
        return found

    def state(self) -> tuple[dict[str, np.ndarray], list[str]]:
        """The maps `(person, 2, feature)`."""
        return _stacked(self.maps)

    def restored(self, arrays: dict[str, np.ndarray], names: Sequence[str]) -> Centred:
        """With these maps."""
        return replace(self, maps=dict(zip(names, arrays["maps"], strict=True)))


#: Word → how signals are recentred.
SIGNAL_LEVEL = {"euclidean": alignment.euclidean, "riemannian": alignment.riemannian}


@dataclass(frozen=True)
class Whitened:
    """Encodings of signals that were recentred person by person, see `alignment.euclidean` and `riemannian`.

    Attributes:
        word: of `SIGNAL_LEVEL`. maps: person → `(channel, channel)`, by which the signals are multiplied.
        made: encodings of a person's rows that were made, by trials, person and map.
    """

    encoder: Pretrained
    word: str
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    made: dict[tuple, tuple[Shown, np.ndarray]] = field(default_factory=dict, repr=False)
    home: Shown | None = None

    @property
    def note(self) -> str:
        """What is done."""
        return f"Each person's signals are recentred ({self.word}) by rows of theirs without labels."

    def fit(self, trials: Shown, side: Side) -> Whitened:
        """The maps of everybody."""
        seen = known(trials, side)
        return replace(self, maps=self._maps(trials, seen), home=trials)

    def knowing(self, trials: Shown) -> Whitened:
        """With the maps of the people of these trials, whose labels are not used."""
        return replace(self, maps={**self.maps, **self._maps(trials, np.ones(len(trials), bool))})

    def of(self, trials: Shown, rows: np.ndarray) -> np.ndarray:
        """`(row, feature)`; strangers are recentred by all of their rows in these trials."""
        rows, found = np.asarray(rows), {}
        for name in np.unique(trials.people[rows]).tolist():
            own = trials.people == name
            matrix = self.maps[name] if name in self.maps else self._maps(trials, own)[name]
            key = (id(trials), name, matrix.tobytes())
            encoded = self.made[key][1] if key in self.made else self._encoded(trials, np.flatnonzero(own), matrix)
            if trials is self.home:
                self.made[key] = (trials, encoded)
            found[name] = dict(zip(np.flatnonzero(own).tolist(), encoded, strict=True))
        return np.stack([found[trials.people[row]][row] for row in rows.tolist()])

    def _encoded(self, trials: Shown, rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        signals = trials.signals()
        values = matrix.astype(np.float32) @ signals.values[rows]
        return self.encoder.pooled(in_memory(values, signals, self.encoder))

    def _maps(self, trials: Shown, seen: np.ndarray) -> dict[str, np.ndarray]:
        """Of the people who have a row that is seen, read off where the map takes the unit vectors."""
        values = trials.signals().values
        _, channels, samples = values.shape
        unit = np.zeros((-(-channels // samples), channels, samples), np.float32)
        for i in range(channels):
            unit[i // samples, i, i % samples] = 1
        found = {}
        for name in np.unique(trials.people[seen]).tolist():
            own = values[seen & (trials.people == name)]
            who = np.full(len(own) + len(unit), name)
            moved = SIGNAL_LEVEL[self.word](np.concatenate([own, unit]), who, np.arange(len(own)))[len(own) :]
            found[name] = np.concatenate(list(moved), axis=1)[:, :channels]
        return found

    def state(self) -> tuple[dict[str, np.ndarray], list[str]]:
        """The maps `(person, channel, channel)`."""
        return _stacked(self.maps)

    def restored(self, arrays: dict[str, np.ndarray], names: Sequence[str]) -> Whitened:
        """With these maps."""
        return replace(self, maps=dict(zip(names, arrays["maps"], strict=True)))


def in_memory(values: np.ndarray, signals: Signals, encoder: Pretrained) -> ArrayDataset:
    """Signals `(window, channel, time)` in typical amplitudes as batches of the encoder."""
    typical = np.array([TYPICAL[kind] for kind in signals.channels.kind], np.float32)[:, None]
    return ArrayDataset(values * typical, signals.channels, signals.sfreq, encoder.batcher())


def _stacked(maps: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    names = sorted(maps)
    return ({"maps": np.stack([maps[n] for n in names])} if names else {}), names
