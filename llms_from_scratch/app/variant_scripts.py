"""What the scripts of chapter 4's variants share: options, and a text that is timed."""

import argparse
import time

import torch

from llms_from_scratch.app.script_tools import pick_device
from llms_from_scratch.cache_memory import check_positive
from llms_from_scratch.kv_cache.cache import KVCache
from llms_from_scratch.kv_cache.generate import generate_text_simple
from llms_from_scratch.tokenizer import get_tokenizer

BATCH = 1


def variant_parser(description: str) -> argparse.ArgumentParser:
    """The options of all these scripts."""

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    parser = argparse.ArgumentParser(description=description, formatter_class=Formatter)
    parser.add_argument("--emb_dim", type=int, default=768, help="width of the model")
    parser.add_argument("--n_heads", type=int, default=12, help="query heads of a layer")
    parser.add_argument("--n_layers", type=int, default=12, help="layers")
    parser.add_argument("--max_new_tokens", type=int, default=200, help="tokens to append")
    parser.add_argument("--prompt", default="Hello, I am", help="the text to continue")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    return parser


def config_of(args: argparse.Namespace, prompt_length: int) -> dict:
    """Chapter 4's configuration, with just the context that the text needs."""
    sizes = {name: getattr(args, name) for name in ("emb_dim", "n_heads", "n_layers")}
    check_positive(**{f"--{name}": value for name, value in sizes.items()})
    check_positive(**{"--max_new_tokens": args.max_new_tokens})
    if args.emb_dim % args.n_heads:
        raise ValueError(f"--n_heads {args.n_heads} does not divide --emb_dim {args.emb_dim}")
    return sizes | {
        "vocab_size": 50257,
        "context_length": prompt_length + args.max_new_tokens,
        "drop_rate": 0.0,
        "qkv_bias": False,
    }


def run_variant(
    model_class: type,
    args: argparse.Namespace,
    extra: dict | None = None,
    prepare=None,
    use_cache: bool = True,
) -> torch.Tensor:
    """Print what a model with random weights writes, how fast, and what its cache takes.

    ``extra`` are the model's own keys of the configuration, ``prepare(model)`` is called before
    anything is timed. Returns the ids (1, num_tokens). Raises ``ValueError`` for an empty prompt,
    and for sizes that make no model.
    """
    device = pick_device(args.device)
    tokenizer = get_tokenizer("gpt2")
    encoded = tokenizer.encode_ordinary(args.prompt)
    if not encoded:
        raise ValueError("--prompt is empty: the model needs at least one token to continue")
    cfg = config_of(args, len(encoded)) | (extra or {})
    torch.manual_seed(123)
    model = model_class(cfg).to(device, torch.bfloat16).eval()
    idx = torch.tensor([encoded], device=device)  # (1, num_tokens)
    generate_text_simple(model, idx, 1)  # not timed: the first call prepares things
    kept = cache_bytes(model, cfg["context_length"])
    if prepare is not None:
        prepare(model)

    wait_for(device)
    started = time.perf_counter()
    token_ids = generate_text_simple(model, idx, args.max_new_tokens, use_cache=use_cache)
    wait_for(device)
    seconds = time.perf_counter() - started

    print(f"{model_class.__name__}, bfloat16, on {device}; {cfg['context_length']} tokens")
    print(f"\nText: {tokenizer.decode(token_ids[0].tolist())}")
    print(f"\nTime: {seconds:.2f} sec\n{int(args.max_new_tokens / seconds)} tokens/sec")
    if use_cache:
        print(f"Cache: {kept / 1e6:,.2f} MB")
    if device.type == "cuda":
        print(f"Max memory allocated: {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB")
    return token_ids


def measure_layers(milliseconds: list[float], allocated: list[int]):
    """A function that lets each feed-forward layer of a model note its time in the first list.

    On a GPU, the most memory that a call allocated goes into the second.
    """

    def start(module, inputs) -> None:
        if inputs[0].is_cuda:
            wait_for(inputs[0].device)
            torch.cuda.reset_peak_memory_stats()
            module.memory_before = torch.cuda.memory_allocated()
        module.started = time.perf_counter()

    def stop(module, inputs, output) -> None:
        if output.is_cuda:
            wait_for(output.device)
            allocated.append(torch.cuda.max_memory_allocated() - module.memory_before)
        milliseconds.append(1000 * (time.perf_counter() - module.started))

    def prepare(model: torch.nn.Module) -> None:
        for block in model.trf_blocks:
            block.ff.register_forward_pre_hook(start)
            block.ff.register_forward_hook(stop)

    return prepare


def print_layers(milliseconds: list[float], allocated: list[int]) -> None:
    """Averages of what ``measure_layers`` has noted."""
    print(f"Avg FF time/call: {sum(milliseconds) / len(milliseconds):.3f} ms")
    if allocated:
        mean, most = sum(allocated) / len(allocated) / 1e6, max(allocated) / 1e6
        print(f"Avg FF mem delta/call: {mean:.2f} MB (max {most:.2f} MB)")


@torch.inference_mode()
def cache_bytes(model: torch.nn.Module, num_tokens: int) -> int:
    """Bytes of a cache for one text of so many tokens, measured: one token makes it allocate."""
    cache = KVCache.for_model(model, num_tokens)
    device = next(model.parameters()).device
    model(torch.zeros(BATCH, 1, dtype=torch.long, device=device), cache=cache)
    return cache.nbytes


def wait_for(device: torch.device) -> None:
    """A GPU works on while Python goes ahead; a clock must wait for it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
