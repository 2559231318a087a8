"""Who is in training, validation and test: decided once, from ids alone, before any window or statistic exists."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise


def order(ids: Sequence[str], seed: int) -> list[str]:
    """The distinct ids in a fixed pseudo-random order that depends on each id and the seed, not on the others."""
    return sorted(set(ids), key=lambda x: hashlib.sha256(f"{seed}:{x}".encode()).hexdigest())


def natural(name: str) -> tuple:
    """What names are sorted by so that numbers in them count as numbers; slashes part what is compared in turn.

    >>> sorted(["d/1/pre2/", "d/1/pre/run10", "d/1/pre/run2"], key=natural)
    ['d/1/pre/run2', 'd/1/pre/run10', 'd/1/pre2/']
    """
    parts = [re.split(r"(\d+)", part) for part in name.split("/")]
    return [[int(x) if i % 2 else x for i, x in enumerate(words)] for words in parts], name


def assign(
    recordings: Sequence[tuple[str, str, str]],
    *,
    test_subjects: float = 0,
    val_subjects: float = 0,
    test_sessions: Sequence[str] = (),
    val_sessions: Sequence[str] = (),
    everyone: str = "",
    seed: int = 0,
) -> dict[str, str]:
    """Give each recording its side.

    Whole subjects are held out first; of the subjects that remain, the named sessions are. A recording is on one side.

    Args:
        recordings: `(id, subject, session)` of each.
        test_subjects, val_subjects: how many subjects (1 or more), or which share of them (below 1), to hold out.
        test_sessions, val_sessions: session ids that the remaining subjects' test and validation sides take.
        everyone: one side for all, for a dataset that is only ever a target ("test").
        seed: changes which subjects are held out.

    Returns:
        Recording id → "train", "val" or "test".

    Raises:
        ValueError: where nothing is left to train on, or a session is named that no recording has.

    >>> assign([("a/1", "1", ""), ("a/2", "2", "")], test_subjects=1, seed=0)
    {'a/1': 'train', 'a/2': 'test'}
    """
    if everyone:
        if everyone not in ("train", "val", "test"):
            raise ValueError(f"everyone: {everyone!r} is not a side; use train, val or test")
        return {key: everyone for key, _, _ in recordings}
    sessions = sorted({session for _, _, session in recordings})
    for named in (*test_sessions, *val_sessions):
        if named not in sessions:
            raise ValueError(f"no recording has the session {named!r} to hold out; there are {', '.join(sessions)}")
    subjects = order([subject for _, subject, _ in recordings], seed)

    def count(asked: float) -> int:
        return int(asked) if asked >= 1 or asked == 0 else max(1, round(asked * len(subjects)))

    n_test, n_val = count(test_subjects), count(val_subjects)
    side = {s: "test" for s in subjects[:n_test]} | {s: "val" for s in subjects[n_test : n_test + n_val]}
    by_session = {s: "val" for s in val_sessions} | {s: "test" for s in test_sessions}
    split = {key: side.get(subject) or by_session.get(session, "train") for key, subject, session in recordings}
    if "train" not in split.values():
        raise ValueError(
            f"the split leaves nothing to train on: {len(subjects)} subjects, {n_test} for test, {n_val} for "
            f"validation, test sessions {list(test_sessions)}; hold out fewer"
        )
    return split


def groups(ids: Sequence[str], folds: int, seed: int) -> list[list[str]]:
    """The distinct ids in `folds` groups of nearly equal size, in the order of `order`; as many as ids: leave one out.

    Raises:
        ValueError: for fewer than two groups, or more than there are ids.

    >>> groups(["a", "b", "c"], 3, seed=0)
    [['a'], ['c'], ['b']]
    """
    names = order(ids, seed)
    if not 2 <= folds <= len(names):
        raise ValueError(f"{folds} folds of {len(names)} ids; expected 2 to {len(names)}")
    size, more = divmod(len(names), folds)
    ends = [size * k + min(k, more) for k in range(folds + 1)]
    return [names[a:b] for a, b in pairwise(ends)]


def blocks_of_time(spans: Sequence[tuple[float, float]], blocks: int, gap: float) -> list[tuple[list[int], list[int]]]:
    """Rows to train on and rows to score for each block of time; between the two lies at least `gap`.

    Time is cut evenly from the first start to the last end. A span across a cut is in no scored block.

    Args:
        spans: start and end of each row, in any one unit. blocks: how many. gap: in the same unit.

    Raises:
        ValueError: for fewer than two blocks, or a block that leaves nothing to train on or to score.

    >>> blocks_of_time([(0, 1), (1, 2), (2, 3), (3, 4)], blocks=2, gap=1)
    [([3], [0, 1]), ([0], [2, 3])]
    """
    if blocks < 2:
        raise ValueError(f"{blocks} blocks; one is scored while others train, so give two or more")
    low, high = min((a for a, _ in spans), default=0), max((b for _, b in spans), default=0)
    edges = [low + (high - low) * k / blocks for k in range(blocks + 1)]
    found = []
    for k in range(blocks):
        a, b = edges[k], edges[k + 1]
        scored = [i for i, (start, stop) in enumerate(spans) if a - 1e-9 <= start and stop <= b + 1e-9]
        fit = [i for i, (start, stop) in enumerate(spans) if stop <= a - gap + 1e-9 or start >= b + gap - 1e-9]
        if not fit or not scored:
            raise ValueError(
                f"block {k + 1} of {blocks} has {len(scored)} rows to score and {len(fit)} to train on; take fewer "
                "blocks, a shorter gap or a longer recording"
            )
        found.append((fit, scored))
    return found
