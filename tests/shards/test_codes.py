"""Code shards: what was written is read, times are the source's, and a resumed run leaves the same bytes."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from brainfm.codebooks import braintokenizer
from brainfm.models import brainomni
from brainfm.recording import Channels, Recording
from brainfm.shards.codes import Coded, Tokenizer, open_codes, summary, write_codes
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.schema import ShardError
from brainfm.shards.write import write_shard
from brainfm.tokens import Facts
from brainfm.training.batches import Batcher
from brainfm.training.checkpoint import Pretrained
from brainfm.training.codes import CodeDataset, check_codes, tokenizer_hash
from brainfm.training.runs import train_and_save
from brainfm.training.tokenizing import tokenize

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
    with_features = tokenize(other, corpus, tmp_path / "tok", window_s=1.0, features="float16")
    assert with_features["shards_written"] == 1
    assert tokenize(other, corpus, tmp_path / "tok", window_s=1.0, overlap=0.25)["shards_written"] == 1
    with pytest.raises(ValueError, match="tokenizer"):
        check_codes(open_codes(tmp_path / "tok"), model)
    with pytest.raises(ValueError, match=r"overlap by 0.25, .* by 0; set `overlap: 0.25`"):
        check_codes(open_codes(tmp_path / "tok"), other, 0.0)
    check_codes(open_codes(tmp_path / "tok"), other, 0.25)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 0.0), ("float16", 2.0**-10)])
def test_features_are_those_of_the_codes(
    shards: Path, model: braintokenizer.BrainTokenizer, tmp_path: Path, dtype: str, bound: float
) -> None:
    corpus = open_shards(shards / "b.h5")
    tokenize(model, corpus, tmp_path / "tok", window_s=2.0, features=dtype)
    stored = open_codes(tmp_path / "tok").recordings[0]
    assert stored.features_type == dtype
    window = Windows(
        corpus.recordings, np.zeros(1, int), np.array([32]), np.array([96]), *(np.array([""], object) for _ in "ab")
    )
    with torch.no_grad():
        sources = copy.deepcopy(model).eval().sources_of(Batcher(patch=PATCH)(window))
    exact = sources.features.unflatten(2, (3, -1))[0].swapaxes(0, 1).numpy()
    found = stored.features(32, 96)
    assert found.shape == (3, 3, 4, 16)
    np.testing.assert_allclose(found, exact, rtol=0, atol=bound * max(1.0, np.abs(exact).max()) + 1e-6)
    assert stored.is_whole()
    data = bytearray(stored.path.read_bytes())
    data[stored.arrays["features"].offset + 5] ^= 1
    stored.path.write_bytes(data)
    assert not open_codes(tmp_path / "tok").recordings[0].is_whole()
    assert tokenize(model, corpus, tmp_path / "tok", window_s=2.0, features=dtype)["shards_written"] == 1
    plain = tokenize(model, corpus, tmp_path / "plain", window_s=2.0)
    assert plain["windows"] == 2 * 13
    with pytest.raises(ValueError, match="--features"):
        open_codes(tmp_path / "plain").recordings[0].features(32, 96)


def test_codes_say_what_they_cost(shards: Path, model: braintokenizer.BrainTokenizer, tmp_path: Path) -> None:
    found = tokenize(model, open_shards(shards), tmp_path / "tok", window_s=2.0)
    codes = open_codes(tmp_path / "tok").recordings
    bits = 2 * 3 * 4 * 2 * 4  # windows per second, sources, tokens, depths, bits of a code
    assert {r.bits_per_second for r in codes} == {bits}
    assert [r.compression for r in codes] == [16 * n * SFREQ / bits for n in (4, 4, 6, 6)]
    (said,) = summary(codes)
    assert (said["windows"], said["recordings"], said["codes_per_depth"]) == (52, 4, 16)
    count = np.bincount(np.concatenate([r.all_codes()[..., 1].ravel() for r in codes]), minlength=16)
    share = count[count > 0] / count.sum()
    assert found["perplexity"][1] == pytest.approx(np.exp(-np.sum(share * np.log(share))))
    half = tokenize(model, open_shards(shards), tmp_path / "half", window_s=2.0, overlap=0.5)
    assert half["bits_per_second"] == 2 * bits
    assert half["windows"] == 4 * (17 + 7)


def test_codes_with_overlap_are_those_that_the_second_stage_makes_of_a_signal(
    shards: Path, model: braintokenizer.BrainTokenizer, tmp_path: Path
) -> None:
    corpus = open_shards(shards)
    tokenize(model, corpus, tmp_path / "tok", window_s=1.0, batch_size=2, overlap=0.25)
    codes = open_codes(tmp_path / "tok")
    stored = codes.recordings[0]
    stride = 24
    assert stored.stride == stride
    assert stored.starts.tolist() == [*range(0, 300 - PATCH + 1, stride), *range(310, 450 - PATCH + 1, stride)]
    windows = codes.windows(5)
    whole = windows.take(windows.samples == 4 * stride + PATCH)  # 128 samples: four patches, and no window cut short
    assert len(whole) == 4 * 3
    assert stored.codes(310, 4 * stride + PATCH).shape == (5, 3, 4, 2)
    with pytest.raises(ValueError, match="every 24 in a row"):
        stored.codes(32, PATCH)
    omni = brainomni.build(Facts(), copy.deepcopy(model), **{**brainomni.SIZES["test"], "overlap": 0.25}).eval()
    source = {r.id: r for r in corpus.recordings}
    signals = Batcher(patch=PATCH)(replace(whole, recordings=tuple(source[r.id] for r in whole.recordings)))
    batch = CodeDataset(whole).__getitems__(list(range(len(whole))))
    with torch.no_grad():
        of_codes, of_signals = omni.encode(batch), omni.encode(signals)
    torch.testing.assert_close(of_codes.tokens, of_signals.tokens, rtol=0, atol=1e-5)
    torch.testing.assert_close(of_codes.pooled, of_signals.pooled, rtol=0, atol=1e-5)
    np.testing.assert_allclose(batch.time[0, :6] * SFREQ, [0, 8, 16, 24, 24, 32])


def test_a_killed_run_goes_on_and_leaves_the_same_bytes(
    shards: Path, model: braintokenizer.BrainTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = open_shards(shards)
    tokenize(model, corpus, tmp_path / "whole", window_s=2.0, name="tok", features="float16")

    def killed(self: object, batch: object, overlap: float) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "tok"
    tokenize(model, open_shards(shards / "a.h5"), out, window_s=2.0, features="float16")
    with monkeypatch.context() as patched:
        patched.setattr(braintokenizer.BrainTokenizer, "sources_of", killed)
        with pytest.raises(KeyboardInterrupt):
            tokenize(model, corpus, out, window_s=2.0, features="float16")
    (out / "made_up/.b.h5.0123abcd.part").write_bytes(b"half")  # what a process leaves that cannot clean up
    again = tokenize(model, corpus, out, window_s=2.0, features="float16")
    assert (again["shards_written"], again["shards_kept"]) == (1, 1)
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


def test_what_the_tokenizer_cannot_take_is_named_and_the_others_are_done(
    shards: Path, tmp_path: Path, model: braintokenizer.BrainTokenizer
) -> None:
    random = np.random.default_rng(1)
    folder = tmp_path / "shards/made_up"
    for subject, kind, rate in (("fast", "eeg", 100.0), ("inside", "seeg", SFREQ), ("right", "axial", SFREQ)):
        channels = Channels.make([f"E{i}" for i in range(3)], ["eeg", "eeg", kind], random.normal(0, 0.1, (3, 3)))
        signal = random.normal(0, 1e-5, (3, 320))
        signal[:, 64:128] = 0.0  # a second without any signal
        made = Recording("made_up", subject, "eeg", channels, sfreq=rate, signal=signal)
        write_shard(folder / f"{subject}.h5", [made], {})
    lost = Recording("made_up", "lost", "eeg", Channels.make(["X1"], "eeg"), sfreq=SFREQ, signal=signal[:1])
    write_shard(folder / "lost.h5", [lost], {})
    spikes = Recording("made_up", "spikes", "spikes", Channels.make(["n"], "neuron"), duration=3.0,
                       spike_time=np.array([0.5]), spike_neuron=np.array([0]))  # fmt: skip
    write_shard(folder / "spikes.h5", [spikes], {})
    torch.manual_seed(0)
    released = braintokenizer.build(Facts(sfreq=SFREQ), **braintokenizer.SIZES["test"], released=True)
    corpus = open_shards(folder)
    found = tokenize(released, corpus, tmp_path / "tok", window_s=1.0)
    assert sorted(found["failed"]) == [f"made_up/{x}//" for x in ("fast", "inside", "lost", "spikes")]
    assert "--sfreq-hz 64" in found["failed"]["made_up/fast//"]
    assert "1 of 3 channels are of kind seeg; this tokenizer knows eeg, mag, grad, axial" in str(found["failed"])
    assert "spikes" in found["failed"]["made_up/spikes//"]
    assert "1 of 1 channels have no position (X1)" in found["failed"]["made_up/lost//"]
    (coded,) = open_codes(tmp_path / "tok").recordings
    assert coded.starts.tolist() == [0, 32, *range(128, 320, 32)]
    cut = corpus.recordings[[r.subject for r in corpus.recordings].index("right")].path
    cut.write_bytes(cut.read_bytes()[:-2000])
    again = tokenize(model, corpus, tmp_path / "again", window_s=1.0)
    assert "made_up/right//" in again["failed"]
    assert "made_up/inside//" not in again["failed"]
    assert again["shards_written"] == 2  # "lost" too: a tokenizer of ours has a vector for that
    twice = replace(
        corpus, recordings=(corpus.recordings[1], replace(corpus.recordings[1], path=tmp_path / "inside.h5"))
    )
    with pytest.raises(ValueError, match="both belong to"):
        tokenize(model, twice, tmp_path / "twice", window_s=1.0)


def test_pretraining_reads_codes_alone(shards: Path, model: braintokenizer.BrainTokenizer, tmp_path: Path) -> None:
    raw, codes = tmp_path / "shards/made_up", tmp_path / "codes"
    shutil.copytree(shards, raw)
    sides = {"made_up/a/1/": "train", "made_up/a/2/": "val", "made_up/b/1/": "test", "made_up/b/2/": "test"}
    (raw / "split.json").write_text(json.dumps({"recordings": sides}))
    config = {"kind": "codebooks", "name": "braintokenizer", "keywords": braintokenizer.SIZES["test"]}
    tokenize(model, open_shards(raw), codes, window_s=2.0, overlap=0.25)
    Pretrained(copy.deepcopy(model).eval(), config, Facts(sfreq=SFREQ)).save(codes / "tokenizer")
    shutil.rmtree(raw)
    blocks = {
        "model": {**brainomni.SIZES["test"], "overlap": 0.25}, "objectives": {"masked_codes": {}},
        "windows": {"length_s": 2.0}, "training": {"steps": 2, "batch_size": 2, "validations": 1},
    }  # fmt: skip
    done = train_and_save("models", "brainomni", codes, blocks, tmp_path / "model", tmp_path / "work", 0, "x.yaml")
    assert done.card["metrics"]["val/masked_codes"] > 0
    assert set(done.card["windows"]["train"]) == {"made_up/a/1/"}
    blocks["model"] = brainomni.SIZES["test"]
    with pytest.raises(ValueError, match="overlap"):
        train_and_save("models", "brainomni", codes, blocks, tmp_path / "other", tmp_path / "work", 0, "x.yaml")


def test_a_failed_write_leaves_nothing(shards: Path, tmp_path: Path) -> None:
    stored = open_shards(shards / "a.h5").recordings[0]
    tokenizer = Tokenizer("tok", "0", PATCH, 16, 1.0)
    coded = Coded(stored, np.arange(2) * PATCH, np.zeros((2, 3, 4, 2), np.uint16), [np.zeros((1, 3, 4, 5))])
    with pytest.raises(ValueError, match="exists"):
        write_codes(tmp_path / "a.h5", [coded, coded], tokenizer)
    with pytest.raises(ValueError, match="features of 1 windows and codes of 2"):
        write_codes(tmp_path / "a.h5", [coded], replace(tokenizer, features="float16"))
    with pytest.raises(ValueError, match="no recording"):
        write_codes(tmp_path / "a.h5", [], tokenizer)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="65536"):
        replace(tokenizer, codes_per_depth=70_000)
    with pytest.raises(ValueError, match="float16 or float32"):
        replace(tokenizer, features="float64")
    with pytest.raises(ValueError, match="overlap by 1"):
        replace(tokenizer, overlap=1.0)


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
