"""Write the table of "What changed from GPT-2 to Qwen3.5" from the configuration dictionaries.

    python tools/what_changed.py            # rewrite the table in ch05/what-changed/README.md
    python tools/what_changed.py --check    # change nothing, exit with 1 if the page differs

What a configuration does not say is read off the model, made without memory on the meta device;
only the kind of tokenizer, and whether the published weights are tied, are stated here.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch
import torch.nn as nn

from llms_from_scratch import ch04, gemma3, llama2, llama3, olmo3, qwen3, qwen3_5, tiny_aya
from llms_from_scratch.blocks.delta_rule import GatedDeltaNet
from llms_from_scratch.blocks.feed_forward import MoEFeedForward
from llms_from_scratch.blocks.rope import no_positions

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "ch05" / "what-changed" / "README.md"
BEGIN, END = "<!-- table: tools/what_changed.py -->\n", "<!-- end of table -->\n"
BYTES = 2  # of a number in bfloat16
BASES = ("rope_base", "rope_local_base")


@dataclass(frozen=True)
class Model:
    """One column of the table."""

    name: str
    module: str  # the file that has the definition
    model_class: type[nn.Module]
    cfg: dict
    tokenizer: str
    tied: bool  # in the published weights

    @cached_property
    def on_meta(self) -> nn.Module:
        with torch.device("meta"):
            return self.model_class(self.cfg)

    @property
    def head_dim(self) -> int:
        return self.cfg.get("head_dim") or self.cfg["emb_dim"] // self.cfg["n_heads"]

    @property
    def kv_heads(self) -> int:
        heads = self.cfg.get("n_kv_groups") or self.cfg.get("n_kv_heads")
        return heads or self.cfg["n_heads"]

    @property
    def windows(self) -> list[int | None]:
        return getattr(self.on_meta, "windows", [None] * self.cfg["n_layers"])

    @property
    def attention(self) -> nn.Module:
        """That of the first layer that has it."""
        return next(block.att for block in self.on_meta.trf_blocks if hasattr(block, "att"))

    @property
    def memories(self) -> list[GatedDeltaNet]:
        """The layers with a memory in the place of attention."""
        return [part for part in self.on_meta.modules() if isinstance(part, GatedDeltaNet)]

    def cache_bytes(self, num_tokens: int) -> int:
        """Keys and values of so many tokens, in bfloat16; a window keeps all but its last.

        Memories are in float32, and have a convolution's last inputs beside them.
        """
        windows = self.windows[: len(self.windows) - len(self.memories)]
        columns = (num_tokens if w is None else min(num_tokens, w - 1) for w in windows)
        fixed = sum(
            m.num_value_heads * m.key_head_dim * m.value_head_dim * torch.float32.itemsize
            + m.conv_dim * (m.conv_size - 1) * BYTES
            for m in self.memories
        )
        return sum(columns) * 2 * self.kv_heads * self.head_dim * BYTES + fixed


GPT2_CONFIG = ch04.BASE_CONFIG | ch04.model_configs["gpt2-small (124M)"]
AYA_CONFIG = tiny_aya.TINY_AYA_CONFIG | {"tie_embeddings": False}  # ``tied`` counts it once
BYTE_PAIRS, PIECES = "byte pairs", "SentencePiece"
MODELS = (
    Model("GPT-2 124M", "ch04.py", ch04.GPTModel, GPT2_CONFIG, BYTE_PAIRS, True),
    Model("Llama 2 7B", "llama2.py", llama2.Llama2Model, llama2.LLAMA2_CONFIG_7B, PIECES, False),
    Model(
        "Llama 3 8B", "llama3.py", llama3.Llama3Model, llama3.LLAMA3_CONFIG_8B, BYTE_PAIRS, False
    ),
    Model("Qwen3 0.6B", "qwen3.py", qwen3.Qwen3Model, qwen3.QWEN_CONFIG_06_B, BYTE_PAIRS, True),
    Model(
        "Qwen3 30B-A3B",
        "qwen3.py",
        qwen3.Qwen3Model,
        qwen3.QWEN3_CONFIG_30B_A3B,
        BYTE_PAIRS,
        False,
    ),
    Model("Gemma 3 270M", "gemma3.py", gemma3.Gemma3Model, gemma3.GEMMA3_CONFIG_270M, PIECES, True),
    Model("Olmo 3 7B", "olmo3.py", olmo3.Olmo3Model, olmo3.OLMO3_CONFIG_7B, BYTE_PAIRS, False),
    Model("Tiny Aya", "tiny_aya.py", tiny_aya.TinyAyaModel, AYA_CONFIG, BYTE_PAIRS, True),
    Model(
        "Qwen3.5 0.8B",
        "qwen3_5.py",
        qwen3_5.Qwen3_5Model,
        qwen3_5.QWEN3_5_CONFIG,
        BYTE_PAIRS,
        True,
    ),
)


def norm_of(model: Model) -> str:
    kind = type(model.on_meta.final_norm)
    begins_at_zero = all(not p.any() for p in kind(4).parameters())
    name = "LayerNorm without shift" if kind is tiny_aya.CohereLayerNorm else kind.__name__
    return name + (", by 1 + weight" if begins_at_zero else "")


def place_of_norm(model: Model) -> str:
    """Read off the names of a block's norms."""
    names = {name for name, _ in model.on_meta.trf_blocks[0].named_children() if "norm" in name}
    if names == {"input_layernorm"}:
        return "before, one for both"
    before = bool(names & {"norm1", "input_layernorm"})
    after = "post_feedforward_layernorm" in names
    return {(1, 0): "before", (1, 1): "before and after", (0, 1): "after"}[before, after]


def query_key_norm_of(model: Model) -> str:
    norm = getattr(model.attention, "q_norm", None)
    if norm is None:
        return "no"
    (parameter,) = norm.parameters()
    return "per head" if len(parameter) == model.head_dim else "all heads at once"


def positions_of(model: Model) -> str:
    if hasattr(model.on_meta, "pos_emb"):
        return "learned, added"
    cfg = model.cfg
    bases = [cfg.get(key) for key in BASES if cfg.get(key)] or [10_000]
    text = "RoPE, " + " and ".join(f"{base:,.0f}" for base in bases)
    if cfg.get("rope_type"):
        text += f"; {cfg['rope_type'].replace('yarn', 'YaRN')} × {cfg['rope_factor']:.0f}"
    if cfg.get("partial_rotary_factor"):
        text += f"; {cfg['partial_rotary_factor']:.0%} of each head"
    if model.on_meta.ropes["full_attention"] is no_positions:
        text += "; none in layers that see everything"
    return text


def feed_forward_of(model: Model) -> str:
    layer, cfg = model.on_meta.trf_blocks[0].ff, model.cfg
    if isinstance(layer, MoEFeedForward):
        chosen, hidden = layer.num_experts_per_tok, cfg["moe_intermediate_size"]
        return f"SwiGLU {hidden:,}, {chosen} of {layer.num_experts} experts"
    if not hasattr(layer, "fc1"):
        return f"GELU {4 * cfg['emb_dim']:,}"
    return f"{'GeGLU' if isinstance(layer, gemma3.FeedForward) else 'SwiGLU'} {cfg['hidden_dim']:,}"


def window_of(model: Model) -> str:
    short = [window for window in model.windows if window is not None]
    if not short:
        return "none"
    return f"{short[0]:,} in {len(short)} of {len(model.windows)} layers"


def memories_of(model: Model) -> str:
    count = len(model.memories)
    return f"gated delta rule in {count} of {len(model.windows)} layers" if count else "none"


def sublayers_of(model: Model) -> str:
    side_by_side = place_of_norm(model).endswith("one for both")
    return "side by side" if side_by_side else "one after the other"


def parameters_of(model: Model) -> str:
    total = sum(p.numel() for p in model.on_meta.parameters())
    return f"{total - model.tied * model.on_meta.out_head.weight.numel():,}"


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


ROWS: dict[str, Callable[[Model], str]] = {
    "norm": norm_of,
    "its place: the sublayer": place_of_norm,
    "attention and feed-forward": sublayers_of,
    "queries and keys normalized": query_key_norm_of,
    "positions": positions_of,
    "width (`emb_dim`)": lambda m: f"{m.cfg['emb_dim']:,}",
    "layers": lambda m: str(m.cfg["n_layers"]),
    "heads of queries": lambda m: str(m.cfg["n_heads"]),
    "heads of keys and values": lambda m: str(m.kv_heads),
    "`head_dim`": lambda m: str(m.head_dim),
    "biases": lambda m: "yes" if m.cfg.get("qkv_bias") else "no",
    "feed-forward": feed_forward_of,
    "window": window_of,
    "memory instead of attention": memories_of,
    "output layer is the embedding": lambda m: "yes" if m.tied else "no",
    "context": lambda m: f"{m.cfg['context_length']:,}",
    "tokenizer": lambda m: m.tokenizer,
    "vocabulary": lambda m: f"{m.cfg['vocab_size']:,}",
    "parameters": parameters_of,
    "cache, 1,024 tokens": lambda m: megabytes(m.cache_bytes(1024)),
    "cache, whole context": lambda m: megabytes(m.cache_bytes(m.cfg["context_length"])),
}


# A size differs from model to model anyway
SIZES = (
    "width (`emb_dim`)",
    "layers",
    "heads of queries",
    "heads of keys and values",
    "context",
    "vocabulary",
    "parameters",
    "cache, 1,024 tokens",
    "cache, whole context",
)


def table() -> str:
    """The table in Markdown: a row for each property, a column for each model."""
    links = [f"[{m.name}](../../llms_from_scratch/{m.module})" for m in MODELS]
    lines = ["| | " + " | ".join(links) + " |", "|---" * (len(MODELS) + 1) + "|"]
    for title in ROWS:
        lines.append(f"| {title} | " + " | ".join(texts_of(title)) + " |")
    return "\n".join(lines) + "\n"


def texts_of(title: str) -> list[str]:
    """A row's texts, bold where the building block is another one than in the model before."""
    texts = [ROWS[title](model) for model in MODELS]
    if title in SIZES:
        return texts
    before = [texts[0], *texts[:-1]]
    return [text if text == old else f"**{text}**" for text, old in zip(texts, before, strict=True)]


def page_with_table(page: str) -> str:
    """The page with the table between its marks; ``ValueError`` if they are not there."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks {BEGIN.strip()!r} or {END.strip()!r}")
    return head + BEGIN + table() + END + tail


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="report a difference, write nothing")
    args = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    wanted = page_with_table(page)
    if page == wanted:
        print(f"the table in {PAGE.relative_to(ROOT)} is what the configurations say")
        return 0
    if args.check:
        print(f"{PAGE.relative_to(ROOT)} differs: run python tools/what_changed.py")
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: table rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
