"""Intracranial EEG in volt: contacts of depth electrodes (sEEG) in the brain, or grids on its surface (ECoG)."""

from __future__ import annotations

import numpy as np

from brainfm.modalities import head
from brainfm.modalities.filters import condition
from brainfm.recording import Channels, Events, Recording

UNIT = "V"

#: Share of the scalp's radius at which the brain ends; the sources lie beneath, at `head.SOURCE_SHELL`.
SURFACE = 0.85
#: Kinds of implant, the words of their channels.
IMPLANTS = ("seeg", "ecog")
#: Conductivity of the brain, S/m, and how near a contact can come to a source, m: a patch of cortex is no point.
CONDUCTIVITY, NEAREST = 0.33, 0.004
#: Distance from the hand area's source within which a contact is said to lie in motor cortex, m.
MOTOR_REACH = 0.015

#: Notch, band-pass and resample, in that order and each segment by itself; the reference is kept.
clean = condition


def simulate(
    rng: np.random.Generator,
    *,
    implant: str = "seeg",
    dataset: str = "simulated",
    subject: str = "s01",
    session: str = "",
    person: head.Person | None = None,
    trials: int = 60,
    trial_s: float = 2.0,
    pause_s: float = 1.0,
    sfreq_hz: float = 512.0,
    effect: float = 1.0,
) -> Recording:
    """A session of imagining the left or the right hand, from electrodes in or on the brain.

    Sources and their slow rhythms are those of `head`; beside them, high gamma (70 to 150 Hz) of each motor cortex
    grows while the opposite hand is imagined. Potentials are those of dipoles in a conductor without end. Each implant
    is drawn anew, so no two subjects share it: 6 to 9 shafts, two of them aimed at the hand areas, or a grid of 8 x 8
    over one of them.

    Args:
        implant: "seeg" or "ecog".
        dataset, subject, session: ids of the recording.
        person: whose head and rhythms; drawn from `rng` where None.
        trials: of both hands together.
        trial_s, pause_s: length of a trial and of the rest after it.
        sfreq_hz: samples per second; high gamma needs 300 or more.
        effect: scales what depends on the label; 0 leaves no trace of it.

    Returns:
        Potentials against their average; in `truth` "dipole_position", "dipole_moment" and "leadfield"
        `(channel, dipole)` in V per A m.

    Raises:
        ValueError: for an unknown implant, or a rate that is too low for high gamma.
    """
    if implant not in IMPLANTS:
        raise ValueError(f"unknown implant {implant!r}; expected one of {', '.join(IMPLANTS)}")
    if sfreq_hz < 300:
        raise ValueError(f"sfreq_hz is {sfreq_hz:g}; high gamma up to 150 Hz needs 300 or more; resample later")
    person = head.draw_person(rng) if person is None else person
    source, moment = head.dipoles(person)
    names, place = shafts(rng, person, source[:2]) if implant == "seeg" else grid(rng, person, source[:2])
    field = potential(place, source, moment)
    field = field - field.mean(0)
    events, duration = head.trial_events(rng, trials, trial_s, pause_s)
    samples = round(duration * sfreq_hz)
    course = head.source_courses(rng, person, events, samples, sfreq_hz, effect)
    course[4] = 0
    course[:2] += high_gamma(rng, person, events, samples, sfreq_hz, effect)
    signal = field @ course + 2e-6 * rng.standard_normal((len(names), samples))
    hum = np.sin(2 * np.pi * 50 * np.arange(samples) / sfreq_hz + rng.uniform(0, 2 * np.pi))
    signal += 2e-6 * rng.standard_normal((len(names), 1)) * hum
    near = np.linalg.norm(place[:, None] - source[:2], axis=2).min(1) < MOTOR_REACH
    recording = Recording(
        dataset=dataset,
        subject=subject,
        session=session,
        modality="ieeg",
        device=implant,
        channels=Channels.make(
            names,
            implant,
            place,
            area=["motor cortex" if there else "" for there in near],
            reference="average",
            placed="simulated",
        ),
        sfreq=sfreq_hz,
        signal=person.gain * signal,
        events=events,
        truth={"dipole_position": source, "dipole_moment": moment, "leadfield": field},
        simulated=True,
    )
    recording.note("simulate", implant=implant, reference="average", effect=effect)
    return recording


def potential(place: np.ndarray, source: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """What each contact at `place` `(channel, 3)` sees of 1 A m in each dipole, `(channel, dipole)` in V.

    The medium is homogeneous and without end; no contact is nearer to a dipole than `NEAREST`.
    """
    apart = place[:, None] - source[None]
    distance = np.linalg.norm(apart, axis=2)
    along = np.einsum("cdk,dk->cd", apart, moment) / np.maximum(distance, 1e-12)
    return along / (4 * np.pi * CONDUCTIVITY * np.maximum(distance, NEAREST) ** 2)


def high_gamma(
    rng: np.random.Generator, person: head.Person, events: Events, samples: int, sfreq: float, effect: float
) -> np.ndarray:
    """Moments of 70 to 150 Hz noise of the left and right motor cortex, `(2, time)` in A m.

    Its amplitude wanders slowly by itself. From 0.2 s after a trial of the opposite hand begins until its end it is
    half as large again (with `effect` 1).
    """
    frequency = np.fft.rfftfreq(samples, 1 / sfreq)
    course = 0.1 * person.mu * head.coloured(rng, 2, samples, ((frequency > 70) & (frequency < 150)).astype(float))
    course *= np.exp(0.3 * head.coloured(rng, 2, samples, np.exp(-0.5 * (frequency / 0.5) ** 2)))
    time = np.arange(samples) / sfreq
    for onset, length, label in zip(events.onset, events.duration, events.label):
        during = (time >= onset + 0.2) & (time < onset + length)
        course[0 if label == "right" else 1, during] *= 1 + 0.5 * effect
    return course


def shafts(rng: np.random.Generator, person: head.Person, hand: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Depth electrodes: straight lines of 8 to 14 contacts 3.5 mm apart, from the brain's surface inwards.

    Args:
        hand: `(2, 3)` the sources of the left and right hand area, m; the first two shafts pass within some mm of them.

    Returns:
        contact names such as "A1", counted from the tip, and `(channel, 3)` places in m, head frame.
    """
    radius, names, place = SURFACE * person.radius, [], []
    for shaft in range(int(rng.integers(6, 10))):
        if shaft < 2:
            out = hand[shaft] - person.origin + rng.normal(0, 0.003, 3)
        else:
            out = rng.normal(size=3) * [1.0, 0.8, 0.5] + [0, 0, 0.3]
        entry = person.origin + radius * out / np.linalg.norm(out)
        # Towards a point well off the centre, so that shafts cross the brain at different angles.
        inwards = person.origin + rng.uniform(-0.35, 0.35, 3) * radius - entry
        inwards /= np.linalg.norm(inwards)
        contacts = int(rng.integers(8, 15))
        depth = 0.002 + 0.0035 * np.arange(contacts)[::-1]
        names += [f"{chr(ord('A') + shaft)}{i + 1}" for i in range(contacts)]
        place.append(entry + depth[:, None] * inwards)
    return names, np.concatenate(place)


def grid(rng: np.random.Generator, person: head.Person, hand: np.ndarray) -> tuple[list[str], np.ndarray]:
    """A grid of 8 x 8 contacts 6 mm apart on the brain's surface, over the left or the right hand area.

    Args:
        hand: `(2, 3)` the sources of the left and right hand area, m; the grid lies over one, off by up to 8 mm.

    Returns:
        names "G1" to "G64" in rows, and `(channel, 3)` places in m, head frame.
    """
    centre = hand[int(rng.integers(2))] - person.origin
    normal = centre / np.linalg.norm(centre)
    first = np.cross(normal, rng.normal(size=3))
    first /= np.linalg.norm(first)
    axes = np.stack([first, np.cross(normal, first)])
    offset = rng.uniform(-0.008, 0.008, 2)
    at = 0.006 * (np.indices((8, 8)).reshape(2, -1).T - 3.5) + offset
    flat = SURFACE * person.radius * normal + at @ axes
    return [f"G{i + 1}" for i in range(64)], person.origin + SURFACE * person.radius * flat / np.linalg.norm(
        flat, axis=1, keepdims=True
    )
