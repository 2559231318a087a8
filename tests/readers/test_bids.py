import csv
import json
import pickle
from datetime import UTC, datetime
from pathlib import Path

import mne
import nibabel
import numpy as np
import pytest

from brainfm.readers import bids, sidecars
from brainfm.readers.collection import find, recordings
from brainfm.readers.request import Request
from brainfm.recording import Channels, Recording

mne_bids = pytest.importorskip("mne_bids")
EEGMAT = Path(__file__).resolve().parents[2] / "../shared/data/eegmat"
NAMES = ["Fp1", "Fz", "Cz", "Pz", "O1", "VEOG"]


def simulated(seconds=8.0, sfreq=200.0, seed=0, marked=True, names=NAMES):
    """Five EEG channels with measured places, and an EOG channel."""
    rng = np.random.default_rng(seed)
    info = mne.create_info(list(names), sfreq, ["eog" if "EOG" in n else "eeg" for n in names])
    raw = mne.io.RawArray(1e-5 * rng.standard_normal((len(names), int(seconds * sfreq))), info, verbose="error")
    known = mne.channels.make_standard_montage("colin27_1005").get_positions()
    place = {n: known["ch_pos"][n] * 1.1 for n in names if n in known["ch_pos"]}
    marks = {name: known[name] for name in ("nasion", "lpa", "rpa")}
    raw.set_montage(
        mne.channels.make_dig_montage(place, **marks, coord_frame="mri"), verbose="error", on_missing="ignore"
    )
    raw.info["line_freq"] = 50
    if marked:
        raw.set_annotations(mne.Annotations([0.2, 0.7, 1.5], [0.0, 0.5, 0.0], ["left", "right", "left"]))
    return raw


def write(root, raw, subject="01", task="move", datatype="eeg", **more):
    path = mne_bids.BIDSPath(root=root, subject=subject, task=task, datatype=datatype, **more)
    if datatype != "meg":
        options = {"allow_preload": True, "format": "EDF"}
    else:
        options = {"allow_preload": True, "format": "FIF"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNE_LOGGING_LEVEL", "ERROR")
        return mne_bids.write_raw_bids(raw, path, overwrite=True, verbose="error", **options)


def edit(path, change):
    """Rewrite a TSV file row by row."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    table = change(table)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def only(root, **words):
    """The single recording of a dataset."""
    (item,) = find(root, **words).items
    (recording,) = recordings(item)
    return recording


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "set", simulated())
    return tmp_path / "set"


def sidecar(root, ending):
    (path,) = root.rglob(f"*_{ending}")
    return path


@pytest.mark.filterwarnings("ignore")
def test_eeg_equals_what_mne_bids_reads(root):
    recording = only(root)
    path = mne_bids.BIDSPath(root=root, subject="01", task="move", datatype="eeg", suffix="eeg", extension=".edf")
    raw = mne_bids.read_raw_bids(path, verbose="error").load_data()
    assert (recording.dataset, recording.subject, recording.session, recording.run) == ("set", "01", "", "move")
    assert recording.channels.name == NAMES[:5]
    assert recording.sfreq == 200
    np.testing.assert_allclose(np.asarray(recording.signal[:, 0:1600]), raw.get_data(NAMES[:5]), atol=1e-9)
    np.testing.assert_allclose(recording.events.onset, raw.annotations.onset)
    np.testing.assert_allclose(recording.events.duration, raw.annotations.duration)
    assert recording.events.label == list(raw.annotations.description)
    place = raw.get_montage().get_positions()
    assert place["coord_frame"] == "head"
    np.testing.assert_allclose(recording.channels.position, [place["ch_pos"][n] for n in NAMES[:5]], atol=1e-6)
    assert recording.channels.placed == ["file"] * 5
    assert recording.provenance["coordinate_system"] == "CapTrak"
    assert recording.provenance["power_line_hz"] == 50
    assert {p.name for p in find(root).items[0].files} == set(recording.provenance["files"])
    assert ("VEOG", "dropped") in {(n.found, n.fate) for n in recording.channel_log}


def test_electrodes_in_millimetres_and_another_frame_come_to_the_head_frame(root):
    expected = only(root).channels.position
    turn = np.array([[0, 1, 0, 0.01], [-1, 0, 0, 0.02], [0, 0, 1, 0.03], [0, 0, 0, 1]])  # CTF: x to the front
    move = lambda p: (turn[:3, :3] @ np.array(p, float) + turn[:3, 3]) * 1000  # noqa: E731
    edit(sidecar(root, "electrodes.tsv"), lambda t: [
        {**r, **dict(zip("xyz", move([r[a] for a in "xyz"]), strict=True))} if r["x"] != "n/a" else r for r in t
    ])  # fmt: skip
    system = sidecar(root, "coordsystem.json")
    said = json.loads(system.read_text())
    assert set(said["AnatomicalLandmarkCoordinates"]) == {"NAS", "LPA", "RPA"}
    said["AnatomicalLandmarkCoordinates"] = {k: list(move(v)) for k, v in said["AnatomicalLandmarkCoordinates"].items()}
    said |= {"EEGCoordinateSystem": "CTF", "AnatomicalLandmarkCoordinateSystem": "CTF"}
    said |= {"EEGCoordinateUnits": "mm", "AnatomicalLandmarkCoordinateUnits": "mm"}
    system.write_text(json.dumps(said))
    np.testing.assert_allclose(only(root).channels.position, expected, atol=1e-5)
    del said["AnatomicalLandmarkCoordinates"]
    system.write_text(json.dumps(said))
    as_given = only(root)
    np.testing.assert_allclose(as_given.channels.position, [move(p) / 1000 for p in expected], atol=1e-5)
    assert as_given.provenance["coordinate_system"] == "CTF"


def test_electrodes_in_pixels_place_nothing(root):
    system = sidecar(root, "coordsystem.json")
    system.write_text(json.dumps({**json.loads(system.read_text()), "EEGCoordinateUnits": "pixels"}))
    recording = only(root)
    assert recording.channels.placed == ["montage"] * 5
    assert any(s["step"] == "electrodes.tsv" and "pixels" in s["why"] for s in recording.provenance["steps"])


def test_bad_channels_types_and_reference(root):
    def change(table):
        for row in table:
            row |= {"status": "bad", "status_description": "flat"} if row["name"] == "Cz" else {}
            row |= {"type": "MISC"} if row["name"] == "Fz" else {}
        return table

    whole = only(root)
    edit(sidecar(root, "channels.tsv"), change)
    (side,) = root.rglob("*_eeg.json")
    side.write_text(json.dumps({**json.loads(side.read_text()), "EEGReference": "left mastoid"}))
    recording = only(root)
    assert recording.channels.name == ["Fp1", "Cz", "Pz", "O1"]
    assert recording.channels.bad.tolist() == [False, True, False, False]
    assert recording.channels.reference == ["left mastoid"] * 4
    assert only(root, reference="Cz").channels.reference == ["Cz"] * 4
    log = {(n.found, n.fate): n.detail for n in recording.channel_log}
    assert log["Cz", "bad"] == "flat"
    assert "MISC" in log["Fz", "dropped"]
    rows = [0, 2, 3, 4]
    np.testing.assert_array_equal(recording.signal[:, 100:200], whole.signal[:, 100:200][rows])
    again = pickle.loads(pickle.dumps(recording.signal))
    np.testing.assert_array_equal(again[1:3, 5:9], whole.signal[:, 5:9][[2, 3]])


def test_channels_of_another_recording_are_refused(root):
    table = sidecar(root, "channels.tsv")
    edit(table, lambda t: [{**r, "status": "bad", "name": "X9"} if r["name"] == "Cz" else r for r in t])
    with pytest.raises(ValueError, match=r"channels\.tsv line 4: bad channel 'X9' is not in the recording"):
        only(root)
    edit(table, lambda t: [{**r, "name": f"X{i}"} for i, r in enumerate(t)])
    with pytest.raises(ValueError, match=r"channels\.tsv names X0, X1.*the recording has Cz"):
        only(root)


def test_sampling_rate_is_checked(root):
    (side,) = root.rglob("*_eeg.json")
    said = json.loads(side.read_text())
    side.write_text(json.dumps({**said, "SamplingFrequency": 200.1}))
    assert only(root).sfreq == 200
    side.write_text(json.dumps({**said, "SamplingFrequency": 250}))
    with pytest.raises(ValueError, match=r"_eeg\.edf: SamplingFrequency in its JSON is 250.*the file has 200 Hz"):
        only(root)
    side.write_text("{")
    with pytest.raises(ValueError, match=r"_eeg\.json is no JSON"):
        only(root)


def test_events(root):
    sidecar(root, "events.tsv").write_text(
        "onset\tduration\ttrial_type\tvalue\tstim_file\n"
        "3\tn/a\tface\t1\timages/f1.png\n"
        "n/a\t1\tlost\t1\tn/a\n"
        "1\t0.5\tn/a\t7\timages/f1.png\n"
        "7.5\t2\thouse\t2\tn/a\n"
        "9\t1\tlate\t2\tn/a\n"
        "2\t1\tn/a\tn/a\tn/a\n"
    )
    recording = only(root)
    assert recording.events.label == ["", "", "face", "house"]  # n/a says that there is none
    assert recording.events.stimulus == ["images/f1.png", "", "images/f1.png", ""]
    np.testing.assert_allclose(recording.events.onset, [1, 2, 3, 7.5])
    np.testing.assert_allclose(recording.events.duration, [0.5, 1, 0, 0.5])
    (step,) = [s for s in recording.provenance["steps"] if s["step"] == "events.tsv"]
    assert (step["no_onset_lines"], step["outside_lines"], step["events"]) == ([3], [6], 4)
    labelled = only(root, label="patient")
    assert labelled.events.label == ["", "", "face", "house", "patient"]
    assert (labelled.events.onset[-1], labelled.events.duration[-1]) == (0, 8)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("onset\tduration\ttrial_type\tvalue\n1\t0\tn/a\t7\n2\t0\tn/a\tn/a\n", ["7", ""]),
        ("onset\tduration\tvalue\n1\t0\t7\n2\t0\tnan\n", ["7", ""]),
        ("onset\tduration\n1\t0\n2\t0\n", ["event", "event"]),
        ("onset\tduration\ttrial_type\n1\t0\tNaN\n2\t0\tleft\n", ["", "left"]),
    ],
)
def test_one_column_says_what_events_are(root, text, labels):
    sidecar(root, "events.tsv").write_text(text)
    assert only(root).events.label == labels


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("onset\tduration\nx\t1\n", r"events\.tsv line 2: onset is 'x'"),
        ("onset\tduration\n1\t1\n2\tlong\n", r"events\.tsv line 3: duration is 'long'"),
        ("onset\tduration\ninf\t1\n", r"line 2: onset is 'inf'"),
        ("time\n1\n", r"has columns time; expected `onset`"),
        (
            "onset\tduration\n5\t0\n1000\t0\n2000\t0\n",
            r"line 3: 2 of 3 events lie outside.*8 s, up to 2000; expected sec",
        ),
    ],
)
def test_events_that_make_no_sense_are_refused(root, text, said):
    sidecar(root, "events.tsv").write_text(text)
    with pytest.raises(ValueError, match=said):
        only(root)


def test_bad_stretches_of_events_are_cut_out(root):
    sidecar(root, "events.tsv").write_text("onset\tduration\ttrial_type\n2\t1\tBAD_muscle\n5\t0\tleft\n")
    assert only(root).segments.tolist() == [[0, 400], [600, 1600]]


def test_a_run_without_events_is_labelled_by_its_task(tmp_path):
    write(tmp_path / "set", simulated(marked=False), task="rest")
    recording = only(tmp_path / "set")
    assert recording.events.label == ["rest"]
    assert recording.events.duration.tolist() == [8.0]


def test_ids_participants_and_notes(tmp_path):
    root = tmp_path / "my set"
    for subject in ("01", "02"):
        for session in ("a", "b"):
            write(root, simulated(2.0), subject, session=session, run="01", task="rest", acquisition="hi")
    edit(root / "participants.tsv", lambda t: [
        {"participant_id": r["participant_id"], "age": "31", "sex": "F", "group": "n/a"} for r in t
        if r["participant_id"] == "sub-01"
    ])  # fmt: skip
    found = find(root)
    assert [i.key for i in found.items] == [f"{s}/{e}/rest-01-hi" for s in ("01", "02") for e in ("a", "b")]
    assert found.dataset == "my-set"
    assert found.items[0].request.participant == {"age": "31", "sex": "F"}
    assert any("no row for sub-02" in note for note in found.notes)
    assert any("2 people and 4 recordings" in note for note in found.notes)
    (recording,) = recordings(found.items[0])
    assert recording.provenance["participant"] == {"age": "31", "sex": "F"}
    assert [i.key for i in find(root / "sub-02").items] == ["02/a/rest-01-hi", "02/b/rest-01-hi"]
    assert [i.key for i in find(found.items[3].path).items] == ["02/b/rest-01-hi"]


def test_sidecars_are_inherited_and_those_of_other_runs_are_not(tmp_path):
    root = tmp_path / "set"
    for run in ("01", "02"):
        write(root, simulated(2.0), run=run, task="rest")
    home = root / "sub-01" / "eeg"
    first, second = (home / f"sub-01_task-rest_run-{run}_eeg.edf" for run in ("01", "02"))
    side = home / "sub-01_task-rest_run-01_channels.tsv"
    path = mne_bids.get_bids_path_from_fname(first).update(root=root)
    assert sidecars.beside(first, root)["channels.tsv"] == side
    assert path.find_matching_sidecar(suffix="channels", extension=".tsv") == side
    side.rename(root / "task-rest_channels.tsv")
    assert sidecars.beside(first, root)["channels.tsv"] == root / "task-rest_channels.tsv"
    assert sidecars.beside(second, root)["channels.tsv"].name == "sub-01_task-rest_run-02_channels.tsv"
    (root / "task-rest_channels.tsv").unlink()
    assert "channels.tsv" not in sidecars.beside(first, root)
    for old in home.glob("*.json"):
        if old.name.endswith("_eeg.json"):
            old.write_text(json.dumps({"SamplingFrequency": 200}))
    (root / "task-rest_eeg.json").write_text(json.dumps({"SamplingFrequency": 1, "PowerLineFrequency": 60}))
    (root / "task-other_eeg.json").write_text(json.dumps({"PowerLineFrequency": 1}))
    said, files = sidecars.metadata(first, root)
    assert said == {"SamplingFrequency": 200, "PowerLineFrequency": 60}
    assert [p.name for p in files] == ["sub-01_task-rest_run-01_eeg.json", "task-rest_eeg.json"]


def test_a_run_does_not_take_the_events_of_a_numbered_run(tmp_path):
    root = tmp_path / "set"
    write(root, simulated(2.0, marked=False), task="rest")
    home = root / "sub-01" / "eeg"
    (home / "sub-01_task-rest_run-02_events.tsv").write_text("onset\tduration\n1\t0\n")
    assert "events.tsv" not in sidecars.beside(home / "sub-01_task-rest_eeg.edf", root)


def test_meg_fif_with_an_empty_room(tmp_path):
    rng = np.random.default_rng(0)
    info = mne.create_info(["MEG 0111", "MEG 0112", "MEG 0113", "STI 014"], 300.0, ["mag", "grad", "grad", "stim"])
    for channel in info["chs"][:3]:
        channel["loc"][:] = [0.01, 0.02, 0.1, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    with info._unlock():
        info["dev_head_t"] = mne.transforms.Transform("meg", "head", np.eye(4))
        info["line_freq"] = 50
    raw = mne.io.RawArray(1e-12 * rng.standard_normal((4, 3000)), info, verbose="error")
    raw.set_annotations(mne.Annotations([1.0], [0.0], ["tone"]))
    root = tmp_path / "set"
    write(root, raw, "01", "listen", "meg")
    write(root, raw.copy().set_annotations(None), "emptyroom", "noise", "meg", session="20200101")
    recording = only(root)
    assert recording.channels.kind == ["mag", "grad", "grad"]
    assert recording.modality == "meg"
    assert recording.run == "listen"
    assert recording.events.label == ["tone"]
    np.testing.assert_allclose(np.asarray(recording.signal[:, 0:3000]), raw.get_data()[:3], rtol=1e-5, atol=1e-20)
    assert any("1 recordings of the empty room" in note for note in find(root).notes)
    home = root / "sub-01" / "meg"
    (home / "sub-01_task-listen_meg.fif").unlink()
    long = mne.concatenate_raws([raw.copy() for _ in range(60)], verbose="error")
    long.save(home / "sub-01_task-listen_meg.fif", split_size="2MB", split_naming="bids", verbose="error")
    (item,) = find(root).items
    assert item.path.name == "sub-01_task-listen_split-01_meg.fif"
    assert {p for p in home.glob("*.fif")} <= set(item.files)
    (recording,) = recordings(item)
    assert recording.signal.shape == (3, 180_000)


def test_ieeg_with_electrodes_in_the_brain(tmp_path):
    names = ["LA1", "LA2", "LA3", "G1", "EKG"]
    rng = np.random.default_rng(0)
    info = mne.create_info(names, 500.0, ["seeg"] * 3 + ["ecog", "ecg"])
    raw = mne.io.RawArray(1e-4 * rng.standard_normal((5, 2000)), info, verbose="error")
    raw.info["line_freq"] = 60
    place = {n: np.array([0.01 * i, 0.02, -0.01]) for i, n in enumerate(names[:4])}
    raw.set_montage(mne.channels.make_dig_montage(place, coord_frame="mni_tal"), on_missing="ignore", verbose="error")
    root = tmp_path / "set"
    write(root, raw, "01", "sleep", "ieeg")
    edit(
        sidecar(root, "channels.tsv"), lambda t: [{**r, "reference": "LA3" if r["name"] == "LA1" else "n/a"} for r in t]
    )
    recording = only(root)
    assert recording.modality == "ieeg"
    assert recording.channels.name == names[:4]
    assert recording.channels.kind == ["seeg", "seeg", "seeg", "ecog"]
    assert recording.channels.reference[0] == "LA3"
    np.testing.assert_allclose(recording.channels.position, list(place.values()), atol=1e-6)
    system = json.loads(sidecar(root, "coordsystem.json").read_text())["iEEGCoordinateSystem"]
    assert recording.provenance["coordinate_system"] == system
    edit(sidecar(root, "electrodes.tsv"), lambda t: [r for r in t if r["name"] != "LA2"])
    log = only(root).channel_log
    assert [(n.found, n.fate) for n in log if n.fate == "unplaced"] == [("LA2", "unplaced")]


def test_nwb_in_ieeg(tmp_path):
    pynwb = pytest.importorskip("pynwb")
    root = tmp_path / "set"
    home = root / "sub-01" / "ieeg"
    home.mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "made up", "BIDSVersion": "1.9.0"}')
    file = pynwb.NWBFile("a test", "1", datetime(2020, 1, 1, tzinfo=UTC))
    group = file.create_electrode_group("grid", "ECoG grid", "M1", file.create_device("amplifier"))
    file.add_electrode_column("label", "name")
    for i in range(3):
        file.add_electrode(group=group, location="M1", label=f"G{i + 1}")
    data = 1e-4 * np.random.default_rng(0).standard_normal((1000, 3))
    region = file.create_electrode_table_region([0, 1, 2], "all")
    file.add_acquisition(pynwb.ecephys.ElectricalSeries(name="series", data=data, electrodes=region, rate=500.0))
    with pynwb.NWBHDF5IO(home / "sub-01_task-move_ieeg.nwb", "w") as io:
        io.write(file)
    (home / "sub-01_task-move_events.tsv").write_text("onset\tduration\ttrial_type\n0.5\t0.1\treach\n")
    names = "".join(f"G{i}\tECOG\tV\t{'bad' if i == 2 else 'good'}\n" for i in (1, 2, 3))
    (home / "sub-01_task-move_channels.tsv").write_text(f"name\ttype\tunits\tstatus\n{names}")
    recording = only(root)
    assert recording.modality == "ieeg"
    assert recording.events.label == ["reach"]
    assert recording.channels.bad.tolist() == [False, True, False]
    np.testing.assert_allclose(np.asarray(recording.signal[:, 0:1000]), data.T, rtol=1e-5)


def test_unit_of_channels_tsv_where_the_edf_has_none(root):
    expected = only(root).signal[:, 0:100]
    (path,) = root.rglob("*_eeg.edf")
    data = bytearray(path.read_bytes())
    n = int(data[252:256])
    data[256 + 96 * n : 256 + 104 * n] = b" " * (8 * n)
    path.write_bytes(bytes(data))
    edit(sidecar(root, "channels.tsv"), lambda t: [{**r, "units": "µV"} for r in t])
    np.testing.assert_allclose(only(root).signal[:, 0:100], expected, rtol=1e-6)


def test_bipolar_leads_lie_between_their_contacts(tmp_path):
    table = tmp_path / "sub-01_electrodes.tsv"
    table.write_text("name\tx\ty\tz\nLA1\t0\t0\t10\nLA2\t0\t10\t10\nLA3\tn/a\tn/a\tn/a\n")
    (tmp_path / "sub-01_coordsystem.json").write_text('{"iEEGCoordinateSystem": "ACPC", "iEEGCoordinateUnits": "mm"}')
    channels = Channels.make(["LA1-LA2", "LA3", "LA2-LA3"], "seeg")
    recording = Recording("d", "s", "ieeg", channels, sfreq=1.0, signal=np.zeros((3, 5)))
    sidecars.electrodes(recording, table, tmp_path / "sub-01_coordsystem.json")
    np.testing.assert_allclose(recording.channels.position[0], [0, 0.005, 0.01])
    assert recording.channels.placed == ["midpoint", "unknown", "unknown"]


def test_two_modalities_or_two_files_of_a_run_are_an_error(tmp_path):
    root = tmp_path / "set"
    write(root, simulated(2.0), task="rest")
    (root / "sub-01/eeg/sub-01_task-rest_eeg.bdf").write_bytes(b"0")
    with pytest.raises(ValueError, match=r"are the same run; keep one"):
        find(root)
    (root / "sub-01/eeg/sub-01_task-rest_eeg.bdf").unlink()
    (root / "sub-01/meg").mkdir()
    (root / "sub-01/meg/sub-01_task-rest_meg.fif").write_bytes(b"0")
    with pytest.raises(ValueError, match=r"1 eeg runs and 1 meg runs.*--modality eeg or meg"):
        find(root)
    assert [i.request.modality for i in find(root, modality="eeg").items] == ["eeg"]


def fmriprep(root, spaces=("MNI152NLin2009cAsym", "T1w"), tr=2.0, prepared=("01",)):
    """A raw dataset with two people, of whom fMRIPrep has prepared some."""
    rng = np.random.default_rng(0)
    header = {"Name": "made up", "BIDSVersion": "1.9.0"}
    (root / "derivatives/fmriprep").mkdir(parents=True)
    (root / "dataset_description.json").write_text(json.dumps(header))
    (root / "derivatives/fmriprep/dataset_description.json").write_text(
        json.dumps({**header, "DatasetType": "derivative"})
    )
    (root / "task-look_bold.json").write_text(json.dumps({"RepetitionTime": tr, "TaskName": "look"}))
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t20\nsub-02\t30\n")

    def image(path, values):
        made = nibabel.Nifti1Image(values.astype(np.float32), np.diag([3, 3, 3, 1]))
        made.header.set_xyzt_units("mm", "sec")
        if values.ndim == 4:
            made.header.set_zooms((3, 3, 3, 2.0))
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(made, path)

    for subject in ("01", "02"):
        start = f"sub-{subject}_task-look_run-1"
        image(root / f"sub-{subject}/func/{start}_bold.nii.gz", rng.normal(100, 1, (4, 4, 4, 10)))
        image(root / f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz", np.ones((4, 4, 4)))
        events = "onset\tduration\ttrial_type\n0\t4\tface\n10\t4\thouse\n30\t4\tlate\n"
        (root / f"sub-{subject}/func/{start}_events.tsv").write_text(events)
    for subject in prepared:
        home = root / f"derivatives/fmriprep/sub-{subject}/func"
        for space in spaces:
            values = rng.normal(200, 1, (4, 4, 4, 10))
            image(home / f"sub-{subject}_task-look_run-1_space-{space}_desc-preproc_bold.nii.gz", values)
            image(home / f"sub-{subject}_task-look_run-1_space-{space}_desc-brain_mask.nii.gz", np.ones((4, 4, 4)))
        table = "trans_x\tcsf\tframewise_displacement\n" + "".join(f"0.{i}\t1.{i}\t0.1\n" for i in range(10))
        (home / f"sub-{subject}_task-look_run-1_desc-confounds_timeseries.tsv").write_text(table)
    labels = np.zeros((4, 4, 4), np.int16)
    labels[:2], labels[2:] = 1, 2
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([3, 3, 3, 1])), root.parent / "atlas.nii.gz")
    return root.parent / "atlas.nii.gz"


def test_fmriprep_derivatives_with_confounds_and_events(tmp_path):
    atlas = fmriprep(tmp_path / "set")
    found = find(tmp_path / "set", atlas=atlas)
    (item,) = found.items
    assert item.path.name == "sub-01_task-look_run-1_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    assert item.key == "01//look-1"
    names = {p.name for p in item.files}
    assert {"sub-01_task-look_run-1_desc-confounds_timeseries.tsv", "sub-01_task-look_run-1_events.tsv"} <= names
    assert {"atlas.nii.gz", "task-look_bold.json"} <= names
    assert any("also there: sub-01_task-look_run-1_space-T1w" in note for note in found.notes)
    assert any("1 raw runs without preprocessed images, for example sub-02_task-look_run-1" in n for n in found.notes)
    (recording,) = recordings(item)
    assert recording.modality == "fmri"
    assert recording.sfreq == pytest.approx(0.5)
    assert len(recording.channels) == 2
    assert recording.events.label == ["face", "house"]
    assert recording.aligned["confounds"].values.shape == (10, 2)
    assert recording.provenance["participant"] == {"age": "20"}
    values = np.asarray(nibabel.load(item.path).dataobj).reshape(64, 10)
    np.testing.assert_allclose(recording.signal[0], values[:32].mean(0), rtol=1e-5)


def test_the_derivative_itself_finds_events_in_the_raw_dataset(tmp_path):
    atlas = fmriprep(tmp_path / "set")
    recording = only(tmp_path / "set/derivatives/fmriprep", atlas=atlas)
    assert recording.events.label == ["face", "house"]


def test_raw_images_without_derivatives_and_without_an_atlas(tmp_path):
    atlas = fmriprep(tmp_path / "set", prepared=())
    found = find(tmp_path / "set", atlas=atlas)
    assert [i.key for i in found.items] == ["01//look-1", "02//look-1"]
    assert any("anat (2)" in note for note in found.notes)
    with pytest.raises(ValueError, match="give --atlas"):
        find(tmp_path / "set")


def test_repetition_time_is_checked(tmp_path):
    atlas = fmriprep(tmp_path / "set", tr=2.2)
    with pytest.raises(ValueError, match=r"RepetitionTime in its JSON is 2\.2"):
        only(tmp_path / "set", atlas=atlas)


def test_root_of(tmp_path):
    (tmp_path / "sub-01/eeg").mkdir(parents=True)
    (tmp_path / "sourcedata").mkdir()
    assert bids.root_of(tmp_path / "sub-01") is None
    (tmp_path / "dataset_description.json").write_text("{}")
    assert bids.root_of(tmp_path / "sub-01" / "eeg") == tmp_path
    assert bids.root_of(tmp_path / "sourcedata") is None


@pytest.mark.skipif(not EEGMAT.is_dir(), reason="needs ../shared/data/eegmat")
def test_real_recordings_copied_into_bids(tmp_path):
    root = tmp_path / "eegmat-bids"
    two = sorted(f.stem[7:-2] for f in EEGMAT.glob("Subject*_2.edf"))[:2]
    for subject in two:
        for number, task in (("1", "rest"), ("2", "arithmetic")):
            raw = mne.io.read_raw_edf(EEGMAT / f"Subject{subject}_{number}.edf", verbose="error")
            raw.set_channel_types({"ECG ECG": "ecg"}, verbose="error")
            path = mne_bids.BIDSPath(root=root, subject=subject, task=task, datatype="eeg")
            raw.info["line_freq"] = 50
            mne_bids.write_raw_bids(raw, path, overwrite=True, verbose="error")
    items = find(root, label="{task}").items
    assert [i.key for i in items] == [f"{s}//{t}" for s in two for t in ("arithmetic", "rest")]
    loose = {i.key: i for i in find(EEGMAT).items}
    for item, key in zip(items, [f"Subject{s}//{n}" for s in two for n in "21"], strict=True):
        (recording,), (other,) = recordings(item), recordings(loose[key])
        assert recording.channels.name == other.channels.name
        assert recording.events.label[-1] == item.request.run
        assert recording.events.duration[-1] == recording.duration
        np.testing.assert_array_equal(recording.signal[:, 1000:1500], other.signal[:, 1000:1500])
        assert "ECG ECG" not in recording.channels.name


def test_request_is_handed_on(root):
    (item,) = find(root, montage="standard_1020", device="cap").items
    assert item.request == Request(
        "set", "01", run="move", device="cap", modality="eeg", montage="standard_1020",
        participant=item.request.participant,
    )  # fmt: skip


def test_breaks_of_the_file_stay_when_events_are_replaced(tmp_path):
    table = tmp_path / "sub-01_events.tsv"
    table.write_text("onset\tduration\ttrial_type\n3\t1\tbad_blink\n")
    recording = Recording(
        "d", "s", "eeg", Channels.make(["Fz"], "eeg"), sfreq=100.0, signal=np.zeros((1, 800)),
        segments=np.array([[50, 200], [200, 600]]),
    )  # fmt: skip
    sidecars.put_events(recording, table, "")
    assert recording.segments.tolist() == [[50, 200], [200, 300], [400, 600]]


def test_channels_that_were_renamed_on_the_way_to_bids_are_found(tmp_path):
    """mne-bids copies the EDF file as it is and writes the new names into channels.tsv alone."""
    source = tmp_path / "source.edf"
    mne.export.export_raw(
        source, simulated(names=["EEG Fp1", "EEG T3", "EEG O1", "VEOG"], marked=False), verbose="error"
    )
    raw = mne.io.read_raw_edf(source, verbose="error")
    raw.rename_channels({"EEG Fp1": "Fp1", "EEG T3": "T3", "EEG O1": "O1"})
    raw.set_channel_types({"VEOG": "eog"}, verbose="error")
    raw.info["line_freq"] = 50
    path = mne_bids.BIDSPath(root=tmp_path / "bids", subject="01", task="rest", datatype="eeg")
    mne_bids.write_raw_bids(raw, path, overwrite=True, verbose="error")
    table = path.copy().update(suffix="channels", extension=".tsv").fpath
    edit(table, lambda rows: [{**r, "status": "bad" if r["name"] == "T3" else r["status"]} for r in rows])
    (made,) = [r for item in find(tmp_path / "bids").items for r in recordings(item)]
    assert made.channels.name == ["Fp1", "T7", "O1"]
    assert made.channels.bad.tolist() == [False, True, False]
