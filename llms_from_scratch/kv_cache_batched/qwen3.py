"""Qwen3 for batches: the model of ``qwen3``, called as one that is told each row's position."""

import torch

from llms_from_scratch.kv_cache.qwen3 import (
    QWEN3_CONFIG_1_7B,
    QWEN3_CONFIG_4B,
    QWEN3_CONFIG_8B,
    QWEN3_CONFIG_14B,
    QWEN3_CONFIG_30B_A3B,
    QWEN3_CONFIG_32B,
    QWEN_CONFIG_06_B,
    Qwen3Tokenizer,
    download_from_huggingface,
    download_from_huggingface_from_snapshots,
    load_weights_into_qwen,
)
from llms_from_scratch.kv_cache_batched.utils import KVCache
from llms_from_scratch.qwen3 import Qwen3Model as SharedModel

__all__ = [
    "KVCache",
    "QWEN3_CONFIG_14B",
    "QWEN3_CONFIG_1_7B",
    "QWEN3_CONFIG_30B_A3B",
    "QWEN3_CONFIG_32B",
    "QWEN3_CONFIG_4B",
    "QWEN3_CONFIG_8B",
    "QWEN_CONFIG_06_B",
    "Qwen3Model",
    "Qwen3Tokenizer",
    "download_from_huggingface",
    "download_from_huggingface_from_snapshots",
    "load_weights_into_qwen",
]


class Qwen3Model(SharedModel):
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
