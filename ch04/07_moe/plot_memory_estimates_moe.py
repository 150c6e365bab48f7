"""Plot how many weights a token uses, over the number of experts.

Examples:
    python plot_memory_estimates_moe.py --emb_dim 7168 --hidden_dim 14336
    python plot_memory_estimates_moe.py --emb_dim 2048 --hidden_dim 768 --top_k 8 --no_match_dense
"""

import argparse
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from memory_estimator_moe import MATRICES, estimate_params_and_hidden

from llms_from_scratch.app.estimators import plot_lines
from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.cache_memory import check_positive


def calc_moe_active_and_total(
    emb_dim: int,
    hidden_dim: int,
    ffn_type: str,
    num_experts: int,
    top_k: int,
    match_dense: bool = True,
) -> tuple[int, int]:
    """Weights that a token uses, and all weights, of one layer of experts."""
    result = estimate_params_and_hidden(emb_dim, hidden_dim, ffn_type, num_experts, match_dense)
    active = result["router"] + min(top_k, num_experts) * result["per_expert_params"]
    return active, result["moe_total"]


def plot_active_params_vs_experts(
    emb_dim: int,
    hidden_dim: int,
    ffn_type: str = "swiglu",
    top_k: int = 2,
    max_experts: int = 512,
    y_log: bool = True,
    save_path: str | Path | None = None,
    match_dense: bool = True,
) -> None:
    """Curves of the weights that a token uses, of all weights, and of a dense layer."""
    check_positive(top_k=top_k, max_experts=max_experts)
    experts = [2**k for k in range(max_experts.bit_length())]
    experts = [count for count in experts if count >= top_k]
    if not experts:
        raise ValueError(f"max_experts={max_experts} is less than top_k={top_k}")
    both = [
        calc_moe_active_and_total(emb_dim, hidden_dim, ffn_type, count, top_k, match_dense)
        for count in experts
    ]
    dense = estimate_params_and_hidden(emb_dim, hidden_dim, ffn_type, 1)["dense_params"]
    lines = {
        f"used by a token (top {top_k})": [active / 1e6 for active, _ in both],
        "all experts": [total / 1e6 for _, total in both],
        "dense layer": [dense / 1e6] * len(experts),
    }
    title = f"Weights of a layer: emb_dim {emb_dim}, hidden_dim {hidden_dim}, {ffn_type}"
    path = save_path or "ffn_vs_moe.pdf"
    plot_lines(experts, lines, (title, "experts", "million weights"), path, y_log)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--emb_dim", type=int, required=True, help="width of the model")
    parser.add_argument("--hidden_dim", type=int, required=True, help="width inside a layer")
    parser.add_argument("--ffn_type", choices=MATRICES, default="swiglu", help="default: swiglu")
    parser.add_argument("--top_k", type=int, default=2, help="experts per token (default: 2)")
    parser.add_argument("--max_experts", type=int, default=512, help="default: 512")
    parser.add_argument("--no_log", action="store_true", help="a plain scale")
    parser.add_argument("--save", help="the picture to write (default: ffn_vs_moe.pdf)")
    parser.add_argument(
        "--no_match_dense", action="store_true", help="every expert as wide as --hidden_dim"
    )
    args = parser.parse_args()
    with short_errors(parser):
        plot_active_params_vs_experts(
            args.emb_dim,
            args.hidden_dim,
            args.ffn_type,
            args.top_k,
            args.max_experts,
            not args.no_log,
            args.save,
            not args.no_match_dense,
        )


if __name__ == "__main__":
    main()
