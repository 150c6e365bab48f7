"""GPT-2 with a cache, under the names of chapter 4: to use it, change one import.

>>> from llms_from_scratch.kv_cache.generate import generate_text_simple
>>> from llms_from_scratch.kv_cache.gpt2 import GPTModel
"""

from llms_from_scratch.ch04 import GELU, FeedForward, LayerNorm
from llms_from_scratch.kv_cache.cache import KVCache
from llms_from_scratch.kv_cache.optimized import CachedGPTModel as GPTModel
from llms_from_scratch.kv_cache.optimized import CachedMultiHeadAttention as MultiHeadAttention
from llms_from_scratch.kv_cache.optimized import CachedTransformerBlock as TransformerBlock

__all__ = [
    "FeedForward",
    "GELU",
    "GPTModel",
    "KVCache",
    "LayerNorm",
    "MultiHeadAttention",
    "TransformerBlock",
]
