"""Names of channels made alike, their places, and what the log says of each."""

from pathlib import Path

import mne
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mne.io.constants import FIFF

from brainfm.modalities import electrodes, head

DATA = Path(__file__).resolve().parents[2] / "../shared/data"


def info(names, types="eeg", **places):
    made = mne.create_info(names, 250.0, types, verbose="error")
    for name, place in places.items():
        made["chs"][names.index(name)]["loc"][:3] = place
    return made


def fates(notes):
    return {(n.found, n.name, n.fate) for n in notes}


@pytest.mark.parametrize(
    ("found", "name", "reference"),
    [
        ("Fp1", "Fp1", ""), ("FP1", "Fp1", ""), ("FP1.", "Fp1", ""), ("EEG FP1", "Fp1", ""), ("EEGFp1", "Fp1", ""),
        ("EEG Fp1-REF", "Fp1", "REF"), ("Fp1-Ref", "Fp1", "REF"), ("EEG Fp1-LE", "Fp1", "linked ears"),
        ("C3-AVG", "C3", "average"), ("C3-A2", "C3", "A2"), ("C3-M1", "C3", "M1"),
        ("C3-(A1+A2)/2", "C3", "linked ears"),
        ("CZ-M1M2", "Cz", "linked mastoids"), ("EEG F3-Cz", "F3", "Cz"), ("T3", "T7", ""), ("EEG t4-ref", "T8", "REF"),
        ("T5", "P7", ""), ("T6", "P8", ""), ("Fc5.", "FC5", ""), ("Cz..", "Cz", ""), ("\0Cz\0 ", "Cz", ""),
        ("\u200bFz\ufeff", "Fz", ""), ("A1", "A1", ""), ("M1", "M1", ""), ("FFC1H", "FFC1h", ""),
        ("EEG 001", "EEG 001", ""), ("EEG Foo-REF", "Foo", "REF"), ("", "unnamed", ""),
        ("3Hz +5/-5 V", "3Hz +5/-5 V", ""),
    ],
)  # fmt: skip
def test_names(found, name, reference):
    table = electrodes.named([found])
    assert (table.name, table.reference) == ([name], [reference])
    assert electrodes.plain(found) == name.lower()
    known = name in electrodes.template()
    assert np.isfinite(table.position).all() == known
    assert table.placed == ["montage" if known else "unknown"]


def test_aliases_share_a_place_and_ears_do_not():
    place = electrodes.named(["T3", "T7", "A1", "M1"]).position
    np.testing.assert_array_equal(place[0], place[1])
    assert np.linalg.norm(place[2] - place[3]) > 0.01


def test_bipolar_leads_lie_between():
    table = electrodes.named(["EEG FP1-F7", "F7-T3", "EEG C3-Cz", "Fz-CZ", "T8-P8-0", "T8-P8-1", "A1-T3"])
    assert table.name == ["Fp1-F7", "F7-T7", "C3-Cz", "Fz-Cz", "T8-P8", "T8-P8-2", "A1-T7"]
    assert table.reference == ["F7", "T7", "Cz", "Cz", "P8", "P8", "T7"]
    assert set(table.placed) == {"midpoint"}
    place = electrodes.template()
    np.testing.assert_allclose(table.position[0], (place["Fp1"] + place["F7"]) / 2)


def test_a_second_electrode_that_all_share_is_the_reference():
    assert electrodes.named(["C3-Cz", "C4-Cz"]).name == ["C3", "C4"]
    assert electrodes.named(["C3-FCz", "C4-FCz", "Pz-FCz"]).reference == ["FCz"] * 3
    assert electrodes.named(["EEG Fpz-Cz", "EEG Pz-Oz"]).placed == ["midpoint"] * 2  # as in Sleep-EDF
    assert electrodes.named(["C3-Cz", "C4-Cz", "Cz"]).name == ["C3-Cz", "C4-Cz", "Cz"]


def test_repeated_names_are_kept_apart():
    table, picks, notes = electrodes.from_info(info(["T3", "EEG T7-REF", "T7-2", "O1"]))
    assert table.name == ["T7", "T7-2", "T7-3", "O1"]
    assert picks.tolist() == [0, 1, 2, 3]
    again = next(n for n in notes if n.found == "EEG T7-REF")
    assert again.fate == "renamed"
    assert "a channel before it is T7 too" in again.detail


def test_banks_of_inputs_are_no_places():
    names = [f"{bank}{i}" for bank in "ABC" for i in range(1, 9)] + ["Ergo-Left", "Cz"]
    table, _, notes = electrodes.from_info(info(names))
    assert table.name == [*names[:-2], "Cz"]
    assert table.placed == ["unknown"] * 24 + ["montage"]
    assert "give a montage" in next(n.detail for n in notes if n.found == "C3")
    placed = electrodes.from_info(info(names[:-2]), montage="biosemi128")[0]
    np.testing.assert_array_equal(placed.position[18], electrodes.template("biosemi128")["C3"])


def test_a_named_montage_and_its_typo():
    table = electrodes.from_info(info(["FP1", "T3", "FFC1h"]), montage="easycap-M1")[0]
    place = electrodes.template("easycap-M1")
    np.testing.assert_array_equal(table.position[:2], [place["Fp1"], place["T7"]])
    assert table.placed == ["montage", "montage", "unknown"]
    with pytest.raises(ValueError, match=r"no template montage 'biosemi46'; did you mean 'biosemi64'"):
        electrodes.from_info(info(["Cz"]), montage="biosemi46")


def test_every_template_of_mne_can_be_named():
    for montage in mne.channels.get_builtin_montages():
        table = electrodes.named(list(electrodes.template(montage)), montage)
        assert set(table.placed) == {"montage"}, montage
        np.testing.assert_allclose(table.position, list(electrodes.template(montage).values()))


def test_what_is_no_brain_signal_is_dropped_by_name():
    others = [
        "ECG ECG", "EEG EKG1-REF", "EEG ECG", "VEOGo", "HEOG", "EOG left", "EMG chin", "Status", "STI 014", "TRIG",
        "Resp oro-nasal", "SpO2", "Photic", "DC01", "X", "acc_y", "EXG1", "Right AUX", "LOC", "E1-M2", "A1",
        "EEG A2-REF", "M1", "M2", "EEG A2-A1", "EEG LOC-REF", "GND",
    ]  # fmt: skip
    table, picks, notes = electrodes.from_info(info(["Fz", *others, "Cz", "Fpx"]))
    assert table.name == ["Fz", "Cz", "Fpx"]
    assert picks.tolist() == [0, len(others) + 1, len(others) + 2]
    assert fates(notes) >= {(name, "", "dropped") for name in others}
    said = {n.found: n.detail for n in notes}
    assert said["A1"] == "reference electrode"
    assert said["EEG A2-A1"] == "between reference electrodes"
    assert said["ECG ECG"] == "heart, by its name"
    assert fates(notes) >= {("Fpx", "Fpx", "kept"), ("Fpx", "Fpx", "unplaced"), ("Cz", "Cz", "kept")}


def test_other_types_are_dropped_with_their_type():
    types = ["eeg", "eog", "ecg", "emg", "stim", "misc", "ref_meg"]
    table, picks, notes = electrodes.from_info(info(["Cz", "a", "b", "c", "d", "e", "f"], types))
    assert (table.name, picks.tolist()) == (["Cz"], [0])
    assert [n.detail for n in notes if n.fate == "dropped"] == [f"{t} channel" for t in types[1:]]
    with pytest.raises(ValueError, match=r"no EEG, MEG or implanted channel among a \(stim channel\); set"):
        electrodes.from_info(info(["a"], "stim"))


def test_positions_of_the_file_come_first_and_bad_flags_are_kept():
    made = info(["EEG C3", "C4", "Pz", "Oz"], **{"EEG C3": [0.01, 0.02, 0.1], "Pz": [0.0, -50.0, 90.0]})
    made["bads"] = ["EEG C3"]
    made["chs"][3]["loc"][:3] = [0, -0.1, 0]
    made["chs"][3]["coord_frame"] = FIFF.FIFFV_COORD_MRI
    table, _, notes = electrodes.from_info(made)
    assert table.placed == ["file", "montage", "montage", "montage"]
    np.testing.assert_allclose(table.position[0], [0.01, 0.02, 0.1], rtol=1e-6)
    assert table.bad.tolist() == [True, False, False, False]
    assert ("EEG C3", "C3", "bad") in fates(notes)
    assert "more than 0.5 m" in next(n.detail for n in notes if n.found == "Pz")
    assert "not in the head frame" in next(n.detail for n in notes if n.found == "Oz")


def test_an_average_projector_is_the_reference():
    raw = mne.io.RawArray(np.zeros((3, 10)), info(["Fz", "Cz", "Pz"]), verbose="error")
    raw.set_eeg_reference("average", projection=True, verbose="error")
    assert electrodes.from_info(raw.info)[0].reference == ["", "", ""]
    raw.apply_proj(verbose="error")
    assert electrodes.from_info(raw.info)[0].reference == ["average"] * 3


@pytest.mark.parametrize(
    ("array", "kind", "axis"), [("magnetometers", "mag", 2), ("planar", "grad", 0), ("axial", "axial", 2)]
)
def test_coils_in_the_head_frame(array, kind, axis):
    made = head.meg_info(array, head.draw_person(np.random.default_rng(0)), 100.0)
    table, _, notes = electrodes.from_info(made)
    assert set(table.kind) == {kind}
    assert len(notes) == len(table)
    turn = made["dev_head_t"]["trans"]
    loc = np.array([c["loc"] for c in made["chs"]])
    np.testing.assert_allclose(table.position, loc[:, :3] @ turn[:3, :3].T + turn[:3, 3])
    np.testing.assert_allclose(table.orientation, loc[:, 3 + 3 * axis : 6 + 3 * axis] @ turn[:3, :3].T)
    made["dev_head_t"] = None
    assert "no head position" in electrodes.from_info(made)[2][0].detail


def test_implanted_contacts_take_no_place_from_the_template():
    names = ["LA1", "POL RH12", "C3", "F7", "G14", "LA1-LA2", "EEG T3-REF", "LACC1", "E1", "X1", "ECG", "DC01", "M1"]
    table, _, notes = electrodes.from_info(info(names), modality="ieeg")
    assert table.name == ["LA1", "RH12", "C3", "F7", "G14", "LA1-LA2", "T3", "LACC1", "E1", "X1", "M1"]
    assert set(table.kind) == {"seeg"}
    assert set(table.placed) == {"unknown"}
    assert table.reference[5:7] == ["LA2", "REF"]
    assert {n.found for n in notes if n.fate == "dropped"} == {"ECG", "DC01"}


def test_types_of_the_file_stand_where_it_names_implanted_channels():
    made = info(["C3", "Cz", "STN1", "G1"], ["seeg", "eeg", "dbs", "ecog"], C3=[0.01, 0, 0.05])
    for modality in (None, "ieeg"):
        table = electrodes.from_info(made, modality=modality)[0]
        assert table.kind == ["seeg", "eeg", "seeg", "ecog"]
        assert table.placed == ["file", "montage", "unknown", "unknown"]


def test_eegmat():
    files = sorted((DATA / "eegmat").glob("Subject*_*.edf"))
    if not files:
        pytest.skip("no EEGMAT recordings in ../shared/data")
    raw = mne.io.read_raw_edf(files[0], verbose="error")
    table, picks, notes = electrodes.from_info(raw.info)
    assert len(table) == 19
    assert set(table.placed) == {"montage"}
    assert {"T7", "T8", "P7", "P8", "Cz"} < set(table.name)
    assert picks.tolist() == list(range(19))
    assert {n.found for n in notes if n.fate == "dropped"} == {"EEG A2-A1", "ECG ECG"}


@pytest.mark.parametrize(
    ("file", "names", "dropped"),
    [
        ("duplicate_channel_labels.edf", ["F1", "F2", "F1-2"], 0),
        ("test.edf", None, 3),
        ("test.bdf", None, 9),
        ("test_old_layout_latin1_software_filter.vhdr", None, 5),
    ],
)
def test_fixtures_of_mne(file, names, dropped):
    path = DATA / "reader-fixtures" / file
    if not path.exists():
        pytest.skip("no reader fixtures in ../shared/data")
    raw = mne.io.read_raw(path, verbose="error")
    table, picks, notes = electrodes.from_info(raw.info)
    assert names is None or table.name == names
    assert len(raw.ch_names) - len(picks) == dropped == sum(n.fate == "dropped" for n in notes)
    assert {n.found for n in notes} == set(raw.ch_names)


@given(st.lists(st.text(max_size=8) | st.sampled_from(["Cz", "T3", "T7", "Fp1-F7", "F7-Cz", "A3", "B1", "EEG A1-REF"])))
@settings(max_examples=200, deadline=None)
def test_any_names_give_a_table(names):
    names = list(dict.fromkeys(names))
    table = electrodes.named(names)
    assert len(set(table.name)) == len(names)
    if names:
        made = info([f"{i}" for i in range(len(names) + 1)])
        for channel, name in zip(made["chs"], [*names, "O2"], strict=True):
            channel["ch_name"] = name
        made._update_redundant()
        table, picks, notes = electrodes.from_info(made)
        assert len(table) == len(picks) == len(set(table.name))
        assert {n.found for n in notes} == {*names, "O2"}
