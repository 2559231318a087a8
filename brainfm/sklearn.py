"""scikit-learn's side of the notebook surface: estimators for pipelines, cross-validation, grid search and MOABB.

classifier = BrainFMClassifier("data/models/luna_tiny", channels=["C3", "Cz", "C4"], sfreq=128.0)
cross_val_score(classifier, X, y, cv=5)

Trials are `mne.Epochs`, or arrays `(trial, channel, time)` with `channels` and `sfreq`. An array of two dimensions is
`(trial, channel x time)`, channel by channel, which is how steps of a pipeline that know no channels hand trials on.
Epochs are sliced by cross-validation too; then they arrive as a list of single epochs and are put together here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, column_or_1d, validate_data

from brainfm import api, given
from brainfm.evaluations.methods.adaptation import ALIGNED
from brainfm.evaluations.protocol import fit_ridge
from brainfm.modalities import electrodes
from brainfm.recording import Channels
from brainfm.shards.read import Windows
from brainfm.training.batches import ArrayDataset
from brainfm.training.checkpoint import Pretrained

if TYPE_CHECKING:
    from sklearn.utils import Tags

#: Column of the metadata of epochs that says whose a trial is, as MOABB writes it.
SUBJECT = "subject"
#: Trials that are encoded together.
BLOCK = 16


class BrainFMClassifier(ClassifierMixin, BaseEstimator):
    """Decode conditions from trials with a pretrained encoder: `brainfm.Decoder` as an estimator of scikit-learn.

    >>> classifier = BrainFMClassifier("data/models/luna_tiny", adapt="probe")  # doctest: +SKIP
    >>> cross_val_score(classifier, epochs, epochs.events[:, 2])  # doctest: +SKIP
    array([0.82, 0.79, 0.85, 0.8 , 0.81])

    Args:
        encoder: a model's folder or address, or a loaded model. `clone` copies a loaded one, weights and all; a folder
            is read anew by each `fit`.
        adapt: a word of `brainfm.api.ADAPT`; "probe" leaves the network as it is. "euclidean", "riemannian",
            "statistics" and "erase_subject" want to know whose each trial is, see `fit`.
        channels: for arrays: names as the 10-20 system writes them, or a channel table.
        sfreq: for arrays: samples per second. Trials are resampled to the encoder's rate.
        scale: for arrays: what times X is in SI units, so 1e-6 for microvolts. Epochs are in SI units.
        random_state: of folds, weights and steps.
        steps: at most, of a word that trains by gradient. learning_rate: its peak; the word's own if None.

    Attributes:
        classes_: `(class,)` conditions as they were given, sorted.
        decoder_: the fitted `brainfm.Decoder`, which `save`s; its own conditions are the numbers of `classes_`.
        n_features_in_: channels x samples of a trial.
    """

    def __init__(
        self, encoder: Pretrained | str | Path | None = None, *, adapt: str = "probe",
        channels: Sequence[str] | Channels | None = None, sfreq: float | None = None, scale: float = 1.0,
        random_state: int | np.random.RandomState | None = 0, steps: int = 100, learning_rate: float | None = None,
    ) -> None:  # fmt: skip
        self.encoder = encoder
        self.adapt = adapt
        self.channels = channels
        self.sfreq = sfreq
        self.scale = scale
        self.random_state = random_state
        self.steps = steps
        self.learning_rate = learning_rate

    def fit(self, X: Any, y: Any = None, groups: Any = None, calibration: Any = None) -> BrainFMClassifier:
        """Fit to labelled trials.

        Words that align people do so without labels. Trials of a person that it was fitted on are aligned as they were
        in training, trials of others by themselves, all that are predicted together. Epochs may say whose each trial is
        in the column `subject` of their metadata, here and in `predict`. Without names all trials are one person's,
        those that are predicted too; arrays that are predicted after a fit to several people are a new person's.

        Args:
            X: `mne.Epochs`, or arrays as the head of this file says.
            y: `(trial,)` strings, whole numbers or booleans; of Epochs, their conditions if not given.
            groups: `(trial,)` whose each trial is.
            calibration: trials of a new person without labels, for words that align; it is then theirs that are
                predicted.

        Raises:
            ValueError: where labels are missing, of two types, NaN or of one class, for a single trial, or an array
                without `channels` or `sfreq`, or one that is not in SI units.
        """
        trials = _trials(self, X, reset=True)
        people = _people(trials, groups)
        self.classes_, numbers = _conditions(_events_of(X) if y is None else y, len(trials.signal))
        decoder = api.Decoder(_encoder(self), self.adapt, _seed(self), self.steps, self.learning_rate)
        self.decoder_ = decoder.fit(trials.signal, numbers, channels=trials.channels, sfreq=trials.sfreq, people=people)
        if calibration is not None:
            rest = _trials(self, calibration, reset=False)
            self.decoder_.calibrate(rest.signal, channels=rest.channels, sfreq=rest.sfreq)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """`(trial, class)` probabilities of X as in `fit`, in the order of `classes_`.

        Raises:
            NotFittedError: before `fit`.
            ValueError: where channels that it was fitted on are missing, or trials have another length.
        """
        check_is_fitted(self, "decoder_")
        trials = _trials(self, X, reset=False)
        return self.decoder_.predict_proba(
            trials.signal, channels=trials.channels, sfreq=trials.sfreq, people=trials.people
        )

    def predict(self, X: Any) -> np.ndarray:
        """`(trial,)` conditions; argument and errors as in `predict_proba`."""
        chances = self.predict_proba(X)
        return self.classes_[chances.argmax(axis=1)]

    def __sklearn_tags__(self) -> Tags:
        return _tagged(super().__sklearn_tags__())


class BrainFMRegressor(RegressorMixin, BaseEstimator):
    """Predict numbers of each trial by ridge regression on a pretrained encoder's pooled encodings.

    The penalty is chosen by cross-validation in contiguous blocks of trials, which must be in order of time, or in
    whole people where `groups` names three or more.

    >>> regressor = BrainFMRegressor("data/models/luna_tiny", channels=["C3", "C4"], sfreq=128.0)  # doctest: +SKIP
    >>> regressor.fit(X, speed).score(later, later_speed)  # doctest: +SKIP
    0.31

    Args:
        encoder, channels, sfreq, scale: as in `BrainFMClassifier`.

    Attributes:
        ridge_: the fitted `brainfm.evaluations.protocol.Ridge`.
        encoder_: the loaded model.
        channels_: names of the channels that it was fitted on.
        n_features_in_: channels x samples of a trial.
    """

    def __init__(
        self, encoder: Pretrained | str | Path | None = None, *, channels: Sequence[str] | Channels | None = None,
        sfreq: float | None = None, scale: float = 1.0,
    ) -> None:  # fmt: skip
        self.encoder = encoder
        self.channels = channels
        self.sfreq = sfreq
        self.scale = scale

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> BrainFMRegressor:
        """Fit to trials with a number, or several, each.

        Args:
            X, groups: as in `BrainFMClassifier`. y: `(trial,)` or `(trial, output)`.

        Raises:
            ValueError: for missing numbers, an array without `channels` or `sfreq`, or one that is not in SI units.
        """
        trials = _trials(self, X, reset=True)
        if y is None:
            raise ValueError("BrainFMRegressor requires y to be passed, but the target y is None")
        target = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        check_consistent_length(trials.signal, target)
        loaded = _encoder(self)
        self.encoder_ = loaded if isinstance(loaded, Pretrained) else api.load(loaded)
        given.in_units(trials.signal, trials.channels)
        self.channels_ = list(trials.channels.name)
        self._flat = target.ndim == 1
        columns, people = target.reshape(len(target), -1), _people(trials, groups)
        self.ridge_ = fit_ridge(_encoded(trials, self.encoder_), columns, None if people is None else np.array(people))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Numbers in the shape of `y`: `(trial,)` or `(trial, output)`.

        Raises:
            NotFittedError: before `fit`.
            ValueError: where channels that it was fitted on are missing, or trials have another length.
        """
        check_is_fitted(self, "ridge_")
        trials = _trials(self, X, reset=False).picked(self.channels_)
        given.in_units(trials.signal, trials.channels, given.ARTEFACT)
        found = self.ridge_.predict(_encoded(trials, self.encoder_))
        return found[:, 0] if self._flat else found

    def __sklearn_tags__(self) -> Tags:
        tags = _tagged(super().__sklearn_tags__())
        tags.target_tags.multi_output = True
        return tags


@dataclass(frozen=True)
class _Trials:
    """Trials in memory.

    Attributes:
        signal: `(trial, channel, time)` in SI units. channels: their table. sfreq: samples per second.
        people: `(trial,)` whose each is, where epochs say so.
    """

    signal: np.ndarray
    channels: Channels
    sfreq: float
    people: list[str] | None = None

    def picked(self, names: list[str]) -> _Trials:
        """The channels of these names, in this order."""
        given.check_names(self.channels, names)
        rows = [self.channels.name.index(n) for n in names]
        return replace(self, signal=self.signal[:, rows], channels=self.channels.pick(rows))


def _trials(estimator: Any, X: Any, reset: bool) -> _Trials:
    """Check what was given, and bring it to one form.

    Args:
        estimator: whose `channels`, `sfreq` and `scale` describe arrays. reset: whether this is `fit`, which says how
            trials have to be from then on.
    """
    epochs = [X] if _is_epochs(X) else list(X) if isinstance(X, list) and X and all(map(_is_epochs, X)) else []
    trials = _joined(epochs) if epochs else _array(estimator, X, reset)
    if reset:
        if len(trials.signal) < 2:
            raise ValueError(f"got n_samples = {len(trials.signal)}, one trial; expected two or more to fit to")
        if trials.signal.shape[-1] < 2:
            n = trials.signal[0].size
            raise ValueError(f"trials of one sample in each channel, n_features = {n}; expected two samples or more")
        estimator.n_features_in_ = trials.signal[0].size
        estimator._seconds = trials.signal.shape[-1] / trials.sfreq
    elif abs(trials.signal.shape[-1] / trials.sfreq - estimator._seconds) > 1.5 / trials.sfreq:
        seconds = trials.signal.shape[-1] / trials.sfreq
        raise ValueError(f"got trials of {seconds:g} s; fitted on {estimator._seconds:g} s: cut them to that length")
    return trials


def _is_epochs(X: Any) -> bool:
    return hasattr(X, "get_data") and hasattr(X, "info") and hasattr(X, "event_id")


def _joined(epochs: list[Any]) -> _Trials:
    """Epochs of one montage → their trials in order; epochs are in SI units."""
    names, rates = epochs[0].ch_names, {float(e.info["sfreq"]) for e in epochs}
    if len(rates) > 1 or any(e.ch_names != names for e in epochs):
        raise ValueError(f"epochs of several montages or rates ({sorted(rates)} Hz); pick the same channels, resample")
    table, picks, _ = electrodes.from_info(epochs[0].info)
    signal = np.concatenate([e.get_data(picks=picks, verbose="error") for e in epochs])
    known = all(e.metadata is not None and SUBJECT in e.metadata for e in epochs)
    people = [str(name) for e in epochs for name in e.metadata[SUBJECT]] if known else None
    return _Trials(_finite(signal), table, rates.pop(), people)


def _people(trials: _Trials, groups: Any) -> list[str] | None:
    """`(trial,)` whose each is: the groups, else what the epochs say."""
    if groups is None:
        return trials.people
    people = np.asarray(groups)
    if people.shape != (len(trials.signal),):
        raise ValueError(f"got groups of shape {people.shape} for {len(trials.signal)} trials; expected one name each")
    return people.astype(str).tolist()


def _finite(signal: np.ndarray) -> np.ndarray:
    return check_array(signal, allow_nd=True, ensure_min_samples=0, dtype=(np.float64, np.float32), input_name="X")


def _array(estimator: Any, X: Any, reset: bool) -> _Trials:
    """`(trial, channel, time)` or `(trial, channel x time)`, as the estimator describes them."""
    if hasattr(X, "ch_names") or isinstance(X, Windows):
        raise ValueError(
            f"got a {type(X).__name__}; expected mne.Epochs or an array (trial, channel, time): cut a recording with "
            "mne.Epochs, give windows of shards to brainfm.Decoder"
        )
    if isinstance(X, list):
        X = np.asarray(X)
    shape: tuple[int, ...] = getattr(X, "shape", ())
    flat = X.reshape(len(X), -1) if len(shape) == 3 else X
    least = 2 if reset else 1
    flat = validate_data(estimator, flat, reset=reset, dtype=(np.float64, np.float32), ensure_min_samples=least)
    if estimator.channels is None or estimator.sfreq is None:
        raise ValueError(
            f"an array needs `channels` (names) and `sfreq` (Hz): {type(estimator).__name__}(..., channels=[...], "
            "sfreq=...); an mne.Epochs carries both"
        )
    table = estimator.channels
    table = table if isinstance(table, Channels) else electrodes.named(list(table))
    if (len(shape) == 3 and shape[1] != len(table)) or flat.shape[1] % len(table):
        raise ValueError(
            f"got data of shape {shape} for {len(table)} channels; expected (trial, channel, time), or (trial, channel "
            "x time) channel by channel"
        )
    signal = flat.reshape(len(flat), len(table), -1)
    return _Trials(signal if estimator.scale == 1 else signal * estimator.scale, table, given.hertz(estimator.sfreq))


def _encoded(trials: _Trials, encoder: Pretrained) -> np.ndarray:
    """`(trial, feature)` pooled encodings, in full blocks.

    A matrix product's last digit follows the number of its rows, and what is fitted to it enlarges that: with blocks
    filled up a trial gets the same answer whatever stands beside it.
    """
    full = np.concatenate([trials.signal, np.repeat(trials.signal[-1:], -len(trials.signal) % BLOCK, axis=0)])
    made = given.arrays(full, trials.channels, trials.sfreq, None, encoder.facts.sfreq)
    return encoder.pooled(ArrayDataset(*made, encoder.batcher()), BLOCK)[: len(trials.signal)]


def _encoder(estimator: Any) -> Pretrained | str | Path:
    if estimator.encoder is None:
        raise ValueError(f"{type(estimator).__name__} needs an `encoder`: a model's folder, or brainfm.load(folder)")
    return estimator.encoder


def _seed(estimator: Any) -> int:
    state = estimator.random_state
    return int(state) if isinstance(state, (int, np.integer)) else int(check_random_state(state).randint(2**31 - 1))


def _events_of(X: Any) -> np.ndarray:
    """The conditions of epochs, by name.

    Raises:
        ValueError: for anything else, in scikit-learn's words.
    """
    epochs = [X] if _is_epochs(X) else X if isinstance(X, list) and X and all(map(_is_epochs, X)) else None
    if epochs is None:
        raise ValueError("BrainFMClassifier requires y to be passed, but the target y is None; mne.Epochs carry theirs")
    return np.concatenate([[{c: n for n, c in e.event_id.items()}[c] for c in e.events[:, 2]] for e in epochs])


def _conditions(y: Any, trials: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of one type → the classes, sorted, and the number of each trial's class.

    Raises:
        ValueError: for missing labels, labels of two types or of one class, and numbers that are no classes.
    """
    array = column_or_1d(np.asarray(y), warn=True)
    check_consistent_length(np.zeros(trials), array)
    if array.dtype.kind == "f" and not np.isnan(array).any():
        check_classification_targets(array)
    given.labels_of(None, y if isinstance(y, (list, tuple)) else array, trials)  # an array of a list hides two types
    classes, numbers = np.unique(array, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"all trials have the class {classes.tolist()[0]!r}; a classifier needs two classes or more")
    return classes, numbers


def _tagged(tags: Tags) -> Tags:
    tags.input_tags.three_d_array = True
    return tags


def moabb_pipeline(classifier: BrainFMClassifier, paradigm: Any, dataset: Any) -> Pipeline:
    """A pipeline for MOABB's evaluations of one dataset: the classifier, told how this dataset's arrays are to be read.

    MOABB hands arrays on without names of channels, and in multiples of SI units (microvolts as a rule). Both are asked
    of the first person's epochs and of the dataset. Several datasets at once need `return_epochs=True` in the
    evaluation in place of this: epochs say it themselves. Across subjects, whose each training trial is and the trials
    without labels of a `CrossSubjectMode` are asked for too; the latter by words that align alone. MOABB keeps results
    by the text of a pipeline: a loaded model is told apart by its weights there, a folder by its path alone.

    >>> paradigm = LeftRightImagery(resample=128)  # doctest: +SKIP
    >>> pipeline = moabb_pipeline(BrainFMClassifier("data/models/luna_tiny"), paradigm, dataset)  # doctest: +SKIP
    >>> CrossSubjectEvaluation(paradigm, [dataset]).process({"LUNA": pipeline})  # doctest: +SKIP

    Args:
        classifier: what to fit; not changed. paradigm, dataset: of MOABB.

    Raises:
        ValueError: where the paradigm picks channels that are no brain signal.
    """
    epochs = paradigm.get_data(dataset, subjects=dataset.subject_list[:1], return_epochs=True)[0]
    table, picks, notes = electrodes.from_info(epochs.info)
    if len(picks) < len(epochs.ch_names):
        dropped = ", ".join(f"{note.found} ({note.detail})" for note in notes if note.fate == "dropped")
        raise ValueError(f"the paradigm picks channels that are no brain signal: {dropped}; give it `channels` without")
    told = clone(classifier).set_params(
        channels=table, sfreq=float(epochs.info["sfreq"]), scale=1 / float(dataset.unit_factor)
    )
    with config_context(enable_metadata_routing=True):
        told.set_fit_request(groups="subjects", calibration="X_target_unlabeled" if told.adapt in ALIGNED else None)
    return make_pipeline(told)
