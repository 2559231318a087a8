"""Compare an imported network with numbers that the published program gave for the same weights.

The arrays are those of a golden file: an input as the network takes it (referenced and scaled, positions centred) and
what each step made of it. Windows are cut here; nothing else of our preprocessing is run.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from brainfm import catalog
from brainfm.codebooks.braintokenizer import BrainTokenizer, Sources, Windows, z_score
from brainfm.models.brainomni import ROPES, BrainOmni
from brainfm.training import checkpoint
from brainfm.training.checkpoint import Pretrained
from brainfm.training.released_config import overlap_of

#: Floats may differ by this much; codes not at all.
BOUND = 1e-4
#: Overlap of the windows behind `features_overlap` and `indices_overlap`.
OVERLAP = 0.25
INPUTS = {"x": "(batch, channel, time)", "pos": "(batch, channel, 6)", "sensor_type": "(batch, channel)"}
CODES = ("indices_overlap", "indices")
ENCODINGS = tuple(f"encode_{rope}" for rope in ROPES)
ARRAYS = ("features_overlap", "features", "target", "reconstruction", *CODES, *ENCODINGS)


def check(pretrained: Pretrained, path: Path) -> dict[str, Any]:
    """Run the network on the input of a golden file and compare every array in it; both rotary policies count.

    Args:
        pretrained: an imported BrainOmni or BrainTokenizer; the latter skips the encodings of the second stage.
        path: `.npz` with the arrays `INPUTS` and at least one of `ARRAYS`.

    Returns:
        `codes_equal` (None where the file has no codes), `max_difference` of each array (None where its shape is
        another or a number is not finite), `bound`, and `passed`.

    Raises:
        ValueError: for a damaged file, an array with a name that is not known, or input of a wrong shape.
    """
    wanted = read(path)
    tokenizer: BrainTokenizer = getattr(pretrained.model, "codebook", pretrained.model)
    x, sensors = _input(wanted, tokenizer, path)
    with torch.inference_mode(), checkpoint.evaluating(pretrained.model):
        found = _tokenized(tokenizer, x, sensors, _overlap(pretrained, wanted))
        if pretrained.config["name"] == "brainomni" and not wanted.keys().isdisjoint(ENCODINGS):
            found |= _encoded(pretrained, x, sensors)
    compared = [name for name in ARRAYS if name in wanted and name in found]
    if not compared:
        raise ValueError(f"{path} has nothing to compare with; expected one of {', '.join(ARRAYS)}")
    differences = {name: difference(found[name].numpy(), wanted[name]) for name in compared}
    codes = [differences[name] == 0 for name in CODES if name in compared]
    passed = all(d is not None and d <= BOUND for d in differences.values()) and all(codes)
    return {
        "codes_equal": all(codes) if codes else None, "max_difference": differences, "bound": BOUND, "passed": passed,
    }  # fmt: skip


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a golden file; see `check`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("one array, not several by name")
            found = {name: file[name] for name in file.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a whole .npz of plain numbers ({error}); copy it again") from error
    known = [*INPUTS, *ARRAYS]
    for name, array in found.items():
        if name not in known:
            raise ValueError(f"{path}: nothing is known of an array {name!r}; {catalog.nearest(name, known)}")
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{path}: {name} holds {array.dtype}; expected numbers")
    missing = [name for name in INPUTS if name not in found]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}: without the input nothing can be compared")
    return found


def _input(wanted: dict[str, np.ndarray], tokenizer: BrainTokenizer, path: Path) -> tuple[Tensor, Tensor]:
    """Signal `(batch, channel, time)` and embeddings of its sensors."""
    x, pos, types = (wanted[name] for name in INPUTS)
    shapes = {
        "x": x.ndim == 3 and x.size > 0,
        "pos": pos.shape == (*x.shape[:2], 6),
        "sensor_type": types.shape == x.shape[:2],
    }
    for name, words in INPUTS.items():
        if not (shapes[name] and np.isfinite(wanted[name]).all()):
            raise ValueError(f"{path}: {name} is {wanted[name].shape}; expected finite numbers of shape {words}")
    rows = tokenizer.sensors.kind.num_embeddings
    if types.min() < 0 or types.max() >= rows:
        raise ValueError(f"{path}: sensor_type runs from {types.min()} to {types.max()}; expected 0 to {rows - 1}")
    geometry, row = torch.from_numpy(pos.astype(np.float32)), torch.from_numpy(types.astype(np.int64))
    with torch.inference_mode():
        return torch.from_numpy(x.astype(np.float32)), tokenizer.sensors.embed(geometry, row)


def _overlap(pretrained: Pretrained, wanted: dict[str, np.ndarray]) -> float:
    """`OVERLAP`, or the model's own where the file was made with that, which the number of windows tells."""
    model = pretrained.model
    ours = [overlap_of(model.patch, OVERLAP), getattr(model, "overlap", 0.0)]
    tokenizer: BrainTokenizer = getattr(model, "codebook", model)
    arrays = [wanted[name] for name in ("features_overlap", "indices_overlap") if name in wanted]
    made = next((array.shape[2] for array in arrays if array.ndim == 4), 0)
    counts = [tokenizer.cut(torch.from_numpy(wanted["x"][:1, :1]), o).shape[2] if o else 0 for o in ours]
    fitting = [o for o, n in zip(ours, counts) if n * tokenizer.tokens_per_window == made]
    return fitting[0] if fitting else ours[0]


def _windows(tokenizer: BrainTokenizer, x: Tensor, overlap: float) -> Windows:
    """Cut; a signal shorter than one window is filled up with zeros, as the published program does."""
    x = functional.pad(x, (0, max(0, tokenizer.patch - x.shape[-1])))
    signal = tokenizer.cut(x, overlap)
    return Windows(signal, torch.ones(signal.shape[:3], dtype=torch.bool))


def _sources(tokenizer: BrainTokenizer, windows: Windows, sensors: Tensor) -> Sources:
    return tokenizer.quantise(tokenizer.compress(windows, sensors), windows.mask.any(dim=1))


def _tokenized(tokenizer: BrainTokenizer, x: Tensor, sensors: Tensor, overlap: float) -> dict[str, Tensor]:
    windows = _windows(tokenizer, x, 0.0)
    apart, shared = (_sources(tokenizer, _windows(tokenizer, x, o), sensors) for o in (0.0, overlap))
    return {
        "features_overlap": shared.features, "indices_overlap": shared.codes,
        "features": apart.features, "indices": apart.codes,
        "target": z_score(windows), "reconstruction": tokenizer.expand(apart.features, sensors, windows.mask),
    }  # fmt: skip


def _encoded(pretrained: Pretrained, x: Tensor, sensors: Tensor) -> dict[str, Tensor]:
    """What the last block but one gives under each rotary policy, with unit length."""
    found, model = {}, pretrained.model
    sources = _sources(model.codebook, _windows(model.codebook, x, model.overlap), sensors)
    for rope in ROPES:
        config = {**pretrained.config, "keywords": {**pretrained.config["keywords"], "rope": rope}}
        with torch.random.fork_rng(devices=[]):
            turned: BrainOmni = checkpoint.build(config, pretrained.facts).eval()  # type: ignore[assignment]
        turned.load_state_dict(model.state_dict())
        y = turned.embed(sources.features)
        for block in turned.blocks[:-1]:
            y = block(y, sources.mask)
        found[f"encode_{rope}"] = functional.normalize(y, dim=-1)
    return found


def difference(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """The largest difference of two arrays; None where shapes differ or a number is not finite."""
    if ours.shape != theirs.shape or not ours.size:
        return None
    largest = float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max())
    return largest if np.isfinite(largest) else None
