"""A tokenizer as the ``tokenizer.json`` of the hub, and as the metadata of a GGUF file.

tiktoken joins the two neighbours whose bytes together have the lowest rank; the formats of others
list the joins themselves, the merges, most important first. A token's merge is found by joining its
own bytes until two parts are left: in any text, its last join is this one, as joins that cross its
borders would make another token.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from llms_from_scratch.tokenizer import byte_symbols
from llms_from_scratch.weights.chat_formats import HubTokenizer
from llms_from_scratch.weights.gguf_models import PATTERNS

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
PLAIN_ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
KINDS = {"normal": 1, "unknown": 2, "control": 3, "user": 4, "unused": 5, "byte": 6}  # in GGUF


def last_merge(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that are joined last to make this one; None if joining never makes it.

    >>> last_merge(b"hug", {b"h": 0, b"u": 1, b"g": 2, b"ug": 3, b"hug": 4})
    (b'h', b'ug')
    """
    parts, limit = [bytes([byte]) for byte in token], ranks[token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, limit) for a, b in zip(parts, parts[1:], strict=False)]
        best = min(pairs)
        if best == limit:
            return None
        i = pairs.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return (parts[0], parts[1]) if all(part in ranks for part in parts) else None


def tokenizer_json(tokenizer) -> dict:
    """The content of a ``tokenizer.json`` that gives the same ids as one of our tokenizers.

    A tokenizer that came from such a file gives that file. Raises ``ValueError`` for one that is
    neither on the ``tokenizers`` library nor on tiktoken.
    """
    if isinstance(tokenizer, HubTokenizer):
        if isinstance(tokenizer.path, Path):
            return json.loads(tokenizer.path.read_text(encoding="utf-8"))
        return json.loads(tokenizer._tok.to_str())
    encoding = getattr(tokenizer, "model", tokenizer)  # Llama3Tokenizer has one inside
    if not hasattr(encoding, "_mergeable_ranks"):
        raise ValueError(f"a {type(tokenizer).__name__} cannot be written as a tokenizer.json")
    return _byte_pairs_json(encoding)


def _byte_pairs_json(encoding) -> dict:
    ranks, symbols = encoding._mergeable_ranks, byte_symbols()

    def written(token: bytes) -> str:
        return "".join(symbols[byte] for byte in token)

    in_order = sorted(ranks, key=ranks.get)
    merges = [last_merge(token, ranks) for token in in_order if len(token) > 1]
    special = sorted(encoding._special_tokens.items(), key=lambda item: item[1])
    split = {"type": "Split", "pattern": {"Regex": encoding._pat_str}}
    split |= {"behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **PLAIN_ADDED, "special": True} for token, i in special
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, {**BYTE_LEVEL, "use_regex": False}],
        },
        "post_processor": None,
        "decoder": {**BYTE_LEVEL, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # For tiktoken, a word that is a token is that token, also if no merges lead to it
            "ignore_merges": None in merges,
            # The special ones too: the library would renumber what is in added_tokens alone
            "vocab": {written(token): ranks[token] for token in in_order} | dict(special),
            "merges": [[written(a), written(b)] for a, b in filter(None, merges)],
        },
    }


# --- GGUF ---


def tokenizer_for_gguf(content: Mapping, vocab_size: int) -> dict:
    """A ``tokenizer.json`` as metadata of a GGUF file, for a model with ``vocab_size`` rows.

    Rows that no token has are filled with unused ones. Raises ``ValueError`` for a tokenizer that
    llama.cpp has no name for, or one with more tokens than the model.
    """
    model = content["model"]
    if model.get("type") != "BPE":
        raise ValueError(f"a tokenizer of type {model.get('type')!r} has no place in a GGUF file")
    tokens, kinds = _tokens_and_kinds(content, vocab_size)
    merges = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
    own = {"tokens": tokens, "token_type": kinds}
    if model.get("byte_fallback"):
        if (content.get("normalizer") or {}).get("type") != "Replace":  # as Gemma's is
            raise ValueError("a SentencePiece tokenizer that adds a space has no place here")
        own = {"model": "llama", "scores": _scores(tokens, merges), "add_space_prefix": False} | own
    else:
        pre = name_of_splitting(content.get("pre_tokenizer"))
        own = {"model": "gpt2", "pre": pre} | own | {"merges": [f"{a} {b}" for a, b in merges]}
    return {f"tokenizer.ggml.{key}": value for key, value in own.items()}


def _tokens_and_kinds(content: Mapping, vocab_size: int) -> tuple[list[str], list[int]]:
    model, added = content["model"], content.get("added_tokens") or []
    highest = max([*model["vocab"].values(), *(token["id"] for token in added)])
    if highest >= vocab_size:
        raise ValueError(
            f"the tokenizer has a token {highest}, but the model only {vocab_size} rows for them"
        )
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    kinds = [KINDS["unused"]] * vocab_size
    for token, i in model["vocab"].items():
        is_byte = model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x")
        tokens[i], kinds[i] = token, KINDS["byte"] if is_byte else KINDS["normal"]
    for token in added:
        kind = KINDS["control"] if token["special"] else KINDS["user"]
        tokens[token["id"]], kinds[token["id"]] = token["content"], kind
    unknown = model.get("unk_token")
    if unknown in model["vocab"]:
        kinds[model["vocab"][unknown]] = KINDS["unknown"]
    return tokens, kinds


def _scores(tokens: list[str], merges: list) -> list[float]:
    """SentencePiece's scores: the earlier a token is made by a merge, the higher."""
    places: dict[str, int] = {}
    for left, right in merges:
        places.setdefault(left + right, len(places))
    return [-float(places.get(token, len(places))) for token in tokens]


def name_of_splitting(pre_tokenizer: Mapping | None) -> str:
    """llama.cpp's name for how a text is cut into words before bytes are joined."""
    steps = (pre_tokenizer or {}).get("pretokenizers") or [pre_tokenizer or {}]
    regexes = [s["pattern"]["Regex"] for s in steps if "Regex" in (s.get("pattern") or {})]
    names = {pattern: name for name, pattern in PATTERNS.items()}
    if len(regexes) == 1 and regexes[0] in names:
        return names[regexes[0]]
    byte_level = any(s.get("type") == "ByteLevel" and s.get("use_regex", True) for s in steps)
    if not regexes and byte_level:  # this step has GPT-2's pattern inside
        digits = any(s.get("type") == "Digits" and s["individual_digits"] for s in steps)
        return "smollm" if digits else "gpt-2"
    known = ", ".join(names.values())
    raise ValueError(f"the tokenizer cuts texts in a way that has no name here; known: {known}")
