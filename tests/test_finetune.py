"""`brainfm finetune`: what it compares with, and labels of whole recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from brainfm import finetune
from brainfm.api import Decoder
from brainfm.modalities import electrodes
from brainfm.models import luna
from brainfm.recording import Channels, Events, Recording
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard
from brainfm.tokens import Facts
from brainfm.training.checkpoint import Pretrained

SFREQ, NAMES = 64.0, ["C3", "Cz", "C4", "Pz"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    facts = Facts(modality=("eeg",), kinds=("eeg",), sfreq=SFREQ, window_s=1.0, channels=4)
    torch.manual_seed(0)
    made = luna.build(facts, **luna.SIZES["test"]).eval()
    config = {"kind": "models", "name": "luna", "keywords": luna.SIZES["test"]}
    return Pretrained(made, config, facts).save(tmp_path_factory.mktemp("models") / "luna_tiny")


def recording(session: str, events: Events, seconds: int = 40) -> Recording:
    """Noise with a rhythm of 8 Hz in all of "task"."""
    time = np.arange(int(seconds * SFREQ)) / SFREQ
    signal = np.random.default_rng(len(session)).normal(0, 5e-6, (4, len(time)))
    if session == "task":
        signal += 4e-5 * np.sin(2 * np.pi * 8 * time)
    return Recording(
        "made_up", "1", "eeg", electrodes.named(NAMES), session=session, sfreq=SFREQ, signal=signal, events=events
    )


@pytest.fixture
def conditions(tmp_path: Path) -> Path:
    """Two recordings of one person, each one condition as a whole."""
    whole = [recording(w, Events(np.zeros(1), np.array([40.0]), [w])) for w in ("rest", "task")]
    write_shard(tmp_path / "shards/sub-1.h5", whole, {})
    return tmp_path / "shards"


def test_windows_of_a_label_that_lasts(model: Path, conditions: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"last up to 40 s: .* Cut windows inside them with --window-s 1"):
        finetune.run(model, conditions, "1", tmp_path / "out", adapt="probe")
    with pytest.raises(ValueError, match=r"no window of 50 s lies inside an event .* lasts 40 s"):
        finetune.run(model, conditions, "1", tmp_path / "out", adapt="probe", window_s=50.0)
    with pytest.raises(ValueError, match="--test 1; expected a share"):
        finetune.run(model, conditions, "1", tmp_path / "out", adapt="probe", test=1.0)
    found = finetune.run(model, conditions, "1", tmp_path / "out", adapt="probe", window_s=1.0)
    assert (found["n_trials"], found["n_subjects"], found["chance"]) == (24, 1, 0.5)
    assert found["score"] > 0.9
    assert "Each recording is one condition" in found["note"]


def test_baselines_are_fitted_as_the_model_is(model: Path, conditions: Path, tmp_path: Path) -> None:
    found = finetune.run(model, conditions, "1", tmp_path / "out", adapt="statistics", window_s=1.0)
    assert list(found["baselines"]) == ["untrained, statistics", "majority", "log_band_power"]
    assert found["baselines"]["majority"]["score"] == 0.5
    assert found["baselines"]["log_band_power"]["score"] > 0.9
    for row in found["baselines"].values():
        assert row["ci"][0] <= row["score"] <= row["ci"][1]


def test_trials_without_a_label_are_left_out(model: Path, tmp_path: Path) -> None:
    words = ["left", "right", "", "n/a"] * 10
    made = recording("task", Events(np.arange(40.0), np.zeros(40), words))
    write_shard(tmp_path / "shards/sub-1.h5", [made], {})
    found = finetune.run(model, tmp_path / "shards", "1", tmp_path / "out", adapt="probe")
    assert "20 trials without a label are left out." in found["note"]
    assert found["n_trials"] == 6


def test_blocks_of_one_class_are_all_scored(model: Path, tmp_path: Path) -> None:
    """With a single cut the last trials are all "right", and whatever says so scores 1 with an interval of no width."""
    made = recording("task", Events(np.arange(40.0), np.zeros(40), ["left"] * 20 + ["right"] * 20))
    write_shard(tmp_path / "shards/sub-1.h5", [made], {})
    found = finetune.run(model, tmp_path / "shards", "1", tmp_path / "out", adapt="probe")
    assert "the last trials of each class are scored" in found["note"]
    assert (found["n_trials"], found["chance"]) == (12, 0.5)
    assert found["baselines"]["majority"]["score"] == 0.5


def test_the_decoder_is_kept_where_a_baseline_fails(
    model: Path, conditions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("too short for this baseline")

    monkeypatch.setattr(finetune.baselines, "of_signals", fails)
    with pytest.raises(ValueError, match="too short for this baseline"):
        finetune.run(model, conditions, "1", tmp_path / "out", adapt="probe", window_s=1.0)
    assert len(Decoder.load(tmp_path / "out").classes_) == 2


@pytest.mark.parametrize(("modality", "kind", "sfreq"), [("calcium", "neuron", 5.0), ("calcium", "neuron", 1.5),
                                                         ("fmri", "region", 0.5)])  # fmt: skip
def test_slow_signals_have_baselines_without_rhythms(modality: str, kind: str, sfreq: float, tmp_path: Path) -> None:
    """No band of 1 to 45 Hz can be seen in them."""
    events, rng = Events(np.arange(0.0, 400, 10), np.zeros(40), ["left", "right"] * 20), np.random.default_rng(0)
    time = np.arange(int(400 * sfreq)) / sfreq
    signal = rng.normal(0, 0.1, (4, len(time))) + (time // 10 % 2 == 1)
    made = Recording("made_up", "1", modality, Channels.make(list("abcd"), kind), sfreq=sfreq, signal=signal,
                     events=events)  # fmt: skip
    write_shard(tmp_path / "1.h5", [made], {})
    trials = open_shards(tmp_path).trials(0.0, 8.0)
    found = finetune._without_a_network(trials.take(np.arange(28)), trials.take(np.arange(28, 40)), 0)
    assert list(found) == ["majority", "tangent_space", "downsampled_signal"]
    assert found["downsampled_signal"].score == 1.0
