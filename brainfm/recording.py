"""One whole session of brain data in numpy and SI units: what every dataset yields and every shard holds.

Everything left of the shards speaks this type. It knows nothing of files, windows or models.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

#: Kinds of channel, in the order of their codes in shards and batches. "axial" is an axial gradiometer, "grad" a
#: planar one.
KINDS = ("eeg", "mag", "grad", "axial", "ecog", "seeg", "region", "neuron", "misc")

#: The physical unit that a channel of each kind is kept in (SI, as in MNE; "1" is dimensionless).
UNITS = {
    "eeg": "V", "mag": "T", "grad": "T/m", "axial": "T", "ecog": "V", "seeg": "V",
    "region": "1", "neuron": "spikes", "misc": "1",
}  # fmt: skip

#: A typical amplitude of each kind in its unit. Batches divide by it, so that numbers are near one on any device
#: without a statistic that could carry a label from one recording's class balance into its scale.
TYPICAL = {
    "eeg": 1e-5, "mag": 1e-12, "grad": 2e-11, "axial": 1e-12, "ecog": 1e-4, "seeg": 1e-4,
    "region": 1.0, "neuron": 1.0, "misc": 1.0,
}  # fmt: skip


#: Names of covariates that are the activity of the neurons themselves, in another form than the signal or the events.
#: No model is told of them: what it reads or predicts as behaviour would be what it is shown.
ACTIVITY = ("dff", "event_amplitude", "deconvolved")

#: Where a channel's position came from, in the order of trust.
PLACED = ("file", "montage", "midpoint", "simulated", "unknown")

#: What became of a channel of the file on its way into the recording.
FATES = ("kept", "renamed", "rescaled", "unplaced", "bad", "interpolated", "dropped")


@runtime_checkable
class Signal(Protocol):
    """Samples `(channel, time)` that may still lie in a file: an array, or anything that is sliced like one.

    `signal[:, a:b]` gives samples a to b as an array of float32 or float64 in SI units, and nothing else is read. A
    signal may also say with an attribute `block` how many samples at a time are cheapest to ask for. It can be
    pickled, and opens its file when it is first sliced.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """`(channels, samples)`."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray: ...


@dataclass(frozen=True)
class ChannelNote:
    """One line of a recording's channel log: what became of a channel of the file.

    Attributes:
        found: the name in the file. name: the name in the recording, "" where it was dropped.
        fate: a word of `FATES`. detail: why, in words.
    """

    found: str
    name: str
    fate: str
    detail: str = ""

    def __post_init__(self) -> None:
        if self.fate not in FATES:
            raise ValueError(f"fate {self.fate!r} of channel {self.found!r}; expected one of {', '.join(FATES)}")


@dataclass(frozen=True)
class Normaliser:
    """Centre and scale of each channel, kept beside the signal, which stays in SI units.

    Attributes:
        centre, scale: `(channel,)` in the channel's unit; `(x - centre) / scale` is the normalised signal.
        statistic: what they are, for example "median and interquartile range / 1.349".
        fitted_on: the data that they were computed from, in words.
    """

    centre: np.ndarray
    scale: np.ndarray
    statistic: str
    fitted_on: str


@dataclass
class Channels:
    """The channel table of a recording: one row per sensor, region or neuron.

    Attributes:
        name: `n` names as the field writes them (10-20 names, "MEG 0113", atlas regions, neuron ids).
        kind: `n` words of `KINDS`.
        position: `(channel, 3)` in metres, head frame (MNI for regions); NaN where unknown.
        orientation: `(channel, 3)` unit vectors of the coil; zero for kinds that have none.
        bad: `(channel,)` True where the channel is to be ignored.
        area: `n` brain areas for neurons and implanted electrodes, "" where unknown.
        unit: `n` physical units of the signal, `UNITS` of the kind unless said otherwise (dF/F of a neuron is "1").
        reference: `n` words for what potentials are measured against ("average", "Cz", "linked ears"); "" if unknown.
        placed: `n` words of `PLACED`: where the position came from.
        held_out: `(channel,)` True for neurons that the dataset keeps for testing, to be predicted from the others;
            None where it does not say.
    """

    name: list[str]
    kind: list[str]
    position: np.ndarray
    orientation: np.ndarray
    bad: np.ndarray
    area: list[str]
    unit: list[str]
    reference: list[str]
    placed: list[str]
    held_out: np.ndarray | None = None

    @classmethod
    def make(
        cls,
        name: list[str],
        kind: str | list[str],
        position: np.ndarray | None = None,
        orientation: np.ndarray | None = None,
        area: list[str] | None = None,
        unit: str | list[str] | None = None,
        reference: str | list[str] = "",
        placed: str | list[str] | None = None,
    ) -> Channels:
        """Build a table from names and what is known; unknown positions become NaN.

        One word stands for all channels. Given positions are "file" unless `placed` says otherwise, NaN is "unknown".

        Raises:
            ValueError: for a kind that is not in `KINDS`, a repeated name or arrays of another length.
        """
        n = len(name)
        kinds = [kind] * n if isinstance(kind, str) else list(kind)
        unknown = sorted(set(kinds) - set(KINDS))
        if unknown:
            raise ValueError(f"unknown channel kind {unknown[0]!r}; expected one of {', '.join(KINDS)}")
        if len(set(name)) != n:
            repeated = next(x for x in name if name.count(x) > 1)
            raise ValueError(
                f"channel name {repeated!r} stands twice; rename one of them before building the recording"
            )
        position = np.full((n, 3), np.nan) if position is None else np.asarray(position, float)
        orientation = np.zeros((n, 3)) if orientation is None else np.asarray(orientation, float)
        if not (len(kinds) == n and position.shape == orientation.shape == (n, 3)):
            raise ValueError(
                f"got {n} channel names, {len(kinds)} kinds, positions {position.shape} and orientations "
                f"{orientation.shape}; expected {n} kinds and (channel, 3) arrays of {n} rows"
            )
        units = [UNITS[k] for k in kinds] if unit is None else _each(unit, n, "units")
        known = np.isfinite(position).all(axis=1)
        given = _each("file" if placed is None else placed, n, "words of `placed`")
        sources = [word if there else "unknown" for word, there in zip(given, known, strict=True)]
        if wrong := sorted(set(sources) - set(PLACED)):
            raise ValueError(f"a position placed by {wrong[0]!r}; expected one of {', '.join(PLACED)}")
        return cls(
            list(name), kinds, position, orientation, np.zeros(n, bool), _each(area or "", n, "areas"), units,
            _each(reference, n, "references"), sources,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.name)

    def pick(self, index: np.ndarray | list[int]) -> Channels:
        """The rows `index`, in that order."""
        rows = [int(i) for i in index]
        return Channels(
            [self.name[i] for i in rows],
            [self.kind[i] for i in rows],
            self.position[rows],
            self.orientation[rows],
            self.bad[rows],
            [self.area[i] for i in rows],
            [self.unit[i] for i in rows],
            [self.reference[i] for i in rows],
            [self.placed[i] for i in rows],
            None if self.held_out is None else self.held_out[rows],
        )


def _each(words: str | list[str], n: int, what: str) -> list[str]:
    """`n` words, from one that stands for all or from a list."""
    each = [words] * n if isinstance(words, str) else list(words)
    if len(each) != n:
        raise ValueError(f"got {len(each)} {what} for {n} channels; expected one for each, or one for all")
    return each


#: What tables write, in lower case, where an event has no label.
NO_LABEL = frozenset({"", "n/a", "nan", "<na>"})


@dataclass
class Events:
    """What happened when: `n` rows.

    Attributes:
        onset: `(event,)` seconds from the start of the recording.
        duration: `(event,)` seconds; 0 for an instant.
        label: the condition, for example "left" or "rest".
        stimulus: what was shown or played, the same id wherever the same thing was presented; "" where there is none.
            No stimulus id may stand on both sides of a split.
        columns: what else a file says of each event, by its name there: numbers (NaN where missing) or words. Moments,
            whose names end in "_time", are seconds from the start of the recording.
    """

    onset: np.ndarray = field(default_factory=lambda: np.zeros(0))
    duration: np.ndarray = field(default_factory=lambda: np.zeros(0))
    label: list[str] = field(default_factory=list)
    stimulus: list[str] = field(default_factory=list)
    columns: dict[str, np.ndarray | list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.stimulus:
            self.stimulus = [""] * len(self.label)
        if wrong := [name for name, column in self.columns.items() if len(column) != len(self.label)]:
            raise ValueError(
                f"column {wrong[0]!r} has {len(self.columns[wrong[0]])} values for {len(self.label)} events"
            )
        if not len(self.onset) == len(self.duration) == len(self.label) == len(self.stimulus):
            raise ValueError(
                f"events need equal lengths; got {len(self.onset)} onsets, {len(self.duration)} durations, "
                f"{len(self.label)} labels, {len(self.stimulus)} stimuli"
            )

    def __len__(self) -> int:
        return len(self.label)


@dataclass
class Series:
    """A continuous covariate beside the recording: behaviour, stimulus features, paired fMRI.

    Attributes:
        values: `(time, feature)`.
        sfreq: samples per second.
        unit: physical unit of the values.
        start: time of the first sample, seconds from the start of the recording.
    """

    values: np.ndarray
    sfreq: float
    unit: str
    start: float = 0.0


@dataclass
class Recording:
    """One session of one subject: a signal, spikes, or both.

    Attributes:
        dataset: key of the dataset, the name of its file in `brainfm/datasets`.
        subject, session, run: ids without slashes; session and run may be "".
        modality: "eeg", "meg", "ieeg", "fmri", "spikes" or "calcium".
        device: the montage, array or scanner; transfer across devices is measured by this word.
        channels: the channel table; neurons for spikes.
        sfreq: samples per second of `signal` (volumes per second for fMRI); None for spikes alone.
        signal: `(channel, time)` in SI units; an array, or a `Signal` that is read from its file piece by piece.
        spike_time, spike_neuron: `(spike,)` seconds, ascending, and row of the channel table.
        duration: seconds.
        segments: `(segment, 2)` first and one-past-last sample of stretches without a break; windows never cross one.
            Of events without a signal milliseconds, and None stands for all of the recording.
        truth: ground truth of simulated data by name, for example "connectivity" `(target, source)`.
        simulated: True where no brain was recorded; shown wherever the data is shown.
        provenance: source files with sha256, and every processing step with its parameters, in order; `participant`
            where the dataset says who the subject is (age, sex, group).
        channel_log: what became of each channel of the file.
        normaliser: centre and scale of each channel, where cleaning fitted them.
        reach_s: seconds to either side of a sample that it depends on after filtering; guards of splits follow it.
        tracked: True where a neuron's name means the same neuron in every session of the subject. Sorters number units
            anew in each, so a model takes neurons of two sessions for different ones unless this is said.
    """

    dataset: str
    subject: str
    modality: str
    channels: Channels
    session: str = ""
    run: str = ""
    device: str = ""
    sfreq: float | None = None
    signal: np.ndarray | Signal | None = None
    spike_time: np.ndarray | None = None
    spike_neuron: np.ndarray | None = None
    duration: float = 0.0
    segments: np.ndarray | None = None
    events: Events = field(default_factory=Events)
    aligned: dict[str, Series] = field(default_factory=dict)
    truth: dict[str, np.ndarray] = field(default_factory=dict)
    simulated: bool = False
    provenance: dict = field(default_factory=lambda: {"files": {}, "steps": []})
    channel_log: list[ChannelNote] = field(default_factory=list)
    normaliser: Normaliser | None = None
    reach_s: float = 0.0
    tracked: bool = False

    def __post_init__(self) -> None:
        for what in (self.dataset, self.subject, self.session, self.run):
            if "/" in what:
                raise ValueError(f"id {what!r} of a recording holds a slash; use letters, digits, '-' and '_'")
        if self.signal is not None:
            if self.sfreq is None:
                raise ValueError(f"{self.id}: a signal needs sfreq (samples per second)")
            if len(self.signal.shape) != 2 or len(self.signal) != len(self.channels):
                raise ValueError(
                    f"{self.id}: signal has shape {self.signal.shape}; expected (channel, time) with "
                    f"{len(self.channels)} channels"
                )
            self.duration = self.duration or self.signal.shape[1] / self.sfreq
            if self.segments is None:
                self.segments = np.array([[0, self.signal.shape[1]]])
        if self.spike_time is not None:
            if self.spike_neuron is None or len(self.spike_neuron) != len(self.spike_time):
                raise ValueError(f"{self.id}: spikes need one neuron per spike time")
            if len(self.spike_time) and (np.any(np.diff(self.spike_time) < 0) or self.spike_time[0] < 0):
                raise ValueError(f"{self.id}: spike times must be ascending and not negative; sort them first")
            if len(self.spike_neuron) and not 0 <= self.spike_neuron.min() <= self.spike_neuron.max() < len(
                self.channels
            ):
                raise ValueError(f"{self.id}: spikes name neurons outside the table of {len(self.channels)}")

    @property
    def id(self) -> str:
        """`dataset/subject/session/run`, unique in a corpus."""
        return "/".join((self.dataset, self.subject, self.session, self.run))

    def note(self, step: str, **parameters: object) -> None:
        """Append a processing step and its parameters to the provenance."""
        self.provenance["steps"].append({"step": step, **parameters})
