"""Llama 2: what a GPT becomes with RMSNorm, SwiGLU and rotary positions.

No biases, no dropout, no table of positions: positions turn queries and keys instead.
Source: Touvron et al., "Llama 2: Open Foundation and Fine-Tuned Chat Models" (2023).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn as nn

from llms_from_scratch.blocks.attention import GroupedQueryAttention
from llms_from_scratch.blocks.config import check_config, check_heads
from llms_from_scratch.blocks.decoder import DecoderModel
from llms_from_scratch.blocks.feed_forward import FeedForward
from llms_from_scratch.blocks.norms import RMSNorm
from llms_from_scratch.blocks.rope import RotaryEmbedding
from llms_from_scratch.llama3 import NAMES
from llms_from_scratch.weights.gguf import unpermute
from llms_from_scratch.weights.mapping import changed, load_by_names
from llms_from_scratch.weights.sources import TensorSource, from_dict

LLAMA2_CONFIG_7B = {
    "vocab_size": 32_000,
    "context_length": 4096,
    "emb_dim": 4096,
    "n_heads": 32,
    "n_layers": 32,
    "hidden_dim": 11_008,
    "dtype": torch.bfloat16,
}

META_NAMES = {  # ours: in Meta's own files
    "tok_emb.weight": "tok_embeddings.weight",
    "trf_blocks.{}.att.W_query.weight": "layers.{}.attention.wq.weight",
    "trf_blocks.{}.att.W_key.weight": "layers.{}.attention.wk.weight",
    "trf_blocks.{}.att.W_value.weight": "layers.{}.attention.wv.weight",
    "trf_blocks.{}.att.out_proj.weight": "layers.{}.attention.wo.weight",
    "trf_blocks.{}.norm1.weight": "layers.{}.attention_norm.weight",
    "trf_blocks.{}.ff.fc1.weight": "layers.{}.feed_forward.w1.weight",
    "trf_blocks.{}.ff.fc2.weight": "layers.{}.feed_forward.w3.weight",
    "trf_blocks.{}.ff.fc3.weight": "layers.{}.feed_forward.w2.weight",
    "trf_blocks.{}.norm2.weight": "layers.{}.ffn_norm.weight",
    "final_norm.weight": "norm.weight",
    "out_head.weight": "output.weight",
}


class SiLU(nn.Module):
    """x times its sigmoid, the activation in SwiGLU. Source: Ramachandran et al. (2017)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)


class MultiHeadAttention(GroupedQueryAttention):
    """Causal multi-head attention with rotary positions: as many heads of keys as of queries.

    Input (b, n, d_in), output (b, n, d_out). Angles are computed for the tokens at hand, so
    ``context_length`` reserves no memory.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        num_heads: int,
        dtype: torch.dtype | None = None,
    ):
        if d_out % num_heads:
            raise ValueError(f"d_out must be divisible by num_heads, got {d_out=}, {num_heads=}")
        super().__init__(d_in, num_heads, num_heads, d_out // num_heads, dtype)
        self.context_length = context_length

    def forward(self, x, mask=None, cos=None, sin=None, cache=None, layer_idx=0):
        if cos is None:  # by itself, as in chapter 3: positions from 0 on
            positions = torch.arange(x.shape[1], device=x.device)
            cos, sin = RotaryEmbedding(self.head_dim)(positions, x.dtype)
        return super().forward(x, mask, cos, sin, cache, layer_idx)


class TransformerBlock(nn.Module):
    """``TransformerBlock`` of chapter 4 with RMSNorm and SwiGLU. In and out (b, n, emb_dim)."""

    def __init__(self, cfg: dict):
        super().__init__()
        emb_dim, dtype = cfg["emb_dim"], cfg["dtype"]
        self.att = MultiHeadAttention(
            emb_dim, emb_dim, cfg["context_length"], cfg["n_heads"], dtype
        )
        self.ff = FeedForward(cfg)
        eps = cfg.get("rms_norm_eps", 1e-5)
        self.norm1 = RMSNorm(emb_dim, eps, dtype)
        self.norm2 = RMSNorm(emb_dim, eps, dtype)

    def forward(self, x, mask=None, cos=None, sin=None, cache=None, layer_idx=0):
        x = x + self.att(self.norm1(x), mask, cos, sin, cache, layer_idx)
        return x + self.ff(self.norm2(x))


class Llama2Model(DecoderModel):
    """Llama 2: token ids (b, n) to logits (b, n, vocab_size); see ``DecoderModel``.

    Raises ``ValueError`` for a configuration with unknown, missing or contradictory keys.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        optional = ("rms_norm_eps", "tie_embeddings", "rope_base")
        check_config(cfg, "Llama 2", LLAMA2_CONFIG_7B, optional)
        check_heads(cfg, "Llama 2", "n_heads")
        self.cfg = cfg
        eps = cfg.get("rms_norm_eps", 1e-5)
        self.make_layers(TransformerBlock, RMSNorm, eps=eps, dtype=cfg["dtype"])
        head_dim = cfg["emb_dim"] // cfg["n_heads"]
        rope = RotaryEmbedding(head_dim, cfg.get("rope_base", 10_000))
        self.ropes = {"full_attention": rope}


def load_weights_into_llama(
    model: nn.Module,
    param_config: Mapping,
    params: Mapping,
) -> None:
    """Copy tensors by Meta's names, or by those on the hub, into a ``Llama2Model``.

    In Meta's files the numbers that turn together are neighbours, so the rows of the projections of
    queries and keys are reordered. Raises ``ValueError`` for a missing, superfluous or misshapen
    tensor, before the first copy.
    """
    source = from_dict({name: params[name] for name in params if name != "rope.freqs"}, "params")
    if "tok_embeddings.weight" in source.shapes:
        load_by_names(model, halves_from_pairs(source, model.cfg["n_heads"]), META_NAMES)
    else:
        load_by_names(model, source, NAMES)


def halves_from_pairs(source: TensorSource, num_heads: int) -> TensorSource:
    """Meta's tensors with the rows of queries and keys in our order."""

    def reorder(name: str, tensor: torch.Tensor) -> torch.Tensor:
        turned = name.endswith(("attention.wq.weight", "attention.wk.weight"))
        return unpermute(tensor, num_heads) if turned else tensor

    return changed(source, reorder)


class LlamaTokenizer:
    """Llama 2's tokenizer, a SentencePiece file (extra: ``pip install sentencepiece``)."""

    def __init__(self, tokenizer_file: str | Path):
        try:
            import sentencepiece
        except ImportError:
            raise ImportError(
                "Llama 2's tokenizer needs a library: pip install sentencepiece"
            ) from None
        if not Path(tokenizer_file).is_file():
            raise FileNotFoundError(f"there is no tokenizer file {tokenizer_file}")
        self.tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_file))

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, out_type=int)

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(list(ids))
