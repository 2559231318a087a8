"""Figures of a model's card, made of real shards and codes, and what the report draws of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import browser
import made_up
import numpy as np
import pytest
import torch

from brainfm.codebooks import braintokenizer
from brainfm.models import brainomni
from brainfm.recording import Channels, Recording
from brainfm.report import matrices, topographies, usage
from brainfm.report.inputs import Model
from brainfm.report.page import write_page
from brainfm.shards.codes import open_codes
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.tokens import Facts
from brainfm.training import checkpoint, figures
from brainfm.training.checkpoint import Pretrained
from brainfm.training.tokenizing import tokenize

SFREQ, PATCH = 64.0, 32
FACTS = Facts(modality=("eeg", "meg"), kinds=("eeg", "mag"), sfreq=SFREQ)


def recording(subject: str, kinds: list[str], device: str, unknown: int = 0, seconds: int = 8) -> Recording:
    random = np.random.default_rng(len(kinds))
    place = made_up.cap(len(kinds))
    place[:unknown] = np.nan
    scale = np.where(np.array(kinds) == "eeg", 1e-5, 1e-13)[:, None]
    return Recording(
        "made_up", subject, "meg" if "mag" in kinds else "eeg",
        Channels.make([f"{k}{i}" for i, k in enumerate(kinds)], kinds, place), sfreq=SFREQ, device=device,
        signal=scale * random.normal(size=(len(kinds), round(seconds * SFREQ))).cumsum(axis=1), simulated=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cap, a larger one with channels out of place, and an array of both kinds of sensors."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("shards") / "made_up"
    for made in (recording("1", ["eeg"] * 8, "small"), recording("2", ["eeg"] * 14, "large", unknown=3),
                 recording("3", ["eeg", "mag"] * 5, "both")):  # fmt: skip
        write_shard(folder / f"sub-{made.subject}.h5", [made], {})
    return folder


@pytest.fixture(scope="module")
def tokenizer(shards: Path) -> Pretrained:
    torch.manual_seed(0)
    config = {"kind": "codebooks", "name": "braintokenizer", "keywords": braintokenizer.SIZES["test"]}
    found = Pretrained(checkpoint.build(config, FACTS), config, FACTS, {"figures": []})
    with torch.no_grad():
        found.model.train().autoencode(found.batcher()(open_shards(shards).windows(4.0)))
    found.model.eval()
    return found


@pytest.fixture(scope="module")
def windows(shards: Path) -> Windows:
    return open_shards(shards).windows(1.0)


@pytest.fixture(scope="module")
def omni(tokenizer: Pretrained) -> Pretrained:
    torch.manual_seed(1)
    inner = {**tokenizer.config, "facts": asdict(FACTS)}
    config = {"kind": "models", "name": "brainomni", "keywords": brainomni.SIZES["test"], "codebook": inner}
    model = checkpoint.build(config, FACTS, tokenizer.model).eval()
    with torch.no_grad():
        for block in model.blocks:  # large enough that attention prefers some
            block.across_sources.qkv.weight.normal_(std=0.4)
    return Pretrained(model, config, FACTS, {})


pytestmark = pytest.mark.filterwarnings("ignore::brainfm.training.input_checks.InputWarning")


def test_a_tokenizer_has_traces_usage_and_maps_of_all_sources(tokenizer: Pretrained, windows: Windows) -> None:
    found = figures.of(tokenizer, windows)
    assert [f["title"] for f in found if "true" in f] == [
        f"made_up, {device} (simulated): {name}"
        for device, names in (("both", ("eeg0", "mag5")), ("large", ("eeg0", "eeg7")), ("small", ("eeg0", "eeg4")))
        for name in names
    ]
    maps = [f for f in found if "montage" in f]
    assert [(f["montage"], f["title"]) for f in maps] == [
        (montage, f"source {k}")
        for montage in ("EEG cap of made_up, large", "MEG array of made_up, both") for k in (1, 2, 3)
    ]  # fmt: skip
    assert [len(f["names"]) for f in maps] == [11] * 3 + [5] * 3  # those in place; of the sort alone
    assert all(np.isfinite(f["positions"]).all() and len(f["positions"]) == len(f["values"]) for f in maps)
    json.dumps(found, allow_nan=False)


def test_usage_counts_every_token_of_signals_and_of_codes(
    tokenizer: Pretrained, omni: Pretrained, windows: Windows, shards: Path, tmp_path: Path
) -> None:
    (one,) = figures.code_usage(tokenizer, windows)
    counts = np.array(one["counts"])
    model = tokenizer.model
    assert counts.shape == (model.depth, model.codes_per_depth)
    assert (counts.sum(axis=1) == len(windows) * model.sources * 2 * model.tokens_per_window).all()
    share = counts[0][counts[0] > 0] / counts[0].sum()
    assert one["perplexity"][0] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
    assert one["title"].endswith(f"of {len(windows)} validation windows")
    tokenize(model, open_shards(shards), tmp_path / "tok", window_s=1.0)
    (coded,) = figures.code_usage(omni, open_codes(tmp_path / "tok").windows(2))
    assert coded["counts"] == one["counts"]


def test_attention_between_sources_is_named_by_where_they_look(
    omni: Pretrained, tokenizer: Pretrained, windows: Windows, shards: Path, tmp_path: Path
) -> None:
    tokenize(tokenizer.model, open_shards(shards), tmp_path / "tok", window_s=1.0)
    codes = open_codes(tmp_path / "tok").windows(2)
    plain = [f for f in figures.of(omni, codes) if "rows" in f]
    assert [f["title"] for f in plain] == ["block 1 of 2", "block 2 of 2"]
    assert plain[0]["rows"] == ["1", "2", "3"]
    for one in plain:
        np.testing.assert_allclose((2.0 ** np.array(one["values"])).sum(axis=1), 3.0, atol=1e-4)
    assert np.ptp(plain[0]["values"]) > 0.01
    of_signals = [f["values"] for f in figures.attention(omni, windows)]
    np.testing.assert_allclose(of_signals, [f["values"] for f in plain], atol=1e-4)
    named = Pretrained(omni.model, omni.config, FACTS, {"tokenizer": {"figures": figures.of(tokenizer, windows)}})
    rows = figures.attention(named, codes)[0]["rows"]
    assert [r.split()[0] for r in rows] == ["1", "2", "3"]
    assert all(len(r.split()) == 3 for r in rows)


def test_other_models_and_no_windows_have_no_figures(tokenizer: Pretrained, windows: Windows) -> None:
    assert figures.of(tokenizer, windows.take([])) == []
    assert figures.of(Pretrained(torch.nn.Linear(2, 2), {}, FACTS), windows) == []


def test_whereabouts_are_those_of_the_head() -> None:
    place = made_up.cap(64)
    for axis, sign, word in ((0, -1, "left"), (0, 1, "right"), (1, 1, "front"), (1, -1, "back")):
        values = np.exp(-np.square(place[:, axis] - sign * 0.08) / 2e-4)
        assert word in figures.whereabouts(place, values)
    assert figures.whereabouts(place, np.ones(64)) == "mid centre"


def card(figure: list[dict]) -> Model:
    return Model("m", {}, {"objective": ["o"], "datasets": [{"name": "d", "simulated": True}], "figures": figure})


def test_the_report_draws_usage_with_perplexity_and_dead_codes() -> None:
    counts = [[10, 10, 0, 10], [1, 2, 3, 4]]
    (drawn,) = usage.draw([], [card([{"title": "100 tokens", "counts": counts, "simulated": True}])])
    assert "depth 1: perplexity 3.0 of 4, 1 dead" in drawn
    assert "depth 2: perplexity 3.6 of 4, no dead" in drawn
    assert usage.read({"counts": [[0, 0]]}) is None
    assert usage.read({"counts": [[1, float("nan")]]}) is None
    assert usage.read({"counts": [[1, 3, 2]]})["counts"].tolist() == [[3, 2, 1]]


def test_every_montage_is_an_image_of_its_own() -> None:
    random = np.random.default_rng(0)
    maps = [made_up.topography(random, 9, f"source {k}") | {"montage": m} for m in ("cap", "array") for k in (1, 2)]
    drawn = topographies.draw([], [card(maps), card([made_up.topography(random, 9, "no montage")])])
    assert len(drawn) == 3
    titles = ("Model m: cap", "Model m: array", "Model m")
    assert all(f'alt="{t}: ' in d for t, d in zip(titles, drawn, strict=True))
    assert [f"fig-topographies-{i}" in d for i, d in enumerate(drawn, 1)] == [True] * 3


def test_a_note_of_matrices_is_told_once() -> None:
    both = [{"title": t, "values": [[0.5, 0.5], [0.1, 0.9]], "rows": ["a", "b"], "columns": ["a", "b"], "note": "Mark."}
            for t in ("block 1", "block 2")]  # fmt: skip
    (drawn,) = matrices.draw([], [card(both)])
    assert drawn.count("Mark.") == 1


@pytest.mark.slow
@pytest.mark.skipif(browser.chromium() is None, reason="no chromium on this machine")
def test_the_page_of_both_models_is_drawn(
    tokenizer: Pretrained, omni: Pretrained, windows: Windows, shards: Path, tmp_path: Path
) -> None:
    tokenize(tokenizer.model, open_shards(shards), tmp_path / "tok", window_s=1.0)
    for name, one, rows in (("t", tokenizer, windows), ("o", omni, open_codes(tmp_path / "tok").windows(2))):
        one.card["figures"] = figures.of(one, rows)
        one.save(tmp_path / name)
    page = write_page(tmp_path / "page.html", "Page", [], [tmp_path / "t", tmp_path / "o"], None, {})
    seen, console = browser.opened(page)
    assert (console, seen.body.get("data-errors"), seen.loads) == ([], None, [])
    assert set(seen.figures.values()) == {"true"}
    kinds = {"traces": 1, "matrices": 1, "topographies": 2, "usage": 2}
    assert {k: sum(i.startswith(f"fig-{k}") for i in seen.figures) for k in kinds} == kinds
    shutil.rmtree(tmp_path / "tok")
