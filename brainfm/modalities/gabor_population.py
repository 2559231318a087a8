"""A simulated primary visual cortex: Gabor neurons that see still images while the animal runs and looks around.

A neuron reads the image through a Gabor patch (Jones and Palmer 1987), or as the energy of a pair of them in quadrature
(Adelson and Bergen 1985), and fires as a Poisson process whose rate running and pupil scale. Where the animal looks
moves the image over the receptive fields. Neighbours in cortex see neighbouring places.

Images are dead leaves, ellipses of many sizes that cover each other (Lee, Mumford and Huang 2001): edges at all scales,
and no image that a licence holds. The recording is of modality "calcium": one response of each neuron to each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import shift

from brainfm.recording import Channels, Events, Recording, Series

#: Half the width of the imaged piece of cortex, metres.
CORTEX_M = 4e-4
#: Seconds from one image to the next.
TRIAL_S = 1.0


@dataclass(frozen=True)
class Population:
    """V1 neurons of an animal. Places in the image run from -1 to 1, to the right and downwards.

    Attributes:
        place: `(neuron, 3)` metres in cortex. centre: `(neuron, 2)` of the receptive field in the image.
        angle, wavelength, phase, width: `(neuron,)` of the Gabor patch; radians and, for lengths, pixels.
        energy: `(neuron,)` True for complex cells, which do not mind the phase.
        baseline, gain: `(neuron,)` expected response without and for a typical drive on top.
        running, pupil: `(neuron,)` growth of the rate per 0.1 m/s, and of its logarithm per deviation of the pupil.
        shared: `(neuron,)` how strongly fluctuations that all share scale the response.
    """

    place: np.ndarray
    centre: np.ndarray
    angle: np.ndarray
    wavelength: np.ndarray
    phase: np.ndarray
    width: np.ndarray
    energy: np.ndarray
    baseline: np.ndarray
    gain: np.ndarray
    running: np.ndarray
    pupil: np.ndarray
    shared: np.ndarray


def draw_population(rng: np.random.Generator, neurons: int, energy: float = 0.5) -> Population:
    """A random population whose map of the image is turned and scattered; a share `energy` are complex cells."""
    place = rng.uniform(-CORTEX_M, CORTEX_M, (neurons, 3))
    place[:, 2] = rng.uniform(1.5e-4, 3e-4, neurons)
    turn = rng.uniform(-np.pi, np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    centre = 0.5 * place[:, :2] / CORTEX_M @ rotation + rng.normal(0, 0.06, (neurons, 2))
    wavelength = rng.uniform(6.0, 14.0, neurons)
    return Population(
        place=place,
        centre=np.clip(centre, -0.75, 0.75),
        angle=rng.uniform(0, np.pi, neurons),
        wavelength=wavelength,
        phase=rng.uniform(-np.pi, np.pi, neurons),
        width=rng.uniform(0.35, 0.5, neurons) * wavelength,
        energy=rng.random(neurons) < energy,
        baseline=rng.gamma(2.0, 0.15, neurons),
        gain=rng.lognormal(0.3, 0.4, neurons),
        running=rng.uniform(0.0, 0.5, neurons),
        pupil=rng.normal(0.1, 0.15, neurons),
        shared=rng.uniform(0.0, 0.3, neurons),
    )


def receptive_fields(population: Population, height: int, width: int) -> np.ndarray:
    """`(2, neuron, height, width)` Gabor patches of length 1 without mean, and their partners in quadrature."""
    y = np.arange(height)[:, None] - (height - 1) / 2
    x = np.arange(width) - (width - 1) / 2
    centre = population.centre * (np.array([width, height]) - 1) / 2
    right, down = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    angle, size = population.angle[:, None, None], population.width[:, None, None]
    along = right * np.cos(angle) + down * np.sin(angle)
    envelope = np.exp(-(right**2 + down**2) / (2 * size**2))
    turn = 2 * np.pi * along / population.wavelength[:, None, None] + population.phase[:, None, None]
    patches = envelope * np.stack([np.cos(turn), np.sin(turn)])
    patches -= envelope * (patches.sum((2, 3), keepdims=True) / envelope.sum((1, 2))[:, None, None])
    return patches / np.linalg.norm(patches, axis=(2, 3), keepdims=True)


def dead_leaves(
    rng: np.random.Generator, number: int, height: int = 36, width: int = 64, leaves: int = 40
) -> np.ndarray:
    """`(image, height, width)` float32 images of mean 0 and deviation 1."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    images = np.zeros((number, height, width), np.float32)
    for _ in range(leaves):
        across, down, angle, grey = (
            rng.uniform(low, high, (number, 1, 1)).astype(np.float32)
            for low, high in ((0, width), (0, height), (0, np.pi), (-1, 1))
        )
        long = (2.0 * rng.random((number, 1, 1)).astype(np.float32) ** -0.5).clip(max=width / 3)
        u = (x - across) * np.cos(angle) + (y - down) * np.sin(angle)
        v = (y - down) * np.cos(angle) - (x - across) * np.sin(angle)
        images = np.where((u / long) ** 2 + (2 * v / long) ** 2 < 4, grey, images)
    images -= images.mean((1, 2), keepdims=True)
    return images / np.maximum(images.std((1, 2), keepdims=True), 1e-6)


def behave(rng: np.random.Generator, trials: int) -> tuple[np.ndarray, np.ndarray]:
    """An animal that runs in bouts; its pupil widens when it does, and wanders.

    Returns:
        `(trial, 3)` pupil size in deviations, its change since the last trial, and speed in 0.1 m/s; `(trial, 2)` place
        of the pupil's centre, by how much of the image's half width and half height the image moves over the fields.
    """
    noise = rng.standard_normal((trials, 3))
    slow, bout, speed = np.zeros(3), False, np.zeros(trials)
    wander = np.zeros((trials, 3))
    for i in range(trials):
        slow = wander[i] = 0.9 * slow + 0.19**0.5 * noise[i]
        bout = bool(rng.random() < (0.9 if bout else 0.06))
        speed[i] = bout * rng.gamma(4.0, 0.4)
    size = 0.7 * wander[:, 0] + 0.5 * speed
    size = (size - size.mean()) / max(float(size.std()), 1e-6)
    change = np.diff(size, prepend=size[:1])
    return np.stack([size, change, speed], 1), 0.06 * wander[:, 1:]


def expected_response(
    population: Population, images: np.ndarray, behaviour: np.ndarray, pupil_centre: np.ndarray
) -> np.ndarray:
    """`(trial, neuron)` expected responses to images `(trial, height, width)`; the others are those of `behave`."""
    height, width = images.shape[1:]
    even, odd = receptive_fields(population, height, width).reshape(2, len(population.angle), -1)
    move = pupil_centre[:, ::-1] * np.array([height - 1, width - 1]) / 2
    seen = np.stack([shift(x, by, order=1, mode="nearest") for x, by in zip(images, move, strict=True)])
    seen = seen.reshape(len(images), -1)
    one, other = seen @ even.T, seen @ odd.T
    drive = np.where(population.energy, np.hypot(one, other) / 3, np.maximum(one, 0) / 2)
    size, _, speed = behaviour.T[:, :, None]
    rate = population.baseline + population.gain * drive**1.5
    return rate * (1 + population.running * speed) * np.exp(population.pupil * size)


def simulate(
    rng: np.random.Generator,
    *,
    neurons: int = 60,
    images: np.ndarray | None = None,
    stimulus: Sequence[str] | None = None,
    repeats: int = 1,
    trials: int = 100,
    population: Population | None = None,
    dataset: str = "simulated",
    subject: str = "m1",
    session: str = "images",
) -> Recording:
    """A session in which each image is shown `repeats` times, in random order, one a second.

    Args:
        neurons: size of the population where `population` is not given.
        images: `(image, height, width)`; `trials` dead leaves of 36 by 64 where None.
        stimulus: the id of each image, numbers where None. Ids say which images are the same across sessions.
        repeats: presentations of each image.
        population: the neurons, which then count as tracked; drawn from `rng` where None.
        dataset, subject, session: ids of the recording.

    Returns:
        Responses at one sample per image. `aligned` "stimulus" `(trial, pixel)` row by row, "behaviour" and
        "pupil_centre" as in `behave`; an event for each image with its id; in `truth` "receptive_field" `(neuron,
        pixel)`, "centre" `(neuron, 2)`, "energy", "running", "pupil" `(neuron,)` and "rate" `(neuron, trial)`, what
        each response would be without noise.

    Raises:
        ValueError: where images and ids do not fit each other.
    """
    tracked, population = population is not None, draw_population(rng, neurons) if population is None else population
    images = dead_leaves(rng, trials) if images is None else np.asarray(images, np.float32)
    names = [f"i{i:05d}" for i in range(len(images))] if stimulus is None else list(stimulus)
    if images.ndim != 3 or len(images) != len(names) or repeats < 1:
        raise ValueError(
            f"{len(names)} ids and {repeats} repeats of images {images.shape}; expected images (image, height, width), "
            "an id for each, and one or more repeats"
        )
    order = np.concatenate([rng.permutation(len(images)) for _ in range(repeats)])
    behaviour, pupil_centre = behave(rng, len(order))
    rate = expected_response(population, images[order], behaviour, pupil_centre)
    common = np.exp(population.shared * rng.standard_normal((len(order), 1)) - population.shared**2 / 2)
    response = rng.poisson(rate * common).astype(np.float64)
    count, sfreq = len(population.angle), 1 / TRIAL_S
    recording = Recording(
        dataset=dataset,
        subject=subject,
        session=session,
        modality="calcium",
        device="simulated two-photon",
        channels=Channels.make(
            [f"v{i:04d}" for i in range(count)], "neuron", population.place, area=["V1"] * count, unit="1",
            placed="simulated",
        ),
        sfreq=sfreq,
        signal=response.T,
        events=Events(
            np.arange(len(order)) * TRIAL_S,
            np.full(len(order), TRIAL_S),
            ["image"] * len(order),
            [names[i] for i in order],
        ),
        aligned={
            "stimulus": Series(images[order].reshape(len(order), -1), sfreq, "1"),
            "behaviour": Series(behaviour.astype(np.float32), sfreq, "1"),
            "pupil_centre": Series(pupil_centre.astype(np.float32), sfreq, "1"),
        },
        truth={
            "receptive_field": receptive_fields(population, *images.shape[1:])[0].reshape(count, -1).astype(np.float32),
            "centre": population.centre,
            "energy": population.energy,
            "running": population.running,
            "pupil": population.pupil,
            "rate": rate.T.astype(np.float32),
        },
        simulated=True,
        tracked=tracked,
    )  # fmt: skip
    recording.note("simulate gabor population", repeats=repeats, trial_s=TRIAL_S)
    return recording
