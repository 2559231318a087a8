"""Attention that turns with time, against complex numbers and dense attention of one sample at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from brainfm.layers.rotary import Thin, blocks, kept, turned, turning_attention, turns

torch.set_num_threads(1)

PAIRS = (4, 0.05, 2.0)  # at the published shortest period a time in float32 is known to 0.004 of a radian


def plain(query: Tensor, key_value: Tensor, time: Tensor, key_time: Tensor, values: bool) -> Tensor:
    """Rotation by complex numbers and dense attention of one sample, `(token, head, feature)`."""

    def turn(x: Tensor, t: Tensor, sign: float) -> Tensor:
        n = PAIRS[0]
        period = PAIRS[1] * (PAIRS[2] / PAIRS[1]) ** (torch.arange(n) / (n - 1))
        angle = sign * 2 * torch.pi * t[:, None, None] / period
        z = torch.complex(x[..., :n], x[..., n : 2 * n]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((z.real, z.imag, x[..., 2 * n :]), dim=-1)

    k, v = key_value.chunk(2, dim=1)
    q, k, v = turn(query, time, 1), turn(k, key_time, 1), turn(v, key_time, 1) if values else v
    score = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    y = torch.einsum("hqk,khd->qhd", score.softmax(-1), v)
    return turn(y, time, -1) if values else y


@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_attention_and_its_gradient_equal_the_plain_way(values: bool, shared: bool) -> None:
    make = torch.Generator().manual_seed(1)
    lengths = [5, 0, 9]
    query = torch.randn(1 if shared else 3, 6, 2, 16, generator=make, dtype=torch.float64).requires_grad_()
    key_value = torch.randn(14, 4, 16, generator=make, dtype=torch.float64).requires_grad_()
    time, key_time = torch.rand(6, generator=make), torch.rand(14, generator=make)
    ours = turning_attention(query, key_value, turns(time, *PAIRS), turns(key_time, *PAIRS), lengths, values=values)
    parts = zip(query.expand(3, -1, -1, -1), key_value.split(lengths), key_time.split(lengths), strict=True)
    theirs = torch.stack([plain(q, kv, time, t, values) if len(kv) else torch.zeros_like(q) for q, kv, t in parts])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # angles are float32
    pull = torch.randn(ours.shape, generator=make, dtype=torch.float64)
    found = torch.autograd.grad((ours * pull).sum(), (query, key_value))
    wanted = torch.autograd.grad((theirs * pull).sum(), (query, key_value))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_gradient_with_dropout_is_that_of_finite_differences() -> None:
    make = torch.Generator().manual_seed(2)
    query = torch.randn(2, 3, 1, 8, generator=make, dtype=torch.float64).requires_grad_()
    key_value = torch.randn(9, 2, 8, generator=make, dtype=torch.float64).requires_grad_()
    clocks = turns(torch.rand(3, generator=make), 2, 0.1, 2.0), turns(torch.rand(9, generator=make), 2, 0.1, 2.0)

    def attend(q: Tensor, kv: Tensor) -> Tensor:
        torch.manual_seed(7)
        return turning_attention(q, kv, *clocks, [4, 5], dropout=0.4)

    assert not torch.equal(attend(query, key_value), turning_attention(query, key_value, *clocks, [4, 5]))
    assert torch.autograd.gradcheck(attend, (query, key_value))


def test_dropout_takes_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(200, 501)
    mask = kept(x, 0.3)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert float(mask.mean()) == pytest.approx(0.7, abs=0.01)
    for shift in (1, 2, 3, 4):  # entries that share a random number are independent
        pairs = mask.flatten()
        both = (pairs[shift:] * pairs[:-shift]).mean()
        assert float(both) == pytest.approx(0.49, abs=0.01)
    thin = Thin(0.3)
    assert float(thin(x).mean()) == pytest.approx(1.0, abs=0.01)
    assert torch.equal(thin.eval()(x), x)


def test_turning_back_undoes_turning() -> None:
    x, clock = torch.randn(5, 3, 8), turns(torch.rand(5), 2, 0.1, 2.0)
    torch.testing.assert_close(turned(turned(x, clock), clock, back=True), x)


def test_time_shift_of_spikes_queries_and_grid_is_all_that_matters() -> None:
    """Rotary time: attention depends on differences of time only."""
    x, kv = torch.randn(1, 4, 2, 16), torch.randn(9, 4, 16)
    t, s = torch.rand(4), torch.rand(9)
    one = turning_attention(x, kv, turns(t, 4, 0.1, 2.0), turns(s, 4, 0.1, 2.0), [9])
    two = turning_attention(x, kv, turns(t + 0.3, 4, 0.1, 2.0), turns(s + 0.3, 4, 0.1, 2.0), [9])
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("most", [1, 30, 10_000])
def test_blocks_hold_every_key_of_every_sample_once(most: int) -> None:
    lengths = [4, 0, 3, 9, 4, 4, 1]
    seen: dict[int, list[int]] = {}
    rows = torch.arange(sum(lengths))
    for block in blocks(lengths, 2, torch.device("cpu"), most):
        numbers = torch.arange(len(lengths))[block.samples]
        taken = block.keys(rows)
        assert taken.shape == (len(numbers), block.length)
        assert len(numbers) == 1 or taken.numel() * 2 <= most
        for row, number in enumerate(numbers.tolist()):
            assert number not in seen
            seen[number] = taken[row][block.mask[row] if block.mask is not None else slice(None)].tolist()
        back = torch.full((len(rows), 1), -1)
        block.put(back, taken[..., None])
        assert set(back[back >= 0].tolist()) == {x for n in numbers.tolist() for x in seen[n]}
    wanted = [part.tolist() for part in rows.split(lengths)]
    assert seen == {i: part for i, part in enumerate(wanted) if part}
