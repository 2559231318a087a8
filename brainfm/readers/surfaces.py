"""GIFTI and CIFTI runs → one signal for each label of an atlas, parcel or vertex."""

from __future__ import annotations

import binascii
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from brainfm.hdf import HostileFile
from brainfm.readers.atlas_names import unique
from brainfm.readers.bold import (
    DENSEST,
    LONGEST_TR_S,
    SLAB,
    Regions,
    extensions,
    means,
    only_fmri,
    recording,
    seconds_per_volume,
)
from brainfm.readers.request import Request
from brainfm.recording import ChannelNote, Recording

#: How file names say left and right, by BIDS, the Human Connectome Project and FreeSurfer.
SIDES = (("hemi-L", "hemi-R"), (".L.", ".R."), ("lh.", "rh."))
#: Labels that stand for no region.
NOWHERE = ("???", "unknown", "medial_wall", "medial wall", "freesurfer_defined_medial_wall")
#: No array of GIFTI has more.
MOST_DIMENSIONS = 6
MEND = "copy or make it again"


def read(path: Path, request: Request) -> Recording:
    """One run on the surface: the mean of each label of `request.atlas`, each parcel, or each vertex.

    `.func.gii` holds one hemisphere. The left one brings the right one along where its file lies beside it under the
    same name; the atlas of the right one is then looked for in the same way. `.dtseries.nii` takes a `.dlabel.nii`
    atlas over the same vertices and voxels; `.ptseries.nii` holds parcels and takes none.

    Raises:
        ValueError: for a damaged file, an atlas of another mesh, too many vertices for no atlas, or a run without a
            believable repetition time.
        HostileFile: for a GIFTI file whose data lie in another file.
    """
    path = Path(path)
    only_fmri(path, request)
    if path.name.endswith((".dtseries.nii", ".ptseries.nii")):
        return _read_cifti(path, request)
    if path.name.endswith(".gii"):
        return _read_gifti(path, request)
    raise ValueError(f"{path} is no run on a surface; expected .func.gii, .dtseries.nii or .ptseries.nii")


def _other_side(path: Path | None) -> Path | None:
    """The right hemisphere beside a file of the left one; None where there is none."""
    if path is None:
        return None
    for left, right in SIDES:
        other = path.with_name(path.name.replace(left, right))
        if other != path and other.is_file():
            return other
    return None


def _gifti(path: Path) -> Any:
    """A GIFTI file through nibabel, after looking at what it announces.

    Raises:
        HostileFile: for entities, or data in another file. ValueError: for a damaged file.
    """
    import nibabel

    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; give the path of a .gii file")
    announced, arrays, size = 0, [0, 0], path.stat().st_size

    def element(name: str, attributes: dict[str, str]) -> None:
        nonlocal announced
        if name == "GIFTI":
            arrays[1] = int(attributes.get("NumberOfDataArrays", "-1"))
        if name == "DataArray":
            arrays[0] += 1
            if int(attributes.get("Dimensionality", "1")) > MOST_DIMENSIONS:  # nibabel counts up to it
                raise ValueError(f"an array of {attributes['Dimensionality'][:40]} dimensions")
            if attributes.get("Encoding") == "ExternalFileBinary" or attributes.get("ExternalFileName"):
                raise HostileFile(f"{path}: its data lie in another file; only data inside the file are read")
            announced += math.prod(int(v) for k, v in attributes.items() if k.startswith("Dim") and k[3:].isdecimal())

    def entity(name: str, *_: object) -> None:
        raise HostileFile(f"{path} declares the XML entity {name!r}; make it again without")

    look = expat.ParserCreate()
    look.StartElementHandler, look.EntityDeclHandler = element, entity
    try:
        with path.open("rb") as file:
            look.ParseFile(file)
        if announced > size * DENSEST:
            raise ValueError(f"it has {size} bytes and announces {announced} numbers")
        if arrays[0] != arrays[1]:
            raise ValueError(f"it announces {arrays[1]} arrays and holds {arrays[0]}")
        return nibabel.gifti.GiftiImage.from_filename(path, mmap=False)
    except HostileFile:
        raise
    except (
        expat.ExpatError, ValueError, LookupError, TypeError, AttributeError, OverflowError, OSError,
        AssertionError, zlib.error, binascii.Error, nibabel.gifti.parse_gifti_fast.GiftiParseError,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} cannot be read as GIFTI ({error}); {MEND}") from error


def _gifti_series(path: Path) -> tuple[np.ndarray, float | None]:
    """`(vertex, time)` and the seconds between volumes, None where the file does not say."""
    image = _gifti(path)
    arrays = [a.data for a in image.darrays]
    if len({a.shape for a in arrays}) != 1 or arrays[0].dtype.kind not in "iuf":
        raise ValueError(f"{path} has arrays of {sorted({a.shape for a in arrays})}; expected one for each volume")
    values = arrays[0] if len(arrays) == 1 else np.stack(arrays, axis=-1)
    if values.ndim != 2 or min(values.shape) < 1 or values.shape[1] < 2:
        raise ValueError(f"{path} has numbers of shape {values.shape}; expected (vertex, time): give a run over time")
    said = next((m["TimeStep"] for m in (image.meta, *(a.meta for a in image.darrays)) if "TimeStep" in m), None)
    try:
        step = float(said) if said is not None else None
    except ValueError as error:
        raise ValueError(f"{path}: TimeStep is {said!r}; expected a number: give sfreq_hz = 1 / TR") from error
    # FreeSurfer writes milliseconds and others seconds; no repetition time is plausible as both
    return values, step / 1000 if step is not None and step > LONGEST_TR_S else step


def _gifti_labels(path: Path, vertices: int) -> tuple[np.ndarray, dict[int, str]]:
    """`(vertex,)` labels of a `.label.gii`, and the names of those that are regions."""
    image = _gifti(path)
    if len(image.darrays) != 1 or image.darrays[0].data.shape != (vertices,):
        raise ValueError(
            f"{path} has arrays of {[a.data.shape for a in image.darrays]}; the run has {vertices} vertices: "
            "give one map of labels on the same mesh"
        )
    names = {int(k): str(v).strip() for k, v in image.labeltable.get_labels_as_dict().items()}
    return image.darrays[0].data.astype(np.int64), names


def _regions(label: np.ndarray, names: dict[int, str], what: Path) -> Regions:
    """Regions from labels of points; labels of no point and those that stand for no region are left out."""
    nowhere = {i for i, name in names.items() if name.lower() in NOWHERE}
    there = np.array([i for i in np.unique(label).tolist() if i > 0 and i not in nowhere], int)
    if not len(there):
        raise ValueError(f"{what} has no label above 0; give a map of labels")
    inside = np.isin(label, there)
    number = np.where(inside, np.searchsorted(there, label), -1)
    name = unique([names.get(i, f"region {i:03d}") for i in there.tolist()], there.tolist())
    lost = [i for i in names if i > 0 and i not in nowhere and i not in set(there.tolist())]
    dropped = [ChannelNote(names[i], "", "dropped", f"no vertex has its label {i}") for i in lost]
    return Regions(number, name, [names.get(i, "") for i in there.tolist()], np.full((len(name), 3), np.nan), dropped)


def _each(name: list[str], position: np.ndarray) -> Regions:
    """Every vertex, voxel or parcel as a region."""
    return Regions(np.arange(len(name)), name, [""] * len(name), position)


def _read_gifti(path: Path, request: Request) -> Recording:
    """One hemisphere, or both."""
    import nibabel

    right = _other_side(path)
    files = [path] if right is None else [path, right]
    series = [_gifti_series(p) for p in files]
    tr = seconds_per_volume(path, series[0][1], request)
    volumes = [values.shape[1] for values, _ in series]
    if len(set(volumes)) > 1:
        raise ValueError(f"{path} has {volumes[0]} volumes, {right} has {volumes[1]}; give hemispheres of one run")
    sides = ["L ", "R "] if right else [""]
    atlases: list[Path | None] = [request.atlas] if right is None else [request.atlas, _other_side(request.atlas)]
    parts: list[Regions] = []
    for (values, _), side, file, atlas in zip(series, sides, files, atlases, strict=True):
        if atlas is not None:
            part = _regions(*_gifti_labels(atlas, len(values)), atlas)
        elif request.atlas is not None:
            raise ValueError(f"{file} needs labels of the right hemisphere beside {request.atlas}, under the same name")
        else:
            part = _each([f"{side}{i}" for i in range(len(values))], np.full((len(values), 3), np.nan))
        parts.append(part)
    regions = _joined(parts, sides) if right else parts[0]
    values = np.concatenate([values for values, _ in series])
    signal, left_out = means(path, [values], regions)
    return recording(
        path, request, regions, signal, left_out,
        tr_s=tr, reader=f"nibabel {nibabel.__version__}", beside=(right, *atlases),
    )  # fmt: skip


def _joined(parts: list[Regions], sides: list[str]) -> Regions:
    """Both hemispheres in one table; names that stand in both get their side in front."""
    left, right = parts
    shared = set(left.name) & set(right.name)
    name = [f"{s}{n}" if shared else n for part, s in zip(parts, sides, strict=True) for n in part.name]
    label = np.concatenate([left.label, np.where(right.label >= 0, right.label + len(left.name), -1)])
    position = np.concatenate([left.position, right.position])
    return Regions(label, name, left.area + right.area, position, left.dropped + right.dropped)


def _check_cifti(path: Path) -> None:
    """Look at the numbers in the XML of a CIFTI file: nibabel makes lists of as many things as they say.

    Raises:
        ValueError: for a map of a dimension that there is not, or more vertices than the file has bytes for.
    """
    size = path.stat().st_size

    def element(name: str, attributes: dict[str, str]) -> None:
        dimensions = attributes.get("AppliesToMatrixDimension", "0").split(",")
        if any(int(d) not in (0, 1) for d in dimensions):
            raise ValueError(f"a map of dimension {','.join(dimensions)[:40]}")
        for key in ("IndexCount", "IndexOffset"):
            if not 0 <= int(attributes.get(key, "0")) <= size:
                raise ValueError(f"{name} has {key} {attributes[key][:40]}")

    with path.open("rb") as file:
        for extension in extensions(path, file):
            if extension.lstrip().startswith(b"<"):
                look = expat.ParserCreate()
                look.StartElementHandler = element
                look.Parse(extension.rstrip(b"\0"), True)


def _cifti(path: Path) -> tuple[Any, list[Any]]:
    """A CIFTI-2 file through nibabel, and its two axes, after comparing its header with its size."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError, HeaderTypeError
    from nibabel.wrapstruct import WrapStructError

    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; give the path of a CIFTI file")
    try:
        _check_cifti(path)
        image: Any = nibabel.Cifti2Image.from_filename(path)
        maps = [image.header.get_index_map(i) for i in range(len(image.shape))]
        if any(abs(m.series_exponent or 0) > 12 or (m.number_of_series_points or 0) > 2**31 for m in maps):
            raise ValueError("its series has no believable step or length")
        axes = [image.header.get_axis(i) for i in range(len(image.shape))]
    except (
        ImageFileError, HeaderDataError, HeaderTypeError, WrapStructError, nibabel.cifti2.Cifti2HeaderError,
        expat.ExpatError, ValueError, LookupError, TypeError, AttributeError, OverflowError, OSError, EOFError,
        AssertionError, struct.error,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} cannot be read as CIFTI ({error}); {MEND}") from error
    dtype, size = image.get_data_dtype(), path.stat().st_size
    announced = image.dataobj.offset + math.prod(image.shape) * dtype.itemsize
    lengths = tuple(len(a) for a in axes)
    if dtype.kind not in "iuf" or len(axes) != 2 or lengths != image.shape or announced > size:
        raise ValueError(
            f"{path} has {size} bytes; its header announces {announced} ({image.shape} of {dtype}, axes of {lengths}); "
            f"{MEND}"
        )
    return image, axes


def _read_cifti(path: Path, request: Request) -> Recording:
    """Parcels, or vertices and voxels with a `.dlabel.nii` over the same ones."""
    import nibabel
    from nibabel.cifti2 import BrainModelAxis, ParcelsAxis, SeriesAxis

    image, (time, space) = _cifti(path)
    if not isinstance(time, SeriesAxis) or not isinstance(space, (BrainModelAxis, ParcelsAxis)) or len(time) < 2:
        raise ValueError(f"{path} has axes {type(time).__name__} and {type(space).__name__}; expected time and space")
    tr = seconds_per_volume(path, float(time.step) if time.unit == "SECOND" else None, request)
    if isinstance(space, ParcelsAxis):
        if request.atlas is not None:
            raise ValueError(f"{path} holds parcels already; leave the atlas out, or give the .dtseries.nii")
        places = [_metres(v.mean(0), space.affine) if len(v) else np.full(3, np.nan) for v in space.voxels]
        regions = _each([str(n) for n in space.name], np.array(places).reshape(-1, 3))
    elif request.atlas is None:
        names = [
            f"{n.removeprefix('CIFTI_STRUCTURE_').lower()} " + (str(v) if v >= 0 else "{} {} {}".format(*ijk))
            for n, v, ijk in zip(space.name, space.vertex, space.voxel, strict=True)
        ]
        regions = _each(names, np.where(space.volume_mask[:, None], _metres(space.voxel, space.affine), np.nan))
    else:
        regions = _from_dlabel(request.atlas, space, path)
    signal, left_out = means(path, _cifti_slabs(path, image), regions)
    return recording(
        path, request, regions, signal, left_out,
        tr_s=tr, reader=f"nibabel {nibabel.__version__}", beside=(request.atlas,),
    )  # fmt: skip


def _metres(voxel: np.ndarray, affine: np.ndarray | None) -> np.ndarray:
    """`(..., 3)` metres of voxel indices; NaN without an affine (a file of surfaces alone)."""
    return np.full(voxel.shape, np.nan) if affine is None else (voxel @ affine[:3, :3].T + affine[:3, 3]) / 1000


def _from_dlabel(atlas: Path, space: Any, path: Path) -> Regions:
    """The labels of a `.dlabel.nii` over the vertices and voxels of a run, in whatever order it has them."""
    from nibabel.cifti2 import BrainModelAxis, LabelAxis

    image, (maps, where) = _cifti(atlas)
    if not isinstance(maps, LabelAxis) or not isinstance(where, BrainModelAxis) or len(maps) != 1:
        raise ValueError(
            f"{atlas} has axes {type(maps).__name__} and {type(where).__name__}; expected one map of labels"
        )
    number = {place: i for i, place in enumerate(zip(where.name, where.vertex, map(tuple, where.voxel), strict=True))}
    values = np.append(np.asarray(image.dataobj)[0], 0)
    index = [number.get(place, -1) for place in zip(space.name, space.vertex, map(tuple, space.voxel), strict=True)]
    found = np.array(index) >= 0
    if any(where.nvertices.get(n, count) != count for n, count in space.nvertices.items()) or not found.any():
        raise ValueError(f"{atlas} lies on another mesh than {path}; give labels on the same mesh")
    regions = _regions(values[index].astype(np.int64), {k: v[0].strip() for k, v in maps.label[0].items()}, atlas)
    places = np.where(space.volume_mask[:, None], _metres(space.voxel, space.affine), np.nan)
    inside = regions.label >= 0
    for axis in range(3):  # a mean over a vertex is NaN: only regions of voxels alone have a place
        total = np.bincount(regions.label[inside], places[inside, axis], minlength=len(regions.name))
        regions.position[:, axis] = total / np.bincount(regions.label[inside], minlength=len(regions.name))
    return regions


def _cifti_slabs(path: Path, image: Any) -> Iterator[np.ndarray]:
    """`(point, time)` pieces that follow each other in time, of the memory-mapped file."""
    from nibabel.volumeutils import apply_read_scaling

    volumes, points = image.shape
    step = max(1, SLAB // points)
    try:
        mapped = image.dataobj.get_unscaled()
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); {MEND}") from error
    for start in range(0, volumes, step):
        yield apply_read_scaling(mapped[start : start + step].T, image.dataobj.slope, image.dataobj.inter)
