"""The GPT of chapter 4 with the simplest cache: keys and values in tensors that grow.

It prints the same text as gpt_ch04.py, sooner. The classes are in
llms_from_scratch/kv_cache/simple.py, which is there to be read.

Examples:
    python gpt_with_kv_cache.py                     # the book's model, 200 tokens
    python gpt_with_kv_cache.py --preset tiny       # a very small GPT: done in seconds
"""

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from gpt_ch04 import main, parse_args

from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.kv_cache.simple import GrowingCacheAttention as MultiHeadAttention
from llms_from_scratch.kv_cache.simple import GrowingCacheBlock as TransformerBlock
from llms_from_scratch.kv_cache.simple import GrowingCacheGPT as GPTModel
from llms_from_scratch.kv_cache.simple import generate_text_simple_cached

__all__ = [
    "GPTModel",
    "MultiHeadAttention",
    "TransformerBlock",
    "generate_text_simple_cached",
    "main",
]

if __name__ == "__main__":
    parser, options = parse_args(__doc__)
    with short_errors(parser):
        main(GPTModel, generate_text_simple_cached, **options)
