"""How large a model is, counted without making it: on the meta device, tensors have shapes only.

with torch.device("meta"):
    model = Llama3Model(LLAMA3_CONFIG_8B)
count_unique_parameters(model)  # 8,030,261,248, in a moment and no memory
"""

import torch
import torch.nn as nn


def count_unique_parameters(model: nn.Module) -> int:
    """Numbers that a model learns; a tensor that two layers share is counted once.

    >>> layer = nn.Linear(2, 3, bias=False)
    >>> count_unique_parameters(nn.Sequential(layer, nn.ReLU(), layer))
    6
    """
    return sum(parameter.numel() for parameter in model.parameters())


def calc_model_memory_size(model: nn.Module, input_dtype: torch.dtype = torch.float32) -> float:
    """GiB for parameters, one gradient for each trainable one, and buffers, in ``input_dtype``.

    Activations and the optimizer's state (twice the parameters for AdamW) come on top.

    >>> calc_model_memory_size(nn.Linear(1024, 1024, bias=False))  # 2 * 4 MiB
    0.0078125
    """
    parameters = list(model.parameters())
    gradients = [parameter for parameter in parameters if parameter.requires_grad]
    tensors = [*parameters, *gradients, *model.buffers()]
    return sum(tensor.numel() for tensor in tensors) * input_dtype.itemsize / 1024**3
