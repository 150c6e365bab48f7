"""How much smaller the cache of latent attention is, beside multi-head and grouped-query attention.

Examples:
    python memory_estimator_mla.py --context_length 8192 --emb_dim 2048 --n_heads 24 \\
        --n_layers 48 --group_size 4 --latent_dim 1024 --dtype bf16
    python memory_estimator_mla.py --model deepseek-v3 --context_length 131072
    python memory_estimator_mla.py --model list
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
    calc_mla_bytes_total,
    check_positive,
    convert_bytes,
    kv_heads,
    width_of_head,
)

__all__ = ["DTYPE_BYTES", "calc_kv_bytes_total", "calc_mla_bytes_total", "convert_bytes", "main"]


def main() -> None:
    parser = estimator_parser(__doc__)
    add_groups(parser)
    parser.add_argument("--latent_dim", type=int, help="numbers per token and layer")
    parser.add_argument(
        "--rope_dim", type=int, default=0, help="besides, for a rotated key (default: 0)"
    )
    args = parser.parse_args()
    with short_errors(parser):
        if not show_published(args):
            show(args)


def show(args) -> None:
    needed(args, "emb_dim", "n_heads", "n_layers", "latent_dim")
    if args.rope_dim < 0:
        raise ValueError(f"--rope_dim must not be negative, got {args.rope_dim}")
    has_groups = args.n_kv_groups is not None or args.group_size is not None
    groups = kv_heads(args.n_heads, groups_of(args)) if has_groups else None
    names = ("context_length", "emb_dim", "n_heads", "n_layers", "batch_size", "dtype")
    names += ("latent_dim", "rope_dim")
    pairs = [(name, getattr(args, name)) for name in names]
    pairs += [("n_kv_groups", groups)] if groups else []
    print_pairs("Config", [*pairs, ("head_dim", width_of_head(args.emb_dim, args.n_heads))])

    element = DTYPE_BYTES[args.dtype]
    start = (args.batch_size, args.context_length)
    sizes = (args.emb_dim, args.n_heads)
    mha = calc_kv_bytes_total(*start, *sizes, args.n_heads, args.n_layers, element)
    kept = args.latent_dim + args.rope_dim
    check_positive(latent_dim=kept)
    mla = calc_mla_bytes_total(*start, args.n_layers, kept, element)
    pairs = [("MHA total KV cache", gb(mha)), ("MLA total KV cache", gb(mla))]
    pairs += compare("MHA", mha, "MLA", mla)
    if groups:
        gqa = calc_kv_bytes_total(*start, *sizes, groups, args.n_layers, element)
        pairs = [pairs[0], ("GQA total KV cache", gb(gqa)), *pairs[1:]]
        pairs += compare("MHA", mha, "GQA", gqa)
    print_pairs("KV-cache totals across all layers", pairs)


if __name__ == "__main__":
    main()
