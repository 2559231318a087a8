"""Comparisons, rankings and leaderboards of made-up results: complete, drawn, and honest about what is not there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import browser
import made_up
import numpy as np
import pytest

from brainfm.report import comparison, few_shot, ranking, summary, tables
from brainfm.report.page import write_page

needs_browser = pytest.mark.skipif(browser.chromium() is None, reason="no chromium on this machine")


@pytest.fixture
def result() -> dict:
    return made_up.compared(np.random.default_rng(0))


def text(html: str) -> str:
    """What a reader sees, without scripts and tags."""
    return re.sub(r"<[^>]+>", " ", re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL))


def test_every_method_has_a_row_with_score_cost_and_worst_person(result: dict) -> None:
    result["methods"][1] |= {"trained": 12345, "seconds": 3.5, "decode_ms": 0.4}
    rows = re.findall(r"<tr>.*?</tr>", comparison.table(result).split("<tbody>")[1])
    assert len(rows) == len(made_up.METHODS)
    lora = text(rows[1])
    worst = result["methods"][1]["worst"]
    assert all(x in lora for x in ("lora", "penalty 0.1", worst[0], summary.whole(12345), "3.50", "0.40", "0.001"))
    assert f"{2 * result['methods'][1]['score'] - 1:.2f}" in lora


def test_the_budget_is_said() -> None:
    said = comparison.budget({"budget": {"tries": 3, "steps": 100}, "n_subjects": 8, "n_trials": 320})
    assert "up to 3 settings to try, at most 100 steps" in said
    assert "8 people on 320 trials" in said
    assert "No tuning budget was recorded" in comparison.budget({})


def test_few_people_are_told_what_their_p_can_be(result: dict) -> None:
    assert "smallest Wilcoxon p" not in comparison.pairs_table(result)
    few = made_up.compared(np.random.default_rng(1), people=5)
    assert "With 5 people the smallest Wilcoxon p is 0.062" in comparison.pairs_table(few)
    assert comparison.pairs_table({**few, "pairs": []}) == ""


def test_many_pairs_are_drawn_for_the_first_method_alone(result: dict) -> None:
    result["pairs"] *= 4
    result["pairs"][5:] = [{**p, "a": "lora"} for p in result["pairs"][5:]]
    shown = comparison.shown_pairs(result)
    assert shown
    assert all("probe" in (p["a"], p["b"]) for p in shown)


def test_groups_stand_beside_each_other(result: dict) -> None:
    said = text(comparison.groups(result))
    assert all(x in said for x in ("sex: F", "sex: M", "age: up to 30", "5 people", "3 people"))
    for method in result["methods"]:
        method["groups"] = {}
    assert comparison.groups(result) == ""


def test_methods_of_results_of_other_evaluations() -> None:
    rng = np.random.default_rng(2)
    found = comparison.methods(made_up.classification(rng, "k", "t", ["a", "b"], 0.8))
    assert {m["name"]: m["kind"] for m in found} == {
        "pretrained": "pretrained", "majority": "control", "log_band_power": "baseline", "tangent_space": "baseline",
        "untrained": "untrained", "permuted labels": "control",
    }  # fmt: skip
    assert comparison.sections([made_up.classification(rng, "k", "t", ["a", "b"], 0.8)]) == ""


def test_curves_of_one_kind_are_told_apart(result: dict) -> None:
    looks = few_shot.looks(result, list(made_up.METHODS)[:5])
    assert len({(colour, dash) for _, colour, _, dash in looks.values()}) == 5
    assert [legend for legend, *_ in looks.values()] == list(made_up.METHODS)[:5]
    plain = few_shot.looks({}, ["pretrained", "untrained", "linear", "log_band_power"])
    assert [legend for legend, *_ in plain.values()] == [
        "pretrained model", "untrained network", "linear", "log_band_power",
    ]  # fmt: skip
    assert {dash for *_, dash in list(plain.values())[:3]} == {"solid"}


def test_the_effect_of_transfer_stands_beside_the_curve(result: dict) -> None:
    assert len(few_shot.draw([result])) == 1
    effect = [{"shots": 5, "score": 0.1, "ci": [0.02, 0.2], "per_subject": {"d/1": 0.3, "d/2": None}},
              {"shots": 0, "score": -0.05, "ci": None}, {"shots": 1, "score": None, "ci": None}]  # fmt: skip
    curve, drawn = few_shot.draw([result | {"effect_of_transfer": effect}])
    assert "fig-few-shot-1" in curve
    assert "5 shots: 0.10 [0.020, 0.20]" in drawn
    assert "d\\u002f1: 0.3" in drawn
    pairs = [p | {"model": m, "against": f"untrained {m}"} for m in ("probe", "lora") for p in effect]
    both = few_shot.draw([result | {"effect_of_transfer": pairs}])[1:]
    assert [f'id="fig-transfer-{n}"' in drawn for n, drawn in zip(("1", "1-2"), both, strict=True)] == [True, True]
    assert ["lora" in drawn for drawn in both] == [False, True]
    table = tables.gains({"effect_of_transfer": pairs})
    assert table.heads == ("labels", *(f"effect of transfer, {m} minus untrained {m}" for m in ("probe", "lora")))


def test_ranking_leaves_controls_out_and_says_when_it_cannot_be(result: dict) -> None:
    other = made_up.compared(np.random.default_rng(3), "other", dataset="second")
    scores = ranking.collected([result, other])
    assert list(scores) == ["test_data_eeg: left, right · cross-subject", "second: left, right · cross-subject"]
    assert set(scores["second: left, right · cross-subject"]) == {
        "luna_small: probe", "luna_small: lora", "luna_small: untrained probe", "CSP + LDA", "EEGNet",
    }  # fmt: skip
    html = ranking.section(scores)
    assert "fig-ranking-1" in html
    assert "critical difference" in html
    assert "No ranking: it needs two or more methods" in ranking.section(ranking.collected([result]))
    assert ranking.section({}) == ""


def test_of_a_task_the_split_of_the_first_result_is_ranked(result: dict) -> None:
    other = made_up.compared(np.random.default_rng(3), "other", model="omni_small")
    (found,) = ranking.collected([result, other]).values()
    assert "omni_small: probe" in found
    for split in ("feedbeef", ""):
        (found,) = ranking.collected([result, {**other, "split_id": split}]).values()
        assert found["luna_small: probe"] == result["methods"][0]["score"]
        assert found["CSP + LDA"] == result["methods"][3]["score"]
        assert not any("omni_small" in name for name in found)


def test_baselines_that_are_networks_or_controls_are_told_by_their_names() -> None:
    names = {
        "probe": "pretrained", "encodings": "pretrained", "from scratch": "untrained", "joint": "untrained",
        "untrained": "untrained", "time-shifted": "control", "mean": "control", "permuted labels": "control",
        "ridge": "baseline", "Wiener": "baseline", "naive Bayes": "baseline",
    }  # fmt: skip
    assert {name: comparison.kind_of(name) for name in names} == names


def test_cost_is_read_from_beside_the_results(result: dict, tmp_path: Path) -> None:
    (stored,) = made_up.stored(tmp_path / "results/transfer", [result])
    cost = tmp_path / "results/cost/transfer/compared.json"
    cost.parent.mkdir(parents=True)
    took = {"seconds": 7.25, "decode_ms": 1, "trained": 1698}
    cost.write_text(json.dumps({"seconds": 9, "methods": {"EEGNet": took}}))
    page = write_page(tmp_path / "page.html", "x", [stored], [], None, {}).read_text()
    assert "7.25" in text(page)
    assert summary.whole(1698) in text(page)


@needs_browser
@pytest.mark.slow
def test_comparison_is_drawn_with_gaps_and_hostile_names(result: dict, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><b>"
    other = made_up.compared(np.random.default_rng(4), "other", dataset="second", task=evil, protocol=evil)
    other["methods"][0] |= {"score": None, "ci": None, "worst": None, "per_subject": {"a": None}, "groups": None}
    other["methods"][3] |= {"name": evil, "ece": float("nan"), "setting": {evil: [evil]}, "adapt": evil}
    other["pairs"][0] |= {"a": evil, "ci": None, "holm_p": None}
    bare = {"key": "bare", "methods": [{"score": 0.5}]}
    stored = made_up.stored(tmp_path / "results", [result, other, bare])
    page = write_page(tmp_path / "page.html", "x", stored, [], None, {})
    assert "<script>alert" not in page.read_text()
    seen, console = browser.opened(page)
    assert (console, seen.body.get("data-errors")) == ([], None)
    assert set(seen.figures.values()) == {"true"}
    assert {"fig-comparison-1", "fig-pairs-2", "fig-ranking-1", "fig-comparison-3"} <= set(seen.figures)
