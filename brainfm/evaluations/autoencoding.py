"""A tokenizer's codes, decoded for people that it never heard: how much of the signal they keep, how many serve.

The score is Pearson's correlation of each channel and window with its reconstruction, averaged within a person. Truth
and baselines are what the tokenizer is asked for (`reconstruct`): each window referenced and standardised.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from brainfm.codebooks.residual import perplexity_of_counts
from brainfm.evaluations import protocol
from brainfm.objectives.reconstruct import pearson
from brainfm.shards.read import Windows
from brainfm.training.batches import batches
from brainfm.training.checkpoint import Pretrained, evaluating

#: Standard deviations that the levels of a principal component's number span to either side.
SPAN = 4.0


def run(model: Pretrained, train: Windows, test: Windows, *, seed: int, fitted: int = 3000) -> dict:
    """Correlation with the reconstruction from codes, for each test person.

    Baselines: the tokenizer untrained, and principal components of whole windows over all channels, fitted on the
    training people: as many numbers a second as there are codes, each rounded to as many levels as a code has values.
    The components need one montage; they are left out where there are several. Chance is 0.

    Args:
        model: a tokenizer, or a model with one inside (`codebook`); not changed.
        train, test: windows of different people.
        seed: of untrained weights, the choice of windows and the bootstrap.
        fitted: training windows at most that the components are fitted to.

    Raises:
        ValueError: where the model has no tokenizer, or a person is on both sides or was trained on.
    """
    network = tokenizer_of(model)
    protocol.strangers(train, test, model.card)
    truth, made, used = reconstructed(network, model, test)
    fresh = model.untrained(seed)
    target, blind, _ = reconstructed(tokenizer_of(fresh), fresh, test)
    who = test.of("person")

    def score(true: list[np.ndarray], guess: list[np.ndarray]) -> protocol.Scored:
        each = np.array([np.mean(correlations(a, b)) for a, b in zip(true, guess, strict=True)])
        return protocol.scored_mean(who, each, seed)

    compared = {"untrained": score(target, blind)}
    per_window = network.sources * network.tokens_per_window * network.depth
    bits = math.log2(network.codes_per_depth)
    note = ""
    if len({x.shape for x in truth}) == 1:
        rows = np.sort(np.random.default_rng(seed).permutation(len(train))[:fitted])
        known = reconstructed(network, model, train.take(rows), decode=False)[0]
        compared["principal components, a linear code"] = score(truth, components(known, truth, per_window, bits))
    else:
        note = "Principal components are left out, for the recordings' channels differ. "
    seconds = network.patch / network.sfreq
    perplexity = perplexity_of_counts(torch.from_numpy(used)).tolist()
    note += (
        f"{per_window / seconds:g} codes or {per_window * bits / seconds:g} bits a second; of "
        f"{network.codes_per_depth} codes the test people's perplexity is "
        f"{', '.join(f'{x:.0f}' for x in perplexity)} at depths 1 to {network.depth}."
    )
    main = score(truth, made)
    return {
        **protocol.result("autoencoding", "PCC", main, 0.0, compared, train, test, seed, note),
        "perplexity": perplexity,
        "bits_per_second": per_window * bits / seconds,
        "traces": [_trace(test, network.sfreq, truth[0], made[0], c) for c in (0, len(truth[0]) // 2)],
    }


def reconstructed(
    network: Any, model: Pretrained, windows: Windows, size: int = 64, decode: bool = True
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Of each window the target and the reconstruction `(channel, time)`, real ones only; and counts `(depth, code)`.

    Raises:
        ValueError: where a window is shorter than the tokenizer's, or has no live channel.
    """
    device = next(network.parameters()).device
    truth: list[np.ndarray] = []
    made: list[np.ndarray] = []
    used = np.zeros((network.depth, network.codes_per_depth))
    with torch.inference_mode(), evaluating(network):
        for host in batches(windows, model.batcher(), size):
            done = network.autoencode(host.to(device))
            used += network.usage(done.sources).cpu().numpy()
            for x, y, real in zip(done.target.cpu(), done.reconstruction.cpu(), done.mask.cpu(), strict=True):
                channels, length = real.any(dim=1), real.any(dim=0)
                if not channels.any():
                    stored = windows.recordings[windows.recording[len(truth)]]
                    raise ValueError(f"{stored.id}: no channel is alive in a whole window; mend or leave it out")
                truth.append(x[channels][:, length].flatten(1).numpy())
                made.append(y[channels][:, length].flatten(1).numpy() if decode else truth[-1][:, :0])
    return truth, made, used


def components(known: list[np.ndarray], asked: list[np.ndarray], numbers: int, bits: float) -> list[np.ndarray]:
    """`asked` from so many principal components of `known`, each a number of so many bits; `(channel, time)` all.

    The mean of each component is sent for free. Levels lie evenly within `SPAN` deviations of the known windows.
    """
    x, y = (np.stack([w.ravel() for w in part]).astype(np.float64) for part in (known, asked))
    mean = x.mean(axis=0)
    with protocol.threads().limit(limits=1):
        basis = np.linalg.svd(x - mean, full_matrices=False)[2][:numbers]
        spread, score = ((x - mean) @ basis.T).std(axis=0), (y - mean) @ basis.T
        level = 2 * SPAN * spread / (2**bits - 1)
        level = np.where(level > 0, level, 1.0)
        sent = np.clip(np.round(score / level), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * level
        return list((sent @ basis + mean).reshape(len(asked), *asked[0].shape))


def correlations(true: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Pearson's r of each channel `(channel,)`."""
    return pearson(torch.from_numpy(true).double(), torch.from_numpy(guess).double()).numpy()


def tokenizer_of(model: Pretrained) -> Any:
    network = getattr(model.model, "codebook", model.model)
    if not hasattr(network, "autoencode"):
        raise ValueError(f"{type(network).__name__} has no codes to decode; take a tokenizer or a model over its codes")
    return network


def _trace(test: Windows, sfreq: float, true: np.ndarray, guess: np.ndarray, channel: int) -> dict:
    """One channel of the first test window."""
    stored = test.recordings[test.recording[0]]
    return {
        "title": f"{stored.channels.name[channel]}, reconstructed from codes, {stored.person}",
        "time": (test.start[0] / sfreq + np.arange(true.shape[-1]) / sfreq).tolist(),
        "true": true[channel].tolist(),
        "predicted": guess[channel].tolist(),
        "unit": "standard deviations",
    }
