"""Weights of the published POYO program (torch_brain) under the names and in the order that ours has."""

from __future__ import annotations

import torch
from torch import Tensor

MODULES = {"enc_atn": "gather", "dec_atn": "ask", "enc_ffn": "gather_mlp", "dec_ffn": "ask_mlp"}
TABLES = {
    "unit_emb.weight": "neuron_table.weight", "session_emb.weight": "session_table.weight",
    "token_type_emb.weight": "kind", "latent_emb.weight": "latents",
}  # fmt: skip
LAYERS = {"to_q": "query", "to_kv": "key_value", "to_qkv": "query_key_value", "to_out": "out"}


def converted(state: dict[str, Tensor], head_dim: int, target: str = "velocity") -> dict[str, Tensor]:
    """Parameters of torch_brain's POYO → parameters of `Poyo`.

    It rotates neighbouring features, ours feature i with feature pair + i, so features of what turns change places.

    Args:
        state: its parameters by name, or its state dict; rows of its tables are ours, first the one for padding.
        head_dim: width of a head. target: the covariate that it reads out.

    Raises:
        ValueError: for a name that the published program does not have.
    """
    turning = head_dim // 2
    order = torch.cat((torch.arange(0, turning, 2), torch.arange(1, turning, 2), torch.arange(turning, head_dim)))

    def by_head(weight: Tensor) -> Tensor:
        return weight.unflatten(0, (-1, head_dim))[:, order].flatten(0, 1)

    out = {}
    for key, value in state.items():
        where = key.split(".")
        numbered = where[0] == "proc_layers"
        place = where[2:] if numbered else where[1:]
        if key in TABLES:
            out[TABLES[key]] = value
        elif where[0] == "readout":
            out[f"readout.{target}.{where[1]}"] = value
        elif key == "rotary_emb.omega" or where[-1] == "vocab" or key.endswith("_extra_state"):
            continue
        elif where[0].endswith("_ffn") or (numbered and where[2] == "1"):
            owner = f"mlps.{where[1]}" if numbered else MODULES[where[0]]
            step = {"0": "1", "3": "4"}[where[-2]] if "net" in where else "0"
            out[f"{owner}.{step}.{where[-1]}"] = value
        elif where[0].endswith("_atn") or numbered:
            owner = f"attentions.{where[1]}" if numbered else MODULES[where[0]]
            layer, still = place[-2], where[0] == "dec_atn"  # the decoder's values do not turn
            if layer == "to_kv" and still:
                keys, values = value.chunk(2)
                value = torch.cat((by_head(keys), values))
            elif layer in ("to_q", "to_kv", "to_qkv"):
                value = by_head(value)
            elif layer == "to_out" and where[-1] == "weight" and not still:
                value = by_head(value.T).T
            out[f"{owner}.{LAYERS.get(layer, layer)}.{where[-1]}"] = value
        else:
            raise ValueError(f"{key!r} is no parameter of torch_brain's POYO 0.2; convert a file of that version")
    return {name: value.detach().contiguous() for name, value in out.items()}
