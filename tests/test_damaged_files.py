"""Every loader of a small file: cut, changed or foreign bytes are read or named, never a traceback.

Weights have tests of their own in ``test_damaged_weights.py`` and ``test_weights.py``.
"""

import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llms_from_scratch.bpe import BPETokenizer, BPETokenizerSimple
from llms_from_scratch.ch06 import SpamDataset, create_balanced_dataset, load_messages
from llms_from_scratch.ch07 import load_entries
from llms_from_scratch.data import load_text
from llms_from_scratch.data.archive import read_zip_member
from llms_from_scratch.tokenizer import get_tokenizer, vocab_bpe
from llms_from_scratch.training.token_files import TokenFileDataset
from llms_from_scratch.utils import import_definitions_from_notebook

ENTRY = {"instruction": "Say é.", "input": "", "output": "é"}
NOTEBOOK = {"cells": [{"cell_type": "code", "source": ["def f():\n", "    return 'é'"]}]}
TRAINED = BPETokenizer.train("low lower lowest " * 9, vocab_size=262)


def _zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inside.txt", "é" * 30)


def _tokens(path):
    with path.open("wb") as file:
        np.save(file, np.arange(40, dtype=np.uint16))


def _merges(path):
    path.write_bytes(b"\n".join(vocab_bpe().split(b"\n")[:9]) + b"\n")


def _simple(path):
    tokenizer = BPETokenizerSimple()
    tokenizer.load_vocab_and_merges(path, path)


def _write(text):
    return lambda path: path.write_text(text, encoding="utf-8")


# name of the file: how a whole one is written, and how it is read
LOADERS = {
    "text.txt": (_write("Ein Café.\n"), load_text),
    "entries.json": (_write(json.dumps([ENTRY], ensure_ascii=False)), load_entries),
    "messages.tsv": (
        _write("ham\tHi é\nspam\tWin\n"),
        lambda path: create_balanced_dataset(load_messages(path)),
    ),
    "messages.csv": (
        _write('Label,Text\n0,"Hi, é"\n1,Win\n'),
        lambda path: SpamDataset(path, get_tokenizer()),
    ),
    "bpe.json": (TRAINED.save, BPETokenizer.load),
    "vocab.bpe": (_merges, BPETokenizer.from_openai),
    "vocab.json": (_write('{"0": "a"}'), _simple),
    "archive.zip": (_zip, lambda path: read_zip_member(path, "inside.txt")),
    "tokens.npy": (_tokens, lambda path: len(TokenFileDataset(path, 4, 4))),
    "notebook.ipynb": (_write(json.dumps(NOTEBOOK)), import_definitions_from_notebook),
}
FOREIGN = [
    b"",
    b"\n",
    b"null",
    b"[]",
    b"{}",
    b"0",
    b"\x80\x04K\x01.",  # a pickle
    b"PK\x03\x04",
    b"\x93NUMPY",
    b"\x89PNG\r\n\x1a\n\0\0",
    b"<!DOCTYPE html><p>Log in</p>",
    "Ünïcödé".encode("utf-16"),
    b'{"a": ' * 30_000,
    b'"\\ud800"',
]


def read_or_name(path, read) -> None:
    """The file is read, or a short error of one line names it."""
    try:
        read(path)
    except (ValueError, OSError) as error:
        if "the table" not in str(error):  # tables in memory have no file
            assert str(path) in str(error), repr(error)
        assert len(str(error)) < 500 + 3 * len(str(path)), len(str(error))


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("content", FOREIGN, ids=lambda content: repr(content[:12]))
def test_a_foreign_file_is_named(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    read_or_name(path, LOADERS[name][1])
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", LOADERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_cut_or_changed_file_is_read_or_named(tmp_path_factory, name, data):
    write, read = LOADERS[name]
    path = tmp_path_factory.mktemp("damaged") / name
    write(path)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[position:]
    else:
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    read_or_name(path, read)


@pytest.mark.parametrize("name", LOADERS)
def test_an_absent_file_and_a_folder_are_named(tmp_path, name):
    (tmp_path / name).mkdir()
    for path in (tmp_path / name, tmp_path / "gone" / name):
        with pytest.raises((ValueError, OSError)) as error:
            LOADERS[name][1](path)
        assert str(path) in str(error.value)
