"""Gemma 3: most layers look at a short window, and every sublayer is normalized twice.

What changed from Qwen3: five of six layers see their last ``sliding_window`` tokens only, with
rotations of their own, so that their cache stays small; norms stand before and after attention and
feed-forward, and scale by 1 + weight; embeddings are multiplied by the root of their width; the
gate is a GELU.

Source: Gemma Team, "Gemma 3 Technical Report" (2025).
"""

from collections.abc import Mapping

import torch
import torch.nn as nn

from llms_from_scratch.blocks.attention import GroupedQueryAttention as SharedAttention
from llms_from_scratch.blocks.config import check_config, check_heads, check_layer_types
from llms_from_scratch.blocks.decoder import DecoderModel
from llms_from_scratch.blocks.feed_forward import FeedForward as SwiGLU
from llms_from_scratch.blocks.norms import rms_normalize
from llms_from_scratch.blocks.rope import RotaryEmbedding, apply_rope, compute_rope_params
from llms_from_scratch.weights.chat_formats import GemmaTokenizer
from llms_from_scratch.weights.mapping import load_by_names
from llms_from_scratch.weights.sources import from_dict

__all__ = [
    "FeedForward",
    "GEMMA3_CONFIG_270M",
    "Gemma3Model",
    "GemmaTokenizer",
    "GroupedQueryAttention",
    "RMSNorm",
    "TransformerBlock",
    "apply_rope",
    "compute_rope_params",
    "load_weights_into_gemma",
]

GEMMA3_CONFIG_270M = {
    "vocab_size": 262_144,
    "context_length": 32_768,
    "emb_dim": 640,
    "n_heads": 4,
    "n_layers": 18,
    "hidden_dim": 2048,
    "head_dim": 256,
    "qk_norm": True,
    "n_kv_groups": 1,
    "rope_local_base": 10_000.0,  # of layers with a window
    "rope_base": 1_000_000.0,  # of layers that see everything
    "sliding_window": 512,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    "dtype": torch.bfloat16,
    "query_pre_attn_scalar": 256,  # scores are divided by its root
}

OPTIONAL_KEYS = ("rms_norm_eps", "rope_scaling", "tie_embeddings")
NAMES = {  # ours: the hub's
    "tok_emb.weight": "model.embed_tokens.weight",
    "trf_blocks.{}.att.W_query.weight": "model.layers.{}.self_attn.q_proj.weight",
    "trf_blocks.{}.att.W_key.weight": "model.layers.{}.self_attn.k_proj.weight",
    "trf_blocks.{}.att.W_value.weight": "model.layers.{}.self_attn.v_proj.weight",
    "trf_blocks.{}.att.out_proj.weight": "model.layers.{}.self_attn.o_proj.weight",
    "trf_blocks.{}.att.q_norm.scale": "model.layers.{}.self_attn.q_norm.weight",
    "trf_blocks.{}.att.k_norm.scale": "model.layers.{}.self_attn.k_norm.weight",
    "trf_blocks.{}.ff.fc1.weight": "model.layers.{}.mlp.gate_proj.weight",
    "trf_blocks.{}.ff.fc2.weight": "model.layers.{}.mlp.up_proj.weight",
    "trf_blocks.{}.ff.fc3.weight": "model.layers.{}.mlp.down_proj.weight",
    **{
        f"trf_blocks.{{}}.{norm}.scale": f"model.layers.{{}}.{norm}.weight"
        for norm in (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        )
    },
    "final_norm.scale": "model.norm.weight",
    "out_head.weight": "lm_head.weight",
}


class RMSNorm(nn.Module):
    """Root-mean-square normalization (..., emb_dim), scaled by 1 + ``scale``, all in float32.

    ``scale`` begins at zero, so that weight decay pulls towards "as it is" and not towards nothing.
    """

    def __init__(
        self,
        emb_dim: int,
        eps: float = 1e-6,
        bias: bool = False,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.zeros(emb_dim, dtype=dtype))
        self.shift = nn.Parameter(torch.zeros(emb_dim, dtype=dtype)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled = rms_normalize(x, self.eps) * (1.0 + self.scale.float())
        if self.shift is not None:
            scaled = scaled + self.shift.float()
        return scaled.to(x.dtype)


class FeedForward(SwiGLU):
    """The gated layer with GELU in its tanh approximation: GeGLU. In and out (b, n, emb_dim)."""

    def activation(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(x, approximate="tanh")


class GroupedQueryAttention(SharedAttention):
    """Grouped-query attention with normalized queries and keys, as in Qwen3, and a scale.

    Input and output (b, n, d_in).
    """

    def __init__(
        self,
        d_in: int,
        num_heads: int,
        num_kv_groups: int,
        head_dim: int | None = None,
        qk_norm: bool = False,
        query_pre_attn_scalar: float | None = None,
        dtype: torch.dtype | None = None,
        eps: float = 1e-6,
    ):
        scaling = None if query_pre_attn_scalar is None else query_pre_attn_scalar**-0.5
        super().__init__(d_in, num_heads, num_kv_groups, head_dim, dtype, scaling)
        self.scaling = self.head_dim**-0.5 if scaling is None else scaling
        if qk_norm:
            self.q_norm = RMSNorm(self.head_dim, eps, dtype=dtype)
            self.k_norm = RMSNorm(self.head_dim, eps, dtype=dtype)


class TransformerBlock(nn.Module):
    """What goes into a sublayer is normalized, and what comes out again, before it is added."""

    def __init__(self, cfg: dict):
        super().__init__()
        emb_dim, dtype, eps = cfg["emb_dim"], cfg["dtype"], cfg.get("rms_norm_eps", 1e-6)
        self.att = GroupedQueryAttention(
            emb_dim,
            cfg["n_heads"],
            cfg["n_kv_groups"],
            cfg["head_dim"],
            cfg["qk_norm"],
            cfg["query_pre_attn_scalar"],
            dtype,
            eps,
        )
        self.ff = FeedForward(cfg)
        self.input_layernorm = RMSNorm(emb_dim, eps, dtype=dtype)
        self.post_attention_layernorm = RMSNorm(emb_dim, eps, dtype=dtype)
        self.pre_feedforward_layernorm = RMSNorm(emb_dim, eps, dtype=dtype)
        self.post_feedforward_layernorm = RMSNorm(emb_dim, eps, dtype=dtype)

    def forward(self, x, mask=None, cos=None, sin=None, cache=None, layer_idx=0):
        attended = self.att(self.input_layernorm(x), mask, cos, sin, cache, layer_idx)
        x = x + self.post_attention_layernorm(attended)
        return x + self.post_feedforward_layernorm(self.ff(self.pre_feedforward_layernorm(x)))


class Gemma3Model(DecoderModel):
    """Gemma 3: token ids (b, n) to logits (b, n, vocab_size); see ``DecoderModel``.

    Raises ``ValueError`` for a configuration with unknown, missing or contradictory keys.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        check_config(cfg, "Gemma 3", GEMMA3_CONFIG_270M, OPTIONAL_KEYS)
        check_heads(cfg, "Gemma 3")
        check_layer_types(cfg, "Gemma 3")
        self.cfg = cfg
        eps = cfg.get("rms_norm_eps", 1e-6)
        self.make_layers(TransformerBlock, RMSNorm, eps=eps, dtype=cfg["dtype"])
        self.ropes = {
            "sliding_attention": RotaryEmbedding(cfg["head_dim"], cfg["rope_local_base"]),
            "full_attention": RotaryEmbedding(
                cfg["head_dim"], cfg["rope_base"], cfg.get("rope_scaling")
            ),
        }

    @property
    def blocks(self) -> nn.ModuleList:
        """``trf_blocks`` under its other name."""
        return self.trf_blocks

    def embed(self, in_idx: torch.Tensor) -> torch.Tensor:
        x = self.tok_emb(in_idx)
        # The factor is rounded as the weights are, which Gemma was trained with
        return x * torch.tensor(self.cfg["emb_dim"] ** 0.5, dtype=x.dtype, device=x.device)


def load_weights_into_gemma(model: nn.Module, param_config: Mapping, params: Mapping) -> None:
    """Copy tensors by their names on the hub into a ``Gemma3Model``.

    Without ``lm_head.weight``, the output layer becomes the token embedding. Raises ``ValueError``
    for a missing, superfluous or misshapen tensor, before the first copy.
    """
    load_by_names(model, from_dict(params, "params"), NAMES)
