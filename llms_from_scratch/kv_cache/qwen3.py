"""Qwen3 with a cache, dense or with experts: it is the model of ``qwen3`` itself.

>>> from llms_from_scratch.kv_cache.generate import generate_text_simple
>>> from llms_from_scratch.kv_cache.qwen3 import QWEN_CONFIG_06_B, Qwen3Model
"""

from llms_from_scratch.kv_cache.cache import KVCache
from llms_from_scratch.qwen3 import (
    QWEN3_CONFIG_1_7B,
    QWEN3_CONFIG_4B,
    QWEN3_CONFIG_8B,
    QWEN3_CONFIG_14B,
    QWEN3_CONFIG_30B_A3B,
    QWEN3_CONFIG_32B,
    QWEN_CONFIG_06_B,
    FeedForward,
    GroupedQueryAttention,
    MoEFeedForward,
    Qwen3Model,
    Qwen3Tokenizer,
    RMSNorm,
    TransformerBlock,
    apply_rope,
    compute_rope_params,
    download_from_huggingface,
    download_from_huggingface_from_snapshots,
    load_weights_into_qwen,
)

__all__ = [
    "FeedForward",
    "GroupedQueryAttention",
    "KVCache",
    "MoEFeedForward",
    "QWEN3_CONFIG_14B",
    "QWEN3_CONFIG_1_7B",
    "QWEN3_CONFIG_30B_A3B",
    "QWEN3_CONFIG_32B",
    "QWEN3_CONFIG_4B",
    "QWEN3_CONFIG_8B",
    "QWEN_CONFIG_06_B",
    "Qwen3Model",
    "Qwen3Tokenizer",
    "RMSNorm",
    "TransformerBlock",
    "apply_rope",
    "compute_rope_params",
    "download_from_huggingface",
    "download_from_huggingface_from_snapshots",
    "load_weights_into_qwen",
]
