"""Convolutions from samples to tokens and back: the SEANet of EnCodec, one signal at a time.

Paper: Defossez et al. 2022, "High Fidelity Neural Audio Compression", arXiv:2210.13438, section 3.1. Weight norm
throughout, reflected borders, nothing causal.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm


def _start(layer: nn.Conv1d | nn.ConvTranspose1d, inputs: int) -> nn.Module:
    """Weights that keep the variance of their `inputs`, no bias: what passes at first is the signal alone."""
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class Conv(nn.Module):
    """Convolution of `(batch, feature, time)` with weight norm; borders reflect, the length shrinks by the stride."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = weight_norm(_start(nn.Conv1d(inputs, outputs, kernel, stride), inputs * kernel))
        spare = kernel - stride
        self.borders = (spare - spare // 2, spare // 2)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, inputs, time)` → `(batch, outputs, time / stride)`."""
        return self.conv(_reflect(x, *self.borders) if any(self.borders) else x)


def _reflect(x: Tensor, left: int, right: int) -> Tensor:
    """Reflect the borders; a signal that is shorter than a border is lengthened by zeros first, then cut again."""
    lacking = max(left, right) + 1 - x.shape[-1]
    if lacking <= 0:
        return functional.pad(x, (left, right), mode="reflect")
    longer = functional.pad(functional.pad(x, (0, lacking)), (left, right), mode="reflect")
    return longer[..., : longer.shape[-1] - lacking]


class Widen(nn.Module):
    """Transposed convolution with weight norm: `(batch, inputs, time)` → `(batch, outputs, time * stride)`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = weight_norm(_start(nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride), 2 * inputs))
        self.left, self.right = stride - stride // 2, stride // 2

    def forward(self, x: Tensor) -> Tensor:
        """Widen and cut what stands over at both ends."""
        y = self.conv(x)
        return y[..., self.left : y.shape[-1] - self.right]


class Residual(nn.Module):
    """Two convolutions through half the width, added to a third of kernel one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow, self.back = Conv(width, width // 2, 3), Conv(width // 2, width, 1)
        self.shortcut = Conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, width, time)` → the same shape."""
        inner = self.back(functional.elu(self.narrow(functional.elu(x))))
        return self.shortcut(x) + inner


class Recurrent(nn.Module):
    """LSTM along time added to its input; the identity with no layers."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers) if layers else None

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, width, time)` → the same shape."""
        if self.lstm is None or x.shape[0] == 0:
            return x
        y, _ = self.lstm(x.permute(2, 0, 1))
        return x + y.permute(1, 2, 0)


def encoder(filters: int, ratios: tuple[int, ...], dim: int, lstm_layers: int, kernel: int = 5) -> nn.Sequential:
    """`(batch, 1, sample)` → `(batch, dim, token)`, one token for each `prod(ratios)` samples."""
    width = filters
    layers: list[nn.Module] = [Conv(1, filters, kernel)]
    for ratio in ratios:
        layers += [Residual(width), nn.ELU(), Conv(width, 2 * width, 2 * ratio, ratio)]
        width *= 2
    return nn.Sequential(*layers, Recurrent(width, lstm_layers), nn.ELU(), Conv(width, dim, kernel))


def decoder(filters: int, ratios: tuple[int, ...], dim: int, lstm_layers: int, kernel: int = 5) -> nn.Sequential:
    """`(batch, dim, token)` → `(batch, 1, sample)`: the encoder's mirror; `ratios` as given to the encoder."""
    width = filters * 2 ** len(ratios)
    layers: list[nn.Module] = [Conv(dim, width, kernel), Recurrent(width, lstm_layers)]
    for ratio in reversed(ratios):
        layers += [nn.ELU(), Widen(width, width // 2, ratio), Residual(width // 2)]
        width //= 2
    return nn.Sequential(*layers, nn.ELU(), Conv(width, 1, kernel))
