"""Chapter 2: from raw text to batches of token ids.

Two toy tokenizers show the idea (2.2 to 2.4); then the GPT-2 tokenizer feeds a sliding window that
yields input and target tensors (2.6).
"""

import re

import torch
from torch.utils.data import DataLoader, Dataset

from llms_from_scratch.tokenizer import get_tokenizer


def split_into_tokens(text: str) -> list[str]:
    """Split text into words and punctuation marks; white space only separates (section 2.2).

    >>> split_into_tokens("Hello, world. Is this-- a test?")
    ['Hello', ',', 'world', '.', 'Is', 'this', '--', 'a', 'test', '?']
    """
    pieces = re.split(r'([,.:;?_!"()\']|--|\s)', text)
    return [piece.strip() for piece in pieces if piece.strip()]


class SimpleTokenizerV1:
    """Word-level tokenizer over a fixed vocabulary (section 2.3).

    ``vocab`` maps each token to its id. Encoding a word that is not in it raises ``KeyError``.

    >>> tokenizer = SimpleTokenizerV1({"!": 0, "Hello": 1})
    >>> tokenizer.encode("Hello!"), tokenizer.decode([1, 0])
    ([1, 0], 'Hello!')
    """

    def __init__(self, vocab: dict[str, int]):
        self.str_to_int = vocab
        self.int_to_str = {token_id: token for token, token_id in vocab.items()}

    def encode(self, text: str) -> list[int]:
        return [self.str_to_int[token] for token in split_into_tokens(text)]

    def decode(self, ids: list[int]) -> str:
        text = " ".join(self.int_to_str[token_id] for token_id in ids)
        return re.sub(r'\s+([,.?!"()\'])', r"\1", text)  # no space before punctuation


class SimpleTokenizerV2:
    """Word-level tokenizer that maps unknown words to ``<|unk|>`` (section 2.4).

    >>> tokenizer = SimpleTokenizerV2({"Hello": 0, ";": 1, "<|unk|>": 2})
    >>> tokenizer.encode("Hello; stranger"), tokenizer.decode([0, 1, 2])
    ([0, 1, 2], 'Hello; <|unk|>')
    """

    def __init__(self, vocab: dict[str, int]):
        self.str_to_int = vocab
        self.int_to_str = {token_id: token for token, token_id in vocab.items()}

    def encode(self, text: str) -> list[int]:
        unknown = self.str_to_int["<|unk|>"]
        return [self.str_to_int.get(token, unknown) for token in split_into_tokens(text)]

    def decode(self, ids: list[int]) -> str:
        text = " ".join(self.int_to_str[token_id] for token_id in ids)
        return re.sub(r'\s+([,.:;?!"()\'])', r"\1", text)


class GPTDatasetV1(Dataset):
    """Sliding windows over a text, with targets one token ahead (section 2.6).

    Item ``i`` is ``(input_ids[i], target_ids[i])``, two int64 tensors of shape (max_length,).
    Both attributes are views on one token tensor, so overlapping windows cost no memory. Raises
    ``ValueError`` for a ``max_length`` or ``stride`` below 1, and for too short a text.
    """

    def __init__(self, txt: str, tokenizer, max_length: int, stride: int):
        if max_length < 1 or stride < 1:
            raise ValueError(
                f"max_length and stride must be at least 1, got {max_length=} and {stride=}"
            )
        token_ids = torch.tensor(
            tokenizer.encode(txt, allowed_special={"<|endoftext|>"}), dtype=torch.long
        )
        if len(token_ids) <= max_length:
            raise ValueError(
                f"the text has {len(token_ids)} tokens, but one window of {max_length=} needs at "
                f"least {max_length + 1}: use a longer text or a smaller max_length"
            )
        self.input_ids = token_ids[:-1].unfold(0, max_length, stride)  # (num_windows, max_length)
        self.target_ids = token_ids[1:].unfold(0, max_length, stride)  # (num_windows, max_length)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, idx) -> tuple[torch.Tensor, torch.Tensor]:
        return self.input_ids[idx], self.target_ids[idx]


def create_dataloader_v1(
    txt: str,
    batch_size: int = 4,
    max_length: int = 256,
    stride: int = 128,
    shuffle: bool = True,
    drop_last: bool = True,
    num_workers: int = 0,
) -> DataLoader:
    """Batches of ``(inputs, targets)``, each of shape (batch_size, max_length), in GPT-2 tokens.

    ``drop_last`` leaves out a last batch that is not full: in training, it could cause a spike of
    the loss. Raises ``ValueError`` as ``GPTDatasetV1`` does, and if no batch is left.
    """
    dataset = GPTDatasetV1(txt, get_tokenizer("gpt2"), max_length, stride)
    if drop_last and len(dataset) < batch_size:
        raise ValueError(
            f"the text gives {len(dataset)} windows, which do not fill a single batch of "
            f"{batch_size}: use a longer text, a smaller batch_size, or drop_last=False"
        )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        num_workers=num_workers,
    )
