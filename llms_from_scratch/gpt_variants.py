"""Chapter 4's GPT with another attention, feed-forward layer or memory: one change at a time.

Each model is the GPT of chapter 4 (learned positions, LayerNorm, shortcuts) but for the part that
its name says, so that what is measured is that part alone. Attention is a class of its own with the
arguments of chapter 3's; the models use the one cache and the one decoding loop.

* ``GPTWithMHA``: multi-head attention, as in chapter 4, without a stored mask
* ``GPTWithGQA``: grouped queries, with ``n_kv_groups`` in the configuration
* ``GPTWithMLA``: latent vectors in the cache, with ``latent_dim``
* ``GPTWithSWA``: sliding windows, with ``sliding_window_size`` and ``sliding_window_stride``
* ``GPTWithFFN``: a gated feed-forward layer, with ``hidden_dim``
* ``GPTWithMoE``: experts, with ``hidden_dim``, ``num_experts`` and ``num_experts_per_tok``
* ``GPTWithDeltaNet``: the gated delta rule, with ``full_attention_every`` for a mixture

Shapes: b = batch size, n = new tokens, d_in and d_out = widths.
"""

import sys

import torch
import torch.nn as nn

from llms_from_scratch.blocks.attention import GroupedQueryAttention as SharedAttention
from llms_from_scratch.blocks.attention import attend
from llms_from_scratch.blocks.config import check_config
from llms_from_scratch.blocks.delta_rule import GatedDeltaNet as DeltaNetLayer
from llms_from_scratch.blocks.delta_rule import l2norm
from llms_from_scratch.blocks.feed_forward import FeedForward
from llms_from_scratch.blocks.feed_forward import MoEFeedForward as SharedMoE
from llms_from_scratch.blocks.latent_attention import LatentAttention
from llms_from_scratch.blocks.linear import apply_layer
from llms_from_scratch.blocks.masks import attention_mask
from llms_from_scratch.ch04 import GPT_CONFIG_124M
from llms_from_scratch.kv_cache.cache import KVCache
from llms_from_scratch.kv_cache.optimized import (
    CachedGPTModel,
    CachedMultiHeadAttention,
    CachedTransformerBlock,
    FusedFeedForward,
    FusedLayerNorm,
)

__all__ = [
    "FeedForward",
    "GPTWithDeltaNet",
    "GPTWithFFN",
    "GPTWithGQA",
    "GPTWithMHA",
    "GPTWithMLA",
    "GPTWithMoE",
    "GPTWithSWA",
    "GatedDeltaNet",
    "GatedMultiHeadAttention",
    "GroupedQueryAttention",
    "MoEFeedForward",
    "MultiHeadAttention",
    "MultiHeadAttentionWithSWA",
    "MultiHeadLatentAttention",
    "VariantBlock",
    "VariantGPT",
    "l2norm",
]


# --- Attention ---


def check_width(d_out: int, num_heads: int) -> int:
    """The width of a head; ``ValueError`` if the heads cannot share ``d_out`` evenly.

    >>> check_width(768, 12)
    64
    """
    if num_heads < 1 or d_out % num_heads:
        raise ValueError(f"d_out must be divisible by num_heads, got {d_out=}, {num_heads=}")
    return d_out // num_heads


class MultiHeadAttention(CachedMultiHeadAttention):
    """Chapter 3's multi-head attention without a stored mask, for any number of tokens.

    Input (b, n, d_in), output (b, n, d_out). Weights and their names are chapter 3's.
    """

    def __init__(
        self, d_in: int, d_out: int, dropout: float, num_heads: int, qkv_bias: bool = False
    ):
        check_width(d_out, num_heads)
        super().__init__(d_in, d_out, 1, dropout, num_heads, qkv_bias)
        del self.mask  # PyTorch's fused attention needs none


class GroupedQueryAttention(SharedAttention):
    """Attention in which ``num_heads / num_kv_groups`` query heads share keys and values.

    Input (b, n, d_in), output (b, n, d_in). ``num_kv_groups`` is the number of heads of keys and
    values: as many as query heads make multi-head attention, 1 makes multi-query attention.
    ``out_proj`` has no bias.
    """

    drawn_in_order = ("W_key", "W_value", "W_query")

    def __init__(
        self,
        d_in: int,
        d_out: int,
        dropout: float,
        num_heads: int,
        num_kv_groups: int,
        dtype: torch.dtype | None = None,
        qkv_bias: bool = False,
    ):
        if num_kv_groups < 1:
            raise ValueError(f"num_kv_groups must be at least 1, got {num_kv_groups}")
        super().__init__(d_in, num_heads, num_kv_groups, check_width(d_out, num_heads), dtype)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.W_key, self.W_value, self.W_query) if qkv_bias else ():
            bound = d_in**-0.5
            bias = torch.empty(layer.out_features, dtype=dtype).uniform_(-bound, bound)
            layer.bias = nn.Parameter(bias)

    def forward(self, x, mask=None, cache=None, layer_idx=0):
        queries, keys, values = self.project(x)
        if cache is not None:
            keys, values = cache.update(layer_idx, keys, values)  # (b, groups, total, head_dim)
        dropout_p = self.dropout.p if self.training else 0.0
        context = attend(queries, keys, values, mask, dropout_p=dropout_p)
        return apply_layer(self.out_proj, context.transpose(1, 2).flatten(2))


class MultiHeadLatentAttention(LatentAttention):
    """Attention whose cache keeps a latent vector of ``latent_dim`` per token.

    Input and output (b, n, d_in). No rotations here, and no norms: positions are the model's.
    ``latent_dim`` is by default the larger of 16 and d_out // 8.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
        latent_dim: int | None = None,
    ):
        latent_dim = max(16, d_out // 8) if latent_dim is None else latent_dim
        head_dim = check_width(d_out, num_heads)
        super().__init__(
            d_in, num_heads, latent_dim, head_dim, qkv_bias=qkv_bias, out_bias=True, norms=False
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask=None, cache=None, layer_idx=0):
        return self.dropout(super().forward(x, mask, None, None, cache, layer_idx))


class MultiHeadAttentionWithSWA(MultiHeadAttention):
    """Multi-head attention in which a token looks at ``sliding_window_size``, itself included.

    Input (b, n, d_in), output (b, n, d_out). None: at all before it. In a model, the model's cache
    keeps the window. Alone, ``use_cache=True`` continues what the layer was shown since
    ``reset_cache()``; a call without it stands for itself and leaves that alone. ``cache_k`` and
    ``cache_v`` show what is kept then, (b, window, num_heads, head_dim), or None.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
        sliding_window_size: int | None = None,
    ):
        super().__init__(d_in, d_out, dropout, num_heads, qkv_bias)
        if sliding_window_size is not None and sliding_window_size < 1:
            raise ValueError(f"sliding_window_size must be at least 1, got {sliding_window_size}")
        self.sliding_window_size = sliding_window_size
        self.reset_cache()

    def reset_cache(self) -> None:
        """Forget what the layer alone was shown with ``use_cache=True``."""
        self._own_cache = KVCache(1, windows=[self.sliding_window_size])
        self._own_cache.capacity = sys.maxsize  # it grows with the text

    def forward(self, x, mask=None, cache=None, layer_idx=0, use_cache=False):
        n, window = x.shape[1], self.sliding_window_size
        if use_cache:
            cache, mask = self._own_cache, self._own_cache.mask(n, x.device, window)
        elif cache is None and mask is None:
            mask = attention_mask(n, x.device, 0, window)
        context = super().forward(x, mask, cache, layer_idx)
        if use_cache:
            cache.advance(n)
        return context

    @property
    def cache_k(self) -> torch.Tensor | None:
        return self._kept(0)

    @property
    def cache_v(self) -> torch.Tensor | None:
        return self._kept(1)

    def _kept(self, which: int) -> torch.Tensor | None:
        columns, length = self._own_cache._storage[0], self._own_cache.length
        if columns is None or not length:
            return None
        kept = length if self.sliding_window_size is None else self.sliding_window_size
        return columns.last(min(kept, length))[which].transpose(1, 2)


class GatedMultiHeadAttention(MultiHeadAttention):
    """Multi-head attention whose result passes a sigmoid gate before ``out_proj``.

    Input (b, n, d_in), output (b, n, d_out). ``context_length`` is the most tokens of a call.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
    ):
        super().__init__(d_in, d_out, dropout, num_heads, qkv_bias)
        self.context_length = context_length
        self.W_gate = nn.Linear(d_in, d_out, bias=qkv_bias)

    def forward(self, x, mask=None, cache=None, layer_idx=0):
        n = x.shape[1]
        if n > self.context_length:
            raise ValueError(
                f"got {n} tokens, but context_length is {self.context_length}: pass the last ones"
            )
        queries, keys, values = self.project(x)
        if cache is not None:
            keys, values = cache.update(layer_idx, keys, values)
        dropout_p = self.dropout.p if self.training else 0.0
        context = attend(queries, keys, values, mask, dropout_p=dropout_p)
        gate = torch.sigmoid(apply_layer(self.W_gate, x))  # (b, n, d_out)
        return apply_layer(self.out_proj, context.transpose(1, 2).flatten(2) * gate)


class GatedDeltaNet(DeltaNetLayer):
    """A memory of fixed size in the place of attention, with as many heads, as wide.

    Input and output (b, n, d_in). See ``blocks.delta_rule`` for what it computes.
    """

    def __init__(
        self, d_in: int, d_out: int, dropout: float, num_heads: int, qkv_bias: bool = False
    ):
        head_dim = check_width(d_out, num_heads)
        super().__init__(d_in, num_heads, num_heads, head_dim, head_dim, qkv_bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask=None, cache=None, layer_idx=0):
        return self.dropout(super().forward(x, mask, None, None, cache, layer_idx))


class MoEFeedForward(SharedMoE):
    """A mixture of experts, each as wide inside as ``hidden_dim``. In and out (b, n, emb_dim)."""

    def __init__(self, cfg: dict):
        super().__init__(cfg | {"moe_hidden_dim": cfg["hidden_dim"]})


# --- Models ---


class VariantBlock(CachedTransformerBlock):
    """Chapter 4's block around a given attention and feed-forward layer: (b, n, emb_dim)."""

    def __init__(self, cfg: dict, att: nn.Module, ff: nn.Module):
        nn.Module.__init__(self)  # not super(): that would build chapter 4's layers
        self.att, self.ff = att, ff
        self.norm1 = FusedLayerNorm(cfg["emb_dim"])
        self.norm2 = FusedLayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])


class VariantGPT(CachedGPTModel):
    """A GPT of chapter 4 whose attention and feed-forward layers a subclass makes.

    Token ids (b, n) to logits (b, n, vocab_size), with ``use_cache`` or ``cache`` as in
    ``CachedGPTModel``. Raises ``ValueError`` for a configuration with unknown, missing or
    contradictory keys.
    """

    keys: tuple[str, ...] = ()  # of the configuration, besides chapter 4's
    optional_keys: tuple[str, ...] = ()

    def __init__(self, cfg: dict):
        nn.Module.__init__(self)
        required = [*GPT_CONFIG_124M, *self.keys]
        check_config(cfg, type(self).__name__, required, self.optional_keys)
        self.cfg = dict(cfg)
        emb_dim = cfg["emb_dim"]
        self.tok_emb = nn.Embedding(cfg["vocab_size"], emb_dim)
        self.pos_emb = nn.Embedding(cfg["context_length"], emb_dim)
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        blocks = []
        for layer_idx in range(cfg["n_layers"]):  # attention first: a seed gives the same numbers
            att = self.make_attention(layer_idx)
            blocks.append(VariantBlock(cfg, att, self.make_feed_forward()))
        self.trf_blocks = nn.ModuleList(blocks)
        self.final_norm = FusedLayerNorm(emb_dim)
        self.out_head = nn.Linear(emb_dim, cfg["vocab_size"], bias=False)
        self.reset_kv_cache()

    def make_attention(self, layer_idx: int) -> nn.Module:
        return MultiHeadAttention(*self.shape, self.cfg["qkv_bias"])

    def make_feed_forward(self) -> nn.Module:
        return FusedFeedForward(self.cfg)

    @property
    def shape(self) -> tuple[int, int, float, int]:
        """d_in, d_out, dropout and num_heads, which every attention begins with."""
        cfg = self.cfg
        return cfg["emb_dim"], cfg["emb_dim"], cfg["drop_rate"], cfg["n_heads"]

    @property
    def windows(self) -> list[int | None]:
        """For each layer, how many tokens it looks at, itself included; None for all."""
        return [getattr(block.att, "sliding_window_size", None) for block in self.trf_blocks]


class GPTWithMHA(VariantGPT):
    """Multi-head attention, as in chapter 4: what the others are compared with."""


class GPTWithGQA(VariantGPT):
    """Grouped-query attention; ``n_kv_groups`` heads of keys and values in each layer."""

    keys = ("n_kv_groups",)

    def make_attention(self, layer_idx: int) -> nn.Module:
        groups, qkv_bias = self.cfg["n_kv_groups"], self.cfg["qkv_bias"]
        return GroupedQueryAttention(*self.shape, groups, qkv_bias=qkv_bias)


class GPTWithMLA(VariantGPT):
    """Multi-head latent attention; ``latent_dim`` numbers per token and layer in the cache."""

    optional_keys = ("latent_dim",)

    def make_attention(self, layer_idx: int) -> nn.Module:
        cfg = self.cfg
        return MultiHeadLatentAttention(*self.shape, cfg["qkv_bias"], cfg.get("latent_dim"))


class GPTWithSWA(VariantGPT):
    """Sliding windows: ``sliding_window_stride`` layers with a window, then one without, again.

    Stride 0: no layer has a window. A negative one, the default: all have.
    """

    keys = ("sliding_window_size",)
    optional_keys = ("sliding_window_stride",)

    def make_attention(self, layer_idx: int) -> nn.Module:
        cfg = self.cfg
        window = cfg["sliding_window_size"] if self.has_window(layer_idx) else None
        return MultiHeadAttentionWithSWA(*self.shape, cfg["qkv_bias"], window)

    def has_window(self, layer_idx: int) -> bool:
        stride = self.cfg.get("sliding_window_stride", -1)
        return stride < 0 or (stride > 0 and layer_idx % (stride + 1) < stride)


class GPTWithFFN(VariantGPT):
    """A gated feed-forward layer, SwiGLU, ``hidden_dim`` wide inside."""

    keys = ("hidden_dim",)

    def make_feed_forward(self) -> nn.Module:
        return FeedForward(self.cfg)


class GPTWithMoE(VariantGPT):
    """A mixture of ``num_experts`` gated layers, of which ``num_experts_per_tok`` answer a token.

    With 0 experts, chapter 4's feed-forward layer.
    """

    keys = ("hidden_dim", "num_experts_per_tok")
    optional_keys = ("num_experts",)

    def make_feed_forward(self) -> nn.Module:
        num_experts = self.cfg.get("num_experts") or 0
        if num_experts < 0:
            raise ValueError(f"num_experts must be 0 (none) or more, got {num_experts}")
        return MoEFeedForward(self.cfg) if num_experts else FusedFeedForward(self.cfg)


class GPTWithDeltaNet(VariantGPT):
    """The gated delta rule in place of attention.

    With ``full_attention_every`` = N, every N-th layer has gated attention instead: 4 is the
    mixture of Qwen3-Next, three to one.
    """

    optional_keys = ("full_attention_every",)

    def make_attention(self, layer_idx: int) -> nn.Module:
        cfg, every = self.cfg, self.cfg.get("full_attention_every")
        if every is not None and every < 1:
            raise ValueError(f"full_attention_every must be at least 1, or None; got {every}")
        if every and (layer_idx + 1) % every == 0:
            d_in, d_out, dropout, num_heads = self.shape
            return GatedMultiHeadAttention(
                d_in, d_out, cfg["context_length"], dropout, num_heads, cfg["qkv_bias"]
            )
        return GatedDeltaNet(*self.shape, cfg["qkv_bias"])
