"""Neuroformer at the published size: a step of training, and spikes generated with and without caches, on one thread.

    python benchmarks/neuroformer.py [--case neuroformer_step] [--repeat 5]

Prints one JSON line per case, each from a process of its own. Times are medians of CPU seconds, ours and the baseline's
in turn; `ratio` is the baseline's time over ours. 386 neurons, 100 + 100 spikes and 2,430 tokens of video (20 frames of
64 by 112 pixels) for each of 2 windows. The published code has one token more, the start token before the video.

The baseline of the step has the same weights and loss, but dense masks over all pairs of tokens, attention with every
weight in memory, and AdamW one operation at a time. Generation without caches is one pass over everything for each
spike, as published; `ratio_contexts_kept` is against a way in between, which embeds past and video once.
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
from dataclasses import replace

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from brainfm.layers.attention import Attention
from brainfm.layers.cached_attention import Stage
from brainfm.layers.frames import LookingBack
from brainfm.models import neuroformer
from brainfm.models.neuroformer import Neuroformer
from brainfm.objectives.next_spike import NextSpike
from brainfm.tokens import TokenBatch

BATCH, EVENTS, FRAMES, PIXELS = 2, 100, 20, 64 * 112
GENERATED, WITHOUT = 50, 4  # spikes of a window with caches; without, of which each costs as much
PLAIN = "dense masks over all pairs, attention with every weight in memory, AdamW unfused"


class PlainAttention(Attention):
    """Attention with every weight in memory."""

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, time: Tensor | None = None,
        context_time: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As `Attention.forward`."""
        q, k, v = self.project(x, context, time, context_time)
        score = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if mask is not None:
            score = score.masked_fill(~(mask[:, None, None] if mask.dim() == 2 else mask[:, None]), -1e30)
        weight = functional.dropout(score.softmax(dim=-1), self.dropout, self.training)
        return self.out(rearrange(weight @ v, "b h t d -> b t (h d)"))


class PlainLookingBack(LookingBack):
    """All pairs of tokens under one mask; like ours without dropout of weights."""

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """As `LookingBack.forward`."""
        step = torch.arange(x.shape[1]).repeat_interleave(x.shape[2])
        mask = (step[:, None] >= step) & there.repeat_interleave(x.shape[2], dim=1)[:, None]
        y = x.flatten(1, 2)
        for block in self:
            block.attention.dropout = 0.0
            y = y + block.attention(block.norm_attention(y), mask=mask)
            y = y + block.mlp(block.norm_mlp(y))
        return y.view_as(x)


def plainly(model: Neuroformer) -> Neuroformer:
    """A copy with the same weights that computes plainly."""
    plain = copy.deepcopy(model)
    for part in plain.modules():
        if isinstance(part, LookingBack):
            part.__class__ = PlainLookingBack
        elif isinstance(part, Attention):
            part.__class__ = PlainAttention
    return plain


def make_batch() -> TokenBatch:
    """Windows with 100 spikes in either state, and video."""
    neurons = len(neuroformer.FACTS.neurons)
    time = torch.cat((torch.rand(BATCH, EVENTS) * 0.15, 0.15 + torch.rand(BATCH, EVENTS) * 0.05), dim=1)
    return TokenBatch(
        torch.ones(BATCH, 2 * EVENTS, 1), time.clamp_max(0.1999), torch.randint(neurons, (BATCH, 2 * EVENTS)),
        torch.full((BATCH, neurons, 3), torch.nan), torch.zeros(BATCH, neurons, 3), torch.full((BATCH, neurons), 7),
        torch.ones(BATCH, 2 * EVENTS, dtype=torch.bool),
        aligned={
            "neuron": torch.arange(neurons).expand(BATCH, -1), "draw": torch.arange(BATCH),
            "stimulus": torch.rand(BATCH, FRAMES, PIXELS),
        },
    )  # fmt: skip


def make_model() -> Neuroformer:
    """The published size."""
    return neuroformer.build(neuroformer.FACTS, **neuroformer.SIZES["base"], max_events=EVENTS).eval()


def step(model: nn.Module, batch: TokenBatch, fused: bool) -> Callable[[], None]:
    """One step of training: loss, gradients and AdamW."""
    optimiser, objective = torch.optim.AdamW(model.parameters(), 1e-4, fused=fused), NextSpike()

    def once() -> None:
        model.train()
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


def peak_mb() -> float:
    """The most memory that this process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def step_case(name: str, repeat: int) -> dict[str, object]:
    """A step of training beside the plain way."""
    batch, ours = make_batch(), make_model()
    plain = plainly(ours)
    runs = [step(model, batch, fused=model is ours) for model in (ours, plain)]
    with torch.no_grad():
        said = ours(batch).neuron
    runs[0]()
    peak = peak_mb()  # before the baseline runs
    with torch.no_grad():
        difference = (said - plain(batch).neuron).abs().max()
    runs[1]()
    times = np.median([[cpu(run) for run in runs] for _ in range(repeat)], axis=0)
    return {
        "name": name, "batch": BATCH, "neurons": 386, "events": 2 * EVENTS, "frame_tokens": 6 * 15 * 27,
        "parameters": sum(p.numel() for p in ours.parameters()), "seconds": float(times[0]), "peak_mb": peak,
        "baseline": PLAIN, "baseline_seconds": float(times[1]), "ratio": float(times[1] / times[0]),
        "max_difference": float(difference),
    }  # fmt: skip


def generation_case(name: str, repeat: int) -> dict[str, object]:
    """Spikes with caches; the seconds are those of 1,000 spikes."""
    batch, model = make_batch(), make_model()
    with torch.no_grad():
        model.end.copy_(-model.rows().mean(0))
    drawn = {}

    def generate(most: int, cached: bool) -> float:
        """CPU seconds for each spike."""
        seconds = cpu(lambda: drawn.update({cached: model.generate(batch, top_p=1.0, cached=cached, most=most)}))
        return seconds / int(drawn[cached].mask.sum())

    mine = [generate(GENERATED, True) for _ in range(repeat + 1)][1:]
    peak, spikes = peak_mb(), int(drawn[True].mask.sum())
    slow = [generate(WITHOUT, False) for _ in range(min(repeat, 2))]
    same = [x[:, :WITHOUT] for x in (drawn[True].time, drawn[False].time)]
    with torch.no_grad():
        past = replace(batch, mask=batch.mask & (batch.time < model.past_s))
        kept: list[Stage] = model.stages(past, model.states(past)[0], behaviour=True)
    model.stages = lambda *_, **__: kept  # type: ignore[method-assign]
    between = [generate(4 * WITHOUT, False) for _ in range(min(repeat, 2))]
    ours, base, middle = (float(np.median(x)) for x in (mine, slow, between))
    return {
        "name": name, "batch": BATCH, "neurons": 386, "spikes": spikes, "seconds": 1000 * ours, "peak_mb": peak,
        "events_per_second": 1 / ours, "baseline": "one pass over past, video and spikes for each spike",
        "baseline_seconds": 1000 * base, "baseline_events_per_second": 1 / base, "ratio": base / ours,
        "ratio_contexts_kept": middle / ours, "max_difference": float((same[0] - same[1]).abs().max()),
    }  # fmt: skip


CASES: dict[str, Callable[[str, int], dict[str, object]]] = {
    "neuroformer_step": step_case,
    "neuroformer_generation": generation_case,
}


def main() -> None:
    """Run one case here, or every case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES), help="all if not given")
    parser.add_argument("--repeat", type=int, default=5, help="turns of each way; two at most without caches")
    asked = parser.parse_args()
    if asked.case is None:
        for case in CASES:
            subprocess.run([sys.executable, __file__, "--case", case, "--repeat", str(asked.repeat)], check=True)
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(json.dumps(CASES[asked.case](asked.case, asked.repeat)))


if __name__ == "__main__":
    main()
