"""The GPT of chapter 4 with one gated feed-forward layer (SwiGLU) for all tokens.

The model has random weights, in bfloat16. Compare gpt_with_kv_moe.py.

Examples:
    python gpt_with_kv_ffn.py
    python gpt_with_kv_ffn.py --emb_dim 64 --n_heads 4 --n_layers 2 \\
        --max_new_tokens 20 --hidden_dim 96
"""

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.app.variant_scripts import (
    measure_layers,
    print_layers,
    run_variant,
    variant_parser,
)
from llms_from_scratch.ch04 import GELU, LayerNorm
from llms_from_scratch.gpt_variants import FeedForward
from llms_from_scratch.gpt_variants import GPTWithFFN as GPTModel
from llms_from_scratch.gpt_variants import VariantBlock as TransformerBlock
from llms_from_scratch.kv_cache.generate import generate_text_simple as generate_text_simple_cached

__all__ = [
    "FFN_MEM_BYTES",
    "FFN_TIME_MS",
    "FeedForward",
    "GELU",
    "GPTModel",
    "LayerNorm",
    "TransformerBlock",
    "generate_text_simple_cached",
    "main",
]

FFN_TIME_MS: list[float] = []  # of each call of a feed-forward layer
FFN_MEM_BYTES: list[int] = []  # the most that it allocated, on a GPU


def main() -> None:
    parser = variant_parser(__doc__)
    parser.add_argument("--hidden_dim", type=int, default=3072, help="width inside a layer")
    parser.add_argument("--no_kv_cache", action="store_true", help="compute all anew each time")
    args = parser.parse_args()
    with short_errors(parser):
        prepare = measure_layers(FFN_TIME_MS, FFN_MEM_BYTES)
        run_variant(GPTModel, args, {"hidden_dim": args.hidden_dim}, prepare, not args.no_kv_cache)
        print_layers(FFN_TIME_MS, FFN_MEM_BYTES)


if __name__ == "__main__":
    main()
