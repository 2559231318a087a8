"""BrainVision: equality with MNE on real and hand-written files; paths that climb; bad headers; lazy slices."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brainfm.readers import brainvision
from brainfm.readers.request import Request
from brainfm.recording import Recording, Signal

mne = pytest.importorskip("mne")
FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "data" / "reader-fixtures"
REQUEST = Request("made_up", "s1")
MARKERS = "Mk1=New Segment,,1,1,0,20200101120000000000\nMk2=Stimulus,S  1,51,1,0\nMk3=Bad Interval,Bad A\\1B,101,20,0\n"


def write(
    folder: Path,
    values: np.ndarray,
    *,
    sample: str = "<i2",
    vectorized: bool = False,
    channels: str = "Ch1=Fp1,,0.5,µV\nCh2=Cz,Ref,0.1\nCh3=Oz,,1,mV\nCh4=ECG,,2,C\n",
    markers: str = MARKERS,
    coordinates: str = "",
    **changed: object,
) -> Path:
    """A recording of `(channel, time)` digital values; `changed` are other lines of the header."""
    form = {"<i2": "INT_16", "<i4": "INT_32", "<f4": "IEEE_FLOAT_32", ">i2": "INT_16"}[sample]
    common = {
        "Codepage": "UTF-8", "DataFile": "a.eeg", "MarkerFile": "a.vmrk", "DataFormat": "BINARY",
        "DataOrientation": "VECTORIZED" if vectorized else "MULTIPLEXED", "NumberOfChannels": len(values),
        "SamplingInterval": 4000, "DataPoints": values.shape[1],
    } | {k: v for k, v in changed.items() if k[0] == k[0].upper()}  # fmt: skip
    text = "Brain Vision Data Exchange Header File Version 1.0\n; made up\n\n[Common Infos]\n"
    text += "".join(f"{k}={v}\n" for k, v in common.items() if v is not None)
    text += f"\n[Binary Infos]\nBinaryFormat={form}\n" + ("UseBigEndianOrder=YES\n" if sample[0] == ">" else "")
    text += f"\n[Channel Infos]\n; a comment, Ch9=no\n{channels}\n"
    text += (f"[Coordinates]\n{coordinates}\n" if coordinates else "") + "[Comment]\n[Channel Infos]\nCh1=wrong\n"
    (folder / "a.vhdr").write_text(text)
    (folder / "a.vmrk").write_text(
        "Brain Vision Data Exchange Marker File, Version 1.0\n\n[Common Infos]\nDataFile=a.eeg\n\n[Marker Infos]\n"
        + markers
    )
    (values if vectorized else values.T).astype(sample).tofile(folder / "a.eeg")
    return folder / "a.vhdr"


def digital(samples: int = 500, top: int = 2**15) -> np.ndarray:
    return np.random.default_rng(0).integers(-top, top, (4, samples))


def check_equal(path: Path, done: Recording) -> mne.io.BaseRaw:
    """Samples and events are MNE's, samples to 1e-12 in double precision and to float32 as they come."""
    raw = mne.io.read_raw(path, preload=True, verbose="error")
    found = {note.name: note.found for note in done.channel_log if note.fate in ("kept", "renamed")}
    expected = raw.get_data([found[name] for name in done.channels.name])
    size = np.abs(expected).max(axis=1, keepdims=True)
    assert (np.abs(replace(done.signal, dtype="float64")[:, :] - expected) <= 1e-12 * size).all()
    assert (np.abs(done.signal[:, :] - expected) <= 2e-7 * size).all()
    assert done.sfreq == raw.info["sfreq"]
    np.testing.assert_allclose(done.events.onset, raw.annotations.onset, atol=1e-9)
    np.testing.assert_allclose(done.events.duration, raw.annotations.duration, atol=1e-9)
    assert done.events.label == list(raw.annotations.description)
    return raw


@pytest.mark.parametrize("name", ["test", "test_old_layout_latin1_software_filter"])
def test_real_files_equal_mne(name: str) -> None:
    path = FIXTURES / f"{name}.vhdr"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    done = brainvision.read(path, REQUEST)
    check_equal(path, done)
    assert set(done.provenance["files"]) == {f"{name}{x}" for x in (".vhdr", ".eeg", ".vmrk")}
    assert isinstance(done.signal, Signal)


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("sample", ["<i2", "<i4", "<f4"])
def test_every_layout_equals_mne(tmp_path: Path, sample: str, vectorized: bool) -> None:
    top = 2**30 if sample == "<i4" else 2**15
    path = write(tmp_path, digital(top=top), sample=sample, vectorized=vectorized)
    done = brainvision.read(path, REQUEST)
    check_equal(path, done)
    assert done.channels.name == ["Fp1", "Cz", "Oz"]
    assert done.channels.reference == ["", "Ref", ""]
    assert done.events.label == ["Stimulus/S  1", "Bad Interval/Bad A,B"]
    assert done.segments.tolist() == [[0, 100], [120, 500]]
    assert done.signal.dtype == ("float64" if sample == "<i4" else "float32")


def test_big_endian(tmp_path: Path) -> None:
    little = brainvision.read(write(tmp_path, digital()), REQUEST).signal[:, :]
    np.testing.assert_array_equal(
        brainvision.read(write(tmp_path, digital(), sample=">i2"), REQUEST).signal[:, :], little
    )


@pytest.mark.parametrize("vectorized", [False, True])
def test_lazy_slices_equal_the_whole(tmp_path: Path, vectorized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, digital(997), vectorized=vectorized)
    signal = pickle.loads(pickle.dumps(brainvision.read(path, REQUEST).signal))
    whole, rng = signal[:, :], np.random.default_rng(1)
    assert signal.block > 0
    for chunk in (1 << 19, 100, 1):
        monkeypatch.setattr(brainvision, "CHUNK", chunk)
        for _ in range(20):
            a, b = np.sort(rng.integers(0, 998, 2))
            np.testing.assert_array_equal(signal[:, a:b], whole[:, a:b])
        np.testing.assert_array_equal(signal[[2, 0], 7:90], whole[[2, 0], 7:90])


def test_positions_and_label_and_unit(tmp_path: Path) -> None:
    path = write(tmp_path, digital(), coordinates="Ch1=1,-90,-72\nCh2=1,0,0\nCh3=95,90,-90\nCh4=0,0,0")
    done = brainvision.read(path, replace(REQUEST, label="rest", unit="uV", reference="Cz"))
    raw = mne.io.read_raw(path, verbose="error")
    expected = [raw.info["chs"][i]["loc"][:3] for i in range(3)]
    np.testing.assert_allclose(done.channels.position, expected, atol=1e-12)
    assert done.channels.placed == ["file"] * 3
    assert done.channels.reference == ["Cz"] * 3
    assert done.events.label[-1] == "rest"
    assert done.events.duration[-1] == 2.0
    np.testing.assert_allclose(done.signal.gain, [0.5e-6, 0.1e-6, 1e-6])


def test_a_new_segment_splits(tmp_path: Path) -> None:
    done = brainvision.read(write(tmp_path, digital(), markers=MARKERS + "Mk4=New Segment,,301,1,0\n"), REQUEST)
    assert done.segments.tolist() == [[0, 100], [120, 300], [300, 500]]


def test_repeated_names_and_repeated_markers(tmp_path: Path) -> None:
    channels = "Ch1=Fp1,,0.5\nCh2=Fp1,,0.5\nCh3=Oz,,1\nCh4=ECG,,2\n"
    path = write(tmp_path, digital(), channels=channels, markers="Mk1=Stimulus,a,5,1,0\nMk1=Stimulus,b,9,1,0\n")
    done = brainvision.read(path, REQUEST)
    assert [n.found for n in done.channel_log if n.name.startswith("Fp1")] == ["Fp1-0", "Fp1-1"]
    assert done.events.label == ["Stimulus/a", "Stimulus/b"]


@pytest.mark.parametrize(
    "name", ["../a.eeg", "/etc/passwd", "x/../../a.eeg", "..", "C:\\a.eeg", "..\\a.eeg", "a\0.eeg"]
)
@pytest.mark.parametrize("key", ["DataFile", "MarkerFile"])
def test_files_outside_the_folder_are_refused(tmp_path: Path, key: str, name: str) -> None:
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in", digital(), **{key: name})
    (tmp_path / "a.eeg").write_bytes((tmp_path / "in/a.eeg").read_bytes())
    with pytest.raises(ValueError, match=r"a\.vhdr.*in the same folder"):
        brainvision.read(path, REQUEST)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for key in ("DataFile", "MarkerFile"):
        with pytest.raises(FileNotFoundError, match=r"gone\.x.*correct the line"):
            brainvision.read(write(tmp_path, digital(), **{key: "gone.x"}), REQUEST)
    done = brainvision.read(write(tmp_path, digital(), MarkerFile=None, DataFile="$b.eeg"), REQUEST)
    assert not len(done.events)


BAD = [
    {"NumberOfChannels": 0}, {"NumberOfChannels": 5}, {"NumberOfChannels": "x"}, {"NumberOfChannels": 10**9},
    {"SamplingInterval": 0}, {"SamplingInterval": -4}, {"SamplingInterval": "nan"}, {"SamplingInterval": "1e400"},
    {"DataFile": ""}, {"DataPoints": 501}, {"DataPoints": 499}, {"DataPoints": 10**14}, {"DataFormat": "ASCII"},
    {"DataOrientation": "SIDEWAYS"}, {"DataType": "FREQUENCYDOMAIN"}, {"channels": "Ch1=Fp1,,0.5\n"},
    {"channels": "Ch1=a,,x\nCh2=b\nCh3=c\nCh4=d\n"}, {"channels": "Ch1=a,,0\nCh2=b\nCh3=c\nCh4=d\n"},
    {"channels": "Ch1=a\nCh1=b\nCh2=b\nCh3=c\nCh4=d\n"}, {"coordinates": "Ch1=1,2"}, {"coordinates": "Ch9=1,2,3"},
    {"markers": "Mk1=Stimulus,S1\n"}, {"markers": "Mk1=Stimulus,S1,-5,1,0\n"},
    {"markers": "Mk1=Stimulus,S1,99999999999999999999,1\n"},
]  # fmt: skip


@pytest.mark.parametrize("changed", BAD, ids=str)
def test_bad_headers_are_refused(tmp_path: Path, changed: dict) -> None:
    with pytest.raises(ValueError, match=r"a\.(vhdr|vmrk|eeg)"):
        brainvision.read(write(tmp_path, digital(), **changed), REQUEST)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, digital())
    head, data = path.read_bytes(), (tmp_path / "a.eeg").read_bytes()
    last = head.index(b"Ch4")
    for size in np.linspace(0, last, 20):
        path.write_bytes(head[: int(size)])
        with pytest.raises(ValueError, match=r"a\.vhdr"):
            brainvision.read(path, REQUEST)
    path.write_bytes(head)
    for size in np.linspace(0, len(data) - 1, 20):
        (tmp_path / "a.eeg").write_bytes(data[: int(size)])
        with pytest.raises(ValueError, match=r"a\.eeg has \d+ bytes; its header announces"):
            brainvision.read(path, REQUEST)
    for text in ("", "hello\n", "<html></html>"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"a\.vhdr"):
            brainvision.read(path, REQUEST)


def test_a_file_cut_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    signal = brainvision.read(write(tmp_path, digital()), REQUEST).signal
    (tmp_path / "a.eeg").write_bytes((tmp_path / "a.eeg").read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"a\.eeg ends 8 bytes early"):
        signal[:, 490:]
