"""Low-rank adapters: nothing changes at the start, nothing else trains, and folded they leave the layout as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from brainfm.layers import lora
from brainfm.models import eegnet, luna, roi_mae
from brainfm.tokens import Facts

FACTS = Facts(modality=("eeg",), kinds=("eeg",), sfreq=64.0, window_s=1.0, channels=4)
RANK = 2


def network() -> luna.Luna:
    torch.manual_seed(0)
    return luna.build(FACTS, patch=16, embed=16, heads=2, depth=2, queries=2, mixing=1).eval()


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_equal_at_the_start_and_after_folding() -> None:
    model, x = network(), torch.randn(3, 4, 32)
    mask = torch.ones(3, 4, dtype=torch.bool)
    expected = model.blocks[0](x, mask)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    lora.adapt(model, RANK, 4.0)
    torch.testing.assert_close(model.blocks[0](x, mask), expected, rtol=0, atol=0)
    for part in model.modules():
        if isinstance(part, lora.LowRank):
            nn.init.normal_(part.up, std=0.1)
    changed = model.blocks[0](x, mask)
    assert not torch.allclose(changed, expected, atol=1e-3)
    plain = lora.merged(model)
    assert not any(isinstance(part, lora.LowRank) for part in plain.modules())
    torch.testing.assert_close(plain.blocks[0](x, mask), changed, rtol=1e-4, atol=1e-5)
    network().load_state_dict(plain.state_dict(), strict=True)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if k in before)
    assert any(isinstance(part, lora.LowRank) for part in model.modules())  # folding made a copy


def test_equation_3() -> None:
    linear, x = nn.Linear(6, 5), torch.randn(7, 6)
    part = lora.LowRank(linear, 3, 12.0)
    nn.init.normal_(part.up)
    expected = x @ (linear.weight + 4.0 * part.up @ part.down).T + linear.bias
    torch.testing.assert_close(part(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(part.folded()(x), expected, rtol=1e-4, atol=1e-4)


def test_only_adapters_train_and_how_many_numbers_they_have() -> None:
    model = lora.adapt(network(), RANK, 4.0)
    found = trained(model)
    assert all(name.endswith((".down", ".up")) for name in found)
    shapes = [p.weight.shape for p in model.modules() if isinstance(p, lora.LowRank)]
    assert len(shapes) == len(found) / 2 > 2
    assert sum(p.numel() for p in found.values()) == sum(RANK * (a + b) for a, b in shapes)
    assert {name.split(".")[0] for name in found} == {"blocks"}


def test_a_rank_is_cut_to_the_layer_and_read_off_again() -> None:
    model = nn.Sequential(nn.Linear(8, 1), nn.Linear(8, 8))
    lora.adapt(model, 4, 8.0, pattern="[01]")
    assert [len(part.down) for part in model] == [1, 4]
    said = lora.described(model)
    assert (said["rank"], said["alpha"]) == (4, 8.0)
    again = lora.adapt(lora.merged(model).requires_grad_(True), **said)
    assert [(len(part.down), part.scale) for part in again] == [(1, 8.0), (4, 2.0)]
    assert lora.described(nn.Linear(2, 2)) == {}


def test_a_pattern_chooses_layers() -> None:
    model = network()
    assert lora.targets(model, r"unification\.(query|key)$") == ["unification.query", "unification.key"]
    names = lora.targets(model)
    assert names
    assert all(name.startswith("blocks.") for name in names)
    regions = Facts(modality=("fmri",), kinds=("region",), sfreq=0.5, window_s=40.0, channels=6)
    both = lora.targets(roi_mae.build(regions, **roi_mae.SIZES["test"]))
    assert {name.split(".")[0] for name in both} == {"over_regions", "over_time"}


def test_what_cannot_be_adapted() -> None:
    with pytest.raises(
        ValueError, match="no trained linear layer inside its blocks; its linear layers are none: adapt by"
    ):
        lora.adapt(eegnet.build(FACTS, **eegnet.SIZES["test"]), RANK, 4.0)
    with pytest.raises(ValueError, match="no trained linear layer whose name matches 'decodr'"):
        lora.adapt(network(), RANK, 4.0, "decodr")
    with pytest.raises(ValueError, match="rank=0; an adapter has rank 1 or more"):
        lora.adapt(network(), 0, 4.0)
