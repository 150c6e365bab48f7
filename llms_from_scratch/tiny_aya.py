"""Tiny Aya: attention and feed-forward side by side, and layers without any positions.

What changed from Olmo 3: both sublayers of a block read the same normalized stream and are added
at once; the norm is LayerNorm again, without a shift; only layers with a window rotate, by
neighbouring pairs of numbers, and those that see everything know no positions at all; logits have
a scale.

The architecture is called Cohere2 on the hub. Sources: that model in ``transformers``, with which
the tests compare; Wang and Komatsuzaki, "GPT-J-6B" (2021), for the parallel block.
"""

from collections.abc import Mapping

import torch
import torch.nn as nn

from llms_from_scratch.blocks.attention import GroupedQueryAttention as SharedAttention
from llms_from_scratch.blocks.attention import attend
from llms_from_scratch.blocks.config import (
    check_config,
    check_heads,
    check_layer_types,
    with_one_name_for_tying,
)
from llms_from_scratch.blocks.decoder import DecoderModel
from llms_from_scratch.blocks.feed_forward import FeedForward
from llms_from_scratch.blocks.linear import apply_layer
from llms_from_scratch.blocks.masks import attention_mask as causal_mask
from llms_from_scratch.blocks.rope import RotaryEmbedding, no_positions
from llms_from_scratch.ch04 import check_input_ids
from llms_from_scratch.gemma3 import NAMES as GEMMA_NAMES
from llms_from_scratch.weights.chat_formats import TinyAyaTokenizer
from llms_from_scratch.weights.mapping import load_by_names
from llms_from_scratch.weights.sources import from_dict

__all__ = [
    "CohereLayerNorm",
    "FeedForward",
    "GroupedQueryAttention",
    "PairwiseRotaryEmbedding",
    "TINY_AYA_CONFIG",
    "TinyAyaModel",
    "TinyAyaTokenizer",
    "TransformerBlock",
    "apply_rope",
    "compute_rope_params",
    "load_weights_into_tiny_aya",
]

TINY_AYA_CONFIG = {
    "vocab_size": 262_144,
    "context_length": 500_000,
    "emb_dim": 2048,
    "n_heads": 16,
    "n_layers": 36,
    "hidden_dim": 11_008,
    "head_dim": 128,
    "n_kv_heads": 4,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "sliding_window": 4096,
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 9,
    "rope_base": 50_000.0,  # of layers with a window; the others do not rotate
    "layer_norm_eps": 1e-5,
    "logit_scale": 1.0,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
    "dtype": torch.bfloat16,
}

OPTIONAL_KEYS = (
    "layer_norm_eps",
    "logit_scale",
    "tie_word_embeddings",
    "tie_embeddings",  # the same, as the other architectures call it
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
ONLY = {"attention_bias": False, "attention_dropout": 0.0, "qk_norm": False}
NOT_NEEDED = (*OPTIONAL_KEYS, *ONLY)
CONFIG_KEYS = [key for key in TINY_AYA_CONFIG if key not in NOT_NEEDED]
NAMES = {  # ours: the hub's
    ours.replace(".scale", ".weight"): theirs
    for ours, theirs in GEMMA_NAMES.items()
    if "norm" not in ours or ours in ("trf_blocks.{}.input_layernorm.scale", "final_norm.scale")
}


class CohereLayerNorm(nn.Module):
    """Bring the last dimension to mean 0 and variance 1, then scale it; no shift. (..., emb_dim)"""

    def __init__(self, emb_dim: int, eps: float = 1e-5, dtype: torch.dtype | None = None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(emb_dim, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x.float() - x.float().mean(dim=-1, keepdim=True)
        variance = centred.pow(2).mean(dim=-1, keepdim=True)
        return (self.weight.float() * centred * torch.rsqrt(variance + self.eps)).to(x.dtype)


class PairwiseRotaryEmbedding(RotaryEmbedding):
    """Cosines and sines for neighbouring pairs: each angle stands twice, side by side."""

    def __call__(
        self, positions: torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = super().__call__(positions, dtype)  # all angles, and all of them once more
        return tuple(t.chunk(2, dim=-1)[0].repeat_interleave(2, dim=-1) for t in (cos, sin))


def compute_rope_params(
    head_dim: int,
    theta_base: float = 10_000,
    context_length: int = 4096,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of all positions, each (context_length, head_dim), angles in pairs."""
    return PairwiseRotaryEmbedding(head_dim, theta_base)(torch.arange(context_length), dtype)


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn numbers 0 and 1 of each head together, 2 and 3, ...; (b, num_heads, n, head_dim).

    >>> cos, sin = compute_rope_params(head_dim=4, context_length=2)
    >>> apply_rope(torch.tensor([[[[1.0, 0.0, 0.0, 0.0]] * 2]]), cos, sin)  # positions 0 and 1
    tensor([[[[1.0000, 0.0000, 0.0000, 0.0000],
              [0.5403, 0.8415, 0.0000, 0.0000]]]])
    """
    n = x.shape[-2]
    cos, sin = cos[..., :n, :], sin[..., :n, :]
    first, second = x[..., 0::2], x[..., 1::2]
    turned = torch.stack((-second, first), dim=-1).flatten(-2)  # each pair, by a right angle
    return (x * cos + turned * sin).to(x.dtype)


class GroupedQueryAttention(SharedAttention):
    """Grouped-query attention that turns neighbouring pairs, where it turns at all. (b, n, d_in)"""

    def forward(self, x, mask=None, cos=None, sin=None, cache=None, layer_idx=0):
        queries, keys, values = self.project(x)
        if cos is not None:
            queries = apply_rope(queries, cos, sin)
            keys = apply_rope(keys, cos, sin)
        if cache is not None:
            keys, values = cache.update(layer_idx, keys, values)
        context = attend(queries, keys, values, mask, self.scale)
        return apply_layer(self.out_proj, context.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """One norm, two sublayers that read it, one sum. Input and output (b, n, emb_dim)."""

    def __init__(self, cfg: dict):
        super().__init__()
        emb_dim, dtype = cfg["emb_dim"], cfg["dtype"]
        self.att = GroupedQueryAttention(
            emb_dim, cfg["n_heads"], cfg["n_kv_heads"], cfg["head_dim"], dtype
        )
        self.ff = FeedForward(cfg)
        self.input_layernorm = CohereLayerNorm(emb_dim, cfg.get("layer_norm_eps", 1e-5), dtype)

    def forward(self, x, mask=None, cos=None, sin=None, cache=None, layer_idx=0):
        normed = self.input_layernorm(x)
        return x + self.att(normed, mask, cos, sin, cache, layer_idx) + self.ff(normed)


def masks_without_padding(model, attention_mask, in_idx, cache=None) -> dict[str, torch.Tensor]:
    """For each type of layer, True where a token must not look: as ever, and where a 0 stands.

    Each mask is (b, 1, n, columns), the columns being the tokens that such a layer still has.
    """
    b, n = in_idx.shape
    length, padding = (0, None) if cache is None else (cache.length, cache.padding)
    if getattr(attention_mask, "shape", None) != (b, length + n):
        raise ValueError(
            f"attention_mask must be a tensor of shape {(b, length + n)}, a number for each token "
            f"so far, got {getattr(attention_mask, 'shape', type(attention_mask).__name__)}"
        )
    if padding is None:
        padding = torch.zeros(1, dtype=torch.long, device=in_idx.device)
    masks = {}
    for kind, window in zip(model.layer_types, model.windows, strict=True):
        hidden = causal_mask(n, in_idx.device, length, window, padding)
        columns = torch.arange(n - hidden.shape[-1], n, device=in_idx.device)
        is_itself = columns == columns[-n:, None]  # (n, columns): a softmax needs one number
        is_empty = attention_mask[:, None, None, -len(columns) :] == 0
        masks[kind] = hidden | (is_empty & ~is_itself)
    return masks


class TinyAyaModel(DecoderModel):
    """Tiny Aya: token ids (b, n) to logits (b, n, vocab_size); see ``DecoderModel``.

    ``attention_mask`` (b, tokens so far) is 1 for tokens and 0 for padding, wherever it stands;
    what is computed for padding has no meaning. Raises ``ValueError`` for a mask of another shape,
    and for a configuration with unknown, missing or contradictory keys.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        keys = (CONFIG_KEYS, OPTIONAL_KEYS, ONLY)
        check_config(cfg, "Tiny Aya", *keys)
        check_heads(cfg, "Tiny Aya", "n_kv_heads")
        check_layer_types(cfg, "Tiny Aya")
        self.cfg = with_one_name_for_tying(cfg)
        self.logit_scale = cfg.get("logit_scale", 1.0)
        norm_options = {"eps": cfg.get("layer_norm_eps", 1e-5), "dtype": cfg["dtype"]}
        self.make_layers(TransformerBlock, CohereLayerNorm, **norm_options)
        self.ropes = {
            "sliding_attention": PairwiseRotaryEmbedding(cfg["head_dim"], cfg["rope_base"]),
            "full_attention": no_positions,
        }

    def forward(
        self,
        in_idx: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache=None,
        last_only: bool = False,
    ) -> torch.Tensor:
        check_input_ids(in_idx, self.tok_emb.num_embeddings, self.cfg["context_length"])
        n = in_idx.shape[1]
        x = self.embed(in_idx)  # (b, n, emb_dim)
        inputs = self.attention_inputs(n, x, cache)
        if attention_mask is not None:
            masks = masks_without_padding(self, attention_mask, in_idx, cache)
            inputs = {kind: (masks[kind], *angles) for kind, (_, *angles) in inputs.items()}
        layers = zip(self.trf_blocks, self.layer_types, strict=True)
        for layer_idx, (block, kind) in enumerate(layers):
            x = block(x, *inputs[kind], cache, layer_idx)
        if cache is not None:
            cache.advance(n)
        x = self.final_norm(x[:, -1:] if last_only else x)
        return apply_layer(self.out_head, x) * self.logit_scale


def load_weights_into_tiny_aya(model: nn.Module, param_config: Mapping, params: Mapping) -> None:
    """Copy tensors by their names on the hub into a ``TinyAyaModel``.

    Without ``lm_head.weight``, the output layer becomes the token embedding. Raises ``ValueError``
    for a missing, superfluous or misshapen tensor, before the first copy.
    """
    load_by_names(model, from_dict(params, "params"), NAMES)
