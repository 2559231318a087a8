"""NIfTI runs → one signal for each region of an atlas or voxel of a mask, read a few volumes at a time."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brainfm.readers.atlas_names import names_beside, region_names, unique
from brainfm.readers.bold import (
    DENSEST,
    MOST_REGIONS,
    SLAB,
    Regions,
    beside,
    extensions,
    means,
    only_fmri,
    recording,
    seconds_per_volume,
)
from brainfm.readers.request import MissingExtra, Request, require
from brainfm.recording import ChannelNote, Recording

#: Voxels in one volume; 0.3 mm over a whole head have fewer.
MOST_VOXELS = 2**27
METRES = {"meter": 1.0, "mm": 1e-3, "micron": 1e-6, "unknown": 1e-3}
SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}
MEND = "copy or make it again"


@dataclass(frozen=True)
class Volumes:
    """An open NIfTI file whose header agrees with its size: nibabel's `image`, and the `file` that it reads."""

    path: Path
    image: Any
    file: Any

    @property
    def grid(self) -> tuple[tuple[int, ...], np.ndarray]:
        """Shape of a volume and affine from voxels to the unit of the file."""
        return self.image.shape[:3], self.image.affine

    def slabs(self) -> Iterator[np.ndarray]:
        """All volumes as `(voxel, time)` pieces in the order of the file; at the end, checks that nothing follows.

        Raises:
            ValueError: for a truncated or damaged file, or one that holds more than its header says.
        """
        proxy, shape = self.image.dataobj, self.image.shape
        voxels, volumes = math.prod(shape[:3]), math.prod(shape[3:])
        step = max(1, SLAB // voxels)
        try:
            for start in range(0, volumes, step):
                key = (..., slice(start, min(volumes, start + step))) if len(shape) > 3 else (...,)
                yield np.asarray(proxy[key]).reshape(voxels, -1, order="F")
            rest = sum(len(piece) for piece in iter(lambda: self.file.read(2**20), b""))
        except (EOFError, OSError, ValueError, zlib.error) as error:
            raise ValueError(f"{self.path} is truncated or damaged ({error}); {MEND}") from error
        if rest >= voxels * proxy.dtype.itemsize:
            raise ValueError(
                f"{self.path}: {rest} bytes follow the {volumes} volumes that its header announces; {MEND}"
            )


@contextmanager
def opened(path: Path) -> Iterator[Volumes]:
    """Open a NIfTI file after comparing its header with its size; nothing is allocated for what is not there.

    Raises:
        ValueError: where it is no NIfTI file, or its header announces more than it holds.
    """
    import nibabel
    from nibabel.filebasedimages import FileHolder, ImageFileError
    from nibabel.spatialimages import HeaderDataError, HeaderTypeError
    from nibabel.wrapstruct import WrapStructError

    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; give the path of a .nii or .nii.gz file")
    faults = (
        ImageFileError, HeaderDataError, HeaderTypeError, WrapStructError, EOFError, OSError, ValueError, LookupError,
        OverflowError, zlib.error, struct.error,
    )  # fmt: skip
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
        try:
            extensions(path, file)
            file.seek(0)
            kind = type(nibabel.load(path))
            if not issubclass(kind, nibabel.Nifti1Image):
                raise ValueError(f"it is {kind.__name__}; expected one NIfTI file")
            image = kind.from_file_map({"image": FileHolder(fileobj=file)}, mmap=False)  # type: ignore[arg-type]
        except faults as error:
            raise ValueError(f"{path} cannot be read as NIfTI ({error}); {MEND}") from error
        shape, dtype, size = image.shape, image.get_data_dtype(), path.stat().st_size
        if dtype.kind not in "iuf" or len(shape) < 3 or min(shape) < 1 or math.prod(shape[:3]) > MOST_VOXELS:
            raise ValueError(
                f"{path} has shape {shape} of {dtype}; expected volumes (x, y, z, time) of real numbers, each of at "
                f"most {MOST_VOXELS} voxels; {MEND}"
            )
        if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-12:
            raise ValueError(f"{path}: its affine {image.affine.tolist()} has no inverse; set its sform anew")
        announced = image.dataobj.offset + math.prod(shape) * dtype.itemsize
        if announced > (size * DENSEST if path.name.endswith(".gz") else size):
            raise ValueError(f"{path} has {size} bytes; its header announces {announced} ({shape} of {dtype}); {MEND}")
        yield Volumes(path, image, file)


def read(path: Path, request: Request) -> Recording:
    """One 4-D run as the mean of each region of `request.atlas`, or as each voxel of `request.mask`.

    Both given, or fMRIPrep's brain mask beside the run, leave voxels of the atlas outside the mask out. Names of the
    atlas come from a table beside it (`.tsv`, `.txt`, `.csv`, `*_dseg.tsv`). fMRIPrep's confounds beside the run, or
    `request.confounds`, come along in `aligned`.

    Raises:
        ValueError: for a damaged file, a run without a believable repetition time, an atlas of another space or grid
            that cannot be resampled, an empty or too large mask, or values that are not finite.
    """
    import nibabel

    path = Path(path)
    only_fmri(path, request)
    mask = request.mask or _brain_mask(path)
    if request.atlas is None and mask is None:
        raise ValueError(f"{path}: voxels need regions; give an atlas (label image) or a mask")
    with opened(path) as run:
        if len(run.image.shape) != 4 or run.image.shape[3] < 2:
            raise ValueError(f"{path} has shape {run.image.shape}; expected (x, y, z, time): give a 4-D run")
        tr = seconds_per_volume(path, _header_tr(path, run.image.header), request)
        regions = _from_atlas(run, request.atlas, mask) if request.atlas else _from_mask(run, Path(str(mask)))
        signal, left_out = means(path, run.slabs(), regions)
    table = names_beside(request.atlas) if request.atlas else None
    space = _space(path)
    return recording(
        path, request, regions, signal, left_out,
        tr_s=tr, reader=f"nibabel {nibabel.__version__}", beside=(request.atlas, mask, table),
        facts={"space": space} if space else None,
    )  # fmt: skip


def _header_tr(path: Path, header: Any) -> float | None:
    """Seconds between volumes as the header says; None where it says a time in no unit of time."""
    try:
        unit = header.get_xyzt_units()[1]
    except KeyError as error:
        raise ValueError(f"{path}: unknown code of units {error} in its header; {MEND}") from error
    return float(header.get_zooms()[3]) * SECONDS[unit] if unit in SECONDS else None


def _space(path: Path) -> str:
    """The template that a BIDS name says, "" where it says none."""
    found = re.search(r"(?:^|_)(?:space|tpl)-([A-Za-z0-9]+)", path.name)
    return found[1] if found else ""


def _brain_mask(path: Path) -> Path | None:
    """fMRIPrep's brain mask of a preprocessed run, where it is beside it."""
    found = beside(path, "desc-brain_mask.nii.gz", ("desc",))
    return found if "_desc-preproc_bold." in path.name and found.is_file() else None


def _whole_numbers(path: Path, run: Volumes) -> tuple[np.ndarray, dict | None]:
    """`(voxel,)` labels of an atlas or mask on the run's grid, and the step that brought them there.

    Raises:
        ValueError: for several volumes, numbers with fractions, another template, or another grid without nilearn.
    """
    ours, theirs = _space(run.path), _space(path)
    if ours and theirs and ours != theirs:
        raise ValueError(f"{run.path} is in {ours}, {path} in {theirs}; take the atlas or mask in {ours}")
    with opened(path) as image:
        if math.prod(image.image.shape[3:]) != 1:
            raise ValueError(f"{path} has shape {image.image.shape}; expected one volume (x, y, z) of labels")
        values = np.concatenate(list(image.slabs()), axis=1)[:, 0]
        shape, affine = image.grid
    values = np.where(np.isfinite(values), values, 0)
    if np.any(values != np.round(values)) or np.abs(values).max() >= 2**31:
        raise ValueError(f"{path} has values that are no labels; expected whole numbers: give a label image or a mask")
    labels = values.astype(np.int32)
    if shape == run.grid[0] and np.allclose(affine, run.grid[1], atol=1e-3):
        return labels, None
    try:
        nilearn_image = require("nilearn.image", "fmri")
    except MissingExtra as error:
        raise ValueError(
            f"{path} has shape {shape} and affine {affine.tolist()}; {run.path} has {run.grid[0]} and "
            f"{run.grid[1].tolist()}: resample it with nilearn.image.resample_to_img, or let it be done here ({error})"
        ) from error
    import nibabel

    given = nibabel.Nifti1Image(labels.reshape(shape, order="F"), affine)
    try:
        moved = nilearn_image.resample_img(
            given, target_affine=run.grid[1], target_shape=run.grid[0], interpolation="nearest", force_resample=True,
            copy_header=True,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{path} cannot be brought to the grid of {run.path} ({error}); take one that fits") from error
    labels = np.asarray(moved.dataobj).astype(np.int32).reshape(-1, order="F")
    return labels, {"step": "resample_labels", "file": path.name, "from_shape": list(shape), "interpolation": "nearest"}


def _centres(run: Volumes, voxels: np.ndarray) -> np.ndarray:
    """`(voxel, 3)` metres; NaN where the header has no affine but what nibabel makes up."""
    header = run.image.header
    if not (header["sform_code"] or header["qform_code"]):
        return np.full((len(voxels), 3), np.nan)
    index = np.stack(np.unravel_index(voxels, run.grid[0], order="F"), axis=1)
    affine = run.grid[1]
    return (index @ affine[:3, :3].T + affine[:3, 3]) * METRES.get(header.get_xyzt_units()[0], 1e-3)


def _from_mask(run: Volumes, path: Path) -> Regions:
    """Every voxel of a mask as a region, named by its indices."""
    values, step = _whole_numbers(path, run)
    voxels = np.flatnonzero(values)
    if not 0 < len(voxels) <= MOST_REGIONS:
        raise ValueError(
            f"{path} has {len(voxels)} voxels in the grid of {run.path.name}; expected 1 to {MOST_REGIONS}: "
            "give an atlas to average regions, or a smaller mask"
        )
    label = np.full(len(values), -1)
    label[voxels] = np.arange(len(voxels))
    name = ["{} {} {}".format(*xyz) for xyz in zip(*np.unravel_index(voxels, run.grid[0], order="F"), strict=True)]
    return Regions(label, name, [""] * len(name), _centres(run, voxels), steps=[step] if step else [])


def _from_atlas(run: Volumes, path: Path, mask: Path | None) -> Regions:
    """The labels of an atlas, inside the mask where there is one; labels that no voxel has are logged as dropped."""
    values, step = _whole_numbers(path, run)
    steps = [step] if step else []
    names = region_names(names_beside(path))
    expected = set(names) | set(np.unique(values).tolist())
    if mask is not None:
        inside, step = _whole_numbers(mask, run)
        values = np.where(inside != 0, values, 0)
        steps += [{"step": "mask", "file": mask.name, "voxels": int(np.count_nonzero(inside))}]
        steps += [step] if step else []
    there = np.unique(values[values > 0])
    if not len(there):
        raise ValueError(
            f"{path} has no label above 0 in the grid (and mask) of {run.path.name}; give an atlas in the same space"
        )
    voxels = np.flatnonzero(values > 0)
    label = np.full(len(values), -1)
    label[voxels] = np.searchsorted(there, values[voxels])
    counts = np.bincount(label[voxels])
    places = _centres(run, voxels)
    centre = np.stack([np.bincount(label[voxels], places[:, axis]) / counts for axis in range(3)], axis=1)
    name = unique([names.get(int(i), f"region {i:03d}") for i in there], [int(i) for i in there])
    lost = sorted(i for i in expected - set(there.tolist()) if i > 0)
    dropped = [ChannelNote(names.get(i, f"region {i:03d}"), "", "dropped", f"no voxel has its label {i}") for i in lost]
    return Regions(label, name, [names.get(int(i), "") for i in there], centre, dropped, steps)
