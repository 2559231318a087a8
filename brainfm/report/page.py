"""The report: one HTML file that holds everything it shows, opens offline and asks the network for nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from brainfm.report import (
    audit_table,
    comparison,
    confusion,
    devices,
    few_shot,
    identity,
    in_time,
    learning_curves,
    matrices,
    measures,
    model_table,
    provenance,
    ranking,
    scores,
    summary,
    topographies,
    traces,
    usage,
    verdict,
)  # fmt: skip
from brainfm.report.inputs import read_json, read_model, read_result
from brainfm.report.style import BADGE, FONT, GREY, INK, LINE, escape

#: The browser itself refuses every request: only what is written into the file may be used.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)

STYLE = f"""
body {{ font: 16px/1.5 {FONT}; color: {INK}; background: #fff; margin: 0 auto; max-width: 1100px;
  padding: 24px 20px 60px; }}
h1 {{ font-size: 1.8rem; line-height: 1.2; margin: 0 0 .6rem; }}
h2 {{ font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 1px solid {LINE}; }}
h3 {{ font-size: 1rem; margin: 1.4rem 0 .4rem; }} h4 {{ font-size: .9rem; margin: 1rem 0 .2rem; }}
nav {{ font-size: .92rem; color: {GREY}; }}
nav a {{ color: #005A8C; margin-right: .9em; white-space: nowrap; }}
.lead {{ color: {GREY}; margin: 0 0 .8rem; max-width: 78ch; }}
.badge {{ display: inline-block; background: {BADGE}; color: #fff; font-size: .72rem; line-height: 1;
  padding: .22em .5em .28em; border-radius: .8em; vertical-align: .1em; white-space: nowrap; }}
.verdicts {{ padding-left: 1.1em; }} .verdicts li {{ margin: .5rem 0; }}
.source, .note, .caption, figcaption {{ color: {GREY}; font-size: .88rem; }}
figcaption {{ margin-top: 8px; }}
.figures {{ display: flex; flex-wrap: wrap; gap: 18px; }} .wide + .figures {{ margin-top: 14px; }}
.figure {{ margin: 0; flex: 1 1 100%; min-width: 0; border: 1px solid {LINE}; border-radius: 6px;
  padding: 8px 10px 10px; box-sizing: border-box; break-inside: avoid; }}
.figure.half {{ flex: 0 1 calc(50% - 9px); min-width: 340px; }}
.figure img {{ display: block; width: 100%; height: auto; }}
.plot {{ overflow: hidden; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .86rem; line-height: 1.35; width: 100%;
  font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; vertical-align: top; padding: 6px; border-bottom: 1px solid {LINE}; }}
thead th {{ border-bottom: 2px solid var(--method, {GREY}); vertical-align: bottom; font-weight: 600; }}
.sortable th {{ cursor: pointer; }} .sortable th[aria-sort=ascending]::after {{ content: " ▲"; }}
.sortable th[aria-sort=descending]::after {{ content: " ▼"; }}
.sortable th:first-child {{ min-width: 150px; }} .sortable th:nth-child(5) {{ min-width: 96px; }}
.facts th {{ width: 11em; }} .own .value {{ font-weight: 700; }}
.value, .small {{ display: block; }} .small {{ color: {GREY}; font-size: .8rem; }}
td .value, td .line {{ white-space: nowrap; }}
code {{ font-size: .85em; overflow-wrap: anywhere; }} ul.plain {{ list-style: none; margin: 0; padding: 0; }}
.good {{ color: #00664B; font-weight: 600; }} .bad {{ color: {BADGE}; font-weight: 600; }}
@media print {{ body {{ max-width: none; padding: 0; zoom: .62; }} nav {{ display: none; }}
  .wide {{ overflow: visible; }} }}
"""

#: Runs before anything is drawn: collects errors, and says of each figure when it is there.
WATCH = """
var found = [];
function failed(text) { found.push(String(text)); if (document.body) document.body.dataset.errors = found.join(' | '); }
window.onerror = function (message) { failed(message); };
window.addEventListener('unhandledrejection', function (event) { failed(event.reason); });
function drawn(id) {
  var figure = document.getElementById(id);
  if (figure.querySelector('svg.main-svg')) figure.dataset.drawn = 'true'; else failed('nothing drawn in ' + id);
}
"""

#: Runs last: images, and sorting of tables.
SETTLE = """
if (found.length) document.body.dataset.errors = found.join(' | ');
document.querySelectorAll('.figure img').forEach(function (img) {
  function check() {
    if (img.naturalWidth > 0) img.closest('.figure').dataset.drawn = 'true';
    else failed('no image in ' + img.closest('.figure').id);
  }
  if (img.complete) check(); else { img.onload = check; img.onerror = check; }
});
document.querySelectorAll('table.sortable').forEach(function (table) {
  var heads = Array.from(table.tHead.rows[0].cells);
  function key(row, column) {
    var cell = row.cells[column], value = cell.dataset.value;
    return value === undefined ? cell.textContent : value === '' ? null : parseFloat(value);
  }
  function sort(column) {
    var before = heads[column].getAttribute('aria-sort'), words = heads[column].cellIndex < 3;
    var up = before === 'descending' || words && before === 'none';
    heads.forEach(function (head) { head.setAttribute('aria-sort', 'none'); });
    heads[column].setAttribute('aria-sort', up ? 'ascending' : 'descending');
    Array.from(table.tBodies[0].rows).sort(function (a, b) {
      var x = key(a, column), y = key(b, column);
      if (x === null || y === null) return (x === null) - (y === null);
      return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
    }).forEach(function (row) { table.tBodies[0].appendChild(row); });
  }
  heads.forEach(function (head, column) {
    head.onclick = function () { sort(column); };
    head.onkeydown = function (event) { if (event.key === 'Enter') sort(column); };
  });
});
"""


def write_page(
    out: Path,
    title: str,
    results: Sequence[Path],
    models: Sequence[Path],
    audit: Path | None,
    made_from: dict[str, Any],
) -> Path:
    """Write the report in one step: whole or not at all.

    Args:
        out: the HTML file to write; its folder is made.
        title: of the page.
        results: result files, in the order of the page.
        models: model folders.
        audit: the audit's file, or None where there is none.
        made_from: the provenance: `commit`, `dirty`, and dictionaries such as `versions` and `checksums`.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: for a result, audit or model that is missing.
        ValueError: for one that is not JSON.
    """
    page = render(
        title,
        [read_result(path) for path in results],
        [read_model(folder) for folder in models],
        None if audit is None else read_json(audit),
        made_from,
    )
    return store(out, page)


def store(out: Path, page: str) -> Path:
    """Write a page in one step; its folder is made."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, out)
    return out


def render(title: str, results: list, models: list, audit: dict | None, made_from: dict[str, Any]) -> str:
    """The report as text."""
    return document(title, sections(results, models, audit, made_from))


def document(title: str, parts: Sequence[tuple[str, str, str, str]]) -> str:
    """A page as text, of `(id, heading, lead, HTML)` of its sections; those without content are left out."""
    found = [s for s in parts if s[3]]
    links = " ".join(f'<a href="#{identity}">{escape(name)}</a>' for identity, name, _, _ in found)
    body = "".join(
        f'<section id="{identity}"><h2>{escape(name)}</h2>'
        + (f'<p class="lead">{escape(lead)}</p>' if lead else "")
        + f"{inside}</section>"
        for identity, name, lead, inside in found
    )
    library = f"<script>{get_plotlyjs()}</script>" if 'class="plot"' in body else ""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
        f"<script>{WATCH}</script>{library}</head><body><h1>{escape(title)}</h1><nav>{links}</nav>{body}"
        f"<script>{SETTLE}</script></body></html>\n"
    )


def sections(
    results: list, models: list, audit: dict | None, made_from: dict[str, Any]
) -> list[tuple[str, str, str, str]]:
    """`(id, heading, lead, HTML)` of every section; those without content are left out by the caller."""
    drawn = {
        "scores": scores.draw(results),
        "few-shot": few_shot.draw(results),
        "in-time": in_time.draw(results),
        "confusions": confusion.draw(results),
        "traces": traces.draw(results, models),
        "matrices": matrices.draw(results, models),
        "topographies": topographies.draw(results, models),
        "codes": usage.draw(results, models),
        "learning": learning_curves.draw(models),
    }
    inside = {k: f'<div class="figures">{"".join(v)}</div>' if v else "" for k, v in drawn.items()}
    return [
        ("says", "What this says", "", verdict.paragraph(results, audit)),
        ("summary", "Summary", "", summary.table(results)),
        ("scores", "Scores with their intervals", "The table above as a picture.", inside["scores"]),
        ("measures", "Further measures", "What else was measured of the same predictions.", measures.sections(results)),
        ("devices", "Together or apart", "The same steps on EEG, on MEG, and on both; unseen devices first.",
         devices.table(results)),
        ("comparison", "Methods under one protocol", "The same people, windows and tuning budget for every method.",
         comparison.sections(results)),
        ("ranking", "Ranking over tasks", "", ranking.section(ranking.collected(results))),
        ("few-shot", "With few labels", "The same task with fewer labelled examples.", inside["few-shot"]),
        ("in-time", "Decoding over time", "When a class can be told apart, and in which band.", inside["in-time"]),
        ("identity", "What it really learnt", "What people do, or only who they are.", identity.section(results)),
        ("confusions", "Confusions", "Counts of tested trials; rows are what was true.", inside["confusions"]),
        ("traces", "Traces", "Examples, not averages.", inside["traces"]),
        ("matrices", "Matrices", "What was found beside what was put in, likenesses, attention.", inside["matrices"]),
        ("topographies", "Topographies", "", inside["topographies"]),
        ("codes", "Use of the codes", "How many of its codes a tokenizer needs, depth by depth.", inside["codes"]),
        ("models", "Models", "", model_table.table(models)),
        ("learning", "Learning curves", "", inside["learning"]),
        ("audit", "Leak audit", "", audit_table.table(audit)),
        ("provenance", "Where this comes from", "", provenance.foot(made_from, results, models)),
    ]  # fmt: skip
