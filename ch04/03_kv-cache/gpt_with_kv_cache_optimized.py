"""The GPT of chapter 4 with a cache that is allocated once, and with PyTorch's fused attention.

It prints the same text as gpt_ch04.py, sooner still. The classes are in
llms_from_scratch/kv_cache/optimized.py and llms_from_scratch/kv_cache/cache.py.

Examples:
    python gpt_with_kv_cache_optimized.py                  # the book's model, 200 tokens
    python gpt_with_kv_cache_optimized.py --preset tiny    # a very small GPT: done in seconds
"""

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from gpt_ch04 import main, parse_args

from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.kv_cache.generate import generate_text_simple as generate_text_simple_cached
from llms_from_scratch.kv_cache.gpt2 import GPTModel, MultiHeadAttention, TransformerBlock

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
