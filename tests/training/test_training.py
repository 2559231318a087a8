"""Training: which windows a step sees, and a killed run that ends as if nothing had happened."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from brainfm.models import luna
from brainfm.objectives.masked_patches import MaskedPatches
from brainfm.recording import Channels, Recording
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.tokens import Facts
from brainfm.training.batches import Batcher, WindowDataset
from brainfm.training.curves import join_curves
from brainfm.training.data import ShardData, StepSampler
from brainfm.training.pretraining import Pretraining, Settings, Trained, train

SFREQ = 32.0
FACTS = Facts(modality=("eeg",), kinds=("eeg",), sfreq=SFREQ, window_s=1.0)
RECIPE = {"of": "this test"}


pytestmark = pytest.mark.usefixtures("one_thread")


# Which windows a step sees.


def drawn(seed: int = 0, start: int = 0, weights: dict | None = None, steps: int = 40) -> list[list[int]]:
    sampler = StepSampler(["a"] * 30 + ["b"] * 10, 8, steps, seed, weights)
    sampler.start = start
    return list(sampler)


def test_sampler_follows_from_seed_and_step() -> None:
    assert drawn() == drawn()
    assert drawn() != drawn(seed=1)
    assert drawn(start=17) == drawn()[17:]
    assert drawn(steps=20) == drawn()[:20]
    assert all(len(rows) == 8 for rows in drawn())
    assert len({tuple(rows) for rows in drawn()}) == 40


def test_sampler_draws_datasets_evenly_or_as_told() -> None:
    share = np.mean([row >= 30 for rows in drawn(steps=300) for row in rows])
    assert 0.45 < share < 0.55
    share = np.mean([row >= 30 for rows in drawn(steps=300, weights={"a": 3.0}) for row in rows])
    assert 0.2 < share < 0.3
    with pytest.raises(ValueError, match=r"names dataset 'c'; the training windows come from a, b"):
        drawn(weights={"c": 1.0})


def test_sampler_of_fewer_windows_than_a_batch() -> None:
    assert all(set(rows) == {0, 1} or len(rows) == 8 for rows in StepSampler(["a", "a"], 8, 5, 0))


# Runs.


class Pulled(WindowDataset):
    """A dataset whose plug is pulled when batch number `last` is asked for."""

    def __init__(self, windows: Windows, batcher: Batcher, last: int | None, kill: bool = False) -> None:
        super().__init__(windows, batcher)
        self.last, self.asked, self.kill = last, 0, kill

    def __getitems__(self, rows: list[int]):
        self.asked += 1
        if self.last is not None and self.asked > self.last:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ConnectionAbortedError("the plug is pulled")
        return super().__getitems__(rows)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    """A few seconds of slow waves that all channels share."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    time = np.arange(round(24 * SFREQ)) / SFREQ
    wave = np.stack([np.sin(2 * np.pi * 2 * time + shift) for shift in (0, 0.5, 1.0, 1.5)])
    made = Recording(
        "waves", "1", "eeg", Channels.make(["C3", "C4", "O1", "O2"], "eeg", rng.normal(0, 0.05, (4, 3))), sfreq=SFREQ,
        signal=1e-5 * (wave + 0.1 * rng.normal(size=wave.shape)),
    )  # fmt: skip
    write_shard(folder / "sub-1.h5", [made], {})
    return open_shards(folder).windows(1.0, 0.5)


def run(
    windows: Windows,
    work: Path,
    last: int | None = None,
    steps: int = 12,
    accumulate: int = 1,
    kill: bool = False,
    told: dict | None = None,
    **recipe,
) -> tuple[dict[str, torch.Tensor], Trained]:
    torch.manual_seed(0)
    model = luna.build(FACTS, **{**luna.SIZES["test"], "patch": 8})
    batcher = Batcher(patch=8)
    settings = Settings(
        steps=steps, batch_size=4, learning_rate=5e-3, accumulate=accumulate, validations=3, **(told or {})
    )
    data = ShardData(
        Pulled(windows.take(range(30)), batcher, last, kill), WindowDataset(windows.take(range(32, 40)), batcher),
        ["waves"] * 30, 4, steps * accumulate, 0,
    )  # fmt: skip
    done = train(model, [MaskedPatches()], data, settings, 0, work, {**RECIPE, **recipe})
    return model.state_dict(), done


def curve(path: Path, name: str) -> dict[int, float]:
    """Step → value; every step once."""
    rows = [r for r in csv.DictReader(path.read_text().splitlines()) if r.get(name)]
    steps = [int(r["step"]) for r in rows]
    assert len(steps) == len(set(steps)), f"{name}: steps {steps}"
    assert steps == sorted(steps)
    return {int(r["step"]): float(r[name]) for r in rows}


def assert_same(one: tuple[dict, Trained], other: tuple[dict, Trained]) -> None:
    assert all(torch.equal(one[0][k], other[0][k]) for k in one[0])
    for name in ("train/loss", "val/loss"):
        assert curve(one[1].curves, name) == curve(other[1].curves, name)


@pytest.mark.parametrize(("accumulate", "told"), [(1, {}), (2, {"precision": "bf16-mixed"}), (1, {"ema": 0.8})])
def test_a_run_that_broke_off_ends_as_if_it_had_not(
    windows: Windows, tmp_path: Path, accumulate: int, told: dict
) -> None:
    calm = run(windows, tmp_path / "calm", accumulate=accumulate, told=told)
    with pytest.raises(ConnectionAbortedError):
        run(windows, tmp_path / "broken", last=7 * accumulate, accumulate=accumulate, told=told)
    assert (tmp_path / "broken/last.ckpt").exists()
    again = run(windows, tmp_path / "broken", accumulate=accumulate, told=told)
    assert_same(calm, again)
    assert len(curve(calm[1].curves, "train/loss")) == 12
    assert len(curve(calm[1].curves, "val/loss")) == 3
    assert again[1].metrics["val/loss"] == calm[1].metrics["val/loss"]


def test_moving_average_of_the_weights_is_what_is_kept(
    windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[dict[str, torch.Tensor]] = []

    def note(module: Pretraining, *_: object) -> None:
        steps.append({k: v.detach().clone() for k, v in module.model.state_dict().items()})

    monkeypatch.setattr(Pretraining, "on_train_batch_end", note)
    plain = run(windows, tmp_path / "plain", steps=6)
    assert all(torch.equal(steps[-1][k], plain[0][k]) for k in plain[0])
    steps.clear()
    kept, _ = run(windows, tmp_path / "ema", steps=6, told={"ema": 0.5})
    assert all(torch.equal(steps[-1][k], plain[0][k]) for k in plain[0])  # the average does not touch the training
    for name, value in kept.items():
        average = steps[0][name].double()
        for step in steps[1:]:
            average = 0.5 * average + 0.5 * step[name].double()
        torch.testing.assert_close(value.double(), average, rtol=1e-4, atol=1e-6)


def test_a_run_that_broke_off_twice(windows: Windows, tmp_path: Path) -> None:
    calm = run(windows, tmp_path / "calm")
    for last in (6, 5):
        with pytest.raises(ConnectionAbortedError):
            run(windows, tmp_path / "broken", last=last)
    assert_same(calm, run(windows, tmp_path / "broken"))


def test_a_run_that_had_ended_is_not_trained_again(windows: Windows, tmp_path: Path) -> None:
    """Killed between the last step and the saving of the model."""
    calm = run(windows, tmp_path / "work")
    before = curve(calm[1].curves, "train/loss")
    again = run(windows, tmp_path / "work", last=0)
    assert all(torch.equal(calm[0][k], again[0][k]) for k in calm[0])
    assert curve(again[1].curves, "train/loss") == before
    assert again[1].metrics["val/loss"] == pytest.approx(calm[1].metrics["val/loss"])


def test_another_recipe_starts_anew_and_says_so(
    windows: Windows, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(ConnectionAbortedError):
        run(windows, tmp_path / "work", last=7, code="as it was", seed=1)
    capsys.readouterr()
    again = run(windows, tmp_path / "work", code="edited", seed=1)
    said = f"{tmp_path / 'work'} holds a run that broke off, of another code: it starts anew"
    assert said in capsys.readouterr().out
    assert_same(run(windows, tmp_path / "calm"), again)
    assert "broke off" not in capsys.readouterr().out
    run(windows, tmp_path / "work", code="edited", seed=1)
    assert "broke off" not in capsys.readouterr().out


def test_the_loss_falls(windows: Windows, tmp_path: Path) -> None:
    _, done = run(windows, tmp_path / "work", steps=60)
    losses = list(curve(done.curves, "val/loss").values())
    assert losses[-1] < 0.9 * losses[0]
    assert done.seconds > 0


def test_join_curves_drops_the_steps_done_twice(tmp_path: Path) -> None:
    earlier, later = tmp_path / "earlier.csv", tmp_path / "later.csv"
    earlier.write_text("step,train/loss,val/loss\n0,3,\n1,2.5,\n1,,2.4\n2,2,\n")
    later.write_text("step,train/loss\n2,2\n3,1\n")
    join_curves(earlier, later)
    assert curve(later, "train/loss") == {0: 3, 1: 2.5, 2: 2, 3: 1}
    assert curve(later, "val/loss") == {1: 2.4}


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import test_training as t
windows = t.open_shards({shards!r}).windows(1.0, 0.5)
t.run(windows, Path({work!r}), last=9, kill=True)
"""


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(windows: Windows, tmp_path: Path) -> None:
    """SIGKILL: no handler runs and no file is closed, yet the curve keeps the steps before the checkpoint."""
    shards, work = str(windows.recordings[0].path.parent), str(tmp_path / "broken")
    code = KILLED.format(here=str(Path(__file__).parent), shards=shards, work=work)
    killed = subprocess.run(
        [sys.executable, "-c", "import torch\ntorch.set_num_threads(1)\n" + code], capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert_same(run(windows, tmp_path / "calm"), run(windows, tmp_path / "broken"))
