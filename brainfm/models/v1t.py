"""V1T: what neurons of visual cortex answer to an image, given how the animal behaves, by a transformer over patches.

Paper: Bryan M. Li, Isabel M. Cornacchia, Nathalie L. Rochefort, Arno Onken. "V1T: large-scale mouse V1 response
prediction using a Vision Transformer". TMLR 2023. https://arxiv.org/abs/2302.03023

A core that all animals share turns an image into a map of features: overlapping patches are tokens, and behaviour is
added to every token before each block. Each neuron then reads the map at one place, which is drawn from a Gaussian in
training, and weighs the features found there. The Gaussian's mean follows from where the neuron lies in cortex. A new
animal needs neurons and a read-out of its own; the core stays (`adopt`, `freeze_core`).

Differences from the paper and its published code:
- neurons are rows of tables named by their ids, so that a batch may mix animals; theirs take turns;
- a neuron's covariance is kept as its lower triangle, and the draw follows from the sample's seed (`layers/draws.py`);
- cortical coordinates are divided by a fixed length, theirs are standardised per animal;
- the gaze moves the place that is read and not the crop of the image, by a net of two layers for each animal;
- images are taken as the shard has them (their images are cropped and resized first); patches are unfolded, the other
  ways of theirs, locality self-attention and stochastic depth are left out;
- a window of several images is so many images, each by itself;
- an image that is shown while some behaviour is unknown (NaN) counts neither in the loss nor in the score: 0 would be
  taken for a value. Data without behaviour need a network that is built without it (`behaviour: []`).

Tensor walk of `forward`:
    stimulus `(batch, time, pixel)` → patches `(image, 1 + token, dim)` behind a class token
    → blocks, behaviour `(image, feature)` added before each → map `(image, dim, row, column)`
    → read at `(image, channel, 2)` → features `(image, channel, dim)` → weights, ELU + 1 → `(batch, channel, time)`
`encode` gives the map as tokens `(batch, time * row * column, dim)` and their mean `(batch, dim)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from brainfm.layers import draws
from brainfm.layers.attention import masked_mean
from brainfm.tokens import Encoding, Facts, TokenBatch

PAPER = "Li et al. 2023, V1T, arXiv:2302.03023"

#: One mouse with 8000 neurons that sees images of 36 by 64 pixels.
# fmt: off
FACTS = Facts(
    modality=("calcium",), kinds=("neuron",), sfreq=1.0, window_s=1.0, channels=8000, subjects=("sensorium/m1",),
    neurons=tuple(f"sensorium/m1/{i:04d}" for i in range(8000)),
    aligned={"stimulus": 36 * 64, "behaviour": 3, "pupil_centre": 2},
)

SIZES: dict[str, dict] = {
    "test": {"stride": 14, "dim": 8, "depth": 1, "heads": 2, "hidden": 16, "behaviour_hidden": 4, "dropout": 0.0,
             "patch_dropout": 0.0},
    "local": {"stride": 4, "dim": 32, "depth": 2, "heads": 2, "hidden": 64, "behaviour_hidden": 16, "dropout": 0.0,
              "patch_dropout": 0.0},
    "small": {"stride": 4},
    "published": {"stride": 1},
}
# fmt: on

#: Metres of cortex that one unit of the coordinates of a read-out stands for.
CORTEX_M = 5e-4
#: Width of the nets that place a neuron and that follow the gaze; fresh deviation of a place in half images.
PLACE_HIDDEN, GAZE_HIDDEN, SPREAD = 30, 5, 0.1
#: Number of the random stream of the places that are read.
PLACES = 11


class WideAttention(nn.Module):
    """Self-attention whose heads each have the full width: `(image, token, dim)` → the same shape."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.project = nn.Linear(dim, 3 * heads * dim, bias=False)
        self.out = nn.Linear(heads * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Every token attends to every token."""
        q, k, v = rearrange(self.project(x), "i t (three h d) -> three i h t d", three=3, h=self.heads)
        y = functional.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return functional.dropout(self.out(rearrange(y, "i h t d -> i t (h d)")), self.dropout, self.training)


class Block(nn.Module):
    """Behaviour added to every token, then attention and an MLP, each behind a norm and added to its input."""

    def __init__(
        self, dim: int, heads: int, hidden: int, behaviours: int, behaviour_hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.behaviour = nn.Sequential(
            nn.Linear(behaviours, behaviour_hidden), nn.Tanh(), nn.Linear(behaviour_hidden, dim), nn.Tanh()
        ) if behaviours else None  # fmt: skip
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = WideAttention(dim, heads, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor, behaviour: Tensor) -> Tensor:
        """`(image, token, dim)` with behaviour `(image, feature)` → the same shape."""
        if self.behaviour is not None:
            x = x + self.behaviour(behaviour)[:, None]
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class Core(nn.Module):
    """Image and behaviour → a map of features, the same for all animals; keywords as in `build`.

    Attributes:
        rows, columns: of the map, a place for each patch.
    """

    def __init__(
        self, height: int, width: int, behaviours: int, *, patch: int, stride: int, dim: int, depth: int, heads: int,
        hidden: int, behaviour_hidden: int, dropout: float, patch_dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patch, self.stride = patch, stride
        self.rows, self.columns = (height - patch) // stride + 1, (width - patch) // stride + 1
        self.embed = nn.Linear(patch * patch, dim)
        self.first = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 1 + self.rows * self.columns, dim) * 0.02)
        self.dropout = nn.Dropout(patch_dropout)
        self.blocks = nn.ModuleList(
            Block(dim, heads, hidden, behaviours, behaviour_hidden, dropout) for _ in range(depth)
        )

    def forward(self, image: Tensor, behaviour: Tensor) -> Tensor:
        """`(image, height, width)` and `(image, feature)` → `(image, dim, row, column)`."""
        patches = functional.unfold(image[:, None], self.patch, stride=self.stride).transpose(1, 2)
        x = torch.cat((self.first.expand(len(image), -1, -1), self.embed(patches)), dim=1)
        x = self.dropout(x + self.position)
        for block in self.blocks:
            x = block(x, behaviour)
        return rearrange(x[:, 1:], "i (r c) d -> i d r c", r=self.rows)


class AnimalLinear(nn.Module):
    """A linear layer for each animal: `(sample, row, inputs)`, animals `(sample,)` → `(sample, row, outputs)`."""

    def __init__(self, animals: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(animals, inputs, outputs).uniform_(-1, 1) * inputs**-0.5)
        self.bias = nn.Parameter(torch.empty(animals, 1, outputs).uniform_(-1, 1) * inputs**-0.5)

    def forward(self, x: Tensor, animal: Tensor) -> Tensor:
        """Multiply each sample by the matrix of its animal."""
        return torch.baddbmm(self.bias[animal], x, self.weight[animal])


class Readout(nn.Module):
    """Where each neuron looks in the map, and how it weighs what it finds there.

    Args:
        neurons: their ids, which begin with `dataset/subject/`. dim: features of the map.
        gaze: whether the pupil's centre is known.
    """

    def __init__(self, neurons: Sequence[str], dim: int, gaze: bool) -> None:
        super().__init__()
        people = ["/".join(x.split("/")[:2]) for x in neurons]
        animals = sorted(set(people))
        number = {animal: i for i, animal in enumerate(animals)}
        self.register_buffer("animal", torch.tensor([number[x] for x in people]), persistent=False)
        self.place = nn.ModuleList(
            AnimalLinear(len(animals), *widths) for widths in ((2, PLACE_HIDDEN), (PLACE_HIDDEN, 2))
        )
        self.gaze = nn.ModuleList(
            AnimalLinear(len(animals), *widths) for widths in ((2, GAZE_HIDDEN), (GAZE_HIDDEN, 2)) if gaze
        )
        for net in (self.place, self.gaze):  # a fresh read-out looks at the middle, and hardly follows the gaze
            for layer in list(net)[1:]:
                nn.init.zeros_(layer.bias)
                nn.init.normal_(layer.weight, std=0.1)
        self.spread = nn.Parameter(torch.tensor([SPREAD, 0.0, SPREAD]).repeat(len(neurons), 1))
        self.weight = nn.Parameter(torch.randn(len(neurons), dim) * 0.3 * dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(len(neurons)))

    def places(self, number: Tensor, place: Tensor, gaze: Tensor, seed: Tensor | None) -> Tensor:
        """`(sample, time, channel, 2)` right and down from -1 to 1: the mean, or a draw where seeds are given.

        Args:
            number: `(sample, channel)`, negative for padding. place: `(sample, channel, 3)` metres; NaN where unknown.
            gaze: `(sample, time, 2)` of the pupil. seed: `(sample,)`.
        """
        animal = self.animal[number.amax(1).clamp_min(0)]  # type: ignore[index]
        known = torch.nan_to_num(place[..., :2] / CORTEX_M)
        first, second = self.place
        mean = torch.tanh(second(functional.elu(first(known, animal)), animal))[:, None]
        if len(self.gaze):
            first, second = self.gaze
            mean = mean + torch.tanh(second(torch.tanh(first(gaze, animal)), animal))[:, :, None]
        else:
            mean = mean.expand(-1, gaze.shape[1], -1, -1)
        if seed is not None:
            noise = draws.normal(seed, (gaze.shape[1], number.shape[1], 2), PLACES)
            a, b, c = self.spread[number.clamp_min(0)][:, None].unbind(-1)
            right, down = noise.unbind(-1)
            mean = mean + torch.stack((a * right, b * right + c * down), dim=-1)
        return mean.clamp(-1, 1)

    def forward(self, seen: Tensor, number: Tensor, places: Tensor) -> Tensor:
        """Map `(sample * time, dim, row, column)` read at `(sample, time, channel, 2)` → `(sample, channel, time)`."""
        n, time = places.shape[:2]
        found = functional.grid_sample(seen, places.flatten(0, 1)[:, None], align_corners=True)[:, :, 0]
        found = found.view(n, time, *found.shape[1:])  # (sample, time, dim, channel)
        row = number.clamp_min(0)
        return torch.einsum("stdc,scd->sct", found, self.weight[row]) + self.bias[row][..., None]


class V1T(nn.Module):
    """The network; keywords as in `build`.

    Attributes:
        patch: samples per token of the responses: one. neurons: ids of the neurons, in order.
        aligned: covariates that it takes: the images, behaviour, and the pupil's centre.
    """

    patch = 1

    def __init__(
        self, neurons: Sequence[str], height: int, width: int, features: dict[str, int], stimulus: str, gaze: str,
        core: Core,
    ) -> None:  # fmt: skip
        super().__init__()
        self.neurons, self.stimulus, self.gaze = list(neurons), stimulus, gaze if gaze in features else ""
        self.height, self.width, self.features = height, width, features
        self.aligned = (stimulus, *features)
        self.core = core
        self.dim = core.embed.out_features
        self.readout = Readout(neurons, self.dim, bool(self.gaze))

    def adopt(self, other: V1T) -> None:
        """Take a copy of the core of another network, which may know other animals."""
        self.core.load_state_dict(other.core.state_dict(), strict=True)

    def freeze_core(self) -> None:
        """Let the read-outs alone be trained."""
        for parameter in self.core.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None

    def core_weights(self) -> Iterator[Tensor]:
        """Parameters of the core that are trained."""
        return (p for p in self.core.parameters() if p.requires_grad)

    def target(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Responses `(batch, channel, time)`, and which are real and answer an image and behaviour that are known."""
        real = batch.mask.view(len(batch), *batch.grid) & self.known(batch)[:, None]  # type: ignore[misc]
        return batch.signal(), real & (batch.aligned["neuron"] >= 0)[..., None]

    def known(self, batch: TokenBatch) -> Tensor:
        """`(batch, time)` True where the image and all behaviour are known; nothing else is trained on or encoded."""
        there = self._images(batch)[1]
        for name in self.features:
            there = there & self._behaviour(batch, name)[1]
        return there

    def _images(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Images `(batch, time, pixel)`, zero where there is none, and where there are `(batch, time)`.

        Raises:
            ValueError: where images are missing, of another size, or not one for each response.
        """
        images = batch.aligned.get(self.stimulus)
        wanted = (len(batch), batch.grid[1] if batch.grid else 0, self.height * self.width)
        if images is None or "neuron" not in batch.aligned or tuple(images.shape) != wanted:
            found = "none" if images is None else tuple(images.shape)
            raise ValueError(
                f"aligned[{self.stimulus!r}] is {found} and neurons are {'' if 'neuron' in batch.aligned else 'not '}"
                f"numbered; expected an image for each response, (batch, time, pixel) {wanted}, and aligned['neuron']: "
                "make the batch with the model's batcher from shards with one image per sample"
            )
        there = images.isfinite().all(-1)
        return torch.where(there[..., None], images, 0.0).to(self.readout.weight.dtype), there

    def _behaviour(self, batch: TokenBatch, name: str) -> tuple[Tensor, Tensor]:
        """`(batch, time, feature)`, zero where it is unknown, and where all of it is known `(batch, time)`."""
        x = batch.aligned.get(name)
        time = batch.grid[1] if batch.grid else 0
        if x is None or x.shape[1:] != (time, self.features[name]):
            if x is not None and not x.isnan().all():
                raise ValueError(
                    f"aligned[{name!r}] is {tuple(x.shape)}; expected (batch, {time}, {self.features[name]}): "
                    "ingest it with one sample per image, and build the model on such data"
                )
            unknown = self.readout.weight.new_zeros(len(batch), time, self.features[name])
            return unknown, torch.zeros_like(unknown[..., 0], dtype=torch.bool)
        return torch.nan_to_num(x).to(self.readout.weight.dtype), x.isfinite().all(-1)

    def _map(self, batch: TokenBatch) -> Tensor:
        """The core's map `(batch * time, dim, row, column)`."""
        images, _ = self._images(batch)
        found = [self._behaviour(batch, name)[0] for name in self.features]
        behaviour = torch.cat(found, -1) if found else images[..., :0]
        return self.core(images.flatten(0, 1).unflatten(1, (self.height, self.width)), behaviour.flatten(0, 1))

    def forward(self, batch: TokenBatch) -> Tensor:
        """Expected responses `(batch, channel, time)`, all above 0; those that are not `known` mean nothing."""
        seen = self._map(batch)
        time = batch.grid[1] if batch.grid else 0
        gaze = self._behaviour(batch, self.gaze)[0] if self.gaze else seen.new_zeros(len(batch), time, 2)
        number = batch.aligned["neuron"]
        places = self.readout.places(number, batch.place, gaze, draws.seeds(batch) if self.training else None)
        return functional.elu(self.readout(seen, number, places)) + 1

    def encode(self, batch: TokenBatch) -> Encoding:
        """The map of every image as tokens, masked where image or behaviour is unknown; pooled: their mean."""
        seen, there = self._map(batch), self.known(batch)
        tokens = rearrange(seen, "(b t) d r c -> b (t r c) d", b=len(batch))
        mask = there.repeat_interleave(seen.shape[2] * seen.shape[3], dim=1)
        return Encoding(tokens, masked_mean(tokens, mask), mask)


def build(
    facts: Facts, *, height: int = 36, stimulus: str = "stimulus", behaviour: Sequence[str] | None = None,
    gaze: str = "pupil_centre", patch: int = 8, stride: int = 1, dim: int = 155, depth: int = 4, heads: int = 4,
    hidden: int = 488, behaviour_hidden: int = 77, dropout: float = 0.2544, patch_dropout: float = 0.0229,
) -> V1T:  # fmt: skip
    """Build the network for the animals and images of a corpus.

    Args:
        height: rows of an image; facts only know its number of pixels.
        stimulus: the covariate that holds the images, row by row.
        behaviour: covariates that enter the core; all but the stimulus where None.
        gaze: the covariate with the pupil's centre, which moves where neurons read; not used where it is absent.
        patch, stride: pixels of a patch, and from one to the next. dim, depth, heads, hidden: the transformer.
        behaviour_hidden: width of the net for behaviour. dropout, patch_dropout: in blocks, and of patches.

    Raises:
        ValueError: for a corpus without neurons or images, or images that have not this height.
    """
    pixels = facts.aligned.get(stimulus, 0)
    if not facts.neurons or not pixels:
        raise ValueError(
            f"V1T needs neurons and images; this corpus has {len(facts.neurons)} neurons and the covariates "
            f"{sorted(facts.aligned) or 'none'}: name the one with the images as `stimulus`"
        )
    if pixels % height or min(height, pixels // height) < patch:
        raise ValueError(f"images of {pixels} pixels have no {height} rows of {patch} or more pixels; give `height`")
    names = sorted(set(facts.aligned) - {stimulus}) if behaviour is None else list(behaviour)
    if unknown := sorted(set(names) - set(facts.aligned)):
        raise ValueError(f"covariates {unknown} are not in this corpus; it has {sorted(facts.aligned)}")
    features = {name: facts.aligned[name] for name in names}
    core = Core(
        height, pixels // height, sum(features.values()), patch=patch, stride=stride, dim=dim, depth=depth, heads=heads,
        hidden=hidden, behaviour_hidden=behaviour_hidden, dropout=dropout, patch_dropout=patch_dropout,
    )  # fmt: skip
    return V1T(facts.neurons, height, pixels // height, features, stimulus, gaze, core)
