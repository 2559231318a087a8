"""`brainfm compare`: the methods of many result files side by side, paired where they were scored on the same split.

What may be compared is decided by what the files say and by nothing else: a split is the hash that a comparison wrote,
or one of the windows of its sides. Two rows are paired where split, metric and tested people are the same; a row that
is not compared says why. The reference of a task is named before any score is looked at: `--against`, or the first
pretrained method of the first file. Choosing the best one would make every other look worse than it is.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from brainfm import catalog
from brainfm.checksums import sha256
from brainfm.ranking import ranking
from brainfm.report import comparison, few_shot, leaderboard, page
from brainfm.report.inputs import read_json, read_result, words
from brainfm.report.ranking import called, competes, lacking
from brainfm.report.ranking import section as ranking_section
from brainfm.report.style import finite
from brainfm.statistics import contrast, holm, smallest_p

#: Of a task's table in the terminal.
COLUMNS = (
    "method", "score", "above chance", "worst", "minus the reference", "weights", "s", "ms", "file",
)  # fmt: skip


@dataclass
class Row:
    """A method of a result.

    Attributes:
        task: what was told apart, protocol and metric; rows of a task share a table.
        method: with the model's name where it is one of ours. kind: "pretrained", "untrained", "baseline" or "control".
        split: a hash of who was trained on and tested; "" where the file does not tell.
        folds, n_train: of its fits, see `fits`.
        people: `dataset/subject` → score. worst: the person with the lowest, and that score.
        trained, seconds, decode_ms: weights that were fitted, time to fit, time per window.
        network, name: the model's network in the catalogue, and the method without a model's name.
        reference: what the rows of the task are compared with. difference: this row minus it, see
            `statistics.contrast`, with `holm_p`; None where `not_compared` says why not.
        caution: of the whole task, where its people are too few for any small p.
        file, config, audit: paths; "" where there is none. commit: whose run made the file, by dvc.lock.
        audited: "passed" or "not passed"; "stale" where the audit looked at other bytes than the file holds now, "none"
            where no audit names the result.
    """

    task: str
    method: str
    kind: str
    protocol: str
    dataset: str
    model: str
    metric: str
    simulated: bool
    score: float | None
    ci: list[float] | None
    chance: float | None
    above_chance: float | None
    n_subjects: int
    worst: tuple[str, float] | None
    ece: float | None
    brier: float | None
    trained: int | None
    seconds: float | None
    decode_ms: float | None
    network: str
    name: str
    key: str
    seed: int | None
    split: str
    folds: list[list[str]]
    n_train: float
    people: dict[str, float]
    file: str
    config: str
    commit: str
    audit: str
    audited: str
    reference: str = ""
    difference: dict[str, Any] | None = None
    not_compared: str = ""
    caution: str = ""


def run(given: Sequence[Path], out: Path | None, as_json: bool, against: str | None) -> list[Row]:
    """Print the rows of all results, by task, and how methods rank over tasks; with `out` also as an HTML page.

    Raises:
        FileNotFoundError: for a path that is not there, or a folder without results.
        ValueError: for a file that is no result, or `against` that names no method.
    """
    results = {path: read_result(path) for path in files(given)}
    rows = [row for path, result in results.items() for row in rows_of(path, result)]
    pair(rows, against)
    scores = units(rows)
    if as_json:
        for row in rows:
            print(json.dumps({"what": "row", **plain(asdict(row))}))
        print(json.dumps({"what": "ranking", **plain(ranking(scores) or {"why_not": lacking(scores)})}))
    else:
        show(rows, scores)
    if out is not None:
        write(out, rows, list(results.values()), scores)
        if not as_json:
            print(f"page: {out.resolve()}")
    return rows


def files(given: Sequence[Path]) -> list[Path]:
    """The result files at paths; of a folder all that it holds, which are told from other JSON by their score."""
    found: list[Path] = []
    for path in given:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; name result files, or folders of them: data/results")
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*.json")) if not p.name.startswith(".") and "score" in read_json(p)]
            if not inside:
                raise FileNotFoundError(f"no result under {path}; `brainfm decode` and `brainfm transfer` write them")
            found += inside
        elif "score" not in read_json(path):
            raise ValueError(f"{path} is not a result: it has no score; name files of data/results/decode or transfer")
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def rows_of(path: Path, result: dict[str, Any]) -> list[Row]:
    """The rows of one result: its methods, or its score and baselines."""
    root = next((p for p in path.resolve().parents if (p / "configs").is_dir()), None)
    stage, key = words(result.get("stage")), words(result.get("key")) or path.stem
    config = root / f"configs/{stage}/{key}.yaml" if root else None
    audit, said = audited(root, path, f"{stage} {key}")
    folds, n_train = fits(result)
    metric = words(result.get("metric")) or "score"
    protocol = words(result.get("protocol") or result.get("evaluation"))
    shared = {
        "task": f"{comparison.unit(result)} · {protocol} ({metric})", "metric": metric, "protocol": protocol,
        "dataset": words(result.get("dataset")), "model": words(result.get("model")),
        "simulated": bool(result.get("simulated")), "chance": result.get("chance"), "key": key,
        "n_subjects": result.get("n_subjects"), "seed": result.get("seed"), "split": comparison.split_of(result),
        "network": network_of(root, words(result.get("model"))),
        "file": str(path), "config": str(config) if config and config.exists() else "", "commit": commit(path, root),
        "audit": str(audit or ""), "audited": said, "folds": folds, "n_train": n_train,
    }  # fmt: skip
    found = []
    for method in comparison.methods(result):
        who, least = comparison.worst(method)
        optional = {k: method.get(k) for k in ("score", "ci", "ece", "brier", "trained", "seconds", "decode_ms")}
        found.append(
            Row(
                method=called(result, method), name=words(method["name"]), kind=method["kind"],
                people=method.get("per_subject") or {},
                above_chance=comparison.corrected(method.get("score"), result.get("chance")),
                worst=None if least is None else (who, least), **shared, **optional,
            )
        )  # fmt: skip
    return found


def fits(result: dict[str, Any]) -> tuple[list[list[str]], float]:
    """The people whom each fit of a result was scored on, and how many it was fitted on, the mean over fits.

    None where a person is scored by several fits, as over blocks or sessions of one's own, or the file has no folds.
    """
    told = [{side: {"/".join(key.split("/")[:2]) for key in f.get(side) or ()} for side in ("train", "val", "test")}
            for f in result.get("folds") or ()]  # fmt: skip
    scored = [sorted(f["test"]) for f in told]
    if not told or len(set().union(*scored)) < sum(map(len, scored)):
        return [], 0.0
    return scored, float(np.mean([len(f["train"] | f["val"]) for f in told]))


def network_of(root: Path | None, model: str) -> str:
    """The network of a model folder, by its configuration; the model's own name where the folder is not there."""
    config = root / "data/models" / model / "config.json" if root and model else None
    return words(read_json(config).get("name")) if config and config.exists() else model


#: What an audit may say of a result; where several have looked at it, the first of these counts.
SAYINGS = ("not passed", "passed", "stale")


def audited(root: Path | None, result: Path, name: str) -> tuple[Path | None, str]:
    """The audit that has looked at a result, by its stage and key, and what `Row.audited` says of it."""
    found = []
    for path in sorted((root / "data/results/audit").glob("*.json")) if root else []:
        said = read_json(path)
        held = (said.get("results") or {}).get(f"{result.parent.name}/{result.name}")
        if held == sha256(result):
            found.append(("passed" if said.get("passed") else "not passed", path))
        elif held or any(re.match(rf"{re.escape(name)}(,|'s )", split) for split in said.get("splits") or []):
            found.append(("stale", path))
    saying, file = min(found, default=("none", None), key=lambda x: SAYINGS.index(x[0]))
    return file, saying


def commit(path: Path, root: Path | None) -> str:
    """The commit whose dvc.lock first held these very bytes as an output; "" where none does, as before a commit."""
    if root is None:
        return ""
    held = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    words = ("git", "log", "--reverse", "--format=%H", f"-S{held}", "--", "dvc.lock")
    try:
        done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return next(iter(done.stdout.split()), "")


def pair(rows: Sequence[Row], against: str | None) -> None:
    """Compare each row with the reference of its task, or say why not; Holm's correction is over a task's rows.

    A baseline that several files hold with the same scores is compared, and counted, once.

    Raises:
        ValueError: where no row is called `against`.
    """
    if against is not None and against not in {r.method for r in rows}:
        raise ValueError(
            f"no method is called {against!r}; {catalog.nearest(against, sorted({r.method for r in rows}))}"
        )
    for task in dict.fromkeys(r.task for r in rows):
        mine = [r for r in rows if r.task == task]
        named = [r for r in mine if r.method == against] if against else [r for r in mine if r.kind == "pretrained"]
        reference = next(iter(named), None)
        seen = {(reference.method, reference.split): reference.people} if reference else {}
        for row in mine:
            row.reference = reference.method if reference else "none"
            row.not_compared = refusal(row, reference)
            if not row.not_compared and seen.setdefault((row.method, row.split), row.people) is not row.people:
                row.not_compared = "as in the file before" if seen[row.method, row.split] == row.people else ""
            if reference and not row.not_compared:
                row.difference = contrast(row.people, reference.people, row.folds, row.n_train)
        compared = [r.difference for r in mine if r.difference]
        for difference, p in zip(compared, holm([d["wilcoxon_p"] for d in compared]), strict=True):
            difference["holm_p"] = float(p)
        for row in mine:
            row.caution = caution([d["n"] for d in compared])


def caution(people: Sequence[int]) -> str:
    """A sentence where so many comparisons of so few people cannot give a small p; "" elsewhere.

    Args:
        people: how many people each comparison pairs.
    """
    least = smallest_p(min(people)) * len(people) if people else 0.0
    if least <= 0.05:
        return ""
    return (
        f"with {min(people)} people and {len(people)} rows Holm's p cannot be below {min(least, 1):.3f}, "
        "however large a difference is"
    )


def refusal(row: Row, reference: Row | None) -> str:
    """Why a row is not compared with the reference; "" where it may be."""
    if reference is None:
        return "no reference in this task"
    if row is reference:
        return "reference"
    if not row.people or not reference.people:
        return "no scores of single people in the file"
    if not row.split or not reference.split:
        return "the file does not tell its split"
    if row.split != reference.split:
        return f"another split ({row.split[:6]}, reference {reference.split[:6]})"
    odd = set(row.people) ^ set(reference.people)
    if odd:
        return f"other people ({len(odd)} are in one of the two only)"
    if any(not finite(v) for v in (*row.people.values(), *reference.people.values())):
        return "someone has no score"
    return "one person, of whom nothing is paired" if len(row.people) < 2 else ""


def units(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Task → method → score, the mean where files repeat a method; controls are left out.

    Of a task one split is ranked: that of its reference, see `pair`, or of its first row where there is none. A file
    that does not tell its split is ranked alone.

    Models are called by their network, so that one trained on other data for each task can be ranked over tasks; by
    their own name where a task has two of one network.
    """
    found: dict[str, dict[str, list[float]]] = {}
    models: dict[tuple[str, str], set[str]] = {}
    first = {r.task: r for r in reversed(rows)} | {r.task: r for r in rows if r.not_compared == "reference"}
    alike = [r for r in rows if r.file == first[r.task].file or (r.split and r.split == first[r.task].split)]
    for row in alike:
        models.setdefault((row.task, row.network), set()).add(row.model)
    for row in alike:
        if competes(vars(row)):
            prefix = row.method.removesuffix(row.name)
            alone = len(models[row.task, row.network]) == 1
            own = f"{row.network}: {row.name}" if prefix and alone else row.method
            found.setdefault(row.task, {}).setdefault(own, []).append(row.score)
    return {unit: {name: float(np.mean(s)) for name, s in by.items()} for unit, by in found.items()}


def show(rows: Sequence[Row], scores: dict[str, dict[str, float]]) -> None:
    """One table per task, the ranking, and where each file comes from, for the terminal."""
    console = Console(width=None if Console().is_terminal else 200)
    numbers = {file: str(i) for i, file in enumerate(dict.fromkeys(r.file for r in rows), 1)}
    for task in dict.fromkeys(r.task for r in rows):
        mine = sorted((r for r in rows if r.task == task), key=lambda r: -(r.score if r.score is not None else -1e9))
        badge = " (simulated)" if any(r.simulated for r in mine) else ""
        table = Table(title=f"{task}{badge}: chance {_number(mine[0].chance)}, reference {mine[0].reference}")
        for column in COLUMNS:
            table.add_column(column)
        for r in mine:
            table.add_row(
                r.method, _scored(r.score, r.ci), _number(r.above_chance),
                f"{_number(r.worst[1])} {r.worst[0]}" if r.worst else "–", _against(r),
                f"{r.trained:,}" if r.trained is not None else "–", _number(r.seconds, 1), _number(r.decode_ms, 2),
                numbers[r.file],
            )  # fmt: skip
        console.print(table)
        if mine[0].caution:
            print(mine[0].caution)
    table = Table(title="files")
    for column in ("", "result", "configuration", "commit", "seed", "split", "audit"):
        table.add_column(column, overflow="fold")
    for r in {r.file: r for r in rows}.values():
        said = r.audited.upper() if r.audited in ("not passed", "stale") else r.audited
        table.add_row(numbers[r.file], r.file, r.config or "none", r.commit[:10] or "not known", str(r.seed),
                      r.split[:6] or "not told", f"{said} {r.audit}")  # fmt: skip
    console.print(table)
    found = ranking(scores)
    if found is None:
        print(lacking(scores))
        return
    table = Table(title=f"mean rank over {len(found['datasets'])} tasks")
    for column in ("method", "mean rank"):
        table.add_column(column)
    for name, rank in found["ranks"].items():
        table.add_row(name, f"{rank:.2f}")
    console.print(table)
    distance = found["critical_difference"]
    print(
        f"Friedman p {comparison.p_value(found['p'])}; ranks closer than {distance:.2f} are not told apart at 5 % "
        "(Nemenyi); both take tasks as independent, which tasks of the same people are not; of each task one split is "
        "ranked: the reference's, or without one the first row's"
    )


def write(out: Path, rows: Sequence[Row], results: list[dict[str, Any]], scores: dict[str, dict[str, float]]) -> None:
    """The page: one file that opens offline; its links lead to files that stay where they are."""
    plain_rows = [asdict(row) for row in rows]
    curves = "".join(few_shot.draw(results))
    parts = [
        ("leaderboard", "Methods by task", "", leaderboard.tables(plain_rows, out.resolve().parent)),
        ("ranking", "Ranking over tasks", "", ranking_section(scores)),
        ("comparison", "Methods under one protocol", "", comparison.sections(results)),
        ("few-shot", "With few labels", "", f'<div class="figures">{curves}</div>' if curves else ""),
        ("provenance", "Where this comes from", "", leaderboard.sources(plain_rows)),
    ]
    page.store(out, page.document("brainfm: results compared", parts))


def plain(value: Any) -> Any:
    """NaN and infinities → None, as JSON wants."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _against(row: Row) -> str:
    """The difference of a row from the reference, or why there is none."""
    d = row.difference
    return f"{_scored(d['difference'], d['ci'])}, Holm p {comparison.p_value(d['holm_p'])}" if d else row.not_compared


def _number(value: Any, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) and np.isfinite(value) else "–"


def _scored(score: Any, ci: Any) -> str:
    between = f" [{_number(ci[0])}, {_number(ci[1])}]" if ci and ci[0] is not None else ""
    return f"{_number(score)}{between}"
