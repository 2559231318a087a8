"""Rows of many results on one page: methods of each task side by side, with what they cost and where they come from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from brainfm.report.comparison import counted, numeric, p_value
from brainfm.report.inputs import words
from brainfm.report.style import badge, escape, finite, number
from brainfm.report.summary import cell, whole

HEADS = ("Method", "Kind", "Score", "Above chance", "Worst person", "Against the reference")
#: Columns that are left out of a table where no row has them.
OPTIONAL = {"ece": "ECE", "brier": "Brier", "trained": "Weights", "seconds": "s to fit", "decode_ms": "ms to decode"}


def tables(rows: Sequence[dict[str, Any]], beside: Path) -> str:
    """One table per task as HTML; nothing without rows.

    Args:
        rows: as `brainfm.compare.Row`, in the order of the page. beside: folder that the links start from.
    """
    parts = []
    for task in dict.fromkeys(r["task"] for r in rows):
        mine = sorted((r for r in rows if r["task"] == task), key=lambda r: -_or_least(r["score"]))
        more = [k for k in OPTIONAL if any(finite(r[k]) for r in mine)]
        heads = "".join(
            f'<th tabindex="0" aria-sort="none">{escape(h)}</th>'
            for h in (*HEADS, *(OPTIONAL[k] for k in more), "From")
        )
        body = "".join(row(r, more, beside) for r in mine)
        simulated = "simulated" if any(r["simulated"] for r in mine) else ""
        parts.append(
            f"<h3>{escape(task)} {badge(simulated)}</h3>"
            f'<p class="note">Reference: {escape(mine[0]["reference"])}; chance {number(mine[0]["chance"])}'
            f"{'; ' if mine[0]['caution'] else ''}{escape(mine[0]['caution'])}</p>"
            f'<div class="wide"><table class="sortable"><thead><tr>{heads}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )
    return "".join(parts) + (
        '<p class="caption">Differences are within people, row minus reference, with a 95 % interval and Holm’s p over '
        "the rows of a task. Rows of another split or of other people are not compared, and say so.</p>"
        if parts
        else ""
    )


def row(found: dict[str, Any], more: Sequence[str], beside: Path) -> str:
    """One method of one result, with the columns `more` of `OPTIONAL`."""
    own = ' class="own"' if found["kind"] == "pretrained" else ""
    who, least = found["worst"] or ("", None)
    if found["difference"] is not None:
        difference = found["difference"]
        against = (
            f'<td data-value="{difference["difference"]}">{cell(difference["difference"], difference["ci"])}'
            f'<span class="small">Holm p {escape(p_value(difference["holm_p"]))}</span></td>'
        )
    else:
        against = f'<td data-value=""><span class="small">{escape(found["not_compared"])}</span></td>'
    people = f"{whole(found['n_subjects'])} {'person' if found['n_subjects'] == 1 else 'people'}"
    return (
        f"<tr><td><b>{escape(found['method'])}</b></td><td>{escape(found['kind'])}</td>"
        f'<td{own} data-value="{found["score"] if finite(found["score"]) else ""}">{cell(found["score"], found["ci"])}'
        f'<span class="small">{people}</span></td>{numeric(found["above_chance"])}'
        f'<td data-value="{least if finite(least) else ""}">{number(least)}'
        f'<span class="small">{escape(who)}</span></td>{against}'
        + "".join(counted(found[k]) if k == "trained" else numeric(found[k]) for k in more)
        + f"<td>{origin(found, beside)}</td></tr>"
    )


def origin(found: dict[str, Any], beside: Path) -> str:
    """Links to the result, its configuration and its audit, with commit and seed."""
    style = {"passed": "good", "none": ""}.get(found["audited"], "bad")
    said = f'<span class="{style}">{escape(found["audited"])}</span>'
    configured = link(found["config"], beside, "configuration") if found["config"] else "no configuration"
    audit = link(found["audit"], beside, "audit") if found["audit"] else "audit"
    return (
        f"{link(found['file'], beside, found['key'])}"
        f'<span class="small">{configured}, seed {escape(found["seed"])}, commit '
        f"{escape((found['commit'] or 'not known')[:10])}, {audit} {said}</span>"
    )


def link(path: str, beside: Path, text: str) -> str:
    """A link to a file, from the page's folder; it leads there as long as both stay where they are."""
    return f'<a href="{quote(Path(os.path.relpath(path, beside)).as_posix())}">{escape(text)}</a>'


def _or_least(score: Any) -> float:
    return score if finite(score) else float("-inf")


def sources(rows: Sequence[dict[str, Any]]) -> str:
    """Every file with its hash of splits, so that it is plain which may be compared."""
    files = {r["file"]: r for r in rows}
    body = "".join(
        f"<tr><td><code>{escape(file)}</code></td><td>{escape(words(r['dataset']))}</td><td>{escape(r['model'])}</td>"
        f"<td><code>{escape(r['split'] or 'not recorded')}</code></td><td><code>{escape(r['commit'] or 'not known')}"
        f"</code></td><td>{escape(r['seed'])}</td><td>{escape(r['config'])}</td><td>{escape(r['audit'])}</td></tr>"
        for file, r in files.items()
    )
    heads = ("Result", "Data", "Model", "Split", "Commit", "Seed", "Configuration", "Audit")
    return (
        f'<div class="wide"><table><thead><tr>{"".join(f"<th>{h}</th>" for h in heads)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
