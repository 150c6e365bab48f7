"""The cache under the name by which readers import it."""

from llms_from_scratch.kv_cache_batched.rows import RowKVCache as KVCache

__all__ = ["KVCache"]
