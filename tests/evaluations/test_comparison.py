"""A comparison with small real networks: planted effects are found, shuffled ones not, test labels decide nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from brainfm.evaluations import comparison, method_scores, protocol
from brainfm.evaluations.methods import adaptation
from brainfm.evaluations.methods.majority import Majority
from brainfm.evaluations.methods.trials import Side, Trials
from brainfm.evaluations.tasks import _plain
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.statistics import corrected_t
from brainfm.training.batches import facts_of
from brainfm.training.checkpoint import Pretrained, build
from tests.evaluations.people import person
from tests.evaluations.scripted import Scripted

LUNA = {"kind": "models", "name": "luna",
        "keywords": {"patch": 16, "embed": 16, "heads": 2, "depth": 1, "queries": 2, "mixing": 1}}  # fmt: skip
FAST = {"steps": 12, "batch_size": 16, "tries": 2, "validations": 2}
LINEAR = {"adapt": ("probe",), "baselines": ("majority", "log_band_power"), "networks": (), "tries": 2}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    for i in range(9):
        about = {"sex": "FM"[i % 2], "age_years": str(20 + i)}
        write_shard(folder / f"p{i}.h5", [person(f"p{i}", rng, participant=about)], {})
    return open_shards(folder)


@pytest.fixture(scope="module")
def luna(people):
    facts = facts_of(people, 1.0)
    torch.manual_seed(0)
    return Pretrained(build(LUNA, facts).eval(), LUNA, facts, {"subjects": {"train": ["sim/p0", "sim/p1"]}})


@pytest.fixture(scope="module")
def sides(people):
    return people.where(subject=[f"p{i}" for i in range(5)]).trials(0, 1), people.where(
        subject=[f"p{i}" for i in range(5, 9)]
    ).trials(0, 1)


@pytest.fixture(scope="module")
def found(luna, sides):
    """Several methods of every kind across people."""
    return comparison.run(
        luna, *sides, seed=0, folds=2, adapt=("probe", "finetune"), untrained=("probe",),
        baselines=("majority", "log_band_power", "csp_lda"), networks=("eegnet",), **FAST,
    )  # fmt: skip


def of(result, name):
    (row,) = [m for m in result["methods"] if m["name"] == name]
    return row


def test_planted_difference_is_found_and_every_kind_is_beside_it(found, luna):
    names = {m["name"]: m["kind"] for m in found["methods"]}
    assert names == {
        "probe": "pretrained", "finetune": "pretrained", "untrained probe": "untrained", "majority": "control",
        "log_band_power": "baseline", "csp_lda": "baseline", "eegnet": "baseline", "permuted labels": "control",
    }  # fmt: skip
    assert found["score"] == of(found, "probe")["score"] > 0.6
    assert of(found, "log_band_power")["score"] > 0.9
    assert of(found, "csp_lda")["score"] > 0.8
    assert of(found, "majority")["score"] == found["chance"] == 0.5
    assert abs(of(found, "permuted labels")["score"] - 0.5) < 0.25
    assert (found["n_subjects"], found["n_trials"], found["ci_over"]) == (4, 96, "subjects")
    assert of(found, "log_band_power")["p"] == pytest.approx(0.001)
    assert of(found, "log_band_power")["p_over"] == "trials"
    assert of(found, "log_band_power")["p_least"] == pytest.approx(0.001)
    assert "p cannot fall below" not in found["note"]
    assert of(found, "majority")["p"] > 0.05
    assert of(found, "permuted labels")["p"] is None
    assert all(row["decode_ms"] > 0 for row in found["cost"].values())


def test_rows_say_who_how_and_for_how_much(found):
    for row in found["methods"]:
        assert set(row["per_subject"]) == {f"sim/p{i}" for i in range(5, 9)}
        assert row["worst"][1] == min(row["per_subject"].values())
        assert set(row["groups"]["sex"]) == {"F", "M"}
        assert row["tried"] == (1 if row["name"] == "majority" else 2)
        assert 0 <= row["ece"] <= 1
        assert row["brier"] >= 0
        assert row["chance_corrected"] == pytest.approx(2 * row["score"] - 1)
    assert set(found["cost"]) == {m["name"] for m in found["methods"]}
    assert found["cost"]["finetune"]["trained"] > found["cost"]["probe"]["trained"] > 0
    assert found["budget"] == {"tries": 2, "steps": 12, "batch_size": 16, "validations": 2, "patience": 3}
    json.dumps(_plain(found), allow_nan=False)


def test_the_untrained_network_tries_rates_of_its_own_and_as_many(luna):
    made, usual = (f("finetune", luna, comparison.Tuning()) for f in (comparison._from_scratch, adaptation.method))
    assert (made.decay, usual.decay) == (1.0, 0.8)
    tried = [sorted(s["learning_rate"] for s in m.settings[:3]) for m in (made, usual)]
    assert tried == [[3e-4, 1e-3, 3e-3], [1e-4, 3e-4, 1e-3]]
    assert len(made.settings) == len(usual.settings)
    assert comparison._from_scratch("probe", luna, comparison.Tuning()).name == "probe"


def test_within_sessions_each_side_chooses_by_its_own_training_windows(people, luna):
    """What trains one side is scored by another, so a choice for all would have seen what is scored."""
    own = people.where(subject=["p5", "p6"]).trials(0, 1)
    found = comparison.run(luna, own, own, seed=0, protocol="within-session", blocks=3, **LINEAR)
    row = of(found, "log_band_power")
    assert len(row["setting"]["by side"]) == len(row["losses"]) == len(found["folds"]) == 2 * 3
    swapped = own.label.copy()
    first = own.of("person") == "sim/p5"
    block = first & (own.start < 8 * 64)  # the block that the first side scores
    swapped[block] = np.where(own.label[block] == "left", "right", "left")
    other = Windows(own.recordings, own.recording, own.start, own.samples, swapped, own.stimulus)
    again = comparison.run(luna, other, other, seed=0, protocol="within-session", blocks=3, **LINEAR)
    assert of(again, "log_band_power")["losses"][0] == row["losses"][0]
    assert of(again, "log_band_power")["losses"][1] != row["losses"][1]
    assert all(np.isnan(pair["t_p"]) for pair in found["pairs"])


def test_windows_of_a_recording_that_is_a_condition_are_no_trials(tmp_path):
    """A guess that drifts from recording to recording is often right by block: only people can tell it from chance."""
    rng = np.random.default_rng(0)
    trials = Trials(at_rest_or_at_work(tmp_path, rng, 6).trials(0, 1))
    rows = np.arange(len(trials))
    small = 0
    for seed in range(60):
        guess = np.zeros(len(trials), int)
        for r in np.unique(trials.windows.recording):
            mine = trials.windows.recording == r
            guess[mine] = rng.random(mine.sum()) < rng.uniform(0.1, 0.9)
        main = method_scores.scored(trials, rows, guess, 0)
        found = method_scores.of(trials, rows, [np.eye(2)[guess]], main, seed)
        assert found["p_over"] == "people"
        small += found["p"] <= 0.05
    assert small <= 8


def at_rest_or_at_work(folder, rng, people):
    """People of two recordings, each of one condition."""
    for i in range(people):
        parts = [person(f"p{i}", rng, trials=20, session=word) for word in ("rest", "task")]
        for part, word in zip(parts, ("rest", "task"), strict=True):
            part.events.label[:] = [word] * 20
        write_shard(folder / f"p{i}.h5", parts, {})
    return open_shards(folder)


def test_a_method_that_fails_is_named_and_the_others_are_there(luna, sides, monkeypatch):
    made = [Scripted("diverges", np.nan, np.nan), Scripted("late", np.nan), Scripted("odd", "one channel only"),
            Scripted("good", 0.8)]  # fmt: skip
    monkeypatch.setattr(comparison.scratch, "methods", lambda *_: made)
    found = comparison.run(luna, *sides, seed=0, **LINEAR)
    assert set(found["failed"]) == {"diverges", "late", "odd"}
    assert "none of 2 settings" in found["failed"]["diverges"]
    assert "probabilities of 96 of 96 windows are not finite" in found["failed"]["late"]
    assert "odd is not in the table: one channel only" in found["note"]
    assert [m["name"] for m in found["methods"]] == [
        "probe", "untrained probe", "majority", "log_band_power", "good", "permuted labels",
    ]  # fmt: skip
    assert of(found, "good")["score"] == 1
    assert not {"diverges", "late", "odd"} & {name for p in found["pairs"] for name in (p["a"], p["b"])}
    json.dumps(_plain(found), allow_nan=False)
    monkeypatch.setattr(comparison.adaptation, "method", lambda *_: Scripted("probe", np.nan))
    with pytest.raises(ValueError, match="probe, whose score this is, cannot be fitted: diverged"):
        comparison.run(luna, *sides, seed=0, adapt=("probe",), untrained=(), baselines=("majority",))


@pytest.mark.parametrize("error", [ValueError("4 columns"), np.linalg.LinAlgError("singular"), RuntimeError("shapes")])
def test_a_bug_in_a_method_is_no_reason_to_leave_it_out(luna, sides, monkeypatch, capsys, error):
    monkeypatch.setattr(comparison.scratch, "methods", lambda *_: [Scripted("broken", error)])
    with pytest.raises(type(error), match=str(error)) as raised:
        comparison.run(luna, *sides, seed=0, untrained=(), **LINEAR)
    assert raised.value.__notes__ == ["in the method 'broken' of the comparison"]
    assert f"broken: failed, and ends the comparison: {error}" in capsys.readouterr().out


def test_p_that_cannot_be_small_is_said(luna, tmp_path):
    """Four people with one recording each at rest and at work: signs of four scores give .125 at best."""
    windows = at_rest_or_at_work(tmp_path, np.random.default_rng(0), 8).trials(0, 1)
    sides = [windows.take(np.isin(windows.of("subject"), [f"p{i}" for i in own])) for own in (range(4), range(4, 8))]
    found = comparison.run(luna, *sides, seed=0, untrained=(), **LINEAR)
    assert "p cannot fall below 0.125 here" in found["note"]
    row = of(found, "majority")
    assert (row["p_over"], row["p_least"]) == ("people", 0.125)
    assert of(found, "permuted labels")["p_least"] is None


def test_within_a_person_the_seconds_count_that_pretraining_saw(people, luna):
    own = people.where(subject=["p5", "p6"]).trials(0, 1)
    later, same = (
        Pretrained(luna.model, luna.config, luna.facts, {"windows": {"train": {"sim/p5//": [span]}}})
        for span in ([100.0, 110.0], [3.2, 3.4])
    )
    given = {"seed": 0, "protocol": "within-session", "blocks": 3, "untrained": (), **LINEAR}
    found = comparison.run(later, own, own, **given)
    assert "names nobody" not in found["note"]
    with pytest.raises(ValueError, match="has sim/p5// among the windows of its training or validation"):
        comparison.run(same, own, own, **given)


def test_classes_of_the_two_sides_are_compared(luna, sides):
    """Else four classes would be scored 0 of people who have two of them, against a chance of a quarter."""
    train, test = sides
    other = np.array([f"{word}_hand" for word in test.label], dtype=object)
    renamed = Windows(test.recordings, test.recording, test.start, test.samples, other, test.stimulus)
    with pytest.raises(ValueError, match=r"training has classes \['left', 'right'\] and test has \['left_hand'"):
        comparison.run(luna, train, renamed, seed=0, **LINEAR)
    with pytest.raises(ValueError, match=r"training has classes \['left'\]"):
        comparison.run(luna, train.take(train.label == "left"), test, seed=0, **LINEAR)


def test_the_t_test_is_over_folds(luna, sides, found):
    """One fit is no resampling; of two folds the mean differences are compared with one degree of freedom."""
    pair = next(p for p in found["pairs"] if (p["a"], p["b"]) == ("probe", "log_band_power"))
    a, b = (of(found, pair[k])["per_subject"] for k in "ab")
    who = [sorted({"/".join(key.split("/")[:2]) for key in fold["test"]}) for fold in found["folds"]]
    d = np.array([np.mean([a[x] - b[x] for x in names]) for names in who])
    assert pair["t_p"] == pytest.approx(corrected_t(d, 5 + 2, 2).p)
    once = comparison.run(luna, *sides, seed=0, **LINEAR)
    assert all(np.isnan(p["t_p"]) for p in once["pairs"])
    assert not any(np.isnan(p["wilcoxon_p"]) for p in once["pairs"])


def test_transductive_is_said_where_it_is_true(people, luna, sides):
    own = people.where(subject=["p5"]).trials(0, 1)
    aligned = {"adapt": ("statistics",), "untrained": (), "baselines": ("majority",), "networks": (), "tries": 1}
    within = comparison.run(luna, own, own, seed=0, protocol="within-session", blocks=3, **aligned)
    across = comparison.run(luna, *sides, seed=0, **aligned)
    assert ["Transductive" in found["note"] for found in (within, across)] == [False, True]


def test_pairs_are_within_people_and_corrected_together(found):
    asked = {(p["a"], p["b"]) for p in found["pairs"]}
    assert ("probe", "untrained probe") in asked
    assert ("probe", "log_band_power") in asked
    for pair in found["pairs"]:
        a, b = (of(found, pair[k]) for k in "ab")
        assert pair["difference"] == pytest.approx(a["score"] - b["score"])
        assert pair["n"] == 4
        assert pair["holm_p"] >= pair["wilcoxon_p"]


def test_folds_keep_people_apart(found):
    tested = set()
    for fold in found["folds"]:
        who = {side: {key.split("/")[1] for key in fold[side]} for side in ("train", "val", "test")}
        assert not (who["train"] | who["val"]) & who["test"]
        tested |= who["test"]
    assert tested == {"p5", "p6", "p7", "p8"}
    assert {key.split("/")[1] for key in found["windows"]["train"]} == {"p0", "p1", "p2", "p3", "p4"}


def test_at_chance_on_shuffled_labels(luna, sides):
    both = Windows.join(sides)
    shuffled = protocol.permuted_within(both.label, both.of("person"), np.random.default_rng(1))
    both = Windows(both.recordings, both.recording, both.start, both.samples, shuffled, both.stimulus)
    cut = len(sides[0])
    parts = both.take(np.arange(cut)), both.take(np.arange(cut, len(both)))
    found = comparison.run(luna, *parts, seed=0, **LINEAR)
    assert all(abs(m["score"] - 0.5) < 0.2 for m in found["methods"])


def test_test_labels_decide_nothing(luna, sides):
    """Scores change with the labels of the test people; settings and the split do not."""
    test = sides[1]
    swapped = np.where(test.label == "left", "right", "left").astype(object)
    other = Windows(test.recordings, test.recording, test.start, test.samples, swapped, test.stimulus)
    one, two = (comparison.run(luna, sides[0], t, seed=0, **LINEAR) for t in (test, other))
    for a, b in zip(one["methods"], two["methods"], strict=True):
        assert b["score"] == pytest.approx(1 - a["score"])
        assert (a["setting"], a["losses"]) == (b["setting"], b["losses"])
    assert one["split_id"] != two["split_id"]


def test_equal_runs_are_equal_but_for_cost(luna, sides):
    one, two = (comparison.run(luna, *sides, seed=0, **LINEAR) for _ in range(2))
    assert one.pop("cost") != two.pop("cost")
    assert json.dumps(_plain(one)) == json.dumps(_plain(two))


def test_shots_are_counted_and_never_scored(luna, sides):
    found = comparison.run(luna, *sides, seed=0, protocol="few-shot", shots=(1, 4, 50), draws=2, **LINEAR)
    assert {(c["model"], c["shots"]) for c in found["curve"]} == {
        (n, k) for n in ("probe", "untrained probe", "log_band_power") for k in (0, 1, 4)
    }
    assert "[50] are left out" in found["note"]
    assert [e["shots"] for e in found["effect_of_transfer"]] == [0, 1, 4]
    at_zero = next(c for c in found["curve"] if (c["model"], c["shots"]) == ("probe", 0))
    assert at_zero["score"] == pytest.approx(found["score"])
    for key, spans in found["windows"]["calibration"].items():
        scored = found["windows"]["test"][key]
        assert all(b <= c or d <= a for a, b in spans for c, d in scored)


def test_what_is_not_named_is_all_that_fits(luna, sides):
    """Every baseline and network, the twin of each mode, and in few-shot every number of shots that people have."""
    own = ("probe", "erase_subject")
    found = comparison.run(
        luna, *sides, seed=0, protocol="few-shot", adapt=own, curves=(*own, *(f"untrained {w}" for w in own)), draws=1,
        permutations=1, **{**FAST, "steps": 2, "tries": 1},
    )  # fmt: skip
    assert [m["name"] for m in found["methods"]] == [
        "probe", "erase_subject", "untrained probe", "untrained erase_subject", "majority", "log_band_power", "csp_lda",
        "tangent_space", "tangent_space recentred", "eegnet", "shallow_fbcsp", "deep4", "eeg_conformer",
        "permuted labels",
    ]  # fmt: skip
    assert sorted({c["shots"] for c in found["curve"]}) == [0, 1, 2, 5]
    assert "Shots [10, 20, 50] are left out: someone can give only 6 trials of a class." in found["note"]
    curve = {(c["model"], c["shots"]): c["score"] for c in found["curve"]}
    effect = found["effect_of_transfer"]
    assert [(e["model"], e["against"], e["shots"]) for e in effect] == [
        (word, f"untrained {word}", k) for word in own for k in (0, 1, 2, 5)
    ]
    for e in effect:
        assert e["score"] == pytest.approx(curve[e["model"], e["shots"]] - curve[e["against"], e["shots"]])


def test_who_has_one_class_only_is_named_and_not_scored(luna, sides):
    train, test = sides
    lone = test.take(~((test.of("subject") == "p8") & (test.label == "right")))
    found = comparison.run(luna, train, lone, seed=0, **LINEAR)
    assert set(found["per_subject"]) == {"sim/p5", "sim/p6", "sim/p7"}
    assert "Not scored, for not all classes are there: sim/p8" in found["note"]
    assert not any("p8" in key for fold in found["folds"] for key in fold["test"])
    assert (of(found, "majority")["score"], found["chance"], found["n_trials"]) == (0.5, 0.5, 72)


def test_a_card_that_names_nobody_proves_nothing(luna, sides):
    said = "Nothing proves whom the network saw in pretraining"
    assert said not in comparison.run(luna, *sides, seed=0, **LINEAR)["note"]
    for card, proven in (({}, False), ({"subjects": {"train": []}}, False), ({"untrained": True}, True)):
        found = comparison.run(replace(luna, card=card), *sides, seed=0, **LINEAR)
        assert (said not in found["note"]) == proven


def test_one_split_has_one_hash_whatever_is_compared_on_it(luna, sides):
    """So that a result with fewer baselines is paired with one that has them all."""
    one = comparison.run(luna, *sides, seed=0, folds=2, **LINEAR)
    two = comparison.run(luna, *sides, seed=0, folds=2, **{**LINEAR, "adapt": ("erase_subject",), "baselines": ()})
    assert one["split_id"] == two["split_id"]
    assert (one["dataset"], one["protocol"], one["confusion"]["labels"]) == (
        two["dataset"], two["protocol"], two["confusion"]["labels"]
    )  # fmt: skip
    assert one["split_id"] != comparison.run(luna, *sides, seed=1, folds=2, **LINEAR)["split_id"]


def test_a_mirrored_person_is_learnt_from_shots(people, luna):
    """Test people whose labels are the other way round are below chance at no shot, and above it after some."""
    train = people.where(subject=[f"p{i}" for i in range(5)]).trials(0, 1)
    test = people.where(subject=["p5", "p6", "p7"]).trials(0, 1)
    swapped = np.where(test.label == "left", "right", "left").astype(object)
    test = Windows(test.recordings, test.recording, test.start, test.samples, swapped, test.stimulus)
    found = comparison.run(
        luna, train, test, seed=0, protocol="few-shot", shots=(6,), draws=1, adapt=("probe",), untrained=(),
        baselines=("log_band_power",), networks=(), curves=("log_band_power",), tries=1,
    )  # fmt: skip
    none, six = (c["score"] for c in found["curve"])
    assert none < 0.2 < six


def test_who_was_pretrained_on_is_refused(people, luna, sides):
    known = people.where(subject=["p0", "p6"]).trials(0, 1)
    with pytest.raises(ValueError, match="pretraining saw sim/p0, which cross-subject is to score"):
        comparison.run(luna, sides[0].take(np.arange(24, 96)), known, seed=0, **LINEAR)
    with pytest.raises(ValueError, match="go with the protocol few-shot"):
        comparison.run(luna, *sides, seed=0, shots=(1,), **LINEAR)
    with pytest.raises(ValueError, match="steps: 0; expected 1 or more"):
        comparison.run(luna, *sides, seed=0, steps=0)
    with pytest.raises(ValueError, match=r"calibration: \['second'\] are not known"):
        comparison.run(luna, *sides, seed=0, protocol="unlabelled-calibration", calibration={"second": 3})
    with pytest.raises(ValueError, match="calibration: goes with the protocol unlabelled-calibration"):
        comparison.run(luna, *sides, seed=0, calibration={"seconds": 3})
    with pytest.raises(ValueError, match="euclidean look at a new person's windows, and zero-shot uses none"):
        comparison.run(luna, *sides, seed=0, protocol="zero-shot", adapt=("euclidean",))
    with pytest.raises(KeyError, match="did you mean 'csp_lda'"):
        comparison.run(luna, *sides, seed=0, adapt=("probe",), baselines=("csp_ldaa",))


EVERY = ("majority", "log_band_power", "log_power_spectrum", "downsampled_signal", "csp_lda", "xdawn_covariance",
         "tangent_space", "tangent_space recentred", "pca", "functional_connectivity")  # fmt: skip


def test_channels_that_are_bad_in_training_alone(tmp_path, luna):
    """Timing a method on the test windows reads the channels that it was fitted on, not those that they could share."""
    rng = np.random.default_rng(0)
    for i in range(8):
        made = person(f"p{i}", rng, trials=16)
        made.channels.bad[1] = i == 2
        write_shard(tmp_path / f"p{i}.h5", [made], {})
    windows = open_shards(tmp_path).trials(0, 1)
    train = np.isin(windows.of("subject"), [f"p{i}" for i in range(5)])
    found = comparison.run(
        luna, windows.take(train), windows.take(~train), seed=0, adapt=("euclidean", "riemannian", "subject_layer"),
        untrained=(), baselines=EVERY, networks=(), **{**FAST, "tries": 1, "steps": 2},
    )  # fmt: skip
    assert "The 3 channels" in found["note"] or "3 channels" in found["note"]
    assert all(row["decode_ms"] > 0 for row in found["cost"].values())


def test_what_is_timed_gives_the_same_answer(luna, sides):
    """A method asked for a part of the windows decodes them as it does among all."""
    trials = Trials(Windows.join(sides))
    rows = np.arange(len(trials))
    side, asked = Side(rows[:100], rows[100:120], rows[120:]), rows[120:130]
    for method in (*comparison.classical.classical(EVERY), adaptation.method("euclidean", luna)):
        fitted = method.fit(trials, side, method.settings[0], 0)
        alone = fitted.on(trials.part(asked)).predict_proba(np.arange(len(asked)))
        np.testing.assert_allclose(alone, fitted.predict_proba(asked), atol=1e-4, err_msg=method.name)


def test_a_method_that_does_not_say_its_cost_has_none(luna, sides, monkeypatch):
    class Guess:
        def predict_proba(self, rows):
            return np.full((len(rows), 2), 0.5)

        def adapted(self, rows, seed):
            return self

    monkeypatch.setattr(Majority, "fit", lambda *_: Guess())
    found = comparison.run(luna, *sides, seed=0, **LINEAR)
    assert found["cost"]["majority"]["trained"] is found["cost"]["majority"]["decode_ms"] is None
