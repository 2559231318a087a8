"""ShallowFBCSPNet: filters, power and its logarithm, as filter-bank common spatial patterns, but learnt together.

Paper: Schirrmeister et al. 2017, "Deep learning with convolutional neural networks for EEG decoding and visualization",
Human Brain Mapping 38:5391-5420, arXiv:1703.05051, figure 2 ("Shallow ConvNet").

Filters along time, then over all channels; batch norm; the square; a mean over 0.3 s every 0.06 s; the logarithm. The
classifier is a linear layer of all steps. It is trained from scratch, and there is nothing to pretrain. It knows a
channel by its row alone: all recordings have the same channels in the same order, see `evaluations/methods/scratch.py`.

Differences from the paper:
- Lengths are given in seconds, those of the paper at its 250 Hz (25, 75 and 15 samples): kernels shrink with the rate.
- The norms of the filters are held at 2, as in the authors' code (the classifier's at 0.5), but in each training step
  before they are used and in evaluation for what is computed alone: the same network. The two first layers are computed
  as one, see `layers/time_space.py`.
- Whole windows are decoded, as in the paper's trial-wise training; there are no crops.
- Rows that a batch lacks are zero, as are samples that are missing at the end; steps that reach into them are masked.

Tensors of `encode`: signal `(batch, channel, time)` → `(batch, filter, time - kernel + 1)` → squared, pooled, logarithm
`(batch, filter, step)` → tokens `(batch, step, filter)`; pooled: all steps side by side.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from brainfm.layers.montage_signal import covered, montage_signal
from brainfm.layers.time_space import TimeSpace
from brainfm.tokens import Encoding, Facts, TokenBatch

PAPER = "Schirrmeister et al. 2017, ShallowFBCSPNet, Human Brain Mapping 38:5391-5420, arXiv 1703.05051"
FACTS = Facts(modality=("eeg",), kinds=("eeg",), sfreq=250.0, window_s=4.0, channels=22)
SIZES: dict[str, dict] = {
    "published": {"filters": 40},
    "local": {"filters": 40, "dropout": 0.5},
    "test": {"filters": 4, "kernel_s": 0.1, "pool_s": 0.15},
}
#: Largest norm of a filter, and power below which the logarithm stays where it is.
BOUND, FLOOR = 2.0, 1e-6


class ShallowFBCSPNet(nn.Module):
    """The network up to its classifier; keywords as in `build`, in samples."""

    patch = 1

    def __init__(
        self, channels: int, samples: int, filters: int, kernel: int, pool: int, stride: int, dropout: float,
        momentum: float,
    ) -> None:  # fmt: skip
        super().__init__()
        if channels < 1 or samples < kernel + pool - 1:
            raise ValueError(
                f"{channels} channels and windows of {samples} samples; ShallowFBCSPNet needs one channel and "
                f"{kernel + pool - 1} samples: use longer windows, or a smaller kernel_s or pool_s"
            )
        self.channels, self.samples, self.dim = channels, samples, filters
        self.kernel, self.pool, self.stride = kernel, pool, stride
        self.filters = TimeSpace(channels, filters, kernel, bound=BOUND)
        self.norm = nn.BatchNorm1d(filters, momentum=momentum)
        self.drop = nn.Dropout(dropout)
        for layer in (self.filters.along_time, self.filters.across_channels):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.filters.along_time.bias)  # type: ignore[arg-type]

    def encode(self, batch: TokenBatch) -> Encoding:
        """Log power of each filter in each step; pooled is all of them side by side."""
        x, real = montage_signal(batch, self.channels, self.samples, self.patch, "ShallowFBCSPNet")
        power = functional.avg_pool1d(self.norm(self.filters(x)) ** 2, self.pool, self.stride)
        mask = covered(real, self.kernel + self.pool - 1, self.stride)
        y = self.drop(torch.log(power.clamp_min(FLOOR))) * mask[:, None]
        return Encoding(y.transpose(1, 2), y.flatten(1), mask)


def build(
    facts: Facts,
    filters: int = 40,
    kernel_s: float = 0.1,
    pool_s: float = 0.3,
    stride_s: float = 0.06,
    dropout: float = 0.5,
    momentum: float = 0.1,
) -> ShallowFBCSPNet:
    """ShallowFBCSPNet for `facts.channels` channels in a fixed order and windows of `facts.window_s`.

    Args:
        filters: along time, and as many over the channels.
        kernel_s: seconds of the filters. pool_s, stride_s: over how long power is averaged, and how often.
        dropout: on the log power, in training.
        momentum: share of a step's statistics that enter the batch norm's running ones.

    Raises:
        ValueError: where a window is shorter than `kernel_s` and `pool_s` together.
    """
    samples = round(facts.sfreq * facts.window_s)
    kernel, pool, stride = (max(1, round(s * facts.sfreq)) for s in (kernel_s, pool_s, stride_s))
    return ShallowFBCSPNet(facts.channels, samples, filters, kernel, pool, stride, dropout, momentum)
