"""Hidden regions: predict some regions of the brain from the others at the same time points, in people never seen.

Truth and baselines live in the space that the network predicts (`model.target`), so all are asked the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from brainfm.evaluations import protocol
from brainfm.evaluations.protocol import Scored
from brainfm.metrics import r2
from brainfm.shards.read import Windows
from brainfm.shards.stored import rate
from brainfm.training.batches import batches
from brainfm.training.checkpoint import Pretrained, evaluating


def run(
    model: Pretrained,
    train: Windows,
    test: Windows,
    *,
    seed: int,
    hidden_regions: int = 19,
    masks: int = 5,
    shown: int = 2,
) -> dict:
    """R2 over the hidden regions of each test person, averaged over masks.

    Baselines under the same masks: ridge from visible to hidden regions and one scalar per region for the mean of the
    visible ones (the global signal), both fitted on the training people; and the network untrained. Chance is 0, a
    prediction of each region's mean.

    Args:
        model: a network with `reconstruct(batch, hidden)` and `target(batch)`; not changed.
        train, test: windows of one length, of different people with the same regions.
        seed: of the masks, untrained weights and bootstrap; mask m is drawn with seed + m.
        hidden_regions: how many regions are hidden, over the whole window.
        masks: how many sets of hidden regions.
        shown: hidden regions of the first mask to draw for the first person.

    Raises:
        ValueError: where the network cannot reconstruct, a person is on both sides, regions or lengths differ, or there
            are too few regions to hide.
    """
    if not (hasattr(model.model, "reconstruct") and hasattr(model.model, "target")):
        raise ValueError(f"{type(model.model).__name__} cannot reconstruct; take a masked model such as roi_mae")
    protocol.strangers(train, test, model.card)
    names, good = _regions(train, test)
    if not 0 < hidden_regions < len(good) - 1:
        raise ValueError(f"{hidden_regions} of {len(good)} good regions to hide; leave two or more visible")
    hidden = [
        np.sort(np.random.default_rng(seed + m).choice(good, hidden_regions, replace=False)) for m in range(masks)
    ]
    known, _ = reconstructed(model, train, [])
    truth, own = reconstructed(model, test, hidden)
    fresh_truth, fresh = reconstructed(model.untrained(seed), test, hidden)
    people, other = train.of("person"), test.of("person")

    def score(true: np.ndarray, guesses: Sequence[np.ndarray]) -> Scored:
        """Mean over masks; `true (window, region, time)`, each guess `(window, hidden, time)`."""
        parts = [
            protocol.scored(_r2_of_windows, other, true[:, rows], guess, seed)
            for rows, guess in zip(hidden, guesses, strict=True)
        ]
        return protocol.mean_scored(parts, seed)

    main = score(truth, own)
    linear = [_linear(known, truth, rows, people) for rows in hidden]
    compared = {
        "ridge": score(truth, [ridge for ridge, _ in linear]),
        "global signal": score(truth, [scalar for _, scalar in linear]),
        "untrained": score(fresh_truth, fresh),
    }
    return {
        **protocol.result("reconstruction", "R2", main, 0.0, compared, train, test, seed, (
            f"{hidden_regions} of {len(names)} regions hidden over whole windows, mean of {masks} masks, in the "
            "space that the network predicts."
        )),
        "traces": [_trace(test, truth[0, region], own[0][0, i], names[region])
                   for i, region in enumerate(hidden[0][:shown])],
    }  # fmt: skip


def reconstructed(
    model: Pretrained, windows: Windows, hidden: Sequence[np.ndarray], size: int = 64
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The target `(window, region, time)`, and for each set of hidden regions the prediction of them."""
    network: Any = model.model
    device = next(network.parameters()).device
    truth: list[np.ndarray] = []
    found: list[list[np.ndarray]] = [[] for _ in hidden]
    with torch.inference_mode(), evaluating(network):
        for host in batches(windows, model.batcher(), size):
            batch = host.to(device)
            grid = batch.grid or (1, batch.mask.shape[1])
            patches = int(batch.mask[0].view(grid).any(dim=0).sum())
            truth.append(_series(network.target(batch), grid, patches))
            for rows, parts in zip(hidden, found, strict=True):
                covered = torch.isin(batch.channel, torch.as_tensor(rows, device=device)) & batch.mask
                parts.append(_series(network.reconstruct(batch, covered), grid, patches)[:, rows])
    return np.concatenate(truth), [np.concatenate(parts) for parts in found]


def _linear(
    known: np.ndarray, truth: np.ndarray, rows: np.ndarray, people: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`(window, hidden, time)` by ridge from the visible regions, and by their mean times a scalar per region."""
    visible = np.setdiff1d(np.arange(known.shape[1]), rows)
    who = np.repeat(people, known.shape[2])
    given, wanted, asked = _long(known[:, visible]), _long(known[:, rows]), _long(truth[:, visible])
    ridge = protocol.fit_ridge(given, wanted, who).predict(asked)
    mean = given.mean(axis=1, keepdims=True)
    centre = wanted.mean(axis=0)
    slope = (mean - mean.mean()).T @ (wanted - centre) / max(float(np.sum((mean - mean.mean()) ** 2)), 1e-12)
    scalar = centre + (asked.mean(axis=1, keepdims=True) - mean.mean()) * slope
    shape = (len(truth), truth.shape[2], len(rows))
    return ridge.reshape(shape).swapaxes(1, 2), scalar.reshape(shape).swapaxes(1, 2)


def _long(x: np.ndarray) -> np.ndarray:
    """`(window, region, time)` → `(window x time, region)`."""
    return x.swapaxes(1, 2).reshape(-1, x.shape[1])


def _r2_of_windows(true: np.ndarray, predicted: np.ndarray) -> float:
    return r2(_long(true), _long(predicted))


def _series(tokens: torch.Tensor, grid: tuple[int, int], patches: int) -> np.ndarray:
    """`(batch, token, volume)` → `(batch, region, time)`, the first `patches` of each region."""
    return tokens.unflatten(1, grid)[:, :, :patches].flatten(2).float().cpu().numpy()


def _regions(train: Windows, test: Windows) -> tuple[list[str], np.ndarray]:
    """Names of the regions, the same in every recording, and the rows that are good in all; windows of one length."""
    both = Windows.join([train, test])
    used = both.used
    tables = {tuple(s.channels.name) for s in used}
    lengths = sorted(set(both.samples.tolist()))
    if len(tables) != 1 or len(lengths) != 1:
        raise ValueError(
            f"got {len(tables)} different tables of regions and windows of {lengths} samples; expected one of each: "
            "ingest with one atlas, and cut windows without `shortest_s`"
        )
    return list(tables.pop()), np.flatnonzero(~np.any([s.channels.bad for s in used], axis=0))


def _trace(test: Windows, true: np.ndarray, predicted: np.ndarray, name: str) -> dict:
    """The first test window of one hidden region."""
    stored = test.recordings[test.recording[0]]
    seconds = (test.start[0] + np.arange(len(true))) / rate(stored)
    return {
        "title": f"{name}, hidden, {stored.person}",
        "time": seconds.tolist(),
        "true": true.tolist(),
        "predicted": predicted.tolist(),
        "unit": "standard deviations",
    }
