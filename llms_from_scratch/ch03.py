"""Chapter 3: attention, from one head in four lines to the multi-head attention of a GPT.

Shapes: b = batch size, num_tokens = sequence length, d_in and d_out = embedding widths.
Source: Vaswani et al., "Attention Is All You Need" (2017), section 3.2.
"""

import torch
import torch.nn as nn


class SelfAttention_v1(nn.Module):
    """Self-attention with plain weight matrices (section 3.4.2).

    Input (num_tokens, d_in), output (num_tokens, d_out).
    """

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.W_query = nn.Parameter(torch.rand(d_in, d_out))
        self.W_key = nn.Parameter(torch.rand(d_in, d_out))
        self.W_value = nn.Parameter(torch.rand(d_in, d_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = x @ self.W_query  # (num_tokens, d_out)
        keys = x @ self.W_key
        values = x @ self.W_value

        attn_scores = queries @ keys.T  # (num_tokens, num_tokens)
        attn_weights = torch.softmax(attn_scores / keys.shape[-1] ** 0.5, dim=-1)
        return attn_weights @ values  # (num_tokens, d_out)


class SelfAttention_v2(nn.Module):
    """Self-attention with linear layers, which bring a better initialization (section 3.4.2).

    Input (num_tokens, d_in), output (num_tokens, d_out).
    """

    def __init__(self, d_in: int, d_out: int, qkv_bias: bool = False):
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = self.W_query(x)  # (num_tokens, d_out)
        keys = self.W_key(x)
        values = self.W_value(x)

        attn_scores = queries @ keys.T  # (num_tokens, num_tokens)
        attn_weights = torch.softmax(attn_scores / keys.shape[-1] ** 0.5, dim=-1)
        return attn_weights @ values  # (num_tokens, d_out)


class CausalAttention(nn.Module):
    """One causal head: a token attends to itself and to earlier tokens only (section 3.5.3).

    Input (b, num_tokens, d_in), output (b, num_tokens, d_out).
    Raises ``ValueError`` for more than ``context_length`` tokens.
    """

    def __init__(
        self, d_in: int, d_out: int, context_length: int, dropout: float, qkv_bias: bool = False
    ):
        super().__init__()
        self.d_out = d_out
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", torch.ones(context_length, context_length).triu(diagonal=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attend(self.W_query(x), self.W_key(x), self.W_value(x))

    def attend(self, queries, keys, values):  # each (b, num_tokens, d_out)
        num_tokens = queries.shape[-2]
        if num_tokens > len(self.mask):
            raise ValueError(f"got {num_tokens} tokens, but context_length is {len(self.mask)}")
        attn_scores = queries @ keys.transpose(-2, -1)  # (b, num_tokens, num_tokens)
        future = self.mask[:num_tokens, :num_tokens].bool()
        attn_scores = attn_scores.masked_fill(future, -torch.inf)
        attn_weights = torch.softmax(attn_scores / keys.shape[-1] ** 0.5, dim=-1)
        return self.dropout(attn_weights) @ values  # (b, num_tokens, d_out)


class MultiHeadAttentionWrapper(nn.Module):
    """Several causal heads side by side, their outputs concatenated (section 3.6.1).

    Input (b, num_tokens, d_in), output (b, num_tokens, num_heads * d_out).
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
    ):
        super().__init__()
        self.heads = nn.ModuleList(
            CausalAttention(d_in, d_out, context_length, dropout, qkv_bias)
            for _ in range(num_heads)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([head(x) for head in self.heads], dim=-1)


def split_heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Cut each token's vector into heads: (b, num_tokens, d) to (b, num_heads, num_tokens, d / h).

    Each head gets a part of every token's vector, of width head_dim (section 3.6.2).
    """
    b, num_tokens, width = x.shape
    x = x.view(b, num_tokens, num_heads, width // num_heads)  # cut within each token
    return x.transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)


class MultiHeadAttention(CausalAttention):
    """Causal attention with all heads in one matrix product (section 3.6.2).

    Input (b, num_tokens, d_in), output (b, num_tokens, d_out), with head_dim = d_out / num_heads.
    Raises ``ValueError`` for a ``d_out`` that ``num_heads`` does not divide, and for too long x.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
    ):
        if d_out % num_heads != 0:
            raise ValueError(f"d_out must be divisible by num_heads, got {d_out=}, {num_heads=}")
        super().__init__(d_in, d_out, context_length, dropout, qkv_bias)
        self.num_heads, self.head_dim = num_heads, d_out // num_heads
        self.out_proj = nn.Linear(d_out, d_out)  # lets the heads mix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = split_heads(self.W_query(x), self.num_heads)
        keys = split_heads(self.W_key(x), self.num_heads)
        values = split_heads(self.W_value(x), self.num_heads)
        context = self.attend(queries, keys, values)  # (b, num_heads, num_tokens, head_dim)
        context = context.transpose(1, 2).flatten(2)  # (b, num_tokens, d_out): heads side by side
        return self.out_proj(context)  # (b, num_tokens, d_out)


class PyTorchMultiHeadAttention(nn.Module):
    """The same mathematics on PyTorch's fused kernel, with one joint projection (bonus).

    Input (b, num_tokens, d_in), output (b, num_tokens, d_out). No mask is stored, so there is no
    limit on num_tokens. Raises ``ValueError`` if ``num_heads`` does not divide ``d_out``.
    """

    def __init__(
        self, d_in: int, d_out: int, num_heads: int, dropout: float = 0.0, qkv_bias: bool = False
    ):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out must be divisible by num_heads, got {d_out=}, {num_heads=}")
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.d_out = d_out
        self.qkv = nn.Linear(d_in, 3 * d_out, bias=qkv_bias)
        self.proj = nn.Linear(d_out, d_out)
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, num_tokens, d_in = x.shape
        qkv = self.qkv(x).view(b, num_tokens, 3, self.num_heads, self.head_dim)
        # each (b, num_heads, num_tokens, head_dim)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)

        context = nn.functional.scaled_dot_product_attention(
            queries, keys, values, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        context = context.transpose(1, 2).reshape(b, num_tokens, self.d_out)
        return self.proj(context)  # (b, num_tokens, d_out)
