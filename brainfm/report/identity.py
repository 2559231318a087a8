"""What was really learnt: parts of the variance, layers, what was erased, and what the encoding reacts to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from brainfm.report.inputs import dicts, simulated, source, task, words
from brainfm.report.style import COLOURS, GREY, badge, bounds, escape, finite, label, number, plot, scored

#: Colours of the parts of the variance, the readouts of subject and label among them.
PARTS = {
    "subject": "#D55E00",
    "session": "#E69F00",
    "label by subject": "#56B4E9",
    "label": "#0072B2",
    "rest": "#CCCCCC",
}
VIEWS = {"pretrained": "pretrained", "untrained": "untrained", "log_band_power": "log band power"}
AXES = {"time": "a stretch of time shuffled", "space": "a channel from another window", "band": "a band removed"}


def section(results: Sequence[dict[str, Any]]) -> str:
    """Words, a table and figures of each result that has diagnostics; nothing where none has."""
    found = [r for r in results if isinstance(r.get("identity"), dict)]
    return "".join(one(r, i) for i, r in enumerate(found, 1))


def one(result: dict[str, Any], number_of: int) -> str:
    """The diagnostics of one result."""
    own = result["identity"]
    figures = [
        shares(result, own, number_of),
        layers(result, own, number_of),
        *(reactions(result, own, axis, number_of) for axis in AXES),
    ]
    said = "".join(f"<li>{escape(text)}</li>" for text in own.get("says") or [])
    return (
        f"<h3>{escape(task(result))}: {escape(words(result.get('model')))} {badge(simulated(result))}</h3>"
        f'<ul class="verdicts">{said}</ul>{table(own)}<div class="figures">{"".join(figures)}</div>'
    )


def table(own: dict[str, Any]) -> str:
    """What reads the label and the subject, and what is left of both after erasing and without the 1/f part."""
    asked, erasure, slope = own.get("probes") or {}, own.get("erasure") or {}, own.get("aperiodic") or {}
    rows = [(VIEWS.get(name, name), one) for name, one in asked.items()]
    rows += [
        (f"pretrained, {erasure.get('axes')} axes of the training people erased", erasure.get("after") or {}),
        ("pretrained, as many axes at random", erasure.get("random") or {}),
        ("pretrained, encoding without the 1/f part", slope.get("after") or {}),
        ("slope and offset of 1/f alone", slope.get("alone") or {}),
    ]
    columns = ("label", "label_later", "subject", "subject_known")
    first = next(iter(asked.values()), {}) | {"subject_known": (erasure.get("before") or {}).get("subject_known")}
    chances = [number(_dict(first.get(k)).get("chance")) for k in columns]
    body = "".join(
        f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{_cell(entry.get(k))}</td>" for k in columns) + "</tr>"
        for name, entry in rows
        if any(k in entry for k in columns)
    )
    names = ("Label, people never seen", "Label, same people later", "Subject, people never seen",
             "Subject, training people")  # fmt: skip
    head = "".join(
        f'<th>{escape(name)}<span class="small">chance {chance}</span></th>'
        for name, chance in zip(names, chances, strict=True)
    )
    return (
        f'<div class="wide"><table><thead><tr><th>Representation</th>{head}</tr></thead><tbody>{body}</tbody></table>'
        '</div><p class="caption">Balanced accuracy for the label, share of right windows for the subject, means over '
        "people with 95 % intervals; p by permuting the truth of trials or of stretches of one label, or by flipping "
        "signs of people where a recording is one condition. Who someone is is fitted on early windows and asked on "
        "later ones after a gap. A representation of identity has a high third column and a first one at chance.</p>"
    )


def _cell(entry: Any) -> str:
    entry = _dict(entry)
    if not finite(entry.get("score")):
        return "–"
    over = f", {escape(words(entry['p_over']))}" if entry.get("p_over") else ""
    p = f'<span class="small">p {number(entry["p"])}{over}</span>' if finite(entry.get("p")) else ""
    return f'<span class="value">{escape(scored(entry["score"], entry.get("ci")))}</span>{p}'


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def shares(result: dict[str, Any], own: dict[str, Any], number_of: int) -> str:
    """Bars of the parts of the variance, one for each representation."""
    found = {VIEWS.get(name, name): parts for name, parts in _dict(own.get("variance")).items()}
    if not found:
        return ""
    drawing = go.Figure()
    for part, colour in PARTS.items():
        values = [_dict(parts.get(part)).get("share") for parts in found.values()]
        if any(finite(v) for v in values):
            drawing.add_bar(
                y=[label(name) for name in found], x=[max(v, 0) if finite(v) else 0 for v in values], name=part,
                orientation="h", marker={"color": colour}, hoverinfo="text",
                hovertext=[f"{part}: {scored(_dict(p.get(part)).get('share'), _dict(p.get(part)).get('ci'))}"
                           for p in found.values()],
            )  # fmt: skip
    drawing.update_layout(barmode="stack")
    drawing.update_xaxes(title={"text": "share of the variance of a window"}, range=[0, 1.02])
    drawing.update_yaxes(autorange="reversed")
    alike = _dict(_dict(own.get("consistency")).get("pretrained"))
    caption = "People never seen. What one person's label changes and another's does not is “label by subject”."
    if finite(alike.get("score")):
        caption += (
            f" The class difference of a person points where that of the others does with a cosine of "
            f"{scored(alike['score'], alike.get('ci'))}; where that of the person's own other half does, with "
            f"{number(alike.get('own'))}."
        )
    if own.get("confounded"):
        caption += " Each recording has one class: a difference between recordings counts as label here."
    return plot(
        drawing, f"fig-identity-{number_of}-variance", "What the encoding varies with", source(result), caption,
        simulated(result), height=230, legend=True, half=True,
    )  # fmt: skip


def layers(result: dict[str, Any], own: dict[str, Any], number_of: int) -> str:
    """Label and subject after each block, above chance as a share of what is left to gain."""
    found = dicts(own.get("layers"))
    if not found:
        return ""
    drawing = go.Figure()
    drawing.add_hline(y=0, line={"color": GREY, "dash": "dash", "width": 1.5})
    for what, colour in (("subject", PARTS["subject"]), ("label", PARTS["label"])):
        for end, dash, name in (("", "solid", what), ("_untrained", "dot", f"{what}, untrained")):
            entries = [_dict(layer.get(f"{what}{end}")) for layer in found]
            points = [(i, e) for i, e in enumerate(entries) if finite(e.get("score")) and finite(e.get("chance"))]
            drawing.add_scatter(
                x=[i for i, _ in points], y=[_gain(e["score"], e["chance"]) for _, e in points], name=name,
                mode="lines+markers", line={"color": colour, "dash": dash, "width": 2}, marker={"size": 7},
                error_y=None if end else _bars([e for _, e in points]), hoverinfo="text",
                hovertext=[f"{name}: {scored(e['score'], e.get('ci'))}" for _, e in points],
            )  # fmt: skip
    drawing.update_xaxes(
        tickvals=list(range(len(found))), ticktext=[label(layer.get("layer"), 12) for layer in found], showgrid=False
    )
    drawing.update_yaxes(title={"text": "above chance (1: perfect)"})
    caption = (
        "People never seen: 0 is chance, 1 all right. Label fitted on training people; subject fitted on early windows "
        "of the same people. Bars: 95 % over people. Each block is its mean over tokens."
    )
    return plot(
        drawing, f"fig-identity-{number_of}-layers", "Layer by layer", source(result), caption, simulated(result),
        height=280, legend=True, half=True,
    )  # fmt: skip


def _gain(score: float, chance: float) -> float:
    return (score - chance) / (1 - chance)


def _bars(entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    ends = [bounds(e.get("ci")) for e in entries]
    if not entries or any(pair is None for pair in ends):
        return None
    scale = [1 - e["chance"] for e in entries]
    pairs = list(zip(entries, [p for p in ends if p], scale, strict=True))
    return {
        "type": "data", "symmetric": False, "thickness": 1, "width": 3,
        "array": [(high - e["score"]) / s for e, (_, high), s in pairs],
        "arrayminus": [(e["score"] - low) / s for e, (low, _), s in pairs],
    }  # fmt: skip


def reactions(result: dict[str, Any], own: dict[str, Any], axis: str, number_of: int) -> str:
    """How far the encoding moves and what the true class loses, for each perturbation of one axis."""
    found = [p for p in dicts(own.get("perturbation")) if p.get("axis") == axis]
    found = [p for p in found if finite(p.get("drop")) and finite(p.get("change"))]
    if not found:
        return ""
    names = [label(p.get("name"), 16) for p in found]
    drawing = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for row, (field, title, colour) in enumerate(
        (("change", "encoding<br>moves", COLOURS["other"]), ("drop", "true class<br>loses", COLOURS["pretrained"])), 1
    ):
        ends = [bounds(p.get(f"{field}_ci")) or (p[field], p[field]) for p in found]
        drawing.add_hline(y=0, line={"color": GREY, "width": 1}, row=row, col=1)
        drawing.add_scatter(
            x=names, y=[p[field] for p in found], mode="markers", marker={"color": colour, "size": 7},
            error_y={"type": "data", "symmetric": False, "thickness": 1, "width": 2,
                     "array": [b - p[field] for p, (_, b) in zip(found, ends, strict=True)],
                     "arrayminus": [p[field] - a for p, (a, _) in zip(found, ends, strict=True)]},
            hoverinfo="text", row=row, col=1,
            hovertext=[f"{label(p.get('name'))}: {scored(p[field], p.get(f'{field}_ci'))}, Holm p "
                       f"{number(p.get('p_holm'))}" for p in found],
        )  # fmt: skip
        drawing.update_yaxes(title={"text": title}, nticks=5, rangemode="tozero", row=row, col=1)
    low = [label(p.get("name")) for p in found if finite(p.get("p_holm")) and p["p_holm"] <= 0.05]
    caption = (
        "Above: 1 is as far as to another window of the person. Below: probability of the true class, before minus "
        "after. Bars: 95 % over people. After Holm, the readout of the label loses without "
        f"{', '.join(low[:8]) if low else 'none of them'}."
    )
    return plot(
        drawing, f"fig-identity-{number_of}-{axis}", f"Without it: {AXES[axis]}", source(result), caption,
        simulated(result), height=320, half=True,
    )  # fmt: skip
