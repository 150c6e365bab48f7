"""Finetune a model of the BERT type to tell spam from other messages, as chapter 6 does with a GPT.

Each run is one line of results.csv in the folder --out. Needs transformers; the model minilm comes
from the Python index, the others from the hub.
"""

import argparse

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from pathlib import Path

from llms_from_scratch.app.classification import (
    add_bert_options,
    add_run_options,
    add_training_options,
    spam_splits,
    train_berts,
)
from llms_from_scratch.app.script_tools import short_errors

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_bert_options(parser)
    add_training_options(parser, num_epochs=1, learning_rate=5e-6)
    parser.add_argument("--limit", type=int, help="use as many messages in all")
    add_run_options(parser, "runs/bert_spam", "sms-spam")
    args = parser.parse_args()
    with short_errors(parser):
        train_berts(args, lambda: spam_splits(args.data, Path(args.out), args.limit), args.data)
