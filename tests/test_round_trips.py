"""What we write, we read: any text survives each of our file formats, or is refused by name."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llms_from_scratch.ch06 import SpamDataset, load_messages, write_splits
from llms_from_scratch.ch07 import load_entries
from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.training.token_files import TokenFileDataset, tokenize_file

SETTINGS = settings(max_examples=150, deadline=None)
NASTY = [
    "",
    " ",
    "\r",
    "a\rb",
    "\n",
    "\r\n",
    "\0",
    '"',
    '""',
    "'",
    ",",
    "\t",
    "\\",
    '\\"',
    "#",
    "NA",
]
NASTY += [
    "nan",
    "null",
    "None",
    "TRUE",
    "True",
    "0800",
    "1.10",
    "1e5",
    "-0",
    "inf",
    "1_000",
    "=1+1",
]
NASTY += ["\ufeff", "\x1a", "\x85", "\u2028", "🙂", "\U0010ffff", "e\u0301", "\x00", "Label", "1"]
any_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
nasty_texts = st.sampled_from(NASTY) | st.lists(st.sampled_from(NASTY), max_size=5).map("".join)
texts = any_texts | nasty_texts
table_texts = texts.map(lambda text: text.replace("\0", ""))  # it is refused, see below
tables = st.lists(st.tuples(st.integers(0, 1), table_texts), min_size=1, max_size=8)


@SETTINGS
@given(rows=tables)
@example(rows=[(i % 2, text) for i, text in enumerate(NASTY) if "\0" not in text])
@example(rows=[(0, "0123"), (1, "0")])
@example(rows=[(0, "TRUE"), (1, "FALSE")])
def test_tables_of_messages_keep_each_text_and_label(tmp_path_factory, rows):
    df = pd.DataFrame(rows, columns=["Label", "Text"])
    for path in write_splits(tmp_path_factory.getbasetemp(), df, df, df):
        read = load_messages(path)
        assert list(read["Text"]) == [text for _, text in rows]
        assert list(read["Label"]) == [label for label, _ in rows]
    encoded = SpamDataset(path, get_tokenizer()).data
    assert list(encoded["Text"]) == [text for _, text in rows]


def test_numbers_as_texts_stay_texts_in_a_table_that_is_read_in_pieces(tmp_path):
    df = pd.DataFrame({"Label": 0, "Text": ["0123"] * 300_000 + ["word"]})
    path, *_ = write_splits(tmp_path, df, df[:1], df[:1])
    assert set(load_messages(path)["Text"]) == {"0123", "word"}


@pytest.mark.parametrize("text", ["0800", "1.10", "TRUE", "NA", "1e5", ""])
def test_a_text_keeps_its_form_also_without_quotes(tmp_path, text):
    (tmp_path / "a.csv").write_text(f"Label,Text\n0,{text}\n1,{text}\n", encoding="utf-8")
    assert list(load_messages(tmp_path / "a.csv")["Text"]) == [text] * 2
    (tmp_path / "a.tsv").write_text(f"ham\t{text}\nspam\t{text}\n", encoding="utf-8")
    assert list(load_messages(tmp_path / "a.tsv")["Text"]) == [text] * 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\ud800", "no UTF-8 file can hold .*half a surrogate pair"),
        ("a\udfffb", "no UTF-8 file can hold .*half a surrogate pair"),
        ("a\0b", "has a NUL character"),
    ],
)
def test_what_no_text_file_can_hold_is_refused_before_anything_is_written(tmp_path, text, said):
    df = pd.DataFrame({"Label": [0, 1], "Text": ["fine", text]}, dtype=object)
    with pytest.raises(ValueError, match=said):
        write_splits(tmp_path, df[:1], df, df)
    assert not list(tmp_path.iterdir())


@SETTINGS
@given(rows=st.lists(st.tuples(texts, texts, texts, texts), min_size=1, max_size=5))
def test_instructions_and_responses_survive_json(tmp_path_factory, rows):
    names = ("instruction", "input", "output", "model_response")
    entries = [dict(zip(names, row, strict=True)) for row in rows]
    path = tmp_path_factory.getbasetemp() / "responses.json"
    with atomic_write(path) as temporary:  # as the scripts of chapter 7 write them
        text = json.dumps(entries, indent=4, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")
    assert load_entries(path) == entries


# --- Token files

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=60)


@SETTINGS
@given(text=(words | nasty_texts.filter(lambda t: not set("\r\0") & set(t))).filter(str.strip))
def test_a_token_file_holds_the_text_and_its_end(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp()
    (folder / "text.txt").write_bytes(text.encode("utf-8"))
    (folder / "tokens.npy").unlink(missing_ok=True)
    text = text.removeprefix("\ufeff")
    if not text.strip():
        return
    tokenizer = get_tokenizer()
    path = tokenize_file(folder / "text.txt", folder / "tokens.npy", tokenizer)
    *tokens, end = np.load(path).tolist()
    assert (tokenizer.decode(tokens), end) == (text, tokenizer.eot_token)


@pytest.fixture
def token_file(tmp_path):
    np.save(tmp_path / "tokens.npy", np.arange(1_000_000, dtype=np.uint32))
    return tmp_path / "tokens.npy"


def test_a_worker_gets_the_name_of_a_token_file_not_its_content(token_file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    dataset = TokenFileDataset(token_file.name, max_length=8, stride=4, start=0.25, end=0.75)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    monkeypatch.chdir("/")
    copy = pickle.loads(pickled)
    assert len(copy) == len(dataset)
    for index in (0, 1000, len(dataset) - 1):
        for ours, theirs in zip(dataset[index], copy[index], strict=True):
            assert ours.equal(theirs)
    assert dataset[0][0].tolist() == list(range(250_000, 250_008))


def test_a_copy_of_a_data_set_notices_that_the_file_was_replaced(token_file):
    pickled = pickle.dumps(TokenFileDataset(token_file, max_length=8, stride=4))
    np.save(token_file, np.arange(10, dtype=np.uint32))
    with pytest.raises(ValueError, match="has 10 tokens, had 1000000"):
        pickle.loads(pickled)


@pytest.mark.parametrize(
    "content", ["empty", "cut", "text", "objects", "two dimensions", "fractions", "archive"]
)
def test_other_files_are_no_token_files(token_file, content):
    whole = token_file.read_bytes()
    arrays = {
        "objects": np.array([{}], dtype=object),
        "two dimensions": np.zeros((2, 2), dtype=np.uint16),
        "fractions": np.zeros(9),
    }
    if content in arrays:
        np.save(token_file, arrays[content])
    elif content == "archive":
        with token_file.open("wb") as file:
            np.savez(file, tokens=np.zeros(9, dtype=np.uint16))
    else:
        token_file.write_bytes({"empty": b"", "cut": whole[:5000], "text": b"some text"}[content])
    with pytest.raises(ValueError, match=r"tokens\.npy is no whole token file"):
        TokenFileDataset(token_file, max_length=4, stride=4)
