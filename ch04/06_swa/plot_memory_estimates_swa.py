"""Plot the cache of sliding windows over the length of the text.

Examples:
    python plot_memory_estimates_swa.py --emb_dim 4096 --n_heads 48 --n_layers 36 \\
        --sliding_window_size 1024 --swa_ratio 5:1
"""

import argparse

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.estimators import CONTEXTS, plot_lines
from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.cache_memory import DTYPE_BYTES, estimate_totals


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--emb_dim", type=int, required=True, help="width of the model")
    parser.add_argument("--n_heads", type=int, required=True, help="query heads of a layer")
    parser.add_argument("--n_layers", type=int, required=True, help="layers")
    parser.add_argument("--batch_size", type=int, default=1, help="texts (default: 1)")
    parser.add_argument("--dtype", choices=DTYPE_BYTES, default="bf16", help="default: bf16")
    parser.add_argument("--sliding_window_size", type=int, required=True, help="tokens in a window")
    parser.add_argument(
        "--swa_ratio", default="5:1", help="layers with a window to those without (default: 5:1)"
    )
    parser.add_argument(
        "--output",
        default="kv_bytes_vs_context_length.pdf",
        help="the picture to write (default: kv_bytes_vs_context_length.pdf)",
    )
    args = parser.parse_args()
    with short_errors(parser):
        plot(args)


def plot(args) -> None:
    names = ("sliding_window_size", "emb_dim", "n_heads", "n_layers", "batch_size", "dtype")
    values = {name: getattr(args, name) for name in (*names, "swa_ratio")}
    groups = max(1, args.n_heads // 4)  # four query heads share keys and values, as an example
    if args.n_heads % groups:
        groups = args.n_heads
    totals = [estimate_totals(length, n_kv_groups=groups, **values) for length in CONTEXTS]
    labels = {
        "total_mha_allfull": "MHA",
        "total_gqa_allfull": f"GQA, {groups} KV heads",
        "total_mixed_mha": f"MHA + SWA ({args.swa_ratio})",
        "total_mixed_gqa": f"GQA, {groups} KV heads + SWA ({args.swa_ratio})",
    }
    lines = {label: [total[key] / 1e9 for total in totals] for key, label in labels.items()}
    if groups == args.n_heads:
        lines = {label: line for label, line in lines.items() if "GQA" not in label}
    title = f"Key-value cache with windows of {args.sliding_window_size} tokens, {args.dtype}"
    plot_lines(CONTEXTS, lines, (title, "context length (tokens)", "GB"), args.output)


if __name__ == "__main__":
    main()
