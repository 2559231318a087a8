"""A connectome: one animal's affinities with the communities that were found, its true groups, the score by chance."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from brainfm.report.comparison import p_value
from brainfm.report.inputs import simulated, source, task, words
from brainfm.report.style import COLOURS, GREY, INK, finite, label, number, plot

#: Pixels of the figure without its title: of panels about as high as wide.
HEIGHT_PX = 346
#: Colours of true groups, which repeat where there are more.
GROUPS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#999999")


def draw(result: dict[str, Any], number_of: int) -> str:
    """The figure of one result; nothing where it has neither a graph nor a null."""
    graph, null = ordered(result.get("graph")), [x for x in result.get("null") or () if finite(x)]
    panels: list[tuple[str, str, Callable[[go.Figure, int], None]]] = []
    if graph is not None:
        said = (
            f"Neurons of {graph['subject']}, those of one found community together, largest first, black lines between "
            "communities: darker is a stronger affinity."
        )
        panels.append(("found communities", said, partial(add_graph, graph)))
        if (graph["true"] >= 0).any():
            said = "Where the communities are the groups, each block at the right is one colour and no colour is apart."
            panels.append(("true groups, in the same order", said, partial(add_truth, graph)))
    if null and finite(result.get("score")):
        said = (
            f"Grey: {words(result.get('metric'))} of found groups permuted within animals ({len(null)} times); "
            f"blue: as found, p = {p_value(result.get('p'))}."
        )
        panels.append(("score by chance", said, partial(add_null, result, null)))
    if not panels:
        return ""
    drawing = make_subplots(1, len(panels), subplot_titles=[title for title, *_ in panels], horizontal_spacing=0.09)
    drawing.update_annotations(font={"size": 12})
    for column, (*_, add) in enumerate(panels, 1):
        add(drawing, column)
    return plot(
        drawing, f"fig-connectome-{number_of}", f"{task(result)}: communities", source(result),
        " ".join(said for _, said, _ in panels), simulated(result), height=HEIGHT_PX,
    )  # fmt: skip


def ordered(graph: Any) -> dict[str, Any] | None:
    """The graph with its neurons sorted by found community, the largest first, then by true group; None if not whole.

    `edges` are the rows at which another community begins; `true` is -1 for no group.
    """
    if not isinstance(graph, dict):
        return None
    affinity, found = np.array(graph.get("affinity") or [[]], float), np.array(graph.get("found") or [], int)
    n = len(found)
    true = np.array(graph.get("true") or [-1] * n, int)
    if n == 0 or affinity.shape != (n, n) or true.shape != (n,):
        return None
    size = np.bincount(found, minlength=found.max() + 1)[found]
    order = np.lexsort((np.where(true < 0, n, true), found, -size))
    names = [str(x) for x in graph.get("neurons") or range(n)]
    found = found[order]
    return {
        "subject": words(graph.get("subject")),
        "affinity": affinity[np.ix_(order, order)],
        "true": true[order],
        "names": [names[i] for i in order],
        "edges": (np.flatnonzero(np.diff(found)) + 1).tolist(),
    }


def add_graph(graph: dict[str, Any], drawing: go.Figure, column: int) -> None:
    """Affinities, light to dark."""
    names = list(map(label, graph["names"]))
    drawing.add_trace(
        go.Heatmap(
            z=graph["affinity"].astype(np.float32), zmin=0.0, zmax=float(np.nanmax(graph["affinity"])) or 1.0,
            colorscale="Blues", showscale=False, hoverongaps=False, x=names, y=names,
            hovertemplate="%{y}, %{x}: %{z:.3g}<extra></extra>",
        ), 1, column,
    )  # fmt: skip
    for update in (drawing.update_xaxes, drawing.update_yaxes):
        update(type="category", row=1, col=column)
    outline(drawing, graph, column)


def add_truth(graph: dict[str, Any], drawing: go.Figure, column: int) -> None:
    """Pairs of one true group in that group's colour."""
    true = graph["true"]
    same = np.where((true[:, None] == true) & (true[:, None] >= 0), true[:, None] % len(GROUPS), np.nan)
    step = 1 / len(GROUPS)
    scale = [(i * step + edge, colour) for i, colour in enumerate(GROUPS) for edge in (0.0, step)]
    drawing.add_trace(
        go.Heatmap(
            z=same.astype(np.float32), zmin=-0.5, zmax=len(GROUPS) - 0.5, colorscale=scale, showscale=False,
            hoverinfo="skip",
        ), 1, column,
    )  # fmt: skip
    outline(drawing, graph, column)


def outline(drawing: go.Figure, graph: dict[str, Any], column: int) -> None:
    """Lines between communities, and square axes without names."""
    n = len(graph["names"])
    for edge in graph["edges"]:
        ends = {"x0": -0.5, "x1": n - 0.5, "y0": edge - 0.5, "y1": edge - 0.5}
        turned = {"x0": edge - 0.5, "x1": edge - 0.5, "y0": -0.5, "y1": n - 0.5}
        for line in (ends, turned):
            drawing.add_shape(type="line", line={"color": INK, "width": 1.2}, row=1, col=column, **line)
    bare = {"tickvals": [], "showgrid": False, "title": {"text": "neuron"}}
    drawing.update_xaxes(**bare, range=[-0.5, n - 0.5], row=1, col=column)
    drawing.update_yaxes(**bare, range=[n - 0.5, -0.5], row=1, col=column)


def add_null(result: dict[str, Any], null: list[float], drawing: go.Figure, column: int) -> None:
    """How often chance gives which score, and the one that was found."""
    place = {"row": 1, "col": column}
    drawing.add_trace(
        go.Histogram(x=null, nbinsx=24, marker={"color": "#BBBBBB", "line": {"width": 0}}, hoverinfo="skip"), **place
    )
    drawing.add_vline(
        x=result["score"], line={"color": COLOURS["pretrained"], "width": 2.5}, annotation_text=number(result["score"]),
        annotation_font={"color": COLOURS["pretrained"]}, **place,
    )  # fmt: skip
    ends = [0.0, *null, result["score"]]
    for name, one in (result.get("baselines") or {}).items():
        if finite((one or {}).get("score")):
            drawing.add_vline(x=one["score"], line={"color": GREY, "width": 1.2, "dash": "dot"},
                              annotation_text=label(name), annotation_font={"color": GREY, "size": 10},
                              annotation_textangle=-90, annotation_position="bottom right", **place)  # fmt: skip
            ends.append(one["score"])
    drawing.update_xaxes(title={"text": label(words(result.get("metric")) or "score")}, **place)
    drawing.update_xaxes(range=[min(ends), max(ends) * 1.08], **place)
    drawing.update_yaxes(title={"text": "permutations"}, **place)
