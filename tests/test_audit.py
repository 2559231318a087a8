"""The audit finds every kind of leak that can be planted, and passes what is clean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from brainfm.audit import audit, duplicates
from brainfm.recording import Channels, Events, Recording
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard

SFREQ, SECONDS = 20.0, 10
#: person → side; each has the sessions "1" and "2".
SIDES = {"a": "train", "b": "train", "c": "val", "d": "test", "e": "test"}


def recording(subject: str, session: str, like: str | None = None) -> Recording:
    """A film of its own for every session; the data of another person's where `like` says so."""
    seed = [ord(like or subject), int(session)]
    return Recording(
        dataset="made_up", subject=subject, session=session, modality="eeg", sfreq=SFREQ,
        signal=np.random.default_rng(seed).normal(0, 1e-5, (3, int(SFREQ) * SECONDS)),
        channels=Channels.make(["C3", "Cz", "C4"], "eeg"),
        events=Events(np.array([1.0, 6.0]), np.zeros(2), ["x", "x"], [f"{subject}{session} film", ""]),
    )  # fmt: skip


def spikes(subject: str, like: str | None = None) -> Recording:
    rng = np.random.default_rng(ord(like or subject))
    return Recording(
        dataset="animals", subject=subject, modality="spikes", duration=5.0,
        channels=Channels.make(["n1", "n2"], "neuron"),
        spike_time=np.sort(rng.uniform(0, 5, 200)), spike_neuron=rng.integers(0, 2, 200),
    )  # fmt: skip


class Project:
    """Shards with a split, one model that saw a, b and c, and one result that trains on a, b and tests on d, e."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shards = root / "shards"
        for subject in SIDES:
            self.write(subject, [recording(subject, s) for s in "12"])
        split = {f"made_up/{s}/{n}/": side for s, side in SIDES.items() for n in "12"}
        split |= {"animals/m/": "train", "animals/n/": "test"}
        self.split = split
        self.card = {"windows": {"train": self.span("a1", "a2", "b1", "b2"), "val": self.span("c1")}, "tokenizer": None}
        self.result = {
            "stage": "transfer", "key": "task", "model": "luna_tiny",
            "windows": {"train": self.span("a1", "b1"), "test": self.span("d1", "e1")},
        }  # fmt: skip

    def write(self, subject: str, made: list[Recording]) -> None:
        write_shard(self.shards / made[0].dataset / f"sub-{subject}.h5", made, {})

    @staticmethod
    def span(*sessions: str, start: float = 0.0, stop: float = SECONDS) -> dict:
        return {f"made_up/{x[0]}/{x[1]}/": [[start, stop]] for x in sessions}

    def found(self) -> dict[str, list[str]]:
        """Check → its leaks, after the model and the result are written as they now stand."""
        for folder in self.shards.iterdir():
            (folder / "split.json").write_text(json.dumps({"recordings": self.split}))
        sums = {r.id: r.checksum for r in open_shards(self.shards).recordings}
        model, result = self.root / "models/luna_tiny", self.root / "task.json"
        model.mkdir(parents=True, exist_ok=True)
        seen = [*self.card["windows"]["train"], *self.card["windows"]["val"]]
        self.card.setdefault("checksums", {k: sums.get(k, "") for k in seen})
        used = [*self.result["windows"]["train"], *self.result["windows"]["test"]]
        self.result.setdefault("checksums", {k: sums.get(k, "") for k in used})
        (model / "card.json").write_text(json.dumps(self.card))
        result.write_text(json.dumps(self.result))
        self.checks = audit(self.shards, [model], [result])
        return {c.what: c.leaks for c in self.checks if c.leaks}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_clean(project: Project) -> None:
    assert project.found() == {}
    assert all(c.pairs > 0 for c in project.checks)


def test_a_decode_of_a_person_seen_in_pretraining_is_clean(project: Project) -> None:
    """Sessions differ, and only transfer promises new people."""
    project.split["made_up/b/2/"] = "test"
    project.card["windows"]["train"] = project.span("a1", "a2", "b1")
    project.result |= {"stage": "decode", "windows": {"train": project.span("b1"), "test": project.span("b2")}}
    assert project.found() == {}


def same_window(p: Project) -> None:
    p.split["made_up/a/1/"] = "test"
    p.result |= {"windows": {"train": p.span("a1", stop=5.0), "test": p.span("a1", start=4.0)}}


def same_session(p: Project) -> None:
    p.result |= {"windows": {"train": p.span("d1", stop=4.0), "test": p.span("d1", start=5.0)}}


def pretrained_on_the_test(p: Project) -> None:
    p.card["windows"]["train"] |= p.span("d1", start=9.0)


def validated_on_the_test(p: Project) -> None:
    p.card["windows"]["val"] |= p.span("e1", stop=0.5)


def tokenizer_saw_the_test(p: Project) -> None:
    p.card["tokenizer"] = {"windows": {"train": p.span("d1"), "val": {}}, "tokenizer": None}


def person_seen(p: Project) -> None:
    p.card["windows"]["train"] |= p.span("d2")


def person_seen_by_the_tokenizer(p: Project) -> None:
    p.card["tokenizer"] = {"windows": {"train": p.span("e2"), "val": {}}, "tokenizer": None}


def wrong_side(p: Project) -> None:
    p.split["made_up/d/1/"] = "val"


def pretrained_on_the_wrong_side(p: Project) -> None:
    p.split["made_up/a/1/"] = "test"


def shown_on_both_sides(p: Project) -> None:
    other = recording("d", "1")
    other.events.stimulus[0] = "a1 film"
    p.write("d", [other, recording("d", "2")])


def shown_in_pretraining(p: Project) -> None:
    other = recording("e", "1")
    other.events.stimulus[0] = "c1 film"
    p.write("e", [other, recording("e", "2")])


def under_another_name(p: Project) -> None:
    p.write("d", [recording("d", "1", like="b"), recording("d", "2")])


def a_copy_that_starts_later(p: Project) -> None:
    """Three whole seconds were cut off the copy."""
    copy = recording("d", "1", like="b")
    p.write("d", [Recording(**{**vars(copy), "signal": copy.signal[:, 60:], "segments": None, "duration": 0.0})])


def spikes_under_another_name(p: Project) -> None:
    p.write("m", [spikes("m")])
    p.write("n", [spikes("n", like="m")])
    p.split |= {"animals/m//": "train", "animals/n//": "test"}
    p.result["windows"]["train"]["animals/m//"] = p.result["windows"]["test"]["animals/n//"] = [[0, 5]]


def changed_since(p: Project) -> None:
    p.found()
    p.write("d", [recording("d", "1", like="z"), recording("d", "2")])


def gone_since(p: Project) -> None:
    p.found()
    (p.shards / "made_up/sub-b.h5").unlink()


def no_card(p: Project) -> None:
    p.result["model"] = "another"


OVERLAP = "training and test windows do not overlap in time"
PEOPLE = "training and test people differ, or at least their sessions"
PRETRAINING = "pretraining never saw a test window"
PERSONS = "transfer: pretraining never saw a test person"
SIDE = "windows lie on the side that the split gave their recording"
STIMULI = "no stimulus is on both sides"
FRAMES = "no frame of data is on both sides, under whatever name"
SAME = "the shards are those that the model and the result were made from"

PLANTED: list[tuple[Callable[[Project], None], str, str]] = [
    (same_window, OVERLAP, "made_up/a/1/ from 4.000 to 5.000 s"),
    (same_session, PEOPLE, "session made_up/d/1 is on both sides"),
    (pretrained_on_the_test, PRETRAINING, "luna_tiny's train windows: made_up/d/1/ from 9.000"),
    (validated_on_the_test, PRETRAINING, "luna_tiny's val windows: made_up/e/1/ from 0.000 to 0.500"),
    (tokenizer_saw_the_test, PRETRAINING, "luna_tiny's tokenizer's train windows: made_up/d/1/"),
    (person_seen, PERSONS, "made_up/d was seen in pretraining"),
    (person_seen_by_the_tokenizer, PERSONS, "tokenizer's train windows: made_up/e was seen"),
    (wrong_side, SIDE, "made_up/d/1/ is on the 'val' side; expected test"),
    (pretrained_on_the_wrong_side, SIDE, "luna_tiny: made_up/a/1/ is on the 'test' side; expected train or val"),
    (shown_on_both_sides, STIMULI, "transfer task: stimulus 'made_up:a1 film' is on both sides"),
    (shown_in_pretraining, STIMULI, "luna_tiny's val windows: stimulus 'made_up:c1 film'"),
    (under_another_name, FRAMES, "made_up/d/1/ holds the same data as made_up/b/1/"),
    (a_copy_that_starts_later, FRAMES, "made_up/d/1/ holds the same data as made_up/b/1/"),
    (spikes_under_another_name, FRAMES, "animals/n// holds the same data as animals/m//"),
    (changed_since, SAME, "transfer task: made_up/d/1/ has changed since"),
    (gone_since, SAME, "luna_tiny: made_up/b/1/ has changed since"),
    (no_card, PRETRAINING, "its model another has no card"),
]


@pytest.mark.parametrize(("plant", "check", "said"), PLANTED, ids=[p[0].__name__ for p in PLANTED])
def test_planted_leak_is_found(project: Project, plant: Callable, check: str, said: str) -> None:
    plant(project)
    found = project.found()
    assert check in found, found
    assert any(said in leak for leak in found[check]), found[check]


def test_duplicates(project: Project) -> None:
    assert duplicates(open_shards(project.shards)) == []
    under_another_name(project)
    assert duplicates(open_shards(project.shards)) == [("made_up/b/1/", "made_up/d/1/")]
