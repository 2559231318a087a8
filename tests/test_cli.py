"""The command line: what the user can mend is one message and exit status 2, never a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from brainfm import catalog, cli
from brainfm.recording import Channels, Recording
from brainfm.shards.write import write_shard

ROOT = Path(__file__).parents[1]
#: Simulated spikes that are quick to make.
SHORT = "recordings: {reach_s: 2.0, hub_s: 2.0, reach_neurons: 9, hub_neurons: 9}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's configurations in a folder without data."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Run a verb → exit status, what was printed, the message."""

    def verb(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["brainfm", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return int(stopped.value.code or 0), said.out, said.err

    return verb


def test_help_names_every_verb(run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    stages = {p.stem for p in (ROOT / "brainfm/stages").glob("*.py")} - {"__init__"}
    for verb in (*stages, "compare", "info", "check", "finetune", "list"):
        assert f"\n  {verb} " in out, verb


@pytest.mark.parametrize(
    "verb",
    [
        "fetch",
        "ingest",
        "tokenize",
        "pretrain",
        "decode",
        "transfer",
        "audit",
        "report",
        "compare",
        "info",
        "check",
        "finetune",
        "list",
    ],
)
def test_every_verb_explains_itself(run, verb: str) -> None:
    status, out, _ = run(verb, "--help")
    assert status == 0
    assert len(out.splitlines()) > 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fetch", "eegmatt"), "no dataset named 'eegmatt' in brainfm/datasets; did you mean 'eegmat'?"),
        (("compare", "absent.json"), "absent.json does not exist"),
        (("ingest", "sim_ee"), "did you mean 'sim_eeg'?"),
        (("tokenize", "braintokenizer_locla"), "did you mean 'braintokenizer_local'?"),
        (("pretrain", "luna_tyni"), "no pretrain key 'luna_tyni'"),
        (("decode", "scp1_lunna"), "did you mean 'scp1_luna'?"),
        (("transfer", "hcp_to_greifwald"), "did you mean 'hcp_to_greifswald'?"),
        (("audit", "defaut"), "did you mean 'default'?"),
        (("report", "eegmatt"), "did you mean 'eegmat'?"),
        (("list", "modles"), "did you mean 'models'?"),
        (("ingest", "sim_eeg"), "data/raw/sim_eeg is absent; run `brainfm fetch sim_eeg` first"),
        (("info", "data/models/luna"), "data/models/luna does not exist"),
        (("info", "configs/pipeline.yaml"), "configs/pipeline.yaml is neither a shard"),
        (("decode", "scp1_luna"), "data/models/luna_tiny is not a model"),
        (("finetune", "data/models/x", "--shards", "s", "--subject", "1", "--out", "o"), "no shard under s; make them"),
    ],
)
def test_one_message_and_status_two(run, project: Path, words: tuple[str, ...], message: str) -> None:
    status, _, err = run(*words)
    assert status == 2
    assert err.startswith("brainfm: ")
    assert message in err


def test_unknown_verb_and_option(run) -> None:
    assert run("pretran")[0] == 2
    assert run("check", "--deap")[0] == 2


@pytest.mark.parametrize(
    ("path", "before", "after", "words", "message"),
    [
        (
            "ingest/sim_eeg",
            "trials:",
            "trails:",
            ("ingest", "sim_eeg"),
            "unknown keyword 'trails'; did you mean 'trials'?",
        ),
        ("ingest/sim_eeg", "split:", "splits:", ("ingest", "sim_eeg"), "unknown block 'splits'; did you mean 'split'?"),
        ("pipeline", "seed: 0", "seed: [", ("pretrain", "luna_tiny"), "configs/pipeline.yaml is not plain YAML"),
    ],
)
def test_a_word_that_nobody_knows(run, project: Path, path, before, after, words, message) -> None:
    (project / "data/raw/sim_eeg").mkdir(parents=True)
    file = project / f"configs/{path}.yaml"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after, 1))
    status, _, err = run(*words)
    assert status == 2
    assert message in err


def test_an_unknown_word_of_the_split(run, project: Path) -> None:
    (project / "data/raw/sim_spikes").mkdir(parents=True)
    file = project / "configs/ingest/sim_spikes.yaml"
    file.write_text(f"{SHORT}split: {{test_subject: 1}}\n")
    status, _, err = run("ingest", "sim_spikes", "--jobs", "1")
    assert status == 2
    assert "unknown keyword 'test_subject'; did you mean 'test_subjects'?" in err
    assert not (project / "data/shards").exists()


def test_ingest_and_info_of_shards(run, project: Path) -> None:
    (project / "configs/ingest/sim_spikes.yaml").write_text(
        f"{SHORT}split: {{test_subjects: 1, test_sessions: [reach2, hub2]}}\n"
    )
    assert run("fetch", "sim_spikes")[0] == 0
    status, out, _ = run("ingest", "sim_spikes", "--jobs", "1")
    assert status == 0
    assert "4 recordings written, 0 kept, 0 failed" in out
    assert "0 recordings written, 4 kept" in run("ingest", "sim_spikes", "--jobs", "1")[1]
    status, out, _ = run("info", "data/shards/spikes/sim_spikes")
    assert status == 0
    assert "16 recordings of 4 people" in out
    assert "sim_spikes/a1/reach1/ (simulated)" in out
    assert run("check", "--deep")[0] == 0
    shard = project / "data/shards/spikes/sim_spikes/sub-a2.h5"
    shard.write_bytes(shard.read_bytes()[:-100])
    status, out, _ = run("check")
    assert status == 1
    assert "sub-a2.h5 is not a readable shard" in out
    assert "1 problems" in out


def test_failed_subjects_are_listed_with_status_one(run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(root: Path, *, subjects: list[str] | None = None):
        if subjects == ["2"]:
            raise ValueError("the file of 2 is cut short")
        yield Recording("scp1", "1", "eeg", Channels.make(["Cz"], "eeg"), sfreq=10.0, signal=np.ones((1, 20)))

    module = catalog.load("datasets", "scp1")
    monkeypatch.setattr(module, "recordings", half)
    monkeypatch.setattr(module, "sources", lambda root: {"1": [], "2": []})
    (project / "data/raw/scp1").mkdir(parents=True)
    (project / "configs/ingest/scp1.yaml").write_text("split: {everyone: test}\n")
    status, out, err = run("ingest", "scp1", "--jobs", "1")
    assert status == 1
    assert "1 recordings written, 0 kept, 1 failed" in out
    assert "1 of 2 recordings failed" in err
    assert "2: the file of 2 is cut short" in err
    assert (project / "data/shards/meeg/scp1/sub-1.h5").exists()


def test_check_says_what_it_looked_at(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [
        Recording("d", "1", "eeg", Channels.make(["Cz"], "eeg"), run=run_, sfreq=10.0, signal=np.ones((1, 20)))
        for run_ in "ab"
    ]
    write_shard(tmp_path / "data/shards/c/d/sub-1.h5", made, {})
    for words in ((), ("data/shards",)):
        status, out, _ = run("check", *words)
        assert status == 0
        assert "shards data/shards/c/d: 1 files, 2 recordings, headers read" in out
        assert "contents of shards were not read: `--deep`" in out
        assert "all is whole" not in out
    out = run("check", "--deep")[1]
    assert "2 recordings, all data compared with checksums" in out
    assert "all is whole" in out


def test_errors_of_the_system_name_the_path(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").write_text("a file where a folder is wanted")
    (tmp_path / "configs").mkdir()
    status, _, err = run("fetch", "sim_eeg")
    assert status == 2
    assert err.startswith("brainfm: data/raw")
    assert err.rstrip().endswith(("Not a directory", "File exists"))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda: np.ones((2, 3)) @ np.ones((2, 3)), "ValueError: matmul"),
        (lambda: {}["gone"], "KeyError: gone"),
        (lambda: json.loads("{"), "JSONDecodeError: Expecting"),
    ],
)
def test_a_fault_of_ours_has_its_place(run, monkeypatch: pytest.MonkeyPatch, fault, said: str) -> None:
    from brainfm import describe

    monkeypatch.setattr(describe, "list_entries", lambda *_: fault())
    status, _, err = run("list")
    assert status == 1
    assert said in err
    assert "test_cli.py:" in err or "json/decoder.py:" in err
    assert "probably a bug. BRAINFM_DEBUG=1 before the command shows the whole traceback" in err
    monkeypatch.setenv("BRAINFM_DEBUG", "1")
    monkeypatch.setattr("sys.argv", ["brainfm", "list"])
    with pytest.raises((ValueError, KeyError)):
        cli.main()


def test_the_audit_of_nothing_names_the_stage_to_run(run, project: Path) -> None:
    status, _, err = run("audit")
    assert status == 2
    assert "is not there yet" in err
    assert "run `brainfm tokenize " in err
    assert "first, or all stages with `make repro`" in err


def test_check_of_an_empty_folder(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = run("check")
    assert status == 0
    assert "all is whole" in out


def test_deep_check_finds_a_changed_number(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import h5py

    monkeypatch.chdir(tmp_path)
    made = Recording("d", "1", "eeg", Channels.make(["Cz"], "eeg"), sfreq=10.0, signal=np.ones((1, 20)))
    path = write_shard(tmp_path / "data/shards/c/d/sub-1.h5", [made], {})
    with h5py.File(path, "a") as file:
        file["recordings/_/signal"][0, 0, 0] = 2.0
    assert run("check")[0] == 0
    status, out, _ = run("check", "--deep")
    assert status == 1
    assert "d/1// does not match its checksum" in out


@pytest.mark.parametrize(("kind", "keys"), [
    ("models", {"name", "size", "parameters", "paper"}), ("codebooks", {"name", "size", "parameters", "paper"}),
    ("datasets", {"name", "title", "modality", "subjects", "licence", "simulated"}),
    ("objectives", {"name", "what"}), ("evaluations", {"name", "what"}),
])  # fmt: skip
def test_list_as_json(run, kind: str, keys: set[str]) -> None:
    status, out, _ = run("list", kind, "--json")
    assert status == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert all(set(row) == keys for row in rows)
    assert {row["name"] for row in rows} == set(catalog.names(kind))
    if "parameters" in keys:
        assert all(row["parameters"] > 0 and row["paper"] for row in rows)
        sizes = {(n, s) for n in catalog.names(kind) for s in catalog.load(kind, n).SIZES}
        assert {(row["name"], row["size"]) for row in rows} == sizes
    if kind == "models":
        assert next(r["parameters"] for r in rows if (r["name"], r["size"]) == ("luna", "base")) == 6_672_417


def test_info_of_a_model_and_a_result(run, tmp_path: Path) -> None:
    from brainfm.models import luna
    from brainfm.tokens import Facts
    from brainfm.training.checkpoint import Pretrained

    config = {"kind": "models", "name": "luna", "keywords": luna.SIZES["test"]}
    facts = Facts(modality=("eeg",), kinds=("eeg",), sfreq=128.0, window_s=1.0)
    card = {
        "parameters": 31245, "steps": 7, "seconds": 1.0, "seed": 3, "objective": ["masked_patches"],
        "subjects": {"train": ["sim_eeg/s01"], "val": []}, "metrics": {"val/loss": 0.25},
        "datasets": [{"name": "sim_eeg", "simulated": True, "subjects": 1, "licence": "CC0-1.0"}],
    }  # fmt: skip
    Pretrained(luna.build(facts, **luna.SIZES["test"]), config, facts, card).save(tmp_path / "luna_tiny")
    status, out, _ = run("info", str(tmp_path / "luna_tiny"))
    assert status == 0
    for said in ("model luna, 31,245 parameters", "sim_eeg/s01", "sim_eeg (simulated)", "loss 0.25", "7 steps"):
        assert said in out, said
    result = {
        "metric": "balanced accuracy", "score": 0.75, "ci": [0.5, None], "ci_over": "people", "chance": 0.5, "key": "k",
        "n_subjects": 3, "n_trials": 40, "simulated": True, "baselines": {"untrained": {"score": None, "ci": None}},
        "curve": [{"model": "m", "shots": 0, "score": 0.6, "ci": None}],
    }  # fmt: skip
    result["ci"] = [0.5, 0.9]
    (tmp_path / "k.json").write_text(json.dumps(result))
    status, out, _ = run("info", str(tmp_path / "k.json"))
    assert status == 0
    for said in ("simulated", "0.750", "[0.500, 0.900]", "untrained", "chance", "3 people, 40 trials", "0.600"):
        assert said in out, said
    (tmp_path / "other.json").write_text("{}")
    assert run("info", str(tmp_path / "other.json"))[0] == 2


@pytest.mark.parametrize("content", [b"[1]", b"{", b'{"score": 1}', b"\xff\xfe{}"])
def test_info_of_json_that_is_no_result(run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.json").write_bytes(content)
    status, _, err = run("info", str(tmp_path / "other.json"))
    assert status == 2
    assert "other.json" in err


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A model folder whose files are as small as they can be."""
    folder = tmp_path / "data/models/m"
    folder.mkdir(parents=True)
    for name, said in (
        ("config.json", {"kind": "models", "name": "luna", "keywords": {}, "facts": {}}),
        ("card.json", {}),
    ):
        (folder / name).write_text(json.dumps(said))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize("name", ["config.json", "card.json"])
@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe{}", b""])
def test_info_of_a_damaged_model_is_no_bug_of_ours(run, damaged: Path, name: str, content: bytes) -> None:
    assert run("info", str(damaged))[0] == 0
    (damaged / name).write_bytes(content)
    status, _, err = run("info", str(damaged))
    assert status == 2
    assert f"{name} is damaged" in err
    assert "train or copy the model again" in err
    assert "bug" not in err


def test_a_configuration_without_its_words_is_damaged(run, damaged: Path) -> None:
    (damaged / "config.json").write_text('{"kind": "models"}')
    status, _, err = run("info", str(damaged))
    assert (status, "config.json is damaged (name, keywords, facts is missing)" in err) == (2, True)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe{}"])
def test_check_goes_on_after_a_damaged_file(
    run, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """What comes after it, the model and the results, is looked at too."""
    monkeypatch.chdir(tmp_path)
    for name in ("data/raw/a/MANIFEST.json", "data/models/m/config.json", "data/results/decode/k.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    status, out, _ = run("check")
    assert status == 1
    assert "MANIFEST.json is not whole" in out
    assert "remove it and run `brainfm fetch a`" in out
    assert "m/config.json is damaged" in out
    assert "k.json is not whole" in out
    assert "3 problems" in out


NAMES = ["EEG Fp1", "EEG F3", "EEG C3", "EEG P3", "EEG O1", "EEG T3", "ECG ECG"]


@pytest.fixture
def edf_folder(tmp_path: Path) -> Path:
    """Three people of two runs each, as EDF."""
    edfio = pytest.importorskip("edfio")
    folder = tmp_path / "recordings"
    folder.mkdir()
    for person in range(3):
        for session in ("rest", "task"):
            rng = np.random.default_rng(person)
            common = rng.normal(size=8000)
            edfio.Edf([
                edfio.EdfSignal(
                    20 * (common + rng.normal(size=8000)), 200, label=name, physical_dimension="uV",
                    physical_range=(-400, 400),
                )
                for name in NAMES
            ]).write(folder / f"Subject{person}_{session}.edf")  # fmt: skip
    return folder


WORDS = ("--subject", "Subject{subject}_{session}", "--jobs", "1", "--test-subjects", "1")


def test_a_folder_of_recordings_needs_no_python(run, edf_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, said, _ = run("ingest", str(edf_folder), "--out", str(out), *WORDS, "--notch-hz", "50")
    assert status == 0
    assert "6 recordings of 3 people" in said
    assert "6 recordings written, 0 kept, 0 failed" in said
    assert (
        "0 recordings written, 6 kept"
        in run("ingest", str(edf_folder), "--out", str(out), *WORDS, "--notch-hz", "50")[1]
    )
    status, said, _ = run("info", str(out / "sub-0.h5"))
    assert status == 0
    for word in ("T7", "heart, by its name", '"notch"', "from colin27_1005", "a sample depends on"):
        assert word in said, word
    assert run("check", str(out), "--deep")[0] == 0
    sides = json.loads((out / "split.json").read_text())["recordings"]
    assert {k.split("/")[1] for k, side in sides.items() if side == "test"} < {"0", "1", "2"}


def test_a_bad_file_of_a_folder_is_named_and_the_others_are_there(run, edf_folder: Path, tmp_path: Path) -> None:
    out, bad = tmp_path / "out", edf_folder / "Subject1_task.edf"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    status, said, err = run("ingest", str(edf_folder), "--out", str(out), *WORDS)
    assert status == 1
    assert "5 recordings written, 0 kept, 1 failed" in said
    assert "1/task/" in err
    assert "Subject1_task.edf has" in err
    bad.write_bytes(whole)
    assert "1 recordings written, 5 kept, 0 failed" in run("ingest", str(edf_folder), "--out", str(out), *WORDS)[1]


def test_a_unit_that_cannot_be_is_refused_with_the_factor(run, edf_folder: Path, tmp_path: Path) -> None:
    status, _, err = run("ingest", str(edf_folder), "--out", str(tmp_path / "out"), *WORDS, "--unit", "V")
    assert status == 1
    assert "microvolt" in err
    assert "1e-06" in err or "1e-6" in err


def test_shards_of_other_recordings_are_not_swept_away(run, edf_folder: Path, tmp_path: Path) -> None:
    out, one = tmp_path / "out", edf_folder / "Subject0_rest.edf"
    assert run("ingest", str(edf_folder), "--out", str(out), *WORDS)[0] == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    status, _, err = run("ingest", str(one), "--out", str(out), *WORDS[:4])
    assert status == 2
    assert "holds recordings/0/task/, which is not among" in err
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_declared_steps(run, edf_folder: Path, tmp_path: Path) -> None:
    steps = tmp_path / "steps.yaml"
    steps.write_text("steps:\n  - highpass: {edge_hz: 1}\n  - resample: {sfreq_hz: 100}\n  - scale: {per: kind}\n")
    out = tmp_path / "out"
    assert run("ingest", str(edf_folder), "--out", str(out), *WORDS, "--steps", str(steps), "--dtype", "int16")[0] == 0
    said = run("info", str(out / "sub-0.h5"))[1]
    assert "stored as int16; normaliser: median and interquartile range / 1.349, per kind" in said
    steps.write_text("steps:\n  - highpas: {edge_hz: 1}\n")
    status, _, err = run("ingest", str(edf_folder), "--out", str(out), *WORDS, "--steps", str(steps))
    assert status == 2
    assert "unknown cleaning step 'highpas'" in err
    steps.write_text("steps: !!python/object/apply:os.system [touch x]\n")
    assert run("ingest", str(edf_folder), "--out", str(out), *WORDS, "--steps", str(steps))[0] == 2


def test_a_path_that_is_not_there(run, project: Path) -> None:
    status, _, err = run("ingest", "no/such/folder")
    assert status == 2
    assert "no/such/folder" in err
