"""Augmentations of sampled signals for training. Each draws anew for every window and leaves padding as it is.

A window's channels are changed alike (but for `channel_drop`), so that what they share stays shared. Chosen after
- C. Rommel, J. Paillard, T. Moreau, A. Gramfort, Data augmentation for learning predictive models on EEG: a systematic
  comparison, Journal of Neural Engineering 19, 066020 (2022), https://arxiv.org/abs/2206.14483: channel drop, band-stop
  and surrogate phase;
- M. N. Mohsenvand, M. R. Izadi, P. Maes, Contrastive representation learning for electroencephalogram classification,
  PMLR 136, 238-253 (2020), http://proceedings.mlr.press/v136/mohsenvand20a.html: time shift, amplitude scale and
  band-stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Generator, Tensor

from brainfm import config
from brainfm.tokens import TokenBatch

Augmentation = Callable[[TokenBatch, Generator], TokenBatch]


@dataclass(frozen=True)
class ChannelDrop:
    """Make channels of a window look as if the recording did not have them: masked, of no kind, at no place.

    Attributes:
        p: chance of each channel. One channel of a window always stays.
    """

    p: float = 0.2

    def __post_init__(self) -> None:
        _between("p", self.p, 0, 1)

    def __call__(self, batch: TokenBatch, generator: Generator) -> TokenBatch:
        """The batch with channels dropped; the grid keeps its size."""
        real = _real(batch, "channel_drop")
        chance = torch.rand(real.shape[:2], generator=generator).masked_fill(~real.any(dim=2), -1.0)
        drop = (chance >= 0) & (chance < self.p) & (chance < chance.amax(dim=1, keepdim=True))
        token = drop.repeat_interleave(real.shape[2], dim=1)
        return replace(
            batch,
            values=batch.values.masked_fill(token[..., None], 0.0),
            place=batch.place.masked_fill(drop[..., None], torch.nan),
            orientation=batch.orientation.masked_fill(drop[..., None], 0.0),
            kind=batch.kind.masked_fill(drop, -1),
            mask=batch.mask & ~token,
        )


@dataclass(frozen=True)
class PlaceDrop:
    """Forget where channels are, so that a model learns what to make of recordings without positions.

    Attributes:
        p: chance of each window. Of its channels a share loses its place that is itself drawn evenly from 0 to 1.
    """

    p: float = 0.1

    def __post_init__(self) -> None:
        _between("p", self.p, 0, 1)

    def __call__(self, batch: TokenBatch, generator: Generator) -> TokenBatch:
        """The batch with places, and orientations, unknown."""
        _real(batch, "place_drop")  # refuses what has no sensors
        window = torch.rand(len(batch), 1, generator=generator) < self.p
        share = torch.rand(len(batch), 1, generator=generator)
        drop = (window & (torch.rand(batch.kind.shape, generator=generator) < share))[..., None]
        return replace(
            batch,
            place=batch.place.masked_fill(drop, torch.nan),
            orientation=batch.orientation.masked_fill(drop, 0.0),
        )


@dataclass(frozen=True)
class TimeShift:
    """Shift a window in time, around its end: what leaves on one side comes in on the other.

    No sample is lost and no token masked, at the price of one seam. Windows whose covariates must keep their time are
    refused.

    Attributes:
        p: chance of each window. max_s: at most so many seconds, to either side.
    """

    p: float = 0.5
    max_s: float = 0.25

    def __post_init__(self) -> None:
        _between("p", self.p, 0, 1)
        _between("max_s", self.max_s, 0)

    def __call__(self, batch: TokenBatch, generator: Generator) -> TokenBatch:
        """The batch with windows shifted by whole samples.

        Raises:
            ValueError: where `max_s` is shorter than a sample.
        """
        _check_time_is_free(batch, "time_shift")
        most = round(self.max_s * (batch.sfreq or 0.0))
        if batch.sfreq and not most:
            raise ValueError(
                f"time_shift: max_s {self.max_s:g} is less than a sample at {batch.sfreq:g} Hz; set it to "
                f"{1 / batch.sfreq:g} or more"
            )

        def shift(signal: Tensor) -> Tensor:
            by = torch.randint(-most, most + 1, (len(signal), 1, 1), generator=generator)
            source = (torch.arange(signal.shape[2]) - by) % signal.shape[2]
            return signal.gather(2, source.expand(signal.shape))

        return _changed(batch, "time_shift", self.p, generator, shift)


@dataclass(frozen=True)
class AmplitudeScale:
    """Multiply a window by one factor for all its channels; its logarithm is drawn evenly.

    Attributes:
        p: chance of each window. low, high: range of the factor.
    """

    p: float = 0.5
    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        _between("p", self.p, 0, 1)
        _between("low", self.low, 1e-6)
        _between("high", self.high, self.low)

    def __call__(self, batch: TokenBatch, generator: Generator) -> TokenBatch:
        """The batch with windows scaled."""

        def scale(signal: Tensor) -> Tensor:
            share = torch.rand(len(signal), 1, 1, generator=generator)
            return signal * (self.low * (self.high / self.low) ** share)

        return _changed(batch, "amplitude_scale", self.p, generator, scale)


@dataclass(frozen=True)
class BandStop:
    """Take a band out of a window: its bins of the window's Fourier transform, one at least, become zero.

    Attributes:
        p: chance of each window. width_hz: of the band.
        max_hz: the band lies below it, anywhere above 0 Hz; half of the sampling rate if None.
    """

    p: float = 0.5
    width_hz: float = 5.0
    max_hz: float | None = None

    def __post_init__(self) -> None:
        _between("p", self.p, 0, 1)
        _between("width_hz", self.width_hz, 0)
        if self.max_hz is not None:
            _between("max_hz", self.max_hz, self.width_hz)

    def __call__(self, batch: TokenBatch, generator: Generator) -> TokenBatch:
        """The batch with bands removed.

        Raises:
            ValueError: where the band is wider than what the sampling rate holds.
        """
        sfreq = batch.sfreq or math.inf
        top = min(sfreq / 2, self.max_hz or math.inf)
        if self.width_hz >= top:
            raise ValueError(
                f"band_stop: width_hz {self.width_hz:g} leaves nothing of the {top:g} Hz that a signal of {sfreq:g} "
                "samples per second may lose; make it narrower"
            )

        def stop(signal: Tensor) -> Tensor:
            n = signal.shape[2]
            middle = self.width_hz / 2 + (top - self.width_hz) * torch.rand(len(signal), 1, 1, generator=generator)
            away = (torch.fft.rfftfreq(n, 1 / sfreq) - middle).abs()
            kept = away > max(self.width_hz, sfreq / n) / 2
            return torch.fft.irfft(torch.fft.rfft(signal) * kept, n)

        return _changed(batch, "band_stop", self.p, generator, stop)


@dataclass(frozen=True)
class SurrogatePhase:
    """Fourier surrogates: a random phase for every frequency of a window, the same for all its channels.

    Amplitude spectra, cross-spectra and means stay; what the signal has beyond them goes.
    J. Theiler, S. Eubank, A. Longtin, B. Galdrikian, J. D. Farmer, Testing for nonlinearity in time series: the method
    of surrogate data, Physica D 58, 77-94 (1992). One phase for all channels: D. Prichard, J. Theiler, Generating
    surrogate data for time series with several simultaneously measured variables, Physical Review Letters 73, 951-954
    (1994).

    Attributes:
        p: chance of each window. strength: phases are drawn from this share of the circle.
    """

    p: float = 0.5
    strength: float = 1.0

    def __post_init__(self) -> None:
        _between("p", self.p, 0, 1)
        _between("strength", self.strength, 0, 1)

    def __call__(self, batch: TokenBatch, generator: Generator) -> TokenBatch:
        """The batch with surrogates in place of windows."""
        _check_time_is_free(batch, "surrogate_phase")

        def surrogate(signal: Tensor) -> Tensor:
            n = signal.shape[2]
            phase = 2 * math.pi * self.strength * torch.rand(len(signal), 1, n // 2 + 1, generator=generator)
            phase[..., 0] = 0.0
            if n % 2 == 0:
                phase[..., -1] = 0.0  # this bin is real, as that of 0 Hz is
            return torch.fft.irfft(torch.fft.rfft(signal) * torch.polar(torch.ones_like(phase), phase), n)

        return _changed(batch, "surrogate_phase", self.p, generator, surrogate)


#: What `augment:` of a configuration may name.
KNOWN: dict[str, Callable[..., Augmentation]] = {
    "channel_drop": ChannelDrop,
    "place_drop": PlaceDrop,
    "time_shift": TimeShift,
    "amplitude_scale": AmplitudeScale,
    "band_stop": BandStop,
    "surrogate_phase": SurrogatePhase,
}


def build(given: dict[str, dict[str, Any] | None], where: str) -> list[Augmentation]:
    """The augmentations of a configuration, in its order: `{channel_drop: {p: 0.2}, band_stop: null}`.

    Raises:
        ConfigError: for an unknown name or keyword, with the nearest one; for a value out of its range.
    """
    config.check_blocks(given, tuple(KNOWN), where)
    made = []
    for name, options in given.items():
        keywords = config.keywords(KNOWN[name], options or {}, f"{where}: {name}")
        try:
            made.append(KNOWN[name](**keywords))
        except ValueError as error:
            raise config.ConfigError(f"{where}: {name}: {error}") from error
    return made


def _between(word: str, value: Any, low: float, high: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{word} is {value!r}; expected a number from {low:g}" + f" to {high:g}" * (high < math.inf))


def _real(batch: TokenBatch, name: str) -> Tensor:
    """`(batch, channel, patch)` True where there is a signal."""
    if batch.grid is None or batch.sfreq is None:
        held = "events" if batch.grid is None else "codes"
        raise ValueError(f"{name} changes sampled signals; this batch holds {held}: take {name} out of `augment`")
    return batch.mask.unflatten(1, batch.grid)


def _check_time_is_free(batch: TokenBatch, name: str) -> None:
    """No covariate `(batch, time, feature)` may come along with a signal whose time is changed."""
    bound = [k for k, v in batch.aligned.items() if v.dim() > 2]
    if bound:
        raise ValueError(
            f"{name} would move the signal against its aligned {bound[0]!r}; take {name} out of `augment`, or the "
            "covariate out of the batch"
        )


def _changed(
    batch: TokenBatch, name: str, p: float, generator: Generator, change: Callable[[Tensor], Tensor]
) -> TokenBatch:
    """`change` of `(window, channel, time)` for windows drawn with chance `p`, up to the last real patch of each."""
    real = _real(batch, name).any(dim=1)
    count = (real * torch.arange(1, real.shape[1] + 1)).amax(dim=1)
    count = count * (torch.rand(len(batch), generator=generator) < p)
    signal = batch.signal().clone()
    for patches in count.unique().tolist():
        if patches:
            rows, n = torch.nonzero(count == patches).squeeze(1), patches * batch.values.shape[2]
            signal[rows, :, :n] = change(signal[rows, :, :n])
    values = rearrange(signal, "b c (p f) -> b (c p) f", f=batch.values.shape[2])
    return replace(batch, values=torch.where(batch.mask[..., None], values, batch.values))
