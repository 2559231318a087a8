"""A recording to a finished shard, against MNE's read, notch, band-pass, resample and save: CPU seconds on one thread.

    python benchmarks/ingest.py [--minutes 30] [--repeat 2] [--case ingest_edf]

64 channels at 512 Hz, 0.5 to 100 Hz, notch at 50 Hz and its multiples, to 256 Hz. Each way runs in its own process,
so that `peak_mb` is its own; imports are not counted on either side. Ours includes the checksums of the file and of the
shard. `max_difference` and `relative_rms` are of the interior, against MNE, in standard deviations. The signal is noise
with a spectrum as of EEG. For `ingest_edf_4h` MNE would need ten gigabytes: its seconds are those of the shorter
file, times the ratio of lengths, and it is said so.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

CHANNELS, SFREQ, NEW = 64, 512, 256
STEPS = [
    {"notch": {"line_hz": 50}}, {"highpass": {"edge_hz": 0.5}}, {"lowpass": {"edge_hz": 100}},
    {"resample": {"sfreq_hz": NEW}},
]  # fmt: skip
CASES = {"ingest_edf": "edf", "ingest_edf_4h": "edf", "ingest_fif": "fif", "ingest_brainvision": "vhdr"}


def names() -> list[str]:
    """Electrodes of the 10-10 system, so that positions are found as in a real recording."""
    import mne

    montage = mne.channels.make_standard_montage("biosemi64")
    return montage.ch_names[:CHANNELS]


def microvolts(seconds: int) -> np.ndarray:
    """`(channel, time)` noise of 20 uV whose spectrum falls off with frequency, repeated every minute."""
    samples = 60 * SFREQ
    rng = np.random.default_rng(0)
    spectrum = rng.standard_normal((CHANNELS, samples // 2 + 1)) + 1j * rng.standard_normal(
        (CHANNELS, samples // 2 + 1)
    )
    minute = np.fft.irfft(spectrum / np.maximum(np.arange(samples // 2 + 1), 60), samples)
    minute *= 20 / minute.std()
    return np.tile(minute, -(-seconds // 60))[:, : seconds * SFREQ]


def write_edf(path: Path, seconds: int) -> None:
    """An EDF file of one-second records, written a minute at a time."""
    import edfio

    minute = microvolts(60)
    made = edfio.Edf([
        edfio.EdfSignal(row, SFREQ, label=f"EEG {name}", physical_dimension="uV", physical_range=(-400, 400))
        for row, name in zip(minute, names(), strict=True)
    ], data_record_duration=1)  # fmt: skip
    made.write(path)
    data = path.read_bytes()
    head = 256 * (CHANNELS + 1)
    with path.open("wb") as file:
        file.write(data[:236] + str(seconds).ljust(8).encode() + data[244:head])
        for _ in range(seconds // 60):
            file.write(data[head:])


def write_fif(path: Path, seconds: int) -> None:
    """A FIF file of float32, as MNE writes it."""
    import mne

    raw = mne.io.RawArray(microvolts(seconds) * 1e-6, mne.create_info(names(), SFREQ, "eeg"), verbose="error")
    raw.save(path, overwrite=True, verbose="error")


def write_brainvision(path: Path, seconds: int) -> None:
    """A BrainVision file of multiplexed int16 in steps of 0.0125 uV."""
    minute = np.rint(microvolts(60) / 0.0125).astype("<i2").T.tobytes()
    with path.with_suffix(".eeg").open("wb") as file:
        for _ in range(seconds // 60):
            file.write(minute)
    listed = "\n".join(f"Ch{i}={name},,0.0125,µV" for i, name in enumerate(names(), 1))
    path.write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={path.stem}.eeg\nMarkerFile={path.stem}.vmrk\nDataFormat=BINARY\nDataOrientation=MULTIPLEXED\n"
        f"NumberOfChannels={CHANNELS}\nSamplingInterval={1e6 / SFREQ}\n\n[Binary Infos]\nBinaryFormat=INT_16\n\n"
        f"[Channel Infos]\n{listed}\n"
    )
    path.with_suffix(".vmrk").write_text(
        "Brain Vision Data Exchange Marker File, Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={path.stem}.eeg\n\n[Marker Infos]\nMk1=New Segment,,1,1,0,20200101000000000000\n"
    )


def ours(path: Path, out: Path) -> None:
    """What `brainfm ingest PATH --steps ...` does."""
    from brainfm.datasets import local_files
    from brainfm.readers import collection
    from brainfm.shards.ingest import Unit, ingest

    found = collection.find(path, subject="1")
    units = [Unit(i.key, i.files, local_files.maker(i, {}, STEPS), i.request) for i in found.items]
    done = ingest(units, out, {}, STEPS, {"everyone": "train"}, jobs=1)
    if done.failed:
        raise SystemExit(str(done.failed))


def by_mne(path: Path, out: Path) -> None:
    """The usual calls, one after the other."""
    import mne

    raw = mne.io.read_raw(path, preload=True, verbose="error")
    raw.notch_filter(np.arange(50, SFREQ / 2 - 1, 50), verbose="error")
    raw.filter(0.5, 100, verbose="error")
    raw.resample(NEW, verbose="error")
    out.mkdir(parents=True, exist_ok=True)
    raw.save(out / "clean_raw.fif", overwrite=True, verbose="error")


def alone(way: str, path: Path, out: Path) -> dict[str, float]:
    """Run one way in a process of its own: CPU seconds and peak memory in MB."""
    done = subprocess.run(
        [sys.executable, __file__, "--way", way, "--path", str(path), "--out", str(out)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def run_alone(way: str, path: Path, out: Path) -> None:
    """In that process: load what is needed, then measure."""

    import brainfm.datasets.local_files
    import brainfm.readers.brainvision
    import brainfm.readers.edf
    import brainfm.readers.mne_formats
    import brainfm.shards.ingest  # noqa: F401

    started = time.process_time()
    {"ours": ours, "mne": by_mne}[way](path, out)
    spent = time.process_time() - started
    print(json.dumps({"seconds": spent, "peak_mb": peak_mb()}))


def peak_mb() -> float:
    """Peak memory of this process alone: that of `resource` begins with what its parent held."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def difference(shard: Path, saved: Path) -> tuple[float, float]:
    """Largest and root mean square difference of the interior, in standard deviations."""
    import mne

    from brainfm.shards.read import open_shards

    raw = mne.io.read_raw(saved, verbose="error")
    mine = open_shards(shard).recordings[0]
    edge = int(np.ceil(mine.reach_s * NEW)) + 1
    samples = min(mine.samples, raw.n_times)
    worst, total, count = 0.0, 0.0, 0
    spread = raw[:, edge : min(samples - edge, edge + 60 * NEW)][0].std()
    for start in range(edge, samples - edge, 60 * NEW):
        stop = min(start + 60 * NEW, samples - edge)
        gap = mine.signal(start, stop) - raw[:, start:stop][0]
        worst, total, count = max(worst, float(np.abs(gap).max())), total + float((gap**2).sum()), count + gap.size
    return worst / spread, float(np.sqrt(total / count)) / spread


def main() -> None:
    """Make the files, run both ways in turn, print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--repeat", type=int, default=2, help="runs of either way; the medians are printed")
    parser.add_argument("--case", choices=list(CASES), help="only this one")
    for hidden in ("--way", "--path", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way:
        run_alone(asked.way, Path(asked.path), Path(asked.out))
        return
    long, reference = 8, 0.0
    for name, suffix in CASES.items():
        if asked.case and name != asked.case and not (asked.case == "ingest_edf_4h" and name == "ingest_edf"):
            continue
        with tempfile.TemporaryDirectory() as folder:
            path, times = Path(folder) / f"rest.{suffix}", long if name.endswith("4h") else 1
            if suffix == "fif":
                path = path.with_name("rest_raw.fif")
            seconds = asked.minutes * 60 * times
            {"edf": write_edf, "fif": write_fif, "vhdr": write_brainvision}[suffix](path, seconds)
            runs: dict[str, list[dict[str, float]]] = {"ours": [], "mne": []}
            for turn in range(asked.repeat if times == 1 else 1):
                for way in runs if times == 1 else ("ours",):
                    runs[way].append(alone(way, path, Path(folder) / f"{way}{turn}"))
            middle = {
                way: {k: float(np.median([r[k] for r in found])) for k in ("seconds", "peak_mb")}
                for way, found in runs.items() if found
            }  # fmt: skip
            worst = rms = None
            if times == 1:
                worst, rms = difference(Path(folder) / "ours0", Path(folder) / "mne0/clean_raw.fif")
                reference = middle["mne"]["seconds"] if name == "ingest_edf" else reference
            base = middle["mne"]["seconds"] if times == 1 else reference * times
            line = {
                "name": name, "channels": CHANNELS, "minutes": asked.minutes * times, "sfreq_hz": SFREQ, "to_hz": NEW,
                "seconds": middle["ours"]["seconds"], "peak_mb": middle["ours"]["peak_mb"],
                "baseline": "MNE: read, notch, filter, resample, save"
                + ("" if times == 1 else f" (CPU seconds of {asked.minutes} min, times {times})"),
                "baseline_seconds": base, "baseline_peak_mb": middle.get("mne", {}).get("peak_mb"),
                "ratio": base / middle["ours"]["seconds"], "max_difference": worst, "relative_rms": rms,
            }  # fmt: skip
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
