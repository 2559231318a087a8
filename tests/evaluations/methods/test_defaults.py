"""Where a configuration names no methods, all that fit the recordings are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from brainfm.evaluations.methods import classical, defaults, scratch
from brainfm.evaluations.methods.trials import Trials
from brainfm.recording import Channels, Events, Recording
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard
from brainfm.training import checkpoint

CONFIGS = Path(__file__).parents[3] / "configs"
NETWORKS = ["eegnet", "shallow_fbcsp", "deep4", "eeg_conformer"]


def recorded(folder, modality: str, kind: str, seconds: float, sfreq: float = 64.0) -> Trials:
    """Six trials of one person with three channels."""
    signal = np.random.default_rng(0).normal(size=(3, round(6 * seconds * sfreq)))
    events = Events(np.arange(6) * seconds, np.full(6, seconds), ["a", "b"] * 3)
    channels = Channels.make(["x", "y", "z"], kind)
    made = Recording("sim", "p", modality, channels, sfreq=sfreq, signal=signal * 1e-5, events=events, simulated=True)
    write_shard(folder / "p.h5", [made], {})
    return Trials(open_shards(folder).trials(0, seconds))


def test_of_voltages_all_that_the_issue_of_baselines_names(tmp_path):
    trials = recorded(tmp_path, "eeg", "eeg", 4.0)
    names = ["majority", "log_band_power", "csp_lda", "tangent_space", "tangent_space recentred"]
    assert defaults.baselines(trials, "cross-subject") == names
    assert defaults.baselines(trials, "zero-shot") == names[:-1], "nothing of a new person may be looked at"
    assert defaults.networks(trials) == (NETWORKS, "")
    assert set(NETWORKS) == set(scratch.READOUTS)


def test_networks_whose_windows_are_too_short_are_named(tmp_path):
    trials = recorded(tmp_path, "eeg", "eeg", 0.5)
    found, said = defaults.networks(trials)
    assert found
    assert list(scratch.networks(trials, found, 0)) == found
    for name in set(NETWORKS) - set(found):
        with pytest.raises(ValueError, match="windows of 32 samples"):
            scratch.networks(trials, [name], 0)
    assert (
        said
        == f" Left out, for windows of 32 samples are too short: {', '.join(n for n in NETWORKS if n not in found)}."
    )


def test_a_network_is_built_for_its_shapes_alone_to_see_whether_it_fits(tmp_path, monkeypatch):
    """Its weights would be drawn, and thrown away, a second time."""
    made = []
    monkeypatch.setattr(scratch, "build", lambda *given: made.append(checkpoint.build(*given)) or made[-1])
    assert defaults.networks(recorded(tmp_path, "eeg", "eeg", 4.0))[0] == NETWORKS
    assert {p.device.type for network in made for p in network.parameters()} == {"meta"}


def test_what_the_comparison_of_brainomni_leaves_out_stands_beside_it_on_the_same_split():
    """It names two baselines, for `brainfm compare` pairs it with the file that has them all."""
    luna, omni = (
        yaml.safe_load((CONFIGS / f"transfer/eegmat_{name}.yaml").read_text()) for name in ("luna", "brainomni")
    )
    assert luna["windows"] == omni["windows"]
    of_split = ("protocol", "folds", "blocks", "calibration")
    assert [luna["evaluation"].get(k) for k in of_split] == [omni["evaluation"].get(k) for k in of_split]
    assert luna["evaluation"]["baselines"] == list(defaults.RHYTHMS)
    assert luna["evaluation"]["networks"] == NETWORKS
    wired = yaml.safe_load((CONFIGS / "wirings/eegmat.yaml").read_text())["transfer"]
    assert wired["eegmat_luna"]["data"] == wired["eegmat_brainomni"]["data"]


@pytest.mark.parametrize(("modality", "kind"), [("fmri", "region"), ("calcium", "neuron")])
def test_slow_series_have_components_and_connectivity(tmp_path, modality, kind):
    trials = recorded(tmp_path, modality, kind, 40.0, 0.5)
    names = defaults.baselines(trials, "cross-subject")
    assert names == ["majority", "pca", "functional_connectivity", "tangent_space"]
    assert [m.name for m in classical.classical(names)] == names
    assert defaults.networks(trials) == ([], "")
