"""Plot the cache of latent attention over the length of the text.

Examples:
    python plot_memory_estimates_mla.py
    python plot_memory_estimates_mla.py --output mla.png
"""

import argparse
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.estimators import CONTEXTS, plot_lines
from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.cache_memory import DTYPE_BYTES
from llms_from_scratch.cache_memory import calc_kv_bytes_total_mha as mha_bytes
from llms_from_scratch.cache_memory import calc_mla_bytes_total as calc_kv_bytes_total_mla

N_HEADS, EMB_DIM, N_LAYERS, DTYPE = 24, 2048, 48, "bf16"
LATENT_DIMS = (1024, 512, 256, 64)


def convert_bytes_to_gb(n: float) -> float:
    """Bytes as GB, 1000³ of them."""
    return n / 1000**3


def calc_kv_bytes_total_mha(
    batch: int, context_length: int, emb_dim: int, n_heads: int, n_layers: int, bytes_per_elem: int
) -> int:
    """Keys and values of all layers, if each head has its own."""
    return mha_bytes(batch, context_length, emb_dim, n_layers, bytes_per_elem, n_heads)


def plot_abs_kv_vs_context_multiple(
    output: str | Path = "kv_bytes_vs_context_length.pdf",
) -> None:
    """Curves for several widths of the latent vector."""
    element = DTYPE_BYTES[DTYPE]
    mha = [
        calc_kv_bytes_total_mha(1, length, EMB_DIM, N_HEADS, N_LAYERS, element)
        for length in CONTEXTS
    ]
    lines = {"MHA": [convert_bytes_to_gb(n) for n in mha]}
    for latent_dim in LATENT_DIMS:
        mla = [
            calc_kv_bytes_total_mla(1, length, N_LAYERS, latent_dim, element) for length in CONTEXTS
        ]
        name = f"MLA, latent_dim {latent_dim} ({mha[0] / mla[0]:.0f} times smaller)"
        lines[name] = [convert_bytes_to_gb(n) for n in mla]
    title = f"Cache: {N_HEADS} heads, emb_dim {EMB_DIM}, {N_LAYERS} layers, {DTYPE}"
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
        plot_abs_kv_vs_context_multiple(args.output)


if __name__ == "__main__":
    main()
