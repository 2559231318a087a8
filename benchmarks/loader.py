"""Shuffled windows from shards against indexing one big tensor in memory, on one thread, in one run.

    python benchmarks/loader.py [--seconds 2] [--minutes 20]

Prints one JSON line: `ratio` is the baseline's time over ours for the same windows, so 1 means as fast as memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from brainfm.recording import Channels, Recording
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard
from brainfm.training.batches import Batcher, WindowDataset

CHANNELS, SFREQ, SAMPLES, BATCH = 64, 200, 400, 64


def rate(step: Callable[[np.ndarray], object], n: int, seconds: float, seed: int) -> float:
    """Windows per second of `step(rows)` over random batches, for about `seconds`."""
    rng = np.random.default_rng(seed)
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        step(rng.integers(0, n, BATCH))
        done += BATCH
    return done / spent


def main() -> None:
    """Make a shard of noise, read it both ways in turn, print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each of the five runs of either way")
    parser.add_argument("--minutes", type=float, default=20.0, help="length of the recording")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    signal = rng.normal(0, 1e-5, (CHANNELS, round(asked.minutes * 60 * SFREQ))).astype(np.float32)
    table = Channels.make([f"E{i}" for i in range(CHANNELS)], "eeg")
    with tempfile.TemporaryDirectory() as folder:
        recording = Recording("noise", "1", "eeg", table, sfreq=float(SFREQ), signal=signal)
        path = write_shard(Path(folder) / "sub-1.h5", [recording], {})
        windows = open_shards(path).windows(SAMPLES / SFREQ)
        ours = WindowDataset(windows, Batcher(patch=SAMPLES))
        memory = torch.stack([torch.from_numpy(signal[:, s : s + SAMPLES]) for s in windows.start])
        same = np.arange(0, len(windows), 7)
        difference = (ours.__getitems__(list(same)).signal() * 1e-5 - memory[same]).abs().max().item()
        pairs = [
            (
                rate(lambda rows: ours.__getitems__(rows.tolist()), len(windows), asked.seconds, turn),
                rate(lambda rows: memory[torch.from_numpy(rows)], len(windows), asked.seconds, turn),
            )
            for turn in range(5)
        ]
    mine, base = (float(np.median([p[i] for p in pairs])) for i in range(2))
    line = {
        "name": "loader_shuffled", "channels": CHANNELS, "samples": SAMPLES, "batch": BATCH, "windows": len(windows),
        "windows_per_second": round(mine), "seconds": 1000 / mine, "baseline": "one tensor in memory, indexed",
        "baseline_seconds": 1000 / base, "ratio": float(np.median([p[0] / p[1] for p in pairs])),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "max_difference": difference,
    }  # fmt: skip
    print(json.dumps(line))


if __name__ == "__main__":
    main()
