"""`brainfm decode DECODER FILE`: what it writes, what it cleans, what it never looks at, and whom it names."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import mne
import numpy as np
import pytest
import torch

from brainfm import cli, decode_file
from brainfm.api import Decoder
from brainfm.decode_codes import DecodeError
from brainfm.modalities import cleaning, electrodes
from brainfm.models import luna
from brainfm.recording import Events, Recording
from brainfm.shards.write import write_shard
from brainfm.tokens import Facts
from brainfm.training.checkpoint import Pretrained

pytestmark = pytest.mark.usefixtures("one_thread")

SFREQ, NAMES = 64.0, ["C3", "Cz", "C4", "Pz"]
STEPS = [
    {"step": "bad_channels", "found": 0, "deviation": 5.0, "correlation": None, "flat": 0.01, "share": 0.1},
    {"step": "band", "highpass_hz": 1.0, "lowpass_hz": 20.0, "phase": "zero", "mne": "1"},
    {"step": "resample", "from_hz": 128.0, "to_hz": 64.0, "up": 1, "down": 2},
]
CARD = {"datasets": [{"name": "made_up", "modality": "eeg", "subjects": 3, "steps": STEPS}]}


def rhythm(times: np.ndarray, on: np.ndarray, seed: int) -> np.ndarray:
    """`(4, time)` volts: noise, and 8 Hz in all channels where `on`."""
    noise = np.random.default_rng(seed).normal(0, 5e-6, (4, len(times)))
    return noise + 4e-5 * np.sin(2 * np.pi * 8 * times) * on


def blocks(times: np.ndarray) -> np.ndarray:
    """Rhythm in every other stretch of ten seconds."""
    return times // 10 % 2 == 1


def cleaned(seconds: int, sfreq: float, seed: int) -> np.ndarray:
    """Rhythm in its blocks, recorded at twice the rate and filtered as the card says."""
    times = np.arange(round(seconds * 2 * sfreq)) / (2 * sfreq)
    signal = rhythm(times, blocks(times), seed)
    raw = Recording("made_up", "1", "eeg", electrodes.named(NAMES), sfreq=2 * sfreq, signal=signal)
    steps: list = [{"highpass": {"edge_hz": 1}}, {"lowpass": {"edge_hz": 20}}, {"resample": {"sfreq_hz": sfreq}}]
    return np.asarray(cleaning.clean(raw, steps).signal)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a decoder of windows of a second: "rhythm" or "rest"; its model lies in it too."""
    facts = Facts(modality=("eeg",), kinds=("eeg",), sfreq=SFREQ, window_s=1.0, channels=4)
    torch.manual_seed(0)
    config = {"kind": "models", "name": "luna", "keywords": luna.SIZES["test"]}
    encoder = Pretrained(luna.build(facts, **luna.SIZES["test"]).eval(), config, facts, CARD)
    made = cleaned(200, SFREQ, 0)
    trials = made.reshape(4, 200, 64).transpose(1, 0, 2)
    words = np.where(blocks(np.arange(200) + 0.5), "rhythm", "rest")
    fitted = Decoder(encoder).fit(trials, words, channels=NAMES, sfreq=SFREQ)
    return fitted.save(tmp_path_factory.mktemp("decoders") / "mine")


def file(path: Path, seconds: int = 60, names: list[str] = NAMES, change: float = np.inf) -> Path:
    """A recording of 128 Hz with marked blocks; from `change` seconds on it is another."""
    times = np.arange(seconds * 128) / 128
    signal = rhythm(times, blocks(times), 7)
    signal[:, times >= change] = 3e-5 * np.sin(2 * np.pi * 8 * times[times >= change])
    raw = mne.io.RawArray(signal[: len(names)], mne.create_info(names, 128.0, "eeg"), verbose="error")
    raw.set_annotations(mne.Annotations(np.arange(10, seconds, 20.0), 10.0, "rhythm"))
    raw.save(path, verbose="error")
    return path


def table(path: Path) -> dict[str, list[str]]:
    with path.open() as opened:
        rows = list(csv.DictReader(opened, delimiter="\t"))
    return {k: [row[k] for row in rows] for k in rows[0]}


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *words: object) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["brainfm", "decode", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.out + said.err


def test_a_file_from_the_command_line(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = file(tmp_path / "someone_raw.fif")
    status, said = run(monkeypatch, capsys, decoder, path, "--out", tmp_path / "out", "--step-s", 0.25)
    assert status == 0, said
    assert "someone_raw: 237 windows" in said
    chances = table(tmp_path / "out/someone_raw_probabilities.tsv")
    classes = [f"{what}_{word}" for what in ("probability", "smoothed") for word in ("rest", "rhythm")]
    assert list(chances) == ["time", *classes]
    time, even = np.array(chances["time"], float), np.array(chances["smoothed_rhythm"], float)
    np.testing.assert_allclose(time, 0.5 + 0.25 * np.arange(237))
    rest, rhythmic = (np.array(chances[f"probability_{word}"], float) for word in ("rest", "rhythm"))
    np.testing.assert_allclose(rest + rhythmic, 1, atol=2e-4)
    clear = np.abs((time + 5) % 10 - 5) > 1.6
    assert ((even > 0.5) == blocks(time))[clear].all()
    events = table(tmp_path / "out/someone_raw_events.tsv")
    assert events["trial_type"] == ["rest", "rhythm"] * 3
    onset, duration = (np.array(events[k], float) for k in ("onset", "duration"))
    np.testing.assert_allclose(onset[1:], [10, 20, 30, 40, 50], atol=1.0)
    np.testing.assert_allclose(onset[:-1] + duration[:-1], onset[1:])
    assert min(map(float, events["probability"])) > 0.5
    for what, columns in (("events", events), ("probabilities", chances)):
        told = json.loads((tmp_path / f"out/someone_raw_{what}.json").read_text())
        assert all("Description" in told[name] for name in columns)
        assert told["StepSeconds"] == 0.25
        assert {s["step"] for s in told["Cleaning"]} >= {"bad_channels", "band", "resample"}
    assert (tmp_path / "out/someone_raw.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "out").glob(".*"))


def test_causal_looks_at_nothing_that_comes_later(decoder: Path, tmp_path: Path) -> None:
    """Two files that differ from 25 s on: up to then tables are equal, cleaning, windows and smoothing together."""
    paths = [file(tmp_path / "one_raw.fif"), file(tmp_path / "other_raw.fif", change=25.0)]
    found = {}
    for causal in (True, False):
        out = tmp_path / f"causal {causal}"
        decode_file.run(decoder, paths, out, causal=causal)
        one, other = (table(out / f"{name}_raw_probabilities.tsv") for name in ("one", "other"))
        assert one["time"] == other["time"]
        before = np.array(one["time"], float) <= 25.0
        columns = [k for k in one if k != "time"]
        found[causal] = np.abs([np.array(one[k], float) - np.array(other[k], float) for k in columns])[:, before].max()
        assert before.sum() > 35
    assert found[True] <= 1.01e-4  # the last digit that is written
    assert found[False] > 0.05
    told = json.loads((tmp_path / "causal True/one_raw_events.json").read_text())
    assert "bad_channels" not in {s["step"] for s in told["Cleaning"]}
    assert "left out, for they see the whole recording: bad_channels" in told["Remarks"]
    assert told["FilterReachSeconds"] > 1


def test_a_bad_file_is_named_and_the_others_are_done(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "broken.edf").write_bytes(b"0       nothing")
    few = file(tmp_path / "few_raw.fif", 20, ["C3", "Cz"])
    short = file(tmp_path / "good_raw.fif", 20)
    words = (tmp_path / "broken.edf", few, tmp_path / "absent.edf", short, "--out", tmp_path / "out")
    status, said = run(monkeypatch, capsys, decoder, *words)
    assert status == 1
    assert "3 of 4 recordings failed" in said
    assert "broken.edf: " in said
    assert "2 channels are missing: C4, Pz" in said
    assert "absent.edf: " in said
    assert "Traceback" not in said
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tsv")) == [
        "good_raw_events.tsv", "good_raw_probabilities.tsv",
    ]  # fmt: skip


def test_what_is_no_decoder(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    status, said = run(monkeypatch, capsys, decoder / "encoder", tmp_path / "a.edf")
    assert status == 2
    assert "is a pretrained model and no decoder" in said
    assert f"brainfm finetune {decoder / 'encoder'} --shards" in said
    assert run(monkeypatch, capsys, tmp_path, tmp_path / "a.edf")[0] == 2
    status, said = run(monkeypatch, capsys, decoder)
    assert status == 2
    assert "say which recordings to decode" in said
    with pytest.raises(ValueError, match=r"step_s 0, .* expected seconds above 0"):
        decode_file.run(decoder, [], tmp_path, step_s=0.0)


def shard(path: Path, subject: str, sfreq: float = SFREQ, steps: list | None = None) -> Path:
    made = Recording(
        "made_up", subject, "eeg", electrodes.named(NAMES), session="1", sfreq=sfreq,
        signal=cleaned(40, sfreq, 1), segments=(np.array([[0, 17], [20, 40]]) * sfreq).astype(int),
        events=Events(np.array([10.0]), np.array([10.0]), ["rhythm"]), simulated=True,
    )  # fmt: skip
    made.provenance["steps"] = STEPS if steps is None else steps
    return write_shard(path / f"sub-{subject}.h5", [made], {})


def test_shards_are_taken_as_they_are_and_breaks_are_kept(decoder: Path, tmp_path: Path) -> None:
    shard(tmp_path / "shards", "a")
    shard(tmp_path / "shards", "b", steps=[{"step": "band", "highpass_hz": 1.0, "lowpass_hz": 30.0}])
    decode_file.run(decoder, [tmp_path / "shards"], tmp_path / "out")
    time = np.array(table(tmp_path / "out/sub-a_1_probabilities.tsv")["time"], float)
    np.testing.assert_allclose(time, [*np.arange(0.5, 16.6, 0.5), *np.arange(20.5, 39.6, 0.5)])
    events = table(tmp_path / "out/sub-a_1_events.tsv")
    assert [e for e, t in zip(events["trial_type"], events["onset"], strict=True) if float(t) < 17] == [
        "rest",
        "rhythm",
    ]
    told = {x: json.loads((tmp_path / f"out/sub-{x}_1_events.json").read_text()) for x in "ab"}
    assert told["a"]["Remarks"] == []
    assert told["a"]["Simulated"]
    assert told["b"]["Remarks"] == [
        "it was filtered by highpass 1 Hz, lowpass 30 Hz, the model's training data by highpass 1 Hz, lowpass 20 Hz"
    ]


def test_a_shard_of_another_rate_is_refused(decoder: Path, tmp_path: Path) -> None:
    fast = shard(tmp_path, "c", sfreq=128.0)
    with pytest.raises(
        DecodeError, match=r"128 samples per second; the decoder reads 64: ingest it with `--sfreq-hz 64`"
    ):
        decode_file.run(decoder, [fast], tmp_path / "out")


def test_causal_refuses_shards_whose_cleaning_saw_all_of_them(decoder: Path, tmp_path: Path) -> None:
    marked = shard(tmp_path, "a")
    with pytest.raises(DecodeError, match=r"the cleaning of \S+ \(bad_channels\) saw the whole recording; ingest it"):
        decode_file.run(decoder, [marked], tmp_path / "out", causal=True)
    by_mne = shard(tmp_path, "b", steps=[STEPS[1], {**STEPS[2], "method": "mne.filter.resample"}])
    with pytest.raises(DecodeError, match=r"\(resample\) saw the whole recording"):
        decode_file.run(decoder, [by_mne], tmp_path / "out", causal=True)
    clamped = {"step": "clamp", "robust_sd": None, "typical": 20.0, "fitted_on": "nothing"}
    decode_file.run(decoder, [shard(tmp_path, "c", steps=[*STEPS[1:], clamped])], tmp_path / "out", causal=True)
    assert sorted(p.name for p in (tmp_path / "out").glob("*_events.tsv")) == ["sub-c_1_events.tsv"]


def test_causal_refuses_a_file_that_mne_must_resample(decoder: Path, tmp_path: Path) -> None:
    signal = rhythm(np.arange(8000) / 400, np.ones(8000), 0)
    raw = mne.io.RawArray(signal, mne.create_info(NAMES, 100 * np.pi, "eeg"), verbose="error")
    raw.save(tmp_path / "odd_raw.fif", verbose="error")
    with pytest.raises(DecodeError, match="is no ratio of whole numbers to 64 Hz"):
        decode_file.run(decoder, [tmp_path / "odd_raw.fif"], tmp_path / "out", causal=True)
    decode_file.run(decoder, [tmp_path / "odd_raw.fif"], tmp_path / "out")


def test_classes_of_any_name_have_columns_of_their_own(decoder: Path, tmp_path: Path) -> None:
    made = cleaned(60, SFREQ, 0)
    trials = made.reshape(4, 60, 64).transpose(1, 0, 2)
    names = np.array(["time", "Remarks", "time_smoothed", "GeneratedBy"])
    words = names[2 * (np.arange(60) % 2) + blocks(np.arange(60) + 0.5)]
    fitted = Decoder(Decoder.load(decoder).encoder).fit(trials, words, channels=NAMES, sfreq=SFREQ)
    fitted.save(tmp_path / "decoder")
    decode_file.run(tmp_path / "decoder", [shard(tmp_path, "a")], tmp_path / "out")
    found = table(tmp_path / "out/sub-a_1_probabilities.tsv")
    told = json.loads((tmp_path / "out/sub-a_1_probabilities.json").read_text())
    assert len(found) == 1 + 2 * 4
    assert float(found["time"][1]) == 1.0
    for word in names:
        assert told[f"probability_{word}"]["Description"] == f"probability of {str(word)!r} in the window"
        assert f"smoothed_{word}" in told
    assert told["Remarks"] == []
    assert told["GeneratedBy"]["Name"] == "brainfm decode"


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("sub-01_task-rest_eeg.edf", "sub-01_task-rest"), ("sub-01_ieeg.vhdr", "sub-01"), ("sub-01_meg.fif", "sub-01"),
        ("someone_raw.fif", "someone_raw"), ("_eeg.edf", "_eeg"), ("eeg.edf", "eeg"),
    ],
)  # fmt: skip
def test_tables_are_named_as_bids_does(name: str, stem: str) -> None:
    assert decode_file._stem(Path(name)) == stem


def test_a_step_longer_than_a_window_makes_events_that_fit(decoder: Path, tmp_path: Path) -> None:
    path = file(tmp_path / "sub-1_task-rest_eeg.fif", 30)
    (written,) = decode_file.run(decoder, [path], tmp_path / "out", step_s=4.0, smooth_s=0.0)
    assert written.name == "sub-1_task-rest_events.tsv"
    found = table(written)
    onset, duration = (np.array(found[k], float) for k in ("onset", "duration"))
    assert onset[0] == 0
    assert (onset[1:] >= (onset + duration)[:-1] - 1e-3).all()
    assert (onset + duration)[-1] <= 30


def test_events_that_it_did_not_write_are_kept(decoder: Path, tmp_path: Path) -> None:
    path = shard(tmp_path, "a")
    own = tmp_path / "sub-a_1_events.tsv"
    own.write_text("onset\tduration\n")
    with pytest.raises(DecodeError, match=r"was not written by `brainfm decode`; choose another folder"):
        decode_file.run(decoder, [path], tmp_path)
    assert own.read_text() == "onset\tduration\n"
    own.unlink()
    for _ in range(2):  # its own are replaced
        decode_file.run(decoder, [path], tmp_path)


def test_a_decoder_that_aligns_people_sees_the_whole_recording_first(decoder: Path, tmp_path: Path) -> None:
    """What it says of a window hangs on no other in its batch; causal it is refused until it knows the person."""
    made = cleaned(200, SFREQ, 0)
    trials = made.reshape(4, 200, 64).transpose(1, 0, 2)
    words = np.where(blocks(np.arange(200) + 0.5), "rhythm", "rest")
    aligned = Decoder(Decoder.load(decoder).encoder, "euclidean")
    aligned.fit(trials, words, channels=NAMES, sfreq=SFREQ, people=["a", "b"] * 100).save(tmp_path / "aligned")
    path = file(tmp_path / "someone_raw.fif", 40)
    decode_file.run(tmp_path / "aligned", [path], tmp_path / "out")
    told = json.loads((tmp_path / "out/someone_raw_events.json").read_text())
    assert told["Remarks"] == ["aligned (euclidean) by 79 windows of it, without labels"]
    (item,) = decode_file.sources(path, aligned, False, None)
    source = item[1]()
    windows = np.stack([source.read(a, a + 64) for a in range(0, 39 * 64 + 1, 32)])
    loaded = Decoder.load(tmp_path / "aligned").calibrate(windows, channels=source.channels, sfreq=SFREQ)
    expected = loaded.predict_proba(windows, channels=source.channels, sfreq=SFREQ)
    found = table(tmp_path / "out/someone_raw_probabilities.tsv")
    np.testing.assert_allclose(np.array(found["probability_rhythm"], float), expected[:, 1], atol=1e-3)
    with pytest.raises(DecodeError, match=r"--causal: this decoder \(euclidean\) aligns each person"):
        decode_file.run(tmp_path / "aligned", [path], tmp_path / "causal", causal=True)
    loaded.save(tmp_path / "calibrated")
    decode_file.run(tmp_path / "calibrated", [path], tmp_path / "causal", causal=True)


def test_a_slow_file_needs_no_filter_above_its_own_rate(decoder: Path, tmp_path: Path) -> None:
    """A low-pass of 20 Hz has nothing to do in a file of 40 Hz; its error would ask for an option that is not there."""
    times = np.arange(60 * 40) / 40
    raw = mne.io.RawArray(rhythm(times, blocks(times), 7), mne.create_info(NAMES, 40.0, "eeg"), verbose="error")
    raw.save(tmp_path / "slow_raw.fif", verbose="error")
    decode_file.run(decoder, [tmp_path / "slow_raw.fif"], tmp_path / "out")
    told = json.loads((tmp_path / "out/slow_raw_events.json").read_text())
    assert any("what lies above 20 Hz is missing" in text for text in told["Remarks"])
    assert all(step.get("lowpass_hz") != 20 for step in told["Cleaning"])


def test_a_unit_is_mended_by_ingest(decoder: Path, tmp_path: Path) -> None:
    times = np.arange(60 * 128) / 128
    signal = 1e6 * rhythm(times, blocks(times), 7)
    raw = mne.io.RawArray(signal, mne.create_info(NAMES, 128.0, "eeg"), verbose="error")
    raw.save(tmp_path / "micro_raw.fif", verbose="error")
    with pytest.raises(DecodeError, match="`brainfm ingest FILE --unit uV` and decode the shard"):
        decode_file.run(decoder, [tmp_path / "micro_raw.fif"], tmp_path / "out")
