"""Confusion matrices: which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from brainfm.report.inputs import simulated, source, task
from brainfm.report.style import label, plot

#: With more classes than this, cells carry no numbers.
WRITTEN = 10
#: Longest name of a class that an axis shows whole.
LETTERS = 16


def draw(results: Sequence[dict[str, Any]]) -> list[str]:
    """One figure for each result that has a confusion matrix."""
    found = [(r, counts) for r in results if (counts := table(r)) is not None]
    return [one(result, counts, i) for i, (result, counts) in enumerate(found, 1)]


def table(result: dict[str, Any]) -> np.ndarray | None:
    """`(true class, predicted class)` counts; None where there are none."""
    counts = (result.get("confusion") or {}).get("counts")
    if not counts:
        return None
    found = np.array(counts, float)
    return found if found.ndim == 2 and found.shape[0] == found.shape[1] else None


def one(result: dict[str, Any], counts: np.ndarray, number_of: int) -> str:
    """The figure of one result: shares of each true class, with counts written in."""
    n = len(counts)
    labels = [str(x) for x in result["confusion"].get("labels") or []]
    labels = labels if len(labels) == n else [str(i) for i in range(n)]
    total = np.nansum(counts, axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    told = [
        [f"true {label(labels[i])}, predicted {label(labels[j])}: {counts[i, j]:.0f} trials" for j in range(n)]
        for i in range(n)
    ]
    drawing = go.Figure(
        go.Heatmap(
            z=share.astype(np.float32), zmin=0, zmax=1, colorscale="Blues", hovertext=told, hoverinfo="text",
            text=[[cell(counts[i, j], share[i, j]) for j in range(n)] for i in range(n)] if n <= WRITTEN else None,
            texttemplate="%{text}" if n <= WRITTEN else None, xgap=1, ygap=1,
            colorbar={"thickness": 10, "len": 0.8, "outlinewidth": 0, "tickvals": [0, 1], "ticktext": ["0 %", "100 %"]},
        )
    )  # fmt: skip
    step = max(1, n // 25)
    ticks = {
        "tickvals": list(range(0, n, step)),
        "ticktext": [label(x if len(x) <= LETTERS else x[: LETTERS - 1] + "…") for x in labels[::step]],
        "automargin": True,
        "showgrid": False,
    }
    drawing.update_xaxes(title={"text": "predicted"}, **ticks)
    drawing.update_yaxes(title={"text": "true"}, autorange="reversed", **ticks)
    caption = (
        "Shade is the share of each true class: a good decoder is dark on the diagonal; a dark column away from it is "
        "a class that others are mistaken for."
    )
    return plot(
        drawing,
        f"fig-confusion-{number_of}",
        task(result),
        source(result),
        caption,
        simulated(result),
        height=380,
        half=True,
    )


def cell(count: float, share: float) -> str:
    """Text of a cell: the count, and its share of the true class."""
    if np.isnan(count):
        return "–"
    return f"{count:.0f}" if np.isnan(share) else f"{count:.0f}<br>{100 * share:.0f} %"
