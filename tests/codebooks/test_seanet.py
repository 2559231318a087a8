"""Convolutions as matrix products give what torch's give: values, gradients, checkpoints, half precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from brainfm.codebooks import seanet
from brainfm.layers import convolution
from brainfm.layers.convolution import Convolve, Shortcut, Taps, Transposed

ROWS, RATIOS = 7, (3, 2)


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several portions, the last one not full, even at these sizes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.setattr(convolution, "PORTION", 500)


def plain(layers: seanet.Layers, x: Tensor) -> Tensor:
    """The same layers by torch's convolutions of `(row, feature, time)`."""
    x = x.transpose(1, 2)
    for layer in layers:
        if isinstance(layer, seanet.Residual):
            inner = plain_convolution(layer.narrow, functional.elu(x))
            x = plain_convolution(layer.shortcut, x) + plain_convolution(layer.back, functional.elu(inner))
        elif isinstance(layer, seanet.Recurrent):
            x = x + layer.lstm(x.permute(2, 0, 1))[0].permute(1, 2, 0)
        elif isinstance(layer, seanet.Widen):
            y = layer.conv(x)
            x = y[..., layer.left : y.shape[-1] - layer.right]
        else:
            x = plain_convolution(layer, x) if isinstance(layer, seanet.Conv) else functional.elu(x)
    return x.transpose(1, 2)


def plain_convolution(layer: seanet.Conv, x: Tensor) -> Tensor:
    return layer.conv(seanet._reflect(x, *layer.borders))


def both(last_kernel: int = 5) -> list[tuple[seanet.Layers, Tensor]]:
    """An encoder and a decoder with odd and even strides, and inputs of theirs."""
    encoder = seanet.encoder(4, RATIOS, 12, 1, last_kernel=last_kernel)
    decoder = seanet.decoder(4, RATIOS, 12, 1, last_kernel=last_kernel)
    for p in [*encoder.parameters(), *decoder.parameters()]:
        nn.init.normal_(p, std=0.3)  # biases too
    return [(encoder, torch.randn(ROWS, 48, 1)), (decoder, torch.randn(ROWS, 8, 12))]


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("last_kernel", [5, 1, 3])
def test_values_and_gradients_are_those_of_torch(part: int, last_kernel: int) -> None:
    layers, x = both(last_kernel)[part]
    layers, x = layers.double(), x.double().requires_grad_()
    ours, theirs = layers(x), plain(layers, x)
    assert ours.shape == ((ROWS, 8, 12), (ROWS, 48, 1))[part]
    torch.testing.assert_close(ours, theirs)
    weights, upstream = [x, *layers.parameters()], torch.randn_like(ours)
    found = torch.autograd.grad(ours, weights, upstream)
    wanted = torch.autograd.grad(theirs, weights, upstream)
    torch.testing.assert_close(found, wanted)
    assert all(g.abs().max() > 0 for g in found)


def test_gradients_are_those_of_small_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "PORTION", 16)

    def number(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    x = number(3, 6, 4)
    for taps in (Taps(4, 2, 1, 1, True), Taps(3, 1, 1, 1, False), Taps(5, 1, 2, 2, True), Taps(1, 1, 0, 0, False)):
        matrix, bias = number(2, taps.kernel * 4), number(2)
        assert torch.autograd.gradcheck(lambda *a, t=taps: Convolve.apply(*a, t), (x, matrix, bias))
    assert torch.autograd.gradcheck(
        Shortcut.apply, (x, number(2, 12), number(2), number(4, 2), number(4, 4), number(4))
    )
    assert torch.autograd.gradcheck(lambda *a: Transposed.apply(*a, 3, 2), (x, number(4, 12), number(2)))


def test_input_is_left_as_it_was_and_frozen_layers_need_no_gradient() -> None:
    for layers, x in both():
        kept = x.clone()
        layers.requires_grad_(False)
        y = layers(x.requires_grad_())
        y.sum().backward()
        assert torch.equal(x, kept)
        assert x.grad is not None
        assert all(p.grad is None for p in layers.parameters())


def test_signals_shorter_than_a_border_and_no_rows_at_all() -> None:
    layers = both()[0][0]
    for rows, samples in ((2, 6), (1, 12), (0, 12)):
        x = torch.randn(rows, samples, 1)
        torch.testing.assert_close(layers(x), plain(layers, x) if rows else x.new_zeros(0, samples // 6, 12))


def test_half_precision_is_close_and_its_gradients_add_up_in_full() -> None:
    layers, x = both()[1]
    full = torch.autograd.grad(layers(x).square().sum(), [*layers.parameters()])
    with torch.autocast("cpu", torch.bfloat16):
        y = layers(x)
        assert y.dtype == torch.bfloat16
    half = torch.autograd.grad(y.float().square().sum(), [*layers.parameters()])
    assert all(g.dtype == torch.float32 for g in half)
    for a, b in zip(full, half, strict=True):
        assert functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99


def test_names_of_weights_count_the_activations_too() -> None:
    names = set(both()[0][0].state_dict())
    assert {"0.conv.bias", "1.narrow.conv.bias", "3.conv.bias", "7.lstm.weight_ih_l0", "9.conv.bias"} <= names
