"""The GPT of chapter 4 continues a text, without a cache, and the time is taken.

Each new token computes the whole text again. Compare gpt_with_kv_cache.py and
gpt_with_kv_cache_optimized.py, which print the same text.

Examples:
    python gpt_ch04.py                              # the book's model, 200 tokens
    python gpt_ch04.py --preset tiny                # a very small GPT: done in seconds
    python gpt_ch04.py --max-new-tokens 50 --device cuda
"""

import argparse
import time
from collections.abc import Callable

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch

from llms_from_scratch.app.script_tools import pick_device, short_errors
from llms_from_scratch.ch04 import GPT_CONFIG_124M, GPTModel, generate_text_simple
from llms_from_scratch.tokenizer import END_OF_TEXT, get_tokenizer

# Each preset: changes to GPT_CONFIG_124M
PRESETS = {
    "book": {},
    "tiny": {"context_length": 256, "emb_dim": 64, "n_heads": 4, "n_layers": 2},
}


def main(
    model_class: type = GPTModel,
    generate: Callable[..., torch.Tensor] = generate_text_simple,
    *,
    prompt: str = "Hello, I am",
    max_new_tokens: int = 200,
    seed: int = 123,
    preset: str = "book",
    device: str = "auto",
) -> torch.Tensor:
    """Print what a GPT with random weights writes, and how fast; return the ids, (1, num_tokens).

    Raises ``ValueError`` for an empty prompt, for less than one new token, and for a device that
    cannot be used.
    """
    config = GPT_CONFIG_124M | PRESETS[preset]
    device = pick_device(device)
    tokenizer = get_tokenizer("gpt2")
    encoded = tokenizer.encode(prompt, allowed_special={END_OF_TEXT})
    if not encoded:
        raise ValueError("the prompt is empty: the model needs at least one token to continue")
    if max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, got {max_new_tokens}")
    idx = torch.tensor([encoded], device=device)  # (1, num_tokens)

    torch.manual_seed(seed)
    model = model_class(config).to(device).eval()
    generate(model, idx, 1, config["context_length"])  # not timed: the first call prepares things
    wait_for(device)
    started = time.perf_counter()
    token_ids = generate(model, idx, max_new_tokens, config["context_length"])
    wait_for(device)
    seconds = time.perf_counter() - started

    print(f"{model_class.__name__} on {device}, context of {config['context_length']} tokens")
    print(f"\nText: {tokenizer.decode(token_ids[0].tolist())}")
    print(f"\nTime: {seconds:.2f} seconds, {max_new_tokens / seconds:.0f} tokens/s")
    if device.type == "cuda":
        print(f"Most memory in use: {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB")
    return token_ids


def wait_for(device: torch.device) -> None:
    """A GPU works on while Python goes ahead; a clock must wait for it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def parse_args(description: str) -> tuple[argparse.ArgumentParser, dict]:
    """The parser and the options of all three scripts."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--prompt", default="Hello, I am", help='the text to continue (default: "Hello, I am")'
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=200, help="tokens to append (default: 200)"
    )
    parser.add_argument("--seed", type=int, default=123, help="of the weights (default: 123)")
    parser.add_argument("--preset", choices=PRESETS, default="book", help="sizes (default: book)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    return parser, vars(parser.parse_args())


if __name__ == "__main__":
    parser, options = parse_args(__doc__)
    with short_errors(parser):
        main(**options)
