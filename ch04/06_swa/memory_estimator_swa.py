"""How much smaller the cache is where layers with a sliding window and others take turns.

Examples:
    python memory_estimator_swa.py --context_length 32768 --emb_dim 4096 --n_heads 32 \\
        --n_layers 32 --group_size 4 --sliding_window_size 1024 --swa_ratio 5:1 --dtype bf16
    python memory_estimator_swa.py --model gemma-3-27b --context_length 131072
    python memory_estimator_swa.py --model list
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
    calc_kv_bytes_per_layer,
    convert_bytes,
    distribute_layers,
    estimate_totals,
    parse_ratio,
)

__all__ = [
    "DTYPE_BYTES",
    "calc_kv_bytes_per_layer",
    "convert_bytes",
    "distribute_layers",
    "estimate_totals",
    "main",
    "parse_ratio",
]


def main() -> None:
    parser = estimator_parser(__doc__)
    add_groups(parser)
    parser.add_argument("--sliding_window_size", type=int, help="tokens in a window")
    parser.add_argument(
        "--swa_ratio", default="1:0", help="layers with a window to those without (default: 1:0)"
    )
    args = parser.parse_args()
    with short_errors(parser):
        if not show_published(args):
            show(args)


def show(args) -> None:
    needed(args, "emb_dim", "n_heads", "n_layers", "sliding_window_size")
    names = ("context_length", "sliding_window_size", "emb_dim", "n_heads", "n_layers")
    values = {name: getattr(args, name) for name in (*names, "batch_size", "dtype", "swa_ratio")}
    totals = estimate_totals(n_kv_groups=groups_of(args), **values)
    shown = (
        "bytes_per_elem",
        "head_dim",
        "n_kv_heads_gqa",
        "eff_W",
        "n_swa_layers",
        "n_full_layers",
    )
    print_pairs("Config", [*values.items(), *((name, totals[name]) for name in shown)])
    mha, gqa = totals["total_mha_allfull"], totals["total_gqa_allfull"]
    mixed_mha, mixed_gqa = totals["total_mixed_mha"], totals["total_mixed_gqa"]
    pairs = [
        ("MHA KV total", gb(mha)),
        ("GQA KV total", gb(gqa)),
        (f"MHA + SWA (Ratio: {args.swa_ratio})", gb(mixed_mha)),
        (f"GQA + SWA (Ratio: {args.swa_ratio})", gb(mixed_gqa)),
        *compare("MHA", mha, "MHA + SWA", mixed_mha),
        *compare("GQA", gqa, "GQA + SWA", mixed_gqa),
    ]
    print_pairs("KV-cache totals across all layers", pairs)


if __name__ == "__main__":
    main()
