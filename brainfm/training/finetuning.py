"""Fine-tune a network with a readout on labelled windows: classes drawn equally, stopped early, best weights kept."""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from brainfm.objectives.supervised import Supervised
from brainfm.tokens import TokenBatch
from brainfm.training.checkpoint import evaluating, in_order
from brainfm.training.codes import code_batch
from brainfm.training.data import ShardData
from brainfm.training.optimisers import decaying, layered, summed, warmed_cosine


@dataclass(frozen=True)
class Tuning:
    """How to fine-tune.

    Attributes:
        steps: optimiser steps at most. batch_size: windows per step.
        learning_rate: peak of the cosine for the network; the readout's is `readout_factor` times as high.
        weight_decay: on matrices only. beta2: AdamW's second beta. warmup: share of the steps. clip: gradient norm.
        validations: how often the validation loss is taken. patience: stop after so many in a row without a better one.
        decay: the rate of each block is so many times that of the block after it, see `optimisers.layered`.
        keep_statistics: leave the running means of batch norms as they are, and use them.
    """

    steps: int = 100
    batch_size: int = 32
    learning_rate: float = 3e-4
    readout_factor: float = 1.0
    weight_decay: float = 0.01
    beta2: float = 0.98
    warmup: float = 0.1
    clip: float = 1.0
    validations: int = 10
    patience: int = 5
    decay: float = 1.0
    keep_statistics: bool = False


@dataclass(frozen=True)
class Tuned:
    """What became of it: the validation loss of the weights that were kept (NaN without validation), and their step.

    Attributes:
        trained: numbers that a gradient reached, readout included.
    """

    loss: float
    step: int
    trained: int = 0


class Labelled(Dataset):
    """Some windows of a dataset of whole batches, with class numbers in `aligned`.

    Args:
        trials: any dataset with `__getitems__(rows) -> TokenBatch`. rows: which of its windows.
        labels: `(row,)` class number of each of them.
    """

    def __init__(self, trials: Any, rows: np.ndarray, labels: np.ndarray) -> None:
        self.trials, self.rows, self.labels = trials, np.asarray(rows), np.asarray(labels, np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, rows: list[int]) -> TokenBatch:
        batch = self.trials.__getitems__(self.rows[rows].tolist())
        batch.aligned["label"] = torch.from_numpy(self.labels[rows])
        return batch


class Tokenized(Dataset):
    """Windows as codes of the tokenizer inside a model: it is frozen, so it runs once and not in every step.

    Args:
        model: with `sources_of` and a `codebook`, such as BrainOmni, whose windows do not overlap.
        trials: signals, any dataset of whole batches. size: windows that are tokenized together.
    """

    def __init__(self, model: Any, trials: Any, size: int = 64) -> None:
        self.codes: list[Tensor] = []
        self.real: list[Tensor] = []
        device = next(model.parameters()).device
        with torch.inference_mode(), evaluating(model):
            for batch in in_order(trials, size):
                found = model.sources_of(batch.to(device))
                for codes, real in zip(found.codes.cpu().short(), found.mask.cpu(), strict=True):
                    length = int(real.any(dim=0).nonzero().max()) + 1 if real.any() else 1
                    self.codes.append(codes[:, :length].clone())
                    self.real.append(real[:, :length].clone())

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether codes of this model say all that its encoding follows from."""
        frozen = getattr(model, "codebook", None)
        if frozen is None or not hasattr(model, "sources_of") or getattr(model, "overlap", False):
            return False
        return not any(p.requires_grad for p in frozen.parameters())

    def __len__(self) -> int:
        return len(self.codes)

    def __getitems__(self, rows: list[int]) -> TokenBatch:
        """Codes `(batch, source x time, depth)`; shorter windows are filled and masked."""
        longest = max(self.codes[row].shape[1] for row in rows)
        seconds = torch.arange(longest, dtype=torch.float32)
        return code_batch([self.codes[row] for row in rows], [self.real[row] for row in rows], seconds)


def finetune(
    model: nn.Module, objective: Supervised, train: Labelled, val: Labelled | None, tuning: Tuning, seed: int
) -> Tuned:
    """Train network and readout in place; parameters that the network has frozen stay as they are.

    With validation windows the weights of the lowest loss are kept: cross-entropy, each class counting equally.
    Without them all steps are taken. Torch's generator is left as it was.

    Args:
        model, objective: the network and its readout. train, val: labelled windows. tuning: how.
        seed: of the draws and of dropout.
    """
    module = _Finetuning(model, objective, tuning, seed)
    words = train.labels.astype(str)
    data = ShardData(
        train, train if val is None else val, ["all"] * len(train), tuning.batch_size, tuning.steps, seed,
        val_windows=0 if val is None else len(val), balance="class", parts=words,
    )  # fmt: skip
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    before = torch.get_num_threads()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message=".*(does not have many workers|in eval mode|treespec|LeafSpec).*")
        trainer = pl.Trainer(
            accelerator="cpu" if not torch.cuda.is_available() else "auto",
            devices=1,
            use_distributed_sampler=False,
            max_steps=tuning.steps,
            max_epochs=-1,
            gradient_clip_val=tuning.clip,
            val_check_interval=max(1, tuning.steps // tuning.validations),
            check_val_every_n_epoch=None,
            limit_val_batches=0 if val is None else 1.0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        torch.set_num_threads(1)  # many small steps: threads would wait for each other
        try:
            trainer.fit(module.train(), datamodule=data)
        finally:
            torch.set_num_threads(before)
    for p in module.parameters():
        p.grad = None
    if val is None:
        module.eval()
        return Tuned(math.nan, trainer.global_step, module.reached)
    module.take_best()
    module.eval()
    return Tuned(module.lowest, module.step, module.reached)


def predict(model: nn.Module, objective: Supervised, trials: Any, rows: np.ndarray, size: int = 64) -> np.ndarray:
    """`(row, class)` probabilities of the windows `rows` of a dataset of whole batches."""
    device = next(model.parameters()).device
    found = [np.zeros((0, 0), np.float32)]
    with torch.inference_mode(), evaluating(model), evaluating(objective):
        for start in range(0, len(rows), size):
            batch = trials.__getitems__(np.asarray(rows)[start : start + size].tolist())
            found.append(objective.logits(model, batch.to(device)).float().softmax(1).cpu().numpy())
    return np.concatenate(found[1:] or found)


def balanced_loss(logits: Tensor, labels: Tensor) -> float:
    """Cross-entropy `(window, class)` against `(window,)`, averaged within each class and then over the classes."""
    each = functional.cross_entropy(logits.float(), labels, reduction="none")
    return float(torch.stack([each[labels == c].mean() for c in labels.unique()]).mean())


class _Finetuning(pl.LightningModule):
    """Network and readout, with the best weights so far."""

    def __init__(self, model: nn.Module, objective: Supervised, tuning: Tuning, seed: int) -> None:
        super().__init__()
        self.model, self.objective, self.tuning, self.seed = model, objective, tuning, seed
        self.lowest, self.step, self.worse, self.reached = math.inf, 0, 0, 0
        self.best: dict[str, Tensor] = {}
        self.validated: list[tuple[Tensor, Tensor]] = []

    def train(self, mode: bool = True) -> _Finetuning:
        """Switch everything, but not batch norms that keep their statistics."""
        super().train(mode)
        for part in self.modules() if self.tuning.keep_statistics else ():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        return self

    def on_train_batch_start(self, batch: TokenBatch, batch_idx: int) -> None:
        """Seed the step: two methods with one seed draw the same."""
        torch.manual_seed((self.seed << 32) + self.global_step)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """The objective's loss."""
        return summed(self.objective(self.model, batch))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Count what a gradient reaches; Lightning forgets the gradients before each validation."""
        if not self.reached:
            self.reached = sum(p.numel() for p in self.parameters() if p.grad is not None)

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Logits, kept until all are there."""
        self.validated.append((self.objective.logits(self.model, batch), batch.aligned["label"]))

    def on_validation_epoch_end(self) -> None:
        """Keep the weights if they are the best so far; stop where they have not been for a while."""
        logits, labels = (torch.cat(parts) for parts in zip(*self.validated, strict=True))
        self.validated.clear()
        loss = balanced_loss(logits, labels)
        if loss < self.lowest:
            self.lowest, self.step, self.worse = loss, self.global_step, 0
            self.best = {k: v.detach().clone() for k, v in self.state_dict().items()}
            return
        self.worse += 1
        self.trainer.should_stop = self.trainer.should_stop or self.worse >= self.tuning.patience

    def take_best(self) -> None:
        """Go back to the best weights; without any, where no loss was a number, the last ones stay."""
        if self.best:
            self.load_state_dict(self.best)
            self.best = {}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with decay on matrices only and a rate for each depth; linear warm-up, then cosine to zero."""
        tuning = self.tuning
        readout = (tuning.learning_rate * tuning.readout_factor, list(self.objective.parameters()))
        groups = [
            {**group, "lr": rate}
            for rate, part in (*layered(self.model, tuning.learning_rate, tuning.decay), readout)
            for group in decaying(part, tuning.weight_decay)
            if group["params"]
        ]
        optimiser = torch.optim.AdamW(groups, betas=(0.9, tuning.beta2))
        warmup = max(1, round(tuning.warmup * tuning.steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warmed_cosine(step, tuning.steps, warmup))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
