"""Other people's configurations, translated into ours, or refused by name.

A field that changes what a model computes, and that our models do not compute, is a ``ValueError``:
ignoring it would load weights into another function without a word.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from llms_from_scratch.blocks.rope import check_scaling
from llms_from_scratch.ch04 import BASE_CONFIG

# Fields that say nothing about the function from token ids to logits
METADATA = set(
    """
    _attn_implementation_autoset _name_or_path _sliding_window_pattern architectures
    bos_token_id cache_implementation chunk_size_feed_forward dtype eos_token_id
    gradient_checkpointing id2label initializer_range is_encoder_decoder label2id
    max_window_layers model_type n_ctx output_attentions output_hidden_states
    output_router_logits pad_token_id pretraining_tp problem_type reorder_and_upcast_attn
    return_dict router_aux_loss_coef sliding_window_pattern summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    task_specific_params torch_dtype transformers_version use_cache
    """.split()
)
NO_BIAS_NO_DROPOUT = {"attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu"}
SIZES = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
    "hidden_size": "emb_dim",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
    "intermediate_size": "hidden_dim",
    "num_key_value_heads": "n_kv_groups",
}


@dataclass(frozen=True)
class Family:
    """How one ``model_type`` is read: names of sizes, what must have one value, and the rest."""

    sizes: Mapping[str, str]  # theirs: ours, all needed
    only: Mapping[str, object]  # theirs: the value that we compute
    used: frozenset[str]  # read by ``more``
    more: Callable[[dict], dict]  # the rest of our configuration
    defaults: Mapping[str, object] = field(default_factory=dict)  # for fields left out


def config_from_hub_dict(theirs: Mapping, where: str) -> tuple[str, dict]:
    """The ``model_type`` and our configuration for a ``config.json``; ``where`` is for messages."""
    theirs = text_part(theirs)
    model_type = theirs.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(
            f"{where}: model_type {model_type!r} is unknown; known: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[model_type]
    theirs = dict(family.defaults) | dict(theirs)
    for key, value in theirs.items():
        if key in family.only:
            allowed = family.only[key]
            allowed = allowed if isinstance(allowed, tuple) else (allowed,)
            if value not in (*allowed, None):
                raise ValueError(
                    f"{where}: {key}={value!r} is not computed here, only {key}={allowed[0]!r}"
                )
        elif key not in family.sizes and key not in family.used and key not in METADATA and value:
            raise ValueError(f"{where}: field {key}={value!r} is unknown for {model_type}")
    missing = [key for key in family.sizes if theirs.get(key) is None]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} missing")
    sizes = {ours: theirs[key] for key, ours in family.sizes.items()}
    for ours, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{where}: the field for {ours} must be a number from 1 on: {value!r}")
    try:
        return model_type, sizes | family.more(theirs)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def text_part(theirs: Mapping) -> Mapping:
    """What a configuration of a model for texts and images says of the former."""
    text = theirs.get("text_config")
    if not isinstance(text, Mapping) or text.get("model_type") not in FAMILIES:
        return theirs
    shared = ("tie_word_embeddings", "dtype", "torch_dtype")
    return {key: theirs[key] for key in shared if key in theirs} | dict(text)


def rope_of(theirs: Mapping, layer_type: str | None = None) -> tuple[float, dict | None]:
    """Base and scaling of the rotations, from the fields of older and newer files.

    >>> rope_of({"rope_theta": 500000.0, "rope_scaling": None})
    (500000.0, None)
    """
    parameters = theirs.get("rope_parameters") or {}
    if layer_type and layer_type in parameters:
        parameters = parameters[layer_type]
    if not parameters:
        parameters = {"rope_theta": theirs.get("rope_theta", 10_000.0)}
        parameters |= theirs.get("rope_scaling") or {}
    scaling = {key: value for key, value in parameters.items() if value is not None}
    base = scaling.pop("rope_theta", theirs.get("rope_theta", 10_000.0))
    rope_type = scaling.pop("rope_type", None) or scaling.pop("type", "default")
    scaling.pop("type", None)
    if scaling.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("rotations of a part of each head are not computed here")
    if rope_type == "default":
        if scaling:
            raise ValueError(f"rope_type 'default' has no {', '.join(scaling)}")
        return base, None
    original = scaling.pop("original_max_position_embeddings", None)
    if rope_type in ("yarn", "llama3"):
        scaling["original_context_length"] = original or theirs["max_position_embeddings"]
    if scaling.pop("truncate", True) is not True:
        raise ValueError("YaRN with truncate=False is not computed here")
    return base, check_scaling({"rope_type": rope_type, **scaling})


def _shared(theirs: dict) -> dict:
    return {
        "dtype": _dtype(theirs),
        "rms_norm_eps": theirs.get("rms_norm_eps", 1e-6),
        "tie_embeddings": bool(theirs.get("tie_word_embeddings", False)),
    }


def _dtype(theirs: dict) -> torch.dtype:
    name = theirs.get("dtype") or theirs.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}")
    return dtype


def _scaled(scaling: dict | None) -> dict:
    return {"rope_scaling": scaling} if scaling else {}


def _llama(theirs: dict) -> dict:
    base, scaling = rope_of(theirs)
    if theirs.get("sliding_window"):
        raise ValueError("a sliding_window is not computed for llama")
    head_dim = theirs.get("head_dim") or theirs["hidden_size"] // theirs["num_attention_heads"]
    return _shared(theirs) | {"rope_base": base, "head_dim": head_dim} | _scaled(scaling)


def _qwen3(theirs: dict) -> dict:
    base, scaling = rope_of(theirs)
    if "sliding_attention" in (theirs.get("layer_types") or []):
        raise ValueError("layers with a window are not computed for qwen3")
    head_dim = theirs.get("head_dim") or theirs["hidden_size"] // theirs["num_attention_heads"]
    ours = _shared(theirs) | {"rope_base": base, "head_dim": head_dim, "qk_norm": True}
    return ours | _scaled(scaling)


def _qwen3_moe(theirs: dict) -> dict:
    for key, usual in (("mlp_only_layers", []), ("decoder_sparse_step", 1)):
        if theirs.get(key) not in (None, usual):
            raise ValueError(f"{key}={theirs[key]!r}: dense layers among sparse are not computed")
    num_experts = theirs.get("num_experts") or theirs.get("num_local_experts")
    if not num_experts or not theirs.get("moe_intermediate_size"):
        raise ValueError("num_experts or moe_intermediate_size is missing")
    return _qwen3(theirs) | {
        "num_experts": num_experts,
        "num_experts_per_tok": theirs["num_experts_per_tok"],
        "moe_intermediate_size": theirs["moe_intermediate_size"],
        "norm_topk_prob": bool(theirs.get("norm_topk_prob", False)),
    }


def _layers(theirs: dict, every: int) -> list[str]:
    """The types of layers: listed, or every n-th one full."""
    every = theirs.get("sliding_window_pattern") or theirs.get("_sliding_window_pattern") or every
    listed = theirs.get("layer_types")
    numbers = range(1, theirs["num_hidden_layers"] + 1)
    return listed or ["sliding_attention" if n % every else "full_attention" for n in numbers]


def _gemma3(theirs: dict) -> dict:
    rope = theirs.get("rope_parameters") or {}
    base, scaling = rope_of(theirs, "full_attention")
    local_base = theirs.get("rope_local_base_freq", 10_000.0)
    if "sliding_attention" in rope:
        local_base, local_scaling = rope_of(theirs, "sliding_attention")
        if local_scaling:
            raise ValueError("scaled rotations in layers with a window are not computed here")
    return _shared({"tie_word_embeddings": True} | theirs) | {
        "head_dim": theirs.get("head_dim", 256),
        "qk_norm": True,
        "rope_base": base,
        "rope_local_base": local_base,
        "sliding_window": theirs["sliding_window"],
        "layer_types": _layers(theirs, 6),
        "query_pre_attn_scalar": theirs.get("query_pre_attn_scalar", 256),
        **_scaled(scaling),
    }


def _olmo3(theirs: dict) -> dict:
    base, scaling = rope_of(theirs, "full_attention")
    scaling = scaling or {"rope_type": "default"}
    if scaling["rope_type"] not in ("default", "yarn"):
        raise ValueError(f"rope_type {scaling['rope_type']!r} is not computed for olmo3")
    if "sliding_attention" in (theirs.get("rope_parameters") or {}):
        local_base, local_scaling = rope_of(theirs, "sliding_attention")
        if local_scaling or local_base != base:
            raise ValueError("layers with a window must turn by the plain frequencies")
    heads = theirs["num_attention_heads"]
    ours = _shared(theirs) | {
        "head_dim": theirs.get("head_dim") or theirs["hidden_size"] // heads,
        "sliding_window": theirs["sliding_window"],
        "layer_types": _layers(theirs, 4),
        "rope_base": base,
        "rope_type": scaling["rope_type"],
    }
    names = {
        "factor": "rope_factor",
        "original_context_length": "rope_orig_max",
        "attention_factor": "rope_attention_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
    }
    for key, value in scaling.items():
        if key != "rope_type":
            if key not in names:
                raise ValueError(f"rope_type 'yarn' with {key} is not computed here")
            ours[names[key]] = value
    return ours


def _cohere2(theirs: dict) -> dict:
    base, scaling = rope_of(theirs)
    if scaling:
        raise ValueError(f"rope_type {scaling['rope_type']!r} is not computed for cohere2")
    switch, layers = theirs.get("layer_switch"), _layers(theirs, 4)
    if switch and any(
        (kind == "full_attention") == bool(n % switch) for n, kind in enumerate(layers, 1)
    ):
        raise ValueError(f"layer_switch={switch} contradicts the types of layers")
    ours = _shared({"tie_word_embeddings": True} | theirs) | {
        "head_dim": theirs["hidden_size"] // theirs["num_attention_heads"],
        "sliding_window": theirs.get("sliding_window") or 4096,
        "layer_types": layers,
        "rope_base": base,
        "layer_norm_eps": theirs.get("layer_norm_eps", 1e-5),
        "logit_scale": theirs.get("logit_scale", 0.0625),
    }
    if theirs.get("head_dim") not in (None, ours["head_dim"]):
        raise ValueError(f"head_dim={theirs['head_dim']} is not hidden_size / num_attention_heads")
    return {key: value for key, value in ours.items() if key != "rms_norm_eps"}


LINEAR = {  # theirs, and ours; the numbers that the hub has if a file does not say
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}


def _qwen3_5(theirs: dict) -> dict:
    """Positions of a picture's rows and columns are those of the text where there is no picture."""
    theirs, partial = dict(theirs), theirs.get("partial_rotary_factor", 0.25)
    for key in ("rope_parameters", "rope_scaling"):
        if theirs.get(key):
            rope = {k: v for k, v in theirs[key].items() if not k.startswith("mrope_")}
            partial = rope.pop("partial_rotary_factor", partial)
            theirs[key] = rope
    base, scaling = rope_of(theirs)
    if scaling:
        raise ValueError(f"rope_type {scaling['rope_type']!r} is not computed for qwen3_5")
    head_dim, every = theirs.get("head_dim") or 256, theirs.get("full_attention_interval") or 4
    if int(head_dim * partial) % 2 or int(head_dim * partial) < 2:
        raise ValueError(
            f"partial_rotary_factor={partial} of head_dim={head_dim} is no even number"
        )
    numbers = range(1, theirs["num_hidden_layers"] + 1)
    listed = ["linear_attention" if n % every else "full_attention" for n in numbers]
    return _shared(theirs) | {
        "head_dim": head_dim,
        "rope_base": base,
        "partial_rotary_factor": partial,
        "layer_types": theirs.get("layer_types") or listed,
        **{key: theirs.get(key, usual) for key, usual in LINEAR.items()},
    }


def _gemma4(theirs: dict) -> dict:
    rope = theirs.get("rope_parameters") or {}
    local = {"rope_type": "default", "rope_theta": 10_000.0} | (rope.get("sliding_attention") or {})
    full = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}
    full |= rope.get("full_attention") or {}
    if local.pop("rope_type") != "default" or full.pop("rope_type") != "proportional":
        raise ValueError("rope_parameters of gemma4: only default with a window, proportional else")
    if len(local) > 1 or len(full) > 2:
        raise ValueError(f"rope_parameters of gemma4 are not computed: {sorted(local | full)}")
    eps, types = theirs.get("rms_norm_eps", 1e-6), _layers(theirs, 6)
    ours = _shared({"tie_word_embeddings": True} | theirs) | {
        "head_dim": theirs.get("head_dim", 256),
        "global_head_dim": _global_head_dim(theirs, types),
        "sliding_window": theirs.get("sliding_window", 512),
        "layer_types": types,
        "rope_local_base": local["rope_theta"],
        "rope_global_base": full["rope_theta"],
        "rope_global_partial_rotary_factor": full["partial_rotary_factor"],
        "layer_norm_eps": eps,
        "final_logit_softcap": theirs.get("final_logit_softcapping"),
        "hidden_size_per_layer_input": theirs.get("hidden_size_per_layer_input", 256),
        "vocab_size_per_layer_input": theirs.get("vocab_size_per_layer_input", 262_144),
        "num_kv_shared_layers": theirs.get("num_kv_shared_layers", 0),
        "use_double_wide_mlp": bool(theirs.get("use_double_wide_mlp", False)),
    }
    return {key: value for key, value in ours.items() if key != "rms_norm_eps"}


def _global_head_dim(theirs: dict, types: list[str]) -> int:
    """The width of heads that see everything: a field, or what single layers say."""
    listed = theirs.get("per_layer_config")
    if not listed:
        return theirs.get("global_head_dim") or 512
    full = {str(i) for i, kind in enumerate(types) if kind == "full_attention"}
    first, *others = listed.values()
    alike = all(other == first for other in others) and set(first) == {"head_dim"}
    if not alike or {str(key) for key in listed} != full:
        raise ValueError("per_layer_config is computed for one head_dim of all full layers only")
    return first["head_dim"]


def _gpt2(theirs: dict) -> dict:
    if theirs.get("n_inner") not in (None, 4 * theirs["n_embd"]):
        raise ValueError(f"n_inner={theirs['n_inner']} is not computed here, only 4 * n_embd")
    # Dropout matters in training only; ours has one rate for the three places
    return {"drop_rate": theirs.get("resid_pdrop", 0.1), "qkv_bias": BASE_CONFIG["qkv_bias"]}


ROPE = frozenset({"rope_parameters", "rope_theta", "rope_scaling"})
USED = ROPE | {"head_dim", "rms_norm_eps", "tie_word_embeddings", "dtype", "torch_dtype"}
LAYERS = frozenset({"sliding_window", "layer_types", "sliding_window_pattern"})
FAMILIES = {
    "gpt2": Family(
        sizes={
            "vocab_size": "vocab_size",
            "n_positions": "context_length",
            "n_embd": "emb_dim",
            "n_head": "n_heads",
            "n_layer": "n_layers",
        },
        only={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "layer_norm_epsilon": 1e-5,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        used=frozenset(
            {"n_inner", "resid_pdrop", "embd_pdrop", "attn_pdrop", "tie_word_embeddings"}
        ),
        more=_gpt2,
    ),
    "llama": Family(
        SIZES,
        NO_BIAS_NO_DROPOUT | {"mlp_bias": False},
        USED | {"sliding_window"},
        _llama,
    ),
    "qwen3": Family(
        SIZES,
        NO_BIAS_NO_DROPOUT | {"use_sliding_window": False},
        USED | {"layer_types", "sliding_window"},
        _qwen3,
    ),
    "qwen3_moe": Family(
        {key: ours for key, ours in SIZES.items() if key != "intermediate_size"},
        NO_BIAS_NO_DROPOUT | {"use_sliding_window": False},
        USED
        | {"layer_types", "sliding_window", "mlp_only_layers", "decoder_sparse_step", "num_experts"}
        | {"num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"}
        | {"intermediate_size"},
        _qwen3_moe,
    ),
    "gemma3_text": Family(
        SIZES,
        {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_activation": "gelu_pytorch_tanh",
            "use_bidirectional_attention": False,
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
        },
        USED | LAYERS | {"rope_local_base_freq", "query_pre_attn_scalar"},
        _gemma3,
    ),
    "olmo3": Family(
        {**SIZES, "num_key_value_heads": "n_kv_heads"},
        NO_BIAS_NO_DROPOUT,
        USED | LAYERS,
        _olmo3,
    ),
    "gemma4_text": Family(
        {**SIZES, "num_key_value_heads": "n_kv_heads"},
        {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_activation": "gelu_pytorch_tanh",
            "use_bidirectional_attention": (None, "vision"),  # texts are read in their order
            "attention_k_eq_v": False,
            "num_global_key_value_heads": None,
            "enable_moe_block": False,
            "num_experts": None,
            "top_k_experts": None,
            "moe_intermediate_size": None,
        },
        USED
        | LAYERS
        | {"global_head_dim", "per_layer_config", "final_logit_softcapping"}
        | {"hidden_size_per_layer_input", "vocab_size_per_layer_input"}
        | {"num_kv_shared_layers", "use_double_wide_mlp"},
        _gemma4,
    ),
    "qwen3_5_text": Family(
        SIZES,
        NO_BIAS_NO_DROPOUT | {"attn_output_gate": True, "mamba_ssm_dtype": "float32"},
        USED
        | {"layer_types", "full_attention_interval", "partial_rotary_factor", *LINEAR}
        # Layers that predict several tokens at once, beside the model
        | {"mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"},
        _qwen3_5,
    ),
    "cohere2": Family(
        {**SIZES, "num_key_value_heads": "n_kv_heads"},
        NO_BIAS_NO_DROPOUT
        | {
            "use_qk_norm": False,
            "use_parallel_block": True,
            "use_gated_activation": True,
            "rotary_pct": 1.0,
            "position_embedding_type": "rope_gptj",
            "order_of_interleaved_layers": "local_attn_first",
        },
        (USED - {"rms_norm_eps"})
        | LAYERS
        | {"layer_norm_eps", "logit_scale", "layer_switch"}
        # How the numbers are stored, not what they are
        | {"use_embedding_sharing", "use_parallel_embedding"},
        _cohere2,
    ),
}
