"""Estimators of scikit-learn: its own checks, cross-validation of arrays and epochs, labels, bad input."""

from __future__ import annotations

import pickle
from pathlib import Path

import mne
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

import brainfm
from brainfm import given
from brainfm.evaluations.protocol import fit_ridge
from brainfm.models import eegnet, luna
from brainfm.sklearn import BrainFMClassifier, BrainFMRegressor
from brainfm.tokens import Facts
from brainfm.training.batches import ArrayDataset
from brainfm.training.checkpoint import Pretrained

SFREQ, SAMPLES = 64.0, 64
NAMES = ["C3", "Cz", "C4", "Pz"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def encoder() -> Pretrained:
    facts = Facts(modality=("eeg",), kinds=("eeg",), sfreq=SFREQ, window_s=1.0, channels=4)
    torch.manual_seed(0)
    config = {"kind": "models", "name": "luna", "keywords": luna.SIZES["test"]}
    return Pretrained(luna.build(facts, **luna.SIZES["test"]).eval(), config, facts)


def classifier(encoder: Pretrained | None, adapt: str = "probe") -> BrainFMClassifier:
    return BrainFMClassifier(encoder, adapt=adapt, channels=NAMES, sfreq=SFREQ)


def trials(n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Trials `(trial, channel, time)` in volts and amplitudes of their rhythm; every second one is strong."""
    rng = np.random.default_rng(seed)
    amplitude = np.where(np.arange(n) % 2 == 0, rng.uniform(3e-5, 5e-5, n), rng.uniform(0, 5e-6, n))
    rhythm = np.sin(2 * np.pi * 8 * np.arange(SAMPLES) / SFREQ + rng.uniform(0, 6, (n, 1)))
    return rng.normal(0, 5e-6, (n, 4, SAMPLES)) + (amplitude[:, None] * rhythm)[:, None], amplitude


LABELS = np.where(np.arange(40) % 2 == 0, "left", "right")


def epochs_of(signal: np.ndarray, labels: np.ndarray, metadata: dict | None = None) -> mne.EpochsArray:
    import pandas as pd

    codes = np.where(labels == "left", 7, 9)
    events = np.stack([np.arange(len(signal)) * SAMPLES, np.zeros(len(signal), int), codes], axis=1)
    info = mne.create_info(NAMES, SFREQ, "eeg")
    table = None if metadata is None else pd.DataFrame(metadata)
    return mne.EpochsArray(signal, info, events, event_id={"left": 7, "right": 9}, metadata=table, verbose="error")


# scikit-learn's own checks. They hand over rows of 1 to 20 numbers: here half a second each of one channel. EEGNet sees
# how high they are, which LUNA would standardise away.


def checked(folder: Path) -> dict[str, object]:
    facts = Facts(modality=("eeg",), kinds=("eeg",), sfreq=64.0, window_s=20.0, channels=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = eegnet.build(facts, **eegnet.SIZES["test"]).eval()
    config = {"kind": "models", "name": "eegnet", "keywords": eegnet.SIZES["test"]}
    Pretrained(model, config, facts).save(folder)
    return {"encoder": str(folder), "channels": ["Cz"], "sfreq": 2.0, "scale": 1e-5}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [BrainFMClassifier, BrainFMRegressor])
def test_the_checks_of_scikit_learn(kind: type, tmp_path: Path) -> None:
    """All of them; none is expected to fail."""
    done = estimator_checks.check_estimator(kind(**checked(tmp_path / "encoder")), on_skip=None, on_fail=None)
    failed = {d["check_name"]: repr(d["exception"]) for d in done if d["status"] not in ("passed", "skipped")}
    assert not failed
    assert {d["check_name"] for d in done if d["status"] == "skipped"} <= {"check_array_api_input"}
    assert len(done) > 45


# Arrays and epochs.


def test_it_is_the_decoder(encoder: Pretrained) -> None:
    signal, _ = trials()
    later, _ = trials(seed=1)
    found = classifier(encoder).fit(signal, LABELS)
    decoder = brainfm.Decoder(encoder).fit(signal, LABELS, channels=NAMES, sfreq=SFREQ)
    expected = decoder.predict_proba(later, channels=NAMES, sfreq=SFREQ)
    np.testing.assert_allclose(found.predict_proba(later), expected, atol=1e-6)
    assert found.classes_.tolist() == ["left", "right"]
    assert found.predict(later).tolist() == np.array(["left", "right"])[expected.argmax(1)].tolist()
    assert found.score(later, LABELS) == np.mean(found.predict(later) == LABELS) > 0.8


def test_two_dimensions_and_microvolts_are_the_same_trials(encoder: Pretrained) -> None:
    signal, _ = trials()
    found = classifier(encoder).fit(signal, LABELS)
    expected = found.predict_proba(signal)
    assert found.n_features_in_ == 4 * SAMPLES
    np.testing.assert_allclose(found.predict_proba(signal.reshape(40, -1)), expected, atol=1e-6)
    micro = classifier(encoder).set_params(scale=1e-6).fit(1e6 * signal, LABELS)
    np.testing.assert_allclose(micro.predict_proba(1e6 * signal), expected, atol=1e-5)


def test_cross_validation_of_arrays_and_of_epochs(encoder: Pretrained) -> None:
    signal, _ = trials()
    arrays = cross_val_score(classifier(encoder), signal, LABELS, cv=4)
    epochs = cross_val_score(BrainFMClassifier(encoder), epochs_of(signal, LABELS), LABELS, cv=4)
    assert arrays.mean() > 0.8
    np.testing.assert_allclose(epochs, arrays)
    shuffled = np.random.default_rng(0).permutation(LABELS)
    assert 0.25 < cross_val_score(classifier(encoder), signal, shuffled, cv=4).mean() < 0.75


def test_epochs_bring_their_conditions_and_units(encoder: Pretrained) -> None:
    signal, _ = trials()
    epochs = epochs_of(signal, LABELS)
    own = BrainFMClassifier(encoder, scale=1e3).fit(epochs)  # scale is for arrays
    assert own.classes_.tolist() == ["left", "right"]
    expected = classifier(encoder).fit(signal, LABELS).predict_proba(signal)
    np.testing.assert_allclose(own.predict_proba(epochs), expected, atol=1e-5)
    parts = [epochs[:10], epochs[10:]]
    np.testing.assert_allclose(own.predict_proba(parts), own.predict_proba(epochs), atol=1e-6)
    mixed = epochs.copy().reorder_channels(NAMES[::-1])
    np.testing.assert_allclose(own.predict_proba(mixed), expected, atol=1e-5)
    with pytest.raises(ValueError, match="1 channels are missing: Pz"):
        own.predict(epochs.copy().drop_channels(["Pz"]))


def test_pipelines_and_grids(encoder: Pretrained, tmp_path: Path) -> None:
    signal, _ = trials()
    pipeline = make_pipeline(FunctionTransformer(lambda x: x - x.mean(-1, keepdims=True)), classifier(encoder))
    assert cross_val_predict(pipeline, signal, LABELS, cv=2, method="predict_proba").shape == (40, 2)
    folder = encoder.save(tmp_path / "luna")
    grid = GridSearchCV(classifier(folder), {"adapt": ["probe", "euclidean", "statistics"]}, cv=2, refit=False)
    found = grid.fit(signal, LABELS).cv_results_
    assert found["param_adapt"].tolist() == ["probe", "euclidean", "statistics"]
    assert np.isfinite(found["mean_test_score"]).all()


# Whose each trial is.

PEOPLE = np.repeat(["a", "b", "c", "d"], 10)


@pytest.mark.parametrize("adapt", sorted(set(brainfm.api.ADAPT)))
def test_every_word_is_the_decoders(encoder: Pretrained, adapt: str) -> None:
    signal, _ = trials()
    found = classifier(encoder, adapt).set_params(steps=2).fit(signal[:30], LABELS[:30], groups=PEOPLE[:30])
    decoder = brainfm.Decoder(encoder, adapt, steps=2)
    decoder.fit(signal[:30], LABELS[:30], channels=NAMES, sfreq=SFREQ, people=PEOPLE[:30])
    expected = decoder.predict_proba(signal[30:], channels=NAMES, sfreq=SFREQ)
    np.testing.assert_allclose(found.predict_proba(signal[30:]), expected, atol=1e-5)


@pytest.mark.parametrize("adapt", ["euclidean", "statistics"])
def test_epochs_say_whose_they_are(encoder: Pretrained, adapt: str) -> None:
    """Two strangers, one of them at half the amplitude: each is aligned alone."""
    signal, _ = trials()
    signal[30:] *= 0.5
    train, test = np.arange(40) < 20, np.arange(40) >= 20
    epochs = epochs_of(signal, LABELS, {"subject": PEOPLE})
    own = BrainFMClassifier(encoder, adapt=adapt).fit(epochs[train])
    decoder = brainfm.Decoder(encoder, adapt)
    decoder.fit(signal[train], LABELS[train], channels=NAMES, sfreq=SFREQ, people=PEOPLE[train])
    asked = {"channels": NAMES, "sfreq": SFREQ}
    expected = decoder.predict_proba(signal[test], **asked, people=PEOPLE[test])
    np.testing.assert_allclose(own.predict_proba(epochs[test]), expected, atol=1e-4)
    assert np.abs(expected - decoder.predict_proba(signal[test], **asked)).max() > 0.01


def test_a_new_person_is_calibrated_without_labels(encoder: Pretrained) -> None:
    signal, _ = trials()
    rest = 3 * trials(seed=2)[0]
    found = classifier(encoder, "euclidean").fit(signal, LABELS, groups=PEOPLE, calibration=rest)
    decoder = brainfm.Decoder(encoder, "euclidean")
    decoder.fit(signal, LABELS, channels=NAMES, sfreq=SFREQ, people=PEOPLE)
    before = decoder.predict_proba(signal, channels=NAMES, sfreq=SFREQ)
    decoder.calibrate(rest, channels=NAMES, sfreq=SFREQ)
    expected = decoder.predict_proba(signal, channels=NAMES, sfreq=SFREQ)
    np.testing.assert_allclose(found.predict_proba(signal), expected, atol=1e-5)
    assert np.abs(expected - before).max() > 0.01
    with pytest.raises(ValueError, match="uses no trials without labels"):
        classifier(encoder).fit(signal, LABELS, calibration=rest)


def test_people_are_kept_whole_by_the_splitter(encoder: Pretrained) -> None:
    signal, _ = trials()
    keywords = {"groups": PEOPLE, "cv": GroupKFold(4), "params": {"groups": PEOPLE}}
    scores = cross_val_score(classifier(encoder, "statistics"), signal, LABELS, **keywords)
    assert len(scores) == 4
    assert scores.mean() > 0.7


def test_clones_and_pickles(encoder: Pretrained) -> None:
    signal, _ = trials()
    found = classifier(encoder).fit(signal, LABELS)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.predict_proba(signal), found.predict_proba(signal))
    fresh = clone(found)
    assert not hasattr(fresh, "decoder_")
    assert fresh.encoder is not encoder
    np.testing.assert_allclose(fresh.fit(signal, LABELS).predict_proba(signal), found.predict_proba(signal), atol=1e-6)
    assert clone(classifier(None).set_params(encoder="a/folder")).encoder == "a/folder"
    assert repr(fresh.encoder) == repr(encoder) != repr(encoder.untrained(1))


@pytest.mark.parametrize(
    "words", [["left", "right"], [10, 9], [True, False], [2.0, 1.0], ["10", "9"], [np.str_("x"), np.str_("y")]]
)
def test_labels_come_back_as_they_were_given(encoder: Pretrained, words: list) -> None:
    signal, _ = trials()
    given = [words[i % 2] for i in range(40)]
    found = classifier(encoder).fit(signal, given)
    assert found.classes_.tolist() == sorted(words)
    predicted = found.predict(signal)
    assert predicted.dtype == np.asarray(words).dtype
    assert np.mean(predicted == np.array(given)) > 0.8


def test_more_than_ten_classes_keep_their_order(encoder: Pretrained) -> None:
    signal, _ = trials(44)
    numbers = np.arange(44) % 11
    found = classifier(encoder).fit(signal, numbers)
    assert found.classes_.tolist() == list(range(11))
    assert found.predict(signal).tolist() == found.predict_proba(signal).argmax(1).tolist()


# Regression.


def test_regression_is_the_ridge_of_evaluations(encoder: Pretrained) -> None:
    signal, amplitude = trials()
    made = given.arrays(signal, NAMES, SFREQ, None, SFREQ)
    features = encoder.pooled(ArrayDataset(*made, encoder.batcher()))
    expected = fit_ridge(features, amplitude[:, None] * 1e5).predict(features)[:, 0]
    found = BrainFMRegressor(encoder, channels=NAMES, sfreq=SFREQ).fit(signal, amplitude * 1e5)
    np.testing.assert_allclose(found.predict(signal), expected, atol=1e-5)
    later, truth = trials(seed=1)
    assert found.score(later, truth * 1e5) > 0.5


def test_regression_of_two_outputs_and_of_epochs(encoder: Pretrained) -> None:
    signal, amplitude = trials()
    both = np.stack((amplitude * 1e5, np.arange(40.0)), axis=1)
    found = BrainFMRegressor(encoder).fit(epochs_of(signal, LABELS), both, groups=np.arange(40) // 10)
    mixed = epochs_of(signal, LABELS).reorder_channels(NAMES[::-1])
    assert found.predict(mixed).shape == (40, 2)
    np.testing.assert_allclose(found.predict(mixed), found.predict(epochs_of(signal, LABELS)), atol=1e-4)
    with pytest.raises(ValueError, match=r"groups of shape \(2,\) for 40 trials"):
        found.fit(epochs_of(signal, LABELS), both, groups=[1, 2])


# Bad input.


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["left", 1] * 20, "two types .numbers and words.*give words or numbers throughout"),
        ([True, 1] * 20, "two types"),
        (["left", None] * 20, "20 of 40 labels are missing .trials 1, 3, .*leave these trials out"),
        (["left", float("nan")] * 20, "20 of 40 labels are missing"),
        ([0.0, np.nan] * 20, "20 of 40 labels are missing"),
        (np.tile([0.0, np.nan], 20), "20 of 40 labels are missing"),
        (["left"] * 40, "all trials have the class 'left'"),
        (np.linspace(0, 1, 40), "Unknown label type"),
        (["left", "right"], "inconsistent numbers of samples"),
        (None, "y is None"),
    ],
)
def test_labels_that_are_refused(encoder: Pretrained, labels: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        classifier(encoder).fit(trials()[0], labels)


def test_trials_that_are_refused(encoder: Pretrained) -> None:
    signal, _ = trials()
    found = classifier(encoder)
    with pytest.raises(NotFittedError):
        found.predict(signal)
    raw = mne.io.RawArray(signal[0], mne.create_info(NAMES, SFREQ, "eeg"), verbose="error")
    with pytest.raises(ValueError, match=r"got a RawArray; expected mne\.Epochs or an array"):
        found.fit(raw, LABELS)
    with pytest.raises(ValueError, match="needs an `encoder`"):
        classifier(None).fit(signal, LABELS)
    with pytest.raises(ValueError, match="an array needs `channels`"):
        BrainFMClassifier(encoder).fit(signal, LABELS)
    with pytest.raises(ValueError, match=r"shape \(40, 3, 64\) for 4 channels"):
        found.fit(signal[:, :3], LABELS)
    with pytest.raises(ValueError, match=r"1 sample"):
        found.fit(signal[:1], LABELS[:1])
    with pytest.raises(ValueError, match="one trial; expected two or more"):
        BrainFMClassifier(encoder).fit(epochs_of(signal, LABELS)[:1])
    with pytest.raises(ValueError, match="NaN"):
        found.fit(np.where(np.arange(SAMPLES) == 3, np.nan, signal), LABELS)
    with pytest.raises(ValueError, match="one sample in each channel"):
        found.fit(signal[..., :1], LABELS)
    with pytest.raises(ValueError, match="adapt='prob' is not known"):
        classifier(encoder, "prob").fit(signal, LABELS)
    found.fit(signal, LABELS)
    with pytest.raises(ValueError, match="expecting 256 features"):
        found.predict(signal[..., :32])
    with pytest.raises(ValueError, match=r"trials of 0\.5 s; fitted on 1 s"):
        found.predict(epochs_of(signal[..., :32], LABELS))
    other = epochs_of(signal, LABELS).copy().resample(32.0)
    with pytest.raises(ValueError, match="several montages or rates"):
        found.predict([epochs_of(signal, LABELS), other])


@pytest.mark.parametrize("kind", [BrainFMClassifier, BrainFMRegressor])
def test_numbers_in_another_unit_are_refused(encoder: Pretrained, kind: type) -> None:
    signal, amplitude = trials()
    target = LABELS if kind is BrainFMClassifier else amplitude
    with pytest.raises(ValueError, match=r"microvolt read as volt .*`scale=1e-6` in brainfm.sklearn"):
        kind(encoder, channels=NAMES, sfreq=SFREQ).fit(1e6 * signal, target)


@pytest.mark.parametrize("sfreq", [0, -5.0, float("nan")])
def test_a_rate_that_is_none(encoder: Pretrained, sfreq: float) -> None:
    with pytest.raises(ValueError, match="expected samples per second, above 0"):
        BrainFMClassifier(encoder, channels=NAMES, sfreq=sfreq).fit(trials()[0], LABELS)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([np.nan, "left"] * 20), "20 of 40 labels are missing"),
        (np.array([1, "left"] * 20), "two types"),
        (["n/a", "left"] * 20, "20 of 40 labels are missing"),
        (np.tile([0.0, np.inf], 20), "infinit"),
    ],
)
def test_labels_that_numpy_hid(encoder: Pretrained, labels: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        classifier(encoder).fit(trials()[0], labels)


def test_a_pipeline_hands_groups_on_under_its_step(encoder: Pretrained) -> None:
    """As docs/transfer.md says it."""
    signal, _ = trials()
    signal[30:] *= 0.5
    pipeline = make_pipeline(FunctionTransformer(), classifier(encoder, "statistics"))
    keywords = {"groups": PEOPLE, "cv": GroupKFold(4)}
    told = cross_val_score(pipeline, signal, LABELS, params={"brainfmclassifier__groups": PEOPLE}, **keywords)
    alone = cross_val_score(classifier(encoder, "statistics"), signal, LABELS, params={"groups": PEOPLE}, **keywords)
    np.testing.assert_allclose(told, alone)
