"""Which windows a batch holds: balances, ranks, passes, resumption, workers, and where augmentations apply."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset

from brainfm import catalog
from brainfm.config import ConfigError
from brainfm.models import luna
from brainfm.objectives.masked_patches import MaskedPatches
from brainfm.recording import Channels, Events, Recording
from brainfm.shards.read import Windows, open_shards
from brainfm.shards.write import write_shard
from brainfm.tokens import Facts, TokenBatch
from brainfm.training import augment, runs
from brainfm.training.batches import Batcher, WindowDataset
from brainfm.training.checkpoint import Pretrained
from brainfm.training.data import PassSampler, RankSampler, ShardData, StepSampler, parts
from brainfm.training.pretraining import Settings, train
from brainfm.training.runs import train_and_save

QUICK = settings(max_examples=60, deadline=None)
SFREQ = 32.0


class Rows(Dataset):
    """Hands out the rows that it is asked for."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, rows: list[int]) -> list[int]:
        return list(rows)


def at(data: ShardData, step: int = 0, accumulate: int = 1, rank: int = 0, world: int = 1) -> ShardData:
    """The module as a trainer that stands at `step` on a rank sees it."""
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_step=step, accumulate_grad_batches=accumulate, global_rank=rank, world_size=world
    )
    return data


def made(
    n: int = 40, val: int = 10, batch_size: int = 6, steps: int = 20, seed: int = 0, **changed: object
) -> ShardData:
    return ShardData(Rows(n), Rows(val), ["a"] * n, batch_size, steps, seed, **changed)  # type: ignore[arg-type]


# Balance.


def earlier_draws(groups: list[str], batch_size: int, steps: int, seed: int, weights: dict[str, float]) -> list:
    """Balance by dataset as the first results of this project drew it; they hold only as long as this is matched."""
    names = sorted(set(groups))
    share = np.array([weights.get(name, 1.0) for name in names])
    rows = [np.flatnonzero(np.asarray(groups) == name) for name in names]
    found = []
    for step in range(steps):
        rng = np.random.default_rng((seed, step))
        counts = rng.multinomial(batch_size, share / share.sum())
        drawn = [rng.choice(own, n, replace=n > len(own)) for own, n in zip(rows, counts, strict=True)]
        found.append([int(r) for part in drawn for r in part])
    return found


@QUICK
@given(
    st.lists(st.sampled_from(["b", "a", "cc", "d"]), min_size=1, max_size=80), st.integers(1, 40), st.integers(0, 9),
    st.booleans(),
)  # fmt: skip
def test_draws_by_dataset_are_those_of_the_first_results(groups: list[str], size: int, seed: int, heavy: bool) -> None:
    weights = {groups[0]: 5.0} if heavy else {}
    assert list(StepSampler(groups, size, 5, seed, weights)) == earlier_draws(groups, size, 5, seed, weights)


def frequencies(keys: Iterable, sampler: StepSampler) -> tuple[Counter, int]:
    keys = list(keys)
    rows = [row for batch in sampler for row in batch]
    return Counter(keys[row] for row in rows), len(rows)


def near(count: int, n: int, p: float) -> bool:
    """Within four and a half standard deviations of the binomial."""
    return abs(count - n * p) <= 4.5 * math.sqrt(n * p * (1 - p)) + 1e-9


GROUPS = ["big"] * 900 + ["small"] * 100
PARTS = ["x"] * 700 + ["y"] * 150 + ["z"] * 50 + ["x"] * 90 + ["w"] * 10


@pytest.mark.parametrize("balance", ["subject", "class"])
def test_parts_of_a_dataset_are_equally_likely(balance: str) -> None:
    counts, n = frequencies(zip(GROUPS, PARTS, strict=True), StepSampler(GROUPS, 10, 600, 1, None, balance, PARTS))
    for part in "xyz":
        assert near(counts["big", part], n, 1 / 6), counts
    for part in "xw":
        assert near(counts["small", part], n, 1 / 4), counts


def test_weights_hold_between_datasets_whatever_is_balanced_within() -> None:
    sampler = StepSampler(GROUPS, 10, 600, 2, {"big": 3.0}, "subject", PARTS)
    counts, n = frequencies(zip(GROUPS, PARTS, strict=True), sampler)
    assert near(counts["big", "z"], n, 3 / 4 / 3)
    assert near(counts["small", "w"], n, 1 / 4 / 2)


def test_without_a_balance_all_windows_are_equally_likely() -> None:
    counts, n = frequencies(zip(GROUPS, PARTS, strict=True), StepSampler(GROUPS, 10, 600, 3, balance="none"))
    assert near(counts["big", "x"], n, 0.7)
    assert near(counts["small", "w"], n, 0.01)
    counts, n = frequencies(GROUPS, StepSampler(GROUPS, 10, 600, 3, {"small": 9.0}, "none"))
    assert near(counts["small"], n, 0.5)


def test_every_window_of_a_part_can_be_drawn_and_a_step_repeats_none_it_need_not() -> None:
    sampler = StepSampler(GROUPS, 16, 400, 4, None, "subject", PARTS)
    batches = list(sampler)
    assert {row for batch in batches for row in batch} >= set(range(850, 900)) | set(range(990, 1000))
    for batch in batches:
        repeated = [row for row, n in Counter(batch).items() if n > 1]
        assert all(PARTS[row] == "w" for row in repeated), "only the part of ten windows may run out"
    sampler.start = 150
    assert list(sampler) == batches[150:]


def test_unlabelled_windows_are_not_drawn_by_class() -> None:
    labels = ["", "left", "right", "", "left"] * 20
    rows = {row for batch in StepSampler(["a"] * 100, 8, 200, 0, None, "class", labels) for row in batch}
    assert rows == {i for i, word in enumerate(labels) if word}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"balance": "subjects"}, r"no balance 'subjects'; did you mean 'subject'\?"),
        ({"balance": "class", "parts": [""] * 1000}, "no window of dataset 'big' has a class"),
        ({"balance": "class", "parts": ["l"] * 900 + [""] * 100}, "no window of dataset 'small' has a class"),
        ({"balance": "subject"}, "needs the `parts`"),
        ({"balance": "none", "weights": {"bigg": 1.0}}, "names dataset 'bigg'"),
    ],
)
def test_a_balance_that_cannot_be_kept(changed: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        StepSampler(GROUPS, 8, 5, 0, **changed)


# Passes.


@QUICK
@given(st.integers(1, 200), st.integers(1, 64), st.integers(1, 3), st.integers(0, 9), st.data())
def test_every_window_comes_once_per_pass(n: int, size: int, passes: int, seed: int, data: st.DataObject) -> None:
    sampler = PassSampler(n, size, passes, seed)
    batches = list(sampler)
    assert len(batches) == len(sampler) == passes * math.ceil(n / size)
    orders = [list(itertools.chain(*batches[i : i + sampler.each])) for i in range(0, len(batches), sampler.each)]
    assert all(sorted(order) == list(range(n)) for order in orders)
    lengths = {len(batch) for batch in batches}
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    if n > 20:
        assert len({tuple(order) for order in orders}) == passes
        assert list(PassSampler(n, size, passes, seed + 1)) != batches
    sampler.start = data.draw(st.integers(0, len(batches)))
    assert list(sampler) == batches[sampler.start :]


def test_passes_take_neither_steps_nor_balance() -> None:
    data = made(n=50, batch_size=8, passes=3)
    assert Counter(row for batch in data.train_dataloader() for row in batch) == dict.fromkeys(range(50), 3)
    for changed in ({"weights": {"a": 1.0}}, {"balance": "subject"}):
        with pytest.raises(ValueError, match="passes take every window equally often"):
            made(passes=2, **changed)
    with pytest.raises(ValueError, match="passes is 0; expected 1 or more"):
        made(passes=0)


def test_nothing_to_train_on() -> None:
    with pytest.raises(ValueError, match="no window to train on"):
        made(n=0)


# Ranks.


@QUICK
@given(
    st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.integers(0, 9), st.integers(0, 3),
    st.integers(1, 3),
)  # fmt: skip
def test_ranks_share_every_batch_without_overlap_or_loss(
    n: int, times: int, world: int, in_passes: bool, seed: int, step: int, accumulate: int
) -> None:
    size = times * world
    changed = {"n": n, "batch_size": size, "seed": seed, "val": 9, "passes": 2 if in_passes else None}
    whole = list(at(made(**changed), step, accumulate).train_dataloader())
    if in_passes and n // math.ceil(n / size) < world:
        with pytest.raises(ValueError, match=f"{n} windows in batches of {size} leave a rank of {world} without one"):
            at(made(**changed), step, accumulate, 0, world).train_dataloader()
        return
    dealt = [list(at(made(**changed), step, accumulate, r, world).train_dataloader()) for r in range(world)]
    assert {len(part) for part in dealt} == {len(whole)}
    for batch, *of in zip(whole, *dealt, strict=True):
        assert all(of), "a rank without a window would wait for ever"
        assert Counter(batch) == Counter(itertools.chain(*of))
        assert max(map(len, of)) - min(map(len, of)) <= 1
        if not in_passes:
            assert {len(part) for part in of} == {times}


@QUICK
@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 4), st.integers(1, 40))
def test_ranks_share_the_validation_windows(n: int, times: int, world: int, most: int) -> None:
    changed = {"val": n, "batch_size": times * world, "val_windows": most}
    whole = list(at(made(**changed)).val_dataloader())
    assert Counter(itertools.chain(*whole)).keys() <= set(range(n))
    if min(n, most) < world:
        with pytest.raises(ValueError, match=f"{min(n, most)} validation windows for {world} ranks"):
            at(made(**changed), 0, 1, 0, world).val_dataloader()
        return
    dealt = [list(at(made(**changed), 0, 1, r, world).val_dataloader()) for r in range(world)]
    assert len({len(part) for part in dealt}) == 1, "ranks wait for each other at every batch"
    assert all(batch for part in dealt for batch in part)
    rows = Counter(row for part in dealt for batch in part for row in batch)
    assert rows == Counter(itertools.chain(*whole))
    assert set(rows.values()) == {1}
    assert sum(rows.values()) == min(n, most)


@pytest.mark.parametrize(("size", "world", "right"), [(5, 2, "4 or 6"), (3, 4, "4"), (9, 4, "8 or 12")])
def test_a_batch_that_does_not_divide_says_what_does(size: int, world: int, right: str) -> None:
    with pytest.raises(ValueError, match=f"batch_size {size} .* does not divide by {world}; set it to {right}$"):
        at(made(batch_size=size), 0, 1, 1, world).train_dataloader()
    with pytest.raises(ValueError, match="does not divide"):
        RankSampler(PassSampler(40, size, 1, 0), 0, world, size)


class Noted(pl.LightningModule):
    """A linear model that writes down which windows it was given."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.layer = folder, nn.Linear(3, 1, bias=False)
        nn.init.ones_(self.layer.weight)

    def _loss(self, rows: list[int], stage: str) -> torch.Tensor:
        with (self.folder / f"{stage}-{self.global_rank}").open("a") as file:
            file.write(" ".join(map(str, rows)) + "\n")
        x = torch.tensor([[math.sin(row), math.cos(3 * row), 1.0] for row in rows])
        return (self.layer(x) - torch.tensor([[row % 5] for row in rows])).square().mean()

    def training_step(self, rows: list[int], _: int) -> torch.Tensor:
        return self._loss(rows, "train")

    def validation_step(self, rows: list[int], _: int) -> None:
        self.log("val/loss", self._loss(rows, "val"), batch_size=float(len(rows)), sync_dist=True, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def on_train_end(self) -> None:
        if self.global_rank == 0:
            kept = {"weight": self.layer.weight.detach(), "loss": self.trainer.callback_metrics["val/loss"]}
            torch.save(kept, self.folder / "end.pt")


def noted(folder: Path, devices: int) -> tuple[dict, dict[str, list]]:
    folder.mkdir()
    data = made(n=30, val=13, batch_size=4, steps=24)
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp_spawn" if devices > 1 else "auto", max_steps=12,
        accumulate_grad_batches=2, use_distributed_sampler=False, logger=False, enable_checkpointing=False,
        num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Noted(folder), datamodule=data)
    lines = {p.name: [list(map(int, x.split())) for x in p.read_text().splitlines()] for p in folder.glob("*-*")}
    return torch.load(folder / "end.pt", weights_only=True), lines


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_ranks_take_the_steps_of_one_process(tmp_path: Path) -> None:
    alone, rows = noted(tmp_path / "alone", 1)
    both, dealt = noted(tmp_path / "both", 2)
    assert len(rows["train-0"]) == 24
    for whole, one, other in zip(rows["train-0"], dealt["train-0"], dealt["train-1"], strict=True):
        assert (one, other) == (whole[::2], whole[1::2])
    assert [len(rows["val-0"]), len(dealt["val-0"]), len(dealt["val-1"])] == [4, 3, 3]
    seen = Counter(itertools.chain(*dealt["val-0"], *dealt["val-1"]))
    assert seen == Counter(itertools.chain(*rows["val-0"])) == dict.fromkeys(range(13), 1)
    torch.testing.assert_close(both["weight"], alone["weight"])
    torch.testing.assert_close(both["loss"], alone["loss"])


# Resumption, workers, augmentation.


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    """Three people of one dataset in two montages, with blocks of rest and task."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for person, names in (("1", ["C3", "C4", "O1"]), ("2", ["C3", "C4", "O1"]), ("3", ["Fz", "Cz"])):
        channels = Channels.make(names, "eeg", rng.normal(0, 0.05, (len(names), 3)))
        recording = Recording(
            "blocks", person, "eeg", channels, sfreq=SFREQ, signal=1e-5 * rng.normal(size=(len(names), 640)),
            events=Events(np.array([0.0, 12.0]), np.array([12.0, 8.0]), ["rest", "task"], ["", ""]),
        )  # fmt: skip
        write_shard(folder / f"sub-{person}.h5", [recording], {})
    return open_shards(folder).windows(1.0, 0.5)


def shards(windows: Windows, augmented: bool = True, **changed: object) -> ShardData:
    batcher = Batcher(patch=8)
    given_ = {
        "train": WindowDataset(windows, batcher), "val": WindowDataset(windows.take(range(20)), batcher),
        "batch_size": 4, "groups": windows.of("dataset").tolist(), "steps": 12, "seed": 3,
        "augment": augment.build({"channel_drop": {"p": 0.3}, "surrogate_phase": {"p": 0.7}}, "") if augmented else (),
    }  # fmt: skip
    return ShardData(**{**given_, **changed})  # type: ignore[arg-type]


def same(one: TokenBatch, other: TokenBatch) -> bool:
    return torch.equal(one.values, other.values) and torch.equal(one.mask, other.mask)


def all_same(one: list[TokenBatch], other: list[TokenBatch]) -> bool:
    return len(one) == len(other) > 0 and all(map(same, one, other))


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("changed", [{}, {"passes": 1}, {"balance": "subject"}, {"balance": "class"}])
def test_a_resumed_run_sees_the_batches_that_are_left(windows: Windows, accumulate: int, changed: dict) -> None:
    changed = {"parts": parts(windows, changed.get("balance", "")), **changed}
    whole = list(at(shards(windows, **changed), 0, accumulate).train_dataloader())
    rest = list(at(shards(windows, **changed), 2, accumulate).train_dataloader())
    assert all_same(rest, whole[2 * accumulate :])


@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_make_the_same_batches_in_the_same_order(windows: Windows, start_method: str) -> None:
    list(shards(windows).val_dataloader())  # this process has files open before it forks
    worked = {"workers": 2, "start_method": start_method}
    whole = list(at(shards(windows)).train_dataloader())
    rest = at(shards(windows, **worked), 2, 2)
    loader = rest.train_dataloader()
    assert all_same(list(loader), whole[4:])
    assert all_same(list(loader), whole[4:]), "the workers that stayed"
    assert all_same(list(rest.val_dataloader()), list(shards(windows).val_dataloader()))


def test_augmentations_change_training_windows_alone(windows: Windows) -> None:
    augmented, plain = shards(windows), shards(windows, augmented=False)
    pairs = list(zip(at(augmented).train_dataloader(), at(plain).train_dataloader(), strict=True))
    assert not any(same(a, b) for a, b in pairs)
    assert all(torch.equal(a.time, b.time) for a, b in pairs), "the rows are the same"
    assert all_same(list(augmented.val_dataloader()), list(plain.val_dataloader()))


def test_augmentations_follow_from_seed_step_and_rank(windows: Windows) -> None:
    """The same rows in every batch: what differs is drawn."""
    few = windows.take([0] * 20)

    def sums(seed: int = 3, step: int = 0, rank: int = 0, world: int = 1) -> list[float]:
        data = at(shards(few, seed=seed, steps=6), step, 1, rank, world)
        return [float(b.values.double().abs().sum()) for b in data.train_dataloader()]

    first = sums()
    assert len(set(first)) == 6
    assert sums() == first
    assert sums(step=4) == first[4:]
    assert not set(first) & set(sums(seed=4))
    assert not set(sums(rank=0, world=2)) & set(sums(rank=1, world=2))


def test_parts_of_windows(windows: Windows) -> None:
    assert set(parts(windows, "subject")) == {"blocks/1", "blocks/2", "blocks/3"}
    assert set(parts(windows, "class")) == {"rest", "task", ""}
    assert parts(windows, "dataset") is None
    assert parts(windows, "none") is None


class Breaks(MaskedPatches):
    """An objective that the power cut finds at its call number `last`."""

    def __init__(self, last: int | None = None) -> None:
        super().__init__()
        self.left = last

    def forward(self, model: nn.Module, batch: TokenBatch) -> dict[str, torch.Tensor]:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise ConnectionAbortedError("the plug is pulled")
        return super().forward(model, batch)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_augmented_run_that_broke_off_ends_as_if_it_had_not(windows: Windows, tmp_path: Path, workers: int) -> None:
    def run(work: Path, last: int | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = luna.build(Facts(("eeg",), ("eeg",), SFREQ, 1.0), **{**luna.SIZES["test"], "patch": 8})
        chosen = Settings(steps=8, batch_size=4, accumulate=2, validations=2, threads=1)
        data = shards(windows, steps=16, val_windows=4, workers=workers, start_method="fork")
        train(model, [Breaks(last)], data, chosen, 0, work, {"of": "this test"})
        return model.state_dict()

    calm = run(tmp_path / "calm")
    with pytest.raises(ConnectionAbortedError):
        run(tmp_path / "broken", last=13)
    assert (tmp_path / "broken/last.ckpt").exists()
    again = run(tmp_path / "broken")
    assert all(torch.equal(calm[k], again[k]) for k in calm)


# From a configuration.


def configured(windows: Windows, tmp_path: Path, **training: object) -> Pretrained:
    blocks = {
        "model": {**luna.SIZES["test"], "patch": 8}, "objectives": {"masked_patches": None},
        "windows": {"length_s": 1.0}, "training": {"steps": 3, "batch_size": 4, "validations": 1, **training},
    }  # fmt: skip
    data, out = windows.recordings[0].path.parent, tmp_path / "model"
    return train_and_save("models", "luna", data, blocks, out, tmp_path / "work", 0, "configs/pretrain/x.yaml")


@pytest.fixture
def split(windows: Windows) -> Iterator[None]:
    """Everyone trains; the last tenth of each recording validates."""
    path = windows.recordings[0].path.parent / "split.json"
    path.write_text(json.dumps({"recordings": {r.id: "train" for r in windows.recordings}}))
    yield
    path.unlink()


@pytest.mark.usefixtures("split")
def test_a_configuration_sets_passes_balance_and_augmentations(windows: Windows, tmp_path: Path) -> None:
    done = configured(windows, tmp_path, passes=2, accumulate=2, augment={"time_shift": {"max_s": 0.1}})
    rows = sum(round(b - a) for spans in done.card["windows"]["train"].values() for a, b in spans)
    assert done.card["steps"] == math.ceil(2 * math.ceil(rows / 4) / 2)
    assert done.card["settings"]["training"]["augment"] == {"time_shift": {"max_s": 0.1}}
    assert configured(windows, tmp_path / "again", balance="class").card["steps"] == 3


@pytest.fixture
def recipe_of(windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict]:
    """A function that gives the recipe of a run, by a copy of the package; nothing is trained."""
    found: list[dict] = []

    def noted(*given: object) -> None:
        found.append(given[-1])
        raise ConnectionAbortedError("nothing is trained")

    def recipe() -> dict:
        with pytest.raises(ConnectionAbortedError):
            configured(windows, tmp_path)
        return found[-1]

    shutil.copytree(catalog.PACKAGE, tmp_path / "brainfm", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(catalog, "PACKAGE", tmp_path / "brainfm")
    monkeypatch.setattr(runs, "train", noted)
    return recipe


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize(
    "name", ["objectives/masked_patches.py", "models/luna.py", "training/optimisers.py", "tokens.py"]
)
def test_an_edit_of_the_code_is_another_recipe(recipe_of: Callable[[], dict], tmp_path: Path, name: str) -> None:
    before = recipe_of()
    assert recipe_of() == before
    for other in ("models/ndt.py", "report/page.py"):
        (tmp_path / "brainfm" / other).write_text("another")
    assert recipe_of() == before
    path = tmp_path / "brainfm" / name
    path.write_text(path.read_text() + "# edited\n")
    now = recipe_of()
    assert [part for part in now if now[part] != before[part]] == ["code"]


def test_recordings_of_both_sides_are_in_the_recipe(recipe_of: Callable[[], dict], windows: Windows) -> None:
    ids = [r.id for r in windows.recordings]
    path = windows.recordings[0].path.parent / "split.json"
    path.write_text(json.dumps({"recordings": {**dict.fromkeys(ids, "train"), ids[-1]: "val"}}))
    try:
        recipe = recipe_of()
    finally:
        path.unlink()
    sums = {r.id: r.checksum for r in windows.recordings}
    assert recipe["validation data"] == {ids[-1]: sums.pop(ids[-1])}
    assert recipe["training data"] == sums


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"augment": {"bandstop": None}}, r"configs/pretrain/x.yaml: training: augment: .*did you mean 'band_stop'\?"),
        ({"augment": {"band_stop": {"width": 3}}}, r"augment: band_stop: unknown keyword 'width'; .*'width_hz'\?"),
        ({"augmentation": {}}, r"training: unknown keyword 'augmentation'; did you mean 'augment'\?"),
    ],
)
def test_a_wrong_word_of_a_configuration(windows: Windows, tmp_path: Path, training: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        configured(windows, tmp_path, **training)
