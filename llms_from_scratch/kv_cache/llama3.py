"""Llama 3 with a cache, beside the GPT-2 of this folder: it is the model of ``llama3`` itself.

>>> from llms_from_scratch.kv_cache.generate import generate_text_simple
>>> from llms_from_scratch.kv_cache.llama3 import LLAMA32_CONFIG_1B, Llama3Model
"""

from llms_from_scratch.kv_cache.cache import KVCache
from llms_from_scratch.llama3 import (
    LLAMA32_CONFIG_1B,
    LLAMA32_CONFIG_3B,
    ChatFormat,
    FeedForward,
    GroupedQueryAttention,
    GroupedQueryAttentionFast,
    Llama3Model,
    Llama3ModelFast,
    Llama3Tokenizer,
    TransformerBlock,
    TransformerBlockFast,
    apply_rope,
    clean_text,
    compute_rope_params,
    load_weights_into_llama,
)

__all__ = [
    "ChatFormat",
    "FeedForward",
    "GroupedQueryAttention",
    "GroupedQueryAttentionFast",
    "KVCache",
    "LLAMA32_CONFIG_1B",
    "LLAMA32_CONFIG_3B",
    "Llama3Model",
    "Llama3ModelFast",
    "Llama3Tokenizer",
    "TransformerBlock",
    "TransformerBlockFast",
    "apply_rope",
    "clean_text",
    "compute_rope_params",
    "load_weights_into_llama",
]
