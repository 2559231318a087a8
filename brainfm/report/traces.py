"""Traces: predicted behaviour over the true one, reconstructions over the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from brainfm.report.inputs import Group, Model, groups
from brainfm.report.style import COLOURS, INK, label, plot, thin

#: Panels per figure; a caption tells how many were left out.
PANELS = 5
#: Pixels of a panel, and between panels for the axis of one and the title of the next.
PANEL_PX, BETWEEN_PX = 100, 52
#: Prefixes of SI units by their power of ten, the largest first, and the units that take one.
PREFIXES, SI = ((0, ""), (-3, "m"), (-6, "µ"), (-9, "n"), (-12, "p"), (-15, "f")), ("V", "T", "T/m", "A")


def draw(results: Sequence[dict[str, Any]], models: Sequence[Model]) -> list[str]:
    """One figure for each result and each model that has traces."""
    drawn = [(group, panels(group)) for group in groups(results, models, "traces", "true")]
    return [one(group, found, i) for i, (group, found) in enumerate((x for x in drawn if x[1]), 1)]


def panels(group: Group) -> list[tuple[str, str, np.ndarray, np.ndarray, np.ndarray | None]]:
    """`(title, unit, time, true, predicted)` of each panel; a trace of several features gives one panel for each."""
    found = []
    for item in group.items:
        true, predicted = rows(item.get("true"), item.get("time")), rows(item.get("predicted"), item.get("time"))
        for i, line in enumerate(true):
            time = np.array(item.get("time") or range(len(line)), float)
            guess = predicted[i] if i < len(predicted) and len(predicted[i]) == len(line) else None
            name = str(item.get("title") or "") + (f", {i + 1}" if len(true) > 1 else "")
            if len(time) == len(line) and np.isfinite(line).any():
                unit, factor = prefixed(str(item.get("unit") or ""), float(np.nanmax(np.abs(line))))
                found.append((name, unit, time, line * factor, None if guess is None else guess * factor))
    return found


def prefixed(unit: str, peak: float) -> tuple[str, float]:
    """The unit with the prefix that suits values up to `peak`, and the factor to multiply them with."""
    if unit not in SI or peak == 0:
        return unit, 1.0
    power, prefix = next((x for x in PREFIXES if peak >= 10.0 ** x[0]), PREFIXES[-1])
    return prefix + unit, 10.0**-power


def rows(values: Any, time: Any) -> np.ndarray:
    """`(feature, time)` of values that may be one line, features by time, or time by features; None becomes NaN."""
    if not values:
        return np.zeros((0, 0))
    table = np.array(values, float)
    if table.ndim == 1:
        return table[None]
    return table.T if time and table.shape[0] == len(time) != table.shape[1] else table


def one(group: Group, found: list[tuple], number_of: int) -> str:
    """The figure of one result or model."""
    shown = found[:PANELS]
    names = ("input", "reconstruction") if group.of_model else ("true", "predicted")
    drawing = make_subplots(
        len(shown),
        1,
        subplot_titles=[label(p[0], 120) for p in shown],
        vertical_spacing=BETWEEN_PX / ((PANEL_PX + BETWEEN_PX) * len(shown)),
    )
    for i, (_, unit, time, true, predicted) in enumerate(shown, 1):
        for line, name, colour, width in (
            (true, names[0], INK, 1.6), (predicted, names[1], COLOURS["pretrained"], 1.8)):  # fmt: skip
            if line is not None:
                x, y = thin(time, line)
                drawing.add_trace(
                    go.Scatter(
                        x=x.astype(np.float32), y=y.astype(np.float32), mode="lines", name=name, legendgroup=name,
                        showlegend=i == 1, line={"color": colour, "width": width},
                    ), i, 1,
                )  # fmt: skip
        drawing.update_yaxes(title={"text": label(unit), "standoff": 4}, nticks=4, exponentformat="power", row=i, col=1)
    drawing.update_annotations(font={"size": 12}, x=0, xanchor="left")
    drawing.update_xaxes(title={"text": "time (s)"}, row=len(shown), col=1)
    caption = (
        f"The {names[1]} (blue) should follow the {names[0]} (black) in timing and in size; "
        "a flat blue line has learnt nothing."
    )
    if len(found) > len(shown):
        caption += f" The first {len(shown)} of {len(found)} examples are shown."
    height = (PANEL_PX + BETWEEN_PX) * len(shown) + 60
    subtitle = " · ".join(x for x in (group.subtitle, " and ".join(names)) if x)
    return plot(
        drawing, f"fig-traces-{number_of}", group.title, subtitle, caption, group.simulated, height=height, legend=True
    )
