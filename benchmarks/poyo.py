"""A training step of POYO at the published 1.3 M parameters against other ways to compute the same, on one thread.

    python benchmarks/poyo.py [--repeat 5]

Batch 16, 1,264 tokens (200 neurons with a start and an end each, 864 spikes), 100 times to read out, the published
dropout, AdamW. Prints one JSON line of the case `poyo_step` for each baseline: `ratio` is its time over ours, medians
of steps taken in turn; `max_difference` is that of the answers, without dropout and with the same weights.
- a plain restatement: every token embedded, normed and projected, padding and masks, rotation by concatenation, torch's
  dropout;
- torch_brain's POYO, where it can be imported: with `.venv-reference/bin/python`, which `make reference` makes.
Seconds are those of the processor, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainfm.models import poyo
from brainfm.models.poyo_weights import converted
from brainfm.tokens import TokenBatch

BATCH, NEURONS, SPIKES, QUERIES = 16, 200, 864, 100
MLP, BRANCH, ATTENTION = 0.2, 0.4, 0.2


def batch() -> TokenBatch:
    """Random spikes and behaviour."""
    make = torch.Generator().manual_seed(0)
    mask, geometry = torch.ones(BATCH, SPIKES, dtype=torch.bool), torch.zeros(BATCH, NEURONS, 3)
    return TokenBatch(
        mask.float()[..., None], torch.rand(BATCH, SPIKES, generator=make),
        torch.randint(NEURONS, (BATCH, SPIKES), generator=make), geometry, geometry,
        torch.full((BATCH, NEURONS), 7), mask,
        aligned={
            "neuron": torch.arange(NEURONS).repeat(BATCH, 1), "session": torch.arange(BATCH) % 2,
            "velocity": torch.randn(BATCH, QUERIES, 2, generator=make),
        },
    )  # fmt: skip


def tokens(data: TokenBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row of the neuron table, kind, time and mask of every token, `(batch, token)`."""
    rows, edge = data.aligned["neuron"] + 1, torch.zeros(BATCH, NEURONS)
    kind = torch.cat((edge + 1, edge + 2, torch.zeros_like(data.time)), dim=1).long()
    mask = torch.cat((rows > 0, rows > 0, data.mask), dim=1)
    return torch.cat((rows, rows, data.channel + 1), 1), kind, torch.cat((edge, edge + 1, data.time), 1), mask


class Plain:
    """The same network written plainly over our module's parameters."""

    def __init__(self, model: poyo.Poyo) -> None:
        self.model = model

    def drop(self, x: Tensor, share: float) -> Tensor:
        return functional.dropout(x, share, self.model.training)

    def mlp(self, block: nn.Sequential, x: Tensor) -> Tensor:
        value, gate = block[1](block[0](x)).chunk(2, dim=-1)
        return block[4](self.drop(value * functional.gelu(gate), MLP))

    def turn(self, x: Tensor, time: Tensor, sign: float = 1.0) -> Tensor:
        """`(batch, head, token, feature)` by `(batch, token)` seconds."""
        n = x.shape[-1] // 4
        first, last = torch.tensor(poyo.SHORTEST).log(), torch.tensor(poyo.LONGEST).log()
        angle = time[:, None, :, None] * (2 * torch.pi / torch.lerp(first, last, torch.linspace(0, 1, n)).exp())
        cos, sin = angle.cos(), sign * angle.sin()
        a, b, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
        return torch.cat((a * cos - b * sin, a * sin + b * cos, rest), dim=-1)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, when: Tensor, key_when: Tensor, mask: Tensor | None, values: bool
    ) -> Tensor:
        q, k = self.turn(q, when), self.turn(k, key_when)
        v = self.turn(v, key_when) if values else v
        score = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if mask is not None:
            score = score.masked_fill(~mask[:, None, None], -torch.inf)
        y = self.drop(score.softmax(-1), ATTENTION) @ v
        return (self.turn(y, when, -1.0) if values else y).transpose(1, 2).flatten(2)

    def heads(self, x: Tensor, width: int = 64) -> Tensor:
        return x.unflatten(-1, (-1, width)).transpose(1, 2)

    def __call__(self, data: TokenBatch) -> Tensor:
        model, (row, kind, time, mask) = self.model, tokens(data)
        context = model.neuron_table.rows()[row] + model.kind[kind]
        grid = model.latent_times().expand(BATCH, -1)
        x = model.latents.repeat(model.steps, 1).expand(BATCH, -1, -1)
        k, v = model.gather.key_value(model.gather.norm_context(context)).chunk(2, dim=-1)
        q = model.gather.query(model.gather.norm(x))
        x = x + model.gather.out(self.attend(*map(self.heads, (q, k, v)), grid, time, mask, True))
        x = x + self.mlp(model.gather_mlp, x)
        for attention, mlp in zip(model.attentions, model.mlps, strict=True):
            q, k, v = attention.query_key_value(attention.norm(x)).chunk(3, dim=-1)
            y = attention.out(self.attend(*map(self.heads, (q, k, v)), grid, grid, None, True))
            x = x + self.drop(y, BRANCH)
            x = x + self.drop(self.mlp(mlp, x), BRANCH)
        asked = model.session_table.rows()[data.aligned["session"] + 1][:, None].expand(-1, QUERIES, -1)
        k, v = model.ask.key_value(model.ask.norm_context(x)).chunk(2, dim=-1)
        q = model.ask.query(model.ask.norm(asked))
        when = model.times(data)["velocity"].expand(BATCH, -1)
        y = asked + model.ask.out(self.attend(*map(self.heads, (q, k, v)), when, grid, None, False))
        return model.readout["velocity"](y + self.mlp(model.ask_mlp, y))


def torch_brain(model: poyo.Poyo, data: TokenBatch) -> tuple[nn.Module, Callable[[], Tensor]] | None:
    """Its network with its weights put into ours, and its answers; None where it cannot be imported."""
    try:
        from torch_brain.models import poyo as theirs
    except ImportError:
        return None
    torch.manual_seed(0)
    other = theirs.POYO(
        sequence_length=1.0, latent_step=0.125, num_latents_per_step=16, dim_out=2, dim=64, depth=6, dim_head=64,
        cross_heads=2, self_heads=8, ffn_dropout=MLP, lin_dropout=BRANCH, atn_dropout=ATTENTION,
    )  # fmt: skip
    other.unit_emb.initialize_vocab(list(poyo.FACTS.neurons))
    other.session_emb.initialize_vocab(list(poyo.FACTS.sessions))
    model.load_state_dict({**model.state_dict(), **converted(other.state_dict(), 64)})
    row, kind, time_s, mask = tokens(data)
    index, when = theirs.create_linspace_latent_tokens(0, 1, 0.125, 16)
    given = {
        "input_unit_index": row, "input_timestamps": time_s, "input_token_type": kind, "input_mask": mask,
        "latent_index": torch.from_numpy(index).expand(BATCH, -1),
        "latent_timestamps": torch.from_numpy(when).float().expand(BATCH, -1),
        "session_index": data.aligned["session"] + 1,
        "output_timestamps": model.times(data)["velocity"].expand(BATCH, -1),
    }  # fmt: skip
    return other, lambda: other(**given)


def stepper(network: nn.Module, answer: Callable[[], Tensor], wanted: Tensor) -> Callable[[], float]:
    """A function that takes a training step and says how long it took."""
    optimiser = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)

    def step() -> float:
        network.train()
        start = time.process_time()
        loss = functional.mse_loss(answer(), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return time.process_time() - start

    return step


def main() -> None:
    """Compare with each baseline, print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="steps of either way")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = batch()
    model = poyo.build(poyo.FACTS, **poyo.SIZES["1.3M"])
    own = poyo.build(poyo.FACTS, **poyo.SIZES["1.3M"])
    own.load_state_dict(model.state_dict())
    plain = Plain(own)
    ways = [("padding, masks and dense attention, every token projected", own, lambda: plain(data))]
    for number in range(2):
        if number:
            found = torch_brain(model, data)
            if found is None:
                print("torch_brain cannot be imported; run this with .venv-reference/bin/python", file=sys.stderr)
                break
            ways.append(("torch_brain's POYO", *found))
        name, network, answer = ways[number]
        network.eval(), model.eval()
        with torch.no_grad():
            difference = (answer() - model(data)["velocity"]).abs().max().item()
        other = stepper(network, answer, data.aligned["velocity"])
        ours = stepper(model, lambda: model(replace(data))["velocity"], data.aligned["velocity"])
        other(), ours()
        pairs = [(ours(), other()) for _ in range(asked.repeat)]
        seconds, baseline = (statistics.median(x) for x in zip(*pairs, strict=True))
        print(json.dumps({
            "name": "poyo_step", "parameters": sum(p.numel() for p in model.parameters()), "batch": BATCH,
            "tokens": 2 * NEURONS + SPIKES, "seconds": seconds,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "baseline": name,
            "baseline_seconds": baseline, "ratio": baseline / seconds, "max_difference": difference,
        }))  # fmt: skip


if __name__ == "__main__":
    main()
