"""What a user gives a `Decoder`: arrays, epochs, a raw recording or windows of shards, in the form that modes of
adaptation read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from brainfm.evaluations import few_shot, protocol
from brainfm.evaluations.methods.trials import Signals
from brainfm.modalities import electrodes, filters, units
from brainfm.recording import NO_LABEL, TYPICAL, Channels
from brainfm.shards.read import Windows
from brainfm.shards.twins import merged
from brainfm.tokens import Facts
from brainfm.training.batches import ArrayDataset, Batcher, WindowDataset
from brainfm.training.checkpoint import Pretrained
from brainfm.training.finetuning import Tokenized

#: Types of the words that numpy makes of whole numbers and of others where an array mixes them with words. Numbers do
#: not fill them: where a word does, it may be what made the array so wide.
NUMBERS_AS_WORDS = (np.dtype("<U21"), np.dtype("<U32"))
#: What to do about an array in another unit.
MULTIPLY = "multiply an array by {factor} (`scale={factor}` in brainfm.sklearn), or set the unit of the recording"
#: Kinds of channels whose place their names or files can tell.
PLACED_BY_NAME = {"eeg", "ecog", "seeg", "mag", "grad", "axial"}
#: Trials that are predicted may lie so many times farther out than those of a fit: a few of them may be all artefact.
ARTEFACT = 10.0
#: Whose trials an array's are where nobody is named.
SOMEBODY = "one"
#: Share of the trials, or of the people where there are `FEW` or more, that is spared to stop early.
SPARED, FEW = 0.2, 4


class Given:
    """Trials of one or more people; the counterpart of `evaluations.trials.Trials` for data that may lack labels.

    Args:
        trials: all of them as batches. people: `(trial,)` whose each is.
        labels: `(trial,)` class numbers; -1 where they are to be predicted. classes: names of the classes.
        names: channels that are read where channels must be shared; those of the first call of `signals` if empty.
    """

    def __init__(
        self, trials: WindowDataset | ArrayDataset, people: np.ndarray, labels: np.ndarray, classes: Sequence[Any],
        names: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.trials, self.people, self.labels = trials, people, labels
        self.classes, self.names = [str(c) for c in classes], list(names)
        self._signals: Signals | None = None
        self._features: dict[int, tuple[Pretrained, np.ndarray]] = {}
        self._batches: dict[int, tuple[Pretrained, Any]] = {}

    @classmethod
    def nothing(cls) -> Given:
        """No trial: what a decoder holds between predictions."""
        trials = ArrayDataset(np.zeros((0, 0, 0)), Channels.make([], "eeg"), 0.0, Batcher())
        return cls(trials, np.zeros(0, str), np.zeros(0, np.int64), [])

    def __len__(self) -> int:
        return len(self.trials)

    def signals(self) -> Signals:
        """Windows of the shared channels in typical amplitudes, cut to the shortest; made once.

        Raises:
            ValueError: for recordings that lack a channel, or share none.
        """
        if self._signals is None:
            if isinstance(self.trials, ArrayDataset):
                table, sfreq, values = self.trials.channels, self.trials.sfreq, self.trials.signal
            else:
                table, sfreq, values = _shared(self.trials.windows, self.names)
            typical = np.array([TYPICAL[kind] for kind in table.kind])[:, None]
            note = f"The {len(table)} channels that all trials have."
            self._signals = Signals((values / typical).astype(np.float32), sfreq, table, note)
        return self._signals

    def batches(self, model: Pretrained) -> Any:
        """All trials as batches; codes of a frozen tokenizer are made once."""
        if id(model) not in self._batches:
            made = Tokenized(model.model, self.trials) if Tokenized.fits(model.model) else self.trials
            self._batches[id(model)] = (model, made)
        return self._batches[id(model)][1]

    def features(self, model: Pretrained) -> np.ndarray:
        """`(trial, feature)` pooled encodings; made once."""
        if id(model) not in self._features:
            self._features[id(model)] = (model, model.pooled(self.trials))
        return self._features[id(model)][1]

    def order(self) -> np.ndarray:
        """Row numbers in order of time: `protocol.rows_in_time` for windows, as given for arrays."""
        if isinstance(self.trials, ArrayDataset):
            return np.arange(len(self))
        return protocol.rows_in_time(self.trials.windows)

    def spared(self, seed: int) -> tuple[np.ndarray, np.ndarray, str]:
        """Rows to train on, rows that say when to stop, and a sentence on them.

        People are spared where there are `FEW` or more, else each person's last trials of each class. Each class must
        train with four trials or more and validate with two; else nothing is spared.
        """
        rows, names = self.order(), np.unique(self.people)
        if len(names) >= FEW:
            drawn = np.random.default_rng(seed).permutation(names)[: max(1, round(SPARED * len(names)))]
            out = np.isin(self.people, drawn)
            if self._enough(out):
                who = ", ".join(drawn[:3].tolist())
                said = (
                    f"{int(out.sum())} of {len(self)} trials, those of {len(drawn)} people ({who}), say when to stop."
                )
                return np.flatnonzero(~out), np.flatnonzero(out), said
        out = np.zeros(len(self), bool)
        for name in names:
            for label in np.unique(self.labels):
                own = rows[(self.people[rows] == name) & (self.labels[rows] == label)]
                out[own[len(own) - round(SPARED * len(own)) :]] = True
        if not self._enough(out):
            return np.arange(len(self)), np.zeros(0, np.int64), (
                f"{len(self)} trials are too few to spare some of each class: all train, and all steps are taken."
            )  # fmt: skip
        said = f"{int(out.sum())} of {len(self)} trials, the last of each class, say when to stop."
        return np.flatnonzero(~out), np.flatnonzero(out), said

    def seen(self, card: dict[str, Any]) -> dict[str, Any]:
        """Entries of a model's card after its network was trained on these trials: whom and what it saw then too.

        Whom and what the card says it was trained on before is kept. Evaluations refuse to score these people, as they
        do those of pretraining, and the audit looks at these seconds too.
        """
        people, windows = card.get("subjects") or {}, card.get("windows") or {}
        everybody = sorted({*people.get("finetuned", []), *self.people.tolist()})
        entries: dict[str, Any] = {"subjects": {**people, "finetuned": everybody}}
        if isinstance(self.trials, ArrayDataset):
            return entries
        spans = dict(windows.get("finetuned", {}))
        for name, own in self.trials.windows.intervals().items():
            spans[name] = merged(np.array([*spans.get(name, []), *own])).tolist()
        sums = {**(card.get("checksums") or {}), **{r.id: r.checksum for r in self.trials.windows.used}}
        return {**entries, "windows": {**windows, "finetuned": spans}, "checksums": sums}

    def _enough(self, out: np.ndarray) -> bool:
        return all(
            np.sum(out & (self.labels == c)) >= 2 and np.sum(~out & (self.labels == c)) >= 4
            for c in np.unique(self.labels)
        )


def _shared(windows: Windows, names: Sequence[str]) -> tuple[Channels, float, np.ndarray]:
    """Table, rate and windows `(window, channel, time)` in SI units of the channels `names`, or of all shared.

    Raises:
        ValueError: as `Given.signals`.
    """
    used = windows.used
    first = used[0].channels
    if not used[0].sfreq:
        raise ValueError(
            f"{used[0].id} has spikes and no sampled signal; take adapt='probe', 'statistics' or 'finetune'"
        )
    if not names:
        good = [{n for n, bad in zip(r.channels.name, r.channels.bad, strict=True) if not bad} for r in used]
        names = [n for n in first.name if n in set.intersection(*good)]
        if not names:
            raise ValueError(
                f"{len(used)} recordings share no good channel ({', '.join(first.name[:4])} ... in {used[0].id}); "
                "an adapt word that reads shared channels needs some: take 'probe', 'statistics' or 'finetune'"
            )
    samples = int(windows.samples.min())
    values = np.zeros((len(windows), len(names), samples), np.float32)
    for r in np.unique(windows.recording):
        stored = windows.recordings[r]
        check_names(stored.channels, names, stored.id)
        own = [stored.channels.name.index(n) for n in names]
        for row in np.flatnonzero(windows.recording == r):
            start = int(windows.start[row])
            values[row] = stored.signal(start, start + samples)[own]
    return first.pick([first.name.index(n) for n in names]), used[0].sfreq, values


def earlier_and_later(windows: Windows, later: float, by_recording: bool = False) -> tuple[Windows, Windows, list[str]]:
    """Cut in time: windows to fit, the last share `later` to score, and sentences on what was done and left out.

    The share is of all, or of each recording by itself; of each class where that leaves one on one side alone, as of
    blocks. Runs follow each other as in `protocol.rows_in_time`. Windows that `few_shot.sharing` finds are left out.

    Raises:
        ValueError: where a class is on one side alone all the same: chance would not be one over their number.
    """
    order = protocol.rows_in_time(windows)
    runs = [order[windows.recording[order] == r] for r in np.unique(windows.recording)] if by_recording else [order]
    fit, held, said = _cut(windows, runs, later)
    if alone := _on_one_side(windows, fit, held):
        runs = [run[windows.label[run] == label] for run in runs for label in np.unique(windows.label[run])]
        fit, held, said = _cut(windows, runs, later)
        said.insert(0, f"One cut in time leaves {alone} on one side alone: the last trials of each class are scored.")
    if alone := _on_one_side(windows, fit, held):
        raise ValueError(
            f"{alone} of {len(windows)} trials: no cut in time with a share of {later:g} to score leaves some on both "
            "sides; give more trials, or another share"
        )
    return windows.take(fit), windows.take(held), said


def _cut(windows: Windows, runs: Sequence[np.ndarray], later: float) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rows to fit, the last share of each of the runs to score, and a sentence on rows that are left out."""
    cut = [np.split(run, [round(len(run) * (1 - later))]) for run in runs]
    fit, held = (np.concatenate(sides) for sides in zip(*cut, strict=True))
    near = few_shot.sharing(windows, np.isin(np.arange(len(windows)), held))[fit]
    said = f"{int(near.sum())} trials before the cut share raw samples with tested ones and are left out."
    return fit[~near], held, [said] if near.any() else []


def _on_one_side(windows: Windows, fit: np.ndarray, held: np.ndarray) -> str:
    """Names of the classes that are not both to fit and to score; "" where there is none."""
    both = set(windows.label[fit].tolist()) & set(windows.label[held].tolist())
    return ", ".join(repr(str(label)) for label in np.unique(windows.label) if label not in both)


def met(person: str, card: dict[str, Any]) -> list[str]:
    """A sentence where a model's card says that it was pretrained on the person.

    Raises:
        ValueError: where it was trained further on labelled trials of theirs, which a score would be taken on.
    """
    if person in (card.get("subjects") or {}).get("finetuned", []):
        raise ValueError(
            f"{person} has taught this model labelled trials already (`finetuned` in its card), so that a score on "
            "others of them would mean nothing; give the model as it was before"
        )
    if person not in protocol.seen_people(card):
        return []
    return [f"{person} was in this model's pretraining: the score is not one of a person that it never saw."]


def check_names(table: Channels, names: Sequence[str], whose: str = "") -> None:
    """Raise ValueError where channels that a decoder was fitted on are missing."""
    missing = [n for n in names if n not in table.name]
    if missing:
        where = f"{whose}: " if whose else ""
        raise ValueError(
            f"{where}{len(missing)} channels are missing: {', '.join(missing[:8])}; the decoder was fitted on "
            f"{', '.join(names)}. Rename the recording's channels or fit again without them"
        )


def labels_of(X: Any, y: Any, trials: int | None = None) -> np.ndarray:
    """`(trial,)` labels as one type: strings, booleans or whole numbers.

    Args:
        X: what carries labels itself, where y is None: windows of shards or `mne.Epochs`.
        y: one label per trial. trials: how many there are.

    Raises:
        ValueError: where there are none, some are missing (None, NaN, "", "n/a") or infinite, or they are of two types.
    """
    if y is None:
        y = _carried(X)
    values = y.tolist() if hasattr(y, "tolist") else list(y)
    by_numpy = any(getattr(y, "dtype", None) == d and max(map(len, values)) < d.itemsize // 4 for d in NUMBERS_AS_WORDS)
    if trials is not None and len(values) != trials:
        raise ValueError(f"got {len(values)} labels for {trials} trials; expected one each")
    gone = [i for i, v in enumerate(values) if v is None or str(v).lower() in NO_LABEL]
    if gone:
        where = ", ".join(map(str, gone[:5]))
        raise ValueError(
            f"{len(gone)} of {len(values)} labels are missing (trials {where}); leave these trials out, labels must be "
            "words or whole numbers"
        )
    types = {"numbers" if by_numpy and _numeral(v) else _type(v) for v in values}
    if len(types) > 1:
        raise ValueError(
            f"labels of two types ({' and '.join(sorted(types))}), the first {values[0]!r}; give words or numbers "
            "throughout"
        )
    out = np.array(values)
    if out.dtype.kind == "f":
        if not np.isfinite(out).all():
            raise ValueError(f"{int(np.sum(~np.isfinite(out)))} of {len(out)} labels are infinite; leave these out")
        if not np.array_equal(out, np.round(out)):
            raise ValueError(f"labels such as {values[0]!r} are measures and not classes; a Decoder needs conditions")
        out = out.astype(np.int64)
    return out if out.dtype.kind in "iub" else out.astype(str)


def _type(value: Any) -> str:
    if isinstance(value, (str, bytes)):
        return "words"
    return "booleans" if isinstance(value, (bool, np.bool_)) else "numbers"


def _numeral(word: str) -> bool:
    """Whether a word is how numpy writes a number."""
    return re.fullmatch(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?", word) is not None


def _carried(X: Any) -> np.ndarray:
    if isinstance(X, Windows):
        return X.label
    if hasattr(X, "events") and hasattr(X, "event_id"):
        names = {code: name for name, code in X.event_id.items()}
        return np.array([names[code] for code in X.events[:, 2]])
    raise ValueError("an array has no labels; give y, one condition per trial")


def described(trials: WindowDataset | ArrayDataset) -> tuple[list[str], int]:
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
        ValueError: where something that is needed is not given, or there is no sample.
    """
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
    if data.ndim < 2 or data.shape[-2] != len(table):
        raise ValueError(f"got data of shape {data.shape} for {len(table)} channels; expected (trial, channel, time)")
    if not data.size:
        raise ValueError(f"got data of shape {data.shape}; expected a trial and a sample at least")
    sfreq = hertz(sfreq)
    broken = [table.name[i] for i in range(len(table)) if not np.isfinite(data[..., i, :]).all()]
    if broken:
        named = ", ".join(broken[:5])
        raise ValueError(f"values that are not finite in {len(broken)} channels ({named}); interpolate or drop them")
    if not rate:
        raise ValueError("this encoder reads spikes, which an array of samples has not; give windows of shards")
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


def hertz(sfreq: Any) -> float:
    """A number of samples per second.

    Raises:
        ValueError: for what is none.
    """
    if not (isinstance(sfreq, (int, float, np.number)) and math.isfinite(sfreq) and sfreq > 0):
        raise ValueError(f"sfreq={sfreq!r}; expected samples per second, above 0")
    return float(sfreq)


def in_units(signal: np.ndarray, table: Channels, beyond: float = 1.0) -> None:
    """Raise ValueError for trials `(trial, channel, time)` that cannot be in SI units, see `units.implausible`."""
    if said := units.implausible(signal, table, MULTIPLY, beyond):
        raise ValueError(f"the trials have a {said}")


def doubts(tables: Sequence[Channels], facts: Facts) -> list[str]:
    """What a model that was trained on `facts` cannot know of these montages, in sentences."""
    said = []
    for table in {tuple(t.name): t for t in tables}.values():
        lost = [n for n, at in zip(table.name, table.position, strict=True) if not np.isfinite(at).all()]
        if lost and set(table.kind) <= PLACED_BY_NAME:
            said.append(
                f"{len(lost)} of {len(table)} channels have no position ({', '.join(lost[:4])}): a model that tells "
                "channels apart by their place cannot tell these. Give 10-20 names, a channel table or a montage."
            )
        strange = sorted(set(table.kind) - set(facts.kinds))
        if facts.kinds and strange:
            said.append(
                f"Channels of kind {', '.join(strange)}; the encoder was trained on {', '.join(facts.kinds)} and never "
                "saw such: expect poor encodings."
            )
    return list(dict.fromkeys(said))
