"""Muse headbands: from look-alike files that the tests write, and from the recordings where they lie."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from brainfm.checksums import sha256
from brainfm.datasets import muse_files, muse_p300, muse_ssvep
from brainfm.evaluations.baselines import downsampled_signal
from brainfm.evaluations.methods.trials import Trials
from brainfm.evaluations.protocol import fit_linear
from brainfm.shards.read import Corpus, open_shards
from brainfm.shards.write import write_shard

SHARED = Path(__file__).parents[3] / "shared" / "data"
MODULES = {"muse_ssvep": muse_ssvep, "muse_p300": muse_p300}
PLAIN = {"sfreq_hz": None, "highpass_hz": None, "lowpass_hz": None}
NAME = "subject2/session1/data_2018-05-04-18.20.03.csv.gz"


def clock_of(samples: int, rng: np.random.Generator, jitter: bool = True) -> np.ndarray:
    """Seconds as the headband's recorder writes them: steps of packets that arrive late, and may step back."""
    late = np.repeat(rng.uniform(0, 0.02, -(-samples // 12)), 12)[:samples] if jitter else 0
    return 213_542.918 + np.arange(samples) / 256.0 + late


def write(
    folder: Path, name: str = NAME, at: dict[int, int] | None = None, clock: np.ndarray | None = None,
    marker: str = "Marker0",
) -> np.ndarray:  # fmt: skip
    """A file of noise with markers at samples, 20 s if no clock is given; gives back its `(channel, time)` in uV."""
    rng = np.random.default_rng(0)
    clock = clock_of(5120, rng) if clock is None else clock
    samples = len(clock)
    values = np.round(30 + 10 * rng.normal(size=(samples, 5)), 3)
    marks = np.zeros(samples, int)
    for where, code in (at or {256: 1, 2560: 2}).items():
        marks[where] = code
    rows = (
        f"{t:.3f}," + ",".join(f"{v:.3f}" for v in row) + f",{m}"
        for t, row, m in zip(clock, values, marks, strict=True)
    )
    text = f"timestamps,TP9,AF7,AF8,TP10,Right AUX,{marker}\n" + "\n".join(rows) + "\n"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return values[:, :4].T


@pytest.mark.parametrize("name", [NAME, "subject2/session1/recording_2018-05-04-18.20.03.csv.csv"])
@pytest.mark.parametrize("marker", ["Marker", "Marker0"])
def test_reads_what_was_written(tmp_path: Path, name: str, marker: str) -> None:
    written = write(tmp_path, name, marker=marker)
    (recording,) = muse_ssvep.recordings(tmp_path, **PLAIN)
    assert recording.id == "muse_ssvep/2/1/20180504182003"
    assert recording.channels.name == ["TP9", "AF7", "AF8", "TP10"]
    assert np.isfinite(recording.channels.position).all()
    assert set(recording.channels.reference) == {"Fpz"}
    np.testing.assert_allclose(recording.signal[:, :], written * 1e-6, atol=1e-12)
    assert recording.events.label == ["30 Hz", "20 Hz"]
    np.testing.assert_allclose(recording.events.onset, [1.0, 10.0])
    assert recording.segments.tolist() == [[0, 5120]]
    assert [note.found for note in recording.channel_log if note.fate == "dropped"] == ["Right AUX"]
    assert list(recording.provenance["files"]) == [name]
    cleaned = next(muse_ssvep.recordings(tmp_path))
    assert (cleaned.sfreq, cleaned.signal.shape) == (128, (4, 2560))


def test_labels_of_the_oddball(tmp_path: Path) -> None:
    write(tmp_path, at={512: 1, 700: 2})
    (recording,) = muse_p300.recordings(tmp_path)
    assert recording.events.label == ["non-target", "target"]
    np.testing.assert_allclose(recording.events.onset, [2.0, 700 / 256])


@pytest.mark.parametrize("lost", [12, 24, 500])
def test_a_lost_packet_ends_a_segment_and_late_packets_do_not(tmp_path: Path, lost: int) -> None:
    rng = np.random.default_rng(1)
    clock = clock_of(6000, rng)
    assert np.diff(clock).min() < 0
    assert muse_files.segments(clock, tmp_path).tolist() == [[0, 6000]]
    clock[3000:] += lost / 256
    (one, start), (end, other) = muse_files.segments(clock, tmp_path)[[0, -1]].tolist()
    assert (one, other) == (0, 6000)
    assert abs(start - 3000) <= 12
    assert abs(end - 3000) <= 12


def test_no_trial_crosses_a_lost_packet(tmp_path: Path) -> None:
    clock = clock_of(7680, np.random.default_rng(0), jitter=False)
    clock[3840:] += 0.5
    write(tmp_path / "raw", clock=clock, at={1500: 1, 3700: 1, 6000: 2})
    write_shard(tmp_path / "shards/sub-2.h5", list(muse_ssvep.recordings(tmp_path / "raw")), {})
    found = open_shards(tmp_path / "shards").trials(0, 3)
    assert found.label.tolist() == ["30 Hz", "20 Hz"]
    assert found.start.tolist() == [750, 3000]


def test_a_clock_of_another_rate_is_refused(tmp_path: Path) -> None:
    write(tmp_path, clock=np.arange(5000) / 220.0)
    with pytest.raises(ValueError, match=r"clock says 220\.0 samples per second; a Muse has 256"):
        list(muse_ssvep.recordings(tmp_path))


def test_damaged_files_are_named_and_leave_the_others(tmp_path: Path) -> None:
    other = NAME.replace("subject2", "subject7")
    write(tmp_path)
    write(tmp_path, other)
    whole = (tmp_path / other).read_bytes()
    (tmp_path / other).write_bytes(whole[: len(whole) // 2])
    assert len(list(muse_p300.recordings(tmp_path, subjects=["2/1/20180504182003"]))) == 1
    broken = ["7/1/20180504182003"]
    with pytest.raises(ValueError, match=r"subject7.*cannot be read .*brainfm fetch muse_p300"):
        list(muse_p300.recordings(tmp_path, subjects=broken))
    (tmp_path / other).write_bytes(gzip.compress(b"time,Cz\n1,2\n"))
    with pytest.raises(ValueError, match=r"columns time, Cz; expected timestamps, TP9"):
        list(muse_p300.recordings(tmp_path, subjects=broken))
    (tmp_path / other).write_text("<html>")
    with pytest.raises(ValueError, match=r"subject7.*cannot be read"):
        list(muse_p300.recordings(tmp_path, subjects=broken))
    write(tmp_path, other, at={256: 3})
    with pytest.raises(ValueError, match=r"marker 3; muse_p300 has 1, 2 only"):
        list(muse_p300.recordings(tmp_path, subjects=broken))


@pytest.mark.parametrize("key", MODULES)
def test_files_come_from_a_folder_of_any_people(tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, root, there = MODULES[key], tmp_path / key, tmp_path / "there"
    with pytest.raises(FileNotFoundError, match=f"brainfm fetch {key} --from FOLDER"):
        list(module.recordings(root))
    with pytest.raises(FileNotFoundError, match=rf"{key} comes from a local folder only.*--from FOLDER"):
        module.fetch(root)
    there.mkdir()
    with pytest.raises(FileNotFoundError, match="holds no subjectN/sessionN"):
        module.fetch(root, there)
    write(there)
    write(there, NAME.replace("subject2", "subject9").removesuffix(".gz"))
    (there / "subject9/session1/notes.txt").write_text("?")
    said = module.fetch(root, there)
    assert said.startswith("2 people, 2 of 2 files")
    assert said.endswith("2 of them are not in the list of known files and were taken as they are")
    assert list(module.sources(root)) == ["2/1/20180504182003", "9/1/20180504182003"]
    assert "2 files (already there)" in module.fetch(root)
    known = {NAME: "0" * 64}
    monkeypatch.setattr(muse_files, "checksums", lambda _: known)
    with pytest.raises(ValueError, match=r"data_2018-05-04-18\.20\.03\.csv\.gz: got .* expected sha256 0000"):
        module.fetch(tmp_path / "again", there)
    known[NAME] = sha256(there / NAME)
    assert "1 of them" in module.fetch(root, there)
    (root / NAME).write_bytes((there / NAME).read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"has \d+ bytes; expected"):
        list(module.recordings(root))


@pytest.mark.parametrize("key", MODULES)
def test_the_lists_hold_each_file_plain_and_gzipped(key: str) -> None:
    sums = muse_files.checksums(Path(MODULES[key].__file__))
    assert all(len(digest) == 64 and muse_files.PATH.fullmatch(name) for name, digest in sums.items())
    assert {n.removesuffix(".gz") for n in sums if n.endswith(".gz")} == {n for n in sums if not n.endswith(".gz")}


def shared(key: str, tmp_path: Path, subject: str) -> Corpus:
    module, folder = MODULES[key], SHARED / key.replace("_", "-")
    if not (folder / f"subject{subject}").is_dir():
        pytest.skip(f"{folder} does not hold subject{subject}; it cannot be had otherwise")
    assert "not in the list" not in module.fetch(tmp_path / "raw", folder)
    keys = [k for k in module.sources(tmp_path / "raw") if k.split("/")[0] == subject]
    recordings = [r for k in keys for r in module.recordings(tmp_path / "raw", subjects=[k])]
    write_shard(tmp_path / "shards/sub.h5", recordings, module.CARD)
    return open_shards(tmp_path / "shards")


def halves(corpus: Corpus, tmin: float, tmax: float):
    """Trials in order of time, and how many make the first half."""
    windows = corpus.trials(tmin, tmax)
    ids = [windows.recordings[r].id for r in windows.recording]
    windows = windows.take(np.lexsort((windows.start, ids)))
    return windows, len(windows) // 2


@pytest.mark.slow
def test_subject_1_looks_at_targets(tmp_path: Path) -> None:
    windows, half = halves(shared("muse_p300", tmp_path, "1"), 0.0, 0.8)
    assert len(windows) > 3000
    x, target = downsampled_signal(windows, hz=20.0), (windows.label == "target").astype(int)
    fitted = fit_linear(x[:half], target[:half], windows.of("person")[:half], 0)
    chance = fitted.predict_proba(x[half:])[:, 1]
    one, other = (chance[target[half:] == c] for c in (1, 0))
    assert np.mean(one[:, None] > other) > 0.7  # area under the curve


@pytest.mark.slow
def test_subject_1_responds_at_the_frequency_that_is_shown(tmp_path: Path) -> None:
    windows, _ = halves(shared("muse_ssvep", tmp_path, "1"), 0.0, 3.0)
    signal = Trials(windows).signals().values
    power = np.abs(np.fft.rfft(signal * np.hanning(384))) ** 2
    near = {hz: np.log(power[..., 3 * hz - 1 : 3 * hz + 2].mean(axis=(1, 2))) for hz in (20, 30)}
    more = near[30] - near[20]
    one, other = more[windows.label == "30 Hz"], more[windows.label == "20 Hz"]
    assert np.mean(one[:, None] > other) > 0.85
