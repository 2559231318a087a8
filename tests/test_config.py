"""Configurations: plain YAML, known words, and errors that name the file and the nearest word."""

from __future__ import annotations

from pathlib import Path

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
    "text", ["a: !!python/object/apply:os.getcwd []", "a: !secret x", "a: [1", "a: b: c", "\tx: 1", "!!python/name:os.system"]
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
    assert config.stage_config("pretrain", "luna_tiny", ("model", "training"), folder) == {"model": {"dim": 3}, "training": {}}
    with pytest.raises(ConfigError, match=r"luna_tiny\.yaml: unknown block 'training'; did you mean 'trainings'\?"):
        config.stage_config("pretrain", "luna_tiny", ("model", "trainings"), folder)
    with pytest.raises(ConfigError, match="got 5; expected keywords"):
        config.check_blocks(5, ("a",), "x")
    with pytest.raises(ConfigError, match="unknown block 5"):
        config.check_blocks({5: 1}, ("a",), "x")
