"""decode DECODER FILE: what a fitted decoder says over the time of continuous recordings, as tables and a figure."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from brainfm.api import NEW, Decoder
from brainfm.datasets.local_files import DEFAULTS
from brainfm.datasets.same_cleaning import band_of, card_steps, cleaning_of, sees_whole, within, words_of
from brainfm.decode_codes import DecodeError
from brainfm.describe import CONSOLE
from brainfm.evaluations import sliding
from brainfm.evaluations.methods.adaptation import ALIGNED
from brainfm.evaluations.sliding import Places
from brainfm.modalities import cleaning, units
from brainfm.readers import bids, collection, detect
from brainfm.readers.collection import Item
from brainfm.readers.request import MissingExtra
from brainfm.recording import Channels, Events, Recording
from brainfm.report import in_time
from brainfm.shards import schema
from brainfm.shards.read import open_shards
from brainfm.shards.stored import Stored
from brainfm.tokens import Facts

#: Windows of a recording that a decoder which aligns people sees first, without labels.
CALIBRATION = 200
#: What to do about a file whose numbers are in another unit: this verb has no option for it.
UNIT = "mend its unit, or `brainfm ingest FILE --unit {unit}` and decode the shard"
#: Who wrote a table, in its sidecar: what others wrote is not replaced.
WRITER = "brainfm decode"


class Continuous(NamedTuple):
    """A cleaned recording at the decoder's rate, wherever it came from.

    Attributes:
        name: of the files that are written. read: first and one-past-last sample → `(channel, time)` in SI units.
        segments: `(segment, 2)` samples of stretches without a break. person: whose, "" where the file does
            not say. reach_s: how far its filters look ahead.
        steps: the cleaning, as in the provenance. remarks: what a user should know of it.
    """

    name: str
    read: Callable[[int, int], np.ndarray]
    channels: Channels
    sfreq: float
    segments: np.ndarray
    events: Events
    reach_s: float
    person: str
    simulated: bool
    steps: list[dict[str, Any]]
    remarks: list[str]


def run(
    decoder: Path, files: Sequence[Path], out: Path, step_s: float = 0.5, smooth_s: float = 2.0,
    threshold: float = 0.5, causal: bool = False, montage: str | None = None,
) -> list[Path]:  # fmt: skip
    """Write `NAME_probabilities.tsv`, `NAME_events.tsv` (BIDS) with their sidecars, and `NAME.png`, of each recording.

    Args:
        decoder: folder of `Decoder.save`. files: recordings that `brainfm ingest` reads, shards, or folders of them.
        out: folder to write to. step_s: from window to window. smooth_s: width of the moving mean of probabilities.
        threshold: lowest smoothed probability of an event.
        causal: nothing after a time enters what is said of that time.
        montage: MNE template for positions that the files lack.

    Returns:
        The tables of events.

    Raises:
        ValueError, FileNotFoundError: where the decoder or a number cannot be used.
        DecodeError: with a line per recording that failed, after all others are done.
    """
    if not (step_s > 0 and smooth_s >= 0 and 0 <= threshold <= 1):
        raise ValueError(
            f"step_s {step_s:g}, smooth_s {smooth_s:g}, threshold {threshold:g}; expected seconds above 0, seconds of "
            "0 or more, and a probability"
        )
    fitted = opened(decoder)
    written: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for path in files:
        try:
            found = list(sources(path, fitted, causal, montage))
        except (ValueError, OSError, MissingExtra) as error:
            failed[str(path)] = str(error)
            continue
        for name, source in found:
            try:
                if name in written:
                    raise ValueError(f"another recording has the name {name} too; decode it to another --out")
                recording = source()
                written[name] = _decode(fitted, recording, out, step_s, smooth_s, threshold, causal)
            except (ValueError, OSError, MissingExtra) as error:
                failed[f"{path} ({name})" if len(found) > 1 else str(path)] = str(error)
    if failed:
        lines = "\n".join(f"  {key}: {why}" for key, why in failed.items())
        total = len(failed) + len(written)
        raise DecodeError(f"{len(failed)} of {total} recordings failed, the others are in {out}\n{lines}")
    return list(written.values())


def opened(folder: Path) -> Decoder:
    """The decoder in a folder, for sampled signals.

    Raises:
        FileNotFoundError, ValueError: where there is none, and how to fit one; for a decoder of spikes.
    """
    if not (folder / "decoder.json").is_file():
        if (folder / "config.json").is_file():
            raise ValueError(
                f"{folder} is a pretrained model and no decoder: it has no classes yet. Fit it to labelled trials, "
                f"`brainfm finetune {folder} --shards SHARDS --subject ID --out DECODER`, and decode with that folder"
            )
        raise FileNotFoundError(
            f"{folder} holds no decoder (no decoder.json); make one with `brainfm finetune` or Decoder.save"
        )
    decoder = Decoder.load(folder)
    if not decoder.encoder.facts.sfreq:
        raise ValueError(f"{folder} decodes spikes; decoding in time slides over sampled signals")
    return decoder


def sources(
    path: Path, decoder: Decoder, causal: bool, montage: str | None
) -> Iterator[tuple[str, Callable[[], Continuous]]]:
    """Name of each recording at a path, and what reads and cleans it; nothing is read yet."""
    shards = [path] if path.is_file() else sorted(path.glob("**/*.h5")) if path.is_dir() else []
    if shards and all(schema.kind_of(file) == schema.SCHEMA for file in shards):
        for stored in open_shards(path).recordings:
            yield _name(stored), partial(of_shard, stored, decoder, causal)
        return
    loose = (path.is_file() or bool(detect.folder_reader(path))) and bids.root_of(path) is None
    found = collection.find(path, montage=montage, subject="unknown" if loose else None)  # who it was does not matter
    for item in found.items:
        yield _stem(item.path), partial(of_file, item, decoder, causal)


def _stem(path: Path) -> str:
    """Name of a file without its suffix, nor what BIDS puts in the place of `_events`."""
    return re.sub(r"(?<=.)_(eeg|meg|ieeg)$", "", detect.stem(path))


def _name(stored: Stored) -> str:
    return "_".join(filter(None, (stored.path.stem, stored.session, stored.run)))


def of_shard(stored: Stored, decoder: Decoder, causal: bool) -> Continuous:
    """A recording of a shard as it is; its rate must be the decoder's.

    Raises:
        ValueError: for another rate, and for a causal answer where the cleaning of the shard saw the whole recording.
    """
    facts = decoder.encoder.facts
    if stored.sfreq != facts.sfreq:
        raise ValueError(
            f"{stored.id} has {stored.sfreq:g} samples per second; the decoder reads {facts.sfreq:g}: ingest it with "
            f"`--sfreq-hz {facts.sfreq:g}`, or give the file that it came from"
        )
    steps, remarks = stored.provenance()["steps"], _strange(stored.modality, facts)
    known = card_steps(decoder.encoder.card, stored.modality)[0]
    if known is not None and (own := band_of(steps)) != (wanted := band_of(known)):
        remarks.append(f"it was filtered by {words_of(own)}, the model's training data by {words_of(wanted)}")
    if causal and (seen := [s["step"] for s in steps if sees_whole(s["step"], s)]):
        raise ValueError(
            f"--causal: the cleaning of {stored.id} ({', '.join(seen)}) saw the whole recording; ingest it without "
            "these steps, give the file that it came from, or decode it without --causal"
        )
    return Continuous(
        _name(stored), stored.signal, stored.channels, stored.sfreq, stored.segments, stored.events, stored.reach_s,
        stored.person, stored.simulated, steps, remarks,
    )  # fmt: skip


def of_file(item: Item, decoder: Decoder, causal: bool) -> Continuous:
    """Read a file and clean it as the encoder's training data was, as its card says.

    Raises:
        ValueError, OSError: naming what was found and what mends it.
    """
    (recording,) = collection.recordings(item)
    if recording.modality not in DEFAULTS or recording.signal is None or not recording.sfreq:
        raise ValueError(
            f"a recording of {recording.modality}; files are decoded of {', '.join(DEFAULTS)}: ingest it with "
            "`brainfm ingest` and decode the shard"
        )
    facts = decoder.encoder.facts
    units.plausible(recording, blocks=10, mend=UNIT)
    steps, remarks = cleaning_of(decoder.encoder.card, recording.modality, facts.sfreq, causal)
    steps = within(steps, recording.sfreq / 2)
    remarks += _strange(recording.modality, facts)
    if recording.sfreq < facts.sfreq:
        remarks.append(
            f"it has {recording.sfreq:g} samples per second and the model reads {facts.sfreq:g}: what lies above "
            f"{recording.sfreq / 2:g} Hz is missing"
        )
    cleaned: Recording = cleaning.clean(recording, steps)
    if causal and any(sees_whole(step["step"], step) for step in cleaned.provenance["steps"]):
        raise ValueError(
            f"--causal: {recording.sfreq:g} Hz is no ratio of whole numbers to {facts.sfreq:g} Hz, so resampling sees "
            "the whole recording; decode it without --causal"
        )
    signal, segments = cleaned.signal, cleaned.segments
    if signal is None or segments is None:
        raise ValueError(f"{item.path}: nothing is left of the signal after cleaning")
    return Continuous(
        _stem(item.path), lambda a, b: np.asarray(signal[:, a:b], np.float32), cleaned.channels, facts.sfreq,
        segments, cleaned.events, cleaned.reach_s, "", cleaned.simulated, cleaned.provenance["steps"], remarks,
    )  # fmt: skip


def _strange(modality: str, facts: Facts) -> list[str]:
    if not facts.modality or modality in facts.modality:
        return []
    return [f"a recording of {modality}; the model was trained on {', '.join(facts.modality)}"]


def _decode(
    decoder: Decoder, source: Continuous, out: Path, step_s: float, smooth_s: float, threshold: float, causal: bool
) -> Path:  # fmt: skip
    """Decode one recording and write its files; the table of events."""
    tables = [out / f"{source.name}_{what}.tsv" for what in ("probabilities", "events")]
    for table in tables:
        _check_ours(table)
    step, sfreq = max(1, round(step_s * source.sfreq)), source.sfreq
    where = sliding.places(source.segments, decoder.samples_, step)
    classes = [str(word) for word in decoder.classes_]
    batches = sliding.slide(_fitted_to(decoder, source, where, causal), source.read, where)
    total = sum(-(-n // sliding.SIZE) for n in np.unique(where.part, return_counts=True)[1])
    chances = np.concatenate(
        list(track(batches, source.name, total=total, transient=True, disable=not CONSOLE.is_terminal))
    )
    smooth = sliding.smoothed(chances, where.part, smooth_s * sfreq / step, causal)
    time = sliding.times(where, sfreq, causal, source.reach_s)
    bounds = sliding.limits(source.segments, sfreq, causal, source.reach_s)
    events = sliding.events(smooth, time, where.part, classes, threshold, step / sfreq, bounds, causal)
    told = {
        "GeneratedBy": {"Name": WRITER, "Version": importlib.metadata.version("brainfm")},
        "Recording": source.name, "Simulated": source.simulated, "SamplingFrequency": sfreq,
        "WindowSeconds": where.length / sfreq, "StepSeconds": step / sfreq, "SmoothingSeconds": smooth_s,
        "Threshold": threshold, "Causal": causal, "FilterReachSeconds": source.reach_s, "Cleaning": source.steps,
        "Remarks": source.remarks,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    numbers = np.column_stack([time, chances, smooth])
    rows = [[f"{x:.4f}" for x in row] for row in numbers]
    _write(tables[0], _probability_columns(classes, causal), rows, told)
    rows = [[f"{e.onset:.4f}", f"{e.duration:.4f}", e.label, f"{e.probability:.4f}"] for e in events]
    _write(tables[1], _event_columns(classes, causal), rows, told)
    picture = in_time.course(time, smooth, where.part, classes, source.events, source.name, source.simulated)
    _replace(out / f"{source.name}.png", picture)
    skipped = len(source.segments) - len(np.unique(where.part))
    print(f"{source.name}: {len(time)} windows, {len(events)} events in {tables[1]}")
    for remark in [*source.remarks, *([f"{skipped} stretches are shorter than a window"] if skipped else [])]:
        print(f"  note: {remark}")
    return tables[1]


def _fitted_to(decoder: Decoder, source: Continuous, where: Places, causal: bool) -> Callable[[np.ndarray], np.ndarray]:
    """What decodes windows of a recording; a decoder that aligns people sees some of its windows first, all over it.

    Raises:
        ValueError: for a causal answer of a decoder that has not seen the person yet.
    """
    person = source.person
    if decoder.adapt in ALIGNED:
        maps = decoder.fitted_.view.maps
        person = source.person if source.person in maps else NEW
        if person not in maps:
            if causal:
                raise ValueError(
                    f"--causal: this decoder ({decoder.adapt}) aligns each person and knows {source.name} not yet; "
                    "show it earlier rest with Decoder.calibrate and save it, or decode without --causal"
                )
            decoder = copy(decoder)  # the next recording may be somebody else's
            rows = np.unique(np.linspace(0, len(where.start) - 1, CALIBRATION).round().astype(int))
            windows = np.stack([source.read(int(a), int(a) + where.length) for a in where.start[rows]])
            decoder.calibrate(windows, channels=source.channels, sfreq=source.sfreq, people=[person] * len(windows))
            source.remarks.append(f"aligned ({decoder.adapt}) by {len(rows)} windows of it, without labels")

    def decode(windows: np.ndarray) -> np.ndarray:
        people = [person] * len(windows) if person else None
        return decoder.predict_proba(windows, channels=source.channels, sfreq=source.sfreq, people=people)

    return decode


def _probability_columns(classes: list[str], causal: bool) -> dict[str, dict[str, str]]:
    """Columns of the table of probabilities, as a BIDS sidecar describes them.

    A class has a prefix, so that no word of a decoder is the name of another column or of a key of the sidecar.
    """
    middle = "middle of the window" if not causal else "end of the window and the reach of the filters behind it"
    return {
        "time": {"Description": f"{middle}, from the start of the recording", "Units": "s"},
        **{
            f"probability_{word}": {"Description": f"probability of {word!r} in the window", "Units": "1"}
            for word in classes
        },
        **{
            f"smoothed_{word}": {"Description": f"moving mean of the probability of {word!r}", "Units": "1"}
            for word in classes
        },
    }


def _event_columns(classes: list[str], causal: bool) -> dict[str, dict[str, Any]]:
    began = "when the first window of the run could be known" if causal else "start of the run"
    return {
        "onset": {"Description": f"{began}, from the start of the recording", "Units": "s"},
        "duration": {"Description": "length of the run", "Units": "s"},
        "trial_type": {
            "Description": "most likely class after smoothing, over a run of windows",
            "Levels": {word: "a class of the decoder" for word in classes},
        },
        "probability": {"Description": "mean smoothed probability of the class in the run", "Units": "1"},
    }


def _check_ours(table: Path) -> None:
    """Refuse to replace a table that something else wrote, such as the recording's own events."""
    if not table.exists():
        return
    try:
        wrote = json.loads(table.with_suffix(".json").read_text())["GeneratedBy"]["Name"]
    except (OSError, ValueError, KeyError, TypeError):
        wrote = ""
    if wrote != WRITER:
        raise ValueError(f"{table} is there and was not written by `{WRITER}`; choose another folder with --out")


def _write(table: Path, columns: dict[str, dict[str, Any]], rows: list[list[str]], told: dict[str, Any]) -> None:
    """A table and the sidecar that describes it."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    _replace(table.with_suffix(".json"), (json.dumps({**columns, **told}, indent=1) + "\n").encode())
    _replace(table, text.getvalue().encode())


def _replace(path: Path, content: bytes) -> None:
    """Write a file in one step."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
