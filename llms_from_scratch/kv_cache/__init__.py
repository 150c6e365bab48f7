"""Keep keys and values of earlier tokens, so that each token goes through the model only once.

``simple`` shows the idea in a few lines, with a cache that grows; ``cache`` and ``optimized`` do it
fast, with memory that is allocated once. ``gpt2`` and ``generate`` have the latter under the names
of chapter 4.
"""

from llms_from_scratch.kv_cache.cache import KVCache, left_pad

__all__ = ["KVCache", "left_pad"]
