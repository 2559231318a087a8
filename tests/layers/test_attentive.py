"""A query over tokens: padding is not seen, the scale of tokens does not matter, and it finds the token that counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from brainfm.layers.attentive import Attentive

pytestmark = pytest.mark.usefixtures("one_thread")


def test_padding_is_not_seen_and_order_does_not_matter() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 5, 6)
    layer = Attentive(tokens.mean((0, 1)), tokens.std((0, 1)), heads=4, queries=3)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    found = layer(tokens, mask)
    assert found.shape == (2, 18)
    spoilt = tokens.clone()
    spoilt[1, 2:] = 1e3
    torch.testing.assert_close(layer(spoilt, mask), found)
    torch.testing.assert_close(layer(tokens[1:, :2], mask[1:, :2]), found[1:])
    torch.testing.assert_close(layer(tokens[:1].flip(1), mask[:1]), found[:1])
    assert layer(tokens, torch.zeros_like(mask)).isfinite().all()


def test_the_scale_of_tokens_does_not_matter() -> None:
    torch.manual_seed(0)
    tokens, mask = torch.randn(4, 5, 8), torch.ones(4, 5, dtype=torch.bool)
    near = 1 + 1e-3 * tokens
    one, two = (Attentive(x.mean((0, 1)), x.std((0, 1))) for x in (tokens, near))
    two.load_state_dict({**one.state_dict(), "mean": two.mean, "scale": two.scale})
    torch.testing.assert_close(two(near, mask), one(tokens, mask), rtol=1e-2, atol=1e-2)
    constant = Attentive(torch.ones(8), torch.zeros(8))
    assert constant(torch.ones(1, 2, 8), mask[:1, :2]).isfinite().all()


def test_it_learns_which_token_counts() -> None:
    """The class is the sign of one feature in the only token that carries a flag: its mean over tokens drowns."""
    torch.manual_seed(0)
    tokens = torch.randn(256, 12, 4)
    tokens[..., 3] = 0
    where = torch.randint(12, (256,))
    tokens[torch.arange(256), where, 3] = 4
    label = (tokens[torch.arange(256), where, 0] > 0).long()
    mask = torch.ones(256, 12, dtype=torch.bool)
    layer, readout = Attentive(tokens.mean((0, 1)), tokens.std((0, 1)), heads=1), nn.Linear(4, 2)
    optimiser = torch.optim.AdamW([*layer.parameters(), *readout.parameters()], lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        functional.cross_entropy(readout(layer(tokens[:192], mask[:192])), label[:192]).backward()
        optimiser.step()
    accuracy = (readout(layer(tokens[192:], mask[192:])).argmax(1) == label[192:]).float().mean()
    assert accuracy > 0.85
    mean = tokens.mean(1)[:, 0]
    assert ((mean[192:] > 0).long() == label[192:]).float().mean() < 0.75
