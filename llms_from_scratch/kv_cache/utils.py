"""The cache under the name by which readers import it."""

from llms_from_scratch.kv_cache.cache import KVCache

__all__ = ["KVCache"]
