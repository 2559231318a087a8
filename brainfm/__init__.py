"""Foundation models for brain recordings: shards, tokens, pretraining, decoding and transfer.

>>> import brainfm
>>> sorted(brainfm.list_models())[:2]
['brainomni', 'deep4']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brainfm.api import Decoder, list_datasets, list_models, load, open_shards

__all__ = ["Decoder", "list_datasets", "list_models", "load", "open_shards"]


def __getattr__(name: str) -> object:
    """Import a public verb when it is first asked for, so that `import brainfm` costs nothing."""
    if name in __all__:
        return getattr(import_module("brainfm.api"), name)
    raise AttributeError(f"module 'brainfm' has no attribute {name!r}; it has {', '.join(__all__)}")
