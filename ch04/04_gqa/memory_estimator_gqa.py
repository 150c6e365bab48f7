"""How much smaller the cache of grouped-query attention is.

Examples:
    python memory_estimator_gqa.py --context_length 32768 --emb_dim 4096 --n_heads 32 \\
        --n_layers 32 --group_size 4 --dtype bf16
    python memory_estimator_gqa.py --model llama-3.1-8b --context_length 131072
    python memory_estimator_gqa.py --model list
"""

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.estimators import (
    add_groups,
    compare,
    estimator_parser,
    gb,
    groups_of,
    needed,
    print_pairs,
    show_published,
)
from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.cache_memory import (
    DTYPE_BYTES,
    calc_kv_bytes_total,
    convert_bytes,
    kv_heads,
    width_of_head,
)

__all__ = ["DTYPE_BYTES", "calc_kv_bytes_total", "convert_bytes", "main"]


def main() -> None:
    parser = estimator_parser(__doc__)
    add_groups(parser)
    args = parser.parse_args()
    with short_errors(parser):
        if not show_published(args):
            show(args)


def show(args) -> None:
    needed(args, "emb_dim", "n_heads", "n_layers")
    groups = kv_heads(args.n_heads, groups_of(args))
    names = ("context_length", "emb_dim", "n_heads", "n_layers", "batch_size", "dtype")
    pairs = [(name, getattr(args, name)) for name in names]
    pairs += [("n_kv_groups", groups), ("group_size", args.n_heads // groups)]
    print_pairs("Config", [*pairs, ("head_dim", width_of_head(args.emb_dim, args.n_heads))])

    def total(heads: int) -> int:
        sizes = (args.emb_dim, args.n_heads, heads, args.n_layers, DTYPE_BYTES[args.dtype])
        return calc_kv_bytes_total(args.batch_size, args.context_length, *sizes)

    mha, gqa = total(args.n_heads), total(groups)
    pairs = [("MHA total KV cache", gb(mha)), ("GQA total KV cache", gb(gqa))]
    print_pairs("KV-cache totals across all layers", [*pairs, *compare("MHA", mha, "GQA", gqa)])


if __name__ == "__main__":
    main()
