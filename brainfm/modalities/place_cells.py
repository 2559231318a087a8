"""Simulated place cells of an animal that runs to and fro on a linear track (O'Keefe and Dostrovsky 1971).

Fields are Gaussian bumps; many fire in one direction of running only (McNaughton et al. 1983), and all fall silent when
the animal rests at an end. Positions in metres along the track.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brainfm.modalities.spikes import drawn
from brainfm.recording import Channels, Events, Recording, Series

#: Steps of the simulation per second.
FINE_HZ = 500
#: m/s below which the animal counts as at rest.
REST_M_S = 0.03


@dataclass(frozen=True)
class Fields:
    """What each neuron fires for.

    Attributes:
        centre, width: `(neuron,)` metres along the track; width is a standard deviation.
        peak, baseline: `(neuron,)` spikes per second inside and outside the field.
        direction: `(neuron,)` 1 or -1 where it fires in one direction only, 0 where in both.
    """

    centre: np.ndarray
    width: np.ndarray
    peak: np.ndarray
    baseline: np.ndarray
    direction: np.ndarray

    def rate(self, position: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """`(time, neuron)` spikes per second at positions and velocities `(time,)`."""
        bump = np.exp(-((position[:, None] - self.centre) ** 2) / (2 * self.width**2))
        running = np.abs(velocity)[:, None] > REST_M_S
        fits = (self.direction == 0) | (np.sign(velocity)[:, None] == self.direction)
        return self.baseline + self.peak * bump * (running & fits)


def draw_fields(rng: np.random.Generator, neurons: int, track_m: float = 2.0, one_way: float = 0.5) -> Fields:
    """Fields that cover a track of `track_m` metres; a share `one_way` of the neurons minds the direction."""
    return Fields(
        centre=(rng.permutation(neurons) + rng.random(neurons)) * track_m / max(1, neurons),
        width=rng.uniform(0.06, 0.18, neurons),
        peak=rng.gamma(6.0, 3.0, neurons),
        baseline=rng.uniform(0.05, 0.4, neurons),
        direction=np.where(rng.random(neurons) < one_way, rng.choice([-1, 1], neurons), 0),
    )


def run_track(
    rng: np.random.Generator, duration_s: float, sfreq: float, track_m: float = 2.0
) -> tuple[np.ndarray, np.ndarray, Events]:
    """Runs from end to end with rests between, each run with a speed and a wobble of its own.

    Returns:
        position `(time,)` in m and velocity `(time,)` in m/s; an event for each whole run, "outbound" or "inbound".
    """
    count = round(duration_s * sfreq)
    position, now, here = np.zeros(count), float(rng.uniform(0.5, 1.5)), 0.0
    time = np.arange(count) / sfreq
    events: list[tuple[float, float, str]] = []
    while now < duration_s:
        lasts, wobble, there = track_m / rng.uniform(0.25, 0.6), rng.uniform(-0.06, 0.06), track_m - here
        part = (time >= now) & (time < now + lasts)
        s = (time[part] - now) / lasts
        share = 3 * s**2 - 2 * s**3 + wobble * np.sin(2 * np.pi * s) * np.sin(np.pi * s)
        position[part] = here + (there - here) * np.clip(share, 0, 1)
        position[time >= now + lasts] = there
        if now + lasts <= duration_s:
            events.append((now, lasts, "outbound" if there > here else "inbound"))
        now, here = now + lasts + float(rng.uniform(1.0, 3.0)), there
    onset, length, label = zip(*events, strict=True) if events else ((), (), ())
    return position, np.gradient(position, 1 / sfreq), Events(np.array(onset), np.array(length), list(label))


def simulate(
    rng: np.random.Generator,
    *,
    neurons: int = 40,
    duration_s: float = 600.0,
    track_m: float = 2.0,
    behaviour_hz: float = 50.0,
    fields: Fields | None = None,
    dataset: str = "simulated",
    subject: str = "r1",
    session: str = "track1",
) -> Recording:
    """A session on the track; Poisson spikes.

    Args:
        neurons: size of the population where `fields` is not given.
        duration_s: 10 s or more. track_m: length of the track.
        behaviour_hz: samples per second of position and velocity.
        fields: of the population; drawn from `rng` where None.
        dataset, subject, session: ids of the recording.

    Returns:
        Spikes; `aligned` "position" in m and "velocity" in m/s, `(time, 1)`; an event for each run; in `truth`
        "centre", "width", "peak", "baseline", "direction" `(neuron,)`.

    Raises:
        ValueError: for a duration under 10 s.
    """
    if duration_s < 10:
        raise ValueError(f"duration_s {duration_s:g}; a run takes seconds, so give 10 s or more")
    fields = draw_fields(rng, neurons, track_m) if fields is None else fields
    count = len(fields.centre)
    position, velocity, events = run_track(rng, duration_s, FINE_HZ, track_m)
    time, neuron = drawn(rng, fields.rate(position, velocity) / FINE_HZ, FINE_HZ, 0.002)
    every = round(FINE_HZ / behaviour_hz)
    recording = Recording(
        dataset=dataset,
        subject=subject,
        session=session,
        modality="spikes",
        device="linear track",
        channels=Channels.make([f"p{i:03d}" for i in range(count)], "neuron", area=["CA1"] * count),
        spike_time=time,
        spike_neuron=neuron,
        duration=float(duration_s),
        events=events,
        aligned={
            "position": Series(position[::every, None], FINE_HZ / every, "m"),
            "velocity": Series(velocity[::every, None], FINE_HZ / every, "m/s"),
        },
        truth={name: getattr(fields, name) for name in ("centre", "width", "peak", "baseline", "direction")},
        simulated=True,
    )
    recording.note("simulate place cells", track_m=track_m, behaviour_hz=FINE_HZ / every)
    return recording
