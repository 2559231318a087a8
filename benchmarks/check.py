"""Audit and deep check of a corpus of many small recordings, on one thread, against the plain way in the same run.

    python benchmarks/check.py [--recordings 10000]

Prints one JSON line per case: `ratio` is the baseline's time over ours. The baselines are stopped after a few seconds
and scaled by the pairs or shards that they had done; `baseline` says how many.
- `audit_10000`: every check of `brainfm.audit` on one model and one result, from opening the shards to the last line.
  Its baseline opens the same shards, then compares recordings one by one: sides, spans, sets of their frames' hashes.
- `deep_check_10000`: every frame against its hash, all else against its checksum. Its baseline reads each dataset whole
  as `visititems` of h5py finds it and hashes it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np

from brainfm.audit import audit
from brainfm.checksums import sha256
from brainfm.recording import Channels, Events, Recording
from brainfm.shards import schema
from brainfm.shards.read import open_shards
from brainfm.shards.stored import Stored
from brainfm.shards.write import write_shard

SESSIONS, CHANNELS, SFREQ, SECONDS, REACH_S = 10, 8, 64.0, 20, 0.5
TABLE = Channels.make([f"E{i}" for i in range(CHANNELS)], "eeg")
#: A person's side follows from the last digit: seven of ten train, one validates, two are tested.
SIDES = ["train"] * 7 + ["val"] + ["test"] * 2
#: Seconds after which a baseline is stopped.
CAP_S = 4.0


def make(subject: int, folder: Path) -> dict[str, str]:
    """One person's shard: ten short sessions of noise, each with films of its own; id → checksum."""
    rng = np.random.default_rng(subject)
    made = [
        Recording(
            "made", f"{subject:05d}", "eeg", TABLE, session=str(n), sfreq=SFREQ, reach_s=REACH_S,
            signal=rng.normal(0, 1e-5, (CHANNELS, int(SFREQ) * SECONDS)).astype(np.float32),
            events=Events(np.arange(5) * 4.0, np.ones(5), ["film"] * 5, [f"film {subject}-{n}-{i}" for i in range(5)]),
            provenance={"files": {f"{subject}-{n}.edf": hashlib.sha256(f"{subject}-{n}".encode()).hexdigest()},
                        "steps": []},
        )
        for n in range(SESSIONS)
    ]  # fmt: skip
    path = write_shard(folder / schema.shard_name(made[0].subject), made, {})
    return {r.id: r.checksum for r in open_shards(path).recordings}


def corpus(root: Path, people: int) -> tuple[Path, Path, Path]:
    """Shards with a split file, and a card and a result that saw all of them; shards, model folder and result file."""
    shards, model, result = root / "shards", root / "models/made_up", root / "result.json"
    model.mkdir(parents=True)
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        made = list(pool.map(make, range(people), [shards / "made"] * people, chunksize=20))
    checksums = {key: checksum for each in made for key, checksum in each.items()}
    sides = {key: SIDES[int(key.split("/")[1][-1])] for key in checksums}
    split = {"rule": {"test_subjects": 0.2, "val_subjects": 0.1}, "recordings": sides}
    (shards / "made/split.json").write_text(json.dumps(split))
    spans = [[a, a + 2.0] for a in np.arange(0.0, SECONDS, 4.0)]
    windows = {side: {k: spans for k, s in sides.items() if s == side} for side in ("train", "val", "test")}
    # the last eighth of training stands in for validation too, cut in time with the gap that the filters ask for
    late = {k: [[SECONDS - 1.0, float(SECONDS)]] for k in list(windows["train"])[:: 2 * SESSIONS]}
    seen = {"train": windows["train"], "val": windows["val"] | late}
    (model / "model.safetensors").write_bytes(b"")
    ours = {"checksums": checksums, "model_checksum": sha256(model / "model.safetensors")}
    (model / "card.json").write_text(json.dumps({"windows": seen, "tokenizer": None, **ours}))
    tested = {"train": windows["train"], "test": windows["test"]}
    said = {"stage": "transfer", "key": "made", "model": "made_up", "windows": tested, **ours}
    result.write_text(json.dumps(said))
    return shards, model, result


def one_by_one(recordings: list[Stored], spans: dict[str, list[list[float]]], total: int) -> tuple[float, int]:
    """Compare recordings one by one until `CAP_S` is over; seconds for all pairs of `total` of them, and pairs done."""
    hashes = [set(r.frame_hashes().tolist()) for r in recordings]
    done, start = 0, time.perf_counter()
    for i, a in enumerate(recordings):
        for b, theirs in zip(recordings[:i], hashes[:i], strict=True):
            same = a.split != b.split and (a.person == b.person or not hashes[i].isdisjoint(theirs))
            for c, d in spans[a.id] if same or a.id == b.id else ():
                same |= any(c < f and d > e for e, f in spans[b.id])
            done += 1
            if same:
                raise RuntimeError(f"{a.id} and {b.id} are both there; this corpus has no leak")
        if time.perf_counter() - start > CAP_S:
            break
    return (time.perf_counter() - start) * total * (total - 1) / 2 / done, done


def whole(path: Path) -> bool:
    """Whether every recording of a shard is, as `brainfm check --deep` asks."""
    return all(r.is_whole() for r in open_shards(path).recordings)


def walked(path: Path) -> str:
    """sha256 of everything in a file, dataset by dataset."""
    digest = hashlib.sha256()
    with h5py.File(path, "r") as file:
        file.visititems(lambda _, item: digest.update(item[()].tobytes()) if isinstance(item, h5py.Dataset) else None)
    return digest.hexdigest()


def line(name: str, sizes: dict[str, int], seconds: float, baseline: str, baseline_seconds: float) -> None:
    """Print one case."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({
        "name": name, **sizes, "seconds": seconds, "peak_mb": peak, "baseline": baseline,
        "baseline_seconds": baseline_seconds, "ratio": baseline_seconds / seconds,
    }))  # fmt: skip


def main() -> None:
    """Make the corpus, run both cases, print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=10_000, help="ten for each person")
    people = max(10, parser.parse_args().recordings // SESSIONS)
    sizes = {"recordings": people * SESSIONS, "people": people, "channels": CHANNELS, "recording_s": SECONDS}
    with tempfile.TemporaryDirectory() as folder:
        shards, model, result = corpus(Path(folder), people)
        start = time.perf_counter()
        found = audit(shards, [model], [result])
        seconds = time.perf_counter() - start
        if any(check.leaks for check in found.checks):
            raise RuntimeError(f"a clean corpus has leaks: {[c.leaks[:3] for c in found.checks if c.leaks]}")
        paths = sorted(shards.glob("*/*.h5"))
        start, some = time.perf_counter(), paths[:100]
        recordings = [r for path in some for r in open_shards(path).recordings]
        opening = (time.perf_counter() - start) * len(paths) / len(some)
        spans = json.loads((model / "card.json").read_text())["windows"]["train"]
        pairwise, done = one_by_one(recordings, spans, people * SESSIONS)
        plainly = f"shards opened ({len(some)}, scaled), then every pair of recordings compared ({done:,}, scaled)"
        line("audit_10000", sizes, seconds, plainly, opening + pairwise)

        start = time.perf_counter()
        if not all([whole(path) for path in paths]):
            raise RuntimeError("a shard that was just written is not whole")
        seconds = time.perf_counter() - start
        start, done = time.perf_counter(), 0
        while done < len(paths) and time.perf_counter() - start < CAP_S:
            walked(paths[done])
            done += 1
        plain = (time.perf_counter() - start) * len(paths) / done
        line("deep_check_10000", sizes, seconds, f"visititems and sha256 ({done} shards, scaled)", plain)


if __name__ == "__main__":
    main()
