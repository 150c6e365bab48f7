"""Plot the cache of grouped-query attention over the length of the text.

Examples:
    python plot_memory_estimates_gqa.py
    python plot_memory_estimates_gqa.py --output gqa.png
"""

import argparse
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.estimators import CONTEXTS, plot_lines
from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.cache_memory import calc_kv_bytes_total

N_HEADS, EMB_DIM, N_LAYERS, BYTES = 24, 2048, 48, 2  # bf16
KV_HEADS = (24, 6, 3, 2, 1)  # groups of 1, 4, 8, 12 and 24 query heads


def bytes_convert(n: float) -> float:
    """Bytes as GB, 1000³ of them."""
    return n / 1000**3


def savings_percent(total_mha: float, total_gqa: float) -> float:
    """How much less the second is, in percent of the first."""
    return (1 - total_gqa / total_mha) * 100


def plot_abs_kv_vs_context_multi_groups(
    output: str | Path = "kv_bytes_vs_context_length.pdf",
) -> None:
    """Curves for several numbers of heads of keys and values; prints what they save."""

    def total(length: int, heads: int) -> int:
        return calc_kv_bytes_total(1, length, EMB_DIM, N_HEADS, heads, N_LAYERS, BYTES)

    lines = {}
    for heads in KV_HEADS:
        saved = savings_percent(total(1, N_HEADS), total(1, heads))
        name = "MHA" if heads == N_HEADS else f"GQA, {heads} KV heads (saves {saved:.0f} %)"
        lines[name] = [bytes_convert(total(length, heads)) for length in CONTEXTS]
    title = f"Key-value cache: {N_HEADS} heads, emb_dim {EMB_DIM}, {N_LAYERS} layers, bf16"
    plot_lines(CONTEXTS, lines, (title, "context length (tokens)", "GB"), output)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        default="kv_bytes_vs_context_length.pdf",
        help="the picture to write (default: kv_bytes_vs_context_length.pdf)",
    )
    args = parser.parse_args()
    with short_errors(parser):
        plot_abs_kv_vs_context_multi_groups(args.output)


if __name__ == "__main__":
    main()
