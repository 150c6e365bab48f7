"""Measure a small GPT on the held-out ends of the books it was trained on.

    python evaluate_gpt2_tiny.py --data_dir books

Prints bits per byte on the last twentieth of each book, for the model and for a 5-gram model of the
same tokens, the speed of writing, and ten samples as they come.
"""

import argparse
import math
import time
from collections import defaultdict
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import numpy as np
import torch
from tqdm import tqdm
from train_gpt2_tiny import TRAIN_RATIO

from llms_from_scratch.app.script_tools import pick_device, short_errors
from llms_from_scratch.ch04 import GPTModelFast
from llms_from_scratch.ch05 import (
    calc_loss_loader,
    generate,
    load_pretrained,
    text_to_token_ids,
    token_ids_to_text,
)
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.training.token_files import create_dataloaders, tokenize_folder

ORDER = 5
PROMPTS = [
    "Every effort moves you",
    "It is a truth universally acknowledged, that",
    "Emma was",
    "And the LORD said unto",
    "Hello, I am",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", default="books", help="the books (default: books)")
    parser.add_argument("--token_dir", default="runs/gpt2-tiny/tokens", help="for token files")
    parser.add_argument("--model", default="gpt2-tiny", help="name or folder (default: gpt2-tiny)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    args = parser.parse_args()
    with short_errors(parser):
        device = pick_device(args.device)
        token_paths = tokenize_folder(args.data_dir, args.token_dir, get_tokenizer("gpt2"))
        pretrained = load_pretrained(args.model, GPTModelFast)
        model, context_length = pretrained.model.to(device), pretrained.config["context_length"]

        _, held_out = create_dataloaders(
            token_paths, TRAIN_RATIO, 16, context_length, context_length
        )
        with torch.no_grad():
            loss = calc_loss_loader(tqdm(held_out, desc="Held-out text"), model, device)
        train, test = split_tokens(token_paths)
        bits = bits_per_byte(loss, test)
        print(f"Model: {loss:.3f} nats per token, {bits:.3f} bits per byte on {len(test):,} tokens")
        loss = NGramModel(train, ORDER).loss(test)
        bits = bits_per_byte(loss, test)
        print(f"{ORDER}-gram: {loss:.3f} nats per token, {bits:.3f} bits per byte")
        write_samples(model, context_length, device)


def split_tokens(token_paths: list[Path]) -> tuple[list[int], list[int]]:
    """The training and held-out tokens of all books."""
    train, test = [], []
    for path in token_paths:
        tokens = np.load(path).tolist()
        border = int(TRAIN_RATIO * len(tokens))
        train += tokens[:border]
        test += tokens[border:]
    return train, test


def bits_per_byte(nats_per_token: float, tokens: list[int]) -> float:
    num_bytes = len(get_tokenizer("gpt2").decode_bytes(tokens))
    return nats_per_token / math.log(2) * len(tokens) / num_bytes


class NGramModel:
    """Counts of up to ``order`` tokens in a row, interpolated by the method of Witten and Bell.

    P(w | h) = (count(h, w) + kinds(h) * P(w | shorter h)) / (count(h) + kinds(h)), where kinds(h)
    is the number of different tokens seen after h. Below the empty context, all tokens are equally
    probable.
    """

    def __init__(self, tokens: list[int], order: int, vocab_size: int = 50257):
        self.order, self.vocab_size = order, vocab_size
        self.pairs = [defaultdict(int) for _ in range(order)]  # (context, token) -> count
        self.totals = [defaultdict(int) for _ in range(order)]  # context -> count
        self.kinds = [defaultdict(int) for _ in range(order)]  # context -> different tokens
        for i in tqdm(range(order, len(tokens)), desc="Counting", unit_scale=True):
            for n in range(order):
                context = tuple(tokens[i - n : i])
                key = (context, tokens[i])
                self.kinds[n][context] += key not in self.pairs[n]
                self.pairs[n][key] += 1
                self.totals[n][context] += 1

    def probability(self, history: list[int], token: int) -> float:
        probability = 1 / self.vocab_size
        for n in range(min(self.order, len(history) + 1)):
            context = tuple(history[len(history) - n :])
            total = self.totals[n].get(context, 0)
            if total == 0:
                break
            kinds = self.kinds[n][context]
            count = self.pairs[n].get((context, token), 0)
            probability = (count + kinds * probability) / (total + kinds)
        return probability

    def loss(self, tokens: list[int]) -> float:
        """Mean negative log probability, in nats per token."""
        total = 0.0
        for i, token in enumerate(tokens):
            total -= math.log(self.probability(tokens[max(0, i - self.order + 1) : i], token))
        return total / len(tokens)


def write_samples(model, context_length: int, device) -> None:
    tokenizer = get_tokenizer("gpt2")
    generator = torch.Generator(device).manual_seed(123)
    for temperature in (0.7, 1.0):
        for prompt in PROMPTS:
            started = time.perf_counter()
            ids = generate(
                model,
                text_to_token_ids(prompt, tokenizer).to(device),
                60,
                context_length,
                temperature=temperature,
                top_k=50,
                generator=generator,
            )
            speed = 60 / (time.perf_counter() - started)
            print(f"\n[temperature {temperature}, {speed:.0f} tokens/s]")
            print(token_ids_to_text(ids, tokenizer))


if __name__ == "__main__":
    main()
