"""Linear layers for a few tokens at a time, which is how text is generated."""

import functools

import torch
import torch.nn as nn


def apply_layer(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``layer(x)``, where a linear layer sees up to eight tokens on a CPU: with all its cores.

    For so few tokens, the time is that of reading the weights, and one core cannot keep the memory
    busy. MKL, PyTorch's library for products, gives the cores parts of the *rows* of the first
    matrix, of which ``x @ weight.T`` has too few; so it is computed from the other side, as
    ``(weight @ x.T).T``. For a single token, MKL leaves a matrix times a vector to one core, but
    of several independent products it gives some to each; so the weights are cut into parts,
    without a copy. The result is the same to rounding.
    """
    tokens = x.shape[0] * x.shape[1]
    if tokens > 8 or not _is_plain(layer, x):
        return layer(x)
    d_out, d_in = layer.weight.shape
    columns = x.reshape(tokens, d_in).t()  # (d_in, tokens)
    parts = _number_of_parts(d_out, torch.get_num_threads()) if tokens == 1 else 1
    if parts > 1:
        weights = layer.weight.view(parts, d_out // parts, d_in)
        out = torch.bmm(weights, columns.expand(parts, d_in, 1))  # (parts, d_out / parts, 1)
        out = out.view(*x.shape[:-1], d_out)
    elif tokens == 1 or (tokens > 4 and d_out < d_in):
        return layer(x)
    else:
        out = torch.mm(layer.weight, columns).t().contiguous().view(*x.shape[:-1], d_out)
    return out if layer.bias is None else out + layer.bias


def _is_plain(layer: nn.Module, x: torch.Tensor) -> bool:
    """Whether a layer is nothing but a product in float32 on a CPU, and no gradient is wanted."""
    has_hooks = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return (
        type(layer) is nn.Linear
        and not has_hooks
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and layer.weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and layer.weight.is_contiguous()
        and torch.backends.mkl.is_available()
    )


@functools.cache
def _number_of_parts(d_out: int, threads: int) -> int:
    """The smallest divisor of ``d_out`` that gives each thread a part; 1 if there is no good one.

    >>> _number_of_parts(768, 2), _number_of_parts(50257, 2), _number_of_parts(768, 1)
    (2, 29, 1)
    """
    candidates = range(threads, min(32 * threads, d_out) + 1)
    return next((n for n in candidates if d_out % n == 0), 1)
