"""What simulated datasets share, a folder that only holds a manifest and numbered subjects: no dataset itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from brainfm.datasets.download import MANIFEST


def fetch(root: Path, title: str) -> str:
    """Make the folder `root` with a manifest that says that nothing was recorded; say so of `title`."""
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / MANIFEST).write_text(json.dumps({"simulated": True, "files": {}}, indent=1) + "\n")
    return f"{title}: simulated, nothing to fetch"


def numbered(known: list[str], subjects: list[str] | None, dataset: str) -> Iterator[tuple[int, str]]:
    """Number, which the random stream follows from, and id of the subjects asked for, or of all.

    Raises:
        KeyError: for an unknown subject, when its turn comes.
    """
    for subject in known if subjects is None else subjects:
        if subject not in known:
            raise KeyError(f"no subject {subject!r} in {dataset}; expected one of {', '.join(known)}")
        yield known.index(subject), subject
