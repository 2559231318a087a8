"""Which pairs of neurons work together, when and in which animals: a dynamic connectome, and its communities.

Paper: Dyballa et al., "Learning dynamic representations of the functional connectome in neurobiological networks", ICLR
2024, https://arxiv.org/abs/2402.14102: affinities of pairs that change in time, of several animals, as a sum of
non-negative components. Its communities come from a stochastic block model; here from Louvain's modularity (Blondel et
al. 2008), for want of a package without compilation.

The affinity of neurons i and j in a stretch of seconds, from what rises and falls together:
    a_ij = mean over samples of relu(z(dx_i) z(dx_j)), less its mean over the recording under independence, at least 0
with dx the differences of successive samples and z their standard score. With p = relu(z) and m = relu(-z), relu(z z')
is p p' + m m', so a stretch costs two matrix products, and independence says mean(p) mean(p') + mean(m) mean(m').
A model's affinity is its attention beyond an even share, the mean of both directions (`connectivity.py`).

Stretches, animals and pairs make a tensor `(time, animal, pair)`. Neurons are the same in two animals where their names
are. A neuron that an animal has not, or a pair that never met, is missing and not zero (`factorisation.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np

from brainfm.evaluations import factorisation
from brainfm.evaluations.factorisation import Components
from brainfm.statistics import permutation_p


@dataclass(frozen=True)
class Connectome:
    """Components of a tensor of affinities.

    Attributes:
        names: neurons that pairs are of; pair (i, j) with i < j in the order of `np.triu_indices`.
        components: modes time, animal, pair. agreement: likeness between halves for each rank tried, see `split_half`.
        p: `(rank,)` how often the largest component of shifted traces has its size; NaN where no null was drawn.
        p_explained: the same of the share that all components explain together.
    """

    names: list[str]
    components: Components
    agreement: list[float]
    p: np.ndarray
    p_explained: float

    def matrix(self, component: int) -> np.ndarray:
        """`(neuron, neuron)` the pair factor of a component, symmetric with an empty diagonal."""
        return square(self.components.factors[2][:, component], len(self.names))

    def animal(self, number: int) -> np.ndarray:
        """`(neuron, neuron)` mean affinity of an animal over time, as the components tell it."""
        time, animal, pair = self.components.factors
        return square(pair @ (self.components.weights * time.mean(0) * animal[number]), len(self.names))


def affinity(traces: np.ndarray, per_bin: int) -> np.ndarray:
    """Affinity of each pair in each stretch, see the top of this file, from `(time, neuron)` traces."""
    return affinity_of_changes(np.diff(traces, axis=0), per_bin)


def affinity_of_changes(change: np.ndarray, per_bin: int) -> np.ndarray:
    """The same from differences of successive samples.

    Args:
        change: `(time, neuron)`, NaN where a neuron is missing, for a while or altogether.
        per_bin: differences in a stretch, over which the affinity is averaged.

    Returns:
        `(bin, pair)`, NaN where a pair never met; a last stretch that is not whole is left out.

    Raises:
        ValueError: where there is not one whole stretch.
    """
    bins = len(change) // max(1, per_bin)
    if per_bin < 1 or bins < 1:
        raise ValueError(f"{len(change)} changes and {per_bin} in a stretch; expected at least one stretch: shorten it")
    there = ~np.isnan(change)
    number = np.maximum(there.sum(0), 1)
    centred = np.where(there, change - np.where(there, change, 0.0).sum(0) / number, 0.0)
    spread_of = np.sqrt((centred**2).sum(0) / number)
    score = centred / np.where(spread_of > 0, spread_of, 1.0)
    up, down = np.maximum(score, 0.0), np.maximum(-score, 0.0)
    mean_up, mean_down = up.sum(0) / number, down.sum(0) / number
    alone = np.outer(mean_up, mean_up) + np.outer(mean_down, mean_down)
    upper = np.triu_indices(change.shape[1], 1)
    out = np.empty((bins, len(upper[0])))
    for b in range(bins):
        part = slice(b * per_bin, (b + 1) * per_bin)
        both = (there[part].T.astype(float) @ there[part])[upper]
        together = (up[part].T @ up[part] + down[part].T @ down[part])[upper]
        mean = np.divide(together, both, out=np.full(len(both), np.nan), where=both > 0)
        out[b] = np.where(np.isnan(mean), np.nan, np.maximum(mean - alone[upper], 0.0))
    return out


def stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    """`(time, animal, pair)` of each animal's `(time, pair)`, missing where an animal's recording is shorter."""
    out = np.full((max(map(len, parts)), len(parts), parts[0].shape[1]), np.nan)
    for animal, part in enumerate(parts):
        out[: len(part), animal] = part
    return out


def aligned(traces: Sequence[np.ndarray], names: Sequence[Sequence[str]]) -> tuple[list[np.ndarray], list[str]]:
    """Traces of all animals with the same columns: every name of any animal, NaN where an animal has it not.

    Raises:
        ValueError: where an animal has a name twice.
    """
    if twice := [x for x in names if len(set(x)) < len(x)]:
        raise ValueError(
            f"an animal has {len(twice[0])} neurons of {len(set(twice[0]))} names; expected a name of each"
        )
    every = list(dict.fromkeys(x for own in names for x in own))
    column = {x: i for i, x in enumerate(every)}
    out = []
    for trace, own in zip(traces, names, strict=True):
        wide = np.full((len(trace), len(every)), np.nan)
        wide[:, [column[x] for x in own]] = trace
        out.append(wide)
    return out, every


def dynamic(
    traces: Sequence[np.ndarray], names: Sequence[Sequence[str]], per_bin: int, *, rank: int | None = None,
    largest: int = 6, permutations: int = 99, seed: int = 0, starts: int = 3,
) -> Connectome:  # fmt: skip
    """The dynamic connectome of traces, with a null in which each neuron keeps its trace and loses its time.

    In the null the changes of every neuron of every animal are shifted around the ends of its recording by a time of
    their own. All that a neuron does by itself stays; what it does with others does not. Changes and not traces are
    shifted, because a trace that drifts would jump where its ends meet.

    Args:
        traces: for each animal `(time, neuron)`, one sampling rate: dF/F, rates or counts.
        names: for each animal its neurons' names, or its regions', by which animals are compared.
        per_bin: samples in a stretch.
        rank: number of components; chosen by split halves up to `largest` where None.
        permutations: shifts of the null; 0 for none.
        seed: of starts and shifts.
    """
    wide, every = aligned([np.diff(x, axis=0) for x in traces], names)
    found = decomposed(stacked([affinity_of_changes(x, per_bin) for x in wide]), every, rank, largest, seed, starts)
    if not permutations:
        return found
    rng, own = np.random.default_rng(seed), found.components
    sizes, explained = np.empty(permutations), np.empty(permutations)
    for k in range(permutations):
        tensor = stacked([affinity_of_changes(shifted(x, rng), per_bin) for x in wide])
        null = factorisation.factorise(tensor, own.rank, seed=seed, starts=1)
        sizes[k], explained[k] = null.sizes.max(), null.explained
    p = np.array([permutation_p(size, sizes) for size in own.sizes])
    return Connectome(every, own, found.agreement, p, permutation_p(own.explained, explained))


def decomposed(
    tensor: np.ndarray, names: list[str], rank: int | None, largest: int, seed: int, starts: int = 3
) -> Connectome:
    """Components of a tensor `(time, animal, pair)` without a null; the rank by split halves where None."""
    agreement: list[float] = []
    if rank is None:
        rank, agreement = factorisation.choose_rank(tensor, largest=largest, seed=seed, starts=starts)
    found = factorisation.factorise(tensor, rank, seed=seed, starts=starts)
    return Connectome(names, found, agreement, np.full(rank, np.nan), float("nan"))


def shifted(traces: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each column of `(time, neuron)` shifted by a time of its own, what leaves at the end coming in at the start."""
    start = rng.integers(len(traces), size=traces.shape[1])
    return np.take_along_axis(traces, (np.arange(len(traces))[:, None] + start) % len(traces), axis=0)


def square(pairs: np.ndarray, neurons: int) -> np.ndarray:
    """`(pair,)` → `(neuron, neuron)`, symmetric with an empty diagonal."""
    out = np.zeros((neurons, neurons))
    out[np.triu_indices(neurons, 1)] = pairs
    return out + out.T


def communities(matrix: np.ndarray, seed: int = 0, resolution: float = 1.0) -> np.ndarray:
    """Communities of a graph by Louvain's modularity.

    Args:
        matrix: `(neuron, neuron)`, symmetric, zero or more.
        seed: of the order in which neurons are visited.
        resolution: above 1 for more and smaller communities.

    Returns:
        `(neuron,)` numbers from 0; a neuron without any edge is a community of its own.
    """
    graph = nx.from_numpy_array(np.where(np.eye(len(matrix), dtype=bool), 0.0, matrix))
    label = np.empty(len(matrix), int)
    for number, members in enumerate(nx.community.louvain_communities(graph, resolution=resolution, seed=seed)):
        label[list(members)] = number
    return label
