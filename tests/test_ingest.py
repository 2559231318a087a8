"""Ingest: the same bytes however it runs, one bad file stops nobody else, a killed run leaves nothing half-made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from brainfm.shards.ingest import Ingested, ingest
from brainfm.shards.read import open_shards

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # also for the worker processes, which take this list over

import made_up_dataset as dataset  # noqa: E402


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def run(
    raw: Path, out: Path, jobs: int = 1, code: str = "1", split: dict | None = None, **keywords: object
) -> Ingested:
    split = {"test_subjects": 1} if split is None else split
    return ingest(dataset.recordings, dataset.sources(raw), raw, keywords, out, dataset.CARD, code, split, jobs)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    dataset.fetch(tmp_path / "raw")
    return tmp_path / "raw"


def test_same_bytes_for_any_number_of_jobs(raw: Path, tmp_path: Path) -> None:
    for jobs in (1, 2):
        assert sorted(run(raw, tmp_path / str(jobs), jobs).written) == dataset.SUBJECTS
    one = bytes_of(tmp_path / "1")
    assert sorted(one) == ["split.json", *(f"sub-{s}.h5" for s in dataset.SUBJECTS)]
    assert bytes_of(tmp_path / "2") == one


def spoil(raw: Path, how: str) -> None:
    path = raw / "s2.txt"
    path.unlink() if how == "missing" else path.write_text({"text": "no numbers", "nan": "1 2\nnan 4\n5 6\n"}[how])


@pytest.mark.parametrize(("how", "message"), [("missing", "s2.txt"), ("text", "no"), ("nan", "not finite")])
def test_one_bad_subject_stops_nobody_else(raw: Path, tmp_path: Path, how: str, message: str) -> None:
    spoil(raw, how)
    done = run(raw, tmp_path / "out")
    assert done.written == ["s1", "s3", "s4"]
    assert list(done.failed) == ["s2"]
    assert message in done.failed["s2"]
    assert [p.split("/")[1] for p in open_shards(tmp_path / "out").people] == ["s1", "s3", "s4"]
    assert len(json.loads((tmp_path / "out/split.json").read_text())["recordings"]) == 6


def test_a_subject_whose_file_went_bad_has_no_old_shard(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path / "out")
    spoil(raw, "text")
    done = run(raw, tmp_path / "out")
    assert (done.written, done.kept, list(done.failed)) == ([], ["s1", "s3", "s4"], ["s2"])
    assert not (tmp_path / "out/sub-s2.h5").exists()


def test_what_is_whole_is_kept(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(raw, out)
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.h5")}
    again = run(raw, out)
    assert (again.written, again.kept) == ([], dataset.SUBJECTS)
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("*.h5")} == before


def test_what_differs_is_made_again(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(raw, out)
    before = bytes_of(out)
    assert run(raw, out, gain=2e-6).written == dataset.SUBJECTS
    assert bytes_of(out)["sub-s1.h5"] != before["sub-s1.h5"]
    assert run(raw, out, gain=2e-6, code="2").written == dataset.SUBJECTS
    (raw / "s3.txt").write_text((raw / "s4.txt").read_text())
    assert run(raw, out, gain=2e-6, code="2").written == ["s3"]
    whole = (out / "sub-s1.h5").read_bytes()
    (out / "sub-s1.h5").write_bytes(whole[: len(whole) // 2])
    assert run(raw, out, gain=2e-6, code="2").written == ["s1"]
    assert (out / "sub-s1.h5").read_bytes() == whole


def test_a_subject_that_is_gone_leaves_with_its_shard(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path / "out")
    few = {s: f for s, f in dataset.sources(raw).items() if s != "s4"}
    ingest(dataset.recordings, few, raw, {}, tmp_path / "out", dataset.CARD, "1", {"test_subjects": 1}, 1)
    assert open_shards(tmp_path / "out").people == [f"made_up_dataset/{s}" for s in ("s1", "s2", "s3")]
    assert "s4" not in (tmp_path / "out/split.json").read_text()


def test_a_mistake_of_ours_is_no_bad_file(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="gian"):
        run(raw, tmp_path / "out", gian=1.0)


def test_a_killed_run_goes_on_to_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    """The process is killed in the middle of the third shard; the next run keeps two and makes two."""
    out, calm = tmp_path / "out", tmp_path / "calm"
    code = (
        "import sys; from pathlib import Path; from brainfm.shards.ingest import ingest; import made_up_dataset as d\n"
        "raw, out = map(Path, sys.argv[1:])\n"
        "ingest(d.recordings, d.sources(raw), raw, {'die_at': 's3'}, out, d.CARD, '1', {'test_subjects': 1}, 1)\n"
    )
    path = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    killed = subprocess.run([sys.executable, "-c", code, raw, out], env=path, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(p.name for p in out.iterdir()) == [".sub-s3.h5.part", "sub-s1.h5", "sub-s2.h5"]
    assert len(open_shards(out).people) == 2
    (raw / "spared").touch()
    done = run(raw, out, die_at="s3")
    assert (done.kept, done.written) == (["s1", "s2"], ["s3", "s4"])
    run(raw, calm, die_at="s3")
    assert bytes_of(out) == bytes_of(calm)


@pytest.mark.slow
def test_a_worker_that_dies_is_reported(raw: Path, tmp_path: Path) -> None:
    done = run(raw, tmp_path / "out", jobs=2, die_at="s1")
    assert "worker process died" in done.failed["s1"]
    assert not (tmp_path / "out/sub-s1.h5").exists()
