"""Fingerprint: find a person's second half among those of everybody, from the first half, and the other way round.

The windows of each recording are cut in two by time. A person's half is the mean of the encodings of its windows over
that person's recordings, centred by the mean of the training people. Likeness is correlation; the score is top-1.
Finn et al. 2015, Functional connectome fingerprinting.

Beside it stands how reliable a half is: its correlation with the other half of the same person, both centred in the
same way, stepped up to the whole (Spearman 1910, Brown 1910), which is the ceiling of what can be told of a person from
it; 0 where they are unlike.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from brainfm.evaluations import baselines, protocol
from brainfm.metrics import retrieval_ranks, split_half_reliability
from brainfm.shards.read import Windows
from brainfm.shards.stored import rate
from brainfm.statistics import bootstrap_trials
from brainfm.training.checkpoint import Pretrained


def run(model: Pretrained, train: Windows, test: Windows, *, seed: int, gap_s: float = 0.0) -> dict:
    """Identify the test people among test and training people.

    Baselines under the same protocol: functional connectivity (Fisher z of the correlations of channels) and the
    network untrained. Chance is one over the number of people. `measures` also has the median rank of the right person
    as a share of all, the likeness of halves of one person and of two, and how reliable halves are.

    Args:
        model: the network, not changed.
        train, test: windows of different people.
        seed: of untrained weights and bootstrap.
        gap_s: seconds left out around the middle of each recording, so that the halves do not share a slow response; at
            least twice the reach of its filters is.

    Raises:
        ValueError: where a person is on both sides, or lacks windows in one half.
    """
    protocol.strangers(train, test, model.card)
    both = Windows.join([train, test])
    half = halves(both, gap_s)
    people = both.of("person")
    gallery = sorted(set(people.tolist()))
    probes = np.array([i for i, name in enumerate(gallery) if name in set(test.of("person").tolist())])
    reference = np.setdiff1d(np.arange(len(gallery)), probes)
    if not len(reference):
        raise ValueError("no training people to centre the encodings by; give `train` some")

    def centred(pair: np.ndarray) -> np.ndarray:
        """`(half, person, feature)` without what the training people share."""
        return pair - pair[:, reference].mean(axis=(0, 1))

    def likeness(pair: np.ndarray) -> np.ndarray:
        """`(half, person, feature)` → `(person, person)`, rows first halves."""
        first, second = (_unit(x) for x in pair)
        return first @ second.T

    asked, n = np.array(gallery)[probes], len(gallery)
    fresh = model.untrained(seed)
    pairs = {
        "pretrained": centred(_pooled(model.features(both), people, gallery, half)),
        "functional connectivity": centred(connectivity(both, gallery, half)),
        "untrained": centred(_pooled(fresh.features(both), people, gallery, half)),
    }
    alike = {name: likeness(pair) for name, pair in pairs.items()}
    ranks = {
        name: np.stack([retrieval_ranks(s[probes], probes) for s in (x, x.T)], axis=1) for name, x in alike.items()
    }
    top = {
        name: protocol.scored_mean(np.repeat(asked, 2), (x <= 1).ravel().astype(float), seed)
        for name, x in ranks.items()
    }

    def of_people(values: np.ndarray) -> dict:
        """`(person,)` values as a measure."""
        one = protocol.scored_mean(asked, values, seed)
        return {**one.entry(), "per_subject": one.per_subject}

    measures: dict[str, dict[str, dict]] = {
        "top-1 accuracy": {name: {**one.entry(), "per_subject": one.per_subject} for name, one in top.items()},
        "median rank / N": {name: _median(x / n, asked, seed) for name, x in ranks.items()},
        "likeness within people": {name: of_people(np.diag(x)[probes]) for name, x in alike.items()},
        "likeness between people": {name: of_people(_of_others(x)[probes]) for name, x in alike.items()},
        "reliability of halves": {
            name: of_people(np.array([max(0.0, split_half_reliability(*x[:, i])) for i in probes]))
            for name, x in pairs.items()
        },
    }
    measures["top-1 accuracy"]["pretrained"]["chance"] = 1 / n
    measures["median rank / N"]["pretrained"]["chance"] = (n + 1) / 2 / n
    note = f"{len(probes)} people looked for among {n}. {baselines.montage(both)[1]}"
    main = top.pop("pretrained")
    found = protocol.result("retrieval", "top-1 accuracy", main, 1 / n, top, train, test, seed, note)
    found["windows"]["halves"] = [both.take(half == h).intervals() for h in (0, 1)]
    described = json.dumps([gallery, found["windows"]["halves"]], sort_keys=True)
    return {
        **found,
        "measures": measures,
        "candidates": {"n": n, "k": 1, "hash": hashlib.sha256(described.encode()).hexdigest()[:16]},
        "matrices": [
            {"title": "Likeness of halves", "values": alike["pretrained"][probes].tolist(), "rows": asked.tolist(),
             "columns": gallery}
        ],
    }  # fmt: skip


def halves(windows: Windows, gap_s: float = 0.0) -> np.ndarray:
    """`(window,)` 0 or 1 for windows wholly in the first or second half of what its recording offers, else -1.

    Raises:
        ValueError: where a person has no window in one half.
    """
    out = np.full(len(windows), -1)
    for r in np.unique(windows.recording):
        rows = np.flatnonzero(windows.recording == r)
        start, stop = windows.start[rows], windows.start[rows] + windows.samples[rows]
        stored = windows.recordings[r]
        middle, gap = (start.min() + stop.max()) / 2, max(gap_s, 2 * stored.reach_s) * rate(stored) / 2
        out[rows[stop <= middle - gap]] = 0
        out[rows[start >= middle + gap]] = 1
    people = windows.of("person")
    for name in np.unique(people):
        count = np.bincount(out[people == name] + 1, minlength=3)[1:]
        if not count.all():
            raise ValueError(f"{name} has {count[0]} and {count[1]} windows in its halves; use shorter windows or gap")
    return out


def connectivity(windows: Windows, gallery: list[str], half: np.ndarray) -> np.ndarray:
    """`(half, person, pair)` Fisher z of the correlations of channels in each half, mean over recordings."""
    moments: dict[tuple[int, int], np.ndarray] = {}
    for rows, weights, signal in baselines.shared_signals(windows):
        shared = weights @ signal.astype(float)
        level = np.concatenate([shared, np.ones_like(shared[:, :1])], axis=1)
        product = level @ level.swapaxes(1, 2)
        for h in (0, 1):
            key = (int(windows.recording[rows[0]]), h)
            moments[key] = moments.get(key, 0) + product[half[rows] == h].sum(axis=0)
    found: dict[tuple[str, int], list[np.ndarray]] = {}
    for (r, h), m in moments.items():
        if m[-1, -1] > 0:
            found.setdefault((windows.recordings[r].person, h), []).append(_fisher_z(m))
    return np.stack([[np.mean(found[name, h], axis=0) for name in gallery] for h in (0, 1)])


def _fisher_z(moments: np.ndarray) -> np.ndarray:
    """Upper triangle of the correlations, from sums of products whose last row and column stand for the number one."""
    n, total = moments[-1, -1], moments[-1, :-1]
    covariance = moments[:-1, :-1] / n - np.outer(total, total) / n**2
    scale = np.sqrt(np.maximum(np.diagonal(covariance), np.finfo(float).tiny))
    row, column = np.triu_indices(len(covariance), 1)
    return np.arctanh(np.clip((covariance / np.outer(scale, scale))[row, column], -0.999999, 0.999999))


def _median(ranks: np.ndarray, people: np.ndarray, seed: int) -> dict:
    """The median of ranks `(person, direction)` with an interval over people, and each person's mean."""
    return {
        "score": float(np.median(ranks)),
        "ci": list(bootstrap_trials(ranks, ranks, lambda x, _: float(np.median(x)), seed=seed)),
        "per_subject": dict(zip(people.tolist(), ranks.mean(axis=1).tolist(), strict=True)),
    }


def _of_others(similarity: np.ndarray) -> np.ndarray:
    """`(person,)` mean likeness of each person's halves with those of everybody else."""
    rest = similarity.sum(axis=0) + similarity.sum(axis=1) - 2 * np.diag(similarity)
    return rest / (2 * (len(similarity) - 1))


def _pooled(features: np.ndarray, people: np.ndarray, gallery: list[str], half: np.ndarray) -> np.ndarray:
    """`(half, person, feature)` mean encodings."""
    return np.stack([[features[(half == h) & (people == name)].mean(axis=0) for name in gallery] for h in (0, 1)])


def _unit(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(axis=1, keepdims=True)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(float).tiny)
