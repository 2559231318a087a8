"""BrainTokenizer: windows of any EEG or MEG montage → codes of a fixed number of latent sources, and back.

Paper: Xiao et al. 2025, "BrainOmni: A Brain Foundation Model for Unified EEG and MEG Signals", NeurIPS 2025,
arXiv:2505.18185, section 3.1.

Each channel's window is compressed by convolutions and an LSTM. Learned sources then attend to the channels, whose
keys know where the sensor is, how it is oriented and what kind it is. The sources are quantised by residual codebooks.
For the way back every sensor, by its geometry alone, attends to the sources, and mirrored convolutions make samples.

Differences from the paper:
- Positions are centred and scaled over all coils of a modality, gradiometers included, and an unknown position is a
  learned vector. Each kind of `recording.KINDS` has a type of its own. With `released=True` there are three types (EEG,
  magnetometer, gradiometer) and no such vector, as in the released checkpoints.
- Amplitudes are divided by the standard deviation of a kind in each window, not over the 10 to 30 s around it (they are
  with `released=True`), so that a window's codes do not depend on its neighbours, and without an absolute epsilon, so
  that the unit does not matter. A kind with one channel is not re-referenced; a constant channel counts as absent.
- Montages mix in a batch: absent channels and windows are masked, in the attention and in the codebooks' averages.
- Attention dropout only in training. Restart of codes: see `codebooks/residual.py`. Weights start larger than a
  deviation of 0.02, with sensors and sources well apart: from there small widths learn in hundreds of steps.

Tensors: signal `(batch, channel, time)` → windows `(batch, channel, window, sample)` → convolutions, LSTM
`(batch, channel, window, token, dim)` → sources attend to channels `(batch, source, window, token, dim)` → unit length,
residual codebooks `(batch, source, time, dim)` with codes `(batch, source, time, depth)`, time = window x token.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from brainfm.codebooks import seanet
from brainfm.codebooks.residual import ResidualQuantiser, usage
from brainfm.codebooks.sensors import Sensors, alive, standardise
from brainfm.layers import draws
from brainfm.layers.attention import masked_mean
from brainfm.tokens import Encoding, Facts, TokenBatch

PAPER = "Xiao et al. 2025, BrainOmni: A Brain Foundation Model for Unified EEG and MEG Signals, arXiv:2505.18185"
FACTS = Facts(modality=("eeg", "meg"), kinds=("eeg", "grad", "mag"), sfreq=256.0, window_s=10.0, channels=306)
#: Streams of `layers/draws.py`: noise on the encoder's input, and which rows start codes anew.
NOISE, ROWS_DRAWN = 8, 9
LOCAL = {"window_s": 1.0, "filters": 8, "ratios": (4, 4, 2), "dim": 64, "codes": 256, "lstm_layers": 1}
SIZES = {
    "published": {"released": True},
    "local": LOCAL,
    "test": {
        "window_s": 0.5, "filters": 4, "ratios": (2, 4), "dim": 16, "heads": 2, "sources": 3, "depth": 2, "codes": 16,
        "lstm_layers": 1,
    },
}  # fmt: skip


class Windows(NamedTuple):
    """The signal as the network takes it.

    Attributes:
        signal: `(batch, channel, window, sample)`, referenced and scaled; 0 where there is nothing.
        mask: `(batch, channel, window)` True where the channel has data in the window.
    """

    signal: Tensor
    mask: Tensor


class Sources(NamedTuple):
    """Quantised latent sources; time = window x token.

    Attributes:
        features: `(batch, source, time, dim)` sum of the codebooks' vectors; 0 where there is nothing.
        codes: `(batch, source, time, depth)` int64; 0 where there is nothing.
        mask: `(batch, source, time)` True where there is data.
        commitment: scalar.
    """

    features: Tensor
    codes: Tensor
    mask: Tensor
    commitment: Tensor


class Autoencoding(NamedTuple):
    """A batch and what its codes give back `(batch, channel, window, sample)`; mask `(batch, channel, window)`."""

    target: Tensor
    reconstruction: Tensor
    mask: Tensor
    sources: Sources


class BrainTokenizer(nn.Module):
    """The tokenizer; keywords as in `build`."""

    def __init__(
        self, patch: int, filters: int, ratios: tuple[int, ...], dim: int, heads: int, sources: int, depth: int,
        codes: int, lstm_layers: int, dropout: float, decay: float, threshold: float, released: bool, sfreq: float,
        kernel: int = 5, last_kernel: int = 5,
    ) -> None:  # fmt: skip
        super().__init__()
        if patch % math.prod(ratios) or dim % heads:
            raise ValueError(
                f"windows of {patch} samples with ratios {tuple(ratios)}, width {dim} with {heads} heads; expected a "
                f"window that is a multiple of {math.prod(ratios)} samples and a width that is one of the heads"
            )
        self.dim, self.patch, self.sources, self.depth, self.codes_per_depth = dim, patch, sources, depth, codes
        self.tokens_per_window, self.heads, self.dropout = patch // math.prod(ratios), heads, dropout
        self.released, self.sfreq = released, sfreq
        self.sensors = Sensors(dim, released)
        self.analysis = seanet.encoder(filters, tuple(ratios), dim, lstm_layers, kernel, last_kernel)
        self.queries = nn.Parameter(torch.empty(sources, dim))
        self.key, self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.quantiser = ResidualQuantiser(depth, codes, dim, decay, threshold)
        self.source_key_value, self.channel_out = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.synthesis = seanet.decoder(filters, tuple(ratios), dim, lstm_layers, kernel, last_kernel)
        for layer in (self.key, self.value, self.out, self.source_key_value, self.channel_out):
            nn.init.normal_(layer.weight, std=dim**-0.5)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.queries)

    def windows(self, batch: TokenBatch, overlap: float = 0.0) -> Windows:
        """Cut a batch into windows of `patch` samples, reference and scale them.

        Without overlap only whole windows count; with it a last window that is cut short is filled up with zeros. A
        channel that is constant in a window, or not finite everywhere, counts as absent there.

        Raises:
            ValueError: where the batch is shorter than one window, of another sampling rate, or holds events.
        """
        signal = batch.signal()
        if batch.sfreq != self.sfreq:
            raise ValueError(
                f"the batch has {batch.sfreq} samples per second; this tokenizer reads {self.sfreq}: resample first"
            )
        known = batch.mask.view(len(batch), *batch.grid) & batch.channel_mask()[..., None]  # type: ignore[misc]
        real = known.repeat_interleave(batch.values.shape[-1], dim=2)
        if signal.shape[-1] < self.patch and not overlap:
            raise ValueError(
                f"the batch has {signal.shape[-1]} samples; a window of this tokenizer needs {self.patch}: take more"
            )
        signal = torch.where(real, signal, torch.zeros_like(signal))
        if self.released:
            signal, real = alive(signal[:, :, None], real[:, :, None])
            signal = standardise(signal, real, batch.kind).squeeze(2)
            real = real.squeeze(2)
        cut, real = self.cut(signal, overlap), self.cut(real.float(), overlap) > 0
        shared = round(overlap * self.patch)
        mask = real.all(dim=-1) if not shared else torch.cat((real[:, :, :1, 0], real[:, :, 1:, shared]), dim=2)
        if not self.released:
            cut, real = alive(cut, real & mask[..., None])
            mask = mask & real.any(dim=-1)
            cut = standardise(cut, real, batch.kind)
        return Windows(cut * mask[..., None], mask)

    def cut(self, signal: Tensor, overlap: float = 0.0) -> Tensor:
        """`(batch, channel, time)` → `(batch, channel, window, sample)`; see `windows`."""
        step = self.patch - round(overlap * self.patch)
        if overlap:
            count = max(0, -(-(signal.shape[-1] - self.patch) // step)) + 1
            signal = functional.pad(signal, (0, max(0, (count - 1) * step + self.patch - signal.shape[-1])))
        return signal.unfold(2, self.patch, step)

    def geometry(self, batch: TokenBatch) -> Tensor:
        """Embeddings of the sensors, `(batch, channel, dim)`."""
        return self.sensors(batch.place, batch.orientation, batch.kind)

    def compress(self, windows: Windows, sensors: Tensor) -> Tensor:
        """Windows → unit vectors of the latent sources before quantisation, `(batch, source, window, token, dim)`."""
        z, key = self._keys(windows, sensors)
        b, _, w, t, _ = z.shape
        value = rearrange(self.value(z), "b c w t (h d) -> (b w t) h c d", h=self.heads)
        query = rearrange(self.queries, "s (h d) -> 1 h s d", h=self.heads).expand(len(key), -1, -1, -1)
        allowed = None if windows.mask.all() else _allowed(windows.mask, t)
        dropout = self.dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
        y = self.out(rearrange(y, "(b w t) h s d -> b s w t (h d)", b=b, w=w, t=t))
        return functional.normalize(y, dim=-1)

    def _keys(self, windows: Windows, sensors: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of each channel `(batch, channel, window, token, dim)` and keys `(row, head, channel, feature)`."""
        mask = windows.mask
        shape = (*mask.shape, self.tokens_per_window, self.dim)
        if mask.all():
            z = self.analysis(windows.signal.flatten(0, 2).unsqueeze(2)).to(windows.signal.dtype).view(shape)
        else:
            z = windows.signal.new_zeros(shape)
            if mask.any():
                z = z.index_put((mask,), self.analysis(windows.signal[mask].unsqueeze(2)).to(z.dtype))
        key = self.key(z + sensors[:, :, None, None])
        return z, rearrange(key, "b c w t (h d) -> (b w t) h c d", h=self.heads)

    def quantise(self, latent: Tensor, mask: Tensor, seed: Tensor | None = None) -> Sources:
        """Quantise real sources alone.

        Args:
            latent: `(batch, source, window, token, dim)`.
            mask: `(batch, window)` True where any channel has data.
            seed: `(batch,)` of what training draws from the rows; see `layers/draws.py`.
        """
        real = mask[:, None, :, None].expand(latent.shape[:-1])
        keys = None if seed is None else draws.hashes(seed, tuple(real.shape[1:]), ROWS_DRAWN)[real]
        rows = self.quantiser(latent[real], keys)
        features = torch.zeros_like(latent, dtype=rows.values.dtype).index_put((real,), rows.values)
        codes = torch.zeros((*real.shape, self.depth), dtype=torch.int64, device=real.device)
        codes[real] = rows.codes
        return Sources(features.flatten(2, 3), codes.flatten(2, 3), real.flatten(2, 3), rows.commitment)

    def sources_of(self, batch: TokenBatch, overlap: float = 0.0) -> Sources:
        """The quantised sources of a signal batch, in windows that overlap by the share `overlap`."""
        windows = self.windows(batch, overlap)
        return self.quantise(self.compress(windows, self.geometry(batch)), windows.mask.any(dim=1))

    def encode(self, batch: TokenBatch) -> Encoding:
        """Quantised features, source by source; pooled is the mean over time of each source."""
        features, _, mask, _ = self.sources_of(batch)
        pooled = masked_mean(features.flatten(0, 1), mask.flatten(0, 1)).view(len(batch), -1)
        return Encoding(features.flatten(1, 2), pooled, mask.flatten(1))

    def codes(self, batch: TokenBatch) -> Tensor:
        """Codes `(batch, source, time, depth)` int64 of windows without overlap."""
        return self.sources_of(batch).codes

    def features_of(self, codes: Tensor) -> Tensor:
        """Codes `(batch, source, time, depth)` → the quantised features `(batch, source, time, dim)`."""
        return self.quantiser.vectors_of(codes)

    def decode(self, sources: Tensor, batch: TokenBatch) -> Tensor:
        """Samples that the sensors of `batch` would show, each channel and window in units of its own deviation.

        Args:
            sources: features `(batch, source, time, dim)`, or integer codes `(batch, source, time, depth)`.
            batch: only its geometry is read.

        Returns:
            `(batch, channel, window, sample)`; 0 for padding.
        """
        features = sources if sources.is_floating_point() else self.features_of(sources)
        windows = features.shape[2] // self.tokens_per_window
        return self.expand(features, self.geometry(batch), batch.channel_mask()[..., None].expand(-1, -1, windows))

    def expand(self, features: Tensor, sensors: Tensor, mask: Tensor) -> Tensor:
        """Sources → windows of the channels where `mask` `(batch, channel, window)` is True; 0 elsewhere."""
        t, h = self.tokens_per_window, self.heads
        key, value = rearrange(
            self.source_key_value(features), "b s (w t) (two h d) -> two (b w t) h s d", two=2, t=t, h=h
        )
        query = rearrange(sensors, "b c (h d) -> b h c d", h=h).repeat_interleave(len(key) // len(sensors), dim=0)
        dropout = self.dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        y = rearrange(y, "(b w t) h c d -> b c w t (h d)", b=len(sensors), t=t)
        if mask.all():
            rows = self.synthesis(self.channel_out(y.flatten(0, 2)))
            return rows.to(features.dtype).view(*mask.shape, self.patch)
        out = features.new_zeros(*mask.shape, self.patch)
        if not mask.any():
            return out
        return out.index_put((mask,), self.synthesis(self.channel_out(y[mask])).squeeze(2).to(out.dtype))

    def autoencode(self, batch: TokenBatch, seen: Tensor | None = None, noise: float = 0.0) -> Autoencoding:
        """Encode the channels that are `seen`, decode all.

        Args:
            seen: `(batch, channel)` True for channels that the encoder may use; all if None.
            noise: standard deviation of what is added to the encoder's input, in units of the scaled signal.
        """
        whole, sensors = self.windows(batch), self.geometry(batch)
        seed, signal = draws.seeds(batch), whole.signal
        if noise:
            signal = signal + noise * draws.normal(seed, tuple(signal.shape[1:]), NOISE)
        heard = whole.mask if seen is None else whole.mask & seen[..., None]
        latent = self.compress(Windows(signal * heard[..., None], heard), sensors)
        sources = self.quantise(latent, heard.any(dim=1), seed)
        return Autoencoding(z_score(whole), self.expand(sources.features, sensors, whole.mask), whole.mask, sources)

    def reconstruct(self, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Target, reconstruction and mask (True where a sample counts), each `(batch, channel, window, sample)`."""
        done = self.autoencode(batch)
        return done.target, done.reconstruction, done.mask[..., None].expand_as(done.target)

    def usage(self, sources: Sources) -> Tensor:
        """`(depth, code)` how often each code stands among the real tokens."""
        return usage(sources.codes[sources.mask], self.codes_per_depth)

    def source_topography(self, batch: TokenBatch) -> Tensor:
        """Attention of each source to each channel, mean over heads and real windows: `(batch, source, channel)`."""
        windows = self.windows(batch)
        z, key = self._keys(windows, self.geometry(batch))
        query = rearrange(self.queries, "s (h d) -> h s d", h=self.heads)
        score = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        score = score.masked_fill(~_allowed(windows.mask, z.shape[3]), -torch.inf).softmax(dim=-1)
        weight = rearrange(score, "(b w t) h s c -> b (w t) (h s c)", b=len(batch), t=z.shape[3])
        real = windows.mask.any(dim=1).repeat_interleave(z.shape[3], dim=1)
        mean = masked_mean(weight, real).view(len(batch), self.heads, self.sources, -1).mean(dim=1)
        return mean * batch.channel_mask()[:, None]


def z_score(windows: Windows) -> Tensor:
    """Each channel and window with mean 0 and deviation 1: what the decoder is to give."""
    x = windows.signal
    return (x - x.mean(dim=-1, keepdim=True)) / x.std(dim=-1, keepdim=True).clamp_min(1e-5)


def _allowed(mask: Tensor, tokens: int) -> Tensor:
    """Channels that a source may look at, `(row, 1, 1, channel)`; windows without any may look at all (of zeros)."""
    allowed = rearrange(mask, "b c w -> b w 1 1 1 c").expand(-1, -1, tokens, -1, -1, -1).flatten(0, 2)
    return allowed | ~allowed.any(dim=-1, keepdim=True)


def build(
    facts: Facts,
    window_s: float = 2.0,
    filters: int = 32,
    ratios: tuple[int, ...] = (2, 4, 8),
    dim: int = 256,
    heads: int = 4,
    sources: int = 16,
    depth: int = 4,
    codes: int = 512,
    lstm_layers: int = 2,
    dropout: float = 0.1,
    decay: float = 0.99,
    threshold: float = 2.0,
    released: bool = False,
    kernel: int = 5,
    last_kernel: int = 5,
) -> BrainTokenizer:
    """A tokenizer for signals of `facts.sfreq`; the defaults are the published sizes.

    Args:
        window_s: seconds of a window, rounded to whole tokens.
        filters: width of the first convolution; it doubles at each of the `ratios`, by which the length shrinks.
        dim, heads: width and heads of the attention. sources: latent sources.
        depth, codes: codebooks and vectors in each.
        lstm_layers: LSTM layers on either side; 0 for none (recurrence is slow on a CPU).
        dropout: of attention weights, in training.
        decay, threshold: of the codebooks, see `brainfm.codebooks.residual`.
        released: sensor types and scaling of the released checkpoints, see the differences above.
        kernel, last_kernel: samples of the first and last convolution on either side.
    """
    per_token = math.prod(ratios)
    patch = per_token * max(1, round(window_s * facts.sfreq / per_token))
    return BrainTokenizer(
        patch, filters, tuple(ratios), dim, heads, sources, depth, codes, lstm_layers, dropout, decay, threshold,
        released, facts.sfreq, kernel, last_kernel,
    )  # fmt: skip
