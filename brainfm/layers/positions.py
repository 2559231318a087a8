"""Where and when as features: sines and cosines of positions in space and of times."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def fourier(place: Tensor, octaves: int, radius: float = 0.1) -> Tensor:
    """Sines and cosines of positions at doubling frequencies (Mildenhall et al. 2020, NeRF, eq. 4).

    Args:
        place: `(..., 3)` metres; NaN where unknown.
        octaves: number of doublings.
        radius: metres that one unit of the first octave spans; 0.1 m is about a head.

    Returns:
        `(..., 6 * octaves)`; zeros where the position is unknown.
    """
    known = place.isfinite().all(dim=-1, keepdim=True)
    scaled = torch.where(known, place, torch.zeros_like(place)) / radius
    frequency = math.pi / 2 * 2.0 ** torch.arange(octaves, device=place.device, dtype=place.dtype)
    angle = (scaled.unsqueeze(-1) * frequency).flatten(-2)
    return torch.cat((angle.sin(), angle.cos()), dim=-1) * known


def sinusoid(time: Tensor, dim: int, shortest: float = 1.0, longest: float = 10_000.0) -> Tensor:
    """Sines and cosines of time at log-spaced periods (Vaswani et al. 2017, section 3.5).

    Args:
        time: `(...,)` positions or seconds.
        dim: number of features, even.
        shortest, longest: periods over 2 pi, in the unit of `time`.

    Returns:
        `(..., dim)`.
    """
    half = dim // 2
    step = torch.linspace(0, 1, half, device=time.device)
    rate = 1.0 / (shortest * (longest / shortest) ** step)
    angle = time.float().unsqueeze(-1) * rate
    return torch.cat((angle.sin(), angle.cos()), dim=-1)
