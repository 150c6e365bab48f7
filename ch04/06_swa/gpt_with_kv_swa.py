"""The GPT of chapter 4 with sliding windows: most layers look at the last tokens only.

The model has random weights, in bfloat16. Compare gpt_with_kv_mha.py.

Examples:
    python gpt_with_kv_swa.py --max_new_tokens 2000 --sliding_window_size 256
    python gpt_with_kv_swa.py --emb_dim 64 --n_heads 4 --n_layers 2 \\
        --max_new_tokens 20 --sliding_window_size 8
"""

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.app.variant_scripts import run_variant, variant_parser
from llms_from_scratch.ch04 import GELU, LayerNorm
from llms_from_scratch.gpt_variants import GPTWithSWA as GPTModel
from llms_from_scratch.gpt_variants import MultiHeadAttentionWithSWA
from llms_from_scratch.gpt_variants import VariantBlock as TransformerBlock
from llms_from_scratch.kv_cache.generate import generate_text_simple as generate_text_simple_cached

__all__ = [
    "GELU",
    "GPTModel",
    "LayerNorm",
    "MultiHeadAttentionWithSWA",
    "TransformerBlock",
    "generate_text_simple_cached",
    "main",
]


def main() -> None:
    parser = variant_parser(__doc__)
    parser.add_argument(
        "--sliding_window_size", type=int, default=1024, help="tokens in sight, itself included"
    )
    parser.add_argument(
        "--sliding_window_stride",
        type=int,
        default=2,
        help="layers with a window before each without; 0: none has one, -1: all",
    )
    args = parser.parse_args()
    with short_errors(parser):
        names = ("sliding_window_size", "sliding_window_stride")
        run_variant(GPTModel, args, {name: getattr(args, name) for name in names})


if __name__ == "__main__":
    main()
