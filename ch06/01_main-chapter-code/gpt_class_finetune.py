"""Finetune a pretrained GPT to classify messages as spam, as in chapter 6.

Examples:
    python gpt_class_finetune.py                    # GPT-2 small, or the bundled GPT without it
    python gpt_class_finetune.py --preset tiny      # a very small random GPT: done in seconds
    python gpt_class_finetune.py --trainable-layers all --context-length model_context_length
    python gpt_class_finetune.py --classify "You won a prize! Call now"
    python gpt_class_finetune.py --compare          # three seeds and simple baselines, as Markdown
    python gpt_class_finetune.py --resume           # after Ctrl-C: goes on exactly where it was
"""

import argparse
import contextlib
import io
import json
import time
import warnings
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch.utils.data import DataLoader
from tqdm import tqdm

from llms_from_scratch.app.run_folder import (
    CHECKPOINT,
    add_run_options,
    clear_run_folder,
    default_folder,
    hash_of_text,
    open_run_folder,
)
from llms_from_scratch.app.script_tools import pick_device, short_errors
from llms_from_scratch.ch04 import BASE_CONFIG, model_configs
from llms_from_scratch.ch05 import choose_pretrained, load_pretrained
from llms_from_scratch.ch06 import (
    ASSET,
    LABELS,
    REAL,
    SYNTHETIC,
    SYNTHETIC_NOTICE,
    SpamDataset,
    calc_accuracy_loader,
    calc_loss_batch,
    check_length,
    classify_with_probability,
    create_balanced_dataset,
    download_and_unzip_spam_data,
    evaluate_model,
    identify_data,
    load_classifier,
    load_classifier_tokenizer,
    load_messages,
    plot_values,
    random_split,
    replace_output_head,
    save_classifier,
    set_trainable_layers,
    write_splits,
)
from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.training.checkpoint import describe_vocabulary
from llms_from_scratch.training.loop import Trainer
from llms_from_scratch.weights.pretrained import BUNDLED_NAME, Pretrained
from previous_chapters import GPTModel

# The book's settings, and those with which the small bundled GPT learns as much
BOOK_SETTINGS = {"learning_rate": 5e-5, "num_epochs": 5, "trainable_layers": "last_block"}
BUNDLED_SETTINGS = {
    "learning_rate": 3e-4,
    "num_epochs": 2,
    "trainable_layers": "all",
}
TINY_CONFIG = BASE_CONFIG | {"context_length": 120, "emb_dim": 12, "n_layers": 1, "n_heads": 2}
BATCH_SIZE = 8
EVAL_ITER = 5  # batches
CONTEXT_LENGTHS = ("longest_training_example", "model_context_length")
MODEL_FILES = (
    "review_classifier.safetensors",
    "review_classifier.json",
    "review_classifier.tokenizer.json",
    "metrics.json",
    *(f"{label}-plot.{suffix}" for label in ("loss", "accuracy") for suffix in ("pdf", "png")),
)
RESULTS = (CHECKPOINT, *MODEL_FILES)


def main(
    *,
    model_name: str = "gpt2-small (124M)",
    data: str = "sms-spam",
    num_epochs: int | None = None,
    trainable_layers: str | None = None,
    learning_rate: float | None = None,
    context_length: str = "longest_training_example",
    device: str = "auto",
    seed: int = 123,
    out: str | Path = "runs/gpt_class_finetune",
    preset: str = "book",
    resume: bool = False,
    overwrite: bool = False,
) -> dict:
    """Finetune, write all results to the folder ``out``, and return what ``metrics.json`` says.

    It is a ``ValueError`` if ``out`` has results already, unless ``resume`` or ``overwrite`` is
    set. If a signal stops the training, a checkpoint is written and ``SystemExit`` with 128 + the
    signal's number is raised.
    """
    started = time.perf_counter()
    check_settings(num_epochs, learning_rate, context_length)
    out = open_run_folder(out, RESULTS, resume=resume, overwrite=overwrite)
    device = pick_device(device)
    data_name, splits = prepare_data(data, out)
    torch.manual_seed(seed)
    chosen = choose_model(model_name, preset)
    tokenizer = chosen.tokenizer or get_tokenizer("gpt2")
    pad_id = chosen.pad_id if chosen.tokenizer else None
    settings = choose_settings(chosen.name, preset, num_epochs, trainable_layers, learning_rate)

    torch.manual_seed(seed)
    limit = chosen.config["context_length"]
    datasets = create_datasets(out, tokenizer, context_length, limit, pad_id)
    train_loader, val_loader, test_loader = create_loaders(*datasets)
    model = chosen.model
    torch.manual_seed(seed)
    replace_output_head(model, num_classes=len(LABELS))
    set_trainable_layers(model, settings["trainable_layers"])
    model.to(device)

    torch.manual_seed(seed)
    trainer = create_trainer(
        model,
        tokenizer,
        train_loader,
        val_loader,
        device,
        out,
        settings["num_epochs"],
        {
            "model": chosen.name,
            "seed": seed,
            "data_sha256": hash_of_text("".join(split.to_json() for split in splits)),
            "max_length": datasets[0].max_length,
            **{key: settings[key] for key in ("learning_rate", "trainable_layers")},
        },
    )
    if resume:
        trainer.resume()
    else:
        clear_run_folder(out, RESULTS)
    stopped_by = trainer.run()
    if stopped_by:
        print(f"Stopped after {trainer.progress.step} updates; add --resume to continue.")
        raise SystemExit(128 + stopped_by)
    print(f"Training completed in {(time.perf_counter() - started) / 60:.2f} minutes.")
    progress = trainer.progress
    curves = [progress.train_losses, progress.val_losses]
    curves += [progress.notes["train_accs"], progress.notes["val_accs"]]
    examples_seen = progress.step * BATCH_SIZE  # the loader drops a last batch that is not full

    whole_train_loader = DataLoader(datasets[0], batch_size=BATCH_SIZE)  # no row is left out
    metrics = {
        "model": chosen.name,
        "asset": data_name,
        "split": "by template" if "Template" in splits[0] else "random",
        "rows": [len(split) for split in splits],
        "max_length": datasets[0].max_length,
        "seed": seed,
        **settings,
        "examples_seen": examples_seen,
    }
    for name, loader in zip(
        ("train", "validation", "test"), (whole_train_loader, val_loader, test_loader), strict=True
    ):
        metrics[f"{name}_accuracy"] = calc_accuracy_loader(loader, model, device)
        print(f"{name.capitalize()} accuracy: {metrics[f'{name}_accuracy']:.2%}")
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    if data_name == SYNTHETIC:
        print(SYNTHETIC_NOTICE)
    save_results(out, model, chosen, metrics, curves)
    (out / CHECKPOINT).unlink(missing_ok=True)  # as large as the model, and no longer needed
    return metrics


def create_trainer(
    model, tokenizer, train_loader, val_loader, device, out: Path, num_epochs: int, settings: dict
) -> Trainer:
    """A trainer that does what ``train_classifier_simple`` does, and can be stopped."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings["learning_rate"], weight_decay=0.1
    )

    def measure_accuracies() -> None:
        notes = trainer.progress.notes
        for name, loader in (("train_accs", train_loader), ("val_accs", val_loader)):
            accuracy = calc_accuracy_loader(loader, model, device, EVAL_ITER)
            notes.setdefault(name, []).append(accuracy)
        tqdm.write(
            f"Training accuracy: {notes['train_accs'][-1]:.2%} | "
            f"Validation accuracy: {notes['val_accs'][-1]:.2%}"
        )

    trainer = Trainer(
        model,
        optimizer,
        train_loader,
        val_loader,
        device,
        num_epochs=num_epochs,
        eval_freq=50,
        eval_iter=EVAL_ITER,
        calc_loss=calc_loss_batch,
        evaluate=evaluate_model,
        vocabulary=describe_vocabulary(tokenizer),
        settings=settings,
        checkpoint_path=out / CHECKPOINT,
        checkpoint_freq=100,
        on_epoch_end=measure_accuracies,
    )
    return trainer


def check_settings(num_epochs, learning_rate, context_length: str) -> None:
    """Raise ``ValueError`` for what cannot work, before anything is loaded; None is no setting."""
    if num_epochs is not None and num_epochs < 1:
        raise ValueError(f"the number of epochs must be positive, got {num_epochs}")
    if learning_rate is not None and not 0 < learning_rate < float("inf"):
        raise ValueError(f"the learning rate must be positive, got {learning_rate}")
    if context_length not in CONTEXT_LENGTHS and not context_length.isdecimal():
        raise ValueError(
            f"the context length must be {', '.join(CONTEXT_LENGTHS)} or a number, "
            f"got {context_length!r}"
        )


def prepare_data(data: str, out: Path) -> tuple[str, tuple[pd.DataFrame, ...]]:
    """Read, balance, split and label the messages, and write the three CSV files."""
    path = Path(data)
    if data == ASSET.name:
        folder = out / "sms_spam_collection"
        path = folder / "SMSSpamCollection.tsv"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the notice that follows says the same, shorter
            download_and_unzip_spam_data(
                ASSET.urls[0], out / "sms_spam_collection.zip", folder, path
            )
    elif not path.is_file():
        raise FileNotFoundError(f"{data} is neither a file nor the data set {ASSET.name}")
    balanced = create_balanced_dataset(load_messages(path))
    balanced["Label"] = balanced["Label"].map(LABELS)
    splits = random_split(balanced, 0.7, 0.1)
    if min(len(split) for split in splits) == 0:
        raise ValueError(f"{path} has too few messages to train, validate and test")
    if len(splits[0]) < BATCH_SIZE:
        raise ValueError(
            f"{path} has {len(splits[0])} messages to train with, which do not fill a single batch "
            f"of {BATCH_SIZE}"
        )
    write_splits(out, *splits)
    return identify_data(path), splits


def choose_model(model_name: str, preset: str) -> Pretrained:
    if preset == "tiny":
        return Pretrained("tiny, random weights", TINY_CONFIG, GPTModel(TINY_CONFIG))
    if model_name in model_configs:
        return choose_pretrained(model_name)
    return load_pretrained(model_name)


def choose_settings(name: str, preset: str, num_epochs, trainable_layers, learning_rate) -> dict:
    """The settings that suit the model, with the user's changes."""
    settings = dict(BUNDLED_SETTINGS if name == BUNDLED_NAME else BOOK_SETTINGS)
    if preset == "tiny":
        settings |= {"num_epochs": 1, "trainable_layers": "all"}
    wanted = {
        "num_epochs": num_epochs,
        "trainable_layers": trainable_layers,
        "learning_rate": learning_rate,
    }
    return settings | {key: value for key, value in wanted.items() if value is not None}


def create_datasets(
    out: Path, tokenizer, context_length: str, limit: int, pad_id: int | None = None
) -> list[SpamDataset]:
    """The three data sets, all padded to one length that fits into the model's context."""
    if context_length == "model_context_length":
        max_length = limit
    elif context_length == "longest_training_example":
        max_length = SpamDataset(out / "train.csv", tokenizer).max_length
        if max_length > limit:
            print(f"The longest message has {max_length} tokens: cut to the context of {limit}.")
            max_length = limit
    else:
        max_length = int(context_length)
    check_length(max_length, limit)
    return [
        SpamDataset(out / f"{name}.csv", tokenizer, max_length, pad_id)
        for name in ("train", "validation", "test")
    ]


def create_loaders(train, validation, test) -> tuple[DataLoader, DataLoader, DataLoader]:
    return (
        DataLoader(train, batch_size=BATCH_SIZE, shuffle=True, drop_last=True),
        DataLoader(validation, batch_size=BATCH_SIZE),
        DataLoader(test, batch_size=BATCH_SIZE),
    )


def save_results(out: Path, model, chosen: Pretrained, metrics: dict, curves: list) -> None:
    train_losses, val_losses, train_accs, val_accs = curves
    about = {"pretrained": metrics["model"], "asset": metrics["asset"], "split": metrics["split"]}
    save_classifier(out, model, chosen.config, metrics["max_length"], base=chosen, **about)
    with atomic_write(out / "metrics.json") as temporary:
        curves_by_name = {
            "train_losses": train_losses,
            "val_losses": val_losses,
            "train_accs": train_accs,
            "val_accs": val_accs,
        }
        content = json.dumps(metrics | curves_by_name, indent=2) + "\n"
        temporary.write_text(content, encoding="utf-8")
    for label, train_values, val_values in (
        ("loss", train_losses, val_losses),
        ("accuracy", train_accs, val_accs),
    ):
        epochs = torch.linspace(0, metrics["num_epochs"], len(train_values))
        examples = torch.linspace(0, metrics["examples_seen"], len(train_values))
        files = [out / f"{label}-plot.{suffix}" for suffix in ("pdf", "png")]
        plot_values(epochs, examples, train_values, val_values, label, save_to=files)
        plt.close()


def classify(text: str, out: str | Path, device: str) -> None:
    """Answer for one text with the classifier in the folder ``out``."""
    device = pick_device(device)
    model, settings = load_classifier(out)
    label, probability = classify_with_probability(
        text,
        model.to(device),
        load_classifier_tokenizer(out),
        device,
        settings["max_length"],
        settings.get("pad_token_id"),
    )
    print(f"{label} (probability {probability:.3f})")
    if settings.get("asset") == SYNTHETIC:  # the notebook's classifier does not say
        print(SYNTHETIC_NOTICE)


def compare(seeds: tuple[int, ...] = (123, 124, 125), **options) -> None:
    """Print a Markdown table: the GPT with several seeds, and what is possible without a GPT."""
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError:
        raise ValueError("--compare needs scikit-learn: pip install scikit-learn") from None
    out = Path(options.pop("out"))
    rows = []
    for seed in seeds:
        with contextlib.redirect_stdout(io.StringIO()):
            metrics = main(seed=seed, out=out / f"seed-{seed}", **options)
        accuracies = [metrics[f"{name}_accuracy"] for name in ("train", "validation", "test")]
        rows.append((f"{metrics['model']}, seed {seed}", accuracies, metrics["seconds"]))
    splits = [
        pd.read_csv(out / f"seed-{seeds[0]}" / f"{name}.csv", keep_default_na=False)
        for name in ("train", "validation", "test")
    ]
    started = time.perf_counter()
    pipeline = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    pipeline.fit(splits[0]["Text"], splits[0]["Label"])
    accuracies = [pipeline.score(df["Text"], df["Label"]) for df in splits]
    rows.append(("bag of words, logistic regression", accuracies, time.perf_counter() - started))
    majority = splits[0]["Label"].mode()[0]
    accuracies = [(df["Label"] == majority).mean() for df in splits]
    rows.append(("majority class", accuracies, 0))

    settings = ", ".join(
        f"{key} {metrics[key]}" for key in ("trainable_layers", "learning_rate", "num_epochs")
    )
    print(f"Data: {metrics['asset']}, split {metrics['split']}; {settings}\n")
    print("| model | train | validation | test | seconds |\n|---|---|---|---|---|")
    for name, accuracies, seconds in rows:
        columns = " | ".join(f"{accuracy:.2%}" for accuracy in accuracies)
        print(f"| {name} | {columns} | {seconds:.0f} |")
    if metrics["asset"] != REAL:
        print(f"\n{SYNTHETIC_NOTICE}" if metrics["asset"] == SYNTHETIC else "")


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=("book", "tiny"), default="book")
    parser.add_argument(
        "--model",
        default="gpt2-small (124M)",
        help="a size of GPT-2, gpt2-tiny, smollm2-135m-instruct, or a path "
        "(default: gpt2-small (124M))",
    )
    parser.add_argument(
        "--data",
        default=ASSET.name,
        help="a CSV file with columns Label and Text, a TSV file without a header, or sms-spam",
    )
    parser.add_argument("--epochs", type=int, help="passes over the data (default: by model)")
    parser.add_argument("--learning-rate", type=float, help="(default: by model)")
    parser.add_argument(
        "--trainable-layers",
        "--trainable_layers",
        choices=("last_layer", "last_block", "last_two_blocks", "all"),
        help="(default: last_block; all for the bundled model)",
    )
    parser.add_argument(
        "--context-length",
        "--context_length",
        default="longest_training_example",
        help="longest_training_example (default), model_context_length, or a number of tokens",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument(
        "--seed", type=int, default=123, help="of the random numbers (default: 123)"
    )
    folders = "runs/gpt_class_finetune, with --preset tiny runs/gpt_class_finetune-tiny"
    add_run_options(parser, None, folders)
    parser.add_argument("--classify", metavar="TEXT", help="use the classifier in --out on a text")
    parser.add_argument(
        "--compare", action="store_true", help="print a table: three seeds, and two baselines"
    )
    parser.add_argument(
        "--test_mode", action="store_const", const="tiny", dest="preset", help=argparse.SUPPRESS
    )
    return parser, parser.parse_args()


if __name__ == "__main__":
    plt.switch_backend("agg")  # plots go to files only
    parser, args = parse_args()
    options = {
        "model_name": args.model,
        "data": args.data,
        "num_epochs": args.epochs,
        "learning_rate": args.learning_rate,
        "trainable_layers": args.trainable_layers,
        "context_length": args.context_length,
        "device": args.device,
        "out": default_folder("gpt_class_finetune", args.preset) if args.out is None else args.out,
        "preset": args.preset,
        "overwrite": args.overwrite,
    }
    with short_errors(parser):
        if args.classify is not None:
            classify(args.classify, options["out"], args.device)
        elif args.compare and args.resume:
            raise ValueError("--compare makes three runs of its own: it cannot --resume one")
        elif args.compare:
            compare(**options)
        else:
            main(seed=args.seed, resume=args.resume, **options)
            print(f"Wrote the classifier, metrics.json and plots to {options['out']}")
