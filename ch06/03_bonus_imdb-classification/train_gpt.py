"""Finetune a GPT to tell good from bad film reviews.

Run download_prepare_dataset.py first. Each run is one line of results.csv in the folder --out.
"""

import argparse

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch

from llms_from_scratch.app.classification import (
    Results,
    Run,
    add_gpt_options,
    add_run_options,
    add_training_options,
    load_model,
    record,
    review_splits,
    settings_from,
)
from llms_from_scratch.app.script_tools import pick_device, short_errors
from llms_from_scratch.classification.experiment import prepare


def main(args: argparse.Namespace) -> None:
    settings_from(args)
    device = pick_device(args.device)
    texts = review_splits(args.data)
    features: dict = {}
    about = "--weights random" if args.weights == "random" else ""

    def prepare_run(settings):
        prepared = prepare(load_model(args, settings.seed), texts, settings, device, features)
        if args.compile:
            torch.set_float32_matmul_precision("high")
            prepared.classifier.compile()
        return prepared

    runs = [
        Run(args.model or args.model_size, settings_from(args, seed=seed), prepare_run, "", about)
        for seed in args.seeds
    ]
    record(runs, texts, "IMDb", Results(args.out), device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_gpt_options(parser, "256")
    add_training_options(parser, num_epochs=1, learning_rate=5e-5)
    parser.add_argument("--compile", action="store_true", help="let PyTorch compile the model")
    add_run_options(parser, "runs/imdb", "runs/imdb")
    args = parser.parse_args()
    with short_errors(parser):
        main(args)
