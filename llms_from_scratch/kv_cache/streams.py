"""Greedy text, token by token, in its two plainest forms: without a cache, and with one.

``llms_from_scratch.generate`` has the loop for daily use, with sampling, unequal prompts and a
window that moves.
"""

from collections.abc import Iterator

import torch
import torch.nn as nn

from llms_from_scratch.kv_cache.cache import KVCache


@torch.no_grad()
def generate_text_basic_stream(
    model: nn.Module,
    token_ids: torch.Tensor,
    max_new_tokens: int,
    eos_token_id: int | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the most probable next token of each row, (b, 1); token ids are (b, n).

    The whole text goes through the model for each token. Ends, without a yield, when all rows have
    reached ``eos_token_id``.
    """
    model.eval()
    for _ in range(max_new_tokens):
        logits = model(token_ids)[:, -1]  # (b, vocab_size)
        next_token = logits.argmax(dim=-1, keepdim=True)  # (b, 1)
        if eos_token_id is not None and torch.all(next_token == eos_token_id):
            return
        yield next_token
        token_ids = torch.cat([token_ids, next_token], dim=1)


@torch.no_grad()
def generate_text_cached_stream(
    model: nn.Module,
    token_ids: torch.Tensor,
    max_new_tokens: int,
    eos_token_id: int | None = None,
) -> Iterator[torch.Tensor]:
    """As ``generate_text_basic_stream``, the same tokens; each goes through the model once."""
    model.eval()
    cache = KVCache.for_model(model)
    for _ in range(max_new_tokens):
        logits = model(token_ids, cache=cache)[:, -1]  # (b, vocab_size)
        next_token = logits.argmax(dim=-1, keepdim=True)  # (b, 1)
        if eos_token_id is not None and torch.all(next_token == eos_token_id):
            return
        yield next_token
        token_ids = next_token  # the cache has the rest
