"""Chapter 4's attention variants at 2,048 and 8,192 tokens: prefill, steps, and bytes of the cache.

    python benchmarks/attention_variants.py                     # both lengths: some minutes
    python benchmarks/attention_variants.py --lengths 512       # a look at it
    python benchmarks/attention_variants.py --device cuda --dtype bfloat16

Models have 4 layers, width 512 and 8 heads, with random weights and a small vocabulary, so that
attention weighs as much as it does in a larger model. Prefill reads a prompt of the given length;
a step computes one token after it. Variants take turns.
"""

import argparse
import statistics
import time

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch
from timing import synchronize

from llms_from_scratch.app.estimators import gb, print_table
from llms_from_scratch.app.script_tools import pick_device, short_errors
from llms_from_scratch.cache_memory import check_positive
from llms_from_scratch.gpt_variants import (
    GPTWithDeltaNet,
    GPTWithGQA,
    GPTWithMHA,
    GPTWithMLA,
    GPTWithSWA,
)
from llms_from_scratch.kv_cache import KVCache

CONFIG = {
    "vocab_size": 1000,
    "emb_dim": 512,
    "n_heads": 8,
    "n_layers": 4,
    "drop_rate": 0.0,
    "qkv_bias": False,
}
UNMEASURED = 2  # steps after a prompt, which has driven the weights out of the processor's cache
VARIANTS = {
    "MHA": (GPTWithMHA, {}),
    "GQA, 2 KV heads": (GPTWithGQA, {"n_kv_groups": 2}),
    "MLA, latent 128, absorbed": (GPTWithMLA, {"latent_dim": 128}),
    "MLA, latent 128, explicit": (GPTWithMLA, {"latent_dim": 128}),
    "SWA, window 512, 3:1": (
        GPTWithSWA,
        {"sliding_window_size": 512, "sliding_window_stride": 3},
    ),
    "DeltaNet": (GPTWithDeltaNet, {}),
    "DeltaNet + attention, 3:1": (GPTWithDeltaNet, {"full_attention_every": 4}),
}


class Candidate:
    """A model with a prompt, and a cache for it."""

    def __init__(self, name: str, length: int, steps: int, device: torch.device, dtype):
        cls, extra = VARIANTS[name]
        torch.manual_seed(123)
        room = length + steps + UNMEASURED
        self.model = cls(CONFIG | extra | {"context_length": room})
        self.model.to(device, dtype).eval()
        self.absorb = "absorbed" in name  # in steps; a prompt is cheaper without
        self.prompt = torch.randint(0, 1000, (1, length), device=device)
        self.cache = KVCache.for_model(self.model, room)

    @torch.inference_mode()
    def prefill(self) -> None:
        self.set_form(absorb=False)
        self.cache.reset()
        self.model(self.prompt, cache=self.cache, last_only=True)

    @torch.inference_mode()
    def step(self) -> None:
        self.set_form(self.absorb)
        self.model(self.prompt[:, -1:], cache=self.cache, last_only=True)

    def set_form(self, absorb: bool) -> None:
        for block in self.model.trf_blocks:
            block.att.absorb = absorb  # latent attention knows it, others do not look


def timed(run) -> float:
    """Seconds of one call."""
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - started


def compare(length: int, args, device: torch.device) -> None:
    """Print a Markdown table for prompts of one length."""
    dtype = getattr(torch, args.dtype)
    candidates = {name: Candidate(name, length, args.steps, device, dtype) for name in VARIANTS}
    prefill: dict[str, list[float]] = {name: [] for name in candidates}
    decode: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(args.rounds + 1):
        for name, candidate in candidates.items():
            before = timed(candidate.prefill)
            steps = [timed(candidate.step) for _ in range(UNMEASURED + args.steps)]
            if round_number > 0:  # the first prepares things
                prefill[name].append(before)
                decode[name] += steps[UNMEASURED:]
    median = statistics.median
    first = next(iter(candidates))
    rows = [["variant", "prefill, s", "ratio", "step, ms", "ratio", "cache"]]
    for name, candidate in candidates.items():
        before, each = median(prefill[name]), median(decode[name])
        ratios = [
            f"{median(times[first]) / median(times[name]):.2f}" for times in (prefill, decode)
        ]
        size = gb(candidate.cache.nbytes)
        rows.append([name, f"{before:.2f}", ratios[0], f"{1000 * each:.1f}", ratios[1], size])
    print(f"\n{length:,} tokens\n")
    print_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[2048, 8192], help="default: 2048 8192"
    )
    parser.add_argument("--steps", type=int, default=16, help="tokens after it (default: 16)")
    parser.add_argument("--rounds", type=int, default=3, help="runs measured each (default: 3)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    args = parser.parse_args()
    with short_errors(parser):
        check_positive(**{"--steps": args.steps, "--rounds": args.rounds})
        check_positive(**{"--lengths": min(args.lengths)})
        device = pick_device(args.device)
        print(
            f"{device}, {args.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        )
        for length in args.lengths:
            compare(length, args, device)


if __name__ == "__main__":
    main()
