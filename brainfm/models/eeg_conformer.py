"""EEG Conformer: convolutions that cut a window into tokens, and a small transformer over them, for one montage.

Paper: Song, Zheng, Liu and Gao 2023, "EEG Conformer: Convolutional Transformer for EEG Decoding and Visualization",
IEEE Transactions on Neural Systems and Rehabilitation Engineering 31:710-719, doi:10.1109/TNSRE.2022.3230250.

Filters along time, then over all channels; batch norm; ELU; a mean over 0.3 s every 0.06 s makes a token. Six
transformer blocks attend between tokens, without positions. The classifier has two hidden layers (`Stacked` of
`evaluations/methods/scratch.py`). It is trained from scratch, and there is nothing to pretrain. It knows a channel by
its row alone: all recordings have the same channels in the same order.

Differences from the paper:
- Lengths are given in seconds, those of the paper at its 250 Hz (25, 75 and 15 samples): kernels shrink with the rate.
- Attention divides by the root of a head's width, as is usual; the authors' code divides by that of the token's width.
- There is no augmentation by cutting trials up and putting them together anew.
- The two first layers are computed as one, see `layers/time_space.py`.
- Rows that a batch lacks are zero, as are samples that are missing at the end; tokens that reach into them are masked,
  and no token attends to them.

Tensors of `encode`: signal `(batch, channel, time)` → `(batch, dim, time - kernel + 1)` → pooled, tokens
`(batch, step, dim)` → six blocks, the same shape; pooled: all tokens side by side.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from brainfm.layers.attention import MLP, Attention
from brainfm.layers.montage_signal import covered, montage_signal
from brainfm.layers.time_space import TimeSpace
from brainfm.tokens import Encoding, Facts, TokenBatch

PAPER = "Song et al. 2023, EEG Conformer, IEEE TNSRE 31:710-719, doi 10.1109/TNSRE.2022.3230250"
FACTS = Facts(modality=("eeg",), kinds=("eeg",), sfreq=250.0, window_s=4.0, channels=22)
SIZES: dict[str, dict] = {
    "published": {"dim": 40, "heads": 10, "layers": 6},
    "local": {"dim": 40, "heads": 10, "layers": 2},  # drawing dropout for six takes three times as long as all else
    "test": {"dim": 8, "heads": 2, "layers": 1, "kernel_s": 0.1, "pool_s": 0.15},
}


class DroppedBlock(nn.Module):
    """A pre-norm transformer block with dropout on what each half adds: `(batch, token, dim)` → the same shape."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout)
        self.drop = nn.Dropout(dropout)
        self.mlp = MLP(dim, 4 * dim, dropout=dropout)  # its own last dropout is on what it adds

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend to the tokens that `mask` `(batch, token)` says are real, to all if None."""
        x = x + self.drop(self.attention(self.norm_attention(x), mask=mask))
        return x + self.mlp(self.norm_mlp(x))


class EEGConformer(nn.Module):
    """The network up to its classifier; keywords as in `build`, lengths in samples."""

    patch = 1

    def __init__(
        self, channels: int, samples: int, dim: int, heads: int, layers: int, kernel: int, pool: int, stride: int,
        dropout: float, momentum: float,
    ) -> None:  # fmt: skip
        super().__init__()
        if channels < 1 or samples < kernel + pool - 1:
            raise ValueError(
                f"{channels} channels and windows of {samples} samples; EEG Conformer needs one channel and "
                f"{kernel + pool - 1} samples: use longer windows, or a smaller kernel_s or pool_s"
            )
        self.channels, self.samples, self.dim = channels, samples, dim
        self.kernel, self.pool, self.stride = kernel, pool, stride
        self.filters = TimeSpace(channels, dim, kernel, bias=True)
        self.norm = nn.BatchNorm1d(dim, momentum=momentum)
        self.drop = nn.Dropout(dropout)
        self.mixing = nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(DroppedBlock(dim, heads, dropout) for _ in range(layers))

    def encode(self, batch: TokenBatch) -> Encoding:
        """Tokens that have attended to each other; pooled is all of them side by side."""
        x, real = montage_signal(batch, self.channels, self.samples, self.patch, "EEG Conformer")
        mask = covered(real, self.kernel + self.pool - 1, self.stride)
        y = functional.avg_pool1d(functional.elu(self.norm(self.filters(x))), self.pool, self.stride)
        y = self.mixing(self.drop(y).transpose(1, 2))
        lacking = None if mask.all() else mask  # attention without a mask is faster
        for block in self.blocks:
            y = block(y, lacking)
        y = y * mask[..., None]
        return Encoding(y, y.flatten(1), mask)


def build(
    facts: Facts,
    dim: int = 40,
    heads: int = 10,
    layers: int = 6,
    kernel_s: float = 0.1,
    pool_s: float = 0.3,
    stride_s: float = 0.06,
    dropout: float = 0.5,
    momentum: float = 0.1,
) -> EEGConformer:
    """EEG Conformer for `facts.channels` channels in a fixed order and windows of `facts.window_s`.

    Args:
        dim: number of filters and width of a token. heads, layers: of the transformer.
        kernel_s: seconds of the filters. pool_s, stride_s: what a token is the mean of, and how often there is one.
        dropout: on tokens, attention weights and what each block adds, in training.
        momentum: share of a step's statistics that enter the batch norm's running ones.

    Raises:
        ValueError: where a window is shorter than `kernel_s` and `pool_s` together, or heads do not divide `dim`.
    """
    samples = round(facts.sfreq * facts.window_s)
    kernel, pool, stride = (max(1, round(s * facts.sfreq)) for s in (kernel_s, pool_s, stride_s))
    return EEGConformer(facts.channels, samples, dim, heads, layers, kernel, pool, stride, dropout, momentum)
