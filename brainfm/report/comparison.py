"""Many methods under one protocol: scores of people, paired differences, groups, calibration, cost, and the budget."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from brainfm.report.inputs import dicts, simulated, source, task, words
from brainfm.report.style import (
    COLOURS,
    GREY,
    SYMBOLS,
    badge,
    bounds,
    escape,
    finite,
    label,
    method,
    number,
    plot,
    scored,
)
from brainfm.report.summary import cell, whole

#: Pixels per row of a figure.
ROW_PX = 24
#: Pairs that a figure shows; of more only those with the method that stands first.
PAIRS = 20
#: How each kind of method is called.
KINDS = {
    "pretrained": "pretrained",
    "untrained": "untrained",
    "baseline": "baseline",
    "control": "control",
}
#: Methods that are networks, by name: "probe" and "encodings" are readouts of the pretrained one as it came, "own past"
#: (`evaluations/generation.py`) is that one left to itself, "from scratch" and "joint" (`evaluations/few_labels.py`)
#: start from fresh weights.
NETWORKS = {
    "own past": "pretrained",
    "probe": "pretrained",
    "encodings": "pretrained",
    "from scratch": "untrained",
    "joint": "untrained",
}
#: What a budget says, and in which words.
BUDGET = (
    ("tries", "up to {} settings to try"),
    ("steps", "at most {} steps"),
    ("batch_size", "{} trials per step"),
    ("validations", "{} validations"),
    ("patience", "stopped after {} validations without a gain"),
)


def methods(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The methods of any result, each with `name`, `kind` and `score`: its own list, or the score and its baselines."""
    if dicts(result.get("methods")):
        return [{"name": "unnamed", "kind": "baseline", **m} for m in dicts(result["methods"])]
    own = {k: result.get(k) for k in ("score", "ci", "per_subject")}
    found: list[dict[str, Any]] = [{"name": "pretrained", "kind": "pretrained", **own}]
    for name, one in (result.get("baselines") or {}).items():
        found.append({"name": name, "kind": kind_of(name), **(one or {})})
    return found


def kind_of(name: str) -> str:
    """The kind, a key of `KINDS`, of a baseline that has nothing but its name."""
    told = {"untrained": "untrained", "permuted": "control", "majority": "control"}
    return NETWORKS.get(name) or told.get(method(name), "baseline")


def split_of(result: dict[str, Any]) -> str:
    """The hash of a result's split: as it was written, else of its windows, folds and counts; "" without windows.

    Trials over the same seconds may still be others, so that their number and that of the people count, too.
    """
    if result.get("split_id"):
        return str(result["split_id"])
    if not result.get("windows"):
        return ""
    sides = {k: result.get(k) for k in ("evaluation", "windows", "folds", "n_trials", "n_subjects")}
    return hashlib.sha256(json.dumps(sides, sort_keys=True).encode()).hexdigest()[:16]


def shade(row: dict[str, Any]) -> str:
    """The key of a method's colour and marker."""
    kind = row.get("kind")
    return str(kind) if kind in ("pretrained", "untrained") else method(words(row.get("name")))


def unit(result: dict[str, Any]) -> str:
    """What was to be told apart, in words that results of several models share: data and classes, else the task."""
    labels = words((result.get("confusion") or {}).get("labels"))
    return f"{words(result.get('dataset'))}: {labels}" if labels and result.get("dataset") else task(result)


def corrected(score: Any, level: Any) -> float | None:
    """The score with chance at 0 and no error at 1; None where either is missing."""
    return (score - level) / (1 - level) if finite(score) and finite(level) and level < 1 else None


def sections(results: Sequence[dict[str, Any]]) -> str:
    """Everything of the results that compare methods, as HTML; nothing where there is none."""
    found = [r for r in results if dicts(r.get("methods"))]
    return "".join(one(result, i) for i, result in enumerate(found, 1))


def one(result: dict[str, Any], number_of: int) -> str:
    """One result: budget, table, figures, groups and pairs."""
    figures = forest(result, number_of) + pairs_figure(result, number_of)
    protocol = f" · {escape(result['protocol'])}" if result.get("protocol") else ""
    return (
        f"<h3>{escape(task(result))}{protocol} {badge(simulated(result))}</h3>"
        f'<p class="note">{escape(budget(result))}</p>{table(result)}<div class="figures">{figures}</div>'
        f"{groups(result)}{pairs_table(result)}"
    )


def budget(result: dict[str, Any]) -> str:
    """What every method was given to be tuned with, in a sentence."""
    given = result.get("budget") or {}
    parts = [text.format(f"{given[k]:g}") for k, text in BUDGET if finite(given.get(k))]
    people = f"Scores are of {whole(result.get('n_subjects'))} people on {whole(result.get('n_trials'))} trials."
    if not parts:
        return f"No tuning budget was recorded. {people}"
    return f"Every method had the same budget, and test data decided nothing: {', '.join(parts)}. {people}"


def table(result: dict[str, Any]) -> str:
    """Methods with score, what it is worth, the worst person, calibration and cost; a click on a head sorts."""
    heads = (
        "Method", "Kind", words(result.get("metric")) or "score", "above chance", "worst person", "p", "AUROC", "ECE",
        "Brier", "log loss", "tried", "weights", "s to fit", "ms to decode",
    )  # fmt: skip
    top = "".join(f'<th tabindex="0" aria-sort="none">{escape(h)}</th>' for h in heads)
    body = "".join(row(result, m) for m in methods(result))
    return (
        f'<div class="wide"><table class="sortable"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
        '<p class="caption">Above chance: 0 is guessing, 1 is no error; p: how easily chance does as well. '
        "ECE, Brier (summed over classes) and log loss measure probabilities: lower is better, and 0 is perfect. "
        "Weights: those that were fitted; tried: settings; seconds are of one fold.</p>"
    )


def row(result: dict[str, Any], found: dict[str, Any]) -> str:
    """One method."""
    own = ' class="own"' if found.get("kind") == "pretrained" else ""
    mode = words(found.get("adapt"))
    adapt = f'<span class="small">adapt: {escape(mode)}</span>' if mode not in words(found["name"]) else ""
    setting = ", ".join(f"{k} {words(v)}" for k, v in (found.get("setting") or {}).items())
    chosen = f'<span class="small">{escape(setting)}</span>' if setting else ""
    who, least = worst(found)
    score = found.get("score")
    return (
        f"<tr><td><b>{escape(found['name'])}</b>{adapt}{chosen}</td>"
        f"<td>{escape(KINDS.get(found['kind'], found['kind']))}</td>"
        f'<td{own} data-value="{score if finite(score) else ""}">{cell(score, found.get("ci"))}</td>'
        + numeric(corrected(score, result.get("chance")))
        + f'<td data-value="{least if finite(least) else ""}">{number(least)}<span class="small">{escape(who)}</span>'
        + f'</td><td data-value="{found["p"] if finite(found.get("p")) else ""}">{escape(p_value(found.get("p")))}</td>'
        + "".join(numeric(found.get(k)) for k in ("auroc", "ece", "brier", "log_loss"))
        + "".join(counted(found.get(k)) for k in ("tried", "trained"))
        + "".join(numeric(found.get(k)) for k in ("seconds", "decode_ms"))
        + "</tr>"
    )


def numeric(value: Any) -> str:
    """A cell that sorts by its number."""
    return f'<td data-value="{value if finite(value) else ""}">{number(value)}</td>'


def counted(value: Any) -> str:
    """The same for a count."""
    return f'<td data-value="{value if finite(value) else ""}">{whole(value)}</td>'


def worst(found: dict[str, Any]) -> tuple[str, Any]:
    """The person with the lowest score of a method, and that score."""
    said = found.get("worst")
    if isinstance(said, list | tuple) and len(said) == 2:
        return words(said[0]), said[1]
    people = {k: v for k, v in (found.get("per_subject") or {}).items() if finite(v)}
    who = min(people, key=lambda p: people[p]) if people else ""
    return who, people.get(who)


def forest(result: dict[str, Any], number_of: int) -> str:
    """Scores of all methods with their intervals, single people beside them, and the chance line; best on top."""
    rows = sorted((m for m in methods(result) if finite(m.get("score"))), key=lambda m: -m["score"])
    if not rows:
        return ""
    drawing = go.Figure()
    if finite(result.get("chance")):
        drawing.add_scatter(
            x=[result["chance"]] * 2, y=[-0.6, len(rows) - 0.4], mode="lines", name="chance", hoverinfo="skip",
            line={"color": GREY, "dash": "dash", "width": 1.5},
        )  # fmt: skip
    for y, found in enumerate(rows):
        colour, people = COLOURS[shade(found)], found.get("per_subject") or {}
        dots = [(person, v) for person, v in people.items() if finite(v)]
        drawing.add_scatter(
            x=[v for _, v in dots], y=[y] * len(dots), mode="markers", hoverinfo="text",
            hovertext=[f"{label(person)}: {v:.3g}" for person, v in dots],
            marker={"color": colour, "opacity": 0.28, "size": 6},
        )  # fmt: skip
        add_mark(drawing, y, found["score"], found.get("ci"), label(found["name"]), colour, SYMBOLS[shade(found)])
    rows_axis(drawing, [label(words(m["name"]), 34) for m in rows])
    drawing.update_xaxes(title={"text": label(words(result.get("metric")) or "score")})
    caption = (
        "Blue: pretrained. Compare it with the same network untrained (orange) and with the baselines; pale dots are "
        "single people, lines 95 % intervals over them, the dashed line is chance. Overlapping lines do not decide: "
        "the differences are paired."
    )
    return plot(
        drawing, f"fig-comparison-{number_of}", f"{task(result)}: people", source(result), caption, simulated(result),
        height=ROW_PX * (len(rows) + 1) + 60, half=True,
    )  # fmt: skip


def add_mark(
    drawing: go.Figure, y: float, score: float, interval: Any, name: str, colour: str, symbol: str = "circle",
    place: tuple[int | None, int | None] = (None, None),
) -> None:  # fmt: skip
    """A mark with its interval on row `y`, in the panel at `place` (row, column) where there are several."""
    pair = bounds(interval)
    drawing.add_scatter(
        x=[score], y=[y], mode="markers", hoverinfo="text", hovertext=[f"{name}: {scored(score, interval)}"],
        row=place[0], col=place[1],
        marker={"color": colour, "symbol": symbol, "size": 10},
        error_x={
            "type": "data", "array": [max(pair[1] - score, 0)], "arrayminus": [max(score - pair[0], 0)],
            "thickness": 2, "width": 4,
        } if pair else None,
    )  # fmt: skip


def rows_axis(drawing: go.Figure, names: Sequence[str]) -> None:
    """The axis of named rows, the first on top."""
    drawing.update_yaxes(
        tickvals=list(range(len(names))), ticktext=list(names), range=[len(names) - 0.4, -0.6], showgrid=False,
        automargin=True, tickfont={"size": 11},
    )  # fmt: skip


def shown_pairs(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The pairs of a figure: all of them, or what pretraining adds and those with the method that stands first."""
    found = [p for p in dicts(result.get("pairs")) if finite(p.get("difference"))]
    first = methods(result)[0]["name"]
    few = [p for p in found if p.get("family") == "pretraining" or first in (p.get("a"), p.get("b"))]
    return found if len(found) <= PAIRS else few


def pairs_figure(result: dict[str, Any], number_of: int) -> str:
    """Paired differences with their intervals, and zero; nothing without pairs."""
    rows = shown_pairs(result)
    if not rows:
        return ""
    drawing = go.Figure()
    drawing.add_scatter(
        x=[0, 0], y=[-0.6, len(rows) - 0.4], mode="lines", hoverinfo="skip",
        line={"color": GREY, "dash": "dash", "width": 1.5},
    )  # fmt: skip
    for y, pair in enumerate(rows):
        name = f"{label(pair.get('a'))} − {label(pair.get('b'))}, Holm p = {p_value(pair.get('holm_p'))}"
        told = finite(pair.get("holm_p")) and pair["holm_p"] <= 0.05
        add_mark(drawing, y, pair["difference"], pair.get("ci"), name, COLOURS["pretrained"] if told else GREY)
    rows_axis(drawing, [label(f"{p.get('a')} − {p.get('b')}", 44) for p in rows])
    drawing.update_xaxes(title={"text": label(f"difference in {words(result.get('metric')) or 'score'}")})
    caption = (
        "Differences within people, first method minus second. Right of the dashed line the first is better; blue is "
        "told apart at Holm's 5 %, grey is not, which does not prove the two equal."
    )
    return plot(
        drawing, f"fig-pairs-{number_of}", f"{task(result)}: paired differences", source(result), caption,
        simulated(result), height=ROW_PX * (len(rows) + 1) + 60, half=True,
    )  # fmt: skip


def p_value(p: Any) -> str:
    """A p-value with three decimals; never 0."""
    return "–" if not finite(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def pairs_table(result: dict[str, Any]) -> str:
    """All paired comparisons, folded away; and what so few people can show."""
    rows = dicts(result.get("pairs"))
    if not rows:
        return ""
    heads = ("First", "Second", "Difference", "Wilcoxon p", "Holm p", "Corrected t p", "d<sub>z</sub>", "Rank-biserial")
    body = "".join(
        f"<tr><td>{escape(p.get('a'))}</td><td>{escape(p.get('b'))}</td>"
        f"<td>{escape(scored(p.get('difference'), p.get('ci')))}</td>"
        + "".join(f"<td>{escape(p_value(p.get(k)))}</td>" for k in ("wilcoxon_p", "holm_p", "t_p"))
        + f"<td>{number(p.get('dz'))}</td><td>{number(p.get('rank_biserial'))}</td></tr>"
        for p in rows
    )
    counts = [p["n"] for p in rows if finite(p.get("n"))]
    few = ""
    family = Counter(p.get("family") for p in rows).most_common(1)[0][1]  # Holm's correction is within a family
    if counts and 2.0 ** (1 - min(counts)) * family > 0.05:
        few = (
            f" With {whole(min(counts))} people the smallest Wilcoxon p is {p_value(2.0 ** (1 - min(counts)))}, and "
            f"Holm's correction over {family} pairs may leave none below 0.05, whatever the scores."
        )
    return (
        f"<details><summary>All {len(rows)} paired comparisons</summary>"
        f'<div class="wide"><table><thead><tr>{"".join(f"<th>{h}</th>" for h in heads)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
        '<p class="caption">Tests are over people, the corrected t over folds, two-sided; Holm corrects the Wilcoxon p '
        f"over the pairs of a family: what pretraining adds, and the score against all others.{few}</p>"
    )


def groups(result: dict[str, Any]) -> str:
    """Scores by sex, age or whatever the people are grouped by; nothing where no method has groups."""
    rows = [m for m in methods(result) if m.get("groups")]
    columns = list(dict.fromkeys((k, g) for m in rows for k, found in m["groups"].items() for g in found or {}))
    if not columns:
        return ""
    heads = "".join(f"<th>{escape(kind)}: {escape(name)}</th>" for kind, name in columns)
    body = "".join(
        f"<tr><td>{escape(m['name'])}</td>"
        + "".join(f"<td>{group_cell((m['groups'].get(kind) or {}).get(name))}</td>" for kind, name in columns)
        + "</tr>"
        for m in rows
    )
    return (
        f'<h3>By group</h3><div class="wide"><table><thead><tr><th>Method</th>{heads}</tr></thead>'
        f'<tbody>{body}</tbody></table></div><p class="caption">Mean over the people of a group. Groups are small and '
        "differ in more than their name: a difference here asks for a study and is none.</p>"
    )


def group_cell(value: Any) -> str:
    """A group's score, with interval and count where they are known."""
    if not isinstance(value, dict):
        return number(value)
    n = value.get("n")
    count = f'<span class="small">{whole(n)} {"person" if n == 1 else "people"}</span>' if finite(n) else ""
    return f"{escape(scored(value.get('score'), value.get('ci')))}{count}"
