from pathlib import Path

import mne
import nibabel
import numpy as np
import pytest

from brainfm.readers.collection import find, recordings

EEGMAT = Path(__file__).resolve().parents[2] / "../shared/data/eegmat"


def edf(path, seed=0):
    """One EDF file with three channels."""
    pytest.importorskip("edfio")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = 1e-5 * np.random.default_rng(seed).standard_normal((3, 400))
    info = mne.create_info(["Fz", "Cz", "Pz"], 100.0, "eeg")
    mne.export.export_raw(path, mne.io.RawArray(data, info, verbose="error"), overwrite=True, verbose="error")
    return path


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"0")


def keys(found):
    return [item.key for item in found.items]


@pytest.mark.skipif(not EEGMAT.is_dir(), reason="needs ../shared/data/eegmat")
def test_eegmat_is_two_recordings_of_each_person():
    """Whoever of the people is there."""
    found, files = find(EEGMAT), sorted(EEGMAT.glob("Subject*_*.edf"))
    people = sorted({f.stem[:-2] for f in files})
    assert found.dataset == "eegmat"
    assert keys(found) == [f"{f.stem[:-2]}//{f.stem[-1]}" for f in files]
    assert f"{len(people)} people and {len(files)} recordings" in found.notes[0]
    about = {row["Subject"]: row for row in found.table}
    for item in found.items:
        assert item.request.participant["age"] == about[item.request.subject]["Age"]
        assert item.request.participant["sex"] == about[item.request.subject]["Gender"]
    (recording,) = recordings(found.items[1])
    assert recording.id == f"eegmat/{keys(found)[1]}"
    assert recording.provenance["participant"]["age"] == about[people[0]]["Age"]
    assert keys(find(files[0])) == keys(found)[:1]
    first = find(EEGMAT, subject="Subject{subject}_{session}").items[0]
    assert first.request.participant["age"] == about[people[0]]["Age"]


def test_everything_in_the_folder_is_read_or_named(tmp_path):
    edf(tmp_path / "S01.edf")
    edf(tmp_path / "S02.EDF")
    touch(tmp_path, "README", "LICENSE.txt", "SHA256SUMS", "notes.txt", "S01.json", "S01_events.tsv", "video.mp4",
          "logs/x.log", ".hidden/S09.edf", ".S03.edf", "behaviour.mat", "S01-epo.fif")  # fmt: skip
    found = find(tmp_path, dataset="my data")
    assert found.dataset == "my-data"
    assert keys(found) == ["S01//", "S02//"]
    notes = "\n".join(found.notes)
    assert "left out 2 of unknown format (1 .log, 1 .mp4): x.log, video.mp4" in notes
    assert "behaviour.mat" in notes
    assert "S01-epo.fif" in notes
    for name in ("README", "LICENSE", "SHA256SUMS", "notes.txt", ".json", ".tsv", "S09", "S03"):
        assert name not in notes
    for item in found.items:
        (recording,) = recordings(item)
        assert recording.subject == item.request.subject


def test_a_table_is_found_in_the_folder(tmp_path):
    edf(tmp_path / "a" / "x.edf")
    edf(tmp_path / "b" / "x.edf")
    (tmp_path / "subjects.csv").write_text("path,subject,condition,age\na/x.edf,anna,rest,30\nb/x.edf,ben,task,40\n")
    found = find(tmp_path)
    assert keys(found) == ["anna//x", "ben//x"]
    (recording,) = recordings(found.items[1])
    assert recording.provenance["participant"] == {"age": "40"}
    assert recording.events.label == ["task"]
    assert recording.events.duration.tolist() == [recording.duration]


def test_a_named_table_anywhere(tmp_path):
    edf(tmp_path / "data" / "x1.edf")
    table = tmp_path / "who.tsv"
    table.write_text("file\tsubject\nx1\tS7\n")
    assert keys(find(tmp_path / "data", table=table)) == ["S7//x1"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find(tmp_path / "data", table=tmp_path / "nowhere.csv")


def test_words_of_the_request_reach_every_item(tmp_path):
    touch(tmp_path, "S1.edf", "S2.edf")
    found = find(
        tmp_path, montage="standard_1020", unit="uV", reference="Cz", label="rest", device="cap", modality="eeg"
    )
    for item in found.items:
        asked = item.request
        assert (asked.montage, asked.unit, asked.reference) == ("standard_1020", "uV", "Cz")
        assert (asked.label, asked.device, asked.modality) == ("rest", "cap", "eeg")


@pytest.mark.parametrize("tracked", [False, True])
def test_neurons_are_tracked_over_files_where_the_request_says_so(tmp_path, tracked):
    for day in "12":
        np.savez(tmp_path / f"sub-S1_ses-{day}.npz", spike_times=np.array([0.1, 0.2]), spike_clusters=np.array([0, 1]))
    found = find(tmp_path, modality="spikes", tracked=tracked)
    read = [next(recordings(item)) for item in found.items]
    assert [(r.session, r.tracked) for r in read] == [("1", tracked), ("2", tracked)]


def test_companions_belong_to_their_recording(tmp_path):
    (tmp_path / "S1.vhdr").write_text("Brain Vision\n[Common Infos]\nDataFile=S1.eeg\nMarkerFile=S1.vmrk\n")
    touch(
        tmp_path, "S1.vmrk", "S1.eeg", "S2.set", "S2.fdt", "S3.ds/S3.meg4", "S3.ds/S3.res4", "S4/F.npy", "S4/Fneu.npy"
    )
    found = find(tmp_path)
    files = {i.request.subject: {p.name for p in i.files} for i in found.items}
    assert files == {
        "S1": {"S1.vhdr", "S1.vmrk", "S1.eeg"}, "S2": {"S2.set", "S2.fdt"}, "S3": {"S3.meg4", "S3.res4"},
        "S4": {"F.npy", "Fneu.npy"},
    }  # fmt: skip
    assert not any("left out" in note for note in found.notes)


def test_modality_chooses_between_formats(tmp_path):
    touch(tmp_path, "S1.edf", "S2.mat")
    assert keys(find(tmp_path)) == ["S1//"]
    spikes = find(tmp_path, modality="spikes")
    assert keys(spikes) == ["S2//"]
    assert any("left out 1 that cannot be spikes: S1.edf" in note for note in spikes.notes)
    (tmp_path / "S1.edf").unlink()
    with pytest.raises(ValueError, match=r"S2\.mat: that may hold regions or spikes; give --modality fmri"):
        find(tmp_path)
    with pytest.raises(ValueError, match="modality 'ecg'; expected eeg, meg"):
        find(tmp_path, modality="ecg")


def test_images_with_an_atlas(tmp_path):
    def image(path, shape, kind=np.float32):
        path.parent.mkdir(parents=True, exist_ok=True)
        made = nibabel.Nifti1Image(np.random.default_rng(0).integers(1, 3, shape).astype(kind), np.diag([3, 3, 3, 1]))
        made.header.set_xyzt_units("mm", "sec")
        if len(shape) == 4:
            made.header.set_zooms((3, 3, 3, 2.0))
        nibabel.save(made, path)

    for name in ("S1", "S2"):
        image(tmp_path / "set" / f"{name}.nii.gz", (3, 3, 3, 8))
    image(tmp_path / "set/atlas.nii.gz", (3, 3, 3), np.int16)
    image(tmp_path / "set/T1.nii.gz", (3, 3, 3))
    found = find(tmp_path / "set", atlas=tmp_path / "set/atlas.nii.gz")
    assert keys(found) == ["S1//", "S2//"]
    assert any("images of one time: T1.nii.gz" in note for note in found.notes)
    assert {p.name for p in found.items[0].files} == {"S1.nii.gz", "atlas.nii.gz"}
    (recording,) = recordings(found.items[0])
    assert len(recording.channels) == 2


def test_folders_and_links(tmp_path):
    touch(tmp_path, "S1/rest.edf", "S2/rest.edf")
    (tmp_path / "S1" / "loop").symlink_to(tmp_path)
    (tmp_path / "S2" / "gone.edf").symlink_to(tmp_path / "nowhere")
    found = find(tmp_path)
    assert keys(found) == ["S1//rest", "S2//gone", "S2//rest"]
    with pytest.raises(FileNotFoundError, match="datalad get"):
        list(recordings(found.items[1]))
    assert keys(find(tmp_path / "S1" / "rest.edf", subject="S1")) == ["S1//rest"]


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no recording: expected files of \.edf"):
        find(tmp_path)
    touch(tmp_path, "a.xyz")
    with pytest.raises(
        FileNotFoundError, match=r"holds no recording: left out 1 of unknown format \(1 \.xyz\): a\.xyz"
    ):
        find(tmp_path)
    with pytest.raises(ValueError, match="unknown format"):
        find(tmp_path / "a.xyz")


def test_unclear_names_are_an_error(tmp_path):
    touch(tmp_path, "rest_S01.edf", "rest_S02.edf", "task_S01.edf", "task_S02.edf")
    with pytest.raises(ValueError, match="do not say which part is the person"):
        find(tmp_path)
    assert keys(find(tmp_path, subject="{run}_{subject}")) == [
        "S01//rest", "S01//task", "S02//rest", "S02//task",
    ]  # fmt: skip
