"""Weights whose norm may not grow past a bound."""

from __future__ import annotations

import torch
from torch import Tensor


def held(weight: Tensor, bound: float, training: bool) -> Tensor:
    """The weight with each row's Euclidean norm at most `bound`; in training the parameter itself is shortened.

    Args:
        weight: `(row, ...)`. bound: above 0. training: whether the parameter is to be changed in place.
    """
    short = torch.renorm(weight.detach(), 2, 0, bound)
    if not training:
        return short
    with torch.no_grad():
        weight.copy_(short)
    return weight
