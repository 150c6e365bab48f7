"""Appendix E: low-rank adaptation (LoRA), finetuning with few trainable parameters.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021).
"""

import hashlib
import json
import math
from pathlib import Path

import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.saving import load_plain_state_dict, plain_names, plain_state_dict


class LoRALayer(nn.Module):
    """A change of a linear layer, as the product of two thin matrices (section E.4).

    Input (..., in_dim), output (..., out_dim). ``B`` starts as zeros: at first nothing changes. The
    output is scaled by ``alpha / rank``, so that a learning rate suits several ranks.
    """

    def __init__(self, in_dim: int, out_dim: int, rank: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.A = nn.Parameter(torch.empty(in_dim, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # the rule by which nn.Linear starts
        self.B = nn.Parameter(torch.zeros(rank, out_dim))
        self.dropout = nn.Dropout(dropout)
        self.alpha = alpha
        self.scaling = alpha / rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scaling * (self.dropout(x) @ self.A @ self.B)  # (..., out_dim)


class LinearWithLoRA(nn.Module):
    """A linear layer and, added to it, its low-rank change (section E.4).

    Input (..., in_features), output (..., out_features). While the change is merged into the
    weight, see ``merge_lora``, the layer alone is computed.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        self.linear = linear
        self.lora = LoRALayer(linear.in_features, linear.out_features, rank, alpha, dropout)
        self.lora.to(linear.weight)  # same device, same precision
        self.merged, self.kept = False, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) if self.merged else self.linear(x) + self.lora(x)

    def _load_from_state_dict(self, *args) -> None:
        self.merged, self.kept = False, None  # the loaded state takes the place of all this
        super()._load_from_state_dict(*args)


def replace_linear_with_lora(
    model: nn.Module, rank: int, alpha: float, dropout: float = 0.0
) -> None:
    """Put a ``LinearWithLoRA`` in the place of every linear layer of a model (section E.4).

    Works through all levels, and passes over layers that have been replaced before.
    """
    for name, module in model.named_children():
        if isinstance(module, nn.Linear):
            setattr(model, name, LinearWithLoRA(module, rank, alpha, dropout))
        elif not isinstance(module, LinearWithLoRA):
            replace_linear_with_lora(module, rank, alpha, dropout)


def merge_lora(model: nn.Module) -> None:
    """Add all low-rank changes of a model to its weights; ``unmerge_lora`` undoes it.

    A layer that shared its weight, with an embedding say, gets one of its own. Meanwhile the old
    weights are kept, which takes as much memory again. The state of a merged model has changed
    weights and changes of zero: loaded anywhere, it computes the same.
    """
    for layer in model.modules():
        if isinstance(layer, LinearWithLoRA) and not layer.merged:
            weight, B = layer.linear.weight, layer.lora.B.data
            change = layer.lora.scaling * (layer.lora.A.data @ B)  # (in_features, out_features)
            layer.linear.weight = nn.Parameter(weight.data + change.T, weight.requires_grad)
            layer.lora.B.data = torch.zeros_like(B)
            layer.merged, layer.kept = True, (weight, B)  # a tuple is no part of the model's state


def unmerge_lora(model: nn.Module) -> None:
    """Give a model the weights and changes from before ``merge_lora``, bit for bit."""
    for layer in model.modules():
        if isinstance(layer, LinearWithLoRA) and layer.merged:
            (weight, B), now = layer.kept, layer.linear.weight
            weight.data, layer.lora.B.data = weight.data.to(now), B.to(now)  # it may have moved
            layer.linear.weight, layer.merged, layer.kept = weight, False, None


def lora_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The matrices ``A`` and ``B`` of a model alone: the adapter."""
    return {
        name: tensor
        for name, tensor in plain_state_dict(model).items()
        if name.endswith((".lora.A", ".lora.B"))
    }


def lora_scaling(model: nn.Module) -> str:
    """The factors ``alpha / rank`` in a model, each once, as text: "[1.0]" for instance."""
    return str(sorted({m.scaling for m in model.modules() if isinstance(m, LoRALayer)}))


def describe_lora(model: nn.Module) -> dict[str, str]:
    """What an adapter belongs to: rank and alpha of each layer, and a hash of the base model.

    The hash is that of all other weights, under plain names and in their precision.
    """
    names = plain_names(model)
    layers = {
        names[f"{name}.A"].removesuffix(".lora.A"): [module.A.shape[1], float(module.alpha)]
        for name, module in model.named_modules()
        if isinstance(module, LoRALayer)
    }
    digest = hashlib.sha256()
    for name, tensor in sorted(plain_state_dict(model).items()):
        if not name.endswith((".lora.A", ".lora.B")):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    about = {"layers": json.dumps(layers, sort_keys=True), "base_sha256": digest.hexdigest()}
    return {"scaling": lora_scaling(model), **about}


def save_lora(model: nn.Module, path: str | Path) -> None:
    """Write the adapter alone, a small fraction of the model, as a safetensors file.

    It says what it belongs to. Raises ``ValueError`` for a model without LoRA layers, and for one
    whose changes are merged.
    """
    check_not_merged(model)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in lora_state_dict(model).items()}
    if not tensors:
        raise ValueError("the model has no LoRA layers: call replace_linear_with_lora first")
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=describe_lora(model))


def load_lora(model: nn.Module, path: str | Path, strict: bool = True) -> None:
    """Read an adapter into a model whose layers have been replaced in the same way.

    Raises ``ValueError``, before anything is changed, if a matrix is missing, superfluous or of
    another shape, if ``alpha`` was another, if the model's changes are merged, and if the adapter
    was trained on another base model or does not say on which; ``strict=False`` takes these two.
    """
    check_not_merged(model)
    tensors, about = read_adapter(path)
    wanted = lora_state_dict(model)
    for name in sorted(tensors.keys() | wanted.keys()):
        given = tuple(tensors[name].shape) if name in tensors else "missing"
        needed = tuple(wanted[name].shape) if name in wanted else "no such layer"
        if given != needed:
            raise ValueError(f"{path}: {name!r} is {given}, the model wants {needed}")
    check_adapter(path, about, describe_lora(model), strict)
    load_plain_state_dict(model, tensors, strict=False)


def check_not_merged(model: nn.Module) -> None:
    """Raise ``ValueError`` if low-rank changes of a model are merged into its weights."""
    if any(isinstance(module, LinearWithLoRA) and module.merged for module in model.modules()):
        raise ValueError("the model's LoRA layers are merged: call unmerge_lora first")


def read_adapter(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The matrices of an adapter, and what it says about itself."""
    try:
        with safe_open(path, framework="pt") as file:
            return load_file(path), file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None


def check_adapter(path: str | Path, about: dict, wanted: dict, strict: bool) -> None:
    """Raise ``ValueError`` if an adapter does not belong to a model that ``describe_lora`` saw."""
    scaling = about.get("scaling")
    if scaling not in (wanted["scaling"], None):
        raise ValueError(f"{path}: alpha / rank is {scaling}, the model's is {wanted['scaling']}")
    if about.get("layers", wanted["layers"]) != wanted["layers"]:
        saved, own = json.loads(about["layers"]), json.loads(wanted["layers"])
        name = next(name for name in own if saved.get(name) != own[name])
        raise ValueError(
            f"{path}: rank and alpha of {name!r} are {saved.get(name)}, the model's {own[name]}"
        )
    if strict and about.get("base_sha256") != wanted["base_sha256"]:
        found = "does not say on which" if "base_sha256" not in about else "says: on another"
        raise ValueError(
            f"{path}: an adapter changes the model that it was trained on, and this one {found} "
            "base model; load the same weights first, or give strict=False to take it all the same"
        )
