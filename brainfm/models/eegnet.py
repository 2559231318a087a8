"""EEGNet: a small convolutional network for one montage, the bar that a pretrained network has to clear.

Paper: Lawhern et al. 2018, "EEGNet: A Compact Convolutional Network for EEG-based Brain-Computer Interfaces", Journal
of Neural Engineering 15:056013, arXiv:1611.08024, section 2.2 and table 2.

Filters along time, the same for all channels; then for each of them a few filters over the channels; then a separable
convolution along time. Batch norm after each, ELU, mean pooling by 4 and by 8. The classifier is the linear layer of
`objectives/supervised.py` with its norm held at 0.25. It is trained from scratch, and there is nothing to pretrain.

It knows a channel by its row alone: all recordings have the same channels in the same order, see
`evaluations/methods/scratch.py`. So of all models it is the one whose result depends on the order of channels.

Differences from the paper:
- Rows that a batch lacks are zero, as are samples that are missing at the end of a window; its time steps come out
  masked. The paper has no such windows.
- The norms of the spatial filters are held at 1 in each training step before they are used, not after each update, and
  in evaluation for what is computed alone: the same network.

Tensors of `encode`: signal `(batch, channel, time)` → `(batch, filter, channel, time)` → over channels, pooled by 4
`(batch, filter x depth, time)` → pooled by 8 `(batch, step, feature)`; pooled: all steps side by side.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from brainfm.layers.montage_signal import montage_signal
from brainfm.layers.norms import held
from brainfm.tokens import Encoding, Facts, TokenBatch

PAPER = "Lawhern et al. 2018, EEGNet, Journal of Neural Engineering 15:056013, arXiv 1611.08024"
FACTS = Facts(modality=("eeg",), kinds=("eeg",), sfreq=128.0, window_s=1.0, channels=64)
SIZES: dict[str, dict] = {
    "4,2": {"filters": 4, "depth": 2},
    "8,2": {"filters": 8, "depth": 2},
    "local": {"filters": 8, "depth": 2, "dropout": 0.25, "momentum": 0.1},
    "test": {"filters": 2, "depth": 2},
}
#: Mean pooling after the spatial and after the separable convolution, samples.
POOLS = (4, 8)


class EEGNet(nn.Module):
    """The network up to its classifier; keywords as in `build`."""

    def __init__(
        self, channels: int, samples: int, kernel: int, filters: int, depth: int, dropout: float, momentum: float
    ) -> None:
        super().__init__()
        self.patch = POOLS[0] * POOLS[1]
        if channels < 1 or samples < self.patch:
            raise ValueError(
                f"{channels} channels and windows of {samples} samples; EEGNet needs one channel and {self.patch} "
                "samples: use longer windows"
            )
        self.channels, self.samples = channels, samples // self.patch * self.patch
        self.dim = between = filters * depth
        self.along_time = nn.Conv2d(1, filters, (1, kernel), bias=False)
        self.across_channels = nn.Conv2d(filters, between, (channels, 1), groups=filters, bias=False)
        self.later = nn.Conv1d(between, between, 16, groups=between, bias=False)
        self.mixing = nn.Conv1d(between, self.dim, 1, bias=False)
        self.norm_time = nn.BatchNorm2d(filters, eps=1e-3, momentum=momentum)
        self.norm_channels = nn.BatchNorm2d(between, eps=1e-3, momentum=momentum)
        self.norm_later = nn.BatchNorm1d(self.dim, eps=1e-3, momentum=momentum)
        self.drop = nn.Dropout(dropout)
        for layer in (self.along_time, self.across_channels, self.later, self.mixing):
            nn.init.xavier_uniform_(layer.weight)

    def encode(self, batch: TokenBatch) -> Encoding:
        """Features of each step of 32 samples; pooled is all of them side by side."""
        x, real = montage_signal(batch, self.channels, self.samples, self.patch, "EEGNet")
        y = self.norm_time(self.along_time(_around(x.unsqueeze(1), self.along_time)))
        weight = held(self.across_channels.weight, 1.0, self.training)
        y = functional.conv2d(y, weight, groups=self.across_channels.groups)
        y = functional.elu(self.norm_channels(y)).squeeze(2)
        y = self.drop(functional.avg_pool1d(y, POOLS[0]))
        y = functional.elu(self.norm_later(self.mixing(self.later(_around(y, self.later)))))
        y = self.drop(functional.avg_pool1d(y, POOLS[1])) * real[:, None]
        return Encoding(y.transpose(1, 2), y.flatten(1), real)


def _around(x: Tensor, layer: nn.Conv1d | nn.Conv2d) -> Tensor:
    """Zeros on either side in time, so that the layer keeps the length."""
    kernel = layer.kernel_size[-1]
    return functional.pad(x, ((kernel - 1) // 2, kernel // 2))


def build(
    facts: Facts,
    filters: int = 8,
    depth: int = 2,
    kernel_s: float = 0.5,
    dropout: float = 0.5,
    momentum: float = 0.01,
) -> EEGNet:
    """EEGNet for `facts.channels` channels in a fixed order and windows of `facts.window_s`; defaults: EEGNet-8,2.

    Args:
        filters: along time. depth: filters over the channels for each of them.
        kernel_s: seconds of the filters along time.
        dropout: in training; the paper takes 0.5 within a person and 0.25 across people.
        momentum: share of a step's statistics that enter the batch norms' running ones; more for short trainings.

    Raises:
        ValueError: where a window holds less than 32 samples.
    """
    samples, kernel = round(facts.sfreq * facts.window_s), max(1, round(kernel_s * facts.sfreq))
    return EEGNet(facts.channels, samples, kernel, filters, depth, dropout, momentum)
