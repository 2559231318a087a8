"""Evaluations on tiny shards with a planted difference: found where it is, absent where it is shuffled away."""

import numpy as np
import pytest
import torch
from torch import nn

from brainfm.evaluations import baselines, few_shot, probe, protocol, reconstruction, regression, retrieval
from brainfm.recording import Channels, Events, Recording, Series
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.tokens import Encoding, Facts
from brainfm.training.checkpoint import Pretrained

SFREQ, TRIALS = 64.0, 40
torch.set_num_threads(1)


class Loudness(nn.Module):
    """Encodes a window by the log power of its channels; blind, by their mean, which says nothing here."""

    patch, dim = 8, 4

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.blind, self.scale, self.calls = blind, nn.Parameter(torch.ones(1)), 0

    def encode(self, batch):
        self.calls += 1
        signal = batch.signal()
        pooled = signal.mean(-1) if self.blind else signal.var(-1).add(1e-9).log()
        return Encoding(batch.values, pooled * self.scale, batch.mask)


class Neighbours(Loudness):
    """Also reconstructs: every hidden region as the mean of the visible ones; blind, as zero."""

    def target(self, batch):
        return batch.values

    def reconstruct(self, batch, hidden):
        grid = batch.grid
        seen = (~hidden & batch.mask).unflatten(1, grid).unsqueeze(-1)
        mean = (batch.values.unflatten(1, grid) * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)
        return (mean * (0 if self.blind else 1)).expand(-1, grid[0], -1, -1).flatten(1, 2)


class Known(Pretrained):
    """A network whose untrained twin is the blind one."""

    def untrained(self, seed):
        return Known(type(self.model)(blind=True), self.config, self.facts, {})


def known(network=Loudness, **card):
    return Known(network().eval(), {}, Facts(), card)


def recording(subject, rng, gain=3.0, scale=1.0, session="", classes=("left", "right"), names=("C3", "Cz", "C4", "Pz")):
    """Trials of a second each; "left" is louder in the first channel by `gain`."""
    label = [classes[i % len(classes)] for i in range(TRIALS)]
    signal = rng.normal(size=(len(names), int(TRIALS * SFREQ)))
    loud = np.repeat([gain if x == "left" else 1.0 for x in label], int(SFREQ))
    signal[0] *= loud
    onset = np.arange(TRIALS, dtype=float)
    place = rng.normal(scale=0.05, size=(len(names), 3))
    return Recording(
        "sim", subject, "eeg", Channels.make(list(names), "eeg", place), session=session, sfreq=SFREQ,
        signal=signal * 1e-5 * scale, events=Events(onset, np.ones(TRIALS), label), simulated=True,
    )  # fmt: skip


def corpus(folder, recordings):
    by_subject = {}
    for r in recordings:
        by_subject.setdefault(r.subject, []).append(r)
    for subject, own in by_subject.items():
        write_shard(folder / f"{subject}.h5", own, {})
    return open_shards(folder)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    rng = np.random.default_rng(0)
    return corpus(tmp_path_factory.mktemp("people"), [recording(f"p{i}", rng) for i in range(7)])


def trials(stored, *subjects):
    return Windows.join([stored.subject(s).trials(0, 1) for s in subjects])


def relabelled(windows, labels):
    return Windows(windows.recordings, windows.recording, windows.start, windows.samples, labels, windows.stimulus)


SOURCE, TARGET = ("p0", "p1", "p2", "p3"), ("p4", "p5", "p6")


def test_probe_finds_the_planted_difference_and_baselines_are_beside_it(people):
    model = known()
    found = probe.run(
        model, trials(people, *SOURCE), trials(people, *TARGET), seed=0, linear=["log_band_power", "tangent_space"]
    )
    assert found["score"] > 0.95
    assert found["ci"][0] <= found["score"] <= found["ci"][1]
    assert (found["ci_over"], found["n_subjects"], found["n_trials"]) == ("subjects", 3, 3 * TRIALS)
    assert found["chance"] == 0.5
    assert found["p"] == pytest.approx(0.001)
    assert found["p_over"] == "trials"
    assert set(found["baselines"]) == {"majority", "log_band_power", "tangent_space", "untrained", "permuted labels"}
    assert found["baselines"]["majority"]["score"] == 0.5
    assert found["baselines"]["log_band_power"]["score"] > 0.9
    assert found["baselines"]["tangent_space"]["score"] > 0.9
    for blind in ("untrained", "permuted labels"):
        assert abs(found["baselines"][blind]["score"] - 0.5) < 0.2
    assert np.sum(found["confusion"]["counts"]) == 3 * TRIALS
    assert found["simulated"] is True
    assert set(found["per_subject"]) == {f"sim/{s}" for s in TARGET}
    assert set(found["windows"]["test"]) == {f"sim/{s}//" for s in TARGET}


def test_a_probe_of_recordings_that_are_a_condition_has_a_p_over_people(tmp_path):
    """All windows of four people right: signs of four scores can give no p below an eighth."""
    rng = np.random.default_rng(0)
    made = [
        recording(f"p{i}", rng, session=word, classes=(word,), gain=4.0) for i in range(7) for word in ("left", "right")
    ]
    stored = corpus(tmp_path, made)
    found = probe.run(known(), trials(stored, "p0", "p1", "p2"), trials(stored, "p3", "p4", "p5", "p6"), seed=0)
    assert found["score"] > 0.95
    assert (found["p"], found["p_over"], found["p_least"]) == (0.125, "people", 0.125)
    assert "p cannot fall below 0.125 here, however good the guesses: too few people" in found["note"]


def test_probe_is_at_chance_on_shuffled_labels(people):
    train, test = trials(people, *SOURCE), trials(people, *TARGET)
    rng = np.random.default_rng(1)
    shuffled = relabelled(test, protocol.permuted_within(test.label, test.of("person"), rng))
    found = probe.run(known(), train, shuffled, seed=0)
    trial = 1.96 * np.sqrt(0.25 / found["n_trials"])
    assert abs(found["score"] - 0.5) < 1.5 * trial
    assert found["p"] > 0.01


def test_one_person_gives_an_interval_over_trials(people):
    found = probe.run(known(), trials(people, "p0", "p1"), trials(people, "p2"), seed=0)
    assert (found["ci_over"], found["n_subjects"], found["n_trials"]) == ("trials", 1, TRIALS)


def test_nothing_is_fitted_on_test_windows(people, monkeypatch):
    """Predictions do not follow test labels, and one test person's data changes that person's alone."""
    guesses = []
    confusion = probe.confusion
    monkeypatch.setattr(probe, "confusion", lambda t, p, c: guesses.append(p.copy()) or confusion(t, p, c))
    train, test = trials(people, *SOURCE), trials(people, *TARGET)
    together = probe.run(known(), train, test, seed=0, permutations=1)
    probe.run(known(), train, relabelled(test, test.label[::-1].copy()), seed=0, permutations=1)
    assert np.array_equal(guesses[0], guesses[1])
    alone = probe.run(known(), train, trials(people, "p5"), seed=0, permutations=1)
    assert alone["per_subject"]["sim/p5"] == together["per_subject"]["sim/p5"]
    assert np.array_equal(guesses[2], guesses[0][test.of("person") == "sim/p5"])


def test_scaling_one_test_person_changes_that_person_only(tmp_path):
    scores = []
    for scale in (1.0, 30.0):
        rng = np.random.default_rng(5)
        made = [recording(f"p{i}", rng, gain=1.6, scale=scale if i == 4 else 1.0) for i in range(6)]
        stored = corpus(tmp_path / str(scale), made)
        train, test = trials(stored, *SOURCE), trials(stored, "p4", "p5")
        scores.append(few_shot.run(known(), train, test, seed=0, shots=[0, 2], draws=2)["per_subject"])
    assert scores[0]["sim/p5"] == scores[1]["sim/p5"]
    assert scores[0]["sim/p4"] > scores[1]["sim/p4"] == 0.5


@pytest.mark.parametrize("evaluation", [probe, few_shot])
def test_a_class_on_one_side_only_is_refused(people, evaluation):
    train, test = trials(people, *SOURCE), trials(people, *TARGET)
    with pytest.raises(ValueError, match=r"training has classes \['left'\] and test has \['left', 'right'\]"):
        evaluation.run(known(), train.take(train.label == "left"), test, seed=0)


def test_few_shot_curves_have_one_test_half_for_every_shot(people):
    train, test = trials(people, *SOURCE), trials(people, *TARGET)
    model = known()
    found = few_shot.run(model, train, test, seed=0, shots=[0, 1, 5, 50], draws=2)
    assert found["n_trials"] == 3 * TRIALS // 2
    assert "50" in found["note"]
    assert [c["shots"] for c in found["curve"] if c["model"] == "pretrained"] == [0, 1, 5]
    assert {c["model"] for c in found["curve"]} == {"pretrained", "untrained", "linear"}
    assert found["score"] == found["curve"][0]["score"] > 0.9
    effect = found["effect_of_transfer"][0]
    assert effect["score"] == pytest.approx(found["score"] - found["baselines"]["untrained"]["score"])
    assert effect["ci"][0] > 0.2
    pool, held = few_shot.halves(test, ["left", "right"])
    assert not np.any(pool & held)
    assert np.all(pool | held)
    for person in np.unique(test.of("person")):
        for label in ("left", "right"):
            own = (test.of("person") == person) & (test.label == label)
            assert test.start[own & pool].max() < test.start[own & held].min()
    assert model.model.calls == -(-len(train) // 64) + -(-len(test) // 64), "encoded once, not once per draw"


def test_shots_help_where_people_differ_and_their_weight_is_tuned_on_the_source(tmp_path):
    rng = np.random.default_rng(2)
    made = [recording(f"p{i}", rng, gain=3.0 if i % 2 else 1 / 3) for i in range(6)]
    stored = corpus(tmp_path, made)
    found = few_shot.run(known(), trials(stored, *SOURCE), trials(stored, "p4", "p5"), seed=0, shots=[0, 10], draws=2)
    curve = {c["shots"]: c["score"] for c in found["curve"] if c["model"] == "pretrained"}
    assert abs(curve[0] - 0.5) < 0.2
    assert curve[10] > 0.85
    assert found["shares"]["pretrained"]["10"] >= 0.5


def test_people_on_both_sides_or_pretrained_on_are_refused(people):
    with pytest.raises(ValueError, match=r"sim/p0.*training windows"):
        few_shot.run(known(), trials(people, *SOURCE), trials(people, "p0"), seed=0)
    with pytest.raises(ValueError, match=r"sim/p4.*pretraining"):
        few_shot.run(
            known(subjects={"train": ["sim/p9"], "val": ["sim/p4"]}),
            trials(people, *SOURCE),
            trials(people, "p4"),
            seed=0,
        )


@pytest.mark.parametrize("side", ["train", "val", "finetuned"])
def test_a_probe_of_a_network_that_has_seen_a_tested_second_is_refused(people, side):
    sides = trials(people, *SOURCE), trials(people, "p4")
    with pytest.raises(ValueError, match="has sim/p4// among the windows of its training"):
        probe.run(known(windows={side: {"sim/p4//": [[3.5, 3.6]]}}), *sides, seed=0, permutations=1)
    long_after = {side: {"sim/p4//": [[TRIALS + 1, TRIALS + 2]]}}
    assert probe.run(known(windows=long_after), *sides, seed=0, permutations=1)["n_trials"] == TRIALS


def test_linear_baselines_bring_montages_together(tmp_path):
    rng = np.random.default_rng(3)
    same = [recording("a", rng), recording("b", rng, names=("Pz", "C4", "C3", "Fz", "Cz"))]
    weights, note = baselines.montage(trials(corpus(tmp_path / "same", same), "a", "b"))
    assert [w.shape for w in weights.values()] == [(4, 4), (4, 5)]
    assert "4 channels" in note
    assert np.array_equal(weights[1].argmax(axis=1), [2, 4, 1, 0])
    other = [recording("a", rng), recording("b", rng, names=("E1", "E2", "E3"))]
    windows = trials(corpus(tmp_path / "other", other), "a", "b")
    weights, note = baselines.montage(windows)
    assert "regions" in note
    assert all(np.allclose(w.sum(axis=1), 1) for w in weights.values())
    assert np.isfinite(baselines.tangent_space(windows)).all()
    with pytest.raises(ValueError, match="did you mean 'log_band_power'"):
        baselines.of_signals("log_bandpower", windows, windows)


def test_features_of_signals_have_their_closed_forms(tmp_path):
    time = np.arange(int(TRIALS * SFREQ)) / SFREQ
    r = recording("a", np.random.default_rng(0))
    r.signal[:] = 1e-5 * np.stack([np.sin(2 * np.pi * f * time) for f in (2, 6, 10, 20)])
    windows = trials(corpus(tmp_path, [r]), "a")
    power = baselines.log_band_power(windows).reshape(TRIALS, 4, -1)
    assert power.shape[2] == 4
    assert np.array_equal(power.argmax(axis=2), np.tile([0, 1, 2, 3], (TRIALS, 1)))
    slow = baselines.downsampled_signal(windows, 4.0).reshape(TRIALS, 4, 4)
    assert slow[0, 0] == pytest.approx(np.array([1, -1, 1, -1]) * 2 / np.pi, abs=0.06)
    tangent = baselines.tangent_space(windows, shrinkage=0.0)
    row, column = np.triu_indices(4)
    assert tangent[:, row == column] == pytest.approx(np.log(0.5), abs=1e-3)
    assert tangent[:, row != column] == pytest.approx(0, abs=1e-3)


def test_ridge_equals_scikit_learn_and_chooses_a_penalty():
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    for rows, features in ((60, 5), (20, 50)):
        x, w = rng.normal(size=(rows, features)), rng.normal(size=(features, 2))
        y = x @ w + 0.1 * rng.normal(size=(rows, 2))
        found = protocol.fit_ridge(x, y)
        expected = Ridge(alpha=found.alpha * rows).fit((x - found.mean) / found.scale, y)
        assert found.predict(x) == pytest.approx(expected.predict((x - found.mean) / found.scale))
    noise = protocol.fit_ridge(rng.normal(size=(80, 40)), rng.normal(size=(80, 1)))
    assert noise.alpha == max(protocol.RIDGE_ALPHA)


def moving(subject, session, rng):
    """Loudness of the first two channels follows two slow covariates, sampled at 16 Hz."""
    seconds = 120
    knots = rng.normal(size=(seconds // 2 + 2, 2))
    fine = np.stack([np.interp(np.arange(seconds * 16) / 32, np.arange(len(knots)), k) for k in knots.T], axis=1)
    r = recording(subject, rng, session=session)
    signal = rng.normal(size=(4, int(seconds * SFREQ)))
    signal[:2] *= np.exp(np.repeat(fine, int(SFREQ // 16), axis=0).T)
    r.signal, r.segments, r.duration = signal * 1e-5, np.array([[0, signal.shape[1]]]), float(seconds)
    r.aligned = {"velocity": Series(fine, 16.0, "m/s", 0.0)}
    spikes = np.sort(rng.uniform(0, seconds, 2000))
    r.spike_time, r.spike_neuron, r.tracked = spikes, rng.integers(4, size=2000), True
    return r


def test_regression_decodes_each_person_on_its_own_session(tmp_path):
    rng = np.random.default_rng(4)
    stored = corpus(tmp_path, [moving(p, s, rng) for p in ("a", "b") for s in ("1", "2")])
    train, test = (stored.where(session=s).windows(0.5, 0.25) for s in "12")
    found = regression.run(known(), train, test, seed=0)
    assert found["score"] > 0.5
    assert found["n_subjects"] == 2
    assert found["chance"] == 0
    for name in ("mean", "untrained", "time-shifted", "binned counts", "Wiener"):
        assert found["baselines"][name]["score"] < 0.15
    assert len(found["traces"]) == 2
    assert found["traces"][0]["unit"] == "m/s"
    assert found["traces"][0]["time"][-1] - found["traces"][0]["time"][0] == pytest.approx(9.75)
    with pytest.raises(ValueError, match="split by session"):
        regression.run(known(), train.take(train.of("subject") == "a"), test, seed=0)
    with pytest.raises(ValueError, match="has sim/b/2/ among the windows of its training"):
        regression.run(known(windows={"train": {"sim/b/1/": [[0, 99]], "sim/b/2/": [[5, 6]]}}), train, test, seed=0)


def test_the_wiener_filter_is_least_squares_with_an_intercept():
    from sklearn.linear_model import LinearRegression

    rng = np.random.default_rng(0)
    x, asked = rng.poisson(3, (50, 4)).astype(np.float32), rng.poisson(3, (9, 4)).astype(np.float32)
    x, asked = (np.c_[part, np.zeros(len(part))] for part in (x, asked))  # a neuron that this animal lacks
    y = rng.normal(2, 1, (50, 2)) + x[:, :2]
    assert regression.least_squares(x, y, asked) == pytest.approx(LinearRegression().fit(x, y).predict(asked))


def test_target_is_the_last_sample_inside_the_window(tmp_path):
    r = moving("a", "1", np.random.default_rng(0))
    r.aligned = {"clock": Series(np.arange(120 * 16)[:, None].astype(float), 16.0, "1", 0.25)}
    windows = corpus(tmp_path, [r]).windows(0.5)
    kept, values = regression.with_target(windows, "clock")
    assert len(kept) == len(windows)
    assert values[:3, 0].tolist() == [3, 11, 19]
    _, centre = regression.with_target(windows, "clock", "centre")
    with pytest.raises(KeyError, match="it has clock"):
        regression.with_target(windows, "velocity")
    assert centre[0, 0] == 7, "the first window's centre lies before the covariate starts and is left out"


def test_binned_counts_equal_a_loop(tmp_path):
    windows = corpus(tmp_path, [moving("a", "1", np.random.default_rng(6))]).windows(0.5)
    found = baselines.binned_counts(windows, 0.1, 3).reshape(len(windows), 4, 3)
    stored = windows.recordings[0]
    names = sorted(stored.channels.name)
    for w in (0, 7, 100):
        end = (windows.start[w] + windows.samples[w]) / SFREQ
        time, neuron = stored.spikes(end - 0.3, end)
        for i, name in enumerate(names):
            own = time[neuron == stored.channels.name.index(name)]
            assert found[w, i].tolist() == np.histogram(own, end + 0.1 * np.arange(-3, 1))[0].tolist()


def test_counts_of_two_sessions_are_those_of_the_same_neurons_or_refused(tmp_path):
    both = [moving("a", s, np.random.default_rng(6)) for s in "12"]
    tracked = corpus(tmp_path / "tracked", both).windows(0.5)
    assert baselines.binned_counts(tracked).shape == (len(tracked), 4 * 6)
    for recording in both:
        recording.tracked = False
    with pytest.raises(ValueError, match=r"2 recordings share no neuron; .*--tracked.* blocks of time"):
        baselines.binned_counts(corpus(tmp_path / "apart", both).windows(0.5))


def mixing(subject, rng, regions=8, seconds=160):
    """Regions that share one source, each person with loadings and loudness of its own."""
    own = np.random.default_rng(int(subject[1:]))
    mixed = own.normal(size=(regions, regions)) @ rng.normal(size=(regions, int(seconds * 8)))
    signal = mixed + 3 * rng.normal(size=int(seconds * 8))
    names = [f"r{i}" for i in range(regions)]
    return Recording("sim", subject, "fmri", Channels.make(names, "region"), sfreq=8.0, signal=signal)


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    rng = np.random.default_rng(7)
    return corpus(tmp_path_factory.mktemp("brains"), [mixing(f"b{i}", rng) for i in range(8)])


def test_retrieval_knows_people_by_their_fingerprint(brains):
    windows = brains.windows(8.0)
    test = windows.take(np.isin(windows.of("subject"), ["b0", "b1", "b2"]))
    train = windows.take(~np.isin(windows.of("subject"), ["b0", "b1", "b2"]))
    found = retrieval.run(known(), train, test, seed=0, gap_s=8.0)
    assert found["score"] == 1
    assert found["chance"] == 1 / 8
    assert (found["n_subjects"], found["n_trials"]) == (3, 6)
    assert found["baselines"]["functional connectivity"]["score"] == 1
    assert found["baselines"]["untrained"]["score"] < 1
    assert np.shape(found["matrices"][0]["values"]) == (3, 8)
    assert found["measures"]["top-1 accuracy"]["pretrained"]["score"] == found["score"]
    with pytest.raises(ValueError, match="in training windows"):
        retrieval.run(known(), windows, test, seed=0)


def test_a_fingerprint_says_ranks_likeness_and_reliability(brains):
    windows = brains.windows(8.0)
    side = np.isin(windows.of("subject"), ["b0", "b1", "b2"])
    train, test = windows.take(~side), windows.take(side)
    found = retrieval.run(known(), train, test, seed=0)
    measures = found["measures"]
    assert all(set(x) == {"pretrained", "functional connectivity", "untrained"} for x in measures.values())
    own = measures["median rank / N"]
    assert own["pretrained"]["score"] == 1 / 8
    assert own["pretrained"]["chance"] == 4.5 / 8, "the median rank of guessing among eight"
    assert own["untrained"]["score"] > 1 / 8
    gallery = sorted(set(windows.of("person").tolist()))
    pair = retrieval.connectivity(windows, gallery, retrieval.halves(windows))
    pair -= pair[:, 3:].mean(axis=(0, 1))
    r = np.corrcoef(pair[0, 1], pair[1, 1])[0, 1]
    reliability = measures["reliability of halves"]["functional connectivity"]["per_subject"]
    assert reliability["sim/b1"] == pytest.approx(2 * r / (1 + r))
    assert all(0 <= x["score"] <= 1 for x in measures["reliability of halves"].values()), "halves may be unlike"
    alike = np.corrcoef(*pair)[:8, 8:]
    others = [x for i in range(8) if i != 1 for x in (alike[1, i], alike[i, 1])]
    within, between = (measures[f"likeness {word} people"]["functional connectivity"] for word in ("within", "between"))
    assert within["per_subject"]["sim/b1"] == pytest.approx(alike[1, 1])
    assert between["per_subject"]["sim/b1"] == pytest.approx(np.mean(others))
    same = retrieval.run(known(), train, test, seed=5)["candidates"]
    assert found["candidates"] == same
    assert (same["n"], same["k"]) == (8, 1)
    fewer = retrieval.run(known(), train.take(train.of("subject") != "b7"), test, seed=0)["candidates"]
    later = retrieval.run(known(), train, test, seed=0, gap_s=16.0)["candidates"]
    assert len({same["hash"], fewer["hash"], later["hash"]}) == 3


def test_what_everybody_shares_is_not_reliable(brains, monkeypatch):
    """Halves that are alike because all people are: nothing of a person can be told from them."""
    rng = np.random.default_rng(0)
    alike = 10 * rng.normal(size=5000) + rng.normal(size=(2, 8, 5000))
    monkeypatch.setattr(retrieval, "connectivity", lambda *_: alike)
    windows = brains.windows(8.0)
    side = np.isin(windows.of("subject"), ["b0", "b1", "b2"])
    found = retrieval.run(known(), windows.take(~side), windows.take(side), seed=0)
    reliable = found["measures"]["reliability of halves"]["functional connectivity"]
    assert reliable["score"] < 0.25, "the mean of ten halves is taken from all, and is noise of its own"


def test_connectivity_equals_corrcoef(brains):
    windows = brains.windows(8.0)
    gallery = sorted(set(windows.of("person").tolist()))
    found = retrieval.connectivity(windows, gallery, retrieval.halves(windows))
    first = windows.recordings[0].signal(0, 80 * 8)
    row, column = np.triu_indices(8, 1)
    assert found[0, 0] == pytest.approx(np.arctanh(np.corrcoef(first)[row, column]), abs=1e-6)


def test_reconstruction_compares_at_the_same_time_points(brains):
    windows = brains.windows(8.0)
    side = np.isin(windows.of("subject"), ["b0", "b1", "b2"])
    found = reconstruction.run(
        known(Neighbours), windows.take(~side), windows.take(side), seed=0, hidden_regions=3, masks=2
    )
    assert found["baselines"]["global signal"]["score"] > 0.2
    assert found["score"] > 0.2
    assert found["baselines"]["untrained"]["score"] == pytest.approx(0, abs=0.01)
    assert set(found["baselines"]) == {"ridge", "global signal", "untrained"}
    assert found["measures"]["R2"]["pretrained"]["score"] == found["score"]
    assert len(found["traces"]) == 2
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(8, 3, replace=False))
    truth, (guess,) = reconstruction.reconstructed(known(Neighbours), windows.take(side), [rows])
    signal = np.stack([windows.recordings[0].signal(a, a + 64) for a in windows.take(side).start[:2]])
    assert truth[:2] == pytest.approx(signal, rel=1e-5)
    assert guess[0, 0] == pytest.approx(np.delete(signal[0], rows, axis=0).mean(axis=0), rel=1e-4, abs=1e-5)
    with pytest.raises(ValueError, match="cannot reconstruct"):
        reconstruction.run(known(), windows.take(~side), windows.take(side), seed=0, hidden_regions=3)


def test_each_hidden_region_is_correlated_over_the_scan_and_tested_by_surrogates(brains):
    windows = brains.windows(8.0)
    side = np.isin(windows.of("subject"), ["b0", "b1", "b2"])
    test = windows.take(side)
    found = reconstruction.run(known(Neighbours), windows.take(~side), test, seed=0, hidden_regions=3, masks=2)
    hidden = [np.sort(np.random.default_rng(m).choice(8, 3, replace=False)) for m in (0, 1)]
    truth, guesses = reconstruction.reconstructed(known(Neighbours), test, hidden)
    by_region = {}
    for person in np.unique(test.of("person")):
        own, all_z = test.of("person") == person, []
        for rows, guess in zip(hidden, guesses, strict=True):
            for i, region in enumerate(rows):
                r = np.corrcoef(truth[own, region].ravel(), guess[own, i].ravel())[0, 1]
                all_z.append(np.arctanh(r))
                by_region.setdefault(region, {}).setdefault(person, []).append(np.arctanh(r))
        each = found["measures"]["R"]["pretrained"]["per_subject"]
        assert each[person] == pytest.approx(np.tanh(np.mean(all_z)), abs=1e-6)
    expected = {f"r{k}": np.mean([np.tanh(np.mean(z)) for z in of.values()]) for k, of in by_region.items()}
    assert {x["name"]: x["score"] for x in found["regions"]} == pytest.approx(expected, abs=1e-6)
    assert [x["name"] for x in found["regions"]] == sorted(expected, key=lambda k: expected[k])
    worst, spread = (
        found["measures"][f"R, {word}"]["pretrained"]["score"] for word in ("worst region", "spread over regions")
    )
    assert (worst, spread) == pytest.approx((min(expected.values()), np.std(list(expected.values()))), abs=1e-6)
    assert found["surrogates"] == {"n": 200, "p": pytest.approx(1 / 201)}
    low, high = found["measures"]["R"]["surrogates"]["ci"]
    assert -0.1 < low < 0 < high < 0.1
    assert found["measures"]["R"]["untrained"]["score"] == 0
    worth = found["measures"]["independent volumes"]["pretrained"]["score"]
    assert 0.5 * 160 * 8 < worth <= 160 * 8, "white noise is worth nearly all its samples"


def test_slow_series_that_have_nothing_in_common_are_no_better_than_surrogates():
    """Drifts correlate by chance: as independent samples they look significant, against surrogates they do not."""
    rng, small, naive = np.random.default_rng(3), 0, 0
    for _ in range(40):
        true, guess = np.cumsum(rng.normal(size=(2, 1, 4, 300)), axis=-1)
        true, guess = (x - x.mean(axis=-1, keepdims=True) for x in (true, guess))
        r = reconstruction.correlations(true, guess)
        null = reconstruction._surrogates([(true, guess)], np.array(["a"]), 99, 0)
        small += reconstruction.permutation_p(reconstruction.mean_correlation(r.ravel()), null) <= 0.05
        naive += np.mean(np.arctanh(r)) > 1.645 / np.sqrt(4 * 297)
    assert small <= 6
    assert naive > 12
