"""Adaptation modes by one word each: how a pretrained network becomes a decoder of someone's conditions.

| word | what is fitted | the network |
|---|---|---|
| `probe` | logistic regression on pooled encodings | frozen |
| `attentive` | a query that attends over tokens, and a linear layer | frozen |
| `finetune` | everything, rates falling with depth, under a small readout | trained |
| `lora` | low-rank adapters in the blocks, and the readout | adapters only |
| `subject_layer` | a layer on the input for each person, and the readout; for a new person that layer alone | frozen |
| `euclidean`, `riemannian` | each person's signals recentred without labels; then as `probe` | frozen |
| `statistics` | each person's encodings centred and scaled without labels; then as `probe` | frozen |
| `erase_subject` | what tells the training people apart erased from encodings; then as `probe` | frozen |

Each is a `Method` (`trials.py`), for comparisons and for `brainfm.Decoder` alike. A class that nobody of the training
side has gets no probability until shots bring it; with `subject_layer`, whose readout stays as it was fitted, not even
then. Whose rows may be looked at without labels is said by `views.known`.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from brainfm.catalog import nearest
from brainfm.evaluations.methods.probing import FittedProbe, Probe, Readout
from brainfm.evaluations.methods.subject_layer import FittedSubjectLayer, SubjectLayer, by_person
from brainfm.evaluations.methods.tuned import TUNING, Attend, Finetune, FittedNetwork, LowRankTuning, Tokens
from brainfm.evaluations.methods.views import SIGNAL_LEVEL, Batches, Centred, Erased, Pooled, Shown, View, Whitened
from brainfm.layers import lora, mixing
from brainfm.layers.attentive import Attentive
from brainfm.objectives.supervised import Hidden, Standardised, Supervised
from brainfm.training import checkpoint
from brainfm.training.checkpoint import Pretrained
from brainfm.training.finetuning import Tuning

#: Words of linear probes on some view of the frozen network.
LINEAR: dict[str, Callable[[Pretrained], View]] = {
    "probe": Pooled,
    "statistics": Centred,
    "erase_subject": Erased,
    **{word: lambda encoder, word=word: Whitened(encoder, word) for word in SIGNAL_LEVEL},  # type: ignore[misc]
}
#: Words of what trains by gradient.
TRAINED: dict[str, Callable[..., Any]] = {
    "attentive": Attend, "finetune": Finetune, "lora": LowRankTuning, "subject_layer": SubjectLayer,
}  # fmt: skip
ADAPT = ("probe", "attentive", "finetune", "lora", "subject_layer", *SIGNAL_LEVEL, "statistics", "erase_subject")
#: Words that look at a new person's rows without labels.
ALIGNED = (*SIGNAL_LEVEL, "statistics")
#: Words that read the channels that all recordings share, not each recording's own.
SHARED_MONTAGE = (*SIGNAL_LEVEL, "subject_layer")

#: Arrays of a probe's readout.
PROBE_PARTS = ("mean", "scale", "weight", "bias")

AnyFitted = FittedProbe | FittedNetwork | FittedSubjectLayer


def method(word: str, encoder: Pretrained, tuning: Tuning = TUNING, name: str = "") -> Any:
    """The `Method` of a word of `ADAPT`.

    Args:
        word: which. encoder: the network that it adapts; not changed.
        tuning: steps, batches and patience of what trains by gradient. name: in a result; the word if empty.

    Raises:
        ValueError: for an unknown word, with the nearest.
    """
    check(word)
    if word in LINEAR:
        return Probe(LINEAR[word](encoder), name or word)
    return TRAINED[word](encoder, name or word, tuning)


def check(word: str) -> None:
    """Raise ValueError for a word that is not of `ADAPT`."""
    if word not in ADAPT:
        raise ValueError(f"adapt={word!r} is not known; {nearest(word, list(ADAPT))}")


class Saved(NamedTuple):
    """What a fitted mode is kept as: a network of the catalogue's layout, arrays, and what JSON holds."""

    encoder: Pretrained
    arrays: dict[str, Tensor]
    described: dict[str, Any]


def saved(fitted: AnyFitted) -> Saved:
    """A fitted mode as files can hold it; adapters are folded into the network's weights."""
    if isinstance(fitted, FittedProbe):
        arrays, people = fitted.view.state()
        readout = {k: v for k, v in vars(fitted.readout).items() if isinstance(v, np.ndarray) and k != "classes"}
        parts = {**{f"readout.{k}": v for k, v in readout.items()}, **{f"view.{k}": v for k, v in arrays.items()}}
        tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in parts.items()}
        trained = fitted.readout.classes.tolist()
        return Saved(fitted.view.encoder, tensors, {"of": fitted.readout.of, "trained": trained, "people": people})
    network = fitted.network if isinstance(fitted, FittedSubjectLayer) else fitted
    rates = {k: getattr(network.tuning, k) for k in ("learning_rate", "readout_factor", "decay", "weight_decay")}
    described = {
        "of": len(network.seen), "trained": np.flatnonzero(network.seen).tolist(), "people": [], "tuning": rates,
    }  # fmt: skip
    state = dict(network.objective.state_dict())
    old = network.encoder
    if isinstance(fitted, FittedSubjectLayer):
        state["mixing.weight"] = network.model.mixing.weight.detach()
        return Saved(old, state, {**described, "people": list(fitted.names)})
    if isinstance(network.model, Attentive):
        state |= {f"attentive.{k}": v for k, v in network.model.state_dict().items()}
        return Saved(old, state, {**described, "heads": network.model.heads})
    adapters = lora.described(network.model)
    plain = lora.merged(network.model).eval()
    for name, weight in plain.named_parameters():  # what adapters froze trains again, what was frozen before does not
        weight.requires_grad_(old.model.get_parameter(name).requires_grad)
    tuned = Pretrained(plain, old.config, old.facts, dict(old.card))
    return Saved(tuned, state, {**described, "adapters": adapters} if adapters else described)


def restored(word: str, kept: Saved, trials: Shown, where: str, seed: int = 0) -> AnyFitted:
    """What `saved` was given, on these trials, without the training rows; adapters are folded and start anew.

    Torch's generator is left as it was.

    Args:
        word: of `ADAPT`. kept: what `saved` gave. trials: whose rows it will answer for. where: the file, for errors.
        seed: of the adapters that start anew.

    Raises:
        CheckpointError: for arrays that are not those of this mode.
    """
    check(word)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _restored(word, kept, trials, where)


def _restored(word: str, kept: Saved, trials: Shown, where: str) -> AnyFitted:
    encoder, arrays, described = kept
    of, trained, people = described["of"], np.array(described["trained"], np.int64), described["people"]
    try:
        if word in LINEAR:
            readout = Readout(**{k: arrays[f"readout.{k}"].numpy() for k in PROBE_PARTS}, classes=trained, of=of)
            view = {k.removeprefix("view."): v.numpy() for k, v in arrays.items() if k.startswith("view.")}
            return FittedProbe(trials, LINEAR[word](encoder).restored(view, people), readout, None)
        model: nn.Module = encoder.model
        batches: Callable[[Shown], Batches] = partial(_batches, encoder)
        if word == "attentive":
            own = {k.removeprefix("attentive."): v for k, v in arrays.items() if k.startswith("attentive.")}
            model = Attentive(own["mean"], own["scale"], described["heads"])
            checkpoint.fit(model, own, where)
            batches = partial(_tokens, encoder)
        elif word == "subject_layer":
            layer = mixing.Mixing(len(people), arrays["mixing.weight"].shape[1])
            checkpoint.fit(layer, {"weight": arrays["mixing.weight"]}, where)
            model, batches = mixing.Mixed(deepcopy(encoder.model), layer), partial(by_person, encoder, people)
        elif word == "lora":
            model = lora.adapt(deepcopy(encoder.model), **described["adapters"])
        own = {k: v for k, v in arrays.items() if k.startswith("readout.")}
        objective = _readout(own)
    except (KeyError, TypeError) as error:
        raise checkpoint.CheckpointError(
            f"{where} holds {', '.join(sorted(arrays)[:5])} ...; those of adapt={word!r} are others ({error}): fit and "
            "save the decoder again"
        ) from error
    checkpoint.fit(objective, own, where)
    seen = np.isin(np.arange(of), trained)
    tuning = replace(TUNING, **described["tuning"])
    network = FittedNetwork(trials, encoder, model.eval(), objective.eval(), tuning, batches, seen)
    return FittedSubjectLayer(network, tuple(people)) if word == "subject_layer" else network


def _batches(encoder: Pretrained, trials: Shown) -> Batches:
    return trials.batches(encoder)


def _tokens(encoder: Pretrained, trials: Shown) -> Batches:
    return Tokens(encoder, trials.batches(encoder))


def _readout(weights: dict[str, Tensor]) -> Supervised:
    """A readout of the shapes of these weights: `Hidden` under `Standardised`, or one linear layer."""
    if "readout.mean" in weights:
        hidden, width = weights["readout.readout.1.weight"].shape
        classes = len(weights["readout.readout.3.weight"])
        readout: nn.Module = Standardised(Hidden(width, classes, hidden), torch.zeros(1, width))
    else:
        classes, width = weights["readout.weight"].shape
        readout = nn.Linear(width, classes)
    return Supervised(width, classes, readout=readout)
