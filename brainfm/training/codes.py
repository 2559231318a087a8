"""Corpus → codes, and codes → batches: how the second stage of a two-stage model is fed."""

from __future__ import annotations

import hashlib
import json
import math
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch.utils.data import Dataset

from brainfm.codebooks.braintokenizer import BrainTokenizer
from brainfm.codebooks.residual import perplexity_of_counts
from brainfm.recording import KINDS
from brainfm.shards.codes import Coded, StoredCodes, Tokenizer, is_current, open_codes, write_codes
from brainfm.shards.read import Corpus, Windows
from brainfm.shards.stored import Stored
from brainfm.tokens import TokenBatch
from brainfm.training.batches import Batcher


class CodeDataset(Dataset):
    """Runs of code windows as whole batches: `__getitems__(rows) -> TokenBatch`.

    Args:
        windows: rows of `CodeCorpus.windows`.
        subjects: `dataset/subject` → number, as `aligned["subject"]`; left out where None.
    """

    def __init__(self, windows: Windows, subjects: dict[str, int] | None = None) -> None:
        self.windows, self.subjects = windows, subjects

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, row: int) -> TokenBatch:
        return self.__getitems__([row])

    def __getitems__(self, rows: list[int]) -> TokenBatch:
        """The rows as codes `(batch, source x time, depth)`, source by source; shorter runs are filled and masked."""
        index = self.windows.take(rows)
        stored: list[StoredCodes] = [index.recordings[r] for r in index.recording]  # type: ignore[misc]
        spans = zip(stored, index.start, index.samples, strict=True)
        runs = [s.codes(int(start), int(samples)) for s, start, samples in spans]
        batch, longest = len(rows), max(map(len, runs))
        _, sources, tokens, depth = runs[0].shape
        codes = torch.zeros(batch, sources, longest * tokens, depth, dtype=torch.int64)
        mask = torch.zeros(batch, sources, longest * tokens, dtype=torch.bool)
        for i, run in enumerate(runs):
            filled = len(run) * tokens
            by_source = run.astype(np.int64).swapaxes(0, 1).reshape(sources, filled, depth)
            codes[i, :, :filled] = torch.from_numpy(by_source)
            mask[i, :, :filled] = True
        step = stored[0].patch / tokens / stored[0].sfreq
        time = (torch.arange(longest * tokens) * step).repeat(sources).expand(batch, -1)
        aligned = {}
        if self.subjects is not None:
            aligned["subject"] = torch.tensor([self.subjects.get(s.person, -1) for s in stored])
        return TokenBatch(
            values=codes.flatten(1, 2),
            time=time,
            channel=torch.arange(sources).repeat_interleave(longest * tokens).expand(batch, -1),
            place=torch.full((batch, sources, 3), torch.nan),
            orientation=torch.zeros(batch, sources, 3),
            kind=torch.full((batch, sources), KINDS.index("misc")),
            mask=mask.flatten(1),
            grid=(sources, longest * tokens),
            sfreq=None,
            aligned=aligned,
        )


def tokenizer_hash(model: BrainTokenizer) -> str:
    """sha256 of a tokenizer's weights, codebooks and of the settings that its codes follow from."""
    settings = [model.patch, model.tokens_per_window, model.heads, model.released, model.sfreq]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def tokenize(
    model: BrainTokenizer, corpus: Corpus, out: Path, window_s: float, batch_size: int = 32, progress: bool = False
) -> dict:
    """Write the codes of a corpus as code shards `out/<dataset>/<file>`; those that are whole and current stay.

    Args:
        model: a trained tokenizer; run in evaluation mode, given back in the mode it was in.
        corpus: recordings of the tokenizer's sampling rate.
        out: the tokenizer's folder; its name is the tokenizer's name.
        window_s: seconds in a row of a batch. Codes depend on it only where the tokenizer scales whole segments.
        batch_size: rows of a batch.
        progress: show a bar.

    Returns:
        bits_per_second, compression (against 16 bits per sample and channel), perplexity of each depth over all codes,
        windows, shards_written and shards_kept.

    Raises:
        ValueError: for spikes, or a sampling rate that is not the tokenizer's.
    """
    wrong = [r for r in corpus.recordings if r.sfreq != model.sfreq]
    if wrong:
        raise ValueError(
            f"{wrong[0].id} has {wrong[0].sfreq} samples per second; this tokenizer was built for {model.sfreq}: "
            "ingest the dataset at that `sfreq_hz` or train a tokenizer for it"
        )
    out = Path(out)
    tokenizer = Tokenizer(out.name, tokenizer_hash(model), model.patch, model.codes_per_depth, float(window_s))
    by_path = sorted(corpus.recordings, key=lambda r: (str(r.path), r.group))
    shards = [(path, list(found)) for path, found in groupby(by_path, key=lambda r: r.path)]
    count = np.zeros((model.depth, model.codes_per_depth))
    written = windows = samples = 0
    training = model.training
    model.eval()
    try:
        for path, recordings in track(shards, description=f"tokenize {out.name}", disable=not progress):
            target = out / recordings[0].dataset / path.name
            if not is_current(target, recordings, tokenizer):
                write_codes(target, (_codes_of(model, r, window_s, batch_size) for r in recordings), tokenizer)
                written += 1
            for stored in open_codes(target).recordings:
                codes = stored.all_codes()
                windows += len(codes)
                samples += len(codes) * model.patch * len(stored.channels)
                for depth in range(model.depth):
                    count[depth] += np.bincount(codes[..., depth].ravel(), minlength=model.codes_per_depth)
    finally:
        model.train(training)
    bits = model.sources * model.tokens_per_window * model.depth * math.log2(model.codes_per_depth)
    return {
        "bits_per_second": bits * model.sfreq / model.patch,
        "compression": 16.0 * samples / (bits * windows) if windows else 0.0,
        "perplexity": perplexity_of_counts(torch.from_numpy(count)).tolist(),
        "windows": windows,
        "shards_written": written,
        "shards_kept": len(shards) - written,
    }


@torch.no_grad()
def _codes_of(model: BrainTokenizer, stored: Stored, window_s: float, batch_size: int) -> Coded:
    """All whole windows of a recording, stretch by stretch; a rest that is shorter than a window is not coded."""
    length = max(1, round(window_s * stored.sfreq / model.patch)) * model.patch
    rows: list[tuple[int, int]] = []
    for a, b in stored.segments.tolist():
        whole = (b - a) // model.patch * model.patch
        rows += [(s, min(length, a + whole - s)) for s in range(a, a + whole, length)]
    start, samples = np.array(rows, np.int64).reshape(-1, 2).T
    none = np.full(len(rows), "", dtype=object)
    index = Windows((stored,), np.zeros(len(rows), np.int64), start, samples, none, none)
    batcher, device = Batcher(patch=model.patch), next(model.parameters()).device
    parts = [np.zeros((0, model.sources, model.tokens_per_window, model.depth), np.uint16)]
    for first in range(0, len(rows), batch_size):
        taken = np.arange(first, min(first + batch_size, len(rows)))
        codes = model.codes(batcher(index, taken).to(device)).cpu().numpy().astype(np.uint16)
        codes = codes.reshape(len(taken), model.sources, -1, model.tokens_per_window, model.depth).swapaxes(1, 2)
        parts += [codes[i, : samples[row] // model.patch] for i, row in enumerate(taken)]
    begins = [np.arange(s, s + n, model.patch) for s, n in rows]
    return Coded(stored, np.concatenate([*begins, np.zeros(0, np.int64)]), np.concatenate(parts))
