"""Llama 3, 3.1 and 3.2: grouped queries, a large base of rotations, positions that stretch.

What changed from Llama 2: several query heads share keys and values; the vocabulary has 128,256
tokens; RoPE turns more slowly, and from 3.1 on its slow pairs are slowed further for a context of
131,072 tokens. SmolLM2 is a small model of this kind.

Source: Grattafiori et al., "The Llama 3 Herd of Models" (2024).
"""

from collections.abc import Mapping

import torch
import torch.nn as nn

from llms_from_scratch.blocks.attention import GroupedQueryAttention as SharedAttention
from llms_from_scratch.blocks.config import check_config, check_heads
from llms_from_scratch.blocks.decoder import DecoderModel
from llms_from_scratch.blocks.feed_forward import FeedForward
from llms_from_scratch.blocks.norms import RMSNorm
from llms_from_scratch.blocks.rope import RotaryEmbedding, apply_rope, compute_rope_params
from llms_from_scratch.weights.chat_formats import ChatFormat, Llama3Tokenizer, clean_text
from llms_from_scratch.weights.gpt2 import assign
from llms_from_scratch.weights.mapping import load_by_names
from llms_from_scratch.weights.sources import from_dict

__all__ = [
    "ChatFormat",
    "FeedForward",
    "GroupedQueryAttention",
    "GroupedQueryAttentionFast",
    "LLAMA31_CONFIG_8B",
    "LLAMA32_CONFIG_1B",
    "LLAMA32_CONFIG_3B",
    "LLAMA3_CONFIG_8B",
    "Llama3Model",
    "Llama3ModelFast",
    "Llama3Tokenizer",
    "RMSNorm",
    "SMOLLM2_CONFIG_135M",
    "TransformerBlock",
    "TransformerBlockFast",
    "apply_rope",
    "assign",
    "clean_text",
    "compute_rope_params",
    "load_weights_into_llama",
]

LLAMA3_CONFIG_8B = {
    "vocab_size": 128_256,
    "context_length": 8192,
    "emb_dim": 4096,
    "n_heads": 32,
    "n_layers": 32,
    "hidden_dim": 14_336,
    "n_kv_groups": 8,  # heads of keys and values; each serves n_heads / n_kv_groups queries
    "rope_base": 500_000.0,
    "rope_freq": None,
    "dtype": torch.bfloat16,
}
LLAMA31_ROPE_FREQ = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_context_length": 8192,
}
LLAMA31_CONFIG_8B = LLAMA3_CONFIG_8B | {
    "context_length": 131_072,
    "rope_freq": LLAMA31_ROPE_FREQ,
}
LLAMA32_CONFIG_1B = LLAMA31_CONFIG_8B | {
    "emb_dim": 2048,
    "n_layers": 16,
    "hidden_dim": 8192,
    "rope_freq": LLAMA31_ROPE_FREQ | {"factor": 32.0},
}
LLAMA32_CONFIG_3B = LLAMA32_CONFIG_1B | {"emb_dim": 3072, "n_heads": 24, "n_layers": 28}
SMOLLM2_CONFIG_135M = {
    "vocab_size": 49_152,
    "context_length": 8192,
    "emb_dim": 576,
    "n_heads": 9,
    "n_layers": 30,
    "hidden_dim": 1536,
    "n_kv_groups": 3,
    "rope_base": 100_000.0,
    "rope_freq": None,
    "dtype": torch.float32,
    "tie_embeddings": True,  # the output layer is the token embedding
}

OPTIONAL_KEYS = ("rope_freq", "rope_scaling", "head_dim", "rms_norm_eps", "tie_embeddings")
NAMES = {  # ours: the hub's
    "tok_emb.weight": "model.embed_tokens.weight",
    "trf_blocks.{}.att.W_query.weight": "model.layers.{}.self_attn.q_proj.weight",
    "trf_blocks.{}.att.W_key.weight": "model.layers.{}.self_attn.k_proj.weight",
    "trf_blocks.{}.att.W_value.weight": "model.layers.{}.self_attn.v_proj.weight",
    "trf_blocks.{}.att.out_proj.weight": "model.layers.{}.self_attn.o_proj.weight",
    "trf_blocks.{}.ff.fc1.weight": "model.layers.{}.mlp.gate_proj.weight",
    "trf_blocks.{}.ff.fc2.weight": "model.layers.{}.mlp.up_proj.weight",
    "trf_blocks.{}.ff.fc3.weight": "model.layers.{}.mlp.down_proj.weight",
    "trf_blocks.{}.norm1.weight": "model.layers.{}.input_layernorm.weight",
    "trf_blocks.{}.norm2.weight": "model.layers.{}.post_attention_layernorm.weight",
    "final_norm.weight": "model.norm.weight",
    "out_head.weight": "lm_head.weight",
}


class GroupedQueryAttention(SharedAttention):
    """Grouped-query attention with heads that share ``d_out`` evenly. Input (b, n, d_in)."""

    drawn_in_order = ("W_key", "W_value", "W_query")

    def __init__(
        self,
        d_in: int,
        d_out: int,
        num_heads: int,
        num_kv_groups: int,
        dtype: torch.dtype | None = None,
    ):
        if d_out % num_heads:
            raise ValueError(f"d_out must be divisible by num_heads, got {d_out=}, {num_heads=}")
        super().__init__(d_in, num_heads, num_kv_groups, d_out // num_heads, dtype)


class GroupedQueryAttentionFast(GroupedQueryAttention):
    """The same, called without a mask: attention is plainly causal."""

    def forward(self, x, cos, sin):
        return super().forward(x, None, cos, sin)


class TransformerBlock(nn.Module):
    """Norm, attention, shortcut; norm, feed-forward, shortcut. Input and output (b, n, emb_dim)."""

    def __init__(self, cfg: dict):
        super().__init__()
        emb_dim, dtype = cfg["emb_dim"], cfg["dtype"]
        head_dim = cfg.get("head_dim") or emb_dim // cfg["n_heads"]
        self.att = GroupedQueryAttention(
            emb_dim, cfg["n_heads"] * head_dim, cfg["n_heads"], cfg["n_kv_groups"], dtype
        )
        self.ff = FeedForward(cfg)
        eps = cfg.get("rms_norm_eps", 1e-5)
        self.norm1 = RMSNorm(emb_dim, eps, dtype)
        self.norm2 = RMSNorm(emb_dim, eps, dtype)

    def forward(self, x, mask=None, cos=None, sin=None, cache=None, layer_idx=0):
        x = x + self.att(self.norm1(x), mask, cos, sin, cache, layer_idx)
        return x + self.ff(self.norm2(x))


class Llama3Model(DecoderModel):
    """Llama 3: token ids (b, n) to logits (b, n, vocab_size); see ``DecoderModel``.

    Raises ``ValueError`` for a configuration with unknown, missing or contradictory keys.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        check_config(cfg, "Llama 3", CONFIG_KEYS, OPTIONAL_KEYS)
        check_heads(cfg, "Llama 3")
        if cfg.get("rope_freq") and cfg.get("rope_scaling"):
            raise ValueError("Llama 3: give rope_freq or rope_scaling, not both")
        self.cfg = cfg
        eps = cfg.get("rms_norm_eps", 1e-5)
        self.make_layers(TransformerBlock, RMSNorm, eps=eps, dtype=cfg["dtype"])
        scaling = cfg.get("rope_scaling")
        if cfg.get("rope_freq"):
            scaling = {"rope_type": "llama3"} | cfg["rope_freq"]
        head_dim = self.trf_blocks[0].att.head_dim
        self.ropes = {"full_attention": RotaryEmbedding(head_dim, cfg["rope_base"], scaling)}


CONFIG_KEYS = [key for key in LLAMA3_CONFIG_8B if key != "rope_freq"]

# Attention is on PyTorch's fused kernel here anyway
Llama3ModelFast = Llama3Model
TransformerBlockFast = TransformerBlock


def load_weights_into_llama(
    model: nn.Module,
    param_config: Mapping,
    params: Mapping,
) -> None:
    """Copy tensors by their names on the hub into a ``Llama3Model``.

    Without ``lm_head.weight``, the output layer becomes the token embedding, and a line says so.
    Raises ``ValueError`` for a missing, superfluous or misshapen tensor, before the first copy.
    """
    if "lm_head.weight" not in params:
        print("Model uses weight tying.")
    load_by_names(model, from_dict(params, "params"), NAMES)
