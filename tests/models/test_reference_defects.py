"""What the public reference of BrainOmni gets wrong, right here from shards to checkpoints; and what the sources heed.

The same points inside the networks stand in tests/codebooks/test_braintokenizer.py and test_brainomni.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from brainfm import splits
from brainfm.codebooks import braintokenizer
from brainfm.layers import draws
from brainfm.models import brainomni
from brainfm.models.brainomni import BrainOmni
from brainfm.recording import Channels, Recording
from brainfm.shards.read import Corpus, Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.tokens import Facts, TokenBatch
from brainfm.training import checkpoint
from brainfm.training.batches import Batcher
from brainfm.training.checkpoint import Pretrained
from brainfm.training.runs import TOKENIZER, train_and_save
from brainfm.training.tokenizing import tokenize

SFREQ, PATCH = 64.0, 32
FACTS = Facts(modality=("eeg", "meg"), kinds=("eeg", "grad", "mag"), sfreq=SFREQ)


pytestmark = pytest.mark.usefixtures("one_thread")


def recording(subject: str, kinds: list[str], seconds: int = 8) -> Recording:
    random = np.random.default_rng(len(kinds) + ord(subject[-1]))
    scale = np.array([{"eeg": 1e-5, "mag": 1e-13, "grad": 1e-12}[k] for k in kinds])[:, None]
    table = Channels.make([f"{k}{i}" for i, k in enumerate(kinds)], kinds, random.normal(0, 0.05, (len(kinds), 3)))
    table.orientation[np.array(kinds) != "eeg"] = [0.0, 0.6, 0.8]
    signal = scale * random.normal(size=(len(kinds), round(seconds * SFREQ))).cumsum(axis=1)
    modality = "eeg" if set(kinds) == {"eeg"} else "meg"
    return Recording("made_up", subject, modality, table, sfreq=SFREQ, signal=signal, device=f"of {len(kinds)}")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """An EEG cap, a MEG array, and a recording of both at once."""
    folder = tmp_path_factory.mktemp("shards")
    for subject, kinds in (("a", ["eeg"] * 6), ("b", ["mag", "grad", "grad"] * 3), ("c", ["eeg", "mag", "grad"] * 4)):
        write_shard(folder / f"sub-{subject}.h5", [recording(subject, kinds)], {})
    return open_shards(folder)


def make_model(**keywords: object) -> Pretrained:
    torch.manual_seed(0)
    inner = {"kind": "codebooks", "name": "braintokenizer", "keywords": braintokenizer.SIZES["test"]}
    config = {"kind": "models", "name": "brainomni", "keywords": brainomni.SIZES["test"] | keywords}
    config["codebook"] = {**inner, "facts": asdict(FACTS)}
    model = checkpoint.build(config, FACTS).eval()
    with torch.no_grad():
        for part in model.blocks.parameters():  # far from the start, so that positions and order could matter
            part.add_(torch.randn_like(part) * 0.3)
    return Pretrained(model, config, FACTS)


@pytest.fixture(scope="module")
def trained() -> Pretrained:
    return make_model()


def shuffled(windows: Windows, order: np.ndarray) -> Windows:
    """The windows of one recording with its channels in another order, as a file would have them."""
    (stored,) = {windows.recordings[r].id: windows.recordings[r] for r in windows.recording}.values()
    moved = replace(stored, channels=stored.channels.pick(order.tolist()))

    def fill(out: np.ndarray, start: int, stop: int) -> None:
        out[...] = stored.signal(start, stop)[order]

    object.__setattr__(moved, "open", lambda: fill)
    return replace(windows, recordings=(moved,), recording=np.zeros(len(windows), np.int64))


def test_both_kinds_of_sensors_reach_the_sources_from_shards(trained: Pretrained, corpus: Corpus) -> None:
    """The reference's branch for recordings of both at once cannot be reached: it keeps MEG alone."""
    windows = corpus.where(subject="c").windows(1.0)
    batch = trained.batcher()(windows)
    assert batch.kind[0].unique(return_counts=True)[1].tolist() == [4, 4, 4]
    tokenizer = trained.model.codebook
    heard = tokenizer.windows(batch)
    assert heard.mask.all()
    looks = tokenizer.source_topography(batch)
    before = tokenizer.compress(heard, tokenizer.geometry(batch))
    for kind in batch.kind[0].unique():
        assert looks[:, :, batch.kind[0] == kind].min() > 0
        keep = (batch.kind != kind).repeat_interleave(batch.grid[1], dim=1)
        fewer = replace(batch, mask=batch.mask & keep)
        after = tokenizer.compress(tokenizer.windows(fewer), tokenizer.geometry(fewer))
        assert (before - after).abs().max() > 1e-3, f"kind {kind} adds nothing"


def test_mixed_devices_share_a_batch_from_shards(trained: Pretrained, corpus: Corpus) -> None:
    windows = corpus.windows(2.0)
    assert len({r.device for r in windows.recordings}) == 3
    together = trained.features(windows)
    for r in range(3):
        rows = np.flatnonzero(windows.recording == r)
        np.testing.assert_allclose(trained.features(windows.take(rows), size=1), together[rows], atol=1e-5)


def test_order_of_channels_in_the_file_does_not_matter(trained: Pretrained, corpus: Corpus) -> None:
    windows = corpus.where(subject="c").windows(2.0)
    order = np.random.default_rng(0).permutation(12)
    moved = shuffled(windows, order)
    assert not np.allclose(Batcher(PATCH)(windows).values, Batcher(PATCH)(moved).values)
    np.testing.assert_allclose(trained.features(moved), trained.features(windows), atol=1e-5)


@pytest.mark.parametrize("rope", brainomni.ROPES)
def test_rotary_positions_survive_a_checkpoint(corpus: Corpus, tmp_path: Path, rope: str) -> None:
    """The released files lost the imaginary half of a cache on their way to the disk."""
    saved = make_model(rope=rope)
    windows = corpus.windows(4.0)
    loaded = checkpoint.load(saved.save(tmp_path / "model"))
    np.testing.assert_array_equal(loaded.features(windows), saved.features(windows))
    other = make_model(rope=next(r for r in brainomni.ROPES if r != rope))
    assert not np.allclose(other.features(windows), saved.features(windows), atol=1e-4), "positions do not matter"


def test_people_of_a_run_are_on_one_side(tmp_path: Path) -> None:
    """The reference splits segments, so that people and recordings stand on both sides."""
    shards = tmp_path / "shards" / "made_up"
    made = [
        replace(recording(f"s{i}", ["eeg"] * 4, seconds=4), session=session) for i in range(6) for session in ("1", "2")
    ]
    split = splits.assign([(r.id, r.subject, r.session) for r in made], test_subjects=2, val_subjects=2)
    for first, second in zip(made[::2], made[1::2], strict=True):
        write_shard(shards / f"sub-{first.subject}.h5", [first, second], {})
    (shards / "split.json").write_text(json.dumps({"recordings": split}))
    settings = {
        "model": {**braintokenizer.SIZES["test"], "ratios": [2, 4]}, "objectives": {"reconstruct": {}},
        "windows": {"length_s": 1.0}, "training": {"steps": 2, "batch_size": 4, "validations": 1},
    }  # fmt: skip
    inner = train_and_save("codebooks", "braintokenizer", shards, settings, tmp_path / "t", tmp_path / "w", 0, "here")
    codes = tmp_path / "codes"
    tokenize(inner.model, open_shards(shards), codes, window_s=1.0)
    inner.save(codes / TOKENIZER)
    settings |= {"model": brainomni.SIZES["test"], "objectives": {"masked_codes": {}}}
    outer = train_and_save("models", "brainomni", codes, settings, tmp_path / "m", tmp_path / "w", 0, "here")
    for card in (inner.card, outer.card, outer.card["tokenizer"]):
        people = {side: set(card["subjects"][side]) for side in ("train", "val")}
        assert [len(p) for p in people.values()] == [2, 2]
        assert not people["train"] & people["val"]
        for side in ("train", "val"):
            assert set(card["windows"][side]) == {key for key, where in split.items() if where == side}
    torch.manual_seed(5)
    stranger = Pretrained(checkpoint.build(inner.config, inner.facts), inner.config, inner.facts)
    stranger.save(codes / TOKENIZER)
    with pytest.raises(ValueError, match=r"made_up/s\d/1/.* codes mean nothing to another tokenizer"):
        train_and_save("models", "brainomni", codes, settings, tmp_path / "n", tmp_path / "w", 0, "here")


K_MEANS = """
import resource, torch
torch.set_num_threads(1)
from brainfm.codebooks.residual import ResidualQuantiser
quantiser = ResidualQuantiser(4, 512, 256).train()
rows = torch.nn.functional.normalize(torch.randn(8192, 256), dim=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with torch.no_grad():
    quantiser(rows)
assert all(bool(book.started) for book in quantiser.books())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_k_means_start_of_the_published_size_stays_within_200_megabytes() -> None:
    """Measured by the system in a process of its own; the reference peaks at 4.5 GB."""
    done = subprocess.run([sys.executable, "-c", K_MEANS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 200


def test_noise_is_finite_for_the_largest_number_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """One draw in 17 million is the largest; as infinity it would end a run."""
    for value in (0.0, 1 - 2.0**-24):
        monkeypatch.setattr(draws, "uniform", lambda seed, shape, stream, value=value: torch.full(shape, value))
        assert 5 < draws.normal(torch.zeros(1, dtype=torch.int64), (1,), 0).abs() < 6


# Attention between sources.


def coded(model: BrainOmni, batch: int = 3, time: int = 6) -> TokenBatch:
    sources, depth = model.codebook.sources, model.codebook.depth
    codes = torch.randint(16, (batch, sources, time, depth), generator=torch.Generator().manual_seed(0))
    return TokenBatch(
        codes.flatten(1, 2), torch.zeros(batch, sources * time), torch.zeros(batch, sources * time, dtype=torch.int64),
        torch.full((batch, sources, 3), torch.nan), torch.zeros(batch, sources, 3), torch.full((batch, sources), 8),
        torch.ones(batch, sources * time, dtype=torch.bool), (sources, time),
    )  # fmt: skip


def test_source_attention_is_what_the_blocks_use(trained: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights from the queries and keys that reach torch's attention while the model predicts."""
    model = trained.model
    batch = coded(model)
    real, given = functional.scaled_dot_product_attention, []

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **words: object) -> torch.Tensor:
        given.append((q, k))
        return real(q, k, v, **words)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    with torch.no_grad():
        model.layers(batch)
    across = [(q, k) for q, k in given if q.shape[-2] == model.codebook.sources]
    assert len(across) == len(model.blocks)
    expected = [(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1).mean(dim=(0, 1)) for q, k in across]
    found = model.source_attention(batch)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert found.std(dim=-1).max() > 1e-3


def test_source_attention_leaves_out_what_is_not_there(trained: Pretrained) -> None:
    model = trained.model
    batch = coded(model)
    sources, time = batch.grid
    mask = batch.mask.view(3, sources, time).clone()
    mask[:, :, 4:] = False
    mask[2] = False
    masked = replace(batch, mask=mask.flatten(1))
    short = replace(
        batch.rows(torch.arange(2)), grid=(sources, 4), mask=torch.ones(2, sources * 4, dtype=torch.bool),
        values=batch.values.view(3, sources, time, -1)[:2, :, :4].flatten(1, 2),
    )  # fmt: skip
    torch.testing.assert_close(model.source_attention(masked), model.source_attention(short), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.source_attention(batch).sum(dim=-1), torch.ones(len(model.blocks), sources))
    assert model.source_attention(replace(batch, mask=torch.zeros_like(batch.mask))).abs().max() == 0
    lame = mask.clone()
    lame[:2, 1, :4] = False
    alone = model.source_attention(replace(batch, mask=lame.flatten(1)))
    assert alone[:, 1].abs().max() == 0
    assert alone[:, :, 1].abs().max() == 0
    torch.testing.assert_close(alone[:, [0, 2]].sum(dim=-1), torch.ones(len(model.blocks), 2))
