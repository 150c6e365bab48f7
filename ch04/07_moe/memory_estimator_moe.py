"""How many weights a mixture of experts has, and how many of them a token uses.

Examples:
    python memory_estimator_moe.py --emb_dim 7168 --hidden_dim 14336 --num_experts 8 --match_dense
    python memory_estimator_moe.py --emb_dim 2048 --hidden_dim 768 --num_experts 128 --top_k 8
"""

import argparse

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.estimators import gb, print_pairs
from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.cache_memory import DTYPE_BYTES, check_positive, convert_bytes

__all__ = ["DTYPE_BYTES", "convert_bytes", "main"]

MATRICES = {"gelu": 2, "swiglu": 3}


def get_num_param_matrices(ffn_type: str) -> int:
    """Weight matrices of a feed-forward layer; ``ValueError`` for an unknown type."""
    if ffn_type not in MATRICES:
        raise ValueError(f"unknown ffn_type {ffn_type!r}; known: {', '.join(MATRICES)}")
    return MATRICES[ffn_type]


def calc_ffn_params(emb_dim: int, hidden_dim: int, ffn_type: str) -> int:
    """Weights of a feed-forward layer, or of an expert."""
    return get_num_param_matrices(ffn_type) * emb_dim * hidden_dim


def calc_router_params(emb_dim: int, num_experts: int) -> int:
    """Weights that score all experts for a token."""
    return emb_dim * num_experts


def estimate_params_and_hidden(
    emb_dim: int, hidden_dim: int, ffn_type: str, num_experts: int, match_dense: bool = False
) -> dict[str, int]:
    """Weights of one dense layer, and of a layer of experts.

    With ``match_dense``, experts are so narrow that all of them have the weights of the dense layer
    (the router's come on top). Raises ``ValueError`` where that leaves nothing of them.
    """
    check_positive(emb_dim=emb_dim, hidden_dim=hidden_dim, num_experts=num_experts)
    dense = calc_ffn_params(emb_dim, hidden_dim, ffn_type)
    router = calc_router_params(emb_dim, num_experts)
    hidden = hidden_dim // num_experts if match_dense else hidden_dim
    if hidden < 1:
        raise ValueError(
            f"{num_experts} experts are too many for hidden_dim {hidden_dim} with match_dense: "
            "nothing would be left for each"
        )
    per_expert = calc_ffn_params(emb_dim, hidden, ffn_type)
    return {
        "dense_params": dense,
        "router": router,
        "moe_hidden_dim": hidden,
        "per_expert_params": per_expert,
        "moe_total": num_experts * per_expert + router,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--emb_dim", type=int, required=True, help="width of the model")
    parser.add_argument("--hidden_dim", type=int, required=True, help="width inside a layer")
    parser.add_argument("--ffn_type", choices=MATRICES, default="swiglu", help="default: swiglu")
    parser.add_argument("--num_experts", type=int, default=8, help="default: 8")
    parser.add_argument("--top_k", type=int, default=2, help="experts per token (default: 2)")
    parser.add_argument("--dtype", choices=DTYPE_BYTES, default="bf16", help="default: bf16")
    parser.add_argument(
        "--match_dense", action="store_true", help="experts as large together as one dense layer"
    )
    args = parser.parse_args()
    with short_errors(parser):
        show(args)


def show(args) -> None:
    if not 1 <= args.top_k <= args.num_experts:
        raise ValueError(
            f"--top_k must be from 1 to --num_experts {args.num_experts}, got {args.top_k}"
        )
    result = estimate_params_and_hidden(
        args.emb_dim, args.hidden_dim, args.ffn_type, args.num_experts, args.match_dense
    )
    active = result["router"] + args.top_k * result["per_expert_params"]

    def line(count: int) -> str:
        return f"{count:,} ({gb(count * DTYPE_BYTES[args.dtype])})"

    print_pairs("Config", [*vars(args).items(), ("moe_hidden_dim", result["moe_hidden_dim"])])
    dense = line(result["dense_params"])
    print_pairs(
        "Model weights (parameters)",
        [
            ("Dense FFN params", dense),
            ("Per-expert params", line(result["per_expert_params"])),
            ("Router params", line(result["router"])),
            ("MoE TOTAL params", line(result["moe_total"])),
            ("MoE ACTIVE/Token", line(active)),
        ],
    )


if __name__ == "__main__":
    main()
