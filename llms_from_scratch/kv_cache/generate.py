"""Generation with a cache, under the names of chapter 4: whole texts, or token by token.

Thin forms of the one loop in ``llms_from_scratch.generate``, which can do more.
"""

from collections.abc import Iterator

import torch
import torch.nn as nn

from llms_from_scratch.generate import generate_tokens, trim_input_tensor

__all__ = ["generate_text_simple", "generate_text_simple_stream", "trim_input_tensor"]


def generate_text_simple_stream(
    model: nn.Module,
    token_ids: torch.Tensor,
    max_new_tokens: int,
    eos_token_id: int | None = None,
    context_size: int | None = None,
    *,
    lengths: torch.Tensor | None = None,
    use_cache: bool = True,
) -> Iterator[torch.Tensor]:
    """Yield the most probable next token of each row, (b, 1), as soon as it is known.

    ``lengths`` (b,) is for prompts of unequal length, padded on the left; see ``left_pad``. A row
    that has reached ``eos_token_id`` repeats it; when all have, generation ends, without a yield.
    ``generate_tokens`` explains the window of ``context_size`` tokens, and the errors.
    """
    steps = generate_tokens(
        model,
        _without_padding(token_ids, lengths),
        max_new_tokens,
        stop_ids=() if eos_token_id is None else (eos_token_id,),
        context_size=context_size,
        use_cache=use_cache,
    )
    for step in steps:
        step = [eos_token_id if token_id is None else token_id for token_id in step]
        yield token_ids.new_tensor(step)[:, None]


def generate_text_simple(
    model: nn.Module,
    idx: torch.Tensor,
    max_new_tokens: int,
    context_size: int | None = None,
    use_cache: bool = True,
    *,
    lengths: torch.Tensor | None = None,
) -> torch.Tensor:
    """``generate_text_simple`` of chapter 4 with a cache: the same tokens, computed faster.

    ``idx`` (b, num_tokens) becomes (b, num_tokens + max_new_tokens). See
    ``generate_text_simple_stream`` for ``lengths``. ``use_cache=False`` computes all tokens of the
    window anew in each step, for comparison.
    """
    new_tokens = generate_text_simple_stream(
        model, idx, max_new_tokens, None, context_size, lengths=lengths, use_cache=use_cache
    )
    return torch.cat([idx, *new_tokens], dim=1)


def _without_padding(token_ids: torch.Tensor, lengths: torch.Tensor | None) -> list[list[int]]:
    """The ids of each row, from the first real one on."""
    if token_ids.dim() != 2:
        raise ValueError(
            f"token ids must be a batch, (b, num_tokens); got shape {tuple(token_ids.shape)}"
        )
    b, n = token_ids.shape
    if lengths is None:
        return token_ids.tolist()
    if lengths.shape != (b,) or lengths.min() < 1 or lengths.max() > n:
        raise ValueError(
            f"lengths must be {b} numbers from 1 to {n}, one for each row of token_ids; got "
            f"{lengths.tolist()}"
        )
    rows = zip(token_ids.tolist(), lengths.tolist(), strict=True)
    return [row[n - length :] for row, length in rows]
