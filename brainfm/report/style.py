"""What every table and figure shares: colours, number format, badges, and the container that a test can check."""

from __future__ import annotations

import base64
import html
import math
import textwrap
from itertools import pairwise
from typing import Any, TypeGuard

import numpy as np
import plotly.graph_objects as go
import plotly.io

#: One colour per method everywhere, from the palette of Okabe and Ito (2008) for colour-blind readers.
COLOURS = {
    "pretrained": "#0072B2",
    "untrained": "#E69F00",
    "linear": "#009E73",
    "majority": "#7F7F7F",
    "permuted": "#CC79A7",
    "other": "#56B4E9",
}
#: One marker per method, so that a print without colour can be read too.
SYMBOLS = {
    "pretrained": "circle",
    "untrained": "square",
    "linear": "diamond",
    "majority": "x",
    "permuted": "cross",
    "other": "triangle-up",
}
#: How each method is called in legends and table heads.
METHODS = {
    "pretrained": "pretrained model",
    "untrained": "untrained network",
    "linear": "linear baseline",
    "majority": "majority or mean",
    "permuted": "permuted labels",
    "other": "other baseline",
}
#: Words in a baseline's name that tell its method; the first row that matches decides.
WORDS = (
    ("untrained", ("untrained", "random weights", "random init")),
    ("permuted", ("permut", "shuffl", "shifted")),
    ("majority", ("majority", "most frequent", "constant")),
    ("linear", (
        "linear", "logistic", "ridge", "regression", "lda", "csp", "wiener", "kalman", "band power", "downsampled",
        "tangent", "riemann", "binned counts",
    )),
)  # fmt: skip
BADGE = "#B34700"
INK, GREY, LINE = "#222222", "#5A5A5A", "#D9D9D9"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
#: Pixels that a line of a figure's title takes.
TITLE_LINE = 20


def method(baseline: str) -> str:
    """The method, a key of `COLOURS`, that a baseline's name speaks of; "other" where it tells none."""
    name = baseline.lower().replace("_", " ")
    if name in ("mean", "training mean"):
        return "majority"
    return next((key for key, words in WORDS if any(word in name for word in words)), "other")


def kind_of(result: dict[str, Any], baseline: str) -> str:
    """The same, by what the result itself says of its methods where it compares several pretrained ones."""
    said = {m.get("name"): m.get("kind") for m in result.get("methods") or [] if isinstance(m, dict)}
    return str(said[baseline]) if said.get(baseline) in ("pretrained", "untrained") else method(baseline)


def finite(value: Any) -> TypeGuard[float]:
    """True for a number that is neither NaN nor infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def bounds(interval: Any) -> tuple[float, float] | None:
    """`[low, high]` as a pair, or None where either end is missing."""
    if isinstance(interval, list | tuple) and len(interval) == 2 and all(finite(x) for x in interval):
        return float(interval[0]), float(interval[1])
    return None


def number(value: Any) -> str:
    """A score for reading: two decimals, three below 0.1, an en dash where there is none."""
    if not finite(value):
        return "–"
    text = f"{value:.2f}" if abs(value) >= 0.095 or value == 0 else f"{value:.3f}"
    return text.replace("-", "−")


def scored(score: Any, interval: Any) -> str:
    """Score and interval in words: `0.78 [0.71, 0.84]`."""
    pair = bounds(interval)
    return number(score) + (f" [{number(pair[0])}, {number(pair[1])}]" if pair else "")


def escape(text: Any) -> str:
    """Any value as text that HTML shows and never runs; an en dash for None."""
    return "–" if text is None else html.escape(str(text))


def label(text: Any, width: int = 0) -> str:
    """Any value as text inside a drawing, where plotly reads a little markup; broken into lines of `width` letters."""
    lines = textwrap.wrap(str(text), width) if width else [str(text)]
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def badge(simulated: str) -> str:
    """The badge of simulated data; nothing for recorded data, whose `simulated` is ""."""
    return f'<span class="badge">{escape(simulated)}</span>' if simulated else ""


def mark(simulated: str) -> str:
    """The same inside a drawing."""
    return f' <span style="color:{BADGE}">· {label(simulated)}</span>' if simulated else ""


def frame(identity: str, inside: str, caption: str, simulated: str = "", half: bool = False) -> str:
    """The container of a figure; its `data-drawn` becomes "true" in the browser once the drawing is there.

    Args:
        identity: unique on the page.
        inside: the drawing, HTML.
        caption: plain text, what to look for.
        simulated: text of the badge, "" for none.
        half: True where two such figures stand side by side.
    """
    note = f"<figcaption>{badge(simulated)} {escape(caption)}</figcaption>"
    return f'<figure class="figure{" half" if half else ""}" id="{identity}" data-drawn="false">{inside}{note}</figure>'


def plot(
    drawing: go.Figure,
    identity: str,
    title: str,
    subtitle: str,
    caption: str,
    simulated: str = "",
    *,
    height: int = 320,
    legend: bool = False,
    half: bool = False,
) -> str:
    """A plotly figure in its container, with the page's look.

    Args:
        drawing: traces and axes; the look is set here.
        identity, caption, simulated, half: as in `frame`.
        title, subtitle: plain text, written into the drawing so that a copied figure keeps them.
        height: pixels of the plotting area and its axes, without title and legend.
        legend: True to draw one under the title.
    """
    width = 48 if half else 100
    lines = [f"<b>{label(x)}</b>" for x in textwrap.wrap(title, width) or [""]]
    lines[-1] += mark(simulated)
    lines += [
        f'<span style="font-size:12px;color:{GREY}">{label(x)}</span>' for x in textwrap.wrap(subtitle, width + 12)
    ]
    above = 10 + TITLE_LINE * len(lines)
    key = 0 if not legend else 50 if half else 30
    whole = height + above + key
    drawing.update_layout(
        template="none",
        height=whole,
        margin={"t": above + key + 26, "b": 50, "l": 64, "r": 18},
        font={"family": FONT, "size": 12, "color": INK},
        title={
            "text": "<br>".join(lines), "font": {"size": 15}, "x": 0.005, "xanchor": "left", "y": 1,
            "yref": "container", "yanchor": "top", "pad": {"t": 6 + 15 * (len(lines) - 1)},
        },
        showlegend=legend,
        legend={
            "orientation": "h", "x": 0, "xanchor": "left", "yref": "container", "y": 1 - above / whole,
            "yanchor": "top", "bgcolor": "rgba(0,0,0,0)", "itemclick": False, "itemdoubleclick": False,
        },
        paper_bgcolor="white",
        plot_bgcolor="white",
        hoverlabel={"font": {"family": FONT}},
    )  # fmt: skip
    look = {"linecolor": LINE, "zeroline": False, "automargin": True, "title": {"standoff": 8}}
    drawing.update_xaxes(gridcolor="#EEEEEE", ticks="outside", tickcolor=LINE, **look)
    drawing.update_yaxes(gridcolor="#EEEEEE", **look)
    inside = plotly.io.to_html(
        drawing,
        full_html=False,
        include_plotlyjs=False,
        div_id=f"{identity}-plot",
        default_width="100%",
        default_height=f"{whole}px",
        config={"displayModeBar": False, "responsive": True},
        post_script=f"drawn('{identity}');",
    )
    return frame(identity, f'<div class="plot" style="height:{whole}px">{inside}</div>', caption, simulated, half)


def image(png: bytes, identity: str, title: str, caption: str, simulated: str = "", half: bool = False) -> str:
    """A PNG in the container of a figure; `title` is what a reader who cannot see it is told."""
    data = base64.b64encode(png).decode()
    alt = escape(title + (f" ({simulated})" if simulated else ""))
    return frame(identity, f'<img alt="{alt}" src="data:image/png;base64,{data}">', caption, simulated, half)


def thin(x: np.ndarray, y: np.ndarray, limit: int = 900) -> tuple[np.ndarray, np.ndarray]:
    """At most about `limit` points of a curve, with the lowest and highest of each stretch, so no peak is lost."""
    if len(y) <= limit:
        return x, y
    edges = np.linspace(0, len(y), limit // 2 + 1).astype(int)
    low, high = np.where(np.isnan(y), np.inf, y), np.where(np.isnan(y), -np.inf, y)
    keep: list[int] = []
    for start, stop in pairwise(edges):
        keep += sorted({start + int(low[start:stop].argmin()), start + int(high[start:stop].argmax())})
    return x[keep], y[keep]
