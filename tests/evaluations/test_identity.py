"""The identity diagnostics on people whose signals carry who they are, with and without what they do."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from brainfm.evaluations import identity, layerwise, perturbation
from brainfm.evaluations.identity_probes import parted
from brainfm.models import eegnet, luna
from brainfm.recording import Channels, Events, Recording
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.tokens import Encoding, Facts
from brainfm.training.batches import ArrayDataset, WindowDataset
from brainfm.training.checkpoint import Pretrained

pytestmark = pytest.mark.usefixtures("one_thread")
SFREQ, TRIALS, NAMES = 64.0, 40, ("F3", "F4", "C3", "C4", "P3", "P4")
PEOPLE, KNOWN = 10, 5


class Loud(nn.Module):
    """Tokens of four channels' loudness in each quarter of a window, through two blocks; blind, of the last two."""

    patch = 16

    def __init__(self, first: int = 0) -> None:
        super().__init__()
        self.first = first
        self.blocks = nn.ModuleList(nn.Linear(6 - first, 6 - first) for _ in range(2))
        for block in self.blocks:
            nn.init.eye_(block.weight)
            nn.init.zeros_(block.bias)

    def encode(self, batch):
        power = batch.values.unflatten(1, batch.grid).var(-1).add(1e-6).log().transpose(1, 2)
        x = power[..., self.first :]
        for block in self.blocks:
            x = block(x)
        real = batch.mask.unflatten(1, batch.grid).any(dim=1)
        return Encoding(x, (x * real[..., None]).sum(1) / real.sum(1, keepdim=True), real)


class Known(Pretrained):
    """Its untrained twin hears the last two channels only, which say nothing of the label."""

    def untrained(self, seed):
        return Known(Loud(4).eval(), {}, Facts(), {})


def known(first=0, **card):
    return Known(Loud(first).eval(), {}, Facts(), card)


def recording(number, rng, gain):
    """Seconds of rest and task in turn; each channel has the person's own loudness, C3's depends on the task too."""
    label = [("rest", "task")[i // 2 % 2] for i in range(TRIALS)]
    signal = rng.normal(size=(len(NAMES), TRIALS, int(SFREQ)))
    signal *= np.exp(rng.normal(scale=0.22, size=len(NAMES)))[:, None, None]
    signal[2, np.array(label) == "task"] *= gain
    place = np.column_stack([np.tile([-0.04, 0.04], 3), np.repeat([0.05, 0.0, -0.05], 2), np.full(6, 0.08)])
    return Recording(
        "sim", f"p{number}", "eeg", Channels.make(list(NAMES), "eeg", place), sfreq=SFREQ,
        signal=signal.reshape(len(NAMES), -1) * 1e-5, events=Events(np.arange(TRIALS, dtype=float), np.ones(TRIALS),
        label), simulated=True,
    )  # fmt: skip


def sides(folder, gain):
    rng = np.random.default_rng(0)
    for i in range(PEOPLE):
        write_shard(folder / f"p{i}.h5", [recording(i, rng, gain(i))], {})
    stored = open_shards(folder)
    made = [stored.subject(f"p{i}").trials(0, 1) for i in range(PEOPLE)]
    return Windows.join(made[:KNOWN]), Windows.join(made[KNOWN:])


QUICK = {"seed": 0, "permutations": 39, "label_permutations": 2, "gap_s": 1.0, "per_class": 6, "segments": 2,
         "inverse_penalty": 0.1}  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Everyone is louder at C3 in the task."""
    both = sides(tmp_path_factory.mktemp("told"), lambda i: 2.5)
    return both, identity.run(known(), *both, **QUICK)


@pytest.fixture(scope="module")
def trapped(tmp_path_factory):
    """Half of the people are louder at C3 in the task and half at rest: nothing that people share."""
    both = sides(tmp_path_factory.mktemp("trapped"), lambda i: 2.5 if i % 2 else 0.4)
    return both, identity.run(known(), *both, **QUICK)


def test_a_label_that_people_share_is_found_by_every_diagnostic(told):
    _, found = told
    own = found["identity"]
    assert found["score"] > 0.85
    assert (found["chance"], found["n_subjects"], found["n_trials"]) == (0.5, 5, 5 * TRIALS)
    assert abs(found["baselines"]["untrained"]["score"] - 0.5) < 0.15
    parts = own["variance"]["pretrained"]
    assert parts["subject"]["share"] > 0.5
    assert parts["label"]["share"] > 3 * max(parts["label by subject"]["share"], 0.005)
    assert own["variance"]["untrained"]["label"]["share"] < 0.01
    assert own["consistency"]["pretrained"]["score"] > 0.8
    assert own["probes"]["pretrained"]["subject"]["score"] > 0.8
    assert own["probes"]["pretrained"]["subject"]["chance"] == pytest.approx(1 / 5)
    assert own["confounded"] is False
    assert own["says"][0].startswith("What people never seen do is read above chance")


def test_a_representation_of_identity_is_at_chance_on_people_never_seen_and_is_called_so(trapped):
    _, found = trapped
    own = found["identity"]
    assert abs(found["score"] - 0.5) < 0.12
    assert own["probes"]["pretrained"]["subject"]["score"] > 0.8
    assert own["variance"]["pretrained"]["label by subject"]["share"] > 0.02
    assert abs(own["variance"]["pretrained"]["label"]["share"]) < 0.02
    assert own["variance"]["pretrained"]["label"]["nulls"]["exchanged"]["p"] > 0.05
    assert own["consistency"]["pretrained"]["score"] < 0.3 < 0.8 < own["consistency"]["pretrained"]["own"]
    assert own["says"][0].startswith("Identity without the label")


def test_five_people_of_one_condition_a_recording_leave_the_label_open(told):
    """Their smallest p is above the level, so a label at any score is neither read nor missing."""
    own = deepcopy(told[1]["identity"])
    own["probes"]["pretrained"]["label"] |= {"p": 0.0625, "p_over": "people", "p_least": 0.0625, "n_people": 5}
    said = identity.says(own)[0]
    assert said.startswith("Whether what people never seen do can be read is open")
    assert "p cannot fall below 0.062 here, however good the guesses: too few people to exchange" in said
    own["probes"]["pretrained"]["label"] |= {"p": 0.03, "p_least": 0.03125, "n_people": 6}
    assert identity.says(own)[0].startswith("What people never seen do is read above chance")


def test_erasing_the_training_people_takes_them_and_leaves_the_label(told):
    own = told[1]["identity"]["erasure"]
    assert own["axes"] == 3, "half of the six features, which four axes of five people would have emptied"
    assert own["before"]["subject_known"]["score"] > own["after"]["subject_known"]["score"] + 0.3
    assert own["random"]["subject_known"]["score"] > own["after"]["subject_known"]["score"] + 0.1
    assert own["after"]["label"]["score"] > 0.7
    assert own["difference"]["subject_known"]["ci"][1] < 0


def test_layers_perturbations_and_maps_point_at_the_channel_of_the_label(told):
    own = told[1]["identity"]
    assert [layer["layer"] for layer in own["layers"]] == ["input", "blocks.0", "blocks.1"]
    assert all(layer["label"]["score"] > 0.85 > 0.65 > layer["label_untrained"]["score"] for layer in own["layers"])
    space = {p["name"]: p for p in own["perturbation"] if p["axis"] == "space"}
    assert max(space, key=lambda name: space[name]["drop"]) == "C3"
    assert space["C3"]["p_holm"] < 0.05 < space["F3"]["p_holm"]
    assert {p["axis"] for p in own["perturbation"]} == {"time", "space", "band"}
    time = [p for p in own["perturbation"] if p["axis"] == "time"]
    assert [p["name"] for p in time] == ["0 to 0.5 s", "0.5 to 1 s"]
    assert [topo["title"].split()[0] for topo in told[1]["topographies"]] == ["encoding", "true"]
    assert np.argmax(told[1]["topographies"][1]["values"]) == 2


def test_without_the_one_over_f_part_the_loudness_is_gone_and_it_alone_reads_the_label(told):
    own = told[1]["identity"]["aperiodic"]
    assert own["before"]["label"]["score"] > 0.85
    assert own["after"]["label"]["score"] < 0.7
    assert own["alone"]["label"]["score"] > 0.8
    assert own["difference"]["label"]["ci"][1] < 0


def test_what_cannot_be_asked_is_refused(told):
    train, test = told[0]
    with pytest.raises(ValueError, match="training windows"):
        identity.run(known(), train, train, seed=0)
    with pytest.raises(ValueError, match="pretraining"):
        identity.run(known(subjects={"val": ["sim/p7"]}), train, test, seed=0)
    with pytest.raises(ValueError, match="1 of 1 people on the test side"):
        identity.run(known(), train, test.take(test.of("subject") == "p7"), seed=0)
    with pytest.raises(ValueError, match="0 late windows of 40"):
        identity.run(known(), train, test, seed=0, gap_s=30.0)


def test_early_and_late_windows_are_apart_by_the_gap_in_every_recording(told):
    windows = told[0][0]
    early, late = parted(windows, 2.0)
    assert not (early & late).any()
    for r in np.unique(windows.recording):
        own = windows.recording == r
        end = (windows.start + windows.samples)[own & early].max() / SFREQ
        assert end <= 0.6 * TRIALS
        assert windows.start[own & late].min() / SFREQ >= end + 2.0


def test_layers_are_means_over_real_tokens_and_leave_no_hook(told):
    windows = told[0][0]
    short = Windows(windows.recordings, windows.recording, windows.start, windows.samples.copy(), windows.label,
                    windows.stimulus)  # fmt: skip
    short.samples[::2] = 32
    model = known()
    with torch.no_grad():
        model.model.blocks[1].weight.mul_(2)
    found, pooled = layerwise.outputs(model, WindowDataset(short, model.batcher()))
    assert list(found) == ["input", "blocks.0", "blocks.1"]
    assert np.allclose(found["input"], found["blocks.0"])
    assert np.allclose(found["blocks.1"], 2 * found["input"], atol=1e-5)
    assert np.allclose(found["blocks.1"], pooled, atol=1e-5)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.modules())


@pytest.mark.parametrize(
    ("network", "names"),
    [(luna, ["input", "blocks.0"]), (eegnet, ["along_time", "norm_time", "norm_channels", "later", "mixing"])],
)
def test_the_trunk_is_found_in_networks_of_the_catalogue(network, names):
    facts = Facts(("eeg",), ("eeg",), SFREQ, 1.0, len(NAMES))
    model = Pretrained(network.build(facts, **network.SIZES["test"]).eval(), {}, facts)
    table = Channels.make(list(NAMES), "eeg", np.random.default_rng(0).normal(scale=0.05, size=(6, 3)))
    signals = np.random.default_rng(1).normal(scale=1e-5, size=(5, 6, 64)).astype(np.float32)
    found, pooled = layerwise.outputs(model, ArrayDataset(signals, table, SFREQ, model.batcher()), size=3)
    assert list(found)[: len(names)] == names
    assert all(x.shape[0] == 5 and np.isfinite(x).all() for x in found.values())
    assert np.array_equal(pooled, model.pooled(ArrayDataset(signals, table, SFREQ, model.batcher()), 3))


def test_labels_that_a_permutation_leaves_as_they_are_count_as_well():
    """Two people of three windows: a ninth of the permutations is the truth, whatever is perturbed."""
    rng = np.random.default_rng(1)
    readout = make_pipeline(StandardScaler(), LogisticRegression()).fit(rng.normal(size=(40, 3)), np.arange(40) % 2)
    values, people = rng.normal(size=(6, 3, 128)).astype(np.float32), np.repeat(["a", "b"], 3)
    found = perturbation.measured(
        lambda x: np.log(x.var(axis=-1)), readout, values, 64.0, Channels.make(["x", "y", "z"], "eeg"), people,
        np.array([0, 1, 1, 0, 1, 1]), segments=12, seed=0,
    )  # fmt: skip
    assert len(found) > 15
    assert min(one["p"] for one in found) > 0.08


def test_perturbations_change_what_they_say_and_nothing_else():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 3, 128)).astype(np.float32)
    people = np.repeat(["a", "b"], 3)
    table = Channels.make(["x", "y", "z"], "eeg")
    found = list(perturbation.perturbed(values, 64.0, table, people, 4, 0))
    assert [axis for axis, _, _ in found] == ["time"] * 4 + ["space"] * 3 + ["band"] * 4
    time, space, band = found[1][2], found[5][2], found[9][2]
    assert np.array_equal(np.delete(time, np.s_[32:64], axis=2), np.delete(values, np.s_[32:64], axis=2))
    assert np.allclose(np.sort(time[..., 32:64]), np.sort(values[..., 32:64]))
    assert np.array_equal(space[:, [0, 2]], values[:, [0, 2]])
    assert not any(np.array_equal(a, b) for a, b in zip(space[:, 1], values[:, 1], strict=True))
    for window in space[:3, 1]:
        assert any(np.array_equal(window, own) for own in values[:3, 1]), "of the same person"
    lost = np.abs(np.fft.rfft(values)) - np.abs(np.fft.rfft(band))
    hertz = np.fft.rfftfreq(128, 1 / 64)
    alpha = (hertz >= 8) & (hertz < 13)
    assert found[9][1] == "alpha, 8 to 13 Hz"
    assert np.abs(np.fft.rfft(band))[..., alpha].max() < 1e-3 < 0.1 < np.abs(lost[..., alpha]).max()
    assert np.abs(lost[..., ~alpha]).max() < 1e-3
    many = Channels.make([f"c{i}" for i in range(60)], "eeg", rng.normal(scale=0.06, size=(60, 3)))
    regions = perturbation.groups(many)
    assert sorted(np.concatenate(list(regions.values())).tolist()) == list(range(60))
    assert len(regions) <= 9
