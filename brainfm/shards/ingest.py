"""Subjects → shards in parallel. One bad file never stops the others; what is already whole is not made again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
from rich.progress import Progress

from brainfm import splits
from brainfm.recording import Recording
from brainfm.shards import schema
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard

#: What a reader may raise for a bad file. Anything else is a mistake of ours and stops the run.
BAD_INPUT = (ValueError, OSError, KeyError, EOFError, RuntimeError)


@dataclass
class Ingested:
    """What happened: subjects written, subjects that were already whole, and subject → error."""

    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """Make one subject's shard: picklable, so that any executor can run it."""

    recordings: Callable[..., Iterator[Recording]]
    raw: Path
    subject: str
    keywords: dict[str, Any]
    out: Path
    card: dict
    recipe: str

    def __call__(self) -> None:
        """Read, clean and write."""
        made = self.recordings(self.raw, subjects=[self.subject], **self.keywords)
        write_shard(self.out, made, self.card, self.recipe)


def ingest(
    recordings: Callable[..., Iterator[Recording]], sources: dict[str, list[Path]], raw: Path, keywords: dict[str, Any],
    out: Path, card: dict, code: str, split: dict[str, Any], jobs: int | None = None, seed: int = 0,
) -> Ingested:  # fmt: skip
    """Ingest every subject of a dataset into `out`, then decide the split.

    Args:
        recordings: the dataset's function, with `subjects=[...]`. sources: subject → raw files. raw: their folder.
        keywords: cleaning, from the configuration. out: folder of the shards. card: the dataset's card.
        code: hash of the code that makes recordings, part of each shard's recipe.
        split: keywords of `splits.assign`. jobs: processes; one per core by default. seed: of the split.
    """
    done = Ingested()
    todo: list[Job] = []
    for subject, files in sorted(sources.items()):
        path = out / f"sub-{subject}.h5"
        try:
            recipe = _recipe(files, keywords, code)
        except OSError as error:
            done.failed[subject] = f"{error.filename}: {error.strerror}; run `brainfm fetch {out.name}` again"
            continue
        if _recipe_of(path) == recipe:
            done.kept.append(subject)
        else:
            todo.append(Job(recordings, raw, subject, keywords, path, card, recipe))
    _run(todo, min(jobs or os.cpu_count() or 1, max(1, len(todo))), done)
    for path in out.glob("sub-*.h5"):
        if path.stem.removeprefix("sub-") not in {*done.written, *done.kept}:
            path.unlink()
    if done.written or done.kept:
        write_split(out, split, seed)
    return done


def _run(todo: list[Job], processes: int, done: Ingested) -> None:
    """Run the jobs, in this process if there is one at a time, else in a pool."""
    with Progress(transient=True) as progress:
        bar = progress.add_task("ingest", total=len(todo))
        if processes <= 1:
            for job in todo:
                _settle(job, job, done)
                progress.advance(bar)
            return
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            waiting = {pool.submit(job): job for job in todo}
            for future in as_completed(waiting):
                _settle(waiting[future], future.result, done)
                progress.advance(bar)


def _settle(job: Job, result: Callable[[], None], done: Ingested) -> None:
    """File a job under written or failed."""
    try:
        result()
        done.written.append(job.subject)
    except BrokenProcessPool:
        done.failed[job.subject] = "its worker process died (out of memory?); run ingest again with --jobs 1"
    except BAD_INPUT as error:
        done.failed[job.subject] = str(error)


def _recipe(files: list[Path], keywords: dict[str, Any], code: str) -> str:
    """Hash of everything that a shard's content follows from."""
    digest = hashlib.sha256(json.dumps([keywords, code, schema.VERSION], sort_keys=True, default=str).encode())
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _recipe_of(path: Path) -> str:
    """The recipe of the shard at `path`, or "" where there is no whole one."""
    if not path.exists():
        return ""
    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs.get("recipe", ""))
    except OSError:
        return ""


def write_split(out: Path, split: dict[str, Any], seed: int) -> None:
    """Decide the sides of a dataset's recordings from their ids and keep them beside the shards."""
    found = [(r.id, r.subject, r.session) for r in open_shards(out).recordings]
    sides = splits.assign(found, **{"seed": seed, **split})
    part = out / f".{schema.SPLIT_FILE}.part"
    part.write_text(json.dumps({"rule": split, "seed": seed, "recordings": sides}, indent=1) + "\n")
    os.replace(part, out / schema.SPLIT_FILE)
