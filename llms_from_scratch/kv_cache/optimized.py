"""The GPT of chapter 4 with a preallocated cache: quick steps, the same weights, the same tokens.

Import it as ``GPTModel`` from ``llms_from_scratch.kv_cache.gpt2``. Parameters and their names are
those of ``ch04.GPTModel``, so a state dict of the one loads into the other.
"""

import functools
from collections.abc import Iterator

import torch
import torch.nn as nn

from llms_from_scratch.ch03 import MultiHeadAttention
from llms_from_scratch.ch04 import FeedForwardFast, LayerNorm, check_config, check_input_ids
from llms_from_scratch.kv_cache.cache import KVCache


def apply_layer(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``layer(x)``, where a linear layer sees one or two tokens on a CPU: with all its cores.

    For a single token, a linear layer is a matrix times a vector, whose time is that of reading the
    matrix. MKL, PyTorch's library for it, leaves that to one core, which cannot keep the memory
    busy; but of several independent products, it gives some to each core. So the matrix is cut into
    parts, without a copy. The result is the same to rounding; hooks of the layer are not called.
    """
    if not (
        type(layer) is nn.Linear
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.shape[0] * x.shape[1] <= 2
        and not torch.is_grad_enabled()
        and layer.weight.is_contiguous()
        and torch.backends.mkl.is_available()
    ):
        return layer(x)
    d_out, d_in = layer.weight.shape
    parts = _number_of_parts(d_out, torch.get_num_threads())
    if parts == 1:
        return layer(x)
    weights = layer.weight.view(parts, d_out // parts, d_in)
    columns = x.reshape(-1, d_in).t().expand(parts, d_in, -1)  # (parts, d_in, tokens)
    if layer.bias is None:
        out = torch.bmm(weights, columns)  # (parts, d_out / parts, tokens)
    else:
        out = torch.baddbmm(layer.bias.view(parts, -1, 1), weights, columns)
    return out.view(d_out, -1).t().reshape(*x.shape[:-1], d_out)


@functools.cache
def _number_of_parts(d_out: int, threads: int) -> int:
    """The smallest divisor of ``d_out`` that gives each thread a part; 1 if there is no good one.

    >>> _number_of_parts(768, 2), _number_of_parts(50257, 2), _number_of_parts(768, 1)
    (2, 29, 1)
    """
    candidates = range(threads, min(32 * threads, d_out) + 1)
    return next((n for n in candidates if d_out % n == 0), 1)


class FusedLayerNorm(LayerNorm):
    """``LayerNorm`` of chapter 4 as one operation of PyTorch in place of eight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)


class CachedMultiHeadAttention(MultiHeadAttention):
    """``MultiHeadAttention`` of chapter 3 that can attend to keys and values in a cache.

    Input and output (b, n, d_out) for n new tokens. ``visible`` is what ``KVCache.visible`` gave;
    without a cache, attention is causal among the n tokens.
    """

    def forward(
        self,
        x: torch.Tensor,
        cache: KVCache | None = None,
        layer_idx: int = 0,
        visible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        b, n, _ = x.shape
        # A joint product would be 2 % faster, but need other names, or a copy, of these weights
        queries, keys, values = (
            apply_layer(project, x).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
            for project in (self.W_query, self.W_key, self.W_value)
        )  # each (b, num_heads, n, head_dim)
        if cache is not None:
            keys, values = cache.update(layer_idx, keys, values)  # (b, num_heads, all, head_dim)

        context = nn.functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=visible,
            dropout_p=self.dropout.p if self.training else 0.0,
            is_causal=visible is None and n > 1,
        )
        context = context.transpose(1, 2).reshape(b, n, self.d_out)
        return apply_layer(self.out_proj, context)


class CachedTransformerBlock(nn.Module):
    """``TransformerBlock`` of chapter 4; ``cache``, ``layer_idx`` and ``visible`` go to attention.

    Input and output (b, n, emb_dim).
    """

    def __init__(self, cfg: dict):
        super().__init__()
        self.att = CachedMultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            context_length=cfg["context_length"],
            dropout=cfg["drop_rate"],
            num_heads=cfg["n_heads"],
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForwardFast(cfg)
        self.norm1 = FusedLayerNorm(cfg["emb_dim"])
        self.norm2 = FusedLayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(
        self,
        x: torch.Tensor,
        cache: KVCache | None = None,
        layer_idx: int = 0,
        visible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        x = x + self.drop_shortcut(self.att(self.norm1(x), cache, layer_idx, visible))
        y = self.norm2(x)
        for layer in self.ff.layers:
            y = apply_layer(layer, y)
        return x + self.drop_shortcut(y)


class CachedGPTModel(nn.Module):
    """``GPTModel`` of chapter 4 that needs to be shown each token only once.

    Input ids (b, n), output logits (b, n, vocab_size). With ``use_cache=True``, the ids continue
    what the model was shown since ``reset_kv_cache()``, ``current_pos`` tokens per row; with
    ``cache``, they continue what is in that cache. A call with neither stands for itself and
    leaves the caches alone. ``last_only`` computes the logits of the last token only, (b, 1,
    vocab_size), which is all that generation reads.

    Raises ``ValueError`` for a wrong configuration, for ids outside of the vocabulary (on the CPU),
    for more than ``context_length`` tokens in all, and for a cache where gradients are wanted.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        check_config(cfg)
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.ModuleList(
            [CachedTransformerBlock(cfg) for _ in range(cfg["n_layers"])]
        )
        self.final_norm = FusedLayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        self.reset_kv_cache()

    @property
    def current_pos(self) -> int:
        """Tokens per row in the model's own cache."""
        return self._own_cache.length

    def reset_kv_cache(self) -> None:
        """Forget what was shown with ``use_cache=True``, and free its memory."""
        self._own_cache = KVCache(self.cfg["n_layers"], self.cfg["context_length"])

    def forward(
        self,
        in_idx: torch.Tensor,
        use_cache: bool = False,
        cache: KVCache | None = None,
        last_only: bool = False,
    ) -> torch.Tensor:
        check_input_ids(in_idx, self.tok_emb.num_embeddings, self.pos_emb.num_embeddings)
        n, device = in_idx.shape[1], in_idx.device
        if cache is None and use_cache:
            cache = self._own_cache
        if cache is None:
            positions, visible = torch.arange(n, device=device), None
        else:
            if cache.capacity is None:
                cache.capacity = self.cfg["context_length"]
            cache.check_room(n)
            self._check_positions(cache.length + n)
            positions, visible = cache.positions(n, device), cache.visible(n, device)

        x = self.drop_emb(self.tok_emb(in_idx) + self.pos_emb(positions))  # (b, n, emb_dim)
        for layer_idx, block in enumerate(self.trf_blocks):
            x = block(x, cache, layer_idx, visible)
        if cache is not None:
            cache.advance(n)
        if last_only:
            x = x[:, -1:]
        return apply_layer(self.out_head, self.final_norm(x))

    def _check_positions(self, total: int) -> None:
        if total > self.pos_emb.num_embeddings:
            raise ValueError(
                f"the tokens in the cache and the new ones are {total}, but the model's "
                f"context_length is {self.pos_emb.num_embeddings}: empty the cache and show the "
                f"last {self.pos_emb.num_embeddings} tokens"
            )


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

    Each new token costs one step of the model for one token, until the window of ``context_size``
    tokens (at most, and by default, the model's context length) is full. Beyond, the window moves
    by one token per step: GPT-2 numbers the tokens in the window from 0, so that each of them gets
    another position, and all keys and values change. They are computed anew, which costs as much
    as generating without a cache, and gives the same tokens.

    ``lengths`` (b,) is for prompts of unequal length, padded on the left; see ``left_pad``. A row
    that has reached ``eos_token_id`` repeats it; when all have, generation ends, without a yield.
    The model is in ``eval()`` mode meanwhile. Raises ``ValueError`` for an empty prompt, for
    lengths that do not fit ``token_ids``, and for a ``context_size`` below 1.
    """
    b, n = token_ids.shape
    limit = model.pos_emb.num_embeddings
    context_size = limit if context_size is None else min(context_size, limit)
    padding = _padding(token_ids, lengths)
    if n < 1 or context_size < 1:
        raise ValueError(f"generation needs a token to start from, got {n}, with {context_size=}")
    capacity = min(context_size, n + max(max_new_tokens - 1, 0))
    cache = KVCache(len(model.trf_blocks), capacity) if use_cache or lengths is not None else None
    tokens = token_ids.new_empty(b, n + max(max_new_tokens, 0))
    tokens[:, :n] = token_ids
    finished = torch.zeros(b, 1, dtype=torch.bool, device=token_ids.device)

    was_training = model.training
    model.eval()
    try:
        for end in range(n, tokens.shape[1]):
            first = max(0, end - context_size)
            with torch.inference_mode():
                if cache is None:
                    logits = model(tokens[:, first:end])
                elif use_cache and 0 < cache.length < context_size:
                    logits = model(tokens[:, end - 1 : end], cache=cache)
                else:  # the first step, or the window has moved
                    cache.reset((padding - first).clamp(min=0))
                    logits = model(tokens[:, first:end], cache=cache, last_only=True)
            # Outside of inference mode, so that the result is an ordinary tensor
            idx_next = logits[:, -1].argmax(dim=-1, keepdim=True)  # (b, 1)
            if eos_token_id is not None:
                finished |= idx_next == eos_token_id
                if finished.all():
                    return
                idx_next = idx_next.masked_fill(finished, eos_token_id)
            tokens[:, end : end + 1] = idx_next
            yield idx_next
    finally:
        model.train(was_training)


def generate_text_cached(
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
    ``generate_text_simple_stream`` for the window, ``lengths`` and errors. ``use_cache=False``
    computes all tokens of the window anew in each step, for comparison.
    """
    new_tokens = generate_text_simple_stream(
        model, idx, max_new_tokens, None, context_size, lengths=lengths, use_cache=use_cache
    )
    return torch.cat([idx, *new_tokens], dim=1)


def _padding(token_ids: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """How many padding tokens each row begins with, (b,)."""
    b, n = token_ids.shape
    if lengths is None:
        return torch.zeros(b, dtype=torch.long, device=token_ids.device)
    if lengths.shape != (b,) or lengths.min() < 1 or lengths.max() > n:
        raise ValueError(
            f"lengths must be {b} numbers from 1 to {n}, one for each row of token_ids; got "
            f"{lengths.tolist()}"
        )
    return n - lengths.to(token_ids.device)
