"""The training under fine-tuning, with small real networks: the best weights stay, codes serve as signals do."""

import math

import numpy as np
import pytest
import torch

from brainfm.evaluations import autoencoding, comparison, protocols
from brainfm.evaluations.methods.trials import Trials
from brainfm.objectives.supervised import Normed, Supervised
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.training.batches import WindowDataset, facts_of
from brainfm.training.checkpoint import Pretrained, build
from brainfm.training.finetuning import Labelled, Tokenized, Tuning, balanced_loss, predict
from brainfm.training.finetuning import finetune as tune
from tests.evaluations.people import person

TOKENIZER = {"window_s": 0.5, "filters": 4, "ratios": [2, 4], "dim": 16, "heads": 2, "sources": 3, "depth": 2,
             "codes": 16, "lstm_layers": 0}  # fmt: skip
LUNA = {"kind": "models", "name": "luna",
        "keywords": {"patch": 16, "embed": 16, "heads": 2, "depth": 1, "queries": 2, "mixing": 1}}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    for i in range(9):
        write_shard(folder / f"p{i}.h5", [person(f"p{i}", rng)], {})
    return open_shards(folder)


@pytest.fixture(scope="module")
def luna(people):
    facts = facts_of(people, 1.0)
    torch.manual_seed(0)
    return Pretrained(build(LUNA, facts).eval(), LUNA, facts, {"subjects": {"train": ["sim/p0", "sim/p1"]}})


@pytest.fixture(scope="module")
def brainomni(people):
    facts = facts_of(people, 1.0)
    inner = {"kind": "codebooks", "name": "braintokenizer", "keywords": TOKENIZER}
    config = {
        "kind": "models", "name": "brainomni", "keywords": {"dim": 16, "heads": 2, "blocks": 2, "dropout": 0.0},
        "codebook": {**inner, "facts": vars(facts)},
    }  # fmt: skip
    torch.manual_seed(0)
    return Pretrained(build(config, facts).eval(), config, facts)


def trials(stored, *names):
    return Windows.join([stored.subject(name).trials(0, 1) for name in names])


SOURCE, TARGET = ("p0", "p1", "p2", "p3", "p4"), ("p5", "p6", "p7", "p8")


def test_few_people_are_spared_in_time(people):
    windows = trials(people, "p0", "p1")
    fit, val = protocols.spared(Trials(windows), np.arange(len(windows)), 0)
    assert set(windows.of("person")[val]) == set(windows.of("person")[fit]) == {"sim/p0", "sim/p1"}
    for name in ("sim/p0", "sim/p1"):
        own = windows.of("person") == name
        assert windows.start[fit[own[fit]]].max() < windows.start[val[own[val]]].min()
    with pytest.raises(ValueError, match="1 training people and 2 windows leave no validation side"):
        protocols.spared(Trials(windows), np.arange(2), 0)


def test_brainomni_is_tuned_on_codes_that_are_made_once(people, brainomni):
    """From codes as from signals: the same encoding, and the tokenizer does not change."""
    windows = trials(people, "p0", "p1")
    signals = WindowDataset(windows, brainomni.batcher())
    assert Tokenized.fits(brainomni.model)
    coded = Tokenized(brainomni.model, signals, size=5)
    rows = [3, 40, 7]
    with torch.inference_mode():
        one, two = (brainomni.model.encode(d.__getitems__(rows)) for d in (signals, coded))
    torch.testing.assert_close(one.pooled, two.pooled)
    found = comparison.run(
        brainomni, trials(people, *SOURCE), trials(people, *TARGET), seed=0, adapt=("finetune",),
        untrained=("finetune",), baselines=("majority",), networks=(), steps=6, tries=1,
    )  # fmt: skip
    assert set(found["baselines"]) == {
        "untrained finetune", "untrained over the tokenizer, finetune", "majority", "permuted labels"
    }  # fmt: skip


def test_the_best_weights_are_kept(people, luna):
    """Those of the lowest validation loss, not the last; and what the network has frozen stays."""
    windows = trials(people, *SOURCE)
    number = np.searchsorted(["left", "right"], windows.label.astype(str))
    data = WindowDataset(windows, luna.batcher())
    fit, val = (
        Labelled(data, rows, number[rows]) for rows in protocols.spared(Trials(windows), np.arange(len(windows)), 0)
    )
    torch.manual_seed(0)
    network = luna.untrained(1).model
    frozen = network.blocks[0].rate.clone()
    objective = Supervised(160, 2, readout=Normed(160, 2))
    tuned = tune(network, objective, fit, val, Tuning(steps=40, learning_rate=3e-3, validations=8, patience=2), 0)
    logits = torch.from_numpy(predict(network, objective, data, val.rows)).log()
    assert balanced_loss(logits, torch.from_numpy(val.labels)) == pytest.approx(tuned.loss, abs=1e-4)
    assert tuned.step % 5 == 0
    assert torch.equal(network.blocks[0].rate, frozen)
    network, upside = luna.untrained(1).model, Labelled(data, val.rows, 1 - val.labels)  # learning can only harm
    objective = Supervised(160, 2, readout=Normed(160, 2))
    worse = tune(network, objective, fit, upside, Tuning(steps=40, learning_rate=3e-3, validations=8, patience=2), 0)
    assert worse.step <= 15
    assert math.isnan(tune(network, objective, fit, None, Tuning(steps=2), 0).loss)


def test_codes_against_principal_components(people, brainomni):
    train, test = trials(people, *SOURCE), trials(people, *TARGET)
    found = autoencoding.run(brainomni, train, test, seed=0)
    linear = found["baselines"]["principal components, a linear code"]
    assert -0.2 < found["score"] < 0.3 < linear["score"] <= 1
    assert set(found["per_subject"]) == {f"sim/{s}" for s in TARGET}
    assert len(found["perplexity"]) == 2
    assert all(1 <= x <= 16 for x in found["perplexity"])
    assert found["bits_per_second"] == 3 * 4 * 2 * 4 * 2
    assert len(found["traces"]) == 2


def test_as_many_components_as_dimensions_leave_nothing_out():
    rng = np.random.default_rng(0)
    known, asked = ([w for w in rng.normal(size=(n, 2, 8))] for n in (200, 5))
    made = autoencoding.components(known, asked, 16, 16.0)
    np.testing.assert_allclose(made, asked, atol=1e-3)
    coarse = autoencoding.components(known, asked, 16, 2.0)
    assert np.abs(np.array(coarse) - asked).max() > 0.1
