"""Benchmarks run and print one JSON line per case with the fields that comparisons need; their times are not judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIELDS = {"name", "seconds", "peak_mb", "baseline", "baseline_seconds", "ratio"}
SHORT = {
    "brainomni.py": ["--case", "tokenize", "--repeat", "1"],
    "check.py": ["--recordings", "100"],
    "ingest.py": ["--minutes", "1", "--repeat", "1"],
    "neuroformer.py": ["--repeat", "1"],
    "poyo.py": ["--repeat", "1"],
    "loader.py": ["--seconds", "0.02", "--minutes", "0.3"],
    "transfer.py": ["--people", "3", "--trials", "12", "--repeat", "1", "--sizes", "luna:test"],
}
#: Largest difference from the other way: none for what is copied, parts of a deviation for what is filtered.
EQUAL = {"brainomni.py": 1e-5, "ingest.py": 1e-3, "neuroformer.py": 1e-4, "poyo.py": 1e-4, "transfer.py": 1e-3}
SLOW = ("brainomni.py", "check.py", "ingest.py", "neuroformer.py", "poyo.py", "transfer.py")
SCRIPTS = [
    pytest.param(path, id=path.name, marks=[pytest.mark.slow] if path.name in SLOW else [])
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
]


@pytest.mark.parametrize("path", SCRIPTS)
def test_it_prints_json_lines(path: Path) -> None:
    command = [sys.executable, str(path), *SHORT.get(path.name, [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines
    assert all(set(line) >= FIELDS for line in lines)
    assert all((line.get("max_difference") or 0) < EQUAL.get(path.name, 1e-9) for line in lines)
