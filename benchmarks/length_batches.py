"""Finetuning a classifier with batches of like length, and with padding to one length, in turns.

    python benchmarks/length_batches.py                              # messages of chapter 6
    python benchmarks/length_batches.py --data runs/imdb             # film reviews

One epoch each, of gpt2-tiny with all weights trained (see ch06/02 and ch06/03).
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from timing import interleaved

from llms_from_scratch.app.classification import review_splits, spam_splits
from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.classification.experiment import Settings, prepare, run_experiment
from llms_from_scratch.classification.texts import LengthBatches
from llms_from_scratch.weights.pretrained import load_pretrained


def main(args: argparse.Namespace) -> None:
    if Path(args.data).is_dir():
        texts = review_splits(args.data)
    else:
        texts = spam_splits(args.data, Path(args.out))
    limits = {"train": args.limit, "validation": 8, "test": 8}  # it is training that is measured
    for name, limit in limits.items():
        split = texts[name]
        texts[name] = replace(split, texts=split.texts[:limit], labels=split.labels[:limit])
    shared = Settings(
        trainable_layers="all",
        trainable_token_pos="flexible",
        context_length=args.context_length,
        num_epochs=1,
    )
    tokens, runs = {}, {}
    for name, by_length in (("padded to one length", False), ("batches by length", True)):
        settings = replace(shared, by_length=by_length)
        prepared = prepare(load_pretrained("gpt2-tiny"), texts, settings)
        batches = LengthBatches(prepared.data["train"], settings.batch_size, by_length=by_length)
        tokens[name] = sum(batch.numel() for batch, _ in batches)

        def run(prepared=prepared, settings=settings) -> None:
            run_experiment(prepared, settings, eval_freq=10**6)

        runs[name] = run
    seconds = interleaved(runs, args.rounds)
    print("| | tokens read in an epoch | seconds (median) | fastest to slowest | times as fast |")
    print("|---|---|---|---|---|")
    slow = statistics.median(seconds["padded to one length"])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"| {name} | {tokens[name]:,} | {median:.1f} | {min(values):.1f} to {max(values):.1f} "
            f"| {slow / median:.2f} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="sms-spam", help="messages (default), or a folder")
    parser.add_argument("--context_length", default="longest_training_example")
    parser.add_argument("--limit", type=int, default=400, help="training texts (default: 400)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements each (default: 3)")
    parser.add_argument("--out", default="runs/length_batches", help="where downloads go")
    args = parser.parse_args()
    with short_errors(parser):
        main(args)
