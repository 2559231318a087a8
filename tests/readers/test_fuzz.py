"""Damaged files are refused by name, read as they were, or differ where nothing in the file could say so."""

from __future__ import annotations

import gzip
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from brainfm.hdf import check_heaps
from brainfm.readers.mne_formats import check_fif

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


# what the mutants found, one by one


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, fuzz_files.Case]:
    """The whole files by the name of the one that is read."""
    return {case.main: case for case in fuzz_files.write(tmp_path_factory.mktemp("whole"))}


def edited(case: fuzz_files.Case, tmp_path: Path, name: str, old: bytes, new: bytes) -> Path:
    """A copy of a case's files, one of them with the first `old` replaced."""
    shutil.copytree(case.folder, tmp_path, dirs_exist_ok=True, copy_function=shutil.copyfile)
    data = (case.folder / name).read_bytes()
    assert old in data
    (tmp_path / name).write_bytes(data.replace(old, new, 1))
    return tmp_path


def field(data: bytes, at: int, word: str, wide: int = 8) -> bytes:
    return data[:at] + word.encode().ljust(wide) + data[at + wide :]


CONTRADICTIONS = {
    "BrainVision lists more channels": ("test.vhdr", "test.vhdr", b"NumberOfChannels=32", b"NumberOfChannels=16"),
    "BrainVision markers behind the end": ("test.vhdr", "test.vhdr", b"BinaryFormat=INT_16", b"BinaryFormat=INT_32"),
    "EEGLAB announces fewer samples": ("a.set", "a.set", np.float64(1500).tobytes(), np.float64(1496).tobytes()),
    "GIFTI holds fewer arrays": ("hemi-L.func.gii", "hemi-L.func.gii", b'Arrays="25"', b'Arrays="26"'),
    "GIFTI of countless dimensions": (
        "hemi-L.func.gii", "hemi-L.func.gii", b'Dimensionality="1"', b'Dimensionality="99999999999"'
    ),
    "CIFTI maps a dimension that is not there": (
        "a.dtseries.nii", "a.dtseries.nii", b'AppliesToMatrixDimension="1"', b'AppliesToMatrixDimension="2147483648"'
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_a_file_that_contradicts_itself_is_refused(
    cases: dict[str, fuzz_files.Case], tmp_path: Path, what: str
) -> None:
    main, name, old, new = CONTRADICTIONS[what]
    if main not in cases:
        pytest.skip("shared/data/reader-fixtures is not here")
    folder = edited(cases[main], tmp_path, name, old, new)
    with pytest.raises(ValueError, match=r"test\.|a\.|hemi-L\."):
        fuzz.observe(cases[main], folder)


@pytest.mark.parametrize(
    ("at", "word", "says"),
    [(236, "3", "more or longer records"), (244, "2", "records begin 1 s apart"), ("samples", "499", "longer records")],
)
def test_an_edf_whose_header_and_records_differ(
    cases: dict[str, fuzz_files.Case], tmp_path: Path, at: int | str, word: str, says: str
) -> None:
    if "Subject00_1.edf" not in cases:
        pytest.skip("shared/data/eegmat is not here")
    case = cases["Subject00_1.edf"]
    data = (case.folder / case.main).read_bytes()
    place = 256 + 216 * int(data[252:256]) if at == "samples" else int(at)
    (tmp_path / case.main).write_bytes(field(data, place, word))
    with pytest.raises(ValueError, match=rf"Subject00_1\.edf.*{says}"):
        fuzz.observe(case, tmp_path)


@pytest.mark.parametrize("ending", [".fif", ".fif.gz"])
def test_a_fif_with_a_gap_between_its_tags(cases: dict[str, fuzz_files.Case], tmp_path: Path, ending: str) -> None:
    data = bytearray((cases["a_raw.fif"].folder / "a_raw.fif").read_bytes())
    write = gzip.compress if ending == ".fif.gz" else bytes
    path = tmp_path / f"a_raw{ending}"
    path.write_bytes(write(bytes(data)))
    check_fif(path)
    for at, size in ((12253, 4096), (len(data) - 16, 16)):
        bad = data.copy()
        bad[at : at + size] = bytes(size)
        path.write_bytes(write(bytes(bad)))
        with pytest.raises(ValueError, match=r"a_raw\.fif"):
            check_fif(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"a_raw\.fif"):
        check_fif(path)


def test_a_hole_in_the_heap_of_words_of_an_nwb_file(cases: dict[str, fuzz_files.Case], tmp_path: Path) -> None:
    """HDF5 itself never comes back from this one."""
    case = cases["units.nwb"]
    data = bytearray((case.folder / case.main).read_bytes())
    heap = data.index(b"GCOL\1\0\0\0")
    (tmp_path / case.main).write_bytes(data)
    check_heaps(tmp_path / case.main)
    data[heap + 16 : heap + 400] = bytes(384)
    (tmp_path / case.main).write_bytes(data)
    with pytest.raises(ValueError, match=r"units\.nwb.*heap"):
        fuzz.observe(case, tmp_path)


def test_shards_have_no_words_that_hdf5_could_hang_on(cases: dict[str, fuzz_files.Case]) -> None:
    shards = list(cases["sub-a.h5"].folder.parent.glob("*/sub-a.h5"))
    assert len(shards) == 4
    assert not any(b"GCOL" in shard.read_bytes() for shard in shards)


# the judge and the parent


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
