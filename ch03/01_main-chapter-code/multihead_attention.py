"""Check multi-head attention, at any size: against PyTorch's own, and for causality.

Examples:
    python multihead_attention.py                     # the sizes of the smallest GPT-2
    python multihead_attention.py --num-heads 1       # as many parameters, one wide head
    python multihead_attention.py --d-in 3 --d-out 2 --num-heads 2 --num-tokens 6
"""

import argparse
import sys

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch

from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.ch03 import MultiHeadAttention, PyTorchMultiHeadAttention

MOST_BYTES = 1e9  # of one matrix of attention scores; a few of them are held at a time
TOLERANCE = 1e-5  # rounding of 32-bit numbers stays well below, for outputs around 1


def main(
    batch_size: int, num_tokens: int, d_in: int, d_out: int, num_heads: int, seed: int = 123
) -> bool:
    """Print shapes, parameters and differences; return whether both checks passed."""
    check_sizes(batch_size, num_tokens, d_in, d_out, num_heads)
    torch.manual_seed(seed)
    ours = MultiHeadAttention(d_in, d_out, num_tokens, dropout=0.0, num_heads=num_heads)
    theirs = PyTorchMultiHeadAttention(d_in, d_out, num_heads)
    copy_weights(ours, theirs)
    x = torch.randn(batch_size, num_tokens, d_in)

    with torch.inference_mode():
        output = ours(x)
        difference = (output - theirs(x)).abs().max().item()
        leak = change_of_earlier_outputs(ours, x, output)

    print(f"input       {tuple(x.shape)} = (batch_size, num_tokens, d_in)")
    print(f"output      {tuple(output.shape)} = (batch_size, num_tokens, d_out)")
    print(f"heads       {num_heads} of width {ours.head_dim}")
    print(f"parameters  {count_parameters(ours):,} (PyTorch's: {count_parameters(theirs):,})")
    print(f"largest difference from PyTorch's attention: {difference:.1e}")
    print(f"largest change of earlier outputs with another last token: {leak:.1e}")
    return difference < TOLERANCE and leak < TOLERANCE


def check_sizes(batch_size: int, num_tokens: int, d_in: int, d_out: int, num_heads: int) -> None:
    """Raise ``ValueError`` for sizes with which there is nothing to compute or to compare."""
    sizes = {"batch-size": batch_size, "d-in": d_in, "d-out": d_out, "num-heads": num_heads}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"--{name} must be at least 1, got {size}")
    if num_tokens < 2:
        raise ValueError(
            f"--num-tokens must be at least 2, got {num_tokens}: the causality check compares the "
            "tokens before the last one"
        )
    scores = 4 * batch_size * num_heads * num_tokens**2  # bytes: a number for each pair of tokens
    if scores > MOST_BYTES:
        raise ValueError(
            f"the attention scores, --batch-size x --num-heads x --num-tokens squared, take "
            f"{scores / 1e9:,.0f} GB several times over, more than {MOST_BYTES / 1e9:.0f} GB: "
            "choose smaller numbers"
        )


def copy_weights(ours: MultiHeadAttention, theirs: PyTorchMultiHeadAttention) -> None:
    """Give PyTorch's version our weights; it has queries, keys and values in one matrix."""
    qkv = torch.cat([ours.W_query.weight, ours.W_key.weight, ours.W_value.weight])
    theirs.qkv.load_state_dict({"weight": qkv})  # (3 * d_out, d_in)
    theirs.proj.load_state_dict(ours.out_proj.state_dict())


def change_of_earlier_outputs(attention, x: torch.Tensor, output: torch.Tensor) -> float:
    """How much the outputs before the last token change if the last token does: 0 if causal."""
    other_ending = x.clone()
    other_ending[:, -1] = torch.randn_like(x[:, -1])
    return (attention(other_ending) - output)[:, :-1].abs().max().item()


def count_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=8, help="texts at once (default: 8)")
    parser.add_argument("--num-tokens", type=int, default=256, help="per text (default: 256)")
    parser.add_argument("--d-in", type=int, default=768, help="input width (default: 768)")
    parser.add_argument("--d-out", type=int, default=768, help="output width (default: 768)")
    parser.add_argument("--num-heads", type=int, default=12, help="(default: 12)")
    parser.add_argument(
        "--seed", type=int, default=123, help="of the random numbers (default: 123)"
    )
    return parser, parser.parse_args()


if __name__ == "__main__":
    parser, args = parse_args()
    with short_errors(parser):
        passed = main(**vars(args))
    if not passed:
        sys.exit(f"{parser.prog}: a check failed: a difference is above {TOLERANCE:g}")
    print("both checks passed")
