"""The one batch type: tokens of any modality with the geometry of their channels, and what models are built from.

Nothing right of the shards sees a file; nothing left of this module sees torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """A batch of windows as tokens. Different montages share a batch through `mask` and `kind`.

    Attributes:
        values: `(batch, token, feature)`; samples of a patch, one number per spike, or integer codes of a codebook.
            Signals are in multiples of the typical amplitude of their kind (`recording.TYPICAL`).
        time: `(batch, token)` seconds from the start of the window: a patch's first sample, or a spike.
        channel: `(batch, token)` row of the channel table that the token came from.
        place: `(batch, channel, 3)` metres; NaN where unknown.
        orientation: `(batch, channel, 3)` coil normals; zero where there is none.
        kind: `(batch, channel)` index into `recording.KINDS`; -1 marks padding.
        mask: `(batch, token)` True for real tokens.
        grid: `(channel, patch)` where the tokens fill a grid, channel by channel; None for events.
        sfreq: samples per second inside a patch; None for events and codes.
        aligned: everything else by name, `(batch, ...)`: behaviour, stimulus, labels, neuron and subject numbers.
            Beside a covariate `name` `(batch, time, feature)` stands `name/time` `(batch, time)`, see `times_of`.
    """

    values: Tensor
    time: Tensor
    channel: Tensor
    place: Tensor
    orientation: Tensor
    kind: Tensor
    mask: Tensor
    grid: tuple[int, int] | None = None
    sfreq: float | None = None
    aligned: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def signal(self) -> Tensor:
        """The window as `(batch, channel, time)`, a view without a copy.

        Raises:
            ValueError: for a batch of events, which has no sampled signal.
        """
        if self.grid is None:
            raise ValueError("a batch of events has no sampled signal; use `values` with `time` and `channel`")
        return rearrange(self.values, "b (c p) f -> b c (p f)", c=self.grid[0], p=self.grid[1])

    def channel_mask(self) -> Tensor:
        """`(batch, channel)` True for real channels."""
        return self.kind >= 0

    def times_of(self, name: str, width: float) -> Tensor:
        """Seconds from the window's start at which a covariate was sampled.

        Args:
            name: of the covariate. width: seconds of the window, over which its samples lie evenly from the start on
                in a batch that does not say when they were taken.

        Returns:
            `(time,)` where all windows have the same times, else `(batch, time)`.
        """
        samples, time = self.aligned[name].shape[1], self.aligned.get(f"{name}/time")
        if time is None or time.shape[1] != samples:
            return torch.arange(samples, device=self.aligned[name].device) * (width / samples)
        return time[0] if bool((time == time[:1]).all()) else time

    def at(self, name: str, moment: Tensor, width: float) -> Tensor:
        """`(batch, moment, feature)` a covariate's latest sample at each moment `(moment,)`; before any, the first.

        Slots before the window's start are no samples.
        """
        time, series = self.times_of(name, width).expand(len(self), -1).contiguous(), self.aligned[name]
        latest = torch.searchsorted(time, moment.to(time).expand(len(self), -1) + 1e-6, right=True) - 1
        first = (time < -1e-6).sum(dim=1, keepdim=True).clamp_max(series.shape[1] - 1)
        return series.gather(1, latest.maximum(first)[..., None].expand(-1, -1, series.shape[2]))

    def repatch(self, samples: int) -> TokenBatch:
        """The same windows cut into patches of `samples`; samples past the last whole patch are dropped.

        Raises:
            ValueError: where the window is shorter than one patch.
        """
        signal = self.signal()
        n = signal.shape[-1] // samples
        if n == 0 or self.grid is None:
            raise ValueError(
                f"the window has {signal.shape[-1]} samples; one patch needs {samples}: use a longer window"
            )
        c = signal.shape[1]
        values = rearrange(signal[..., : n * samples], "b c (p f) -> b (c p) f", f=samples)
        step = samples / (self.sfreq or 1.0)
        time = (torch.arange(n, device=values.device) * step).repeat(c).expand(len(values), -1)
        channel = torch.arange(c, device=values.device).repeat_interleave(n).expand(len(values), -1)
        real = self.mask.view(-1, *self.grid).repeat_interleave(self.values.shape[-1], dim=2)
        mask = real[..., : n * samples].unflatten(2, (n, samples)).all(dim=3).flatten(1)
        return replace(self, values=values, time=time, channel=channel, mask=mask, grid=(c, n))

    def to(self, *args: object, **kwargs: object) -> TokenBatch:
        """Every tensor moved as `Tensor.to` does; Lightning calls this."""
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                moved[f.name] = _move(value, *args, **kwargs)
            elif isinstance(value, dict):
                moved[f.name] = {k: _move(v, *args, **kwargs) for k, v in value.items()}
        return replace(self, **moved)

    def pin_memory(self) -> TokenBatch:
        """Every tensor in pinned memory."""
        pinned: dict[str, Any] = {
            f.name: v.pin_memory() for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, aligned={k: v.pin_memory() for k, v in self.aligned.items()}, **pinned)

    def rows(self, index: Tensor) -> TokenBatch:
        """The samples `index` of the batch (any index that a tensor's first axis takes)."""
        taken: dict[str, Any] = {
            f.name: v[index] for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, aligned={k: v[index] for k, v in self.aligned.items()}, **taken)


def _move(tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
    """`tensor.to`, but integer and boolean tensors keep their type when a floating one is asked for."""
    moved = tensor.to(*args, **kwargs)  # type: ignore[call-overload]
    return moved if tensor.is_floating_point() else moved.to(tensor.dtype)


@dataclass(frozen=True)
class Encoding:
    """What a model makes of a batch.

    Attributes:
        tokens: `(batch, token, dim)`.
        pooled: `(batch, feature)` one vector per window, for probes; `feature` is the model's choice.
        mask: `(batch, token)` True for tokens that carry data.
    """

    tokens: Tensor
    pooled: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Facts:
    """What a model may need to be built from data; read from shard headers, kept in the checkpoint.

    Attributes:
        modality: modalities of the corpus, sorted.
        kinds: channel kinds present, sorted.
        sfreq: samples (or volumes) per second; 0 for spikes.
        window_s: length of a training window in seconds.
        channels: the largest number of channels of a recording.
        subjects: `dataset/subject`, sorted.
        regions: names of the regions in order (fMRI).
        neurons: `dataset/subject/session/neuron`, sorted; without the session where neurons are tracked over sessions.
        sessions: ids of the recordings that have neurons, sorted.
        aligned: name and number of features of each aligned series.
    """

    modality: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    sfreq: float = 0.0
    window_s: float = 0.0
    channels: int = 0
    subjects: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    neurons: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    aligned: dict[str, int] = field(default_factory=dict)
