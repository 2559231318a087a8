"""Deep4Net: four blocks of convolution and max pooling, a deep network as in vision, for one montage.

Paper: Schirrmeister et al. 2017, "Deep learning with convolutional neural networks for EEG decoding and visualization",
Human Brain Mapping 38:5391-5420, arXiv:1703.05051, figure 1 ("Deep ConvNet").

Filters along time, then over all channels; then three convolutions along time over all filters, twice as many each
time. Each of the four is followed by batch norm, ELU and the maximum of every three steps. The classifier is a linear
layer of what is left. It is trained from scratch, and there is nothing to pretrain. It knows a channel by its row
alone: all recordings have the same channels in the same order, see `evaluations/methods/scratch.py`.

Differences from the paper:
- The length of filters is given in seconds, that of the paper at its 250 Hz (10 samples), so it shrinks with the rate.
- Where a window is too short for the maximum of every three steps, it is of every two; a window that is too short for
  that is refused. The paper has windows of 2 and 4.5 s only.
- The norms of the filters are held at 2, as in the authors' code (the classifier's at 0.5), but in each training step
  before they are used and in evaluation for what is computed alone: the same network. The two first layers are computed
  as one, see `layers/time_space.py`.
- Whole windows are decoded, as in the paper's trial-wise training; there are no crops.
- Rows that a batch lacks are zero, as are samples that are missing at the end; steps that reach into them are masked.

Tensors of `encode`: signal `(batch, channel, time)` → `(batch, filter, step)`, four times with a third of the steps →
tokens `(batch, step, 8 x filter)`; pooled: all steps side by side.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn import functional

from brainfm.layers.montage_signal import covered, montage_signal
from brainfm.layers.norms import held
from brainfm.layers.time_space import TimeSpace
from brainfm.tokens import Encoding, Facts, TokenBatch

PAPER = "Schirrmeister et al. 2017, Deep4Net (Deep ConvNet), Human Brain Mapping 38:5391-5420, arXiv 1703.05051"
FACTS = Facts(modality=("eeg",), kinds=("eeg",), sfreq=250.0, window_s=4.0, channels=22)
SIZES: dict[str, dict] = {
    "published": {"filters": 25},
    "local": {"filters": 25, "dropout": 0.5},
    "test": {"filters": 2, "kernel_s": 0.024, "pool": 2},
}
#: Blocks, and the largest norm of a filter.
BLOCKS, BOUND = 4, 2.0


class Deep4Net(nn.Module):
    """The network up to its classifier; keywords as in `build`, in samples."""

    patch = 1

    def __init__(
        self, channels: int, samples: int, filters: int, kernel: int, pool: int, dropout: float, momentum: float
    ) -> None:
        super().__init__()
        fitting = [p for p in range(2, pool + 1) if shortest(kernel, p) <= samples]
        if channels < 1 or not fitting:
            raise ValueError(
                f"{channels} channels and windows of {samples} samples; Deep4Net needs one channel and "
                f"{shortest(kernel, min(2, pool))} samples: use longer windows, or a smaller kernel_s"
            )
        self.channels, self.samples, self.dim = channels, samples, filters * 2 ** (BLOCKS - 1)
        self.kernel, self.pool = kernel, max(fitting)
        widths = [filters * 2**i for i in range(BLOCKS)]
        self.filters = TimeSpace(channels, filters, kernel, bound=BOUND)
        self.later = nn.ModuleList(nn.Conv1d(a, b, kernel, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width, momentum=momentum) for width in widths)
        self.drop = nn.Dropout(dropout)
        for layer in (self.filters.along_time, self.filters.across_channels, *self.later):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.filters.along_time.bias)  # type: ignore[arg-type]

    def encode(self, batch: TokenBatch) -> Encoding:
        """What the fourth block makes of each of its steps; pooled is all of them side by side."""
        y, mask = montage_signal(batch, self.channels, self.samples, self.patch, "Deep4Net")
        for i, norm in enumerate(self.norms):
            if i == 0:
                y = self.filters(y)
            else:
                y = functional.conv1d(self.drop(y), held(self.later[i - 1].weight, BOUND, self.training))
            y = functional.max_pool1d(functional.elu(norm(y)), self.pool)
            mask = covered(covered(mask, self.kernel, 1), self.pool, self.pool)
        y = self.drop(y) * mask[:, None]
        return Encoding(y.transpose(1, 2), y.flatten(1), mask)


def shortest(kernel: int, pool: int) -> int:
    """Samples that leave one step after all blocks."""
    samples = 1
    for _ in range(BLOCKS):
        samples = samples * pool + kernel - 1
    return samples


def build(
    facts: Facts,
    filters: int = 25,
    kernel_s: float = 0.04,
    pool: int = 3,
    dropout: float = 0.5,
    momentum: float = 0.1,
) -> Deep4Net:
    """Deep4Net for `facts.channels` channels in a fixed order and windows of `facts.window_s`.

    Args:
        filters: of the first block; each later one has twice as many.
        kernel_s: seconds of the filters of the first block, whose number of samples all blocks take.
        pool: steps that become one after each block, at least 2; fewer where a window is too short for so many.
        dropout: on the input of the later blocks and of the classifier, in training.
        momentum: share of a step's statistics that enter the batch norms' running ones.

    Raises:
        ValueError: where a window is too short for four blocks that halve the steps.
    """
    samples, kernel = round(facts.sfreq * facts.window_s), max(1, round(kernel_s * facts.sfreq))
    return Deep4Net(facts.channels, samples, filters, kernel, pool, dropout, momentum)
