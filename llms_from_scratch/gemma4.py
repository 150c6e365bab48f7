"""Gemma 4, E2B and E4B: an embedding for every layer, and keys that many layers share.

What changed from Gemma 3: a token has a vector for each layer, so that half of the model is looked
up and never multiplied; the last layers make queries only, and look at the keys and values of the
last layer of their kind that made some; layers that see everything have wider heads, of which a
quarter turns; values are normalized too, scores are not scaled, norms scale by their weight; each
layer's result has a factor, and logits have a bound.

Source: Gemma Team, "Gemma 4" (2026).
"""

from collections.abc import Mapping

import torch
import torch.nn as nn
from torch.nn.functional import gelu

from llms_from_scratch.blocks.attention import attend
from llms_from_scratch.blocks.config import check_config, check_heads, check_layer_types
from llms_from_scratch.blocks.decoder import DecoderModel
from llms_from_scratch.blocks.linear import apply_layer
from llms_from_scratch.blocks.norms import rms_normalize
from llms_from_scratch.blocks.rope import RotaryEmbedding, apply_rope
from llms_from_scratch.ch04 import check_input_ids
from llms_from_scratch.weights.mapping import load_by_names
from llms_from_scratch.weights.sources import TensorSource, from_dict

__all__ = [
    "GEMMA4_CONFIG_E2B",
    "GEMMA4_CONFIG_E4B",
    "Gemma4Attention",
    "Gemma4DenseBlock",
    "Gemma4DenseModel",
    "Gemma4FeedForward",
    "Gemma4RMSNorm",
    "ProportionalRotaryEmbedding",
    "apply_rope",
    "get_gemma4_dense_config",
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
IN_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
IN_FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
IN_BLOCK = (
    *("input_layernorm", "post_attention_layernorm"),
    *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    *("per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm"),
)
OF_MODEL = ("embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm")
OURS = "trf_blocks.{}"
THEIRS = "model.layers.{}"
NAMES = {  # ours: the hub's
    "tok_emb.weight": "model.embed_tokens.weight",
    **{f"{name}.weight": f"model.{name}.weight" for name in OF_MODEL},
    **{f"{OURS}.att.{p}.weight": f"{THEIRS}.self_attn.{p}.weight" for p in IN_ATTENTION},
    **{f"{OURS}.mlp.{p}.weight": f"{THEIRS}.mlp.{p}.weight" for p in IN_FEED_FORWARD},
    **{f"{OURS}.{p}.weight": f"{THEIRS}.{p}.weight" for p in IN_BLOCK},
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


class Gemma4RMSNorm(nn.Module):
    """Root-mean-square normalization in float32, scaled by ``weight`` if ``with_scale``."""

    def __init__(
        self,
        dim: int,
        eps: float = 1e-6,
        with_scale: bool = True,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, dtype=dtype)) if with_scale else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = rms_normalize(x, self.eps)
        return (normed if self.weight is None else normed * self.weight.float()).to(x.dtype)


class ProportionalRotaryEmbedding(RotaryEmbedding):
    """Of each head, only the ``partial_rotary_factor`` of its pairs that turn fastest do turn."""

    def __init__(
        self, head_dim: int, theta_base: float = 10_000, partial_rotary_factor: float = 1.0
    ):
        super().__init__(head_dim, theta_base)
        self.frequencies[int(partial_rotary_factor * head_dim // 2) :] = 0.0


def is_shared(cfg: Mapping, layer_idx: int) -> bool:
    """Whether a layer looks at the keys and values of another."""
    return layer_idx >= cfg["n_layers"] - cfg.get("num_kv_shared_layers", 0)


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


class Gemma4Attention(nn.Module):
    """Grouped-query attention with its own keys, or with those of another layer. (b, n, emb_dim)

    ``shared_kv`` has, for each type of layers, the keys and values that were made last: all that
    its layer looked at, also those that its cache will not keep.
    """

    def __init__(self, cfg: dict, layer_idx: int):
        super().__init__()
        emb_dim, dtype, eps = cfg["emb_dim"], cfg["dtype"], cfg.get("layer_norm_eps", 1e-6)
        self.layer_type = cfg["layer_types"][layer_idx]
        self.is_sliding = self.layer_type == "sliding_attention"
        self.head_dim = cfg["head_dim" if self.is_sliding else "global_head_dim"]
        self.is_kv_shared_layer = is_shared(cfg, layer_idx)
        d_out, kv_dim = cfg["n_heads"] * self.head_dim, cfg["n_kv_heads"] * self.head_dim
        self.q_proj = nn.Linear(emb_dim, d_out, bias=False, dtype=dtype)
        self.q_norm = Gemma4RMSNorm(self.head_dim, eps, dtype=dtype)
        if not self.is_kv_shared_layer:
            self.k_proj = nn.Linear(emb_dim, kv_dim, bias=False, dtype=dtype)
            self.v_proj = nn.Linear(emb_dim, kv_dim, bias=False, dtype=dtype)
            self.k_norm = Gemma4RMSNorm(self.head_dim, eps, dtype=dtype)
            self.v_norm = Gemma4RMSNorm(self.head_dim, eps, with_scale=False)
        self.o_proj = nn.Linear(d_out, emb_dim, bias=False, dtype=dtype)

    def forward(self, x, mask, cos, sin, cache=None, layer_idx=0, shared_kv=None):
        queries = apply_rope(self.q_norm(self.heads(self.q_proj, x)), cos, sin)
        if self.is_kv_shared_layer:
            keys, values = shared_kv[self.layer_type]
            if cache is not None:
                cache.update(layer_idx, ())  # nothing of its own
        else:
            keys = apply_rope(self.k_norm(self.heads(self.k_proj, x)), cos, sin)
            values = self.v_norm(self.heads(self.v_proj, x))
            if cache is not None:
                keys, values = cache.update(layer_idx, keys, values)
            if shared_kv is not None:
                shared_kv[self.layer_type] = keys, values
        context = attend(queries, keys, values, mask, scale=1.0)
        return apply_layer(self.o_proj, context.transpose(1, 2).flatten(2))

    def heads(self, layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        """(b, n, emb_dim) -> (b, heads, n, head_dim)"""
        return apply_layer(layer, x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class Gemma4DenseBlock(nn.Module):
    """Attention, feed-forward, and the token's vector for this layer. (b, n, emb_dim)"""

    def __init__(self, cfg: dict, layer_idx: int):
        super().__init__()
        emb_dim, dtype, eps = cfg["emb_dim"], cfg["dtype"], cfg.get("layer_norm_eps", 1e-6)
        self.att, self.mlp = Gemma4Attention(cfg, layer_idx), Gemma4FeedForward(cfg, layer_idx)
        self.input_layernorm = Gemma4RMSNorm(emb_dim, eps, dtype=dtype)
        self.post_attention_layernorm = Gemma4RMSNorm(emb_dim, eps, dtype=dtype)
        self.pre_feedforward_layernorm = Gemma4RMSNorm(emb_dim, eps, dtype=dtype)
        self.post_feedforward_layernorm = Gemma4RMSNorm(emb_dim, eps, dtype=dtype)
        self.register_buffer("layer_scalar", torch.ones(1, dtype=dtype))
        if width := cfg.get("hidden_size_per_layer_input"):
            self.per_layer_input_gate = nn.Linear(emb_dim, width, bias=False, dtype=dtype)
            self.per_layer_projection = nn.Linear(width, emb_dim, bias=False, dtype=dtype)
            self.post_per_layer_input_norm = Gemma4RMSNorm(emb_dim, eps, dtype=dtype)

    def forward(
        self, x, mask, cos, sin, cache=None, layer_idx=0, shared_kv=None, per_layer_input=None
    ):
        normed = self.input_layernorm(x)
        attended = self.att(normed, mask, cos, sin, cache, layer_idx, shared_kv)
        x = x + self.post_attention_layernorm(attended)
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        if per_layer_input is not None:
            gate = gelu(apply_layer(self.per_layer_input_gate, x), approximate="tanh")
            added = apply_layer(self.per_layer_projection, gate * per_layer_input)
            x = x + self.post_per_layer_input_norm(added)
        return x * self.layer_scalar


class Gemma4DenseModel(DecoderModel):
    """Gemma 4's text model: token ids (b, n) to logits (b, n, vocab_size); see ``DecoderModel``.

    Raises ``ValueError`` for a configuration with unknown, missing or contradictory keys.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        keys = (CONFIG_KEYS, OPTIONAL_KEYS, ONLY)
        check_config(cfg, "Gemma 4", *keys)
        check_heads(cfg, "Gemma 4", "n_kv_heads")
        check_layer_types(cfg, "Gemma 4")
        check_donors(cfg)
        self.cfg = dict(cfg)
        if "tie_word_embeddings" in cfg:
            self.cfg.setdefault("tie_embeddings", cfg["tie_word_embeddings"])
        numbers, dtype = iter(range(cfg["n_layers"])), cfg["dtype"]
        eps, width = cfg.get("layer_norm_eps", 1e-6), cfg.get("hidden_size_per_layer_input")
        self.make_layers(
            lambda cfg: Gemma4DenseBlock(cfg, next(numbers)), Gemma4RMSNorm, eps=eps, dtype=dtype
        )
        self.ropes = {
            "sliding_attention": RotaryEmbedding(cfg["head_dim"], cfg["rope_local_base"]),
            "full_attention": ProportionalRotaryEmbedding(
                cfg["global_head_dim"],
                cfg["rope_global_base"],
                cfg["rope_global_partial_rotary_factor"],
            ),
        }
        if width:
            vocab_size, total = cfg["vocab_size_per_layer_input"], cfg["n_layers"] * width
            self.embed_tokens_per_layer = nn.Embedding(vocab_size, total, dtype=dtype)
            self.per_layer_model_projection = nn.Linear(
                cfg["emb_dim"], total, bias=False, dtype=dtype
            )
            self.per_layer_projection_norm = Gemma4RMSNorm(width, eps, dtype=dtype)

    @property
    def blocks(self) -> nn.ModuleList:
        """``trf_blocks`` under its other name."""
        return self.trf_blocks

    def embed(self, in_idx: torch.Tensor) -> torch.Tensor:
        return scaled(self.tok_emb(in_idx), self.cfg["emb_dim"] ** 0.5)

    def get_per_layer_inputs(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Each token's vectors for all layers from the table, (b, n, n_layers, width)."""
        width = self.cfg["hidden_size_per_layer_input"]
        found = self.embed_tokens_per_layer(input_ids).unflatten(-1, (-1, width))
        return scaled(found, width**0.5)

    def project_per_layer_inputs(
        self, inputs_embeds: torch.Tensor, per_layer_inputs: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The same from the embedding by a matrix, and the mean of both, but for a factor √2."""
        width = self.cfg["hidden_size_per_layer_input"]
        made = apply_layer(self.per_layer_model_projection, inputs_embeds)
        made = (made * self.cfg["emb_dim"] ** -0.5).unflatten(-1, (-1, width))
        made = self.per_layer_projection_norm(made)
        return made if per_layer_inputs is None else (made + per_layer_inputs) * 2.0**-0.5

    def forward(self, in_idx: torch.Tensor, cache=None, last_only: bool = False) -> torch.Tensor:
        check_input_ids(in_idx, self.tok_emb.num_embeddings, self.cfg["context_length"])
        x = self.embed(in_idx)  # (b, n, emb_dim)
        inputs = self.attention_inputs(in_idx.shape[1], x, cache)
        extra, shared_kv = [None] * len(self.trf_blocks), {}
        if self.cfg.get("hidden_size_per_layer_input"):
            extra = self.project_per_layer_inputs(x, self.get_per_layer_inputs(in_idx)).unbind(2)
        layers = zip(self.trf_blocks, self.layer_types, extra, strict=True)
        for layer_idx, (block, kind, per_layer_input) in enumerate(layers):
            x = block(x, *inputs[kind], cache, layer_idx, shared_kv, per_layer_input)
        if cache is not None:
            cache.advance(in_idx.shape[1])
        logits = apply_layer(self.out_head, self.final_norm(x[:, -1:] if last_only else x))
        cap = self.cfg.get("final_logit_softcap")
        return logits if cap is None else cap * torch.tanh(logits / cap)


def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    """``x`` times a factor that is rounded as the weights are."""
    return x * torch.tensor(factor, dtype=x.dtype, device=x.device)


def check_donors(cfg: Mapping) -> None:
    """Raise ``ValueError`` if a layer has no earlier one of its type to take keys from."""
    types, count = cfg["layer_types"], cfg.get("num_kv_shared_layers", 0)
    if not 0 <= count < cfg["n_layers"]:
        raise ValueError(f"Gemma 4: num_kv_shared_layers must be less than n_layers, got {count}")
    own = types[: cfg["n_layers"] - count]
    if alone := sorted(set(types) - set(own)):
        raise ValueError(f"Gemma 4: no layer of type {alone[0]!r} makes keys that others may share")


def unused_tensors(cfg: Mapping) -> set[str]:
    """Names on the hub of keys and values that published files hold, but no layer reads."""
    shared = [i for i in range(cfg["n_layers"]) if is_shared(cfg, i)]
    parts = ("k_proj", "v_proj", "k_norm")
    return {f"model.layers.{i}.self_attn.{part}.weight" for i in shared for part in parts}


def text_model_of(source: TensorSource, cfg: Mapping) -> TensorSource:
    """The tensors of the text model that are read, of a file that has others as well."""
    prefixes = ("model.language_model.", "language_model.model.")
    prefix = next((p for p in prefixes if any(n.startswith(p) for n in source.shapes)), "model.")
    unused = unused_tensors(cfg)
    names = {name: name.replace(prefix, "model.", 1) for name in source.shapes}
    if prefix != "model.":
        names = {n: new for n, new in names.items() if n.startswith(prefix) or "lm_head" in n}
    shapes = {n: source.shapes[n] for n, new in names.items() if new not in unused}
    return TensorSource(source.description, shapes, source.read).renamed(lambda n: names[n])


def load_weights_into_gemma4_dense(model: nn.Module, cfg: Mapping, params: Mapping) -> int:
    """Copy tensors by their names on the hub into a ``Gemma4DenseModel``; returns their number.

    Without ``lm_head.weight``, the output layer becomes the token embedding. Raises ``ValueError``
    for a missing, superfluous or misshapen tensor, before the first copy.
    """
    source = text_model_of(from_dict(params, "params"), model.cfg)
    load_by_names(model, source, NAMES)
    return len(source.shapes)
