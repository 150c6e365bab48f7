"""Batches with a cache, under the names of code that keeps one cache for each row.

Here ``KVCache`` holds all rows; prompts of unequal length are padded on the left, see ``left_pad``.
"""

from llms_from_scratch.kv_cache.cache import left_pad
from llms_from_scratch.kv_cache_batched.utils import KVCache

__all__ = ["KVCache", "left_pad"]
