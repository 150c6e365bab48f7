"""Rotary position embeddings (RoPE): positions as rotations of queries and keys.

Each pair of numbers of a head is a point in a plane, and the token at position p turns it by the
angle p times the pair's frequency. A dot product of a query with a key then depends on the
difference of their positions only. The pairs are number i of the first half of a head with number
i of its second half.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021).
"""

import math

import torch

from llms_from_scratch.blocks.config import closest

ROPE_TYPES = {  # what each needs besides, and what it may have
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor", "original_context_length"),
        (),
    ),
    "yarn": (
        ("factor", "original_context_length"),
        ("attention_factor", "beta_fast", "beta_slow"),
    ),
}


def inverse_frequencies(head_dim: int, theta_base: float = 10_000) -> torch.Tensor:
    """Radians per position for each pair of numbers, (head_dim / 2,), from 1 down to 1/base.

    >>> inverse_frequencies(4, theta_base=100)
    tensor([1.0000, 0.1000])
    """
    if head_dim % 2:
        raise ValueError(f"RoPE turns pairs of numbers: head_dim must be even, got {head_dim}")
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    return 1.0 / theta_base**exponents


def scale_linear(frequencies: torch.Tensor, factor: float) -> torch.Tensor:
    """Squeeze positions: ``factor`` times as many fit into the angles seen in training."""
    return frequencies / factor


def scale_llama3(
    frequencies: torch.Tensor,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_context_length: int,
) -> torch.Tensor:
    """Squeeze only what turns slowly, as Llama 3.1 does.

    Pairs that turn many times within the original context tell neighbours apart and stay as they
    are; those that do not finish a turn are divided by ``factor``; between, both are blended.
    """
    wavelengths = 2 * math.pi / frequencies
    turns = original_context_length / wavelengths
    smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
    blended = (1 - smooth) * frequencies / factor + smooth * frequencies
    result = torch.where(turns < low_freq_factor, frequencies / factor, blended)
    return torch.where(turns > high_freq_factor, frequencies, result)


def scale_yarn(
    frequencies: torch.Tensor,
    theta_base: float,
    factor: float,
    original_context_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> torch.Tensor:
    """Squeeze only what turns slowly, with a ramp over the pairs' numbers (YaRN).

    Pairs that turn ``beta_fast`` times or more within the original context stay, those that turn
    ``beta_slow`` times or fewer are divided by ``factor``.
    Source: Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models" (2023).
    """
    dim = 2 * len(frequencies)

    def pair_that_turns(times: float) -> float:
        full_turn = original_context_length / (times * 2 * math.pi)
        return dim * math.log(full_turn) / (2 * math.log(theta_base))

    low = max(math.floor(pair_that_turns(beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(beta_slow)), dim - 1)
    if low == high:
        high += 0.001  # no division by zero
    pairs = torch.arange(len(frequencies), dtype=torch.float32, device="cpu")
    ramp = ((pairs - low) / (high - low)).clamp(0, 1)
    return frequencies / factor * ramp + frequencies * (1 - ramp)


def yarn_attention_factor(factor: float) -> float:
    """How much YaRN sharpens attention over a longer context.

    >>> round(yarn_attention_factor(8), 4)
    1.2079
    """
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


class RotaryEmbedding:
    """Cosines and sines of positions, computed for those that are asked for.

    ``rope(positions)`` gives two tensors for positions (n,), each (n, head_dim), or for positions
    (b, n), each (b, 1, n, head_dim). No table of the whole context is stored: that of a model with
    131,072 positions would have 67 MB. ``scaling`` is None, or a dictionary with ``rope_type``, a
    key of ``ROPE_TYPES``, and what belongs to it; anything else is a ``ValueError``.
    """

    def __init__(self, head_dim: int, theta_base: float = 10_000, scaling: dict | None = None):
        scaling = check_scaling(scaling)
        rope_type = scaling.pop("rope_type")
        self.attention_factor = scaling.pop("attention_factor", None) or 1.0
        frequencies = inverse_frequencies(head_dim, theta_base)
        if rope_type == "linear":
            frequencies = scale_linear(frequencies, **scaling)
        elif rope_type == "llama3":
            frequencies = scale_llama3(frequencies, **scaling)
        elif rope_type == "yarn":
            frequencies = scale_yarn(frequencies, theta_base, **scaling)
        # Not a buffer of the model: model.to(torch.bfloat16) would round it
        self.frequencies = frequencies

    def __call__(
        self, positions: torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.frequencies.device != positions.device and positions.device.type != "meta":
            self.frequencies = self.frequencies.to(positions.device)
        angles = positions.float()[..., None] * self.frequencies.to(positions.device)
        angles = torch.cat([angles, angles], dim=-1)  # (n, head_dim), or (b, n, head_dim)
        if positions.dim() == 2:
            angles = angles[:, None]  # (b, 1, n, head_dim): the same for all heads
        cos, sin = angles.cos() * self.attention_factor, angles.sin() * self.attention_factor
        return cos.to(dtype), sin.to(dtype)


class ProportionalRotaryEmbedding(RotaryEmbedding):
    """Of each head, only the ``partial_rotary_factor`` of its pairs that turn fastest do turn."""

    def __init__(
        self, head_dim: int, theta_base: float = 10_000, partial_rotary_factor: float = 1.0
    ):
        super().__init__(head_dim, theta_base)
        self.frequencies[int(partial_rotary_factor * head_dim // 2) :] = 0.0


def rotary_embedding(
    head_dim: int,
    theta_base: float = 10_000.0,
    rope_type: str = "default",
    partial_rotary_factor: float = 1.0,
) -> RotaryEmbedding:
    """The rotations of a type of layers: of all pairs, or, if ``"proportional"``, of some."""
    if rope_type == "proportional":
        return ProportionalRotaryEmbedding(head_dim, theta_base, partial_rotary_factor)
    if rope_type != "default" or partial_rotary_factor != 1.0:
        raise ValueError(
            f"rope_type must be 'proportional', or 'default' for all pairs, got {rope_type!r} "
            f"with partial_rotary_factor={partial_rotary_factor}"
        )
    return RotaryEmbedding(head_dim, theta_base)


def no_positions(positions: torch.Tensor, dtype: torch.dtype = torch.float32) -> tuple[None, None]:
    """In the place of a ``RotaryEmbedding``, for layers that know no positions."""
    return None, None


def check_scaling(scaling: dict | None) -> dict:
    """A scaling with nothing missing and nothing unknown; ``ValueError`` otherwise."""
    scaling = {"rope_type": "default"} | (scaling or {})
    rope_type = scaling["rope_type"]
    if rope_type not in ROPE_TYPES:
        raise ValueError(f"unknown rope_type {rope_type!r}; known: {', '.join(ROPE_TYPES)}")
    needed, allowed = ROPE_TYPES[rope_type]
    for key in scaling:
        if key not in ("rope_type", *needed, *allowed):
            hint = closest(key, [*needed, *allowed])
            raise ValueError(f"rope_type {rope_type!r} has no {key!r}; {hint}")
    missing = [key for key in needed if key not in scaling]
    if missing:
        raise ValueError(f"rope_type {rope_type!r} needs {', '.join(missing)}")
    if rope_type == "yarn" and scaling.get("attention_factor") is None:
        scaling["attention_factor"] = yarn_attention_factor(scaling["factor"])
    return scaling


def compute_rope_params(
    head_dim: int,
    theta_base: float = 10_000,
    context_length: int = 4096,
    freq_config: dict | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of all positions, each (context_length, head_dim).

    ``freq_config`` is Llama 3.1's scaling: ``factor``, ``low_freq_factor``, ``high_freq_factor``,
    ``original_context_length``.
    """
    scaling = None if freq_config is None else {"rope_type": "llama3"} | freq_config
    rope = RotaryEmbedding(head_dim, theta_base, scaling)
    return rope(torch.arange(context_length), dtype)


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn queries or keys (b, num_heads, num_tokens, head_dim) by their positions' angles.

    ``cos`` and ``sin`` have rows for num_tokens or more positions, of which the first are taken.

    >>> cos, sin = compute_rope_params(head_dim=2, context_length=8)
    >>> apply_rope(torch.tensor([[[[1.0, 0.0]] * 2]]), cos, sin)  # positions 0 and 1
    tensor([[[[1.0000, 0.0000],
              [0.5403, 0.8415]]]])
    """
    num_tokens = x.shape[-2]
    if cos.shape[-2] != num_tokens:
        cos, sin = cos[..., :num_tokens, :], sin[..., :num_tokens, :]
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)  # each pair, turned by a right angle
    return (x * cos + turned * sin).to(x.dtype)
