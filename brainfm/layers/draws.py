"""Random numbers that follow from a sample, and not from who shares its batch, how it is padded, or which rank has it.

A number is a hash of its sample's seed, of what it is for, and of its place: the same on every device and in any batch.
The trainer gives each sample of a step its seed as `aligned["draw"]`; elsewhere seeds come from torch's generator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brainfm.tokens import TokenBatch

#: Bits of a place along each axis: up to a million places on up to three axes.
AXIS_BITS = 20


def seeds(batch: TokenBatch) -> Tensor:
    """`(batch,)` int64 seeds of the samples."""
    if "draw" in batch.aligned:
        return batch.aligned["draw"]
    return torch.randint(1 << 62, (len(batch),)).to(batch.values.device)


def mix(x: Tensor) -> Tensor:
    """int64 → int64 that look random: the finaliser of SplitMix64 (Steele et al. 2014, OOPSLA, figure 16)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * (factor - (1 << 64))
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def hashes(seed: Tensor, shape: tuple[int, ...], stream: int) -> Tensor:
    """`(batch, *shape)` int64 of all values, for seeds `(batch,)`.

    Args:
        seed: of each sample. stream: a number for each purpose, so that two draws of a step are independent.
        shape: up to three axes. A place keeps its number when an axis grows.
    """
    place = torch.zeros((), dtype=torch.int64, device=seed.device)
    for size in shape:
        place = (place[..., None] << AXIS_BITS) + torch.arange(size, device=seed.device)
    start = mix(seed * 64 + stream).view(-1, *(1,) * len(shape))
    return mix(start + mix(place + 1))


def uniform(seed: Tensor, shape: tuple[int, ...], stream: int) -> Tensor:
    """`(batch, *shape)` float32 from 0 to below 1; arguments as in `hashes`."""
    return ((hashes(seed, shape, stream) >> 40) & 0xFFFFFF).float() * 2.0**-24


def normal(seed: Tensor, shape: tuple[int, ...], stream: int) -> Tensor:
    """`(batch, *shape)` float32 of mean 0 and deviation 1; arguments as in `hashes`."""
    middle = uniform(seed, shape, stream) + 2.0**-25
    return torch.special.ndtri(middle.clamp_max(1 - 2.0**-24))  # the uppermost would round to 1, and so to infinity
