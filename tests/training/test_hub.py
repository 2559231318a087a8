"""Addresses on the hub, with a stand-in for huggingface_hub: no test asks the network."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import brainfm
from brainfm import cli
from brainfm.codebooks import braintokenizer
from brainfm.training import checkpoint, hub, released
from brainfm.training.checkpoint import Pretrained


@pytest.fixture
def model() -> Pretrained:
    config = {
        "kind": "codebooks",
        "name": "braintokenizer",
        "keywords": {**braintokenizer.SIZES["test"], "released": True},
    }
    return Pretrained(checkpoint.build(config, braintokenizer.FACTS).eval(), config, braintokenizer.FACTS, {"seed": 4})


class FakeHub:
    """Gives a folder for every repository and keeps what it was asked."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked, self.error = root, {}, None

    def snapshot_download(
        self, repo_id: str, revision: str | None = None, allow_patterns: list[str] | None = None
    ) -> str:
        self.asked = {"repo_id": repo_id, "revision": revision, "allow_patterns": allow_patterns}
        if self.error is not None:
            raise self.error
        return str(self.root)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    made = FakeHub(tmp_path / "cache")
    module = ModuleType("huggingface_hub")
    module.snapshot_download = made.snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return made


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf://lab/model", ("lab/model", None, "")),
        ("hf://lab/model@9a4d3c70", ("lab/model", "9a4d3c70", "")),
        ("hf://lab/model@refs%2Fpr%2F1/tiny", ("lab/model", "refs/pr/1", "tiny")),
        ("hf://lab/model/a/b.c/", ("lab/model", None, "a/b.c")),
        (Path("hf://lab/model@v1.0"), ("lab/model", "v1.0", "")),
    ],
)
def test_addresses(text: str | Path, parts: tuple) -> None:
    assert hub.is_address(text)
    assert hub.parse(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "hf://model",
        "hf://lab/model/..",
        "hf://lab/model/../../etc",
        "hf://../x",
        "hf://lab/model@",
        "hf://lab/model@a@b",
        "hf://",
    ],
)
def test_other_forms_are_refused_before_anything_is_asked(fake: FakeHub, text: str) -> None:
    with pytest.raises(ValueError, match="expected hf://owner/name"):
        brainfm.load(text)
    assert not fake.asked


def test_folders_are_no_addresses() -> None:
    assert not any(map(hub.is_address, ("data/models/x", "hf", "/hf/x", "hf-models/x", Path("hf"))))


def test_a_model_loads_from_the_hub(fake: FakeHub, model: Pretrained) -> None:
    model.save(fake.root / "sub/dir")
    loaded = brainfm.load("hf://lab/model@9a4d3c70/sub/dir")
    assert fake.asked == {
        "repo_id": "lab/model", "revision": "9a4d3c70",
        "allow_patterns": ["sub/dir/config.json", "sub/dir/model.safetensors", "sub/dir/card.json"],
    }  # fmt: skip
    assert loaded.card.items() >= model.card.items() == {"seed": 4}.items()
    own, other = model.model.state_dict(), loaded.model.state_dict()
    assert all(torch.equal(own[k], other[k]) for k in own)
    shutil.copytree(fake.root / "sub/dir", fake.root, dirs_exist_ok=True)
    brainfm.load("hf://lab/model")
    assert fake.asked["revision"] is None
    assert fake.asked["allow_patterns"][0] == "config.json"


def test_what_is_not_there(fake: FakeHub) -> None:
    fake.root.mkdir()
    with pytest.raises(FileNotFoundError, match=r"hf://lab/model has no config\.json, model\.safetensors"):
        brainfm.load("hf://lab/model")
    fake.error = OSError("404 Client Error\nmore")
    with pytest.raises(ConnectionError, match=r"hf://lab/model cannot be fetched \(404 Client Error\)"):
        brainfm.load("hf://lab/model")


def test_without_the_package_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr("sys.argv", ["brainfm", "export-weights", "hf://lab/model", "--out", str(tmp_path / "x")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        'brainfm: hf://lab/model needs huggingface_hub; run: pip install "brainfm[hub]"\n'
    )  # fmt: skip


def test_published_weights_come_in_from_the_hub(fake: FakeHub, model: Pretrained, tmp_path: Path) -> None:
    released.export_weights(model, fake.root / "tiny")
    assert released.bring("brainomni", "hf://lab/published@9a4d3c70/tiny", tmp_path / "m")
    assert "tiny/BrainOmni.pt" in fake.asked["allow_patterns"]
    assert checkpoint.load(tmp_path / "m").card["released"]["source"] == "hf://lab/published@9a4d3c70/tiny"
