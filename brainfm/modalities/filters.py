"""Notch, band and resampling as one zero-phase filter that streams: MNE's filters, applied in blocks of the FFT.

The taps are MNE's own (`mne.filter.create_filter`). They are convolved into one kernel, and the kernel is applied by
overlap-save: a block of the signal is transformed, multiplied, cut to the bins below the new Nyquist frequency and
transformed back at the shorter length, which resamples it for nothing. A block needs no other block, so any stretch of
the result can be asked for, and memory does not grow with the recording.

The result is MNE's. Without a change of rate it is so to rounding, at the ends of segments too, since both reflect
oddly there. With one it differs by 1e-6 to 1.5e-5 of the spread for signals that fall off with frequency as a brain's
do; all of that lies within half a hertz of the new Nyquist frequency, where MNE's own result moves by more when its
padding changes (`tests/modalities/test_filters.py`). Two things of MNE's are not followed: its default padding shifts
the result by up to half a sample where the padded length times the ratio is not whole, and it does not guard against
aliasing where no low-pass is declared.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import scipy.fft
from scipy.signal import fftconvolve, resample_poly

from brainfm.recording import Recording, Signal

#: Channels that one FFT call transforms together: enough for the processor's vectors, few enough for its cache.
ROWS = 8
#: Samples of an FFT block, where nothing else speaks for another length.
BLOCK = 25 << 11  # a power of two would put the rows of a block on the same cache lines: a third slower
#: A low-pass against aliasing passes up to this share of the Nyquist frequency and stops at it.
PASSED = 0.9


def rational(new: float, old: float) -> Fraction:
    """The ratio `new / old` of two sampling rates as whole numbers.

    Raises:
        ValueError: where no ratio of numbers up to 1000 is within one part in a million of it.
    """
    ratio = Fraction(new / old).limit_denominator(1000)
    if new <= 0 or ratio == 0 or abs(float(ratio) * old / new - 1) > 1e-6:
        raise ValueError(
            f"cannot resample from {old:g} Hz to {new:g} Hz by a ratio of whole numbers; choose a rounder rate"
        )
    return ratio


def resample(signal: np.ndarray, ratio: Fraction) -> np.ndarray:
    """Polyphase resampling of `(channel, time)` in memory to `ceil(time * ratio)` samples; the trend is kept."""
    if ratio == 1:
        return signal
    return resample_poly(signal, ratio.numerator, ratio.denominator, axis=-1, padtype="line")


def _has_ratio(new: float, old: float) -> bool:
    try:
        rational(new, old)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Kernel:
    """A zero-phase filter and the change of rate behind it.

    Attributes:
        taps: `(2 * half + 1,)` symmetric coefficients at the old rate.
        ratio: new rate over old.
        longest: samples of the longest of the filters that it is made of; a segment must hold it.
        steps: what it does, as lines of the provenance.
    """

    taps: np.ndarray
    ratio: Fraction
    longest: int
    steps: tuple[dict, ...] = ()

    @property
    def half(self) -> int:
        """Samples of the old rate to either side that a sample of the result depends on."""
        return len(self.taps) // 2


def design(
    sfreq: float,
    sfreq_hz: float | None = None,
    highpass_hz: float | None = None,
    lowpass_hz: float | None = None,
    notch_hz: float | None = None,
) -> Kernel:
    """Design notch, band-pass and resampling as one kernel; arguments as in `condition`.

    Where the low-pass does not end below the Nyquist frequency of the lower rate, a low-pass against aliasing is added.
    """
    import mne

    ratio = rational(sfreq_hz or sfreq, sfreq)
    parts, steps = [], []

    def add(low: object, high: object, **more: object) -> None:
        parts.append(mne.filter.create_filter(None, sfreq, low, high, verbose="error", **more))

    if notch_hz:
        lines = np.arange(notch_hz, sfreq / 2 - 1, notch_hz)
        if len(lines):  # widths and transitions as `mne.filter.notch_filter` takes them
            edge = lines / 400 + 0.5
            add(lines + edge, lines - edge, l_trans_bandwidth=0.5, h_trans_bandwidth=0.5)
            steps.append({"step": "notch", "frequency_hz": notch_hz, "harmonics": True, "mne": mne.__version__})
    if highpass_hz or lowpass_hz:
        add(highpass_hz, lowpass_hz)
        band = {"highpass_hz": highpass_hz, "lowpass_hz": lowpass_hz, "phase": "zero", "mne": mne.__version__}
        steps.append({"step": "band", **band})
    if ratio != 1:
        nyquist = min(sfreq, sfreq_hz or sfreq) / 2
        stops = lowpass_hz + min(max(0.25 * lowpass_hz, 2.0), sfreq / 2 - lowpass_hz) if lowpass_hz else np.inf
        if stops > nyquist + 1e-9:
            passed = min(max(lowpass_hz or 0.0, PASSED * nyquist), 0.97 * nyquist)
            add(None, passed, h_trans_bandwidth=nyquist - passed)
            steps.append({"step": "antialias", "lowpass_hz": passed, "stop_hz": nyquist, "mne": mne.__version__})
        up_down = {
            "from_hz": sfreq,
            "to_hz": float(sfreq_hz or sfreq),
            "up": ratio.numerator,
            "down": ratio.denominator,
        }
        steps.append({"step": "resample", **up_down})
    taps = np.ones(1)
    for part in parts:
        taps = fftconvolve(taps, np.asarray(part, float)) if len(taps) > 1 else np.asarray(part, float)
    return Kernel(taps, ratio, max(map(len, parts), default=1), tuple(steps))


@dataclass(frozen=True)
class Filtered:
    """A signal behind a kernel, computed when it is sliced: `filtered[:, a:b]` are samples a to b of the result.

    Attributes:
        source: the signal before.
        kernel: what is applied.
        pieces: `(start, stop, first, last)` of each segment: samples of the source, and where they come to lie.
        samples: length of the result; what lies outside the pieces is zero.
    """

    source: np.ndarray | Signal
    kernel: Kernel
    pieces: tuple[tuple[int, int, int, int], ...]
    samples: int
    _spectra: dict[int, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """`(channels, samples)`."""
        return len(self.source), self.samples

    def __len__(self) -> int:
        return len(self.source)

    @property
    def dtype(self) -> np.dtype:
        """float64 for a signal of float64 in memory, else float32."""
        precise = isinstance(self.source, np.ndarray) and self.source.dtype == np.float64
        return np.dtype(np.float64 if precise else np.float32)

    @property
    def block(self) -> int:
        """Samples of the result that one FFT block gives."""
        length, margin = self._lengths(BLOCK)
        return int((length - 2 * margin) * self.kernel.ratio)

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        rows, columns = key
        start, stop, _ = columns.indices(self.samples)
        whole = any(first <= start and stop <= last for _, _, first, last in self.pieces)
        out = (np.empty if whole else np.zeros)((len(self.source), max(0, stop - start)), self.dtype)
        for piece in self.pieces:
            low, high = max(start, piece[2]), min(stop, piece[3])
            if low < high:
                self._fill(out[:, low - start : high - start], piece, low - piece[2])
        return out[rows]

    def __reduce__(self) -> tuple:
        return Filtered, (self.source, self.kernel, self.pieces, self.samples)

    def _lengths(self, samples: int) -> tuple[int, int]:
        """Samples of an FFT block for a stretch of `samples`, and those at either end of it that are not valid."""
        down = self.kernel.ratio.denominator
        margin = -(-self.kernel.half // down) * down
        wanted = min(max(BLOCK, 8 * margin), samples + 2 * margin)
        return down * scipy.fft.next_fast_len(-(-wanted // down), real=True), margin

    def _fill(self, out: np.ndarray, piece: tuple[int, int, int, int], first: int) -> None:
        """Write the samples of a piece from its `first` one on, block by block."""
        up, down = self.kernel.ratio.numerator, self.kernel.ratio.denominator
        begin = first // up * up  # the nearest sample before that falls on one of the source
        length, margin = self._lengths((first - begin + out.shape[1]) * down // up + 2 * down)
        hop = (length - 2 * margin) // down * up
        for at in range(begin, first + out.shape[1], hop):
            source = at // up * down - margin
            low, high = max(at, first), min(at + hop, first + out.shape[1])
            block = self._padded(piece[0], piece[1], source, source + length)
            self._apply(block, margin // down * up + low - at, out[:, low - first : high - first])

    def _padded(self, start: int, stop: int, low: int, high: int) -> np.ndarray:
        """Samples `low` to `high` counted from a segment's start, reflected oddly about its ends, then constant."""
        n = stop - start
        inside = max(low, 0), min(high, n)
        first, last = inside
        if low < 0:
            first, last = 0, max(last, min(n, 1 - low))
        if high > n:
            first, last = min(first, max(0, 2 * n - 1 - high)), n
        taken = self.source[:, start + first : start + last]
        if (first, last) == (low, high):
            return taken
        out = np.empty((len(taken), high - low), taken.dtype)
        out[:, inside[0] - low : inside[1] - low] = taken[:, inside[0] - first : inside[1] - first]
        if low < 0:
            index = np.minimum(np.arange(-low, 0, -1), n - 1) - first
            out[:, :-low] = 2 * taken[:, :1] - taken[:, index]
        if high > n:
            index = np.maximum(2 * n - 2 - np.arange(n, high), 0) - first
            out[:, n - low :] = 2 * taken[:, -1:] - taken[:, index]
        return out

    def _apply(self, block: np.ndarray, lead: int, out: np.ndarray) -> None:
        """A block through the kernel and to the new rate; `out` takes what comes `lead` samples after its start.

        Where a channel lies far off zero, its offset goes beside the FFT, whose digits it would eat.
        """
        length = block.shape[1]
        samples = length // self.kernel.ratio.denominator * self.kernel.ratio.numerator
        spectrum, gain = self._spectrum(length), self.kernel.taps.sum()
        bins = min(length, samples) // 2 + 1
        for first in range(0, len(block), ROWS):
            rows = block[first : first + ROWS]
            some = rows[:, ::64]
            mean = some.mean(axis=1, keepdims=True, dtype=np.float64).astype(rows.dtype)
            far = bool((np.abs(mean) > 2 * np.abs(some - mean).mean(axis=1, keepdims=True)).any())
            rows = rows - mean if far else rows
            bands = scipy.fft.rfft(rows.astype(self.dtype, copy=False), axis=1)[:, :bins]
            bands.view(self.dtype)[...] *= spectrum[: 2 * bins]
            part = scipy.fft.irfft(bands, samples, axis=1, overwrite_x=True)[:, lead : lead + out.shape[1]]
            if far:
                np.add(part, mean * gain, out=out[first : first + ROWS], casting="same_kind")
            else:
                out[first : first + ROWS] = part

    def _spectrum(self, length: int) -> np.ndarray:
        """`(2 * bin,)` the kernel's spectrum, which is real, at a block's length: each bin twice, for its two parts."""
        if length not in self._spectra:
            half, wide = self.kernel.half, np.zeros(length)
            wide[: half + 1] = self.kernel.taps[half:]
            wide[length - half :] = self.kernel.taps[:half]
            spectrum = scipy.fft.rfft(wide).real * float(self.kernel.ratio)
            self._spectra[length] = np.repeat(spectrum, 2).astype(self.dtype)
        return self._spectra[length]


def _check(rec: Recording, sfreq: float, new: float | None, highpass: float | None, lowpass: float | None) -> None:
    top = min(sfreq, new or sfreq) / 2
    for name, value in (("highpass_hz", highpass), ("lowpass_hz", lowpass)):
        if value is not None and not 0 < value < top:
            raise ValueError(
                f"{rec.id}: {name} is {value:g}; expected above 0 and below {top:g} Hz, half of the sampling rate: "
                f"change {name} or sfreq_hz"
            )
    if highpass and lowpass and highpass >= lowpass:
        raise ValueError(f"{rec.id}: highpass_hz {highpass:g} is not below lowpass_hz {lowpass:g}; swap or change them")


def condition(
    recording: Recording,
    *,
    sfreq_hz: float | None = None,
    highpass_hz: float | None = None,
    lowpass_hz: float | None = None,
    notch_hz: float | None = None,
) -> Recording:
    """Notch, band-pass and resample as one filter, every channel and each segment by itself: nothing crosses a break.

    A signal that lies in a file stays there: the result is computed when it is read. An array gives an array. A new
    rate that is no ratio of whole numbers to the old one is left to `mne.filter.resample`, with a segment in memory.
    Segments shorter than the longest filter are dropped from `segments` where others are long enough (time goes
    on, samples outside segments are zero) and counted in the provenance.

    Args:
        recording: with a signal; it is left as it is.
        sfreq_hz: new samples per second; None keeps the rate.
        highpass_hz, lowpass_hz: half-amplitude band edges; None leaves that side open.
        notch_hz: power line frequency; it and its multiples are removed. None for no notch.

    Returns:
        A new recording whose provenance names every step with its parameters.

    Raises:
        ValueError: for edges outside the band, or where no segment is long enough for the filters.
    """
    signal, sfreq = recording.signal, recording.sfreq
    if signal is None or sfreq is None or recording.segments is None:
        raise ValueError(f"{recording.id}: no signal to filter; this cleaning is for sampled signals")
    _check(recording, sfreq, sfreq_hz, highpass_hz, lowpass_hz)
    if sfreq_hz and not _has_ratio(sfreq_hz, sfreq):
        return _resampled_by_mne(condition(
            recording, highpass_hz=highpass_hz, lowpass_hz=lowpass_hz, notch_hz=notch_hz
        ), sfreq_hz)  # fmt: skip
    kernel = design(sfreq, sfreq_hz, highpass_hz, lowpass_hz, notch_hz)
    ratio, need = kernel.ratio, max(kernel.longest, kernel.half + 1, 2)
    kept = [(int(a), int(b)) for a, b in recording.segments if b - a >= need]
    if not kept:
        longest = max((int(b - a) for a, b in recording.segments), default=0)
        raise ValueError(
            f"{recording.id}: the filters need segments of {need / sfreq:.2f} s; the longest has "
            f"{longest / sfreq:.2f} s: raise highpass_hz, or set it and notch_hz to null"
        )
    samples = round(signal.shape[1] * ratio)
    ends = [(round(a * ratio), min(round(b * ratio), samples)) for a, b in kept]
    pieces = tuple((*source, *target) for source, target in zip(kept, ends, strict=True))
    filtered = Filtered(signal, kernel, pieces, samples) if kernel.steps else signal
    done = replace(
        recording,
        signal=filtered[:, 0:samples] if isinstance(signal, np.ndarray) else filtered,
        sfreq=float(sfreq_hz or sfreq),
        segments=np.array(ends),
        duration=recording.duration if recording.spike_time is not None else 0.0,
        provenance=copy.deepcopy(recording.provenance),
        reach_s=recording.reach_s + kernel.half / sfreq,
    )
    done.provenance["steps"] += copy.deepcopy(list(kernel.steps))
    if dropped := len(recording.segments) - len(kept):
        done.note("drop_segments", count=dropped, shorter_than_s=need / sfreq)
    return done


def _resampled_by_mne(recording: Recording, sfreq_hz: float) -> Recording:
    """The fallback for rates without a ratio: each segment as a whole through the FFT, as MNE resamples."""
    import mne

    signal, sfreq = recording.signal, recording.sfreq
    if signal is None or sfreq is None or recording.segments is None:
        return recording
    ratio = sfreq_hz / sfreq
    out = np.zeros((len(signal), round(signal.shape[1] * ratio)))
    segments = []
    for start, stop in recording.segments:
        piece = np.asarray(signal[:, int(start) : int(stop)], np.float64)
        piece = mne.filter.resample(piece, up=sfreq_hz, down=sfreq, verbose="error")
        first = round(start * ratio)
        last = min(first + piece.shape[1], round(stop * ratio), out.shape[1])
        out[:, first:last] = piece[:, : last - first]
        segments.append((first, last))
    done = replace(
        recording, signal=out, sfreq=float(sfreq_hz), segments=np.array(segments), duration=0.0,
        provenance=copy.deepcopy(recording.provenance), reach_s=recording.duration,
    )  # fmt: skip
    done.note("resample", from_hz=sfreq, to_hz=float(sfreq_hz), method="mne.filter.resample", mne=mne.__version__)
    return done
