"""The audit: what was checked for leaks between training and test, and what was found."""

from __future__ import annotations

from typing import Any

from brainfm.report.inputs import dicts, words
from brainfm.report.style import escape
from brainfm.report.summary import whole

#: Leaks, and other remarks, that are listed for each check.
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
        "<th>What was checked</th><th>Compared</th><th>Leaks</th><th>Odd, or could not be checked</th></tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
        '<p class="caption">Every row should say “none”; a leak tests a model on what it was trained on. What '
        "could not be checked is not known to be safe.</p>"
    )


def row(check: dict[str, Any]) -> str:
    """One check."""
    leaks = check.get("leaks") or []
    found = f'<b class="bad">{len(leaks)}</b>{listed(leaks)}' if leaks else "none"
    beside = listed([*(check.get("warnings") or []), *(check.get("unchecked") or [])])
    compared = f"{whole(check.get('pairs'))} {escape(words(check.get('of') or ''))}"
    return f"<tr><td>{escape(words(check.get('what')))}</td><td>{compared}</td><td>{found}</td><td>{beside}</td></tr>"


def listed(said: list[Any]) -> str:
    """The first of them as a list; nothing where there is none."""
    shown = "".join(f"<li>{escape(leak_text(x))}</li>" for x in said[:LISTED])
    more = f"<li>and {len(said) - LISTED} more</li>" if len(said) > LISTED else ""
    return f"<ul>{shown}{more}</ul>" if said else ""


def leak_text(leak: Any) -> str:
    """One leak as text."""
    return ", ".join(f"{k}: {words(v)}" for k, v in leak.items()) if isinstance(leak, dict) else words(leak)
