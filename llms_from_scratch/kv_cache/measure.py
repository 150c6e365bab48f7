"""What a model keeps of a text, counted on a model that has no memory at all."""

from collections.abc import Callable

import torch
import torch.nn as nn

from llms_from_scratch.kv_cache.cache import KVCache


@torch.no_grad()
def kept_bytes(make_model: Callable[[], nn.Module], num_tokens: int) -> int:
    """Bytes that a cache holds of one text of so many tokens, in whatever its layers keep.

    ``make_model`` is called, and its model run, on PyTorch's ``meta`` device, where tensors have
    shapes but no memory: any size runs on any machine. Room that a cache reserves for further
    tokens is not counted.

    >>> from llms_from_scratch.gemma3 import GEMMA3_CONFIG_270M, Gemma3Model
    >>> kept_bytes(lambda: Gemma3Model(GEMMA3_CONFIG_270M), 100)
    1843200
    """
    with torch.device("meta"):
        model = make_model()
        cache = KVCache.for_model(model)
        model(torch.zeros(1, num_tokens, dtype=torch.long), cache=cache)
    return sum(nbytes(state) for state in cache.get_all())


def nbytes(state) -> int:
    """Bytes of a tensor, or of all tensors in a tuple of them."""
    return state.nbytes if isinstance(state, torch.Tensor) else sum(map(nbytes, state))
