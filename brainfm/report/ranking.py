"""Methods ranked over tasks: mean ranks, and which of them the critical difference cannot tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from brainfm.ranking import ranking
from brainfm.report.comparison import kind_of, methods, p_value, split_of, unit
from brainfm.report.inputs import dicts, words
from brainfm.report.style import COLOURS, GREY, INK, escape, finite, label, method, number, plot

#: Pixels per method.
ROW_PX = 26


def called(result: dict[str, Any], found: dict[str, Any], network: str = "") -> str:
    """A method's name among those of other results: networks of the catalogue with their own name before it.

    Args:
        result: that it is of. found: the method. network: how the model is called; its key if not given.
    """
    name = words(found.get("name"))
    of_model = found.get("kind") in ("pretrained", "untrained")
    return f"{network or words(result.get('model'))}: {name}" if of_model else name


def competes(found: dict[str, Any]) -> bool:
    """Whether a method has a score to be ranked by: controls and the majority class say what guessing gives."""
    return finite(found.get("score")) and found["kind"] != "control" and method(words(found["name"])) != "majority"


def collected(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Task and protocol → method → score, of the results that compare methods; controls are left out.

    Of a task one split is ranked, that of its first result; a result that tells no split stands alone.
    """
    found: dict[str, dict[str, float]] = {}
    first: dict[str, dict[str, Any]] = {}
    for result in (r for r in results if dicts(r.get("methods"))):
        name = " · ".join(x for x in (unit(result), words(result.get("protocol"))) if x)
        lead = first.setdefault(name, result)
        alike = result is lead or (bool(split_of(result)) and split_of(result) == split_of(lead))
        for m in methods(result) if alike else ():
            if competes(m):
                found.setdefault(name, {})[called(result, m)] = m["score"]
    return found


def section(scores: dict[str, dict[str, float]]) -> str:
    """The ranking as HTML; a sentence where there is too little to rank, nothing where there is nothing.

    Args:
        scores: task → method → score, higher is better.
    """
    if not scores:
        return ""
    found = ranking(scores)
    return f"<p>{escape(lacking(scores))}</p>" if found is None else drawn(found)


def lacking(scores: dict[str, dict[str, float]]) -> str:
    """Why there is no ranking."""
    shared = max((sum(m in one for one in scores.values()) for named in scores.values() for m in named), default=0)
    return (
        f"No ranking: it needs two or more methods that were scored on the same two or more tasks; here "
        f"{len(scores)} {'task has' if len(scores) == 1 else 'tasks have'} scores, and the most widely scored method "
        f"stands in {shared}."
    )


def drawn(found: dict[str, Any]) -> str:
    """A ranking as a figure and what it says."""
    ranks = found["ranks"]
    drawing = go.Figure()
    for y, (name, rank) in enumerate(ranks.items()):
        kind = method(name)
        if ": " in name:  # see `called`
            kind = "untrained" if kind_of(name.split(": ", 1)[1]) == "untrained" else "pretrained"
        drawing.add_scatter(
            x=[rank], y=[y], mode="markers+text", text=[f"  {rank:.2f}"], textposition="middle right",
            hoverinfo="text", hovertext=[f"{label(name)}: mean rank {rank:.2f}"],
            marker={"color": COLOURS[kind], "size": 10}, cliponaxis=False,
        )  # fmt: skip
    step, reach = 0.02 * len(ranks), 1 + found["critical_difference"]
    bars(drawing, ranks, found["alike"], step)
    drawing.add_scatter(
        x=[1, reach], y=[-1, -1], mode="lines+text", text=["", "  critical difference"], textposition="middle right",
        hoverinfo="skip", line={"color": INK, "width": 2}, cliponaxis=False,
    )  # fmt: skip
    drawing.update_yaxes(
        tickvals=list(range(len(ranks))), ticktext=[label(n, 44) for n in ranks], range=[len(ranks) - 0.4, -1.6],
        showgrid=False, automargin=True, tickfont={"size": 11},
    )  # fmt: skip
    left, right = 1 - step * (len(found["alike"]) + 1), max(len(ranks), reach)
    drawing.update_xaxes(title={"text": "mean rank (1 is best)"}, range=[left, right + 0.22 * (right - left)])
    subtitle = f"{len(ranks)} methods on {len(found['datasets'])} tasks"
    figure = plot(
        drawing, "fig-ranking-1", "Mean ranks", subtitle,
        "The bars at the left join methods whose ranks differ by less than the critical difference: these are not told "
        "apart.", height=ROW_PX * (len(ranks) + 2) + 60,
    )  # fmt: skip
    return f'<div class="figures">{figure}</div><p class="caption">{escape(said(found))}</p>'


def bars(drawing: go.Figure, ranks: dict[str, float], alike: Sequence[Sequence[str]], step: float) -> None:
    """One bar per group, left of the marks of its methods, each `step` further to the left than the last."""
    places = list(ranks)
    for i, group in enumerate(alike, 1):
        rows = [places.index(n) for n in group]
        drawing.add_scatter(
            x=[1 - step * i] * 2, y=[min(rows) - 0.3, max(rows) + 0.3], mode="lines", hoverinfo="text",
            hovertext=f"not told apart: {label(', '.join(group))}", line={"color": GREY, "width": 4},
        )  # fmt: skip


def said(found: dict[str, Any]) -> str:
    """The test, the critical difference, and what they rest on, in words."""
    left = f" Not scored on all of them and left out: {', '.join(found['left_out'])}." if found["left_out"] else ""
    f = f"F = {number(found['f'])}, " if finite(found["f"]) else ""
    return (
        f"Friedman test over {'; '.join(found['datasets'])}: {f}p {p_value(found['p'])}. Nemenyi's critical difference "
        f"at 5 % is {number(found['critical_difference'])} ranks (Demsar 2006). Both take the tasks as independent; "
        "several tasks of the same people are not, and few tasks tell little. Of each task one split is ranked: the "
        f"reference's, or without one the first result's.{left}"
    )
