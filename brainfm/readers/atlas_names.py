"""Names of an atlas' labels, from the tables that lie beside label images."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from brainfm.readers.bold import stem


def unique(name: list[str], label: list[int]) -> list[str]:
    """Names, with the number of the label behind those that stand twice."""
    times = Counter(name)
    return [f"{n} ({i})" if times[n] > 1 else n for n, i in zip(name, label, strict=True)]


def names_beside(atlas: Path) -> Path | None:
    """The table of names beside an atlas: of its name, else the `*_dseg.tsv` that shares most of its BIDS entities."""
    base = stem(atlas)
    for ending in (".tsv", ".txt", ".csv"):
        if (own := atlas.with_name(base + ending)).is_file():
            return own
    parts = set(base.split("_"))
    shared = {p: set(stem(p).removesuffix(".tsv").split("_")) for p in sorted(atlas.parent.glob("*_dseg.tsv"))}
    fitting = [p for p, other in shared.items() if other <= parts]
    return max(fitting, key=lambda p: len(shared[p]), default=None)


def region_names(path: Path | None) -> dict[int, str]:
    """Label → name, from a table with a column of each, or from lines `number name ...` as in FreeSurfer's tables.

    Raises:
        ValueError: where the table has no column of numbers or no column of names.
    """
    if path is None:
        return {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text ({error}); give the atlas another table of names") from error
    if path.suffix == ".txt":
        words = [line.split(None, 2) for line in lines]
        found = {int(w[0]): w[1] for w in words if len(w) > 1 and w[0].isdecimal()}
    else:
        rows = csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" else ",")
        columns = {(c or "").strip().lower(): c for c in rows.fieldnames or ()}
        number = next((columns[c] for c in ("index", "id", "number", "value") if c in columns), None)
        word = next((columns[c] for c in ("name", "label", "region") if c in columns), None)
        if number is None or word is None:
            raise ValueError(f"{path} has columns {', '.join(columns)}; expected 'index' and 'name'")
        cells = [(row[number] or "", row[word] or "") for row in rows]
        found = {int(i): name.strip() for i, name in cells if i.strip().isdecimal() and name.strip()}
    if not found:
        raise ValueError(f"{path} names no label; expected lines of a number and a name")
    return found
