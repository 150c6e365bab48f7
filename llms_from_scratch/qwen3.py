"""Qwen3, dense and as a mixture of experts: queries and keys are normalized before they compare.

What changed from Llama 3: RMSNorm on each head's queries and keys, which keeps attention scores in
bounds; heads whose width is not emb_dim / n_heads; and, in the MoE models, a choice of experts in
place of one feed-forward layer.

Source: Yang et al., "Qwen3 Technical Report" (2025).
"""

from collections.abc import Mapping

import torch
import torch.nn as nn

from llms_from_scratch.blocks.attention import GroupedQueryAttention as SharedAttention
from llms_from_scratch.blocks.config import check_config, check_heads
from llms_from_scratch.blocks.decoder import DecoderModel
from llms_from_scratch.blocks.feed_forward import FeedForward, MoEFeedForward
from llms_from_scratch.blocks.norms import rms_normalize
from llms_from_scratch.blocks.rope import RotaryEmbedding, apply_rope, compute_rope_params
from llms_from_scratch.llama3 import NAMES as LLAMA_NAMES
from llms_from_scratch.weights.chat_formats import Qwen3Tokenizer
from llms_from_scratch.weights.hub import (
    download_from_huggingface,
    download_from_huggingface_from_snapshots,
)
from llms_from_scratch.weights.mapping import load_by_names
from llms_from_scratch.weights.sources import TensorSource, from_dict

__all__ = [
    "FeedForward",
    "GroupedQueryAttention",
    "MoEFeedForward",
    "QWEN3_CONFIG_14B",
    "QWEN3_CONFIG_1_7B",
    "QWEN3_CONFIG_30B_A3B",
    "QWEN3_CONFIG_32B",
    "QWEN3_CONFIG_4B",
    "QWEN3_CONFIG_8B",
    "QWEN_CONFIG_06_B",
    "Qwen3Model",
    "Qwen3Tokenizer",
    "RMSNorm",
    "TransformerBlock",
    "apply_rope",
    "compute_rope_params",
    "download_from_huggingface",
    "download_from_huggingface_from_snapshots",
    "load_weights_into_qwen",
]

QWEN_CONFIG_06_B = {
    "vocab_size": 151_936,
    "context_length": 40_960,
    "emb_dim": 1024,
    "n_heads": 16,
    "n_layers": 28,
    "hidden_dim": 3072,
    "head_dim": 128,  # of each head, whatever emb_dim / n_heads is
    "qk_norm": True,
    "n_kv_groups": 8,
    "rope_base": 1_000_000.0,
    "dtype": torch.bfloat16,
}
QWEN3_CONFIG_1_7B = QWEN_CONFIG_06_B | {"emb_dim": 2048, "hidden_dim": 6144}
QWEN3_CONFIG_4B = QWEN_CONFIG_06_B | {
    "emb_dim": 2560,
    "n_heads": 32,
    "n_layers": 36,
    "hidden_dim": 9728,
}
QWEN3_CONFIG_8B = QWEN3_CONFIG_4B | {"emb_dim": 4096, "hidden_dim": 12_288}
QWEN3_CONFIG_14B = QWEN_CONFIG_06_B | {
    "emb_dim": 5120,
    "n_heads": 40,
    "n_layers": 40,
    "hidden_dim": 17_408,
}
QWEN3_CONFIG_32B = QWEN3_CONFIG_14B | {"n_heads": 64, "n_layers": 64, "hidden_dim": 25_600}
QWEN3_CONFIG_30B_A3B = {
    "vocab_size": 151_936,
    "context_length": 262_144,
    "emb_dim": 2048,
    "n_heads": 32,
    "n_layers": 48,
    "head_dim": 128,
    "qk_norm": True,
    "n_kv_groups": 4,
    "rope_base": 10_000_000.0,
    "dtype": torch.bfloat16,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}

DENSE_KEYS = list(QWEN_CONFIG_06_B)
MOE_KEYS = [key for key in QWEN3_CONFIG_30B_A3B if key != "moe_intermediate_size"]
OPTIONAL_KEYS = (
    "num_experts",  # 0, or left out: dense
    "hidden_dim",
    "moe_intermediate_size",
    "moe_hidden_dim",  # another name for it
    "norm_topk_prob",
    "rms_norm_eps",
    "rope_scaling",
    "tie_embeddings",
)
NAMES = {  # ours: the hub's
    **{
        ours.replace("norm1.weight", "norm1.scale")
        .replace("norm2.weight", "norm2.scale")
        .replace("final_norm.weight", "final_norm.scale"): theirs
        for ours, theirs in LLAMA_NAMES.items()
    },
    "trf_blocks.{}.att.q_norm.scale": "model.layers.{}.self_attn.q_norm.weight",
    "trf_blocks.{}.att.k_norm.scale": "model.layers.{}.self_attn.k_norm.weight",
    "trf_blocks.{}.ff.gate.weight": "model.layers.{}.mlp.gate.weight",
    "trf_blocks.{}.ff.fc1.{}.weight": "model.layers.{}.mlp.experts.{}.gate_proj.weight",
    "trf_blocks.{}.ff.fc2.{}.weight": "model.layers.{}.mlp.experts.{}.up_proj.weight",
    "trf_blocks.{}.ff.fc3.{}.weight": "model.layers.{}.mlp.experts.{}.down_proj.weight",
}


class RMSNorm(nn.Module):
    """Root-mean-square normalization (..., emb_dim), with an optional shift.

    ``qwen3_compatible=False`` normalizes in the dtype of the input instead of float32.
    """

    def __init__(
        self,
        emb_dim: int,
        eps: float = 1e-6,
        bias: bool = False,
        qwen3_compatible: bool = True,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.eps, self.qwen3_compatible = eps, qwen3_compatible
        self.scale = nn.Parameter(torch.ones(emb_dim, dtype=dtype))
        self.shift = nn.Parameter(torch.zeros(emb_dim, dtype=dtype)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.qwen3_compatible:
            normalized = rms_normalize(x, self.eps).to(x.dtype)
        else:
            normalized = x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        scaled = self.scale * normalized
        return scaled if self.shift is None else scaled + self.shift


class GroupedQueryAttention(SharedAttention):
    """Grouped-query attention whose queries and keys are normalized, head by head, before RoPE.

    Input and output (b, n, d_in). ``q_norm`` and ``k_norm`` are None without ``qk_norm``.
    """

    def __init__(
        self,
        d_in: int,
        num_heads: int,
        num_kv_groups: int,
        head_dim: int | None = None,
        qk_norm: bool = False,
        dtype: torch.dtype | None = None,
        eps: float = 1e-6,
    ):
        super().__init__(d_in, num_heads, num_kv_groups, head_dim, dtype)
        if qk_norm:
            self.q_norm = RMSNorm(self.head_dim, eps, dtype=dtype)
            self.k_norm = RMSNorm(self.head_dim, eps, dtype=dtype)


class TransformerBlock(nn.Module):
    """As in Llama 3, with the attention above, and experts if there are any."""

    def __init__(self, cfg: dict):
        super().__init__()
        emb_dim, dtype, eps = cfg["emb_dim"], cfg["dtype"], cfg.get("rms_norm_eps", 1e-6)
        self.att = GroupedQueryAttention(
            emb_dim,
            cfg["n_heads"],
            cfg["n_kv_groups"],
            cfg["head_dim"],
            cfg["qk_norm"],
            dtype,
            eps,
        )
        self.ff = MoEFeedForward(cfg) if cfg.get("num_experts") else FeedForward(cfg)
        self.norm1 = RMSNorm(emb_dim, eps, dtype=dtype)
        self.norm2 = RMSNorm(emb_dim, eps, dtype=dtype)

    def forward(self, x, mask=None, cos=None, sin=None, cache=None, layer_idx=0):
        x = x + self.att(self.norm1(x), mask, cos, sin, cache, layer_idx)
        return x + self.ff(self.norm2(x))


class Qwen3Model(DecoderModel):
    """Qwen3: token ids (b, n) to logits (b, n, vocab_size); see ``DecoderModel``.

    Raises ``ValueError`` for a configuration with unknown, missing or contradictory keys.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        is_moe = bool(cfg.get("num_experts"))
        keys = MOE_KEYS if is_moe else DENSE_KEYS
        only = {
            "layer_types": ["full_attention"] * cfg.get("n_layers", 0),
            "query_pre_attn_scalar": cfg.get("head_dim"),
        }
        check_config(cfg, "Qwen3", keys, (*OPTIONAL_KEYS, "sliding_window"), only)
        check_heads(cfg, "Qwen3")
        if is_moe and not (cfg.get("moe_hidden_dim") or cfg.get("moe_intermediate_size")):
            raise ValueError("missing in the configuration of Qwen3: moe_intermediate_size")
        self.cfg = cfg
        eps = cfg.get("rms_norm_eps", 1e-6)
        self.make_layers(TransformerBlock, RMSNorm, eps=eps, dtype=cfg["dtype"])
        rope = RotaryEmbedding(cfg["head_dim"], cfg["rope_base"], cfg.get("rope_scaling"))
        self.ropes = {"full_attention": rope}


def load_weights_into_qwen(model: nn.Module, param_config: Mapping, params: Mapping) -> None:
    """Copy tensors by their names on the hub into a ``Qwen3Model``, dense or with experts.

    Without ``lm_head.weight``, the output layer becomes the token embedding, and a line says so.
    Raises ``ValueError`` for a missing, superfluous or misshapen tensor, before the first copy.
    """
    if "lm_head.weight" not in params:
        print("Model uses weight tying.")
    load_by_names(model, split_experts(from_dict(params, "params")), NAMES)


def split_experts(source: TensorSource) -> TensorSource:
    """Experts that are stored as one tensor each layer, under the names of single ones.

    A running model of ``transformers`` has ``gate_up_proj`` (experts, 2 * hidden, emb_dim), gate
    first, and ``down_proj`` (experts, emb_dim, hidden); files on the hub have single tensors.
    """
    shapes, places = {}, {}
    for name, shape in source.shapes.items():
        stem, _, kind = name.rpartition(".")
        if kind not in ("gate_up_proj", "down_proj"):
            shapes[name], places[name] = shape, (name, ())
            continue
        num_experts, rows, columns = shape
        parts = ["down_proj"] if kind == "down_proj" else ["gate_proj", "up_proj"]
        size = rows // len(parts)
        for i in range(num_experts):
            for number, part in enumerate(parts):
                single = f"{stem}.{i}.{part}.weight"
                shapes[single] = (size, columns)
                places[single] = (name, (i, slice(number * size, (number + 1) * size)))

    def read(name: str) -> torch.Tensor:
        stored, place = places[name]
        return source.read(stored)[place]

    return TensorSource(source.description, shapes, read)
