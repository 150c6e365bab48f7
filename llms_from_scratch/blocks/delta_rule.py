"""The gated delta rule: a memory of fixed size that forgets, and corrects what it holds.

Each head has a matrix S (key_dim, value_dim) that maps keys to values. A token with key k, value
v, decay exp(g) and strength beta changes it::

    S <- exp(g) * S                        forget a little of all
    S <- S + beta * k (v - S^T k)^T        what k brings back now, moves towards v
    output = S^T q                         read with the query

With beta = 1 and a key of length 1, S^T k is v afterwards, whatever it was: the old value is
overwritten, where plain linear attention would add the new one to it.

Shapes: b = batch size, n = new tokens, d_in = model width. Sources: Schlag et al., "Linear
Transformers Are Secretly Fast Weight Programmers" (2021); Yang et al., "Parallelizing Linear
Transformers with the Delta Rule over Sequence Length" (2024); Yang et al., "Gated Delta Networks:
Improving Mamba2 with Delta Rule" (2024). The layer is that of Qwen3-Next.
"""

import math

import torch
import torch.nn as nn
from torch.nn.functional import pad, silu, softplus

from llms_from_scratch.blocks.linear import apply_layer
from llms_from_scratch.blocks.norms import RMSNorm

State = tuple[torch.Tensor, torch.Tensor]


def l2norm(x: torch.Tensor, dim: int = -1, eps: float = 1e-6) -> torch.Tensor:
    """Bring vectors to length 1.

    >>> l2norm(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """
    return x * torch.rsqrt((x * x).sum(dim=dim, keepdim=True) + eps)


def recurrent_gated_delta_rule(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rule, token by token: outputs (b, heads, n, value_dim), and the memory after them.

    Queries and keys are (b, heads, n, key_dim), values (b, heads, n, value_dim); ``decay`` (the
    g above, not positive) and ``beta`` (b, heads, n); ``state`` (b, heads, key_dim, value_dim), or
    None for an empty memory.

    >>> k = torch.tensor([[1.0, 0.0], [1.0, 0.0]])[None, None]  # the same key twice
    >>> v = torch.tensor([[5.0], [7.0]])[None, None]
    >>> zero, one = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
    >>> recurrent_gated_delta_rule(k, k, v, zero, one)[0].flatten()
    tensor([5., 7.])
    """
    if state is None:
        state = _empty_memory(keys, values)
    outputs = []
    steps = zip(*(t.unbind(2) for t in (queries, keys, values, decay, beta)), strict=True)
    for q, k, v, g, strength in steps:  # q and k are (b, heads, key_dim)
        state = state * g.exp()[..., None, None]
        error = v - (k[..., None, :] @ state)[..., 0, :]  # (b, heads, value_dim)
        state = state + k[..., :, None] * (strength[..., None] * error)[..., None, :]
        outputs.append((q[..., None, :] @ state)[..., 0, :])
    return torch.stack(outputs, dim=2), state


def chunked_gated_delta_rule(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same outputs and memory, a chunk of tokens at a time, by products of matrices.

    Within a chunk that begins with memory S, token i writes u_i = beta_i (v_i - what its key
    brings back), and that is e_i S^T k_i from before the chunk, plus d_ij (k_i · k_j) u_j from each
    earlier token j of the chunk, where e_i and d_ij are the decays since then. So the u_i solve a
    triangular system, for all chunks at once; only S goes from one chunk to the next.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    n = keys.shape[2]
    size = min(chunk_size, n)
    missing = -n % size  # tokens without key or strength change nothing
    chunked = [
        pad(t, (0, 0, 0, missing)).unflatten(2, (-1, size))  # (b, heads, chunks, size, width)
        for t in (queries, keys, values, decay[..., None], beta[..., None])
    ]
    queries, keys, values, decay, beta = chunked
    since_start = decay.cumsum(dim=-2)  # logarithms of e_i, (b, heads, chunks, size, 1)
    between = since_start - since_start.transpose(-1, -2)  # of d_ij
    future = torch.ones(size, size, dtype=torch.bool, device=keys.device).triu(1)
    between = between.masked_fill(future, -torch.inf).exp()

    system = beta * (keys @ keys.transpose(-1, -2)) * between  # its diagonal counts as 1
    right = torch.cat([beta * values, beta * since_start.exp() * keys], dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    writes, reads = solved.split([values.shape[-1], keys.shape[-1]], dim=-1)
    among = (queries @ keys.transpose(-1, -2)) * between  # of a query and a key of its chunk
    queries = queries * since_start.exp()
    keys = keys * (since_start[..., -1:, :] - since_start).exp()  # decayed to the chunk's end
    whole = since_start[..., -1:, :].exp()  # (b, heads, chunks, 1, 1)

    state = _empty_memory(keys[:, :, 0], values[:, :, 0]) if state is None else state
    outputs = []
    for q, k, a, u, r, e in zip(
        *(t.unbind(2) for t in (queries, keys, among, writes, reads, whole)), strict=True
    ):
        written = u - r @ state  # (b, heads, size, value_dim)
        outputs.append(q @ state + a @ written)
        state = e * state + k.transpose(-1, -2) @ written
    return torch.cat(outputs, dim=2)[:, :, :n], state


def _empty_memory(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Zeros (b, heads, key_dim, value_dim)."""
    return keys.new_zeros(*keys.shape[:2], keys.shape[-1], values.shape[-1])


class GatedDeltaNet(nn.Module):
    """The gated delta rule as a layer in the place of attention. Input and output (b, n, d_in).

    Queries, keys and values go through a short causal convolution first, each channel for itself,
    so that a token sees the ``conv_size - 1`` before it. Queries and keys have length 1. From each
    token come beta (``W_beta``), the decay -exp(A_log) * softplus(W_alpha x + dt_bias), and a gate
    for what is read (``W_gate``). There may be several value heads per key head: neighbours share
    its queries and keys, as in grouped-query attention the other way round.

    The cache keeps the last ``conv_size - 1`` inputs of the convolution, and the memory of each
    head in float32: the same few bytes after ten tokens and after a million. Padding on the left
    writes nothing.
    """

    def __init__(
        self,
        d_in: int,
        num_key_heads: int,
        num_value_heads: int,
        key_head_dim: int,
        value_head_dim: int,
        conv_size: int = 4,
        chunk_size: int = 64,
        qkv_bias: bool = False,
        eps: float = 1e-6,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if num_key_heads < 1 or num_value_heads % num_key_heads or num_value_heads < 1:
            raise ValueError(
                "num_value_heads must be a multiple of num_key_heads, "
                f"got {num_value_heads=}, {num_key_heads=}"
            )
        if conv_size < 1:
            raise ValueError(f"conv_size must be at least 1 (the token alone), got {conv_size}")
        self.num_key_heads, self.num_value_heads = num_key_heads, num_value_heads
        self.key_head_dim, self.value_head_dim = key_head_dim, value_head_dim
        self.conv_size, self.chunk_size = conv_size, chunk_size
        self.key_dim = num_key_heads * key_head_dim
        self.value_dim = num_value_heads * value_head_dim
        self.conv_dim = 2 * self.key_dim + self.value_dim

        self.make_projections(d_in, qkv_bias, dtype)
        self.conv1d = nn.Conv1d(
            self.conv_dim, self.conv_dim, conv_size, groups=self.conv_dim, bias=False, dtype=dtype
        )
        # exp(A_log) * softplus(dt_bias) is what a head forgets per token: from hardly anything to
        # much. Not from 0, whose logarithm is minus infinity
        waits = torch.empty(num_value_heads, dtype=dtype).uniform_(math.log(0.001), math.log(0.1))
        self.dt_bias = nn.Parameter(waits.exp().expm1().log())  # softplus of it is exp(waits)
        strengths = torch.empty(num_value_heads, dtype=dtype).uniform_(0.01, 16)
        self.A_log = nn.Parameter(strengths.log())
        self.norm = RMSNorm(value_head_dim, eps, dtype)
        self.out_proj = nn.Linear(self.value_dim, d_in, bias=False, dtype=dtype)

    def make_projections(self, d_in: int, qkv_bias: bool, dtype: torch.dtype | None) -> None:
        """The matrices that ``project``, ``project_gate`` and ``project_rates`` multiply by."""
        self.W_query = nn.Linear(d_in, self.key_dim, bias=qkv_bias, dtype=dtype)
        self.W_key = nn.Linear(d_in, self.key_dim, bias=qkv_bias, dtype=dtype)
        self.W_value = nn.Linear(d_in, self.value_dim, bias=qkv_bias, dtype=dtype)
        self.W_gate = nn.Linear(d_in, self.value_dim, bias=False, dtype=dtype)
        self.W_beta = nn.Linear(d_in, self.num_value_heads, bias=False, dtype=dtype)
        self.W_alpha = nn.Linear(d_in, self.num_value_heads, bias=False, dtype=dtype)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
        cache=None,
        layer_idx: int = 0,
    ) -> torch.Tensor:
        earlier, memory = (None, None) if cache is None else cache.get(layer_idx) or (None, None)
        mixed, earlier = self.convolve(without_padding(self.project(x), cache), earlier)
        decay, beta = self.decay_and_strength(x)
        inputs = (*self.heads(mixed), decay, beta)
        if x.shape[1] == 1:
            read, memory = recurrent_gated_delta_rule(*inputs, memory)
        else:
            read, memory = chunked_gated_delta_rule(*inputs, memory, self.chunk_size)
        if cache is not None:
            cache.update(layer_idx, (earlier, memory))
        return self.gated_output(read.transpose(1, 2).to(x.dtype), x)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values side by side, (b, n, conv_dim)."""
        parts = (self.W_query, self.W_key, self.W_value)
        return torch.cat([apply_layer(part, x) for part in parts], dim=-1)

    def project_gate(self, x: torch.Tensor) -> torch.Tensor:
        """What decides how much of each number passes, (b, n, value_dim)."""
        return apply_layer(self.W_gate, x)

    def project_rates(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What becomes the decay, and beta, each (b, n, num_value_heads)."""
        return apply_layer(self.W_alpha, x), apply_layer(self.W_beta, x)

    def convolve(
        self, mixed: torch.Tensor, earlier: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix each channel with its last values; returns (b, n, conv_dim), and what to keep."""
        channels = mixed.transpose(1, 2)  # (b, conv_dim, n)
        kept = self.conv_size - 1
        if earlier is None:
            earlier = channels.new_zeros(*channels.shape[:2], kept)
        channels = torch.cat([earlier, channels], dim=-1)
        earlier = channels[..., channels.shape[-1] - kept :].contiguous()
        return silu(self.conv1d(channels)).transpose(1, 2), earlier

    def heads(self, mixed: torch.Tensor) -> list[torch.Tensor]:
        """Queries, keys, values in float32, each (b, num_value_heads, n, head width)."""
        parts = mixed.float().split([self.key_dim, self.key_dim, self.value_dim], dim=-1)
        widths = (self.key_head_dim, self.key_head_dim, self.value_head_dim)
        queries, keys, values = (
            part.unflatten(-1, (-1, width)).transpose(1, 2)
            for part, width in zip(parts, widths, strict=True)
        )
        queries, keys = l2norm(queries) * self.key_head_dim**-0.5, l2norm(keys)
        shared = self.num_value_heads // self.num_key_heads
        return [
            queries.repeat_interleave(shared, dim=1),
            keys.repeat_interleave(shared, dim=1),
            values,
        ]

    def decay_and_strength(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logarithm of the decay, and beta, in float32, each (b, num_value_heads, n)."""
        alpha, beta = self.project_rates(x)
        waited = softplus(alpha.float() + self.dt_bias.float())
        decay = -self.A_log.float().exp() * waited
        beta = beta.float().sigmoid()
        return decay.transpose(1, 2), beta.transpose(1, 2)

    def gated_output(self, read: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Normalize what was read, (b, n, num_value_heads, value_head_dim), and let it through."""
        gate = self.project_gate(x).unflatten(-1, (-1, self.value_head_dim))
        context = (self.norm(read) * silu(gate.float())).to(x.dtype)
        return apply_layer(self.out_proj, context.flatten(2))  # (b, n, d_in)


def without_padding(x: torch.Tensor, cache) -> torch.Tensor:
    """``x`` (b, n, width) with zeros where the cache's rows have no token yet.

    The convolution finds there what is before a text's first token, nothing, and a key of zeros
    writes nothing.
    """
    if cache is None or cache.padding is None:
        return x
    columns = torch.arange(cache.length, cache.length + x.shape[1], device=x.device)
    return x.masked_fill((columns < cache.padding[:, None])[..., None], 0)
