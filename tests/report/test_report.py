"""The report on made-up results: complete, drawn by a real browser without an error, alone in the world, and honest."""

from __future__ import annotations

import json
import re
from pathlib import Path

import browser
import made_up
import numpy as np
import pytest

from brainfm.report import matrices, style, summary, topographies, verdict
from brainfm.report.page import write_page

needs_browser = pytest.mark.skipif(browser.chromium() is None, reason="no chromium on this machine")
NAN = float("nan")


def write(folder: Path, results: list[dict], models: list[Path] = (), audit: dict | None = made_up.AUDIT) -> Path:
    where = None
    if audit is not None:
        where = folder / "audit.json"
        where.write_text(json.dumps(audit))
    stored = made_up.stored(folder / "results", results)
    return write_page(folder / "out" / "report.html", "Report on test data", stored, models, where, made_up.PROVENANCE)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    return write(folder, made_up.results(rng), [made_up.model_folder(folder, "luna_small", rng)])


def test_report_holds_every_figure_and_loads_nothing(page: Path) -> None:
    text = page.read_text()
    seen = browser.read(text)
    kinds = [re.sub(r"fig-|-\d+$", "", identity) for identity in seen.figures]
    expected = {
        "scores": 3,
        "few-shot": 2,
        "confusion": 4,
        "traces": 2,
        "matrices": 1,
        "topographies": 2,
        "learning": 1,
    }
    assert {kind: kinds.count(kind) for kind in kinds} == expected
    assert seen.loads == []
    assert len(seen.figures) == len(set(seen.figures)), "ids repeat"
    assert len(text) < 8e6
    assert not list(page.parent.glob(".*")), "a part of the file was left behind"


@needs_browser
@pytest.mark.slow
def test_report_is_drawn_without_error(page: Path) -> None:
    seen, console = browser.opened(page)
    assert [identity for identity, drawn in seen.figures.items() if drawn != "true"] == []
    assert seen.figures.keys() == browser.read(page.read_text()).figures.keys()
    assert not seen.body.get("data-errors")
    assert console == []


@needs_browser
@pytest.mark.slow
def test_browser_check_finds_a_broken_figure(page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(
        page.read_text().replace('Plotly.newPlot(                        "fig-scores-1-plot"', "missing(", 1)
    )
    assert browser.undrawn(broken) == ["fig-scores-1"]
    assert browser.errors(broken)


@needs_browser
@pytest.mark.slow
def test_hostile_text_stays_text(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><b>"
    rng = np.random.default_rng(1)
    result = made_up.classification(
        rng, "evil", evil, [evil, "<b>"], 0.8, note=evil, dataset=evil, model=evil, metric=evil, curve_axis=evil,
        per_subject={"<b>": 0.7}, curve=made_up.few_shot(rng, 0.8), matrices=made_up.connectivity(rng),
        topographies=[made_up.topography(rng, 9, evil)],
    )  # fmt: skip
    result["baselines"][evil] = {"score": 0.6, "ci": [0.5, 0.7]}
    result["matrices"][0] |= {"title": evil, "rows": [evil] * 12}
    page = write(tmp_path, [result], audit={"passed": False, "checks": [{"what": evil, "pairs": 1, "leaks": [evil]}]})
    assert "<script>alert" not in page.read_text()
    assert "&lt;b&gt;" in page.read_text()
    seen, console = browser.opened(page)
    assert (console, seen.body.get("data-errors")) == ([], None)
    assert set(seen.figures.values()) == {"true"}


@needs_browser
@pytest.mark.slow
def test_missing_numbers_are_dashes(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    bare = {"stage": "decode", "key": "bare", "task": "bare"}
    gaps = made_up.classification(rng, "gaps", "gaps", ["a", "b"], 0.7) | {
        "score": NAN, "ci": [NAN, None], "chance": None, "n_subjects": None, "per_subject": {"x": None},
        "curve": [{"shots": 1, "model": "pretrained", "score": None, "ci": None}],
    }  # fmt: skip
    gaps["baselines"] = {"untrained": {"score": None, "ci": None}, "ridge": None}
    gaps["confusion"]["counts"][0] = [0, 0]
    gaps["topographies"] = [
        {"title": "three", "positions": [[0.05, 0, 0.1], [0, 0.05, 0.1], [NAN] * 3], "values": [1, -1, 2], "names": []}
    ]
    gaps["traces"] = [
        {"title": "holes", "time": [0, 1, 2], "true": [1, NAN, 3], "predicted": [NAN, NAN, NAN], "unit": "m"}
    ]
    page = write(tmp_path, [bare, gaps], audit=None)
    assert "nan" not in re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.DOTALL).lower().split()
    seen, console = browser.opened(page)
    assert console == []
    assert seen.figures
    assert set(seen.figures.values()) == {"true"}
    assert "–" in summary.row(gaps, ["untrained"])


def test_empty_report_is_a_page(tmp_path: Path) -> None:
    text = write_page(tmp_path / "empty.html", "Nothing yet", [], [], None, {}).read_text()
    assert "There are no results yet" in text
    assert browser.read(text).figures == {}


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ((0.8, [0.75, 0.85]), (0.6, [0.5, 0.7]), verdict.BETTER),
        ((0.8, [0.70, 0.85]), (0.6, [0.5, 0.7]), verdict.SAME),
        ((0.8, [0.65, 0.85]), (0.6, [0.5, 0.7]), verdict.SAME),
        ((0.5, [0.45, 0.55]), (0.7, [0.6, 0.8]), verdict.WORSE),
        ((0.8, None), (0.6, [0.5, 0.7]), verdict.UNKNOWN),
        ((NAN, [0.7, 0.8]), (0.6, [0.5, 0.6]), verdict.UNKNOWN),
    ],
)
def test_verdict_follows_from_the_intervals(mine: tuple, theirs: tuple, expected: str) -> None:
    assert verdict.compare(*mine, *theirs) == expected


def test_sentence_warns_of_permuted_labels_and_names_what_is_missing() -> None:
    result = {
        "score": 0.9,
        "ci": [0.85, 0.95],
        "chance": 0.5,
        "metric": "AUROC",
        "baselines": {
            "permuted labels": {"score": 0.7, "ci": [0.6, 0.8]},
            "untrained": {"score": 0.88, "ci": [0.8, 0.9]},
        },
    }
    told = verdict.sentence(result)
    assert "above chance (0.50)" in told
    assert "no clear difference from the untrained network, 0.88 [0.80, 0.90]" in told
    assert "No linear baseline was scored" in told
    assert "p =" not in told
    assert "above chance (0.50) (p = 0.005 by permutation)." in verdict.sentence(result | {"p": 0.005})
    assert "the control “permuted labels” also scores above chance" in told


def test_simulated_is_said_wherever_results_stand(page: Path) -> None:
    text = page.read_text()
    for identity, whole in re.findall(
        r'<figure class="figure[^"]*" id="([^"]+)".*?(<figcaption>.*?</figcaption>)', text, re.DOTALL
    ):
        real = identity in ("fig-confusion-3", "fig-scores-2", "fig-traces-1")
        assert ('class="badge"' in whole) is not real, identity
    assert "come from simulated data" in text


def test_methods_are_told_from_names() -> None:
    names = {
        "untrained": "untrained", "permuted labels": "permuted", "time-shifted": "permuted", "majority": "majority",
        "mean": "majority", "CSP + LDA": "linear", "ridge": "linear", "log_band_power": "linear",
        "functional connectivity": "other", "a neural net": "other",
    }  # fmt: skip
    assert {name: style.method(name) for name in names} == names


def test_thin_keeps_the_peak() -> None:
    y = np.zeros(100_000)
    y[54_321] = 7.0
    x, kept = style.thin(np.arange(100_000), y)
    assert len(kept) <= 902
    assert kept.max() == 7.0
    assert np.all(np.diff(x) >= 0)


def test_similarity_leaves_the_diagonal_out() -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(size=(6, 6))
    b = a + 100 * np.eye(6)
    assert matrices.similarity(a, b) == pytest.approx(1.0)
    assert np.isnan(matrices.similarity(a, np.ones((6, 6))))


def test_channels_keep_their_side_of_the_head() -> None:
    places, on_surface = topographies.project(made_up.cap(32))
    assert on_surface
    assert np.corrcoef(places[:, 0], made_up.cap(32)[:, 0])[0, 1] > 0.95
    assert np.abs(places).max() < 1.2 * topographies.RADIUS
    _, on_surface = topographies.project(np.random.default_rng(4).normal(size=(40, 3)) * 0.03)
    assert not on_surface


def test_missing_and_damaged_inputs_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the stage"):
        write_page(tmp_path / "x.html", "x", [tmp_path / "none.json"], [], None, {})
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        write_page(tmp_path / "x.html", "x", [tmp_path / "bad.json"], [], None, {})
    assert not (tmp_path / "x.html").exists()
