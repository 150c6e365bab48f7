"""Chapter 2: tokenizers that round-trip, and windows that are shifted by one token."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llms_from_scratch.ch02 import (
    GPTDatasetV1,
    SimpleTokenizerV1,
    SimpleTokenizerV2,
    create_dataloader_v1,
    split_into_tokens,
)
from llms_from_scratch.tokenizer import get_tokenizer


class CharTokenizer:
    """One id per character, so that expected windows can be written down."""

    def encode(self, text, allowed_special=()):
        return [ord(character) for character in text]


@settings(deadline=None)
@given(num_tokens=st.integers(2, 60), max_length=st.integers(1, 20), stride=st.integers(1, 25))
def test_windows_are_those_of_a_plain_loop(num_tokens, max_length, stride):
    if num_tokens <= max_length:
        return
    ids = list(range(65, 65 + num_tokens))
    dataset = GPTDatasetV1("".join(map(chr, ids)), CharTokenizer(), max_length, stride)
    starts = range(0, num_tokens - max_length, stride)
    assert [x.tolist() for x, _ in dataset] == [ids[i : i + max_length] for i in starts]
    assert [y.tolist() for _, y in dataset] == [ids[i + 1 : i + max_length + 1] for i in starts]
    assert len(dataset.input_ids) == len(dataset.target_ids) == len(dataset) == len(starts)
    assert dataset[0][0].dtype == torch.long


def test_windows_share_the_memory_of_one_token_tensor():
    dataset = GPTDatasetV1("a" * 10_000, CharTokenizer(), max_length=1000, stride=1)
    storages = {dataset.input_ids.untyped_storage().data_ptr()}
    storages |= {dataset.target_ids.untyped_storage().data_ptr()}
    assert len(storages) == 1
    assert dataset.input_ids.untyped_storage().nbytes() == 10_000 * 8


def test_building_at_stride_one_costs_little_more_than_tokenizing():
    text = "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 15_500  # 1 MB
    tokenizer = get_tokenizer("gpt2")
    ratios = []
    for _ in range(5):
        start = time.perf_counter()
        tokenizer.encode(text)
        middle = time.perf_counter()
        GPTDatasetV1(text, tokenizer, max_length=256, stride=1)
        ratios.append((time.perf_counter() - middle) / (middle - start))
    assert min(ratios) < 2


@pytest.mark.parametrize(
    ("text", "max_length", "stride", "message"),
    [
        ("", 4, 1, "the text has 0 tokens, but one window of max_length=4 needs at least 5"),
        ("abcd", 4, 1, "the text has 4 tokens"),
        ("abcdef", 0, 1, "max_length and stride must be at least 1, got max_length=0 and stride=1"),
        ("abcdef", 4, 0, "stride=0"),
        ("abcdef", -3, 1, "max_length=-3"),
        ("abcdef", 4, -1, "stride=-1"),
    ],
)
def test_windows_that_cannot_be_made_are_refused(text, max_length, stride, message):
    with pytest.raises(ValueError, match=message):
        GPTDatasetV1(text, CharTokenizer(), max_length, stride)


def test_a_text_of_one_window_and_its_target_is_enough():
    dataset = GPTDatasetV1("abcde", CharTokenizer(), max_length=4, stride=1)
    assert len(dataset) == 1


def test_loader_keeps_or_drops_the_last_batch_as_asked():
    text = "word " * 23  # 23 or 24 tokens
    kept = create_dataloader_v1(text, batch_size=4, max_length=2, stride=2, drop_last=False)
    dropped = create_dataloader_v1(text, batch_size=4, max_length=2, stride=2)
    assert sum(len(x) for x, _ in kept) == len(kept.dataset)
    assert all(len(x) == 4 for x, _ in dropped)


def test_shuffling_is_fixed_by_the_seed_and_loses_nothing():
    def starts(seed):
        torch.manual_seed(seed)
        loader = create_dataloader_v1("one two three four five " * 40, 4, 3, 3, drop_last=False)
        return [tuple(row.tolist()) for x, _ in loader for row in x]

    assert starts(1) == starts(1) != starts(2)
    assert sorted(starts(1)) == sorted(starts(2))


@given(st.lists(st.sampled_from(["tea", "Hello", ",", ".", "?", "!", "(", ")", "'", "--"])))
def test_simple_tokenizers_restore_the_tokens_that_they_encoded(tokens):
    words = ["tea", "Hello", ",", ".", "?", "!", "(", ")", "'", "--", "<|endoftext|>", "<|unk|>"]
    vocab = {word: i for i, word in enumerate(words)}
    for tokenizer in (SimpleTokenizerV1(vocab), SimpleTokenizerV2(vocab)):
        text = tokenizer.decode(tokenizer.encode(" ".join(tokens)))
        assert split_into_tokens(text) == tokens


def test_unknown_words_raise_in_v1_and_become_unk_in_v2():
    vocab = {"tea": 0, "<|unk|>": 1}
    with pytest.raises(KeyError, match="Hello"):
        SimpleTokenizerV1(vocab).encode("Hello tea")
    assert SimpleTokenizerV2(vocab).encode("Hello tea") == [1, 0]


@given(num_words=st.integers(2, 60), batch_size=st.integers(1, 12), drop_last=st.booleans())
def test_a_loader_has_at_least_one_batch_or_is_refused(num_words, batch_size, drop_last):
    text = " word" * num_words  # a token each
    windows = num_words // 4 - (num_words % 4 == 0)
    if windows == 0 or (drop_last and windows < batch_size):
        with pytest.raises(ValueError, match="use a longer text"):
            create_dataloader_v1(text, batch_size, 4, 4, drop_last=drop_last)
    else:
        assert len(create_dataloader_v1(text, batch_size, 4, 4, drop_last=drop_last)) >= 1
