"""A simulated head: dipoles in a sphere, the sensors around it, and a brain that thinks of its left or right hand.

The physics is MNE's (three concentric conducting shells and a brain for EEG, Sarvas' formula for MEG); the time courses
are 1/f noise, an alpha rhythm, and a mu and beta rhythm over each motor cortex that weakens opposite to the hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import mne
import numpy as np
from mne.io.constants import FIFF

from brainfm.recording import Events

#: Depth of the sources: share of the scalp's radius at which they lie.
SOURCE_SHELL = 0.78

#: Directions from the centre of the head (right, front, up) of the sources that have a name.
NAMED = {
    "motor_left": (-0.60, 0.0, 0.80),
    "motor_right": (0.60, 0.0, 0.80),
    "occipital_left": (-0.30, -0.90, 0.30),
    "occipital_right": (0.30, -0.90, 0.30),
    "eyes": (0.0, 0.98, -0.10),
}

#: Coils of each MEG array: sensors, FIFF coil type, kind of channel in MNE, noise of one sample.
ARRAYS = {
    "magnetometers": (32, FIFF.FIFFV_COIL_VV_MAG_T3, "mag", 3e-14),
    "planar": (32, FIFF.FIFFV_COIL_VV_PLANAR_T1, "grad", 1.5e-12),
    "axial": (24, FIFF.FIFFV_COIL_CTF_GRAD, "mag", 3e-14),
}


@dataclass(frozen=True)
class Person:
    """What differs between people.

    Attributes:
        radius: of the scalp, m.
        origin: `(3,)` centre of the sphere, m, head frame.
        shift: `(3,)` where the centre of the MEG helmet lies from that of the head, m.
        gain: of the amplifier, around 1.
        alpha_hz, mu_hz: frequencies of the two rhythms.
        alpha, mu: amplitude of the rhythms, A m.
        background: amplitude of each 1/f source, A m.
        desynchronisation: `(2,)` share of the mu rhythm that imagining a hand takes away, opposite and same side.
        evoked: slow component opposite to the hand, A m.
        tilt: `(dipole, 3)` departures of the dipoles' orientation from the common one.
    """

    radius: float
    origin: np.ndarray
    shift: np.ndarray
    gain: float
    alpha_hz: float
    mu_hz: float
    alpha: float
    mu: float
    background: float
    desynchronisation: np.ndarray
    evoked: float
    tilt: np.ndarray


def draw_person(rng: np.random.Generator, background: int = 60) -> Person:
    """A random person with `background` sources of 1/f noise beside the named ones."""
    alpha_hz = rng.uniform(8.0, 12.0)
    return Person(
        radius=rng.uniform(0.086, 0.096),
        origin=np.array([0.0, 0.0, 0.04]) + rng.normal(0, 0.003, 3),
        shift=rng.normal(0, 0.002, 3),
        gain=rng.uniform(0.9, 1.1),
        alpha_hz=alpha_hz,
        mu_hz=float(np.clip(alpha_hz + rng.uniform(-0.5, 1.5), 8.5, 13.0)),
        alpha=rng.uniform(30e-9, 90e-9),
        mu=rng.uniform(50e-9, 90e-9),
        background=rng.uniform(20e-9, 30e-9),
        desynchronisation=np.array([rng.uniform(0.2, 0.65), rng.uniform(0.0, 0.15)]),
        evoked=rng.uniform(10e-9, 30e-9),
        tilt=rng.normal(0, 0.1, (background + len(NAMED), 3)),
    )


def lattice(count: int, lowest: float) -> np.ndarray:
    """`(count, 3)` unit vectors spread evenly over the part of a sphere above height `lowest` (-1 to 1)."""
    step = (np.arange(count) + 0.5) / count
    height = 1 - step * (1 - lowest)
    angle = np.arange(count) * np.pi * (3 - np.sqrt(5))
    ring = np.sqrt(1 - height**2)
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)


def dipoles(person: Person) -> tuple[np.ndarray, np.ndarray]:
    """Where the person's sources lie and where they point; the named ones come first, in the order of `NAMED`.

    Returns:
        position `(dipole, 3)` in m and orientation `(dipole, 3)`, unit vectors, both in the head frame.
    """
    named = np.array(list(NAMED.values()))
    named /= np.linalg.norm(named, axis=1, keepdims=True)
    out = np.concatenate([named, lattice(len(person.tilt) - len(named), -0.2)])
    # Cortex folds: every source has a part along the surface. Here it points to the front for motor cortex and turns
    # with the number of the source elsewhere, alike in all people but for the tilt.
    turn = np.arange(len(out)) * 2.4
    along = np.stack([np.sin(turn), np.cos(turn), 0 * turn], axis=1)
    along[:4] = [[0, 1, 0], [0, 1, 0], [1, 0, 0], [-1, 0, 0]]
    moment = 0.6 * out + 0.8 * along + person.tilt
    moment[4] = [0.0, 0.3, 1.0]
    moment /= np.linalg.norm(moment, axis=1, keepdims=True)
    return person.origin + SOURCE_SHELL * person.radius * out, moment


def cap(names: list[str] | None, template: str) -> tuple[list[str], np.ndarray]:
    """Electrodes of an MNE template montage as `(channel, 3)` unit vectors from the centre of the head.

    Args:
        names: which electrodes; all of the template where None.
        template: a name that `mne.channels.make_standard_montage` knows.
    """
    montage = mne.channels.make_standard_montage(template)
    mne.channels.montage.transform_to_head(montage)
    place = montage.get_positions()["ch_pos"]
    every = np.array(list(place.values()))
    # |x|^2 = 2 x.c + (r^2 - |c|^2) is linear in the centre c of the sphere through the electrodes.
    solution = np.linalg.lstsq(np.column_stack([2 * every, np.ones(len(every))]), (every**2).sum(1), rcond=None)[0]
    names = list(place) if names is None else names
    out = np.array([place[name] for name in names]) - solution[:3]
    return names, out / np.linalg.norm(out, axis=1, keepdims=True)


def eeg_info(names: list[str], directions: np.ndarray, person: Person, sfreq: float) -> mne.Info:
    """Electrodes on the person's scalp at `directions` `(channel, 3)`."""
    place = person.origin + person.radius * directions
    info = mne.create_info(names, sfreq, "eeg", verbose="error")
    info.set_montage(mne.channels.make_dig_montage(dict(zip(names, place, strict=True)), coord_frame="head"))
    return info


def meg_info(array: str, person: Person, sfreq: float) -> mne.Info:
    """One of the `ARRAYS` on a rigid helmet of 11.5 cm radius, the person's head somewhere inside it.

    Planar gradiometers look along and across in turn, one coil a site.

    Raises:
        ValueError: for an array that is not in `ARRAYS`.
    """
    if array not in ARRAYS:
        raise ValueError(f"unknown MEG array {array!r}; expected one of {', '.join(ARRAYS)}")
    count, coil, kind, _ = ARRAYS[array]
    normal = lattice(count, -0.25)
    across = np.cross(normal, [0.0, 0.0, 1.0])
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    along = np.cross(normal, across)
    info = mne.create_info([f"{kind.upper()}{i:03d}" for i in range(count)], sfreq, kind, verbose="error")
    for i, channel in enumerate(info["chs"]):
        axes = (across[i], along[i]) if i % 2 else (-along[i], across[i])
        channel["loc"] = np.concatenate([0.115 * normal[i], *axes, normal[i]])
        channel["coil_type"] = coil
        channel["coord_frame"] = FIFF.FIFFV_COORD_DEVICE
    to_head = np.eye(4)
    to_head[:3, 3] = person.origin + person.shift
    info["dev_head_t"] = mne.Transform("meg", "head", to_head)
    return info


def leadfield(info: mne.Info, person: Person, position: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """What each channel of `info` measures of 1 A m in each dipole: `(channel, dipole)`, V, T or T/m per A m.

    EEG is against infinity, before any reference.
    """
    sphere = mne.make_sphere_model(r0=person.origin, head_radius=person.radius, verbose="error")
    space = mne.setup_volume_source_space(pos={"rr": position, "nn": moment}, verbose="error")
    eeg = "eeg" in info.get_channel_types(unique=True)
    forward = mne.make_forward_solution(info, None, space, sphere, meg=not eeg, eeg=eeg, mindist=0, verbose="error")
    free = forward["sol"]["data"].reshape(len(info["chs"]), len(position), 3)
    return np.einsum("cdk,dk->cd", free, moment)


def trial_events(rng: np.random.Generator, trials: int, trial_s: float, pause_s: float) -> tuple[Events, float]:
    """Equally many "left" and "right" trials in random order after 2 s of rest, and the recording's length in s."""
    label = rng.permutation(np.arange(trials) % 2)
    onset = 2.0 + np.arange(trials) * (trial_s + pause_s)
    events = Events(onset, np.full(trials, trial_s), [("left", "right")[i] for i in label])
    return events, 2.0 + trials * (trial_s + pause_s)


def coloured(rng: np.random.Generator, rows: int, samples: int, shape: np.ndarray) -> np.ndarray:
    """`(rows, samples)` Gaussian noise of unit variance whose amplitude spectrum is `shape` `(samples // 2 + 1,)`."""
    spectrum = rng.standard_normal((rows, len(shape), 2)) @ np.array([1, 1j]) * shape
    noise = np.fft.irfft(spectrum, samples)
    return noise / noise.std(axis=1, keepdims=True)


def source_courses(
    rng: np.random.Generator,
    person: Person,
    events: Events,
    samples: int,
    sfreq: float,
    effect: float = 1.0,
    blinks_per_min: float = 0.0,
) -> np.ndarray:
    """Moments of the person's dipoles over time, `(dipole, time)` in A m.

    Args:
        effect: scales all that depends on the label; 0 leaves no trace of it.
        blinks_per_min: blinks of the eyes, at random times.
    """
    frequency = np.fft.rfftfreq(samples, 1 / sfreq)
    pink = np.where(frequency < 0.3, 0, 1 / np.sqrt(np.maximum(frequency, 0.3)))

    def rhythm(hz: float, rows: int) -> np.ndarray:
        return coloured(rng, rows, samples, np.exp(-0.5 * ((frequency - hz) / 1.2) ** 2))

    course = person.background * coloured(rng, len(person.tilt), samples, pink)
    course[4] = 0
    course[2:4] += person.alpha * (0.8 * rhythm(person.alpha_hz, 1) + 0.6 * rhythm(person.alpha_hz, 2))
    time = np.arange(samples) / sfreq
    hand = np.array([label == "right" for label in events.label])
    for side in (0, 1):
        # Row 0 is the left motor cortex, which the right hand desynchronises.
        contralateral, ipsilateral = (
            _pulses(time, events, pick) for pick in (hand == (side == 0), hand == (side == 1))
        )
        lost = person.desynchronisation[0] * contralateral + person.desynchronisation[1] * ipsilateral
        mu = person.mu * (rhythm(person.mu_hz, 1) + 0.4 * rhythm(2 * person.mu_hz, 1))[0]
        course[side] += mu * (1 - np.minimum(effect * lost, 1)) - effect * person.evoked * contralateral
    for blink in rng.uniform(0, time[-1], rng.poisson(blinks_per_min * time[-1] / 60)):
        course[4] += 1.5e-7 * np.exp(-0.5 * ((time - blink) / 0.07) ** 2)
    return course


def _pulses(time: np.ndarray, events: Events, pick: np.ndarray) -> np.ndarray:
    """1 during the picked events and 0 elsewhere, with a start 0.3 s late and slopes of 0.2 s."""
    late, slope = 0.3, 0.1
    start, stop = events.onset[pick] + late, events.onset[pick] + events.duration[pick] + late / 2
    edge = np.add.outer(time, -start), np.add.outer(time, -stop)
    return sum(sign / (1 + np.exp(-np.clip(x / slope, -50, 50))) for sign, x in zip((1, -1), edge, strict=True)).sum(1)
