"""Run 2 comes before run 10 wherever something is cut, counted or laid end to end in time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainfm.evaluations import few_shot, in_time, new_neurons, protocol, protocols, regression
from brainfm.given import Given, earlier_and_later
from brainfm.recording import Channels, Events, Recording, Series
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.splits import natural
from brainfm.training.batches import Batcher, WindowDataset

RUNS = ["2", "10"]


def recording(run: str, session: str = "day") -> Recording:
    """Four trials of a second; the covariate is the number of the run."""
    return Recording(
        "made_up", "1", "eeg", Channels.make(["a"], "eeg"), sfreq=8.0, session=session, run=run,
        signal=np.random.default_rng(int(run)).normal(0, 1e-5, (1, 32)),
        events=Events(np.arange(4.0), np.ones(4), ["x", "y"] * 2),
        aligned={"speed": Series(np.full((32, 1), float(run)), 8.0, "m/s", 0.0)},
    )  # fmt: skip


@pytest.fixture
def windows(tmp_path: Path) -> Windows:
    """The trials of both runs, as shards give them: run 10 first."""
    write_shard(tmp_path / "1.h5", [recording(run) for run in sorted(RUNS)], {})
    found = open_shards(tmp_path).trials(0.0, 1.0)
    assert found.of("run").tolist() == ["10"] * 4 + ["2"] * 4
    return found


def runs(windows: Windows) -> list[str]:
    return list(dict.fromkeys(windows.of("run").tolist()))


def test_names_are_sorted_by_their_numbers() -> None:
    mixed = ["s/1/rest/run-10", "s/1/rest/run-9b", "s/1/rest2/1", "s/1/rest/run-9", "s/1//", "s/02/rest/1"]
    assert sorted(mixed, key=natural) == [
        "s/1//", "s/1/rest/run-9", "s/1/rest/run-9b", "s/1/rest/run-10", "s/1/rest2/1", "s/02/rest/1"
    ]  # fmt: skip
    assert sorted(["b/2", "b/02", "a/2"], key=natural) == ["a/2", "b/02", "b/2"]


def test_rows_are_in_time_of_sessions_runs_and_starts(tmp_path: Path) -> None:
    made = [recording(run, session) for session in ("10", "9") for run in sorted(RUNS)]
    write_shard(tmp_path / "1.h5", made, {})
    found = open_shards(tmp_path).trials(0.0, 1.0)
    found = found.take(np.random.default_rng(0).permutation(len(found)))
    ordered = found.take(protocol.rows_in_time(found))
    names = [f"{s}/{r}" for s, r in zip(ordered.of("session"), ordered.of("run"), strict=True)]
    assert names == [x for x in ("9/2", "9/10", "10/2", "10/10") for _ in range(4)]
    assert ordered.start.tolist() == [0, 8, 16, 24] * 4
    assert len(protocol.rows_in_time(found.take([]))) == 0


def test_shots_come_from_the_earlier_run(windows: Windows) -> None:
    pool, held = few_shot.halves(windows, ["x", "y"])
    assert (runs(windows.take(pool)), runs(windows.take(held))) == (["2"], ["10"])


def test_a_decoder_is_fitted_on_the_earlier_run(windows: Windows) -> None:
    fit, held, _ = earlier_and_later(windows, 0.5)
    assert (runs(fit), runs(held)) == (["2"], ["10"])
    given = Given(WindowDataset(windows, Batcher()), windows.of("person"), np.zeros(8, int), ["x"])
    assert runs(windows.take(given.order())) == RUNS


def test_a_target_is_in_the_order_of_runs(windows: Windows) -> None:
    ordered, target = regression.with_target(windows, "speed")
    assert (runs(ordered), target[:, 0].tolist()) == (RUNS, [2.0] * 4 + [10.0] * 4)
    assert new_neurons.labelled_time(ordered).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_runs_are_laid_end_to_end_in_their_order(windows: Windows) -> None:
    start, stop = protocols.seconds(windows)
    begin, end = protocols._one_clock(windows, np.arange(8), start, stop)
    assert begin.tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert end.tolist() == [5, 6, 7, 8, 1, 2, 3, 4]
    first, last = in_time.within(windows, 2, 0.0)
    assert (runs(windows.take(first.test)), runs(windows.take(last.test))) == (["2"], ["10"])
