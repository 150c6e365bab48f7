"""Text generation without a cache, with both of ours, and with transformers', taking turns.

    python benchmarks/kv_cache.py                            # GPT-2 small, minutes on a CPU
    python benchmarks/kv_cache.py --emb-dim 256 --layers 4 --new-tokens 50

All models have the same weights, with the token embedding as output layer as in GPT-2, and choose
the most probable token. To write one token for one row, a model must read all its weights; how
fast memory delivers that many bytes to a sum is measured in the same turns, and is the limit.
"""

import argparse
import statistics
import time

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch
import transformers
from timing import bytes_per_token, interleaved, print_results, synchronize

from llms_from_scratch.app.script_tools import pick_device
from llms_from_scratch.ch04 import GPTModel, generate_text_simple
from llms_from_scratch.kv_cache.generate import generate_text_simple as generate_text_cached
from llms_from_scratch.kv_cache.optimized import CachedGPTModel
from llms_from_scratch.kv_cache.simple import GrowingCacheGPT, generate_text_simple_cached
from llms_from_scratch.weights.gpt2 import load_gpt2
from llms_from_scratch.weights.sources import from_dict

BASELINE = "transformers, cache"


def build(config: dict, device: torch.device) -> dict[str, torch.nn.Module]:
    """A model of each kind; ours share their weights' memory."""
    torch.manual_seed(123)
    twin = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config["vocab_size"],
            n_positions=config["context_length"],
            n_embd=config["emb_dim"],
            n_layer=config["n_layers"],
            n_head=config["n_heads"],
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    plain = GPTModel(config)
    plain.out_head.weight = plain.tok_emb.weight
    load_gpt2(plain, from_dict(twin.state_dict(), "transformers"))
    models = {BASELINE: twin.to(device).eval(), "no cache": plain.to(device).eval()}
    for name, model_class in {"simple": GrowingCacheGPT, "optimized": CachedGPTModel}.items():
        with torch.device("meta"):
            model = model_class(config)
        model.load_state_dict(plain.state_dict(), assign=True)
        models[name] = model.eval()
    return models


def generators(models: dict, prompt: torch.Tensor, new_tokens: int, with_uncached: bool) -> dict:
    """For each variant, a function without arguments that returns prompt and new tokens."""
    context = models["no cache"].pos_emb.num_embeddings
    variants = {
        BASELINE: lambda: models[BASELINE].generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
        ),
        "simple cache": lambda: generate_text_simple_cached(models["simple"], prompt, new_tokens),
        "optimized cache": lambda: generate_text_cached(models["optimized"], prompt, new_tokens),
    }
    if with_uncached:
        variants["no cache"] = lambda: generate_text_simple(
            models["no cache"], prompt, new_tokens, context
        )
    return variants


def take_turns(candidates: dict, slow: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, as from ``interleaved``; the slow one runs once, in the middle."""
    fast = {name: run for name, run in candidates.items() if name != slow}
    seconds = interleaved(fast, (rounds + 1) // 2)
    if slow in candidates:
        started = time.perf_counter()
        candidates[slow]()
        synchronize()
        seconds[slow] = [time.perf_counter() - started]
    for name, more in interleaved(fast, rounds // 2).items():
        seconds[name] += more
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--emb-dim", type=int, default=768, help="default: 768, GPT-2 small")
    parser.add_argument("--layers", type=int, default=12, help="default: 12")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="default: 32")
    parser.add_argument("--new-tokens", type=int, default=200, help="default: 200")
    parser.add_argument(
        "--rounds", type=int, default=5, help="turns, without the slow one (default: 5)"
    )
    parser.add_argument("--dtype", default="float32", help="or bfloat16 (default: float32)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--cached-only", action="store_true", help="leave out the slow one")
    args = parser.parse_args()
    device = pick_device(args.device)
    config = {
        "vocab_size": 50257,
        "context_length": 1024,
        "emb_dim": args.emb_dim,
        "n_heads": args.emb_dim // 64,
        "n_layers": args.layers,
        "drop_rate": 0.0,
        "qkv_bias": True,
    }
    transformers.logging.set_verbosity_error()
    models = build(config, device)
    for model in models.values():
        model.to(getattr(torch, args.dtype))
    prompt = torch.randint(0, 50257, (1, args.prompt_tokens), device=device)
    variants = generators(models, prompt, args.new_tokens, not args.cached_only)

    size = bytes_per_token(models["no cache"])
    weights = torch.ones(size // 4, device=device)
    candidates = variants | {"limit": lambda: [weights.sum() for _ in range(20)]}
    print(
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {args.dtype}, {args.prompt_tokens} -> "
        f"{args.new_tokens} tokens, {config}"
    )
    seconds = take_turns(candidates, "no cache", args.rounds)
    limit = statistics.median(seconds.pop("limit")) / 20
    print(f"Weights: {size / 1e6:,.0f} MB a token; memory delivers {size / limit / 1e9:.1f} GB/s\n")
    print_results(seconds, args.new_tokens, limit, BASELINE)

    wanted = variants[BASELINE]()[0]
    for name in ("simple cache", "optimized cache"):
        same = int((variants[name]()[0] == wanted).long().cumprod(0).sum()) - args.prompt_tokens
        print(f"\n{name}: the first {same} of {args.new_tokens} tokens are transformers'", end="")
    print()


if __name__ == "__main__":
    main()
