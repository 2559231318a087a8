"""A decode or transfer key: which windows train, which test, one evaluation of one model on them → a result file."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from brainfm import catalog, config
from brainfm.checksums import sha256
from brainfm.shards.read import Corpus, Windows, open_shards
from brainfm.training import checkpoint

BLOCKS = ("title", "windows", "evaluation")
SIDES = ("train", "test")


def evaluate(stage: str, key: str, seed: int, root: Path = Path()) -> dict[str, Any]:
    """Run configs/<stage>/<key>.yaml as the wiring says and write data/results/<stage>/<key>.json.

    What it took goes to data/results/cost/<stage>/<key>.json: times differ from run to run, and results must not.

    Raises:
        ConfigError: for an unknown key, block or keyword.
        FileNotFoundError: where the model or the shards are not there yet.
    """
    wired = config.wiring(stage, key, root / "configs")
    where = f"configs/{stage}/{key}.yaml"
    settings = config.stage_config(stage, key, BLOCKS, root / "configs")
    module = catalog.load("evaluations", wired["evaluation"])
    keywords = config.keywords(
        module.run, settings["evaluation"], f"{where}: evaluation", ("model", "train", "test", "seed")
    )
    folder = root / "data/models" / wired["model"]
    model = checkpoint.load(folder)
    corpus = open_shards(root / "data/shards" / wired["data"])
    train, test = select(corpus, settings["windows"], f"{where}: windows")
    print(
        f"{stage} {key}: {wired['evaluation']} of {wired['model']}, {len(train)} training and {len(test)} test windows"
    )
    started = time.perf_counter()
    result = module.run(model, train, test, seed=seed, **keywords)
    cost = {"seconds": time.perf_counter() - started, "methods": result.pop("cost", {})}
    recordings = [w.recordings[r] for w in (train, test) for r in set(w.recording.tolist())]
    result |= {
        "stage": stage, "key": key, "task": settings["title"] or key, "model": wired["model"],
        "model_checksum": sha256(folder / checkpoint.WEIGHTS),
        "evaluation": wired["evaluation"], "dataset": ", ".join(sorted({r.dataset for r in recordings})),
        "simulated": any(r.simulated for r in recordings),
        "seed": seed,
        "windows": {"train": train.intervals(), "test": test.intervals(), **result.get("windows", {})},
        "checksums": {r.id: r.checksum for r in recordings},
    }  # fmt: skip
    write_result(root / "data/results" / stage / f"{key}.json", result)
    write_result(root / "data/results/cost" / stage / f"{key}.json", cost)
    print(f"{stage} {key}: {cost['seconds']:.0f} s")
    return result


def select(corpus: Corpus, given: dict[str, Any], where: str) -> tuple[Windows, Windows]:
    """Training and test windows from a `windows:` block.

    `train:` and `test:` choose recordings by words of their headers, or are lists of such choices, joined; the rest
    says how they are cut: `trials:` with `tmin_s`, `tmax_s`, `labels` and `align` (as in `Corpus.trials`), or
    `length_s` with `stride_s`.
    """
    config.check_blocks(given, (*SIDES, "trials", "length_s", "stride_s"), where)
    missing = [side for side in SIDES if side not in given]
    if missing or ("trials" in given) == ("length_s" in given):
        raise config.ConfigError(
            f"{where}: expected train:, test: and either trials: or length_s:; got {', '.join(given)}"
        )
    parts = [_chosen(corpus, given[side] or {}) for side in SIDES]
    if "trials" in given:
        cut = given["trials"]
        config.check_blocks(cut, ("tmin_s", "tmax_s", "labels", "align"), f"{where}: trials")
        if not {"tmin_s", "tmax_s"} <= set(cut):
            raise config.ConfigError(
                f"{where}: trials: expected tmin_s and tmax_s (seconds); got {', '.join(cut) or 'none'}"
            )
        found = [p.trials(cut["tmin_s"], cut["tmax_s"], cut.get("labels"), cut.get("align")) for p in parts]
    else:
        found = [p.windows(given["length_s"], given.get("stride_s")) for p in parts]
    return found[0], found[1]


def _chosen(corpus: Corpus, side: dict[str, Any] | list[dict[str, Any]]) -> Corpus:
    """The recordings of one choice, or of any of several, in the corpus's order."""
    choices = side if isinstance(side, list) else [side]
    found = {r.id for words in choices for r in corpus.where(**words).recordings}
    return replace(corpus, recordings=tuple(r for r in corpus.recordings if r.id in found))


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result in one step; numbers that are not finite become null, as JSON wants."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(_plain(result), indent=1, allow_nan=False) + "\n")
    os.replace(part, path)


def _plain(value: Any) -> Any:
    """numpy values → Python's, NaN and infinities → None."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
