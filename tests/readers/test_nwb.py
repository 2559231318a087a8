"""NWB files written by pynwb in the layouts of the field, and what becomes of them; broken ones are refused by name."""

import os
import pickle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from brainfm.hdf import HostileFile
from brainfm.readers import nwb
from brainfm.readers.request import Request
from brainfm.recording import Recording, Signal
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard

pynwb = pytest.importorskip("pynwb")
REQUEST = Request("d", "s")


def blank(**more: Any) -> Any:
    return pynwb.NWBFile("a test", "id-1", datetime(2020, 1, 1, tzinfo=UTC), **more)


def save(file: Any, path: Path) -> Path:
    with pynwb.NWBHDF5IO(path, "w") as io:
        io.write(file)
    return path


def read(path: Path, **more: Any) -> Recording:
    return nwb.read(path, Request("d", "s", **more))


def electrodes(file: Any, n: int, description: str = "Utah array", scale: float = 1.0, **columns: list) -> Any:
    device = file.create_device("array", description="96 channels")
    group = file.create_electrode_group("probe", description, "M1", device)
    for name in columns:
        file.add_electrode_column(name, f"the {name}")
    for i in range(n):
        extra = {k: v[i] for k, v in columns.items()}
        place = {k: v * scale for k, v in {"x": 400.0 * i + 1000, "y": 2000.0, "z": -500.0}.items()}
        file.add_electrode(group=group, location=["M1", "PMd"][i % 2], **place, **extra)
    return file.create_electrode_table_region(list(range(n)), "all")


def benchmark(path: Path, trains: list[Any] | None = None, start: float = 0.0) -> Path:
    """The layout of the Neural Latents Benchmark: units with observation intervals, trials, hand in `behavior`."""
    file = blank(subject=pynwb.file.Subject(subject_id="jenkins", sex="M", species="Macaca mulatta", age="P5Y"))
    electrodes(file, 4)
    rng = np.random.default_rng(0)
    if trains is None:
        trains = [np.sort(rng.uniform(start, start + 20, 50 + i)) for i in range(3)]
    file.add_unit_column("heldout", "whether the neuron is held out")
    for i, train in enumerate(trains):
        file.add_unit(
            id=10 + i, spike_times=train, obs_intervals=[[start, start + 20.0]], electrodes=[i], heldout=i == 2
        )
    file.add_trial_column("split", "train, val or test")
    file.add_trial_column("trial_type", "barriers")
    file.add_trial_column("move_onset_time", "of the hand, s")
    file.add_trial_column("rt", "reaction time, ms")
    file.add_trial_column("targets", "which were shown", index=True)
    for i in range(4):
        begin = start + 5.0 * i
        more = {"move_onset_time": np.nan if i == 2 else begin + 0.5, "rt": 300.0 + i, "targets": [1.0] * (i + 1)}
        file.add_trial(start_time=begin, stop_time=begin + 3, split="train", trial_type=i % 2, **more)
    time = start + np.arange(20_000) * 0.001
    keep = np.r_[0:9000, 9500:20_000]
    hand = np.stack([np.sin(time), np.cos(time)], axis=1)
    module = file.create_processing_module("behavior", "hand")
    module.add(
        pynwb.TimeSeries(name="hand_pos", data=1000 * hand, unit="m", conversion=1e-3, rate=1000.0, starting_time=start)
    )
    module.add(pynwb.TimeSeries(name="hand_vel", data=hand[keep], unit="m/s", timestamps=time[keep]))
    module.add(pynwb.TimeSeries(name="odd", data=np.arange(3.0), unit="s", timestamps=[3.0, 2.0, 1.0]))
    return save(file, path)


def test_units_trials_and_hand_as_in_the_neural_latents_benchmark(tmp_path: Path) -> None:
    found = read(benchmark(tmp_path / "a.nwb"))
    rng = np.random.default_rng(0)
    trains = [np.sort(rng.uniform(0, 20, 50 + i)) for i in range(3)]
    assert found.modality == "spikes"
    assert found.channels.name == ["10", "11", "12"]
    assert found.channels.area == ["M1", "PMd", "M1"]
    np.testing.assert_allclose(
        found.channels.position, [[0.001 + 4e-4 * i, 0.002, -0.0005] for i in range(3)], atol=1e-9
    )
    assert found.channels.placed == ["file"] * 3
    for i, train in enumerate(trains):
        np.testing.assert_array_equal(found.spike_time[found.spike_neuron == i], train)
    assert found.duration == 20.0
    assert found.events.label == ["0", "1", "0", "1"]
    np.testing.assert_allclose(found.events.onset, [0, 5, 10, 15])
    np.testing.assert_allclose(found.events.duration, 3)
    assert found.provenance["participant"] == {
        "subject_id": "jenkins", "sex": "M", "species": "Macaca mulatta", "age": "P5Y",
    }  # fmt: skip
    assert list(found.provenance["files"]) == ["a.nwb"]
    assert found.channels.held_out.tolist() == [False, False, True]
    steps = [s for s in found.provenance["steps"] if s["step"] == "leave out series"]
    assert [s["series"] for s in steps] == ["processing/behavior/odd"]


def test_behaviour_is_in_its_unit_and_gaps_are_nan(tmp_path: Path) -> None:
    aligned = read(benchmark(tmp_path / "a.nwb", start=100.0)).aligned
    assert set(aligned) == {"hand_pos", "hand_vel"}
    position, velocity = aligned["hand_pos"], aligned["hand_vel"]
    time = 100 + np.arange(20_000) / 1000
    assert (position.unit, position.sfreq, position.start) == ("m", 1000.0, 0.0)
    np.testing.assert_allclose(position.values, np.stack([np.sin(time), np.cos(time)], axis=1), atol=1e-12)
    assert (velocity.unit, velocity.sfreq) == ("m/s", 1000.0)
    assert velocity.start == pytest.approx(0, abs=1e-9)
    missing = np.isnan(velocity.values[:, 0])
    assert 499 <= missing.sum() <= 500
    assert missing[9001:9499].all()
    np.testing.assert_allclose(velocity.values[~missing, 0], np.sin(time)[~missing], atol=2e-3)


def test_the_recording_starts_with_the_observation(tmp_path: Path) -> None:
    early, late = read(benchmark(tmp_path / "a.nwb")), read(benchmark(tmp_path / "b.nwb", start=100.0))
    np.testing.assert_allclose(late.spike_time, early.spike_time, atol=1e-9)
    np.testing.assert_allclose(late.events.onset, early.events.onset)
    assert late.duration == pytest.approx(20)
    assert late.provenance["steps"][0]["origin_s"] == 100.0


@pytest.mark.parametrize("start", [0.0, 100.0])
def test_columns_of_trials_are_kept_and_moments_are_on_the_recordings_clock(tmp_path: Path, start: float) -> None:
    made = read(benchmark(tmp_path / "a.nwb", start=start))
    stored = open_shards(write_shard(tmp_path / "sub-s.h5", [made], {})).recordings[0]
    for events in (made.events, stored.events):
        assert set(events.columns) == {"split", "trial_type", "move_onset_time", "rt"}
        np.testing.assert_allclose(events.columns["move_onset_time"], [0.5, 5.5, np.nan, 15.5], atol=1e-9)
        np.testing.assert_allclose(events.columns["rt"], [300, 301, 302, 303])
        assert events.columns["split"] == ["train"] * 4
    assert stored.channels.held_out.tolist() == [False, False, True]
    corpus = open_shards(tmp_path)
    moved = corpus.trials(-0.1, 0.4, align="move_onset_time")
    assert (moved.start.tolist(), moved.label.tolist()) == ([400, 5400, 15400], ["0", "1", "1"])
    with pytest.raises(ValueError, match="have no moment 'go_cue'; they have move_onset_time, rt, trial_type"):
        corpus.trials(0, 1, align="go_cue")


def test_trials_take_their_label_from_the_column_asked_for(tmp_path: Path) -> None:
    path = benchmark(tmp_path / "a.nwb")
    assert nwb.read(path, REQUEST, trial_label="split").events.label == ["train"] * 4
    with pytest.raises(ValueError, match="no column 'side' of trials; they have start_time, stop_time, split"):
        nwb.read(path, REQUEST, trial_label="side")


def test_unsorted_spikes_are_sorted_and_noted(tmp_path: Path) -> None:
    found = read(benchmark(tmp_path / "a.nwb", [[3.0, 1.0, 2.0], [0.5, 4.0]]))
    np.testing.assert_array_equal(found.spike_time, [0.5, 1, 2, 3, 4])
    np.testing.assert_array_equal(found.spike_neuron, [1, 0, 0, 0, 1])
    assert {"step": "sort spikes", "neurons": 1} in found.provenance["steps"]


@pytest.mark.parametrize(
    ("train", "says"),
    [([-1.0, 2.0], "1 spike times are negative, down to -1 s"), ([1.0, np.nan], "1 of 3 spike times are not finite"),
     ([1.0, 3e7], "more than two weeks")],
)  # fmt: skip
def test_impossible_spike_times_are_refused(tmp_path: Path, train: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.nwb: .*{says}"):
        read(benchmark(tmp_path / "a.nwb", [train, [1.0]]))


def test_noise_units_go_and_invalid_times_are_events(tmp_path: Path) -> None:
    file = blank()
    file.add_unit_column("quality", "of the sorting")
    file.add_unit(spike_times=[1.0, 2.0], quality="good")
    file.add_unit(spike_times=[1.5], quality="noise")
    file.add_invalid_time_interval(1.2, 1.4)
    found = read(save(file, tmp_path / "a.nwb"))
    assert found.channels.name == ["0"]
    assert [(n.found, n.fate) for n in found.channel_log] == [("0", "kept"), ("1", "dropped")]
    assert found.events.label == ["BAD_invalid"]
    np.testing.assert_allclose([found.events.onset[0], found.events.duration[0]], [1.2, 0.2])


def volts(path: Path, *, description: str = "sEEG depth electrode", scale: float = 0.01, **timing: Any) -> Path:
    file = blank()
    region = electrodes(file, 3, description, scale, label=["LA1", "LA2", "LA3"], bad=[False, True, False])
    data = np.arange(3000, dtype=np.int16).reshape(1000, 3)
    series = pynwb.ecephys.ElectricalSeries(
        name="ieeg", data=data, electrodes=region, channel_conversion=[1.0, 2.0, 3.0], conversion=1e-6, offset=5e-6,
        **(timing or {"rate": 500.0, "starting_time": 10.0}),
    )  # fmt: skip
    file.add_acquisition(series)
    file.add_trial(start_time=10.5, stop_time=11.0)
    file.add_invalid_time_interval(11.0, 11.2)
    return save(file, path)


def test_an_electrical_series_stays_in_the_file_and_is_in_volt(tmp_path: Path) -> None:
    found = read(volts(tmp_path / "a.nwb"))
    stored = np.arange(3000).reshape(1000, 3).T
    expected = stored * 1e-6 * np.array([[1.0], [2], [3]]) + 5e-6
    signal = found.signal
    assert isinstance(signal, Signal)
    assert not isinstance(signal, np.ndarray)
    assert found.modality == "ieeg"
    assert signal.shape == (3, 1000)
    np.testing.assert_allclose(signal[:, 100:110], expected[:, 100:110], rtol=1e-6)
    np.testing.assert_allclose(pickle.loads(pickle.dumps(signal))[1:, 990:2000], expected[1:, 990:], rtol=1e-6)
    assert signal[:, 5:5].shape == (3, 0)
    assert found.sfreq == 500.0
    np.testing.assert_array_equal(found.segments, [[0, 500], [600, 1000]])
    assert found.events.label == ["trial"]
    np.testing.assert_allclose(found.events.onset, [0.5])
    table = found.channels
    assert (table.name, table.kind, table.unit) == (["LA1", "LA2", "LA3"], ["seeg"] * 3, ["V"] * 3)
    assert table.bad.tolist() == [False, True, False]
    assert [n.fate for n in found.channel_log] == ["kept", "bad", "kept"]
    np.testing.assert_allclose(table.position[:, 0], [0.010, 0.014, 0.018], rtol=1e-6)  # 10 to 18 in the file: mm


def test_units_of_coordinates_that_cannot_be_told_leave_no_place(tmp_path: Path) -> None:
    found = read(volts(tmp_path / "a.nwb", description="tetrode"))
    assert found.channels.placed == ["unknown"] * 3
    assert [n.fate for n in found.channel_log] == ["unplaced", "bad", "unplaced"]
    in_micrometres = read(volts(tmp_path / "b.nwb", description="ECoG grid", scale=1.0))
    assert in_micrometres.channels.kind == ["ecog"] * 3
    np.testing.assert_allclose(in_micrometres.channels.position[:, 0], [1e-3, 1.4e-3, 1.8e-3], rtol=1e-6)
    in_metres = read(volts(tmp_path / "c.nwb", description="tetrode", scale=1e-5))
    np.testing.assert_allclose(in_metres.channels.position[:, 0], [0.01, 0.014, 0.018], rtol=1e-6)


def test_a_break_in_the_timestamps_is_a_break_between_segments(tmp_path: Path) -> None:
    stamps = 10 + np.arange(1000) / 500
    stamps[250:] += 0.3  # what lay at 10.5 s of the session now lies at 10.8
    found = read(volts(tmp_path / "a.nwb", timestamps=stamps))
    assert found.sfreq == 500.0
    assert found.segments[0].tolist() == [0, 250]
    assert found.segments[1, 0] == 250
    np.testing.assert_allclose(found.events.onset, [0.5], atol=0.003)
    invalid = np.round((np.array([11.0, 11.2]) - 0.3 - 10) * 500)
    np.testing.assert_allclose([found.segments[1, 1], found.segments[2, 0]], invalid, atol=1)


@pytest.mark.parametrize("spoil", ["back", "nan", "uneven"])
def test_timestamps_that_cannot_be_are_refused(tmp_path: Path, spoil: str) -> None:
    stamps = np.arange(1000) / 500
    if spoil == "uneven":
        stamps = np.cumsum(np.tile([0.002, 0.002, 0.002, 0.03], 250))
    else:
        stamps[500] = {"back": 0.5, "nan": np.nan}[spoil]
    with pytest.raises(ValueError, match=r"a\.nwb: acquisition/ieeg: timestamps"):
        read(volts(tmp_path / "a.nwb", timestamps=stamps))


def test_a_unit_of_the_request_wins(tmp_path: Path) -> None:
    path = volts(tmp_path / "a.nwb")
    np.testing.assert_allclose(read(path, unit="mV").signal[2:, 1:2], [[5e-3]], rtol=1e-6)
    with pytest.raises(ValueError, match="unit 'T' is no unit of voltage"):
        read(path, unit="T")


def imaging(path: Path, kinds: tuple[str, ...]) -> Path:
    file = blank()
    device = file.create_device("microscope")
    channel = pynwb.ophys.OpticalChannel(name="green", description="a filter", emission_lambda=510.0)
    plane = file.create_imaging_plane(
        name="plane", optical_channel=channel, description="d", device=device, excitation_lambda=900.0,
        indicator="GCaMP6f", location="V1",
    )  # fmt: skip
    module = file.create_processing_module("ophys", "processed")
    segmentation = pynwb.ophys.ImageSegmentation()
    table = segmentation.create_plane_segmentation("cells", plane, "PlaneSegmentation")
    for i in range(3):
        table.add_roi(image_mask=np.eye(4), id=7 + i)
    module.add(segmentation)
    values = 100.0 * (1 + traces())
    values[:, 1] -= 300 * ("Fluorescence" in kinds and "DfOverF" not in kinds)
    for kind in kinds:
        scaled = values / 100 - 1 if kind == "DfOverF" else values
        region = table.create_roi_table_region(description="all", region=[0, 1, 2])
        series = pynwb.ophys.RoiResponseSeries(name=f"{kind}Series", data=scaled, rois=region, unit="n.a.", rate=10.0)
        module.add(getattr(pynwb.ophys, kind)(roi_response_series=series))
    return save(file, path)


def traces() -> np.ndarray:
    """dF/F `(time, ROI)` with a transient now and then and 0 between."""
    out = np.zeros((2000, 3))
    for i in range(3):
        out[100 + 30 * i :: 200, i] = 1.0
    return out


def test_df_over_f_is_taken_as_it_is(tmp_path: Path) -> None:
    found = read(imaging(tmp_path / "a.nwb", ("Fluorescence", "DfOverF")))
    assert found.modality == "calcium"
    np.testing.assert_allclose(found.signal, traces().T, atol=1e-12)
    assert (found.channels.name, found.channels.area, found.channels.unit) == (["7", "8", "9"], ["V1"] * 3, ["1"] * 3)
    assert found.provenance["steps"][-1] == {"step": "dF/F", "computed": False}


def test_fluorescence_becomes_df_over_f_where_its_baseline_allows(tmp_path: Path) -> None:
    found = read(imaging(tmp_path / "a.nwb", ("Fluorescence",)))
    assert found.channels.name == ["7", "9"]
    np.testing.assert_allclose(found.signal, traces().T[[0, 2]], atol=1e-6)
    assert [(n.found, n.fate) for n in found.channel_log] == [("7", "kept"), ("8", "dropped"), ("9", "kept")]


def test_several_series_are_listed_and_one_can_be_named(tmp_path: Path) -> None:
    file = blank()
    region = electrodes(file, 2)
    for name in ("raw", "lfp"):
        series = pynwb.ecephys.ElectricalSeries(name=name, data=np.ones((10, 2)), electrodes=region, rate=100.0)
        file.add_acquisition(series)
    path = save(file, tmp_path / "a.nwb")
    with pytest.raises(ValueError, match="2 to choose from; name one with variable: acquisition/lfp, acquisition/raw"):
        read(path)
    assert read(path, variable="lfp").provenance["steps"][0]["series"] == "acquisition/lfp"
    assert read(path, variable="acquisition/raw").signal.shape == (2, 10)
    with pytest.raises(ValueError, match="no single one is named 'x'"):
        read(path, variable="x")


def test_the_modality_chooses_and_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.nwb holds spikes; ieeg was asked for"):
        read(benchmark(tmp_path / "a.nwb"), modality="ieeg")
    with pytest.raises(ValueError, match="holds no units, electrical series or fluorescence"):
        read(save(blank(), tmp_path / "b.nwb"))


def test_links_out_of_the_file_are_refused(tmp_path: Path) -> None:
    path = benchmark(tmp_path / "a.nwb")
    with h5py.File(path, "a") as file:
        file["processing/behavior/elsewhere"] = h5py.ExternalLink("/etc/passwd", "/x")
    with pytest.raises(HostileFile, match=r"a\.nwb.*elsewhere"):
        read(path)


def test_a_header_that_announces_more_than_is_stored_is_refused(tmp_path: Path) -> None:
    path = volts(tmp_path / "a.nwb")
    with h5py.File(path, "a") as file:
        attributes = dict(file["acquisition/ieeg/data"].attrs)
        del file["acquisition/ieeg/data"]
        data = file.create_dataset("acquisition/ieeg/data", (10**10, 3), "i2", chunks=(1000, 3))
        data.attrs.update(attributes)
    with pytest.raises(ValueError, match=r"a\.nwb: /acquisition/ieeg/data announces"):
        read(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.8, 0.999])
def test_a_truncated_file_is_named(tmp_path: Path, share: float) -> None:
    path = benchmark(tmp_path / "a.nwb")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"a\.nwb .*fetch it again"):
        read(path)


def test_a_series_without_a_clock_is_named(tmp_path: Path) -> None:
    path = volts(tmp_path / "a.nwb")
    with h5py.File(path, "a") as file:
        del file["acquisition/ieeg/starting_time"]
    with pytest.raises(ValueError, match=r"a\.nwb cannot be read as NWB \(ConstructError: .*timestamps") as caught:
        read(path)
    assert len(str(caught.value)) < 600


def test_other_files_are_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "plain.nwb", "w") as file:
        file["x"] = np.arange(3)
    with pytest.raises(ValueError, match=r"plain\.nwb cannot be read as NWB"):
        read(tmp_path / "plain.nwb")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing.nwb")


def test_flipped_bytes_end_in_an_error_that_names_the_file_or_in_a_recording(tmp_path: Path) -> None:
    """Each mutant in a process of its own: HDF5 itself may die of one in some thousands."""
    whole, rng = benchmark(tmp_path / "a.nwb").read_bytes(), np.random.default_rng(1)
    ended = []
    for i in range(12):
        mutant = bytearray(whole)
        for place in rng.integers(0, len(mutant) if i % 2 else 3000, 4):
            mutant[place] = rng.integers(256)
        path = tmp_path / f"mutant{i}.nwb"
        path.write_bytes(mutant)
        if not (child := os.fork()):
            code = 2
            try:
                code = 0 if len(read(path).channels) else 2
            except (ValueError, OSError) as error:
                code = 1 if "mutant" in str(error) else 2
            finally:
                os._exit(code)
        ended.append(os.WEXITSTATUS(status) if os.WIFEXITED(status := os.waitpid(child, 0)[1]) else -1)
    assert 2 not in ended
    assert ended.count(-1) < 2
    assert 0 in ended
    assert 1 in ended
