"""What tests of several folders share: one thread for torch, and batches of counts as the batcher makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from brainfm.tokens import TokenBatch


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for torch in the tests of a module, for the sake of speed and of equal last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def batch_of() -> Callable[..., TokenBatch]:
    """A function of counts `(batch, channel, bin)` and the neurons' numbers."""
    return counted


def counted(counts: np.ndarray, numbers: list[int] | None = None, sfreq: float = 20.0) -> TokenBatch:
    """`(batch, channel, bin)` counts as the batcher makes them."""
    n, channels, bins = counts.shape
    number = torch.tensor(numbers if numbers is not None else list(range(channels))).expand(n, -1)
    return TokenBatch(
        torch.tensor(counts, dtype=torch.float32).flatten(1).unsqueeze(-1),
        (torch.arange(bins) / sfreq).repeat(channels).expand(n, -1),
        torch.arange(channels).repeat_interleave(bins).expand(n, -1),
        torch.full((n, channels, 3), torch.nan), torch.zeros(n, channels, 3), torch.full((n, channels), 7),
        torch.ones(n, channels * bins, dtype=torch.bool), (channels, bins), sfreq, {"neuron": number},
    )  # fmt: skip
