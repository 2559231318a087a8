"""Reconstruct every channel from the codes of some: the loss that trains BrainTokenizer.

Paper: Xiao et al. 2025, BrainOmni, arXiv:2505.18185, section 3.1. Five parts: waveform, correlation, amplitude
spectrum, phase and commitment of the codebooks.

Differences from the paper: the distance of phases goes around the circle (at most pi) instead of jumping at +-pi;
dropped channels are drawn for each sample among its real channels, and nothing counts that is padding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from brainfm.codebooks.braintokenizer import BrainTokenizer
from brainfm.codebooks.residual import perplexity_of_counts
from brainfm.layers import draws, ranks
from brainfm.tokens import TokenBatch


class Reconstruct(nn.Module):
    """The tokenizer's loss.

    Args:
        drop: share of a sample's channels that the encoder does not hear in training (at least one, where it has two).
        noise: standard deviation added to the encoder's input in training, in units of the scaled signal.
        phase: weight of the phase term. commitment: weight of the commitment term.
    """

    def __init__(self, drop: float = 0.25, noise: float = 0.1, phase: float = 0.5, commitment: float = 0.25) -> None:
        super().__init__()
        if not 0 <= drop < 1:
            raise ValueError(f"drop is {drop}; expected a share of the channels from 0 to below 1")
        self.drop, self.noise, self.phase, self.commitment = drop, noise, phase, commitment

    def forward(self, model: BrainTokenizer, batch: TokenBatch) -> dict[str, Tensor]:
        """Loss parts of a batch of signals; nothing is dropped and no noise added outside training."""
        learning = model.training
        seen = None
        if learning and self.drop:
            noise = draws.uniform(draws.seeds(batch), tuple(batch.kind.shape[1:]), 0)
            seen = keep_channels(batch.channel_mask(), self.drop, noise)
        done = model.autoencode(batch, seen, self.noise if learning else 0.0)
        parts = distances(done.target, done.reconstruction, done.mask)
        used = perplexity_of_counts(ranks.total(model.usage(done.sources)))
        return {
            "waveform": parts["waveform"],
            "correlation": parts["correlation"],
            "amplitude": parts["amplitude"],
            "phase": self.phase * parts["phase"],
            "commitment": self.commitment * done.sources.commitment,
            "metric_pcc": parts["metric_pcc"],
            "metric_perplexity": used.mean(),
        } | {f"metric_perplexity_{depth}": value for depth, value in enumerate(used)}


def keep_channels(real: Tensor, drop: float, noise: Tensor) -> Tensor:
    """`(batch, channel)` True for the real channels that stay after a share `drop` of each sample's is left out.

    At least one is left out and at least one stays; a sample's only channel stays.

    Args:
        real: `(batch, channel)`. drop: share. noise: `(batch, channel)` below 1; those of the least are left out.
    """
    count = real.sum(dim=1)
    out = torch.minimum((count * drop).long().clamp_min(1), (count - 1).clamp_min(0))
    order = noise.masked_fill(~real, 2.0).argsort(dim=1).argsort(dim=1)
    return real & (order >= out[:, None])


def distances(target: Tensor, reconstruction: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Mean distances over the real windows of all ranks.

    Args:
        target, reconstruction: `(batch, channel, window, sample)`.
        mask: `(batch, channel, window)` True where a window counts.

    Returns:
        waveform (L1), correlation (exp of minus Pearson's r averaged over windows), amplitude and phase (L1 of the
        spectrum under a Hamming window) and metric_pcc; each a scalar, 0 where no window counts (correlation 1).
    """
    x, y = target[mask].float(), reconstruction[mask].float()
    rows = len(x)
    if rows == 0:  # a window of zeros in their place, so that every part stays finite and differentiable
        x = y = 0.0 * reconstruction.flatten(0, 2)[:1]
    taper = torch.hamming_window(target.shape[-1], device=x.device, dtype=x.dtype)
    fx, fy = (torch.fft.rfft(v * taper, norm="ortho") for v in (x, y))
    pcc = ranks.mean(pearson(x, y).sum(), rows)
    return {
        "waveform": ranks.mean((x - y).abs().sum(), rows * target.shape[-1]),
        "correlation": torch.exp(-pcc),
        "amplitude": ranks.mean((amplitude(fx) - amplitude(fy)).abs().sum(), rows * fx.shape[-1]),
        "phase": ranks.mean(phase_distance(fx, fy).sum(), rows * fx.shape[-1]),
        "metric_pcc": pcc,
    }


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Correlation along the last axis; 0 where either is constant."""
    x, y = x - x.mean(dim=-1, keepdim=True), y - y.mean(dim=-1, keepdim=True)
    return (x * y).sum(-1) / ((x.square().sum(-1) + 1e-8) * (y.square().sum(-1) + 1e-8)).sqrt()


def amplitude(spectrum: Tensor) -> Tensor:
    """Absolute value of a complex spectrum, with a finite gradient at 0."""
    return (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt()


def phase_distance(x: Tensor, y: Tensor) -> Tensor:
    """Angle between complex numbers, from 0 to pi, whichever way around the circle is shorter; 0 where either is 0.

    The gradient is finite everywhere: it is left out where a number is too small to have a phase.
    """
    product = x * y.conj()
    empty = product.abs() < 1e-9
    safe_real, safe_imag = product.real.masked_fill(empty, 1.0), product.imag.masked_fill(empty, 0.0)
    return torch.atan2(safe_imag, safe_real).abs().clamp(max=math.pi)
