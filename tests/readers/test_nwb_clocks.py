"""NWB files whose spikes and behaviour were taken on other clocks, or on one that starts anywhere."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfm.readers import nwb
from brainfm.readers.request import Request
from brainfm.recording import Recording
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard

pynwb = pytest.importorskip("pynwb")
UNIX = 1_700_000_000.0


def blank() -> Any:
    return pynwb.NWBFile("a test", "id-1", datetime(2020, 1, 1, tzinfo=UTC))


def saved(file: Any, path: Path) -> Path:
    with pynwb.NWBHDF5IO(path, "w") as io:
        io.write(file)
    return path


def session(
    path: Path, spikes_s: float, hand_s: float, observed: bool, seconds: float = 20.0, stamps: bool = False
) -> Path:
    """Units that fire for 20 s from `spikes_s` on, and a hand at 50 Hz for some seconds from `hand_s` on."""
    file, rng = blank(), np.random.default_rng(0)
    for _ in range(3):
        more = {"obs_intervals": [[spikes_s, spikes_s + 20]]} if observed else {}
        file.add_unit(spike_times=np.sort(rng.uniform(spikes_s, spikes_s + 20, 60)), **more)
    hand = np.arange(round(50 * seconds), dtype=float)
    when = {"timestamps": hand_s + hand / 50} if stamps else {"rate": 50.0, "starting_time": hand_s}
    module = file.create_processing_module("behavior", "hand")
    module.add(pynwb.TimeSeries(name="hand", data=hand, unit="m", **when))
    file.add_trial(start_time=spikes_s + 5, stop_time=spikes_s + 6)
    return saved(file, path)


def read(path: Path, **more: Any) -> Recording:
    return nwb.read(path, Request("d", "s", **more))


@pytest.mark.parametrize("stamps", [True, False])
@pytest.mark.parametrize("observed", [True, False])
@pytest.mark.parametrize(("spikes_s", "hand_s"), [(0.0, 5000.0), (0.0, UNIX), (5000.0, 0.0), (UNIX, 0.0)])
def test_a_series_on_another_clock_is_refused(
    tmp_path: Path, spikes_s: float, hand_s: float, observed: bool, stamps: bool
) -> None:
    path = session(tmp_path / "a.nwb", spikes_s, hand_s, observed, stamps=stamps)
    with pytest.raises(ValueError, match=r"a\.nwb: series 'hand' runs from .* no moment in common: correct") as caught:
        read(path)
    assert f"runs from {hand_s:.10g} to {hand_s + 20:.10g} s" in str(caught.value)
    assert f"the spikes from {spikes_s:.10g}"[:19] in str(caught.value)


@pytest.mark.parametrize("observed", [True, False])
@pytest.mark.parametrize("zero", [0.0, 5000.0, UNIX])
def test_one_clock_that_starts_anywhere_becomes_the_recordings(tmp_path: Path, zero: float, observed: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = read(session(tmp_path / "a.nwb", zero, zero, observed))
    same = read(session(tmp_path / "b.nwb", 0.0, 0.0, observed))
    np.testing.assert_allclose(found.spike_time, same.spike_time, atol=1e-5)
    np.testing.assert_allclose(found.events.onset, [5.0], atol=1e-5)
    assert found.duration == pytest.approx(20.0, abs=1e-5)
    assert found.aligned["hand"].start == pytest.approx(0, abs=1e-6)
    moved = [s for s in found.provenance["steps"] if s["step"] == "move zero"]
    assert moved == ([{"step": "move zero", "origin_s": zero, "reason": "the file's clock starts elsewhere"}]
                     if zero and not observed else [])  # fmt: skip
    stored = open_shards(write_shard(tmp_path / "sub-s.h5", [found], {})).recordings[0]
    assert len(stored.spikes(0, 20)[0]) == 180


def test_the_first_spike_of_a_clock_that_starts_with_the_session_moves_nothing(tmp_path: Path) -> None:
    file = blank()
    file.add_unit(spike_times=[3.0, 9.0])
    found = read(saved(file, tmp_path / "a.nwb"))
    np.testing.assert_array_equal(found.spike_time, [3.0, 9.0])


@pytest.mark.parametrize("observed", [True, False])
def test_a_series_that_hardly_covers_the_spikes_is_kept_with_a_warning(tmp_path: Path, observed: bool) -> None:
    path = session(tmp_path / "a.nwb", 0.0, 19.0, observed, seconds=3000.0)
    with pytest.warns(UserWarning, match=r"a\.nwb: series 'hand' runs from 19 to 3019 s and the spikes from .* clocks"):
        found = read(path)
    assert found.duration < 20.01, "what is hardly there does not make the recording longer"
    assert found.aligned["hand"].start == 19.0


def test_behaviour_that_goes_on_after_the_last_spike_makes_the_recording_longer(tmp_path: Path) -> None:
    assert read(session(tmp_path / "a.nwb", 0.0, 10.0, False)).duration == 30.0


def test_a_signal_and_a_series_need_a_moment_in_common(tmp_path: Path) -> None:
    file = blank()
    device = file.create_device("array")
    group = file.create_electrode_group("probe", "depth", "M1", device)
    file.add_electrode(group=group, location="M1")
    region = file.create_electrode_table_region([0], "all")
    series = pynwb.ecephys.ElectricalSeries(
        name="lfp", data=np.ones((1000, 1)), electrodes=region, rate=100.0, starting_time=50.0
    )
    file.add_acquisition(series)
    file.add_acquisition(pynwb.TimeSeries(name="speed", data=np.ones(100), unit="m/s", rate=10.0, starting_time=70.0))
    with pytest.raises(ValueError, match="'speed' runs from 70 to 80 s and the ieeg from 50 to 60 s of the file"):
        read(saved(file, tmp_path / "a.nwb"))


def test_a_unit_id_that_stands_twice_is_named(tmp_path: Path) -> None:
    file = blank()
    for i in (7, 3, 7):
        file.add_unit(id=i, spike_times=[1.0, 2.0])
    path = saved(file, tmp_path / "a.nwb")
    with pytest.raises(ValueError, match=r"a\.nwb: id '7' stands 2 times among 3 units; number them anew") as caught:
        read(path)
    assert "fetch" not in str(caught.value)
    assert read(path, names=("a", "b", "c")).channels.name == ["a", "b", "c"]


def test_events_that_are_no_trials_have_empty_columns(tmp_path: Path) -> None:
    file = blank()
    file.add_unit(spike_times=[0.1, 8.0])
    file.add_trial_column("cue_time", "s")
    file.add_trial_column("side", "left or right")
    file.add_trial(start_time=1.0, stop_time=2.0, cue_time=1.5, side="left")
    file.add_invalid_time_interval(0.2, 0.4)
    events = read(saved(file, tmp_path / "a.nwb")).events
    assert events.label == ["BAD_invalid", "trial"]
    assert events.columns["side"] == ["", "left"]
    np.testing.assert_array_equal(events.columns["cue_time"], [np.nan, 1.5])


def at_100(path: Path, velocity_s: float | None, trials: list[list[float]], calibration_s: float | None = None) -> Path:
    """Units that fire from 100 to 150 s, a velocity of 140 s at 20 Hz, trials, and a calibration of 5 s."""
    file, rng = blank(), np.random.default_rng(0)
    file.add_unit(spike_times=np.r_[100.25, np.sort(rng.uniform(101, 149, 50)), 150.0])
    if velocity_s is not None:
        file.add_acquisition(
            pynwb.TimeSeries(name="velocity", data=np.zeros(2800), unit="m/s", rate=20.0, starting_time=velocity_s)
        )
    if calibration_s is not None:
        file.add_acquisition(
            pynwb.TimeSeries(name="calibration", data=np.zeros(100), unit="V", rate=20.0, starting_time=calibration_s)
        )
    for start, stop in trials:
        file.add_trial(start_time=start, stop_time=stop)
    return saved(file, path)


@pytest.mark.parametrize(
    ("velocity_s", "trials", "zero"),
    [
        (90.0, [[95.0, 97.0], [120.0, 122.0]], 90.0),  # the trial overlaps the velocity, which overlaps the spikes
        (None, [[95.5, 101.0], [120.0, 122.0]], 95.0),
        (90.0, [[85.0, 91.0], [20.0, 22.0]], 85.0),
        (120.0, [[30.0, 31.0]], 100.0),  # nothing that overlaps comes earlier
        (10.0, [[95.0, 97.0]], 10.0),
        (0.0, [[95.0, 97.0]], 0.0),  # the clock starts with the series
        (2.0, [[-1.0, 3.0]], 0.0),
    ],
)
def test_zero_moves_to_the_earliest_of_all_that_overlaps_the_spikes(
    tmp_path: Path, velocity_s: float | None, trials: list[list[float]], zero: float
) -> None:
    found = read(at_100(tmp_path / "a.nwb", velocity_s, trials))
    assert found.spike_time[[0, -1]] == pytest.approx([100.25 - zero, 150 - zero])
    steps = found.provenance["steps"]
    assert steps[0]["origin_s"] == zero
    assert [s["origin_s"] for s in steps if s["step"] == "move zero"] == ([zero] if zero else [])
    np.testing.assert_allclose(found.events.onset, [a - zero for a, _ in trials if a >= zero])
    end = 150.001
    if velocity_s is not None:
        assert found.aligned["velocity"].start == pytest.approx(velocity_s - zero)
        end = max(end, velocity_s + 140)
    assert found.duration == pytest.approx(end - zero)


def test_a_stray_series_beside_others_is_left_out_with_a_warning(tmp_path: Path) -> None:
    path = at_100(tmp_path / "a.nwb", 90.0, [[95.0, 97.0]], calibration_s=0.0)
    with pytest.warns(UserWarning, match=r"'calibration' runs from 0 to 5 s .* so it is left out; compare the clocks"):
        found = read(path)
    assert set(found.aligned) == {"velocity"}
    assert found.aligned["velocity"].start == 0.0, "what is left out moves no zero"
    left = [s for s in found.provenance["steps"] if s["step"] == "leave out series"]
    assert [s["series"] for s in left] == ["calibration"]
    alone = at_100(tmp_path / "b.nwb", None, [], calibration_s=0.0)
    with pytest.raises(ValueError, match=r"b\.nwb: series 'calibration' runs from 0 to 5 s .* no moment in common"):
        read(alone)
