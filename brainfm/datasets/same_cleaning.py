"""The cleaning that a model's card names, done again on other recordings: they must look like what it saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from brainfm.datasets.local_files import DEFAULTS, steps_of
from brainfm.modalities import cleaning

#: Cleaning whose result at any time depends on a whole stretch or recording; `sees_whole` knows the exceptions.
WHOLE = ("bad_channels", "detrend", "scale", "centre", "standardise", "infer_events")
#: Words of a step in the provenance that are its keywords; the rest of the provenance says what it did.
KEYWORDS = {
    "bad_channels": ("deviation", "correlation", "flat", "share"), "reference": ("to",), "detrend": ("order",),
    "clamp": ("robust_sd", "typical"), "scale": ("per",), "interpolate": (), "drop_bad": (),
}  # fmt: skip
#: Steps in the provenance that follow from others, or were no cleaning.
IMPLIED = ("antialias", "drop_segments", "open", "simulate", "events_outside", "unit")


def cleaning_of(
    card: dict[str, Any], modality: str, sfreq: float, causal: bool = False
) -> tuple[list[cleaning.Step], list[str]]:
    """The cleaning steps that a card names for a modality, to the rate `sfreq`, and remarks on them.

    Args:
        card: of the encoder. modality: of the recording. sfreq: the encoder's rate.
        causal: leave out the steps that see the whole recording.
    """
    said, remarks = card_steps(card, modality)
    steps: list[cleaning.Step] = []
    if said is None:
        edge = DEFAULTS[modality]["lowpass_hz"] or np.inf
        steps += steps_of(modality, {"sfreq_hz": sfreq, **({} if edge < sfreq / 2 else {"lowpass_hz": None})})
        remarks.append(f"the model's card does not say how its data was cleaned: taken as {_short(steps)}")
    for step in said or ():
        word = step["step"]
        if word == "band":
            edges = (("highpass", step.get("highpass_hz")), ("lowpass", step.get("lowpass_hz")))
            steps += [{name: {"edge_hz": hertz}} for name, hertz in edges if hertz]
        elif word == "notch":
            steps.append({"notch": {"line_hz": step["frequency_hz"]}})
        elif word in KEYWORDS:
            steps.append({word: {k: step[k] for k in KEYWORDS[word] if k in step}})
        elif word == "resample":
            steps.append({"resample": {"sfreq_hz": sfreq}})
        elif word not in IMPLIED:
            remarks.append(f"the model's data also went through {word!r}, which is not repeated here")
    if not any("resample" in step for step in steps):
        last = max((i for i, step in enumerate(steps) if set(step) & set(cleaning.FILTERS)), default=-1)
        steps.insert(last + 1, {"resample": {"sfreq_hz": sfreq}})
    whole = [s for s in steps if isinstance(s, dict) and any(sees_whole(word, s[word] or {}) for word in s)]
    if causal and whole:
        steps = [step for step in steps if step not in whole]
        remarks.append(f"left out, for they see the whole recording: {_short(whole)}")
    return steps, remarks


def within(steps: Sequence[cleaning.Step], nyquist_hz: float) -> list[cleaning.Step]:
    """The steps without filters that only touch what lies above half the sampling rate, where there is nothing."""
    idle = {"lowpass": "edge_hz", "notch": "line_hz"}
    edges = [
        [(step[word] or {}).get(key) or 0.0 for word, key in idle.items() if word in step]
        if isinstance(step, dict)
        else []
        for step in steps
    ]
    return [step for step, hertz in zip(steps, edges, strict=True) if max(hertz, default=0.0) < nyquist_hz]


def sees_whole(word: str, given: dict[str, Any]) -> bool:
    """Whether a step with these keywords, or this provenance, sees more than what its filters reach.

    Clamping to typical amplitudes and scaling by a given factor see a sample; resampling as MNE does it, for rates
    without a ratio of whole numbers, sees everything.
    """
    if word == "clamp":
        return given.get("robust_sd") is not None
    if word == "resample":
        return given.get("method") == "mne.filter.resample"
    return word in WHOLE and "factor" not in given


def card_steps(card: dict[str, Any], modality: str) -> tuple[list[dict[str, Any]] | None, list[str]]:
    """Provenance of the training data of a modality; None where the card has none; a remark where datasets differ."""
    found = [d for d in card.get("datasets") or () if d.get("steps") and d.get("modality", modality) == modality]
    if not found and card.get("tokenizer"):
        return card_steps(card["tokenizer"], modality)
    found = [d for d in found if band_of(d["steps"]) != band_of([])]
    if not found:
        return None, []
    first = max(found, key=lambda d: d.get("subjects", 0))
    others = sorted({words_of(band_of(d["steps"])) for d in found} - {words_of(band_of(first["steps"]))})
    said = f"its training data was cleaned in several ways; as {first['name']} here, others by {'; '.join(others)}"
    return first["steps"], [said] if others else []


def band_of(steps: list[dict[str, Any]]) -> dict[str, float | None]:
    """Edges and power line in Hz that provenance names."""
    found: dict[str, float | None] = {"highpass_hz": None, "lowpass_hz": None, "notch_hz": None}
    for step in steps:
        if step["step"] == "band":
            found |= {k: step[k] for k in ("highpass_hz", "lowpass_hz") if step.get(k)}
        elif step["step"] == "notch":
            found["notch_hz"] = step.get("frequency_hz")
    return found


def words_of(band: dict[str, float | None]) -> str:
    """A band as text."""
    return ", ".join(f"{k.removesuffix('_hz')} {v:g} Hz" for k, v in band.items() if v) or "no filter"


def _short(steps: Sequence[Any]) -> str:
    return ", ".join(
        " ".join([name, *(f"{value:g} Hz" for word, value in (given or {}).items() if word.endswith("_hz"))])
        for step in steps for name, given in (step.items() if isinstance(step, dict) else [(step, None)])
    )  # fmt: skip
