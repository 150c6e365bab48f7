"""A model as a folder of the Hugging Face hub, which ``transformers`` loads without our code.

The configuration and the names of tensors are those by which we read such folders, from right to
left: ``hub_configs`` says which field is which of our keys, ``NAMES`` which tensor is which.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn as nn
from safetensors import SafetensorError
from safetensors.torch import save_file

from llms_from_scratch.blocks.rope import check_scaling
from llms_from_scratch.weights.architectures import ARCHITECTURES
from llms_from_scratch.weights.hub import WEIGHTS, write_json
from llms_from_scratch.weights.hub_configs import FAMILIES, LINEAR, config_from_hub_dict
from llms_from_scratch.weights.mapping import tensors_of, their_name

CLASS_NAMES = {  # of transformers
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "gemma4_text": "Gemma4ForCausalLM",
}
OLMO_SCALING = {  # our key in Olmo's configuration: the hub's in ``rope_scaling``
    "rope_factor": "factor",
    "rope_orig_max": "original_max_position_embeddings",
    "rope_attention_factor": "attention_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
}


def scaling_for_hub(cfg: Mapping) -> dict | None:
    """The hub's ``rope_scaling`` for one of our configurations; None for plain rotations.

    >>> scaling_for_hub({"rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    {'rope_type': 'linear', 'factor': 8.0}
    """
    if cfg.get("rope_type", "default") != "default":  # Olmo
        given = {theirs: cfg[ours] for ours, theirs in OLMO_SCALING.items() if ours in cfg}
        return {"rope_type": cfg["rope_type"]} | given
    scaling = cfg.get("rope_scaling")
    if cfg.get("rope_freq"):
        scaling = {"rope_type": "llama3"} | cfg["rope_freq"]
    if not scaling or scaling.get("rope_type") == "default":
        return None
    renamed = {"original_context_length": "original_max_position_embeddings"}
    return {renamed.get(key, key): value for key, value in check_scaling(scaling).items()}


def _rope(cfg: Mapping) -> dict:
    return {"rope_theta": cfg["rope_base"], "rope_scaling": scaling_for_hub(cfg)}


def _windows(cfg: Mapping) -> dict:
    return {"sliding_window": cfg["sliding_window"], "layer_types": cfg["layer_types"]}


def _experts(cfg: Mapping) -> dict:
    return {
        "num_experts": cfg["num_experts"],
        "num_experts_per_tok": cfg["num_experts_per_tok"],
        "moe_intermediate_size": cfg.get("moe_hidden_dim") or cfg["moe_intermediate_size"],
        "norm_topk_prob": cfg.get("norm_topk_prob", True),
    }


def _gemma(cfg: Mapping) -> dict:
    local = {"rope_local_base_freq": cfg["rope_local_base"]}
    return _windows(cfg) | local | {"query_pre_attn_scalar": cfg["query_pre_attn_scalar"]}


def _olmo(cfg: Mapping) -> dict:
    """Both kinds of layers by name: transformers 5 gives one of them another base otherwise."""
    plain = {"rope_type": "default", "rope_theta": cfg["rope_base"]}
    rope = {"sliding_attention": plain, "full_attention": plain | (scaling_for_hub(cfg) or {})}
    return _windows(cfg) | {"rope_parameters": rope}


def _cohere(cfg: Mapping) -> dict:
    """Scale and epsilon always, for the hub's defaults are others than ours."""
    numbers = {"layer_norm_eps": 1e-5, "logit_scale": 1.0}
    return _windows(cfg) | {key: cfg.get(key, usual) for key, usual in numbers.items()}


def _qwen3_5(cfg: Mapping) -> dict:
    rope = {"rope_type": "default", "rope_theta": cfg["rope_base"]}
    rope["partial_rotary_factor"] = cfg.get("partial_rotary_factor", 1.0)
    types = cfg.get("layer_types") or ["full_attention"] * cfg["n_layers"]
    return {"rope_parameters": rope, "layer_types": types} | {key: cfg[key] for key in LINEAR}


def _gemma4(cfg: Mapping) -> dict:
    local = {"rope_type": "default", "rope_theta": cfg["rope_local_base"]}
    full = {"rope_type": "proportional", "rope_theta": cfg["rope_global_base"]}
    full["partial_rotary_factor"] = cfg["rope_global_partial_rotary_factor"]
    width = cfg.get("hidden_size_per_layer_input") or 0
    return _windows(cfg) | {
        "rope_parameters": {"sliding_attention": local, "full_attention": full},
        "rms_norm_eps": cfg.get("layer_norm_eps", 1e-6),
        "global_head_dim": cfg["global_head_dim"],
        "final_logit_softcapping": cfg.get("final_logit_softcap"),
        "hidden_size_per_layer_input": width,
        "vocab_size_per_layer_input": cfg.get("vocab_size_per_layer_input", cfg["vocab_size"]),
        "num_kv_shared_layers": cfg.get("num_kv_shared_layers", 0),
        "use_double_wide_mlp": bool(cfg.get("use_double_wide_mlp")),
    }


# What a family has besides sizes, rotations, the epsilon of its norms and tied embeddings
MORE: dict[str, Callable[[Mapping], dict]] = {
    "llama": lambda cfg: {},
    "qwen3": lambda cfg: {},
    "qwen3_moe": _experts,
    "gemma3_text": _gemma,
    "olmo3": _olmo,
    "cohere2": _cohere,
    "qwen3_5_text": _qwen3_5,
    "gemma4_text": _gemma4,
}


def config_for_hub(model_type: str, cfg: Mapping, tied: bool, dtype: torch.dtype) -> dict:
    """The ``config.json`` of a model: the inverse of ``config_from_hub_dict``.

    ``tied``: whether the output layer is the token embedding. Raises ``ValueError`` for what the
    hub's configurations cannot say.
    """
    if model_type not in CLASS_NAMES:
        raise ValueError(f"cannot write a {model_type!r}; known: gpt2, {', '.join(CLASS_NAMES)}")
    if model_type.startswith("qwen3") and not cfg.get("qk_norm", True):
        raise ValueError("qk_norm=False cannot be written: the hub's Qwen3 always has these norms")
    family = FAMILIES[model_type]
    fixed = {k: v[0] if isinstance(v, tuple) else v for k, v in family.only.items()}
    usual_eps = 1e-5 if model_type == "llama" else 1e-6
    has_rms_norm = "rms_norm_eps" in family.used
    theirs = {
        "architectures": [CLASS_NAMES[model_type]],
        "model_type": model_type,
        **{key: cfg[ours] for key, ours in family.sizes.items()},
        **{key: value for key, value in fixed.items() if value is not None},
        "head_dim": cfg.get("head_dim") or cfg["emb_dim"] // cfg["n_heads"],
        **({"rms_norm_eps": cfg.get("rms_norm_eps", usual_eps)} if has_rms_norm else {}),
        # Fields of the time before transformers 5, which newer versions read too
        **({} if model_type == "gemma4_text" else _rope(cfg)),
        "tie_word_embeddings": tied,
        "dtype": str(dtype).removeprefix("torch."),
        **MORE[model_type](cfg),
    }
    config_from_hub_dict(theirs, "the configuration to be written")
    return theirs


def is_tied(model: nn.Module) -> bool:
    """Whether the output layer has the numbers of the token embedding."""
    head, embedding = model.out_head.weight, model.tok_emb.weight
    return head is embedding or torch.equal(head, embedding)


def tensors_for_hub(model: nn.Module, model_type: str, dtype: torch.dtype) -> dict:
    """A model's parameters by their names on the hub; a tied output layer is left out."""
    names = ARCHITECTURES[model_type].names_of(model)
    parameters = tensors_of(model)
    if is_tied(model):
        del parameters["out_head.weight"]
    return {
        their_name(ours, names): tensor.detach().to("cpu", dtype).contiguous()
        for ours, tensor in parameters.items()
    }


def write_hub_model(
    model: nn.Module, model_type: str, cfg: Mapping, folder: str | Path, dtype: torch.dtype
) -> None:
    """Write ``config.json`` and ``model.safetensors`` of a model that is no GPT-2."""
    folder = Path(folder)
    write_json(folder / "config.json", config_for_hub(model_type, cfg, is_tied(model), dtype))
    try:
        tensors = tensors_for_hub(model, model_type, dtype)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{folder / WEIGHTS} cannot be written: {error}") from None
