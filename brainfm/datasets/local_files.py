"""Any recordings at a path as something to ingest: no dataset file, no Python. No dataset itself."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from brainfm.modalities import calcium, cleaning, fmri, units
from brainfm.readers import collection
from brainfm.readers.collection import Item
from brainfm.recording import Recording

#: Steps for electrophysiology where the user names none; those that the user sets to None are left out.
BAD = {"bad_channels": {"deviation": 5.0, "correlation": 0.4, "share": 0.1}}
DEFAULTS: dict[str, dict[str, float | None]] = {
    "eeg": {"sfreq_hz": 128.0, "highpass_hz": 0.5, "lowpass_hz": 45.0, "notch_hz": None},
    "meg": {"sfreq_hz": 128.0, "highpass_hz": 0.5, "lowpass_hz": 45.0, "notch_hz": None},
    "ieeg": {"sfreq_hz": 512.0, "highpass_hz": 0.5, "lowpass_hz": 170.0, "notch_hz": None},
}
#: How the words of a command line become steps, in this order.
WORDS = {
    "notch_hz": ("notch", "line_hz"), "highpass_hz": ("highpass", "edge_hz"), "lowpass_hz": ("lowpass", "edge_hz"),
    "sfreq_hz": ("resample", "sfreq_hz"),
}  # fmt: skip


def steps_of(modality: str, given: dict[str, float | None]) -> list[dict[str, Any]]:
    """The cleaning of a modality as steps: bad channels are marked, then filters; `given` wins over `DEFAULTS`."""
    chosen = {**DEFAULTS[modality], **given}
    sparse = {"bad_channels": {**BAD["bad_channels"], "correlation": None}} if modality == "ieeg" else BAD
    filters = [{step: {word: chosen[key]}} for key, (step, word) in WORDS.items() if chosen.get(key)]
    return [sparse, *filters]


def cleaned(item: Item, given: dict[str, float | None], steps: list[Any] | None = None) -> Iterator[Recording]:
    """Read one item, check that its numbers can be in their unit, and clean it.

    Args:
        item: of `collection.find`. given: filters of the command line, by the words of `WORDS`.
        steps: declared steps, as in `cleaning.clean`, in place of all of that.

    Raises:
        ValueError, OSError: naming the file and the mend.
    """
    for recording in collection.recordings(item):
        try:
            yield _clean(recording, given, steps)
        except ValueError as error:
            raise ValueError(f"{item.path}: {error}") from error


def _clean(recording: Recording, given: dict[str, float | None], steps: list[Any] | None) -> Recording:
    if recording.modality in DEFAULTS:
        units.plausible(recording, blocks=10)
        if "notch_hz" not in given and recording.provenance.get("power_line_hz"):
            given = {**given, "notch_hz": recording.provenance["power_line_hz"]}  # a BIDS sidecar says it
        return cleaning.clean(recording, steps_of(recording.modality, given) if steps is None else steps)
    if recording.modality == "fmri":
        return fmri.clean(recording, highpass_hz=given.get("highpass_hz"), lowpass_hz=given.get("lowpass_hz"))
    if recording.modality == "calcium":
        if steps is not None:
            return cleaning.clean(recording, steps)
        return calcium.clean(recording, sfreq_hz=given.get("sfreq_hz"), lowpass_hz=given.get("lowpass_hz"))
    return recording


def maker(item: Item, given: dict[str, float | None], steps: list[Any] | None) -> partial[Iterator[Recording]]:
    """What makes the item's recordings, anywhere: picklable."""
    return partial(cleaned, item, given, steps)
