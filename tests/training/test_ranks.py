"""Two processes train as one: the same losses and weights from the same batches, for tokenizer and second stage."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from brainfm.recording import Channels, Recording
from brainfm.shards.ingest import write_split
from brainfm.shards.write import write_shard

SFREQ = 64.0

SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from brainfm.codebooks import braintokenizer
from brainfm.models import brainomni
from brainfm.shards.read import open_shards
from brainfm.training.runs import train_and_save
from brainfm.training.tokenizing import tokenize

root, stage, devices = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
out, work = root / f"{stage}{devices}", root / f"work-{stage}{devices}"
training = {"steps": 9, "batch_size": 6, "learning_rate": 2e-3, "validations": 3, "val_windows": 9, "accumulate": 2,
            "devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
if stage == "tokenizer":
    settings = {"model": {**braintokenizer.SIZES["test"], "dropout": 0.0}, "objectives": {"reconstruct": {}},
                "windows": {"length_s": 1.0, "shortest_s": 0.5}, "training": training}
    train_and_save("codebooks", "braintokenizer", root / "shards", settings, out, work, 0, "test")
else:
    settings = {"model": {**brainomni.SIZES["test"], "dropout": 0.0}, "objectives": {"masked_codes": {}},
                "windows": {"length_s": 2.0}, "training": training}
    train_and_save("models", "brainomni", root / "codes", settings, out, work, 0, "test")
"""


def shards(folder: Path) -> None:
    """Two people under different montages, waves and noise."""
    rng = np.random.default_rng(0)
    for person, names in (("1", ["C3", "C4", "O1", "O2", "Fz"]), ("2", ["C3", "C4", "Pz"])):
        time = np.arange(round(40.5 * SFREQ)) / SFREQ
        wave = np.stack([np.sin(2 * np.pi * (3 + i) * time + i) for i in range(len(names))])
        made = Recording(
            "waves", person, "eeg", Channels.make(names, "eeg", rng.normal(0, 0.05, (len(names), 3))), sfreq=SFREQ,
            signal=1e-5 * (wave + rng.normal(size=wave.shape)),
        )  # fmt: skip
        write_shard(folder / f"sub-{person}.h5", [made], {})
    write_split(folder, {"everyone": "train"}, 0)


def run(root: Path, stage: str, devices: int) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Train in processes of their own: losses by name, and the weights."""
    script = root / "run.py"
    script.write_text(SCRIPT)
    alone = {k: v for k, v in os.environ.items() if not k.startswith(("LOCAL_RANK", "SLURM", "PYTEST", "RANK"))}
    done = subprocess.run(
        [sys.executable, str(script), str(root), stage, str(devices)], capture_output=True, text=True, timeout=300,
        env={**alone, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (root / f"work-{stage}{devices}").exists()
    out = root / f"{stage}{devices}"
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [k for k in rows[0] if k.startswith(("train/", "val/"))]
    return {k: [float(r[k]) for r in rows if r[k]] for k in names}, load_file(out / "model.safetensors")


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    shards(tmp_path / "shards")
    for stage in ("tokenizer", "second"):
        one, two = run(tmp_path, stage, 1), run(tmp_path, stage, 2)
        assert set(one[0]) == set(two[0])
        for name, values in one[0].items():
            np.testing.assert_allclose(two[0][name], values, rtol=2e-4, atol=2e-5, err_msg=f"{stage}: {name}")
        for name, value in one[1].items():
            # a softmax ignores the keys' bias, and Adam makes whole steps of what rounding leaves of its gradient
            if name.endswith(("key.bias", "key_value.bias", "qkv.bias")):
                continue
            apart = np.linalg.norm(two[1][name].astype(float) - value)
            assert apart <= 2e-3 * np.linalg.norm(value.astype(float)) + 1e-6, f"{stage}: {name}"
        if stage == "tokenizer":
            code = (
                "import sys; from pathlib import Path; from brainfm.training.checkpoint import load\n"
                "from brainfm.training.tokenizing import tokenize; from brainfm.shards.read import open_shards\n"
                "root = Path(sys.argv[1])\n"
                "tokenize(load(root / 'tokenizer1').model, open_shards(root / 'shards'), root / 'codes', 1.0)"
            )
            subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
            shutil.copytree(tmp_path / "tokenizer1", tmp_path / "codes/tokenizer")
