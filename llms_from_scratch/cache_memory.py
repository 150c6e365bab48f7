"""How much memory a model's cache takes, without making the model: formulas and published shapes.

A cache keeps, of each token and in each layer, keys and values of some heads, or a latent vector;
layers with a window keep their last tokens only, layers with the delta rule a matrix per head, of
whatever length the text is. ``CacheShape`` adds that up.

Numbers of bytes are per cache, for all layers. GB are 1000³ bytes.
"""

import math
from dataclasses import dataclass

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}


@dataclass(frozen=True)
class CacheShape:
    """What of a model decides about its cache; each layer is of one of three kinds.

    ``windowed_layers`` of the ``n_layers`` see ``sliding_window`` tokens, ``delta_layers`` have the
    gated delta rule, the others see everything. With a ``latent_dim``, those keep that and
    ``rope_dim`` numbers per token in place of keys and values.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    sliding_window: int | None = None
    windowed_layers: int = 0
    latent_dim: int = 0
    rope_dim: int = 0
    delta_layers: int = 0
    delta_key_heads: int = 0
    delta_value_heads: int = 0
    delta_head_dim: int = 0
    conv_size: int = 4

    @property
    def numbers_per_token(self) -> int:
        """What one layer with attention keeps of one token."""
        return (self.latent_dim + self.rope_dim) or 2 * self.n_kv_heads * self.head_dim

    def total_bytes(
        self, context_length: int, dtype: str = "bf16", batch_size: int = 1, allocated: bool = False
    ) -> int:
        """Bytes for texts of ``context_length`` tokens.

        ``allocated`` counts the memory that ``KVCache`` reserves, which for a layer with a window
        is that of two windows: its tokens move to the front once per window, not at each step.
        """
        check_positive(context_length=context_length, batch_size=batch_size)
        element = bytes_of(dtype)
        windows = 2 if allocated else 1
        kept = min(context_length, windows * (self.sliding_window or context_length))
        full_layers = self.n_layers - self.windowed_layers - self.delta_layers
        tokens = full_layers * context_length + self.windowed_layers * kept
        attention = tokens * self.numbers_per_token * element
        return batch_size * (attention + self.delta_layers * self.delta_bytes(element))

    def delta_bytes(self, element: int) -> int:
        """Of one layer and row: the memory in float32, and the inputs of the convolution."""
        memory = self.delta_value_heads * self.delta_head_dim**2 * 4
        channels = (2 * self.delta_key_heads + self.delta_value_heads) * self.delta_head_dim
        return memory + (self.conv_size - 1) * channels * element


PUBLISHED = {
    "gpt2-124m": CacheShape(12, 12, 12, 64),
    "gpt2-1558m": CacheShape(48, 25, 25, 64),
    "smollm2-135m": CacheShape(30, 9, 3, 64),
    "llama-2-7b": CacheShape(32, 32, 32, 128),
    "llama-3.2-1b": CacheShape(16, 32, 8, 64),
    "llama-3.2-3b": CacheShape(28, 24, 8, 128),
    "llama-3.1-8b": CacheShape(32, 32, 8, 128),
    "mistral-7b-v0.1": CacheShape(32, 32, 8, 128, 4096, 32),
    "mixtral-8x7b": CacheShape(32, 32, 8, 128),
    "qwen3-0.6b": CacheShape(28, 16, 8, 128),
    "qwen3-4b": CacheShape(36, 32, 8, 128),
    "qwen3-32b": CacheShape(64, 64, 8, 128),
    "qwen3-30b-a3b": CacheShape(48, 32, 4, 128),
    "gemma-3-270m": CacheShape(18, 4, 1, 256, 512, 15),
    "gemma-3-27b": CacheShape(62, 32, 16, 128, 1024, 52),
    "olmo-3-7b": CacheShape(32, 32, 32, 128, 4096, 24),
    "olmo-3-32b": CacheShape(64, 40, 8, 128, 4096, 48),
    "deepseek-v2-lite": CacheShape(27, 16, 16, 128, latent_dim=512, rope_dim=64),
    "deepseek-v3": CacheShape(61, 128, 128, 128, latent_dim=512, rope_dim=64),
    "qwen3-next-80b-a3b": CacheShape(
        48,
        16,
        2,
        256,
        delta_layers=36,
        delta_key_heads=16,
        delta_value_heads=32,
        delta_head_dim=128,
    ),
}


def published_shape(name: str) -> CacheShape:
    """The shape of a published model; ``ValueError`` with the known names for another."""
    shape = PUBLISHED.get(name.lower())
    if shape is None:
        raise ValueError(f"no model named {name!r}; known: {', '.join(PUBLISHED)}")
    return shape


def published_table(dtype: str = "bf16", contexts: tuple[int, ...] = (8192, 32_768, 131_072)):
    """Rows of strings, headings first: each published model with its cache at some lengths."""
    lengths = [f"{length // 1024}k" for length in contexts]
    rows = [["model", "layers", "heads", "KV heads", "head_dim", "window", *lengths]]
    for name, shape in PUBLISHED.items():
        groups, window = str(shape.n_kv_heads), "-"
        if shape.latent_dim:
            groups = f"latent {shape.latent_dim} + {shape.rope_dim}"
        if shape.windowed_layers:
            window = f"{shape.sliding_window} in {shape.windowed_layers}"
        if shape.delta_layers:
            window = f"delta rule in {shape.delta_layers}"
        sizes = [convert_bytes(shape.total_bytes(length, dtype)) for length in contexts]
        row = [name, shape.n_layers, shape.n_heads, groups, shape.head_dim, window, *sizes]
        rows.append([str(cell) for cell in row])
    return rows


# --- Formulas ---


def check_positive(**values: int) -> None:
    """Raise ``ValueError`` for a value below 1, by its name."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def bytes_of(dtype: str) -> int:
    """Bytes of a number; ``ValueError`` with the known names for an unknown one."""
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]


def convert_bytes(n: float) -> str:
    """Bytes as GB, 1000³ of them.

    >>> convert_bytes(17_179_869_184)
    '17.18 GB'
    """
    return f"{n / 1000**3:,.2f} GB"


def width_of_head(emb_dim: int, n_heads: int) -> int:
    """``emb_dim / n_heads``, rounded up: a cache has room for whole numbers only."""
    check_positive(emb_dim=emb_dim, n_heads=n_heads)
    return math.ceil(emb_dim / n_heads)


def kv_heads(n_heads: int, n_kv_groups: int) -> int:
    """``n_kv_groups``, the number of heads of keys and values, as in the models' configurations.

    Raises ``ValueError`` if the query heads cannot share them evenly.
    """
    check_positive(n_heads=n_heads, n_kv_groups=n_kv_groups)
    if n_heads % n_kv_groups:
        raise ValueError(
            f"n_heads={n_heads} is no multiple of n_kv_groups={n_kv_groups}: each group of keys "
            "and values serves as many query heads"
        )
    return n_kv_groups


def calc_kv_bytes_per_layer(
    batch: int, context_length: int, head_dim: int, n_kv_heads: int, bytes_per_elem: int
) -> int:
    """Keys and values of one layer."""
    return 2 * batch * context_length * head_dim * n_kv_heads * bytes_per_elem


def calc_kv_bytes_total(
    batch: int,
    context_length: int,
    emb_dim: int,
    n_heads: int,
    n_kv_heads: int,
    n_layers: int,
    bytes_per_elem: int,
) -> int:
    """Keys and values of all layers.

    >>> calc_kv_bytes_total(1, 32_768, 4096, 32, 32, 32, 2)
    17179869184
    """
    head_dim = width_of_head(emb_dim, n_heads)
    layer = calc_kv_bytes_per_layer(batch, context_length, head_dim, n_kv_heads, bytes_per_elem)
    return layer * n_layers


def calc_mla_bytes_total(
    batch: int, context_length: int, n_layers: int, latent_dim: int, bytes_per_elem: int
) -> int:
    """Latent vectors of all layers."""
    return batch * context_length * n_layers * latent_dim * bytes_per_elem


def parse_ratio(ratio_str: str) -> tuple[int, int]:
    """Layers with a window to layers without one.

    >>> parse_ratio("5:1")
    (5, 1)
    """
    parts = ratio_str.strip().split(":")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"a ratio is two numbers with a colon, 5:1 say; got {ratio_str!r}")
    a, b = int(parts[0]), int(parts[1])
    if a + b == 0:
        raise ValueError(f"a ratio needs a number above 0 on one side, got {ratio_str!r}")
    return a, b


def distribute_layers(n_layers: int, a: int, b: int) -> tuple[int, int]:
    """How many of the layers have a window, and how many do not, if a and b take turns.

    >>> distribute_layers(32, 5, 1)
    (27, 5)
    """
    rounds, rest = divmod(n_layers, a + b)
    swa = rounds * a + min(a, rest)
    return swa, n_layers - swa


def estimate_totals(
    context_length: int,
    sliding_window_size: int,
    emb_dim: int,
    n_heads: int,
    n_layers: int,
    n_kv_groups: int,
    batch_size: int,
    dtype: str,
    swa_ratio: str,
) -> dict:
    """Caches with and without windows, with and without grouped queries, in bytes."""
    check_positive(
        context_length=context_length,
        sliding_window_size=sliding_window_size,
        n_layers=n_layers,
        batch_size=batch_size,
    )
    element, head_dim = bytes_of(dtype), width_of_head(emb_dim, n_heads)
    groups = kv_heads(n_heads, n_kv_groups)
    window = min(context_length, sliding_window_size)  # a short text does not fill it
    swa, full = distribute_layers(n_layers, *parse_ratio(swa_ratio))

    def layer(tokens: int, heads: int) -> int:
        return calc_kv_bytes_per_layer(batch_size, tokens, head_dim, heads, element)

    return {
        "bytes_per_elem": element,
        "head_dim": head_dim,
        "n_kv_heads_gqa": groups,
        "eff_W": window,
        "n_swa_layers": swa,
        "n_full_layers": full,
        "total_mha_allfull": n_layers * layer(context_length, n_heads),
        "total_gqa_allfull": n_layers * layer(context_length, groups),
        "total_mixed_mha": swa * layer(window, n_heads) + full * layer(context_length, n_heads),
        "total_mixed_gqa": swa * layer(window, groups) + full * layer(context_length, groups),
    }


def calc_kv_bytes_total_mha(
    batch: int,
    context_length: int,
    emb_dim: int,
    n_layers: int,
    bytes_per_elem: int,
    n_heads: int,
) -> int:
    """Keys and values of all layers, if each head has its own."""
    return calc_kv_bytes_total(
        batch, context_length, emb_dim, n_heads, n_heads, n_layers, bytes_per_elem
    )


def calc_kv_bytes_total_deltanet_no_conv(
    batch: int, emb_dim: int, n_layers: int, bytes_per_elem: int, n_heads: int
) -> int:
    """The memories of all layers with the delta rule, whatever the length of the text."""
    head_dim = width_of_head(emb_dim, n_heads)
    return batch * n_heads * head_dim**2 * bytes_per_elem * n_layers
