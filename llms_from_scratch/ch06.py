"""Chapter 6: finetuning a GPT to tell spam from other messages.

Shapes: b = batch size, num_tokens = length of the padded messages, num_classes = 2.
"""

import contextlib
import csv
import hashlib
import io
import json
import math
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from llms_from_scratch.ch05 import evaluating, plot_losses, take_batches
from llms_from_scratch.data import SAMPLES, check_file, find_asset, resolve
from llms_from_scratch.data.archive import read_zip_member
from llms_from_scratch.data.files import atomic_write, sha256_of
from llms_from_scratch.data.http import DownloadError, download
from llms_from_scratch.saving import (
    GPT_CLASSES,
    describe_model,
    merged_state_dict,
    new_model,
    plain_value,
    read_settings,
)
from llms_from_scratch.weights.pretrained import Pretrained
from llms_from_scratch.weights.saved_tokenizers import (
    describe_tokenizer,
    read_tokenizer,
    write_tokenizer,
)

LABELS = {"ham": 0, "spam": 1}  # ham is what is not spam
ASSET = find_asset("sms-spam")
REAL, SYNTHETIC = "SMS Spam Collection", "synthetic messages"
SYNTHETIC_NOTICE = (
    "NOTICE: these messages are synthetic; accuracy on them says nothing about real SMS."
)


def download_and_unzip_spam_data(
    url: str, zip_path: str | Path, extracted_path: str | Path, data_file_path: str | Path
) -> None:
    """Write the SMS Spam Collection to ``data_file_path``, checked by its hash (section 6.2).

    The archive is kept as ``zip_path``. Without a network, the bundled synthetic messages take
    their place and a notice says so. A file that exists already is kept, except for the synthetic
    messages, as soon as the real ones can be had.
    """
    data_file_path = Path(data_file_path)
    exists = data_file_path.exists()
    if exists and url in ASSET.urls and identify_data(data_file_path) == SYNTHETIC:
        with contextlib.suppress(DownloadError):
            resolve(ASSET.name, allow_sample=False, target=Path(zip_path))
            exists = False
    if exists:
        print(f"{data_file_path} already exists. Skipping download and extraction.")
    else:
        zip_path = Path(zip_path)
        zip_path.parent.mkdir(parents=True, exist_ok=True)
        if url in ASSET.urls:
            zip_path = resolve(ASSET.name, target=zip_path).path
        else:
            download([url], zip_path, check=lambda part: check_file(ASSET, part))
        content = read_zip_member(zip_path, ASSET.member)
        for folder in (Path(extracted_path), data_file_path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(data_file_path) as temporary:
            temporary.write_bytes(content)
        print(f"File downloaded and saved as {data_file_path.as_posix()}")
    if identify_data(data_file_path) == SYNTHETIC:
        print(SYNTHETIC_NOTICE)


def identify_data(data_file_path: str | Path) -> str:
    """``REAL``, ``SYNTHETIC`` or the file's name: by its hash, whatever it is called."""
    if sha256_of(data_file_path) == ASSET.member_sha256:
        return REAL
    bundled = read_zip_member(SAMPLES / ASSET.sample, ASSET.member)
    if sha256_of(data_file_path) == hashlib.sha256(bundled).hexdigest():
        return SYNTHETIC
    return Path(data_file_path).name


def load_messages(data_file_path: str | Path) -> pd.DataFrame:
    """Read messages with the columns ``Label`` and ``Text``.

    The format is that of the collection, label, tab, text and no header, or CSV with a header. For
    the synthetic messages, a column ``Template`` says which ones were made from one template.
    Raises ``ValueError`` for a file without such columns, without rows or that is not UTF-8, and
    names the first row with too many or too few fields.
    """
    if Path(data_file_path).suffix == ".csv":
        return _read_csv(data_file_path)
    df = _read_csv(data_file_path, sep="\t", header=None, names=["Label", "Text"])
    if identify_data(data_file_path) == SYNTHETIC:
        df["Template"] = read_zip_member(SAMPLES / ASSET.sample, "templates.txt").decode().split()
    return df


def _read_csv(path: str | Path, **options) -> pd.DataFrame:
    """Read a table in which each text stays as it is, also "NA", "TRUE", "0800" and "1.10".

    Raises ``ValueError`` for a file that is no such table.
    """
    options = {"keep_default_na": False, "dtype": {"Text": str}} | options
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")  # with or without byte order mark
        _check_rows(text, options.get("sep", ","), options.get("names"), str(path))
        df = pd.read_csv(io.StringIO(text, newline=""), **options)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): save it so") from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ValueError(f"{path} is not a table of messages: {error}") from None
    _check_columns(df, str(path))
    return df


def _check_rows(text: str, separator: str, names: list[str] | None, what: str) -> None:
    """Raise ``ValueError`` for a row that does not have the columns' number of fields."""
    if "\0" in text:
        raise ValueError(f"{what} contains NUL characters: it is no text, or UTF-16")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    sign = "comma" if separator == "," else "tab"
    try:
        width = len(names) if names else None
        for row in filter(None, rows):
            width = width or len(row)  # the first row is the header
            if len(row) != width:
                advice = f"put texts with a {sign} in quotes" if len(row) > width else "fill it up"
                raise ValueError(
                    f"{what}, line {rows.line_num}: {len(row)} fields separated by a {sign} instead"
                    f" of {width}: {advice}; it is {separator.join(row)!r:.80}"
                )
    except csv.Error:  # a field of 128 kB, say: pandas may know what to do
        return


def _check_labels(labels: pd.Series, allowed: tuple, what: str) -> None:
    """Raise ``ValueError`` for the first label that is not allowed, with its row from 1."""
    for row, label in enumerate(labels, 1):
        if label not in allowed:
            cause = ": is this a header? Such a file has none" if label == "Label" else ""
            known = " or ".join(map(repr, allowed))
            raise ValueError(
                f"{what}, row {row}: unknown label {label!r:.60}: labels must be {known}{cause}"
            )


def _check_columns(df: pd.DataFrame, what: str = "the table") -> None:
    missing = [name for name in ("Label", "Text") if name not in df.columns]
    if missing:
        raise ValueError(f"{what} has no column {missing[0]!r}; it has {list(df.columns)!r:.80}")
    if df.empty:
        raise ValueError(f"{what} has no rows")


def check_messages(df: pd.DataFrame) -> None:
    """Raise ``ValueError`` unless a table has messages of both labels, and of no other label."""
    _check_columns(df)
    _check_labels(df["Label"], tuple(LABELS), "the table")
    for label in LABELS:
        if label not in set(df["Label"]):
            raise ValueError(f"the table has no {label}: one class only")


def create_balanced_dataset(df: pd.DataFrame) -> pd.DataFrame:
    """As many rows of ham as there are of spam, chosen at random, then the spam (section 6.2).

    Raises ``ValueError`` for a label that is neither ``"ham"`` nor ``"spam"``, and if one of them
    does not occur.
    """
    check_messages(df)
    ham, spam = df[df["Label"] == "ham"], df[df["Label"] == "spam"]
    size = min(len(ham), len(spam))
    return pd.concat([ham.sample(size, random_state=123), spam[:size]])


def random_split(
    df: pd.DataFrame, train_frac: float, validation_frac: float
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Shuffle the rows and cut them into parts to train, validate and test (section 6.2)."""
    check_fractions(train_frac, validation_frac)
    df = df.sample(frac=1, random_state=123).reset_index(drop=True)
    if "Template" in df.columns:  # the invented messages: near copies must stay together
        return split_by_template(df, train_frac, validation_frac)
    train_end = int(len(df) * train_frac)
    validation_end = train_end + int(len(df) * validation_frac)
    return df[:train_end], df[train_end:validation_end], df[validation_end:]


def check_fractions(train_frac: float, validation_frac: float) -> None:
    """Raise ``ValueError`` unless both, and what is left for the test, are from 0 to 1."""
    if min(train_frac, validation_frac, 1 - train_frac - validation_frac) < -1e-9:
        raise ValueError(f"fractions must be from 0 to 1 in sum: {train_frac}, {validation_frac}")


def split_by_template(
    df: pd.DataFrame, train_frac: float, validation_frac: float
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Three parts as of ``random_split``; rows with the same ``Template`` come into the same part.

    Otherwise near copies of the training messages would be found in the test set.
    """
    order = {name: i for i, name in enumerate(df["Template"].unique())}
    share = df["Template"].map(order) / len(order)
    in_train = share < train_frac
    in_validation = ~in_train & (share < train_frac + validation_frac)
    return df[in_train], df[in_validation], df[~in_train & ~in_validation]


def read_labelled_csv(csv_file: str | Path) -> pd.DataFrame:
    """A CSV file with the columns ``Label``, 0 or 1, and ``Text``; ``ValueError`` if it is none."""
    df = _read_csv(csv_file)
    _check_labels(df["Label"], (0, 1), str(csv_file))
    return df


class SpamDataset(Dataset):
    """Messages as token ids of one length, and labels 0 or 1 (section 6.3).

    Longer messages than ``max_length`` are cut, shorter ones are filled up with ``pad_token_id``.
    By default the longest message gives the length, and the tokenizer its end-of-text token
    (50256 for GPT-2). The file is CSV with the columns ``Label`` and ``Text``.
    """

    def __init__(self, csv_file, tokenizer, max_length=None, pad_token_id=None):
        self.data = read_labelled_csv(csv_file)
        encoded = [tokenizer.encode_ordinary(text) for text in self.data["Text"]]
        self.max_length = max(1, *map(len, encoded)) if max_length is None else max_length
        if pad_token_id is None:
            pad_token_id = tokenizer.eot_token
        self.encoded_texts = [pad_or_cut(ids, self.max_length, pad_token_id) for ids in encoded]

    def __getitem__(self, index):
        token_ids, label = self.encoded_texts[index], int(self.data["Label"].iloc[index])
        return torch.tensor(token_ids), torch.tensor(label)  # (max_length,), ()

    def __len__(self):
        return len(self.data)


def pad_or_cut(token_ids: list[int], max_length: int, pad_token_id: int) -> list[int]:
    """Exactly ``max_length`` token ids; ``ValueError`` if that is less than 1.

    >>> pad_or_cut([7, 8, 9], 5, 0), pad_or_cut([7, 8, 9], 2, 0)
    ([7, 8, 9, 0, 0], [7, 8])
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    return token_ids[:max_length] + [pad_token_id] * (max_length - len(token_ids))


def replace_output_head(model: nn.Module, num_classes: int = 2) -> None:
    """Put a new, random output layer for the classes in place of the vocabulary's (section 6.5).

    It is on the old one's device and has its precision.
    """
    old = model.out_head
    model.out_head = nn.Linear(old.in_features, num_classes).to(old.weight)


def set_trainable_layers(model: nn.Module, which: str = "last_block") -> None:
    """Freeze a model except for its output layer and what ``which`` adds to it (section 6.5).

    ``"last_layer"`` adds nothing, ``"last_block"`` the last transformer block and the final
    normalization, ``"last_two_blocks"`` one block more, ``"all"`` everything.
    """
    blocks = {"last_layer": 0, "last_block": 1, "last_two_blocks": 2, "all": 0}
    if which not in blocks:
        raise ValueError(f"trainable layers must be one of {tuple(blocks)}, got {which!r}")
    model.requires_grad_(which == "all")
    model.out_head.requires_grad_(True)
    if blocks[which]:
        model.final_norm.requires_grad_(True)
        model.trf_blocks[-blocks[which] :].requires_grad_(True)


def calc_accuracy_loader(
    data_loader: Iterable,
    model: nn.Module,
    device: torch.device | str,
    num_batches: int | None = None,
) -> float:
    """Share of right answers in the first ``num_batches`` batches of a loader, or in all.

    The result is NaN if there is no batch (section 6.6).
    """
    num_correct, num_examples = 0, 0
    with evaluating(model):
        for input_batch, target_batch in take_batches(data_loader, num_batches):
            logits = model(input_batch.to(device))[:, -1, :]  # (b, num_classes)
            predicted = logits.argmax(dim=-1)  # (b,)
            num_correct += (predicted == target_batch.to(device)).sum().item()
            num_examples += len(target_batch)
    return num_correct / num_examples if num_examples else math.nan


def calc_loss_batch(
    input_batch: torch.Tensor,
    target_batch: torch.Tensor,
    model: nn.Module,
    device: torch.device | str,
) -> torch.Tensor:
    """Mean cross-entropy of a batch, of the last token alone (section 6.6).

    Inputs are token ids (b, num_tokens), targets are labels (b,).
    """
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    logits = model(input_batch)[:, -1, :]  # (b, num_classes): the last token's
    return nn.functional.cross_entropy(logits, target_batch)


def calc_loss_loader(
    data_loader: Iterable,
    model: nn.Module,
    device: torch.device | str,
    num_batches: int | None = None,
) -> float:
    """Mean loss over the first ``num_batches`` batches, or all; NaN if there is none."""
    losses = [
        calc_loss_batch(input_batch, target_batch, model, device).item()
        for input_batch, target_batch in take_batches(data_loader, num_batches)
    ]
    return sum(losses) / len(losses) if losses else math.nan


def evaluate_model(
    model: nn.Module,
    train_loader: Iterable,
    val_loader: Iterable,
    device: torch.device | str,
    eval_iter: int | None,
) -> tuple[float, float]:
    """Training and validation loss over ``eval_iter`` batches each, without dropout."""
    with evaluating(model):
        return (
            calc_loss_loader(train_loader, model, device, eval_iter),
            calc_loss_loader(val_loader, model, device, eval_iter),
        )


def train_classifier_simple(
    model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq, eval_iter
) -> tuple[list[float], list[float], list[float], list[float], int]:
    """Train; measure losses every ``eval_freq`` updates and accuracies per epoch (section 6.7).

    Returns losses and accuracies, each of training and validation, and the examples seen.
    """
    check_has_batches(train_loader)
    train_losses, val_losses, train_accs, val_accs = [], [], [], []
    examples_seen = step = 0
    for epoch in range(num_epochs):
        model.train()
        for input_batch, target_batch in train_loader:
            optimizer.zero_grad()
            calc_loss_batch(input_batch, target_batch, model, device).backward()
            optimizer.step()
            examples_seen += len(input_batch)
            if step % eval_freq == 0:
                train, val = evaluate_model(model, train_loader, val_loader, device, eval_iter)
                train_losses.append(train)
                val_losses.append(val)
                print(f"Ep {epoch + 1} (Step {step:06d}): ", end="")
                print(f"Train loss {train:.3f}, Val loss {val:.3f}")
            step += 1
        train_accs.append(calc_accuracy_loader(train_loader, model, device, eval_iter))
        val_accs.append(calc_accuracy_loader(val_loader, model, device, eval_iter))
        print(f"Training accuracy: {train_accs[-1]:.2%} | Validation accuracy: {val_accs[-1]:.2%}")
    return train_losses, val_losses, train_accs, val_accs, examples_seen


def check_has_batches(train_loader) -> None:
    """Raise ``ValueError`` for a loader without a batch."""
    if len(train_loader) == 0:
        raise ValueError("the training data do not fill a single batch: use a smaller batch size")


def plot_values(
    epochs_seen,
    examples_seen,
    train_values,
    val_values,
    label: str = "loss",
    save_to: Iterable[str | Path] | None = None,
) -> None:
    """Plot losses or accuracies against epochs (below) and examples (above), and save the figure.

    It is written to ``{label}-plot.pdf`` if ``save_to`` does not say otherwise (section 6.7).
    """
    files = [f"{label}-plot.pdf"] if save_to is None else save_to
    plot_losses(epochs_seen, examples_seen, train_values, val_values, files, label, "Examples seen")


def classify_review(
    text: str,
    model: nn.Module,
    tokenizer,
    device: torch.device | str,
    max_length: int | None = None,
    pad_token_id: int | None = None,
) -> str:
    """``"spam"`` or ``"not spam"`` (section 6.8); see ``classify_with_probability``."""
    token_ids = encode_review(text, model, tokenizer, max_length, pad_token_id)  # (1, max_length)
    with evaluating(model):
        logits = model(token_ids.to(device))[:, -1, :]  # (1, num_classes)
    return "spam" if logits.argmax(dim=-1).item() == LABELS["spam"] else "not spam"


def classify_with_probability(
    text: str,
    model: nn.Module,
    tokenizer,
    device: torch.device | str,
    max_length: int | None = None,
    pad_token_id: int | None = None,
) -> tuple[str, float]:
    """The label of a text and the probability that the model gives it.

    ``max_length`` should be the length to which the training messages were padded; by default it
    is the model's context. A longer text is cut to it, with a warning. Raises ``ValueError`` for an
    empty text, and for a ``max_length`` that is longer than the context.
    """
    token_ids = encode_review(text, model, tokenizer, max_length, pad_token_id)
    with evaluating(model):
        logits = model(token_ids.to(device))[:, -1, :]  # (1, num_classes)
    probas = torch.softmax(logits, dim=-1)[0]  # (num_classes,)
    label = probas.argmax().item()
    return "spam" if label == LABELS["spam"] else "not spam", probas[label].item()


def encode_review(
    text: str,
    model: nn.Module,
    tokenizer,
    max_length: int | None = None,
    pad_token_id: int | None = None,
) -> torch.Tensor:
    """A text as the model reads it, (1, max_length); errors as of ``classify_with_probability``."""
    if not text.strip():
        raise ValueError("the text is empty: there is nothing to classify")
    context_length = model.cfg["context_length"]
    check_length(max_length, context_length)
    max_length = max_length or context_length
    if pad_token_id is None:
        pad_token_id = tokenizer.eot_token
    token_ids = tokenizer.encode_ordinary(text)
    if len(token_ids) > max_length:
        warnings.warn(
            f"the text has {len(token_ids)} tokens; only the first {max_length} are read",
            stacklevel=3,
        )
    return torch.tensor([pad_or_cut(token_ids, max_length, pad_token_id)])


def check_length(max_length: int | None, context_length: int) -> None:
    """Raise ``ValueError`` if messages of this length do not fit into the model's context."""
    if max_length is not None and not 1 <= max_length <= context_length:
        raise ValueError(
            f"max_length must be from 1 to the model's context of {context_length} tokens, "
            f"got {max_length}"
        )


def save_classifier(
    folder: str | Path,
    model: nn.Module,
    config: dict,
    max_length: int,
    *,
    base: Pretrained | None = None,
    **about,
) -> None:
    """Write ``review_classifier.safetensors`` and, beside it, what it is as JSON.

    The model may be of any architecture. ``base`` is the pretrained model that was finetuned: its
    tokenizer, unless that is GPT-2's, and its padding are kept too. ``about`` may say more, for
    example which data the classifier was trained on. LoRA layers must be merged (``merge_lora``).
    Raises ``ValueError``, before anything is written, for what ``load_classifier`` could not read.
    """
    folder = Path(folder)
    tensors = {name: t.contiguous().clone() for name, t in merged_state_dict(model).items()}
    num_classes = len(tensors["out_head.weight"])
    settings = {
        **about,
        "num_classes": num_classes,
        "max_length": max_length,
        **describe_model(model, tensors, config, num_classes),
    }
    tokenizer = describe_tokenizer(base.tokenizer) if base else None
    if tokenizer:
        settings |= {"tokenizer": tokenizer, "pad_token_id": base.pad_id}
    settings = plain_value(settings, "settings", for_json=True)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "review_classifier.safetensors") as temporary:
        save_file(tensors, temporary)
    if tokenizer:
        write_tokenizer(folder / "review_classifier.tokenizer.json", base.tokenizer)
    with atomic_write(folder / "review_classifier.json") as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_classifier(folder: str | Path) -> tuple[nn.Module, dict]:
    """The model that ``save_classifier`` wrote, in evaluation mode, and its settings.

    Its tokenizer is read by ``load_classifier_tokenizer``; ``settings["pad_token_id"]``, if it is
    there, is the padding. Raises ``FileNotFoundError`` if there is no classifier, and
    ``ValueError`` if the settings are damaged.
    """
    folder = Path(folder)
    for name in ("review_classifier.json", "review_classifier.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"there is no {name} in {folder}: train a classifier first")
    keys = ("config", "num_classes", "max_length")
    settings = read_settings(folder / "review_classifier.json", keys)
    tensors = load_file(folder / "review_classifier.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # aligned in memory
    is_gpt = settings.get("model_class", "GPTModel") in GPT_CLASSES
    with torch.device("cpu" if is_gpt else "meta"):  # others need no memory before their tensors
        model = new_model(settings)
        replace_output_head(model, settings["num_classes"])
    model.load_state_dict(tensors, assign=True)  # in the precision in which they were saved
    return model.eval(), settings


def load_classifier_tokenizer(folder: str | Path):
    """The tokenizer of the classifier in a folder: the one saved beside it, or GPT-2's."""
    folder = Path(folder)
    settings = read_settings(folder / "review_classifier.json", ())
    path = folder / "review_classifier.tokenizer.json"
    return read_tokenizer(path, settings.get("tokenizer"))


def write_splits(folder: str | Path, *splits: pd.DataFrame) -> list[Path]:
    """Write ``train.csv``, ``validation.csv`` and ``test.csv``; return their paths.

    Texts are in quotes: without them, some versions of Python write a lone carriage return so that
    it ends a row. Raises ``ValueError`` for half of a surrogate pair, which UTF-8 cannot write, and
    for a NUL character, with which a file would be no text when it is read.
    """
    paths = []
    for df in splits:
        for text in df["Text"]:
            if re.search("[\ud800-\udfff]", text):
                raise ValueError(
                    f"no UTF-8 file can hold {text!r:.60}: it has half a surrogate pair"
                )
            if "\0" in text:
                raise ValueError(f"{text!r:.60} has a NUL character, which no text file holds")
    for name, df in zip(("train", "validation", "test"), splits, strict=True):
        paths.append(Path(folder) / f"{name}.csv")
        with atomic_write(paths[-1]) as temporary:
            df[["Label", "Text"]].to_csv(temporary, index=False, quoting=csv.QUOTE_NONNUMERIC)
    return paths
