"""Grouped-query attention: several query heads share one head of keys and values.

Shapes: b = batch size, n = new tokens, total = tokens that are looked at, d_in = model width.
Source: Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head
Checkpoints" (2023).
"""

import torch
import torch.nn as nn

from llms_from_scratch.blocks.linear import apply_layer
from llms_from_scratch.blocks.rope import apply_rope


class GroupedProjections(nn.Module):
    """The queries of all heads, and the keys and values of fewer: one head of them per group.

    ``head_dim`` is free: it need not be ``d_in / num_heads``. Raises ``ValueError`` if the heads
    cannot be divided into groups, or ``d_in`` among heads whose ``head_dim`` is not given.
    """

    drawn_in_order = ("W_query", "W_key", "W_value")  # a seed gives each the same numbers

    def __init__(
        self,
        d_in: int,
        num_heads: int,
        num_kv_groups: int,
        head_dim: int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_groups(d_in, num_heads, num_kv_groups, head_dim)
        self.num_heads = num_heads
        self.num_kv_groups = num_kv_groups
        self.group_size = num_heads // num_kv_groups
        self.head_dim = d_in // num_heads if head_dim is None else head_dim
        self.d_out = num_heads * self.head_dim
        kv_dim = num_kv_groups * self.head_dim
        widths = {"W_query": self.d_out, "W_key": kv_dim, "W_value": kv_dim}
        for name in self.drawn_in_order:
            setattr(self, name, nn.Linear(d_in, widths[name], bias=False, dtype=dtype))
        self.q_norm = self.k_norm = None  # of queries and keys, head by head, before they rotate

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (b, num_heads, n, head_dim), keys and values (b, num_kv_groups, n, head_dim)."""
        queries = self.split_heads(apply_layer(self.W_query, x))
        keys = self.split_heads(apply_layer(self.W_key, x))
        values = self.split_heads(apply_layer(self.W_value, x))
        if self.q_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        return queries, keys, values

    def split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """(b, n, heads * head_dim) -> (b, heads, n, head_dim)"""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class GroupedQueryAttention(GroupedProjections):
    """Causal attention in which ``num_heads / num_kv_groups`` query heads share keys and values.

    Input and output (b, n, d_in). With one group per head it is multi-head attention; with one
    group in all, multi-query attention. The cache holds one head per group, so it is smaller by
    that factor. ``out_proj`` leads from heads of any width back to the width of the model.

    ``mask`` is True where a token must not look (None: plainly causal), ``cos`` and ``sin`` are the
    new tokens' angles (None: no positions), and ``cache`` keeps keys, rotated, and values.
    """

    def __init__(
        self,
        d_in: int,
        num_heads: int,
        num_kv_groups: int,
        head_dim: int | None = None,
        dtype: torch.dtype | None = None,
        scale: float | None = None,  # of the scores; None: 1 / sqrt(head_dim)
    ):
        super().__init__(d_in, num_heads, num_kv_groups, head_dim, dtype)
        self.scale = scale
        self.out_proj = nn.Linear(self.d_out, d_in, bias=False, dtype=dtype)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
        cache=None,
        layer_idx: int = 0,
    ) -> torch.Tensor:
        queries, keys, values = self.project(x)
        if cos is not None:
            queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)
        if cache is not None:
            keys, values = cache.update(layer_idx, keys, values)  # (b, groups, total, head_dim)
        context = attend(queries, keys, values, mask, self.scale)
        context = context.transpose(1, 2).flatten(2)  # (b, n, num_heads * head_dim)
        return apply_layer(self.out_proj, context)


def check_groups(d_in: int, num_heads: int, num_kv_groups: int, head_dim: int | None) -> None:
    """``ValueError`` if heads of these numbers and widths cannot be made."""
    if num_heads % num_kv_groups:
        raise ValueError(
            f"num_heads must be a multiple of num_kv_groups, got {num_heads=}, {num_kv_groups=}"
        )
    if head_dim is None and d_in % num_heads:
        raise ValueError(
            f"d_in must be divisible by num_heads, got {d_in=}, {num_heads=}; or give head_dim"
        )


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """Scaled dot-product attention of queries (b, num_heads, n, head_dim) to shared keys.

    Keys and values are (b, num_kv_groups, total, head_dim), the result is like the queries, as wide
    as the values. Query heads of one group are neighbours: heads 0, 1, 2 look at keys 0, heads 3,
    4, 5 at keys 1, ...
    """
    b, num_heads, n, head_dim = queries.shape
    num_kv_groups = keys.shape[1]
    visible = None if mask is None else ~mask
    if n == 1:
        # The heads of a group are as good as several tokens: no copy of keys for each of them
        queries = queries.reshape(b, num_kv_groups, -1, head_dim)  # (b, groups, group_size, ...)
        context = nn.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=visible, dropout_p=dropout_p, scale=scale
        )
        return context.reshape(b, num_heads, 1, -1)
    return nn.functional.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=visible,
        dropout_p=dropout_p,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=num_heads != num_kv_groups,
    )
