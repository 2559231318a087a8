"""One key from configuration to result file: what the result says it was made with is what lies there."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from brainfm.audit import audit
from brainfm.evaluations.tasks import evaluate
from brainfm.models import luna
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard
from brainfm.training.batches import facts_of
from brainfm.training.checkpoint import Pretrained, build
from tests.evaluations.people import person

pytestmark = pytest.mark.usefixtures("one_thread")

KEY = {"probed": {"evaluation": "probe", "model": "luna_small", "data": "sim"}}
SETTINGS = {
    "title": "left or right",
    "windows": {"train": {"split": "train"}, "test": {"split": "test"}, "trials": {"tmin_s": 0.0, "tmax_s": 1.0}},
    "evaluation": {"permutations": 1},
}


def model(root: Path, seed: int) -> Path:
    """A small network as if it were trained; another seed gives other weights."""
    corpus = open_shards(root / "data/shards/sim")
    config = {"kind": "models", "name": "luna", "keywords": luna.SIZES["test"]}
    facts = facts_of(corpus, 1.0)
    torch.manual_seed(seed)
    card = {"windows": {"train": {}, "val": {}}, "checksums": {}, "tokenizer": None}
    return Pretrained(build(config, facts).eval(), config, facts, card).save(root / "data/models/luna_small")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Shards of four people with a split, a model, and the wiring of one key."""
    rng, shards = np.random.default_rng(0), tmp_path / "data/shards/sim"
    for name in "abcd":
        write_shard(shards / f"sub-{name}.h5", [person(name, rng, trials=8)], {})
    sides = {r.id: "test" if r.subject in "cd" else "train" for r in open_shards(shards).recordings}
    (shards / "split.json").write_text(json.dumps({"rule": {"test_subjects": 2}, "recordings": sides}))
    (tmp_path / "configs/decode").mkdir(parents=True)
    (tmp_path / "configs/pipeline.yaml").write_text(yaml.safe_dump({"decode": KEY}))
    (tmp_path / "configs/decode/probed.yaml").write_text(yaml.safe_dump(SETTINGS))
    return tmp_path


def test_a_result_is_of_the_weights_that_lie_there(root: Path) -> None:
    def leaks() -> list[str]:
        found = audit(root / "data/shards", [folder], [root / "data/results/decode/probed.json"])
        return [leak for check in found.checks for leak in check.leaks]

    folder = model(root, 0)
    evaluate("decode", "probed", 0, root)
    result = json.loads((root / "data/results/decode/probed.json").read_text())
    card = json.loads((folder / "card.json").read_text())
    held = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert result["model_checksum"] == card["model_checksum"] == held
    assert leaks() == []
    model(root, 1)
    (leak,) = leaks()
    assert leak == "decode probed is not of the weights of luna_small: others lie there now; run decode again"
    evaluate("decode", "probed", 0, root)
    assert leaks() == []
