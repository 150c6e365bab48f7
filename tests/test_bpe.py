"""Byte-pair encoding: trainers agree, ids are GPT-2's, nothing is lost, exports mean the same."""

import json
import time

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llms_from_scratch.bpe import (
    LONG_CHUNK,
    BPETokenizer,
    BPETokenizerSimple,
    encode_chunk,
    gpt2_bpe_tokenizer,
    merge_pair,
    train_incremental,
    train_naive,
)
from llms_from_scratch.data import SAMPLES
from llms_from_scratch.tokenizer import END_OF_TEXT, encoder_json, get_tokenizer, vocab_bpe

STORY = (SAMPLES / "short-story.txt").read_text(encoding="utf-8")
CORPORA = {
    "prose": STORY,
    "code": "for i in range(10):\n    print(i, i * i)\n" * 20 + "x = [1, 22, 333]\n" * 5,
    "many scripts": "naïve café, 日本語 日本, Привет мир, 🙂🙂 " * 9 + "αβγ " * 4,
    "one letter": "aaaa aaaaaaa aa aaaaaaaaaaaaa " * 3,
}


@pytest.fixture(scope="module")
def gpt2():
    return gpt2_bpe_tokenizer()


@pytest.fixture(scope="module")
def trained():
    return BPETokenizer.train(STORY, vocab_size=700)


@pytest.fixture(scope="module")
def simple_story():
    tokenizer = BPETokenizerSimple()
    tokenizer.train(STORY, vocab_size=400)
    return tokenizer


# --- Training ---


@pytest.mark.parametrize("name", CORPORA)
def test_both_trainers_learn_the_same_merges(name):
    chunks = BPETokenizer([]).count_chunks(CORPORA[name])
    merges = train_incremental(chunks, 456)
    assert merges == train_naive(chunks, 456)
    assert len(merges) > 20 or name == "one letter"


@given(st.dictionaries(st.binary(min_size=1, max_size=12), st.integers(1, 5), max_size=12))
def test_both_trainers_agree_on_any_chunks(chunks):
    assert train_incremental(chunks, 300) == train_naive(chunks, 300)


@given(st.lists(st.text("ab", min_size=1, max_size=60), max_size=4), st.integers(256, 330))
def test_both_trainers_agree_on_long_runs_of_few_letters(texts, num_tokens):
    chunks = {text.encode(): number for number, text in enumerate(texts, 1)}
    assert train_incremental(chunks, num_tokens) == train_naive(chunks, num_tokens)


@pytest.mark.parametrize("text", ["a" * 60_000, "".join(map(chr, range(0x4E00, 0x8E00))) * 2])
def test_training_time_grows_in_step_with_a_chunk(text):
    def seconds(text):
        started = time.process_time()
        train_incremental({text.encode(): 1}, 600)
        return time.process_time() - started

    seconds(text[:1000])
    short = min(seconds(text[: len(text) // 8]) for _ in range(2))
    assert seconds(text) < 24 * max(short, 0.02)  # a square would be 64 times


def test_of_equally_frequent_pairs_the_one_with_the_smaller_ids_is_merged():
    assert train_naive({b"zy": 3, b"ab": 3, b"ac": 3}, 257) == [(ord("a"), ord("b"))]


def test_merges_are_those_of_an_independent_trainer_where_no_counts_tie():
    # Each pair is twice as frequent as the next, so that no rule for ties matters
    text = " ".join("ab" * 1 + " " for _ in range(64)) + "abc " * 32 + "de " * 16 + "abcde " * 8
    ours = BPETokenizer.train(text, 256 + 4, special_tokens=[])
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256 + 4,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator([text], trainer)
    learned = json.loads(theirs.to_str())["model"]["merges"]
    expected = json.loads(ours.to_tokenizers_json())["model"]["merges"]
    assert [list(pair) for pair in learned] == expected


def test_a_vocabulary_too_small_for_bytes_and_special_tokens_is_refused():
    with pytest.raises(ValueError, match="vocab_size is 200.*need 257"):
        BPETokenizer.train("text", 200)


def test_training_stops_when_there_is_nothing_left_to_merge():
    tokenizer = BPETokenizer.train("ab ab", 1000)
    assert tokenizer.n_vocab == 256 + 2 + 1  # "ab", " ab", and the special token
    assert tokenizer.encode("ab ab") == [256, 257]


def test_special_tokens_are_borders_in_the_training_text():
    tokenizer = BPETokenizer.train(f"one{END_OF_TEXT}two" * 50, 400)
    special = tokenizer.n_vocab - 1
    assert tokenizer.special_tokens == {END_OF_TEXT: special}
    learned = {value for token, value in tokenizer.vocab.items() if 256 <= token < special}
    assert {b"one", b"two"} <= learned
    assert not any(set(b"<|>") & set(value) for value in learned)


# --- Encoding ---


@settings(max_examples=2000, deadline=None)
@given(st.text(max_size=60))
@example("two  spaces   three\n\nlines\r\n\ttab")
@example("🙂 naïve 日本語 e\u0301 \u00a0\u200d")
@example("don't we'll I'M 'tis")
@example("\ud800 half a surrogate pair \udfff")
@example("x" * 200 + " " * 100 + "-" * 300)
def test_ids_are_those_of_gpt2(gpt2, text):
    assert gpt2.encode_ordinary(text) == get_tokenizer().encode_ordinary(text)


def test_ids_of_ten_thousand_strings_are_those_of_gpt2(gpt2):
    import random

    generator = random.Random(0)
    alphabets = [
        "abcdefghij klmnopqrstuvwxyz",
        "  \n\t aA'\".,-1234567890",
        "".join(map(chr, range(32, 0x250))) + " ",
        "🙂👍🏽日本語カナ한국어аяЖ αω\u200d\u0301",
    ]
    strings = [
        "".join(generator.choices(generator.choice(alphabets), k=generator.randrange(40)))
        for _ in range(10_000)
    ]
    expected = get_tokenizer().encode_ordinary_batch(strings)
    assert [gpt2.encode_ordinary(text) for text in strings] == expected


@given(st.text(max_size=100))
def test_decoding_gives_the_text_back(trained, text):
    ids = trained.encode_ordinary(text)
    assert trained.decode(ids) == text
    assert all(0 <= token < trained.n_vocab for token in ids)


@given(st.lists(st.integers(0, 3), max_size=3 * LONG_CHUNK))
def test_long_and_short_chunks_are_encoded_alike(ids):
    pairs = [(0, 0), (0, 1), (4, 4), (1, 2), (5, 3), (6, 4)]
    rank_of = {pair: rank for rank, pair in enumerate(pairs)}
    id_of = {pair: 4 + rank for rank, pair in enumerate(pairs)}
    expected = ids
    while known := [pair for pair in zip(expected, expected[1:], strict=False) if pair in rank_of]:
        pair = min(known, key=rank_of.get)
        expected = merge_pair(expected, pair, id_of[pair])
    assert encode_chunk(ids, rank_of, id_of) == expected


def test_time_grows_in_step_with_a_run_of_one_letter(gpt2):
    def seconds(length):
        started = time.process_time()
        ids = gpt2.encode("a" * length)
        assert gpt2.decode(ids) == "a" * length
        return time.process_time() - started

    seconds(1_000)
    assert seconds(100_000) < 30 * max(seconds(10_000), 0.02)  # a square would be 100 times


def test_special_tokens_in_a_text_are_refused_allowed_or_plain(gpt2):
    text = f"one{END_OF_TEXT}two"
    with pytest.raises(ValueError, match="allowed_special, or use encode_ordinary"):
        gpt2.encode(text)
    allowed = gpt2.encode(text, allowed_special={END_OF_TEXT})
    assert allowed == get_tokenizer().encode(text, allowed_special={END_OF_TEXT})
    assert allowed == gpt2.encode(text, allowed_special="all")
    plain = gpt2.encode_ordinary(text)
    assert 50256 not in plain and plain == get_tokenizer().encode_ordinary(text)
    with pytest.raises(ValueError, match="not special tokens"):
        gpt2.encode(text, allowed_special={"<|pad|>"})


def test_unknown_ids_are_named(trained):
    with pytest.raises(ValueError, match="id 5000 is not in the vocabulary of 700 tokens"):
        trained.decode([65, 5000])


@pytest.mark.parametrize(
    "convert", [torch.tensor, np.array, tuple, iter, lambda ids: list(np.array(ids))]
)
def test_ids_may_come_as_a_tensor_an_array_or_any_row(trained, simple_story, convert):
    for tokenizer in (trained, simple_story):
        ids = tokenizer.encode("the cat")
        assert tokenizer.decode(convert(ids)) == "the cat"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 3, dtype=torch.long), r"whole numbers, got \[0, 0, 0\]: decode one row"),
        ([[1, 2]], "decode one row at a time"),
        (torch.tensor([1.0]), "whole numbers, got 1.0"),
        ([None], "whole numbers, got None"),
        (["65"], "whole numbers, got '65'"),
        (torch.tensor([9_999_999]), "id 9999999 is not in the vocabulary"),
    ],
)
def test_what_is_no_row_of_ids_is_named(trained, simple_story, ids, message):
    for tokenizer in (trained, simple_story):
        with pytest.raises(ValueError, match=message):
            tokenizer.decode(ids)


# --- Files and other libraries ---


def test_a_saved_tokenizer_is_the_same(trained, tmp_path):
    trained.save(tmp_path / "bpe.json")
    loaded = BPETokenizer.load(tmp_path / "bpe.json")
    assert (loaded.merges, loaded.vocab) == (trained.merges, trained.vocab)
    assert loaded.encode(STORY) == trained.encode(STORY)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "other"}', "\x00"])
def test_another_file_is_no_tokenizer(content, tmp_path):
    (tmp_path / "bpe.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"was not written by BPETokenizer\.save"):
        BPETokenizer.load(tmp_path / "bpe.json")


def test_a_merge_of_unknown_tokens_is_refused(tmp_path):
    with pytest.raises(ValueError, match="merge 1 joins"):
        BPETokenizer([(300, 65)])
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\nab xyz\n", encoding="utf-8")
    with pytest.raises(ValueError, match="merge 2: 'xyz' is not a token so far"):
        BPETokenizer.from_openai(tmp_path / "vocab.bpe")
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b c\n", encoding="utf-8")
    with pytest.raises(ValueError, match="merge 1 is not a pair"):
        BPETokenizer.from_openai(tmp_path / "vocab.bpe")


@pytest.mark.parametrize("which", ["trained", "gpt2"])
def test_tiktoken_and_tokenizers_give_the_same_ids(which, request):
    ours = request.getfixturevalue(which)
    tiktoken_encoding = ours.to_tiktoken()
    hugging_face = tokenizers.Tokenizer.from_str(ours.to_tokenizers_json())
    for text in [STORY, *CORPORA.values(), f"a{END_OF_TEXT}b", "  x \n\n y", ""]:
        ids = ours.encode(text, allowed_special="all")
        assert tiktoken_encoding.encode(text, allowed_special="all") == ids
        assert hugging_face.encode(text).ids == ids
        assert hugging_face.decode(ids, skip_special_tokens=False) == text


def test_a_token_learned_in_two_ways_stays_one_token():
    chunks = {b"abc": 9, b"xbc": 8, b"ab": 8, b"xab": 1, b"bc": 3, b"zabc": 1}
    merges = train_incremental(chunks, 270)
    tokenizer = BPETokenizer(merges)
    values = list(tokenizer.vocab.values())
    assert len(values) == len(set(values))


# --- The book's class ---


@pytest.fixture(scope="module")
def simple():
    tokenizer = BPETokenizerSimple()
    tokenizer.train(STORY, vocab_size=400)
    return tokenizer


@pytest.mark.real_data
def test_the_books_vocabulary_and_ids(the_verdict):
    tokenizer = BPETokenizerSimple()
    tokenizer.train(the_verdict, vocab_size=1000)
    assert (len(tokenizer.vocab), len(tokenizer.bpe_merges)) == (1000, 742)
    first = [tokenizer.vocab[token] for token in range(256, 261)]
    assert first == ["Ġ", END_OF_TEXT, "Ġt", "he", "Ġa"]
    assert not any("Ġ" in token[1:] for token in tokenizer.vocab.values())
    ids = tokenizer.encode("Jack embraced beauty through art and life.")
    expected = [74, 361, 310, 109, 98, 420, 397, 100, 300, 428, 116, 121, 519, 699, 299, 808, 534]
    assert ids == expected
    words = tokenizer.pretokenize_text(the_verdict)
    by_rank = sum(len(tokenizer.tokenize_with_bpe(word, by_rank=True)) for word in words)
    assert (len(tokenizer.encode(the_verdict)), by_rank) == (7414, 6850)


@pytest.mark.parametrize("text", ["Hello, world", "a\nb", "a\r\n\r\nb ", "  two  spaces\ttab", ""])
def test_the_books_class_decodes_what_it_encoded(simple, text):
    assert simple.decode(simple.encode(text)) == text


def test_the_books_class_keeps_its_contract(simple, tmp_path):
    assert BPETokenizerSimple.find_freq_pair([]) is None
    assert BPETokenizerSimple.find_freq_pair([42]) is None
    assert BPETokenizerSimple.find_freq_pair([1, 2, 1, 2, 3]) == (1, 2)
    assert BPETokenizerSimple.find_freq_pair([[3, 1], [2, 3, 1]]) == (3, 1)
    assert BPETokenizerSimple.find_freq_pair([1, 2, 1, 2, 3], mode="least") == (2, 1)
    assert BPETokenizerSimple.replace_pair([1, 2, 3, 1, 2], (1, 2), 9) == [9, 3, 9]
    with pytest.raises(ValueError, match="mode is 'max'"):
        BPETokenizerSimple.find_freq_pair([1, 2], mode="max")
    with pytest.raises(ValueError, match="characters and special tokens need"):
        BPETokenizerSimple().train("abc", 100)
    with pytest.raises(ValueError, match="not in the vocabulary: \\['☃'\\]"):
        simple.encode("☃")
    paths = tmp_path / "vocab.json", tmp_path / "bpe_merges.txt"
    simple.save_vocab_and_merges(*paths)
    loaded = BPETokenizerSimple()
    loaded.load_vocab_and_merges(*paths)
    assert (loaded.vocab, loaded.bpe_merges) == (simple.vocab, simple.bpe_merges)
    assert loaded.encode(STORY) == simple.encode(STORY)


@pytest.fixture(scope="module")
def openai(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openai")
    (folder / "encoder.json").write_bytes(encoder_json())
    (folder / "vocab.bpe").write_bytes(vocab_bpe())
    tokenizer = BPETokenizerSimple()
    tokenizer.load_vocab_and_merges_from_openai(folder / "encoder.json", folder / "vocab.bpe")
    return tokenizer


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("This is some text", [1212, 318, 617, 2420]),
        ("Hello,", [15496, 11]),
        ("Implementations", [3546, 26908, 602]),
        ("Hello, world. Is this-- a test?", [15496, 11, 995, 13, 1148, 428, 438, 257, 1332, 30]),
        ("a\r\nb", [64, 201, 198, 65]),
    ],
)
def test_the_books_class_with_openais_files_gives_gpt2s_ids(openai, text, ids):
    assert openai.encode(text) == ids == get_tokenizer().encode(text)
    assert openai.decode(ids) == text


def test_openais_tables_are_kept_as_they_are(openai):
    assert len(openai.vocab) == 50257
    assert (openai.vocab[198], openai.vocab[50256]) == ("Ċ", END_OF_TEXT)
    assert (openai.inverse_vocab["\n"], openai.inverse_vocab["\r"]) == (198, 201)
    with pytest.raises(ValueError, match="special token"):
        openai.encode(f"Hello{END_OF_TEXT}\nworld")
    allowed = openai.encode(f"Hello{END_OF_TEXT}\nworld", allowed_special={END_OF_TEXT})
    assert allowed == [15496, 50256, 198, 6894]
