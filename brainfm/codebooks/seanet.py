"""Convolutions from samples to tokens and back: the SEANet of EnCodec, one signal at a time.

Paper: Defossez et al. 2022, "High Fidelity Neural Audio Compression", arXiv:2210.13438, section 3.1. Weight norm
throughout, reflected borders, nothing causal. Features lie innermost, so that a convolution is a matrix product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from brainfm.layers.convolution import Convolve, Shortcut, Taps, Transposed


def _start(layer: nn.Conv1d | nn.ConvTranspose1d, inputs: int) -> nn.Module:
    """Weights that keep the variance of their `inputs`, no bias: what passes at first is the signal alone."""
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _matrix(layer: nn.Conv1d | nn.ConvTranspose1d) -> Tensor:
    """Weights `(first, second, tap)` as `(first, tap x second)`."""
    return layer.weight.transpose(1, 2).flatten(1)


def _cast(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the precision that autocast asks for, where it is on."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors]


class Conv(nn.Module):
    """Convolution along time with weight norm; borders reflect, the length shrinks by the stride."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = weight_norm(_start(nn.Conv1d(inputs, outputs, kernel, stride), inputs * kernel))
        spare = kernel - stride
        self.borders, self.stride = (spare - spare // 2, spare // 2), stride

    def forward(self, x: Tensor, active: bool = False) -> Tensor:
        """`(row, time, inputs)` → `(row, time / stride, outputs)`, after ELU if `active`."""
        if x.device.type == "cpu" and x.shape[1] > max(self.borders) and x.shape[1] % self.stride == 0:
            x, weight, bias = _cast(x, self.conv.weight, self.conv.bias)
            outputs, inputs, kernel = weight.shape
            if self.stride > 1 or kernel * outputs >= inputs:
                taps = Taps(kernel, self.stride, *self.borders, active)
                return Convolve.apply(x, weight.transpose(1, 2).flatten(1), bias, taps)
            taps = Taps(1, 1, *self.borders, active)  # few outputs: each tap of its own, added where it belongs
            each = Convolve.apply(x, weight.permute(2, 0, 1).flatten(0, 1), bias.new_zeros(kernel * outputs), taps)
            parts = each.unflatten(2, (kernel, outputs)).unbind(2)
            return sum(part[:, tap : tap + x.shape[1]] for tap, part in enumerate(parts)) + bias
        x = (functional.elu(x) if active else x).transpose(1, 2)
        return self.conv(_reflect(x, *self.borders) if any(self.borders) else x).transpose(1, 2)


def _reflect(x: Tensor, left: int, right: int) -> Tensor:
    """Reflect the borders; a signal that is shorter than a border is lengthened by zeros first, then cut again."""
    lacking = max(left, right) + 1 - x.shape[-1]
    if lacking <= 0:
        return functional.pad(x, (left, right), mode="reflect")
    longer = functional.pad(functional.pad(x, (0, lacking)), (left, right), mode="reflect")
    return longer[..., : longer.shape[-1] - lacking]


class Widen(nn.Module):
    """ELU and transposed convolution with weight norm: `(row, time, inputs)` → `(row, time * stride, outputs)`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = weight_norm(_start(nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride), 2 * inputs))
        self.left, self.right, self.stride = stride - stride // 2, stride // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        """Widen and cut what stands over at both ends."""
        if x.device.type == "cpu":
            x, matrix, bias = _cast(x, _matrix(self.conv), self.conv.bias)
            return Transposed.apply(x, matrix, bias, self.stride, self.left)
        y = self.conv(functional.elu(x).transpose(1, 2)).transpose(1, 2)
        return y[:, self.left : y.shape[1] - self.right]


class Residual(nn.Module):
    """Two convolutions through half the width, added to a third of kernel one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow, self.back = Conv(width, width // 2, 3), Conv(width // 2, width, 1)
        self.shortcut = Conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(row, time, width)` → the same shape."""
        if x.device.type != "cpu" or x.shape[1] < 2:
            return self.shortcut(x) + self.back(self.narrow(x, active=True), active=True)
        narrow, back, shortcut = (part.conv for part in (self.narrow, self.back, self.shortcut))
        bias, matrices = back.bias + shortcut.bias, (_matrix(narrow), narrow.bias, _matrix(back), _matrix(shortcut))
        return Shortcut.apply(*_cast(x, *matrices, bias))


class Recurrent(nn.Module):
    """LSTM along time added to its input; the identity with no layers."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers) if layers else None

    def forward(self, x: Tensor) -> Tensor:
        """`(row, time, width)` → the same shape."""
        if self.lstm is None or x.shape[0] == 0:
            return x
        y, _ = self.lstm(x.transpose(0, 1))
        return x + y.transpose(0, 1)


class Layers(nn.Sequential):
    """Layers in turn; those that follow an ELU do it themselves, where their input is in the cache anyway."""

    def forward(self, x: Tensor) -> Tensor:
        """`(row, time, feature)` → the same with other sizes."""
        active = False
        for layer in self:
            if isinstance(layer, nn.ELU):
                active = True
                continue
            x = layer(x, active=True) if active and isinstance(layer, Conv) else layer(x)
            active = False
        return x


def encoder(
    filters: int, ratios: tuple[int, ...], dim: int, lstm_layers: int, kernel: int = 5, last_kernel: int = 5
) -> Layers:
    """`(row, sample, 1)` → `(row, token, dim)`, one token for each `prod(ratios)` samples."""
    width = filters
    layers: list[nn.Module] = [Conv(1, filters, kernel)]
    for ratio in ratios:
        layers += [Residual(width), nn.ELU(), Conv(width, 2 * width, 2 * ratio, ratio)]
        width *= 2
    return Layers(*layers, Recurrent(width, lstm_layers), nn.ELU(), Conv(width, dim, last_kernel))


def decoder(
    filters: int, ratios: tuple[int, ...], dim: int, lstm_layers: int, kernel: int = 5, last_kernel: int = 5
) -> Layers:
    """`(row, token, dim)` → `(row, sample, 1)`: the encoder's mirror; `ratios` as given to the encoder."""
    width = filters * 2 ** len(ratios)
    layers: list[nn.Module] = [Conv(dim, width, kernel), Recurrent(width, lstm_layers)]
    for ratio in reversed(ratios):
        layers += [nn.ELU(), Widen(width, width // 2, ratio), Residual(width // 2)]
        width //= 2
    return Layers(*layers, nn.ELU(), Conv(width, 1, last_kernel))
