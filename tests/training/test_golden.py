"""Golden numbers beside those of an imported network, and the verbs that bring a network in and out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brainfm import cli
from brainfm.training import checkpoint, golden, released

sys.path.insert(0, str(Path(__file__).parent))
from released_sets import SETS, make_golden, model_of, same

SHARED = Path(__file__).parents[3] / "shared/golden/brainomni-small"


@pytest.mark.parametrize("name", SETS)
def test_a_golden_file_passes_and_a_changed_one_does_not(name: str, tmp_path: Path) -> None:
    model, path = model_of(name), tmp_path / "golden.npz"
    arrays = make_golden(model, path)
    verdict = golden.check(model, path)
    assert verdict["passed"]
    assert verdict["codes_equal"]
    assert set(verdict["max_difference"]) == {"features", "indices", "target", "reconstruction"}
    np.savez(path, **{**arrays, "reconstruction": arrays["reconstruction"] + 2e-4})
    verdict = golden.check(model, path)
    assert not verdict["passed"]
    assert verdict["max_difference"]["reconstruction"] == pytest.approx(2e-4, rel=0.1)
    np.savez(path, **{**arrays, "indices": arrays["indices"] + 1})
    assert golden.check(model, path) == {**golden.check(model, path), "codes_equal": False, "passed": False}
    np.savez(path, **{**arrays, "target": arrays["target"][:, :, :1]})
    verdict = golden.check(model, path)
    assert verdict["max_difference"]["target"] is None
    assert not verdict["passed"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"feature": np.ones(2)}, "nothing is known of an array 'feature'; did you mean 'features'"),
        ({"pos": np.ones((2, 5, 3))}, r"pos is \(2, 5, 3\); expected finite numbers of shape \(batch, channel, 6\)"),
        ({"sensor_type": np.full((2, 5), 3)}, "sensor_type runs from 3 to 3; expected 0 to 2"),
        ({"x": None}, "has no x"),
        ({"target": np.array(["a"])}, "target holds <U1"),
        ({"target": np.array([None])}, "not a whole .npz of plain numbers"),
        ({k: None for k in ("features", "indices", "target", "reconstruction")}, "nothing to compare with"),
    ],
)
def test_golden_files_that_cannot_be_read(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    model, path = model_of("small"), tmp_path / "golden.npz"
    arrays = {**make_golden(model, path), **changed}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(ValueError, match=message):
        golden.check(model, path)


@pytest.mark.skipif(not SHARED.exists(), reason="the golden numbers of the published program are not on this machine")
def test_numbers_of_the_published_program_come_out(tmp_path: Path) -> None:
    one = released.import_weights("brainomni", SHARED, "as_released")
    verdict = golden.check(one, SHARED / "golden.npz")
    assert verdict["passed"]
    assert set(verdict["max_difference"]) == set(golden.ARRAYS)
    assert max(verdict["max_difference"].values()) < 1e-5
    released.export_weights(one, tmp_path)
    ours, theirs = (torch.load(p / "BrainOmni.pt", weights_only=True) for p in (tmp_path, SHARED))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert json.loads((tmp_path / "model_cfg.json").read_text()) == json.loads((SHARED / "model_cfg.json").read_text())


# The verbs.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole second stage in the released layout."""
    released.export_weights(model_of("small"), tmp_path / "released")
    return tmp_path / "released"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Run a verb → exit status, standard output, standard error."""

    def verb(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["brainfm", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return verb


def test_verbs_in_and_out(run, folder: Path, tmp_path: Path) -> None:
    status, out, _ = run("import-weights", "brainomni", folder, "--out", tmp_path / "m", "--rope", "as_released")
    assert status == 0
    assert "matched 138 of 138 weights" in out
    assert "known release: no" in out
    loaded = checkpoint.load(tmp_path / "m")
    assert loaded.config["keywords"]["rope"] == "as_released"
    assert loaded.card["title"] == "m"
    assert (tmp_path / "m/README.md").read_text().startswith("---\nlibrary_name: brainfm\n")
    status, out, _ = run("export-weights", tmp_path / "m", "--out", tmp_path / "again")
    assert status == 0
    assert str(tmp_path / "again/BrainOmni.pt") in out
    again = released.import_weights("brainomni", tmp_path / "again")
    assert same(loaded, again)
    status, _, err = run("export-weights", tmp_path / "m", "--out", tmp_path / "x", "--layout", "brainomin")
    assert status == 2
    assert "did you mean 'brainomni'?" in err


def test_verb_with_golden_numbers(run, folder: Path, tmp_path: Path) -> None:
    model = released.import_weights("brainomni", folder)
    arrays = make_golden(model, tmp_path / "g.npz")
    words = ("import-weights", "brainomni", folder, "--out", tmp_path / "m", "--check", tmp_path / "g.npz")
    np.savez(tmp_path / "g.npz", **{**arrays, "features": arrays["features"] + 1})
    status, out, err = run(*words)
    assert status == 1
    assert json.loads(out)["passed"] is False
    assert "nothing was written" in err
    assert not (tmp_path / "m").exists()
    np.savez(tmp_path / "g.npz", **arrays)
    status, out, err = run(*words)
    assert status == 0
    assert out.count("\n") == 1
    assert json.loads(out) == {
        "codes_equal": True, "max_difference": json.loads(out)["max_difference"], "bound": 1e-4, "passed": True
    }  # fmt: skip
    assert "matched 138 of 138 weights" in err
    assert checkpoint.load(tmp_path / "m").card["released"]["check"]["passed"]


def test_verb_refuses(run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    status, _, err = run("import-weights", "brainomni", folder, "--out", tmp_path / "mine")
    assert status == 2
    assert "is there and is no model" in err
    assert (tmp_path / "mine/notes.txt").exists()
    status, _, err = run("import-weights", "brainomi", folder, "--out", tmp_path / "m")
    assert status == 2
    assert "no released system named 'brainomi'; did you mean 'brainomni'?" in err
    weights = torch.load(folder / "BrainOmni.pt", weights_only=True)
    torch.save({**weights, "mask_token": torch.full((8,), torch.nan)}, folder / "BrainOmni.pt")
    status, _, err = run("import-weights", "brainomni", folder, "--out", tmp_path / "m")
    assert status == 2
    assert "NaN" in err
    assert not (tmp_path / "m").exists()
