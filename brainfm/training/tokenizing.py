"""Corpus → code shards by a trained tokenizer: resumable shard by shard, in memory that no recording makes grow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from brainfm.codebooks.braintokenizer import BrainTokenizer
from brainfm.recording import KINDS
from brainfm.shards.codes import Coded, Tokenizer, is_current, open_codes, stride_of, summary, write_codes
from brainfm.shards.read import Corpus, Windows
from brainfm.shards.stored import Stored
from brainfm.training.batches import Batcher
from brainfm.training.checkpoint import evaluating
from brainfm.training.codes import tokenizer_hash, windows_in
from brainfm.training.input_checks import Expected

#: Windows of single channels that a batch holds at once, unless told otherwise: they decide the memory.
ROWS = 1024
#: Windows of features that are made and written at once.
BLOCK = 64


def tokenize(
    model: BrainTokenizer, corpus: Corpus, out: Path, window_s: float, batch_size: int | None = None,
    progress: bool = False, *, name: str | None = None, overlap: float = 0.0, features: str = "",
    expected: Expected | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the codes of a corpus as code shards `out/<dataset>/<file>`; those that are whole and current stay.

    A recording that the tokenizer cannot take is left out and named; so are those of a shard that cannot be read.
    Windows in which no channel has a signal are left out: the codes then have a break there.

    Args:
        model: a trained tokenizer; run in evaluation mode, given back in the mode it was in.
        corpus: recordings of the tokenizer's sampling rate.
        out: folder of the codes.
        window_s: seconds in a row of a batch. Codes depend on it only where the tokenizer scales whole segments.
        batch_size: rows of a batch; by the number of channels if None.
        progress: show a bar.
        name: the tokenizer's name; that of `out` if None.
        overlap: share by which windows overlap.
        features: also store the quantised features, as "float16" or "float32"; "" for none.
        expected: what the tokenizer was trained to read; warns of recordings that are not like that.

    Returns:
        bits_per_second, compression (against 16 bits per sample and channel), perplexity of each depth over all codes,
        windows, shards_written, shards_kept, and failed: recording → what is wrong with it and what mends it.

    Raises:
        ValueError: where two shards would have one place, or for an overlap or a type of features that there is not.
    """
    out = Path(out)
    tokenizer = Tokenizer(
        name or out.name, tokenizer_hash(model), model.patch, model.codes_per_depth, float(window_s), float(overlap),
        features,
    )  # fmt: skip
    failed = {r.id: why for r in corpus.recordings if (why := unfit(model, r))}
    usable = sorted((r for r in corpus.recordings if r.id not in failed), key=lambda r: (str(r.path), r.group))
    if expected is not None:
        for stored in usable:
            expected.check(stored.id, stored.channels, stored.sfreq)
    shards = [list(found) for _, found in groupby(usable, key=lambda r: r.path)]
    places = [out / recordings[0].dataset / recordings[0].path.name for recordings in shards]
    for i, place in enumerate(places):
        if place in places[:i]:
            twin = shards[places.index(place)][0].path
            raise ValueError(
                f"{twin} and {shards[i][0].path} both belong to {place}; tokenize their folders one by one, each to "
                "an `--out` of its own"
            )
    written = kept = 0
    with evaluating(model), _bar(f"tokenize {tokenizer.name}", usable, progress) as advance:
        for place, recordings in zip(places, shards, strict=True):
            _clear_parts(place)
            if is_current(place, recordings, tokenizer):
                kept += 1
                advance(sum(r.duration for r in recordings))
                continue
            try:
                write_codes(place, (_codes_of(model, r, tokenizer, batch_size, advance) for r in recordings), tokenizer)
                written += 1
            except (ValueError, OSError) as error:  # a damaged shard, a full disk: the others are still done
                failed |= {r.id: str(error) for r in recordings}
    done = [place for place, recordings in zip(places, shards, strict=True) if recordings[0].id not in failed]
    said = summary([r for place in done for r in open_codes(place).recordings])
    words = ("bits_per_second", "compression", "perplexity", "windows")
    figures = said[0] if said else dict.fromkeys(words, 0)
    return {**{w: figures[w] for w in words}, "shards_written": written, "shards_kept": kept, "failed": failed}


def unfit(model: BrainTokenizer, stored: Stored) -> str:
    """Why a tokenizer cannot take a recording, with the mend; "" where it can."""
    if not stored.sfreq:
        return "it holds spikes and no signal, which this tokenizer does not read: leave it out"
    if stored.sfreq != model.sfreq:
        return (
            f"{stored.sfreq:g} samples per second; this tokenizer was built for {model.sfreq:g}: ingest the recording "
            f"with `--sfreq-hz {model.sfreq:g}` (`sfreq_hz` of a dataset's configuration) or train a tokenizer for it"
        )
    known = [k for k, row in zip(KINDS, model.sensors.types, strict=True) if row >= 0]
    if strange := sorted(set(stored.channels.kind) - set(known)):
        count = sum(k in strange for k in stored.channels.kind)
        return (
            f"{count} of {len(stored.channels)} channels are of kind {', '.join(strange)}; this tokenizer knows "
            f"{', '.join(known)}: ingest the recording without them or train a tokenizer on such channels"
        )
    lost = [n for n, p in zip(stored.channels.name, stored.channels.position, strict=True) if not np.isfinite(p).all()]
    if lost and model.released:
        return (
            f"{len(lost)} of {len(stored.channels)} channels have no position ({', '.join(lost[:5])}), and a released "
            "tokenizer has no vector for that: ingest the recording with a `--montage`, or without them"
        )
    return ""


@torch.no_grad()
def _codes_of(
    model: BrainTokenizer, stored: Stored, tokenizer: Tokenizer, batch_size: int | None,
    advance: Callable[[float], None],
) -> Coded:  # fmt: skip
    """All whole windows of a recording, stretch by stretch; a rest that is shorter than a window is not coded."""
    patch, stride = model.patch, stride_of(model.patch, tokenizer.overlap)
    per_row = windows_in(tokenizer.window_s * stored.sfreq, patch, stride)
    rows: list[tuple[int, int]] = []
    for a, b in stored.segments.tolist():
        fit = (b - a - patch) // stride + 1
        rows += [(a + first * stride, min(per_row, fit - first)) for first in range(0, fit, per_row)]
    start, count = np.array(rows, np.int64).reshape(-1, 2).T
    none = np.full(len(rows), "", dtype=object)
    samples = (count - 1) * stride + patch
    index = Windows((stored,), np.zeros(len(rows), np.int64), start, samples, none, none)
    # a token of the batch divides window and stride, so that the mask can end with any window
    batcher, device = Batcher(patch=math.gcd(patch, stride)), next(model.parameters()).device
    size = batch_size or max(1, ROWS // (len(stored.channels) * per_row))
    begins = [np.zeros(0, np.int64)]
    parts = [np.zeros((0, model.sources, model.tokens_per_window, model.depth), np.uint16)]
    for first in range(0, len(rows), size):
        taken = np.arange(first, min(first + size, len(rows)))
        found = model.sources_of(batcher(index, taken).to(device), tokenizer.overlap)
        split = (len(taken), model.sources, -1, model.tokens_per_window)
        codes = found.codes.cpu().numpy().astype(np.uint16).reshape(*split, model.depth).swapaxes(1, 2)
        real = found.mask.view(*split).any(dim=3).any(dim=1).cpu().numpy()
        for i, row in enumerate(taken):
            there = real[i, : count[row]]
            parts.append(codes[i, : count[row]][there])
            begins.append((start[row] + stride * np.arange(count[row]))[there])
        advance(float(count[taken].sum() * stride / stored.sfreq))
    whole = np.concatenate(parts)
    features = _features(model, whole, tokenizer.features) if tokenizer.features else None
    return Coded(stored, np.concatenate(begins), whole, features)


@torch.no_grad()
def _features(model: BrainTokenizer, codes: np.ndarray, dtype: str) -> Iterator[np.ndarray]:
    """What the codes stand for, block by block; one empty block where there is no window."""
    device = next(model.parameters()).device
    for first in range(0, max(1, len(codes)), BLOCK):
        block = torch.from_numpy(codes[first : first + BLOCK].astype(np.int64)).to(device)
        yield model.features_of(block).cpu().numpy().astype(dtype)


def _clear_parts(place: Path) -> None:
    """Remove what a killed run was in the middle of writing."""
    for part in place.parent.glob(f".{place.name}.*.part"):
        part.unlink(missing_ok=True)


@contextmanager
def _bar(text: str, recordings: Sequence[Stored], shown: bool) -> Iterator[Callable[[float], None]]:
    """A bar over the seconds of all recordings; what it gives is called with the seconds that are done."""
    if not shown:
        yield lambda seconds: None
        return
    columns = TextColumn(text), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(text, total=sum(r.duration for r in recordings))
        yield lambda seconds: progress.advance(task, seconds)
