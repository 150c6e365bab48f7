"""The GPT of chapter 4 with a mixture of experts: each token uses a few of many.

The model has random weights, in bfloat16. Compare gpt_with_kv_ffn.py.

Examples:
    python gpt_with_kv_moe.py --hidden_dim 768 --num_experts 8
    python gpt_with_kv_moe.py --emb_dim 64 --n_heads 4 --n_layers 2 \\
        --max_new_tokens 20 --hidden_dim 96 --num_experts 4
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
from llms_from_scratch.gpt_variants import GPTWithMoE as GPTModel
from llms_from_scratch.gpt_variants import MoEFeedForward
from llms_from_scratch.gpt_variants import VariantBlock as TransformerBlock
from llms_from_scratch.kv_cache.generate import generate_text_simple as generate_text_simple_cached

__all__ = [
    "GELU",
    "GPTModel",
    "LayerNorm",
    "MOE_FF_MEM_BYTES",
    "MOE_FF_TIME_MS",
    "MoEFeedForward",
    "TransformerBlock",
    "generate_text_simple_cached",
    "main",
]

MOE_FF_TIME_MS: list[float] = []  # of each call of a feed-forward layer
MOE_FF_MEM_BYTES: list[int] = []  # the most that it allocated, on a GPU


def main() -> None:
    parser = variant_parser(__doc__)
    parser.add_argument("--hidden_dim", type=int, default=3072, help="width inside an expert")
    parser.add_argument("--num_experts", type=int, default=0, help="0: chapter 4's layer")
    parser.add_argument("--num_experts_per_tok", type=int, default=2, help="that answer a token")
    parser.add_argument("--no_kv_cache", action="store_true", help="compute all anew each time")
    args = parser.parse_args()
    with short_errors(parser):
        names = ("hidden_dim", "num_experts", "num_experts_per_tok")
        extra = {name: getattr(args, name) for name in names}
        prepare = measure_layers(MOE_FF_TIME_MS, MOE_FF_MEM_BYTES)
        run_variant(GPTModel, args, extra, prepare, not args.no_kv_cache)
        print_layers(MOE_FF_TIME_MS, MOE_FF_MEM_BYTES)


if __name__ == "__main__":
    main()
