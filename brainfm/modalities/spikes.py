"""Spikes: sorted spike times of a table of neurons. Simulated here: a hub network and a motor population that reaches.

The hub network follows the simulated data of Neuroformer (Antoniades et al., 2024): leaky integrate-and-fire neurons of
which a few each drive a band of neighbours, so that a model's attention can be held against the true connections.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from brainfm.recording import Channels, Events, Recording, Series

UNIT = "spikes"


def clean(recording: Recording, *, min_rate_hz: float = 0.0, refractory_s: float = 0.001) -> Recording:
    """Drop spikes that follow one of the same neuron too soon to be real, then neurons that are silent.

    Args:
        recording: a session with spikes; it is left as it is.
        min_rate_hz: neurons below this mean rate go, and in any case those without a spike.
        refractory_s: a spike within this time of its neuron's last kept one is a duplicate.

    Returns:
        A new recording whose provenance names both steps with what they removed.

    Raises:
        ValueError: for a recording without spikes, or where no neuron is left.
    """
    if recording.spike_time is None or recording.spike_neuron is None:
        raise ValueError(f"{recording.id}: there are no spikes to clean; give a recording of modality spikes")
    count = len(recording.channels)
    time, neuron = refractory(recording.spike_time, recording.spike_neuron, refractory_s)
    number = np.bincount(neuron, minlength=count)
    kept = np.flatnonzero((number > 0) & (number >= min_rate_hz * recording.duration))
    if not len(kept):
        raise ValueError(
            f"{recording.id}: none of {count} neurons fires at {min_rate_hz:g} Hz or more; lower min_rate_hz"
        )
    row = np.full(count, -1)
    row[kept] = np.arange(len(kept))
    stays = row[neuron] >= 0
    truth = {
        name: value[np.ix_(*[kept] * value.ndim)] if value.ndim and set(value.shape) == {count} else value
        for name, value in recording.truth.items()
    }
    provenance = {**recording.provenance, "steps": list(recording.provenance["steps"])}
    cleaned = replace(
        recording,
        channels=recording.channels.pick(kept),
        signal=None if recording.signal is None else np.asarray(recording.signal[:, :])[kept],
        spike_time=time[stays],
        spike_neuron=row[neuron[stays]],
        truth=truth,
        provenance=provenance,
    )
    cleaned.note("refractory", refractory_s=refractory_s, spikes_dropped=len(recording.spike_time) - len(time))
    cleaned.note("silent neurons", min_rate_hz=min_rate_hz, neurons_dropped=count - len(kept))
    return cleaned


def refractory(time: np.ndarray, neuron: np.ndarray, refractory_s: float) -> tuple[np.ndarray, np.ndarray]:
    """The spikes that do not come within `refractory_s` of the last kept spike of the same neuron."""
    order = np.lexsort((time, neuron))
    keep = np.ones(len(time), bool)
    while True:
        index = order[keep[order]]
        close = (np.diff(neuron[index]) == 0) & (np.diff(time[index]) < refractory_s)
        # Of a run of close spikes only the second goes in one round: the third may be far enough from the first.
        first = close & ~np.concatenate([[False], close[:-1]]) if len(close) else close
        if not first.any():
            return time[keep], neuron[keep]
        keep[index[1:][first]] = False


def drawn(
    rng: np.random.Generator, chance: np.ndarray, hz: float, refractory_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Spikes of a Poisson population: times in s, ascending, and neurons.

    Args:
        chance: `(step, neuron)` of a spike in each step of `1 / hz` s, in which it falls anywhere.
        refractory_s: as in `refractory`.
    """
    step, neuron = np.nonzero(rng.random(chance.shape) < chance)
    time = (step + rng.random(len(step))) / hz
    order = np.argsort(time, kind="stable")
    return refractory(time[order], neuron[order], refractory_s)


def hub_weights(
    rng: np.random.Generator, neurons: int, hubs: int, density: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Connections of the hub network.

    A hub drives the neurons beside it by U(0, 1) exp(-d^2 / 2 s^2), where d is the distance in neuron numbers and s a
    third of its band; between the others a share `density` of pairs has N(0, 0.05).

    Returns:
        weights `(target, source)` with an empty diagonal, and the `(hub,)` neuron numbers.
    """
    hub = ((2 * np.arange(hubs) + 1) * neurons) // (2 * hubs)
    weights = rng.normal(0, 0.05, (neurons, neurons)) * (rng.random((neurons, neurons)) < density)
    band = neurons / hubs
    distance = np.abs(np.arange(neurons)[:, None] - hub[None])
    drive = rng.random((neurons, hubs)) * np.exp(-(distance**2) / (2 * (band / 3) ** 2))
    weights[:, hub] = np.where(distance <= band / 2, drive, weights[:, hub])
    np.fill_diagonal(weights, 0)
    return weights, hub


def hub_network(
    rng: np.random.Generator,
    *,
    neurons: int = 300,
    hubs: int = 3,
    duration_s: float = 240.0,
    bin_s: float = 0.005,
    rate_hz: float = 5.0,
    coupling: float = 0.8,
    dataset: str = "simulated",
    subject: str = "a1",
    session: str = "hub",
    network: np.random.Generator | None = None,
) -> Recording:
    """Leaky integrate-and-fire neurons of which a few drive their neighbours, one or two bins later.

    Args:
        neurons, hubs: how many, the hubs among the neurons.
        bin_s: time step of the simulation; a neuron rests for one step after a spike.
        rate_hz: mean rate that the background drive is tuned to; the network's own drive comes on top.
        coupling: how far a weight of 1 lifts a neuron towards its threshold, as a share of the way.
        dataset, subject, session: ids of the recording.
        network: draws the connections and delays, `rng` if None; the same seed in two sessions is the same network, so
            its neurons count as tracked.

    Returns:
        Spikes, and in `truth` "connectivity" `(target, source)`, "delay" `(target, source)` in s and "hub" `(neuron,)`.
    """
    tracked, network = network is not None, rng if network is None else network
    weights, hub = hub_weights(network, neurons, hubs)
    late = network.integers(1, 3, weights.shape)
    fired = _integrate_and_fire(rng, coupling * weights, late, round(duration_s / bin_s), bin_s, rate_hz)
    step, neuron = np.nonzero(fired)
    time = (step + rng.random(len(step))) * bin_s
    order = np.argsort(time, kind="stable")
    recording = Recording(
        dataset=dataset,
        subject=subject,
        session=session,
        modality="spikes",
        device="hub network",
        channels=Channels.make([f"h{i:03d}" for i in range(neurons)], "neuron"),
        spike_time=time[order],
        spike_neuron=neuron[order],
        duration=float(duration_s),
        truth={"connectivity": weights, "delay": late * bin_s, "hub": np.isin(np.arange(neurons), hub)},
        simulated=True,
        tracked=tracked,
    )
    recording.note("simulate hub network", hubs=hubs, bin_s=bin_s, rate_hz=rate_hz, coupling=coupling)
    return recording


def _integrate_and_fire(
    rng: np.random.Generator, weights: np.ndarray, late: np.ndarray, steps: int, bin_s: float, rate_hz: float
) -> np.ndarray:
    """`(time, neuron)` whether each neuron fires in each step; potential 0 at rest, threshold 1, 20 ms to leak.

    The background is a Poisson count of small inputs, so many that a lone neuron fires at `rate_hz`; the first second
    is thrown away.
    """
    neurons, warm = len(weights), round(1 / bin_s)
    leak, size = np.exp(-bin_s / 0.020), 0.18
    by_source = [np.ascontiguousarray((weights * (late == k)).T) for k in (1, 2)]
    inputs = _background(rate_hz, leak, size, bin_s)
    fired = np.zeros((steps + warm, neurons), bool)
    potential, resting = np.zeros(neurons), np.zeros(neurons, bool)
    before: list[np.ndarray] = [np.zeros(0, int)] * 2
    for start in range(0, len(fired), 1000):
        block = size * rng.poisson(inputs, (min(1000, len(fired) - start), neurons))
        for i, drive in enumerate(block):
            for source, table in zip(before, by_source, strict=True):
                if len(source):
                    drive += table[source].sum(0)
            potential = np.maximum(leak * potential + drive, -1.0)
            potential[resting] = 0
            resting = potential >= 1
            potential[resting] = 0
            fired[start + i] = resting
            before = [np.flatnonzero(resting), before[0]]
    return fired[warm:]


def _background(rate_hz: float, leak: float, size: float, bin_s: float) -> float:
    """Mean number of background inputs per step at which a lone neuron fires at `rate_hz`, found by bisection."""
    low, high = 0.0, 1 / size
    for _ in range(16):
        middle = (low + high) / 2
        counts = size * np.random.default_rng(0).poisson(middle, (2000, 200))
        potential, resting, number = np.zeros(200), np.zeros(200, bool), 0
        for drive in counts:
            potential = leak * potential + drive
            potential[resting] = 0
            resting = potential >= 1
            potential[resting] = 0
            number += resting.sum()
        rate = number / (counts.size * bin_s)
        low, high = (middle, high) if rate < rate_hz else (low, middle)
    return middle


@dataclass(frozen=True)
class Tuning:
    """How motor neurons follow the hand: `rate = max(0, baseline + depth * speed * cos(angle - preferred))`.

    Attributes:
        baseline: `(neuron,)` spikes per second at rest.
        depth: `(neuron,)` spikes per second for each m/s along the preferred direction.
        preferred: `(neuron,)` radians.
        lag: seconds by which the neurons lead the hand.
    """

    baseline: np.ndarray
    depth: np.ndarray
    preferred: np.ndarray
    lag: float


def draw_tuning(rng: np.random.Generator, neurons: int) -> Tuning:
    """A random population whose preferred directions cover the circle."""
    return Tuning(
        baseline=rng.gamma(4.0, 2.0, neurons) + 1.0,
        depth=rng.gamma(3.0, 15.0, neurons),
        preferred=rng.uniform(-np.pi, np.pi, neurons),
        lag=float(rng.uniform(0.06, 0.12)),
    )


def reach_kinematics(
    rng: np.random.Generator, duration_s: float, sfreq: float
) -> tuple[np.ndarray, np.ndarray, Events]:
    """Reaches from the centre to one of eight targets 8 cm away and back, with pauses, each of minimum jerk.

    Minimum jerk is the profile of Flash and Hogan (1985).

    Returns:
        position `(time, 2)` in m, velocity `(time, 2)` in m/s, and one event for each way, labelled with its target
        ("target0" is to the right, counter-clockwise) or "centre".
    """
    time = np.arange(round(duration_s * sfreq)) / sfreq
    position, velocity = np.zeros((len(time), 2)), np.zeros((len(time), 2))
    onset: list[float] = []
    length: list[float] = []
    label: list[str] = []
    now, here = rng.uniform(0.5, 1.0), np.zeros(2)
    while True:
        target = int(rng.integers(8)) if not here.any() else -1
        angle = target * np.pi / 4
        there = 0.08 * np.array([np.cos(angle), np.sin(angle)]) if target >= 0 else np.zeros(2)
        lasts = rng.uniform(0.5, 0.9)
        if now + lasts > duration_s - 0.5:
            return position, velocity, Events(np.array(onset), np.array(length), label)
        part = (time >= now) & (time < now + lasts)
        s = ((time[part] - now) / lasts)[:, None]
        position[part] = here + (there - here) * (10 * s**3 - 15 * s**4 + 6 * s**5)
        velocity[part] = (there - here) / lasts * (30 * s**2 - 60 * s**3 + 30 * s**4)
        position[time >= now + lasts] = there
        onset.append(now)
        length.append(lasts)
        label.append(f"target{target}" if target >= 0 else "centre")
        now, here = now + lasts + rng.uniform(0.15, 0.6), there


def reaching(
    rng: np.random.Generator,
    *,
    neurons: int = 60,
    duration_s: float = 150.0,
    behaviour_hz: float = 50.0,
    tuning: Tuning | None = None,
    dataset: str = "simulated",
    subject: str = "a1",
    session: str = "reach1",
) -> Recording:
    """A cosine-tuned motor population (Georgopoulos et al., 1982) while the hand reaches; Poisson spikes.

    Args:
        neurons: size of the population where `tuning` is not given.
        behaviour_hz: samples per second of the hand's velocity and position.
        tuning: of the population, whose neurons then count as tracked; drawn from `rng` where None.
        dataset, subject, session: ids of the recording.

    Returns:
        Spikes; `aligned` "velocity" in m/s and "position" in m, `(time, 2)`; one event for each movement; in `truth`
        "preferred", "depth", "baseline" `(neuron,)` and "lag_s".
    """
    tracked, tuning = tuning is not None, draw_tuning(rng, neurons) if tuning is None else tuning
    neurons, fine = len(tuning.preferred), 1000
    position, velocity, events = reach_kinematics(rng, duration_s, fine)
    lead = round(tuning.lag * fine)
    coming = np.concatenate([velocity[lead:], np.zeros((lead, 2))])
    toward = np.stack([np.cos(tuning.preferred), np.sin(tuning.preferred)]) * tuning.depth
    chance = np.maximum(tuning.baseline + coming @ toward, 0) / fine
    time, neuron = drawn(rng, chance, fine, 0.001)
    every = round(fine / behaviour_hz)
    recording = Recording(
        dataset=dataset,
        subject=subject,
        session=session,
        modality="spikes",
        device="motor population",
        channels=Channels.make([f"r{i:03d}" for i in range(neurons)], "neuron", area=["M1"] * neurons),
        spike_time=time,
        spike_neuron=neuron,
        duration=float(duration_s),
        events=events,
        aligned={
            "velocity": Series(velocity[::every], fine / every, "m/s"),
            "position": Series(position[::every], fine / every, "m"),
        },
        truth={
            "preferred": tuning.preferred,
            "depth": tuning.depth,
            "baseline": tuning.baseline,
            "lag_s": np.array(tuning.lag),
        },
        simulated=True,
        tracked=tracked,
    )
    recording.note("simulate reaching", behaviour_hz=fine / every)
    return recording


def simulate(
    rng: np.random.Generator, *, neurons: int = 60, duration_s: float = 150.0, subject: str = "a1"
) -> Recording:
    """A session of `reaching`, the simulator that stands for the modality; `hub_network` is the other one."""
    return reaching(rng, neurons=neurons, duration_s=duration_s, subject=subject)
