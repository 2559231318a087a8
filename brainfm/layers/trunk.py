"""Where the blocks of a network are: the one list of equal modules that holds most of its parameters.

What works on any network block by block (rates by depth, low-rank adapters) asks here.
"""

from __future__ import annotations

from torch import nn


def trunk(model: nn.Module) -> list[list[str]]:
    """Names of the modules at each depth of the trunk, from the input on; empty for a network without one.

    The trunk is the `ModuleList` or `Sequential` of modules of one class that has most parameters which are trained,
    with lists of the same length beside it, as where a network attends over regions and over time in turn. Frozen
    parts, such as a tokenizer, have none.
    """
    lists = {name: found for name, part in model.named_modules() if (found := _equal(part))}
    size = {name: _trained(model.get_submodule(name)) for name in lists}
    most = max(lists, key=lambda name: size[name], default="")
    if not most or not size[most]:
        return []
    owner, length = most.rpartition(".")[0], len(lists[most])
    beside = [n for n in lists if n.rpartition(".")[0] == owner and len(lists[n]) == length and size[n]]
    return [[f"{name}.{lists[name][i]}" for name in beside] for i in range(length)]


def _equal(part: nn.Module) -> list[str]:
    """Names of the members of a list of modules of one class with parts of their own; none for anything else."""
    if not isinstance(part, (nn.ModuleList, nn.Sequential)) or not len(part):
        return []
    members = dict(part.named_children())
    whole = len({type(m) for m in members.values()}) == 1 and all(any(True for _ in m.children()) for m in part)
    return list(members) if whole else []


def _trained(part: nn.Module) -> int:
    return sum(p.numel() for p in part.parameters() if p.requires_grad)
