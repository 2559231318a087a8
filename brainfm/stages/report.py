"""report: every result, model and check of a wiring on one HTML page that opens offline."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

from brainfm import config
from brainfm.report.page import write_page
from brainfm.stages.audit import model_paths, result_paths

PACKAGES = ("brainfm", "torch", "pytorch-lightning", "mne", "numpy", "scipy", "scikit-learn", "h5py", "dvc")


def run(key: str, root: Path = Path()) -> Path:
    """Write data/results/report/<key>.html and give back its path."""
    wired = config.wiring("report", key, root / "configs")
    versions = {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}}
    made_from = {**_commit(root), "versions": versions, "wiring": key}
    out = root / f"data/results/report/{key}.html"
    title = "brainfm: what was learnt, and what it is worth" if key == "default" else f"brainfm: {key}"
    return write_page(out, title, result_paths(root, key), model_paths(root, key), root / wired["audit"], made_from)


def _commit(root: Path) -> dict:
    """The commit that the page was made from, and whether files differed from it (dvc.lock aside)."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = [line for line in _git(root, "status", "--porcelain").splitlines() if not line.endswith("dvc.lock")]
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "not a git checkout", "dirty": False}
    return {"commit": commit, "dirty": bool(changed)}


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()
