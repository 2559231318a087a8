"""The audit finds every kind of leak that can be planted, passes what is clean, and says what it could not check."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from brainfm.audit import Audit, audit
from brainfm.evaluations import few_shot, retrieval
from brainfm.recording import Channels, Events, Recording
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.spans import near, segmented
from brainfm.shards.twins import duplicates, merged
from brainfm.shards.write import write_shard
from brainfm.stages import audit as stage
from brainfm.training.runs import cut_in_time

SFREQ, SECONDS = 20.0, 10
#: person → side; each has the sessions "1" and "2".
SIDES = {"a": "train", "b": "train", "c": "val", "d": "test", "e": "test"}


def recording(
    subject: str, session: str, like: str | None = None, reach_s: float = 0.0, breaks: list[list[int]] | None = None,
    files: dict[str, str] | None = None, dataset: str = "made_up", gain: float = 1.0,
) -> Recording:  # fmt: skip
    """A film of its own for every session; the data of another person's where `like` says so."""
    seed = [ord(like or subject), int(session)]
    return Recording(
        dataset=dataset, subject=subject, session=session, modality="eeg", sfreq=SFREQ,
        signal=np.random.default_rng(seed).normal(0, 1e-5, (3, int(SFREQ) * SECONDS)) * gain,
        channels=Channels.make(["C3", "Cz", "C4"], "eeg"),
        events=Events(np.array([1.0, 6.0]), np.zeros(2), ["x", "x"], [f"{subject}{session} film", ""]),
        segments=None if breaks is None else np.array(breaks), reach_s=reach_s,
        provenance={"files": files or {f"{subject}{session}.edf": f"sha of {subject}{session}"}, "steps": []},
    )  # fmt: skip


def spikes(subject: str, like: str | None = None) -> Recording:
    rng = np.random.default_rng(ord(like or subject))
    return Recording(
        dataset="animals", subject=subject, modality="spikes", duration=5.0,
        channels=Channels.make(["n1", "n2"], "neuron"),
        spike_time=np.sort(rng.uniform(0, 5, 200)), spike_neuron=rng.integers(0, 2, 200),
    )  # fmt: skip


class Project:
    """Shards with a split, one model that saw a, b and c, and a transfer from a, b to d, e with shots of e."""

    def __init__(self, root: Path, whole: Path) -> None:
        self.root = root
        self.shards = root / "shards"
        shutil.copytree(whole, self.shards)
        split = {f"made_up/{s}/{n}/": side for s, side in SIDES.items() for n in "12"}
        split |= {"animals/m//": "train", "animals/n//": "test"}
        self.split = split
        self.rule: dict | None = {"test_subjects": 2}
        self.weights = b"trained once"
        self.card = {
            "windows": {"train": self.span("a1", "a2", "b1", "b2"), "val": self.span("c1")}, "tokenizer": None,
        }  # fmt: skip
        self.result = {
            "stage": "transfer", "key": "task", "model": "luna_tiny",
            "windows": {
                "train": self.span("a1", "b1"), "calibration": self.span("e2", stop=4.0),
                "test": self.span("d1", "e1") | self.span("e2", start=5.0),
            },
        }  # fmt: skip

    def write(self, subject: str, made: list[Recording]) -> None:
        write_shard(self.shards / made[0].dataset / f"sub-{subject}.h5", made, {})

    @staticmethod
    def span(*sessions: str, start: float = 0.0, stop: float = SECONDS) -> dict:
        return {f"made_up/{x[0]}/{x[1]}/": [[start, stop]] for x in sessions}

    def run(self) -> Audit:
        """The audit of the model and the result as they now stand."""
        for folder in self.shards.iterdir():
            rule = {} if self.rule is None else {"rule": self.rule}
            own = {k: v for k, v in self.split.items() if k.startswith(f"{folder.name}/")}
            (folder / "split.json").write_text(json.dumps({**rule, "recordings": own}))
        sums = {r.id: r.checksum for r in open_shards(self.shards).recordings}
        model, result = self.root / "models/luna_tiny", self.root / "task.json"
        model.mkdir(parents=True, exist_ok=True)
        (model / "model.safetensors").write_bytes(self.weights)
        for said in (self.card, self.result):
            said.setdefault("model_checksum", sha256(self.weights).hexdigest())
        for said in filter(None, (self.card, self.card["tokenizer"], self.result)):
            used = [k for side in said["windows"].values() if isinstance(side, dict) for k in side]
            said.setdefault("checksums", {k: sums.get(k, "") for k in used})
        (model / "card.json").write_text(json.dumps(self.card))
        result.write_text(json.dumps(self.result))
        return audit(self.shards, [model], [result])

    def found(self) -> dict[str, list[str]]:
        """Check → its leaks."""
        self.checks = self.run().checks
        return {c.what: c.leaks for c in self.checks if c.leaks}

    def said(self, what: str, words: str) -> list[str]:
        """What a check of the last `found` says under "warnings" or "unchecked"."""
        return next(getattr(c, words) for c in self.checks if c.what == what)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards without a leak."""
    folder = tmp_path_factory.mktemp("whole")
    for subject in SIDES:
        write_shard(folder / f"made_up/sub-{subject}.h5", [recording(subject, s) for s in "12"], {})
    return folder


@pytest.fixture
def project(tmp_path: Path, whole: Path) -> Project:
    return Project(tmp_path, whole)


def test_clean(project: Project) -> None:
    assert project.found() == {}
    assert all(c.pairs > 0 for c in project.checks)
    assert [s.name for s in project.run().splits] == [
        "luna_tiny, train and val",
        "transfer task, train and test",
        "transfer task, train and calibration",
        "transfer task, calibration and test",
        "transfer task's test and luna_tiny's train windows",
        "transfer task's calibration and luna_tiny's train windows",
        "transfer task's test and luna_tiny's val windows",
        "transfer task's calibration and luna_tiny's val windows",
    ]


def test_a_decode_of_a_person_seen_in_pretraining_is_clean(project: Project) -> None:
    """Sessions differ, and only transfer promises new people."""
    project.rule = {"test_subjects": 2, "test_sessions": ["2"]}
    project.split["made_up/b/2/"] = "test"
    project.card["windows"]["train"] = project.span("a1", "a2", "b1")
    project.result |= {"stage": "decode", "windows": {"train": project.span("b1"), "test": project.span("b2")}}
    assert project.found() == {}


def test_an_animal_may_calibrate_itself_in_another_session(project: Project) -> None:
    project.result |= {"same_people": True, "windows": {"train": project.span("d1"), "test": project.span("d2")}}
    assert project.found() == {}
    del project.result["same_people"]
    assert project.found()[PERSONS] == ["transfer task, train and test: person made_up/d is on both sides"]


# Leaks. Each function plants one.


def same_window(p: Project) -> None:
    p.split["made_up/a/1/"] = "test"
    p.result |= {"windows": {"train": p.span("a1", stop=5.0), "test": p.span("a1", start=4.0)}}


def same_session(p: Project) -> None:
    p.result |= {"stage": "decode", "windows": {"train": p.span("d1", stop=4.0), "test": p.span("d1", start=5.0)}}


def same_person(p: Project) -> None:
    p.result |= {"windows": {"train": p.span("d1"), "test": p.span("d2")}}


def another_run_of_the_session(p: Project) -> None:
    again = recording("d", "1", like="y")
    p.write("d", [recording("d", "1"), Recording(**{**vars(again), "run": "again"})])
    p.split["made_up/d/1/again"] = "train"
    p.result |= {"stage": "decode", "windows": {"train": {"made_up/d/1/again": [[0, 5]]}, "test": p.span("d1")}}


def validated_on_training(p: Project) -> None:
    p.card["windows"]["val"] |= p.span("a1", start=9.0)


def validated_within_reach(p: Project) -> None:
    p.write("a", [recording("a", "1", reach_s=1.0), recording("a", "2")])
    p.card["windows"] = {"train": p.span("a1", stop=6.0), "val": p.span("a1", start=7.9)}


def tokenizer_validated_within_reach(p: Project) -> None:
    p.write("b", [recording("b", "1", reach_s=1.0), recording("b", "2")])
    windows = {"train": p.span("b1", stop=6.0), "val": p.span("b1", start=7.9)}
    p.card["tokenizer"] = {"windows": windows, "tokenizer": None}


def shots_in_the_test(p: Project) -> None:
    p.result["windows"]["calibration"] = p.span("e2", stop=5.05)


def shots_within_reach(p: Project) -> None:
    p.write("e", [recording("e", "1"), recording("e", "2", reach_s=0.51)])


def shots_within_reach_in_a_segment(p: Project) -> None:
    """The break at 5 s parts the shots from most test windows, but the test goes back to 4.5 s."""
    p.write("e", [recording("e", "1"), recording("e", "2", reach_s=3.0, breaks=[[0, 100], [100, 200]])])
    p.result["windows"]["test"] |= p.span("e2", start=4.5)


def halves_overlap(p: Project) -> None:
    p.result["windows"]["halves"] = [p.span("d1", stop=5.0), p.span("d1", start=4.9)]


def fold_tests_whom_it_fitted(p: Project) -> None:
    """The sides of the whole are clean; one fold leaves a test person among those that it learns from."""
    right = {"train": p.span("a1", "e1"), "val": p.span("b1"), "test": p.span("d1")}
    p.result["folds"] = [right, {"train": p.span("a1", "d1"), "val": p.span("b1"), "test": p.span("d2", "e1")}]


def fold_stops_by_whom_it_tests(p: Project) -> None:
    p.result["folds"] = [{"train": p.span("a1"), "val": p.span("d2"), "test": p.span("d1")}]


def pretrained_on_the_test(p: Project) -> None:
    p.card["windows"]["train"] |= p.span("d1", start=9.0)


def pretrained_on_the_shots(p: Project) -> None:
    p.card["windows"]["train"] |= p.span("e2", start=3.0, stop=3.5)


def validated_on_the_test(p: Project) -> None:
    p.card["windows"]["val"] |= p.span("e1", stop=0.5)


def tokenizer_saw_the_test(p: Project) -> None:
    p.card["tokenizer"] = {"windows": {"train": p.span("d1"), "val": {}}, "tokenizer": None}


def pretrained_within_reach_of_the_test(p: Project) -> None:
    p.write("d", [recording("d", "1", reach_s=0.3), recording("d", "2")])
    p.card["windows"]["train"] |= p.span("d1", start=5.5)
    p.result["windows"]["test"] = p.span("d1", stop=5.0)


def person_seen(p: Project) -> None:
    p.card["windows"]["train"] |= p.span("d2")


def person_seen_by_the_tokenizer(p: Project) -> None:
    p.card["tokenizer"] = {"windows": {"train": p.span("e2"), "val": {}}, "tokenizer": None}


def wrong_side(p: Project) -> None:
    p.split["made_up/d/1/"] = "val"


def under_a_cap(p: Project, subject: str) -> None:
    made = [Recording(**{**vars(recording(subject, s)), "device": "cap"}) for s in "12"]
    p.write(subject, made)


def held_out_device_was_seen(p: Project) -> None:
    for subject in "ad":
        under_a_cap(p, subject)
    p.result["held_out_devices"] = ["cap"]


def trained_on_the_wrong_side(p: Project) -> None:
    p.result["windows"]["train"] |= p.span("d2")


def pretrained_on_the_wrong_side(p: Project) -> None:
    p.split["made_up/a/1/"] = "test"


def tokenizer_on_the_wrong_side(p: Project) -> None:
    p.card["tokenizer"] = {"windows": {"train": p.span("d2"), "val": {}}, "tokenizer": None}


def shown_on_both_sides(p: Project) -> None:
    other = recording("d", "1")
    other.events.stimulus[0] = "a1 film"
    p.write("d", [other, recording("d", "2")])


def shown_in_pretraining(p: Project) -> None:
    other = recording("e", "1")
    other.events.stimulus[0] = "c1 film"
    p.write("e", [other, recording("e", "2")])


def shown_twice_across_a_cut(p: Project) -> None:
    """Two presentations of one film, one in each part of a recording that was cut in time."""
    other = recording("a", "1")
    other.events.stimulus[:] = ["film", "film"]
    p.write("a", [other, recording("a", "2")])
    p.card["windows"] = {"train": p.span("a1", stop=5.0), "val": p.span("a1", start=5.0)}


def still_shown_when_the_test_begins(p: Project) -> None:
    """The film began before the window."""
    other = recording("e", "1")
    other.events.stimulus[0], other.events.duration[0] = "b1 film", 5.0
    p.write("e", [other, recording("e", "2")])
    p.result["windows"]["test"] = p.span("e1", start=5.0)


def under_another_name(p: Project) -> None:
    p.write("d", [recording("d", "1", like="b"), recording("d", "2")])


def a_copy_that_starts_later(p: Project) -> None:
    """Three whole seconds were cut off the copy."""
    copy = recording("d", "1", like="b")
    p.write("d", [Recording(**{**vars(copy), "signal": copy.signal[:, 60:], "segments": None, "duration": 0.0})])
    p.result["windows"] = {"train": p.span("a1", "b1"), "test": p.span("d1", "e1", stop=7.0)}


def a_copy_in_another_dataset(p: Project) -> None:
    p.write("x", [recording("x", "1", like="d", dataset="again")])
    p.split["again/x/1/"] = "train"
    p.card["windows"]["train"]["again/x/1/"] = [[0, 10]]


def a_copy_that_nothing_used(p: Project) -> None:
    """The split files alone put it on two sides."""
    p.write("x", [recording("x", "2", like="d", dataset="again")])
    p.split["again/x/2/"] = "train"


def spikes_under_another_name(p: Project) -> None:
    p.write("m", [spikes("m")])
    p.write("n", [spikes("n", like="m")])
    p.result["windows"]["train"]["animals/m//"] = p.result["windows"]["test"]["animals/n//"] = [[0, 5]]


def a_copied_file(p: Project) -> None:
    """The raw file of b under another name, cleaned so that no frame is the same."""
    copy = recording("d", "1", like="b", gain=2.0, files={"copy.edf": "sha of b1"})
    p.write("d", [copy, recording("d", "2")])


def a_copied_file_in_another_dataset(p: Project) -> None:
    """The file keeps its name; another table lies beside it."""
    files = {"e1.edf": "sha of e1", "channels.tsv": "sha of a table"}
    p.write("x", [recording("x", "1", gain=3.0, files=files, dataset="again")])
    p.split["again/x/1/"] = "train"
    p.result["windows"]["train"]["again/x/1/"] = [[0, 10]]


def changed_since(p: Project) -> None:
    p.found()
    p.write("d", [recording("d", "1", like="z"), recording("d", "2")])


def changed_since_the_tokenizer(p: Project) -> None:
    p.card["tokenizer"] = {"windows": {"train": p.span("a2"), "val": {}}, "tokenizer": None}
    p.card["tokenizer"]["checksums"] = {"made_up/a/2/": "another"}


def gone_since(p: Project) -> None:
    p.found()
    (p.shards / "made_up/sub-b.h5").unlink()


def finetuned_on_the_test(p: Project) -> None:
    """A decoder that was trained further on the very seconds it is scored on."""
    p.split["made_up/d/1/"] = "test"
    p.card["windows"]["finetuned"] = p.span("d1", start=9.0)


def finetuned_on_the_wrong_side(p: Project) -> None:
    p.card["windows"]["finetuned"] = p.span("d2")


def tokenizer_finetuned_on_the_test(p: Project) -> None:
    p.card["tokenizer"] = {"windows": {"train": {}, "val": {}, "finetuned": p.span("e2", start=6.0)}, "tokenizer": None}


def finetuned_on_a_held_out_device(p: Project) -> None:
    for subject in "ad":
        under_a_cap(p, subject)
    p.card["windows"] = {"train": p.span("b1"), "val": {}, "finetuned": p.span("a1")}
    p.result["held_out_devices"] = ["cap"]


def trained_again_since(p: Project) -> None:
    """The model, and its card with it; the result is of the weights before."""
    p.found()
    p.weights = b"trained twice"
    p.card["model_checksum"] = sha256(p.weights).hexdigest()


def weights_of_another_card(p: Project) -> None:
    p.found()
    p.weights = b"copied from elsewhere"


def without_checksum(p: Project) -> None:
    p.found()
    del p.result["checksums"]["made_up/d/1/"]


def no_card(p: Project) -> None:
    p.result["model"] = "another"


def person_on_two_sides(p: Project) -> None:
    p.split["made_up/c/2/"] = "test"


def session_on_two_sides(p: Project) -> None:
    p.rule = {"test_sessions": ["1"]}
    p.split["made_up/c/1/again"] = "test"


OVERLAP = "no second is on both sides"
REACH = "windows on different sides share no raw sample through the filters"
SESSIONS = "no session is on both sides, where sessions or people are held out"
PERSONS = "no person is on both sides, where people are held out"
SIDE = "windows lie on the side that the split gave their recording"
STIMULI = "no stimulus is on both sides"
FRAMES = "no frame of data is on both sides, under whatever name"
FILES = "no raw file is on both sides, under whatever name"
SAME = "the shards are those that the models and results were made from"
WEIGHTS = "the models that lie there are those that their cards and the results speak of"
CARDS = "every result says what its model and its calibration saw"
SPLIT = "split files keep sessions together, and people where their rule holds out people"

PLANTED: list[tuple[Callable[[Project], None], str, str]] = [
    (same_window, OVERLAP, "transfer task, train and test: made_up/a/1/ from 4.000 to 5.000 s"),
    (same_session, SESSIONS, "decode task, train and test: session made_up/d/1 is on both sides"),
    (same_person, PERSONS, "transfer task, train and test: person made_up/d is on both sides"),
    (another_run_of_the_session, SESSIONS, "session made_up/d/1 is on both sides"),
    (validated_on_training, OVERLAP, "luna_tiny, train and val: made_up/a/1/ from 9.000 to 10.000"),
    (validated_within_reach, REACH, "made_up/a/1/, the windows around 7.900 s are 1.900 s apart; the filters"),
    (tokenizer_validated_within_reach, REACH, "luna_tiny's tokenizer, train and val: made_up/b/1/, the windows around"),
    (shots_in_the_test, OVERLAP, "transfer task, calibration and test: made_up/e/2/ from 5.000 to 5.050 s"),
    (shots_within_reach, REACH, "calibration and test: made_up/e/2/, the windows around 5.000 s are 1.000 s apart"),
    (shots_within_reach_in_a_segment, REACH, "the windows around 4.500 s are 0.500 s apart"),
    (halves_overlap, OVERLAP, "transfer task, first and second halves: made_up/d/1/ from 4.900 to 5.000 s"),
    (fold_tests_whom_it_fitted, PERSONS, "transfer task, fold 2, train and test: person made_up/d is on both sides"),
    (fold_stops_by_whom_it_tests, PERSONS, "transfer task, fold 1, val and test: person made_up/d is on both sides"),
    (pretrained_on_the_test, OVERLAP, "task's test and luna_tiny's train windows: made_up/d/1/ from 9.000"),
    (pretrained_on_the_shots, OVERLAP, "task's calibration and luna_tiny's train windows: made_up/e/2/ from 3.000"),
    (validated_on_the_test, OVERLAP, "luna_tiny's val windows: made_up/e/1/ from 0.000 to 0.500"),
    (tokenizer_saw_the_test, OVERLAP, "luna_tiny's tokenizer's train windows: made_up/d/1/"),
    (pretrained_within_reach_of_the_test, REACH, "luna_tiny's train windows: made_up/d/1/, the windows around 0.000 s"),
    (person_seen, PERSONS, "luna_tiny's train windows: person made_up/d is on both sides"),
    (person_seen_by_the_tokenizer, PERSONS, "tokenizer's train windows: person made_up/e is on both sides"),
    (wrong_side, SIDE, "made_up/d/1/ is on the 'val' side; expected test"),
    (held_out_device_was_seen, SIDE, "its model luna_tiny saw made_up/a/1/ of the held-out device cap"),
    (trained_on_the_wrong_side, SIDE, "transfer task: made_up/d/2/ is on the 'test' side; expected train or val"),
    (pretrained_on_the_wrong_side, SIDE, "luna_tiny: made_up/a/1/ is on the 'test' side; expected train or val"),
    (tokenizer_on_the_wrong_side, SIDE, "luna_tiny's tokenizer: made_up/d/2/ is on the 'test' side"),
    (shown_on_both_sides, STIMULI, "transfer task, train and test: stimulus 'made_up:a1 film' is on both sides"),
    (shown_in_pretraining, STIMULI, "luna_tiny's val windows: stimulus 'made_up:c1 film'"),
    (shown_twice_across_a_cut, STIMULI, "luna_tiny, train and val: stimulus 'made_up:film'"),
    (still_shown_when_the_test_begins, STIMULI, "transfer task, train and test: stimulus 'made_up:b1 film'"),
    (under_another_name, FRAMES, "train and test: made_up/d/1/ holds the same data as made_up/b/1/"),
    (a_copy_that_starts_later, FRAMES, "train and test: made_up/d/1/ holds the same data as made_up/b/1/"),
    (a_copy_in_another_dataset, FRAMES, "luna_tiny's train windows: made_up/d/1/ holds the same data as again/x/1/"),
    (a_copy_that_nothing_used, FRAMES, "split files: again/x/2/ holds the same data as made_up/d/2/; they are on the"),
    (spikes_under_another_name, FRAMES, "animals/n// holds the same data as animals/m//"),
    (a_copied_file, FILES, "train and test: made_up/d/1/ holds the same raw files as made_up/b/1/"),
    (a_copied_file_in_another_dataset, FILES, "train and test: made_up/e/1/ holds the same raw files as again/x/1/"),
    (changed_since, SAME, "transfer task: made_up/d/1/ has changed since"),
    (changed_since_the_tokenizer, SAME, "luna_tiny's tokenizer: made_up/a/2/ has changed since"),
    (gone_since, SAME, "luna_tiny: made_up/b/1/ has changed since"),
    (without_checksum, SAME, "transfer task: nothing proves which data made_up/d/1/ were"),
    (finetuned_on_the_test, OVERLAP, "task's test and luna_tiny's finetuned windows: made_up/d/1/ from 9.000"),
    (finetuned_on_the_wrong_side, SIDE, "luna_tiny: made_up/d/2/ is on the 'test' side; expected train or val"),
    (tokenizer_finetuned_on_the_test, PERSONS, "tokenizer's finetuned windows: person made_up/e is on both sides"),
    (finetuned_on_a_held_out_device, SIDE, "its model luna_tiny saw made_up/a/1/ of the held-out device cap"),
    (trained_again_since, WEIGHTS, "transfer task is not of the weights of luna_tiny: others lie there now"),
    (weights_of_another_card, WEIGHTS, "the card of luna_tiny is not of the weights of luna_tiny: others lie"),
    (no_card, CARDS, "its model another has no card"),
    (person_on_two_sides, SPLIT, "person made_up/c is on the sides test, val"),
    (session_on_two_sides, SPLIT, "session made_up/c/1 is on the sides test, val"),
]


@pytest.mark.parametrize(("plant", "check", "said"), PLANTED, ids=[p[0].__name__ for p in PLANTED])
def test_planted_leak_is_found(project: Project, plant: Callable, check: str, said: str) -> None:
    plant(project)
    found = project.found()
    assert check in found, found
    assert any(said in leak for leak in found[check]), found[check]


# What is clean, though it looks close to a leak.


def a_device_held_out_from_any_side(p: Project) -> None:
    under_a_cap(p, "d")
    p.split["made_up/d/1/"] = p.split["made_up/d/2/"] = "train"
    p.result["held_out_devices"] = ["cap"]


def reach_that_just_does_not_touch(p: Project) -> None:
    """Shots end at 4 s, the test begins at 5 s."""
    p.write("e", [recording("e", "1"), recording("e", "2", reach_s=0.5)])


def reach_across_a_break(p: Project) -> None:
    p.write("e", [recording("e", "1"), recording("e", "2", reach_s=3.0, breaks=[[0, 80], [80, 200]])])


def one_film_across_a_cut(p: Project) -> None:
    """A single presentation goes on from training into validation: other seconds of it."""
    other = recording("a", "1")
    other.events.duration[0] = 8.0
    p.write("a", [other, recording("a", "2")])
    p.card["windows"] = {"train": p.span("a1", stop=5.0), "val": p.span("a1", start=5.0)}


def one_file_of_many_recordings(p: Project) -> None:
    for subject in SIDES:
        files = {"everybody.mat": "sha of all", "atlas.nii": "sha of atlas"}
        p.write(subject, [recording(subject, s, files=files) for s in "12"])


def a_shared_atlas(p: Project) -> None:
    for subject in SIDES:
        files = {s: {f"{subject}{s}.nii": f"sha of {subject}{s}", f"{subject}.nii": "sha of atlas"} for s in "12"}
        p.write(subject, [recording(subject, s, files=files[s]) for s in "12"])


def silence_on_both_sides(p: Project) -> None:
    """Stretches of zeros, and seconds without spikes, are no evidence."""
    for subject in "bd":
        flat = recording(subject, "1")
        flat.signal[:, :100] = 0
        p.write(subject, [flat, recording(subject, "2")])
    for subject in "mn":
        none = spikes(subject)
        keep = none.spike_time > 3
        made = {**vars(none), "spike_time": none.spike_time[keep], "spike_neuron": none.spike_neuron[keep]}
        p.write(subject, [Recording(**made)])
    p.result["windows"]["train"]["animals/m//"] = p.result["windows"]["test"]["animals/n//"] = [[0, 5]]


def a_copy_outside_the_windows(p: Project) -> None:
    """The first 5 s of c are those of a, and both are on the training side; only the rest of c validates."""
    other = recording("c", "1")
    other.signal[:, :100] = recording("a", "1").signal[:, :100]
    p.write("c", [other, recording("c", "2")])
    p.split = {k: "train" if "/c/" in k else v for k, v in p.split.items()}
    p.card["windows"]["val"] = p.span("c1", start=5.0)


CLEAN = [
    a_device_held_out_from_any_side,
    reach_that_just_does_not_touch,
    reach_across_a_break,
    one_film_across_a_cut,
    one_file_of_many_recordings,
    a_shared_atlas,
    silence_on_both_sides,
    a_copy_outside_the_windows,
]


@pytest.mark.parametrize("plant", CLEAN, ids=[p.__name__ for p in CLEAN])
def test_what_is_no_leak_passes(project: Project, plant: Callable) -> None:
    plant(project)
    assert project.found() == {}


# Duplicates inside the corpus, and what cannot be checked.


def test_duplicates(project: Project) -> None:
    assert duplicates(open_shards(project.shards)) == []
    under_another_name(project)
    assert duplicates(open_shards(project.shards)) == [("made_up/b/1/", "made_up/d/1/")]


def test_a_duplicate_on_one_side_is_a_warning(project: Project) -> None:
    project.write("b", [recording("b", "1", like="a", files={"b.edf": "sha of a1"}), recording("b", "2")])
    assert project.found() == {}
    for check, shared in ((FRAMES, "data"), (FILES, "raw files")):
        said = f"made_up/b/1/ holds the same {shared} as made_up/a/1/, on the same side; one of them is enough"
        assert project.said(check, "warnings") == [said]


def test_a_frame_in_every_recording_names_each_once(project: Project) -> None:
    """A calibration signal before every session: no square of pairs."""
    for subject in SIDES:
        made = [recording(subject, s) for s in "12"]
        for one in made:
            one.signal[:, :20] = recording("a", "1").signal[:, :20]
        project.write(subject, made)
    assert len(duplicates(open_shards(project.shards))) == 9
    leaks = [x for x in project.found()[FRAMES] if x.startswith("transfer task, train and test")]
    assert len(leaks) == 2


def test_what_cannot_be_checked_is_said(project: Project) -> None:
    silent = recording("a", "1", reach_s=1.0)
    silent.events = Events()
    tiny = Recording(
        dataset="made_up", subject="f", modality="eeg", sfreq=4.0, signal=np.arange(40.0)[None] * 1e-6,
        channels=Channels.make(["Cz"], "eeg"), provenance={"files": {}, "steps": []},
    )  # fmt: skip
    project.write("a", [silent, recording("a", "2")])
    project.write("f", [tiny])
    project.rule = None
    project.result["curve"] = [{"shots": 5}]
    del project.result["windows"]["calibration"]
    assert project.found() == {}
    assert project.said(REACH, "unchecked")[0].startswith("7 of 8 recordings in use: no filter of ours in them")
    assert project.said(STIMULI, "unchecked") == ["1 of 8 recordings in use: no stimulus ids"]
    assert project.said(FRAMES, "unchecked") == ["1 recordings: frames of fewer than 9 numbers say too little"]
    assert project.said(FILES, "unchecked") == ["1 of 11 recordings name no raw file"]
    assert "does not say its rule" in project.said(SPLIT, "unchecked")[0]
    assert project.said(SPLIT, "unchecked")[1] == "1 recordings are on no side of a split file"
    assert project.said(CARDS, "unchecked") == [
        "transfer task: its curve used shots that it does not list; run it again"
    ]


def test_a_card_that_does_not_say_what_it_saw_is_refused(project: Project) -> None:
    project.run()
    path = project.root / "models/luna_tiny/card.json"
    path.write_text(json.dumps({"windows": {}}))
    with pytest.raises(ValueError, match=r"does not say what it saw \(checksums missing\); run pretrain again"):
        audit(project.shards, [path.parent], [])
    path.write_text("{")
    with pytest.raises(ValueError, match=r"card.json is not whole"):
        audit(project.shards, [path.parent], [])


def test_a_record_that_does_not_say_of_which_weights_it_is_proves_nothing(project: Project) -> None:
    project.run()
    model, result = project.root / "models/luna_tiny", project.root / "task.json"
    for path in (model / "card.json", result):
        said = json.loads(path.read_text())
        del said["model_checksum"]
        path.write_text(json.dumps(said))
    found = {c.what: c.leaks for c in audit(project.shards, [model], [result]).checks if c.leaks}
    assert found == {WEIGHTS: [
        "the card of luna_tiny does not say of which weights of luna_tiny it is; run pretrain again",
        "transfer task does not say of which weights of luna_tiny it is; run transfer again",
    ]}  # fmt: skip
    project.run()
    (model / "model.safetensors").unlink()
    (leaks,) = [c.leaks for c in audit(project.shards, [model], [result]).checks if c.leaks]
    assert len(leaks) == 2
    assert all("model.safetensors is missing" in leak for leak in leaks)


def test_stage_prints_what_it_checked_and_fails_on_a_leak(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    project.run()
    model, result = project.root / "models/luna_tiny", project.root / "task.json"
    monkeypatch.setattr(stage, "model_paths", lambda root, key: [model])
    monkeypatch.setattr(stage, "result_paths", lambda root, key: [result])
    monkeypatch.setattr(stage.config, "wiring", lambda *asked: {"shards": "shards"})
    stage.run("made", project.root)
    printed = capsys.readouterr().out
    assert "8 splits of models and results" in printed
    assert f"ok   {OVERLAP} (" in printed
    assert "not checked: 8 of 8 recordings in use: no filter of ours in them" in printed
    same_person(project)
    project.run()
    with pytest.raises(stage.LeakageError, match="person made_up/d is on both sides"):
        stage.run("made", project.root)
    assert f"LEAK {PERSONS}" in capsys.readouterr().out
    kept = json.loads((project.root / "data/results/audit/made.json").read_text())
    assert kept["passed"] is False
    assert kept["results"] == {f"{project.root.name}/task.json": sha256(result.read_bytes()).hexdigest()}
    assert "luna_tiny, train and val" in kept["splits"]
    assert {"what", "pairs", "of", "leaks", "warnings", "unchecked"} == set(kept["checks"][0])


# The stages leave the gaps that the audit asks for.


@pytest.mark.parametrize("breaks", [None, [[0, 60], [60, 190], [190, 200]]])
def test_validation_cut_in_time_keeps_clear_of_the_filters(project: Project, breaks: list | None) -> None:
    project.write("a", [recording("a", "1", reach_s=1.0, breaks=breaks), recording("a", "2")])
    windows = open_shards(project.shards).where(subject="a").windows(0.5)
    train, val = cut_in_time(windows)
    project.card["windows"] = {"train": train.intervals(), "val": val.intervals()}
    assert project.found() == {}
    ends = [x[-1][1] for x in train.intervals().values()]
    assert ends == [9.0 if breaks else 7.5, 9.0]
    assert [x[0][0] for x in val.intervals().values()] == [9.5, 9.5]


def test_shots_and_halves_keep_clear_of_the_filters(project: Project) -> None:
    made = [recording("e", s, reach_s=0.6) for s in "12"]
    for one in made:
        one.events = Events(np.arange(20) * 0.5, np.full(20, 0.5), ["left", "right"] * 10)
    project.write("e", made)
    windows = open_shards(project.shards).where(subject="e", session="1").trials(0, 0.5)
    pool, held = few_shot.halves(windows, ["left", "right"])
    shots, test = windows.take(pool).intervals(), windows.take(held).intervals()
    assert np.sum(held) == 10
    assert np.sum(pool) == 7, "the three trials in the 1.2 s before the test half are in neither"
    half = retrieval.halves(windows)
    project.result["windows"] |= {
        "calibration": shots, "test": test, "halves": [windows.take(half == h).intervals() for h in (0, 1)],
    }  # fmt: skip
    assert project.found() == {}


class Power:
    """A stand-in for a pretrained network: encodes a window by the power of its channels."""

    def __init__(self) -> None:
        self.card: dict = {}

    def features(self, windows: Windows) -> np.ndarray:
        rows = zip(windows.recording, windows.start, windows.start + windows.samples, strict=True)
        return np.stack([np.log(windows.recordings[r].signal(int(a), int(b)).var(axis=1)) for r, a, b in rows])

    def untrained(self, seed: int) -> Power:
        return self


def test_few_shot_says_which_trials_were_shots(project: Project) -> None:
    """What the result says it was calibrated and scored on passes the audit, and a shot that was scored would not."""
    for subject in "abde":
        made = [recording(subject, s, reach_s=0.6) for s in "12"]
        for one in made:
            one.events = Events(np.arange(20) * 0.5, np.full(20, 0.5), ["left", "right"] * 10)
        project.write(subject, made)
    corpus = open_shards(project.shards).where(session="1")
    train, test = (corpus.where(subject=list(who)).trials(0, 0.5) for who in ("ab", "de"))
    found = few_shot.run(Power(), train, test, seed=0, shots=[0, 2], draws=3, permutations=1)
    assert set(found["windows"]) == {"train", "calibration", "test"}
    project.result |= {"windows": found["windows"], "curve": found["curve"]}
    assert project.found() == {}
    assert project.said(CARDS, "unchecked") == []
    project.result["windows"]["test"]["made_up/d/1/"].insert(0, found["windows"]["calibration"]["made_up/d/1/"][0])
    assert OVERLAP in project.found()


def test_spans_against_a_slow_loop() -> None:
    """`merged`, `near` and `segmented` against every pair, one by one."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        cuts = np.unique(np.r_[0, rng.integers(1, 60, rng.integers(0, 5)), 60])
        segments = np.stack([cuts[:-1], cuts[1:]], axis=1)
        left, right = (np.sort(rng.choice(61, (rng.integers(1, 6), 2))) for _ in range(2))
        left, right = (x[x[:, 0] < x[:, 1]].astype(float) for x in (left, right))
        gap = int(rng.integers(1, 8))
        covered = np.zeros(60, bool)
        for a, b in left.astype(int):
            covered[a:b] = True
        whole = merged(left)
        assert sum(b - a for a, b in whole) == covered.sum()
        assert np.all(whole[1:, 0] > whole[:-1, 1])
        expected = False
        for s, e in segments:
            inside = [[(max(a, s), min(b, e)) for a, b in x if max(a, s) < min(b, e)] for x in (left, right)]
            expected |= any(a < d + gap and c < b + gap for a, b in inside[0] for c, d in inside[1])
        pieces = [segmented(merged(x), segments, gap)[0] for x in (left, right)]
        assert bool(near(*pieces, gap)) is expected


def test_spans_of_a_recording_without_segments_have_no_break() -> None:
    spans = np.array([[0.0, 4.0], [6.0, 9.0]])
    pieces, moved = segmented(spans, np.zeros((0, 2), int), 3.0)
    np.testing.assert_array_equal(pieces, spans)
    np.testing.assert_array_equal(moved, [0, 0])
