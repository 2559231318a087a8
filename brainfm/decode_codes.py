"""decode-codes: codes back to signals as FIF files, with the error against the recordings that they were made from."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mne
import numpy as np
from mne.io.constants import FIFF
from rich.progress import track
from rich.table import Table

from brainfm.describe import CONSOLE
from brainfm.modalities.spatial import set_coils
from brainfm.recording import Channels
from brainfm.shards.codes import CodeCorpus, StoredCodes, open_codes
from brainfm.shards.read import open_shards
from brainfm.shards.stored import Stored
from brainfm.training import checkpoint
from brainfm.training.checkpoint import Pretrained
from brainfm.training.codes import TOKENIZER, check_codes
from brainfm.training.codes_to_signal import Decoded, Error

ERRORS = "error.json"
#: Types of MNE for kinds of channel; other kinds are "misc".
TYPES = {"eeg": "eeg", "mag": "mag", "grad": "grad", "axial": "mag", "ecog": "ecog", "seeg": "seeg"}
#: What is marked where no code stands; MNE leaves out what is marked "BAD".
GAP = "BAD_not_coded"


class DecodeError(RuntimeError):
    """Some recordings could not be decoded; the others were."""


def run(
    codes: Path, out: Path, against: Path | None = None, scale_of_source: bool = False, as_json: bool = False
) -> dict[str, Any]:
    """Write what the codes give back as `out/<dataset>/<shard>_<session>_<run>_raw.fif`, and with a source its error.

    Args:
        codes: a folder of codes, or a part of one whose tokenizer lies in a folder above.
        out: folder of the FIF files, and of `error.json`.
        against: shards that the codes were made from, to compare with.
        scale_of_source: write SI units by the mean and deviation of each window of the source, not z-scores.
        as_json: print the errors as JSON lines and no table.

    Returns:
        What `error.json` holds; without errors where there is no source.

    Raises:
        FileNotFoundError: where there is no code, no tokenizer or no shard.
        ValueError: where the tokenizer is not the one that made the codes, or a scale is asked for without its source.
        DecodeError: with a line per recording that failed, after all others are done.
    """
    if scale_of_source and against is None:
        raise ValueError("the scale of the source needs the source; give its shards with `--against`")
    corpus = open_codes(codes)
    tokenizer = tokenizer_of(codes)
    check_codes(corpus, tokenizer.model)
    sources = {} if against is None else {r.id: r for r in open_shards(against).recordings}
    rows: list[dict[str, Any]] = []
    pooled: dict[str, Error] = {}
    failed: dict[str, str] = {}
    for stored in track(corpus.recordings, "decode codes", transient=True, disable=as_json):
        source = sources.get(stored.id)
        if why := _unlike(stored, source, against):
            failed[stored.id] = why
            continue
        decoded = Decoded(tokenizer.model, stored, source, scale_of_source)
        try:
            write_fif(out / stored.dataset / f"{name_of(stored)}_raw.fif", decoded)
        except (ValueError, OSError) as error:
            failed[stored.id] = str(error)
            continue
        for kind, compared in decoded.errors.items():
            rows.append({"id": stored.id, "simulated": stored.simulated, "kind": kind, **compared.figures()})
            pooled[kind] = pooled.get(kind, Error()).plus(compared)
    said = {
        **_about(corpus, scale_of_source),
        "recordings": rows, "kinds": {kind: error.figures() for kind, error in pooled.items()}, "failed": failed,
    }  # fmt: skip
    if against is not None:
        _write_json(out / ERRORS, said)
        _print(said, as_json)
    if not as_json:
        print(f"decode-codes: {len(corpus) - len(failed)} recordings in {out}\n  {said['written']}")
    if failed:
        lines = "\n".join(f"  {key}: {why}" for key, why in sorted(failed.items()))
        raise DecodeError(f"{len(failed)} of {len(corpus)} recordings failed, the others are in {out}\n{lines}")
    return said


def tokenizer_of(codes: Path) -> Pretrained:
    """The tokenizer that lies in a folder of codes, or in a folder above a part of one.

    Raises:
        FileNotFoundError: where there is none.
    """
    for folder in (codes, *codes.resolve().parents[:2]):
        if (folder / TOKENIZER).is_dir():
            return checkpoint.load(folder / TOKENIZER)
    raise FileNotFoundError(
        f"no folder {TOKENIZER!r} in {codes} or above it; codes mean nothing without their tokenizer: copy it there, "
        "or run `brainfm tokenize` again"
    )


def _unlike(stored: StoredCodes, source: Stored | None, against: Path | None) -> str:
    """Why a recording of codes cannot be compared with its source; "" where it can, or is not to be."""
    if against is None:
        return ""
    if source is None:
        return f"{against} does not hold it; name the shards that were tokenized"
    if source.checksum != stored.source_checksum:
        return f"{source.path} has changed since it was tokenized; run `brainfm tokenize` again"
    return ""


def name_of(stored: StoredCodes) -> str:
    """Shard, session and run, as far as there are such."""
    return "_".join(filter(None, (stored.path.stem, stored.group.removesuffix("_"))))


def write_fif(path: Path, decoded: Decoded) -> None:
    """Write a recording piece by piece; MNE splits files above 2 GB. What lies there under that name is replaced."""
    part = path.parent / f".{path.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        raw = Reconstruction(decoded)
        seconds = decoded.size * decoded.stored.stride / decoded.stored.sfreq
        with quiet():
            raw.save(part / path.name, buffer_size_sec=seconds, fmt="single", verbose="error")
        for file in sorted(part.iterdir()):
            os.replace(file, path.parent / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


class Reconstruction(mne.io.BaseRaw):
    """What codes give back as an MNE recording: decoded when it is read, so that no length of it fills the memory."""

    def __init__(self, decoded: Decoded) -> None:
        stored = decoded.stored
        info = measurement(stored, decoded.scaled)
        super().__init__(
            info, last_samps=(stored.samples - 1,), raw_extras=[{"decoded": decoded}], orig_format="single",
            verbose="error",
        )  # fmt: skip
        gaps = decoded.gaps()
        onset = [*stored.events.onset, *(a / stored.sfreq for a, _ in gaps)]
        length = [*stored.events.duration, *((b - a) / stored.sfreq for a, b in gaps)]
        words = [*stored.events.label, *(GAP for _ in gaps)]
        with quiet():
            self.set_annotations(mne.Annotations(onset, length, [w or "event" for w in words]), verbose="error")

    def _read_segment_file(
        self, data: np.ndarray, idx: slice | np.ndarray, fi: int, start: int, stop: int, cals: np.ndarray,
        mult: np.ndarray | None,
    ) -> None:  # fmt: skip
        """Fill `data` `(channel, time)` as MNE asks; calibrations are 1."""
        values = self._raw_extras[fi]["decoded"].read(start, stop)  # MNE hides the attributes of a class of its own
        data[:] = values[idx] if mult is None else mult @ values


def measurement(stored: StoredCodes, scaled: bool) -> mne.Info:
    """Names, types, places and bad channels of a recording, and in words what its numbers are."""
    channels = stored.channels
    types = [TYPES.get(kind, "misc") for kind in channels.kind]
    info = mne.create_info(channels.name, stored.sfreq, types, verbose="error")
    for channel, kind, place in zip(info["chs"], channels.kind, channels.position, strict=True):
        if kind in ("eeg", "ecog", "seeg"):
            channel["loc"][:3], channel["coord_frame"] = place, FIFF.FIFFV_COORD_HEAD
            if not scaled:  # MNE tells magnetometers from gradiometers by their unit, so theirs cannot be taken away
                channel["unit"] = FIFF.FIFF_UNIT_NONE
    _place_coils(info, channels)
    info["bads"] = [name for name, bad in zip(channels.name, channels.bad, strict=True) if bad]
    info["subject_info"] = {"his_id": stored.subject}
    info["description"] = f"{stored.id}{' (simulated)' if stored.simulated else ''}, decoded from codes; " + _words(
        stored, scaled
    )
    return info


def _place_coils(info: mne.Info, channels: Channels) -> None:
    known = np.isfinite(channels.position).all(axis=1) & channels.orientation.any(axis=1)
    rows = [i for i, kind in enumerate(channels.kind) if kind in ("mag", "grad", "axial") and known[i]]
    if rows:
        coils = mne.pick_info(info, rows, verbose="error")
        set_coils(coils, channels.pick(rows))
        for row, channel in zip(rows, coils["chs"], strict=True):
            info["chs"][row].update({k: channel[k] for k in ("loc", "coil_type", "coord_frame")})


def _words(stored: StoredCodes, scaled: bool) -> str:
    window = f"{stored.patch / stored.sfreq:g} s window"
    if scaled:
        return f"SI units after the average reference, by the source's mean and deviation of each channel and {window}"
    return f"z-scores: each channel and {window} in units of its own deviation after the average reference; no volts"


def _about(corpus: CodeCorpus, scaled: bool) -> dict[str, Any]:
    one = corpus.recordings[0]
    return {
        "tokenizer": one.tokenizer, "tokenizer_hash": one.tokenizer_hash, "window_s": one.patch / one.sfreq,
        "overlap": one.overlap, "written": _words(one, scaled),
        "compared": "z-scores of each channel and window after the average reference; without bad and constant ones",
    }  # fmt: skip


def _write_json(path: Path, said: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(said, indent=1) + "\n")
    os.replace(part, path)


def _print(said: dict[str, Any], as_json: bool) -> None:
    pooled = [{"id": "all", "kind": kind, **figures} for kind, figures in said["kinds"].items()]
    if as_json:
        for row in (*said["recordings"], *pooled):
            print(json.dumps(row))
        return
    table = Table(title=f"reconstruction by {said['tokenizer']}, z-scores of {said['window_s']:g} s windows")
    for column in ("recording", "kind", "windows of channels", "PCC", "R2", "NRMSE"):
        table.add_column(column)
    for row in (*said["recordings"], *pooled):
        figures = ["–" if row[k] is None else f"{row[k]:.3f}" for k in ("pcc", "r2", "nrmse")]
        name = row["id"] + (" (simulated)" if row.get("simulated") else "")
        table.add_row(name, row["kind"], str(row["channel_windows"]), *figures)
    CONSOLE.print(table)


@contextmanager
def quiet() -> Iterator[None]:
    """MNE warns of names and annotations that it shortens; what is written says itself what it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
