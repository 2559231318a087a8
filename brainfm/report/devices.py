"""Joint against separate training: one row for each device, one column for each model, reconstruction and decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from brainfm.report.inputs import dicts, words
from brainfm.report.style import badge, escape, finite, scored

#: What a cell may hold: heading of its line, the field, the same of the network untrained.
LINES = (("r", "pcc", "pcc_untrained"), ("acc.", "accuracy", "accuracy_untrained"))


def table(results: Sequence[dict[str, Any]]) -> str:
    """The table as HTML; nothing where no result names devices."""
    found = [r for r in results if dicts(r.get("devices"))]
    if not found:
        return ""
    each = [{(d.get("dataset"), d.get("device")): d for d in dicts(r["devices"])} for r in found]
    rows = sorted({key for one in each for key in one}, key=lambda key: (not _unseen(each, key), str(key)))
    heads = "".join(f"<th>{escape(words(r.get('model')))}</th>" for r in found)
    body = "".join(_row(key, [one.get(key) for one in each]) for key in rows)
    return (
        f'<div class="wide"><table><thead><tr><th>Device</th><th>Linear</th>{heads}</tr></thead>'
        f'<tbody>{body}</tbody></table></div><p class="caption">r: correlation of each channel with its '
        "reconstruction from codes, mean over people; acc.: balanced accuracy of a probe. Brackets are 95 % intervals, "
        "over people or, with one person, over windows. Linear: log band power under the same protocol. In grey: the "
        "same network with random weights. A model that has not seen a device is marked; it is asked all the same.</p>"
    )


def _unseen(each: list[dict], key: tuple) -> bool:
    return not any(one[key].get("device_seen") for one in each if key in one)


def _row(key: tuple, cells: list[dict[str, Any] | None]) -> str:
    one = next(c for c in cells if c)
    count = one.get("n_people")
    people = f"{count} {'person' if count == 1 else 'people'}, {one.get('n_windows')} windows"
    how = "each person decoded by the others" if one.get("leave_one_person_out") else ""
    chance = f"chance {one['chance']:.2f}" if finite(one.get("chance")) else "no labels"
    linear = "<br>".join(_number(v) for k, v in one.items() if k.startswith("accuracy_") and k != "accuracy_untrained")
    name = f"{escape(key[0])}, {escape(key[1])} {badge('simulated' if one.get('simulated') else '')}"
    return (
        f'<tr><td><b>{name}</b><span class="small">{escape(people)}</span><span class="small">{escape(chance)}</span>'
        f'<span class="small">{escape(how)}</span></td><td>{linear or "–"}</td>'
        + "".join(f"<td>{_cell(c)}</td>" for c in cells)
        + "</tr>"
    )


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "–"
    lines = "".join(
        f'<span class="value">{name} {_number(entry[own])}</span><span class="small">{_number(entry.get(blank))}</span>'
        for name, own, blank in LINES
        if isinstance(entry.get(own), dict)
    )
    return lines + ("" if entry.get("device_seen") else '<span class="small">device not seen</span>')


def _number(value: Any) -> str:
    return escape(scored(value.get("score"), value.get("ci"))) if isinstance(value, dict) else "–"
