"""Read what the page is made from: results, model folders and the audit."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any


@dataclass
class Model:
    """A model folder without its weights.

    Attributes:
        key: name of the folder.
        config: `config.json`.
        card: `card.json`; empty where there is none.
        curves: `train/<name>` or `val/<name>` → list of `(step, value)`, from `metrics.csv`; empty where there is none.
    """

    key: str
    config: dict[str, Any]
    card: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    @property
    def datasets(self) -> list[dict[str, Any]]:
        """The card's datasets."""
        return [x for x in self.card.get("datasets") or [] if isinstance(x, dict)]

    @property
    def simulated(self) -> str:
        """The badge's text: "simulated", "partly simulated", or "" where all data was recorded."""
        flags = [bool(x.get("simulated")) for x in self.datasets]
        return "" if not any(flags) else "simulated" if all(flags) else "partly simulated"


@dataclass
class Group:
    """Drawings of one kind that belong together: those of one result or of one model."""

    title: str
    subtitle: str
    simulated: str
    of_model: bool
    items: list[dict[str, Any]]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; NaN is allowed.

    Raises:
        FileNotFoundError: where the file is missing.
        ValueError: where it does not hold a JSON object.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; run the stage that writes it, then the report again")
    try:
        found = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); run the stage that writes it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}; expected a JSON object, run its stage again")
    return found


def read_result(path: Path) -> dict[str, Any]:
    """A result, its methods with what they took (`seconds`, `decode_ms`, `trained`) where that is known.

    That stands in another file, `data/results/cost/<stage>/<key>.json`, for times differ from run to run.
    """
    path = Path(path)
    result = read_json(path)
    beside = path.parent.parent / "cost" / path.parent.name / path.name
    cost = (read_json(beside).get("methods") or {}) if beside.exists() else {}
    if "methods" in result:
        result["methods"] = [{**(cost.get(words(m.get("name"))) or {}), **m} for m in dicts(result["methods"])]
    return result


def read_model(folder: Path) -> Model:
    """A model folder as the page needs it."""
    folder = Path(folder)
    card = read_json(folder / "card.json") if (folder / "card.json").exists() else {}
    curves = read_curves(folder / "metrics.csv") if (folder / "metrics.csv").exists() else {}
    return Model(folder.name, read_json(folder / "config.json"), card, curves)


def read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Curves of Lightning's table of metrics, in the order of its columns; blanks and NaN are left out."""
    curves: dict[str, list[tuple[float, float]]] = {}
    with path.open(newline="") as table:
        for row in csv.DictReader(table):
            for name, text in row.items():
                value, step = as_number(text), as_number(row.get("step"))
                if name and name.startswith(("train/", "val/")) and isfinite(value) and isfinite(step):
                    curves.setdefault(name, []).append((step, value))
    return curves


def as_number(text: str | None) -> float:
    """The number that a cell holds; NaN where it holds none."""
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def words(value: Any) -> str:
    """A name, or a list of names, as one text."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else "" if value is None else str(value)


def task(result: dict[str, Any]) -> str:
    """The task of a result for reading."""
    return words(result.get("task") or result.get("key") or "unnamed task").replace("_", " ")


def source(result: dict[str, Any]) -> str:
    """Dataset, model and evaluation of a result."""
    return " · ".join(x for x in (words(result.get(k)) for k in ("dataset", "model", "evaluation")) if x)


def simulated(result: dict[str, Any]) -> str:
    """The badge's text of a result."""
    return "simulated" if result.get("simulated") else ""


def groups(results: Sequence[dict[str, Any]], models: Sequence[Model], what: str, telling: str) -> list[Group]:
    """All drawings of a kind, by the result or model that they belong to.

    Args:
        results, models: everything on the page.
        what: the key of the drawings in a result: "traces", "matrices" or "topographies".
        telling: the key by which one of a card's figures is known to be of that kind.
    """
    found = [Group(task(r), source(r), simulated(r), False, dicts(r.get(what))) for r in results]
    for model in models:
        drawn: list[dict[str, Any]] = []
        for one in dicts(model.card.get("figures")):
            drawn += dicts(one[what]) if what in one else [one] if telling in one else []
        found.append(Group(f"Model {model.key}", words(model.card.get("objective")), model.simulated, True, drawn))
    return [group for group in found if group.items]


def dicts(value: Any) -> list[dict[str, Any]]:
    """The dictionaries of a list that may be absent."""
    return [x for x in value or [] if isinstance(x, dict)]
