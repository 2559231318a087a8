"""What a frozen encoding reacts to: a stretch of time shuffled, a channel taken from another window, a band removed.

Two things are measured. How far the encoding moves, in units of the mean distance between two windows of the same
person, on features in the units of the readout: 1 means as far as to another window. And what the readout of the label
loses: the probability of the true class before minus after. A network may move far for what does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from sklearn.pipeline import Pipeline

from brainfm.evaluations import protocol
from brainfm.evaluations.baselines import BANDS, CENTRE_M, MIDLINE_M
from brainfm.recording import Channels
from brainfm.statistics import holm, permutation_p

#: With more channels than this, those of a region of the head are taken together.
CHANNELS = 40
PERMUTATIONS = 999
REGIONS = [f"{a} {b}" for a in ("left", "middle", "right") for b in ("back", "centre", "front")]


def measured(
    encode: Callable[[np.ndarray], np.ndarray],
    readout: Pipeline,
    values: np.ndarray,
    sfreq: float,
    channels: Channels,
    people: np.ndarray,
    labels: np.ndarray,
    *,
    segments: int,
    seed: int,
) -> list[dict]:
    """Every perturbation with what it changes.

    Args:
        encode: `(window, channel, time)` → `(window, feature)`.
        readout: scaler and classifier of class numbers, fitted on other people's encodings.
        values: `(window, channel, time)`. sfreq: samples per second. channels: their table.
        people: `(window,)` names. labels: `(window,)` class numbers.
        segments: stretches that time is cut into. seed: of shuffling, other windows, permutations and bootstrap.

    Returns:
        One entry for each: `axis` ("time", "space", "band"), `name`, `change` and its `change_ci`, `drop` and its
        `drop_ci` (over people), `null` (the drop with labels permuted within people), `p`, and `p_holm` within an axis.

    Raises:
        ValueError: for nobody with two windows.
    """
    scaler, classifier = readout[0], readout[-1]
    base = scaler.transform(encode(values))
    before = classifier.predict_proba(base)
    unit = _usual_distance(base, people)
    column = np.searchsorted(classifier.classes_, labels)
    rng = np.random.default_rng(seed)
    mixed = np.stack([protocol.permuted_within(column, people, rng) for _ in range(PERMUTATIONS)])
    rows = np.arange(len(values))
    found: list[dict] = []
    for axis, name, changed in perturbed(values, sfreq, channels, people, segments, seed):
        after_base = scaler.transform(encode(changed))
        lost = before - classifier.predict_proba(after_base)
        change = protocol.scored_mean(people, np.linalg.norm(after_base - base, axis=1) / unit, seed)
        drop = protocol.scored_mean(people, lost[rows, column], seed)
        member = _by_person(people)
        null = (lost[rows, mixed] @ member.T).mean(axis=1)
        found.append({
            "axis": axis, "name": name, "change": change.score, "change_ci": list(change.ci), "drop": drop.score,
            "drop_ci": list(drop.ci), "null": float(null.mean()), "p": permutation_p(drop.score, null),
        })  # fmt: skip
    for axis in ("time", "space", "band"):
        own = [entry for entry in found if entry["axis"] == axis]
        for entry, p in zip(own, holm([entry["p"] for entry in own]) if own else [], strict=True):
            entry["p_holm"] = float(p)
    return found


def perturbed(
    values: np.ndarray, sfreq: float, channels: Channels, people: np.ndarray, segments: int, seed: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Axis, name and the changed `(window, channel, time)` of each perturbation.

    The samples of a stretch are shuffled alike in all channels of a window. A channel, or all of a region, comes from
    another window of the same person. A band's bins of the spectrum are set to 0.
    """
    rng = np.random.default_rng(seed)
    samples = values.shape[-1]
    edges = np.linspace(0, samples, segments + 1).astype(int)
    for a, b in pairwise(edges.tolist()):
        changed = values.copy()
        for window in changed:
            window[:, a:b] = window[:, a + rng.permutation(b - a)]
        yield "time", f"{a / sfreq:.2g} to {b / sfreq:.2g} s", changed
    other = _other_windows(people, rng)
    for name, rows in groups(channels).items():
        changed = values.copy()
        changed[:, rows] = values[other][:, rows]
        yield "space", name, changed
    hertz = np.fft.rfftfreq(samples, 1 / sfreq)
    spectrum = np.fft.rfft(values)
    for name, (low, high) in BANDS.items():
        inside = (hertz >= low) & (hertz < high)
        if high <= sfreq / 2 and inside.any():
            left = spectrum.copy()
            left[..., inside] = 0
            yield "band", f"{name}, {low} to {high} Hz", np.fft.irfft(left, samples).astype(values.dtype)


def groups(channels: Channels) -> dict[str, np.ndarray]:
    """Name → rows of the channels that are perturbed together: each alone, or those of a region where they are many."""
    if len(channels) <= CHANNELS:
        return {name: np.array([i]) for i, name in enumerate(channels.name)}
    x, y = np.nan_to_num(channels.position[:, :2]).T
    region = 3 * np.digitize(x, (-MIDLINE_M, MIDLINE_M)) + np.digitize(y, (-CENTRE_M, CENTRE_M))
    return {name: np.flatnonzero(region == i) for i, name in enumerate(REGIONS) if (region == i).any()}


def maps(found: list[dict], channels: Channels) -> list[dict]:
    """Topographies of both measures, as a result holds them; none where no channel's place is known."""
    if not np.isfinite(channels.position).all(axis=1).any():
        return []
    own = {entry["name"]: entry for entry in found if entry["axis"] == "space"}
    titles = {"change": "encoding moves without the channel", "drop": "true class loses without the channel"}
    out = []
    for measure, title in titles.items():
        values = np.zeros(len(channels))
        for name, rows in groups(channels).items():
            values[rows] = own[name][measure]
        out.append({
            "title": title, "positions": channels.position.tolist(), "values": values.tolist(),
            "names": list(channels.name),
        })  # fmt: skip
    return out


def _by_person(people: np.ndarray) -> np.ndarray:
    """`(person, window)` weights that average a person's windows."""
    member = (people == np.unique(people)[:, None]).astype(float)
    return member / member.sum(axis=1, keepdims=True)


def _usual_distance(encoded: np.ndarray, people: np.ndarray) -> float:
    """Mean distance between two windows of the same person, each person counting equally."""
    each = []
    for name in np.unique(people):
        own = encoded[people == name]
        if len(own) > 1:
            apart = np.linalg.norm(own[:, None] - own[None], axis=2)
            each.append(apart[np.triu_indices(len(own), 1)].mean())
    if not each:
        raise ValueError("nobody has two windows; a change of the encoding has nothing to be compared with")
    return float(max(np.mean(each), np.finfo(float).tiny))


def _other_windows(people: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each window another one of the same person; itself where there is no other."""
    other = np.arange(len(people))
    for name in np.unique(people):
        rows = rng.permutation(np.flatnonzero(people == name))
        other[rows] = np.roll(rows, 1)
    return other
