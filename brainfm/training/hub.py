"""Models in a Hugging Face repository: an address `hf://owner/name[@revision][/subfolder]` → a folder on this machine.

Files go to the cache of huggingface_hub, an optional package (`pip install "brainfm[hub]"`), which is imported only
here. A revision is a branch, a tag or, best, a commit; a slash in it is written `%2F`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

#: What a model folder of ours holds; see `checkpoint`.
MODEL = ("config.json", "model.safetensors", "card.json")
FORM = "hf://owner/name[@revision][/subfolder]"
# a path that went through pathlib has one slash left of the two
_START = re.compile(r"hf:/{1,2}")
_WORD = r"[A-Za-z0-9][\w.-]*"
_ADDRESS = re.compile(rf"hf:/{{1,2}}({_WORD}/{_WORD})(?:@([^/@\s]+))?((?:/{_WORD})*)/?", re.ASCII)


class Address(NamedTuple):
    """A folder of a repository: `owner/name`, a revision (None for the newest), a subfolder ("" for the root)."""

    repository: str
    revision: str | None
    subfolder: str


def is_address(text: str | Path) -> bool:
    """Does it begin with `hf://`?"""
    return _START.match(str(text)) is not None


def parse(text: str | Path) -> Address:
    """The parts of an address.

    Raises:
        ValueError: for another form.
    """
    found = _ADDRESS.fullmatch(str(text))
    if found is None:
        raise ValueError(f"{text} is no address of a model on the hub; expected {FORM}")
    repository, revision, subfolder = found.groups()
    return Address(repository, unquote(revision) if revision else None, subfolder.strip("/"))


def folder_of(text: str | Path, names: Sequence[str] = MODEL, needed: Sequence[str] = MODEL[:2]) -> Path:
    """Download the files `names` of an address, unless the cache has them, and give their folder.

    Args:
        text: the address. names: files to fetch. needed: those of them that must be there.

    Raises:
        ValueError: for an address of another form.
        ImportError: where huggingface_hub is not installed.
        ConnectionError: where the repository, the revision or the network does not answer.
        FileNotFoundError: where a file is not in the repository.
    """
    repository, revision, subfolder = parse(text)
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError(f'{text} needs huggingface_hub; run: pip install "brainfm[hub]"') from error
    patterns = [f"{subfolder}/{name}" if subfolder else name for name in names]
    try:
        root = hub.snapshot_download(repo_id=repository, revision=revision, allow_patterns=patterns)
    except (OSError, ValueError) as error:  # the package's own errors are among these
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConnectionError(f"{text} cannot be fetched ({said}); check address, network and token") from error
    folder = Path(root) / subfolder
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{text} has no {', '.join(missing)}; give the folder that holds it, as {FORM}. A checkpoint that its "
            "authors published in their own layout comes in through `brainfm import-weights`"
        )
    return folder
