"""Decoding over time: probabilities along a recording, scores along a trial; and the bands that a decoder needs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from brainfm.recording import Events
from brainfm.report.inputs import dicts, simulated, source, task, words
from brainfm.report.style import BADGE, COLOURS, GREY, INK, bounds, finite, label, method, plot, scored
from brainfm.report.tables import OVER

#: Colours of classes and kinds of events, in turn (Okabe and Ito 2008).
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7F7F7F")
#: More events than this are not named above the picture, more windows are averaged for drawing.
NAMED, DRAWN = 400, 3000


def course(
    time: np.ndarray, chances: np.ndarray, part: np.ndarray, classes: list[str], events: Events, title: str,
    simulated: bool = False,
) -> bytes:  # fmt: skip
    """A PNG of stacked probabilities over time, breaks left white, with the events that the file has marked above.

    Args:
        time, part: `(window,)` seconds, and number of the stretch. chances: `(window, class)`. classes: their names.
        events: of the recording. title: of the picture. simulated: say so.
    """
    unit, name = (60.0, "min") if time[-1] > 600 else (1.0, "s")
    figure = Figure(figsize=(10, 3.6), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.06, 0.15, 0.92, 0.5))
    marks = figure.add_axes((0.06, 0.68, 0.92, 0.1), sharex=axes)
    for number in np.unique(part):
        rows = np.flatnonzero(part == number)
        groups = np.array_split(rows, min(len(rows), max(2, DRAWN * len(rows) // len(part))))
        x = np.array([time[g].mean() for g in groups]) / unit
        y = np.array([chances[g].mean(axis=0) for g in groups]).T
        axes.stackplot(x, y, colors=[PALETTE[i % len(PALETTE)] for i in range(len(classes))], linewidth=0)
    axes.set(ylim=(0, 1), xlim=(0, max(time[-1] / unit, 1e-9)), xlabel=f"time ({name})", ylabel="probability")
    kinds = list(dict.fromkeys(events.label))
    for onset, length, word in zip(events.onset, events.duration, events.label, strict=True):
        colour = _colour(word, classes, kinds)
        marks.axvspan(onset / unit, (onset + length) / unit, color=colour, linewidth=0.6 if length == 0 else 0)
    marks.set(yticks=[], ylim=(0, 1))
    marks.set_ylabel("events" if kinds else "no events", rotation=0, ha="right", va="center", size=8, color=GREY)
    marks.tick_params(labelbottom=False, bottom=False)
    named = [*classes, *(kind for kind in kinds if kind not in classes)][:10]
    patches = [Patch(color=_colour(word, classes, kinds), label=word) for word in named]
    figure.legend(handles=patches, loc="upper left", bbox_to_anchor=(0.055, 0.93), ncol=10, frameon=False, fontsize=8)
    figure.text(0.06, 0.94, title, size=11, weight="bold", color=INK, parse_math=False)
    if simulated:
        figure.text(0.98, 0.94, "simulated", size=10, color=BADGE, ha="right")
    for each in (axes, marks):
        each.spines[["top", "right"]].set_visible(False)
    stored = io.BytesIO()
    figure.savefig(stored, format="png", facecolor="white")
    return stored.getvalue()


def _colour(word: str, classes: list[str], kinds: list[str]) -> str:
    """That of the class of this name; events of another name follow in the palette."""
    order = [*classes, *(kind for kind in kinds if kind not in classes)]
    return PALETTE[order.index(word) % len(PALETTE)]


def draw(results: Sequence[dict[str, Any]]) -> list[str]:
    """For each result the curves over time that it has, and the importance of bands."""
    drawn = [curves(r, i) for i, r in enumerate((r for r in results if _curves(r)), 1)]
    return drawn + [bars(r, i) for i, r in enumerate((r for r in results if _bands(r)), 1)]


def _curves(result: dict[str, Any]) -> list[dict[str, Any]]:
    said = result.get("in_time")
    found = dicts(said.get("curves")) if isinstance(said, dict) else []
    return [c for c in found if len(c.get("time") or ()) == len(c.get("score") or ()) > 0]


def _bands(result: dict[str, Any]) -> list[dict[str, Any]]:
    said = result.get("importance")
    return [b for b in dicts(said.get("bands")) if finite(b.get("score"))] if isinstance(said, dict) else []


def curves(result: dict[str, Any], number_of: int) -> str:
    """Score by time in the trial, a line for each kind of features, with its interval as a band."""
    drawing, found = go.Figure(), _curves(result)
    ends = [min(c["time"][0] for c in found), max(c["time"][-1] for c in found)]
    if finite(result.get("chance")):
        drawing.add_scatter(
            x=ends, y=[result["chance"]] * 2, mode="lines", name="chance", hoverinfo="skip",
            line={"color": GREY, "dash": "dash", "width": 1.5},
        )  # fmt: skip
    others = iter(PALETTE[2:])
    for i, curve in enumerate(found):
        name = str(curve.get("model"))
        kind = name if name in COLOURS else "untrained" if method(name) == "untrained" else ""
        colour = COLOURS[kind] if kind else next(others, GREY)
        banded = [(t, b) for t, c in zip(curve["time"], curve.get("ci") or (), strict=False) if (b := bounds(c))]
        if len(banded) > 1:
            drawing.add_scatter(
                x=[t for t, _ in banded] + [t for t, _ in reversed(banded)],
                y=[b[1] for _, b in banded] + [b[0] for _, b in reversed(banded)],
                fill="toself", mode="lines", line={"width": 0}, fillcolor=colour, opacity=0.15, showlegend=False,
                hoverinfo="skip",
            )  # fmt: skip
        drawing.add_scatter(
            x=curve["time"], y=curve["score"], mode="lines", name=label(name), line={"color": colour, "width": 2.2},
            hoverinfo="text",
            hovertext=[
                f"{label(name)}, {t:.3g} s: {scored(s, c)}"
                for t, s, c in zip(curve["time"], curve["score"], curve.get("ci") or [None] * len(curve["time"]),
                                   strict=False)
            ],
        )  # fmt: skip
        significant = [t for t, p in zip(curve["time"], curve.get("p") or (), strict=False) if finite(p) and p < 0.05]
        if significant:
            low = min(s for c in found for s in c["score"] if finite(s))
            drawing.add_scatter(
                x=significant, y=[low - 0.02 * (i + 1)] * len(significant), mode="markers", showlegend=False,
                marker={"symbol": "square", "size": 5, "color": colour}, hoverinfo="skip",
            )  # fmt: skip
    how = OVER.get(words(result["in_time"].get("p_over")), "by permutation")
    drawing.update_xaxes(title={"text": "time in the trial (s), middle of the short window"}, showgrid=False)
    drawing.update_yaxes(title={"text": label(words(result.get("metric")) or "score")}, automargin=True)
    caption = (
        "A decoder for each time; bands are 95 % intervals. Squares under the curves mark times at which chance does "
        f"as well in fewer than 5 % of cases, {how}, over all times together."
    )
    return plot(drawing, f"fig-in-time-{number_of}", task(result), source(result), caption, simulated(result),
                legend=True)  # fmt: skip


def bars(result: dict[str, Any], number_of: int) -> str:
    """Drop of the score when a band is taken from another trial."""
    found = _bands(result)
    pairs = [bounds(b.get("ci")) or (b["score"], b["score"]) for b in found]
    drawing = go.Figure()
    drawing.add_bar(
        x=[label(b.get("name")) for b in found], y=[b["score"] for b in found], marker={"color": COLOURS["pretrained"]},
        error_y={
            "type": "data", "array": [high - b["score"] for b, (_, high) in zip(found, pairs, strict=True)],
            "arrayminus": [b["score"] - low for b, (low, _) in zip(found, pairs, strict=True)],
        },
        hoverinfo="text", hovertext=[f"{label(b.get('name'))}: {scored(b['score'], b.get('ci'))}" for b in found],
    )  # fmt: skip
    drawing.update_yaxes(title={"text": f"drop in {label(words(result.get('metric')) or 'score')}"}, automargin=True)
    caption = (
        "How much worse the decoder is when a band of the signal is replaced by that of another trial of the same "
        "person; bars are means over people with 95 % intervals. What two bands share counts for neither."
    )
    return plot(drawing, f"fig-importance-{number_of}", task(result), source(result), caption, simulated(result),
                half=True)  # fmt: skip
