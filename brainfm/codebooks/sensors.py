"""What BrainTokenizer knows of its sensors: their amplitudes on one scale, and their geometry as vectors.

Paper: Xiao et al. 2025, BrainOmni, arXiv:2505.18185, section 3.1 and appendix on preprocessing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Row of the released checkpoints' table of sensor types for each code of `recording.KINDS`; -1 where there is none.
RELEASED_TYPES = (0, 1, 2, 2, -1, -1, -1, -1, -1)
#: The kinds whose positions are centred and scaled together: scalp, MEG helmet, implanted, anything else.
GROUPS = ((0,), (1, 2, 3), (4, 5), (6, 7, 8))


def standardise(x: Tensor, real: Tensor, kind: Tensor) -> Tensor:
    """Average reference and one scale for each kind of sensor and window (section 3.1; relative amplitudes stay).

    Args:
        x: `(batch, channel, window, sample)` in any unit.
        real: the same shape, True where there is data.
        kind: `(batch, channel)`.

    Returns:
        `(batch, channel, window, sample)` with unit standard deviation over a kind's channels and samples.
    """
    out = torch.zeros_like(x)
    for code in kind[kind >= 0].unique().tolist():
        mine = (real & (kind == code)[:, :, None, None]).to(x.dtype)
        across, total = mine.sum(1, keepdim=True), mine.sum((1, 3), keepdim=True).clamp_min(1.0)
        values = x * mine
        level = values.sum((1, 3), keepdim=True) / total
        y = (values - level) * mine
        reference = y.sum(1, keepdim=True) / across.clamp_min(1.0)
        rough = (y.square().sum((1, 3), keepdim=True) / total).sqrt()
        y = (y - torch.where(across > 1, reference, torch.zeros_like(reference))) * mine
        scale = (y.square().sum((1, 3), keepdim=True) / total).sqrt()
        out = out + y / torch.maximum(scale, 1e-5 * rough).clamp_min(torch.finfo(x.dtype).tiny)
    return out


def centre_places(place: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
    """Positions in units of the montage: centred and divided by sqrt(3 mean |p|^2), for each group of `GROUPS`.

    Args:
        place: `(batch, channel, 3)` metres; NaN where unknown.
        kind: `(batch, channel)`; -1 marks padding.

    Returns:
        The positions, 0 where unknown, and `(batch, channel)` True where known.
    """
    known = place.isfinite().all(dim=-1) & (kind >= 0)
    place = torch.where(known[..., None], place, torch.zeros_like(place))
    out = torch.zeros_like(place)
    for group in GROUPS:
        mine = (known & torch.isin(kind, torch.tensor(group, device=kind.device)))[..., None].to(place.dtype)
        count = mine.sum(1, keepdim=True).clamp_min(1.0)
        centred = (place - (place * mine).sum(1, keepdim=True) / count) * mine
        spread = (3 * centred.square().sum((1, 2), keepdim=True) / count).sqrt()
        out = out + torch.where(spread > 1e-6, centred / spread.clamp_min(1e-6), torch.zeros_like(centred))
    return out, known


def alive(signal: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Take stretches `(batch, channel, window, sample)` for absent that are constant or hold NaN or infinity."""
    low = signal.masked_fill(~real, torch.inf).amin(dim=-1, keepdim=True)
    high = signal.masked_fill(~real, -torch.inf).amax(dim=-1, keepdim=True)
    spread = high - low
    real = real & (spread > 0) & (spread < torch.inf)
    return torch.where(real, signal, torch.zeros_like(signal)), real


class Sensors(nn.Module):
    """Position, orientation and kind of each sensor → `(batch, channel, dim)`.

    Sensors without a position share one learned vector, so that those of one kind and orientation cannot be told apart.
    The released checkpoints have no such vector.
    """

    def __init__(self, dim: int, released: bool) -> None:
        super().__init__()
        types = RELEASED_TYPES if released else tuple(range(len(RELEASED_TYPES)))
        self.types = types
        first, second = nn.Linear(6, dim // 2), nn.Linear(dim // 2, dim)
        nn.init.normal_(first.weight, std=2.0)  # centred positions are near 0.3: set sensors apart
        nn.init.normal_(second.weight, std=(dim // 2) ** -0.5)
        self.place = nn.Sequential(first, nn.SELU(), second)
        self.kind = nn.Embedding(max(types) + 1, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SELU(), nn.Linear(4 * dim, dim))
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        nn.init.normal_(self.kind.weight, std=0.1)
        self.unknown = None if released else nn.Parameter(torch.randn(dim) * 0.02)

    def forward(self, place: Tensor, orientation: Tensor, kind: Tensor) -> Tensor:
        """Geometry as in a token batch → embeddings; rows of padding hold numbers without meaning.

        Raises:
            ValueError: for a released tokenizer, where a channel's kind or position is none that it can take.
        """
        types = torch.tensor(self.types, device=kind.device)[kind.clamp_min(0)]
        if bool(((types < 0) & (kind >= 0)).any()):
            raise ValueError(
                f"channel kind {int(kind[types < 0].max())} of recording.KINDS is none of the released tokenizer's "
                "EEG, magnetometer and gradiometer; build it with released=False"
            )
        place, known = centre_places(place, kind)
        if self.unknown is None and bool((~known & (kind >= 0)).any()):
            raise ValueError(
                f"{int((~known & (kind >= 0)).sum(dim=1).max())} channels have no position, and a released tokenizer "
                "has no vector for that: set a montage, leave the channels out, or train one with released=False"
            )
        return self.embed(torch.cat((place, orientation), dim=-1), types, known)

    def embed(self, geometry: Tensor, types: Tensor, known: Tensor | None = None) -> Tensor:
        """The same from centred positions with orientations `(batch, channel, 6)` and rows of the table of types."""
        where = self.place(geometry)
        if known is not None:
            unknown = torch.zeros_like(where) if self.unknown is None else self.unknown
            where = torch.where(known[..., None], where, unknown)
        x = where + self.kind(types)
        return self.norm(x + self.mlp(x))
