"""NIfTI runs: means equal a slow loop, places are metres, and nothing wrong is accepted in silence."""

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from brainfm.readers import bold, volumes
from brainfm.readers.request import MissingExtra, Request
from brainfm.recording import Series

HAXBY = Path(__file__).resolve().parents[3] / "shared/data/haxby-slice"
AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
SHAPE = (5, 6, 4, 30)


def request(**more):
    return Request("toy", "01", **more)


def nifti(path, values, affine=AFFINE, tr=2.0, units=("mm", "sec"), dtype=None):
    values = np.asarray(values)
    image = nibabel.Nifti1Image(values, affine, dtype=dtype or values.dtype)
    if values.ndim == 4:
        image.header.set_zooms((2, 2, 2, tr))
    image.header.set_xyzt_units(*units)
    nibabel.save(image, path)
    return path


@pytest.fixture
def values():
    return np.random.default_rng(3).normal(1000, 50, SHAPE).astype(np.float32)


@pytest.fixture
def labels():
    made = np.zeros(SHAPE[:3], np.int16)
    made[:2], made[2, :3], made[4, 5, 3] = 7, 12, 300
    return made


@pytest.fixture
def run(tmp_path, values):
    return nifti(tmp_path / "run.nii.gz", values)


@pytest.fixture
def atlas(tmp_path, labels):
    (tmp_path / "atlas.tsv").write_text("index\tname\n7\tleft\n12\tright\n99\tnowhere\n")
    return nifti(tmp_path / "atlas.nii.gz", labels)


def test_means_equal_a_loop(run, atlas, values, labels, monkeypatch):
    monkeypatch.setattr(volumes, "SLAB", 7 * labels.size)
    done = volumes.read(run, request(atlas=atlas, label="rest", participant={"age": "30"}))
    assert done.channels.name == ["left", "right", "region 300"]
    assert done.channels.area == ["left", "right", ""]
    for row, place, label in zip(done.signal, done.channels.position, (7, 12, 300), strict=True):
        np.testing.assert_allclose(row, values[labels == label].astype(float).mean(0), rtol=1e-12)
        centre = np.argwhere(labels == label).mean(0)
        np.testing.assert_allclose(place, (AFFINE[:3, :3] @ centre + AFFINE[:3, 3]) / 1000, atol=1e-9)
    assert done.sfreq == 0.5
    assert done.events.label == ["rest"]
    assert done.events.duration.tolist() == [60.0]
    assert set(done.provenance["files"]) == {"run.nii.gz", "atlas.nii.gz", "atlas.tsv"}
    assert done.provenance["participant"] == {"age": "30"}
    assert [(n.found, n.fate) for n in done.channel_log] == [
        ("left", "kept"), ("right", "kept"), ("region 300", "kept"), ("nowhere", "dropped"),
    ]  # fmt: skip


def test_nilearn_finds_the_same(run, atlas):
    maskers = pytest.importorskip("nilearn.maskers")
    masker = maskers.NiftiLabelsMasker(str(atlas), standardize=None, resampling_target=None)
    expected = masker.fit_transform(str(run)).T
    np.testing.assert_allclose(volumes.read(run, request(atlas=atlas)).signal, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["run.nii", "run.nii.gz"])
def test_integers_with_a_scale(tmp_path, values, labels, atlas, name):
    path = nifti(tmp_path / f"scaled_{name}", values, dtype=np.int16)
    loaded = nibabel.load(path).get_fdata()
    done = volumes.read(path, request(atlas=atlas))
    np.testing.assert_allclose(done.signal[1], loaded[labels == 12].mean(0), rtol=1e-9)


def test_a_mask_makes_every_voxel_a_region(tmp_path, run, values, labels):
    mask = nifti(tmp_path / "mask.nii", (labels == 12).astype(np.uint8))
    done = volumes.read(run, request(mask=mask))
    assert done.channels.name == ["2 0 0", "2 1 0", "2 2 0", "2 0 1", "2 1 1", "2 2 1", "2 0 2", "2 1 2", "2 2 2",
                                  "2 0 3", "2 1 3", "2 2 3"]  # fmt: skip
    np.testing.assert_array_equal(done.signal[1], values[2, 1, 0])
    np.testing.assert_allclose(done.channels.position[1], [0.086, -0.124, -0.072], atol=1e-9)


def test_a_mask_takes_voxels_out_of_the_atlas(tmp_path, run, atlas, values, labels):
    inside = np.zeros(SHAPE[:3], np.uint8)
    inside[1:3] = 1
    done = volumes.read(run, request(atlas=atlas, mask=nifti(tmp_path / "mask.nii", inside)))
    assert done.channels.name == ["left", "right"]
    np.testing.assert_allclose(done.signal[0], values[1].reshape(-1, 30).astype(float).mean(0), rtol=1e-12)
    assert [(n.found, n.fate) for n in done.channel_log[2:]] == [("nowhere", "dropped"), ("region 300", "dropped")]


@pytest.mark.parametrize(
    ("tr", "units", "expected"),
    [(2000.0, ("mm", "msec"), 0.5), (2e6, ("mm", "usec"), 0.5), (0.72, ("mm", "unknown"), 1 / 0.72)],
)
def test_units_of_the_header(tmp_path, values, atlas, tr, units, expected):
    path = nifti(tmp_path / "other.nii", values, tr=tr, units=units)
    assert volumes.read(path, request(atlas=atlas)).sfreq == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("tr", "units"), [(0.0, "sec"), (2000.0, "sec"), (0.001, "sec"), (2.0, "hz")])
def test_an_implausible_repetition_time(tmp_path, values, atlas, tr, units):
    path = nifti(tmp_path / "other.nii", values, tr=tr, units=("mm", units))
    with pytest.raises(ValueError, match=r"other\.nii: its repetition time is .* give sfreq_hz = 1 / TR"):
        volumes.read(path, request(atlas=atlas))
    assert volumes.read(path, request(atlas=atlas, sfreq_hz=0.4)).sfreq == 0.4
    (tmp_path / "other.json").write_text(json.dumps({"RepetitionTime": 2.5}))
    assert volumes.read(path, request(atlas=atlas)).sfreq == 0.4


def test_header_and_json_disagree(tmp_path, run, atlas):
    (tmp_path / "run.json").write_text(json.dumps({"RepetitionTime": 2.5}))
    with pytest.raises(ValueError, match=r"header says 2 s between volumes, run\.json says 2\.5 s"):
        volumes.read(run, request(atlas=atlas))


def test_no_regions(run):
    with pytest.raises(ValueError, match="give an atlas"):
        volumes.read(run, request())


def test_no_affine_means_no_place(tmp_path, values, atlas, labels):
    image = nibabel.Nifti1Image(values, None)
    image.header.set_zooms((2, 2, 2, 2))
    nibabel.save(image, tmp_path / "bare.nii")
    bare = nibabel.Nifti1Image(labels, nibabel.load(tmp_path / "bare.nii").affine)
    nibabel.save(bare, tmp_path / "there.nii")
    done = volumes.read(tmp_path / "bare.nii", request(atlas=tmp_path / "there.nii"))
    assert set(done.channels.placed) == {"unknown"}


class TestGrids:
    def coarse(self, tmp_path):
        fine = np.zeros((10, 12, 8), np.int16)
        fine[:4], fine[4:6, :6] = 7, 12
        affine = AFFINE.copy()
        affine[:3, :3] /= 2
        return nifti(tmp_path / "fine.nii.gz", fine, affine)

    def test_is_resampled(self, tmp_path, run, values):
        pytest.importorskip("nilearn.image")
        done = volumes.read(run, request(atlas=self.coarse(tmp_path)))
        np.testing.assert_allclose(done.signal[0], values[:2].reshape(-1, 30).astype(float).mean(0), rtol=1e-12)
        (step,) = done.provenance["steps"]
        assert step["step"] == "resample_labels"
        assert step["from_shape"] == [10, 12, 8]

    def test_is_refused_without_nilearn(self, tmp_path, run, monkeypatch):
        def absent(module, extra):
            raise MissingExtra(f"pip install 'brainfm[{extra}]'")

        monkeypatch.setattr(volumes, "require", absent)
        with pytest.raises(ValueError, match=r"\(10, 12, 8\).*\(5, 6, 4\).*resample_to_img.*brainfm\[fmri\]"):
            volumes.read(run, request(atlas=self.coarse(tmp_path)))

    def test_another_template_is_refused(self, tmp_path, values, labels):
        path = nifti(tmp_path / "sub-01_space-T1w_bold.nii.gz", values)
        atlas = nifti(tmp_path / "space-MNI152NLin6Asym_dseg.nii.gz", labels)
        with pytest.raises(ValueError, match=r"is in T1w.*in MNI152NLin6Asym"):
            volumes.read(path, request(atlas=atlas))

    def test_far_away(self, tmp_path, run, labels):
        pytest.importorskip("nilearn.image")
        affine = AFFINE.copy()
        affine[:3, 3] += 5000
        with pytest.raises(ValueError, match="cannot be brought to the grid"):
            volumes.read(run, request(atlas=nifti(tmp_path / "far.nii", labels, affine)))


class TestNames:
    @pytest.mark.parametrize(
        ("ending", "text"),
        [
            (".tsv", "index\tname\themi\n7\tA\tL\n12\tA\tR\n"),
            (".csv", "id,label\n7,A\n12,A\n"),
            (".txt", "#No. Label Name: R G B A\n0 Unknown 0 0 0 0\n7  A  1 2 3 0\n12  A  4 5 6 0\n"),
        ],
    )
    def test_tables(self, tmp_path, run, atlas, ending, text):
        (tmp_path / "atlas.tsv").unlink()
        (tmp_path / f"atlas{ending}").write_text(text)
        assert volumes.read(run, request(atlas=atlas)).channels.name == ["A (7)", "A (12)", "region 300"]

    def test_dseg_of_the_same_atlas(self, tmp_path, run, labels):
        atlas = nifti(tmp_path / "atlas-toy_space-MNI_res-2_dseg.nii.gz", labels)
        (tmp_path / "atlas-toy_dseg.tsv").write_text("index\tname\n7\tmine\n")
        (tmp_path / "atlas-other_dseg.tsv").write_text("index\tname\n7\ttheirs\n")
        assert volumes.read(run, request(atlas=atlas)).channels.name == ["mine", "region 012", "region 300"]

    @pytest.mark.parametrize("text", [b"a\tb\n1\t2\n", b"index\tname\n", b"\xff\xfe\x00"])
    def test_no_table_of_names(self, tmp_path, run, atlas, text):
        (tmp_path / "atlas.tsv").write_bytes(text)
        with pytest.raises(ValueError, match=r"atlas\.tsv"):
            volumes.read(run, request(atlas=atlas))


class TestFmriprep:
    STEM = "sub-01_task-rest_run-1"

    @pytest.fixture
    def derivative(self, tmp_path, values, labels):
        rng = np.random.default_rng(0)
        columns = {name: rng.normal(size=30) for name in (*bold.CONFOUNDS, "global_signal", "cosine00")}
        for name in columns:
            if "derivative1" in name:
                columns[name][0] = np.nan
        motion = np.full(30, 0.1)
        motion[0], motion[11] = np.nan, 0.7
        spikes = {"non_steady_state_outlier00": np.arange(30) == 0, "motion_outlier00": np.arange(30) == 20}
        columns |= {"framewise_displacement": motion, **{k: v.astype(float) for k, v in spikes.items()}}
        self.columns = columns
        self.write(tmp_path, columns)
        brain = np.ones(SHAPE[:3], np.uint8)
        brain[0] = 0
        nifti(tmp_path / f"{self.STEM}_space-MNI152NLin6Asym_desc-brain_mask.nii.gz", brain)
        return nifti(tmp_path / f"{self.STEM}_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz", values)

    def write(self, folder, columns):
        rows = zip(*columns.values(), strict=True)
        lines = ["\t".join("n/a" if np.isnan(x) else repr(float(x)) for x in row) for row in rows]
        path = folder / f"{self.STEM}_desc-confounds_timeseries.tsv"
        path.write_text("\n".join(["\t".join(columns), *lines]) + "\n")
        return path

    def test_confounds_and_censoring(self, derivative, atlas, values):
        done = volumes.read(derivative, request(atlas=atlas))
        chosen = done.provenance["confounds"]
        assert len(chosen) == 26
        assert "global_signal" not in chosen
        assert "cosine00" not in chosen
        series = done.aligned["confounds"]
        assert isinstance(series, Series)
        assert series.sfreq == done.sfreq
        np.testing.assert_array_equal(series.values[:, chosen.index("csf")], self.columns["csf"])
        assert series.values[0, chosen.index("trans_x_derivative1")] == 0
        assert np.flatnonzero(done.aligned["censored"].values[:, 0]).tolist() == [0, 11, 20]
        # the brain mask beside the run leaves the first slice out
        np.testing.assert_allclose(done.signal[0], values[1].reshape(-1, 30).astype(float).mean(0), rtol=1e-12)
        assert len(done.provenance["files"]) == 5
        assert done.provenance["space"] == "MNI152NLin6Asym"

    def test_another_number_of_rows(self, tmp_path, derivative, atlas):
        self.write(tmp_path, {k: v[:-1] for k, v in self.columns.items()})
        with pytest.raises(ValueError, match=r"has 29 rows.*30 volumes: give the confounds of this run"):
            volumes.read(derivative, request(atlas=atlas))

    def test_given_by_hand(self, tmp_path, run, atlas, derivative):
        given = (tmp_path / f"{self.STEM}_desc-confounds_timeseries.tsv").rename(tmp_path / "mine.tsv")
        assert "confounds" not in volumes.read(derivative, request(atlas=atlas)).aligned
        assert volumes.read(run, request(atlas=atlas, confounds=given)).aligned["confounds"].values.shape == (30, 26)

    def test_gaps_and_unknown_columns(self, tmp_path, derivative, atlas):
        self.columns["csf"][12] = np.nan
        self.write(tmp_path, self.columns)
        with pytest.raises(ValueError, match="'csf' has gaps"):
            volumes.read(derivative, request(atlas=atlas))
        self.write(tmp_path, {"mine": np.zeros(30)})
        with pytest.raises(ValueError, match="columns mine"):
            volumes.read(derivative, request(atlas=atlas))


class TestDamage:
    @pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
    def test_truncated_gzip(self, run, atlas, keep):
        whole = run.read_bytes()
        run.write_bytes(whole[: int(len(whole) * keep)])
        with pytest.raises(ValueError, match=r"run\.nii\.gz"):
            volumes.read(run, request(atlas=atlas))

    def test_truncated_plain(self, tmp_path, values, atlas):
        path = nifti(tmp_path / "plain.nii", values)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ValueError, match=r"has 14751 bytes; its header announces 14752"):
            volumes.read(path, request(atlas=atlas))

    def test_a_flipped_byte_in_gzip(self, run, atlas):
        whole = bytearray(run.read_bytes())
        whole[-6] ^= 1  # in the checksum
        run.write_bytes(whole)
        with pytest.raises(ValueError, match=r"truncated or damaged.*CRC"):
            volumes.read(run, request(atlas=atlas))

    @pytest.mark.parametrize("volumes_said", [20, 32767])
    @pytest.mark.parametrize("packed", [True, False])
    def test_a_lying_header(self, tmp_path, values, atlas, volumes_said, packed):
        plain = nifti(tmp_path / "lie.nii", values)
        whole = bytearray(plain.read_bytes())
        whole[48:50] = np.int16(volumes_said).tobytes()  # dim[4]
        path = tmp_path / "lie.nii.gz" if packed else plain
        path.write_bytes(gzip.compress(bytes(whole)) if packed else bytes(whole))
        with pytest.raises(ValueError, match=r"lie\.nii.*(announces|truncated)"):
            volumes.read(path, request(atlas=atlas))

    def test_a_header_of_terabytes_allocates_nothing(self, tmp_path, atlas):
        header = nibabel.Nifti1Header()
        header.set_data_shape((5, 6, 4, 2))
        header["dim"][1:5] = 32767
        path = tmp_path / "huge.nii.gz"
        path.write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
        with pytest.raises(ValueError, match="at most 134217728 voxels"):
            volumes.read(path, request(atlas=atlas))

    def test_other_dimensions(self, tmp_path, values, atlas, run):
        flat = nifti(tmp_path / "flat.nii", values[..., 0])
        with pytest.raises(ValueError, match=r"\(5, 6, 4\); expected \(x, y, z, time\)"):
            volumes.read(flat, request(atlas=atlas))
        with pytest.raises(ValueError, match="expected one volume"):
            volumes.read(run, request(atlas=run))

    def test_nan_voxels(self, tmp_path, values, atlas, labels):
        outside = values.copy()
        outside[0, 0, 0] = np.nan
        outside[4, 5, 3] = np.nan
        done = volumes.read(nifti(tmp_path / "outside.nii", outside), request(atlas=atlas))
        assert done.channels.name == ["left", "right"]
        inside = (labels == 7) & np.isfinite(outside[..., 0])
        np.testing.assert_allclose(done.signal[0], values[inside].astype(float).mean(0), rtol=1e-12)
        assert "1 not finite in the first volume" in done.channel_log[0].detail
        assert done.channel_log[2].fate == "dropped"
        outside[2, 0, 0, 17] = np.nan
        with pytest.raises(ValueError, match=r"volume 17 .*'right'"):
            volumes.read(nifti(tmp_path / "later.nii", outside), request(atlas=atlas))

    def test_empty_and_huge_masks(self, tmp_path, run, monkeypatch):
        empty = nifti(tmp_path / "empty.nii", np.zeros(SHAPE[:3], np.uint8))
        with pytest.raises(ValueError, match="has 0 voxels"):
            volumes.read(run, request(mask=empty))
        with pytest.raises(ValueError, match="no label above 0"):
            volumes.read(run, request(atlas=empty))
        monkeypatch.setattr(volumes, "MOST_REGIONS", 100)
        full = nifti(tmp_path / "full.nii", np.ones(SHAPE[:3], np.uint8))
        with pytest.raises(ValueError, match=r"has 120 voxels.*give an atlas"):
            volumes.read(run, request(mask=full))

    def test_probabilities_are_no_labels(self, tmp_path, run):
        soft = nifti(tmp_path / "soft.nii", np.full(SHAPE[:3], 0.3, np.float32))
        with pytest.raises(ValueError, match="expected whole numbers"):
            volumes.read(run, request(atlas=soft))

    def test_no_nifti(self, tmp_path, atlas, run):
        path = tmp_path / "page.nii.gz"
        path.write_text("<html>404</html>")
        with pytest.raises(ValueError, match=r"page\.nii\.gz cannot be read as NIfTI"):
            volumes.read(path, request(atlas=atlas))
        with pytest.raises(FileNotFoundError, match=r"away\.nii"):
            volumes.read(tmp_path / "away.nii", request(atlas=atlas))
        with pytest.raises(ValueError, match="'eeg'"):
            volumes.read(run, request(atlas=atlas, modality="eeg"))

    def test_mutants(self, tmp_path, values, labels):
        """Every flipped byte of the header ends in a recording or in a ValueError that names the file."""
        rng = np.random.default_rng(8)
        atlas = nifti(tmp_path / "atlas.nii", labels)
        whole = nifti(tmp_path / "mutant.nii", values).read_bytes()
        path = tmp_path / "mutant.nii"
        for at in range(348):
            mutant = bytearray(whole)
            mutant[at] = rng.integers(256)
            path.write_bytes(mutant)
            try:
                done = volumes.read(path, request(atlas=atlas))
            except ValueError as error:
                said = str(error)
            else:
                said = "mutant.nii" if np.isfinite(done.signal).all() else "not finite"
            assert "mutant.nii" in said, at


@pytest.mark.skipif(not HAXBY.is_dir(), reason=f"needs {HAXBY}")
class TestHaxby:
    def test_each_voxel(self):
        done = volumes.read(HAXBY / "bold.nii.gz", request(mask=HAXBY / "mask.nii.gz"))
        loaded = np.asarray(nibabel.load(HAXBY / "bold.nii.gz").dataobj)
        inside = np.asarray(nibabel.load(HAXBY / "mask.nii.gz").dataobj) != 0
        assert done.signal.shape == (inside.sum(), 1452)
        assert done.sfreq == 0.4
        x, y, z = map(int, done.channels.name[10].split())
        np.testing.assert_array_equal(done.signal[10], loaded[x, y, z])
        assert np.abs(done.channels.position[:, 1]).max() < 0.1

    def test_quadrants(self, tmp_path):
        mask = nibabel.load(HAXBY / "mask.nii.gz")
        labels = np.asarray(mask.dataobj) * (
            1 + np.arange(40)[:, None, None] // 20 + 2 * (np.arange(20)[:, None] // 10)
        )
        nibabel.save(nibabel.Nifti1Image(labels.astype(np.int16), mask.affine), tmp_path / "quadrants.nii")
        done = volumes.read(HAXBY / "bold.nii.gz", request(atlas=tmp_path / "quadrants.nii"))
        loaded = np.asarray(nibabel.load(HAXBY / "bold.nii.gz").dataobj)
        for row, label in zip(done.signal, (1, 2, 3, 4), strict=True):
            np.testing.assert_allclose(row, loaded[labels == label].mean(0), rtol=1e-12)
