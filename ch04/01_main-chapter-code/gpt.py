"""Build a GPT with random weights and let it continue a text, as in chapter 4.

It has learned nothing yet, so it writes gibberish; chapter 5 trains it.

Examples:
    python gpt.py                                  # the book's model, prompt and numbers
    python gpt.py --prompt "Once upon a time" --max-new-tokens 20
    python gpt.py --preset tiny                    # a very small GPT: done in seconds
"""

import argparse
import contextlib
from collections.abc import Iterator

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch
from tqdm import tqdm

from llms_from_scratch.app.script_tools import pick_device, short_errors
from llms_from_scratch.ch04 import (
    GELU,
    GPT_CONFIG_124M,
    FeedForward,
    GPTModel,
    LayerNorm,
    TransformerBlock,
    generate_text_simple,
)
from llms_from_scratch.tokenizer import END_OF_TEXT, get_tokenizer
from previous_chapters import GPTDatasetV1, MultiHeadAttention, create_dataloader_v1

# All that the book has in this file: `from gpt import GPTModel` works for each name
__all__ = [
    "GELU",
    "GPT_CONFIG_124M",
    "FeedForward",
    "GPTDatasetV1",
    "GPTModel",
    "LayerNorm",
    "MultiHeadAttention",
    "TransformerBlock",
    "create_dataloader_v1",
    "generate_text_simple",
    "main",
]

# Each preset: changes to GPT_CONFIG_124M
PRESETS = {
    "book": {},
    "tiny": {"context_length": 32, "emb_dim": 32, "n_heads": 4, "n_layers": 2},
}


def main(
    prompt: str = "Hello, I am",
    max_new_tokens: int = 10,
    seed: int = 123,
    preset: str = "book",
    device: str = "auto",
) -> None:
    """Print the prompt, its token ids, and what a GPT with random weights makes of them.

    Raises ``ValueError`` for a prompt that is empty or longer than the model's context, and for a
    negative number of tokens.
    """
    config = GPT_CONFIG_124M | PRESETS[preset]
    tokenizer = get_tokenizer("gpt2")
    encoded = tokenizer.encode(prompt, allowed_special={END_OF_TEXT})
    check_lengths(len(encoded), max_new_tokens, config["context_length"])
    device = pick_device(device)
    encoded_tensor = torch.tensor(encoded).unsqueeze(0)  # (1, num_tokens)

    print_heading("IN")
    print("\nInput text:", prompt)
    print("Encoded input text:", encoded)
    print("encoded_tensor.shape:", encoded_tensor.shape)

    torch.manual_seed(seed)
    model = GPTModel(config).to(device)  # the same weights on each device
    model.eval()  # no dropout
    with progress_bar(model, max_new_tokens):
        out = generate_text_simple(
            model=model,
            idx=encoded_tensor.to(device),
            max_new_tokens=max_new_tokens,
            context_size=config["context_length"],
        )
    print()
    print_heading("OUT")
    print("\nOutput:", out.cpu())
    print("Output length:", len(out[0]))
    print("Output text:", tokenizer.decode(out[0].tolist()))


def check_lengths(prompt_tokens: int, max_new_tokens: int, context_length: int) -> None:
    """Raise ``ValueError`` for a prompt that the model cannot read as a whole, and the like."""
    if prompt_tokens == 0:
        raise ValueError("the prompt is empty: the model needs at least one token to continue")
    if prompt_tokens > context_length:
        raise ValueError(
            f"the prompt has {prompt_tokens} tokens, but the model's context_length is "
            f"{context_length}: shorten the prompt"
        )
    if max_new_tokens < 0:
        raise ValueError(f"--max-new-tokens must be at least 0, got {max_new_tokens}")


def print_heading(title: str) -> None:
    print(f"\n{50 * '='}\n{22 * ' '}{title}\n{50 * '='}")


@contextlib.contextmanager
def progress_bar(model: GPTModel, total: int) -> Iterator[None]:
    """Count the model's calls, one per token, on a terminal; leave no trace at the end."""
    with tqdm(total=total, unit="token", leave=False, disable=None) as bar:

        def count(*_) -> None:  # a hook that returned something would replace the logits
            bar.update()

        hook = model.register_forward_hook(count)
        try:
            yield
        finally:
            hook.remove()


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--prompt", default="Hello, I am", help='the text to continue (default: "Hello, I am")'
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=10, help="tokens to append (default: 10)"
    )
    parser.add_argument("--seed", type=int, default=123, help="of the weights (default: 123)")
    parser.add_argument("--preset", choices=PRESETS, default="book", help="sizes (default: book)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    return parser, parser.parse_args()


if __name__ == "__main__":
    parser, args = parse_args()
    with short_errors(parser):
        main(args.prompt, args.max_new_tokens, args.seed, args.preset, args.device)
