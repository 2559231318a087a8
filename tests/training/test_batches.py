"""Windows of shards as batches: the numbers are those of the file, whatever the start, the type and the montage."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainfm.recording import TYPICAL, Channels, Normaliser, Recording
from brainfm.shards.read import Corpus, Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.training.batches import Batcher

QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def made(subject: str, kinds: list[str], samples: int = 1000, sfreq: float = 100.0, **more: object) -> Recording:
    rng = np.random.default_rng(len(kinds))
    scale = np.array([[TYPICAL[k]] for k in kinds])
    table = Channels.make([f"C{i}" for i in range(len(kinds))], kinds, rng.normal(size=(len(kinds), 3)))
    return Recording(
        "made_up", subject, "eeg", table, sfreq=sfreq, signal=scale * rng.normal(size=(len(kinds), samples)), **more
    )


def corpus(folder: Path, *recordings: Recording, dtype: str = "float32") -> Corpus:
    for recording in recordings:
        write_shard(folder / f"sub-{recording.subject}.h5", [recording], {}, dtype=dtype)
    return open_shards(folder)


def rows(found: Corpus, *starts: tuple[int, int, int]) -> Windows:
    recording, start, samples = np.array(starts).T
    none = np.full(len(starts), "", dtype=object)
    return Windows(found.recordings, recording, start, samples, none, none)


@QUICK
@given(st.data())
def test_windows_of_any_start_length_and_montage(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    small, large = made("1", ["eeg"] * 3), made("2", ["mag", "grad", "eeg", "axial", "eeg"])
    large.channels.bad[1] = True
    dtype = data.draw(st.sampled_from(["float32", "int16"]))
    found = corpus(tmp_path_factory.mktemp("shards"), small, large, dtype=dtype)
    picked = data.draw(
        st.lists(st.tuples(st.integers(0, 1), st.integers(0, 998), st.integers(1, 400)), min_size=1, max_size=5)
    )
    picked = [(r, start, min(n, 1000 - start)) for r, start, n in picked]
    batch = Batcher(patch=10)(rows(found, *picked))
    for i, (r, start, n) in enumerate(picked):
        source = (small, large)[r]
        scale = np.array([[TYPICAL[k]] for k in source.channels.kind])
        expected = np.where(source.channels.bad[:, None], 0, source.signal[:, start : start + n] / scale)
        got = batch.signal()[i].numpy()
        step = np.abs(source.signal / scale).max() / 65534 * 1.001 if dtype == "int16" else 1e-6
        np.testing.assert_allclose(got[: len(expected), :n], expected, atol=step)
        assert not got[len(expected) :].any()
        assert not got[:, n:].any()
        assert batch.kind[i].ge(0).sum() == len(expected)
        assert batch.mask[i].sum() == len(expected) * (n // 10)


def test_int16_errs_by_half_a_step_of_each_second_and_channel(tmp_path: Path) -> None:
    recording = made("1", ["eeg"] * 2, samples=1000)
    recording.signal[:, 300:400] *= 1000  # an artefact costs its own second its precision, and no other
    stored = corpus(tmp_path, recording, dtype="int16").recordings[0]
    got = stored.signal(0, 1000)
    for second in range(10):
        part = slice(100 * second, 100 * second + 100)
        peak = np.abs(recording.signal[:, part]).max(axis=1, keepdims=True)
        assert (np.abs(got[:, part] - recording.signal[:, part]) <= peak / 65534 * 1.001).all()
    assert stored.arrays["signal"].dtype == "int16"


def test_scaled_by_what_ingest_fitted(tmp_path: Path) -> None:
    fitted = Normaliser(np.array([1e-5, -2e-5]), np.array([3e-5, 4e-5]), "made up", "nothing")
    recording = made("1", ["eeg"] * 2, normaliser=fitted)
    found = corpus(tmp_path, recording)
    got = Batcher(patch=100, normalised=True)(rows(found, (0, 0, 1000))).signal()[0].numpy()
    np.testing.assert_allclose(got, (recording.signal - fitted.centre[:, None]) / fitted.scale[:, None], atol=1e-5)
    bare = corpus(tmp_path / "bare", made("1", ["eeg"]))
    with pytest.raises(ValueError, match=r"no normaliser.*`scale`"):
        Batcher(normalised=True)(rows(bare, (0, 0, 10)))


def test_a_recording_travels_without_its_pages(tmp_path: Path) -> None:
    found = corpus(tmp_path, made("1", ["eeg"] * 3))
    whole = found.recordings[0].signal(0, 1000)
    travelled = pickle.loads(pickle.dumps(found))
    assert len(pickle.dumps(found)) < 20_000
    np.testing.assert_array_equal(travelled.recordings[0].signal(0, 1000), whole)


def test_a_file_that_is_cut_short_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    found = corpus(tmp_path, made("1", ["eeg"] * 3, samples=100_000))
    found.recordings[0].signal(0, 10)
    path = found.recordings[0].path
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError):
        found.recordings[0].signal(0, 10)


def test_a_montage_that_changed_is_seen(tmp_path: Path) -> None:
    found = corpus(tmp_path, made("1", ["eeg"] * 2))
    windows = rows(found, (0, 0, 100))
    assert Batcher(patch=100)(windows).signal()[0, 1].any()
    found.recordings[0].channels.bad[1] = True
    assert not Batcher(patch=100)(windows).signal()[0, 1].any()
    assert torch.equal(Batcher(patch=100)(windows).kind[0], torch.zeros(2, dtype=torch.int64))


def test_memory_is_used_again_but_never_under_a_batch_that_somebody_holds(tmp_path: Path) -> None:
    found, batcher = corpus(tmp_path, made("1", ["eeg"] * 4)), Batcher(patch=10)
    whole = found.recordings[0].signal(0, 1000) / TYPICAL["eeg"]
    held = []
    for start in range(0, 700, 10):
        batch = batcher(rows(found, (0, start, 300)))
        if start % 30 == 0:
            held.append((start, batch.signal()[0, 1:3, 50:]))  # a view of a part holds the whole
        if start % 50 == 0:
            held.append((start, batch.values.numpy().reshape(4, 300)[1:3, 50:]))
        del batch
    for start, part in held:
        np.testing.assert_allclose(part, whole[1:3, start + 50 : start + 300], rtol=1e-6)
    places = set()
    for start in range(0, 500, 10):
        places.add(batcher(rows(found, (0, start, 300))).values.data_ptr())
    assert len(places) <= 3
