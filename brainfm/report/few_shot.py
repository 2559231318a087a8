"""Few-shot curves: how the score grows with the number of labelled examples, with interval bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from brainfm.report.inputs import dicts, simulated, source, task, words
from brainfm.report.style import COLOURS, GREY, METHODS, SYMBOLS, bounds, finite, label, method, plot, scored


def draw(results: Sequence[dict[str, Any]]) -> list[str]:
    """One figure for each result that has a curve."""
    return [one(r, i) for i, r in enumerate((r for r in results if points(r)), 1)]


def points(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The points of a result's curve that have a score."""
    return [p for p in dicts(result.get("curve")) if finite(p.get("score")) and finite(p.get("shots"))]


def one(result: dict[str, Any], number_of: int) -> str:
    """The figure of one result; numbers of shots stand evenly spaced."""
    found = points(result)
    shots = sorted({p["shots"] for p in found})
    drawing = go.Figure()
    if finite(result.get("chance")):
        drawing.add_scatter(
            x=[-0.3, len(shots) - 0.7], y=[result["chance"]] * 2, mode="lines", name="chance", hoverinfo="skip",
            line={"color": GREY, "dash": "dash", "width": 1.5},
        )  # fmt: skip
    for name in dict.fromkeys(str(p.get("model")) for p in found):
        mine = sorted((p for p in found if str(p.get("model")) == name), key=lambda p: p["shots"])
        add_curve(drawing, name, mine, [shots.index(p["shots"]) for p in mine])
    drawing.update_xaxes(
        tickvals=list(range(len(shots))), ticktext=[f"{s:g}" for s in shots],
        title={"text": label(words(result.get("curve_axis")) or "labelled examples (shots)")},
        range=[-0.3, len(shots) - 0.7], showgrid=False,
    )  # fmt: skip
    drawing.update_yaxes(title={"text": label(words(result.get("metric")) or "score")}, automargin=True)
    caption = (
        "Look at the left end: pretraining helps where the blue curve is higher with few labelled examples and its "
        "band (95 % interval) does not touch the others."
    )
    return plot(
        drawing,
        f"fig-few-shot-{number_of}",
        task(result),
        source(result),
        caption,
        simulated(result),
        legend=True,
        half=True,
    )


def add_curve(drawing: go.Figure, name: str, mine: list[dict[str, Any]], x: list[int]) -> None:
    """The curve of one model over its interval band; points without an interval have no band."""
    kind = "pretrained" if name.lower() == "pretrained" else method(name)
    banded = [(place, pair) for place, p in zip(x, mine, strict=True) if (pair := bounds(p.get("ci")))]
    if len(banded) > 1:
        drawing.add_scatter(
            x=[b[0] for b in banded] + [b[0] for b in reversed(banded)],
            y=[b[1][1] for b in banded] + [b[1][0] for b in reversed(banded)],
            fill="toself", mode="lines", line={"width": 0}, fillcolor=COLOURS[kind], opacity=0.18, showlegend=False,
            hoverinfo="skip",
        )  # fmt: skip
    drawing.add_scatter(
        x=x, y=[p["score"] for p in mine], mode="lines+markers",
        name=METHODS[kind] if kind != "other" else label(name),
        line={"color": COLOURS[kind], "width": 2.5}, marker={"symbol": SYMBOLS[kind], "size": 8}, hoverinfo="text",
        hovertext=[f"{label(name)}, {p['shots']:g} shots: {scored(p['score'], p.get('ci'))}" for p in mine],
    )  # fmt: skip
