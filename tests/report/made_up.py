"""Results and a model folder made up for the tests of the report; nothing here was ever measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def interval(score: float, half: float) -> dict[str, Any]:
    return {"score": score, "ci": [score - half, score + half]}


def classification(rng: np.random.Generator, key: str, task: str, labels: list[str], score: float, **more: Any) -> dict:
    n = len(labels)
    counts = rng.poisson(60 * (np.eye(n) * score + (1 - score) / n)).tolist()
    return {
        "stage": "decode", "key": key, "task": task, "dataset": "test_data_eeg", "model": "luna_small",
        "evaluation": "probe",
        "simulated": True, "seed": 3, "metric": "balanced accuracy", **interval(score, 0.06), "ci_over": "subjects",
        "n_subjects": 12, "n_trials": 1440, "chance": 1 / n,
        "baselines": {
            "majority": interval(1 / n, 0.0), "log_band_power": interval(score - 0.03, 0.07),
            "tangent_space": interval(score + 0.02, 0.05),
            "untrained": interval(score - 0.2, 0.05), "permuted labels": interval(1 / n + 0.01, 0.03),
        },
        "per_subject": {f"test_data_eeg/s{i:02d}": float(rng.normal(score, 0.06)) for i in range(12)},
        "confusion": {"labels": labels, "counts": counts},
        **more,
    }  # fmt: skip


def regression(rng: np.random.Generator, key: str, **more: Any) -> dict:
    time = np.arange(0, 12, 0.02)
    traces = []
    for axis in "xy":
        true = np.convolve(rng.normal(size=len(time)), np.hanning(60), "same")
        predicted = 0.8 * true + rng.normal(size=len(time)) * 0.7
        traces.append({"title": f"hand velocity {axis}, trial 7", "time": time.tolist(), "true": true.tolist(),
                       "predicted": predicted.tolist(), "unit": "cm/s"})  # fmt: skip
    return {
        "stage": "transfer", "key": key, "task": "hand_velocity", "dataset": "test_data_reach", "model": "poyo_small",
        "evaluation": "finetune", "simulated": False, "seed": 3, "metric": "R2", **interval(0.71, 0.04),
        "ci_over": "trials",
        "n_subjects": 2, "n_trials": 310, "chance": 0.0,
        "baselines": {"majority": interval(-0.02, 0.01), "binned counts": interval(0.58, 0.05),
                      "untrained": interval(-3.4, 0.9), "permuted labels": interval(-0.05, 0.04)},
        "traces": traces, "note": "Test data: two animals only, so the interval resamples trials.", **more,
    }  # fmt: skip


def few_shot(rng: np.random.Generator, top: float) -> list[dict]:
    found = []
    for model, gain in (("pretrained", 0.0), ("untrained", -0.16), ("linear", -0.06)):
        for shots in (1, 2, 5, 10, 20, 50):
            score = 0.5 + (top - 0.5) * (1 - np.exp(-shots / 8)) + gain * np.exp(-shots / 30)
            found.append({"shots": shots, "model": model, **interval(float(score), 0.05 / np.sqrt(shots) + 0.02)})
    return found


#: Methods of a comparison: name → kind, adaptation mode, score.
METHODS = {
    "probe": ("pretrained", "probe", 0.72), "lora": ("pretrained", "lora", 0.78),
    "untrained probe": ("untrained", "probe", 0.6), "CSP + LDA": ("baseline", "", 0.74),
    "EEGNet": ("baseline", "", 0.7), "majority": ("control", "", 0.5), "permuted labels": ("control", "probe", 0.51),
}  # fmt: skip


def compared(
    rng: np.random.Generator, key: str = "compared", people: int = 8, methods: dict = METHODS, **more: Any
) -> dict:
    """The result of the evaluation `comparison`."""
    who = [f"test_data_eeg/s{i:02d}" for i in range(people)]
    rows = []
    for name, (kind, adapt, score) in methods.items():
        each = dict(zip(who, np.round(rng.normal(score, 0.05, people), 4).tolist(), strict=True))
        mean, worst = float(np.mean(list(each.values()))), min(each, key=lambda p: each[p])
        groups = {"F": {**interval(mean, 0.06), "n": 5}, "M": {"score": mean, "ci": None, "n": 3}}
        rows.append(
            {"name": name, "kind": kind, "adapt": adapt, **interval(mean, 0.04), "per_subject": each,
             "auroc": mean + 0.05, "chance_corrected": 2 * mean - 1, "ece": 0.08, "brier": 0.4, "log_loss": 0.6,
             "p": 0.001, "p_over": "stretches", "p_least": 0.001,
             "worst": [worst, each[worst]],
             "groups": {"sex": groups, "age": {"up to 30": mean}}, "setting": {"penalty": 0.1}, "tried": 3,
             "losses": [0.7, 0.6, 0.65]}
        )  # fmt: skip
    first = rows[0]
    pairs = [
        {"a": first["name"], "b": r["name"], "difference": first["score"] - r["score"], "ci": [-0.05, 0.1],
         "wilcoxon_p": 0.02, "holm_p": 0.04 if r["kind"] == "control" else 0.3, "t_p": 0.03, "dz": 0.7,
         "rank_biserial": 0.5, "n": people}
        for r in rows[1:]
    ]  # fmt: skip
    curve = [
        {"shots": k, "model": r["name"], **interval(r["score"] - 0.1 / (1 + k), 0.03)}
        for r in rows[:5]
        for k in (0, 1, 5)
    ]
    return {
        "stage": "transfer", "key": key, "task": f"task of {key}", "dataset": "test_data_eeg", "model": "luna_small",
        "evaluation": "comparison", "protocol": "cross-subject", "simulated": True, "seed": 3,
        "metric": "balanced accuracy", "score": first["score"], "ci": first["ci"], "ci_over": "subjects",
        "n_subjects": people, "n_trials": 40 * people, "chance": 0.5,
        "baselines": {r["name"]: {"score": r["score"], "ci": r["ci"]} for r in rows[1:]},
        "per_subject": first["per_subject"], "methods": rows, "pairs": pairs, "curve": curve,
        "split_id": "0123456789abcdef",
        "confusion": {"labels": ["left", "right"], "counts": [[50, 20], [10, 60]]},
        "budget": {"tries": 3, "steps": 100, "batch_size": 16, "validations": 5, "patience": 3}, **more,
    }  # fmt: skip


def simulated(key: str, evaluation: str, metric: str, score: float, **more: Any) -> dict:
    """What every result has, of an evaluation of simulated animals."""
    return {
        "stage": "decode", "key": key, "task": f"task of {key}", "dataset": "test_spikes", "model": "ndt_small",
        "evaluation": evaluation, "simulated": True, "seed": 3, "metric": metric, **interval(score, 0.1),
        "ci_over": "subjects", "n_subjects": 2, "n_trials": 80, "chance": 0.0, "baselines": {}, **more,
    }  # fmt: skip


def several_measures() -> dict:
    """The result of `generation` and of `connectivity` in one: measures, chance where it is known, one far off."""
    animals = {"test_spikes/a": 0.3, "test_spikes/b": 0.5}
    pretrained, far = {**interval(0.4, 0.1), "per_subject": animals}, {**interval(-7.25, 1.0), "per_subject": {}}
    return simulated(
        "generated", "generation", "rate correlation", 0.4, measures={
            "rate correlation": {"pretrained": pretrained, "GLM": interval(0.5, 0.25), "untrained": interval(0.0, 0.1)},
            "bits per spike": {"pretrained": interval(0.2, 0.1), "GLM": interval(0.75, 0.25), "untrained": far},
            "Fano factor": {"pretrained": interval(1.1, 0.1), "recorded": {"score": None, "ci": None}},
            "AUPRC": {"pretrained": {**interval(0.6, 0.1), "chance": 0.021, "n": 10620}},
        },
        differences={"GLM": interval(-0.05, 0.01), "mean": {"score": 0.4, "ci": None}},
        animals={"test_spikes/a": {"neurons": 5, "images": 8, "presentations": 1040, "ci": [0.2, 0.4]}},
        per_subject=animals,
    )  # fmt: skip


def fingerprints() -> dict:
    """The result of `retrieval`."""
    return simulated(
        "fingerprints", "retrieval", "top-1 accuracy", 0.4, measures={
            "top-1 accuracy": {"pretrained": {**interval(0.4, 0.1), "chance": 0.05}, "untrained": interval(0.2, 0.1)},
            "median rank / N": {"pretrained": {**interval(0.1, 0.05), "chance": 0.5}, "untrained": interval(0.3, 0.1)},
        },
        candidates={"n": 20, "k": 1, "hash": "fedcba9876543210"},
    )  # fmt: skip


def hidden_regions() -> dict:
    """The result of `reconstruction`."""
    return simulated(
        "hidden", "reconstruction", "R2", 0.3, surrogates={"n": 200, "p": 0.015},
        regions=[{"name": f"region {i}", **interval(0.1 + 0.01 * i, 0.05)} for i in range(30)],
    )  # fmt: skip


def latents() -> dict:
    """The result of `neural_latents`."""
    own = {"co-bps": 0.13, "fp-bps": -0.02, "psth R2": 0.41}
    return simulated(
        "latents", "neural_latents", "co-bps", 0.13, latents={"pretrained": own, "untrained": {"co-bps": -0.3}},
        baselines={"linear": interval(0.11, 0.02), "untrained": interval(-0.3, 0.1)},
    )  # fmt: skip


def over_blocks() -> dict:
    """The result of `blocks` for a position."""
    blocks = {"pretrained": [[0.6, 0.7], [0.5, 0.8], [-2.0, -4.0]], "ridge": [[0.4, 0.5], [0.5, None], [0.1, 0.2]]}
    return simulated(
        "place", "blocks", "R2", 0.6, per_block=blocks, median_error={"pretrained": 35.5, "naive Bayes": 27.0},
        traces=[{"title": "position 1, a", "time": [0, 1], "true": [1, 2], "predicted": [1, 3], "unit": "px"}],
    )  # fmt: skip


def few_labels() -> dict:
    """The result of `few_labels` for a position."""
    names = ("pretrained", "from scratch", "joint")
    points = [
        {"shots": s, "model": m, **interval(0.5, 0.1), "median_error": 10.0 * i + s}
        for i, m in enumerate(names, 1)
        for s in (5, 100)
    ]
    gain = [{"shots": s, **interval(g, 0.02)} for s, g in ((5, 0.14), (100, 0.01))]
    loss = [{"shots": s, **interval(g, 0.02)} for s, g in ((5, -0.06), (100, 0.03))]
    return simulated(
        "few", "few_labels", "R2", 0.5, curve=points, curve_axis="percent of 40 s", effect_of_transfer=gain,
        joint_minus_separate=loss, median_error={"pretrained": 110.0, "mean": 300.0},
    )  # fmt: skip


def connectome(rng: np.random.Generator, n: int = 12) -> dict:
    """The result of `connectome`: three true groups, of which one neuron is in none, and two found communities."""
    true, found = np.arange(n) % 3, np.where(np.arange(n) % 3 == 0, 1, 0)
    true[-1] = -1
    affinity = (true[:, None] == true) + rng.random((n, n)) / 10
    one = {"rank": 2, "agreement": [0.97, 0.93], "explained": 0.8, "sizes": [2.5, 2.0], "p": [0.05, None],
           "p_explained": 0.05, "communities": {"test_spikes/a": 2, "test_spikes/b": 3}}  # fmt: skip
    return simulated(
        "groups", "connectome", "NMI", 0.6, p=0.005, components={"activity": one, "pretrained": {**one, "rank": 1}},
        null=np.sort(rng.random(199) / 4).tolist(), baselines={"activity": interval(0.9, 0.05)},
        graph={"subject": "test_spikes/a", "neurons": [f"n{i}" for i in range(n)], "affinity": affinity.tolist(),
               "found": found.tolist(), "true": true.tolist()},
    )  # fmt: skip


def beside(rng: np.random.Generator) -> list[dict]:
    """A result of each evaluation that measures more than its score."""
    return [several_measures(), latents(), over_blocks(), few_labels(), connectome(rng)]


def connectivity(rng: np.random.Generator, n: int = 12) -> list[dict]:
    names = [f"region {i}" for i in range(n)]
    true = (rng.random((n, n)) < 0.2) * rng.normal(0, 1, (n, n))
    return [
        {"title": title, "values": values.tolist(), "rows": names, "columns": names}
        for title, values in (("simulated truth", true), ("attention rollout", np.abs(true) + 0.2 * rng.random((n, n))),
                              ("similarity of sessions", np.abs(rng.normal(size=(n, n)))))
    ]  # fmt: skip


def cap(n: int) -> np.ndarray:
    """`(n, 3)` metres: points spread over the upper half of a head."""
    i = np.arange(n) + 0.5
    angle, height = np.pi * (1 + 5**0.5) * i, 1 - 1.1 * i / n
    flat = np.sqrt(1 - height**2)
    return 0.09 * np.column_stack([flat * np.cos(angle), flat * np.sin(angle), height]) + [0, 0, 0.04]


def topography(rng: np.random.Generator, n: int, title: str) -> dict:
    positions = cap(n)
    values = positions @ rng.normal(size=3) * 20 + rng.normal(size=n) * 0.1
    return {
        "title": title,
        "positions": positions.tolist(),
        "values": values.tolist(),
        "names": [f"c{i}" for i in range(n)],
    }


def model_folder(root: Path, key: str, rng: np.random.Generator, simulated: bool = True) -> Path:
    folder = root / key
    folder.mkdir(parents=True)
    time = np.arange(0, 4, 1 / 128)
    wave = np.sin(2 * np.pi * 10 * time) * (1 + 0.4 * np.sin(3 * time)) * 2e-5
    figures = [
        {"title": "channel C3, unseen person", "time": time.tolist(),
         "true": (wave + rng.normal(size=len(time)) * 5e-6).tolist(), "predicted": wave.tolist(), "unit": "V"},
        *(topography(rng, 32, f"latent source {i + 1}") for i in range(7)),
    ]  # fmt: skip
    card = {
        "objective": "masked_patches",
        "datasets": [{"name": "test_data_eeg", "simulated": simulated, "licence": "CC0-1.0", "subjects": 12}],
        "subjects": {"train": [f"s{i:02d}" for i in range(9)], "val": ["s09", "s10", "s11"]}, "parameters": 1_284_993,
        "seconds": 843.2, "metrics": {"val/loss": 0.413}, "seed": 5, "figures": figures,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"kind": "models", "name": "luna", "keywords": {}}))
    (folder / "card.json").write_text(json.dumps(card))
    lines = ["epoch,step,train/loss,train/reconstruction,val/loss,val/reconstruction"]
    for step in range(0, 1000, 10):
        loss = 0.4 + np.exp(-step / 200) + rng.normal() * 0.03
        lines.append(f"{step // 100},{step},{loss:.5f},{loss * 0.8:.5f},,")
        if step % 100 == 90:
            lines.append(f"{step // 100},{step},,,{loss + 0.05:.5f},{loss * 0.8 + 0.03:.5f}")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def results(rng: np.random.Generator) -> list[dict]:
    """A varied set, as a real run would give."""
    letters = [f"word {i}" for i in range(14)]
    return [
        classification(rng, "mi_probe", "motor_imagery", ["left", "right"], 0.81, curve=few_shot(rng, 0.81),
                       topographies=[topography(rng, 20, f"attention, {hand} hand") for hand in ("left", "right")]),
        classification(rng, "sleep_probe", "sleep_stage", ["W", "N1", "N2", "N3", "REM"], 0.62, evaluation="finetune"),
        classification(rng, "words", "heard_word", letters, 0.35, metric="top-1 accuracy",
                       dataset="test_data_meg", simulated=False),
        classification(rng, "device", "motor_imagery_other_cap", ["left", "right"], 0.58, curve=few_shot(rng, 0.6)),
        regression(rng, "reach"),
        regression(rng, "circuit", task="connectivity", simulated=True, matrices=connectivity(rng), traces=[], note=""),
    ]  # fmt: skip


def stored(folder: Path, results: list[dict]) -> list[Path]:
    """Write results as the stages do."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for result in results:
        paths.append(folder / f"{result['key']}.json")
        paths[-1].write_text(json.dumps(result))
    return paths


AUDIT = {
    "passed": True,
    "checks": [
        {"what": "subjects of pretraining and of test", "pairs": 14, "leaks": []},
        {"what": "windows of training and of test", "pairs": 20880, "leaks": []},
    ],
}
PROVENANCE = {
    "commit": "0123456789abcdef",
    "dirty": True,
    "versions": {"python": "3.11.9", "torch": "2.13.0", "mne": "1.13.2"},
    "checksums": {f"data/shards/test/s{i:02d}.h5": f"{i:032x}" for i in range(20)},
}
