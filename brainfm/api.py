"""The notebook surface: load a model, open shards, decode with scikit-learn's verbs on MNE's objects.

encoder = brainfm.load("data/models/luna_tiny")
decoder = brainfm.Decoder(encoder).fit(epochs)
decoder.predict(new_epochs)
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import save_file

from brainfm import catalog
from brainfm.evaluations.methods import adaptation
from brainfm.evaluations.methods.adaptation import ADAPT as ADAPT
from brainfm.evaluations.methods.probing import FittedProbe
from brainfm.evaluations.methods.trials import NO_ROWS, Side
from brainfm.given import ARTEFACT, SOMEBODY, Given, check_names, described, doubts, in_units, labels_of
from brainfm.given import arrays as arrays
from brainfm.metrics import balanced_accuracy
from brainfm.shards.read import Windows
from brainfm.shards.read import open_shards as open_shards
from brainfm.training import checkpoint, hub
from brainfm.training.batches import ArrayDataset, WindowDataset
from brainfm.training.checkpoint import Pretrained
from brainfm.training.input_checks import InputWarning

if TYPE_CHECKING:
    import mne

    from brainfm.recording import Channels

#: Whose trials an array's are after `Decoder.calibrate` or `Decoder.adapted` on an array.
NEW = "new"


def load(folder: str | Path) -> Pretrained:
    """Load a pretrained model from its folder, or from a hub by `hf://owner/name[@revision][/subfolder]`.

    Every weight must match.

    >>> encoder = load("data/models/luna_tiny")  # doctest: +SKIP
    >>> encoder.facts.sfreq  # doctest: +SKIP
    128.0

    Raises:
        FileNotFoundError: where there is no model, with the nearest name.
        CheckpointError: where a weight is missing, left over or of another shape.
        ConnectionError: where the hub does not answer.
        ImportError: for an address of a hub without huggingface_hub.
    """
    return checkpoint.load(hub.folder_of(folder) if hub.is_address(folder) else folder)


def list_models() -> list[str]:
    """Names of the models that can be pretrained."""
    return catalog.names("models")


def list_datasets() -> list[str]:
    """Names of the datasets that can be fetched and ingested."""
    return catalog.names("datasets")


class Decoder:
    """Decode conditions from windows of a recording, with a pretrained encoder that is adapted to them.

    Follows scikit-learn: `fit`, `predict`, `predict_proba`, `score`, fitted attributes end in an underscore.

    >>> decoder = Decoder("data/models/luna_tiny", adapt="probe")  # doctest: +SKIP
    >>> decoder.fit(epochs).score(later_epochs)  # doctest: +SKIP
    0.81

    Args:
        encoder: a loaded model or its folder; not changed.
        adapt: a word of `ADAPT`, see docs/transfer.md: "probe" leaves the network as it is and fits a logistic readout,
            "finetune" trains all weights with one.
        seed: of folds, weights, steps, and of who is spared.
        steps: optimiser steps at most, of a word that trains by gradient. learning_rate: its peak; the word's own if
            None.

    Attributes:
        classes_: `(class,)` conditions as they were given, sorted.
        channels_: names of the channels that it was fitted on; none where it was fitted on several montages.
        samples_: length of a window in samples of the encoder's rate.
        encoder_: the network as adapted, in the layout of its model.
        fitted_: what `evaluations/methods/adaptation.py` made of it.
        notes_: sentences on what was decided or is doubtful: what was resampled, which trials say when to stop, which
            channels the encoder cannot place or never saw.
    """

    classes_: np.ndarray
    channels_: list[str]
    samples_: int
    encoder_: Pretrained
    fitted_: Any
    notes_: list[str]

    def __init__(
        self, encoder: Pretrained | str | Path, adapt: str = "probe", seed: int = 0, steps: int = 100,
        learning_rate: float | None = None,
    ) -> None:  # fmt: skip
        adaptation.check(adapt)
        if steps < 1 or (learning_rate is not None and not learning_rate > 0):
            raise ValueError(f"steps={steps}, learning_rate={learning_rate}; expected one step or more, a rate above 0")
        self.encoder = encoder if isinstance(encoder, Pretrained) else load(encoder)
        self.adapt, self.seed, self.steps, self.learning_rate = adapt, seed, steps, learning_rate
        self._somebody = SOMEBODY

    def fit(
        self, X: Windows | mne.BaseEpochs | np.ndarray, y: Sequence[Any] | np.ndarray | None = None, *,
        channels: Sequence[str] | Channels | None = None, sfreq: float | None = None,
        people: Sequence[str] | None = None,
    ) -> Decoder:  # fmt: skip
        """Fit to labelled trials.

        What trains by gradient stops early by trials that are spared: of a fifth of the people where there are four or
        more, else the last fifth of each person's trials of each class; where a class has too few, all train and all
        steps are taken. `notes_` says which.

        Args:
            X: windows of shards (`corpus.trials(...)`), `mne.Epochs`, or `(trial, channel, time)` in SI units. Arrays
                and epochs of another rate than the encoder's are resampled.
            y: conditions, words or whole numbers; taken from the windows or the epochs if not given.
            channels: for an array: channel names as the 10-20 system writes them, or a channel table.
            sfreq: for an array: samples per second.
            people: whose each trial is; windows know it themselves, others are taken for one person's.

        Raises:
            ValueError: where labels are missing, of two types or of one class, an array lacks `channels` or `sfreq`,
                numbers cannot be in SI units, or the word cannot be applied (one person for "erase_subject", no linear
                layer for "lora").
        """
        labels = labels_of(X, y)
        trials = self._trials(X, channels, sfreq)
        labels_of(X, labels, len(trials))
        classes = np.unique(labels)
        if len(classes) < 2:
            raise ValueError(
                f"all trials have the label {classes.tolist()}; a decoder needs two classes or more, and there "
                f"{'is one trial' if len(labels) == 1 else f'are {len(labels)} trials'} of one"
            )
        names, samples = described(trials)
        who = self._people(X, people, len(trials), SOMEBODY)
        given = Given(trials, who, np.searchsorted(classes, labels), classes.tolist())
        self.notes_ = [*self._resampled(X, sfreq), *self._doubts(trials)]
        method = adaptation.method(self.adapt, self.encoder, self._tuning())
        setting: dict[str, float | None] = {"inverse_penalty": None}
        side = Side(np.arange(len(given)), NO_ROWS, NO_ROWS)
        if self.adapt in adaptation.TRAINED:
            fit, val, said = given.spared(self.seed)
            side = Side(fit, val, NO_ROWS)
            self.notes_.append(said)
            rate = self.learning_rate
            setting = {"learning_rate": method.settings[0]["learning_rate"] if rate is None else rate}
        self._keep(method.fit(given, side, setting, self.seed))
        self.classes_, self.samples_ = classes, samples
        shared = self.adapt in adaptation.SHARED_MONTAGE
        self.channels_ = list(given.signals().channels.name) if shared else names
        if self.adapt in ("finetune", "lora"):
            tuned = {"adapt": self.adapt, "trials": len(labels), "spared": len(side.val), "steps": self.steps}
            self.encoder_.card |= given.seen(self.encoder.card) | {"finetuned": {**tuned, "classes": classes.tolist()}}
        alone = sorted(set(who.tolist()))
        self._somebody = alone[0] if len(alone) == 1 else SOMEBODY
        return self

    def calibrate(
        self, X: Windows | mne.BaseEpochs | mne.io.BaseRaw | np.ndarray, *,
        channels: Sequence[str] | Channels | None = None, sfreq: float | None = None,
        people: Sequence[str] | None = None,
    ) -> Decoder:  # fmt: skip
        """Look at trials of a new person without labels, such as rest: for "euclidean", "riemannian", "statistics".

        Arrays without `people` are taken for one new person's, and so are those that are predicted afterwards. Without
        this, trials of people that it was not fitted on are aligned by themselves, all that are predicted together.

        Args:
            X, channels, sfreq, people: as in `fit`; an `mne.io.Raw` is cut into windows of the fitted length.

        Raises:
            ValueError: for a word that uses no unlabelled trials, or a decoder that was not fitted.
        """
        if self.adapt not in adaptation.ALIGNED:
            raise ValueError(
                f"adapt={self.adapt!r} uses no trials without labels; those that do: {', '.join(adaptation.ALIGNED)}"
            )
        given = self._asked(X, channels, sfreq, people, NEW)
        self.fitted_ = replace(self.fitted_, view=self.fitted_.view.knowing(given))
        if people is None and not isinstance(X, Windows):
            self._somebody = NEW
        return self

    def adapted(
        self, X: Windows | mne.BaseEpochs | np.ndarray, y: Sequence[Any] | np.ndarray | None = None, *,
        channels: Sequence[str] | Channels | None = None, sfreq: float | None = None,
    ) -> Decoder:  # fmt: skip
        """A decoder that has also learnt a few labelled trials of one new person; this one is not changed.

        A probe is fitted again with half of the weight on them, a network takes a few small steps, and with
        "subject_layer" the person gets an input layer, which alone is trained. Arguments as in `fit`.

        Raises:
            ValueError: for a condition that it was not fitted on, trials of several people, or a probe that was loaded.
        """
        other = copy(self)
        labels = labels_of(X, y)
        if self.adapt in adaptation.ALIGNED and self._somebody != NEW:
            other.calibrate(X, channels=channels, sfreq=sfreq)
        given = other._asked(X, channels, sfreq, None, NEW)
        labels_of(X, labels, len(given))
        strange = sorted(set(labels.tolist()) - set(self.classes_.tolist()))
        if strange:
            raise ValueError(f"conditions {strange} are none of {self.classes_.tolist()}; fit again with them")
        if len(set(given.people.tolist())) > 1:
            raise ValueError(f"trials of {len(set(given.people.tolist()))} people; adapt to one at a time")
        given.labels = np.searchsorted(self.classes_, labels)
        other._keep(other.fitted_.on(given).adapted(np.arange(len(given)), self.seed))
        if self.adapt in ("finetune", "lora"):
            other.encoder_.card |= given.seen(self.encoder_.card)
        other._somebody = NEW if not isinstance(X, Windows) else self._somebody
        return other

    def predict_proba(
        self, X: Windows | mne.BaseEpochs | mne.io.BaseRaw | np.ndarray, *,
        channels: Sequence[str] | Channels | None = None, sfreq: float | None = None,
        people: Sequence[str] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """`(trial, class)` probabilities; an `mne.io.Raw` is cut into windows of the fitted length.

        Raises:
            ValueError: where channels that it was fitted on are missing, windows have another length, or it was not
                fitted.
        """
        given = self._asked(X, channels, sfreq, people, self._somebody)
        return self.fitted_.on(given).predict_proba(np.arange(len(given)))

    def predict(
        self, X: Windows | mne.BaseEpochs | mne.io.BaseRaw | np.ndarray, *,
        channels: Sequence[str] | Channels | None = None, sfreq: float | None = None,
        people: Sequence[str] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """`(trial,)` conditions; arguments and errors as in `predict_proba`."""
        chances = self.predict_proba(X, channels=channels, sfreq=sfreq, people=people)
        return self.classes_[chances.argmax(1)]

    def score(
        self, X: Windows | mne.BaseEpochs | np.ndarray, y: Sequence[Any] | np.ndarray | None = None, *,
        channels: Sequence[str] | Channels | None = None, sfreq: float | None = None,
        people: Sequence[str] | None = None,
    ) -> float:  # fmt: skip
        """Balanced accuracy; a class that it was not fitted on counts as missed. Arguments as in `fit`."""
        predicted = self.predict(X, channels=channels, sfreq=sfreq, people=people)
        labels = labels_of(X, y, len(predicted))
        if labels.dtype.kind != self.classes_.dtype.kind:
            raise ValueError(
                f"labels such as {labels.tolist()[0]!r} for a decoder of {self.classes_.tolist()}; give them as in fit"
            )
        return float(balanced_accuracy(labels, predicted))

    def save(self, folder: str | Path) -> Path:
        """Write the adapted encoder and what belongs to it to a folder, in one step."""
        if not hasattr(self, "fitted_"):
            raise ValueError("this Decoder is not fitted; call fit first")
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        kept = adaptation.saved(self.fitted_)
        self.encoder_.save(part / "encoder")
        save_file({k: v.contiguous() for k, v in kept.arrays.items()}, part / "readout.safetensors")
        words = {
            "adapt": self.adapt, "seed": self.seed, "steps": self.steps, "learning_rate": self.learning_rate,
            "classes": self.classes_.tolist(), "channels": self.channels_, "samples": self.samples_,
            "somebody": self._somebody, "notes": self.notes_, "fitted": kept.described,
        }  # fmt: skip
        (part / "decoder.json").write_text(json.dumps(words, indent=1) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(part, folder)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Decoder:
        """Load a saved decoder; its `encoder` is the adapted one.

        Raises:
            FileNotFoundError: where there is none, or a file of it is missing.
            CheckpointError: where a file is damaged, or of an earlier version.
        """
        folder = Path(folder)
        for name in ("decoder.json", "readout.safetensors"):
            if not (folder / name).exists():
                raise FileNotFoundError(f"{folder} holds no decoder ({name} is missing); make one with Decoder.save")
        words = checkpoint.read_json(folder / "decoder.json")
        if "fitted" not in words:
            raise checkpoint.CheckpointError(f"{folder} is of an earlier version of brainfm; fit and save it again")
        decoder = cls(folder / "encoder", **{k: words[k] for k in ("adapt", "seed", "steps", "learning_rate")})
        decoder.encoder_ = decoder.encoder
        decoder.classes_, decoder.notes_ = np.array(words["classes"]), words["notes"]
        decoder.channels_, decoder.samples_ = words["channels"], words["samples"]
        decoder._somebody = words["somebody"]
        path = folder / "readout.safetensors"
        kept = adaptation.Saved(decoder.encoder, checkpoint.read_weights(path), words["fitted"])
        decoder.fitted_ = adaptation.restored(decoder.adapt, kept, Given.nothing(), str(path), decoder.seed)
        return decoder

    def _asked(
        self, X: Any, channels: Sequence[str] | Channels | None, sfreq: float | None, people: Sequence[str] | None,
        somebody: str,
    ) -> Given:  # fmt: skip
        """Trials without labels, for a decoder that is fitted."""
        if not hasattr(self, "fitted_"):
            raise ValueError("this Decoder is not fitted; call fit first")
        trials = self._trials(X, channels, sfreq, fitted=True)
        who = self._people(X, people, len(trials), somebody)
        return Given(trials, who, np.full(len(trials), -1), self.classes_.tolist(), self.channels_)

    def _keep(self, fitted: adaptation.AnyFitted) -> None:
        """Keep what was fitted as a saved one is kept, so that no trial stays in memory but a probe's encodings."""
        kept = adaptation.saved(fitted)
        self.encoder_ = kept.encoder
        self.fitted_ = adaptation.restored(self.adapt, kept, Given.nothing(), "the fitted decoder", self.seed)
        if isinstance(fitted, FittedProbe):
            self.fitted_ = replace(self.fitted_, source=fitted.source)

    def _people(self, X: Any, people: Sequence[str] | None, trials: int, somebody: str) -> np.ndarray:
        """`(trial,)` whose each is."""
        if people is None:
            return X.of("person") if isinstance(X, Windows) else np.full(trials, somebody)
        if len(people) != trials:
            raise ValueError(f"got {len(people)} names of people for {trials} trials; expected one each")
        return np.asarray(people).astype(str)

    def _tuning(self) -> adaptation.Tuning:
        return replace(adaptation.TUNING, steps=self.steps, validations=min(adaptation.TUNING.validations, self.steps))

    def _resampled(self, X: Any, sfreq: float | None) -> list[str]:
        """A sentence where trials were resampled."""
        own = float(X.info["sfreq"]) if hasattr(X, "info") else sfreq
        rate = self.encoder.facts.sfreq
        if own is None or isinstance(X, Windows) or own == rate:
            return []
        above = f"; they hold nothing above {own / 2:g} Hz" if own < rate else ""
        return [f"Trials of {own:g} Hz were resampled to the {rate:g} Hz that the encoder reads{above}."]

    def _doubts(self, trials: WindowDataset | ArrayDataset) -> list[str]:
        """What the encoder cannot know of the channels, also as a warning where it does not warn itself."""
        tables = [trials.channels] if isinstance(trials, ArrayDataset) else [r.channels for r in trials.windows.used]
        said = doubts(tables, self.encoder.facts)
        for text in said if self.encoder.batcher().expected is None else ():
            warnings.warn(text, InputWarning, stacklevel=3)
        return said

    def _check_length(self, samples: int) -> None:
        if samples != self.samples_:
            seconds, fitted = (n / (self.encoder.facts.sfreq or 1e3) for n in (samples, self.samples_))
            raise ValueError(f"got trials of {seconds:g} s; fitted on {fitted:g} s: cut them to that length")

    def _trials(
        self, X: Any, channels: Sequence[str] | Channels | None, sfreq: float | None, fitted: bool = False
    ) -> WindowDataset | ArrayDataset:
        """Anything that a user may give → a dataset of batches at the encoder's rate, in the fitted channels."""
        if isinstance(X, Windows):
            rates = {r.sfreq for r in X.recordings} - {self.encoder.facts.sfreq}
            if rates:
                raise ValueError(
                    f"windows of {sorted(rates)} Hz; the encoder reads {self.encoder.facts.sfreq:g} Hz: ingest the "
                    "dataset with that `sfreq_hz`"
                )
            if fitted and len(X):
                self._check_length(int(X.samples.max()))
            return WindowDataset(X, self.encoder.batcher())
        signal, table, sfreq = arrays(X, channels, sfreq, self.samples_ if fitted else None, self.encoder.facts.sfreq)
        if fitted and self.channels_:
            check_names(table, self.channels_)
            rows = [table.name.index(n) for n in self.channels_]
            signal, table = signal[:, rows], table.pick(rows)
        if fitted:
            self._check_length(signal.shape[-1])
        in_units(signal, table, ARTEFACT if fitted else 1.0)
        return ArrayDataset(signal, table, sfreq, self.encoder.batcher())
