"""Ingest: the same bytes however it runs, one bad file stops nobody else, a killed run leaves nothing half-made."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from brainfm import catalog
from brainfm.recording import Recording
from brainfm.shards.ingest import PARTS, Ingested, ingest
from brainfm.shards.read import open_shards
from brainfm.stages import ingest as stage
from brainfm.stages.ingest import units_of

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # also for the worker processes, which take this list over

import made_up_dataset as dataset  # noqa: E402


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def run(
    raw: Path, out: Path, jobs: int = 1, code: str = "1", split: dict | None = None, **keywords: object
) -> Ingested:
    split = {"test_subjects": 1} if split is None else split
    units = units_of(dataset.recordings, dataset.sources(raw), raw, keywords)
    return ingest(units, out, dataset.CARD, [keywords, code], split, jobs=jobs)


def of(*subjects: str) -> list[str]:
    """Keys of the recordings of the subjects, two each."""
    return [f"{subject}/{session}" for subject in subjects for session in "12"]


ALL = of(*dataset.SUBJECTS)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    dataset.fetch(tmp_path / "raw")
    return tmp_path / "raw"


def test_same_bytes_for_any_number_of_jobs(raw: Path, tmp_path: Path) -> None:
    for jobs in (1, 2):
        assert sorted(run(raw, tmp_path / str(jobs), jobs).written) == ALL
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
    assert done.written == of("s1", "s3", "s4")
    assert list(done.failed) == of("s2")
    assert message in done.failed["s2/1"]
    assert [p.split("/")[1] for p in open_shards(tmp_path / "out").people] == ["s1", "s3", "s4"]
    assert len(json.loads((tmp_path / "out/split.json").read_text())["recordings"]) == 6


def test_a_subject_whose_file_went_bad_has_no_old_shard(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path / "out")
    spoil(raw, "text")
    done = run(raw, tmp_path / "out")
    assert (done.written, done.kept, list(done.failed)) == ([], of("s1", "s3", "s4"), of("s2"))
    assert not (tmp_path / "out/sub-s2.h5").exists()


def test_what_is_whole_is_kept(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(raw, out)
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.h5")}
    again = run(raw, out)
    assert (again.written, again.kept) == ([], ALL)
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("*.h5")} == before


def test_what_differs_is_made_again(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(raw, out)
    before = bytes_of(out)
    assert run(raw, out, gain=2e-6).written == ALL
    assert bytes_of(out)["sub-s1.h5"] != before["sub-s1.h5"]
    assert run(raw, out, gain=2e-6, code="2").written == ALL
    (raw / "s3.txt").write_text((raw / "s4.txt").read_text())
    assert run(raw, out, gain=2e-6, code="2").written == of("s3")
    whole = (out / "sub-s1.h5").read_bytes()
    (out / "sub-s1.h5").write_bytes(whole[: len(whole) // 2])
    assert run(raw, out, gain=2e-6, code="2").written == of("s1")
    assert (out / "sub-s1.h5").read_bytes() == whole


@pytest.mark.parametrize(
    "name", ["shards/write.py", "recording.py", "hdf.py", "modalities/filters.py", "datasets/download.py"]
)
def test_an_edit_of_code_that_decides_the_bytes_makes_shards_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(catalog.PACKAGE, tmp_path / "brainfm", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(catalog, "PACKAGE", tmp_path / "brainfm")
    own = tmp_path / "brainfm/datasets/sim_eeg.py"
    before = stage._code(own)
    for other in ("models/luna.py", "datasets/sim_meg.py"):
        (tmp_path / "brainfm" / other).write_text("CARD = fetch = recordings = None\n")
    assert stage._code(own) == before
    path = tmp_path / "brainfm" / name
    path.write_text(path.read_text() + "# edited\n")
    assert stage._code(own) != before


def test_a_subject_that_is_gone_leaves_with_its_shard(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path / "out")
    few = {s: f for s, f in dataset.sources(raw).items() if not s.startswith("s4")}
    ingest(units_of(dataset.recordings, few, raw, {}), tmp_path / "out", dataset.CARD, [{}, "1"], {"test_subjects": 1})
    assert open_shards(tmp_path / "out").people == [f"made_up_dataset/{s}" for s in ("s1", "s2", "s3")]
    assert "s4" not in (tmp_path / "out/split.json").read_text()


def test_a_mistake_of_ours_is_no_bad_file(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="gian"):
        run(raw, tmp_path / "out", gian=1.0)


def test_one_recording_of_a_subject_is_added_and_taken_away(raw: Path, tmp_path: Path) -> None:
    """The rest of the subject is copied, not made anew, and the bytes are those of making all at once."""
    sources, out = dataset.sources(raw), tmp_path / "out"
    fewer = {key: files for key, files in sources.items() if key != "s2/2"}

    def some(chosen: dict) -> Ingested:
        units = units_of(dataset.recordings, chosen, raw, {})
        return ingest(units, out, dataset.CARD, [{}, "1"], {"test_subjects": 1}, jobs=1)

    assert len(some(fewer).written) == 7
    assert len(open_shards(out / "sub-s2.h5")) == 1
    time.sleep(1.1)  # a time of day in the file would show
    assert (some(sources).written, len(open_shards(out / "sub-s2.h5"))) == (["s2/2"], 2)
    run(raw, tmp_path / "calm")
    assert bytes_of(out) == bytes_of(tmp_path / "calm")
    some(fewer)
    assert [r.session for r in open_shards(out / "sub-s2.h5").recordings] == ["1"]


def test_a_bad_recording_leaves_the_others_of_its_subject(raw: Path, tmp_path: Path) -> None:
    units = units_of(dataset.recordings, dataset.sources(raw), raw, {})
    units[2] = replace(units[2], make=partial(broken, raw))
    done = ingest(units, tmp_path / "out", dataset.CARD, [{}, "1"], {"test_subjects": 1}, jobs=1)
    assert done.failed == {"s2/1": "the header is a lie"}
    assert [r.session for r in open_shards(tmp_path / "out/sub-s2.h5").recordings] == ["2"]


def broken(raw: Path) -> Iterator[Recording]:
    """A reader that finds nonsense."""
    raise ValueError("the header is a lie")


def test_a_full_disk_is_said_in_a_line(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("brainfm.shards.write._write_signal", full)
    done = run(raw, tmp_path / "out")
    assert list(done.failed) == ALL
    assert "no space left on the disk of" in done.failed["s1/1"]
    assert not list((tmp_path / "out").glob("**/*.part"))


def bytes_while_killed(raw: Path, out: Path, kills: int, jobs: int) -> int:
    """Kill an ingest at random moments, then let one run through; the number of kills that struck one at work."""
    rng, struck = random.Random(jobs), 0
    context = get_context("fork")
    started = time.perf_counter()
    run(raw, out.parent / f"calm{jobs}", jobs)
    whole = time.perf_counter() - started
    for _ in range(kills):
        child = context.Process(target=run, args=(raw, out, jobs))
        child.start()
        child.join(rng.uniform(0, whole))
        struck += child.is_alive()
        child.kill()
        child.join()
        if rng.random() < 0.3:  # most kills find some work done, some find all of it to do
            shutil.rmtree(out, ignore_errors=True)
    run(raw, out, jobs)
    return struck


def orphan_of(process: Path, folder: Path) -> bool:
    """Whether a process whose parent is gone still works in the folder."""
    try:
        orphan = process.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1] == "1"
        return orphan and str(folder).encode() in process.joinpath("environ").read_bytes()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "kills"), [(1, 45), (2, 5)])
def test_killed_at_random_moments_the_shards_are_the_same(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, kills: int
) -> None:
    monkeypatch.setenv("BRAINFM_TEST", str(tmp_path))  # workers are known by it
    for path in raw.glob("*.txt"):  # more to write, so that a kill can fall into it
        path.write_text(path.read_text().replace("\n", " " + path.read_text().split("\n")[0] * 400 + "\n", 1))
        rows = path.read_text().splitlines()
        path.write_text("\n".join([rows[0]] * 3) + "\n")
    struck = bytes_while_killed(raw, tmp_path / "out", kills, jobs)
    assert struck >= 1
    assert not [p for p in Path("/proc").glob("[0-9]*") if orphan_of(p, tmp_path)]
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / f"calm{jobs}")
    assert not (tmp_path / "out" / PARTS).exists()


def test_a_killed_run_goes_on_to_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    """The process is killed in the middle of the third shard; the next run keeps two and makes two."""
    out, calm = tmp_path / "out", tmp_path / "calm"
    code = (
        "import sys; from pathlib import Path; from brainfm.shards.ingest import ingest; import made_up_dataset as d\n"
        "from brainfm.stages.ingest import units_of\n"
        "raw, out = map(Path, sys.argv[1:]); given = {'die_at': 's3'}\n"
        "units = units_of(d.recordings, d.sources(raw), raw, given)\n"
        "ingest(units, out, d.CARD, [given, '1'], {'test_subjects': 1}, jobs=1)\n"
    )
    path = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    killed = subprocess.run([sys.executable, "-c", code, raw, out], env=path, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(p.name for p in out.iterdir()) == [PARTS, "sub-s1.h5", "sub-s2.h5"]
    assert sorted(p.suffix for p in (out / PARTS).iterdir()) == [".h5", ".part"]
    assert len(open_shards(out).people) == 2
    (raw / "spared").touch()
    done = run(raw, out, die_at="s3")
    assert (done.kept, done.written) == ([*of("s1", "s2"), "s3/1"], ["s3/2", *of("s4")])
    run(raw, calm, die_at="s3")
    assert bytes_of(out) == bytes_of(calm)


@pytest.mark.slow
def test_a_worker_that_dies_takes_nobody_with_it(raw: Path, tmp_path: Path) -> None:
    done = run(raw, tmp_path / "out", jobs=2, die_at="s2")
    assert list(done.failed) == ["s2/2"]
    assert "worker process died" in done.failed["s2/2"]
    assert done.written == [key for key in ALL if key != "s2/2"]
    assert [r.session for r in open_shards(tmp_path / "out/sub-s2.h5").recordings] == ["1"]


@contextmanager
def process(*words: str) -> Iterator[subprocess.Popen[str]]:
    path = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-m", *words], env=path, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """A scheduler and two workers as a user starts them, on this machine."""
    with ExitStack() as stack:
        scheduler = stack.enter_context(
            process("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        )
        address = ""
        for line in scheduler.stderr or ():
            if found := re.search(r"Scheduler at:\s+(tcp://\S+)", line):
                address = found[1]
                break
        workers = [
            stack.enter_context(
                process(
                    "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard",
                    "--local-directory", str(tmp_path / f"worker{i}"),
                )
            )
            for i in range(2)
        ]  # fmt: skip
        yield address, workers


@pytest.mark.slow
def test_workers_give_the_bytes_of_local_processes_though_one_is_killed(
    raw: Path, tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[str]]]
) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install 'brainfm[dask]'")
    address, workers = cluster
    with distributed.Client(address, timeout=60) as client:
        client.wait_for_workers(2, timeout=60)
    keywords = {"pause_s": 0.5}
    units = units_of(dataset.recordings, dataset.sources(raw), raw, keywords)
    out = tmp_path / "dask"
    killer = subprocess.Popen(
        [sys.executable, "-c", f"""
import os, pathlib, signal, time
while not list(pathlib.Path({str(out)!r}).glob('**/*.h5')): time.sleep(.01)
os.kill({workers[0].pid}, signal.SIGKILL)
"""]
    )  # fmt: skip
    done = ingest(units, out, dataset.CARD, [keywords, "1"], {"test_subjects": 1}, scheduler=address)
    assert killer.wait(timeout=30) == 0
    assert workers[0].wait(timeout=10) == -signal.SIGKILL
    assert (done.written, done.failed) == (ALL, {})
    run(raw, tmp_path / "local", **keywords)
    assert bytes_of(out) == bytes_of(tmp_path / "local")


@pytest.mark.slow
def test_a_scheduler_that_is_not_there_is_said(raw: Path, tmp_path: Path) -> None:
    units = units_of(dataset.recordings, dataset.sources(raw), raw, {})
    with pytest.raises(OSError, match="tcp://127"):
        ingest(units, tmp_path / "out", dataset.CARD, "1", {}, scheduler="tcp://127.0.0.1:9")
