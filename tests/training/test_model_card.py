"""The page of a model: a head that parses, and the facts of its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from brainfm.codebooks import braintokenizer
from brainfm.training import checkpoint, model_card
from brainfm.training.checkpoint import Pretrained

CONFIG = {"kind": "models", "name": "brainomni", "keywords": {"dim": 8}}
FACTS = {"modality": ("eeg",), "kinds": ("eeg",), "sfreq": 256.0}
CARD: dict[str, Any] = {
    "title": "mine", "objective": ["masked_codes"], "parameters": 1234567, "steps": 10, "seed": 3,
    "datasets": [
        {"name": "real", "modality": "eeg", "subjects": 2, "licence": "ODC-BY | 1.0", "simulated": False,
         "steps": [{"step": "filter", "low_hz": 0.5}]},
        {"name": "made", "modality": "eeg", "subjects": 1, "licence": "none: 'x'\n- y", "simulated": True},
    ],
    "subjects": {"train": ["real/1", "real/2", "made/1"], "val": ["real/3"]},
    "checksums": {"a": "1", "b": "2"}, "metrics": {"train/loss": 2.0, "val/loss": 1.23456},
}  # fmt: skip


def head(page: str) -> dict[str, Any]:
    before, said, _ = page.split("---\n", 2)
    assert before == ""
    return yaml.safe_load(said)


def test_the_head_is_what_hubs_read() -> None:
    said = head(model_card.text(CONFIG, FACTS, CARD))
    assert said["library_name"] == "brainfm"
    assert said["license"] == "other"
    assert said["license_name"] == "real: ODC-BY | 1.0; made: none: 'x'\n- y"
    assert said["datasets"] == ["real", "made"]
    assert said["metrics"] == ["train/loss", "val/loss"]
    assert said["tags"] == ["brainfm", "brainomni", "eeg", "simulated-data"]


def test_the_page_says_what_the_card_says() -> None:
    page = model_card.text(CONFIG, FACTS, CARD)
    for line in (
        "# mine", "| network | model `brainomni` |", "| parameters | 1,234,567 |", "| objective | masked_codes |",
        "| people seen | 3 in training, 1 in validation |", "| recordings with checksums | 2 |",
        "| simulated data | in part |", r"| real | eeg | 2 | ODC-BY \| 1.0 | no |",
        "| made | eeg | 1 | none: 'x' - y | yes |",
        '- real: `[{"step": "filter", "low_hz": 0.5}]`', "| val/loss | 1.235 |",
        "| input | eeg at 256 samples per second |",
    ):  # fmt: skip
        assert line in page.splitlines(), line
    assert page.index("val/loss | 1.235") < page.index("train/loss | 2")


@pytest.mark.parametrize(("simulated", "word"), [([True], "yes"), ([False], "no"), ([], "not recorded")])
def test_simulated_or_not(simulated: list[bool], word: str) -> None:
    card = {"datasets": [{"name": str(i), "simulated": x} for i, x in enumerate(simulated)]}
    assert f"| simulated data | {word} |" in model_card.text(CONFIG, FACTS, card)


def test_processing_of_codes_is_that_of_the_tokenizer() -> None:
    card = {"datasets": [{"name": "real"}], "tokenizer": {"datasets": CARD["datasets"]}}
    assert '- real: `[{"step": "filter", "low_hz": 0.5}]`' in model_card.text(CONFIG, FACTS, card)


@pytest.mark.parametrize("card", [{}, {"untrained": True}, {"datasets": None, "metrics": None, "subjects": None}])
def test_a_card_with_nothing_in_it(card: dict[str, Any]) -> None:
    page = model_card.text(CONFIG, {}, card)
    assert head(page)["license_name"] == "not stated"
    assert "| parameters | not recorded |" in page


def test_saving_writes_the_page(tmp_path: Path) -> None:
    config = {"kind": "codebooks", "name": "braintokenizer", "keywords": braintokenizer.SIZES["test"]}
    model = Pretrained(checkpoint.build(config, braintokenizer.FACTS).eval(), config, braintokenizer.FACTS, CARD)
    page = (model.save(tmp_path / "m") / "README.md").read_text()
    assert head(page)["datasets"] == ["real", "made"]
    assert "| network | codebook `braintokenizer` |" in page
