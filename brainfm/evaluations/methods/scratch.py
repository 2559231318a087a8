"""Networks trained from scratch on the channels that all recordings share: what a pretrained network has to beat.

Their first layer has a weight for each channel, so they need one montage, see `Trials.signals`. They get the training
of a fine-tuned network: the same sides, steps, windows per step, early stopping and number of settings to choose from
(`tuned.Finetune`). Their rates are ten times as high, for they start from nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from brainfm import catalog
from brainfm.catalog import nearest
from brainfm.evaluations.methods.trials import Trials
from brainfm.evaluations.methods.tuned import Finetune
from brainfm.objectives.supervised import Bounded
from brainfm.recording import Channels
from brainfm.tokens import Facts
from brainfm.training.batches import ArrayDataset, Batcher
from brainfm.training.checkpoint import Pretrained, build
from brainfm.training.finetuning import Tuning

#: Learning rates of these networks are so many times those that a pretrained network tries.
RATE_FACTOR = 10.0


class Stacked(nn.Sequential):
    """Two hidden layers with ELU and dropout: the readout of EEG Conformer (doi:10.1109/TNSRE.2022.3230250)."""

    def __init__(self, features: int, classes: int, hidden: tuple[int, int] = (256, 32)) -> None:
        first, second = hidden
        super().__init__(
            nn.Linear(features, first), nn.ELU(), nn.Dropout(0.5), nn.Linear(first, second), nn.ELU(), nn.Dropout(0.3),
            nn.Linear(second, classes),
        )  # fmt: skip


#: Name of the model → width of its pooled encoding and number of classes → the readout of its paper.
READOUTS: dict[str, Callable[[int, int], nn.Module]] = {
    "eegnet": partial(Bounded, bound=0.25),
    "shallow_fbcsp": partial(Bounded, bound=0.5),
    "deep4": partial(Bounded, bound=0.5),
    "eeg_conformer": Stacked,
}


def readout(name: str, features: int, classes: int) -> nn.Module:
    """What gives logits of a network's pooled encoding `(batch, feature)` in its paper.

    Raises:
        KeyError: for a model that is not trained from scratch, with the nearest name.
    """
    return _known(name)(features, classes)


def networks(trials: Trials, names: Sequence[str], seed: int) -> dict[str, tuple[Pretrained, ArrayDataset]]:
    """Networks of these names in their `local` size with fresh weights, and all windows as their batches.

    Args:
        trials: whose shared channels they read. names: of `READOUTS`. seed: of the weights.

    Raises:
        KeyError: for an unknown name. ValueError: for windows too short for a network, with the shortest.
    """
    found = {}
    for name in names:
        _known(name)  # told before the signals are read
        signals = trials.signals()
        config, facts = _described(trials, name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build(config, facts).eval()
        fresh = Pretrained(model, config, facts, {"untrained": True})
        table = Channels.make([f"shared {i}" for i in range(facts.channels)], "misc")  # in typical amplitudes already
        batcher = Batcher(patch=fresh.model.patch)
        found[name] = (fresh, ArrayDataset(signals.values, table, signals.sfreq, batcher))
    return found


def fits(trials: Trials, name: str) -> bool:
    """Whether the windows are long enough for the network: it is built without weights, for its shapes alone."""
    _known(name)
    config, facts = _described(trials, name)
    try:
        with torch.device("meta"):
            build(config, facts)
    except ValueError:
        return False
    return True


def methods(trials: Trials, names: Sequence[str], tuning: Tuning, seed: int) -> list[Finetune]:
    """The networks as methods of a comparison, each called by its name; arguments as in `networks`."""
    return [
        Finetune(
            fresh, name, tuning, decay=1.0, factor=RATE_FACTOR, readout_factor=1.0, readout=READOUTS[name],
            standardised=False, batches=batches,
        )
        for name, (fresh, batches) in networks(trials, names, seed).items()
    ]  # fmt: skip


def _described(trials: Trials, name: str) -> tuple[dict[str, Any], Facts]:
    """Configuration of a network in its `local` size, and what it is built from."""
    signals = trials.signals()
    channels, samples = signals.values.shape[1:]
    facts = Facts(("eeg",), ("eeg",), signals.sfreq, samples / signals.sfreq, channels)
    size = catalog.load("models", name).SIZES["local"]
    return {"kind": "models", "name": name, "keywords": size}, facts


def _known(name: str) -> Callable[[int, int], nn.Module]:
    if name not in READOUTS:
        raise KeyError(f"no network {name!r} to train from scratch; {nearest(name, list(READOUTS))}")
    return READOUTS[name]
