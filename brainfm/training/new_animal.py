"""To an animal that a network has never seen: first who its neurons are, then everything.

For networks that read behaviour out themselves (POYO). New neurons and sessions get vectors; these and the latents
train while the rest is frozen, as published ("unit identification"), and after so many steps everything trains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from rich.progress import track

from brainfm.objectives.behaviour import Behaviour
from brainfm.shards.read import Windows
from brainfm.splits import natural
from brainfm.training.batches import Batcher, batches
from brainfm.training.checkpoint import Pretrained, evaluating
from brainfm.training.optimisers import summed


def adapt(
    model: Pretrained, windows: Windows, *, steps: int, frozen_steps: int, lr: float, batch_size: int, seed: int,
    keep_neurons: Sequence[int] | None = (30, 100, 300), weight_decay: float = 1e-4,
) -> tuple[Pretrained, tuple[float, float]]:  # fmt: skip
    """A copy of the model that knows the neurons and sessions of labelled windows.

    Args:
        model: not changed. windows: of the new animal; what the model reads out is known there.
        steps: of AdamW in all; the learning rate rises over the first twentieth and falls to a tenth along a cosine.
        frozen_steps: steps in which only new vectors and latents train. 0 trains everything from the start; `steps` or
            more is unit identification alone.
        lr, batch_size, weight_decay: of the optimiser.
        seed: of vectors, batches and dropout.
        keep_neurons: as in `objectives/behaviour.py`.

    Returns:
        The copy in evaluation mode, and its loss over the first and the last tenth of the steps.
    """
    network = deepcopy(model.model)
    used = windows.used
    objective, losses = Behaviour(keep_neurons).train(), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.add_neurons(sorted({x for s in used for x in s.channel_ids}))
        network.add_sessions(sorted({s.id for s in used}))
        facts = replace(model.facts, neurons=tuple(network.neurons), sessions=tuple(network.sessions))
        copy = Pretrained(network, model.config, facts, model.card)
        batcher, device = copy.batcher(), next(network.parameters()).device
        network.freeze_but_neurons()
        # all parameters from the start: an optimiser made of the free ones would never move the others
        optimiser = torch.optim.AdamW(network.parameters(), lr, weight_decay=weight_decay)
        rng = np.random.default_rng(seed)
        network.train()
        for step in track(range(steps), f"New animal {used[0].person}", transient=True):
            if step == frozen_steps:
                network.unfreeze()
            for group in optimiser.param_groups:
                group["lr"] = lr * min(1.0, 20 * (step + 1) / steps) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
            rows = np.sort(rng.choice(len(windows), min(batch_size, len(windows)), replace=False))
            loss = summed(objective(network, batcher(windows, rows).to(device)))
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            losses.append(float(loss.detach()))
    network.unfreeze()
    network.eval()
    part = max(1, steps // 10)
    return copy, (float(np.mean(losses[:part])), float(np.mean(losses[-part:])))


def taught(model: Pretrained, target: str) -> dict[str, int]:
    """Recordings of whose covariate the model has learnt a mean and a deviation, in natural order; their numbers."""
    standard, sessions = model.model.standard[target], model.batcher().sessions or {}
    return {x: sessions[x] for x in sorted(sessions, key=natural) if bool(standard.count[sessions[x]].any())}


def reading(model: Pretrained, windows: Windows, target: str) -> Batcher:
    """The model's batcher; a recording that it was not taught is read as the latest of the same animal that it was.

    Raises:
        ValueError: for an animal none of whose recordings it was taught.
    """
    known, sessions = taught(model, target), {}
    for stored in windows.used:
        own = [n for x, n in known.items() if x == stored.id or x.startswith(f"{stored.person}/")]
        if not own:
            raise ValueError(
                f"the model was taught {target} of no recording of {stored.person}; adapt it to labelled windows first"
            )
        sessions[stored.id] = known.get(stored.id, own[-1])
    return replace(model.batcher(), sessions=sessions)


def predicted(model: Pretrained, windows: Windows, target: str, size: int = 64) -> np.ndarray:
    """What the model reads out at the last sample of a covariate in each window, `(window, feature)` in its own unit.

    Raises:
        ValueError: for an animal none of whose recordings it was taught, see `reading`.
    """
    network, batcher = model.model, reading(model, windows, target)
    device, found = next(network.parameters()).device, []
    with torch.inference_mode(), evaluating(network):
        for host in batches(windows, batcher, size):
            batch = host.to(device)
            last = {target: network.times(batch)[target][..., -1:]}
            found.append(network.predict(batch, last)[target][:, -1].float().cpu().numpy())
    return np.concatenate(found)
