"""Neuroformer: a population's spikes as a sequence that a transformer continues, given stimulus and behaviour.

Paper: Antonis Antoniades, Yiyi Yu, Joseph Canzano, William Wang, Spencer LaVere Smith. "Neuroformer: Multimodal and
Multitask Generative Pretraining for Brain Data". ICLR 2024. https://arxiv.org/abs/2311.00136

A window is a past and a current state, each spike a token: which neuron, and when. The tokens of the current state
attend to those of the past, then to the stimulus, then to behaviour, then causally to each other; each predicts neuron
and time bin of the next spike, the last one the end of the state. Attention to the past, gathered by predicted and
attended neuron, recovers who drives whom (`evaluations/connectivity.py`).

Differences from the paper and its published code:
- a neuron is a row of a table named by its id that also reads the logits out, so that a new animal has a
  path (`add_neurons`, `freeze_but_neurons`); logits run over the neurons of the sample's own recording and the end;
- padding is masked everywhere and has no vector; contrastive features are pooled before any fusion;
- a covariate's value enters (a LayerNorm of one number erased it); a token sees no later sample of it than itself;
- spikes are ordered by time, then by number; the past's order counts back from its end;
- a stimulus is features, one token per sample, or with `height` video through a 3-D convolution: its tokens keep place
  and time, attend to no later frame, and show the window alone, where the published code reads on beyond its end;
- contexts are normalised once; in training each covariate is hidden from a share of the samples;
- a behaviour head reads what `encode` pools: rates too, no behaviour; that is standardised per session while training;
- at most `max_events` spikes per state: the LAST of the past and the FIRST of the current state; a state that was cut
  has no end to predict.

Tensor walk of `encode` (behaviour is never read, so that a probe of behaviour cannot be answered from the question):
    spikes `(batch, spike)` → past `(batch, event, dim)`, current `(batch, 1 + event, dim)` behind a start token
    → state encoder → past blocks → stimulus blocks → self blocks → norm → tokens, the same shape → mean `(batch, dim)`
    all spikes → counts `(batch, segment, channel)` times unit neuron vectors → `(batch, segment, dim)`
    → pooled `(batch, (1 + segment) * dim)`
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from brainfm.layers import draws, spike_generation
from brainfm.layers.attention import MLP, Block, masked_mean
from brainfm.layers.cached_attention import Stage, run
from brainfm.layers.frames import Frames, LookingBack
from brainfm.layers.neurons import needs_spikes, numbered_spikes, segment_rates, train_only
from brainfm.layers.positions import sinusoid
from brainfm.layers.spike_generation import Drawn, Sampling
from brainfm.layers.spike_states import IGNORE, Prediction, State, behind_start, causal, shifted, split_states
from brainfm.layers.tables import INITIAL, Standard, grown, in_own_unit, joined, load_in_parts, save_as_one
from brainfm.tokens import Encoding, Facts, TokenBatch

PAPER = "Antoniades et al. 2024, Neuroformer, arXiv:2311.00136"

#: The V1AL recording of the paper: 386 neurons, past 0.15 s and current 0.05 s, frames of 64 by 112 pixels.
# fmt: off
FACTS = Facts(
    modality=("spikes",), kinds=("neuron",), window_s=0.2, channels=386, subjects=("v1al/a1",),
    neurons=tuple(f"v1al/a1/{i:03d}" for i in range(386)), aligned={"stimulus": 64 * 112},
)

SIZES: dict[str, dict] = {
    "test": {"dim": 16, "heads": 2, "past_layers": 1, "self_layers": 1, "dropout": 0.0},
    "local": {"dim": 48, "heads": 4, "past_layers": 1, "self_layers": 1, "dropout": 0.0},
    "small": {"dim": 128, "heads": 4, "past_layers": 4, "stimulus_layers": 4, "behaviour_layers": 2, "self_layers": 4,
              "dropout": 0.2},
    "base": {"dim": 256, "heads": 8, "past_layers": 6, "stimulus_layers": 6, "behaviour_layers": 4, "self_layers": 6,
             "dropout": 0.2, "height": 64, "state_encoder_layers": 6, "stimulus_encoder_layers": 6},
}
# fmt: on

HIDE = 32  # of draws that hide a covariate, plus its number; see `layers/draws.py`


class Neuroformer(nn.Module):
    """The network; keywords as in `build`.

    Attributes:
        neurons: ids of the rows of the neuron table, in order. sessions: ids of the recordings that it knows.
        aligned: covariates that it takes: the stimulus, behaviour as input, behaviour to predict, and `weight`.
        targets: covariates that it predicts, and the width of each answer. classes: those of them that are classes.
        weight: a covariate that weighs the error of those, or None. answers_at: where in a window it can be asked.
    """

    def __init__(
        self, neurons: Sequence[str], sessions: Sequence[str], features: dict[str, int], predict: dict[str, int],
        past_s: float, current_s: float, *, classes: Sequence[str], weight: str | None, bin_s: float, dim: int,
        heads: int, layers: tuple[int, int, int, int], dropout: float, modality_dropout: float, max_events: int,
        segments: int, video: tuple[int, Sequence[int], Sequence[int]] | None, encoders: tuple[int, int],
    ) -> None:  # fmt: skip
        super().__init__()
        self.dim, self.neurons, self.sessions = dim, list(neurons), list(sessions)
        self.targets, self.classes, self.weight, self.answers_at = dict(predict), tuple(classes), weight, ("end",)
        self.aligned = (*features, *predict, *([] if weight is None else [weight]))
        self.past_s, self.current_s, self.window_s, self.bin_s = past_s, current_s, past_s + current_s, bin_s
        self.bins, self.max_events, self.segments = max(1, round(current_s / bin_s)), max_events, segments
        self.modality_dropout = modality_dropout
        self.table = nn.Parameter(torch.empty(len(self.neurons), dim))
        self.register_parameter("added", None)
        self.start, self.end = nn.Parameter(torch.empty(dim)), nn.Parameter(torch.empty(dim))
        self.when, self.order = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.past_order = nn.Linear(dim, dim, bias=False)
        self.value = nn.ModuleDict({
            name: Frames(n, video[0], dim, *video[1:]) if video and name == "stimulus" else nn.Linear(n, dim)
            for name, n in features.items()
        })  # fmt: skip
        self.name = nn.ParameterDict({name: nn.Parameter(torch.empty(dim)) for name in features})
        self.dropout = nn.Dropout(dropout)
        there = (True, "stimulus" in features, bool(set(features) - {"stimulus"}), True)
        self.past_blocks, self.stimulus_blocks, self.behaviour_blocks, self.self_blocks = (
            nn.ModuleList(Block(dim, heads, dropout) for _ in range(n * wanted))
            for n, wanted in zip(layers, there, strict=True)
        )
        self.state_encoder = nn.ModuleList(Block(dim, heads, dropout) for _ in range(encoders[0]))
        self.stimulus_encoder = LookingBack(encoders[1] * there[1], dim, heads, dropout)
        self.norm_past, self.norm_context, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_bin = nn.Linear(dim, self.bins + 1)
        size = dim * (1 + segments)
        reads = {k: nn.Sequential(nn.LayerNorm(size), nn.Linear(size, n)) for k, n in predict.items()}
        self.to_behaviour = nn.ModuleDict(reads)
        self.standard = nn.ModuleDict({k: Standard(len(sessions), n) for k, n in predict.items() if k not in classes})
        self.align = nn.ModuleDict({name: MLP(dim, 2 * dim) for name in ("spikes", *features)} if features else {})
        for vector in (self.table, self.start, self.end, *self.name.values()):
            nn.init.normal_(vector, std=INITIAL)

    def rows(self) -> Tensor:
        """`(neuron, dim)` the whole table, added neurons included."""
        return joined(self.table, self.added)

    def add_neurons(self, ids: Sequence[str]) -> list[int]:
        """Append fresh rows for neurons that are not in the table yet; the numbers of all `ids`.

        Make the optimiser after this call: the added rows are a new parameter. A saved model keeps one table, so it
        loads into a network built from facts whose neurons are `self.neurons`.
        """
        self.added, numbers = grown(self.neurons, ids, self.table, self.added, INITIAL)
        return numbers

    def add_sessions(self, ids: Sequence[str]) -> list[int]:
        """Know further recordings, which have no vector but a mean and a deviation of behaviour; numbers of `ids`."""
        new = [x for x in dict.fromkeys(ids) if x not in self.sessions]
        self.sessions += new
        for standard in self.standard.values():
            standard.add(len(new))
        return [self.sessions.index(x) for x in ids]

    def neuron_parameters(self) -> list[nn.Parameter]:
        """What unit identification trains: added rows, or the whole table where none was added."""
        return [self.table if self.added is None else self.added]

    def freeze_but_neurons(self) -> None:
        """Freeze everything but `neuron_parameters`, gradients already there included."""
        train_only(self, self.neuron_parameters())

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        save_as_one(destination, prefix, "table")

    def _load_from_state_dict(self, state: dict, prefix: str, *rest: object) -> None:
        super()._load_from_state_dict(load_in_parts(state, prefix, "table", self.table, self.added), prefix, *rest)

    def states(self, batch: TokenBatch) -> tuple[State, State]:
        """Past and current spikes in order of time, then of neuron number; capped at `max_events` each.

        Raises:
            ValueError: for a signal, and where the batch does not number its neurons, or is longer than past and
                current together.
        """
        number = numbered_spikes(batch, "Neuroformer")
        real = batch.mask & (number >= 0)
        last = torch.where(real, batch.time, 0.0).amax() if real.numel() else torch.zeros(())
        if last >= self.window_s + self.bin_s / 2:
            raise ValueError(f"a spike at {last:.3f} s of a window; this model's last {self.window_s:g} s: cut such")
        return split_states(batch, number, self.past_s, self.max_events)

    def _clock(self, time: Tensor) -> Tensor:
        return self.when(sinusoid(time / self.bin_s, self.dim, longest=1000.0))

    def _past_tokens(self, past: State) -> Tensor:
        """`(batch, event, dim)`.

        Vectors that small enter times the root of the width (Vaswani et al. 2017, section 3.4), or time drowns them.
        """
        back = past.mask.sum(1, keepdim=True) - 1 - torch.arange(past.mask.shape[1], device=past.time.device)
        rows = self.dim**0.5 * self.rows()[past.number]
        return self.dropout(rows + self._clock(past.time) + self.past_order(sinusoid(back, self.dim)))

    def current_tokens(self, number: Tensor, time: Tensor, first: int = 0) -> Tensor:
        """`(batch, token)` neurons' numbers, -1 for the start token, and seconds → `(batch, token, dim)`.

        Args:
            first: place of the first of these tokens in the current state.
        """
        vectors = torch.where((number < 0)[..., None], self.start, self.rows()[number.clamp_min(0)])
        place = self.order(sinusoid(torch.arange(first, first + number.shape[1], device=number.device), self.dim))
        return self.dropout(self.dim**0.5 * vectors + self._clock(time) + place)

    def _covariate(self, batch: TokenBatch, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Embedded samples `(batch, key, dim)`, their seconds `([batch,] key)` and which are there `(batch, key)`.

        Of video a key is a patch of some frames, and its time that of the last of them. Seconds as `Stage.when`.

        Raises:
            ValueError: where the series has another number of features than the model takes.
        """
        value = self.value[name]
        wanted = value.in_features
        x = batch.aligned.get(name)
        if x is None or (x.shape[-1] != wanted and bool(x.isnan().all())):
            x = self.table.new_full((len(batch), 1, wanted), torch.nan)
        if x.shape[-1] != wanted:
            raise ValueError(f"aligned[{name!r}] has {x.shape[-1]} features; the model takes {wanted}: rebuild it")
        there = x.isfinite().all(dim=-1)
        time = replace(batch, aligned={**batch.aligned, name: x}).times_of(name, self.window_s) - self.past_s
        made = value(torch.where(there[..., None], x, 0.0).to(self.table.dtype))
        if made.dim() == 3:
            made = made[:, :, None]
        else:
            time, there = value.times(time, there)
        made = made + self.name[name] + self._clock(time).unsqueeze(-2)
        if name == "stimulus":
            made = self.stimulus_encoder(made, there)
        patches = made.shape[2]
        return made.flatten(1, 2), time.repeat_interleave(patches, dim=-1), there.repeat_interleave(patches, dim=1)

    def stages(self, batch: TokenBatch, past: State, behaviour: bool) -> list[Stage]:
        """What the tokens of the current state go through, in order: the past, stimulus, behaviour, each other."""
        found = [Stage(self.state_encoder), Stage(self.past_blocks, self.norm_past(self._past_tokens(past)), past.mask)]
        groups = [(["stimulus"] if "stimulus" in self.value else [], self.stimulus_blocks)]
        if behaviour:
            groups.append(([name for name in self.value if name != "stimulus"], self.behaviour_blocks))
        for names, blocks in groups:
            if names:
                context, when, there = zip(*(self._covariate(batch, name) for name in names), strict=True)
                hidden = [self._hide(batch, mask, name) for name, mask in zip(names, there, strict=True)]
                attended = self.norm_context(torch.cat(context, dim=1))
                if any(time.dim() > 1 for time in when):
                    when = tuple(time.expand(len(batch), -1) for time in when)
                found.append(Stage(blocks, attended, torch.cat(hidden, dim=1), torch.cat(when, dim=-1)))
        return [*found, Stage(self.self_blocks)]

    def fuse(self, batch: TokenBatch, past: State, current: State, behaviour: bool) -> Tensor:
        """`(batch, 1 + event, dim)`: tokens of the current state, its start in front, after all fusion."""
        time = behind_start(current.time)
        x = self.current_tokens(behind_start(current.number, -1), time)
        return self.norm(run(self.stages(batch, past, behaviour), x, time, causal(current)))

    def _hide(self, batch: TokenBatch, there: Tensor, name: str) -> Tensor:
        """In training, hide a covariate from a share `modality_dropout` of the samples."""
        if self.training and self.modality_dropout:
            drawn = draws.uniform(draws.seeds(batch), (1,), HIDE + list(self.value).index(name))
            there = there & (drawn >= self.modality_dropout)
        return there

    def forward(self, batch: TokenBatch) -> Prediction:
        """Predict the next spike at every token of the current state, from the true spikes before it."""
        past, current = self.states(batch)
        x = self.fuse(batch, past, current, behaviour=True)
        number = batch.aligned["neuron"]
        own = self.rows()[number.clamp_min(0)]  # (batch, channel, dim)
        to_neuron = (x @ own.transpose(1, 2)).masked_fill((number < 0)[:, None], -torch.inf)
        read = self.fuse(batch, past, current, behaviour=False) if self.targets and self.behaviour_blocks else x
        pooled = self._pooled(batch, read, behind_start(current.mask, True)) if self.targets else x
        return Prediction(
            torch.cat((to_neuron, (x @ self.end)[..., None]), dim=-1), self.to_bin(x),
            shifted(current, current.channel, end=number.shape[1]),
            shifted(current, self.bin_of(current.time), end=self.bins),
            {name: head(pooled)[:, None] for name, head in self.to_behaviour.items()},
        )  # fmt: skip

    def times(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Seconds, as in `TokenBatch.times_of`, of the one sample of each target that it answers for: the last."""
        held = [name for name in self.targets if name in batch.aligned]
        return {name: batch.times_of(name, self.window_s)[..., -1:] for name in held}

    def predict(self, batch: TokenBatch, times: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The last sample of each target in the window, `(batch, 1, width)` in its own unit; logits for classes.

        Raises:
            ValueError: for times other than its own, and for a recording that the model does not know.
        """
        said, own = self(batch).behaviour, self.times(batch)
        for name, time in (times or {}).items():
            if name not in own or not torch.equal(time.expand_as(own[name]), own[name]):
                raise ValueError(f"{name} is answered at its last sample in the window alone; ask at `model.times`")
        return in_own_unit({n: said[n] for n in (times or said)}, self.standard, batch)

    def bin_of(self, time: Tensor) -> Tensor:
        """The time bin of seconds from the start of the current state."""
        return ((time + 1e-6) / self.bin_s).floor().long().clamp(0, self.bins - 1)

    def encode(self, batch: TokenBatch) -> Encoding:
        """Contextual tokens of the current state; pooled: their mean beside rate-coded segments of the whole window."""
        past, current = self.states(batch)
        x, mask = self.fuse(batch, past, current, behaviour=False), behind_start(current.mask, True)
        return Encoding(x, self._pooled(batch, x, mask), mask)

    def _pooled(self, batch: TokenBatch, x: Tensor, mask: Tensor) -> Tensor:
        rates = segment_rates(batch, self.rows(), self.segments, self.window_s)
        return torch.cat((masked_mean(x, mask), rates), dim=1)

    def attention(self, batch: TokenBatch) -> tuple[Tensor, State, Tensor]:
        """Where the current state looks in the past; that comes first, so stimulus and behaviour do not matter.

        Returns:
            weights `(layer, batch, token, event)`, mean over heads; the past that their last axis runs over; and the
            channel `(batch, token)` that each token has to predict, `IGNORE` for the end and for padding.
        """
        past, current = self.states(batch)
        before, time = self.norm_past(self._past_tokens(past)), behind_start(current.time)
        x = self.current_tokens(behind_start(current.number, -1), time)
        x = run([Stage(self.state_encoder)], x, time, causal(current))
        seen: list[Tensor] = []
        for block in self.past_blocks:
            seen.append(block.attention.weights(block.norm_attention(x), before, past.mask).mean(1))
            x = block(x, before, past.mask)
        return torch.stack(seen), past, shifted(current, current.channel, end=IGNORE)

    def alignment_features(self, batch: TokenBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """Each modality by itself, pooled before any fusion: name → `(batch, dim)` and `(batch,)` whether it is there.

        "spikes" is the mean of past and current spike tokens; the others are means over samples of a covariate.
        """
        if not self.align:
            return {}
        past, current = self.states(batch)
        now = self.current_tokens(behind_start(current.number, -1), behind_start(current.time))[:, 1:]
        tokens, mask = torch.cat((self._past_tokens(past), now), dim=1), torch.cat((past.mask, current.mask), dim=1)
        found = {"spikes": (self.align["spikes"](masked_mean(tokens, mask)), mask.any(1))}
        for name in self.value:
            x, _, there = self._covariate(batch, name)
            found[name] = (self.align[name](masked_mean(x, there)), there.any(1))
        return found

    def generate(
        self, batch: TokenBatch, *, seed: int = 0, temperature: float = 1.0, top_p: float = 0.95,
        monotone: bool = True, cached: bool = True, most: int | None = None,
    ) -> Drawn:  # fmt: skip
        """Draw the current state of every window from its past and its covariates, spike by spike until its end.

        Spikes of the current state in the batch are not read. Past, stimulus (a video is encoded once) and behaviour
        are attended to through keys that are made once; so are earlier spikes. Arguments as in `Sampling` of
        `brainfm/layers/spike_generation.py`; the spikes come in the order in which they were drawn.

        Raises:
            ValueError: in training mode.
        """
        return spike_generation.generate(self, batch, seed, Sampling(temperature, top_p, monotone, cached, most))

    def roll_out(
        self, windows: Iterable[TokenBatch], *, seed: int = 0, temperature: float = 1.0, top_p: float = 0.95
    ) -> list[Drawn]:
        """The same for windows in sequence, each from the spikes drawn before it: see `spike_generation.roll_out`."""
        return spike_generation.roll_out(self, windows, seed, Sampling(temperature, top_p))


def build(
    facts: Facts, *, past_s: float | None = None, current_s: float | None = None, bin_s: float = 0.01,
    stimulus: bool = True, behaviour: Sequence[str] | None = None, predict: Sequence[str] = (),
    classes: dict[str, int] | None = None, weight: str | None = None, dim: int = 48, heads: int = 4,
    past_layers: int = 1, stimulus_layers: int = 1, behaviour_layers: int = 1, self_layers: int = 1,
    dropout: float = 0.0, modality_dropout: float = 0.5, max_events: int = 256, segments: int = 4,
    height: int | None = None, kernel: Sequence[int] = (3, 8, 8), stride: Sequence[int] = (3, 4, 4),
    state_encoder_layers: int = 0, stimulus_encoder_layers: int = 0,
) -> Neuroformer:  # fmt: skip
    """Build the network for the neurons and covariates of a corpus.

    Args:
        past_s, current_s: seconds of the two states; 3/4 and 1/4 of the facts' window where not given.
        bin_s: seconds of a time bin to predict. stimulus: whether the covariate of that name is taken where it is.
        behaviour: covariates that spikes are predicted from; all but the stimulus, `weight` and `predict` where None.
        predict: covariates whose last sample in the window is predicted, so never an input.
        classes: those of them that hold a class number, and how many. weight: a covariate that weighs their error.
        dim, heads, past_layers, stimulus_layers, behaviour_layers, self_layers, dropout: the transformer.
        modality_dropout: share of training samples from which each covariate is hidden.
        max_events: spikes kept per state: the last of the past, the first of the current one.
        segments: parts of the window whose spike counts enter the pooled encoding.
        height: rows of pixels of a frame, where the stimulus is video; None for features.
        kernel, stride: of the video's convolution, frames by rows by columns.
        state_encoder_layers, stimulus_encoder_layers: self-attention of either by itself, before the fusion.

    Raises:
        ValueError: for a corpus without spikes, a covariate that it has not, or states that do not fill its window.
    """
    needs_spikes(facts, "Neuroformer")
    known, classes, held = set(facts.aligned), dict(classes or {}), {*predict, *([] if weight is None else [weight])}
    inputs = sorted(known - {"stimulus", *held}) if behaviour is None else [x for x in behaviour if x != "stimulus"]
    unfit = sorted({*inputs, *held} - known) or sorted(set(inputs) & held) or sorted(set(classes) - set(predict))
    if unfit:
        raise ValueError(f"covariates {unfit}: name each of {sorted(known)} in `behaviour` or in `predict`, not both")
    window = facts.window_s or 0.2
    current_s = (window / 4 if past_s is None else window - past_s) if current_s is None else current_s
    past_s = window - current_s if past_s is None else past_s
    if (facts.window_s and abs(past_s + current_s - window) > 1e-6) or min(past_s, current_s, bin_s) <= 0:
        raise ValueError(f"past_s {past_s:g} and current_s {current_s:g} must be positive and fill {window:g} s")
    names = (["stimulus"] if stimulus and "stimulus" in known else []) + inputs
    return Neuroformer(
        facts.neurons, facts.sessions, {n: facts.aligned[n] for n in names},
        {n: classes.get(n, facts.aligned[n]) for n in predict}, past_s, current_s, classes=tuple(classes),
        weight=weight, bin_s=bin_s, dim=dim, heads=heads, dropout=dropout, modality_dropout=modality_dropout,
        layers=(past_layers, stimulus_layers, behaviour_layers, self_layers), max_events=max_events, segments=segments,
        video=height and (height, kernel, stride), encoders=(state_encoder_layers, stimulus_encoder_layers),
    )  # fmt: skip
