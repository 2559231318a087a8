"""`brainfm finetune`: fit a pretrained model to a person's earlier trials, score it on later ones, keep the decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from brainfm.api import Decoder
from brainfm.evaluations import baselines, chance, protocol
from brainfm.evaluations.methods import adaptation
from brainfm.evaluations.methods.defaults import ELECTRIC
from brainfm.given import earlier_and_later, met
from brainfm.metrics import balanced_accuracy
from brainfm.recording import NO_LABEL
from brainfm.shards.read import Corpus, Windows, open_shards
from brainfm.shards.stored import Stored

#: An event that lasts so many times a trial is a block, or a whole recording, that windows should be cut from.
LONG = 5


def run(
    model: Path, shards: Path, subject: str, out: Path, tmin: float = 0.0, tmax: float = 1.0, test: float = 0.3,
    adapt: str = "finetune", seed: int = 0, window_s: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Fit, score, save; the result's fields (docs/results.md), with baselines that saw the same trials.

    The cut is in time, see `given.earlier_and_later`: no test trial lies between training trials of its class. A person
    whom the model was pretrained on is scored, and the note says so; see `given.met`. The decoder is saved before
    anything is scored.

    Args:
        model: folder of the pretrained network. shards, subject: whose trials. out: folder of the decoder.
        tmin, tmax: of a trial, seconds from its event. test: share of the last trials that is scored.
        adapt: a word of `ADAPT`. seed: of what is drawn.
        window_s: cut windows of this length inside events with a duration (blocks, labels of whole recordings) in place
            of trials; then the last share of each recording is scored.

    Raises:
        ValueError: where trials or their labels do not allow it.
    """
    adaptation.check(adapt)
    if not 0 < test < 1:
        raise ValueError(f"--test {test:g}; expected a share between 0 and 1")
    corpus = open_shards(shards).subject(subject)
    decoder = Decoder(model, adapt, seed)
    trials, unlabelled = _trials(corpus, tmin, tmax, window_s)
    said = [line for person in np.unique(trials.of("person")) for line in met(str(person), decoder.encoder.card)]
    earlier, later, left_out = earlier_and_later(trials, test, by_recording=window_s is not None)
    said += unlabelled + left_out + _confounded(trials)
    decoder.fit(earlier).save(out)
    print("\n".join([f"decoder: {out}", *said]))
    truth = later.label.astype(str)
    main = chance.scored(balanced_accuracy, later, truth, decoder.predict(later), seed)
    fresh = Decoder(decoder.encoder.untrained(seed), adapt, seed).fit(earlier)
    compared = {
        f"untrained, {adapt}": chance.scored(balanced_accuracy, later, truth, fresh.predict(later), seed),
        **_without_a_network(earlier, later, seed),
    }
    return {
        "task": f"{subject}, {adapt} on {len(earlier)} trials", "model": model.name, "metric": "balanced accuracy",
        "score": main.score, "ci": list(main.ci), "ci_over": main.ci_over, "chance": 1 / len(decoder.classes_),
        "n_subjects": len(main.per_subject), "n_trials": main.n_trials,
        "simulated": any(r.simulated for r in trials.recordings),
        "baselines": {name: found.entry() for name, found in compared.items()},
        "note": " ".join([*said, *decoder.notes_]),
    }  # fmt: skip


def _trials(corpus: Corpus, tmin: float, tmax: float, window_s: float | None) -> tuple[Windows, list[str]]:
    """Labelled trials, or windows inside labelled events, and a sentence on those without a label."""
    found = corpus.trials(tmin, tmax) if window_s is None else corpus.windows(window_s)
    there = np.array([str(word).lower() not in NO_LABEL for word in found.label], bool)
    longest = max((float(d) for r in corpus.recordings for d in r.events.duration), default=0.0)
    if window_s is not None and not there.any():
        raise ValueError(
            f"no window of {window_s:g} s lies inside an event with a label; the longest event lasts {longest:g} s: "
            "give a shorter --window-s, or leave it out to cut trials at onsets"
        )
    many = len(set(found.label[there].tolist())) > 1 and there.sum() >= LONG
    if window_s is None and not many and longest >= LONG * (tmax - tmin):
        raise ValueError(
            f"{int(there.sum())} trials at the onsets of events, which last up to {longest:g} s: labels of blocks, or "
            f"of whole recordings. Cut windows inside them with --window-s {tmax - tmin:g}"
        )
    gone = int(np.sum(~there))
    what = "trials" if window_s is None else "windows"
    return found.take(there), [f"{gone} {what} without a label are left out."] if gone else []


def _confounded(trials: Windows) -> list[str]:
    """A sentence where every recording is one condition."""
    if len(np.unique(trials.recording)) < 2 or not protocol.confounded(trials.recording, trials.label):
        return []
    return ["Each recording is one condition, so that what tells recordings apart (gel, drift) scores as well."]


def _without_a_network(train: Windows, test: Windows, seed: int) -> dict[str, protocol.Scored]:
    """The commonest class, and logistic regression on features of the signals."""
    labels, truth = train.label.astype(str), test.label.astype(str)
    words, count = np.unique(labels, return_counts=True)
    guesses = {"majority": np.full(len(truth), words[count.argmax()])}
    for word, (x, asked) in baselines.of_signals(_features(train.used[0]), train, test)[0].items():
        guesses[word] = protocol.fit_linear(x, labels, train.of("person"), seed).predict(asked)
    return {name: chance.scored(balanced_accuracy, test, truth, guess, seed) for name, guess in guesses.items()}


def _features(stored: Stored) -> list[str]:
    """Features of the signal that suit a recording, words of `baselines.of_signals`; rhythms of `ELECTRIC` alone."""
    if not stored.sfreq:
        return ["binned_counts"]
    return ["log_band_power"] if stored.modality in ELECTRIC else ["tangent_space", "downsampled_signal"]
