"""The curves of a run: one CSV over all its attempts, and DVCLive beside it."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger


def last_values(curves: Path) -> dict[str, float]:
    """The last value of every logged metric."""
    rows = csv.DictReader(curves.read_text().splitlines())
    return {k: float(v) for row in rows for k, v in row.items() if v and k not in ("step", "epoch")}


def join_curves(earlier: Path, later: Path) -> None:
    """Put the rows of interrupted attempts before those of the one that went on, without the steps done twice.

    An attempt that was killed after its last step leaves nothing to do, and the next one has no rows of its own.
    """
    if not earlier.exists():
        return
    if not later.exists():
        later.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(earlier, later)
        return
    rows = [list(csv.DictReader(p.read_text().splitlines())) for p in (earlier, later)]
    first = min((int(r["step"]) for r in rows[1]), default=0)
    kept = [r for r in rows[0] if int(r["step"]) < first or not rows[1]] + rows[1]
    names = list(dict.fromkeys(k for r in kept for k in r))
    with later.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(kept)


def loggers(work: Path) -> list:
    """CSV for the report, DVCLive for `dvc plots` and its users' tools."""
    from dvclive.lightning import DVCLiveLogger

    live = DVCLiveLogger(
        dir=str(work / "dvclive"), save_dvc_exp=False, report=None, dvcyaml=None, resume=(work / "dvclive").exists()
    )
    return [CSVLogger(work, name="", version="csv", flush_logs_every_n_steps=50), live]
