"""`brainfm check`: whether the installation, and what lies in ./data or at a path, is whole."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from rich.progress import track

from brainfm.checksums import sha256


def everything(root: Path, deep: bool = False) -> bool:
    """Print whether the installation, the raw files, shards, models and results under `root` are whole.

    Raw files are compared with their checksums and models are loaded; of shards and codes headers are read, and with
    `deep` all data is compared with its checksums too.
    """
    problems = _installation()
    for path in sorted((root / "data/raw").glob("*/MANIFEST.json")):
        problems += _raw(path)
    shards = [root / "data/shards", root / "data/codes"]
    problems += [problem for path in shards for problem in _under(path, deep)]
    for path in sorted((root / "data/models").glob("[!.]*/config.json")):
        problems += _model(path.parent)
    results = sorted((root / "data/results").glob("*/[!.]*.json"))
    for path in results:
        problems += _read(path, "`dvc repro`")[1]
    if results:
        print(f"results: {len(results)} files")
    return _verdict(problems, deep or not any(map(_files, shards)))


def shards(path: Path, deep: bool = False) -> bool:
    """Print whether the shards and code shards at or under `path` are whole; `deep` compares all data with checksums.

    Raises:
        FileNotFoundError: where there is none.
    """
    from brainfm.shards import schema

    schema.shard_files(path, "no shard under {}; make them with `brainfm ingest`")
    return _verdict(_under(path, deep), deep)


def _verdict(problems: list[str], deep: bool) -> bool:
    for problem in problems:
        print(f"  problem: {problem}")
    if problems:
        print(f"{len(problems)} problems")
    elif deep:
        print("all is whole")
    else:
        print("no problem found; the contents of shards were not read: `--deep` compares them with their checksums")
    return not problems


def _files(path: Path) -> list[Path]:
    """The shards at or under `path`; none where nothing is there."""
    from brainfm.shards import schema

    try:
        return list(schema.shard_files(path, ""))
    except FileNotFoundError:
        return []


def _under(path: Path, deep: bool) -> list[str]:
    """Problems of the shards at or under `path`; a line for each folder of them."""
    files, problems = _files(path), []
    counts: dict[Path, list[int]] = {}
    for file in track(files, f"check {path}", transient=True):
        recordings, found = _shard(file, deep)
        problems += found
        counts.setdefault(file.parent, []).append(recordings)
    for folder, found in counts.items():
        read = "all data compared with checksums" if deep else "headers read"
        print(f"shards {folder}: {len(found)} files, {sum(found)} recordings, {read}")
    return problems


def _installation() -> list[str]:
    found, problems = [], []
    for name in ("torch", "pytorch-lightning", "mne", "h5py", "einops", "nibabel", "dvc"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{name} is not installed; run `make install`")
    print(f"installation: {', '.join(found)}")
    return problems


def _raw(manifest: Path) -> list[str]:
    mend = f"`brainfm fetch {manifest.parent.name}`"
    said, problems = _read(manifest, mend)
    if problems:
        return problems
    files = said.get("files", {})
    for name, expected in files.items():
        path = manifest.parent / name
        digest = expected.get("sha256") if isinstance(expected, dict) else expected
        if not path.exists():
            problems.append(f"{path} is missing; run {mend}")
        elif sha256(path) != digest:
            problems.append(f"{path} has another checksum than was fetched; run {mend}")
    print(f"raw {manifest.parent.name}: {len(files)} files compared with their checksums")
    return problems


def _read(path: Path, mend: str) -> tuple[dict[str, Any], list[str]]:
    """What a JSON file holds, and a problem where it is damaged."""
    try:
        said = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return {}, [f"{path} is not whole ({error}); remove it and run {mend}"]
    if not isinstance(said, dict):
        return {}, [f"{path} is not whole (it holds a {type(said).__name__}); remove it and run {mend}"]
    return said, []


def _shard(path: Path, deep: bool) -> tuple[int, list[str]]:
    """How many recordings a shard holds, and its problems."""
    from brainfm.shards import schema
    from brainfm.shards.codes import SCHEMA, open_codes
    from brainfm.shards.read import open_shards

    codes = schema.kind_of(path) == SCHEMA
    try:
        recordings = open_codes(path).recordings if codes else open_shards(path).recordings
        bad = [r.id for r in recordings if deep and not r.is_whole()]
    except (schema.ShardError, OSError) as error:
        return 0, [str(error) if str(path) in str(error) else f"{path}: {error}"]
    mend = "remove the file and run `brainfm tokenize` again" if codes else "remove the file and run ingest again"
    return len(recordings), [f"{path}: {key} does not match its checksum; {mend}" for key in bad]


def _model(folder: Path) -> list[str]:
    from brainfm.training import checkpoint

    try:
        checkpoint.load(folder)
    except (checkpoint.CheckpointError, FileNotFoundError, KeyError) as error:
        return [str(error)]
    print(f"model {folder}: loaded")
    return []
