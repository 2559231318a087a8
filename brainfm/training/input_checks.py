"""What a model over sensors was trained to read, and what is said of a recording that is not like that.

A network cannot name channels or recordings; this is where batches for it are made, so here they still have names.
What would give no encoding is an error. What gives a worse one is an `InputWarning`, once for each montage.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from brainfm.codebooks.sensors import Sensors
from brainfm.recording import KINDS, Channels
from brainfm.shards.stored import Stored
from brainfm.tokens import Facts

#: Channels that a message names.
NAMED = 5
#: What positions are worth, as measured: see docs/models.md.
COST = "on simulated caps and arrays reconstruction without positions fell to a fifth or less, see docs/models.md"


class InputWarning(UserWarning):
    """The input gives an encoding, but a worse one than the model is able to."""


@dataclass(frozen=True)
class Expected:
    """What a model over sensors reads.

    Attributes:
        sfreq: samples per second. patch: samples of its window; a shorter stretch holds no token.
        seen: kinds of channels that share their vector with one in its training data; all are taken for seen if empty.
        trained_on: kinds in its training data, for the message.
    """

    sfreq: float
    patch: int
    seen: frozenset[str]
    trained_on: tuple[str, ...]

    def check_windows(self, stored: Sequence[Stored], samples: np.ndarray) -> None:
        """Check windows of `samples[i]` samples of the recordings `stored[i]`.

        Raises:
            ValueError: for another sampling rate or a window that is too short, naming the recording.
        """
        shortest = int(np.argmin(samples))
        self.check_length(stored[shortest].id, int(samples[shortest]))
        for one in {id(s): s for s in stored}.values():
            self.check(one.id, one.channels, one.sfreq)

    def check_length(self, whose: str, samples: int) -> None:
        """Raise ValueError for fewer samples than one window."""
        if samples < self.patch:
            raise ValueError(
                f"{whose}: {samples} samples ({samples / self.sfreq:g} s); a window of this model has {self.patch} "
                f"({self.patch / self.sfreq:g} s) and a shorter stretch has no encoding: take longer windows"
            )

    def check(self, whose: str, channels: Channels, sfreq: float) -> None:
        """Check a montage and its sampling rate; warn of what the model does not know of it.

        Raises:
            ValueError: for another sampling rate.
        """
        if sfreq != self.sfreq:
            raise ValueError(
                f"{whose} has {sfreq:g} samples per second; this model reads {self.sfreq:g}: ingest the dataset at "
                "that `sfreq_hz`, or resample"
            )
        for text in self.remarks(channels):
            warnings.warn(text, InputWarning, stacklevel=4)  # Python says each text once

    def remarks(self, channels: Channels) -> tuple[str, ...]:
        """What the model does not know of a montage, in words; nothing for one that it knows."""
        key = (id(channels), channels.bad.tobytes(), self.seen)
        if key not in _known:
            if len(_known) >= 4096:
                _known.clear()
            _known[key] = (channels, (*self._strange_kinds(channels), *_without_place(channels)))
        return _known[key][1]

    def _strange_kinds(self, channels: Channels) -> list[str]:
        found = []
        for kind in dict.fromkeys(channels.kind) if self.seen else ():
            if kind not in self.seen:
                own = [n for n, k in zip(channels.name, channels.kind, strict=True) if k == kind]
                found.append(
                    f"{len(own)} channels of kind {kind!r} ({_some(own)}), which this model never saw: it was "
                    f"trained on {', '.join(self.trained_on)}. Its vector for the kind is as random as it began; "
                    "expect poor encodings, or pretrain with such recordings"
                )
        return found


#: Remarks of each montage, with the channel table so that its identity stays its own.
_known: dict[tuple[int, bytes, frozenset[str]], tuple[Channels, tuple[str, ...]]] = {}


def _without_place(channels: Channels) -> list[str]:
    """A remark on good channels without a position."""
    missing = ~np.isfinite(channels.position).all(axis=1) & ~channels.bad
    if not missing.any():
        return []
    names = [channels.name[i] for i in np.flatnonzero(missing)]
    return [
        f"{len(names)} of {len(channels)} channels have no position ({_some(names)}). They share one vector, so the "
        f"model cannot tell those of one kind apart; {COST}. Give them positions (a montage, electrode files) or leave "
        "them out"
    ]


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def expected_by(model: nn.Module, facts: Facts) -> Expected | None:
    """What a network with sensors (BrainTokenizer, or one that has it inside) reads; None for any other."""
    tokenizer = getattr(model, "codebook", model)
    sensors = getattr(tokenizer, "sensors", None)
    if not isinstance(sensors, Sensors):
        return None
    rows = dict(zip(KINDS, sensors.types, strict=True))
    # kinds that a released tokenizer cannot take have row -1: for them the network itself raises
    trained = {rows[kind] for kind in facts.kinds} | {-1}
    seen = frozenset(kind for kind in KINDS if rows[kind] in trained) if facts.kinds else frozenset()
    return Expected(float(tokenizer.sfreq), int(tokenizer.patch), seen, facts.kinds)  # type: ignore[arg-type]
