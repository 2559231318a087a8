"""Dynamic connectomes: affinities by a slow loop, planted assemblies in traces, the null, communities, and `run`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import nn

from brainfm.evaluations import affinities, connectome, factorisation
from brainfm.modalities.spikes import hub_network
from brainfm.models import neuroformer
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.training.batches import facts_of
from brainfm.training.checkpoint import Pretrained

torch.set_num_threads(1)

ASSEMBLY = np.repeat([0, 1, 2, -1], [6, 6, 6, 6])
#: Which assembly is together in which of four parts of the recording, and in which of three animals.
WHEN = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 1]])
WHO = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1]])
PER_BIN = 100


def planted_traces(seed: int = 0, strength: float = 2.0) -> tuple[list[np.ndarray], list[list[str]]]:
    """Three animals' traces; an assembly shares what changes while it is together. Animal 2 misses two neurons."""
    rng = np.random.default_rng(seed)
    traces, names = [], []
    for animal in range(3):
        change = rng.standard_normal((20 * PER_BIN, 24))
        on = np.repeat(WHEN, 5 * PER_BIN, axis=1) * WHO[:, animal, None]
        shared = rng.standard_normal(on.shape) * on * strength
        change[:, ASSEMBLY >= 0] += shared[ASSEMBLY[ASSEMBLY >= 0]].T
        kept = np.setdiff1d(np.arange(24), [3, 20]) if animal == 2 else np.arange(24)
        traces.append(np.concatenate([np.zeros((1, 24)), np.cumsum(change, axis=0)])[:, kept])
        names.append([f"n{i}" for i in kept])
    return traces, names


def test_affinity_equals_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    traces = rng.standard_normal((41, 3))
    traces[30:, 2] = np.nan
    change = np.diff(traces, axis=0)
    z = (change - np.nanmean(change, axis=0)) / np.nanstd(change, axis=0)
    found = affinities.affinity(traces, 10)
    assert found.shape == (4, 3)
    alone = np.array([
        np.nanmean(np.maximum(z[:, i], 0)) * np.nanmean(np.maximum(z[:, j], 0))
        + np.nanmean(np.maximum(-z[:, i], 0)) * np.nanmean(np.maximum(-z[:, j], 0))
        for i, j in ((0, 1), (0, 2), (1, 2))
    ])  # fmt: skip
    for b in range(4):
        for k, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
            product = (z[:, i] * z[:, j])[10 * b : 10 * b + 10]
            product = product[~np.isnan(product)]
            slow = max(np.maximum(product, 0).mean() - alone[k], 0) if len(product) else np.nan
            assert found[b, k] == pytest.approx(slow, abs=1e-12, nan_ok=True)
    assert np.isnan(found[3, 1:]).all()
    with pytest.raises(ValueError, match="at least one stretch"):
        affinities.affinity(traces, 41)


def test_planted_assemblies_come_back_with_their_times_and_animals() -> None:
    traces, names = planted_traces()
    found = affinities.dynamic(traces, names, PER_BIN, largest=4, permutations=9, starts=2)
    components = found.components
    assert components.rank == 3
    upper = np.triu_indices(24, 1)
    member = ASSEMBLY[:, None] == np.arange(3)
    pairs = np.stack([np.outer(one, one)[upper] for one in member.T], axis=1).astype(float)
    truth = [np.repeat(WHEN, 5, axis=1).T.astype(float), WHO.T.astype(float), pairs]
    unit = tuple(f / np.linalg.norm(f, axis=0) for f in truth)
    planted = factorisation.Components(np.ones(3), unit, np.ones(3), 1.0)
    assert factorisation.match(components, planted) > 0.9
    # Nine shifts: 1 / 10 is the least p.
    assert found.p.tolist() == [0.1] * 3
    assert found.p_explained == 0.1
    label = affinities.communities(found.animal(0))
    own = np.isin(ASSEMBLY, (0, 1))  # of animal 0 the third is never together
    assert connectome.nmi(ASSEMBLY[own], label[own]) > 0.9


def test_without_assemblies_the_null_weighs_as_much() -> None:
    p = []
    for seed in range(6):
        traces, names = planted_traces(seed, strength=0.0)
        p.append(affinities.dynamic(traces, names, PER_BIN, rank=1, permutations=9, seed=seed, starts=1).p[0])
    assert 0.2 < np.mean(p) < 0.8


def test_a_shift_keeps_each_trace_and_breaks_what_is_shared() -> None:
    rng = np.random.default_rng(0)
    trace = rng.standard_normal((500, 1)) @ np.ones((1, 4))
    moved = affinities.shifted(trace, rng)
    np.testing.assert_array_equal(np.sort(moved, axis=0), np.sort(trace, axis=0))
    start = int(np.flatnonzero(moved[:, 0] == trace[0, 0])[0])
    np.testing.assert_array_equal(np.roll(moved[:, 0], -start), trace[:, 0])
    assert np.abs(np.corrcoef(moved.T) - np.eye(4)).max() < 0.3


def test_neurons_are_the_same_where_their_names_are() -> None:
    wide, every = affinities.aligned([np.ones((2, 2)), 2 * np.ones((3, 2))], [["a", "b"], ["c", "a"]])
    assert every == ["a", "b", "c"]
    np.testing.assert_array_equal(wide[1][0], [2, np.nan, 2])
    tensor = affinities.stacked(wide)
    assert tensor.shape == (3, 2, 3)
    assert np.isnan(tensor[2, 0]).all()
    with pytest.raises(ValueError, match="a name of each"):
        affinities.aligned([np.ones((2, 2))], [["a", "a"]])


def test_mutual_information_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 30):
        for _ in range(10):
            true, found = rng.integers(4, size=size), rng.integers(7, size=size)
            assert connectome.nmi(true, found) == pytest.approx(normalized_mutual_info_score(true, found), abs=1e-12)


def test_communities_of_planted_blocks() -> None:
    rng = np.random.default_rng(0)
    true = np.repeat([0, 1, 2], 10)
    same = true[:, None] == true
    noise = rng.random((30, 30))
    matrix = np.where(same, 1.0, 0.2) * (noise + noise.T)
    assert connectome.nmi(true, affinities.communities(matrix)) == pytest.approx(1.0)
    order = rng.permutation(30)
    turned = affinities.communities(matrix[np.ix_(order, order)])
    assert connectome.nmi(true[order], turned) == pytest.approx(1.0)
    assert len(set(affinities.communities(np.zeros((4, 4))))) == 4


def hub(folder: Path, subjects: int, sessions: int = 1) -> Windows:
    for i in range(subjects):
        made = [
            hub_network(
                np.random.default_rng([i, s]), neurons=16, hubs=2, duration_s=24, rate_hz=8.0, coupling=1.6,
                dataset="sim", subject=f"a{i}", session=f"hub{s}",
            ) for s in range(sessions)
        ]  # fmt: skip
        write_shard(folder / f"a{i}.h5", made, {})
    return open_shards(folder).windows(0.1, 0.05)


def pretrained(windows: Windows) -> Pretrained:
    facts = facts_of(open_shards(windows.recordings[0].path.parent), 0.1)
    keywords = {**neuroformer.SIZES["test"], "past_s": 0.07, "current_s": 0.03, "bin_s": 0.005}
    torch.manual_seed(0)
    model = neuroformer.build(facts, **keywords)
    return Pretrained(model.eval(), {"kind": "models", "name": "neuroformer", "keywords": keywords}, facts)


def test_groups_are_assemblies_or_who_drives_a_neuron_most(tmp_path: Path) -> None:
    stored = hub(tmp_path, 1).recordings[0]
    label = connectome.groups(stored)
    assert label[:8].tolist() == [0] * 8
    assert label[8:].tolist().count(1) >= 7
    with pytest.raises(ValueError, match="true groups"):
        connectome.groups(SimpleNamespace(id="x", arrays={}))  # type: ignore[arg-type]


class TrueAttention(nn.Module):
    """Attends to past spikes of the neuron's own group."""

    def __init__(self, label: np.ndarray) -> None:
        super().__init__()
        self.label = torch.from_numpy(label)
        self.nothing = nn.Parameter(torch.zeros(1))

    def attention(self, batch: object) -> tuple[torch.Tensor, SimpleNamespace, torch.Tensor]:
        channel, mask = batch.channel, batch.mask  # type: ignore[attr-defined]
        alike = self.label[channel][:, :, None] == self.label[channel][:, None]
        weight = (alike + 0.1) * mask[:, None]
        weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-9)
        return weight[None], SimpleNamespace(mask=mask, channel=channel), channel.masked_fill(~mask, -100)


def test_attention_within_groups_gives_the_groups_back(tmp_path: Path) -> None:
    windows = hub(tmp_path, 1)
    label = connectome.groups(windows.recordings[0])
    model = pretrained(windows)
    known = Pretrained(TrueAttention(label), model.config, model.facts)
    matrices = connectome.attended(known, windows, 6.0, 128)
    assert matrices.shape == (4, 16, 16)
    np.testing.assert_allclose(matrices, matrices.transpose(0, 2, 1))
    result = connectome.run(known, windows, windows, seed=0, bin_s=6.0, rank=1, permutations=0)
    assert result["score"] > 0.9 > 0.5 > result["chance"]
    assert result["p"] == pytest.approx(1 / 200)


@pytest.mark.parametrize(("subjects", "over"), [(1, "neurons"), (2, "subjects")])
def test_run_reports_everything(tmp_path: Path, subjects: int, over: str) -> None:
    windows = hub(tmp_path, subjects)
    model = pretrained(windows)

    def once() -> dict:
        return connectome.run(model, windows, windows, seed=0, bin_s=6.0, rank=2, permutations=3)

    result = once()
    assert (result["metric"], result["ci_over"], result["n_subjects"]) == ("NMI", over, subjects)
    assert 16 * subjects - 2 <= result["n_trials"] <= 16 * subjects
    assert 0 < result["chance"] < 0.5
    assert set(result["baselines"]) == {"untrained", "activity", "shifted activity"}
    assert result["baselines"]["activity"]["score"] > result["chance"]
    assert result["components"]["activity"]["p"][0] == 0.25
    assert [len(m["values"]) for m in result["matrices"]] == [16] * 5
    assert result["p"] == (1 + np.sum(np.array(result["null"]) >= result["score"] - 1e-4)) / 200
    assert np.mean(result["null"]) == pytest.approx(result["chance"], abs=1e-4)
    graph = result["graph"]
    assert (graph["subject"], len(graph["neurons"]), np.shape(graph["affinity"])) == ("sim/a0", 16, (16, 16))
    np.testing.assert_array_equal(affinities.communities(np.array(graph["affinity"])), graph["found"])
    assert graph["true"] == connectome.groups(windows.recordings[0]).tolist()
    assert len(result["traces"]) == 2
    assert all(len(t["true"]) == len(t["time"]) == len(t["predicted"]) for t in result["traces"])
    np.testing.assert_equal(once(), result)


def test_counts_outside_the_windows_are_missing(tmp_path: Path) -> None:
    windows = hub(tmp_path, 1)
    later = windows.take(windows.start >= 12_000)
    trace = connectome.counted(later, 0.05, 120)
    assert trace.shape == (481, 16)
    assert np.isnan(trace[:240]).all()
    assert np.isfinite(trace[240:479]).all()
    found = affinities.affinity(trace, 120)
    assert np.isnan(found[:2]).all()
    assert np.isfinite(found[2:]).all()


def test_run_needs_attention_groups_and_one_recording_of_each_animal(tmp_path: Path) -> None:
    windows = hub(tmp_path, 1, sessions=2)
    model = pretrained(windows)
    with pytest.raises(ValueError, match="one of each animal"):
        connectome.run(model, windows, windows, seed=0)
    with pytest.raises(ValueError, match="one of each animal"):
        connectome.run(model, windows, windows.take([]), seed=0)
    blind = Pretrained(nn.Linear(1, 1), {"name": "other"}, model.facts)
    with pytest.raises(ValueError, match="attention"):
        connectome.run(blind, windows, windows, seed=0)
