"""One model on many devices: how well its tokenizer reconstructs each, and what a probe decodes on each.

Whether pretraining saw a device, or the tested people, stands beside every score: the card of the model says so. On a
device that has training windows the probe is fitted on those; on one without, each person is decoded by the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from brainfm.evaluations import baselines, protocol
from brainfm.evaluations.autoencoding import correlations, reconstructed, tokenizer_of
from brainfm.metrics import balanced_accuracy
from brainfm.shards.read import Windows
from brainfm.training.checkpoint import Pretrained


def run(
    model: Pretrained, train: Windows, test: Windows, *, seed: int, linear: str | Sequence[str] = "log_band_power"
) -> dict:
    """Correlation with the reconstruction and balanced accuracy of a probe, for each device of the test windows.

    The score is the correlation over all people on devices that pretraining did not see. Baselines, on the same
    windows: the network untrained, and a linear readout of the signals.

    Args:
        model: one with a tokenizer inside; not changed.
        train: labelled windows to fit probes on, of some of the devices. test: windows; those without a label are
            reconstructed and not decoded.
        seed: of folds, untrained weights and bootstrap.
        linear: features of the signals, see `baselines.of_signals`.

    Raises:
        ValueError: where the model has no tokenizer, or every device was seen.
    """
    fresh = model.untrained(seed)
    known, people = set(model.card.get("devices", [])), set(protocol.seen_people(model.card))
    kinds = np.char.add(np.char.add(test.of("dataset").astype(str), "/"), test.of("device").astype(str))
    own, blind = (_each(m, test) for m in (model, fresh))
    who = test.of("person")
    found: list[dict[str, Any]] = []
    for name in sorted(set(kinds.tolist())):
        rows = np.flatnonzero(kinds == name)
        here = test.take(rows)
        stored = here.recordings[here.recording[0]]
        entry: dict[str, Any] = {
            "dataset": stored.dataset, "device": stored.device, "simulated": stored.simulated,
            "device_seen": stored.device in known, "people_seen": bool(people & set(who[rows].tolist())),
            "n_people": len(set(who[rows].tolist())), "n_windows": len(rows),
            "pcc": protocol.scored_mean(who[rows], own[rows], seed).entry(),
            "pcc_untrained": protocol.scored_mean(who[rows], blind[rows], seed).entry(),
        }  # fmt: skip
        found.append(entry | _decoded(model, fresh, train, here, seed, linear))
    unseen = ~np.isin(test.of("device"), list(known))
    if not unseen.any():
        raise ValueError(f"pretraining saw all test devices ({', '.join(sorted(known))}); hold one out with `devices`")
    main, base = (protocol.scored_mean(who[unseen], x[unseen], seed) for x in (own, blind))
    return {
        **protocol.result("devices", "PCC", main, 0.0, {"untrained": base}, train, test, seed, (
            "Reconstruction of people on devices that pretraining did not see; `devices` has each device."
        )),
        "devices": found,
        "held_out_devices": sorted(set(test.of("device")[unseen].tolist()) - set(train.of("device").tolist())),
    }  # fmt: skip


def _each(model: Pretrained, windows: Windows) -> np.ndarray:
    """`(window,)` mean correlation of the channels with their reconstruction."""
    truth, made, _ = reconstructed(tokenizer_of(model), model, windows)
    return np.array([correlations(a, b).mean() for a, b in zip(truth, made, strict=True)])


def _decoded(
    model: Pretrained, fresh: Pretrained, train: Windows, test: Windows, seed: int, linear: str | Sequence[str]
) -> dict[str, Any]:
    """Balanced accuracy of probes on one device; nothing where there is nobody to learn from."""
    stored = test.recordings[test.recording[0]]
    test = test.take(np.flatnonzero(test.label != ""))
    same = (train.of("dataset") == stored.dataset) & (train.of("device") == stored.device) & (train.label != "")
    source = train.take(np.flatnonzero(same))
    people = test.of("person")
    alone = not len(source)
    if not len(test) or (alone and len(set(people.tolist())) < 2):
        return {}
    if alone:
        source = test
    labels, truth, learned = source.label.astype(str), test.label.astype(str), source.of("person")
    classes = protocol.classes_of(source, test)
    features = {"accuracy": (model.features(source), model.features(test)),
                "accuracy_untrained": (fresh.features(source), fresh.features(test))}  # fmt: skip
    signals, _ = baselines.of_signals(linear, source, test)
    features |= {f"accuracy_{name}": both for name, both in signals.items()}
    out: dict[str, Any] = {"chance": 1 / len(classes), "n_trials": len(test), "leave_one_person_out": alone}
    for name, (known, asked) in features.items():
        guess = np.empty_like(truth)
        for person in sorted(set(people.tolist())) if alone else [None]:
            taught = learned != person if alone else np.ones(len(labels), bool)
            tested = people == person if alone else np.ones(len(truth), bool)
            fitted = protocol.fit_linear(known[taught], labels[taught], learned[taught], seed)
            guess[tested] = fitted.predict(asked[tested])
        out[name] = protocol.scored(balanced_accuracy, people, truth, guess, seed).entry()
    return out
