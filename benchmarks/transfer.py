"""Decoding of people never seen: against MOABB, against encoding in every fold, and how long one window takes.

    python benchmarks/transfer.py [--case csp_lda_loso probe_cached decode_latency] [--people 10] [--trials 240]
    BRAINFM_MOABB=FOLDER python benchmarks/transfer.py --case csp_lda_loso

Prints one JSON line a case and baseline.
- `csp_lda_loso`: leave one person out, simulated left and right hand, 22 channels, 385 samples: from shards on disk to
  ROC-AUC of each person. FOLDER is an environment (venv) in which MOABB can be imported; the baseline is then its
  CrossSubjectEvaluation of Covariances, CSP(6) and LDA on the same trials, and `baseline_read_seconds` is what of its
  time MOABB's reading and filtering takes. Without it, the baseline takes covariances anew in each fold.
  `score` and `baseline_score` are mean ROC-AUCs, `max_difference` is over people.
- `probe_cached`: a linear probe of 36 people, one left out in turn, encodings made once against once in each fold.
- `decode_latency`: `Decoder.predict_proba` of one window of 2 s and 64 channels; `seconds` is the median, `p99` the
  99th percentile; the baseline is the bare network on a batch that lies ready.
Seconds are those of the processor on one thread, but for latency, which is by the clock and has those of the processor
beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

CASES = ("csp_lda_loso", "probe_cached", "decode_latency")
SFREQ, SAMPLES, GAP = 128.0, 385, 64
NAMES = ["Fz", "FC3", "FC1", "FCz", "FC2", "FC4", "C5", "C3", "C1", "Cz", "C2", "C4", "C6", "CP3", "CP1", "CPz", "CP2",
         "CP4", "P1", "Pz", "P2", "POz"]  # fmt: skip
CLASSES = ("left_hand", "right_hand")


def people(count: int, trials: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Noise with a rhythm of 12 Hz over the other side: `(channel, time)` in V and first samples of trials."""
    onset = GAP + np.arange(trials) * (SAMPLES + GAP)
    time_s = np.arange(onset[-1] + SAMPLES + GAP) / SFREQ
    distance = np.abs(np.arange(len(NAMES))[:, None] - np.array([NAMES.index("C4"), NAMES.index("C3")]))
    for person in range(count):
        rng = np.random.default_rng(person)
        mixing = np.eye(len(NAMES)) + 0.15 * rng.normal(size=(len(NAMES), len(NAMES)))
        signal = mixing @ rng.normal(size=(len(NAMES), len(time_s)))
        for side in range(2):
            rhythm = np.sin(2 * np.pi * 12 * time_s + rng.uniform(0, 6))
            for first in onset[side::2]:
                rhythm[first : first + SAMPLES] *= 0.6 + 0.3 * rng.random()
            signal += np.exp(-distance[:, side] / 1.5)[:, None] * rhythm
        yield signal * 1e-5, onset


def line(name: str, seconds: float, baseline: str, baseline_seconds: float, **more: Any) -> None:
    """Print a case."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    fields = {"name": name, "seconds": seconds, "peak_mb": peak, "baseline": baseline,
              "baseline_seconds": baseline_seconds, "ratio": baseline_seconds / seconds}  # fmt: skip
    print(json.dumps({**fields, **more}), flush=True)


def moabb_side(folder: Path, count: int, trials: int) -> None:
    """What runs in the environment of MOABB: its evaluation of these people; leaves trials and scores in the folder."""
    import mne
    from moabb.datasets.fake import FakeDataset
    from moabb.evaluations import CrossSubjectEvaluation
    from moabb.paradigms import LeftRightImagery
    from pyriemann.estimation import Covariances
    from pyriemann.spatialfilters import CSP
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.pipeline import make_pipeline

    recorded = list(people(count, trials))

    class Fake(FakeDataset):
        """MOABB's dataset with our signals."""

        def _get_single_subject_data(self, subject):  # type: ignore[no-untyped-def]
            signal, onset = recorded[subject - 1]
            marks = np.zeros(signal.shape[1])
            marks[onset] = 1 + np.arange(trials) % 2
            info = mne.create_info([*NAMES, "stim"], SFREQ, ["eeg"] * len(NAMES) + ["stim"])
            raw = mne.io.RawArray(np.vstack([signal, marks]), info, verbose=False)
            return {"0": {"0": raw.set_montage("standard_1005")}}

    mne.set_log_level("ERROR")
    dataset = Fake(CLASSES, 1, 1, count, channels=NAMES, sfreq=SFREQ, n_events=trials)
    paradigm = LeftRightImagery(fmin=8, fmax=32)
    start = time.process_time()
    signals, labels, table = paradigm.get_data(dataset)
    reading = time.process_time() - start
    pipeline = make_pipeline(Covariances("oas"), CSP(6), LinearDiscriminantAnalysis("lsqr", shrinkage="auto"))
    evaluation = CrossSubjectEvaluation(
        paradigm=paradigm, datasets=[dataset], overwrite=True, hdf5_path=str(folder), n_jobs=1
    )
    start = time.process_time()
    found = evaluation.process({"csp_lda": pipeline})
    seconds = time.process_time() - start
    np.savez(folder / "trials.npz", signals=signals.astype(np.float32), labels=labels.astype(str),
             people=table["subject"].to_numpy().astype(int))  # fmt: skip
    scores = dict(zip(found["subject"].astype(int).tolist(), found["score"].tolist(), strict=True))
    (folder / "scores.json").write_text(json.dumps({"scores": scores, "seconds": seconds, "reading": reading}))


def leave_one_out(folder: Path) -> list[float]:
    """ROC-AUC of each person's trials by what the others' taught, from shards."""
    from sklearn.metrics import roc_auc_score

    from brainfm.evaluations.methods.classical import CommonSpatialPatterns
    from brainfm.evaluations.methods.trials import NO_ROWS, Side, Trials
    from brainfm.shards.read import open_shards

    corpus = open_shards(folder)
    trials, method, scores = Trials(corpus.trials(0.0, SAMPLES / SFREQ)), CommonSpatialPatterns(), []
    for name in np.unique(trials.people):
        test = np.flatnonzero(trials.people == name)
        side = Side(np.flatnonzero(trials.people != name), NO_ROWS, test)
        fitted = method.fit(trials, side, {"filters": 6, "band_hz": None}, 0)
        scores.append(float(roc_auc_score(trials.labels[test], fitted.predict_proba(test)[:, 1])))
    return scores


def each_fold(signals: np.ndarray, labels: np.ndarray, who: np.ndarray) -> list[float]:
    """The same, with every covariance taken anew in every fold."""
    from pyriemann.estimation import Covariances
    from pyriemann.spatialfilters import CSP
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline

    scores = []
    for person in np.unique(who):
        test, fit = who == person, who != person
        made = make_pipeline(Covariances("oas"), CSP(6), LinearDiscriminantAnalysis("lsqr", shrinkage="auto"))
        chances = made.fit(signals[fit].astype(float), labels[fit]).predict_proba(signals[test].astype(float))
        scores.append(float(roc_auc_score(labels[test], chances[:, 1])))
    return scores


def write(folder: Path, signals: np.ndarray, labels: np.ndarray, who: np.ndarray) -> None:
    """Trials `(trial, channel, time)` in V → a shard of each person."""
    from brainfm.recording import Channels, Events, Recording
    from brainfm.shards.write import write_shard

    for person in np.unique(who):
        own = signals[who == person]
        events = Events(np.arange(len(own)) * SAMPLES / SFREQ, np.full(len(own), SAMPLES / SFREQ),
                        labels[who == person].tolist())  # fmt: skip
        recording = Recording(
            "sim", f"p{person:02d}", "eeg", Channels.make(NAMES, "eeg"), sfreq=SFREQ,
            signal=np.concatenate(list(own), axis=1), events=events, simulated=True,
        )  # fmt: skip
        write_shard(folder / f"sub-p{person:02d}.h5", [recording], {})


def csp_lda_loso(count: int, trials: int, repeat: int) -> None:
    """Ours from shards, against MOABB or against covariances in each fold."""
    with tempfile.TemporaryDirectory() as name:
        folder, shards = Path(name), Path(name) / "shards"
        shards.mkdir()
        given = os.environ.get("BRAINFM_MOABB")
        more: dict[str, Any] = {}
        if given:
            run = [f"{given}/bin/python", __file__, "--moabb", name, "--people", str(count), "--trials", str(trials)]
            subprocess.run(run, check=True, stdout=sys.stderr, env={**os.environ, "MNE_DATA": name})
            found = json.loads((folder / "scores.json").read_text())
            with np.load(folder / "trials.npz") as stored:
                signals, labels, who = stored["signals"] * 1e-6, stored["labels"], stored["people"]
            baseline, more = "MOABB's CrossSubjectEvaluation", {"baseline_read_seconds": found["reading"]}
            theirs, base = [found["scores"][str(p)] for p in np.unique(who)], found["seconds"]
        else:
            print("BRAINFM_MOABB names no environment with MOABB; against covariances in each fold", file=sys.stderr)
            signals = np.concatenate([
                np.stack([x[:, a : a + SAMPLES] for a in onset]) for x, onset in people(count, trials)
            ]).astype(np.float32)  # fmt: skip
            labels, who = np.tile(np.array(CLASSES)[np.arange(trials) % 2], count), np.repeat(np.arange(count), trials)
            start = time.process_time()
            theirs = each_fold(signals, labels, who)
            baseline, base = "covariances anew in each fold", time.process_time() - start
        write(shards, signals, labels, who)
        leave_one_out(shards)
        seconds = []
        for _ in range(repeat):
            start = time.process_time()
            ours = leave_one_out(shards)
            seconds.append(time.process_time() - start)
    difference = float(np.max(np.abs(np.subtract(ours, theirs))))
    line("csp_lda_loso", float(np.median(seconds)), baseline, base, people=count, trials=trials, channels=len(NAMES),
         samples=SAMPLES, score=float(np.mean(ours)), baseline_score=float(np.mean(theirs)), metric="ROC-AUC",
         max_difference=difference, **more)  # fmt: skip


def network(name: str, size: str, channels: int, sfreq: float, window_s: float) -> Any:
    """A model of the catalogue with fresh weights, its tokenizer as the pipeline has it."""
    import torch

    from brainfm import catalog
    from brainfm.tokens import Facts
    from brainfm.training.checkpoint import Pretrained, build

    facts = Facts(modality=("eeg",), kinds=("eeg",), sfreq=sfreq, window_s=window_s, channels=channels)
    config: dict[str, Any] = {"kind": "models", "name": name, "keywords": catalog.load("models", name).SIZES[size]}
    if name == "brainomni":
        inner = {"local": "local", "test": "test"}.get(size, "published")
        keywords = catalog.load("codebooks", "braintokenizer").SIZES[inner]
        config["codebook"] = {"kind": "codebooks", "name": "braintokenizer", "keywords": keywords, "facts": vars(facts)}
    torch.manual_seed(0)
    return Pretrained(build(config, facts).eval(), config, facts)


def probe_cached(count: int, trials: int, repeat: int) -> None:
    """Leave one person out with a frozen network."""
    from brainfm.evaluations import protocol
    from brainfm.evaluations.methods.trials import Trials
    from brainfm.shards.read import Windows, open_shards

    def fold(features: np.ndarray, own: Trials, name: str) -> np.ndarray:
        fit = own.people != name
        made = protocol.fit_linear(features[fit], own.labels[fit], own.people[fit], 0, 0.01)
        return made.predict_proba(features[~fit])

    with tempfile.TemporaryDirectory() as folder:
        recorded = list(people(count, trials))
        signals = np.concatenate([np.stack([x[:, a : a + SAMPLES] for a in onset]) for x, onset in recorded])
        labels, who = np.tile(np.array(CLASSES)[np.arange(trials) % 2], count), np.repeat(np.arange(count), trials)
        write(Path(folder), signals.astype(np.float32), labels, who)
        windows = open_shards(folder).trials(0.0, 2.0)
        model = network("luna", "local", len(NAMES), SFREQ, 2.0)
        names, seconds, differences = np.unique(windows.of("person")), [], []
        for _ in range(repeat):
            start = time.process_time()
            own = Trials(windows)
            ours = [fold(own.features(model), own, name) for name in names]
            once, start = time.process_time() - start, time.process_time()
            theirs = []
            for name in names:
                parts = [windows.take(windows.of("person") != name), windows.take(windows.of("person") == name)]
                features = np.concatenate([model.features(part) for part in parts])
                theirs.append(fold(features, Trials(Windows.join(parts)), name))
            seconds.append((once, time.process_time() - start))
            differences.append(max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)))
    mine, base = np.median(seconds, axis=0)
    line("probe_cached", float(mine), "encodings in each fold", float(base), model="luna local", people=count,
         trials=trials, max_difference=float(max(differences)))  # fmt: skip


def timed(step: Callable[[], object], repeat: int) -> np.ndarray:
    """`(repeat, 2)` seconds by the clock and of the processor."""
    out = np.empty((repeat, 2))
    for i in range(repeat):
        start = time.perf_counter(), time.process_time()
        step()
        out[i] = time.perf_counter() - start[0], time.process_time() - start[1]
    return out


def decode_latency(repeat: int, sizes: list[str]) -> None:
    """One window through a fitted decoder."""
    import mne
    import torch

    from brainfm import Decoder
    from brainfm.modalities.electrodes import named

    torch.set_num_threads(1)
    names = mne.channels.make_standard_montage("biosemi64").ch_names
    for size in sizes:
        model, word = size.split(":")
        encoder = network(model, word, len(names), 128.0 if model == "luna" else 256.0, 2.0)
        rng = np.random.default_rng(0)
        window = rng.normal(0, 1e-5, (20, len(names), round(2 * encoder.facts.sfreq)))
        given = {"channels": names, "sfreq": encoder.facts.sfreq}
        decoder = Decoder(encoder).fit(window, ["left", "right"] * 10, **given)
        batch = encoder.batcher().trials(window[:1], named(names), encoder.facts.sfreq)

        def bare(encoder: Any = encoder, batch: Any = batch) -> None:
            with torch.inference_mode():
                encoder.model.encode(batch)

        def whole(decoder: Decoder = decoder, one: np.ndarray = window[:1], given: dict = given) -> None:
            decoder.predict_proba(one, **given)

        bare(), whole()
        ours, theirs = timed(whole, repeat), timed(bare, repeat)
        (median, busy), (p99, busy_p99) = np.percentile(ours, (50, 99), axis=0).tolist()
        line("decode_latency", median, "the network alone", float(np.median(theirs[:, 0])), model=size,
             channels=len(names), p99=p99, processor_seconds=busy, processor_p99=busy_p99,
             parameters=sum(p.numel() for p in encoder.model.parameters()), repeat=repeat)  # fmt: skip


def main() -> None:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--people", type=int, help="10 for csp_lda_loso, 36 for probe_cached")
    parser.add_argument("--trials", type=int, help="of each person: 240 and 20")
    parser.add_argument("--repeat", type=int, default=3, help="runs of ours; a hundred windows each for latency")
    sizes = ["luna:test", "luna:local", "brainomni:test", "brainomni:local", "brainomni:tiny"]
    parser.add_argument("--sizes", nargs="+", default=sizes, help="model:size, for latency")
    parser.add_argument("--moabb", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.moabb:
        moabb_side(asked.moabb, asked.people, asked.trials)
        return
    if "csp_lda_loso" in asked.case:
        csp_lda_loso(asked.people or 10, asked.trials or 240, asked.repeat)
    if "probe_cached" in asked.case:
        probe_cached(asked.people or 36, asked.trials or 20, asked.repeat)
    if "decode_latency" in asked.case:
        decode_latency(100 * asked.repeat, asked.sizes)


if __name__ == "__main__":
    main()
