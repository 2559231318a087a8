"""Who drives whom: a model's attention from spikes to earlier spikes against the connections of a simulated network.

Paper: Antoniades et al., "Neuroformer: Multimodal and Multitask Generative Pretraining for Brain Data", ICLR 2024,
https://arxiv.org/abs/2311.00136: attention is summed by predicted and attended neuron and divided by the number of
times that the two met.

The matrix here: for every token of the current state that has to predict a spike of neuron i, and every spike of neuron
j in its past, take the attention weight (mean over heads and over the layers that attend to the past) times the number
of spikes in that past, and average over all such meetings. The factor makes 1 mean "as much as any other spike".
Without it, a neuron that fires in busy windows looks weak only because a softmax shares one unit among more spikes: the
AUROC of an untrained network was .30 without and .60 with it (60 neurons, 3 hubs); that of a trained one, .93, stayed.
Attention inside the current state is left out. It reaches only short lags, so that averaging it with the rest scored
.89 before any training: that is a correlation, not what the network learned.

Rows are targets and columns are sources, so the matrix has a direction. A correlation at short lags is the baseline to
beat; on a network that linear and short couplings make, expect it to be strong.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from brainfm.shards.read import Windows
from brainfm.shards.stored import Stored
from brainfm.tokens import TokenBatch
from brainfm.training.batches import batches
from brainfm.training.checkpoint import Pretrained, evaluating


def attention_matrix(model: Any, batches: Iterable[TokenBatch]) -> np.ndarray:
    """Attention by predicted and attended neuron, `(target, source)`; 1 is an even share, 0 where two never met.

    Args:
        model: an nn.Module that has `attention(batch)`, as `models/neuroformer.py` has.
        batches: of one recording, so that a channel is the same neuron throughout.

    Raises:
        ValueError: where there is no batch, or their channel tables differ in length.
    """
    total: torch.Tensor | None = None
    with torch.inference_mode(), evaluating(model):
        for batch in batches:
            neurons = batch.kind.shape[1]
            if total is None:
                total = torch.zeros(2, neurons * neurons, dtype=torch.float64)
            if total.shape[1] != neurons**2:
                raise ValueError(
                    f"batches with {neurons} and {total.shape[1] ** 0.5:.0f} neurons: give one recording's"
                )
            weight, past, target = model.attention(batch)
            share = weight.mean(0) * past.mask.sum(1)[:, None, None]
            met = (target >= 0)[:, :, None] & past.mask[:, None]
            pair = (target[:, :, None] * neurons + past.channel[:, None])[met].cpu()
            total[0] += torch.bincount(pair, share[met].double().cpu(), minlength=neurons**2)
            total[1] += torch.bincount(pair, minlength=neurons**2)
    if total is None:
        raise ValueError("no batch to read attention from; give at least one window")
    neurons = round(total.shape[1] ** 0.5)
    return (total[0] / total[1].clamp_min(1)).view(neurons, neurons).numpy()


def lagged_correlation(counts: np.ndarray, lags: int = 3) -> np.ndarray:
    """Correlation of each neuron with every other one some bins earlier, mean over lags 1 to `lags`.

    Args:
        counts: `(time, neuron)` spike counts in equal bins.
        lags: number of bins.

    Returns:
        `(target, source)`; 0 for silent neurons.
    """
    centred = counts - counts.mean(0)
    scaled = centred / np.where(counts.std(0) > 0, counts.std(0), 1.0)
    return np.mean([scaled[k:].T @ scaled[:-k] / (len(scaled) - k) for k in range(1, lags + 1)], axis=0)


def score(recovered: np.ndarray, truth: np.ndarray, strong: float = 0.1, targets: np.ndarray | None = None) -> dict:
    """How well a matrix ranks the true connections, over pairs of different neurons.

    Args:
        recovered, truth: `(target, source)`.
        strong: a pair is connected where its weight is above this share of the largest one, in absolute value.
        targets: rows to score, repeats allowed; all where None.

    Returns:
        "auroc", "auprc", "connected" (share of pairs, which is the chance of auprc), and "direction_accuracy": of the
        pairs connected one way only, the share whose entry is larger that way; ties count half.

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
        bin_s, lags: of the correlation baseline.
        windows_per_subject: at most so many per recording, evenly spread.
        bootstraps: resamples of the interval: of subjects, or of target neurons where there is one subject.
        size: windows per batch.
        seed: of the resamples and of the untrained network.

    Raises:
        ValueError: for a model without attention to spikes, or where no recording has a true connectivity.
    """
    if not hasattr(model.model, "attention"):
        raise ValueError(f"model {model.config.get('name')!r} has no attention to read; choose neuroformer")
    known = [i for i in np.unique(test.recording) if _has_truth(test.recordings[i])]
    if not known:
        raise ValueError("no test recording has ground truth 'connectivity'; test on the hub sessions of sim_spikes")
    fresh, device = model.untrained(seed), next(model.model.parameters()).device
    fresh.model.to(device)
    truth: list[np.ndarray] = []
    found: dict[str, list[np.ndarray]] = {"model": [], "untrained": [], "lagged correlation": []}
    used = 0
    for i in known:
        rows = test.take(np.flatnonzero(test.recording == i))
        few = rows.take(np.unique(np.linspace(0, len(rows) - 1, min(windows_per_subject, len(rows))).astype(int)))
        for name, one in (("model", model), ("untrained", fresh)):
            made = (b.to(device) for b in batches(few, one.batcher(), size))
            found[name].append(attention_matrix(one.model, made))
        found["lagged correlation"].append(lagged_correlation(_counts(rows, bin_s), lags))
        truth.append(test.recordings[i].truth("connectivity"))
        used += len(few)
    people = [test.recordings[i].person for i in known]
    scores = {k: _summary(v, truth, people, strong, bootstraps, seed) for k, v in found.items()}
    own, first = scores.pop("model"), test.recordings[known[0]]
    over = "subjects" if len(set(people)) > 1 else "target neurons"
    return {
        "metric": "AUROC", "score": own["score"], "ci": own["ci"], "ci_over": over, "chance": 0.5,
        "n_subjects": len(set(people)), "n_trials": used, "baselines": scores, "per_subject": own["per_subject"],
        "direction_accuracy": own["direction_accuracy"], "auprc": own["auprc"],
        "matrices": [
            _drawn(f"true connections, {first.person}", truth[0], first),
            _drawn(f"attention, {first.person}", found["model"][0], first),
            _drawn(f"lagged correlation, {first.person}", found["lagged correlation"][0], first),
        ],
        "note": f"A pair counts as connected above {strong:g} of the largest weight; n_trials counts windows.",
    }  # fmt: skip


def _has_truth(stored: Stored) -> bool:
    try:
        stored.truth("connectivity")
    except KeyError:
        return False
    return True


def _counts(windows: Windows, bin_s: float) -> np.ndarray:
    """`(time, neuron)` spike counts over the stretches that the windows of one recording cover, end to end."""
    stored = windows.recordings[windows.recording[0]]
    parts = []
    for start, stop in windows.intervals()[stored.id]:
        time, neuron = stored.spikes(start, stop)
        bins = max(1, int((stop - start) / bin_s))
        counts = np.zeros((bins, len(stored.channels)))
        np.add.at(counts, (np.minimum(((time - start) / bin_s).astype(int), bins - 1), neuron.astype(int)), 1)
        parts.append(counts)
    return np.concatenate(parts)


def _summary(
    found: list[np.ndarray], truth: list[np.ndarray], people: list[str], strong: float, bootstraps: int, seed: int
) -> dict:
    """Mean scores over subjects with the 95 % interval of AUROC."""
    each = [score(f, t, strong) for f, t in zip(found, truth, strict=True)]
    subjects = sorted(set(people))

    def mean(key: str) -> list[float]:
        return [float(np.mean([e[key] for e, p in zip(each, people, strict=True) if p == s])) for s in subjects]

    rng, per_subject = np.random.default_rng(seed), mean("auroc")
    if len(subjects) > 1:
        drawn = [np.mean(rng.choice(per_subject, len(subjects))) for _ in range(bootstraps)]
    else:
        drawn = []
        for _ in range(bootstraps):
            rows = [rng.integers(len(t), size=len(t)) for t in truth]
            if all(_both(t, r, strong) for t, r in zip(truth, rows, strict=True)):
                parts = [score(f, t, strong, r)["auroc"] for f, t, r in zip(found, truth, rows, strict=True)]
                drawn.append(np.mean(parts))
    ci = np.percentile(drawn, (2.5, 97.5)).tolist() if drawn else [per_subject[0]] * 2
    return {
        "score": float(np.mean(per_subject)), "ci": ci, "auprc": float(np.mean(mean("auprc"))),
        "direction_accuracy": float(np.mean(mean("direction_accuracy"))),
        "per_subject": dict(zip(subjects, per_subject, strict=True)),
    }  # fmt: skip


def _both(truth: np.ndarray, rows: np.ndarray, strong: float) -> bool:
    """Whether a resample holds connected and unconnected pairs, without which it has no AUROC."""
    strong_pairs = np.abs(truth[rows]) > strong * np.abs(truth).max()
    return bool(strong_pairs.any() and not strong_pairs.all())


def _drawn(title: str, values: np.ndarray, stored: Stored) -> dict:
    """A matrix to draw, its diagonal empty."""
    shown = np.where(np.eye(len(values), dtype=bool), 0.0, values)
    return {
        "title": title,
        "values": np.round(shown, 4).tolist(),
        "rows": stored.channels.name,
        "columns": stored.channels.name,
    }
