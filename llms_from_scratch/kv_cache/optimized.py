"""The GPT of chapter 4 with a preallocated cache: quick steps, the same weights, the same tokens.

Import it as ``GPTModel`` from ``llms_from_scratch.kv_cache.gpt2``. Parameters and their names are
those of ``ch04.GPTModel``, so a state dict of the one loads into the other, and ``with_cache``
gives a model of chapter 4 these faster steps without a copy of its weights.
"""

import copy

import torch
import torch.nn as nn

from llms_from_scratch.blocks.attention import attend
from llms_from_scratch.blocks.linear import apply_layer
from llms_from_scratch.blocks.masks import attention_mask
from llms_from_scratch.ch03 import MultiHeadAttention, PyTorchMultiHeadAttention
from llms_from_scratch.ch04 import (
    FeedForward,
    GPTModel,
    GPTModelFast,
    LayerNorm,
    TransformerBlock,
    TransformerBlockFast,
    check_input_ids,
)
from llms_from_scratch.kv_cache.cache import KVCache
from llms_from_scratch.kv_cache.twins import split_window, use_classes


class FusedLayerNorm(LayerNorm):
    """``LayerNorm`` of chapter 4 as one operation of PyTorch in place of eight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)


class FusedFeedForward(FeedForward):
    """``FeedForward`` of chapter 4 with PyTorch's GELU, and all cores for a single token."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        expand, _, contract = self.layers
        x = nn.functional.gelu(apply_layer(expand, x), approximate="tanh")
        return apply_layer(contract, x)


class CachedMultiHeadAttention(MultiHeadAttention):
    """``MultiHeadAttention`` of chapter 3 that can attend to keys and values in a cache.

    Input and output (b, n, d_out) for n new tokens. ``mask`` is True where a token must not look;
    None for plainly causal.
    """

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        cache: KVCache | None = None,
        layer_idx: int = 0,
    ) -> torch.Tensor:
        b, n, _ = x.shape
        queries, keys, values = self.project(x)  # each (b, num_heads, n, head_dim)
        if cache is not None:
            keys, values = cache.update(layer_idx, keys, values)  # (b, num_heads, all, head_dim)
        dropout_p = self.dropout.p if self.training else 0.0
        context = attend(queries, keys, values, mask, dropout_p=dropout_p)
        return apply_layer(self.out_proj, context.transpose(1, 2).reshape(b, n, self.d_out))

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # A joint product would be 2 % faster, but need other names, or a copy, of these weights
        b, n, _ = x.shape
        return tuple(
            apply_layer(layer, x).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
            for layer in (self.W_query, self.W_key, self.W_value)
        )


class CachedJointAttention(PyTorchMultiHeadAttention):
    """``PyTorchMultiHeadAttention`` of chapter 3, likewise: one product for all three."""

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        cache: KVCache | None = None,
        layer_idx: int = 0,
    ) -> torch.Tensor:
        b, n, _ = x.shape
        qkv = apply_layer(self.qkv, x).view(b, n, 3, self.num_heads, self.head_dim)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            keys, values = cache.update(layer_idx, keys, values)
        dropout_p = self.dropout if self.training else 0.0
        context = attend(queries, keys, values, mask, dropout_p=dropout_p)
        return apply_layer(self.proj, context.transpose(1, 2).reshape(b, n, self.d_out))


class CachedTransformerBlock(TransformerBlock):
    """``TransformerBlock`` of chapter 4; what attention needs besides is passed on to it.

    Input and output (b, n, emb_dim).
    """

    def forward(self, x: torch.Tensor, *attention_inputs) -> torch.Tensor:
        x = x + self.drop_shortcut(self.att(self.norm1(x), *attention_inputs))
        return x + self.drop_shortcut(self.ff(self.norm2(x)))


class CachedGPTModel(GPTModel):
    """``GPTModel`` of chapter 4 that needs to be shown each token only once.

    Input ids (b, n), output logits (b, n, vocab_size). With ``use_cache=True``, the ids continue
    what the model was shown since ``reset_kv_cache()``, ``current_pos`` tokens per row; with
    ``cache``, they continue what is in that cache. A call with neither stands for itself and
    leaves the caches alone. ``last_only`` computes the logits of the last token only, (b, 1,
    vocab_size), which is all that generation reads.

    With ``kv_window_size`` in the configuration, each token looks at so many tokens, itself
    included, with or without a cache, and a cache holds no more of them.

    Raises ``ValueError`` for a wrong configuration, for ids outside of the vocabulary (on the CPU),
    for more than ``context_length`` tokens in all, and for a cache where gradients are wanted.
    """

    def __init__(self, cfg: dict):
        plain_cfg, _ = split_window(cfg)
        super().__init__(plain_cfg)
        use_classes(self, TWINS)
        self.cfg = dict(cfg)
        self.reset_kv_cache()

    @property
    def windows(self) -> list[int | None]:
        return [self.cfg.get("kv_window_size")] * len(self.trf_blocks)

    @property
    def current_pos(self) -> int:
        """Tokens per row in the model's own cache."""
        return self._own_cache.length

    def reset_kv_cache(self) -> None:
        """Forget what was shown with ``use_cache=True``, and free its memory."""
        self._own_cache = KVCache(len(self.trf_blocks))

    def forward(
        self,
        in_idx: torch.Tensor,
        use_cache: bool = False,
        cache: KVCache | None = None,
        last_only: bool = False,
    ) -> torch.Tensor:
        check_input_ids(in_idx, self.tok_emb.num_embeddings, self.pos_emb.num_embeddings)
        n, device = in_idx.shape[1], in_idx.device
        if cache is None and use_cache:
            cache = self._own_cache
        windows = self.windows  # one for each layer
        if cache is None:
            positions = torch.arange(n, device=device)
            masks = {window: attention_mask(n, device, 0, window) for window in set(windows)}
        else:
            cache.open_for(self, n)
            positions = cache.positions(n, device)
            masks = {window: cache.mask(n, device, window) for window in set(windows)}

        x = self.drop_emb(self.tok_emb(in_idx) + self.pos_emb(positions))  # (b, n, emb_dim)
        for layer_idx, (block, window) in enumerate(zip(self.trf_blocks, windows, strict=True)):
            x = block(x, masks[window], cache, layer_idx)
        if cache is not None:
            cache.advance(n)
        if last_only:
            x = x[:, -1:]
        return apply_layer(self.out_head, self.final_norm(x))


TWINS = {
    TransformerBlock: CachedTransformerBlock,
    TransformerBlockFast: CachedTransformerBlock,
    MultiHeadAttention: CachedMultiHeadAttention,
    PyTorchMultiHeadAttention: CachedJointAttention,
    LayerNorm: FusedLayerNorm,
    FeedForward: FusedFeedForward,
}


def with_cache(model: GPTModel) -> CachedGPTModel:
    """A model of chapter 4, and what later chapters made of it, that can use a cache.

    Its weights, LoRA layers and output head are the very same tensors: training the one changes
    the other. Raises ``ValueError`` for a model of another kind.
    """
    if type(model) not in (GPTModel, GPTModelFast):
        raise ValueError(f"{type(model).__name__} is no GPTModel of chapter 4")
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    use_classes(twin, TWINS)
    twin.__class__ = CachedGPTModel
    twin.cfg = dict(model.cfg)
    twin.reset_kv_cache()
    return twin
