"""Spikes that a model generates beside recorded ones: rates, trial averages, variability, and who fires with whom.

The model draws the current state of every test window several times, from the recorded past, and in runs of `own_s`
seconds from its own. Measures, each a mean over an animal's neurons (or one over its pairs):
- rate correlation, of recorded counts and expected ones over windows;
- PSTH correlation, of their averages over trials of a condition, in steps of a current state after each event;
- bits per spike that the expected counts gain over each neuron's mean (`evaluations/spike_scores.py`);
- pairwise correlation: count correlations of all pairs of neurons, correlated between recorded and generated;
- Fano factor, variance over mean of counts over windows: recorded, and generated.

The bar to clear is a Poisson GLM for each neuron on the same past, stimulus and behaviour. It sees covariates over the
whole current state, so it is not at a disadvantage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import track
from sklearn.linear_model import PoissonRegressor
from sklearn.preprocessing import StandardScaler

from brainfm.evaluations import protocol, spike_scores
from brainfm.evaluations.regression import block_of
from brainfm.metrics import pearson
from brainfm.shards.read import Windows
from brainfm.shards.stored import rate
from brainfm.statistics import bootstrap_ci, bootstrap_trials
from brainfm.training.batches import Batcher
from brainfm.training.checkpoint import Pretrained, evaluating

RATE, PSTH, BITS, PAIRS, FANO = (
    "rate correlation", "PSTH correlation", "bits per spike", "pairwise correlation", "Fano factor",
)  # fmt: skip
#: Penalties that the GLM chooses from on the last fifth of its training windows, by a few neurons.
ALPHA = (1e-3, 1e-2, 1e-1, 1.0)
CHOOSERS = 8
#: Least expected count of the GLM.
LEAST = 1e-4


@dataclass(frozen=True)
class Guess:
    """What a model says of one animal's test windows.

    Attributes:
        rates: `(window, neuron)` expected counts. drawn: `(draw, window, neuron)` counts.
    """

    rates: np.ndarray
    drawn: np.ndarray


@dataclass(frozen=True)
class Animal:
    """Windows of one animal, in order of time.

    Attributes:
        known, windows: of training and test. truth: `(window, neuron)` counts of the test windows' current states.
        cell: `(window,)` number of the condition and step after its event that a window is in; -1 for none.
        run: `(window,)` first row of the run of consecutive windows that it belongs to.
    """

    known: Windows
    windows: Windows
    truth: np.ndarray
    cell: np.ndarray
    run: np.ndarray


Measure = Callable[[np.ndarray, Guess, np.ndarray, np.ndarray], float]


def run(
    model: Pretrained,
    train: Windows,
    test: Windows,
    *,
    seed: int,
    draws: int = 8,
    own_s: float = 1.0,
    windows_per_animal: int = 600,
    psth_s: float = 0.6,
    history_bins: int = 3,
    temperature: float = 1.0,
    top_p: float = 1.0,
    size: int = 256,
) -> dict:
    """Score what the model generates; `score` is the rate correlation from the recorded past.

    Baselines: the GLM, the network untrained, and "shuffled", the model's own counts in another order of windows.
    "own past" under `measures` is the model left to itself.

    Args:
        model: a network with `generate` and `roll_out`, such as neuroformer, that knows the neurons; not changed.
        train: windows of the test animals that fit the GLM; none of them in `test`.
        test: windows of the model's length, one every current state.
        seed: of draws, untrained weights and bootstrap.
        draws: how often each window is generated; by the untrained network, whose states hardly end, two times at most.
        own_s: seconds of a run from its own past.
        windows_per_animal: the first so many test windows of each animal.
        psth_s: seconds after an event that count for trial averages. history_bins: parts of the past that the GLM sees.
        temperature, top_p: of generation; 1 and 1 sample what the model believes.
        size: windows per batch.

    Raises:
        ValueError: for another kind of model, windows of another length or step, on both sides, or an animal that has
            no training windows or several tables of neurons.
    """
    if not hasattr(model.model, "roll_out"):
        raise ValueError(f"{type(model.model).__name__} generates no spikes; take a model such as neuroformer")
    animals = _animals(model.model, train, test, windows_per_animal, psth_s)
    guesses: dict[str, dict[str, Guess]] = {}
    how = {"temperature": temperature, "top_p": top_p}
    for person, animal in animals.items():
        own = max(2, round(own_s / model.model.current_s))
        found = {"pretrained": generated(model, animal, draws, 1, seed, how, size)}
        found["own past"] = generated(model, animal, draws, own, seed, how, size)
        found["untrained"] = generated(model.untrained(seed), animal, min(draws, 2), 1, seed, how, size)
        rates = glm(model.model, animal, history_bins)
        rng = np.random.default_rng(seed)
        found["GLM"] = Guess(rates, rng.poisson(rates, (draws, *rates.shape)).astype(float))
        order, first = rng.permutation(len(animal.truth)), found["pretrained"]
        found["shuffled"] = Guess(first.rates[order], first.drawn[:, order])
        for name, guess in found.items():
            guesses.setdefault(name, {})[person] = guess
    measures: dict[str, Measure] = {RATE: rate_correlation, BITS: bits, PAIRS: pairs, FANO: fano}
    if all((a.cell >= 0).any() for a in animals.values()):
        measures[PSTH] = psth_correlation
    table = {
        title: {
            name: _scored(measure, animals, own, seed)
            for name, own in guesses.items()
            if name != "shuffled" or title not in (PAIRS, FANO)  # which no order changes
        }
        for title, measure in measures.items()
    }
    recorded = {p: Guess(a.truth, a.truth[None]) for p, a in animals.items()}
    table[FANO]["recorded"] = _scored(fano, animals, recorded, seed)
    main = table[RATE]["pretrained"]
    compared = {name: table[RATE][name] for name in ("GLM", "untrained", "shuffled")}
    kept = Windows.join([a.windows for a in animals.values()])
    note = (
        f"Counts of {model.model.current_s * 1000:g} ms, {draws} draws. From its own past, in runs of {own_s:g} s, the "
        f"model reaches {table[RATE]['own past'].score:.2f}. Fano factor {table[FANO]['recorded'].score:.2f} recorded, "
        f"{table[FANO]['pretrained'].score:.2f} generated."
    )
    return {
        **protocol.result("generation", RATE, main, 0.0, compared, train, kept, seed, note),
        "measures": {
            title: {name: {**one.entry(), "per_subject": one.per_subject} for name, one in found.items()}
            for title, found in table.items()
        },
    }


def generated(
    model: Pretrained, animal: Animal, draws: int, steps: int, seed: int, how: dict[str, float], size: int
) -> Guess:
    """Counts and expected counts, of windows each from its recorded past, or in runs of `steps` from their own.

    Expected counts are means over draws, with each neuron's mean training count as one draw more, so that none is 0.
    """
    network: Any = model.model
    device, batcher = next(network.parameters()).device, model.batcher()
    place = (np.arange(len(animal.run)) - animal.run) % steps
    first = np.flatnonzero(place == 0)
    length = np.diff(np.append(first, len(place)))
    drawn = np.zeros((draws, *animal.truth.shape))
    total = np.zeros(animal.truth.shape)
    jobs = [(n, rows) for n in np.unique(length) for rows in _pieces(first[length == n], max(1, size))]
    with torch.inference_mode(), evaluating(network):
        for n, rows in track(jobs, "Generating", transient=True):
            windows = [batcher(animal.windows, rows + step).to(device) for step in range(n)]
            for draw in range(draws):
                for batch in windows:
                    batch.aligned["draw"] = torch.from_numpy(rows).to(device) * 4096 + draw
                if steps == 1:
                    made = [network.generate(windows[0], seed=seed, **how)]
                else:
                    made = network.roll_out(windows, seed=seed, **how)
                for step, state in enumerate(made):
                    counts = torch.zeros_like(state.expected)
                    counts.scatter_add_(1, state.channel, state.mask.to(counts.dtype))
                    drawn[draw, rows + step] = counts.double().cpu().numpy()
                    total[rows + step] += state.expected.double().cpu().numpy()
    mean = counted(animal.known, network.past_s, network.past_s + network.current_s)[:, 0].mean(axis=0)
    return Guess((total + np.maximum(mean, LEAST)) / (draws + 1), drawn)


def _pieces(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def glm(network: Any, animal: Animal, bins: int) -> np.ndarray:
    """`(window, neuron)` expected counts by a Poisson GLM per neuron, from the past of all neurons and covariates.

    A covariate that is missing in a window counts as its mean over the training windows.
    """
    x, shown = (_features(network, w, bins) for w in (animal.known, animal.windows))
    y = counted(animal.known, network.past_s, network.past_s + network.current_s)[:, 0]
    there = np.isfinite(x).any(axis=0)
    scaler = StandardScaler().fit(x[:, there])  # it passes over what is missing, which is then 0: the training mean
    x, shown = (np.nan_to_num(scaler.transform(each[:, there])) for each in (x, shown))
    cut = len(x) - max(1, len(x) // 5)
    active = np.flatnonzero(y[:cut].sum(axis=0) > 0)
    error = np.zeros(len(ALPHA))
    with protocol.threads().limit(limits=1):
        for neuron in active[:: max(1, len(active) // CHOOSERS)]:
            for i, alpha in enumerate(ALPHA):
                fitted = _poisson(alpha).fit(x[:cut], y[:cut, neuron])
                error[i] += spike_scores.poisson_nll(y[cut:, [neuron]], _bounded(fitted.predict(x[cut:]), y)[:, None])
        alpha = ALPHA[int(np.argmin(error))]
        out = np.full((len(shown), y.shape[1]), LEAST)
        for neuron in track(np.flatnonzero(y.sum(axis=0) > 0), "GLM", transient=True):
            out[:, neuron] = _bounded(_poisson(alpha).fit(x, y[:, neuron]).predict(shown), y)
    return out


def _poisson(alpha: float) -> PoissonRegressor:
    return PoissonRegressor(alpha=alpha, solver="newton-cholesky", max_iter=50)


def _bounded(rates: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """An exponential may run away on windows unlike the training ones; no count is expected above twice the largest."""
    return np.clip(rates, LEAST, 2 * counts.max())


def _features(network: Any, windows: Windows, bins: int) -> np.ndarray:
    """`(window, feature)`: counts of all neurons in parts of the past, means of covariates over past and current state.

    Covariates that the network predicts, and does not see, are left out; NaN where no sample is known.
    """
    parts = [counted(windows, 0.0, network.past_s, bins).reshape(len(windows), -1)]
    names = tuple(network.value)
    batch = Batcher(aligned=names)(windows)
    for name in names:
        series = np.ma.masked_invalid(batch.aligned[name].double().numpy())
        cut = min(
            series.shape[1] - 1, max(1, round(series.shape[1] * network.past_s / (network.past_s + network.current_s)))
        )
        parts += [
            np.ma.filled(part.mean(axis=1), np.nan) for part in (series[:, :cut], series[:, cut:]) if part.shape[1]
        ]
    return np.concatenate(parts, axis=1)


def counted(windows: Windows, start_s: float, stop_s: float, bins: int = 1) -> np.ndarray:
    """`(window, bin, neuron)` spikes from `start_s` to `stop_s` of each window, in equal bins."""
    neurons = len(windows.recordings[windows.recording[0]].channels)
    out = np.zeros((len(windows), bins, neurons))
    for i, (r, start) in enumerate(zip(windows.recording, windows.start, strict=True)):
        stored = windows.recordings[r]
        begin = start / rate(stored) + start_s
        time, neuron = stored.spikes(begin, begin + stop_s - start_s)
        place = np.minimum(((time - begin) / (stop_s - start_s) * bins).astype(int), bins - 1)
        np.add.at(out[i], (place, neuron.astype(int)), 1)
    return out


def rate_correlation(truth: np.ndarray, guess: Guess, cell: np.ndarray, rows: np.ndarray) -> float:
    """Mean over neurons of the correlation over windows of recorded and expected counts."""
    return pearson(truth[rows], guess.rates[rows])


def psth_correlation(truth: np.ndarray, guess: Guess, cell: np.ndarray, rows: np.ndarray) -> float:
    """The same of averages over trials: rows are averaged within each condition and step after its event."""
    rows = rows[cell[rows] >= 0]
    found, number, count = np.unique(cell[rows], return_inverse=True, return_counts=True)
    means = []
    for x in (truth, guess.rates):
        sums = np.zeros((len(found), x.shape[1]))
        np.add.at(sums, number, x[rows])
        means.append(sums / count[:, None])
    return pearson(*means)


def bits(truth: np.ndarray, guess: Guess, cell: np.ndarray, rows: np.ndarray) -> float:
    """Bits per spike over each neuron's mean in these very windows."""
    return spike_scores.bits_per_spike(truth[rows], guess.rates[rows])


def pairs(truth: np.ndarray, guess: Guess, cell: np.ndarray, rows: np.ndarray) -> float:
    """Correlation over pairs of neurons of their recorded and generated count correlations, the mean over draws."""
    upper = np.triu_indices(truth.shape[1], 1)
    true = _correlations(truth[rows])[upper]
    return float(np.mean([pearson(true, _correlations(x[rows])[upper]) for x in guess.drawn]))


def _correlations(counts: np.ndarray) -> np.ndarray:
    centred = counts - counts.mean(axis=0)
    scale = np.linalg.norm(centred, axis=0)
    scaled = centred / np.where(scale > 0, scale, 1.0)
    return scaled.T @ scaled


def fano(truth: np.ndarray, guess: Guess, cell: np.ndarray, rows: np.ndarray) -> float:
    """Variance over mean of generated counts over windows, the mean over draws and neurons that fire."""
    counts = guess.drawn[:, rows]
    mean = counts.mean(axis=1)
    ratio = np.divide(counts.var(axis=1), mean, out=np.full(mean.shape, np.nan), where=mean > 0)
    return float(np.nanmean(ratio)) if np.isfinite(ratio).any() else float("nan")


def _animals(network: Any, train: Windows, test: Windows, most: int, psth_s: float) -> dict[str, Animal]:
    """Each test animal by name; checks what `run` says that it refuses."""
    length, step = network.past_s + network.current_s, network.current_s
    for side, windows in (("training", train), ("test", test)):
        seconds = np.array(
            [n / rate(windows.recordings[r]) for n, r in zip(windows.samples, windows.recording, strict=True)]
        )
        if not len(windows) or np.abs(seconds - length).max() > 1e-6:
            raise ValueError(f"{len(windows)} {side} windows, not all of the model's {length:g} s; cut such")
    seen = train.intervals()
    found = {}
    for person in sorted(set(test.of("person").tolist())):
        known, windows = (_in_order(w.take(w.of("person") == person)) for w in (train, test))
        tables = {tuple(s.channel_ids) for w in (known, windows) for s in w.used}
        if not len(known) or len(tables) != 1:
            raise ValueError(
                f"{person} has {len(known)} training windows and {len(tables)} tables of neurons; the GLM needs "
                "training windows of the same neurons: choose sessions of tracked neurons (`brainfm ingest "
                "--tracked`), or blocks of one session"
            )
        windows = windows.take(np.arange(min(most, len(windows))))
        for key, spans in windows.intervals().items():
            if any(a < stop and start < b for a, b in spans for start, stop in seen.get(key, [])):
                raise ValueError(f"{key} has test windows that overlap training windows; split by session or block")
        per = np.array([rate(windows.recordings[r]) for r in windows.recording])
        follows = (np.diff(windows.recording) == 0) & (np.abs(np.diff(windows.start) / per[1:] - step) < 1e-6)
        if len(windows) < 2 or follows.mean() < 0.5:
            raise ValueError(f"{person}: test windows do not follow one another by {step:g} s; set stride_s to that")
        heads = np.append(0, np.flatnonzero(~follows) + 1)
        first = np.repeat(heads, np.diff(np.append(heads, len(windows))))
        truth = counted(windows, network.past_s, length)[:, 0]
        found[person] = Animal(known, windows, truth, _cells(network, windows, psth_s), first)
    return found


def _in_order(windows: Windows) -> Windows:
    return windows.take(np.lexsort((windows.start, windows.recording)))


def _cells(network: Any, windows: Windows, psth_s: float) -> np.ndarray:
    """`(window,)` condition and step after the latest event that the middle of a current state is in; -1 for none."""
    per = max(1, round(psth_s / network.current_s))
    words = sorted({str(x) for r in np.unique(windows.recording) for x in windows.recordings[r].events.label} - {""})
    out = np.full(len(windows), -1)
    for r in np.unique(windows.recording):
        stored, rows = windows.recordings[r], np.flatnonzero(windows.recording == r)
        order = np.argsort(stored.events.onset, kind="stable")
        onset, label = stored.events.onset[order], np.asarray(stored.events.label)[order]
        middle = windows.start[rows] / rate(stored) + network.past_s + network.current_s / 2
        latest = np.searchsorted(onset, middle, side="right") - 1
        for row, event, t in zip(rows, latest, middle, strict=True):
            step = int((t - onset[event]) / network.current_s) if event >= 0 else per
            if step < per and str(label[event]) in words:
                out[row] = words.index(str(label[event])) * per + step
    return out


def _scored(measure: Measure, animals: dict[str, Animal], guess: dict[str, Guess], seed: int) -> protocol.Scored:
    """The mean over animals with an interval over them, or over blocks of windows of the only one."""
    every = {p: np.arange(len(a.truth)) for p, a in animals.items()}
    each = {p: measure(a.truth, guess[p], a.cell, every[p]) for p, a in animals.items()}
    values = np.array(list(each.values()))
    if len(values) >= 2:
        ci, over = bootstrap_ci(values, seed=seed), "subjects"
    else:
        ((person, a),) = animals.items()

        def of(rows: np.ndarray, _: np.ndarray) -> float:
            return measure(a.truth, guess[person], a.cell, rows)

        block = block_of(len(a.truth))
        ci, over = bootstrap_trials(every[person], every[person], of, n=100, seed=seed, block=block), "trials"
    return protocol.Scored(float(values.mean()), ci, over, each, sum(len(a.truth) for a in animals.values()))
