"""Joint against separate: each device by itself, with what pretraining had seen of it, and the table that shows it."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from brainfm.codebooks import braintokenizer
from brainfm.evaluations import devices
from brainfm.evaluations.tasks import select
from brainfm.models import brainomni
from brainfm.recording import Channels, Events, Recording
from brainfm.report import devices as page
from brainfm.shards.ingest import write_split
from brainfm.shards.read import Corpus, open_shards
from brainfm.shards.write import write_shard
from brainfm.tokens import Facts
from brainfm.training import checkpoint
from brainfm.training.checkpoint import Pretrained

SFREQ, TRIALS = 64.0, 24


def recording(dataset: str, subject: str, device: str, channels: int, session: str = "") -> Recording:
    """Trials of a second; in "loud" ones the first channel is."""
    rng = np.random.default_rng([channels, int(subject)])
    label = ["loud" if i % 2 else "quiet" for i in range(TRIALS)]
    signal = rng.normal(size=(channels, int(TRIALS * SFREQ)))
    signal[0] *= np.repeat([4.0 if x == "loud" else 1.0 for x in label], int(SFREQ))
    names = ["C3", "Cz", "C4", "Pz", "O1", "O2"][:channels]
    return Recording(
        dataset, subject, "eeg", Channels.make(names, "eeg", rng.normal(scale=0.05, size=(channels, 3))),
        session=session, sfreq=SFREQ, signal=1e-5 * signal,
        events=Events(np.arange(TRIALS, dtype=float), np.ones(TRIALS), label), device=device, simulated=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A device with sessions of one person, one with two people, one with one person who has nobody to learn from."""
    root = tmp_path_factory.mktemp("shards")
    made = {
        "old": [recording("old", "1", "old cap", 4, s) for s in ("a", "b")],
        "new": [recording("new", s, "new cap", 5) for s in "12"],
        "lone": [recording("lone", "1", "lone cap", 3)],
    }
    for dataset, found in made.items():
        for subject in {r.subject for r in found}:
            write_shard(root / dataset / f"sub-{subject}.h5", [r for r in found if r.subject == subject], {})
        write_split(root / dataset, {"test_sessions": ["b"]} if dataset == "old" else {"everyone": "test"}, 0)
    return open_shards(root)


def model(card: dict) -> Pretrained:
    facts = Facts(sfreq=SFREQ, window_s=0.5, kinds=("eeg",), modality=("eeg",))
    codebook = {"kind": "codebooks", "name": "braintokenizer", "keywords": braintokenizer.SIZES["test"]}
    described = {"kind": "models", "name": "brainomni", "keywords": brainomni.SIZES["test"],
                 "codebook": {**codebook, "facts": asdict(facts)}}  # fmt: skip
    return Pretrained(checkpoint.build(described, facts).eval(), described, facts, card)


def test_each_device_by_itself(corpus: Corpus) -> None:
    given = {
        "train": {"dataset": "old", "session": "a"},
        "test": [{"dataset": "old", "split": "test"}, {"device": ["new cap", "lone cap"]}],
        "length_s": 1.0,
    }
    train, test = select(corpus, given, "here")
    assert set(test.of("id")) == {r.id for r in corpus.recordings if r.session != "a"}
    card = {"devices": ["old cap"], "subjects": {"train": ["old/1"]}}
    result = devices.run(model(card), train, test, seed=0)
    found = {d["device"]: d for d in result["devices"]}
    assert [found[d]["device_seen"] for d in ("old cap", "new cap", "lone cap")] == [True, False, False]
    assert [found[d]["people_seen"] for d in ("old cap", "new cap", "lone cap")] == [True, False, False]
    assert "accuracy" not in found["lone cap"]  # one person, and no training windows
    assert (found["new cap"]["leave_one_person_out"], found["old cap"]["leave_one_person_out"]) == (True, False)
    for name in ("old cap", "new cap"):
        assert found[name]["chance"] == 0.5
        assert found[name]["accuracy_log_band_power"]["score"] > 0.9
        assert found[name]["n_trials"] == TRIALS * found[name]["n_people"]
    assert result["n_subjects"] == 3  # of the devices that were not seen
    assert result["score"] == pytest.approx(np.mean(list(result["per_subject"].values())))
    html = page.table([{**result, "model": "omni_eeg"}, {"model": "no devices"}])
    assert html.count("<tr>") == 4
    assert html.index("new cap") < html.index("old cap")
    assert html.count("device not seen") == 2
    assert "omni_eeg" in html
    assert page.table([{"score": 1}]) == ""


def test_all_seen_is_named(corpus: Corpus) -> None:
    test = corpus.where(device="new cap").windows(1.0)
    with pytest.raises(ValueError, match="pretraining saw all test devices"):
        devices.run(model({"devices": ["new cap"]}), replace(test), test, seed=0)
