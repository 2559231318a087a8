"""How well a model predicts what neurons answer to stimuli that it has not seen: correlations and explained variance.

Test stimuli are shown several times, which tells the part of a neuron's variance that the stimulus and nothing else
explains. Three measures, each a mean over an animal's neurons (Willeke et al. 2022, The Sensorium competition):
- single-trial correlation, of predictions and responses over all presentations;
- correlation to the average over repeats, predictions averaged likewise;
- FEVe, the share of the explainable variance that is explained, over neurons with enough of it.

An animal that the model does not know gets neurons of its own: its read-out is fitted on its training windows while the
core stays as it is, for the pretrained core and, as a baseline, for the untrained one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.progress import track

from brainfm.evaluations import protocol
from brainfm.metrics import pearson
from brainfm.objectives.poisson_response import PoissonResponse
from brainfm.shards.read import Windows
from brainfm.statistics import bootstrap_ci, bootstrap_trials
from brainfm.training import checkpoint
from brainfm.training.batches import Batcher
from brainfm.training.checkpoint import Pretrained
from brainfm.training.optimisers import summed

#: Rows of each presented image.
Groups = list[np.ndarray]
Measure = Callable[[np.ndarray, np.ndarray, Groups], float]
SINGLE, AVERAGE, FEVE = "single-trial correlation", "correlation to average", "FEVe"


@dataclass(frozen=True)
class Animal:
    """What one animal's baselines and scores need.

    Attributes:
        known, windows: training windows, and test windows in the order of their stimuli.
        response, truth: `(trial, neuron)` of the two.
        groups: rows of `truth` for each stimulus.
    """

    known: Windows
    windows: Windows
    response: np.ndarray
    truth: np.ndarray
    groups: Groups


def run(
    model: Pretrained,
    train: Windows,
    test: Windows,
    *,
    seed: int,
    min_fev: float = 0.15,
    readout_steps: int = 400,
    lr: float = 1e-2,
    batch_size: int = 32,
) -> dict:
    """Score predictions of each test animal's responses; `score` is the single-trial correlation.

    Windows of which the network does not know the image or some behaviour are left out on either side, and counted in
    the note. Of simulated data `measures` also has "true rate": how well the rates score that the responses were drawn
    from. Baselines: the mean training response, a linear-nonlinear model of the pixels (ridge, then a parabola per
    neuron), the same with behaviour scaling that parabola, and the network untrained.

    Args:
        model: a network with `freeze_core`, such as v1t; it is not changed.
        train: windows of one image each, of the test animals; fits the baselines, and the read-out of a new animal.
        test: windows of one image each, every image shown twice or more; none of them in `train`.
        seed: of untrained weights, batches and bootstrap.
        min_fev: neurons with a smaller explainable share of variance do not count in FEVe.
        readout_steps, lr, batch_size: of fitting the read-out of new animals with Adam.

    Raises:
        ValueError: for another kind of model, a stimulus on both sides, one without repeats or name, windows of several
            images, or an animal without training windows.
    """
    if not hasattr(model.model, "freeze_core"):
        raise ValueError(f"{type(model.model).__name__} predicts no responses to stimuli; take a model such as v1t")
    asked = len(train) + len(test)
    train, test = (_complete(model, w) for w in (train, test))
    left_out = asked - len(train) - len(test)
    animals = _animals(train, test)
    new = _are_new(model, test)
    start = {"pretrained": model, "untrained": model.untrained(seed)}
    guesses: dict[str, dict[str, np.ndarray]] = {}
    for person, animal in animals.items():
        networks = start
        if new:
            networks = {
                name: with_readout(one, animal.known, readout_steps, lr, batch_size, seed)
                for name, one in start.items()
            }
        for name, one in networks.items():
            guesses.setdefault(name, {})[person] = predicted(one, animal.windows)
        for name, guess in _baselines(animal, model).items():
            guesses.setdefault(name, {})[person] = guess

    measures: dict[str, Measure] = {
        SINGLE: single_trial,
        AVERAGE: to_average,
        FEVE: lambda truth, guess, groups: explained(truth, guess, groups, min_fev),
    }
    scores = {
        title: {name: _scored(measure, animals, found, seed) for name, found in guesses.items()}
        for title, measure in measures.items()
    }
    main, compared = scores[SINGLE].pop("pretrained"), scores[SINGLE]
    note = f"{left_out} windows whose image or behaviour is unknown were left out. " if left_out else ""
    note += "The read-out of each animal was fitted on its training images; the core was not. " if new else ""
    note += (
        f"FEVe is over neurons with {min_fev:g} or more explainable variance, and above 1 where a model that sees "
        "behaviour explains what differs between repeats."
    )
    shown = {**scores, SINGLE: {"pretrained": main, **compared}}
    if rates := _true_rates(animals):
        shown = {t: {**of, "true rate": _scored(measures[t], animals, rates, seed)} for t, of in shown.items()}
    return {
        **protocol.result("response", SINGLE, main, 0.0, compared, train, test, seed, note),
        "same_people": new,
        "measures": {
            title: {name: {**one.entry(), "per_subject": one.per_subject} for name, one in found.items()}
            for title, found in shown.items()
        },
        "differences": {name: _difference(main, one, seed) for name, one in compared.items()},
        "animals": {
            person: {
                "neurons": a.truth.shape[1], "images": len(a.groups), "presentations": len(a.truth),
                "ci": list(_over_images(single_trial, a, guesses["pretrained"][person], seed)),
            }
            for person, a in animals.items()
        },
    }  # fmt: skip


def single_trial(truth: np.ndarray, guess: np.ndarray, groups: Groups) -> float:
    """Mean over neurons of the correlation over presentations; `(trial, neuron)` both."""
    rows = np.concatenate(groups)
    return pearson(truth[rows], guess[rows])


def to_average(truth: np.ndarray, guess: np.ndarray, groups: Groups) -> float:
    """Mean over neurons of the correlation over stimuli of responses and predictions averaged over repeats."""
    return pearson(*(np.concatenate([x[rows].mean(axis=1) for rows in _alike(groups)]) for x in (truth, guess)))


def explained(truth: np.ndarray, guess: np.ndarray, groups: Groups, min_fev: float = 0.15) -> float:
    """FEVe: `1 - (mse - noise) / (total - noise)`, the mean over neurons whose explainable share is `min_fev` or more.

    `total` is the variance over all presentations, `noise` that over repeats of a stimulus, the mean over stimuli; both
    unbiased. NaN where no neuron counts.
    """
    rows = np.concatenate(groups)
    total = truth[rows].var(axis=0, ddof=1)
    noise = np.concatenate([truth[r].var(axis=1, ddof=1) for r in _alike(groups)]).mean(axis=0)
    error = np.mean((truth[rows] - guess[rows]) ** 2, axis=0)
    counts = (total > 0) & (total - noise >= min_fev * total)
    if not counts.any():
        return float("nan")
    return float(np.mean(1 - (error - noise)[counts] / (total - noise)[counts]))


def _alike(groups: Groups) -> Groups:
    """Rows `(stimulus, repeat)` of stimuli that were shown equally often, which numpy takes at once."""
    sizes = np.array([len(rows) for rows in groups])
    return [np.stack([groups[i] for i in np.flatnonzero(sizes == size)]) for size in np.unique(sizes)]


def predicted(model: Pretrained, windows: Windows, size: int = 64) -> np.ndarray:
    """`(window, neuron)` expected responses of one animal's neurons, in order."""
    device, batcher = next(model.model.parameters()).device, model.batcher()
    found = []
    with torch.inference_mode(), checkpoint.evaluating(model.model):
        for start in range(0, len(windows), size):
            batch = batcher(windows, np.arange(start, min(start + size, len(windows)))).to(device)
            found.append(model.model(batch)[:, :, 0].double().cpu().numpy())
    return np.concatenate(found)


def with_readout(model: Pretrained, windows: Windows, steps: int, lr: float, batch_size: int, seed: int) -> Pretrained:
    """A network for the animals of `windows` with the core of `model`; only its read-out is fitted, by Poisson loss."""
    used = windows.used
    ids = tuple(sorted({x for s in used for x in s.channel_ids}))
    facts = replace(model.facts, neurons=ids, subjects=tuple(sorted({s.person for s in used})))
    objective = PoissonResponse()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = checkpoint.build(model.config, facts).to(next(model.model.parameters()).device)
        network.adopt(model.model)
        network.freeze_core()
        fitted = Pretrained(network, model.config, facts, model.card)
        batcher, rng = fitted.batcher(), np.random.default_rng(seed)
        optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
        network.train()
        network.core.eval()
        for _ in track(range(steps), f"Read-out of {used[0].person}", transient=True):
            rows = np.sort(rng.choice(len(windows), min(batch_size, len(windows)), replace=False))
            loss = summed(objective(network, batcher(windows, rows).to(next(network.parameters()).device)))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()
    return fitted


def linear_nonlinear(
    pixels: np.ndarray, response: np.ndarray, shown: np.ndarray, scaled: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of a parabola of a linear filter, never below 0, `(test trial, neuron)`, without and with behaviour.

    The filter is a ridge on all training trials. The parabola of each neuron is fitted on the last fifth of them, to
    what a ridge on the others says there; so is the line in behaviour that scales it in the second prediction.

    Args:
        pixels, shown: `(trial, pixel)` of training and test. response: `(trial, neuron)` of training.
        scaled: behaviour `(trial, feature)` of training and test; none where None, and both predictions are the same.
    """
    cut = len(pixels) - max(2, len(pixels) // 5)
    held = protocol.fit_ridge(pixels[:cut], response[:cut]).predict(pixels[cut:])
    whole = protocol.fit_ridge(pixels, response).predict(shown)
    known, other = (np.zeros((len(x), 0)) for x in (pixels, shown)) if scaled is None else scaled
    beside = [np.column_stack([np.ones(len(x)), x]) for x in (known[cut:], other)]
    plain, gained = np.empty(whole.shape), np.empty(whole.shape)
    for neuron in range(response.shape[1]):
        truth, powers = response[cut:, neuron], [x[:, neuron, None] ** np.arange(3) for x in (held, whole)]
        fitted, plain[:, neuron] = (x @ np.linalg.lstsq(powers[0], truth, rcond=1e-6)[0] for x in powers)
        gains = np.linalg.lstsq(fitted[:, None] * beside[0], truth, rcond=1e-6)[0]
        gained[:, neuron] = plain[:, neuron] * (beside[1] @ gains)
    return np.maximum(plain, 0), np.maximum(gained, 0)


def _baselines(animal: Animal, model: Pretrained) -> dict[str, np.ndarray]:
    network = model.model
    images, beside = network.aligned[0], network.aligned[1:]
    known, shown = (_covariates(w, network.aligned) for w in (animal.known, animal.windows))
    behaviour = [np.concatenate([x[n] for n in beside], axis=1) for x in (known, shown) if beside]
    scaled = (behaviour[0], behaviour[1]) if beside else None
    plain, gained = linear_nonlinear(known[images], animal.response, shown[images], scaled)
    found = {"mean": np.broadcast_to(animal.response.mean(axis=0), animal.truth.shape), "linear-nonlinear": plain}
    return found | ({"linear-nonlinear with behaviour": gained} if beside else {})


def _true_rates(animals: dict[str, Animal]) -> dict[str, np.ndarray]:
    """The expected responses that a simulator drew from, of each animal; empty where one has none."""
    found = {}
    for person, animal in animals.items():
        windows = animal.windows
        used = {r: windows.recordings[r] for r in np.unique(windows.recording)}
        if not all("truth/rate" in s.arrays for s in used.values()):
            return {}
        rows = zip(windows.recording, windows.start, strict=True)
        found[person] = np.stack([used[r].truth("rate")[:, start] for r, start in rows]).astype(float)
    return found


def _complete(model: Pretrained, windows: Windows, size: int = 256) -> Windows:
    """The windows whose images, and all behaviour that the network takes, are known."""
    parts = [windows.take(np.arange(i, min(i + size, len(windows)))) for i in range(0, len(windows), size)]
    names = model.model.aligned
    seen = [[np.isfinite(x).all(axis=1) for x in _covariates(part, names).values()] for part in parts]
    kept = windows.take(np.concatenate([np.zeros(0, bool), *(np.all(part, axis=0) for part in seen)]))
    if len(windows) and not len(kept):
        raise ValueError(
            f"none of {len(windows)} windows has {', '.join(names)}, all known; take data that have them, or a network "
            "that was built on the `behaviour` that there is"
        )
    return kept


def _covariates(windows: Windows, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """`(window, feature)` of each covariate."""
    batch = Batcher(aligned=names)(windows)
    return {name: batch.aligned[name][:, 0].double().numpy() for name in names}


def _animals(train: Windows, test: Windows) -> dict[str, Animal]:
    """Each test animal by name, its test windows sorted by stimulus; checks what `run` says that it refuses."""
    for side, windows in (("training", train), ("test", test)):
        if not len(windows) or (windows.samples != 1).any() or (windows.stimulus == "").any():
            raise ValueError(
                f"{len(windows)} {side} windows, not all of one sample under a named stimulus; cut windows as long as "
                "one image is shown, from data whose events name their stimuli"
            )
    both = sorted(set(train.stimulus) & set(test.stimulus))
    if both:
        raise ValueError(f"{len(both)} stimuli ({', '.join(both[:3])}) are in training and test; split by stimulus")
    found = {}
    for person in sorted(set(test.of("person").tolist())):
        known, windows = (w.take(w.of("person") == person) for w in (train, test))
        if len(known) < 10:
            raise ValueError(f"{person} has {len(known)} training windows; 10 or more are needed to fit its neurons")
        windows = windows.take(np.lexsort((windows.start, windows.stimulus.astype(str))))
        names = np.unique(windows.stimulus.astype(str), return_inverse=True)[1]
        groups = [np.flatnonzero(names == i) for i in range(names.max() + 1)]
        if len(groups) < 2 or min(map(len, groups)) < 2:
            raise ValueError(
                f"{person}: {len(groups)} test stimuli, some shown once; noise needs repeats of each of two"
            )
        response, truth = (Batcher()(w).signal()[:, :, 0].double().numpy() for w in (known, windows))
        found[person] = Animal(known, windows, response, truth, groups)
    return found


def _are_new(model: Pretrained, test: Windows) -> bool:
    """Whether the model knows none of the test animals' neurons; ValueError where it knows some of them."""
    used = test.used
    known = [x in set(model.model.neurons) for s in used for x in s.channel_ids]
    if any(known) and not all(known):
        raise ValueError(f"the model knows {sum(known)} of {len(known)} neurons; test known and new animals apart")
    return not any(known)


def _scored(measure: Measure, animals: dict[str, Animal], guess: dict[str, np.ndarray], seed: int) -> protocol.Scored:
    """The mean over animals with an interval over them, or over the images of the only one."""
    each = {p: measure(a.truth, guess[p], a.groups) for p, a in animals.items()}
    values = np.array(list(each.values()))
    if len(values) >= 2:
        ci, over = bootstrap_ci(values, seed=seed), "subjects"
    else:
        ((person, animal),) = animals.items()
        ci, over = _over_images(measure, animal, guess[person], seed), "trials"
    return protocol.Scored(float(values.mean()), ci, over, each, sum(len(a.truth) for a in animals.values()))


def _over_images(measure: Measure, animal: Animal, guess: np.ndarray, seed: int) -> tuple[float, float]:
    """Interval of one animal's score by resampling stimuli, each with all its repeats."""
    images = np.arange(len(animal.groups))

    def of(drawn: np.ndarray, _: np.ndarray) -> float:
        return measure(animal.truth, guess, [animal.groups[i] for i in drawn])

    return bootstrap_trials(images, images, of, n=300, seed=seed)


def _difference(main: protocol.Scored, other: protocol.Scored, seed: int) -> dict:
    """The model minus a baseline, paired within animals; no interval for one animal."""
    values = np.array([main.per_subject[p] - other.per_subject[p] for p in main.per_subject])
    return {"score": float(values.mean()), "ci": list(bootstrap_ci(values, seed=seed)) if len(values) > 1 else None}
