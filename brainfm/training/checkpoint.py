"""Models on disk: safetensors, the configuration to build the network again, and a card that says what it saw.

Nothing is unpickled. Weights load strictly: a checkpoint that does not fit its network is refused, key by key.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from brainfm import catalog, checksums
from brainfm.checksums import sha256
from brainfm.shards.read import Windows
from brainfm.tokens import Facts, TokenBatch
from brainfm.training import model_card
from brainfm.training.batches import Batcher, WindowDataset
from brainfm.training.input_checks import expected_by

WEIGHTS, CONFIG, CARD = checksums.WEIGHTS, "config.json", "card.json"


class CheckpointError(ValueError):
    """A model folder that cannot be loaded whole; the message names the file and what differs."""


@dataclass
class Pretrained:
    """A network with everything that is known about it.

    Attributes:
        model: the network, in evaluation mode.
        config: `kind` ("models" or "codebooks"), `name`, `keywords` of build, `codebook` where one is inside.
        facts: what it was built from.
        card: data, subjects, intervals and checksums that it saw, preprocessing, licences, metrics, seed; one that
            was loaded also has `model_checksum`, the sha256 of the file of weights that it lay beside.
    """

    # a network of the catalogue: nn.Module with encode, typed Any because torch types every attribute Tensor | Module
    model: Any
    config: dict[str, Any]
    facts: Facts
    card: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Name, size and a hash of the weights: tools that tell pipelines apart by their text see another model."""
        digest = hashlib.sha256()
        for name, weight in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return (
            f"Pretrained({self.config['name']}, {parameters(self.model)} parameters, sha256 {digest.hexdigest()[:12]})"
        )

    def batcher(self, labels: dict[str, int] | None = None, aligned: tuple[str, ...] | None = None) -> Batcher:
        """How windows become batches for this model: its patch, its neurons, its covariates."""
        ids, sessions = getattr(self.model, "neurons", None), getattr(self.model, "sessions", None)
        return Batcher(
            patch=getattr(self.model, "patch", 1),
            neurons=None if ids is None else {x: i for i, x in enumerate(ids)},
            sessions=None if sessions is None else {x: i for i, x in enumerate(sessions)},
            labels=labels,
            aligned=tuple(getattr(self.model, "aligned", ())) if aligned is None else aligned,
            normalised=getattr(self.model, "normalised", False),
            bin_s=getattr(self.model, "counts_s", None),
            expected=expected_by(self.model, self.facts),
        )

    def features(self, windows: Windows, size: int = 64) -> np.ndarray:
        """`(window, feature)` the pooled encoding of every window, in order, without gradients."""
        return self.pooled(WindowDataset(windows, self.batcher()), size)

    def pooled(self, trials: Any, size: int = 64) -> np.ndarray:
        """As `features`, of any dataset of whole batches (`__getitems__(rows) -> TokenBatch`)."""
        device = next(self.model.parameters()).device
        found: list[np.ndarray] = []
        with torch.inference_mode(), evaluating(self.model):
            for batch in in_order(trials, size):
                found.append(self.model.encode(batch.to(device)).pooled.float().cpu().numpy())
        return np.concatenate(found)

    def copy(self) -> Pretrained:
        """The same network, card and facts, to be trained further without touching this one."""
        return Pretrained(deepcopy(self.model), self.config, self.facts, dict(self.card))

    def untrained(self, seed: int) -> Pretrained:
        """The same network with fresh weights: the baseline that shows what pretraining added."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Pretrained(build(self.config, self.facts).eval(), self.config, self.facts, {"untrained": True})

    def save(self, folder: Path, beside: dict[str, Path] | None = None) -> Path:
        """Write the folder in one step: whole or not at all; an older model of that name is replaced.

        Args:
            folder: where the model goes.
            beside: name → file or folder to copy into it, for example the curves of its training.
        """
        folder = Path(folder)
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        weights = {k: v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}
        save_file(weights, part / WEIGHTS, metadata={"format": "pt"})
        described = {**self.config, "facts": asdict(self.facts)}
        (part / CONFIG).write_text(json.dumps(described, indent=1) + "\n")
        write_card(part, self.card)
        (part / model_card.README).write_text(model_card.text(self.config, asdict(self.facts), self.card))
        for name, path in (beside or {}).items():
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, part / name)
        old = folder.with_name(f".{folder.name}.old")
        if folder.exists():
            os.replace(folder, old)
        os.replace(part, folder)
        shutil.rmtree(old, ignore_errors=True)
        return folder


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write a model's card, in one step, with the sha256 of the weights that lie in the folder as `model_checksum`."""
    part = folder / f".{CARD}.part"
    tied = {**card, "model_checksum": sha256(folder / WEIGHTS)}
    part.write_text(json.dumps(tied, indent=1, sort_keys=True) + "\n")
    os.replace(part, folder / CARD)


def in_order(trials: Any, size: int) -> Iterator[TokenBatch]:
    """All of a dataset of whole batches, `size` windows at a time."""
    for start in range(0, len(trials), size):
        yield trials.__getitems__(list(range(start, min(start + size, len(trials)))))


class evaluating:
    """Evaluation mode inside the block; the mode it had before, afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> nn.Module:
        self.was = self.model.training
        # switching every part costs as much as a small network's answer
        self.switched = any(part.training for part in self.model.modules())
        return self.model.eval() if self.switched else self.model

    def __exit__(self, *_: object) -> None:
        if self.switched or self.model.training:
            self.model.train(self.was)


def build(config: dict[str, Any], facts: Facts, codebook: nn.Module | None = None) -> nn.Module:
    """Build a network from its configuration with fresh weights; a codebook inside is built too unless given."""
    make = catalog.load(config["kind"], config["name"]).build
    if "codebook" in inspect.signature(make).parameters:
        if codebook is None:
            inner = config.get("codebook")
            if inner is None:
                raise CheckpointError(f"model {config['name']!r} needs a codebook; name the tokenizer's folder")
            codebook = build(inner, facts_from(inner["facts"]))
        return make(facts, codebook, **config["keywords"])
    return make(facts, **config["keywords"])


def facts_from(saved: dict[str, Any]) -> Facts:
    """Facts as JSON keeps them → Facts."""
    keywords: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
    return Facts(**keywords)


def load(folder: str | Path) -> Pretrained:
    """Load a model folder; every weight must match.

    Raises:
        FileNotFoundError: where the folder or a file of it is missing, with the models that are beside it.
        CheckpointError: where a file is damaged, or weights are missing, left over or of another shape: each is named.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).exists():
            there = sorted(p.parent.name for p in folder.parent.glob(f"*/{CONFIG}") if p.parent != folder)
            raise FileNotFoundError(
                f"{folder} is not a model: {name} is missing; {catalog.nearest(folder.name, there)}"
            )
    config = read_config(folder)
    facts = facts_from(config.pop("facts"))
    model = build(config, facts)
    fit(model, read_weights(folder / WEIGHTS), str(folder / WEIGHTS))
    card = read_json(folder / CARD) if (folder / CARD).exists() else {}
    return Pretrained(model.eval(), config, facts, card)


def read_config(folder: Path) -> dict[str, Any]:
    """What a model folder says that its network is; CheckpointError where it is damaged."""
    said = read_json(folder / CONFIG)
    if missing := [word for word in ("kind", "name", "keywords", "facts") if word not in said]:
        raise CheckpointError(
            f"{folder / CONFIG} is damaged ({', '.join(missing)} is missing); train or copy the model again"
        )
    return said


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model; CheckpointError where it is damaged."""
    try:
        said = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); train or copy the model again") from error
    if not isinstance(said, dict):
        raise CheckpointError(f"{path} is damaged (it holds a {type(said).__name__}); train or copy the model again")
    return said


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A file of weights; CheckpointError where it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}); train or copy the model again") from error


def fit(model: nn.Module, weights: dict[str, torch.Tensor], where: str) -> None:
    """Load weights strictly.

    Raises:
        CheckpointError: naming the first keys that are missing, left over or of another shape, and the matched share.
    """
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    shapes = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    if missing or extra or shapes:
        matched = len(own) - len(missing) - len(shapes)
        detail = [f"{len(v)} {what} ({', '.join(v[:3])})" for what, v in
                  (("missing", missing), ("left over", extra), ("of another shape", shapes)) if v]  # fmt: skip
        raise CheckpointError(
            f"{where}: {matched} of {len(own)} weights match; {'; '.join(detail)}. Use the model's own config.json"
        )
    model.load_state_dict(weights, strict=True)


def parameters(model: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(p.numel() for p in model.parameters())
