"""Code shards: what a learned tokenizer made of a corpus, beside it and with the same index.

One HDF5 file per subject and dataset, under `codes/<tokenizer>/<dataset>/` and the name of the shard that it came from:

    /                          attrs: schema, schema_version, tokenizer, tokenizer_hash, patch,
                               codes_per_depth, window_s, and the source's dataset, subject, modality, simulated,
                               licence, citation, recipe
    /recordings/<session>_<run>
        attrs                  those of the source recording; checksum of the codes, source_checksum of their source
        codes                  (window, source, token, depth) uint16
        start                  (window,) first sample of each window in the source recording
        segments, channels/, events/   as in the source

Times stay in samples of the source, so that an audit finds the same seconds in codes and in signals. The dataset's
split file is copied along.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py
import numpy as np

from brainfm.shards import read, schema
from brainfm.shards.read import Corpus, Stored, Windows

SCHEMA = "brainfm-codes"
VERSION = 2


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
        """Every window's codes, `(window, source, token, depth)`; read once per process."""

        def make() -> np.ndarray:
            with h5py.File(self.path, "r") as file:
                return file[f"{self.group}/codes"][()]

        return read.cached(("codes", self.path, self.path.stat().st_mtime_ns, self.group), make)


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
    part = path.with_name(f".{path.name}.part")
    try:
        with h5py.File(source, "r") as old, h5py.File(part, "w", libver="latest") as new:
            new.attrs.update({k: v for k, v in old.attrs.items() if k not in ("schema", "schema_version")})
            new.attrs.update(
                schema=SCHEMA, schema_version=VERSION, tokenizer=tokenizer.name, tokenizer_hash=tokenizer.hash,
                patch=tokenizer.patch, codes_per_depth=tokenizer.codes_per_depth, window_s=tokenizer.window_s,
            )  # fmt: skip
            for coded in recordings:
                _write_recording(old[coded.stored.group], new.create_group(coded.stored.group), coded)
            new.flush()
        with part.open("rb") as done:
            os.fsync(done.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    copy_split(source.parent, path.parent)
    return path


def _write_recording(old: h5py.Group, new: h5py.Group, coded: Coded) -> None:
    for key in ("channels", "events", "segments"):
        old.copy(old[key], new, key)
    new.create_dataset("codes", data=np.asarray(coded.codes, np.uint16)).attrs["axes"] = "window source token depth"
    new["start"] = np.asarray(coded.start, np.int64)
    new.attrs.update(dict(old.attrs.items()))
    new.attrs.update(source_checksum=coded.stored.checksum, checksum=schema.checksum(new))


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
        file = h5py.File(path, "r")
    except OSError:  # cut short, or no HDF5 at all
        return False
    with file:
        same = (
            file.attrs.get("schema") == SCHEMA
            and file.attrs.get("schema_version") == VERSION
            and file.attrs.get("tokenizer_hash") == tokenizer.hash
            and file.attrs.get("window_s") == tokenizer.window_s
        )
        if not same:
            return False
        groups = list(file["recordings"].values())
        have = {str(g.attrs["id"]): str(g.attrs["source_checksum"]) for g in groups}
        return have == {r.id: r.checksum for r in recordings} and all(
            schema.checksum(g) == g.attrs["checksum"] for g in groups
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
    with read.opened(path, SCHEMA, VERSION, "run `brainfm tokenize` again") as file:
        head = file.attrs
        split = read.read_split(path.parent)
        return [
            StoredCodes(
                **vars(read.header(path, file, group, split)), starts=group["start"][()], patch=int(head["patch"]),
                tokenizer=str(head["tokenizer"]), tokenizer_hash=str(head["tokenizer_hash"]),
                codes_per_depth=int(head["codes_per_depth"]), source_checksum=str(group.attrs["source_checksum"]),
            )
            for group in file["recordings"].values()
        ]  # fmt: skip
