"""`tokenize --with`, `decode-codes` and `info` on codes, from shards to files that MNE opens."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import mne
import numpy as np
import pytest
import torch

from brainfm import cli, decode_codes
from brainfm.codebooks import braintokenizer
from brainfm.modalities import electrodes
from brainfm.models import brainomni
from brainfm.recording import Channels, Events, Recording
from brainfm.shards.codes import open_codes
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard
from brainfm.tokens import Facts
from brainfm.training.checkpoint import Pretrained

SFREQ = 64.0
NAMES = ["C3", "C4", "Pz", "MEG 1", "MEG 2", "MEG 3", "MEG 4"]
KINDS = ["eeg", "eeg", "eeg", "mag", "mag", "grad", "axial"]
FACTS = Facts(modality=("eeg", "meg"), kinds=tuple(sorted(set(KINDS))), sfreq=SFREQ, window_s=2.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of two people, one of another rate, a tokenizer and a BrainOmni around it."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("project")
    random = np.random.default_rng(0)
    axis = random.normal(size=(7, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    axis[:3] = 0.0
    for subject, rate in (("a", SFREQ), ("b", SFREQ), ("slow", 50.0)):
        channels = Channels.make(NAMES, KINDS, random.normal(0, 0.08, (7, 3)), axis)
        channels.bad[1] = True
        recording = Recording(
            "made_up", subject, "meg", channels, session="1", sfreq=rate, segments=np.array([[0, 300], [310, 450]]),
            signal=random.normal(0, 1e-5, (7, 450)).cumsum(axis=1), simulated=True,
            events=Events(np.array([1.0]), np.array([0.5]), ["left"]),
        )  # fmt: skip
        write_shard(root / f"shards/made_up/sub-{subject}.h5", [recording], {})
    torch.manual_seed(0)
    config = {"kind": "codebooks", "name": "braintokenizer", "keywords": braintokenizer.SIZES["test"]}
    tokenizer = braintokenizer.build(FACTS, **braintokenizer.SIZES["test"])
    Pretrained(tokenizer.eval(), config, FACTS).save(root / "tok")
    keywords = {**brainomni.SIZES["test"], "overlap": 0.25}
    around = {
        "kind": "models",
        "name": "brainomni",
        "keywords": keywords,
        "codebook": {**config, "facts": asdict(FACTS)},
    }
    Pretrained(brainomni.build(FACTS, tokenizer, **keywords).eval(), around, FACTS).save(root / "omni")
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Run a verb → exit status, what was printed, the message."""

    def verb(words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["brainfm", *words.split()])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return int(stopped.value.code or 0), said.out, said.err

    return verb


def test_from_shards_to_codes_and_back(run, project: Path) -> None:
    status, out, err = run("tokenize shards --with tok --out codes --features")
    assert status == 1
    assert "52 windows" not in err
    assert "made_up/slow/1/: 50 samples per second" in err
    assert "2 shards written, 0 kept, 1 recordings failed" in out
    status, out, _ = run("tokenize shards --with tok --out codes --features")
    assert "0 shards written, 2 kept" in out
    status, out, _ = run("info codes")
    assert status == 0
    for words in ("tok, ", "26 windows", "192", "stored as float16", "of 16 codes"):
        assert words in out
    assert run("check codes --deep")[0] == 0
    status, out, _ = run("decode-codes codes --out fif --against shards --json")
    assert status == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [x["kind"] for x in lines if x["id"] == "made_up/a/1/"] == ["eeg", "mag", "grad", "axial"]
    assert {x["channel_windows"] for x in lines if x["kind"] == "eeg"} == {2 * 13, 2 * 26}
    said = json.loads((project / "fif/error.json").read_text())
    assert said["recordings"] == [x for x in lines if x["id"] != "all"]
    assert said["failed"] == {}
    status, out, _ = run("decode-codes codes/made_up/sub-a.h5 --out one --against shards")
    assert status == 0
    assert "PCC" in out
    assert "no volts" in out
    assert [p.name for p in (project / "one/made_up").iterdir()] == ["sub-a_1_raw.fif"]


def test_the_file_says_what_it_is(run, project: Path) -> None:
    run("tokenize shards/made_up/sub-a.h5 --with tok --out codes --overlap 0.25")
    assert run("decode-codes codes --out z")[0] == 0
    assert not (project / "z/error.json").exists()
    raw = mne.io.read_raw_fif(project / "z/made_up/sub-a_1_raw.fif", verbose="error")
    stored, codes = open_shards("shards/made_up/sub-a.h5").recordings[0], open_codes("codes").recordings[0]
    assert (raw.n_times, raw.info["sfreq"], raw.info["bads"]) == (450, SFREQ, ["C4"])
    assert raw.get_channel_types() == ["eeg", "eeg", "eeg", "mag", "mag", "grad", "mag"]
    assert "(simulated)" in raw.info["description"]
    assert "z-scores: each channel and 0.5 s window" in raw.info["description"]
    assert {str(c["unit"]).split()[0] for c in raw.info["chs"][:3]} == {"-1"}  # no unit: these are no volts
    table, _, _ = electrodes.from_info(raw.info)
    np.testing.assert_allclose(table.position, stored.channels.position, atol=1e-6)
    np.testing.assert_allclose(table.orientation, stored.channels.orientation, atol=1e-6)
    tokenizer = decode_codes.tokenizer_of(Path("codes")).model
    decoded = decode_codes.Decoded(tokenizer, codes)
    np.testing.assert_allclose(raw.get_data(), decoded.read(0, 450), rtol=0, atol=1e-6)
    assert raw.annotations.description.tolist() == ["left", "BAD_not_coded", "BAD_not_coded"]
    assert run("decode-codes codes --out si --against shards --scale-of-source")[0] == 0
    raw = mne.io.read_raw_fif(project / "si/made_up/sub-a_1_raw.fif", verbose="error")
    assert "by the source's mean and deviation" in raw.info["description"]
    assert raw.info["chs"][0]["unit"] == mne.io.constants.FIFF.FIFF_UNIT_V
    assert 0.1 < np.ptp(raw.get_data("C3")) / np.ptp(stored.signal(0, 450)[0]) < 10
    assert not raw.get_data("C4").any()


def test_a_model_around_a_tokenizer_gives_codes_as_it_reads_them(run, project: Path) -> None:
    assert run("tokenize shards/made_up/sub-a.h5 --with omni --out codes")[0] == 0
    codes = open_codes("codes").recordings[0]
    assert (codes.tokenizer, codes.overlap, codes.window_s) == ("omni", 0.25, 2.0)
    assert run("tokenize shards/made_up/sub-a.h5 --with tok --out plain")[0] == 0
    assert open_codes("plain").recordings[0].tokenizer_hash == codes.tokenizer_hash
    assert run("decode-codes codes --out fif")[0] == 0


def test_what_does_not_belong_together_is_refused(run, project: Path) -> None:
    run("tokenize shards/made_up/sub-a.h5 --with tok --out codes")
    run("tokenize shards/made_up/sub-b.h5 --with tok --out codes")
    (project / "shards/made_up/sub-b.h5").unlink()
    status, _, err = run("decode-codes codes --out fif --against shards")
    assert status == 1
    assert "made_up/b/1/: shards does not hold it" in err
    assert (project / "fif/made_up/sub-a_1_raw.fif").exists()
    torch.manual_seed(1)
    other = braintokenizer.build(FACTS, **braintokenizer.SIZES["test"]).eval()
    config = {"kind": "codebooks", "name": "braintokenizer", "keywords": braintokenizer.SIZES["test"]}
    Pretrained(other, config, FACTS).save(project / "codes/tokenizer")
    status, _, err = run("decode-codes codes --out fif")
    assert status == 2
    assert "codes mean nothing to another tokenizer" in err
    shutil.rmtree(project / "codes/tokenizer")
    status, _, err = run("decode-codes codes --out fif")
    assert status == 2
    assert "no folder 'tokenizer' in codes" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tokenize shards --with tok", "--with needs --out"),
        ("tokenize shards", "say `--with MODEL --out FOLDER`"),
        ("tokenize somewhere --out x", "go with --with MODEL"),
        ("tokenize shards --with tok --out shards/codes", "would be mixed"),
        ("tokenize shards --with tok --out codes --features --dtype float64", "expected float16 or float32"),
        ("tokenize shards --with tok --out codes --overlap 1", "overlap by 1"),
        ("tokenize shards --with nothing --out codes", "nothing is not a model"),
        ("tokenize nothing --with tok --out codes", "no shard under nothing"),
        ("decode-codes shards --out x", "brainfm-codes"),
        ("decode-codes codes --out x --scale-of-source", "give its shards with `--against`"),
    ],
)
def test_one_message_and_status_two(run, project: Path, words: str, message: str) -> None:
    status, _, err = run(words)
    assert status == 2
    assert message in err
