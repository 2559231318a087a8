"""What methods are given is made once, and a setting that diverged is never chosen."""

import numpy as np
import pytest

from brainfm.evaluations.methods.trials import Side, Trials, choose
from brainfm.shards.read import open_shards
from brainfm.shards.write import write_shard
from tests.evaluations.people import person
from tests.evaluations.scripted import Scripted


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    for i in range(3):
        write_shard(folder / f"p{i}.h5", [person(f"p{i}", rng)], {})
    return Trials(open_shards(folder).trials(0, 1))


def test_signals_are_made_once_for_permuted_labels_too(trials):
    """Also where the permuted trials were there before any signal was."""
    permuted = trials.permuted(np.random.default_rng(0))
    assert permuted.signals() is trials.signals()


def test_a_setting_that_diverged_is_never_chosen(trials):
    rows = np.arange(len(trials))
    side = Side(rows[:24], rows[24:48], rows[48:])
    setting, losses = choose(Scripted("a", np.nan, 0.6, 0.9, np.nan), trials, side, 4, 0)
    assert setting == {"said": 0.9}
    assert np.isnan(losses[0])
    with pytest.raises(ValueError, match="a diverged: none of 2 settings has a finite loss"):
        choose(Scripted("a", np.nan, np.nan), trials, side, 2, 0)
