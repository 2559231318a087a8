"""The scores of the Neural Latents Benchmark for models of firing rates: co-smoothing, what comes, velocity, PSTH.

Of every animal some neurons are held out, those that its dataset names or else a share: their counts are hidden from
the model, which predicts them from the others (co-bps). With the end of every window hidden it predicts what comes
(fp-bps). Rates of all neurons, the held-out ones predicted, decode velocity, and their averages over the trials of a
condition are compared with measured ones where every window is a trial of a condition. Definitions:
`evaluations/spike_scores.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

from brainfm.evaluations import protocol, spike_scores
from brainfm.shards.read import Windows
from brainfm.tokens import TokenBatch
from brainfm.training.checkpoint import Pretrained, evaluating

#: Least rate of the linear baseline, counts per bin.
LEAST = 1e-3


def run(
    model: Pretrained,
    train: Windows,
    test: Windows,
    *,
    seed: int,
    held_out: float = 0.25,
    forward_s: float = 0.2,
    target: str | None = "velocity",
    psth_s: float = 0.07,
) -> dict:
    """co-bps as the score, and the other scores under `latents`, for the network and the baselines.

    Baselines: "mean", each neuron's mean in training; "linear", a ridge from the held-in counts, as they are and
    smoothed, to the held-out ones of the same bin; "untrained", the network with fresh weights. All scores are means
    over animals; a score that cannot be had (no behaviour, no conditions) is missing.

    Args:
        model: a network with `log_rates` and `counts_s`, such as ndt, that knows the neurons; not changed.
        train, test: windows of the same animals, all of one length.
        seed: of the neurons that are held out, of fresh weights and of the bootstrap.
        held_out: share of each animal's neurons, where the dataset does not say which.
        forward_s: seconds at the end of a window that are predicted.
        target: covariate to decode from rates; None for none.
        psth_s: standard deviation of the Gaussian that smooths measured averages over trials, in seconds.

    Raises:
        ValueError: for a model without rates, people on one side only, sides of an animal with different neurons, or
            windows of several lengths.
    """
    if not hasattr(model.model, "log_rates"):
        raise ValueError(f"{type(model.model).__name__} predicts no firing rates; take a model such as ndt")
    people, other = train.of("person"), test.of("person")
    if set(people.tolist()) != set(other.tolist()):
        raise ValueError(f"training has {sorted(set(people))} and test {sorted(set(other))}; expected the same animals")
    if len({*train.samples.tolist(), *test.samples.tolist()}) > 1:
        raise ValueError("windows differ in length; cut all to one length_s")
    bin_s = float(model.model.counts_s)
    ahead = max(1, round(forward_s / bin_s))
    fresh = model.untrained(seed)
    co: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    latents: dict[str, dict[str, list[float]]] = {}
    said: list[str] = []
    unlike: list[str] = []
    for animal in np.unique(other):
        here, rows = train.take(people == animal), np.flatnonzero(other == animal)
        there = test.take(rows)
        both = Windows.join([here, there])
        out = chosen(both, held_out, seed)
        if named(both) is not None:
            said.append(str(animal))
        elif any(s.channels.held_out is not None and s.channels.held_out.any() for s in both.used):
            unlike.append(str(animal))
        for name, network in (("pretrained", model), ("untrained", fresh)):
            sides = [predicted(network, w, out, target) for w in (here, there)]
            (counts, rates, behaviour), (counts_test, rates_test, behaviour_test) = sides
            end, end_rates, _ = predicted(network, there, slice(-ahead, None), None)
            found = latents.setdefault(name, {})
            own = {
                "co-bps": spike_scores.bits_per_spike(counts_test[..., out], rates_test[..., out]),
                "fp-bps": spike_scores.bits_per_spike(end[:, -ahead:], end_rates[:, -ahead:]),
            }
            if behaviour is not None and behaviour_test is not None:
                own[f"{target} R2"] = spike_scores.velocity_r2(rates, behaviour, rates_test, behaviour_test)
            if len(set(there.label) | {""}) > 2 and "" not in set(there.label):
                own["psth R2"] = psth(counts_test, rates_test, there.label.astype(str), psth_s / bin_s)
            for word, value in own.items():
                found.setdefault(word, []).append(value)
            co.setdefault(name, []).append((rows, counts_test[..., out], rates_test[..., out]))
        mean = np.broadcast_to(counts[..., out].mean(axis=(0, 1)), counts_test[..., out].shape)
        co.setdefault("mean", []).append((rows, counts_test[..., out], mean))
        guess = linear(counts, counts_test, out)
        co.setdefault("linear", []).append((rows, counts_test[..., out], guess))
    scores = {name: _scored(parts, other, seed) for name, parts in co.items()}
    main = scores.pop("pretrained")
    note = f"{held_out:.0%} of each animal's neurons are held out; bins of {bin_s * 1000:g} ms."
    if said:
        note += f" Of {', '.join(said)} it is the neurons that the dataset names."
    if unlike:
        note += (
            f" Recordings of {', '.join(unlike)} do not all name the same neurons to hold out, and some to keep: what "
            "they name is not used, the share is drawn."
        )
    return {
        **protocol.result("neural_latents", "co-bps", main, 0.0, scores, train, test, seed, note),
        "latents": {name: {k: float(np.mean(v)) for k, v in found.items()} for name, found in latents.items()},
    }


def chosen(windows: Windows, share: float, seed: int) -> np.ndarray:
    """`(neuron,)` True for the neurons that are held out, of windows of one animal; at least one is, and one is not.

    Those that the dataset holds out where all recordings say so, else a share that the seed draws.

    Raises:
        ValueError: where recordings of the animal hold other neurons, or there are fewer than two.
    """
    tables = {tuple(s.channel_ids) for s in windows.used}
    n = len(next(iter(tables)))
    if len(tables) > 1 or n < 2:
        raise ValueError(
            f"{windows.used[0].person} has {len(tables)} tables of neurons, one of {n}; co-smoothing needs two or more "
            "neurons that all its sessions, training and test, share: choose sessions of tracked neurons "
            "(`brainfm ingest --tracked`)"
        )
    if (said := named(windows)) is not None:
        return said
    out = np.zeros(n, bool)
    out[np.random.default_rng(seed).permutation(n)[: min(n - 1, max(1, round(share * n)))]] = True
    return out


def named(windows: Windows) -> np.ndarray | None:
    """`(neuron,)` True for the neurons that the dataset holds out; None where not all recordings name the same ones."""
    masks = [s.channels.held_out for s in windows.used]
    said = [x for x in masks if x is not None]
    if not said or len(said) < len(masks) or not all(np.array_equal(said[0], x) for x in said):
        return None
    return said[0].copy() if 0 < said[0].sum() < len(said[0]) else None


def predicted(
    model: Pretrained, windows: Windows, hidden: np.ndarray | slice, target: str | None, size: int = 64
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Counts and expected counts `(window, bin, neuron)`, and behaviour `(window, bin, column)` in the middle of bins.

    Args:
        hidden: `(neuron,)` True for neurons that the model does not see, or a slice of bins.
        target: a covariate; None, or one that no recording has, gives None.
    """
    known = target is not None and any(target in windows.recordings[r].aligned_names for r in set(windows.recording))
    batcher = model.batcher(aligned=(str(target),) if known else ())
    device = next(model.model.parameters()).device
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    behaviour: list[np.ndarray] = []
    with torch.inference_mode(), evaluating(model.model):
        for start in range(0, len(windows), size):
            batch: TokenBatch = batcher(windows, np.arange(start, min(start + size, len(windows)))).to(device)
            channels, bins = batch.grid or (0, 0)
            cover = torch.zeros(len(batch), channels, bins, dtype=torch.bool, device=device)
            if isinstance(hidden, slice):
                cover[:, :, hidden] = True
            else:
                cover[:, torch.from_numpy(hidden).to(device)] = True
            rates = model.model.log_rates(batch, cover).exp()
            parts.append(tuple(x.transpose(1, 2).double().cpu().numpy() for x in (batch.signal(), rates)))  # type: ignore
            if known:
                width = float(model.model.counts_s)
                middle = (torch.arange(bins, device=device) + 0.5) * width
                behaviour.append(batch.at(str(target), middle, bins * width).double().cpu().numpy())
    counts, rates_of = (np.concatenate(x) for x in zip(*parts, strict=True))
    return counts, rates_of, np.concatenate(behaviour) if known else None


def psth(counts: np.ndarray, rates: np.ndarray, label: np.ndarray, smooth: float) -> float:
    """PSTH R2 of predicted rates, conditions being the labels; measured averages are smoothed by `smooth` bins."""
    trials = [np.flatnonzero(label == word) for word in np.unique(label[label != ""])]
    measured = np.stack([gaussian_filter1d(counts[rows].mean(axis=0), smooth, axis=0) for rows in trials])
    return spike_scores.psth_r2(measured, rates, trials)


def linear(counts: np.ndarray, counts_test: np.ndarray, out: np.ndarray, smooth: float = 2.0) -> np.ndarray:
    """Rates `(window, bin, held-out neuron)` by ridge from held-in counts of the bin, plain and smoothed over bins."""

    def features(x: np.ndarray) -> np.ndarray:
        seen = x[..., ~out]
        both = np.concatenate([seen, gaussian_filter1d(seen, smooth, axis=1)], axis=2)
        return both.reshape(-1, both.shape[2])

    fitted = protocol.fit_ridge(features(counts), counts[..., out].reshape(-1, int(out.sum())))
    return np.maximum(fitted.predict(features(counts_test)), LEAST).reshape(*counts_test.shape[:2], -1)


def _scored(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], people: np.ndarray, seed: int) -> protocol.Scored:
    """Bits per spike of each animal; where fewer neurons are held out, NaN fills up, which does not count."""
    bins, widest = parts[0][1].shape[1], max(x.shape[2] for _, x, _ in parts)
    true, guess = (np.full((len(people), bins, widest), np.nan) for _ in range(2))
    for rows, counts, rates in parts:
        true[rows, :, : counts.shape[2]], guess[rows, :, : counts.shape[2]] = counts, rates
    return protocol.scored(spike_scores.bits_per_spike, people, true, guess, seed)
