"""Hidden regions: predict some regions of the brain from the others at the same time points, in people never seen.

Truth and baselines live in the space that the network predicts (`model.target`), so all are asked the same.

Beside R2 stands the correlation of each hidden region with its prediction over a whole scan, by Fisher's z. A slow
series correlates with anything slow, so its null is surrogates of the truth with the same spectrum (Prichard & Theiler
1994). The last value seen, the baseline of forecasts, says nothing here: of a hidden region no value is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from brainfm.evaluations import protocol
from brainfm.evaluations.autoencoding import correlations
from brainfm.evaluations.protocol import Scored
from brainfm.metrics import effective_samples, mean_correlation, r2
from brainfm.shards.read import Windows
from brainfm.shards.stored import rate
from brainfm.statistics import bootstrap_ci, permutation_p, phase_randomised
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
    surrogates: int = 200,
) -> dict:
    """R2 over the hidden regions of each test person, averaged over masks.

    Baselines under the same masks: ridge from visible to hidden regions and one scalar per region for the mean of the
    visible ones (the global signal), both fitted on the training people; and the network untrained. Chance is 0, a
    prediction of each region's mean. `measures` has the correlations too, `regions` each region's, the worst first, and
    `surrogates` how often one of the truth correlates with the prediction as well.

    Args:
        model: a network with `reconstruct(batch, hidden)` and `target(batch)`; not changed.
        train, test: windows of one length, of different people with the same regions.
        seed: of the masks, untrained weights and bootstrap; mask m is drawn with seed + m.
        hidden_regions: how many regions are hidden, over the whole window.
        masks: how many sets of hidden regions.
        shown: hidden regions of the first mask to draw for the first person.
        surrogates: of the truth of each scan, with random phases.

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

    linear = [_linear(known, truth, rows, people) for rows in hidden]
    guesses = {
        "pretrained": own,
        "ridge": [ridge for ridge, _ in linear],
        "global signal": [scalar for _, scalar in linear],
        "untrained": fresh,
    }
    asked = {name: fresh_truth if name == "untrained" else truth for name in guesses}
    compared = {name: score(asked[name], guess) for name, guess in guesses.items()}
    scans = np.unique(test.recording)
    who = np.array([test.recordings[s].person for s in scans])
    series = {name: _by_scan(asked[name], guess, hidden, test.recording) for name, guess in guesses.items()}
    r = {name: np.stack([correlations(a, b) for a, b in pairs]) for name, pairs in series.items()}
    correlated = {name: protocol.scored(_fisher_mean, who, x, x, seed) for name, x in r.items()}
    null = _surrogates(series["pretrained"], who, surrogates, seed)
    worth = np.array([_worth(*pair) for pair in series["pretrained"]])
    regions = {name: _regional(x, hidden, who) for name, x in r.items()}
    told = _told(regions["pretrained"], names, seed)
    measures: dict[str, dict[str, dict]] = {
        "R2": {name: _entry(one) for name, one in compared.items()},
        "R": {
            **{name: _entry(one) for name, one in correlated.items()},
            "surrogates": {"score": float(null.mean()), "ci": np.percentile(null, (2.5, 97.5)).tolist()},
        },
        "R, spread over regions": {n: {"score": float(np.std(_mean_of_people(x)))} for n, x in regions.items()},
        "R, worst region": {n: {"score": float(np.min(_mean_of_people(x)))} for n, x in regions.items()},
        "independent volumes": {"pretrained": _entry(protocol.scored_mean(who, worth, seed))},
    }
    main = compared.pop("pretrained")
    note = (
        f"{hidden_regions} of {len(names)} regions hidden over whole windows, mean of {masks} masks, in the space that "
        f"the network predicts. R is worst in {', '.join(x['name'] for x in told[:3])}; of {surrogates} surrogates of "
        f"the truth with its spectrum {int(np.sum(null >= correlated['pretrained'].score))} correlate as well."
    )
    return {
        **protocol.result("reconstruction", "R2", main, 0.0, compared, train, test, seed, note),
        "measures": measures,
        "surrogates": {"n": surrogates, "p": permutation_p(correlated["pretrained"].score, null)},
        "regions": told,
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


def _by_scan(
    true: np.ndarray, guesses: Sequence[np.ndarray], hidden: Sequence[np.ndarray], scan: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each recording, truth and prediction `(mask, hidden region, window x time)`."""
    asked, said = true[:, np.stack(hidden)], np.stack(guesses, axis=1)  # (window, mask, hidden region, time)
    return [(_joined(asked[scan == s]), _joined(said[scan == s])) for s in np.unique(scan)]


def _joined(x: np.ndarray) -> np.ndarray:
    """`(window, ..., time)` → `(..., window x time)`."""
    return np.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)


def _fisher_mean(r: np.ndarray, _: np.ndarray) -> float:
    """Of a person's correlations `(scan, mask, hidden region)`."""
    return mean_correlation(r.ravel())


def _worth(true: np.ndarray, guess: np.ndarray) -> float:
    """How many independent samples R is of, the mean over masks and regions of series `(mask, hidden region, time)`."""
    pairs = zip(true.reshape(-1, true.shape[-1]), guess.reshape(-1, guess.shape[-1]), strict=True)
    return float(np.mean([effective_samples(a, b) for a, b in pairs]))


def _surrogates(
    series: Sequence[tuple[np.ndarray, np.ndarray]], who: np.ndarray, surrogates: int, seed: int
) -> np.ndarray:
    """`(surrogate,)` mean over people of R where the truth of each scan gets random phases, one set for its regions.

    Args:
        series: of each scan, see `_by_scan`. who: `(scan,)` whose it is.
    """
    rng, drawn = np.random.default_rng(seed), np.zeros((len(series), surrogates))
    for scan, (true, guess) in enumerate(series):
        flat = true.reshape(-1, true.shape[-1]).T
        for n in range(surrogates):
            other = phase_randomised(flat, rng).T.reshape(true.shape)
            drawn[scan, n] = np.arctanh(mean_correlation(correlations(other, guess).ravel()))
    return np.mean([np.tanh(drawn[who == name].mean(axis=0)) for name in np.unique(who)], axis=0)


def _regional(r: np.ndarray, hidden: Sequence[np.ndarray], who: np.ndarray) -> dict[int, np.ndarray]:
    """Region → `(person,)` Fisher's mean of its correlations over scans and over the masks that hid it."""
    rows = np.stack(hidden)
    return {
        int(region): np.array([mean_correlation(r[who == name][:, rows == region].ravel()) for name in np.unique(who)])
        for region in np.unique(rows)
    }


def _mean_of_people(regions: dict[int, np.ndarray]) -> np.ndarray:
    """`(region,)`."""
    return np.array([x.mean() for x in regions.values()])


def _told(regions: dict[int, np.ndarray], names: Sequence[str], seed: int) -> list[dict]:
    """Each hidden region by name with its mean over people and the interval, the worst first."""
    found = [
        {
            "name": names[region], "score": float(x.mean()),
            "ci": list(bootstrap_ci(x, seed=seed)) if len(x) > 1 else None,
        }
        for region, x in regions.items()
    ]  # fmt: skip
    return sorted(found, key=lambda x: x["score"])


def _entry(one: Scored) -> dict:
    return {**one.entry(), "per_subject": one.per_subject}


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
