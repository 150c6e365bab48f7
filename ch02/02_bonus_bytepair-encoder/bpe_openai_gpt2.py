"""GPT-2's encoder in its shortest form: symbols, ranks, and nothing that makes it fast.

The names are those of OpenAI's published encoder, the code is our own. For real use, take
``llms_from_scratch.bpe`` or tiktoken; all of them give the same ids.

    python bpe_openai_gpt2.py "Hello, world."
"""

import argparse
import functools
import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import regex

from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.tokenizer import byte_symbols, encoder_json, vocab_bpe


@functools.cache
def bytes_to_unicode() -> dict[int, str]:
    """A printable character for each of the 256 bytes; a space, for example, is "Ġ"."""
    return byte_symbols()


def get_pairs(word: tuple[str, ...]) -> set[tuple[str, str]]:
    """The distinct pairs of neighbouring symbols of a word."""
    return set(pairwise(word))


class Encoder:
    """Text to ids and back, with tables as in ``encoder.json`` and ``vocab.bpe``."""

    def __init__(
        self, encoder: dict[str, int], bpe_merges: Iterable[tuple[str, str]], errors="replace"
    ):
        self.encoder = encoder
        self.decoder = {token_id: token for token, token_id in encoder.items()}
        self.errors = errors  # what to do with bytes that are no UTF-8, see bytes.decode
        self.byte_encoder = bytes_to_unicode()
        self.byte_decoder = {symbol: byte for byte, symbol in self.byte_encoder.items()}
        self.bpe_ranks = {tuple(pair): rank for rank, pair in enumerate(bpe_merges)}
        self.cache: dict[str, str] = {}
        self.pat = regex.compile(
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
        )

    def bpe(self, token: str) -> str:
        """Merge the symbols of a chunk; the result has spaces between the tokens."""
        if token in self.cache:
            return self.cache[token]
        word = tuple(token)
        while pairs := get_pairs(word) & self.bpe_ranks.keys():
            left, right = min(pairs, key=self.bpe_ranks.get)
            merged: list[str] = []
            i = 0
            while i < len(word):
                if word[i : i + 2] == (left, right):
                    merged.append(left + right)
                    i += 2
                else:
                    merged.append(word[i])
                    i += 1
            word = tuple(merged)
        self.cache[token] = " ".join(word)
        return self.cache[token]

    def encode(self, text: str) -> list[int]:
        """Token ids; special tokens are plain text here."""
        ids = []
        for chunk in self.pat.findall(text):
            symbols = "".join(self.byte_encoder[byte] for byte in chunk.encode("utf-8"))
            ids += [self.encoder[token] for token in self.bpe(symbols).split(" ")]
        return ids

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token ids. Raises ``KeyError`` for an id that is not in the vocabulary."""
        symbols = "".join(self.decoder[token] for token in tokens)
        return bytes(self.byte_decoder[s] for s in symbols).decode("utf-8", errors=self.errors)


def get_encoder(model_name: str = "gpt2_model", models_dir: str | Path = ".") -> Encoder:
    """An encoder from the two files in ``models_dir/model_name``; see ``download_vocab``."""
    folder = Path(models_dir) / model_name
    encoder = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:-1]
    return Encoder(encoder, [tuple(line.split(" ")) for line in lines])


def download_vocab(folder: str | Path = "gpt2_model") -> None:
    """Write ``encoder.json`` and ``vocab.bpe``; they come with the package, not from a network."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, content in {"encoder.json": encoder_json(), "vocab.bpe": vocab_bpe()}.items():
        with atomic_write(Path(folder) / name) as temporary:
            temporary.write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", help="what to encode")
    parser.add_argument("--folder", default="gpt2_model", help="for the two files of GPT-2")
    args = parser.parse_args()
    if not (Path(args.folder) / "encoder.json").is_file():
        download_vocab(args.folder)
    encoder = get_encoder(args.folder)
    ids = encoder.encode(args.text)
    print(ids)
    print([encoder.decoder[token] for token in ids])
    print(encoder.decode(ids))


if __name__ == "__main__":
    main()
