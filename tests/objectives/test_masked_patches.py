"""Masks of cells: drawn for each sample, over real tokens only, and scored where they should be."""

import pytest
import torch
from torch import nn

from brainfm.objectives.masked_patches import MaskedPatches, correlation, hidden_tokens, overlap
from brainfm.tokens import TokenBatch


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def windows(n=4, channels=3, patches=4, patch=8):
    tokens = channels * patches
    return TokenBatch(
        torch.randn(n, tokens, patch),
        torch.zeros(n, tokens),
        torch.arange(channels).repeat_interleave(patches).expand(n, -1),
        torch.zeros(n, channels, 3),
        torch.zeros(n, channels, 3),
        torch.zeros(n, channels, dtype=torch.int64),
        torch.ones(n, tokens, dtype=torch.bool),
        (channels, patches),
        128.0,
    )


class Echo(nn.Module):
    """Predicts visible tokens exactly and hidden ones as `guess`; remembers the masks that it was given."""

    patch = 8

    def __init__(self, guess):
        super().__init__()
        self.guess, self.seen = guess, []

    def target(self, batch):
        return batch.values

    def reconstruct(self, batch, hidden):
        self.seen.append(hidden)
        return torch.where(hidden.unsqueeze(-1), self.guess(batch.values), batch.values)


def test_each_sample_has_its_own_mask():
    mask = torch.ones(50, 20, dtype=torch.bool)
    mask[:, 12:] = False
    mask[0] = False
    hidden = hidden_tokens(mask, 0.5)
    assert not (hidden & ~mask).any()
    assert not hidden[0].any()
    assert (hidden[1:].sum(1) == 6).all()
    assert len(torch.unique(hidden[1:], dim=0)) > 40
    assert hidden[1:].float().mean(0)[:12].min() > 0.2
    assert not torch.equal(hidden, hidden_tokens(mask, 0.5))


def test_loss_is_on_hidden_tokens():
    batch = windows()
    parts = MaskedPatches()(Echo(lambda x: x + 2.0), batch)
    assert parts["hidden"] == pytest.approx(1.5)  # smooth L1 of 2
    assert parts["visible"] == 0
    assert parts["metric_r"] == pytest.approx(1.0)
    assert "specialisation" not in parts
    assert MaskedPatches()(Echo(lambda x: -x), batch)["metric_r"] == pytest.approx(-1.0)
    inverse = MaskedPatches(share=0.0)(Echo(lambda x: x), batch)
    assert all(v.isfinite() for v in inverse.values())
    assert inverse["hidden"] == 0


def test_visible_weight():
    class Zero(Echo):
        def reconstruct(self, batch, hidden):
            return torch.zeros_like(batch.values)

    batch = windows()
    parts = MaskedPatches(visible_weight=0.05)(Zero(None), batch)
    full = MaskedPatches(visible_weight=1.0)(Zero(None), batch)
    assert parts["visible"] < 0.1 * full["visible"]
    assert parts["hidden"] > parts["visible"]


def test_padding_is_never_scored():
    batch = windows()
    batch.mask[:, 8:] = False
    batch.values[:, 8:] = 1e6
    parts = MaskedPatches()(Echo(lambda x: x * 0), batch)
    assert parts["hidden"] < 5


def test_repatches_for_the_model():
    model = Echo(lambda x: x * 0)
    MaskedPatches()(model, windows(patch=16))
    assert model.seen[0].shape == (4, 3 * 8)


def test_overlap_of_queries():
    apart = torch.eye(3).expand(5, 2, 3, 3)
    same = torch.eye(3)[:1].expand(5, 2, 3, 3)
    assert overlap(apart) == 0
    assert overlap(same) == 1
    half = torch.cat((same, torch.zeros(5, 2, 3, 3)), dim=1)
    assert overlap(half) == 1  # patches without data do not thin it out
    assert overlap(torch.ones(1, 1, 1, 4)) == 0
    a = torch.rand(4, 6)
    gram = a @ a.T
    expected = torch.stack([gram[i, j] ** 2 for i in range(4) for j in range(4) if i != j]).mean()
    torch.testing.assert_close(overlap(a), expected)


def test_correlation():
    x = torch.randn(100)
    assert correlation(x, 3 * x + 1) == pytest.approx(1.0)
    assert correlation(x, torch.ones(100)) == 0
    assert correlation(x[:0], x[:0]) == 0


def test_share_is_checked():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        MaskedPatches(share=1.5)
