"""Qwen3.5: three layers with a memory of fixed size for each one that looks at all tokens.

What changed from Qwen3: three of four layers have the gated delta rule in the place of attention,
and keep the same few bytes of a text however long it is; attention has a gate behind it, and turns
only a quarter of each head; norms scale by 1 + weight.

Source: the text model of Qwen3.5 in ``transformers``, with which the tests compare; Yang et al.,
"Gated Delta Networks" (2024), for the layers with a memory.
"""

from collections.abc import Mapping

import torch
import torch.nn as nn

from llms_from_scratch.blocks.attention import GroupedQueryAttention as SharedAttention
from llms_from_scratch.blocks.attention import attend
from llms_from_scratch.blocks.config import check_config, check_heads
from llms_from_scratch.blocks.decoder import DecoderModel
from llms_from_scratch.blocks.delta_rule import GatedDeltaNet
from llms_from_scratch.blocks.feed_forward import FeedForward
from llms_from_scratch.blocks.gated_attention import rotate_part
from llms_from_scratch.blocks.linear import apply_layer
from llms_from_scratch.blocks.norms import rms_normalize
from llms_from_scratch.blocks.rope import RotaryEmbedding, no_positions
from llms_from_scratch.llama3 import NAMES as LLAMA_NAMES
from llms_from_scratch.weights.chat_formats import Qwen3_5Tokenizer
from llms_from_scratch.weights.mapping import load_by_names
from llms_from_scratch.weights.sources import from_dict
from llms_from_scratch.weights.text_models import text_model_of

__all__ = [
    "FeedForward",
    "GroupedQueryAttention",
    "QWEN3_5_CONFIG",
    "Qwen3_5GatedDeltaNet",
    "Qwen3_5Model",
    "Qwen3_5Tokenizer",
    "RMSNorm",
    "TransformerBlock",
    "apply_rope",
    "compute_rope_params",
    "load_weights_into_qwen3_5",
]

QWEN3_5_CONFIG = {  # of the text model with 0.8 billion parameters
    "vocab_size": 248_320,
    "context_length": 262_144,
    "emb_dim": 1024,
    "n_heads": 8,
    "n_layers": 24,
    "hidden_dim": 3584,
    "head_dim": 256,
    "qk_norm": True,
    "n_kv_groups": 2,
    "rope_base": 10_000_000.0,
    "partial_rotary_factor": 0.25,  # of each head, what turns
    "rms_norm_eps": 1e-6,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "dtype": torch.bfloat16,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 6,
}

OPTIONAL_KEYS = ("layer_types", "partial_rotary_factor", "rms_norm_eps", "tie_embeddings")
ONLY = {"qk_norm": True}
NOT_NEEDED = (*OPTIONAL_KEYS, *ONLY)
CONFIG_KEYS = [key for key in QWEN3_5_CONFIG if key not in NOT_NEEDED]
LAYER_TYPES = ("full_attention", "linear_attention")
UNREAD = ("mtp.",)  # layers that predict several tokens at once
LAYER = "model.layers.{}"
MIXER = "trf_blocks.{}.token_mixer"
IN_ATTENTION = ("q_norm.weight", "k_norm.weight")
IN_DELTA_NET = (
    *("A_log", "dt_bias", "conv1d.weight", "norm.weight"),
    *(f"in_proj_{part}.weight" for part in ("qkv", "z", "b", "a")),
)
NAMES = {  # ours: the hub's
    **{ours.replace(".att.", ".token_mixer."): theirs for ours, theirs in LLAMA_NAMES.items()},
    **{f"{MIXER}.{name}": f"{LAYER}.self_attn.{name}" for name in IN_ATTENTION},
    **{f"{MIXER}.{name}": f"{LAYER}.linear_attn.{name}" for name in IN_DELTA_NET},
}


def names_of(cfg: Mapping) -> dict[str, str]:
    """``NAMES`` for one model, whose two kinds of layers call their output differently."""
    output = f"{MIXER}.out_proj.weight"
    return NAMES | {
        output.format(i): f"{LAYER}.linear_attn.out_proj.weight".format(i)
        for i, kind in enumerate(cfg.get("layer_types") or ())
        if kind == "linear_attention"
    }


class RMSNorm(nn.Module):
    """Root-mean-square normalization (..., emb_dim), scaled by 1 + ``weight``, all in float32."""

    def __init__(self, emb_dim: int, eps: float = 1e-6, dtype: torch.dtype | None = None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(emb_dim, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (rms_normalize(x, self.eps) * (1.0 + self.weight.float())).to(x.dtype)


def rotary_dim(head_dim: int, partial_rotary_factor: float) -> int:
    """How many numbers of a head turn: an even number, and 2 at least.

    >>> rotary_dim(256, 0.25)
    64
    """
    if not 0 < partial_rotary_factor <= 1:
        raise ValueError(
            f"partial_rotary_factor must be more than 0 and at most 1, got {partial_rotary_factor}"
        )
    return max(2, int(head_dim * partial_rotary_factor) // 2 * 2)


def compute_rope_params(
    head_dim: int,
    theta_base: float = 10_000,
    context_length: int = 4096,
    partial_rotary_factor: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of all positions, each (context_length, numbers of a head that turn)."""
    rope = RotaryEmbedding(rotary_dim(head_dim, partial_rotary_factor), theta_base)
    return rope(torch.arange(context_length), dtype)


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the first numbers of each head (b, num_heads, num_tokens, head_dim), as many as angles.

    Raises ``ValueError`` for more angles than numbers.
    """
    if cos.shape[-1] > x.shape[-1]:
        raise ValueError(f"{cos.shape[-1]} numbers cannot turn in heads of {x.shape[-1]}")
    return rotate_part(x, cos, sin)


class GroupedQueryAttention(SharedAttention):
    """Grouped-query attention behind which a gate opens and closes. Input and output (b, n, d_in).

    ``W_query`` makes two vectors for each head: its query, and the gate for what it finds.
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
        self.W_query = nn.Linear(d_in, 2 * self.d_out, bias=False, dtype=dtype)
        self.q_norm = RMSNorm(self.head_dim, eps, dtype)
        self.k_norm = RMSNorm(self.head_dim, eps, dtype)

    def forward(self, x, mask=None, cos=None, sin=None, cache=None, layer_idx=0):
        both = apply_layer(self.W_query, x).unflatten(-1, (self.num_heads, 2 * self.head_dim))
        queries, gate = both.chunk(2, dim=-1)  # each (b, n, num_heads, head_dim)
        queries = self.q_norm(queries).transpose(1, 2)
        keys = self.k_norm(self.split_heads(apply_layer(self.W_key, x)))
        values = self.split_heads(apply_layer(self.W_value, x))
        if cos is not None:
            queries = apply_rope(queries, cos, sin)
            keys = apply_rope(keys, cos, sin)
        if cache is not None:
            keys, values = cache.update(layer_idx, keys, values)
        context = attend(queries, keys, values, mask, self.scale).transpose(1, 2)
        return apply_layer(self.out_proj, (context * gate.sigmoid()).flatten(2))


class Qwen3_5GatedDeltaNet(GatedDeltaNet):
    """The gated delta rule, with one matrix for queries, keys and values. (b, n, emb_dim)"""

    def __init__(self, cfg: dict, layer_idx: int = 0):
        super().__init__(
            cfg["emb_dim"],
            cfg["linear_num_key_heads"],
            cfg["linear_num_value_heads"],
            cfg["linear_key_head_dim"],
            cfg["linear_value_head_dim"],
            cfg["linear_conv_kernel_dim"],
            eps=cfg.get("rms_norm_eps", 1e-6),
            dtype=cfg["dtype"],
        )
        self.layer_idx = layer_idx

    def make_projections(self, d_in: int, qkv_bias: bool, dtype: torch.dtype | None) -> None:
        heads = self.num_value_heads
        widths = {"qkv": self.conv_dim, "z": self.value_dim, "b": heads, "a": heads}
        for name, width in widths.items():
            setattr(self, f"in_proj_{name}", nn.Linear(d_in, width, bias=qkv_bias, dtype=dtype))

    def project(self, x: torch.Tensor) -> torch.Tensor:
        return apply_layer(self.in_proj_qkv, x)

    def project_gate(self, x: torch.Tensor) -> torch.Tensor:
        return apply_layer(self.in_proj_z, x)

    def project_rates(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return apply_layer(self.in_proj_a, x), apply_layer(self.in_proj_b, x)


class TransformerBlock(nn.Module):
    """Attention or a memory, then SwiGLU, each behind a norm. Input and output (b, n, emb_dim)."""

    def __init__(self, cfg: dict, layer_type: str, layer_idx: int = 0):
        super().__init__()
        emb_dim, dtype, eps = cfg["emb_dim"], cfg["dtype"], cfg.get("rms_norm_eps", 1e-6)
        if layer_type == "linear_attention":
            self.token_mixer = Qwen3_5GatedDeltaNet(cfg, layer_idx)
        else:
            self.token_mixer = GroupedQueryAttention(
                emb_dim, cfg["n_heads"], cfg["n_kv_groups"], cfg["head_dim"], dtype, eps
            )
        self.ff = FeedForward(cfg)
        self.norm1 = RMSNorm(emb_dim, eps, dtype)
        self.norm2 = RMSNorm(emb_dim, eps, dtype)

    def forward(self, x, mask=None, cos=None, sin=None, cache=None, layer_idx=0):
        x = x + self.token_mixer(self.norm1(x), mask, cos, sin, cache, layer_idx)
        return x + self.ff(self.norm2(x))


class Qwen3_5Model(DecoderModel):
    """Qwen3.5's text model: token ids (b, n) to logits (b, n, vocab_size); see ``DecoderModel``.

    Raises ``ValueError`` for a configuration with unknown, missing or contradictory keys.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        keys = (CONFIG_KEYS, OPTIONAL_KEYS, ONLY)
        check_config(cfg, "Qwen3.5", *keys)
        check_heads(cfg, "Qwen3.5")
        types = cfg.get("layer_types") or ["full_attention"] * cfg["n_layers"]
        if len(types) != cfg["n_layers"]:
            raise ValueError(
                f"Qwen3.5: layer_types has {len(types)} entries for n_layers={cfg['n_layers']}"
            )
        if unknown := sorted(set(types) - set(LAYER_TYPES)):
            known = ", ".join(LAYER_TYPES)
            raise ValueError(f"Qwen3.5: unknown layer type {unknown[0]!r}; known: {known}")
        self.cfg, numbers = cfg, iter(range(len(types)))

        def block(cfg: dict) -> TransformerBlock:
            layer_idx = next(numbers)
            return TransformerBlock(cfg, types[layer_idx], layer_idx)

        eps = cfg.get("rms_norm_eps", 1e-6)
        self.make_layers(block, RMSNorm, eps=eps, dtype=cfg["dtype"])
        width = rotary_dim(cfg["head_dim"], cfg.get("partial_rotary_factor", 1.0))
        self.ropes = {
            "full_attention": RotaryEmbedding(width, cfg["rope_base"]),
            "linear_attention": no_positions,  # the memory is written in order
        }


def load_weights_into_qwen3_5(model: nn.Module, param_config: Mapping, params: Mapping) -> None:
    """Copy tensors by their names on the hub into a ``Qwen3_5Model``.

    Tensors of a model for images beside it are left out. Without ``lm_head.weight``, the output
    layer becomes the token embedding. Raises ``ValueError`` for a missing, superfluous or misshapen
    tensor, before the first copy.
    """
    source = text_model_of(from_dict(params, "params"), UNREAD)
    load_by_names(model, source, names_of(model.cfg))
