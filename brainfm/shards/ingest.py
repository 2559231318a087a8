"""Recordings → shards, in parallel. One bad file never stops the others; what is already whole is not made again.

A recording is the unit of work: it becomes a shard of its own under `.parts/`, by any executor on any machine that sees
the folder, and a subject's parts are joined in the order of their keys once all of them are settled. So the bytes of a
shard do not depend on who made it, in which order, or after how many interruptions.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from brainfm import splits
from brainfm.checksums import sha256
from brainfm.recording import Recording
from brainfm.shards import schema
from brainfm.shards.read import open_shards
from brainfm.shards.stored import MEND
from brainfm.shards.write import join_shards, write_shard

#: What a reader may raise for a bad file. Anything else is a mistake of ours and stops the run.
BAD_INPUT = (ValueError, OSError, KeyError, EOFError, RuntimeError, MemoryError)

#: Folder of finished recordings whose subject is not complete yet.
PARTS = ".parts"


@dataclass(frozen=True)
class Unit:
    """One recording to be made.

    Attributes:
        key: `subject`, or `subject/session/run`; what comes before the first slash names the shard.
        files: what it is read from; its recipe follows from their content.
        make: reads and cleans it; picklable. It may yield several recordings, which then stay together.
        settings: everything besides the files that this one's content follows from; part of its recipe.
    """

    key: str
    files: tuple[Path, ...]
    make: Callable[[], Iterator[Recording]]
    settings: object = None

    @property
    def subject(self) -> str:
        """The subject whose shard it goes to."""
        return self.key.split("/")[0]


@dataclass
class Ingested:
    """What happened: units written, units that were already whole, and unit → error."""

    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """Make one recording's part: picklable, so that any executor can run it."""

    unit: Unit
    out: Path
    card: dict
    recipe: str
    dtype: str

    def __call__(self) -> None:
        """Read, clean and write."""
        write_shard(self.out, self.unit.make(), self.card, self.recipe, self.dtype)


def ingest(
    units: Iterable[Unit], out: Path, card: dict, settings: object, split: dict[str, Any], *, jobs: int | None = None,
    seed: int = 0, scheduler: str | None = None, dtype: str = "float32", whole: bool = True,
) -> Ingested:  # fmt: skip
    """Ingest every unit of a dataset into `out`, then decide the split.

    Args:
        units: recordings to be made; each key once.
        out: folder of the shards. card: the dataset's card.
        settings: what all units have in common (keywords, hash of the code): part of every recipe.
        split: keywords of `splits.assign`. seed: of the split.
        jobs: processes of this machine; one per core by default.
        scheduler: address of a Dask scheduler whose workers see the same folders; None for this machine.
        dtype: of the signals, as in `write_shard`.
        whole: the units are all that there is, so that what else lies in `out` is of the past and is removed. Otherwise
            it is somebody's, and the ingest is refused.

    Raises:
        ValueError: where two units have one key, or `out` holds recordings of others.
    """
    units = sorted(units, key=lambda u: u.key)
    if len({u.key for u in units}) < len(units):
        twice = next(a.key for a, b in itertools.pairwise(units) if a.key == b.key)
        raise ValueError(f"two recordings have the key {twice!r}; give them different sessions or runs")
    done, recipes, todo = Ingested(), {}, []
    _clear_parts(out)
    if not whole:
        _refuse_others(units, out)
    have = {path.name: _recipes_of(path) for path in out.glob("sub-*.h5")}
    subjects: dict[str, list[Unit]] = {}
    for unit in units:
        subjects.setdefault(unit.subject, []).append(unit)
    for unit in units:
        try:
            recipe = recipes[unit.key] = _recipe(unit, [settings, unit.settings, dtype])
        except OSError as error:
            done.failed[unit.key] = f"{error.filename}: {error.strerror}; bring the file back and ingest again"
            continue
        part, old = _part(out, unit.key), have.get(schema.shard_name(unit.subject), {})
        # the shard of one part is that part, so it is not copied out of an older one of several
        usable = recipe in old.values() and (len(subjects[unit.subject]) > 1 or set(old.values()) == {recipe})
        if usable or recipe in _recipes_of(part).values():
            done.kept.append(unit.key)
        else:
            todo.append(Job(unit, part, card, recipe, dtype))
    for path in out.glob("sub-*.h5"):
        if path.stem.removeprefix("sub-") not in subjects:
            path.unlink()
    waiting = Counter(job.unit.subject for job in todo)

    def settled(job: Job) -> None:
        waiting[job.unit.subject] -= 1
        if not waiting[job.unit.subject]:
            _join(subjects[job.unit.subject], recipes, out, done)

    for subject in subjects:
        if not waiting[subject]:
            _join(subjects[subject], recipes, out, done)
    _run(todo, out.name, jobs, scheduler, done, settled)
    if not any(job.out.exists() for job in todo):
        shutil.rmtree(out / PARTS, ignore_errors=True)
    done.written.sort()
    if done.written or done.kept:
        write_split(out, split, seed)
    return done


def _part(out: Path, key: str) -> Path:
    """Where a unit's own shard lies until its subject's is whole; the hash keeps keys apart that look alike on disk."""
    plain = "".join(c if c.isalnum() or c in "-." else "_" for c in key)
    return out / PARTS / f"{plain}.{hashlib.sha256(key.encode()).hexdigest()[:8]}.h5"


def _refuse_others(units: list[Unit], out: Path) -> None:
    """Raise ValueError where a shard in `out` holds a recording that is none of the units, and would be lost."""
    known = {unit.key for unit in units}
    for path in sorted(out.glob("sub-*.h5")):
        header = {} if not _recipes_of(path) else schema.read_header(path, schema.SCHEMA, schema.VERSION, MEND)
        for entry in header.get("recordings", {}).values():
            if entry["id"].split("/", 1)[1] not in known:
                raise ValueError(
                    f"{path} holds {entry['id']}, which is not among the recordings to ingest; give another --out, "
                    "ingest the folder that holds them all, or remove that shard"
                )


def _clear_parts(out: Path) -> None:
    """Remove what a killed run was in the middle of writing."""
    for path in (*out.glob(".*.part"), *out.glob(f"{PARTS}/.*.part")):
        path.unlink(missing_ok=True)


def _run(
    todo: list[Job], name: str, jobs: int | None, scheduler: str | None, done: Ingested, settled: Callable[[Job], None]
) -> None:
    """Run the jobs: in this process if there is one at a time, else by an executor."""
    columns = TextColumn(f"ingest {name}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    processes = min(jobs or os.cpu_count() or 1, max(1, len(todo)))
    with Progress(*columns, transient=True) as progress:
        bar = progress.add_task("ingest", total=len(todo))

        def settle(job: Job, result: Callable[[], None]) -> None:
            _settle(job, result, done)
            settled(job)
            progress.advance(bar)

        if scheduler is None and processes <= 1:
            for job in todo:
                settle(job, job)
            return
        while todo:
            with _executor(processes, scheduler) as pool:
                todo, suspects = _work_off(pool, todo, processes if scheduler is None else len(todo), settle)
            # a worker died and took its pool with it: who was at work goes on alone, to find the one that kills
            for job in suspects:
                with _executor(1, scheduler) as pool:
                    settle(job, pool.submit(job).result)


def _work_off(
    pool: Executor, todo: list[Job], at_once: int, settle: Callable[[Job, Callable[[], None]], None]
) -> tuple[list[Job], list[Job]]:
    """Run the jobs, at most so many at once; where the pool breaks, the jobs left over and those that were at work."""
    left, suspects, broken = todo[::-1], [], False
    waiting: dict[Future[None], Job] = {}
    while (left and not broken) or waiting:
        while left and not broken and len(waiting) < at_once:
            try:
                waiting[pool.submit(left[-1])] = left[-1]
                left.pop()
            except BrokenExecutor:
                broken = True
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            job = waiting.pop(future)
            if isinstance(future.exception(), BrokenExecutor):
                broken = True
                suspects.append(job)
            else:
                settle(job, future.result)
    return left[::-1], suspects


@contextmanager
def _executor(processes: int, scheduler: str | None) -> Iterator[Executor]:
    """A pool of this machine's processes, or the workers of a Dask scheduler, which repeats what a worker dropped."""
    if scheduler is None:
        with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_end_with_parent) as pool:
            yield pool
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("--scheduler needs Dask: pip install 'brainfm[dask]'") from error
    with Client(scheduler, timeout=30) as client, client.get_executor(pure=False) as pool:
        yield pool


def _end_with_parent() -> None:
    """Let a worker end when the process that started it is killed: it would wait for work for ever otherwise."""
    parent = parent_process()
    if parent is not None:
        watch = threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True)
        watch.start()


def _settle(job: Job, result: Callable[[], None], done: Ingested) -> None:
    """File a job under written or failed."""
    key, dask = job.unit.key, sys.modules.get("distributed")
    dead = (BrokenExecutor,) if dask is None else (BrokenExecutor, dask.KilledWorker)
    try:
        result()
        done.written.append(key)
    except dead:
        done.failed[key] = "its worker process died (killed, or out of memory); run ingest again with --jobs 1"
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        where = f"no space left on the disk of {job.out.parent.parent}; free some and run ingest again"
        done.failed[key] = where if full else _line(error)
    except BAD_INPUT as error:
        done.failed[key] = _line(error)


def _line(error: BaseException) -> str:
    """An error's message, or its name where it has none."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error) or type(error).__name__


def _join(own: list[Unit], recipes: dict[str, str], out: Path, done: Ingested) -> None:
    """Make a subject's shard of its parts, and of what an older one holds unchanged; none where nothing is whole."""
    path = out / schema.shard_name(own[0].subject)
    whole = [unit for unit in own if unit.key not in done.failed]
    if not whole:
        path.unlink(missing_ok=True)
        return
    sources = [source for unit in whole for source in _sources(_part(out, unit.key), path, recipes[unit.key])]
    parts = {source for source, _ in sources} - {path}
    if not parts and len(sources) == len(_recipes_of(path)):
        return
    try:
        if len(whole) == len(parts) == 1 and all(source in parts for source, _ in sources):
            os.replace(parts.pop(), path)
        else:
            recipe = hashlib.sha256("".join(recipes[unit.key] for unit in whole).encode()).hexdigest()
            join_shards(path, sources, recipe)
    except OSError as error:
        done.failed |= {unit.key: _line(error) for unit in whole}
        done.written = [key for key in done.written if key not in done.failed]
        done.kept = [key for key in done.kept if key not in done.failed]
        return
    for unit in whole:
        _part(out, unit.key).unlink(missing_ok=True)


def _sources(part: Path, shard: Path, recipe: str) -> list[tuple[Path, str]]:
    """Where the recordings of one unit lie: in its part, or in the subject's older shard."""
    for path in (part, shard):
        found = [(path, group) for group, known in _recipes_of(path).items() if known == recipe]
        if found:
            return found
    return []


def _recipe(unit: Unit, settings: object) -> str:
    """Hash of everything that a recording's content follows from."""
    known = json.dumps([unit.key, settings, schema.VERSION], sort_keys=True, default=str)
    digest = hashlib.sha256(known.encode())
    for path in sorted(unit.files):
        digest.update(sha256(path).encode())
    return digest.hexdigest()


def _recipes_of(path: Path) -> dict[str, str]:
    """Group → recipe of the recordings in the shard at `path`; empty where there is no whole one."""
    if not path.exists():
        return {}
    try:
        header = schema.read_header(path, schema.SCHEMA, schema.VERSION, MEND)
    except schema.ShardError:  # cut short, or no shard of today at all
        return {}
    return {name: entry["recipe"] for name, entry in header["recordings"].items()}


def write_split(out: Path, split: dict[str, Any], seed: int) -> None:
    """Decide the sides of a dataset's recordings from their ids and keep them beside the shards."""
    found = [(r.id, r.subject, r.session) for r in open_shards(out).recordings]
    sides = splits.assign(found, **{"seed": seed, **split})
    part = out / f".{schema.SPLIT_FILE}.part"
    part.write_text(json.dumps({"rule": split, "seed": seed, "recordings": sides}, indent=1) + "\n")
    os.replace(part, out / schema.SPLIT_FILE)
