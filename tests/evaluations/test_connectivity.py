"""Recovery of connections: by hand-made attention, by a slow loop, and through `run` on a simulated network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from brainfm.evaluations import connectivity
from brainfm.modalities.spikes import hub_network
from brainfm.models import neuroformer
from brainfm.objectives.next_spike import NextSpike
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.tokens import TokenBatch
from brainfm.training.batches import batches, facts_of
from brainfm.training.checkpoint import Pretrained

torch.set_num_threads(1)


class HandMade(nn.Module):
    """Attends to each past spike as strongly as it drives the neuron to be predicted."""

    def __init__(self, truth: np.ndarray) -> None:
        super().__init__()
        self.truth = torch.from_numpy(truth).float()
        self.nothing = nn.Parameter(torch.zeros(1))

    def attention(self, batch: TokenBatch) -> tuple[torch.Tensor, SimpleNamespace, torch.Tensor]:
        n = batch.time.shape[1] // 2
        target, source, mask = batch.channel[:, n:], batch.channel[:, :n], batch.mask[:, :n]
        target = target.masked_fill(~batch.mask[:, n:], -100)
        weight = self.truth[target.clamp_min(0)[:, :, None], source[:, None]] + 0.1
        weight = weight * mask[:, None]
        weight = weight / weight.sum(-1, keepdim=True)
        return weight[None], SimpleNamespace(mask=mask, channel=source), target


def network(neurons: int = 8) -> np.ndarray:
    """Two hubs that drive every other neuron of their half."""
    truth = np.zeros((neurons, neurons))
    truth[1 : neurons // 2, 0] = 1
    truth[neurons // 2 + 1 :, neurons // 2] = 1
    return truth


def random_batch(neurons: int, spikes: int = 24, samples: int = 200, seed: int = 0) -> TokenBatch:
    make = torch.Generator().manual_seed(seed)
    mask = torch.rand(samples, spikes, generator=make) < 0.8
    mask[:, 0] = True
    channel = torch.randint(neurons, (samples, spikes), generator=make)
    return TokenBatch(
        mask.float()[..., None], torch.zeros(samples, spikes), channel, torch.zeros(samples, neurons, 3),
        torch.zeros(samples, neurons, 3), torch.full((samples, neurons), 7), mask,
    )  # fmt: skip


def test_hand_made_attention_gives_back_hubs_and_direction() -> None:
    truth = network()
    found = connectivity.attention_matrix(HandMade(truth), [random_batch(8), random_batch(8, seed=1)])
    scores = connectivity.score(found, truth)
    assert scores["auroc"] == 1
    assert scores["auprc"] == pytest.approx(1)
    assert scores["direction_accuracy"] == 1
    assert connectivity.score(found.T, truth)["direction_accuracy"] == 0


def test_matrix_equals_a_slow_loop() -> None:
    model, batch = HandMade(network(5)), random_batch(5, samples=6)
    weight, past, targets = model.attention(batch)
    total, met = np.zeros((5, 5)), np.zeros((5, 5))
    for b in range(6):
        for q, target in enumerate(targets[b].tolist()):
            for k, source in enumerate(past.channel[b].tolist()):
                if target >= 0 and past.mask[b, k]:
                    total[target, source] += float(weight[0, b, q, k]) * int(past.mask[b].sum())
                    met[target, source] += 1
    expected = np.divide(total, met, out=np.zeros_like(total), where=met > 0)
    np.testing.assert_allclose(connectivity.attention_matrix(model, [batch]), expected, rtol=1e-5)


def test_even_attention_is_one_everywhere() -> None:
    found = connectivity.attention_matrix(HandMade(np.zeros((4, 4))), [random_batch(4)])
    np.testing.assert_allclose(found, 1, rtol=1e-5)


def test_counts_are_those_of_each_stretch_of_windows(tmp_path: Path) -> None:
    windows = hub(tmp_path, 1, neurons=6, duration_s=4)
    kept = windows.take((windows.start < 1000) | (windows.start >= 2500))
    parts, stored = connectivity.counts(kept, 0.01), windows.recordings[0]
    (spans,) = kept.intervals().values()
    assert len(parts) == len(spans) == 2
    for part, (start, stop) in zip(parts, spans, strict=True):
        edges = start + 0.01 * np.arange(len(part) + 1)
        assert stop - 0.011 < edges[-1] <= stop + 1e-9
        time, neuron = stored.spikes(start, stop)
        for i in range(6):
            np.testing.assert_array_equal(part[:, i], np.histogram(time[neuron == i], edges)[0])


def test_score_of_noise_is_chance_and_errors_are_told() -> None:
    rng = np.random.default_rng(0)
    scores = [connectivity.score(rng.random((20, 20)), network(20)) for _ in range(50)]
    assert np.mean([s["auroc"] for s in scores]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([s["direction_accuracy"] for s in scores]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([s["auprc"] for s in scores]) == pytest.approx(scores[0]["connected"], abs=0.03)
    with pytest.raises(ValueError, match="pairs are connected"):
        connectivity.score(np.zeros((3, 3)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="one size"):
        connectivity.score(np.zeros((3, 3)), np.zeros((4, 4)))
    with pytest.raises(ValueError, match="no batch"):
        connectivity.attention_matrix(HandMade(network()), [])


def hub(folder: Path, subjects: int, neurons: int, duration_s: float) -> Windows:
    for i in range(subjects):
        made = hub_network(
            np.random.default_rng(i), neurons=neurons, hubs=2, duration_s=duration_s, rate_hz=8.0, coupling=1.6,
            dataset="sim", subject=f"a{i}",
        )  # fmt: skip
        write_shard(folder / f"a{i}.h5", [made], {})
    return open_shards(folder).windows(0.1, 0.03)


def pretrained(windows: Windows, **keywords: object) -> Pretrained:
    facts = facts_of(open_shards(windows.recordings[0].path.parent), 0.1)
    keywords = {**neuroformer.SIZES["test"], "past_s": 0.07, "current_s": 0.03, "bin_s": 0.005, **keywords}
    torch.manual_seed(0)
    model = neuroformer.build(facts, **keywords)
    return Pretrained(model.eval(), {"kind": "models", "name": "neuroformer", "keywords": keywords}, facts)


@pytest.mark.parametrize(("subjects", "over"), [(1, "target neurons"), (2, "subjects")])
def test_run_reports_everything(tmp_path: Path, subjects: int, over: str) -> None:
    windows = hub(tmp_path, subjects, neurons=12, duration_s=20)
    result = connectivity.run(pretrained(windows), windows, windows, bootstraps=20, windows_per_subject=500)
    assert (result["metric"], result["chance"], result["ci_over"]) == ("AUROC", 0.5, over)
    assert result["n_subjects"] == subjects
    assert result["n_trials"] == 500 * subjects
    assert 0 <= result["ci"][0] <= result["score"] <= result["ci"][1] <= 1
    assert set(result["baselines"]) == {"untrained", *connectivity.BASELINES}
    measures = result["measures"]
    for name in ("lagged correlation", "transfer entropy", "GLM coupling"):
        assert result["baselines"][name]["score"] > 0.8
        assert measures["direction accuracy"][name]["score"] > 0.8
    assert measures["direction accuracy"]["correlation"]["score"] == 0.5
    connected = 12 * 11 * subjects
    for measure, entries in measures.items():
        assert set(entries) == {"pretrained", *result["baselines"]}
        for one in entries.values():
            assert one["ci"][0] <= one["score"] <= one["ci"][1]
            assert one["n"] == connected if measure != "direction accuracy" else 0 < one["n"] < connected
            assert one["chance"] == 0.5 if measure != "AUPRC" else 0 < one["chance"] < 0.5
    assert [len(m["values"]) for m in result["matrices"]] == [12] * 6
    assert len(result["per_subject"]) == subjects
    again = connectivity.run(pretrained(windows), windows, windows, bootstraps=20, windows_per_subject=500)
    assert again == result


def test_run_needs_truth_and_attention(tmp_path: Path) -> None:
    windows = hub(tmp_path, 1, neurons=6, duration_s=3)
    model = pretrained(windows)
    with pytest.raises(ValueError, match="ground truth"):
        connectivity.run(model, windows, windows.take([]))
    blind = Pretrained(nn.Linear(1, 1), {"name": "other"}, model.facts)
    with pytest.raises(ValueError, match="attention"):
        connectivity.run(blind, windows, windows)


@pytest.mark.slow
def test_trained_attention_recovers_the_hubs(tmp_path: Path) -> None:
    windows = hub(tmp_path, 1, neurons=20, duration_s=120)
    model = pretrained(windows, dim=32)
    optimiser = torch.optim.AdamW(model.model.parameters(), lr=5e-3)
    objective, rng, batcher = NextSpike(), np.random.default_rng(0), model.batcher()
    for _ in range(500):
        parts = objective(model.model.train(), batcher(windows, rng.integers(0, len(windows), 64)))
        optimiser.zero_grad()
        (parts["neuron"] + parts["bin"]).backward()
        optimiser.step()
    found = connectivity.attention_matrix(model.model, batches(windows, batcher, 128))
    scores = connectivity.score(found, windows.recordings[0].truth("connectivity"))
    assert scores["auroc"] > 0.7
    assert scores["direction_accuracy"] > 0.7
