"""Multi-head latent attention (MLA): one short vector per token in place of keys and values.

Shapes: b = batch size, n = new tokens, total = tokens that are looked at, d_in = model width.
Source: DeepSeek-AI, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language
Model" (2024).
"""

import torch
import torch.nn as nn

from llms_from_scratch.blocks.attention import attend
from llms_from_scratch.blocks.linear import apply_layer
from llms_from_scratch.blocks.norms import RMSNorm
from llms_from_scratch.blocks.rope import apply_rope


class LatentAttention(nn.Module):
    """Causal attention whose keys and values are made from a latent vector of ``latent_dim``.

    Input and output (b, n, d_in). ``W_DKV`` compresses a token to its latent vector, which is all
    that the cache keeps; ``W_UK`` and ``W_UV`` make each head's key and value of it. Heads are
    ``head_dim`` wide, their values ``value_head_dim`` (by default as wide).

    Positions cannot be turned into a latent vector, so with ``rope_dim`` each query has so many
    numbers more that are rotated, and so does one key that all heads share, of ``W_KR`` (decoupled
    RoPE). The cache keeps it beside the latent vector: ``latent_dim + rope_dim`` numbers per token.

    With ``query_latent_dim``, queries are compressed too, which saves weights, not cache. ``norms``
    puts an RMSNorm behind each compression, as DeepSeek does. ``scale`` of the scores is
    1 / sqrt(head_dim + rope_dim) if None.

    There are two ways to compute the same. ``explicit`` makes all keys and values, then attends.
    ``absorbed`` brings each query to the latent space instead, attends to the latent vectors
    themselves, and brings what it has read to the values' space: nothing is made of what is in the
    cache. ``absorb`` chooses one; None takes the one with fewer multiplications.
    """

    absorb: bool | None = None

    def __init__(
        self,
        d_in: int,
        num_heads: int,
        latent_dim: int,
        head_dim: int,
        value_head_dim: int | None = None,
        rope_dim: int = 0,
        query_latent_dim: int | None = None,
        qkv_bias: bool = False,
        out_bias: bool = False,
        norms: bool = True,
        eps: float = 1e-6,
        scale: float | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        for name, size in (("num_heads", num_heads), ("latent_dim", latent_dim)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if rope_dim % 2:
            raise ValueError(f"RoPE turns pairs of numbers: rope_dim must be even, got {rope_dim}")
        self.num_heads, self.head_dim, self.rope_dim = num_heads, head_dim, rope_dim
        self.latent_dim = latent_dim
        self.value_head_dim = value_head_dim or head_dim
        self.scale = scale or (head_dim + rope_dim) ** -0.5

        def linear(width_in: int, width_out: int, bias: bool = False) -> nn.Linear:
            return nn.Linear(width_in, width_out, bias=bias, dtype=dtype)

        self.W_DQ = linear(d_in, query_latent_dim, qkv_bias) if query_latent_dim else None
        self.W_query = linear(
            query_latent_dim or d_in,
            num_heads * (head_dim + rope_dim),
            qkv_bias and not query_latent_dim,
        )
        self.W_DKV = linear(d_in, latent_dim, qkv_bias)
        self.W_KR = linear(d_in, rope_dim, qkv_bias) if rope_dim else None
        self.W_UK = linear(latent_dim, num_heads * head_dim)
        self.W_UV = linear(latent_dim, num_heads * self.value_head_dim)
        self.out_proj = linear(num_heads * self.value_head_dim, d_in, out_bias)
        has_q_norm = norms and query_latent_dim
        self.q_norm = RMSNorm(query_latent_dim, eps, dtype) if has_q_norm else None
        self.kv_norm = RMSNorm(latent_dim, eps, dtype) if norms else None

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
        cache=None,
        layer_idx: int = 0,
    ) -> torch.Tensor:
        queries, kept = self.queries(x, cos, sin), self.compress(x, cos, sin)
        if cache is not None:
            # The latent vectors are keys and values at once: nothing is left to keep as values
            kept, _ = cache.update(layer_idx, kept, kept[..., :0])
        absorb = self.is_absorbed_cheaper(x.shape[1]) if self.absorb is None else self.absorb
        context = (self.absorbed if absorb else self.explicit)(queries, kept, mask)
        return apply_layer(self.out_proj, context.transpose(1, 2).flatten(2))  # (b, n, d_in)

    def queries(self, x: torch.Tensor, cos=None, sin=None) -> torch.Tensor:
        """(b, num_heads, n, head_dim + rope_dim), of which the last ``rope_dim`` are rotated."""
        if self.W_DQ is not None:
            x = apply_layer(self.W_DQ, x)
            x = x if self.q_norm is None else self.q_norm(x)
        queries = split_heads(apply_layer(self.W_query, x), self.num_heads)
        if not self.rope_dim or cos is None:
            return queries
        plain, rotary = queries.split([self.head_dim, self.rope_dim], dim=-1)
        return torch.cat([plain, apply_rope(rotary, cos, sin)], dim=-1)

    def compress(self, x: torch.Tensor, cos=None, sin=None) -> torch.Tensor:
        """What the cache keeps of each token: (b, 1, n, latent_dim + rope_dim)."""
        latent = apply_layer(self.W_DKV, x)  # (b, n, latent_dim)
        latent = latent if self.kv_norm is None else self.kv_norm(latent)
        if not self.rope_dim:
            return latent[:, None]
        rotary = apply_layer(self.W_KR, x)[:, None]  # (b, 1, n, rope_dim): one key for all heads
        if cos is not None:
            rotary = apply_rope(rotary, cos, sin)
        return torch.cat([latent[:, None], rotary], dim=-1)

    def explicit(self, queries, kept, mask=None) -> torch.Tensor:
        """Make keys and values of all tokens, then attend: (b, num_heads, n, value_head_dim)."""
        latent, rotary = kept[:, 0].split([self.latent_dim, self.rope_dim], dim=-1)
        keys = split_heads(apply_layer(self.W_UK, latent), self.num_heads)
        values = split_heads(apply_layer(self.W_UV, latent), self.num_heads)
        rotary = rotary[:, None].expand(-1, self.num_heads, -1, -1)
        keys = torch.cat([keys, rotary], dim=-1)  # (b, num_heads, total, head_dim + rope_dim)
        return attend(queries, keys, values, mask, self.scale)

    def absorbed(self, queries, kept, mask=None) -> torch.Tensor:
        """Attend to the latent vectors themselves: (b, num_heads, n, value_head_dim).

        A score is q · (W_UK c) = (W_UK^T q) · c, and a sum of values W_UV c is W_UV times the sum
        of the c: the matrices move from the many tokens in the cache to the few new ones.
        """
        to_latent = self.W_UK.weight.view(self.num_heads, self.head_dim, self.latent_dim)
        to_value = self.W_UV.weight.view(self.num_heads, self.value_head_dim, self.latent_dim)
        plain, rotary = queries.split([self.head_dim, self.rope_dim], dim=-1)
        queries = torch.cat([plain @ to_latent, rotary], dim=-1)  # like ``kept``, for each head
        read = attend(queries, kept, kept[..., : self.latent_dim], mask, self.scale)
        return read @ to_value.transpose(1, 2)

    def is_absorbed_cheaper(self, n: int) -> bool:
        """Whether ``n`` new tokens need fewer multiplications per token in the cache that way."""
        made = self.head_dim + self.value_head_dim
        explicit = self.latent_dim * made + n * (made + self.rope_dim)
        return n * (2 * self.latent_dim + self.rope_dim) < explicit


def split_heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(b, n, num_heads * width) -> (b, num_heads, n, width)"""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)
