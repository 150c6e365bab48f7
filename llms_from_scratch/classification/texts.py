"""Labelled texts: read, checked before any training, encoded, and put into batches by length.

Shapes: b = batch size, n = tokens of the longest text in a batch, emb_dim = width of a model.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pandas as pd
import torch

from llms_from_scratch.ch06 import pad_or_cut

REVIEW_LABELS = {"0": 0, "1": 1, "negative": 0, "positive": 1, "neg": 0, "pos": 1}
IGNORED = -100  # the target that cross-entropy passes over


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and their labels from 0; ``where`` names the file, for messages."""

    texts: list[str]
    labels: list[int]
    where: str = "the table"
    column: str = "Text"

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class EncodedTexts:
    """What a model reads, one tensor for each text: token ids (n,), or hidden states (n, emb_dim).

    ``lengths`` are the numbers of real tokens; what follows them is padding.
    """

    values: list[torch.Tensor]
    lengths: list[int]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class TextBatch:
    """Token ids (b, n) or hidden states (b, n, emb_dim), and the numbers of real tokens (b,)."""

    values: torch.Tensor
    lengths: torch.Tensor

    def to(self, device: torch.device | str) -> "TextBatch":
        return TextBatch(self.values.to(device), self.lengths.to(device))

    def numel(self) -> int:
        """Tokens that are computed, padding included."""
        return self.values.shape[0] * self.values.shape[1]

    def __len__(self) -> int:
        return len(self.values)


def labelled_texts(
    df: pd.DataFrame, text_column: str, label_column: str, labels: Mapping, where: str
) -> LabelledTexts:
    """Check each row of a table, so that nothing is found out in the middle of a training.

    ``labels`` maps what may stand in the column to numbers. Raises ``ValueError`` naming the row
    (from 1, the header not counted) and the column of the first empty cell, cell that is no text,
    or unknown label; and for a table without rows or with one class only.
    """
    for column in (text_column, label_column):
        if column not in df.columns:
            raise ValueError(f"{where} has no column {column!r}; it has {list(df.columns)!r:.80}")
    if df.empty:
        raise ValueError(f"{where} has no rows")
    for row, (text, label) in enumerate(zip(df[text_column], df[label_column], strict=True), 1):
        if not isinstance(text, str) or not text.strip():
            found = "is empty" if isinstance(text, str) else f"is no text but {text!r}"
            raise ValueError(
                f"{where}, row {row}, column {text_column!r}: the cell {found}; leave the row out"
            )
        if label not in labels:
            known = ", ".join(map(repr, labels))
            raise ValueError(
                f"{where}, row {row}, column {label_column!r}: unknown label {label!r:.60}; "
                f"it must be one of {known}"
            )
    numbers = [labels[label] for label in df[label_column]]
    if len(set(numbers)) < 2:
        raise ValueError(
            f"{where}, rows 1 to {len(df)}, column {label_column!r}: all have the label "
            f"{next(iter(df[label_column]))!r}; there is nothing to tell apart, add another class"
        )
    return LabelledTexts(list(df[text_column]), numbers, where, text_column)


def read_reviews(path: str | Path) -> LabelledTexts:
    """Film reviews from a CSV file with the columns ``text`` and ``label`` (0 or 1).

    The names ``review`` and ``sentiment``, with the labels negative and positive, are taken too.
    Raises ``ValueError`` as ``labelled_texts`` does, and for a file that is not UTF-8.
    """
    content = Path(path).read_bytes()
    try:
        df = pd.read_csv(
            io.StringIO(content.decode("utf-8-sig"), newline=""), dtype=str, keep_default_na=False
        )
    except UnicodeDecodeError as error:
        raise ValueError(_encoding_problem(path, content, error)) from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ValueError(f"{path} is not a table of reviews: {error}") from None
    text, label = ("review", "sentiment") if "sentiment" in df.columns else ("text", "label")
    return labelled_texts(df, text, label, REVIEW_LABELS, str(path))


def _encoding_problem(path, content: bytes, error: UnicodeDecodeError) -> str:
    """Where a file stops being UTF-8: the row by its line breaks, and the column by its commas."""
    before = content[: error.start]
    line = before.count(b"\n") + 1
    in_line = before[before.rfind(b"\n") + 1 :]
    outside_quotes = in_line.split(b'"')[::2]
    column = sum(part.count(b",") for part in outside_quotes) + 1
    return (
        f"{path}, line {line}, column {column}: byte {error.start} "
        f"(0x{content[error.start]:02x}) is not UTF-8; save the file as UTF-8"
    )


def duplicates_across(splits: Mapping[str, LabelledTexts]) -> dict[tuple[str, str], int]:
    """For each pair of splits, how many texts of the second are in the first as well.

    Upper case, and how many blanks there are, make no difference.

    >>> one, two = LabelledTexts(["Good  film"], [1]), LabelledTexts(["good film", "bad"], [1, 0])
    >>> duplicates_across({"train": one, "test": two})
    {('train', 'test'): 1}
    """
    plain = {
        name: [" ".join(text.lower().split()) for text in split.texts]
        for name, split in splits.items()
    }
    return {
        (first, second): sum(text in set(plain[first]) for text in plain[second])
        for first, second in combinations(plain, 2)
    }


def encode_all(
    data: LabelledTexts,
    encode: Callable[[str], list[int]],
    max_length: int | None = None,
    pad_to: int | None = None,
    pad_id: int = 0,
) -> EncodedTexts:
    """Token ids of each text, cut to ``max_length``; all of one length with ``pad_to``.

    Raises ``ValueError`` for a text that encodes to nothing, naming its row and column.
    """
    values, lengths = [], []
    for row, text in enumerate(data.texts, 1):
        token_ids = encode(text)[:max_length]
        if not token_ids:
            raise ValueError(
                f"{data.where}, row {row}, column {data.column!r}: {text!r:.60} encodes to no "
                "token; leave the row out"
            )
        lengths.append(min(len(token_ids), pad_to or len(token_ids)))
        token_ids = pad_or_cut(token_ids, pad_to or len(token_ids), pad_id)
        values.append(torch.tensor(token_ids, dtype=torch.long))
    return EncodedTexts(values, lengths, data.labels)


class LengthBatches:
    """A loader of ``(TextBatch, labels)`` in which texts of like length are together.

    So there is little padding: a batch is as long as its longest text. Shuffled, the order comes
    from PyTorch's random numbers; texts are sorted by length within pools of 8 batches only, so
    that batches differ from epoch to epoch. Otherwise the shortest come first, and ``order`` says
    which is where.
    """

    POOL = 8

    def __init__(
        self,
        data: EncodedTexts,
        batch_size: int,
        pad_id: int = 0,
        shuffle: bool = False,
        by_length: bool = True,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.dataset, self.batch_size, self.pad_id = data, batch_size, pad_id
        self.shuffle, self.by_length = shuffle, by_length
        self.order = self._sorted(range(len(data)))

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[TextBatch, torch.Tensor]]:
        for indices in self._batches():
            yield self._collate(indices)

    def _sorted(self, indices: Sequence[int]) -> list[int]:
        if not self.by_length:
            return list(indices)
        return sorted(indices, key=lambda index: len(self.dataset.values[index]))

    def _batches(self) -> list[list[int]]:
        if not self.shuffle:
            return _pieces(self.order, self.batch_size)
        pools = _pieces(torch.randperm(len(self.dataset)).tolist(), self.batch_size * self.POOL)
        batches = [b for pool in pools for b in _pieces(self._sorted(pool), self.batch_size)]
        return [batches[i] for i in torch.randperm(len(batches)).tolist()]

    def _collate(self, indices: list[int]) -> tuple[TextBatch, torch.Tensor]:
        data = self.dataset
        rows = [data.values[index] for index in indices]
        fill = 0.0 if rows[0].is_floating_point() else self.pad_id
        values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
        labels = torch.tensor([data.labels[index] for index in indices])
        return TextBatch(values, torch.tensor([data.lengths[index] for index in indices])), labels


def _pieces(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]
