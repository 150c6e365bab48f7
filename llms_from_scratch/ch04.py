"""Chapter 4: the GPT model, and text generation with it.

Shapes: b = batch size, num_tokens = sequence length, emb_dim = model width, vocab_size = classes.
Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), GPT-2.
"""

import difflib
import math

import torch
import torch.nn as nn

from llms_from_scratch.ch03 import MultiHeadAttention, PyTorchMultiHeadAttention

GPT_CONFIG_124M = {
    "vocab_size": 50257,  # size of the GPT-2 vocabulary
    "context_length": 1024,  # the most tokens the model can look at
    "emb_dim": 768,  # width of each token's vector
    "n_heads": 12,  # attention heads per block
    "n_layers": 12,  # transformer blocks
    "drop_rate": 0.1,  # dropout probability
    "qkv_bias": False,  # bias in the query, key and value projections
}

# What pretrained GPT-2 weights need; add one entry of model_configs
BASE_CONFIG = {
    "vocab_size": 50257,
    "context_length": 1024,
    "drop_rate": 0.0,
    "qkv_bias": True,
}

model_configs = {
    "gpt2-small (124M)": {"emb_dim": 768, "n_layers": 12, "n_heads": 12},
    "gpt2-medium (355M)": {"emb_dim": 1024, "n_layers": 24, "n_heads": 16},
    "gpt2-large (774M)": {"emb_dim": 1280, "n_layers": 36, "n_heads": 20},
    "gpt2-xl (1558M)": {"emb_dim": 1600, "n_layers": 48, "n_heads": 25},
}


def check_config(cfg: dict) -> None:
    """Raise ``ValueError`` if a key of a GPT configuration is missing or unknown."""
    wanted = list(GPT_CONFIG_124M)
    for key in cfg:
        if key not in wanted:
            close = difflib.get_close_matches(key, wanted, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(wanted)}"
            raise ValueError(f"unknown key {key!r} in the GPT configuration; {hint}")
    missing = [key for key in wanted if key not in cfg]
    if missing:
        raise ValueError(f"missing in the GPT configuration: {', '.join(missing)}")


def check_input_ids(in_idx: torch.Tensor, vocab_size: int, context_length: int) -> None:
    """Raise ``ValueError`` if there are too many tokens, or ids outside the vocabulary.

    Ids are looked at on the CPU only: on a GPU, the check would make each step wait for the device.
    """
    num_tokens = in_idx.shape[-1]
    if num_tokens > context_length:
        raise ValueError(
            f"got {num_tokens} tokens, but the model's context_length is {context_length}: "
            f"pass the last {context_length} tokens only"
        )
    if in_idx.device.type == "cpu" and in_idx.numel() and not torch.compiler.is_compiling():
        low, high = in_idx.min().item(), in_idx.max().item()
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"token id {low if low < 0 else high} is outside of the model's vocabulary, "
                f"0 to {vocab_size - 1}: does the tokenizer belong to this model?"
            )


class LayerNorm(nn.Module):
    """Normalize the last dimension to mean 0 and variance 1, then scale and shift (section 4.2).

    Input and output (..., emb_dim). Source: Ba et al., "Layer Normalization" (2016).
    """

    def __init__(self, emb_dim: int):
        super().__init__()
        self.eps = 1e-5  # avoids division by zero
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=-1, keepdim=True)
        var = x.var(dim=-1, keepdim=True, unbiased=False)  # as in GPT-2: divide by n, not n - 1
        norm_x = (x - mean) / torch.sqrt(var + self.eps)
        return self.scale * norm_x + self.shift


class GELU(nn.Module):
    """Smooth relative of ReLU, in the tanh approximation that GPT-2 uses (section 4.3).

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))
        return 0.5 * x * (1 + torch.tanh(inner))


class FeedForward(nn.Module):
    """Expand each token's vector four times, apply GELU, contract (section 4.3).

    Input and output (b, num_tokens, emb_dim).
    """

    def __init__(self, cfg: dict):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(cfg["emb_dim"], 4 * cfg["emb_dim"]),
            GELU(),
            nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each normalized first and added to a shortcut (section 4.5).

    Input and output (b, num_tokens, emb_dim).
    """

    def __init__(self, cfg: dict):
        super().__init__()
        self.att = MultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            context_length=cfg["context_length"],
            dropout=cfg["drop_rate"],
            num_heads=cfg["n_heads"],
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_shortcut(self.att(self.norm1(x)))
        x = x + self.drop_shortcut(self.ff(self.norm2(x)))
        return x


class GPTModel(nn.Module):
    """A GPT: embeddings, transformer blocks, final normalization, output head (section 4.6).

    Input token ids (b, num_tokens), output logits (b, num_tokens, vocab_size).
    Raises ``ValueError`` for a configuration with missing or unknown keys, for more than
    ``context_length`` tokens, and (on the CPU) for ids outside of the vocabulary.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        check_config(cfg)
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx: torch.Tensor) -> torch.Tensor:
        check_input_ids(in_idx, self.tok_emb.num_embeddings, self.pos_emb.num_embeddings)
        b, num_tokens = in_idx.shape
        tok_embeds = self.tok_emb(in_idx)  # (b, num_tokens, emb_dim)
        pos_embeds = self.pos_emb(torch.arange(num_tokens, device=in_idx.device))
        x = self.drop_emb(tok_embeds + pos_embeds)  # positions are the same for each row
        x = self.trf_blocks(x)
        x = self.final_norm(x)
        return self.out_head(x)  # (b, num_tokens, vocab_size)


def check_generation(idx: torch.Tensor, max_new_tokens: int, context_size: int) -> None:
    """Raise ``ValueError`` if there is nothing to continue, or no way to do it."""
    if idx.dim() != 2 or idx.shape[1] == 0:
        raise ValueError(
            f"idx must be (b, num_tokens) with at least one token, got {tuple(idx.shape)}: "
            "ids.unsqueeze(0) makes a batch of one row"
        )
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must not be negative, got {max_new_tokens}")
    if context_size < 1:
        raise ValueError(f"context_size must be at least 1, got {context_size}")


def generate_text_simple(
    model: nn.Module, idx: torch.Tensor, max_new_tokens: int, context_size: int
) -> torch.Tensor:
    """Append ``max_new_tokens`` tokens, each the most probable one (section 4.7).

    ``idx`` (b, num_tokens) becomes (b, num_tokens + max_new_tokens). Only the last
    ``context_size`` tokens are shown to the model. Put it into ``eval()`` mode first.
    """
    check_generation(idx, max_new_tokens, context_size)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(idx[:, -context_size:])  # (b, num_tokens, vocab_size)
        # Softmax keeps the order, so the largest logit is the largest probability
        idx_next = logits[:, -1, :].argmax(dim=-1, keepdim=True)  # (b, 1)
        idx = torch.cat((idx, idx_next), dim=1)
    return idx


# --- Bonus: the same model from PyTorch's fused building blocks ---


class FeedForwardFast(FeedForward):
    """``FeedForward`` with PyTorch's GELU. Input and output (b, num_tokens, emb_dim)."""

    def __init__(self, cfg: dict):
        nn.Module.__init__(self)  # not super(): that would build the layers of FeedForward
        self.layers = nn.Sequential(
            nn.Linear(cfg["emb_dim"], 4 * cfg["emb_dim"]),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),
        )


class TransformerBlockFast(TransformerBlock):
    """``TransformerBlock`` on fused kernels. Input and output (b, num_tokens, emb_dim)."""

    def __init__(self, cfg: dict):
        nn.Module.__init__(self)
        self.att = PyTorchMultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            num_heads=cfg["n_heads"],
            dropout=cfg["drop_rate"],
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForwardFast(cfg)
        self.norm1 = nn.LayerNorm(cfg["emb_dim"])
        self.norm2 = nn.LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])


class GPTModelFast(GPTModel):
    """``GPTModel`` on fused kernels: the same function of the same weights, computed faster.

    The joint query-key-value projection has its own names (``att.qkv``, ``att.proj``), and no mask
    is stored. The same seed gives the same weights if there are no biases in that projection;
    with ``qkv_bias=True`` they are drawn in another order.
    """

    def __init__(self, cfg: dict):
        nn.Module.__init__(self)
        check_config(cfg)
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(
            *[TransformerBlockFast(cfg) for _ in range(cfg["n_layers"])]
        )
        self.final_norm = nn.LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
