"""Who drives whom: a model's attention from spikes to earlier spikes against the connections of a simulated network.

Paper: Antoniades et al., "Neuroformer: Multimodal and Multitask Generative Pretraining for Brain Data", ICLR 2024,
https://arxiv.org/abs/2311.00136: attention is summed by predicted and attended neuron and divided by the number of
times that the two met.

The matrix here, rows targets and columns sources, so that it has a direction:

    A_ij = sum over meetings of w n / number of meetings

A meeting is a token of the current state that has to predict a spike of neuron i, and a spike of neuron j in its past;
w is the attention weight (mean over heads and over the layers that attend to the past), n the number of spikes in that
past. The factor n makes 1 mean "as much as any other spike". Without it, a neuron that fires in busy windows looks weak
only because a softmax shares one unit among more spikes: the AUROC of an untrained network was .30 without and .60 with
it (60 neurons, 3 hubs); that of a trained one, .93, stayed. Attention inside the current state is left out. It reaches
only short lags, so that averaging it with the rest scored .89 before any training: that is a correlation, not what the
network learned.

The baselines read the counts of the same windows (`coupling.py`): correlation, lagged correlation, transfer entropy and
a coupled Poisson model. They enter by their size, since a connection may excite or inhibit: with its sign, lagged
correlation scored .78 and not .97 on the simulated animals. On a network of short couplings expect them to be strong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from brainfm.evaluations import coupling
from brainfm.shards.read import Windows
from brainfm.shards.stored import Stored
from brainfm.tokens import TokenBatch
from brainfm.training.batches import batches
from brainfm.training.checkpoint import Pretrained, evaluating

#: What reads counts and no network.
BASELINES = ("correlation", "lagged correlation", "transfer entropy", "GLM coupling")
#: Scores, the result's `metric` first, and how each is told.
MEASURES = {"auroc": "AUROC", "auprc": "AUPRC", "direction_accuracy": "direction accuracy"}


def attention_matrix(model: Any, batches: Iterable[TokenBatch]) -> np.ndarray:
    """Attention by predicted and attended neuron, `(target, source)`; 1 is an even share, 0 where two never met.

    Args:
        model: an nn.Module that has `attention(batch)`, as `models/neuroformer.py` has.
        batches: of one recording, so that a channel is the same neuron throughout.

    Raises:
        ValueError: where there is no batch, or their channel tables differ in length.
    """
    total, met = attention_sums(model, batches)
    return total / np.maximum(met, 1)


def attention_sums(model: Any, batches: Iterable[TokenBatch]) -> tuple[np.ndarray, np.ndarray]:
    """The two parts of `attention_matrix`: sums of attention, and how often each pair met; both `(target, source)`."""
    sums: torch.Tensor | None = None
    with torch.inference_mode(), evaluating(model):
        for batch in batches:
            neurons = batch.kind.shape[1]
            if sums is None:
                sums = torch.zeros(2, neurons * neurons, dtype=torch.float64)
            if sums.shape[1] != neurons**2:
                raise ValueError(f"batches with {neurons} and {sums.shape[1] ** 0.5:.0f} neurons: give one recording's")
            weight, past, target = model.attention(batch)
            share = weight.mean(0) * past.mask.sum(1)[:, None, None]
            met = (target >= 0)[:, :, None] & past.mask[:, None]
            pair = (target[:, :, None] * neurons + past.channel[:, None])[met].cpu()
            sums[0] += torch.bincount(pair, share[met].double().cpu(), minlength=neurons**2)
            sums[1] += torch.bincount(pair, minlength=neurons**2)
    if sums is None:
        raise ValueError("no batch to read attention from; give at least one window")
    neurons = round(sums.shape[1] ** 0.5)
    total, number = sums.view(2, neurons, neurons).numpy()
    return total, number


def score(recovered: np.ndarray, truth: np.ndarray, strong: float = 0.1, targets: np.ndarray | None = None) -> dict:
    """How well a matrix ranks the true connections, over pairs of different neurons.

    Args:
        recovered, truth: `(target, source)`.
        strong: a pair is connected where its weight is above this share of the largest one, in absolute value.
        targets: rows to score, repeats allowed; all where None.

    Returns:
        "auroc", "auprc", "connected" (share of pairs, which is the chance of auprc), and "direction_accuracy": of the
        pairs connected one way only, the share whose entry is larger that way; ties count half. "pairs" and "one_way"
        count what was scored.

    Raises:
        ValueError: for matrices of different shapes, or where no pair or every pair is connected.
    """
    if recovered.shape != truth.shape or truth.ndim != 2 or truth.shape[0] != truth.shape[1]:
        raise ValueError(
            f"got matrices {recovered.shape} and {truth.shape}; expected two of (target, source) of one size"
        )
    rows = np.arange(len(truth)) if targets is None else np.asarray(targets)
    other = ~np.eye(len(truth), dtype=bool)
    connected = (np.abs(truth) > strong * np.abs(truth[other]).max(initial=0.0)) & other
    true, guess = connected[rows][other[rows]], recovered[rows][other[rows]]
    if true.all() or not true.any():
        raise ValueError(
            f"{true.sum()} of {true.size} pairs are connected; a score needs some of either: change `strong`"
        )
    one_way = (connected & ~connected.T)[rows]
    difference = (recovered - recovered.T)[rows][one_way]
    return {
        "auroc": float(roc_auc_score(true, guess)),
        "auprc": float(average_precision_score(true, guess)),
        "direction_accuracy": float(np.mean((np.sign(difference) + 1) / 2)) if one_way.any() else float("nan"),
        "connected": float(true.mean()),
        "pairs": int(true.size),
        "one_way": int(one_way.sum()),
    }


def run(
    model: Pretrained,
    train: Windows,
    test: Windows,
    *,
    labels: list[str] | None = None,
    strong: float = 0.1,
    bin_s: float = 0.01,
    lags: int = 3,
    penalty: float = 10.0,
    windows_per_subject: int = 3000,
    bootstraps: int = 200,
    size: int = 128,
    seed: int = 0,
) -> dict:
    """Score the attention of a model on every test recording whose true connections are known.

    Args:
        model: reads spikes and has `attention`.
        train: not read; nothing is fitted to the truth.
        test: windows of the model's length; those of recordings without a true connectivity are left out.
        labels: not read; there is no condition.
        strong: as in `score`.
        bin_s, lags: of the baselines. penalty: of the coupled Poisson model.
        windows_per_subject: at most so many per recording, evenly spread; the baselines read the same seconds.
        bootstraps: resamples of the intervals: of subjects, or of target neurons where there is one subject.
        size: windows per batch.
        seed: of the resamples and of the untrained network.

    Returns:
        The result's fields. `measures` has AUROC, AUPRC and direction accuracy of the model and each baseline, with
        interval, chance and the number of pairs scored.

    Raises:
        ValueError: for a model without attention to spikes, or where no recording has a true connectivity.
    """
    needs_attention(model)
    known = [i for i in np.unique(test.recording) if has_truth(test.recordings[i], "connectivity")]
    if not known:
        raise ValueError("no test recording has ground truth 'connectivity'; test on the hub sessions of sim_spikes")
    fresh, device = model.untrained(seed), next(model.model.parameters()).device
    fresh.model.to(device)
    truth: list[np.ndarray] = []
    found: dict[str, list[np.ndarray]] = {}
    used = 0
    for i in known:
        few = spread(test.take(np.flatnonzero(test.recording == i)), windows_per_subject)
        made: dict[str, np.ndarray] = {}
        for name, one in (("pretrained", model), ("untrained", fresh)):
            made[name] = attention_matrix(one.model, (b.to(device) for b in batches(few, one.batcher(), size)))
        counted = counts(few, bin_s)
        made["correlation"] = np.abs(coupling.correlation(counted))
        made["lagged correlation"] = np.abs(coupling.lagged_correlation(counted, lags))
        made["transfer entropy"] = coupling.transfer_entropy(counted, lags)
        made["GLM coupling"] = np.abs(coupling.glm_coupling(counted, lags, penalty))
        for name, matrix in made.items():
            found.setdefault(name, []).append(matrix)
        truth.append(test.recordings[i].truth("connectivity"))
        used += len(few)
    people = [test.recordings[i].person for i in known]
    each = {name: summary(matrices, truth, people, strong, bootstraps, seed) for name, matrices in found.items()}
    measures = {told: {name: one[word] for name, one in each.items()} for word, told in MEASURES.items()}
    own, first = each["pretrained"], test.recordings[known[0]]
    return {
        "metric": "AUROC", "score": own["auroc"]["score"], "ci": own["auroc"]["ci"],
        "ci_over": "subjects" if len(set(people)) > 1 else "target neurons", "chance": 0.5,
        "n_subjects": len(set(people)), "n_trials": used,
        "baselines": {name: one["auroc"] for name, one in each.items() if name != "pretrained"},
        "per_subject": own["auroc"]["per_subject"], "measures": measures,
        "matrices": [
            drawn(f"true connections, {first.person}", truth[0], first),
            drawn(f"attention, {first.person}", found["pretrained"][0], first),
            *(drawn(f"{name}, {first.person}", found[name][0], first) for name in BASELINES),
        ],
        "note": f"A pair counts as connected above {strong:g} of the largest weight; n_trials counts windows. "
        "Correlations and Poisson weights enter by their size, for a connection may inhibit.",
    }  # fmt: skip


def needs_attention(model: Pretrained) -> None:
    """Check that there is attention from spikes to spikes.

    Raises:
        ValueError: naming the model.
    """
    if not hasattr(model.model, "attention"):
        raise ValueError(f"model {model.config.get('name')!r} has no attention to read; choose neuroformer")


def has_truth(stored: Stored, name: str) -> bool:
    """Whether a recording was simulated with this ground truth."""
    return f"truth/{name}" in stored.arrays


def spread(windows: Windows, most: int) -> Windows:
    """At most so many of the windows, evenly spread."""
    return windows.take(np.unique(np.linspace(0, len(windows) - 1, min(most, len(windows))).astype(int)))


def counts(windows: Windows, bin_s: float) -> list[np.ndarray]:
    """`(time, neuron)` spike counts of each stretch that the windows of one recording cover."""
    stored = windows.recordings[windows.recording[0]]
    stretches = []
    for start, stop in windows.intervals()[stored.id]:
        time, neuron = stored.spikes(start, stop)
        bins = max(1, int((stop - start) / bin_s + 1e-6))
        row = ((time - start) / bin_s).astype(int)
        inside = row < bins
        counted = np.zeros((bins, len(stored.channels)))
        np.add.at(counted, (row[inside], neuron[inside].astype(int)), 1)
        stretches.append(counted)
    return stretches


def summary(
    found: Sequence[np.ndarray], truth: Sequence[np.ndarray], people: Sequence[str], strong: float, bootstraps: int,
    seed: int,
) -> dict[str, dict]:  # fmt: skip
    """Each of `MEASURES` with its mean over subjects, 95 % interval, chance and number of pairs."""
    each = [score(f, t, strong) for f, t in zip(found, truth, strict=True)]
    subjects = sorted(set(people))
    per = {
        word: np.array([np.mean([e[word] for e, p in zip(each, people, strict=True) if p == s]) for s in subjects])
        for word in (*MEASURES, "connected")
    }
    rng = np.random.default_rng(seed)
    resampled: list[list[float]] = []
    for _ in range(bootstraps):
        if len(subjects) > 1:
            chosen = rng.integers(len(subjects), size=len(subjects))
            resampled.append([float(per[word][chosen].mean()) for word in MEASURES])
            continue
        rows = [rng.integers(len(t), size=len(t)) for t in truth]
        if all(_both(t, r, strong) for t, r in zip(truth, rows, strict=True)):
            parts = [score(f, t, strong, r) for f, t, r in zip(found, truth, rows, strict=True)]
            resampled.append([float(np.mean([p[word] for p in parts])) for word in MEASURES])
    chance = {"auroc": 0.5, "auprc": float(per["connected"].mean()), "direction_accuracy": 0.5}
    out = {}
    for column, word in enumerate(MEASURES):
        values = [r[column] for r in resampled if np.isfinite(r[column])]
        mean = float(per[word].mean())
        out[word] = {
            "score": mean, "ci": np.percentile(values, (2.5, 97.5)).tolist() if values else [mean] * 2,
            "chance": chance[word], "n": sum(e["one_way" if word == "direction_accuracy" else "pairs"] for e in each),
            "per_subject": dict(zip(subjects, per[word].tolist(), strict=True)),
        }  # fmt: skip
    return out


def _both(truth: np.ndarray, rows: np.ndarray, strong: float) -> bool:
    """Whether a resample holds connected and unconnected pairs, without which it has no AUROC."""
    strong_pairs = np.abs(truth[rows]) > strong * np.abs(truth).max()
    return bool(strong_pairs.any() and not strong_pairs.all())


def drawn(title: str, values: np.ndarray, stored: Stored) -> dict:
    """A matrix to draw, its diagonal empty."""
    shown = np.where(np.eye(len(values), dtype=bool), 0.0, values)
    names = stored.channels.name
    note = "Rows are targets, columns are sources."
    return {"title": title, "values": np.round(shown, 4).tolist(), "rows": names, "columns": names, "note": note}
