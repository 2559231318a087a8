"""Code shards: what was written is read, times are the source's, and a resumed run leaves the same bytes."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from brainfm.codebooks import braintokenizer
from brainfm.models import brainomni
from brainfm.recording import Channels, Recording
from brainfm.shards.codes import Coded, Tokenizer, open_codes, write_codes
from brainfm.shards.read import open_shards
from brainfm.shards.schema import ShardError
from brainfm.shards.write import write_shard
from brainfm.tokens import Facts
from brainfm.training.batches import Batcher
from brainfm.training.codes import CodeDataset, tokenize, tokenizer_hash

SFREQ, PATCH = 64.0, 32
#: Two stretches of 9 and 4 whole windows; the second starts off the grid.
SEGMENTS = np.array([[0, 300], [310, 450]])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("shards") / "made_up"
    random = np.random.default_rng(0)
    for subject, channels in (("a", 4), ("b", 6)):
        recordings = [
            Recording(
                dataset="made_up", subject=subject, modality="eeg", session=session, sfreq=SFREQ, segments=SEGMENTS,
                signal=random.normal(0, 1e-5, (channels, 450)).cumsum(axis=1), device="cap",
                simulated=True,
                channels=Channels.make([f"E{i}" for i in range(channels)], "eeg", random.normal(0, 0.1, (channels, 3))),
            )
            for session in ("1", "2")
        ]  # fmt: skip
        write_shard(folder / f"{subject}.h5", recordings, {"licence": "CC0-1.0", "citation": "nobody"})
    split = {f"made_up/{s}/{session}/": side for s, side in (("a", "train"), ("b", "test")) for session in "12"}
    (folder / "split.json").write_text(json.dumps({"recordings": split}))
    return folder


@pytest.fixture(scope="module")
def model() -> braintokenizer.BrainTokenizer:
    torch.manual_seed(0)
    model = braintokenizer.build(Facts(sfreq=SFREQ), **braintokenizer.SIZES["test"])
    return model.train()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("**/*")) if p.is_file()}


def test_codes_are_those_of_the_signal(shards: Path, model: braintokenizer.BrainTokenizer, tmp_path: Path) -> None:
    corpus = open_shards(shards)
    found = tokenize(model, corpus, tmp_path / "tok", window_s=2.0, batch_size=3)
    assert model.training
    assert found["windows"] == 4 * (9 + 4)
    assert found["shards_written"] == 2
    assert (
        found["bits_per_second"] == 2 * 3 * model.tokens_per_window * 2 * 4
    )  # windows/s, sources, tokens, depth, bits
    assert found["compression"] == pytest.approx(5 * SFREQ * 16 / found["bits_per_second"])
    assert all(1.0 <= p <= 16.0 for p in found["perplexity"])
    codes = open_codes(tmp_path / "tok")
    assert len(codes) == 4
    assert codes.people == ["made_up/a", "made_up/b"]
    windows = codes.where(split="train").windows(4, 2)
    assert set(windows.of("person")) == {"made_up/a"}
    batch = CodeDataset(windows).__getitems__(list(range(len(windows))))
    source = {r.id: r for r in corpus.recordings}
    signals = Batcher(patch=PATCH)(replace(windows, recordings=tuple(source[r.id] for r in windows.recordings)))
    model.eval()
    torch.testing.assert_close(batch.values.unflatten(1, batch.grid), model.codes(signals), rtol=0, atol=0)
    model.train()
    assert batch.time[0, 1] == PATCH / model.tokens_per_window / SFREQ


def test_windows_never_cross_a_break_and_keep_the_seconds(
    shards: Path, model: braintokenizer.BrainTokenizer, tmp_path: Path
) -> None:
    tokenize(model, open_shards(shards), tmp_path / "tok", window_s=1.0)
    corpus = open_codes(tmp_path / "tok" / "made_up" / "a.h5").where(session="1")
    stored = corpus.recordings[0]
    assert (stored.id, stored.split, stored.tokenizer) == ("made_up/a/1/", "train", "tok")
    assert stored.source_checksum == open_shards(shards / "a.h5").recordings[0].checksum
    assert stored.starts.tolist() == [*range(0, 288, 32), *range(310, 438, 32)]
    windows = corpus.windows(6)
    assert windows.start.tolist() == [0, 310]
    assert windows.samples.tolist() == [6 * PATCH, 4 * PATCH]
    assert windows.intervals() == {"made_up/a/1/": [[0.0, 3.0], [310 / SFREQ, 438 / SFREQ]]}
    batch = CodeDataset(windows, {"made_up/a": 5})[1]
    assert batch.mask.all()
    both = CodeDataset(windows, {"made_up/a": 5}).__getitems__([0, 1])
    assert both.aligned["subject"].tolist() == [5, 5]
    assert both.mask.unflatten(1, both.grid).sum(dim=2)[:, 0].tolist() == [6 * 4, 4 * 4]
    with pytest.raises(ValueError, match="in a row"):
        stored.codes(256, 3 * PATCH)
    omni = brainomni.build(Facts(), copy.deepcopy(model), **brainomni.SIZES["test"]).eval()
    assert omni.encode(both).pooled.isfinite().all()


def test_a_resumed_run_leaves_the_same_bytes(
    shards: Path, model: braintokenizer.BrainTokenizer, tmp_path: Path
) -> None:
    corpus = open_shards(shards)
    first = tokenize(model, corpus, tmp_path / "tok", window_s=2.0)
    whole = bytes_of(tmp_path / "tok")
    assert sorted(whole) == ["made_up/a.h5", "made_up/b.h5", "made_up/split.json"]
    stamp = (tmp_path / "tok/made_up/a.h5").stat().st_mtime_ns
    (tmp_path / "tok/made_up/b.h5").write_bytes(whole["made_up/b.h5"][:-100])  # as a crash of the disk would leave it
    again = tokenize(model, corpus, tmp_path / "tok", window_s=2.0)
    assert bytes_of(tmp_path / "tok") == whole
    assert (tmp_path / "tok/made_up/a.h5").stat().st_mtime_ns == stamp
    assert (again["shards_written"], again["shards_kept"]) == (1, 1)
    assert again["perplexity"] == first["perplexity"]


def test_another_tokenizer_or_source_is_noticed(
    shards: Path, model: braintokenizer.BrainTokenizer, tmp_path: Path
) -> None:
    corpus = open_shards(shards / "a.h5")
    tokenize(model, corpus, tmp_path / "tok", window_s=1.0)
    torch.manual_seed(1)
    other = braintokenizer.build(Facts(sfreq=SFREQ), **braintokenizer.SIZES["test"])
    assert tokenizer_hash(other) != tokenizer_hash(model)
    assert tokenize(other, corpus, tmp_path / "tok", window_s=1.0)["shards_written"] == 1
    assert tokenize(other, corpus, tmp_path / "tok", window_s=1.0)["shards_written"] == 0
    changed = replace(corpus, recordings=tuple(replace(r, checksum="other") for r in corpus.recordings))
    assert tokenize(other, changed, tmp_path / "tok", window_s=1.0)["shards_written"] == 1
    with pytest.raises(ValueError, match="samples per second"):
        tokenize(braintokenizer.build(Facts(sfreq=100.0), **braintokenizer.SIZES["test"]), corpus, tmp_path, 1.0)


def test_a_failed_write_leaves_nothing(shards: Path, tmp_path: Path) -> None:
    stored = open_shards(shards / "a.h5").recordings[0]
    tokenizer = Tokenizer("tok", "0", PATCH, 16, 1.0)
    coded = Coded(stored, np.arange(2) * PATCH, np.zeros((2, 3, 4, 2), np.uint16))
    with pytest.raises(ValueError, match="exists"):
        write_codes(tmp_path / "a.h5", [coded, coded], tokenizer)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="65536"):
        write_codes(tmp_path / "a.h5", [coded], replace(tokenizer, codes_per_depth=70_000))


def test_foreign_files_are_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="brainfm tokenize"):
        open_codes(tmp_path)
    with pytest.raises(ShardError, match="brainfm-codes"):
        open_codes(shards / "a.h5")
    (tmp_path / "x.h5").write_bytes(b"nothing")
    with pytest.raises(ShardError, match="not a readable"):
        open_codes(tmp_path)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["schema"] = "brainfm-codes"
    with pytest.raises(ShardError, match="version"):
        open_codes(tmp_path)
