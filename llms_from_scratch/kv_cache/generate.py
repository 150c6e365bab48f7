"""Generation with a cache, under the names of chapter 4: whole texts, or token by token."""

from llms_from_scratch.kv_cache.optimized import generate_text_cached as generate_text_simple
from llms_from_scratch.kv_cache.optimized import generate_text_simple_stream

__all__ = ["generate_text_simple", "generate_text_simple_stream"]
