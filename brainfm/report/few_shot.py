"""Few-shot curves: how the score grows with the number of labelled examples, with interval bands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from brainfm.report.inputs import dicts, simulated, source, task, words
from brainfm.report.style import COLOURS, GREY, METHODS, SYMBOLS, bounds, finite, label, method, plot, scored
from brainfm.report.tables import GAINS, pair_of

#: Lines of the first, second ... method of a kind.
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def draw(results: Sequence[dict[str, Any]]) -> list[str]:
    """A figure for each result that has a curve, and beside it what pretraining or joint training adds, where known."""
    found = [r for r in results if points(r)]
    return [
        x for i, r in enumerate(found, 1) for x in (one(r, i), *(x for key in GAINS for x in gains(r, key, i))) if x
    ]


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
    for name, look in looks(result, list(dict.fromkeys(str(p.get("model")) for p in found))).items():
        mine = sorted((p for p in found if str(p.get("model")) == name), key=lambda p: p["shots"])
        add_curve(drawing, name, mine, [shots.index(p["shots"]) for p in mine], *look)
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


def gains(result: dict[str, Any], key: str, number_of: int) -> list[str]:
    """A figure of one of `GAINS` for each pair of methods that it is of; a result may name none."""
    by_pair: dict[str, list[dict[str, Any]]] = {}
    for p in dicts(result.get(key)):
        if finite(p.get("score")) and finite(p.get("shots")):
            by_pair.setdefault(pair_of(p), []).append(p)
    return [
        gain(result, key, f"{number_of}-{i}" if i > 1 else f"{number_of}", pair, found)
        for i, (pair, found) in enumerate(by_pair.items(), 1)
    ]


def gain(result: dict[str, Any], key: str, number_of: str, pair: str, found: Sequence[dict[str, Any]]) -> str:
    """One of `GAINS` at each number of shots, single people beside it."""
    part, title, what = GAINS[key]
    found = sorted(found, key=lambda p: p["shots"])
    x, colour = list(range(len(found))), COLOURS["pretrained"]
    drawing = go.Figure()
    drawing.add_scatter(
        x=[-0.3, len(x) - 0.7], y=[0, 0], mode="lines", hoverinfo="skip",
        line={"color": GREY, "dash": "dash", "width": 1.5},
    )  # fmt: skip
    people = [(i, k, v) for i, p in zip(x, found, strict=True) for k, v in (p.get("per_subject") or {}).items()]
    drawing.add_scatter(
        x=[i for i, _, v in people if finite(v)], y=[v for *_, v in people if finite(v)], mode="markers",
        hoverinfo="text", hovertext=[f"{label(k)}: {v:.3g}" for _, k, v in people if finite(v)],
        marker={"color": colour, "opacity": 0.28, "size": 6},
    )  # fmt: skip
    pairs = [bounds(p.get("ci")) or (p["score"], p["score"]) for p in found]
    drawing.add_scatter(
        x=x, y=[p["score"] for p in found], mode="lines+markers", hoverinfo="text",
        hovertext=[f"{p['shots']:g} shots: {scored(p['score'], p.get('ci'))}" for p in found],
        line={"color": colour, "width": 2.5}, marker={"color": colour, "size": 9},
        error_y={
            "type": "data", "array": [max(high - p["score"], 0) for (_, high), p in zip(pairs, found, strict=True)],
            "arrayminus": [max(p["score"] - low, 0) for (low, _), p in zip(pairs, found, strict=True)],
            "thickness": 2, "width": 4,
        },
    )  # fmt: skip
    drawing.update_xaxes(
        tickvals=x, ticktext=[f"{p['shots']:g}" for p in found], range=[-0.3, len(x) - 0.7], showgrid=False,
        title={"text": label(words(result.get("curve_axis")) or "labelled examples (shots)")},
    )  # fmt: skip
    drawing.update_yaxes(title={"text": label(f"gain in {words(result.get('metric')) or 'score'}")}, automargin=True)
    over = "people, pale dots single people" if people else words(result.get("ci_over")) or "people"
    caption = f"{what} Above the dashed line it helped, below it harmed; bars are 95 % intervals over {over}."
    return plot(
        drawing, f"fig-{part}-{number_of}", f"{task(result)}: {title}{pair}", source(result), caption,
        simulated(result), half=True,
    )  # fmt: skip


def looks(result: dict[str, Any], names: Sequence[str]) -> dict[str, tuple[str, str, str, str]]:
    """Name of a curve → its legend, colour, marker and dash; of one kind of method the second and later are dashed."""
    said = {str(m.get("name")): str(m.get("kind")) for m in dicts(result.get("methods"))}
    own = ("pretrained", "untrained")
    kinds = {
        n: said[n] if said.get(n) in own else "pretrained" if n.lower() == "pretrained" else method(n) for n in names
    }
    count, seen = Counter(kinds.values()), Counter[str]()
    found = {}
    for name, kind in kinds.items():
        plain = count[kind] == 1 and kind != "other" and name not in said
        dash = DASHES[seen[kind] % len(DASHES)]
        seen[kind] += 1
        found[name] = (METHODS[kind] if plain else label(name), COLOURS[kind], SYMBOLS[kind], dash)
    return found


def add_curve(
    drawing: go.Figure, name: str, mine: list[dict[str, Any]], x: list[int], legend: str, colour: str, symbol: str,
    dash: str,
) -> None:  # fmt: skip
    """The curve of one model over its interval band; points without an interval have no band."""
    banded = [(place, pair) for place, p in zip(x, mine, strict=True) if (pair := bounds(p.get("ci")))]
    if len(banded) > 1:
        drawing.add_scatter(
            x=[b[0] for b in banded] + [b[0] for b in reversed(banded)],
            y=[b[1][1] for b in banded] + [b[1][0] for b in reversed(banded)],
            fill="toself", mode="lines", line={"width": 0}, fillcolor=colour, opacity=0.18, showlegend=False,
            hoverinfo="skip",
        )  # fmt: skip
    drawing.add_scatter(
        x=x, y=[p["score"] for p in mine], mode="lines+markers",
        name=legend, hoverinfo="text",
        line={"color": colour, "width": 2.5, "dash": dash}, marker={"symbol": symbol, "size": 8, "color": colour},
        hovertext=[f"{label(name)}, {p['shots']:g} shots: {scored(p['score'], p.get('ci'))}" for p in mine],
    )  # fmt: skip
