"""What a reader is told beside the path: whose recording it is, and what the file may not say itself."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True)
class Request:
    """Ids of a recording, and facts that win over what the file says.

    Every reader is a function `read(path, request) -> Recording`. It raises `ValueError` or `OSError` naming the file,
    what was found, what was expected and what mends it.

    Attributes:
        dataset, subject, session, run, device: as in `Recording`; device "" lets the reader name it.
        modality: "eeg", "meg", "ieeg", "fmri", "spikes" or "calcium"; None lets the file decide.
        montage: name of an MNE template that positions are taken from where the file has none.
        unit: physical unit of the numbers in the file ("uV", "mV", "V", "T", "fT"), where it is not what the file says.
        sfreq_hz: samples (or volumes, or bins) per second, for files that do not say.
        reference: what potentials are measured against, for files that do not say.
        label: condition of the whole recording: one event over all of it.
        names: names of channels, regions or neurons, for tables without names.
        atlas, mask, confounds: files beside an fMRI run.
        variable: the variable of a .mat, .npz or .h5 file that holds the data.
        participant: what the dataset says about the subject (age, sex, group).
        tracked: as in `Recording`, for whoever knows that neurons keep their names over sessions.
    """

    dataset: str
    subject: str
    session: str = ""
    run: str = ""
    device: str = ""
    modality: str | None = None
    montage: str | None = None
    unit: str | None = None
    sfreq_hz: float | None = None
    reference: str = ""
    label: str = ""
    names: tuple[str, ...] = ()
    atlas: Path | None = None
    mask: Path | None = None
    confounds: Path | None = None
    variable: str | None = None
    participant: dict[str, str] = field(default_factory=dict)
    tracked: bool = False


class MissingExtra(ImportError):
    """An optional package is not installed; the message is the command that installs it."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package.

    Raises:
        MissingExtra: with the one line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise MissingExtra(f"{package} is needed here and not installed: pip install 'brainfm[{extra}]'") from error
