"""The stack of blocks that all these models are: embed, refine layer by layer, predict.

What an architecture adds is in its own module; this is what they have in common.
"""

import torch
import torch.nn as nn

from llms_from_scratch.blocks.linear import apply_layer
from llms_from_scratch.blocks.masks import attention_mask
from llms_from_scratch.blocks.rope import RotaryEmbedding
from llms_from_scratch.ch04 import check_input_ids


class DecoderParts(nn.Module):
    """What every decoder is made of, and what each of its layers is told.

    ``cfg`` is the architecture's configuration, and ``ropes`` has the rotary embedding of each type
    of layer that it has.
    """

    cfg: dict
    ropes: dict[str, RotaryEmbedding]

    def make_layers(self, block: type[nn.Module], norm: type[nn.Module], **norm_options) -> None:
        """The modules that every architecture has, from ``cfg``, in the order of the data."""
        cfg = self.cfg
        emb_dim, dtype = cfg["emb_dim"], cfg["dtype"]
        self.tok_emb = nn.Embedding(cfg["vocab_size"], emb_dim, dtype=dtype)
        self.trf_blocks = nn.ModuleList([block(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = norm(emb_dim, **norm_options)
        self.out_head = nn.Linear(emb_dim, cfg["vocab_size"], bias=False, dtype=dtype)
        if cfg.get("tie_embeddings"):
            self.out_head.weight = self.tok_emb.weight

    @property
    def layer_types(self) -> list[str]:
        return self.cfg.get("layer_types") or ["full_attention"] * len(self.trf_blocks)

    @property
    def windows(self) -> list[int | None]:
        """For each layer, how many tokens it looks at, itself included; None for all."""
        window = self.cfg.get("sliding_window")
        return [window if kind == "sliding_attention" else None for kind in self.layer_types]

    def attention_inputs(self, n: int, x: torch.Tensor, cache) -> dict[str, tuple]:
        """Mask, cosines and sines for ``n`` new tokens, for each type of layer."""
        if cache is None:
            length, padding, positions = 0, None, torch.arange(n, device=x.device)
        else:
            cache.open_for(self, n)
            length, padding = cache.length, cache.padding
            positions = cache.positions(n, x.device)
        inputs = {}
        for kind, window in dict(zip(self.layer_types, self.windows, strict=True)).items():
            mask = attention_mask(n, x.device, length, window, padding)
            inputs[kind] = (mask, *self.ropes[kind](positions, x.dtype))
        return inputs


class DecoderModel(DecoderParts):
    """Token ids (b, n) to logits (b, n, vocab_size), with or without a cache.

    An architecture makes ``tok_emb``, ``trf_blocks``, ``final_norm`` and ``out_head``, as in
    chapter 4, and says with ``cfg`` and ``ropes`` what its layers are told.

    With a ``cache``, the ids continue what is in it. ``last_only`` computes the logits of the last
    token only, (b, 1, vocab_size), which is all that generation reads. Raises ``ValueError`` for
    more than ``context_length`` tokens in all, for ids outside of the vocabulary (on the CPU), and
    for a cache where gradients are wanted.
    """

    def forward(self, in_idx: torch.Tensor, cache=None, last_only: bool = False) -> torch.Tensor:
        check_input_ids(in_idx, self.tok_emb.num_embeddings, self.cfg["context_length"])
        n = in_idx.shape[1]
        x = self.embed(in_idx)  # (b, n, emb_dim)
        inputs = self.attention_inputs(n, x, cache)
        layers = zip(self.trf_blocks, self.layer_types, strict=True)
        for layer_idx, (block, kind) in enumerate(layers):
            x = block(x, *inputs[kind], cache, layer_idx)
        if cache is not None:
            cache.advance(n)
        if last_only:
            x = x[:, -1:]
        return apply_layer(self.out_head, self.final_norm(x))  # (b, n, vocab_size)

    def embed(self, in_idx: torch.Tensor) -> torch.Tensor:
        return self.tok_emb(in_idx)

    def reset_kv_cache(self) -> None:
        """Nothing to do: positions are counted in the cache, of which each text has its own.

        For code that was written for models that count positions themselves.
        """
