"""Damage files of every format and see what the readers make of them: `python tests/readers/fuzz.py --mutants 1000`.

Each mutant is a copy of a whole file (or of a header with its companions, or of a shard with its split file) with one
thing changed. It is read as ingest reads it: `detect.read`, the first, a middle and the last two seconds of the signal,
`units.plausible`. A shard is opened, all its windows and its header are read, and it is checked as `check --deep` does.
A worker process under a limit of memory does this; the parent starts another where one dies or hangs. An outcome is:

- refused: an error of a class that ingest reports as the file's fault, which names the file;
- same: everything that was read equals what the whole file gives;
- undetectable: something else was read, and nothing in the file contradicts it: samples of a format without checksums,
  a scale or rate that stands in it once, a text cut at the end of a line, another whole file of the same format;
- failure: a crash, a hang, an error of another class or without the file's name, memory out of proportion, or
  something else read although the file contradicts it (`Case.sealed`, `redundant` and `measured` say where it would).

The report has a line of JSON for each format. The same seed gives the same mutants. The exit status is 1 on failures.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [p for p in (str(HERE), str(HERE.parents[1])) if p not in sys.path]

#: What ingest reports as the fault of a file. `MemoryError` is among them there, and here it is a failure.
REFUSALS = ("ValueError", "OSError", "KeyError", "EOFError", "RuntimeError")
SECONDS = 20.0
ADDRESS_SPACE = 3 << 30
EXPLOSION_MB = 500.0
GOOD = ("refused", "same", "undetectable")


def observe(case, folder: Path) -> dict[str, str]:
    """What reading a case gives, as hashes of its parts."""
    return _observe_shard(case, folder) if case.request is None else _observe_recording(case, folder)


def _observe_recording(case, folder: Path) -> dict[str, str]:
    import numpy as np

    from brainfm.modalities import units
    from brainfm.readers import detect

    done = detect.read(folder / case.main, case.asked(folder))
    parts = {"sfreq": done.sfreq, "channels": len(done.channels), "duration": done.duration, "device": done.device}
    parts["table"] = [getattr(done.channels, k) for k in vars(done.channels)]
    parts["events"] = [done.events.onset, done.events.duration, done.events.label, done.events.stimulus]
    parts["segments"] = done.segments
    parts["spikes"] = [done.spike_time, done.spike_neuron]
    parts["aligned"] = [[k, v.values, v.sfreq, v.unit, v.start] for k, v in sorted(done.aligned.items())]
    if done.signal is not None:
        samples, two = done.signal.shape[1], max(1, round(2 * done.sfreq))
        for start in (0, samples // 2, max(0, samples - two)):
            piece = done.signal[:, start : min(start + two, samples)]
            if np.shape(piece) != (len(done.channels), min(start + two, samples) - start):
                raise AssertionError(f"a slice has shape {np.shape(piece)}")
        parts["samples"] = samples
        if done.modality in ("eeg", "meg", "ieeg"):
            parts["plausible"] = str(_plausible(units.plausible, done))
        if samples * len(done.channels) < 2e7:
            parts["values"] = done.signal[:, :]
    return {name: _hash(value) for name, value in parts.items()}


def _plausible(check: Callable, done) -> object:
    """The amplitudes; some of the whole files are of other instruments and refused, which is then what is expected."""
    try:
        return {k: float(f"{v:.3g}") for k, v in check(done).items()}
    except ValueError as error:
        if done.id not in str(error):
            raise
        return f"refused: {error}"


def _observe_shard(case, folder: Path) -> dict[str, str]:
    from brainfm.shards import schema
    from brainfm.shards.codes import open_codes
    from brainfm.shards.read import open_shards

    path, parts = folder / case.main, {}
    corpus = (open_codes if case.form == "codes" else open_shards)(path)
    windows = corpus.windows(4) if case.form == "codes" else corpus.windows(2.0)
    parts["windows"] = [windows.recording, windows.start, windows.samples, list(windows.label)]
    for stored in corpus.recordings:
        head = {k: v for k, v in vars(stored).items() if k not in ("path", "arrays", "recipe", "channels", "events")}
        parts[f"{stored.id} header"] = [
            sorted((k, str(v)) for k, v in head.items()),
            list(vars(stored.channels).values()),
            list(vars(stored.events).values()),
        ]
        if case.form == "codes":
            parts[f"{stored.id} codes"] = stored.all_codes()
            continue
        truth = [stored.truth(k.removeprefix("truth/")) for k in stored.arrays if k.startswith("truth/")]
        parts[f"{stored.id} notes"] = [stored.provenance(), [vars(n) for n in stored.channel_log()], truth]
        normal = stored.normaliser()
        parts[f"{stored.id} normaliser"] = list(vars(normal).values()) if normal else None
        parts[f"{stored.id} aligned"] = [list(vars(stored.aligned(k)).values()) for k in stored.aligned_names]
        parts[f"{stored.id} hashes"] = [stored.frame_hashes().tobytes()]
        if not stored.sfreq:
            parts[f"{stored.id} spikes"] = stored.spikes(0, stored.duration)
    for number, (recording, start, n) in enumerate(zip(windows.recording, windows.start, windows.samples)):
        stored = corpus.recordings[recording]
        if case.form == "codes":
            parts[f"window {number}"] = stored.codes(int(start), int(n))
        elif stored.sfreq:
            parts[f"window {number}"] = stored.signal(int(start), int(start + n))
        else:
            parts[f"window {number}"] = stored.spikes(start / 1000, (start + n) / 1000)
    if bad := [r.id for r in corpus.recordings if not r.is_whole()]:
        raise schema.ShardError(f"{path}: {', '.join(bad)} does not match its checksum")
    return {name: _hash(value) for name, value in parts.items()}


def _hash(value: object) -> str:
    import numpy as np

    digest = hashlib.sha256()

    def add(item: object) -> None:
        if isinstance(item, np.ndarray) and item.dtype != object:
            digest.update(f"{item.shape} {item.dtype.kind}".encode() + np.ascontiguousarray(item).tobytes())
        elif isinstance(item, (list, tuple, np.ndarray)):
            for part in item:
                add(part)
        else:
            digest.update(repr(item).encode())

    add(value)
    return digest.hexdigest()[:16]


def mutate(case, cases: list, folder: Path, rng) -> tuple[str, str, bool]:
    """Damage one file of the copy in `folder`.

    Returns:
        The file, what was done, and whether the damage is of a kind that the format lets a reader notice wherever
        it changes what is read.
    """
    import mutations

    names = sorted(p.name for p in folder.iterdir())
    name = case.main if len(names) == 1 or rng.random() < 0.6 else str(rng.choice([n for n in names if n != case.main]))
    path = folder / name
    data, sealed = path.read_bytes(), name in case.sealed
    if rng.random() < 0.08:
        return name, *_swap(case, cases, folder, path, rng)
    form = {".vmrk": "vmrk", ".json": "json", ".eeg": "", ".fdt": ""}.get(path.suffix, case.form)
    if form in ("shard", "codes") and rng.random() < 0.4:
        return name, mutations.shard_header(path, rng), False
    if form in ("hdf", "shard", "codes") and rng.random() < 0.5:
        with suppress(OSError, ValueError, TypeError, RuntimeError, KeyError):  # what h5py does not let one do
            return name, mutations.hdf5_object(path, rng), sealed
        path.write_bytes(data)
    damages = (*mutations.ALWAYS, *mutations.FORMS.get(form, ()))
    damage = damages[int(rng.integers(len(damages)))]
    made, said = damage(data, rng)
    path.write_bytes(made)
    noticed = sealed and damage not in (mutations.inside, mutations.header_text)
    return name, said, noticed or (damage is mutations.cut and name in case.measured)


def _swap(case, cases: list, folder: Path, path: Path, rng) -> tuple[str, bool]:
    """Another file in the place of one, or nothing."""
    if path.name != case.main and rng.integers(2):
        path.unlink()
        return "missing", False
    other = cases[int(rng.integers(len(cases)))]
    source = str(rng.choice(sorted(p.name for p in other.folder.iterdir())))
    shutil.copy(other.folder / source, path)
    path.chmod(0o644)
    return f"swapped for {source} ({other.format})", False


def judge(case, damage: tuple[str, str, bool], whole: dict[str, str], outcome, names: list[str]) -> tuple[str, str]:
    """Outcome of a mutant and its reason, from what `mutate` did and what `observe` gave or raised."""
    name, said, noticed = damage
    if isinstance(outcome, Exception):
        chain: BaseException | None = outcome
        while chain is not None:
            if isinstance(chain, MemoryError):
                return "failure", f"out of memory: {type(outcome).__name__}: {outcome}"
            chain = chain.__cause__ or chain.__context__
        text = str(outcome.args[0] if isinstance(outcome, KeyError) and outcome.args else outcome)
        if not {c.__name__ for c in type(outcome).__mro__} & set(REFUSALS):
            return "failure", f"{type(outcome).__name__}: {text[:300]}"
        if not any(n in text for n in names):
            return "failure", f"does not name the file: {type(outcome).__name__}: {text[:300]}"
        return "refused", f"{type(outcome).__name__}: {text[:300]}"
    changed = sorted(k for k in whole.keys() | outcome.keys() if whole.get(k) != outcome.get(k))
    if not changed:
        return "same", ""
    twice = [k for k in changed if k in case.redundant and not said.startswith(("swapped", "missing"))]
    if noticed or said.startswith("NumberOfChannels") or (name == case.main and twice):
        return "failure", f"read as something else, though the file contradicts it: {', '.join(changed)[:300]}"
    return "undetectable", ", ".join(changed)[:300]


def worker(folder: Path, seed: int, first: int, last: int, only: str) -> None:
    """Read mutants `first` to `last` and print a line of JSON before and after each."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    import fuzz_files
    import mne
    import numpy as np

    mne.set_log_level("ERROR")
    np.seterr(all="ignore")
    cases = [c for c in fuzz_files.write(folder / "whole") if only in c.format]
    turns = [i for i, c in enumerate(cases) for _ in range(c.weight)]
    turns = [turns[i] for i in np.random.default_rng(seed).permutation(len(turns))]
    whole: dict[int, dict[str, str]] = {}
    for number in range(len(cases)):
        whole[number] = observe(cases[number], cases[number].folder)
    gc.collect()
    gc.freeze()  # else every collection looks through all that the libraries hold
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE, size + ADDRESS_SPACE))
    out.write(json.dumps({"ready": len(cases)}) + "\n")
    for number in range(first, last):
        case = cases[turns[number % len(turns)]]
        rng, copy = np.random.default_rng([seed, number]), folder / f"mutant{number}"
        shutil.copytree(case.folder, copy, copy_function=shutil.copyfile)
        name, said, noticed = mutate(case, cases, copy, rng)
        names = sorted({*(p.name for p in case.folder.iterdir()), case.main})
        largest = max((p.stat().st_size for p in copy.iterdir()), default=0)
        out.write(
            json.dumps({"start": number, "format": case.format, "main": case.main, "file": name, "what": said}) + "\n"
        )
        before, began = _peak(reset=True), time.monotonic()
        outcome: dict[str, str] | Exception
        try:
            outcome = observe(case, copy)
        except Exception as error:
            outcome = error
        seconds, grown = time.monotonic() - began, _peak() - before
        verdict, why = judge(case, (name, said, noticed), whole[cases.index(case)], outcome, names)
        if grown > EXPLOSION_MB and largest < 3e6:
            verdict, why = "failure", f"{grown:.0f} MB for a file of {largest} bytes ({why})"
        del outcome
        out.write(json.dumps({"done": number, "outcome": verdict, "why": why, "seconds": seconds, "mb": grown}) + "\n")
        _forget()
        shutil.rmtree(copy)


def _peak(reset: bool = False) -> float:
    """The most memory that this process held since the last reset, MB."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return next(int(x.split()[1]) for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x) / 1024


def _forget() -> None:
    """Close the files that the readers keep open."""
    from brainfm.shards import schema, stored

    stored._kept_header.cache_clear()
    schema._map.cache_clear()
    gc.collect()


def run(mutants: int, seed: int, only: str = "", first: int = 0) -> list[dict]:
    """Every mutant's record: format, file, what was done, outcome, why, seconds, MB."""
    records: list[dict] = []
    with tempfile.TemporaryDirectory(prefix="fuzz.") as folder:
        while len(records) < mutants:
            start = first + len(records)
            records += _batch(Path(folder), seed, start, first + mutants, only)
            for left in Path(folder).glob("mutant*"):
                shutil.rmtree(left)
    return records


def _batch(folder: Path, seed: int, first: int, last: int, only: str) -> Iterator[dict]:
    """Mutants that one worker comes to; the last of them failed where it died or hung."""
    words = [
        "--worker",
        str(folder),
        "--seed",
        str(seed),
        "--first",
        str(first),
        "--mutants",
        str(last),
        "--only",
        only,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    command = [sys.executable, str(HERE / "fuzz.py"), *words, "--only", only]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=env)
    at: dict = {}
    try:
        for line in _lines(process, SECONDS):
            said = json.loads(line)
            if "start" in said:
                at = said
            elif "done" in said:
                yield {**at, **said}
                at = {}
        code = process.wait()
        if code and not at:
            raise RuntimeError(f"the worker ended with {code} between mutants")
        if code:
            yield {**at, "outcome": "failure", "why": f"the process died ({code})", "seconds": 0.0, "mb": 0.0}
    except TimeoutError:
        yield {**at, "outcome": "failure", "why": f"not done after {SECONDS} s", "seconds": SECONDS, "mb": 0.0}
    finally:
        process.kill()
        process.wait()


def _lines(process: subprocess.Popen, seconds: float) -> Iterator[str]:
    """Lines of the worker; TimeoutError where none comes in time. The first may take long: it imports and writes."""
    rest, limit = b"", 180.0
    descriptor = process.stdout.fileno()  # type: ignore[union-attr]
    while True:
        if not select.select([descriptor], [], [], limit)[0]:
            raise TimeoutError
        got = os.read(descriptor, 1 << 16)
        if not got:
            return
        *lines, rest = (rest + got).split(b"\n")
        for line in lines:
            limit = seconds
            yield line.decode()


def report(records: list[dict]) -> list[dict]:
    """One row for each format, in order."""
    rows = []
    for format in dict.fromkeys(sorted(r["format"] for r in records)):
        own = [r for r in records if r["format"] == format]
        counts = {word: sum(r["outcome"] == word for r in own) for word in GOOD}
        rows.append(
            {
                "format": format, "mutants": len(own), **counts, "failures": len(own) - sum(counts.values()),
                "slowest_s": round(max(r["seconds"] for r in own), 2), "peak_mb": round(max(r["mb"] for r in own), 1),
            }
        )  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="formats whose name holds this")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--verbose", action="store_true", help="a line for every mutant")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(Path(given.worker), given.seed, given.first, given.mutants, given.only)
        return 0
    records = run(given.mutants, given.seed, given.only, given.first)
    for record in records:
        if given.verbose or record["outcome"] == "failure":
            print(json.dumps(record), file=sys.stderr)
    for row in report(records):
        print(json.dumps(row))
    return int(any(r["outcome"] == "failure" for r in records))


if __name__ == "__main__":
    sys.exit(main())
