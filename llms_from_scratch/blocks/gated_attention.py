"""Grouped-query attention whose result passes a gate, with rotations of a part of each head.

Qwen3-Next has such a layer for every three with a gated delta rule.
Source: Qiu et al., "Gated Attention for Large Language Models" (2025).
"""

import torch
import torch.nn as nn

from llms_from_scratch.blocks.attention import GroupedQueryAttention, attend
from llms_from_scratch.blocks.linear import apply_layer
from llms_from_scratch.blocks.rope import apply_rope


class GatedGroupedQueryAttention(GroupedQueryAttention):
    """Grouped-query attention with ``sigmoid(W_gate x)`` on each number before ``out_proj``.

    Input and output (b, n, d_in). A head may look at nothing at all: a softmax always sums to 1,
    a gate closes. ``cos`` and ``sin`` may be narrower than a head, then its other numbers keep
    their place.
    """

    def __init__(
        self,
        d_in: int,
        num_heads: int,
        num_kv_groups: int,
        head_dim: int | None = None,
        dtype: torch.dtype | None = None,
        scale: float | None = None,
    ):
        super().__init__(d_in, num_heads, num_kv_groups, head_dim, dtype, scale)
        self.W_gate = nn.Linear(d_in, self.d_out, bias=False, dtype=dtype)

    def forward(self, x, mask=None, cos=None, sin=None, cache=None, layer_idx=0):
        queries, keys, values = self.project(x)
        if cos is not None:
            queries, keys = rotate_part(queries, cos, sin), rotate_part(keys, cos, sin)
        if cache is not None:
            keys, values = cache.update(layer_idx, keys, values)
        context = attend(queries, keys, values, mask, self.scale).transpose(1, 2).flatten(2)
        gate = torch.sigmoid(apply_layer(self.W_gate, x))  # (b, n, num_heads * head_dim)
        return apply_layer(self.out_proj, context * gate)


def rotate_part(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """``apply_rope`` for as many numbers of each head as there are angles; the rest stays."""
    width = cos.shape[-1]
    if width == x.shape[-1]:
        return apply_rope(x, cos, sin)
    return torch.cat([apply_rope(x[..., :width], cos, sin), x[..., width:]], dim=-1)
