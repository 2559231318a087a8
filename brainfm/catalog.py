"""Find a dataset, model, objective or evaluation by its file's name, and check that it keeps its contract.

There is no registry: a file in the right folder is an entry, and its name is the name.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parent

#: What each kind of file must define at module level.
CONTRACTS = {
    "datasets": ("CARD", "fetch", "recordings"),
    "modalities": ("UNIT", "clean", "simulate"),
    "codebooks": ("build",),
    "models": ("build",),
    "objectives": (),
    "evaluations": ("run",),
}


def defined(path: Path) -> set[str]:
    """Names that a module defines at its top level, read without importing it."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def names(kind: str) -> list[str]:
    """Names of all entries of `kind`: the files of that folder that keep its contract, sorted."""
    return sorted(
        path.stem
        for path in (PACKAGE / kind).glob("*.py")
        if path.stem != "__init__" and set(CONTRACTS[kind]) <= defined(path)
    )


def nearest(word: str, known: list[str]) -> str:
    """`did you mean ...?` for a name that is not known, or the known names."""
    close = difflib.get_close_matches(word, known, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"


def load(kind: str, name: str) -> ModuleType:
    """Import the entry `name` of `kind`.

    Raises:
        KeyError: for an unknown name, with the nearest one.
    """
    known = names(kind)
    if name not in known:
        raise KeyError(f"no {kind.removesuffix('s')} named {name!r} in brainfm/{kind}; {nearest(name, known)}")
    return importlib.import_module(f"brainfm.{kind}.{name}")


def load_class(kind: str, name: str) -> type:
    """The class of an objective's module: `masked_codes` → `MaskedCodes`."""
    return getattr(load(kind, name), "".join(word.capitalize() for word in name.split("_")))
