"""The audit: what was checked for leaks between training and test, and what was found."""

from __future__ import annotations

from typing import Any

from brainfm.report.inputs import dicts, words
from brainfm.report.style import escape
from brainfm.report.summary import whole

#: Leaks that are listed by name for each check.
LISTED = 12


def table(audit: dict[str, Any] | None) -> str:
    """The table as HTML; nothing without an audit."""
    if audit is None:
        return ""
    passed = bool(audit.get("passed"))
    verdict = (
        "Passed: nothing is shared." if passed else "Not passed: scores that rest on the rows below cannot be trusted."
    )
    body = "".join(row(check) for check in dicts(audit.get("checks")))
    return (
        f'<p class="{"good" if passed else "bad"}">{verdict}</p><div class="wide"><table><thead><tr>'
        "<th>What was checked</th>"
        f"<th>Pairs compared</th><th>Leaks</th></tr></thead><tbody>{body}</tbody></table></div>"
        '<p class="caption">Every row should end in “none”; a leak tests a model on what it was trained on.</p>'
    )


def row(check: dict[str, Any]) -> str:
    """One check."""
    leaks = check.get("leaks") or []
    shown = "".join(f"<li>{escape(leak_text(leak))}</li>" for leak in leaks[:LISTED])
    more = f"<li>and {len(leaks) - LISTED} more</li>" if len(leaks) > LISTED else ""
    found = f'<b class="bad">{len(leaks)}</b><ul>{shown}{more}</ul>' if leaks else "none"
    return f"<tr><td>{escape(words(check.get('what')))}</td><td>{whole(check.get('pairs'))}</td><td>{found}</td></tr>"


def leak_text(leak: Any) -> str:
    """One leak as text."""
    return ", ".join(f"{k}: {words(v)}" for k, v in leak.items()) if isinstance(leak, dict) else words(leak)
