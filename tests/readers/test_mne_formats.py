"""What MNE opens: FIF (plain, compressed, split), EEGLAB, and small GDF, EGI, Nicolet and Persyst files by hand."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from brainfm.readers import electrophysiology, mne_formats
from brainfm.readers.request import Request
from brainfm.recording import Events, Recording, Signal

mne = pytest.importorskip("mne")
REQUEST = Request("made_up", "s1")
SFREQ = 100.0


def made_up(seconds: int = 20, names: tuple[str, ...] = ("Fp1", "Cz", "Oz")) -> mne.io.RawArray:
    """EEG and a trigger channel, with annotations and a first sample that is not 0."""
    n = int(seconds * SFREQ)
    values = np.random.default_rng(0).normal(0, 2e-5, (len(names) + 1, n)).astype(np.float32).astype(float)
    values[-1] = 0
    values[-1, 300:310], values[-1, 310:320], values[-1, n - 1] = 5, 7, 9
    info = mne.create_info([*names, "STI 014"], SFREQ, ["eeg"] * len(names) + ["stim"])
    raw = mne.io.RawArray(values, info, first_samp=250, verbose="error")
    raw.set_meas_date(1e9)
    notes = mne.Annotations([1, 4, 9], [0.5, 2, 0], ["look", "BAD_jump", "EDGE boundary"])
    return raw.set_annotations(notes[:3] if seconds > 9 else notes[:1])


def check_equal(done: Recording, raw: mne.io.BaseRaw) -> None:
    """The lazy signal is MNE's, whole, in slices, and out of a pickle."""
    found = {note.name: note.found for note in done.channel_log if note.fate in ("kept", "renamed")}
    expected = raw.get_data([found[name] for name in done.channels.name])
    assert isinstance(done.signal, Signal)
    signal = pickle.loads(pickle.dumps(done.signal))
    np.testing.assert_allclose(signal[:, :], expected, rtol=1e-12, atol=0)
    rng = np.random.default_rng(1)
    for _ in range(10):
        a, b = np.sort(rng.integers(0, expected.shape[1] + 1, 2))
        np.testing.assert_array_equal(done.signal[:, a:b], signal[:, a:b])
        np.testing.assert_allclose(signal[:, a:b], expected[:, a:b], rtol=1e-12, atol=0)
    np.testing.assert_array_equal(signal[1:2, 5:9], expected[1:2, 5:9])
    assert done.sfreq == raw.info["sfreq"]
    assert len(pickle.dumps(done.signal)) < 2000


@pytest.mark.parametrize("suffix", [".fif", ".fif.gz"])
def test_fif(tmp_path: Path, suffix: str) -> None:
    path, raw = tmp_path / f"a_raw{suffix}", made_up()
    raw.save(path, verbose="error", buffer_size_sec=1)
    done = mne_formats.read(path, replace(REQUEST, label="rest", participant={"sex": "F"}))
    check_equal(done, mne.io.read_raw_fif(path, verbose="error"))
    np.testing.assert_allclose(done.events.onset, [1, 3, 3.1, 4, 9, 19.99, 0], atol=1e-6)
    assert done.events.label == ["look", "5", "7", "BAD_jump", "EDGE boundary", "9", "rest"]
    assert done.segments.tolist() == [[0, 400], [600, 900], [900, 2000]]
    assert list(done.provenance["files"]) == [path.name]
    assert done.provenance["participant"] == {"sex": "F"}


def test_split_fif_is_one_recording(tmp_path: Path) -> None:
    path, raw = tmp_path / "a_raw.fif", made_up(600, ("Fp1", "Fz", "Cz", "Pz", "Oz", "O1", "O2", "C3", "C4"))
    raw.save(path, verbose="error", buffer_size_sec=1, split_size="2MB")
    parts = sorted(p.name for p in tmp_path.iterdir())
    assert len(parts) > 1
    done = mne_formats.read(path, REQUEST)
    check_equal(done, mne.io.read_raw_fif(path, verbose="error"))
    assert done.signal.shape == (9, 60000)
    assert sorted(done.provenance["files"]) == parts
    (tmp_path / parts[0]).unlink()
    with pytest.raises(ValueError, match=r"a_raw\.fif cannot be read.*"):
        mne_formats.read(path, REQUEST)


def test_concatenated_runs_are_split_at_their_boundary(tmp_path: Path) -> None:
    raw = mne.concatenate_raws([made_up(10).set_annotations(None), made_up(5).set_annotations(None)], verbose="error")
    raw.save(tmp_path / "a_raw.fif", verbose="error")
    assert mne_formats.read(tmp_path / "a_raw.fif", REQUEST).segments.tolist() == [[0, 1000], [1000, 1500]]


def test_meg_has_coils_in_the_head_frame(tmp_path: Path) -> None:
    from brainfm.modalities import head

    person = head.draw_person(np.random.default_rng(0))
    info = head.meg_info(next(iter(head.ARRAYS)), person, SFREQ)
    values = np.random.default_rng(0).normal(0, 1e-12, (len(info["ch_names"]), 500))
    raw = mne.io.RawArray(values, info, verbose="error")
    raw.save(tmp_path / "a_raw.fif", verbose="error")
    done = mne_formats.read(tmp_path / "a_raw.fif", REQUEST)
    check_equal(done, mne.io.read_raw_fif(tmp_path / "a_raw.fif", verbose="error"))
    assert done.modality == "meg"
    assert set(done.channels.kind) <= {"mag", "grad", "axial"}
    np.testing.assert_allclose(np.linalg.norm(done.channels.orientation, axis=1), 1, atol=1e-5)
    assert np.isfinite(done.channels.position).all()


def eeglab(path: Path, values: np.ndarray, data: object) -> Path:
    """An EEGLAB file as EEGLAB's own fields; `data` is the samples or the name of the .fdt file."""
    names = ["Fp1", "Cz", "Oz"]
    place = np.array([[(n, x, 0.1, 0.2) for n, x in zip(names, (1.0, 2.0, 3.0), strict=True)]],
        dtype=[("labels", "O"), ("X", "O"), ("Y", "O"), ("Z", "O")])  # fmt: skip
    event = np.array(
        [[("go", 101.0, 1.0), ("boundary", 501.0, 0.0)]], dtype=[("type", "O"), ("latency", "O"), ("duration", "O")]
    )
    fields = {
        "setname": "made up", "nbchan": 3.0, "trials": 1.0, "pnts": float(values.shape[1]), "srate": SFREQ, "xmin": 0.0,
        "xmax": 1.0, "times": np.zeros(0), "data": data, "chanlocs": place, "event": event, "epoch": np.zeros(0),
        "icawinv": np.zeros(0), "icaweights": np.zeros(0), "icasphere": np.zeros(0),
    }  # fmt: skip
    savemat(path, {"EEG": fields}, appendmat=False)
    return path


@pytest.mark.parametrize("embedded", [False, True])
def test_eeglab(tmp_path: Path, embedded: bool) -> None:
    values = np.random.default_rng(0).normal(0, 20, (3, 1000)).astype(np.float32)
    values.T.tofile(tmp_path / "a.fdt")
    path = eeglab(tmp_path / "a.set", values, values if embedded else "a.fdt")
    done = mne_formats.read(path, REQUEST)
    check_equal(done, mne.io.read_raw_eeglab(path, verbose="error"))
    np.testing.assert_allclose(done.signal[:, :], values * 1e-6, rtol=1e-6)
    assert done.events.label == ["go", "boundary"]
    assert done.segments.tolist() == [[0, 500], [500, 1000]]
    assert sorted(done.provenance["files"]) == (["a.set"] if embedded else ["a.fdt", "a.set"])
    other = mne_formats.read(path, replace(REQUEST, unit="V"))
    np.testing.assert_allclose(other.signal[:, :50], values[:, :50], rtol=1e-6)


def test_eeglab_data_outside_its_folder_or_cut_short(tmp_path: Path) -> None:
    values = np.zeros((3, 1000), np.float32)
    (tmp_path / "in").mkdir()
    values.tofile(tmp_path / "a.fdt")
    for name in ("../a.fdt", str(tmp_path / "a.fdt")):
        with pytest.raises(ValueError, match=r"a\.set.*inside"):
            mne_formats.read(eeglab(tmp_path / "in/a.set", values, name), REQUEST)
    (tmp_path / "in/a.fdt").write_bytes((tmp_path / "a.fdt").read_bytes()[:-400])
    with pytest.raises(ValueError, match=r"a\.set"):
        mne_formats.read(eeglab(tmp_path / "in/a.set", values, "a.fdt"), REQUEST)


def test_egi(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 20, (10, 400))
    values[8:] = 0
    values[8, 100] = values[9, 200] = 1
    head = struct.pack(">i6hi5hih", 4, 2020, 1, 2, 3, 4, 5, 0, 100, 8, 0, 0, 0, 400, 2) + b"DIN1DIN2"
    (tmp_path / "a.raw").write_bytes(head + values.T.astype(">f4").tobytes())
    done = mne_formats.read(tmp_path / "a.raw", REQUEST)
    check_equal(done, mne.io.read_raw_egi(tmp_path / "a.raw", verbose="error"))
    np.testing.assert_allclose(done.signal[:, :], values[:8] * 1e-6, rtol=1e-6)
    assert done.events.label == ["DIN1", "DIN2"]
    np.testing.assert_allclose(done.events.onset, [1, 2])


def gdf(path: Path, values: np.ndarray) -> Path:
    """A GDF 1.25 file: one record a second of 16-bit samples, and an event table."""
    n, records = len(values), values.shape[1] // 100
    head = b"GDF 1.25" + b" " * 160 + b"2020010203040500" + struct.pack("<q24x20xq2II", 256 * (n + 1), records, 1, 1, n)
    columns = [b"Fp1".ljust(16), b"Cz".ljust(16), b"Oz".ljust(16)] + [b" " * 80] * n + [b"uV".ljust(8)] * n
    columns += [struct.pack("<d", -100)] * n + [struct.pack("<d", 100)] * n
    columns += [struct.pack("<q", -32768)] * n + [struct.pack("<q", 32767)] * n + [b" " * 80] * n
    columns += [struct.pack("<i", 100)] * n + [struct.pack("<i", 3)] * n + [b" " * 32] * n
    body = values.reshape(n, records, 100).transpose(1, 0, 2).astype("<i2").tobytes()
    table = struct.pack("<B3BI", 1, 100, 0, 0, 2) + struct.pack("<2I", 51, 301) + struct.pack("<2H", 769, 770)
    path.write_bytes(head + b"".join(columns) + body + table)
    return path


def gdf2(path: Path, values: np.ndarray) -> Path:
    """A GDF 2.0 file with the same samples and events as that of `gdf`."""
    n, records = len(values), values.shape[1] // 100
    head = b"GDF 2.00" + b"X X".ljust(66) + bytes(10 + 4) + bytes(64 + 4 + 12 + 16) + struct.pack("<H", n + 1)
    head = head.ljust(236, b"\0") + struct.pack("<q2I2H", records, 1, 1, n, 0)
    columns = [b"Fp1".ljust(16), b"Cz".ljust(16), b"Oz".ljust(16)] + [b" " * 80] * n + [b" " * 6] * n
    columns += [struct.pack("<H", 4275)] * n + [
        struct.pack("<d", x) for x in (-100, 100, -32768, 32767) for _ in range(n)
    ]
    columns += [bytes(68 + 12)] * n + [struct.pack("<i", 100)] * n + [struct.pack("<i", 3)] * n + [bytes(12 + 20)] * n
    body = values.reshape(n, records, 100).transpose(1, 0, 2).astype("<i2").tobytes()
    table = struct.pack("<B3Bf", 1, 2, 0, 0, 100) + struct.pack("<2I", 51, 301) + struct.pack("<2H", 769, 770)
    path.write_bytes(head + b"".join(columns) + body + table)
    return path


@pytest.mark.parametrize("write", [gdf, gdf2])
def test_gdf(tmp_path: Path, write: Callable[[Path, np.ndarray], Path]) -> None:
    values = np.random.default_rng(0).integers(-32768, 32767, (3, 500))
    path = write(tmp_path / "a.gdf", values)
    done = mne_formats.read(path, REQUEST)
    check_equal(done, mne.io.read_raw_gdf(path, verbose="error"))
    np.testing.assert_allclose(done.signal[:, :], (values + 32768) * (200e-6 / 65535) - 1e-4, atol=1e-12)
    assert done.events.label == ["769", "770"]
    np.testing.assert_allclose(done.events.onset, [0.5, 3.0])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"a\.gdf has .* cut short"):
        mne_formats.read(path, REQUEST)


@pytest.mark.parametrize(("modality", "kind"), [(None, "eeg"), ("ieeg", "seeg")])
def test_nicolet(tmp_path: Path, modality: str | None, kind: str) -> None:
    values = np.random.default_rng(0).integers(-3000, 3000, (3, 500))
    values.T.astype("<i2").tofile(tmp_path / "a.data")
    (tmp_path / "a.head").write_text(
        "start_ts=2020-01-02 03:04:05.000\nnum_samples=500\nsample_freq=100\nconversion_factor=0.5\nnum_channels=3\n"
        "elec_names=[Fp1,Cz,Oz]\npat_id=1\nadm_id=1\nrec_id=1\nduration_in_sec=5\n"
    )
    done = mne_formats.read(tmp_path / "a.data", replace(REQUEST, modality=modality))
    assert done.channels.kind == [kind] * 3
    check_equal(done, mne.io.read_raw_nicolet(tmp_path / "a.data", ch_type=kind, verbose="error"))
    np.testing.assert_allclose(done.signal[:, :], values * 0.5e-6)


def test_persyst(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-3000, 3000, (3, 500))
    values.T.astype("<i2").tofile(tmp_path / "a.dat")
    (tmp_path / "a.lay").write_text(
        "[FileInfo]\nFile=a.dat\nFileType=Interleaved\nSamplingRate=100\nHeaderLength=0\nCalibration=0.5\n"
        "WaveformCount=3\nDataType=0\n[Patient]\nFirst=made\nLast=up\nHand=\nSex=\nBirthDate=01/02/70\nTestDate=01/02/2020\nTestTime=03:04:05\n[ChannelMap]\nFp1-Ref=1\nCz-Ref=2\nOz-Ref=3\n[Comments]\n1.5,0.5,0,100,spike\n"
    )
    done = mne_formats.read(tmp_path / "a.lay", REQUEST)
    check_equal(done, mne.io.read_raw_persyst(tmp_path / "a.lay", verbose="error"))
    assert (done.events.label, done.events.onset.tolist()) == (["spike"], [1.5])
    assert sorted(done.provenance["files"]) == ["a.dat", "a.lay"]


def test_eeglab_hdf5_that_links_out_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.set", "w") as file:
        file["EEG"] = h5py.ExternalLink("other.h5", "/EEG")
    with pytest.raises(ValueError, match=r"a\.set.*link to another file"):
        mne_formats.read(tmp_path / "a.set", REQUEST)


@pytest.mark.parametrize(
    ("at", "form", "value"), [(252, "<I", 2**32 - 1), (236, "<q", 2**40), (184, "<q", -1), (252, "<I", 0)]
)
def test_gdf_headers_that_lie_are_refused(tmp_path: Path, at: int, form: str, value: int) -> None:
    path = gdf(tmp_path / "a.gdf", np.ones((3, 100), int))
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, at, value)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.gdf"):
        mne_formats.read(path, REQUEST)


@pytest.mark.parametrize("suffix", [".fif", ".gdf", ".raw", ".set"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut_raw{suffix}"
    if suffix == ".fif":
        made_up(5).save(path, verbose="error")
    elif suffix == ".gdf":
        gdf(path, np.random.default_rng(0).integers(-32768, 32767, (3, 500)))
    elif suffix == ".set":
        eeglab(path, values := np.random.default_rng(0).normal(0, 20, (3, 1000)), values)
    else:
        head = struct.pack(">i6hi5hih", 4, 2020, 1, 2, 3, 4, 5, 0, 100, 3, 0, 0, 0, 400, 0)
        path.write_bytes(head + np.ones((400, 3), ">f4").tobytes())
    good = path.read_bytes()
    for size in np.linspace(0, len(good) - 1, 20):
        path.write_bytes(good[: int(size)])
        with pytest.raises(ValueError, match="cut_raw"):
            mne_formats.read(path, REQUEST)


@pytest.mark.parametrize("suffix", sorted(mne_formats.READERS))
def test_files_that_are_something_else_are_refused(tmp_path: Path, suffix: str) -> None:
    for content in (b"", b"hello\n" * 200, bytes(range(256)) * 20):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\."):
            mne_formats.read(path, REQUEST)


def test_other_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not there"):
        mne_formats.read(tmp_path / "a.fif", REQUEST)
    (tmp_path / "a.snirf").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"'\.snirf' is not one of"):
        mne_formats.read(tmp_path / "a.snirf", REQUEST)
    for name in ("b.vhdr", "b.eeg"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"give .*b\.vhdr"):
        mne_formats.read(tmp_path / "b.eeg", REQUEST)
    for suffix in (".ds", ".mff", ""):
        (tmp_path / f"folder{suffix}").mkdir()
        with pytest.raises(ValueError, match="folder"):
            mne_formats.read(tmp_path / f"folder{suffix}", REQUEST)


def test_a_bti_folder_is_known_by_its_config(tmp_path: Path) -> None:
    for name in ("config", "c,rfDC"):
        (tmp_path / name).write_bytes(b"no BTi" * 100)
    with pytest.raises(ValueError, match=r"c,rfDC cannot be read by mne\.io\.read_raw_bti"):
        mne_formats.read(tmp_path, REQUEST)
    (tmp_path / "e,rfhp1.0Hz").write_bytes(b"x")
    with pytest.raises(ValueError, match="holds 2 4D/BTi data files"):
        mne_formats.read(tmp_path, REQUEST)


def test_unit_of_the_request(tmp_path: Path) -> None:
    path, raw = tmp_path / "a_raw.fif", made_up(5)
    raw.save(path, verbose="error")
    done = mne_formats.read(path, replace(REQUEST, unit="uV"))
    np.testing.assert_allclose(done.signal[:, :], raw.get_data("eeg") * 1e-6)
    with pytest.raises(ValueError, match="fT"):
        mne_formats.read(path, replace(REQUEST, unit="fT"))
    path = gdf(tmp_path / "a.gdf", np.ones((3, 100), int))
    with pytest.raises(ValueError, match="leave it out"):
        mne_formats.read(path, replace(REQUEST, unit="uV"))


def test_good_segments() -> None:
    def cut(*events: tuple[float, float, str], breaks: tuple[int, ...] = ()) -> list[list[int]]:
        each = list(zip(*events, strict=True)) or [(), (), ()]
        table = Events(np.array(each[0], float), np.array(each[1], float), list(each[2]))
        return mne_formats.good_segments(1000, 100.0, table, breaks).tolist()

    assert cut() == [[0, 1000]]
    assert cut((1, 5, "go"), (2, 0, "EDGE boundary"), (3, 0, "BAD boundary")) == [[0, 200], [200, 300], [300, 1000]]
    assert cut((1, 2, "BAD_a"), (2, 2, "bad b"), (9, 5, "Bad")) == [[0, 100], [400, 900]]
    assert cut((0, 10, "BAD_ACQ_SKIP")) == []
    assert cut((0, 1, "BAD"), breaks=(50, 300)) == [[100, 300], [300, 1000]]
    assert cut((1.005, 0.001, "bad")) == [[0, 100], [101, 1000]]
    assert cut((4, 0, "boundary"), (5, 0, "New Segment/"), (0, 0, "EDGE boundary")) == [
        [0, 400],
        [400, 500],
        [500, 1000],
    ]


def test_triggers_are_found_across_blocks() -> None:
    codes = np.zeros((1, 3 << 20), np.float32)
    codes[0, 0:5], codes[0, 1 << 20 : (1 << 20) + 9], codes[0, (2 << 20) - 1 : (2 << 20) + 3] = 4, 2, 0x10003
    found = electrophysiology.triggers(codes, 1.0, 0xFFFF)
    assert found == [(float(1 << 20), 0.0, "2"), (float((2 << 20) - 1), 0.0, "3")]
