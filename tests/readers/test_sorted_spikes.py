"""Sorted spikes: each layout from a file written by numpy, scipy or h5py, two real files, and what must be refused."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy import sparse
from scipy.io import savemat

from brainfm.readers import sorted_spikes
from brainfm.readers.request import Request
from brainfm.recording import Recording

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
TRAINS = [np.array([0.5, 1.25, 3.0]), np.array([0.75]), np.array([0.1, 2.9])]


def read(path: Path, **more: Any) -> Recording:
    return sorted_spikes.read(path, Request("d", "s", **more))


def cells(trains: list) -> np.ndarray:
    out = np.empty(len(trains), object)
    out[:] = trains
    return out


def of(found: Recording) -> dict[str, list[float]]:
    time, neuron = found.spike_time, found.spike_neuron
    assert time is not None
    return {name: time[neuron == i].round(9).tolist() for i, name in enumerate(found.channels.name)}


def expected(*names: str) -> dict[str, list[float]]:
    return {name: train.tolist() for name, train in zip(names, TRAINS, strict=True)}


VECTORS = {
    "spike_times": np.concatenate(TRAINS),
    "neuron": np.repeat([4, 7, 9], [len(t) for t in TRAINS]),
}


def write_cells_v73(path: Path, inside: str = "") -> Path:
    """A cell array as MATLAB 7.3 lays it out: references to datasets of reversed axes."""
    with h5py.File(path, "w", userblock_size=512) as file:
        refs = np.empty((1, 3), h5py.ref_dtype)
        for i, train in enumerate(TRAINS):
            refs[0, i] = file.create_dataset(f"#refs#/{i}", data=train[None]).ref
        cell = file.create_dataset(inside + "spikes", data=refs, dtype=h5py.ref_dtype)
        cell.attrs["MATLAB_class"] = np.bytes_("cell")
    return path


def test_vectors_of_times_and_neurons(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **VECTORS)
    savemat(tmp_path / "b.mat", {"data": {"ts": VECTORS["spike_times"], "unit_id": VECTORS["neuron"]}})
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.update(VECTORS)
    rows = zip(*VECTORS.values(), strict=True)
    (tmp_path / "d.csv").write_text("time,cluster\n" + "".join(f"{t},{n}\n" for t, n in rows))
    for name in ("a.npz", "b.mat", "c.h5", "d.csv"):
        found = read(tmp_path / name)
        assert of(found) == expected("4", "7", "9"), name
        assert np.all(np.diff(found.spike_time) >= 0)
        assert found.duration == pytest.approx(3.0, abs=2e-3)
        assert list(found.provenance["files"]) == [name]
        assert found.modality == "spikes"
    renamed = read(tmp_path / "a.npz", names=("x", "y", "z"))
    assert of(renamed) == expected("x", "y", "z")
    note = renamed.channel_log[0]
    assert (note.found, note.name, note.fate) == ("4", "x", "renamed")
    json.dumps(renamed.provenance)


def test_a_cell_for_each_neuron(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"spikes": cells(TRAINS)})
    savemat(tmp_path / "b.mat", {"session": {"units": cells([{"times": t, "rate": 3.0} for t in TRAINS])}})
    write_cells_v73(tmp_path / "c.mat")
    write_cells_v73(tmp_path / "d.mat", "session/")
    for name in "abcd":
        assert of(read(tmp_path / f"{name}.mat")) == expected("1", "2", "3"), name


def test_a_silent_neuron_is_dropped_and_logged(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"spikes": cells([TRAINS[0], np.zeros(0), TRAINS[2]])})
    found = read(tmp_path / "a.mat")
    assert found.channels.name == ["1", "3"]
    assert [n.fate for n in found.channel_log] == ["kept", "dropped", "kept"]


def test_cells_that_may_be_trials_are_refused(tmp_path: Path) -> None:
    grid = np.empty((2, 3), object)
    for i in np.ndindex(2, 3):
        grid[i] = TRAINS[0]
    savemat(tmp_path / "a.mat", {"spikes": grid})
    savemat(tmp_path / "b.mat", {"spikes": cells([cells(TRAINS), cells(TRAINS)])})
    for name in "ab":
        with pytest.raises(ValueError, match=rf"{name}\.mat: 0 variables look like sorted spikes"):
            read(tmp_path / f"{name}.mat")


@pytest.mark.parametrize("turned", [False, True])
def test_counts_become_spikes_inside_their_bins(tmp_path: Path, turned: bool) -> None:
    counts = np.random.default_rng(0).poisson(0.7, (40, 3))
    np.save(tmp_path / "a.npy", counts.T if turned else counts)
    found = read(tmp_path / "a.npy", sfreq_hz=20.0)
    time, neuron = found.spike_time, found.spike_neuron
    again = np.stack([np.histogram(time[neuron == i], np.arange(41) / 20)[0] for i in range(3)], axis=1)
    np.testing.assert_array_equal(again, counts)
    assert found.duration == 2.0
    assert found.provenance["steps"][0]["step"] == "binned"
    for i in range(3):
        assert np.diff(time[neuron == i]).min() > 0
    np.testing.assert_array_equal(read(tmp_path / "a.npy", sfreq_hz=20.0).spike_time, time)


def test_two_spikes_of_a_bin_lie_at_a_quarter_and_three_quarters(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[0, 0], [2, 1], [0, 0], [0, 0]]))
    found = read(tmp_path / "a.npy", sfreq_hz=10.0)
    np.testing.assert_allclose(found.spike_time, [0.125, 0.15, 0.175])


def test_bins_are_told_from_neurons_by_names_or_times(tmp_path: Path) -> None:
    counts = np.ones((3, 4), int)
    np.save(tmp_path / "a.npy", counts)
    with pytest.raises(ValueError, match=r"cannot tell bins from neurons in a \(3, 4\); give the neurons' names"):
        read(tmp_path / "a.npy", sfreq_hz=10.0)
    assert len(read(tmp_path / "a.npy", sfreq_hz=10.0, names=("x", "y", "z")).channels) == 3
    np.savez(tmp_path / "b.npz", spikes=counts, time=np.array([0.0, 0.5, 1.0]), pos=np.arange(3.0))
    found = read(tmp_path / "b.npz")
    assert len(found.channels) == 4
    assert found.duration == 1.5
    np.testing.assert_array_equal(found.aligned["position"].values[:, 0], [0, 1, 2])
    assert found.aligned["position"].sfreq == 2.0


def test_counts_without_a_rate_or_with_a_wrong_one_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((50, 2), 9))
    with pytest.raises(ValueError, match="bins per second with sfreq_hz"):
        read(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"9 in one bin of 0\.001 s"):
        read(tmp_path / "a.npy", sfreq_hz=1000.0)


def phy(
    folder: Path, *, params: str | None = "sample_rate = 30000.\n", table: str | None = "cluster_group.tsv"
) -> Path:
    folder.mkdir()
    np.save(folder / "spike_times.npy", np.round(VECTORS["spike_times"] * 30000).astype(np.uint64)[:, None])
    np.save(folder / "spike_clusters.npy", VECTORS["neuron"].astype(np.int32))
    if params is not None:
        (folder / "params.py").write_text("import os\nos._exit(3)\ndat_path = 'x'\n" + params)
    if table == "cluster_group.tsv":
        (folder / table).write_text("cluster_id\tgroup\n4\tgood\n7\tnoise\n9\tmua\n")
    elif table:
        (folder / table).write_text("cluster_id\tKSLabel\tgroup\n4\tgood\t\n7\tmua\tgood\n9\tgood\tmua\n")
    return folder


def test_a_folder_of_phy(tmp_path: Path) -> None:
    found = read(phy(tmp_path / "a"))
    assert of(found) == {"4": TRAINS[0].tolist()}
    assert {n.found: n.detail for n in found.channel_log if n.fate == "dropped"} == {
        "7": "quality group noise", "9": "quality group mua",
    }  # fmt: skip
    assert set(found.provenance["files"]) == {"spike_times.npy", "spike_clusters.npy", "params.py", "cluster_group.tsv"}
    both = sorted_spikes.read(tmp_path / "a", Request("d", "s"), groups=("good", "mua"))
    assert both.channels.name == ["4", "9"]
    assert of(read(phy(tmp_path / "b", table=None) / "spike_times.npy")) == expected("4", "7", "9")
    assert read(phy(tmp_path / "c", table="cluster_info.tsv")).channels.name == ["4", "7"]


def test_sample_numbers_need_a_rate(tmp_path: Path) -> None:
    folder = phy(tmp_path / "a", params=None, table=None)
    with pytest.raises(ValueError, match="whole numbers up to 90000, so sample numbers; say their samples per second"):
        read(folder)
    assert of(read(folder, sfreq_hz=30000.0)) == expected("4", "7", "9")
    assert read(folder, unit="ms").spike_time[-1] == 90.0
    with pytest.raises(ValueError, match="unit of spike times is 'uV'; expected one of s, ms, us"):
        read(folder, unit="uV")
    savemat(tmp_path / "b.mat", {"spikes": cells([np.arange(20.0) * 300])})  # MATLAB's whole numbers are doubles
    with pytest.raises(ValueError, match="sample numbers"):
        read(tmp_path / "b.mat")


def test_a_phy_table_without_the_group_or_a_folder_without_clusters(tmp_path: Path) -> None:
    folder = phy(tmp_path / "a")
    (folder / "cluster_group.tsv").write_text("cluster_id\tgroup\n4\tmua\n")
    with pytest.raises(ValueError, match=r"no cluster is good; it has \['mua'\]"):
        read(folder)
    (folder / "cluster_group.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match=r"has columns \['a', 'b'\]; expected cluster_id and group"):
        read(folder)
    (folder / "spike_clusters.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no spike_times\.npy with spike_clusters\.npy"):
        read(folder)


def test_unsorted_vectors_are_sorted_and_noted(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", times=np.array([2.5, 0.5, 1.5]), units=np.array([0, 0, 1]))
    found = read(tmp_path / "a.npz")
    assert of(found) == {"0": [0.5, 2.5], "1": [1.5]}
    assert {"step": "sort spikes", "neurons": 1} in found.provenance["steps"]


def test_a_clock_that_starts_elsewhere_is_moved(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", times=np.array([1000.25, 1000.5, 1003.5]), units=np.array([0, 0, 1]))
    found = read(tmp_path / "a.npz")
    np.testing.assert_allclose(found.spike_time, [0.25, 0.5, 3.5])
    assert found.provenance["steps"][-1]["origin_s"] == 1000.0


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"spike_times": [0.5, np.nan], "neuron": [0, 0]}, "not finite"),
        ({"spike_times": [-0.5, 1.0], "neuron": [0, 0]}, "1 spike times are negative, down to -0.5 s"),
        ({"spike_times": [0.5, 1e7], "neuron": [0, 0]}, "more than two weeks"),
        ({"spike_times": [0.5, 1.0], "neuron": [0, 0.5]}, "neuron numbers are not whole"),
        ({"spike_times": [0.5, 1.0], "neuron": [0, 0, 1]}, "0 variables look like sorted spikes"),
        ({"spike_times": [0.5, 1.0], "neuron": [0, 1], "spikes_binned": [[1, 0], [0, 1]]}, "2 variables look like"),
        ({"lfp": [[0.5, 0.1], [0.2, 0.3]]}, r"it holds lfp \(2, 2\) float64"),
    ],
)
def test_what_cannot_be_spikes_is_refused(tmp_path: Path, arrays: dict, says: str) -> None:
    np.savez(tmp_path / "a.npz", **{k: np.array(v) for k, v in arrays.items()})
    with pytest.raises(ValueError, match=rf"a\.npz.*{says}"):
        read(tmp_path / "a.npz")


def test_a_variable_can_be_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **VECTORS, spikes_binned=np.ones((9, 2), int))
    assert len(read(tmp_path / "a.npz", variable="spike_times").channels) == 3
    assert len(read(tmp_path / "a.npz", variable="spikes_binned", sfreq_hz=10.0).channels) == 2
    with pytest.raises(ValueError, match="no variable 'x'; it holds spike_times"):
        read(tmp_path / "a.npz", variable="x")


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", spikes=cells(TRAINS))
    np.save(tmp_path / "b.npy", cells(TRAINS))
    for name in ("a.npz", "b.npy"):
        with pytest.raises(ValueError, match=rf"{name} holds Python objects .*np\.savez\(path, spike_times="):
            read(tmp_path / name)


@pytest.mark.parametrize("kind", ["npz", "mat", "h5", "npy"])
def test_damaged_files_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez_compressed(path, **VECTORS)
    elif kind == "mat":
        savemat(path, {"spikes": cells(TRAINS)}, do_compression=True)
    elif kind == "npy":
        np.save(path, np.ones((50, 2), np.uint8))
    else:
        write_cells_v73(path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 0.98):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=rf"a\.{kind}"):
            read(path, sfreq_hz=10.0)
    said = []
    for _ in range(60):
        mutant = bytearray(whole)
        for place in rng.integers(0, len(mutant), 3):
            mutant[place] = rng.integers(256)
        path.write_bytes(mutant)
        try:
            found = read(path, sfreq_hz=10.0)
        except (ValueError, OSError) as error:
            said.append(str(error))
        else:
            assert len(found.spike_time)
    assert all(f"a.{kind}" in message for message in said)


def test_every_damaged_byte_of_a_matlab_file_ends_in_an_error_or_spikes(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"spikes": cells(TRAINS)})
    whole, refused = path.read_bytes(), 0
    for place in range(128, len(whole)):
        for value in (0, 5, 255):
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                read(path, sfreq_hz=10.0)
            except ValueError:
                refused += 1
    assert refused > 200


def test_other_matlab_variables_do_not_disturb(tmp_path: Path) -> None:
    counts = sparse.csc_array(np.random.default_rng(0).poisson(0.3, (60, 4)))
    savemat(tmp_path / "a.mat", {"spike_counts": counts, "who": "rat", "none": cells([]), "z": np.ones(2) * 1j})
    found = read(tmp_path / "a.mat", sfreq_hz=20.0)
    assert len(found.spike_time) == counts.sum()


def test_a_header_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.ones((50, 2), np.uint8))
    path.write_bytes(path.read_bytes().replace(b"(50, 2), }        ", b"(5000000000, 2), }", 1))
    with pytest.raises(ValueError, match=r"a\.npy cannot be read"):
        read(path, sfreq_hz=10.0)


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"x\.mat does not exist"):
        read(tmp_path / "x.mat")
    (tmp_path / "a.txt").write_text("1 2 3")
    with pytest.raises(ValueError, match=r"its name ends in '\.txt'"):
        read(tmp_path / "a.txt")


def test_the_macaque_of_stevenson_2011() -> None:
    path = DATA / "macaque-m1/m1_stevenson_2011.mat"
    if not path.is_file():
        pytest.skip("the macaque's recording is not in shared/data")
    found = read(path)
    assert (len(found.channels), found.duration) == (171, pytest.approx(15536 / 20))
    assert found.aligned["velocity"].values.shape == found.aligned["position"].values.shape == (15536, 3)
    assert found.aligned["velocity"].sfreq == 20.0
    from scipy.io import loadmat

    counts = loadmat(path)["spikes"]
    np.testing.assert_array_equal(np.bincount(found.spike_neuron), counts.sum(1, dtype=int))
    again = np.histogram(found.spike_time[found.spike_neuron == 5], np.arange(15537) / 20)[0]
    np.testing.assert_array_equal(again, counts[5])


def test_the_rat_on_the_linear_track() -> None:
    path = DATA / "rat-linear-track/spikes.mat"
    if not path.is_file():
        pytest.skip("the rat's recording is not in shared/data")
    found = read(path)
    assert (len(found.channels), len(found.spike_time)) == (31, 28829)
    track = found.aligned["position"]
    assert (track.sfreq, track.unit, track.values.shape[1]) == (60.0, "px", 2)
    assert track.start == pytest.approx(0.0317, abs=1e-4)
    ends = track.start + len(track.values) / track.sfreq
    assert ends == pytest.approx(6379.4556 - 4397, abs=0.05)
    assert set(found.provenance["files"]) == {"spikes.mat", "trajectory.videoPositionTracking"}
    # Cells of the hippocampus fire in places: where one fires says more of the animal's place than any moment does.
    x = np.nan_to_num(track.values[:, 0])
    busiest = np.bincount(found.spike_neuron).argmax()
    when = ((found.spike_time[found.spike_neuron == busiest] - track.start) * 60).astype(int).clip(0, len(x) - 1)
    assert np.abs(x[when].mean() - x.mean()) > 5


def test_a_damaged_track_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **VECTORS)
    head = (
        b"<Start settings>\nclockrate: 30000\npixel scale: 2 pix/cm\nFields: <time uint32><xloc uint16><yloc uint16>\n"
    )
    rows = np.zeros(4, [("t", "<u4"), ("x", "<u2"), ("y", "<u2")])
    rows["t"], rows["x"] = np.arange(4) * 1000, [100, 102, 104, 106]
    track = tmp_path / "t.videoPositionTracking"
    track.write_bytes(head + b"<End settings>\n" + rows.tobytes())
    series = read(tmp_path / "a.npz").aligned["position"]
    assert (series.unit, series.sfreq) == ("m", 30.0)
    np.testing.assert_allclose(series.values[:, 0], [0.5, 0.51, 0.52, 0.53])
    track.write_bytes(head + b"<End settings>\n" + rows.tobytes()[:-3])
    with pytest.raises(ValueError, match=r"t\.videoPositionTracking: 29 bytes are no whole records of 8"):
        read(tmp_path / "a.npz")
    track.write_bytes(head)
    with pytest.raises(ValueError, match="has no Trodes header"):
        read(tmp_path / "a.npz")
