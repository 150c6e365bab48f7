"""Plot the memory of the gated delta rule beside a cache of keys and values that grows.

Examples:
    python plot_memory_estimates_gated_deltanet.py
    python plot_memory_estimates_gated_deltanet.py --emb_dim 4096 --n_heads 32 --max_ctx 1048576
"""

import argparse

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.estimators import plot_lines
from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.cache_memory import (
    DTYPE_BYTES,
    calc_kv_bytes_total_deltanet_no_conv,
    calc_kv_bytes_total_mha,
    check_positive,
    distribute_layers,
)

__all__ = [
    "calc_kv_bytes_total_deltanet_no_conv",
    "calc_kv_bytes_total_mha",
    "convert_to_gb",
    "main",
]


def convert_to_gb(x: float) -> float:
    """Bytes as GB, 1000³ of them."""
    return x / 1000**3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=1, help="texts (default: 1)")
    parser.add_argument("--emb_dim", type=int, default=2048, help="default: 2048")
    parser.add_argument("--n_heads", type=int, default=16, help="default: 16")
    parser.add_argument("--n_layers", type=int, default=48, help="default: 48")
    parser.add_argument("--dtype", choices=DTYPE_BYTES, default="bf16", help="default: bf16")
    parser.add_argument("--min_ctx", type=int, default=128, help="default: 128")
    parser.add_argument("--max_ctx", type=int, default=131_072, help="default: 131072")
    parser.add_argument(
        "--output",
        default="deltanet_memory_plot.pdf",
        help="the picture to write (default: deltanet_memory_plot.pdf)",
    )
    args = parser.parse_args()
    with short_errors(parser):
        plot(args)


def plot(args) -> None:
    names = ("batch", "emb_dim", "n_heads", "n_layers", "min_ctx")
    check_positive(**{f"--{name}": getattr(args, name) for name in names})
    if args.max_ctx <= args.min_ctx:
        raise ValueError(f"--max_ctx {args.max_ctx} must be more than --min_ctx {args.min_ctx}")
    contexts = [args.min_ctx]
    while contexts[-1] < args.max_ctx:
        contexts.append(min(2 * contexts[-1], args.max_ctx))
    element = DTYPE_BYTES[args.dtype]

    def attention(length: int, layers: int) -> int:
        return calc_kv_bytes_total_mha(
            args.batch, length, args.emb_dim, layers, element, args.n_heads
        )

    def memory(layers: int) -> int:
        return calc_kv_bytes_total_deltanet_no_conv(
            args.batch, args.emb_dim, layers, element, args.n_heads
        )

    delta, full = distribute_layers(args.n_layers, 3, 1)
    mixed = [attention(length, full) + memory(delta) for length in contexts]
    lines = {
        "attention in all layers": [attention(length, args.n_layers) for length in contexts],
        "three layers with the delta rule to one with attention": mixed,
        "delta rule in all layers": [memory(args.n_layers)] * len(contexts),
    }
    lines = {name: [convert_to_gb(n) for n in line] for name, line in lines.items()}
    title = f"Memory of {args.n_layers} layers: {args.n_heads} heads, emb_dim {args.emb_dim}"
    labels = (f"{title}, {args.dtype}", "context length (tokens)", "GB")
    plot_lines(contexts, lines, labels, args.output)


if __name__ == "__main__":
    main()
