"""The contrastive encoder: its reach, its sphere, new neurons, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from brainfm.models import population_encoder
from brainfm.tokens import Facts

SMALL = {"bin_s": 0.05, "hidden": 16, "dim": 3}


def facts(neurons: int) -> Facts:
    return Facts(modality=("spikes",), neurons=tuple(f"d/1/{i}" for i in range(neurons)), aligned={"position": 1})


@pytest.fixture
def model() -> population_encoder.PopulationEncoder:
    torch.manual_seed(0)
    return population_encoder.build(facts(6), **SMALL).eval()


def test_a_point_sees_ten_bins_and_stands_for_their_end(model, batch_of) -> None:
    counts = np.random.default_rng(0).poisson(2.0, (1, 6, 30))
    with torch.inference_mode():
        before = model.encode(batch_of(counts)).tokens
        counts[0, :, 17] += 3
        after = model.encode(batch_of(counts)).tokens
    assert before.shape == (1, 21, 3)
    changed = (before != after).any(dim=2)[0].nonzero()[:, 0]
    assert changed.tolist() == list(range(8, 18)), "point j sees bins j to j + 9"
    torch.testing.assert_close(before.norm(dim=2), torch.ones(1, 21))


def test_the_pooled_point_is_the_last_real_one(model, batch_of) -> None:
    counts = np.random.default_rng(0).poisson(2.0, (2, 6, 20))
    batch = batch_of(counts)
    mask = batch.mask.unflatten(1, batch.grid)
    mask[1, :, 14:] = False
    with torch.inference_mode():
        padded, short = model.encode(batch), model.encode(batch_of(counts[1:, :, :14]))
    assert padded.mask.sum(dim=1).tolist() == [11, 5]
    torch.testing.assert_close(padded.pooled[1], short.pooled[0])
    torch.testing.assert_close(padded.pooled[0], padded.tokens[0, 10])


def test_the_order_of_neurons_does_not_matter_and_new_ones_have_a_path(model, batch_of) -> None:
    counts, order = np.random.default_rng(0).poisson(2.0, (2, 6, 12)), [3, 1, 5, 0, 2, 4]
    with torch.inference_mode():
        one, two = model.encode(batch_of(counts)), model.encode(batch_of(counts[:, order], order))
    torch.testing.assert_close(one.pooled, two.pooled, rtol=1e-4, atol=1e-6)
    assert model.add_neurons(["d/2/0", "d/1/2"]) == [6, 2]
    model.freeze_but_neurons()
    assert [k for k, v in model.named_parameters() if v.requires_grad] == ["table.added"]
    assert model.encode(batch_of(counts[:, :1], [6])).pooled.isfinite().all()


def test_what_cannot_be_is_refused(model, batch_of) -> None:
    with pytest.raises(ValueError, match=r"windows of 9 bins; a point needs 10: use windows of 0\.5 s"):
        model.encode(batch_of(np.zeros((1, 6, 9))))
    with pytest.raises(ValueError, match="no covariate 'speed'"):
        population_encoder.build(facts(6), **SMALL, behaviour=("speed",))
    with pytest.raises(ValueError, match="needs neurons"):
        population_encoder.build(Facts(modality=("eeg",)))
    sampled = replace(facts(6), modality=("calcium",), sfreq=10.0)
    with pytest.raises(ValueError, match=r"a signal of 10 samples per second; each sample is a bin: set bin_s to 0\.1"):
        population_encoder.build(sampled, **SMALL)
    assert population_encoder.build(sampled, **{**SMALL, "bin_s": 0.1}).counts_s == 0.1
