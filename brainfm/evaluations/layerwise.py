"""What each block of a network holds: its output for every window, as one vector, by hooks on the network as it is.

The trunk of a network is found, not declared: the members of its `nn.ModuleList`s that give tokens as wide as the
encoding's, in the order in which they run. What lies inside a frozen codebook does not count. A network without such a
list (EEGNet) is looked at after each of its convolutions and norms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brainfm.layers.attention import masked_mean
from brainfm.tokens import Encoding
from brainfm.training.checkpoint import Pretrained, evaluating, in_order

#: Added to a mean square before its logarithm; signals are near 1.
TINY = 1e-6


def outputs(model: Pretrained, trials: Any, size: int = 64) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every window after each block, and its pooled encoding.

    A block's tokens are averaged over those that carry data; "input" is what the first block gets. Of a convolutional
    network without blocks, each filter's log mean square over time is taken, for the filters oscillate about zero.

    Args:
        model: the network, not changed. trials: a dataset of whole batches. size: windows at a time.

    Returns:
        Name of the block → `(window, feature)`, in the order of the network, empty for a network with neither blocks
        nor convolutions; and `(window, feature)` pooled.
    """
    network = model.model
    device = next(network.parameters()).device
    with torch.inference_mode(), evaluating(network):
        first = next(in_order(trials, 2)).to(device)
        names, reduce = trunk(network, first)
        blocks = dict(network.named_modules())
        seen: dict[str, Tensor] = {}
        hooks = [blocks[name].register_forward_hook(_keep(seen, name)) for name in names]
        if names and reduce is _tokens:
            hooks.append(blocks[names[0]].register_forward_pre_hook(_keep_input(seen)))
        found: dict[str, list[np.ndarray]] = {}
        pooled: list[np.ndarray] = []
        try:
            for batch in in_order(trials, size):
                seen.clear()
                encoding = network.encode(batch.to(device))
                pooled.append(encoding.pooled.float().cpu().numpy())
                for name in (*(["input"] if "input" in seen else []), *names):
                    found.setdefault(name, []).append(reduce(seen[name], encoding).float().cpu().numpy())
        finally:
            for hook in hooks:
                hook.remove()
    return {name: np.concatenate(parts) for name, parts in found.items()}, np.concatenate(pooled)


def trunk(network: Any, batch: Any) -> tuple[list[str], Callable[[Tensor, Encoding], Tensor]]:
    """Names of the network's blocks in the order in which they run on the batch, and how their output is averaged."""
    listed = {
        f"{name}.{number}" if name else number
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList)
        for number in dict(module.named_children())
    }
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            found = _tensor(output)
            if found is not None:
                shapes.setdefault(name, tuple(found.shape))

        return hook

    own = [(n, m) for n, m in network.named_modules() if n and "codebook" not in n.split(".")]
    hooks = [module.register_forward_hook(note(name)) for name, module in own]
    try:
        width = network.encode(batch).tokens.shape[-1]
    finally:
        for hook in hooks:
            hook.remove()
    blocks = [n for n, s in shapes.items() if n in listed and len(s) >= 3 and s[-1] == width and s[0] % len(batch) == 0]
    blocks = [n for n in blocks if not any(n.startswith(f"{outer}.") for outer in blocks)]
    if blocks:
        return blocks, _tokens
    kinds = (nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)
    blocks = [n for n, m in own if isinstance(m, kinds) and n in shapes and shapes[n][0] == len(batch)]
    return sorted(blocks, key=list(shapes).index), _filters


def _tensor(output: Any) -> Tensor | None:
    output = output[0] if isinstance(output, tuple | list) and output else output
    return output if isinstance(output, Tensor) else None


def _keep(seen: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, given: Any, output: Any) -> None:
        found = _tensor(output)
        if found is not None:
            seen[name] = found

    return hook


def _keep_input(seen: dict[str, Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, given: Any) -> None:
        found = _tensor(given)
        if found is not None and found.dim() >= 3:
            seen.setdefault("input", found)

    return hook


def _tokens(output: Tensor, encoding: Encoding) -> Tensor:
    """`(batch, ..., dim)` or `(batch x more, token, dim)` → `(batch, dim)`, over real tokens where the mask fits."""
    x = output.reshape(len(encoding.mask), -1, output.shape[-1])
    mask = encoding.mask
    return masked_mean(x, mask if mask.shape[1] == x.shape[1] else x.new_ones(x.shape[:2], dtype=torch.bool))


def _filters(output: Tensor, encoding: Encoding) -> Tensor:
    """`(batch, filter, ..., time)` → `(batch, filter)` log mean square."""
    return output.flatten(2).square().mean(dim=2).add(TINY).log()
