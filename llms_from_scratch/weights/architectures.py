"""Which model class, names of tensors and form of conversation belong to a ``model_type``."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn

from llms_from_scratch import gemma3, llama3, olmo3, qwen3
from llms_from_scratch.weights.chat_formats import (
    ChatFormat,
    GemmaFormat,
    OlmoFormat,
    QwenFormat,
    TurnFormat,
)
from llms_from_scratch.weights.mapping import load_by_names
from llms_from_scratch.weights.sources import TensorSource


@dataclass(frozen=True)
class Architecture:
    """One row of the table: what is needed to make a model of a ``model_type`` and talk to it."""

    model_class: type[nn.Module]
    names: dict[str, str]  # of tensors, ours: the hub's
    chat_format: type[TurnFormat]
    prepare: Callable[[TensorSource], TensorSource] = lambda source: source


ARCHITECTURES = {
    "llama": Architecture(llama3.Llama3Model, llama3.NAMES, ChatFormat),
    "qwen3": Architecture(qwen3.Qwen3Model, qwen3.NAMES, QwenFormat),
    "qwen3_moe": Architecture(qwen3.Qwen3Model, qwen3.NAMES, QwenFormat, qwen3.split_experts),
    "gemma3_text": Architecture(gemma3.Gemma3Model, gemma3.NAMES, GemmaFormat),
    "olmo3": Architecture(olmo3.Olmo3Model, olmo3.NAMES, OlmoFormat),
}


def model_from_config(model_type: str, cfg: dict, source: TensorSource) -> nn.Module:
    """A model with the tensors of a source; it never has memory that is not filled by them."""
    architecture = ARCHITECTURES[model_type]
    with torch.device("meta"):
        model = architecture.model_class(cfg)
    load_by_names(model, architecture.prepare(source), architecture.names)
    return model.eval()
