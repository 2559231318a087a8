"""Published checkpoints in and out: the table of names, strictness, both kinds of file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from brainfm.codebooks import braintokenizer
from brainfm.models import brainomni
from brainfm.objectives.masked_codes import MaskedCodes
from brainfm.tokens import TokenBatch
from brainfm.training import checkpoint, released, released_config, released_names
from brainfm.training.checkpoint import CheckpointError, Pretrained

sys.path.insert(0, str(Path(__file__).parent))
from released_sets import SETS, model_of, same, tokenizer_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole second stage in the released layout."""
    released.export_weights(model_of("small"), tmp_path / "released")
    return tmp_path / "released"


def edit_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    weights = torch.load(folder / "BrainOmni.pt", weights_only=True)
    changed = change(weights)  # in place, or what is to be saved instead
    torch.save(weights if changed is None else changed, folder / "BrainOmni.pt")


def edit_config(folder: Path, **changed: Any) -> None:
    found = json.loads((folder / "model_cfg.json").read_text()) | changed
    (folder / "model_cfg.json").write_text(json.dumps({k: v for k, v in found.items() if v is not ...}))


@pytest.mark.parametrize("name", SETS)
def test_both_ways_give_the_same_bits(name: str, tmp_path: Path) -> None:
    before = model_of(name)
    written = released.export_weights(before, tmp_path)
    assert [p.name for p in written] == ["model_cfg.json", "BrainOmni.pt"] == sorted(os.listdir(tmp_path))[::-1]
    after = released.import_weights("brainomni", tmp_path, before.config["keywords"].get("rope", "regenerated"))
    assert same(before, after)
    own = after.config["keywords"]
    assert before.config["keywords"].items() <= own.items() | {("dropout", own["dropout"])}
    assert before.config["codebook"]["keywords"].items() <= dict(after.config["codebook"]["keywords"]).items()
    assert after.facts.sfreq == 256.0
    assert {"eeg", "mag", "grad", "axial"} == set(after.facts.kinds)
    assert after.card["released"]["matched"] == {"weights": len(before.model.state_dict())} | {
        "of": len(before.model.state_dict())
    }


@pytest.mark.parametrize("name", SETS)
def test_a_tokenizer_alone_both_ways(name: str, tmp_path: Path) -> None:
    before = tokenizer_of(SETS[name][0])
    assert [p.name for p in released.export_weights(before, tmp_path)] == ["model_cfg.json", "BrainTokenizer.pt"]
    after = released.import_weights("brainomni", tmp_path)
    assert after.config["kind"] == "codebooks"
    assert same(before, after)
    saved = checkpoint.load(after.save(tmp_path / "model"))
    assert same(before, saved)
    assert saved.card["released"]["rope"] is None


def test_layout_of_the_files() -> None:
    """The published tiny model has 332 keys (24 of them rotary caches); sizes counted without memory."""
    keywords = {"kind": "codebooks", "name": "braintokenizer", "keywords": braintokenizer.SIZES["published"]}
    config = {
        "kind": "models", "name": "brainomni", "keywords": brainomni.SIZES["tiny"],
        "codebook": {**keywords, "facts": asdict(braintokenizer.FACTS)},
    }  # fmt: skip
    with torch.device("meta"):
        model = checkpoint.build(config, braintokenizer.FACTS)
    names = released_names.names(model)
    assert len(names) + 24 == 332
    assert len(set(names.values())) == len(names)
    assert {
        "mask_token",
        "tokenizer.encoder.seanet_encoder.model.0.conv.conv.weight_g",
        "tokenizer.encoder.seanet_encoder.model.1.block.3.conv.conv.weight_v",
        "tokenizer.encoder.seanet_encoder.model.10.lstm.weight_hh_l1",
        "tokenizer.decoder.seanet_decoder.model.3.convtr.convtr.bias",
        "tokenizer.decoder.seanet_decoder.model.12.conv.conv.weight_v",
        "tokenizer.quantizer.rvq.layers.3._codebook.embed_avg",
        "blocks.11.time_attn.qkv.weight",
        "predict_head.bias",
    } <= set(names.values())
    assert not any(k.startswith("projection") for k in names.values())
    assert released_names.is_unread("blocks.0.time_attn.rope_embedding_layer.rotate")
    assert not released_names.is_unread("blocks.0.spatial_attn.rope_embedding_layer.rotate")


def test_values_of_the_layout(folder: Path) -> None:
    weights = torch.load(folder / "BrainOmni.pt", weights_only=True)
    found = json.loads((folder / "model_cfg.json").read_text())
    assert found["ratios"] == [4, 2]
    assert found["window_length"] == 32
    assert found["codebook_dim"] == found["n_dim"] == 8
    cached = weights["blocks.1.time_attn.rope_embedding_layer.rotate"]
    assert cached.shape == (240, 3)
    assert cached.dtype == torch.float32
    assert float(cached[1, 0]) == pytest.approx(np.cos(1.0))
    assert weights["tokenizer.quantizer.rvq.layers.0._codebook.inited"].tolist() == [1.0]
    assert all(v.dtype == torch.float32 for v in weights.values())


def test_import_draws_nothing_from_the_stream(folder: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    released.import_weights("brainomni", folder)
    assert torch.equal(torch.rand(2), expected)


def test_caches_may_be_absent_or_whole_rotations(folder: Path) -> None:
    before = released.import_weights("brainomni", folder)

    def whole(weights: dict[str, Tensor]) -> None:
        for key in [k for k in weights if k.endswith(".rotate")]:
            weights[key] = weights[key].to(torch.complex64)
        del weights["blocks.0.time_attn.rope_embedding_layer.freqs"]

    edit_weights(folder, whole)
    assert same(before, released.import_weights("brainomni", folder))


def test_both_files_the_second_stage_is_read(folder: Path, tmp_path: Path) -> None:
    released.export_weights(tokenizer_of({}), tmp_path / "tokenizer")
    os.rename(tmp_path / "tokenizer/BrainTokenizer.pt", folder / "BrainTokenizer.pt")
    assert released.import_weights("brainomni", folder).config["name"] == "brainomni"
    with pytest.raises(ValueError, match=r"needs its own model_cfg\.json"):
        released.export_weights(model_of("small"), folder)


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda weights: weights.__delitem__(name)


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda weights: weights.update({name: value})


NAN = torch.full((8,), torch.nan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("mask_token", NAN), "NaN or infinity in mask_token"),
        (put("extra.weight", torch.ones(2)), r"1 left over \(extra\.weight\)"),
        (put("mask_token", torch.ones(9)), r"137 of 138 weights match; 1 of another shape \(mask_token \(9,\), not"),
        (put("mask_token", torch.ones(8, dtype=torch.int64)), r"1 no plain real numbers \(mask_token\)"),
        (put("mask_token", torch.ones(8).to_sparse()), r"1 no plain real numbers \(mask_token\)"),
        (put("mask_token", [1.0] * 8), "something else than a tensor at 'mask_token'"),
        (put(7, torch.ones(2)), "something else than a tensor at 7"),  # type: ignore[arg-type]
        (put("blocks.2.ff.layer.0.bias", torch.ones(2)), "holds 3 layers of what model_cfg.json calls lm_depth"),
        (put("blocks.0.time_attn.rope_embedding_layer.freqs", torch.ones(3)), "other rotary frequencies"),
        (drop("predict_head.bias"), r"1 missing \(predict_head\.bias\)"),
        (drop("projection.weight"), r"1 missing \(projection\.weight\)"),
        (lambda weights: {"state_dict": weights}, "something else than a tensor at 'state_dict'"),
        (lambda weights: list(weights.values()), "holds a list; expected tensors by name"),
        (lambda weights: weights.clear(), "holds nothing"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_by_name(folder: Path, change, message: str) -> None:
    edit_weights(folder, change)
    with pytest.raises(CheckpointError, match=message) as raised:
        released.import_weights("brainomni", folder)
    assert "BrainOmni.pt" in str(raised.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_dims": 8}, "unknown key 'n_dims'; did you mean 'n_dim'"),
        ({"lm_head": ...}, "lm_head missing"),
        ({"n_neuro": 0}, "n_neuro is 0; expected a whole number from 1"),
        ({"n_neuro": True}, "n_neuro is True"),
        ({"n_neuro": 10**12}, "n_neuro is 1000000000000"),
        ({"n_neuro": 4}, r"encoder\.neuros \(3, 8\), not \(4, 8\)"),
        ({"ratios": [2, 4]}, "of another shape"),
        ({"ratios": 8}, "ratios is 8; expected a list"),
        ({"ratios": [5, 2]}, "window_length is 32; expected a multiple of 10"),
        ({"kernel_size": 7}, "of another shape"),
        ({"codebook_dim": 4}, "codebook_dim is 4; expected n_dim, 8"),
        ({"n_head": 3}, "n_dim is 8; expected an even multiple of n_head, 3"),
        ({"num_quantizers": 3}, "holds 2 layers of what model_cfg.json calls num_quantizers and sets to 3"),
        ({"num_quantizers_used": 3}, "num_quantizers_used is 3; expected num_quantizers, 2, at most"),
        ({"num_quantizers_used": 1}, r"predict_head\.weight \(10, 12\), not \(5, 12\)"),
        ({"lm_depth": 10**6}, "holds 2 layers of what model_cfg.json calls lm_depth"),
        ({"lm_dim": 8}, "2 left over"),
        ({"lm_head": 3}, "lm_head is 3; expected an even number"),
        ({"lm_dim": 14}, "lm_dim is 14; expected a multiple of 4"),
        ({"overlap_ratio": 0.99}, "overlap_ratio is 0.99; expected less"),
        ({"dropout": "much"}, "dropout is 'much'; expected a number from 0"),
        ({"quantize_optimize_method": "simvq"}, "quantize_optimize_method is 'simvq'"),
    ],
)
def test_sizes_that_are_wrong_are_named(folder: Path, changed: dict[str, Any], message: str) -> None:
    edit_config(folder, **changed)
    with pytest.raises(CheckpointError, match=message):
        released.import_weights("brainomni", folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\udcff", "[" * 100_000])
def test_damaged_sizes(folder: Path, text: str) -> None:
    (folder / "model_cfg.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"model_cfg\.json"):
        released.import_weights("brainomni", folder)


@pytest.mark.parametrize("keep", [0, 10, 1000, -100])
def test_damaged_weights(folder: Path, keep: int) -> None:
    path = folder / "BrainOmni.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"BrainOmni\.pt is damaged"):
        released.import_weights("brainomni", folder)


def test_one_wrong_byte_among_the_numbers(folder: Path) -> None:
    path = folder / "BrainOmni.pt"
    number = torch.load(path, weights_only=True)["blocks.1.ff.layer.0.weight"].numpy().tobytes()
    data = path.read_bytes()
    assert data.count(number) == 1
    path.write_bytes(data.replace(number, number[:7] + bytes([number[7] ^ 1]) + number[8:]))
    torch.load(path, weights_only=True)  # goes unnoticed there
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        released.import_weights("brainomni", folder)


class Hostile:
    """Runs a command where it is unpickled without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_inside_is_not_run(folder: Path, tmp_path: Path, legacy: bool) -> None:
    weights = torch.load(folder / "BrainOmni.pt", weights_only=True)
    torch.save({**weights, "mask_token": Hostile(tmp_path / "ran")}, folder / "BrainOmni.pt",
               _use_new_zipfile_serialization=not legacy)  # fmt: skip
    with pytest.raises(CheckpointError, match="would run code"):
        released.import_weights("brainomni", folder)
    assert not (tmp_path / "ran").exists()


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no BrainOmni\.pt or BrainTokenizer\.pt"):
        released.import_weights("brainomni", tmp_path / "nowhere")
    (folder / "model_cfg.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model_cfg\.json"):
        released.import_weights("brainomni", folder)
    with pytest.raises(ValueError, match="did you mean 'as_released'"):
        released.import_weights("brainomni", folder, "as_release")


@pytest.mark.parametrize(
    ("pretrained", "message"),
    [
        (lambda: tokenizer_of({"released": False}), "more types of sensors and a vector for unknown positions"),
        (lambda: tokenizer_of({}, sfreq=128.0), "reads 128 samples per second"),
        (lambda: tokenizer_of({"lstm_layers": 0}), "it has no LSTM"),
        (lambda: Pretrained(None, {"name": "luna"}, braintokenizer.FACTS), "not luna"),
    ],
)
def test_what_the_layout_cannot_express_stays(
    pretrained: Callable[[], Pretrained], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        released.export_weights(pretrained(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("window", "ratio"), [(128, 0.25), (50, 0.25), (90, 1 / 3), (30, 0.0), (100, 0.29)])
def test_windows_move_on_by_as_many_samples(window: int, ratio: float) -> None:
    step, overlap = released_config.step_of(window, ratio), released_config.overlap_of(window, ratio)
    assert window - round(overlap * window) == step == int(window * (1 - ratio))
    assert released_config.step_of(window, released_config.ratio_of(window, overlap)) == step


def test_known_files_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = released.import_weights("brainomni", folder).card
    assert not card["released"]["is_known_release"]
    assert card["licence"].startswith("unknown")
    monkeypatch.setattr(released, "KNOWN", {v: f"pinned {k}" for k, v in card["released"]["sha256"].items()})
    card = released.import_weights("brainomni", folder).card
    assert card["released"]["known_release"]["BrainOmni.pt"] == "pinned BrainOmni.pt"
    assert card["licence"].startswith("MIT")


def test_a_head_of_fewer_codebooks_trains() -> None:
    model, (b, t) = model_of("fewer predicted").model, (2, 4)
    codes = torch.randint(0, 5, (b, 3 * t, 3))
    batch = TokenBatch(
        values=codes, time=torch.zeros(b, 3 * t), channel=torch.zeros(b, 3 * t, dtype=torch.int64),
        place=torch.full((b, 3, 3), torch.nan), orientation=torch.zeros(b, 3, 3),
        kind=torch.zeros(b, 3, dtype=torch.int64), mask=torch.ones(b, 3 * t, dtype=torch.bool), grid=(3, t),
    )  # fmt: skip
    loss = MaskedCodes()(model, batch)["masked_codes"]
    loss.backward()
    assert loss.isfinite()
    assert model.head.weight.grad.abs().sum() > 0
