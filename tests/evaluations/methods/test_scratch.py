"""Networks from scratch as methods: they read the shared channels, train as others do, and tell what cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brainfm.evaluations.methods import scratch
from brainfm.evaluations.methods.trials import Side, Trials
from brainfm.recording import Channels, Events, Recording
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard
from brainfm.training.finetuning import Tuning

SFREQ, EACH, PEOPLE = 64.0, 24, 4
TUNING = Tuning(40, 16, validations=4, patience=4)

pytestmark = pytest.mark.usefixtures("one_thread")


def recorded(folder, people: int, seconds: float = 1.0) -> Trials:
    """Trials of each person; "left" has a rhythm of 10 Hz in the first channel. Everyone has a channel of their own."""
    for i in range(people):
        rng = np.random.default_rng(i)
        label = ["left" if k % 2 else "right" for k in range(EACH)]
        names = ["C3", "Cz", "C4", f"own {i}"]
        time = np.arange(round(EACH * seconds * SFREQ)) / SFREQ
        signal = rng.normal(size=(4, len(time)))
        signal[0] += 3 * np.sin(2 * np.pi * 10 * time) * np.repeat(np.array(label) == "left", round(seconds * SFREQ))
        recording = Recording(
            "sim", f"p{i}", "eeg", Channels.make(names, "eeg"), sfreq=SFREQ, signal=signal * 1e-5,
            events=Events(np.arange(EACH) * seconds, np.full(EACH, seconds), label), simulated=True,
        )  # fmt: skip
        write_shard(folder / f"p{i}.h5", [recording], {})
    return Trials(open_shards(folder).trials(0, seconds))


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    return recorded(tmp_path_factory.mktemp("people"), PEOPLE)


def side(trials: Trials) -> Side:
    """Two people train, one decides when to stop, one is scored."""
    number = np.searchsorted(np.unique(trials.people), trials.people)
    return Side(*(np.flatnonzero(rows) for rows in (number < 2, number == 2, number == 3)))


def test_networks_read_the_shared_channels_and_draw_nothing_from_the_stream(trials: Trials) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    found = scratch.networks(trials, ["eegnet", "eeg_conformer"], 1)
    assert torch.equal(torch.rand(1), expected)
    assert list(found) == ["eegnet", "eeg_conformer"]
    again = scratch.networks(trials, ["eegnet"], 1)["eegnet"][0].model.state_dict()
    other = scratch.networks(trials, ["eegnet"], 2)["eegnet"][0].model.state_dict()
    for fresh, batches in found.values():
        assert (fresh.facts.channels, fresh.facts.sfreq, fresh.facts.window_s) == (3, SFREQ, 1.0)
        assert len(batches) == len(trials)
        np.testing.assert_array_equal(batches.__getitems__([5]).signal()[0].numpy(), trials.signals().values[5])
        assert not fresh.model.training
    own = found["eegnet"][0].model.state_dict()
    assert all(torch.equal(own[k], again[k]) for k in own)
    assert any(not torch.equal(own[k], other[k]) for k in own)


@pytest.mark.parametrize("name", ["eegnet", "shallow_fbcsp", "eeg_conformer"])
def test_a_new_person_is_decoded_and_nothing_of_theirs_was_used(trials: Trials, name: str) -> None:
    (method,) = scratch.methods(trials, [name], TUNING, 0)
    assert (method.name, method.stops_early) == (name, True)
    parts, setting = side(trials), {"learning_rate": 5e-4}
    fitted = method.fit(trials, parts, setting, 0)
    chances = fitted.predict_proba(parts.test)
    np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-5)
    assert np.mean(chances.argmax(axis=1) == trials.labels[parts.test]) > 0.8
    turned = trials.permuted(np.random.default_rng(0))
    turned.labels[parts.taught] = trials.labels[parts.taught]
    assert not np.array_equal(turned.labels, trials.labels)
    np.testing.assert_array_equal(method.fit(turned, parts, setting, 0).predict_proba(parts.test), chances)


def test_at_chance_on_permuted_labels(trials: Trials) -> None:
    (method,) = scratch.methods(trials, ["shallow_fbcsp"], TUNING, 0)
    parts, permuted = side(trials), trials.permuted(np.random.default_rng(1))
    chances = method.fit(permuted, parts, {"learning_rate": 3e-4}, 0).predict_proba(parts.test)
    assert abs(np.mean(chances.argmax(axis=1) == permuted.labels[parts.test]) - 0.5) < 0.3


def test_deep4_in_trials_of_half_a_second_says_what_it_needs(tmp_path) -> None:
    short = recorded(tmp_path, 1, seconds=0.5)
    with pytest.raises(ValueError, match=r"windows of 32 samples; Deep4Net needs one channel and \d+ samples"):
        scratch.networks(short, ["deep4"], 0)


def test_an_unknown_network_names_the_nearest(trials: Trials) -> None:
    with pytest.raises(KeyError, match=r"no network 'shalow_fbcsp' .*did you mean 'shallow_fbcsp'"):
        scratch.methods(trials, ["shalow_fbcsp"], TUNING, 0)


def test_the_readout_of_the_conformer_has_two_hidden_layers() -> None:
    layers = scratch.readout("eeg_conformer", 2440, 4)
    assert sum(p.numel() for p in layers.parameters()) == 2440 * 256 + 256 + 256 * 32 + 32 + 32 * 4 + 4
