"""V1T: its published size, a read-out against a slow loop, what may and may not change a prediction, and learning."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from brainfm.datasets import sim_v1
from brainfm.layers import draws
from brainfm.models import v1t
from brainfm.objectives.poisson_response import PoissonResponse
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard
from brainfm.training.batches import facts_of
from brainfm.training.checkpoint import Pretrained, build

torch.set_num_threads(1)
SMALL = {"height": 18, "patch": 6, "stride": 4, "dim": 12, "depth": 1, "heads": 2, "hidden": 24, "behaviour_hidden": 6,
         "dropout": 0.0, "patch_dropout": 0.0}  # fmt: skip
CONFIG = {"kind": "models", "name": "v1t", "keywords": SMALL}
MADE = {"neurons": 6, "images": 40, "test_images": 4, "repeats": 3, "height": 18, "width": 32}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("v1")
    for mouse, neurons in (("m1", 6), ("m2", 9)):
        made = sim_v1.recordings(None, subjects=[mouse], **{**MADE, "neurons": neurons})
        write_shard(folder / f"{mouse}.h5", made, {})
    return open_shards(folder)


@pytest.fixture
def model(corpus):
    facts = facts_of(corpus, 1.0)
    torch.manual_seed(0)
    return Pretrained(build(CONFIG, facts).eval(), CONFIG, facts)


def both(corpus, length_s=1.0):
    """Three images of each mouse, in one batch with padding."""
    windows = corpus.where(session="single").windows(length_s)
    return windows.take(np.concatenate([np.flatnonzero(windows.recording == r)[:3] for r in (0, 1)]))


def test_the_core_has_its_published_size():
    with torch.device("meta"):
        model, small = (v1t.build(v1t.FACTS, **v1t.SIZES[size]) for size in ("published", "small"))
    assert sum(p.numel() for p in model.core.parameters()) == 2_465_200
    assert (model.core.rows, model.core.columns) == (29, 57)
    assert (small.core.rows, small.core.columns) == (8, 15)
    assert model.readout.weight.shape == (8000, 155)


def test_mixed_animals_share_a_batch(corpus, model):
    batch = model.batcher()(both(corpus))
    assert batch.aligned["neuron"].shape == (6, 9)
    assert batch.aligned["stimulus"].shape == (6, 1, 18 * 32)
    said = model.model(batch)
    response, real = model.model.target(batch)
    assert said.shape == response.shape == real.shape == (6, 9, 1)
    assert real.sum(1).flatten().tolist() == [6, 6, 6, 9, 9, 9]
    assert (said > 0).all()
    stored = both(corpus).recordings[0]
    assert torch.equal(response[0, :6, 0], torch.from_numpy(stored.signal(0, 1)[:, 0]))


def test_an_animal_alone_gets_the_same_predictions(corpus, model):
    windows = both(corpus)
    together = model.model(model.batcher()(windows))
    alone = model.model(model.batcher()(windows.take([1])))
    torch.testing.assert_close(together[1, :6], alone[0])


def test_several_images_in_a_window_are_each_by_itself(corpus, model):
    several = model.model(model.batcher()(both(corpus, 4.0).take([0])))
    single = model.model(model.batcher()(corpus.where(session="single", subject="m1").windows(1.0).take(range(4))))
    assert several.shape == (1, 6, 4)
    torch.testing.assert_close(several[0], single[:, :, 0].T)
    batch = model.batcher()(both(corpus, 4.0).take([0]))
    batch.aligned["stimulus"][0, 2] = torch.nan
    assert model.model.target(batch)[1][0, 0].tolist() == [True, True, False, True]
    found = model.model.encode(batch)
    assert found.mask.view(1, 4, -1).all(-1).tolist() == [[True, True, False, True]]
    torch.testing.assert_close(model.model(batch)[..., [0, 1, 3]], several[..., [0, 1, 3]])


def test_the_read_out_against_a_loop(model):
    torch.manual_seed(1)
    read = v1t.Readout(["a/x/1", "a/x/2", "b/y/1"], 5, gaze=True)
    seen, number = torch.randn(2, 5, 3, 4), torch.tensor([[1, 0], [2, -1]])
    places = torch.rand(2, 1, 2, 2) * 2 - 1
    found = read(seen, number, places)
    for sample, channel in ((0, 0), (0, 1), (1, 0)):
        x, y = (places[sample, 0, channel] + 1) / 2 * torch.tensor([3.0, 2.0])
        left, top = int(x), int(y)
        right, down = min(left + 1, 3), min(top + 1, 2)
        a, b = x - left, y - top
        grid = seen[sample]
        value = (1 - b) * ((1 - a) * grid[:, top, left] + a * grid[:, top, right]) + b * (
            (1 - a) * grid[:, down, left] + a * grid[:, down, right]
        )
        row = number[sample, channel]
        expected = value @ read.weight[row] + read.bias[row]
        torch.testing.assert_close(found[sample, channel, 0], expected)


def test_places_follow_from_cortex_per_animal_and_are_drawn_in_training_only():
    torch.manual_seed(1)
    read = v1t.Readout(["a/x/1", "a/x/2", "b/y/1", "b/y/2"], 5, gaze=True)
    number = torch.tensor([[0, 1], [2, 3]])
    place = torch.rand(1, 2, 3).expand(2, -1, -1) * 4e-4
    gaze, seed = torch.zeros(2, 1, 2), torch.tensor([5, 6])
    mean = read.places(number, place, gaze, None)
    assert not torch.allclose(mean[0], mean[1]), "animals have maps of their own"
    assert torch.equal(mean, read.places(number, place, gaze, None))
    moved = read.places(number, place, gaze + 0.5, None)
    step = moved - mean
    torch.testing.assert_close(step[:, :, 0], step[:, :, 1], msg="gaze moves all neurons of an animal alike")
    assert step.abs().min() > 0
    unknown = read.places(number, torch.full_like(place, torch.nan), gaze, None)
    torch.testing.assert_close(unknown[:, :, 0], unknown[:, :, 1])
    with torch.no_grad():
        read.spread.copy_(torch.tensor([0.2, 0.1, 0.05]))
        read.place[1].weight.zero_()  # all look at the middle, where no draw is held at the edge
    one_animal = [x[:1].expand(4000, *x.shape[1:]) for x in (number, place, gaze)]
    drawn = read.places(*one_animal, draws.mix(torch.arange(4000)))[:, 0, 0].T
    expected = torch.tensor([[0.04, 0.02], [0.02, 0.0125]])
    torch.testing.assert_close(torch.cov(drawn), expected, rtol=0.1, atol=2e-3)
    one, same = (read.places(number, place, gaze, seed) for _ in range(2))
    assert torch.equal(one, same)
    assert torch.equal(one[1:], read.places(number[1:], place[1:], gaze[1:], seed[1:])), "a draw is its sample's own"


def test_an_animal_has_one_map_over_sessions_whose_neurons_are_not_tracked():
    read = v1t.Readout(["a/x/s1/1", "a/x/s1/a/b", "a/x/s2/1", "b/y/1"], 5, gaze=True)
    assert read.animal.tolist() == [0, 0, 0, 1]
    assert len(read.weight) == 4


def test_image_behaviour_and_gaze_all_matter(corpus, model):
    batch = model.batcher()(both(corpus))
    before = model.model(batch)
    for name in ("stimulus", "behaviour", "pupil_centre"):
        other = replace(batch, aligned={**batch.aligned, name: batch.aligned[name] + 0.5 * torch.rand(6, 1, 1)})
        if name == "stimulus":
            other.aligned[name] = batch.aligned[name].flip(-1)
        assert not torch.allclose(model.model(other), before), name


@pytest.mark.parametrize("name", ["behaviour", "pupil_centre"])
def test_a_response_whose_behaviour_is_unknown_does_not_count(corpus, model, name):
    batch = model.batcher()(both(corpus))
    series = batch.aligned[name].clone()
    series[1, 0, -1] = torch.nan
    gap = replace(batch, aligned={**batch.aligned, name: series})
    _, real = model.model.target(gap)
    assert real.any(1)[:, 0].tolist() == [True, False, True, True, True, True]
    rest = batch.rows(torch.tensor([0, 2, 3, 4, 5]))
    said, expected = (PoissonResponse()(model.model, b)["poisson"] for b in (gap, rest))
    torch.testing.assert_close(said, expected)
    encoded = model.model.encode(gap)
    assert not encoded.mask[1].any()
    assert not encoded.pooled[1].any()
    torch.testing.assert_close(encoded.pooled[[0, 2, 3, 4, 5]], model.model.encode(rest).pooled)
    absent = replace(batch, aligned={**batch.aligned, name: torch.full((6, 1, 1), torch.nan)})
    assert not model.model.target(absent)[1].any()
    without = v1t.build(model.facts, **SMALL, behaviour=[])
    assert without.target(absent)[1].any()


def test_the_responses_are_never_an_input(corpus, model):
    batch = model.batcher()(both(corpus))
    other = replace(batch, values=batch.values + 1)
    assert torch.equal(model.model(batch), model.model(other))
    assert torch.equal(model.model.encode(batch).pooled, model.model.encode(other).pooled)


def test_another_animal_takes_the_core(corpus, model):
    facts = facts_of(corpus.subject("m1"), 1.0)
    torch.manual_seed(7)
    other = build(CONFIG, facts)
    other.adopt(model.model)
    other.freeze_core()
    mine, theirs = model.model.core.state_dict(), other.core.state_dict()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    trained = {n.split(".")[0] for n, p in other.named_parameters() if p.requires_grad}
    assert trained == {"readout"}
    assert not list(other.core_weights())
    assert other.readout.weight.shape == (6, 12)


def test_it_learns_receptive_fields(corpus):
    own = corpus.where(session="single", subject="m1")
    facts = facts_of(own, 1.0)
    torch.manual_seed(0)
    model = Pretrained(build(CONFIG, facts), CONFIG, facts)
    batch = model.batcher()(own.windows(1.0))
    objective, optimiser = PoissonResponse(), torch.optim.Adam(model.model.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        parts = objective(model.model, batch)
        loss = parts["poisson"] + parts["core_l1"] + parts["readout_l1"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.15
    assert objective(model.model.eval(), batch)["metric_correlation"] > 0.3


def test_data_that_it_cannot_read_are_refused(corpus, model):
    facts = model.facts
    with pytest.raises(ValueError, match="V1T needs neurons and images; this corpus has 15 neurons and the covariates"):
        v1t.build(replace(facts, aligned={"behaviour": 3}), **SMALL)
    with pytest.raises(ValueError, match="images of 576 pixels have no 17 rows"):
        v1t.build(facts, **{**SMALL, "height": 17})
    with pytest.raises(ValueError, match=r"covariates \['speed'\] are not in this corpus"):
        v1t.build(facts, **SMALL, behaviour=["speed"])
    batch = model.batcher()(both(corpus))
    short = replace(batch, aligned={**batch.aligned, "stimulus": batch.aligned["stimulus"][..., 1:]})
    with pytest.raises(ValueError, match=r"expected an image for each response, \(batch, time, pixel\) \(6, 1, 576\)"):
        model.model(short)
    wide = replace(batch, aligned={**batch.aligned, "behaviour": torch.zeros(6, 1, 4)})
    with pytest.raises(ValueError, match=r"aligned\['behaviour'\] is \(6, 1, 4\); expected \(batch, 1, 3\)"):
        model.model(wide)
