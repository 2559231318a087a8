"""MEG: magnetic fields outside the head, in tesla (planar gradiometers in T/m)."""

from __future__ import annotations

import numpy as np

from brainfm.modalities import head
from brainfm.modalities.filters import condition
from brainfm.recording import Channels, Recording

UNIT = "T"

#: Notch, band-pass and resample, in that order and each segment by itself.
clean = condition


def simulate(
    rng: np.random.Generator,
    *,
    array: str = "magnetometers",
    dataset: str = "simulated",
    subject: str = "s01",
    session: str = "",
    person: head.Person | None = None,
    trials: int = 60,
    trial_s: float = 2.0,
    pause_s: float = 1.0,
    sfreq_hz: float = 128.0,
    effect: float = 1.0,
    blinks_per_min: float = 3.0,
) -> Recording:
    """A session of imagining the left or the right hand, seen by one of the sensor arrays of `head.ARRAYS`.

    Args:
        array: which sensors; a word of `head.ARRAYS`.
        dataset, subject, session: ids of the recording.
        person: whose head and rhythms; drawn from `rng` where None.
        trials: of both hands together.
        trial_s, pause_s: length of a trial and of the rest after it.
        sfreq_hz: samples per second.
        effect: scales what depends on the label; 0 leaves no trace of it.
        blinks_per_min: blinks of the eyes.

    Raises:
        ValueError: for an unknown array.
    """
    person = head.draw_person(rng) if person is None else person
    info = head.meg_info(array, person, sfreq_hz)
    position, moment = head.dipoles(person)
    field = head.leadfield(info, person, position, moment)
    events, duration = head.trial_events(rng, trials, trial_s, pause_s)
    samples = round(duration * sfreq_hz)
    course = head.source_courses(rng, person, events, samples, sfreq_hz, effect, blinks_per_min)
    noise = head.ARRAYS[array][3]
    signal = field @ course + noise * rng.standard_normal((len(field), samples))
    hum = np.sin(2 * np.pi * 50 * np.arange(samples) / sfreq_hz + rng.uniform(0, 2 * np.pi))
    signal += noise * rng.standard_normal((len(field), 1)) * hum
    location = np.array([channel["loc"] for channel in info["chs"]])
    shift = info["dev_head_t"]["trans"][:3, 3]
    kind = {"magnetometers": "mag", "planar": "grad", "axial": "axial"}[array]
    recording = Recording(
        dataset=dataset,
        subject=subject,
        session=session,
        modality="meg",
        device=array,
        channels=Channels.make(info["ch_names"], kind, location[:, :3] + shift, location[:, 9:12]),
        sfreq=sfreq_hz,
        signal=person.gain * signal,
        events=events,
        truth={"dipole_position": position, "dipole_moment": moment, "leadfield": field},
        simulated=True,
    )
    recording.note("simulate", array=array, effect=effect)
    return recording
