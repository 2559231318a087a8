"""The models: what each was trained on and for, how large it is and how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from brainfm.report.inputs import Model, words
from brainfm.report.style import badge, escape, finite
from brainfm.report.summary import whole


def table(models: Sequence[Model]) -> str:
    """The table as HTML; nothing without models."""
    if not models:
        return ""
    heads = ("Model", "Objective", "Pretraining data", "Subjects", "Parameters", "Time", "Metrics", "Seed")
    body = "".join(row(model) for model in models)
    return (
        f'<div class="wide"><table><thead><tr>{"".join(f"<th>{h}</th>" for h in heads)}</tr></thead>'
        f'<tbody>{body}</tbody></table></div><p class="caption">What each model saw before any label was shown to it; '
        "subjects are those used for training and for validation during pretraining.</p>"
    )


def row(model: Model) -> str:
    """One model."""
    card = model.card
    data = "<br>".join(
        f"{escape(x.get('name'))} {badge('simulated' if x.get('simulated') else '')}" for x in model.datasets
    )
    people = card.get("subjects") or {}
    counted = [
        f"{len(people[side])} {name}"
        for side, name in (("train", "training"), ("val", "validation"))
        if isinstance(people, dict) and isinstance(people.get(side), list)
    ]
    metrics = card.get("metrics") or {}
    measured = "".join(f'<span class="small">{escape(k)} {short(v)}</span>' for k, v in list(metrics.items())[:6])
    kind = words(model.config.get("name"))
    return (
        f'<tr><td><b>{escape(model.key)}</b><span class="small">{escape(kind if kind != model.key else "")}</span></td>'
        f"<td>{escape(words(card.get('objective')) or '–')}</td><td>{data or '–'}</td>"
        f"<td>{'<br>'.join(counted) or '–'}</td>"
        f"<td>{whole(card.get('parameters'))}</td><td>{duration(card.get('seconds'))}</td><td>{measured or '–'}</td>"
        f"<td>{escape(card.get('seed'))}</td></tr>"
    )


def short(value: Any) -> str:
    """A metric with three digits."""
    return f"{value:.3g}".replace("-", "−") if finite(value) else escape(None if isinstance(value, float) else value)


def duration(seconds: Any) -> str:
    """Seconds for reading."""
    if not finite(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
