"""The GPT-2 tokenizer that ships with the package is OpenAI's, byte for byte."""

import hashlib
import subprocess
import sys

import pytest
import tiktoken
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from llms_from_scratch import tokenizer as module
from llms_from_scratch.tokenizer import (
    ENCODER_JSON_SHA256,
    VOCAB_BPE_SHA256,
    encoder_json,
    get_tokenizer,
    seed_tiktoken_cache,
    vocab_bpe,
)


@pytest.fixture(scope="session")
def openai_tokenizer(tmp_path_factory):
    """tiktoken's own "gpt2", built by tiktoken's code from the files in its cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")
        seed_tiktoken_cache(tmp_path_factory.mktemp("tiktoken"))
        return tiktoken.get_encoding("gpt2")


def test_bundled_table_is_the_file_that_tiktoken_pins():
    assert hashlib.sha256(vocab_bpe()).hexdigest() == VOCAB_BPE_SHA256
    tiktokens_constants = str(openai_public.gpt2.__code__.co_consts)
    assert VOCAB_BPE_SHA256 in tiktokens_constants
    assert ENCODER_JSON_SHA256 in tiktokens_constants


def test_rebuilt_encoder_json_is_openais_file_byte_for_byte():
    assert hashlib.sha256(encoder_json()).hexdigest() == ENCODER_JSON_SHA256


def test_all_constants_of_the_encoding_equal_tiktokens(openai_tokenizer):
    ours = get_tokenizer("gpt2")
    assert ours._mergeable_ranks == openai_tokenizer._mergeable_ranks
    assert ours._pat_str == openai_tokenizer._pat_str
    assert ours._special_tokens == openai_tokenizer._special_tokens
    assert (ours.name, ours.n_vocab) == ("gpt2", 50257)


text = st.text() | st.text(alphabet=" \t\n\r'abcXYZ019.,!?-_é漢🙂\u00a0\u2019<|>", max_size=60)


@settings(max_examples=10_000, deadline=None)
@given(text)
def test_ids_equal_tiktokens_on_generated_strings_and_decode_to_the_same_text(
    openai_tokenizer, string
):
    string = string.encode("utf-8", "replace").decode("utf-8")  # lone surrogates are not text
    ids = get_tokenizer("gpt2").encode(string, disallowed_special=())
    assert ids == openai_tokenizer.encode(string, disallowed_special=())
    assert get_tokenizer("gpt2").decode(ids) == string


@settings(max_examples=300, deadline=None)
@given(text)
def test_ids_equal_those_of_transformers(hf_tokenizer, string):
    string = string.encode("utf-8", "replace").decode("utf-8").replace("<|endoftext|>", "")
    assert get_tokenizer("gpt2").encode(string) == hf_tokenizer(string)["input_ids"]


@pytest.fixture(scope="session")
def hf_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    (folder / "vocab.json").write_bytes(encoder_json())
    (folder / "merges.txt").write_bytes(vocab_bpe())
    return transformers.GPT2TokenizerFast(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")
    )


@pytest.mark.parametrize(
    ("string", "ids"),
    [
        ("Hello, I am", [15496, 11, 314, 716]),
        ("Every effort moves you", [6109, 3626, 6100, 345]),
        ("Every day holds a", [6109, 1110, 6622, 257]),
        ("Akwirw ier", [33901, 86, 343, 86, 220, 959]),
        ("Hello, world. Is this-- a test?", [15496, 11, 995, 13, 1148, 428, 438, 257, 1332, 30]),
        (
            "Hello, do you like tea? <|endoftext|> In the sunlit terracesof someunknownPlace.",
            [15496, 11, 466, 345, 588, 8887, 30, 220, 50256, 554, 262, 4252, 18250, 8812, 2114]
            + [1659, 617, 34680, 27271, 13],
        ),
        ("This is some text", [1212, 318, 617, 2420]),
        ("a\r\nb", [64, 201, 198, 65]),
        ("", []),
    ],
)
def test_ids_of_the_book(string, ids):
    assert get_tokenizer("gpt2").encode(string, allowed_special={"<|endoftext|>"}) == ids
    assert get_tokenizer("gpt2").decode(ids) == string


def test_the_books_own_line_works_in_a_new_process_without_a_network(tmp_path):
    code = (
        "from llms_from_scratch.tokenizer import seed_tiktoken_cache; seed_tiktoken_cache()\n"
        "import tiktoken; print(tiktoken.get_encoding('gpt2').encode('Hello, I am'))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert child.stdout.strip() == "[15496, 11, 314, 716]", child.stderr


def test_seeding_repairs_a_damaged_cache_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    seed_tiktoken_cache(tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [
        "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
        "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
    ]
    files[0].write_bytes(b"half a fi")
    seed_tiktoken_cache(tmp_path)
    assert files[0].read_bytes() == encoder_json()


def test_a_damaged_table_is_reported_and_not_used(monkeypatch, tmp_path):
    packed = module.resources.files("llms_from_scratch.data") / "gpt2-vocab" / "vocab.bpe.gz"
    damaged = bytearray(packed.read_bytes())
    damaged[1000] ^= 1
    (tmp_path / "gpt2-vocab").mkdir()
    (tmp_path / "gpt2-vocab" / "vocab.bpe.gz").write_bytes(damaged)
    monkeypatch.setattr(module.resources, "files", lambda package: tmp_path)
    with pytest.raises(RuntimeError, match="damaged"):
        vocab_bpe()
