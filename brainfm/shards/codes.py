"""Code shards: what a learned tokenizer made of a corpus, beside it and with the same index.

One HDF5 file per subject and dataset, under `codes/<tokenizer>/<dataset>/` and the name of the shard that it came from:

    /header                    as that of the source, and tokenizer, tokenizer_hash, patch, codes_per_depth, window_s,
                               overlap, features; each recording also has source_checksum, bits_per_second, compression
    /recordings/<session>_<run>
        codes                  (window, source, token, depth) uint16
        start                  (window,) first sample of each window in the source recording
        features               (window, source, token, dim) float16 or float32, the codes' vectors; only where asked for

Times stay in samples of the source, so that an audit finds the same seconds in codes and in signals. The dataset's
split file is copied along. A recording's bits per second are what its codes say: log2 of the codebook's size for each
code (the file takes 16). Compression is against its channels at 16 bits a sample.
"""

from __future__ import annotations

import hashlib
import math
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
VERSION = 3
MEND = "run `brainfm tokenize` again"

#: Words of a code shard's header, and of the entry of a recording, that a signal's has not.
HEADER = ("patch", "tokenizer", "tokenizer_hash", "codes_per_depth", "window_s", "overlap")
ENTRY = ("source_checksum", "bits_per_second", "compression")

#: Types that stored features may have.
FEATURES = ("float16", "float32")


@dataclass(frozen=True)
class Tokenizer:
    """Which tokenizer made the codes, and how it was run.

    Attributes:
        name: key of the tokenizer. hash: sha256 of its weights and settings.
        patch: samples of a window. codes_per_depth: size of each codebook.
        window_s: seconds that the tokenizer saw at once.
        overlap: share of a window that the next one sees too.
        features: type of the features that stand beside the codes; "" for none.
    """

    name: str
    hash: str
    patch: int
    codes_per_depth: int
    window_s: float
    overlap: float = 0.0
    features: str = ""

    def __post_init__(self) -> None:
        if self.codes_per_depth > 1 << 16:
            raise ValueError(f"{self.name}: codebooks of {self.codes_per_depth} codes; a shard holds up to 65536")
        if not 0 <= self.overlap < 1 or stride_of(self.patch, self.overlap) < 1:
            raise ValueError(f"{self.name}: windows that overlap by {self.overlap}; expected a share from 0 to below 1")
        if self.features not in ("", *FEATURES):
            raise ValueError(f"features of type {self.features!r}; a shard holds {' or '.join(FEATURES)}")


def stride_of(patch: int, overlap: float) -> int:
    """Samples from the start of a window of `patch` samples to that of the next."""
    return patch - round(overlap * patch)


@dataclass(frozen=True)
class Coded:
    """The codes of one recording.

    Attributes:
        stored: the recording. start: `(window,)` its first samples. codes: `(window, source, token, depth)`.
        features: blocks `(window, source, token, dim)` of all windows in order, at least one; None for none.
    """

    stored: Stored
    start: np.ndarray
    codes: np.ndarray
    features: Iterable[np.ndarray] | None = None


@dataclass(frozen=True)
class StoredCodes(Stored):
    """A recording in a code shard: the header of its source, and codes in place of a signal.

    Attributes:
        starts: `(window,)` first sample of each window in the source. patch: samples of a window.
        tokenizer, tokenizer_hash, codes_per_depth, window_s, overlap: as in `Tokenizer`.
        bits_per_second: of the codes. compression: against its channels at 16 bits a sample.
        source_checksum: checksum of the source recording; `checksum` is that of the codes.
    """

    starts: np.ndarray
    patch: int
    tokenizer: str
    tokenizer_hash: str
    codes_per_depth: int
    window_s: float
    overlap: float
    bits_per_second: float
    compression: float
    source_checksum: str

    @property
    def stride(self) -> int:
        """Samples from the start of a window to that of the next."""
        return stride_of(self.patch, self.overlap)

    def codes(self, start: int, samples: int) -> np.ndarray:
        """Codes `(window, source, token, depth)` of the windows that fill `samples` samples from sample `start`.

        Raises:
            ValueError: where these samples are not whole windows in a row.
        """
        return self.all_codes()[self._rows(start, samples)]

    def features(self, start: int, samples: int) -> np.ndarray:
        """As `codes`, the features `(window, source, token, dim)` that the codes stand for.

        Raises:
            ValueError: also where none are stored.
        """
        return self.all_features()[self._rows(start, samples)]

    def all_codes(self) -> np.ndarray:
        """Every window's codes, `(window, source, token, depth)`, as a view of the file's pages."""
        return self.array("codes")

    def all_features(self) -> np.ndarray:
        """Every window's features `(window, source, token, dim)`, as a view of the file's pages.

        Raises:
            ValueError: where none are stored.
        """
        if not self.features_type:
            raise ValueError(f"{self.id}: its codes have no features beside them; `brainfm tokenize` with `--features`")
        return self.array("features")

    @property
    def features_type(self) -> str:
        """Type of the stored features; "" for none."""
        return self.arrays["features"].dtype if "features" in self.arrays else ""

    def _rows(self, start: int, samples: int) -> slice:
        first, count = int(np.searchsorted(self.starts, start)), (samples - self.patch) // self.stride + 1
        expected = start + self.stride * np.arange(count)
        if count < 1 or not np.array_equal(self.starts[first : first + count], expected):
            raise ValueError(
                f"{self.id}: samples {start} to {start + samples} are not whole code windows of {self.patch} samples "
                f"every {self.stride} in a row; take rows from `windows`"
            )
        return slice(first, first + count)

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
            breaks = np.flatnonzero(np.diff(stored.starts) != stored.stride) + 1
            for run in np.split(stored.starts, breaks):
                firsts = run[: len(run) - count + 1 : stride or count] if len(run) >= count else run[:1]
                samples = (min(count, len(run)) - 1) * stored.stride + stored.patch
                rows += [(i, int(s), samples) for s in firsts]
        table = np.array(rows, np.int64).reshape(-1, 3)
        none = np.full(len(table), "", dtype=object)
        return Windows(self.recordings, table[:, 0], table[:, 1], table[:, 2], none, none)


def write_codes(path: Path, recordings: Iterable[Coded], tokenizer: Tokenizer) -> Path:
    """Write the codes of one shard's recordings to `path`. A half-written file never carries that name.

    Args:
        path: where the code shard goes; its folder is made and the dataset's split file copied into it.
        recordings: of one shard, at least one; taken one at a time, and their features block by block.
        tokenizer: what made them.

    Raises:
        ValueError: for no recording, recordings of several shards, or features for other windows than codes.
    """
    header: dict[str, Any] = {}
    entries: dict[str, Any] = {}
    source = path
    with part_of(path) as part, h5py.File(part, "w", libver="latest", **schema.ALIGNMENT) as file:
        for coded in recordings:
            stored, group = coded.stored, coded.stored.group
            if not header:
                source = stored.path
                header = schema.read_header(source, schema.SCHEMA, schema.VERSION, SHARD_MEND)
            if stored.path != source:
                raise ValueError(
                    f"{path.name}: a code shard holds the recordings of one shard; got {source} and {stored.path}"
                )
            entries[group] = _entry(header["recordings"][group], coded, tokenizer)
            entries[group]["arrays"] = _write_arrays(file.create_group(f"recordings/{group}"), coded, tokenizer)
        if not header:
            raise ValueError(f"{path.name}: no recording to write")
        said = {
            "tokenizer": tokenizer.name, "tokenizer_hash": tokenizer.hash, "patch": tokenizer.patch,
            "codes_per_depth": tokenizer.codes_per_depth, "window_s": tokenizer.window_s,
            "overlap": tokenizer.overlap, "features": tokenizer.features, "recordings": entries,
        }  # fmt: skip
        schema.finish(file, SCHEMA, VERSION, {**header, **said})
    copy_split(source.parent, path.parent)
    return path


def _write_arrays(group: h5py.Group, coded: Coded, tokenizer: Tokenizer) -> dict[str, Any]:
    arrays = {
        "codes": schema.put(group, "codes", np.asarray(coded.codes, np.uint16)),
        "start": schema.put(group, "start", np.asarray(coded.start, np.int64)),
    }
    if tokenizer.features:
        arrays["features"] = _write_features(group, coded, tokenizer.features)
    return arrays


def _write_features(group: h5py.Group, coded: Coded, dtype: str) -> dict[str, Any]:
    """Write features as they come: they take a hundred times the place of the codes."""
    data, digest, at = None, hashlib.sha256(), 0
    for block in coded.features or ():
        if data is None:
            data = group.create_dataset("features", (len(coded.codes), *block.shape[1:]), dtype)
        values = np.ascontiguousarray(block, dtype)
        data[at : at + len(values)] = values
        digest.update(values.tobytes())
        at += len(values)
    if data is None or at != len(coded.codes):
        raise ValueError(f"{coded.stored.id}: features of {at} windows and codes of {len(coded.codes)}")
    return {**schema.line(data.shape, data.dtype, None), "sha256": digest.hexdigest()}


def _entry(source: dict[str, Any], coded: Coded, tokenizer: Tokenizer) -> dict[str, Any]:
    """The entry of a coded recording: that of its source without data."""
    stored = coded.stored
    windows_per_second = stored.sfreq / stride_of(tokenizer.patch, tokenizer.overlap)
    bits = math.prod(coded.codes.shape[1:]) * math.log2(tokenizer.codes_per_depth) * windows_per_second
    return {
        **source, "aligned": {}, "source_checksum": stored.checksum, "bits_per_second": bits,
        "compression": 16 * len(stored.channels) * stored.sfreq / bits if bits else 0.0,
    }  # fmt: skip


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
        all(header[word] == getattr(tokenizer, word) for word in ("window_s", "overlap", "features"))
        and header["tokenizer_hash"] == tokenizer.hash
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
            if not 0 <= header["overlap"] < 1:
                raise ValueError(f"windows that overlap by {header['overlap']}")
            features = about["arrays"].get("features")
            if features and (features.shape[:3] != codes.shape[:3] or features.dtype not in FEATURES):
                raise ValueError(f"features {features.shape} {features.dtype} for codes of shape {codes.shape}")
            words = {k: header[k] for k in HEADER} | {k: entry[k] for k in ENTRY}
            found.append(StoredCodes(**about, **words, starts=starts))
    return found


def summary(recordings: Sequence[StoredCodes]) -> list[dict[str, Any]]:
    """What recordings of codes hold, one entry for each tokenizer and way that it was run.

    Returns:
        tokenizer, tokenizer_hash, codes_per_depth, patch, window_s, overlap, features; recordings, windows, seconds,
        bits_per_second, compression (over all windows), perplexity of each depth: exponential of its codes' entropy.
    """
    found = []
    words = ("tokenizer", "tokenizer_hash", "codes_per_depth", "patch", "window_s", "overlap", "features_type")
    ways = [tuple(getattr(r, word) for word in words) for r in recordings]
    for way in dict.fromkeys(ways):
        mine = [r for r, other in zip(recordings, ways, strict=True) if other == way]
        depth = mine[0].all_codes().shape[3]
        count, windows, bits, raw, seconds = np.zeros((depth, mine[0].codes_per_depth)), 0, 0.0, 0.0, 0.0
        for stored in mine:
            codes = stored.all_codes()
            lasts = len(codes) * stored.stride / stored.sfreq
            windows, seconds = windows + len(codes), seconds + lasts
            bits += lasts * stored.bits_per_second
            raw += lasts * stored.bits_per_second * stored.compression
            for level in range(depth):
                count[level] += np.bincount(codes[..., level].ravel(), minlength=count.shape[1])
        share = count / np.maximum(count.sum(axis=1, keepdims=True), 1)
        entropy = -np.sum(share * np.log(np.where(share > 0, share, 1)), axis=1)
        found.append({
            **dict(zip((*words[:-1], "features"), way, strict=True)), "recordings": len(mine), "windows": windows,
            "seconds": seconds, "bits_per_second": bits / seconds if windows else mine[0].bits_per_second,
            "compression": raw / bits if windows else 0.0, "perplexity": np.exp(entropy).tolist(),
        })  # fmt: skip
    return found
