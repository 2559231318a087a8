"""What was measured beside the score: tables of each result, every measure on an axis of its own, blocks of time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from brainfm.report import connectome, tables
from brainfm.report.comparison import ROW_PX, add_mark, kind_of, rows_axis, shade
from brainfm.report.inputs import simulated, source, task, words
from brainfm.report.scores import FLOOR
from brainfm.report.style import COLOURS, GREY, SYMBOLS, badge, escape, finite, label, number, plot, scored
from brainfm.report.summary import cell, whole

#: Measures, and methods of the figure of blocks, side by side; pixels of a panel of the latter.
ACROSS, BLOCKS_ACROSS, BLOCK_PX = 3, 4, 100
#: Pixels between rows of panels, and of what `plot` keeps free around all of them.
BETWEEN_PX, AROUND_PX = 56, 76


def sections(results: Sequence[dict[str, Any]]) -> str:
    """Everything of the results that hold more than a score, as HTML; nothing where there is none."""
    found = [(r, tables.of(r)) for r in results]
    return "".join(one(result, made, i) for i, (result, made) in enumerate((x for x in found if x[1]), 1))


def one(result: dict[str, Any], made: Sequence[tables.Table], number_of: int) -> str:
    """One result: its tables, then its figures."""
    drawn = (forest(result, number_of), over_blocks(result, number_of), connectome.draw(result, number_of))
    figures = "".join(drawn)
    return (
        f"<h3>{escape(task(result))} {badge(simulated(result))}</h3>"
        f'<p class="source">{escape(source(result))}</p>'
        + "".join(map(html, made))
        + (f'<div class="figures">{figures}</div>' if figures else "")
    )


def html(table: tables.Table) -> str:
    """A table as HTML."""
    heads = "".join(f"<th>{escape(head)}</th>" for head in table.heads)
    body = "".join(f"<tr>{''.join(f'<td>{inside(x)}</td>' for x in row)}</tr>" for row in table.rows)
    note = f'<p class="caption">{escape(table.note)}</p>' if table.note else ""
    return (
        f"<h4>{escape(table.title)}</h4>"
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>{note}'
    )


def inside(value: tables.Cell) -> str:
    """A cell as HTML."""
    if isinstance(value, tables.Scored):
        return cell(value.score, value.ci if finite(value.score) else None) if value.ci else number(value.score)
    return whole(value) if isinstance(value, int) else escape(tables.text(value, number))


def look(name: str) -> str:
    """The key of a method's colour and marker."""
    return "pretrained" if name == "pretrained" else shade({"name": name, "kind": kind_of(name)})


def forest(result: dict[str, Any], number_of: int) -> str:
    """Each measure in a panel of its own: all methods with their intervals, single animals, chance where known."""
    said = {title: found for title, found in tables.measured(result).items() if any(map(drawable, found.values()))}
    if not said:
        return ""
    methods = list(dict.fromkeys(name for found in said.values() for name, x in found.items() if drawable(x)))
    across, down = min(len(said), ACROSS), -(-len(said) // ACROSS)
    inner, between = panels_px(down, ROW_PX * (len(methods) + 1))
    drawing = make_subplots(
        down, across, subplot_titles=[f"<b>{label(title)}</b>{direction(title)}" for title in said], shared_yaxes=True,
        horizontal_spacing=0.03, vertical_spacing=between,
    )  # fmt: skip
    for i, (title, found) in enumerate(said.items()):
        add_panel(drawing, title, [found.get(name, {}) for name in methods], methods, (i // across + 1, i % across + 1))
    rows_axis(drawing, [label(name, 34) for name in methods])
    drawing.update_annotations(font={"size": 12})
    caption = (
        "Blue: the pretrained network; compare it with the same untrained (orange) and with the others. Lines are 95 % "
        "intervals, pale dots single animals, dashed lines chance. Each panel has an axis of its own."
    )
    if any(x["score"] < FLOOR for found in said.values() for x in found.values() if drawable(x)):
        caption += f" Arrows at the left edge are scores below {number(FLOOR)}, with their value."
    return plot(
        drawing, f"fig-measures-{number_of}", f"{task(result)}: measures", source(result), caption, simulated(result),
        height=inner + AROUND_PX,
    )  # fmt: skip


def panels_px(down: int, height: int) -> tuple[int, float]:
    """Pixels of `down` rows of panels of this height, and the share of them that lies between two rows."""
    whole_px = down * (height + BETWEEN_PX) - BETWEEN_PX
    return whole_px, BETWEEN_PX / whole_px if down > 1 else 0.0


def direction(measure: str) -> str:
    """What to add to the name of a measure of which less is better."""
    return " (lower is better)" if measure in tables.LOWER else ""


def drawable(said: dict[str, Any]) -> bool:
    """Whether a method has a score."""
    return finite(said.get("score"))


def add_panel(
    drawing: go.Figure, title: str, found: Sequence[dict[str, Any]], methods: Sequence[str], place: tuple[int, int]
) -> None:
    """One measure; scores below the floor are arrows at the edge, which intervals do not widen."""
    ends = [FLOOR, 0.0] if any(x["score"] < FLOOR for x in found if drawable(x)) else []
    level = next((x["chance"] for x in found if finite(x.get("chance"))), None)
    if level is not None:
        ends.append(level)
        drawing.add_scatter(
            x=[level] * 2, y=[-0.6, len(methods) - 0.4], mode="lines", hoverinfo="skip", row=place[0], col=place[1],
            line={"color": GREY, "dash": "dash", "width": 1.5},
        )  # fmt: skip
    for y, (name, said) in enumerate(zip(methods, found, strict=True)):
        if not drawable(said):
            continue
        colour, score, interval = COLOURS[look(name)], said["score"], said.get("ci")
        if score < FLOOR:
            drawing.add_scatter(
                x=[FLOOR], y=[y], mode="markers+text", text=[f"  {number(score)}"], textposition="middle right",
                hoverinfo="text", hovertext=[f"{label(name)}: {scored(score, interval)}"], row=place[0], col=place[1],
                marker={"color": colour, "symbol": "triangle-left", "size": 11},
            )  # fmt: skip
            continue
        dots = {k: v for k, v in (said.get("per_subject") or {}).items() if finite(v) and v >= FLOOR}
        drawing.add_scatter(
            x=list(dots.values()), y=[y] * len(dots), mode="markers", hoverinfo="text", row=place[0], col=place[1],
            hovertext=[f"{label(k)}: {v:.3g}" for k, v in dots.items()],
            marker={"color": colour, "opacity": 0.28, "size": 6},
        )  # fmt: skip
        add_mark(drawing, y, score, interval, label(name), colour, SYMBOLS[look(name)], place)
        ends += [score, *dots.values(), *(max(x, FLOOR) for x in interval or () if finite(x))]
    room = 0.06 * ((max(ends) - min(ends)) or 1.0)
    drawing.update_xaxes(range=[min(ends) - room, max(ends) + room], nticks=5, row=place[0], col=place[1])


def over_blocks(result: dict[str, Any], number_of: int) -> str:
    """Score by block of time, a panel for each method with the pretrained one pale behind; nothing without blocks."""
    said = {name: means(blocks) for name, blocks in (result.get("per_block") or {}).items()}
    said = {name: blocks for name, blocks in said.items() if np.isfinite(blocks).any()}
    if not said:
        return ""
    across, down = min(len(said), BLOCKS_ACROSS), -(-len(said) // BLOCKS_ACROSS)
    inner, between = panels_px(down, BLOCK_PX)
    drawing = make_subplots(
        down, across, subplot_titles=[label(name) for name in said], shared_yaxes=True, shared_xaxes=True,
        horizontal_spacing=0.02, vertical_spacing=between,
    )  # fmt: skip
    for i, (name, blocks) in enumerate(said.items()):
        place = {"row": i // across + 1, "col": i % across + 1}
        if name != "pretrained" and "pretrained" in said:
            behind = said["pretrained"]
            drawing.add_scatter(
                x=np.arange(1, len(behind) + 1), y=behind, mode="lines", hoverinfo="skip", opacity=0.35,
                line={"color": COLOURS["pretrained"], "width": 1.5}, **place,
            )  # fmt: skip
        drawing.add_scatter(
            x=np.arange(1, len(blocks) + 1), y=blocks, mode="lines+markers", hoverinfo="text",
            hovertext=[f"{label(name)}, block {k}: {number(x)}" for k, x in enumerate(blocks.tolist(), 1)],
            line={"color": COLOURS[look(name)], "width": 2.2},
            marker={"color": COLOURS[look(name)], "symbol": SYMBOLS[look(name)], "size": 7}, **place,
        )  # fmt: skip
    shown = np.concatenate([np.maximum(b[np.isfinite(b)], FLOOR) for b in said.values()])
    room = 0.06 * ((shown.max() - shown.min()) or 1.0)
    drawing.update_yaxes(range=[shown.min() - room, shown.max() + room], nticks=4)
    drawing.update_yaxes(title={"text": label(words(result.get("metric")) or "score")}, col=1)
    drawing.update_xaxes(dtick=1 if max(map(len, said.values())) <= 10 else None)
    drawing.update_xaxes(title={"text": "block of time"}, row=down)
    drawing.update_annotations(font={"size": 12})
    caption = (
        "Means over what was decoded; the pale blue line is the pretrained network. A method whose line leads by one "
        "block alone leads by that block alone."
    )
    if any((b[np.isfinite(b)] < FLOOR).any() for b in said.values()):
        caption += f" Lines that leave a panel go below {number(FLOOR)}."
    return plot(
        drawing, f"fig-blocks-{number_of}", f"{task(result)}: blocks of time", source(result), caption,
        simulated(result), height=inner + AROUND_PX,
    )  # fmt: skip


def means(blocks: Any) -> np.ndarray:
    """`(block,)` means over columns of `[[...], ...]`; NaN where a block has none."""
    kept = [[x for x in block or () if finite(x)] for block in blocks or ()]
    return np.array([sum(block) / len(block) if block else np.nan for block in kept], float)
