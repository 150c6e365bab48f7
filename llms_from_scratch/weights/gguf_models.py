"""What a GGUF file says besides its tensors: our configuration, our names, a tokenizer.

Metadata that changes what a model computes, and that our models do not compute, is refused by name.
"""

import re
from collections.abc import Mapping

import tiktoken
import torch

from llms_from_scratch.blocks.rope import inverse_frequencies, scale_llama3
from llms_from_scratch.ch04 import BASE_CONFIG
from llms_from_scratch.llama3 import LLAMA31_ROPE_FREQ
from llms_from_scratch.tokenizer import GPT2_SPLIT_PATTERN, byte_symbols
from llms_from_scratch.weights.chat_formats import LLAMA3_PATTERN, HubTokenizer
from llms_from_scratch.weights.gguf import GGUFFile, unpermute
from llms_from_scratch.weights.sources import TensorSource

MODEL_TYPES = {  # GGUF's: the hub's
    "llama": "llama",
    "qwen3": "qwen3",
    "gemma3": "gemma3_text",
    "gpt2": "gpt2",
}
NAMES = {  # GGUF's: ours, without ``.weight`` or ``.scale``
    "token_embd": "tok_emb",
    "output_norm": "final_norm",
    "output": "out_head",
    "blk.{}.attn_q": "trf_blocks.{}.att.W_query",
    "blk.{}.attn_k": "trf_blocks.{}.att.W_key",
    "blk.{}.attn_v": "trf_blocks.{}.att.W_value",
    "blk.{}.attn_output": "trf_blocks.{}.att.out_proj",
    "blk.{}.attn_q_norm": "trf_blocks.{}.att.q_norm",
    "blk.{}.attn_k_norm": "trf_blocks.{}.att.k_norm",
    "blk.{}.ffn_gate": "trf_blocks.{}.ff.fc1",
    "blk.{}.ffn_up": "trf_blocks.{}.ff.fc2",
    "blk.{}.ffn_down": "trf_blocks.{}.ff.fc3",
    "blk.{}.attn_norm": "trf_blocks.{}.norm1",
    "blk.{}.ffn_norm": "trf_blocks.{}.norm2",
}
GEMMA_NORMS = {
    "blk.{}.attn_norm": "trf_blocks.{}.input_layernorm",
    "blk.{}.post_attention_norm": "trf_blocks.{}.post_attention_layernorm",
    "blk.{}.ffn_norm": "trf_blocks.{}.pre_feedforward_layernorm",
    "blk.{}.post_ffw_norm": "trf_blocks.{}.post_feedforward_layernorm",
}
GPT2_NAMES = {  # the hub's: GGUF's
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "lm_head": "output",
    "h.{}.ln_1": "blk.{}.attn_norm",
    "h.{}.attn.c_attn": "blk.{}.attn_qkv",
    "h.{}.attn.c_proj": "blk.{}.attn_output",
    "h.{}.ln_2": "blk.{}.ffn_norm",
    "h.{}.mlp.c_fc": "blk.{}.ffn_up",
    "h.{}.mlp.c_proj": "blk.{}.ffn_down",
}
SIZES = {
    "context_length": "context_length",
    "embedding_length": "emb_dim",
    "attention.head_count": "n_heads",
    "block_count": "n_layers",
    "feed_forward_length": "hidden_dim",
}
READ = set(  # besides the sizes
    """
    attention.head_count_kv attention.key_length attention.layer_norm_rms_epsilon
    attention.sliding_window attention.value_length rope.dimension_count rope.freq_base
    rope.scaling.factor rope.scaling.original_context_length rope.scaling.type vocab_size
    """.split()
)
READ_OF_GPT2 = {"attention.layer_norm_epsilon", "attention.head_count_kv"}
SMOLLM_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    "smollm": SMOLLM_PATTERN,
    "llama-bpe": LLAMA3_PATTERN,
    "qwen2": QWEN2_PATTERN,
    "gpt-2": GPT2_SPLIT_PATTERN,
}
NORMAL = 1  # kinds of tokens
CONTROL = 3
USER_DEFINED = 4


def config_from_gguf(file: GGUFFile) -> tuple[str, dict]:
    """The ``model_type`` and our configuration; ``ValueError`` for what we do not compute."""
    metadata = file.metadata
    architecture = metadata.get("general.architecture")
    if architecture not in MODEL_TYPES:
        raise ValueError(
            f"{file.path}: architecture {architecture!r} is unknown; known: "
            f"{', '.join(MODEL_TYPES)}"
        )
    own = {
        key.removeprefix(f"{architecture}."): value
        for key, value in metadata.items()
        if key.startswith(f"{architecture}.")
    }
    is_gpt2 = architecture == "gpt2"
    for key, value in own.items():
        if key not in SIZES and key not in (READ_OF_GPT2 if is_gpt2 else READ) and value:
            raise ValueError(f"{file.path}: {architecture}.{key}={value!r} is not computed here")
    missing = [key for key in SIZES if not isinstance(own.get(key), int)]
    if missing:
        raise ValueError(f"{file.path}: {architecture}.{missing[0]} is missing, or no number")
    cfg = {ours: own[key] for key, ours in SIZES.items()}
    if is_gpt2:
        return MODEL_TYPES[architecture], _config_of_gpt2(file, own, cfg)
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    cfg["vocab_size"] = own.get("vocab_size") or len(tokens)
    cfg["n_kv_groups"] = own.get("attention.head_count_kv") or cfg["n_heads"]
    cfg["head_dim"] = own.get("attention.key_length") or cfg["emb_dim"] // cfg["n_heads"]
    for key in ("attention.value_length", "rope.dimension_count"):
        if own.get(key, cfg["head_dim"]) != cfg["head_dim"]:
            raise ValueError(f"{file.path}: {architecture}.{key}={own[key]} is not computed here")
    cfg["rms_norm_eps"] = round(own.get("attention.layer_norm_rms_epsilon", 1e-5), 12)
    cfg["rope_base"] = own.get("rope.freq_base", 10_000.0)
    cfg["dtype"] = torch.float32
    cfg["tie_embeddings"] = "output.weight" not in file.shapes
    return MODEL_TYPES[architecture], cfg | _rest(file, architecture, own, cfg)


def _config_of_gpt2(file: GGUFFile, own: Mapping, sizes: dict) -> dict:
    """Our configuration of a GPT-2, of which the file fixes all but the sizes."""
    fixed = {
        "feed_forward_length": 4 * sizes["emb_dim"],
        "attention.head_count_kv": sizes["n_heads"],
        "attention.layer_norm_epsilon": 1e-5,
    }
    for key, value in fixed.items():
        if abs(own.get(key, value) - value) > 1e-9:
            raise ValueError(f"{file.path}: gpt2.{key}={own[key]} is not computed here")
    del sizes["hidden_dim"]
    # Such files always have biases: those of zeros are a model's that was trained without
    biases = [name for name in file.shapes if name.endswith("attn_qkv.bias")]
    rows = file.shapes.get("token_embd.weight", (0,))[0]
    has_bias = any(bool(file.read(name).any()) for name in biases)
    return BASE_CONFIG | sizes | {"vocab_size": rows, "qkv_bias": has_bias}


def _rest(file: GGUFFile, architecture: str, own: Mapping, cfg: Mapping) -> dict:
    """The part of a configuration that not all architectures have."""
    rest: dict = {}
    scaling = _rope_scaling(file, own, cfg)
    if scaling:
        rest["rope_scaling"] = scaling
    if architecture in ("qwen3", "gemma3"):
        rest["qk_norm"] = True
    window = own.get("attention.sliding_window")
    if architecture != "gemma3" and window:
        raise ValueError(
            f"{file.path}: {architecture}.attention.sliding_window={window} is not computed here"
        )
    if architecture == "gemma3":
        if not window:
            raise ValueError(f"{file.path}: gemma3.attention.sliding_window is missing")
        numbers = range(1, cfg["n_layers"] + 1)
        rest |= {
            "sliding_window": window,
            # Neither of these is in the file: every sixth layer sees all, and so on
            "layer_types": ["sliding_attention" if n % 6 else "full_attention" for n in numbers],
            "rope_local_base": 10_000.0,
            "query_pre_attn_scalar": cfg["head_dim"],
        }
    return rest


def _rope_scaling(file: GGUFFile, own: Mapping, cfg: Mapping) -> dict | None:
    kind = own.get("rope.scaling.type", "none")
    if kind == "linear":
        return {"rope_type": "linear", "factor": own["rope.scaling.factor"]}
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": own["rope.scaling.factor"],
            "original_context_length": own["rope.scaling.original_context_length"],
        }
    if kind != "none":
        raise ValueError(f"{file.path}: rope.scaling.type {kind!r} is unknown")
    if "rope_freqs.weight" not in file.shapes:
        return None
    # Llama 3.1's smoothing, as the numbers by which each frequency is divided
    given = file.read("rope_freqs.weight")
    plain = inverse_frequencies(cfg["head_dim"], cfg["rope_base"])
    for factor in (8.0, 32.0):
        rope_freq = LLAMA31_ROPE_FREQ | {"factor": factor}
        if torch.allclose(plain / scale_llama3(plain, **rope_freq), given, rtol=1e-4):
            return {"rope_type": "llama3", **rope_freq}
    raise ValueError(f"{file.path}: rope_freqs.weight are no frequencies of Llama 3.1 or 3.2")


def source_from_gguf(file: GGUFFile, model_type: str, cfg: Mapping) -> TensorSource:
    """The tensors under our names, rows of queries and keys in our order, norms as we add 1.

    Those of a GPT-2 are under the hub's names, and transposed as they are there.
    """
    if model_type == "gpt2":
        return _source_of_gpt2(file)
    is_gemma = model_type == "gemma3_text"
    table = NAMES | (GEMMA_NORMS if is_gemma else {})
    norm_leaf = "weight" if model_type == "llama" else "scale"
    theirs: dict[str, str] = {}
    for name in file.shapes:
        if name == "rope_freqs.weight":
            continue
        stem = name.removesuffix(".weight")
        numbers = re.findall(r"(?<=\.)\d+(?=\.)", stem)
        ours = table.get(re.sub(r"(?<=\.)\d+(?=\.)", "{}", stem))
        if ours is None or stem == name:
            raise ValueError(f"{file.path}: the model has no place for {name!r}")
        leaf = norm_leaf if "norm" in stem else "weight"
        theirs[f"{ours.format(*numbers)}.{leaf}"] = name

    def read(name: str) -> torch.Tensor:
        tensor = file.read(theirs[name])
        if is_gemma and name.endswith(".scale"):
            return tensor - 1  # stored as 1 + scale
        if model_type == "llama" and name.endswith("att.W_query.weight"):
            return unpermute(tensor, cfg["n_heads"])
        if model_type == "llama" and name.endswith("att.W_key.weight"):
            return unpermute(tensor, cfg["n_kv_groups"])
        return tensor

    shapes = {ours: file.shapes[name] for ours, name in theirs.items()}
    return TensorSource(str(file.path), shapes, read)


def _source_of_gpt2(file: GGUFFile) -> TensorSource:
    """A GPT-2's tensors as on the hub, where linear layers are (d_in, d_out)."""
    table = {theirs: hubs for hubs, theirs in GPT2_NAMES.items()}
    stored: dict[str, str] = {}
    for name in file.shapes:
        stem, _, leaf = name.rpartition(".")
        hubs = table.get(re.sub(r"(?<=\.)\d+(?=\.)", "{}", stem))
        if hubs is None:
            raise ValueError(f"{file.path}: the model has no place for {name!r}")
        stored[f"{hubs.format(*re.findall(r'(?<=[.])[0-9]+(?=[.])', stem))}.{leaf}"] = name

    def is_linear(name: str) -> bool:
        return ".c_" in name and name.endswith(".weight")

    shapes = {
        hubs: file.shapes[name][::-1] if is_linear(hubs) else file.shapes[name]
        for hubs, name in stored.items()
    }

    def read(name: str) -> torch.Tensor:
        tensor = file.read(stored[name])
        return tensor.t() if is_linear(name) else tensor

    return TensorSource(str(file.path), shapes, read)


# --- Tokenizers ---


def tokenizer_from_gguf(file: GGUFFile):
    """The tokenizer in a file's metadata, with tiktoken's methods."""
    metadata = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in file.metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    kind, pre = metadata.get("model"), metadata.get("pre")
    if kind == "gpt2" and pre in PATTERNS:
        return _byte_pairs(file, metadata, PATTERNS[pre])
    if kind == "llama" and file.metadata["general.architecture"] == "gemma3":
        return _sentence_pieces(metadata)
    raise ValueError(
        f"{file.path}: tokenizer {kind!r} with splitting {pre!r} is unknown; known: gpt2 with "
        f"{', '.join(PATTERNS)}"
    )


def _byte_pairs(file: GGUFFile, metadata: Mapping, pattern: str) -> tiktoken.Encoding:
    """Byte pairs whose ids are in the order of the merges, which is all that tiktoken needs."""
    tokens, kinds = metadata["tokens"], metadata["token_type"]
    ids = {token: i for i, token in enumerate(tokens)}
    merged = [ids.get(merge.replace(" ", "", 1), -1) for merge in metadata["merges"]]
    if any(a > b for a, b in zip(merged, merged[1:], strict=False)) or -1 in merged:
        raise ValueError(f"{file.path}: the ids of its tokens are not in the order of the merges")
    byte_of = {symbol: byte for byte, symbol in byte_symbols().items()}
    ranks, special = {}, {}
    for token, (i, kind) in zip(tokens, enumerate(kinds), strict=True):
        if kind == NORMAL and all(symbol in byte_of for symbol in token):
            ranks[bytes(byte_of[symbol] for symbol in token)] = i
        else:
            special[token] = i
    return tiktoken.Encoding(
        file.path.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
    )


def _sentence_pieces(metadata: Mapping) -> HubTokenizer:
    """SentencePiece: the merges follow from the vocabulary, best score first."""
    tokens, scores, kinds = metadata["tokens"], metadata["scores"], metadata["token_type"]
    vocab: dict[str, int] = {}
    for i, token in enumerate(tokens):
        vocab.setdefault(token, i)
    merges = []
    for token, i in vocab.items():
        if kinds[i] != NORMAL:
            continue
        for k in range(1, len(token)):
            left, right = token[:k], token[k:]
            if left in vocab and right in vocab:
                merges.append((-scores[i], vocab[left], vocab[right], left, right))
    merges.sort(key=lambda merge: merge[:3])
    added = [
        {"id": i, "content": token, "special": kind == CONTROL}
        | {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for token, (i, kind) in zip(tokens, enumerate(kinds), strict=True)
        if kind in (CONTROL, USER_DEFINED) and not token.startswith("<unused")
    ]
    content = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [[left, right] for *_, left, right in merges],
            "byte_fallback": True,
            "fuse_unk": True,
            "unk_token": "<unk>",
        },
    }
    return HubTokenizer.from_content(content, "<eos>")
