"""The notebooks run (nbmake) on what the pipeline makes, and are committed without what they printed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[dict]:
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def test_there_are_notebooks() -> None:
    assert {p.stem for p in NOTEBOOKS} >= {"decode", "finetune_new_subject"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_output_is_committed_and_simulated_is_said(path: Path) -> None:
    assert all(not c["outputs"] and c["execution_count"] is None for c in cells(path, "code"))
    assert "simulated" in "".join(cells(path, "markdown")[0]["source"])
    assert json.loads(path.read_text())["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_without_a_model_the_first_cell_says_what_to_do(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    with pytest.raises(FileNotFoundError, match="make repro"):
        exec("".join(cells(path, "code")[0]["source"]), {})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose pipeline ran as far as the notebooks need, through the real commands but with few steps."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("configs", "notebooks"):
        shutil.copytree(ROOT / folder, root / folder)
    (root / "pyproject.toml").touch()
    knobs = root / "configs/pretrain/luna_tiny.yaml"
    settings = yaml.safe_load(knobs.read_text())
    settings["training"] |= {"steps": 20, "validations": 2}
    knobs.write_text(yaml.safe_dump(settings))
    for command in (["fetch", "sim_eeg"], ["ingest", "sim_eeg"], ["pretrain", "luna_tiny"]):
        code = f"import sys; sys.argv = {['brainfm', *command]!r}; from brainfm.cli import main; main()"
        subprocess.run([sys.executable, "-c", code], cwd=root, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", [p.name for p in NOTEBOOKS])
def test_it_runs(project: Path, name: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbmake",
        "--overwrite",
        "--nbmake-timeout=300",
        "-q",
        f"notebooks/{name}",
    ]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    outputs = [o for c in cells(project / "notebooks" / name, "code") for o in c["outputs"]]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert any("simulated" in "".join(o.get("text", "")) for o in outputs)
