"""Scores at a glance: model and baselines with their intervals, and the chance line, one block per task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from brainfm.report.inputs import dicts, simulated, source, task, words
from brainfm.report.style import (
    BADGE,
    COLOURS,
    GREY,
    METHODS,
    SYMBOLS,
    bounds,
    finite,
    kind_of,
    label,
    number,
    plot,
    scored,
)

#: Scores below this (R2 has no lower end) are drawn at the edge as arrows, with their value beside them.
FLOOR = -0.5
#: Pixels per row of a block, and free rows between blocks.
ROW_PX, GAP = 19, 1.1


def lines(result: dict[str, Any]) -> list[tuple[str, str, Any, Any]]:
    """`(method, name, score, interval)` of the model and its baselines that have a score, in the legend's order."""
    own = next((words(m.get("name")) for m in dicts(result.get("methods"))), "pretrained")
    found = [("pretrained", own, result.get("score"), result.get("ci"))]
    for name, one in (result.get("baselines") or {}).items():
        found.append((kind_of(result, name), name, (one or {}).get("score"), (one or {}).get("ci")))
    return sorted((x for x in found if finite(x[2])), key=lambda x: list(COLOURS).index(x[0]))


def draw(results: Sequence[dict[str, Any]]) -> list[str]:
    """One figure per metric, because scores of different metrics share no axis."""
    metrics = dict.fromkeys(words(r.get("metric")) or "score" for r in results)
    by_metric = {m: [r for r in results if (words(r.get("metric")) or "score") == m and lines(r)] for m in metrics}
    return [one(metric, rows, i) for i, (metric, rows) in enumerate(by_metric.items(), 1) if rows]


def one(metric: str, results: list[dict[str, Any]], number_of: int) -> str:
    """The figure of one metric."""
    drawing = go.Figure()
    places: list[float] = []
    dots: dict[str, list[tuple[float, str, Any, Any]]] = {}
    people: list[tuple[float, float, str]] = []
    y = 0.0
    for result in results:
        rows = lines(result)
        for i, (kind, name, score, interval) in enumerate(rows):
            dots.setdefault(kind, []).append((y + i, name, score, interval))
            if i == 0 and kind == "pretrained":
                people += [
                    (y + i, v, k) for k, v in (result.get("per_subject") or {}).items() if finite(v) and v >= FLOOR
                ]
        places.append(y + (len(rows) - 1) / 2)
        if finite(result.get("chance")):
            add_chance(drawing, result["chance"], y - 0.6, y + len(rows) - 0.4, first=result is results[0])
        y += len(rows) + GAP
    if people:
        drawing.add_scatter(
            x=[p[1] for p in people], y=[p[0] for p in people], mode="markers", name="single subjects",
            hoverinfo="text", hovertext=[f"{label(p[2])}: {p[1]:.3g}" for p in people],
            marker={"color": COLOURS["pretrained"], "opacity": 0.28, "size": 6},
        )  # fmt: skip
    for kind in (k for k in COLOURS if k in dots):
        add_method(drawing, kind, dots[kind])
    names = [
        f"<b>{label(task(r), 30)}</b><br>{label(source(r), 34)}"
        + (f"<br><span style='color:{BADGE}'>simulated</span>" if simulated(r) else "")
        for r in results
    ]
    drawing.update_yaxes(
        tickvals=places,
        ticktext=names,
        range=[y - GAP + 0.3, -1.3],
        automargin=True,
        showgrid=False,
        tickfont={"size": 11},
    )
    add_names(
        drawing, [d for k in ("pretrained", "untrained", "linear", "other") for d in dots.get(k, []) if d[1] != k]
    )
    drawing.update_xaxes(title={"text": label(metric)}, range=reach(results))
    badges = [simulated(r) for r in results]
    kind = "" if not any(badges) else "simulated" if all(badges) else "partly simulated"
    caption = (
        "Look for blue circles whose line (95 % interval) lies wholly to the right of the other marks and of the "
        "dashed chance line; pale dots are single subjects."
    )
    if any(line[2] < FLOOR for r in results for line in lines(r)):
        caption += f" Arrows at the left edge are scores below {number(FLOOR)}, with their value."
    height = int(ROW_PX * (y + 1)) + 80
    return plot(drawing, f"fig-scores-{number_of}", metric, "", caption, kind, height=max(height, 200), legend=True)


def reach(results: list[dict[str, Any]]) -> list[float]:
    """Ends of the axis: all marks and intervals, chance, and room for the names at the right."""
    ends = [r["chance"] for r in results if finite(r.get("chance"))]
    for result in results:
        ends += [v for v in (result.get("per_subject") or {}).values() if finite(v)]
        for _, _, score, interval in lines(result):
            ends += [score, *(bounds(interval) or ())]
    low, high = max(min(ends), FLOOR), max(max(ends), FLOOR)
    room = (high - low) or 1.0
    return [low - 0.04 * room, high + 0.16 * room]


def add_names(drawing: go.Figure, dots: list[tuple[float, str, Any, Any]]) -> None:
    """The own name of each method that the legend does not tell, right of its interval."""
    near = [d for d in dots if d[2] >= FLOOR]
    drawing.add_scatter(
        x=[max(d[2], (bounds(d[3]) or (0, d[2]))[1]) for d in near], y=[d[0] for d in near], mode="text",
        text=["  " + label(d[1].replace("_", " ")) for d in near], textposition="middle right", hoverinfo="skip",
        textfont={"size": 10, "color": GREY}, showlegend=False, cliponaxis=False,
    )  # fmt: skip


def add_chance(drawing: go.Figure, level: float, top: float, bottom: float, first: bool) -> None:
    """The chance line of one block."""
    drawing.add_scatter(
        x=[level, level], y=[top, bottom], mode="lines", name="chance", legendgroup="chance", showlegend=first,
        line={"color": GREY, "dash": "dash", "width": 1.5}, hoverinfo="skip",
    )  # fmt: skip


def add_method(drawing: go.Figure, kind: str, dots: list[tuple[float, str, Any, Any]]) -> None:
    """All marks of one method; those below the floor are arrows at the edge with their value."""
    low, high = [], []
    for _, _, score, interval in dots:
        pair = bounds(interval)
        shown = max(score, FLOOR)
        low.append(max(shown - max(pair[0], FLOOR), 0) if pair else 0)
        high.append(max(pair[1] - shown, 0) if pair and pair[1] > FLOOR else 0)
    below = [score < FLOOR for _, _, score, _ in dots]
    drawing.add_scatter(
        x=[max(d[2], FLOOR) for d in dots],
        y=[d[0] for d in dots],
        error_x={"type": "data", "array": high, "arrayminus": low, "thickness": 2, "width": 4},
        mode="markers+text" if any(below) else "markers",
        text=[f"  {scored(d[2], d[3])}" if far else "" for d, far in zip(dots, below, strict=True)],
        textposition="middle right",
        hoverinfo="text",
        hovertext=[f"{label(d[1])}: {scored(d[2], d[3])}" for d in dots],
        marker={
            "color": COLOURS[kind], "size": [11 if far or kind == "pretrained" else 8 for far in below],
            "opacity": 1, "line": {"width": 0}, "symbol": ["triangle-left" if far else SYMBOLS[kind] for far in below],
        },
        name=METHODS[kind],
        cliponaxis=False,
    )  # fmt: skip
