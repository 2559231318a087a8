"""Train a network on one side of a corpus and save it with a card that says what it saw."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from brainfm import catalog, checksums, config
from brainfm.shards.codes import CodeCorpus, StoredCodes, open_codes
from brainfm.shards.read import Corpus, Windows, open_shards
from brainfm.shards.stored import rate
from brainfm.training import augment, checkpoint
from brainfm.training.batches import WindowDataset, facts_of
from brainfm.training.checkpoint import Pretrained
from brainfm.training.codes import TOKENIZER, CodeDataset, check_codes, windows_in
from brainfm.training.data import ShardData, parts
from brainfm.training.pretraining import Settings, first_rank, train

BLOCKS = ("model", "objectives", "training", "windows")

#: Code that a run follows from, beside its network's own file: a killed run does not go on where it has changed. The
#: same that dvc.yaml declares, see `tests/test_architecture.py`.
CODE = (
    "codebooks", "layers", "objectives", "training", "shards", "hdf.py", "tokens.py", "recording.py", "config.py",
    "catalog.py", "checksums.py",
)  # fmt: skip


def sides(corpus: Corpus | CodeCorpus, length_s: float, stride_s: float | None = None, shortest_s: float | None = None,
          datasets: list[str] | None = None, sessions: list[str] | None = None,
          devices: list[str] | None = None) -> tuple[Windows, Windows]:  # fmt: skip
    """Training and validation windows of a corpus, by the split that ingest decided.

    Without validation recordings the last tenth of the training windows of each recording stands in, cut off in time.

    Args:
        corpus: recordings of one or more datasets, or their codes.
        length_s, stride_s, shortest_s: as in `Corpus.windows`; codes come in whole windows of their tokenizer.
        datasets, sessions, devices: only these.
    """
    corpus = corpus.where(**chosen(datasets, sessions, devices))
    windows = _cut(corpus.where(split="train"), length_s, stride_s, shortest_s)
    if any(r.split == "val" for r in corpus.recordings):
        return windows, _cut(corpus.where(split="val"), length_s, stride_s, shortest_s)
    return cut_in_time(windows)


def chosen(
    datasets: list[str] | None = None, sessions: list[str] | None = None, devices: list[str] | None = None
) -> dict[str, list[str]]:
    """Words for `Corpus.where`; what is not given is not asked."""
    return {k: v for k, v in (("dataset", datasets), ("session", sessions), ("device", devices)) if v}


def _cut(corpus: Corpus | CodeCorpus, length_s: float, stride_s: float | None, shortest_s: float | None) -> Windows:
    if isinstance(corpus, Corpus):
        return corpus.windows(length_s, stride_s, shortest_s)
    one = corpus.recordings[0]
    count = windows_in(length_s * one.sfreq, one.patch, one.stride)
    return corpus.windows(count, max(1, round((stride_s or length_s) * one.sfreq / one.stride)))


def cut_in_time(windows: Windows, share: float = 0.1) -> tuple[Windows, Windows]:
    """Split windows at a time in each recording: the last `share` validates; windows across the cut are dropped.

    So are training windows that share raw samples with validation through the filters: those that end less than twice
    the recording's `reach_s` before it in the same segment, for each segment was filtered by itself.
    """
    stop = windows.start + windows.samples
    training, later = (np.zeros(len(windows), bool) for _ in range(2))
    for r in np.unique(windows.recording):
        rows, stored = np.flatnonzero(windows.recording == r), windows.recordings[r]
        cut = np.quantile(stop[rows], 1 - share)
        later[rows] = windows.start[rows] >= cut
        first = windows.start[rows[later[rows]]].min(initial=stop[rows].max())
        begin = max((int(a) for a, _ in stored.segments if a <= first), default=0)
        gap = np.ceil(2 * stored.reach_s * rate(stored) - 1e-6)
        apart = (stop[rows] <= first - gap) | (windows.start[rows] < begin)
        training[rows] = (stop[rows] <= cut) & (apart | ~later[rows].any())
    return windows.take(training), windows.take(later)


def train_and_save(
    kind: str, name: str, data: Path, settings: dict[str, Any], out: Path, work: Path, seed: int, where: str,
    figures: Callable[[Pretrained, Windows], list] | None = None,
) -> Pretrained:  # fmt: skip
    """Build, train and save one network.

    Args:
        kind, name: folder and file of the catalogue, for example "models", "luna".
        data: a corpus of shards, or a folder of codes with their tokenizer.
        settings: the blocks `BLOCKS` of the configuration. out: the model's folder.
        work: checkpoints of a run under way.
        seed: of weights and steps. where: the configuration's file, for errors.
        figures: makes figures for the card from the network and validation windows.

    Returns:
        The trained network. Where several ranks train, only the first comes back; the others exit with status 0.

    Raises:
        ConfigError: for a keyword that the model, an objective or the trainer does not know.
        ValueError: for codes of another tokenizer than the one that lies beside them.
    """
    pl.seed_everything(seed, verbose=False)
    make = catalog.load(kind, name).build
    inner = checkpoint.load(data / TOKENIZER) if (data / TOKENIZER).exists() else None
    corpus = open_codes(data) if inner else open_shards(data)
    supplied = tuple(p for p in ("facts", "codebook") if p in inspect.signature(make).parameters)
    keywords = config.keywords(make, settings["model"], f"{where}: model", supplied)
    window = config.keywords(sides, settings["windows"], f"{where}: windows", ("corpus",))
    tuned = Settings(**config.keywords(Settings, settings["training"], f"{where}: training"))
    train_rows, val_rows = sides(corpus, **window)
    seen = Corpus(train_rows.recordings, corpus.root)
    facts = inner.facts if inner else facts_of(seen, window["length_s"])
    described = {"kind": kind, "name": name, "keywords": keywords}
    if inner:
        described["codebook"] = {**inner.config, "facts": asdict(inner.facts)}
    model = checkpoint.build(described, facts, inner.model if inner else None)
    if isinstance(corpus, CodeCorpus) and inner:
        check_codes(corpus, inner.model, getattr(model, "overlap", 0.0))
    pretrained = Pretrained(model, described, facts)
    objectives = [_objective(n, k or {}, where) for n, k in settings["objectives"].items()]
    batcher = pretrained.batcher()
    sets = [CodeDataset(rows) if inner else WindowDataset(rows, batcher) for rows in (train_rows, val_rows)]
    loaded = ShardData(
        train=sets[0],
        val=sets[1],
        groups=train_rows.of("dataset").tolist(),
        batch_size=tuned.batch_size,
        steps=tuned.steps * tuned.accumulate,
        seed=seed,
        weights=tuned.weights,
        val_windows=tuned.val_windows,
        balance=tuned.balance,
        parts=parts(train_rows, tuned.balance),
        passes=tuned.passes,
        augment=augment.build(tuned.augment or {}, f"{where}: training: augment"),
        workers=tuned.workers,
        start_method=tuned.start_method,
    )
    if tuned.passes is not None:
        tuned = replace(tuned, steps=-(-len(loaded.sampler) // tuned.accumulate))
    recipe = {
        "config": described,
        "settings": settings,
        "seed": seed,
        "code": checksums.of_code(catalog.PACKAGE / part for part in (f"{kind}/{name}.py", *CODE)),
        "training data": {r.id: r.checksum for r in train_rows.recordings},
        "validation data": {r.id: r.checksum for r in val_rows.recordings},
        "tokenizer": checksums.sha256(data / TOKENIZER / checkpoint.WEIGHTS) if inner else None,
    }
    if first_rank():
        print(
            f"{name}: {checkpoint.parameters(model):,} parameters, "
            f"{len(train_rows)} training and {len(val_rows)} validation windows"
        )
    done = train(model, objectives, loaded, tuned, seed, work, recipe)
    if not first_rank():
        raise SystemExit(0)
    if done.gathered:
        pretrained.model = checkpoint.build(described, facts)
        weights = torch.load(done.gathered, map_location="cpu", weights_only=True)["state_dict"]
        own = {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
        checkpoint.fit(pretrained.model, own, str(done.gathered))
    pretrained.card = {
        "title": out.name, "objective": sorted(settings["objectives"]), "parameters": checkpoint.parameters(model),
        "seconds": round(done.seconds, 1), "metrics": done.metrics, "seed": seed, "settings": settings,
        "subjects": {n: sorted(set(map(str, w.of("person")))) for n, w in (("train", train_rows), ("val", val_rows))},
        "devices": sorted({str(d) for w in (train_rows, val_rows) for d in w.of("device")}),
        "windows": {"train": train_rows.intervals(), "val": val_rows.intervals()},
        "checksums": {
            r.id: getattr(r, "source_checksum", r.checksum) for r in corpus.recordings if r.split in ("train", "val")
        },
        "datasets": _datasets(seen), "steps": tuned.steps, "tokenizer": inner.card if inner else None,
    }  # fmt: skip
    pretrained.model.eval()
    if figures:
        pretrained.card["figures"] = figures(pretrained, val_rows)
    pretrained.save(out, {"metrics.csv": done.curves, "dvclive": work / "dvclive"})
    shutil.rmtree(work)
    return pretrained


def _objective(name: str, given: dict[str, Any], where: str) -> nn.Module:
    made = catalog.load_class("objectives", name)
    return made(**config.keywords(made, given, f"{where}: objectives: {name}"))


def _datasets(corpus: Corpus) -> list[dict[str, Any]]:
    """Name, simulated or not, licence, subjects and the first recording's processing of each dataset, from headers.

    Codes carry no processing of their own; that of their tokenizer's data stands in its card.
    """
    found: dict[str, dict[str, Any]] = {}
    for r in corpus.recordings:
        entry = found.setdefault(r.dataset, {
            "name": r.dataset, "simulated": r.simulated, "modality": r.modality, "subjects": 0, **r.card(),
            **({} if isinstance(r, StoredCodes) else {"steps": r.provenance()["steps"]}),
        })  # fmt: skip
        entry["subjects"] = len({x.person for x in corpus.recordings if x.dataset == r.dataset})
    return sorted(found.values(), key=lambda x: x["name"])
