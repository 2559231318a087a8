"""References and interpolation as matrices equal what MNE does to the signal."""

import mne
import numpy as np
import pytest
from mne.io.constants import FIFF

from brainfm.modalities import electrodes, head, spatial
from brainfm.recording import Channels

NAMES = ["Fp1", "Fp2", "F3", "F4", "C3", "Cz", "C4", "P3", "Pz", "P4", "O1", "O2", "M1", "M2"]


@pytest.fixture
def signal():
    return 1e-5 * np.random.default_rng(0).standard_normal((len(NAMES), 200))


def raw_of(signal, names=NAMES, bads=()):
    info = mne.create_info(names, 100.0, "eeg", verbose="error")
    info["bads"] = list(bads)
    return mne.io.RawArray(signal.copy(), info, verbose="error")


def close(got, expected):
    assert np.abs(got - expected).max() <= 1e-9 * np.abs(expected).max()


def test_average_equals_mne_but_bad_channels_follow(signal):
    table = electrodes.named(NAMES)
    table.bad[[1, 6]] = True
    matrix, done = spatial.reference_matrix(table, "average")
    expected = raw_of(signal, bads=["Fp2", "C4"]).set_eeg_reference("average", verbose="error").get_data()
    close((matrix @ signal)[~table.bad], expected[~table.bad])
    np.testing.assert_allclose((matrix @ signal)[1], signal[1] - signal[~table.bad].mean(0))
    assert done.reference == ["average"] * len(NAMES)
    assert table.reference == [""] * len(NAMES)
    assert done.bad.tolist() == table.bad.tolist()


@pytest.mark.parametrize(("to", "word"), [("Cz", "Cz"), ("EEG CZ", "Cz"), (["M1", "M2"], "M1+M2")])
def test_named_references_equal_mne(signal, to, word):
    matrix, done = spatial.reference_matrix(electrodes.named(NAMES), to)
    names = ["Cz"] if word == "Cz" else to
    close(matrix @ signal, raw_of(signal).set_eeg_reference(names, verbose="error").get_data())
    assert set(done.reference) == {word}


def test_kinds_have_averages_of_their_own():
    kinds = ["eeg", "eeg", "ecog", "ecog", "ecog", "mag", "misc"]
    matrix, done = spatial.reference_matrix(Channels.make(list("abcdefg"), kinds), "average")
    assert done.reference == ["average"] * 5 + ["", ""]
    np.testing.assert_array_equal(matrix[5:], np.eye(7)[5:])
    np.testing.assert_array_equal(matrix[0, 2:], 0)
    np.testing.assert_allclose(matrix[:2].sum(0)[:2], 0, atol=1e-15)


def test_references_that_cannot_be():
    table = electrodes.named(NAMES)
    with pytest.raises(ValueError, match=r"'Czz' is not among the 14 channels; did you mean 'Cz'"):
        spatial.reference_matrix(table, "Czz")
    table.bad[5] = True
    with pytest.raises(ValueError, match="the reference Cz is a bad channel"):
        spatial.reference_matrix(table, ["M1", "Cz"])
    for names in (["Fp1-F7", "F7-T7", "T7-P7"], ["C3-A2", "C4-A1"], ["Fp1-F7"] * 2):
        with pytest.raises(ValueError, match="no common reference can be had"):
            spatial.reference_matrix(electrodes.named(names), "average")
    with pytest.raises(ValueError, match="others have no average reference"):
        spatial.reference_matrix(Channels.make(["a"], "mag"), "average")
    with pytest.raises(ValueError, match="has channels of the kinds eeg, mag"):
        spatial.reference_matrix(Channels.make(["a", "b"], ["eeg", "mag"]), ["a", "b"])
    with pytest.raises(ValueError, match="has channels of the kinds none"):
        spatial.reference_matrix(table, [])
    table.bad[:] = True
    table.bad[0] = False
    with pytest.raises(ValueError, match="1 of 14 eeg channels are good"):
        spatial.reference_matrix(table, "average")


def test_eeg_interpolation_equals_mne(signal):
    scalp = [name for name in NAMES if name not in ("M1", "M2")]
    raw = raw_of(signal[: len(scalp)], scalp, bads=["C4", "Fp1"])
    raw.set_montage("colin27_1005", verbose="error")
    table = electrodes.from_info(raw.info)[0]
    assert table.name == scalp
    matrix, done, notes = spatial.interpolation_matrix(table)
    expected = raw.copy().interpolate_bads(verbose="error").get_data()
    close(matrix @ raw.get_data(), expected)
    assert not done.bad.any()
    assert table.bad.sum() == 2
    assert [(n.name, n.fate) for n in notes] == [("Fp1", "interpolated"), ("C4", "interpolated")]
    good = ~table.bad
    np.testing.assert_array_equal(matrix[good], np.eye(len(table))[good])
    np.testing.assert_array_equal(matrix[:, table.bad][table.bad], 0)


def test_electrodes_on_a_line_are_interpolated_along_it():
    table = electrodes.named(["Fz", "FCz", "Cz", "CPz", "Pz"])
    table.bad[2] = True
    row = spatial.interpolation_matrix(table)[0][2]
    assert row.sum() == pytest.approx(1)
    assert min(row[1], row[3]) > 2 * max(abs(row[0]), abs(row[4]))


def meg(array, coil=None):
    info = head.meg_info(array, head.draw_person(np.random.default_rng(0)), 100.0)
    for channel in info["chs"] if coil else ():
        channel["coil_type"] = coil
    info["bads"] = info["ch_names"][3:5]
    size = 1e-12 if array != "planar" else 1e-11
    raw = mne.io.RawArray(
        size * np.random.default_rng(1).standard_normal((len(info["ch_names"]), 100)), info, verbose="error"
    )
    expected = raw.copy().interpolate_bads(origin=(0.0, 0.0, 0.04), verbose="error").get_data()
    return raw.get_data(), expected, electrodes.from_info(info)[0]


def test_meg_interpolation_equals_mne_for_points():
    signal, expected, table = meg("magnetometers", FIFF.FIFFV_COIL_POINT_MAGNETOMETER)
    assert table.bad.sum() == 2
    matrix, done, _ = spatial.interpolation_matrix(table)
    close(matrix @ signal, expected)
    assert not done.bad.any()


@pytest.mark.parametrize("array", ["magnetometers", "planar", "axial"])
def test_meg_interpolation_is_close_to_mne_for_real_coils(array):
    signal, expected, table = meg(array)
    matrix, _, _ = spatial.interpolation_matrix(table)
    got, expected = (matrix @ signal)[table.bad], expected[table.bad]
    assert np.linalg.norm(got - expected) < 0.05 * np.linalg.norm(expected)


def test_what_cannot_be_interpolated_stays_bad():
    table = Channels.make(
        [*NAMES, "x", "C3-C1", "LA1", "b", "n"],
        ["eeg"] * (len(NAMES) + 2) + ["seeg", "mag", "misc"],
        np.concatenate([electrodes.named([*NAMES, "x", "F3-C3"]).position, np.full((3, 3), np.nan)]),
        placed=["montage"] * len(NAMES) + ["montage", "midpoint", "file", "file", "file"],
    )
    table.bad[[0, *range(len(NAMES), len(table))]] = True
    matrix, done, notes = spatial.interpolation_matrix(table)
    assert done.bad.tolist() == [False] * len(NAMES) + [True] * 5
    np.testing.assert_array_equal(matrix[len(NAMES) :], np.eye(len(table))[len(NAMES) :])
    assert {n.name: n.detail for n in notes if n.fate == "bad"} == {
        "x": "not interpolated: its place is unknown",
        "C3-C1": "not interpolated: a bipolar lead",
        "LA1": "not interpolated: there is none for seeg channels",
        "b": "not interpolated: its place is unknown",
        "n": "not interpolated: there is none for misc channels",
    }


def test_interpolation_needs_four_good_channels():
    table = electrodes.named(["C3", "Cz", "C4", "Pz"])
    table.bad[0] = True
    with pytest.raises(ValueError, match="1 bad of 4 eeg channels with a position; interpolation needs at least 4"):
        spatial.interpolation_matrix(table)
    table.bad[0] = False
    np.testing.assert_array_equal(spatial.interpolation_matrix(table)[0], np.eye(4))
