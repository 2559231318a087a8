"""The foot of the page: what it was made from, so that it can be made again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from brainfm import catalog
from brainfm.report.inputs import Model, words
from brainfm.report.style import badge, escape

#: Entries of a list that stay open; longer ones fold.
OPEN = 12


def foot(provenance: dict[str, Any], results: Sequence[dict[str, Any]], models: Sequence[Model]) -> str:
    """The footer's tables as HTML."""
    rows = [("Commit", commit(provenance))]
    seeds = [(f"result {words(r.get('key'))}", r.get("seed")) for r in results if r.get("seed") is not None]
    seeds += [(f"model {m.key}", m.card.get("seed")) for m in models if m.card.get("seed") is not None]
    if seeds:
        rows.append(("Seeds", listed(dict(seeds))))
    checksums = {k: v for x in (*results, *(m.card for m in models)) for k, v in (x.get("checksums") or {}).items()}
    for key, value in {"checksums of the data": checksums, **provenance}.items():
        if key not in ("commit", "dirty") and value not in ({}, [], None):
            rows.append((key.replace("_", " ").capitalize(), listed(value)))
    body = "".join(f"<tr><th>{escape(name)}</th><td>{inside}</td></tr>" for name, inside in rows)
    return f'<div class="wide"><table class="facts"><tbody>{body}</tbody></table></div>{data_table(results, models)}'


def commit(provenance: dict[str, Any]) -> str:
    """The commit, and whether the files differed from it."""
    if not provenance.get("commit"):
        return "not known"
    state = " <b>with changes that are not committed</b>" if provenance.get("dirty") else ""
    return f"<code>{escape(provenance['commit'])}</code>{state}"


def listed(value: Any) -> str:
    """A value, a list or a dictionary as HTML; long ones fold."""
    if not isinstance(value, dict | list):
        return escape(value)
    pairs = list(value.items()) if isinstance(value, dict) else [("", x) for x in value]
    lines = "".join(
        f"<li>{escape(k)}{' ' if k else ''}<code>{escape(words(v) if isinstance(v, list) else v)}</code></li>"
        for k, v in pairs
    )
    inside = f'<ul class="plain">{lines}</ul>'
    return f"<details><summary>{len(pairs)} entries</summary>{inside}</details>" if len(pairs) > OPEN else inside or "–"


def data_table(results: Sequence[dict[str, Any]], models: Sequence[Model]) -> str:
    """Licence and citation of every dataset that a result or a model names."""
    found: dict[str, dict[str, Any]] = {}
    for result in results:
        named = result.get("dataset")
        for name in named if isinstance(named, list) else words(named).replace("+", ",").split(","):
            if name.strip():
                found.setdefault(name.strip(), {"simulated": bool(result.get("simulated"))})
    for model in models:
        for one in model.datasets:
            found.setdefault(str(one.get("name")), {}).update({k: v for k, v in one.items() if v is not None})
    if not found:
        return ""
    known = catalog.names("datasets")
    for name, facts in found.items():
        if name in known:
            found[name] = {**catalog.load("datasets", name).CARD, **facts}
    body = "".join(
        f"<tr><td>{escape(name)} {badge('simulated' if facts.get('simulated') else '')}</td>"
        f"<td>{escape(facts.get('licence'))}</td><td>{escape(facts.get('citation'))}</td></tr>"
        for name, facts in sorted(found.items())
    )
    return (
        '<h3>Licences and citations of the data</h3><div class="wide"><table><thead><tr><th>Data</th><th>Licence</th>'
        f"<th>Please cite</th></tr></thead><tbody>{body}</tbody></table></div>"
    )
