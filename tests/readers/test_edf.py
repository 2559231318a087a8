"""EDF and BDF: equality with MNE on real, edfio-written and hand-written files; bad headers; lazy slices."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brainfm.readers import edf
from brainfm.readers.request import Request
from brainfm.recording import Recording, Signal

mne = pytest.importorskip("mne")
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FIXTURES = DATA / "reader-fixtures"
REQUEST = Request("made_up", "s1")
REAL = [FIXTURES / f"{x}.edf" for x in ("test", "duplicate_channel_labels", "test_uneven_samp")]
REAL += [FIXTURES / "test.bdf", *sorted((DATA / "eegmat").glob("Subject*_*.edf"))[:3:2]]


def tal(onset: float, *texts: str, duration: float | None = None) -> bytes:
    """One entry of an annotation channel."""
    length = b"" if duration is None else b"\x15" + f"{duration:g}".encode()
    return f"{onset:+g}".encode() + length + b"\x14" + b"\x14".join(t.encode() for t in texts) + b"\x14\0"


def write(path: Path, digital: list[np.ndarray], **changed: object) -> Path:
    """An EDF or BDF file by hand: `digital` has `(record, sample)` of each signal; `changed` are header fields."""
    width = 3 if path.suffix == ".bdf" else 2
    n, top = len(digital), 2 ** (8 * width - 1)
    fields: dict[str, object] = {
        "version": "0", "size": 256 * (n + 1), "reserved": "", "records": len(digital[0]), "duration": 1, "signals": n,
        "label": [f"EEG {x}" for x in ("Fp1", "Fp2", "Cz", "Pz", "O1", "O2")[:n]], "dimension": ["uV"] * n,
        "low": [-3276.8] * n, "high": [3276.7] * n, "least": [-top] * n, "most": [top - 1] * n,
        "samples": [d.shape[1] for d in digital],
    } | changed  # fmt: skip
    tals = fields.pop("tals", None)
    if tals is not None:
        size = max(len(x) for x in tals)
        size += -size % width
        n += 1
        fields |= {"size": 256 * (n + 1), "signals": n}
        for key, value in zip(
            ("label", "dimension", "low", "high", "least", "most", "samples"),
            (f"{'BDF' if width == 3 else 'EDF'} Annotations", "", -1, 1, -top, top - 1, size // width),
            strict=True,
        ):
            fields[key] = [*fields[key], value]
    first = (b"\xffBIOSEMI" if width == 3 else str(fields["version"]).encode()).ljust(8)
    head = (
        first
        + b" " * 160
        + b"01.01.2001.00.00"
        + b"".join(
            str(fields[k]).encode("latin-1").ljust(w)[:w]
            for k, w in (("size", 8), ("reserved", 44), ("records", 8), ("duration", 8), ("signals", 4))
        )
    )
    for key, w in (
        ("label", 16), ("", 80), ("dimension", 8), ("low", 8), ("high", 8), ("least", 8), ("most", 8), ("", 80),
        ("samples", 8), ("", 32),
    ):  # fmt: skip
        head += b"".join(str(x).encode("latin-1").ljust(w)[:w] for x in (fields[key] if key else [""] * n))
    body = b""
    for record in range(len(digital[0])):
        for values in digital:
            body += values[record].astype("<i4").view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
        body += tals[record].ljust(size, b"\0") if tals is not None else b""
    path.write_bytes(head + body)
    return path


def noise(records: int = 7, samples: int = 50, signals: int = 3, top: int = 2**15) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(-top, top, (records, samples)) for _ in range(signals)]


def check_equal(path: Path, done: Recording) -> mne.io.BaseRaw:
    """The signal is MNE's to 1e-12 in double precision, and to the rounding of float32 as it comes."""
    raw = mne.io.read_raw(path, preload=True, verbose="error")
    found = {note.name: note.found for note in done.channel_log if note.fate in ("kept", "renamed")}
    expected = raw.get_data([found[name] for name in done.channels.name])
    size = np.abs(expected).max(axis=1, keepdims=True)
    exact = replace(done.signal, dtype="float64")[:, :]
    assert exact.dtype == np.float64
    assert (np.abs(exact - expected) <= 1e-12 * size).all()
    assert (np.abs(done.signal[:, :] - expected) <= 2e-7 * size).all()
    assert done.sfreq == raw.info["sfreq"]
    return raw


def events(done: Recording) -> list[tuple[float, float, str]]:
    each = zip(done.events.onset, done.events.duration, done.events.label, strict=True)
    return sorted((round(a, 9), round(b, 9), c) for a, b, c in each)


def annotations(raw: mne.io.BaseRaw) -> list[tuple[float, float, str]]:
    notes = raw.annotations
    each = zip(notes.onset - raw.first_time, notes.duration, notes.description, strict=True)
    return sorted((round(float(a), 9), round(float(b), 9), str(c)) for a, b, c in each)


@pytest.mark.parametrize("path", REAL, ids=lambda p: p.name)
def test_real_files_equal_mne(path: Path) -> None:
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    done = edf.read(path, REQUEST)
    raw = check_equal(path, done)
    expected = annotations(raw)
    if stim := [x for x, kind in zip(raw.ch_names, raw.get_channel_types(), strict=True) if kind == "stim"]:
        codes = mne.find_events(
            raw, stim, shortest_event=1, consecutive=True, mask=0xFFFF, mask_type="and", verbose="error"
        )
        expected += [(round(s / raw.info["sfreq"], 9), 0.0, str(c)) for s, _, c in codes if c]
    assert events(done) == sorted(expected)
    assert isinstance(done.signal, Signal)
    assert list(done.provenance["files"]) == [path.name]


def test_of_two_rates_the_other_channel_is_noted() -> None:
    path = FIXTURES / "test_uneven_samp.edf"
    if not path.is_file():
        pytest.skip("the reader fixtures are not here")
    done = edf.read(path, REQUEST)
    assert done.channels.name == ["3Hz +5/-5 V"]
    assert [(n.found, n.fate, n.detail) for n in done.channel_log if n.fate == "dropped"] == [
        ("0.2Hz Blk 1/0uV", "dropped", "sampled at 12.8 Hz, not 100 Hz")
    ]


@pytest.mark.parametrize("suffix", [".edf", ".bdf"])
def test_files_of_edfio_equal_mne(tmp_path: Path, suffix: str) -> None:
    edfio = pytest.importorskip("edfio")
    rng = np.random.default_rng(1)
    make = edfio.EdfSignal if suffix == ".edf" else edfio.BdfSignal
    whole = edfio.Edf if suffix == ".edf" else edfio.Bdf
    signals = [
        make(rng.normal(20, 30, 256 * 12), 256, label=x, physical_dimension=unit)
        for x, unit in (("Fp1", "uV"), ("C3", "uV"), ("Oz", "mV"))
    ]
    notes = [edfio.EdfAnnotation(1.5, None, "left"), edfio.EdfAnnotation(4, 2.0, "BAD_jump")]
    path = tmp_path / f"a{suffix}"
    whole(signals, annotations=notes).write(path)
    done = edf.read(path, replace(REQUEST, label="rest"))
    raw = check_equal(path, done)
    assert events(done) == sorted([*annotations(raw), (0.0, 12.0, "rest")])
    assert done.segments.tolist() == [[0, 1024], [1536, 3072]]


def test_a_file_that_mne_exported_equals_mne(tmp_path: Path) -> None:
    pytest.importorskip("edfio")
    rng = np.random.default_rng(2)
    raw = mne.io.RawArray(rng.normal(0, 2e-5, (4, 1000)), mne.create_info(["Fz", "Cz", "Pz", "Oz"], 100, "eeg"))
    raw.set_annotations(mne.Annotations([2.0], [0.5], ["go"]))
    mne.export.export_raw(tmp_path / "x.edf", raw, verbose="error")
    done = edf.read(tmp_path / "x.edf", REQUEST)
    assert events(done) == annotations(check_equal(tmp_path / "x.edf", done))
    np.testing.assert_allclose(done.signal[:, :], raw.get_data(), atol=2e-8)


@pytest.mark.parametrize("suffix", [".edf", ".bdf"])
def test_lazy_slices_equal_the_whole(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / f"a{suffix}", noise(23, 31, 4), tals=[tal(i, "") for i in range(23)])
    signal = pickle.loads(pickle.dumps(edf.read(path, REQUEST).signal))
    whole, rng = signal[:, :], np.random.default_rng(3)
    assert signal.block % 31 == 0
    for chunk in (1 << 22, 3000, 100):
        monkeypatch.setattr(edf, "CHUNK", chunk)
        for _ in range(40):
            a, b = np.sort(rng.integers(0, whole.shape[1] + 1, 2))
            np.testing.assert_array_equal(signal[:, a:b], whole[:, a:b])
        np.testing.assert_array_equal(signal[1:3, 5:400], whole[1:3, 5:400])
        np.testing.assert_array_equal(signal[[2], -9:], whole[[2], -9:])
    with pytest.raises(TypeError, match="sliced as"):
        signal[:, ::2]


def test_24_bits_keep_every_step(tmp_path: Path) -> None:
    digital = noise(5, 40, 2, 2**23)
    path = write(tmp_path / "a.bdf", digital, low=[-8388608] * 2, high=[8388607] * 2)
    signal = edf.read(path, REQUEST).signal
    np.testing.assert_array_equal(np.rint(signal[:, :] * 1e6), [d.ravel() for d in digital])


def test_a_large_offset_is_decoded_in_double(tmp_path: Path) -> None:
    path = write(tmp_path / "a.edf", noise(), low=[1e6] * 3, high=[1e6 + 6] * 3)
    assert edf.read(path, REQUEST).signal.dtype == "float64"


def test_a_discontinuous_file_is_split_at_its_gaps(tmp_path: Path) -> None:
    clock = [10, 11, 12, 20, 21, 40, 41]
    tals = [tal(t, "") for t in clock]
    tals[4] += tal(21.5, "late") + tal(12.5, "BAD_cable", duration=8)
    path = write(tmp_path / "a.edf", noise(), tals=tals, reserved="EDF+D")
    done = edf.read(path, REQUEST)
    check_equal(path, done)
    assert events(done) == [(2.5, 1.0, "BAD_cable"), (4.5, 0.0, "late")]
    assert done.segments.tolist() == [[0, 125], [175, 250], [250, 350]]
    assert done.provenance["steps"][0]["gaps"] == 2


def test_a_discontinuous_file_has_to_say_when(tmp_path: Path) -> None:
    tals = [tal(t, "") for t in (0, 1, 2, 3, 4, 5)] + [b""]
    with pytest.raises(ValueError, match="when each record begins"):
        edf.read(write(tmp_path / "a.edf", noise(), tals=tals, reserved="EDF+D"), REQUEST)
    tals[-1] = tal(5.5, "")
    with pytest.raises(ValueError, match="record 7 begins before"):
        edf.read(write(tmp_path / "a.edf", noise(), tals=tals, reserved="EDF+D"), REQUEST)


def test_annotations_as_mne_reads_them(tmp_path: Path) -> None:
    tals = [tal(i + 0.25, "") for i in range(7)]
    tals[2] += tal(2.5, "übung", "two") + tal(2.5, "bad@@EEG Fp1") + tal(2.5, "bad@@EEG Cz") + tal(3, "a@@b")
    tals[3] += tal(3.75, "same") + tal(3.75, "same", duration=0.5)
    path = write(tmp_path / "a.edf", noise(), tals=tals, reserved="EDF+C")
    assert events(edf.read(path, REQUEST)) == annotations(mne.io.read_raw(path, verbose="error"))
    tals[3] += b"rubbish\0+x\x14y\x14\0"
    done = edf.read(write(path, noise(), tals=tals, reserved="EDF+C"), REQUEST)
    assert {"step": "annotations", "unreadable": 2} in done.provenance["steps"]


def test_trigger_codes(tmp_path: Path) -> None:
    codes = np.zeros((4, 32), int)
    codes[0, 0] = codes[3, 31] = 7
    codes[1, 5:10], codes[1, 10:12], codes[2] = 3, 300, (1 << 20)
    codes[0, 1:] |= 1 << 20
    path = write(tmp_path / "a.bdf", [*noise(4, 32, 1), codes], label=["Fp1", "Status"])
    assert events(edf.read(path, REQUEST)) == [
        (1 + 5 / 32, 0, "3"), (1 + 10 / 32, 0, "300"), (3 + 31 / 32, 0, "7"),
    ]  # fmt: skip


def test_units_and_channels_without_a_range(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.edf", noise(7, 50, 6), dimension=["uV", "mV", "", "nV", "µV", "%"],
        label=["Fp1", "Fp2", "Cz", "Pz", "O1", "Oz"], most=[2**15 - 1] * 4 + [-(2**15), 2**15 - 1],
    )  # fmt: skip
    done = edf.read(path, REQUEST)
    assert done.channels.name == ["Fp1", "Fp2", "Cz", "Pz"]
    gain = np.array(done.signal.gain)
    np.testing.assert_allclose(gain / 0.1, [1e-6, 1e-3, 1, 1e-9], rtol=1e-9)
    assert {n.found: n.detail for n in done.channel_log if n.fate == "dropped"}["O1"] == "its range is empty: no scale"
    np.testing.assert_allclose(np.array(edf.read(path, replace(REQUEST, unit="uV")).signal.gain), 1e-7, rtol=1e-9)
    with pytest.raises(ValueError, match=r"T.*eeg"):
        edf.read(path, replace(REQUEST, unit="T"))


def test_the_number_of_records_may_be_unknown(tmp_path: Path) -> None:
    path = write(tmp_path / "a.edf", noise(), records=-1)
    path.write_bytes(path.read_bytes() + b"\1" * 100)
    done = edf.read(path, REQUEST)
    assert done.signal.shape == (3, 350)
    assert done.provenance["steps"] == [{"step": "records", "used": 7, "bytes_behind": 100}]


BAD = {
    "no number of signals": {"signals": "x"}, "0 signals": {"signals": 0}, "-1 signals": {"signals": -1},
    "many signals": {"signals": 9999}, "size": {"size": 512}, "no size": {"size": ""}, "records 0": {"records": 0},
    "records -2": {"records": -2}, "records 99999999": {"records": 99999999}, "duration 0": {"duration": 0},
    "duration -1": {"duration": -1}, "duration inf": {"duration": "inf"}, "duration nan": {"duration": "nan"},
    "duration 1e999": {"duration": "1e999"}, "duration 1e-300": {"duration": "1e-300"}, "version": {"version": "1"},
    "samples 0": {"samples": [50, 0, 50]}, "samples -1": {"samples": [50, -1, 50]},
    "samples": {"samples": [99999999] * 3},
    "half samples": {"samples": [50, 50.5, 50]}, "samples 1_0": {"samples": ["5_0", 50, 50]},
    "digital range": {"least": [5, 0, 0], "most": [4, 9, 9]}, "digital 17 bits": {"most": [65536] * 3},
    "no physical minimum": {"low": ["x", 0, 0]}, "infinite": {"high": ["1e400", 1, 1]}, "nan": {"low": ["nan", 0, 0]},
    "flat": {"low": [1] * 3, "high": [1] * 3}, "label": {"label": ["Fp1\x01\x02", "Fp2", "Cz"]},
}  # fmt: skip


@pytest.mark.parametrize("changed", BAD.values(), ids=BAD)
def test_bad_headers_are_refused(tmp_path: Path, changed: dict) -> None:
    path = write(tmp_path / "bad.edf", noise(), **changed)
    with pytest.raises(ValueError, match=r"bad\.edf"):
        edf.read(path, REQUEST)


def test_truncated_empty_and_other_files_are_refused(tmp_path: Path) -> None:
    good = write(tmp_path / "good.edf", noise(), tals=[tal(i, "") for i in range(7)]).read_bytes()
    path = tmp_path / "cut.edf"
    sizes = [int(x) for x in np.linspace(0, len(good) - 1, 20)]
    for size in sizes:
        path.write_bytes(good[:size])
        with pytest.raises(ValueError, match=r"cut\.edf"):
            edf.read(path, REQUEST)
    with pytest.raises(ValueError, match=f"has {len(good) - 1} bytes; its header announces {len(good)}"):
        edf.read(path, REQUEST)
    for text in ("subject,age\n" * 100, "<!DOCTYPE html>" * 50, "0       " * 100):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"cut\.edf"):
            edf.read(path, REQUEST)


def test_a_file_cut_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.edf", noise())
    signal = edf.read(path, REQUEST).signal
    path.write_bytes(path.read_bytes()[:-10])
    assert signal[:, :300].shape == (3, 300)
    with pytest.raises(ValueError, match=r"a\.edf ends 10 bytes early"):
        signal[:, 340:]


def test_flipped_bytes_never_escape(tmp_path: Path) -> None:
    good = bytearray(write(tmp_path / "a.edf", noise(), tals=[tal(i, "", "x") for i in range(7)]).read_bytes())
    rng, path = np.random.default_rng(5), tmp_path / "a.edf"
    for _ in range(150):
        bad = bytearray(good)
        for at in rng.integers(0, 256 * 5, 3):
            bad[at] = rng.integers(0, 256)
        path.write_bytes(bad)
        try:
            outcome = str(edf.read(path, REQUEST).signal[:, :20].shape[1])
        except ValueError as error:
            outcome = str(error)
        assert outcome == "20" or "a.edf" in outcome
