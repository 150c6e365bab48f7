"""Olmo 3: norms only behind the sublayers, and a context stretched in the layers that see it all.

What changed from Gemma 3: a sublayer reads the plain stream, and only its result is normalized;
queries and keys are normalized across all heads at once; three of four layers have a window; layers
that see everything turn by YaRN's frequencies, those with a window by the original ones.

Source: Olmo Team, "Olmo 3" (2025).
"""

from collections.abc import Mapping

import torch
import torch.nn as nn

from llms_from_scratch.blocks.attention import GroupedQueryAttention as SharedAttention
from llms_from_scratch.blocks.config import check_config, check_heads, check_layer_types
from llms_from_scratch.blocks.decoder import DecoderModel
from llms_from_scratch.blocks.feed_forward import FeedForward
from llms_from_scratch.blocks.linear import apply_layer
from llms_from_scratch.blocks.norms import rms_normalize
from llms_from_scratch.blocks.rope import RotaryEmbedding, apply_rope
from llms_from_scratch.gemma3 import NAMES as GEMMA_NAMES
from llms_from_scratch.weights.chat_formats import OlmoTokenizer
from llms_from_scratch.weights.mapping import load_by_names
from llms_from_scratch.weights.sources import from_dict

__all__ = [
    "FeedForward",
    "GroupedQueryAttention",
    "OLMO3_CONFIG_32B",
    "OLMO3_CONFIG_7B",
    "Olmo3Model",
    "OlmoTokenizer",
    "RMSNorm",
    "TransformerBlock",
    "apply_rope",
    "compute_rope_params",
    "load_weights_into_olmo",
]

OLMO3_CONFIG_7B = {
    "vocab_size": 100_278,
    "context_length": 65_536,
    "emb_dim": 4096,
    "n_heads": 32,
    "n_layers": 32,
    "hidden_dim": 11_008,
    "head_dim": 128,
    "n_kv_heads": 32,  # as many as queries: multi-head attention
    "attention_bias": False,
    "attention_dropout": 0.0,
    "sliding_window": 4096,
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
    "rope_base": 500_000.0,
    "rope_attention_factor": 1.2079441541679836,  # 0.1 * log(rope_factor) + 1
    "rope_type": "yarn",
    "rope_factor": 8.0,
    "rope_orig_max": 8192,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "rms_norm_eps": 1e-6,
    "dtype": torch.bfloat16,
    "eos_token_id": 100_257,
    "pad_token_id": 100_277,
}
OLMO3_CONFIG_32B = OLMO3_CONFIG_7B | {
    "emb_dim": 5120,
    "n_heads": 40,
    "n_layers": 64,
    "hidden_dim": 27_648,
    "n_kv_heads": 8,
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16,
}

YARN_KEYS = ("rope_attention_factor", "rope_factor", "rope_orig_max", "beta_fast", "beta_slow")
OPTIONAL_KEYS = (
    *YARN_KEYS,
    "rope_type",
    "rms_norm_eps",
    "tie_embeddings",
    "eos_token_id",
    "pad_token_id",
)
ONLY = {"attention_bias": False, "attention_dropout": 0.0, "qk_norm": True}
NOT_NEEDED = (*OPTIONAL_KEYS, *ONLY)
CONFIG_KEYS = [key for key in OLMO3_CONFIG_7B if key not in NOT_NEEDED]
NAMES = {  # ours: the hub's
    ours.replace(".scale", ".weight"): theirs for ours, theirs in GEMMA_NAMES.items()
}


class RMSNorm(nn.Module):
    """Root-mean-square normalization (..., emb_dim), scaled before it is rounded."""

    def __init__(self, emb_dim: int, eps: float = 1e-6, dtype: torch.dtype | None = None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(emb_dim, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.weight * rms_normalize(x, self.eps)).to(x.dtype)


class GroupedQueryAttention(SharedAttention):
    """Grouped-query attention whose queries, and keys, are normalized as one vector per token.

    Input and output (b, n, d_in).
    """

    def __init__(
        self,
        d_in: int,
        num_heads: int,
        num_kv_groups: int,
        head_dim: int | None = None,
        dtype: torch.dtype | None = None,
        eps: float = 1e-6,
    ):
        super().__init__(d_in, num_heads, num_kv_groups, head_dim, dtype)
        self.q_norm = RMSNorm(num_heads * self.head_dim, eps, dtype)
        self.k_norm = RMSNorm(num_kv_groups * self.head_dim, eps, dtype)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        queries = self.q_norm(apply_layer(self.W_query, x))  # (b, n, num_heads * head_dim)
        keys = self.k_norm(apply_layer(self.W_key, x))
        values = apply_layer(self.W_value, x)
        return tuple(self.split_heads(part) for part in (queries, keys, values))


class TransformerBlock(nn.Module):
    """A sublayer reads the stream as it is; what it adds is normalized. (b, n, emb_dim)"""

    def __init__(self, cfg: dict):
        super().__init__()
        emb_dim, dtype, eps = cfg["emb_dim"], cfg["dtype"], cfg.get("rms_norm_eps", 1e-6)
        self.att = GroupedQueryAttention(
            emb_dim, cfg["n_heads"], cfg["n_kv_heads"], cfg["head_dim"], dtype, eps
        )
        self.ff = FeedForward(cfg)
        self.post_attention_layernorm = RMSNorm(emb_dim, eps, dtype)
        self.post_feedforward_layernorm = RMSNorm(emb_dim, eps, dtype)

    def forward(self, x, mask=None, cos=None, sin=None, cache=None, layer_idx=0):
        x = x + self.post_attention_layernorm(self.att(x, mask, cos, sin, cache, layer_idx))
        return x + self.post_feedforward_layernorm(self.ff(x))


class Olmo3Model(DecoderModel):
    """Olmo 3: token ids (b, n) to logits (b, n, vocab_size); see ``DecoderModel``.

    Raises ``ValueError`` for a configuration with unknown, missing or contradictory keys.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        check_config(cfg, "Olmo 3", CONFIG_KEYS, OPTIONAL_KEYS, ONLY)
        check_heads(cfg, "Olmo 3", "n_kv_heads")
        check_layer_types(cfg, "Olmo 3")
        self.cfg = cfg
        eps = cfg.get("rms_norm_eps", 1e-6)
        self.make_layers(TransformerBlock, RMSNorm, eps=eps, dtype=cfg["dtype"])
        head_dim, base = cfg["head_dim"], cfg["rope_base"]
        self.ropes = {
            "sliding_attention": RotaryEmbedding(head_dim, base),
            "full_attention": RotaryEmbedding(head_dim, base, rope_scaling(cfg)),
        }

    @property
    def blocks(self) -> nn.ModuleList:
        """``trf_blocks`` under its other name."""
        return self.trf_blocks


def rope_scaling(cfg: Mapping) -> dict:
    """The scaling of a configuration's ``rope_...`` keys, as ``RotaryEmbedding`` wants it."""
    rope_type = cfg.get("rope_type") or "default"
    if rope_type != "yarn":
        return {"rope_type": rope_type} | (
            {"factor": cfg["rope_factor"]} if rope_type == "linear" else {}
        )
    missing = [key for key in ("rope_factor", "rope_orig_max") if cfg.get(key) is None]
    if missing:
        raise ValueError(f"Olmo 3: rope_type 'yarn' needs {', '.join(missing)}")
    return {
        "rope_type": "yarn",
        "factor": cfg["rope_factor"],
        "original_context_length": cfg["rope_orig_max"],
        "attention_factor": cfg.get("rope_attention_factor"),
        "beta_fast": cfg.get("beta_fast", 32.0),
        "beta_slow": cfg.get("beta_slow", 1.0),
    }


def compute_rope_params(
    head_dim: int,
    theta_base: float = 10_000,
    context_length: int = 4096,
    attention_factor: float = 1.0,
    rope_type: str = "default",
    rope_factor: float = 1.0,
    rope_orig_max: int = 8192,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of all positions, each (context_length, head_dim)."""
    scaling = rope_scaling(
        {
            "rope_type": rope_type,
            "rope_factor": rope_factor,
            "rope_orig_max": rope_orig_max,
            "rope_attention_factor": attention_factor,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
        }
    )
    return RotaryEmbedding(head_dim, theta_base, scaling)(torch.arange(context_length), dtype)


def load_weights_into_olmo(model: nn.Module, param_config: Mapping, params: Mapping) -> None:
    """Copy tensors by their names on the hub into an ``Olmo3Model``.

    Without ``lm_head.weight``, the output layer becomes the token embedding. Raises ``ValueError``
    for a missing, superfluous or misshapen tensor, before the first copy.
    """
    load_by_names(model, from_dict(params, "params"), NAMES)
