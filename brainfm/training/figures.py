"""Figures for a model's card, of validation windows: reconstructions, use of the codes, what sources look at and heed.

What is made follows from what the network offers: `reconstruct`, `usage` and `source_topography` of a tokenizer,
`source_attention` of a model over its sources. Any other network has no figures of this kind.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from brainfm.codebooks.residual import perplexity_of_counts, usage
from brainfm.recording import Channels
from brainfm.shards.codes import StoredCodes
from brainfm.shards.read import Windows
from brainfm.shards.stored import Stored
from brainfm.tokens import TokenBatch
from brainfm.training.checkpoint import Pretrained
from brainfm.training.codes import CodeDataset

#: Windows that use and attention are taken from, that a topography is a mean of, and of one batch.
MANY, SOME, BATCH = 256, 16, 32
#: Blocks whose attention is kept, spread evenly from the first to the last.
BLOCKS = 6
#: Less attention than this power of two of an even share is drawn as this.
FAINTEST = -6.0
#: Sorts of sensors that have a map of their own, and how they are called.
SORTS = {
    "EEG cap": ("eeg",),
    "MEG array": ("mag", "grad", "axial"),
    "implanted electrodes": ("ecog", "seeg"),
}
#: A map of fewer channels says nothing.
LEAST = 4

Figure = dict[str, Any]


def of(pretrained: Pretrained, windows: Windows) -> list[Figure]:
    """Everything that the network offers, in the forms of docs/results.md; nothing where there is no window."""
    model = pretrained.model
    figures: list[Figure] = []
    if len(windows) and hasattr(model, "source_topography"):
        figures = traces(pretrained, windows) + code_usage(pretrained, windows) + topographies(pretrained, windows)
    if len(windows) and hasattr(model, "source_attention"):
        figures = code_usage(pretrained, windows) + attention(pretrained, windows)
    return figures


def traces(pretrained: Pretrained, windows: Windows) -> list[Figure]:
    """A window of two channels of each device, reconstructed."""
    found, devices = [], windows.of("device")
    for device in sorted(set(devices.tolist())):
        row = int(np.flatnonzero(devices == device)[0])
        stored = windows.recordings[windows.recording[row]]
        with torch.inference_mode():
            target, made, _ = pretrained.model.reconstruct(_batch(pretrained, windows, [row]))
        time = (np.arange(target.shape[-1]) / stored.sfreq).tolist()
        for channel in sorted({0, len(stored.channels) // 2}):
            found.append({
                "title": f"{origin(stored)}: {stored.channels.name[channel]}", "time": time, "unit": "z",
                "true": target[0, channel, 0].tolist(), "predicted": made[0, channel, 0].tolist(),
                "simulated": stored.simulated,
            })  # fmt: skip
    return found


def code_usage(pretrained: Pretrained, windows: Windows) -> list[Figure]:
    """How often each code of each depth stands for a token of validation windows, and what that comes to."""
    tokenizer = getattr(pretrained.model, "codebook", pretrained.model)
    counts = torch.zeros(tokenizer.depth, tokenizer.codes_per_depth)
    rows = _spread(np.arange(len(windows)), MANY)
    for start in range(0, len(rows), BATCH):
        with torch.inference_mode():
            sources = pretrained.model.sources_of(_batch(pretrained, windows, rows[start : start + BATCH]))
        counts += usage(sources.codes[sources.mask], tokenizer.codes_per_depth).cpu()
    used = windows.take(rows)
    return [{
        "title": f"{int(counts[0].sum()):,} tokens of {len(rows)} validation windows",
        "counts": counts.int().tolist(), "perplexity": perplexity_of_counts(counts).tolist(),
        "simulated": any(used.recordings[r].simulated for r in np.unique(used.recording)),
    }]  # fmt: skip


def topographies(pretrained: Pretrained, windows: Windows) -> list[Figure]:
    """All latent sources on one montage of each sort of sensors: the validation montage with most of them in place."""
    found = []
    for sort, kinds in SORTS.items():
        counted = [len(_in_place(r.channels, kinds)) for r in windows.recordings]
        size = np.array(counted)[windows.recording]
        if size.max() < LEAST:
            continue
        number = int(windows.recording[int(size.argmax())])
        stored, rows = windows.recordings[number], np.flatnonzero(windows.recording == number)
        with torch.inference_mode():
            batch = _batch(pretrained, windows, _spread(rows, SOME))
            looks = pretrained.model.source_topography(batch).mean(dim=0).cpu().numpy()
        channels = _in_place(stored.channels, kinds)
        place, names = stored.channels.position[channels], [stored.channels.name[i] for i in channels]
        montage = f"{sort} of {stored.dataset}, {stored.device}"
        found += [
            {"title": f"source {k + 1}", "montage": montage, "positions": place.tolist(),
             "names": names, "values": looks[k, channels].tolist(), "simulated": stored.simulated}
            for k in range(len(looks))
        ]  # fmt: skip
    return found


def attention(pretrained: Pretrained, windows: Windows) -> list[Figure]:
    """Attention between sources, `(source, source)` of some blocks; sources are named by where the tokenizer's look.

    Values are powers of two: 0 for the share that a source without preference gives every other, 1 for twice as much.
    """
    rows = _spread(np.arange(len(windows)), MANY)
    parts = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    with torch.inference_mode():
        each = [pretrained.model.source_attention(_batch(pretrained, windows, part)).cpu().double() for part in parts]
    weights = torch.tensor([len(part) for part in parts], dtype=torch.double)
    mean = (torch.stack(each) * weights.view(-1, 1, 1, 1)).sum(dim=0) / weights.sum()
    sources = mean.shape[1]
    inner = (pretrained.card.get("tokenizer") or {}).get("figures") or []
    names = source_names([f for f in inner if "montage" in f], sources)
    simulated = any(windows.recordings[r].simulated for r in np.unique(windows.recording))
    blocks = _spread(np.arange(len(mean)), BLOCKS)
    preferred = (mean * sources).clamp_min(2.0**FAINTEST).log2()
    return [
        {"title": f"block {b + 1} of {len(mean)}", "values": preferred[b].tolist(), "rows": names, "columns": names,
         "simulated": simulated,
         "note": f"A row shows which latent sources this one attends to: 0 for an even share of 1/{sources}, 1 (red) "
         "for twice that, −1 (blue) for half."}
        for b in blocks
    ]  # fmt: skip


def source_names(maps: list[Figure], sources: int) -> list[str]:
    """ "3 left front" and so on, from the maps of the first montage; numbers alone where there is none."""
    first = [m for m in maps if m["montage"] == maps[0]["montage"]]
    if len(first) != sources:
        return [str(k + 1) for k in range(sources)]
    values = np.array([m["values"] for m in first])
    share = values / np.maximum(values.mean(axis=1, keepdims=True), np.finfo(float).tiny)
    above = share - share.mean(axis=0)  # what sets a source apart from the others
    return [f"{k + 1} {whereabouts(np.array(first[0]['positions']), above[k])}" for k in range(sources)]


def whereabouts(positions: np.ndarray, values: np.ndarray) -> str:
    """Side and region of the channels of the largest values.

    Args:
        positions: `(channel, 3)` m, x to the right, y to the front. values: `(channel,)`.
    """
    centred = positions - positions.mean(axis=0)
    weight = np.clip(values, 0, None) ** 2
    middle = weight @ centred / max(weight.sum(), np.finfo(float).tiny) / (centred.std(axis=0) + 1e-9)
    side = "left" if middle[0] < -0.3 else "right" if middle[0] > 0.3 else "mid"
    return f"{side} {'back' if middle[1] < -0.3 else 'front' if middle[1] > 0.3 else 'centre'}"


def origin(stored: Stored) -> str:
    """Dataset and device of a recording, and whether it is simulated."""
    return f"{stored.dataset}, {stored.device}{' (simulated)' if stored.simulated else ''}"


def _in_place(channels: Channels, kinds: tuple[str, ...]) -> np.ndarray:
    """Numbers of the good channels of these kinds whose position is known."""
    known = np.isfinite(channels.position).all(axis=1) & ~channels.bad
    return np.flatnonzero(known & np.isin(channels.kind, kinds))


def _batch(pretrained: Pretrained, windows: Windows, rows: np.ndarray | list[int]) -> TokenBatch:
    """Windows of signals or of codes as a batch."""
    device = next(pretrained.model.parameters()).device
    if isinstance(windows.recordings[0], StoredCodes):
        return CodeDataset(windows).__getitems__(list(map(int, rows))).to(device)
    return pretrained.batcher()(windows, rows).to(device)


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, evenly from first to last."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]
