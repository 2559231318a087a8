"""`model_cfg.json` of a released BrainOmni checkpoint ↔ the keywords of our networks, every field checked."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from brainfm import catalog
from brainfm.codebooks import braintokenizer
from brainfm.codebooks.sensors import RELEASED_TYPES
from brainfm.models import brainomni
from brainfm.recording import KINDS
from brainfm.training.checkpoint import CheckpointError, Pretrained

FILE = "model_cfg.json"
#: Samples per second of every released checkpoint; the layout has no field for it.
SFREQ_HZ = 256.0
#: What a released tokenizer reads: its third type of sensor covers planar and axial gradiometers.
FACTS = replace(braintokenizer.FACTS, kinds=tuple(sorted(k for k, row in zip(KINDS, RELEASED_TYPES) if row >= 0)))
#: No whole number of a network of this kind is larger.
LARGEST = 1_000_000


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _are_ratios(value: Any) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= 16 and all(map(_is_count, value))


#: What a field may hold, in words and as a test.
COUNT: tuple[str, Callable[[Any], bool]] = (f"a whole number from 1 to {LARGEST:,}", _is_count)
SHARE: tuple[str, Callable[[Any], bool]] = ("a number from 0 to below 1", _is_share)
TOKENIZER = {
    "window_length": COUNT,
    "n_filters": COUNT,
    "ratios": ("a list of 1 to 16 whole numbers from 1", _are_ratios),
    "kernel_size": COUNT,
    "last_kernel_size": COUNT,
    "n_dim": COUNT,
    "n_neuro": COUNT,
    "n_head": COUNT,
    "dropout": SHARE,
    "codebook_dim": COUNT,
    "codebook_size": COUNT,
    "num_quantizers": COUNT,
    "rotation_trick": ("true or false", lambda x: isinstance(x, bool)),
    "quantize_optimize_method": ('"ema", the only way that our codebooks learn', lambda x: x == "ema"),
}  # fmt: skip
SECOND_STAGE = {
    "overlap_ratio": SHARE,
    "lm_dim": COUNT,
    "lm_head": COUNT,
    "lm_depth": COUNT,
    "lm_dropout": SHARE,
    "mask_ratio": ("a number from 0 to 1", lambda x: _is_share(x) or (x == 1 and not isinstance(x, bool))),
    "num_quantizers_used": COUNT,
}


def read(path: Path, second_stage: bool) -> dict[str, Any]:
    """The fields of the file; those of the second stage may be absent beside a tokenizer alone.

    Raises:
        CheckpointError: for a damaged file and for a field that is unknown, missing or impossible; it is named.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}; expected an object with the sizes of the model")
    known = {**TOKENIZER, **SECOND_STAGE}
    for key in found:
        if key not in known:
            raise CheckpointError(f"{path}: unknown key {key!r}; {catalog.nearest(key, list(known))}")
    missing = [key for key in (known if second_stage else TOKENIZER) if key not in found]
    if missing:
        raise CheckpointError(f"{path}: {', '.join(missing)} missing; copy the file that came with the weights")
    for key, value in found.items():
        words, possible = known[key]
        if not possible(value):
            raise CheckpointError(f"{path}: {key} is {value!r}; expected {words}")
    _agree(path, found, second_stage)
    return found


def _agree(path: Path, found: dict[str, Any], second_stage: bool) -> None:
    """Refuse fields that do not go together in our networks."""
    per_token, dim, window = math.prod(found["ratios"]), found["n_dim"], found["window_length"]
    rules = [
        (window % per_token == 0, "window_length", f"a multiple of {per_token}, the product of ratios"),
        (dim % 2 == 0 and dim % found["n_head"] == 0, "n_dim", f"an even multiple of n_head, {found['n_head']}"),
        (found["codebook_dim"] == dim, "codebook_dim", f"n_dim, {dim}: our codebooks are as wide as the sources"),
    ]
    if second_stage:
        width, heads, step = found["lm_dim"], found["lm_head"], step_of(window, found["overlap_ratio"])
        rules += [
            (heads % 2 == 0, "lm_head", "an even number: half for time, half for sources"),
            (width % heads == 0 and width % 4 == 0, "lm_dim", f"a multiple of 4 and of lm_head, {heads}"),
            (found["num_quantizers_used"] <= found["num_quantizers"], "num_quantizers_used",
             f"num_quantizers, {found['num_quantizers']}, at most"),
            (step >= 1, "overlap_ratio", f"less: windows of {window} samples would not move on"),
        ]  # fmt: skip
    for holds, key, words in rules:
        if not holds:
            raise CheckpointError(f"{path}: {key} is {found[key]!r}; expected {words}")


def step_of(window: int, ratio: float) -> int:
    """Samples from one window to the next in a released model, which cuts fractions off."""
    return int(window * (1 - ratio))


def overlap_of(window: int, ratio: float) -> float:
    """Our `overlap` that moves the window by as many samples: `ratio` itself wherever that is so."""
    step = step_of(window, ratio)
    return ratio if window - round(ratio * window) == step else 1 - step / window


def ratio_of(window: int, overlap: float) -> float:
    """The other way."""
    step = window - round(overlap * window)
    return overlap if step_of(window, overlap) == step else max(0.0, 1 - step / window - 1e-9)


def described(found: dict[str, Any], weights: Iterable[str], rope: str | None, where: str) -> dict[str, Any]:
    """Configuration of our network for the fields `found`.

    Args:
        found: as from `read`.
        weights: names of the weights, which tell the number of LSTM layers.
        rope: of the second stage; None for a tokenizer alone.
        where: the file of the weights, for errors.

    Raises:
        CheckpointError: where depths of the weights are not those of `found`.
    """
    keys = list(weights)
    prefix = "" if rope is None else r"tokenizer\."
    counted = {"num_quantizers": _layers(keys, prefix + r"quantizer\.rvq\.layers\.(\d+)\..*")}
    if rope is not None:
        counted["lm_depth"] = _layers(keys, r"blocks\.(\d+)\..*")
    for key, count in counted.items():
        if count != found[key]:
            raise CheckpointError(f"{where} holds {count} layers of what {FILE} calls {key} and sets to {found[key]}")
    lstm = _layers(keys, prefix + r"encoder\.seanet_encoder\.model\.\d+\.lstm\.weight_ih_l(\d+)")
    tokenizer = {
        "window_s": found["window_length"] / SFREQ_HZ, "filters": found["n_filters"], "ratios": found["ratios"][::-1],
        "dim": found["n_dim"], "heads": found["n_head"], "sources": found["n_neuro"], "depth": found["num_quantizers"],
        "codes": found["codebook_size"], "lstm_layers": max(lstm, 1), "dropout": found["dropout"], "released": True,
        "kernel": found["kernel_size"], "last_kernel": found["last_kernel_size"],
    }  # fmt: skip
    codebook = {"kind": "codebooks", "name": "braintokenizer", "keywords": tokenizer}
    if rope is None:
        return codebook
    keywords = {
        "dim": found["lm_dim"], "heads": found["lm_head"], "blocks": found["lm_depth"], "dropout": found["lm_dropout"],
        "overlap": overlap_of(found["window_length"], found["overlap_ratio"]), "rope": rope,
        "predicted": found["num_quantizers_used"],
    }  # fmt: skip
    codebook["facts"] = asdict(FACTS)
    return {"kind": "models", "name": "brainomni", "keywords": keywords, "codebook": codebook}


def _layers(keys: list[str], pattern: str) -> int:
    """One more than the largest number that the pattern finds; 0 where it finds none."""
    return max((int(m[1]) + 1 for key in keys if (m := re.fullmatch(pattern, key))), default=0)


def released_fields(pretrained: Pretrained) -> dict[str, Any]:
    """The fields of `model_cfg.json` for a model of ours.

    Raises:
        ValueError: for a network that the released layout cannot express.
    """
    config, facts = pretrained.config, pretrained.facts
    second_stage = config["name"] == "brainomni"
    if not second_stage and config["name"] != "braintokenizer":
        raise ValueError(f"the released layout holds brainomni or braintokenizer, not {config['name']}")
    inner = config["codebook"] if second_stage else config
    said = _settled(braintokenizer.build, inner["keywords"])
    sfreq = inner["facts"]["sfreq"] if second_stage else facts.sfreq
    rules = (
        (said["released"], "its tokenizer has more types of sensors and a vector for unknown positions; the layout "
         "takes those built with `released: true`"),
        (sfreq == SFREQ_HZ, f"it reads {sfreq:g} samples per second; the layout means {SFREQ_HZ:g} and cannot say so"),
        (said["lstm_layers"] >= 1, "it has no LSTM; the layout has one on either side"),
    )  # fmt: skip
    for holds, words in rules:
        if not holds:
            raise ValueError(f"this {config['name']} cannot be written in the released layout: {words}")
    window = (pretrained.model.codebook if second_stage else pretrained.model).patch
    kept = (pretrained.card.get("released") or {}).get("model_cfg") or {}
    fields = {
        "window_length": window, "n_filters": said["filters"], "ratios": list(said["ratios"])[::-1],
        "kernel_size": said["kernel"], "last_kernel_size": said["last_kernel"], "n_dim": said["dim"],
        "n_neuro": said["sources"], "n_head": said["heads"], "dropout": said["dropout"], "codebook_dim": said["dim"],
        "codebook_size": said["codes"], "num_quantizers": said["depth"],
        "rotation_trick": kept.get("rotation_trick", True), "quantize_optimize_method": "ema",
    }  # fmt: skip
    if not second_stage:
        return fields
    outer = _settled(brainomni.build, config["keywords"])
    return fields | {
        "overlap_ratio": ratio_of(window, outer["overlap"]), "lm_dim": outer["dim"], "lm_head": outer["heads"],
        "lm_depth": outer["blocks"], "lm_dropout": outer["dropout"], "mask_ratio": kept.get("mask_ratio", 0.5),
        "num_quantizers_used": pretrained.model.predicted,
    }  # fmt: skip


def _settled(make: Callable[..., Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """All keywords of a `build` with the values that hold, given or not."""
    defaults = {n: p.default for n, p in inspect.signature(make).parameters.items() if p.default is not p.empty}
    return {**defaults, **keywords}
