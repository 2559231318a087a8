"""configs/<stage>/<key>.yaml → keywords, checked against what they are given to; unknown words are errors that help."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from brainfm.catalog import nearest


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the word and the nearest valid one."""


def read(path: str | Path) -> dict[str, Any]:
    """A YAML mapping, without tags or code.

    Raises:
        ConfigError: where the file is absent (with the nearest name), is not YAML or is not a mapping.
    """
    path = Path(path)
    if not path.exists():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise ConfigError(f"no configuration {path}; {nearest(path.stem, known)}")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not plain YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} holds a {type(loaded).__name__}; expected keywords, one `name: value` a line")
    return loaded


def keywords(
    function: Callable[..., Any], given: dict[str, Any], where: str, supplied: tuple[str, ...] = ()
) -> dict[str, Any]:
    """`given`, checked to be keywords of `function` that the caller does not supply itself.

    Args:
        function: what will be called with them.
        given: keywords from a configuration.
        where: the file and block, for the message.
        supplied: parameters that the code fills in; a configuration may not name them.

    Raises:
        ConfigError: for an unknown keyword (with the nearest one) or a missing required one.
    """
    _check_mapping(given, where)
    parameters = {n: p for n, p in inspect.signature(function).parameters.items() if n not in supplied}
    allowed = [n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for word in given:
        if word not in allowed:
            raise ConfigError(f"{where}: unknown keyword {word!r}; {nearest(str(word), allowed)}")
    missing = [n for n in allowed if parameters[n].default is inspect.Parameter.empty and n not in given]
    if missing:
        raise ConfigError(f"{where}: keyword {missing[0]!r} is required and missing")
    return given


def check_blocks(given: dict[str, Any], allowed: tuple[str, ...], where: str) -> None:
    """Raise ConfigError for a top-level block that the stage does not know."""
    _check_mapping(given, where)
    for word in given:
        if word not in allowed:
            raise ConfigError(f"{where}: unknown block {word!r}; {nearest(str(word), list(allowed))}")


def _check_mapping(given: Any, where: str) -> None:
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: got {given!r}; expected keywords, one `name: value` a line")


def wiring(stage: str, key: str, folder: str | Path = "configs") -> dict[str, Any]:
    """Who feeds the stage's key: its entry in `pipeline.yaml`, or in one of the further wirings.

    Raises:
        ConfigError: for a key that no wiring names, with the nearest one.
    """
    known: dict[str, Any] = {}
    for path in (Path(folder) / "pipeline.yaml", *sorted((Path(folder) / "wirings").glob("*.yaml"))):
        for name, entry in (read(path).get(stage) or {}).items():
            known.setdefault(name, entry or {})
    if key not in known:
        raise ConfigError(
            f"no {stage} key {key!r} in {folder}/pipeline.yaml or {folder}/wirings; {nearest(key, sorted(known))}"
        )
    return known[key]


def keys(stage: str, name: str, folder: str | Path = "configs") -> list[str]:
    """Keys of a stage in one wiring, in order: "default" is `pipeline.yaml`, others lie in `wirings/`."""
    path = Path(folder) / ("pipeline.yaml" if name == "default" else f"wirings/{name}.yaml")
    return list(read(path).get(stage) or {})


def stage_config(stage: str, key: str, blocks: tuple[str, ...], folder: str | Path = "configs") -> dict[str, Any]:
    """configs/<stage>/<key>.yaml with its blocks checked; a block that is not set is empty."""
    path = Path(folder) / stage / f"{key}.yaml"
    given = read(path)
    check_blocks(given, blocks, str(path))
    return {block: given.get(block) or {} for block in blocks}
