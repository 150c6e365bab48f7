"""Byte-pair encoding: our trainers and encoder beside other implementations, taking turns.

    python benchmarks/bpe.py my-book.txt       # any UTF-8 text of 3 MB or more; less is repeated

The text is cut to 200 kB for the slow trainers and to 3 MB for the fast ones.
"""

import argparse
import statistics
import time
from pathlib import Path

import tokenizers
from timing import interleaved, print_table

from llms_from_scratch.bpe import (
    BPETokenizer,
    gpt2_bpe_tokenizer,
    merge_pair,
    train_incremental,
    train_naive,
)
from llms_from_scratch.tokenizer import get_tokenizer


def train_over_all_chunks(text: str, num_merges: int) -> list[tuple[int, int]]:
    """The algorithm of minbpe: every chunk of the text is a list, counted and merged each time."""
    chunks = [list(chunk.encode("utf-8")) for chunk in BPETokenizer([])._split(text)]
    merges = []
    for new_id in range(256, 256 + num_merges):
        counts: dict[tuple[int, int], int] = {}
        for ids in chunks:
            for pair in zip(ids, ids[1:], strict=False):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=counts.get)
        merges.append(best)
        chunks = [merge_pair(ids, best, new_id) for ids in chunks]
    return merges


def train_with_tokenizers(text: str, vocab_size: int) -> tokenizers.Tokenizer:
    """Hugging Face's trainer, written in Rust; it uses all cores."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def seconds_of(run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path, help="a UTF-8 text file")
    parser.add_argument("--rounds", type=int, default=5, help="measurements each (default: 5)")
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    text *= 1 + 3_000_000 // max(1, len(text))
    small, large = text[:200_000], text[:3_000_000]

    print("Training, 200 kB, 512 tokens\n")
    print("| trainer | seconds | times faster than over all chunks |")
    print("|---|---|---|")
    slow = seconds_of(lambda: train_over_all_chunks(small, 256))
    chunks = BPETokenizer([]).count_chunks(small)
    naive = seconds_of(lambda: train_naive(chunks, 512))
    fast = statistics.median(
        seconds_of(lambda: BPETokenizer.train(small, 512, special_tokens=[]))
        for _ in range(args.rounds)
    )
    for name, seconds in [
        ("over all chunks (minbpe's algorithm)", slow),
        ("train_naive, over distinct chunks", naive),
        ("train_incremental, cutting into chunks included", fast),
    ]:
        print(f"| {name} | {seconds:.3f} | {slow / seconds:.1f} |", flush=True)

    print("\nTraining, 3 MB, 16,384 tokens\n")
    print("| trainer | seconds (median) |")
    print("|---|---|")
    for name, run in {
        "BPETokenizer.train": lambda: BPETokenizer.train(large, 16_384, special_tokens=[]),
        "tokenizers (Rust, all cores)": lambda: train_with_tokenizers(large, 16_384),
    }.items():
        seconds = statistics.median(seconds_of(run) for _ in range(min(3, args.rounds)))
        print(f"| {name} | {seconds:.2f} |", flush=True)

    print("\nEncoding 1 MiB of prose with GPT-2's vocabulary\n")
    prose = large.encode("utf-8")[: 2**20].decode("utf-8", errors="ignore")
    ours, fast_one = gpt2_bpe_tokenizer(), get_tokenizer()
    hugging_face = tokenizers.Tokenizer.from_str(ours.to_tokenizers_json())
    assert ours.encode(prose) == fast_one.encode(prose) == hugging_face.encode(prose).ids

    def encode_afresh() -> None:
        ours._cache.clear()  # every chunk is met for the first time
        ours.encode(prose)

    candidates = {
        "BPETokenizer": encode_afresh,
        "tiktoken (Rust)": lambda: fast_one.encode(prose),
        "tokenizers (Rust)": lambda: hugging_face.encode(prose),
    }
    print_table(interleaved(candidates, args.rounds), 1, "MiB", baseline="BPETokenizer")
    assert train_incremental(chunks, 512) == train_naive(chunks, 512)


if __name__ == "__main__":
    main()
