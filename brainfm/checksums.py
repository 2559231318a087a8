"""sha256 of files and of code: what provenance, recipes and manifests compare."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

#: A model's weights, in its folder: the file that a `model_checksum` is of.
WEIGHTS = "model.safetensors"


def sha256(path: Path) -> str:
    """The sha256 of a file as 64 hexadecimal digits; a file that did not change is read once in a process.

    Raises:
        OSError: where it cannot be read.
    """
    now = Path(path).stat()
    return _sha256(str(path), now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)


def of_code(paths: Iterable[Path]) -> str:
    """The sha256 of Python files, by name and content; of a folder all that lie in it. Their order does not count.

    Raises:
        FileNotFoundError: for a path that is not there.
    """
    files: set[Path] = set()
    for path in map(Path, paths):
        files |= set(path.rglob("*.py")) if path.is_dir() else {path}
    named = sorted(f"{file.parent.name}/{file.name} {sha256(file)}" for file in files)
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


@lru_cache(4096)
def _sha256(path: str, *identity: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
