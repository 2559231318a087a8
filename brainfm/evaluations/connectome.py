"""Groups of neurons that work together, from a model's attention as it changes in time, against simulated groups.

Attention beyond an even share, in stretches of seconds, of several animals, is a tensor `(time, animal, pair)`: a
dynamic connectome. Its non-negative components say which pairs work together, when and in which animals; communities
of each animal's graph are held against the groups that the simulation has. What rises and falls together in the counts
of the same seconds is the baseline, with a null of shifted time (`affinities.py`, `factorisation.py`).

Attention of a pair is that of both directions: sum over meetings of w n / number of meetings, as in `connectivity.py`,
less 1, at least 0. A pair that never met in a stretch is missing and not zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import xlogy

from brainfm.evaluations import protocol
from brainfm.evaluations.affinities import Connectome, aligned, communities, decomposed, dynamic, shifted, stacked
from brainfm.evaluations.connectivity import attention_sums, counts, has_truth, needs_attention, spread
from brainfm.evaluations.factorisation import paired
from brainfm.shards.read import Windows
from brainfm.shards.stored import Stored, rate
from brainfm.statistics import permutation_p
from brainfm.training.batches import batches
from brainfm.training.checkpoint import Pretrained

#: Label of a neuron that belongs to no group.
NONE = -1
#: Permutations of found groups, for chance and p of the score.
PERMUTED = 199


def groups(stored: Stored) -> np.ndarray:
    """`(neuron,)` true group: "assembly" where the truth says so, else the hub that drives a neuron most; -1 for none.

    Raises:
        ValueError: for a recording whose truth has neither.
    """
    if has_truth(stored, "assembly"):
        return stored.truth("assembly").astype(int)
    if not (has_truth(stored, "hub") and has_truth(stored, "connectivity")):
        raise ValueError(
            f"{stored.id} has no true groups ('assembly', or 'hub' and 'connectivity'); test on the hub sessions of "
            "sim_spikes, or call `affinities.dynamic` on real traces"
        )
    hub = np.flatnonzero(stored.truth("hub"))
    drive = np.abs(stored.truth("connectivity")[:, hub])
    label = np.where(drive.max(1) > 0, drive.argmax(1), NONE)
    label[hub] = np.arange(len(hub))
    return label


def run(
    model: Pretrained,
    train: Windows,
    test: Windows,
    *,
    seed: int,
    bin_s: float = 20.0,
    trace_s: float = 0.05,
    rank: int | None = None,
    largest: int = 4,
    permutations: int = 99,
    windows_per_subject: int = 3000,
    size: int = 128,
) -> dict:
    """Communities of the dynamic connectome that attention gives, against the groups of simulated animals.

    Each animal's graph is its mean over time as the components tell it. Baselines: "untrained", the network with fresh
    weights; "activity", the affinity of the counts of the same seconds; "shifted activity", the same after each neuron
    was shifted in time. The score is normalised mutual information of found and true groups of neurons.

    Args:
        model: reads spikes and has `attention`.
        train: not read; nothing is fitted to the truth.
        test: windows of the model's length; one recording of each animal, whose true groups are known.
        seed: of starts, shifts, permutations and the untrained network.
        bin_s: seconds of a stretch. trace_s: seconds of a bin of counts.
        rank, largest, permutations: as in `dynamic`.
        windows_per_subject: at most so many per recording, evenly spread. size: windows per batch.

    Raises:
        ValueError: for a model without attention, no window, several recordings of an animal, or no true groups.
    """
    needs_attention(model)
    stored = [test.recordings[i] for i in np.unique(test.recording)]
    people = [s.person for s in stored]
    if not stored or len(set(people)) < len(people):
        raise ValueError(f"test recordings of {people}; expected one or more, one of each animal: choose a session")
    truth, names = [groups(s) for s in stored], [list(s.channels.name) for s in stored]
    few = [
        spread(test.take(np.flatnonzero(test.recording == i)), windows_per_subject) for i in np.unique(test.recording)
    ]
    per_bin = max(1, round(bin_s / trace_s))
    traces, rng = [counted(w, trace_s, per_bin) for w in few], np.random.default_rng(seed)
    active = dynamic(
        traces, names, per_bin, rank=rank, largest=largest, permutations=permutations, seed=seed
    )  # fmt: skip
    moved = dynamic(
        [shifted(x, rng) for x in traces], names, per_bin, rank=active.components.rank, permutations=0, seed=seed
    )  # fmt: skip
    found = {"activity": active, "shifted activity": moved}
    fresh, device = model.untrained(seed), next(model.model.parameters()).device
    fresh.model.to(device)
    for name, one in (("pretrained", model), ("untrained", fresh)):
        parts = [attended(one, w, per_bin * trace_s, size) for w in few]
        tensor = stacked([_pairs(x) for x in _same_neurons(parts, names, len(active.names))])
        found[name] = decomposed(tensor, active.names, rank, largest, seed)
    parted = {name: _labels(one, names, seed) for name, one in found.items()}
    label = {name: np.concatenate(of_animals) for name, of_animals in parted.items()}
    owner, true = np.repeat(people, [len(t) for t in truth]), np.concatenate(truth)
    kept = true != NONE
    owner, true = owner[kept], true[kept]
    scores = {name: protocol.scored(nmi, owner, true, one[kept], seed) for name, one in label.items()}
    own = scores.pop("pretrained")
    null = np.array([
        np.mean([nmi(true[owner == p], rng.permutation(label["pretrained"][kept][owner == p])) for p in people])
        for _ in range(PERMUTED)
    ])  # fmt: skip
    note = (
        f"Stretches of {bin_s:g} s; n_trials counts neurons. Chance and p are from found groups permuted among each "
        "animal's neurons; p of a component says how often the largest one of shifted activity has its size."
    )
    out = protocol.result("connectome", "NMI", own, float(null.mean()), scores, train, test, seed, note)
    seen = found["pretrained"]
    return {
        **out,
        "ci_over": "subjects" if out["ci_over"] == "subjects" else "neurons",
        "p": permutation_p(own.score, null),
        "null": np.round(np.sort(null), 4).tolist(),
        "graph": {
            "subject": people[0], "neurons": names[0], "affinity": np.round(_graph(seen, 0, names[0]), 4).tolist(),
            "found": parted["pretrained"][0].tolist(), "true": truth[0].tolist(),
        },
        "components": {name: _told(one, people, parted[name]) for name, one in found.items()},
        "traces": _times(active, seen, per_bin * trace_s),
        "matrices": [
            _drawn(f"true groups, {people[0]}", _same(truth[0]), names[0]),
            *(
                _drawn(f"component {r + 1} of attention", seen.matrix(r), seen.names)
                for r in range(min(2, seen.components.rank))
            ),
            *(
                _drawn(f"component {r + 1} of activity", active.matrix(r), active.names)
                for r in range(min(2, active.components.rank))
            ),
        ],
    }  # fmt: skip


def nmi(true: np.ndarray, found: np.ndarray) -> float:
    """Normalised mutual information of two groupings (numbers from 0), by the mean of their entropies; 0 to 1."""
    joint = np.bincount(true * (int(found.max()) + 1) + found, minlength=(int(true.max()) + 1) * (int(found.max()) + 1))
    share = joint.reshape(int(true.max()) + 1, -1) / len(true)
    left, right, both = (-xlogy(x, x).sum() for x in (share.sum(1), share.sum(0), share))
    return float((left + right - both) / ((left + right) / 2)) if left + right > 0 else 1.0


def counted(windows: Windows, trace_s: float, per_bin: int) -> np.ndarray:
    """`(time, neuron)` counts from the recording's start, NaN outside the windows of one recording, in whole stretches.

    One sample more than the stretches have, because affinities are of differences.
    """
    stretches = counts(windows, trace_s)
    (spans,) = windows.intervals().values()
    first = [round(start / trace_s) for start, _ in spans]
    last = max(f + len(x) for f, x in zip(first, stretches, strict=True))
    out = np.full((-(-last // per_bin) * per_bin + 1, stretches[0].shape[1]), np.nan)
    for f, x in zip(first, stretches, strict=True):
        out[f : f + len(x)] = x
    return out


def attended(model: Pretrained, windows: Windows, bin_s: float, size: int) -> np.ndarray:
    """Attention beyond an even share in each stretch, of both directions, of the windows of one recording.

    A window belongs to the stretch that it starts in.

    Returns:
        `(bin, neuron, neuron)`, symmetric, NaN where a pair never met.
    """
    device = next(model.model.parameters()).device
    stretch = (windows.start / rate(windows.recordings[windows.recording[0]]) / bin_s).astype(int)
    neurons = len(windows.recordings[windows.recording[0]].channels)
    out = np.full((int(stretch.max()) + 1, neurons, neurons), np.nan)
    for b in np.unique(stretch):
        rows = windows.take(np.flatnonzero(stretch == b))
        total, met = attention_sums(model.model, (x.to(device) for x in batches(rows, model.batcher(), size)))
        total, met = total + total.T, met + met.T
        share = np.divide(total, met, out=np.full(total.shape, np.nan), where=met > 0)
        out[b] = np.where(np.isnan(share), np.nan, np.maximum(share - 1, 0.0))
    return out


def _same_neurons(parts: Sequence[np.ndarray], names: Sequence[Sequence[str]], neurons: int) -> list[np.ndarray]:
    """`(bin, neuron, neuron)` of each animal with the neurons of all animals, in the order of `aligned`."""
    number, _ = aligned([np.arange(len(own))[None].astype(float) for own in names], names)
    out = []
    for part, row in zip(parts, number, strict=True):
        there = np.flatnonzero(~np.isnan(row[0]))
        own = row[0][there].astype(int)
        wide = np.full((len(part), neurons, neurons), np.nan)
        wide[:, there[:, None], there] = part[:, own[:, None], own]
        out.append(wide)
    return out


def _pairs(matrices: np.ndarray) -> np.ndarray:
    """`(bin, neuron, neuron)` → `(bin, pair)`."""
    return matrices[(slice(None), *np.triu_indices(matrices.shape[1], 1))]


def _labels(found: Connectome, names: Sequence[Sequence[str]], seed: int) -> list[np.ndarray]:
    """`(neuron,)` community of the neurons of each animal, in its own order."""
    return [communities(_graph(found, animal, own), seed) for animal, own in enumerate(names)]


def _graph(found: Connectome, animal: int, own: Sequence[str]) -> np.ndarray:
    """`(neuron, neuron)` mean affinity of an animal's own neurons over time."""
    column = {x: i for i, x in enumerate(found.names)}
    rows = [column[x] for x in own]
    return found.animal(animal)[np.ix_(rows, rows)]


def _told(found: Connectome, people: Sequence[str], labels: Sequence[np.ndarray]) -> dict:
    """What a result says of a connectome."""
    sizes = {p: len(set(label.tolist())) for p, label in zip(people, labels, strict=True)}
    return {
        "rank": found.components.rank, "explained": found.components.explained, "agreement": found.agreement,
        "sizes": found.components.sizes.tolist(), "p": found.p.tolist(), "p_explained": found.p_explained,
        "communities": sizes,
    }  # fmt: skip


def _times(active: Connectome, seen: Connectome, bin_s: float) -> list[dict]:
    """Time courses of the components of activity, beside those of attention with the most alike pairs."""
    number, alike = paired(active.components, seen.components, modes=(2,))
    traces = []
    for r, other in enumerate(number):
        one = active.components.factors[0][:, r]
        trace: dict[str, Any] = {"title": f"component {r + 1} of activity", "unit": "share of its peak"}
        if other >= 0:
            two = seen.components.factors[0][:, other]
            count = min(len(one), len(two))
            one = one[:count]
            trace["title"] += f" (true) and {other + 1} of attention (predicted), pairs alike by {alike[r]:.2f}"
            trace |= {"predicted": _to_peak(two[:count])}
        traces.append(trace | {"time": ((np.arange(len(one)) + 0.5) * bin_s).tolist(), "true": _to_peak(one)})
    return traces


def _to_peak(x: np.ndarray) -> list[float]:
    return np.round(x / (x.max() if x.max() > 0 else 1.0), 4).tolist()


def _same(group: np.ndarray) -> np.ndarray:
    """`(neuron, neuron)` 1 for two neurons of one group, with an empty diagonal."""
    same = (group[:, None] == group) & (group != NONE) & ~np.eye(len(group), dtype=bool)
    return same.astype(float)


def _drawn(title: str, values: np.ndarray, names: list[str]) -> dict:
    note = "Neurons by neurons: a component's weight of each pair, without direction; true groups are 1 within a group."
    return {"title": title, "values": np.round(values, 4).tolist(), "rows": names, "columns": names, "note": note}
