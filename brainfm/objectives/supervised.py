"""Fine-tuning: cross-entropy of a linear head on the pooled encoding, for a new subject's labelled trials."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainfm.tokens import TokenBatch


class Supervised(nn.Module):
    """A linear head that is trained with, or on top of, the model.

    Args:
        features: width of the model's pooled encoding.
        classes: number of labels.
        dropout: on the pooled encoding, in training.
        smoothing: of the labels.
        frozen: leave the model as it is and train the head alone.
    """

    def __init__(
        self, features: int, classes: int, dropout: float = 0.1, smoothing: float = 0.1, frozen: bool = False
    ) -> None:
        super().__init__()
        self.norm, self.drop, self.head = nn.LayerNorm(features), nn.Dropout(dropout), nn.Linear(features, classes)
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
        return self.head(self.drop(self.norm(pooled)))
