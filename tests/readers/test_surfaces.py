"""GIFTI and CIFTI runs: means equal a slow loop, hemispheres and parcels are named, bad files are refused."""

import json

import nibabel
import numpy as np
import pytest
from nibabel import cifti2, gifti

from brainfm.hdf import HostileFile
from brainfm.readers import bold, surfaces
from brainfm.readers.request import Request

VERTICES, VOLUMES = 40, 25


def request(**more):
    return Request("toy", "01", **more)


def func(path, values, tr=None):
    """`(vertex, time)` as one array for each volume, as FreeSurfer and fMRIPrep write them."""
    meta = gifti.GiftiMetaData({"TimeStep": str(tr)} if tr else {})
    arrays = [
        gifti.GiftiDataArray(np.float32(v), intent="NIFTI_INTENT_TIME_SERIES", datatype="float32", meta=meta)
        for v in values.T
    ]
    nibabel.save(gifti.GiftiImage(darrays=arrays), path)
    return path


def label_gii(path, labels, names):
    table = gifti.GiftiLabelTable()
    for key, name in names.items():
        entry = gifti.GiftiLabel(key, 0.1, 0.2, 0.3, 1.0)
        entry.label = name
        table.labels.append(entry)
    array = gifti.GiftiDataArray(np.int32(labels), intent="NIFTI_INTENT_LABEL", datatype="int32")
    nibabel.save(gifti.GiftiImage(darrays=[array], labeltable=table), path)
    return path


@pytest.fixture
def values():
    return np.random.default_rng(6).normal(1000, 30, (VERTICES, VOLUMES)).astype(np.float32)


@pytest.fixture
def labels():
    return np.repeat([0, 1, 2, 3, 5], 8)


NAMES = {0: "???", 1: "V1", 2: "Medial_wall", 3: "A1", 4: "nowhere"}


class TestGifti:
    @pytest.mark.parametrize("tr", [2.0, 2000.0])
    def test_means_of_labels(self, tmp_path, values, labels, tr):
        path = func(tmp_path / "hemi-L_bold.func.gii", values, tr)
        done = surfaces.read(path, request(atlas=label_gii(tmp_path / "atlas.label.gii", labels, NAMES), label="rest"))
        assert done.channels.name == ["V1", "A1", "region 005"]
        for row, label in zip(done.signal, (1, 3, 5), strict=True):
            np.testing.assert_allclose(row, values[labels == label].astype(float).mean(0), rtol=1e-12)
        assert done.sfreq == 0.5
        assert done.events.duration.tolist() == [50.0]
        assert set(done.channels.placed) == {"unknown"}
        assert [(n.found, n.fate) for n in done.channel_log[3:]] == [("nowhere", "dropped")]

    def test_both_hemispheres(self, tmp_path, values, labels):
        func(tmp_path / "sub-01_hemi-R_bold.func.gii", values[::-1] + 5)
        path = func(tmp_path / "sub-01_hemi-L_bold.func.gii", values)
        (tmp_path / "sub-01_hemi-L_bold.json").write_text(json.dumps({"RepetitionTime": 0.8}))
        atlas = label_gii(tmp_path / "toy_hemi-L.label.gii", labels, NAMES)
        with pytest.raises(ValueError, match="labels of the right hemisphere beside"):
            surfaces.read(path, request(atlas=atlas))
        label_gii(tmp_path / "toy_hemi-R.label.gii", labels, NAMES)
        done = surfaces.read(path, request(atlas=atlas))
        assert done.channels.name == ["L V1", "L A1", "L region 005", "R V1", "R A1", "R region 005"]
        expected = (values[::-1] + 5)[labels == 3].astype(float).mean(0)
        np.testing.assert_allclose(done.signal[4], expected, rtol=1e-12)
        assert done.sfreq == pytest.approx(1.25)
        assert len(done.provenance["files"]) == 4
        only = surfaces.read(tmp_path / "sub-01_hemi-R_bold.func.gii", request(sfreq_hz=1.0))
        assert len(only.channels) == VERTICES

    def test_each_vertex(self, tmp_path, values, monkeypatch):
        for side, sign in (("lh", 1), ("rh", -1)):
            func(tmp_path / f"{side}.run.func.gii", sign * values, 2.0)
        done = surfaces.read(tmp_path / "lh.run.func.gii", request())
        np.testing.assert_array_equal(done.signal, np.concatenate([values, -values]))
        assert done.channels.name[VERTICES] == "R 0"
        monkeypatch.setattr(bold, "MOST_REGIONS", 60)
        with pytest.raises(ValueError, match=r"80 regions, voxels or vertices.*give an atlas"):
            surfaces.read(tmp_path / "lh.run.func.gii", request())

    def test_one_array_of_all_volumes(self, tmp_path, values):
        array = gifti.GiftiDataArray(values, intent="NIFTI_INTENT_TIME_SERIES", datatype="float32")
        nibabel.save(gifti.GiftiImage(darrays=[array]), tmp_path / "run.func.gii")
        done = surfaces.read(tmp_path / "run.func.gii", request(sfreq_hz=0.5))
        np.testing.assert_array_equal(done.signal, values)

    def test_medial_wall_of_nan(self, tmp_path, values, labels):
        values[8:10] = np.nan
        path = func(tmp_path / "run.func.gii", values, 2.0)
        done = surfaces.read(path, request(atlas=label_gii(tmp_path / "a.label.gii", labels, NAMES)))
        np.testing.assert_allclose(done.signal[0], values[10:16].astype(float).mean(0), rtol=1e-12)
        assert "2 not finite" in done.channel_log[0].detail

    def test_no_repetition_time(self, tmp_path, values):
        with pytest.raises(ValueError, match="give sfreq_hz = 1 / TR"):
            surfaces.read(func(tmp_path / "run.func.gii", values), request())

    def test_what_does_not_fit(self, tmp_path, values, labels):
        path = func(tmp_path / "hemi-L.func.gii", values, 2.0)
        with pytest.raises(ValueError, match="the run has 40 vertices"):
            surfaces.read(path, request(atlas=label_gii(tmp_path / "a.label.gii", labels[1:], NAMES)))
        with pytest.raises(ValueError, match="no label above 0"):
            surfaces.read(path, request(atlas=label_gii(tmp_path / "b.label.gii", 0 * labels, NAMES)))
        func(tmp_path / "hemi-R.func.gii", values[:, 1:], 2.0)
        with pytest.raises(ValueError, match=r"has 25 volumes, .*hemi-R.* has 24"):
            surfaces.read(path, request())
        with pytest.raises(ValueError, match="no run on a surface"):
            surfaces.read(tmp_path / "run.nii.gz", request())
        with pytest.raises(FileNotFoundError, match=r"away\.func\.gii"):
            surfaces.read(tmp_path / "away.func.gii", request())

    def test_data_in_another_file(self, tmp_path, values):
        path = func(tmp_path / "run.func.gii", values, 2.0)
        text = path.read_text()
        (tmp_path / "secret.bin").write_bytes(bytes(4 * VERTICES))
        outside = 'ExternalFileName="secret.bin" Encoding="&#69;xternalFileBinary"'
        text = text.replace('Encoding="GZipBase64Binary"', outside).replace('ExternalFileName=""', "")
        path.write_text(text)
        with pytest.raises(HostileFile, match="lie in another file"):
            surfaces.read(path, request())

    def test_entities(self, tmp_path, values):
        path = func(tmp_path / "run.func.gii", values, 2.0)
        bomb = '<!DOCTYPE GIFTI [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>\n<GIFTI'
        text = path.read_text()
        start = text.index("<!DOCTYPE") if "<!DOCTYPE" in text else text.index("<GIFTI")
        path.write_text(text[:start] + bomb + text[text.index("<GIFTI") + 6 :])
        with pytest.raises(HostileFile, match="XML entity 'a'"):
            surfaces.read(path, request())

    @pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
    def test_truncated(self, tmp_path, values, keep):
        path = func(tmp_path / "run.func.gii", values, 2.0)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
        with pytest.raises(ValueError, match=r"run\.func\.gii"):
            surfaces.read(path, request())

    def test_a_lying_header(self, tmp_path, values):
        path = func(tmp_path / "run.func.gii", values, 2.0)
        for said in ("41", "99999999999", "-1", "x"):
            path.write_text(path.read_text().replace('Dim0="40"', f'Dim0="{said}"'))
            with pytest.raises(ValueError, match=r"run\.func\.gii cannot be read as GIFTI"):
                surfaces.read(path, request())

    def test_mutants(self, tmp_path, values):
        rng = np.random.default_rng(1)
        path = func(tmp_path / "mutant.func.gii", values[:, :3], 2.0)
        whole = path.read_bytes()
        for _ in range(300):
            mutant = bytearray(whole)
            at = rng.integers(len(whole))
            mutant[at] = rng.integers(256)
            path.write_bytes(mutant)
            said = outcome(path)
            assert "mutant.func.gii" in said, at


def outcome(path, **more):
    """What a reader says of a damaged file; the name of the file where it finds nothing wrong."""
    try:
        done = surfaces.read(path, request(**more))
    except ValueError as error:
        return str(error)
    return path.name if np.isfinite(done.signal).all() else "not finite"


def brain():
    """Two patches of cortex and six voxels: 26 places."""
    left = cifti2.BrainModelAxis.from_surface(np.arange(2, 12), 20, name="CIFTI_STRUCTURE_CORTEX_LEFT")
    right = cifti2.BrainModelAxis.from_surface(np.arange(10), 20, name="CIFTI_STRUCTURE_CORTEX_RIGHT")
    mask = np.zeros((4, 4, 4), bool)
    mask[1, 1, :3], mask[2, 2, :3] = True, True
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -4
    return left + right + cifti2.BrainModelAxis.from_mask(mask, "CIFTI_STRUCTURE_THALAMUS_LEFT", affine)


def save_cifti(path, values, *axes):
    nibabel.save(cifti2.Cifti2Image(np.asarray(values, np.float32), axes), path)
    return path


class TestCifti:
    TIME = cifti2.SeriesAxis(0, 0.72, VOLUMES, "SECOND")

    @pytest.fixture
    def dense(self):
        return np.random.default_rng(7).normal(5000, 30, (VOLUMES, 26)).astype(np.float32)

    @pytest.fixture
    def run(self, tmp_path, dense):
        return save_cifti(tmp_path / "run.dtseries.nii", dense, self.TIME, brain())

    def labels(self, path, values, space):
        table = {0: ("???", (0, 0, 0, 0)), 1: ("V1", (1, 0, 0, 1)), 2: ("V2", (1, 0, 0, 1)), 3: ("THA", (0, 1, 0, 1))}
        return save_cifti(path, np.asarray(values)[None], cifti2.LabelAxis(["map"], [table]), space)

    def test_each_place(self, run, dense):
        done = surfaces.read(run, request())
        np.testing.assert_array_equal(done.signal, dense.T)
        assert done.sfreq == pytest.approx(1 / 0.72)
        assert done.channels.name[0] == "cortex_left 2"
        assert done.channels.name[20] == "thalamus_left 1 1 0"
        assert np.isnan(done.channels.position[:20]).all()
        np.testing.assert_allclose(done.channels.position[20], [-0.002, -0.002, -0.004])

    def test_means_of_labels_in_another_order(self, tmp_path, run, dense, monkeypatch):
        monkeypatch.setattr(surfaces, "SLAB", 26 * 4)
        values = np.array([1] * 5 + [2] * 10 + [0] * 5 + [3] * 6)
        turned = np.random.default_rng(0).permutation(26)
        groups = [np.arange(20, 26), np.arange(10, 20), np.arange(10)]  # structures in another order
        turned = np.concatenate(groups)
        atlas = self.labels(tmp_path / "a.dlabel.nii", values[turned], brain()[turned])
        done = surfaces.read(run, request(atlas=atlas))
        assert done.channels.name == ["V1", "V2", "THA"]
        for row, label in zip(done.signal, (1, 2, 3), strict=True):
            np.testing.assert_allclose(row, dense[:, values == label].astype(float).mean(1), rtol=1e-12)
        assert np.isnan(done.channels.position[:2]).all()
        np.testing.assert_allclose(done.channels.position[2], [-0.001, -0.001, -0.002])

    def test_parcels(self, tmp_path, dense):
        parcels = cifti2.ParcelsAxis.from_brain_models([("left", brain()[:10]), ("thalamus", brain()[20:])])
        path = save_cifti(tmp_path / "run.ptseries.nii", dense[:, :2], self.TIME, parcels)
        done = surfaces.read(path, request())
        assert done.channels.name == ["left", "thalamus"]
        np.testing.assert_array_equal(done.signal, dense[:, :2].T)
        assert np.isnan(done.channels.position[0]).all()
        np.testing.assert_allclose(done.channels.position[1], [-0.001, -0.001, -0.002])
        with pytest.raises(ValueError, match="holds parcels already"):
            surfaces.read(path, request(atlas=path))

    def test_what_does_not_fit(self, tmp_path, run, dense, monkeypatch):
        mesh = cifti2.BrainModelAxis.from_surface(np.arange(10), 33, name="CIFTI_STRUCTURE_CORTEX_LEFT")
        other = self.labels(tmp_path / "b.dlabel.nii", np.ones(10), mesh)
        with pytest.raises(ValueError, match="another mesh"):
            surfaces.read(run, request(atlas=other))
        with pytest.raises(ValueError, match="expected one map of labels"):
            surfaces.read(run, request(atlas=run))
        scalar = save_cifti(tmp_path / "s.dtseries.nii", dense, cifti2.ScalarAxis([str(i) for i in range(25)]), brain())
        with pytest.raises(ValueError, match="ScalarAxis"):
            surfaces.read(scalar, request())
        hertz = save_cifti(tmp_path / "h.dtseries.nii", dense, cifti2.SeriesAxis(0, 1, VOLUMES, "HERTZ"), brain())
        with pytest.raises(ValueError, match="give sfreq_hz"):
            surfaces.read(hertz, request())
        monkeypatch.setattr(bold, "MOST_REGIONS", 20)
        with pytest.raises(ValueError, match="26 regions, voxels or vertices"):
            surfaces.read(run, request())

    @pytest.mark.parametrize("cut", [1, 1000, 4000])
    def test_truncated(self, run, cut):
        run.write_bytes(run.read_bytes()[:-cut])
        with pytest.raises(ValueError, match=r"run\.dtseries\.nii"):
            surfaces.read(run, request())

    def test_a_plain_nifti(self, tmp_path):
        nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2, 3)), np.eye(4)), tmp_path / "x.dtseries.nii")
        with pytest.raises(ValueError, match="cannot be read as CIFTI"):
            surfaces.read(tmp_path / "x.dtseries.nii", request())

    def test_nan(self, tmp_path, dense):
        dense[3, 4] = np.nan
        with pytest.raises(ValueError, match=r"volume 3 .*'cortex_left 6'"):
            surfaces.read(save_cifti(tmp_path / "n.dtseries.nii", dense, self.TIME, brain()), request())

    def test_mutants(self, tmp_path, run):
        rng = np.random.default_rng(2)
        whole = run.read_bytes()
        path = tmp_path / "mutant.dtseries.nii"
        start = len(whole) - 4 * 26 * VOLUMES
        for _ in range(400):
            mutant = bytearray(whole)
            at = rng.integers(start)
            mutant[at] = rng.integers(256)
            path.write_bytes(mutant)
            assert "mutant.dtseries.nii" in outcome(path), at
