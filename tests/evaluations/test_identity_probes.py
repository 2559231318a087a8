"""Readouts whose p counts ties, whose gap holds what filters reach, and whose penalty saw nothing that they score."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brainfm.evaluations import identity
from brainfm.evaluations.identity_probes import Probes, parted, probes
from brainfm.evaluations.methods.trials import Trials
from brainfm.recording import Channels, Events, Recording
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.write import write_shard

pytestmark = pytest.mark.usefixtures("one_thread")
SFREQ, TRIALS, PEOPLE, KNOWN = 16.0, 40, 7, 4
REACH_S = 3.0


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    """Windows of a second; unequal classes and numbers of windows, so that scores are sums of odd fractions."""
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    for i in range(PEOPLE):
        label = ["rest" if x else "task" for x in rng.random(TRIALS - i) < 0.4]
        made = Recording(
            "sim", f"p{i}", "eeg", Channels.make(["a", "b"], "eeg"), sfreq=SFREQ,
            signal=rng.normal(size=(2, int(SFREQ) * TRIALS)) * 1e-5, simulated=True, reach_s=REACH_S,
            events=Events(np.arange(float(len(label))), np.ones(len(label)), label),
        )  # fmt: skip
        write_shard(folder / f"p{i}.h5", [made], {})
    stored = open_shards(folder)
    return Windows.join([stored.subject(f"p{i}").trials(0, 1) for i in range(PEOPLE)])


@pytest.fixture(scope="module")
def asked(windows: Windows) -> Probes:
    known = np.flatnonzero(np.isin(windows.of("subject"), [f"p{i}" for i in range(KNOWN)]))
    return probes(Trials(windows, 0), known, 1.0, 0)


def test_what_says_nothing_has_a_p_of_one(asked: Probes) -> None:
    """Features of zero make one guess for all, which permuted truth reaches every time."""
    nothing = np.zeros((len(asked.trials), 3))
    for found in (asked.label(nothing), asked.label_later(nothing), asked.subject(nothing, asked.asked)):
        assert len(set(found.guess.tolist())) == 1
        assert found.by_chance.p == 1.0
        assert found.by_chance.over == "trials"


def test_what_is_a_condition_as_a_whole_is_asked_of_people(tmp_path: Path) -> None:
    """A feature that drifts from recording to recording is often right for all of their windows."""
    small, rng = 0, np.random.default_rng(0)
    for i in range(PEOPLE):
        made = [
            Recording(
                "sim", f"p{i}", "eeg", Channels.make(["a", "b"], "eeg"), session=word, sfreq=SFREQ,
                signal=rng.normal(size=(2, int(SFREQ) * TRIALS)) * 1e-5, simulated=True,
                events=Events(np.arange(float(TRIALS)), np.ones(TRIALS), [word] * TRIALS),
            )
            for word in ("rest", "task")
        ]  # fmt: skip
        write_shard(tmp_path / f"p{i}.h5", made, {})
    windows = open_shards(tmp_path).trials(0, 1)
    known = np.flatnonzero(np.isin(windows.of("subject"), ["p0", "p1"]))
    drifting = probes(Trials(windows, 0), known, 1.0, 0, 0.01)
    for _ in range(40):
        level = rng.normal(size=(len(windows.recordings), 2))[windows.recording]
        found = drifting.label(level + 0.1 * rng.normal(size=level.shape))
        assert found.entry()["p_over"] == "people"
        small += found.by_chance.p <= 0.05
    assert small <= 5


def test_the_gap_is_at_least_twice_the_reach_of_the_filters(windows: Windows, asked: Probes) -> None:
    for gap_s, least in ((1.0, 2 * REACH_S), (8.0, 8.0)):
        early, late = parted(windows, gap_s)
        for r in np.unique(windows.recording):
            own = windows.recording == r
            between = windows.start[own & late].min() - (windows.start + windows.samples)[own & early].max()
            assert between / SFREQ == least
    far = [replace(r, reach_s=30.0) for r in windows.recordings]
    moved = replace(windows, recordings=far)
    with pytest.raises(ValueError, match=r"0 late windows of .* twice the filters' reach \(30 s\)"):
        probes(Trials(moved, 0), asked.known, 1.0, 0)


def test_the_late_windows_choose_no_penalty(asked: Probes) -> None:
    """Late windows that tell the label otherwise change the penalty over all time, and nothing of the early readout."""
    rng, labels = np.random.default_rng(1), asked.trials.labels
    late = asked.known[asked.late[asked.known]]
    features = rng.normal(size=(len(labels), 30))
    features[:, 0] += 2 * labels
    other = features.copy()
    other[late, 0] += 30 * (1 - labels[late])
    one, two = (identity._probed(asked, x) for x in (features, other))
    assert one.label.predict[-1].C != two.label.predict[-1].C
    assert one.later.predict[-1].C == two.later.predict[-1].C
    np.testing.assert_array_equal(one.later.predict[-1].coef_, two.later.predict[-1].coef_)
