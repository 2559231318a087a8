"""Evoked potentials are found by their shape, a narrow rhythm by its frequency, and neither by the other."""

from pathlib import Path

import numpy as np
import pytest

from brainfm.evaluations import baselines
from brainfm.evaluations.methods import classical
from brainfm.evaluations.methods.trials import Side, Trials
from brainfm.recording import Channels, Events, Recording
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard

SFREQ, COUNT, SAMPLES = 128.0, 60, 128


def trials_of(folder: Path, kind: str) -> Trials:
    """Two people: a bump at .3 s, up for targets and down for others, or with 20 against 27 Hz of random phase."""
    rng = np.random.default_rng(0)
    label = ["target" if i % 2 else "other" for i in range(COUNT)]
    time = np.arange(SAMPLES) / SFREQ
    for name in ("p0", "p1"):
        signal = rng.normal(size=(COUNT, 4, SAMPLES))
        for i, word in enumerate(label):
            if kind == "evoked":
                signal[i, :3] += (0.8 if word == "target" else -0.8) * np.exp(-(((time - 0.3) / 0.06) ** 2))
            else:
                hertz = 20 if word == "target" else 27
                signal[i, 0] += np.sin(2 * np.pi * hertz * time + rng.uniform(0, 6))
        channels = Channels.make(["TP9", "AF7", "AF8", "TP10"], "eeg", rng.normal(scale=0.05, size=(4, 3)))
        made = Recording(
            "sim", name, "eeg", channels, sfreq=SFREQ, signal=signal.transpose(1, 0, 2).reshape(4, -1) * 1e-5,
            events=Events(np.arange(COUNT, dtype=float), np.ones(COUNT), label), simulated=True,
        )  # fmt: skip
        write_shard(folder / f"{name}.h5", [made], {})
    return Trials(open_shards(folder).trials(0, 1))


def accuracy(trials: Trials, name: str) -> float:
    (method,) = classical.classical([name])
    rows = [np.flatnonzero(trials.people == f"sim/p{i}") for i in range(2)]
    fitted = method.fit(trials, Side(rows[0], rows[0][:0], rows[1]), method.settings[0], 0)
    return float(np.mean(fitted.predict_proba(rows[1]).argmax(axis=1) == trials.labels[rows[1]]))


@pytest.mark.parametrize(
    ("kind", "finds", "misses"),
    [("evoked", "xdawn_covariance", "log_power_spectrum"), ("rhythm", "log_power_spectrum", "xdawn_covariance")],
)
def test_each_finds_what_it_is_for(tmp_path: Path, kind: str, finds: str, misses: str) -> None:
    trials = trials_of(tmp_path, kind)
    assert accuracy(trials, finds) > 0.8
    assert accuracy(trials, finds) > accuracy(trials, misses) + 0.1
    assert abs(accuracy(trials.permuted(np.random.default_rng(1)), finds) - 0.5) < 0.25


def test_spectrum_has_a_step_for_each_hertz(tmp_path: Path) -> None:
    windows = trials_of(tmp_path, "rhythm").windows
    power = baselines.log_power_spectrum(windows).reshape(len(windows), 4, 45)
    hertz = {word: 1 + power[windows.label == word, 0].mean(axis=0).argmax() for word in ("target", "other")}
    assert hertz == {"target": 20, "other": 27}
    short = open_shards(tmp_path).trials(0, 0.3)
    with pytest.raises(ValueError, match=r"windows of 0.296875 s at 128 Hz show no spectrum"):
        baselines.log_power_spectrum(short)
