"""Matrices side by side: recovered connectivity beside the simulated truth, similarities between sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from brainfm.report.inputs import Group, Model, groups
from brainfm.report.style import label, plot

#: Matrices per row of panels and per figure; a caption tells how many were left out.
ACROSS, PANELS = 3, 6
#: Larger matrices are averaged in blocks down to this many rows and columns.
LARGEST = 120
PANEL_PX = 280
TRUTH = ("true", "truth", "simulated", "ground")


def draw(results: Sequence[dict[str, Any]], models: Sequence[Model]) -> list[str]:
    """One figure for each result and each model that has matrices."""
    found = [(g, [m for m in map(read, g.items) if m]) for g in groups(results, models, "matrices", "rows")]
    return [one(group, kept, i) for i, (group, kept) in enumerate((x for x in found if x[1]), 1)]


def read(item: dict[str, Any]) -> dict[str, Any] | None:
    """A matrix with its names as text; None where there are no numbers."""
    values = np.array(item.get("values") or [[]], float)
    if values.ndim != 2 or not np.isfinite(values).any():
        return None
    rows, columns = ([str(x) for x in item.get(k) or []] for k in ("rows", "columns"))
    return {
        "title": str(item.get("title") or ""),
        "values": values,
        "rows": rows if len(rows) == values.shape[0] else [str(i + 1) for i in range(values.shape[0])],
        "columns": columns if len(columns) == values.shape[1] else [str(i + 1) for i in range(values.shape[1])],
        "note": str(item.get("note") or ""),
    }


def similarity(truth: np.ndarray, found: np.ndarray) -> float:
    """Correlation of two matrices over the entries that both have; the diagonal of square ones is left out."""
    keep = np.isfinite(truth) & np.isfinite(found)
    if truth.shape[0] == truth.shape[1]:
        keep &= ~np.eye(len(truth), dtype=bool)
    a, b = truth[keep], found[keep]
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def compared(matrices: list[dict[str, Any]]) -> str:
    """The sentence that tells how like the truth each other matrix is; empty without a truth of the same shape."""
    truth = next((m for m in matrices if any(w in m["title"].lower().split() for w in TRUTH)), None)
    if truth is None:
        return ""
    parts = []
    for other in matrices:
        if other is not truth and other["values"].shape == truth["values"].shape:
            unsigned = np.nanmin(other["values"]) >= 0 > np.nanmin(truth["values"])
            r = similarity(np.abs(truth["values"]) if unsigned else truth["values"], other["values"])
            told = f"r = {r:.2f}".replace("-", "−") if np.isfinite(r) else "–"
            parts.append(f"“{other['title']}” {told}" + (" (with its size, for want of a sign)" if unsigned else ""))
    away = " away from the diagonal" if truth["values"].shape[0] == truth["values"].shape[1] else ""
    return f" Correlation with “{truth['title']}”{away}: {', '.join(parts)}." if parts else ""


def smaller(matrix: dict[str, Any]) -> dict[str, Any]:
    """The matrix, averaged in blocks where it is too large to draw cell by cell."""
    steps = [max(1, -(-size // LARGEST)) for size in matrix["values"].shape]
    if steps == [1, 1]:
        return matrix
    values = matrix["values"]
    for axis, step in enumerate(steps):
        edges = np.arange(0, values.shape[axis], step)
        width = np.diff(np.append(edges, values.shape[axis]))
        values = np.add.reduceat(values, edges, axis=axis) / (width[:, None] if axis == 0 else width)
    return {
        "title": matrix["title"] + " (averaged in blocks)",
        "values": values,
        "rows": matrix["rows"][:: steps[0]],
        "columns": matrix["columns"][:: steps[1]],
        "note": matrix["note"],
    }


def one(group: Group, matrices: list[dict[str, Any]], number_of: int) -> str:
    """The figure of one result or model; every panel has its own colour scale."""
    shown = [smaller(m) for m in matrices[:PANELS]]
    across, down = min(len(shown), ACROSS), -(-len(shown) // ACROSS)
    drawing = make_subplots(
        down, across, subplot_titles=[label(m["title"], 96 // across) for m in shown], vertical_spacing=0.36 / down,
        horizontal_spacing=0.19 if across > 1 else 0.0,
    )  # fmt: skip
    for i, matrix in enumerate(shown):
        row, column = i // across + 1, i % across + 1
        axis = drawing.get_subplot(row, column)
        add_panel(drawing, matrix, row, column, axis.xaxis.domain, axis.yaxis.domain)
    drawing.update_annotations(font={"size": 12})
    notes = " ".join(dict.fromkeys(m["note"] for m in matrices if m["note"]))
    caption = notes or "Look for the same pattern in every panel."
    caption += " Each panel has its own colour scale, so compare shapes, not shades."
    if len(matrices) > len(shown):
        caption += f" The first {len(shown)} of {len(matrices)} are shown."
    return plot(
        drawing, f"fig-matrices-{number_of}", group.title, group.subtitle, caption + compared(matrices),
        group.simulated, height=PANEL_PX * down + 60,
    )  # fmt: skip


def add_panel(drawing: go.Figure, matrix: dict, row: int, column: int, across: Sequence, upright: Sequence) -> None:
    """One heat map with its colour bar; red and blue around zero for signed values, light to dark for others."""
    values = matrix["values"]
    largest = float(np.nanmax(np.abs(values))) or 1.0
    signed = bool(np.nanmin(values) < 0)
    drawing.add_trace(
        go.Heatmap(
            z=values.astype(np.float32), zmin=-largest if signed else 0.0, zmax=largest,
            colorscale="RdBu" if signed else "Blues", reversescale=signed, hoverongaps=False,
            hovertemplate="row %{y}, column %{x}: %{z:.3g}<extra></extra>",
            colorbar={
                "x": across[1] + 0.005, "xanchor": "left", "y": sum(upright) / 2, "len": upright[1] - upright[0],
                "thickness": 9, "outlinewidth": 0, "nticks": 4, "tickfont": {"size": 10},
            },
        ), row, column,
    )  # fmt: skip
    for update, names in ((drawing.update_xaxes, matrix["columns"]), (drawing.update_yaxes, matrix["rows"])):
        step = max(1, -(-len(names) // 14))
        short = [label(n if len(n) <= 12 else n[:11] + "…") for n in names[::step]]
        update(
            tickvals=list(range(0, len(names), step)), ticktext=short, showgrid=False, tickfont={"size": 10}, row=row,
            col=column,
        )  # fmt: skip
    drawing.update_yaxes(autorange="reversed", row=row, col=column)
