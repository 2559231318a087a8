"""Benchmarks run and print one JSON line per case with the fields that comparisons need; their times are not judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIELDS = {"name", "seconds", "peak_mb", "baseline", "baseline_seconds", "ratio"}
SHORT = {"loader.py": ["--seconds", "0.02", "--minutes", "0.3"]}


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.name)
def test_it_prints_json_lines(path: Path) -> None:
    command = [sys.executable, str(path), *SHORT.get(path.name, [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines
    assert all(set(line) >= FIELDS for line in lines)
    assert all(line.get("max_difference", 0) < 1e-9 for line in lines)
