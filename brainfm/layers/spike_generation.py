"""Spikes drawn one after the other from a network that predicts the next: Neuroformer's `generate` and `roll_out`.

Draws follow from the seed and the sample, so a sample alone gives what it gives in a batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from brainfm.layers import draws
from brainfm.layers.cached_attention import Cached
from brainfm.layers.spike_states import State
from brainfm.tokens import TokenBatch

#: What the draws are for, see `layers/draws.py`.
STREAM = 11


@dataclass(frozen=True)
class Sampling:
    """How a spike is drawn from logits.

    Attributes:
        temperature: divides the logits before anything else; 0 takes the likeliest.
        top_p: draw among the likeliest that together reach this share; 1 draws among all.
        monotone: whether a spike may not come before the one before it in its state.
        cached: keep keys and values; False computes everything anew for each spike, for comparison.
        most: spikes of a state at most; the model's `max_events` where None.
    """

    temperature: float = 1.0
    top_p: float = 0.95
    monotone: bool = True
    cached: bool = True
    most: int | None = None

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and (self.most is None or self.most >= 1)):
            raise ValueError(
                f"temperature {self.temperature}, top_p {self.top_p}, most {self.most}; expected a temperature of 0 or "
                "more, a share above 0 and up to 1, and at least one spike"
            )


@dataclass(frozen=True)
class Drawn(State):
    """Spikes that were drawn, in the order of drawing; `cut` where the most came before the end.

    Attributes:
        expected: `(batch, channel)` for each neuron the sum over steps of its chance to be the next spike: an estimate
            of its expected count with far less noise than the count itself.
    """

    expected: Tensor


def sample(logits: Tensor, u: Tensor, temperature: float, top_p: float) -> Tensor:
    """One class for each row of `logits` `(batch, class)`, by uniform numbers `u` `(batch,)`; each row by itself."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    share, order = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    share = share * (share.cumsum(dim=-1) - share < top_p)
    reached = share.cumsum(dim=-1)
    place = (reached <= u[:, None] * reached[:, -1:]).sum(dim=-1)
    place = place.minimum((share > 0).sum(dim=-1) - 1)
    return order.gather(1, place[:, None])[:, 0]


@torch.no_grad()
def generate(model: Any, batch: TokenBatch, seed: int, how: Sampling) -> Drawn:
    """The current state of each window, drawn from its past; spikes of the current state in the batch are not read.

    Args:
        model: a Neuroformer in evaluation mode.
        batch: windows; `aligned["draw"]` seeds each of them where it is there, else its place in the batch does.

    Raises:
        ValueError: for a model in training mode, whose dropout would change what is drawn.
    """
    if model.training:
        raise ValueError("the model is in training mode; call `model.eval()` before it generates")
    most = model.max_events if how.most is None else min(how.most, model.max_events)
    batch = replace(batch, mask=batch.mask & (batch.time < model.past_s))
    past, _ = model.states(batch)
    numbers = batch.aligned["neuron"]
    rows, channels = numbers.shape
    own = model.rows()[numbers.clamp_min(0)].transpose(1, 2)
    device = numbers.device
    u = draws.uniform(_seeds(batch, seed), (most, 3), STREAM)
    time, channel = torch.zeros(rows, most, device=device), torch.zeros(rows, most, dtype=torch.int64, device=device)
    number = torch.full((rows, most), -1, device=device)
    mask = torch.zeros(rows, most, dtype=torch.bool, device=device)
    going = torch.ones(rows, dtype=torch.bool, device=device)
    last, expected = torch.zeros(rows, device=device), torch.zeros(rows, channels, device=device)
    cache = Cached(model.stages(batch, past, behaviour=True), most) if how.cached else None
    for i in range(most):
        if cache is None:
            so_far = State(time[:, :i], channel[:, :i], number[:, :i].clamp_min(0), mask[:, :i], ~going)
            x = model.fuse(batch, past, so_far, behaviour=True)[:, -1]
        else:
            token = number[:, i - 1 : i] if i else number.new_full((rows, 1), -1)
            when = last[:, None] if i else torch.zeros(rows, 1, device=device)
            x = model.norm(cache.step(model.current_tokens(token, when, i), when))[:, 0]
        to_neuron = torch.cat(
            ((x[:, None] @ own)[:, 0].masked_fill(numbers < 0, -torch.inf), x @ model.end[:, None]), 1
        )
        expected += going[:, None] * to_neuron.softmax(dim=-1)[:, :-1]
        drawn = sample(to_neuron, u[:, i, 0], how.temperature, how.top_p)
        going = going & (drawn < channels)
        if not going.any():
            break
        drawn = drawn.clamp_max(channels - 1)
        last = _time_of(model, x, last, u[:, i], how)
        time[:, i], channel[:, i], mask[:, i] = last, drawn, going
        number[:, i] = numbers.gather(1, drawn[:, None])[:, 0].clamp_min(0)
    n = max(1, int(mask.sum(1).max()))
    real = mask[:, :n]
    return Drawn(
        time[:, :n].masked_fill(~real, 0.0), channel[:, :n].masked_fill(~real, 0),
        number[:, :n].masked_fill(~real, 0), real, going, expected,
    )  # fmt: skip


def _time_of(model: Any, x: Tensor, last: Tensor, u: Tensor, how: Sampling) -> Tensor:
    """`(batch,)` seconds of the next spike: a bin from the logits, and inside it anywhere after the last spike."""
    to_bin = model.to_bin(x)[:, :-1]
    bins = torch.arange(model.bins, device=x.device)
    if how.monotone:
        to_bin = to_bin.masked_fill(bins < model.bin_of(last)[:, None], -torch.inf)
    start = sample(to_bin, u[:, 1], how.temperature, how.top_p) * model.bin_s
    stop = (start + model.bin_s).clamp_max(model.current_s)
    if how.monotone:
        start = start.maximum(last)
    return start + u[:, 2] * (stop - start).clamp_min(0) * 0.999


def _seeds(batch: TokenBatch, seed: int) -> Tensor:
    own = batch.aligned.get("draw")
    own = torch.arange(len(batch), device=batch.time.device) if own is None else own
    return draws.mix(draws.mix(own) + seed)


def roll_out(model: Any, windows: Iterable[TokenBatch], seed: int, how: Sampling) -> list[Drawn]:
    """Windows that follow one another by a current state each; from the second on the past is what was generated.

    Only the first window's past is read; of the others the covariates are. Spikes older than the first past's start
    are forgotten, and a past is put in ascending order before it is read, as in training.

    Args:
        windows: batches of equally many windows; row r of each continues row r of the one before.

    Returns:
        The current state of every window.

    Raises:
        ValueError: where a batch has another number of windows than the one before.
    """
    made: list[Drawn] = []
    time = channel = mask = None
    for step, batch in enumerate(windows):
        if time is None or channel is None or mask is None:
            time, channel, mask = batch.time, batch.channel, batch.mask & (batch.time < model.past_s)
        if len(time) != len(batch):
            raise ValueError(f"window {step} of the streams has {len(batch)} rows, the one before {len(time)}")
        own = replace(batch, time=time, channel=channel, mask=mask, values=mask.to(time.dtype)[..., None])
        made.append(generate(model, own, seed * 1_000_003 + step, how))
        now = made[-1]
        time = torch.cat((time, now.time + model.past_s), dim=1) - model.current_s
        channel = torch.cat((channel, now.channel), dim=1)
        mask = torch.cat((mask, now.mask), dim=1) & (time >= 0)
        order = torch.where(mask, time, torch.inf).argsort(dim=1, stable=True)[:, : max(1, int(mask.sum(1).max()))]
        time, channel, mask = time.gather(1, order), channel.gather(1, order), mask.gather(1, order)
        time, channel = time.masked_fill(~mask, 0.0), channel.masked_fill(~mask, 0)
    return made
