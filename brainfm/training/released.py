"""Published BrainOmni checkpoints into our model folders, and our models out into the published layout.

Paper: Xiao et al. 2025, BrainOmni, arXiv:2505.18185. A folder of the release holds `model_cfg.json` with the sizes and
`BrainOmni.pt` (both stages) or `BrainTokenizer.pt` (the first alone). Every weight must find its place; only the keys
of `released_names.UNREAD` may be left unread. Nothing but tensors is unpickled.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brainfm import catalog
from brainfm.checksums import sha256
from brainfm.models.brainomni import ROPES
from brainfm.training import checkpoint, hub, released_config, released_names
from brainfm.training.checkpoint import CheckpointError, Pretrained
from brainfm.training.golden import check

SYSTEMS = ("brainomni",)
SECOND_STAGE, TOKENIZER = "BrainOmni.pt", "BrainTokenizer.pt"
FILES = (released_config.FILE, SECOND_STAGE, TOKENIZER)
RELEASE = "https://huggingface.co/OpenTSLab/BrainOmni"
#: sha256 of files of the public release → which file that is.
KNOWN = {
    "62c67ba6a84ea0625e67a3b5e7463fe3930bfee88a612a225e9062a052542ffc": "tiny/BrainOmni.pt at revision 9a4d3c70",
    "4b994b38f1a8dccc8136f2b837a8ad2d3ebb028a1af0c527f9e0902a1a5c252e": "tiny/model_cfg.json at revision 9a4d3c70",
}
#: What torch and zipfile raise for files that are not whole or not what they seem; OSError for a place past their end.
DAMAGED = (
    RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError, OverflowError,
    OSError, NotImplementedError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def import_weights(system: str, folder: str | Path, rope: str = "regenerated") -> Pretrained:
    """Read a released checkpoint.

    Args:
        system: one of `SYSTEMS`.
        folder: with `model_cfg.json` and weights; where both files of weights are there, `BrainOmni.pt` is read.
        rope: of the second stage, one of `ROPES`.

    Returns:
        The network with a card that says where it is from; `card["released"]["matched"]` has the share of weights.

    Raises:
        FileNotFoundError: where a file is missing.
        CheckpointError: where a file is damaged or holds code, a field of the sizes is unknown, missing or impossible,
            or weights are missing, left over, of another shape or not finite: each is named.
    """
    _known_system(system)
    if rope not in ROPES:
        raise ValueError(f"rope {rope!r} is not known; {catalog.nearest(rope, list(ROPES))}")
    folder = Path(folder)
    path = next((folder / name for name in (SECOND_STAGE, TOKENIZER) if (folder / name).is_file()), None)
    if path is None or not (folder / released_config.FILE).is_file():
        lacks = f"{SECOND_STAGE} or {TOKENIZER}" if path is None else released_config.FILE
        raise FileNotFoundError(f"{folder} has no {lacks}; give a folder of the release, for example its tiny/")
    second_stage = path.name == SECOND_STAGE
    found = released_config.read(folder / released_config.FILE, second_stage)
    weights = read_tensors(path)
    config = released_config.described(found, weights, rope if second_stage else None, str(path))
    model = _filled(config, weights, path)
    hashes = {p.name: sha256(p) for p in (folder / released_config.FILE, path)}
    release = {name: KNOWN[digest] for name, digest in hashes.items() if digest in KNOWN}
    matched = len(model.state_dict())
    return Pretrained(model.eval(), config, released_config.FACTS, {
        "title": path.stem, "parameters": checkpoint.parameters(model),
        "released": {
            "system": system, "source": str(folder), "sha256": hashes, "known_release": release,
            "is_known_release": len(release) == len(hashes), "rope": rope if second_stage else None,
            "matched": {"weights": matched, "of": matched}, "model_cfg": found,
        },
        "licence": f"MIT, as {RELEASE} states" if len(release) == len(hashes) else
        f"unknown: the public release ({RELEASE}) states MIT, but these files are none that we know of it",
        "caution": "what this model saw in training is known from the paper alone: no audit can tell it from test data",
    })  # fmt: skip


def bring(system: str, folder: str | Path, out: Path, rope: str = "regenerated", golden: Path | None = None) -> bool:
    """Read a released checkpoint, compare it with golden numbers if there are any, and save it: `import-weights`.

    Args:
        system, rope: as in `import_weights`.
        folder: also an address on the hub, `hf://owner/name[@revision][/subfolder]`.
        out: the model's folder. golden: see `golden.check`; its verdict is one line of JSON on standard output.

    Returns:
        Whether the model was saved: not where the comparison failed.

    Raises:
        ValueError: where `out` holds something else than a model, besides what `import_weights` raises.
    """
    said = sys.stderr if golden else sys.stdout
    if out.exists() and not (out.is_dir() and ((out / checkpoint.CONFIG).exists() or not any(out.iterdir()))):
        raise ValueError(f"{out} is there and is no model; give --out a folder that does not exist yet")
    here = hub.folder_of(folder, FILES, needed=()) if hub.is_address(folder) else folder
    pretrained = import_weights(system, here, rope)
    about = pretrained.card["released"]
    about["source"] = str(folder)
    known = "; ".join(f"{name} is {what}" for name, what in about["known_release"].items())
    matched = about["matched"]
    print(f"{pretrained.config['name']}: matched {matched['weights']} of {matched['of']} weights, "
          f"{pretrained.card['parameters']:,} parameters", file=said)  # fmt: skip
    print(f"known release: {known or 'no, none of the files has a checksum that we know'}", file=said)
    if golden:
        verdict = check(pretrained, golden)
        print(json.dumps(verdict))
        if not verdict["passed"]:
            print(f"{golden}: the numbers do not come out; nothing was written to {out}", file=sys.stderr)
            return False
        about["check"] = {"sha256": sha256(golden), **verdict}
    pretrained.card["title"] = out.name
    print(f"model: {pretrained.save(out)}", file=said)
    return True


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pt` file by name; a file that holds anything else is refused.

    Raises:
        CheckpointError: for a damaged file and one that would run code.
    """
    try:
        _whole(path)
        found = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or would run code when read ({str(error).splitlines()[0]}); it is not opened: get the "
            "file from its source again"
        ) from error
    except DAMAGED as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path} is damaged ({said[0]}); copy it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}; expected tensors by name (a state dict)")
    wrong = [k for k, v in found.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if wrong or not found:
        raise CheckpointError(
            f"{path} holds {'nothing' if not found else f'something else than a tensor at {wrong[0]!r}'}; expected "
            "tensors by name (a state dict)"
        )
    return dict(found)


def _whole(path: Path) -> None:
    """Compare every part of the archive with the checksum beside it, which torch does not; older files have none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if (bad := archive.testzip()) is not None:
                raise ValueError(f"{bad} does not match its checksum")


def _known_system(name: str) -> None:
    if name not in SYSTEMS:
        raise ValueError(f"no released system named {name!r}; {catalog.nearest(name, list(SYSTEMS))}")


def _filled(config: dict[str, Any], weights: dict[str, Tensor], path: Path) -> nn.Module:
    """Our network with the released weights; compared before any memory is taken."""
    with torch.device("meta"):
        plan = checkpoint.build(config, released_config.FACTS)
    names = released_names.names(plan)
    _compare(plan, names, weights, path)
    with torch.random.fork_rng(devices=[]):
        model = checkpoint.build(config, released_config.FACTS)
    model.load_state_dict({n: released_names.value_of(n, weights[released]) for n, released in names.items()})
    return model


def _compare(plan: nn.Module, names: dict[str, str], weights: dict[str, Tensor], path: Path) -> None:
    """Refuse weights that do not fill the network exactly, naming the first of each kind of difference."""
    released = {names[n]: released_names.released_shape(n, tensor) for n, tensor in plan.state_dict().items()}
    there = {k: tuple(weights[k].shape) for k in released if k in weights}
    unread = released_names.is_unread if hasattr(plan, "codebook") else lambda key: False
    wrong = {
        "missing": [k for k in released if k not in weights],
        "left over": [k for k in weights if k not in released and not unread(k)],
        "of another shape": [f"{k} {s}, not {released[k]}" for k, s in there.items() if s != released[k]],
        "no plain real numbers": [k for k in there if not _is_plain(weights[k])],
    }
    if any(wrong.values()):
        bad = sum(len(wrong[k]) for k in ("missing", "of another shape"))
        said = "; ".join(f"{len(v)} {what} ({', '.join(v[:3])})" for what, v in wrong.items() if v)
        raise CheckpointError(
            f"{path}: {len(released) - bad} of {len(released)} weights match; {said}. Use the {released_config.FILE} "
            "that came with the file"
        )
    spoilt = [k for k in there if not bool(weights[k].isfinite().all())]
    if spoilt:
        raise CheckpointError(f"{path}: NaN or infinity in {', '.join(spoilt[:3])}; copy the file again")
    for key in weights:
        if unread(key) and key.endswith(".freqs"):
            _same_frequencies(key, weights[key], plan.blocks[0].along_time.out.in_features, path)  # type: ignore[index, union-attr]


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.is_floating_point() and not tensor.is_quantized


def _same_frequencies(key: str, given: Tensor, width: int, path: Path) -> None:
    """Our angles are computed: refuse a file whose rotary frequencies are others. bfloat16 rounds by half a percent."""
    ours, _ = released_names.rotary(width)
    if not (given.shape == ours.shape and _is_plain(given) and torch.allclose(given.float(), ours, rtol=1e-2, atol=0)):
        raise CheckpointError(f"{path}: {key} has other rotary frequencies than base 10,000 over {width} features")


def export_weights(pretrained: Pretrained, folder: str | Path, layout: str = "brainomni") -> list[Path]:
    """Write a model in the released layout.

    Settings of training alone that the layout has no field for (decay and threshold of codebooks), the rotary policy
    and the card stay behind.

    Args:
        pretrained: BrainOmni or BrainTokenizer of 256 samples per second, its tokenizer built with `released=True`.
        folder: made where it is absent; files of that name are replaced.
        layout: one of `SYSTEMS`.

    Returns:
        The files written.

    Raises:
        ValueError: for a model that the layout cannot express, or a folder with weights of the other kind.
    """
    _known_system(layout)
    fields, model = released_config.released_fields(pretrained), pretrained.model
    second_stage = pretrained.config["name"] == "brainomni"
    name, other = (SECOND_STAGE, TOKENIZER) if second_stage else (TOKENIZER, SECOND_STAGE)
    folder = Path(folder)
    if (folder / other).exists():
        raise ValueError(f"{folder} has a {other}, which needs its own {released_config.FILE}; give another")
    state = model.state_dict()
    tensors = {theirs: released_names.released_value(n, state[n]) for n, theirs in released_names.names(model).items()}
    for block in range(len(model.blocks) if second_stage else 0):
        cached = zip(released_names.UNREAD, released_names.rotary(model.dim // 2))
        tensors.update({words.replace("#", str(block)): tensor for words, tensor in cached})
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / f".{file}.part" for file in (released_config.FILE, name)]
    parts[0].write_text(json.dumps(fields, indent=1) + "\n")
    torch.save(tensors, parts[1])
    written = [folder / released_config.FILE, folder / name]
    for part, path in zip(parts, written):
        os.replace(part, path)
    return written
