"""The whole files that are fuzzed: real ones from shared/data where they are there, and made-up ones of each format."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock
from uuid import UUID

import numpy as np

from brainfm.readers.request import Request
from brainfm.recording import ChannelNote, Channels, Events, Normaliser, Recording, Series
from brainfm.shards.codes import Coded, Tokenizer, write_codes
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard

DATA = Path(__file__).resolve().parents[3] / "shared/data"
TR = 0.5


@dataclass(frozen=True)
class Case:
    """One recording or shard in a folder of its own.

    Attributes:
        format: word that the report counts under.
        folder, main: where its files lie, and which of them is read.
        request: what its reader is told; atlas and mask are names in the folder. None for shards.
        form: the layout of `main`, which chooses mutations of its fields.
        sealed: files in which every changed value can be noticed (checksums, CRC).
        redundant: what the format says twice, so that a change of it can be noticed: words of `fuzz.observe`.
        measured: True where the format says how long it is, so that a file cut short can be noticed.
        weight: how often it comes up.
    """

    format: str
    folder: Path
    main: str
    request: dict | None
    form: str
    sealed: tuple[str, ...] = ()
    redundant: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    weight: int = 2

    def asked(self, folder: Path) -> Request:
        """The request for a copy of the files in `folder`."""
        words = {k: folder / v if k in ("atlas", "mask") else v for k, v in (self.request or {}).items()}
        return Request("fuzz", "01", **words)


@dataclass
class Maker:
    """Writes the files of one case after another under `root`."""

    root: Path
    cases: list[Case] = field(default_factory=list)

    def case(self, format: str, main: str, request: dict | None, form: str, **words: object) -> Path:
        """A new case and its folder, which exists."""
        folder = self.root / f"{len(self.cases):02d}"
        folder.mkdir(parents=True, exist_ok=True)
        self.cases.append(Case(format, folder, main, request, form, **words))  # type: ignore[arg-type]
        return folder


def write(root: Path) -> list[Case]:
    """Write all files under `root`; the same cases in the same order whenever the same data are there."""
    make = Maker(root)
    if DATA.exists():
        _real(make)
    _electrophysiology(make)
    _spikes(make)
    _tables(make)
    _images(make)
    _shards(make)
    return make.cases


def _real(make: Maker) -> None:
    fixtures = DATA / "reader-fixtures"
    for path in sorted(fixtures.glob("*.edf")) + sorted(fixtures.glob("*.bdf")):
        timed = ("sfreq",) if b"Annotations" in path.read_bytes()[:5000] else ()
        once = () if "uneven" in path.name else ("samples",)  # names decide between rates
        folder = make.case(
            path.suffix[1:], path.name, {}, "edf", redundant=(*once, *timed), measured=(path.name,), weight=4
        )
        shutil.copy(path, folder)
    for header in sorted(fixtures.glob("*.vhdr")):
        data = header.with_suffix(".eeg")
        folder = make.case("brainvision", header.name, {}, "vhdr", weight=6)
        for path in (header, data, header.with_suffix(".vmrk")):
            shutil.copy(path, folder)
    source = DATA / "eegmat/Subject00_1.edf"
    whole = source.read_bytes()
    size, record = int(whole[184:192]), (len(whole) - int(whole[184:192])) // int(whole[236:244])
    folder = make.case(
        "edf", source.name, {"modality": "eeg"}, "edf", redundant=("samples", "sfreq"), measured=(source.name,)
    )
    cut = whole[:236] + b"6       " + whole[244 : size + 6 * record]
    (folder / source.name).write_bytes(cut)
    for name, path, words in (
        ("mat spikes", "rat-linear-track/spikes.mat", {"modality": "spikes"}),
        ("mat counts", "macaque-m1/m1_stevenson_2011.mat", {"modality": "spikes", "sfreq_hz": 100.0}),
    ):
        folder = make.case(name, Path(path).name, words, "mat", sealed=(Path(path).name,))
        shutil.copy(DATA / path, folder)


def _electrophysiology(make: Maker) -> None:
    import mne
    import pynwb
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    names, values = ["Fz", "Cz", "Pz", "Oz"], rng.normal(0, 1e-5, (4, 1500))
    info = mne.create_info(names, 250.0, "eeg", verbose="error")
    info.set_montage("standard_1020", verbose="error")
    raw = mne.io.RawArray(values, info, verbose="error")
    raw.set_annotations(mne.Annotations([1.0, 3.0], [0.5, 0.0], ["BAD jump", "go"]))
    folder = make.case("fif", "a_raw.fif", {}, "fif", measured=("a_raw.fif",), weight=4)
    raw.save(folder / "a_raw.fif", overwrite=True, verbose="error")
    place = np.array([[(n, x, 0.1, 0.2) for n, x in zip(names, (1.0, 2.0, 3.0, 4.0))]],
        dtype=[("labels", "O"), ("X", "O"), ("Y", "O"), ("Z", "O")])  # fmt: skip
    event = np.array([[("go", 101.0, 1.0)]], dtype=[("type", "O"), ("latency", "O"), ("duration", "O")])
    for embedded in (True, False):
        folder = make.case(
            "eeglab", "a.set", {}, "mat", redundant=("samples",), measured=("a.set", "a.fdt"), weight=3
        )  # fmt: skip
        volts = (values * 1e6).astype(np.float32)
        if not embedded:
            volts.T.tofile(folder / "a.fdt")
        fields = {
            "setname": "made up", "nbchan": 4.0, "trials": 1.0, "pnts": 1500.0, "srate": 250.0, "xmin": 0.0,
            "xmax": 1499 / 250, "times": np.zeros(0), "data": volts if embedded else "a.fdt", "chanlocs": place,
            "event": event, "epoch": np.zeros(0), "icawinv": np.zeros(0), "icaweights": np.zeros(0),
            "icasphere": np.zeros(0),
        }  # fmt: skip
        savemat(folder / "a.set", {"EEG": fields}, appendmat=False)
    folder = make.case("nwb", "volts.nwb", {}, "hdf", redundant=("channels",), measured=("volts.nwb",), weight=3)
    with mock.patch("hdmf.container.uuid4", side_effect=(UUID(int=i) for i in range(10**6))):
        _nwb(pynwb, folder / "volts.nwb", rng)
        folder = make.case("nwb", "units.nwb", {}, "hdf", measured=("units.nwb",), weight=3)
        _nwb(pynwb, folder / "units.nwb", rng, units=True)


def _nwb(pynwb: object, path: Path, rng: np.random.Generator, units: bool = False) -> None:
    from datetime import UTC, datetime

    file = pynwb.NWBFile("made up", "fuzz", datetime(2020, 1, 1, tzinfo=UTC))  # type: ignore[attr-defined]
    device = file.create_device(name="amplifier")
    group = file.create_electrode_group(name="shank", description="depth electrode", location="CA1", device=device)
    for i in range(3):
        file.add_electrode(x=float(i), y=0.0, z=0.0, location="CA1", group=group)
    if units:
        for i in range(3):
            file.add_unit(id=i, spike_times=np.sort(rng.uniform(0, 20, 40)), obs_intervals=[[0.0, 20.0]])
        module = file.create_processing_module("behavior", "hand")
        module.add(pynwb.TimeSeries(name="hand", data=rng.normal(size=(200, 2)), unit="m", rate=10.0))  # type: ignore[attr-defined]
    else:
        region = file.create_electrode_table_region([0, 1, 2], "all")
        volts = rng.normal(0, 100, (2000, 3)).astype(np.int16)
        file.add_acquisition(
            pynwb.ecephys.ElectricalSeries(name="v", data=volts, electrodes=region, conversion=1e-6, rate=500.0)  # type: ignore[attr-defined]
        )
    file.add_trial(start_time=0.5, stop_time=1.5)
    with pynwb.NWBHDF5IO(path, "w") as io:  # type: ignore[attr-defined]
        io.write(file)


def _spikes(make: Maker) -> None:
    rng = np.random.default_rng(1)
    folder = make.case("npz", "spikes.npz", {"modality": "spikes"}, "npz", sealed=("spikes.npz",))
    np.savez(folder / "spikes.npz", spike_times=np.sort(rng.uniform(0, 30, 500)), neuron=rng.integers(0, 5, 500))
    folder = make.case("csv", "spikes.csv", {"modality": "spikes"}, "csv")
    times = np.sort(rng.uniform(0, 30, 300))
    rows = [f"{t:.6f},{n}" for t, n in zip(times, rng.integers(0, 5, 300))]
    (folder / "spikes.csv").write_text("\n".join(["spike_times,neuron", *rows]) + "\n")


def _tables(make: Maker) -> None:
    import h5py
    from scipy.io import savemat

    table = np.random.default_rng(2).normal(size=(120, 12))
    words = {"modality": "fmri", "sfreq_hz": 1 / TR}
    folder = make.case("npy", "roi.npy", words, "npy", redundant=("channels", "samples"), measured=("roi.npy",))
    np.save(folder / "roi.npy", table)
    folder = make.case("npz", "roi.npz", words, "npz", sealed=("roi.npz",))
    np.savez_compressed(folder / "roi.npz", roi=table)
    folder = make.case("csv", "roi.csv", words, "csv")
    np.savetxt(folder / "roi.csv", table, "%.9g", ",", header=",".join(f"r{i}" for i in range(12)), comments="")
    folder = make.case("mat table", "roi.mat", words, "mat", sealed=("roi.mat",))
    savemat(folder / "roi.mat", {"roi": table}, do_compression=True)
    folder = make.case("hdf5 table", "roi.h5", words, "hdf", measured=("roi.h5",))
    with h5py.File(folder / "roi.h5", "w") as file:
        file.create_dataset("roi", data=table)


def _images(make: Maker) -> None:
    import nibabel
    from nibabel import cifti2, gifti

    rng = np.random.default_rng(3)
    affine, shape = np.diag([2.0, 2.0, 2.0, 1.0]), (6, 5, 4)
    run = rng.normal(1000, 50, (*shape, 30)).astype(np.float32)
    mask, atlas = np.zeros(shape, np.uint8), np.zeros(shape, np.int16)
    mask[1:5, 1:4, 1:3], atlas[:3], atlas[3:5] = 1, 1, 2
    for ending, sealed in ((".nii.gz", True), (".nii", False)):
        names = [f"bold{ending}", f"mask{ending}"]
        kept = {"sealed": tuple(names)} if sealed else {"redundant": ("samples",), "measured": tuple(names)}
        folder = make.case("nifti", names[0], {"mask": names[1]}, "nii", weight=3, **kept)
        for values, name in ((run, names[0]), (mask if sealed else atlas, names[1])):
            image = nibabel.Nifti1Image(values, affine)
            if values.ndim == 4:
                image.header.set_zooms((2, 2, 2, TR))
            image.header.set_xyzt_units("mm", "sec")
            nibabel.save(image, folder / name)
    values = rng.normal(1000, 30, (40, 25)).astype(np.float32)
    folder = make.case("gifti", "hemi-L.func.gii", {}, "xml", sealed=(), redundant=("values",), weight=3)
    meta = gifti.GiftiMetaData({"TimeStep": str(TR)})
    arrays = [gifti.GiftiDataArray(v, "NIFTI_INTENT_TIME_SERIES", datatype="float32", meta=meta) for v in values.T]
    nibabel.save(gifti.GiftiImage(darrays=arrays), folder / "hemi-L.func.gii")
    folder = make.case(
        "cifti", "a.dtseries.nii", {}, "xml", redundant=("channels", "samples"), measured=("a.dtseries.nii",), weight=3
    )
    space = cifti2.BrainModelAxis.from_mask(np.ones(40), "CORTEX_LEFT")
    header = cifti2.Cifti2Header.from_axes((cifti2.SeriesAxis(0, TR, 25), space))
    nibabel.save(cifti2.Cifti2Image(values.T, header), folder / "a.dtseries.nii")


def _shards(make: Maker) -> None:
    rng = np.random.default_rng(4)
    card = {"licence": "CC0-1.0", "citation": "nobody"}
    paths = []
    for format, dtype in (("shard", "float32"), ("shard", "int16"), ("spikes shard", "float32")):
        folder = make.case(format, "sub-a.h5", None, "shard", sealed=("sub-a.h5",), weight=5)
        path = write_shard(folder / "sub-a.h5", [_recording(rng, s, format == "shard") for s in "12"], card, "r", dtype)
        split = {f"fuzz/a/{s}/": side for s, side in (("1", "train"), ("2", "test"))}
        (folder / "split.json").write_text(json.dumps({"rule": {}, "seed": 0, "recordings": split}))
        paths.append(path)
    folder = make.case("code shard", "sub-a.h5", None, "codes", sealed=("sub-a.h5",), weight=5)
    stored = open_shards(paths[0]).recordings
    starts = np.arange(0, 960, 32)
    coded = [Coded(s, starts, rng.integers(0, 16, (30, 3, 4, 2)).astype(np.uint16)) for s in stored]
    write_codes(folder / "sub-a.h5", coded, Tokenizer("tok", "0" * 64, 32, 16, 1.0))


def _recording(rng: np.random.Generator, session: str, sampled: bool) -> Recording:
    names = ["Fz", "Cz", "Pz", "Oz"]
    made = Recording(
        dataset="fuzz", subject="a", session=session, modality="eeg" if sampled else "spikes", device="cap",
        channels=Channels.make(names, "eeg" if sampled else "neuron", rng.normal(0, 0.05, (4, 3))),
        sfreq=64.0 if sampled else None, signal=rng.normal(0, 1e-5, (4, 1000)) if sampled else None,
        segments=np.array([[0, 500], [520, 1000]]) if sampled else None, duration=15.625,
        spike_time=None if sampled else np.sort(rng.uniform(0, 15, 600)),
        spike_neuron=None if sampled else rng.integers(0, 4, 600),
        events=Events(np.array([0.0, 9.0]), np.array([7.0, 1.0]), ["rest", "task"], ["", "film"]),
        aligned={"hand": Series(rng.normal(size=(100, 2)), 10.0, "m")}, truth={"connectivity": rng.normal(size=(4, 4))},
        channel_log=[ChannelNote(n, n, "kept") for n in names],
        normaliser=Normaliser(np.zeros(4), np.ones(4), "median", "itself") if sampled else None, reach_s=0.5,
    )  # fmt: skip
    if sampled:
        made.signal[:, 128:192] = 0.0  # a constant frame, whose hash is zero
    made.note("band", highpass_hz=0.5)
    return made
