"""Files made to do harm: none makes its reader open another file, run code, fill the memory or go round for ever."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import yaml
from scipy.io import savemat

from brainfm import config
from brainfm.datasets import download
from brainfm.hdf import HostileFile, open_hdf5
from brainfm.readers import detect
from brainfm.readers.request import Request
from brainfm.shards.codes import open_codes
from brainfm.shards.read import open_shards

sys.path.insert(0, str(Path(__file__).parent))
import fuzz
import fuzz_files

FMRI = Request("toy", "01", modality="fmri", sfreq_hz=0.5)
SPIKES = Request("toy", "01", modality="spikes", sfreq_hz=100.0)
EEG = Request("toy", "01")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small whole file of every kind that is HDF5."""
    root = tmp_path_factory.mktemp("whole")
    make = fuzz_files.Maker(root / "shards")
    fuzz_files._shards(make)
    for case, name in zip(make.cases, ("float", "int16", "spikes", "codes"), strict=True):
        case.folder.rename(root / name)
    fuzz_files._nwb(pytest.importorskip("pynwb"), root / "units.nwb", np.random.default_rng(0), units=True)
    rng = np.random.default_rng(1)
    with h5py.File(root / "roi.h5", "w") as file:
        file["roi"] = rng.normal(size=(50, 4))
    with h5py.File(root / "spikes.h5", "w") as file:
        file["spike_times"], file["neuron"] = np.sort(rng.uniform(0, 9, 60)), rng.integers(0, 3, 60)
    for name in ("cells.mat", "a.set"):
        with h5py.File(root / name, "w", userblock_size=512) as file:
            cells = [file.create_dataset(f"#refs#/{i}", data=np.sort(rng.uniform(0, 9, (1, 20)))) for i in range(3)]
            file["spikes"] = np.array([[c.ref for c in cells]], h5py.ref_dtype)
    return root


#: File → how it is read, and the object in it that the attacks replace.
HDF5 = {
    "float/sub-a.h5": (lambda p: _windows(p), "recordings/1_/signal"),
    "int16/sub-a.h5": (lambda p: _windows(p), "header"),
    "codes/sub-a.h5": (lambda p: [r.all_codes() for r in open_codes(p).recordings], "recordings/2_/codes"),
    "units.nwb": (lambda p: detect.read(p, EEG).spike_time, "units/spike_times"),
    "roi.h5": (lambda p: detect.read(p, FMRI).signal, "roi"),
    "spikes.h5": (lambda p: detect.read(p, SPIKES).spike_time, "spike_times"),
    "cells.mat": (lambda p: detect.read(p, SPIKES).spike_time, "#refs#/1"),
    "a.set": (lambda p: detect.read(p, EEG).signal[:, :], "spikes"),
}


def _windows(path: Path) -> list[np.ndarray]:
    return [r.signal(0, r.samples) for r in open_shards(path).recordings]


def copy(whole: Path, name: str, tmp_path: Path) -> Path:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((whole / name).read_bytes())
    return path


def link_out(file: h5py.File, name: str, secret: Path) -> None:
    del file[name]
    file[name] = h5py.ExternalLink(str(secret), "/secret")


def link_its_group_out(file: h5py.File, name: str, secret: Path) -> None:
    if "/" in name:
        del file[name.rsplit("/", 1)[0]]
        file[name.rsplit("/", 1)[0]] = h5py.ExternalLink(str(secret), "/")
    else:
        link_out(file, name, secret)


def store_outside(file: h5py.File, name: str, secret: Path) -> None:
    shape, dtype = file[name].shape, file[name].dtype
    if dtype == h5py.ref_dtype:
        shape, dtype = (3, 1), np.dtype("f8")
    del file[name]
    file.create_dataset(name, shape, dtype, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def map_outside(file: h5py.File, name: str, secret: Path) -> None:
    shape, dtype = file[name].shape, file[name].dtype
    if dtype == h5py.ref_dtype:
        shape, dtype = (3, 1), np.dtype("f8")
    del file[name]
    layout = h5py.VirtualLayout(shape, dtype)
    layout[...] = h5py.VirtualSource(str(secret), "secret", shape)
    file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize("attack", [link_out, link_its_group_out, store_outside, map_outside])
@pytest.mark.parametrize("name", HDF5)
def test_hdf5_never_leads_out_of_the_file(whole: Path, tmp_path: Path, name: str, attack: Callable) -> None:
    read, item = HDF5[name]
    path, secret = copy(whole, name, tmp_path), tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["secret"] = np.full(4000, 42.0)
    with h5py.File(path, "r+") as file:
        attack(file, item, secret)
    if name.startswith(
        ("float", "codes")
    ):  # bytes of this file are read where its header says, and HDF5 is not asked for them
        try:
            assert not any((values == 42).all() for values in read(path))
        except ValueError as error:
            assert path.name in str(error)  # noqa: PT017
        else:
            opened = open_codes if name.startswith("codes") else open_shards
            same = [np.array_equal(x, y) for x, y in zip(read(path), read(whole / name), strict=True)]
            assert same == [r.is_whole() for r in opened(path).recordings]
        return
    with pytest.raises(ValueError, match=path.name.replace(".", r"\.")) as caught:
        read(path)
    assert "42.0" not in str(caught.value)
    if name != "int16/sub-a.h5":
        with pytest.raises(HostileFile):
            open_hdf5(path)


@pytest.mark.parametrize("name", HDF5)
@pytest.mark.parametrize("circle", ["soft", "hard", "mutual"])
def test_circles_in_hdf5_end(whole: Path, tmp_path: Path, name: str, circle: str) -> None:
    read, _ = HDF5[name]
    path = copy(whole, name, tmp_path)
    with h5py.File(path, "r+") as file:
        group = file["units"] if name == "units.nwb" else file
        if circle == "soft":
            group["loop"] = h5py.SoftLink(f"{group.name.rstrip('/')}/loop")
        elif circle == "hard":
            group["loop"] = file["/"]
        else:
            file["one/two"] = file.create_group("two")
            file["two/one"] = file["one"]
    open_hdf5(path).close()
    try:
        assert len(read(path))
    except ValueError as error:
        assert path.name in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["a.h5", "a.mat"])
def test_groups_that_stand_in_many_places_are_not_multiplied(tmp_path: Path, name: str) -> None:
    """Eight levels with ten links each to the next are a few kilobytes, and a hundred million places."""
    with h5py.File(tmp_path / name, "w") as file:
        below = file.create_dataset("#refs#/leaf", data=np.arange(9.0))
        for level in range(8):
            group = file.create_group(f"#refs#/{level}")
            for i in range(10):
                group[f"{i}"] = below
            below = group
        file["spikes"] = below
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        detect.read(tmp_path / name, SPIKES)


def test_cells_that_are_all_the_same_numbers_are_read_once(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.mat", "w") as file:
        cell = file.create_dataset("#refs#/0", data=np.linspace(0, 9.5, 1_000_000)[None])
        file["spikes"] = np.array([[cell.ref] * 400], h5py.ref_dtype)
    from brainfm.readers.variables import variables

    before = fuzz._peak(reset=True)
    found = variables(tmp_path / "a.mat")["spikes"]
    assert found.shape == (400, 1)
    assert fuzz._peak() - before < 200  # 400 copies would take 3.2 GB


def deep_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        group = file
        for _ in range(3000):
            group = group.create_group("g")


def test_hdf5_groups_thousands_deep(tmp_path: Path) -> None:
    deep_hdf5(tmp_path / "a.h5")
    for request in (FMRI, SPIKES):
        with pytest.raises(ValueError, match=r"a\.h5"):
            detect.read(tmp_path / "a.h5", request)
    with pytest.raises(ValueError, match=r"a\.h5"):
        open_shards(tmp_path / "a.h5")


# headers that announce more than there is


def edf(path: Path) -> None:
    head = b"0".ljust(184) + b"512".ljust(8) + b"".ljust(44) + b"21474836".ljust(8) + b"1".ljust(8) + b"1   "
    signal = b"EEG Fz".ljust(16) + b"".ljust(80) + b"uV".ljust(8) + b"-100".ljust(8) + b"100".ljust(8)
    path.write_bytes(head + signal + b"-32768  32767   " + b"".ljust(80) + b"9999999".ljust(8) + b"".ljust(32 + 2000))


def npy(path: Path) -> None:
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    text = text.ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(800)
    if path.suffix == ".npy":
        path.write_bytes(data)
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("roi.npy", data)


def nifti(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4)), path.parent / "mask.nii")
    image = nibabel.Nifti1Image(np.ones((3, 3, 3, 4), np.float32), np.eye(4))
    data = bytearray(image.to_bytes())
    data[40:50] = struct.pack("<5h", 4, 32767, 32767, 32767, 32767)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def nifti_extension(path: Path) -> None:
    nifti(path)
    data = bytearray(nibabel.Nifti1Image(np.ones((3, 3, 3, 4), np.float32), np.eye(4)).to_bytes())
    data[108:112] = struct.pack("<f", 4e9)
    path.write_bytes(data[:348] + b"\1\0\0\0" + struct.pack("<ii", 2**31 - 16, 32) + data[352:])


def hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("roi", (10**6, 10**6), "f8")


def hdf5_chunks(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("roi", (2, 4 * 10**6), "f8", chunks=(1, 1))
        file["roi"][0, 0] = 1


def mat(path: Path) -> None:
    savemat(path, {"roi": np.ones((20, 4))})
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<ii", 20, 4))
    data[at : at + 8] = struct.pack("<ii", 2**30, 2**9)
    path.write_bytes(data)


def gifti(path: Path) -> None:
    array = nibabel.gifti.GiftiDataArray(np.ones((30, 4), np.float32), "NIFTI_INTENT_TIME_SERIES", "float32")
    nibabel.save(nibabel.gifti.GiftiImage(darrays=[array]), path)
    path.write_bytes(path.read_bytes().replace(b'Dim0="30"', b'Dim0="3000000000"'))


LIES = {
    "a.edf": (edf, EEG), "roi.npy": (npy, FMRI), "roi.npz": (npy, FMRI), "spikes.npy": (npy, SPIKES),
    "spikes.npz": (npy, SPIKES), "a.nii": (nifti, EEG), "b.nii": (nifti_extension, EEG), "a.nii.gz": (nifti, EEG),
    "c.h5": (hdf5, FMRI), "d.h5": (hdf5_chunks, FMRI), "e.h5": (hdf5, SPIKES), "f.h5": (hdf5_chunks, SPIKES),
    "roi.mat": (mat, FMRI), "spikes.mat": (mat, SPIKES), "a.func.gii": (gifti, Request("toy", "01", sfreq_hz=0.5)),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_announces_too_much_takes_no_memory(tmp_path: Path, name: str) -> None:
    write, request = LIES[name]
    write(tmp_path / name)
    asked = Request("toy", "01", mask=tmp_path / "mask.nii", sfreq_hz=0.5) if ".nii" in name else request
    before = fuzz._peak(reset=True)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as caught:
        detect.read(tmp_path / name, asked)
    assert fuzz._peak() - before < 200
    assert not isinstance(caught.value.__cause__, MemoryError)


# pickles


class Trap:
    """An object whose pickle makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("roi.npy", FMRI), ("roi.npz", FMRI), ("spikes.npy", SPIKES), ("spikes.npz", SPIKES),
        ("plane/F.npy", Request("toy", "01", sfreq_hz=10.0)), ("phy/spike_times.npy", SPIKES),
    ],
)  # fmt: skip
def test_a_pickle_is_never_opened(tmp_path: Path, name: str, request_: Request) -> None:
    trap = np.full((4, 30), Trap(tmp_path / "sprung"), object)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    (np.savez if path.suffix == ".npz" else np.save)(path, trap)
    asked = path
    if name.startswith("plane"):
        np.save(path.parent / "Fneu.npy", np.ones((4, 30)))
        np.save(path.parent / "ops.npy", np.array(Trap(tmp_path / "sprung")))
        asked = path.parent
    if name.startswith("phy"):
        np.save(path.parent / "spike_clusters.npy", np.ones(120, int))
        asked = path.parent
    with pytest.raises(ValueError, match=path.name.replace(".", r"\.")):
        detect.read(asked, request_)
    assert not (tmp_path / "sprung").exists()
    np.load(path, allow_pickle=True)["arr_0" if path.suffix == ".npz" else 0]  # the trap does work
    assert (tmp_path / "sprung").exists()


# text that is more than it seems


def test_json_sidecars_nested_thousands_deep(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.random.default_rng(0).normal(1000, 9, (3, 3, 3, 8)).astype(np.float32), np.eye(4))
    nibabel.save(image, tmp_path / "sub-01_bold.nii")
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4)), tmp_path / "mask.nii")
    (tmp_path / "sub-01_bold.json").write_text('{"RepetitionTime": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"sub-01_bold\.json"):
        detect.read(tmp_path / "sub-01_bold.nii", Request("toy", "01", mask=tmp_path / "mask.nii"))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"recordings": {"fuzz/a/1/": "tset"}}', "[]", "\xff", "", "{}"])
def test_a_split_that_is_none(whole: Path, tmp_path: Path, text: str) -> None:
    path = copy(whole, "float/sub-a.h5", tmp_path)
    (path.parent / "split.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"split\.json"):
        open_shards(path)


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system ['touch {}']", "!!python/object/new:open ['{}', 'w']", "!!python/name:os.system"],
)
def test_yaml_tags_are_refused_and_run_nothing(tmp_path: Path, tag: str) -> None:
    text = f"steps: {tag}\n".format(tmp_path / "sprung")
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(config.ConfigError, match=r"a\.yaml is not plain YAML"):
        config.read(tmp_path / "a.yaml")
    assert not (tmp_path / "sprung").exists()
    if "apply" in tag:
        yaml.unsafe_load(text)  # the trap does work
        assert (tmp_path / "sprung").exists()


# archives and listed files that climb


def test_a_listed_file_that_climbs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "climb.edf").write_bytes(b"x")
    sums = {"../climb.edf": hashlib.sha256(b"x").hexdigest()}
    with pytest.raises(ValueError, match="outside"):
        download.files("https://example.invalid", sums, tmp_path / "deep/toy", tmp_path / "local")
    assert not (tmp_path / "deep/climb.edf").exists()


def test_a_symlink_in_a_wheel_stays_the_text_that_it_is(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels/toy_data-1.0-py3-none-any.whl", "w") as archive:
        link = zipfile.ZipInfo("toy")
        link.create_system, link.external_attr = 3, (0o120777 << 16)
        archive.writestr(link, str(tmp_path / "out"))
        archive.writestr("toy/a.txt", b"evil")
    (tmp_path / "out").mkdir()
    sums = {"toy": hashlib.sha256(str(tmp_path / "out").encode()).hexdigest()}
    download.wheel("toy-data", "1.0", [], sums, tmp_path / "root")
    assert not (tmp_path / "root/toy").is_symlink()
    assert (tmp_path / "root/toy").read_text() == str(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_manifest_that_names_files_outside_is_not_believed(tmp_path: Path) -> None:
    """Only the pinned names are fetched, whatever a manifest beside them says."""
    (tmp_path / "toy").mkdir()
    manifest = {"subset": "1 of 1 files", "files": {"../../etc/passwd": {"sha256": "0" * 64, "size": 1}}}
    (tmp_path / "toy/MANIFEST.json").write_text(json.dumps(manifest))
    (tmp_path / "a.edf").write_bytes(b"x")
    download.files("https://example.invalid", {"a.edf": hashlib.sha256(b"x").hexdigest()}, tmp_path / "toy", tmp_path)
    assert download.listed(tmp_path / "toy") == ["a.edf"]
