"""POYO: behaviour at any moment, read from the spikes of any population.

Paper: Mehdi Azabou, Vinam Arora, Venkataramana Ganesh, Ximeng Mao, Santosh Nachimuthu, Michael Mendelson, Blake
Richards, Matthew Perich, Guillaume Lajoie, Eva Dyer. "A Unified, Scalable Framework for Neural Population Decoding".
NeurIPS 2023. https://arxiv.org/abs/2310.16046

Each spike is a token: a vector of its neuron and one that says spike. Time enters as a rotation alone. Every neuron
also has a token at the start of the window and one at its end, so that silence is seen. Latent vectors on a grid of
times gather the tokens, attend to each other, and are asked by a vector of the session at the times of the behaviour.

Differences from the paper and its published code:
- neurons and sessions are named rows (a neuron's id, the recording's id); `add_neurons`, `add_sessions` and
  `freeze_but_neurons` are the way to a new animal, see `brainfm/training/new_animal.py`;
- tokens are packed, sample after sample, without padding; keys and values are projected once for each neuron and kind
  of token, not once for each spike; the result is the same;
- behaviour is standardised per session by moments gathered in training; `predict` answers in its own unit;
- several covariates may be read out, each with a vector of its own in the query where there is more than one;
- more than `max_events` spikes of a window are thinned evenly, with a warning.

Tensor walk of `encode`:
    spikes `(batch, spike)` → packed `(token,)` → keys, values `(head, token, feature)`
    latents `(latent, dim)` → cross-attention → `(batch, latent, dim)` → self-attention → tokens → mean `(batch, dim)`
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainfm.layers.neurons import needs_spikes, numbered_spikes
from brainfm.layers.rotary import Clock, GatedMLP, Thin, turning_attention, turns
from brainfm.layers.tables import INITIAL, Standard, Table, in_own_unit, known_sessions
from brainfm.tokens import Encoding, Facts, TokenBatch

PAPER = "Azabou et al. 2023, POYO, arXiv:2310.16046"

#: 200 neurons and two sessions, for which the parameters are counted.
# fmt: off
FACTS = Facts(
    modality=("spikes",), kinds=("neuron",), window_s=1.0, channels=200, subjects=("motor/c",),
    neurons=tuple(f"motor/c/{i:03d}" for i in range(200)), sessions=("motor/c/1", "motor/c/2"), aligned={"velocity": 2},
)

SIZES: dict[str, dict] = {
    "test": {"dim": 16, "depth": 1, "head_dim": 8, "cross_heads": 1, "self_heads": 2, "latents": 2, "mlp_dropout": 0.0,
             "branch_dropout": 0.0, "attention_dropout": 0.0},
    "local": {"dim": 32, "depth": 2, "head_dim": 32, "cross_heads": 2, "self_heads": 2, "latents": 8},
    "1.3M": {"dim": 64, "depth": 6, "head_dim": 64, "cross_heads": 2, "self_heads": 8, "latents": 16},
    "11.8M": {"dim": 128, "depth": 24, "head_dim": 64, "cross_heads": 4, "self_heads": 8, "latents": 32},
}
# fmt: on

SPIKE, START, END = 0, 1, 2
#: Seconds in which the fastest and the slowest pair of features turn once.
SHORTEST, LONGEST = 1e-4, 2.0627


class CrossAttention(nn.Module):
    """Layer norms and projections of attention to a context; `heads` times `head_dim` need not be `dim`."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.shape = heads, (2 * heads, head_dim)
        self.norm, self.norm_context = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query = nn.Linear(dim, heads * head_dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)

    def queries(self, x: Tensor) -> Tensor:
        """`(..., dim)` → `(..., head, feature)`."""
        return self.query(self.norm(x)).unflatten(-1, (self.heads, -1))


class SelfAttention(nn.Module):
    """Layer norm and self-attention of `(batch, token, dim)`; queries, keys and values turn by the tokens' times."""

    def __init__(self, dim: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm, self.query_key_value = nn.LayerNorm(dim), nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)

    def forward(self, x: Tensor, clock: Clock) -> Tensor:
        """`(batch, token, dim)` → the same shape; the clock is that of the tokens."""
        projected = self.query_key_value(self.norm(x)).unflatten(-1, (3 * self.heads, -1))
        q, kv = projected.split((self.heads, 2 * self.heads), dim=2)
        lengths, keys = [x.shape[1]] * len(x), (clock[0].repeat(len(x), 1), clock[1].repeat(len(x), 1))
        dropout = self.dropout if self.training else 0.0
        return self.out(turning_attention(q, kv.flatten(0, 1), clock, keys, lengths, dropout=dropout).flatten(-2))


class Poyo(nn.Module):
    """The network; keywords as in `build`.

    Attributes:
        targets: covariates that it reads out, and the width of each answer. classes: those of them that are classes.
        weight: a covariate that weighs the loss at each moment, or None. answers_at: where in a window it can be asked.
    """

    def __init__(
        self, neurons: Sequence[str], sessions: Sequence[str], targets: dict[str, int], window_s: float, *,
        classes: Sequence[str], weight: str | None, dim: int, depth: int, head_dim: int, cross_heads: int,
        self_heads: int, latents: int, steps: int, mlp_dropout: float, branch_dropout: float, attention_dropout: float,
        max_events: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dim, self.window_s, self.steps, self.max_events = dim, window_s, steps, max_events
        self.targets, self.classes, self.weight = dict(targets), tuple(classes), weight
        self.answers_at = ("end", "centre")
        self.pairs, self.dropout = head_dim // 4, attention_dropout
        self.neuron_table, self.session_table = Table(neurons, dim), Table(sessions, dim)
        self.kind = nn.Parameter(torch.randn(4, dim) * INITIAL)  # the fourth is unused, as published
        self.latents = nn.Parameter(torch.randn(latents, dim) * INITIAL)
        self.task = nn.ParameterDict({n: nn.Parameter(torch.randn(dim) * INITIAL) for n in targets if len(targets) > 1})
        self.gather, self.gather_mlp = CrossAttention(dim, cross_heads, head_dim), GatedMLP(dim, mlp_dropout)
        self.attentions = nn.ModuleList(
            SelfAttention(dim, self_heads, head_dim, attention_dropout) for _ in range(depth)
        )
        self.mlps = nn.ModuleList(GatedMLP(dim, mlp_dropout) for _ in range(depth))
        self.thin = Thin(branch_dropout)
        self.ask, self.ask_mlp = CrossAttention(dim, cross_heads, head_dim), GatedMLP(dim, mlp_dropout)
        self.readout = nn.ModuleDict({name: nn.Linear(dim, n) for name, n in targets.items()})
        self.standard = nn.ModuleDict(
            {name: Standard(len(sessions), n) for name, n in targets.items() if name not in classes}
        )

    @property
    def neurons(self) -> list[str]:
        """Ids of the rows of the neuron table, in order."""
        return self.neuron_table.names

    @property
    def sessions(self) -> list[str]:
        """Ids of the recordings that have a vector, in order."""
        return self.session_table.names

    @property
    def aligned(self) -> tuple[str, ...]:
        """Covariates that its batches bring along."""
        return (*self.targets, *([] if self.weight is None else [self.weight]))

    def add_neurons(self, ids: Sequence[str]) -> list[int]:
        """Append fresh vectors for neurons that have none; the numbers of all `ids`. Make the optimiser afterwards."""
        return self.neuron_table.add(ids)

    def add_sessions(self, ids: Sequence[str]) -> list[int]:
        """Append fresh vectors for recordings that have none; numbers of all `ids`. Make the optimiser afterwards."""
        before = len(self.sessions)
        numbers = self.session_table.add(ids)
        for standard in self.standard.values():
            standard.add(len(self.sessions) - before)
        return numbers

    def neuron_parameters(self) -> list[nn.Parameter]:
        """What unit identification trains: the newest neurons' and sessions' vectors, and the latents, as published."""
        return [self.neuron_table.newest(), self.session_table.newest(), self.latents]

    def freeze_but_neurons(self) -> None:
        """Freeze everything but `neuron_parameters`, gradients already there included."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        for parameter in self.neuron_parameters():
            parameter.requires_grad_(True)

    def unfreeze(self) -> None:
        """Let everything train again."""
        for parameter in self.parameters():
            parameter.requires_grad_(True)

    def pack(self, batch: TokenBatch) -> tuple[Tensor, Tensor, list[int]]:
        """The tokens of a batch, sample after sample, without padding.

        Returns:
            row `(token,)` of the table of kinds and neurons, time `(token,)` in seconds, and tokens of each sample.

        Raises:
            ValueError: for a signal, and where the batch does not number its neurons, or a spike lies outside the
                window.
        """
        number, neuron = numbered_spikes(batch, "POYO"), batch.aligned["neuron"]
        real = self._capped(batch.mask & (number >= 0), batch.time)
        seen = batch.time[real]
        if len(seen) and (float(seen.min()) < 0 or float(seen.max()) > self.window_s + 1e-3):
            raise ValueError(
                f"spikes from {float(seen.min()):.3f} to {float(seen.max()):.3f} s of a window; this model's last "
                f"{self.window_s:g} s: cut such"
            )
        there, rows = neuron >= 0, 1 + len(self.neurons)
        mask = torch.cat((there, there, real), dim=1)
        row = torch.cat((neuron + 1 + START * rows, neuron + 1 + END * rows, number + 1 + SPIKE * rows), dim=1)[mask]
        edge = torch.zeros_like(neuron, dtype=batch.time.dtype)
        time = torch.cat((edge, edge + self.window_s, batch.time), dim=1)[mask]
        return row, time, mask.sum(1).tolist()

    def _capped(self, real: Tensor, time: Tensor) -> Tensor:
        """At most `max_events` spikes of each sample, evenly taken in order of time."""
        count = real.sum(1)
        if int(count.max()) <= self.max_events:
            return real
        warnings.warn(
            f"a window of {int(count.max()):,} spikes; {self.max_events:,} of them, evenly spaced in order, are used: "
            "take shorter windows or raise max_events", stacklevel=2,
        )  # fmt: skip
        order = torch.where(real, time, torch.inf).argsort(dim=1, stable=True)
        place = torch.arange(real.shape[1], device=real.device)
        size = torch.maximum(count, torch.tensor(self.max_events, device=real.device))[:, None]
        taken = (place + 1) * self.max_events // size > place * self.max_events // size
        return torch.zeros_like(real).scatter_(1, order, taken) & real

    def latent_times(self) -> Tensor:
        """`(latent,)` seconds: the middle of each step of the grid, once for each latent vector."""
        step = torch.arange(self.steps, device=self.latents.device, dtype=torch.float32)
        return ((step + 0.5) * (self.window_s / self.steps)).repeat_interleave(len(self.latents))

    def _gathered(self, batch: TokenBatch, clock: Clock) -> Tensor:
        """What the latents take from the tokens, `(batch, latent, dim)`."""
        row, time, lengths = self.pack(batch)
        table = (self.neuron_table.rows() + self.kind[:3, None]).flatten(0, 1)
        used = torch.zeros(len(table), dtype=torch.bool, device=row.device)
        used[row] = True
        key_value = self.gather.key_value(self.gather.norm_context(table[used]))
        tokens = functional.embedding((used.cumsum(0) - 1)[row], key_value).unflatten(-1, self.gather.shape)
        query = self.gather.queries(self.latents).repeat(self.steps, 1, 1)[None]
        dropout = self.dropout if self.training else 0.0
        taken = turning_attention(query, tokens, clock, self._clock(time), lengths, dropout=dropout)
        return self.gather.out(taken.flatten(-2))

    def _clock(self, time: Tensor) -> Clock:
        return turns(time, self.pairs, SHORTEST, LONGEST)

    def latent_states(self, batch: TokenBatch) -> Tensor:
        """`(batch, latent, dim)` after all layers but the read-out."""
        clock = self._clock(self.latent_times())
        x = self.latents.repeat(self.steps, 1) + self._gathered(batch, clock)
        x = x + self.gather_mlp(x)
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            x = x + self.thin(attention(x, clock))
            x = x + self.thin(mlp(x))
        return x

    def times(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Seconds, as in `TokenBatch.times_of`, at which the batch holds each target that it brings."""
        held = [name for name in self.targets if name in batch.aligned and batch.aligned[name].shape[1]]
        return {name: batch.times_of(name, self.window_s) for name in held}

    def forward(self, batch: TokenBatch, times: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Standardised behaviour, or logits of its classes: target → `(batch, query, width)`.

        Args:
            times: target → `(query,)` or `(batch, query)` seconds from the start of the window; those of the batch's
                own samples if None.

        Raises:
            ValueError: where the batch does not number its session, or the model does not know it.
        """
        session = known_sessions(batch)
        x = self.latent_states(batch)
        key_value = self.ask.key_value(self.ask.norm_context(x)).unflatten(-1, self.ask.shape).flatten(0, 1)
        clock, lengths = self._clock(self.latent_times().repeat(len(x))), [x.shape[1]] * len(x)
        found = {}
        for name, time in (self.times(batch) if times is None else times).items():
            query = self.session_table.rows()[session + 1]
            query = (query + self.task[name] if len(self.targets) > 1 else query).unsqueeze(1)
            asked = self.ask.queries(query).expand(-1, time.shape[-1], -1, -1)
            y = turning_attention(
                asked, key_value, self._clock(time), clock, lengths, values=False,
                dropout=self.dropout if self.training else 0.0,
            )  # fmt: skip
            y = query + self.ask.out(y.flatten(-2))
            found[name] = self.readout[name](y + self.ask_mlp(y))
        return found

    def predict(self, batch: TokenBatch, times: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """As `forward`, in the covariate's own unit; logits for classes."""
        return in_own_unit(self(batch, times), self.standard, batch)

    def encode(self, batch: TokenBatch) -> Encoding:
        """The latents as tokens, pooled to their mean; no behaviour and no session enters."""
        x = self.latent_states(batch)
        return Encoding(x, x.mean(1), torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))


def build(
    facts: Facts, *, predict: Sequence[str] | None = None, classes: dict[str, int] | None = None,
    weight: str | None = None, dim: int = 32, depth: int = 2, head_dim: int = 32, cross_heads: int = 2,
    self_heads: int = 2, latents: int = 8, latent_step_s: float | None = None, mlp_dropout: float = 0.2,
    branch_dropout: float = 0.4, attention_dropout: float = 0.2, max_events: int = 20_000,
) -> Poyo:  # fmt: skip
    """Build the network for the neurons, sessions and covariates of a corpus.

    Args:
        predict: covariates to read out; all but the stimulus and `weight` where None.
        classes: those of them that hold a class number, and how many classes.
        weight: a covariate that weighs the loss at each moment.
        dim, depth, head_dim, cross_heads, self_heads: width, layers of self-attention, width and numbers of heads.
        latents: vectors at each step of the grid of latents. latent_step_s: seconds of a step; an eighth of the window
            where not given.
        mlp_dropout, branch_dropout, attention_dropout: inside the MLPs, on the branches of self-attention and their
            MLPs, on attention weights.
        max_events: spikes of a window that are used; more are thinned evenly, with a warning.

    Raises:
        ValueError: for a corpus without spikes, a covariate that it has not, or steps that do not fill the window.
    """
    needs_spikes(facts, "POYO")
    known, classes = set(facts.aligned), dict(classes or {})
    names = sorted(known - {"stimulus", weight}) if predict is None else list(predict)
    unfit = sorted({*names, *([weight] if weight else [])} - known) or sorted(set(classes) - set(names))
    if unfit:
        raise ValueError(f"covariates {unfit}: name some of {sorted(known)} in `predict`, and classes among them")
    window = facts.window_s or 1.0
    steps = round(window / (latent_step_s or window / 8))
    if steps < 1 or abs(steps * (latent_step_s or window / 8) - window) > 1e-6:
        raise ValueError(f"latent_step_s {latent_step_s} does not divide the window of {window:g} s")
    if head_dim % 4:
        raise ValueError(f"head_dim is {head_dim}; half of it turns in pairs, so it must be a multiple of 4")
    return Poyo(
        facts.neurons, facts.sessions, {n: classes.get(n, facts.aligned[n]) for n in names}, window,
        classes=tuple(classes), weight=weight, dim=dim, depth=depth, head_dim=head_dim, cross_heads=cross_heads,
        self_heads=self_heads, latents=latents, steps=steps, mlp_dropout=mlp_dropout, branch_dropout=branch_dropout,
        attention_dropout=attention_dropout, max_events=max_events,
    )  # fmt: skip
