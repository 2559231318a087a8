"""Damaged files are refused by name, read as they were, or differ where nothing in the file could say so."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import fuzz
import fuzz_files
import mutations


def failures(records: list[dict]) -> list[dict]:
    return [r for r in records if r["outcome"] not in fuzz.GOOD]


def test_a_few_mutants_of_every_format() -> None:
    records = fuzz.run(60, seed=0)
    assert len(records) == 60
    assert failures(records) == []
    counts = {word: sum(r["outcome"] == word for r in records) for word in fuzz.GOOD}
    assert counts["refused"] > 20
    assert counts["same"] > 3


@pytest.mark.slow
def test_a_thousand_mutants() -> None:
    records = fuzz.run(1000, seed=1)
    assert failures(records) == []
    formats = {row["format"]: row for row in fuzz.report(records)}
    made_up = {
        "fif", "eeglab", "nwb", "npz", "csv", "npy", "mat table", "hdf5 table", "nifti", "gifti", "cifti", "shard",
        "spikes shard", "code shard",
    }  # fmt: skip
    real = {"edf", "bdf", "brainvision", "mat spikes", "mat counts"} if fuzz_files.DATA.exists() else set()
    assert set(formats) == made_up | real
    assert all(row["refused"] for row in formats.values())


def test_the_same_seed_gives_the_same_mutants() -> None:
    data = bytes(range(256)) * 40
    for damage in (mutations.cut, mutations.flip, mutations.limit, mutations.blank, mutations.append):
        first, again = (damage(data, np.random.default_rng([3, 7])) for _ in range(2))
        assert first == again


CASE = fuzz_files.Case("toy", Path(), "a.toy", {}, "", redundant=("samples",))
WHOLE = {"samples": "1", "values": "2"}


class Odd(Exception):
    """A class that no reader should let through."""


@pytest.mark.parametrize(
    ("outcome", "noticed", "verdict"),
    [
        (dict(WHOLE), False, "same"),
        ({**WHOLE, "values": "3"}, False, "undetectable"),
        ({**WHOLE, "values": "3"}, True, "failure"),
        ({**WHOLE, "samples": "3"}, False, "failure"),
        (ValueError("a.toy is cut short"), True, "refused"),
        (ValueError("it is cut short"), True, "failure"),
        (IndexError("a.toy"), False, "failure"),
        (Odd("a.toy"), False, "failure"),
        (MemoryError("a.toy"), False, "failure"),
    ],
)
def test_outcomes_are_judged(outcome: object, noticed: bool, verdict: str) -> None:
    assert fuzz.judge(CASE, ("a.toy", "cut", noticed), WHOLE, outcome, ["a.toy"])[0] == verdict


def test_memory_that_ran_out_is_a_failure_under_any_name() -> None:
    try:
        try:
            raise MemoryError
        except MemoryError as error:
            raise ValueError("a.toy cannot be read") from error
    except ValueError as error:
        caught = error
    assert fuzz.judge(CASE, ("a.toy", "cut", True), WHOLE, caught, ["a.toy"])[0] == "failure"


def test_a_worker_that_dies_or_hangs_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The parent goes on with the next mutant."""
    (tmp_path / "fuzz.py").write_text(
        "import os, sys, json, time\n"
        "first = int(sys.argv[sys.argv.index('--first') + 1])\n"
        "print(json.dumps({'ready': 1}), flush=True)\n"
        "print(json.dumps({'start': first, 'format': 'toy', 'what': ''}), flush=True)\n"
        "if first == 0: os.kill(os.getpid(), 11)\n"
        "if first == 1: time.sleep(60)\n"
        "print(json.dumps({'done': first, 'outcome': 'same', 'why': '', 'seconds': 0, 'mb': 0}), flush=True)\n"
    )
    monkeypatch.setattr(fuzz, "HERE", tmp_path)
    monkeypatch.setattr(fuzz, "SECONDS", 0.5)
    records = fuzz.run(3, seed=0)
    assert [r["outcome"] for r in records] == ["failure", "failure", "same"]
    assert "died (-11)" in records[0]["why"]
    assert "not done after" in records[1]["why"]
