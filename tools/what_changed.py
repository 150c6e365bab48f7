"""Write the tables of "What changed from GPT-2 to Gemma 4" from the configuration dictionaries.

    python tools/what_changed.py            # rewrite the tables in ch05/what-changed/README.md
    python tools/what_changed.py --check    # change nothing, exit with 1 if the page differs

What a configuration does not say is read off the model, made without memory on the meta device;
only the kind of tokenizer, and whether the published weights are tied, are stated here.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch
import torch.nn as nn

from llms_from_scratch import ch04, gemma3, gemma4, llama2, llama3, olmo3, qwen3, qwen3_5, tiny_aya
from llms_from_scratch.blocks.delta_rule import GatedDeltaNet
from llms_from_scratch.blocks.feed_forward import MoEFeedForward
from llms_from_scratch.blocks.rope import no_positions
from llms_from_scratch.kv_cache.measure import kept_bytes
from llms_from_scratch.kv_cache.optimized import with_cache

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "ch05" / "what-changed" / "README.md"
BEGIN, END = "<!-- table: tools/what_changed.py -->\n", "<!-- end of table -->\n"
BYTES = 2  # of a number in bfloat16
CACHES_BEGIN = "<!-- table of caches: tools/what_changed.py -->\n"
BASES = ("rope_base", "rope_global_base", "rope_local_base")


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
    def mixers(self) -> list[nn.Module]:
        """What lets tokens know of each other, layer by layer: attention, or a memory."""
        blocks = self.on_meta.trf_blocks
        return [block.att if hasattr(block, "att") else block.token_mixer for block in blocks]

    @property
    def attention(self) -> nn.Module:
        """That of the first layer that has it."""
        return next(mixer for mixer in self.mixers if not isinstance(mixer, GatedDeltaNet))

    @property
    def memories(self) -> list[GatedDeltaNet]:
        """The layers with a memory in the place of attention."""
        return [mixer for mixer in self.mixers if isinstance(mixer, GatedDeltaNet)]

    def cache_bytes(self, num_tokens: int) -> int:
        """Keys and values of so many tokens, in bfloat16; a window keeps all but its last.

        Memories are in float32, and have a convolution's last inputs beside them. A layer that
        looks at another's keys keeps none.
        """
        total = 0
        for mixer, window in zip(self.mixers, self.windows, strict=True):
            if isinstance(mixer, GatedDeltaNet):
                memory = mixer.num_value_heads * mixer.key_head_dim * mixer.value_head_dim
                inputs = mixer.conv_dim * (mixer.conv_size - 1)
                total += memory * torch.float32.itemsize + inputs * BYTES
            elif not getattr(mixer, "is_kv_shared_layer", False):
                columns = num_tokens if window is None else min(num_tokens, window - 1)
                total += columns * 2 * self.kv_heads * mixer.head_dim * BYTES
        return total

    def kept_bytes(self, num_tokens: int) -> int:
        """The same, measured: what a cache holds after a run on the meta device, in bfloat16."""

        def make() -> nn.Module:
            model = self.model_class(self.cfg)
            return with_cache(model) if isinstance(model, ch04.GPTModel) else model

        return kept_bytes(lambda: make().to(torch.bfloat16), num_tokens)


GPT2_CONFIG = ch04.BASE_CONFIG | ch04.model_configs["gpt2-small (124M)"]
AYA_CONFIG = tiny_aya.TINY_AYA_CONFIG | {"tie_embeddings": False}  # ``tied`` counts it once
E2B_CONFIG = gemma4.GEMMA4_CONFIG_E2B | {"tie_word_embeddings": False}
E4B_CONFIG = gemma4.GEMMA4_CONFIG_E4B | {"tie_word_embeddings": False}
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
    Model("Gemma 4 E2B", "gemma4.py", gemma4.Gemma4DenseModel, E2B_CONFIG, PIECES, True),
)
E4B = Model("Gemma 4 E4B", "gemma4.py", gemma4.Gemma4DenseModel, E4B_CONFIG, PIECES, True)
WITH_CACHES = (MODELS[0], *MODELS[-3:], E4B)
LENGTHS = (256, 1024, 8192)


def norm_of(model: Model) -> str:
    kind = type(model.on_meta.final_norm)
    begins_at_zero = all(not p.any() for p in kind(4).parameters())
    name = kind.__name__.removeprefix("Gemma4")
    if kind is tiny_aya.CohereLayerNorm:
        name = "LayerNorm without shift"
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
    place = "per head" if len(parameter) == model.head_dim else "all heads at once"
    return place + (", values too" if hasattr(model.attention, "v_norm") else "")


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
    if cfg.get("rope_global_partial_rotary_factor"):
        share = cfg["rope_global_partial_rotary_factor"]
        text += f"; {share:.0%} of the pairs in layers that see everything"
    if model.on_meta.ropes["full_attention"] is no_positions:
        text += "; none in layers that see everything"
    return text


def feed_forward_of(model: Model) -> str:
    block, cfg = model.on_meta.trf_blocks[0], model.cfg
    layer = block.ff if hasattr(block, "ff") else block.mlp
    if isinstance(layer, gemma4.Gemma4FeedForward):
        double = cfg["num_kv_shared_layers"] if cfg["use_double_wide_mlp"] else 0
        return f"GeGLU {cfg['hidden_dim']:,}, twice that in {double} of {cfg['n_layers']} layers"
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


def head_dim_of(model: Model) -> str:
    wide = model.cfg.get("global_head_dim")
    return f"{model.head_dim}" + (f", {wide} in layers that see everything" if wide else "")


def sharing_of(model: Model) -> str:
    count = sum(getattr(mixer, "is_kv_shared_layer", False) for mixer in model.mixers)
    return f"{count} of {len(model.mixers)}" if count else "none"


def vectors_of(model: Model) -> str:
    width = model.cfg.get("hidden_size_per_layer_input")
    return f"{width} numbers" if width else "none"


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
    "`head_dim`": head_dim_of,
    "biases": lambda m: "yes" if m.cfg.get("qkv_bias") else "no",
    "feed-forward": feed_forward_of,
    "window": window_of,
    "memory instead of attention": memories_of,
    "layers with the keys of another": sharing_of,
    "a token's vector for each layer": vectors_of,
    "scores divided by the root of `head_dim`": lambda m: (
        "no" if isinstance(m.attention, gemma4.Gemma4Attention) else "yes"
    ),
    "bound of logits": lambda m: f"{m.cfg.get('final_logit_softcap') or 'none'}".removesuffix(".0"),
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


@cache
def measured() -> dict[str, dict[int, int]]:
    """Bytes that each model's cache holds, for as many tokens as its context has room for."""
    return {
        model.name: {n: model.kept_bytes(n) for n in LENGTHS if n <= model.cfg["context_length"]}
        for model in WITH_CACHES
    }


def table_of_caches() -> str:
    """Bytes per token, and how many times as many as GPT-2's."""
    titles = " | ".join(f"{n:,} tokens" for n in LENGTHS)
    lines = [f"| | {titles} |", "|---" * (len(LENGTHS) + 1) + "|"]
    sizes = measured()
    of_gpt2 = sizes[MODELS[0].name][LENGTHS[0]] / LENGTHS[0]
    for name, kept in sizes.items():
        texts = (
            f"{kept[n] / n:,.0f} (× {kept[n] / n / of_gpt2:.2f})" if n in kept else "context ends"
            for n in LENGTHS
        )
        lines.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def page_with_table(page: str) -> str:
    """The page with the tables between their marks; ``ValueError`` if they are not there."""
    return with_table(with_table(page, BEGIN, table), CACHES_BEGIN, table_of_caches)


def with_table(page: str, mark: str, make: Callable[[], str]) -> str:
    head, begin, rest = page.partition(mark)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks {mark.strip()!r} or {END.strip()!r}")
    return head + mark + make() + END + tail


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="report a difference, write nothing")
    args = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    wanted = page_with_table(page)
    if page == wanted:
        print(f"the tables in {PAGE.relative_to(ROOT)} are what the configurations say")
        return 0
    if args.check:
        print(f"{PAGE.relative_to(ROOT)} differs: run python tools/what_changed.py")
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: tables rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
