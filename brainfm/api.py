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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

from brainfm import catalog
from brainfm.metrics import balanced_accuracy
from brainfm.objectives.supervised import Supervised
from brainfm.shards.read import Windows
from brainfm.shards.read import open_shards as open_shards
from brainfm.training import checkpoint, hub
from brainfm.training.batches import ArrayDataset, WindowDataset
from brainfm.training.checkpoint import Pretrained

if TYPE_CHECKING:
    import mne

    from brainfm.recording import Channels

ADAPT = ("probe", "finetune")


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
    """Decode conditions from windows of a recording, with a pretrained encoder under a small readout.

    Follows scikit-learn: `fit`, `predict`, `predict_proba`, `score`, fitted attributes end in an underscore.

    >>> decoder = Decoder("data/models/luna_tiny", adapt="probe")  # doctest: +SKIP
    >>> decoder.fit(epochs).score(later_epochs)  # doctest: +SKIP
    0.81

    Args:
        encoder: a loaded model or its folder.
        adapt: "probe" leaves the network as it is and fits a logistic readout; "finetune" trains all weights with it.
        seed: of folds, weights and steps.
        steps: optimiser steps of fine-tuning. learning_rate: its peak.

    Attributes:
        classes_: `(class,)` conditions, sorted.
        channels_: names of the channels that it was fitted on; none where it was fitted on several montages.
        samples_: length of a window in samples of the encoder's rate.
    """

    def __init__(
        self, encoder: Pretrained | str | Path, adapt: str = "probe", seed: int = 0, steps: int = 100,
        learning_rate: float = 3e-4,
    ) -> None:  # fmt: skip
        if adapt not in ADAPT:
            raise ValueError(f"adapt={adapt!r} is not known; {catalog.nearest(adapt, list(ADAPT))}")
        self.encoder = encoder if isinstance(encoder, Pretrained) else load(encoder)
        self.adapt, self.seed, self.steps, self.learning_rate = adapt, seed, steps, learning_rate
        self._head: Supervised | dict[str, torch.Tensor]

    def fit(
        self, X: Windows | mne.BaseEpochs | np.ndarray, y: Sequence[str] | None = None, *,
        channels: Sequence[str] | Channels | None = None, sfreq: float | None = None,
    ) -> Decoder:  # fmt: skip
        """Fit to labelled trials.

        Args:
            X: windows of shards (`corpus.trials(...)`), `mne.Epochs`, or `(trial, channel, time)` in SI units.
            y: conditions; taken from the windows or the epochs if not given.
            channels: for an array: channel names as the 10-20 system writes them, or a channel table.
            sfreq: for an array: samples per second.

        Raises:
            ValueError: where labels are missing, of one class, or an array lacks `channels` or `sfreq`.
        """
        labels = np.asarray(_labels(X) if y is None else y).astype(str)
        trials = self._trials(X, channels, sfreq)
        if len(labels) != len(trials):
            raise ValueError(f"got {len(labels)} labels for {len(trials)} trials; expected one each")
        self.classes_ = np.unique(labels)
        if len(self.classes_) < 2:
            raise ValueError(f"all trials have the label {self.classes_.tolist()}; a decoder needs two classes or more")
        self.channels_, self.samples_ = _described(trials)
        if self.adapt == "finetune":
            self.encoder, self._head = self._finetune(trials, np.searchsorted(self.classes_, labels))
        else:
            from brainfm.evaluations.protocol import fit_linear

            people = trials.windows.of("person") if isinstance(trials, WindowDataset) else np.full(len(labels), "one")
            fitted = fit_linear(self.encoder.pooled(trials), labels, people, self.seed)
            scale, linear = fitted[0], fitted[-1]
            parts = {"mean": scale.mean_, "scale": scale.scale_, "weight": linear.coef_, "bias": linear.intercept_}
            self._head = {k: torch.tensor(v, dtype=torch.float64) for k, v in parts.items()}
        return self

    def predict_proba(
        self, X: Windows | mne.BaseEpochs | mne.io.BaseRaw | np.ndarray, *,
        channels: Sequence[str] | Channels | None = None, sfreq: float | None = None,
    ) -> np.ndarray:  # fmt: skip
        """`(trial, class)` probabilities; an `mne.io.Raw` is cut into windows of the fitted length.

        Raises:
            ValueError: where channels that it was fitted on are missing, or it was not fitted.
        """
        if not hasattr(self, "classes_"):
            raise ValueError("this Decoder is not fitted; call fit first")
        trials = self._trials(X, channels, sfreq, fitted=True)
        features = torch.tensor(self.encoder.pooled(trials))
        if isinstance(self._head, Supervised):
            with torch.inference_mode():
                return self._head.readout(features).softmax(1).numpy()
        z = (features.double() - self._head["mean"]) / self._head["scale"]
        logits = z @ self._head["weight"].T + self._head["bias"]
        if logits.shape[1] == 1:
            logits = torch.cat((-logits, logits), dim=1) / 2
        return logits.softmax(1).numpy()

    def predict(
        self, X: Windows | mne.BaseEpochs | mne.io.BaseRaw | np.ndarray, *,
        channels: Sequence[str] | Channels | None = None, sfreq: float | None = None,
    ) -> np.ndarray:  # fmt: skip
        """`(trial,)` conditions; arguments and errors as in `predict_proba`."""
        chances = self.predict_proba(X, channels=channels, sfreq=sfreq)
        return self.classes_[chances.argmax(1)]

    def score(
        self, X: Windows | mne.BaseEpochs | np.ndarray, y: Sequence[str] | None = None, *,
        channels: Sequence[str] | Channels | None = None, sfreq: float | None = None,
    ) -> float:  # fmt: skip
        """Balanced accuracy; arguments as in `fit`."""
        labels = np.asarray(_labels(X) if y is None else y).astype(str)
        return float(balanced_accuracy(labels, self.predict(X, channels=channels, sfreq=sfreq)))

    def save(self, folder: str | Path) -> Path:
        """Write encoder and readout to a folder, in one step."""
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        self.encoder.save(part / "encoder")
        supervised = isinstance(self._head, Supervised)
        weights = self._head.state_dict() if isinstance(self._head, Supervised) else self._head
        save_file({k: v.contiguous() for k, v in weights.items()}, part / "readout.safetensors")
        described = {
            "adapt": self.adapt, "seed": self.seed, "steps": self.steps, "learning_rate": self.learning_rate,
            "classes": self.classes_.tolist(), "channels": self.channels_, "samples": self.samples_,
            "supervised": supervised,
        }  # fmt: skip
        (part / "decoder.json").write_text(json.dumps(described, indent=1) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(part, folder)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Decoder:
        """Load a saved decoder.

        Raises:
            FileNotFoundError: where there is none, or a file of it is missing.
            CheckpointError: where a file is damaged.
        """
        folder = Path(folder)
        for name in ("decoder.json", "readout.safetensors"):
            if not (folder / name).exists():
                raise FileNotFoundError(f"{folder} holds no decoder ({name} is missing); make one with Decoder.save")
        described = checkpoint.read_json(folder / "decoder.json")
        keep = {k: described[k] for k in ("adapt", "seed", "steps", "learning_rate")}
        decoder = cls(folder / "encoder", **keep)
        decoder.classes_ = np.array(described["classes"])
        decoder.channels_, decoder.samples_ = described["channels"], described["samples"]
        weights = checkpoint.read_weights(folder / "readout.safetensors")
        if described["supervised"]:
            decoder._head = Supervised(weights["readout.head.weight"].shape[1], len(decoder.classes_)).eval()
            checkpoint.fit(decoder._head, weights, str(folder / "readout.safetensors"))
        else:
            decoder._head = weights
        return decoder

    def _finetune(self, trials: WindowDataset | ArrayDataset, labels: np.ndarray) -> tuple[Pretrained, Supervised]:
        """Train a copy of the network with a linear head; no trial is spared to stop early."""
        from brainfm.training.finetuning import Labelled, Tuning, finetune

        tuned = self.encoder.copy()
        with torch.inference_mode(), checkpoint.evaluating(tuned.model):
            width = tuned.model.encode(trials.__getitems__([0])).pooled.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            head = Supervised(width, len(self.classes_))
        tuning = Tuning(self.steps, min(32, len(labels)), self.learning_rate)
        finetune(tuned.model, head, Labelled(trials, np.arange(len(labels)), labels), None, tuning, self.seed)
        tuned.model.eval()
        tuned.card["finetuned"] = {"trials": len(labels), "steps": self.steps, "classes": self.classes_.tolist()}
        return tuned, head.eval()

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
            return WindowDataset(X, self.encoder.batcher())
        signal, table, sfreq = arrays(X, channels, sfreq, self.samples_ if fitted else None, self.encoder.facts.sfreq)
        if fitted and self.channels_:
            missing = [n for n in self.channels_ if n not in table.name]
            if missing:
                raise ValueError(
                    f"{len(missing)} channels are missing: {', '.join(missing[:8])}; the decoder was fitted on "
                    f"{', '.join(self.channels_)}. Rename the recording's channels or fit again without them"
                )
            rows = [table.name.index(n) for n in self.channels_]
            signal, table = signal[:, rows], table.pick(rows)
        return ArrayDataset(signal, table, sfreq, self.encoder.batcher())


def _labels(X: Any) -> np.ndarray:
    if isinstance(X, Windows):
        return X.label
    if hasattr(X, "events") and hasattr(X, "event_id"):
        names = {code: name for name, code in X.event_id.items()}
        return np.array([names[code] for code in X.events[:, 2]])
    raise ValueError("an array has no labels; give y, one condition per trial")


def _described(trials: WindowDataset | ArrayDataset) -> tuple[list[str], int]:
    """Names of the channels (none for shards of several montages) and samples of a window."""
    if isinstance(trials, ArrayDataset):
        return list(trials.channels.name), trials.signal.shape[-1]
    tables = {tuple(r.channels.name) for r in trials.windows.recordings}
    return (list(tables.pop()) if len(tables) == 1 else []), int(trials.windows.samples.max())


def arrays(
    X: Any, channels: Sequence[str] | Channels | None, sfreq: float | None, samples: int | None, rate: float
) -> tuple[np.ndarray, Channels, float]:
    """An array, `mne.Epochs` or `mne.io.Raw` → `(trial, channel, time)` in SI units at `rate` Hz, and its channels.

    Args:
        X: the data. channels, sfreq: for an array. samples: window length at `rate`, for a Raw. rate: the encoder's.

    Raises:
        ValueError: where something that is needed is not given.
    """
    from brainfm.modalities import electrodes, filters
    from brainfm.recording import Channels

    if hasattr(X, "info"):
        table, picks, _ = electrodes.from_info(X.info)
        data, sfreq = X.get_data(picks=picks), float(X.info["sfreq"])
    elif isinstance(X, np.ndarray):
        if channels is None or sfreq is None:
            raise ValueError("an array needs `channels` (names) and `sfreq` (Hz); an mne.Epochs carries both")
        table = channels if isinstance(channels, Channels) else electrodes.named(list(channels))
        data = X
    else:
        raise ValueError(f"got a {type(X).__name__}; expected windows of shards, mne.Epochs, mne.io.Raw or an array")
    if data.shape[-2] != len(table):
        raise ValueError(f"got data of shape {data.shape} for {len(table)} channels; expected (trial, channel, time)")
    broken = [table.name[i] for i in range(len(table)) if not np.isfinite(data[..., i, :]).all()]
    if broken:
        named = ", ".join(broken[:5])
        raise ValueError(f"values that are not finite in {len(broken)} channels ({named}); interpolate or drop them")
    ratio = filters.rational(rate, sfreq)
    flat = data.reshape(-1, data.shape[-1])
    data = filters.resample(flat, ratio).reshape(*data.shape[:-1], -1)
    if data.ndim == 2:
        if samples is None:
            raise ValueError("a continuous recording has no trials to fit; cut it with mne.Epochs")
        if data.shape[1] < samples:
            raise ValueError(f"the recording has {data.shape[1]} samples at {rate:g} Hz; one window needs {samples}")
        n = data.shape[1] // samples
        data = data[:, : n * samples].reshape(len(table), n, samples).transpose(1, 0, 2)
    elif samples is not None and abs(data.shape[-1] - samples) <= 1:
        data = np.pad(data, ((0, 0), (0, 0), (0, 1)), mode="edge")[..., :samples]
    return data, table, rate


def finetune_subject(
    model: Path, shards: Path, subject: str, out: Path, tmin: float, tmax: float, test: float, adapt: str, seed: int
) -> dict[str, Any]:
    """Fit to a subject's earlier trials, score on the later ones, keep the decoder: behind `brainfm finetune`.

    The cut is in time, so that no test trial lies between training trials.
    """
    from brainfm.statistics import interval

    trials = open_shards(shards).subject(subject).trials(tmin, tmax)
    order = np.lexsort((trials.start, trials.of("session")))
    cut = round(len(order) * (1 - test))
    train_rows, test_rows = trials.take(order[:cut]), trials.take(order[cut:])
    decoder = Decoder(model, adapt, seed).fit(train_rows)
    predicted = decoder.predict(test_rows)
    true = test_rows.label.astype(str)
    score = float(balanced_accuracy(true, predicted))
    ci, over = interval(np.array([score]), true, predicted, balanced_accuracy, seed=seed)
    untrained = Decoder(decoder.encoder.untrained(seed), "probe", seed).fit(train_rows)
    decoder.save(out)
    print(f"decoder: {out}")
    classes = len(decoder.classes_)
    return {
        "task": f"{subject}, {adapt} on {len(train_rows)} trials", "model": model.name, "metric": "balanced accuracy",
        "score": score, "ci": list(ci), "ci_over": over, "chance": 1 / classes,
        "n_subjects": 1, "n_trials": len(test_rows), "simulated": any(r.simulated for r in trials.recordings),
        "baselines": {"untrained, probe": {"score": untrained.score(test_rows), "ci": None}},
    }  # fmt: skip
