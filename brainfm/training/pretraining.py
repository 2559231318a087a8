"""The Lightning module, and one function that trains: resumable, seeded step by step, logged to CSV and DVCLive."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.callbacks.weight_averaging import WeightAveraging
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from brainfm.layers import draws, ranks
from brainfm.tokens import TokenBatch
from brainfm.training.curves import join_curves, last_values, loggers
from brainfm.training.data import ShardData
from brainfm.training.optimisers import decaying, summed, warmed_cosine

#: File that says which run a working folder belongs to: a hash of each part of its recipe.
STAMP = "recipe.json"
#: The checkpoint that a killed run goes on from.
LAST = "last.ckpt"


@dataclass(frozen=True)
class Settings:
    """How to train; what `training:` of a configuration may set.

    Attributes:
        steps: optimiser steps. batch_size: windows per batch, over all devices: more devices change no step.
        learning_rate: peak of the cosine. warmup: share of the steps until it. weight_decay: on matrices only.
        beta1, beta2, epsilon: AdamW's. floor: share of the peak at the cosine's end. clip: gradient norm.
        accumulate: batches per step. ema: decay of a moving average of the weights, which is then what is validated and
            kept; none if None.
        validations: how often the validation loss is taken. val_windows: on how many windows.
        precision: Lightning's word, for example "32-true" or "bf16-mixed". devices, nodes, strategy: Lightning's words;
            with "ddp" several processes give the losses of one, see docs/training.md.
        threads: of torch while training; as many as it has if None.
        weights: dataset → relative weight of its windows; equal unless told.
        balance: what has equal chances: "dataset", within each also "subject" or "class", or "none" for all windows.
        passes: go through all windows so many times, each once per pass, in place of `steps` drawn ones.
        augment: name → keywords of the augmentations of training windows, see `brainfm.training.augment`.
        workers: processes that load, for each side; 0 loads while training waits. start_method: theirs, "fork" or
            "spawn"; Python's own choice if None.
    """

    steps: int = 300
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8
    floor: float = 0.1
    clip: float = 1.0
    accumulate: int = 1
    ema: float | None = None
    validations: int = 6
    val_windows: int = 256
    precision: str = "32-true"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    threads: int | None = None
    weights: dict[str, float] | None = None
    balance: str = "dataset"
    passes: int | None = None
    augment: dict[str, Any] | None = None
    workers: int = 0
    start_method: str | None = None


class Pretraining(pl.LightningModule):
    """A model and the objectives that train it.

    Args:
        model: any model of the catalogue.
        objectives: modules that give named parts of the loss; their sum is optimised.
        settings: optimiser and schedule. seed: masks and dropout of a step follow from it and the step's number.
    """

    def __init__(self, model: nn.Module, objectives: list[nn.Module], settings: Settings, seed: int) -> None:
        super().__init__()
        self.model, self.objectives = model, nn.ModuleList(objectives)
        self.settings, self.seed = settings, seed

    def on_train_batch_start(self, batch: TokenBatch, batch_idx: int) -> None:
        """Seed the step and its samples, so that a resumed run and any number of ranks draw the same."""
        accumulated = batch_idx % self.settings.accumulate
        torch.manual_seed((self.seed << 32) + self.global_step * 1000 + accumulated)
        self._seed_samples(batch, self.global_step * self.settings.accumulate + accumulated)

    def on_validation_batch_start(self, batch: TokenBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The same draws in every validation."""
        self._seed_samples(batch, -1 - batch_idx)

    def _seed_samples(self, batch: TokenBatch, number: int) -> None:
        """`aligned["draw"]` from the run's seed, the batch's number and the row in the whole batch of all ranks."""
        rows = ranks.rank() + ranks.world() * torch.arange(len(batch), device=batch.values.device)
        batch.aligned["draw"] = draws.mix(draws.mix(rows + (number << 24)) + self.seed)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Sum of the objectives' parts."""
        return self._loss(batch, "train")

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """The same parts on validation windows, with the same masks every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + batch_idx)
            self._loss(batch, "val")

    def _loss(self, batch: TokenBatch, stage: str) -> Tensor:
        parts: dict[str, Tensor] = {}
        for objective in self.objectives:
            parts |= objective(self.model, batch)
        loss = summed(parts)
        logged = {f"{stage}/{k.removeprefix('metric_')}": v.detach() for k, v in parts.items()} | {
            f"{stage}/loss": loss.detach()
        }
        if stage == "train":
            self.log_dict(logged, batch_size=len(batch), on_step=True, on_epoch=False)
        else:  # a mean over all ranks' parts; Lightning would cut the mean of whole numbers of windows
            size: Any = float(len(batch))
            self.log_dict(logged, batch_size=size, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:  # fmt: skip
        """As Lightning does it, which refuses a fused optimiser in bfloat16 though nothing is scaled there."""
        if gradient_clip_val and self.settings.precision == "bf16-mixed" and "fsdp" not in self.settings.strategy:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with decay on matrices that are no tables of embeddings; linear warm-up, then cosine to the floor."""
        told = self.settings
        tables = [m.weight for m in self.modules() if isinstance(m, nn.Embedding)]
        groups = decaying(self.parameters(), told.weight_decay, tables)
        fused = told.precision != "16-mixed"  # there the gradients are scaled, and clipping must undo it first
        optimiser = torch.optim.AdamW(groups, told.learning_rate, (told.beta1, told.beta2), told.epsilon, fused=fused)
        warmup = max(1, round(told.warmup * told.steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: warmed_cosine(step, told.steps, warmup, told.floor)
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass
class Trained:
    """What a run leaves: seconds, the last value of every metric, its curves.

    `gathered` is a checkpoint with the whole weights where several processes trained: each may hold a part only.
    """

    seconds: float
    metrics: dict[str, float]
    curves: Path
    gathered: Path | None = None


def train(
    model: nn.Module,
    objectives: list[nn.Module],
    data: ShardData,
    settings: Settings,
    seed: int,
    work: Path,
    recipe: dict,
) -> Trained:
    """Train in place. A killed run goes on where its last checkpoint stands, if the recipe is the same.

    Args:
        model, objectives: trained together. data: what to train on. settings: how.
        seed: of the steps. work: folder for checkpoints and curves, kept until the caller removes it.
        recipe: everything that the run follows from, by part; another one starts anew and says which part differs.
    """
    parts = {part: json.dumps(said, sort_keys=True, default=str) for part, said in sorted(recipe.items())}
    mark = json.dumps({part: hashlib.sha256(said.encode()).hexdigest() for part, said in parts.items()}, indent=1)
    last, curves, earlier = work / LAST, work / "csv" / "metrics.csv", work / "earlier.csv"
    if first_rank():
        _prepare(work, mark, earlier, curves)
    else:
        _await(work / STAMP, mark)
    started = json.loads((work / "clock.json").read_text())["seconds"] if (work / "clock.json").exists() else 0.0
    clock = _Clock(work / "clock.json", started)
    every = max(1, settings.steps // settings.validations)
    averaged = [] if settings.ema is None else [
        WeightAveraging(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
    ]  # fmt: skip
    quiet = not sys.stderr.isatty()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore",
            message=".*(does not have many workers|isinstance|treespec|LeafSpec|Checkpoint directory|Experiment logs|"
            "dataloader is not resumable|in eval mode at the start).*",
        )
        trainer = pl.Trainer(
            accelerator="cpu" if not torch.cuda.is_available() else "auto",
            devices=settings.devices,
            num_nodes=settings.nodes,
            strategy=settings.strategy,
            use_distributed_sampler=False,  # `ShardData` deals the windows out
            precision=settings.precision,  # type: ignore[arg-type]
            max_steps=settings.steps,
            max_epochs=-1,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.clip,
            val_check_interval=every * settings.accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            log_every_n_steps=max(1, every // 4),
            logger=loggers(work),
            callbacks=[
                *averaged,
                ModelCheckpoint(
                    work,
                    filename=Path(LAST).stem,
                    every_n_train_steps=every,
                    save_top_k=1,
                    enable_version_counter=False,
                ),
                _Lines(settings.steps) if quiet else RichProgressBar(),
                clock,
            ],
            enable_model_summary=False,
            enable_progress_bar=not quiet,
        )
        module = Pretraining(model, objectives, settings, seed)
        before = torch.get_num_threads()
        torch.set_num_threads(settings.threads or before)
        try:
            trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
        finally:
            torch.set_num_threads(before)
    gathered = None
    if ranks.world() > 1:  # what follows is the first rank's alone
        gathered = work / "gathered.ckpt"
        trainer.save_checkpoint(gathered, weights_only=True)
        torch.distributed.destroy_process_group()
    if first_rank():
        join_curves(earlier, curves)
    return Trained(clock.seconds(), last_values(curves), curves, gathered)


def first_rank() -> bool:
    """Whether this process is the one that writes files, also before the processes have found each other."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


def _prepare(work: Path, mark: str, earlier: Path, curves: Path) -> None:
    """Clear the folder of a run with another recipe, and put the curves of this run's last attempt aside."""
    stamp = work / STAMP
    if not stamp.exists() or stamp.read_text() != mark:
        if (work / LAST).exists():
            print(f"{work} holds a run that broke off, of another {_differing(stamp, mark)}: it starts anew")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        stamp.write_text(mark)
    if curves.exists():
        join_curves(earlier, curves)
        shutil.move(curves, earlier)


def _differing(stamp: Path, mark: str) -> str:
    """The parts of a recipe that are not those of a stamp; "recipe" where the stamp does not tell."""
    before, now = json.loads(stamp.read_text()) if stamp.exists() else {}, json.loads(mark)
    parts = [part for part in sorted(before.keys() | now.keys()) if before.get(part) != now.get(part)]
    return " and ".join(parts) if before else "recipe"


def _await(stamp: Path, mark: str, patience_s: float = 120.0) -> None:
    """Wait until the first rank has prepared the folder.

    Raises:
        TimeoutError: where it does not, for example because the ranks do not share the folder.
    """
    until = time.monotonic() + patience_s
    while not (stamp.exists() and stamp.read_text() == mark):
        if time.monotonic() > until:
            raise TimeoutError(
                f"{stamp} was not written by the first rank in {patience_s:g} s; all ranks must see the same folder, "
                "configuration and shards"
            )
        time.sleep(0.2)


class _Clock(pl.Callback):
    """Seconds of training over all attempts of a run."""

    def __init__(self, path: Path, before: float) -> None:
        self.path, self.before, self.started = path, before, time.perf_counter()

    def seconds(self) -> float:
        """Seconds so far."""
        return self.before + time.perf_counter() - self.started

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Keep the count with the checkpoint."""
        if not trainer.is_global_zero:
            return
        self.path.write_text(json.dumps({"seconds": self.seconds()}))


class _Lines(pl.Callback):
    """A line per validation where no terminal can draw a bar (DVC, CI, SLURM logs)."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Step and validation losses."""
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        shown = "  ".join(f"{k.removeprefix('val/')} {v:.4g}" for k, v in sorted(values.items()))
        if trainer.is_global_zero:
            print(f"  step {trainer.global_step:5d}/{self.steps}  {shown}", flush=True)
