"""Gemma 4, E2B and E4B: an embedding for every layer, and keys that many layers share.

What changed from Gemma 3: a token has a vector for each layer, so that half of the model is looked
up and never multiplied; the last layers make queries only, and look at the keys and values of the
last layer of their kind that made some; layers that see everything have wider heads, of which a
quarter turns; values are normalized too, scores are not scaled, norms scale by their weight; each
layer's result has a factor, and logits have a bound.

Source: the text model of Gemma 4 in ``transformers``, with which the tests compare.
"""

from collections.abc import Mapping

import torch
import torch.nn as nn
from torch.nn.functional import gelu

from llms_from_scratch.blocks.config import (
    check_config,
    check_heads,
    check_layer_types,
    with_one_name_for_tying,
)
from llms_from_scratch.blocks.decoder import DecoderModel
from llms_from_scratch.blocks.linear import apply_layer
from llms_from_scratch.blocks.norms import Gemma4RMSNorm
from llms_from_scratch.blocks.per_layer import PerLayerBranch, PerLayerInputs, scaled
from llms_from_scratch.blocks.rope import apply_rope, rotary_embedding
from llms_from_scratch.blocks.shared_keys import Gemma4Attention, check_donors, is_shared
from llms_from_scratch.ch04 import check_input_ids
from llms_from_scratch.weights.chat_formats import Gemma4Tokenizer as GemmaTokenizer
from llms_from_scratch.weights.mapping import load_by_names
from llms_from_scratch.weights.sources import from_dict
from llms_from_scratch.weights.text_models import text_model_of

__all__ = [
    "GEMMA4_CONFIG_E2B",
    "GEMMA4_CONFIG_E4B",
    "Gemma4Attention",
    "Gemma4DenseBlock",
    "Gemma4DenseModel",
    "Gemma4FeedForward",
    "Gemma4Model",
    "Gemma4RMSNorm",
    "GemmaTokenizer",
    "apply_rope",
    "compute_rope_params",
    "get_gemma4_dense_config",
    "load_weights_into_gemma4",
    "load_weights_into_gemma4_dense",
]

GEMMA4_CONFIG_E2B = {
    "vocab_size": 262_144,
    "vocab_size_per_layer_input": 262_144,
    "context_length": 131_072,
    "emb_dim": 1536,
    "hidden_dim": 6144,
    "n_layers": 35,
    "n_heads": 8,
    "n_kv_heads": 1,
    "head_dim": 256,  # of layers with a window
    "global_head_dim": 512,  # of layers that see everything
    "num_global_kv_heads": None,
    "attention_k_eq_v": False,
    "sliding_window": 512,
    "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
    "hidden_size_per_layer_input": 256,  # of a token's vector for each layer
    "num_kv_shared_layers": 20,  # the last ones
    "use_double_wide_mlp": True,  # in those
    "rope_local_base": 10_000.0,
    "rope_global_base": 1_000_000.0,
    "rope_global_partial_rotary_factor": 0.25,
    "layer_norm_eps": 1e-6,
    "final_logit_softcap": 30.0,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "dtype": torch.bfloat16,
}
GEMMA4_CONFIG_E4B = GEMMA4_CONFIG_E2B | {
    "emb_dim": 2560,
    "hidden_dim": 10_240,
    "n_layers": 42,
    "n_kv_heads": 2,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 7,
    "num_kv_shared_layers": 18,
    "use_double_wide_mlp": False,
}

OPTIONAL_KEYS = (
    *("hidden_size_per_layer_input", "vocab_size_per_layer_input", "num_kv_shared_layers"),
    *("use_double_wide_mlp", "layer_norm_eps", "final_logit_softcap", "pad_token_id"),
    *("tie_word_embeddings", "tie_embeddings"),
)
ONLY = {
    "num_global_kv_heads": None,
    "attention_k_eq_v": False,
    "rope_local_type": "default",
    "rope_global_type": "proportional",
}
NOT_NEEDED = (*OPTIONAL_KEYS, *ONLY)
CONFIG_KEYS = [key for key in GEMMA4_CONFIG_E2B if key not in NOT_NEEDED]
OF_MODEL = ("embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm")
OF_BLOCK = (
    *(f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
    *(f"mlp.{part}" for part in ("gate_proj", "up_proj", "down_proj")),
    *("input_layernorm", "post_attention_layernorm"),
    *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    *("per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm"),
)
OURS = "trf_blocks.{}"
THEIRS = "model.layers.{}"
NAMES = {  # ours: the hub's
    "tok_emb.weight": "model.embed_tokens.weight",
    **{f"{part}.weight": f"model.{part}.weight" for part in OF_MODEL},
    **{
        f"{OURS}.{part.replace('self_attn', 'att')}.weight": f"{THEIRS}.{part}.weight"
        for part in OF_BLOCK
    },
    f"{OURS}.layer_scalar": f"{THEIRS}.layer_scalar",
    "final_norm.weight": "model.norm.weight",
    "out_head.weight": "lm_head.weight",
}


def get_gemma4_dense_config(model_size: str = "E2B", dtype: torch.dtype = torch.bfloat16) -> dict:
    """The configuration of a published size, ``"E2B"`` or ``"E4B"``; ``ValueError`` for others."""
    sizes = {"E2B": GEMMA4_CONFIG_E2B, "E4B": GEMMA4_CONFIG_E4B}
    if model_size.upper() not in sizes:
        raise ValueError(f"unknown size {model_size!r}; known: {', '.join(sizes)}")
    return sizes[model_size.upper()] | {"dtype": dtype}


def compute_rope_params(
    head_dim: int,
    theta_base: float = 10_000.0,
    context_length: int = 4096,
    rope_type: str = "default",
    partial_rotary_factor: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of all positions, each (context_length, head_dim)."""
    rope = rotary_embedding(head_dim, theta_base, rope_type, partial_rotary_factor)
    return rope(torch.arange(context_length), dtype)


class Gemma4FeedForward(nn.Module):
    """GeGLU, twice as wide in layers that share keys, if so wanted. In and out (b, n, emb_dim)."""

    def __init__(self, cfg: dict, layer_idx: int):
        super().__init__()
        is_double = cfg.get("use_double_wide_mlp") and is_shared(cfg, layer_idx)
        emb_dim, hidden_dim = cfg["emb_dim"], cfg["hidden_dim"] * (2 if is_double else 1)
        self.gate_proj = nn.Linear(emb_dim, hidden_dim, bias=False, dtype=cfg["dtype"])
        self.up_proj = nn.Linear(emb_dim, hidden_dim, bias=False, dtype=cfg["dtype"])
        self.down_proj = nn.Linear(hidden_dim, emb_dim, bias=False, dtype=cfg["dtype"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = gelu(apply_layer(self.gate_proj, x), approximate="tanh")
        return apply_layer(self.down_proj, gate * apply_layer(self.up_proj, x))


class Gemma4DenseBlock(PerLayerBranch):
    """Attention, feed-forward, and the token's vector for this layer. (b, n, emb_dim)"""

    def __init__(self, cfg: dict, layer_idx: int):
        super().__init__()
        emb_dim, dtype, eps = cfg["emb_dim"], cfg["dtype"], cfg.get("layer_norm_eps", 1e-6)
        self.att, self.mlp = Gemma4Attention(cfg, layer_idx), Gemma4FeedForward(cfg, layer_idx)
        self.input_layernorm = Gemma4RMSNorm(emb_dim, eps, dtype=dtype)
        self.post_attention_layernorm = Gemma4RMSNorm(emb_dim, eps, dtype=dtype)
        self.pre_feedforward_layernorm = Gemma4RMSNorm(emb_dim, eps, dtype=dtype)
        self.post_feedforward_layernorm = Gemma4RMSNorm(emb_dim, eps, dtype=dtype)
        if width := cfg.get("hidden_size_per_layer_input"):
            norm = Gemma4RMSNorm(emb_dim, eps, dtype=dtype)
            self.make_per_layer_branch(emb_dim, width, norm, dtype)
        self.register_buffer("layer_scalar", torch.ones(1, dtype=dtype))

    def forward(
        self, x, mask, cos, sin, cache=None, layer_idx=0, shared_kv=None, per_layer_input=None
    ):
        normed = self.input_layernorm(x)
        attended = self.att(normed, mask, cos, sin, cache, layer_idx, shared_kv)
        x = x + self.post_attention_layernorm(attended)
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return self.add_per_layer_input(x, per_layer_input) * self.layer_scalar


class Gemma4Parts(PerLayerInputs, DecoderModel):
    """What Gemma 4 is made of, and how its tokens become vectors."""

    def __init__(self, cfg: dict):
        super().__init__()
        keys = (CONFIG_KEYS, OPTIONAL_KEYS, ONLY)
        check_config(cfg, "Gemma 4", *keys)
        check_heads(cfg, "Gemma 4", "n_kv_heads")
        check_layer_types(cfg, "Gemma 4")
        check_donors(cfg, "Gemma 4")
        self.cfg = with_one_name_for_tying(cfg)
        numbers, options = iter(range(cfg["n_layers"])), {"dtype": cfg["dtype"]}
        options["eps"] = cfg.get("layer_norm_eps", 1e-6)
        self.make_layers(lambda cfg: Gemma4DenseBlock(cfg, next(numbers)), Gemma4RMSNorm, **options)
        width = cfg.get("hidden_size_per_layer_input")
        self.make_per_layer_inputs(Gemma4RMSNorm(width, **options) if width else None)
        self.ropes = {
            "sliding_attention": rotary_embedding(cfg["head_dim"], cfg["rope_local_base"]),
            "full_attention": rotary_embedding(
                cfg["global_head_dim"],
                cfg["rope_global_base"],
                "proportional",
                cfg["rope_global_partial_rotary_factor"],
            ),
        }

    @property
    def blocks(self) -> nn.ModuleList:
        """``trf_blocks`` under its other name."""
        return self.trf_blocks

    def embed(self, in_idx: torch.Tensor) -> torch.Tensor:
        return scaled(self.tok_emb(in_idx), self.cfg["emb_dim"] ** 0.5)


class Gemma4DenseModel(Gemma4Parts):
    """Gemma 4's text model: token ids (b, n) to logits (b, n, vocab_size); see ``DecoderModel``.

    Raises ``ValueError`` for a configuration with unknown, missing or contradictory keys, and for
    ``reuse_shared_kv=False``: the last layers have no keys of their own.
    """

    def forward(
        self, in_idx: torch.Tensor, cache=None, last_only=False, *, reuse_shared_kv=True
    ) -> torch.Tensor:
        if not reuse_shared_kv:
            raise ValueError("reuse_shared_kv=False: the last layers have no keys of their own")
        check_input_ids(in_idx, self.tok_emb.num_embeddings, self.cfg["context_length"])
        x = self.embed(in_idx)  # (b, n, emb_dim)
        inputs, shared_kv = self.attention_inputs(in_idx.shape[1], x, cache), {}
        layers = zip(
            self.trf_blocks, self.layer_types, self.inputs_of_layers(in_idx, x), strict=True
        )
        for layer_idx, (block, kind, per_layer_input) in enumerate(layers):
            x = block(x, *inputs[kind], cache, layer_idx, shared_kv, per_layer_input)
        if cache is not None:
            cache.advance(in_idx.shape[1])
        logits = apply_layer(self.out_head, self.final_norm(x[:, -1:] if last_only else x))
        cap = self.cfg.get("final_logit_softcap")
        return logits if cap is None else cap * torch.tanh(logits / cap)


def unused_tensors(cfg: Mapping) -> set[str]:
    """Names on the hub of keys and values that published files hold, but no layer reads."""
    shared = [i for i in range(cfg["n_layers"]) if is_shared(cfg, i)]
    parts = ("k_proj", "v_proj", "k_norm")
    return {f"model.layers.{i}.self_attn.{part}.weight" for i in shared for part in parts}


def load_weights_into_gemma4_dense(model: nn.Module, cfg: Mapping, params: Mapping) -> int:
    """Copy tensors by their names on the hub into a ``Gemma4DenseModel``; returns their number.

    Without ``lm_head.weight``, the output layer becomes the token embedding. Raises ``ValueError``
    for a missing, superfluous or misshapen tensor, before the first copy.
    """
    source = text_model_of(from_dict(params, "params"), unused_tensors(model.cfg))
    load_by_names(model, source, NAMES)
    return len(source.shapes)


Gemma4Model = Gemma4DenseModel  # there is no other kind here
load_weights_into_gemma4 = load_weights_into_gemma4_dense
