"""EEG: scalp potentials in volt."""

from __future__ import annotations

import numpy as np

from brainfm.modalities import head
from brainfm.modalities.filters import condition
from brainfm.recording import Channels, Recording

UNIT = "V"

TEN_TWENTY = [
    "Fp1", "Fp2", "F7", "F3", "Fz", "F4", "F8", "T7", "C3", "Cz", "C4", "T8",
    "P7", "P3", "Pz", "P4", "P8", "O1", "O2",
]  # fmt: skip
EASYCAP28 = [
    "Fp1", "Fp2", "F7", "F3", "Fz", "F4", "F8", "FC5", "FC1", "FC2", "FC6", "T7", "C3", "C4", "T8",
    "TP9", "CP5", "CP1", "CP2", "CP6", "TP10", "P7", "P3", "Pz", "P4", "P8", "O1", "O2",
]  # fmt: skip

#: Caps of the simulator: MNE template, electrodes (None for all) and the electrodes of the reference, which are not
#: recorded; none of them for the common average.
MONTAGES = {
    "ten-twenty": ("easycap-M1", [*TEN_TWENTY, "TP9", "TP10"], ("TP9", "TP10")),
    "biosemi32": ("biosemi32", None, ()),
    "easycap28": ("easycap-M1", [*EASYCAP28, "Cz"], ("Cz",)),
}

#: Notch, band-pass and resample, in that order and each segment by itself; the reference is kept.
clean = condition


def simulate(
    rng: np.random.Generator,
    *,
    montage: str = "ten-twenty",
    dataset: str = "simulated",
    subject: str = "s01",
    session: str = "",
    person: head.Person | None = None,
    trials: int = 60,
    trial_s: float = 2.0,
    pause_s: float = 1.0,
    sfreq_hz: float = 128.0,
    effect: float = 1.0,
    blinks_per_min: float = 6.0,
) -> Recording:
    """A session of imagining the left or the right hand, seen through one of the `MONTAGES`.

    Args:
        montage: which electrodes and which reference; a word of `MONTAGES`.
        dataset, subject, session: ids of the recording.
        person: whose head and rhythms; drawn from `rng` where None.
        trials: of both hands together.
        trial_s, pause_s: length of a trial and of the rest after it.
        sfreq_hz: samples per second.
        effect: scales what depends on the label; 0 leaves no trace of it.
        blinks_per_min: blinks of the eyes.

    Raises:
        ValueError: for an unknown montage.
    """
    if montage not in MONTAGES:
        raise ValueError(f"unknown EEG montage {montage!r}; expected one of {', '.join(MONTAGES)}")
    template, names, reference = MONTAGES[montage]
    person = head.draw_person(rng) if person is None else person
    names, directions = head.cap(names, template)
    directions = directions + rng.normal(0, 0.03, directions.shape)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    info = head.eeg_info(names, directions, person, sfreq_hz)
    position, moment = head.dipoles(person)
    field = head.leadfield(info, person, position, moment)
    field = field - field[[names.index(name) for name in reference or names]].mean(0)
    kept = [i for i, name in enumerate(names) if name not in reference]
    events, duration = head.trial_events(rng, trials, trial_s, pause_s)
    samples = round(duration * sfreq_hz)
    course = head.source_courses(rng, person, events, samples, sfreq_hz, effect, blinks_per_min)
    signal = field[kept] @ course + 1e-6 * rng.standard_normal((len(kept), samples))
    hum = np.sin(2 * np.pi * 50 * np.arange(samples) / sfreq_hz + rng.uniform(0, 2 * np.pi))
    signal += 5e-7 * rng.standard_normal((len(kept), 1)) * hum
    place = np.array([info["chs"][i]["loc"][:3] for i in kept])
    recording = Recording(
        dataset=dataset,
        subject=subject,
        session=session,
        modality="eeg",
        device=montage,
        channels=Channels.make([names[i] for i in kept], "eeg", place),
        sfreq=sfreq_hz,
        signal=person.gain * signal,
        events=events,
        truth={"dipole_position": position, "dipole_moment": moment, "leadfield": field[kept]},
        simulated=True,
    )
    recording.note("simulate", montage=montage, reference=list(reference) or "average", effect=effect)
    return recording
