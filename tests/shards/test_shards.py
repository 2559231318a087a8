"""Shards: what is written is read, windows stay where they may be, and a file that is not whole is refused by name."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainfm.recording import KINDS, Channels, Events, Recording, Series
from brainfm.shards import schema
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.stored import Stored, rate
from brainfm.shards.write import write_shard

CARD = {"licence": "CC0-1.0", "citation": "nobody"}
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RATES = (0.5, 2.0, 10.0, 12.5, 64.0)


def recording(seed: int = 0, sfreq: float = 10.0, samples: int = 95, channels: int = 3, **changed: object) -> Recording:
    rng = np.random.default_rng(seed)
    table = Channels.make(
        [f"C{i}" for i in range(channels)], [KINDS[i % 6] for i in range(channels)], rng.normal(size=(channels, 3)),
        rng.normal(size=(channels, 3)), [f"area {i % 2}" for i in range(channels)],
    )  # fmt: skip
    table.bad[rng.integers(channels)] = True
    given = {
        "dataset": "made_up", "subject": "s1", "modality": "eeg", "session": "1", "run": "a", "device": "cap",
        "channels": table, "sfreq": sfreq, "signal": rng.normal(0, 1e-5, (channels, samples)),
    }  # fmt: skip
    return Recording(**{**given, **changed})


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    """A signal, spikes or both, with events, covariates, truth and breaks."""
    seed = draw(st.integers(0, 2**20))
    rng = np.random.default_rng(seed)
    sfreq, samples = draw(st.sampled_from(RATES)), draw(st.integers(1, 200))
    made = recording(seed, sfreq, samples, draw(st.integers(1, 5)))
    made.events = Events(
        np.sort(rng.uniform(0, samples / sfreq, 4)),
        rng.uniform(0, 2, 4),
        ["ä", "left", "", "right"],
        ["", "x y", "b", "b"],
    )
    made.aligned = {"velocity": Series(rng.normal(size=(draw(st.integers(1, 9)), 2)), 5.0, "m/s", 0.25)}
    made.truth = {"connectivity": rng.normal(size=(3, 3))}
    made.simulated = draw(st.booleans())
    made.note("band", highpass_hz=0.5)
    what = draw(st.sampled_from(["signal", "spikes", "both"]))
    if what != "spikes":
        cuts = sorted(draw(st.sets(st.integers(0, samples), min_size=2, max_size=4)) | {0, samples})
        made.segments = np.array(list(itertools.pairwise(cuts))[:: draw(st.sampled_from([1, 2]))])
    if what != "signal":
        n = draw(st.integers(0, 60))
        made.spike_time, made.spike_neuron = (
            np.sort(rng.uniform(0, made.duration, n)),
            rng.integers(0, len(made.channels), n),
        )
    if what == "spikes":
        made.signal = made.sfreq = made.segments = None
    return made


def stored(made: Recording, folder: Path) -> Stored:
    return open_shards(write_shard(folder / "sub-s1.h5", [made], CARD)).recordings[0]


@QUICK
@given(recordings(), st.data())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, made: Recording, data: st.DataObject) -> None:
    got = stored(made, tmp_path_factory.mktemp("shard"))
    for word in ("id", "dataset", "subject", "session", "run", "device", "modality", "simulated", "duration"):
        assert getattr(got, word) == getattr(made, word), word
    assert got.sfreq == (made.sfreq or 0)
    for word in ("name", "kind", "area"):
        assert getattr(got.channels, word) == getattr(made.channels, word)
    for word in ("position", "orientation", "bad"):
        np.testing.assert_array_equal(getattr(got.channels, word), getattr(made.channels, word))
    assert (got.events.label, got.events.stimulus) == (made.events.label, made.events.stimulus)
    np.testing.assert_array_equal(got.events.onset, made.events.onset)
    np.testing.assert_array_equal(got.events.duration, made.events.duration)
    series = got.aligned("velocity")
    np.testing.assert_allclose(series.values, made.aligned["velocity"].values, rtol=1e-6)
    assert (series.sfreq, series.unit, series.start) == (5.0, "m/s", 0.25)
    np.testing.assert_array_equal(got.truth("connectivity"), made.truth["connectivity"])
    assert got.provenance() == made.provenance
    if made.signal is not None:
        start = data.draw(st.integers(0, made.signal.shape[1] - 1))
        stop = data.draw(st.integers(start + 1, made.signal.shape[1]))
        np.testing.assert_array_equal(got.signal(start, stop), made.signal[:, start:stop].astype(np.float32))
        np.testing.assert_array_equal(got.segments, made.segments)
    if made.spike_time is not None:
        start = data.draw(st.floats(0, made.duration))
        stop = data.draw(st.floats(start, made.duration + 1))
        time, neuron = got.spikes(start, stop)
        inside = (made.spike_time >= start) & (made.spike_time < stop)
        np.testing.assert_array_equal(time, made.spike_time[inside])
        np.testing.assert_array_equal(neuron, made.spike_neuron[inside])


@QUICK
@given(recordings(), st.floats(0.1, 6), st.floats(0.1, 3))
def test_windows_fit_and_never_cross_a_break(
    tmp_path_factory: pytest.TempPathFactory, made: Recording, length: float, stride: float
) -> None:
    got = stored(made, tmp_path_factory.mktemp("shard"))
    n, step = round(length * rate(got)), max(1, round(stride * rate(got)))
    if n == 0:
        with pytest.raises(ValueError, match="length_s"):
            open_shards(got.path).windows(length, stride)
        return
    windows = open_shards(got.path).windows(length, stride)
    stretches = got.segments if got.sfreq else [(0, int(got.duration * 1000))]
    expected = [s for a, b in stretches for s in range(a, b - n + 1, step)]
    assert windows.start.tolist() == expected
    assert (windows.samples == n).all()


def population(session: str, run: str = "", tracked: bool = False) -> Recording:
    return Recording(
        "made_up", "s1", "spikes", Channels.make(["0", "1"], "neuron"), session, run, tracked=tracked, duration=2.0,
        spike_time=np.array([0.5]), spike_neuron=np.array([1]),
    )  # fmt: skip


def test_neurons_of_two_sessions_are_the_same_only_where_they_are_tracked(tmp_path: Path) -> None:
    made = [population("1"), population("2"), population("1", "b"), population("", "3"), population("4", tracked=True)]
    made.append(population(""))
    written = open_shards(write_shard(tmp_path / "sub-s1.h5", made, CARD)).recordings
    ids = {(s.session, s.run): s.channel_ids for s in written}
    whose = {("1", ""): "s1/1", ("2", ""): "s1/2", ("1", "b"): "s1/1", ("", "3"): "s1/3"}
    whose |= {("4", ""): "s1", ("", ""): "s1"}
    assert ids == {key: [f"made_up/{who}/0", f"made_up/{who}/1"] for key, who in whose.items()}


def test_a_shard_that_does_not_say_whether_neurons_are_tracked_takes_them_as_of_one_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = schema.finish

    def before(file: h5py.File, kind: str, version: int, header: dict) -> None:
        for entry in header["recordings"].values():
            del entry["tracked"], entry["channels"]["held_out"], entry["events"]["columns"]
        written(file, kind, version, header)

    monkeypatch.setattr(schema, "finish", before)
    old = stored(population("4", tracked=True), tmp_path)
    assert not old.tracked
    assert old.channels.held_out is None
    assert old.events.columns == {}
    assert old.is_whole()
    assert old.channel_ids == ["made_up/s1/4/0", "made_up/s1/4/1"]


def test_a_short_stretch_is_one_window_where_it_is_asked_for(tmp_path: Path) -> None:
    got = stored(recording(segments=np.array([[0, 30], [40, 55], [60, 64]])), tmp_path)
    windows = open_shards(got.path).windows(2.0, shortest_s=1.0)
    assert list(zip(windows.start, windows.samples, strict=True)) == [(0, 20), (40, 15)]


def test_a_window_inside_a_block_carries_its_label(tmp_path: Path) -> None:
    events = Events(np.array([0.0, 5.0]), np.array([4.0, 4.0]), ["rest", "task"], ["", "film"])
    windows = open_shards(stored(recording(events=events), tmp_path).path).windows(2.0)
    assert windows.label.tolist() == ["rest", "rest", "", "task"]
    assert windows.stimulus.tolist() == ["", "", "", "film"]


def test_trials(tmp_path: Path) -> None:
    events = Events(
        np.array([0.2, 2.0, 4.9, 7.0, 9.0]), np.zeros(5), ["a", "b", "a", "b", "a"], ["x", "", "y", "", "z"]
    )
    made = recording(events=events, segments=np.array([[0, 50], [55, 95]]))
    corpus = open_shards(stored(made, tmp_path).path)
    trials = corpus.trials(-0.5, 1.0)
    # the first starts before the recording, the third crosses the break, the last leaves the recording
    assert (trials.start.tolist(), trials.label.tolist()) == ([15, 65], ["b", "b"])
    assert (trials.samples == 15).all()
    assert corpus.trials(0.0, 0.1, ["a"]).stimulus.tolist() == ["x", "y", "z"]
    with pytest.raises(ValueError, match=r"'c'.*'a', 'b'"):
        corpus.trials(0.0, 1.0, ["c"])
    with pytest.raises(ValueError, match="tmax after tmin"):
        corpus.trials(1.0, 0.5)


def changed(made: Recording) -> dict[str, Recording]:
    """The recording with one thing of its data changed."""
    signal = made.signal.copy()
    signal[-1, -1] += 1e-5
    place = made.channels.position.copy()
    place[0, 0] += 1e-3
    later = made.spike_time.copy()
    later[-1] += 1e-4
    series = made.aligned["velocity"]
    return {
        "signal": replace(made, signal=signal),
        "spike": replace(made, spike_time=later),
        "neuron": replace(made, spike_neuron=made.spike_neuron[::-1]),
        "position": replace(made, channels=replace(made.channels, position=place)),
        "name": replace(made, channels=replace(made.channels, name=["X", *made.channels.name[1:]])),
        "bad": replace(made, channels=replace(made.channels, bad=~made.channels.bad)),
        "label": replace(made, events=replace(made.events, label=["right"])),
        "onset": replace(made, events=replace(made.events, onset=made.events.onset + 0.1)),
        "aligned": replace(made, aligned={"velocity": replace(series, values=series.values * 2)}),
        "segments": replace(made, segments=np.array([[0, 94]])),
    }


def test_checksum_changes_when_any_data_does(tmp_path: Path) -> None:
    made = recording(
        spike_time=np.array([1.0, 2.0, 3.0]), spike_neuron=np.array([0, 1, 2]),
        events=Events(np.array([1.0]), np.array([0.0]), ["left"]),
        aligned={"velocity": Series(np.ones((4, 1)), 1.0, "m")},
    )  # fmt: skip
    same = stored(made, tmp_path / "one").checksum
    assert stored(made, tmp_path / "other").checksum == same
    sums = {what: stored(other, tmp_path / what).checksum for what, other in changed(made).items()}
    assert [what for what, found in sums.items() if found == same] == []
    assert len(set(sums.values())) == len(sums)


def test_no_time_of_day_is_written(tmp_path: Path) -> None:
    """So that the same recording gives the same bytes whenever it is made, and what follows need not be made again."""
    made = changed(recording(
        spike_time=np.array([1.0]), spike_neuron=np.array([0]), truth={"states": np.ones(3)},
        events=Events(np.array([1.0]), np.array([0.0]), ["left"]),
        aligned={"velocity": Series(np.ones((4, 1)), 1.0, "m")},
    ))["signal"]  # fmt: skip
    stamped = []
    with h5py.File(stored(made, tmp_path).path) as file:
        file.visititems(lambda name, item: stamped.append(name) if h5py.h5o.get_info(item.id).mtime else None)
        assert "recordings/1_a/truth/states" in file
    assert stamped == []


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9, 0.999])
def test_a_truncated_shard_is_named(tmp_path: Path, share: float) -> None:
    path = write_shard(tmp_path / "sub-s1.h5", [recording(samples=20_000)], CARD)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(schema.ShardError, match=r"sub-s1\.h5.*ingest"):
        open_shards(tmp_path)


def test_another_schema_version_is_named_with_the_mend(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "sub-s1.h5", [recording()], CARD)
    with h5py.File(path, "a") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(schema.ShardError, match=r"sub-s1\.h5.*99.*version 2.*brainfm ingest"):
        open_shards(path)


def test_any_other_hdf5_file_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(schema.ShardError, match=r"other\.h5"):
        open_shards(tmp_path)


def test_a_folder_without_shards_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no shard under .*brainfm ingest"):
        open_shards(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    made = recording()
    made.signal[1, 7] = value
    with pytest.raises(ValueError, match=r"made_up/s1/1/a.*not finite.*C1"):
        write_shard(tmp_path / "sub-s1.h5", [made], CARD)
    assert list(tmp_path.iterdir()) == []


def failing() -> object:
    yield recording()
    raise OSError("the disk is gone")


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk"):
        write_shard(tmp_path / "sub-s1.h5", failing(), CARD)
    assert list(tmp_path.iterdir()) == []
    whole = write_shard(tmp_path / "sub-s1.h5", [recording()], CARD).read_bytes()
    with pytest.raises(OSError, match="disk"):
        write_shard(tmp_path / "sub-s1.h5", failing(), CARD)
    assert [p.name for p in tmp_path.iterdir()] == ["sub-s1.h5"]
    assert (tmp_path / "sub-s1.h5").read_bytes() == whole


def test_a_stray_part_is_no_shard(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "sub-s1.h5", [recording()], CARD)
    (tmp_path / ".sub-s2.h5.part").write_bytes(b"half")
    shutil.copy(path, tmp_path / ".sub-s3.h5")
    assert open_shards(tmp_path).people == ["made_up/s1"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({}, "made_up/s1/1/a: this session and run stand twice"),
        ({"subject": "s2", "session": "2"}, "one subject"),
        ({"dataset": "other", "session": "2"}, "one subject"),
    ],
)
def test_recordings_that_do_not_belong_together_are_refused(tmp_path: Path, second: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_shard(tmp_path / "sub-s1.h5", [recording(), recording(**second)], CARD)
    assert list(tmp_path.iterdir()) == []


def test_no_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sub-s1\.h5: no recording"):
        write_shard(tmp_path / "sub-s1.h5", [], CARD)


def test_where(tmp_path: Path) -> None:
    for subject in ("s1", "s2"):
        write_shard(tmp_path / f"sub-{subject}.h5", [recording(subject=subject)], CARD)
    (tmp_path / "split.json").write_text(
        json.dumps({"recordings": {"made_up/s1/1/a": "train", "made_up/s2/1/a": "test"}})
    )
    corpus = open_shards(tmp_path)
    assert corpus.where(split="train").people == ["made_up/s1"]
    assert corpus.subject("s2").people == corpus.subject("made_up/s2").people == ["made_up/s2"]
    with pytest.raises(ValueError, match=r"subject \['s9'\].*'s1', 's2'"):
        corpus.where(subject="s9")
    with pytest.raises(ValueError, match=r"'subjet'.*'subject'"):
        corpus.where(subjet="s1")


@QUICK
@given(st.lists(st.tuples(st.integers(0, 90), st.integers(1, 30)), min_size=1, max_size=12))
def test_intervals_merge(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int]]) -> None:
    corpus = open_shards(stored(recording(samples=120), tmp_path_factory.mktemp("shard")).path)
    start, samples = np.array(rows).T
    none = np.full(len(rows), "", dtype=object)
    windows = Windows(corpus.recordings, np.zeros(len(rows), int), start, samples, none, none)
    covered = np.zeros(130, bool)
    for a, n in rows:
        covered[a : a + n] = True
    spans = windows.intervals()["made_up/s1/1/a"]
    again = np.zeros(130, bool)
    for a, b in spans:
        assert not again[round(a * 10) : round(b * 10)].any()
        again[round(a * 10) : round(b * 10)] = True
    np.testing.assert_array_equal(again, covered)
    assert spans == sorted(spans)
    assert all(b < c for (_, b), (c, _) in itertools.pairwise(spans))


def test_join_keeps_rows_and_recordings(tmp_path: Path) -> None:
    for i, subject in enumerate(("s1", "s2")):
        write_shard(tmp_path / f"sub-{subject}.h5", [recording(i, subject=subject)], CARD)
    corpus = open_shards(tmp_path)
    one, two = corpus.subject("s1").windows(2.0), corpus.subject("s2").windows(3.0)
    both = Windows.join([two, one, two])
    assert len(both) == 2 * len(two) + len(one)
    assert both.of("person").tolist() == ["made_up/s2"] * len(two) + ["made_up/s1"] * len(one) + ["made_up/s2"] * len(
        two
    )
    assert both.samples.tolist() == [*two.samples, *one.samples, *two.samples]
    assert both.intervals() == two.intervals() | one.intervals()
    assert len(Windows.join([])) == 0
    assert len(both.take([])) == 0
    assert both.take(both.of("subject") == "s1").start.tolist() == one.start.tolist()


def test_corpus_and_windows_say_what_they_are_in_a_line(tmp_path):
    for subject in "123":
        events = Events(np.arange(9.0), np.zeros(9), ["a", "b", ""] * 3)
        made = Recording(
            "made_up", subject, "eeg", Channels.make(["Cz"], "eeg"), sfreq=10.0, signal=np.ones((1, 100)), events=events
        )
        write_shard(tmp_path / f"{subject}.h5", [made], {})
    corpus = open_shards(tmp_path)
    assert repr(corpus) == f"<3 recordings of 3 people in {tmp_path}: made_up>"
    assert repr(corpus.subject("1").trials(0, 1)) == "<9 windows of 1 people: no label 3, a 3, b 3>"
    assert repr(corpus.trials(0, 1).take([])) == "<0 windows of 0 people>"


def test_an_event_without_a_label_or_a_stimulus_takes_none_away(tmp_path):
    events = Events(np.array([0.0, 2.0, 6.0]), np.array([10.0, 2.0, 2.0]), ["rest", "", "task"], ["film", "", ""])
    made = Recording(
        "made_up", "1", "eeg", Channels.make(["Cz"], "eeg"), sfreq=10.0, signal=np.ones((1, 100)), events=events
    )
    write_shard(tmp_path / "1.h5", [made], {})
    windows = open_shards(tmp_path).windows(2.0)
    assert windows.label.tolist() == ["rest", "rest", "rest", "task", "rest"]
    assert windows.stimulus.tolist() == ["film"] * 5
