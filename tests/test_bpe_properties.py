"""Tokenizers of every kind, made at random: saved and read without change, short and long alike."""

import json
import random

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llms_from_scratch import bpe
from llms_from_scratch.bpe import BPETokenizer, BPETokenizerSimple, Tokens, gpt2_bpe_tokenizer
from llms_from_scratch.tokenizer import END_OF_TEXT, byte_symbols, encoder_json, vocab_bpe

SETTINGS = settings(max_examples=150, deadline=None)
PATTERNS = [bpe.GPT2_SPLIT_PATTERN, r"\S+|\s+", r"(?s).", r"[\"\\é🙂]|[^\"\\é🙂]+"]
TWO_WAYS_TO_ABC = [(97, 98), (98, 99), (97, 257), (258, 256), (256, 99)]  # ab bc a+bc abc+ab ab+c
whole_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
nasty_texts = st.lists(
    st.sampled_from([*'ab \r\n\0"\\é☃🙂\u2028\u0085', "[PAD]", "<a>", "<a>b", END_OF_TEXT, "NA"]),
    max_size=20,
).map("".join)
any_texts = whole_texts | nasty_texts


@st.composite
def random_merges(draw, max_size=12):
    """Pairs of ids of a few bytes and of the tokens made so far; two may make the same token."""
    tokens, merges = Tokens(), []
    for _ in range(draw(st.integers(0, max_size))):
        ids = [*b"abc ", *range(256, len(tokens))]
        pair = (draw(st.sampled_from(ids)), draw(st.sampled_from(ids)))
        if pair not in merges:
            tokens.join(pair)
            merges.append(pair)
    return merges


@st.composite
def byte_tokenizers(draw):
    way = draw(st.sampled_from(["merges", "train", "symbols"]))
    if way == "symbols":
        symbols = [byte_symbols()[byte] for byte in b"abc "]
        pairs = []
        for _ in range(draw(st.integers(0, 8))):
            known = [*symbols, *(left + right for left, right in pairs)]
            pairs.append((draw(st.sampled_from(known)), draw(st.sampled_from(known))))
        return BPETokenizer.from_symbols(pairs)
    names = draw(st.lists(st.sampled_from(["[PAD]", "<a>", "<a>b", "é\r🙂", "\0"]), unique=True))
    pattern = draw(st.sampled_from(PATTERNS))
    if way == "train":
        return BPETokenizer.train(draw(any_texts) * 3, 280, names, pattern)
    specials = {name: 1000 + 7 * number for number, name in enumerate(names)}
    order = list(range(256))
    random.Random(draw(st.integers(0, 3))).shuffle(order)
    return BPETokenizer(draw(random_merges()), specials, pattern, order)


@SETTINGS
@given(tokenizer=byte_tokenizers(), text=any_texts)
def test_any_tokenizer_is_saved_and_read_without_change(tmp_path_factory, tokenizer, text):
    path = tmp_path_factory.getbasetemp() / "bpe.json"
    tokenizer.save(path)
    loaded = BPETokenizer.load(path)
    for name in ("merges", "vocab", "special_tokens", "pattern", "byte_order"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    assert list(loaded.special_tokens) == list(tokenizer.special_tokens)
    ids = tokenizer.encode(text, allowed_special="all")
    assert loaded.encode(text, allowed_special="all") == ids
    assert loaded.decode(ids) == tokenizer.decode(ids) == text


@SETTINGS
@given(merges=random_merges(), text=st.text("abc ", max_size=80))
@example(merges=TWO_WAYS_TO_ABC, text="abcabc")
def test_short_and_long_chunks_and_another_library_agree_on_any_merges(merges, text):
    tokenizer = BPETokenizer(merges, pattern="[abc ]+")
    start = [tokenizer._id_of_byte[byte] for byte in text.encode()]
    short_limit, results = bpe.LONG_CHUNK, []
    try:
        for bpe.LONG_CHUNK in (0, 10_000):
            results.append(bpe.encode_chunk(start, tokenizer._rank_of, tokenizer._id_of))
    finally:
        bpe.LONG_CHUNK = short_limit
    assert results[0] == results[1]
    other = tokenizers.Tokenizer.from_str(tokenizer.to_tokenizers_json())
    assert other.encode(text).ids == results[0]


def test_two_ways_to_one_token_give_the_same_ids_whatever_the_length_of_the_chunk():
    tokenizer = BPETokenizer(TWO_WAYS_TO_ABC, pattern=".+")
    once = tokenizer.encode("abcabc")
    assert once == [259, 99]  # "abcab" + "c": its merge comes before the second way to "abc"
    assert tokenizer.encode("abcabc" * 50) == once * 50


@SETTINGS
@given(names=st.sets(st.text("<ab>", min_size=1, max_size=4), max_size=4), data=st.data())
def test_special_tokens_count_if_they_are_allowed_and_are_refused_if_not(names, data):
    names = sorted(names)
    tokenizer = BPETokenizer([], {name: 300 + i for i, name in enumerate(names)})
    allowed = data.draw(st.sets(st.sampled_from(names))) if names else set()
    text = data.draw(st.lists(st.sampled_from([*names, "a", "<", " "]), max_size=6).map("".join))
    expected, rest, refused = [], text, False
    while rest:
        found = max((name for name in names if rest.startswith(name)), key=len, default="")
        refused |= bool(found) and found not in allowed
        expected.append(300 + names.index(found) if found else ord(rest[0]))
        rest = rest[len(found or rest[0]) :]
    if refused:
        with pytest.raises(ValueError, match="the text has the special token"):
            tokenizer.encode(text, allowed_special=allowed)
    else:
        assert tokenizer.encode(text, allowed_special=allowed) == expected
    assert tokenizer.encode_ordinary(text) == list(text.encode())


def test_a_special_token_within_a_longer_allowed_one_does_not_count():
    tokenizer = BPETokenizer([], {"<a>": 300, "<a>b": 301})
    assert tokenizer.encode("<a>b", allowed_special={"<a>b"}) == [301]
    with pytest.raises(ValueError, match="special token '<a>b'"):
        tokenizer.encode("<a>b", allowed_special={"<a>"})


@pytest.mark.parametrize("special", ["", "\ud800", "x\udfff"])
def test_special_tokens_that_no_text_can_have_are_refused(special):
    with pytest.raises(ValueError, match="no UTF-8 text can have the special token"):
        BPETokenizer([], {special: 300})


# --- Files that are something else

OURS = {
    "format": "llms-from-scratch BPE 1",
    "pattern": ".",
    "byte_order": list(range(256)),
    "merges": [[97, 98]],
    "special_tokens": {"<a>": 300},
}


@pytest.mark.parametrize(
    "content",
    ['"x"', "null", "3", "[1]", "[" * 100_000, '"\\ud800"']
    + [
        json.dumps(OURS | change)
        for change in (
            {"pattern": "("},
            {"pattern": 3},
            {"pattern": None},
            {"merges": None},
            {"merges": [3]},
            {"merges": [[1]]},
            {"merges": [["a", "b"]]},
            {"merges": [[97, float("inf")]]},
            {"merges": [[97, 5000]]},
            {"special_tokens": ["<a>"]},
            {"special_tokens": "x"},
            {"special_tokens": {"<a>": "x"}},
            {"special_tokens": {"<a>": 97}},
            {"special_tokens": {"": 300}},
            {"byte_order": 3},
            {"byte_order": [0, 0]},
            {"byte_order": [[], []]},
            {"format": None},
        )
    ],
)
def test_any_other_json_is_a_value_error_that_names_the_file(content, tmp_path):
    (tmp_path / "bpe.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"bpe\.json was not written by BPETokenizer\.save"):
        BPETokenizer.load(tmp_path / "bpe.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@SETTINGS
@given(key=st.sampled_from(list(OURS)), value=json_values)
def test_any_value_in_place_of_ours_is_read_or_a_value_error(tmp_path_factory, key, value):
    path = tmp_path_factory.getbasetemp() / "other.json"
    path.write_text(json.dumps(OURS | {key: value}), encoding="utf-8")
    try:
        assert isinstance(BPETokenizer.load(path), BPETokenizer)
    except ValueError as error:
        assert "other.json" in str(error)


def test_a_pattern_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"the pattern '\(' is no regular expression"):
        BPETokenizer([], pattern="(")


# --- The book's class


def reloaded(tokenizer: BPETokenizerSimple, folder) -> BPETokenizerSimple:
    paths = folder / "vocab.json", folder / "merges.json"
    tokenizer.save_vocab_and_merges(*paths)
    loaded = BPETokenizerSimple()
    loaded.load_vocab_and_merges(*paths)
    for name in ("vocab", "inverse_vocab", "bpe_merges", "bpe_ranks", "special_tokens"):
        assert getattr(loaded, name) == getattr(tokenizer, name), name
    return loaded


@SETTINGS
@given(
    text=any_texts.filter(lambda text: bpe.SPACE not in text),
    specials=st.lists(st.sampled_from(["[PAD]", "<a>", "<a>b", "é\r\n🙂", END_OF_TEXT])),
    extra=st.integers(0, 12),
)
def test_what_the_books_class_learned_is_saved_and_read_without_change(
    tmp_path_factory, text, specials, extra
):
    tokenizer = BPETokenizerSimple()
    tokenizer.train(text * 3, 256 + 60 + extra, allowed_special=specials)
    loaded = reloaded(tokenizer, tmp_path_factory.getbasetemp())
    ids = tokenizer.encode(text, allowed_special=set(specials))
    assert loaded.encode(text, allowed_special=set(specials)) == ids
    assert loaded.decode(ids) == text
    if any(special in text for special in specials):
        for either in (tokenizer, loaded):
            with pytest.raises(ValueError, match="allow it with allowed_special"):
                either.encode(text)


def test_the_books_class_saves_what_it_loaded_from_openai(tmp_path):
    (tmp_path / "encoder.json").write_bytes(encoder_json())
    (tmp_path / "vocab.bpe").write_bytes(vocab_bpe())
    tokenizer = BPETokenizerSimple()
    tokenizer.load_vocab_and_merges_from_openai(tmp_path / "encoder.json", tmp_path / "vocab.bpe")
    loaded = reloaded(tokenizer, tmp_path)
    text = "unhappily tokenizing\r\n 🙂 naïve"
    assert loaded.encode(text) == gpt2_bpe_tokenizer().encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    with pytest.raises(ValueError, match="special token"):
        loaded.encode(END_OF_TEXT)


def test_the_books_class_refuses_any_special_token_that_is_not_allowed():
    tokenizer = BPETokenizerSimple()
    tokenizer.train("one two [PAD]", 300, allowed_special=["[PAD]"])
    with pytest.raises(ValueError, match=r"the text has '\[PAD\]': allow it"):
        tokenizer.encode("[PAD]")
    ids = tokenizer.encode("one [PAD]", allowed_special={"[PAD]"})
    assert ids[-1] == tokenizer.inverse_vocab["[PAD]"]


@pytest.mark.parametrize("special", ["", "☃", "Ġx", "x\ud800"])
def test_the_books_class_refuses_special_tokens_that_it_could_not_tell_from_others(special):
    with pytest.raises(ValueError, match="a special token needs two characters"):
        BPETokenizerSimple().train("text", 300, allowed_special=[special])


def test_the_books_class_refuses_half_a_surrogate_pair_which_it_could_not_save():
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        BPETokenizerSimple().train("text \ud800", 300)


@pytest.mark.parametrize(
    ("vocab", "merges"),
    [
        ("null", "[]"),
        ("{}", "{}"),
        ('{"x": "y"}', "[]"),
        ('{"0": "a"}', '[{"pair": [0, 1], "new_id": 2}]'),
        ('{"0": "a", "1": "b", "2": "xx"}', '[{"pair": [0, 1], "new_id": 2}]'),
        ('{"0": 3}', "[]"),
        ('{"0": "a"}', '["x"]'),
        ('{"0": "a"}', '[{"pair": ["a", "b"], "rank": 0}]'),
        ("", "[]"),
    ],
)
def test_the_books_class_names_files_that_are_something_else(tmp_path, vocab, merges):
    (tmp_path / "vocab.json").write_text(vocab, encoding="utf-8")
    (tmp_path / "merges.json").write_text(merges, encoding="utf-8")
    with pytest.raises(ValueError, match="not written by save_vocab_and_merges"):
        BPETokenizerSimple().load_vocab_and_merges(
            tmp_path / "vocab.json", tmp_path / "merges.json"
        )


@pytest.mark.parametrize("content", ["null", "[]", "x", "{}"])
def test_the_books_class_names_files_that_are_not_openais(tmp_path, content):
    (tmp_path / "encoder.json").write_text(content, encoding="utf-8")
    (tmp_path / "vocab.bpe").write_bytes(vocab_bpe())
    with pytest.raises(ValueError, match=r"encoder\.json"):
        BPETokenizerSimple().load_vocab_and_merges_from_openai(
            tmp_path / "encoder.json", tmp_path / "vocab.bpe"
        )
