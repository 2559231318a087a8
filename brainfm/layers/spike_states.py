"""Spikes of a window as two sequences, past and current state, as Neuroformer reads, predicts and generates them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from brainfm.tokens import TokenBatch

IGNORE = -100


@dataclass(frozen=True)
class State:
    """Spikes of the past or the current state, padded to the longest of the batch.

    Attributes:
        time: `(batch, event)` seconds from the start of the current state; negative in the past.
        channel, number: `(batch, event)` row of the recording's table, and of the model's.
        mask, cut: `(batch, event)` real spikes; `(batch,)` where `max_events` left spikes out.
    """

    time: Tensor
    channel: Tensor
    number: Tensor
    mask: Tensor
    cut: Tensor


@dataclass(frozen=True)
class Prediction:
    """What each token of the current state (a start token, then its spikes) says of the next spike, and the truth.

    Attributes:
        neuron, bin: `(batch, token, channel + 1)` and `(batch, token, bin + 1)` logits; the last is the state's end.
        neuron_target, bin_target: `(batch, token)`; `IGNORE` for padding.
        behaviour: for each covariate to predict its last sample in the window, `(batch, 1, feature)` in units of its
            deviation in the session, or logits of its classes.
    """

    neuron: Tensor
    bin: Tensor
    neuron_target: Tensor
    bin_target: Tensor
    behaviour: dict[str, Tensor]


def split_states(batch: TokenBatch, number: Tensor, past_s: float, max_events: int) -> tuple[State, State]:
    """Past and current spikes in order of time, then of neuron number.

    At most `max_events` spikes per state are kept, the last of the past and the first of the current one; where more
    were there, a warning says so. Memory follows the cap, but for one sort of the spikes.

    Args:
        batch: of spikes. number: `(batch, token)` the neuron's number of each; negative where it has none.
        past_s: seconds of the past state.
    """
    real = batch.mask & (number >= 0)
    last = torch.iinfo(torch.int64).max
    first = torch.where(real, number, last).argsort(dim=1, stable=True)
    time = torch.where(real, batch.time, torch.inf).gather(1, first)
    by_time = time.argsort(dim=1, stable=True)
    order, time = first.gather(1, by_time), time.gather(1, by_time) - past_s
    n_past, n_all = (time < 0).sum(1), real.sum(1)
    skipped = (n_past - max_events).clamp_min(0)
    n_current = n_all - n_past

    def take(start: Tensor, count: Tensor, cut: Tensor) -> State:
        step = torch.arange(max(1, int(count.max())), device=time.device)
        mask = step < count[:, None]
        index = torch.where(mask, start[:, None] + step, 0)
        spike = order.gather(1, index)
        return State(
            time.gather(1, index).masked_fill(~mask, 0.0), batch.channel.gather(1, spike).masked_fill(~mask, 0),
            number.gather(1, spike).masked_fill(~mask, 0), mask, cut,
        )  # fmt: skip

    past = take(skipped, n_past - skipped, skipped > 0)
    current = take(n_past, n_current.clamp_max(max_events), n_current > max_events)
    if bool((past.cut | current.cut).any()):
        warnings.warn(
            f"windows with more than {max_events} spikes in a state: the last of the past and the first of the current "
            "state are kept; raise the model's max_events or shorten its states to see all",
            stacklevel=3,
        )
    return past, current


def causal(current: State) -> Tensor:
    """`(batch, 1 + event, 1 + event)`: a token sees itself, and of those before it the real ones."""
    token = torch.arange(1 + current.mask.shape[1], device=current.mask.device)
    return (token[:, None] >= token) & behind_start(current.mask, True)[:, None]


def behind_start(x: Tensor, start: float | bool = 0) -> Tensor:
    """`(batch, event)` → `(batch, 1 + event)` with the value of the start token in front."""
    return torch.cat((x.new_full((len(x), 1), start), x), dim=1)


def shifted(state: State, of: Tensor, end: int) -> Tensor:
    """What each token has to predict, `(batch, 1 + event)`: the next spike's, then `end`, then `IGNORE`."""
    last = torch.where(state.cut, IGNORE, end)[:, None]
    target = torch.cat((of.masked_fill(~state.mask, IGNORE), torch.full_like(of[:, :1], IGNORE)), dim=1)
    return target.scatter(1, state.mask.sum(1, keepdim=True), last)
