"""The macaque and the rat: from look-alike files that the tests write, and from the recordings where they lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from brainfm.checksums import sha256
from brainfm.datasets import macaque_m1, rat_linear_track
from brainfm.evaluations import blocks, place_decoder
from brainfm.evaluations.regression import with_target
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard

SHARED = Path(__file__).parents[3] / "shared" / "data"


def macaque_file(folder: Path, bins: int = 400) -> Path:
    """Counts of 171 neurons, and a hand whose third axis never moves, with the file's own names."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.8, (171, bins)).astype(np.uint8)
    counts[:, 0] = 3
    hand = np.zeros((3, bins))
    hand[:2] = rng.normal(size=(2, bins)).cumsum(axis=1) * 1e-3
    path = folder / macaque_m1.FILE
    velocity = np.gradient(hand, axis=1) * 20
    savemat(path, {"time": 12.591 + np.arange(bins) / 20, "spikes": counts, "handPos": hand, "handVel": velocity})
    return path


def rat_files(folder: Path) -> tuple[Path, Path]:
    """Two tetrodes with neurons in structs as MatClust writes them, and a track of 20 s with a gap of 1 s."""
    rng = np.random.default_rng(0)
    kind = [("time", "O"), ("timerange", "O"), ("meanrate", "O")]
    cells = np.empty(2, object)
    for i in range(2):
        cells[i] = np.empty(3, object)
        for j in range(3):
            struct = np.zeros((1, 1), kind)
            struct["time"][0, 0] = np.sort(rng.uniform(4400, 4420, 200))[:, None]
            cells[i][j] = struct
    savemat(folder / rat_linear_track.SPIKES, {"spikes": cells})
    fields = "<time uint32><xloc uint16><yloc uint16><xloc2 uint16><yloc2 uint16>"
    head = f"<Start settings>\nclockrate: 30000\npixel scale: 0 pix/cm\nFields: {fields}\n<End settings>\n"
    seconds = np.arange(0, 20, 1 / 60)
    seconds = seconds[(seconds < 8) | (seconds > 9)]
    rows = np.zeros(len(seconds), np.dtype([("t", "<u4"), *[(n, "<u2") for n in ("x", "y", "x2", "y2")]]))
    rows["t"] = np.round((4400 + seconds) * 30000)
    rows["x"], rows["y"] = np.round(300 + 200 * np.sin(seconds)), 100
    (folder / rat_linear_track.TRACK).write_bytes(head.encode() + rows.tobytes())
    return folder / rat_linear_track.SPIKES, folder / rat_linear_track.TRACK


def test_counts_become_spikes_that_count_the_same_again(tmp_path: Path) -> None:
    macaque_file(tmp_path)
    (recording,) = macaque_m1.recordings(tmp_path)
    assert len(recording.channels) == 171
    assert set(recording.channels.area) == {"M1"}
    assert recording.duration == pytest.approx(20.0)
    assert recording.spike_time[0] < 0.05
    assert {k: (s.values.shape, s.sfreq, s.unit) for k, s in recording.aligned.items()} == {
        "velocity": ((400, 2), 20.0, "m/s"), "position": ((400, 2), 20.0, "m"),
    }  # fmt: skip
    steps = {s["step"]: s for s in recording.provenance["steps"]}
    assert steps["binned"]["spread"] == "evenly inside the bin"
    assert steps["leave out axes that never move"]["axes"] == [2]
    counts = np.zeros((171, 400))
    np.add.at(counts, (recording.spike_neuron, (recording.spike_time * 20 + 1e-6).astype(int)), 1)
    np.testing.assert_array_equal(counts, loadmat(tmp_path / macaque_m1.FILE)["spikes"])


def test_position_is_missing_where_the_video_lost_the_animal(tmp_path: Path) -> None:
    rat_files(tmp_path)
    (recording,) = rat_linear_track.recordings(tmp_path)
    position = recording.aligned["position"]
    assert len(recording.channels) == 6
    assert position.sfreq == 60
    assert position.unit == "px"
    assert position.values.shape[1] == 2
    at = position.start + np.arange(len(position.values)) / 60
    lost = np.isnan(position.values).any(axis=1)
    assert lost[(at > 8.1) & (at < 8.9)].all()
    assert not lost[(at > 0.1) & (at < 7.9)].any()


@pytest.mark.parametrize("module", [macaque_m1, rat_linear_track])
def test_files_come_from_a_folder_alone_and_only_the_right_ones(tmp_path: Path, module, monkeypatch) -> None:
    root, key = tmp_path / "raw", module.__name__.rsplit(".", 1)[1]
    with pytest.raises(FileNotFoundError, match=rf"{key} comes from a local folder only.*--from FOLDER"):
        module.fetch(root)
    (tmp_path / "there").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"holds no .*{key} needs"):
        module.fetch(root, tmp_path / "there")
    paths = [macaque_file(tmp_path / "there")] if module is macaque_m1 else rat_files(tmp_path / "there")
    with pytest.raises(ValueError, match="truncated or changed"):
        module.fetch(root, tmp_path / "there")
    monkeypatch.setattr(module, "FILES", {p.name: sha256(p) for p in paths})
    assert "from a folder (there)" in module.fetch(root, tmp_path / "there")
    assert "already there" in module.fetch(root)
    (root / paths[0].name).write_bytes(paths[0].read_bytes()[:-40])
    with pytest.raises(ValueError, match=rf"{paths[0].name} has \d+ bytes; expected"):
        list(module.recordings(root))


def shared(module, name: str, tmp_path: Path):
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; the recording cannot be had otherwise")
    module.fetch(tmp_path / "raw", folder)
    write_shard(tmp_path / "shards/sub-1.h5", list(module.recordings(tmp_path / "raw")), {})
    shutil.rmtree(tmp_path / "raw")
    return open_shards(tmp_path / "shards")


@pytest.mark.slow
def test_the_macaque_itself_and_what_a_ridge_reads_from_it(tmp_path: Path) -> None:
    corpus = shared(macaque_m1, "macaque-m1", tmp_path)
    (stored,) = corpus.recordings
    assert len(stored.spikes(0, 1000)[0]) == macaque_m1.CARD["spikes"]["1"]
    windows, truth = with_target(corpus.windows(0.3, 0.05), "velocity")
    history = blocks._both(windows, windows, 0.05, 6)[0]
    guess = np.zeros_like(truth)
    cuts = blocks.folds(windows, windows, 5)
    for fit, scored in cuts:
        scale = StandardScaler().fit(history[fit])
        plain = Ridge(3000.0).fit(scale.transform(history[fit]), truth[fit])
        guess[scored] = plain.predict(scale.transform(history[scored]))
    x, y = np.mean(blocks.per_block({"ridge": guess}, truth, [rows for _, rows in cuts])["ridge"], axis=0)
    assert x == pytest.approx(0.82, abs=0.02)
    assert y == pytest.approx(0.74, abs=0.02)


@pytest.mark.slow
def test_the_rat_itself_and_what_naive_bayes_reads_from_it(tmp_path: Path) -> None:
    corpus = shared(rat_linear_track, "rat-linear-track", tmp_path)
    (stored,) = corpus.recordings
    assert len(stored.channels) == rat_linear_track.CARD["neurons"]
    assert len(stored.spikes(0, 3000)[0]) == rat_linear_track.CARD["spikes"]["1"]
    windows, place = blocks.moving_only(*with_target(corpus.windows(0.25, 0.25), "position"), "position", 5.0)
    counts = blocks._both(windows, windows, 0.25, 1)[0]
    error, shuffled = [], []
    for fit, scored in blocks.folds(windows, windows, 5):
        guess = place_decoder.fit(counts[fit], place[fit]).predict(counts[scored])
        error += np.linalg.norm(guess - place[scored], axis=1).tolist()
        mixed = np.random.default_rng(0).permutation(guess)
        shuffled += np.linalg.norm(mixed - place[scored], axis=1).tolist()
    assert np.median(error) < 50
    assert np.median(shuffled) > 120
