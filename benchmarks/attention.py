"""Multi-head attention in nine variants: time and memory, taking turns in one process.

    python benchmarks/attention.py                 # batch 2, 256 tokens, width 384: a minute
    python benchmarks/attention.py --book          # the book's 8 x 1024 tokens, width 768
    python benchmarks/attention.py --compile       # compiled too; needs a C++ compiler

All variants have the same weights. "MB kept" is what a forward pass keeps for the backward pass.
On a GPU, choose --dtype bfloat16: FlashAttention works in 16 bits only.
"""

import argparse
import statistics
import warnings

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch
from timing import interleaved

from llms_from_scratch.app.script_tools import pick_device, short_errors
from llms_from_scratch.flops import bytes_kept_for_backward
from llms_from_scratch.mha_variants import (
    Ch03_MHA,
    Ch03_MHA_Wrapper,
    MHAEinsum,
    MHAPyTorchClass,
    MHAPyTorchFlexAttention,
    MHAPyTorchScaledDotProduct,
    MHAPyTorchSDPAWithoutFlash,
    MultiHeadAttentionCombinedQKV,
    copy_attention_weights,
)

BASELINE = "Ch03_MHA"


def build_variants(width: int, context_length: int, num_heads: int) -> dict[str, torch.nn.Module]:
    """All variants, with the weights of ``Ch03_MHA``."""
    shared = {"context_length": context_length, "num_heads": num_heads, "dropout": 0.0}
    classes = [
        Ch03_MHA,
        MultiHeadAttentionCombinedQKV,
        MHAEinsum,
        MHAPyTorchScaledDotProduct,
        MHAPyTorchSDPAWithoutFlash,
        MHAPyTorchFlexAttention,
        MHAPyTorchClass,
    ]
    variants = {"Ch03_MHA_Wrapper": Ch03_MHA_Wrapper(width, width // num_heads, **shared)}
    variants |= {cls.__name__: cls(width, width, **shared) for cls in classes}
    variants["MHAPyTorchClass, need_weights=False"] = MHAPyTorchClass(
        width, width, need_weights=False, **shared
    )
    for variant in variants.values():
        copy_attention_weights(variants[BASELINE], variant)
    return variants


def forward(module, x):
    def run() -> None:
        with torch.no_grad():
            module(x)

    return run


def forward_and_backward(module, x):
    def run() -> None:
        module.zero_grad()
        module(x).sum().backward()

    return run


def peak_megabytes(run) -> float:
    """Of the GPU's memory, above what was in use before."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def compare(variants: dict[str, torch.nn.Module], x: torch.Tensor, rounds: int) -> None:
    """Measure in turns, and print a Markdown table."""
    runs = {(name, "forward"): forward(module, x) for name, module in variants.items()}
    for name, module in variants.items():
        if x.is_cuda or "Flex" not in name:  # on a CPU, FlexAttention has no backward pass
            runs[name, "both"] = forward_and_backward(module, x)
    seconds = interleaved(runs, rounds)
    ms = {key: 1000 * statistics.median(values) for key, values in seconds.items()}

    peak = " peak MB |" if x.is_cuda else ""
    print("| variant | forward, ms | ratio | forward + backward, ms | ratio | MB kept |" + peak)
    print("|---|---|---|---|---|---|" + ("---|" if peak else ""))
    for name, module in variants.items():
        cells = [name]
        for what in ("forward", "both"):
            if (name, what) in ms:
                ratio = ms[BASELINE, what] / ms[name, what]
                cells += [f"{ms[name, what]:.2f}", f"{ratio:.2f}"]
            else:
                cells += ["-", "-"]
        with_backward = (name, "both") in ms
        kept = bytes_kept_for_backward(module, lambda m=module: m(x)) if with_backward else 0
        cells.append(f"{kept / 1e6:.1f}" if kept else "-")
        if peak:
            cells.append(f"{peak_megabytes(runs[name, 'both']):.0f}")
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=2, help="default: 2")
    parser.add_argument("--num-tokens", type=int, default=256, help="default: 256")
    parser.add_argument("--width", type=int, default=384, help="default: 384")
    parser.add_argument("--num-heads", type=int, default=12, help="default: 12")
    parser.add_argument("--book", action="store_true", help="8 x 1024 tokens, width 768")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--rounds", type=int, default=15, help="runs measured each (default: 15)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    args = parser.parse_args()
    if args.book:
        args.batch_size, args.num_tokens, args.width = 8, 1024, 768
    warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")

    with short_errors(parser):
        device, dtype = pick_device(args.device), getattr(torch, args.dtype)
        torch.manual_seed(123)
        x = torch.randn(args.batch_size, args.num_tokens, args.width).to(device, dtype)
        variants = build_variants(args.width, args.num_tokens, args.num_heads)
    variants = {name: module.to(device, dtype) for name, module in variants.items()}
    print(
        f"{device}, {args.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"input {tuple(x.shape)}, {args.num_heads} heads\n"
    )
    compare(variants, x, args.rounds)
    if args.compile:
        print("\ntorch.compile\n")
        compare({name: torch.compile(module) for name, module in variants.items()}, x, args.rounds)


if __name__ == "__main__":
    main()
