"""What did it really learn? Whether a representation tells what people do, or only who they are (the identity trap).

Foundation models of EEG were found to score through who a person is (arXiv 2606.06647). Windows of people never seen
are asked, and beside each figure stands its null: permuted labels or people, the network untrained, or log band power.

Parts of the result's `identity`: `probes` (label in people never seen and, later on, in people known; subject),
`variance`, `consistency` of the directions of classes, `erasure` of who someone is, `aperiodic` (the 1/f part removed,
and nothing but it), `layers`, `perturbation`, and `says`, which puts the main ones in words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brainfm.evaluations import baselines, layerwise, perturbation, protocol, variance
from brainfm.evaluations.chance import LEVEL, few_orders
from brainfm.evaluations.identity_probes import Probed, Probes, probes
from brainfm.evaluations.methods import alignment
from brainfm.evaluations.methods.trials import Trials
from brainfm.metrics import balanced_accuracy, confusion
from brainfm.recording import TYPICAL
from brainfm.shards.read import Windows
from brainfm.training.batches import ArrayDataset
from brainfm.training.checkpoint import Pretrained


def run(
    model: Pretrained,
    train: Windows,
    test: Windows,
    *,
    seed: int,
    permutations: int = 199,
    label_permutations: int = 20,
    gap_s: float = 4.0,
    per_class: int = 5,
    segments: int = 8,
    inverse_penalty: float | None = None,
) -> dict:
    """A label probe in people never seen, and the diagnostics of what it and the representation rest on.

    Args:
        model: a network that reads sampled signals; not changed.
        train, test: labelled windows of one rate, of different people; pretraining has not seen the test people.
        seed: of folds, untrained weights, permutations, perturbations and bootstrap.
        permutations: of the nulls of variance and consistency.
        label_permutations: fits on labels permuted within people, averaged, for the baseline of that name.
        gap_s: seconds between what a probe of the subject, or of the label later on, is fitted on and what it is asked;
            twice the recording's `reach_s` where that is longer.
        per_class: windows of each class and test person that are perturbed.
        segments: stretches of time that are shuffled one by one.
        inverse_penalty: of the readouts of the label; None chooses each by cross-validation over training people.

    Raises:
        ValueError: where a test person trains or pretraining saw them, classes of the sides differ, a person's
            recordings are too short to be parted, a side has fewer than two people with all classes, or the windows
            are of spikes.
    """
    classes = protocol.classes_of(train, test)
    protocol.strangers(train, test, model.card)
    if any(s.sfreq == 0 for s in (*train.used, *test.used)):
        raise ValueError("windows of spikes; the identity diagnostics need sampled signals (EEG, MEG, LFP, fMRI)")
    _check_people("training", train, classes)
    _check_people("test", test, classes)
    trials = Trials(Windows.join([train, test]), seed)
    asked = probes(trials, np.arange(len(train)), gap_s, seed, inverse_penalty)
    fresh = model.untrained(seed)
    layers, pooled = layerwise.outputs(model, trials.batches(model))
    fresh_layers, fresh_pooled = layerwise.outputs(fresh, trials.batches(fresh))
    views = {
        "pretrained": pooled,
        "untrained": fresh_pooled,
        "log_band_power": baselines.log_band_power(trials.windows),
    }
    found = {name: _probed(asked, x) for name, x in views.items()}
    main = found["pretrained"].label
    encoder, signals = Encoder(model, trials), trials.signals()
    plain = encoder(signals.values)
    perturbing, topographies = _perturbed(encoder, plain, asked, per_class, segments)
    identity = {
        "probes": {name: one.entry(seed) for name, one in found.items()},
        "variance": {name: _shares(asked, x, permutations) for name, x in views.items()},
        "consistency": {name: _consistency(asked, x, permutations) for name, x in views.items()},
        "confounded": protocol.confounded(trials.windows.recording[asked.asked], trials.labels[asked.asked]),
        "erasure": erased(asked, pooled, found["pretrained"]),
        "aperiodic": without_aperiodic(asked, encoder, plain),
        "layers": [
            {"layer": name, "label": asked.label(x).entry(), "subject": asked.subject(x, asked.asked).entry(),
             "label_untrained": asked.label(fresh_layers[name]).entry(),
             "subject_untrained": asked.subject(fresh_layers[name], asked.asked).entry()}
            for name, x in layers.items()
        ],
        "perturbation": perturbing,
        "channels": signals.note,
    }  # fmt: skip
    identity["says"] = says(identity)
    rng = np.random.default_rng(seed)
    permuted = [
        asked.label(pooled, main.predict[-1].C, protocol.permuted_within(trials.labels, trials.people, rng)).scored
        for _ in range(label_permutations)
    ]
    labels = trials.labels[asked.known]
    most = np.full(len(asked.asked), np.bincount(labels).argmax())
    compared = {
        "majority": protocol.scored(balanced_accuracy, trials.people[asked.asked],
                                    trials.labels[asked.asked], most, seed),
        "log_band_power": found["log_band_power"].label.scored,
        "untrained": found["untrained"].label.scored,
        "permuted labels": protocol.mean_scored(permuted, seed),
    }  # fmt: skip
    words = np.array(classes)
    return {
        **protocol.result(
            "identity", "balanced accuracy", main.scored, main.chance, compared, train, test, seed, _note(identity)
        ),
        **main.by_chance.entry(),
        "confusion": {
            "labels": classes,
            "counts": confusion(words[trials.labels[asked.asked]], words[main.guess], classes).tolist(),
        },
        "topographies": topographies,
        "identity": identity,
    }


def _check_people(side: str, windows: Windows, classes: list[str]) -> None:
    people, labels = windows.of("person"), windows.label.astype(str)
    names = np.unique(people)
    whole = [name for name in names if set(labels[people == name].tolist()) == set(classes)]
    if len(whole) < 2:
        raise ValueError(
            f"{len(whole)} of {len(names)} people on the {side} side have all classes ({', '.join(classes)}); "
            "telling who from what needs two: move people between the sides, or take a label that changes within people"
        )


@dataclass(frozen=True)
class Encoder:
    """Encodings of signals in memory: the shared channels of `trials`, in typical amplitudes."""

    model: Pretrained
    trials: Trials

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """`(window, channel, time)` → `(window, feature)` pooled encodings."""
        table = self.trials.signals().channels
        gain = np.array([TYPICAL[k] for k in table.kind], np.float32)[:, None]
        return self.model.pooled(ArrayDataset(values * gain, table, self.trials.signals().sfreq, self.model.batcher()))


@dataclass(frozen=True)
class Asked:
    """The three questions that are put to a representation.

    Attributes:
        label: of people never seen. later: the label of training people, later on. subject: who of the people never
            seen it is, later on.
    """

    label: Probed
    later: Probed
    subject: Probed

    def entry(self, seed: int) -> dict:
        """As it stands in a result; `familiarity` is what knowing the people adds, people resampled on both sides."""
        known, new = np.array(list(self.later.scored.per_subject.values())), self.label.scored
        rng, other = np.random.default_rng(seed), np.array(list(new.per_subject.values()))
        drawn = [rng.choice(known, len(known)).mean() - rng.choice(other, len(other)).mean() for _ in range(2000)]
        return {
            "label": self.label.entry(), "label_later": self.later.entry(), "subject": self.subject.entry(),
            "familiarity": {
                "score": self.later.scored.score - new.score,
                "ci": [float(x) for x in np.percentile(drawn, (2.5, 97.5))],
            },
        }  # fmt: skip


def _probed(asked: Probes, features: np.ndarray) -> Asked:
    return Asked(asked.label(features), asked.label_later(features), asked.subject(features, asked.asked))


def _shares(asked: Probes, features: np.ndarray, permutations: int) -> dict:
    rows, windows = asked.asked, asked.trials.windows
    return variance.shares(
        features[rows], asked.trials.people[rows], asked.trials.labels[rows], windows.of("session")[rows],
        seed=asked.seed, permutations=permutations,
    )  # fmt: skip


def _consistency(asked: Probes, features: np.ndarray, permutations: int) -> dict:
    rows = asked.asked
    return variance.consistency(
        features[rows], asked.trials.people[rows], asked.trials.labels[rows], asked.late[rows],
        seed=asked.seed, permutations=permutations,
    )  # fmt: skip


def erased(asked: Probes, features: np.ndarray, before: Asked) -> dict:
    """Label and subject before and after the training people's axes are erased, and after as many axes at random.

    For the label the axes are fitted on all windows of the training people, for the subject on the early ones that its
    probe is fitted on. `subject_known` is asked of the training people, `subject` of people never seen: it says whether
    the axes of some people tell others apart. At random: the same fit with people permuted over windows.
    """
    people, labels, rng = asked.trials.people, asked.trials.labels, np.random.default_rng(asked.seed)
    early = asked.known[asked.early[asked.known]]

    def without(rows: np.ndarray, chance: bool = False) -> tuple[np.ndarray, int]:
        who = rng.permutation(people[rows]) if chance else people[rows]
        erasure = alignment.Erasure.fit(features[rows], who, labels[rows])
        return erasure.apply(features), erasure.axes.shape[1]

    clean, axes = without(asked.known)
    found = {
        "label": asked.label(clean),
        "subject": asked.subject(clean, asked.asked),
        "subject_known": asked.subject(without(early)[0], asked.known),
    }
    start = {
        "label": before.label,
        "subject": before.subject,
        "subject_known": asked.subject(features, asked.known),
    }
    return {
        "axes": axes,
        "before": {k: v.entry() for k, v in start.items()},
        "after": {k: v.entry() for k, v in found.items()},
        "random": {
            "label": asked.label(without(asked.known, chance=True)[0]).entry(),
            "subject_known": asked.subject(without(early, chance=True)[0], asked.known).entry(),
        },
        "difference": {k: v.minus(start[k], asked.seed) for k, v in found.items()},
    }


def without_aperiodic(asked: Probes, encoder: Encoder, plain: np.ndarray) -> dict:
    """Label and subject from encodings of the shared channels as they are, without their 1/f part, and from it alone.

    Alone are offset and exponent of each channel. The probes are fitted anew on each.
    """
    signals = asked.trials.signals()
    alone = alignment.aperiodic(signals.values, signals.sfreq)
    alone = np.where(np.isfinite(alone), alone, 0.0).reshape(len(alone), -1)
    features = {
        "before": plain,
        "after": encoder(alignment.without_aperiodic(signals.values, signals.sfreq)),
        "alone": alone,
    }
    found = {name: {"label": asked.label(x), "subject": asked.subject(x, asked.asked)} for name, x in features.items()}
    return {
        **{name: {k: v.entry() for k, v in pair.items()} for name, pair in found.items()},
        "difference": {k: found["after"][k].minus(found["before"][k], asked.seed) for k in ("label", "subject")},
    }


def _perturbed(
    encoder: Encoder, plain: np.ndarray, asked: Probes, per_class: int, segments: int
) -> tuple[list[dict], list[dict]]:
    """The perturbations of some windows of people never seen, and their maps."""
    trials, signals = asked.trials, asked.trials.signals()
    rng, rows = np.random.default_rng(asked.seed), []
    for name in np.unique(trials.people[asked.asked]):
        for number in range(len(trials.classes)):
            own = asked.asked[(trials.people[asked.asked] == name) & (trials.labels[asked.asked] == number)]
            rows += sorted(rng.permutation(own)[:per_class].tolist())
    found = perturbation.measured(
        encoder, asked.calibrated(plain), signals.values[rows], signals.sfreq, signals.channels, trials.people[rows],
        trials.labels[rows], segments=segments, seed=asked.seed,
    )  # fmt: skip
    return found, perturbation.maps(found, signals.channels)


def says(identity: dict) -> list[str]:
    """The main figures in words, by fixed rules."""
    own, parts = identity["probes"]["pretrained"], identity["variance"]["pretrained"]
    label, later, subject = own["label"], own["label_later"], own["subject"]
    reads, knows = label["p"] <= LEVEL and label["ci"][0] > label["chance"], subject["p"] <= LEVEL
    found = []
    label_is = f"{label['score']:.2f}, chance {label['chance']:.2f}"
    subject_is = f"{subject['score']:.2f}, chance {subject['chance']:.2f}"
    if open_for := few_orders(label["p_least"], label["p_over"]):
        found.append(
            f"Whether what people never seen do can be read is open ({label_is}).{open_for} Who a person is "
            f"{'can' if knows else 'cannot'} be read ({subject_is})."
        )
    elif knows and not reads:
        found.append(
            f"Identity without the label: who a person is can be read ({subject_is}), what people never seen do is not "
            f"read above chance ({label_is})."
        )
    else:
        is_read = {True: "is read above chance", False: "is not read above chance"}
        found.append(
            f"What people never seen do {is_read[reads]} ({label_is}); who a person is {is_read[knows]} ({subject_is})."
        )
    if own["familiarity"]["ci"][0] > 0:
        found.append(
            f"Knowing the people adds {own['familiarity']['score']:.2f}: the label of the training people later on is "
            f"read at {later['score']:.2f}, so a split within people would promise too much."
        )
    shares = {k: v["share"] for k, v in parts.items()}
    found.append(f"Variance: {', '.join(f'{k} {max(v, 0):.0%}' for k, v in shares.items())}.")
    same = identity["consistency"]["pretrained"]
    if shares.get("label by subject", 0) > max(shares.get("label", 0), 0) and same["own"] > same["score"]:
        found.append(
            "What the label changes differs from person to person more than it is shared: cosine with the others "
            f"{same['score']:.2f}, with the person's own other half {same['own']:.2f}."
        )
    power = identity["probes"]["log_band_power"]["label"]["score"]
    if power >= label["score"]:
        found.append(f"Log band power reads the label as well or better ({power:.2f}).")
    alone = identity["aperiodic"]["alone"]["label"]
    if alone["p"] <= LEVEL and alone["score"] >= label["score"]:
        found.append(f"Slope and offset of the spectrum alone read the label as well or better ({alone['score']:.2f}).")
    return found


def _note(identity: dict) -> str:
    said = "Variance, consistency, layers and perturbations are of people never seen."
    if identity["confounded"]:
        said += (
            " Each recording has one class, so label and session cannot be told apart, nor a drift between recordings "
            "from the label."
        )
    return f"{said} {identity['channels']}"
