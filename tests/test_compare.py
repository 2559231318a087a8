"""What `brainfm compare` puts side by side, what it refuses to, and where each row comes from."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import md5, sha256
from pathlib import Path

import numpy as np
import pytest

from brainfm import compare, statistics

sys.path.insert(0, str(Path(__file__).parent / "report"))

import browser
import made_up


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout with the results of two models on one split, and of one of them on a second task."""
    (tmp_path / "configs/transfer").mkdir(parents=True)
    (tmp_path / "configs/transfer/luna.yaml").write_text("title: x\n")
    for model, network in (("luna_small", "luna"), ("omni_small", "brainomni")):
        folder = tmp_path / "data/models" / model
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"kind": "models", "name": network}))
    rng = np.random.default_rng(0)
    made = [
        made_up.compared(rng, "luna"),
        made_up.compared(rng, "omni", model="omni_small"),
        made_up.compared(rng, "second", dataset="other", split_id="feedbeef"),
    ]
    made_up.stored(tmp_path / "data/results/transfer", made)
    audits = tmp_path / "data/results/audit"
    audits.mkdir()
    for name, passed, key in (("good", True, "luna"), ("bad", False, "omni")):
        held = sha256((tmp_path / f"data/results/transfer/{key}.json").read_bytes()).hexdigest()
        said = {"passed": passed, "splits": [f"transfer {key}, train and test", "transfer lunatic, train and test"]}
        (audits / f"{name}.json").write_text(json.dumps({**said, "results": {f"transfer/{key}.json": held}}))
    return tmp_path


def rows(folder: Path, *names: str, against: str | None = None) -> list[compare.Row]:
    return compare.run([folder / f"data/results/transfer/{n}.json" for n in names], None, True, against)


def change(folder: Path, name: str, **words: object) -> None:
    path = folder / f"data/results/transfer/{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | words))


def test_rows_of_one_split_are_paired_across_files(project: Path) -> None:
    found = rows(project, "luna", "omni")
    reference = found[0]
    assert (reference.method, reference.not_compared) == ("luna_small: probe", "reference")
    others = found[1:]
    assert len(others) == 2 * len(made_up.METHODS) - 1
    assert all(r.difference and not r.not_compared for r in others)
    omni = next(r for r in found if r.method == "omni_small: probe")
    d = np.array([omni.people[p] - reference.people[p] for p in reference.people])
    assert omni.difference["difference"] == pytest.approx(d.mean())
    assert omni.difference["wilcoxon_p"] == pytest.approx(statistics.wilcoxon(d).p)
    expected = statistics.holm([r.difference["wilcoxon_p"] for r in others])
    assert [r.difference["holm_p"] for r in others] == pytest.approx(expected)


def test_the_t_test_of_two_files_is_corrected_by_their_folds(project: Path) -> None:
    """A fit for each of four pairs of people, each fitted on the six others and two strangers."""
    spans, who = [[0.0, 4.0]], [f"test_data_eeg/s{i:02d}" for i in range(8)]
    pairs = [who[i : i + 2] for i in range(0, 8, 2)]
    folds = [
        {
            "train": {f"{p}//{run}": spans for p in who[1:] if p not in pair for run in "12"},
            "val": {f"{p}//1": spans for p in (*who[:1], "test_data_eeg/t0", "test_data_eeg/t1") if p not in pair},
            "test": {f"{p}//{run}": spans for p in pair for run in "12"},
        }
        for pair in pairs
    ]
    for name in ("luna", "omni"):
        change(project, name, folds=folds)
    found = rows(project, "luna", "omni")
    assert (found[0].folds, found[0].n_train) == (pairs, 8.0)
    omni = next(r for r in found if r.method == "omni_small: probe")
    means = np.array([np.mean([omni.people[p] - found[0].people[p] for p in pair]) for pair in pairs])
    assert omni.difference["t_p"] == pytest.approx(statistics.corrected_t(means, 8, 2).p)
    for name in ("luna", "omni"):
        change(project, name, folds=folds * 2)  # a person in several fits, as where blocks of time are scored
    again = next(r for r in rows(project, "luna", "omni") if r.method == "omni_small: probe")
    assert (again.folds, np.isnan(again.difference["t_p"])) == ([], True)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"split_id": "aaaaaaaa"}, "another split (aaaaaa, reference 012345)"),
        ({"split_id": "", "windows": None}, "the file does not tell its split"),
    ],
)
def test_a_row_that_is_not_compared_says_why(project: Path, changed: dict, reason: str) -> None:
    change(project, "omni", **changed)
    found = [r for r in rows(project, "luna", "omni") if r.key == "omni"]
    assert found[-1].not_compared == reason
    assert not any(r.difference for r in found)


def test_baselines_without_scores_of_people_are_shown_and_not_compared(project: Path) -> None:
    change(project, "omni", methods=None)
    found = [r for r in rows(project, "luna", "omni") if r.key == "omni"]
    assert found[0].difference
    assert {r.not_compared for r in found[1:]} == {"no scores of single people in the file"}


def test_a_baseline_that_two_files_hold_is_counted_once(project: Path) -> None:
    first, second = (json.loads((project / f"data/results/transfer/{n}.json").read_text()) for n in ("luna", "omni"))
    held = {m["name"]: m for m in first["methods"]}
    same = ("CSP + LDA", "EEGNet", "majority", "permuted labels")
    change(project, "omni", methods=[held[m["name"]] if m["name"] in same else m for m in second["methods"]])
    found = rows(project, "luna", "omni")
    assert {r.method for r in found if r.not_compared == "as in the file before"} == set(same)
    assert sum(bool(r.difference) for r in found) == 2 * len(made_up.METHODS) - 1 - len(same)
    found = rows(project, "luna", "omni", against="CSP + LDA")
    assert [r.not_compared for r in found if r.method == "CSP + LDA"] == ["reference", "as in the file before"]


def test_it_is_said_where_no_p_can_be_small(project: Path) -> None:
    assert rows(project, "luna")[0].caution == ""
    assert rows(project, "luna", "omni")[0].caution == (
        "with 8 people and 13 rows Holm's p cannot be below 0.102, however large a difference is"
    )


def test_other_people_and_missing_scores_are_not_paired(project: Path) -> None:
    path = project / "data/results/transfer/omni.json"
    result = json.loads(path.read_text())
    first, second, third = (m["per_subject"] for m in result["methods"][:3])
    first["someone/else"] = first.pop("test_data_eeg/s00")
    second["test_data_eeg/s00"] = None
    third["test_data_eeg/s00"] = float("nan")
    path.write_text(json.dumps(result))
    found = {r.method: r for r in rows(project, "luna", "omni") if r.key == "omni"}
    assert found["omni_small: probe"].not_compared == "other people (2 are in one of the two only)"
    assert found["omni_small: lora"].not_compared == "someone has no score"
    assert found["omni_small: untrained probe"].not_compared == "someone has no score"
    assert found["CSP + LDA"].difference


def test_another_task_has_its_own_table_and_reference(project: Path) -> None:
    found = rows(project, "luna", "second")
    task = "{}: left, right · cross-subject (balanced accuracy)"
    assert {r.task for r in found} == {task.format(d) for d in ("test_data_eeg", "other")}
    assert [r.not_compared for r in found].count("reference") == 2
    change(project, "omni", protocol="few-shot")
    assert [r.not_compared for r in rows(project, "luna", "omni")].count("reference") == 2


def test_the_reference_can_be_named(project: Path) -> None:
    found = rows(project, "luna", "omni", against="CSP + LDA")
    assert {r.reference for r in found} == {"CSP + LDA"}
    assert [r.key for r in found if r.not_compared == "reference"] == ["luna"]
    with pytest.raises(ValueError, match="no method is called 'CSP and LDA'; did you mean 'CSP \\+ LDA'"):
        rows(project, "luna", against="CSP and LDA")


def test_models_are_ranked_by_their_network_over_tasks(project: Path, capsys: pytest.CaptureFixture) -> None:
    change(project, "second", model="luna_other")
    folder = project / "data/models/luna_other"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"kind": "models", "name": "luna"}))
    rows(project, "luna", "omni", "second")
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ranks = next(x for x in said if x["what"] == "ranking")
    assert set(ranks["ranks"]) == {"luna: probe", "luna: lora", "luna: untrained probe", "CSP + LDA", "EEGNet"}
    assert set(ranks["left_out"]) == {"brainomni: probe", "brainomni: lora", "brainomni: untrained probe"}
    change(project, "omni", model="luna_other")
    names = {name for unit in compare.units(rows(project, "luna", "omni")).values() for name in unit}
    assert {"luna_small: probe", "luna_other: probe"} <= names


def test_of_a_task_the_split_of_the_reference_is_ranked(project: Path) -> None:
    task = "test_data_eeg: left, right · cross-subject (balanced accuracy)"
    change(project, "omni", split_id="aaaaaaaa")
    assert not any("brainomni" in name for name in compare.units(rows(project, "luna", "omni"))[task])
    given = compare.units(rows(project, "luna", "omni", against="omni_small: probe"))[task]
    assert not any("luna" in name for name in given)
    assert given["CSP + LDA"] == next(r.score for r in rows(project, "omni") if r.method == "CSP + LDA")
    for name in ("luna", "omni"):
        change(project, name, split_id="", windows=None)
    assert not any("brainomni" in name for name in compare.units(rows(project, "luna", "omni"))[task])
    alone = compare.units([r for r in rows(project, "luna", "omni") if r.kind == "baseline"])
    luna = {r.method: r.score for r in rows(project, "luna")}
    assert alone[task] == {name: luna[name] for name in ("CSP + LDA", "EEGNet")}


def test_encodings_of_two_networks_are_two_methods(project: Path) -> None:
    rng = np.random.default_rng(6)
    one = made_up.interval(0.5, 0.1)
    more = {n: one for n in ("encodings", "from scratch", "joint", "time-shifted", "ridge")}
    made = [made_up.classification(rng, k, "t", ["a", "b"], 0.8, model=k, baselines=more, split_id="ab") for k in "xy"]
    made_up.stored(project / "data/results/transfer", made)
    (found,) = compare.units(rows(project, "x", "y")).values()
    own = {f"{k}: {n}" for k in "xy" for n in ("pretrained", "encodings", "from scratch", "joint")}
    assert set(found) == own | {"ridge"}


def test_too_little_to_rank_is_said(project: Path, capsys: pytest.CaptureFixture) -> None:
    rows(project, "luna")
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "needs two or more methods" in last["why_not"]


def test_where_a_row_comes_from(project: Path) -> None:
    def git(*words: str) -> str:
        name = ("-c", "user.name=x", "-c", "user.email=x@x")
        return subprocess.run(["git", *name, *words], cwd=project, capture_output=True, text=True, check=True).stdout

    git("init", "-q")
    held = md5((project / "data/results/transfer/luna.json").read_bytes()).hexdigest()
    (project / "dvc.lock").write_text(f"outs:\n- md5: {held}\n")
    git("add", "dvc.lock")
    git("commit", "-qm", "run")
    commit = git("rev-parse", "HEAD").strip()
    (project / "dvc.lock").write_text("outs: []\n")
    git("commit", "-qam", "another run")
    luna, omni = (next(r for r in rows(project, "luna", "omni") if r.key == key) for key in ("luna", "omni"))
    assert luna.commit == commit
    assert luna.config == str(project / "configs/transfer/luna.yaml")
    assert (luna.audit, luna.audited) == (str(project / "data/results/audit/good.json"), "passed")
    assert luna.seed == 3
    assert (omni.commit, omni.config, omni.audited) == ("", "", "not passed")
    second = rows(project, "second")[0]
    assert (second.audit, second.audited) == ("", "none")


def test_an_audit_of_other_bytes_is_stale(project: Path, capsys: pytest.CaptureFixture) -> None:
    """The result was made again, or the audit is of a time when it did not say what it looked at."""
    change(project, "luna", seed=4)
    (found,) = {r.audited for r in rows(project, "luna")}
    assert found == "stale"
    out = project / "compared.html"
    compare.run([project / "data/results/transfer/luna.json"], out, False, None)
    assert "STALE" in capsys.readouterr().out
    assert '<span class="bad">stale</span>' in out.read_text()
    assert ">passed</span>" not in out.read_text()
    audits = project / "data/results/audit"
    held = sha256((project / "data/results/transfer/luna.json").read_bytes()).hexdigest()
    for passed, says in ((True, "passed"), (False, "not passed")):
        (audits / "later.json").write_text(json.dumps({"passed": passed, "results": {"transfer/luna.json": held}}))
        assert {r.audited for r in rows(project, "luna")} == {says}
    (audits / "later.json").unlink()
    (audits / "good.json").write_text(json.dumps({"passed": True, "splits": ["transfer luna, train and test"]}))
    assert {r.audited for r in rows(project, "luna")} == {"stale"}


def test_folders_give_their_results_alone(project: Path) -> None:
    found = compare.files([project / "data/results"])
    assert [p.stem for p in found] == ["luna", "omni", "second"]
    with pytest.raises(FileNotFoundError, match="no result under"):
        compare.files([project / "data/results/audit"])
    with pytest.raises(ValueError, match="is not a result"):
        compare.files([project / "data/results/audit/good.json"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        compare.files([project / "nowhere.json"])


def test_results_of_one_split_without_its_hash_are_paired_by_their_windows(project: Path) -> None:
    rng = np.random.default_rng(5)
    windows = {"train": {"d/1": [[0.0, 1.0]]}, "test": {"d/2": [[0.0, 1.0]]}}
    made = [made_up.classification(rng, k, "t", ["a", "b"], 0.8, model=k, windows=windows) for k in ("one", "two")]
    made_up.stored(project / "data/results/transfer", made)
    found = rows(project, "one", "two")
    assert next(r for r in found if r.method == "two: pretrained").difference
    for other in ({"windows": {**windows, "test": {"d/2": [[0.0, 2.0]]}}}, {"n_trials": 25}, {"n_subjects": 11}):
        made_up.stored(project / "data/results/transfer", made)
        change(project, "two", **other)
        found = next(r for r in rows(project, "one", "two") if r.method == "two: pretrained")
        assert "another split" in found.not_compared, other


def test_tables_and_page(project: Path, capsys: pytest.CaptureFixture) -> None:
    out = project / "pages/compared.html"
    compare.run([project / "data/results"], out, False, None)
    said = capsys.readouterr().out
    for word in ("luna_small: probe", "Holm p", "NOT PASSED", "mean rank over 2 tasks", "not told apart at 5 %"):
        assert word in said, word
    text = out.read_text()
    seen = browser.read(text)
    links = [x.split("href=")[1].rstrip(">") for x in seen.loads]
    assert links
    assert all((out.parent / link).resolve().exists() for link in links)
    assert {"fig-ranking-1", "fig-comparison-1", "fig-few-shot-3"} <= set(seen.figures)
    assert "not passed" in text


@pytest.mark.skipif(browser.chromium() is None, reason="no chromium on this machine")
@pytest.mark.slow
def test_the_page_is_drawn_without_error(project: Path) -> None:
    change(project, "omni", task="</script><script>alert(1)</script>", dataset="<b>", score=None)
    out = project / "compared.html"
    compare.run([project / "data/results"], out, True, None)
    seen, console = browser.opened(out)
    assert (console, seen.body.get("data-errors")) == ([], None)
    assert set(seen.figures.values()) == {"true"}
