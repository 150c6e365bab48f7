"""Text generation for many prompts at once, with keys and values kept (chapter 7).

``generate`` of chapter 5 computes the whole text again for each new token. Here the keys and values
of earlier tokens stay in a cache, so a new token costs one position instead of all, and prompts of
different lengths share a batch. The tokens are the same.
"""

import torch
import torch.nn as nn

from llms_from_scratch.ch06 import evaluating


def generate_greedy_batch(
    model: nn.Module,
    prompts: list[list[int]],
    max_new_tokens: int,
    eos_id: int = 50256,
    device: torch.device | str = "cpu",
) -> list[list[int]]:
    """The new token ids for each of several prompts of different lengths, most probable first.

    They are the ones that ``generate`` chooses without randomness, one prompt at a time. A row
    ends at ``eos_id``, which is not returned, or where the model's context is full. The model is a
    ``GPTModel``, with or without LoRA layers. Raises ``ValueError`` for a prompt that is empty or
    longer than the context.
    """
    context_length = model.pos_emb.num_embeddings
    if not prompts or not all(1 <= len(prompt) <= context_length for prompt in prompts):
        raise ValueError(f"prompts must be lists of 1 to {context_length} token ids")
    longest = max(map(len, prompts))
    width = min(longest + max_new_tokens, context_length)
    idx = torch.full((len(prompts), width), eos_id, device=device)  # (b, width)
    for row, prompt in zip(idx, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # (b,)
    rows = torch.arange(len(prompts), device=device)
    running = lengths < width

    with evaluating(model):
        cache = _empty_cache(model, len(prompts), width)
        positions = torch.arange(longest, device=device).expand(len(prompts), longest)
        x = _features(model, idx[:, :longest], positions, cache)[rows, lengths - 1]  # (b, emb_dim)
        for _ in range(max_new_tokens):
            chosen = model.out_head(x).argmax(dim=-1)  # (b,)
            running &= chosen != eos_id
            if not running.any():
                break
            idx[rows[running], lengths[running]] = chosen[running]
            last = lengths.clamp(max=width - 1)  # a row that has ended computes for nothing
            x = _features(model, idx[rows, last][:, None], last[:, None], cache)[:, 0]
            lengths += running
            running &= lengths < width
    return [
        row[len(prompt) : length].tolist()
        for row, prompt, length in zip(idx, prompts, lengths.tolist(), strict=True)
    ]


def _empty_cache(model: nn.Module, b: int, width: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Room for the keys and values of each block: two tensors (b, num_heads, width, head_dim)."""
    cache = []
    for block in model.trf_blocks:
        shape = (b, block.att.num_heads, width, block.att.head_dim)
        cache.append(tuple(model.pos_emb.weight.new_zeros(shape) for _ in range(2)))
    return cache


def _features(
    model: nn.Module, idx: torch.Tensor, positions: torch.Tensor, cache: list
) -> torch.Tensor:
    """What goes into the output layer, (b, n, emb_dim), for tokens (b, n) at these positions.

    Their keys and values go into the cache. A position sees those up to itself; what the padding
    of a shorter prompt has left behind it is overwritten before it can be seen.
    """
    x = model.tok_emb(idx) + model.pos_emb(positions)
    for block, (keys, values) in zip(model.trf_blocks, cache, strict=True):
        x = x + _attend(block.att, block.norm1(x), positions, keys, values)
        x = x + block.ff(block.norm2(x))
    return model.final_norm(x)


def _attend(att, x, positions, all_keys, all_values) -> torch.Tensor:
    """``MultiHeadAttention`` of new tokens to all that the cache has, with theirs added."""
    b, n, _ = x.shape
    queries, keys, values = (
        project(x).view(b, n, att.num_heads, att.head_dim)
        for project in (att.W_query, att.W_key, att.W_value)
    )
    rows = torch.arange(b, device=x.device)[:, None]  # (b, 1)
    all_keys[rows, :, positions] = keys
    all_values[rows, :, positions] = values
    columns = torch.arange(all_keys.shape[2], device=x.device)
    visible = columns <= positions[:, None, :, None]  # (b, 1, n, width)
    context = nn.functional.scaled_dot_product_attention(
        queries.transpose(1, 2), all_keys, all_values, attn_mask=visible
    )  # (b, num_heads, n, head_dim)
    return att.out_proj(context.transpose(1, 2).reshape(b, n, att.d_out))
