"""Byte-pair encoding: our trainers and encoder beside other implementations, taking turns.

    python benchmarks/bpe.py my-book.txt       # any UTF-8 text of 3 MB or more; less is repeated
    python benchmarks/bpe.py my-book.txt --also chinese.txt code.txt

The text is cut to 200 kB for the slow trainers and to 3 MB for the fast ones. Training on the
others, 1 MB of each, and on chunks of 1, 2 and 4 MB without any space or mark comes last.
"""

import argparse
import statistics
import time
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

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


def first_bytes(text: str, size: int) -> str:
    """A text of so many bytes in UTF-8, repeated if it is shorter."""
    content = text.encode("utf-8")
    content *= 1 + size // max(1, len(content))
    return content[:size].decode("utf-8", errors="ignore")


def cpu_seconds_of(run) -> float:
    """Of all cores together, so that other programs hardly count, and threads bring nothing."""
    started = time.process_time()
    run()
    return time.process_time() - started


def compare_texts(paths: list[Path], rounds: int) -> None:
    """Training on 1 MB of each text, in turns with the library in Rust."""
    print("\nTraining, 1 MB, 8,000 tokens, seconds of CPU time\n")
    print("| text | distinct chunks | BPETokenizer.train | tokenizers (Rust) | ratio |")
    print("|---|---|---|---|---|")
    for path in paths:
        text = first_bytes(path.read_text(encoding="utf-8"), 1_000_000)
        runs = [
            (
                cpu_seconds_of(lambda text=text: BPETokenizer.train(text, 8000, special_tokens=[])),
                cpu_seconds_of(lambda text=text: train_with_tokenizers(text, 8000)),
            )
            for _ in range(rounds)
        ]
        ours, theirs = (statistics.median(seconds) for seconds in zip(*runs, strict=True))
        number = len(BPETokenizer([]).count_chunks(text))
        row = f"| {path.stem} | {number:,} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.1f} |"
        print(row, flush=True)


def grow_one_chunk(path: Path) -> None:
    """Training on the letters of a text alone: a single chunk, however long."""
    letters = "".join(filter(str.isalpha, path.read_text(encoding="utf-8")))
    print(f"\nTraining on one chunk, the letters of {path.stem}, 8,000 tokens, CPU time\n")
    for megabytes in (1, 2, 4):
        chunk = first_bytes(letters, megabytes * 1_000_000)
        seconds = cpu_seconds_of(
            lambda chunk=chunk: BPETokenizer.train(chunk, 8000, special_tokens=[])
        )
        print(f"{megabytes} MB: {seconds:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path, help="a UTF-8 text file")
    parser.add_argument(
        "--also", type=Path, nargs="+", default=[], help="more texts, in other languages say"
    )
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
    compare_texts([args.text, *args.also], min(3, args.rounds))
    grow_one_chunk([args.text, *args.also][-1])


if __name__ == "__main__":
    main()
