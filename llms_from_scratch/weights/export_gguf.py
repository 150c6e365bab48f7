"""A model as a GGUF file, which llama.cpp and Ollama run.

``gguf_models`` reads such files; its tables of names are used here from right to left. What
llama.cpp computes for an architecture is fixed in its code: a model that differs from it in
something that the file cannot say is refused.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

from llms_from_scratch.blocks.rope import inverse_frequencies, scale_llama3
from llms_from_scratch.weights.export_hub import is_tied
from llms_from_scratch.weights.gguf_models import (
    GEMMA_NORMS,
    GPT2_NAMES,
    MODEL_TYPES,
    NAMES,
    SIZES,
)
from llms_from_scratch.weights.gguf_writer import FILE_TYPES, GGUFTensor, choose_kind, write_gguf
from llms_from_scratch.weights.gpt2 import _hub_tensors

ARCHITECTURE_OF = {theirs: ours for ours, theirs in MODEL_TYPES.items()}
NUMBER_IN_NAME = re.compile(r"(?<=\.)\d+(?=\.|$)")


def permute(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """The rows of a Llama query or key projection in llama.cpp's order; ``unpermute`` undoes it.

    >>> permute(torch.tensor([0, 1, 2, 3, 10, 11, 12, 13]), num_heads=2).tolist()
    [0, 2, 1, 3, 10, 12, 11, 13]
    """
    halves = weight.reshape(num_heads, 2, -1, *weight.shape[1:])  # (num_heads, 2, head_dim/2, ...)
    return halves.transpose(1, 2).reshape(weight.shape)


def check_for_gguf(model_type: str, cfg: Mapping) -> str:
    """GGUF's name of the architecture; ``ValueError`` for what llama.cpp computes differently."""
    if model_type not in ARCHITECTURE_OF:
        raise ValueError(
            f"a {model_type} cannot be written as GGUF here, only {', '.join(ARCHITECTURE_OF)}: "
            "use --format hf, and llama.cpp's own converter on that folder"
        )
    if model_type == "qwen3" and not cfg["qk_norm"]:
        raise ValueError("a Qwen3 with qk_norm=False is not computed by llama.cpp")
    if model_type == "gemma3_text":
        numbers = range(1, cfg["n_layers"] + 1)
        fixed = {
            "layer_types": ["sliding_attention" if n % 6 else "full_attention" for n in numbers],
            "rope_local_base": 10_000.0,
            "query_pre_attn_scalar": cfg["head_dim"],
        }
        for key, value in fixed.items():
            if cfg[key] != value:
                raise ValueError(f"llama.cpp computes a Gemma 3 with {key}={value!r} only")
    return ARCHITECTURE_OF[model_type]


def metadata_for_gguf(model_type: str, cfg: Mapping, kind: str) -> dict:
    """What a file says of the model: all but its name and its tokenizer."""
    architecture = check_for_gguf(model_type, cfg)
    general = {"architecture": architecture, "file_type": FILE_TYPES[kind]}
    if kind == "Q8_0":
        general["quantization_version"] = 2
    sizes = {key: cfg[ours] for key, ours in SIZES.items() if ours != "hidden_dim"}
    if model_type == "gpt2":
        own = {"feed_forward_length": 4 * cfg["emb_dim"], "attention.layer_norm_epsilon": 1e-5}
    else:
        own = _sizes_of_heads(cfg) | _rope_metadata(cfg)
        eps = 1e-5 if model_type == "llama" else 1e-6
        own["attention.layer_norm_rms_epsilon"] = float(cfg.get("rms_norm_eps", eps))
    if model_type == "gemma3_text":
        own["attention.sliding_window"] = cfg["sliding_window"]
    metadata = {f"general.{key}": value for key, value in general.items()}
    return metadata | {f"{architecture}.{key}": value for key, value in (sizes | own).items()}


def _sizes_of_heads(cfg: Mapping) -> dict:
    head_dim = cfg.get("head_dim") or cfg["emb_dim"] // cfg["n_heads"]
    return {
        "feed_forward_length": cfg["hidden_dim"],
        "vocab_size": cfg["vocab_size"],
        "attention.head_count_kv": cfg["n_kv_groups"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(cfg["rope_base"]),
    }


def _rope_metadata(cfg: Mapping) -> dict:
    """Scaled rotations, if they are of a kind that is said by metadata."""
    scaling = dict(cfg.get("rope_scaling") or {})
    kind = scaling.pop("rope_type", "default")
    if kind in ("default", "llama3"):  # for the latter, see rope_divisors
        return {}
    metadata = {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling.pop("factor"))}
    if kind == "yarn":
        usual = {"attention_factor": 0.1 * np.log(metadata["rope.scaling.factor"]) + 1}
        usual |= {"beta_fast": 32.0, "beta_slow": 1.0}
        original = scaling.pop("original_context_length")
        metadata["rope.scaling.original_context_length"] = original
        for key, value in scaling.items():
            if value is not None and abs(value - usual[key]) > 1e-6:
                raise ValueError(f"YaRN with {key}={value} has no place in a GGUF file")
    return metadata


def rope_divisors(cfg: Mapping) -> torch.Tensor | None:
    """Llama 3.1's smoothing as numbers by which each frequency is divided; None without it."""
    scaling = cfg.get("rope_freq") or cfg.get("rope_scaling") or {}
    if not cfg.get("rope_freq") and scaling.get("rope_type") != "llama3":
        return None
    numbers = {key: value for key, value in scaling.items() if key != "rope_type"}
    head_dim = cfg.get("head_dim") or cfg["emb_dim"] // cfg["n_heads"]
    plain = inverse_frequencies(head_dim, cfg["rope_base"])
    return plain / scale_llama3(plain, **numbers)


def tensors_for_gguf(
    model: nn.Module, model_type: str, cfg: Mapping
) -> dict[str, Callable[[], torch.Tensor]]:
    """Functions that give a model's tensors as llama.cpp stores them, by its names."""
    if model_type == "gpt2":
        return _gpt2_tensors(model)
    table = {ours: theirs for theirs, ours in NAMES.items()}
    is_gemma = model_type == "gemma3_text"
    table |= {ours: theirs for theirs, ours in GEMMA_NORMS.items()} if is_gemma else {}
    heads = {"W_query": cfg["n_heads"], "W_key": cfg["n_kv_groups"]}
    tensors = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name == "out_head.weight" and is_tied(model):
            continue
        stem, _, leaf = name.rpartition(".")
        kind = stem.rpartition(".")[-1]

        def read(tensor=parameter, kind=kind, leaf=leaf) -> torch.Tensor:
            tensor = tensor.detach().cpu()
            if is_gemma and leaf == "scale":
                return 1 + tensor.float()  # llama.cpp multiplies by it
            return (
                permute(tensor, heads[kind]) if model_type == "llama" and kind in heads else tensor
            )

        tensors[f"{_renamed(stem, table)}.weight"] = read
    divisors = rope_divisors(cfg)
    return tensors if divisors is None else tensors | {"rope_freqs.weight": lambda: divisors}


def _gpt2_tensors(model: nn.Module) -> dict[str, Callable[[], torch.Tensor]]:
    tensors = {}
    for name, tensor in _hub_tensors(model, is_tied(model), torch.float32).items():
        stem, _, leaf = name.removeprefix("transformer.").rpartition(".")
        is_linear = tensor.dim() == 2 and ".c_" in stem  # (d_in, d_out) on the hub
        stored = tensor.t() if is_linear else tensor
        tensors[f"{_renamed(stem, GPT2_NAMES)}.{leaf}"] = lambda stored=stored: stored
    return tensors


def _renamed(name: str, table: Mapping[str, str]) -> str:
    return table[NUMBER_IN_NAME.sub("{}", name)].format(*NUMBER_IN_NAME.findall(name))


def write_gguf_model(
    path: str | Path,
    model: nn.Module,
    model_type: str,
    cfg: Mapping,
    about: Mapping[str, object],
    kind: str = "F16",
) -> None:
    """Write a model with more metadata, its tokenizer's for instance; ``kind``: F32, F16 or Q8_0.

    Vectors, and GPT-2's positions, are always F32. Raises ``ValueError`` for a model that llama.cpp
    does not compute.
    """
    metadata = metadata_for_gguf(model_type, cfg, kind) | dict(about)
    tensors = {}
    for name, read in tensors_for_gguf(model, model_type, cfg).items():
        shape = tuple(read().shape)
        chosen = "F32" if name == "position_embd.weight" else choose_kind(shape, kind)
        tensors[name] = GGUFTensor(
            shape, chosen, lambda read=read: read().float().contiguous().numpy()
        )
    write_gguf(path, metadata, tensors)
