"""Configurations: plain YAML, known words, and errors that name the file and the nearest word."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from brainfm import config
from brainfm.config import ConfigError


def resample(recording, *, sfreq_hz: float, highpass_hz: float | None = None) -> None:
    """A function to give keywords to."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "wirings").mkdir()
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pipeline.yaml").write_text("seed: 3\npretrain:\n  luna_tiny: {model: luna}\n  bare:\n")
    (tmp_path / "wirings/more.yaml").write_text("pretrain:\n  other: {model: roi_mae}\n")
    (tmp_path / "pretrain/luna_tiny.yaml").write_text("model: {dim: 3}\ntraining:\n")
    return tmp_path


def test_keywords_pass_as_they_are():
    given = {"sfreq_hz": 100}
    assert config.keywords(resample, given, "x", ("recording",)) is given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sfreq_hz": 1, "highpas_hz": 2}, r"x\.yaml: unknown keyword 'highpas_hz'; did you mean 'highpass_hz'\?"),
        ({"sfreq_hz": 1, "zzz": 2}, r"unknown keyword 'zzz'; known: sfreq_hz, highpass_hz"),
        ({"recording": 1, "sfreq_hz": 1}, r"unknown keyword 'recording'"),
        ({}, r"x\.yaml: keyword 'sfreq_hz' is required and missing"),
        (5, r"x\.yaml: got 5; expected keywords"),
        (["sfreq_hz"], r"x\.yaml: got \['sfreq_hz'\]; expected keywords"),
    ],
)
def test_keywords_that_do_not_fit(given, message):
    with pytest.raises(ConfigError, match=message):
        config.keywords(resample, given, "x.yaml", ("recording",))


@pytest.mark.parametrize(
    "text",
    ["a: !!python/object/apply:os.getcwd []", "a: !secret x", "a: [1", "a: b: c", "\tx: 1", "!!python/name:os.system"],
)
def test_only_plain_yaml_is_read(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.yaml is not plain YAML"):
        config.read(tmp_path / "a.yaml")


def test_other_than_a_mapping_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"a\.yaml holds a list; expected keywords"):
        config.read(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("")
    assert config.read(tmp_path / "a.yaml") == {}


def test_a_missing_file_names_the_nearest(folder):
    with pytest.raises(ConfigError, match=r"luna_tny\.yaml; did you mean 'luna_tiny'\?"):
        config.stage_config("pretrain", "luna_tny", ("model",), folder)


def test_wiring(folder):
    assert config.wiring("pretrain", "luna_tiny", folder) == {"model": "luna"}
    assert config.wiring("pretrain", "other", folder) == {"model": "roi_mae"}
    assert config.wiring("pretrain", "bare", folder) == {}
    with pytest.raises(ConfigError, match=r"no pretrain key 'luna_tyni'.*did you mean 'luna_tiny'\?"):
        config.wiring("pretrain", "luna_tyni", folder)


def test_blocks(folder):
    assert config.stage_config("pretrain", "luna_tiny", ("model", "training"), folder) == {
        "model": {"dim": 3},
        "training": {},
    }
    with pytest.raises(ConfigError, match=r"luna_tiny\.yaml: unknown block 'training'; did you mean 'trainings'\?"):
        config.stage_config("pretrain", "luna_tiny", ("model", "trainings"), folder)
    with pytest.raises(ConfigError, match="got 5; expected keywords"):
        config.check_blocks(5, ("a",), "x")
    with pytest.raises(ConfigError, match="unknown block 5"):
        config.check_blocks({5: 1}, ("a",), "x")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    from brainfm.recording import Channels, Events, Recording
    from brainfm.shards.read import open_shards
    from brainfm.shards.write import write_shard

    folder = tmp_path_factory.mktemp("shards")
    for subject in ("a", "b"):
        made = Recording(
            "d", subject, "eeg", Channels.make(["Cz"], "eeg"), sfreq=10.0, signal=np.ones((1, 40)),
            events=Events(np.array([0.5, 2.0]), np.zeros(2), ["x", "y"]),
        )  # fmt: skip
        write_shard(folder / f"sub-{subject}.h5", [made], {})
    return open_shards(folder)


def test_select_windows(corpus):
    from brainfm.evaluations.tasks import select

    train, test = select(corpus, {"train": {"subject": "a"}, "test": None, "length_s": 1.0, "stride_s": 0.5}, "x")
    assert (len(train), len(test)) == (7, 14)
    given = {"train": {"subject": "a"}, "test": {"subject": "b"}, "trials": {"tmin_s": 0, "tmax_s": 1, "labels": ["y"]}}
    train, test = select(corpus, given, "x")
    assert (train.label.tolist(), test.of("subject").tolist()) == (["y"], ["b"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": {}}, "expected train:, test: and either trials: or length_s:; got train"),
        ({"train": {}, "test": {}, "trials": {}, "length_s": 1}, "expected train:, test: and either"),
        ({"train": {}, "test": {}, "lenght_s": 1}, "unknown block 'lenght_s'; did you mean 'length_s'?"),
        ({"train": {}, "test": {}, "trials": {"tmin": 0}}, "x: trials: unknown block 'tmin'; did you mean 'tmin_s'?"),
        ({"train": {}, "test": {}, "trials": {"tmin_s": 0}}, "expected tmin_s and tmax_s (seconds); got tmin_s"),
        ({"train": {"subjct": "a"}, "test": {}, "length_s": 1}, "recordings have no 'subjct'; did you mean 'subject'?"),
        ({"train": {"subject": "c"}, "test": {}, "length_s": 1}, "there are ['a', 'b']"),
    ],
)
def test_windows_that_cannot_be_selected(corpus, given, message):
    from brainfm.evaluations.tasks import select

    with pytest.raises(ValueError, match=re.escape(message)):
        select(corpus, given, "x")
