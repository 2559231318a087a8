"""Fingerprint: find a person's second half among those of everybody, from the first half, and the other way round.

The windows of each recording are cut in two by time. A person's half is the mean of the encodings of its windows over
that person's recordings, centred by the mean of the training people. Likeness is correlation; the score is top-1.
Finn et al. 2015, Functional connectome fingerprinting.
"""

from __future__ import annotations

import numpy as np

from brainfm.evaluations import baselines, protocol
from brainfm.metrics import retrieval_ranks
from brainfm.shards.read import Windows
from brainfm.shards.stored import rate
from brainfm.training.checkpoint import Pretrained


def run(model: Pretrained, train: Windows, test: Windows, *, seed: int, gap_s: float = 0.0) -> dict:
    """Identify the test people among test and training people.

    Baselines under the same protocol: functional connectivity (Fisher z of the correlations of channels) and the
    network untrained. Chance is one over the number of people.

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

    def likeness(pair: np.ndarray) -> np.ndarray:
        """`(half, person, feature)` → `(person, person)`, rows first halves."""
        pair = pair - pair[:, reference].mean(axis=(0, 1))
        first, second = (_unit(x) for x in pair)
        return first @ second.T

    def score(similarity: np.ndarray) -> protocol.Scored:
        ranks = [retrieval_ranks(s[probes], probes) for s in (similarity, similarity.T)]
        hit = (np.concatenate(ranks) <= 1).astype(float)
        who = np.tile(np.array(gallery)[probes], 2)
        return protocol.scored(lambda true, found: float(np.mean(found)), who, np.ones(len(hit)), hit, seed)

    fresh = model.untrained(seed)
    mine = likeness(_pooled(model.features(both), people, gallery, half))
    compared = {
        "functional connectivity": score(likeness(connectivity(both, gallery, half))),
        "untrained": score(likeness(_pooled(fresh.features(both), people, gallery, half))),
    }
    note = f"{len(probes)} people looked for among {len(gallery)}. {baselines.montage(both)[1]}"
    names = [gallery[i] for i in probes]
    found = protocol.result(
        "retrieval", "top-1 accuracy", score(mine), 1 / len(gallery), compared, train, test, seed, note
    )
    found["windows"]["halves"] = [both.take(half == h).intervals() for h in (0, 1)]
    return {
        **found,
        "matrices": [
            {"title": "Likeness of halves", "values": mine[probes].tolist(), "rows": names, "columns": gallery}
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


def _pooled(features: np.ndarray, people: np.ndarray, gallery: list[str], half: np.ndarray) -> np.ndarray:
    """`(half, person, feature)` mean encodings."""
    return np.stack([[features[(half == h) & (people == name)].mean(axis=0) for name in gallery] for h in (0, 1)])


def _unit(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(axis=1, keepdims=True)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(float).tiny)
