"""Scores of predicted responses against plain formulas, what the evaluation refuses, and a model that should win."""

import numpy as np
import pytest
import torch

from brainfm.datasets import sim_v1
from brainfm.evaluations import response
from brainfm.metrics import pearson
from brainfm.objectives.poisson_response import PoissonResponse
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.training.batches import facts_of
from brainfm.training.checkpoint import Pretrained, build

torch.set_num_threads(1)
CONFIG = {
    "kind": "models", "name": "v1t",
    "keywords": {"height": 18, "patch": 6, "stride": 4, "dim": 8, "depth": 1, "heads": 1, "hidden": 8,
                 "behaviour_hidden": 4, "dropout": 0.0, "patch_dropout": 0.0},
}  # fmt: skip
MADE = {"neurons": 5, "images": 60, "test_images": 8, "repeats": 5, "height": 18, "width": 32}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("v1")
    for mouse in ("m1", "m2", "m3"):
        write_shard(folder / f"{mouse}.h5", sim_v1.recordings(None, subjects=[mouse], **MADE), {})
    corpus = open_shards(folder)
    facts = facts_of(corpus.where(subject=["m1", "m3"]), 1.0)
    torch.manual_seed(0)
    return corpus, Pretrained(build(CONFIG, facts).eval(), CONFIG, facts)


def sides(corpus, *mice):
    return tuple(corpus.where(session=s, subject=list(mice)).windows(1.0) for s in ("single", "repeats"))


def repeated(rng, stimuli=30, repeats=8, neurons=6, noise=1.0):
    """Responses to stimuli `(trial, neuron)`, what they would be without noise, and the rows of each stimulus."""
    clean = np.repeat(rng.normal(size=(stimuli, neurons)), repeats, axis=0)
    truth = clean + noise * rng.normal(size=clean.shape)
    return truth, clean, list(np.arange(stimuli * repeats).reshape(stimuli, repeats))


def test_measures_against_plain_loops():
    rng = np.random.default_rng(0)
    truth, clean, groups = repeated(rng)
    guess = clean + 0.5 * rng.normal(size=clean.shape)
    groups[4], groups[9] = groups[4][:3], groups[9][:5]  # not all are shown equally often
    rows = np.concatenate(groups)
    single = np.mean([np.corrcoef(truth[rows, n], guess[rows, n])[0, 1] for n in range(6)])
    assert response.single_trial(truth, guess, groups) == pytest.approx(single)
    means = [np.stack([x[g].mean(0) for g in groups]) for x in (truth, guess)]
    average = np.mean([np.corrcoef(means[0][:, n], means[1][:, n])[0, 1] for n in range(6)])
    assert response.to_average(truth, guess, groups) == pytest.approx(average)
    each = []
    for n in range(6):
        total = np.var(truth[rows, n], ddof=1)
        noise = np.mean([np.var(truth[g, n], ddof=1) for g in groups])
        mse = np.mean((truth[rows, n] - guess[rows, n]) ** 2)
        each.append(1 - (mse - noise) / (total - noise))
    assert response.explained(truth, guess, groups) == pytest.approx(np.mean(each))


def test_explained_is_one_for_the_truth_and_about_zero_for_the_mean():
    truth, clean, groups = repeated(np.random.default_rng(1), stimuli=400)
    assert response.explained(truth, clean, groups) == pytest.approx(1.0, abs=0.03)
    mean = np.broadcast_to(truth.mean(0), truth.shape)
    assert response.explained(truth, mean, groups) == pytest.approx(0.0, abs=0.01)
    assert response.single_trial(truth, mean, groups) == pytest.approx(0, abs=1e-12)
    assert response.single_trial(truth, clean, groups) < response.to_average(truth, clean, groups)


def test_neurons_without_explainable_variance_do_not_count():
    rng = np.random.default_rng(2)
    truth, clean, groups = repeated(rng)
    truth[:, 3:] = rng.normal(size=(len(truth), 3))
    bad = clean.copy()
    bad[:, 3:] = 100.0
    assert response.explained(truth, bad, groups) > 0.8
    assert np.isnan(response.explained(truth[:, 3:], bad[:, 3:], groups))


def test_resampling_takes_images_with_all_their_repeats():
    truth, clean, groups = repeated(np.random.default_rng(3), stimuli=10)
    twice = [groups[i] for i in (0, 0, 1, 2)]
    rows = np.concatenate(twice)
    assert response.single_trial(truth, clean, twice) == pytest.approx(pearson(truth[rows], clean[rows]))


def test_the_linear_nonlinear_model_finds_a_rectified_filter_and_its_gain():
    rng = np.random.default_rng(4)
    filters = rng.normal(size=(20, 3)) / 20**0.5
    x, y = rng.normal(size=(800, 20)), rng.normal(size=(200, 20))
    gain, other = rng.random((800, 1)) * 2, rng.random((200, 1)) * 2
    rate, truth = (np.maximum(a @ filters, 0) ** 2 for a in (x, y))
    plain, same = response.linear_nonlinear(x, rate, y)
    np.testing.assert_allclose(plain, same, rtol=0.2, atol=0.05)
    assert pearson(truth, plain) > 0.9
    assert plain.min() >= 0
    without, scaled = response.linear_nonlinear(x, rate * (1 + gain), y, scaled=(gain, other))
    assert pearson(truth * (1 + other), scaled) > pearson(truth * (1 + other), without) + 0.02


def test_known_animals(setting):
    corpus, model = setting
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    train, test = sides(corpus, "m1", "m3")
    found = response.run(model, train, test, seed=0)
    assert found["metric"] == "single-trial correlation"
    assert set(found["baselines"]) == {"mean", "untrained", "linear-nonlinear", "linear-nonlinear with behaviour"}
    assert (found["n_subjects"], found["n_trials"], found["ci_over"]) == (2, 80, "subjects")
    assert found["baselines"]["mean"]["score"] == pytest.approx(0, abs=1e-12)
    assert found["chance"] == 0
    assert set(found["measures"]) == {"single-trial correlation", "correlation to average", "FEVe"}
    assert found["measures"]["single-trial correlation"]["pretrained"]["score"] == found["score"]
    assert all(v["true rate"]["score"] > 0.5 for v in found["measures"].values()), "what responses were drawn from"
    assert "true rate" not in found["baselines"]
    assert not found["same_people"]
    mouse = found["animals"]["sim_v1/m1"]
    assert (mouse["neurons"], mouse["images"], mouse["presentations"]) == (5, 8, 40)
    assert mouse["ci"][0] < found["per_subject"]["sim_v1/m1"] < mouse["ci"][1]
    gained = found["differences"]["linear-nonlinear"]["score"]
    assert gained == pytest.approx(found["score"] - found["baselines"]["linear-nonlinear"]["score"])
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())
    shuffled = test.take(np.random.default_rng(0).permutation(len(test)))
    assert response.run(model, train, shuffled, seed=0)["score"] == pytest.approx(found["score"])


def test_presentations_without_behaviour_are_left_out(setting, tmp_path):
    _, model = setting
    made = list(sim_v1.recordings(None, subjects=["m1"], **MADE))
    made[1].aligned["behaviour"].values[3:6] = np.nan
    made[1].aligned["pupil_centre"].values[9, 1] = np.nan
    write_shard(tmp_path / "gaps/m1.h5", made, {})
    train, test = sides(open_shards(tmp_path / "gaps"), "m1")
    kept = np.setdiff1d(np.arange(40), [3, 4, 5, 9])
    found, expected = (response.run(model, train, w, seed=0) for w in (test, sides(setting[0], "m1")[1].take(kept)))
    assert found["n_trials"] == 36
    assert found["score"] == pytest.approx(expected["score"], abs=1e-9)
    assert found["baselines"] == expected["baselines"]
    assert found["note"].startswith("4 windows whose image or behaviour is unknown were left out. ")
    for recording in made:
        recording.aligned["behaviour"].values[:] = np.nan
    write_shard(tmp_path / "none/m1.h5", made, {})
    with pytest.raises(ValueError, match="none of 60 windows has stimulus, behaviour, pupil_centre, all known"):
        response.run(model, *sides(open_shards(tmp_path / "none"), "m1"), seed=0)


def test_a_new_animal_gets_a_read_out_and_nothing_else(setting):
    corpus, model = setting
    train, test = sides(corpus, "m2")
    fitted = response.with_readout(model, train, 8, 1e-2, 16, seed=0)
    core, own = model.model.core.state_dict(), fitted.model.core.state_dict()
    assert all(torch.equal(core[k], own[k]) for k in core)
    assert fitted.model.neurons == [f"sim_v1/m2/v{i:04d}" for i in range(5)]
    start = response.with_readout(model, train, 0, 1e-2, 16, seed=0)
    assert all(not torch.equal(a, b) for (n, a), b in zip(
        fitted.model.readout.named_parameters(), start.model.readout.parameters(), strict=True
    ) if n in ("weight", "bias", "spread"))  # fmt: skip
    found = response.run(model, train, test, seed=0, readout_steps=2)
    assert found["same_people"]
    assert (found["ci_over"], found["n_subjects"]) == ("trials", 1)
    assert found["differences"]["mean"]["ci"] is None
    assert "read-out of each animal was fitted" in found["note"]
    with torch.random.fork_rng():
        torch.manual_seed(99)
        again = response.with_readout(model, train, 8, 1e-2, 16, seed=0)
    assert torch.equal(again.model.readout.weight, fitted.model.readout.weight)


def test_a_fitted_read_out_predicts_training_images_better(setting):
    corpus, model = setting
    train, _ = sides(corpus, "m2")
    scores = []
    for steps in (0, 150):
        fitted = response.with_readout(model, train, steps, 2e-2, 32, seed=0)
        truth = train.recordings[0].signal(0, 60).T
        scores.append(pearson(truth, response.predicted(fitted, train)))
    assert scores[1] > scores[0] + 0.15


def test_what_is_refused(setting):
    corpus, model = setting
    train, test = sides(corpus, "m1")
    with pytest.raises(ValueError, match="predicts no responses to stimuli; take a model such as v1t"):
        response.run(Pretrained(torch.nn.Linear(1, 1), {}, model.facts), train, test, seed=0)
    with pytest.raises(ValueError, match=r"8 stimuli \(test0000, .* are in training and test; split by stimulus"):
        response.run(model, Windows.join([train, test]), test, seed=0)
    with pytest.raises(ValueError, match="noise needs repeats of each of two"):
        response.run(model, train.take(range(30)), train.take(range(30, 60)), seed=0)
    with pytest.raises(ValueError, match="training windows, not all of one sample under a named stimulus"):
        response.run(model, corpus.where(session="single", subject="m1").windows(2.0), test, seed=0)
    with pytest.raises(ValueError, match="sim_v1/m3 has 0 training windows"):
        response.run(model, train, sides(corpus, "m3")[1], seed=0)
    with pytest.raises(ValueError, match="the model knows 5 of 10 neurons; test known and new animals apart"):
        response.run(model, *sides(corpus, "m1", "m2"), seed=0)


def trained(corpus, steps=500, shuffled=False):
    """A small network after some steps on the images of m1, or on the same images in another order."""
    keywords = {**CONFIG["keywords"], "dim": 24, "hidden": 48, "patch": 8, "heads": 2, "behaviour_hidden": 8}
    config, own = {**CONFIG, "keywords": keywords}, corpus.where(session="single", subject="m1")
    facts = facts_of(own, 1.0)
    torch.manual_seed(0)
    model = Pretrained(build(config, facts).train(), config, facts)
    whole = model.batcher()(own.windows(1.0))
    if shuffled:
        whole.aligned["stimulus"] = whole.aligned["stimulus"][torch.randperm(len(whole))]
    objective, optimiser = PoissonResponse(), torch.optim.Adam(model.model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        parts = objective(model.model, whole.rows(torch.randint(len(whole), (32,))))
        optimiser.zero_grad()
        (parts["poisson"] + parts["core_l1"] + parts["readout_l1"]).backward()
        optimiser.step()
        schedule.step()
    model.model.eval()
    return model


@pytest.mark.slow
def test_v1t_beats_the_linear_nonlinear_model_and_learns_nothing_from_shuffled_images(tmp_path):
    made = {"neurons": 24, "images": 800, "test_images": 25, "repeats": 6, "height": 18, "width": 32, "energy": 1.0}
    write_shard(tmp_path / "m1.h5", sim_v1.recordings(None, subjects=["m1"], **made), {})
    corpus = open_shards(tmp_path)
    train, test = sides(corpus, "m1")
    found = response.run(trained(corpus), train, test, seed=0)
    average = {k: v["score"] for k, v in found["measures"]["correlation to average"].items()}
    ceiling = average.pop("true rate")  # what the responses were drawn from
    assert ceiling > average["pretrained"] > max(v for k, v in average.items() if k != "pretrained") + 0.15
    assert found["score"] > max(b["score"] for b in found["baselines"].values()) + 0.05
    nothing = response.run(trained(corpus, shuffled=True), train, test, seed=0)
    assert abs(nothing["measures"]["correlation to average"]["pretrained"]["score"]) < 0.2
