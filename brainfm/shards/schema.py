"""Names, version and layout of a shard: the one page that reader and writer agree on.

One HDF5 file holds one subject of one dataset:

    /                          attrs: schema, schema_version, dataset, subject, modality, simulated, licence, citation,
                               recipe
    /recordings/<session>_<run>
        attrs                  id, session, run, device, sfreq, samples, duration, checksum, provenance (JSON)
        signal                 (frame, channel, sample) float32, contiguous; SI units of the channel kinds
        segments               (segment, 2) first and one-past-last sample of stretches without a break
        channels/              name, kind, area, position (channel, 3), orientation (channel, 3), bad
        events/                onset, duration, label, stimulus
        spikes/                time (spike,) seconds, neuron (spike,), frame_index (frame + 1,) first of each second
        aligned/<name>         (time, feature); attrs: sfreq, start, unit
        truth/<name>           ground truth of simulated data

A frame is one second of a sampled signal, or one volume. A window of whole frames is one contiguous byte range.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import h5py
import numpy as np

SCHEMA = "brainfm-shard"
VERSION = 1
SPLIT_FILE = "split.json"

#: Contiguous datasets start on a page, so that a memory map of the signal is aligned.
ALIGNMENT = {"alignment_threshold": 1 << 20, "alignment_interval": 4096}


class ShardError(ValueError):
    """A file that is not a whole shard of this schema; the message names the file and the mend."""


def frame_samples(sfreq: float) -> int:
    """Samples per frame: one second of a sampled signal, one volume where the rate is under 4 Hz."""
    return 1 if sfreq < 4 else math.ceil(sfreq)


def group_name(session: str, run: str) -> str:
    """Name of a recording's group inside its shard."""
    return f"{session}_{run}"


def shard_files(path: Path, absent: str) -> list[Path]:
    """The finished files at or under `path`, sorted; FileNotFoundError saying `absent` where there is none."""
    found = [path] if path.is_file() else sorted(path.glob("**/*.h5"))
    files = [f for f in found if not f.name.startswith(".")]
    if not files:
        raise FileNotFoundError(absent.format(path))
    return files


def checksum(group: h5py.Group) -> str:
    """sha256 over the data of a recording's group: signal, spikes, events, aligned series and channel table."""
    digest = hashlib.sha256()

    def add(name: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset):
            digest.update(name.encode())
            if h5py.check_string_dtype(item.dtype):
                digest.update("\0".join(item.asstr()[()].tolist()).encode())
            elif item.ndim and item.size:
                rows = max(1, (1 << 24) // max(1, item[0:1].nbytes))
                for start in range(0, len(item), rows):
                    digest.update(np.ascontiguousarray(item[start : start + rows]).tobytes())

    group.visititems(add)
    return digest.hexdigest()
