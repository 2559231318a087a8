"""Fine-tuning: cross-entropy of a small readout on the pooled encoding, for labelled windows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainfm.layers.norms import held
from brainfm.tokens import TokenBatch


class Normed(nn.Module):
    """Layer norm, dropout and a linear layer: `(batch, feature)` → `(batch, class)`."""

    def __init__(self, features: int, classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm, self.drop, self.head = nn.LayerNorm(features), nn.Dropout(dropout), nn.Linear(features, classes)

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.drop(self.norm(pooled)))


class Hidden(nn.Sequential):
    """Dropout, a linear layer with SELU and one to the classes: the readout of BrainOmni (arXiv:2505.18185).

    Args:
        features, classes: of the input and the output. hidden: width between; the paper's is that of the model.
        dropout: on the input, in training.
    """

    def __init__(self, features: int, classes: int, hidden: int, dropout: float = 0.1) -> None:
        super().__init__(nn.Dropout(dropout), nn.Linear(features, hidden), nn.SELU(), nn.Linear(hidden, classes))


class Bounded(nn.Linear):
    """A linear layer whose rows have at most this norm: the readout of EEGNet (arXiv:1611.08024, table 2)."""

    def __init__(self, features: int, classes: int, bound: float = 0.25) -> None:
        super().__init__(features, classes)
        self.bound = bound

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits."""
        return functional.linear(pooled, held(self.weight, self.bound, self.training), self.bias)


class Standardised(nn.Module):
    """A readout of centred and scaled features; the centre and the scale are not trained.

    Args:
        readout: `(batch, feature)` → `(batch, class)`.
        features: `(window, feature)` whose mean and deviation are taken; what never changes is left as it is.
    """

    def __init__(self, readout: nn.Module, features: Tensor) -> None:
        super().__init__()
        self.readout = readout
        spread = features.std(dim=0, correction=0)
        self.register_buffer("mean", features.mean(dim=0))
        self.register_buffer("scale", torch.where(spread > 0, spread, 1.0))

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits."""
        return self.readout((pooled - self.mean) / self.scale)


class Supervised(nn.Module):
    """A readout that is trained with, or on top of, the model.

    Args:
        features: width of the model's pooled encoding.
        classes: number of labels.
        dropout: on the pooled encoding, in training; of the readout that is made here.
        smoothing: of the labels.
        frozen: leave the model as it is and train the readout alone.
        readout: `(batch, feature)` → `(batch, class)`; `Normed` if None.
    """

    def __init__(
        self, features: int, classes: int, dropout: float = 0.1, smoothing: float = 0.1, frozen: bool = False,
        readout: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.readout = Normed(features, classes, dropout) if readout is None else readout
        self.smoothing, self.frozen = smoothing, frozen

    def forward(self, model: nn.Module, batch: TokenBatch) -> dict[str, Tensor]:
        """Cross-entropy against `aligned["label"]`, and the accuracy.

        Raises:
            ValueError: where the batch carries no labels.
        """
        if "label" not in batch.aligned:
            raise ValueError("fine-tuning needs labels; make the batch with `labels={condition: number}`")
        logits = self.logits(model, batch)
        label = batch.aligned["label"]
        loss = functional.cross_entropy(logits, label, label_smoothing=self.smoothing if self.training else 0.0)
        return {"cross_entropy": loss, "metric_accuracy": (logits.argmax(1) == label).float().mean()}

    def logits(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        """`(batch, class)`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            pooled = model.encode(batch).pooled
        return self.readout(pooled)
