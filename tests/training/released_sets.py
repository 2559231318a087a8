"""Small random networks of many sizes in the released layout, and golden files that they make themselves."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brainfm.codebooks import braintokenizer
from brainfm.training import checkpoint
from brainfm.training.checkpoint import Pretrained

SMALL = {
    "window_s": 0.125, "filters": 2, "ratios": [2, 4], "dim": 8, "heads": 2, "sources": 3, "depth": 2, "codes": 5,
    "dropout": 0.0, "released": True,
}  # fmt: skip
#: Tokenizer and second stage of other sizes: what each field of `model_cfg.json` may be.
SETS = {
    "small": ({}, {"dim": 12, "heads": 2, "blocks": 2, "overlap": 0.25}),
    "same width": ({"lstm_layers": 1}, {"dim": 8, "heads": 4, "blocks": 1}),
    "odd ratios": (
        {"window_s": 30 / 256, "ratios": [3, 5], "dim": 12, "heads": 3, "filters": 3, "sources": 1},
        {"dim": 20, "heads": 2, "blocks": 3, "overlap": 0.25, "rope": "as_released"},
    ),
    "one ratio": ({"ratios": [16], "depth": 1}, {"dim": 4, "heads": 2, "blocks": 1, "dropout": 0.3}),
    "other kernels": ({"kernel": 4, "last_kernel": 7}, {"dim": 16, "heads": 4, "blocks": 2, "overlap": 0.5}),
    "fewer predicted": ({"depth": 3}, {"dim": 12, "heads": 2, "blocks": 2, "predicted": 2}),
}  # fmt: skip


def tokenizer_of(changed: dict[str, Any], sfreq: float = 256.0) -> Pretrained:
    facts = replace(braintokenizer.FACTS, sfreq=sfreq)
    config = {"kind": "codebooks", "name": "braintokenizer", "keywords": {**SMALL, **changed}}
    torch.manual_seed(0)
    model = checkpoint.build(config, facts).eval()
    for stage in model.quantiser.stages:  # as after training
        stage.started.fill_(True)
        stage.counts.uniform_(1, 9)
        stage.sums.copy_(stage.vectors * stage.counts[:, None])
    return Pretrained(model, config, facts)


def model_of(name: str) -> Pretrained:
    inner, keywords = tokenizer_of(SETS[name][0]), SETS[name][1]
    config = {
        "kind": "models", "name": "brainomni", "keywords": keywords,
        "codebook": {**inner.config, "facts": asdict(inner.facts)},
    }  # fmt: skip
    return Pretrained(checkpoint.build(config, inner.facts, inner.model).eval(), config, inner.facts)


def same(one: Pretrained, other: Pretrained) -> bool:
    a, b = one.model.state_dict(), other.model.state_dict()
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def make_golden(pretrained: Pretrained, path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """What the network itself gives, window by window, in the form of a golden file."""
    rng, tokenizer, patch = torch.Generator().manual_seed(seed), pretrained.model.codebook, pretrained.model.patch
    x, pos = torch.randn(2, 5, 3 * patch + 1, generator=rng), torch.randn(2, 5, 6, generator=rng)
    kind = torch.randint(0, 3, (2, 5), generator=rng)
    with torch.inference_mode():
        sensors = tokenizer.sensors.embed(pos, kind)
        windows = braintokenizer.Windows(x.unfold(2, patch, patch), torch.ones(2, 5, 3, dtype=torch.bool))
        sources = tokenizer.quantise(tokenizer.compress(windows, sensors), windows.mask.any(1))
        given = {
            "x": x, "pos": pos, "sensor_type": kind, "features": sources.features, "indices": sources.codes,
            "target": braintokenizer.z_score(windows),
            "reconstruction": tokenizer.expand(sources.features, sensors, windows.mask),
        }  # fmt: skip
    arrays = {k: v.numpy() for k, v in given.items()}
    np.savez(path, **arrays)
    return arrays
