"""Recordings of a Muse headband as tables of samples with a column of markers, which two datasets share: no dataset."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from brainfm.checksums import sha256
from brainfm.datasets import download
from brainfm.modalities import electrodes, units
from brainfm.recording import ChannelNote, Channels, Events, Recording

#: Nominal samples per second, and how many come in one radio packet.
SFREQ, PACKET = 256.0, 12
#: The headband's electrodes, in the order of the columns; "Right AUX" is a socket, into which little was plugged.
ELECTRODES, AUXILIARY = ("TP9", "AF7", "AF8", "TP10"), "Right AUX"
COLUMNS = ("timestamps", *ELECTRODES, AUXILIARY)
URL = "https://github.com/NeuroTechX/eeg-notebooks_v0.1"
#: Where a file says whose and when it is: subject, session and time of day.
PATH = re.compile(r"subject(\d+)/session(\d+)/(?:data|recording)_([\d._-]+?)(?:\.csv)+(?:\.gz)?")


def checksums(module: Path) -> dict[str, str]:
    """Path of a file → sha256, for the files known when `module` was written; plain and gzipped ones."""
    lines = module.with_suffix(".sha256").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines if line.strip())}


def fetch(root: Path, known: Mapping[str, str], local: Path | None, key: str) -> str:
    """Have a folder's recordings in `root`, of any people: known files are compared with their pinned sha256.

    Args:
        root: the dataset's folder in data/raw. known: of `checksums`. key: the dataset's name.
        local: a folder that holds `subjectN/sessionN/*.csv` or `.csv.gz`; may be None only where they are there.

    Raises:
        FileNotFoundError: without a folder, with the page; for one without recordings.
        ValueError: for a known file with other content.
    """
    if local is None:
        if download.listed(Path(root)):
            return f"{len(download.verify(Path(root)))} files (already there)"
        raise FileNotFoundError(
            f"{key} comes from a local folder only; get the folder of its recordings from {URL} and run: "
            f"brainfm fetch {key} --from FOLDER"
        )
    found = sorted(p.relative_to(local).as_posix() for p in Path(local).glob("subject*/session*/*.csv*"))
    found = [name for name in found if PATH.fullmatch(name)]
    if not found:
        raise FileNotFoundError(
            f"{local} holds no subjectN/sessionN/data_TIME.csv or .csv.gz; give the folder of {key} from {URL}"
        )
    pinned = {name: known.get(name) or sha256(Path(local) / name) for name in found}
    said = download.files("", pinned, root, local, key)
    strange = len(set(found) - set(known))
    return f"{len({PATH.fullmatch(n)[1] for n in found})} people, {said}" + (  # type: ignore[index]
        f"; {strange} of them are not in the list of known files and were taken as they are" if strange else ""
    )


def sources(root: Path) -> dict[str, list[Path]]:
    """`subject/session/run` → its file that is there or that the manifest lists; a run is named by its time of day."""
    root = Path(root)
    names = {p.relative_to(root).as_posix() for p in root.glob("subject*/session*/*.csv*")} | set(download.listed(root))
    found: dict[str, list[Path]] = {}
    for name in sorted(names):
        if match := PATH.fullmatch(name):
            run = re.sub(r"\D", "", match[3])
            found.setdefault(f"{match[1]}/{match[2]}/{run}", [root / name])
    return found


def keys(root: Path, subjects: list[str] | None, dataset: str) -> list[str]:
    """Keys of `sources` that were asked for, or all.

    Raises:
        FileNotFoundError: where there is none. KeyError: for an unknown one.
    """
    known = sources(root)
    if not known:
        raise FileNotFoundError(
            f"{root} holds no subjectN/sessionN/data_TIME.csv.gz; run: brainfm fetch {dataset} --from FOLDER"
        )
    return download.chosen(known, subjects, dataset)


def read(root: Path, key: str, dataset: str, labels: Mapping[int, str], trial_s: float) -> Recording:
    """One file: four electrodes in volt, its stretches without a lost packet, and an event for each marker.

    Args:
        root: the dataset's folder. key: of `sources`. dataset: its name.
        labels: marker → condition. trial_s: how long a stimulus lasts, seconds.

    Raises:
        ValueError: for a truncated file, other columns, other markers or another sampling rate.
    """
    path, digest = download.checked(root, sources(root)[key][0].relative_to(root).as_posix())
    table = _table(path, dataset)
    clock, values, marker = table[:, 0], table[:, 1:5].T * 1e-6, table[:, -1]
    at = np.flatnonzero(marker)
    if strange := sorted(set(marker[at].tolist()) - set(labels)):
        raise ValueError(f"{path} has the marker {strange[0]:g}; {dataset} has {', '.join(map(str, labels))} only")
    subject, session, run = key.split("/")
    names = list(ELECTRODES)
    recording = Recording(
        dataset=dataset, subject=subject, session=session, run=run, modality="eeg", device="muse",
        channels=Channels.make(
            names, "eeg", np.array([electrodes.template()[n] for n in names]), reference="Fpz", placed="montage"
        ),
        sfreq=SFREQ,
        signal=values,
        segments=segments(clock, path),
        events=Events(at / SFREQ, np.full(len(at), trial_s), [labels[int(m)] for m in marker[at]]),
        provenance={"files": {path.relative_to(root).as_posix(): digest}, "steps": []},
        channel_log=[
            *(ChannelNote(n, n, "kept", "position of the template") for n in names),
            ChannelNote(AUXILIARY, "", "dropped", "a socket, not an electrode of the headband"),
        ],
    )  # fmt: skip
    recording.note("read", clipped_at_uv=1000, clipped=int(np.sum(np.abs(values) >= 999.9e-6)))
    units.plausible(recording)
    return recording


def segments(clock: np.ndarray, path: Path) -> np.ndarray:
    """`(segment, 2)` stretches of samples between which no packet is missing.

    Single times are off by up to a packet and may step back, for a packet's samples get theirs when it arrives. So a
    break is where the clock moves against the count of samples by more than half a packet in the median of a quarter
    of a second. Within that time of the ends of a file none is looked for.

    Args:
        clock: `(sample,)` seconds. path: of the file, for the error.

    Raises:
        ValueError: for a clock that does not run at `SFREQ` within 1 %, or is not finite.
    """
    late, around = clock - np.arange(len(clock)) / SFREQ, round(SFREQ / 4)
    steps = np.flatnonzero(np.abs(np.diff(late)) > PACKET / 2 / SFREQ) + 1
    breaks = [0]
    for i in steps[(steps >= around) & (steps <= len(clock) - around)].tolist():
        before, after = late[max(breaks[-1], i - around) : i], late[i : i + around]
        if len(before) > PACKET and abs(np.median(after) - np.median(before)) > PACKET / 2 / SFREQ:
            breaks.append(i)
    found = np.stack([breaks, [*breaks[1:], len(clock)]], axis=1)
    longest = found[np.argmax(found[:, 1] - found[:, 0])]
    own = clock[longest[0] : longest[1]]
    slope = np.polyfit(np.arange(len(own)), own, 1)[0] if len(own) > 1 and np.isfinite(own).all() else np.nan
    if not 0.99 < slope * SFREQ < 1.01:
        raise ValueError(
            f"{path}: its clock says {1 / slope:.1f} samples per second; a Muse has {SFREQ:g}: "
            "check the first column, which is seconds"
        )
    return found


def _table(path: Path, dataset: str) -> np.ndarray:
    """All numbers of a file `(sample, column)`."""
    mend = f"delete it and run: brainfm fetch {dataset} --from FOLDER"
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            head = file.readline().strip().split(",")
            if tuple(head[:6]) != COLUMNS or len(head) != 7 or not head[6].startswith("Marker"):
                raise ValueError(f"it has the columns {', '.join(head)[:80]}; expected {', '.join(COLUMNS)}, Marker")
            table = np.loadtxt(file, delimiter=",", ndmin=2)
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}); {mend}") from error
    if len(table) < SFREQ or table.shape[1] != 7 or not np.isfinite(table).all():
        raise ValueError(f"{path} has {len(table)} samples, or some that are no number; expected 1 s or more; {mend}")
    return table
