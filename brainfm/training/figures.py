"""Figures for a model's card: reconstructions next to the input, and where its latent sources look."""

from __future__ import annotations

import numpy as np
import torch

from brainfm.shards.read import Windows
from brainfm.training.checkpoint import Pretrained


def of_tokenizer(pretrained: Pretrained, windows: Windows) -> list[dict]:
    """Reconstructions of validation windows and topographies of the first latent sources, one recording per device.

    Returns:
        Items of `traces` and `topographies` in the form of docs/results.md.
    """
    traces, topographies = [], []
    devices = windows.of("device")
    for device in sorted(set(devices.tolist())):
        row = int(np.flatnonzero(devices == device)[0])
        stored = windows.recordings[windows.recording[row]]
        batch = pretrained.batcher()(windows, [row])
        with torch.inference_mode():
            target, made, _ = pretrained.model.reconstruct(batch)
            looks = pretrained.model.source_topography(batch)[0].numpy()
        origin = f"{stored.dataset}, {device}{' (simulated)' if stored.simulated else ''}"
        time = (np.arange(target.shape[-1]) / stored.sfreq).tolist()
        for channel in (0, len(stored.channels) // 2):
            traces.append({
                "title": f"{origin}: {stored.channels.name[channel]}", "time": time, "unit": "z",
                "true": target[0, channel, 0].tolist(), "predicted": made[0, channel, 0].tolist(),
                "simulated": stored.simulated,
            })  # fmt: skip
        if np.isfinite(stored.channels.position).all() and len(stored.channels) > 3:
            names, place = stored.channels.name, stored.channels.position
            topographies += [
                {"title": f"{origin}: latent source {k + 1}", "positions": place.tolist(), "names": names,
                 "values": looks[k, : len(names)].tolist(), "simulated": stored.simulated}
                for k in range(2)
            ]  # fmt: skip
    return traces + topographies
