"""Physical units: what one is in SI, and whether a recording's numbers can be what its unit says."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import numpy as np

from brainfm.recording import TYPICAL, UNITS, Channels, Recording

#: SI unit → names of units of that dimension and what one of them is in SI.
SCALES = {
    "V": {"V": 1.0, "mV": 1e-3, "uV": 1e-6, "nV": 1e-9},
    "T": {"T": 1.0, "nT": 1e-9, "pT": 1e-12, "fT": 1e-15},
    "T/m": {
        "T/m": 1.0, "T/cm": 1e2, "nT/m": 1e-9, "pT/m": 1e-12, "pT/cm": 1e-10, "fT/m": 1e-15, "fT/cm": 1e-13,
        "fT/mm": 1e-12,
    },
}  # fmt: skip

#: Lowest and highest amplitude that a kind of channel can have: the standard deviation, found robustly, inside two
#: seconds, of the median channel. Brain signals and the noise of raw recordings (mains, drift, unshielded MEG) lie well
#: inside; numbers off by a factor of 1,000 or more lie outside, unless the recording is unusually strong or weak.
RANGES = {
    "eeg": (2e-7, 1e-3),  # ongoing EEG has 5 to 50 uV
    "ecog": (5e-7, 5e-3),  # 20 to 200 uV, seizures some mV
    "seeg": (5e-7, 5e-3),
    "mag": (5e-15, 1e-9),  # the brain's field has 50 to 500 fT; drift outside a shielded room reaches 100 pT
    "axial": (5e-15, 1e-9),
    "grad": (1e-13, 1e-8),  # 10 to 500 fT/cm
}

#: Trials in memory that are looked at.
TRIALS = 200

#: Words for prefixes and units in errors.
PREFIXES = {"m": "milli", "u": "micro", "n": "nano", "p": "pico", "f": "femto"}
LONG = {"V": "volt", "T": "tesla"}

#: The words that errors use for the kinds.
WORDS = {"eeg": "EEG", "ecog": "ECoG", "seeg": "sEEG", "mag": "magnetometer", "axial": "axial gradiometer",
         "grad": "planar gradiometer"}  # fmt: skip


def factor(unit: str, kind: str) -> float:
    """What one `unit` is in the SI unit of a kind of channel: `factor("uV", "eeg")` is 1e-6.

    Upper and lower case, micro signs and the words "volt", "microvolt", "tesla" ... do not matter.

    Raises:
        ValueError: for a unit that is none of the kind's, with the nearest that is.
    """
    if kind not in UNITS:
        raise ValueError(f"unknown channel kind {kind!r}; expected one of {', '.join(UNITS)}")
    scales = SCALES.get(UNITS[kind], {UNITS[kind]: 1.0})
    known = {name.lower(): scale for name, scale in scales.items()}
    word = unit.strip().replace("µ", "u").replace("μ", "u").replace(" ", "").lower()
    for short, long in PREFIXES.items():
        word = word.replace(long, short)
    word = word.replace("volts", "v").replace("volt", "v").replace("tesla", "t")
    if word not in known:
        near = difflib.get_close_matches(word, known, 1, 0.0)[0]
        near = next(name for name in scales if name.lower() == near)
        raise ValueError(
            f"unit {unit!r} for {kind} channels, which are kept in {UNITS[kind]}; expected one of "
            f"{', '.join(scales)}: did you mean {near!r}?"
        )
    return known[word]


def spread(samples: int, length: int, count: int, segments: np.ndarray | None = None) -> list[tuple[int, int]]:
    """First and one-past-last sample of up to `count` windows, evenly spread over a signal, none across a break.

    Args:
        samples: of the signal. length: of a window in samples; a shorter segment gives one window of its own length.
        segments: `(segment, 2)` stretches without a break; the whole signal where None.
    """
    every = []
    for first, last in [(0, samples)] if segments is None else segments:
        first, last = int(first), min(int(last), samples)
        # Fixed window starts keep the cost of choosing among them small for a day of signal too.
        every += [(a, min(a + length, last)) for a in range(first, max(last - length, first) + 1, length) if a < last]
    rows = np.unique(np.linspace(0, len(every) - 1, min(count, len(every))).round().astype(int))
    return [every[row] for row in rows]


def amplitudes(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Standard deviation of each channel, `(block, channel)`, from interquartile ranges of blocks `(channel, time)`.

    A block whose middle half is one value (coarse steps of the digitiser) gives its plain standard deviation. 0 is a
    flat channel, NaN one with a value that is not finite.
    """
    out = []
    for block in blocks:
        block = np.asarray(block, np.float64)
        finite = np.isfinite(block).all(axis=1)
        # The mean goes first, or the rounding of a large offset would look like a signal.
        block = np.where(finite[:, None], block, 0)
        flat = block.max(axis=1) == block.min(axis=1)
        block = block - block.mean(axis=1, keepdims=True)
        low, high = np.percentile(block, [25, 75], axis=1)
        width = np.where(high > low, (high - low) / 1.349, block.std(axis=1))
        out.append(np.where(finite, np.where(flat, 0.0, width), np.nan))
    return np.array(out)


def plausible(
    recording: Recording, *, blocks: int = 20, seconds: float = 2.0, mend: str | None = None
) -> dict[str, float]:
    """Check that a recording's numbers can be in the units that its channel table says.

    Only `blocks` evenly spread stretches of the signal are read. For each kind of channel in `RANGES` their amplitude
    is the median over channels that are not marked bad, each by its median over the blocks in which it is not flat.

    Args:
        recording: in SI units, with a signal; it may be lazy.
        blocks: how many stretches. seconds: length of each.
        mend: what to do about a wrong unit, with {unit} and {factor}; to give the unit if None.

    Returns:
        Kind → amplitude in its SI unit.

    Raises:
        ValueError: for an amplitude outside of `RANGES`, with the likely factor, or where all channels of a kind are
            flat or not finite.
    """
    signal, table = recording.signal, recording.channels
    if signal is None or recording.sfreq is None:
        raise ValueError(f"{recording.id}: no signal whose unit could be checked")
    kinds = [kind for kind in RANGES if kind in table.kind]
    if not kinds or not signal.shape[1]:
        return {}
    length = max(2, round(seconds * recording.sfreq))
    parts = spread(signal.shape[1], length, blocks, recording.segments)
    if not parts:
        return {}
    width = amplitudes(signal[:, first:last] for first, last in parts)
    found = {}
    for kind in kinds:
        rows = np.array([i for i, k in enumerate(table.kind) if k == kind])
        rows = rows[~table.bad[rows]] if not table.bad[rows].all() else rows
        found[kind] = _amplitude(width[:, rows], kind, recording.id)
        low, high = RANGES[kind]
        if not low <= found[kind] <= high:
            raise ValueError(f"{recording.id}: {_implausible(found[kind], kind, mend)}")
    return found


def implausible(signal: np.ndarray, channels: Channels, mend: str | None = None, beyond: float = 1.0) -> str:
    """What is wrong with the unit of trials `(trial, channel, time)`, as `plausible` would say it; "" if nothing.

    Flat channels are left out. Up to `TRIALS` trials are looked at, evenly spread.

    Args:
        signal: in SI units, of `channels`. mend: as in `plausible`.
        beyond: by what factor an amplitude has to lie outside of `RANGES`.
    """
    rows = np.unique(np.linspace(0, len(signal) - 1, min(TRIALS, len(signal))).round().astype(int))
    width = amplitudes(signal[row] for row in rows)
    for kind in (k for k in RANGES if k in channels.kind):
        own = width[:, [i for i, k in enumerate(channels.kind) if k == kind and not channels.bad[i]]]
        if not (own > 0).any():
            continue
        found = _amplitude(own, kind, "")
        low, high = RANGES[kind]
        if not low / beyond <= found <= high * beyond:
            return _implausible(found, kind, mend)
    return ""


def _amplitude(width: np.ndarray, kind: str, where: str) -> float:
    """Median over channels of the median over blocks `(block, channel)`, without what is flat or not finite."""
    if np.isnan(width).all():
        raise ValueError(
            f"{where}: no {WORDS[kind]} channel has only finite values in any of the {len(width)} stretches that were "
            "looked at; the file or its scaling is broken"
        )
    if not np.nanmax(width) > 0:
        raise ValueError(
            f"{where}: all {width.shape[1]} {WORDS[kind]} channels are constant in all of the {len(width)} stretches "
            "that were looked at; nothing was recorded, or the file's scaling is zero"
        )
    lively = np.where(width > 0, width, np.nan)
    lively = lively[:, np.isfinite(lively).any(axis=0)]
    return float(np.median(np.nanmedian(lively, axis=0)))


def _implausible(amplitude: float, kind: str, mend: str | None) -> str:
    """What is wrong with an amplitude, and the unit that would explain it."""
    low, high = RANGES[kind]
    unit, scales = UNITS[kind], SCALES[UNITS[kind]]
    said = (
        f"signal of {amplitude:.1e} {unit} in {WORDS[kind]} channels, which have between {low:g} and {high:g} {unit}: "
    )
    # Too large: the file's numbers are in a smaller unit. Too small: they were multiplied by a unit they are not in.
    large = amplitude > high
    tries = {name: scale if large else 1 / scale for name, scale in scales.items() if scale < 1}
    tries = {name: scale for name, scale in tries.items() if low <= amplitude * scale <= high}
    if not tries:
        return said + "no other unit explains it; check the file's scaling, or whether these are such channels"
    name = min(tries, key=lambda n: abs(np.log(amplitude * tries[n] / TYPICAL[kind])))
    factor = f"1e{np.log10(tries[name]):.0f}"
    right, read = (name, unit) if large else (unit, name)
    said += f"the numbers look like {_long(right)} read as {_long(read)} (factor {factor}); "
    if mend is not None:
        return said + mend.format(unit=right, factor=factor)
    return said + (
        f"give unit={right!r}" if large else f"give the unit that the file's numbers are in, perhaps unit={right!r}"
    )


def _long(unit: str) -> str:
    """A unit in words: "uV" → "microvolt"; one of a gradient stays as it is."""
    return unit if "/" in unit else PREFIXES.get(unit[:-1], "") + LONG[unit[-1]]
