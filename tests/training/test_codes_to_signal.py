"""Codes to signals: the decoder's windows at their places, and the error against the source in z-scores."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from brainfm import metrics
from brainfm.codebooks import braintokenizer
from brainfm.codebooks.braintokenizer import z_score
from brainfm.recording import Channels, Recording
from brainfm.shards.codes import StoredCodes, open_codes
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.stored import Stored
from brainfm.shards.write import write_shard
from brainfm.tokens import Facts
from brainfm.training import codes_to_signal
from brainfm.training.batches import Batcher
from brainfm.training.codes_to_signal import Decoded, Error
from brainfm.training.tokenizing import tokenize

SFREQ, PATCH = 64.0, 32
KINDS = ["eeg", "eeg", "eeg", "mag", "mag", "grad"]


@pytest.fixture(scope="module")
def model() -> braintokenizer.BrainTokenizer:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return braintokenizer.build(Facts(sfreq=SFREQ), **braintokenizer.SIZES["test"]).eval()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    random = np.random.default_rng(0)
    channels = Channels.make([f"E{i}" for i in range(6)], KINDS, random.normal(0, 0.1, (6, 3)))
    channels.bad[1] = True
    signal = random.normal(0, 1e-5, (6, 450)).cumsum(axis=1)
    signal[:, 96:160] = 0.0
    path = tmp_path_factory.mktemp("shards") / "made_up/a.h5"
    made = Recording("made_up", "a", "eeg", channels, sfreq=SFREQ, signal=signal)
    made.segments = np.array([[0, 300], [310, 450]])
    write_shard(path, [made], {})
    return open_shards(path).recordings[0]


def coded(model: braintokenizer.BrainTokenizer, source: Stored, folder: Path, overlap: float) -> StoredCodes:
    tokenize(model, open_shards(source.path), folder, 2.0, overlap=overlap)
    return open_codes(folder).recordings[0]


def windows_of(source: Stored, starts: np.ndarray) -> Windows:
    none = np.full(len(starts), "", dtype=object)
    return Windows((source,), np.zeros(len(starts), int), starts, np.full(len(starts), PATCH), none, none)


@pytest.mark.parametrize("overlap", [0.0, 0.25])
@pytest.mark.parametrize("rows", [1, 24, 1024])
def test_windows_come_to_their_places(
    model: braintokenizer.BrainTokenizer, source: Stored, tmp_path: Path, overlap: float, rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(codes_to_signal, "ROWS", rows)
    stored = coded(model, source, tmp_path, overlap)
    expected, times = np.zeros((6, 450)), np.zeros(450)
    batch = Batcher(patch=PATCH)(windows_of(source, stored.starts))
    with torch.no_grad():
        made = model.decode(torch.from_numpy(stored.all_codes().astype(np.int64)).flatten(2, 2), batch)
    for window, start in enumerate(stored.starts):
        expected[:, start : start + PATCH] += made[window, :, 0].numpy()
        times[start : start + PATCH] += 1
    decoded = Decoded(model, stored, source)
    whole = np.concatenate([decoded.read(a, min(a + 70, 450)) for a in range(0, 450, 70)], axis=1)
    np.testing.assert_allclose(whole, expected / np.maximum(times, 1), rtol=0, atol=1e-5)
    uncovered = np.zeros(450, bool)
    for a, b in decoded.gaps():
        uncovered[a:b] = True
    np.testing.assert_array_equal(uncovered, times == 0)
    assert uncovered[130:150].any()  # where there was no signal there is no code
    assert sum(e.rows for e in decoded.errors.values()) == 5 * len(stored.starts)  # each once; the bad channel never


def test_errors_are_those_of_the_metrics(
    model: braintokenizer.BrainTokenizer, source: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes_to_signal, "ROWS", 24)
    stored = coded(model, source, tmp_path, 0.0)
    decoded = Decoded(model, stored, source)
    made = decoded.read(0, 450)
    cut = model.windows(Batcher(patch=PATCH)(windows_of(source, stored.starts)))
    target = z_score(cut)[:, :, 0].numpy()
    for kind, rows in (("eeg", [0, 2]), ("mag", [3, 4]), ("grad", [5])):
        true = np.concatenate([target[w, rows] for w in range(len(stored.starts))]).T
        guess = np.concatenate([made[rows, a : a + PATCH] for a in stored.starts]).T
        figures = decoded.errors[kind].figures()
        assert figures["channel_windows"] == len(rows) * len(stored.starts)
        assert figures["pcc"] == pytest.approx(metrics.pearson(true, guess), abs=1e-5)
        share = ((true - guess) ** 2).sum() / (true**2).sum()
        assert figures["r2"] == pytest.approx(1 - share, abs=1e-5)
        assert figures["nrmse"] == pytest.approx(share**0.5, abs=1e-5)
    assert Error().figures() == {"channel_windows": 0, "pcc": None, "r2": None, "nrmse": None}


def test_a_perfect_decoder_gives_the_referenced_source_back(
    model: braintokenizer.BrainTokenizer, source: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = coded(model, source, tmp_path, 0.25)

    def perfect(self: Decoded, rows: np.ndarray) -> np.ndarray:
        cut = model.windows(Batcher(patch=PATCH)(windows_of(source, stored.starts[rows])))
        return z_score(cut)[:, :, 0].transpose(0, 1).numpy()

    monkeypatch.setattr(Decoded, "_decode", perfect)
    decoded = Decoded(model, stored, source, scaled=True)
    made, signal = decoded.read(0, 450), source.signal(0, 450)
    for figures in (e.figures() for e in decoded.errors.values()):
        assert figures["pcc"] == pytest.approx(1.0)
        assert figures["r2"] == pytest.approx(1.0)
    referenced = signal.copy()
    for rows in ([0, 2], [3, 4]):  # the average of the good channels of a kind; one channel has no average
        referenced[rows] -= signal[rows].mean(axis=0)
    referenced[1] = 0.0
    for a in stored.starts:
        np.testing.assert_allclose(made[:, a : a + PATCH], referenced[:, a : a + PATCH], rtol=0, atol=2e-9)
    with pytest.raises(ValueError, match="no scale"):
        Decoded(model, stored, None, scaled=True)


def test_codes_of_another_shape_are_refused(
    model: braintokenizer.BrainTokenizer, source: Stored, tmp_path: Path
) -> None:
    stored = coded(copy.deepcopy(model), source, tmp_path, 0.0)
    other = braintokenizer.build(Facts(sfreq=SFREQ), **{**braintokenizer.SIZES["test"], "sources": 2}).eval()
    with pytest.raises(ValueError, match=r"codes \(source, token, depth\) \(3, 4, 2\)"):
        Decoded(other, stored)
