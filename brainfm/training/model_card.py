"""The card of a model as a page: Markdown with a YAML head, in the form that model hubs show. Made from `card.json`."""

from __future__ import annotations

import json
from typing import Any

import yaml

README = "README.md"
#: Losses and scores that are shown, most telling first; the rest stays in `card.json`.
SHOWN = 12


def text(config: dict[str, Any], facts: dict[str, Any], card: dict[str, Any]) -> str:
    """The page.

    Args:
        config: kind, name and keywords of the network. facts: what it was built from. card: as `card.json` keeps it.
    """
    datasets = [d for d in card.get("datasets") or [] if isinstance(d, dict)]
    metrics = {k: v for k, v in sorted((card.get("metrics") or {}).items()) if isinstance(v, int | float)}
    title = str(card.get("title") or config["name"])
    licences = _licences(card, datasets)
    simulated = ["simulated-data"] if _simulated(datasets) else []
    head = {
        "library_name": "brainfm",
        "license": "other",
        "license_name": "; ".join(licences) or "not stated",
        "tags": sorted({"brainfm", config["name"], *facts.get("modality", ()), *simulated}),
        "datasets": [str(d.get("name")) for d in datasets],
        "metrics": list(metrics),
    }
    said = yaml.safe_dump({k: v for k, v in head.items() if v}, sort_keys=False, allow_unicode=True, width=10_000)
    parts = [f"---\n{said}---\n# {title}", *_sections(config, facts, card, datasets, metrics, licences)]
    return "\n\n".join(parts) + "\n"


def _simulated(datasets: list[dict[str, Any]]) -> bool:
    return any(d.get("simulated") for d in datasets)


def _licences(card: dict[str, Any], datasets: list[dict[str, Any]]) -> list[str]:
    """Terms of the weights where the card states them, or of the recordings behind them; each once."""
    stated = card.get("licence")
    found = [str(stated)] if stated else [f"{d.get('name')}: {d.get('licence') or 'unknown'}" for d in datasets]
    return list(dict.fromkeys(found))


def _sections(
    config: dict[str, Any], facts: dict[str, Any], card: dict[str, Any], datasets: list[dict[str, Any]],
    metrics: dict[str, float], licences: list[str],
) -> list[str]:  # fmt: skip
    count = card.get("parameters")
    subjects, checksums = card.get("subjects") or {}, card.get("checksums") or {}
    network = {
        "network": f"{config['kind'].removesuffix('s')} `{config['name']}`",
        "parameters": f"{count:,}" if isinstance(count, int) else "not recorded",
        "input": f"{', '.join(facts.get('kinds') or facts.get('modality') or ['not recorded'])} at "
        f"{facts.get('sfreq', 0):g} samples per second",
        "objective": ", ".join(card.get("objective") or []) or "not recorded",
        "steps, seed": f"{card.get('steps', 'not recorded')}, {card.get('seed', 'not recorded')}",
        "people seen": f"{len(subjects.get('train') or [])} in training, {len(subjects.get('val') or [])} in validation"
        if subjects else "not recorded",
        "recordings with checksums": str(len(checksums)) if checksums else "not recorded",
        "simulated data": "not recorded" if not datasets else "yes" if all(d.get("simulated") for d in datasets)
        else "in part" if _simulated(datasets) else "no",
        "licence": "; ".join(licences) or "not stated",
    }  # fmt: skip
    sections = [_table(("fact", "value"), list(network.items()))]
    if card.get("caution"):
        sections.append(f"**Caution:** {card['caution']}.")
    if datasets:
        words = ("name", "modality", "subjects", "licence")
        rows = [(*(str(d.get(w) or "unknown") for w in words), "yes" if d.get("simulated") else "no") for d in datasets]
        sections += ["## Data", _table(("dataset", "modality", "people", "licence", "simulated"), rows)]
    inner = (card.get("tokenizer") or {}).get("datasets") or []
    steps = {str(d.get("name")): d["steps"] for d in (*inner, *datasets) if isinstance(d, dict) and d.get("steps")}
    if steps:
        lines = "\n".join(f"- {name}: `{json.dumps(said)}`" for name, said in steps.items())
        sections += ["## Preprocessing", f"As recorded with the first recording of each dataset, in order.\n\n{lines}"]
    if metrics:
        last = sorted(metrics.items(), key=lambda pair: not pair[0].startswith("val/"))[:SHOWN]
        sections += ["## Metrics", _table(("metric", "value"), [(k, f"{v:.4g}") for k, v in last])]
    if card.get("released"):
        sections += ["## Source", f"```json\n{json.dumps(card['released'], indent=1, sort_keys=True)}\n```"]
    use = '## Use\n\n```python\nimport brainfm\n\nmodel = brainfm.load("FOLDER or hf://owner/name@commit")\n```'
    return [*sections, use, "`card.json` has the whole record: windows, people and checksums of all that it saw."]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
