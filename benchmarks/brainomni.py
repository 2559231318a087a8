"""BrainTokenizer and BrainOmni at the published sizes beside the same mathematics done plainly, on one thread.

    python benchmarks/brainomni.py [--case tokenize] [--repeat 7]

Prints one JSON line per case, each from a process of its own. Times are medians of CPU seconds, ours and the baseline's
in turn; `ratio` is the baseline's time over ours. The baseline has the same weights, loss and quantiser, but torch's
convolutions on `(row, feature, time)`, masked copies in and out, attention with a mask, rotation by sines and cosines
and AdamW one operation at a time, as public code for these models is written. `bf16_seconds` is ours under autocast.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from brainfm.codebooks import braintokenizer
from brainfm.codebooks.braintokenizer import BrainTokenizer, Windows
from brainfm.codebooks.residual import k_means
from brainfm.codebooks.seanet import Conv, Layers, Recurrent, Residual, Widen
from brainfm.models import brainomni
from brainfm.models.brainomni import HalfAttention
from brainfm.objectives.masked_codes import MaskedCodes
from brainfm.objectives.reconstruct import Reconstruct
from brainfm.tokens import TokenBatch

SFREQ, PATCH, BATCH = 256, 256, 2
CHANNELS, SECONDS = (19, 64, 128, 256, 400), (5, 10, 30)
PLAIN = "torch's convolutions on (row, feature, time), masked copies, math attention, AdamW unfused"


class PlainLayers(nn.Module):
    """`layers` by torch's convolutions, which take `(row, feature, time)`."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """As `Layers.forward`."""
        x = x.transpose(1, 2).contiguous()
        for layer in self.layers:
            if isinstance(layer, Residual):
                inner = plain_convolution(layer.narrow, functional.elu(x))
                x = plain_convolution(layer.shortcut, x) + plain_convolution(layer.back, functional.elu(inner))
            elif isinstance(layer, Recurrent) and layer.lstm is not None:
                x = x + layer.lstm(x.permute(2, 0, 1))[0].permute(1, 2, 0)
            elif isinstance(layer, Widen):
                y = layer.conv(x)
                x = y[..., layer.left : y.shape[-1] - layer.right]
            elif isinstance(layer, Conv):
                x = plain_convolution(layer, x)
            else:
                x = functional.elu(x)
        return x.transpose(1, 2)


def plain_convolution(layer: Conv, x: Tensor) -> Tensor:
    """Borders, then torch's convolution of `(row, feature, time)`."""
    return layer.conv(functional.pad(x, layer.borders, mode="reflect") if any(layer.borders) else x)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """Attention with every weight in memory; the mask is `(row, key)`."""
    score = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~mask[:, None, None], -torch.inf)
    return functional.dropout(score.softmax(dim=-1), dropout, training=dropout > 0) @ v


class PlainTokenizer(BrainTokenizer):
    """The tokenizer with masked copies in and out of its layers."""

    def compress(self, windows: Windows, sensors: Tensor) -> Tensor:
        """As `BrainTokenizer.compress`."""
        mask, t = windows.mask, self.tokens_per_window
        z = windows.signal.new_zeros(*mask.shape, t, self.dim)
        z = z.index_put((mask,), self.analysis(windows.signal[mask].unsqueeze(2)).to(z.dtype))
        spread = sensors[:, :, None, None].repeat(1, 1, mask.shape[2], t, 1)
        key, value = (
            rearrange(y, "b c w t (h d) -> (b w t) h c d", h=self.heads) for y in (self.key(z + spread), self.value(z))
        )
        query = rearrange(self.queries, "s (h d) -> 1 h s d", h=self.heads).repeat(len(key), 1, 1, 1)
        allowed = rearrange(mask[..., None].repeat(1, 1, 1, t), "b c w t -> (b w t) c")
        y = plain_attention(query, key, value, allowed, self.dropout if self.training else 0.0)
        y = self.out(rearrange(y, "(b w t) h s d -> b s w t (h d)", b=len(mask), t=t))
        return functional.normalize(y, dim=-1)

    def expand(self, features: Tensor, sensors: Tensor, mask: Tensor) -> Tensor:
        """As `BrainTokenizer.expand`."""
        t, h = self.tokens_per_window, self.heads
        key, value = rearrange(
            self.source_key_value(features), "b s (w t) (two h d) -> two (b w t) h s d", two=2, t=t, h=h
        )
        query = rearrange(sensors, "b c (h d) -> b h c d", h=h).repeat_interleave(len(key) // len(sensors), dim=0)
        every = torch.ones(len(key), key.shape[2], dtype=torch.bool)
        y = plain_attention(query, key, value, every, self.dropout if self.training else 0.0)
        y = self.channel_out(rearrange(y, "(b w t) h c d -> b c w t (h d)", b=len(sensors), t=t))
        out = features.new_zeros(*mask.shape, self.patch)
        return out.index_put((mask,), self.synthesis(y[mask]).squeeze(2).to(out.dtype))


class PlainHalf(HalfAttention):
    """Half of the criss-cross attention, its rotation by sines and cosines."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """As `HalfAttention.forward`."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.rope is not None:
            q, k = plain_turn(q), plain_turn(k)
        q, k, v = (rearrange(y, "r t (h d) -> r h t d", h=self.heads) for y in (q, k, v))
        every = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        y = plain_attention(q, k, v, every, self.dropout if self.training else 0.0)
        return self.out(rearrange(y, "r h t d -> r t (h d)"))


def plain_turn(x: Tensor) -> Tensor:
    """`brainomni.turn` of `(row, time, feature)` in real numbers."""
    pairs = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] * 10_000.0 ** (-torch.arange(pairs) / pairs)
    a, b = x.unflatten(-1, (pairs, 2)).unbind(-1)
    return torch.stack((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), dim=-1).flatten(-2)


def plainly(model: nn.Module) -> nn.Module:
    """A copy with the same weights that computes plainly."""
    plain = copy.deepcopy(model)
    for part in plain.modules():
        if isinstance(part, HalfAttention):
            part.__class__ = PlainHalf
        if isinstance(part, BrainTokenizer):
            part.__class__ = PlainTokenizer
            part.analysis, part.synthesis = PlainLayers(part.analysis), PlainLayers(part.synthesis)
    return plain


def make_batch(channels: int, seconds: float) -> TokenBatch:
    """Random signals of one montage of EEG."""
    patches = round(seconds * SFREQ / PATCH)
    return TokenBatch(
        values=torch.randn(BATCH, channels * patches, PATCH),
        time=(torch.arange(patches) * PATCH / SFREQ).repeat(channels).expand(BATCH, -1),
        channel=torch.arange(channels).repeat_interleave(patches).expand(BATCH, -1),
        place=torch.randn(1, channels, 3).expand(BATCH, -1, -1) * 0.1,
        orientation=torch.zeros(BATCH, channels, 3),
        kind=torch.zeros(BATCH, channels, dtype=torch.int64),
        mask=torch.ones(BATCH, channels * patches, dtype=torch.bool),
        grid=(channels, patches),
        sfreq=float(SFREQ),
    )


def make_tokenizer(batch: TokenBatch) -> BrainTokenizer:
    """A tokenizer of the published size whose codebooks have started."""
    model = braintokenizer.build(braintokenizer.FACTS, **braintokenizer.SIZES["published"])  # type: ignore[arg-type]
    with torch.no_grad():
        model.train().autoencode(batch)
    return model.eval()


def step(model: nn.Module, objective: nn.Module, batch: TokenBatch, fused: bool) -> Callable[[], None]:
    """One step of training: loss, gradients and AdamW."""
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learnt, 2e-4, fused=fused)
    model.train()

    def once() -> None:
        torch.manual_seed(0)
        parts = objective(model, batch)
        optimiser.zero_grad()
        torch.stack([value for name, value in parts.items() if not name.startswith("metric_")]).sum().backward()
        optimiser.step()

    return once


def cpu(run: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def in_turn(runs: list[Callable[[], object]], repeat: int) -> list[float]:
    """Median CPU seconds of each, one call of each in turn, the first turn not counted."""
    for run in runs:
        run()
    return [float(median) for median in np.median([[cpu(run) for run in runs] for _ in range(repeat)], axis=0)]


def in_bf16(run: Callable[[], object]) -> Callable[[], object]:
    """The same under autocast to bfloat16."""

    def once() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return run()

    return once


def tokenizer_case(name: str, repeat: int) -> dict[str, object]:
    """`tokenizer_step`, `tokenize`, or `tokenize` of another number of channels or seconds."""
    what, _, number = name.removeprefix("tokenize_").partition("_")
    channels = int(number) if what == "channels" else CHANNELS[0]
    seconds = int(number) if what == "seconds" else SECONDS[0]
    batch = make_batch(channels, seconds)
    ours = make_tokenizer(batch)
    plain = plainly(ours)
    with torch.no_grad():
        if name == "tokenizer_step":
            ours_out, plain_out = (model.reconstruct(batch)[1] for model in (ours, plain))  # type: ignore[operator]
        else:
            windows, place = ours.windows(batch), ours.geometry(batch)
            ours_out, plain_out = ours.compress(windows, place), plain.compress(windows, place)  # type: ignore[operator]
    if name == "tokenizer_step":
        runs = [step(model, Reconstruct(), batch, model is ours) for model in (ours, plain)]
    else:
        runs = [torch.no_grad()(lambda model=model: model.codes(batch)) for model in (ours, plain)]
    sizes = {"batch": BATCH, "channels": channels, "samples": seconds * SFREQ}
    return timed(name, sizes, runs, repeat, float((ours_out - plain_out).abs().max()))


def brainomni_case(name: str, repeat: int) -> dict[str, object]:
    """A step of the second stage, size tiny, from signals."""
    batch = make_batch(CHANNELS[0], SECONDS[0])
    tokenizer = make_tokenizer(batch)
    size: dict[str, object] = brainomni.SIZES["tiny"]  # type: ignore[assignment]
    ours = brainomni.build(brainomni.FACTS, tokenizer, **size).eval()  # type: ignore[arg-type]
    plain = plainly(ours)
    with torch.no_grad():
        sources = ours.sources_of(batch)
        guesses = [model.predict(sources.features, sources.mask) for model in (ours, plain)]  # type: ignore[operator]
    runs = [step(model, MaskedCodes(), batch, model is ours) for model in (ours, plain)]
    sizes = {"batch": BATCH, "channels": CHANNELS[0], "samples": SECONDS[0] * SFREQ}
    return timed(name, sizes, runs, repeat, float((guesses[0] - guesses[1]).abs().max()))


def timed(
    name: str, sizes: dict[str, int], runs: list[Callable[[], None]], repeat: int, difference: float
) -> dict[str, object]:
    """The line of a case from its two ways."""
    for run in runs[:1]:
        run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # before the baseline runs
    mine, base, half = in_turn([*runs, in_bf16(runs[0])], repeat)
    return {
        "name": name, **sizes, "seconds": mine, "peak_mb": peak, "baseline": PLAIN, "baseline_seconds": base,
        "ratio": base / mine, "bf16_seconds": half, "max_difference": difference,
    }  # fmt: skip


def kmeans_case(name: str, repeat: int) -> dict[str, object]:
    """The start of a codebook; the baseline holds all differences `(row, code, dim)` and is timed on an eighth."""
    rows, codes, dim, iterations = 4096, 512, 256, 10
    x = torch.randn(rows, dim)
    k_means(x[:64], 64, 1)  # what libraries allocate at first
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mine = float(np.median([cpu(lambda: k_means(x, codes, iterations)) for _ in range(min(repeat, 3))]))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    part, centres = x[: rows // 8], x[:codes]
    base = 8 * iterations * cpu(lambda: (part[:, None] - centres).square().sum(dim=-1).argmin(dim=-1))
    return {
        "name": name, "rows": rows, "codes": codes, "dim": dim, "iterations": iterations, "seconds": mine,
        "peak_mb": peak, "baseline": "all differences (row, code, dim) at once, timed on an eighth of the rows",
        "baseline_seconds": base, "baseline_peak_mb": 2 * 4 * rows * codes * dim / 2**20, "ratio": base / mine,
    }  # fmt: skip


CASES: dict[str, Callable[[str, int], dict[str, object]]] = {
    "tokenizer_step": tokenizer_case,
    "tokenize": tokenizer_case,
    "brainomni_step": brainomni_case,
    "kmeans_start": kmeans_case,
    **{f"tokenize_channels_{channels}": tokenizer_case for channels in CHANNELS},
    **{f"tokenize_seconds_{seconds}": tokenizer_case for seconds in SECONDS},
}


def main() -> None:
    """Run one case here, or every case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES), help="all if not given")
    parser.add_argument("--repeat", type=int, default=7, help="turns of each way; curves take three at most")
    asked = parser.parse_args()
    if asked.case is None:
        for case in CASES:
            command = [sys.executable, __file__, "--case", case, "--repeat", str(asked.repeat)]
            subprocess.run(command, check=True)
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    curve = asked.case.startswith("tokenize_")
    print(json.dumps(CASES[asked.case](asked.case, min(asked.repeat, 3) if curve else asked.repeat)))


if __name__ == "__main__":
    main()
