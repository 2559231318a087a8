"""A plane of suite2p: cells alone, neuropil taken off, and the pickles beside it never opened."""

from pathlib import Path

import numpy as np
import pytest

from brainfm.readers import suite2p
from brainfm.readers.request import Request

SFREQ = 10.0
REQUEST = Request("d", "s", sfreq_hz=SFREQ)


def traces() -> np.ndarray:
    """dF/F `(neuron, time)`: transients of height 1 now and then, 0 between."""
    out = np.zeros((4, 1500))
    for i in range(4):
        out[i, 50 + 20 * i :: 150] = 1.0
    return out


def plane(folder: Path, iscell: bool = True) -> Path:
    folder.mkdir(parents=True)
    neuropil = 50 + np.random.default_rng(0).random((4, 1500)) * 40
    own = 200 * (1 + traces())
    own[3] -= 300
    np.save(folder / "F.npy", (own + 0.7 * neuropil).astype(np.float64))
    np.save(folder / "Fneu.npy", neuropil)
    np.save(folder / "spks.npy", np.arange(6000, dtype=np.float32).reshape(4, 1500))
    if iscell:
        np.save(folder / "iscell.npy", np.array([[1, 0.9], [0, 0.1], [1, 0.8], [1, 0.7]]))
    for name in ("ops.npy", "stat.npy"):
        (folder / name).write_bytes(b"a pickle that would do harm")
    return folder


def test_cells_as_df_over_f(tmp_path: Path) -> None:
    found = suite2p.read(plane(tmp_path / "suite2p/plane0"), REQUEST)
    assert found.modality == "calcium"
    assert (found.channels.name, found.channels.unit) == (["roi0000", "roi0002"], ["1", "1"])
    np.testing.assert_allclose(found.signal, traces()[[0, 2]], atol=1e-5)
    assert {n.found: n.detail for n in found.channel_log if n.fate == "dropped"} == {
        "roi0001": "not a cell", "roi0003": "baseline not above 0 or not finite",
    }  # fmt: skip
    series = found.aligned["deconvolved"]
    np.testing.assert_array_equal(series.values, np.arange(6000).reshape(4, 1500)[[0, 2]].T)
    assert set(found.provenance["files"]) == {"F.npy", "Fneu.npy", "spks.npy", "iscell.npy"}
    again = suite2p.read(tmp_path / "suite2p", REQUEST)
    np.testing.assert_array_equal(again.signal, found.signal)


def test_without_iscell_all_rois_are_kept(tmp_path: Path) -> None:
    found = suite2p.read(plane(tmp_path / "plane0", iscell=False), REQUEST)
    assert len(found.channels) == 3
    assert found.provenance["steps"][0]["by"] == "all ROIs are kept"


def test_the_rate_is_asked_for_and_pickles_are_not_opened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ops\.npy, a pickle, which is never opened; give the frames per second"):
        suite2p.read(plane(tmp_path / "plane0"), Request("d", "s"))
    rois = np.empty(4, object)
    rois[:] = [{"x": 1}] * 4
    np.save(tmp_path / "plane0/iscell.npy", rois)
    with pytest.raises(ValueError, match=r"iscell\.npy holds Python objects \(a pickle\), which are never opened"):
        suite2p.read(tmp_path / "plane0", REQUEST)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    folder = plane(tmp_path / "plane0")
    np.save(folder / "Fneu.npy", np.ones((4, 10)))
    with pytest.raises(ValueError, match=r"Fneu\.npy has shape \(4, 10\), F\.npy \(4, 1500\)"):
        suite2p.read(folder, REQUEST)
    np.save(folder / "Fneu.npy", np.ones(10))
    with pytest.raises(ValueError, match=r"Fneu\.npy has shape \(10,\) of float64; expected a matrix"):
        suite2p.read(folder, REQUEST)
    (folder / "Fneu.npy").write_bytes((folder / "F.npy").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"Fneu\.npy cannot be read"):
        suite2p.read(folder, REQUEST)
    (folder / "Fneu.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"no F\.npy with Fneu\.npy beside it"):
        suite2p.read(folder, REQUEST)


def test_planes_are_read_one_at_a_time(tmp_path: Path) -> None:
    plane(tmp_path / "plane0")
    plane(tmp_path / "plane1")
    with pytest.raises(ValueError, match="holds plane0, plane1; give one plane's folder"):
        suite2p.read(tmp_path, REQUEST)


def test_no_cell_is_an_error(tmp_path: Path) -> None:
    folder = plane(tmp_path / "plane0")
    np.save(folder / "iscell.npy", np.zeros((4, 2)))
    with pytest.raises(ValueError, match="of 4 ROIs 0 are cells, none with a baseline above 0"):
        suite2p.read(folder, REQUEST)
