"""Learning curves of pretraining: every loss part over steps, on training and on validation data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from brainfm.report.inputs import Model, words
from brainfm.report.style import COLOURS, label, plot, thin

#: Panels per row and per model; a caption tells how many were left out.
ACROSS, PANELS = 3, 6
PANEL_PX = 190


def draw(models: Sequence[Model]) -> list[str]:
    """One figure for each model that has curves."""
    return [one(model, i) for i, model in enumerate((m for m in models if m.curves), 1)]


def parts(model: Model) -> list[str]:
    """Names of the curves without their side, the loss that is optimised first."""
    found = dict.fromkeys(name.split("/", 1)[1].removesuffix("_epoch").removesuffix("_step") for name in model.curves)
    return sorted(found, key=lambda name: name not in ("loss", "total"))


def curve(model: Model, side: str, part: str) -> list[tuple[float, float]]:
    """The `(step, value)` of one curve; the per-epoch one where Lightning wrote both."""
    for ending in ("_epoch", "", "_step"):
        if found := model.curves.get(f"{side}/{part}{ending}"):
            return found
    return []


def one(model: Model, number_of: int) -> str:
    """The figure of one model."""
    names = parts(model)
    shown = names[:PANELS]
    across, down = min(len(shown), ACROSS), -(-len(shown) // ACROSS)
    drawing = make_subplots(
        down, across, subplot_titles=[label(n.replace("_", " "), 40) for n in shown], vertical_spacing=0.3 / down,
        horizontal_spacing=0.08,
    )  # fmt: skip
    told: set[str] = set()
    for i, part in enumerate(shown):
        row, column = i // across + 1, i % across + 1
        for side, name, style in (
            ("train", "training", {"dash": "dot", "width": 1.4}), ("val", "validation", {"width": 2.4})):  # fmt: skip
            if points := curve(model, side, part):
                table = np.array(points, float)
                x, y = thin(table[:, 0], table[:, 1], limit=500)
                few = len(x) < 3
                drawing.add_trace(
                    go.Scatter(
                        x=x.astype(np.float32), y=y.astype(np.float32), mode="lines+markers" if few else "lines",
                        name=name, legendgroup=name, showlegend=name not in told,
                        line={"color": COLOURS["pretrained"], **style},
                    ), row, column,
                )  # fmt: skip
                told.add(name)
        last = i + across >= len(shown)
        drawing.update_xaxes(title={"text": "step"} if last else None, nticks=5, row=row, col=column)
        drawing.update_yaxes(nticks=5, row=row, col=column)
    drawing.update_annotations(font={"size": 12})
    caption = (
        "A loss should fall and level off; a validation curve (solid) that rises while training (dotted) falls means "
        "that the model learns its training data by heart."
    )
    if len(names) > len(shown):
        caption += f" The first {len(shown)} of {len(names)} quantities are shown."
    title, subtitle = f"Model {model.key}", words(model.card.get("objective"))
    return plot(
        drawing,
        f"fig-learning-{number_of}",
        title,
        subtitle,
        caption,
        model.simulated,
        height=PANEL_PX * down + 80,
        legend=True,
    )
