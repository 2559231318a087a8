"""Use of a tokenizer's codes: how often each stands for a token, depth by depth, the most used first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from brainfm.report.inputs import Group, Model, groups
from brainfm.report.style import COLOURS, GREY, label, plot

#: Depths per row of panels, and pixels of a row.
ACROSS, PANEL_PX = 4, 230


def draw(results: Sequence[dict[str, Any]], models: Sequence[Model]) -> list[str]:
    """One figure for each set of counts of each result and each model."""
    found = [(g, counts) for g in groups(results, models, "usage", "counts") for counts in map(read, g.items) if counts]
    return [one(group, counts, i) for i, (group, counts) in enumerate(found, 1)]


def read(item: dict[str, Any]) -> dict[str, Any] | None:
    """Title, counts `(depth, code)` with the most used code first, perplexity and dead codes; None without tokens."""
    counts = np.array(item.get("counts") or [[]], float)
    if counts.ndim != 2 or not np.isfinite(counts).all() or not (counts.sum(axis=1) > 0).all():
        return None
    counts = -np.sort(-counts, axis=1)
    share = counts / counts.sum(axis=1, keepdims=True)
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=1)
    return {
        "title": str(item.get("title") or ""),
        "counts": counts,
        "perplexity": np.exp(entropy),
        "dead": (counts == 0).sum(axis=1),
    }


def one(group: Group, found: dict[str, Any], number_of: int) -> str:
    """The figure of one model; all panels share their axes."""
    counts = found["counts"]
    depths, codes = counts.shape
    across, down = min(depths, ACROSS), -(-depths // ACROSS)
    titles = [
        f"depth {d + 1}: perplexity {p:.{0 if p >= 10 else 1}f} of {codes}, {dead or 'no'} dead"
        for d, (p, dead) in enumerate(zip(found["perplexity"], found["dead"], strict=True))
    ]
    drawing = make_subplots(
        down, across, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.3 / down
    )
    for depth, row in enumerate(counts):
        place = {"row": depth // across + 1, "col": depth % across + 1}
        used = row[row > 0]
        drawing.add_trace(
            go.Bar(
                x=np.arange(1, len(used) + 1, dtype=np.int32), y=used.astype(np.int32), width=1,
                marker={"color": COLOURS["pretrained"], "line": {"width": 0}},
                hovertemplate="%{y} tokens for code number %{x}<extra></extra>",
            ), **place,
        )  # fmt: skip
        drawing.add_hline(y=float(row.mean()), line={"color": GREY, "width": 1, "dash": "dot"}, **place)
    drawing.update_yaxes(type="log", dtick=1, rangemode="normal")
    drawing.update_yaxes(title={"text": "tokens"}, col=1)
    drawing.update_xaxes(range=[0.5, codes + 0.5], nticks=4)
    drawing.update_xaxes(title={"text": label("codes, most used first")}, row=down)
    drawing.update_annotations(font={"size": 11})
    caption = (
        "Bars that run to the right edge near the dotted line mean that every code is used about equally; a perplexity "
        "far below the number of codes, or bars that end early, mean codes that carry nothing. Few tokens alone also "
        "leave codes unused."
    )
    subtitle = " · ".join(x for x in (group.subtitle, found["title"]) if x)
    return plot(
        drawing, f"fig-usage-{number_of}", group.title, subtitle, caption, group.simulated,
        height=PANEL_PX * down + 30,
    )  # fmt: skip
