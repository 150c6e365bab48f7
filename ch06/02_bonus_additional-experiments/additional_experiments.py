"""Finetune a spam classifier in nineteen ways, and see which choice matters.

Without --row or --all, the options say which experiment. Each run is one line of results.csv in
the folder --out; what is there already is not done again. --report draws figures and writes the
table into the folder's README.md.
"""

import argparse
import shlex

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from copy import copy

from llms_from_scratch.app.classification import (
    Results,
    Run,
    add_gpt_options,
    add_run_options,
    add_training_options,
    load_model,
    report_duplicates,
    settings_from,
    spam_splits,
)
from llms_from_scratch.app.classification import record as record_runs
from llms_from_scratch.app.script_tools import pick_device, short_errors, writable_folder
from llms_from_scratch.classification.experiment import prepare
from llms_from_scratch.data import DownloadError

MEDIUM = "--model_size 'gpt2-medium (355M)'"
LARGE = "--model_size 'gpt2-large (774M)'"
XL = "--model_size 'gpt2-xl (1558M)'"
ROWS = {
    1: "",
    2: "--trainable_token_pos first",
    3: "--trainable_layers last_layer",
    4: "--trainable_layers last_two_blocks",
    5: "--trainable_layers all",
    6: MEDIUM,
    7: LARGE,
    8: XL,
    9: f"{XL} --trainable_layers all",
    10: "--weights random --trainable_layers all",
    11: "--trainable_layers lora --lora_rank 16 --lora_alpha 16",
    12: f"{XL} --trainable_layers lora --lora_rank 16 --lora_alpha 8",
    13: "--context_length model_context_length",
    14: "--no_padding --batch_size 1",
    15: "--no_padding --batch_size 1 --accumulation_steps 8",
    16: "--trainable_token_pos flexible",
    17: "--disable_causal_mask",
    18: "--ignore_index 50256",
    19: "--average_embeddings",
}
TINY_TEXTS = 48  # of --tiny


def parser_of_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_gpt_options(parser, "longest_training_example")
    parser.add_argument("--no_padding", action="store_true", help="needs --batch_size 1")
    parser.add_argument("--batch_size", type=int, default=8, help="(default: 8)")
    parser.add_argument(
        "--accumulation_steps", type=int, default=1, help="batches for one update (default: 1)"
    )
    parser.add_argument(
        "--disable_causal_mask", action="store_true", help="every token looks at all tokens"
    )
    parser.add_argument(
        "--ignore_index", type=int, default=-100, help="a label that the loss passes over"
    )
    add_training_options(parser, num_epochs=5, learning_rate=5e-5)
    parser.add_argument("--row", type=int, nargs="+", help="experiments of the README's table")
    parser.add_argument("--all", action="store_true", help="all rows whose model can be had")
    parser.add_argument("--limit", type=int, help="use as many messages in all")
    parser.add_argument(
        "--tiny", action="store_true", help="gpt2-tiny, few messages, one epoch: seconds"
    )
    parser.add_argument(
        "--report", action="store_true", help="only write the table and the figures, in --out"
    )
    add_run_options(parser, "runs/additional_experiments", "sms-spam")
    return parser


def args_of_row(row: int, args: argparse.Namespace) -> argparse.Namespace:
    """The options of a row of the table, with everything else as given."""
    if row not in ROWS:
        raise ValueError(f"--row must be from 1 to {len(ROWS)}, got {row}")
    return parser_of_options().parse_args(shlex.split(ROWS[row]), copy(args))


def runs_of(args, texts: dict, device, row: int | None = None) -> list[Run]:
    """One run for each seed of ``args``. The model is loaded when its turn comes."""
    features: dict = {}
    name = args.model or args.model_size
    about = "--weights random" if args.weights == "random" else ""

    def prepare_run(settings):
        model = load_model(args, settings.seed)
        return prepare(model, texts, settings, device, features)

    return [
        Run(name, settings_from(args, seed=seed), prepare_run, str(row or ""), about)
        for seed in args.seeds
    ]


def run_rows(rows: list[int], args, texts: dict, results: Results, device) -> None:
    """Do the rows; with ``--all``, pass over those whose model cannot be had, and say so."""
    chosen = {row: args_of_row(row, args) for row in rows}
    for row_args in chosen.values():
        settings_from(row_args)  # what cannot work is said before the first training
    for row, row_args in chosen.items():
        if args.model and row_args.model_size != args.model_size:
            if not args.tiny:
                print(f"Row {row} is left out: it wants {row_args.model_size}, not {args.model}")
                continue
        try:
            record_runs(runs_of(row_args, texts, device, row), texts, args.data, results, device)
        except DownloadError:
            if not args.all:
                raise
            print(f"Row {row} is left out: {row_args.model_size} cannot be had")


def main(args: argparse.Namespace) -> None:
    if args.report:
        from llms_from_scratch.classification.figures import write_report

        write_report(Results(args.out))
        return
    if args.tiny:
        args.model = args.model or "gpt2-tiny"
        args.limit, args.num_epochs = args.limit or TINY_TEXTS, 1
    if args.row and args.all:
        raise ValueError("--all are all rows: leave out --row")
    settings_from(args)
    device = pick_device(args.device)
    texts = spam_splits(args.data, writable_folder(args.out), args.limit)
    report_duplicates(texts)
    results = Results(args.out)
    if args.row or args.all:
        run_rows(args.row or list(ROWS), args, texts, results, device)
    else:
        record_runs(runs_of(args, texts, device), texts, args.data, results, device)
    print(f"Results: {results.path}")


if __name__ == "__main__":
    parser = parser_of_options()
    args = parser.parse_args()
    with short_errors(parser):
        main(args)
