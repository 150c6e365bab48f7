"""A tokenizer in the folder of a finetuned model, so that the model can be used without its base.

The file is a ``tokenizer.json`` as on the hub. A tokenizer on tiktoken is read back onto tiktoken,
which needs no further library; the settings of the model say which it was.
"""

from collections.abc import Mapping
from pathlib import Path

import tiktoken

from llms_from_scratch.tokenizer import byte_symbols, get_tokenizer
from llms_from_scratch.weights.chat_formats import HubTokenizer
from llms_from_scratch.weights.export_tokenizers import tokenizer_json
from llms_from_scratch.weights.hub import read_json, write_json

GPT2 = "gpt2"


def describe_tokenizer(tokenizer) -> dict | None:
    """What settings say of a tokenizer: on which library it is, and which token ends a text.

    None for GPT-2's, which needs no file, and for none.
    """
    if tokenizer is None or getattr(tokenizer, "name", "") == GPT2:
        return None
    if not isinstance(tokenizer, HubTokenizer):
        return {"library": "tiktoken"}
    special = tokenizer.special_tokens.items()
    end = next((token for token, i in special if i == tokenizer.eot_token), None)
    return {"library": "tokenizers", "end_of_text": end}


def write_tokenizer(path: str | Path, tokenizer) -> None:
    """Write a tokenizer; ``ValueError`` for one that is neither on tiktoken nor ``tokenizers``."""
    write_json(Path(path), tokenizer_json(tokenizer))


def read_tokenizer(path: str | Path, described: Mapping | None):
    """The tokenizer of a file, by what ``describe_tokenizer`` said of it; GPT-2's for None."""
    if described is None:
        return get_tokenizer(GPT2)
    if described.get("library") == "tiktoken":
        return encoding_from_json(read_json(path), str(path))
    return HubTokenizer(path, described.get("end_of_text"))


def encoding_from_json(content: Mapping, where: str) -> tiktoken.Encoding:
    """tiktoken's form of a ``tokenizer.json`` that ``tokenizer_json`` made from such a one.

    Raises ``ValueError`` for a file of another form.
    """
    try:
        split, _ = content["pre_tokenizer"]["pretokenizers"]
        special = {token["content"]: token["id"] for token in content["added_tokens"]}
        byte_of = {symbol: byte for byte, symbol in byte_symbols().items()}
        ranks = {
            bytes(byte_of[symbol] for symbol in token): token_id
            for token, token_id in content["model"]["vocab"].items()
            if token not in special
        }
        pattern = split["pattern"]["Regex"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{where} is no tokenizer of byte pairs as it was saved here") from None
    return tiktoken.Encoding(
        Path(where).stem, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
    )
