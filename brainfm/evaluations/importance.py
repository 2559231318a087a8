"""Which channels and bands a decoder needs, by permutation, and where its network looks, by saliency.

Breiman 2001, Random forests, section 10: what a part of the input is worth is how much worse the score becomes when
that part is taken from another trial. Saliency is the gradient of the true class's logit times the input: Shrikumar et
al. 2016, Not just a black box, https://arxiv.org/abs/1605.01713. Neither says where in the brain something happens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.pipeline import Pipeline

from brainfm.evaluations import baselines, protocol
from brainfm.evaluations.methods.trials import Signals, Trials
from brainfm.metrics import balanced_accuracy
from brainfm.recording import TYPICAL
from brainfm.shards.read import Windows
from brainfm.statistics import bootstrap_ci
from brainfm.training.batches import ArrayDataset
from brainfm.training.checkpoint import Pretrained, evaluating, in_order

#: `(window, channel, time)` → `(window,)` class numbers.
Predict = Callable[[np.ndarray], np.ndarray]


def run(
    model: Pretrained,
    train: Windows,
    test: Windows,
    *,
    seed: int,
    repeats: int = 3,
    most: int = 400,
    bands: dict[str, tuple[float, float]] | None = None,
) -> dict:
    """A linear probe of the shared channels, and what its score loses without each channel and each band.

    Args:
        model: the network, not changed.
        train, test: labelled windows of one length, of different people; pretraining has not seen the test people.
        seed: of everything that is drawn.
        repeats: other trials that each channel and band is taken from. most: tested windows at most, drawn by person.
        bands: name → edges in Hz; those of `baselines.BANDS` if None.

    Raises:
        ValueError: for windows of several rates, unequal classes, or a test person who trains or whom pretraining saw.
    """
    classes = protocol.classes_of(train, test)
    protocol.strangers(train, test, model.card)
    test = test.take(drawn(test.of("person"), most, seed))
    trials = Trials(Windows.join([train, test]), seed)
    signals, cut = trials.signals(), len(train)
    people, truth, held = trials.people[cut:], trials.labels[cut:], signals.values[cut:]
    fitted = protocol.fit_linear(
        features_of(model, signals, signals.values[:cut]), trials.labels[:cut], trials.people[:cut], seed
    )

    def predict(values: np.ndarray) -> np.ndarray:
        return fitted.predict(features_of(model, signals, values))

    fresh = model.untrained(seed)
    other = protocol.fit_linear(
        features_of(fresh, signals, signals.values[:cut]), trials.labels[:cut], trials.people[:cut], seed
    )
    guess = {"pretrained": predict(held), "untrained": other.predict(features_of(fresh, signals, held))}
    scores = {k: protocol.scored(balanced_accuracy, people, truth, g, seed) for k, g in guess.items()}
    majority = np.full(len(truth), np.bincount(trials.labels[:cut]).argmax())
    given = baselines.BANDS if bands is None else bands
    known = {name: edges for name, edges in given.items() if edges[0] < signals.sfreq / 2}
    by_channel = channel_importance(predict, held, truth, people, repeats, seed)
    by_band = band_importance(predict, held, signals.sfreq, known, truth, people, repeats, seed)
    salience = saliency(model, fitted, signals, held, truth, len(classes))
    return {
        **protocol.result(
            "importance", "balanced accuracy", scores["pretrained"], 1 / len(classes),
            {
                "majority": protocol.scored(balanced_accuracy, people, truth, majority, seed),
                "untrained": scores["untrained"],
            },
            train, test, seed, "The probe reads the channels that all recordings share. What two channels or bands "
            f"both carry counts for neither. {signals.note}"
            + ("" if salience is not None else " The network has no gradient to its input: no saliency."),
        ),
        "importance": {
            "channels": [_entry(n, d, seed) for n, d in zip(signals.channels.name, by_channel.T, strict=True)],
            "bands": [_entry(n, d, seed) for n, d in zip(known, by_band.T, strict=True)],
        },
        "topographies": [
            _topography(signals, "drop in balanced accuracy without the channel", by_channel.mean(axis=0)),
            *(
                _topography(signals, f"saliency, {word}", row)
                for word, row in zip(classes, salience if salience is not None else (), strict=False)
            ),
        ],
    }  # fmt: skip


def drawn(people: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Rows, ascending: all, or about `most` of them, as many of each person as there are."""
    if len(people) <= most:
        return np.arange(len(people))
    rng, names = np.random.default_rng(seed), np.unique(people)
    each = max(2, most // len(names))
    own = [rng.permutation(np.flatnonzero(people == name))[:each] for name in names]
    return np.sort(np.concatenate(own))


def features_of(model: Pretrained, signals: Signals, values: np.ndarray) -> np.ndarray:
    """Pooled encodings `(window, feature)` of `(window, channel, time)`, typical amplitudes of the shared channels."""
    return model.pooled(_dataset(model, signals, values))


def _dataset(model: Pretrained, signals: Signals, values: np.ndarray) -> ArrayDataset:
    gain = np.array([TYPICAL[kind] for kind in signals.channels.kind], np.float32)[:, None]
    return ArrayDataset(values * gain, signals.channels, signals.sfreq, model.batcher())


def channel_importance(
    predict: Predict, values: np.ndarray, truth: np.ndarray, people: np.ndarray, repeats: int, seed: int
) -> np.ndarray:
    """Drop in balanced accuracy `(person, channel)` when a channel is taken from another trial of the person.

    Args:
        predict: the decoder. values: `(window, channel, time)`. truth, people: `(window,)`.
        repeats: draws of other trials, averaged. seed: of the draws.
    """

    def changed(channel: int, donor: np.ndarray) -> np.ndarray:
        other = values.copy()
        other[:, channel] = values[donor, channel]
        return other

    return _drops(predict, values, changed, values.shape[1], truth, people, repeats, seed)


def band_importance(
    predict: Predict, values: np.ndarray, sfreq: float, bands: dict[str, tuple[float, float]], truth: np.ndarray,
    people: np.ndarray, repeats: int, seed: int,
) -> np.ndarray:  # fmt: skip
    """The same `(person, band)` for the Fourier coefficients of a band in all channels, amplitudes and phases.

    Args:
        predict, values, truth, people, repeats, seed: as in `channel_importance`.
        sfreq: samples per second. bands: name → edges in Hz, the lower one inside.

    Raises:
        ValueError: where windows are too short to tell a band apart.
    """
    hertz = np.fft.rfftfreq(values.shape[-1], 1 / sfreq)
    inside = [(hertz >= low) & (hertz < high) for low, high in bands.values()]
    empty = [name for name, rows in zip(bands, inside, strict=True) if not rows.any()]
    if empty:
        raise ValueError(
            f"windows of {values.shape[-1] / sfreq:g} s have no frequency in {', '.join(empty)}; take longer windows "
            "or wider bands"
        )
    spectrum = np.fft.rfft(values, axis=-1)

    def changed(band: int, donor: np.ndarray) -> np.ndarray:
        mixed = np.where(inside[band], spectrum[donor], spectrum)
        return np.fft.irfft(mixed, values.shape[-1], axis=-1).astype(values.dtype)

    return _drops(predict, values, changed, len(bands), truth, people, repeats, seed)


def _drops(
    predict: Predict, values: np.ndarray, changed: Callable[[int, np.ndarray], np.ndarray], parts: int,
    truth: np.ndarray, people: np.ndarray, repeats: int, seed: int,
) -> np.ndarray:  # fmt: skip
    rng, names = np.random.default_rng(seed), np.unique(people)

    def each(guess: np.ndarray) -> np.ndarray:
        return np.array([balanced_accuracy(truth[people == p], guess[people == p]) for p in names])

    whole, out = each(predict(values)), np.zeros((len(names), parts))
    for _ in range(repeats):
        donor = others(people, rng)
        for part in range(parts):
            out[:, part] += (whole - each(predict(changed(part, donor)))) / repeats
    return out


def others(people: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`(window,)` another window of the same person for each; every window is taken once.

    Raises:
        ValueError: for a person with one window.
    """
    out = np.zeros(len(people), np.int64)
    for name in np.unique(people):
        rows = rng.permutation(np.flatnonzero(people == name))
        if len(rows) < 2:
            raise ValueError(f"{name} has one window and none to take a channel or band from; leave this person out")
        out[rows] = np.roll(rows, 1)
    return out


def saliency(
    model: Pretrained, fitted: Pipeline, signals: Signals, values: np.ndarray, truth: np.ndarray, classes: int,
    size: int = 32,
) -> np.ndarray | None:  # fmt: skip
    """`(class, channel)` mean over windows and time of |gradient x input| of the true class's logit.

    Args:
        model: the network. fitted: standardising and logistic regression of its pooled encodings, of class numbers.
        signals: channels and rate. values: `(window, channel, time)`. truth: `(window,)`. classes: how many.

    Returns:
        None where the network cuts its signal into codes, which have no gradient.
    """
    scale, linear = fitted[0], fitted[-1]
    device = next(model.model.parameters()).device
    weight = torch.tensor(linear.coef_ / scale.scale_, dtype=torch.float32, device=device)
    if len(weight) == 1:
        weight = torch.cat((-weight, weight)) / 2
    total, begin = np.zeros((classes, values.shape[1])), 0
    with torch.enable_grad(), evaluating(model.model):
        for batch in in_order(_dataset(model, signals, values), size):
            own = truth[begin : begin + len(batch)]
            begin += len(batch)
            batch = batch.to(device)
            leaf = batch.values.clone().requires_grad_()
            pooled = model.model.encode(replace(batch, values=leaf)).pooled
            if not pooled.requires_grad:
                return None
            logit = (pooled * weight[torch.from_numpy(own).to(device)]).sum()  # the bias has no gradient
            (gradient,) = torch.autograd.grad(logit, leaf, allow_unused=True)
            if gradient is None:
                return None
            product = replace(batch, values=(gradient * leaf).abs().detach()).signal().mean(dim=-1).cpu().numpy()
            np.add.at(total, own, product)
    count = np.bincount(truth, minlength=classes)[:, None]
    return total / np.maximum(count, 1)


def _entry(name: str, drops: np.ndarray, seed: int) -> dict:
    """A channel's or band's mean drop over people; no interval for one person."""
    ends = list(bootstrap_ci(drops, seed=seed)) if len(drops) > 1 else None
    return {"name": name, "score": float(drops.mean()), "ci": ends}


def _topography(signals: Signals, title: str, values: Sequence[float] | np.ndarray) -> dict:
    return {
        "title": title, "positions": signals.channels.position.tolist(), "values": np.asarray(values).tolist(),
        "names": list(signals.channels.name),
    }  # fmt: skip
