"""The GPT of chapter 4 with the gated delta rule: a memory that does not grow.

The model has random weights, in bfloat16; one layer of --full_attention_every has gated attention.

Examples:
    python gpt_with_kv_deltanet.py
    python gpt_with_kv_deltanet.py --emb_dim 64 --n_heads 4 --n_layers 2 --max_new_tokens 20
"""

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.app.variant_scripts import run_variant, variant_parser
from llms_from_scratch.ch04 import GELU, LayerNorm
from llms_from_scratch.gpt_variants import GatedDeltaNet, GatedMultiHeadAttention
from llms_from_scratch.gpt_variants import GPTWithDeltaNet as GPTModel
from llms_from_scratch.gpt_variants import VariantBlock as TransformerBlock
from llms_from_scratch.kv_cache.generate import generate_text_simple as generate_text_simple_cached

__all__ = [
    "GELU",
    "GPTModel",
    "GatedDeltaNet",
    "GatedMultiHeadAttention",
    "LayerNorm",
    "TransformerBlock",
    "generate_text_simple_cached",
    "main",
]


def main() -> None:
    parser = variant_parser(__doc__)
    parser.add_argument(
        "--full_attention_every", type=int, default=4, help="layers; 0: none has attention"
    )
    args = parser.parse_args()
    with short_errors(parser):
        every = args.full_attention_every or None
        run_variant(GPTModel, args, {"full_attention_every": every})


if __name__ == "__main__":
    main()
