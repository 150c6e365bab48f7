"""Which model class and names of tensors belong to a ``model_type`` of the hub."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn

from llms_from_scratch.gemma3 import NAMES as GEMMA_NAMES
from llms_from_scratch.gemma3 import Gemma3Model
from llms_from_scratch.gemma4 import NAMES as GEMMA4_NAMES
from llms_from_scratch.gemma4 import Gemma4DenseModel, unused_tensors
from llms_from_scratch.llama3 import NAMES as LLAMA_NAMES
from llms_from_scratch.llama3 import Llama3Model
from llms_from_scratch.olmo3 import NAMES as OLMO_NAMES
from llms_from_scratch.olmo3 import Olmo3Model
from llms_from_scratch.qwen3 import NAMES as QWEN_NAMES
from llms_from_scratch.qwen3 import Qwen3Model, split_experts
from llms_from_scratch.qwen3_5 import UNREAD as UNREAD_BY_QWEN3_5
from llms_from_scratch.qwen3_5 import Qwen3_5Model
from llms_from_scratch.qwen3_5 import names_of as names_of_qwen3_5
from llms_from_scratch.tiny_aya import NAMES as TINY_AYA_NAMES
from llms_from_scratch.tiny_aya import TinyAyaModel
from llms_from_scratch.weights.mapping import load_by_names
from llms_from_scratch.weights.sources import TensorSource
from llms_from_scratch.weights.text_models import text_model_of


@dataclass(frozen=True)
class Architecture:
    """One row of the table: what is needed to make a model of a ``model_type``."""

    model_class: type[nn.Module]
    names: dict[str, str] | Callable[[dict], dict[str, str]]  # of tensors, ours: the hub's
    prepare: Callable[[TensorSource, dict], TensorSource] = lambda source, cfg: source

    def names_of(self, model: nn.Module) -> dict[str, str]:
        """The table for one model; it may depend on the configuration."""
        return self.names(model.cfg) if callable(self.names) else self.names


ARCHITECTURES = {
    "llama": Architecture(Llama3Model, LLAMA_NAMES),
    "qwen3": Architecture(Qwen3Model, QWEN_NAMES),
    "qwen3_moe": Architecture(Qwen3Model, QWEN_NAMES, lambda source, cfg: split_experts(source)),
    "gemma3_text": Architecture(Gemma3Model, GEMMA_NAMES),
    "olmo3": Architecture(Olmo3Model, OLMO_NAMES),
    "gemma4_text": Architecture(
        Gemma4DenseModel,
        GEMMA4_NAMES,
        lambda source, cfg: text_model_of(source, unused_tensors(cfg)),
    ),
    "cohere2": Architecture(TinyAyaModel, TINY_AYA_NAMES),
    "qwen3_5_text": Architecture(
        Qwen3_5Model,
        names_of_qwen3_5,
        lambda source, cfg: text_model_of(source, UNREAD_BY_QWEN3_5),
    ),
}


def model_from_config(model_type: str, cfg: dict, source: TensorSource) -> nn.Module:
    """A model with the tensors of a source; it never has memory that is not filled by them."""
    architecture = ARCHITECTURES[model_type]
    try:
        with torch.device("meta"):
            model = architecture.model_class(cfg)
    except ValueError as error:
        raise ValueError(f"{source.description}: {error}") from None
    load_by_names(model, architecture.prepare(source, cfg), architecture.names_of(model))
    return model.eval()
