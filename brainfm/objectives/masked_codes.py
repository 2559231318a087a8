"""Predict the codes of masked tokens from the others.

Paper: Xiao et al. 2025, BrainOmni, arXiv:2505.18185, section 3.2. Half of the tokens are masked; of these most become a
learned vector, the rest another token of the batch. Cross-entropy at every depth of the codebook, masked tokens only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainfm.models.brainomni import BrainOmni
from brainfm.tokens import TokenBatch


class MaskedCodes(nn.Module):
    """Masked prediction of codes, from stored codes or from signals.

    Args:
        ratio: share of the real tokens that is masked.
        replaced: share of the masked tokens that become the mask vector; the others become a random token of the batch.
    """

    def __init__(self, ratio: float = 0.5, replaced: float = 0.8) -> None:
        super().__init__()
        if not (0 <= ratio <= 1 and 0 <= replaced <= 1):
            raise ValueError(f"ratio {ratio} and replaced {replaced} are shares; expected numbers from 0 to 1")
        self.ratio, self.replaced = ratio, replaced

    def forward(self, model: BrainOmni, batch: TokenBatch) -> dict[str, Tensor]:
        """Loss and accuracy; the loss is 0 where nothing was masked."""
        sources = model.sources_of(batch)
        hidden = (torch.rand(sources.mask.shape, device=sources.mask.device) < self.ratio) & sources.mask
        corrupted = corrupt(sources.features, sources.mask, hidden, model.mask_vector, self.replaced)
        logits = model.predict(corrupted, sources.mask)
        loss, accuracy = score(logits, sources.codes, hidden)
        return {"masked_codes": loss, "metric_accuracy": accuracy}


def corrupt(features: Tensor, real: Tensor, hidden: Tensor, vector: Tensor, replaced: float) -> Tensor:
    """Features with the hidden tokens replaced; the others stay as they are.

    Args:
        features: `(batch, source, time, feature)`.
        real, hidden: `(batch, source, time)` tokens with data, and those to hide among them.
        vector: `(feature,)` learned stand-in. replaced: share of the hidden tokens that it stands in for.
    """
    pool = features[real]
    if len(pool) == 0:
        return features
    stray = pool[torch.randint(len(pool), hidden.shape, device=features.device)]
    blank = torch.rand(hidden.shape, device=features.device) < replaced
    return torch.where(hidden[..., None], torch.where(blank[..., None], vector, stray), features)


def score(logits: Tensor, codes: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and accuracy over the hidden tokens and all depths; both 0 where none is hidden.

    Args:
        logits: `(batch, source, time, depth, code)`.
        codes: `(batch, source, time, depth)`.
        hidden: `(batch, source, time)`.
    """
    guess, truth = logits[hidden].flatten(0, 1), codes[hidden].flatten()
    if len(truth) == 0:
        return logits.sum() * 0.0, logits.new_zeros(())
    return functional.cross_entropy(guess, truth), (guess.argmax(dim=1) == truth).float().mean()
