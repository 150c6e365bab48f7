"""The cache and Qwen3 with what code expects that keeps one cache for each row of a batch."""

import torch

from llms_from_scratch.kv_cache.cache import KVCache, Pair
from llms_from_scratch.qwen3 import Qwen3Model


class RowKVCache(KVCache):
    """Keys and values for ``n_layers`` layers and ``batch_size`` rows.

    The model stores those of all rows at once. ``get(layer_idx, batch_idx)`` has one row's, each
    (1, heads, tokens kept, head_dim); ``get_layer`` all rows'. ``update(layer_idx, batch_idx,
    value)`` is refused: rows of one batch grow together. Raises ``ValueError`` for another number
    of rows.
    """

    def __init__(self, n_layers: int, batch_size: int):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        super().__init__(n_layers)
        self.batch_size = batch_size

    @classmethod
    def for_model(cls, model, batch_size: int = 1) -> "RowKVCache":
        """A cache with the model's layers, windows and context length."""
        cache = cls(len(model.trf_blocks), batch_size)
        cache.open_for(model, 0)
        return cache

    def get(self, layer_idx: int, batch_idx: int | None = None) -> Pair | None:
        pair = super().get(layer_idx)
        if pair is None or batch_idx is None:
            return pair
        return tuple(tensor[batch_idx : batch_idx + 1] for tensor in pair)

    def get_layer(self, layer_idx: int) -> Pair | None:
        """Keys and values of all rows, each (batch_size, heads, tokens kept, head_dim)."""
        return self.get(layer_idx)

    def update(
        self, layer_idx: int, keys: torch.Tensor | int, values: torch.Tensor | Pair | None = None
    ) -> Pair:
        if isinstance(keys, int):
            raise ValueError(
                "rows of a batch grow together: update(layer_idx, keys, values) takes all of them"
            )
        if len(keys) != self.batch_size:
            raise ValueError(f"the cache is for {self.batch_size} rows, got keys of {len(keys)}")
        return super().update(layer_idx, keys, values)


class PositionedQwen3Model(Qwen3Model):
    """Qwen3: token ids (b, n) to logits (b, n, vocab_size).

    The cache counts positions. ``start_pos``, (b,) or one number, may repeat them; it is a
    ``ValueError`` if it says something else.
    """

    def forward(
        self,
        in_idx: torch.Tensor,
        cache=None,
        start_pos: torch.Tensor | int | None = None,
        last_only: bool = False,
    ) -> torch.Tensor:
        if start_pos is not None:
            counted = torch.as_tensor(0 if cache is None else cache.lengths)
            given = torch.as_tensor(start_pos, device=counted.device)
            if not (given == counted.clamp(min=0)).all():
                raise ValueError(
                    f"start_pos is {given.tolist()}, but the cache has {counted.tolist()} tokens"
                )
        return super().forward(in_idx, cache, last_only)

    def reset_kv_cache(self, batch_size: int = 1, device: torch.device | str | None = None) -> None:
        """Nothing to do: positions are counted in the cache, ``cache.reset()`` forgets them."""
