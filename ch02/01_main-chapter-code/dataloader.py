"""Show what chapter 2 makes of a text: a batch of token ids, and the vectors that a GPT reads.

Examples:
    python dataloader.py                                # the batch of section 2.6
    python dataloader.py --data my-book.txt --max-length 8 --stride 2
"""

import argparse

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch

from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.ch02 import create_dataloader_v1
from llms_from_scratch.data import load_text

VOCAB_SIZE = 50257  # of the GPT-2 tokenizer
OUTPUT_DIM = 256  # numbers per token


def main(data: str, batch_size: int, max_length: int, stride: int, seed: int) -> None:
    """Print the first batch of a text, in the text's order, and its embeddings' shape."""
    torch.manual_seed(seed)
    dataloader = create_dataloader_v1(
        load_text(data),
        batch_size=batch_size,
        max_length=max_length,
        stride=stride,
        shuffle=False,
        drop_last=False,  # a short text may not fill a batch
    )
    inputs, targets = next(iter(dataloader))
    print(f"Inputs:\n{inputs}\n\nTargets:\n{targets}")

    token_embedding_layer = torch.nn.Embedding(VOCAB_SIZE, OUTPUT_DIM)
    pos_embedding_layer = torch.nn.Embedding(max_length, OUTPUT_DIM)
    positions = torch.arange(max_length)
    input_embeddings = token_embedding_layer(inputs) + pos_embedding_layer(positions)
    print(f"\nInput embeddings: {input_embeddings.shape}")  # (batch_size, max_length, OUTPUT_DIM)
    start = ", ".join(f"{number:.4f}" for number in input_embeddings[0, 0, :4])
    print(f"The first vector begins with {start}")


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        default="the-verdict",
        help="a UTF-8 text file, or the name of a known text (default: the-verdict)",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="windows (default: 8)")
    parser.add_argument("--max-length", type=int, default=4, help="tokens per window (default: 4)")
    parser.add_argument(
        "--stride", type=int, default=4, help="tokens from window to window (default: 4)"
    )
    parser.add_argument(
        "--seed", type=int, default=123, help="of the random embeddings (default: 123)"
    )
    return parser, parser.parse_args()


if __name__ == "__main__":
    parser, args = parse_args()
    with short_errors(parser):
        main(args.data, args.batch_size, args.max_length, args.stride, args.seed)
