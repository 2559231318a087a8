"""Code shards: what a learned tokenizer made of a corpus, beside it and with the same index.

One HDF5 file per subject and dataset, under `codes/<tokenizer>/<dataset>/` and the name of the shard that it came from:

    /header                    as that of the source, and tokenizer, tokenizer_hash, patch, codes_per_depth, window_s;
                               each recording also has source_checksum
    /recordings/<session>_<run>
        codes                  (window, source, token, depth) uint16
        start                  (window,) first sample of each window in the source recording

Times stay in samples of the source, so that an audit finds the same seconds in codes and in signals. The dataset's
split file is copied along.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from brainfm.shards import schema
from brainfm.shards.read import Corpus, Windows, read_split
from brainfm.shards.stored import MEND as SHARD_MEND
from brainfm.shards.stored import Stored, facts, naming
from brainfm.shards.write import part_of

SCHEMA = "brainfm-codes"
VERSION = 2
MEND = "run `brainfm tokenize` again"


@dataclass(frozen=True)
class Tokenizer:
    """Which tokenizer made the codes, and how it was run.

    Attributes:
        name: key of the tokenizer. hash: sha256 of its weights and settings.
        patch: samples of a window. codes_per_depth: size of each codebook.
        window_s: seconds that the tokenizer saw at once.
    """

    name: str
    hash: str
    patch: int
    codes_per_depth: int
    window_s: float


@dataclass(frozen=True)
class Coded:
    """The codes of one recording: `codes` `(window, source, token, depth)` and each window's first sample `start`."""

    stored: Stored
    start: np.ndarray
    codes: np.ndarray


@dataclass(frozen=True)
class StoredCodes(Stored):
    """A recording in a code shard: the header of its source, and codes in place of a signal.

    Attributes:
        starts: `(window,)` first sample of each window in the source. patch: samples of a window.
        tokenizer, tokenizer_hash, codes_per_depth: as in `Tokenizer`.
        source_checksum: checksum of the source recording; `checksum` is that of the codes.
    """

    starts: np.ndarray
    patch: int
    tokenizer: str
    tokenizer_hash: str
    codes_per_depth: int
    source_checksum: str

    def codes(self, start: int, samples: int) -> np.ndarray:
        """Codes `(window, source, token, depth)` of the windows that fill `samples` samples from sample `start`.

        Raises:
            ValueError: where these samples are not whole windows in a row.
        """
        first, count = int(np.searchsorted(self.starts, start)), samples // self.patch
        expected = start + self.patch * np.arange(count)
        if count == 0 or not np.array_equal(self.starts[first : first + count], expected):
            raise ValueError(
                f"{self.id}: samples {start} to {start + samples} are not whole code windows of {self.patch} samples "
                "in a row; take rows from `windows`"
            )
        return self.all_codes()[first : first + count]

    def all_codes(self) -> np.ndarray:
        """Every window's codes, `(window, source, token, depth)`, as a view of the file's pages."""
        return self.array("codes")

    @property
    def _kind(self) -> tuple[str, int, str]:
        return SCHEMA, VERSION, MEND


@dataclass(frozen=True)
class CodeCorpus:
    """Recordings of code shards; subsets as of a `Corpus`."""

    recordings: tuple[StoredCodes, ...]
    root: Path = field(default=Path())

    def __len__(self) -> int:
        return len(self.recordings)

    def where(self, **words: str | Sequence[str]) -> CodeCorpus:
        """As `Corpus.where`: recordings whose header says so."""
        kept = Corpus(self.recordings, self.root).where(**words).recordings
        return replace(self, recordings=kept)  # type: ignore[arg-type]

    @property
    def people(self) -> list[str]:
        """`dataset/subject` of everyone, sorted."""
        return sorted({r.person for r in self.recordings})

    def windows(self, count: int, stride: int | None = None) -> Windows:
        """Runs of `count` code windows in a row every `stride` (without overlap unless told), none across a break.

        A stretch with fewer windows is one shorter run. Starts and lengths are in samples of the source recording.
        """
        rows: list[tuple[int, int, int]] = []
        for i, stored in enumerate(self.recordings):
            breaks = np.flatnonzero(np.diff(stored.starts) != stored.patch) + 1
            for run in np.split(stored.starts, breaks):
                firsts = run[: len(run) - count + 1 : stride or count] if len(run) >= count else run[:1]
                rows += [(i, int(s), min(count, len(run)) * stored.patch) for s in firsts]
        table = np.array(rows, np.int64).reshape(-1, 3)
        none = np.full(len(table), "", dtype=object)
        return Windows(self.recordings, table[:, 0], table[:, 1], table[:, 2], none, none)


def write_codes(path: Path, recordings: Iterable[Coded], tokenizer: Tokenizer) -> Path:
    """Write the codes of one shard's recordings to `path`. A half-written file never carries that name.

    Args:
        path: where the code shard goes; its folder is made and the dataset's split file copied into it.
        recordings: of one shard, at least one.
        tokenizer: what made them.

    Raises:
        ValueError: for no recording, recordings of several shards, or codes that uint16 cannot hold.
    """
    recordings = list(recordings)
    sources = {coded.stored.path for coded in recordings}
    if len(sources) != 1:
        raise ValueError(f"{path.name}: a code shard holds the recordings of one shard; got {len(sources)} shards")
    if tokenizer.codes_per_depth > 1 << 16:
        raise ValueError(f"{tokenizer.name}: codebooks of {tokenizer.codes_per_depth} codes; a shard holds up to 65536")
    source = sources.pop()
    path.parent.mkdir(parents=True, exist_ok=True)
    old = schema.read_header(source, schema.SCHEMA, schema.VERSION, SHARD_MEND)
    header = {
        **old, "tokenizer": tokenizer.name, "tokenizer_hash": tokenizer.hash, "patch": tokenizer.patch,
        "codes_per_depth": tokenizer.codes_per_depth, "window_s": tokenizer.window_s,
        "recordings": {c.stored.group: _entry(old["recordings"][c.stored.group], c.stored) for c in recordings},
    }  # fmt: skip
    with part_of(path) as part, h5py.File(part, "w", libver="latest") as file:
        for coded in recordings:
            group = file.create_group(f"recordings/{coded.stored.group}")
            header["recordings"][coded.stored.group]["arrays"] = {
                "codes": schema.put(group, "codes", np.asarray(coded.codes, np.uint16)),
                "start": schema.put(group, "start", np.asarray(coded.start, np.int64)),
            }
        schema.finish(file, SCHEMA, VERSION, header)
    copy_split(source.parent, path.parent)
    return path


def _entry(source: dict[str, Any], stored: Stored) -> dict[str, Any]:
    """The entry of a coded recording: that of its source without data."""
    return {**source, "aligned": {}, "source_checksum": stored.checksum}


def copy_split(source: Path, target: Path) -> None:
    """Copy the split file of a dataset's folder, in one step; nothing where there is none."""
    split = source / schema.SPLIT_FILE
    if split.exists():
        part = target / f".{schema.SPLIT_FILE}.part"
        shutil.copyfile(split, part)
        os.replace(part, target / schema.SPLIT_FILE)


def is_current(path: Path, recordings: Iterable[Stored], tokenizer: Tokenizer) -> bool:
    """Whether `path` is a whole code shard of exactly these recordings, unchanged, by this tokenizer."""
    if not path.exists():
        return False
    try:
        header = schema.read_header(path, SCHEMA, VERSION, MEND)
    except schema.ShardError:  # cut short, or no code shard at all
        return False
    entries = header["recordings"].values()
    return (
        (header["tokenizer_hash"], header["window_s"]) == (tokenizer.hash, tokenizer.window_s)
        and {e["id"]: e["source_checksum"] for e in entries} == {r.id: r.checksum for r in recordings}
        and all(schema.is_whole(path, entry) for entry in entries)
    )


def open_codes(path: str | Path) -> CodeCorpus:
    """Open a code shard, a dataset's folder of them, or all that one tokenizer made.

    >>> open_codes("data/codes/braintokenizer").where(split="train").windows(8)  # doctest: +SKIP

    Raises:
        FileNotFoundError: where there is no code shard.
        ShardError: for a file that is not a whole code shard of this schema version.
    """
    files = schema.shard_files(Path(path), "no code shard under {}; make them with `brainfm tokenize`")
    return CodeCorpus(tuple(r for f in files for r in _headers(f)), Path(path))


def _headers(path: Path) -> list[StoredCodes]:
    header, split = schema.read_header(path, SCHEMA, VERSION, MEND), read_split(path.parent)
    found = []
    for name, entry in header["recordings"].items():
        about = facts(path, header, name, split)
        with naming(path, name):
            codes, start, patch = about["arrays"]["codes"], about["arrays"]["start"], header["patch"]
            starts = np.array(start.of(path))
            if hashlib.sha256(starts.tobytes()).hexdigest() != start.sha256:
                raise ValueError("the starts of its windows are not those that were written")
            if len(codes.shape) != 4 or start.shape != codes.shape[:1] or not patch > 0:
                raise ValueError(f"codes of shape {codes.shape} for {start.shape} windows of {patch} samples")
            words = {k: header[k] for k in ("patch", "tokenizer", "tokenizer_hash", "codes_per_depth")}
            found.append(StoredCodes(**about, **words, starts=starts, source_checksum=entry["source_checksum"]))
    return found
