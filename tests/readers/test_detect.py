from pathlib import Path

import mne
import numpy as np
import pytest

from brainfm.readers import detect
from brainfm.readers.request import Request

WHO = Request("made_up", "01")
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>"


def raw(seconds=4.0, channels=("Fz", "Cz", "Pz"), sfreq=100.0, seed=0):
    data = 1e-5 * np.random.default_rng(seed).standard_normal((len(channels), int(seconds * sfreq)))
    return mne.io.RawArray(data, mne.create_info(list(channels), sfreq, "eeg"), verbose="error")


@pytest.mark.parametrize(
    ("name", "modality", "module"),
    [
        ("a.EDF", None, "edf"), ("a.bdf", "eeg", "edf"), ("a.vhdr", None, "brainvision"),
        ("a.set", None, "mne_formats"),
        ("a.fif.gz", "meg", "mne_formats"), ("a.nii.gz", None, "volumes"), ("a.nii", "fmri", "volumes"),
        ("a_bold.dtseries.nii", None, "surfaces"), ("a.ptseries.nii", None, "surfaces"),
        ("a.func.gii", None, "surfaces"), ("a.nwb", "spikes", "nwb"), ("a.mat", "fmri", "roi_tables"),
        ("a.mat", "spikes", "sorted_spikes"), ("a.csv", "fmri", "roi_tables"), ("a.npz", "spikes", "sorted_spikes"),
    ],
)  # fmt: skip
def test_reader_follows_suffix_and_modality(tmp_path, name, modality, module):
    (tmp_path / name).write_bytes(b"0")
    assert detect.known(tmp_path / name)
    assert detect.reader(tmp_path / name, modality) == module


@pytest.mark.parametrize(
    "inside", [("F.npy", "Fneu.npy"), ("spike_times.npy", "spike_clusters.npy"), ("config", "c,rfDC")]
)
def test_folders_that_are_one_recording(tmp_path, inside):
    assert not detect.known(tmp_path)
    for name in inside:
        (tmp_path / name).write_bytes(b"0")
    assert detect.known(tmp_path)
    expected = {"F.npy": "suite2p", "spike_times.npy": "sorted_spikes", "config": "mne_formats"}[inside[0]]
    assert detect.reader(tmp_path) == expected


@pytest.mark.parametrize("name", ["a.ds", "A.MFF"])
def test_folders_are_known_by_suffix_and_files_of_that_name_are_not(tmp_path, name):
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / name).write_bytes(b"0")
    (tmp_path / name).mkdir()
    assert detect.known(tmp_path / name)
    assert not detect.known(tmp_path / "file" / name)


def test_ambiguous_suffix_asks_for_the_modality(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"0")
    with pytest.raises(ValueError, match=r"a\.mat.*regions or spikes.*--modality fmri"):
        detect.reader(tmp_path / "a.mat")
    with pytest.raises(ValueError, match="'eeg' does not settle it"):
        detect.reader(tmp_path / "a.mat", "eeg")


def test_modality_that_the_format_cannot_hold(tmp_path):
    (tmp_path / "a.edf").write_bytes(b"0")
    with pytest.raises(ValueError, match="'fmri' asked for; this format holds eeg or ieeg"):
        detect.reader(tmp_path / "a.edf", "fmri")


@pytest.mark.parametrize("name", ["a.xyz", "a.dscalar.nii", "a"])
def test_unknown_format_lists_the_known(tmp_path, name):
    (tmp_path / name).write_bytes(b"0")
    assert not detect.known(tmp_path / name)
    with pytest.raises(ValueError, match=r"unknown format.*\.edf.*\.vhdr.*\.nwb"):
        detect.read(tmp_path / name, WHO)


@pytest.mark.parametrize("ending", sorted(set(detect.FORMATS) - set(detect.FOLDERS)))
def test_a_web_page_is_refused_in_every_format(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    modality = "fmri" if detect.FORMATS[ending][0] == "" else None
    for page in (PAGE, b"\xef\xbb\xbf<html>", b'<?xml version="1.0"?>\n<!-- x --><!DOCTYPE html><html>'):
        path.write_bytes(page)
        with pytest.raises(ValueError, match="it is a web page, not data: download it again"):
            detect.read(path, Request("made_up", "01", modality=modality))


def test_a_web_page_in_place_of_a_companion_is_refused(tmp_path):
    (tmp_path / "a.vhdr").write_text("Brain Vision\n[Common Infos]\nDataFile=a.eeg\nMarkerFile=$b.vmrk\n")
    (tmp_path / "a.vmrk").write_text("Brain Vision")
    (tmp_path / "a.eeg").write_bytes(PAGE)
    assert detect.files(tmp_path / "a.vhdr") == tuple(tmp_path / n for n in ("a.vhdr", "a.eeg", "a.vmrk"))
    with pytest.raises(ValueError, match=r"a\.eeg: it is a web page"):
        detect.read(tmp_path / "a.vhdr", WHO)


def test_comments_without_end_do_not_hang(tmp_path):
    (tmp_path / "a.func.gii").write_bytes(b"<!---->" * 140)
    with pytest.raises(ValueError, match=r"a\.func\.gii"):
        detect.read(tmp_path / "a.func.gii", WHO)


def test_empty_missing_and_not_fetched(tmp_path):
    (tmp_path / "a.edf").write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        detect.read(tmp_path / "a.edf", WHO)
    (tmp_path / "b.edf").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        detect.read(tmp_path / "b.edf", WHO)
    (tmp_path / "c.edf").symlink_to(tmp_path / ".git" / "annex" / "c")
    with pytest.raises(FileNotFoundError, match="datalad get"):
        detect.read(tmp_path / "c.edf", WHO)
    with pytest.raises(FileNotFoundError, match="no such file"):
        detect.read(tmp_path / "d.edf", WHO)


def test_parts_of_a_split_fif_belong_to_its_first(tmp_path):
    path = tmp_path / "long_raw.fif"
    raw(seconds=3000, channels=[f"EEG{i:03d}" for i in range(4)]).save(path, split_size="2MB", verbose="error")
    parts = [p.name for p in detect.files(path)]
    assert parts[:2] == ["long_raw.fif", "long_raw-1.fif"]
    assert set(parts) == {p.name for p in tmp_path.iterdir()}
    raw().save(tmp_path / "S1_raw.fif", verbose="error")
    raw().save(tmp_path / "S1_raw-1.fif", verbose="error")
    assert detect.files(tmp_path / "S1_raw.fif") == (tmp_path / "S1_raw.fif",)


def test_companions_by_stem(tmp_path):
    for name in ("a.set", "a.fdt", "b.fdt", "l.func.gii"):
        (tmp_path / name).write_bytes(b"0")
    assert detect.files(tmp_path / "a.set") == (tmp_path / "a.set", tmp_path / "a.fdt")
    (tmp_path / "spikes.mat").write_bytes(b"0")
    (tmp_path / "x.videoPositionTracking").write_text("<Start settings>\n")  # markup, and no web page
    assert detect.files(tmp_path / "spikes.mat")[1:] == (tmp_path / "x.videoPositionTracking",)
    with pytest.raises(ValueError, match=r"spikes\.mat(?!.*web page)"):
        detect.read(tmp_path / "spikes.mat", Request("made_up", "01", modality="spikes"))
    for side in "LR":
        (tmp_path / f"x_hemi-{side}_bold.func.gii").write_bytes(b"0")
    left, right = (tmp_path / f"x_hemi-{side}_bold.func.gii" for side in "LR")
    assert detect.files(left) == (left, right)
    assert detect.files(right) == (right,)


def test_an_edf_of_mne_is_read(tmp_path):
    pytest.importorskip("edfio")
    mne.export.export_raw(tmp_path / "A.edf", made := raw(), verbose="error")
    (tmp_path / "A.edf").rename(tmp_path / "A.EDF")
    recording = detect.read(Path(tmp_path / "A.EDF"), WHO)
    assert recording.channels.name == ["Fz", "Cz", "Pz"]
    np.testing.assert_allclose(np.asarray(recording.signal[:, 0:400]), made.get_data(), atol=1e-8)
