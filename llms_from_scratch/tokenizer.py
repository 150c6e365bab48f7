"""The GPT-2 tokenizer without a network.

GPT-2's merges ship with this package as one compressed table. Everything else that ``tiktoken``
needs follows from it, ``encoder.json`` included.
"""

import functools
import gzip
import hashlib
import json
import os
import zlib
from importlib import resources
from pathlib import Path

import tiktoken

from llms_from_scratch.data import cache_dir
from llms_from_scratch.data.files import atomic_write

VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
END_OF_TEXT = "<|endoftext|>"

# Contractions, words, numbers, other signs, white space: a merge never crosses such a border
GPT2_SPLIT_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
)

# tiktoken names a cached file after the SHA-1 of the URL it came from
_TIKTOKEN_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"


@functools.cache
def get_tokenizer(name: str = "gpt2") -> tiktoken.Encoding:
    """Return the tokenizer of that name; ``"gpt2"`` needs no network, others may.

    >>> get_tokenizer("gpt2").encode("Hello, I am")
    [15496, 11, 314, 716]
    """
    if name != "gpt2":
        return tiktoken.get_encoding(name)
    return tiktoken.Encoding(
        name="gpt2",
        pat_str=GPT2_SPLIT_PATTERN,
        mergeable_ranks=_gpt2_ranks(),
        special_tokens={END_OF_TEXT: 50256},
        explicit_n_vocab=50257,
    )


def seed_tiktoken_cache(folder: str | Path | None = None) -> Path:
    """Let ``tiktoken.get_encoding("gpt2")`` work without a network; return the cache folder.

    Writes the two files that tiktoken would download, and points ``TIKTOKEN_CACHE_DIR`` at them.
    A folder that this variable already names is used and kept.
    """
    folder = Path(folder or os.environ.get("TIKTOKEN_CACHE_DIR") or cache_dir() / "tiktoken")
    folder.mkdir(parents=True, exist_ok=True)
    for file_name, content in {"vocab.bpe": vocab_bpe(), "encoder.json": encoder_json()}.items():
        target = folder / hashlib.sha1((_TIKTOKEN_URL + file_name).encode()).hexdigest()
        if not target.is_file() or target.read_bytes() != content:
            with atomic_write(target) as temporary:
                temporary.write_bytes(content)
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    return folder


def vocab_bpe() -> bytes:
    """OpenAI's ``vocab.bpe``: a version line, then one merge per line, most important first.

    Raises ``RuntimeError`` if the bundled table is damaged.
    """
    packed = resources.files("llms_from_scratch.data") / "gpt2-vocab" / "vocab.bpe.gz"
    try:
        content = gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error):
        content = b""
    if hashlib.sha256(content).hexdigest() != VOCAB_BPE_SHA256:
        raise RuntimeError(f"{packed} is damaged (wrong SHA-256): reinstall llms-from-scratch")
    return content


def encoder_json() -> bytes:
    """OpenAI's ``encoder.json``: the id of each token, rebuilt from the merges byte for byte."""
    tokens = [*byte_symbols().values()]
    tokens += [left + right for left, right in gpt2_merges()]
    tokens.append(END_OF_TEXT)
    return json.dumps({token: token_id for token_id, token in enumerate(tokens)}).encode()


def byte_symbols() -> dict[int, str]:
    """GPT-2's printable symbol for each byte, in the order of the first 256 token ids.

    Bytes that print well stand for themselves; the others, white space among them, borrow a
    character from 256 on. So a space is written as "\u0120".
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + i) for i, byte in enumerate(others)
    }


def gpt2_merges() -> list[tuple[str, str]]:
    lines = vocab_bpe().decode("utf-8").split("\n")[1:-1]  # first line: version; last: empty
    return [tuple(line.split(" ")) for line in lines]


def _gpt2_ranks() -> dict[bytes, int]:
    """The bytes of each ordinary token and its rank, which in GPT-2 is its id."""
    byte_of = {symbol: byte for byte, symbol in byte_symbols().items()}
    tokens = [bytes([byte]) for byte in byte_symbols()]
    tokens += [bytes(byte_of[symbol] for symbol in left + right) for left, right in gpt2_merges()]
    return {token: rank for rank, token in enumerate(tokens)}
