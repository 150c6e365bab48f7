"""Appendix E: low-rank adaptation (LoRA), finetuning with few trainable parameters.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021).
"""

import math
from pathlib import Path

import torch
import torch.nn as nn
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.saving import load_plain_state_dict, plain_state_dict


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
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as nn.Linear starts
        self.B = nn.Parameter(torch.zeros(rank, out_dim))
        self.dropout = nn.Dropout(dropout)
        self.scaling = alpha / rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scaling * (self.dropout(x) @ self.A @ self.B)  # (..., out_dim)


class LinearWithLoRA(nn.Module):
    """A linear layer and, added to it, its low-rank change (section E.4).

    Input (..., in_features), output (..., out_features). ``merge`` adds the change to the layer's
    own weight, so that it costs no time any more; ``unmerge`` takes it out again.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        self.linear = linear
        self.lora = LoRALayer(linear.in_features, linear.out_features, rank, alpha, dropout)
        self.lora.to(linear.weight)  # same device, same precision
        self.merged = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) if self.merged else self.linear(x) + self.lora(x)

    def merge(self) -> None:
        if not self.merged:
            self._add_to_weight(+1)

    def unmerge(self) -> None:
        if self.merged:
            self._add_to_weight(-1)

    def _add_to_weight(self, sign: int) -> None:
        with torch.no_grad():
            change = self.lora.scaling * (self.lora.A @ self.lora.B)  # (in_features, out_features)
            self.linear.weight += sign * change.T
        self.merged = not self.merged


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
    """Merge all low-rank changes of a model into its weights; ``unmerge_lora`` undoes it."""
    for module in model.modules():
        if isinstance(module, LinearWithLoRA):
            module.merge()


def unmerge_lora(model: nn.Module) -> None:
    """Take all merged changes out of the weights again, so that they can be trained further."""
    for module in model.modules():
        if isinstance(module, LinearWithLoRA):
            module.unmerge()


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


def save_lora(model: nn.Module, path: str | Path) -> None:
    """Write the adapter alone, a small fraction of the model, as a safetensors file."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in lora_state_dict(model).items()}
    if not tensors:
        raise ValueError("the model has no LoRA layers: call replace_linear_with_lora first")
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"scaling": lora_scaling(model)})


def load_lora(model: nn.Module, path: str | Path) -> None:
    """Read an adapter into a model whose layers have been replaced in the same way.

    Raises ``ValueError``, before anything is changed, if a matrix is missing, superfluous or of
    another shape, if ``alpha`` was another, or if the model's changes are merged.
    """
    if any(isinstance(module, LinearWithLoRA) and module.merged for module in model.modules()):
        raise ValueError("the model's LoRA layers are merged: call unmerge_lora first")
    tensors, wanted = load_file(path), lora_state_dict(model)
    for name in sorted(tensors.keys() | wanted.keys()):
        given = tuple(tensors[name].shape) if name in tensors else "missing"
        needed = tuple(wanted[name].shape) if name in wanted else "no such layer"
        if given != needed:
            raise ValueError(f"{path}: {name!r} is {given}, the model wants {needed}")
    with safe_open(path, framework="pt") as file:
        scaling = (file.metadata() or {}).get("scaling", lora_scaling(model))
    if scaling != lora_scaling(model):
        raise ValueError(f"{path}: alpha / rank is {scaling}, the model's is {lora_scaling(model)}")
    load_plain_state_dict(model, tensors, strict=False)
