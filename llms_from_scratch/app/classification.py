"""What the scripts of chapter 6's bonus share: options, data, recorded runs, a report.

The scripts differ in their model and their data only.
"""

import argparse
import csv
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd
import torch

from llms_from_scratch.app.script_tools import pick_device, writable_folder
from llms_from_scratch.ch06 import (
    ASSET,
    LABELS,
    create_balanced_dataset,
    download_and_unzip_spam_data,
    load_messages,
    random_split,
)
from llms_from_scratch.classification.bert import BERT_LAYERS, load_bert, prepare_bert
from llms_from_scratch.classification.experiment import (
    SPLITS,
    Prepared,
    Result,
    Settings,
    run_experiment,
)
from llms_from_scratch.classification.explain import answer_of, gradient_times_input
from llms_from_scratch.classification.texts import (
    LabelledTexts,
    duplicates_across,
    labelled_texts,
    read_reviews,
)
from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.weights.pretrained import Pretrained, choose_pretrained, load_pretrained

COLUMNS = (
    "key",
    "row",
    "model",
    "options",
    "data",
    "seed",
    *SPLITS,
    "test_texts",
    "seconds",
    "frozen_seconds",
    "trainable_parameters",
    "max_length",
)


def add_run_options(parser: argparse.ArgumentParser, out: str, data: str) -> None:
    """Where texts come from, where results go, which seeds."""
    parser.add_argument("--data", default=data, help=f"the texts (default: {data})")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[123], help="one run for each (default: 123)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument(
        "--out", default=out, help=f"folder of results.csv; runs in it are kept (default: {out})"
    )


def add_training_options(
    parser: argparse.ArgumentParser, num_epochs: int, learning_rate: float
) -> None:
    parser.add_argument(
        "--num_epochs", type=int, default=num_epochs, help=f"(default: {num_epochs})"
    )
    parser.add_argument(
        "--learning_rate", type=float, default=learning_rate, help=f"(default: {learning_rate})"
    )
    parser.add_argument(
        "--schedule",
        default="constant",
        help="of the learning rate: constant, or cosine with warm-up and clipping at 1",
    )
    parser.add_argument("--precision", default="fp32", help="fp32 or bf16 (default: fp32)")
    parser.add_argument(
        "--keep_best", action="store_true", help="the epoch that is best on the validation texts"
    )


def add_gpt_options(parser: argparse.ArgumentParser, context_length: str) -> None:
    """Which GPT, what of it learns, and how it reads."""
    parser.add_argument(
        "--model_size", default="gpt2-small (124M)", help="(default: gpt2-small (124M))"
    )
    parser.add_argument(
        "--model", help="instead: gpt2-tiny, smollm2-135m-instruct, or a path (see the README)"
    )
    parser.add_argument("--weights", default="pretrained", help="pretrained (default) or random")
    parser.add_argument(
        "--trainable_layers",
        default="last_block",
        help="all, last_block (default), last_two_blocks, last_layer, lora or lora_alternative",
    )
    parser.add_argument(
        "--last_blocks", type=int, help="last_block and lora: this many blocks from the end"
    )
    parser.add_argument("--lora_rank", type=int, default=8, help="(default: 8)")
    parser.add_argument("--lora_alpha", type=float, default=8, help="(default: 8)")
    parser.add_argument(
        "--trainable_token_pos",
        default="last",
        help="the token that answers: first, last (default) or flexible, the last real one",
    )
    parser.add_argument(
        "--average_embeddings", action="store_true", help="the mean of all real tokens answers"
    )
    parser.add_argument(
        "--context_length",
        default=context_length,
        help="longest_training_example, model_context_length or a number of tokens "
        f"(default: {context_length})",
    )


def settings_from(args: argparse.Namespace, **others) -> Settings:
    """The settings that the options of a script say."""
    names = {option.name for option in fields(Settings)}
    given = {name: value for name, value in vars(args).items() if name in names}
    return Settings(**given | others)


def options_of(settings: Settings) -> str:
    """The options that differ from the defaults, as one types them; not the seed.

    >>> options_of(Settings(trainable_layers="lora", no_padding=True, batch_size=1, seed=1))
    '--trainable_layers lora --no_padding --batch_size 1'
    """
    words = []
    for option in fields(Settings):
        value = getattr(settings, option.name)
        if value == option.default or option.name in ("seed", "cache_frozen", "by_length"):
            continue
        words.append(f"--{option.name}" if value is True else f"--{option.name} {value}")
    return " ".join(words)


def load_model(args: argparse.Namespace, seed: int) -> Pretrained:
    """The model of ``--model`` or ``--model_size``, with random weights if they are wanted."""
    if args.weights not in ("pretrained", "random"):
        raise ValueError(f"weights must be pretrained or random, got {args.weights!r}")
    chosen = load_pretrained(args.model) if args.model else choose_pretrained(args.model_size)
    if args.weights == "random":
        torch.manual_seed(seed)
        chosen.model = type(chosen.model)(chosen.config).eval()
        chosen.name = f"{chosen.name}, random weights {seed}"
    return chosen


def spam_splits(data: str, folder: Path, limit: int | None = None) -> dict[str, LabelledTexts]:
    """The messages of a file, or of the collection, balanced and split as in chapter 6.

    ``limit`` takes as many messages in all. Every row is checked first, see ``labelled_texts``.
    """
    path = Path(data)
    if data == ASSET.name:
        path = folder / "sms_spam_collection" / "SMSSpamCollection.tsv"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a printed notice says the same
            download_and_unzip_spam_data(
                ASSET.urls[0], folder / "sms_spam_collection.zip", path.parent, path
            )
    elif not path.is_file():
        raise ValueError(f"{data} is neither a file nor the data set {ASSET.name}")
    df = load_messages(path)
    labelled_texts(df, "Text", "Label", LABELS, str(path))
    splits = random_split(create_balanced_dataset(df), 0.7, 0.1)
    shares = dict(zip(SPLITS, (0.7, 0.1, 0.2), strict=True))
    found = {}
    for (name, share), part in zip(shares.items(), splits, strict=True):
        part = part if limit is None else part.head(max(2, int(limit * share)))
        found[name] = labelled_texts(part, "Text", "Label", LABELS, f"{path} ({name})")
    return found


def review_splits(folder: str | Path) -> dict[str, LabelledTexts]:
    """The reviews that ``download_prepare_dataset.py`` has written; duplicates are reported."""
    folder = Path(folder)
    paths = {name: folder / f"{name}.csv" for name in SPLITS}
    for path in paths.values():
        if not path.is_file():
            raise ValueError(
                f"there is no {path}: run download_prepare_dataset.py first, with --out {folder}"
            )
    splits = {name: read_reviews(path) for name, path in paths.items()}
    report_duplicates(splits)
    return splits


def report_duplicates(splits: Mapping[str, LabelledTexts]) -> None:
    for (first, second), count in duplicates_across(splits).items():
        if count:
            print(f"NOTICE: {count} of {len(splits[second])} {second} texts are in {first} as well")


class Results:
    """The runs in a folder: ``results.csv``, and for each its curves in ``details``.

    The table is written anew after each run, in one piece, so that a run that is stopped leaves
    whole rows only, and the next one continues.
    """

    def __init__(self, folder: str | Path):
        self.folder = writable_folder(folder)
        self.path = self.folder / "results.csv"
        self.rows: list[dict] = read_results(self.path) if self.path.is_file() else []

    def __contains__(self, key: str) -> bool:
        return any(row["key"] == key for row in self.rows)

    def add(self, row: dict, details: dict) -> None:
        if details:
            (self.folder / "details").mkdir(exist_ok=True)
            with atomic_write(self.folder / "details" / f"{row['key']}.json") as temporary:
                temporary.write_text(json.dumps(details) + "\n", encoding="utf-8")
        self.rows.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        with atomic_write(self.path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")

    def details(self, row: dict) -> dict:
        path = self.folder / "details" / f"{row['key']}.json"
        return json.loads(path.read_text(encoding="utf-8"))


def add_baseline(
    results: Results, texts: Mapping[str, LabelledTexts], data: str, model: str, measured: dict
) -> None:
    """Record a model that is not ours: ``measured`` has its probabilities by split, and seconds."""
    key = f"{model}, {data_hash_of(texts)[:8]}".replace(" ", "-")
    if key in results:
        return
    row = dict.fromkeys(COLUMNS, "") | {"key": key, "model": model, "data": data, "seed": 0}
    row |= {"test_texts": len(texts["test"]), "trainable_parameters": 0, "max_length": 0}
    row |= {"seconds": round(measured["seconds"], 2), "frozen_seconds": 0.0}
    row |= {name: round(measured[name], 6) for name in SPLITS}
    results.add(row, {})


def data_hash_of(texts: Mapping[str, LabelledTexts]) -> str:
    """A hash of all texts and labels: the same data under any name."""
    content = json.dumps([[split.texts, split.labels] for split in texts.values()])
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def read_results(path: Path) -> list[dict]:
    """The rows of a table of results; ``ValueError`` if it is another table."""
    df = pd.read_csv(path, keep_default_na=False, dtype={"key": str, "row": str, "options": str})
    if tuple(df.columns) != COLUMNS:
        raise ValueError(f"{path} is no table of ours: choose another --out")
    return df.to_dict("records")


@dataclass(frozen=True)
class Run:
    """One experiment of a script. ``prepare`` is called with the settings of each seed."""

    model: str
    settings: Settings
    prepare: Callable[[Settings], Prepared]
    row: str = ""
    about: str = ""  # options beside the settings


def record(
    runs: Iterable[Run], texts: Mapping[str, LabelledTexts], data: str, results: Results, device
) -> None:
    """Do the runs that are not in the results yet."""
    data_hash = data_hash_of(texts)
    for run in runs:
        key = run.settings.key(run.model, run.about, data_hash)
        title = f"{run.model} {run.about} {options_of(run.settings)} seed {run.settings.seed}"
        if key in results:
            print(f"Already done: {title}")
            continue
        print(f"Running: {title}", flush=True)
        prepared = run.prepare(run.settings)
        result = run_experiment(prepared, run.settings, device)
        row = result_row(run, key, data, result, len(texts["test"]))
        results.add(row, details_of(run, prepared, result, texts))
        print(
            f"train {row['train']:.2%}, validation {row['validation']:.2%}, "
            f"test {row['test']:.2%}, {row['seconds']:.0f} s"
        )


def result_row(run: Run, key: str, data: str, result: Result, test_texts: int) -> dict:
    return {
        "key": key,
        "row": run.row,
        "model": run.model,
        "options": f"{run.about} {options_of(run.settings)}".strip(),
        "data": data,
        "seed": run.settings.seed,
        **{name: round(result.accuracies[name], 6) for name in SPLITS},
        "test_texts": test_texts,
        "seconds": round(result.seconds, 1),
        "frozen_seconds": round(result.frozen_seconds, 1),
        "trainable_parameters": result.trainable_parameters,
        "max_length": result.max_length,
    }


def details_of(
    run: Run, prepared: Prepared, result: Result, texts: Mapping[str, LabelledTexts]
) -> dict:
    """Curves, probabilities, labels, and what was wrong in the test."""
    about = asdict(result)
    return {
        **{name: about[name] for name in ("steps", "train_losses", "val_losses")},
        "epoch_val_accuracies": result.epoch_val_accuracies,
        "test_probabilities": [[round(p, 5) for p in row] for row in result.probabilities["test"]],
        "test_labels": texts["test"].labels,
        "mistakes": mistakes_of(prepared, result, texts["test"]),
    }


def mistakes_of(
    prepared: Prepared, result: Result, test: LabelledTexts, limit: int = 12
) -> list[dict]:
    """The test texts with the surest wrong answers, and the tokens that spoke for them most."""
    wrong = [
        (max(row), index)
        for index, row in enumerate(result.probabilities["test"])
        if row.index(max(row)) != test.labels[index]
    ]
    mistakes = []
    for probability, index in sorted(wrong, reverse=True)[:limit]:
        mistake = {
            "text": test.texts[index],
            "label": test.labels[index],
            "probability": round(probability, 4),
        }
        if prepared.token_ids is not None:  # a GPT, whose tokens can be asked
            token_ids = prepared.token_ids(test.texts[index])
            answer = answer_of(prepared.classifier, token_ids)
            scores = gradient_times_input(prepared.classifier, token_ids, answer.index(max(answer)))
            best = sorted(range(len(scores)), key=lambda i: -scores[i])[:3]
            mistake["tokens"] = [prepared.decode([token_ids[i]]) for i in best]
        mistakes.append(mistake)
    return mistakes


def add_bert_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="distilbert",
        help="distilbert (default), bert, roberta, modernbert-base, modernbert-large, "
        "deberta-v3-base, minilm, or a folder",
    )
    parser.add_argument(
        "--trainable_layers", default="all", help="all (default), last_block or last_layer"
    )
    parser.add_argument(
        "--use_attention_mask", default="true", help="true (default): padding is not looked at"
    )
    parser.add_argument(
        "--context_length", default="256", help="tokens of a text that are read (default: 256)"
    )


def train_berts(
    args: argparse.Namespace, read_texts: Callable[[], dict[str, LabelledTexts]], data: str
) -> None:
    """The whole of the two scripts with BERT-type models."""
    if args.use_attention_mask not in ("true", "false"):
        raise ValueError(
            f"use_attention_mask must be true or false, got {args.use_attention_mask!r}"
        )
    if args.trainable_layers not in BERT_LAYERS:
        raise ValueError(
            f"trainable_layers must be one of {BERT_LAYERS}, got {args.trainable_layers!r}"
        )
    settings_from(args)
    device, with_mask = pick_device(args.device), args.use_attention_mask == "true"
    texts = read_texts()

    def prepare_run(settings: Settings) -> Prepared:
        torch.manual_seed(settings.seed)
        model, tokenizer = load_bert(args.model)
        return prepare_bert(model, tokenizer, texts, settings, device, with_mask)

    about = "" if with_mask else "--use_attention_mask false"
    runs = [
        Run(args.model, settings_from(args, seed=seed), prepare_run, "", about)
        for seed in args.seeds
    ]
    record(runs, texts, data, Results(args.out), device)
