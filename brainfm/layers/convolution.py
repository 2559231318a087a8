"""Convolutions of `(row, time, feature)` on a CPU as matrix products, a few rows at a time while they are in the cache.

What precedes a product (ELU, reflected borders, laying the samples of a kernel side by side) is done again for the
gradient instead of being kept, so memory is that of the layers' outputs alone. Weights are matrices whose long axis is
`(tap, feature)`. Tests compare all three with torch's convolutions and with numerical gradients.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Numbers of a layer's input that are worked on at a time for each thread; half a megabyte.
PORTION = 1 << 17


class Taps(NamedTuple):
    """How a kernel meets its input: reflected `left` and `right`, after ELU if `active`; strides divide both."""

    kernel: int
    stride: int
    left: int
    right: int
    active: bool


#: The kernel of three inside a residual block.
THREE = Taps(3, 1, 1, 1, active=True)


def _portion(x: Tensor, matrix: Tensor) -> int:
    """Rows at a time: few enough for the cache, enough that reading the weights again does not count."""
    return max(1, max(PORTION * torch.get_num_threads(), matrix.numel()) // (x.shape[1] * x.shape[2]))


def _elu(x: Tensor, out: Tensor) -> Tensor:
    """ELU into `out`: four vectorised passes are faster than one of `functional.elu`."""
    torch.clamp_max(x, 0.0, out=out)
    return torch.maximum(out.exp_().sub_(1.0), x, out=out)


def _open(x: Tensor, taps: Taps) -> Tensor:
    """`(row, time, feature)` → activated, with borders: `(row, left + time + right, feature)`."""
    _, left, right, active = taps[1:]
    if not (left or right or active):
        return x
    time = x.shape[1]
    out = x.new_empty(len(x), left + time + right, x.shape[2])
    middle = out[:, left : left + time]
    if active:
        _elu(x, middle)
    else:
        middle.copy_(x)
    if left:
        out[:, :left] = middle[:, 1 : left + 1].flip(1)
    if right:
        out[:, left + time :] = middle[:, time - 1 - right : time - 1].flip(1)
    return out


def _close(gradient: Tensor, opened: Tensor, taps: Taps, out: Tensor) -> None:
    """Gradient of what `_open` gave → gradient of its input, into `out`; `opened` is used up."""
    _, left, right, active = taps[1:]
    time = gradient.shape[1] - left - right
    middle = gradient[:, left : left + time]
    if left:
        middle[:, 1 : left + 1] += gradient[:, :left].flip(1)
    if right:
        middle[:, time - 1 - right : time - 1] += gradient[:, left + time :].flip(1)
    if active:
        torch.mul(middle, opened[:, left : left + time].clamp_max_(0.0).add_(1.0), out=out)
    else:
        out.copy_(middle)


def _unfold(x: Tensor, kernel: int, stride: int) -> Tensor:
    """`(row, time, feature)` → the samples under each step of the kernel, `(row x step, tap x feature)`."""
    rows, time, width = x.shape
    if kernel == 1:
        return x.reshape(-1, width)
    shape = (rows, (time - kernel) // stride + 1, kernel * width)
    return x.contiguous().as_strided(shape, (time * width, stride * width, 1)).reshape(-1, kernel * width)


def _fold(x: Tensor, rows: int, kernel: int, stride: int) -> Tensor:
    """The transpose of `_unfold`: `(row x step, tap x feature)` → `(row, time, feature)`, overlaps added."""
    x = x.view(rows, -1, x.shape[1])
    if kernel == stride:
        return x.view(rows, -1, x.shape[2] // kernel)
    steps, block, turns = x.shape[1], x.shape[2] // kernel * stride, kernel // stride
    out = x.new_empty(rows, steps + turns - 1, block)
    out[:, :steps] = x[..., :block]
    out[:, steps:] = 0
    for turn in range(1, turns):
        out[:, turn : turn + steps] += x[..., turn * block : (turn + 1) * block]
    return out.view(rows, -1, block // stride)


def _zeros(like: Tensor) -> Tensor:
    """Where the gradient of a weight is summed over portions: float32 at least."""
    return torch.zeros(like.shape, dtype=torch.promote_types(like.dtype, torch.float32))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total += a @ b`, the sum in the precision of `total`."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)


def _shifts(x: Tensor, taps: Taps) -> int:
    """Strides in a kernel, where a product for each is better than laying samples side by side; otherwise 0."""
    turns = taps.kernel // taps.stride
    return turns if 1 < turns <= x.shape[1] // taps.stride // 5 else 0


def _multiply(x: Tensor, matrix: Tensor, taps: Taps, bias: Tensor, out: Tensor) -> None:
    """Convolution of what `_open` gave into `out` `(row, step, outputs)`.

    With shifts, each row of the product is one block of `stride` samples, and the products of later blocks are added
    further up; what the last blocks of a signal get from the next signal is left out.
    """
    turns = _shifts(x, taps)
    if not turns:
        torch.mm(_unfold(x, taps.kernel, taps.stride), matrix.t(), out=out.view(-1, len(matrix))).add_(bias)
        return
    blocks, parts = x.view(-1, taps.stride * x.shape[2]), matrix.chunk(turns, dim=1)
    total = blocks @ parts[0].t()
    for turn in range(1, turns):
        total[:-turn].addmm_(blocks[turn:], parts[turn].t())
    torch.add(total.view(len(x), -1, len(matrix))[:, : out.shape[1]], bias, out=out)


def _multiply_back(
    gradient: Tensor, x: Tensor, matrix: Tensor, taps: Taps, to_matrix: Tensor, wanted: bool = True
) -> Tensor | None:
    """Add the matrix's gradient to `to_matrix`, give that of what `_open` gave; arguments as in `_multiply`."""
    turns = _shifts(x, taps)
    if not turns:
        flat = gradient.reshape(-1, len(matrix))
        _add_product(to_matrix, flat.t(), _unfold(x, taps.kernel, taps.stride))
        return _fold(flat @ matrix, len(x), taps.kernel, taps.stride) if wanted else None
    blocks, parts, totals = x.view(-1, taps.stride * x.shape[2]), matrix.chunk(turns, 1), to_matrix.chunk(turns, 1)
    whole = gradient.new_empty(len(x), x.shape[1] // taps.stride, len(matrix))
    steps = gradient.shape[1]
    whole[:, :steps], whole[:, steps:] = gradient, 0
    flat = whole.view(-1, len(matrix))
    to_blocks = flat @ parts[0] if wanted else None
    _add_product(totals[0], flat.t(), blocks)
    for turn in range(1, turns):
        _add_product(totals[turn], flat[:-turn].t(), blocks[turn:])
        if to_blocks is not None:
            to_blocks[turn:].addmm_(flat[:-turn], parts[turn])
    return None if to_blocks is None else to_blocks.view(x.shape)


class Convolve(torch.autograd.Function):
    """`apply(x, matrix, bias, taps)`: `(row, time, inputs)` → `(row, step, outputs)`.

    The matrix is `(outputs, tap x inputs)`. The input must be longer than its borders.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, bias: Tensor, taps: Taps) -> Tensor:
        """The convolution."""
        ctx.save_for_backward(x, matrix)
        ctx.taps = taps
        steps = (x.shape[1] + taps.left + taps.right - taps.kernel) // taps.stride + 1
        out, n = x.new_empty(len(x), steps, len(matrix)), _portion(x, matrix)
        for part, y in zip(x.split(n), out.split(n), strict=True):
            _multiply(_open(part, taps), matrix, taps, bias, y)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        """Gradients of input, matrix and bias."""
        (x, matrix), taps = ctx.saved_tensors, ctx.taps
        n, to_matrix, to_bias = _portion(x, matrix), _zeros(matrix), _zeros(matrix[:, 0])
        to_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        for start in range(0, len(x), n):
            g, opened = gradient[start : start + n], _open(x[start : start + n], taps)
            to_bias += g.sum((0, 1))
            to_opened = _multiply_back(g, opened, matrix, taps, to_matrix, to_x is not None)
            if to_x is not None and to_opened is not None:
                _close(to_opened, opened, taps, to_x[start : start + n])
        return to_x, to_matrix.to(matrix.dtype), to_bias.to(matrix.dtype), None


class Shortcut(torch.autograd.Function):
    """`apply(x, narrow, narrow_bias, back, shortcut, bias)`: a residual block on `(row, time, width)`.

    ELU, a kernel of three to half the width (`narrow`), ELU and `back`, added to `shortcut` of the input; `bias` is
    the sum of the last two biases. The input has at least two samples.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, narrow: Tensor, narrow_bias: Tensor, back: Tensor, shortcut: Tensor, bias: Tensor
    ) -> Tensor:
        """The block."""
        half, width, n = len(narrow), len(shortcut), _portion(x, shortcut)
        out, inner = x.new_empty(x.shape), x.new_empty(*x.shape[:2], half)
        for part, m, y in zip(x.split(n), inner.split(n), out.split(n), strict=True):
            _multiply(_open(part, THREE), narrow, THREE, narrow_bias, m)
            m, y = m.view(-1, half), y.view(-1, width)
            torch.mm(part.reshape(-1, width), shortcut.t(), out=y)
            y.addmm_(_elu(m, torch.empty_like(m)), back.t()).add_(bias)
        ctx.save_for_backward(x, inner, narrow, back, shortcut)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """Gradients in the order of the arguments."""
        x, inner, narrow, back, shortcut = ctx.saved_tensors
        half, width, n = len(narrow), len(shortcut), _portion(x, shortcut)
        to_x = x.new_empty(x.shape)
        to_narrow, to_back, to_shortcut = _zeros(narrow), _zeros(back), _zeros(shortcut)
        to_narrow_bias, to_bias = _zeros(narrow[:, 0]), _zeros(shortcut[:, 0])
        for part, m, g, z in zip(x.split(n), inner.split(n), gradient.split(n), to_x.split(n), strict=True):
            m, g = m.view(-1, half), g.reshape(-1, width)
            opened, hidden = _open(part, THREE), _elu(m, torch.empty_like(m))
            to_bias += g.sum(0)
            _add_product(to_shortcut, g.t(), part.reshape(-1, width))
            _add_product(to_back, g.t(), hidden)
            at_inner = (g @ back).mul_(hidden.clamp_max_(0.0).add_(1.0))
            to_narrow_bias += at_inner.sum(0)
            inner_rows = at_inner.view(len(part), -1, half)
            _close(_multiply_back(inner_rows, opened, narrow, THREE, to_narrow), opened, THREE, z)
            z.view(-1, width).addmm_(g, shortcut)
        return to_x, *(g.to(x.dtype) for g in (to_narrow, to_narrow_bias, to_back, to_shortcut, to_bias))


class Transposed(torch.autograd.Function):
    """`apply(x, matrix, bias, stride, left)`: ELU and a transposed convolution, `(row, time x stride, outputs)`.

    The kernel is twice the stride and the matrix `(inputs, tap x outputs)`. Of the `stride` samples that stand over,
    `left` are cut at the start and the others at the end.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, bias: Tensor, stride: int, left: int) -> Tensor:
        """The transposed convolution."""
        ctx.save_for_backward(x, matrix)
        ctx.stride, ctx.left = stride, left
        time, n = x.shape[1] * stride, _portion(x, matrix)
        out = x.new_empty(len(x), time, len(bias))
        for part, y in zip(x.split(n), out.split(n), strict=True):
            spread = _elu(part, x.new_empty(part.shape)).view(-1, x.shape[2]) @ matrix
            torch.add(_fold(spread, len(part), 2 * stride, stride)[:, left : left + time], bias, out=y)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients of input, matrix and bias."""
        (x, matrix), stride, left = ctx.saved_tensors, ctx.stride, ctx.left
        width, time, n = x.shape[2], gradient.shape[1], _portion(x, matrix)
        to_x, to_matrix, to_bias = x.new_empty(x.shape), _zeros(matrix), _zeros(gradient[0, 0])
        for part, g, z in zip(x.split(n), gradient.split(n), to_x.split(n), strict=True):
            whole = g.new_zeros(len(g), time + stride, g.shape[2])
            whole[:, left : left + time] = g
            spread, active = _unfold(whole, 2 * stride, stride), _elu(part, x.new_empty(part.shape)).view(-1, width)
            to_bias += g.sum((0, 1))
            _add_product(to_matrix, active.t(), spread)
            torch.mm(spread, matrix.t(), out=z.view(-1, width)).mul_(active.clamp_max_(0.0).add_(1.0))
        return to_x, to_matrix.to(matrix.dtype), to_bias.to(matrix.dtype), None, None
