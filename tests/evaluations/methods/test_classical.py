"""Classical decoders: planted differences are found, references agree, and odd training sides are defined."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyriemann.spatialfilters import CSP
from pyriemann.tangentspace import TangentSpace
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from brainfm.evaluations.methods import alignment, classical
from brainfm.evaluations.methods.trials import Side, Trials, choose
from brainfm.recording import Channels, Events, Recording
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.write import write_shard

SFREQ, COUNT, SAMPLES, CHANNELS = 64.0, 18, 96, 6
CLASSES = ("feet", "left", "right")
ALL = (
    "majority", "log_band_power", "downsampled_signal", "log_power_spectrum", "csp_lda", "xdawn_covariance",
    "tangent_space", "tangent_space recentred", "pca", "functional_connectivity",
)  # fmt: skip


def person(name: str, rng: np.random.Generator, flat: bool = False) -> Recording:
    """Three classes: each has a rhythm of 11 Hz from a source of its own, mixed into all channels."""
    label = [CLASSES[i % 3] for i in range(COUNT)]
    time = np.arange(COUNT * SAMPLES) / SFREQ
    sources = rng.normal(size=(CHANNELS, len(time)))
    for i, c in enumerate(CLASSES):
        rhythm = 2.5 * np.sin(2 * np.pi * 11 * time + rng.uniform(0, 6))
        sources[i] += rhythm * np.repeat(np.array(label) == c, SAMPLES)
    mixing = np.random.default_rng(7).normal(size=(CHANNELS, CHANNELS)) + 0.1 * rng.normal(size=(CHANNELS, CHANNELS))
    signal = mixing @ sources
    if flat:
        signal[2] = 0
    place = np.random.default_rng(3).normal(scale=0.05, size=(CHANNELS, 3))
    names = [f"E{i}" for i in range(CHANNELS)]
    return Recording(
        "sim", name, "eeg", Channels.make(names, "eeg", place), sfreq=SFREQ, signal=signal * 1e-5,
        events=Events(np.arange(COUNT) * SAMPLES / SFREQ, np.ones(COUNT), label), simulated=True,
    )  # fmt: skip


def made(folder: Path, labels: tuple[str, ...] = CLASSES, flat: bool = False, length_s: float = 1.5) -> Trials:
    if not list(folder.glob("*.h5")):
        rng = np.random.default_rng(0)
        for i in range(5):
            write_shard(folder / f"p{i}.h5", [person(f"p{i}", rng, flat)], {})
    windows = Windows.join([open_shards(folder).subject(f"p{i}").trials(0, length_s) for i in range(5)])
    return Trials(windows.take(np.isin(windows.label, labels)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("people")


@pytest.fixture
def trials(folder: Path) -> Trials:
    return made(folder)


def side(trials: Trials) -> Side:
    rows = [np.flatnonzero(np.isin(trials.people, [f"sim/p{i}" for i in who])) for who in ((0, 1, 2), (3,), (4,))]
    return Side(*rows)


def accuracy(trials: Trials, fitted, rows: np.ndarray) -> float:  # type: ignore[no-untyped-def]
    return float(np.mean(fitted.predict_proba(rows).argmax(axis=1) == trials.labels[rows]))


@pytest.mark.parametrize("name", ALL)
def test_methods_answer_and_take_shots(trials: Trials, name: str) -> None:
    parts, (method,) = side(trials), classical.classical([name])
    fitted = method.fit(trials, parts, method.settings[0], 0)
    chances = fitted.predict_proba(parts.test)
    assert chances.shape == (COUNT, 3)
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    if name in ("csp_lda", "tangent_space", "tangent_space recentred", "functional_connectivity"):
        assert accuracy(trials, fitted, parts.test) > 0.8
    adapted = fitted.adapted(parts.test[:6], 0)
    np.testing.assert_array_equal(fitted.predict_proba(parts.test), chances)
    assert adapted.predict_proba(parts.test).shape == chances.shape
    assert fitted.adapted(parts.test[:0], 0) is fitted
    again = method.fit(trials, parts, method.settings[0], 0).predict_proba(parts.test)
    np.testing.assert_array_equal(again, chances)


def test_shuffled_labels_give_chance(trials: Trials) -> None:
    shuffled = trials.permuted(np.random.default_rng(0))
    parts, method = side(trials), classical.classical(["csp_lda"])[0]
    assert accuracy(shuffled, method.fit(shuffled, parts, method.settings[0], 0), parts.test) < 0.65


@pytest.mark.parametrize("labels", [CLASSES, CLASSES[:2]])
def test_csp_lda_is_that_of_pyriemann_and_scikit_learn(folder: Path, labels: tuple[str, ...]) -> None:
    trials = made(folder, labels)
    parts, rows = side(trials), side(trials).taught
    ours = classical.CommonSpatialPatterns().fit(trials, parts, {"filters": 4, "band_hz": None}, 0)
    matrices = alignment.covariances(trials.signals().values)
    reference = make_pipeline(CSP(4), StandardScaler(), LinearDiscriminantAnalysis("lsqr", shrinkage="auto"))
    reference.fit(matrices[rows], trials.labels[rows])
    np.testing.assert_allclose(
        ours.predict_proba(parts.test), reference.predict_proba(matrices[parts.test]), rtol=1e-6, atol=1e-9
    )


def test_riemannian_is_that_of_pyriemann(trials: Trials) -> None:
    parts, rows = side(trials), side(trials).taught
    ours = classical.TangentSpace().fit(trials, parts, {"C": 0.1, "band_hz": None}, 0)
    matrices = alignment.covariances(trials.signals().values)
    head = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000)
    reference = make_pipeline(TangentSpace(), StandardScaler(), head).fit(matrices[rows], trials.labels[rows])
    np.testing.assert_allclose(ours.predict_proba(parts.test), reference.predict_proba(matrices[parts.test]), atol=1e-5)


def test_recentring_mends_another_gain_and_looks_at_what_it_may(trials: Trials) -> None:
    parts = side(trials)
    values = trials.signals().values
    values[parts.test] *= np.array([4, 0.3, 1, 2, 0.5, 3], np.float32)[:, None]
    plain, recentred = classical.classical(["tangent_space", "tangent_space recentred"])
    scores = [accuracy(trials, m.fit(trials, parts, m.settings[0], 0), parts.test) for m in (plain, recentred)]
    assert scores[1] > max(0.8, scores[0])
    calibrated = parts._replace(test=parts.test[9:], unlabelled=parts.test[:9])
    before = recentred.fit(trials, calibrated, recentred.settings[0], 0).predict_proba(parts.test[9:10])
    values[parts.test[10:]] *= 9
    trials._once.clear()
    after = recentred.fit(trials, calibrated, recentred.settings[0], 0).predict_proba(parts.test[9:10])
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_covariances_are_made_once_for_all_folds_and_settings(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = alignment.covariances
    monkeypatch.setattr(alignment, "covariances", lambda *a, **k: calls.append(1) or original(*a, **k))
    method, parts = classical.CommonSpatialPatterns(), side(trials)
    setting, losses = choose(method, trials, parts, 3, 0)
    assert len(losses) == 3
    assert setting in method.settings
    method.fit(trials.permuted(np.random.default_rng(0)), parts, method.settings[0], 0)
    assert len(calls) == 2  # with the band and without


def test_a_new_persons_shots_get_their_share(folder: Path) -> None:
    """A person whose classes are swapped is learnt from shots, though the source has many more trials."""
    trials = made(folder, CLASSES[:2])
    parts = side(trials)
    trials.labels = trials.labels.copy()
    trials.labels[parts.test] = 1 - trials.labels[parts.test]
    for method in classical.classical(["csp_lda", "tangent_space"]):
        fitted = method.fit(trials, parts, method.settings[0], 0)
        rest = parts.test[8:]
        assert accuracy(trials, fitted, rest) < 0.3
        shares = fitted.predict_proba(rest)[np.arange(len(rest)), trials.labels[rest]]
        own = fitted.adapted(parts.test[:8], 0).predict_proba(rest)[np.arange(len(rest)), trials.labels[rest]]
        assert own.mean() > shares.mean() + 0.1
    prior = classical.Majority().fit(trials, parts, {}, 0).adapted(parts.test[:1], 0)
    np.testing.assert_allclose(sorted(prior.predict_proba(rest)[0]), [0.25, 0.75])


@pytest.mark.parametrize("name", ALL)
def test_a_class_that_training_lacks_and_one_of_a_single_trial(trials: Trials, name: str) -> None:
    parts, (method,) = side(trials), classical.classical([name])
    rows = parts.fit[trials.labels[parts.fit] != 2]
    few = np.r_[rows[trials.labels[rows] == 0], rows[trials.labels[rows] == 1][:1]]
    for fit in (rows, few, np.r_[few[:1], few[-1:]]):
        chances = method.fit(trials, Side(fit, few[:0], parts.test), method.settings[0], 0).predict_proba(parts.test)
        assert np.isfinite(chances).all()
        assert np.all(chances[:, 2] == 0)
        np.testing.assert_allclose(chances.sum(axis=1), 1)


def test_shots_may_bring_a_class_that_the_source_lacks(trials: Trials) -> None:
    parts = side(trials)
    rows = parts.fit[trials.labels[parts.fit] != 2]
    for method in classical.classical(["csp_lda", "log_band_power"]):
        fitted = method.fit(trials, Side(rows, rows[:0], parts.test), method.settings[0], 0)
        assert fitted.adapted(parts.test[:9], 0).predict_proba(parts.test)[:, 2].max() > 0.1


@pytest.mark.parametrize("name", ALL[1:])
def test_one_class_alone_is_refused(trials: Trials, name: str) -> None:
    rows = np.flatnonzero(trials.labels == 1)
    (method,) = classical.classical([name])
    with pytest.raises(ValueError, match=r"training windows of \['left'\]; a classifier needs two"):
        method.fit(trials, Side(rows, rows[:0], rows), method.settings[0], 0)


@pytest.mark.parametrize("name", ALL)
def test_flat_channels_and_fewer_samples_than_channels(tmp_path: Path, name: str) -> None:
    trials = made(tmp_path, flat=True)
    if name not in ("log_band_power", "downsampled_signal"):
        trials._signals[:] = [replace(trials.signals(), values=trials.signals().values[..., :5])]
    parts, (method,) = side(trials), classical.classical([name])
    chances = method.fit(trials, parts, method.settings[0], 0).predict_proba(parts.test)
    assert np.isfinite(chances).all()


def test_bands_over_the_nyquist_frequency_are_no_filter(trials: Trials) -> None:
    trials._signals[:] = [replace(trials.signals(), sfreq=1.0)]  # as fMRI
    banded = classical.covariances_of(trials, (8.0, 30.0))
    assert banded is classical.covariances_of(trials)


def test_functional_connectivity_and_names(trials: Trials) -> None:
    found = classical.functional_connectivity(trials)
    values = trials.signals().values
    expected = np.corrcoef(values[3])[np.triu_indices(CHANNELS, 1)]
    np.testing.assert_allclose(np.tanh(found[3]), expected, rtol=1e-4)
    assert [m.name for m in classical.classical(ALL)] == list(ALL)
    with pytest.raises(KeyError, match="did you mean 'csp_lda'"):
        classical.classical(["cps_lda"])
