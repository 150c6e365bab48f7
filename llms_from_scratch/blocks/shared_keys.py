"""Layers that look at the keys and values of another: which, and of whom.

The last layers of Gemma 4 make queries only. Each takes the keys and values of the last layer of
its type, with a window or without, that makes some.

Shapes: b = batch size, n = new tokens.
"""

from collections.abc import Mapping

import torch
import torch.nn as nn

from llms_from_scratch.blocks.attention import attend
from llms_from_scratch.blocks.linear import apply_layer
from llms_from_scratch.blocks.norms import Gemma4RMSNorm
from llms_from_scratch.blocks.rope import apply_rope


def is_shared(cfg: Mapping, layer_idx: int) -> bool:
    """Whether a layer looks at the keys and values of another."""
    return layer_idx >= cfg["n_layers"] - cfg.get("num_kv_shared_layers", 0)


def kv_donors(cfg: Mapping) -> list[int]:
    """For each layer, the number of the layer whose keys and values it looks at: its own, mostly.

    >>> types = ["sliding_attention", "full_attention"] * 2
    >>> kv_donors({"n_layers": 4, "num_kv_shared_layers": 1, "layer_types": types})
    [0, 1, 2, 1]
    """
    last, found = {}, []
    for layer_idx, kind in enumerate(cfg["layer_types"]):
        if not is_shared(cfg, layer_idx):
            last[kind] = layer_idx
        found.append(last[kind])
    return found


def check_donors(cfg: Mapping, name: str) -> None:
    """Raise ``ValueError`` if a layer has no earlier one of its type to take keys from."""
    types, count = cfg["layer_types"], cfg.get("num_kv_shared_layers", 0)
    if not 0 <= count < cfg["n_layers"]:
        raise ValueError(f"{name}: num_kv_shared_layers must be less than n_layers, got {count}")
    own = types[: cfg["n_layers"] - count]
    if alone := sorted(set(types) - set(own)):
        raise ValueError(f"{name}: no layer of type {alone[0]!r} makes keys that others may share")


class Gemma4Projections(nn.Module):
    """Normalized queries, keys and values of one layer; queries alone if its keys are another's."""

    def __init__(self, cfg: dict, layer_idx: int):
        super().__init__()
        emb_dim, dtype, eps = cfg["emb_dim"], cfg["dtype"], cfg.get("layer_norm_eps", 1e-6)
        self.layer_type = cfg["layer_types"][layer_idx]
        self.is_sliding = self.layer_type == "sliding_attention"
        self.head_dim = cfg["head_dim" if self.is_sliding else "global_head_dim"]
        self.num_heads, self.num_kv_heads = cfg["n_heads"], cfg["n_kv_heads"]
        self.num_key_value_groups = self.num_heads // self.num_kv_heads
        self.is_kv_shared_layer = is_shared(cfg, layer_idx)
        d_out, kv_dim = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(emb_dim, d_out, bias=False, dtype=dtype)
        self.q_norm = Gemma4RMSNorm(self.head_dim, eps, dtype=dtype)
        if not self.is_kv_shared_layer:
            self.k_proj = nn.Linear(emb_dim, kv_dim, bias=False, dtype=dtype)
            self.v_proj = nn.Linear(emb_dim, kv_dim, bias=False, dtype=dtype)
            self.k_norm = Gemma4RMSNorm(self.head_dim, eps, dtype=dtype)
            self.v_norm = Gemma4RMSNorm(self.head_dim, eps, with_scale=False)

    def queries(self, x, cos, sin) -> torch.Tensor:
        """(b, n, emb_dim) -> (b, num_heads, n, head_dim)"""
        return apply_rope(self.q_norm(self.heads(self.q_proj, x)), cos, sin)

    def keys_and_values(self, x, cos, sin) -> tuple[torch.Tensor, torch.Tensor]:
        """(b, n, emb_dim) -> twice (b, num_kv_heads, n, head_dim)"""
        keys = apply_rope(self.k_norm(self.heads(self.k_proj, x)), cos, sin)
        return keys, self.v_norm(self.heads(self.v_proj, x))

    def heads(self, layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        return apply_layer(layer, x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class Gemma4Attention(Gemma4Projections):
    """Grouped-query attention with its own keys, or with those of another layer. (b, n, emb_dim)

    ``shared_kv`` has, by the number of a layer, the keys and values that others look at, too: all
    that this layer looked at, also those that its cache will not keep.
    """

    def __init__(self, cfg: dict, layer_idx: int):
        super().__init__(cfg, layer_idx)
        donors, self.layer_idx = kv_donors(cfg), layer_idx
        self.kv_shared_layer_index = donors[layer_idx] if self.is_kv_shared_layer else None
        self.store_full_length_kv = layer_idx in donors[layer_idx + 1 :]
        d_out = self.num_heads * self.head_dim
        self.o_proj = nn.Linear(d_out, cfg["emb_dim"], bias=False, dtype=cfg["dtype"])

    def forward(self, x, mask, cos, sin, cache=None, layer_idx=0, shared_kv=None):
        queries = self.queries(x, cos, sin)
        if self.is_kv_shared_layer:
            keys, values = shared_kv[self.kv_shared_layer_index]
            if cache is not None:
                cache.update(layer_idx, ())  # nothing of its own
        else:
            keys, values = self.keys_and_values(x, cos, sin)
            if cache is not None:
                keys, values = cache.update(layer_idx, keys, values)
            if self.store_full_length_kv and shared_kv is not None:
                shared_kv[self.layer_idx] = keys, values
        context = attend(queries, keys, values, mask, scale=1.0)
        return apply_layer(self.o_proj, context.transpose(1, 2).flatten(2))
