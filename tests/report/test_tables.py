"""What a result holds beside its score: as tables, on the page and in the terminal, and as figures."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import browser
import made_up
import numpy as np
import pytest

from brainfm import describe
from brainfm.evaluations import retrieval
from brainfm.report import connectome, few_shot, measures, page, tables, verdict
from brainfm.report.tables import Scored

HELD = ("several_measures", "latents", "over_blocks", "few_labels", "connectome", "compared", "fingerprints",
        "hidden_regions")  # fmt: skip
DRAWN = ("connectome", "compared")


def made(which: str) -> dict:
    make = getattr(made_up, which)
    return make(np.random.default_rng(0)) if which in DRAWN else make()


def titled(result: dict) -> dict[str, tables.Table]:
    return {table.title: table for table in tables.of(result)}


def row(table: tables.Table, name: str) -> dict[str, tables.Cell]:
    return next(dict(zip(table.heads, cells, strict=True)) for cells in table.rows if cells[0] == name)


def test_measures_are_methods_by_measures_with_chance_and_counts() -> None:
    table = titled(made("several_measures"))["Measures"]
    assert table.heads == ("method", "rate correlation", "bits per spike", "Fano factor", "AUPRC")
    assert row(table, "GLM") == {
        "method": "GLM", "rate correlation": Scored(0.5, [0.25, 0.75]), "bits per spike": Scored(0.75, [0.5, 1.0]),
        "Fano factor": None, "AUPRC": None,
    }  # fmt: skip
    assert row(table, "chance")["AUPRC"] == 0.021
    assert row(table, "chance")["Fano factor"] is None
    assert row(table, "pairs scored")["AUPRC"] == 10620
    found = titled(made("several_measures"))
    assert row(found["Pretrained minus baseline, within animals"], "mean")["difference"] == Scored(0.4, None)
    assert row(found["Animals"], "test_spikes/a")["rate correlation"] == Scored(0.3, [0.2, 0.4])


def test_latents_stand_beside_the_baselines_of_the_score() -> None:
    table = titled(made("latents"))["Latents"]
    assert table.heads == ("method", "co-bps", "fp-bps", "psth R2")
    assert row(table, "pretrained")["co-bps"] == Scored(0.13, made_up.interval(0.13, 0.1)["ci"])
    assert row(table, "pretrained")["fp-bps"] == Scored(-0.02)
    assert row(table, "linear")["co-bps"].score == 0.11  # type: ignore[union-attr]
    assert row(table, "linear")["fp-bps"] is None


def test_blocks_have_every_column_and_errors_their_unit() -> None:
    found = titled(made("over_blocks"))
    assert row(found["R2 by block of time"], "ridge")["block 2"] == [0.5, None]
    assert row(found["Median error (px)"], "naive Bayes") == {"method": "naive Bayes", "error": 27.0}


def test_errors_and_differences_follow_the_labels() -> None:
    found = titled(made("few_labels"))
    errors = found["Median error"]
    assert errors.heads == ("method", "5", "100")
    assert row(errors, "joint") == {"method": "joint", "5": 35.0, "100": 130.0}
    assert row(errors, "mean") == {"method": "mean", "5": None, "100": 300.0}
    gained = row(found["Paired differences by number of labels"], "5")
    assert gained["effect of transfer"].score == 0.14  # type: ignore[union-attr]
    assert gained["joint minus separate"].score == -0.06  # type: ignore[union-attr]


def test_components_have_their_p() -> None:
    said = row(titled(made("connectome"))["Components"], "activity")
    assert (said["rank"], said["p"], said["p of sizes"]) == (2, 0.05, [0.05, None])
    assert said["communities"] == "test_spikes/a 2, test_spikes/b 3"


def test_methods_stand_against_chance() -> None:
    result = made("compared")
    table = titled(result)["Against chance"]
    said = row(table, "lora")
    assert said["above chance"] == result["methods"][1]["chance_corrected"]
    assert (said["p"], said["smallest p"]) == (0.001, 0.001)
    assert said["p by"] == "by permutation of stretches within recordings"
    nothing = {"methods": [{"name": "permuted labels", "p": None, "p_over": "", "chance_corrected": 0.1}]}
    assert row(tables.against_chance(nothing), "permuted labels")["p by"] == ""


def test_regions_have_their_score_and_surrogates_their_p() -> None:
    found = titled(made("hidden_regions"))
    regions = found["R of hidden regions"]
    assert row(regions, "region 3")["R"].score == pytest.approx(0.13)  # type: ignore[union-attr]
    assert (len(regions.rows), regions.note) == (20, "The worst 20 of 30 regions.")
    said = row(found["Against chance"], "pretrained")
    assert (said["p"], said["p by"]) == (0.015, "by 200 surrogates of the truth, R as large")


def test_candidates_are_counted_and_lower_ranks_are_better() -> None:
    result = made("fingerprints")
    found = titled(result)
    assert row(found["Candidates"], "fedcba9876543210")["people"] == 20
    assert found["Measures"].note == "Lower is better: median rank / N."
    assert measures.direction("median rank / N") == " (lower is better)"
    assert measures.direction("top-1 accuracy") == ""
    assert measures.forest(result, 1).count("(lower is better)") == 1
    assert all(f'"{measure}"' in inspect.getsource(retrieval) for measure in tables.LOWER)


@pytest.mark.parametrize(
    ("over", "said"),
    [("trials", "by permutation of trials within recordings"), ("people", "by flipping signs of people, two-sided"),
     ("stretches", "by permutation of stretches within recordings"), (None, "by permutation")],
)  # fmt: skip
def test_how_p_came_about_is_said(over: str | None, said: str, capsys: pytest.CaptureFixture) -> None:
    result = made("latents") | {"p": 0.02, "p_over": over}
    assert f" (p = 0.020 {said})." in verdict.sentence(result)
    describe.show_result(result)
    assert f"; p = 0.020 {said}\n" in capsys.readouterr().out
    assert (over is None) or over in tables.OVER


def test_a_cell_is_written_by_who_prints_it() -> None:
    def number(x: object) -> str:
        return "none" if x is None else f"<{x}>"

    cells = ("word", 12345, 0.5, None, [0.5, None], [], Scored(0.5, [0.4, 0.6]), Scored(0.5), Scored(0.5, [None, 1]))
    assert [tables.text(x, number) for x in cells] == [
        "word", "12,345", "<0.5>", "none", "<0.5>, none", "none", "<0.5> [<0.4>, <0.6>]", "<0.5>", "<0.5>",
    ]  # fmt: skip


@pytest.mark.parametrize("which", HELD)
def test_info_and_page_print_every_table(which: str, capsys: pytest.CaptureFixture) -> None:
    """Every head, name and number of every table, to the decimals of either."""
    result = made(which)
    describe.show_result(result)
    printed, html = capsys.readouterr().out, measures.sections([result])
    said = re.sub(r"<[^>]+>", " ", html)
    assert len(tables.of(result)) >= 1
    for table in tables.of(result):
        for place in (printed, said):
            assert all(head in place for head in table.heads), table.title
            assert all(cells[0] in place for cells in table.rows), table.title
        for cell in (x for cells in table.rows for x in cells[1:]):
            if isinstance(cell, Scored) and cell.score is not None:
                assert f"{cell.score:.3f}" in printed
                assert page.summary.number(cell.score) in said
    assert '<span class="badge">simulated</span>' in html
    assert (", p = 0.005" in said) == ("; p = 0.005" in printed) == (which == "connectome")


def test_names_are_no_markup(capsys: pytest.CaptureFixture) -> None:
    evil = "[bold]</td><script>x"
    result = made("several_measures") | {"measures": {evil: {evil: made_up.interval(0.4, 0.1)}}, "differences": None}
    describe.show_result(result)
    assert evil in capsys.readouterr().out
    assert evil not in measures.sections([result])


@pytest.mark.parametrize(
    ("which", "figures"),
    [("fingerprints", ["measures"]), ("hidden_regions", []),
     ("several_measures", ["measures"]), ("latents", ["measures"]), ("over_blocks", ["blocks"]), ("few_labels", []),
     ("connectome", ["connectome"])],
)  # fmt: skip
def test_each_result_has_its_figures(which: str, figures: list[str]) -> None:
    html = measures.sections([made(which)])
    assert re.findall(r'id="fig-([a-z]+)-1"', html) == figures
    assert html.count("simulated</span>") == 1 + len(figures)


def test_a_score_far_below_zero_is_an_arrow_with_its_value() -> None:
    html = measures.forest(made("several_measures"), 1)
    assert "triangle-left" in html
    assert "−7.25" in html
    assert "Arrows at the left edge" in html
    assert "Arrows" not in measures.forest(made("latents"), 1)
    assert "Lines that leave a panel" in measures.over_blocks(made("over_blocks"), 1)


def test_blocks_are_means_over_columns() -> None:
    found = measures.means(made("over_blocks")["per_block"]["ridge"])
    np.testing.assert_allclose(found, [0.45, 0.5, 0.15])
    assert np.isnan(measures.means([[None], []])).all()


def test_communities_stand_in_order_of_size_with_their_borders() -> None:
    graph = made("connectome")["graph"]
    found = connectome.ordered(graph)
    assert found is not None
    assert found["edges"] == [8]  # eight neurons of community 0, then four of 1
    order = [int(x[1:]) for x in found["names"]]
    np.testing.assert_array_equal(found["affinity"], np.array(graph["affinity"])[np.ix_(order, order)])
    np.testing.assert_array_equal(found["true"], np.array(graph["true"])[order])
    assert found["true"].tolist() == [1] * 4 + [2] * 3 + [-1] + [0] * 4
    assert connectome.ordered({**graph, "found": [0]}) is None
    assert connectome.ordered(None) is None


def test_the_connectome_draws_what_it_has() -> None:
    whole = made("connectome")
    assert "true groups" in connectome.draw(whole, 1)
    assert "199 times" in connectome.draw(whole, 1)
    no_truth = whole | {"graph": {**whole["graph"], "true": [-1] * 12}, "null": None}
    assert "true groups" not in connectome.draw(no_truth, 1)
    assert "found communities" in connectome.draw(no_truth, 1)
    assert "score by chance" in connectome.draw(whole | {"graph": None}, 1)
    assert connectome.draw(made("latents"), 1) == ""


def test_joint_training_is_drawn_beside_the_effect_of_transfer() -> None:
    drawn = few_shot.draw([made("few_labels")])
    assert [re.search(r'id="(fig-[a-z-]+-1)"', x)[1] for x in drawn] == [
        "fig-few-shot-1",
        "fig-transfer-1",
        "fig-joint-1",
    ]
    assert "pretrained minus untrained" in drawn[1]
    assert "responses and behaviour together" in drawn[2]
    assert "intervals over subjects." in drawn[2]
    assert len(few_shot.draw([made("few_labels") | {"joint_minus_separate": None}])) == 2


def test_results_of_a_score_alone_have_no_section() -> None:
    plain = made_up.classification(np.random.default_rng(0), "k", "t", ["a", "b"], 0.7)
    assert tables.of(plain) == []
    assert measures.sections([plain, {"key": "bare"}]) == ""
    assert "Further measures" not in page.render("t", [plain], [], None, {})


@pytest.mark.slow
@pytest.mark.skipif(browser.chromium() is None, reason="no chromium on this machine")
def test_the_page_draws_them_all(tmp_path: Path) -> None:
    results = made_up.beside(np.random.default_rng(0))
    made_page = page.write_page(tmp_path / "r.html", "t", made_up.stored(tmp_path, results), [], None, {})
    seen, console = browser.opened(made_page)
    assert (console, seen.body.get("data-errors"), seen.loads) == ([], None, [])
    assert set(seen.figures.values()) == {"true"}
    kinds = {"measures": 2, "blocks": 1, "connectome": 1, "joint": 1, "transfer": 1}
    assert {k: sum(i.startswith(f"fig-{k}-") for i in seen.figures) for k in kinds} == kinds
    assert made_page.stat().st_size < 6e6
