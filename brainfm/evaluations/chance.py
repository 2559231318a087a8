"""What chance may do with the labels of scored windows, how easily it then does as well, and what bootstraps resample.

Guesses of neighbouring windows are alike. Where labels were drawn anew for each trial this does no harm; where they
come in long stretches, a guess that drifts is often right for a whole stretch, and windows that were permuted one by
one would make that look like skill. So what is exchanged is what the experiment could have had otherwise:

| over | where | exchanged |
|---|---|---|
| `trials` | labels alternate about as often as in a random order | windows, within each recording |
| `trials` | each window of a recording is a segment of its own | windows, within each recording |
| `stretches` | labels come in runs, fewer than a random order has in 5 % of cases | runs, within each recording |
| `people` | each recording is one condition, as rest or task | signs of people's scores above chance |

Segments of their own are those of archives of single trials: nothing is known of the time between them, and a file may
be sorted by class. Beside recordings whose labels come in runs each such window counts as a run.

Runs keep their length and label, and their order is drawn. Where two runs of one label may follow each other the null
is a little wide, for the two count as one run in the truth: the test is then on the safe side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln

from brainfm.evaluations import protocol
from brainfm.evaluations.protocol import Scored
from brainfm.shards.read import Windows
from brainfm.statistics import Metric, permutation_p, sign_flip_p, smallest_p

PERMUTATIONS = 999
#: The level of a test. One whose p cannot be so small leaves its question open, whatever the guesses.
LEVEL = 0.05
#: Standard deviations below the number of runs in a random order from which on labels come in runs: 5 % of cases.
FEW_RUNS = -1.645


@dataclass(frozen=True)
class Design:
    """How the labels of scored windows lie in time.

    Attributes:
        over: "trials", "stretches" or "people", see above.
        recordings: rows of each recording, both in order of time. runs: of each recording, how long its runs are, one
            window each where nothing is known of the time between them.
    """

    over: str
    recordings: list[np.ndarray]
    runs: list[np.ndarray]

    @classmethod
    def of(cls, windows: Windows, truth: np.ndarray) -> Design:
        """That of windows with these class numbers or names `(window,)`."""
        rows = [np.flatnonzero(windows.recording == r) for r in protocol.recordings_in_time(windows)]
        rows = [own[np.argsort(windows.start[own], kind="stable")] for own in rows]
        edges = [np.r_[0, np.flatnonzero(truth[own][1:] != truth[own][:-1]) + 1, len(own)] for own in rows]
        runs = [np.diff(e) for e in edges]
        if protocol.confounded(windows.recording, truth):
            return cls("people", rows, runs)
        known = [i for i, own in enumerate(rows) if not _single_trials(windows, own)]
        apart = _runs_apart(truth, [rows[i] for i in known], [runs[i] for i in known])
        runs = [own if i in known else np.ones(own.sum(), int) for i, own in enumerate(runs)]
        return cls("stretches" if apart < FEW_RUNS else "trials", rows, runs)

    @property
    def order(self) -> np.ndarray:
        """All rows, recording after recording, in order of time."""
        return np.concatenate(self.recordings)

    @property
    def block(self) -> int:
        """Neighbouring windows that a bootstrap keeps together: the mean run, at most half of all, or one."""
        if self.over == "trials":
            return 1
        return max(1, min(round(float(np.mean(np.concatenate(self.runs)))), len(self.order) // 2))

    def permuted(self, truth: np.ndarray, n: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each recording its rows and their labels `(permutation, row)` in `n` other orders."""
        for rows, size, label in self._exchanged(truth):
            drawn = rng.permuted(np.tile(np.arange(len(size)), (n, 1)), axis=1).ravel()
            yield rows, np.repeat(label[drawn], size[drawn]).reshape(n, len(rows))

    def least(self, truth: np.ndarray, people: int, n: int) -> float:
        """The smallest p that guesses can have, those that are all right: of `people` signs, or of `n` orders."""
        if self.over == "people":
            return smallest_p(people)
        names = np.unique(truth, return_inverse=True)[1]
        exchanged = (np.stack([size, label]) for _, size, label in self._exchanged(names))
        return least_of((np.unique(x, axis=1, return_counts=True)[1] for x in exchanged), n)

    def _exchanged(self, truth: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each recording its rows, and length and label of what is exchanged in it."""
        for rows, runs in zip(self.recordings, self.runs, strict=True):
            size = np.ones(len(rows), int) if self.over == "trials" else runs
            yield rows, size, truth[rows][np.cumsum(size) - size]


@dataclass(frozen=True)
class Null:
    """The truth of each person's windows and what chance makes of it.

    Attributes:
        over: as in `Design`. chance: what guessing scores. classes: how many there are.
        least: the smallest p that its orders allow, see `Design.least`.
        rows: person → rows. truth: person → `(1 + permutation, row)` class numbers, the true ones first; of "people"
            these alone. signs: `(permutation, person)` for "people".
    """

    over: str
    chance: float
    classes: int
    least: float
    rows: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]
    signs: np.ndarray

    @classmethod
    def of(cls, windows: Windows, truth: np.ndarray, classes: int, seed: int, n: int = PERMUTATIONS) -> Null:
        """That of scored windows with these class numbers `(window,)`."""
        design, rng, people = Design.of(windows, truth), np.random.default_rng(seed), windows.of("person")
        names = np.unique(people).tolist()
        rows = {name: np.flatnonzero(people == name) for name in names}
        count = 1 if design.over == "people" else 1 + n
        drawn = {name: np.tile(truth[own].astype(np.int16), (count, 1)) for name, own in rows.items()}
        if count > 1:
            for own, labels in design.permuted(truth.astype(np.int16), n, rng):
                name = people[own[0]]
                drawn[name][1:, np.searchsorted(rows[name], own)] = labels
        signs = rng.choice((-1.0, 1.0), size=(n, len(names)))
        least = design.least(truth, len(names), n)
        return cls(design.over, 1 / classes, classes, least, rows, drawn, signs)

    def scores(self, guess: np.ndarray) -> np.ndarray:
        """Balanced accuracy `(person, 1 + permutation, cell)` of class numbers `(window, cell)`, the true one first."""
        found = []
        for number, (name, rows) in enumerate(self.rows.items()):
            own, truth = guess[rows], self.truth[name]
            recalls = []
            for c in np.unique(truth[0]):
                hits = (truth == c).astype(np.float32) @ (own == c).astype(np.float32)  # whole numbers, so exact
                recalls.append(hits.astype(float) / np.sum(truth[0] == c))
            each = np.mean(recalls, axis=0)
            if self.over == "people":
                each = self.chance + np.r_[1.0, self.signs[:, number]][:, None] * (each - self.chance)
            found.append(each)
        return np.stack(found)


def least_of(alike: Iterable[np.ndarray], n: int) -> float:
    """The p to expect of `n` drawn orders where the true one alone scores best.

    Args:
        alike: of each recording how many of the things exchanged are equal, kind by kind; where these change places
            the order is the true one again.
    """
    log = sum(float(np.sum(gammaln(count + 1)) - gammaln(np.sum(count) + 1)) for count in alike)
    return float((1 + n * np.exp(log)) / (1 + n))


class ByChance(NamedTuple):
    """How easily chance does as well: p, what it exchanges, and the smallest p that its orders allow."""

    p: float
    over: str
    least: float

    def entry(self) -> dict:
        """As it stands in a result."""
        return {"p": self.p, "p_over": self.over, "p_least": self.least}

    def note(self) -> str:
        """A sentence where even guesses that are all right would leave the question open; "" elsewhere."""
        return few_orders(self.least, self.over)


def few_orders(least: float, over: str) -> str:
    """That sentence, of the smallest p and what is exchanged; "" where p can reach `LEVEL`."""
    if least <= LEVEL:
        return ""
    return f" p cannot fall below {least:.3f} here, however good the guesses: too few {over} to exchange."


def by_chance(
    windows: Windows, truth: np.ndarray, guess: np.ndarray, classes: int, seed: int, n: int = PERMUTATIONS
) -> ByChance:
    """How easily chance does as well as these class numbers, and over what: "trials", "stretches" or "people".

    Over trials and stretches one-sided, by the mean over people of their balanced accuracy. Over people two-sided and
    exact for few of them (`statistics.sign_flip_p`), which few people cannot make small.

    Args:
        windows: that are scored. truth, guess: `(window,)` class numbers. classes: how many there are.
        seed: of what is drawn. n: permutations.
    """
    null = Null.of(windows, truth, classes, seed, n)
    each = null.scores(guess[:, None])[..., 0]
    if null.over == "people":
        return ByChance(sign_flip_p(each[:, 0] - null.chance, seed=seed), null.over, null.least)
    mean = each.mean(axis=0)
    return ByChance(permutation_p(mean[0], mean[1:]), null.over, null.least)


def scored(metric: Metric, windows: Windows, truth: np.ndarray, guess: np.ndarray, seed: int) -> Scored:
    """`protocol.scored` of labelled windows; where one person is all there is, the interval resamples mean runs.

    Args:
        metric: of truth `(window,)` and guess `(window, ...)`. windows: that are scored. seed: of the bootstrap.
    """
    design = Design.of(windows, truth)
    order = design.order
    return protocol.scored(metric, windows.of("person")[order], truth[order], guess[order], seed, design.block)


def _single_trials(windows: Windows, rows: np.ndarray) -> bool:
    """Whether these rows of one recording, more than one, lie each in a segment of its own."""
    stored = windows.recordings[windows.recording[rows[0]]]
    return len(rows) > 1 and len(np.unique(protocol.segment(stored, windows.start[rows]))) == len(rows)


def _runs_apart(truth: np.ndarray, recordings: list[np.ndarray], runs: list[np.ndarray]) -> float:
    """Runs above those of a random order, all recordings together, in standard deviations (Mood 1940, Annals of Math.
    Statistics 11); 0 where every order has as many."""
    above = variance = 0.0
    for rows, own in zip(recordings, runs, strict=True):
        n, size = float(len(rows)), np.unique(truth[rows], return_counts=True)[1].astype(float)
        square, cube = np.sum(size**2), np.sum(size**3)
        above += len(own) - (n * (n + 1) - square) / n
        if n > 1:
            variance += (square * (square + n * (n + 1)) - 2 * n * cube - n**3) / (n**2 * (n - 1))
    return above / np.sqrt(variance) if variance > 0 else 0.0
