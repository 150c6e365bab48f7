"""Multi-head attention written in many ways: the same function, different speed and memory.

Every variant computes what ``ch03.MultiHeadAttention`` computes when it has the same weights
(``copy_attention_weights``). Two orders of arguments are in use, because the book's classes of the
main chapter and of this bonus section differ: pass ``num_heads`` and ``context_length`` by name.

Shapes: b = batch size, num_tokens = sequence length, head_dim = d_out / num_heads.
"""

import torch
import torch.nn as nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from llms_from_scratch.ch03 import MultiHeadAttention, MultiHeadAttentionWrapper


class Ch03_MHA_Wrapper(MultiHeadAttentionWrapper):
    """One module per head, then a projection: many small matrix products.

    ``d_out`` is the width of one head. Input (b, num_tokens, d_in), output (b, num_tokens,
    num_heads * d_out).
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
        super().__init__(d_in, d_out, context_length, dropout, num_heads, qkv_bias)
        self.out_proj = nn.Linear(num_heads * d_out, num_heads * d_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_proj(super().forward(x))


class Ch03_MHA(MultiHeadAttention):
    """``MultiHeadAttention`` of chapter 3, unchanged: all heads in one product.

    Input (b, num_tokens, d_in), output (b, num_tokens, d_out).
    """


class _JointProjection(nn.Module):
    """Queries, keys and values from one matrix product; subclasses say how to ``attend``.

    Input (b, num_tokens, d_in), output (b, num_tokens, d_out). Raises ``ValueError`` if
    ``num_heads`` does not divide ``d_out``, or for more than ``context_length`` tokens.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        num_heads: int,
        context_length: int,
        dropout: float = 0.0,
        qkv_bias: bool = False,
    ):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out must be divisible by num_heads, got {d_out=}, {num_heads=}")
        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.context_length = context_length
        self.qkv = nn.Linear(d_in, 3 * d_out, bias=qkv_bias)
        self.proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)

    def attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Mix the values. All arguments and the result: (b, num_heads, num_tokens, head_dim)."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, num_tokens, d_in = x.shape
        if num_tokens > self.context_length:
            raise ValueError(
                f"got {num_tokens} tokens, but context_length is {self.context_length}"
            )
        qkv = self.qkv(x).view(b, num_tokens, 3, self.num_heads, self.head_dim)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # (3, b, num_heads, num_tokens, ...)

        context = self.attend(queries, keys, values)  # (b, num_heads, num_tokens, head_dim)
        context = context.transpose(1, 2).reshape(b, num_tokens, self.d_out)
        return self.proj(context)  # (b, num_tokens, d_out)


class MultiHeadAttentionCombinedQKV(_JointProjection):
    """One product for queries, keys and values; scores, mask and softmax as in chapter 3.

    Input (b, num_tokens, d_in), output (b, num_tokens, d_out).
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        num_heads: int,
        context_length: int,
        dropout: float = 0.0,
        qkv_bias: bool = False,
    ):
        super().__init__(d_in, d_out, num_heads, context_length, dropout, qkv_bias)
        self.register_buffer(
            "mask", torch.triu(torch.ones(context_length, context_length), diagonal=1)
        )

    def attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        num_tokens = queries.shape[2]
        attn_scores = queries @ keys.transpose(2, 3)  # (b, num_heads, num_tokens, num_tokens)
        future = self.mask[:num_tokens, :num_tokens].bool()
        attn_scores = attn_scores.masked_fill(future, -torch.inf)
        attn_weights = torch.softmax(attn_scores / self.head_dim**0.5, dim=-1)
        return self.dropout(attn_weights) @ values


class EinsumProjections(nn.Module):
    """Weights (d_in, d_out) and biases of queries, keys and values, as plain parameters.

    Letters of the sums: b batch, t and s tokens (of queries and of keys), i input width, h heads,
    d width of a head. Raises ``ValueError`` if ``num_heads`` does not divide ``d_out``.
    """

    def __init__(self, d_in: int, d_out: int, num_heads: int, qkv_bias: bool = False):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out must be divisible by num_heads, got {d_out=}, {num_heads=}")
        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        for name in ("query", "key", "value"):
            setattr(self, f"W_{name}", nn.Parameter(torch.empty(d_in, d_out)))
            bias = nn.Parameter(torch.empty(d_out)) if qkv_bias else None
            setattr(self, f"bias_{name[0]}", bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and biases from the same range as ``nn.Linear``: ±1 / sqrt(d_in)."""
        bound = self.W_query.shape[0] ** -0.5
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -bound, bound)

    def project(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        by_head = weight.view(-1, self.num_heads, self.head_dim)  # (d_in, num_heads, head_dim)
        projected = torch.einsum("bti,ihd->bhtd", x, by_head)
        if bias is not None:
            projected = projected + bias.view(self.num_heads, 1, self.head_dim)
        return projected  # (b, num_heads, num_tokens, head_dim)


class MHAEinsum(EinsumProjections):
    """The matrix products written as Einstein sums: every index has a letter.

    Input (b, num_tokens, d_in), output (b, num_tokens, d_out). Raises ``ValueError`` if
    ``num_heads`` does not divide ``d_out``, or for more than ``context_length`` tokens.
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
        super().__init__(d_in, d_out, num_heads, qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer(
            "mask", torch.triu(torch.ones(context_length, context_length), diagonal=1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, num_tokens, d_in = x.shape
        if num_tokens > len(self.mask):
            raise ValueError(f"got {num_tokens} tokens, but context_length is {len(self.mask)}")
        queries = self.project(x, self.W_query, self.bias_q)
        keys = self.project(x, self.W_key, self.bias_k)
        values = self.project(x, self.W_value, self.bias_v)

        attn_scores = torch.einsum("bhtd,bhsd->bhts", queries, keys)
        future = self.mask[:num_tokens, :num_tokens].bool()
        attn_scores = attn_scores.masked_fill(future, -torch.inf)
        attn_weights = torch.softmax(attn_scores / self.head_dim**0.5, dim=-1)
        attn_weights = self.dropout(attn_weights)

        context = torch.einsum("bhts,bhsd->bthd", attn_weights, values)
        return self.out_proj(context.reshape(b, num_tokens, self.d_out))


class MHAPyTorchScaledDotProduct(_JointProjection):
    """PyTorch's fused kernel: the scores of all pairs of tokens never exist as a whole.

    Input (b, num_tokens, d_in), output (b, num_tokens, d_out).
    Source: Dao et al., "FlashAttention" (2022).
    """

    def attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        # A function knows no eval() mode: it drops out whenever it is told a probability
        dropout = self.dropout.p if self.training else 0.0
        return nn.functional.scaled_dot_product_attention(
            queries, keys, values, dropout_p=dropout, is_causal=True
        )


class MHAPyTorchSDPAWithoutFlash(_JointProjection):
    """The fused function with a mask of our own, for which there is no FlashAttention on a GPU.

    Input (b, num_tokens, d_in), output (b, num_tokens, d_out). ``mask`` is True where a token MAY
    look, the opposite of the other classes' masks.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        num_heads: int,
        context_length: int,
        dropout: float = 0.0,
        qkv_bias: bool = False,
    ):
        super().__init__(d_in, d_out, num_heads, context_length, dropout, qkv_bias)
        self.register_buffer(
            "mask", torch.tril(torch.ones(context_length, context_length, dtype=torch.bool))
        )

    def attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        num_tokens = queries.shape[2]
        return nn.functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=self.mask[:num_tokens, :num_tokens],
            dropout_p=self.dropout.p if self.training else 0.0,
        )


class MHAPyTorchClass(nn.Module):
    """PyTorch's own module ``nn.MultiheadAttention``.

    Input (b, num_tokens, d_in), output (b, num_tokens, d_out). With ``need_weights=True`` it
    computes the attention weights too, which are not returned here: without them it may use the
    fused kernel. It wants queries of width d_out: where d_in differs, ``to_query`` makes them so.
    The module has an output projection already; ``proj`` is a second one, as in the book's class.
    Raises ``ValueError`` if ``num_heads`` does not divide ``d_out``, or for more than
    ``context_length`` tokens.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        num_heads: int,
        context_length: int,
        dropout: float = 0.0,
        qkv_bias: bool = False,
        need_weights: bool = True,
    ):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out must be divisible by num_heads, got {d_out=}, {num_heads=}")
        self.context_length = context_length
        self.need_weights = need_weights
        self.to_query = nn.Identity() if d_in == d_out else nn.Linear(d_in, d_out, bias=False)
        self.multihead_attn = nn.MultiheadAttention(
            d_out,
            num_heads,
            dropout=dropout,
            bias=qkv_bias,
            kdim=d_in,
            vdim=d_in,
            batch_first=True,
        )
        self.proj = nn.Linear(d_out, d_out)
        # True where a token may NOT look: the reverse of scaled_dot_product_attention's mask
        self.register_buffer(
            "mask",
            torch.triu(torch.ones(context_length, context_length, dtype=torch.bool), diagonal=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, num_tokens, d_in = x.shape
        if num_tokens > self.context_length:
            raise ValueError(
                f"got {num_tokens} tokens, but context_length is {self.context_length}"
            )
        context, _ = self.multihead_attn(
            self.to_query(x),
            x,
            x,
            attn_mask=self.mask[:num_tokens, :num_tokens],
            need_weights=self.need_weights,
            is_causal=True,
        )
        return self.proj(context)  # (b, num_tokens, d_out)


def causal(b, h, q_idx, kv_idx):
    """FlexAttention's way to say which pairs count: query q_idx sees keys up to itself."""
    return q_idx >= kv_idx


class MHAPyTorchFlexAttention(_JointProjection):
    """FlexAttention: a fused kernel compiled for any mask that one can write as a function.

    Input (b, num_tokens, d_in), output (b, num_tokens, d_out). It pays on a CUDA GPU, inside
    ``torch.compile``; on a CPU it computes forward only, and slowly. Raises ``ValueError`` for
    dropout, which FlexAttention does not have.
    Source: Dong et al., "Flex Attention" (2024).
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        num_heads: int,
        context_length: int,
        dropout: float = 0.0,
        qkv_bias: bool = False,
    ):
        if dropout != 0.0:
            raise ValueError(f"FlexAttention has no dropout, got {dropout=}: use 0.0")
        super().__init__(d_in, d_out, num_heads, context_length, dropout, qkv_bias)
        self._block_mask = None  # of the last length and device

    def attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        num_tokens, device = queries.shape[2], queries.device
        mask = self._block_mask
        if mask is None or mask.seq_lengths[0] != num_tokens or mask.kv_indices.device != device:
            mask = create_block_mask(causal, None, None, num_tokens, num_tokens, device=device)
            self._block_mask = mask
        return flex_attention(queries, keys, values, block_mask=mask)


@torch.no_grad()
def copy_attention_weights(source: MultiHeadAttention, target: nn.Module) -> None:
    """Give a variant of this file the weights of ``source``: both compute the same function then.

    Raises ``ValueError`` if a width, the number of heads or the use of biases differs, and
    ``TypeError`` for a module that is none of the variants.
    """
    linears = [source.W_query, source.W_key, source.W_value]
    weights = [linear.weight for linear in linears]  # three times (d_out, d_in)
    biases = [linear.bias for linear in linears]
    # By attributes instead of classes, so that a class copied into a notebook is served too
    if hasattr(target, "heads"):
        heads, pairs = len(target.heads), _per_head(target, weights, biases)
    elif hasattr(target, "multihead_attn"):
        heads, pairs = target.multihead_attn.num_heads, _in_pytorchs_module(target, weights, biases)
    elif hasattr(target, "qkv"):
        heads, pairs = target.num_heads, _in_one_matrix(target.qkv, weights, biases)
    elif hasattr(target, "bias_q"):
        heads, pairs = target.num_heads, _transposed(target, weights, biases)
    elif hasattr(target, "W_query") and hasattr(target, "out_proj"):
        heads, pairs = target.num_heads, _separate(target, weights, biases)
    else:
        raise TypeError(f"{type(target).__name__} is none of the attention variants")
    if heads != source.num_heads:
        raise ValueError(f"the source has {source.num_heads} heads, the target {heads}")

    last = target.out_proj if hasattr(target, "out_proj") else target.proj
    pairs += [(last.weight, source.out_proj.weight), (last.bias, source.out_proj.bias)]
    for slot, value in pairs:
        _copy(slot, value)


def _copy(slot: torch.Tensor | None, value: torch.Tensor | None) -> None:
    shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (slot, value)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the source has a weight or bias {shapes[1]}, the target {shapes[0]}")
    if slot is not None:
        slot.copy_(value)


def _separate(target, weights, biases):
    linears = [target.W_query, target.W_key, target.W_value]
    pairs = [(linear.weight, weight) for linear, weight in zip(linears, weights, strict=True)]
    return pairs + [(linear.bias, bias) for linear, bias in zip(linears, biases, strict=True)]


def _per_head(target, weights, biases):
    pairs = []
    for number, head in enumerate(target.heads):
        rows = slice(number * head.d_out, (number + 1) * head.d_out)
        cut_weights = [weight[rows] for weight in weights]
        cut_biases = [None if bias is None else bias[rows] for bias in biases]
        pairs += _separate(head, cut_weights, cut_biases)
    return pairs


def _transposed(target, weights, biases):
    slots = [target.W_query.T, target.W_key.T, target.W_value.T]
    slots += [target.bias_q, target.bias_k, target.bias_v]
    return list(zip(slots, weights + biases, strict=True))


def _in_one_matrix(linear, weights, biases):
    slots = list(linear.weight.chunk(3))
    slots += [None] * 3 if linear.bias is None else linear.bias.chunk(3)
    return list(zip(slots, weights + biases, strict=True))


def _in_pytorchs_module(target, weights, biases):
    inner = target.multihead_attn
    one = torch.eye(inner.embed_dim, dtype=weights[0].dtype, device=weights[0].device)
    pairs = [(inner.out_proj.weight, one)]  # the outer projection does the work
    if inner.out_proj.bias is not None:
        pairs.append((inner.out_proj.bias, torch.zeros_like(one[0])))
    if inner.in_proj_weight is not None:
        slots = list(inner.in_proj_weight.chunk(3))
    else:
        slots = [target.to_query.weight, inner.k_proj_weight, inner.v_proj_weight]
        pairs.append((inner.q_proj_weight, one))
    slots += [None] * 3 if inner.in_proj_bias is None else inner.in_proj_bias.chunk(3)
    return pairs + list(zip(slots, weights + biases, strict=True))
