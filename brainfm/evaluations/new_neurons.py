"""Transfer to an animal whose neurons the model has never seen: learn who they are without labels, then decode.

The network's weights stay; only the vectors of the new neurons are fitted, by predicting the spikes of a calibration
session. A ridge decoder is then fitted on encodings of the first seconds of that session whose behaviour is known, and
scored on a later session. The question is how few labelled seconds suffice.

A network that reads behaviour out and nothing else (POYO) has nothing to learn from spikes alone: it is adapted to the
labelled seconds by `brainfm/training/new_animal.py`, and its own answers are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich.progress import track

from brainfm.evaluations import baselines, protocol
from brainfm.evaluations.regression import block_of, traces, with_target
from brainfm.metrics import r2
from brainfm.objectives.next_spike import NextSpike
from brainfm.shards.read import Windows
from brainfm.shards.stored import rate
from brainfm.training import new_animal
from brainfm.training.checkpoint import Pretrained
from brainfm.training.optimisers import summed


def run(
    model: Pretrained,
    train: Windows,
    test: Windows,
    *,
    seed: int,
    target: str = "velocity",
    unlabelled_steps: int = 300,
    lr: float = 3e-3,
    batch_size: int = 32,
    label_seconds: Sequence[float] = (5, 20, 60, 120),
    linear_bins: int = 6,
    bin_s: float = 0.05,
    frozen_share: float = 0.5,
) -> dict:
    """R2 of the decoder over labelled seconds, for the network pretrained, untrained, and for binned counts.

    The untrained network goes through the same steps: its new neurons are fitted, its weights stay random. `score` is
    at the most labelled seconds.

    Args:
        model: a network with `add_neurons` and `freeze_but_neurons`; a copy is adapted, it is not changed.
        train: windows of the calibration session of each new animal.
        test: windows of a later session of the same animals.
        seed: of untrained weights, batches, dropout and bootstrap.
        target: the covariate to decode; it is withheld from the network while neurons are fitted.
        unlabelled_steps, lr, batch_size: of fitting the neurons' vectors with Adam, per animal; for a self-reading
            network the steps of its adaptation, which are labelled.
        label_seconds: seconds of calibration whose target the decoder may see; more than there are counts as all.
        linear_bins, bin_s: spike history of the linear decoder.
        frozen_share: of a self-reading network's steps, in which only vectors of neurons and sessions, and its latents,
            train; then all does. 1 is unit identification alone.

    Raises:
        ValueError: where the network knows no neurons, has seen the animal, or an animal lacks a session.
    """
    if not hasattr(model.model, "freeze_but_neurons"):
        raise ValueError(
            f"{type(model.model).__name__} has no vectors of neurons to fit; take a model such as neuroformer"
        )
    calibration, taught = with_target(train, target)
    later, truth = with_target(test, target)
    animals, other = calibration.of("person"), later.of("person")
    if set(animals.tolist()) != set(other.tolist()):
        raise ValueError(
            f"calibration has {sorted(set(animals))} and test {sorted(set(other))}; each needs both sessions"
        )
    elapsed = labelled_time(calibration)
    fresh = model.untrained(seed)
    guesses: dict[tuple[str, float], np.ndarray] = {}
    gained: list[str] = []
    reads = target in getattr(model.model, "targets", ()) and not hasattr(model.model, "generate")
    frozen = round(frozen_share * unlabelled_steps)
    for animal in np.unique(animals):
        mine, theirs = animals == animal, other == animal
        here, there = calibration.take(mine), later.take(theirs)
        _strange(model, here)
        unlabelled = train.take(train.of("person") == animal)
        views = {"linear": _counts(here, there, bin_s, linear_bins)}
        for name, start in (("pretrained", model), ("untrained", fresh)):
            if reads:
                for seconds in label_seconds:
                    rows = _labelled(elapsed[mine], seconds, animal)
                    fitted, loss = new_animal.adapt(
                        start, here.take(rows), steps=unlabelled_steps, frozen_steps=frozen, lr=lr,
                        batch_size=batch_size, seed=seed,
                    )  # fmt: skip
                    guess = guesses.setdefault((name, seconds), np.zeros(truth.shape))
                    guess[theirs] = new_animal.predicted(fitted, there, target)
                gained.append(f"{name} {loss[0]:.2f} to {loss[1]:.2f}")
                continue
            fitted, loss = with_neurons(start, unlabelled, target, unlabelled_steps, lr, batch_size, seed)
            views[name] = (fitted.features(here), fitted.features(there))
            gained.append(f"{name} {loss[0]:.2f} to {loss[1]:.2f}")
        for name, (x, y) in views.items():
            for seconds in label_seconds:
                rows = _labelled(elapsed[mine], seconds, animal)
                guess = guesses.setdefault((name, seconds), np.zeros(truth.shape))
                guess[theirs] = protocol.fit_ridge(x[rows], taught[mine][rows]).predict(y)

    block = block_of(len(truth))
    curves = {key: protocol.scored(r2, other, truth, guess, seed, block) for key, guess in guesses.items()}
    most = max(label_seconds)
    mean = np.stack([taught[animals == animal].mean(axis=0) for animal in other])
    compared = {
        "mean": protocol.scored(r2, other, truth, mean, seed, block),
        "binned counts": curves["linear", most],
        "untrained": curves["untrained", most],
    }
    how = (
        f"Vectors of neurons and sessions, and latents, train for {frozen} of {unlabelled_steps} steps on "
        "the labelled seconds, then everything"
        if reads
        else f"Only the vectors of the new neurons are fitted, {unlabelled_steps} steps without the target"
    )
    note = (
        f"{how}; loss: {'; '.join(gained)}. "
        f"The linear decoder sees the last {linear_bins * bin_s:g} s of spikes of each window."
    )
    return {
        **protocol.result("new_neurons", "R2", curves["pretrained", most], 0.0, compared, train, test, seed, note),
        "curve": [
            {"shots": seconds, "model": name, **curves[name, seconds].entry()}
            for name in ("pretrained", "untrained", "linear")
            for seconds in label_seconds
        ],
        "curve_axis": "labelled seconds of the new animal",
        "same_people": True,
        "traces": traces(later, truth, guesses["pretrained", most], target, "end"),
    }


def with_neurons(
    model: Pretrained, windows: Windows, withheld: str, steps: int, lr: float, batch_size: int, seed: int
) -> tuple[Pretrained, tuple[float, float]]:
    """A copy of the model that knows the neurons of `windows`, fitted to continue their spikes; all else is frozen.

    Args:
        withheld: a covariate that does not enter, be it input or output of the network.

    Returns:
        The copy, and its loss over the first and the last tenth of the steps.
    """
    copy = model.copy()
    network: Any = copy.model
    ids = sorted(_strange(copy, windows))
    aligned = tuple(name for name in getattr(network, "aligned", ()) if name != withheld)
    objective = NextSpike()
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.add_neurons(ids)
        network.add_sessions(sorted({s.id for s in windows.used}))
        network.freeze_but_neurons()
        batcher = copy.batcher(aligned=aligned)
        optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr)
        rng, device = np.random.default_rng(seed), next(network.parameters()).device
        network.train()
        for _ in track(range(steps), f"Neurons of {windows.of('person')[0]}", transient=True):
            rows = np.sort(rng.choice(len(windows), min(batch_size, len(windows)), replace=False))
            loss = summed(objective(network, batcher(windows, rows).to(device)))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    network.eval()
    part = max(1, steps // 10)
    return copy, (float(np.mean(losses[:part])), float(np.mean(losses[-part:])))


def _labelled(elapsed: np.ndarray, seconds: float, animal: str) -> np.ndarray:
    """Which windows end in the first seconds."""
    rows = elapsed <= seconds + 1e-6
    if rows.sum() < 2:
        raise ValueError(f"{animal}: {rows.sum()} windows end in the first {seconds} s; label more seconds")
    return rows


def _strange(model: Pretrained, windows: Windows) -> set[str]:
    """The neurons of one animal's windows that the model does not know.

    Raises:
        ValueError: where there is none, or the model was trained on other neurons of the animal.
    """
    person = windows.used[0].person
    ids = {x for s in windows.used for x in s.channel_ids} - set(model.model.neurons)
    if not ids:
        raise ValueError(f"the model knows every neuron of {person}; take an animal that it was not trained on")
    if person in model.facts.subjects:
        raise ValueError(
            f"the model was trained on {person}, in sessions whose neurons have other names; take an animal that it "
            "was not trained on (sessions of known animals are for `blocks`, and tracked neurons are known)"
        )
    return ids


def labelled_time(windows: Windows) -> np.ndarray:
    """`(window,)` seconds of calibration up to the window's end, counted over each animal's recordings in turn."""
    out = np.zeros(len(windows))
    before: dict[str, float] = {}
    for r in protocol.recordings_in_time(windows):
        stored, rows = windows.recordings[r], windows.recording == r
        end = (windows.start[rows] + windows.samples[rows] - windows.start[rows].min()) / rate(stored)
        out[rows] = before.get(stored.person, 0.0) + end
        before[stored.person] = float(out[rows].max())
    return out


def _counts(train: Windows, test: Windows, bin_s: float, bins: int) -> tuple[np.ndarray, np.ndarray]:
    both = baselines.binned_counts(Windows.join([train, test]), bin_s, bins)
    return both[: len(train)], both[len(train) :]
