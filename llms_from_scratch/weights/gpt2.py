"""GPT-2's weights: one table of names, used for every file format, in both directions.

Formats that are read: the safetensors files of the Hugging Face hub, OpenAI's TensorFlow
checkpoints, and state dicts of our own models (``.pth`` or ``.safetensors``). GPT-2 stores linear
layers as (d_in, d_out), PyTorch as (d_out, d_in), so their weights are transposed; query, key and
value are one matrix there and three here.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from safetensors.torch import save_file

from llms_from_scratch.ch04 import BASE_CONFIG, GPTModel, check_config
from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.tokenizer import encoder_json, vocab_bpe
from llms_from_scratch.weights.hub import read_json
from llms_from_scratch.weights.hub_configs import config_from_hub_dict
from llms_from_scratch.weights.sources import TensorSource, from_dict
from llms_from_scratch.weights.tf_bundle import TFCheckpoint

# Our name -> GPT-2's name (as on the hub), and how to turn GPT-2's tensor into ours:
# "same", "transposed", or "part 0 of 3" along the output dimension, then transposed.
# {norm} and {shift} are the names of the norms' parameters in GPTModel and in GPTModelFast.
TOP_LEVEL = {
    "tok_emb.weight": ("wte.weight", "same"),
    "pos_emb.weight": ("wpe.weight", "same"),
    "final_norm.{scale}": ("ln_f.weight", "same"),
    "final_norm.{shift}": ("ln_f.bias", "same"),
    "out_head.weight": ("wte.weight", "same"),  # GPT-2's output layer is its token embedding
}
PER_BLOCK = {
    "att.W_query.weight": ("attn.c_attn.weight", "part 0 of 3"),
    "att.W_key.weight": ("attn.c_attn.weight", "part 1 of 3"),
    "att.W_value.weight": ("attn.c_attn.weight", "part 2 of 3"),
    "att.W_query.bias": ("attn.c_attn.bias", "part 0 of 3"),
    "att.W_key.bias": ("attn.c_attn.bias", "part 1 of 3"),
    "att.W_value.bias": ("attn.c_attn.bias", "part 2 of 3"),
    "att.qkv.weight": ("attn.c_attn.weight", "transposed"),  # GPTModelFast
    "att.qkv.bias": ("attn.c_attn.bias", "same"),
    "att.out_proj.weight": ("attn.c_proj.weight", "transposed"),
    "att.out_proj.bias": ("attn.c_proj.bias", "same"),
    "att.proj.weight": ("attn.c_proj.weight", "transposed"),  # GPTModelFast
    "att.proj.bias": ("attn.c_proj.bias", "same"),
    "ff.layers.0.weight": ("mlp.c_fc.weight", "transposed"),
    "ff.layers.0.bias": ("mlp.c_fc.bias", "same"),
    "ff.layers.2.weight": ("mlp.c_proj.weight", "transposed"),
    "ff.layers.2.bias": ("mlp.c_proj.bias", "same"),
    "norm1.{scale}": ("ln_1.weight", "same"),
    "norm1.{shift}": ("ln_1.bias", "same"),
    "norm2.{scale}": ("ln_2.weight", "same"),
    "norm2.{shift}": ("ln_2.bias", "same"),
}
UNUSED = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)|trf_blocks\.\d+\.att\.mask")  # causal masks


@dataclass(frozen=True)
class Step:
    """One copy: ``transform`` of the source's tensor ``theirs`` goes into our tensor ``ours``."""

    ours: str
    theirs: str
    transform: str

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.transform == "same":
            return tensor
        if self.transform == "transposed":
            return tensor.t()
        part = int(self.transform.split()[1])
        piece = tensor.chunk(3, dim=-1)[part]
        return piece.t() if piece.dim() == 2 else piece

    def source_shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the source's tensor must have for ours to come out."""
        if self.transform == "same":
            return ours
        flipped = ours[::-1]
        return flipped if self.transform == "transposed" else (*flipped[:-1], 3 * flipped[-1])


def mapping_for(model: nn.Module) -> list[Step]:
    """The rows of the table that apply to a ``GPTModel`` or ``GPTModelFast``, block by block."""
    is_fast = isinstance(model.final_norm, nn.LayerNorm)
    norm_names = {"scale": "weight", "shift": "bias"} if is_fast else {}
    names = {"scale": "scale", "shift": "shift"} | norm_names
    ours = dict(model.named_parameters(remove_duplicate=False))
    rows = {key.format(**names): row for key, row in TOP_LEVEL.items()}
    for i in range(len(model.trf_blocks)):
        for key, (theirs, transform) in PER_BLOCK.items():
            rows[f"trf_blocks.{i}.{key.format(**names)}"] = (f"h.{i}.{theirs}", transform)
    unknown = [name for name in ours if name not in rows]
    if unknown:
        raise ValueError(
            f"GPT-2 has nothing for {unknown[0]!r}: load its weights first, and change the model "
            "(another output layer, LoRA) afterwards"
        )
    return [Step(name, *rows[name]) for name in ours]


def assign(left: torch.Tensor, right) -> torch.Tensor:
    """Copy ``right`` into the parameter ``left`` and return it; the shapes must be the same."""
    right = torch.as_tensor(right)
    if left.shape != right.shape:
        raise ValueError(f"Shape mismatch. Left: {left.shape}, Right: {right.shape}")
    with torch.no_grad():
        left.copy_(right)
    return left


def load_gpt2(model: nn.Module, source: TensorSource) -> None:
    """Copy a GPT's weights, by their names on the hub or by our own, into our model.

    Everything is checked before the first number is copied: a missing, superfluous or misshapen
    tensor is a ``ValueError`` that names it, and the model stays as it was. Tensors are read one at
    a time, so that memory holds little more than the model.
    """
    source = source.renamed(lambda name: name.removeprefix("transformer."))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for step in _checked_steps(parameters, model, source):
        assign(parameters[step.ours], step.apply(source.read(step.theirs)))


def _checked_steps(parameters: dict, model: nn.Module, source: TensorSource) -> list[Step]:
    """What is to be copied where; ``ValueError`` if anything does not fit."""
    if "tok_emb.weight" in source.shapes:
        steps = [Step(name, name, "same") for name in parameters]
    else:
        steps = [_own_output_layer(step, source) for step in mapping_for(model)]
    _check_steps(steps, parameters, source)
    has_qkv_bias = any(step.theirs.endswith("c_attn.bias") for step in steps)
    _check_nothing_left({step.theirs for step in steps}, source, has_qkv_bias)
    return steps


def _own_output_layer(step: Step, source: TensorSource) -> Step:
    """Models that were trained without weight tying have an output layer of their own."""
    if step.ours == "out_head.weight" and "lm_head.weight" in source.shapes:
        return Step(step.ours, "lm_head.weight", "same")
    return step


def _check_steps(steps: list[Step], parameters: dict, source: TensorSource) -> None:
    for step in steps:
        wanted = step.source_shape(tuple(parameters[step.ours].shape))
        if step.theirs not in source.shapes:
            raise ValueError(f"{source.description}: tensor {step.theirs!r} is missing")
        given = tuple(source.shapes[step.theirs])
        if given != wanted:
            raise ValueError(
                f"{source.description}: tensor {step.theirs!r} has shape {given}, wanted {wanted}"
            )


def _check_nothing_left(used: set[str], source: TensorSource, has_qkv_bias: bool) -> None:
    for name in source.shapes:
        if name in used or UNUSED.fullmatch(name):
            continue
        is_bias = name.endswith("c_attn.bias") and not has_qkv_bias
        if is_bias and not source.read(name).any():
            continue  # zeros: the same as none, for a model with qkv_bias=False
        hint = " (set qkv_bias=True)" if is_bias else ""
        raise ValueError(f"{source.description}: the model has no place for {name!r}{hint}")


# --- OpenAI's format ---


def from_openai(prefix: str | Path) -> TensorSource:
    """The tensors of OpenAI's TensorFlow checkpoint under their names on the hub."""
    checkpoint = TFCheckpoint(prefix)
    squeezed = {
        name: tuple(shape[1:] if len(shape) == 3 else shape)  # (1, d_in, d_out) -> (d_in, d_out)
        for name, shape in checkpoint.shapes.items()
    }
    source = TensorSource(
        str(prefix),
        squeezed,
        lambda name: torch.from_numpy(checkpoint.read(name)).reshape(squeezed[name]),
    )
    return source.renamed(_hub_name)


def _hub_name(name: str) -> str:
    """The hub's name of one of OpenAI's tensors.

    >>> _hub_name("model/h11/attn/c_attn/w"), _hub_name("model/ln_f/g"), _hub_name("model/wte")
    ('h.11.attn.c_attn.weight', 'ln_f.weight', 'wte.weight')
    """
    parts = re.sub(r"^h(\d+)/", r"h/\1/", name.removeprefix("model/")).split("/")
    kinds = {"w": "weight", "g": "weight", "b": "bias"}
    last = [kinds[parts[-1]]] if parts[-1] in kinds else [parts[-1], "weight"]
    return ".".join([*parts[:-1], *last])


def load_gpt2_params_from_tf_ckpt(ckpt_path: str | Path, settings: dict) -> dict:
    """OpenAI's checkpoint as the nested dictionary of section 5.5.

    Keys: ``wte``, ``wpe``, ``g``, ``b`` and ``blocks``, a list with a dictionary for each of
    ``settings["n_layer"]`` blocks, whose leaves are NumPy arrays such as
    ``params["blocks"][0]["attn"]["c_attn"]["w"]``.
    """
    checkpoint = TFCheckpoint(ckpt_path)
    params: dict = {"blocks": [{} for _ in range(settings["n_layer"])]}
    for name in checkpoint.shapes:
        *path, leaf = name.split("/")[1:]  # without "model"
        target = params
        for key in path:
            block = re.fullmatch(r"h(\d+)", key)
            if block:
                target = params["blocks"][int(block[1])]
            elif key != "ln_f":
                target = target.setdefault(key, {})
        target[leaf] = np.squeeze(checkpoint.read(name))
    return params


def load_weights_into_gpt(gpt: GPTModel, params: dict) -> None:
    """Copy the dictionary of ``load_gpt2_params_from_tf_ckpt`` into our model (section 5.5).

    What does not fit is a ``ValueError`` that names it, and the model stays as it was.
    """
    check_params(gpt, params)  # all names and shapes, before the first number is copied
    assign(gpt.tok_emb.weight, params["wte"])
    assign(gpt.pos_emb.weight, params["wpe"])
    for block, theirs in zip(gpt.trf_blocks, params["blocks"], strict=True):
        att, c_attn = block.att, theirs["attn"]["c_attn"]
        parts = [np.split(c_attn[key], 3, axis=-1) for key in ("w", "b")]
        for layer, w, b in zip((att.W_query, att.W_key, att.W_value), *parts, strict=True):
            assign(layer.weight, w.T)  # (inputs, outputs) -> (outputs, inputs)
            assign(layer.bias, b)
        for layer, part in (
            (att.out_proj, theirs["attn"]["c_proj"]),
            (block.ff.layers[0], theirs["mlp"]["c_fc"]),
            (block.ff.layers[2], theirs["mlp"]["c_proj"]),
        ):
            assign(layer.weight, part["w"].T)
            assign(layer.bias, part["b"])
        for norm, part in ((block.norm1, theirs["ln_1"]), (block.norm2, theirs["ln_2"])):
            assign(norm.scale, part["g"])
            assign(norm.shift, part["b"])
    assign(gpt.final_norm.scale, params["g"])
    assign(gpt.final_norm.shift, params["b"])
    assign(gpt.out_head.weight, params["wte"])  # GPT-2's output layer is its token embedding


def check_params(gpt: GPTModel, params: dict) -> None:
    """Raise ``ValueError`` unless each tensor has a place in the model, and each place a tensor."""
    if not isinstance(gpt, GPTModel) or isinstance(gpt.final_norm, nn.LayerNorm):
        raise ValueError(
            f"{type(gpt).__name__} is no GPTModel of chapter 4: use load_pretrained(path, class)"
        )
    if gpt.trf_blocks[0].att.W_query.bias is None:
        raise ValueError("GPT-2 has biases of query, key and value: set qkv_bias=True")
    flat = {"wte.weight": params["wte"], "wpe.weight": params["wpe"]}
    flat |= {"ln_f.weight": params["g"], "ln_f.bias": params["b"]}
    for i, block in enumerate(params["blocks"]):
        for name, value in _leaves(block):
            flat[_hub_name(f"model/h{i}/{name}")] = value
    tensors = {name: torch.as_tensor(value) for name, value in flat.items()}
    parameters = dict(gpt.named_parameters(remove_duplicate=False))
    _checked_steps(parameters, gpt, from_dict(tensors, "params"))


def _leaves(tree: dict, prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


# --- Folders as on the hub ---


def config_from_hub(folder: str | Path) -> dict:
    """Our configuration of the model in a hub folder.

    Raises ``ValueError`` if it is no GPT-2, or one that computes something else than ours do.
    """
    path = Path(folder) / "config.json"
    theirs = read_json(path)
    if theirs.get("model_type") != "gpt2":
        raise ValueError(f"{folder} holds a model of type {theirs.get('model_type')!r}, not gpt2")
    return config_from_hub_dict(theirs, str(path))[1]


def export_to_hub_folder(
    model: nn.Module, cfg: dict, folder: str | Path, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a GPT as a folder that ``transformers`` loads: weights, configuration, tokenizer.

    If the output layer equals the token embedding, it is stored once. The tokenizer is GPT-2's, and
    left out for a model with another vocabulary.
    """
    check_config(cfg)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tied = torch.equal(model.out_head.weight, model.tok_emb.weight)
    files = {
        "config.json": json.dumps(_hub_config(cfg, tied, dtype), indent=2).encode() + b"\n",
    }
    if cfg["vocab_size"] == BASE_CONFIG["vocab_size"]:
        files |= _tokenizer_files(cfg)
    for name, content in files.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(content)
    with atomic_write(folder / "model.safetensors") as temporary:
        save_file(_hub_tensors(model, tied, dtype), temporary, metadata={"format": "pt"})
    return folder


def _tokenizer_files(cfg: dict) -> dict[str, bytes]:
    config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": cfg["context_length"]}
    return {
        "vocab.json": encoder_json(),
        "merges.txt": vocab_bpe(),
        "tokenizer_config.json": json.dumps(config, indent=2).encode() + b"\n",
    }


def _hub_tensors(model: nn.Module, tied: bool, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Our parameters under the hub's names: the table, read from right to left."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    parts: dict[str, list[torch.Tensor]] = {}
    for step in mapping_for(model):
        tensor = parameters[step.ours].detach().cpu()
        if step.transform != "same" and tensor.dim() == 2:
            tensor = tensor.t()
        if step.ours == "out_head.weight":
            if tied:
                continue
            parts["lm_head.weight"] = [tensor]
        else:
            parts.setdefault(f"transformer.{step.theirs}", []).append(tensor)
    for i, block in enumerate(model.trf_blocks):  # GPT-2 always has these biases
        width = 3 * block.att.d_out
        parts.setdefault(f"transformer.h.{i}.attn.c_attn.bias", [torch.zeros(width)])
    return {name: torch.cat(p, dim=-1).to(dtype).contiguous() for name, p in parts.items()}


def _hub_config(cfg: dict, tied: bool, dtype: torch.dtype) -> dict:
    # A model with another vocabulary has GPT-2's end of text only if it says so elsewhere
    end = 50256 if cfg["vocab_size"] == BASE_CONFIG["vocab_size"] else None
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": cfg["vocab_size"],
        "n_positions": cfg["context_length"],
        "n_embd": cfg["emb_dim"],
        "n_head": cfg["n_heads"],
        "n_layer": cfg["n_layers"],
        "resid_pdrop": cfg["drop_rate"],
        "embd_pdrop": cfg["drop_rate"],
        "attn_pdrop": cfg["drop_rate"],
        "activation_function": "gelu_new",  # the tanh approximation
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": tied,
        "bos_token_id": end,
        "eos_token_id": end,
        "dtype": str(dtype).removeprefix("torch."),
    }
