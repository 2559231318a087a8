"""The summary table: every score with its interval, chance, counts and all baselines; a click on a head sorts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from brainfm.report.inputs import simulated, task, words
from brainfm.report.style import COLOURS, METHODS, badge, bounds, escape, finite, kind_of, number

#: Order of the columns of baselines; "other" only where there is one.
KINDS = ("untrained", "linear", "majority", "permuted", "other")


def cell(score: Any, interval: Any, name: str = "") -> str:
    """A score above its interval, with the baseline's own name where the column's head does not tell it."""
    pair = bounds(interval)
    between = f"[{number(pair[0])}, {number(pair[1])}]" if pair else "no interval" if finite(score) else ""
    called = f'<span class="small">{escape(name)}</span>' if name else ""
    return f'<span class="value">{number(score)}</span><span class="small line">{between}</span>{called}'


def baselines(result: dict[str, Any], kind: str) -> str:
    """The table cell of all baselines of a kind."""
    found = {n: b or {} for n, b in (result.get("baselines") or {}).items() if kind_of(result, n) == kind}
    scores = [score for b in found.values() if finite(score := b.get("score"))]
    plain = {kind, METHODS[kind], "permuted labels", "majority"}
    inside = "".join(
        cell(b.get("score"), b.get("ci"), "" if n.lower() in plain else n.replace("_", " ")) for n, b in found.items()
    )
    return f'<td data-value="{max(scores) if scores else ""}">{inside or "–"}</td>'


def counts(result: dict[str, Any]) -> str:
    """The cell of how many subjects and trials were tested, and what the interval resamples."""
    people, trials = result.get("n_subjects"), result.get("n_trials")
    over = f'<span class="small">interval: {escape(words(result["ci_over"]))}</span>' if result.get("ci_over") else ""
    return (
        f'<td data-value="{people if finite(people) else ""}"><span class="value">{whole(people)} subj.</span>'
        f'<span class="small">{whole(trials)} trials</span>{over}</td>'
    )


def whole(value: Any) -> str:
    """A count with thin spaces between thousands."""
    return f"{int(value):,}".replace(",", " ") if finite(value) else "–"


def row(result: dict[str, Any], kinds: Sequence[str]) -> str:
    """One result."""
    score = result.get("score")
    what = f'<span class="small">{escape(words(result.get("metric")) or "score")}</span>'
    about = "".join(
        f'<span class="small">{escape(words(result.get(k)))}</span>' for k in ("evaluation",) if result.get(k)
    )
    level = result["chance"] if finite(result.get("chance")) else ""
    return (
        f"<tr><td><b>{escape(task(result))}</b>{what}</td>"
        f"<td>{escape(words(result.get('dataset')))}<br>{escape(words(result.get('model')))}{about}"
        f"{badge(simulated(result))}</td>"
        f'<td class="own" data-value="{score if finite(score) else ""}">{cell(score, result.get("ci"))}</td>'
        + "".join(baselines(result, kind) for kind in kinds)
        + f'<td data-value="{level}">{number(result.get("chance"))}</td>'
        + counts(result)
        + "</tr>"
    )


def table(results: Sequence[dict[str, Any]]) -> str:
    """The table as HTML; nothing without results."""
    if not results:
        return ""
    present = {kind_of(result, name) for result in results for name in result.get("baselines") or {}}
    kinds = [kind for kind in KINDS if kind != "other" or kind in present]
    heads = [
        "Task and score",
        "Data and model",
        METHODS["pretrained"],
        *(METHODS[k] for k in kinds),
        "Chance",
        "Tested on",
    ]
    shades = ["", "", COLOURS["pretrained"], *(COLOURS[k] for k in kinds), "", ""]
    top = "".join(
        f'<th tabindex="0" aria-sort="none"{f" style=--method:{shade}" if shade else ""}>'
        f"{escape(head[0].upper() + head[1:])}</th>"
        for head, shade in zip(heads, shades, strict=True)
    )
    body = "".join(row(result, kinds) for result in results)
    return (
        f'<div class="wide"><table class="sortable"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
        '<p class="caption">Compare the first coloured column with those to its right; higher is better, brackets are '
        "95 % intervals, and “–” means not measured. Click a column’s head to sort.</p>"
    )
