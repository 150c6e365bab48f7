"""The GPT of chapter 4 with multi-head attention and a cache, to compare with.

The model has random weights, in bfloat16; what it writes means nothing, its speed and memory do.

Examples:
    python gpt_with_kv_mha.py                   # the book's size, 200 tokens
    python gpt_with_kv_mha.py --emb_dim 64 --n_heads 4 --n_layers 2 --max_new_tokens 20
"""

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.app.variant_scripts import run_variant, variant_parser
from llms_from_scratch.ch04 import GELU, LayerNorm
from llms_from_scratch.gpt_variants import GPTWithMHA as GPTModel
from llms_from_scratch.gpt_variants import MultiHeadAttention
from llms_from_scratch.gpt_variants import VariantBlock as TransformerBlock
from llms_from_scratch.kv_cache.generate import generate_text_simple as generate_text_simple_cached

__all__ = [
    "GELU",
    "GPTModel",
    "LayerNorm",
    "MultiHeadAttention",
    "TransformerBlock",
    "generate_text_simple_cached",
    "main",
]


def main() -> None:
    parser = variant_parser(__doc__)
    args = parser.parse_args()
    with short_errors(parser):
        run_variant(GPTModel, args)


if __name__ == "__main__":
    main()
