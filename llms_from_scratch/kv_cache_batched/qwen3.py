"""Qwen3 for batches: the model of ``qwen3``, called as one that is told each row's position."""

from llms_from_scratch.kv_cache.qwen3 import (
    QWEN3_CONFIG_1_7B,
    QWEN3_CONFIG_4B,
    QWEN3_CONFIG_8B,
    QWEN3_CONFIG_14B,
    QWEN3_CONFIG_30B_A3B,
    QWEN3_CONFIG_32B,
    QWEN_CONFIG_06_B,
    Qwen3Tokenizer,
    download_from_huggingface,
    download_from_huggingface_from_snapshots,
    load_weights_into_qwen,
)
from llms_from_scratch.kv_cache_batched.rows import PositionedQwen3Model as Qwen3Model
from llms_from_scratch.kv_cache_batched.rows import RowKVCache as KVCache

__all__ = [
    "KVCache",
    "QWEN3_CONFIG_14B",
    "QWEN3_CONFIG_1_7B",
    "QWEN3_CONFIG_30B_A3B",
    "QWEN3_CONFIG_32B",
    "QWEN3_CONFIG_4B",
    "QWEN3_CONFIG_8B",
    "QWEN_CONFIG_06_B",
    "Qwen3Model",
    "Qwen3Tokenizer",
    "download_from_huggingface",
    "download_from_huggingface_from_snapshots",
    "load_weights_into_qwen",
]
