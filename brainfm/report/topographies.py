"""Topographies: values of channels on the head seen from above, as an image that needs no script."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mne
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from brainfm.report.inputs import Group, Model, groups
from brainfm.report.style import BADGE, GREY, INK, image

#: Maps per row and per figure; a caption tells how many were left out.
ACROSS, PANELS = 6, 18
#: Inches, width and height, of a map with its title and colour bar.
MAP = (1.77, 2.05)
#: Metres that the head's outline is drawn at.
RADIUS = 0.095
#: Fewer channels than this are drawn as dots: too little to interpolate between.
INTERPOLATED = 8


def draw(results: Sequence[dict[str, Any]], models: Sequence[Model]) -> list[str]:
    """One image for each result and each model that has topographies, and for each montage that its maps name."""
    montages = [m for group in groups(results, models, "topographies", "positions") for m in by_montage(group)]
    found = [(group, [m for m in map(read, group.items) if m]) for group in montages]
    return [one(group, kept, i) for i, (group, kept) in enumerate((x for x in found if x[1]), 1)]


def by_montage(group: Group) -> list[Group]:
    """The group's maps apart by the montage that they are of; those that name none stay together."""
    names = list(dict.fromkeys(str(item.get("montage") or "") for item in group.items))
    return [
        replace(
            group,
            title=f"{group.title}: {name}" if name else group.title,
            items=[item for item in group.items if str(item.get("montage") or "") == name],
        )
        for name in names
    ]


def read(item: dict[str, Any]) -> dict[str, Any] | None:
    """Title, places `(channel, 2)` and values `(channel,)` of channels where both are known; None for none."""
    positions, values = np.array(item.get("positions") or [], float), np.array(item.get("values") or [], float)
    if positions.ndim != 2 or positions.shape[1] != 3 or len(positions) != len(values):
        return None
    keep = np.isfinite(positions).all(1) & np.isfinite(values)
    if not keep.any():
        return None
    places, on_surface = project(positions[keep])
    places, values = merge(places, values[keep])
    return {
        "title": str(item.get("title") or ""),
        "places": places,
        "values": values,
        "missing": int((~keep).sum()),
        "smooth": on_surface
        and len(values) >= INTERPOLATED
        and np.linalg.matrix_rank(places - places.mean(0), 1e-3) == 2,
    }


def project(positions: np.ndarray) -> tuple[np.ndarray, bool]:
    """Places on the drawn head, nose up, and whether the channels lie on a surface around it.

    A sphere is fitted to the channels; the angle from its top becomes the distance from the middle (azimuthal
    equidistant), so that the sphere's equator is the head's outline. Channels that lie on no such sphere are
    seen straight from above.

    Args:
        positions: `(channel, 3)` metres.
    """
    centre, radius = np.zeros(3), 0.0
    if len(positions) >= INTERPOLATED:
        system = np.column_stack([2 * positions, np.ones(len(positions))])
        solution = np.linalg.lstsq(system, (positions**2).sum(1), rcond=None)[0]
        if np.abs(solution[:3]).max() < 0.08:
            centre = solution[:3]
    away = np.linalg.norm(positions - centre, axis=1)
    radius = float(np.median(away))
    if radius < 1e-6 or np.any(np.abs(away - radius) > 0.35 * radius):
        return positions[:, :2] * RADIUS / max(RADIUS, float(np.abs(positions).max())), False
    unit = (positions - centre) / np.maximum(away, 1e-9)[:, None]
    angle = np.arccos(np.clip(unit[:, 2], -1, 1))
    flat = np.hypot(unit[:, 0], unit[:, 1])
    direction = unit[:, :2] / np.maximum(flat, 1e-9)[:, None]
    return direction * (angle / (np.pi / 2) * RADIUS)[:, None], True


def merge(places: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Channels that share a place become one with their mean value."""
    _, first, group = np.unique(places.round(4), axis=0, return_index=True, return_inverse=True)
    group = group.ravel()
    return places[first], np.bincount(group, values) / np.bincount(group)


def one(group: Group, maps: list[dict[str, Any]], number_of: int) -> str:
    """The image of one result or model; every map has its own colour scale, and up to three take half the page."""
    shown = maps[:PANELS]
    half = len(shown) <= ACROSS // 2
    across = ACROSS // 2 if half else ACROSS
    figure = sheet(group, across, -(-len(shown) // across))
    width, height = figure.get_size_inches()
    for i, found in enumerate(shown):
        left, bottom = (i % across) * MAP[0], height - titled(group, across) - MAP[1] * (i // across + 1)
        axes = figure.add_axes((left / width, (bottom + 0.32) / height, MAP[0] / width, 1.45 / height))
        bar = figure.add_axes(((left + 0.5) / width, (bottom + 0.24) / height, (MAP[0] - 1) / width, 0.06 / height))
        add_map(axes, bar, found)
    stored = io.BytesIO()
    figure.savefig(stored, format="png", facecolor="white")
    caption = (
        "Nose up, seen from above; black dots are channels, and every map has its own colour scale, so compare shapes."
    )
    if any(not m["smooth"] for m in shown):
        caption += " Coloured dots alone: too few channels, or none around the head, to fill the space between."
    if any(m["missing"] for m in shown):
        caption += " Channels without a known position or value are left out."
    if len(maps) > len(shown):
        caption += f" The first {len(shown)} of {len(maps)} are shown."
    title = f"{group.title}: {', '.join(m['title'] for m in shown)}"
    return image(stored.getvalue(), f"fig-topographies-{number_of}", title, caption, group.simulated, half)


def headlines(group: Group, across: int) -> tuple[list[str], list[str]]:
    """Lines of the title and of the subtitle."""
    width = 15 * across
    return textwrap.wrap(group.title, width) or [""], textwrap.wrap(group.subtitle, int(1.2 * width))


def titled(group: Group, across: int) -> float:
    """Inches that title and subtitle take."""
    return 0.1 + 0.21 * sum(map(len, headlines(group, across)))


def sheet(group: Group, across: int, down: int) -> Figure:
    """An empty image with its title, the word "simulated" where it applies, and the subtitle."""
    width, height = MAP[0] * across, titled(group, across) + MAP[1] * down
    figure = Figure(figsize=(width, height), dpi=180)
    FigureCanvasAgg(figure)
    title, subtitle = headlines(group, across)
    for i, line in enumerate(title + subtitle):
        first = i < len(title)
        style: dict[str, Any] = {"va": "top", "parse_math": False}
        y = 1 - (0.06 + 0.21 * i) / height
        text = figure.text(
            0.04 / width, y, line, size=10.5 if first else 8.5, weight="bold" if first else "normal",
            color=INK if first else GREY, **style,
        )  # fmt: skip
        if group.simulated and i == len(title) - 1:
            end = text.get_window_extent().x1 / figure.dpi
            figure.text((end + 0.08) / width, y, f"· {group.simulated}", size=10.5, color=BADGE, **style)
    return figure


def add_map(axes: Axes, bar: Axes, found: dict[str, Any]) -> None:
    """One map and its colour bar."""
    values, places = found["values"], found["places"]
    signed = bool(values.min() < 0)
    largest = float(np.abs(values).max()) or 1.0
    limits = (-largest if signed else 0.0, largest)
    colours = "RdBu_r" if signed else "Blues"
    if found["smooth"]:
        drawn, _ = mne.viz.plot_topomap(
            values, places, axes=axes, show=False, sphere=(0.0, 0.0, 0.0, RADIUS), cmap=colours, vlim=limits,
            contours=0, extrapolate="local" if len(values) < 20 else "head", sensors="k.",
        )  # fmt: skip
    else:
        add_head(axes)
        drawn = axes.scatter(
            places[:, 0],
            places[:, 1],
            c=values,
            cmap=colours,
            norm=Normalize(*limits),
            s=46,
            edgecolors=INK,
            linewidths=0.6,
            zorder=3,
        )
    axes.set_title("\n".join(textwrap.wrap(found["title"], 24)[:2]), size=8, color=INK, pad=3, parse_math=False)
    scale = axes.figure.colorbar(drawn, cax=bar, orientation="horizontal", ticks=[limits[0], limits[1]])
    scale.ax.set_xticklabels([f"{x:.2g}" for x in limits])
    scale.ax.tick_params(labelsize=7, length=2, pad=1, colors=GREY)
    scale.outline.set_visible(False)


def add_head(axes: Axes) -> None:
    """The outline of a head: a circle and a nose."""
    axes.add_patch(Circle((0, 0), RADIUS, fill=False, color=INK, linewidth=1))
    nose = np.array([[-0.09, 0.995], [0, 1.13], [0.09, 0.995]]) * RADIUS
    axes.plot(*nose.T, color=INK, linewidth=1)
    axes.set(xlim=(-1.25 * RADIUS, 1.25 * RADIUS), ylim=(-1.25 * RADIUS, 1.25 * RADIUS), aspect="equal")
    axes.set_axis_off()
