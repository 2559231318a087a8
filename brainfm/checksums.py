"""sha256 of files: what provenance, recipes and manifests compare."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path


def sha256(path: Path) -> str:
    """The sha256 of a file as 64 hexadecimal digits; a file that did not change is read once in a process.

    Raises:
        OSError: where it cannot be read.
    """
    now = Path(path).stat()
    return _sha256(str(path), now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)


@lru_cache(4096)
def _sha256(path: str, *identity: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
