"""Neuroformer: a population's spikes as a sequence that a transformer continues, given stimulus and behaviour.

Paper: Antonis Antoniades, Yiyi Yu, Joseph Canzano, William Wang, Spencer LaVere Smith. "Neuroformer: Multimodal and
Multitask Generative Pretraining for Brain Data". ICLR 2024. https://arxiv.org/abs/2311.00136

A window is a past and a current state, each spike a token: which neuron, and when. The tokens of the current state
attend to those of the past, then to the stimulus, then to behaviour, then causally to each other; each predicts neuron
and time bin of the next spike, the last one the end of the state. Attention to the past, gathered by predicted and
attended neuron, recovers who drives whom (`evaluations/connectivity.py`).

Differences from the paper and its published code:
- a neuron is a row of a table named "dataset/subject/neuron" that also reads the logits out, so that a new animal has a
  path (`add_neurons`, `freeze_but_neurons`); logits run over the neurons of the sample's own recording and the end;
- padding is masked everywhere and has no vector;
- a covariate's value enters (a LayerNorm of one number erased it); a token sees no later sample of it than itself;
- contrastive features are pooled before any fusion (`alignment_features`);
- spikes are ordered by time, then by number; the past's order counts back from its end;
- a stimulus is features, one token per sample, not video through a 3-D convolution; nothing has self-attention before
  the fusion; contexts are normalised once; in training each covariate is hidden from a share of the samples;
- at most `max_events` spikes per state: the LAST of the past and the FIRST of the current state; a state that was cut
  has no end to predict.

Tensor walk of `encode` (behaviour is never read, so that a probe of behaviour cannot be answered from the question):
    spikes `(batch, spike)` → past `(batch, event, dim)`, current `(batch, 1 + event, dim)` behind a start token
    → past blocks → stimulus blocks → self blocks → norm → tokens `(batch, 1 + event, dim)` → mean `(batch, dim)`
    all spikes → counts `(batch, segment, channel)` times unit neuron vectors → `(batch, segment, dim)`
    → pooled `(batch, (1 + segment) * dim)`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainfm.layers.attention import MLP, Block, masked_mean
from brainfm.layers.positions import sinusoid
from brainfm.tokens import Encoding, Facts, TokenBatch

PAPER = "Antoniades et al. 2024, Neuroformer, arXiv:2311.00136"

#: The V1AL recording of the paper: 386 neurons, past 0.15 s and current 0.05 s.
# fmt: off
FACTS = Facts(
    modality=("spikes",), kinds=("neuron",), window_s=0.2, channels=386, subjects=("v1al/a1",),
    neurons=tuple(f"v1al/a1/{i:03d}" for i in range(386)), aligned={"stimulus": 64},
)

SIZES: dict[str, dict] = {
    "test": {"dim": 16, "heads": 2, "past_layers": 1, "self_layers": 1, "dropout": 0.0},
    "local": {"dim": 48, "heads": 4, "past_layers": 1, "self_layers": 1, "dropout": 0.0},
    "small": {"dim": 128, "heads": 4, "past_layers": 4, "stimulus_layers": 4, "behaviour_layers": 2, "self_layers": 4,
              "dropout": 0.2},
    "base": {"dim": 256, "heads": 8, "past_layers": 6, "stimulus_layers": 6, "behaviour_layers": 4, "self_layers": 6,
             "dropout": 0.2},
}
# fmt: on

IGNORE = -100
INITIAL = 0.02  # standard deviation of fresh neuron vectors


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
        behaviour: predicted last sample of each covariate in `predict`, `(batch, feature)`.
    """

    neuron: Tensor
    bin: Tensor
    neuron_target: Tensor
    bin_target: Tensor
    behaviour: dict[str, Tensor]


class Neuroformer(nn.Module):
    """The network; keywords as in `build`.

    Attributes:
        neurons: ids of the rows of the neuron table, in order.
        aligned: covariates that it takes: the stimulus, behaviour as input, and behaviour to predict.
    """

    def __init__(
        self, neurons: Sequence[str], features: dict[str, int], predict: dict[str, int], past_s: float,
        current_s: float, *, bin_s: float, dim: int, heads: int, layers: tuple[int, int, int, int], dropout: float,
        modality_dropout: float, max_events: int, segments: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dim, self.neurons, self.aligned = dim, list(neurons), (*features, *predict)
        self.past_s, self.current_s, self.bin_s = past_s, current_s, bin_s
        self.bins, self.max_events, self.segments = max(1, round(current_s / bin_s)), max_events, segments
        self.modality_dropout = modality_dropout
        self.table = nn.Parameter(torch.empty(len(self.neurons), dim))
        self.register_parameter("added", None)
        self.start, self.end = nn.Parameter(torch.empty(dim)), nn.Parameter(torch.empty(dim))
        self.when, self.order = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.past_order = nn.Linear(dim, dim, bias=False)
        self.value = nn.ModuleDict({name: nn.Linear(n, dim) for name, n in features.items()})
        self.name = nn.ParameterDict({name: nn.Parameter(torch.empty(dim)) for name in features})
        self.dropout = nn.Dropout(dropout)
        there = (True, "stimulus" in features, bool(set(features) - {"stimulus"}), True)
        self.past_blocks, self.stimulus_blocks, self.behaviour_blocks, self.self_blocks = (
            nn.ModuleList(Block(dim, heads, dropout) for _ in range(n * wanted))
            for n, wanted in zip(layers, there, strict=True)
        )
        self.norm_past, self.norm_context, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_bin = nn.Linear(dim, self.bins + 1)
        self.to_behaviour = nn.ModuleDict({name: nn.Linear(dim, n) for name, n in predict.items()})
        self.align = nn.ModuleDict({name: MLP(dim, 2 * dim) for name in ("spikes", *features)} if features else {})
        for vector in (self.table, self.start, self.end, *self.name.values()):
            nn.init.normal_(vector, std=INITIAL)

    def rows(self) -> Tensor:
        """`(neuron, dim)` the whole table, added neurons included."""
        return self.table if self.added is None else torch.cat((self.table, self.added))

    def add_neurons(self, ids: Sequence[str]) -> list[int]:
        """Append freshly initialised rows (standard deviation 0.02) for neurons that are not in the table yet.

        Make the optimiser after this call: the added rows are a new parameter. A saved model keeps one table, so it
        loads into a network built from facts whose neurons are `self.neurons`.

        Returns:
            The number of each of `ids` in the table.
        """
        new = [x for x in dict.fromkeys(ids) if x not in set(self.neurons)]
        if new:
            fresh = torch.randn(len(new), self.dim).to(self.table) * INITIAL
            self.added = nn.Parameter(fresh if self.added is None else torch.cat((self.added.detach(), fresh)))
            self.neurons += new
        number = {x: i for i, x in enumerate(self.neurons)}
        return [number[x] for x in ids]

    def neuron_parameters(self) -> list[nn.Parameter]:
        """What unit identification trains: added rows, or the whole table where none was added."""
        return [self.table if self.added is None else self.added]

    def freeze_but_neurons(self) -> None:
        """Freeze everything but `neuron_parameters`, gradients already there included."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        for parameter in self.neuron_parameters():
            parameter.requires_grad_(True)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        added = destination.pop(prefix + "added", None)
        if added is not None:
            destination[prefix + "table"] = torch.cat((destination[prefix + "table"], added))

    def _load_from_state_dict(self, state: dict, prefix: str, *rest: object) -> None:
        whole = state.get(prefix + "table")
        if self.added is not None and whole is not None:
            state = {**state, prefix + "table": whole[: len(self.table)], prefix + "added": whole[len(self.table) :]}
        super()._load_from_state_dict(state, prefix, *rest)

    def states(self, batch: TokenBatch) -> tuple[State, State]:
        """Past and current spikes in order of time, then of neuron number; capped at `max_events` each.

        Raises:
            ValueError: where the batch does not number its neurons, or is longer than past and current together.
        """
        if "neuron" not in batch.aligned:
            raise ValueError("Neuroformer needs aligned['neuron'] (batch, channel); give the batcher `model.neurons`")
        number = batch.aligned["neuron"].gather(1, batch.channel)
        real = batch.mask & (number >= 0)
        last = torch.where(real, batch.time, 0.0).amax() if real.numel() else torch.zeros(())
        if last >= self.past_s + self.current_s + self.bin_s / 2:
            width = self.past_s + self.current_s
            raise ValueError(f"a spike at {float(last):.3f} s of a window; this model's last {width:g} s: cut such")
        first = torch.where(real, number, len(self.neurons)).argsort(dim=1, stable=True)
        time = torch.where(real, batch.time, torch.inf).gather(1, first)
        by_time = time.argsort(dim=1, stable=True)
        order, time = first.gather(1, by_time), time.gather(1, by_time) - self.past_s
        n_past, n_all = (time < 0).sum(1), real.sum(1)
        skipped = (n_past - self.max_events).clamp_min(0)
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
        return past, take(n_past, n_current.clamp_max(self.max_events), n_current > self.max_events)

    def _clock(self, time: Tensor) -> Tensor:
        return self.when(sinusoid(time / self.bin_s, self.dim, longest=1000.0))

    def _embed(self, past: State, current: State) -> tuple[Tensor, Tensor]:
        """Tokens of the past `(batch, event, dim)` and of the current state behind its start `(batch, 1 + event, dim)`.

        Vectors that small enter times the root of the width (Vaswani et al. 2017, section 3.4), or time drowns them.
        """
        rows, scale = self.rows(), self.dim**0.5
        back = past.mask.sum(1, keepdim=True) - 1 - torch.arange(past.mask.shape[1], device=rows.device)
        before = scale * rows[past.number] + self._clock(past.time) + self.past_order(sinusoid(back, self.dim))
        start = self.start.expand(len(current.mask), 1, -1)
        now = scale * torch.cat((start, rows[current.number]), dim=1)
        place = self.order(sinusoid(torch.arange(now.shape[1], device=rows.device), self.dim))
        return self.dropout(before), self.dropout(now + self._clock(_behind_start(current.time)) + place)

    def _covariate(self, batch: TokenBatch, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Embedded samples `(batch, time, dim)`, their seconds `(time,)` and which are there `(batch, time)`.

        Raises:
            ValueError: where the series has another number of features than the model takes.
        """
        wanted, width = self.value[name].in_features, self.past_s + self.current_s
        x = batch.aligned.get(name)
        if x is None or (x.shape[-1] != wanted and bool(x.isnan().all())):
            x = self.table.new_full((len(batch), 1, wanted), torch.nan)
        if x.shape[-1] != wanted:
            raise ValueError(f"aligned[{name!r}] has {x.shape[-1]} features; the model takes {wanted}: rebuild it")
        there = x.isfinite().all(dim=-1)
        time = torch.arange(x.shape[1], device=x.device) * (width / x.shape[1]) - self.past_s
        value = self.value[name](torch.where(there[..., None], x, 0.0).to(self.table.dtype))
        return value + self.name[name] + self._clock(time), time, there

    def _fuse(
        self, batch: TokenBatch, past: State, current: State, behaviour: bool, seen: list[Tensor] | None = None
    ) -> Tensor:
        """`(batch, 1 + event, dim)`: current tokens after all fusion; `seen` gathers the attention to the past."""
        before, x = self._embed(past, current)
        before, time = self.norm_past(before), _behind_start(current.time)
        for block in self.past_blocks:
            if seen is not None:
                seen.append(block.attention.weights(block.norm_attention(x), before, past.mask).mean(1))
            x = block(x, before, past.mask)
        groups = [(["stimulus"] if "stimulus" in self.value else [], self.stimulus_blocks)]
        if behaviour:
            groups.append(([name for name in self.value if name != "stimulus"], self.behaviour_blocks))
        for names, blocks in groups:
            if names:
                context, when, there = zip(*(self._covariate(batch, name) for name in names), strict=True)
                there = [self._hide(mask) for mask in there]
                visible = torch.cat(when)[None, None] <= time[..., None] + 1e-6
                visible = visible & torch.cat(there, dim=1)[:, None]
                attended = self.norm_context(torch.cat(context, dim=1))
                for block in blocks:
                    x = block(x, attended, visible)
        token = torch.arange(x.shape[1], device=x.device)
        causal = (token[:, None] >= token) & _behind_start(current.mask, True)[:, None]
        for block in self.self_blocks:
            x = block(x, mask=causal)
        return self.norm(x)

    def _hide(self, there: Tensor) -> Tensor:
        """In training, hide a covariate from a share `modality_dropout` of the samples."""
        if not self.training or self.modality_dropout == 0:
            return there
        return there & (torch.rand(len(there), 1, device=there.device) >= self.modality_dropout)

    def forward(self, batch: TokenBatch) -> Prediction:
        """Predict the next spike at every token of the current state, from the true spikes before it."""
        past, current = self.states(batch)
        x = self._fuse(batch, past, current, behaviour=True)
        number = batch.aligned["neuron"]
        own = self.rows()[number.clamp_min(0)]  # (batch, channel, dim)
        to_neuron = (x @ own.transpose(1, 2)).masked_fill((number < 0)[:, None], -torch.inf)
        bin_of = ((current.time + 1e-6) / self.bin_s).floor().long().clamp(0, self.bins - 1)
        pooled = masked_mean(x, _behind_start(current.mask, True))
        return Prediction(
            torch.cat((to_neuron, (x @ self.end)[..., None]), dim=-1), self.to_bin(x),
            _shifted(current, current.channel, end=number.shape[1]), _shifted(current, bin_of, end=self.bins),
            {name: head(pooled) for name, head in self.to_behaviour.items()},
        )  # fmt: skip

    def encode(self, batch: TokenBatch) -> Encoding:
        """Contextual tokens of the current state; pooled: their mean beside rate-coded segments of the whole window."""
        past, current = self.states(batch)
        x, mask = self._fuse(batch, past, current, behaviour=False), _behind_start(current.mask, True)
        pooled = torch.cat((masked_mean(x, mask), self._rates(batch)), dim=1)
        return Encoding(x, pooled, mask)

    def _rates(self, batch: TokenBatch) -> Tensor:
        """`(batch, segment * dim)`: spikes of every neuron in each segment of the window, times its unit vector."""
        number, channels = batch.aligned["neuron"], batch.aligned["neuron"].shape[1]
        part = (batch.time / (self.past_s + self.current_s) * self.segments).long().clamp(0, self.segments - 1)
        real = batch.mask & (number.gather(1, batch.channel) >= 0)
        counts = self.table.new_zeros(len(batch), self.segments * channels)
        counts.scatter_add_(1, part * channels + batch.channel, real.to(counts.dtype))
        unit = functional.normalize(self.rows(), dim=-1)[number.clamp_min(0)]
        return (counts.view(len(batch), self.segments, channels) @ unit).flatten(1)

    def attention(self, batch: TokenBatch) -> tuple[Tensor, State, Tensor]:
        """Where the current state looks in the past; that comes first, so stimulus and behaviour do not matter.

        Returns:
            weights `(layer, batch, token, event)`, mean over heads; the past that their last axis runs over; and the
            channel `(batch, token)` that each token has to predict, `IGNORE` for the end and for padding.
        """
        past, current = self.states(batch)
        seen: list[Tensor] = []
        self._fuse(batch, past, current, behaviour=False, seen=seen)
        return torch.stack(seen), past, _shifted(current, current.channel, end=IGNORE)

    def alignment_features(self, batch: TokenBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """Each modality by itself, pooled before any fusion: name → `(batch, dim)` and `(batch,)` whether it is there.

        "spikes" is the mean of past and current spike tokens; the others are means over samples of a covariate.
        """
        if not self.align:
            return {}
        past, current = self.states(batch)
        before, now = self._embed(past, current)
        tokens, mask = torch.cat((before, now[:, 1:]), dim=1), torch.cat((past.mask, current.mask), dim=1)
        found = {"spikes": (self.align["spikes"](masked_mean(tokens, mask)), mask.any(1))}
        for name in self.value:
            x, _, there = self._covariate(batch, name)
            found[name] = (self.align[name](masked_mean(x, there)), there.any(1))
        return found


def _behind_start(x: Tensor, start: float | bool = 0) -> Tensor:
    """`(batch, event)` → `(batch, 1 + event)` with the value of the start token in front."""
    return torch.cat((torch.full_like(x[:, :1], start), x), dim=1)


def _shifted(state: State, of: Tensor, end: int) -> Tensor:
    """What each token has to predict, `(batch, 1 + event)`: the next spike's, then `end`, then `IGNORE`."""
    last = torch.where(state.cut, IGNORE, end)[:, None]
    target = torch.cat((of.masked_fill(~state.mask, IGNORE), torch.full_like(of[:, :1], IGNORE)), dim=1)
    return target.scatter(1, state.mask.sum(1, keepdim=True), last)


def build(
    facts: Facts, *, past_s: float | None = None, current_s: float | None = None, bin_s: float = 0.01,
    stimulus: bool = True, behaviour: Sequence[str] | None = None, predict: Sequence[str] = (), dim: int = 48,
    heads: int = 4, past_layers: int = 1, stimulus_layers: int = 1, behaviour_layers: int = 1, self_layers: int = 1,
    dropout: float = 0.0, modality_dropout: float = 0.5, max_events: int = 256, segments: int = 4,
) -> Neuroformer:  # fmt: skip
    """Build the network for the neurons and covariates of a corpus.

    Args:
        past_s, current_s: seconds of the two states; 3/4 and 1/4 of the facts' window where not given.
        bin_s: seconds of a time bin to predict.
        stimulus: whether the covariate "stimulus" is taken where the corpus has one.
        behaviour: covariates taken as input; all but the stimulus and those in `predict` where None.
        predict: covariates whose last sample in the window is predicted, so never an input.
        dim, heads, past_layers, stimulus_layers, behaviour_layers, self_layers, dropout: the transformer.
        modality_dropout: share of training samples from which each covariate is hidden.
        max_events: spikes kept per state: the last of the past, the first of the current one.
        segments: parts of the window whose spike counts enter the pooled encoding.

    Raises:
        ValueError: for a corpus without neurons, a covariate that it has not, or states that do not fill its window.
    """
    if not facts.neurons:
        raise ValueError(f"Neuroformer needs neurons; this corpus has {facts.modality or 'none'}: choose one of spikes")
    known = set(facts.aligned)
    inputs = sorted(known - {"stimulus", *predict}) if behaviour is None else [x for x in behaviour if x != "stimulus"]
    unfit = sorted({*inputs, *predict} - known) or sorted(set(inputs) & set(predict))
    if unfit:
        raise ValueError(f"covariates {unfit}: name each of {sorted(known)} in `behaviour` or in `predict`, not both")
    window = facts.window_s or 0.2
    current_s = (window / 4 if past_s is None else window - past_s) if current_s is None else current_s
    past_s = window - current_s if past_s is None else past_s
    if (facts.window_s and abs(past_s + current_s - window) > 1e-6) or min(past_s, current_s, bin_s) <= 0:
        raise ValueError(f"past_s {past_s:g} and current_s {current_s:g} must be positive and fill {window:g} s")
    names = (["stimulus"] if stimulus and "stimulus" in known else []) + inputs
    return Neuroformer(
        facts.neurons, {n: facts.aligned[n] for n in names}, {n: facts.aligned[n] for n in predict}, past_s, current_s,
        bin_s=bin_s, dim=dim, heads=heads, layers=(past_layers, stimulus_layers, behaviour_layers, self_layers),
        dropout=dropout, modality_dropout=modality_dropout, max_events=max_events, segments=segments,
    )  # fmt: skip
