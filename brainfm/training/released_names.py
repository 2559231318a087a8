"""The released BrainOmni layout beside ours: one table of names for both directions, and rotary caches.

The released files hold a plain dictionary of tensors. Convolutions have the weight norm of older torch versions, and
the cache of rotary angles lies in the file as its cosines. Our networks compute the angles.
"""

from __future__ import annotations

import re
from functools import cache

import torch
from torch import Tensor, nn

from brainfm.codebooks.seanet import Widen

#: Released name, ours; where two rows fit, the first holds. `#` is a number; `*` is weight, bias or a weight of an LSTM
#: layer; `@` is a part of `NORMED`.
TOKENIZER = (
    ("sensor_embed.sensor_embedding_layer.weight", "sensors.kind.weight"),
    ("sensor_embed.pos_embedding_layer.#.*", "sensors.place.#.*"),
    ("sensor_embed.aggregate_mlp.layer.#.*", "sensors.mlp.#.*"),
    ("sensor_embed.norm.weight", "sensors.norm.weight"),
    ("encoder.neuros", "queries"),
    ("encoder.seanet_encoder.model.#.conv.conv.@", "analysis.#.conv.@"),
    ("encoder.seanet_encoder.model.#.block.1.conv.conv.@", "analysis.#.narrow.conv.@"),
    ("encoder.seanet_encoder.model.#.block.3.conv.conv.@", "analysis.#.back.conv.@"),
    ("encoder.seanet_encoder.model.#.shortcut.conv.conv.@", "analysis.#.shortcut.conv.@"),
    ("encoder.seanet_encoder.model.#.lstm.*", "analysis.#.lstm.*"),
    ("encoder.k_proj.*", "key.*"),
    ("encoder.backwardsolution.v.*", "value.*"),
    ("encoder.backwardsolution.proj.*", "out.*"),
    ("quantizer.rvq.layers.#._codebook.inited", "quantiser.stages.#.started"),
    ("quantizer.rvq.layers.#._codebook.cluster_size", "quantiser.stages.#.counts"),
    ("quantizer.rvq.layers.#._codebook.embed", "quantiser.stages.#.vectors"),
    ("quantizer.rvq.layers.#._codebook.embed_avg", "quantiser.stages.#.sums"),
    ("decoder.forwardsolution.kv.*", "source_key_value.*"),
    ("decoder.forwardsolution.proj.*", "channel_out.*"),
    ("decoder.seanet_decoder.model.#.convtr.convtr.@", "synthesis.#.conv.@"),
    ("decoder.seanet_decoder.model.#.conv.conv.@", "synthesis.#.conv.@"),
    ("decoder.seanet_decoder.model.#.block.1.conv.conv.@", "synthesis.#.narrow.conv.@"),
    ("decoder.seanet_decoder.model.#.block.3.conv.conv.@", "synthesis.#.back.conv.@"),
    ("decoder.seanet_decoder.model.#.shortcut.conv.conv.@", "synthesis.#.shortcut.conv.@"),
    ("decoder.seanet_decoder.model.#.lstm.*", "synthesis.#.lstm.*"),
)
#: The second stage; its tokenizer's names follow with a word in front.
SECOND_STAGE = (
    ("mask_token", "mask_vector"),
    ("projection.*", "project.*"),
    ("blocks.#.pre_attn_norm.weight", "blocks.#.norm_attention.weight"),
    ("blocks.#.time_attn.qkv.*", "blocks.#.along_time.qkv.*"),
    ("blocks.#.time_attn.proj.*", "blocks.#.along_time.out.*"),
    ("blocks.#.spatial_attn.qkv.*", "blocks.#.across_sources.qkv.*"),
    ("blocks.#.spatial_attn.proj.*", "blocks.#.across_sources.out.*"),
    ("blocks.#.pre_ff_norm.weight", "blocks.#.norm_mlp.weight"),
    ("blocks.#.ff.layer.#.*", "blocks.#.mlp.#.*"),
    ("predict_head.*", "head.*"),
    *((f"tokenizer.{theirs}", f"codebook.{ours}") for theirs, ours in TOKENIZER),
)
#: Parts of a convolution with weight norm: length, direction and bias.
NORMED = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
    "bias": "bias",
}
#: Keys that may be left unread or be absent: angles that our network computes.
UNREAD = ("blocks.#.time_attn.rope_embedding_layer.freqs", "blocks.#.time_attn.rope_embedding_layer.rotate")
#: Positions in the released cache of rotations.
POSITIONS = 240

_HOLES = {"#": r"(\d+)", "*": r"(weight|bias|(?:weight|bias)_(?:ih|hh)_l\d+)"}


def names(model: nn.Module) -> dict[str, str]:
    """Name of every weight of a BrainTokenizer or BrainOmni → its name in the released layout.

    Raises:
        ValueError: for a weight that the layout has no name for.
    """
    wide = [name for name, module in model.named_modules() if isinstance(module, Widen)]
    table = SECOND_STAGE if hasattr(model, "codebook") else TOKENIZER
    found = {}
    for name in model.state_dict():
        widening = any(name.startswith(f"{prefix}.") for prefix in wide)
        words = (_renamed(name, ours, theirs) for theirs, ours in table if widening or ".convtr." not in theirs)
        released = next(filter(None, words), None)
        if released is None:
            raise ValueError(f"the released layout has no place for the weight {name}; keep the model as it is")
        found[name] = released
    return found


def _renamed(name: str, ours: str, theirs: str) -> str | None:
    """The released name, where `name` follows the words `ours` of the table."""
    parts = {word: part for part, word in NORMED.items()}
    match = _pattern(ours).fullmatch(name)
    if match is None:
        return None
    groups = iter(match.groups())
    letters = (next(groups) if x in "#*" else parts[next(groups)] if x == "@" else x for x in theirs)
    return "".join(letters)


@cache
def _pattern(words: str) -> re.Pattern[str]:
    holes = {**_HOLES, "@": f"({'|'.join(map(re.escape, NORMED.values()))})"}
    return re.compile("".join(holes.get(letter) or re.escape(letter) for letter in words))


def is_unread(name: str) -> bool:
    """Is it on the list of released keys that may be left unread?"""
    return any(_pattern(words).fullmatch(name) for words in UNREAD)


def value_of(name: str, released: Tensor) -> Tensor:
    """A released tensor as our network keeps it; the mark of a started codebook is one boolean."""
    if name.endswith(".started"):
        return released.reshape(()).ne(0)
    return released.to(torch.float32).contiguous()


def released_value(name: str, ours: Tensor) -> Tensor:
    """The other way; `name` is ours."""
    ours = ours.detach().cpu()
    return ours.float().reshape(1) if name.endswith(".started") else ours.clone().contiguous()


def released_shape(name: str, ours: Tensor) -> tuple[int, ...]:
    """Shape that the weight `name` of ours has in a released file."""
    return (1,) if name.endswith(".started") else tuple(ours.shape)


def rotary(width: int) -> tuple[Tensor, Tensor]:
    """Frequencies `(pair,)` and cosines `(position, pair)` as a released file has them, for features of `width`."""
    share = torch.arange(0, width, 2, dtype=torch.float32) / width
    frequencies = torch.pow(10_000.0, share).reciprocal()
    angle = torch.outer(torch.arange(POSITIONS).float(), frequencies)
    return frequencies, torch.polar(torch.ones_like(angle), angle).real.contiguous()
