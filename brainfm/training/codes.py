"""Codes → batches: how the second stage of a two-stage model is fed; and whose codes they are."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from brainfm.codebooks.braintokenizer import BrainTokenizer
from brainfm.recording import KINDS
from brainfm.shards.codes import CodeCorpus, StoredCodes, stride_of
from brainfm.shards.read import Windows
from brainfm.tokens import TokenBatch
from brainfm.training.checkpoint import Pretrained, facts_from

#: Folder of the tokenizer inside a folder of codes: codes mean nothing without it.
TOKENIZER = "tokenizer"


def code_batch(
    runs: list[Tensor], masks: list[Tensor] | None, seconds: Tensor, aligned: dict[str, Tensor] | None = None
) -> TokenBatch:
    """Codes of several runs as one batch `(batch, source x time, depth)`, source by source; short ones are filled up.

    Args:
        runs: `(source, time, depth)` integers each, of one tokenizer.
        masks: `(source, time)` True where there is data, for each run; everywhere if None.
        seconds: `(time,)` of the longest run's tokens, from its start.
        aligned: as in `TokenBatch`.
    """
    (sources, _, depth), longest, batch = runs[0].shape, len(seconds), len(runs)
    codes = torch.zeros(batch, sources, longest, depth, dtype=torch.int64)
    mask = torch.zeros(batch, sources, longest, dtype=torch.bool)
    for i, run in enumerate(runs):
        codes[i, :, : run.shape[1]] = run
        mask[i, :, : run.shape[1]] = True if masks is None else masks[i]
    return TokenBatch(
        values=codes.flatten(1, 2),
        time=seconds.repeat(sources).expand(batch, -1),
        channel=torch.arange(sources).repeat_interleave(longest).expand(batch, -1),
        place=torch.full((batch, sources, 3), torch.nan),
        orientation=torch.zeros(batch, sources, 3),
        kind=torch.full((batch, sources), KINDS.index("misc")),
        mask=mask.flatten(1),
        grid=(sources, longest),
        sfreq=None,
        aligned={} if aligned is None else aligned,
    )


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
        _, sources, tokens, depth = runs[0].shape
        by_source = [torch.from_numpy(run.astype(np.int64).swapaxes(0, 1).reshape(sources, -1, depth)) for run in runs]
        first = torch.arange(max(map(len, runs)))[:, None] * stored[0].stride
        seconds = (first + torch.arange(tokens) * (stored[0].patch / tokens)).flatten() / stored[0].sfreq
        aligned = {}
        if self.subjects is not None:
            aligned["subject"] = torch.tensor([self.subjects.get(s.person, -1) for s in stored])
        return code_batch(by_source, None, seconds, aligned)


def tokenizer_hash(model: BrainTokenizer) -> str:
    """sha256 of a tokenizer's weights, codebooks and of the settings that its codes follow from."""
    settings = [model.patch, model.tokens_per_window, model.heads, model.released, model.sfreq]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def tokenizer_in(pretrained: Pretrained, where: str) -> Pretrained:
    """The tokenizer that a model folder holds: the model itself, or the one inside it.

    Args:
        pretrained: a loaded folder. where: its path, for the error.

    Raises:
        ValueError: where there is none.
    """
    inner: dict[str, Any] | None = pretrained.config.get("codebook")
    network = pretrained.model if inner is None else pretrained.model.codebook
    if not isinstance(network, BrainTokenizer):
        raise ValueError(
            f"{where} is a {pretrained.config['kind'].removesuffix('s')} {pretrained.config['name']!r} without a "
            "tokenizer; name a folder of a BrainTokenizer or of a BrainOmni"
        )
    if inner is None:
        return pretrained
    config = {k: v for k, v in inner.items() if k != "facts"}
    return Pretrained(network, config, facts_from(inner["facts"]), pretrained.card.get("tokenizer") or {})


def check_codes(corpus: CodeCorpus, tokenizer: BrainTokenizer, overlap: float | None = None) -> None:
    """Check that codes were made by the tokenizer beside them, and with the overlap that a model uses on signals.

    Args:
        corpus: codes. tokenizer: what shall read them. overlap: of the model; any if None.

    Raises:
        ValueError: naming the recording that was coded by another tokenizer or with another overlap.
    """
    own = tokenizer_hash(tokenizer)
    for one in corpus.recordings:
        where = f"{one.id} in {corpus.root}"
        if one.tokenizer_hash != own:
            raise ValueError(
                f"{where}: codes of tokenizer {one.tokenizer!r} {one.tokenizer_hash[:12]}, but {TOKENIZER}/ beside "
                f"them is {own[:12]}; codes mean nothing to another tokenizer: run `brainfm tokenize` again, or remove "
                f"{one.path} if it is a rest of an earlier run"
            )
        if overlap is not None and one.stride != stride_of(one.patch, overlap):
            raise ValueError(
                f"{where}: windows of codes overlap by {one.overlap:g}, those that the model makes of a signal by "
                f"{overlap:g}; set `overlap: {one.overlap:g}` of the model, or tokenize with `--overlap {overlap:g}`"
            )


def windows_in(length: float, patch: int, stride: int) -> int:
    """How many windows of `patch` samples every `stride` come nearest to `length` samples; at least one."""
    return max(1, round((length - (patch - stride)) / stride))
