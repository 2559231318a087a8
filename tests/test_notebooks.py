"""The notebooks run on what the default pipeline made, and are committed without what they printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEEDED = ("data/models/luna_tiny/config.json", "data/shards/meeg/sim_eeg/split.json")


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


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs(path: Path) -> None:
    absent = [n for n in NEEDED if not (ROOT / n).exists()]
    if absent:
        pytest.skip(f"{absent[0]} is absent; `make repro` makes it")
    nbformat = pytest.importorskip("nbformat", reason="nbformat comes with nbmake")
    nbclient = pytest.importorskip("nbclient", reason="nbclient comes with nbmake")
    notebook = nbformat.read(path, as_version=4)
    done = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [o for c in done.cells if c.cell_type == "code" for o in c.outputs]
    figures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert figures
    assert any("simulated" in o.get("text", "") for o in outputs)
