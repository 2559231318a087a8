"""Predict the codes of masked tokens from the others.

Paper: Xiao et al. 2025, BrainOmni, arXiv:2505.18185, section 3.2. Half of the tokens are masked; of these most become a
learned vector, the rest another token of the batch. Cross-entropy at every depth of the codebook, masked tokens only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainfm.layers import draws, ranks
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
        seed, shape = draws.seeds(batch), tuple(sources.mask.shape[1:])
        hidden = (draws.uniform(seed, shape, 0) < self.ratio) & sources.mask
        blank = hidden & (draws.uniform(seed, shape, 1) < self.replaced)
        corrupted = torch.where(blank[..., None], model.mask_vector, sources.features)
        strange = hidden & ~blank
        pool = ranks.together(sources.codes)[ranks.together(sources.mask)]  # of the whole batch, whoever has it
        if strange.any():
            number = (draws.uniform(seed, shape, 2)[strange] * len(pool)).long()
            corrupted[strange] = model.codebook.features_of(pool[number])
        logits = model.predict(corrupted, sources.mask)
        loss, accuracy = score(logits, sources.codes[..., : logits.shape[3]], hidden)
        return {"masked_codes": loss, "metric_accuracy": accuracy}


def score(logits: Tensor, codes: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and accuracy over the hidden tokens and all depths, of all ranks; both 0 where none is hidden.

    Args:
        logits: `(batch, source, time, depth, code)`.
        codes: `(batch, source, time, depth)`.
        hidden: `(batch, source, time)`.
    """
    guess, truth = logits[hidden].flatten(0, 1), codes[hidden].flatten()
    loss = functional.cross_entropy(guess.float(), truth, reduction="sum") if len(truth) else logits.sum() * 0.0
    return ranks.mean(loss, len(truth)), ranks.mean((guess.argmax(dim=-1) == truth).float().sum(), len(truth))
