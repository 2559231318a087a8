"""Rates by depth: which parameters lie before, in and after a network's blocks, and what each is trained at."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from brainfm import catalog
from brainfm.layers.trunk import trunk
from brainfm.training.checkpoint import build
from brainfm.training.optimisers import by_depth, layered

#: Model → blocks of its "test" size, and which parts lie before and after them.
EXPECTED = {
    "luna": (1, {"hidden", "patch_embedding", "location", "unification"}, {"norm", "decoder"}),
    "brainomni": (2, {"mask_vector", "codebook", "project"}, {"head"}),
    "roi_mae": (1, {"place", "row", "loading", "precision", "region", "embed"}, {"norm", "correct"}),
}


def made(name: str) -> nn.Module:
    module = catalog.load("models", name)
    tokenizer = catalog.load("codebooks", "braintokenizer")
    inner = {"name": "braintokenizer", "keywords": tokenizer.SIZES["test"], "facts": asdict(tokenizer.FACTS)}
    config = {"kind": "models", "name": name, "keywords": module.SIZES["test"]}
    return build({**config, "codebook": {"kind": "codebooks", **inner}}, module.FACTS)


@pytest.mark.parametrize("name", EXPECTED)
def test_depths_of_networks(name: str) -> None:
    model, (blocks, before, after) = made(name), EXPECTED[name]
    depths = by_depth(model)
    assert list(depths) == [n for n, _ in model.named_parameters()]
    assert {n.split(".")[0] for n, d in depths.items() if d == 0} == before
    assert {n.split(".")[0] for n, d in depths.items() if d == blocks + 1} == after
    inside = {n: d for n, d in depths.items() if 0 < d <= blocks}
    assert {(n.split(".")[1], d) for n, d in inside.items()} == {(str(i), i + 1) for i in range(blocks)}


def test_a_network_without_blocks_has_one_depth() -> None:
    model = made("eegnet")
    assert trunk(model) == []
    assert set(by_depth(model).values()) == {0}
    ((rate, parameters),) = layered(model, 1e-3, 0.5)
    assert (rate, len(parameters)) == (1e-3, len(list(model.parameters())))


def test_rates_fall_towards_the_input() -> None:
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 4)
            self.blocks = nn.Sequential(Block(), Block(), Block())
            self.norm = nn.LayerNorm(4)

    model = Network()
    assert trunk(model) == [["blocks.0"], ["blocks.1"], ["blocks.2"]]
    groups = layered(model, 1.0, 0.5)
    np.testing.assert_allclose([rate for rate, _ in groups], [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])
    assert groups[0][1][0] is model.first.weight
    assert groups[-1][1][0] is model.norm.weight
    assert sum(len(p) for _, p in groups) == len(list(model.parameters()))
    model.blocks.requires_grad_(False)
    assert trunk(model) == []
