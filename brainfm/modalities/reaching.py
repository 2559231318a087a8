"""A simulated motor population that follows a hand trajectory given from outside, such as a recorded one.

Cosine tuning (Georgopoulos et al. 1982) as in `spikes.reaching`, with two things that recordings have: each neuron
leads the hand by a time of its own, and neurons that are tuned alike share slow fluctuations (Zohary et al. 1994).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter1d

from brainfm.modalities.spikes import Tuning, draw_tuning, refractory
from brainfm.recording import Channels, Recording, Series

#: Steps of the simulation per second.
FINE_HZ = 1000


@dataclass(frozen=True)
class Fluctuations:
    """Changes of excitability that no movement explains, so that noise is correlated.

    Attributes:
        size: standard deviation of the logarithm of the rate. time_s: how slow they are, seconds.
        shared: the share of their variance that neurons of the same preferred direction have in common.
    """

    size: float = 0.3
    time_s: float = 0.1
    shared: float = 0.5


def follow(
    rng: np.random.Generator,
    velocity: np.ndarray,
    sfreq: float,
    *,
    neurons: int = 60,
    tuning: Tuning | None = None,
    lag_spread_s: float = 0.03,
    fluctuations: Fluctuations | None = None,
    dataset: str = "simulated",
    subject: str = "a1",
    session: str = "follow1",
) -> Recording:
    """Spikes of a population that drives a hand which moves like this.

    Args:
        velocity: `(time, 2)` of the hand in m/s, any trajectory; NaN where it was not tracked, and there only the
            baseline fires.
        sfreq: samples per second of it.
        neurons: size of the population where `tuning` is not given.
        tuning: of the population, whose neurons then count as tracked; drawn from `rng` where None. Its depth is meant
            for a hand of about 0.1 m/s.
        lag_spread_s: standard deviation over neurons of the time by which they lead, around the tuning's lag.
        fluctuations: what makes noise correlated; the defaults where None.
        dataset, subject, session: ids of the recording.

    Returns:
        Spikes; `aligned` "velocity" as it was given; in `truth` "preferred", "depth", "baseline", "lag_s" `(neuron,)`
        and "noise_correlation" `(neuron, neuron)`, that of the logarithms of the rates.

    Raises:
        ValueError: for a trajectory of another shape, too short for the lags, or a rate that is not positive.
    """
    velocity = np.asarray(velocity, float)
    tracked, tuning = tuning is not None, draw_tuning(rng, neurons) if tuning is None else tuning
    slow = Fluctuations() if fluctuations is None else fluctuations
    if velocity.ndim != 2 or velocity.shape[1] != 2 or not sfreq > 0 or len(velocity) < sfreq:
        raise ValueError(
            f"velocity has shape {velocity.shape} at {sfreq:g} Hz; expected (time, 2) in m/s of one second or more"
        )
    count = len(tuning.preferred)
    steps = round(len(velocity) / sfreq * FINE_HZ)
    lag = np.maximum(tuning.lag + rng.normal(0, lag_spread_s, count), 0.0)
    toward = np.stack([np.cos(tuning.preferred), np.sin(tuning.preferred)])
    known = np.arange(len(velocity)) / sfreq
    components = np.nan_to_num(velocity) @ toward
    correlation = _correlation(tuning.preferred, slow.shared)
    mix = np.linalg.cholesky(correlation + 1e-9 * np.eye(count))
    knots, every = _drift(rng, mix, steps, slow)
    now, times, who = np.arange(steps), [], []
    for neuron in range(count):
        drive = np.interp(now / FINE_HZ + lag[neuron], known, components[:, neuron], right=0.0)
        drift = np.interp(now / every, np.arange(len(knots)), knots[:, neuron])
        rate = np.maximum(tuning.baseline[neuron] + tuning.depth[neuron] * drive, 0) * np.exp(drift)
        step = np.flatnonzero(rng.random(steps) < rate / FINE_HZ)
        times.append((step + rng.random(len(step))) / FINE_HZ)
        who.append(np.full(len(step), neuron))
    time, number = np.concatenate(times), np.concatenate(who)
    order = np.argsort(time, kind="stable")
    time, number = refractory(time[order], number[order], 0.001)
    recording = Recording(
        dataset=dataset,
        subject=subject,
        session=session,
        modality="spikes",
        device="motor population",
        channels=Channels.make([f"r{i:03d}" for i in range(count)], "neuron", area=["M1"] * count),
        spike_time=time,
        spike_neuron=number,
        duration=len(velocity) / sfreq,
        aligned={"velocity": Series(velocity, sfreq, "m/s")},
        truth={
            "preferred": tuning.preferred,
            "depth": tuning.depth,
            "baseline": tuning.baseline,
            "lag_s": lag,
            "noise_correlation": correlation,
        },
        simulated=True,
        tracked=tracked,
    )
    recording.note("simulate following hand", lag_spread_s=lag_spread_s, **vars(slow))
    return recording


def follow_recorded(rng: np.random.Generator, recorded: Recording, *, neurons: int = 60, name: str = "velocity",
                    speed: float = 0.1, lag_spread_s: float = 0.03) -> Recording:  # fmt: skip
    """As `follow`, along the hand of a recording, for example one of `macaque_m1`; its spikes are not used.

    Args:
        recorded: a session with the covariate `name` `(time, 2)`, in any unit.
        speed: m/s that the trajectory's root mean square is scaled to, since the unit may be unknown.
        neurons, lag_spread_s: as in `follow`.

    Raises:
        KeyError: where it has no such covariate.
    """
    if name not in recorded.aligned:
        raise KeyError(f"{recorded.id} has no covariate {name!r}; it has {', '.join(recorded.aligned) or 'none'}")
    hand = recorded.aligned[name]
    size = float(np.sqrt(np.nanmean(hand.values.astype(float) ** 2)))
    if not size > 0:
        raise ValueError(f"{recorded.id}: the hand of {name!r} never moves; choose a session with movement")
    made = follow(
        rng, hand.values * (speed / size), hand.sfreq, neurons=neurons, lag_spread_s=lag_spread_s,
        dataset=recorded.dataset, subject=recorded.subject, session=f"{recorded.session or 'hand'}-simulated",
    )  # fmt: skip
    made.note("trajectory of a recording", id=recorded.id, covariate=name, scaled_by=speed / size)
    return replace(made, events=recorded.events)


def _correlation(preferred: np.ndarray, shared: float) -> np.ndarray:
    """`(neuron, neuron)` `shared` for the same preferred direction, 0 for opposite ones, 1 with itself."""
    alike = (1 + np.cos(preferred[:, None] - preferred)) / 2
    return shared * alike + (1 - shared) * np.eye(len(preferred))


def _drift(rng: np.random.Generator, mix: np.ndarray, steps: int, slow: Fluctuations) -> tuple[np.ndarray, int]:
    """Knots `(knot, neuron)` of fluctuations of the logarithm of rates, without effect on mean rates; steps between."""
    every = max(1, round(slow.time_s * FINE_HZ / 4))
    knots = rng.standard_normal((steps // every + 2, len(mix))) @ mix.T
    smooth = gaussian_filter1d(knots, 4.0, axis=0, mode="wrap")
    smooth /= max(float(smooth.std()), 1e-9)
    return slow.size * smooth - slow.size**2 / 2, every
