"""NDT: its published size, what it may see, new neurons, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from brainfm.models import ndt
from brainfm.objectives.masked_poisson import MaskedPoisson
from brainfm.tokens import Facts

SMALL = {"bin_s": 0.05, "dim": 16, "depth": 1, "heads": 2, "hidden": 32, "dropout": 0.0}


def facts(neurons: int, window_s: float = 0.5) -> Facts:
    return Facts(
        modality=("spikes",), kinds=("neuron",), window_s=window_s, channels=neurons, subjects=("d/1",),
        neurons=tuple(f"d/1/{i}" for i in range(neurons)),
    )  # fmt: skip


def waves(seed: int, windows: int, neurons: int = 12, bins: int = 10) -> np.ndarray:
    """Counts of a population whose rates follow one oscillation."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (windows, 1, 1)) + np.linspace(0, 4, bins)
    preferred = np.linspace(0, 2 * np.pi, neurons, endpoint=False)[:, None]
    return rng.poisson(np.exp(1.2 * np.cos(phase - preferred)))


@pytest.fixture
def model() -> ndt.NDT:
    torch.manual_seed(0)
    return ndt.build(facts(12), **SMALL).eval()


def test_the_published_form_has_its_published_size(batch_of) -> None:
    built = ndt.build(ndt.FACTS, **ndt.SIZES["published"])
    assert sum(p.numel() for p in built.parameters()) == 782_566
    counts = np.random.default_rng(0).poisson(0.1, (2, 182, 140))
    assert built.log_rates(batch_of(counts, sfreq=200.0)).shape == (2, 182, 140)
    with pytest.raises(ValueError, match="141 bins; this NDT learned positions of 140"):
        built.encode(batch_of(np.zeros((1, 182, 141)), sfreq=200.0))


@pytest.mark.parametrize("fixed", [False, True])
def test_what_is_hidden_is_not_seen(fixed: bool, batch_of) -> None:
    torch.manual_seed(0)
    built = ndt.build(facts(12), **{**SMALL, "dim": 12, "fixed": fixed}).eval()
    counts = waves(0, 2)
    hidden = torch.zeros(2, 12, 10, dtype=torch.bool)
    hidden[:, 3] = True
    hidden[:, :, 7:] = True
    other = counts.copy()
    other[hidden.numpy()] += 5
    with torch.inference_mode():
        one, two = (built.log_rates(batch_of(x), hidden) for x in (counts, other))
        seen = built.log_rates(batch_of(other))
    assert torch.equal(one, two)
    assert not torch.allclose(seen, one)


@pytest.mark.parametrize("fixed", [False, True])
def test_the_order_of_neurons_does_not_matter(fixed: bool, batch_of) -> None:
    torch.manual_seed(0)
    built = ndt.build(facts(12), **{**SMALL, "dim": 12, "fixed": fixed}).eval()
    counts, order = waves(0, 3), np.random.default_rng(1).permutation(12)
    with torch.inference_mode():
        one, two = built.log_rates(batch_of(counts)), built.log_rates(batch_of(counts[:, order], order.tolist()))
        pooled = [built.encode(b).pooled for b in (batch_of(counts), batch_of(counts[:, order], order.tolist()))]
    torch.testing.assert_close(two, one[:, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*pooled, rtol=1e-4, atol=1e-5)


def test_a_padded_neuron_changes_nothing(model: ndt.NDT, batch_of) -> None:
    counts = waves(0, 2)
    wide = batch_of(np.concatenate([counts, np.full((2, 1, 10), 9)], axis=1), [*range(12), -1])
    mask = wide.mask.unflatten(1, wide.grid).clone()
    mask[:, 12] = False
    with torch.inference_mode():
        one, two = model.log_rates(batch_of(counts)), model.log_rates(replace(wide, mask=mask.flatten(1)))
    torch.testing.assert_close(two[:, :12], one, rtol=1e-5, atol=1e-6)


def test_new_neurons_have_a_path_and_nothing_else_moves(model: ndt.NDT, batch_of) -> None:
    new = [f"d/2/{i}" for i in range(5)]
    assert model.add_neurons([*new, "d/1/3"]) == [12, 13, 14, 15, 16, 3]
    assert len(model.neurons) == 17
    model.freeze_but_neurons()
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    MaskedPoisson()(model, batch_of(waves(0, 4, neurons=5), list(range(12, 17))))["poisson"].backward()
    optimiser.step()
    moved = [k for k, v in model.named_parameters() if not torch.equal(v, before[k])]
    assert moved == ["table.added"]
    other = ndt.build(replace(facts(12), neurons=tuple(model.neurons)), **SMALL)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.table.rows(), model.table.rows())
    model.load_state_dict(other.state_dict())


def test_what_cannot_be_is_refused(model: ndt.NDT, batch_of) -> None:
    with pytest.raises(ValueError, match="got dim 16 for 12"):
        ndt.build(facts(12), **SMALL, fixed=True)
    fixed = ndt.build(facts(16), **SMALL, fixed=True)
    with pytest.raises(ValueError, match="stays with its 16 neurons"):
        fixed.add_neurons(["d/2/0"])
    with pytest.raises(ValueError, match="no rows of neurons"):
        fixed.freeze_but_neurons()
    with pytest.raises(ValueError, match="needs neurons"):
        ndt.build(Facts(modality=("eeg",)))
    with pytest.raises(ValueError, match="counts on a grid"):
        model.encode(replace(batch_of(waves(0, 2)), grid=None))
    with pytest.raises(ValueError, match=r"a signal of 10 samples per second; each sample is a bin: set bin_s to 0\.1"):
        ndt.build(replace(facts(12), sfreq=10.0), **SMALL)
    ndt.build(replace(facts(12), sfreq=20.0), **SMALL)


@pytest.mark.parametrize("fixed", [False, True])
def test_activity_below_zero_is_refused_and_padding_is_none(fixed: bool, batch_of) -> None:
    built, batch = ndt.build(facts(16), **SMALL, fixed=fixed), batch_of(waves(0, 2, neurons=16))
    values = batch.values.clone()
    values[0, 3] = -0.25
    with pytest.raises(ValueError, match=r"activity down to -0\.25; counts are 0 or more"):
        MaskedPoisson()(built, replace(batch, values=values))
    mask = batch.mask.clone()
    mask[0, 3] = False
    assert torch.isfinite(built.log_rates(replace(batch, values=values, mask=mask))).all()


def test_dropped_neurons_are_drawn_in_training_alone(batch_of) -> None:
    torch.manual_seed(0)
    built, batch = ndt.build(facts(12), **SMALL, neuron_dropout=0.5), batch_of(waves(0, 2))
    one, two = built.log_rates(batch), built.log_rates(batch)
    assert not torch.equal(one, two)
    built.eval()
    assert torch.equal(built.log_rates(batch), built.log_rates(batch))


def test_it_learns_hidden_time_and_hidden_neurons(batch_of) -> None:
    torch.manual_seed(0)
    built, objective = ndt.build(facts(12), **SMALL), MaskedPoisson(neurons=0.5)
    optimiser = torch.optim.AdamW(built.parameters(), 1e-2)
    for step in range(250):
        optimiser.zero_grad()
        objective(built, batch_of(waves(step, 32)))["poisson"].backward()
        optimiser.step()
    built.eval()
    fresh = batch_of(waves(1000, 200))
    for share in (0.0, 1.0):
        torch.manual_seed(1)
        assert MaskedPoisson(neurons=share)(built, fresh)["metric_bits_per_spike"] > 0.15
    torch.manual_seed(1)
    assert (
        MaskedPoisson()(built, batch_of(np.random.default_rng(0).poisson(1.0, (200, 12, 10))))["metric_bits_per_spike"]
        < 0.0
    )
