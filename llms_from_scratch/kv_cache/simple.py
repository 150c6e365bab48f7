"""The GPT of chapter 4 with the simplest cache: keys and values in tensors that grow.

Three additions make it: attention keeps what it has computed, the model counts positions, and
generation shows only what is new. Parameters and their names are those of ``ch04.GPTModel``.
"""

import torch
import torch.nn as nn

from llms_from_scratch.ch03 import MultiHeadAttention
from llms_from_scratch.ch04 import GPTModel, TransformerBlock, check_input_ids
from llms_from_scratch.kv_cache.twins import split_window, use_classes


class GrowingCacheAttention(MultiHeadAttention):
    """``MultiHeadAttention`` of chapter 3 that remembers keys and values.

    Input and output (b, n, d_out) for n new tokens. ``cache_k`` and ``cache_v`` are None, or
    (b, num_heads, tokens so far, head_dim). With a ``window``, a token looks at so many tokens,
    itself included, and the cache forgets those before.
    """

    cache_k = cache_v = window = None

    def reset_cache(self) -> None:
        self.cache_k = self.cache_v = None

    def forward(self, x: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        b, n, _ = x.shape
        queries = self.W_query(x).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
        keys = self.W_key(x).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
        values = self.W_value(x).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)

        if use_cache:  # put the earlier tokens in front, and keep the whole for the next call
            if self.cache_k is not None:
                keys = torch.cat([self.cache_k, keys], dim=2)
                values = torch.cat([self.cache_v, values], dim=2)
            kept = slice(None) if self.window is None else slice(-self.window, None)
            self.cache_k, self.cache_v = keys[:, :, kept], values[:, :, kept]

        total = keys.shape[2]
        hidden = self.mask[total - n : total, :total].bool()  # the last n rows of the square
        if self.window is not None:  # besides the future, what has left the window
            hidden = hidden | torch.ones_like(hidden).tril(total - n - self.window)
        attn_scores = queries @ keys.transpose(2, 3)  # (b, num_heads, n, total)
        attn_scores = attn_scores.masked_fill(hidden, -torch.inf)
        attn_weights = torch.softmax(attn_scores / self.head_dim**0.5, dim=-1)
        attn_weights = self.dropout(attn_weights)

        context = (attn_weights @ values).transpose(1, 2)  # (b, n, num_heads, head_dim)
        return self.out_proj(context.reshape(b, n, self.d_out))


class GrowingCacheBlock(TransformerBlock):
    """``TransformerBlock`` of chapter 4 with that attention. Input and output (b, n, emb_dim)."""

    def forward(self, x: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        x = x + self.drop_shortcut(self.att(self.norm1(x), use_cache))
        x = x + self.drop_shortcut(self.ff(self.norm2(x)))
        return x


class GrowingCacheGPT(GPTModel):
    """``GPTModel`` of chapter 4 that needs to be shown each token only once.

    Input ids (b, n), output logits (b, n, vocab_size). With ``use_cache=True``, the ids continue
    what the model was shown since ``reset_kv_cache()``, ``current_pos`` tokens; a call without it
    stands for itself and leaves the cache alone. ``kv_window_size`` in the configuration limits
    how far back a token looks. Raises ``ValueError`` for a wrong configuration, for ids outside of
    the vocabulary (on the CPU), and for more than ``context_length`` tokens.
    """

    def __init__(self, cfg: dict):
        plain_cfg, window = split_window(cfg)
        super().__init__(plain_cfg)
        self.cfg = dict(cfg)
        use_classes(
            self, {MultiHeadAttention: GrowingCacheAttention, TransformerBlock: GrowingCacheBlock}
        )
        for block in self.trf_blocks:
            block.att.window = window
        self.current_pos = 0

    def reset_kv_cache(self) -> None:
        self.current_pos = 0
        for block in self.trf_blocks:
            block.att.reset_cache()

    def forward(self, in_idx: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        check_input_ids(in_idx, self.tok_emb.num_embeddings, self.pos_emb.num_embeddings)
        start = self.current_pos if use_cache else 0
        end = start + in_idx.shape[1]
        if end > self.pos_emb.num_embeddings:
            raise ValueError(
                f"{start} tokens in the cache and {end - start} new ones exceed the model's "
                f"context_length, {self.pos_emb.num_embeddings}: call reset_kv_cache() and show "
                f"the last {self.pos_emb.num_embeddings} tokens"
            )
        positions = torch.arange(start, end, device=in_idx.device)
        x = self.drop_emb(self.tok_emb(in_idx) + self.pos_emb(positions))  # (b, n, emb_dim)
        for block in self.trf_blocks:
            x = block(x, use_cache)
        if use_cache:
            self.current_pos = end
        return self.out_head(self.final_norm(x))  # (b, n, vocab_size)


def generate_text_simple_cached(
    model: nn.Module,
    idx: torch.Tensor,
    max_new_tokens: int,
    context_size: int | None = None,
    use_cache: bool = True,
) -> torch.Tensor:
    """``generate_text_simple`` of chapter 4 that shows the model only what it has not seen.

    ``idx`` (b, num_tokens) becomes (b, num_tokens + max_new_tokens). When the window of
    ``context_size`` tokens is full (default: the model's context length), it moves, and with it the
    positions of all its tokens: from there on, each step computes the whole window anew. The model
    is put into ``eval()`` mode, and its cache is empty at the end.
    """
    model.eval()
    limit = model.pos_emb.num_embeddings
    context_size = limit if context_size is None else min(context_size, limit)
    model.reset_kv_cache()
    shown = idx[:, -context_size:]
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(shown, use_cache=use_cache)  # (b, n, vocab_size)
        idx_next = logits[:, -1, :].argmax(dim=-1, keepdim=True)  # (b, 1)
        idx = torch.cat((idx, idx_next), dim=1)
        if use_cache and model.current_pos < context_size:
            shown = idx_next
        else:
            model.reset_kv_cache()
            shown = idx[:, -context_size:]
    model.reset_kv_cache()
    return idx
